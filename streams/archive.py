"""The archive app: decisions, labels and second opinions as Parquet files by day, each record once, even after a crash.

A file holds what one partition said on one day, from the offset in its name on. Of the files that are written together, one for each day, only
the last says in its footer how far they reach: the others say where they began, so that after a crash between them the rest is written again,
without the rows that are there. A file is whole before its name appears, its name appears before its offsets are acknowledged, and no file replaces
another: so a restart goes on after the last that reaches further, and who was cut off from the group cannot write beside its heir.
"""

from __future__ import annotations

import os
import time
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.catalogue import CATALOGUE, Catalogue
from models.registry import on_disk
from schemas.decision import Decision
from schemas.label import Label
from schemas.opinion import SecondOpinions
from schemas.record import Record
from schemas.topics import DECISIONS, LABELS, SECOND_OPINIONS, Topic
from schemas.transaction import BehaviouralSession, Fingerprint, Transaction
from streams import journal
from streams.bus import Bus
from streams.follow import Follower, Source, run_follower
from streams.lane import Place
from streams.settings import Settings

ROWS_MAX = 20_000
AGE_S_MAX = 10.0
"""A file is written when so many rows wait, or the oldest has waited so long."""
ROWS_FEW, FILES_FEW, AGE_S_LAST = 2_000, 6, 300.0
"""Fewer rows than these wait longer the more files their day has, by as much again for each so many files, up to the last: a partition in which
little happens has 400 files a day and not 8,640, each of which whoever reads the archive must open."""
IDS_MAX = 500_000
"""Ids of the newest records of a partition, by which a record that came twice is known."""
NEXT = b"holdfast.next_offset"
OFFSET_DIGITS = 15
_ARROW: dict[object, pa.DataType] = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_(), bytes: pa.binary()}

Row = tuple[int, Any]
"""An offset and the record at it."""


class Shelf(NamedTuple):
    """One topic's part of the archive: which field is its id, on which time its day goes, how rows become a table."""

    topic: Topic
    id_field: str
    at_field: str
    table: Callable[[int, list[Row]], pa.Table]


@dataclass
class Waiting:
    """What one partition said since its last file. `first` is where the next file begins, `next` what it will reach.

    `files`: how many the newest `day` has.
    """

    first: int | None = None
    next: int = 0
    rows: list[Row] = field(default_factory=list)
    ids: dict[str, None] = field(default_factory=dict)
    since_s: float = 0.0
    day: str = ""
    files: int = 0

    def is_due(self, now_s: float) -> bool:
        """Whether it is time for a file."""
        few = len(self.rows) < ROWS_FEW
        patience_s = min(AGE_S_LAST, AGE_S_MAX * (1 + self.files / FILES_FEW)) if few else AGE_S_MAX
        return len(self.rows) >= ROWS_MAX or (bool(self.rows) and now_s - self.since_s >= patience_s)


