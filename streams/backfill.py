"""`holdfast backfill`: the features of a history, file in and Parquet out, with bounded memory, on all cores; killed, it goes on.

Rows are taken in lots. Each lot becomes one part of `features.parquet` (a folder, as Spark and Arrow read it); beside the parts lies the state
that the next lot needs, with its checksum. Who starts again with the same files, mapping and catalogue goes on after the last state that was
kept and ends in the same bytes. Parts are made in a hidden folder, which takes its name when all are there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import inspect
import io
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from features.backfill import STATE_FORM, Backfill
from features.catalogue import CATALOGUE, DEGRADED, Catalogue
from features.columns import TransactionColumns, columns_from_arrow, joined, merged
from features.fact import ENTITIES, KIND_CODES, PROFILES, Entity
from features.profile import account_knowledge
from features.row import Feature, log_capped
from models.registry import on_disk
from schemas.account import AccountState
from schemas.errors import InvalidRecord, SettingsError
from schemas.transaction import CREDITS
from streams.clock import clock_ms
from streams.columnar import ATTRIBUTE, CLOCK, Cells, ColumnReader, Events, Rows, cells_in, events_by_column, parted
from streams.folder import held, with_kept_secrets
from streams.load import loaded
from streams.mapping import BAD_ROWS_SAID, Mapping, TokenKey, accounts_in, for_file, mapping_in, readable, rows_count, spare
from streams.settings import Settings

FEATURES_FILE = "features.parquet"
LOT_ROWS = 65_536
TURNED_ROWS = 256
STATE = "state"
STATE_SHARE = 20
"""A state is kept when so many times as long has passed since the last as that took: at most one part in so many goes into it."""
Say = Callable[[str], None]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_BESIDE = [
    ("transaction_id", pa.string()),
    ("account_id", pa.string()),
    ("card_token", pa.string()),
    ("amount_minor", pa.int64()),
    ("currency", pa.string()),
    ("at_ms", pa.int64()),
    ("kind", pa.string()),
    ("declined", pa.bool_()),
    ("fraud", pa.bool_()),
    ("fraud_kind", pa.string()),
    ("learned_at_ms", pa.int64()),
]
"""What stands beside the features. `fraud` is null where the file says nothing; `learned_at_ms` is when the label became known."""
_CREDIT_CODES = [KIND_CODES[kind] for kind in CREDITS]
"""Kinds of which none is remembered as a decline: `features.tally.is_declined`."""


class Backfilled(NamedTuple):
    """What a backfill did. `seconds` and `rows_new` are of this run alone, the rest is of those too that went before it."""

    rows: int
    bad_rows: int
    seconds: float
    folder: Path
    rows_new: int


@dataclass(frozen=True)
class Given:
    """What is read: files in the order in which their rows arrived, how, and what is known of accounts beside them."""

    files: tuple[Path, ...]
    mapping: Mapping
    key: TokenKey
    accounts: Path | None = None
    known: Path | None = None
    events: Path | None = None

    def fingerprint(self, catalogue: Catalogue, lot_rows: int) -> str:
        """Stands for all that decides the bytes that come out."""
        paths = [*self.files, self.accounts, self.known, self.events]
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) if path else None for path in paths]
        key = hmac.new(self.key.key, self.key.key_id.encode(), hashlib.sha256).hexdigest()
        return hashlib.sha256(
            repr((STATE_FORM, stats, self.mapping, key, catalogue.catalogue_id, catalogue.names, lot_rows, _BESIDE)).encode()
        ).hexdigest()


class Done(NamedTuple):
    """How far a backfill is: lots, rows written, bad ones, rows read in all files, account events taken."""

    lots: int = 0
    rows: int = 0
    bad_rows: int = 0
    read: int = 0
    events: int = 0
    now_ms: int = 0


# What is read.


class _Lot(NamedTuple):
    """Rows of the files: the good ones as a table and as columns (with the account events that come before them), and the others.

    `events`: how many account events have been taken in all.
    """

    read: int
    table: pa.Table
    columns: TransactionColumns
    declined: Bools
    bad: list[tuple[Path, int, InvalidRecord]]
    events: int


class _Events:
    """Account events in order of time, those of one millisecond as the file has them: of a file in that order a piece at a time, of another all."""

    def __init__(self, given: Given, now_ms: int, taken: int, say: Say) -> None:
        def read() -> Iterator[Events]:
            return events_by_column(given.events, given.mapping, given.key, now_ms=now_ms) if given.events else iter(())

        pieces = read() if _in_order(read(), lambda text: say(f"{given.events}: {text}")) else iter((_sorted(list(read())),))
        self.taken, self._pieces = taken, _without(pieces, taken)
        self._next = next(self._pieces, None)

    def before(self, at_ms: Integers) -> tuple[TransactionColumns, Integers] | None:
        """The events that come before these payments and were not taken, and before which of them each comes: the first not earlier than it."""
        clock, found = np.maximum.accumulate(at_ms), list[Events]()
        while self._next is not None:
            end, whole = int(np.searchsorted(self._next.at_ms, clock[-1], "right")), len(self._next.at_ms)
            found.append(_part(self._next, 0, end))
            self._next = _part(self._next, end, whole) if end < whole else next(self._pieces, None)
            if end < whole:
                break
        moments = np.concatenate([np.zeros(0, np.int64), *(piece.at_ms for piece in found)])
        self.taken += len(moments)
        return (joined([piece.columns for piece in found]), np.searchsorted(clock, moments)) if len(moments) else None


def _in_order(pieces: Iterable[Events], say: Say) -> bool:
    """Whether these account events are in order of time. Says which rows are bad, the first of them."""
    bad, latest_ms, in_order = 0, 0, True
    for piece in pieces:
        for number, fault in piece.bad[: max(BAD_ROWS_SAID - bad, 0)]:
            say(f"row {number}: {fault}")
        bad += len(piece.bad)
        in_order = in_order and bool((np.diff(piece.at_ms, prepend=latest_ms) >= 0).all())
        latest_ms = int(piece.at_ms[-1]) if len(piece.at_ms) else latest_ms
    if bad:
        say(f"{bad} rows are bad and were left out")
    return in_order


def _sorted(pieces: Sequence[Events]) -> Events:
    """All the account events in order of time, those of one millisecond as they were."""
    at_ms = np.concatenate([piece.at_ms for piece in pieces])
    order = np.argsort(at_ms, kind="stable")
    return Events(joined([piece.columns for piece in pieces]).taken(order), at_ms[order], [])


def _without(pieces: Iterable[Events], first: int) -> Iterator[Events]:
    """The account events without the first, so many."""
    for piece in pieces:
        gone = min(first, len(piece.at_ms))
        first -= gone
        if gone < len(piece.at_ms):
            yield _part(piece, gone, len(piece.at_ms))


def _part(piece: Events, begin: int, end: int) -> Events:
    """Account events begin to end of these."""
    return Events(piece.columns.part(begin, end), piece.at_ms[begin:end], [])


class _Reader:
    """The lots of files, from some row on."""

    def __init__(self, given: Given, done: Done, knowledge: _Knowledge, say: Say) -> None:
        self._given, self._now_ms, self._skip = given, done.now_ms, done.read
        self._knowledge, self._events = knowledge, _Events(given, done.now_ms, done.events, say)

    def lots(self, lot_rows: int) -> Iterator[_Lot]:
        """So many rows of the files at a time."""
        pieces: list[tuple[Path, Rows]] = []
        left = lot_rows
        for path, reader, cells in self._cells():
            while cells.read:
                some, cells = parted(cells, min(left, cells.read))
                pieces.append((path, reader.rows(some)))
                left -= some.read
                if left == 0:
                    yield self._lot(pieces)
                    pieces, left = [], lot_rows
        if pieces:
            yield self._lot(pieces)

    def _cells(self) -> Iterator[tuple[Path, ColumnReader, Cells]]:
        """The rows of all files as they are, without those that were read before."""
        given, before = self._given, 0
        for path in given.files:
            skip = max(self._skip - before, 0)
            if skip and skip >= (count := rows_count(path, given.mapping)):
                before += count
                continue
            columns, pieces = cells_in(path, given.mapping, skip)
            reader = ColumnReader(given.mapping, columns, given.key, self._now_ms, before=before)
            before += skip
            for cells in pieces:
                before += cells.read
                yield path, reader, cells

    def _lot(self, pieces: list[tuple[Path, Rows]]) -> _Lot:
        table = pa.concat_tables([rows.table for _, rows in pieces]).unify_dictionaries().combine_chunks()
        columns = columns_from_arrow(table)
        declined = table["declined"].to_numpy() & ~np.isin(columns.facts["kind"], _CREDIT_CODES)
        columns = replace(columns, known=self._knowledge.columns(table), learned=_learned(table))
        if table.num_rows and (before := self._events.before(table["at_ms"].to_numpy())) is not None:
            events, at = before
            columns, declined = merged(columns, events, at), np.insert(declined, at, False)
        bad = [(path, number, fault) for path, rows in pieces for number, fault in rows.bad]
        return _Lot(sum(rows.read for _, rows in pieces), table, columns, declined, bad, self._events.taken)


@dataclass(frozen=True, eq=False)
class _Knowledge:
    """What is known of accounts: some always, some since a time."""

    accounts: tuple[AccountState, ...]
    known: pa.Table | None

    @classmethod
    def of(cls, given: Given, say: Say) -> _Knowledge:
        accounts = tuple(accounts_in(given.accounts, given.mapping, given.key, 0, say)) if given.accounts else ()
        return cls(accounts, _known_in(given.known) if given.known else None)

    @cached_property
    def _of_accounts(self) -> tuple[dict[str, int], dict[str, Floats]]:
        """The place of each account, and by column of its profile the value in each place; the last place is of an account that is not known."""
        values = {column: np.full(len(self.accounts) + 1, np.nan) for column in PROFILES["account"]}
        for place, state in enumerate(self.accounts):
            for column, value in account_knowledge(state):
                values[column][place] = value
        return {state.account_id: place for place, state in enumerate(self.accounts)}, values

    @cached_property
    def _in_time(self) -> dict[str, _InTime]:
        """By column of which `known` says anything, what it says."""
        return {} if self.known is None else {name: _InTime.of(self.known, name) for name in PROFILES["account"] if name in self.known.column_names}

    def columns(self, table: pa.Table) -> dict[str, Floats]:
        """`TransactionColumns.known` of these payments, NaN where nothing is: of `known` what was known last, else what `accounts` say."""
        codes = table["account_id"].cast(pa.string()).combine_chunks().dictionary_encode()
        names, rows, at_ms = codes.dictionary.to_pylist(), codes.indices.to_numpy(), table["at_ms"].to_numpy()
        place_of, values = self._of_accounts
        places = np.array([place_of.get(name, -1) for name in names], np.int64)[rows]
        columns = {f"account.{column}": values[column][places] for column in PROFILES["account"]}
        for column, known in self._in_time.items():
            known.put(names, rows, at_ms, columns[f"account.{column}"])
        return columns


@dataclass(frozen=True, eq=False)
class _InTime:
    """What became known of one column, in order of account, and of the moment since when: `keys` are both as one number."""

    place_of: dict[str, int]
    moments: Integers
    keys: Integers
    values: Floats

    @classmethod
    def of(cls, known: pa.Table, column: str) -> _InTime:
        said = known.filter(pc.is_valid(known[column]))
        codes = said["account_id"].cast(pa.string()).combine_chunks().dictionary_encode()
        moments, since = np.unique(said["known_at_ms"].to_numpy(), return_inverse=True)
        keys = codes.indices.to_numpy().astype(np.int64) * (len(moments) + 1) + 1 + since
        order = np.argsort(keys, kind="stable")
        return cls({name: place for place, name in enumerate(codes.dictionary.to_pylist())}, moments, keys[order], said[column].to_numpy()[order])

    def put(self, names: Sequence[str], rows: Integers, at_ms: Integers, values: Floats) -> None:
        """Puts the value with the greatest `known_at_ms` that is not after it (of equals the last) in the place of each row that has one.

        The account of a row is the name of its number in `rows`.
        """
        places = np.array([self.place_of.get(name, -1) for name in names], np.int64)[rows]
        asked = places * (len(self.moments) + 1) + np.searchsorted(self.moments, at_ms, "right")
        last = np.searchsorted(self.keys, asked, "right") - 1
        known = (places >= 0) & (last >= 0)
        known[known] = self.keys[last[known]] // (len(self.moments) + 1) == places[known]
        values[known] = self.values[last[known]]


def _known_in(path: Path) -> pa.Table:
    """What `holdfast cluster --file` wrote. SettingsError if it is nothing of that kind."""
    with readable(path):
        table = pq.read_table(path)
    texts = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
    numbers = (pa.float64(), pa.float32(), pa.int64(), pa.int32())
    values = [(name, numbers) for name in PROFILES["account"] if name in table.column_names]
    for name, kinds in (("account_id", texts), ("known_at_ms", (pa.int64(),)), *values):
        if name not in table.column_names:
            raise SettingsError(f"{path}: has no column {name!r}: it is not what `holdfast cluster --file` wrote")
        if table[name].type not in kinds:
            raise SettingsError(f"{path}: column {name!r} is {table[name].type}, not {kinds[0]}: it is not what `holdfast cluster --file` wrote")
    return table


def _learned(table: pa.Table) -> npt.NDArray[np.int64]:
    """When each row was learned to be fraud, milliseconds since 1970-01-01 UTC; 0: never."""
    learned = pc.if_else(pc.fill_null(table["fraud"], False), pc.fill_null(table["learned_at_ms"], 0), 0)
    return np.ascontiguousarray(learned.to_numpy(), np.int64)


def _beside(table: pa.Table) -> list[pa.Array]:
    """What stands beside the features of these rows."""
    own = dict(zip(table.column_names, table.columns, strict=True))
    if "billing_amount_minor" in own:
        own["amount_minor"] = pc.coalesce(own["billing_amount_minor"], own["amount_minor"])
        own["currency"] = pc.coalesce(*(own[name].cast(pa.string()) for name in ("billing_currency", "currency")))
    return [own[name].cast(kind).combine_chunks() if name in own else pa.nulls(len(table), kind) for name, kind in _BESIDE]


def _schema(catalogue: Catalogue, mapping: Mapping) -> pa.Schema:
    delay_ms = mapping.label.delay_ms if mapping.label else 0
    about = {"catalogue_id": catalogue.catalogue_id, "label_delay_ms": str(delay_ms)}
    return pa.schema([*_BESIDE, *((name, pa.float64()) for name in (*catalogue.names, *_foreign(mapping)))], metadata=about)


def _foreign(mapping: Mapping) -> list[str]:
    """The columns that stand after the features: those of [attributes], and the clock's beside them."""
    return [*CLOCK, *(f"{ATTRIBUTE}{name}" for name in mapping.attributes)] if mapping.attributes else []


