"""`holdfast demo`: the whole system for a minute on embedded parts, with simulated customers and fraudsters, and whether its books agree.

A simulated history of ten days, which neither model nor policy has seen, is sent in fast motion: half of the accounts by HTTP, half
by topic, so that each account's payments stay in order. What is approved is then captured, in part captured, or reversed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from schemas.account import AccountState
from schemas.avro import decode, encode
from schemas.decision import Decision, Outcome
from schemas.errors import InvalidRecord, LogUnavailable, SettingsError
from schemas.hold import Clearing, ClearingKind
from schemas.identity import derived_id
from schemas.label import Label
from schemas.topics import ACCOUNT_EVENTS, CLEARINGS, DECISIONS, HOLDS, LABELS, LEDGER, SAR_CANDIDATES, TRANSACTIONS
from schemas.transaction import Transaction
from streams.bus import end_offsets
from streams.check import Report, agreed
from streams.clock import clock_ms
from streams.folder import with_kept_secrets
from streams.lab import ensure_champion
from streams.lag import lags
from streams.mapping import TokenKey, accounts_in, events_in, mapping_in, rows_in
from streams.replay import Happened, Line, in_order, tell_accounts
from streams.settings import Settings
from streams.simulate import simulated, written
from streams.stack import running, say_on_stderr
from streams.steps import Steps

DAYS_MIN, DAYS_MAX, CUSTOMERS_MIN = 5, 10, 40
PAYMENTS_MAX = 10_000_000
"""They are in memory before the first is sent, with some three kilobytes each."""
PAYMENTS_A_DAY = 2.2
"""A little more than a simulated customer makes, so that the whole history fits into the demo."""
FRAUD_RATE, SEED = 0.10, 4711
DAY_MS = 86_400_000
HONEST = "honest"
IN_FLIGHT_MAX = 64
TRIES = 5
CLEARED_AFTER_S = 1.5
LEAD_S = 1.0
DRAIN_S = 45.0
SHOWN_EVERY_S = 0.5
BOOKKEEPERS = ("score", "hold", "ledger", "sar")
"""The apps that the books need; the archive writes what waits when it is stopped."""


@dataclass
class Board:
    """What the demo has seen: the figures of the live table and of the summary."""

    kinds: dict[str, str]
    started: float
    sent: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    decided: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=deque)
    topics: dict[str, int] = field(default_factory=dict)
    cleared: Counter[str] = field(default_factory=Counter)
    dead_letters: int = 0
    events: int = 0
    first_decision_s: float | None = None

    def was_sent(self, txn: Transaction) -> None:
        """A payment is on its way."""
        self.sent[self.kinds[txn.transaction_id]] += 1

    def was_decided(self, decision: Decision) -> bool:
        """A decision is in the log; False if it was seen before or is none of ours."""
        kind = self.kinds.get(decision.transaction_id)
        if kind is None or decision.transaction_id in self.decided:
            return False
        self.decided.add(decision.transaction_id)
        self.outcomes[kind, str(decision.outcome)] += 1
        self.recent.append(time.monotonic())
        if self.first_decision_s is None:
            self.first_decision_s = time.monotonic() - self.started
        return True

    @property
    def rate(self) -> float:
        """Decisions a second, over the last five seconds."""
        since = time.monotonic() - 5.0
        while self.recent and self.recent[0] <= since:
            self.recent.popleft()
        return len(self.recent) / 5.0

    def quantile_ms(self, share: float) -> float | None:
        """Of the HTTP answers' times, milliseconds."""
        return float(np.quantile(self.latencies_ms, share)) if self.latencies_ms else None

    def total(self, outcome: Outcome) -> int:
        """Decisions with this outcome."""
        return sum(count for (_, each), count in self.outcomes.items() if each == outcome)


@dataclass(frozen=True)
class Cast:
    """Who takes part: payments in order, the kind of each by id, the accounts, what has been learned of the payments by now, account events."""

    payments: list[Transaction]
    kinds: dict[str, str]
    accounts: list[AccountState]
    labels: list[Label]
    events: list[Happened]


