"""The watchdog: lag and no progress for too long ends the process, so that it is started again. Faust itself would wait for ever."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, NoReturn

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams import journal, metrics
from streams.consumer import Reading
from streams.lane import Lane, Turn
from streams.settings import Settings, librdkafka

STALLED = 70
"""Exit status of a process that the watchdog ended."""
QUERY_S = 5.0


class Watchdog(threading.Thread):
    """Asks the brokers itself how long the partitions are, in a thread of its own, so that nothing that hangs can hide."""

    def __init__(self, name: str, reading: Reading, settings: Settings) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._app = name
        self._reading = reading
        self._limit_s = float(settings.watchdog_s)
        self._consumer: Any = Consumer(librdkafka(settings) | {"group.id": name, "enable.auto.commit": False, "log_level": 0})
        self._over = threading.Event()
        self._turn: Turn | None = None
        self._began: dict[tuple[str, int], int] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        self._unprepared_since = time.monotonic()

    def run(self) -> None:
        """Looks a few times within the limit, until `stop`."""
        while not self._over.wait(min(5.0, self._limit_s / 5)):
            try:
                self.look(time.monotonic())
            except KafkaException:
                self._seen.clear()  # no answer: nothing is known, and nothing could be done
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
                self._bark("no partitions were assigned")
            self._seen.clear()
            return
        self._unprepared_since = now_s
        if turn is not self._turn:
            self._turn, self._began = turn, self._committed(turn)
        stalled_s = max((self._stalled_s(lane, turn, now_s) for lane in self._reading.lanes.values()), default=0.0)
        metrics.STALLED.set(stalled_s)
        if stalled_s > self._limit_s:
            self._bark(f"lag and no progress for {stalled_s:.0f} s")

    def _stalled_s(self, lane: Lane, turn: Turn, now_s: float) -> float:
        name = lane.topic.name
        lag = sum(self._lag(lane, (name, partition)) for partition in turn.partitions(name))
        metrics.LAG.labels(name).set(lag)
        pulse, since = self._seen.get(name, (-1, now_s))
        if not lag or pulse != lane.pulse:
            since = now_s
        self._seen[name] = lane.pulse, since
        return now_s - since

    def _lag(self, lane: Lane, place: tuple[str, int]) -> int:
        low, high = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=QUERY_S)
        done = lane.done.get(place[1], self._began.get(place, 0))
        return int(max(0, high - max(low, done)))

    def _committed(self, turn: Turn) -> dict[tuple[str, int], int]:
        if not turn.places:
            return {}
        found = self._consumer.committed([TopicPartition(*place) for place in turn.places], timeout=QUERY_S)
        return {(tp.topic, tp.partition): max(0, tp.offset) for tp in found}

    def _bark(self, why: str) -> NoReturn:
        journal.logger().critical("the watchdog ends the process", why=why)
        os._exit(STALLED)
