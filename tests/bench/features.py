"""`holdfast bench features`: what the features of one transaction cost, each figure beside its limit, measured in the same run.

Online: a real redis-server on a socket, one client in one process; every entity of a transaction has 100 events behind it (a tenth more
at most, for what is measured leaves rows; then the logs are put back). The limit is one MGET of the same bytes over the same transport.
Kernel: a card's 150 events, all rows of the card.
Backfill: one core, all features; and all cores, from file to file.
Flat: the same transactions' features with 10^4 and then with 10^6 cards in Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from features import kernel
from features.backfill import EPOCH, Backfill
from features.catalogue import CATALOGUE, Catalogue
from features.columns import columns_of
from features.engine import assembled, look, look_all, row_bytes
from features.fact import CARD
from features.memory import DictMemory
from features.online import RedisMemory, warm
from features.row import Capped, Fold, Known, parts
from features.tally import Update, payment_rows
from features.wire import Wire
from schemas.transaction import BehaviouralSession, Fingerprint, Transaction, TransactionKind
from streams.backfill import Given, backfilled
from streams.mapping import TokenKey, mapping_in
from streams.memory_server import answers, command, real_executable
from streams.settings import Settings
from streams.simulate import simulated, written
from streams.wired import GARBAGE

P99_MS_MAX, MEDIAN_RATIO_MAX, PER_S_MIN, KERNEL_US_MAX, BACKFILL_PER_S_MIN, FLAT_MAX = 1.0, 1.5, 15_000, 10.0, 300_000, 1.2
EVENTS, KERNEL_EVENTS, DAY_MS = 100, 150, 86_400_000
IN_FLIGHT, GROUPS = 64, 2
"""As in serving, where a group has up to 64 (`streams/world.py`)."""
ROUNDS = 10
"""So often the logs are made what they were: they grow by as many rows as there are transactions between."""
PASSES = 5
T0 = 1_750_000_000_000
KINDS = (TransactionKind.CARD_PRESENT, TransactionKind.CONTACTLESS, TransactionKind.ECOMMERCE, TransactionKind.TRANSFER_OUT)


def a_transaction(who: int, number: int, at_ms: int) -> Transaction:
    """One payment of one of many people, with every entity that a catalogue may ask for."""
    kind = KINDS[number % len(KINDS)]
    return Transaction(
        transaction_id=f"b{who}-{number}",
        kind=kind,
        at_ms=at_ms,
        amount_minor=500 + number * 7919 % 9_000,
        currency="EUR",
        account_id=f"acc{who}",
        customer_id=f"cus{who}",
        card_token=f"crd_k1_{who:032d}",
        card_bin=f"{411_000 + who % 50}",
        card_country="DE",
        device_token=f"dev_k1_{who:032d}",
        email_token=f"eml_k1_{who:032d}",
        phone_token=f"phn_k1_{who:032d}",
        address_token=f"adr_k1_{who:032d}",
        counterparty_account_id=f"acc{(who * 7 + number) % 1_000}" if kind is TransactionKind.TRANSFER_OUT else None,
        merchant_id=f"mer{number * 31 % 90}",
        mcc=("5411", "5812", "4111")[number % 3],
        terminal_id=f"ter{number * 31 % 180}",
        country=("DE", "FR")[number % 9 == 0],
        latitude=52.5 + number % 5 / 10,
        longitude=13.4,
        ip=f"10.0.{who % 250}.7",
        ip_country="DE",
        session=BehaviouralSession(keystroke_dwell_ms=80 + number % 9, keystroke_flight_ms=120.0, pointer_speed_px_s=900.0, session_age_s=60.0),
        fingerprint=Fingerprint(os="linux", browser=f"b{number // 40}", screen="1080p", time_zone="CET", language="de"),
    )


def lived(who: int, events: int) -> list[Transaction]:
    """The past of one person: so many payments over thirty days."""
    return [a_transaction(who, n, T0 - (events - n) * 30 * DAY_MS // events) for n in range(events)]


def past_of(people: Sequence[int], events: int) -> dict[str, bytes]:
    """Redis's contents after these people's payments: the bytes that serving would have left."""
    memory = DictMemory(CATALOGUE)
    for who in people:
        for number, txn in enumerate(lived(who, events)):
            memory.recall(txn)
            tokens = enumerate(getattr(txn, field) for field in CATALOGUE.tally_fields)
            rows = [Update(0, who * events + number + 1, row) for row in payment_rows(txn, declined=False)]
            memory.take({(place, token): rows for place, token in tokens if token is not None})
    return memory.contents


async def filled(wire: Wire, contents: dict[str, bytes]) -> None:
    """Puts keys into Redis."""
    items = list(contents.items())
    for at in range(0, len(items), 2_000):
        await wire.send(*(("SET", key, content) for key, content in items[at : at + 2_000]))


async def timed(work: Callable[[int], Awaitable[Any]], count: int) -> list[float]:
    """Microseconds of each of so many, one after the other."""
    spent = []
    for number in range(count):
        began = time.perf_counter()
        await work(number)
        spent.append((time.perf_counter() - began) * 1e6)
    return spent


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of them does not exceed."""
    return float(np.quantile(np.array(values), share))


