"""Members as plain arrays: trees, linear terms and curves, walked in microseconds by compiled code. Everything compiled of them is here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

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


def _native(function: Any) -> Any:
    """The function, compiled when it is first called and kept on disk. A division by zero gives what numpy gives: nothing is raised."""
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


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
def _score_all(nodes, roots, starts, terms, term_starts, baselines, links, xs, ys, curves, weights, rows, out):  # type: ignore[no-untyped-def]  # compiled
    """The same for every row of a matrix."""
    for row in range(rows.shape[0]):
        _score(nodes, roots, starts, terms, term_starts, baselines, links, xs, ys, curves, weights, rows[row], out[row])


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


def scored_all(forest: Forest, weights: Floats, rows: Floats) -> Floats:
    """float64[rows, members + 2]: `scored` of each row of a matrix."""
    out: Floats = np.empty((len(rows), len(forest.baselines) + 2))
    _score_all(*_arrays(forest), weights, np.ascontiguousarray(rows, dtype=np.float64), out)
    return out


def calibrated(forest: Forest, totals: Floats) -> Floats:
    """float64[rows]: the scores (0 to 1) that the ensemble's curve makes of weighted sums."""
    out: Floats = np.empty(len(totals))
    _calibrate(forest.curve_x, forest.curve_y, *forest.curve_starts[-2:], np.ascontiguousarray(totals, dtype=np.float64), out)
    return out


class Explained(NamedTuple):
    """What follows from a forest, and is needed to say why it says something: made once for each."""

    expected: Floats  # by node: the mean of the leaves below it, weighted by the training rows in them
    base: Floats  # by member: the raw sum that it expects before it knows anything
    depth: int  # inner nodes on the longest way
    exact: Ints  # by member: 1 if its trees are attributed exactly, 0 if by their paths


ENTRY = np.dtype([("share", "<f8"), ("zero", "<f8"), ("one", "<f8"), ("column", "<i8")])
"""One column on the path to a node: Lundberg's proportion of subsets, fractions of the training rows and of `x` that go on, feature."""
EDGE = np.dtype([("node", "<i8"), ("column", "<i8"), ("start", "<i8"), ("length", "<i8"), ("zero", "<f8"), ("one", "<f8")])
"""A node to visit: the column that its parent splits on, where its parent's path lies, and the fractions that come here."""
EXACT_MAX = 300_000
"""Steps of exact attribution for one payment, over all members; a step takes 2 to 3 ns. Members beyond it are attributed by their paths."""


@_native
def _measure(nodes, cover, roots, out, depths, steps):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """By node the expected value and depth, into `out` and `depths`; by tree the steps that its exact attribution takes."""
    for i in range(nodes.size - 1, -1, -1):  # children lie behind their parents
        if nodes[i].feature < 0:
            out[i] = nodes[i].threshold
        else:
            left, right = i + 1, abs(nodes[i].right)
            out[i] = (cover[left] * out[left] + cover[right] * out[right]) / (cover[left] + cover[right])
    for tree in range(roots.size):
        end = roots[tree + 1] if tree + 1 < roots.size else nodes.size
        for i in range(roots[tree], end):
            if nodes[i].feature >= 0:
                depths[i + 1] = depths[abs(nodes[i].right)] = depths[i] + 1
                steps[tree] += depths[i]
            else:
                steps[tree] += depths[i] * (depths[i] + 1)


def explained(forest: Forest, steps_max: float = EXACT_MAX) -> Explained:
    """What `attributions` needs to know of a forest. The cheapest members are attributed exactly, as long as `steps_max` lasts."""
    expected, depths = np.empty(len(forest.nodes)), np.zeros(len(forest.nodes), dtype=np.int64)
    steps = np.zeros(len(forest.roots))
    _measure(forest.nodes, forest.cover, forest.roots, expected, depths, steps)
    parts = [slice(a, b) for a, b in pairwise(forest.starts)]
    base = forest.baselines + np.array([expected[forest.roots[part]].sum() for part in parts])
    cost = np.array([steps[part].sum() for part in parts])
    order = np.argsort(cost, kind="stable")
    exact = np.zeros(len(cost), dtype=np.int32)
    exact[order[np.cumsum(cost[order]) <= steps_max]] = 1
    return Explained(expected, base, int(depths.max(initial=0)), exact)


