"""Proves that compiled members say what scikit-learn says, to the last digits, and why: their attributions are the Shapley values of `shap`."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

from models.artefact import sound
from models.attribution import Explained, attributions, contributions, explained, meant
from models.compiled import EQUAL_ON, EQUAL_WITHIN, Curve, Grown, apart, compiled, joined, mixed, plain
from models.trees import IDENTITY, NODE, TERM, Forest, calibrated, laid, probabilities_of_all, scored
from schemas.errors import ArtefactError

RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(800, 6)) * [1, 1, 1, 100, 1, 1]
ROWS[:, 3] = np.round(ROWS[:, 3])
ROWS[RNG.random(ROWS.shape) < 0.15] = np.nan
TRUTH = np.nan_to_num(ROWS[:, 0]) + np.nan_to_num(ROWS[:, 2]) * np.nan_to_num(ROWS[:, 4]) + RNG.normal(size=800) > 0.6
ALL, SOME, ONE = (0, 1, 2, 3, 4, 5), (4, 2, 3), (1,)


def linear(**options: Any) -> Any:
    return make_pipeline(SimpleImputer(strategy="median", **options), StandardScaler(), LogisticRegression())


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "boosted": (HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=8, random_state=1), ALL),
    "boosted_on_one": (HistGradientBoostingClassifier(max_iter=5, random_state=1), ONE),
    "forest": (RandomForestClassifier(20, max_leaf_nodes=20, random_state=1), SOME),
    "extra": (ExtraTreesClassifier(10, random_state=1), ALL),
    "isolation": (IsolationForest(n_estimators=20, random_state=1), SOME),
    "isolation_on_parts": (IsolationForest(n_estimators=20, max_features=2, random_state=1), SOME),
    "imputed_forest": (make_pipeline(SimpleImputer(), RandomForestClassifier(10, random_state=1)), SOME),
    "imputed_isolation": (make_pipeline(SimpleImputer(strategy="median"), IsolationForest(n_estimators=10, random_state=1)), ALL),
    "linear": (linear(), SOME),
    "linear_told_what_is_missing": (linear(add_indicator=True), ALL),
    "linear_unscaled": (make_pipeline(SimpleImputer(), LogisticRegression(max_iter=1000)), (0, 4)),
}
with threadpool_limits(limits=1):
    FITTED = {name: (estimator.fit(ROWS[:, columns], TRUTH), columns) for name, (estimator, columns) in KINDS.items()}
GROWN = {name: compiled(estimator, columns) for name, (estimator, columns) in FITTED.items()}
CURVE = Curve(np.array([0.1, 0.3, 0.7]), np.array([0.0, 0.25, 0.9]))
CURVED = GROWN | {"linear_unscaled": GROWN["linear_unscaled"]._replace(curve=CURVE)}
FOREST = joined([*CURVED.values()], CURVE)
WALK = laid(FOREST)
WEIGHTS = np.full(len(GROWN), 1 / len(GROWN))
NUMBERS = st.one_of(st.just(np.nan), st.floats(-5, 5), st.sampled_from(ROWS[~np.isnan(ROWS)][:200].tolist()))


def probabilities(forest: Forest, row: np.ndarray) -> np.ndarray:
    """What each member says of one row."""
    members = len(forest.baselines)
    return scored(laid(forest), np.zeros(members), row)[:members]


def rows_at_thresholds(forest: Forest, count: int) -> np.ndarray:
    """Rows of which one value lies at a split, or a hair's breadth beside it: where rounding would show."""
    splits = forest.nodes[(forest.nodes["feature"] >= 0) & np.isfinite(forest.nodes["threshold"])]
    rows, chosen = mixed(ROWS, count, 5)[-count:], RNG.choice(splits, count)
    beside = RNG.choice([-1e-8, 0.0, 1e-8], count) + RNG.choice([-1, 0, 1], count) * np.spacing(chosen["threshold"])
    rows[np.arange(count), chosen["feature"]] = chosen["threshold"] + beside
    return rows


