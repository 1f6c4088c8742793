"""`holdfast bench parity`: mixed payments through two services and two workers at once, and then every vector computed again.

Real Kafka, and one real Redis or (`--cluster`) three masters. Half of the payments come by HTTP, half by topic; 5 % come twice (by any door),
5 % are up to five days late; account events, labels, new states of accounts and cluster values run beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import queue
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
from confluent_kafka import Producer

from features.catalogue import CATALOGUE
from features.wire import Wire
from models.cluster import COLUMNS
from schemas.account import AccountEvent, AccountEventKind, AccountState
from schemas.avro import encode
from schemas.label import Label, LabelSource
from schemas.record import Record
from schemas.topics import ACCOUNT_EVENTS, ACCOUNTS, DECISIONS, LABELS, TRANSACTIONS, Topic
from schemas.transaction import BehaviouralSession, Fingerprint, Transaction, TransactionKind
from streams.bus import KafkaBus, committed_offsets, end_offsets
from streams.clock import clock_ms
from streams.cluster import KNOWN, make_known
from streams.lab import ensure_champion
from streams.parity import Parity, check_features
from streams.settings import Settings
from streams.stack import Stack, run_app, running
from tests.bench.load import asking

APPS = ("authorize", "score", "hold", "tally")
DAY_MS = 86_400_000
SPAN_MS = 20 * DAY_MS
CLIENTS = 4
"""Connections to each service, each with one request under way."""
READY_S, WORKED_OFF_S = 120.0, 600.0
_KINDS = (*TransactionKind,)
_COUNTRIES = ("DE", "DE", "DE", "FR", "NL", "US")


class Traffic:
    """`count` payments, the same for the same name, and what happens beside them."""

    def __init__(self, count: int, name: str, now_ms: int) -> None:
        self.chance, self.name, self.now_ms, self.count = random.Random(name), name, now_ms, count
        self.accounts = max(20, count // 40)
        self.payments = [self.payment(i) for i in range(count)]

    def account(self) -> int:
        """Any account; each twentieth time one of five that are busier than a log is long."""
        return self.chance.randrange(5) if self.chance.random() < 0.05 else self.chance.randrange(self.accounts)

    def at_ms(self, i: int) -> int:
        """When the i-th thing happened: in order, 5 % up to five days late."""
        late = self.chance.randrange(5 * DAY_MS) if self.chance.random() < 0.05 else 0
        return self.now_ms - (self.count - i) * SPAN_MS // self.count - late

    def payment(self, i: int) -> Transaction:
        """The i-th: any kind, any of the fields given or not."""
        chance, who = self.chance, self.account()
        given = chance.random
        place = chance.randrange(900)
        return Transaction(
            transaction_id=f"{self.name}-{i:07d}",
            kind=chance.choice(_KINDS),
            at_ms=self.at_ms(i),
            amount_minor=chance.choice((199, 499, 999, 4_990)) if given() < 0.3 else chance.randrange(1, 90_000),
            currency="EUR",
            account_id=f"acc{who}",
            customer_id=f"cus{who // 2}",
            card_token=f"crd_k1_{who}" if given() < 0.8 else None,
            card_bin=f"{400000 + who % 40}" if given() < 0.8 else None,
            card_country=chance.choice(_COUNTRIES) if given() < 0.8 else None,
            device_token=f"dev_k1_{who + chance.randrange(3)}" if given() < 0.6 else None,
            email_token=f"eml_k1_{who // 3}" if given() < 0.5 else None,
            phone_token=f"phn_k1_{who // 3}" if given() < 0.3 else None,
            address_token=f"adr_k1_{who // 4}" if given() < 0.3 else None,
            counterparty_account_id=f"acc{self.account()}" if given() < 0.3 else None,
            merchant_id=f"mer{place}" if given() < 0.8 else None,
            mcc=chance.choice(("5411", "5732", "7995", "4829")) if given() < 0.8 else None,
            terminal_id=f"ter{place}" if given() < 0.4 else None,
            country=chance.choice(_COUNTRIES) if given() < 0.8 else None,
            latitude=(lat := chance.uniform(45, 55) if given() < 0.4 else None),
            longitude=None if lat is None else chance.uniform(5, 15),
            ip=f"10.0.{who % 50}.{chance.randrange(4)}" if given() < 0.6 else None,
            ip_country=chance.choice(_COUNTRIES) if given() < 0.5 else None,
            ip_proxy=chance.choice((None, True, False)),
            session=BehaviouralSession(keystroke_dwell_ms=chance.uniform(50, 150), keystroke_flight_ms=chance.uniform(50, 250), session_age_s=9.5)
            if given() < 0.4
            else None,
            fingerprint=Fingerprint(os=f"os{chance.randrange(3)}", browser=f"b{chance.randrange(4)}", emulator=chance.choice((None, True, False)))
            if given() < 0.4
            else None,
        )

    def arrivals(self) -> Iterator[tuple[Transaction, bool]]:
        """Payments as they come, and whether by HTTP; 5 % once more, within the next two hundred, by any door."""
        again: dict[int, list[Transaction]] = {}
        for i, txn in enumerate(self.payments):
            yield txn, self.chance.random() < 0.5
            if self.chance.random() < 0.05:
                again.setdefault(i + self.chance.randrange(200), []).append(txn)
            for repeat in again.pop(i, ()):
                yield repeat, self.chance.random() < 0.5

    def states(self, as_of_ms: int) -> list[AccountState]:
        """What the bank says of nine accounts in ten."""
        return [
            AccountState(
                account_id=f"acc{who}",
                currency="EUR",
                balance_minor=self.chance.randrange(10_000_000),
                credit_limit_minor=self.chance.randrange(500_000),
                as_of_ms=as_of_ms,
                opened_at_ms=self.now_ms - self.chance.randrange(2_000) * DAY_MS,
                home_country=self.chance.choice((None, *_COUNTRIES)),
            )
            for who in range(self.accounts)
            if who % 10
        ]

    def event(self, i: int) -> AccountEvent:
        """Something that happened to an account before the i-th payment. The last ones share an id, as a careless sender's do."""
        who = self.account()
        return AccountEvent(
            event_id=f"{self.name}-e{i:07d}",
            account_id=f"acc{who}",
            kind=self.chance.choice((*AccountEventKind,)),
            at_ms=self.at_ms(i),
            customer_id=f"cus{who // 2}",
            device_token=f"dev_k1_{who + self.chance.randrange(3)}",
            counterparty_account_id=f"acc{self.account()}",
            ip_country=self.chance.choice(_COUNTRIES),
        )

    def label(self, i: int) -> Label:
        """What the bank learned of an earlier payment: fraud, most often long ago enough to have matured."""
        txn = self.payments[self.chance.randrange(i + 1)]
        return Label(
            label_id=f"{self.name}-l{i:07d}",
            transaction_id=txn.transaction_id,
            account_id=txn.account_id,
            fraud=self.chance.random() < 0.9,
            learned_at_ms=txn.at_ms + self.chance.randrange(9) * DAY_MS,
            source=LabelSource.CHARGEBACK,
            transacted_at_ms=txn.at_ms,
            merchant_id=txn.merchant_id,
            terminal_id=txn.terminal_id,
        )

    def clusters(self, as_of_ms: int) -> pa.Table:
        """What the job of clusters finds of one account in three."""
        names = [f"acc{who}" for who in range(0, self.accounts, 3)]
        values = [[float(self.chance.randrange(9)) for _ in names] for _ in COLUMNS]
        return pa.table([pa.array(names), *map(pa.array, values), pa.array([as_of_ms] * len(names))], schema=KNOWN)