@_native
def _along(nodes, expected, i, x, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Adds to `out[column]` the change of expectation that each split on the column made on the way of row `x` (A. Saabas 2014)."""
    while nodes[i].feature >= 0:
        child = _next(nodes, i, x)
        out[nodes[i].feature] += expected[child] - expected[i]
        i = child


@_native
def _extend(path, at, length, column, zero, one):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Lundberg's EXTEND: one entry more on the path that begins at `at`, and the shares of subsets by size with it."""
    entry = path[at + length]
    entry.column, entry.zero, entry.one = column, zero, one
    entry.share = 1.0 if length == 0 else 0.0
    each = 1.0 / (length + 1)
    for i in range(length - 1, -1, -1):
        share = path[at + i].share
        path[at + i + 1].share += one * share * ((i + 1) * each)
        path[at + i].share = share * zero * ((length - i) * each)


@_native
def _unwind(path, at, length, k, inverse):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Lundberg's UNWIND: the path without its entry `k`. What is met is wholly met, so `one` is 0 or 1."""
    last, zero, met = length - 1, path[at + k].zero, path[at + k].one != 0.0
    following = path[at + last].share
    for i in range(last - 1, -1, -1):
        share = path[at + i].share
        if met:
            path[at + i].share = following * length * inverse[i + 1]
            following = share - path[at + i].share * zero * ((last - i) * inverse[length])
        else:
            path[at + i].share = share * length * inverse[last - i] / zero
    for i in range(at + k, at + last):
        path[i].column, path[i].zero, path[i].one = path[i + 1].column, path[i + 1].zero, path[i + 1].one


@_native
def _leaf(path, at, length, value, inverse, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Adds what a leaf at the path's end gives to each column on it, by UNWIND's sums; all entries that are not met have the same."""
    last, unmet = length - 1, 0.0
    for i in range(last):
        unmet += path[at + i].share * inverse[last - i]
    for k in range(at + 1, at + length):
        if path[k].one == 0.0:
            out[path[k].column] -= unmet * length * value
            continue
        zero, total, following = path[k].zero, 0.0, path[at + last].share
        for i in range(last - 1, -1, -1):
            part = following * inverse[i + 1]
            total += part
            following = path[at + i].share - part * zero * (last - i)
        out[path[k].column] += total * length * (1.0 - zero) * value


@_native
def _shapley(nodes, cover, root, x, out, path, waiting, inverse):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Adds one tree's exact path-dependent Shapley values to `out[column]` (S. M. Lundberg et al. 2020, algorithm 2).

    A node's path begins in `path` where its parent's ends; `waiting` are the nodes still to visit, each with the edge that leads to it.
    """
    first = waiting[0]
    first.node, first.column, first.start, first.length, first.zero, first.one = root, -1, 0, 0, 1.0, 1.0
    left_over = 1
    while left_over > 0:
        left_over -= 1
        edge = waiting[left_over]
        node, length, start = edge.node, edge.length, edge.start
        at = start + length
        for i in range(length):
            path[at + i] = path[start + i]
        _extend(path, at, length, edge.column, edge.zero, edge.one)
        length += 1
        if nodes[node].feature < 0:
            _leaf(path, at, length, nodes[node].threshold, inverse, out)
            continue
        column, zero, one = nodes[node].feature, 1.0, 1.0
        for k in range(1, length):
            if path[at + k].column == column:
                zero, one = path[at + k].zero, path[at + k].one
                _unwind(path, at, length, k, inverse)
                length -= 1
                break
        hot = np.int64(_next(nodes, np.uint64(node), x))
        left, right = node + 1, np.int64(abs(nodes[node].right))
        rows = cover[left] + cover[right]
        for child in (left, right):
            edge = waiting[left_over]
            edge.node, edge.column, edge.start, edge.length = child, column, at, length
            edge.zero, edge.one = zero * cover[child] / rows, one if child == hot else 0.0
            left_over += 1


@_native
def _attribute(nodes, cover, roots, starts, terms, term_starts, expected, depth, exact, x, out):  # type: ignore[no-untyped-def]  # compiled
    """Each member's attribution of its raw sum to columns, into `out[member, column]`."""
    size = depth + 2
    path, waiting = np.empty(size * (size + 1) // 2, ENTRY), np.empty(size, EDGE)
    inverse = 1.0 / np.maximum(np.arange(size + 1), 1)
    for member in range(exact.size):
        mine = out[member]
        for tree in range(starts[member], starts[member + 1]):
            if exact[member]:
                _shapley(nodes, cover, roots[tree], x, mine, path, waiting, inverse)
            else:
                _along(nodes, expected, np.uint64(roots[tree]), x, mine)
        for term in range(term_starts[member], term_starts[member + 1]):
            mine[terms[term].column] += _term(terms[term], x)


@_native
def _mean(links, xs, ys, curves, raws, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The calibrated probability that each member's raw sum means."""
    for member in range(raws.size):
        out[member] = _on_curve(xs, ys, curves[member], curves[member + 1], _linked(raws[member], links[member]))


def attributions(forest: Forest, known: Explained, vector: Floats) -> Floats:
    """float64[members, columns]: how far each column moved each member's raw sum (log-odds, shares, -depth) from what it expects.

    Trees: exact path-dependent Shapley values where `known.exact`, else changes of expectation along the path. Each member's row adds up to
    its raw sum less `known.base`.
    """
    out: Floats = np.zeros((len(forest.baselines), len(vector)))
    f = forest
    _attribute(f.nodes, f.cover, f.roots, f.starts, f.terms, f.term_starts, known.expected, known.depth, known.exact, vector, out)
    return out


def contributions(forest: Forest, known: Explained, weights: Floats, vector: Floats) -> Floats:
    """float64[columns]: how far each column moved the score (0 to 1) from what the members expect; they add up to the whole way.

    A member's attribution is of its raw sum; link and calibration stretch it by as much as they stretch the sum itself.
    """
    moved = attributions(forest, known, vector)
    base = np.where(weights > 0, known.base, 0.0)  # a member that is not heard may be broken
    after, before = meant(forest, base + moved.sum(axis=1)), meant(forest, base)
    by_column: Floats = (weights * _slopes(after - before, moved.sum(axis=1))) @ moved
    ends = np.array([weights @ before, weights @ after])
    (stretch,) = _slopes(np.diff(calibrated(forest, ends)), np.diff(ends))
    by_column *= stretch
    return by_column


def meant(forest: Forest, raws: Floats) -> Floats:
    """float64[members]: the calibrated probability that each member's raw sum means."""
    out: Floats = np.empty(len(raws))
    _mean(forest.links, forest.curve_x, forest.curve_y, forest.curve_starts, raws, out)
    return out


def _slopes(rise: Floats, run: Floats) -> Floats:
    """Rise over run; 0 where there is no run."""
    return np.divide(rise, run, out=np.zeros(len(run)), where=run != 0)
