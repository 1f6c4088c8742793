"""From fitted scikit-learn estimators to arrays: gradient-boosted trees, forests, isolation forests, linear models, and their calibration.

grown = compiled(estimator, columns)                       # estimator: fitted on rows[:, columns]
grown = grown._replace(curve=Curve(x, y))                  # calibrated: np.interp(probability, x, y)
forest = joined([grown, ...], curve=Curve(x, y))           # the ensemble's own curve, over the weighted sum
probabilities_of_all(forest, rows)                         # models/trees.py; float64[rows, members]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.trees import EXP2, IDENTITY, LOGISTIC, NODE, TERM, Floats, Forest, Ints, probabilities_of_all
from schemas.errors import ArtefactError

EQUAL_WITHIN, EQUAL_ON = 1e-12, 100_000
"""How near a compiled member must come to scikit-learn's own probability, and on how many rows at least."""


class Curve(NamedTuple):
    """A calibration: straight lines between points, level beyond them, as `np.interp` has it. `x` rises, `y` never falls, 0 to 1."""

    x: Floats
    y: Floats


AS_IT_IS = Curve(np.empty(0), np.empty(0))


class Grown(NamedTuple):
    """One member, before it is joined with the others."""

    nodes: npt.NDArray[np.void]  # NODE
    cover: Floats
    roots: Ints
    terms: npt.NDArray[np.void]  # TERM
    baseline: float
    link: int
    curve: Curve = AS_IT_IS


class _Input(NamedTuple):
    """One feature of the final estimator, as the steps before it make it from a column: (value - centre) / scale."""

    column: int
    imputed: float = np.nan  # what a missing value becomes; NaN: it stays missing
    indicator: bool = False  # the value is 1 where the column is missing, else 0
    centre: float = 0.0
    scale: float = 1.0


def compiled(estimator: Any, columns: Sequence[int]) -> Grown:
    """A fitted binary estimator as arrays; its feature j is column `columns[j]`. ArtefactError if it is of a kind that is not compiled.

    Kinds: HistGradientBoostingClassifier, RandomForestClassifier, ExtraTreesClassifier, IsolationForest (2^(-depth/c), the opposite of
    `score_samples`), LogisticRegression; each alone or at the end of a pipeline of SimpleImputer and StandardScaler (trees: imputer alone).
    """
    steps = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
    inputs = [_Input(int(column)) for column in columns]
    for step in steps[:-1]:
        inputs = _through(step, inputs)
    kind = type(steps[-1]).__name__
    if kind not in _COMPILERS:
        raise ArtefactError(f"{kind} is not compiled; these are: {', '.join(_COMPILERS)}", "unknown_estimator")
    grown: Grown = _COMPILERS[kind](steps[-1], inputs)
    return grown


def _through(step: Any, inputs: list[_Input]) -> list[_Input]:
    """What a step of a pipeline makes of its inputs."""
    kind = type(step).__name__
    if kind == "SimpleImputer" and all(np.isnan(i.imputed) and i.scale == 1.0 for i in inputs):
        values = np.asarray(step.statistics_, dtype=np.float64)
        kept = [i._replace(imputed=float(v)) for i, v in zip(inputs, values, strict=True) if not np.isnan(v)]
        told = step.indicator_.features_ if step.add_indicator else ()
        return kept + [_Input(inputs[j].column, indicator=True) for j in told]
    if kind == "StandardScaler":
        means = step.mean_ if step.with_mean else np.zeros(len(inputs))
        scales = step.scale_ if step.with_std else np.ones(len(inputs))
        return [i._replace(centre=float(m), scale=float(s)) for i, m, s in zip(inputs, means, scales, strict=True)]
    raise ArtefactError(f"a pipeline's step {kind} is not compiled there; SimpleImputer and then StandardScaler are", "unknown_estimator")


def _boosted(estimator: Any, inputs: Sequence[_Input]) -> Grown:
    """Gradient-boosted trees: log-odds add up."""
    _binary(len(estimator.classes_) == 2)
    trees = []
    for (tree,) in estimator._predictors:
        n = tree.nodes
        if n["is_categorical"].any():
            raise ArtefactError("categorical splits are not compiled, only numerical ones", "unknown_estimator")
        right = np.where(n["is_leaf"], -1, n["right"].astype(np.int64))
        trees.append(_Tree(n["left"], right, n["feature_idx"], n["num_threshold"], n["missing_go_to_left"] != 0, n["value"], n["count"]))
    return _laid(trees, inputs, float(estimator._baseline_prediction[0, 0]), LOGISTIC)


def _averaged(estimator: Any, inputs: Sequence[_Input]) -> Grown:
    """A forest of classifiers: the mean of the fraud shares in the leaves."""
    _binary(estimator.n_outputs_ == 1 and len(estimator.classes_) == 2)
    count = len(estimator.estimators_)
    return _laid([_of_sklearn(e.tree_, e.tree_.value[:, 0, 1] / count) for e in estimator.estimators_], inputs, 0.0, IDENTITY)


