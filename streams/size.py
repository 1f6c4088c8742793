"""`holdfast features size`: what the memory of each kind of entity takes in Redis, and what was trimmed of it, as Redis itself says.

Of a running Redis it looks at a sample of the keys; with `--events E --entities N` it fills a Redis of its own with logs as serving writes
them (row by row, written anew after each fifty: a string that grows by APPEND is given up to twice its length) and measures that one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from redis import Redis

from features.catalogue import Catalogue
from features.engine import packed
from features.fact import ENTITIES, facts_of
from features.layout import TRIMMED_AT, TRIMMED_WIDTH, LogLayout
from features.log import is_due, tidied
from features.profile import profile_write
from features.tally import TallyLayout, Update, payment_rows, updated
from features.wire import address
from schemas.errors import SettingsError
from schemas.identity import keyed_token
from schemas.transaction import Transaction, TransactionKind
from streams import memory_server
from streams.clock import clock_ms
from streams.parts import Keeper, Part
from streams.settings import Settings

CARD_EVENTS, CARD_BYTES_MAX = 100, 3_072
"""What a card's log takes at most, at so many events."""
ENTITIES_MAX, EVENTS_MAX = 10_000_000, 10_000
"""A Redis of its own is filled with no more than this: it would take days, and all memory."""
MEMORIES = ("log", "profile", "tally")
"""How the keys of entities begin, and go on with layout, kind and token; others with an id, which may have colons."""
SCANNED = 500
"""Keys of one SCAN, and of one pipeline of questions about them."""
HISTORIES = 64
"""Different histories that a filled Redis has of each kind, each shared by many entities."""
PASSES = 4
"""In which a filled Redis gets its rows, so that logs grow beside each other and not one after the other."""
WAIT_S = 30.0
HOUR_MS = 3_600_000
_GROW = """
local step = tonumber(ARGV[1])
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2]) end
for at = 1, #ARGV[3], step do redis.call('APPEND', KEYS[1], string.sub(ARGV[3], at, at + step - 1)) end
redis.call('EXPIRE', KEYS[1], ARGV[4])
"""
"""Many appends in one command, for filling alone: Redis does for each what it does for one that came over the wire."""
Say = Callable[[str], None]


class Size(msgspec.Struct, frozen=True):
    """What one kind of key takes. Bytes are MEMORY USAGE: value, key and Redis's own. `keys` is exact only if all keys were looked at."""

    kind: str
    keys: int
    sampled: int
    bytes_mean: float
    bytes_p99: float
    bytes_total: int
    rows_mean: float | None
    row_bytes: int | None
    rows_trimmed: int
    logs_trimmed: int
    logs_cut: int
    ttl_days_min: float | None
    ttl_days_mean: float | None
    without_ttl: int


class Sizes(msgspec.Struct, frozen=True):
    """What a Redis holds: all its keys, whether all were looked at, what it says of its memory, and each kind."""

    keys: int
    exact: bool
    used_memory: int
    resident_memory: int
    redis_version: str
    kinds: tuple[Size, ...]


class _Key(NamedTuple):
    """What was learned of one key. `rows` are those there, `trimmed` those gone, `newest_gone_ms` the newest event among these."""

    bytes: int
    ttl_ms: int
    rows: int
    trimmed: int
    newest_gone_ms: int


@dataclass
class _Kind:
    """The keys of one kind that were looked at."""

    layout: LogLayout | None
    keys: list[_Key] = field(default_factory=list)


# Looking.


def client_of(settings: Settings) -> Redis:
    """A client of the Redis of these settings. SettingsError if they name a cluster."""
    if settings.redis_url.startswith("redis+cluster:"):
        raise SettingsError("HOLDFAST_REDIS_URL: `features size` looks at one node of a cluster at a time: name it as redis://host:port")
    return Redis(username=settings.redis_username or None, password=settings.redis_password or None, **address(settings.redis_url))


