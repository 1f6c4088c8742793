"""Members as plain arrays: trees, linear terms and curves, walked in microseconds by compiled code. Why they say it: `models/attribution.py`."""

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
LOT_ROWS = 65_536
"""Rows of a long matrix that are worked on at a time: all at once would be a second one."""
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


def native(function: Any) -> Any:
    """The function, compiled when it is first called and kept on disk. A division by zero gives what numpy gives: nothing is raised."""
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


STEP = np.dtype([("threshold", "<f8"), ("slot", "<u4"), ("next", "<u4")])
"""A node as it is walked: what lies in `slot` goes to `next` if it is not above the threshold, else to the step behind it. A leaf's
value is its threshold; it reads slot 0, which is above nothing, and its `next` is itself: who walks on stays there."""
PART = np.dtype([("root", "<i4"), ("root_end", "<i4"), ("term", "<i4"), ("term_end", "<i4"), ("corner", "<i4"), ("corner_end", "<i4"),
                 ("link", "<i8"), ("baseline", "<f8")])  # fmt: skip
"""Where a member's roots, terms and corners of its curve are; the last part is the ensemble's own, of which there is a curve alone."""
CORNER = np.dtype([("x", "<f8"), ("y", "<f8")])
ABREAST = 8
"""So many trees are walked at a time, so that one waits for memory and comparisons while others go on. None of it is a branch to guess."""
GREATEST = np.finfo(np.float64).max


class Laid(NamedTuple):
    """A forest as one call walks it: each tree's children side by side, each member's trees by depth, made up to a multiple of ABREAST."""

    steps: npt.NDArray[np.void]  # STEP; the last one is a leaf of 0
    roots: npt.NDArray[np.uint32]
    parts: npt.NDArray[np.void]  # PART, by member, then of the ensemble
    terms: npt.NDArray[np.void]  # TERM
    corners: npt.NDArray[np.void]  # CORNER


@native
def _lay(nodes, roots, ends, steps, places, depths):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The steps of all trees, where each node went, and by tree how deep it is."""
    deep, free = np.zeros(nodes.size, np.int64), 0
    for tree in range(roots.size):
        places[roots[tree]] = free
        free += 1
        for i in range(roots[tree], ends[tree]):  # parents lie before their children
            node, step = nodes[i], steps[places[i]]
            step.threshold = node.threshold
            if node.feature < 0:
                step.slot, step.next = 0, places[i]
                depths[tree] = max(depths[tree], deep[i])
                continue
            left, right = i + 1, abs(node.right)
            if node.right < 0:
                step.threshold = min(node.threshold, GREATEST)
            step.slot, step.next = 2 * node.feature + (1 if node.right > 0 else 2), free
            places[left], places[right] = free, free + 1
            deep[left] = deep[right] = deep[i] + 1
            free += 2


def laid(forest: Forest) -> Laid:
    """The forest as it is walked; it says the same. A tenth of a millisecond."""
    count = len(forest.nodes)
    steps, places, depths = np.zeros(count + 1, STEP), np.empty(count, np.int64), np.zeros(len(forest.roots), np.int64)
    steps[count] = (0.0, 0, count)
    _lay(forest.nodes, forest.roots, np.append(forest.roots, count)[1:], steps, places, depths)
    parts = np.zeros(len(forest.curve_starts) - 1, PART)
    parts["corner"], parts["corner_end"] = forest.curve_starts[:-1], forest.curve_starts[1:]
    members, roots = parts[:-1], list[npt.NDArray[np.int64]]()
    members["term"], members["term_end"] = forest.term_starts[:-1], forest.term_starts[1:]
    members["link"], members["baseline"] = forest.links, forest.baselines
    for number, (first, end) in enumerate(pairwise(forest.starts.tolist())):
        order = np.argsort(depths[first:end], kind="stable")
        padding = np.full(-len(order) % ABREAST, count)
        roots += [padding, places[forest.roots[first:end]][order]]
        members["root_end"][number] = sum(map(len, roots))
    members["root"][1:] = members["root_end"][:-1]
    corners = np.zeros(len(forest.curve_x), CORNER)
    corners["x"], corners["y"] = forest.curve_x, forest.curve_y
    return Laid(steps, np.concatenate([np.empty(0, np.int64), *roots]).astype(np.uint32), parts, forest.terms, corners)


@native
def term_of(term, x):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """What one linear term adds for row `x`."""
    value = x[term.column]
    return term.missing if np.isnan(value) else (value - term.centre) * term.weight


@native
def _linked(raw, link):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The probability that a raw sum means."""
    if link == 1:
        return 1.0 / (1.0 + np.exp(-raw))
    if link == 2:
        return 2.0**raw
    return raw


@native
def on_curve(corners, first, end, p):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The curve's height over `p`, as `np.interp` has it; not a number where `p` is none."""
    if first == end or np.isnan(p):
        return p
    if p <= corners[first].x:
        return corners[first].y
    if p >= corners[end - 1].x:
        return corners[end - 1].y
    low, high = first, end - 1
    while high - low > 1:
        middle = (low + high) // 2
        if corners[middle].x <= p:
            low = middle
        else:
            high = middle
    before, after = corners[low], corners[high]
    return before.y + (after.y - before.y) / (after.x - before.x) * (p - before.x)


