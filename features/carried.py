"""What a backfill carries from one lot of transactions to the next: logs, tallies and who came lately. It grows with what can still be
seen, not with the length of the history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from features import kernel, tally_kernel
from features.catalogue import Catalogue
from features.columns import TransactionColumns, derived_identities
from features.fact import AT_MS, DECLINED, FACTS, FRAUD, HASH, KIND
from features.tally import LABEL_FACTS, LABELLED, TallyLayout

Array = np.ndarray[Any, np.dtype[Any]]
State = dict[str, Array]
RECOGNISED = 1024
"""How many rows back a log recognises a transaction that comes again: more than a log shows, so that no history in sight has it twice."""
SPREAD_OUT = 3
"""How many times the words that logs need they may take, before they are brought together."""
_TAIL = 8
_RESERVED = 1 << 25
"""Words for which logs have addresses at least. Memory is taken when it is written, in large pages; moving to more room would cost more."""


class Lot(NamedTuple):
    """Transactions that arrive together: their columns and facts, which were declined, and the identities of those rows."""

    columns: TransactionColumns
    facts: Array
    declined: Array
    decline_identities: Array

    def tokens(self, kind: str) -> Array:
        """int64[n]: the token of each one's entity of this kind, 0: none."""
        none = np.zeros(len(self.facts), np.uint64)
        return np.ascontiguousarray(self.columns.tokens.get(kind, none), np.uint64).view(np.int64)


class Found(NamedTuple):
    """int64[logs, n]: the segment of each transaction in each log, and its position there."""

    places: Array
    positions: Array


