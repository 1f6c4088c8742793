"""The plan of a sweep: which aggregates of a plan it can find for many transactions at once, and what is left for the kernel's fold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from features import kernel
from features import sweep_kernel as sweep

Array = np.ndarray[Any, np.dtype[Any]]
EVENTS = 1024
"""Transactions of one log that are answered at a time, and rows beyond those that one of them sees."""
_STATIC = {kernel.KINDS: sweep.KINDS, kernel.BELOW: sweep.BELOW, kernel.GIVEN: sweep.GIVEN, kernel.JUST_UNDER: sweep.JUST_UNDER}
_OF_COLUMN = {
    kernel.COUNT: (sweep.COUNT, ()),
    kernel.SUM: (sweep.SUM, (sweep.RUNNING,)),
    kernel.MEAN: (sweep.MEAN, (sweep.RUNNING,)),
    kernel.SPREAD: (sweep.SPREAD, (sweep.SQUARES,)),
    kernel.EASTWARD: (sweep.EASTWARD, (sweep.RUNNING, sweep.VALUE)),
    kernel.LAST: (sweep.LAST, ()),
    kernel.MAX: (sweep.LARGEST, (sweep.VALUE,)),
    kernel.FIRST: (sweep.SMALLEST, (sweep.VALUE,)),
    kernel.DISTINCT: (sweep.DISTINCT, (sweep.BEFORE,)),
    kernel.COLLECT: (sweep.DISTINCT, (sweep.BEFORE,)),
}
"""How an aggregate of rows judged by themselves is found, and the arrays that it needs."""
_PLACES = {sweep.SQUARES: 5}
assert (kernel.AT_MS_FACT, kernel.KIND_FACT, kernel.DAY, kernel.SPREAD_MAX, kernel.AROUND) == (
    sweep.AT_MS_FACT,
    sweep.KIND_FACT,
    sweep.DAY,
    sweep.SPREAD_MAX,
    sweep.AROUND,
), "the sweep has its own copy: numba's cache looks at one file"
assert (kernel.S_AT, kernel.S_ROOM, kernel.S_GONE, kernel.AT_MS_COLUMN) == (sweep.AT, sweep.STRIDE, sweep.GONE, 0)


class _Condition(NamedTuple):
    op: int
    column: int
    value: int
    fact: int


class _Cell(NamedTuple):
    """A line of the kernel's plan."""

    op: int
    column: int
    window: int
    need: int
    register: int
    zero_is_missing: int
    fact: int
    shared: int
    delay: int


class SweepPlan(NamedTuple):
    """What is swept and what is left.

    `words`, as `sweep_kernel` reads them; `registers`: the register of each swept cell, log l's from `cell_at[l]` on; `rest`: the kernel's
    plan with the cells alone that are not swept; `meetings`: of each aggregate over two logs its log, its register, the swept cell that
    counts what it meets (-1: none does) and the number of that set.
    """

    words: Array
    registers: Array
    cell_at: Array
    rest: Array
    meetings: Array


