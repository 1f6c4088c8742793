"""The figures by which the field compares models, computed from scores, truth, days, cards and amounts. Pure numpy; lots of rows can be weighted.

Definitions: ROC AUC and average precision as scikit-learn's; card precision at k, with cards found taken out of later days, after Le Borgne et al.,
"Reproducible Machine Learning for Credit Card Fraud Detection" (2022), chapter 4; value detection rate: the share of defrauded money on alerts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.history import Flags, Floats, Ints

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05)
INTERVAL = (2.5, 97.5)
"""The percentiles of a bootstrap that an interval goes from and to."""
DAYS_DRAWN_MIN = 5
"""A bootstrap over fewer days than this says too little of chance; then it draws from groups of cards, or of payments."""
GROUPS = 200


class Costs(NamedTuple):
    """What an alert costs and saves, minor units; `recovered` is the share of a fraud's amount that an alert saves."""

    review_minor: float = 300.0
    honest_hurt_minor: float = 500.0
    recovered: float = 1.0


class Operation(NamedTuple):
    """How scores are used: an alert is a score above `alert_above` (0 to 1000, as it is shown); `cards` a day are looked at."""

    alert_above: int = 500
    cards: int = 100
    costs: Costs = Costs()


USUAL = Operation()


@dataclass(frozen=True, eq=False)
class Trial:
    """The rows that a model is tested on, with the truth about them. `days` counts from the first test day, which is 0."""

    frauds: Flags
    days: Ints
    cards: Ints
    amounts_minor: Ints
    days_count: int
    groups: int = 0
    """Of how many groups of cards a bootstrap draws; 0: it draws days, of which there are enough."""
    currency_names: tuple[str, ...] = ()
    currencies: Ints | None = None
    """By row the number of its currency; not asked where there is one."""

    @property
    def lots(self) -> int:
        """How many lots a bootstrap draws from."""
        return self.groups or self.days_count

    def lot_of(self, days: Ints, cards: Ints) -> Ints:
        """The lot in which a card of a day is."""
        return cards % self.groups if self.groups else days


class Estimate(NamedTuple):
    """A figure with the interval in which it lies in 95 of 100 draws of days (or of cards); NaN where it cannot be told."""

    value: float
    low: float
    high: float


# Ranking.


@dataclass(frozen=True, eq=False)
class Ranked:
    """Rows from the highest score to the lowest. `last` marks the last row of each run of equal scores: only there a threshold can lie."""

    frauds: Flags
    lots: Ints
    last: Ints

    @classmethod
    def of(cls, tested: Trial, scores: Floats) -> Ranked:
        """The rows by these scores."""
        order = np.argsort(-scores, kind="stable")
        falls = np.flatnonzero(np.diff(scores[order]))
        last = np.append(falls, len(order) - 1) if len(order) else falls
        return cls(tested.frauds[order], tested.lot_of(tested.days, tested.cards)[order], last)

    def figures(self, weights: Floats) -> dict[str, float]:
        """ROC AUC, average precision and recall at fixed false positive rates, each lot's rows counted as often as its weight says."""
        counted = weights[self.lots]
        hits = np.cumsum(np.where(self.frauds, counted, 0.0))[self.last]
        misses = np.cumsum(np.where(self.frauds, 0.0, counted))[self.last]
        if not len(hits) or hits[-1] == 0 or misses[-1] == 0:
            return dict.fromkeys(("roc_auc", "average_precision", *map(recall_name, FALSE_POSITIVE_RATES)), np.nan)
        recall, false_rate = hits / hits[-1], misses / misses[-1]
        steps = np.diff(recall, prepend=0.0)
        precision = hits / np.maximum(hits + misses, 1e-300)
        at_rates = {recall_name(rate): _at_most(false_rate, recall, rate) for rate in FALSE_POSITIVE_RATES}
        return {
            "roc_auc": float(np.trapezoid(np.append(0.0, recall), np.append(0.0, false_rate))),
            "average_precision": float((steps * precision).sum()),
            **at_rates,
        }


def recall_name(rate: float) -> str:
    """The name of the recall at a false positive rate: `recall_at_fpr_0.001`."""
    return f"recall_at_fpr_{rate:g}"


