"""A Redis that came back older than it was, on real Kafka and Redis: who starts notices, and puts back what the log says."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition

from features.wire import Wire
from models.hold import OpenHold, resolved_event
from schemas.avro import decode, encode
from schemas.decision import Decision
from schemas.hold import HoldState
from schemas.label import Label, LabelSource
from schemas.topics import CLEARINGS, DECISIONS, HOLDS, LABELS, Topic
from streams.answers import WHOLE, resolved_key
from streams.bus import KafkaBus, end_offsets
from streams.clock import clock_ms
from streams.follow import Follower
from streams.hold import APP as HOLD
from streams.hold import APPLIED
from streams.lane import Place
from streams.settings import Settings, librdkafka
from streams.tally import APP as TALLY
from streams.tally import TALLIED, settle
from streams.wired import connected, tally_world
from tests.streams.conftest import a_clearing
from tests.streams.test_archive import a_decision

MINE = b"as it was"
"""A mark that tells whether it is still the one that was there."""


def has_read_all(settings: Settings, app: Follower) -> dict[Place, int]:
    """Commits the end of each partition that an app reads in its name; these ends."""
    ends = {(topic.name, p): end for topic in app.reads for p, (_, end) in end_offsets(settings, topic).items()}
    consumer = Consumer(librdkafka(settings) | {"group.id": app.name})
    consumer.commit(offsets=[TopicPartition(*place, end) for place, end in ends.items()], asynchronous=False)
    consumer.close()
    return ends


def applied(ends: dict[Place, int]) -> list[bytes]:
    """The fields and values that say that Redis knows of all records before these offsets."""
    return [part for (topic, partition), end in ends.items() for part in (f"{topic}:{partition}".encode(), str(end).encode())]


def started_on(real: Settings, decision: Decision, behind: Topic | None = None) -> tuple[bytes | None, bytes | None]:
    """Tells the decision and its capture to a log that `hold` has read to its end, starts on a Redis that lacks both and says that it lacks the
    last record of each partition of one topic, or none.

    The mark that it then has, and the answer.
    """

    async def story() -> tuple[bytes | None, bytes | None]:
        bus = KafkaBus(real.changed(produce_timeout_ms=20_000))
        await bus.tell(DECISIONS, decision.account_id, encode(decision))
        await bus.tell(CLEARINGS, decision.account_id, encode(a_clearing(f"{decision.transaction_id}.c", decision.account_id)))
        await bus.close()
        ends = await asyncio.to_thread(has_read_all, real, HOLD)
        wire = await Wire.connect(real.redis_url)
        older = {place: max(0, end - (behind is not None and place[0] == behind.name)) for place, end in ends.items()}
        await wire.send((b"FLUSHALL",), (b"SET", WHOLE, MINE), (b"HSET", APPLIED, *applied(older)))
        parts = await connected(real)
        mark, *noted = (await wire.send((b"GET", WHOLE), (b"HMGET", APPLIED, *applied(ends)[::2])))[:2]
        assert noted == [applied(older if mark == MINE else ends)[1::2]]
        kept = await parts.answers.of_transaction(decision.transaction_id)
        await parts.close()
        await wire.close()
        return mark, kept and kept.message

    return asyncio.run(story())


@pytest.mark.parametrize("behind", [DECISIONS, CLEARINGS], ids=lambda topic: str(topic.name))
def test_a_redis_behind_what_the_hold_app_has_committed_is_forgotten_and_rebuilt_at_the_start(real: Settings, behind: Topic) -> None:
    told = a_decision(f"older.{behind.name}", clock_ms())
    mark, message = started_on(real, told, behind)
    assert mark == b"1", "the mark of a Redis that was rebuilt"
    assert message is not None
    assert decode(Decision, message).decision_id == told.decision_id


def test_a_redis_that_has_applied_all_that_was_committed_is_taken_as_it_is(real: Settings) -> None:
    assert started_on(real, a_decision("older.2", clock_ms())) == (MINE, None)


@pytest.mark.parametrize(("lacks", "is_rebuilt"), [(1, True), (0, False), (None, False)])
def test_a_redis_behind_what_the_tally_app_has_committed_is_rebuilt_though_the_books_lack_nothing(
    real: Settings, lacks: int | None, is_rebuilt: bool
) -> None:
    label = Label(label_id="older", transaction_id="older", account_id="a1", fraud=True, learned_at_ms=clock_ms(), source=LabelSource.ANALYST)

    async def story() -> bytes:
        bus = KafkaBus(real.changed(produce_timeout_ms=20_000))
        await bus.tell(LABELS, label.account_id, encode(label))
        books, tallies = await asyncio.to_thread(has_read_all, real, HOLD), await asyncio.to_thread(has_read_all, real, TALLY)
        wire = await Wire.connect(real.redis_url)
        await wire.send((b"FLUSHALL",), (b"SET", WHOLE, MINE), (b"HSET", APPLIED, *applied(books)))
        if lacks is not None:  # else it was noted by no release yet
            await wire.send((b"HSET", TALLIED, *applied({place: max(0, end - lacks) for place, end in tallies.items()})))
        world = await tally_world(real, bus)
        (mark,) = await wire.send((b"GET", WHOLE))
        if lacks is not None:
            assert (await wire.send((b"HMGET", TALLIED, *applied(tallies)[::2]))) == [applied(tallies)[1::2]]
        for end in (777, 776):  # the second is told late by one whose partition it is no more
            await settle(world, {(LABELS.name, 1): end})
        (noted,) = await wire.send((b"HGET", TALLIED, b"labels:1"))
        assert noted == b"777"
        assert world.close is not None
        await world.close()
        await bus.close()
        await wire.close()
        return bytes(mark)

    assert asyncio.run(story()) == (b"1" if is_rebuilt else MINE)


def test_of_two_ends_of_a_hold_the_first_stands_in_what_is_rebuilt_as_it_does_in_the_ledger(real: Settings) -> None:
    now_ms = clock_ms()
    hold = OpenHold("hld_twice", "twice", 1_000, "EUR", HoldState.POSTED, 0, now_ms + 1, posted_minor=1_000, resolved_at_ms=now_ms)
    ends = [hold, msgspec.structs.replace(hold, state=HoldState.EXPIRED)]

    async def story() -> bytes | None:
        bus = KafkaBus(real.changed(produce_timeout_ms=20_000))
        for end in ends:
            await bus.tell(HOLDS, "a1", encode(resolved_event("a1", end, CLEARINGS.name, 0, 0)))
        await bus.close()
        wire = await Wire.connect(real.redis_url)
        await wire.send((b"FLUSHALL",))
        await (await connected(real)).close()
        (said,) = await wire.send((b"GET", resolved_key(hold.hold_id)))
        await wire.close()
        return said and said.split()[0]  # type: ignore[no-any-return]

    assert asyncio.run(story()) == b"posted"
