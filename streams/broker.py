"""The embedded broker: librdkafka's mock cluster in a process of its own. In memory, and small: see `LIMITS`.

`python -m streams.broker <file>` writes its address to the file and serves until it is ended.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
from confluent_kafka import Producer

from schemas.errors import Unavailable
from streams.ready import write_whole

LIMITS = """What the mock cluster does not do (measured on librdkafka 2.16):
- It keeps 5 MB a partition (compressed bytes as sent, 20 MB a topic of its four partitions) and forgets the oldest batches beyond that,
  whatever the topic's retention says: of 10,000 records of 1,000 bytes in one partition the last 5,050 stay. A consumer that comes late to
  what was forgotten goes on at the oldest record that is left; so does `holdfast check`, which then finds books that do not agree.
- Its log ends with its process. Nothing is compacted. Every topic appears on first use, with four partitions, one copy.
"""


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
    cluster = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    brokers = cluster.list_topics(timeout=10).brokers.values()
    if not brokers:
        raise Unavailable("librdkafka's mock cluster did not answer")
    bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    write_whole(Path(argv[0]), msgspec.json.encode(Address(os.getpid(), bootstrap)))
    signal.sigwait(wanted)


if __name__ == "__main__":
    main(sys.argv[1:])
