"""Redis keeps what it has acknowledged, also when it is killed in the middle of its work."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from streams import folder, memory_server
from streams.parts import Part
from streams.settings import Settings
from tests.stack.world import keeper_of

EXECUTABLES = {"system": memory_server.real_executable, "embedded": memory_server.embedded_executable}
BATCH = 100


def counting(path: Path, acknowledged: list[int]) -> None:
    """Sets a counter to 1, 2, 3 ... in batches, noting what was acknowledged, until the connection ends."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        while True:
            first = acknowledged[0] + 1
            client.sendall(b"".join(b"SET counter %d\r\n" % number for number in range(first, first + BATCH)))
            answered = 0
            while answered < BATCH:
                got = client.recv(65_536)
                if not got:
                    return
                answered += got.count(b"\n")
                acknowledged[0] = first - 1 + answered


@pytest.mark.integration
@pytest.mark.parametrize("which", EXECUTABLES)
def test_redis_killed_loses_nothing_that_it_acknowledged(settings: Settings, which: str) -> None:
    place, path = settings.data_dir, folder.socket_path(settings.data_dir, "redis.sock")
    place.mkdir(parents=True)
    command = memory_server.command(EXECUTABLES[which](), place, path)
    with keeper_of(Part("redis", command, {}, place / "log", lambda _: memory_server.answers(path))) as keeper:
        redis = keeper.part("redis")
        acknowledged = [0]
        for life in range(3):
            redis.wait_ready(10)
            writer = threading.Thread(target=counting, args=(path, acknowledged))
            writer.start()
            writer.join(0.3)
            redis.kill9()
            writer.join()
            redis.wait_ready(10)
            assert counter(path) >= acknowledged[0] > life * BATCH


def counter(path: Path) -> int:
    """What Redis knows."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET counter\r\n")
        return int(client.recv(100).split(b"\r\n")[1])
