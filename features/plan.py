"""The plan: rows of the catalogue as the one array of numbers that the kernel interprets."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from features import kernel
from features.fact import AT_MS, DEGREE, FACT_NUMBER, FACTS, KIND, MEASURE_NUMBER, MEASURES, Entity
from features.layout import Cap, LogLayout, ProfileLayout
from features.row import Calc, Capped, Condition, Constant, Expression, Feature, Fold, Known, Meeting, Own, sum_over_count

assert (kernel.DEGREE, kernel.AT_MS_FACT, kernel.KIND_FACT) == (DEGREE, AT_MS, KIND), "the kernel has its own copy: numba's cache looks at one file"

_CONDITIONS = {
    "kinds": kernel.KINDS,
    "below": kernel.BELOW,
    "same": kernel.SAME,
    "near": kernel.NEAR,
    "given": kernel.GIVEN,
    "below_own": kernel.BELOW_OWN,
    "just_under": kernel.JUST_UNDER,
    "weekday": kernel.WEEKDAY,
    "older": kernel.OLDER,
}
_FOLDS = {
    "count": kernel.COUNT,
    "sum": kernel.SUM,
    "mean": kernel.MEAN,
    "max": kernel.MAX,
    "spread": kernel.SPREAD,
    "distinct": kernel.DISTINCT,
    "last": kernel.LAST,
    "first": kernel.FIRST,
    "eastward": kernel.EASTWARD,
}
_CALCS = {
    "minus": kernel.MINUS,
    "over": kernel.OVER,
    "times": kernel.TIMES,
    "larger": kernel.LARGER,
    "differs": kernel.DIFFERS,
    "is_zero": kernel.IS_ZERO,
    "is_missing": kernel.IS_MISSING,
    "log1p": kernel.LOG1P,
    "kind_in": kernel.KIND_IN,
    "kilometres": kernel.KILOMETRES,
    "plus": kernel.PLUS,
    "above": kernel.ABOVE,
    "parts_differ": kernel.PARTS_DIFFER,
}
CONDITIONS_MAX = 60


class _Cell(NamedTuple):
    """One aggregate over one log: where it goes, what it is, and which of the sets that logs hand on it fills or meets (-1: none)."""

    register: int
    fold: Fold
    op: int
    shared: int = -1


class _Registers:
    """Gives every different expression one register: equal parts of different rows are computed once."""

    def __init__(self, entities: Sequence[Entity], profiles: Sequence[ProfileLayout], told: Sequence[Fold]) -> None:
        self.knowns = [(number, column) for number, profile in enumerate(profiles) for column in profile.columns]
        self.profiles = profiles
        self.told = {fold: len(FACTS) + len(MEASURES) + number for number, fold in enumerate(told)}
        self.known_from = len(FACTS) + len(MEASURES) + len(told)
        self.zero = self.known_from + len(self.knowns)
        self.taken = self.zero + 1
        self.constants: list[tuple[int, float]] = [(self.zero, 0.0)]
        self.cells: dict[str, list[_Cell]] = {entity.name: [] for entity in entities}
        self.shared: list[Fold] = []
        self.capped: dict[str, int] = {}
        self.steps: list[tuple[int, ...]] = []
        self.of: dict[Expression, int] = {}

    def register(self, expression: Expression) -> int:
        """The register that will hold the expression's value."""
        if expression not in self.of:
            self.of[expression] = self._placed(expression)
        return self.of[expression]

    def _new(self) -> int:
        self.taken += 1
        return self.taken - 1

    def _collected(self, fold: Fold) -> int:
        """The number of the set of values that this fold counts as distinct."""
        if fold not in self.shared:
            self.shared.append(fold)
            self.cells[fold.entity.name].append(_Cell(self._new(), fold, kernel.COLLECT, len(self.shared) - 1))
        return self.shared.index(fold)

    def _placed(self, expression: Expression) -> int:
        match expression:
            case Own(name):
                return FACT_NUMBER[name] if name in FACT_NUMBER else len(FACTS) + MEASURE_NUMBER[name]
            case Known(entity, column):
                kinds = [profile.kind for profile in self.profiles]
                return self.known_from + self.knowns.index((kinds.index(entity.name), column))
            case Constant(value):
                self.constants.append((self._new(), value))
            case Capped(entity):
                self.capped[entity.name] = self._new()
            case Fold() if expression in self.told:
                return self.told[expression]
            case Fold(entity, "mean") if entity.name not in self.cells:
                return self.register(sum_over_count(expression))
            case Fold(entity):
                self.cells[entity.name].append(_Cell(self._new(), expression, _FOLDS[expression.op]))
            case Meeting(one, other):
                names = list(self.cells)
                assert names.index(other.entity.name) < names.index(one.entity.name), "the log that is met comes first"
                self.cells[one.entity.name].append(_Cell(self._new(), one, kernel.MEETING, self._collected(other)))
                return self.cells[one.entity.name][-1].register
            case Calc(op, args):
                operands = [self.register(arg) for arg in args]
                self.steps.append((_CALCS[op], self._new(), *operands, *[self.zero] * (4 - len(operands))))
        return self.taken - 1


