"""The bytes of a log and of a profile: which columns a row has, where, and the version of that, which is part of every key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from features.fact import FACT_NUMBER, FACTS, PROFILES, Entity
from features.row import DAY_MS, Condition, Feature, Fold, parts

FIXED = ("hash", "at_ms", "kind")
"""The columns that every row has, first and in this order. The first eight bytes are the row's identity, its time's low half included."""
AT_MS_BYTE, AT_MS_MASK = 4, (1 << 42) - 1
NEWEST_AT, TRIMMED_AT, TRIMMED_WIDTH = 8, 14, 6
"""Where a header row (identity 0) says which event time was the newest of the trimmed rows, and how many unique ones they were."""
COLUMN_BITS_MAX = 57
"""A column begins at any bit of a byte and is read as 64 bits, so that it has at most this many."""


def at_ms_of(rows: bytes, at: int = 0) -> int:
    """The event time of the row that begins there, as every layout has it."""
    return int.from_bytes(rows[at + AT_MS_BYTE : at + AT_MS_BYTE + 6], "little") & AT_MS_MASK


_AT_MS_BIT, _KIND_BIT = FACTS[0].bits, FACTS[0].bits + FACTS[1].bits


def beginning_of(facts: tuple[int, ...]) -> int:
    """The fixed columns of a row, the same in every layout; the time is written over the identity's low half, which is the same."""
    return facts[0] | facts[1] << _AT_MS_BIT | facts[2] << _KIND_BIT


@dataclass(frozen=True)
class Cap:
    """How long a log gets. After `rows + chunk` unique rows its oldest `chunk` are no longer seen, and so on; nor are rows that are
    older than the longest window and `slack_ms` more. Both counted at each `chunk` rows, so that it depends on the rows alone.

    Bytes go one chunk later than sight: who comes again within `chunk` rows still meets the same past, whom only a stored
    answer protects after that.
    """

    rows: int = 512
    chunk: int = 128
    slack_ms: int = 7 * DAY_MS

    def __post_init__(self) -> None:
        assert self.chunk > 0, "a chunk has at least one row"
        assert self.rows % self.chunk == 0, "rows is a multiple of chunk: both are counted together"


def content_hash(text: str, digits: int) -> str:
    """Hex digits that stand for a definition: SHA-256, cut."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


@dataclass(frozen=True)
class LogLayout:
    """The packed row of one entity kind's log: little-endian unsigned columns of as many bits as they need, none between them.

    The arithmetic of a card's row: hash 32, time 42, kind 6, amount 40, merchant 20, device 20, country 10, latitude 14, longitude
    15 = 199 bits, 25 bytes. 100 of them are 2,500 bytes, and with the key and Redis' own words 2,632 (`MEMORY USAGE` of an exact
    string): less than 3 KB, with room for malloc's rounding. Whole bytes and a 64-bit hash took 40.
    """

    kind: str
    columns: tuple[str, ...]

    @cached_property
    def facts(self) -> tuple[int, ...]:
        """Each column's number in FACTS."""
        return tuple(FACT_NUMBER[column] for column in self.columns)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Each column's first bit."""
        bits = [FACTS[fact].bits for fact in self.facts]
        return tuple(sum(bits[:i]) for i in range(len(bits)))

    @cached_property
    def row_bytes(self) -> int:
        """Bytes a row; never less than a header needs."""
        return max((self.offsets[-1] + FACTS[self.facts[-1]].bits + 7) // 8, TRIMMED_AT + TRIMMED_WIDTH)

    @cached_property
    def version(self) -> str:
        """Hash of the columns and their bits: another layout is another key."""
        return content_hash(repr([(c, FACTS[f].bits) for c, f in zip(self.columns, self.facts, strict=True)]), 8)

    @cached_property
    def _shifts(self) -> tuple[tuple[int, int], ...]:
        """Fact and first bit of each column after the fixed ones."""
        return tuple(zip(self.facts, self.offsets, strict=True))[len(FIXED) :]

    def pack(self, facts: tuple[int, ...], beginning: int | None = None) -> bytes:
        """The row of these facts. `beginning` is `beginning_of(facts)`, for who packs the same facts into several logs."""
        row = beginning_of(facts) if beginning is None else beginning
        for fact, shift in self._shifts:
            row |= facts[fact] << shift
        return row.to_bytes(self.row_bytes, "little")

    def header(self, trimmed: int, newest_at_ms: int) -> bytes:
        """The first row of a trimmed log: how many unique rows are gone, and the newest event time among them."""
        return (newest_at_ms << 8 * NEWEST_AT | trimmed << 8 * TRIMMED_AT).to_bytes(self.row_bytes, "little")

    def key(self, token: str) -> str:
        """The Redis key of an entity's log."""
        return f"log:{self.version}:{self.kind}:{token}"


def _columns_read(fold: Fold) -> Iterable[str]:
    """The columns that a fold needs in the rows it reads."""
    own_column: tuple[Condition, ...] = fold.where
    return (fold.column, *(condition.column for condition in own_column))


def log_layouts(rows: Iterable[Feature], entities: Iterable[Entity]) -> tuple[LogLayout, ...]:
    """The layout of each entity's log: the columns that the rows reading it need, in the order of FACTS. Two may share a log."""
    logs = [entity.log_of or entity.name for entity in entities]
    needed: dict[str, set[str]] = {log: set(FIXED) for log in logs}
    for row in rows:
        for part in parts(row.shape.expression):
            if isinstance(part, Fold) and (log := part.entity.log_of or part.entity.name) in needed:
                needed[log].update(_columns_read(part))
    assert all(FACTS[FACT_NUMBER[column]].bits <= COLUMN_BITS_MAX for columns in needed.values() for column in columns), "a column is too wide"
    return tuple(LogLayout(log, tuple(f.name for f in FACTS if f.name in needed[log])) for log in logs)


PROFILE_CELL_BYTES = 16
"""A profile's column: the value as float64 and the time since which it is known as int64 milliseconds; 0: not known."""


@dataclass(frozen=True)
class ProfileLayout:
    """The fixed-width bytes of one entity kind's profile."""

    kind: str

    @property
    def columns(self) -> tuple[str, ...]:
        """What it holds, in order."""
        return PROFILES[self.kind]

    @property
    def width(self) -> int:
        """Bytes of a whole profile."""
        return len(self.columns) * PROFILE_CELL_BYTES

    @cached_property
    def version(self) -> str:
        """Hash of the columns: another layout is another key."""
        return content_hash(repr(self.columns), 8)

    def offset(self, column: str) -> int:
        """The column's first byte."""
        return self.columns.index(column) * PROFILE_CELL_BYTES

    def key(self, token: str) -> str:
        """The Redis key of an entity's profile."""
        return f"profile:{self.version}:{self.kind}:{token}"
