"""Real Kafka and Redis for the tests of this folder, once; topics of its own and worker processes for each test."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from schemas.avro import decode, encode
from schemas.dead_letter import DeadLetter
from schemas.hold import Clearing, ClearingKind, HoldEvent
from schemas.topics import CLEARINGS, DEAD_LETTERS, HOLDS, Topic
from streams import kafka
from streams.bus import KafkaBus, Message, read_topic
from streams.ready import is_ready
from streams.settings import Settings, librdkafka
from streams.stack import running

ROOT = Path(__file__).resolve().parents[2]
NO_LETTER = b"no letter"
"""What a test puts among the dead letters that all tests share."""


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings that reach a real Kafka and a real Redis."""
    with running(Settings(data_dir=tmp_path_factory.mktemp("real"), http_port=0), broker_name="real", apps=()) as stack:
        yield stack.settings


@dataclass
class Bench:
    """A topic of one test's own, and worker processes that follow it under a name of their own."""

    settings: Settings
    topic: Topic
    name: str
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _kept: dict[str, list[Message]] = field(default_factory=dict)

    def tell(self, *ids: str, accounts: int = 20) -> None:
        """Puts a clearing with each of these ids into the topic, spread over accounts."""
        self.tell_bytes(*((f"a{i % accounts}", encode(a_clearing(f"{self.name}.{name}", f"a{i % accounts}"))) for i, name in enumerate(ids)))

    def tell_bytes(self, *keyed: tuple[str, bytes]) -> None:
        """Puts these keys and values into the topic."""

        async def told() -> None:
            bus = KafkaBus(self.settings.changed(produce_timeout_ms=20_000), linger_ms=1)
            await asyncio.gather(*(bus.tell(self.topic, key, value) for key, value in keyed))
            await bus.close()

        asyncio.run(told())

    def start(self, kind: str, ready: bool = True) -> subprocess.Popen[bytes]:
        """A worker process of `tests/streams/workers.py`."""
        log = (self.settings.data_dir / "worker.log").open("ab")
        environ = {**os.environ, **self.settings.as_environ(), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.streams.workers", kind, self.topic.name, self.name]
        worker = subprocess.Popen(command, env=environ, stderr=log, stdout=log, cwd=ROOT)
        log.close()
        self.workers.append(worker)
        if ready:
            self.until(lambda: is_ready(self.settings, self.name, worker.pid) or worker.poll() is not None)
        return worker

    def until(self, holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Waits for something that will be so."""
        end = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end, f"not within {timeout_s} s; the worker says:\n{self.said[-3000:]}"
            time.sleep(0.05)

    @property
    def said(self) -> str:
        """The workers' logs."""
        return (self.settings.data_dir / "worker.log").read_text()

    @property
    def written(self) -> list[str]:
        """The ids of the clearings of this test that became hold events, as often as they did."""
        events = (decode(HoldEvent, m.value) for m in self._read(HOLDS))
        return [event.transaction_id.partition(".")[2] for event in events if event.transaction_id.startswith(f"{self.name}.")]

    @property
    def dead(self) -> list[DeadLetter]:
        """The dead letters of this test."""
        letters = (decode(DeadLetter, m.value) for m in self._read(DEAD_LETTERS) if m.value != NO_LETTER)
        return [letter for letter in letters if letter.app == self.name]

    def _read(self, topic: Topic) -> list[Message]:
        """What a topic holds beyond what this bench found in it: asked over and over, it reads each record once."""
        kept = self._kept.setdefault(topic.name, [])
        start = {m.partition: m.offset + 1 for m in kept}
        kept += [m for batch in read_topic(self.settings, topic, start) for m in batch]
        return kept

    def close(self) -> None:
        """Ends the workers."""
        for worker in self.workers:
            worker.kill()
            worker.wait()


def messages(settings: Settings, topic: Topic) -> list[Message]:
    """All that a topic holds."""
    return [message for batch in read_topic(settings, topic) for message in batch]


def a_clearing(clearing_id: str, account_id: str) -> Clearing:
    """A capture of one euro."""
    return Clearing(
        clearing_id=clearing_id,
        transaction_id=clearing_id,
        account_id=account_id,
        kind=ClearingKind.CAPTURE,
        amount_minor=100,
        currency="EUR",
        at_ms=1,
    )


@pytest.fixture
def bench(real: Settings, tmp_path: Path) -> Iterator[Bench]:
    """A bench of this test's own."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    settings = real.changed(data_dir=tmp_path, watchdog_s=10)
    topic = CLEARINGS._replace(name=f"clearings_{name}")
    kafka.ensure_topics(settings, 1, topics=[topic])
    made = Bench(settings, topic, name)
    yield made
    made.close()


def committed(bench: Bench) -> int:
    """The sum of the offsets that the bench's group has committed."""
    asker = Consumer(librdkafka(bench.settings) | {"group.id": bench.name})
    try:
        places = [TopicPartition(bench.topic.name, number) for number in range(bench.topic.partitions)]
        return sum(max(0, place.offset) for place in asker.committed(places, timeout=10))
    finally:
        asker.close()


def forget_offsets(bench: Bench) -> None:
    """Takes the group back to the beginning, as a commit that got lost would."""
    asker = Consumer(librdkafka(bench.settings) | {"group.id": bench.name})
    asker.commit(offsets=[TopicPartition(bench.topic.name, number, 0) for number in range(bench.topic.partitions)], asynchronous=False)
    asker.close()
