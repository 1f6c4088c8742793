"""Vectors of decisions once more, from what they recorded: their positions in logs, heads of tallies, and the profile values they saw.

Backfill orders a history by arrival; here the positions give the order, whoever wrote and however many at once. The kernel is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from features import kernel
from features.backfill import declined_identities, known_columns
from features.catalogue import Catalogue
from features.columns import TransactionColumns
from features.fact import AT_MS, DECLINED, FACTS, HASH, KIND
from features.layout import LogLayout
from features.tally import LABELLED, OFFSET_BYTES, SOURCES, Given, Reads, Verdicts, learned_in_turn, rows_matrix, told_all
from schemas.identity import hash64
from schemas.label import Label
from schemas.topics import DECISIONS

Array = np.ndarray[Any, np.dtype[Any]]


class Why(IntEnum):
    """Why a vector cannot be compared; the first that holds counts."""

    COMPARABLE = 0
    CATALOGUE = 1
    UNREAD = 2
    GAP = 3
    BEGAN_AGAIN = 4
    BEYOND = 5
    DROPPED = 6
    WENT_BACK = 7
    PROFILE = 8


WHY = {
    Why.CATALOGUE: "another catalogue decided it",
    Why.UNREAD: "a memory did not answer when it was decided",
    Why.GAP: "a log has a row before it that no record speaks of",
    Why.BEGAN_AGAIN: "a log had expired and begun again, or two releases wrote one each",
    Why.BEYOND: "a tally had taken what came after this reading of the topics began",
    Why.DROPPED: "a tally had taken what the topics have dropped",
    Why.WENT_BACK: "a tally had gone back in time",
    Why.PROFILE: "a profile value that it saw is no longer in the topics",
}


@dataclass(frozen=True, eq=False)
class Recorded:
    """n records of a history, in any order: decided transactions (they ask for a vector) and account events (they leave rows).

    `positions` and `declined`: int64[n, logs], -1: no row (of a log that is only looked into: not looked at). `heads`: int64[n, tallies,
    sources]. `sources`, `offsets`: int64[n], where the decision lies in the log (events: -1). `refused`: bool[n], declined or blocked.
    """

    columns: TransactionColumns
    positions: Array
    declined: Array
    heads: Array
    sources: Array
    offsets: Array
    refused: Array


def heads_in(positions: Sequence[bytes], tallies: int) -> Array:
    """int64[n, tallies, sources]: the offsets in `Decision.tally_positions`. None may be of another length."""
    raw = np.frombuffer(b"".join(positions), np.uint8).reshape(len(positions), tallies, SOURCES, OFFSET_BYTES)
    heads: Array = (raw.astype(np.int64) << np.arange(0, 8 * OFFSET_BYTES, 8)).sum(axis=-1)
    return heads


class _Placed:
    """Logs in the order of given positions. Of each, `whole` rows follow each other from position 0 on; of what comes then nothing is known."""

    def __init__(self, layout: LogLayout, number: int, tokens: Array, recorded: Recorded, why: Array) -> None:
        self.layout, self._positions, self._why = layout, recorded.positions, why
        places, declined = recorded.positions[:, number], recorded.declined[:, number]
        own, refused = np.flatnonzero((tokens != 0) & (places >= 0)), np.flatnonzero((tokens != 0) & (declined >= 0))
        source, place = np.concatenate((own, -1 - refused)), np.concatenate((places[own], declined[refused]))
        owner = np.concatenate((tokens[own], tokens[refused]))
        order = np.lexsort((place, owner))
        self.source, place = source[order], place[order]
        self._owners, self.starts, sizes = np.unique(owner[order], return_index=True, return_counts=True)
        group = np.repeat(np.arange(len(sizes)), sizes)
        self.group = group
        rank = np.arange(len(group)) - self.starts[group]
        wrong = np.flatnonzero(place != rank)
        self._whole, self._again = sizes.copy(), np.zeros(len(sizes), np.bool_)
        wrong = wrong[np.unique(group[wrong], return_index=True)[1]]
        self._whole[group[wrong]] = np.minimum(place[wrong], rank[wrong])
        self._again[group[wrong]] = place[wrong] < rank[wrong]
        self.first, self.begins = self.looked_into(number, tokens)

    def looked_into(self, number: int, tokens: Array) -> tuple[Array, Array]:
        """`first` and `begins` by the positions of that entity. Who stands behind a gap gets no log, and `why` says so."""
        n, positions = len(tokens), self._positions[:, number]
        first, begins = np.full(n, -1, np.int64), np.zeros(n, np.int64)
        asks = np.flatnonzero((tokens != 0) & (positions >= 0))
        group = np.searchsorted(self._owners, tokens[asks])
        known = group < len(self._owners)
        known[known] = self._owners[group[known]] == tokens[asks][known]
        group[~known] = 0
        whole = np.zeros(len(asks), np.int64)
        whole[known], begins[asks[known]] = self._whole[group[known]], self.starts[group[known]]
        behind = positions[asks] > whole
        again = np.zeros(len(asks), np.bool_)
        again[known] = self._again[group[known]]
        _because(self._why, asks[behind & again], Why.BEGAN_AGAIN)
        _because(self._why, asks[behind & ~again], Why.GAP)
        _because(self._why, np.flatnonzero((tokens != 0) & (positions < 0)), Why.UNREAD)
        asks = asks[~behind]
        first[asks] = begins[asks] + positions[asks]
        return first, begins


def _because(why: Array, numbers: Array, reason: Why) -> None:
    """Notes a reason for those that have none yet."""
    why[numbers[why[numbers] == Why.COMPARABLE]] = reason


class Taught(NamedTuple):
    """Labels' rows: int64[m, facts + 1], the source and offset of each, and by entity kind the hash64s of whom it teaches (0: nobody of it)."""

    rows: Array
    sources: Array
    offsets: Array
    tokens: dict[str, Array]


