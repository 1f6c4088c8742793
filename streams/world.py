"""The world of a decision: everything that it needs, and the groups in which what is asked at the same time is decided."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from features.catalogue import Catalogue
from features.memory import Memory
from models.hold import UnknownAccount
from models.opinion import Panel
from models.sandbox import Cards
from schemas.errors import HoldfastError
from streams.answers import Answers, DictAnswers
from streams.asked import Ask, Decided
from streams.books import Books, DictBooks
from streams.bus import Bus
from streams.control import Told
from streams.opinion import Waiting
from streams.stand_in import StandIn
from streams.tracing import Tracer

GROUP_MIN, GROUP_MAX, GROUPS = 20, 64, 2
"""Transactions that are decided together. Each group costs something, in Redis and the log too, and while one waits for Redis another is worked
on: so two groups at least where there are enough, and none too large for the first of it to wait long for the last. `bench authorize`, 64
connections, in turns: three groups of ten took 381 us of all processors a payment, two of twenty 314."""


@dataclass(slots=True)
class World:
    """Everything a decision needs, wired once in `streams/wired.py`. The panel is replaced when others are promoted, or stand by."""

    catalogue: Catalogue
    panel: Panel
    memory: Memory
    books: Books | DictBooks
    answers: Answers | DictAnswers
    bus: Bus
    unknown_account: UnknownAccount
    hold_lease_ms: int
    future_ms_max: int
    clock_ms: Callable[[], int]
    observe: Callable[[str, float, int], None]
    together: Together
    close: Callable[[], Awaitable[None]] | None = None
    given: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often who (a model's or policy's id) gave which outcome in this process: what the breaker looks at."""
    opinions: Waiting = field(default_factory=Waiting)
    told: Told = field(default_factory=dict)
    """What the control topic says."""
    stand_in: StandIn | None = None
    telling: Counter[str] = field(default_factory=Counter)
    """How many of those that came from where (`Origin.topic`) wait for the log alone."""
    tracer: Tracer | None = None
    """Who tells traces of authorizations."""
    cards: Cards | None = None
    """The test cards of a sandbox; a service has none."""


DecideAll = Callable[[Sequence[Ask], World], Awaitable[Sequence[Decided | HoldfastError]]]
"""What becomes of many: `pipeline.decide_all`."""


def groups_of(count: int) -> int:
    """Into how many groups so many transactions are parted."""
    return max(1, min(count // GROUP_MIN, max(GROUPS, -(-count // GROUP_MAX))))


class Together:
    """Decides together what is asked within one tick of the loop, in groups, so that the stops of one group overlap another's round trips."""

    def __init__(self, decide_all: DecideAll) -> None:
        self._decide_all = decide_all
        self._waiting: list[tuple[Ask, asyncio.Future[Decided]]] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self.begun = 0
        """How many groups have been begun."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being decided."""
        return not self._waiting and not self._under_way

    def decided(self, ask: Ask, world: World) -> asyncio.Future[Decided]:
        """What `decide` returns or raises."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._begin, loop, world)
        future: asyncio.Future[Decided] = loop.create_future()
        self._waiting.append((ask, future))
        return future

    def _begin(self, loop: asyncio.AbstractEventLoop, world: World) -> None:
        waiting, self._waiting = self._waiting, []
        groups = groups_of(len(waiting))
        self.begun += groups
        for number in range(groups):
            task = loop.create_task(self._decide(waiting[number::groups], world))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _decide(self, group: Sequence[tuple[Ask, asyncio.Future[Decided]]], world: World) -> None:
        """Gives each its result. An error that nobody foresaw is everybody's: whoever asked must not wait for ever."""
        results: Sequence[Decided | BaseException]
        try:
            results = await self._decide_all([ask for ask, _ in group], world)
        except BaseException as error:  # noqa: BLE001 it is raised where each waits
            results = [error] * len(group)
        for (_, future), result in zip(group, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
