"""A rolling restart: two services behind a load balancer are stopped and started one after the other, and no host sees an error."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from contextlib import closing, suppress
from typing import Any

import pytest

from schemas.transaction import Transaction
from streams.stack import Stack
from tests.bench.faults import Host, payments

pytestmark = pytest.mark.integration

RATE, QUIET_RATE, LOOK_S = 60, 10, 0.1
"""Payments a second: while a service stops and after it is ready again, where an error would be seen; and while it starts."""


class Balancer(Host):
    """What a load balancer does: looks at `/ready`, asks the ready ones in turn, and never asks twice."""

    def __init__(self, ports: list[int], api_key: str) -> None:
        super().__init__(ports, 5_000, api_key)
        self._all, self._turns = ports, itertools.count()
        self.errors: Counter[str] = Counter()
        self.asked: Counter[int] = Counter()
        self.rate = RATE

    async def look(self) -> None:
        """Keeps `_ports` to those that are ready."""
        while True:
            self._ports = [port for port in self._all if await self._is_ready(port)]
            await asyncio.sleep(LOOK_S)

    async def _is_ready(self, port: int) -> bool:
        with suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                with closing(writer):
                    writer.write(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    return (await reader.read()).startswith(b"HTTP/1.1 200")
        return False

    async def ask(self, txn: Transaction) -> tuple[int, bytes]:
        port = self._ports[next(self._turns) % len(self._ports)]
        try:
            status, body = await self._on(port, self.request(txn))
        except (OSError, EOFError) as error:
            self.errors[repr(error)] += 1
            return 0, b""
        self.asked[port] += 1
        if status != 200:
            self.errors[str(status)] += 1
        return status, body


async def _load(balancer: Balancer, stopped: asyncio.Event) -> None:
    txns = iter(payments(1_000_000 // 100, f"roll{time.time_ns()}-", "roll", 2_000))
    under_way = set[asyncio.Task[Any]]()
    while not stopped.is_set():
        task = asyncio.create_task(balancer.ask(next(txns)))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        await asyncio.sleep(1 / balancer.rate)
    await asyncio.gather(*under_way)


def test_a_rolling_restart_under_load_shows_no_error(stack: Stack) -> None:
    other = "authorize-8"
    ports = [stack.settings.http_port, stack.start_another("authorize", 8).http_port]
    stack.wait_ready([other], 60)

    async def play() -> Balancer:
        balancer, stopped = Balancer(ports, stack.settings.api_key), asyncio.Event()
        looking = asyncio.create_task(balancer.look())
        await asyncio.sleep(3 * LOOK_S)
        load = asyncio.create_task(_load(balancer, stopped))
        for name in ("authorize", other):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(stack.part(name).stop)
            balancer.rate = QUIET_RATE
            await asyncio.to_thread(stack.part(name).start)
            await asyncio.to_thread(stack.wait_ready, [name], 60)
            balancer.rate = RATE
            await asyncio.sleep(1 + 3 * LOOK_S)
        stopped.set()
        await load
        looking.cancel()
        balancer.close()
        await asyncio.sleep(0.01)
        return balancer

    balancer = asyncio.run(play())
    print(f"\n  {sum(balancer.asked.values())} asked, by port {dict(balancer.asked)}, errors {dict(balancer.errors)}")
    assert not balancer.errors, balancer.errors
    assert min(balancer.asked.values()) > RATE
    stack.part(other).stop()
