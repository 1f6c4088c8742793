"""The harness on real Kafka: what is unreadable does not stop it, what dies loses nothing, what hangs is ended."""

from __future__ import annotations

import asyncio
import json
import signal
from types import SimpleNamespace

import psutil
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from faust.types import TP

from schemas.avro import decode, encode
from schemas.dead_letter import DeadLetter
from schemas.topics import LEDGER
from streams import watchdog
from streams.bus import ListBus, Message, end_offsets
from streams.consumer import Consumer
from streams.follow import Follower, Harness
from streams.lane import Lane, Reading, Turn
from streams.settings import Settings, librdkafka
from tests.streams.conftest import Bench, committed, forget_offsets


def numbers(count: int) -> list[str]:
    """Ids."""
    return [str(n) for n in range(count)]


def test_what_cannot_be_applied_becomes_a_dead_letter_and_the_stream_goes_on(bench: Bench) -> None:
    bench.tell("1")
    bench.tell_bytes(("a0", b"no frame"), ("a0", b"\0\0\0\0\4cut short"), ("a1", b"\0\0\1\0\0"))
    bench.tell_bytes(("a1", b"x" * 950_000))
    bench.tell("refuse", "2")
    worker = bench.start("plain")
    bench.until(lambda: len(bench.written) == 2 and len(bench.dead) == 5)
    codes = {letter.value: letter.code for letter in bench.dead}
    assert codes[b"no frame"] == "unknown_schema"
    assert codes[b"\0\0\0\0\4cut short"] in ("unreadable_bytes", "unknown_schema")
    refused = next(letter for letter in bench.dead if letter.code == "not_today")
    assert (refused.field, refused.reason, refused.topic) == ("clearing_id", "the test says so", bench.topic.name)
    assert "950,000 bytes" in next(letter.reason for letter in bench.dead if letter.value is None)
    bench.until(lambda: committed(bench) == 7)
    bench.until(lambda: "tick [0, 1, 2, 3]" in bench.said)
    listening = [c for c in psutil.Process(worker.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert not listening, "an app listens only for Prometheus, and only where it is told to"


def test_a_dead_letter_can_be_read_again_whatever_time_its_record_had() -> None:
    async def letter_of(timestamp_ms: int) -> DeadLetter:
        harness = Harness(Follower("ledger", {}), None, ListBus(), Settings())
        return harness._dead_letter(Message("holds", 0, 0, timestamp_ms, None, None), "unreadable_bytes", "value", "the message has no value")

    for timestamp_ms in (-1, 0, 1_767_225_600_000_000, 2**63 - 1):  # none, the first, one in microseconds, the last
        letter = asyncio.run(letter_of(timestamp_ms))
        assert decode(DeadLetter, encode(letter)) == letter


def test_sigterm_finishes_the_batch_commits_and_ends_with_0(bench: Bench) -> None:
    bench.tell(*numbers(300))
    worker = bench.start("slow")
    bench.until(lambda: len(bench.written) > 0)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert committed(bench) == len(bench.written) > 0
    bench.start("plain")
    bench.until(lambda: committed(bench) == 300)
    assert sorted(bench.written) == sorted(numbers(300))


def test_kill_9_in_the_middle_of_a_batch_loses_nothing_and_nothing_is_written_twice(bench: Bench) -> None:
    bench.settings = bench.settings.changed(batch_max=40)
    bench.tell(*numbers(2_000))
    for seen in (200, 900):
        worker = bench.start("slow", ready=False)
        bench.until(lambda seen=seen: len(bench.written) > seen)
        worker.kill()
        assert worker.wait() == -signal.SIGKILL
    bench.start("plain", ready=False)
    bench.until(lambda: committed(bench) == 2_000)
    assert sorted(bench.written) == sorted(numbers(2_000))


def test_what_is_delivered_again_is_not_written_again(bench: Bench) -> None:
    bench.tell(*numbers(500))
    worker = bench.start("plain")
    bench.until(lambda: committed(bench) == 500)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    forget_offsets(bench)
    assert committed(bench) == 0
    bench.start("plain")
    bench.until(lambda: committed(bench) == 500)
    assert sorted(bench.written) == sorted(numbers(500))


def test_records_that_the_brokers_dropped_before_they_were_followed_are_said(bench: Bench) -> None:
    bench.tell(*numbers(20), accounts=1)
    worker = bench.start("plain")
    bench.until(lambda: committed(bench) == 20)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    bench.tell(*numbers(30)[20:], accounts=1)
    ends = end_offsets(bench.settings, bench.topic)
    (partition,) = (number for number, (_, end) in ends.items() if end)
    admin = AdminClient(librdkafka(bench.settings))
    (dropped,) = admin.delete_records([TopicPartition(bench.topic.name, partition, 25)]).values()
    assert dropped.result(20).low_watermark == 25
    assert "dropped" not in bench.said
    bench.start("plain")
    bench.until(lambda: committed(bench) == 30)
    bench.until(lambda: "the brokers dropped records before they were followed" in bench.said)
    (said,) = (line for line in bench.said.splitlines() if "the brokers dropped" in line)
    assert {"topic": bench.topic.name, "partition": partition, "next": 20, "first": 25}.items() <= json.loads(said).items()


def test_what_lies_in_the_log_twice_is_followed_by_one_record(bench: Bench) -> None:
    for _ in range(2):
        bench.tell("1", "2")
    bench.start("plain")
    bench.until(lambda: committed(bench) == 4)
    bench.tell("1", "2")
    bench.until(lambda: committed(bench) == 6)
    assert sorted(bench.written) == ["1", "2"]


def test_workers_share_the_partitions_and_nothing_is_lost_when_one_joins_and_one_leaves(bench: Bench) -> None:
    bench.settings = bench.settings.changed(batch_max=20)
    bench.tell(*numbers(3_000))
    first = bench.start("slow")
    bench.until(lambda: len(bench.written) > 100)
    bench.start("slow", ready=False)
    bench.until(lambda: "tick [0, 1]" in bench.said and "tick [2, 3]" in bench.said)
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0
    bench.until(lambda: committed(bench) == 3_000, 60)
    assert set(bench.written) == set(numbers(3_000))
    assert len(bench.written) < 3_000 * 1.02


def test_an_unforeseen_error_ends_the_process_and_acknowledges_nothing(bench: Bench) -> None:
    bench.tell("1", "bad", "2", accounts=1)
    assert bench.start("bad", ready=False).wait(30) == 1
    assert committed(bench) == 0
    assert "ZeroDivisionError" in bench.said


def test_the_watchdog_ends_a_worker_that_hangs_and_one_that_blocks(bench: Bench) -> None:
    bench.settings = bench.settings.changed(watchdog_s=3)
    bench.tell("hang")
    for kind in ("hung", "blocked"):
        assert bench.start(kind, ready=False).wait(40) == watchdog.STALLED
    bench.start("plain")
    bench.until(lambda: bench.written == ["hang"])


def test_a_part_that_does_not_answer_is_tried_again_until_it_does(bench: Bench) -> None:
    bench.tell(*numbers(10))
    bench.start("patient")
    bench.until(lambda: sorted(bench.written) == sorted(numbers(10)))
    assert not bench.dead


def test_no_offset_is_committed_past_a_record_in_flight() -> None:
    turn = Turn(frozenset({("t", 0)}))
    reading = Reading({})
    reading.begin(turn)
    consumer = Consumer.__new__(Consumer)
    consumer.transport = SimpleNamespace(reading=reading)  # type: ignore[assignment] # all that the rule looks at
    assert consumer._new_offset(TP("t", 0)) is None
    turn.next["t", 0] = 7
    assert consumer._new_offset(TP("t", 0)) == 7
    reading.begin(Turn())
    turn.next["t", 0] = 9
    assert consumer._new_offset(TP("t", 0)) is None, "who no longer owns a partition commits nothing for it"


def test_a_lane_takes_at_most_a_batch_in_order_and_says_when_it_is_full() -> None:
    async def story() -> None:
        lane = Lane(LEDGER, 10)
        lane.put([Message("ledger", 0, n, 0, None, None) for n in range(45)])
        assert not lane.has_room
        assert [m.offset for m in await lane.take()] == list(range(10))
        assert not lane.idle.is_set()
        lane.rest()
        assert lane.has_room
        lane.empty()
        waiting = asyncio.create_task(lane.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        lane.put([Message("ledger", 0, 99, 0, None, None)])
        assert [m.offset for m in await waiting] == [99]

    asyncio.run(story())
