"""Members as plain arrays: trees, linear terms and curves, walked in microseconds by compiled code. Everything compiled of them is here."""

from __future__ import annotations

from itertools import pairwise
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
TERM = np.dtype([("centre", "<f8"), ("weight", "<f8"), ("missing", "<f8"), ("column", "<i8")])
"""One column of a linear member: it adds (value - centre) * weight, or `missing` where the value is missing. The centre is the
column's mean at training, so that what it adds is what it contributes."""
IDENTITY, LOGISTIC, EXP2 = range(3)
"""How a member's raw sum becomes a probability: as it is, 1 / (1 + e^-raw), or 2^raw (isolation forests, whose leaves are negative)."""


class Forest(NamedTuple):
    """Several members, one after the other: raw = baseline + leaves + terms; probability = curve(link(raw)); score = curve(weighted sum)."""

    nodes: npt.NDArray[np.void]  # NODE
    cover: Floats  # by node: the training rows in it, weighted
    roots: Ints  # by tree: its first node
    starts: Ints  # by member: its first tree; one more entry at the end
    terms: npt.NDArray[np.void]  # TERM
    term_starts: Ints  # by member: its first term; one more entry at the end
    baselines: Floats  # by member: raw before any tree or term
    links: Ints  # by member
    curve_x: Floats  # points of the calibration curves, straight lines between them, level beyond them
    curve_y: Floats
    curve_starts: Ints  # by member, then of the ensemble: the first point of its curve; one more entry at the end. No points: as it is


def sound(forest: Forest, width: int) -> Forest:
    """The forest, if every walk through it ends and reads only the first `width` columns, and every number is one; else ArtefactError."""
    members = len(forest.baselines)
    good = (
        _typed(forest)
        and len(forest.links) == members
        and bool(np.isin(forest.links, (IDENTITY, LOGISTIC, EXP2)).all())
        and bool(np.isfinite(forest.baselines).all())
        and _partition(forest.starts, members, len(forest.roots))
        and _partition(forest.term_starts, members, len(forest.terms))
        and _partition(forest.curve_starts, members + 1, len(forest.curve_x))
        and _trees_end(forest, width)
        and _terms_fit(forest.terms, width)
        and _curves_rise(forest)
    )
    if not good:
        raise ArtefactError("the forest's arrays do not describe trees, terms and curves", "unsound_arrays")
    return forest


def _typed(forest: Forest) -> bool:
    """Whether every array is of one dimension and of its type."""
    types: tuple[Any, ...] = (NODE, "<f8", "<i4", "<i4", TERM, "<i4", "<f8", "<i4", "<f8", "<f8", "<i4")
    return all(array.ndim == 1 and array.dtype == np.dtype(kind) for array, kind in zip(tuple[Any, ...](forest), types, strict=True))


def _partition(starts: Ints, parts: int, total: int) -> bool:
    """Whether `starts` cuts `total` things into so many parts."""
    return len(starts) == parts + 1 and int(starts[0]) == 0 and int(starts[-1]) == total and bool((np.diff(starts.astype(np.int64)) >= 0).all())


def _trees_end(forest: Forest, width: int) -> bool:
    """Whether each child lies behind its parent within the tree, and each node is somebody's left or right child exactly once."""
    nodes, roots, feature = forest.nodes, forest.roots.astype(np.int64), forest.nodes["feature"]
    if len(forest.cover) != len(nodes) or (len(roots) == 0) != (len(nodes) == 0):
        return False
    if len(nodes) == 0:
        return True
    if roots[0] != 0 or not (np.diff(roots) > 0).all() or roots[-1] >= len(nodes):
        return False
    at, right, inner = np.arange(len(nodes)), np.abs(nodes["right"].astype(np.int64)), feature >= 0
    end_of = np.append(roots[1:], len(nodes))[np.searchsorted(roots, at, side="right") - 1]
    return (
        bool(((feature >= -1) & (feature < width)).all())
        and bool(((right > at + 1) & (right < end_of))[inner].all())
        and bool((np.isfinite(nodes["threshold"]) | (inner & (nodes["threshold"] == np.inf))).all())  # inf: every value goes left, missing apart
        and bool((np.isfinite(forest.cover) & (forest.cover >= 0)).all())
        and _in_pre_order(inner, right, roots, end_of)
    )


