"""Why members say what they say: how far each column moved a score, exactly (Shapley values) wherever time allows, compiled."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.trees import Floats, Forest, Ints, Laid, laid, meaning, native, on_curve, term_of

BUILT_ON = {"models/trees.py": "e079e9553c41"}
"""The files of which compiled code is a part of this one's, as they are: numba keeps that until this very file changes. A test says what to write."""
EDGE = np.dtype([("zero", "<f8"), ("column", "<i4"), ("parent", "<i4"), ("above", "<i4"), ("here", "<i4")])
"""What leads to a node: the column that its parent splits on, the nearest node above that is led to by the same column (itself: there is
none), and the fraction of the training rows that go on at all splits on that column so far. Nodes are counted from the tree's root."""
POINT = np.dtype([("at", "<f8"), ("rest", "<f8"), ("weight", "<f8")])
"""A point of a quadrature between 0 and 1, what is left of 1, and its weight."""
BLOCK = 6
"""So many points are worked on at a time. They are exact for paths of twice as many different columns: those of most boosted trees."""
EXACT_MAX = 200_000
"""Points times nodes of exact attribution for one payment, over all members; each takes 2 to 3 ns. Members beyond it are attributed by their
paths."""
LEAST_ZERO = 1e-200


class Explained(NamedTuple):
    """What follows from a forest, and is needed to say why it says something: made once for each."""

    walk: Laid
    expected: Floats  # by node: the mean of the leaves below it, weighted by the training rows in them
    base: Floats  # by member: the raw sum that it expects before it knows anything
    exact: Ints  # by member: 1 if its trees are attributed exactly, 0 if by their paths
    edges: npt.NDArray[np.void]  # EDGE, by node
    blocks: Ints  # by tree: how many blocks of points its longest path takes
    points: npt.NDArray[np.void]  # POINT: those of one block, of two, of three ...
    ends: Ints  # by tree: behind its last node
    largest: int  # nodes of the largest tree


@native
def _measure(nodes, cover, roots, ends, expected, edges, longest):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """By node the expected value and the edge that leads to it; by tree the most different columns on a path."""
    for i in range(nodes.size - 1, -1, -1):  # children lie behind their parents
        if nodes[i].feature < 0:
            expected[i] = nodes[i].threshold
        else:
            left, right = i + 1, abs(nodes[i].right)
            expected[i] = (cover[left] * expected[left] + cover[right] * expected[right]) / (cover[left] + cover[right])
    columns = np.zeros(nodes.size, np.int64)
    for tree in range(roots.size):
        root = np.int64(roots[tree])
        edges[root].column, edges[root].zero = -1, 1.0
        for i in range(root, ends[tree]):
            column = nodes[i].feature
            longest[tree] = max(longest[tree], columns[i])
            if column < 0:
                continue
            above = i
            while above > root and edges[above].column != column:
                above = root + edges[above].parent
            left, right = i + 1, np.int64(abs(nodes[i].right))
            for child in (left, right):
                edge, share = edges[child], cover[child] / (cover[left] + cover[right])
                edge.column, edge.parent, edge.here = column, i - root, child - root
                edge.above = above - root if above > root else edge.here
                edge.zero = max(share * edges[above].zero if above > root else share, LEAST_ZERO)
                columns[child] = columns[i] + (above == root)


