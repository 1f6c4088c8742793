"""Tallies: the memory of entities that are too busy for a log (merchant, terminal, IP, BIN, country).

A tally holds sums by slice and sketches by bucket instead of rows. A window of length W is made of 60 slices of W/60: it ends with the
slice that the transaction is in and so reaches back more than 59 and at most 60 slices. A late transaction meets the slices of its own
time, for as long as they are kept: `LATE` slices longer than the window. Sums are exact to the slice; different values are counted by
linear counting over 256 buckets: standard error below 7 % up to 500 different values (Whang et al. 1990, equation 2.4), and never
more than `BUCKETS * ln(BUCKETS)`, 1420, however many there are. A bucket knows the slice in which it was last hit and no other: a late
transaction is not told of the values that came again in a slice after its own, which can be all of them.

A tally is fed by the `tally` app from the log alone: a decision counts once it is told, once, in the order of nothing: a tally's
bytes are a function of the *set* of rows it took. Its head says which: for each partition of `decisions` and then of `labels` the
offset after the last row taken. That is a read's position; the decision carries the heads of all tallies it was made on
(`Decision.tally_positions`), so that any read can be repeated.

A fraud counts once, however many labels tell of it, and no more once what was learned last says that it was none: `learned` says which rows a
label gives, from what the labels before it said.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from features import tally_kernel as kernel
from features.fact import (
    AT_MS,
    ENTITIES,
    FACT_NUMBER,
    FACTS,
    FRAUD,
    KIND,
    WITHDRAWN,
    Entity,
    declined_facts,
    derived_identity,
    facts_of,
    row_identity,
    short_hash,
)
from features.layout import content_hash
from features.row import Condition, Fold, sum_over_count
from schemas.decision import Action, Decision, Outcome, Reason, ReasonSource
from schemas.label import Label
from schemas.topics import DECISIONS, LABELS
from schemas.transaction import CREDITS, Transaction, TransactionKind

Array = np.ndarray[Any, np.dtype[Any]]
SLICES = kernel.SPAN
LATE = 4
"""Slices that are kept beyond a window, for transactions that come late."""
SOURCES = DECISIONS.partitions + LABELS.partitions
"""Where rows come from: the partitions of `decisions`, then those of `labels`."""
OFFSET_BYTES = 5
HEADER_BYTES = SOURCES * OFFSET_BYTES
"""A tally's first bytes: for each source the offset after the last row taken, little-endian."""
NOTHING = bytes(HEADER_BYTES)
_OPS = {"kinds": kernel.T_KINDS, "below": kernel.T_BELOW, "given": kernel.T_GIVEN}
_BEYOND = bytes(8)


