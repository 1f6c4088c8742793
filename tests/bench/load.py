"""The load on the HTTP door: a closed loop over many connections, or an open loop that times from the scheduled moment.

Run as a process of its own (`python -m tests.bench.load PORT ...`), so that it does not share a core's time slice with what it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import uvloop

from tests.bench.pace import arrivals, paced

ANSWERED_OK = b"HTTP/1.1 200"
CONNECTIONS_MAX = 1_800
"""Of one generator: two of them are within what the service takes (`streams/authorize/protocol.py`)."""
PATIENCE_S = 0.1
"""So long a payment waits for a connection."""


def asking(key: str) -> dict[str, str]:
    """The headers of a host with this API key."""
    return {"content-type": "application/json", "authorization": f"Bearer {key}"}


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time; answers are told from each other by content-length.

    `answered` is called with it and whether the answer is 200; False too where the connection falls with a request on it.
    """

    def __init__(self, answered: Callable[[Connection, bool], None]) -> None:
        self.answered = answered
        self.buffer = b""
        self.asked_at = 0.0
        """The moment of the request that is on it."""
        self.is_asking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport  # uvloop's is no asyncio.Transport

    def data_received(self, data: bytes) -> None:
        self.buffer = data = self.buffer + data if self.buffer else data
        head = data.find(b"\r\n\r\n")
        if head < 0:
            return
        at = data.lower().find(b"content-length:", 0, head)
        if len(data) < head + 4 + int(data[at + 15 : data.find(b"\r\n", at)]):
            return
        self.buffer = b""
        self._ended(data.startswith(ANSWERED_OK))

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(False)

    def _ended(self, ok: bool) -> None:
        if self.is_asking:
            self.is_asking = False
            self.answered(self, ok)

    @property
    def is_cut(self) -> bool:
        """Whether the service ended it: it is idle too long, or there are more than it takes."""
        return bool(self.transport.is_closing())

    def ask(self, request: bytes, moment: float) -> None:
        """Sends a request, which counts from that moment on."""
        self.is_asking, self.asked_at = True, moment
        if self.is_cut:
            asyncio.get_running_loop().call_soon(self._ended, False)
        else:
            self.transport.write(request)


async def connected(port: int, answered: Callable[[Connection, bool], None]) -> Connection:
    """A new connection."""
    return (await asyncio.get_running_loop().create_connection(lambda: Connection(answered), "127.0.0.1", port))[1]


class Offered:
    """An open loop: so many connections as are needed at once, and never more than CONNECTIONS_MAX. No task and no future for a payment: what
    the generator takes is not left for what it measures."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self.took, self.good = list[float](), list[float]()
        self._port, self._requests = port, requests
        self._idle: list[Connection] = []
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._count = self._left = 0
        self._opening: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, connections: int, moments: Iterable[float]) -> tuple[float, list[float]]:
        """Asks at these moments from when all is ready on; when that was, and how late each was."""
        for _ in range(connections):
            await self._opened()
        now = time.perf_counter()
        when = [now + moment for moment, _ in zip(moments, self._requests, strict=False)]
        self._left = len(when)
        late = await paced(when, self._begin)
        if self._left:
            await self._over
        for connection in self._idle:
            connection.transport.close()
        return now, late

    async def _opened(self) -> None:
        self._count += 1
        self._free(await connected(self._port, self._answered))

    async def _opened_or_not(self) -> None:
        try:
            await self._opened()
        except OSError:
            self._count -= 1
            if self._waiting:
                self._ended(False, self._waiting.popleft()[1])

    def _begin(self, number: int, moment: float) -> None:
        self._waiting.append((self._requests[number], moment))
        while self._idle:
            if not (connection := self._idle.pop()).is_cut:
                self._free(connection)
                return
            self._count -= 1
        if self._count < CONNECTIONS_MAX:
            self._open()

    def _answered(self, connection: Connection, ok: bool) -> None:
        self._ended(ok, connection.asked_at)
        if not connection.is_cut:
            self._free(connection)
            return
        self._count -= 1
        if self._waiting:
            self._open()

    def _open(self) -> None:
        opening = asyncio.get_running_loop().create_task(self._opened_or_not())
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    def _free(self, connection: Connection) -> None:
        """Whoever has waited longest takes it; who has waited for too long has failed without being asked."""
        now = time.perf_counter()
        while self._waiting:
            request, moment = self._waiting.popleft()
            if now - moment < PATIENCE_S:
                connection.ask(request, moment)
                return
            self._ended(False, moment)
        self._idle.append(connection)

    def _ended(self, ok: bool, moment: float) -> None:
        seconds = time.perf_counter() - moment
        self.took.append(seconds)
        if ok:
            self.good.append(seconds)
        self._left -= 1
        if not self._left and not self._over.done():
            self._over.set_result(None)


def requests_of(bodies: list[bytes], path: str, key: str) -> list[bytes]:
    """Whole HTTP requests: POST of each body, or GET of the path where there are none."""
    if not bodies:
        return [f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()] * 1000
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: "
    return [head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body for body in bodies]


async def closed_loop(port: int, requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    """As fast as answers come: how many a second were answered 200, and the latency of each, milliseconds; `count` is of all."""
    took: list[float] = []
    failed, asking_still, over = 0, connections, asyncio.get_running_loop().create_future()
    pending = iter(requests)

    def ask(connection: Connection) -> None:
        nonlocal asking_still
        now = time.perf_counter()
        request = next(pending, None) if now < end else None
        if request is not None:
            connection.ask(request, now)
            return
        asking_still -= 1
        if not asking_still:
            over.set_result(None)

    def answered(connection: Connection, ok: bool) -> None:
        nonlocal failed
        failed += not ok
        took.append(time.perf_counter() - connection.asked_at)
        ask(connection)

    opened = [await connected(port, answered) for _ in range(connections)]
    started = time.perf_counter()
    end = started + seconds
    for connection in opened:
        ask(connection)
    await over
    elapsed = time.perf_counter() - started
    for connection in opened:
        connection.transport.close()
    return {"per_s": (len(took) - failed) / elapsed, "count": len(took), "failed": failed, **quantiles_ms(took)}


async def open_loop(port: int, requests: list[bytes], connections: int, rate: float, seconds: float) -> dict[str, float]:
    """Poisson arrivals at `rate`/s, each timed from its scheduled moment; `stall_ms` is how late this generator itself was (p99).

    Where all its connections wait for answers more are opened, up to CONNECTIONS_MAX; then a payment waits for one, and has failed without being
    asked when none comes within PATIENCE_S.
    """
    offered = Offered(port, requests)
    began, late = await offered.run(connections, arrivals(rate, seconds, 7))
    took, good = offered.took, offered.good
    lasted = max(seconds, time.perf_counter() - began)
    answered = {"good_per_s": len(good) / lasted, "good_p99_ms": quantiles_ms(good)["p99_ms"]}
    stalls = {"stall_ms": quantiles_ms(late)["p99_ms"], "stall_max_ms": max(late, default=0.0) * 1e3}
    asked = {"per_s": len(took) / lasted, "count": len(took), "asked_per_s": len(late) / lasted, "failed": len(took) - len(good)}
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
