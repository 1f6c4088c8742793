"""The compiled part of a sweep: what all transactions of a log see in it at once, where each alone would read every row again.

The rows of a log that a lot can see are laid out once, in event time (a row that comes late is put where it belongs, and whoever came
before it has been answered by then). A window is then two places in that order, and what an aggregate needs of the rows between them is
found from running sums, from where a value came last, or by a look at one column of few rows. Whole numbers stay whole, so that the
result is that of `kernel.fold`, to the bit. A sweep's plan is one int64 array (`features/sweep.py` writes it); its shape is the block of
constants below. Nothing compiled elsewhere is called from here, because numba's cache notices a change by the file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from features.kernel import inlined, put, released, word

Array = np.ndarray[Any, np.dtype[Any]]

# The head: rows and transactions that are laid out at a time, cells of a transaction, and where the lines of the logs are.
ROOM, EVENTS, CELLS, LOG_AT = range(4)
HEAD = 4
S_COLUMNS, S_OWNS, S_OWN_AT, S_CONDITIONS, S_CONDITION_AT, S_RANGES, S_RANGE_AT, S_STREAMS, S_STREAM_AT, S_ARRAYS = range(10)
LOG_LINE = 10
CONDITION_LINE = 3  # op, column, value
RANGE_LINE = 3  # how far back it begins and ends, milliseconds, and the range before that ends alike (its own number: none)
STREAM_LINE = 5  # bits needed, arrays and where, views and where
ARRAY_LINE = 3  # what, column, place
VIEW_LINE = 3  # range, cells and where
CELL_LINE = 7  # op, two arrays (or a column), two own facts (-1: none), parameter, out

KINDS, BELOW, GIVEN, JUST_UNDER = range(4)
VALUE, RUNNING, SQUARES, BEFORE, TIME_OF_DAY, WEEKDAY = range(6)
COUNT, SUM, MEAN, SPREAD, EASTWARD, LAST, FIRST, LARGEST, SMALLEST, DISTINCT = range(10)
SAME, BOTH_SAME, NEAR, BELOW_OWN, ON_WEEKDAY, FIRST_SAME = range(10, 16)

AT_MS_FACT, KIND_FACT = 1, 2
AT, GONE = 0, 3
"""Of a segment: where it begins, and how many rows are gone."""
DAY = 86_400_000
SPREAD_MAX = 1 << 40
AROUND = 360 * 91
NEVER = 1 << 40


@released
def grouped(places: Array, asks: Array, counts: Array, order: Array, starts: Array, touched: Array) -> int:
    """Brings together who asks in the same segment, in arrival order: group g is `order[starts[g]:starts[g + 1]]`, of `touched[g]`.

    `counts` is as long as there are segments, and zero. Returns how many groups.
    """
    groups = 0
    for number in range(places.size):
        place = places[number]
        if place >= 0 and asks[number]:
            if counts[place] == 0:
                touched[groups] = place
                groups += 1
            counts[place] += 1
    total = 0
    for group in range(groups):
        starts[group] = total
        total += counts[touched[group]]
        counts[touched[group]] = starts[group]
    starts[groups] = total
    for number in range(places.size):
        place = places[number]
        if place >= 0 and asks[number]:
            order[counts[place]] = number
            counts[place] += 1
    return groups


@released
def by_position(order: Array, begin: int, end: int, positions: Array) -> None:
    """Sorts a group by position; who arrived in order is in order, so that only those that come again move."""
    for i in range(begin + 1, end):
        number = order[i]
        position, j = positions[number], i
        while j > begin and positions[order[j - 1]] > position:
            order[j] = order[j - 1]
            j -= 1
        order[j] = number


@inlined
def _just_under(amount: int, least: int) -> bool:
    while least <= amount:
        least *= 10
    return amount >= least - least // 10


@inlined
def _mark(plan: Array, line: int, frame: Array, room: int, rows: int, bits: Array) -> None:
    """Sets, for each row, the bits of the conditions that it meets."""
    bits[:rows] = 0
    for number in range(plan[line + S_CONDITIONS]):
        at = plan[line + S_CONDITION_AT] + number * CONDITION_LINE
        op, column, value, bit = plan[at], plan[at + 1] * room, plan[at + 2], 1 << number
        if op == KINDS:
            for i in range(rows):
                put(bits, i, word(bits, i) | (((value >> word(frame, column + i)) & 1) << number))
        elif op == BELOW:
            for i in range(rows):
                put(bits, i, word(bits, i) | (bit if word(frame, column + i) < value else 0))
        elif op == GIVEN:
            for i in range(rows):
                put(bits, i, word(bits, i) | (bit if word(frame, column + i) != 0 else 0))
        else:
            for i in range(rows):
                put(bits, i, word(bits, i) | (bit if _just_under(word(frame, column + i), value) else 0))


@inlined
def _kept(bits: Array, rows: int, need: int, heads: Array, kept: Array) -> int:
    """The rows that have the bits needed, and at `heads[i]` how many of them come before row i; how many in all."""
    count = 0
    for i in range(rows):
        put(heads, i, count)
        put(kept, count, i)
        count += 1 if (word(bits, i) & need) == need else 0
    heads[rows] = count
    return count


@inlined
def _before(values: Array, at: int, count: int, into: int, table: Array) -> None:
    """For each value the place at which it came before, -1 if it never did; NEVER for 0, which is no value."""
    alike = True
    for k in range(count):
        alike &= word(values, at + k) == word(values, at)
    if alike:
        none = count == 0 or word(values, at) == 0
        for k in range(count):
            put(values, into + k, NEVER if none else k - 1)
        return
    slots = 16
    while slots < 2 * count:
        slots *= 2
    table[:slots] = -1
    slot = last = 0
    for k in range(count):
        value = word(values, at + k)
        if value == 0:
            put(values, into + k, NEVER)
            continue
        if value == last:
            put(values, into + k, word(table, slot))
            table[slot] = k
            continue
        last = value
        slot = (value ^ (value >> 13)) & (slots - 1)
        while word(table, slot) >= 0 and word(values, at + word(table, slot)) != value:
            slot = (slot + 1) & (slots - 1)
        put(values, into + k, word(table, slot))
        table[slot] = k


@inlined
def _array(what: int, column: int, at: int, frame: Array, kept: Array, count: int, arrays: Array, stride: int, table: Array) -> None:
    """What the cells need of the kept rows' column: see the names of `what`. VALUE of the same column stands one array before BEFORE."""
    if what == VALUE:
        for k in range(count):
            put(arrays, at + k, word(frame, column + word(kept, k)))
    elif what == RUNNING:
        total = 0
        for k in range(count):
            put(arrays, at + k, total)
            total += word(frame, column + word(kept, k))
        arrays[at + count] = total
    elif what == SQUARES:
        high, low, hh, hl, ll = 0, 0, 0, 0, 0
        for k in range(count + 1):
            arrays[at + k], arrays[at + stride + k], arrays[at + 2 * stride + k] = high, low, hh
            arrays[at + 3 * stride + k], arrays[at + 4 * stride + k] = hl, ll
            if k < count:
                value = min(word(frame, column + word(kept, k)), SPREAD_MAX - 1)
                a, b = value >> 20, value & 0xFFFFF
                high, low, hh, hl, ll = high + a, low + b, hh + a * a, hl + a * b, ll + b * b
    elif what == BEFORE:
        _before(arrays, at - stride, count, at, table)
    elif what == TIME_OF_DAY:
        for k in range(count):
            put(arrays, at + k, word(frame, column + word(kept, k)) % DAY)
    else:
        for k in range(count):
            put(arrays, at + k, word(frame, column + word(kept, k)) // DAY % 7)


@inlined
def _spread(n: int, i: int, j: int, at: int, arrays: Array, stride: int) -> float:
    high, low = arrays[at + j] - arrays[at + i], arrays[at + stride + j] - arrays[at + stride + i]
    hh, hl = arrays[at + 2 * stride + j] - arrays[at + 2 * stride + i], arrays[at + 3 * stride + j] - arrays[at + 3 * stride + i]
    ll = arrays[at + 4 * stride + j] - arrays[at + 4 * stride + i]
    squares = float(n * hh - high * high) * float(1 << 40)
    squares += float(n * hl - high * low) * float(1 << 21)
    squares += float(n * ll - low * low)
    return math.sqrt(max(squares, 0.0)) / n


@inlined
def _eastward(own: int, at: int, i: int, j: int, arrays: Array) -> int:
    total = 0
    for k in range(i, j):
        total += (word(arrays, at + k) - own + AROUND // 2) % AROUND - AROUND // 2
    return total


@inlined
def _equal(arrays: Array, at: int, i: int, j: int, own: int) -> int:
    n = 0
    for k in range(at + i, at + j):
        n += 1 if word(arrays, k) == own else 0
    return n


@inlined
def _both_equal(arrays: Array, at: int, other: int, i: int, j: int, own: int, own2: int) -> int:
    n = 0
    for k in range(i, j):
        n += 1 if (word(arrays, at + k) == own) & (word(arrays, other + k) == own2) else 0
    return n


@inlined
def _less(arrays: Array, at: int, i: int, j: int, own: int) -> int:
    n = 0
    for k in range(at + i, at + j):
        n += 1 if word(arrays, k) < own else 0
    return n


@inlined
def _near(arrays: Array, at: int, i: int, j: int, own: int, width: int) -> int:
    n = 0
    for k in range(at + i, at + j):
        apart = abs(word(arrays, k) - own)
        n += 1 if min(apart, DAY - apart) <= width else 0
    return n


@inlined
def _first_equal(arrays: Array, at: int, i: int, j: int, own: int) -> int:
    for k in range(i, j):
        if word(arrays, at + k) == own:
            return k
    return -1


@inlined
def _cell(
    plan: Array,
    cell: int,
    frame: Array,
    room: int,
    kept: Array,
    count: int,
    arrays: Array,
    first: Array,
    last: Array,
    own: Array,
    most: int,
    base: Array,
    events: int,
    cells: Array,
) -> None:
    """One aggregate for all transactions at hand: of the kept rows from `first` to `last` of each."""
    op, stride = plan[cell], room + 1
    a, b = plan[cell + 1] * stride, plan[cell + 2] * stride
    mine, mine2, parameter, out = plan[cell + 3] * most, plan[cell + 4] * most, plan[cell + 5], plan[cell + 6]
    if op == COUNT:
        for e in range(events):
            put(cells, word(base, e) + out, float(word(last, e) - word(first, e)))
    elif op == SUM:
        for e in range(events):
            put(cells, word(base, e) + out, float(word(arrays, a + word(last, e)) - word(arrays, a + word(first, e))))
    elif op == MEAN:
        for e in range(events):
            n = word(last, e) - word(first, e)
            put(cells, word(base, e) + out, float(word(arrays, a + word(last, e)) - word(arrays, a + word(first, e))) / n if n > 0 else math.nan)
    elif op == SPREAD:
        for e in range(events):
            n = word(last, e) - word(first, e)
            put(cells, word(base, e) + out, _spread(n, word(first, e), word(last, e), a, arrays, stride) if n > 0 else math.nan)
    elif op == EASTWARD:
        lowest, highest = NEVER, -NEVER
        for k in range(count):
            lowest, highest = min(lowest, word(arrays, b + k)), max(highest, word(arrays, b + k))
        for e in range(events):
            n, it = word(last, e) - word(first, e), word(own, mine + e)
            if n > 0 and it != 0:
                if it - AROUND // 2 <= lowest and highest < it + AROUND // 2:
                    total = word(arrays, a + word(last, e)) - word(arrays, a + word(first, e)) - n * it
                else:
                    total = _eastward(it, b, word(first, e), word(last, e), arrays)
                put(cells, word(base, e) + out, float(total) / n)
            else:
                put(cells, word(base, e) + out, math.nan)
    elif op == LAST:
        column = plan[cell + 1] * room
        for e in range(events):
            value = word(frame, column + word(kept, word(last, e) - 1)) if word(last, e) > word(first, e) else 0
            put(cells, word(base, e) + out, math.nan if word(last, e) <= word(first, e) or (value == 0 and parameter != 0) else float(value))
    elif op == FIRST:
        for e in range(events):
            put(cells, word(base, e) + out, float(word(frame, word(kept, word(first, e)))) if word(last, e) > word(first, e) else math.nan)
    elif op == LARGEST:
        for e in range(events):
            largest = -1
            for k in range(a + word(first, e), a + word(last, e)):
                largest = max(largest, word(arrays, k))
            put(cells, word(base, e) + out, math.nan if largest < 0 else float(largest))
    elif op == SMALLEST:
        for e in range(events):
            smallest = 1 << 62
            for k in range(a + word(first, e), a + word(last, e)):
                smallest = min(smallest, word(arrays, k))
            put(cells, word(base, e) + out, math.nan if word(last, e) <= word(first, e) else float(smallest))
    elif op == DISTINCT:
        for e in range(events):
            put(cells, word(base, e) + out, float(_less(arrays, a, word(first, e), word(last, e), word(first, e))))
    elif op == BOTH_SAME:
        for e in range(events):
            it, other = word(own, mine + e), word(own, mine2 + e)
            void = (it == 0 and parameter & 1 != 0) or (other == 0 and parameter & 2 != 0)
            put(cells, word(base, e) + out, math.nan if void else float(_both_equal(arrays, a, b, word(first, e), word(last, e), it, other)))
    elif op == NEAR:
        for e in range(events):
            put(cells, word(base, e) + out, float(_near(arrays, a, word(first, e), word(last, e), word(own, mine + e) % DAY, parameter)))
    elif op == ON_WEEKDAY:
        for e in range(events):
            put(cells, word(base, e) + out, float(_equal(arrays, a, word(first, e), word(last, e), word(own, mine + e) // DAY % 7)))
    elif op == FIRST_SAME:
        for e in range(events):
            k = _first_equal(arrays, a, word(first, e), word(last, e), word(own, mine + e))
            void = word(own, mine + e) == 0 and parameter != 0
            put(cells, word(base, e) + out, math.nan if void or k < 0 else float(word(frame, word(kept, k))))
    else:
        for e in range(events):
            it = word(own, mine + e)
            n = _equal(arrays, a, word(first, e), word(last, e), it) if op == SAME else _less(arrays, a, word(first, e), word(last, e), it)
            put(cells, word(base, e) + out, math.nan if it == 0 and parameter != 0 else float(n))


@inlined
def _ranges(
    plan: Array, line: int, frame: Array, rows: int, begin: int, events: int, now: Array, seen: Array, known: Array, most: int, edges: Array
) -> None:
    """The rows of each range that each transaction sees: `edges` gets where they begin, and behind all of those where they end."""
    ranges = plan[line + S_RANGES]
    for number in range(ranges):
        at = plan[line + S_RANGE_AT] + number * RANGE_LINE
        back, ahead = plan[at], plan[at + 1]
        firsts, lasts = number * most, (ranges + number) * most
        lasts_before = (ranges + plan[at + 2]) * most
        head = tail = 0
        for e in range(events):
            time = now[begin + e]
            if lasts_before == lasts:
                until = time - ahead
                while tail < rows and word(frame, tail) <= until:
                    tail += 1
                while tail > 0 and word(frame, tail - 1) > until:
                    tail -= 1
                edges[lasts + e] = min(tail, known[begin + e])
            else:
                edges[lasts + e] = edges[lasts_before + e]
            since = time - back
            while head < rows and word(frame, head) <= since:
                head += 1
            while head > 0 and word(frame, head - 1) > since:
                head -= 1
            edges[firsts + e] = min(max(head, seen[begin + e]), edges[lasts + e])


@inlined
def _answer(
    plan: Array,
    line: int,
    frame: Array,
    rows: int,
    begin: int,
    events: int,
    now: Array,
    seen: Array,
    known: Array,
    owns: Array,
    bases: Array,
    bits: Array,
    heads: Array,
    kept: Array,
    arrays: Array,
    table: Array,
    edges: Array,
    first: Array,
    last: Array,
    own: Array,
    base: Array,
    cells: Array,
) -> None:
    """All aggregates of the transactions from `begin` on, over the rows that are laid out."""
    room, most, stride = plan[ROOM], plan[EVENTS], plan[ROOM] + 1
    for e in range(events):
        base[e] = bases[begin + e]
    for number in range(plan[line + S_OWNS]):
        for e in range(events):
            own[number * most + e] = owns[number * most + begin + e]
    _mark(plan, line, frame, room, rows, bits)
    _ranges(plan, line, frame, rows, begin, events, now, seen, known, most, edges)
    for stream in range(plan[line + S_STREAMS]):
        at = plan[line + S_STREAM_AT] + stream * STREAM_LINE
        count = _kept(bits, rows, plan[at], heads, kept)
        for number in range(plan[at + 1]):
            array = plan[at + 2] + number * ARRAY_LINE
            _array(plan[array], plan[array + 1] * room, plan[array + 2] * stride, frame, kept, count, arrays, stride, table)
        for number in range(plan[at + 3]):
            view = plan[at + 4] + number * VIEW_LINE
            firsts, lasts = plan[view] * most, (plan[line + S_RANGES] + plan[view]) * most
            for e in range(events):
                put(first, e, word(heads, word(edges, firsts + e)))
                put(last, e, word(heads, word(edges, lasts + e)))
            for cell in range(plan[view + 1]):
                _cell(plan, plan[view + 2] + cell * CELL_LINE, frame, room, kept, count, arrays, first, last, own, most, base, events, cells)


@inlined
def _laid(flat: Array, at: int, columns: int, frame: Array, room: int, rows: int) -> int:
    """Puts a row behind the others, or where its time belongs; its place."""
    place, time = rows, word(flat, at)
    while place > 0 and word(frame, place - 1) > time:
        place -= 1
    for column in range(columns):
        begin = column * room
        for i in range(rows, place, -1):
            put(frame, begin + i, word(frame, begin + i - 1))
        put(frame, begin + place, word(flat, at + column))
    return place


@inlined
def _laid_in_order(flat: Array, at: int, width: int, columns: int, frame: Array, room: int, rows: int, until: int) -> int:
    """Puts rows up to `until` behind the others as long as their times do not fall, column by column; how many rows there are then."""
    end, newest = rows, word(frame, rows - 1) if rows > 0 else -NEVER
    while end < until and word(flat, at + end * width) >= newest:
        newest = word(flat, at + end * width)
        put(frame, end, newest)
        end += 1
    for column in range(1, columns):
        for i in range(rows, end):
            put(frame, column * room + i, word(flat, at + i * width + column))
    return end


@released
def sweep(
    plan: Array,
    log: int,
    order: Array,
    starts: Array,
    touched: Array,
    begin: int,
    end: int,
    positions: Array,
    firsts: Array,
    facts: Array,
    segments: Array,
    flat: Array,
    slow: Array,
    cells: Array,
) -> None:
    """The aggregates of one log for the groups from `begin` to `end`, into `cells` (float64[n * CELLS]).

    `firsts` is the first row that each may see. Who cannot be answered in this way is marked in `slow`: for whom rows were dropped from among
    which a late one belongs.
    """
    line = plan[LOG_AT] + log * LOG_LINE
    room, most, columns, width = plan[ROOM], plan[EVENTS], plan[line + S_COLUMNS], plan[line + S_COLUMNS] + 2
    frame, bits, heads, kept = np.empty(columns * room, np.int64), np.empty(room, np.int64), np.empty(room + 1, np.int64), np.empty(room, np.int64)
    arrays = np.empty(plan[line + S_ARRAYS] * (room + 1), np.int64)
    edges = np.empty(2 * plan[line + S_RANGES] * most, np.int64)
    first, last, base, bases = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    now, seen, known = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    own, owns = np.empty(plan[line + S_OWNS] * most, np.int64), np.empty(plan[line + S_OWNS] * most, np.int64)
    slots = 16
    while slots < 2 * room:
        slots *= 2
    table, own_facts = np.empty(slots, np.int64), facts.ravel()
    for group in range(begin, end):
        at, gone = segments[touched[group], AT], segments[touched[group], GONE]
        by_position(order, starts[group], starts[group + 1], positions)
        done = starts[group]
        while done < starts[group + 1]:
            from_ = firsts[order[done]]
            count = 0
            while count < most and done + count < starts[group + 1]:
                number = order[done + count]
                if positions[number] - from_ > room:
                    break
                now[count], bases[count] = facts[number, AT_MS_FACT], number * plan[CELLS]
                seen[count], known[count] = firsts[number] - from_, positions[number] - from_
                for fact in range(plan[line + S_OWNS]):
                    put(owns, fact * most + count, word(own_facts, number * facts.shape[1] + word(plan, plan[line + S_OWN_AT] + fact)))
                count += 1
            rows, event = 0, 0
            lowest = NEVER
            row_at = at + (from_ - gone) * width
            while event < count:
                while rows < known[event]:
                    rows = _laid_in_order(flat, row_at, width, columns, frame, room, rows, known[event])
                    if rows < known[event]:
                        lowest = min(lowest, _laid(flat, row_at + rows * width, columns, frame, room, rows))
                        rows += 1
                rows = _laid_in_order(flat, row_at, width, columns, frame, room, rows, known[count - 1])
                until = event + 1
                while until < count and known[until] <= rows:
                    until += 1
                for each in range(event, until):
                    if seen[each] > 0 and lowest < seen[each]:
                        slow[order[done + each]] = True
                _answer(
                    plan,
                    line,
                    frame,
                    rows,
                    event,
                    until - event,
                    now,
                    seen,
                    known,
                    owns,
                    bases,
                    bits,
                    heads,
                    kept,
                    arrays,
                    table,
                    edges,
                    first,
                    last,
                    own,
                    base,
                    cells,
                )
                event = until
            done += count