def taught(labels: Sequence[tuple[int, int, Label]]) -> Taught:
    """The rows that labels give, given with partition and offset: none, if one says nothing new of a transaction."""
    verdicts: Verdicts = {}
    in_turn = sorted(labels, key=lambda each: each[:2])
    given = [(p, offset, lesson) for p, offset, label in in_turn for lesson in learned_in_turn(verdicts, label, p, offset)]
    return Taught(
        rows_matrix([lesson.row for *_, lesson in given]),
        np.array([DECISIONS.partitions + partition for partition, *_ in given], np.int64),
        np.array([offset for _, offset, _ in given], np.int64),
        {kind: np.array([hash64(lesson.token) if lesson.kind == kind else 0 for *_, lesson in given], np.uint64) for kind in LABELLED},
    )


class Ends(NamedTuple):
    """What of the topics was read: for each source of tallies the first offset that is still there, and the one after the last."""

    lows: Array
    highs: Array


def _told(catalogue: Catalogue, recorded: Recorded, labels: Taught, ends: Ends, why: Array) -> Array:
    """float64[n, told numbers]: what each read of a tally was told, by what it had taken."""
    plan, columns = catalogue.tally_plan, recorded.columns
    out = np.full((columns.n, len(plan.folds)), np.nan)
    decided = np.flatnonzero(recorded.offsets >= 0)
    refused = decided[recorded.refused[decided]]
    rows = np.zeros((len(decided) + len(refused), len(FACTS) + 1), np.int64)
    rows[: len(decided), :-1], rows[len(decided) :, :-1] = columns.fact_matrix[decided], columns.fact_matrix[refused]
    rows[len(decided) :, HASH], rows[len(decided) :, KIND] = declined_identities(rows[len(decided) :, HASH]), DECLINED
    gave = np.concatenate((decided, refused))
    rows, sources = np.vstack((rows, labels.rows)), np.concatenate((recorded.sources[gave], labels.sources))
    offsets = np.concatenate((recorded.offsets[gave], labels.offsets))
    for number, layout in enumerate(catalogue.tally_layouts):
        tokens, heads = columns.tokens[layout.kind], recorded.heads[:, number]
        asks = tokens != 0
        _because(why, np.flatnonzero(asks & (heads > ends.highs).any(axis=1)), Why.BEYOND)
        _because(why, np.flatnonzero(asks & ((heads > 0) & (ends.lows > 0)).any(axis=1)), Why.DROPPED)
        _because(why, _not_growing(tokens, heads), Why.WENT_BACK)
        learned = labels.tokens.get(layout.kind, np.zeros(len(labels.rows), np.uint64))
        given = Given(np.concatenate((tokens[gave], learned)), sources, offsets, rows)
        told_all(plan, number, given, Reads(tokens, heads, columns.fact_matrix[:, AT_MS]), out)
    return out


