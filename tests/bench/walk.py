"""`holdfast bench walk`: the two doors of the walk measured in one run, each with its own limit beside it.

HTTP: closed loop (throughput) and open loop at 500/s (latency from the scheduled moment), beside the same server answering
`/health`. Topic: the `score` app on real Kafka working off a backlog, beside the same harness with an app that does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.account import AccountState
from schemas.avro import encode
from schemas.topics import ACCOUNTS, DECISIONS, TRANSACTIONS
from schemas.transaction import Transaction
from streams.clock import clock_ms
from streams.settings import Settings, librdkafka
from streams.stack import ROOT, Stack, running

HTTP_PER_S_MIN = 3_000
OPEN_RATE = 500
P99_MS_MAX = 15
SCORE_PER_S_MIN = 4_000
CARDS = 5_000
SPAN_MS = 20 * 86_400_000
HISTORY_MS, STEP_MS = 30 * 86_400_000, 800
"""A history that is sent in lots begins so long ago, and has a payment every so often: 3.2 million reach to now."""


class Payments:
    """One history that is sent in lots: each payment happens after all that were made before it.

    Lots that each spanned the same days would be late by weeks, one after the other, and what upkeep of that costs is not what a host sees.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix, self._lots, self._now_ms = prefix, 0, clock_ms()
        self._until_ms = self._now_ms - HISTORY_MS

    def more(self, count: int) -> list[Transaction]:
        """The next so many. ValueError if they would happen in the future."""
        self._lots += 1
        self._until_ms += count * STEP_MS
        if self._until_ms > self._now_ms:
            raise ValueError(f"a history of {HISTORY_MS // STEP_MS:,} payments ends here: measure for less time")
        return transactions(count, f"{self._prefix}{self._lots}-", self._until_ms, count * STEP_MS)


def transactions(count: int, prefix: str, now_ms: int, span_ms: int = SPAN_MS) -> list[Transaction]:
    """Plain payments over so long up to now: `count` of them by 5,000 cards in turn, a third from a device, a third with coordinates."""
    from schemas.transaction import EntryMode, TransactionKind

    kinds = (TransactionKind.CARD_PRESENT, TransactionKind.CONTACTLESS, TransactionKind.ECOMMERCE)
    return [
        Transaction(
            transaction_id=f"{prefix}{i:08d}",
            kind=kinds[i % 3],
            at_ms=now_ms - (count - i) * span_ms // count,
            amount_minor=500 + (i * 7919) % 9_000,
            currency="EUR",
            account_id=f"acc{i % CARDS}",
            customer_id=f"cus{i % CARDS}",
            card_token=f"crd_k1_{i % CARDS:032d}",
            card_country="DE",
            device_token=f"dev_k1_{i % CARDS:032d}" if i % 3 == 2 else None,
            merchant_id=f"mer{(i * 31) % 900}",
            mcc="5411",
            terminal_id=f"ter{(i * 31) % 1800}",
            country="DE",
            latitude=52.5 if i % 3 == 0 else None,
            longitude=13.4 if i % 3 == 0 else None,
            entry_mode=EntryMode.CHIP if i % 3 < 2 else EntryMode.ECOMMERCE,
        )
        for i in range(count)
    ]


def fed(settings: Settings, records: Sequence[Transaction] | Sequence[AccountState]) -> None:
    """Puts records on their topic, as fast as the broker takes them, and waits until it has them."""
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap, "acks": "all", "partitioner": "murmur2_random", "linger.ms": 20})
    topic = TRANSACTIONS if isinstance(records[0], Transaction) else ACCOUNTS
    for record in records:
        while True:
            try:
                producer.produce(topic.name, encode(record), record.account_id.encode())
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0