def _isolating(estimator: Any, inputs: Sequence[_Input]) -> Grown:
    """An isolation forest: 2^(-depth/c), depths from scikit-learn's own tables (F. T. Liu, K. M. Ting, Z.-H. Zhou 2008)."""
    from sklearn.ensemble._iforest import _average_path_length

    usual = len(estimator.estimators_) * float(_average_path_length([estimator._max_samples])[0])
    if usual == 0:
        raise ArtefactError("an isolation forest of one sample says nothing", "unknown_estimator")
    trees, parts = [], zip(estimator.estimators_, estimator.estimators_features_, strict=True)
    for number, (tree, features) in enumerate(parts):
        depth = estimator._decision_path_lengths[number] + estimator._average_path_length_per_tree[number] - 1.0
        grown = _of_sklearn(tree.tree_, -depth / usual)
        trees.append(grown._replace(feature=features[np.maximum(grown.feature, 0)]))
    return _laid(trees, inputs, 0.0, EXP2)


def _linear(estimator: Any, inputs: Sequence[_Input]) -> Grown:
    """A logistic regression: each column adds to the log-odds from its mean; an imputed value adds what was imputed."""
    _binary(len(estimator.classes_) == 2)
    baseline = float(estimator.intercept_[0])
    slopes: dict[int, tuple[float, float, float]] = {}  # by column: centre, weight, what an imputed value adds
    told: dict[int, tuple[float, float]] = {}  # by column: what its indicator adds where the value is there, and where it is missing
    for i, weight in zip(inputs, estimator.coef_[0] / [i.scale for i in inputs], strict=True):
        if i.indicator:
            told[i.column] = (-weight * i.centre, weight * (1.0 - i.centre))
        elif np.isnan(i.imputed):
            raise ArtefactError("a linear member needs an imputer before it: values may be missing", "unknown_estimator")
        elif i.centre != 0.0:
            slopes[i.column] = (i.centre, weight, weight * (i.imputed - i.centre))
        else:  # nobody took the mean: what is imputed is as usual as anything
            slopes[i.column] = (i.imputed, weight, 0.0)
            baseline += weight * i.imputed
    rows = []
    for column in slopes | told:
        centre, weight, missing = slopes.get(column, (0.0, 0.0, 0.0))
        there, absent = told.get(column, (0.0, 0.0))
        if weight == 0.0:
            baseline, there, absent = baseline + there, 0.0, absent - there
        rows.append((centre - (there / weight if weight else 0.0), weight, missing + absent, column))
    none = np.empty(0, dtype=np.int32)
    return Grown(np.empty(0, NODE), np.empty(0), none, np.array(rows, dtype=TERM), baseline, LOGISTIC)


_COMPILERS: dict[str, Any] = {
    "HistGradientBoostingClassifier": _boosted,
    "RandomForestClassifier": _averaged,
    "ExtraTreesClassifier": _averaged,
    "IsolationForest": _isolating,
    "LogisticRegression": _linear,
}


def _binary(is_binary: bool) -> None:
    if not is_binary:
        raise ArtefactError("a member tells two classes apart: honest and fraud", "unknown_estimator")


class _Tree(NamedTuple):
    """One tree as arrays by node; a leaf has a negative `right`."""

    left: npt.NDArray[Any]
    right: npt.NDArray[Any]
    feature: npt.NDArray[Any]
    threshold: Floats
    missing_left: npt.NDArray[np.bool_]
    value: Floats
    cover: npt.NDArray[Any]


def _of_sklearn(tree: Any, value: Floats) -> _Tree:
    """A tree of scikit-learn's `tree` module. It rounds values to 32 bits before it compares; thresholds are moved to say the same of 64."""
    missing_left = tree.missing_go_to_left != 0
    return _Tree(tree.children_left, tree.children_right, tree.feature, _unrounded(tree.threshold), missing_left, value, tree.weighted_n_node_samples)


def _unrounded(thresholds: Floats) -> Floats:
    """By threshold t the largest double that, rounded to a float32, is not above t."""
    near = thresholds.astype(np.float32)
    below = np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)
    above = np.nextafter(below, np.float32(np.inf)).astype(np.float64)
    middle = (below.astype(np.float64) + np.where(np.isinf(above), 2.0**128, above)) / 2
    return np.where(below.view(np.uint32) % 2 == 0, middle, np.nextafter(middle, -np.inf))  # a tie is rounded to the even one


