"""Live decisions: the log of decisions as server-sent events, from any place on. What was sent last is an id with which a client goes on after it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from confluent_kafka import KafkaException, TopicPartition

from schemas.avro import decode
from schemas.decision import Decision
from schemas.errors import InvalidRecord, LogUnavailable
from schemas.topics import DECISIONS
from streams.bus import end_offsets, reader
from streams.settings import Settings

STREAMS_MAX = 16
"""Of one process: each has a consumer and a thread of its own."""
TAKEN_MAX, WAIT_S = 200, 0.5
QUIET_S = 15.0
"""How often a client hears something where nothing was decided, so that nobody on the way takes the connection for dead."""

Shown = Callable[[Decision], bytes | None]
"""What a client gets of a decision; None: not this one."""


class Live:
    """The streams of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(STREAMS_MAX, thread_name_prefix="live")
        self._streams = 0

    @property
    def has_room(self) -> bool:
        """Whether one more stream may begin."""
        return self._streams < STREAMS_MAX

    async def begin(self, last_id: str | None, shown: Shown, may_go_on: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
        """The events after that id (from now on where there is none) while they may go on. InvalidRecord for no id of this log. LogUnavailable."""
        self._streams += 1
        try:
            ends = await self._in_thread(end_offsets, self._settings, DECISIONS)
            return self._events(_after(last_id, ends), shown, may_go_on)
        except BaseException:
            self._streams -= 1
            raise

    async def _events(self, place: dict[int, int], shown: Shown, may_go_on: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
        loop, consumer = asyncio.get_running_loop(), None
        try:
            consumer = reader(self._settings)
            consumer.assign([TopicPartition(DECISIONS.name, partition, offset) for partition, offset in place.items()])
            yield b"retry: 1000\nid: %b\n\n" % id_of(place)
            said_s = loop.time()
            while await may_go_on():
                for message in await self._in_thread(consumer.consume, TAKEN_MAX, WAIT_S):
                    if message.error() is not None:
                        continue  # the end of a partition; what a broker cannot answer now, librdkafka asks again
                    place[message.partition()] = message.offset() + 1
                    try:
                        body = shown(decode(Decision, message.value()))
                    except InvalidRecord:
                        continue  # no decision: whoever follows the log lays it aside
                    if body is not None:
                        said_s = loop.time()
                        yield b"id: %b\nevent: decision\ndata: %b\n\n" % (id_of(place), body)
                if loop.time() - said_s >= QUIET_S:
                    said_s = loop.time()
                    yield b": nothing new\nid: %b\n\n" % id_of(place)
        finally:
            self._streams -= 1
            if consumer is not None:
                self._threads.submit(consumer.close)

    async def _in_thread(self, ask: Callable[..., Any], *args: object) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, ask, *args)
        except KafkaException as error:
            raise LogUnavailable(str(error)) from error


def id_of(place: Mapping[int, int]) -> bytes:
    """An event's id: the next offset of every partition, in order. One offset alone would not say where the others are."""
    return ".".join(str(place[partition]) for partition in sorted(place)).encode()


def _after(last_id: str | None, ends: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """Where to go on: `ends` are the oldest offset of each partition, and its next one. Nothing is passed over in silence."""
    if last_id is None:
        return {partition: high for partition, (_, high) in ends.items()}
    parts = last_id.split(".")
    if len(parts) != len(ends) or not all(re.fullmatch(r"[0-9]{1,18}", part) for part in parts):
        raise InvalidRecord("last-event-id", "is no id of this log")
    place = {partition: int(part) for partition, part in zip(sorted(ends), parts, strict=True)}
    if any(place[partition] > high for partition, (_, high) in ends.items()):
        raise InvalidRecord("last-event-id", "is of another log: this one has not come so far")
    if any(place[partition] < low for partition, (low, _) in ends.items()):
        oldest = id_of({partition: low for partition, (low, _) in ends.items()}).decode()
        raise InvalidRecord("last-event-id", f"has expired: what was decided next is not in the log any more; the oldest is {oldest}")
    return place
