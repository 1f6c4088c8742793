"""What metrics, tracing and logs cost the HTTP door: two services on one core, with all of them and with none, in alternating turns."""

from __future__ import annotations

import contextlib
import statistics
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence

import msgspec
import psutil

from schemas.transaction import Transaction
from streams.clock import clock_ms
from streams.settings import Settings
from streams.stack import Stack
from tests.bench.walk import Payments, load, pinned
from tests.collector import Collector

SHARE = 0.01
SCRAPED_EVERY_S = 1.0
BLOCKED_EVERY = 20
"""One payment in so many is by a card that is much too busy: it is blocked, and a line of the log."""
CONNECTIONS = 64
PER_S_MAX = 8_000
"""No faster is either asked."""


def traced(settings: Settings, collector: Collector) -> Settings:
    """The settings with traces to the collector."""
    return settings.changed(trace_endpoint=collector.url, trace_share=SHARE, log_level="info")


def payments(plain: Sequence[Transaction], prefix: str) -> list[bytes]:
    """These by cards that no other lot has, of which one in `BLOCKED_EVERY` is blocked."""
    now_ms = clock_ms()
    made = [_of_its_own(txn, prefix) for txn in plain]
    made[::BLOCKED_EVERY] = [_busy(txn, prefix, now_ms) for txn in made[::BLOCKED_EVERY]]
    return [msgspec.json.encode(txn) for txn in made]


def _of_its_own(txn: Transaction, lot: str) -> Transaction:
    device = None if txn.device_token is None else f"dev_k1_{lot}{txn.account_id}"
    own = f"{lot}{txn.account_id}"
    return msgspec.structs.replace(txn, account_id=own, customer_id=own, card_token=f"crd_k1_{own}", device_token=device)


def _busy(txn: Transaction, lot: str, now_ms: int) -> Transaction:
    return msgspec.structs.replace(txn, card_token=f"crd_k1_{lot}busy", at_ms=now_ms)


@contextlib.contextmanager
def scraped(url: str) -> Iterator[None]:
    """Prometheus asks meanwhile."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(SCRAPED_EVERY_S):
            with urllib.request.urlopen(url, timeout=5) as answer:
                answer.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    yield
    ended.set()
    thread.join()


def observed(stack: Stack, collector: Collector, history: Payments, turns: int, seconds: float) -> dict[str, float]:
    """The cost in processor time of a request and in capacity, as the median over pairs of turns; what was told meanwhile. `history`: what is paid.

    Both services are started for it, one after the other, and have served as much: an older one has more to forget.
    """
    whole = stack.settings
    with_all = stack.start_another("authorize", 2)
    stack.settings = whole.changed(trace_endpoint="", log_level="error")
    with_none = stack.start_another("authorize", 3, lambda _: (sys.executable, "-P", "-m", "tests.bench.unobserved"))
    stack.settings = whole
    stack.wait_ready(("authorize-2", "authorize-3"), 180)
    watched, blind = (psutil.Process(stack.part(name).pid) for name in ("authorize-2", "authorize-3"))
    for process in (watched, blind):
        pinned(process.pid)
    ports = {watched.pid: with_all.http_port, blind.pid: with_none.http_port}
    log = whole.data_dir / "logs" / "authorize-2.log"
    lines, traces, lot = log.read_bytes().count(b"\n"), collector.traces, 0

    def turn(process: psutil.Process, long_s: float) -> tuple[float, float]:
        nonlocal lot
        lot += 1
        bodies = payments(history.more(int(PER_S_MAX * long_s)), f"o{lot}-")
        before = sum(process.cpu_times()[:2])
        said = load(ports[process.pid], bodies, "--connections", str(CONNECTIONS), "--seconds", str(long_s), api_key=whole.api_key)
        return said["per_s"], (sum(process.cpu_times()[:2]) - before) / said["count"] * 1e6

    for process in (watched, blind):
        turn(process, 3.0)  # warm
    capacity, cpu_us = list[float](), list[tuple[float, float]]()
    for number in range(turns):
        pair = {}
        for process in (watched, blind) if number % 2 else (blind, watched):
            with scraped(f"http://{with_all.metrics_host}:{with_all.metrics_port}/metrics") if process is watched else contextlib.nullcontext():
                pair[process.pid] = turn(process, seconds)
        capacity.append(pair[blind.pid][0] / pair[watched.pid][0])
        cpu_us.append((pair[watched.pid][1], pair[blind.pid][1]))
    return {
        "cpu_over_none": statistics.median(one / none for one, none in cpu_us),
        "capacity_of_none_over": statistics.median(capacity),
        "cpu_us": statistics.median(one for one, _ in cpu_us),
        "cpu_us_none": statistics.median(none for _, none in cpu_us),
        "traces": float(collector.traces - traces),
        "lines": float(log.read_bytes().count(b"\n") - lines),
        "turns": float(turns),
    }
