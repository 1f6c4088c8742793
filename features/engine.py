"""From a transaction and the bytes of its past to one vector of named numbers. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from features import kernel
from features.catalogue import Catalogue
from features.fact import FACTS, MEASURES, facts_of, measures_of
from features.layout import beginning_of
from features.profile import seen_in
from features.tally import head_of, lengths_of, longs, told_to_all
from schemas.transaction import Transaction

_OWN = struct.Struct(f"<Q{len(FACTS) - 1}q{len(MEASURES)}d")
_BEYOND = bytes(8)
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


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


def section(catalogue: Catalogue, txn: Transaction, past: Past) -> list[bytes]:
    """A transaction's part of the kernels' buffer: own facts and measures, how long each log, profile and tally is, and their bytes."""
    facts = facts_of(txn) if past.facts is None else past.facts
    contents = (*past.logs, *past.profiles, *(past.tallies or (None,) * len(catalogue.tallies)))
    lengths = lengths_of(contents)
    return [_OWN.pack(*facts, *measures_of(txn)), longs(len(lengths))(*lengths), *filter(None, contents)]


def assembled(catalogue: Catalogue, txns: Sequence[Transaction], pasts: Sequence[Past]) -> Bytes:
    """The kernels' buffer (uint8): the sections of these transactions, and eight bytes more."""
    sections = chain.from_iterable(section(catalogue, txn, past) for txn, past in zip(txns, pasts, strict=True))
    return np.frombuffer(b"".join((*sections, _BEYOND)), np.uint8)


def computed(catalogue: Catalogue, buffer: Bytes, count: int) -> Floats:
    """float64[count, features + 2 logs]: each transaction's vector, then its position in each log and whether it occurs there twice."""
    out = np.empty((count, len(catalogue.rows) + 2 * len(catalogue.logs)))
    others = len(catalogue.logs) + len(catalogue.profiles)
    told = told_to_all(catalogue.tally_plan, buffer, len(FACTS) + len(MEASURES), others, count)
    kernel.look_all(catalogue.program, buffer, len(catalogue.tallies), told, out)
    return out


def look_all(catalogue: Catalogue, txns: Sequence[Transaction], pasts: Sequence[Past]) -> list[Look]:
    """The vector of each transaction as the rows before its own first occurrence determine it."""
    width = len(catalogue.rows)
    out = computed(catalogue, assembled(catalogue, txns, pasts), len(txns))
    looks: list[Look] = []
    for txn, past, values, tail in zip(txns, pasts, out[:, :width], out[:, width:].astype(np.int64).tolist(), strict=True):
        repeated = tuple([log for log, twice in enumerate(tail[1::2]) if twice]) if any(tail[1::2]) else ()
        heads = b"".join(map(head_of, past.tallies))
        looks.append(Look(values, tuple(tail[::2]), repeated, heads, seen_in(past.profiles, txn.at_ms)))
    return looks


def look(catalogue: Catalogue, txn: Transaction, past: Past) -> Look:
    """`look_all` of one."""
    return look_all(catalogue, (txn,), (past,))[0]


def place_in(log: bytes, row_size: int, identity: int) -> tuple[int, bool]:
    """The position of the row with this identity in a log, and whether it occurs twice."""
    signed = identity - (1 << 64) if identity >> 63 else identity
    position, twice = kernel.place_of(np.frombuffer(log + _BEYOND, np.uint8), row_size, signed)
    return int(position), bool(twice)
