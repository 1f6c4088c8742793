"""Vectors of millions of past transactions at once, bit for bit what serving gave (or would have given) for that arrival order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from features import kernel
from features.catalogue import Catalogue
from features.columns import TransactionColumns
from features.fact import AT_MS, DECLINED, FACTS, FRAUD, KIND
from features.layout import LogLayout
from features.tally import LABEL_FACTS, LABELLED, Given, Reads, told_all

Array = np.ndarray[Any, np.dtype[Any]]


def declined_identities(identities: Array) -> Array:
    """`fact.derived_identity(identity, DECLINED)` of each; int64 in, int64 out."""
    given = identities.view(np.uint64)
    z = given + np.uint64((DECLINED * 0x9E3779B97F4A7C15) & (1 << 64) - 1)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = (z ^ (z >> np.uint64(31))) & np.uint64(0xFFFFFFFF)
    z[z == 0] = 1
    return (given & np.uint64(0xFFFFFFFF00000000) | z).view(np.int64)


class Threaded(Protocol):
    """One entity kind's logs, all in one: rows grouped by entity, in the order of their positions, each once.

    `source[row]` is the transaction of the row, or -1 - transaction for its decline row; `first[transaction]` the row of its first
    occurrence, -1: it has none; `begins[transaction]` the first row of its log.
    """

    layout: LogLayout
    source: Array
    first: Array
    begins: Array

    def looked_into(self, number: int, tokens: Array) -> tuple[Array, Array]:
        """`first` and `begins` of transactions that name another's log (0: none); `number` is that of the entity among the logs."""


class _Log:
    """Logs in arrival order: what a history without positions says."""

    def __init__(self, layout: LogLayout, tokens: Array, facts: Array, declined: Array, decline_rows: Array) -> None:
        n = len(facts)
        self.layout, self.tokens = layout, tokens
        self.order = np.flatnonzero(tokens)
        self.order = self.order[np.argsort(tokens[self.order], kind="stable")]
        source = np.empty(len(self.order) + int(declined[self.order].sum()), np.int64)
        self.first, self.begins = np.full(n, -1, np.int64), np.zeros(n, np.int64)
        rows = kernel.threaded(self.order, tokens, np.ascontiguousarray(facts[:, 0]), declined, decline_rows, source, self.first, self.begins)
        self.source = source[:rows]

    def looked_into(self, number: int, tokens: Array) -> tuple[Array, Array]:
        """What each transaction that names another's log (0: none) finds there: `first` and `begins`, as if its row were the next.

        Its past is all that had arrived there before it; in its own log, what came before its first occurrence.
        """
        first, begins = np.full(len(tokens), -1, np.int64), np.zeros(len(tokens), np.int64)
        asks = np.flatnonzero(tokens)
        arrived = np.where(self.source < 0, -1 - self.source, self.source)
        groups, group_of_row = np.unique(self.tokens[arrived], return_inverse=True)
        group = np.searchsorted(groups, tokens[asks])
        known = group < len(groups)
        known[known] = groups[group[known]] == tokens[asks][known]
        first[asks[~known]] = 0
        asks, group, n = asks[known], group[known], len(tokens)
        starts = np.searchsorted(group_of_row, np.arange(len(groups)))
        first[asks] = np.searchsorted(group_of_row * n + arrived, group * n + asks)
        begins[asks] = starts[group]
        own = asks[self.tokens[asks] == tokens[asks]]
        first[own] = self.first[own]
        return first, begins


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


def _words(log: Threaded) -> int:
    """What its columns take, with the newest event time beside them."""
    return len(log.layout.columns) * len(log.source)


class _Logs:
    """All logs of a backfill, their columns one after the other; a log that two entities read is there once."""

    def __init__(self, catalogue: Catalogue, columns: TransactionColumns, thread: Callable[[LogLayout, Array], Threaded]) -> None:
        facts = columns.fact_matrix
        logs: dict[str, Threaded] = {}
        first, begins, words = [], [], 0
        bases, strides, none = [], [], np.zeros(columns.n, np.int64)
        at: dict[str, int] = {}
        for number, (entity, layout) in enumerate(zip(catalogue.log_entities, catalogue.log_layouts, strict=True)):
            tokens = np.ascontiguousarray(columns.tokens.get(entity.name, none)).view(np.int64)
            if layout.kind not in logs:
                owners = np.ascontiguousarray(columns.tokens.get(layout.kind, none)).view(np.int64)
                logs[layout.kind], at[layout.kind] = thread(layout, owners), words
                words += _words(logs[layout.kind])
            log = logs[layout.kind]
            seen = log.looked_into(number, tokens) if entity.log_of else (log.first, log.begins)
            first.append(seen[0])
            begins.append(seen[1])
            bases.append(at[layout.kind])
            strides.append(len(log.source))
        self.first, self.begins = (np.array(places, np.int64).reshape(len(bases), columns.n) for places in (first, begins))
        self.bases, self.strides = np.array(bases, np.int64), np.array(strides, np.int64)
        self.flat = np.empty(words, np.int64)
        for number, layout in enumerate(catalogue.log_layouts):
            log = logs[layout.kind]
            if at.pop(layout.kind, None) is not None:
                kernel.columns_into(catalogue.program, number, log.source, facts, DECLINED, log.begins, self.flat, self.bases[number])


def backfill(catalogue: Catalogue, columns: TransactionColumns, declined: Array | None = None) -> Array:
    """float64[asked, features]: the vector of each transaction that asks for one, in the catalogue's order, NaN is missing.

    The past of a transaction is what came before its own first occurrence in `columns`; in a log that it only looks into, what
    came there before itself. `declined` (bool[n]) says which were declined or blocked: the row of that fact follows the
    transaction at once, as if nothing had come between.
    """
    refused = np.zeros(columns.n, np.bool_) if declined is None else np.ascontiguousarray(declined, np.bool_)
    facts = columns.fact_matrix
    decline_rows = declined_identities(np.ascontiguousarray(facts[:, 0]))
    told = tallied(catalogue, columns, refused)
    return looked(catalogue, columns, lambda layout, tokens: _Log(layout, tokens, facts, refused, decline_rows), told)


def looked(catalogue: Catalogue, columns: TransactionColumns, thread: Callable[[LogLayout, Array], Threaded], told: Array) -> Array:
    """float64[asked, features]: the vectors over logs that `thread` makes (of a layout and the entity of each row) and told numbers."""
    logs, facts = _Logs(catalogue, columns, thread), columns.fact_matrix
    walk = np.argsort(logs.first[np.argmax(logs.strides)], kind="stable") if len(logs.strides) else np.arange(columns.n)
    places = np.cumsum(columns.asks) - 1
    out = np.empty((int(columns.asks.sum()), len(catalogue.rows)))
    kernel.look_at_all(
        catalogue.program,
        walk[columns.asks[walk]],
        facts,
        np.hstack((columns.measure_matrix, told)),
        _known(catalogue, columns),
        logs.first,
        logs.begins,
        logs.flat,
        logs.bases,
        logs.strides,
        places,
        out,
    )
    return out
