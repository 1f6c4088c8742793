"""Past capacity: who cannot be answered in time is told so at once, and the others are answered as if nothing were."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from streams.authorize.http import SHEDDABLE
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