# The work.


class _Place:
    """The hidden folder in which a backfill is made."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.whole, self.folder, self._before = out / FEATURES_FILE, out / f".{FEATURES_FILE}", out / f".{FEATURES_FILE}.before"
        self._fingerprint = fingerprint

    def begun(self, under_way: Backfill, say: Say) -> Done:
        """How far an earlier run came, whose state is restored; nothing, and an empty folder, if it was of something else."""
        done = self._restored(under_way, say)
        if done.lots == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.glob("part-*"):
            if part.name >= self.part(done.lots).name:
                part.unlink()
        return done

    def _restored(self, under_way: Backfill, say: Say) -> Done:
        try:
            head, _, body = (self.folder / STATE).read_bytes().partition(b"\n")
        except OSError:
            return Done()
        try:
            about = json.loads(head)
            if about["fingerprint"] != self._fingerprint:
                say("what was begun here was of other files, another mapping or another catalogue: beginning anew")
                return Done()
            whole = _digest(about["done"], body) == about["sha256"]
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            say("the state that was kept here is broken: beginning anew")
            return Done()
        under_way.restore(dict(np.load(io.BytesIO(body))))
        return Done(**about["done"])

    def part(self, lot: int) -> Path:
        """The file of a lot."""
        return self.folder / f"part-{lot:06d}.parquet"

    def keep(self, under_way: Backfill, done: Done) -> None:
        """Keeps the state, whole or not at all."""
        body = io.BytesIO()
        np.savez(body, **under_way.state())  # type: ignore[arg-type]  # its arguments are the arrays
        about = {"fingerprint": self._fingerprint, "done": done._asdict(), "sha256": _digest(done._asdict(), body.getbuffer())}
        with (self.folder / f".{STATE}").open("wb") as file:
            file.write(json.dumps(about).encode() + b"\n")
            file.write(body.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        on_disk(self.folder)
        (self.folder / f".{STATE}").replace(self.folder / STATE)

    def finish(self) -> None:
        """All parts are there: the folder takes its name, and what had it before goes away."""
        (self.folder / STATE).unlink(missing_ok=True)
        on_disk(self.folder)
        _removed(self._before)
        if self.whole.is_symlink() or self.whole.exists():
            self.whole.rename(self._before)
        self.folder.rename(self.whole)
        _removed(self._before)


def _digest(done: dict[str, int], body: bytes | memoryview) -> str:
    """What tells a whole state from a damaged one, the count of what is done too."""
    digest = hashlib.sha256(json.dumps(done).encode())
    digest.update(body)
    return digest.hexdigest()


def _removed(path: Path) -> None:
    """Nothing is there any more."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def backfilled(
    catalogue: Catalogue, given: Given, out: Path, *, now_ms: int, say: Say, lot_rows: int = LOT_ROWS, threads: int = 1, bar: bool = False
) -> Backfilled:
    """Writes `features.parquet` for the rows of the files, taken in the order given: that is the order of arrival.

    Bad rows are said with their number and left out. `accounts` is known from the start, each row of `known` since its time, account events
    arrive before the first payment that is not earlier. SettingsError if a file does not fit its mapping, or another backfill writes there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with held(os.open(out, os.O_RDONLY), f"--out: {out}: another backfill writes into this folder"):
        return _backfilled(catalogue, given, out, now_ms, say, lot_rows, threads, bar)


def _backfilled(catalogue: Catalogue, given: Given, out: Path, now_ms: int, say: Say, lot_rows: int, threads: int, bar: bool) -> Backfilled:
    began = time.perf_counter()
    given = replace(given, mapping=for_file(given.mapping, given.files[0]))
    for path in given.files:
        cells_in(path, given.mapping)  # one that does not fit is said before anything is begun
    under_way, place = Backfill(catalogue, threads=threads), _Place(out, given.fingerprint(catalogue, lot_rows))
    done = place.begun(under_way, say)
    if done.lots:
        say(f"going on after {done.read} rows")
    done = done if done.lots else Done(now_ms=now_ms)
    rows_before = done.rows
    reader = _Reader(given, done, _Knowledge.of(given, say), say)
    kept_at, cost_s = time.perf_counter(), 0.0
    total = sum(rows_count(path, given.mapping) for path in given.files) if bar else 0
    with _progress(total, done.read) if bar else contextlib.nullcontext(lambda _: None) as said, _Writer(catalogue, given.mapping, threads) as writer:
        for lot in reader.lots(lot_rows) if threads == 1 else _ahead(reader.lots(lot_rows)):
            for path, number, fault in lot.bad[: max(BAD_ROWS_SAID - done.bad_rows, 0)]:
                say(f"{path}: row {number}: {fault}")
            vectors = under_way.vectors(lot.columns, lot.declined, into=writer.room(lot.table.num_rows))
            writer.write(place.part(done.lots), lot.table, vectors)
            done = Done(done.lots + 1, done.rows + len(vectors), done.bad_rows + len(lot.bad), done.read + lot.read, lot.events, done.now_ms)
            said(done.read)
            if time.perf_counter() - kept_at >= STATE_SHARE * cost_s:
                kept_at = time.perf_counter()
                writer.wait()
                place.keep(under_way, done)
                cost_s, kept_at = time.perf_counter() - kept_at, time.perf_counter()
    if not done.rows:
        raise SettingsError("no row of the files is a transaction")
    place.finish()
    return Backfilled(done.rows, done.bad_rows, time.perf_counter() - began, out, done.rows - rows_before)


def _ahead(lots: Iterator[_Lot]) -> Iterator[_Lot]:
    """The lots; the next one is read in a thread while one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, lots, None)
        while (lot := coming.result()) is not None:
            coming = pool.submit(next, lots, None)
            yield lot