class Logs:
    """The logs of all entities: segments of one array, each with room to grow."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        layouts = catalogue.log_layouts
        self._kinds = list(dict.fromkeys(layout.kind for layout in layouts))
        widths = {layout.kind: len(layout.columns) + 1 for layout in layouts}  # all but the hash; the newest time and the identity
        self._widths = np.array([widths[kind] for kind in self._kinds], np.int64)
        self.segments = np.zeros((1024, kernel.SEGMENT), np.int64)
        self.heads = np.zeros(kernel.HEADS, np.int64)
        self._table = np.zeros(4096, np.int64)
        self.flat = np.empty(_RESERVED, np.int64)

    @property
    def count(self) -> int:
        """How many segments there are."""
        return int(self.heads[kernel.H_SEGMENTS])

    @property
    def rows(self) -> int:
        """How many rows are carried."""
        return int(self.segments[: self.heads[kernel.H_SEGMENTS], kernel.S_ROWS].sum())

    def arrive(self, lot: Lot, forget_ms: int) -> Found:
        """Appends what arrives to its logs. A log whose newest row is not after `forget_ms` begins anew."""
        logs, n = len(self._catalogue.logs), len(lot.facts)
        found = Found(np.full((logs, n), kernel.NOBODY, np.int64), np.zeros((logs, n), np.int64))
        for kind, name in enumerate(self._kinds):
            self._arrive(kind, name, lot, forget_ms, found)
        return found

    def _arrive(self, kind: int, name: str, lot: Lot, forget_ms: int, found: Found) -> None:
        """One kind of log: those whom it belongs to, and those who look into it."""
        entities = list(enumerate(self._catalogue.log_entities))
        own = [number for number, entity in entities if entity.name == name]
        looks = [(number, entity) for number, entity in entities if entity.log_of == name]
        assert len(own) <= 1, "an entity has one log"
        assert len(looks) <= 1, "one entity at most looks into another's log"
        n = len(lot.facts)
        spare, nothing = Found(*np.zeros((2, 1, n), np.int64)), np.zeros(0, np.int64)
        places, positions = (each[own[0]] for each in found) if own else (each[0] for each in spare)
        looked, looked_at = (each[looks[0][0]] for each in found) if looks else (nothing, nothing)
        tokens = lot.tokens(name)
        self.heads[kernel.H_NEXT] = 0
        while not kernel.placed(kind, tokens, self._table, self.segments, self.heads, places):
            self._make_segments()
        if looks:
            kernel.looked_up(kind, lot.tokens(looks[0][1].name), self._table, self.segments, looked)
        order, starts, touched = np.empty(n + len(looked), np.int64), np.empty(n + len(looked) + 1, np.int64), np.empty(n + len(looked), np.int64)
        count = kernel.members(places, looked, np.zeros(self.count, np.int64), order, starts, touched)
        groups = (order, starts, touched, count)
        wanted = np.empty(count, np.int64)
        while not kernel.room_for(*groups, lot.declined, int(self._widths[kind]), self.segments, self.heads, self.flat, wanted):
            self._make_room()
        kernel.arrive(
            self._catalogue.program,
            own[0] if own else looks[0][0],
            *groups,
            lot.facts,
            lot.declined,
            lot.decline_identities,
            DECLINED,
            forget_ms,
            RECOGNISED,
            self.segments,
            self.flat,
            positions,
            looked,
            looked_at,
        )

    def _make_segments(self) -> None:
        """Makes room for segments."""
        if 2 * self.count >= self.segments.shape[0]:
            self.segments = np.concatenate((self.segments, np.zeros_like(self.segments)))
        if 4 * self.count >= len(self._table):
            self._table = np.zeros(4 * len(self._table), np.int64)
            kernel.indexed(self.segments, self.count, self._table)

    def _make_room(self) -> None:
        """Makes room for rows."""
        used, asked = int(self.heads[kernel.H_USED]), int(self.heads[kernel.H_ASKED])
        flat = np.empty(max(4 * len(self.flat), used + asked), np.int64)
        flat[:used] = self.flat[:used]
        self.flat = flat

    def rest(self, found: Found, forget_ms: int) -> None:
        """Drops rows that nobody can see any more from the logs that were found, and forgotten logs when they are many."""
        for places in found.places:
            kernel.trim(self._catalogue.program, self._widths, self.segments, places, RECOGNISED, self.flat)
        if self.heads[kernel.H_USED] > SPREAD_OUT * max(kernel.live(self.segments, self.count, self._widths, forget_ms), 1 << 16):
            self.tidy(forget_ms)

    def tidy(self, forget_ms: int) -> None:
        """Brings all logs that are not forgotten close together."""
        count = int(self.heads[kernel.H_SEGMENTS])
        words = kernel.live(self.segments, count, self._widths, forget_ms)
        flat, segments, table = np.empty(max(4 * words, _RESERVED), np.int64), np.zeros_like(self.segments), np.zeros_like(self._table)
        kernel.compact(self.segments, self.heads, self._widths, forget_ms, self.flat, table, segments, flat)
        self.flat, self.segments, self._table = flat, segments, table

    def state(self) -> State:
        """All that another needs to go on."""
        return {"segments": self.segments[: self.heads[kernel.H_SEGMENTS]], "flat": self.flat[: self.heads[kernel.H_USED]]}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Goes on where another was."""
        self.segments, self.flat = state["segments"].copy(), state["flat"].copy()
        self.heads[:] = 0
        self.heads[[kernel.H_SEGMENTS, kernel.H_USED]] = len(self.segments), len(self.flat)
        self._table = np.zeros(1 << max(12, (4 * len(self.segments)).bit_length()), np.int64)
        kernel.indexed(self.segments, len(self.segments), self._table)
        self.segments = np.concatenate((self.segments, np.zeros((1024, kernel.SEGMENT), np.int64)))


