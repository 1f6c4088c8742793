"""The load on the HTTP door: a closed loop over many connections, or an open loop that times from the scheduled moment.

Run as a process of its own (`python -m tests.bench.load PORT ...`), so that it does not share a core's time slice with what it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import time
from collections import deque
from typing import Any

import uvloop

ANSWERED_OK = b"HTTP/1.1 200"
CONNECTIONS_MAX = 1_800
"""Of one generator: two of them are within what the service takes (`streams/authorize/protocol.py`)."""
PATIENCE_S = 0.1
"""So long a payment waits for a connection."""


def asking(key: str) -> dict[str, str]:
    """The headers of a host with this API key."""
    return {"content-type": "application/json", "authorization": f"Bearer {key}"}


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time; answers are told from each other by content-length."""

    def __init__(self) -> None:
        self.buffer = b""
        self.waiting: asyncio.Future[bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport  # uvloop's is no asyncio.Transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self.buffer.lower().find(b"content-length:", 0, head)
        length = int(self.buffer[at + 15 : self.buffer.find(b"\r\n", at)])
        if len(self.buffer) < head + 4 + length:
            return
        ok, self.buffer = self.buffer.startswith(ANSWERED_OK), self.buffer[head + 4 + length :]
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(ok)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(False)

    @property
    def is_cut(self) -> bool:
        """Whether the service ended it: it is idle too long, or there are more than it takes."""
        return bool(self.transport.is_closing())

    async def ask(self, request: bytes) -> bool:
        """Whether the request was answered with 200."""
        if self.is_cut:
            return False
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.waiting


class Pool:
    """The connections of an open loop: so many as were needed at once, and never more than CONNECTIONS_MAX."""

    def __init__(self, port: int) -> None:
        self.idle: list[Connection] = []
        self._port, self._count = port, 0
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()

    async def opened(self) -> Connection:
        """One more."""
        self._count += 1
        return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._port))[1]

    async def taken(self) -> Connection | None:
        """One that is idle, or a new one, or the next that becomes idle; None where none can be opened."""
        while self.idle:
            if not (connection := self.idle.pop()).is_cut:
                return connection
            self._count -= 1
        if self._count >= CONNECTIONS_MAX:
            turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            if (free := await turn) is not None:
                return free
        try:
            return await self.opened()
        except OSError:
            return None

    def give_back(self, connection: Connection | None) -> None:
        """It is idle again, or was cut: whoever has waited longest takes it, or opens one in its place."""
        usable = None if connection is None or connection.is_cut else connection
        if usable is None:
            self._count -= 1
        if self._waiting:
            self._waiting.popleft().set_result(usable)
        elif usable is not None:
            self.idle.append(usable)


def requests_of(bodies: list[bytes], path: str, key: str) -> list[bytes]:
    """Whole HTTP requests: POST of each body, or GET of the path where there are none."""
    if not bodies:
        return [f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()] * 1000
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: "
    return [head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body for body in bodies]


async def closed_loop(port: int, requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    """As fast as answers come: how many a second were answered 200, and the latency of each, milliseconds; `count` is of all."""
    loop = asyncio.get_running_loop()
    opened = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(connections)]
    took: list[float] = []
    failed = 0
    pending = iter(requests)
    end = time.perf_counter() + seconds

    async def ask_on(connection: Connection) -> None:
        nonlocal failed
        for request in pending:
            started = time.perf_counter()
            if started >= end:
                return
            ok = await connection.ask(request)
            failed += not ok  # read after the answer: others count meanwhile
            took.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(ask_on(connection) for connection in opened))
    elapsed = time.perf_counter() - started
    for connection in opened:
        connection.transport.close()
    return {"per_s": (len(took) - failed) / elapsed, "count": len(took), "failed": failed, **quantiles_ms(took)}


async def open_loop(port: int, requests: list[bytes], connections: int, rate: float, seconds: float) -> dict[str, float]:
    """Poisson arrivals at `rate`/s, each timed from its scheduled moment; `stall_ms` is how late this generator itself was (p99).

    Where all its connections wait for answers more are opened, up to CONNECTIONS_MAX; then a payment waits for one, and has failed without being
    asked when none comes within PATIENCE_S.
    """
    pool = Pool(port)
    pool.idle += [await pool.opened() for _ in range(connections)]
    took: list[float] = []
    late: list[float] = []
    good: list[float] = []
    failed = 0
    chance = random.Random(7)
    under_way: set[asyncio.Task[None]] = set()

    async def ask(request: bytes, scheduled: float) -> None:
        nonlocal failed
        connection = await pool.taken()
        in_time = time.perf_counter() - scheduled < PATIENCE_S
        ok = in_time and connection is not None and await connection.ask(request)
        pool.give_back(connection)
        seconds = time.perf_counter() - scheduled
        failed += not ok
        took.append(seconds)
        if ok:
            good.append(seconds)

    began = scheduled = time.perf_counter()
    end = scheduled + seconds
    for request in requests:
        scheduled += chance.expovariate(rate)
        if scheduled >= end:
            break
        wait = scheduled - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        late.append(time.perf_counter() - scheduled)
        task = asyncio.ensure_future(ask(request, scheduled))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    lasted = max(seconds, time.perf_counter() - began)
    answered = {"good_per_s": len(good) / lasted, "good_p99_ms": quantiles_ms(good)["p99_ms"]}
    stalls = {"stall_ms": quantiles_ms(late)["p99_ms"], "stall_max_ms": max(late, default=0.0) * 1e3}
    asked = {"per_s": len(took) / lasted, "count": len(took), "asked_per_s": len(late) / lasted, "failed": failed}
    return {**asked, **quantiles_ms(took), **answered, **stalls}


def quantiles_ms(seconds: list[float]) -> dict[str, float]:
    """p50, p99 and p99.9, milliseconds."""
    ordered = sorted(seconds) or [float("nan")]
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * q))] * 1e3 for name, q in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999))}


def main() -> None:
    """Reads bodies, one a line, from standard input; prints one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--path", default="/v1/authorizations")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rate", type=float, default=0)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    requests = requests_of(sys.stdin.buffer.read().splitlines(), args.path, os.environ.get("HOLDFAST_API_KEY", ""))
    if args.path == "/health":
        requests = requests * 1000
    work = (
        open_loop(args.port, requests, args.connections, args.rate, args.seconds)
        if args.rate
        else closed_loop(args.port, requests, args.connections, args.seconds)
    )
    print(json.dumps(uvloop.run(work)))


if __name__ == "__main__":
    main()