def sizes_of(redis: Any, catalogue: Catalogue, sample: int, now_ms: int) -> Sizes:
    """The sizes by a sample of the keys: SCAN goes by hash, so that the first it gives are as good as any. It changes nothing."""
    layouts = {f"log:{layout.version}:{layout.kind}": layout for layout in catalogue.log_layouts}
    profiles = (f"profile:{layout.version}:{layout.kind}" for layout in catalogue.profile_layouts)
    tallies = (f"tally:{layout.version}:{layout.kind}" for layout in catalogue.tally_layouts)
    current = frozenset([*layouts, *profiles, *tallies])
    kinds: dict[str, _Kind] = {}
    seen, exact = 0, False
    for keys, last in _scanned(redis):
        asked = keys[: sample - seen]
        _look_at(redis, asked, layouts, current, kinds)
        seen += len(asked)
        exact = last and len(asked) == len(keys)
        if seen >= sample:
            break
    total, info = redis.dbsize(), redis.info()
    share = total / max(seen, 1)
    cut_after_ms = now_ms - catalogue.longest_ms
    sizes = tuple(_size(kind, found, 1.0 if exact else share, cut_after_ms) for kind, found in sorted(kinds.items()))
    return Sizes(total, exact, info["used_memory"], info["used_memory_rss"], info["redis_version"], sizes)


def _scanned(redis: Any) -> Iterator[tuple[list[bytes], bool]]:
    """Keys in portions, each key once, and whether that was the last portion."""
    cursor, known = 0, set[bytes]()
    while True:
        cursor, keys = redis.scan(cursor, count=SCANNED)
        fresh = [key for key in dict.fromkeys(keys) if key not in known]
        known.update(fresh)
        yield fresh, cursor == 0
        if cursor == 0:
            return


def kind_of(key: bytes, current: frozenset[str]) -> str:
    """What a key is of: `log:card`, `profile:account`; `ans`, `txn`, `book` and so on. Layouts of another catalogue are marked as old."""
    first, *rest = key.decode(errors="replace").split(":", 3)
    if first in MEMORIES and len(rest) == 3:
        return f"{first}:{rest[1]}" + ("" if f"{first}:{rest[0]}:{rest[1]}" in current else " (old layout)")
    return first if rest else "other"


def _look_at(redis: Any, keys: list[bytes], layouts: dict[str, LogLayout], current: frozenset[str], kinds: dict[str, _Kind]) -> None:
    """Asks about these keys in one pipeline."""
    of = [layouts.get(b":".join(key.split(b":", 3)[:3]).decode(errors="replace")) for key in keys]
    pipe = redis.pipeline(transaction=False)
    for key, layout in zip(keys, of, strict=True):
        pipe.memory_usage(key, samples=0)
        pipe.pttl(key)
        if layout is not None:
            pipe.strlen(key)
            pipe.getrange(key, 0, layout.row_bytes - 1)
    replies = iter(pipe.execute())
    for key, layout in zip(keys, of, strict=True):
        taken, ttl_ms = next(replies), next(replies)
        rows = (0, 0, 0) if layout is None else _rows(layout.row_bytes, next(replies), next(replies))
        if taken is not None:  # it may have expired meanwhile
            kinds.setdefault(kind_of(key, current), _Kind(layout)).keys.append(_Key(taken, ttl_ms, *rows))


def _rows(row_bytes: int, length: int, head: bytes) -> tuple[int, int, int]:
    """Rows in a log, rows trimmed from it, and the newest event time among these; by its length and first row."""
    rows = length // row_bytes
    if rows == 0 or any(head[:8]):
        return rows, 0, 0
    return rows - 1, int.from_bytes(head[TRIMMED_AT : TRIMMED_AT + TRIMMED_WIDTH], "little"), int.from_bytes(head[8:14], "little")


def _size(kind: str, found: _Kind, share: float, cut_after_ms: int) -> Size:
    taken = np.array([key.bytes for key in found.keys])
    ttls = [key.ttl_ms / 86_400_000 for key in found.keys if key.ttl_ms >= 0]
    keys = round(len(taken) * share)
    return Size(
        kind=kind,
        keys=keys,
        sampled=len(taken),
        bytes_mean=round(float(taken.mean()), 1),
        bytes_p99=float(np.quantile(taken, 0.99, method="higher")),
        bytes_total=round(float(taken.mean()) * keys),
        rows_mean=round(float(np.mean([key.rows for key in found.keys])), 2) if found.layout else None,
        row_bytes=found.layout.row_bytes if found.layout else None,
        rows_trimmed=round(sum(key.trimmed for key in found.keys) * share),
        logs_trimmed=round(sum(key.trimmed > 0 for key in found.keys) * share),
        logs_cut=round(sum(key.trimmed > 0 and key.newest_gone_ms > cut_after_ms for key in found.keys) * share),
        ttl_days_min=round(min(ttls), 2) if ttls else None,
        ttl_days_mean=round(float(np.mean(ttls)), 2) if ttls else None,
        without_ttl=round((len(taken) - len(ttls)) * share),
    )