def _laid(trees: Sequence[_Tree], inputs: Sequence[_Input], baseline: float, link: int) -> Grown:
    """The trees in pre-order, one after the other."""
    if any(i.indicator or i.scale != 1.0 or i.centre != 0.0 for i in inputs):
        raise ArtefactError("trees are compiled behind an imputer without indicators, not behind a scaler", "unknown_estimator")
    imputed = np.array([i.imputed for i in inputs])
    columns = np.array([i.column for i in inputs], dtype=np.int64)
    parts, covers, roots, offset = [], [], [], 0
    for tree in trees:
        order, right = _pre_order(tree)
        feature, leaf = np.maximum(tree.feature.astype(np.int64)[order], 0), tree.right[order] < 0
        value = imputed[feature]
        missing_left = np.where(np.isnan(value), tree.missing_left[order], value <= tree.threshold[order])
        nodes = np.zeros(len(order), dtype=NODE)
        nodes["threshold"] = np.where(leaf, tree.value[order], tree.threshold[order])
        nodes["feature"] = np.where(leaf, -1, columns[feature])
        nodes["right"] = np.where(leaf, 0, (right + offset) * np.where(missing_left, 1, -1))
        parts.append(nodes)
        covers.append(tree.cover[order].astype(np.float64))
        roots.append(offset)
        offset += len(order)
    return Grown(np.concatenate(parts), np.concatenate(covers), np.array(roots, dtype=np.int32), np.empty(0, TERM), baseline, link)


def _pre_order(tree: _Tree) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The tree's nodes in pre-order, and for each the place of its right child (0 for a leaf)."""
    left, right = tree.left.tolist(), tree.right.tolist()
    order: list[int] = []
    place = [0] * len(right)
    waiting = [0]
    while waiting:
        node = waiting.pop()
        place[node] = len(order)
        order.append(node)
        if right[node] >= 0:
            waiting += (right[node], left[node])
    return np.array(order), np.array([place[right[node]] if right[node] >= 0 else 0 for node in order])


def joined(members: Sequence[Grown], curve: Curve = AS_IT_IS) -> Forest:
    """The members in one forest, in the order given; `curve` calibrates their weighted sum."""
    nodes, offset = [], 0
    for grown in members:
        moved = grown.nodes.copy()
        moved["right"] += np.sign(moved["right"]) * np.int32(offset)
        nodes.append(moved)
        offset += len(moved)
    offsets = _starts(len(g.nodes) for g in members)
    curves = [*(g.curve for g in members), curve]
    return Forest(
        nodes=np.concatenate(nodes),
        cover=np.concatenate([g.cover for g in members]),
        roots=np.concatenate([g.roots + at for g, at in zip(members, offsets[:-1], strict=True)]).astype(np.int32),
        starts=_starts(len(g.roots) for g in members),
        terms=np.concatenate([g.terms for g in members]),
        term_starts=_starts(len(g.terms) for g in members),
        baselines=np.array([g.baseline for g in members], dtype=np.float64),
        links=np.array([g.link for g in members], dtype=np.int32),
        curve_x=np.concatenate([np.asarray(c.x, dtype=np.float64) for c in curves]),
        curve_y=np.concatenate([np.asarray(c.y, dtype=np.float64) for c in curves]),
        curve_starts=_starts(len(c.x) for c in curves),
    )


def _starts(sizes: Any) -> Ints:
    """Where each of several parts begins, and where the last ends."""
    return np.cumsum([0, *sizes]).astype(np.int32)


def plain(estimator: Any, rows: Floats) -> Floats:
    """float64[rows]: what scikit-learn itself says of rows of the estimator's own features: probability of fraud, or 2^(-depth/c)."""
    if hasattr(estimator, "score_samples"):
        return np.asarray(-estimator.score_samples(rows), dtype=np.float64)
    return np.asarray(estimator.predict_proba(rows)[:, 1], dtype=np.float64)


def mixed(rows: Floats, count: int, seed: int) -> Floats:
    """float64[count, columns]: the rows (of more than so many a choice) and, where they are fewer, others of which each value is drawn from its
    column anywhere."""
    more = max(count - len(rows), 0)
    rng = np.random.default_rng(seed)
    if len(rows) > count:
        return np.ascontiguousarray(rows[np.sort(rng.choice(len(rows), count, replace=False))])
    return np.vstack([rows, np.column_stack([column[rng.integers(0, len(rows), more)] for column in rows.T])])


def apart(grown: Grown, estimator: Any, mine: Floats, rows: Floats) -> float:
    """The greatest distance between a compiled member and scikit-learn over all rows: the gate of parity.

    `mine` are the estimator's own features, `rows` those of the whole vector. The member's curve is applied to both.
    """
    said = plain(estimator, mine)
    wanted = np.interp(said, grown.curve.x, grown.curve.y) if len(grown.curve.x) else said
    return float(np.abs(probabilities_of_all(joined([grown]), rows)[:, 0] - wanted).max(initial=0.0))
