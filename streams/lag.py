"""How far each app is behind the log: its group's committed offsets against the ends of the topics that it reads.

By plain consumers: `AdminClient.list_offsets` (confluent-kafka 2.16) crashes the process where a partition has no leader yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.errors import LogUnavailable
from schemas.topics import TOPICS
from streams.settings import Settings, librdkafka

ANSWER_S = 5.0


class Lag(NamedTuple):
    """Of one app: the sum of its committed offsets (it grows with every record followed) and the records that it has yet to follow."""

    committed: int
    behind: int


class Lags:
    """One consumer for each app that follows topics (`authorize` follows none). It only asks; it never joins the group."""

    def __init__(self, settings: Settings, apps: Sequence[str]) -> None:
        following = [app for app in apps if any(app in topic.readers for topic in TOPICS)]
        quiet = librdkafka(settings) | {"log_level": 0, "enable.auto.commit": False}
        self._consumers: dict[str, Any] = {app: Consumer(quiet | {"group.id": app}) for app in following}

    def look(self) -> dict[str, Lag]:
        """The lag of each app now. LogUnavailable when Kafka does not answer."""
        try:
            return {app: _lag(consumer, app) for app, consumer in self._consumers.items()}
        except KafkaException as error:
            raise LogUnavailable(str(error)) from None

    def close(self) -> None:
        """Lets go of the connections."""
        for consumer in self._consumers.values():
            consumer.close()


@contextlib.contextmanager
def lags(settings: Settings, apps: Sequence[str]) -> Iterator[Lags]:
    """`Lags` for a block."""
    kept = Lags(settings, apps)
    try:
        yield kept
    finally:
        kept.close()


def _lag(consumer: Any, app: str) -> Lag:
    topics = consumer.list_topics(timeout=ANSWER_S).topics
    places = [TopicPartition(t.name, p) for t in TOPICS if app in t.readers and t.name in topics for p in topics[t.name].partitions]
    committed = behind = 0
    for place in consumer.committed(places, timeout=ANSWER_S):
        start, end = consumer.get_watermark_offsets(place, timeout=ANSWER_S)
        behind += max(0, end - max(start, place.offset))  # the offset of a place that nobody committed is below 0
        committed += max(0, place.offset)
    return Lag(committed, behind)
