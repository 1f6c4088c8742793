"""The control topic: telling which model or policy decides from now on, and following what was told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from confluent_kafka import KafkaException, TopicPartition

from schemas.avro import decode, encode
from schemas.errors import InvalidRecord
from schemas.governance import Control, Kind
from schemas.topics import CONTROL
from streams import journal
from streams.bus import Bus, KafkaBus, reader
from streams.settings import Settings

Told = dict[Kind, Control]
"""The newest event of each kind."""
QUERY_S = 2.0


def newest(told: Told, events: Iterable[Control]) -> Told:
    """What stands after these events, in the order of the log. Of two about one line of history the later stands: a breaker's after a promotion.

    An event about an earlier line than one that is known came late, and changes nothing.
    """
    stands = dict(told)
    for event in events:
        if event.kind not in stands or event.number >= stands[event.kind].number:
            stands[event.kind] = event
    return stands


async def tell(bus: Bus, event: Control) -> None:
    """Puts an event on the topic. LogUnavailable where the log does not acknowledge it."""
    await bus.tell(CONTROL, event.kind, encode(event))


def told_once(settings: Settings, event: Control) -> None:
    """The same from a command, which has no loop and no bus."""

    async def once() -> None:
        bus = KafkaBus(settings)
        try:
            await tell(bus, event)
        finally:
            await bus.close()

    asyncio.run(once())


class Ear:
    """Follows the topic from its beginning (it is compacted), in no group: every process hears every event. Not safe to use from two threads."""

    def __init__(self, settings: Settings) -> None:
        self._consumer: Any = reader(settings)
        self._listening = False

    def heard(self, wait_s: float) -> list[Control]:
        """What was told since the last call; waits so long for the first. Nothing while the log does not answer, or has no such topic yet."""
        try:
            if not self._listening and not self._begin():
                return []
            return [event for m in self._consumer.consume(100, timeout=wait_s) if m.error() is None and (event := _read(m.value()))]
        except (KafkaException, RuntimeError):
            return []

    def close(self) -> None:
        """Lets the log go."""
        self._consumer.close()

    def _begin(self) -> bool:
        there = self._consumer.list_topics(CONTROL.name, timeout=QUERY_S).topics[CONTROL.name]
        if there.error is not None or not there.partitions:
            return False
        self._consumer.assign([TopicPartition(CONTROL.name, p, 0) for p in there.partitions])
        self._listening = True
        return True


def _read(value: bytes | None) -> Control | None:
    try:
        return decode(Control, value)
    except InvalidRecord as error:
        journal.logger().error("an event of the control topic cannot be read", reason=str(error))
        return None
