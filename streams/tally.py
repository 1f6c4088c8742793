"""The tally app: follows decisions and labels, and gives them to the tallies of merchants, terminals, addresses, BINs and countries.

A tally takes what the log says and nothing else, so that each of its reads can be repeated: its head says which offsets it had. Rows
are gathered by tally over a batch, so that a busy merchant costs one write a batch, and are acknowledged once Redis has them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from features.catalogue import Catalogue
from features.memory import Memory
from features.tally import SOURCES, VERDICTS_KEPT, Lesson, Update, Verdicts, is_declined, learned_in_turn, payment_rows
from schemas.avro import decode
from schemas.decision import Decision
from schemas.errors import InvalidRecord, SettingsError, Unavailable
from schemas.label import Label
from schemas.record import Record
from schemas.topics import DECISIONS, LABELS, Topic
from streams.bus import Message, committed_offsets, read_topic
from streams.follow import IDS_MAX, TAIL, Follower, Source
from streams.lane import Place
from streams.recent import is_ahead
from streams.settings import Settings

TALLIED = b"tallied"
"""The hash in Redis of how far tallies are: topic and partition, the offset before which they have all rows."""
NOTE = b"""
for i = 1, #ARGV, 2 do
    if tonumber(ARGV[i + 1]) > tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or -1) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
return 1
"""
"""Notes in that hash, and never less than is there: who tells late, of a partition that another follows by now, takes nothing of it back."""
R = TypeVar("R", bound=Record)
Rows = dict[tuple[int, str], list[Update]]


@dataclass(slots=True)
class TallyWorld:
    """What is gathered since Redis was last told. `seen` are the newest decisions' ids: one that lies in the log twice counts once. `verdicts`:
    what the newest labels say, for the same reason."""

    catalogue: Catalogue
    memory: Memory
    settings: Settings
    close: Callable[[], Awaitable[None]] | None = None
    loaded: Callable[[], Awaitable[None]] | None = None
    """Returns when its tallies have all that another release followed for them."""
    note: Callable[[Mapping[Place, int]], Awaitable[None]] | None = None
    """Lets Redis note how far its tallies are."""
    rows: Rows = field(default_factory=lambda: defaultdict(list))
    seen: dict[str, None] = field(default_factory=dict)
    verdicts: Verdicts = field(default_factory=dict)
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)


def gather_decision(catalogue: Catalogue, decision: Decision, partition: int, offset: int, rows: Rows) -> None:
    """Adds the rows that a decision gives to the tallies of its transaction's entities."""
    txn = decision.transaction
    made = payment_rows(txn, is_declined(decision))
    for number, name in enumerate(catalogue.tally_fields):
        token = getattr(txn, name)
        if token is not None:
            rows[number, token] += [Update(partition, offset, row) for row in made]


def gather_lessons(catalogue: Catalogue, lessons: Sequence[Lesson], partition: int, offset: int, rows: Rows) -> None:
    """Adds the rows that a label gives to the tallies of the entities that they are of."""
    for kind, token, row in lessons:
        if kind in catalogue.tallies:
            rows[catalogue.tallies.index(kind), token].append(Update(DECISIONS.partitions + partition, offset, row))


def remembered(seen: dict[str, None], decision_id: str) -> bool:
    """Whether this decision was seen before; from now on it was."""
    if decision_id in seen:
        return True
    seen[decision_id] = None
    if len(seen) > IDS_MAX:
        del seen[next(iter(seen))]
    return False


def on_decision(world: TallyWorld, decision: Decision, source: Source) -> Sequence[Record]:
    """Gathers its rows."""
    if not remembered(world.seen, decision.decision_id):
        gather_decision(world.catalogue, decision, source.partition, source.offset, world.rows)
    return ()


def on_label(world: TallyWorld, label: Label, source: Source) -> Sequence[Record]:
    """Gathers its rows. One that is dated ahead has none: `feedback` lays it aside."""
    if is_ahead(label, source.timestamp_ms, world.settings):
        return ()
    lessons = learned_in_turn(world.verdicts, label, source.partition, source.offset)
    gather_lessons(world.catalogue, lessons, source.partition, source.offset, world.rows)
    return ()


async def settle(world: TallyWorld, done: Mapping[Place, int]) -> Mapping[Place, int]:
    """Gives the tallies what was gathered; then all of it may be acknowledged. One at a time: nobody acknowledges what another still tells.

    Redis notes how far it is behind the rows and before the group does: one that has lost rows has lost the note of them, and is known by it.
    """
    async with world.telling:
        rows, world.rows = world.rows, defaultdict(list)
        try:
            await world.memory.take(rows)
        except Unavailable:
            for place, later in world.rows.items():
                rows[place] += later
            world.rows = rows
            raise
        if world.note is not None:
            await world.note(done)
    return done


async def assigned(world: TallyWorld, places: frozenset[Place]) -> None:
    """Reads the ids of the last decisions before those that are to be followed, and what labels said until then. SettingsError if the log has
    more partitions than tallies."""
    if max((partition for _, partition in places), default=0) >= SOURCES // 2:
        raise SettingsError(f"{DECISIONS.name} and {LABELS.name} have more partitions than schemas/topics.py says: tallies count on it")

    if world.loaded is not None:
        await world.loaded()

    def read() -> tuple[list[str], Verdicts]:
        decided, learned = (
            {p: end for p, end in committed_offsets(world.settings, APP.name, topic).items() if (topic.name, p) in places}
            for topic in (DECISIONS, LABELS)
        )
        return [decision.decision_id for decision in decisions_before(world.settings, decided)], verdicts_before(world.settings, learned)

    ids, world.verdicts = await asyncio.to_thread(read)
    for decision_id in ids:
        remembered(world.seen, decision_id)


def decisions_before(settings: Settings, ends: Mapping[int, int]) -> Iterator[Decision]:
    """The last decisions before these offsets, by partition."""
    for _, decision in _before(settings, DECISIONS, Decision, ends, TAIL):
        yield decision


def verdicts_before(settings: Settings, ends: Mapping[int, int]) -> Verdicts:
    """What is known of transactions by the labels before these offsets, by partition, as who read all from the first on would know it.

    Read from twice as far back as labels are held against each other, so that what the last label before an end was held against is known too.
    """
    verdicts: Verdicts = {}
    for message, label in _before(settings, LABELS, Label, ends, 2 * VERDICTS_KEPT):
        if not is_ahead(label, message.timestamp_ms, settings):
            learned_in_turn(verdicts, label, message.partition, message.offset)
    return verdicts


def _before(settings: Settings, topic: Topic, kind: type[R], ends: Mapping[int, int], count: int) -> Iterator[tuple[Message, R]]:
    """Those of the `count` before these offsets that can be read, each with where it lies."""
    there = {p: end for p, end in ends.items() if end > 0}
    start = {p: max(0, end - count) for p, end in there.items()}
    for batch in read_topic(settings, topic, start, list(there)) if there else ():
        for message in batch:
            if message.offset < there[message.partition]:
                with suppress(InvalidRecord):
                    yield message, decode(kind, message.value)


APP = Follower(name="tally", reads={DECISIONS: on_decision, LABELS: on_label}, assigned=assigned, settle=settle)
