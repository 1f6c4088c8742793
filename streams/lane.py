"""A lane: what an app has to follow of one topic, in order, and how far it is. Consumer, agent and watchdog meet here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

from schemas.topics import Topic
from streams.bus import Message

Place = tuple[str, int]
"""A topic's name and a partition."""
SESSION_S = 6.0
"""A member of a group that is not heard of for so long has lost its partitions."""


def as_fields(offsets: Mapping[Place, int]) -> list[bytes]:
    """Offsets as the fields and values of a hash in Redis."""
    return [part for (topic, partition), offset in offsets.items() for part in (f"{topic}:{partition}".encode(), str(offset).encode())]


def places_in(fields: Sequence[bytes]) -> dict[Place, int]:
    """The offsets in these fields and values."""
    names = (name.decode().rpartition(":") for name in fields[::2])
    return {(topic, int(partition)): int(offset) for (topic, _, partition), offset in zip(names, fields[1::2], strict=True)}


class Turn:
    """One assignment of partitions. Work that outlives it reports to it in vain: the next owner repeats that work."""

    def __init__(self, places: frozenset[Place] = frozenset()) -> None:
        self.places = places
        self.next: dict[Place, int] = {}
        """By place, the offset after the last one that is finished: what may be committed, and nothing past it."""
        self.prepared = asyncio.Event()
        """Set when work on it may begin, and when it is over."""
        self.over = False

    def end(self) -> None:
        """The partitions are being taken away: no batch is begun any more."""
        self.over = True
        self.prepared.set()

    def partitions(self, topic: str) -> frozenset[int]:
        """The partitions of this topic that are ours."""
        return frozenset(p for t, p in self.places if t == topic)


class Lane:
    """One topic's queue: bounded, emptied when partitions are taken away, worked off by one agent."""

    def __init__(self, topic: Topic, batch_max: int) -> None:
        self.topic = topic
        self.pulse = 0
        """Grows with each sign of life; the watchdog compares."""
        self.done: dict[int, int] = {}
        """By partition, the offset after the last record that was worked off in this turn."""
        self.idle = asyncio.Event()
        self.idle.set()
        self._batch_max = batch_max
        self._under_way = 0
        self._queue: deque[Message] = deque()
        self._filled = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """Whether more may be read: less than four batches wait."""
        return len(self._queue) < 4 * self._batch_max

    def put(self, messages: Sequence[Message]) -> None:
        """Adds records, in order of offset within their partition."""
        self._queue.extend(messages)
        self._filled.set()

    def empty(self) -> None:
        """Forgets what waits: it will be read again by whom it is assigned to."""
        self._queue.clear()

    async def take(self) -> list[Message]:
        """The next records, at least one, at most a batch. The lane is not idle until each batch that was taken came to `rest`."""
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        self.idle.clear()
        self._under_way += 1
        if len(self._queue) <= self._batch_max:
            taken = list(self._queue)
            self._queue.clear()
            return taken
        return [self._queue.popleft() for _ in range(self._batch_max)]

    def rest(self) -> None:
        """A batch that was taken is done with."""
        self.pulse += 1
        self._under_way -= 1
        if not self._under_way:
            self.idle.set()


class Reading:
    """What the consumer shares with the follower: the lanes by topic, and the present turn."""

    def __init__(self, lanes: Mapping[str, Lane]) -> None:
        self.lanes = lanes
        self.turn = Turn()

    def begin(self, turn: Turn) -> None:
        """The next assignment: what waits in the lanes is of the last one."""
        self.turn = turn
        for lane in self.lanes.values():
            lane.empty()
            lane.done = {}
