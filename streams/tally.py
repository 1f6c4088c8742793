"""The tally app: follows decisions and labels, and gives them to the tallies of merchants, terminals, addresses, BINs and countries.

A tally takes what the log says and nothing else, so that each of its reads can be repeated: its head says which offsets it had. Rows
are gathered by tally over a batch, so that a busy merchant costs one write a batch, and are acknowledged once Redis has them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from features.catalogue import Catalogue
from features.memory import Memory
from features.tally import SOURCES, VERDICTS_KEPT, Lesson, Update, Verdicts, is_declined, learned_in_turn, payment_rows
from schemas.avro import decode
from schemas.decision import Decision
from schemas.errors import InvalidRecord, SettingsError, Unavailable
from schemas.label import Label
from schemas.record import Record
from schemas.topics import DECISIONS, LABELS
from streams.bus import committed_offsets, read_topic
from streams.follow import IDS_MAX, TAIL, Follower, Source
from streams.lane import Place
from streams.settings import Settings

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
    """Gathers its rows."""
    lessons = learned_in_turn(world.verdicts, label, source.partition, source.offset)
    gather_lessons(world.catalogue, lessons, source.partition, source.offset, world.rows)
    return ()


async def settle(world: TallyWorld, done: Mapping[Place, int]) -> Mapping[Place, int]:
    """Gives the tallies what was gathered; then all of it may be acknowledged. One at a time: nobody acknowledges what another still tells."""
    async with world.telling:
        rows, world.rows = world.rows, defaultdict(list)
        try:
            await world.memory.take(rows)
        except Unavailable:
            for place, later in world.rows.items():
                rows[place] += later
            world.rows = rows
            raise
    return done


async def assigned(world: TallyWorld, places: frozenset[Place]) -> None:
    """Reads the ids of the last decisions before those that are to be followed, and what labels said until then. SettingsError if the log has
    more partitions than tallies."""
    partitions = {partition for topic, partition in places if topic == DECISIONS.name}
    if max((partition for _, partition in places), default=0) >= SOURCES // 2:
        raise SettingsError(f"{DECISIONS.name} and {LABELS.name} have more partitions than schemas/topics.py says: tallies count on it")

    if world.loaded is not None:
        await world.loaded()

    def read() -> list[str]:
        ends = {p: end for p, end in committed_offsets(world.settings, APP.name, DECISIONS).items() if p in partitions and end > 0}
        ids = []
        start = {p: max(0, end - TAIL) for p, end in ends.items()}
        for batch in read_topic(world.settings, DECISIONS, start, list(ends)):
            for message in batch:
                if message.offset < ends[message.partition]:
                    ids.append(_decision_id(message.value))
        return ids

    for decision_id in await asyncio.to_thread(read):
        remembered(world.seen, decision_id)
    taught = {partition for topic, partition in places if topic == LABELS.name}
    world.verdicts = await asyncio.to_thread(_followed_verdicts, world.settings, taught)


def _followed_verdicts(settings: Settings, partitions: set[int]) -> Verdicts:
    ends = committed_offsets(settings, APP.name, LABELS)
    return verdicts_before(settings, {p: end for p, end in ends.items() if p in partitions})


def verdicts_before(settings: Settings, ends: Mapping[int, int]) -> Verdicts:
    """What is known of transactions by the labels before these offsets, by partition, as who read all from the first on would know it.

    Read from twice as far back as labels are held against each other, so that what the last label before an end was held against is known too.
    """
    verdicts: Verdicts = {}
    there = {p: end for p, end in ends.items() if end > 0}
    start = {p: max(0, end - 2 * VERDICTS_KEPT) for p, end in there.items()}
    for batch in read_topic(settings, LABELS, start, list(there)) if there else ():
        for message in batch:
            if message.offset < there[message.partition]:
                with suppress(InvalidRecord):
                    learned_in_turn(verdicts, decode(Label, message.value), message.partition, message.offset)
    return verdicts


def _decision_id(value: bytes | None) -> str:
    try:
        return decode(Decision, value).decision_id
    except InvalidRecord:
        return ""


APP = Follower(name="tally", reads={DECISIONS: on_decision, LABELS: on_label}, assigned=assigned, settle=settle)