class Repeats:
    """Who came lately: a transaction that comes again within so many arrivals is the same one, and was told the same."""

    def __init__(self, folds: int, reach: int) -> None:
        self._reach = reach
        self._identities, self._firsts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._told = np.zeros((0, folds))

    def firsts(self, identities: Array, number: int) -> Array:
        """The number of the first coming of each; `number` is that of the first of these."""
        firsts = np.empty(len(identities), np.int64)
        kernel.first_comings(self._identities, self._firsts, identities, number, self._reach, firsts)
        return firsts

    def answer(self, identities: Array, firsts: Array, number: int, told: Array) -> None:
        """Gives those that came again what the first one was told, and keeps what is told for those to come."""
        before = number - len(self._identities)
        again = np.flatnonzero(firsts != np.arange(number, number + len(firsts)))
        earlier, here = again[firsts[again] < number], again[firsts[again] >= number]
        told[here] = told[firsts[here] - number]
        told[earlier] = self._told[firsts[earlier] - before]
        self._identities = self._last(self._identities, identities)
        self._firsts, self._told = self._last(self._firsts, firsts), self._last(self._told, told)

    def _last(self, before: Array, now: Array) -> Array:
        """The last of what was kept and what came, as many as are kept."""
        kept = max(self._reach - len(now), 0)
        return np.concatenate((before[max(len(before) - kept, 0) :], now)) if kept else now[-self._reach :]

    def state(self) -> State:
        """All that another needs to go on."""
        return {"identities": self._identities, "firsts": self._firsts, "told": self._told}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Goes on where another was."""
        self._identities, self._firsts, self._told = state["identities"], state["firsts"], state["told"]


class _Taught(NamedTuple):
    """Labels that are learned: rows (int64[m, facts + 1]), the arrival before which each is given, and whom each teaches, by LABELLED."""

    rows: Array
    seen_from: Array
    tokens: Array


class _Tally:
    """The tallies of one kind, as the bytes that serving keeps."""

    def __init__(self, layout: TallyLayout) -> None:
        self.layout = layout
        self.tokens, self.newest = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.spans, self.content, self.live = np.zeros((0, 2), np.int64), np.zeros(_TAIL, np.uint8), 0

    def tell(self, words: Array, number: int, lot: Lot, first: Array, labels: _Taught, out: Array) -> None:
        """Tells the first comings of a lot, each into its row of `out`, what the rows before them say, and is given theirs and the labels'."""
        kind, n = self.layout.kind, len(first)
        taught = labels.tokens[:, LABELLED.index(kind)] if kind in LABELLED else np.zeros(len(labels.rows), np.int64)
        codes = np.empty(n + len(taught), np.int64)
        touched = tally_kernel.coded(np.concatenate((np.where(first, lot.tokens(kind), 0), taught)), codes)
        begins, taught_begins = np.empty((2, len(touched) + 1), np.int64)
        arrivals, teaching = (tally_kernel.by_code(*each) for each in ((codes[:n], len(touched), begins), (codes[n:], len(touched), taught_begins)))
        known = self._placed(touched)
        after, spans = np.empty(len(touched) * self.layout.bytes_max, np.uint8), np.empty((len(touched), 2), np.int64)
        newest = np.empty(len(touched), np.int64)
        used = tally_kernel.tell_on(
            words,
            number,
            len(touched),
            arrivals,
            begins,
            lot.facts,
            lot.declined,
            DECLINED,
            teaching,
            taught_begins,
            labels.rows,
            labels.seen_from,
            self.content,
            self.spans[known],
            out,
            after,
            spans,
            newest,
        )
        self.newest[known] = np.maximum(self.newest[known], newest)
        self._put(known, spans, after[:used])

    def _placed(self, touched: Array) -> Array:
        """The places of these tokens (in order) among all, with new ones put where they belong."""
        places = np.searchsorted(self.tokens, touched)
        there = places < len(self.tokens)
        there[there] = self.tokens[places[there]] == touched[there]
        at = places[~there]
        self.tokens = np.insert(self.tokens, at, touched[~there])
        self.newest = np.insert(self.newest, at, -1)
        self.spans = np.insert(self.spans, at, 0, axis=0)
        return np.searchsorted(self.tokens, touched)

    def _put(self, places: Array, spans: Array, content: Array) -> None:
        """Puts contents behind all others, in place of what these had; moves all together when half is of no use."""
        self.spans[places] = spans + len(self.content) - _TAIL
        self.content = np.concatenate((self.content[:-_TAIL], content, np.zeros(_TAIL, np.uint8)))
        if len(self.content) > 2 * self.live + (1 << 20):
            self._gather()

    def _gather(self) -> None:
        self.live = int((self.spans[:, 1] - self.spans[:, 0]).sum())
        content = np.zeros(self.live + _TAIL, np.uint8)
        tally_kernel.gather(self.content, self.spans, content)
        self.content = content

    def forget(self, before_ms: int) -> None:
        """Forgets the tallies whose newest row can no longer be seen at that moment."""
        kept = self.newest > before_ms - 1000 * self.layout.keep_s
        if not kept.all():
            self.tokens, self.newest, self.spans = self.tokens[kept], self.newest[kept], self.spans[kept]
            self._gather()

    def state(self) -> State:
        self._gather()
        return {"tokens": self.tokens, "newest": self.newest, "spans": self.spans, "content": self.content}

    def restore(self, state: Mapping[str, Array]) -> None:
        self.tokens, self.newest = state["tokens"].copy(), state["newest"].copy()
        self.spans, self.content = state["spans"].copy(), state["content"].copy()
        self.live = len(self.content)