class _Writer:
    """Collects the tables behind the head."""

    def __init__(self) -> None:
        self.words: list[int] = [0] * kernel.HEAD

    def table(self, lines: Iterable[Iterable[int]]) -> int:
        """Appends the lines and says where they begin."""
        begin = len(self.words)
        for line in lines:
            self.words.extend(line)
        return begin


def _conditions(folds: Iterable[Fold]) -> list[Condition]:
    return list(dict.fromkeys(condition for fold in folds for condition in fold.where))


def _log_line(writer: _Writer, layout: LogLayout, cells: list[_Cell], capped: int) -> list[int]:
    """Writes the tables of one log; its line in the table of logs."""
    columns = layout.columns[1:]
    local = {column: number for number, column in enumerate(columns)}
    conditions = _conditions(cell.fold for cell in cells)
    assert len(conditions) <= CONDITIONS_MAX, f"log {layout.kind}: more than {CONDITIONS_MAX} different conditions"
    column_at = writer.table(
        (offset // 8, offset % 8, (1 << FACTS[fact].bits) - 1, fact) for offset, fact in zip(layout.offsets[1:], layout.facts[1:], strict=True)
    )
    condition_at = writer.table((_CONDITIONS[c.op], local[c.column], c.value, FACT_NUMBER[c.column]) for c in conditions)
    cell_at = writer.table(
        (
            cell.op,
            local[cell.fold.column],
            cell.fold.window.ms,
            sum((1 << conditions.index(condition) for condition in set(cell.fold.where)), kernel.PAST_BIT | kernel.WINDOW_BIT),
            cell.register,
            int(FACTS[FACT_NUMBER[cell.fold.column]].zero_is_missing),
            FACT_NUMBER[cell.fold.column],
            cell.shared,
            cell.fold.delay.ms if cell.fold.delay else 0,
        )
        for cell in sorted(cells, key=lambda cell: (-cell.fold.reach_ms, cell.fold.window.ms))
    )
    return [layout.row_bytes, len(columns), column_at, len(conditions), condition_at, len(cells), cell_at, capped]


def program_of(
    rows: Sequence[Feature],
    entities: Sequence[Entity],
    layouts: Sequence[LogLayout],
    profiles: Sequence[ProfileLayout],
    told: Sequence[Fold],
    cap: Cap,
    longest_ms: int,
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The plan of these rows over the logs of these entities, which have these layouts, as `kernel.look_all` reads it.

    What tallies told comes in after the measures.
    """
    registers, writer = _Registers(entities, profiles, told), _Writer()
    outs = [registers.register(row.shape.expression) for row in rows]
    lines = [
        _log_line(writer, layout, registers.cells[entity.name], registers.capped.get(entity.name, -1))
        for entity, layout in zip(entities, layouts, strict=True)
    ]
    bits = [(register, struct.unpack("<q", struct.pack("<d", value))[0]) for register, value in registers.constants]
    head = {
        kernel.LOGS: len(layouts),
        kernel.FACTS: len(FACTS),
        kernel.MEASURES: len(MEASURES) + len(told),
        kernel.PROFILES: len(profiles),
        kernel.REGISTERS: registers.taken,
        kernel.OUTS: len(outs),
        kernel.STEPS: len(registers.steps),
        kernel.CONSTANTS: len(bits),
        kernel.KNOWNS: len(registers.knowns),
        kernel.CAP: cap.rows,
        kernel.CHUNK: cap.chunk,
        kernel.KEEP_MS: longest_ms + cap.slack_ms,
        kernel.LONGEST_MS: longest_ms,
        kernel.LOG_AT: writer.table(lines),
        kernel.STEP_AT: writer.table(registers.steps),
        kernel.OUT_AT: writer.table([outs]),
        kernel.CONSTANT_AT: writer.table(bits),
        kernel.KNOWN_AT: writer.table((number, profiles[number].offset(column)) for number, column in registers.knowns),
        kernel.FACT_AT: writer.table([[int(fact.zero_is_missing) for fact in FACTS]]),
        kernel.KNOWN_REG: registers.known_from,
        kernel.SHARED: len(registers.shared),
    }
    for place, word in head.items():
        writer.words[place] = word
    return np.array(writer.words, np.int64)
