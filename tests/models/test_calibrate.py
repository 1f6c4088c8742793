"""Proves that curves keep every order, find what a raw output means, and that fitted weights keep their constraints."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from models.calibrate import calibration, fitted_weights
from models.figures import calibration_error, reliability

OUTPUTS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60)


@given(OUTPUTS)
def test_a_curve_rises_strictly_within_0_and_1_whatever_it_was_fitted_on(pairs: list[tuple[float, bool]]) -> None:
    raw, truth = (np.array([pair[n] for pair in pairs]) for n in range(2))
    curve = calibration(raw, truth)
    assert (np.diff(curve.x) > 0).all()
    assert (np.diff(curve.y) > 0).all()
    assert 0 < curve.y[0] < curve.y[-1] < 1
    assert (curve.x[0], curve.x[-1]) == (0.0, 1.0)


def test_what_a_raw_output_means_is_found_and_the_level_of_a_sample_set_right() -> None:
    rng = np.random.default_rng(1)
    true = rng.beta(0.3, 6, 100_000)
    truth = rng.random(len(true)) < true
    drawn = true / (true + (1 - true) / 20)  # what a model says that learned from one honest row in twenty
    said = np.interp(drawn, *calibration(drawn, truth))
    assert np.abs(said - true).max() < 0.05
    assert calibration_error(reliability(said, truth)) < 0.003


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.1), st.booleans())
def test_what_knows_nothing_is_set_to_the_share_of_fraud_even_where_it_hardly_differs(seed: int, spread: float, opposite: bool) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(2_000) < 0.06
    raw = np.clip(rng.normal(0.06, spread * 0.3, 2_000) - (0.3 * spread * truth if opposite else 0), 0.001, 0.999)
    said = np.interp(raw, *calibration(raw, truth))
    assert abs(said.mean() - truth.mean()) < 0.01
    assert log_loss(truth, said) < 1.02 * log_loss(truth, np.full(len(truth), truth.mean()))


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_fitted_weights_are_not_negative_sum_to_one_and_fit_better_than_equal_ones(seed: int, members: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(300) < 0.2
    said = np.clip(rng.random((300, members)) * 0.5 + 0.4 * truth[:, None] * rng.random(members), 0.01, 0.99)
    weights = fitted_weights(said, truth)
    assert (weights >= 0).all()
    assert weights.sum() == np.float64(1.0) or abs(weights.sum() - 1) < 1e-12
    equal = np.full(members, 1 / members)
    assert log_loss(truth, said @ weights) <= log_loss(truth, said @ equal) + 1e-9


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_no_other_weights_fit_better_than_fitted_ones(seed: int, members: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(400) < 0.1
    said = np.clip(rng.beta(0.5, 4, (400, members)) + rng.random(members) * truth[:, None], 0.001, 0.999)
    best = log_loss(truth, said @ fitted_weights(said, truth))
    mixed = said @ np.vstack([rng.dirichlet(np.full(members, 0.3), 200), np.eye(members)]).T
    losses = -np.log(np.where(truth[:, None], mixed, 1 - mixed)).mean(axis=0)
    assert losses.min() >= best - 1e-8


def test_the_one_that_knows_gets_the_weight() -> None:
    rng = np.random.default_rng(2)
    knows = rng.beta(0.3, 3, 20_000)
    truth = rng.random(20_000) < knows
    weights = fitted_weights(np.column_stack([np.full(20_000, truth.mean()), knows]), truth)
    assert weights[1] > 0.95