class _Log:
    """The tables of one log as they grow."""

    def __init__(self, conditions: list[_Condition], zero_is_missing: Array) -> None:
        self.conditions, self.zero_is_missing = conditions, zero_is_missing
        self.static = [number for number, condition in enumerate(conditions) if condition.op in _STATIC]
        self.owns: list[int] = []
        self.ranges: list[tuple[int, int]] = []
        self.arrays: dict[int, list[tuple[int, int, int]]] = {}
        self.views: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        self.places = 0

    def add(self, cell: _Cell, out: int) -> bool:
        """Takes a cell in, if it can be swept."""
        met = [condition for number, condition in enumerate(self.conditions) if cell.need >> number & 1]
        own = [condition for condition in met if condition.op not in _STATIC and not _is_older(condition)]
        need = sum(1 << place for place, number in enumerate(self.static) if cell.need >> number & 1)
        how = self._compared(cell, own, need) if own else self._judged(cell, need)
        if how is None:
            return False
        ahead = max([cell.delay, *(condition.value for condition in met if _is_older(condition))])
        view = self._view(need, (cell.window + cell.delay, ahead))
        view.append((*how, out))
        return True

    def _judged(self, cell: _Cell, need: int) -> tuple[int, ...] | None:
        """Of rows judged by themselves."""
        if cell.op not in _OF_COLUMN:
            return None
        if cell.op == kernel.FIRST and cell.column == kernel.AT_MS_COLUMN:
            return sweep.FIRST, 0, 0, 0, 0, 0
        op, needed = _OF_COLUMN[cell.op]
        places = [self._array(need, what, cell.column) for what in needed] + [0, 0]
        mine = self._own(cell.fact) if cell.op == kernel.EASTWARD else 0
        return op, cell.column if op == sweep.LAST else places[0], places[1], mine, 0, cell.zero_is_missing

    def _compared(self, cell: _Cell, own: list[_Condition], need: int) -> tuple[int, ...] | None:
        """Of rows compared with the transaction's own facts."""
        one, mine = own[0], self._own(own[0].fact)
        void = int(self.zero_is_missing[one.fact])
        if cell.op == kernel.FIRST and cell.column == kernel.AT_MS_COLUMN and [c.op for c in own] == [kernel.SAME]:
            return sweep.FIRST_SAME, self._array(need, sweep.VALUE, one.column), 0, mine, 0, void
        if cell.op != kernel.COUNT:
            return None
        if [c.op for c in own] == [kernel.SAME, kernel.SAME]:
            places = [self._array(need, sweep.VALUE, condition.column) for condition in own]
            return sweep.BOTH_SAME, *places, mine, self._own(own[1].fact), void | int(self.zero_is_missing[own[1].fact]) << 1
        if len(own) > 1 or (one.op in (kernel.NEAR, kernel.WEEKDAY) and one.fact != kernel.AT_MS_FACT):
            return None
        if one.op in (kernel.NEAR, kernel.WEEKDAY):
            near = one.op == kernel.NEAR
            place = self._array(need, sweep.TIME_OF_DAY if near else sweep.WEEKDAY, one.column)
            return (sweep.NEAR if near else sweep.ON_WEEKDAY), place, 0, mine, 0, one.value
        op = {kernel.SAME: sweep.SAME, kernel.BELOW_OWN: sweep.BELOW_OWN}.get(one.op)
        return None if op is None else (op, self._array(need, sweep.VALUE, one.column), 0, mine, 0, void)

    def _own(self, fact: int) -> int:
        if fact not in self.owns:
            self.owns.append(fact)
        return self.owns.index(fact)

    def _array(self, need: int, what: int, column: int) -> int:
        """The place of an array of the rows that have these bits."""
        own = self.arrays.setdefault(need, [])
        for known, of, place in own:
            if (known, of) == (what, column):
                return place
        if what == sweep.BEFORE:  # it reads the values one place before it
            own.append((sweep.VALUE, column, self.places))
            self.places += 1
        own.append((what, column, self.places))
        self.places += _PLACES.get(what, 1)
        return self.places - _PLACES.get(what, 1)

    def _view(self, need: int, reach: tuple[int, int]) -> list[tuple[int, ...]]:
        if reach not in self.ranges:
            self.ranges.append(reach)
        self.arrays.setdefault(need, [])
        return self.views.setdefault((need, self.ranges.index(reach)), [])


def _is_older(condition: _Condition) -> bool:
    return condition.op == kernel.OLDER and condition.fact == kernel.AT_MS_FACT


def _lines(program: Array, at: int, count: int, width: int) -> list[list[int]]:
    """The lines of a table of the kernel's plan."""
    lines: list[list[int]] = program[at : at + count * width].reshape(count, width).tolist()
    return lines


class _Writer:
    """Collects tables."""

    def __init__(self, words: Iterable[int]) -> None:
        self.words = list(words)

    def table(self, lines: Iterable[Iterable[int]]) -> int:
        """Appends the lines and says where they begin."""
        begin = len(self.words)
        for line in lines:
            self.words.extend(line)
        return begin


