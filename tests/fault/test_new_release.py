"""A release with rows that need another memory takes over from the one before, on real Kafka and Redis, while payments are decided."""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer

from features.backfill import backfill
from features.columns import columns_of
from features.memory import DictMemory
from features.tally import Verdicts, learned_in_turn
from models.policy import policy_from_toml
from models.registry import Registry, default_policy_text
from models.train import train
from schemas.account import AccountEvent, AccountEventKind, RememberedEvent
from schemas.avro import decode, encode
from schemas.decision import Decision
from schemas.governance import Kind
from schemas.label import Label
from schemas.topics import ACCOUNT_EVENTS, DECISIONS, LABELS, REMEMBERED_EVENTS
from schemas.transaction import Transaction
from streams.bus import end_offsets, read_topic
from streams.clock import clock_ms
from streams.folder import keys_of
from streams.governance import brought_up
from streams.load import QUIET_MS, connected_to, ends_now
from streams.loaded import filled, not_kept
from streams.parity import Topics, features_compared
from streams.rebuild import Tallied
from streams.settings import Settings
from streams.stack import Stack
from streams.tally import gather_decision, gather_lessons
from tests.bench.load import asking
from tests.fault.next_release import BESIDE, NEW, NEXT
from tests.fault.test_kill import at_rest, events_remembered, remembered, settled
from tests.first_model import MODEL_KEY
from tests.world import a_transaction, examples_of, quick

pytestmark = pytest.mark.integration

PROGRAM = str(Path(__file__).with_name("next_release.py"))
NAMES = ",".join(row.name for row in NEW)
PEOPLE = 40
CLIENTS = 4
ROUNDS = 4


def next_app(name: str) -> tuple[str, ...]:
    """How an app of the next release is started."""
    return (sys.executable, PROGRAM, "run", name)


def promoted(stack: Stack) -> None:
    """A small model that the next release may decide with."""
    chance = np.random.default_rng(2)
    rows = chance.random((8_000, len(NEXT.names)))
    policy = policy_from_toml(default_policy_text()).bound(NEXT.names)
    made = train(examples_of(rows, rows[:, 0] > 0.9, np.arange(8_000), NEXT), quick(), policy, seed=1)
    registry = Registry(Path(f"{stack.settings.registry_dir}{BESIDE}"), keys_of(Settings(model_key=MODEL_KEY)))
    brought_up(registry, Kind.MODEL, registry.register(made), "the release needs one", 1)


def payment(name: str, who: int, number: int) -> Transaction:
    """One of many: card, account and address of one of some people, devices and e-mails of several."""
    return a_transaction(
        f"{name}-{number}-{who}",
        at_ms=clock_ms() - random.Random(f"{name}{number}{who}").randrange(86_400_000),
        amount_minor=100 + number,
        account_id=f"{name}-a{who}",
        card_token=f"crd_k1_{name}{who}-{number % 2}",
        device_token=f"dev_k1_{name}{who // 3}",
        merchant_id=f"{name}-m{number % 7}",
        mcc=("5411", "5732", "7995")[(number + who) % 3],
        ip=f"10.9.{who % 4}.{len(name)}",
    )


