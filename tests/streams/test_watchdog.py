"""The watchdog behind a transactional producer, on real Kafka: a marker that nobody is given is no lag, a record that hangs is."""

from __future__ import annotations

import time
from typing import NoReturn

import pytest
from confluent_kafka import Producer

from schemas.avro import encode
from streams import watchdog
from streams.lane import Lane, Place, Reading, Turn
from streams.settings import Settings, librdkafka
from streams.watchdog import Watchdog
from tests.streams.conftest import Bench, a_clearing, committed


def tell_in_transaction(bench: Bench, *ids: str) -> None:
    """Puts clearings with these ids into partition 0, and the marker of their transaction behind them."""
    producer = Producer(librdkafka(bench.settings) | {"transactional.id": bench.name})
    producer.init_transactions(20)
    producer.begin_transaction()
    for name in ids:
        producer.produce(bench.topic.name, encode(a_clearing(f"{bench.name}.{name}", "a0")), "a0", 0)
    producer.commit_transaction(20)


class Barked(Exception):
    """The watchdog would have ended this process."""


class Tame(Watchdog):
    """A watchdog that says so instead of ending the process of the tests."""

    def _bark(self, why: str) -> NoReturn:
        raise Barked(why)


def test_an_idle_app_behind_a_transactions_marker_lives_and_a_handler_that_hangs_there_is_still_ended(bench: Bench) -> None:
    bench.settings = bench.settings.changed(watchdog_s=2)
    tell_in_transaction(bench, "1", "2")
    first = bench.start("hung")
    bench.until(lambda: committed(bench) == 2)
    time.sleep(6)
    assert first.poll() is None, bench.said[-3000:]
    first.terminate()
    assert first.wait(20) == 0
    second = bench.start("hung")
    time.sleep(6)
    assert second.poll() is None, bench.said[-3000:]
    tell_in_transaction(bench, "hang")
    assert second.wait(20) == watchdog.STALLED
    assert sorted(bench.written) == ["1", "2"]


def test_a_record_that_came_just_now_is_given_its_time_though_a_marker_has_lain_before_it_for_long(bench: Bench) -> None:
    lane, turn = Lane(bench.topic, 10), Turn(frozenset({(bench.topic.name, 0)}))
    turn.prepared.set()
    reading = Reading({bench.topic.name: lane})
    reading.begin(turn)
    dog = Tame(bench.name, reading, bench.settings.changed(watchdog_s=30))
    tell_in_transaction(bench, "1", "2")
    lane.done[0] = 2
    dog.look(0.0)
    tell_in_transaction(bench, "3")
    dog.look(31.0)
    dog.look(32.0)
    dog.look(61.0)
    with pytest.raises(Barked):
        dog.look(63.0)
    dog.start()
    dog.stop()


@pytest.mark.parametrize(("places", "why"), [((), "no partitions were assigned"), ((("clearings", 0),), "for the assigned partitions")])
def test_where_nothing_is_followed_it_says_whether_partitions_were_assigned(places: tuple[Place, ...], why: str) -> None:
    reading = Reading({})
    reading.begin(Turn(frozenset(places)))
    dog = Tame("hold", reading, Settings(watchdog_s=1))
    with pytest.raises(Barked, match=why):
        dog.look(time.monotonic() + 5)
