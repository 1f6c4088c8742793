"""Fairness across declared groups: whether honest payments of one group are alerted more often than those of the others. Pure.

A recipe declares groups by a column of the data: ranges of it, or values with their names. A column `attribute.*` (a mapping's own, which no feature
has) is there to be measured with and is read by no member; a feature that is named stays a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from models.history import Flags, Floats, Ints
from schemas.record import like

MEASURED_ONLY = "attribute."
HONEST_MIN = 200
"""Of fewer honest payments of a group nothing is said."""
RESAMPLES = 400
SEED = 1


class Groups(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One declaration: ranges between rising bounds, each from its lower one on, or values by the name of their group."""

    name: Annotated[str, like("[a-z_]{1,40}")]
    column: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    bounds: tuple[float, ...] = ()
    values: dict[str, float] = {}

    def __post_init__(self) -> None:
        """ValueError unless it says either ranges or values."""
        if bool(self.bounds) == bool(self.values):
            raise ValueError(f"groups {self.name}: give either bounds or values")
        if list(self.bounds) != sorted(set(self.bounds)):
            raise ValueError(f"groups {self.name}: the bounds do not rise")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the groups, in order."""
        if self.values:
            return tuple(self.values)
        low, high = (f"{bound:g}" for bound in (self.bounds[0], self.bounds[-1]))
        between = [f"{a:g} to below {b:g}" for a, b in zip(self.bounds, self.bounds[1:], strict=False)]
        return (f"below {low}", *between, f"{high} and above")

    def of(self, column: Floats) -> Ints:
        """int64[rows]: the number of each row's group; -1 where it is in none."""
        if self.values:
            numbers = np.full(len(column), -1)
            for number, value in enumerate(self.values.values()):
                numbers[column == value] = number
            return numbers
        return np.where(np.isnan(column), -1, np.searchsorted(self.bounds, column, "right"))


class Treated(NamedTuple):
    """One group's honest payments: how many, the share that was alerted, and how many times the share of the other groups that is.

    The interval is of 95 draws of 100, by a bootstrap over cards. None where a group has too few to say.
    """

    group: str
    honest: int
    alerted: float | None
    ratio: float | None
    low: float | None
    high: float | None


def treated(groups: Groups, column: Floats, alerts: Flags, frauds: Flags, cards: Ints) -> list[Treated]:
    """How each group was treated: of the rows that are in any, the honest ones."""
    numbers = groups.of(column)
    rows = (numbers >= 0) & ~frauds
    cards = np.unique(cards[rows], return_inverse=True)[1].astype(np.int64)
    place, shape = cards * len(groups.names) + numbers[rows], (int(cards.max(initial=-1)) + 1, len(groups.names))
    honest, hits = (np.bincount(place, counted, shape[0] * shape[1]).astype(np.float64).reshape(shape) for counted in (None, alerts[rows]))
    low, high = _interval(hits, honest)
    sums, found = honest.sum(axis=0), []
    for n, (name, ratio) in enumerate(zip(groups.names, _ratios(hits.sum(axis=0), sums), strict=True)):
        enough = min(sums[n], sums.sum() - sums[n]) >= HONEST_MIN
        said = (float(hits[:, n].sum() / sums[n]), float(ratio), float(low[n]), float(high[n])) if enough else (None, None, None, None)
        found.append(Treated(name, int(sums[n]), *said))
    return found


def _interval(hits: Floats, honest: Floats) -> Floats:
    """float64[2, groups]: between which the ratios lie when cards are drawn again and again."""
    rng = np.random.default_rng(SEED)
    drawn = [_ratios(weights @ hits, weights @ honest) for weights in (rng.poisson(1.0, len(hits)) for _ in range(RESAMPLES))]
    return np.percentile(drawn, (2.5, 97.5), axis=0)


def _ratios(hits: Floats, honest: Floats) -> Floats:
    """Each group's share of alerts over that of all others; half an alert is added to both, so that none is infinite."""
    other_hits, others = hits.sum() - hits, honest.sum() - honest
    ratios: Floats = ((hits + 0.5) / (honest + 1)) / ((other_hits + 0.5) / (others + 1))
    return ratios


def measured(declared: Sequence[Groups], names: Sequence[str], vectors: Floats, alerts: Flags, frauds: Flags, cards: Ints) -> dict[str, Any]:
    """By declaration how its groups were treated, plain, for a card; nothing for a column that the data has not."""
    place = {name: number for number, name in enumerate(names)}
    found = {}
    for groups in declared:
        if groups.column in place:
            rows = treated(groups, vectors[:, place[groups.column]], alerts, frauds, cards)
            found[groups.name] = {"column": groups.column, "groups": [row._asdict() for row in rows]}
    return found


def checks(declared: Sequence[Groups], found: Mapping[str, Any]) -> dict[str, float]:
    """What the gate looks at: how many declarations there are, and the worst ratio that chance does not explain.

    It is there only where each declaration could be measured: of two groups at least.
    """
    lows = [[row["low"] for row in each["groups"] if row["low"] is not None] for each in found.values()]
    asked = {"fairness_declared": float(len(declared))}
    whole = declared and len(lows) == len(declared) and all(len(own) > 1 for own in lows)
    return asked | ({"fairness_ratio_low": max(low for own in lows for low in own)} if whole else {})