class Doors:
    """The ways in: a producer, and connections to each service that take what they find in a queue."""

    def __init__(self, settings: Settings, ports: Sequence[int]) -> None:
        self._producer = Producer({"bootstrap.servers": settings.kafka_bootstrap, "acks": "all", "partitioner": "murmur2_random", "linger.ms": 5})
        self._asked: queue.Queue[bytes | None] = queue.Queue(maxsize=200)
        self._headers = asking(settings.api_key)
        self.refused: list[tuple[int, bytes]] = []
        self._threads = [threading.Thread(target=self._ask, args=(port,)) for port in ports for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def tell(self, topic: Topic, record: Record) -> None:
        """Puts a record on its topic."""
        while True:
            try:
                self._producer.produce(topic.name, encode(record), str(getattr(record, topic.key)).encode())
                break
            except BufferError:
                self._producer.poll(0.1)
        self._producer.poll(0)

    def ask(self, txn: Transaction) -> None:
        """Asks one of the services; whoever is free."""
        self._asked.put(msgspec.json.encode(txn))

    def close(self) -> None:
        """Returns when all was answered and told."""
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join()
        assert self._producer.flush(60) == 0

    def _ask(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while (body := self._asked.get()) is not None:
            while True:
                try:
                    connection.request("POST", "/v1/authorizations", body, self._headers)
                    response = connection.getresponse()
                    content = response.read()
                except (OSError, http.client.HTTPException):
                    connection.close()
                    continue
                if response.status == 200:
                    break
                self.refused.append((response.status, content))
                if response.status != 503:
                    break
        connection.close()


def know(settings: Settings, known: pa.Table) -> int:
    """Makes cluster values known as the job does."""

    async def told() -> int:
        wire = await Wire.connect(settings.redis_url)
        bus = KafkaBus(settings.changed(produce_timeout_ms=30_000), linger_ms=5)
        try:
            return await make_known(wire, CATALOGUE, known, bus)
        finally:
            await bus.close()
            await wire.close()

    return asyncio.run(told())


def sent(stack: Stack, ports: Sequence[int], traffic: Traffic) -> None:
    """Sends all of it."""
    doors, chance = Doors(stack.settings, ports), traffic.chance
    try:
        for i, (txn, by_http) in enumerate(traffic.arrivals()):
            if i % max(1, traffic.count // 3) == 0:  # three times in all
                as_of_ms = txn.at_ms - chance.randrange(DAY_MS)
                for state in traffic.states(as_of_ms):
                    doors.tell(ACCOUNTS, state)
                know(stack.settings, traffic.clusters(as_of_ms))
            if chance.random() < 0.1:
                event = traffic.event(min(i, traffic.count - 1))
                for _ in range(2 if chance.random() < 0.05 else 1):
                    doors.tell(ACCOUNT_EVENTS, event)
            if chance.random() < 0.03:
                doors.tell(LABELS, traffic.label(min(i, traffic.count - 1)))
            if by_http:
                doors.ask(txn)
            else:
                doors.tell(TRANSACTIONS, txn)
            if i % 5_000 == 4_999:
                print(f"  {i + 1:,} sent", file=sys.stderr, flush=True)
    finally:
        doors.close()
    conflicts = [refusal for refusal in doors.refused if refusal[0] != 503]
    assert not conflicts, conflicts[:3]


def worked_off(settings: Settings) -> None:
    """Returns when `score` has read all transactions and events, and `tally` all decisions and labels."""
    end = time.monotonic() + WORKED_OFF_S
    for group, topic in (("score", TRANSACTIONS), ("score", ACCOUNT_EVENTS), ("tally", DECISIONS), ("tally", LABELS)):
        while {p: high for p, (_, high) in end_offsets(settings, topic).items() if high} != {
            p: offset for p, offset in committed_offsets(settings, group, topic).items() if offset
        }:
            assert time.monotonic() < end, f"{group} does not work off {topic.name}"
            time.sleep(0.3)


@contextlib.contextmanager
def two_of_each(settings: Settings, redis_url: str | None = None) -> Iterator[tuple[Stack, tuple[int, int]]]:
    """A whole system with two services and two workers, and the services' ports; on another Redis if one is given."""
    with running(settings, broker_name="real", apps=()) as stack:
        if redis_url is not None:
            stack.settings = stack.settings.changed(redis_url=redis_url)
        stack.start_apps(APPS, run_app)
        others = [stack.start_another(app) for app in ("authorize", "score")]
        stack.wait_ready((*APPS, "authorize-2", "score-2"), READY_S)
        yield stack, (stack.settings.http_port, others[0].http_port)


def compared(settings: Settings, count: int, name: str, redis_url: str | None = None) -> tuple[Parity, dict[str, float]]:
    """Sends `count` payments through such a system and compares; how long sending and comparing took, seconds."""
    with two_of_each(settings, redis_url) as (stack, ports):
        began = time.perf_counter()
        sent(stack, ports, Traffic(count, name, clock_ms()))
        worked_off(stack.settings)
        decided_s = time.perf_counter() - began
        parity = check_features(stack.settings)
        return parity, {"decided_s": round(decided_s, 1), "checked_s": round(time.perf_counter() - began - decided_s, 1)}


def parity(argv: list[str], settings: Settings) -> int:
    """`holdfast bench parity [--count N] [--cluster] [--json]`: exit status 0 if no vector differs."""
    parser = argparse.ArgumentParser(prog="holdfast bench parity", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="payments, each counted once (default %(default)s)")
    parser.add_argument("--cluster", action="store_true", help="on a Redis Cluster of three masters")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as ending:
        folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="hf-parity-"))
        url = None
        if args.cluster:
            from tests.features.clusters import a_cluster

            url = ending.enter_context(a_cluster()).url
        own = settings.changed(data_dir=Path(folder), model_key="9a" * 32, token_key="parity", http_port=0, unknown_account="hold")
        own = own.changed(request_deadline_ms=10_000)
        ensure_champion(own, lambda text: print(text, file=sys.stderr, flush=True))
        found, took = compared(own, args.count, "p", url)
    print("\n".join(found.lines()))
    print(f"decided in {took['decided_s']} s, compared in {took['checked_s']} s")
    if args.json:
        print(json.dumps(found.figures() | took | {"count": args.count, "redis": "three masters" if args.cluster else "one"}))
    return 0 if found.agrees else 1