def test_rows_to_compare_on_are_as_many_as_are_wanted_whether_there_are_fewer_or_more() -> None:
    numbered = np.arange(500.0)[:, None]
    some, more = mixed(numbered, 100, 1), mixed(numbered, 700, 1)
    assert (len(some), len(np.unique(some)), len(more)) == (100, 100, 700)
    assert np.isin(some, numbered).all()
    np.testing.assert_array_equal(more[:500], numbered)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_compiled_member_is_scikit_learn_on_a_hundred_thousand_rows(name: str) -> None:
    (estimator, columns), grown = FITTED[name], GROWN[name]
    rows = mixed(ROWS, EQUAL_ON, 1)
    if len(grown.nodes):
        rows = np.vstack([rows[:-20_000], rows_at_thresholds(joined([grown]), 20_000)])
    with threadpool_limits(limits=1):
        assert apart(grown, estimator, rows[:, columns], rows) <= EQUAL_WITHIN


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, 6, elements=NUMBERS))
def test_one_row_gives_what_scikit_learn_gives_for_it(vector: np.ndarray) -> None:
    with threadpool_limits(limits=1):
        wanted = [plain(estimator, vector[None, columns])[0] for estimator, columns in FITTED.values()]
    wanted[-1] = np.interp(wanted[-1], CURVE.x, CURVE.y)
    assert np.abs(probabilities(FOREST, vector) - wanted).max() <= EQUAL_WITHIN


def test_a_matrix_gives_what_its_rows_give_and_one_call_gives_all() -> None:
    together = probabilities_of_all(FOREST, ROWS)
    assert (together == np.array([probabilities(FOREST, row) for row in ROWS])).all()
    for row, said in zip(ROWS[:50], together, strict=False):
        *members, total, score = scored(WALK, WEIGHTS, row)
        assert (np.array(members) == said).all()
        assert total == pytest.approx(WEIGHTS @ said, abs=1e-15)
        assert score == calibrated(WALK, np.array([total]))[0]


@given(st.floats(-1, 2))
def test_a_curve_is_that_of_numpy(value: float) -> None:
    assert calibrated(WALK, np.array([value]))[0] == pytest.approx(np.interp(value, CURVE.x, CURVE.y), abs=1e-15)


def test_infinite_values_take_the_way_of_very_large_ones() -> None:
    trees = joined([g for g in GROWN.values() if not len(g.terms)])
    for sign in (-1.0, 1.0):
        row = ROWS[0].copy()
        row[2], huge = sign * np.inf, ROWS[0].copy()
        huge[2] = sign * 1e300
        assert (probabilities(trees, row) == probabilities(trees, huge)).all()


def test_a_missing_value_is_told_from_an_infinite_one() -> None:
    nodes = np.array([(np.inf, 0, -2), (0.25, -1, 0), (0.75, -1, 0)], dtype=NODE)  # only what is missing goes right
    one = Grown(nodes, np.array([2.0, 1.0, 1.0]), np.zeros(1, np.int32), np.empty(0, TERM), 0.0, IDENTITY)
    said = probabilities_of_all(sound(joined([one]), 1), np.array([[np.inf], [-np.inf], [1e308], [0.0], [np.nan]]))
    assert said[:, 0].tolist() == [0.25, 0.25, 0.25, 0.25, 0.75]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
def test_trees_that_are_walked_abreast_need_not_be_a_round_number(count: int) -> None:
    estimator = HistGradientBoostingClassifier(max_iter=count, max_leaf_nodes=8, random_state=1)
    with threadpool_limits(limits=1):
        estimator.fit(ROWS, TRUTH)
        assert apart(compiled(estimator, ALL), estimator, ROWS, ROWS) <= EQUAL_WITHIN


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeClassifier(),
        LogisticRegression(),
        make_pipeline(StandardScaler(), RandomForestClassifier(2)),
        make_pipeline(SimpleImputer(add_indicator=True), RandomForestClassifier(2)),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(estimator: Any) -> None:
    rows = ROWS if hasattr(estimator, "steps") else np.nan_to_num(ROWS)
    with pytest.raises(ArtefactError) as refused:
        compiled(estimator.fit(rows, TRUTH), ALL)
    assert refused.value.code == "unknown_estimator"


# Reasons.


def exactly(forest: Forest) -> Explained:
    return explained(forest, np.inf)