class Ring(NamedTuple):
    """Sums by slice that share their slices: `slots` of them, each column (fact or -1 for a count, conditions) a sum."""

    slice_ms: int
    delay_ms: int
    columns: tuple[tuple[int, tuple[Condition, ...]], ...]

    @property
    def slots(self) -> int:
        """How many slices are kept: the window, the delay until a row matures, and what is left for the late."""
        return SLICES + LATE + (-(-self.delay_ms // self.slice_ms) + 1 if self.delay_ms else 0)


class Sketch(NamedTuple):
    """When each bucket of a column's values was last hit, by slice."""

    slice_ms: int
    fact: int
    where: tuple[Condition, ...]

    @property
    def slots(self) -> int:
        """How many slices back a bucket is kept."""
        return SLICES + LATE


def _slice_ms(fold: Fold) -> int:
    assert fold.window.ms % SLICES == 0, f"a tally's window of {fold.window.name} is not a multiple of {SLICES} ms"
    return fold.window.ms // SLICES


def asked_of(fold: Fold) -> tuple[Fold, ...]:
    """What a tally must tell for a fold: itself, or a mean's sum and count."""
    if fold.op != "mean":
        return (tellable(fold),)
    total, count = sum_over_count(fold).args
    assert isinstance(total, Fold)
    assert isinstance(count, Fold)
    return tellable(total), tellable(count)


def tellable(fold: Fold) -> Fold:
    """The fold, if a tally can say it: a count, a sum or a number of different values, of rows judged by themselves alone."""
    assert fold.op in ("count", "sum", "distinct"), f"{fold.entity.name} has a tally: it cannot say {fold.op}"
    for condition in fold.where:
        assert condition.op in _OPS, f"{fold.entity.name} has a tally: it cannot compare rows by {condition.op}"
    assert fold.op != "distinct" or fold.delay is None, f"{fold.entity.name} has a tally: its sketches know no delay"
    assert fold.op != "distinct" or not _counts_frauds(fold), f"{fold.entity.name} has a tally: its sketches cannot take a fraud back"
    return fold


def _counts_frauds(fold: Fold) -> bool:
    return all(condition.op != "kinds" or condition.value >> FRAUD & 1 for condition in fold.where)


@dataclass(frozen=True)
class TallyLayout:
    """The bytes of one entity kind's tally: what the rows that read it need."""

    entity: Entity
    folds: tuple[Fold, ...]

    @property
    def kind(self) -> str:
        """The entity's kind."""
        return self.entity.name

    @cached_property
    def rings(self) -> tuple[Ring, ...]:
        """One for each length of slice and delay, in the order in which rows ask for them."""
        columns: dict[tuple[int, int], dict[tuple[int, tuple[Condition, ...]], None]] = {}
        for fold in self.folds:
            if fold.op != "distinct":
                columns.setdefault((_slice_ms(fold), _delay_ms(fold)), {})[_column(fold)] = None
        return tuple(Ring(slice_ms, delay_ms, tuple(own)) for (slice_ms, delay_ms), own in columns.items())

    @cached_property
    def sketches(self) -> tuple[Sketch, ...]:
        """One for each column, length of slice and set of conditions."""
        wanted = [Sketch(_slice_ms(f), FACT_NUMBER[f.column], f.where) for f in self.folds if f.op == "distinct"]
        return tuple(dict.fromkeys(wanted))

    @cached_property
    def version(self) -> str:
        """Hash of all that decides the bytes: another layout is another key."""
        return content_hash(repr((self.rings, self.sketches, kernel.BUCKETS, LATE, SOURCES)), 8)

    @cached_property
    def keep_s(self) -> int:
        """How long a tally is kept after its last row, seconds: nothing in it can be seen after that."""
        spans = [ring.slots * ring.slice_ms for ring in self.rings] + [sketch.slots * sketch.slice_ms for sketch in self.sketches]
        return max(spans) // 1000 + 1

    @cached_property
    def bytes_max(self) -> int:
        """The most bytes that a tally takes."""
        rings = [2 + ring.slots * (4 + sum(_width(fact) for fact, _ in ring.columns)) for ring in self.rings]
        return HEADER_BYTES + sum(rings) + len(self.sketches) * (6 + 4 * kernel.BUCKETS)

    def key(self, token: str) -> str:
        """The Redis key of an entity's tally."""
        return f"tally:{self.version}:{self.kind}:{token}"


def _delay_ms(fold: Fold) -> int:
    return fold.delay.ms if fold.delay else 0


def _column(fold: Fold) -> tuple[int, tuple[Condition, ...]]:
    return (-1 if fold.op == "count" else FACT_NUMBER[fold.column], fold.where)


def _width(fact: int) -> int:
    """Bytes of a sum: eight where amounts are added, four where rows are counted."""
    return 4 if fact < 0 else 8


def tally_layouts(folds: Iterable[Fold], entities: Sequence[Entity]) -> tuple[TallyLayout, ...]:
    """The layout of each entity's tally, from the folds that ask for it."""
    asked = list(dict.fromkeys(each for fold in folds for each in asked_of(fold)))
    return tuple(TallyLayout(entity, tuple(fold for fold in asked if fold.entity == entity)) for entity in entities)


class TallyPlan(NamedTuple):
    """All tallies of a catalogue as the kernel reads them, and the fold that each of the told numbers is."""

    words: Array
    folds: tuple[Fold, ...]


def tally_plan(layouts: Sequence[TallyLayout]) -> TallyPlan:
    """The plan of these tallies; the told numbers come in the order of the layouts and their folds."""
    words = [0] * (kernel.HEAD + kernel.TALLY_LINE * len(layouts))
    folds: list[Fold] = []
    states = []
    for number, layout in enumerate(layouts):
        line = kernel.HEAD + number * kernel.TALLY_LINE
        words[line : line + kernel.TALLY_LINE], state = _planned(layout, words, len(folds))
        folds += layout.folds
        states.append(state)
    words[: kernel.HEAD] = [len(layouts), kernel.HEAD, len(folds), max(states, default=0), len(FACTS)]
    return TallyPlan(np.array(words, np.int64), tuple(folds))


def _planned(layout: TallyLayout, words: list[int], cells_before: int) -> tuple[list[int], int]:
    """Writes the tables of one tally behind the others; its line, and how many words its state takes."""

    def table(lines: Iterable[Iterable[int]]) -> int:
        begin = len(words)
        for line in lines:
            words.extend(line)
        return begin

    conditions = list(dict.fromkeys(condition for fold in layout.folds for condition in fold.where))
    widest = max(len(layout.rings) + len(layout.sketches), sum(len(ring.columns) for ring in layout.rings))
    assert widest <= kernel.WIDE, f"tally {layout.kind}: more than {kernel.WIDE} rings and sketches, or columns"

    def need(where: Iterable[Condition]) -> int:
        return sum(1 << conditions.index(condition) for condition in set(where))

    condition_at = table((_OPS[c.op], FACT_NUMBER[c.column], c.value) for c in conditions)
    state, rings, sketches = 0, [], []
    for ring in layout.rings:
        column_at = table((fact, need(where), _width(fact)) for fact, where in ring.columns)
        rings.append((ring.slice_ms, ring.delay_ms, ring.slots, len(ring.columns), column_at, state))
        state += 1 + (1 + len(ring.columns)) * ring.slots
    for sketch in layout.sketches:
        sketches.append((sketch.slice_ms, sketch.slots, sketch.fact, need(sketch.where), state))
        state += 1 + kernel.BUCKETS
    ring_at, sketch_at = table(rings), table(sketches)
    cell_at = table(_cell(layout, fold, cells_before + number) for number, fold in enumerate(layout.folds))
    return [len(conditions), condition_at, len(rings), ring_at, len(sketches), sketch_at, len(layout.folds), cell_at], state


def _cell(layout: TallyLayout, fold: Fold, out: int) -> tuple[int, ...]:
    if fold.op == "distinct":
        return kernel.OF_SKETCH, layout.sketches.index(Sketch(_slice_ms(fold), FACT_NUMBER[fold.column], fold.where)), 0, SLICES, out
    spans = [(ring.slice_ms, ring.delay_ms) for ring in layout.rings]
    ring = spans.index((_slice_ms(fold), _delay_ms(fold)))
    return kernel.OF_RING, ring, layout.rings[ring].columns.index(_column(fold)), SLICES, out


# Rows.

Row = tuple[int, ...]
"""A row's facts in the order of FACTS, and then the moment at which it was learned (labels alone; else 0)."""


LABELLED = ("merchant", "terminal", "account")
"""The entities that a label names, and so teaches."""
LABEL_FACTS = tuple(FACT_NUMBER[name] for name in ("at_ms", "merchant_id", "terminal_id", "account"))
"""The facts that a label's row shares with its transaction's."""


class Update(NamedTuple):
    """A row that a tally is given, and where in the log it comes from: the number of the source and the offset."""

    source: int
    offset: int
    row: Row


def payment_rows(txn: Transaction, declined: bool) -> list[Row]:
    """The rows that a decided transaction gives: itself, and that it was declined or blocked."""
    facts = facts_of(txn)
    return [(*facts, 0), (*declined_facts(facts), 0)] if declined else [(*facts, 0)]


def counts_as_declined(outcome: Outcome, action: Action | None, kind: TransactionKind, reasons: Sequence[Reason]) -> bool:
    """Whether what is decided so is remembered as a decline: of an attempt to move money out, for a reason that lies with the payment.

    None are who is to authenticate first, and what was declined because a part of the system was away: who tries again then is not suspicious.
    """
    refused = outcome in (Outcome.DECLINE, Outcome.BLOCK) and action is None and kind not in CREDITS
    return refused and not (reasons and all(reason.source is ReasonSource.DEGRADED for reason in reasons))


def is_declined(decision: Decision) -> bool:
    """Whether a decision counts as a decline, in tallies as in logs."""
    return counts_as_declined(decision.outcome, decision.action, decision.transaction.kind, decision.reasons)


def label_row(label: Label) -> Row | None:
    """The row that a label gives; None if it says no fraud, or not of when and whom."""
    if not label.fraud or label.transacted_at_ms is None:
        return None
    given = {
        "hash": derived_identity(row_identity(label.transaction_id, label.transacted_at_ms), FRAUD),
        "at_ms": label.transacted_at_ms,
        "kind": FRAUD,
        "merchant_id": short_hash(label.merchant_id, FACTS[FACT_NUMBER["merchant_id"]].bits),
        "terminal_id": short_hash(label.terminal_id, FACTS[FACT_NUMBER["terminal_id"]].bits),
        "account": short_hash(label.account_id),
    }
    return (*(given.get(fact.name, 0) for fact in FACTS), label.learned_at_ms)


class Lesson(NamedTuple):
    """A row that a label gives to the tally of one entity: the entity's kind (one of LABELLED), its token, and the row."""

    kind: str
    token: str
    row: Row


class Verdict(NamedTuple):
    """What was learned last of a transaction: when, and what tallies have of it. `offset`: that of the last label on it."""

    learned_at_ms: int
    lessons: tuple[Lesson, ...]
    offset: int = 0


Verdicts = dict[int, dict[str, Verdict]]
"""By partition of `labels` and transaction, the one with the oldest last label first. A transaction's labels are its account's: in one partition."""
VERDICTS_KEPT = 1 << 18
"""A label is held against the last one on its transaction if that lies no more than so many before it in its partition."""
_NAMED = {entity.name: entity.field for entity in ENTITIES if entity.name in LABELLED}


def learned(before: Verdict | None, label: Label) -> tuple[Verdict, tuple[Lesson, ...]]:
    """What is known of a transaction after a label on it, and the rows that the label gives. Pure: the same labels in the same order, the same rows.

    What was learned last stands, as it does for training; of what was learned at one moment, what comes later in the log. So a label that is
    delivered again after it was replaced changes nothing, nor does one that says again whom and when: they have it from when it was learned first.
    If it names another merchant, that one is given it from now on, and the one before gives it back; whom it does not name keeps it. To take
    back what was given it need say neither of when nor of whom.
    """
    if before is not None and label.learned_at_ms < before.learned_at_ms:
        return before, ()
    stands = before.lessons if before is not None else ()
    said = _lessons(label)
    kept = tuple(each for each in stands if label.fraud and all(_again(each, other) for other in said if other.kind == each.kind))
    new = tuple(each for each in said if each.kind not in [other.kind for other in kept])
    return Verdict(label.learned_at_ms, kept + new), (*(_withdrawn(each) for each in stands if each not in kept), *new)


def learned_in_turn(verdicts: Verdicts, label: Label, partition: int, offset: int) -> tuple[Lesson, ...]:
    """The rows that the next label of a partition gives. Notes what is known then, and forgets what the labels to come are not held against."""
    own = verdicts.setdefault(partition, {})
    while own and own[oldest := next(iter(own))].offset < offset - VERDICTS_KEPT:
        del own[oldest]
    verdict, lessons = learned(own.pop(label.transaction_id, None), label)
    own[label.transaction_id] = verdict._replace(offset=offset)
    return lessons


def _lessons(label: Label) -> tuple[Lesson, ...]:
    row = label_row(label)
    tokens = ((kind, getattr(label, name)) for kind, name in _NAMED.items())
    return tuple(Lesson(kind, token, row) for kind, token in tokens if token is not None) if row is not None else ()


def _again(one: Lesson, other: Lesson) -> bool:
    """Whether a label says of an entity of this kind what another said before: the same one, the same transaction's time."""
    return one.token == other.token and one.row[AT_MS] == other.row[AT_MS]


def _withdrawn(lesson: Lesson) -> Lesson:
    return lesson._replace(row=(*lesson.row[:KIND], WITHDRAWN, *lesson.row[KIND + 1 :]))


def rows_matrix(rows: Sequence[Row]) -> Array:
    """int64[n, facts + 1] of rows; a hash above 2^63 becomes negative, as in a log."""
    return np.array([(row[0] - (row[0] >> 63 << 64), *row[1:]) for row in rows], np.int64).reshape(len(rows), len(FACTS) + 1)


# Contents.


def head_of(content: bytes | None) -> bytes:
    """The head of a tally's bytes; of one that is not there: nothing was taken."""
    return content[:HEADER_BYTES] if content else NOTHING


def offsets_in(head: bytes) -> tuple[int, ...]:
    """The offsets in a head, by source."""
    return tuple(int.from_bytes(head[at : at + OFFSET_BYTES], "little") for at in range(0, HEADER_BYTES, OFFSET_BYTES))


def updated(plan: TallyPlan, layouts: Sequence[TallyLayout], number: int, content: bytes, updates: Sequence[Update]) -> bytes:
    """A tally's bytes after these updates; those that it has taken already change nothing. The very bytes if there is nothing new."""
    ends = list(offsets_in(head_of(content)))
    new = [update for update in updates if update.offset >= ends[update.source]]
    if not new:
        return content
    for source, offset, _ in new:
        ends[source] = max(ends[source], offset + 1)
    out = np.empty(layouts[number].bytes_max, np.uint8)
    before = np.frombuffer(content[HEADER_BYTES:] + _BEYOND, np.uint8)
    length = kernel.update(plan.words, number, before, rows_matrix([update.row for update in new]), out)
    return b"".join(end.to_bytes(OFFSET_BYTES, "little") for end in ends) + out[:length].tobytes()


@functools.cache
def longs(count: int) -> Callable[..., bytes]:
    """What writes so many 64-bit numbers."""
    return struct.Struct(f"<{count}q").pack


def lengths_of(contents: Iterable[bytes | None]) -> list[int]:
    """Bytes of each, -1 for what is not there."""
    return [-1 if content is None else len(content) for content in contents]


def told_to_all(plan: TallyPlan, buffer: Array, head: int, others: int, count: int) -> Array:
    """float64[count, folds]: the plan's numbers as their tallies tell them to so many transactions; the buffer is `kernel.read_all`'s."""
    out = np.empty((count, len(plan.folds)))
    if len(plan.folds):
        kernel.read_all(plan.words, buffer, head, others, HEADER_BYTES, out)
    return out


def told(plan: TallyPlan, contents: Sequence[bytes | None], now_ms: int) -> Array:
    """float64: the plan's numbers as these tallies tell them at a moment. None: no such entity, or not readable; b"": it has no row."""
    numbers = (0, now_ms, *lengths_of(contents))
    buffer = b"".join((longs(len(numbers))(*numbers), *filter(None, contents), _BEYOND))
    numbers_told: Array = told_to_all(plan, np.frombuffer(buffer, np.uint8), 2, 0, 1)[0]
    return numbers_told


# Many at once.


class Given(NamedTuple):
    """Rows of one kind of tally: entity (hash64, 0: none), source, offset in it, and the row; in any order."""

    tokens: Array
    sources: Array
    offsets: Array
    rows: Array


class Reads(NamedTuple):
    """Reads of one kind of tally: entity (hash64, 0: none), what it had taken (int64[n, sources]), and the moment, milliseconds."""

    tokens: Array
    positions: Array
    at_ms: Array


def told_all(plan: TallyPlan, number: int, given: Given, reads: Reads, out: Array) -> None:
    """Writes what one kind of tally said to each read into its places of `out` (float64[reads, told numbers]); no entity: NaN.

    The reads of one entity must have had growing sets of rows, as they do when a tally only ever takes rows.
    """
    kept = np.flatnonzero(given.tokens)
    kept = kept[np.lexsort((given.offsets[kept], given.sources[kept], given.tokens[kept]))]
    asked = np.flatnonzero(reads.tokens)
    asked = asked[np.lexsort((reads.positions[asked].sum(axis=1), reads.tokens[asked]))]
    tokens, groups = np.unique(reads.tokens[asked], return_inverse=True)
    begins = np.searchsorted(given.tokens[kept], tokens)
    ends = np.searchsorted(given.tokens[kept], tokens, side="right")
    kernel.tell_all(
        plan.words,
        number,
        given.rows,
        kept,
        np.column_stack((begins, ends)),
        np.ascontiguousarray(given.sources[kept]),
        np.ascontiguousarray(given.offsets[kept]),
        asked,
        groups,
        np.ascontiguousarray(reads.positions[asked]),
        np.ascontiguousarray(reads.at_ms[asked]),
        out,
    )


assert FACT_NUMBER["kind"] == KIND
assert (kernel._FRAUD, kernel._WITHDRAWN) == (FRAUD, WITHDRAWN), "the kernel has its own copy: numba's cache looks at one file"
