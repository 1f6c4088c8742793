"""Drift: nothing moved is nothing said, a shift is found, an alarm fires once and clears once, and labels count only once they are ripe."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import ks_2samp

from models.artefact import CARD, packed
from models.drift import (
    ROWS_MIN,
    SCORE,
    Limit,
    Quality,
    Snapshot,
    Told,
    alarms,
    drift,
    drifts,
    missing_families,
    quality,
    readings,
    shares_in,
    snapshot_of,
)
from models.train import Artefact

RNG = np.random.default_rng(1)
VALUES = st.one_of(st.just(float("nan")), st.floats(-5, 5), st.integers(0, 3).map(float))


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 60), elements=VALUES), hnp.arrays(np.float64, st.integers(1, 60), elements=VALUES))
def test_a_columns_drift_is_bounded_and_never_more_than_the_exact_distance(then: np.ndarray, now: np.ndarray) -> None:
    (edges, _), (shares, _) = snapshot_of(("f",), then[:, None], np.zeros(1))[1:]
    assert len(edges) <= 9
    assert shares_in(then, edges).sum() == pytest.approx(1)
    same = drift(then, edges, shares)
    assert (round(same.psi, 5), round(same.ks, 5)) == (0, 0)
    other, there, then_there = drift(now, edges, shares), now[~np.isnan(now)], then[~np.isnan(then)]
    assert other.psi >= 0
    if len(there) and len(then_there) and len(there) + len(then_there) > 2:  # scipy divides by zero where each has one
        assert other.ks <= ks_2samp(there, then_there, method="asymp").statistic + 1e-5


def test_a_shift_a_missing_device_and_a_bolder_score_are_found_and_the_rest_is_quiet() -> None:
    vectors = RNG.normal(size=(20_000, 3))
    snapshot = snapshot_of(("a.x", "b.y", "b.z"), vectors, RNG.integers(0, 100, 20_000).astype(np.float64))
    now = RNG.normal(size=(5_000, 3)) + np.array([0, 1, 0])
    now[:4_000, 2] = np.nan
    found = drifts(snapshot, ("a.x", "b.y", "b.z"), now, RNG.integers(50, 200, 5_000).astype(np.float64))
    assert found["a.x"].psi < 0.02
    assert found["b.y"].psi > 0.5
    assert found["b.y"].ks == pytest.approx(0.38, abs=0.02)
    assert found["b.z"].psi > 1
    assert found["b.z"].ks < 0.05, "what is there lies where it lay"
    assert found[SCORE].psi > 1
    assert drifts(snapshot, ("a.x",), now[: ROWS_MIN - 1], np.empty(0)) == {}
    assert missing_families({"a": (0,), "b": (2,), "both": (0, 2)}, now) == {"a": 0.0, "b": 0.8, "both": 0.0}


def test_a_trained_models_card_holds_its_snapshot_and_stays_small(artefact: Artefact) -> None:
    card = packed(artefact)[CARD]
    snapshot = Snapshot.of_card(json.loads(card))
    assert snapshot is not None
    assert snapshot.names == (*artefact.ensemble.names, SCORE)
    assert len(json.dumps(artefact.snapshot)) < 400 * len(snapshot.names)
    assert Snapshot.of_card({"features": []}) is None


def test_an_alarm_fires_once_per_breach_and_clears_once() -> None:
    limits, standing, said = {"psi": Limit(0.25, 0.20)}, frozenset[str](), []
    for value in (0.1, 0.26, 0.3, 0.24, 0.26, 0.21, 0.20, 0.24, 0.26):
        now = alarms(standing, {"psi:f": value}, limits)
        said.append(len(now) - len(standing))
        standing = now
    assert said == [0, 1, 0, 0, 0, 0, -1, 0, 1]
    assert alarms(standing, {}, limits) == standing, "what was not read stays as it was"


def test_precision_and_calibration_are_of_decisions_that_are_old_enough() -> None:
    day = 86_400_000
    told = Told(
        at_ms=np.array([0, 0, 0, 0, 9 * day]),
        scores=np.array([900, 800, 100, 200, 900], np.float64),
        blocked=np.array([1, 1, 0, 0, 1], np.bool_),
        reviewed=np.zeros(5, np.bool_),
        frauds=np.array([1, 0, 1, 0, 0], np.bool_),
        learned_at_ms=np.array([day, 0, day, 0, 0]),
    )
    assert quality(told, 10 * day) == Quality(86_400, 86_400, 1 / 3, None, pytest.approx(2 / 2.9), pytest.approx(2.9))
    assert quality(told, 9 * day).precision_block == 0.5, "the payment of the ninth day is too young"
    nothing = quality(told._replace(learned_at_ms=np.zeros(5, np.int64)), 10 * day)
    assert nothing == Quality(None, None, None, None, None)
    assert readings({}, {}, Quality(1, 1, None, None, 0.25, 9.0)) == {"miscalibration:score": pytest.approx(12 / 5.25)}


def test_scores_that_promise_fraud_of_which_no_label_tells_are_an_alarm_and_a_few_by_chance_are_none() -> None:
    def raised(known: float, promised: float) -> bool:
        return bool(alarms(frozenset(), readings({}, {}, Quality(1, 1, None, None, known / promised, promised))))

    assert [raised(0, promised) for promised in (1, 3, 4, 400)] == [False, False, True, True]
    assert [raised(known, 4) for known in (1, 8, 12, 40)] == [False, False, True, True]
