"""What a door is deciding at the moment: one decision for each transaction, waited for no longer than a host waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from time import perf_counter

from schemas.errors import Conflict, HoldfastError, Unavailable
from schemas.identity import INCREMENT, increment_end, increments_of
from schemas.transaction import Transaction
from streams import metrics
from streams.asked import HTTP, Ask, Course, Decided, Origin
from streams.stand_in import Given, StandIn
from streams.tracing import Passed, Traced, Tracer
from streams.world import World

SHARE = 0.9
"""Of the time that a host gives: what is not decided by then is answered by the stand-in, whose disk has at least the rest."""
LATE = "deadline"
SHED_SHARE = 0.3
"""Of the time that a host gives: who would wait longer for those before it is refused at once."""
WINDOW_S = 0.25
FEW = 32
"""So many under way are never too many, and how fast a service is cannot be seen from fewer."""
PER_S_FIRST = 5_000.0
"""So fast a service is taken to be until it was seen."""


class UnderWay:
    """The decisions under way in this process. `deadline_ms` is how long a host waits that does not say."""

    def __init__(self, world: World, deadline_ms: int, origin: Origin = HTTP) -> None:
        self._world = world
        self._origin = origin
        self.deadline_s = deadline_ms / 1000
        self._deciding: dict[str, tuple[Transaction, asyncio.Future[Decided], Course]] = {}
        self._admitted = self._ended_count = self._ended_before = 0
        self._window_at_s = self._per_s = 0.0

    def admits(self) -> bool:
        """Whether there is room for one more, who counts from now on as under way. All that comes in one tick of the loop meets those before it.

        Who is not let in is counted, and to be refused.
        """
        if self.is_full():
            metrics.SHED.inc()
            return False
        if not self._admitted:
            asyncio.get_running_loop().call_soon(self._begun)
        self._admitted += 1
        return True

    def _begun(self) -> None:
        self._admitted = 0  # each is among those that are decided now, or was refused for what it is

    def is_full(self) -> bool:
        """Whether one more would wait too long behind those under way, by how fast they ended lately (Little's law).

        What only waits for the log is not counted: it takes nobody's time, and where the log is late the stand-in answers.
        """
        ahead = self._admitted + len(self._deciding) - self._world.telling[self._origin.topic]
        if ahead <= FEW:
            self._window_at_s = 0.0
            return False
        self._look(asyncio.get_running_loop().time())
        return ahead > max(FEW, (self._per_s or PER_S_FIRST) * self.deadline_s * SHED_SHARE)

    def _look(self, now_s: float) -> None:
        """How fast decisions end, by spans of WINDOW_S with always more than FEW under way: they end in groups, and a short span sees one or none.

        Faster is believed at once, slower by half. Where none ends, what they wait for stands still, which says nothing of how fast they are
        without it. What is known is kept while there are few: else all that comes next would be let in.
        """
        if not self._window_at_s:
            self._window_at_s, self._ended_before = now_s, self._ended_count
        elapsed_s, ended = now_s - self._window_at_s, self._ended_count - self._ended_before
        if elapsed_s >= WINDOW_S and ended:
            per_s = ended / elapsed_s
            self._per_s = max(per_s, (self._per_s + per_s) / 2) if self._per_s else per_s
            self._window_at_s, self._ended_before = now_s, self._ended_count

    def answered(self, txn: Transaction, now_ms: int, wait_s: float, traceparent: bytes | None = None) -> Awaitable[tuple[Decided, Course]]:
        """The decision, within `wait_s`: that of every door, or the stand-in's where that is late or cannot be had.

        TimeoutError if nobody answers in time; Unavailable if that is known before. Then the result is indefinite. `traceparent` is what
        the host says of the trace that this is a part of.
        """
        tracer = self._world.tracer
        traced = None if tracer is None else tracer.begin(traceparent)
        if tracer is None or traced is None:
            return self._answered(txn, now_ms, wait_s, None)
        return self._told(tracer, traced, self._answered(txn, now_ms, wait_s, traced))

    async def _told(self, tracer: Tracer, traced: Traced, answering: Awaitable[tuple[Decided, Course]]) -> tuple[Decided, Course]:
        """The same, and its trace told."""
        began_s, name = perf_counter(), f"authorize {self._origin.topic}"
        try:
            made, course = await answering
        except (HoldfastError, TimeoutError) as error:
            tracer.end(traced, name, began_s, Passed(), {"error.type": getattr(error, "code", LATE)}, failed=True)
            raise
        said = {} if made.decision is None else {"holdfast.decision_id": made.decision.decision_id, "holdfast.outcome": str(made.decision.outcome)}
        tracer.end(traced, name, began_s, course.passed, said)
        return made, course

    async def _answered(self, txn: Transaction, now_ms: int, wait_s: float, traced: Traced | None) -> tuple[Decided, Course]:
        stand_in, ends_s = self._world.stand_in, asyncio.get_running_loop().time() + wait_s
        if stand_in is not None and (given := stand_in.first(txn)) is not None:
            return await self._repeated(stand_in, given, ends_s), Course()
        deciding, course = self.once(txn, now_ms, traced)
        gone = LATE
        if await self._ends_within(deciding, wait_s if stand_in is None else wait_s * SHARE):
            if stand_in is not None and (given := stand_in.first(txn)) is not None:  # who waited for less time has heard it
                return await self._repeated(stand_in, given, ends_s), course
            try:
                made = deciding.result()
            except Unavailable as error:
                if stand_in is None:
                    raise
                gone = error.code
            else:
                if stand_in is not None:
                    stand_in.note(txn.transaction_id, made)
                return made, course
        if stand_in is None:
            raise TimeoutError
        async with asyncio.timeout_at(ends_s):
            policy = self._world.panel.judges_of(txn).policy
            return await stand_in.answer(txn, now_ms, course, gone, policy, self._origin.topic), course

    @staticmethod
    async def _repeated(stand_in: StandIn, given: Given, ends_s: float) -> Decided:
        """What the stand-in answered, once more, when it is on the disk. TimeoutError where that takes longer than the host waits."""
        async with asyncio.timeout_at(ends_s):
            return await stand_in.repeated(given)

    def once(self, txn: Transaction, now_ms: int, traced: Traced | None = None) -> tuple[asyncio.Future[Decided], Course]:
        """One decision under way for each transaction in this process: a repeat during the first waits for the first."""
        running = self._deciding.get(txn.transaction_id)
        if running is not None:
            if running[0] != txn:
                raise Conflict(txn.transaction_id)
            return running[1:]
        course = Course()
        course.traced = traced
        deciding = self._world.together.decided(Ask(txn, now_ms, self._origin, course=course), self._world)
        self._deciding[txn.transaction_id] = (txn, deciding, course)
        deciding.add_done_callback(partial(self._ended, txn.transaction_id))
        return deciding, course

    def asked(self, transaction_id: str) -> Transaction | None:
        """The transaction of that id as it came first, if it is under way here, or the stand-in knows what was answered to it."""
        running = self._deciding.get(transaction_id)
        if running is not None:
            return running[0]
        return None if self._world.stand_in is None else self._world.stand_in.asked(transaction_id)

    def of(self, transaction_id: str) -> list[asyncio.Future[Decided]]:
        """The decision of that transaction, if it is under way here."""
        running = self._deciding.get(transaction_id)
        return [running[1]] if running else []

    def all_of(self, transaction_id: str) -> list[asyncio.Future[Decided]]:
        """The decisions under way here of what a capture or reversal names: that transaction, by either of an increment's ids, and its increments."""
        begin, end = increments_of(transaction_id), increment_end(transaction_id)
        return [
            running[1]
            for name, running in self._deciding.items()
            if name == transaction_id or (name.startswith(INCREMENT) and (name.startswith(begin) or name.endswith(end)))
        ]

    async def _ends_within(self, deciding: asyncio.Future[Decided], wait_s: float) -> bool:
        """Whether it ends in time; it goes on if not. (`asyncio.wait` with one, at half its price.)"""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()
        alarm = loop.call_later(wait_s, _settle, ended, False)
        deciding.add_done_callback(lambda _: _settle(ended, True))
        try:
            return await ended
        finally:
            alarm.cancel()

    def _ended(self, transaction_id: str, deciding: asyncio.Future[Decided]) -> None:
        del self._deciding[transaction_id]
        self._ended_count += 1
        if not deciding.cancelled():
            deciding.exception()  # looked at here, because a deadline may have left nobody else to look


def _settle(ended: asyncio.Future[bool], how: bool) -> None:
    if not ended.done():
        ended.set_result(how)
