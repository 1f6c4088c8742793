"""The compiled part of tallies: one row in, a window's sum or a count of different values out, and the bytes between.

A tally's plan is one int64 array (`features/tally.py` writes it); its shape is the block of constants below. A tally's state is the
set of rows that it was given and nothing else: not their order, nor how they were grouped. Everything that is compiled for tallies is
in this file, because numba's cache notices a change by the file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from features.kernel import compiled, held, inlined, load64, pointer, released, slots_for

Array = np.ndarray[Any, np.dtype[Any]]

BUILT_ON = {"features/kernel.py": "90a598fff4e4"}
"""The files of which compiled code is a part of this one's, as they are: numba keeps that until this very file changes. A test says what to write."""
TALLIES, TALLY_AT, CELLS, STATE, LEARNED = range(5)
HEAD = 5
T_CONDITIONS, T_CONDITION_AT, T_RINGS, T_RING_AT, T_SKETCHES, T_SKETCH_AT, T_CELLS, T_CELL_AT = range(8)
TALLY_LINE = 8
CONDITION_LINE = 3  # op, fact, value
RING_LINE = 6  # slice_ms, delay_ms, slots, columns, where they are, where its state is
COLUMN_LINE = 3  # fact (-1: count), bits needed, bytes
SKETCH_LINE = 5  # slice_ms, slots, fact, bits needed, where its state is
CELL_LINE = 5  # kind, ring or sketch, column, slices, out
T_KINDS, T_BELOW, T_GIVEN = range(3)
OF_RING, OF_SKETCH = range(2)
SPAN = 60
"""Slices of every window."""
WIDE = 64
"""Rings and sketches, and columns of rings, that a tally has at most."""

BUCKETS = 256
"""Buckets of a sketch (linear counting: Whang, Vander-Zanden and Taylor 1990)."""
_AT, _KIND, _WORD = 1, 2, (1 << 32) - 1
_FRAUD, _WITHDRAWN = 33, 34
_COUNT_SIGN, _COUNT_MAX = 1 << 31, (1 << 31) - 1
_SLICE = (1 << 24) - 1


@inlined
def _bits(plan: Array, line: int, facts: Array, row: int, kind: int) -> int:
    """The conditions that a row of this kind meets, one bit each. Its other facts begin at `facts[row]`."""
    bits = 0
    for number in range(plan[line + T_CONDITIONS]):
        at = plan[line + T_CONDITION_AT] + number * CONDITION_LINE
        fact, value = facts[row + plan[at + 1]], plan[at + 2]
        if plan[at] == T_KINDS:
            met = (value >> kind) & 1
        elif plan[at] == T_BELOW:
            met = 1 if fact < value else 0
        else:
            met = 1 if fact != 0 else 0
        bits |= met << number
    return bits


@inlined
def _count(word: int) -> int:
    """The count in the low four bytes of a word. A slice may have less than none: what was taken back there was counted before its tally began."""
    return ((word & _WORD) ^ _COUNT_SIGN) - _COUNT_SIGN


@inlined
def _slot(state: Array, at: int, slots: int, columns: int, slice_: int) -> int:
    """Where a slice is kept, emptied if another was there; -1 if it is too old. `state[at]` is the newest slice, then the slices."""
    newest = state[at]
    if slice_ <= newest - slots:
        return -1
    slot = slice_ % slots
    if state[at + 1 + slot] != slice_:
        state[at + 1 + slot] = slice_
        for column in range(columns):
            state[at + 1 + (1 + column) * slots + slot] = 0
    state[at] = max(newest, slice_)
    return slot


@inlined
def _bucket(value: int) -> int:
    """The bucket of a 32-bit hash: a multiplicative mix, so that hashes that were cut elsewhere still spread."""
    return int(((value * 0x9E3779B1) & _WORD) >> 24)


