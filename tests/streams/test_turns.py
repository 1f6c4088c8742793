"""One assignment of partitions after another: what is left of the one before does not reach into the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from schemas.avro import encode
from schemas.errors import LogUnavailable
from schemas.hold import Clearing
from schemas.record import Record
from schemas.topics import CLEARINGS
from streams.bus import ListBus, Message
from streams.follow import FINISH_S, Follower, Harness, Source
from streams.lane import Lane, Place
from streams.settings import Settings
from tests.streams.conftest import a_clearing


def places(*partitions: int) -> frozenset[Place]:
    return frozenset((CLEARINGS.name, partition) for partition in partitions)


def put(lane: Lane, partition: int, *ids: str) -> None:
    """What a consumer reads: of one account."""
    records = [encode(a_clearing(name, "a1")) for name in ids]
    lane.put([Message(CLEARINGS.name, partition, offset, 0, b"a1", record) for offset, record in enumerate(records)])


async def until(said: Callable[[], object], happened: object = True) -> None:
    """Waits for something, 20 seconds at most."""
    async with asyncio.timeout(20):
        while said() != happened:
            await asyncio.sleep(0.001)


async def nothing(_: object, __: Clearing, ___: Source) -> Sequence[Record]:
    return ()


def test_what_an_earlier_turn_reads_late_does_not_replace_what_a_later_one_read(tmp_path: Path) -> None:
    async def story() -> None:
        known: list[frozenset[Place]] = []
        slow = asyncio.Event()

        async def assigned(_: None, found: frozenset[Place]) -> None:
            if found == places(0, 1):
                await slow.wait()
            known.append(found)

        harness = Harness(Follower("feedback", {CLEARINGS: nothing}, assigned=assigned), None, ListBus(), Settings(data_dir=tmp_path))
        harness.on_assigned(places(0, 1))
        await asyncio.sleep(0.05)
        harness.on_assigned(places(1))
        await asyncio.sleep(0.05)
        slow.set()
        await until(harness.reading.turn.prepared.is_set)
        await asyncio.sleep(0.05)
        assert known[-1] == places(1)
        await harness.finish()

    asyncio.run(story())


def test_what_waits_in_vain_is_left_to_the_next_owner_and_nothing_after_it_is_done(tmp_path: Path) -> None:
    async def story() -> None:
        tried: list[str] = []

        async def waits(_: None, clearing: Clearing, source: Source) -> Sequence[Record]:
            tried.append(clearing.clearing_id)
            if source.partition == 0:
                raise LogUnavailable("what it waits for is followed by another process now")
            return ()

        harness = Harness(Follower("hold", {CLEARINGS: waits}), None, ListBus(), Settings(data_dir=tmp_path))
        lane = harness.lanes[CLEARINGS.name]
        harness.begin(harness.follow(lane))
        harness.on_assigned(places(0, 1))
        put(lane, 0, "c1", "c2")
        await until(lambda: tried[:2] == ["c1", "c1"])
        harness.on_assigned(places(1))
        put(lane, 1, "c3")
        await until(lambda: lane.done, {1: 1})
        assert "c2" not in tried
        assert tried[-1] == "c3"
        assert harness.reading.turn.next == {(CLEARINGS.name, 1): 1}
        await harness.finish()

    asyncio.run(story())


def test_what_fails_while_the_process_ends_is_not_acknowledged_with_what_came_after_it(tmp_path: Path) -> None:
    async def story() -> None:
        under_way: set[str] = set()
        ending = asyncio.Event()

        async def fails_late(_: None, clearing: Clearing, __: Source) -> Sequence[Record]:
            under_way.add(clearing.clearing_id)
            if clearing.clearing_id != "c0":
                await ending.wait()
            if clearing.clearing_id == "c1":
                raise RuntimeError("nobody foresaw it")
            return ()

        harness = Harness(Follower("hold", {CLEARINGS: fails_late}), None, ListBus(), Settings(data_dir=tmp_path))
        lane = harness.lanes[CLEARINGS.name]
        following = asyncio.create_task(harness.follow(lane))
        harness.on_assigned(places(0))
        for offset, name in enumerate(("c0", "c1", "c2")):
            lane.put([Message(CLEARINGS.name, 0, offset, 0, name.encode(), encode(a_clearing(name, name)))])
            await until(lambda name=name: name in under_way)  # type: ignore[misc]
        harness.stop()
        finishing = asyncio.create_task(harness.finish())
        await asyncio.sleep(0)
        ending.set()
        await finishing
        following.cancel()
        assert harness.reading.turn.next == {(CLEARINGS.name, 0): 1}
        assert harness.failed

    asyncio.run(story())


def test_what_comes_after_a_record_that_failed_is_not_done_for_its_key_in_the_next_batch_either(tmp_path: Path) -> None:
    async def story() -> None:
        tried: list[str] = []
        began = asyncio.Event()

        async def fails(_: None, clearing: Clearing, __: Source) -> Sequence[Record]:
            tried.append(clearing.clearing_id)
            if clearing.clearing_id == "c2":
                began.set()
            if clearing.clearing_id == "c1":
                await began.wait()
                raise RuntimeError("nobody foresaw it")
            return ()

        harness = Harness(Follower("hold", {CLEARINGS: fails}), None, ListBus(), Settings(data_dir=tmp_path))
        lane = harness.lanes[CLEARINGS.name]
        following = asyncio.create_task(harness.follow(lane))
        harness.on_assigned(places(0))
        for first, some in enumerate((["c0"], ["c1"], ["c2", "c3"])):  # the next batch begins once there was one before it
            accounts = {"c1": "a1", "c3": "a1"}
            records = [(account := accounts.get(name, name), encode(a_clearing(name, account))) for name in some]
            lane.put([Message(CLEARINGS.name, 0, first + n, 0, key.encode(), value) for n, (key, value) in enumerate(records)])
            await until(lambda some=some: some[0] in tried)  # type: ignore[misc]
        await until(lambda: harness.failed)
        await asyncio.sleep(0.05)
        assert tried == ["c0", "c1", "c2"]
        following.cancel()
        await harness.finish()

    asyncio.run(story())


def test_who_is_to_end_while_it_prepares_ends_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        preparing = asyncio.Event()

        async def assigned(_: None, __: frozenset[Place]) -> None:
            preparing.set()
            await asyncio.Event().wait()

        harness = Harness(Follower("hold", {CLEARINGS: nothing}, assigned=assigned), None, ListBus(), Settings(data_dir=tmp_path))
        lane = harness.lanes[CLEARINGS.name]
        following = asyncio.create_task(harness.follow(lane))
        harness.on_assigned(places(0))
        put(lane, 0, "c1")
        await preparing.wait()
        await until(lane.idle.is_set, False)
        harness.stop()
        async with asyncio.timeout(FINISH_S / 2):
            await harness.finish()
        following.cancel()
        assert not harness.reading.turn.next

    asyncio.run(story())