def _at_most(false_rate: Floats, recall: Floats, rate: float) -> float:
    """The recall of the lowest threshold whose false positive rate does not exceed this one."""
    place = int(np.searchsorted(false_rate, rate, "right")) - 1
    return float(recall[place]) if place >= 0 else 0.0


# Days.


def card_precisions(tested: Trial, scores: Floats, k: int) -> Floats:
    """float64[days]: of the k cards with the highest score each day, the share that was defrauded that day; cards found are left out later."""
    days, _ = _cards_found(tested, scores, k)
    return np.bincount(days, minlength=tested.days_count) / k


def _cards_found(tested: Trial, scores: Floats, k: int) -> tuple[Ints, Ints]:
    """The days on which cards are found by looking at k a day, and the cards."""
    found = np.zeros(int(tested.cards.max(initial=-1)) + 1, np.bool_)
    each: list[Ints] = []
    for day in range(tested.days_count):
        rows = np.flatnonzero((tested.days == day) & ~found[tested.cards])
        cards, place = np.unique(tested.cards[rows], return_inverse=True)
        highest, defrauded = np.full(len(cards), -np.inf), np.zeros(len(cards), np.bool_)
        np.maximum.at(highest, place, scores[rows])
        np.logical_or.at(defrauded, place, tested.frauds[rows])
        looked_at = np.argsort(-highest, kind="stable")[:k]
        each.append(cards[looked_at][defrauded[looked_at]])
        found[each[-1]] = True
    return np.repeat(np.arange(tested.days_count), [len(cards) for cards in each]), np.concatenate(each)


class Money(NamedTuple):
    """Sums of each lot in one currency, minor units."""

    fraud_minor: Floats
    found_minor: Floats
    saved_minor: Floats

    def figures(self, weights: Floats, days: float, ending: str = "") -> dict[str, float]:
        """The figures of money; their names end in this."""
        return {
            f"value_detection_rate{ending}": _over(float(self.found_minor @ weights), float(self.fraud_minor @ weights)),
            f"saved_minor_per_day{ending}": float(self.saved_minor @ weights / days),
        }


@dataclass(frozen=True, eq=False)
class Days:
    """Sums of each lot: what alerts there were, what they found, and what that is worth. `lots_a_day` makes of means of lots means of days."""

    alerts: Floats
    hits: Floats
    money: dict[str, Money]  # by the ending of its figures' names: that of the one currency has none
    card_precision: Floats
    card_ceiling: Floats
    lots_a_day: float

    @classmethod
    def of(cls, tested: Trial, scores: Floats, operation: Operation) -> Days:
        """The sums of these scores."""
        costs, alert = operation.costs, np.rint(scores * 1000) > operation.alert_above
        hit = alert & tested.frauds
        saved = np.where(hit, tested.amounts_minor * costs.recovered, 0.0) - alert * costs.review_minor - (alert & ~hit) * costs.honest_hurt_minor
        parts = (tested.amounts_minor * tested.frauds, tested.amounts_minor * hit, saved)
        return cls(
            _by_lot(tested, alert),
            _by_lot(tested, hit),
            {ending: Money(*(_by_lot(tested, part * of) for part in parts)) for ending, of in _by_currency(tested)},
            _found_by_lot(tested, scores, operation.cards),
            _found_by_lot(tested, tested.frauds.astype(np.float64), operation.cards),
            tested.lots / tested.days_count,
        )

    def figures(self, weights: Floats) -> dict[str, float]:
        """The figures of all lots, each counted as often as its weight says. Of several currencies there is no money in all."""
        days = weights.sum() / self.lots_a_day
        alerts, hits = float(self.alerts @ weights), float(self.hits @ weights)
        return {
            "card_precision": _share(float(self.card_precision @ weights), days),
            "card_precision_ceiling": _share(float(self.card_ceiling @ weights), days),
            "value_detection_rate": np.nan,
            "false_positives_per_fraud": _over(alerts - hits, hits),
            "alerts_per_day": float(alerts / days),
            "saved_minor_per_day": np.nan,
            **{name: value for ending, money in self.money.items() for name, value in money.figures(weights, days, ending).items()},
        }