class Archive:
    """The files under one folder, and what waits to be written into them."""

    def __init__(self, folder: Path, clock_s: Callable[[], float]) -> None:
        self._folder = folder
        self._clock_s = clock_s
        self._waiting: dict[Place, Waiting] = {}

    def open(self, places: Collection[Place]) -> None:
        """Forgets what waited, and goes on where the files of these places end."""
        for topic, partition in places:
            for draft in (self._folder / topic).glob(f"day=*/.part-{partition}-*"):
                draft.unlink(missing_ok=True)
        self._waiting = {place: self._resumed(SHELVES[place[0]], place[1]) for place in places}

    def add(self, record: Record, place: Place, offset: int) -> None:
        """Takes one record, unless it is in the archive."""
        waiting, shelf = self._waiting[place], SHELVES[place[0]]
        if waiting.first is None:
            waiting.first = offset
        if offset < max(waiting.first, waiting.next):
            return
        waiting.next = offset + 1
        name = getattr(record, shelf.id_field)
        if name in waiting.ids:
            return
        _remember(waiting.ids, [name])
        if not waiting.rows:
            waiting.since_s = self._clock_s()
        waiting.rows.append((offset, record))

    def written(self, done: Mapping[Place, int]) -> dict[Place, int]:
        """Writes what has waited long enough; the offset after the last record of each place that is safely in the archive."""
        for place in done:
            waiting = self._waiting[place]
            if waiting.is_due(self._clock_s()):
                self._write(place, waiting)
        return {place: self._waiting[place].first if self._waiting[place].rows else offset for place, offset in done.items()}  # type: ignore[misc]

    def write_all(self) -> None:
        """Writes all that waits."""
        for place, waiting in self._waiting.items():
            if waiting.rows:
                self._write(place, waiting)

    def _write(self, place: Place, waiting: Waiting) -> None:
        """One file for each day, the last with the offset up to which all are there."""
        shelf, days = SHELVES[place[0]], dict[str, list[Row]]()
        for row in waiting.rows:
            days.setdefault(_day(getattr(row[1], shelf.at_field)), []).append(row)
        for left, (day, rows) in zip(reversed(range(len(days))), days.items(), strict=True):
            reached = {NEXT: str(waiting.first if left else waiting.next).encode()}
            path = self._folder / shelf.topic.name / f"day={day}" / f"part-{place[1]}-{rows[0][0]:0{OFFSET_DIGITS}d}.parquet"
            _put(path, shelf.table(place[1], rows).replace_schema_metadata(reached))
            waiting.day, waiting.files = day, waiting.files + 1 if day == waiting.day else 1
        journal.logger().info("archived", topic=place[0], partition=place[1], rows=len(waiting.rows), files=len(days))
        waiting.first, waiting.rows = waiting.next, []

    def _resumed(self, shelf: Shelf, partition: int) -> Waiting:
        files = self._files(shelf.topic.name, partition)
        if not files:
            return Waiting()
        for path in reversed(files):
            after = int(pq.read_schema(path).metadata[NEXT])
            if after > int(path.stem.rpartition("-")[2]):
                break
        ids: list[str] = []
        for path in reversed(files):
            ids = pq.read_table(path, columns=[shelf.id_field], partitioning=None).column(0).to_pylist() + ids
            if len(ids) >= IDS_MAX:
                break
        day = files[-1].parent
        return Waiting(first=after, next=after, ids=dict.fromkeys(ids[-IDS_MAX:]), day=day.name[4:], files=sum(path.parent == day for path in files))

    def _files(self, topic: str, partition: int) -> list[Path]:
        """A partition's files, in order of their first offset (which has a fixed number of digits). What somebody put beside them is none."""
        return sorted((self._folder / topic).glob(f"day=*/part-{partition}-{'[0-9]' * OFFSET_DIGITS}.parquet"), key=lambda path: path.name)


def _remember(ids: dict[str, None], names: Sequence[str]) -> None:
    ids.update(dict.fromkeys(names))
    while len(ids) > IDS_MAX:
        del ids[next(iter(ids))]


def _put(path: Path, table: pa.Table) -> None:
    """Makes the file appear whole and for good; FileExistsError if another process wrote it, which is then this partition's owner.

    What finds no room names its file and leaves nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    try:
        os.link(draft, path)
    finally:
        draft.unlink()
    for folder in (path.parent, path.parent.parent):
        on_disk(folder)


def _day(at_ms: int) -> str:
    """The day in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()


# How records become tables.


def _arrow(annotation: Any) -> pa.DataType:
    """The Arrow type of a field's annotation: what the wire format calls long, double, string, array and record."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _arrow(typing.get_args(annotation)[0])
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple:
        return pa.list_(_arrow(args[0]))
    if args:
        return _arrow(next(a for a in args if a is not type(None)))
    if issubclass(annotation, Record):
        return pa.struct(_types(annotation).items())
    return _ARROW.get(annotation, pa.string())  # a Word is a string


def _types(record: type[Record]) -> dict[str, pa.DataType]:
    """The Arrow types of a record's fields, by name."""
    return {name: _arrow(hint) for name, hint in typing.get_type_hints(record, include_extras=True).items()}


def _columns(records: Sequence[Any], kind: type[Record], prefix: str = "", without: tuple[str, ...] = ()) -> dict[str, pa.Array]:
    """A column for each field; what is nested is struct or list."""
    return {
        prefix + name: pa.array([msgspec.to_builtins(getattr(r, name), builtin_types=(bytes,)) for r in records], arrow)
        for name, arrow in _types(kind).items()
        if name not in without
    }


