"""The newest records of a partition, as an app that starts again reads them: what it has followed already, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from schemas.avro import decode
from schemas.errors import InvalidRecord
from schemas.label import Label
from schemas.topics import Topic
from streams.bus import Message, committed_offsets, read_topic
from streams.lane import Place
from streams.settings import Settings

KEPT_MAX = 50_000
"""Records of a topic's partition that are kept: the newest."""


def followed_so_far(settings: Settings, group: str, topic: Topic, places: frozenset[Place]) -> Iterator[tuple[Message, Any]]:
    """The newest records of a topic's partitions among these places that a group has acknowledged, each with where it lies."""
    wanted = {partition for name, partition in places if name == topic.name}
    ends = {p: end for p, end in committed_offsets(settings, group, topic).items() if p in wanted and end > 0}
    if not ends:
        return
    for batch in read_topic(settings, topic, {p: max(0, end - KEPT_MAX) for p, end in ends.items()}, list(ends)):
        for message in batch:
            if message.offset < ends[message.partition]:
                try:
                    yield message, decode(topic.record, message.value)
                except InvalidRecord:
                    continue


def is_ahead(label: Label, logged_at_ms: int, settings: Settings) -> bool:
    """Whether a label says that it was learned later than clocks may differ: nobody takes it in, as in tallies it would push all before it out.

    Judged by when the log took it and not by when it is read, so that who reads it again, years later, says the same.
    """
    return logged_at_ms >= 0 and label.learned_at_ms > logged_at_ms + settings.future_ms_max


def capped(kept: dict[str, Any]) -> bool:
    """Forgets the oldest where there are too many; whether it did."""
    if len(kept) <= KEPT_MAX:
        return False
    del kept[next(iter(kept))]
    return True