class Doors:
    """The ports that payments go to now; every answer that was not a decision is kept."""

    def __init__(self, key: str, *ports: int) -> None:
        self._headers = asking(key)
        self.ports, self.failed = ports, SimpleQueue[object]()
        self._breaths: deque[float] = deque(maxlen=1_000)
        threading.Thread(target=self._breathe, daemon=True).start()

    def all(self, payments: list[Transaction]) -> None:
        """Asks for these, some at a time; those of an account in order and by turns of the doors."""
        lanes: dict[str, list[Transaction]] = {}
        for txn in payments:
            lanes.setdefault(txn.account_id, []).append(txn)
        work: SimpleQueue[list[Transaction]] = SimpleQueue()
        for lane in lanes.values():
            work.put(lane)
        threads = [threading.Thread(target=self._work, args=(work,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, work: SimpleQueue[list[Transaction]]) -> None:
        while True:
            try:
                lane = work.get_nowait()
            except Empty:
                return
            for turn, txn in enumerate(lane):
                self._ask(self.ports[turn % len(self.ports)], txn)

    def _ask(self, port: int, txn: Transaction) -> None:
        """Once: who is refused or not answered has failed. Asked again only where this whole machine stood still meanwhile."""
        while True:
            began = time.monotonic()
            try:
                with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                    connection.request("POST", "/v1/authorizations", msgspec.json.encode(txn), self._headers)
                    response = connection.getresponse()
                    content = response.read()
                failure: object = None if response.status == 200 else (response.status, content)
            except (OSError, http.client.HTTPException) as error:
                failure = error
            if failure is None or not self.stood_still(began):
                break
        if failure is not None:
            self.failed.put((txn.transaction_id, failure))

    def stood_still(self, since_s: float) -> bool:
        """Whether nothing ran here for a second since then: a thread that does nothing else counts its own breaths."""
        breaths = [since_s, *(breath for breath in list(self._breaths) if breath > since_s), time.monotonic()]
        return max(later - earlier for earlier, later in pairwise(breaths)) > 1.0

    def _breathe(self) -> None:
        while True:
            self._breaths.append(time.monotonic())
            time.sleep(0.1)


@contextmanager
def loading(stack: Stack, place: Path) -> Iterator[Path]:
    """The command that loads, until the block ends; the file of what it says."""
    said = place / "loading.log"
    with said.open("wb") as log:
        command = [sys.executable, PROGRAM, "backfill", "--only", NAMES, "--running"]
        process = subprocess.Popen(command, env={**os.environ, **stack.settings.as_environ()}, stdout=log, stderr=log)
        try:
            yield said
            assert process.poll() is None, said.read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, said.read_text()
        finally:
            process.kill()
            process.wait()


def until(holds: Callable[[], bool], why: str, timeout_s: float = 60.0) -> None:
    """Waits for something that will be so."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, why
        time.sleep(0.05)


def is_level(stack: Stack) -> bool:
    """Whether all that the topics say was followed."""
    ends = ends_now(stack.settings)

    async def far() -> bool:
        wire = await connected_to(stack.settings)
        offsets = await filled(wire)
        await wire.close()
        return all(offsets.get(place, 0) >= end for place, end in ends.items())

    return asyncio.run(far())


def decisions_of(stack: Stack, name: str) -> list[Decision]:
    """The decisions of payments of this name, oldest first."""
    made = [decode(Decision, m.value) for batch in read_topic(stack.settings, DECISIONS) for m in batch]
    return sorted((d for d in made if d.transaction_id.startswith(f"{name}-")), key=lambda d: d.decided_at_ms)


def from_the_topics(stack: Stack) -> dict[bytes, bytes]:
    """The logs and tallies of the next release as a rebuild makes them."""
    memory, tallied, seen, decided = DictMemory(NEXT), Tallied(NEXT), set(), []
    for batch in read_topic(stack.settings, DECISIONS):
        for m in batch:
            decision = decode(Decision, m.value)
            if decision.transaction_id not in seen:
                seen.add(decision.transaction_id)
                gather_decision(NEXT, decision, m.partition, m.offset, tallied.rows)
                decided.append((decision.transaction, decision.positions, decision.declined_positions))
    verdicts: Verdicts = {}
    for batch in read_topic(stack.settings, LABELS):
        for m in batch:
            lessons = learned_in_turn(verdicts, decode(Label, m.value), m.partition, m.offset)
            gather_lessons(NEXT, lessons, m.partition, m.offset, tallied.rows)
    events = [decode(RememberedEvent, m.value) for batch in read_topic(stack.settings, REMEMBERED_EVENTS) for m in batch]
    asyncio.run(_done(memory.restore(decided, ((e.event, e.positions) for e in events))))
    asyncio.run(_done(memory.put_tallies(tallied.contents())))
    return {key.encode(): content for key, content in memory.contents.items()}


async def _done(work: object) -> None:
    await work  # type: ignore[misc]


def new_keys(stack: Stack) -> list[bytes]:
    """What the keys begin with that only the next release has."""

    async def names() -> list[bytes]:
        wire = await connected_to(stack.settings)
        missing, _ = await not_kept(wire, NEXT)
        await wire.close()
        return sorted(missing)

    return asyncio.run(names())


def tell_events(stack: Stack, name: str) -> None:
    """A login for each account, and a label for each."""
    producer = Producer({"bootstrap.servers": stack.settings.kafka_bootstrap, "acks": "all", "partitioner": "murmur2_random"})
    now_ms = clock_ms()
    for who in range(PEOPLE):
        event = AccountEvent(event_id=f"{name}-e{who}", account_id=f"{name}-a{who}", kind=AccountEventKind.LOGIN, at_ms=now_ms)
        producer.produce(ACCOUNT_EVENTS.name, encode(event), event.account_id.encode())
    assert producer.flush(30) == 0


def test_a_release_with_new_rows_takes_over_while_payments_are_decided(stack: Stack, tmp_path: Path) -> None:
    promoted(stack)
    new = new_keys(stack)
    assert sorted(name.split(b":")[::2][:2] for name in new) == [[b"log", b"account"], [b"log", b"card"], [b"tally", b"ip"]]
    doors = Doors(stack.settings.api_key, stack.settings.http_port)
    people = range(PEOPLE)
    doors.all([payment("first", who, number) for number in range(ROUNDS) for who in people])
    tell_events(stack, "first")
    events_remembered(stack, PEOPLE)
    traffic = threading.Thread(target=doors.all, args=([payment("during", who, n) for n in range(ROUNDS) for who in people],))
    traffic.start()  # the old release decides while the new one's memory is filled
    with loading(stack, tmp_path) as said:
        until(lambda: "following" in said.read_text(), "it does not catch up")
        traffic.join()
        doors.all([payment("first", who, number) for number in range(ROUNDS, ROUNDS + 2) for who in people])
        apps = ("authorize", "tally")
        own = [stack.start_another(app, 9, next_app) for app in apps]
        both = threading.Thread(target=doors.all, args=([payment("start", who, n) for n in range(ROUNDS) for who in people],))
        both.start()  # the old release decides while the new one starts
        stack.wait_ready([f"{app}-9" for app in apps], 90)
        both.join()
        until(lambda: is_level(stack), "it does not keep up")
        doors.ports = (own[0].http_port,)
        doors.all([payment(name, who, n) for name in ("first", "during", "start") for n in range(20, 22) for who in people])
        doors.ports = (stack.settings.http_port, own[0].http_port)
        doors.all([payment("both", who, n) for n in range(ROUNDS) for who in people])
        until(lambda: is_level(stack), "it does not keep up")
        assert settled(stack).agrees
    doors.ports = (stack.settings.http_port,)
    doors.all([payment("alone", who, 0) for who in range(3)])  # nobody loads any more: the new release's tally app follows
    until(lambda: is_level(stack), "it does not follow by itself")
    doors.ports = (own[0].http_port,)
    doors.all([payment("alone", who, 1) for who in range(3)])
    assert doors.failed.empty(), [doors.failed.get() for _ in range(min(5, doors.failed.qsize()))]

    time.sleep(QUIET_MS / 1000)  # the release before is gone
    with loading(stack, tmp_path) as said:
        until(lambda: "following" in said.read_text(), "it does not catch up")
        doors.all([payment("alone", who, 2) for who in range(3)])
        until(lambda: is_level(stack), "it does not keep up")
    assert "this release decides alone" in said.read_text()
    assert new_keys(stack) == [], "from now on who decides keeps them"
    columns = [NEXT.index[row.name] for row in NEW[:2]]
    for name, count in (("first", 2 * PEOPLE), ("during", 2 * PEOPLE), ("start", 2 * PEOPLE), ("alone", 6)):
        made = sorted(decisions_of(stack, name), key=lambda d: (d.account_id, d.decided_at_ms))
        served = [d for d in made if d.catalogue_id == NEXT.catalogue_id]
        assert len(served) == count
        recomputed = dict(zip((d.transaction_id for d in made), backfill(NEXT, columns_of([d.transaction for d in made])), strict=True))
        expected = np.array([recomputed[d.transaction_id] for d in served])[:, columns]
        vectors = np.array([np.frombuffer(d.vector, "<f8") for d in served])[:, columns]
        assert vectors.tobytes() == expected.tobytes(), f"the new features of {name} have the bits of a backfill over the whole history"
        assert (vectors > 0).any()

    found = features_compared(Topics(partial(read_topic, stack.settings), partial(end_offsets, stack.settings)), NEXT)
    print("\n", *found.lines(), sep="\n  ")
    assert found.agrees, found.lines()
    assert found.compared >= 2 * 3 * PEOPLE

    said_by_topics, there = from_the_topics(stack), {}
    for name in new:
        there |= remembered(stack, f"{name.decode()}*")
    there = at_rest(there, NEXT)
    mine = {key: content for key, content in said_by_topics.items() if key.startswith(tuple(new))}
    assert there.keys() == mine.keys()
    mixed = {key for key in mine if b"both" in key or (key.startswith(b"log:") and key.split(b":", 3)[3].startswith(b"both"))}
    assert {key: there[key] for key in mine if key not in mixed} == {key: mine[key] for key in mine if key not in mixed}
    for key in mixed:
        if key.startswith(b"log:"):
            size = next(layout.row_bytes for layout in NEXT.log_layouts if key.startswith(layout.key("").encode()))
            rows = [{log[at : at + size] for at in range(0, len(log), size)} for log in (there[key], mine[key])]
            assert rows[0] == rows[1], "while both decide, each row reaches the log of the other, if not in the same order"
