"""Profiles: what is known of an entity and changes slowly, with the time since which it is known."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from features.catalogue import Catalogue
from features.fact import country_code
from schemas.account import AccountState

_CELL = struct.Struct("<dq")
SEEN_BYTES = 7
"""Of each profile value that a transaction saw, in `Decision.profile_positions`, little-endian: its profile's number in three bits and its column's
in five, then six bytes of milliseconds since which it is known. `kernel.where_read` writes it."""
Write = tuple[str, str, int, bytes]
"""A Redis command: SETRANGE, key, offset, bytes."""


def profile_write(catalogue: Catalogue, kind: str, token: str, column: str, value: float, known_at_ms: int) -> Write | None:
    """The command that makes one column known; None if no row of this catalogue reads that kind of profile."""
    if kind not in catalogue.profiles:
        return None
    layout = catalogue.profile_layouts[catalogue.profiles.index(kind)]
    return ("SETRANGE", layout.key(token), layout.offset(column), _CELL.pack(value, known_at_ms))


def cell_of(profile: bytes, offset: int) -> tuple[float, int]:
    """The value in a profile's bytes at a column's offset, and since when it is known, milliseconds; 0: it is not."""
    cell = profile[offset : offset + _CELL.size]
    return _CELL.unpack(cell) if len(cell) == _CELL.size else (0.0, 0)


def seen_of(catalogue: Catalogue, positions: bytes) -> Iterator[tuple[str, str, int]]:
    """Profile's kind, column and known-since of each value that a transaction saw; what this catalogue does not know is left out."""
    for at in range(0, len(positions), SEEN_BYTES):
        word = int.from_bytes(positions[at : at + SEEN_BYTES], "little")
        number, column = word >> 5 & 7, word & 31
        if number < len(catalogue.profile_layouts) and column < len(catalogue.profile_layouts[number].columns):
            layout = catalogue.profile_layouts[number]
            yield layout.kind, layout.columns[column], word >> 8


def account_knowledge(state: AccountState) -> Iterator[tuple[str, float]]:
    """The profile columns that an account's state makes known, and their values."""
    if state.opened_at_ms is not None:
        yield "opened_at_ms", float(state.opened_at_ms)
    if state.home_country is not None:
        yield "home_country", float(country_code(state.home_country))
    yield "credit_limit_minor", float(state.credit_limit_minor)


def profile_writes(catalogue: Catalogue, state: AccountState) -> tuple[Write, ...]:
    """The commands that make an account's state known as of `as_of_ms`, all on one key. Later states overwrite: send them in order."""
    known = account_knowledge(state)
    writes = (profile_write(catalogue, "account", state.account_id, column, value, state.as_of_ms) for column, value in known)
    return tuple(write for write in writes if write is not None)