async def online(url: str, people: int, count: int) -> dict[str, float]:
    """All features of one transaction: one client alone, then pipelined, and the bare reads of the same bytes."""
    wire = await Wire.connect(url, timeout_s=5.0)
    await wire.send(("FLUSHALL",))
    contents = past_of(range(people), EVENTS)
    await filled(wire, contents)
    memory = RedisMemory(wire, CATALOGUE)
    asked = [a_transaction(n % people, EVENTS + 1 + n // people, T0 + n) for n in range(2 * count)]
    keys = [_keys(txn) for txn in asked[:count]]
    serial = iter(asked)
    _as_served()
    await timed(lambda n: wire.send(("MGET", *keys[n])), 200)
    await timed(lambda n: _features(memory, asked[n]), 200)
    bare: list[float] = []
    whole: list[float] = []
    part = count // ROUNDS
    for _ in range(ROUNDS):  # in turns, so that both meet the same machine; and of the same logs, which grow with each transaction
        await _as_before(memory, contents)
        bare += await timed(lambda n: wire.send(("MGET", *keys[n])), part)
        whole += await timed(lambda _: _features(memory, next(serial)), part)
    seconds = cpu = 0.0
    for _ in range(ROUNDS):
        await _as_before(memory, contents)
        lot = list(islice(serial, part))
        began, cpu_began = time.perf_counter(), time.process_time()
        await _pipelined(memory, lot)
        seconds, cpu = seconds + time.perf_counter() - began, cpu + time.process_time() - cpu_began
    done = ROUNDS * part
    await memory.settle()
    await memory.close()
    await wire.close()
    return {
        "online_p50_us": statistics.median(whole),
        "online_p99_us": percentile(whole, 0.99),
        "bare_reads_p50_us": statistics.median(bare),
        "bare_reads_p99_us": percentile(bare, 0.99),
        "online_over_bare": statistics.median(whole) / statistics.median(bare),
        "pipelined_per_s": done / seconds,
        "pipelined_cpu_us": cpu / done * 1e6,
        "bytes_read": statistics.mean(sum(len(contents.get(key, b"")) for key in some) for some in keys),
        "keys_read": statistics.mean(len(some) for some in keys),
    }


async def _as_before(memory: RedisMemory, contents: dict[str, bytes]) -> None:
    """Makes every entity have its EVENTS events again."""
    await memory.settle()
    await filled(memory.wire, contents)


async def _pipelined(memory: RedisMemory, txns: Sequence[Transaction]) -> None:
    """The features of these, IN_FLIGHT at a time."""
    size = IN_FLIGHT // GROUPS
    groups = iter([txns[at : at + size] for at in range(0, len(txns), size)])

    async def worker() -> None:
        for group in groups:
            look_all(CATALOGUE, await memory.recall_all(group))

    await asyncio.gather(*(worker() for _ in range(GROUPS)))


def _as_served() -> None:
    """What is there now is not looked through for garbage any more, and what comes, seldom: so the authorization service starts."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)


def _keys(txn: Transaction) -> list[str]:
    """Every key that the features of a transaction read."""
    c = CATALOGUE
    tables = ((c.log_layouts, c.log_fields), (c.profile_layouts, c.profile_fields), (c.tally_layouts, c.tally_fields))
    pairs = [(layout, getattr(txn, field)) for layouts, fields in tables for layout, field in zip(layouts, fields, strict=True)]
    return [layout.key(token) for layout, token in pairs if token is not None]


async def _features(memory: RedisMemory, txn: Transaction) -> Any:
    return look(CATALOGUE, await memory.recall(txn))


async def flat(url: str, sizes: Sequence[int], count: int) -> dict[str, float]:
    """The median latency with so many cards in Redis; the same transactions each time."""
    wire = await Wire.connect(url, timeout_s=30.0)
    await wire.send(("FLUSHALL",))
    memory, figures, before = RedisMemory(wire, CATALOGUE), {}, 0
    rows = dict(zip(CATALOGUE.logs, row_bytes(CATALOGUE, a_transaction(0, 0, T0)), strict=True))
    layout = CATALOGUE.log_layouts[CATALOGUE.logs.index("card")]
    await filled(wire, past_of(range(200), 20))
    for size in sizes:
        for at in range(before, size, 5_000):
            await wire.send(*(("SET", layout.key(f"crd_k1_{who:032d}"), rows["card"]) for who in range(max(at, 200), min(at + 5_000, size))))
        before = size
        await timed(lambda n: _features(memory, a_transaction(n % 200, 10_000 + n, T0 + n)), 200)
        spent = await timed(lambda n, size=size: _features(memory, a_transaction(n % 200, size + n, T0 + n)), count)  # type: ignore[misc]
        figures[f"median_us_at_{size}_cards"] = statistics.median(spent)
    await memory.settle()
    await memory.close()
    await wire.close()
    return figures


def kernel_alone(repeats: int) -> dict[str, float]:
    """The compiled kernel over a card's 150 events: all rows that read the card's log alone."""

    def of_card(part: object) -> bool:
        return not isinstance(part, Fold | Capped | Known) or part.entity == CARD

    catalogue = Catalogue(tuple(row for row in CATALOGUE.rows if all(of_card(part) for part in parts(row.shape.expression))), CATALOGUE.cap)
    memory = DictMemory(catalogue)
    for txn in lived(1, KERNEL_EVENTS):
        memory.recall(txn)
    txn = a_transaction(1, KERNEL_EVENTS, T0)
    past = memory.recall(txn).value  # type: ignore[attr-defined]  # it is there already
    buffer = assembled((past,))
    out, told = np.empty((1, len(catalogue.rows) + 2 * len(catalogue.logs))), np.empty((1, 0))
    spent = []
    for _ in range(50):
        began = time.perf_counter()
        for _ in range(repeats):
            kernel.look_all(catalogue.program, buffer, 0, told, out)
        spent.append((time.perf_counter() - began) / repeats * 1e6)
    return {"kernel_us": statistics.median(spent), "kernel_rows": len(catalogue.rows), "kernel_events": KERNEL_EVENTS}


def filled_at_once(people: int, events: int) -> dict[str, float]:
    """Backfill on one core: events a second, all features, the columns being there. In lots of an epoch, as files are filled.

    The first pass over the history meets memory that the machine may never have handed out before, which can cost more than all work; its
    speed stands beside. What a longer history goes on with is the median of the PASSES after it, each by a backfill that knows nothing yet.
    """
    history = sorted((txn for who in range(people) for txn in lived(who, events)), key=lambda txn: txn.at_ms)
    columns = columns_of(history)
    columns.fact_matrix, columns.measure_matrix  # noqa: B018 - made once, outside of what is measured
    lots = [columns.part(begin, min(begin + EPOCH, columns.n)) for begin in range(0, columns.n, EPOCH)]
    into = np.zeros((EPOCH, len(CATALOGUE.rows)))
    Backfill(CATALOGUE).vectors(lots[0].part(0, 1_000), into=into)

    def passed() -> tuple[float, float]:
        under_way = Backfill(CATALOGUE)
        began, cpu = time.perf_counter(), time.process_time()
        for lot in lots:
            under_way.vectors(lot, into=into)
        return time.perf_counter() - began, time.process_time() - cpu

    first, spent = passed()[0], [passed() for _ in range(PASSES)]
    seconds, cpu = (statistics.median(each) for each in zip(*spent, strict=True))
    count = len(history)
    return {"backfill_per_s": count / seconds, "backfill_cpu_us": cpu / count * 1e6, "backfill_first_per_s": count / first, "backfill_events": count}


def from_file_to_file(customers: int) -> dict[str, float]:
    """`holdfast backfill` as a user meets it, on all cores: simulated payments and account events in Parquet, every feature in Parquet."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="hf-bench-") as folder:
        place = Path(folder)
        written(simulated(np.random.default_rng(1), customers=customers, days=60, fraud_rate=0.01), place)
        mapping, key = mapping_in(place / "mapping.toml"), TokenKey(b"a bench's key", "k1")
        given = Given((place / "transactions.parquet",), mapping, key, place / "accounts.parquet", None, place / "account_events.parquet")
        cpu = time.process_time()
        made = backfilled(CATALOGUE, given, place / "out", now_ms=1 << 41, say=print, threads=cores)
        cpu = time.process_time() - cpu
    return {"file_rows": made.rows, "file_rows_per_s": made.rows / made.seconds, "file_cpu_us": cpu / made.rows * 1e6}


def measured(count: int, cards: Sequence[int], backfill_events: int) -> dict[str, float]:
    """All figures."""
    uvloop.install()
    warm(CATALOGUE)
    with tempfile.TemporaryDirectory(prefix="hf-bench-") as folder:
        socket = Path(folder) / "redis.sock"
        server = subprocess.Popen(command(real_executable(), Path(folder), socket), stdout=subprocess.DEVNULL)
        try:
            while not answers(socket):
                time.sleep(0.02)
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(server.pid, {cores[-1]})
            os.sched_setaffinity(0, {cores[0]})
            figures = asyncio.run(online(f"unix://{socket}", 200, count))
            figures |= asyncio.run(flat(f"unix://{socket}", cards, count // 2))
            os.sched_setaffinity(0, set(cores))
        finally:
            server.terminate()
            server.wait(20)
    figures |= kernel_alone(2_000) | filled_at_once(backfill_events // EVENTS, EVENTS)
    return figures | from_file_to_file(max(backfill_events // 100, 20))


Check = tuple[str, float, str, str, float]
"""What was measured, the figure, its unit, and what it must be."""


def holds(check: Check) -> bool:
    """Whether a figure is what it must be."""
    _, figure, _, relation, bound = check
    return {"below": figure < bound, "at most": figure <= bound, "at least": figure >= bound}[relation]


def line(check: Check) -> str:
    """A figure for a person."""
    what, figure, unit, relation, bound = check
    shown = f"{figure:,.0f}" if figure >= 1_000 else f"{figure:.2f}"
    return f"{what:<40}{shown:>10} {unit:<3} {relation} {bound:,}: {'holds' if holds(check) else 'does NOT hold'}"


def features(argv: list[str], settings: Settings) -> int:
    """`holdfast bench features [--count N] [--cards N] [--json]`: exit status 0 if each figure holds."""
    parser = argparse.ArgumentParser(prog="holdfast bench features", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="transactions that are measured one by one")
    parser.add_argument("--cards", type=int, default=1_000_000, help="cards in Redis for the second reading of the latency")
    parser.add_argument("--backfill", type=int, default=200_000, help="events of the backfill")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    args = parser.parse_args(argv)
    few = min(10_000, args.cards // 10)
    f = measured(args.count, (few, args.cards), args.backfill)
    flatness = f[f"median_us_at_{args.cards}_cards"] / f[f"median_us_at_{few}_cards"]
    per_card = f"median at {args.cards:,} cards over {few:,}"
    checks: list[Check] = [
        ("online, one client, p99", f["online_p99_us"] / 1000, "ms", "below", P99_MS_MAX),
        ("  its median over the bare reads", f["online_over_bare"], "", "at most", MEDIAN_RATIO_MAX),
        ("pipelined, one core", f["pipelined_per_s"], "/s", "at least", PER_S_MIN),
        (f"kernel, {f['kernel_rows']} rows over {KERNEL_EVENTS} events", f["kernel_us"], "us", "below", KERNEL_US_MAX),
        ("backfill, one core", f["backfill_per_s"], "/s", "at least", BACKFILL_PER_S_MIN),
        (per_card, flatness, "", "at most", FLAT_MAX),
    ]
    for check in checks:
        print(line(check))
    print(f"one transaction: {len(CATALOGUE.rows)} features, {f['keys_read']:.1f} keys, {f['bytes_read']:,.0f} bytes read")
    print(f"backfill's first pass, in memory that was never touched: {f['backfill_first_per_s']:,.0f}/s")
    print(f"backfill from file to file: {f['file_rows']:,.0f} payments, {f['file_rows_per_s']:,.0f}/s, {f['file_cpu_us']:.1f} us of processor each")
    all_hold = all(holds(check) for check in checks)
    if args.json:
        print(json.dumps(f | {"flatness": flatness, "holds": all_hold}))
    return 0 if all_hold else 1