class _Writer:
    """Writes the parts, each whole or not at all. With more threads than one, one part is written while the next is made."""

    def __init__(self, catalogue: Catalogue, mapping: Mapping, threads: int) -> None:
        self._schema, self._foreign = _schema(catalogue, mapping), _foreign(mapping)
        self._rooms = [np.empty((0, len(catalogue.rows)))] * min(threads, 2)
        self._writing: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        self.wait()

    def room(self, rows: int) -> Floats:
        """Where the next vectors go, when those that were there are written."""
        while len(self._writing) >= len(self._rooms):
            self._writing.popleft().result()
        room = self._rooms.pop(0)
        self._rooms.append(room if len(room) >= rows else np.empty((rows, room.shape[1])))
        return self._rooms[-1]

    def write(self, path: Path, table: pa.Table, vectors: Floats) -> None:
        """Begins to write the part of a lot."""
        self._writing.append(self._pool.submit(self._write, path, table, vectors))

    def wait(self) -> None:
        """Returns when all is written."""
        while self._writing:
            self._writing.popleft().result()

    def _write(self, path: Path, table: pa.Table, vectors: Floats) -> None:
        features = [pa.array(column) for column in _by_column(vectors)]
        attributes = [table[name].combine_chunks() for name in self._foreign]
        unfinished = path.with_name(f".{path.name}")
        whole = pa.Table.from_arrays([*_beside(table), *features, *attributes], schema=self._schema)
        pq.write_table(whole, unfinished, compression="zstd")
        on_disk(unfinished)
        unfinished.replace(path)