class Traffic:
    """Sends the payments at a steady rate, in the order in which they happened; account events LEAD_S earlier, to be known by then."""

    def __init__(self, who: Cast, board: Board, line: Line, settings: Settings, rate: float) -> None:
        self._payments, self._events = who.payments, deque(who.events)
        self._board, self._line, self._rate = board, line, rate
        self._url = f"{settings.http_url}/v1/authorizations"
        self._headers = {"content-type": "application/json", "authorization": f"Bearer {settings.api_key}"}
        self._room = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn: dict[str, asyncio.Task[None]] = {}

    async def run(self, seconds: float) -> None:
        """Sends for so long, or until all is sent; returns when the last answer is there."""
        began = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as client:
            for number, txn in enumerate(self._payments):
                pause_s = began + number / self._rate - time.monotonic()
                if pause_s > 0:
                    await asyncio.sleep(pause_s)
                if time.monotonic() - began > seconds:
                    break
                self._happened_until(self._payments[min(number + int(LEAD_S * self._rate), len(self._payments) - 1)].at_ms)
                self._board.was_sent(txn)
                if by_http(txn):
                    await self._ask(client, txn)
                else:
                    self._line.send(TRANSACTIONS.name, txn.account_id.encode(), encode(txn))
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _happened_until(self, at_ms: int) -> None:
        """Sends the account events up to a moment."""
        while self._events and self._events[0].at_ms <= at_ms:
            event = self._events.popleft()
            self._line.send(ACCOUNT_EVENTS.name, event.key, event.value)
            self._board.events += 1

    async def _ask(self, client: aiohttp.ClientSession, txn: Transaction) -> None:
        """Asks after the account's payment before this one was answered."""
        await self._room.acquire()
        task = asyncio.create_task(self._answered(client, txn, self._turn.get(txn.account_id)))
        self._turn[txn.account_id] = task
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    async def _answered(self, client: aiohttp.ClientSession, txn: Transaction, before: asyncio.Task[None] | None) -> None:
        """One payment by HTTP; an indefinite result is asked for again with the same id."""
        if before is not None:
            await asyncio.wait([before])
        body = msgspec.json.encode(txn)
        for attempt in range(TRIES):
            began = time.perf_counter()
            status = await self._status(client, body)
            self._board.statuses[status] += 1
            if status not in (0, 503):
                self._board.latencies_ms.append((time.perf_counter() - began) * 1000)
                return
            await asyncio.sleep(0.2 * 2**attempt)

    async def _status(self, client: aiohttp.ClientSession, body: bytes) -> int:
        try:
            async with client.post(self._url, data=body, headers=self._headers) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0


def by_http(txn: Transaction) -> bool:
    """Whether this account's payments go by HTTP: half of the accounts do."""
    return int(derived_id("evt", txn.account_id)[-1], 16) % 2 == 0


class Network:
    """The card network: some time after an approval it captures, captures in part, reverses, or forgets."""

    def __init__(self, board: Board, line: Line) -> None:
        self._board, self._line = board, line
        self._due: deque[tuple[float, Decision]] = deque()
        self._chance = random.Random(SEED)

    def approved(self, decision: Decision) -> None:
        """A hold was placed; it will be cleared a little later."""
        if decision.outcome is Outcome.APPROVE and decision.hold_id is not None:
            self._due.append((time.monotonic() + CLEARED_AFTER_S, decision))

    def clear(self) -> None:
        """Sends the clearings that are due."""
        while self._due and self._due[0][0] <= time.monotonic():
            self._clear(self._due.popleft()[1])

    def _clear(self, decision: Decision) -> None:
        kind, part = self._chance.choices([("captured", 1.0), ("captured in part", 0.6), ("reversed", 0.0), ("left open", -1.0)], (70, 8, 8, 14))[0]
        self._board.cleared[kind] += 1
        if part < 0:
            return
        clearing = Clearing(
            clearing_id=derived_id("clr", decision.transaction_id),
            transaction_id=decision.transaction_id,
            account_id=decision.account_id,
            kind=ClearingKind.CAPTURE if part else ClearingKind.REVERSAL,
            amount_minor=int(decision.held_minor * part) if part else 0,
            currency=decision.hold_currency or "",
            at_ms=clock_ms(),
        )
        self._line.send(CLEARINGS.name, decision.account_id.encode(), encode(clearing))


async def follow(line: Line, board: Board, network: Network) -> None:
    """Reads what the apps tell, and lets the network act on it, for ever."""
    while True:
        for topic, _, value in await asyncio.to_thread(line.listen, 0.2):
            if topic != DECISIONS.name:
                board.dead_letters += 1
                continue
            decision = decode(Decision, value)
            if board.was_decided(decision):
                network.approved(decision)
        network.clear()


async def count_topics(settings: Settings, board: Board) -> None:
    """Keeps count of what is in the other topics, for ever."""
    while True:
        for topic in (HOLDS, LEDGER, SAR_CANDIDATES):
            with contextlib.suppress(LogUnavailable):
                ends = await asyncio.to_thread(end_offsets, settings, topic)
                board.topics[topic.name] = sum(end for _, end in ends.values())
        await asyncio.sleep(2.0)


# What is shown.


