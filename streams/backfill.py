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
import itertools
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from features.backfill import STATE_FORM, Backfill
from features.catalogue import CATALOGUE, Catalogue
from features.columns import columns_of
from features.fact import PROFILES
from features.profile import account_knowledge
from schemas.account import AccountEvent, AccountState
from schemas.errors import InvalidRecord, SettingsError
from schemas.identity import hash32
from schemas.transaction import Transaction
from streams.folder import with_kept_secrets
from streams.load import loaded
from streams.mapping import Mapping, Row, TokenKey, accounts_in, events_in, for_file, mapping_in, rows_count, rows_in
from streams.settings import Settings

FEATURES_FILE = "features.parquet"
LOT_ROWS = 65_536
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
BAD_ROWS_SAID = 20
STATE = "state"
STATE_SHARE = 20
"""A state is kept when so many times as long has passed since the last as that took: at most one part in so many goes into it."""
Say = Callable[[str], None]
Floats = npt.NDArray[np.float64]

_BESIDE = [
    ("transaction_id", pa.string()),
    ("account_id", pa.string()),
    ("card_token", pa.string()),
    ("amount_minor", pa.int64()),
    ("at_ms", pa.int64()),
    ("kind", pa.string()),
    ("declined", pa.bool_()),
    ("fraud", pa.bool_()),
    ("fraud_kind", pa.string()),
    ("learned_at_ms", pa.int64()),
]
"""What stands beside the features. `fraud` is null where the file says nothing; `learned_at_ms` is when the label became known."""
ATTRIBUTE = "attribute."
"""Columns of this prefix, after the features: what [attributes] of the mapping name, as numbers (`as_number`), NaN where there is none."""
CLOCK = ("clock.hour", "clock.weekday")
"""Columns that stand with attributes, for training: the time of day (UTC, 0 to 24) and the day of the week (0 is Monday)."""


class Backfilled(NamedTuple):
    """What a backfill did."""

    rows: int
    bad_rows: int
    seconds: float
    folder: Path


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
        return hashlib.sha256(repr((STATE_FORM, stats, self.mapping, key, catalogue.catalogue_id, catalogue.names, lot_rows)).encode()).hexdigest()


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
    """Rows of the files, bad ones included, and the records of the good ones with the account events that come before them."""

    read: int
    rows: list[Row]
    records: list[Transaction | AccountEvent]


class _Reader:
    """The lots of files, from some row on."""

    def __init__(self, given: Given, done: Done, say: Say) -> None:
        self._given, self._now_ms, self._say = given, done.now_ms, say
        self._skip, self.bad, self.events = done.read, done.bad_rows, done.events
        self._events = self._in_order()[self.events :]
        self._taken = 0

    def _in_order(self) -> list[AccountEvent]:
        """The account events in order of time, those of one millisecond as the file has them; bad ones are said and left out."""
        if self._given.events is None:
            return []
        kept = []
        for row in events_in(self._given.events, self._given.mapping, self._given.key, now_ms=self._now_ms):
            if isinstance(row.content, AccountEvent):
                kept.append(row.content)
            else:
                self._say(f"{self._given.events}: row {row.number}: {row.content}")
        return sorted(kept, key=lambda event: event.at_ms)

    def lots(self, lot_rows: int) -> Iterator[_Lot]:
        """So many rows of the files at a time."""
        left = self._rows()
        while some := list(itertools.islice(left, lot_rows)):
            good = [row for row in some if isinstance(row.content, Transaction)]
            yield _Lot(len(some), good, [record for row in good for record in self._with_events(row.content)])

    def _rows(self) -> Iterator[Row]:
        """The rows of all files, without those that were read before; bad ones are counted, and the first ones said."""
        for path in self._given.files:
            if self._skip and self._skip >= (count := rows_count(path, self._given.mapping)):
                self._skip -= count
                continue
            for row in rows_in(path, self._given.mapping, self._given.key, now_ms=self._now_ms, skip=self._skip):
                if isinstance(row.content, InvalidRecord):
                    self.bad += 1
                    if self.bad <= BAD_ROWS_SAID:
                        self._say(f"{path}: row {row.number}: {row.content}")
                yield row
            self._skip = 0

    def _with_events(self, txn: Any) -> Iterator[Transaction | AccountEvent]:
        """The account events up to this payment, and the payment."""
        while self._taken < len(self._events) and self._events[self._taken].at_ms <= txn.at_ms:
            yield self._events[self._taken]
            self._taken += 1
            self.events += 1
        yield txn


