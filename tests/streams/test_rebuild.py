"""A Redis that came back older than it was, on real Kafka and Redis: who starts notices, and puts back what the log says."""

from __future__ import annotations

import asyncio

from confluent_kafka import Consumer, TopicPartition

from features.wire import Wire
from schemas.avro import decode, encode
from schemas.decision import Decision
from schemas.topics import DECISIONS
from streams.answers import WHOLE
from streams.bus import KafkaBus, end_offsets
from streams.clock import clock_ms
from streams.hold import APPLIED
from streams.settings import Settings, librdkafka
from streams.wired import connected
from tests.streams.test_archive import a_decision

MINE = b"as it was"
"""A mark that tells whether it is still the one that was there."""


def hold_has_read_all(settings: Settings) -> dict[int, int]:
    """Commits the end of each partition of the decisions in the name of the `hold` app; these ends."""
    ends = {partition: end for partition, (_, end) in end_offsets(settings, DECISIONS).items()}
    consumer = Consumer(librdkafka(settings) | {"group.id": "hold"})
    consumer.commit(offsets=[TopicPartition(DECISIONS.name, partition, end) for partition, end in ends.items()], asynchronous=False)
    consumer.close()
    return ends


def applied(ends: dict[int, int]) -> list[bytes]:
    """The fields and values that say that Redis knows of all records before these offsets."""
    return [part for partition, end in ends.items() for part in (f"{DECISIONS.name}:{partition}".encode(), str(end).encode())]


def started_on(real: Settings, decision: Decision, behind: int) -> tuple[bytes | None, bytes | None]:
    """Tells the decision to a log that `hold` has read to its end, starts on a Redis that lacks it and says that it is this far behind.

    The mark that it then has, and the answer.
    """

    async def story() -> tuple[bytes | None, bytes | None]:
        bus = KafkaBus(real.changed(produce_timeout_ms=20_000))
        await bus.tell(DECISIONS, decision.account_id, encode(decision))
        await bus.close()
        ends = await asyncio.to_thread(hold_has_read_all, real)
        wire = await Wire.connect(real.redis_url)
        older = {partition: max(0, end - behind) for partition, end in ends.items()}
        await wire.send((b"FLUSHALL",), (b"SET", WHOLE, MINE), (b"HSET", APPLIED, *applied(older)))
        parts = await connected(real)
        mark, *noted = (await wire.send((b"GET", WHOLE), (b"HMGET", APPLIED, *applied(ends)[::2])))[:2]
        assert noted == [applied({p: older[p] if mark == MINE else end for p, end in ends.items()})[1::2]]
        kept = await parts.answers.of_transaction(decision.transaction_id)
        await parts.close()
        await wire.close()
        return mark, kept and kept.message

    return asyncio.run(story())


def test_a_redis_behind_what_the_hold_app_has_committed_is_forgotten_and_rebuilt_at_the_start(real: Settings) -> None:
    told = a_decision("older.1", clock_ms())
    mark, message = started_on(real, told, 1)
    assert mark == b"1", "the mark of a Redis that was rebuilt"
    assert message is not None
    assert decode(Decision, message).decision_id == told.decision_id


def test_a_redis_that_has_applied_all_that_was_committed_is_taken_as_it_is(real: Settings) -> None:
    assert started_on(real, a_decision("older.2", clock_ms()), 0) == (MINE, None)
