"""The compiled part: reads the bytes of logs, folds rows by the plan, and ends in one vector. The same code serves and backfills.

A plan is one int64 array (`features/plan.py` writes it); its shape is the block of constants below. Everything compiled is in this
file, because numba's cache notices a change by the file. Whole numbers stay whole until an aggregate ends: sums are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])
Array = np.ndarray[Any, np.dtype[Any]]
Scratch = tuple[Array, Array, Array, Array]

# The head of a plan: counts, caps, and where each table begins.
LOGS, FACTS, MEASURES, PROFILES, REGISTERS, OUTS, STEPS, CONSTANTS, KNOWNS = range(9)
CAP, CHUNK, KEEP_MS, LONGEST_MS = range(9, 13)
LOG_AT, STEP_AT, OUT_AT, CONSTANT_AT, KNOWN_AT, FACT_AT, KNOWN_REG, SHARED = range(13, 21)
HEAD = 21
# A log's line: bytes a row, then its columns, conditions and cells (how many, where), and the register of its capped flag.
L_SIZE, L_COLUMNS, L_COLUMN_AT, L_CONDITIONS, L_CONDITION_AT, L_CELLS, L_CELL_AT, L_CAPPED = range(8)
LOG_LINE = 8
COLUMN_LINE = 4  # first byte, first bit in it, mask, fact
CONDITION_LINE = 4  # op, column, value, fact
CELL_LINE = 9  # op, column, window, bits needed, register, whether 0 is missing, fact, shared set, delay
STEP_LINE = 6  # op, register, four operands
CONSTANT_LINE = 2  # register, bits of the float
KNOWN_LINE = 2  # profile, first byte

KINDS, BELOW, SAME, NEAR, GIVEN, BELOW_OWN, JUST_UNDER, WEEKDAY, OLDER = range(9)
COUNT, SUM, MEAN, MAX, SPREAD, DISTINCT, LAST, FIRST, EASTWARD, COLLECT, MEETING = range(11)
MINUS, OVER, TIMES, LARGER, DIFFERS, IS_ZERO, IS_MISSING, LOG1P, KIND_IN, KILOMETRES, PLUS, ABOVE, PARTS_DIFFER = range(13)

AT_MS_FACT, KIND_FACT = 1, 2
AT_MS_COLUMN, KIND_COLUMN = 0, 1
"""The first columns of every log: a row's identity is no column, nothing but the search for repeats reads it."""
PAST_BIT = 1 << 62
"""Set in the bits of every row that is not later than the transaction."""
WINDOW_BIT = 1 << 61
"""Set in the bits of those that are in the window at hand too: every cell needs it."""
SIGN = -(1 << 63)
"""Flips the order of signed words into that of unsigned ones."""
DAY = 86_400_000
SPREAD_MAX = 1 << 40
DEGREE = 91
AROUND = 360 * DEGREE
EARTH_KM = 6371.0088
LANES = 16
"""Transactions whose vectors a backfill ends side by side."""
HEADER_NEWEST_AT, HEADER_COUNT_AT, HEADER_MASK = 8, 14, (1 << 48) - 1
AT_MS_BYTE, AT_MS_MASK = 4, (1 << 42) - 1


def compiled(function: F) -> F:
    """The function, compiled when it is first called and kept on disk."""
    return cast(F, numba.njit(cache=True)(function))


def released(function: F) -> F:
    """As `compiled`; runs beside other threads, for work on many transactions at once."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


def inlined(function: F) -> F:
    """As `released`; becomes a part of what calls it, for what is called for every transaction: handing arrays over costs more than a sum."""
    return cast(F, numba.njit(cache=True, nogil=True, forceinline=True)(function))


def _load64(typing_context: Any, buffer: Any, offset: Any) -> Any:
    """Eight bytes at any offset as one little-endian int64; the buffer must reach eight bytes beyond."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        address = builder.gep(array.data, [args[1]])
        word = context.get_value_type(types.int64)
        value = builder.load(builder.bitcast(address, word.as_pointer()))
        value.align = 1
        return value

    return types.int64(buffer, types.int64), generate