def table(sizes: Sizes) -> str:
    """The sizes as a Markdown table, and what Redis says of itself."""
    heads = (
        "keys",
        "bytes mean",
        "p99",
        "total MB",
        "rows mean",
        "bytes a row",
        "rows trimmed",
        "logs trimmed",
        "cut",
        "TTL days min",
        "mean",
        "no TTL",
    )
    lines = [f"| kind | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for size in sizes.kinds:
        cells = (
            f"{size.keys:,}",
            f"{size.bytes_mean:,.0f}",
            f"{size.bytes_p99:,.0f}",
            f"{size.bytes_total / 1e6:,.1f}",
            _cell(size.rows_mean),
            _cell(size.row_bytes),
            f"{size.rows_trimmed:,}",
            f"{size.logs_trimmed:,}",
            f"{size.logs_cut:,}",
            _cell(size.ttl_days_min),
            _cell(size.ttl_days_mean),
            f"{size.without_ttl:,}",
        )
        lines.append(f"| {size.kind} | {' | '.join(cells)} |")
    counted = "all looked at" if sizes.exact else f"{sum(size.sampled for size in sizes.kinds):,} looked at, counts by kind are estimates"
    memory = f"{sizes.used_memory / 1e6:,.1f} MB used, {sizes.resident_memory / 1e6:,.1f} MB resident"
    return "\n".join([*lines, "", f"{sizes.keys:,} keys ({counted}); Redis {sizes.redis_version}: {memory}"])


def _cell(number: float | None) -> str:
    return "" if number is None else f"{number:,.6g}"


# Filling.


@contextlib.contextmanager
def own_redis() -> Iterator[Redis]:
    """An embedded Redis in a folder of its own that keeps nothing on disk; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="holdfast-size-") as name, contextlib.ExitStack() as ending:
        place = Path(name)
        path = place / "redis.sock"
        command = (*memory_server.command(memory_server.embedded_executable(), place, path), "--appendonly", "no")
        keeper = Keeper(lambda _: None, lambda _: None)
        ending.callback(keeper.close)
        keeper.add(Part("redis", command, dict(os.environ), place / "redis.log", lambda _: memory_server.answers(path))).wait_ready(WAIT_S)
        redis = Redis(unix_socket_path=str(path))
        ending.callback(redis.close)
        yield redis


def fill(redis: Any, catalogue: Catalogue, entities: int, events: int, now_ms: int, say: Say) -> None:
    """Writes the log or tally of so many entities of each kind, with so many events in each, and their profiles."""
    grow = redis.register_script(_GROW)
    ttl_s = 2 * catalogue.keep_ms // 1000
    for number, (entity, layout) in enumerate(zip(catalogue.log_entities, catalogue.log_layouts, strict=True)):
        if entity.log_of:
            continue  # another entity's log, which is there already
        say(f"filling {entities:,} logs of {layout.kind}")
        histories = [_history(catalogue, number, events, seed, now_ms) for seed in range(min(HISTORIES, entities))]
        for turn in range(PASSES):
            _in_batches(redis, entities, lambda pipe, entity, turn=turn: _grow(grow, pipe, layout, histories, entity, turn, ttl_s))  # type: ignore[misc]  # noqa: B023 - used at once
    for number, tally in enumerate(catalogue.tally_layouts):
        say(f"filling {entities:,} tallies of {tally.kind}")
        contents = [_tally(catalogue, number, events, seed, now_ms) for seed in range(min(HISTORIES, entities))]
        _in_batches(redis, entities, lambda pipe, entity: _tell(pipe, tally, contents, entity))  # noqa: B023 - used at once
    for kind in catalogue.profiles:
        say(f"filling {entities:,} profiles of {kind}")
        _in_batches(redis, entities, lambda pipe, entity: _know(pipe, catalogue, kind, entity, now_ms))  # noqa: B023 - used at once


def _in_batches(redis: Any, entities: int, write: Callable[[Any, int], None]) -> None:
    numbers = iter(range(entities))
    while batch := list(itertools.islice(numbers, SCANNED)):
        pipe = redis.pipeline(transaction=False)
        for entity in batch:
            write(pipe, entity)
        pipe.execute()


def _history(catalogue: Catalogue, log_number: int, events: int, seed: int, now_ms: int) -> tuple[bytes, bytes]:
    """A log as it was when it was last written anew, and the rows appended since."""
    chance = random.Random(seed)
    layout = catalogue.log_layouts[log_number]
    rows = [_payment(chance, seed, n, now_ms - (events - n) * HOUR_MS) for n in range(events)]
    log = b"".join(row for txn in rows if (row := packed(catalogue, txn, facts_of(txn))[log_number]) is not None)
    base, rest, step = b"", b"", layout.row_bytes
    for begin in range(0, len(log), step):
        rest += log[begin : begin + step]
        if is_due(catalogue, begin // step + 1):
            base, rest = tidied(catalogue, log_number, base + rest), b""
    return base, rest


def _tally(catalogue: Catalogue, number: int, events: int, seed: int, now_ms: int) -> bytes:
    """A tally after so many payments, an hour apart."""
    chance = random.Random(seed)
    paid = [_payment(chance, seed, n, now_ms - (events - n) * HOUR_MS) for n in range(events)]
    rows = [Update(0, n, row) for n, txn in enumerate(paid) for row in payment_rows(txn, declined=n % 20 == 0)]
    return updated(catalogue.tally_plan, catalogue.tally_layouts, number, b"", rows)


def _tell(pipe: Any, layout: TallyLayout, contents: list[bytes], entity: int) -> None:
    pipe.set(layout.key(_token(layout.kind, entity)), contents[entity % len(contents)], ex=layout.keep_s)


def _payment(chance: random.Random, seed: int, n: int, at_ms: int) -> Transaction:
    """A payment that has every entity."""
    named = {entity.field: f"{entity.name}{seed}" for entity in ENTITIES}
    values: dict[str, Any] = named | {"merchant_id": f"m{chance.randrange(50)}", "terminal_id": f"t{chance.randrange(50)}"}
    values |= {"mcc": f"{chance.randrange(10_000):04}", "country": "DE", "latitude": chance.uniform(48, 54), "longitude": chance.uniform(7, 14)}
    return Transaction(
        transaction_id=f"s{seed}-{n}",
        kind=TransactionKind.CARD_PRESENT,
        at_ms=at_ms,
        amount_minor=chance.randrange(1, 100_000),
        currency="EUR",
        **values,
    )


def _token(kind: str, entity: int) -> str:
    """As long as the tokens of the doors are."""
    return keyed_token(b"size", "k1", kind[:3], str(entity))


def _grow(grow: Any, pipe: Any, layout: LogLayout, histories: list[tuple[bytes, bytes]], entity: int, turn: int, ttl_s: int) -> None:
    """The part of an entity's log that is written in this turn."""
    tidy, rest = histories[entity % len(histories)]
    count = len(rest) // layout.row_bytes
    begin, end = (count * step // PASSES * layout.row_bytes for step in (turn, turn + 1))
    grow(keys=[layout.key(_token(layout.kind, entity))], args=[layout.row_bytes, tidy if turn == 0 else b"", rest[begin:end], ttl_s], client=pipe)


def _know(pipe: Any, catalogue: Catalogue, kind: str, entity: int, now_ms: int) -> None:
    for column in catalogue.profile_layouts[catalogue.profiles.index(kind)].columns:
        write = profile_write(catalogue, kind, _token(kind, entity), column, float(entity), now_ms)
        if write is not None:
            pipe.execute_command(*write)


def filled_sizes(catalogue: Catalogue, entities: int, events: int, sample: int, say: Say) -> Sizes:
    """The sizes of a Redis of our own, filled."""
    now_ms = clock_ms()
    with own_redis() as redis:
        fill(redis, catalogue, entities, events, now_ms, say)
        return sizes_of(redis, catalogue, sample, now_ms)


def card_bytes(sizes: Sizes) -> float | None:
    """What the largest logs of cards take, by the 99th percentile; None where there is none."""
    return next((size.bytes_p99 for size in sizes.kinds if size.kind == "log:card"), None)
