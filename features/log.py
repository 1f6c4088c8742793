"""A log's bytes at rest: tidied (each row once, old chunks into the header) and rebuilt from decisions. Pure, and the same in both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from features import kernel
from features.catalogue import Catalogue
from features.engine import Past, buffer_of, kept_up, look, own_bytes, packed, place_in, row_bytes, rows_of
from features.fact import declined_facts, facts_of
from features.layout import NEWEST_AT, TRIMMED_AT, TRIMMED_WIDTH, at_ms_of
from schemas import avro
from schemas.transaction import Transaction, TransactionKind

_HEADER = bytes(8)
"""The identity of the header row."""


def row_count(log: bytes, row_size: int, length: int) -> int:
    """Rows that a log of `length` bytes has had, trimmed ones and repeats included. `log` is its content, or at least its first row."""
    if length < row_size or log[:8] != _HEADER:
        return length // row_size
    return int.from_bytes(log[TRIMMED_AT : TRIMMED_AT + TRIMMED_WIDTH], "little") + length // row_size - 1


REWRITTEN_ROWS = 50
"""A log is written anew after each so many rows: Redis gives a string that grows twice its length, and one that is set just its own."""


def is_due(catalogue: Catalogue, rows: int) -> bool:
    """Whether the append that made it this many rows is one after which the log is tidied, or at least written anew."""
    return rows % catalogue.cap.chunk == 0 or rows % REWRITTEN_ROWS == 0


def tidied(catalogue: Catalogue, log_number: int, log: bytes) -> bytes:
    """The log at rest: repeats removed, and what no transaction of the last chunk may see gone into the header.

    A function of the unique rows alone, however often and whenever it was applied before.
    """
    size, cap = catalogue.log_layouts[log_number].row_bytes, catalogue.cap
    out = np.empty(len(log) + size, np.uint8)
    length = kernel.at_rest(buffer_of((log,)), size, cap.rows, cap.chunk, catalogue.keep_ms, out)
    return out[:length].tobytes()


class LogRow(NamedTuple):
    """One row of one log, as a decision tells it."""

    log_number: int
    token: str
    position: int
    row: bytes


def log_rows(catalogue: Catalogue, txn: Transaction, positions: tuple[int, ...], declined_positions: tuple[int, ...]) -> Iterator[LogRow]:
    """The rows that a decided transaction has in its logs, with their positions; its decline rows too, if it has any.

    A decision that knew fewer logs than this catalogue has (new entities come last) gives rows to those that it knew.
    """
    facts = facts_of(txn)
    kinds = [(facts, positions)]
    if declined_positions:
        kinds.append((declined_facts(facts), declined_positions))
    for these, places in kinds:
        for number, (row, place) in enumerate(zip(packed(catalogue, txn, these), places, strict=False)):
            if row is not None and place >= 0:
                yield LogRow(number, getattr(txn, catalogue.log_fields[number]), place, row)


def rebuilt_log(catalogue: Catalogue, log_number: int, rows: Iterable[tuple[int, bytes]]) -> bytes:
    """The log of these rows (position and bytes, any order): byte-identical to the live log at rest, if none of its rows is missing.

    Missing rows (appended, but never decided) are counted in the header, so that positions go on where they were. Two rows at
    one position mean that the log had expired and begun again: the older time is dropped.
    """
    layout = catalogue.log_layouts[log_number]
    ordered = sorted(rows, key=lambda row: row[0])
    unique = {row[:8]: (position, row) for position, row in reversed(ordered)}
    if len(unique) > ordered[-1][0] + 1:
        newest = max(at_ms_of(row) for _, row in ordered)
        fresh = [(p, r) for p, r in ordered if at_ms_of(r) > newest - catalogue.keep_ms]
        if len(fresh) < len(ordered):
            return rebuilt_log(catalogue, log_number, fresh)
    lost = max(0, ordered[-1][0] + 1 - len(unique))
    header = layout.header(lost, 0) if lost else b""
    return tidied(catalogue, log_number, header + b"".join(row for _, row in sorted(unique.values(), key=lambda row: row[0])))


class Told(NamedTuple):
    """A row that a record tells, and since when (milliseconds) the record can have been in the topics."""

    position: int
    row: bytes
    told_ms: int


def in_turn(rows: Iterable[Told], count: int, lost_before_ms: int) -> tuple[list[Told], list[Told]]:
    """The rows that may follow a log of `count` rows, in its order, and those that wait: behind a place of which the topics may still tell.

    A place is lost when the row behind it was told before `lost_before_ms`.
    """
    ordered = sorted(rows)
    for number, (position, _, told_ms) in enumerate(ordered):
        if position > count and told_ms >= lost_before_ms:
            return ordered[:number], ordered[number:]
        count = max(count, position + 1)
    return ordered, []


def grown(catalogue: Catalogue, log_number: int, log: bytes, rows: Sequence[Told]) -> bytes:
    """The log at rest with these rows behind its own, each once: where all rows came in turn, the bytes of `rebuilt_log` of all of them."""
    if not log:
        return rebuilt_log(catalogue, log_number, [(position, row) for position, row, _ in rows]) if rows else b""
    layout, head, size = catalogue.log_layouts[log_number], b"", catalogue.log_layouts[log_number].row_bytes
    if log[:8] == _HEADER:
        head, log = log[:size], log[size:]
    newest = int.from_bytes(head[NEWEST_AT : NEWEST_AT + 6], "little")
    trimmed = int.from_bytes(head[TRIMMED_AT : TRIMMED_AT + TRIMMED_WIDTH], "little")
    there = {log[at : at + 8] for at in range(0, len(log), size)}
    new: dict[bytes, Told] = {}
    for told in rows:
        if told.row[:8] not in there and (told.position >= trimmed or at_ms_of(told.row) > newest):
            new.setdefault(told.row[:8], told)
    if new:
        trimmed += max(0, rows[-1].position + 1 - (trimmed + len(log) // size + len(new)))
    head = layout.header(trimmed, newest) if trimmed else b""
    return tidied(catalogue, log_number, head + log + b"".join(told.row for told in new.values()))


WARM = Transaction(transaction_id="warm", kind=TransactionKind.ECOMMERCE, at_ms=0, amount_minor=0, currency="EUR", account_id="warm")
"""A payment that nobody made."""


def warm(catalogue: Catalogue) -> None:
    """Loads (the first time on a machine: compiles) what serving runs, so that the first payment does not wait for it."""
    avro.bodies((WARM,))
    txn = avro.decode(Transaction, avro.encode(WARM))
    own = own_bytes(txn)
    rows_of(catalogue, [own])
    rows = row_bytes(catalogue, txn)
    past = Past.of(own, (*rows, *(None,) * (len(catalogue.profiles) + len(catalogue.tallies))))
    look(catalogue, past)
    kept_up(catalogue, past.whole, 1, 1, REWRITTEN_ROWS)
    number, row = next((number, row) for number, row in enumerate(rows) if row is not None)
    place_in(row, len(row), 1)
    tidied(catalogue, number, row)
