"""The watchdog: lag and no progress for too long ends the process, so that it is started again. Faust itself would wait for ever."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, NamedTuple, NoReturn

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams import journal, metrics
from streams.lane import Lane, Place, Reading, Turn
from streams.settings import Settings, librdkafka

STALLED = 70
"""Exit status of a process that the watchdog ended."""
QUERY_S = 5.0
READING = {
    "enable.auto.commit": False,
    "auto.offset.reset": "earliest",
    "isolation.level": "read_uncommitted",  # as the apps read
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 50,
    "queued.min.messages": 1,
    "queued.max.messages.kbytes": 1_024,
    "log_level": 0,
}


class Stall(NamedTuple):
    """A lane with lag and without progress: its pulse, since when (monotonic, seconds), and where its partitions ended then."""

    pulse: int
    since_s: float
    ends: dict[Place, int]


class Watchdog(threading.Thread):
    """Asks the brokers itself how long the partitions are, in a thread of its own, so that nothing that hangs can hide."""

    def __init__(self, name: str, reading: Reading, settings: Settings) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._app = name
        self._reading = reading
        self._limit_s = float(settings.watchdog_s)
        self._consumer: Any = Consumer(librdkafka(settings) | READING | {"group.id": name})
        self._over = threading.Event()
        self._turn: Turn | None = None
        self._passed: dict[Place, int] = {}
        """In this turn, by place, an offset below which nothing is left to follow, whatever `Lane.done` says: what was committed before,
        or the end of a stretch without a record (a transaction's marker takes an offset, and is delivered to nobody)."""
        self._stalls: dict[str, Stall] = {}
        self._unprepared_since = time.monotonic()

    def run(self) -> None:
        """Looks a few times within the limit, until `stop`."""
        while not self._over.wait(min(5.0, self._limit_s / 5)):
            try:
                self.look(time.monotonic())
            except KafkaException:
                self._stalls.clear()  # no answer: nothing is known, and nothing could be done
        self._consumer.close()

    def stop(self) -> None:
        """Stops looking."""
        self._over.set()
        self.join(QUERY_S)

    def look(self, now_s: float) -> None:
        """Compares each lane with the end of its topic and with the last look."""
        turn = self._reading.turn
        if turn.over or not turn.prepared.is_set():
            if now_s - self._unprepared_since > 4 * self._limit_s:
                here = turn.places and not turn.over
                self._bark("what is needed for the assigned partitions could not be read" if here else "no partitions were assigned")
            self._stalls.clear()
            return
        self._unprepared_since = now_s
        if turn is not self._turn:
            self._turn, self._passed = turn, self._committed(turn)
            self._stalls.clear()
        stalled = [(self._stalled_s(lane, turn, now_s), lane) for lane in self._reading.lanes.values()]
        stalled_s = max((lane_s for lane_s, _ in stalled), default=0.0)
        metrics.STALLED.set(stalled_s)
        if any(lane_s > self._limit_s and self._has_record(lane) for lane_s, lane in stalled):
            self._bark(f"lag and no progress for {stalled_s:.0f} s")

    def _stalled_s(self, lane: Lane, turn: Turn, now_s: float) -> float:
        name = lane.topic.name
        ends: dict[Place, int] = {}
        lag = 0
        for place in ((name, partition) for partition in turn.partitions(name)):
            low, ends[place] = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=QUERY_S)
            lag += max(0, ends[place] - max(low, self._done(lane, place)))
        metrics.LAG.labels(name).set(lag)
        stall = self._stalls.get(name)
        if not lag:
            self._stalls.pop(name, None)
            return 0.0
        if stall is None or stall.pulse != lane.pulse:
            stall = self._stalls[name] = Stall(lane.pulse, now_s, ends)
        return now_s - stall.since_s

    def _done(self, lane: Lane, place: Place) -> int:
        return max(lane.done.get(place[1], 0), self._passed.get(place, 0))

    def _has_record(self, lane: Lane) -> bool:
        """Whether what waited when the stall began has a record in it. Where it has none, it is passed, and a stall begins anew.

        Records that came later do not count: they have not waited for so long. No answer within `QUERY_S` is taken for a record.
        """
        stall = self._stalls.pop(lane.topic.name)
        left = {place: end for place, end in stall.ends.items() if self._done(lane, place) < end}
        self._consumer.assign([TopicPartition(*place, self._done(lane, place)) for place in left])
        until_s = time.monotonic() + QUERY_S
        try:
            while left:
                found = self._consumer.poll(max(0.0, until_s - time.monotonic()))
                if found is None:
                    return True
                place, error = (found.topic(), found.partition()), found.error()
                if place not in left or (error and error.code() != KafkaError._PARTITION_EOF):
                    continue
                if not error and found.offset() < left[place]:
                    return True
                self._passed[place] = left.pop(place)
            return False
        finally:
            self._consumer.unassign()

    def _committed(self, turn: Turn) -> dict[Place, int]:
        if not turn.places:
            return {}
        found = self._consumer.committed([TopicPartition(*place) for place in turn.places], timeout=QUERY_S)
        return {(tp.topic, tp.partition): max(0, tp.offset) for tp in found}

    def _bark(self, why: str) -> NoReturn:
        journal.logger().critical("the watchdog ends the process", why=why)
        os._exit(STALLED)
