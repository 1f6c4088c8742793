"""From a transaction and the bytes of its past to one vector of named numbers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from features import kernel
from features.catalogue import Catalogue
from features.fact import FACTS, MEASURES, NO_MEASURES, OWN, facts_of, owns_of
from features.layout import beginning_of
from features.profile import SEEN_BYTES
from features.tally import HEADER_BYTES, lengths_of, longs, told_to_all
from schemas.transaction import Transaction

OWN_BYTES = OWN.size
"""A transaction's facts and measures, as the kernels read them."""
_BEYOND = bytes(8)
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Past(NamedTuple):
    """What the memory holds of a transaction's entities, as the kernels read it: its `section`, from `begin` to `end` of a shared buffer.

    The transaction's own rows are in its logs already. `missing` names the entity kinds whose log or tally (or, as `account_profile`, whose
    profile) could not be read.
    """

    whole: Bytes
    begin: int
    end: int
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, own: bytes, contents: Sequence[bytes | None], missing: tuple[str, ...] = ()) -> Past:
        """Of the transaction with these `own_bytes`: bytes of each log, profile and tally in the catalogue's order.

        None: no such entity, not readable, or a profile that is not known; b"": a tally without a row.
        """
        whole = buffer_of([section(own, contents)])
        return cls(whole, 0, len(whole) - len(_BEYOND), missing)

    @classmethod
    def nothing(cls, catalogue: Catalogue, own: bytes) -> Past:
        """The past as a memory tells it that does not answer: all that rests on it is missing, all positions are -1."""
        kinds = (*catalogue.logs, *[f"{kind}_profile" for kind in catalogue.profiles], *catalogue.tallies)
        return cls.of(own, (None,) * len(kinds), kinds)


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


def own_bytes(txn: Transaction) -> bytes:
    """A transaction's facts and its own measures: how its section begins."""
    own: bytes = owns_of((txn,)).tobytes()
    return own


def event_bytes(facts: tuple[int, ...]) -> bytes:
    """As `own_bytes`, of what has no measures."""
    return OWN.pack(*facts, *NO_MEASURES)


def row_slices(catalogue: Catalogue) -> tuple[slice, ...]:
    """Where the row of each log lies in what `rows_of` gives of one transaction."""
    ends = list(accumulate((layout.row_bytes for layout in catalogue.log_layouts), initial=0))
    return tuple(slice(begin, end) for begin, end in pairwise(ends))


def rows_of(catalogue: Catalogue, owns: Sequence[bytes]) -> list[bytes]:
    """The rows that transactions with these `own_bytes` append to all logs, one behind the other: what `packed` gives, at once."""
    size = sum(layout.row_bytes for layout in catalogue.log_layouts)
    out = np.zeros(len(owns) * size + len(_BEYOND), np.uint8)
    kernel.rows_of(catalogue.program, np.frombuffer(b"".join(owns), np.uint8), OWN_BYTES, out)
    rows = out.tobytes()
    return [rows[one * size : (one + 1) * size] for one in range(len(owns))]


def section(own: bytes, contents: Sequence[bytes | None]) -> bytes:
    """A transaction's part of the kernels' buffer: own facts and measures, how long each log, profile and tally is, and their bytes."""
    return b"".join((own, longs(len(contents))(*lengths_of(contents)), *filter(None, contents)))


def buffer_of(sections: Iterable[bytes]) -> Bytes:
    """The kernels' buffer (uint8): these sections, and eight bytes more."""
    return np.frombuffer(b"".join((*sections, _BEYOND)), np.uint8)


def assembled(pasts: Sequence[Past]) -> Bytes:
    """The kernels' buffer of these transactions: the one that they share, if they lie in it one after the other."""
    first, whole = pasts[0], pasts[0].whole
    if all(one.whole is whole and one.begin == before.end for before, one in pairwise(pasts)):
        return whole[first.begin : pasts[-1].end + len(_BEYOND)]
    return buffer_of([past.whole[past.begin : past.end].tobytes() for past in pasts])


