"""The control topic: telling which model or policy decides from now on, and following what was told."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

from confluent_kafka import KafkaException, TopicPartition

from models.governance import deciding
from models.registry import Registry
from schemas.avro import decode, encode
from schemas.errors import HoldfastError, InvalidRecord, LogUnavailable, Unavailable
from schemas.governance import Control, Kind
from schemas.record import Record
from schemas.topics import CONTROL, Topic
from streams import journal
from streams.bus import Bus, KafkaBus, patient, read_topic, reader
from streams.settings import Settings

Told = dict[str, Control]
"""The newest event of each place (`Control.place`)."""
QUERY_S = 2.0
HEAR_S, REACH_S, WAIT_S = 0.5, 1.0, 1.0
T = TypeVar("T")
R = TypeVar("R", bound=Record)


def newest(told: Told, events: Iterable[Control]) -> Told:
    """What stands after these events, in the order of the log. Of two about one line of history the later stands: a breaker's after a promotion.

    An event about an earlier line than one that is known came late, and changes nothing; of one that was told twice the first stands.
    """
    stands = dict(told)
    for event in events:
        known = stands.get(event.place)
        if known is None or (event.number >= known.number and not same(event, known)):
            stands[event.place] = event
    return stands


def same(event: Control, other: Control | None) -> bool:
    """Whether two processes told the same: each with the figures that it had seen."""
    return other is not None and (event.control_id, event.number) == (other.control_id, other.number)


async def tell(bus: Bus, event: Control) -> None:
    """Puts an event on the topic. LogUnavailable where the log does not acknowledge it."""
    await bus.tell(CONTROL, event.place, encode(event))


def told_once(settings: Settings, event: Control) -> None:
    """The same from a command, which has no loop and no bus. What librdkafka says of a log that is not there is said by whoever asked."""
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL)
    if not _answers(settings):
        raise LogUnavailable(f"nobody answers at {settings.kafka_bootstrap}")

    async def once() -> None:
        bus = KafkaBus(patient(settings))
        try:
            await tell(bus, event)
        finally:
            await bus.close()

    asyncio.run(once())


def told_so_far(settings: Settings) -> Told:
    """What stands on the topic now, for a command; nothing where no log answers."""
    try:
        heard = read_topic(settings, CONTROL) if _answers(settings) else iter(())
        return newest({}, (event for batch in heard for message in batch if (event := _read(CONTROL, Control, message.value))))
    except (Unavailable, KafkaException):
        return {}


def _answers(settings: Settings) -> bool:
    """Whether any of the brokers takes a connection: a command does not wait for those that are not there."""
    for address in settings.kafka_bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        with suppress(OSError, ValueError):
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
            return True
    return False


class Ear(Generic[R]):
    """Follows a topic from its beginning (it is compacted), in no group: every process hears every event. Not safe to use from two threads."""

    def __init__(self, settings: Settings, topic: Topic, kind: type[R], start: Mapping[int, int] | None = None) -> None:
        """`start`: by partition the offset from which on it is to be heard, where what is before is known."""
        self._topic, self._kind, self._start = topic, kind, start or {}
        self._consumer: Any = reader(settings)
        self._listening = False

    def heard(self, wait_s: float) -> list[R]:
        """What was told since the last call; waits so long for the first. Nothing while the log does not answer, or has no such topic yet."""
        try:
            if not self._listening and not self._begin():
                return []
            heard = [_read(self._topic, self._kind, m.value()) for m in self._consumer.consume(100, timeout=wait_s) if m.error() is None]
            return [event for event in heard if event is not None]
        except (KafkaException, RuntimeError):
            return []

    def close(self) -> None:
        """Lets the log go."""
        self._consumer.close()

    def _begin(self) -> bool:
        name = self._topic.name
        there = self._consumer.list_topics(name, timeout=QUERY_S).topics[name]
        if there.error is not None or not there.partitions:
            return False
        self._consumer.assign([TopicPartition(name, p, self._start.get(p, 0)) for p in there.partitions])
        self._listening = True
        return True


class Standing:
    """Who decides now, for an app that asks every few seconds: by the registry's history, and what the topic says beyond it."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry = registry
        self._ear = Ear(settings, CONTROL, Control)
        self._told: Told = {}

    def item_id(self, kind: Kind) -> str | None:
        """The id of the one that decides; None: none was promoted."""
        self._told = newest(self._told, self._ear.heard(HEAR_S))
        return deciding(self.registry.inventory(), kind, self._told.get(kind))

    def close(self) -> None:
        """Lets the log go."""
        self._ear.close()


async def waited_for(what: str, get: Callable[[], T]) -> T:
    """What `get`, in a thread, finds to decide by, when it does; why it does not is said once: who cannot decide is not ready, but not broken."""
    said = ""
    while True:
        try:
            return await asyncio.to_thread(get)
        except (HoldfastError, OSError) as error:
            if str(error) != said:
                said = str(error)
                journal.logger().error(f"waiting for {what} that can be used", reason=said)
        await asyncio.sleep(WAIT_S)


def _read(topic: Topic, kind: type[R], value: bytes | None) -> R | None:
    try:
        return decode(kind, value)
    except InvalidRecord as error:
        journal.logger().error("a record cannot be read", topic=topic.name, reason=str(error))
        return None