def _word(typing_context: Any, array: Any, index: Any) -> Any:
    """`array[index]`, for an index that is known to be inside: no test for negative ones, so that loops become vectors."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.load(builder.gep(words.data, [args[1]]))

    return array.dtype(array, types.int64), generate


def _put(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """`array[index] = value`, for an index that is known to be inside, as `word` reads it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = context.make_array(signature.args[0])(context, builder, args[0])
        builder.store(args[2], builder.gep(words.data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), generate


def _or64(typing_context: Any, buffer: Any, offset: Any, value: Any) -> Any:
    """Sets bits of the eight bytes at any offset, as `load64` reads them; the buffer must reach eight bytes beyond."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        address = builder.bitcast(builder.gep(array.data, [args[1]]), context.get_value_type(types.int64).as_pointer())
        before = builder.load(address)
        before.align = 1
        builder.store(builder.or_(before, args[2]), address).align = 1
        return context.get_dummy_value()

    return types.void(buffer, types.int64, types.int64), generate


def _store64(typing_context: Any, buffer: Any, offset: Any, value: Any) -> Any:
    """Writes eight bytes at any offset, as `load64` reads them."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        address = builder.bitcast(builder.gep(array.data, [args[1]]), context.get_value_type(types.int64).as_pointer())
        builder.store(args[2], address).align = 1
        return context.get_dummy_value()

    return types.void(buffer, types.int64, types.int64), generate


def _pointer(typing_context: Any, array: Any) -> Any:
    """Where an array's values begin. Read and written by index, as the array, but nobody counts who holds it: see `held`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return cast(Any, types).CPointer(array.dtype)(array), generate


def _held(typing_context: Any, arrays: Any) -> Any:
    """Keeps an array, or several, that was made in a compiled function up to here: a pointer to it does not."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_dummy_value()

    return types.void(arrays), generate


pointer: Callable[[Array], Array] = cast(Any, intrinsic(_pointer))
held: Callable[[Any], None] = cast(Any, intrinsic(_held))
word: Callable[[Array, int], Any] = cast(Any, intrinsic(_word))
put: Callable[[Array, int, Any], None] = cast(Any, intrinsic(_put))
load64: Callable[[Array, int], int] = cast(Any, intrinsic(_load64))
or64: Callable[[Array, int, int], None] = cast(Any, intrinsic(_or64))
store64: Callable[[Array, int, int], None] = cast(Any, intrinsic(_store64))


@inlined
def slots_for(rows: int) -> int:
    """Words of a table in which so many values are looked for: a power of two, half of it empty."""
    slots = 16
    while slots < 2 * rows:
        slots *= 2
    return slots


@compiled
def uniques(buffer: Array, start: int, length: int, size: int, own: int, offsets: Array, found: Array, table: Array) -> int:
    """Offsets of the unique rows before the first row with identity `own`, in arrival order; returns how many.

    `found` gets: unique rows trimmed before, newest event time among those, whether `own` occurs twice. `table` is for the search: a power of
    two of words, twice as many as rows at least.
    """
    found[0], found[1], found[2] = 0, 0, 0
    at, end = start, start + length // size * size
    if at < end and load64(buffer, at) == 0:
        found[0] = load64(buffer, at + HEADER_COUNT_AT) & HEADER_MASK
        found[1] = load64(buffer, at + HEADER_NEWEST_AT) & HEADER_MASK
        at += size
    count = _in_order(buffer, at, end, size, own, offsets)
    if count >= 0:
        at += count * size
    else:
        count, at = _told_apart(buffer, at, end, size, own, offsets, table)
    at += size
    while at < end:
        if load64(buffer, at) == own:
            found[2] = 1
        at += size
    return count


@inlined
def _in_order(buffer: Array, at: int, end: int, size: int, own: int, offsets: Array) -> int:
    """How many rows come before the first one with identity `own`, if each one's identity is larger than the one's before: all are unique.

    So it is mostly, as the event time is an identity's high half. -1 if not. `offsets`: where they are.
    """
    before, count = SIGN, 0
    while at < end:
        hash_ = load64(buffer, at)
        if hash_ == own:
            break
        if hash_ ^ SIGN <= before:
            return -1
        put(offsets, count, at)
        before, count, at = hash_ ^ SIGN, count + 1, at + size
    return count


@inlined
def _told_apart(buffer: Array, at: int, end: int, size: int, own: int, offsets: Array, table: Array) -> tuple[int, int]:
    """How many unique rows come before the first one with identity `own`, and where that is. `offsets`: where they are."""
    slots = slots_for((end - at) // size)
    table[:slots] = 0
    count = 0
    while at < end:
        hash_ = load64(buffer, at)
        if hash_ == own:
            break
        slot = (hash_ ^ (hash_ >> 23)) & (slots - 1)
        while word(table, slot) != 0 and word(table, slot) != hash_:
            slot = (slot + 1) & (slots - 1)
        put(offsets, count, at)
        count += 1 if word(table, slot) == 0 else 0
        put(table, slot, hash_)
        at += size
    return count, at


@compiled
def place_of(buffer: Array, size: int, own: int) -> tuple[int, int]:
    """The position of the row with identity `own` in a log (rows before its first occurrence; all, if it has none), and whether it occurs twice.

    `buffer` is the log and eight bytes more.
    """
    length = buffer.size - 8
    offsets = np.empty(length // size + 1, np.int64)
    found = np.empty(3, np.int64)
    count = uniques(buffer, 0, length, size, own, offsets, found, np.empty(slots_for(length // size), np.int64))
    return found[0] + count, found[2]


@compiled
def places(plan: Array, buffer: Array, own: int, tallies: int, out: Array) -> None:
    """The position in each log of the row that each transaction of `look_all`'s buffer left there (as `place_of` finds it), into `out`
    (int64[n, logs]); -1 where there is no log. `own`: own measures of a transaction."""
    memories, at = plan[LOGS] + plan[PROFILES] + tallies, 0
    offsets, _, _, table = _scratch(plan, buffer, own, memories, out.shape[0])
    found = np.empty(3, np.int64)
    for one in range(out.shape[0]):
        identity, lengths = load64(buffer, at), at + 8 * (plan[FACTS] + own)
        at = lengths + 8 * memories
        for memory in range(memories):
            length = load64(buffer, lengths + 8 * memory)
            if memory < plan[LOGS]:
                out[one, memory] = -1
                if length >= 0:
                    size = plan[plan[LOG_AT] + memory * LOG_LINE + L_SIZE]
                    count = uniques(buffer, at, length, size, identity, offsets, found, table)
                    out[one, memory] = found[0] + count
            at += max(length, 0)


@inlined
def visible_from(
    flat: Array, at: int, newest: int, stride: int, position: int, trimmed: int, trimmed_newest: int, cap: int, chunk: int, keep_ms: int
) -> int:
    """The first row, counted from the log's beginning, that a transaction at `position` may see: a function of the rows alone.

    `flat[at + i * stride]` is the event time of row `trimmed + i` and `flat[newest + i * stride]` the newest up to it.
    Full chunks beyond the cap are gone, and then the rows that are too old, judged when the last chunk was filled.
    """
    capped = chunk * ((position - cap) // chunk) if position > cap else 0
    judged = position // chunk * chunk
    first = max(capped, trimmed)
    if judged == 0:
        return first
    known = flat[newest + (judged - 1 - trimmed) * stride] if judged > trimmed else trimmed_newest
    while first < judged and flat[at + (first - trimmed) * stride] <= known - keep_ms:
        first += 1
    return first


@inlined
def row_into(plan: Array, line: int, owns: Array, own: int, out: Array, at: int) -> None:
    """The row that the transaction whose facts begin at `own` appends to the log of that line, to `at` on, where `out` is zero."""
    or64(out, at, load64(owns, own))
    for place in range(plan[line + L_COLUMN_AT], plan[line + L_COLUMN_AT] + plan[line + L_COLUMNS] * COLUMN_LINE, COLUMN_LINE):
        or64(out, at + plan[place], load64(owns, own + 8 * plan[place + 3]) << plan[place + 1])


@compiled
def rows_of(plan: Array, owns: Array, stride: int, out: Array) -> None:
    """The row that each transaction appends to each log, all logs of one after the other; its facts begin at each `stride` bytes of `owns`.

    `out` is zero, and has eight bytes more.
    """
    at = 0
    for own in range(0, owns.size - stride + 1, stride):
        for log in range(plan[LOGS]):
            line = plan[LOG_AT] + log * LOG_LINE
            row_into(plan, line, owns, own, out, at)
            at += plan[line + L_SIZE]


KEPT_ON, UNTIDY = 1, 2


@compiled
def kept_up(plan: Array, buffer: Array, own: int, tallies: int, refresh_ms: int, rewritten: int, out: Array) -> None:
    """What the append of each transaction, of which `look_all` reads the same buffer, leaves to do for each log: bits of `out` (uint8[n, logs]).

    `own`: own measures of a transaction.

    KEPT_ON: expiry is to be put off, as the row is the first one or in another span of `refresh_ms` than the one before it. UNTIDY: the row
    is there twice, or was the last of a chunk, or of `rewritten` rows. Nothing where the log is not there or has no such row.
    """
    memories, at = plan[LOGS] + plan[PROFILES] + tallies, 0
    for one in range(out.shape[0]):
        identity, span = load64(buffer, at), load64(buffer, at + 8 * AT_MS_FACT) // refresh_ms
        lengths = at + 8 * (plan[FACTS] + own)
        at = lengths + 8 * memories
        for log in range(plan[LOGS]):
            size, length = plan[plan[LOG_AT] + log * LOG_LINE + L_SIZE], load64(buffer, lengths + 8 * log)
            last, times = -1, 0
            for row in range(at, at + length // size * size, size):
                if load64(buffer, row) == identity:
                    last, times = row, times + 1
            out[one, log] = 0
            if last >= 0:
                rows = (last - at) // size + 1
                if load64(buffer, at) == 0:
                    rows += (load64(buffer, at + HEADER_COUNT_AT) & HEADER_MASK) - 1
                before = last - size + AT_MS_BYTE
                fresh = last == at or (load64(buffer, before) & AT_MS_MASK) // refresh_ms != span
                out[one, log] = (KEPT_ON if fresh else 0) | (UNTIDY if times > 1 or rows % plan[CHUNK] == 0 or rows % rewritten == 0 else 0)
            at += max(length, 0)
        for memory in range(plan[LOGS], memories):
            at += max(load64(buffer, lengths + 8 * memory), 0)


@compiled
def at_rest(buffer: Array, size: int, cap: int, chunk: int, keep_ms: int, out: Array) -> int:
    """A log (all but the last eight bytes of `buffer`) at rest: each row once, what is no longer seen in the header. How many bytes of `out`."""
    length = buffer.size - 8
    offsets, found = np.empty(length // size + 1, np.int64), np.empty(3, np.int64)
    count = uniques(buffer, 0, length, size, 0, offsets, found, np.empty(slots_for(length // size), np.int64))
    flat = np.empty(2 * count, np.int64)
    newest = found[1]
    for i in range(count):
        flat[i] = load64(buffer, offsets[i] + AT_MS_BYTE) & AT_MS_MASK
        newest = max(newest, flat[i])
        flat[count + i] = newest
    first, position = found[0], found[0] + count - chunk
    if position > 0:
        first = visible_from(flat, 0, count, 1, position, found[0], found[1], cap, chunk, keep_ms)
    gone, at = first - found[0], 0
    if first > 0:
        newest = flat[count + gone - 1] if gone > 0 else found[1]
        out[:size] = 0
        for byte in range(6):
            out[HEADER_NEWEST_AT + byte] = (newest >> (8 * byte)) & 255
            out[HEADER_COUNT_AT + byte] = (first >> (8 * byte)) & 255
        at = size
    for i in range(gone, count):
        out[at : at + size] = buffer[offsets[i] : offsets[i] + size]
        at += size
    return at


@inlined
def _after(flat: Array, newest: int, lo: int, hi: int, since: int) -> int:
    """The first of rows lo to hi that may be later than `since`: up to it even the newest event time is not (`newest` never falls)."""
    while lo < hi:
        middle = (lo + hi) >> 1
        if flat[newest + middle] <= since:
            lo = middle + 1
        else:
            hi = middle
    return lo


@inlined
def _just_under(amount: int, least: int) -> bool:
    """Whether an amount is at most a tenth below `least`, or 10 or 100 ... times as much."""
    while least <= amount:
        least *= 10
    return amount >= least - least // 10


@inlined
def _mark_one(op: int, value: int, number: int, own: int, flat: Array, column: int, bits: Array, rows: int) -> None:
    """Sets bit `number` of each row that meets one condition."""
    bit = 1 << number
    if op == KINDS:
        for i in range(rows):
            bits[i] |= ((value >> word(flat, column + i)) & 1) << number
    elif op == BELOW:
        for i in range(rows):
            bits[i] |= bit if word(flat, column + i) < value else 0
    elif op == SAME:
        for i in range(rows):
            bits[i] |= bit if word(flat, column + i) == own else 0
    elif op == NEAR:
        for i in range(rows):
            apart = abs(word(flat, column + i) - own) % DAY
            bits[i] |= bit if min(apart, DAY - apart) <= value else 0
    elif op == BELOW_OWN:
        for i in range(rows):
            bits[i] |= bit if word(flat, column + i) < own else 0
    elif op == JUST_UNDER:
        for i in range(rows):
            bits[i] |= bit if _just_under(word(flat, column + i), value) else 0
    elif op == WEEKDAY:
        for i in range(rows):
            bits[i] |= bit if (word(flat, column + i) // DAY - own // DAY) % 7 == 0 else 0
    elif op == OLDER:
        for i in range(rows):
            bits[i] |= bit if word(flat, column + i) <= own - value else 0
    else:
        for i in range(rows):
            bits[i] |= bit if word(flat, column + i) != 0 else 0


@inlined
def _mark(plan: Array, line: int, flat: Array, base: int, stride: int, lo: int, hi: int, facts: Array, bits: Array) -> int:
    """Sets, for each row, the bits of the conditions that it meets; returns the bits of those that have no own value to compare with."""
    now = facts[AT_MS_FACT]
    ats, rows = base + AT_MS_COLUMN * stride + lo, hi - lo
    for i in range(rows):
        bits[i] = PAST_BIT if word(flat, ats + i) <= now else 0
    void = 0
    for number in range(plan[line + L_CONDITIONS]):
        condition = plan[line + L_CONDITION_AT] + number * CONDITION_LINE
        column, own = base + plan[condition + 1] * stride + lo, facts[plan[condition + 3]]
        if (plan[condition] == SAME or plan[condition] == BELOW_OWN) and own == 0 and plan[plan[FACT_AT] + plan[condition + 3]] != 0:
            void |= 1 << number
        _mark_one(plan[condition], plan[condition + 2], number, own, flat, column, bits, rows)
    return void


@inlined
def table_words(rows: int, columns: int) -> int:
    """Words of the table that `fold` needs for so many rows of so many columns."""
    return 2 * slots_for(rows) + columns * (rows + 1)


@inlined
def _numbered(flat: Array, column: int, rows: int, table: Array, slots: int, at: int) -> int:
    """Numbers a column's different values from 1 on, 0 for 0, and puts each row's number at `at`; returns the highest."""
    table[:slots] = 0
    count, last, number = 0, 0, 0
    for i in range(rows):
        value = word(flat, column + i)
        if value != last:
            last, number = value, 0
            if value != 0:
                slot = (value ^ (value >> 13)) & (slots - 1)
                while word(table, slot) != 0 and word(table, slot) != value:
                    slot = (slot + 1) & (slots - 1)
                new = word(table, slot) == 0
                count += 1 if new else 0
                number = count if new else word(table, slots + slot)
                put(table, slot, value)
                put(table, slots + slot, number)
        put(table, at + i, number)
    return count


@inlined
def _bits_set(value: int) -> int:
    """How many bits are set, but the lowest one."""
    value &= ~1
    value -= (value >> 1) & 0x5555555555555555
    value = (value & 0x3333333333333333) + ((value >> 2) & 0x3333333333333333)
    value = (value + (value >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((value * 0x0101010101010101) >> 56) & 0xFF


@inlined
def _distinct(rows: int, bits: Array, skip: int, need: int, table: Array, numbers: int, kinds: int) -> int:
    """How many different values, other than 0, rows that count have, whose values have these numbers (up to `kinds`) in `table`."""
    if kinds < 63:
        found = 0
        for i in range(rows):
            found |= (1 if (word(bits, skip + i) & need) == need else 0) << word(table, numbers + i)
        return _bits_set(found)
    words = kinds // 32 + 1  # 32 to a word: the lowest bit of each is not counted
    table[:words] = 0
    for i in range(rows):
        number = word(table, numbers + i) - 1
        place = number >> 5 if number >= 0 else 0
        bit = 2 << (number & 31) if number >= 0 else 1
        put(table, place, word(table, place) | (bit if (word(bits, skip + i) & need) == need else 0))
    count = 0
    for place in range(words):
        count += _bits_set(word(table, place))
    return count


@inlined
def _collect(flat: Array, column: int, rows: int, bits: Array, skip: int, need: int, table: Array, shared: Array, at: int) -> int:
    """The different values, other than 0, that a column has in the rows that count: how many, at `at`, and behind that each of them."""
    slots = slots_for(rows)
    table[:slots] = 0
    count = 0
    for i in range(rows):
        value = word(flat, column + i)
        if value != 0 and (word(bits, skip + i) & need) == need:
            slot = (value ^ (value >> 13)) & (slots - 1)
            while table[slot] != 0 and table[slot] != value:
                slot = (slot + 1) & (slots - 1)
            if table[slot] == 0:
                table[slot] = value
                count += 1
                shared[at + count] = value
    shared[at] = count
    return count


@inlined
def _meeting(flat: Array, column: int, rows: int, bits: Array, skip: int, need: int, table: Array, shared: Array, at: int) -> float:
    """How many of the values collected at `at` a column has in the rows that count; missing if nothing was collected."""
    if shared[at] < 0:
        return math.nan
    slots = slots_for(shared[at])
    table[:slots] = 0
    for i in range(1, shared[at] + 1):
        slot = (shared[at + i] ^ (shared[at + i] >> 13)) & (slots - 1)
        while table[slot] != 0:
            slot = (slot + 1) & (slots - 1)
        table[slot] = shared[at + i]
    count = 0
    for i in range(rows):
        value = word(flat, column + i)
        if value != 0 and (word(bits, skip + i) & need) == need:
            slot = (value ^ (value >> 13)) & (slots - 1)
            while table[slot] != 0 and abs(table[slot]) != value:
                slot = (slot + 1) & (slots - 1)
            if table[slot] == value:
                table[slot] = -value
                count += 1
    return float(count)


@inlined
def _eastward(flat: Array, column: int, rows: int, bits: Array, skip: int, need: int, own: int) -> float:
    """The mean of how far east of `own` the rows that count lie, the short way around; missing without `own`."""
    n, total = 0, 0
    for i in range(rows):
        if (word(bits, skip + i) & need) == need:
            n += 1
            total += (word(flat, column + i) - own + AROUND // 2) % AROUND - AROUND // 2
    return float(total) / n if n > 0 and own != 0 else math.nan


@inlined
def _spread(flat: Array, column: int, rows: int, bits: Array, skip: int, need: int) -> float:
    """Population standard deviation from exact whole sums: n * sum(x^2) - sum(x)^2 in three parts that each fit in 64 bits."""
    n, high, low, hh, hl, ll = 0, 0, 0, 0, 0, 0
    for i in range(rows):
        counts = (word(bits, skip + i) & need) == need
        value = min(word(flat, column + i), SPREAD_MAX - 1) if counts else 0
        a, b = value >> 20, value & 0xFFFFF
        n, high, low, hh, hl, ll = n + (1 if counts else 0), high + a, low + b, hh + a * a, hl + a * b, ll + b * b
    if n == 0:
        return math.nan
    squares = float(n * hh - high * high) * float(1 << 40)
    squares += float(n * hl - high * low) * float(1 << 21)
    squares += float(n * ll - low * low)
    return math.sqrt(max(squares, 0.0)) / n


@inlined
def _last(flat: Array, column: int, ats: int, newests: int, rows: int, bits: Array, skip: int, need: int, zero_is_missing: int) -> float:
    """The column in the latest row that counts; of one event time the one that arrived last."""
    at, value, i = -1, 0, rows - 1
    while i >= 0 and word(flat, newests + i) > at:  # no row before is later than the newest up to there
        if (word(bits, skip + i) & need) == need and word(flat, ats + i) > at:
            at, value = word(flat, ats + i), word(flat, column + i)
        i -= 1
    return math.nan if at < 0 or (value == 0 and zero_is_missing != 0) else float(value)


@inlined
def _count(rows: int, bits: Array, skip: int, need: int) -> float:
    """How many rows count."""
    n = 0
    for i in range(rows):
        n += 1 if (word(bits, skip + i) & need) == need else 0
    return float(n)


@inlined
def _sum(op: int, flat: Array, column: int, rows: int, bits: Array, skip: int, need: int) -> float:
    """Sum or mean of the rows that count."""
    n, total = 0, 0
    for i in range(rows):
        counts = (word(bits, skip + i) & need) == need
        n += 1 if counts else 0
        total += word(flat, column + i) if counts else 0
    if op == SUM:
        return float(total)
    return float(total) / n if n > 0 else math.nan


@inlined
def _extreme(op: int, flat: Array, column: int, rows: int, bits: Array, skip: int, need: int) -> float:
    """The largest or the smallest value in the rows that count."""
    largest, smallest = -1, 1 << 62
    for i in range(rows):
        counts, value = (word(bits, skip + i) & need) == need, word(flat, column + i)
        largest, smallest = max(largest, value if counts else -1), min(smallest, value if counts else 1 << 62)
    if largest < 0:
        return math.nan
    return float(largest) if op == MAX else float(smallest)


@inlined
def _cell(
    op: int,
    flat: Array,
    column: int,
    ats: int,
    newests: int,
    rows: int,
    bits: Array,
    skip: int,
    need: int,
    zero_is_missing: int,
    own: int,
    table: Array,
    shared: Array,
    at: int,
) -> float:
    """One aggregate over the rows that have all the bits needed."""
    if op == COUNT:
        return _count(rows, bits, skip, need)
    if op <= MEAN:
        return _sum(op, flat, column, rows, bits, skip, need)
    if op == SPREAD:
        return _spread(flat, column, rows, bits, skip, need)
    if op == LAST:
        return _last(flat, column, ats, newests, rows, bits, skip, need, zero_is_missing)
    if op == EASTWARD:
        return _eastward(flat, column, rows, bits, skip, need, own)
    if op == COLLECT:
        return float(_collect(flat, column, rows, bits, skip, need, table, shared, at))
    if op == MEETING:
        return _meeting(flat, column, rows, bits, skip, need, table, shared, at)
    return _extreme(op, flat, column, rows, bits, skip, need)


@inlined
def _windowed(flat: Array, ats: int, rows: int, bits: Array, skip: int, since: int, until: int) -> int:
    """Marks the rows whose event time is after `since` and not after `until`; returns every bit that one of them has.

    If a bit that is needed is not among those, no row counts, and none needs to be looked at.
    """
    found = 0
    for i in range(rows):
        inside = since < word(flat, ats + i) <= until
        bits[skip + i] = word(bits, skip + i) & ~WINDOW_BIT | (WINDOW_BIT if inside else 0)
        found |= word(bits, skip + i) if inside else 0
    return found


@inlined
def _of_nothing(op: int, shared: Array, at: int) -> float:
    """An aggregate over no rows."""
    if op == COLLECT:
        shared[at] = 0
    if op == MEETING and shared[at] < 0:
        return math.nan
    return 0.0 if op in (COUNT, SUM, DISTINCT, COLLECT, MEETING) else math.nan


@compiled
def fold(
    plan: Array,
    log: int,
    flat: Array,
    base: int,
    stride: int,
    lo: int,
    hi: int,
    facts: Array,
    registers: Array,
    bits: Array,
    table: Array,
    shared: Array,
) -> None:
    """All aggregates of one log over its rows lo to hi, each into its register.

    Columns lie side by side in `flat`, the newest event time so far behind the last. Cells come by falling reach (window and
    delay), so that the rows of a window begin where those of the one before did, or later.
    """
    line = plan[LOG_AT] + log * LOG_LINE
    now = facts[AT_MS_FACT]
    ats, newest = base + AT_MS_COLUMN * stride, base + plan[line + L_COLUMNS] * stride
    lo = _after(flat, newest, lo, hi, now - plan[LONGEST_MS])
    void = _mark(plan, line, flat, base, stride, lo, hi, facts, bits)
    first, window, delay, found = lo, 0, 0, 0
    slots, numbered = slots_for(hi - lo), 0
    for number in range(plan[line + L_CELLS]):
        cell = plan[line + L_CELL_AT] + number * CELL_LINE
        need = plan[cell + 3]
        if plan[cell + 2] != window or plan[cell + 8] != delay:
            window, delay = plan[cell + 2], plan[cell + 8]
            first = _after(flat, newest, first, hi, now - delay - window)
            found = _windowed(flat, ats + first, hi - first, bits, first - lo, now - delay - window, now - delay)
        if (need & void) != 0:
            registers[plan[cell + 4]] = math.nan
            continue
        if (found & need) != need:
            registers[plan[cell + 4]] = _of_nothing(plan[cell], shared, plan[cell + 7] * (plan[CAP] + plan[CHUNK] + 1))
            continue
        column = base + plan[cell + 1] * stride
        if plan[cell] == DISTINCT:
            numbers = 2 * slots + plan[cell + 1] * (hi - lo + 1)
            if numbered >> plan[cell + 1] & 1 == 0:
                numbered |= 1 << plan[cell + 1]
                put(table, numbers, _numbered(flat, column + lo, hi - lo, table, slots, numbers + 1))
            found_numbers, kinds = numbers + 1 + first - lo, word(table, numbers)
            registers[plan[cell + 4]] = float(_distinct(hi - first, bits, first - lo, need, table, found_numbers, kinds))
            continue
        registers[plan[cell + 4]] = _cell(
            plan[cell],
            flat,
            column + first,
            ats + first,
            newest + first,
            hi - first,
            bits,
            first - lo,
            need,
            plan[cell + 5],
            facts[plan[cell + 6]],
            table,
            shared,
            plan[cell + 7] * (plan[CAP] + plan[CHUNK] + 1),
        )


@inlined
def _kilometres(latitude: float, longitude: float, latitude2: float, longitude2: float) -> float:
    """Great-circle distance of two places in stored codes (haversine)."""
    step = math.pi / 180.0 / DEGREE
    north, north2 = (latitude - 1.0) * step - math.pi / 2.0, (latitude2 - 1.0) * step - math.pi / 2.0
    up, over = math.sin((north2 - north) / 2.0), math.sin((longitude2 - longitude) * step / 2.0)
    return 2.0 * EARTH_KM * math.asin(min(1.0, math.sqrt(up * up + math.cos(north) * math.cos(north2) * over * over)))


@inlined
def _parts_differ(one: int, other: int) -> float:
    """How many bytes of two fingerprints differ where both have one."""
    count = 0
    while one != 0 and other != 0:
        a, b = one & 0xFF, other & 0xFF
        count += 1 if a != 0 and b != 0 and a != b else 0
        one, other = one >> 8, other >> 8
    return float(count)


@inlined
def _calculated(op: int, a: float, b: float, c: float, d: float) -> float:
    """One step of a row's expression."""
    if op == IS_MISSING:
        return 1.0 if math.isnan(a) else 0.0
    if math.isnan(a) or math.isnan(b) or math.isnan(c) or math.isnan(d):
        return math.nan
    if op == MINUS:
        return a - b
    if op == OVER:
        return math.nan if b == 0.0 else a / b
    if op == TIMES:
        return a * b
    if op == LARGER:
        return max(a, b)
    if op == DIFFERS:
        return 1.0 if a != b else 0.0
    if op == IS_ZERO:
        return 1.0 if a == 0.0 else 0.0
    if op == LOG1P:
        return math.log1p(a)
    if op == KIND_IN:
        return float((int(b) >> int(a)) & 1)
    if op == PLUS:
        return a + b
    if op == ABOVE:
        return 1.0 if a > b else 0.0
    if op == PARTS_DIFFER:
        return _parts_differ(int(a), int(b))
    return _kilometres(a, b, c, d)


@inlined
def _begin(plan: Array, facts: Array, registers: Array) -> None:
    """Registers before any log is read: the transaction's own facts and the constants; all else missing."""
    registers[:] = math.nan
    for fact in range(plan[FACTS]):
        if facts[fact] != 0 or plan[plan[FACT_AT] + fact] == 0:
            registers[fact] = float(facts[fact])
    for number in range(plan[CONSTANTS]):
        line = plan[CONSTANT_AT] + number * CONSTANT_LINE
        registers[plan[line]] = np.int64(plan[line + 1]).view(np.float64)


@inlined
def _nothing_shared(plan: Array, shared: Array) -> None:
    """Marks the sets that one log hands to another as not collected."""
    for number in range(plan[SHARED]):
        shared[number * (plan[CAP] + plan[CHUNK] + 1)] = -1


@inlined
def _end(plan: Array, registers: Array, out: Array) -> None:
    """The steps of all expressions, then the vector."""
    for number in range(plan[STEPS]):
        step = plan[STEP_AT] + number * STEP_LINE
        a, b = registers[plan[step + 2]], registers[plan[step + 3]]
        registers[plan[step + 1]] = _calculated(plan[step], a, b, registers[plan[step + 4]], registers[plan[step + 5]])
    for number in range(plan[OUTS]):
        out[number] = registers[plan[plan[OUT_AT] + number]]


@inlined
def _capped(plan: Array, log: int, first: int, newest_gone: int, now: int, registers: Array) -> None:
    """Whether the longest window would have seen a row that is gone."""
    register = plan[plan[LOG_AT] + log * LOG_LINE + L_CAPPED]
    if register >= 0:
        registers[register] = 1.0 if first > 0 and newest_gone > now - plan[LONGEST_MS] else 0.0


@compiled
def _read_log(
    plan: Array, log: int, buffer: Array, start: int, length: int, facts: Array, registers: Array, found: Array, shared: Array, room: Scratch
) -> int:
    """One log's bytes, decoded and folded; returns the transaction's position in it."""
    offsets, flat, bits, table = room
    line = plan[LOG_AT] + log * LOG_LINE
    size, columns = plan[line + L_SIZE], plan[line + L_COLUMNS]
    count = uniques(buffer, start, length, size, facts[0], offsets, found, table)
    for column in range(columns):
        place = plan[line + L_COLUMN_AT] + column * COLUMN_LINE
        byte, bit, mask, at = plan[place], plan[place + 1], plan[place + 2], column * count
        for i in range(count):
            put(flat, at + i, (load64(buffer, word(offsets, i) + byte) >> bit) & mask)
    newest, ats, newests = found[1], AT_MS_COLUMN * count, columns * count
    for i in range(count):
        newest = max(newest, word(flat, ats + i))
        put(flat, newests + i, newest)
    position: int = found[0] + count
    first = visible_from(flat, ats, newests, 1, position, found[0], found[1], plan[CAP], plan[CHUNK], plan[KEEP_MS])
    lo = first - found[0]
    _capped(plan, log, first, flat[newests + lo - 1] if lo > 0 else found[1], facts[AT_MS_FACT], registers)
    fold(plan, log, flat, 0, count, lo, count, facts, registers, bits, table, shared)
    return position


@compiled
def _scratch(plan: Array, buffer: Array, own: int, memories: int, count: int) -> Scratch:
    """Room in which the logs of these transactions are read one after the other: what the longest of them needs."""
    most, widest, at = plan[CAP] + plan[CHUNK], 1, 0
    for log in range(plan[LOGS]):
        widest = max(widest, plan[plan[LOG_AT] + log * LOG_LINE + L_COLUMNS])
    for _ in range(count):
        lengths = at + 8 * (plan[FACTS] + own)
        at = lengths + 8 * memories
        for memory in range(memories):
            length = load64(buffer, lengths + 8 * memory)
            if memory < plan[LOGS]:
                most = max(most, length // plan[plan[LOG_AT] + memory * LOG_LINE + L_SIZE])
            at += max(length, 0)
    return (
        np.empty(most + 1, np.int64),
        np.empty((widest + 1) * most, np.int64),
        np.empty(most + 1, np.int64),
        np.empty(table_words(most, widest), np.int64),
    )


@compiled
def _known(plan: Array, buffer: Array, at: int, lengths: int, now: int, registers: Array) -> None:
    """What the profiles that lie from `at` on say. One whose last columns nobody ever wrote is shorter than its layout."""
    for number in range(plan[KNOWNS]):
        known = plan[KNOWN_AT] + number * KNOWN_LINE
        start = at
        for profile in range(plan[known]):
            start += max(load64(buffer, lengths + 8 * profile), 0)
        if plan[known + 1] + 16 <= load64(buffer, lengths + 8 * plan[known]):
            since = load64(buffer, start + plan[known + 1] + 8)
            if 0 < since <= now:
                registers[plan[KNOWN_REG] + number] = np.int64(load64(buffer, start + plan[known + 1])).view(np.float64)


@compiled
def look_all(plan: Array, buffer: Array, tallies: int, told: Array, out: Array) -> None:
    """Transactions, one after the other in `buffer`: each its facts (int64) and own measures (float64), the lengths of each log, profile
    and tally (int64; -1: there is none), and the bytes of all these. Behind the last one are eight bytes more.

    `told`: each one's further measures, which its tallies tell. `out`: each one's vector, then position and 'occurs twice' of each log.
    """
    facts = np.empty(plan[FACTS], np.int64)
    registers = np.empty(plan[REGISTERS], np.float64)
    found = np.empty(3, np.int64)
    shared = np.empty(plan[SHARED] * (plan[CAP] + plan[CHUNK] + 1), np.int64)
    own, memories = plan[MEASURES] - told.shape[1], plan[LOGS] + plan[PROFILES] + tallies
    room, at = _scratch(plan, buffer, own, memories, out.shape[0]), 0
    for one in range(out.shape[0]):
        for fact in range(plan[FACTS]):
            facts[fact] = load64(buffer, at + 8 * fact)
        _begin(plan, facts, registers)
        at += 8 * plan[FACTS]
        for number in range(own):
            registers[plan[FACTS] + number] = np.int64(load64(buffer, at + 8 * number)).view(np.float64)
        for number in range(told.shape[1]):
            registers[plan[FACTS] + own + number] = told[one, number]
        lengths = at + 8 * own
        at = lengths + 8 * memories
        _nothing_shared(plan, shared)
        for log in range(plan[LOGS]):
            length = load64(buffer, lengths + 8 * log)
            position = -1
            found[2] = 0
            if length >= 0:
                position = _read_log(plan, log, buffer, at, length, facts, registers, found, shared, room)
            out[one, plan[OUTS] + 2 * log] = position
            out[one, plan[OUTS] + 2 * log + 1] = found[2]
            at += max(length, 0)
        _known(plan, buffer, at, lengths + 8 * plan[LOGS], facts[AT_MS_FACT], registers)
        _end(plan, registers, out[one])
        for memory in range(plan[LOGS], memories):
            at += max(load64(buffer, lengths + 8 * memory), 0)


@compiled
def where_read(plan: Array, buffer: Array, own: int, tallies: int, head: int, heads: Array, seen: Array, lengths_seen: Array) -> None:
    """How far what each transaction of `look_all`'s buffer read had come: the first `head` bytes of each tally, and which profile values it saw.

    `heads`: uint8[n, tallies * head], zeros before. `seen`: uint8[n, 7 a value], of which `lengths_seen` are written (`profile.SEEN_BYTES`).
    """
    memories, at = plan[LOGS] + plan[PROFILES] + tallies, 0
    for one in range(heads.shape[0]):
        now, lengths = load64(buffer, at + 8 * AT_MS_FACT), at + 8 * (plan[FACTS] + own)
        at, used = lengths + 8 * memories, 0
        for memory in range(memories):
            length, number = load64(buffer, lengths + 8 * memory), memory - plan[LOGS]
            if 0 <= number < plan[PROFILES]:
                for column in range(min(length // 16, (seen.shape[1] - used) // 7)):
                    since = load64(buffer, at + 16 * column + 8)
                    if 0 < since <= now:
                        seen_word = since << 8 | number << 5 | column
                        for byte in range(7):
                            seen[one, used + byte] = (seen_word >> (8 * byte)) & 255
                        used += 7
            elif number >= plan[PROFILES] and length >= head:
                tally = number - plan[PROFILES]
                heads[one, tally * head : (tally + 1) * head] = buffer[at : at + head]
            at += max(length, 0)
        lengths_seen[one] = used


# Backfill: the logs of all entities in one array of words, and what arrives, appended to them.

S_AT, S_ROOM, S_ROWS, S_GONE, S_GONE_NEWEST, S_TOKEN, S_LOG, S_NEWEST = range(8)
SEGMENT = 8
"""A segment's words: where it begins, room for rows (each column has so many words, and behind them the newest event time so far and the
identities), rows, rows gone, the newest event time of those, token, log, the newest event time of all."""
H_SEGMENTS, H_USED, H_NEXT, H_ASKED, H_HOLE, H_HOLE_END = range(6)
HEADS = 6
"""How many segments, how many words are used, the transaction at which to go on, how many words it asks for, and between which words nothing
is any more: others moved away from there."""
NOBODY, EMPTY = -1, -2


@inlined
def _segment_at(table: Array, segments: Array, token: int, log: int) -> int:
    """The place in the table of an entity's segment, or of where it would be."""
    place = (token ^ (token >> 31) ^ (log * 0x9E3779B1)) & (table.size - 1)
    while table[place] != 0 and (segments[table[place] - 1, S_TOKEN] != token or segments[table[place] - 1, S_LOG] != log):
        place = (place + 1) & (table.size - 1)
    return place


@inlined
def _row_with(flat: Array, at: int, rows: int, identity: int) -> int:
    """The last of so many identities that is this one; -1 if none is."""
    found = -1
    for row in range(rows):
        found = row if flat[at + row] == identity else found
    return found


@released
def _moved(flat: Array, segment: Array, into: Array, at: int, room: int, width: int) -> None:
    """Copies a segment's rows to where it has more (or less) room."""
    rows = segment[S_ROWS]
    for column in range(width):
        to, from_ = at + column * room, segment[S_AT] + column * segment[S_ROOM]
        into[to : to + rows] = flat[from_ : from_ + rows]
    segment[S_AT], segment[S_ROOM] = at, room


@released
def placed(kind: int, tokens: Array, table: Array, segments: Array, heads: Array, places: Array) -> bool:
    """`places`: the segment of each transaction's log of one kind, made where there was none (NOBODY: no such entity), from `heads[H_NEXT]` on.

    False: there was no room for a segment, make some.
    """
    for number in range(heads[H_NEXT], tokens.size):
        heads[H_NEXT], places[number] = number, NOBODY
        if tokens[number] == 0:
            continue
        place = _segment_at(table, segments, tokens[number], kind)
        if table[place] == 0:
            if heads[H_SEGMENTS] == segments.shape[0] or 2 * heads[H_SEGMENTS] >= table.size:
                return False
            segments[heads[H_SEGMENTS]] = 0
            segments[heads[H_SEGMENTS], S_TOKEN], segments[heads[H_SEGMENTS], S_LOG] = tokens[number], kind
            heads[H_SEGMENTS] += 1
            table[place] = heads[H_SEGMENTS]
        places[number] = table[place] - 1
    heads[H_NEXT] = tokens.size
    return True


@released
def looked_up(kind: int, tokens: Array, table: Array, segments: Array, looked: Array) -> None:
    """`looked`: the segment of each token's log of one kind; NOBODY: no token; EMPTY: there is none."""
    for number in range(tokens.size):
        looked[number] = NOBODY
        if tokens[number] != 0:
            found = table[_segment_at(table, segments, tokens[number], kind)] - 1
            looked[number] = found if found >= 0 else EMPTY


@inlined
def _met(each: int, places: Array, looked: Array) -> int:
    """The segment of one step of `members`: where the transaction appends, or the other one into which it looks; negative: none."""
    own = places[each >> 1]
    if each & 1:
        return int(own)
    return int(looked[each >> 1]) if looked.size > 0 and looked[each >> 1] != own else NOBODY


@released
def members(places: Array, looked: Array, counts: Array, order: Array, starts: Array, touched: Array) -> int:
    """Brings together what happens to the same segment, as it comes: group g is `order[starts[g]:starts[g + 1]]`, of `touched[g]`.

    Transaction i appends to `places[i]`: 2 i + 1. Just before that it looks into `looked[i]`, if that is another one: 2 i. `counts` is as long
    as there are segments, and zero. Returns how many groups.
    """
    groups = total = 0
    for each in range(2 * places.size):
        place = _met(each, places, looked)
        if place >= 0:
            if counts[place] == 0:
                touched[groups] = place
                groups += 1
            counts[place] += 1
    for group in range(groups):
        starts[group] = total
        total += counts[touched[group]]
        counts[touched[group]] = starts[group]
    starts[groups] = total
    for each in range(2 * places.size):
        place = _met(each, places, looked)
        if place >= 0:
            order[counts[place]] = each
            counts[place] += 1
    return groups


@released
def room_for(
    order: Array, starts: Array, touched: Array, groups: int, declined: Array, width: int, segments: Array, heads: Array, flat: Array, wanted: Array
) -> bool:
    """Gives the segments of these groups (`members`) room for their rows, with some to spare. False: `heads[H_ASKED]` words are needed."""
    heads[H_ASKED] = 0
    for group in range(groups):
        wanted[group] = 0
        for at in range(starts[group], starts[group + 1]):
            wanted[group] += 0 if order[at] & 1 == 0 else 2 if declined[order[at] >> 1] else 1
        rows = segments[touched[group], S_ROWS] + wanted[group]
        heads[H_ASKED] += (rows + rows // 4 + 2) * width if rows > segments[touched[group], S_ROOM] else 0
    if heads[H_USED] + heads[H_ASKED] > flat.size:
        return False
    left = left_end = 0
    for group in range(groups):
        segment = segments[touched[group]]
        rows, before = segment[S_ROWS] + wanted[group], segment[S_ROOM] * width
        if rows > segment[S_ROOM]:
            room = rows + rows // 4 + 2
            if before > 0:
                left = left if segment[S_AT] == left_end else segment[S_AT]
                left_end = segment[S_AT] + before
            place = H_HOLE if heads[H_HOLE] + room * width <= heads[H_HOLE_END] else H_USED
            _moved(flat, segment, flat, heads[place], room, width)
            heads[place] += room * width
    if left_end - left > heads[H_HOLE_END] - heads[H_HOLE]:
        heads[H_HOLE], heads[H_HOLE_END] = left, left_end
    return True


@released
def arrive(
    plan: Array,
    log: int,
    order: Array,
    starts: Array,
    touched: Array,
    groups: int,
    facts: Array,
    declined: Array,
    declined_identities: Array,
    declined_kind: int,
    forget: int,
    recognised: int,
    segments: Array,
    flat: Array,
    positions: Array,
    looked: Array,
    looked_positions: Array,
) -> None:
    """Appends transactions to the logs of one kind, each once: those of these groups (`members`). There is `room_for` them.

    `positions` gets each transaction's position in its segment, that of its first occurrence, and `looked_positions` in the one that it only
    looks into (of which `looked` becomes EMPTY if nothing is there yet). A log whose newest row is not after `forget` begins anew.
    """
    line = plan[LOG_AT] + log * LOG_LINE
    columns, width, looks = plan[line + L_COLUMNS], facts.shape[1], looked.size > 0
    sources = np.empty(2 * order.size + 1, np.int64)
    tables, own, rows_of, from_ = pointer(plan), pointer(facts), pointer(flat), pointer(sources)
    for group in range(groups):
        place = touched[group]
        at, stride, rows, gone = segments[place, S_AT], segments[place, S_ROOM], segments[place, S_ROWS], segments[place, S_GONE]
        newest, before = segments[place, S_NEWEST], rows
        newests, identities = at + columns * stride, at + (columns + 1) * stride
        for each in range(starts[group], starts[group + 1]):
            number = order[each] >> 1
            if order[each] & 1 == 0:
                looked_positions[number] = gone + rows
                if gone + rows == 0 or newest <= forget:
                    looked[number], looked_positions[number] = EMPTY, 0
                continue
            if newest <= forget:
                rows, gone, newest, before = 0, 0, 0, 0
                segments[place, S_GONE], segments[place, S_GONE_NEWEST] = 0, 0
            at_ms = own[number * width + AT_MS_FACT]
            late = rows > 0 and at_ms <= newest
            for again in range(2 if declined[number] else 1):
                identity, row = own[number * width] if again == 0 else declined_identities[number], -1
                if late:
                    skipped = max(rows - recognised, 0)
                    row = _row_with(rows_of, identities + skipped, rows - skipped, identity)
                    row += skipped if row >= 0 else 0
                if row < 0:
                    row, rows = rows, rows + 1
                    newest = max(newest, at_ms)
                    rows_of[at + AT_MS_COLUMN * stride + row] = at_ms
                    rows_of[at + KIND_COLUMN * stride + row] = own[number * width + KIND_FACT] if again == 0 else declined_kind
                    rows_of[newests + row], rows_of[identities + row] = newest, identity
                    from_[row - before] = number * width
                if again == 0:
                    positions[number] = gone + row
            if looks and looked[number] == place:
                looked_positions[number] = positions[number]
        for column in range(KIND_COLUMN + 1, columns):
            fact, to = tables[tables[line + L_COLUMN_AT] + column * COLUMN_LINE + 3], at + column * stride + before
            for row in range(rows - before):
                rows_of[to + row] = own[from_[row] + fact]
        segments[place, S_ROWS], segments[place, S_NEWEST] = rows, newest
    held(sources)


@released
def _first_kept(plan: Array, flat: Array, segment: Array, columns: int, recognised: int) -> int:
    """The first row of a log that may still be seen: by who comes next, or by who comes again and is recognised."""
    position = segment[S_GONE] + segment[S_ROWS] - recognised
    if position <= segment[S_GONE]:
        return int(segment[S_GONE])
    at, gone, gone_newest = segment[S_AT], segment[S_GONE], segment[S_GONE_NEWEST]
    newest = at + columns * segment[S_ROOM]
    return int(visible_from(flat, at, newest, 1, position, gone, gone_newest, plan[CAP], plan[CHUNK], plan[KEEP_MS]))


@released
def trim(plan: Array, widths: Array, segments: Array, places: Array, recognised: int, flat: Array) -> None:
    """Drops from the logs of these segments the rows that nobody can see any more, where they are many."""
    many = recognised + plan[CAP] + 4 * plan[CHUNK]
    for place in places:
        if place < 0 or segments[place, S_ROWS] <= many:
            continue
        segment, width = segments[place], widths[segments[place, S_LOG]]
        gone = _first_kept(plan, flat, segment, width - 2, recognised) - segment[S_GONE]
        if gone <= 0:
            continue
        segment[S_GONE_NEWEST] = flat[segment[S_AT] + (width - 2) * segment[S_ROOM] + gone - 1]
        segment[S_GONE] += gone
        segment[S_ROWS] -= gone
        for column in range(width):
            at = segment[S_AT] + column * segment[S_ROOM]
            for row in range(at, at + segment[S_ROWS]):
                flat[row] = flat[row + gone]


@released
def live(segments: Array, count: int, widths: Array, forget: int) -> int:
    """How many words the logs need that are not forgotten, with some room for each."""
    words = 0
    for number in range(count):
        if segments[number, S_NEWEST] > forget:
            words += (segments[number, S_ROWS] + segments[number, S_ROWS] // 4 + 2) * widths[segments[number, S_LOG]]
    return words


@released
def compact(segments: Array, heads: Array, widths: Array, forget: int, flat: Array, table: Array, fresh: Array, into: Array) -> None:
    """Copies the logs that are not forgotten into new arrays, one behind the other: `into`, `fresh` and (all zeros) `table`."""
    count = used = 0
    for number in range(heads[H_SEGMENTS]):
        if segments[number, S_NEWEST] <= forget:
            continue
        old, width = segments[number], widths[segments[number, S_LOG]]
        room = old[S_ROWS] + old[S_ROWS] // 4 + 2
        fresh[count] = old
        _moved(flat, fresh[count], into, used, room, width)
        table[_segment_at(table, fresh, old[S_TOKEN], old[S_LOG])] = count + 1
        used += room * width
        count += 1
    heads[H_SEGMENTS], heads[H_USED], heads[H_HOLE], heads[H_HOLE_END] = count, used, 0, 0


@released
def look_on(
    plan: Array,
    walk: Array,
    facts: Array,
    measures: Array,
    known: Array,
    places: Array,
    positions: Array,
    segments: Array,
    flat: Array,
    outs: Array,
    out: Array,
) -> None:
    """The vector of every transaction of `walk`, into `out[outs[transaction]]`: what it finds at its position in the segment of each log.

    `walk` is the order of work: neighbours in a log one after the other find its columns in the processor's cache.
    """
    registers = np.empty(plan[REGISTERS], np.float64)
    most, widest = plan[CAP] + plan[CHUNK] + 1, 1
    for log in range(plan[LOGS]):
        widest = max(widest, plan[plan[LOG_AT] + log * LOG_LINE + L_COLUMNS])
    bits, table = np.empty(most, np.int64), np.empty(table_words(most, widest), np.int64)
    shared = np.empty(plan[SHARED] * most, np.int64)
    for number in walk:
        own = facts[number]
        _begin(plan, own, registers)
        _nothing_shared(plan, shared)
        for measure in range(plan[MEASURES]):
            registers[plan[FACTS] + measure] = measures[number, measure]
        for column in range(plan[KNOWNS]):
            registers[plan[KNOWN_REG] + column] = known[number, column]
        for log in range(plan[LOGS]):
            place = places[log, number]
            if place == NOBODY:
                continue
            if place == EMPTY:
                _capped(plan, log, 0, 0, own[AT_MS_FACT], registers)
                fold(plan, log, flat, 0, 0, 0, 0, own, registers, bits, table, shared)
                continue
            base, stride, gone = segments[place, S_AT], segments[place, S_ROOM], segments[place, S_GONE]
            gone_newest = segments[place, S_GONE_NEWEST]
            ats, newest = base + AT_MS_COLUMN * stride, base + plan[plan[LOG_AT] + log * LOG_LINE + L_COLUMNS] * stride
            position = positions[log, number]
            start = visible_from(flat, ats, newest, 1, position, gone, gone_newest, plan[CAP], plan[CHUNK], plan[KEEP_MS])
            before = start - gone - 1
            _capped(plan, log, start, flat[newest + before] if before >= 0 else gone_newest, own[AT_MS_FACT], registers)
            fold(plan, log, flat, base, stride, start - gone, position - gone, own, registers, bits, table, shared)
        _end(plan, registers, out[outs[number]])


@released
def first_seen(
    plan: Array, log: int, order: Array, starts: Array, touched: Array, groups: int, positions: Array, segments: Array, flat: Array, firsts: Array
) -> None:
    """`firsts`: the first row that each transaction of these groups (`sweep_kernel.grouped`) may see in this log."""
    columns = plan[plan[LOG_AT] + log * LOG_LINE + L_COLUMNS]
    for group in range(groups):
        segment = segments[touched[group]]
        at, gone, gone_newest = segment[S_AT], segment[S_GONE], segment[S_GONE_NEWEST]
        newest = at + columns * segment[S_ROOM]
        chunk, first = -1, 0
        for i in range(starts[group], starts[group + 1]):
            position = positions[order[i]]
            if position // plan[CHUNK] != chunk:
                chunk = position // plan[CHUNK]
                first = visible_from(flat, at, newest, 1, position, gone, gone_newest, plan[CAP], plan[CHUNK], plan[KEEP_MS])
            firsts[order[i]] = first


@released
def _newest_gone(plan: Array, log: int, segment: Array, first: int, flat: Array) -> int:
    """The newest event time among the rows before `first`."""
    before, columns = first - segment[S_GONE] - 1, plan[plan[LOG_AT] + log * LOG_LINE + L_COLUMNS]
    return int(flat[segment[S_AT] + columns * segment[S_ROOM] + before] if before >= 0 else segment[S_GONE_NEWEST])


@released
def _folded(
    plan: Array,
    number: int,
    places: Array,
    positions: Array,
    firsts: Array,
    segments: Array,
    flat: Array,
    own: Array,
    registers: Array,
    bits: Array,
    table: Array,
    shared: Array,
) -> None:
    """The aggregates of a plan for one transaction, each log by itself."""
    _nothing_shared(plan, shared)
    for log in range(plan[LOGS]):
        place = places[log, number]
        if place == NOBODY or plan[plan[LOG_AT] + log * LOG_LINE + L_CELLS] == 0:
            continue
        at = stride = lo = hi = 0
        if place != EMPTY:
            at, stride, gone = segments[place, S_AT], segments[place, S_ROOM], segments[place, S_GONE]
            lo, hi = firsts[log, number] - gone, positions[log, number] - gone
        fold(plan, log, flat, at, stride, lo, hi, own, registers, bits, table, shared)


@inlined
def _stepped(op: int, lanes: Array, to: int, a: int, b: int, c: int, d: int) -> None:
    """One step for all lanes. The commonest operations have loops of their own, so that the choice falls away inside of them."""
    if op == MINUS:
        for i in range(LANES):
            lanes[to + i] = _calculated(MINUS, lanes[a + i], lanes[b + i], 0.0, 0.0)
    elif op == OVER:
        for i in range(LANES):
            lanes[to + i] = _calculated(OVER, lanes[a + i], lanes[b + i], 0.0, 0.0)
    elif op == TIMES:
        for i in range(LANES):
            lanes[to + i] = _calculated(TIMES, lanes[a + i], lanes[b + i], 0.0, 0.0)
    elif op == LARGER:
        for i in range(LANES):
            lanes[to + i] = _calculated(LARGER, lanes[a + i], lanes[b + i], 0.0, 0.0)
    elif op == DIFFERS:
        for i in range(LANES):
            lanes[to + i] = _calculated(DIFFERS, lanes[a + i], lanes[b + i], 0.0, 0.0)
    elif op == IS_ZERO:
        for i in range(LANES):
            lanes[to + i] = _calculated(IS_ZERO, lanes[a + i], 0.0, 0.0, 0.0)
    elif op == IS_MISSING:
        for i in range(LANES):
            lanes[to + i] = _calculated(IS_MISSING, lanes[a + i], 0.0, 0.0, 0.0)
    elif op == PLUS:
        for i in range(LANES):
            lanes[to + i] = _calculated(PLUS, lanes[a + i], lanes[b + i], 0.0, 0.0)
    else:
        for i in range(LANES):
            lanes[to + i] = _calculated(op, lanes[a + i], lanes[b + i], lanes[c + i], lanes[d + i])


@inlined
def _ended(plan: Array, lanes: Array) -> None:
    """The steps of all expressions, for all lanes."""
    for number in range(plan[STEPS]):
        step = plan[STEP_AT] + number * STEP_LINE
        to, a, b = plan[step + 1] * LANES, plan[step + 2] * LANES, plan[step + 3] * LANES
        _stepped(plan[step], lanes, to, a, b, plan[step + 4] * LANES, plan[step + 5] * LANES)


@released
def finish(
    plan: Array,
    rest: Array,
    swept: Array,
    cell_at: Array,
    meetings: Array,
    numbers: Array,
    facts: Array,
    measures: Array,
    told: Array,
    known: Array,
    places: Array,
    positions: Array,
    firsts: Array,
    segments: Array,
    flat: Array,
    slow: Array,
    cells: Array,
    outs: Array,
    out: Array,
) -> None:
    """The vectors of these transactions, after the sweeps of their logs, into `out[outs[transaction]]`.

    `swept` are the registers of the swept cells, log l's from `cell_at[l]` on; `rest` is the plan of those that are not swept, among them `meetings`
    (log, register, swept cell of what is met, its number). Who is `slow` has none of the swept ones, and is folded.
    """
    most = plan[CAP] + plan[CHUNK] + 1
    lanes, registers = np.empty(plan[REGISTERS] * LANES), np.empty(plan[REGISTERS])
    lanes[:] = math.nan
    for number in range(plan[CONSTANTS]):
        line = plan[CONSTANT_AT] + number * CONSTANT_LINE
        lanes[plan[line] * LANES : (plan[line] + 1) * LANES] = np.int64(plan[line + 1]).view(np.float64)
    widest = 0
    for log in range(plan[LOGS]):
        widest = max(widest, plan[plan[LOG_AT] + log * LOG_LINE + L_COLUMNS])
    bits, shared = np.empty(most, np.int64), np.empty(plan[SHARED] * most, np.int64)
    table = np.empty(table_words(most, widest), np.int64)
    others = _has_others(rest)
    tables, values, cell_of, of_cells, from_ = pointer(plan), pointer(lanes), pointer(swept), pointer(cells), pointer(cell_at)
    own, own_measures, by_tallies, by_profiles, row = pointer(facts), pointer(measures), pointer(told), pointer(known), pointer(out)
    widths = (facts.shape[1], measures.shape[1], told.shape[1], known.shape[1])
    for begin in range(0, numbers.size, LANES):
        end = min(begin + LANES, numbers.size)
        for at in range(begin, end):
            number, lane = numbers[at], at - begin
            _filled(tables, values, lane, number, own, own_measures, by_tallies, by_profiles, widths)
            for log in range(plan[LOGS]):
                base, there = number * swept.size, places[log, number] >= 0
                for cell in range(from_[log], from_[log + 1]):
                    values[cell_of[cell] * LANES + lane] = of_cells[base + cell] if there else math.nan
            _caps_of(plan, lanes, lane, number, places, firsts, segments, flat, facts[number, AT_MS_FACT])
            fully, left = slow[number], others
            for meeting in range(meetings.shape[0]):
                log, register, met = meetings[meeting, 0], meetings[meeting, 1], meetings[meeting, 2]
                place = places[log, number]
                lanes[register * LANES + lane] = math.nan
                if place == NOBODY:
                    continue
                if met < 0:
                    left = True
                elif lanes[swept[met] * LANES + lane] == 0.0:
                    lanes[register * LANES + lane] = 0.0
                elif lanes[swept[met] * LANES + lane] > 0.0:
                    left = True
            for log in range(plan[LOGS]):
                fully |= places[log, number] == EMPTY and cell_at[log + 1] > cell_at[log]
            if fully or left:
                some = plan if fully else rest
                registers[:] = math.nan
                _folded(some, number, places, positions, firsts, segments, flat, facts[number], registers, bits, table, shared)
                _copied(some, registers, lanes, lane)
        _ended(tables, values)
        for at in range(begin, end):
            to, lane, outs_at = outs[numbers[at]] * plan[OUTS], at - begin, plan[OUT_AT]
            for column in range(plan[OUTS]):
                row[to + column] = values[tables[outs_at + column] * LANES + lane]
    held(lanes)


@released
def _has_others(rest: Array) -> bool:
    """Whether a plan has aggregates that are neither of two logs nor made for those."""
    for log in range(rest[LOGS]):
        line = rest[LOG_AT] + log * LOG_LINE
        for number in range(rest[line + L_CELLS]):
            op = rest[rest[line + L_CELL_AT] + number * CELL_LINE]
            if op != COLLECT and op != MEETING:
                return True
    return False


@inlined
def _filled(
    plan: Array,
    lanes: Array,
    lane: int,
    number: int,
    facts: Array,
    measures: Array,
    told: Array,
    known: Array,
    widths: tuple[int, int, int, int],
) -> None:
    """What is there before any log is read: the transaction's facts and measures, what tallies told it and profiles knew."""
    at, own = lane, number * widths[0]
    for fact in range(widths[0]):
        given = facts[own + fact] != 0 or plan[plan[FACT_AT] + fact] == 0
        lanes[at] = float(facts[own + fact]) if given else math.nan
        at += LANES
    for measure in range(number * widths[1], (number + 1) * widths[1]):
        lanes[at] = measures[measure]
        at += LANES
    for fold_ in range(number * widths[2], (number + 1) * widths[2]):
        lanes[at] = told[fold_]
        at += LANES
    at = plan[KNOWN_REG] * LANES + lane
    for column in range(number * widths[3], (number + 1) * widths[3]):
        lanes[at] = known[column]
        at += LANES


@inlined
def _caps_of(plan: Array, lanes: Array, lane: int, number: int, places: Array, firsts: Array, segments: Array, flat: Array, now: int) -> None:
    """The capped flag of each log; missing where there is none."""
    for log in range(plan[LOGS]):
        register = plan[plan[LOG_AT] + log * LOG_LINE + L_CAPPED]
        if register < 0:
            continue
        place, capped = places[log, number], 0.0
        if place == NOBODY:
            capped = math.nan
        elif place != EMPTY and firsts[log, number] > 0:
            newest = _newest_gone(plan, log, segments[place], firsts[log, number], flat)
            capped = 1.0 if newest > now - plan[LONGEST_MS] else 0.0
        lanes[register * LANES + lane] = capped


@released
def _copied(plan: Array, registers: Array, lanes: Array, lane: int) -> None:
    """Puts the aggregates of a plan where the steps look for them."""
    for log in range(plan[LOGS]):
        line = plan[LOG_AT] + log * LOG_LINE
        for number in range(plan[line + L_CELLS]):
            register = plan[plan[line + L_CELL_AT] + number * CELL_LINE + 4]
            lanes[register * LANES + lane] = registers[register]


@released
def first_comings(carried: Array, carried_numbers: Array, identities: Array, number: int, reach: int, firsts: Array) -> None:
    """`firsts`: the number of each identity's first coming, if that is at most `reach` numbers before its own; else its own.

    The identities have the numbers from `number` on; those that are carried came before, first at `carried_numbers`.
    """
    slots = slots_for(carried.size + identities.size)
    keys, numbers = np.empty(slots, np.int64), np.zeros(slots, np.int64)
    for i in range(carried.size + identities.size):
        own = i - carried.size
        key = identities[own] if own >= 0 else carried[i]
        slot = (key ^ (key >> 29)) & (slots - 1)
        while numbers[slot] != 0 and keys[slot] != key:
            slot = (slot + 1) & (slots - 1)
        if own < 0:
            keys[slot], numbers[slot] = key, max(numbers[slot], carried_numbers[i] + 1)
            continue
        if numbers[slot] == 0 or number + own - (numbers[slot] - 1) > reach:
            keys[slot], numbers[slot] = key, number + own + 1
        firsts[own] = numbers[slot] - 1


@released
def indexed(segments: Array, count: int, table: Array) -> None:
    """Fills a table (all zeros) with the places of these segments."""
    for number in range(count):
        table[_segment_at(table, segments, segments[number, S_TOKEN], segments[number, S_LOG])] = number + 1