def load(port: int, bodies: list[bytes], *options: str, api_key: str) -> dict[str, float]:
    """Runs `tests.bench.load` as a process of its own and returns what it measured."""
    command = [sys.executable, "-m", "tests.bench.load", str(port), *options]
    environ = os.environ | {"HOLDFAST_API_KEY": api_key}
    ran = subprocess.run(command, input=b"\n".join(bodies), capture_output=True, cwd=ROOT, env=environ, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stderr.decode())
    figures: dict[str, float] = json.loads(ran.stdout)
    return figures


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of its own."""
    with tempfile.TemporaryDirectory(prefix="hf-bench-") as folder:
        yield Path(folder)


def pinned(pid: int) -> None:
    """Keeps a process and its threads on the first core, so that 'one core' is one core."""
    first = min(os.sched_getaffinity(0))
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, {first})


def http(settings: Settings, seconds: float) -> dict[str, float]:
    """The HTTP door on the embedded stack: `authorize` alone on one core; broker, Redis and the load share the others."""
    import msgspec

    now_ms = clock_ms()
    asked = [msgspec.json.encode(t) for t in transactions(int(seconds * 30_000), "h", now_ms)]
    with running(settings.changed(http_port=0, unknown_account="hold"), broker_name="embedded", apps=("authorize",)) as stack:
        port, pid = stack.settings.http_port, stack.part("authorize").pid
        pinned(pid)
        offered = partial(load, api_key=stack.settings.api_key)
        offered(port, asked[:3_000], "--seconds", "2")
        limit = offered(port, [], "--path", "/health", "--seconds", str(seconds))
        before = sum(psutil.Process(pid).cpu_times()[:2])
        half = len(asked) // 2
        closed = offered(port, asked[3_000:half], "--seconds", str(seconds))
        cpu_s = sum(psutil.Process(pid).cpu_times()[:2]) - before
        opened = offered(port, asked[half:], "--seconds", str(seconds), "--rate", str(OPEN_RATE))
    return {
        "http_per_s": closed["per_s"],
        "http_failed": closed["failed"] + opened["failed"],
        "http_cpu_us": cpu_s / closed["count"] * 1e6,
        "http_limit_per_s": limit["per_s"],
        "http_over_limit": closed["per_s"] / limit["per_s"],
        "http_closed_p99_ms": closed["p99_ms"],
        "open_rate_per_s": OPEN_RATE,
        "open_p50_ms": opened["p50_ms"],
        "open_p99_ms": opened["p99_ms"],
        "open_p999_ms": opened["p999_ms"],
        "generator_stall_p99_ms": opened["stall_ms"],
    }


@contextmanager
def decided_so_far(settings: Settings) -> Iterator[Callable[[], int]]:
    """What says how many records the decisions topic has. One connection: to make one for each question costs the machine that is measured."""
    consumer = Consumer(librdkafka(settings) | {"group.id": "bench", "enable.auto.commit": False})
    try:
        places = [TopicPartition(DECISIONS.name, p) for p in consumer.list_topics(DECISIONS.name, timeout=10).topics[DECISIONS.name].partitions]
        yield lambda: sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
    finally:
        consumer.close()


def worked_off(stack: Stack, count: int, app: str) -> float:
    """Decisions a second of `count` more, from the first that is seen to the last look at which there are some to come."""
    with decided_so_far(stack.settings) as decided:
        before = decided()
        stack.part(app).start()
        while (first := decided()) == before:
            time.sleep(0.05)
        began = time.perf_counter()
        last, seconds = first, 0.0
        while (now := decided()) < before + count:
            last, seconds = now, time.perf_counter() - began
            time.sleep(0.3)
    return (last - first) / seconds


def score(settings: Settings, count: int) -> dict[str, float]:
    """One `score` worker on real Kafka with a backlog of `count` transactions, after a first one as long: by then the broker's code is compiled."""
    history = Payments("s")
    with running(settings.changed(http_port=0, unknown_account="hold"), broker_name="real", apps=("score",)) as stack:
        for _ in range(2):
            stack.part("score").stop()
            fed(stack.settings, history.more(count))
            per_s = worked_off(stack, count, "score")
            cpu = sum(psutil.Process(stack.part("score").pid).cpu_times()[:2])
        stack.part("score").stop()
        limit = idle(stack.settings, count)
    return {
        "score_per_s": per_s,
        "score_transactions": count,
        "score_cpu_us": cpu / count * 1e6,
        "score_limit_per_s": limit,
        "score_over_limit": per_s / limit,
    }


def idle(settings: Settings, count: int) -> float:
    """Records/s of an app on the same harness and backlog that decides nothing."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")} | settings.as_environ() | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.bench.idle_app", str(count)]
    ran = subprocess.run(command, capture_output=True, cwd=ROOT, env=environ, timeout=120, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stderr.decode())
    return float(ran.stdout)


def walk(argv: list[str], settings: Settings) -> int:
    """`holdfast bench walk [--seconds S] [--count N] [--json]`: exit status 0 if each figure holds."""
    parser = argparse.ArgumentParser(prog="holdfast bench walk", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="length of each HTTP part")
    parser.add_argument("--count", type=int, default=40_000, help="transactions in the topic's backlog")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    parser.add_argument("--registry", type=Path, metavar="DIR", help="whose champion decides (default: a first model is trained)")
    args = parser.parse_args(argv)
    from streams.lab import ensure_champion

    figures: dict[str, float] = {}
    with scratch() as folder:
        registry = args.registry or folder / "registry"
        settings = settings.changed(model_key=settings.model_key or "be" * 32, data_dir=folder, registry_dir=registry)
        ensure_champion(settings, lambda text: print(text, file=sys.stderr))
        figures |= http(settings.changed(data_dir=folder / "http", registry_dir=registry), args.seconds)
        figures |= score(settings.changed(data_dir=folder / "score", registry_dir=registry), args.count)
    holds = (
        figures["http_per_s"] >= HTTP_PER_S_MIN
        and figures["open_p99_ms"] < P99_MS_MAX
        and figures["score_per_s"] >= SCORE_PER_S_MIN
        and not figures["http_failed"]
    )
    print(f"HTTP, closed loop, 32 connections   {figures['http_per_s']:>10,.0f} /s   at least {HTTP_PER_S_MIN:,}")
    print(f"  same server, /health              {figures['http_limit_per_s']:>10,.0f} /s   ratio {figures['http_over_limit']:.2f}")
    print(f"HTTP, open loop at {OPEN_RATE}/s           p99 {figures['open_p99_ms']:>6.2f} ms   less than {P99_MS_MAX}")
    print(f"score on real Kafka, one worker     {figures['score_per_s']:>10,.0f} /s   at least {SCORE_PER_S_MIN:,}")
    print(f"  same harness, an app that idles   {figures['score_limit_per_s']:>10,.0f} /s   ratio {figures['score_over_limit']:.2f}")
    print("holds" if holds else "does NOT hold")
    if args.json:
        print(json.dumps(figures | {"holds": holds}))
    return 0 if holds else 1