def _not_growing(tokens: Array, heads: Array) -> Array:
    """The reads of tallies of which one read less of a source than another that read less in all."""
    asks = np.flatnonzero(tokens)
    asks = asks[np.lexsort((heads[asks].sum(axis=1), tokens[asks]))]
    same = tokens[asks[1:]] == tokens[asks[:-1]]
    fell = same & (heads[asks[1:]] < heads[asks[:-1]]).any(axis=1)
    return asks[np.isin(tokens[asks], tokens[asks[1:][fell]])]


class _Logs:
    """All logs as the kernel reads them: a segment for each entity's log; a log that two entities read is there once."""

    def __init__(self, catalogue: Catalogue, recorded: Recorded, why: Array) -> None:
        columns, none = recorded.columns, np.zeros(recorded.columns.n, np.int64)
        logs: dict[str, _Placed] = {}
        flats: list[Array] = []
        segments: list[Array] = []
        first_segment: dict[str, int] = {}
        words = count = 0
        self.places = np.full((len(catalogue.logs), columns.n), kernel.NOBODY, np.int64)
        self.positions = np.zeros_like(self.places)
        for number, (entity, layout) in enumerate(zip(catalogue.log_entities, catalogue.log_layouts, strict=True)):
            if layout.kind not in logs:
                owners = np.ascontiguousarray(columns.tokens.get(layout.kind, none)).view(np.int64)
                log = logs[layout.kind] = _Placed(layout, catalogue.logs.index(layout.kind), owners, recorded, why)
                flats.append(_columns(log, columns.fact_matrix))
                segments.append(_segments(log, words))
                first_segment[layout.kind] = count
                words, count = words + len(flats[-1]), count + len(log.starts)
            log = logs[layout.kind]
            tokens = np.ascontiguousarray(columns.tokens.get(entity.name, none)).view(np.int64)
            first, begins = log.looked_into(number, tokens) if entity.log_of else (log.first, log.begins)
            there = np.flatnonzero(first >= 0)
            self.positions[number, there] = first[there] - begins[there]
            self.places[number, there] = first_segment[layout.kind] + np.searchsorted(log.starts, begins[there])
            self.places[number, there[self.positions[number, there] == 0]] = kernel.EMPTY
        self.flat = np.concatenate(flats) if flats else np.zeros(0, np.int64)
        self.segments = np.concatenate(segments) if segments else np.zeros((0, 8), np.int64)


def _columns(log: _Placed, facts: Array) -> Array:
    """A log's columns one after the other (a row's identity is none of them), and the newest event time of each entity so far."""
    rows = facts[np.where(log.source < 0, -1 - log.source, log.source)]
    block = np.empty((len(log.layout.facts), len(rows)), np.int64)
    block[:-1] = rows[:, log.layout.facts[1:]].T
    block[kernel.KIND_COLUMN, log.source < 0] = DECLINED
    moments, ranks = np.unique(rows[:, AT_MS], return_inverse=True)
    lift = log.group * len(moments)  # each entity's times above those of the one before
    block[-1] = moments[np.maximum.accumulate(ranks + lift) - lift]
    return block.ravel()


def _segments(log: _Placed, base: int) -> Array:
    segments = np.zeros((len(log.starts), 8), np.int64)
    segments[:, kernel.S_AT], segments[:, kernel.S_ROOM] = base + log.starts, len(log.source)
    return segments


def recomputed(catalogue: Catalogue, recorded: Recorded, labels: Taught, ends: Ends, why: Array) -> Array:
    """float64[asked, features]: the vectors again. `why` (int8[n], of `Why`) gets the reasons why some say nothing."""
    columns = recorded.columns
    told = _told(catalogue, recorded, labels, ends, why)
    logs, outs = _Logs(catalogue, recorded, why), np.cumsum(columns.asks) - 1
    measures, known = np.hstack((columns.measure_matrix, told)), known_columns(catalogue, columns)
    out = np.empty((int(columns.asks.sum()), len(catalogue.rows)))
    walk = np.flatnonzero(columns.asks)
    kernel.look_on(catalogue.program, walk, columns.fact_matrix, measures, known, logs.places, logs.positions, logs.segments, logs.flat, outs, out)
    return out
