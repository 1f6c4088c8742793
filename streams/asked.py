"""What is asked of the walk, and what comes of it."""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from schemas.decision import Decision
from schemas.transaction import Transaction
from streams.tracing import Passed, Traced


class Origin(NamedTuple):
    """Where a transaction came from: topic, partition and offset, or HTTP."""

    topic: str
    partition: int
    offset: int


HTTP = Origin("http", -1, -1)


class Course:
    """What who asks sees of a decision on its way. Once it is `over` for them, nothing more of it is kept or told."""

    __slots__ = ("over", "passed", "sent", "traced")

    def __init__(self) -> None:
        self.over = False
        self.sent: bytes | None = None
        """The message, once it is on its way to the log: from then on nobody knows whether the log has it."""
        self.passed = Passed()
        self.traced: Traced | None = None
        """The span that it is a part of, if that is to be told."""


class Ask(NamedTuple):
    """What `decide` is asked: see there. `said` is what the stand-in has answered already: then only the rest is found out, and told."""

    txn: Transaction
    now_ms: int
    origin: Origin = HTTP
    logged: Container[Origin] = ()
    course: Course | None = None
    said: Decision | None = None


class Decided(NamedTuple):
    """A decision that the log has: its message, and the record itself where it was made here and now."""

    message: bytes
    decision: Decision | None