@pytest.mark.parametrize("name", ["boosted", "forest", "extra", "isolation"])
def test_attributions_of_trees_are_those_of_shap(name: str) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shap's own, on import
        import shap

    estimator, columns = FITTED[name]
    rows = mixed(ROWS, 300, 2)[:300]
    if name != "boosted":  # shap reads missing values of gradient-boosted trees alone; and it compares 32-bit thresholds with 64 bits
        rows = np.nan_to_num(rows).astype(np.float32).astype(np.float64)
    explainer = shap.TreeExplainer(estimator, feature_perturbation="tree_path_dependent")
    values = np.asarray(explainer.shap_values(rows[:, columns], check_additivity=False))
    wanted = values[:, :, 1] if values.ndim == 3 else values
    if name == "isolation":  # shap explains the mean depth, we its share of the usual one, the other way around
        from sklearn.ensemble._iforest import _average_path_length

        wanted = -wanted / _average_path_length([estimator._max_samples])[0]
    forest = joined([GROWN[name]])
    known = exactly(forest)
    ours = np.array([attributions(forest, known, row)[0, columns] for row in rows])
    assert np.abs(ours - wanted).max() <= 1e-9


def test_paths_of_many_columns_are_attributed_exactly() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shap's own, on import
        import shap

    rows = np.random.default_rng(5).normal(size=(3_000, 40)).astype(np.float32).astype(np.float64)
    estimator = ExtraTreesClassifier(3, max_features=1, random_state=1).fit(rows, rows[:, 0] + rows[:, 1:].sum(axis=1) / 3 > 0)
    forest = joined([compiled(estimator, range(40))])
    known = exactly(forest)
    assert known.blocks.min() >= 2  # more than 12 different columns on the longest path of each tree
    wanted = np.asarray(shap.TreeExplainer(estimator, feature_perturbation="tree_path_dependent").shap_values(rows[:20], check_additivity=False))
    ours = np.array([attributions(forest, known, row)[0] for row in rows[:20]])
    assert np.abs(ours - wanted[:, :, 1]).max() <= 1e-9


def expectation(forest: Forest, node: int, seen: frozenset[int], row: np.ndarray) -> float:
    """What a tree expects of a row of which it may see some columns: by definition, for the oracle."""
    feature = int(forest.nodes["feature"][node])
    if feature < 0:
        return float(forest.nodes["threshold"][node])
    left, right = node + 1, abs(int(forest.nodes["right"][node]))
    if feature in seen:
        value, threshold = row[feature], forest.nodes["threshold"][node]
        goes_left = forest.nodes["right"][node] > 0 if np.isnan(value) else value <= threshold
        return expectation(forest, left if goes_left else right, seen, row)
    rows = forest.cover[left] + forest.cover[right]
    return sum(forest.cover[child] / rows * expectation(forest, child, seen, row) for child in (left, right))


def by_definition(forest: Forest, row: np.ndarray) -> np.ndarray:
    """Shapley values of all trees by brute force over subsets of columns."""

    def worth(seen: tuple[int, ...]) -> float:
        return sum(expectation(forest, int(root), frozenset(seen), row) for root in forest.roots)

    n = len(row)
    value = {seen: worth(seen) for size in range(n + 1) for seen in itertools.combinations(range(n), size)}
    out = np.zeros(n)
    for column in range(n):
        for seen in value:
            if column not in seen:
                share = math.factorial(len(seen)) * math.factorial(n - len(seen) - 1) / math.factorial(n)
                out[column] += share * (value[tuple(sorted((*seen, column)))] - value[seen])
    return out


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.float64, 6, elements=NUMBERS), st.integers(0, 19))
def test_attributions_are_the_shapley_values_by_definition_missing_values_too(row: np.ndarray, tree: int) -> None:
    one = GROWN["forest"]
    ends = [*one.roots[1:], len(one.nodes)]
    part = slice(one.roots[tree], ends[tree])
    nodes = one.nodes[part].copy()
    nodes["right"] -= np.sign(nodes["right"]) * one.roots[tree]
    forest = joined([one._replace(nodes=nodes, cover=one.cover[part], roots=np.zeros(1, dtype=np.int32))])
    assert np.abs(attributions(forest, exactly(forest), row)[0] - by_definition(forest, row)).max() <= 1e-9


