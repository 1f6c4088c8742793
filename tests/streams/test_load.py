"""What a release may be loaded with: refusals, and which release the one before it was."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition

from features.catalogue import CATALOGUE
from features.fact import CARD, MERCHANT
from features.online import RedisMemory
from features.row import Feature, count, days, distinct, hours
from features.tally import told
from features.wire import Wire
from schemas.avro import encode
from schemas.errors import SettingsError
from schemas.topics import DECISIONS, LABELS
from streams.bus import KafkaBus, end_offsets
from streams.clock import clock_ms
from streams.load import load, without
from streams.loaded import beginnings
from streams.settings import Settings, librdkafka
from streams.wired import connected
from tests.streams.test_archive import a_decision
from tests.world import a_transaction

NEW = Feature("behavioural", distinct("mcc", of=CARD, window=days(7)), "many_trades_7d", "velocity", "Kinds of merchant within a week")
BUSY = Feature("merchant", count(of=MERCHANT, window=days(3)), "busy_merchant_3d", "velocity", "Payments at the merchant in three days")
HOURLY = count(of=MERCHANT, window=hours(1)).expression
SLOW = Feature("velocity", count(of=CARD, window=days(120)), "many_card_payments_120d", "velocity", "Payments of the card in four months")


def test_the_release_before_has_the_same_catalogue_without_the_new_rows() -> None:
    following = CATALOGUE.extended([NEW])
    before = without(following, [NEW.name])
    assert before.catalogue_id == CATALOGUE.catalogue_id
    assert [name.split(b":")[2] for name in beginnings(following) if name not in beginnings(before)] == [b"card"], "the card's log has a column more"


def test_a_window_that_is_longer_than_logs_are_kept_for_cannot_be_loaded() -> None:
    with pytest.raises(SettingsError, match="a log is kept for 90 days"):
        without(CATALOGUE.extended([SLOW]), [SLOW.name])


def test_a_log_that_no_decision_has_a_place_in_cannot_be_loaded() -> None:
    of_phones = [name for name in CATALOGUE.names if "phone" in name]
    with pytest.raises(SettingsError, match="no decision says its place in a log of phone"):
        without(CATALOGUE, of_phones)


def test_a_decision_that_lies_in_the_log_twice_counts_once_in_both_releases_where_the_tally_app_is_between_the_two(real: Settings) -> None:
    following, now_ms = CATALOGUE.extended([BUSY]), clock_ms()
    txn = a_transaction("twice in the log", at_ms=now_ms, merchant_id="whose payment lies twice")
    decision = msgspec.structs.replace(a_decision(txn.transaction_id, now_ms), transaction=txn)

    async def story() -> list[list[float]]:
        bus, begun_s = KafkaBus(real.changed(produce_timeout_ms=20_000)), list[float]()
        await bus.tell(DECISIONS, decision.account_id, encode(decision))
        consumer = Consumer(librdkafka(real) | {"group.id": "tally"})
        ends = {(topic.name, p): end for topic in (DECISIONS, LABELS) for p, (_, end) in end_offsets(real, topic).items()}
        consumer.commit(offsets=[TopicPartition(*place, end) for place, end in ends.items()], asynchronous=False)
        consumer.close()
        wire = await Wire.connect(real.redis_url)
        await wire.send((b"FLUSHALL",))
        await (await connected(real)).close()
        await bus.tell(DECISIONS, decision.account_id, encode(decision))
        await bus.close()

        def say(text: str) -> None:
            begun_s.extend([time.monotonic()] * text.startswith("loaded"))

        await load(real, following, CATALOGUE, lambda: bool(begun_s) and time.monotonic() > begun_s[0] + 2.0, say)
        memories = [RedisMemory(wire, catalogue) for catalogue in (CATALOGUE, following)]
        contents = [
            [await memory.tally(kind, str(txn.merchant_id)) if kind == "merchant" else None for kind in CATALOGUE.tallies] for memory in memories
        ]
        await wire.close()
        return [
            [float(number) for fold, number in zip(plan.folds, told(plan, content, now_ms), strict=True) if fold == HOURLY]
            for plan, content in zip((CATALOGUE.tally_plan, following.tally_plan), contents, strict=True)
        ]

    assert asyncio.run(story()) == [[1.0], [1.0]]