class Labels:
    """Labels as rows of logs, for the entities of whom a row counts frauds in a log: told to it when they are learned.

    A label's row has the time from which on it counts to who looks back by the delay: the transaction's, or, if it was learned later than
    it matured, that much before it was learned. It arrives directly before the first transaction at which it has been learned, and never before
    the transaction that comes after its own.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._delays = catalogue.log_delays
        assert set(self._delays) <= set(LABELLED), "labels name merchants, terminals and accounts"
        self._clock = -1
        self._pending = np.zeros((0, len(FACTS) + 1), np.int64)
        self._pending_tokens = np.zeros((0, len(self._delays)), np.uint64)

    def among(self, columns: TransactionColumns, declined: Array) -> tuple[TransactionColumns, Array]:
        """The transactions with the labels among them that are learned meanwhile; as they are, if no log is told of labels."""
        if not self._delays or not columns.n:
            return columns, declined
        none, at_ms = np.zeros(columns.n, np.uint64), columns.fact_matrix[:, AT_MS]
        learned = np.zeros(columns.n, np.int64) if columns.learned is None else columns.learned
        clock = np.maximum(np.maximum.accumulate(at_ms), self._clock)
        self._clock = int(clock[-1])
        new = np.flatnonzero(learned > 0)
        came = np.concatenate((np.zeros(len(self._pending), np.int64), new + 1))
        rows = np.concatenate((self._pending, np.column_stack((columns.fact_matrix[new], learned[new]))))
        tokens = np.column_stack([np.asarray(columns.tokens.get(kind, none), np.uint64)[new] for kind in self._delays])
        tokens = np.concatenate((self._pending_tokens, tokens))
        seen_from = np.maximum(came, np.searchsorted(clock, rows[:, -1]))
        waits = seen_from >= columns.n
        self._pending, self._pending_tokens = rows[waits], tokens[waits]
        for number, (kind, delay_ms) in enumerate(self._delays.items()):
            columns, declined, seen_from, waits = _with(columns, declined, kind, delay_ms, rows, tokens[:, number], seen_from, waits)
        return columns, declined

    def state(self) -> State:
        """All that another needs to go on."""
        return {"clock": np.array([self._clock]), "pending": self._pending, "pending_tokens": self._pending_tokens}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Goes on where another was."""
        self._clock, self._pending, self._pending_tokens = int(state["clock"][0]), state["pending"], state["pending_tokens"]


def _with(
    columns: TransactionColumns, declined: Array, kind: str, delay_ms: int, rows: Array, tokens: Array, seen_from: Array, waits: Array
) -> tuple[TransactionColumns, Array, Array, Array]:
    """The columns with labels put before the rows from which on they are seen, in the order in which they came."""
    told = np.flatnonzero(~waits & (tokens != 0))
    told = told[np.argsort(seen_from[told], kind="stable")]
    at = seen_from[told]
    facts = np.zeros((len(told), len(FACTS)), np.int64)
    for fact in LABEL_FACTS:
        facts[:, fact] = rows[told, fact]
    facts[:, HASH], facts[:, KIND] = derived_identities(np.ascontiguousarray(rows[told, HASH]), FRAUD), FRAUD
    facts[:, AT_MS] = np.maximum(facts[:, AT_MS], rows[told, -1] - delay_ms)
    matrix = np.insert(columns.fact_matrix, at, facts, axis=0)
    whole = TransactionColumns(
        {fact.name: matrix[:, number] for number, fact in enumerate(FACTS)},
        {name: np.insert(np.asarray(column, np.uint64), at, tokens[told] if name == kind else 0) for name, column in columns.tokens.items()},
        {name: np.insert(np.asarray(column, np.float64), at, np.nan) for name, column in columns.measures.items()},
        {name: np.insert(np.asarray(column, np.float64), at, np.nan) for name, column in columns.known.items()},
        np.insert(columns.asks, at, False),
        None if columns.learned is None else np.insert(columns.learned, at, 0),
    )
    return whole, np.insert(declined, at, False), seen_from + np.searchsorted(at, seen_from, "right"), waits