@native
def meaning(part, corners, raw):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The calibrated probability that a member's raw sum means."""
    return on_curve(corners, part.corner, part.corner_end, _linked(raw, part.link))


@native
def _spread(x, seen):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """What steps read of row `x`: slot 2 c + 1 has column c, below everything where it is missing, slot 2 c + 2 has it above everything."""
    seen[0] = -np.inf
    for column in range(x.size):
        value = min(x[column], GREATEST)  # what is missing is told from what is infinite
        missing = np.isnan(x[column])
        seen[2 * column + 1] = -np.inf if missing else value
        seen[2 * column + 2] = np.inf if missing else value


@native
def _next(steps, i, seen):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The step after `i`. Indices are unsigned: they need no test for negative ones."""
    step = steps[i]
    return np.uint64(step.next) + np.uint64(seen[np.uint64(step.slot)] > step.threshold)


@native
def _leaves(steps, roots, first, seen):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The sum of the leaves of ABREAST trees. Each step but a leaf's leads further on: once none does, all are at their leaves."""
    a, b, c, d = np.uint64(roots[first]), np.uint64(roots[first + 1]), np.uint64(roots[first + 2]), np.uint64(roots[first + 3])
    e, f, g, h = np.uint64(roots[first + 4]), np.uint64(roots[first + 5]), np.uint64(roots[first + 6]), np.uint64(roots[first + 7])
    before, now = np.uint64(0), np.uint64(1)
    while now != before:
        before = a + b + c + d + e + f + g + h
        a, b, c, d = _next(steps, a, seen), _next(steps, b, seen), _next(steps, c, seen), _next(steps, d, seen)
        e, f, g, h = _next(steps, e, seen), _next(steps, f, seen), _next(steps, g, seen), _next(steps, h, seen)
        now = a + b + c + d + e + f + g + h
    left = (steps[a].threshold + steps[b].threshold) + (steps[c].threshold + steps[d].threshold)
    return left + ((steps[e].threshold + steps[f].threshold) + (steps[g].threshold + steps[h].threshold))


@native
def _walk(steps, roots, parts, terms, corners, weights, x, seen, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Each member's probability for row `x`, then their weighted sum, then the score: all into `out`."""
    members, total = parts.size - 1, 0.0
    _spread(x, seen)
    for member in range(members):
        part = parts[member]
        raw = part.baseline
        for first in range(part.root, part.root_end, ABREAST):
            raw += _leaves(steps, roots, first, seen)
        for term in range(part.term, part.term_end):
            raw += term_of(terms[term], x)
        out[member] = meaning(part, corners, raw)
        total += out[member] * weights[member]
    out[members], out[members + 1] = total, on_curve(corners, parts[members].corner, parts[members].corner_end, total)


@native
def _score(steps, roots, parts, terms, corners, weights, x, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """`_walk` of one row."""
    _walk(steps, roots, parts, terms, corners, weights, x, np.empty(2 * x.size + 1), out)


@native
def _score_all(steps, roots, parts, terms, corners, weights, rows, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """`_walk` of every row of a matrix."""
    seen = np.empty(2 * rows.shape[1] + 1)
    for row in range(rows.shape[0]):
        _walk(steps, roots, parts, terms, corners, weights, rows[row], seen, out[row])


@native
def _calibrate(parts, corners, values, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """The heights of the ensemble's curve over many values."""
    own = parts[parts.size - 1]
    for i in range(values.size):
        out[i] = on_curve(corners, own.corner, own.corner_end, values[i])


def scored(walk: Laid, weights: Floats, vector: Floats) -> Floats:
    """float64[members + 2]: each member's calibrated probability for one row (float64[columns], C order), their weighted sum, and the score that
    the ensemble's curve makes of it. Microseconds."""
    out: Floats = np.empty(len(walk.parts) + 1)
    _score(*walk, weights, vector, out)
    return out


def scored_all(walk: Laid, weights: Floats, rows: Floats) -> Floats:
    """float64[rows, members + 2]: `scored` of each row of a matrix."""
    out: Floats = np.empty((len(rows), len(walk.parts) + 1))
    for lot in lots_of(len(rows)):
        _score_all(*walk, weights, np.ascontiguousarray(rows[lot], dtype=np.float64), out[lot])
    return out


def lots_of(rows: int) -> list[slice]:
    """So many rows in lots."""
    return [slice(begin, min(begin + LOT_ROWS, rows)) for begin in range(0, rows, LOT_ROWS)]


def probabilities_of_all(forest: Forest, rows: Floats) -> Floats:
    """float64[rows, members]: each member's calibrated probability for each row of a matrix."""
    members = len(forest.baselines)
    return scored_all(laid(forest), np.zeros(members), rows)[:, :members]


def calibrated(walk: Laid, totals: Floats) -> Floats:
    """float64[rows]: the scores (0 to 1) that the ensemble's curve makes of weighted sums."""
    out: Floats = np.empty(len(totals))
    _calibrate(walk.parts, walk.corners, np.ascontiguousarray(totals, dtype=np.float64), out)
    return out
