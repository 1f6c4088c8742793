"""`holdfast cluster`: finds communities of accounts in the archive (or in a file) and makes known what follows for each account.

A job, not an app: it runs once, or `--every` so many seconds. It writes columns of the account's Profile, each with the job's moment as
the time since which it is known, and only where the value changed. The topic `profiles` is told each value before Redis is: a rebuild puts it back.

An account that was seen in the last `--days` gets its values; one that was seen in as many days before that, and not since, is written as
alone, so that what an earlier run knew does not stay. So a job that pauses must not pause for longer than `--days`. An account that only
others name (a beneficiary at another bank) counts as a member, and has no profile.

With `--file FILES --map M --out F.parquet` it writes what would have been known instead (account_id, the columns, known_at_ms), with
`--every` as of each such moment of the history; `holdfast backfill --known F.parquet` joins it in time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.catalogue import CATALOGUE, Catalogue
from features.layout import PROFILE_CELL_BYTES
from features.profile import cell_of, profile_write
from features.wire import Wire
from models.cluster import ACCOUNT, ALONE, COLUMNS, HUB, LABELS, TIES, Clusters, clusters_of
from schemas.account import ProfileValue
from schemas.avro import encode
from schemas.errors import InvalidRecord, SettingsError, Unavailable
from schemas.identity import derived_id
from schemas.topics import DECISIONS, PROFILES
from schemas.topics import LABELS as LABELS_TOPIC
from schemas.transaction import Transaction
from streams.answers import sound
from streams.bus import Bus, KafkaBus
from streams.clock import clock_ms
from streams.folder import with_kept_secrets
from streams.mapping import Mapping, TimeRule, TokenKey, good, mapping_in, moment_ms, readable, rows_count, rows_in, spare
from streams.settings import Settings
from streams.stack import say_on_stderr

DAY_MS = 86_400_000
DAYS_MAX = 1_000_000
BATCH = 2_000
"""Accounts whose values are read, and written, in one send."""
REDIS_TIMEOUT_S = 10.0
LINGER_MS, PRODUCE_TIMEOUT_MS = 5, 30_000
"""A job tells much at once, and nobody waits for it."""
SEED = 1
_PAST = pa.schema([*((name, pa.string()) for name in TIES), ("at_ms", pa.int64())])
_LEARNED = pa.schema(list(zip(LABELS, (pa.string(), pa.string(), pa.bool_(), pa.int64()), strict=True)))
KNOWN = pa.schema([("account_id", pa.string()), *((name, pa.float64()) for name in COLUMNS), ("known_at_ms", pa.int64())])
"""What is written for a backfill."""


class Past(NamedTuple):
    """What happened, and what was learned of it: the columns of `models.cluster`. `earlier` names the accounts seen before the window."""

    events: pa.Table
    learned: pa.Table
    earlier: pa.Array


class Figures(msgspec.Struct, frozen=True):
    """What one run did. `accounts` are those that may have a profile, `members` all that are tied or might be."""

    as_of_ms: int
    events: int
    accounts: int
    members: int
    edges: int
    communities: int
    largest: int
    frauds: int
    rows_written: int
    read_s: float
    cluster_s: float
    write_s: float
    cpu_s: float
    peak_mb: int


# What is read.


def archived_past(folder: Path, as_of_ms: int, window_ms: int) -> Past:
    """The archive as it was known at `as_of_ms`: each different tie of a day once. SettingsError where there is no archive, or a file is none."""
    if not (folder / DECISIONS.name).is_dir():
        raise SettingsError(f"{folder}: holds no archive of decisions")
    since_ms = as_of_ms - window_ms
    days = [_ties_of_day(files, since_ms, as_of_ms) for files in _days(folder / DECISIONS.name, since_ms, as_of_ms)]
    before = [_accounts_of_day(files, since_ms) for files in _days(folder / DECISIONS.name, since_ms - window_ms, since_ms)]
    labels = [_columns(file, LABELS) for files in _days(folder / LABELS_TOPIC.name, 0, as_of_ms) for file in files]
    learned = pa.concat_tables([_LEARNED.empty_table(), *(table.cast(_LEARNED) for table in labels)])
    return Past(pa.concat_tables([_PAST.empty_table(), *days]), learned, pc.unique(pa.chunked_array(before, pa.string())))


def _days(folder: Path, from_ms: int, until_ms: int) -> Iterator[list[Path]]:
    """The files of each day in a span of time that has any, in the order in which the log said them within each partition."""
    first, last = _day(max(0, from_ms)), _day(max(0, until_ms))
    for day in sorted(folder.glob("day=*")):
        files = sorted(day.glob("part-*.parquet"))
        if files and first <= day.name.removeprefix("day=") <= last:
            yield files


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()


def _columns(file: Path, names: Sequence[str]) -> pa.Table:
    """These columns of a file. SettingsError names the one that cannot be read."""
    with readable(file):
        table = pq.read_table(file, columns=list(names), partitioning=None)
    if missing := set(names) - set(table.column_names):
        raise SettingsError(f"{file}: has no column {min(missing)!r}")
    return table


def _ties_of_day(files: Sequence[Path], since_ms: int, as_of_ms: int) -> pa.Table:
    """The different ties of the decisions of a day, dated by the first time each was seen within the span."""
    columns = ["decided_at_ms", *(f"txn_{name}" for name in TIES)]
    table = pa.concat_tables([_columns(file, columns) for file in files])
    table = table.rename_columns(["at_ms", *TIES])
    table = table.filter(pc.and_(pc.less(table["at_ms"], as_of_ms), pc.greater_equal(table["at_ms"], since_ms)))
    once = table.group_by(list(TIES), use_threads=False).aggregate([("at_ms", "min")])
    return once.select([*TIES, "at_ms_min"]).rename_columns(_PAST.names).cast(_PAST)


def _accounts_of_day(files: Sequence[Path], until_ms: int) -> pa.Array:
    """The different accounts decided on before a moment."""
    table = pa.concat_tables([_columns(file, ("decided_at_ms", "account_id")) for file in files])
    return pc.unique(table.filter(pc.less(table["decided_at_ms"], until_ms))["account_id"])


def past_of_files(files: Sequence[Path], mapping: Mapping, key: TokenKey, now_ms: int, say: Callable[[str], None]) -> Past:
    """What the good rows of files say; bad ones are left out, and the first of each file said. Labels count from when they were learned."""
    events: list[tuple[Any, ...]] = []
    learned: list[tuple[Any, ...]] = []
    before = 0
    for path in files:
        rows = rows_in(path, mapping, key, now_ms=now_ms, before=before)
        read = (row.content if isinstance(row.content, InvalidRecord) else (row.content, row.label) for row in rows)
        for txn, label in good(path, read, say):
            events.append(_event(txn))
            if label is not None:
                since_ms = max(label.learned_at_ms, txn.at_ms)  # nobody knows of a payment before it happens, whatever a file says
                learned.append((label.transaction_id, label.account_id, label.fraud, since_ms))
        before += rows_count(path, mapping)
    if not events:
        raise SettingsError("no row of the files is a transaction")
    return Past(_table(events, _PAST), _table(learned, _LEARNED), pa.array([], pa.string()))


def _event(txn: Transaction) -> tuple[Any, ...]:
    return (*(getattr(txn, name) for name in TIES), txn.at_ms)


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    if not rows:
        return schema.empty_table()
    return pa.table([pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)], schema=schema)


# What becomes known.


def knowledge_of(clusters: Clusters, past: Past, as_of_ms: int) -> pa.Table:
    """The values of every account that may have a profile, as of a moment: those in the clusters, and ALONE for those seen before."""
    own = pc.unique(past.events[ACCOUNT].filter(pc.less(past.events["at_ms"], as_of_ms)))
    names = pc.unique(pa.chunked_array([own, past.earlier.cast(pa.string())]))
    names = names.take(pc.sort_indices(names))
    places = pc.fill_null(pc.index_in(names, pa.array(clusters.accounts, pa.string())), -1).to_numpy(zero_copy_only=False)
    values = [_placed(getattr(clusters, column), places, alone) for column, alone in zip(COLUMNS, ALONE, strict=True)]
    return pa.table([names, *values, np.full(len(names), as_of_ms, np.int64)], schema=KNOWN)


def _placed(values: Any, places: Any, otherwise: float) -> Any:
    """The values at these places, `otherwise` where the place is -1."""
    return np.append(values, otherwise)[places]


def changed(known: pa.Table, before: dict[str, tuple[float, ...]]) -> pa.Table:
    """The rows whose values are not those known before, which are then known."""
    kept = []
    for number, (name, *values) in enumerate(zip(*(known[column].to_pylist() for column in ("account_id", *COLUMNS)), strict=True)):
        if before.get(name) != tuple(values):
            before[name] = tuple(values)
            kept.append(number)
    return known.take(pa.array(kept, pa.int64()))


# Where it goes.


async def make_known(wire: Wire, catalogue: Catalogue, known: pa.Table, bus: Bus) -> int:
    """Tells what changed, and writes it into the profiles in Redis; how many accounts that were. What a later run made known stands."""
    if "account" not in catalogue.profiles:
        return 0
    layout = catalogue.profile_layouts[catalogue.profiles.index("account")]
    offsets = [layout.offset(column) for column in COLUMNS]
    begin, end = min(offsets), max(offsets) + PROFILE_CELL_BYTES
    rows, written = _rows(known), 0
    while batch := list(islice(rows, BATCH)):
        cells = sound(await wire.send(*(("GETRANGE", layout.key(name), begin, end - 1) for name, _, _ in batch)))
        news: list[ProfileValue] = []
        for (name, values, at_ms), cell in zip(batch, cells, strict=True):
            old = [cell_of(cell, offset - begin) for offset in offsets]
            new = [(column, value) for column, value, was in zip(COLUMNS, values, old, strict=True) if _is_news(value, was, at_ms)]
            news += [_profile_value(name, column, value, at_ms) for column, value in new]
            written += bool(new)
        await asyncio.gather(*(bus.tell(PROFILES, each.value_id, encode(each)) for each in news))
        writes = (profile_write(catalogue, each.kind, each.token, each.column, each.value, each.known_at_ms) for each in news)
        sound(await wire.send(*[write for write in writes if write is not None]))
    return written


def _is_news(value: float, old: tuple[float, int], at_ms: int) -> bool:
    """Whether a value is not the one that is known already, nor older than it."""
    was, since_ms = old
    return not since_ms or (was != value and since_ms <= at_ms)


def _profile_value(name: str, column: str, value: float, at_ms: int) -> ProfileValue:
    value_id = derived_id("val", "account", name, column)
    return ProfileValue(value_id=value_id, kind="account", token=name, column=column, value=value, known_at_ms=at_ms)


def _rows(known: pa.Table) -> Iterator[tuple[str, tuple[float, ...], int]]:
    """Account, values, known at; a batch of Python objects at a time."""
    for batch in known.to_batches(max_chunksize=BATCH):
        names, *values, at_ms = (column.to_pylist() for column in batch.columns)
        yield from zip(names, zip(*values, strict=True), at_ms, strict=True)


async def _made_known(settings: Settings, known: pa.Table) -> int:
    wire = await Wire.connect(settings.redis_url, settings.redis_password or None, settings.redis_username or None, REDIS_TIMEOUT_S)
    bus = KafkaBus(settings.changed(produce_timeout_ms=PRODUCE_TIMEOUT_MS), linger_ms=LINGER_MS)
    try:
        return await make_known(wire, CATALOGUE, known, bus)
    finally:
        await bus.close()
        await wire.close()


# The job.


def figures_of(clusters: Clusters, known: pa.Table, events: int, written: int, as_of_ms: int, began: Sequence[float], cpu_s: float) -> Figures:
    """The figures of a run. `began`: when reading, clustering and writing began, and when all was over, seconds."""
    sizes = np.bincount(clusters.cluster) if len(clusters.cluster) else np.zeros(1, np.int64)
    read_s, cluster_s, write_s = (round(float(each), 3) for each in np.diff(began))
    return Figures(
        as_of_ms=as_of_ms,
        events=events,
        accounts=known.num_rows,
        members=len(clusters.accounts),
        edges=len(clusters.ties.pairs),
        communities=int((sizes > 1).sum()),
        largest=int(sizes.max()),
        frauds=int(clusters.fraud.sum()),
        rows_written=written,
        read_s=read_s,
        cluster_s=cluster_s,
        write_s=write_s,
        cpu_s=round(cpu_s, 3),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


def run_once(settings: Settings, as_of_ms: int, window_ms: int, hub: int, seed: int) -> Figures:
    """One run on the archive, into Redis."""
    cpu_s, began = time.process_time(), [time.perf_counter()]
    past = archived_past(settings.archive_dir, as_of_ms, window_ms)
    began.append(time.perf_counter())
    clusters = clusters_of(past.events, past.learned, as_of_ms, window_ms, random.Random(seed), hub)
    known = knowledge_of(clusters, past, as_of_ms)
    began.append(time.perf_counter())
    written = asyncio.run(_made_known(settings, known))
    began.append(time.perf_counter())
    return figures_of(clusters, known, past.events.num_rows, written, as_of_ms, began, time.process_time() - cpu_s)


def run_on_files(past: Past, moments: Iterable[int], window_ms: int, hub: int, seed: int, out: Path) -> Iterator[Figures]:
    """As of each moment: what became known then, all of it in one file in the end, whole or not at all."""
    before: dict[str, tuple[float, ...]] = {}
    draft = out.with_name(f".{out.name}")
    with pq.ParquetWriter(draft, KNOWN, compression="zstd") as writer:
        for as_of_ms in moments:
            cpu_s, began = time.process_time(), [time.perf_counter()] * 2
            clusters = clusters_of(past.events, past.learned, as_of_ms, window_ms, random.Random(seed), hub)
            known = knowledge_of(clusters, past, as_of_ms)
            began.append(time.perf_counter())
            new = changed(known, before)
            writer.write_table(new)
            began.append(time.perf_counter())
            yield figures_of(clusters, known, past.events.num_rows, new.num_rows, as_of_ms, began, time.process_time() - cpu_s)
    draft.replace(out)


def said(figures: Figures) -> str:
    """A run in one line."""
    return (
        f"as of {datetime.fromtimestamp(figures.as_of_ms / 1000, UTC).isoformat(timespec='seconds')}: {figures.accounts:,} accounts, "
        f"{figures.edges:,} edges, {figures.communities:,} communities, the largest of {figures.largest:,}; {figures.frauds:,} accounts with a "
        f"fraud; {figures.rows_written:,} rows written; read {figures.read_s:.1f} s, cluster {figures.cluster_s:.1f} s, "
        f"write {figures.write_s:.1f} s, CPU {figures.cpu_s:.1f} s, at most {figures.peak_mb:,} MB"
    )


def _moments(past: Past, as_of_ms: int | None, every_ms: int | None) -> Sequence[int]:
    """The moments of a history at which the job would have run: each `every_ms` after its first event, else only the last one."""
    first, last = pc.min(past.events["at_ms"]).as_py(), pc.max(past.events["at_ms"]).as_py()
    end = last + 1 if as_of_ms is None else as_of_ms
    return [end] if every_ms is None else range(first + every_ms, end + 1, every_ms) or [end]


def command(argv: list[str], settings: Settings) -> int:
    """`holdfast cluster [--every S]`: the clusters of the archive into Redis; or `--file FILES --map M --out F` into a file."""
    args = _parser().parse_args(argv)
    as_of_ms = None if args.as_of is None else _moment_ms(args.as_of)
    if args.hub < 1 or not 1 <= args.days * DAY_MS <= DAYS_MAX * DAY_MS:
        raise SettingsError(f"--hub and --days are greater than 0, --days at most {DAYS_MAX:,}")
    if args.every is not None and not 0.001 <= args.every < math.inf:
        raise SettingsError("--every is a number of seconds, at least 0.001")
    window_ms = int(args.days * DAY_MS)
    if args.file:
        return _on_files(args, settings, as_of_ms, window_ms)
    if args.map or args.out:
        raise SettingsError("--map and --out belong to --file")
    if args.every is not None and as_of_ms is not None:
        raise SettingsError("a job that runs again and again runs as of then: --every or --as-of, not both")
    settings = settings if args.archive is None else settings.changed(archive_dir=args.archive.absolute())
    if args.every is None:
        _tell(run_once(settings, clock_ms() if as_of_ms is None else as_of_ms, window_ms, args.hub, args.seed), args.json)
        return 0
    return _again_and_again(settings, args, window_ms)


def _on_files(args: argparse.Namespace, settings: Settings, as_of_ms: int | None, window_ms: int) -> int:
    if not (args.map and args.out):
        raise SettingsError("--file needs --map and --out")
    spare(args.out, *args.file, args.map)
    mapping = mapping_in(args.map)
    if mapping.tokens and not settings.token_key:
        settings = with_kept_secrets(settings)
    past = past_of_files(args.file, mapping, TokenKey(settings.token_key.encode(), settings.token_key_id), clock_ms(), say_on_stderr)
    every_ms = None if args.every is None else int(args.every * 1000)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for figures in run_on_files(past, _moments(past, as_of_ms, every_ms), window_ms, args.hub, args.seed, args.out):
            _tell(figures, args.json)
    except OSError as error:
        raise SettingsError(f"--out: {error}") from None
    return 0


def _again_and_again(settings: Settings, args: argparse.Namespace, window_ms: int) -> int:
    """Until SIGTERM or Ctrl-C, which end it after the run that is under way. What does not answer is tried again the next time."""
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    next_s = time.monotonic()
    while not over.is_set():
        try:
            _tell(run_once(settings, clock_ms(), window_ms, args.hub, args.seed), args.json)
        except (Unavailable, SettingsError, OSError) as error:
            print(f"holdfast cluster: {error}; again in {args.every:.0f} s", file=sys.stderr, flush=True)
        next_s = max(next_s + args.every, time.monotonic())
        over.wait(next_s - time.monotonic())
    return 0


def _tell(figures: Figures, as_json: bool) -> None:
    with suppress(BrokenPipeError):
        print(json.dumps(msgspec.to_builtins(figures)) if as_json else said(figures), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--as-of", metavar="ISO8601", help="as known at this moment (default: now; with --file after the last row)")
    parser.add_argument("--days", type=float, default=90, help="how far back ties are looked for (default %(default)s)")
    parser.add_argument("--every", type=float, metavar="S", help="run again each S seconds; with --file as of each S seconds of the history")
    parser.add_argument("--hub", type=int, default=HUB, help="an identity of more accounts than this ties nobody (default %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the chance in the search (default %(default)s)")
    parser.add_argument("--archive", type=Path, metavar="DIR", help="what the archive app wrote (default: that of the settings)")
    parser.add_argument("--file", type=Path, nargs="+", metavar="FILE", help="CSV or Parquet in place of the archive")
    parser.add_argument("--map", type=Path, help="the mapping file (TOML) of --file")
    parser.add_argument("--out", type=Path, metavar="F.parquet", help="where --file writes what would have been known")
    parser.add_argument("--json", action="store_true", help="each run as one JSON object")
    return parser


def _moment_ms(text: str) -> int:
    try:
        return moment_ms(text, TimeRule(zone="UTC"), "--as-of")
    except InvalidRecord as error:
        raise SettingsError(str(error)) from None
