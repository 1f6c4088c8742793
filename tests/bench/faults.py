"""`holdfast bench faults`: Redis killed, Kafka paused, the service killed in between, under load; what hosts heard, and whether the books agree.

The load is an open loop: each payment has its moment, and is timed from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from models.registry import default_stand_in_text
from models.stand_in import stand_in_from_toml
from schemas.transaction import EntryMode, Transaction, TransactionKind
from streams.check import agreed
from streams.clock import clock_ms
from streams.settings import Settings
from streams.stack import Stack, running
from tests.bench.load import asking
from tests.bench.walk import scratch

MERCHANTS = 40
DEADLINE_MS = 1_000
(ROW, *_) = stand_in_from_toml(default_stand_in_text()).rows


class Heard(NamedTuple):
    """One answer: how long after its moment it came, its status and its bytes. Status 0: none came."""

    txn: Transaction
    seconds: float
    status: int
    body: bytes


@dataclass
class Found:
    """What became of a fault."""

    name: str
    requests: int = 0
    in_deadline: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    stand_ins: int = 0
    approved: int = 0
    above_limit: int = 0
    changed_repeats: int = 0
    slowest_ms: float = 0.0
    ended: int = 0  # times that the service ended by itself; where the fault ends it, it may not start before the log is back
    check: bool = False

    @property
    def holds(self) -> bool:
        """Whether all (some at least) were answered in time, nothing was approved above the limit, every repeat was the same, the service stood by
        itself, and the books agree."""
        sound = not (self.above_limit or self.changed_repeats or self.ended)
        return 0 < self.requests == self.in_deadline and sound and self.check

    def line(self) -> str:
        """Its row of the table."""
        statuses = " ".join(f"{status}:{count}" for status, count in sorted(self.statuses.items()))
        return (
            f"{self.name:<28} {self.requests:>7,} {self.in_deadline:>11,} {self.stand_ins:>9,} {self.approved:>8,} {self.above_limit:>11} "
            f"{self.changed_repeats:>8} {self.slowest_ms:>8,.0f} {self.ended:>6}  {'agrees' if self.check else 'DOES NOT AGREE':<14} {statuses}"
        )


HEAD = (
    f"{'broken':<28} {'asked':>7} {'in deadline':>11} {'stand-ins':>9} {'approved':>8} {'above limit':>11} "
    f"{'changed':>8} {'slowest':>8} {'ended':>6}  check"
)


def payments(count: int, prefix: str, name: str, cards: int) -> list[Transaction]:
    """Small and large payments by the cards of that name in some order, at few merchants, now."""
    chance, now_ms = random.Random(prefix), clock_ms()
    return [
        Transaction(
            transaction_id=f"{prefix}{i:07d}",
            kind=TransactionKind.CONTACTLESS,
            at_ms=now_ms,
            amount_minor=chance.choice((900, 2_400, 4_900, 5_100, 20_000)),
            currency="EUR",
            account_id=f"{name}{card}",
            card_token=f"crd_k1_{name}{card}",
            card_country="DE",
            merchant_id=f"mer{chance.randrange(MERCHANTS)}",
            mcc="5411",
            country="DE",
            entry_mode=EntryMode.CONTACTLESS,
        )
        for i in range(count)
        for card in ((i * 7919) % cards,)
    ]


class Host:
    """A host with some connections to the doors, which asks another door where one does not take its call."""

    def __init__(self, ports: Sequence[int], deadline_ms: int, api_key: str) -> None:
        self._ports, self._idle = list(ports), defaultdict[int, list[Any]](list)
        headers = asking(api_key) | {"host": "x", "holdfast-deadline-ms": str(deadline_ms)}
        self._head = "POST /v1/authorizations HTTP/1.1\r\n" + "".join([f"{name}: {value}\r\n" for name, value in headers.items()])

    async def ask(self, txn: Transaction) -> tuple[int, bytes]:
        """The answer of the first door that gives one."""
        for port in self._ports:
            try:
                return await self._on(port, self.request(txn))
            except (OSError, EOFError, ValueError):
                continue
        return 0, b""

    def request(self, txn: Transaction) -> bytes:
        """The bytes of a request."""
        body = msgspec.json.encode(txn)
        return f"{self._head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def _on(self, port: int, request: bytes) -> tuple[int, bytes]:
        idle = self._idle[port]
        while idle and idle[-1][0].at_eof():  # what the door has ended is not used again
            idle.pop()[1].close()
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r", 1)[0])
            body = await reader.readexactly(length)
        except (OSError, EOFError):
            writer.close()
            raise
        if b"connection: close" in head.lower():
            writer.close()
        else:
            idle.append((reader, writer))
        return int(head[9:12]), body

    def close(self) -> None:
        """Ends the connections."""
        for idle in self._idle.values():
            for _, writer in idle:
                writer.close()


async def under_load(host: Host, txns: Sequence[Transaction], rate: float) -> list[Heard]:
    """Asks each at its moment."""
    loop, chance, heard = asyncio.get_running_loop(), random.Random(11), list[Heard]()

    async def ask(txn: Transaction, at: float) -> None:
        status, body = await host.ask(txn)
        heard.append(Heard(txn, loop.time() - at, status, body))

    async with asyncio.TaskGroup() as tasks:
        at = loop.time()
        for txn in txns:
            at += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, at - loop.time()))
            tasks.create_task(ask(txn, at))
    return heard


def judged(name: str, heard: Sequence[Heard], deadline_s: float) -> Found:
    """The figures of what was heard. What one stand-in may approve of a card in a day is a limit for all of them."""
    found, by_card = Found(name, requests=len(heard)), defaultdict(list[int])
    for one in heard:
        found.statuses[one.status] += 1
        found.in_deadline += one.status in (200, 503) and one.seconds <= deadline_s
        found.slowest_ms = max(found.slowest_ms, one.seconds * 1000)
        answer = msgspec.json.decode(one.body) if one.status == 200 else {}
        if not answer.get("stand_in"):
            continue
        found.stand_ins += 1
        if answer["outcome"] == "approve":
            found.approved += 1
            by_card[one.txn.card_token].append(one.txn.amount_minor)
            found.above_limit += one.txn.amount_minor > ROW.amount_max_minor
    for amounts in by_card.values():
        found.above_limit += len(amounts) > ROW.card_day_count_max or sum(amounts) > ROW.card_day_max_minor
    return found


Break = Callable[[Stack, float], None]


def redis_killed(stack: Stack, seconds: float) -> None:
    """Redis is killed, comes back, and so again."""
    for _ in range(2):
        stack.part("redis").kill9()
        time.sleep(seconds / 2)


def redis_paused(stack: Stack, seconds: float) -> None:
    """Redis stands still."""
    _paused(stack, "redis", seconds)


def kafka_paused(stack: Stack, seconds: float) -> None:
    """The broker stands still."""
    _paused(stack, stack.brokers[0], seconds)


def kafka_paused_service_killed(stack: Stack, seconds: float) -> None:
    """The broker stands still, and in the middle of it the service is killed."""
    pid = stack.part(stack.brokers[0]).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds * 0.6)
        stack.part("authorize").kill9()
        time.sleep(seconds * 0.4)
    finally:
        os.kill(pid, signal.SIGCONT)


def _paused(stack: Stack, part: str, seconds: float) -> None:
    pid = stack.part(part).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


FAULTS: dict[str, Break] = {
    "redis killed": redis_killed,
    "redis paused": redis_paused,
    "kafka paused": kafka_paused,
    "kafka paused, service killed": kafka_paused_service_killed,
}


def broken(stack: Stack, name: str, seconds: float, rate: float, deadline_ms: int, tag: str) -> Found:
    """One fault, for so many seconds of a load that begins before and ends after it; then repeats of a part, and the check."""

    async def play() -> Found:
        host, ended = Host([stack.settings.http_port], deadline_ms, stack.settings.api_key), stack.part("authorize").restarts
        txns = payments(int(rate * (seconds + 2)), tag, tag, cards := max(100, int(rate * seconds / 2)))
        await under_load(host, payments(cards, f"{tag}w", tag, cards), max(rate, 60))  # cards and merchants become known
        breaking = asyncio.get_running_loop().run_in_executor(None, lambda: (time.sleep(1), FAULTS[name](stack, seconds)))
        heard = await under_load(host, txns, rate)
        await breaking
        await asyncio.to_thread(stack.wait_ready, ["redis", "authorize"], 60)
        killed = FAULTS[name] is kafka_paused_service_killed
        found = judged(name, [one for one in heard if one.status or not killed], deadline_ms / 1000)
        for one in [one for one in heard if one.status == 200][:: max(1, len(heard) // 200)]:
            found.changed_repeats += await first_again(host, one) != one.body
        host.close()
        found.ended = 0 if killed else stack.part("authorize").restarts - ended
        return found

    found = asyncio.run(play())
    report = agreed(stack.settings, 60)
    found.check = report.agrees
    if not report.agrees:
        print(*report.lines(10), sep="\n", file=sys.stderr)
    return found


async def first_again(host: Host, one: Heard) -> bytes:
    """What a repeat gets, once somebody answers it."""
    for _ in range(100):
        status, body = await host.ask(one.txn)
        if status == 200:
            return body
        await asyncio.sleep(0.1)
    return b""


def faults(argv: list[str], settings: Settings) -> int:
    """`holdfast bench faults [--seconds S] [--rate R] [--only NAME] [--json]`: exit status 0 if every row holds."""
    parser = argparse.ArgumentParser(prog="holdfast bench faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long each part is broken")
    parser.add_argument("--rate", type=float, default=200, help="payments a second")
    parser.add_argument("--only", choices=FAULTS, action="append", help="this fault alone; may be given again")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    args = parser.parse_args(argv)
    from streams.lab import ensure_champion

    rows = []
    with scratch() as folder:
        own = settings.changed(model_key="be" * 32, data_dir=folder, http_port=0, unknown_account="hold", request_deadline_ms=DEADLINE_MS)
        ensure_champion(own, lambda text: print(text, file=sys.stderr))
        with running(own, broker_name="real", apps=("authorize", "hold", "ledger")) as stack:
            for number, name in enumerate(args.only or FAULTS):
                rows.append(broken(stack, name, args.seconds, args.rate, DEADLINE_MS, f"f{number}-"))
    print(HEAD, *[row.line() for row in rows], sep="\n")
    holds = all(row.holds for row in rows)
    print("holds" if holds else "does NOT hold")
    if args.json:
        print(json.dumps({"rows": [msgspec.to_builtins(row) | {"holds": row.holds} for row in rows], "holds": holds}))
    return 0 if holds else 1
