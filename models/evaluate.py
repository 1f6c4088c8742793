"""Evaluation the way the field does it: folds that roll through time, with a gap in which labels are not yet known. Pure.

A fold trains on the rows of its training span with the labels as known when its test span begins, and is tested on the days after. Cards known
to be compromised are taken out of each test day: a bank has blocked them (Y.-A. Le Borgne et al. 2022, chapter 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from models.figures import DAYS_DRAWN_MIN, GROUPS, USUAL, Bin, Estimate, Operation, Sheet, Trial, draws, estimates, reliability
from models.history import Believed, Flags, Floats, History, Ints
from models.recipe import Recipe
from models.train import Gain, Team, Weighed, fit
from schemas.errors import ArtefactError

DAY_MS = 86_400_000
GIVEN, FITTED, SERVED = "ensemble, weights of the recipe", "ensemble, fitted weights", "ensemble, as it would serve"
NEVER = np.iinfo(np.int64).max


class Spans(NamedTuple):
    """The lengths of a fold's parts, days: training, the gap in which labels come in, test."""

    train_days: float
    delay_days: float
    test_days: int


class Fold(NamedTuple):
    """One fold: from and until when it trains and is tested, milliseconds since 1970; each `until` is the first moment after."""

    train_from_ms: int
    train_until_ms: int
    test_from_ms: int
    test_until_ms: int


class Tried(NamedTuple):
    """What a fold was made of."""

    fold: Fold
    train_rows: int
    train_frauds: int
    test_rows: int
    test_frauds: int
    cards_left_out: int
    weights: tuple[float, ...]  # fitted
    gain: Gain  # by fitted weights, as training measured it
    taken: str  # whose weights would serve: given, fitted


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came out: by model its figures, and what its score means.

    The models are each member, and the ensemble with the recipe's weights, with fitted ones, and with those that would serve.
    """

    members: tuple[str, ...]
    folds: tuple[Tried, ...]
    table: dict[str, dict[str, Estimate]]
    reliability: dict[str, tuple[Bin, ...]]


def folds(first_ms: int, until_ms: int, spans: Spans, count: int) -> tuple[Fold, ...]:
    """At most `count` folds, oldest first: the last is tested up to `until_ms`, each right after the one before. None begins too early."""
    train_ms, delay_ms, test_ms = (int(days * DAY_MS) for days in spans)
    fitting = max(0, until_ms - first_ms - train_ms - delay_ms) // test_ms
    ends = [until_ms - number * test_ms for number in reversed(range(min(count, fitting)))]
    tests = [(end - test_ms, end) for end in ends]
    return tuple(Fold(begin - delay_ms - train_ms, begin - delay_ms, begin, end) for begin, end in tests)


def midnight_before(moment_ms: int) -> int:
    """The last midnight (UTC) that is not after a moment."""
    return moment_ms // DAY_MS * DAY_MS


def can_be_tried(history: History, fold: Fold) -> bool:
    """Whether the fold has known frauds of several cards to learn from, and frauds and honest payments to be tested on."""
    trained, tested = (slice(*np.searchsorted(history.at_ms, span, "left")) for span in (fold[:2], fold[2:]))
    known, true = history.believed(fold.test_from_ms).frauds[trained], history.believed().frauds[tested]
    return len(np.unique(history.cards[trained][known])) > 1 and not known.all() and bool(true.any()) and not true.all()


def rows_tried(history: History, fold: Fold, truth: Believed) -> tuple[Ints, int]:
    """The rows that the fold is tested on, and how many cards were left out of it because a fraud on them was known when a day began."""
    rows = np.arange(*np.searchsorted(history.at_ms, [fold.test_from_ms, fold.test_until_ms], "left"))
    known_ms = np.full(int(history.cards.max(initial=-1)) + 1, NEVER)
    frauds = np.flatnonzero(truth.frauds & (history.at_ms >= fold.train_from_ms))
    since_ms = np.maximum(truth.since_ms[frauds], history.at_ms[frauds] + 1)  # nobody knows of a payment before it happens, whatever a file says
    np.minimum.at(known_ms, history.cards[frauds], since_ms)
    day_began_ms = fold.test_from_ms + (history.at_ms[rows] - fold.test_from_ms) // DAY_MS * DAY_MS
    known = known_ms[history.cards[rows]] <= day_began_ms
    return rows[~known], len(np.unique(history.cards[rows[known]]))


def evaluated(
    history: History,
    rolled: tuple[Fold, ...],
    recipe: Recipe,
    operation: Operation = USUAL,
    *,
    seed: int = 1,
    threads: int = 1,
    resamples: int = 200,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Trains and tests on each fold. ArtefactError if there is none, or if one has nothing to learn from."""
    if not rolled:
        raise ArtefactError("the history is too short for one fold: shorter spans, or a longer history")
    truth = history.believed()
    names = (*(row.name for row in recipe.members), GIVEN, FITTED, SERVED)
    sheets: dict[str, list[Sheet]] = {name: [] for name in names}
    tries: list[Tried] = []
    pooled: dict[str, list[Floats]] = {name: [] for name in names}
    frauds: list[Flags] = []
    for number, fold in enumerate(rolled, 1):
        examples = history.training_set(fold.test_from_ms, fold.test_from_ms - fold.train_until_ms + 1, fold.train_from_ms)
        team = fit(examples, recipe, seed, threads)
        rows, left_out = rows_tried(history, fold, truth)
        tested = _tested(history, fold, rows, truth.frauds)
        taken, serving = team.weighed(recipe.weights_from)
        for name, scores in _scores(team, serving, history.vectors, rows, names).items():
            sheets[name].append(Sheet.of(tested, scores, operation))
            pooled[name].append(scores)
        frauds.append(tested.frauds)
        counts = (len(examples.frauds), int(examples.frauds.sum()), len(rows), int(tested.frauds.sum()))
        tries.append(Tried(fold, *counts, left_out, tuple(team.fitted.weights.tolist()), team.gain, taken))
        say(f"fold {number} of {len(rolled)}: trained on {counts[0]} rows ({counts[1]} frauds), tested on {counts[2]} ({counts[3]})")
    drawn = draws([len(sheet.days.alerts) for sheet in sheets[GIVEN]], resamples, seed)
    table = {name: estimates(sheets[name], drawn) for name in names}
    points = {name: reliability(np.concatenate(pooled[name]), np.concatenate(frauds)) for name in names}
    return Evaluation(names[:-3], tuple(tries), table, points)


def _tested(history: History, fold: Fold, rows: Ints, frauds: Flags) -> Trial:
    days = (history.at_ms[rows] - fold.test_from_ms) // DAY_MS
    count = -(-(fold.test_until_ms - fold.test_from_ms) // DAY_MS)
    groups = GROUPS if len(np.unique(days)) < DAYS_DRAWN_MIN else 0
    cards = np.unique(history.cards[rows], return_inverse=True)[1]
    currencies = None if history.currencies is None else history.currencies[rows]
    return Trial(frauds[rows], days, cards, history.amounts_minor[rows], count, groups, history.currency_names, currencies)


def _scores(team: Team, serving: Weighed, vectors: Floats, rows: Ints, names: tuple[str, ...]) -> dict[str, Floats]:
    """What each model says of these rows, 0 to 1."""
    said = team.said(vectors[rows[0] : rows[-1] + 1])[rows - rows[0]] if len(rows) else np.empty((0, len(team.members)))
    return dict(zip(names, (*said.T, *(weighed.scores(said) for weighed in (team.given, team.fitted, serving))), strict=True))
