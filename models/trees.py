"""Boosted trees as plain arrays: what scikit-learn grew, walked in microseconds by compiled code, with paths explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from schemas.errors import ArtefactError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

NODE = np.dtype([("threshold", "<f8"), ("feature", "<i4"), ("right", "<i4")])
"""One node, 16 bytes. The left child is the next node; `right` is where the right one is, negative if a missing value goes
right. A leaf has feature -1 and its value as `threshold`."""


class Forest(NamedTuple):
    """The trees of several members, one after the other."""

    nodes: npt.NDArray[np.void]  # NODE
    expected: Floats  # by node: mean of the leaves below it, weighted by the training rows in them
    roots: Ints  # by tree: its first node
    starts: Ints  # by member: its first tree; one more entry at the end
    baselines: Floats  # by member: log-odds before any tree


class Grown(NamedTuple):
    """One member's part of a forest, before it is joined with the others."""

    nodes: npt.NDArray[np.void]
    expected: Floats
    roots: Ints
    baseline: float


def flattened(estimator: Any, columns: Sequence[int]) -> Grown:
    """A fitted binary HistGradientBoostingClassifier (numerical features) as arrays; its feature j is column `columns[j]`."""
    nodes: list[tuple[float, int, int]] = []
    expected: list[float] = []
    roots: list[int] = []
    for (tree,) in estimator._predictors:
        assert not tree.nodes["is_categorical"].any(), "only numerical splits are flattened"
        roots.append(len(nodes))
        _lay(tree.nodes, 0, columns, nodes, expected)
    return Grown(
        np.array(nodes, dtype=NODE), np.array(expected), np.array(roots, dtype=np.int32), float(estimator._baseline_prediction[0, 0])
    )


def _lay(tree: Any, at: int, columns: Sequence[int], nodes: list[tuple[float, int, int]], expected: list[float]) -> int:
    """Lays the subtree at node `at` in pre-order; returns the training rows in it."""
    node, here = tree[at], len(nodes)
    nodes.append((float(node["value"]), -1, 0))
    expected.append(float(node["value"]))
    if node["is_leaf"]:
        return int(node["count"])
    left_rows = _lay(tree, int(node["left"]), columns, nodes, expected)
    right = len(nodes)
    right_rows = _lay(tree, int(node["right"]), columns, nodes, expected)
    nodes[here] = (float(node["num_threshold"]), int(columns[node["feature_idx"]]), right if node["missing_go_to_left"] else -right)
    expected[here] = (left_rows * expected[here + 1] + right_rows * expected[right]) / max(left_rows + right_rows, 1)
    return left_rows + right_rows


def joined(members: Sequence[Grown]) -> Forest:
    """The members' trees in one forest, in the order given."""
    nodes, roots, starts, offset = [], [], [0], 0
    for grown in members:
        moved = grown.nodes.copy()
        moved["right"] += np.sign(moved["right"]) * offset
        nodes.append(moved)
        roots.append(grown.roots + np.int32(offset))
        starts.append(starts[-1] + len(grown.roots))
        offset += len(moved)
    return Forest(
        np.concatenate(nodes),
        np.concatenate([g.expected for g in members]),
        np.concatenate(roots).astype(np.int32),
        np.array(starts, dtype=np.int32),
        np.array([g.baseline for g in members]),
    )


def sound(forest: Forest, width: int) -> Forest:
    """The forest, if every walk through it ends and reads only the first `width` columns; else ArtefactError."""
    nodes, feature, right = forest.nodes, forest.nodes["feature"], np.abs(forest.nodes["right"].astype(np.int64))
    at = np.arange(len(nodes))
    inner = feature >= 0
    ends = np.append(forest.roots[1:], len(nodes))
    end_of = ends[np.searchsorted(forest.roots, at, side="right") - 1]
    good = (
        nodes.dtype == NODE
        and len(forest.expected) == len(nodes)
        and len(forest.starts) == len(forest.baselines) + 1
        and forest.starts[0] == 0
        and forest.starts[-1] == len(forest.roots)
        and bool((np.diff(forest.starts) >= 0).all())
        and bool((np.diff(forest.roots) > 0).all())
        and (len(nodes) == 0 or forest.roots[0] == 0)
        and bool((feature < width).all())
        and bool(((right > at + 1) & (right < end_of))[inner].all())
        and bool((at + 1 < end_of)[inner].all())
    )
    if not good:
        raise ArtefactError("the forest's arrays do not describe trees")
    return forest


@numba.njit(cache=True)
def _next(nodes, i, x):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The child of inner node `i` on the way of row `x`."""
    value, right = x[nodes[i].feature], nodes[i].right
    if value <= nodes[i].threshold:
        return i + 1
    if value > nodes[i].threshold:
        return abs(right)
    return i + 1 if right > 0 else -right


@numba.njit(cache=True)
def _walk(nodes, roots, starts, baselines, x, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Each member's probability for row `x`, into `out`."""
    for member in range(baselines.size):
        raw = baselines[member]
        for tree in range(starts[member], starts[member + 1]):
            i = roots[tree]
            while nodes[i].feature >= 0:
                i = _next(nodes, i, x)
            raw += nodes[i].threshold
        out[member] = 1.0 / (1.0 + np.exp(-raw))


@numba.njit(cache=True)
def _walk_all(nodes, roots, starts, baselines, rows, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The same for every row of a matrix."""
    for row in range(rows.shape[0]):
        _walk(nodes, roots, starts, baselines, rows[row], out[row])


@numba.njit(cache=True)
def _explain(nodes, expected, roots, starts, weights, x, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Adds to `out[column]` the weighted change of expectation that each split on the column made for row `x`."""
    for member in range(weights.size):
        for tree in range(starts[member], starts[member + 1]):
            i = roots[tree]
            while nodes[i].feature >= 0:
                child = _next(nodes, i, x)
                out[nodes[i].feature] += weights[member] * (expected[child] - expected[i])
                i = child


def probabilities(forest: Forest, vector: Floats) -> Floats:
    """float64[members]: each member's probability for one row (float64[columns], C order). Microseconds."""
    out: Floats = np.empty(len(forest.baselines))
    _walk(forest.nodes, forest.roots, forest.starts, forest.baselines, vector, out)
    return out


def probabilities_of_all(forest: Forest, rows: Floats) -> Floats:
    """float64[rows, members]: each member's probability for each row of a matrix."""
    out: Floats = np.empty((len(rows), len(forest.baselines)))
    _walk_all(forest.nodes, forest.roots, forest.starts, forest.baselines, np.ascontiguousarray(rows, dtype=np.float64), out)
    return out


def contributions(forest: Forest, weights: Floats, vector: Floats) -> Floats:
    """float64[columns]: how far each column moved the members' weighted log-odds from their mean (path attribution, A. Saabas 2014)."""
    out: Floats = np.zeros(len(vector))
    _explain(forest.nodes, forest.expected, forest.roots, forest.starts, weights, vector, out)
    return out
