"""Vectors of millions of past transactions at once, bit for bit what serving gave (or would have given) for that arrival order."""

from __future__ import annotations

from typing import Any

import numpy as np

from features import kernel
from features.catalogue import Catalogue
from features.columns import TransactionColumns
from features.fact import AT_MS, DECLINED, FACTS, FRAUD, KIND
from features.layout import LogLayout
from features.tally import LABEL_FACTS, LABELLED, Given, Reads, told_all

Array = np.ndarray[Any, np.dtype[Any]]


def declined_hashes(hashes: Array) -> Array:
    """`fact.derived_hash(hash, DECLINED)` of each hash; int64 in, int64 out."""
    z = hashes.view(np.uint64) + np.uint64((DECLINED * 0x9E3779B97F4A7C15) & (1 << 64) - 1)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    z[z == 0] = 1
    return z.view(np.int64)


class _Log:
    """One entity kind's logs, all in one: rows grouped by entity, in arrival order, each once."""

    def __init__(self, layout: LogLayout, tokens: Array, facts: Array, declined: Array, decline_rows: Array) -> None:
        n = len(facts)
        self.layout = layout
        order = np.flatnonzero(tokens)
        order = order[np.argsort(tokens[order], kind="stable")]
        source = np.empty(len(order) + int(declined[order].sum()), np.int64)
        self.first, self.begins = np.full(n, -1, np.int64), np.zeros(n, np.int64)
        rows = kernel.threaded(order, tokens, np.ascontiguousarray(facts[:, 0]), declined, decline_rows, source, self.first, self.begins)
        self.source = source[:rows]

    @property
    def words(self) -> int:
        """What its columns take, with the newest event time beside them."""
        return (len(self.layout.columns) + 1) * len(self.source)


def _known(catalogue: Catalogue, columns: TransactionColumns) -> Array:
    """float64[n, profile columns], in the plan's order."""
    names = [f"{profile.kind}.{column}" for profile in catalogue.profile_layouts for column in profile.columns]
    known = np.full((columns.n, len(names)), np.nan)
    for number, name in enumerate(names):
        if name in columns.known:
            known[:, number] = columns.known[name]
    return known


def tallied(catalogue: Catalogue, columns: TransactionColumns, declined: Array) -> Array:
    """float64[n, told numbers]: what the tallies told each transaction, if each was told to them at once after it was decided.

    A label counts from the first transaction on that arrives when it has been learned. A transaction that comes again counts once.
    """
    plan, n = catalogue.tally_plan, columns.n
    out = np.full((n, len(plan.folds)), np.nan)
    if not plan.folds:
        return out
    facts, none = columns.fact_matrix, np.zeros(n, np.uint64)
    _, first, place = np.unique(facts[:, 0], return_index=True, return_inverse=True)
    refused = first[declined[first]]
    learned = np.zeros(n, np.int64) if columns.learned is None else columns.learned
    known = first[learned[first] > 0]
    known = known[np.argsort(learned[known], kind="stable")]
    rows = np.zeros((len(first) + len(refused) + len(known), len(FACTS) + 1), np.int64)
    rows[: len(first), :-1], rows[len(first) : len(first) + len(refused), :-1] = facts[first], facts[refused]
    rows[len(first) : len(first) + len(refused), KIND] = DECLINED
    labels = rows[len(first) + len(refused) :]
    for fact in LABEL_FACTS:
        labels[:, fact] = facts[known, fact]
    labels[:, KIND], labels[:, -1] = FRAUD, learned[known]
    sources = np.zeros(len(rows), np.int64)
    sources[len(first) + len(refused) :] = 1
    offsets = np.concatenate((first, refused, np.arange(len(known))))
    seen = np.searchsorted(learned[known], np.maximum.accumulate(facts[:, AT_MS]), side="right")
    positions = np.column_stack((first[place], seen[first[place]]))
    for number, layout in enumerate(catalogue.tally_layouts):
        tokens = columns.tokens.get(layout.kind, none)
        taught = tokens[known] if layout.kind in LABELLED else np.zeros(len(known), np.uint64)
        given = Given(np.concatenate((tokens[first], tokens[refused], taught)), sources, offsets, rows)
        told_all(plan, number, given, Reads(tokens, positions, facts[:, AT_MS]), out)
    return out


def backfill(catalogue: Catalogue, columns: TransactionColumns, declined: Array | None = None) -> Array:
    """float64[n, features]: the vector of each transaction, in the catalogue's order, NaN is missing.

    The past of a transaction is what came before its own first occurrence in `columns`. `declined` (bool[n]) says which were
    declined or blocked: the row of that fact follows the transaction at once, as if nothing had come between.
    """
    refused = np.zeros(columns.n, np.bool_) if declined is None else np.ascontiguousarray(declined, np.bool_)
    facts, none = columns.fact_matrix, np.zeros(columns.n, np.int64)
    decline_rows = declined_hashes(np.ascontiguousarray(facts[:, 0]))
    logs = []
    for layout in catalogue.log_layouts:
        tokens = np.ascontiguousarray(columns.tokens.get(layout.kind, none)).view(np.int64)
        logs.append(_Log(layout, tokens, facts, refused, decline_rows))
    bases = np.concatenate(([0], np.cumsum([log.words for log in logs])))
    flat = np.empty(bases[-1], np.int64)
    for number, log in enumerate(logs):
        kernel.columns_into(catalogue.program, number, log.source, facts, decline_rows, DECLINED, log.begins, flat, bases[number])
    out = np.empty((columns.n, len(catalogue.rows)))
    first, begins = np.array([log.first for log in logs]), np.array([log.begins for log in logs])
    strides = np.array([len(log.source) for log in logs], np.int64)
    known = _known(catalogue, columns)
    measures = np.hstack((columns.measure_matrix, tallied(catalogue, columns, refused)))
    walk = np.argsort(first[np.argmax(strides)], kind="stable") if len(logs) else np.arange(columns.n)
    kernel.look_at_all(catalogue.program, walk, facts, measures, known, first, begins, flat, bases, strides, out)
    return out