def table_of(board: Board) -> Table:
    """The live table."""
    decided = len(board.decided)
    p50, p99 = board.quantile_ms(0.5), board.quantile_ms(0.99)
    latency = "-" if p50 is None or p99 is None else f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    title = f"{board.sent.total()} sent, {decided} decided, {board.rate:.0f}/s   HTTP {latency}"
    told = "   ".join(f"{count} {name}" for name, count in board.topics.items())
    table = Table(
        title=title, caption=f"{told}   {board.events} account events   {board.dead_letters} dead letters\n{_cleared(board)}", title_justify="left"
    )
    table.add_column("kind", style="bold")
    for name in ("sent", "decided", *Outcome):
        table.add_column(str(name), justify="right")
    for kind in [HONEST, *sorted(board.sent.keys() - {HONEST})]:
        counts = [board.outcomes[kind, str(outcome)] for outcome in Outcome]
        table.add_row(kind, str(board.sent[kind]), str(sum(counts)), *(str(count) if count else "" for count in counts))
    return table


def _cleared(board: Board) -> str:
    return "holds: " + ", ".join(f"{count} {what}" for what, count in sorted(board.cleared.items())) if board.cleared else ""


def line_of(board: Board) -> str:
    """One line, for where there is no terminal."""
    outcomes = ", ".join(f"{board.total(outcome)} {outcome}" for outcome in Outcome)
    told = ", ".join(f"{count} {name}" for name, count in board.topics.items())
    return f"{board.sent.total()} sent, {len(board.decided)} decided ({outcomes}), {board.rate:.0f}/s; {told}"


async def show(board: Board, steps: Steps, live: Live | None) -> None:
    """Keeps the table or the lines going, for ever."""
    for turn in itertools.count():
        if live is not None:
            live.update(table_of(board))
        elif turn % 10 == 0:
            steps.line(line_of(board))
        await asyncio.sleep(SHOWN_EVERY_S)


# The walk through it all.


def cast(folder: Path, settings: Settings, payments: int, now_ms: int) -> Cast:
    """Simulates about so many payments that end now."""
    days = max(DAYS_MIN, min(DAYS_MAX, round(payments / (CUSTOMERS_MIN * PAYMENTS_A_DAY))))
    customers = max(CUSTOMERS_MIN, round(payments / (days * PAYMENTS_A_DAY)))
    start_ms = now_ms - days * DAY_MS
    written(simulated(np.random.default_rng(SEED), customers=customers, days=days, fraud_rate=FRAUD_RATE, start_ms=start_ms, block=SEED), folder)
    mapping, key = mapping_in(folder / "mapping.toml"), TokenKey(settings.token_key.encode(), settings.token_key_id)
    rows = list(rows_in(folder / "transactions.parquet", mapping, key, now_ms=now_ms))
    kinds = {row.label.transaction_id: row.label.fraud_kind or HONEST for row in rows if row.label}
    accounts = list(accounts_in(folder / "accounts.parquet", mapping, key, start_ms, say_on_stderr))
    labels = sorted((row.label for row in rows if row.label and row.label.learned_at_ms <= now_ms), key=lambda label: label.learned_at_ms)
    happened = in_order(events_in(folder / "account_events.parquet", mapping, key, now_ms=now_ms), say_on_stderr)
    return Cast([row.content for row in rows if not isinstance(row.content, InvalidRecord)], kinds, accounts, labels, happened)


def _drained(settings: Settings, apps: Sequence[str], timeout_s: float, steps: Steps) -> bool:
    """Waits until these apps have followed all there is; False if they did not in time."""
    deadline = time.monotonic() + timeout_s
    with lags(settings, apps) as following:
        while True:
            with contextlib.suppress(LogUnavailable):
                behind = {app: lag.behind for app, lag in following.look().items() if lag.behind}
                if not behind:
                    return True
                steps.say("still to follow: " + ", ".join(f"{app} {count}" for app, count in behind.items()))
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)


async def _traffic(who: Cast, board: Board, line: Line, settings: Settings, args: Any, steps: Steps, live: Live | None) -> None:
    """Sends for as long as asked, then until all that was sent is decided (or for 20 s)."""
    network = Network(board, line)
    beside = [asyncio.create_task(work) for work in (follow(line, board, network), count_topics(settings, board), show(board, steps, live))]
    try:
        sending = asyncio.create_task(Traffic(who, board, line, settings, args.rate).run(args.seconds))
        await asyncio.wait([sending, *beside], return_when=asyncio.FIRST_COMPLETED)
        for task in (sending, *beside):
            if task.done():
                task.result()
        deadline = time.monotonic() + 20.0
        while len(board.decided) + board.dead_letters < board.sent.total() and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        await asyncio.sleep(CLEARED_AFTER_S + 0.5)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    line.flush()