@dataclass(frozen=True, eq=False)
class _Knowledge:
    """What is known of accounts: some always, some since a time."""

    accounts: tuple[AccountState, ...]
    known: pa.Table | None

    @classmethod
    def of(cls, given: Given) -> _Knowledge:
        accounts = tuple(accounts_in(given.accounts, given.mapping, given.key, 0)) if given.accounts else ()
        return cls(accounts, pq.read_table(given.known) if given.known else None)

    def columns(self, records: Sequence[Transaction | AccountEvent]) -> dict[str, Floats]:
        """`known` of these records."""
        ids = pa.chunked_array([pa.array([record.account_id for record in records], pa.string())])
        return _known(ids, np.array([record.at_ms for record in records], np.int64), self.accounts, self.known)


def _known(account_ids: pa.ChunkedArray, at_ms: Any, accounts: Iterable[AccountState], known: pa.Table | None = None) -> dict[str, Floats]:
    """What profiles say of each row's account when it happens, NaN where nothing does: of `known` what was known last, else what `accounts` say."""
    of_account = {state.account_id: dict(account_knowledge(state)) for state in accounts}
    codes = account_ids.combine_chunks().dictionary_encode()
    places, names = codes.indices.to_numpy(), codes.dictionary.to_pylist()
    nothing: dict[str, float] = {}
    columns: dict[str, Floats] = {}
    for column in PROFILES["account"]:
        always = np.array([of_account.get(name, nothing).get(column, np.nan) for name in names])[places]
        timed = known is not None and column in known.column_names
        columns[f"account.{column}"] = _known_by_then(known, column, codes, at_ms, always) if timed else always
    return columns


