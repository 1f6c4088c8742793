"""The bus: acknowledged means that the log has it; what is not acknowledged in time is indefinite; a topic is read from end to end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from aiokafka.partitioner import DefaultPartitioner
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from schemas.avro import encode
from schemas.errors import InvalidRecord, LogUnavailable
from schemas.topics import CLEARINGS, DECISIONS, SAR_CANDIDATES
from streams import bus
from streams.bus import KafkaBus, ListBus, end_offsets, read_tail, read_topic
from streams.hold import APP as HOLD
from streams.settings import Settings, librdkafka
from streams.stack import running
from tests.streams.conftest import Bench, a_clearing, messages


def test_what_is_acknowledged_is_in_the_log_in_order_and_where_every_client_looks_for_its_key(bench: Bench) -> None:
    bench.tell(*map(str, range(1_000)))
    found = messages(bench.settings, bench.topic)
    assert len(found) == 1_000
    for partition in range(4):
        mine = [m for m in found if m.partition == partition]
        assert [m.offset for m in mine] == list(range(len(mine)))
        assert all(DefaultPartitioner()(m.key, [0, 1, 2, 3], [0, 1, 2, 3]) == partition for m in mine)
    by_key = [m.value for m in found if m.key == b"a3"]
    assert by_key == [encode(a_clearing(f"{bench.name}.{n}", "a3")) for n in range(3, 1_000, 20)]


def test_a_topic_is_read_from_an_offset_and_from_its_tail(bench: Bench) -> None:
    bench.tell(*map(str, range(400)))
    ends = {p: high for p, (_, high) in end_offsets(bench.settings, bench.topic).items()}
    assert sum(ends.values()) == 400
    late = [m for batch in read_topic(bench.settings, bench.topic, {p: end - 2 for p, end in ends.items()}) for m in batch]
    tail = [m for batch in read_tail(bench.settings, bench.topic, [0, 1, 2, 3, 9], 2) for m in batch]
    assert sorted(late) == sorted(tail)
    assert sorted((m.partition, m.offset) for m in tail) == sorted((p, end - n) for p, end in ends.items() for n in (1, 2) if end)
    assert not list(read_topic(bench.settings, CLEARINGS._replace(name="not_there")))


def test_what_goes_with_a_record_is_in_the_log_beside_it(bench: Bench) -> None:
    async def story() -> None:
        bus = KafkaBus(bench.settings.changed(produce_timeout_ms=20_000))
        await bus.tell(bench.topic, "a1", b"with", (("traceparent", b"00-1-2-01"),))
        await bus.tell(bench.topic, "a1", b"without")
        await bus.close()

    asyncio.run(story())
    consumer = Consumer(librdkafka(bench.settings) | {"group.id": "headers", "auto.offset.reset": "earliest"})
    consumer.subscribe([bench.topic.name])
    found = {m.value(): m.headers() for m in consumer.consume(2, 60)}
    consumer.close()
    assert found == {b"with": [("traceparent", b"00-1-2-01")], b"without": None}


def test_an_acknowledgement_rings_and_nobody_has_to_look_for_it(bench: Bench) -> None:
    async def story() -> None:
        bus = KafkaBus(bench.settings.changed(produce_timeout_ms=20_000))
        assert bus._bell is not None, "the client that is installed has no bell: see `streams/bell.py`"
        bus._pump.cancel()  # so that nothing looks
        for n in range(20):
            await asyncio.wait_for(bus.tell(bench.topic, f"a{n}", b"x"), 20)
        bus._lost = True
        bus._take()
        await asyncio.wait_for(bus.tell(bench.topic, "a1", b"by the next producer"), 20)
        await bus.close()
        assert bus._bell is None

    asyncio.run(story())
    assert len(messages(bench.settings, bench.topic)) == 21


def test_where_nothing_rings_the_bus_looks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.bell.KNOWN", ())

    async def story() -> None:
        bus = KafkaBus(bench.settings.changed(produce_timeout_ms=20_000))
        assert bus._bell is None
        await asyncio.gather(*(bus.tell(bench.topic, f"a{n}", b"x") for n in range(20)))
        await bus.close()

    asyncio.run(story())
    assert len(messages(bench.settings, bench.topic)) == 20


def test_without_brokers_the_result_is_indefinite_in_time(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(data_dir=tmp_path, kafka_bootstrap=f"127.0.0.1:{port}", produce_timeout_ms=300)

    async def story() -> None:
        bus = KafkaBus(settings)
        with pytest.raises(LogUnavailable):
            await asyncio.wait_for(bus.tell(CLEARINGS, "a1", b"x"), 3)
        await bus.close()

    asyncio.run(story())


def test_after_a_fatal_error_the_bus_makes_itself_a_new_producer(bench: Bench) -> None:
    async def story() -> None:
        bus = KafkaBus(bench.settings.changed(produce_timeout_ms=20_000))
        await bus.tell(bench.topic, "a1", b"before")
        first = bus._producer
        bus.on_error(KafkaError(KafkaError._FATAL, "the idempotent session is lost", fatal=True))
        under_way = [bus.tell(bench.topic, "a1", b"meanwhile") for _ in range(100)]
        for result in await asyncio.gather(*under_way, return_exceptions=True):
            assert result is None or isinstance(result, LogUnavailable)
        while bus._producer is first:
            await asyncio.sleep(0.05)
        await bus.tell(bench.topic, "a1", b"after")
        await bus.close()

    asyncio.run(story())
    values = [m.value for m in messages(bench.settings, bench.topic)]
    assert values[0] == b"before"
    assert values[-1] == b"after"


def test_a_full_queue_makes_records_wait_and_keeps_their_order(bench: Bench) -> None:
    async def story() -> None:
        bus = KafkaBus(bench.settings.changed(produce_timeout_ms=20_000))
        bus._conf["queue.buffering.max.messages"] = 10
        bus._lost = True
        while bus._lost:
            await asyncio.sleep(0.05)
        await asyncio.gather(*(bus.tell(bench.topic, "a1", b"%d" % n) for n in range(500)))
        await bus.close()

    asyncio.run(story())
    assert [m.value for m in messages(bench.settings, bench.topic)] == [b"%d" % n for n in range(500)]


def test_a_record_that_the_log_never_takes_is_refused_and_not_tried_again(bench: Bench) -> None:
    async def story() -> None:
        bus = KafkaBus(bench.settings)
        with pytest.raises(InvalidRecord) as fault:
            await bus.tell(bench.topic, "a1", b"x" * 1_100_000)
        assert fault.value.code == "too_large"
        await bus.close()

    asyncio.run(story())


def test_the_embedded_broker_serves_as_well(tmp_path: Path) -> None:
    mock = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    broker = next(iter(mock.list_topics(timeout=5).brokers.values()))
    settings = Settings(data_dir=tmp_path, kafka_bootstrap=f"{broker.host}:{broker.port}", produce_timeout_ms=10_000)

    async def story() -> None:
        bus = KafkaBus(settings)
        await asyncio.gather(*(bus.tell(DECISIONS, f"a{n}", b"x") for n in range(100)))
        await bus.close()

    asyncio.run(story())
    assert len(messages(settings, DECISIONS)) == 100
    assert len([m for batch in read_tail(settings, DECISIONS, [0, 1, 2, 3], 5) for m in batch]) == 20
    assert not messages(settings, SAR_CANDIDATES)


def test_what_a_group_has_committed_of_several_topics_is_asked_by_one_consumer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, reader = list[object](), bus.reader
    with running(Settings(data_dir=tmp_path, http_port=0), broker_name="embedded", apps=()) as stack:
        producer = Producer(librdkafka(stack.settings))
        for topic in HOLD.reads:
            producer.list_topics(topic.name, timeout=10)  # on the embedded broker a topic appears when a producer asks for it
        consumer = Consumer(librdkafka(stack.settings) | {"group.id": HOLD.name})
        consumer.commit(offsets=[TopicPartition(DECISIONS.name, 1, 5), TopicPartition(CLEARINGS.name, 2, 7)], asynchronous=False)
        consumer.close()
        monkeypatch.setattr(bus, "reader", lambda *words: opened.append(words) or reader(*words))
        assert bus.committed_of(stack.settings, HOLD.name, HOLD.reads) == {("decisions", 1): 5, ("clearings", 2): 7}
    assert len(opened) == 1


def test_the_list_bus_keeps_what_it_is_told_and_fails_while_it_is_down() -> None:
    async def story() -> None:
        bus = ListBus()
        await bus.tell(CLEARINGS, "a1", encode(a_clearing("c1", "a1")))
        bus.down = True
        with pytest.raises(LogUnavailable):
            await bus.tell(CLEARINGS, "a1", b"")
        assert bus.records(CLEARINGS) == [a_clearing("c1", "a1")]

    asyncio.run(story())