@contextlib.contextmanager
def _live(console: Console, board: Board) -> Iterator[Live | None]:
    if not console.is_terminal:
        yield None
        return
    with Live(table_of(board), console=console, refresh_per_second=4, transient=True) as live:
        yield live


def of_its_own(settings: Settings, data_dir: Path) -> Settings:
    """The demo's settings: all its folders beneath its own, so that it never touches the models, the keys and the archive of a real system."""
    settings = settings.changed(tls_certificate_file="", tls_key_file="", http_client_ca_file="", iso8583_client_ca_file="", trace_endpoint="")
    folders = {"data_dir": data_dir, "registry_dir": Path("registry"), "archive_dir": Path("archive"), "keys_dir": Path("keys")}
    return settings.changed(**folders, unknown_account="hold", http_port=0, iso8583_port=0)


def demo(argv: list[str], settings: Settings) -> int:
    """`holdfast demo`: exit status 0 if every payment was decided and the books agree."""
    parser = argparse.ArgumentParser(prog="holdfast demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="how long payments are sent (default %(default)s)")
    parser.add_argument("--rate", type=float, default=60.0, help="payments a second (default %(default)s; the embedded broker keeps some 10,000)")
    parser.add_argument("--data", type=Path, default=settings.data_dir / "demo", metavar="DIR", help="folder (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    for name in ("seconds", "rate"):
        if not 0 < getattr(args, name) < math.inf:
            raise SettingsError(f"--{name}: {getattr(args, name):g} is not a number above 0")
    if (payments := args.seconds * args.rate) > PAYMENTS_MAX:
        raise SettingsError(f"--seconds, --rate: {payments:,.0f} payments are more than the {PAYMENTS_MAX:,} that are simulated beforehand")
    console = Console()
    steps = Steps(console)
    settings = with_kept_secrets(of_its_own(settings, args.data))
    with steps.step("a first model, trained on simulated history"):
        ensure_champion(settings, steps.say)
    with steps.step("simulating customers and fraudsters"):
        who = cast(args.data / "cast", settings, round(payments), clock_ms())
    board = Board(who.kinds, time.monotonic() - steps.elapsed_s)
    with contextlib.ExitStack() as ending:
        with steps.step("starting broker, Redis and every app"):
            stack = ending.enter_context(running(settings, broker_name="embedded", say=steps.say))
            steps.say(f"{stack.settings.http_url} takes the API key {stack.settings.api_key} while this runs")
        line = ending.enter_context(contextlib.closing(Line(stack.settings)))
        with steps.step(f"{len(who.accounts)} accounts with their balances"):
            tell_accounts(line, who.accounts)
        with _live(console, board) as live:
            asyncio.run(_traffic(who, board, line, stack.settings, args, steps, live))
        for label in who.labels:
            line.send(LABELS.name, label.account_id.encode(), encode(label))
        line.flush()
        with steps.step("letting the apps finish"):
            _drained(stack.settings, BOOKKEEPERS, DRAIN_S, steps)
        with steps.step("checking the books"):
            report = agreed(stack.settings, DRAIN_S)
        with steps.step("stopping all"):
            ending.close()
    return _summary(console, board, report, args)


def _summary(console: Console, board: Board, report: Report, args: Any) -> int:
    """Prints what happened; the exit status."""
    undecided = board.sent.total() - len(board.decided)
    console.print(table_of(board))
    console.print("\n".join(report.lines(10)), markup=False, highlight=False)
    console.print(f"first decision {board.first_decision_s or 0:.1f} s after the start; HTTP answers by status: {dict(board.statuses)}", markup=False)
    if undecided:
        console.print(f"{undecided} payments have no decision", markup=False)
    good = report.agrees and undecided == 0
    if args.json:
        print(json.dumps(_figures(board, report, undecided)))
    return 0 if good else 1


def _figures(board: Board, report: Report, undecided: int) -> dict[str, Any]:
    """The figures of the run, for programs."""
    kinds = {
        kind: {"sent": board.sent[kind]} | {str(outcome): board.outcomes[kind, str(outcome)] for outcome in Outcome} for kind in sorted(board.sent)
    }
    return {
        "sent": board.sent.total(),
        "decided": len(board.decided),
        "undecided": undecided,
        "kinds": kinds,
        "first_decision_s": board.first_decision_s,
        "http_p50_ms": board.quantile_ms(0.5),
        "http_p99_ms": board.quantile_ms(0.99),
        "http_statuses": {str(status): count for status, count in board.statuses.items()},
        "cleared": dict(board.cleared),
        "account_events_sent": board.events,
        "not_applied": board.dead_letters,
        "books": report.figures(),
    }