def _at(partition: int, rows: list[Row]) -> dict[str, pa.Array]:
    """Where in the log each row is."""
    return {"log_partition": pa.array([partition] * len(rows), pa.int32()), "log_offset": pa.array([offset for offset, _ in rows], pa.int64())}


def decisions_table(partition: int, rows: list[Row], catalogue: Catalogue = CATALOGUE) -> pa.Table:
    """Decisions as columns: their own fields, each feature by its name, the transaction's fields as `txn_*` and its nested records' as
    `txn_session_*` and `txn_fingerprint_*`.

    A decision that was made on another catalogue has null features; `vector` keeps the bytes of those decisions only.
    """
    decisions: list[Decision] = [record for _, record in rows]
    columns = _at(partition, rows) | _columns(decisions, Decision, without=("vector", "transaction"))
    known = [catalogue.has(decision) for decision in decisions]
    columns["vector"] = pa.array([None if k else d.vector for k, d in zip(known, decisions, strict=True)], pa.binary())
    nothing = np.full(len(catalogue.names), np.nan).tobytes()
    values = np.frombuffer(b"".join(d.vector if k else nothing for k, d in zip(known, decisions, strict=True)), "<f8").reshape(len(rows), -1)
    unknown = ~np.array(known)
    for number, name in enumerate(catalogue.names):
        columns[name] = pa.array(np.ascontiguousarray(values[:, number]), pa.float64(), mask=unknown)
    transactions = [d.transaction for d in decisions]
    columns |= _columns(transactions, Transaction, "txn_", without=("session", "fingerprint"))
    columns |= _columns([txn.session or BehaviouralSession() for txn in transactions], BehaviouralSession, "txn_session_")
    return pa.table(columns | _columns([txn.fingerprint or Fingerprint() for txn in transactions], Fingerprint, "txn_fingerprint_"))


def labels_table(partition: int, rows: list[Row]) -> pa.Table:
    """Labels as columns, named as their fields."""
    return pa.table(_at(partition, rows) | _columns([record for _, record in rows], Label))


def opinions_table(partition: int, rows: list[Row]) -> pa.Table:
    """Second opinions as columns; `opinions` is a list of structs."""
    return pa.table(_at(partition, rows) | _columns([record for _, record in rows], SecondOpinions))


SHELVES: dict[str, Shelf] = {
    DECISIONS.name: Shelf(DECISIONS, "decision_id", "decided_at_ms", decisions_table),
    LABELS.name: Shelf(LABELS, "label_id", "learned_at_ms", labels_table),
    SECOND_OPINIONS.name: Shelf(SECOND_OPINIONS, "opinions_id", "decided_at_ms", opinions_table),
}


# The app.


def on_record(archive: Archive, record: Record, source: Source) -> Sequence[Record]:
    """Takes it in."""
    archive.add(record, (source.topic, source.partition), source.offset)
    return ()


async def assigned(archive: Archive, places: frozenset[Place]) -> None:
    """Goes on where the files end."""
    archive.open(places)


async def settle(archive: Archive, done: Mapping[Place, int]) -> Mapping[Place, int]:
    """Only what is in a file may be acknowledged."""
    return archive.written(done)


async def leaving(archive: Archive) -> None:
    """Writes what waits, while the partitions are still ours."""
    archive.write_all()


async def look_again(_: Archive, __: frozenset[int]) -> Sequence[Record]:
    """Nothing by itself: after it what has waited long enough is written."""
    return ()


APP = Follower(
    name="archive",
    reads={DECISIONS: on_record, LABELS: on_record, SECOND_OPINIONS: on_record},
    every=((AGE_S_MAX / 10, look_again),),
    assigned=assigned,
    settle=settle,
    leaving=leaving,
)


async def archive_world(settings: Settings, bus: Bus) -> Archive:
    """The archive in the folder of the settings."""
    return Archive(settings.archive_dir, time.monotonic)


def run(settings: Settings) -> int:
    """`holdfast run archive`."""
    return run_follower(APP, archive_world, settings)
