"""Proves each figure against its definition: scikit-learn's where it has one, brute force where not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from models.figures import Costs, Days, Operation, Ranked, Sheet, Trial, calibration_error, card_precisions, draws, estimates, reliability

SCORES = st.sampled_from([0.0, 0.1, 0.4, 0.5, 0.8, 1.0])
ROWS = st.lists(st.tuples(SCORES, st.booleans(), st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=60)
Row = tuple[float, bool, int, int]  # score, fraud, day, card


def a_trial(rows: list[Row]) -> tuple[Trial, np.ndarray]:
    scores, frauds, days, cards = (np.array([row[n] for row in rows]) for n in range(4))
    return Trial(frauds, days, cards, np.full(len(rows), 1000), 3), scores


@given(ROWS)
@settings(max_examples=200)
def test_ranking_is_scikit_learns_days_weighted_or_not(rows: list[Row]) -> None:
    tested, scores = a_trial(rows)
    for weights in (np.ones(3), np.array([2.0, 0.0, 1.0])):
        counted = weights[tested.days]
        figures = Ranked.of(tested, scores).figures(weights)
        if not 0 < (tested.frauds * counted).sum() < counted.sum():
            assert np.isnan(figures["roc_auc"])
            continue
        assert figures["roc_auc"] == pytest.approx(roc_auc_score(tested.frauds, scores, sample_weight=counted))
        assert figures["average_precision"] == pytest.approx(average_precision_score(tested.frauds, scores, sample_weight=counted))


@given(ROWS)
def test_recall_is_at_the_lowest_threshold_that_keeps_the_false_positive_rate(rows: list[Row]) -> None:
    tested, scores = a_trial(rows)
    frauds, honest = scores[tested.frauds], scores[~tested.frauds]
    if not len(frauds) or not len(honest):
        return
    kept = [threshold for threshold in scores if (honest >= threshold).mean() <= 0.01]
    best = max(((frauds >= threshold).mean() for threshold in kept), default=0.0)
    assert Ranked.of(tested, scores).figures(np.ones(3))["recall_at_fpr_0.01"] == pytest.approx(best)


@given(ROWS, st.integers(1, 4))
def test_card_precision_is_of_cards_and_a_found_card_is_gone_the_next_day(rows: list[Row], k: int) -> None:
    tested, scores = a_trial([(score + number / 1e6, fraud, day, card) for number, (score, fraud, day, card) in enumerate(rows)])
    found: set[int] = set()
    wanted = []
    for day in range(3):
        of_day = [n for n in range(len(rows)) if tested.days[n] == day and int(tested.cards[n]) not in found]
        highest = {int(tested.cards[n]): max(scores[m] for m in of_day if tested.cards[m] == tested.cards[n]) for n in of_day}
        looked_at = sorted(highest, key=lambda card: -highest[card])[:k]
        hits = {int(tested.cards[n]) for n in of_day if tested.frauds[n]} & set(looked_at)
        wanted.append(len(hits) / k)
        found |= hits
    assert card_precisions(tested, scores, k).tolist() == pytest.approx(wanted)


def test_alerts_are_counted_by_the_score_as_it_is_shown_and_valued_by_the_cost_table() -> None:
    tested = Trial(np.array([True, False, True, False]), np.array([0, 0, 1, 1]), np.arange(4), np.array([10_000, 500, 3000, 100]), 2)
    scores = np.array([0.9, 0.6, 0.5004, 0.1])
    figures = Days.of(tested, scores, Operation(500, 1, Costs(300, 500, 0.5))).figures(np.ones(2))
    assert figures["alerts_per_day"] == 1.0
    assert figures["value_detection_rate"] == pytest.approx(10_000 / 13_000)
    assert figures["false_positives_per_fraud"] == 1.0
    assert figures["saved_minor_per_day"] == (5000 - 300 - 300 - 500) / 2
    assert (figures["card_precision"], figures["card_precision_ceiling"]) == (1.0, 1.0)


def test_money_of_several_currencies_is_never_summed() -> None:
    frauds, amounts_minor = np.array([True, True, True, False]), np.array([10_000, 3000, 7, 5])
    tested = Trial(frauds, np.zeros(4, np.int64), np.arange(4), amounts_minor, 1, 0, ("EUR", "JPY", "KWD"), np.array([0, 0, 1, 1]))
    figures = Days.of(tested, np.array([0.9, 0.1, 0.1, 0.9]), Operation(500, 1, Costs(300, 500, 1.0))).figures(np.ones(1))
    assert (figures["value_detection_rate.EUR"], figures["value_detection_rate.JPY"]) == (pytest.approx(10_000 / 13_000), 0.0)
    assert (figures["saved_minor_per_day.EUR"], figures["saved_minor_per_day.JPY"], figures["saved_minor_per_day.KWD"]) == (9700, -800, 0)
    assert all(np.isnan(figures[name]) for name in ("value_detection_rate", "saved_minor_per_day", "value_detection_rate.KWD"))
    assert (figures["alerts_per_day"], figures["false_positives_per_fraud"]) == (2.0, 1.0)


def test_an_interval_is_of_draws_of_days_and_holds_its_figure_where_all_days_are_alike() -> None:
    days = np.repeat(np.arange(5), 40)
    frauds = np.tile(np.arange(40) < 4, 5)
    scores = np.tile(np.linspace(1, 0, 40), 5)
    sheet = Sheet.of(Trial(frauds, days, np.arange(200), np.full(200, 100), 5), scores, Operation())
    figures = estimates([sheet, sheet], draws([5, 5], 20, seed=1))
    assert figures["roc_auc"] == pytest.approx((1.0, 1.0, 1.0))
    assert figures["alerts_per_day"] == pytest.approx((20, 20, 20))
    worse = Sheet.of(Trial(frauds, days, np.arange(200), np.full(200, 100), 5), np.where(days == 0, -scores, scores), Operation())
    value, low, high = estimates([worse], draws([5], 100, seed=1))["average_precision"]
    assert low < value < high


def test_no_draw_of_groups_of_cards_finds_more_cards_than_are_looked_at() -> None:
    frauds = np.arange(400) % 20 < 2
    few_days = Trial(frauds, np.arange(400) % 2, np.arange(400), np.full(400, 100), 2, groups=20)
    sheet = Sheet.of(few_days, frauds.astype(np.float64), Operation(cards=20))
    value, low, high = estimates([sheet], draws([few_days.lots], 100, seed=1))["card_precision"]
    assert low < value == high == 1.0


def test_a_score_that_means_what_it_says_lies_on_the_diagonal() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(200_000)
    points = reliability(scores, rng.random(200_000) < scores)
    assert len(points) == 10
    assert all(abs(point.said - point.true) < 0.02 for point in points)
    assert calibration_error(points) < 0.01
    assert [point.low for point in reliability(np.array([0.05, 1.0]), np.array([False, True]))] == [0.0, 0.9]


def test_of_a_test_without_rows_no_ranking_is_said() -> None:
    tested, scores = a_trial([(0.5, True, 0, 0)])
    none = Trial(tested.frauds[:0], tested.days[:0], tested.cards[:0], tested.amounts_minor[:0], 3)
    found = Sheet.of(none, scores[:0], Operation()).figures(np.ones(3))
    assert np.isnan([found["roc_auc"], found["average_precision"], found["recall_at_fpr_0.01"]]).all()
    assert found["alerts_per_day"] == 0
