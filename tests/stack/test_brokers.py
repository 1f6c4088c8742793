"""Brokers of our own: the embedded one takes and gives; real Kafka keeps what it has, on one broker or three."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer

from schemas.errors import SettingsError, Unavailable
from schemas.topics import ACCOUNTS, DECISIONS, LABELS, TOPICS
from streams import kafka
from streams.kafka import describe_topics
from streams.lag import lags
from streams.settings import Settings, librdkafka
from streams.stack import running

pytestmark = pytest.mark.integration


def tell(settings: Settings, *values: bytes) -> None:
    """Produces to `decisions`, with acks=all."""
    producer = Producer(librdkafka(settings) | {"acks": "all", "enable.idempotence": True})
    for value in values:
        producer.produce(DECISIONS.name, value, b"acc_1")
    assert producer.flush(20) == 0


def told(settings: Settings, count: int) -> list[bytes]:
    """The first values of `decisions`, read and committed as the app `ledger` would."""
    consumer = Consumer(librdkafka(settings) | {"group.id": "ledger", "auto.offset.reset": "earliest", "enable.auto.commit": False})
    consumer.subscribe([DECISIONS.name])
    try:
        values = [message.value() or b"" for message in consumer.consume(count, timeout=30)]
        consumer.commit(asynchronous=False)
        return values
    finally:
        consumer.close()


def test_the_embedded_broker_takes_and_gives(settings: Settings) -> None:
    with running(settings, broker_name="embedded", apps=()) as stack:
        tell(stack.settings, b"one", b"two", b"three")
        assert told(stack.settings, 2) == [b"one", b"two"]
        with lags(stack.settings, ("authorize", "ledger")) as behind:
            assert {app: lag.behind for app, lag in behind.look().items()} == {"ledger": 1}


def test_an_embedded_system_that_lost_its_broker_says_that_it_is_over(settings: Settings) -> None:
    with running(settings, broker_name="embedded", apps=()) as stack:
        stack.part("broker").kill9()
        with pytest.raises(Unavailable, match="broker is not ready"):
            stack.wait_ready(("broker",), 5)
        assert stack.failed


def test_real_kafka_and_redis_go_on_from_the_data_on_disk(settings: Settings) -> None:
    with running(settings, broker_name="real", apps=()) as stack:
        tell(stack.settings, b"one", b"two")
        assert told(stack.settings, 1) == [b"one"]
        first = stack.settings
    with running(settings, broker_name="real", apps=()) as stack:
        assert stack.settings == first
        assert told(stack.settings, 1) == [b"two"]
    with pytest.raises(SettingsError, match="1 kafka broker"), running(settings, broker_name="real", brokers=3, apps=()):
        raise AssertionError("a folder of one broker was taken for three")


def test_three_brokers_keep_three_copies_and_two_must_have_each_record(settings: Settings) -> None:
    with running(settings, broker_name="real", brokers=3, apps=()) as stack:
        topics = describe_topics(stack.settings)
        assert set(topics) >= {topic.name for topic in TOPICS}
        for topic in TOPICS:
            assert topics[topic.name].partitions == topic.partitions
            assert topics[topic.name].copies == 3
            assert topics[topic.name].config["min.insync.replicas"] == "2"
        assert topics[ACCOUNTS.name].config["cleanup.policy"] == "compact"
        assert topics[DECISIONS.name].config["retention.ms"] == "-1"
        assert topics[LABELS.name].config["message.timestamp.type"] == "LogAppendTime"
        stack.part("kafka-2").kill9()
        tell(stack.settings, b"one")
        assert told(stack.settings, 1) == [b"one"]


def test_a_cluster_whose_id_begins_with_a_dash_is_formatted(tmp_path: Path) -> None:
    (tmp_path / "cluster_id").write_text("-GqEvV5ySuOY3RUDVlvSLQ")
    node = kafka.Node(1, tmp_path / "1", 19092, 19093)
    kafka.formatted(kafka.fetched(Settings(data_dir=tmp_path), lambda text: None), [node])
    assert "cluster.id=-GqEvV5ySuOY3RUDVlvSLQ" in (tmp_path / "1" / "data" / "meta.properties").read_text()
