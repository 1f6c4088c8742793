"""The embedded broker: librdkafka's mock cluster in a process of its own. `python -m streams.broker <file>` writes its address to the file.

What it does not do (measured on librdkafka 2.16):
- It keeps 5 MB a partition (as sent, so compressed if the producer compresses; 20 MB a topic) and forgets the oldest batches beyond that,
  whatever the topic's retention says: of 10,000 records of 1,000 bytes in one partition the last 5,050 stay. A consumer that comes late to
  what was forgotten goes on at the oldest record that is left; so does `holdfast check`, which then finds books that do not agree.
- Its log ends with its process. Nothing is compacted. Every topic appears on first use, with four partitions, one copy.
- Two members that join a group at the same moment may be told InvalidRequest, and must come again. One process per app, then. A member that
  was killed keeps its partitions for the session timeout and about 5 s more.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
from confluent_kafka import cimpl

from schemas.errors import Unavailable
from streams.ready import write_whole

PRODUCER = 0


class Address(msgspec.Struct, frozen=True):
    """Where the broker of process `pid` listens."""

    pid: int
    bootstrap: str


class Served(NamedTuple):
    """The file in which a broker says where it is."""

    path: Path

    def is_ready(self, pid: int) -> bool:
        """Whether the process `pid` has said where it listens."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Address).pid == pid
        except (OSError, msgspec.DecodeError):
            return False

    def bootstrap(self) -> str:
        """Where it listens, `host:port`."""
        return msgspec.json.decode(self.path.read_bytes(), type=Address).bootstrap


def main(argv: list[str]) -> None:
    """Starts the cluster, says where it is, and waits to be ended."""
    wanted = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    write_whole(Path(argv[0]), msgspec.json.encode(Address(os.getpid(), _cluster())))
    signal.sigwait(wanted)


def _cluster() -> str:
    """Starts it in this process, by librdkafka's own functions; returns `host:port`.

    The setting `test.mock.num.brokers` would start one too, but each group would then wait 3 s for more members before it begins.
    """
    librdkafka = ctypes.CDLL(cimpl.__file__)  # the wheel's library is among what this module links to
    for function in (librdkafka.rd_kafka_new, librdkafka.rd_kafka_mock_cluster_new):
        function.restype = ctypes.c_void_p
    librdkafka.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    error = ctypes.create_string_buffer(512)
    client = librdkafka.rd_kafka_new(PRODUCER, None, error, ctypes.c_size_t(len(error)))
    cluster = librdkafka.rd_kafka_mock_cluster_new(ctypes.c_void_p(client), 1) if client else None
    if not cluster:
        raise Unavailable(f"librdkafka's mock cluster did not start: {error.value.decode()}")
    librdkafka.rd_kafka_mock_group_initial_rebalance_delay_ms(ctypes.c_void_p(cluster), ctypes.c_int32(0))
    return str(librdkafka.rd_kafka_mock_cluster_bootstraps(ctypes.c_void_p(cluster)).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