KEPT_ON, UNTIDY = kernel.KEPT_ON, kernel.UNTIDY


def kept_up(catalogue: Catalogue, buffer: Bytes, count: int, refresh_ms: int, rewritten: int) -> list[tuple[int, int, int]]:
    """What the appends of these transactions leave to do: which of them, the number of the log, and KEPT_ON and UNTIDY as bits."""
    out = np.empty((count, len(catalogue.logs)), np.uint8)
    kernel.kept_up(catalogue.program, buffer, len(MEASURES), len(catalogue.tallies), refresh_ms, rewritten, out)
    return marked_in(out)


def marked_in(marks: Bytes) -> list[tuple[int, int, int]]:
    """Of a table of marks those that are not 0: which transaction, the number of the log, and the mark."""
    width, flags = marks.shape[1], marks.tobytes()
    return [(at // width, at % width, flag) for at, flag in enumerate(flags) if flag] if any(flags) else []


def computed(catalogue: Catalogue, buffer: Bytes, count: int) -> Floats:
    """float64[count, features + 2 logs]: each transaction's vector, then its position in each log and whether it occurs there twice."""
    out = np.empty((count, len(catalogue.rows) + 2 * len(catalogue.logs)))
    others = len(catalogue.logs) + len(catalogue.profiles)
    told = told_to_all(catalogue.tally_plan, buffer, len(FACTS) + len(MEASURES), others, count)
    kernel.look_all(catalogue.program, buffer, len(catalogue.tallies), told, out)
    return out


def look_all(catalogue: Catalogue, pasts: Sequence[Past]) -> list[Look]:
    """The vector of each transaction as the rows before its own first occurrence determine it."""
    buffer, count, width = assembled(pasts), len(pasts), len(catalogue.rows)
    out = computed(catalogue, buffer, count)
    heads = np.zeros((count, len(catalogue.tallies) * HEADER_BYTES), np.uint8)
    seen = np.empty((count, SEEN_BYTES * sum(len(layout.columns) for layout in catalogue.profile_layouts)), np.uint8)
    of_seen = np.empty(count, np.int64)
    kernel.where_read(catalogue.program, buffer, len(MEASURES), len(catalogue.tallies), HEADER_BYTES, heads, seen, of_seen)
    tails, ends, heads_said, seen_said = out[:, width:].astype(np.int64).tolist(), of_seen.tolist(), heads.tobytes(), seen.tobytes()
    head, room = heads.shape[1], seen.shape[1]
    looks: list[Look] = []
    for one, tail in enumerate(tails):
        twice = tail[1::2]
        repeated = tuple([log for log, again in enumerate(twice) if again]) if 1 in twice else ()
        seen_there = seen_said[one * room : one * room + ends[one]]
        looks.append(Look(out[one, :width], tuple(tail[::2]), repeated, heads_said[one * head : (one + 1) * head], seen_there))
    return looks


def look(catalogue: Catalogue, past: Past) -> Look:
    """`look_all` of one."""
    return look_all(catalogue, (past,))[0]


def place_in(log: bytes, row_size: int, identity: int) -> tuple[int, bool]:
    """The position of the row with this identity in a log, and whether it occurs twice."""
    signed = identity - (1 << 64) if identity >> 63 else identity
    position, twice = kernel.place_of(np.frombuffer(log + _BEYOND, np.uint8), row_size, signed)
    return int(position), bool(twice)


def places(catalogue: Catalogue, pasts: Sequence[Past]) -> list[list[int]]:
    """The position in each log of the row that each of these left there; -1 where it has no such log, or it could not be read."""
    out = np.empty((len(pasts), len(catalogue.logs)), np.int64)
    kernel.places(catalogue.program, assembled(pasts), len(MEASURES), len(catalogue.tallies), out)
    found: list[list[int]] = out.tolist()
    return found
