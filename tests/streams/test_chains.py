"""Work by key: what comes with a key waits for what came before with it, of whatever batch; other keys do not."""

from __future__ import annotations

import asyncio
import random

from streams.follow import Chains


def test_a_key_keeps_its_order_over_batches_and_others_do_not_wait() -> None:
    async def story() -> None:
        chance, chains = random.Random(1), Chains()
        done: list[tuple[bytes, int]] = []
        tasks: list[asyncio.Task[None]] = []
        number = 0
        for _ in range(40):
            for key in (b"a", b"b", b"c"):
                indexes = [number, number + 1]
                number += 2

                async def chain(indexes: list[int], earlier: asyncio.Task[None] | None, key: bytes = key) -> None:
                    if earlier is not None:
                        await asyncio.wait((earlier,))
                    for index in indexes:
                        await asyncio.sleep(chance.random() / 1_000)
                        done.append((key, index))

                tasks.append(chains.begin(key, indexes, chain))
        await asyncio.gather(*tasks)
        for key in (b"a", b"b", b"c"):
            mine = [index for each, index in done if each == key]
            assert mine == sorted(mine)
            assert len(mine) == 80
        assert done != sorted(done, key=lambda each: each[1]), "keys did not wait for each other"
        await asyncio.sleep(0)
        assert not chains._last, "nothing is kept of what is done"

    asyncio.run(story())


def test_work_without_a_key_waits_for_nothing() -> None:
    async def story() -> None:
        chains, began = Chains(), []

        async def chain(indexes: list[int], earlier: asyncio.Task[None] | None) -> None:
            assert earlier is None
            began.extend(indexes)

        await asyncio.gather(*(chains.begin(0, [n], chain) for n in range(3)))
        assert began == [0, 1, 2]

    asyncio.run(story())