class Tallies:
    """The tallies of all entities, and the labels that are not learned yet.

    A row counts once it was told, directly after its transaction; a label from the first arrival on at which it has been learned, and
    never before its transaction came with it. One that comes again within `reach` arrivals is the same: its first label counts, and no other.
    """

    def __init__(self, catalogue: Catalogue, reach: int) -> None:
        self._reach = reach
        self._labelled = np.zeros(0, np.int64)
        self._words = catalogue.tally_plan.words
        self._folds = len(catalogue.tally_plan.folds)
        self._tallies = [_Tally(layout) for layout in catalogue.tally_layouts]
        self._clock = -1
        self._pending = np.zeros((0, len(FACTS) + 1), np.int64)
        self._pending_tokens = np.zeros((0, len(LABELLED)), np.int64)

    def arrive(self, lot: Lot, firsts: Array, number: int) -> Array:
        """float64[n, told numbers]: what the tallies told each first coming. `number` is that of the lot's first arrival."""
        n = len(lot.facts)
        out = np.full((n, self._folds), np.nan)
        if not self._tallies or n == 0:
            return out
        clock = np.maximum(np.maximum.accumulate(lot.facts[:, AT_MS]), self._clock)
        first = firsts == np.arange(number, number + n)
        labels = self._learned(lot, self._teaching(lot, firsts, number), clock)
        for place, tally in enumerate(self._tallies):
            tally.tell(self._words, place, lot, first, labels, out)
        self._clock = int(clock[-1])
        return out

    def _teaching(self, lot: Lot, firsts: Array, number: int) -> Array:
        """Which of a lot come with a label, of each transaction the first that does."""
        labelled = np.zeros(0, np.int64) if lot.columns.learned is None else np.flatnonzero(lot.columns.learned)
        of, at = np.unique(firsts[labelled], return_index=True)
        new = ~np.isin(of, self._labelled)
        self._labelled = np.concatenate((self._labelled[self._labelled >= number - self._reach], of[new]))
        return np.sort(labelled[at[new]])

    def _learned(self, lot: Lot, new: Array, clock: Array) -> _Taught:
        """The labels that are learned while the lot arrives, in that order, `new` ones among them; the others wait."""
        learned = np.zeros(len(lot.facts), np.int64) if lot.columns.learned is None else lot.columns.learned
        rows = np.zeros((len(new), len(FACTS) + 1), np.int64)
        for fact in LABEL_FACTS:
            rows[:, fact] = lot.facts[new, fact]
        rows[:, KIND], rows[:, -1] = FRAUD, learned[new]
        tokens = np.column_stack([lot.tokens(kind)[new] for kind in LABELLED])
        came = np.concatenate((np.zeros(len(self._pending), np.int64), new + 1))
        rows, tokens = np.concatenate((self._pending, rows)), np.concatenate((self._pending_tokens, tokens))
        known = rows[:, -1] <= clock[-1]
        self._pending, self._pending_tokens = rows[~known], tokens[~known]
        rows, tokens = rows[known], tokens[known]
        seen_from = np.maximum(came[known], np.searchsorted(clock, rows[:, -1]))
        order = np.argsort(seen_from, kind="stable")
        return _Taught(rows[order], seen_from[order], tokens[order])

    def forget(self, before_ms: int) -> None:
        """Forgets what can no longer be seen at that moment."""
        for tally in self._tallies:
            tally.forget(before_ms)

    def state(self) -> State:
        """All that another needs to go on."""
        own = {
            "clock": np.array([self._clock]),
            "pending": self._pending,
            "pending_tokens": self._pending_tokens,
            "labelled": self._labelled,
        }
        return own | {f"{number}.{name}": part for number, tally in enumerate(self._tallies) for name, part in tally.state().items()}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Goes on where another was."""
        self._clock, self._pending, self._pending_tokens = int(state["clock"][0]), state["pending"], state["pending_tokens"]
        self._labelled = state["labelled"]
        for number, tally in enumerate(self._tallies):
            tally.restore({name.partition(".")[2]: part for name, part in state.items() if name.startswith(f"{number}.")})


def named(prefix: str, state: Mapping[str, Array]) -> State:
    """The parts of a state under a name."""
    return {f"{prefix}.{name}": part for name, part in state.items()}


def under(prefix: str, state: Mapping[str, Array]) -> State:
    """The parts of a state that are under a name."""
    names: Sequence[str] = [name for name in state if name.startswith(f"{prefix}.")]
    return {name[len(prefix) + 1 :]: state[name] for name in names}
