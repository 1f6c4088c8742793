"""Proves that folds roll through time without a look ahead, and that the table tells who knows what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.evaluate import DAY_MS, FITTED, GIVEN, SERVED, Fold, Spans, evaluated, folds, rows_tried
from models.history import History, Verdicts
from models.recipe import Recipe, recipe_from_toml
from schemas.errors import ArtefactError

RECIPE = """
name = "two"
honest_per_fraud = 20
parts = 2
members = [
    { name = "learned", weight = 0.7, families = ["*"], estimator = "hist_gradient_boosting", parameters = { max_iter = 20 } },
    { name = "blind", weight = 0.3, families = ["noise"], estimator = "hist_gradient_boosting", parameters = { max_iter = 5 } },
]
"""


def a_history(days: int = 20, rows_a_day: int = 400, delay_days: int = 2) -> History:
    """Cards that pay; a tenth of the cards is compromised on some day, and pays dearer from then on."""
    rng = np.random.default_rng(1)
    count = days * rows_a_day
    at_ms = np.sort(rng.integers(0, days * DAY_MS, count))
    cards = rng.integers(0, 1000, count)
    since_ms = np.where(rng.random(1000) < 0.1, rng.integers(0, days * DAY_MS, 1000), days * DAY_MS)
    frauds = at_ms >= since_ms[cards]
    vectors = np.column_stack([rng.normal(size=count) + 2 * frauds, rng.normal(size=count)])
    rows = np.arange(count)
    verdicts = Verdicts.in_order(rows, frauds, np.full(count, None, dtype=object), at_ms + delay_days * DAY_MS)
    return History("cat_x", ("a.amount", "noise.noise"), vectors, at_ms, cards, np.full(count, 1000), verdicts)


@pytest.fixture
def recipe() -> Recipe:
    return recipe_from_toml(RECIPE)


def test_folds_end_with_the_history_and_their_tests_follow_each_other() -> None:
    rolled = folds(0, 28 * DAY_MS, Spans(7, 7, 7), 4)
    assert rolled == (Fold(0, 7 * DAY_MS, 14 * DAY_MS, 21 * DAY_MS), Fold(7 * DAY_MS, 14 * DAY_MS, 21 * DAY_MS, 28 * DAY_MS))
    assert folds(0, 28 * DAY_MS, Spans(7, 7, 7), 10**12) == rolled, "at most as many as fit, in no more time"
    assert folds(0, 28 * DAY_MS, Spans(28, 7, 7), 4) == ()
    assert folds(0, 28 * DAY_MS, Spans(0.5, 0, 1), 1) == (Fold(int(26.5 * DAY_MS), 27 * DAY_MS, 27 * DAY_MS, 28 * DAY_MS),)


def test_a_card_known_to_be_compromised_when_a_test_day_begins_is_not_tested_on_it() -> None:
    at_ms = np.array([1, 2, 10, 11, 12, 21, 31, 32]) * DAY_MS
    cards = np.array([0, 1, 0, 1, 2, 2, 2, 1])
    frauds = np.array([True, True, False, False, True, True, True, False])
    learned = np.array([3, 11, 0, 0, 31, 40, 41, 0]) * DAY_MS
    nothing = np.full(8, None, dtype=object)
    history = History("c", ("a.b",), np.zeros((8, 1)), at_ms, cards, at_ms, Verdicts.in_order(np.arange(8), frauds, nothing, learned))
    fold = Fold(1 * DAY_MS, 8 * DAY_MS, 10 * DAY_MS, 40 * DAY_MS)
    rows, left_out = rows_tried(history, fold, history.believed())
    assert rows.tolist() == [4, 5]
    assert left_out == 3
    later = fold._replace(train_from_ms=2 * DAY_MS + 1)
    assert rows_tried(history, later, history.believed())[0].tolist() == [2, 3, 4, 5, 7], "what was known before the training span is not asked"


def test_the_table_tells_who_knows_and_fitted_weights_leave_out_who_does_not(recipe: Recipe) -> None:
    found = evaluated(a_history(), folds(0, 20 * DAY_MS, Spans(7, 2, 3), 3), recipe, threads=2, resamples=30)
    auc = {model: figures["roc_auc"].value for model, figures in found.table.items()}
    assert list(auc) == ["learned", "blind", GIVEN, FITTED, SERVED]
    assert auc["learned"] > 0.85
    assert abs(auc["blind"] - 0.5) < 0.1
    assert auc[FITTED] > 0.85
    assert all(tried.weights[0] > 0.9 for tried in found.folds)
    assert found.folds[-1].test_rows < 3 * 400, "compromised cards were left out"
    low, high = found.table["learned"]["average_precision"][1:]
    assert low < found.table["learned"]["average_precision"].value < high


def test_labels_that_were_learned_after_a_fold_trained_do_not_change_what_it_says(recipe: Recipe) -> None:
    history = a_history(delay_days=5)
    rolled = folds(0, 20 * DAY_MS, Spans(7, 5, 3), 1)
    untold = history.verdicts.until(rolled[0].test_from_ms)
    late = slice(len(untold.rows), None)
    leaking = replace(history, verdicts=history.verdicts._replace(frauds=history.verdicts.frauds.copy()))
    leaking.verdicts.frauds[late] = np.random.default_rng(3).random(len(leaking.verdicts.rows) - len(untold.rows)) < 0.5
    honest, leaked = (evaluated(each, rolled, recipe, resamples=2) for each in (history, leaking))
    assert honest.folds[0].weights == leaked.folds[0].weights
    assert honest.folds[0].train_frauds == leaked.folds[0].train_frauds


def test_a_history_too_short_for_a_fold_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ArtefactError, match="too short"):
        evaluated(a_history(2), folds(0, 2 * DAY_MS, Spans(7, 7, 7), 4), recipe)
