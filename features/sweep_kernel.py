"""The compiled part of a sweep: what all transactions of a log see in it at once, where each alone would read every row again.

The rows of a log that a lot can see are laid out once, in event time (a row that comes late is put where it belongs, and whoever came
before it has been answered by then). A window is then two places in that order, and what an aggregate needs of the rows between them is
found from running sums, from where a value came last, or by a look at one column of few rows. Whole numbers stay whole, so that the
result is that of `kernel.fold`, to the bit. A sweep's plan is one int64 array (`features/sweep.py` writes it); its shape is the block of
constants below.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from features.kernel import held, inlined, pointer, released, slots_for

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
BUILT_ON = {"features/kernel.py": "90a598fff4e4"}
"""The files of which compiled code is a part of this one's, as they are: numba keeps that until this very file changes. A test says what to write."""
COUNT, SUM, MEAN, SPREAD, EASTWARD, LAST, FIRST, LARGEST, SMALLEST, DISTINCT = range(10)
SAME, BOTH_SAME, NEAR, BELOW_OWN, ON_WEEKDAY, FIRST_SAME = range(10, 16)

AT_MS_FACT, KIND_FACT = 1, 2
AT, STRIDE, GONE = 0, 1, 3
"""Of a segment: where it begins, how far apart its columns are, and how many rows are gone."""
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
def _mark(plan: Array, line: int, frame: Array, base: int, stride: int, rows: int, bits: Array) -> None:
    """Sets, for each row, the bits of the conditions that it meets."""
    for i in range(rows):
        bits[i] = 0
    for number in range(plan[line + S_CONDITIONS]):
        at = plan[line + S_CONDITION_AT] + number * CONDITION_LINE
        op, column, value, bit = plan[at], base + plan[at + 1] * stride, plan[at + 2], 1 << number
        if op == KINDS:
            for i in range(rows):
                bits[i] = bits[i] | (((value >> frame[column + i]) & 1) << number)
        elif op == BELOW:
            for i in range(rows):
                bits[i] = bits[i] | (bit if frame[column + i] < value else 0)
        elif op == GIVEN:
            for i in range(rows):
                bits[i] = bits[i] | (bit if frame[column + i] != 0 else 0)
        else:
            for i in range(rows):
                bits[i] = bits[i] | (bit if _just_under(frame[column + i], value) else 0)


@inlined
def _kept(bits: Array, rows: int, need: int, heads: Array, kept: Array) -> int:
    """The rows that have the bits needed, and at `heads[i]` how many of them come before row i; how many in all."""
    count = 0
    for i in range(rows):
        heads[i] = count
        kept[count] = i
        count += 1 if (bits[i] & need) == need else 0
    heads[rows] = count
    return count


@inlined
def _before(values: Array, at: int, count: int, into: int, table: Array) -> None:
    """For each value the place at which it came before, -1 if it never did; NEVER for 0, which is no value."""
    alike = True
    for k in range(count):
        alike &= values[at + k] == values[at]
    if alike:
        none = count == 0 or values[at] == 0
        for k in range(count):
            values[into + k] = NEVER if none else k - 1
        return
    slots = slots_for(count)
    for slot in range(slots):
        table[slot] = -1
    slot = last = 0
    for k in range(count):
        value = values[at + k]
        if value == 0:
            values[into + k] = NEVER
            continue
        if value == last:
            values[into + k] = table[slot]
            table[slot] = k
            continue
        last = value
        slot = (value ^ (value >> 13)) & (slots - 1)
        while table[slot] >= 0 and values[at + table[slot]] != value:
            slot = (slot + 1) & (slots - 1)
        values[into + k] = table[slot]
        table[slot] = k


