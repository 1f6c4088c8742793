"""A real Redis for the tests of the walk, and a loop that runs to the end."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.wire import Wire
from streams import memory_server
from streams.answers import WHOLE
from tests.features.clusters import Cluster, a_cluster


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Path]:
    """The socket of a redis-server of its own."""
    with tempfile.TemporaryDirectory(prefix="hf-") as folder:
        socket = Path(folder) / "r.sock"
        process = subprocess.Popen(memory_server.command(memory_server.embedded_executable(), Path(folder), socket))
        deadline = time.monotonic() + 10
        while not memory_server.answers(socket):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield socket
        process.terminate()
        process.wait()


@pytest.fixture
def redis_url(redis_server: Path) -> str:
    """A Redis that knows nothing but that it is whole."""
    emptied(redis_server)
    return f"unix://{redis_server}"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Redis Cluster of its own."""
    with a_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster_url(cluster: Cluster) -> str:
    """A cluster that knows nothing but that it is whole."""

    async def empty() -> None:
        wire = await Wire.connect(cluster.url, timeout_s=5.0)
        await wire.send((b"FLUSHALL",))
        await wire.send((b"SET", WHOLE, b"1"))
        await wire.close()

    asyncio.run(empty())
    return cluster.url


def emptied(socket: Path) -> None:
    """Empties it."""
    from redis import Redis

    with Redis(unix_socket_path=str(socket)) as client:
        client.flushall()
        client.set("whole", "1")