def _written(writer: _Writer, columns: int, log: _Log) -> list[int]:
    """Writes the tables of one log; its line."""
    streams = []
    for need, arrays in log.arrays.items():
        views = [(number, cells) for (of, number), cells in log.views.items() if of == need]
        view_at = writer.table([(number, len(cells), writer.table(cells)) for number, cells in views])
        streams.append((need, len(arrays), writer.table(arrays), len(views), view_at))
    ends = [ahead for _, ahead in log.ranges]
    return [
        *(columns, len(log.owns), writer.table([log.owns])),
        *(len(log.static), writer.table((_STATIC[c.op], c.column, c.value) for c in (log.conditions[number] for number in log.static))),
        *(len(log.ranges), writer.table((back, ahead, ends.index(ahead)) for back, ahead in log.ranges)),
        *(len(streams), writer.table(streams)),
        log.places,
    ]


def sweep_plan(program: Array) -> SweepPlan:
    """What of a plan is swept, and what is left."""
    head = program[: kernel.HEAD].tolist()
    zero = program[head[kernel.FACT_AT] : head[kernel.FACT_AT] + head[kernel.FACTS]]
    logs = _lines(program, head[kernel.LOG_AT], head[kernel.LOGS], kernel.LOG_LINE)
    registers: list[int] = []
    rest = _Writer(program.tolist())
    tables, meetings, cell_at, longest = [], [], [0], 0
    collected: dict[int, int] = {}
    for number, line in enumerate(logs):
        conditions = [_Condition(*each) for each in _lines(program, line[kernel.L_CONDITION_AT], line[kernel.L_CONDITIONS], kernel.CONDITION_LINE)]
        cells = [_Cell(*each) for each in _lines(program, line[kernel.L_CELL_AT], line[kernel.L_CELLS], kernel.CELL_LINE)]
        log, left = _Log(conditions, zero), []
        for cell in cells:
            swept = log.add(cell, len(registers))
            if cell.op == kernel.COLLECT:
                collected[cell.shared] = len(registers) if swept else -1
            if cell.op == kernel.MEETING:
                meetings.append((number, cell.register, collected[cell.shared], cell.shared))
            if swept:
                registers.append(cell.register)
            if not swept or cell.op == kernel.COLLECT:
                left.append(cell)
        tables.append((line[kernel.L_COLUMNS], log))
        cell_at.append(len(registers))
        _leave(rest, head[kernel.LOG_AT] + number * kernel.LOG_LINE, conditions, left)
        longest = max([longest, *(cell.window + cell.delay for cell in left)])
    rest.words[kernel.LONGEST_MS] = longest
    writer = _Writer([0] * sweep.HEAD)
    lines = [_written(writer, columns, log) for columns, log in tables]
    room = head[kernel.CAP] + head[kernel.CHUNK] + EVENTS
    writer.words[: sweep.HEAD] = [room, EVENTS, len(registers), writer.table(lines)]
    ints = np.int64
    return SweepPlan(
        np.array(writer.words, ints),
        np.array(registers, ints),
        np.array(cell_at, ints),
        np.array(rest.words, ints),
        np.array(meetings, ints).reshape(len(meetings), 4),
    )


def _leave(rest: _Writer, line: int, conditions: list[_Condition], left: list[_Cell]) -> None:
    """Makes these cells, and the conditions that they need, all that a plan has of a log."""
    used = [number for number in range(len(conditions)) if any(cell.need >> number & 1 for cell in left)]
    high = kernel.PAST_BIT | kernel.WINDOW_BIT
    rest.words[line + kernel.L_CONDITIONS] = len(used)
    rest.words[line + kernel.L_CONDITION_AT] = rest.table(conditions[number] for number in used)
    needs = [high | sum(1 << place for place, number in enumerate(used) if cell.need >> number & 1) for cell in left]
    rest.words[line + kernel.L_CELLS] = len(left)
    rest.words[line + kernel.L_CELL_AT] = rest.table(cell._replace(need=need) for cell, need in zip(left, needs, strict=True))
