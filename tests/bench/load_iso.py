"""The load on the ISO 8583 door: a closed loop over many connections. A process of its own, as `tests.bench.load` is."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import uvloop

from streams.authorize.codec import Codec
from streams.authorize.dialect import dialect_of
from tests.bench.load import quantiles_ms

LOOKED_AT_EVERY = 20


class Line(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self, frames: Iterator[bytes], end: float) -> None:
        self.frames, self.end = frames, end
        self.took: list[float] = []
        self.buffer = b""
        self.looked_at: list[bytes] = []
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.next()

    def next(self) -> None:
        """Sends one more while there is time."""
        frame = next(self.frames, None)
        self.sent = time.perf_counter()
        if frame is None or self.sent >= self.end:
            self.done.set_result(None)
            return
        self.transport.write(frame)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) < 2 or len(self.buffer) < 2 + int.from_bytes(self.buffer[:2]):
            return
        if len(self.took) % LOOKED_AT_EVERY == 0:
            self.looked_at.append(self.buffer)
        self.took.append(time.perf_counter() - self.sent)
        self.buffer = b""
        self.next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def closed_loop(port: int, frames: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    """As fast as answers come. AssertionError if one that is looked at, each `LOOKED_AT_EVERY`th of a connection, is no decision."""
    loop, began, pending = asyncio.get_running_loop(), time.perf_counter(), iter(frames)
    lines = [(await loop.create_connection(lambda: Line(pending, began + seconds), "127.0.0.1", port))[1] for _ in range(connections)]
    await asyncio.gather(*[line.done for line in lines])
    elapsed, codec = time.perf_counter() - began, Codec(dialect_of("1987-ascii"))
    for line in lines:
        line.transport.close()
    codes = Counter(codec.decode(answer[2:]).fields[39] for line in lines for answer in line.looked_at)
    assert set(codes) <= {"00", "01", "05", "59"}, f"these are no decisions: {codes}"
    took = [each for line in lines for each in line.took]
    return {"per_s": len(took) / elapsed, "approved": codes["00"] / codes.total(), **quantiles_ms(took)}


def main() -> None:
    """Reads frames from standard input, one after the other; prints one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    args = parser.parse_args()
    raw, frames, at = sys.stdin.buffer.read(), [], 0
    while at < len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2])
        frames.append(raw[at:end])
        at = end
    print(json.dumps(uvloop.run(closed_loop(args.port, frames, args.connections, args.seconds))))


if __name__ == "__main__":
    main()