def _by_currency(tested: Trial) -> list[tuple[str, Flags]]:
    """For each currency the ending of its figures' names, and its rows."""
    if tested.currencies is None or len(tested.currency_names) < 2:
        return [("", np.ones(len(tested.frauds), np.bool_))]
    return [(f".{name}", tested.currencies == number) for number, name in enumerate(tested.currency_names)]


def _by_lot(tested: Trial, values: npt.NDArray[np.generic]) -> Floats:
    lots = tested.lot_of(tested.days, tested.cards)
    return np.bincount(lots, weights=values.astype(np.float64), minlength=tested.lots).astype(np.float64)


def _found_by_lot(tested: Trial, scores: Floats, k: int) -> Floats:
    """Of the k cards that are looked at each day, the share that is found, as much of it as lies in each lot."""
    return np.bincount(tested.lot_of(*_cards_found(tested, scores, k)), minlength=tested.lots) / k


def _share(found: float, days: float) -> float:
    """Of the cards that are looked at: a draw that has more of those that are found than of the days has found all."""
    return min(found / days, 1.0)


def _over(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


# Both, over folds, with intervals.


@dataclass(frozen=True, eq=False)
class Sheet:
    """One model's scores on one fold, ready to be counted with any weights of lots."""

    ranked: Ranked
    days: Days

    @classmethod
    def of(cls, tested: Trial, scores: Floats, operation: Operation) -> Sheet:
        """The sheet of these scores."""
        return cls(Ranked.of(tested, scores), Days.of(tested, scores, operation))

    def figures(self, weights: Floats) -> dict[str, float]:
        """All figures of the fold."""
        return self.ranked.figures(weights) | self.days.figures(weights)


def draws(folds: list[int], count: int, seed: int) -> list[list[Floats]]:
    """For each of `count` draws and each fold (given by its number of lots) how often each lot was drawn; the same for every model compared."""
    rng = np.random.default_rng(seed)
    return [[np.bincount(rng.integers(0, lots, lots), minlength=lots).astype(np.float64) for lots in folds] for _ in range(count)]


def estimates(sheets: list[Sheet], drawn: list[list[Floats]]) -> dict[str, Estimate]:
    """The figures of one model, means over its folds, with intervals by bootstrap over the days (or cards) within each fold."""
    plain = _mean(sheets, [np.ones(len(sheet.days.alerts)) for sheet in sheets])
    again = [_mean(sheets, weights) for weights in drawn]
    return {name: Estimate(value, *_interval([each[name] for each in again])) for name, value in plain.items()}


def _mean(sheets: list[Sheet], weights: list[Floats]) -> dict[str, float]:
    figures = [sheet.figures(each) for sheet, each in zip(sheets, weights, strict=True)]
    return {name: _known_mean([each[name] for each in figures]) for name in figures[0]}


def _known_mean(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def _interval(values: list[float]) -> tuple[float, float]:
    known = [value for value in values if value == value]
    if not known:
        return float("nan"), float("nan")
    low, high = np.percentile(known, INTERVAL)
    return float(low), float(high)


# Whether the score means what it says.


class Bin(NamedTuple):
    """Rows with a score in one range: how many, their mean score, and the share that was fraud; both 0 to 1."""

    low: float
    high: float
    rows: int
    said: float
    true: float


def reliability(scores: Floats, frauds: Flags, bins: int = 10) -> tuple[Bin, ...]:
    """The reliability plot's points: ranges of equal width from 0 to 1, those without rows left out."""
    place = np.minimum((scores * bins).astype(np.int64), bins - 1)
    rows = np.bincount(place, minlength=bins)
    said, true = np.bincount(place, weights=scores, minlength=bins), np.bincount(place, weights=frauds.astype(np.float64), minlength=bins)
    return tuple(Bin(i / bins, (i + 1) / bins, int(rows[i]), said[i] / rows[i], true[i] / rows[i]) for i in range(bins) if rows[i])


def calibration_error(points: tuple[Bin, ...]) -> float:
    """The expected calibration error: how far said and true are apart, weighted by rows."""
    rows = sum(point.rows for point in points)
    return sum(point.rows * abs(point.said - point.true) for point in points) / rows if rows else float("nan")
