"""Past capacity: who cannot be answered in time is told so at once, and the others are answered as if nothing were."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from streams.authorize.http import OVERLOADED, SHEDDABLE
from streams.authorize.iso8583 import ISO8583
from streams.authorize.under_way import FEW, PER_S_FIRST, SHED_SHARE
from tests.walk.test_http import Host
from tests.world import a_world

CAPACITY_PER_S, TIMES, SECONDS, DEADLINE_MS = 100, 4, 2.0, 1_000


@pytest.mark.alone
def test_at_four_times_its_capacity_a_service_does_as_much_as_at_one_and_in_time() -> None:
    async def main() -> None:
        world = a_world()
        world.know(balance_minor=10**9)
        host, one_at_a_time, loop = Host(world, DEADLINE_MS), asyncio.Lock(), asyncio.get_running_loop()
        recall_all, worked_at = world.world.memory.recall_all, 0

        async def slowly(txns: Sequence[Any], asides: Sequence[Any]) -> list[Any]:
            nonlocal worked_at
            async with one_at_a_time:
                worked_at += len(txns)
                await asyncio.sleep(len(txns) / CAPACITY_PER_S)
                return await recall_all(txns, asides)

        world.world.memory.recall_all = slowly  # type: ignore[method-assign,assignment]
        took, shed = list[float](), 0

        async def ask(number: int) -> None:
            began = loop.time()
            status, _, _ = await host.authorize(transaction_id=f"t{number}", card_number=f"4{number:015}")
            if status == 200:
                took.append(loop.time() - began)

        began = loop.time()
        async with asyncio.TaskGroup() as asked:
            number = 0
            while loop.time() < began + SECONDS:
                while number < (loop.time() - began) * CAPACITY_PER_S * TIMES:
                    number += 1
                    if host.door.shed(SHEDDABLE) is not None:
                        shed += 1
                    else:
                        asked.create_task(ask(number))
                await asyncio.sleep(0.005)
        assert shed > number / 3
        assert len(took) >= 0.8 * worked_at, "hardly any work is done for one who has gone; on a machine of any speed"
        assert sorted(took)[len(took) // 2] < DEADLINE_MS / 1000
        assert host.door.shed(b"/health") is None
        assert host.door.shed(SHEDDABLE) is None, "once they are answered there is room again"

    asyncio.run(main())


def test_what_comes_in_one_tick_of_the_loop_meets_those_before_it() -> None:
    """A service that reads thousands of sockets at once would have let all of them in, as none was being decided yet."""

    async def main() -> None:
        host = Host(a_world(), DEADLINE_MS)
        let_in = [host.door.shed(SHEDDABLE) for _ in range(20_000)].count(None)
        assert let_in == PER_S_FIRST * SHED_SHARE * DEADLINE_MS / 1000 + 1
        await asyncio.sleep(0)
        assert host.door.shed(SHEDDABLE) is None, "none of them was decided: nothing is under way"

    asyncio.run(main())


def test_what_waits_for_the_log_at_another_door_makes_no_room_at_this() -> None:
    async def main() -> None:
        world = a_world()
        host = Host(world, DEADLINE_MS)
        world.world.telling[ISO8583.topic] += 10_000
        assert OVERLOADED in [host.door.shed(SHEDDABLE) for _ in range(20_000)]

    asyncio.run(main())


def test_how_fast_a_service_is_stays_known_while_little_is_asked() -> None:
    """Once it had few under way it was taken to be without end, and all that came next was let in."""

    async def main() -> None:
        world = a_world()
        world.know(balance_minor=10**9)
        host, loop, number = Host(world, DEADLINE_MS), asyncio.get_running_loop(), 0
        recall_all = world.world.memory.recall_all

        async def slowly(txns: Sequence[Any], asides: Sequence[Any]) -> list[Any]:
            await asyncio.sleep(0.2)
            return await recall_all(txns, asides)

        world.world.memory.recall_all = slowly  # type: ignore[method-assign,assignment]
        until_s = loop.time() + 3.0
        async with asyncio.TaskGroup() as asked:
            while loop.time() < until_s:
                for _ in range(4):  # FEW are always under way: more than 80 at a time
                    if host.door.shed(SHEDDABLE) is None:
                        asked.create_task(host.authorize(transaction_id=f"t{(number := number + 1)}", card_number=f"4{number:015}"))
                await asyncio.sleep(0.01)
        let_in = [host.door.shed(SHEDDABLE) for _ in range(20_000)].count(None)
        assert FEW < let_in <= 400 * 1.5 * SHED_SHARE * DEADLINE_MS / 1000, "it was asked 400 times a second, and did no more"

    asyncio.run(main())
