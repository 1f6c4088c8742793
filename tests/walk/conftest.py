"""A real Redis for the tests of the walk, and a loop that runs to the end."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams import memory_server


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


def emptied(socket: Path) -> None:
    """Empties it."""
    from redis import Redis

    with Redis(unix_socket_path=str(socket)) as client:
        client.flushall()
        client.set("whole", "1")