def explained(forest: Forest, steps_max: float = EXACT_MAX) -> Explained:
    """What `attributions` needs to know of a forest. The cheapest members are attributed exactly, as long as `steps_max` lasts."""
    nodes, roots = forest.nodes, forest.roots
    expected, edges, longest = np.empty(len(nodes)), np.zeros(len(nodes), EDGE), np.zeros(len(roots), np.int64)
    ends = np.append(roots, np.int32(len(nodes)))[1:].astype(np.int32)
    _measure(nodes, forest.cover, roots, ends, expected, edges, longest)
    blocks = np.maximum(-(-longest // (2 * BLOCK)), 1)
    parts = [slice(a, b) for a, b in pairwise(forest.starts)]
    base = forest.baselines + np.array([expected[roots[part]].sum() for part in parts])
    steps = blocks * BLOCK * (ends - roots)
    cost = np.array([steps[part].sum() for part in parts])
    order = np.argsort(cost, kind="stable")
    exact = np.zeros(len(cost), dtype=np.int32)
    exact[order[np.cumsum(cost[order]) <= steps_max]] = 1
    used = [blocks[part].max(initial=1) for part, is_exact in zip(parts, exact, strict=True) if is_exact]
    points = _points(int(max(used, default=1)))
    return Explained(laid(forest), expected, base, exact, edges, blocks.astype(np.int32), points, ends, int((ends - roots).max(initial=0)))


def _points(blocks: int) -> npt.NDArray[np.void]:
    """Gauss and Legendre's points: those of one block, then those of two together, and so on."""
    found = [np.polynomial.legendre.leggauss(BLOCK * count) for count in range(1, blocks + 1)]
    points = np.zeros(sum(len(x) for x, _ in found), POINT)
    points["at"] = np.concatenate([(1 + x) / 2 for x, _ in found])
    points["rest"] = np.concatenate([(1 - x) / 2 for x, _ in found])
    points["weight"] = np.concatenate([w / 2 for _, w in found])
    return points


@native
def _goes_left(node, x):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Whether row `x` goes left at an inner node."""
    value = x[np.uint64(node.feature)]
    return (value <= node.threshold) | (np.isnan(value) & (node.right > 0))


@native
def _along(nodes, expected, i, x, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Adds to `out[column]` the change of expectation that each split on the column made on the way of row `x` (A. Saabas 2014)."""
    while nodes[i].feature >= 0:
        child = i + 1 if _goes_left(nodes[i], x) else np.int64(abs(nodes[i].right))
        out[nodes[i].feature] += expected[child] - expected[i]
        i = child


@native
def _meet(nodes, edges, root, end, x, met):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """By node 1 if row `x` meets all conditions on the last column on the way to it, else 0."""
    for i in range(root, end):
        node, here = nodes[i], i - root
        if here > 0:
            met[here] *= met[np.uint64(edges[i].above)]
        if node.feature >= 0:
            left = 1.0 if _goes_left(node, x) else 0.0
            met[here + 1], met[abs(node.right) - root] = left, 1.0 - left


@native
def _shapley(nodes, edges, root, end, points, at, met, product, inverse, below, out):  # type: ignore[no-untyped-def]  # compiled
    """Adds what BLOCK points give of one tree's exact path-dependent Shapley values to `out[column]`.

    A leaf of value v, on a path on which column k lets z_k of the training rows through and o_k (0 or 1) of the row, gives column j
    v (o_j - z_j) times the sum over the subsets of the other columns by Shapley's weights (S. M. Lundberg et al. 2020). That sum is the
    integral from 0 to 1 of the product of o_k t + z_k (1 - t) over the others: a polynomial, for which a quadrature is exact. So products go
    down the tree and sums of leaves come up, each edge once (P. Yu, C. Xu, A. Bifet, J. Read 2022, "Linear TreeSHAP").
    """
    for k in range(BLOCK):
        product[0, k], below[0, k] = 1.0, 0.0
    for i in range(root + 1, end):
        edge = edges[i]
        here, parent, above, node = np.uint64(edge.here), np.uint64(edge.parent), np.uint64(edge.above), nodes[i]
        zero, one = edge.zero, met[here]
        for k in range(BLOCK):
            point = points[at + np.uint64(k)]
            factor = zero * point.rest + one * point.at
            product[here, k] = product[parent, k] * factor
            inverse[here, k] = 1.0 / factor
        if above != here:
            for k in range(BLOCK):
                product[here, k] *= inverse[above, k]
        value = node.threshold if node.feature < 0 else 0.0
        for k in range(BLOCK):
            below[here, k] = product[here, k] * points[at + np.uint64(k)].weight * value
    for i in range(end - 1, root, -1):
        edge = edges[i]
        here, parent, above = np.uint64(edge.here), np.uint64(edge.parent), np.uint64(edge.above)
        moved = 0.0
        for k in range(BLOCK):
            below[parent, k] += below[here, k]
            moved += below[here, k] * inverse[here, k]
        moved *= met[here] - edge.zero
        if above != here:  # what these leaves would give by the condition above alone
            other = 0.0
            for k in range(BLOCK):
                other += below[here, k] * inverse[above, k]
            moved -= other * (met[above] - edges[root + edge.above].zero)
        out[edge.column] += moved


@native
def _attribute(nodes, roots, starts, parts, terms, expected, exact, edges, blocks, points, ends, largest, x, out):  # type: ignore[no-untyped-def]  # compiled
    """Each member's attribution of its raw sum to columns, into `out[member, column]`."""
    met = np.empty(largest)
    product, inverse, below = np.empty((largest, BLOCK)), np.empty((largest, BLOCK)), np.empty((largest, BLOCK))
    for member in range(exact.size):
        mine = out[member]
        for tree in range(starts[member], starts[member + 1]):
            root, end, count = np.int64(roots[tree]), np.int64(ends[tree]), np.int64(blocks[tree])
            if not exact[member]:
                _along(nodes, expected, root, x, mine)
                continue
            _meet(nodes, edges, root, end, x, met)
            for block in range(count):
                at = np.uint64(BLOCK * (count * (count - 1) // 2 + block))
                _shapley(nodes, edges, root, end, points, at, met, product, inverse, below, mine)
        for term in range(parts[member].term, parts[member].term_end):
            mine[terms[term].column] += term_of(terms[term], x)


@native
def _slope(rise, run):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Rise over run; 0 where there is no run."""
    return rise / run if run != 0.0 else 0.0


@native
def _contribute(parts, corners, base, weights, moved, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """From each member's attribution of its raw sum (`moved`) to that of the score, into `out[column]`."""
    before, after = 0.0, 0.0
    for member in range(base.size):
        if weights[member] == 0.0:  # a member that is not heard may be broken
            continue
        run = moved[member].sum()
        expected, said = meaning(parts[member], corners, base[member]), meaning(parts[member], corners, base[member] + run)
        before += weights[member] * expected
        after += weights[member] * said
        out += weights[member] * _slope(said - expected, run) * moved[member]
    own = parts[base.size]
    rise = on_curve(corners, own.corner, own.corner_end, after) - on_curve(corners, own.corner, own.corner_end, before)
    out *= _slope(rise, after - before)


def attributions(forest: Forest, known: Explained, vector: Floats) -> Floats:
    """float64[members, columns]: how far each column moved each member's raw sum (log-odds, shares, -depth) from what it expects.

    Trees: exact path-dependent Shapley values where `known.exact`, else changes of expectation along the path. Each member's row adds up to
    its raw sum less `known.base`.
    """
    out: Floats = np.zeros((len(forest.baselines), len(vector)))
    k = known
    own = (k.expected, k.exact, k.edges, k.blocks, k.points, k.ends, k.largest)
    _attribute(forest.nodes, forest.roots, forest.starts, k.walk.parts, k.walk.terms, *own, vector, out)
    return out


def contributions(forest: Forest, known: Explained, weights: Floats, vector: Floats) -> Floats:
    """float64[columns]: how far each column moved the score (0 to 1) from what the members expect; they add up to the whole way.

    A member's attribution is of its raw sum; link and calibration stretch it by as much as they stretch the sum itself.
    """
    by_column: Floats = np.zeros(len(vector))
    _contribute(known.walk.parts, known.walk.corners, known.base, weights, attributions(forest, known, vector), by_column)
    return by_column


@native
def _mean(parts, corners, raws, out):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    for member in range(raws.size):
        out[member] = meaning(parts[member], corners, raws[member])


def meant(walk: Laid, raws: Floats) -> Floats:
    """float64[members]: the calibrated probability that each member's raw sum means."""
    out: Floats = np.empty(len(raws))
    _mean(walk.parts, walk.corners, raws, out)
    return out