@compiled
def give(plan: Array, tally: int, state: Array, facts: Array) -> None:
    """Puts one row into a tally's state. A label's row counts from the moment at which it was known (rounded up to a slice).

    A row of a withdrawal takes back, where it was put, what the row with the same facts had put there.
    """
    line, at_ms, learned_ms = plan[TALLY_AT] + tally * TALLY_LINE, facts[_AT], facts[plan[LEARNED]]
    kind, times = (_FRAUD, -1) if facts[_KIND] == _WITHDRAWN else (facts[_KIND], 1)
    bits = _bits(plan, line, facts, 0, kind)
    for number in range(plan[line + T_RINGS]):
        ring = plan[line + T_RING_AT] + number * RING_LINE
        slice_ms, columns, column_at, at = plan[ring], plan[ring + 3], plan[ring + 4], plan[ring + 5]
        slice_ = at_ms // slice_ms
        if learned_ms > 0:
            slice_ = -(-max(at_ms, learned_ms - plan[ring + 1]) // slice_ms)
        for column in range(columns):
            need = plan[column_at + column * COLUMN_LINE + 1]
            if (bits & need) == need:
                slot = _slot(state, at, plan[ring + 2], columns, slice_)
                if slot >= 0:
                    fact = plan[column_at + column * COLUMN_LINE]
                    state[at + 1 + (1 + column) * plan[ring + 2] + slot] += times * (facts[fact] if fact >= 0 else 1)
    for number in range(plan[line + T_SKETCHES]):
        sketch = plan[line + T_SKETCH_AT] + number * SKETCH_LINE
        value, need, at = facts[plan[sketch + 2]], plan[sketch + 3], plan[sketch + 4]
        if value != 0 and (bits & need) == need:
            slice_, bucket = at_ms // plan[sketch], _bucket(value)
            state[at] = max(state[at], slice_)
            state[at + 1 + bucket] = max(state[at + 1 + bucket], slice_)


@compiled
def forget(plan: Array, tally: int, state: Array) -> None:
    """Makes a tally's state that of no row."""
    line = plan[TALLY_AT] + tally * TALLY_LINE
    for number in range(plan[line + T_RINGS]):
        ring = plan[line + T_RING_AT] + number * RING_LINE
        state[plan[ring + 5] : plan[ring + 5] + 1 + plan[ring + 2]] = -1
    for number in range(plan[line + T_SKETCHES]):
        at = plan[plan[line + T_SKETCH_AT] + number * SKETCH_LINE + 4]
        state[at : at + 1 + BUCKETS] = -1


@compiled
def _summed(state: Array, at: int, slots: int, column: int, slice_: int, slices: int) -> int:
    """The sum of a ring's column over the `slices` slices that end with this one."""
    total, slot, oldest = 0, slice_ % slots, max(0, state[at] - slots + 1)
    for back in range(slices):
        if slice_ - back < oldest:
            break
        if state[at + 1 + slot] == slice_ - back:
            total += state[at + 1 + (1 + column) * slots + slot]
        slot = slots - 1 if slot == 0 else slot - 1
    return total


@compiled
def _counted(state: Array, at: int, slots: int, slice_: int, slices: int) -> float:
    """About how many different values were last seen in the `slices` slices that end with this one: -m ln(share of m never hit)."""
    empty, since = 0, max(slice_ - slices, state[at] - slots)
    for bucket in range(BUCKETS):
        last = state[at + 1 + bucket]
        empty += 0 if since < last <= slice_ and last >= 0 else 1
    return _estimated(empty)


@compiled
def _estimated(empty: int) -> float:
    """How many different values leave so many buckets empty."""
    return BUCKETS * math.log(BUCKETS / max(empty, 1))


@compiled
def tell(plan: Array, tally: int, state: Array, now: int, out: Array) -> None:
    """What a tally says at a moment, each cell into its place of `out`; never less than nothing."""
    line = plan[TALLY_AT] + tally * TALLY_LINE
    for number in range(plan[line + T_CELLS]):
        cell = plan[line + T_CELL_AT] + number * CELL_LINE
        slices = plan[cell + 3]
        if plan[cell] == OF_RING:
            ring = plan[line + T_RING_AT] + plan[cell + 1] * RING_LINE
            slice_ = (now - plan[ring + 1]) // plan[ring]
            out[plan[cell + 4]] = float(max(_summed(state, plan[ring + 5], plan[ring + 2], plan[cell + 2], slice_, slices), 0))
        else:
            sketch = plan[line + T_SKETCH_AT] + plan[cell + 1] * SKETCH_LINE
            out[plan[cell + 4]] = _counted(state, plan[sketch + 4], plan[sketch + 1], now // plan[sketch], slices)


@compiled
def unpack(plan: Array, tally: int, buffer: Array, at: int, end: int, state: Array) -> None:
    """The state that bytes `at` to `end` of the buffer hold (none: of no row). The buffer reaches eight bytes beyond."""
    line = plan[TALLY_AT] + tally * TALLY_LINE
    forget(plan, tally, state)
    if at >= end:
        return
    for number in range(plan[line + T_RINGS]):
        ring = plan[line + T_RING_AT] + number * RING_LINE
        slots, columns, column_at, base = plan[ring + 2], plan[ring + 3], plan[ring + 4], plan[ring + 5]
        entries = load64(buffer, at) & 0xFFFF
        at += 2
        for _ in range(entries):
            slice_ = load64(buffer, at) & _WORD
            slot = slice_ % slots
            state[base] = max(state[base], slice_)
            state[base + 1 + slot] = slice_
            at += 4
            for column in range(columns):
                width = plan[column_at + column * COLUMN_LINE + 2]
                value = load64(buffer, at)
                state[base + 1 + (1 + column) * slots + slot] = value if width == 8 else _count(value)
                at += width
    for number in range(plan[line + T_SKETCHES]):
        base = plan[plan[line + T_SKETCH_AT] + number * SKETCH_LINE + 4]
        entries = load64(buffer, at) & 0xFFFF
        newest = (load64(buffer, at + 2) & _WORD) if entries > 0 else -1
        state[base] = newest
        at += 6
        for _ in range(entries):
            word = load64(buffer, at) & _WORD
            state[base + 1 + (word >> 24)] = newest - ((newest - word) & _SLICE)
            at += 4


@compiled
def _put(out: Array, at: int, value: int, width: int) -> int:
    for byte in range(width):
        out[at + byte] = (value >> (8 * byte)) & 255
    return at + width


@compiled
def pack(plan: Array, tally: int, state: Array, out: Array) -> int:
    """The bytes of a state: slices and buckets in order, what is too old left out; how many bytes."""
    line, at = plan[TALLY_AT] + tally * TALLY_LINE, 0
    for number in range(plan[line + T_RINGS]):
        ring = plan[line + T_RING_AT] + number * RING_LINE
        slots, columns, column_at, base = plan[ring + 2], plan[ring + 3], plan[ring + 4], plan[ring + 5]
        count_at, entries = at, 0
        at += 2
        for slice_ in range(max(0, state[base] - slots + 1), state[base] + 1):
            slot = slice_ % slots
            if state[base + 1 + slot] == slice_:
                entries += 1
                at = _put(out, at, slice_, 4)
                for column in range(columns):
                    width = plan[column_at + column * COLUMN_LINE + 2]
                    value = state[base + 1 + (1 + column) * slots + slot]
                    at = _put(out, at, value if width == 8 else min(value, _COUNT_MAX), width)
        _put(out, count_at, entries, 2)
    for number in range(plan[line + T_SKETCHES]):
        sketch = plan[line + T_SKETCH_AT] + number * SKETCH_LINE
        base, entries, count_at = plan[sketch + 4], 0, at
        newest = state[base]
        at += 6
        for bucket in range(BUCKETS):
            last = state[base + 1 + bucket]
            if last >= 0 and last > newest - plan[sketch + 1]:
                entries += 1
                at = _put(out, at, (bucket << 24) | (last & _SLICE), 4)
        _put(out, count_at, entries, 2)
        _put(out, count_at + 2, max(newest, 0), 4)
    return at


@inlined
def _ring_sums(plan: Array, ring: int, buffer: Array, at: int, now: int, sums: Array, first: int) -> int:
    """What a ring's columns sum to over the slices of a window that ends at `now`, into `sums` from `first` on; where its bytes end.

    Slices lie in order, the newest last: it is read from there, up to the window's first.
    """
    slice_ms, slots, columns, column_at = plan[ring], plan[ring + 2], plan[ring + 3], plan[ring + 4]
    for column in range(columns):
        sums[first + column] = 0
    size = 4
    for column in range(columns):
        size += plan[column_at + column * COLUMN_LINE + 2]
    begin = at + 2
    end = begin + (load64(buffer, at) & 0xFFFF) * size
    if end == begin:
        return int(end)
    last = (now - plan[ring + 1]) // slice_ms
    oldest = max(last - SPAN + 1, (load64(buffer, end - size) & _WORD) - slots + 1)
    at = end - size
    while at >= begin:
        slice_ = load64(buffer, at) & _WORD
        if slice_ < oldest:
            break
        if slice_ <= last:
            place = at + 4
            for column in range(columns):
                width = plan[column_at + column * COLUMN_LINE + 2]
                value = load64(buffer, place)
                sums[first + column] += value if width == 8 else _count(value)
                place += width
        at -= size
    return int(end)


@inlined
def _sketch_count(slice_ms: int, slots: int, buffer: Array, at: int, now: int) -> tuple[float, int]:
    """About how many different values a sketch saw in the window that ends at `now`, and where its bytes end."""
    entries = load64(buffer, at) & 0xFFFF
    newest = load64(buffer, at + 2) & _WORD
    last, found = now // slice_ms, 0
    since = max(last - SPAN, newest - slots)
    at += 6
    for entry in range(entries):
        seen = newest - ((newest - load64(buffer, at + 4 * entry)) & _SLICE)
        found += 1 if since < seen <= last and seen >= 0 else 0
    return _estimated(BUCKETS - found), int(at + 4 * entries)


@inlined
def tell_at_once(plan: Array, tally: int, buffer: Array, at: int, end: int, now: int, sums: Array, counts: Array, out: Array) -> None:
    """What `tell` says of the state that `unpack` makes of bytes `at` to `end`, without making it. `sums`, `counts`: room for WIDE of each."""
    line = plan[TALLY_AT] + tally * TALLY_LINE
    if at >= end:
        sums[:], counts[:] = 0, 0.0
    else:
        first = 0
        for number in range(plan[line + T_RINGS]):
            ring = plan[line + T_RING_AT] + number * RING_LINE
            at = _ring_sums(plan, ring, buffer, at, now, sums, first)
            first += plan[ring + 3]
        for number in range(plan[line + T_SKETCHES]):
            sketch = plan[line + T_SKETCH_AT] + number * SKETCH_LINE
            counts[number], at = _sketch_count(plan[sketch], plan[sketch + 1], buffer, at, now)
    for number in range(plan[line + T_CELLS]):
        cell = plan[line + T_CELL_AT] + number * CELL_LINE
        if plan[cell] == OF_SKETCH:
            out[plan[cell + 4]] = counts[plan[cell + 1]]
            continue
        first = plan[cell + 2]
        for before in range(plan[cell + 1]):
            first += plan[plan[line + T_RING_AT] + before * RING_LINE + 3]
        out[plan[cell + 4]] = float(max(sums[first], 0))


@compiled
def read_all(plan: Array, buffer: Array, head: int, others: int, skipped: int, out: Array) -> None:
    """Serving: all cells of transactions, one after the other in `buffer`: each `head` numbers (the second is the moment), the lengths of
    `others` memories and of each tally (-1: no such entity, or not readable: its cells are missing), and the bytes of all these.
    Of a tally's bytes the first `skipped` are of no interest here.

    Behind the last one are eight bytes more.
    """
    sums, counts = np.empty(WIDE, np.int64), np.empty(WIDE)
    out[:] = math.nan
    at = 0
    for one in range(out.shape[0]):
        now, lengths = load64(buffer, at + 8), at + 8 * head
        at = lengths + 8 * (others + plan[TALLIES])
        for memory in range(others):
            at += max(load64(buffer, lengths + 8 * memory), 0)
        for tally in range(plan[TALLIES]):
            length = load64(buffer, lengths + 8 * (others + tally))
            if length >= 0:
                tell_at_once(plan, tally, buffer, at + skipped, at + length, now, sums, counts, out[one])
                at += length


@compiled
def update(plan: Array, tally: int, buffer: Array, facts: Array, out: Array) -> int:
    """A tally's bytes after these rows (int64[n, facts + 1]); how many. `buffer` holds the bytes before, and eight bytes more."""
    state = np.empty(plan[STATE], np.int64)
    unpack(plan, tally, buffer, 0, buffer.size - 8, state)
    for row in range(facts.shape[0]):
        give(plan, tally, state, facts[row])
    length: int = pack(plan, tally, state, out)
    return length


@compiled
def tell_all(
    plan: Array,
    tally: int,
    facts: Array,
    rows: Array,
    begins: Array,
    sources: Array,
    offsets: Array,
    reads: Array,
    groups: Array,
    positions: Array,
    nows: Array,
    out: Array,
) -> None:
    """Backfill and parity: what one kind of tally said to every read of it.

    `rows`: rows of `facts`, grouped by entity and source, in order of offset, with their `sources` and `offsets`; entity g's are
    `begins[g, 0]` to `begins[g, 1]`. `reads`: places in `out`, grouped by entity (`groups`), each group in the order in which they
    read; `positions[read]` is, for each source, the offset up to which (exclusive) the tally had taken rows.
    """
    count = positions.shape[1]
    state = np.empty(plan[STATE], np.int64)
    next_ = np.empty(count, np.int64)
    ends = np.empty(count, np.int64)
    group = -1
    for read_ in range(reads.size):
        if groups[read_] != group:
            group = groups[read_]
            forget(plan, tally, state)
            at, end = begins[group, 0], begins[group, 1]
            for source in range(count):
                next_[source] = at
                while at < end and sources[at] == source:
                    at += 1
                ends[source] = at
        for source in range(count):
            at = next_[source]
            while at < ends[source] and offsets[at] < positions[read_, source]:
                give(plan, tally, state, facts[rows[at]])
                at += 1
            next_[source] = at
        tell(plan, tally, state, nows[read_], out[reads[read_]])


NOWHEN = -(1 << 62)
"""The slice of a window whose sum is not known."""
ENDS, TOLD_FROM, TOLD_UNTIL, SUMS, EMPTIES, SLICES, GIVEN_FROM, GIVEN_UNTIL, PLACES = range(0, 9 * WIDE, WIDE)
GOING = 9 * WIDE
"""What goes on from row to row and from read to read of one tally; by ring, and behind those by sketch, if nothing else is said.

ENDS: the slice that the window told last ends with, the same for moments from TOLD_FROM to TOLD_UNTIL; SUMS, by column of rings, and EMPTIES
are of that window. SLICES: the slice given to last, that of times from GIVEN_FROM to GIVEN_UNTIL, and of a ring PLACES, where its first
column's sum of that slice is.
"""


@inlined
def _nothing_known(going: Array) -> None:
    """Makes it that of a tally of which nothing was told or given yet."""
    going[:] = 0
    going[ENDS : ENDS + WIDE] = NOWHEN


@inlined
def _given(going: Array, number: int, slice_: int, slice_ms: int, kept_from: int) -> None:
    """Notes the slice that is given to. `kept_from`: the first slice that is kept then; a window that began before has no sum any more."""
    going[SLICES + number] = slice_
    going[GIVEN_FROM + number] = slice_ * slice_ms
    going[GIVEN_UNTIL + number] = (slice_ + 1) * slice_ms
    if going[ENDS + number] - SPAN < kept_from:
        going[ENDS + number] = NOWHEN
        going[TOLD_UNTIL + number] = going[TOLD_FROM + number]


@inlined
def _told(going: Array, number: int, end: int, slice_ms: int, delay_ms: int, kept_from: int) -> None:
    """Notes the slice that the window told ends with; `kept_from`: as in `_given`."""
    going[ENDS + number] = end if end - SPAN >= kept_from else NOWHEN
    going[TOLD_FROM + number] = end * slice_ms + delay_ms
    going[TOLD_UNTIL + number] = (end + 1 if end - SPAN >= kept_from else end) * slice_ms + delay_ms


@inlined
def _opened(plan: Array, ring: int, number: int, state: Array, at_ms: int, learned_ms: int, going: Array) -> int:
    """Where a ring's first column has the sum of the slice of a row; -1 if that is no longer kept."""
    slice_ms, slots, at = plan[ring], plan[ring + 2], plan[ring + 5]
    slice_ = at_ms // slice_ms
    if learned_ms > 0:
        slice_ = -(-max(at_ms, learned_ms - plan[ring + 1]) // slice_ms)
    slot = _slot(state, at, slots, plan[ring + 3], slice_)
    if slot < 0:
        return -1
    _given(going, number, slice_, slice_ms, state[at] - slots)
    going[PLACES + number] = at + 1 + slots + slot
    return int(going[PLACES + number])


@inlined
def _give_on(plan: Array, line: int, state: Array, facts: Array, row: int, kind: int, learned_ms: int, going: Array) -> None:
    """As `give`, of the row of this kind at `facts[row]`; adds it to the sums of the windows that were told last. A history has no withdrawal."""
    bits, at_ms = _bits(plan, line, facts, row, kind), facts[row + _AT]
    cell, rings, ring, sketch = 0, plan[line + T_RINGS], plan[line + T_RING_AT], plan[line + T_SKETCH_AT]
    for number in range(rings):
        slots, columns, column, place = plan[ring + 2], plan[ring + 3], plan[ring + 4], -1
        for own in range(cell, cell + columns):
            if (bits & plan[column + 1]) == plan[column + 1]:
                if place < 0:
                    place = going[PLACES + number]
                    if learned_ms > 0 or not going[GIVEN_FROM + number] <= at_ms < going[GIVEN_UNTIL + number]:
                        place = _opened(plan, ring, number, state, at_ms, learned_ms, going)
                        if place < 0:
                            break
                slice_, end, at = going[SLICES + number], going[ENDS + number], place + (own - cell) * slots
                value = facts[row + plan[column]] if plan[column] >= 0 else 1
                state[at] = state[at] + value
                going[SUMS + own] = going[SUMS + own] + (value if end - SPAN < slice_ <= end else 0)
            column += COLUMN_LINE
        cell, ring = cell + columns, ring + RING_LINE
    for number in range(rings, rings + plan[line + T_SKETCHES]):
        value, need, at = facts[row + plan[sketch + 2]], plan[sketch + 3], plan[sketch + 4]
        if value != 0 and (bits & need) == need:
            bucket, end = at + 1 + _bucket(value), going[ENDS + number]
            if not going[GIVEN_FROM + number] <= at_ms < going[GIVEN_UNTIL + number]:
                slice_ = at_ms // plan[sketch]
                state[at] = max(state[at], slice_)
                _given(going, number, slice_, plan[sketch], state[at] - plan[sketch + 1])
            before, slice_ = state[bucket], going[SLICES + number]
            after = max(before, slice_)
            state[bucket] = after
            left = 1 if end - SPAN < before <= end and before >= 0 else 0
            came = 1 if end - SPAN < after <= end and after >= 0 else 0
            going[EMPTIES + number - rings] = going[EMPTIES + number - rings] + left - came
        sketch += SKETCH_LINE


@inlined
def _move(plan: Array, ring: int, state: Array, end: int, to: int, sums: Array, cell: int) -> None:
    """Makes the sums of a ring's columns those of the window that ends with slice `to` instead of `end` (or of any, if that is too far)."""
    slots, columns, at = plan[ring + 2], plan[ring + 3], plan[ring + 5]
    if to - SPAN >= state[at]:
        for column in range(columns):
            sums[cell + column] = 0
        return
    if not 0 <= to - end < SPAN:
        for column in range(columns):
            sums[cell + column] = _summed(state, at, slots, column, to, SPAN)
        return
    gone = (end - SPAN + 1) % slots
    come = (end + 1) % slots
    for slice_ in range(end + 1, to + 1):
        if slice_ >= SPAN and state[at + 1 + gone] == slice_ - SPAN:
            for column in range(columns):
                sums[cell + column] -= state[at + 1 + (1 + column) * slots + gone]
        if slice_ >= 0 and state[at + 1 + come] == slice_:
            for column in range(columns):
                sums[cell + column] += state[at + 1 + (1 + column) * slots + come]
        gone, come = 0 if gone + 1 == slots else gone + 1, 0 if come + 1 == slots else come + 1


@inlined
def _empties(state: Array, at: int, slots: int, slice_: int) -> int:
    """How many buckets were last hit in no slice of the window that ends with this one."""
    since = max(slice_ - SPAN, state[at] - slots, -1)
    empty = 0
    for bucket in range(at + 1, at + 1 + BUCKETS):
        empty += 0 if since < state[bucket] <= slice_ else 1
    return empty


@inlined
def _turned(plan: Array, line: int, state: Array, now: int, going: Array) -> None:
    """Makes the sums those of the windows that end at this moment."""
    rings, column, ring, sketch = plan[line + T_RINGS], 0, plan[line + T_RING_AT], plan[line + T_SKETCH_AT]
    for number in range(rings):
        if not going[TOLD_FROM + number] <= now < going[TOLD_UNTIL + number]:
            end = (now - plan[ring + 1]) // plan[ring]
            _move(plan, ring, state, going[ENDS + number], end, going, SUMS + column)
            _told(going, number, end, plan[ring], plan[ring + 1], state[plan[ring + 5]] - plan[ring + 2])
        column, ring = column + plan[ring + 3], ring + RING_LINE
    for number in range(rings, rings + plan[line + T_SKETCHES]):
        if not going[TOLD_FROM + number] <= now < going[TOLD_UNTIL + number]:
            end, slots, base = now // plan[sketch], plan[sketch + 1], plan[sketch + 4]
            going[EMPTIES + number - rings] = _empties(state, base, slots, end)
            _told(going, number, end, plan[sketch], 0, state[base] - slots)
        sketch += SKETCH_LINE


@inlined
def _tell_on(plan: Array, line: int, state: Array, now: int, going: Array, counts: Array, sources: Array, out: Array, at: int) -> None:
    """As `tell`, to `out[at]` and on; the sums go on from the moment that was told before to this one.

    `counts[e]`: what e empty buckets say; `sources`: the sum (a ring's column) or the sketch that each cell tells.
    """
    _turned(plan, line, state, now, going)
    cell = plan[line + T_CELL_AT]
    for number in range(plan[line + T_CELLS]):
        source = sources[number]
        said = float(going[SUMS + source]) if plan[cell] == OF_RING else counts[going[EMPTIES + source]]
        out[at + plan[cell + 4]] = said
        cell += CELL_LINE


@released
def _sources(plan: Array, tally: int) -> Array:
    """For each cell the sum (a ring's column, counted over all rings) or the sketch that it tells."""
    line = plan[TALLY_AT] + tally * TALLY_LINE
    sources = np.empty(plan[line + T_CELLS], np.int64)
    for number in range(plan[line + T_CELLS]):
        cell = plan[line + T_CELL_AT] + number * CELL_LINE
        sources[number] = plan[cell + 1]
        if plan[cell] == OF_RING:
            sources[number] = plan[cell + 2]
            for ring in range(plan[cell + 1]):
                sources[number] += plan[plan[line + T_RING_AT] + ring * RING_LINE + 3]
    return sources


@released
def tell_on(
    plan: Array,
    tally: int,
    entities: int,
    arrivals: Array,
    begins: Array,
    facts: Array,
    declined: Array,
    declined_kind: int,
    taught: Array,
    taught_begins: Array,
    labels: Array,
    seen_from: Array,
    before: Array,
    spans: Array,
    out: Array,
    after: Array,
    after_spans: Array,
    newest: Array,
) -> int:
    """Backfill: what one kind of tally told each arrival into its row of `out`, and the bytes of each tally afterwards; how many.

    Of entity e: `arrivals[begins[e]:begins[e + 1]]` are those that ask it, in order. Each gives its row of `facts` once it was told, and that
    it was declined. `taught[taught_begins[e]:taught_begins[e + 1]]` are the rows of `labels` that it is given before the arrival `seen_from`.
    Its bytes before are `before[spans[e, 0]:spans[e, 1]]`; `newest` gets the newest event time of its new rows.
    """
    state, line = np.empty(plan[STATE], np.int64), plan[TALLY_AT] + tally * TALLY_LINE
    going, counts, sources = np.empty(GOING, np.int64), np.empty(BUCKETS + 1), _sources(plan, tally)
    for empty in range(BUCKETS + 1):
        counts[empty] = _estimated(empty)
    tables, sums, on, said, from_ = pointer(plan), pointer(state), pointer(going), pointer(counts), pointer(sources)
    own, learned, told, width, label_width, told_width = pointer(facts), pointer(labels), pointer(out), facts.shape[1], labels.shape[1], out.shape[1]
    used = 0
    for entity in range(entities):
        unpack(plan, tally, before, spans[entity, 0], spans[entity, 1], state)
        _nothing_known(going)
        label, last = taught_begins[entity], taught_begins[entity + 1]
        latest = -1
        for place in range(begins[entity], begins[entity + 1] + 1):
            number = arrivals[place] if place < begins[entity + 1] else declined.size
            while label < last and seen_from[taught[label]] <= number:
                row = taught[label] * label_width
                _give_on(tables, line, sums, learned, row, learned[row + _KIND], learned[row + label_width - 1], on)
                latest = max(latest, learned[row + _AT])
                label += 1
            if number < declined.size:
                row = number * width
                _tell_on(tables, line, sums, own[row + _AT], on, said, from_, told, number * told_width)
                for again in range(2 if declined[number] else 1):
                    _give_on(tables, line, sums, own, row, own[row + _KIND] if again == 0 else declined_kind, 0, on)
                latest = max(latest, own[row + _AT])
        newest[entity] = latest
        length = pack(plan, tally, state, after[used:])
        after_spans[entity, 0], after_spans[entity, 1] = used, used + length
        used += length
    held((counts, sources))
    return used


@released
def gather(before: Array, spans: Array, into: Array) -> None:
    """Copies the bytes of each span one behind the other, and makes the spans those of the copies."""
    used = 0
    for number in range(spans.shape[0]):
        begin, end = spans[number, 0], spans[number, 1]
        into[used : used + end - begin] = before[begin:end]
        spans[number, 0], spans[number, 1] = used, used + end - begin
        used += end - begin


@released
def coded(tokens: Array, codes: Array) -> Array:
    """The different tokens, other than 0, in order; `codes` gets the place of each among them, -1 for 0."""
    slots = slots_for(tokens.size)
    table, found, count = np.zeros(slots, np.int64), np.empty(tokens.size, np.int64), 0
    for number in range(tokens.size):
        token = tokens[number]
        codes[number] = -1
        if token == 0:
            continue
        slot = (token ^ (token >> 29)) & (slots - 1)
        while table[slot] != 0 and found[table[slot] - 1] != token:
            slot = (slot + 1) & (slots - 1)
        if table[slot] == 0:
            found[count] = token
            count += 1
            table[slot] = count
        codes[number] = table[slot] - 1
    order = np.argsort(found[:count])
    rank = np.empty(count, np.int64)
    for place in range(count):
        rank[order[place]] = place
    for number in range(tokens.size):
        if codes[number] >= 0:
            codes[number] = rank[codes[number]]
    return found[:count][order]


@released
def by_code(codes: Array, count: int, begins: Array) -> Array:
    """The places of each code, one code after the other, as they come; those of code c are from `begins[c]` to `begins[c + 1]`."""
    begins[:] = 0
    for number in range(codes.size):
        if codes[number] >= 0:
            begins[codes[number] + 1] += 1
    for code in range(count):
        begins[code + 1] += begins[code]
    at, order = begins[:count].copy(), np.empty(begins[count], np.int64)
    for number in range(codes.size):
        code = codes[number]
        if code >= 0:
            order[at[code]] = number
            at[code] += 1
    return order