def _in_pre_order(inner: npt.NDArray[np.bool_], right: npt.NDArray[np.int64], roots: npt.NDArray[np.int64], end_of: npt.NDArray[np.int64]) -> bool:
    """Whether every node but the roots has one parent: the left child follows it, the right one is where it says."""
    parents = np.zeros(len(inner) + 1, dtype=np.int64)
    np.add.at(parents, np.flatnonzero(inner) + 1, 1)
    np.add.at(parents, right[inner], 1)
    wanted = np.ones(len(inner), dtype=np.int64)
    wanted[roots] = 0
    return bool((parents[:-1] == wanted).all()) and parents[-1] == 0


def _terms_fit(terms: npt.NDArray[np.void], width: int) -> bool:
    finite = all(np.isfinite(terms[name]).all() for name in ("centre", "weight", "missing"))
    return bool(finite) and bool(((terms["column"] >= 0) & (terms["column"] < width)).all())


def _curves_rise(forest: Forest) -> bool:
    """Whether each curve goes strictly to the right, never down, and stays within 0 and 1."""
    x, y, starts = forest.curve_x, forest.curve_y, forest.curve_starts
    if len(x) != len(y) or not (np.isfinite(x).all() and np.isfinite(y).all() and (y >= 0).all() and (y <= 1).all()):
        return False
    curves = [slice(a, b) for a, b in pairwise(starts)]
    return all(bool((np.diff(x[c]) > 0).all() and (np.diff(y[c]) >= 0).all()) for c in curves)


def _native(function: Any) -> Any:
    """The function, compiled when it is first called and kept on disk."""
    return numba.njit(cache=True, nogil=True)(function)


@_native
def _next(nodes, i, x):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The child of inner node `i` on the way of row `x`. Indices are unsigned: they need no test for negative ones."""
    value, right = x[np.uint64(nodes[i].feature)], nodes[i].right
    left = (value <= nodes[i].threshold) | (np.isnan(value) & (right > 0))
    return i + np.uint64(1) if left else np.uint64(abs(right))


@_native
def _term(term, x):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """What one linear term adds for row `x`."""
    value = x[term.column]
    return term.missing if np.isnan(value) else (value - term.centre) * term.weight


@_native
def _linked(raw, link):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The probability that a raw sum means."""
    if link == 1:
        return 1.0 / (1.0 + np.exp(-raw))
    if link == 2:
        return 2.0**raw
    return raw


@_native
def _on_curve(xs, ys, first, end, p):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The curve's height over `p`, as `np.interp` has it; not a number where `p` is none."""
    if first == end or np.isnan(p):
        return p
    if p <= xs[first]:
        return ys[first]
    if p >= xs[end - 1]:
        return ys[end - 1]
    low, high = first, end - 1
    while high - low > 1:
        middle = (low + high) // 2
        if xs[middle] <= p:
            low = middle
        else:
            high = middle
    return ys[low] + (ys[high] - ys[low]) / (xs[high] - xs[low]) * (p - xs[low])


@_native
def _walk(nodes, roots, starts, terms, term_starts, baselines, links, xs, ys, curves, x, out):  # type: ignore[no-untyped-def]  # compiled
    """Each member's probability for row `x`, into `out`."""
    for member in range(baselines.size):
        raw = baselines[member]
        for tree in range(starts[member], starts[member + 1]):
            i = np.uint64(roots[tree])
            while nodes[i].feature >= 0:
                i = _next(nodes, i, x)
            raw += nodes[i].threshold
        for term in range(term_starts[member], term_starts[member + 1]):
            raw += _term(terms[term], x)
        out[member] = _on_curve(xs, ys, curves[member], curves[member + 1], _linked(raw, links[member]))