@inlined
def _array(what: int, column: int, at: int, frame: Array, kept: Array, count: int, arrays: Array, stride: int, table: Array) -> None:
    """What the cells need of the kept rows' column: see the names of `what`. VALUE of the same column stands one array before BEFORE."""
    if what == VALUE:
        for k in range(count):
            arrays[at + k] = frame[column + kept[k]]
    elif what == RUNNING:
        total = 0
        for k in range(count):
            arrays[at + k] = total
            total += frame[column + kept[k]]
        arrays[at + count] = total
    elif what == SQUARES:
        high, low, hh, hl, ll = 0, 0, 0, 0, 0
        for k in range(count + 1):
            arrays[at + k], arrays[at + stride + k], arrays[at + 2 * stride + k] = high, low, hh
            arrays[at + 3 * stride + k], arrays[at + 4 * stride + k] = hl, ll
            if k < count:
                value = min(frame[column + kept[k]], SPREAD_MAX - 1)
                a, b = value >> 20, value & 0xFFFFF
                high, low, hh, hl, ll = high + a, low + b, hh + a * a, hl + a * b, ll + b * b
    elif what == BEFORE:
        _before(arrays, at - stride, count, at, table)
    elif what == TIME_OF_DAY:
        for k in range(count):
            arrays[at + k] = frame[column + kept[k]] % DAY
    else:
        for k in range(count):
            arrays[at + k] = frame[column + kept[k]] // DAY % 7


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
        total += (arrays[at + k] - own + AROUND // 2) % AROUND - AROUND // 2
    return total


@inlined
def _equal(arrays: Array, at: int, i: int, j: int, own: int) -> int:
    n = 0
    for k in range(at + i, at + j):
        n += 1 if arrays[k] == own else 0
    return n


@inlined
def _both_equal(arrays: Array, at: int, other: int, i: int, j: int, own: int, own2: int) -> int:
    n = 0
    for k in range(i, j):
        n += 1 if (arrays[at + k] == own) & (arrays[other + k] == own2) else 0
    return n


@inlined
def _less(arrays: Array, at: int, i: int, j: int, own: int) -> int:
    n = 0
    for k in range(at + i, at + j):
        n += 1 if arrays[k] < own else 0
    return n


@inlined
def _near(arrays: Array, at: int, i: int, j: int, own: int, width: int) -> int:
    n = 0
    for k in range(at + i, at + j):
        apart = abs(arrays[k] - own)
        n += 1 if min(apart, DAY - apart) <= width else 0
    return n


@inlined
def _first_equal(arrays: Array, at: int, i: int, j: int, own: int) -> int:
    for k in range(i, j):
        if arrays[at + k] == own:
            return k
    return -1


@inlined
def _cell(
    plan: Array,
    cell: int,
    frame: Array,
    base: int,
    stride: int,
    kept: Array,
    count: int,
    arrays: Array,
    room: int,
    first: Array,
    last: Array,
    own: Array,
    most: int,
    into: Array,
    events: int,
    cells: Array,
) -> None:
    """One aggregate for all transactions at hand: of the kept rows from `first` to `last` of each."""
    op, a, b = plan[cell], plan[cell + 1] * room, plan[cell + 2] * room
    mine, mine2, parameter, out = plan[cell + 3] * most, plan[cell + 4] * most, plan[cell + 5], plan[cell + 6]
    if op == COUNT:
        for e in range(events):
            cells[into[e] + out] = float(last[e] - first[e])
    elif op == SUM:
        for e in range(events):
            cells[into[e] + out] = float(arrays[a + last[e]] - arrays[a + first[e]])
    elif op == MEAN:
        for e in range(events):
            n = last[e] - first[e]
            cells[into[e] + out] = float(arrays[a + last[e]] - arrays[a + first[e]]) / n if n > 0 else math.nan
    elif op == SPREAD:
        for e in range(events):
            n = last[e] - first[e]
            cells[into[e] + out] = _spread(n, first[e], last[e], a, arrays, room) if n > 0 else math.nan
    elif op == EASTWARD:
        lowest, highest = NEVER, -NEVER
        for k in range(count):
            lowest, highest = min(lowest, arrays[b + k]), max(highest, arrays[b + k])
        for e in range(events):
            n, it = last[e] - first[e], own[mine + e]
            if n > 0 and it != 0:
                if it - AROUND // 2 <= lowest and highest < it + AROUND // 2:
                    total = arrays[a + last[e]] - arrays[a + first[e]] - n * it
                else:
                    total = _eastward(it, b, first[e], last[e], arrays)
                cells[into[e] + out] = float(total) / n
            else:
                cells[into[e] + out] = math.nan
    elif op == LAST:
        column = base + plan[cell + 1] * stride
        for e in range(events):
            value = frame[column + kept[last[e] - 1]] if last[e] > first[e] else 0
            cells[into[e] + out] = math.nan if last[e] <= first[e] or (value == 0 and parameter != 0) else float(value)
    elif op == FIRST:
        for e in range(events):
            cells[into[e] + out] = float(frame[base + kept[first[e]]]) if last[e] > first[e] else math.nan
    elif op == LARGEST:
        for e in range(events):
            largest = -1
            for k in range(a + first[e], a + last[e]):
                largest = max(largest, arrays[k])
            cells[into[e] + out] = math.nan if largest < 0 else float(largest)
    elif op == SMALLEST:
        for e in range(events):
            smallest = 1 << 62
            for k in range(a + first[e], a + last[e]):
                smallest = min(smallest, arrays[k])
            cells[into[e] + out] = math.nan if last[e] <= first[e] else float(smallest)
    elif op == DISTINCT:
        for e in range(events):
            cells[into[e] + out] = float(_less(arrays, a, first[e], last[e], first[e]))
    elif op == BOTH_SAME:
        for e in range(events):
            it, other = own[mine + e], own[mine2 + e]
            void = (it == 0 and parameter & 1 != 0) or (other == 0 and parameter & 2 != 0)
            cells[into[e] + out] = math.nan if void else float(_both_equal(arrays, a, b, first[e], last[e], it, other))
    elif op == NEAR:
        for e in range(events):
            cells[into[e] + out] = float(_near(arrays, a, first[e], last[e], own[mine + e] % DAY, parameter))
    elif op == ON_WEEKDAY:
        for e in range(events):
            cells[into[e] + out] = float(_equal(arrays, a, first[e], last[e], own[mine + e] // DAY % 7))
    elif op == FIRST_SAME:
        for e in range(events):
            k = _first_equal(arrays, a, first[e], last[e], own[mine + e])
            void = own[mine + e] == 0 and parameter != 0
            cells[into[e] + out] = math.nan if void or k < 0 else float(frame[base + kept[k]])
    else:
        for e in range(events):
            it = own[mine + e]
            n = _equal(arrays, a, first[e], last[e], it) if op == SAME else _less(arrays, a, first[e], last[e], it)
            cells[into[e] + out] = math.nan if it == 0 and parameter != 0 else float(n)


@inlined
def _ranges(
    plan: Array, line: int, frame: Array, base: int, rows: int, begin: int, events: int, now: Array, seen: Array, known: Array, edges: Array
) -> None:
    """The rows of each range that each transaction sees: `edges` gets where they begin, and behind all of those where they end."""
    ranges, most = plan[line + S_RANGES], plan[EVENTS]
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
                while tail < rows and frame[base + tail] <= until:
                    tail += 1
                while tail > 0 and frame[base + tail - 1] > until:
                    tail -= 1
                edges[lasts + e] = min(tail, known[begin + e])
            else:
                edges[lasts + e] = edges[lasts_before + e]
            since = time - back
            while head < rows and frame[base + head] <= since:
                head += 1
            while head > 0 and frame[base + head - 1] > since:
                head -= 1
            edges[firsts + e] = min(max(head, seen[begin + e]), edges[lasts + e])


@inlined
def _answer(
    plan: Array,
    line: int,
    frame: Array,
    base: int,
    stride: int,
    rows: int,
    begin: int,
    events: int,
    now: Array,
    seen: Array,
    known: Array,
    owns: Array,
    intos: Array,
    bits: Array,
    heads: Array,
    kept: Array,
    arrays: Array,
    table: Array,
    edges: Array,
    first: Array,
    last: Array,
    own: Array,
    into: Array,
    cells: Array,
) -> None:
    """All aggregates of the transactions from `begin` on, over rows in order of time: column c of row i is `frame[base + c * stride + i]`."""
    room, most = plan[ROOM] + 1, plan[EVENTS]
    for e in range(events):
        into[e] = intos[begin + e]
    for number in range(plan[line + S_OWNS]):
        for e in range(events):
            own[number * most + e] = owns[number * most + begin + e]
    _mark(plan, line, frame, base, stride, rows, bits)
    _ranges(plan, line, frame, base, rows, begin, events, now, seen, known, edges)
    for stream in range(plan[line + S_STREAMS]):
        at = plan[line + S_STREAM_AT] + stream * STREAM_LINE
        count = _kept(bits, rows, plan[at], heads, kept)
        for number in range(plan[at + 1]):
            array = plan[at + 2] + number * ARRAY_LINE
            _array(plan[array], base + plan[array + 1] * stride, plan[array + 2] * room, frame, kept, count, arrays, room, table)
        for number in range(plan[at + 3]):
            view = plan[at + 4] + number * VIEW_LINE
            firsts, lasts = plan[view] * most, (plan[line + S_RANGES] + plan[view]) * most
            for e in range(events):
                first[e] = heads[edges[firsts + e]]
                last[e] = heads[edges[lasts + e]]
            for number_ in range(plan[view + 1]):
                cell = plan[view + 2] + number_ * CELL_LINE
                _cell(plan, cell, frame, base, stride, kept, count, arrays, room, first, last, own, most, into, events, cells)


@inlined
def _in_order(flat: Array, base: int, newest: int, rows: int) -> bool:
    """Whether no row's time is before that of one that came earlier: each is the newest one so far."""
    late = 0
    for i in range(rows):
        late += 1 if flat[base + i] != flat[newest + i] else 0
    return late == 0


@inlined
def _laid(flat: Array, at: int, stride: int, columns: int, frame: Array, room: int, rows: int) -> int:
    """Puts a row behind the others, or where its time belongs; its place."""
    place, time = rows, flat[at]
    while place > 0 and frame[place - 1] > time:
        place -= 1
    for column in range(columns):
        begin = column * room
        for i in range(rows, place, -1):
            frame[begin + i] = frame[begin + i - 1]
        frame[begin + place] = flat[at + column * stride]
    return place


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

    `firsts` is the first row that each may see. Rows that lie in order of time are read where they lie; a late one is put where it belongs
    when all who came before it are answered. Who cannot be answered in this way is marked in `slow`: for whom rows were dropped from among
    which a late one belongs.
    """
    line = plan[LOG_AT] + log * LOG_LINE
    room, most, columns, owns_of = plan[ROOM], plan[EVENTS], plan[line + S_COLUMNS], plan[line + S_OWNS]
    slots = slots_for(room)
    ints = np.int64
    of_rows = (np.empty(columns * room, ints), np.empty(room, ints), np.empty(room + 1, ints), np.empty(room, ints), np.empty(slots, ints))
    of_events = np.empty((7 + 2 * owns_of, most), ints)
    rooms = (of_rows, of_events, np.empty(plan[line + S_ARRAYS] * (room + 1), ints), np.empty(2 * plan[line + S_RANGES] * most, ints))
    laid, bits, heads, kept, table = pointer(of_rows[0]), pointer(of_rows[1]), pointer(of_rows[2]), pointer(of_rows[3]), pointer(of_rows[4])
    first, last, into, intos = pointer(of_events[0]), pointer(of_events[1]), pointer(of_events[2]), pointer(of_events[3])
    now, seen, known = pointer(of_events[4]), pointer(of_events[5]), pointer(of_events[6])
    own, owns, arrays, edges = pointer(of_events[7:]), pointer(of_events[7 + owns_of :]), pointer(rooms[2]), pointer(rooms[3])
    tables, rows_of, own_facts, out, width = pointer(plan), pointer(flat), pointer(facts), pointer(cells), facts.shape[1]
    for group in range(begin, end):
        at, stride, gone = segments[touched[group], AT], segments[touched[group], STRIDE], segments[touched[group], GONE]
        by_position(order, starts[group], starts[group + 1], positions)
        done = starts[group]
        while done < starts[group + 1]:
            from_ = firsts[order[done]]
            count = 0
            while count < most and done + count < starts[group + 1]:
                number = order[done + count]
                if positions[number] - from_ > room:
                    break
                now[count], intos[count] = own_facts[number * width + AT_MS_FACT], number * plan[CELLS]
                seen[count], known[count] = firsts[number] - from_, positions[number] - from_
                for fact in range(owns_of):
                    owns[fact * most + count] = own_facts[number * width + tables[tables[line + S_OWN_AT] + fact]]
                count += 1
            base = at + from_ - gone
            rows, event, lowest = known[count - 1], 0, NEVER
            in_order = _in_order(rows_of, base, base + columns * stride, rows)
            if not in_order:
                rows = 0
            while event < count:
                until = count
                if not in_order:
                    while rows < known[event] or (rows < known[count - 1] and (rows == 0 or rows_of[base + rows] >= laid[rows - 1])):
                        place = _laid(rows_of, base + rows, stride, columns, laid, room, rows)
                        lowest = min(lowest, place) if place < rows else lowest
                        rows += 1
                    until = event + 1
                    while until < count and known[until] <= rows:
                        until += 1
                    for each in range(event, until):
                        if seen[each] > 0 and lowest < seen[each]:
                            slow[order[done + each]] = True
                _answer(
                    tables,
                    line,
                    rows_of if in_order else laid,
                    base if in_order else 0,
                    stride if in_order else room,
                    rows,
                    event,
                    until - event,
                    now,
                    seen,
                    known,
                    owns,
                    intos,
                    bits,
                    heads,
                    kept,
                    arrays,
                    table,
                    edges,
                    first,
                    last,
                    own,
                    into,
                    out,
                )
                event = until
            done += count
    held(rooms)
