"""Proves that what was not measured passes no gate, and that chance is not taken for what is better."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from models.gates import AUC_OF_CHANCE, GATES, against, failed_gates, held_out_checks, ranking_check

ROWS = 5_000


@pytest.mark.parametrize("days", [1, 2, 4, 5, 30])
def test_what_chance_makes_of_two_alike_is_within_the_interval_however_few_the_days_are(days: int) -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(ROWS) < 0.02
    ours, theirs = (np.clip(0.3 * truth + 0.6 * rng.random(ROWS), 0, 1) for _ in range(2))
    found = against(ours, theirs, truth, np.arange(ROWS) * days // ROWS, seed=1)
    assert found["against_champion_low"] < 0 < found["against_champion_high"]
    assert found["against_champion_low"] < found["against_champion"] < found["against_champion_high"]


def test_a_model_that_no_fraud_has_tested_is_not_approved_for_its_low_scores() -> None:
    scores, honest = np.linspace(0, 0.01, ROWS), np.zeros(ROWS, np.bool_)
    passed = dict.fromkeys(GATES, 0.0) | {"parity_rows": 100_000.0, "top_reason_agrees": 1.0, "auc_low": 0.6}
    del passed["calibration_error"]
    assert failed_gates({**passed, **held_out_checks(scores, scores, honest)}, beside_champion=False) == ("calibration_error",)
    assert failed_gates({**passed, **held_out_checks(scores, scores, np.arange(ROWS) == ROWS - 1)}, beside_champion=False) == ()


@pytest.mark.parametrize("frauds", [10, 100, 1_000])
def test_a_ranking_that_chance_makes_does_not_pass_and_its_interval_is_that_of_a_bootstrap(frauds: int) -> None:
    rng = np.random.default_rng(frauds)
    truth = np.arange(ROWS) < frauds

    def low(scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        figures = {"auc": float(roc_auc_score(truth, scores)), "frauds": float(frauds), "rows": float(ROWS)}
        return ranking_check(figures)["auc_low"]

    by_chance = [low(rng.random(ROWS)) for _ in range(100)]
    assert sum(each > AUC_OF_CHANCE for each in by_chance) <= 8
    assert low(np.full(ROWS, 0.01)) <= AUC_OF_CHANCE
    scores = truth * 1.5 + rng.normal(size=ROWS)
    drawn = (np.concatenate((rng.choice(frauds, frauds), rng.choice(np.arange(frauds, ROWS), ROWS - frauds))) for _ in range(300))
    assert low(scores) == pytest.approx(np.percentile([roc_auc_score(truth[rows], scores[rows]) for rows in drawn], 2.5), abs=0.06)


def test_without_a_fraud_or_with_nothing_else_nothing_is_said() -> None:
    for truth in (np.zeros(9, np.bool_), np.ones(9, np.bool_)):
        assert against(np.ones(9), np.ones(9), truth, np.zeros(9, np.int64), seed=1) == {}
