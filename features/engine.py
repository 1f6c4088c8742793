"""From a transaction and the bytes of its past to one vector of named numbers. Pure."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from features import kernel
from features.catalogue import Catalogue
from features.fact import FACTS, MEASURES, facts_of, measures_of
from features.layout import beginning_of
from features.profile import seen_in
from features.tally import head_of, longs, told
from schemas.transaction import Transaction

_OWN = struct.Struct(f"<Q{len(FACTS) - 1}q{len(MEASURES)}d")
_ZEROS = bytes(64)


class Past(NamedTuple):
    """What the memory holds of a transaction's entities: bytes of each log and profile (None: no such entity, or not known).

    `logs` is in the order of the catalogue's `logs`, `profiles` of its `profiles`. `missing` names the entity kinds whose log or tally
    (or, as `account_profile`, whose profile) could not be read. The transaction's own rows are in its logs already. `tallies` is in
    the order of the catalogue's `tallies`: None is 'no such entity', or not readable; b"" a tally without a row.
    """

    logs: tuple[bytes | None, ...]
    profiles: tuple[bytes | None, ...]
    missing: tuple[str, ...] = ()
    facts: tuple[int, ...] | None = None
    tallies: tuple[bytes | None, ...] = ()

    @classmethod
    def nothing(cls, catalogue: Catalogue) -> Past:
        """The past as a memory tells it that does not answer: all that rests on it is missing, all positions are -1."""
        kinds = (*catalogue.logs, *[f"{kind}_profile" for kind in catalogue.profiles], *catalogue.tallies)
        return cls((None,) * len(catalogue.logs), (None,) * len(catalogue.profiles), kinds, None, (None,) * len(catalogue.tallies))


class Look(NamedTuple):
    """A transaction's vector (float64, the catalogue's order, NaN is missing), its position in each log (-1: no such entity; in
    a log that it only looked into: the unique rows that it found), the numbers of the logs in which it occurs twice, and the
    heads of its tallies, one after the other (no such entity: zeros), and which profile values it saw."""

    values: np.ndarray[Any, np.dtype[np.float64]]
    positions: tuple[int, ...]
    repeated: tuple[int, ...]
    tally_positions: bytes = b""
    profile_positions: bytes = b""


def packed(catalogue: Catalogue, txn: Transaction, facts: tuple[int, ...], looked_into: bytes | None = None) -> tuple[bytes | None, ...]:
    """The row that these facts append to each log; None where the transaction has no such entity, `looked_into` where it only looks."""
    beginning = beginning_of(facts)
    entities = zip(catalogue.log_layouts, catalogue.log_entities, strict=True)
    return tuple(
        [
            None if getattr(txn, field) is None else looked_into if log_of else layout.pack(facts, beginning)
            for layout, (_, field, log_of, _) in entities
        ]
    )


def to_recall(catalogue: Catalogue, txn: Transaction, facts: tuple[int, ...]) -> tuple[bytes | None, ...]:
    """As `packed`, with b"" for a log that is read and gets no row."""
    return packed(catalogue, txn, facts, b"")


def row_bytes(catalogue: Catalogue, txn: Transaction) -> tuple[bytes | None, ...]:
    """The row that a transaction appends to each log; None where it has no such entity."""
    return packed(catalogue, txn, facts_of(txn))


def assembled(catalogue: Catalogue, txn: Transaction, past: Past) -> bytearray:
    """The kernel's buffer: own facts and measures, where each log and profile begins, and their bytes."""
    facts = facts_of(txn) if past.facts is None else past.facts
    at = _OWN.size + 8 * len(catalogue.tally_plan.folds) + 8 * (2 * len(past.logs) + len(past.profiles))
    places: list[int] = []
    contents: list[bytes] = []
    for log in past.logs:
        if log is None:
            places += (-1, 0)
            continue
        places += (at, len(log))
        contents.append(log)
        at += len(log)
    for profile, layout in zip(past.profiles, catalogue.profile_layouts, strict=True):
        if profile is None:
            places.append(-1)
            continue
        places.append(at)
        content = profile.ljust(layout.width, b"\0")
        contents.append(content)
        at += len(content)
    own = _OWN.pack(*facts, *measures_of(txn))
    if catalogue.tallies:
        own += told(catalogue.tally_plan, past.tallies or (None,) * len(catalogue.tallies), txn.at_ms).tobytes()
    return bytearray().join((own, longs(len(places))(*places), *contents, _ZEROS))


def look(catalogue: Catalogue, txn: Transaction, past: Past) -> Look:
    """The vector of a transaction as the rows before its own first occurrence determine it."""
    width, logs = len(catalogue.rows), len(catalogue.logs)
    out = np.empty(width + 2 * logs)
    kernel.look_at(catalogue.program, np.frombuffer(assembled(catalogue, txn, past), np.uint8), out)
    tail = out[width:].tolist()
    repeated = tuple([log for log in range(logs) if tail[2 * log + 1]]) if any(tail[1::2]) else ()
    heads = b"".join(map(head_of, past.tallies))
    return Look(out[:width], tuple(map(int, tail[::2])), repeated, heads, seen_in(past.profiles, txn.at_ms))


def place_in(log: bytes, row_size: int, identity: int) -> tuple[int, bool]:
    """The position of the row with this identity in a log, and whether it occurs twice."""
    signed = identity - (1 << 64) if identity >> 63 else identity
    position, twice = kernel.place_of(np.frombuffer(bytearray(log + _ZEROS[:8]), np.uint8), row_size, signed)
    return int(position), bool(twice)