def _by_column(matrix: Floats) -> Floats:
    """The matrix turned, some rows at a time: by whole columns every number would be read from far memory."""
    turned = np.empty(matrix.T.shape)
    for begin in range(0, len(matrix), TURNED_ROWS):
        turned[:, begin : begin + TURNED_ROWS] = matrix[begin : begin + TURNED_ROWS].T
    return turned


@contextlib.contextmanager
def _progress(total: int, before: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal; a line every five seconds elsewhere. The rate is that of this run."""
    console, began = Console(stderr=True), time.monotonic()
    said_at = began
    bar = Progress(
        TextColumn("backfill"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"), TimeRemainingColumn(), console=console
    )
    task = bar.add_task("backfill", total=total, completed=before, rate=0)

    def said(done: int) -> None:
        nonlocal said_at
        now = time.monotonic()
        rate = (done - before) / max(now - began, 1e-9)
        bar.update(task, completed=done, rate=round(rate))
        if not console.is_terminal and now - said_at > 5.0:
            said_at = now
            print(f"backfill {done}/{total} rows, {rate:.0f}/s, {(total - done) / max(rate, 1e-9):.0f} s left", file=sys.stderr, flush=True)

    with bar if console.is_terminal else contextlib.nullcontext():
        yield said


# The command.


def named(names: str, catalogue: Catalogue = CATALOGUE) -> Sequence[str]:
    """The features of these names, with commas between, each once. SettingsError for one that there is not."""
    asked = list(dict.fromkeys(name.strip() for name in names.split(",")))
    unknown = [name for name in asked if name not in catalogue.index]
    if unknown:
        raise SettingsError(f"there is no feature {unknown[0]!r}; `holdfast features list` prints them")
    return asked


def chosen(names: str, mapping: Mapping) -> Catalogue:
    """The catalogue of the features of these names (`all`, or with commas between), with the memories that the mapping chooses.

    A log that serving does not have has a row of its own that says where it was cut, as each of serving's has: `memory.terminal_log_capped`.
    SettingsError for a name that there is none of, and for a memory in which a feature cannot be told.
    """
    catalogue = CATALOGUE
    if mapping.memory:
        given = [entity for entity in ENTITIES if entity.memory == "tally" and mapping.memory.get(entity.name) == "log"]
        try:
            catalogue = Catalogue(CATALOGUE.rows, CATALOGUE.cap, mapping.memory).extended(map(_cut, given))
            catalogue.program.size, catalogue.tally_plan.words.size  # noqa: B018 - made now, so that what cannot be is said now
        except AssertionError as error:
            raise SettingsError(f"[memory]: {error}") from None
    return catalogue if names == "all" else catalogue.only(named(names, catalogue))


def _cut(entity: Entity) -> Feature:
    """The row that says where the log of an entity was cut."""
    return Feature("memory", log_capped(of=entity), f"{entity.name}_history_cut", DEGRADED, f"The {entity.name} had more payments than its log keeps")


def backfill(argv: list[str], settings: Settings) -> int:
    """`holdfast backfill FILES --map M --out DIR`: Parquet with the features in columns, and the labels beside them.

    `holdfast backfill --only NAMES --running`: what these features of this release read, loaded into the system that runs without them.
    """
    parser = argparse.ArgumentParser(
        prog="holdfast backfill", description=inspect.getdoc(backfill), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*", help="CSV or Parquet, in the order in which their rows arrived")
    parser.add_argument("--map", type=Path, help="the mapping file (TOML)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--features", default="all", metavar="NAMES", help="`all`, or names with commas between (default %(default)s)")
    which.add_argument("--only", metavar="NAMES", help="the new features alone: their columns over the files, or (`--running`) what they read")
    parser.add_argument(
        "--running",
        action="store_true",
        help="load what --only reads from the topics into the Redis of the running system, and follow until SIGINT or SIGTERM: "
        "start this release meanwhile, and stop this command when the one before is gone",
    )
    parser.add_argument("--accounts", type=Path, help="a file of accounts, read by the mapping's [accounts]")
    parser.add_argument(
        "--events", type=Path, help="account events, read by the mapping's [account_events], merged by time; a file out of that order is held whole"
    )
    parser.add_argument("--known", type=Path, help="what `holdfast cluster --file` wrote: what was known of accounts, and since when")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for {FEATURES_FILE}")
    parser.add_argument("--lot", type=int, default=LOT_ROWS, metavar="ROWS", help="rows in each part (default %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="default: one for each core, %(default)s")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    if args.running:
        if args.only is None or args.files or args.map or args.out:
            parser.error("--running takes --only NAMES, and no files: it reads the topics")
        counts = loaded(CATALOGUE, named(args.only), settings)
        if args.json:
            print(json.dumps(counts))
        return 0
    if not args.files or args.map is None or args.out is None:
        parser.error("FILES, --map and --out are needed (or --only NAMES --running)")
    if args.lot < 1 or args.threads < 1:
        raise SettingsError("--lot and --threads are numbers from 1 on")
    mapping = mapping_in(args.map)
    catalogue = chosen(args.features if args.only is None else args.only, mapping)
    if mapping.tokens and not settings.token_key:
        settings = with_kept_secrets(settings)  # tokens by another key would be other cards and devices than the door's
    key = TokenKey(settings.token_key.encode(), settings.token_key_id)
    given = Given(tuple(args.files), mapping, key, args.accounts, args.known, args.events)
    for path in (path for path in (*args.files, args.accounts, args.known, args.events) if path is not None and not path.is_file()):
        raise SettingsError(f"{path}: there is no such file")
    spare(args.out / FEATURES_FILE, args.map, *args.files, args.accounts, args.known, args.events)
    try:
        made = backfilled(catalogue, given, args.out, now_ms=clock_ms(), say=_say, lot_rows=args.lot, threads=args.threads, bar=True)
    except OSError as error:
        raise SettingsError(f"--out: {error}") from None
    print(f"{made.rows} rows, {made.bad_rows} bad ones left out, in {made.seconds:.1f} s -> {made.folder / FEATURES_FILE}")
    if args.json:
        print(json.dumps({"rows": made.rows, "bad_rows": made.bad_rows, "seconds": made.seconds, "rows_per_s": made.rows_new / made.seconds}))
    return 0 if made.rows else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
