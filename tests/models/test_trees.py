"""Proves that compiled trees say what scikit-learn says, to the last digits, and that their paths add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from models.compiled import compiled, joined
from models.trees import contributions, expected, probabilities, probabilities_of_all, sound
from schemas.errors import ArtefactError

RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(800, 6))
ROWS[RNG.random(ROWS.shape) < 0.15] = np.nan
TRUTH = np.nan_to_num(ROWS[:, 0]) + np.nan_to_num(ROWS[:, 2]) * np.nan_to_num(ROWS[:, 4]) + RNG.normal(size=800) > 0.6
COLUMNS = ((0, 1, 2, 3, 4, 5), (4, 2), (1,))
ESTIMATORS = [HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=8, random_state=1).fit(ROWS[:, c], TRUTH) for c in COLUMNS]
FOREST = joined([compiled(e, c) for e, c in zip(ESTIMATORS, COLUMNS, strict=True)])

NUMBERS = st.one_of(st.just(np.nan), st.just(np.inf), st.just(-np.inf), st.floats(-5, 5), st.sampled_from(ROWS[~np.isnan(ROWS)][:200].tolist()))


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.float64, 6, elements=NUMBERS))
def test_one_row_gives_what_scikit_learn_gives_for_it(vector: np.ndarray) -> None:
    said = probabilities(FOREST, vector)
    with np.errstate(all="ignore"), threadpool_limits(limits=1):
        wanted = [_sklearn(e, vector[None, c]) for e, c in zip(ESTIMATORS, COLUMNS, strict=True)]
    assert np.abs(said - wanted).max() <= 1e-12


def _sklearn(estimator: HistGradientBoostingClassifier, row: np.ndarray) -> float:
    """predict_proba refuses infinities, its trees do not: they are asked directly."""
    if not np.isinf(row).any():
        return float(estimator.predict_proba(row)[0, 1])
    return float(1 / (1 + np.exp(-estimator._raw_predict(np.where(np.isinf(row), np.sign(row) * 1e300, row))[0, 0])))


def test_a_matrix_gives_what_its_rows_give() -> None:
    together = probabilities_of_all(FOREST, ROWS)
    assert (together == np.array([probabilities(FOREST, row) for row in ROWS])).all()
    for place, (estimator, columns) in enumerate(zip(ESTIMATORS, COLUMNS, strict=True)):
        assert np.abs(together[:, place] - estimator.predict_proba(ROWS[:, columns])[:, 1]).max() <= 1e-12


def test_contributions_add_up_to_the_log_odds_above_the_expected() -> None:
    for row in ROWS[:50]:
        for member in range(3):
            alone = np.zeros(3)
            alone[member] = 1.0
            moved = contributions(FOREST, alone, row)
            trees = FOREST.roots[FOREST.starts[member] : FOREST.starts[member + 1]]
            mean = FOREST.baselines[member] + expected(FOREST)[trees].sum()
            probability = probabilities(FOREST, row)[member]
            assert mean + moved.sum() == pytest.approx(np.log(probability / (1 - probability)), abs=1e-9)
            assert not moved[[c for c in range(6) if c not in COLUMNS[member]]].any()


def test_the_expected_value_of_a_tree_is_its_mean_over_the_training_rows() -> None:
    alone = joined([compiled(ESTIMATORS[0], COLUMNS[0])])
    odds = np.log(probabilities_of_all(alone, ROWS)[:, 0] / (1 - probabilities_of_all(alone, ROWS)[:, 0]))
    assert alone.baselines[0] + expected(alone)[alone.roots].sum() == pytest.approx(odds.mean(), abs=1e-9)


@pytest.mark.parametrize("damage", ["feature", "right", "loop", "starts", "roots"])
def test_arrays_that_are_no_trees_are_refused(damage: str) -> None:
    nodes, roots, starts = FOREST.nodes.copy(), FOREST.roots.copy(), FOREST.starts.copy()
    if damage == "feature":
        nodes["feature"][0] = 6
    if damage == "right":
        nodes["right"][0] = len(nodes)
    if damage == "loop":
        nodes["right"][0] = 0
    if damage == "starts":
        starts[-1] += 1
    if damage == "roots":
        roots[1] = roots[0]
    assert sound(FOREST, 6) is FOREST
    with pytest.raises(ArtefactError):
        sound(FOREST._replace(nodes=nodes, roots=roots, starts=starts), 6)
