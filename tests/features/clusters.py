"""A Redis Cluster of real servers that a test starts itself: its nodes can be killed and started again, its slots moved."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from features.slots import SLOTS
from streams import memory_server

BUS = 10_000
"""How far a node's port for the other nodes is from the one for its clients."""


@dataclass
class Server:
    """One node: a process, and a plain client of it."""

    folder: Path
    port: int
    options: Sequence[str]
    process: subprocess.Popen[bytes] = field(init=False)
    client: Redis = field(init=False)

    def start(self) -> None:
        """Starts it on what its folder holds, and waits until it answers."""
        self.folder.mkdir(exist_ok=True)
        command = [
            *(memory_server.real_executable(), "--port", str(self.port), "--dir", str(self.folder), "--save", "", "--loglevel", "warning"),
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", *self.options),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.client = Redis(port=self.port, socket_timeout=5)
        until(lambda: bool(self.client.ping()))

    def ask(self, *words: Any) -> Any:
        """A command's reply, as it came."""
        return self.client.execute_command(*words, NEVER_DECODE=[])

    @property
    def id(self) -> str:
        """Its name in the cluster."""
        return str(self.ask("CLUSTER", "MYID").decode())

    def kill9(self) -> None:
        """No farewell."""
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        """Ends it."""
        self.client.close()
        self.process.terminate()
        self.process.wait(10)


@dataclass
class Cluster:
    """Masters, each with an equal part of the slots, and the replicas of the first of them."""

    masters: list[Server]
    replicas: list[Server]

    @property
    def url(self) -> str:
        """Its address: two seeds, of which the first does not answer."""
        return f"redis+cluster://127.0.0.1:1,127.0.0.1:{self.masters[-1].port}"

    def owner(self, slot: int) -> Server:
        """The master that says that it serves a slot."""
        by_id = {server.id: server for server in self.masters}
        for first, last, master, *_ in self.masters[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return by_id[master[2].decode()]
        raise AssertionError(f"nobody serves slot {slot}")

    def move(self, slot: int, to: Server, keys_at_a_time: int = 1, pause_s: float = 0.0) -> int:
        """Moves a slot with its keys as `redis-cli --cluster reshard` does; how many keys moved."""
        source = self.owner(slot)
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
        moved = 0
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, keys_at_a_time):
            source.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
            time.sleep(pause_s)
        self.give(slot, to)
        return moved

    def give(self, slot: int, to: Server) -> None:
        """Says to all whose a slot is, and waits until all agree: a node that hears older gossip of a newer epoch drops the slot's keys."""
        for server in (to, self.owner(slot), *self.masters):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", to.id)
        until(lambda: len({self._view(server) for server in self.masters}) == 1)

    def _view(self, server: Server) -> tuple[Any, ...]:
        """What a node holds of all: id, epoch, slots."""
        lines = [line.split() for line in server.ask("CLUSTER", "NODES").splitlines()]
        return tuple(sorted((line[0], line[6], *line[8:]) for line in lines))


def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Waits for something that will be so; an error of Redis is a no."""
    end = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(RedisError):
            if holds():
                return
        assert time.monotonic() < end, f"not within {timeout_s} s"
        time.sleep(0.02)


def a_port() -> int:
    """A free port whose bus port is free too."""
    while True:
        port = random.randrange(20_000, 50_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + BUS))
            return port


@contextlib.contextmanager
def a_cluster(*options: str, masters: int = 3, replicas: int = 0) -> Iterator[Cluster]:
    """A cluster in a folder of its own that serves every slot; the replicas copy the first master. Ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="hf") as folder, contextlib.ExitStack() as ending:
        servers = [Server(Path(folder, str(n)), a_port(), options) for n in range(masters + replicas)]
        for server in servers:
            server.start()
            ending.callback(server.close)
        for number, server in enumerate(servers):
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                server.ask("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
            if number < masters:
                server.ask("CLUSTER", "ADDSLOTS", *range(SLOTS * number // masters, SLOTS * (number + 1) // masters))
        until(lambda: all(len(server.ask("CLUSTER", "NODES").splitlines()) == len(servers) for server in servers))
        for server in servers[masters:]:
            until(lambda server=server: bool(server.ask("CLUSTER", "REPLICATE", servers[0].id)))  # type: ignore[misc]
        until(lambda: all(b"cluster_state:ok" in server.ask("CLUSTER", "INFO") for server in servers))
        until(lambda: all(len(server.ask("CLUSTER", "SLOTS")) == masters for server in servers))
        yield Cluster(servers[:masters], servers[masters:])