@pytest.mark.parametrize("steps_max", [0, np.inf], ids=["along the path", "exactly"])
def test_attributions_add_up_to_what_each_member_says(steps_max: float) -> None:
    known = explained(FOREST, steps_max)
    assert known.exact.sum() == (len(GROWN) if steps_max else sum(not len(g.nodes) for g in GROWN.values()))
    for row in ROWS[:100]:
        moved = attributions(FOREST, known, row)
        assert meant(WALK, known.base + moved.sum(axis=1)) == pytest.approx(probabilities(FOREST, row), abs=1e-9)
        for member, (_, columns) in zip(moved, FITTED.values(), strict=True):
            assert not member[[c for c in range(6) if c not in columns]].any()


def test_contributions_add_up_to_the_score_less_the_expected_one() -> None:
    known = exactly(FOREST)
    expected = calibrated(WALK, np.array([WEIGHTS @ meant(WALK, known.base)]))[0]
    for row in ROWS[:100]:
        score = scored(WALK, WEIGHTS, row)[-1]
        assert contributions(FOREST, known, WEIGHTS, row).sum() == pytest.approx(score - expected, abs=1e-9)


def test_a_linear_member_is_attributed_from_the_means_of_its_columns() -> None:
    pipeline, columns = FITTED["linear"]
    imputer, scaler, model = pipeline[0], pipeline[1], pipeline[2]
    forest = joined([GROWN["linear"]])
    for row in ROWS[:50]:
        wanted = model.coef_[0] * scaler.transform(imputer.transform(row[None, columns]))[0]
        assert attributions(forest, exactly(forest), row)[0, columns] == pytest.approx(wanted, abs=1e-12)


def test_the_expected_value_of_a_tree_is_its_mean_over_the_training_rows() -> None:
    alone = joined([GROWN["boosted"]])
    said = probabilities_of_all(alone, ROWS)[:, 0]
    assert explained(alone).base[0] == pytest.approx(np.log(said / (1 - said)).mean(), abs=1e-9)


# Bounds.


def damaged(name: str) -> Forest:
    """The forest with one thing wrong."""
    arrays: dict[str, Any] = {field: array.copy() for field, array in FOREST._asdict().items()}
    nodes = arrays["nodes"]
    leaf = int(np.flatnonzero(nodes["feature"] < 0)[0])
    shares = int(FOREST.roots[FOREST.starts[2]])
    if name == "feature":
        nodes["feature"][0] = 6
    if name == "negative feature":
        nodes["feature"][0] = -2
    if name == "right":
        nodes["right"][0] = len(nodes)
    if name == "loop":
        nodes["right"][0] = 0
    if name == "two parents":
        nodes["right"][0] += 1
    if name == "leaf not a number":
        nodes["threshold"][leaf] = np.nan
    if name == "infinite leaf":
        nodes["threshold"][leaf] = np.inf
    if name == "no share":
        nodes["threshold"][shares + int(np.flatnonzero(nodes["feature"][shares:] < 0)[0])] = 2.0
    if name == "cover":
        arrays["cover"][leaf] = 0
    if name == "starts":
        arrays["starts"][-1] += 1
    if name == "roots":
        arrays["roots"][1] = arrays["roots"][0]
    if name == "link":
        arrays["links"][0] = 3
    if name == "baseline":
        arrays["baselines"][0] = np.nan
    if name == "term":
        arrays["terms"]["column"][0] = 6
    if name == "weight":
        arrays["terms"]["weight"][0] = np.inf
    if name == "falling curve":
        arrays["curve_y"][1] = 0.95
    if name == "curve beyond one":
        arrays["curve_y"][2] = 1.1
    if name == "curve backwards":
        arrays["curve_x"][1] = 0.1
    if name == "type":
        arrays["roots"] = arrays["roots"].astype(np.int64)
    if name == "two dimensions":
        arrays["baselines"] = arrays["baselines"][None]
    return Forest(**arrays)


DAMAGES = (
    "feature", "negative feature", "right", "loop", "two parents", "leaf not a number", "infinite leaf", "no share", "cover", "starts", "roots",
    "link", "baseline", "term", "weight", "falling curve", "curve beyond one", "curve backwards", "type", "two dimensions",
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_arrays_that_are_no_members_are_refused(damage: str) -> None:
    assert sound(FOREST, 6) is FOREST
    with pytest.raises(ArtefactError) as refused:
        sound(damaged(damage), 6)
    assert refused.value.code == "unsound_arrays"