def _known_by_then(known: pa.Table, column: str, codes: pa.DictionaryArray, at_ms: Any, always: Floats) -> Floats:
    """For each row the value with the greatest `known_at_ms` that is not after it (of equals the last); `always` where there is none."""
    said = known.filter(pc.is_valid(known[column]))
    account = pc.fill_null(pc.index_in(said["account_id"], codes.dictionary), len(codes.dictionary)).to_numpy().astype(np.int64)
    moments = np.unique(said["known_at_ms"].to_numpy())
    keys = account * (len(moments) + 1) + 1 + np.searchsorted(moments, said["known_at_ms"].to_numpy())
    order = np.argsort(keys, kind="stable")
    asked = codes.indices.to_numpy().astype(np.int64) * (len(moments) + 1) + np.searchsorted(moments, at_ms, "right")
    last = np.searchsorted(keys[order], asked, "right") - 1
    found = (last >= 0) & (keys[order][last] // (len(moments) + 1) == codes.indices.to_numpy()) if len(order) else np.zeros(len(asked), np.bool_)
    values = always.copy()
    values[found] = said[column].to_numpy()[order[last[found]]]
    return values


def _learned(table: pa.Table) -> npt.NDArray[np.int64]:
    """When each row was learned to be fraud, milliseconds since 1970-01-01 UTC; 0: never."""
    learned = pc.if_else(pc.fill_null(table["fraud"], False), pc.fill_null(table["learned_at_ms"], 0), 0)
    return np.ascontiguousarray(learned.to_numpy(), np.int64)


def _beside(rows: Sequence[Row]) -> pa.Table:
    """What stands beside the features of these rows."""
    values = [_beside_one(row) for row in rows]
    return pa.table([pa.array(column, kind) for column, (_, kind) in zip(zip(*values, strict=True), _BESIDE, strict=True)], schema=pa.schema(_BESIDE))


def _beside_one(row: Row) -> tuple[Any, ...]:
    txn, label = row.content, row.label
    assert not isinstance(txn, InvalidRecord)
    known = (None, None, None) if label is None else (label.fraud, label.fraud_kind, label.learned_at_ms)
    return (txn.transaction_id, txn.account_id, txn.card_token, txn.own_amount_minor, txn.at_ms, str(txn.kind), row.declined, *known)


def _attributes(rows: Sequence[Row], names: Sequence[str]) -> Floats:
    """float64[rows, clock and names]: the time of day, the day of the week, and the attributes of these names as numbers; nothing without names."""
    if not names:
        return np.empty((len(rows), 0))
    values = np.full((len(rows), len(names)), np.nan)
    place = {name: number for number, name in enumerate(names)}
    for row, into in zip(rows, values, strict=True):
        assert not isinstance(row.content, InvalidRecord)
        for attribute in row.content.attributes:
            into[place[attribute.name]] = as_number(attribute.value)
    at_ms = np.array([row.content.at_ms for row in rows if isinstance(row.content, Transaction)], np.int64)
    return np.column_stack([at_ms % DAY_MS / HOUR_MS, (at_ms // DAY_MS + 3) % 7, values])  # 1970 began on a Thursday


def as_number(text: str) -> float:
    """The number that a text is, or one below all that are amounts or counts that stands for it: the same text is the same number everywhere.

    Trees split such numbers like any other, several times where a column has many texts.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    return -1e10 - hash32(text) if math.isinf(number) else number


def _schema(catalogue: Catalogue, mapping: Mapping) -> pa.Schema:
    delay_ms = mapping.label.delay_ms if mapping.label else 0
    about = {"catalogue_id": catalogue.catalogue_id, "label_delay_ms": str(delay_ms)}
    foreign = [*CLOCK, *(f"{ATTRIBUTE}{name}" for name in mapping.attributes)] if mapping.attributes else []
    return pa.schema([*_BESIDE, *((name, pa.float64()) for name in (*catalogue.names, *foreign))], metadata=about)


# The work.


class _Place:
    """The hidden folder in which a backfill is made."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.whole, self.folder = out / FEATURES_FILE, out / f".{FEATURES_FILE}"
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
        about = json.loads(head)
        if about["fingerprint"] != self._fingerprint:
            say("what was begun here was of other files, another mapping or another catalogue: beginning anew")
            return Done()
        if hashlib.sha256(body).hexdigest() != about["sha256"]:
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
        about = {"fingerprint": self._fingerprint, "done": done._asdict(), "sha256": hashlib.sha256(body.getbuffer()).hexdigest()}
        with (self.folder / f".{STATE}").open("wb") as file:
            file.write(json.dumps(about).encode() + b"\n")
            file.write(body.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        (self.folder / f".{STATE}").replace(self.folder / STATE)

    def finish(self) -> None:
        """All parts are there: the folder takes its name."""
        (self.folder / STATE).unlink(missing_ok=True)
        if self.whole.is_dir():
            shutil.rmtree(self.whole)
        self.whole.unlink(missing_ok=True)
        self.folder.rename(self.whole)


def backfilled(
    catalogue: Catalogue, given: Given, out: Path, *, now_ms: int, say: Say, lot_rows: int = LOT_ROWS, threads: int = 1, bar: bool = False
) -> Backfilled:
    """Writes `features.parquet` for the rows of the files, taken in the order given: that is the order of arrival.

    Bad rows are said with their number and left out. `accounts` is known from the start, each row of `known` since its time, account events
    arrive before the first payment that is not earlier. SettingsError if a file does not fit its mapping.
    """
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    given = replace(given, mapping=for_file(given.mapping, given.files[0]))
    under_way, place = Backfill(catalogue, threads=threads), _Place(out, given.fingerprint(catalogue, lot_rows))
    done = place.begun(under_way, say)
    if done.lots:
        say(f"going on after {done.read} rows")
    done = done if done.lots else Done(now_ms=now_ms)
    schema, knowledge, reader = _schema(catalogue, given.mapping), _Knowledge.of(given), _Reader(given, done, say)
    kept_at, cost_s = time.perf_counter(), 0.0
    total = sum(rows_count(path, given.mapping) for path in given.files) if bar else 0
    with _progress(total, done.read) if bar else contextlib.nullcontext(lambda _: None) as said:
        for lot in reader.lots(lot_rows):
            rows = _write(place.part(done.lots), lot, under_way, knowledge, schema, tuple(given.mapping.attributes))
            done = Done(done.lots + 1, done.rows + rows, reader.bad, done.read + lot.read, reader.events, done.now_ms)
            said(done.read)
            if time.perf_counter() - kept_at >= STATE_SHARE * cost_s:
                kept_at = time.perf_counter()
                place.keep(under_way, done)
                cost_s, kept_at = time.perf_counter() - kept_at, time.perf_counter()
    if not done.rows:
        raise SettingsError("no row of the files is a transaction")
    place.finish()
    return Backfilled(done.rows, done.bad_rows, time.perf_counter() - began, out)


def _write(path: Path, lot: _Lot, under_way: Backfill, knowledge: _Knowledge, schema: pa.Schema, attributes: Sequence[str]) -> int:
    """The part of one lot, whole or not at all; how many rows it has."""
    beside = _beside(lot.rows)
    vectors = np.empty((0, len(under_way.catalogue.rows)))
    if lot.records:
        columns = columns_of(lot.records)
        declined, learned = np.zeros(columns.n, np.bool_), np.zeros(columns.n, np.int64)
        declined[columns.asks], learned[columns.asks] = beside["declined"].to_numpy(zero_copy_only=False), _learned(beside)
        vectors = under_way.vectors(replace(columns, known=knowledge.columns(lot.records), learned=learned), declined)
    parts = [pa.array(np.ascontiguousarray(column)) for matrix in (vectors, _attributes(lot.rows, attributes)) for column in matrix.T]
    unfinished = path.with_name(f".{path.name}")
    pq.write_table(pa.Table.from_arrays([*beside.combine_chunks().columns, *parts], schema=schema), unfinished, compression="zstd")
    unfinished.replace(path)
    return len(vectors)


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


def named(names: str) -> Sequence[str]:
    """The features of these names, with commas between. SettingsError for one that there is not."""
    asked = [name.strip() for name in names.split(",")]
    unknown = [name for name in asked if name not in CATALOGUE.index]
    if unknown:
        raise SettingsError(f"there is no feature {unknown[0]!r}; `holdfast features list` prints them")
    return asked


def chosen(names: str, mapping: Mapping) -> Catalogue:
    """The catalogue of the features of these names (`all`, or with commas between), with the memories that the mapping chooses.

    SettingsError for a name that there is none of, and for a memory in which a feature cannot be told.
    """
    asked = CATALOGUE.names if names == "all" else named(names)
    if not mapping.memory:
        return CATALOGUE if names == "all" else CATALOGUE.only(asked)
    try:
        catalogue = Catalogue(CATALOGUE.rows, CATALOGUE.cap, mapping.memory)
        catalogue.program.size, catalogue.tally_plan.words.size  # noqa: B018 - made now, so that what cannot be is said now
    except AssertionError as error:
        raise SettingsError(f"[memory]: {error}") from None
    return catalogue if names == "all" else catalogue.only(asked)


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
    parser.add_argument("--events", type=Path, help="a file of account events, read by the mapping's [account_events], merged by time")
    parser.add_argument("--known", type=Path, help="what `holdfast cluster --file` wrote: what was known of accounts, and since when")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for {FEATURES_FILE}")
    parser.add_argument("--lot", type=int, default=LOT_ROWS, metavar="ROWS", help="rows in each part (default %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="default: one for each core, %(default)s")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    if args.running:
        if args.only is None or args.files or args.map or args.out:
            parser.error("--running takes --only NAMES, and no files: it reads the topics")
        return loaded(CATALOGUE, named(args.only), settings)
    if not args.files or args.map is None or args.out is None:
        parser.error("FILES, --map and --out are needed (or --only NAMES --running)")
    if args.lot < 1 or args.threads < 1:
        raise SettingsError("--lot and --threads are numbers from 1 on")
    mapping = mapping_in(args.map)
    catalogue = chosen(args.only or args.features, mapping)
    if mapping.tokens and not settings.token_key:
        settings = with_kept_secrets(settings)  # tokens by another key would be other cards and devices than the door's
    key = TokenKey(settings.token_key.encode(), settings.token_key_id)
    given = Given(tuple(args.files), mapping, key, args.accounts, args.known, args.events)
    for path in (path for path in (*args.files, args.accounts, args.known, args.events) if path is not None and not path.is_file()):
        raise SettingsError(f"{path}: there is no such file")
    made = backfilled(catalogue, given, args.out, now_ms=_now_ms(), say=_say, lot_rows=args.lot, threads=args.threads, bar=True)
    print(f"{made.rows} rows, {made.bad_rows} bad ones left out, in {made.seconds:.1f} s -> {made.folder / FEATURES_FILE}")
    if args.json:
        print(json.dumps({"rows": made.rows, "bad_rows": made.bad_rows, "seconds": made.seconds, "rows_per_s": made.rows / made.seconds}))
    return 0 if made.rows else 1


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