@_native
def _walk_all(nodes, roots, starts, terms, term_starts, baselines, links, xs, ys, curves, rows, out):  # type: ignore[no-untyped-def]  # compiled
    """The same for every row of a matrix."""
    for row in range(rows.shape[0]):
        _walk(nodes, roots, starts, terms, term_starts, baselines, links, xs, ys, curves, rows[row], out[row])


@_native
def _score(nodes, roots, starts, terms, term_starts, baselines, links, xs, ys, curves, weights, x, out):  # type: ignore[no-untyped-def]  # compiled
    """Each member's probability, then their weighted sum, then the score: all into `out`."""
    members = baselines.size
    _walk(nodes, roots, starts, terms, term_starts, baselines, links, xs, ys, curves, x, out)
    total = 0.0
    for member in range(members):
        total += out[member] * weights[member]
    out[members] = total
    out[members + 1] = _on_curve(xs, ys, curves[members], curves[members + 1], total)


@_native
def _calibrate(xs, ys, first, end, values, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """One curve's heights over many values."""
    for i in range(values.size):
        out[i] = _on_curve(xs, ys, first, end, values[i])


def _arrays(forest: Forest) -> Any:
    """The arrays that a walk reads, in the kernels' order."""
    return (forest.nodes, *forest[2:])


def probabilities(forest: Forest, vector: Floats) -> Floats:
    """float64[members]: each member's calibrated probability for one row (float64[columns], C order). Microseconds."""
    out: Floats = np.empty(len(forest.baselines))
    _walk(*_arrays(forest), vector, out)
    return out


def probabilities_of_all(forest: Forest, rows: Floats) -> Floats:
    """float64[rows, members]: each member's calibrated probability for each row of a matrix."""
    out: Floats = np.empty((len(rows), len(forest.baselines)))
    _walk_all(*_arrays(forest), np.ascontiguousarray(rows, dtype=np.float64), out)
    return out


def scored(forest: Forest, weights: Floats, vector: Floats) -> Floats:
    """float64[members + 2]: each member's probability, their weighted sum, and the score that the ensemble's curve makes of it."""
    out: Floats = np.empty(len(forest.baselines) + 2)
    _score(*_arrays(forest), weights, vector, out)
    return out


def calibrated(forest: Forest, totals: Floats) -> Floats:
    """float64[rows]: the scores (0 to 1) that the ensemble's curve makes of weighted sums."""
    out: Floats = np.empty(len(totals))
    _calibrate(forest.curve_x, forest.curve_y, *forest.curve_starts[-2:], np.ascontiguousarray(totals, dtype=np.float64), out)
    return out


@_native
def _expect(nodes, cover, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """By node the mean of the leaves below it, weighted by the training rows in them, into `out`."""
    for i in range(nodes.size - 1, -1, -1):  # children lie behind their parents
        if nodes[i].feature < 0:
            out[i] = nodes[i].threshold
        else:
            left, right = i + 1, abs(nodes[i].right)
            rows = cover[left] + cover[right]
            out[i] = (cover[left] * out[left] + cover[right] * out[right]) / rows if rows > 0 else (out[left] + out[right]) / 2


def expected(forest: Forest) -> Floats:
    """float64[nodes]: the mean of the leaves below each node, weighted by the training rows in them."""
    out: Floats = np.empty(len(forest.nodes))
    _expect(forest.nodes, forest.cover, out)
    return out


@_native
def _explain(nodes, expected, roots, starts, weights, x, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Adds to `out[column]` the weighted change of expectation that each split on the column made for row `x`."""
    for member in range(weights.size):
        for tree in range(starts[member], starts[member + 1]):
            i = np.uint64(roots[tree])
            while nodes[i].feature >= 0:
                child = _next(nodes, i, x)
                out[nodes[i].feature] += weights[member] * (expected[child] - expected[i])
                i = child


def contributions(forest: Forest, weights: Floats, vector: Floats) -> Floats:
    """float64[columns]: how far each column moved the members' weighted log-odds from their mean (path attribution, A. Saabas 2014)."""
    out: Floats = np.zeros(len(vector))
    _explain(forest.nodes, expected(forest), forest.roots, forest.starts, weights, vector, out)
    return out
