"""What rings in an event loop when librdkafka has something for a producer, so that an acknowledgement is taken when it comes.

librdkafka writes to a file when the queue that `Producer.poll` serves gets its first entry (`rd_kafka_queue_io_event_enable`); the Python
client does not pass that on (its pull request 1448 has been open since 2022), so it is called here in the library that the client has
loaded. What names the producer there is the first word of the client's object behind Python's own head, in the releases named here; with
another release there is no bell, and who has none must look now and then.
"""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import version
from typing import Any

import confluent_kafka

KNOWN = ("2.16.",)
"""Releases of confluent-kafka whose objects begin with librdkafka's handle: what `Handle` in its `confluent_kafka.h` says."""
_ONE = (1).to_bytes(8, "little")


def _functions() -> Any:
    """librdkafka's, as far as they are called here."""
    found = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    found.rd_kafka_queue_get_main.restype = ctypes.c_void_p
    found.rd_kafka_queue_get_main.argtypes = [ctypes.c_void_p]
    found.rd_kafka_queue_io_event_enable.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
    found.rd_kafka_queue_destroy.argtypes = [ctypes.c_void_p]
    return found


class Bell:
    """A file (`number`) that can be read whenever the producer should be polled; `heard` is to be called before that."""

    def __init__(self) -> None:
        self.number = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._librdkafka = _functions()
        self._producer: Any = None

    @classmethod
    def known(cls) -> Bell | None:
        """A bell, if there is one with the client that is installed, and on this system."""
        if not version("confluent-kafka").startswith(KNOWN) or not hasattr(os, "eventfd"):
            return None
        return cls()

    def hang(self, producer: Any) -> None:
        """Lets this producer ring it, and no other."""
        self._take_down()
        self._producer = producer
        self._let_write(self.number, _ONE)

    def heard(self) -> None:
        """Makes it silent until the next time."""
        try:
            os.eventfd_read(self.number)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Ends it."""
        self._take_down()
        os.close(self.number)

    def _take_down(self) -> None:
        if self._producer is not None:
            self._let_write(-1, None)
            self._producer = None

    def _let_write(self, number: int, what: bytes | None) -> None:
        handle = ctypes.c_void_p.from_address(id(self._producer) + object.__basicsize__)
        queue = self._librdkafka.rd_kafka_queue_get_main(handle)
        self._librdkafka.rd_kafka_queue_io_event_enable(queue, number, what, len(what or b""))
        self._librdkafka.rd_kafka_queue_destroy(queue)
