"""What a door is deciding at the moment: one decision for each transaction, waited for no longer than a host waits."""

from __future__ import annotations

import asyncio

from schemas.errors import Conflict
from schemas.transaction import Transaction
from streams.pipeline import HTTP, Decided, Origin, World, decide


class UnderWay:
    """The decisions under way in this process. `deadline_ms` is how long a host waits."""

    def __init__(self, world: World, deadline_ms: int, origin: Origin = HTTP) -> None:
        self._world = world
        self._origin = origin
        self._deadline_s = deadline_ms / 1000
        self._tasks: dict[str, tuple[Transaction, asyncio.Task[Decided]]] = {}

    def once(self, txn: Transaction, now_ms: int) -> asyncio.Task[Decided]:
        """One decision under way for each transaction in this process: a repeat during the first waits for the first."""
        running = self._tasks.get(txn.transaction_id)
        if running is not None:
            if running[0] != txn:
                raise Conflict(txn.transaction_id)
            return running[1]
        task = asyncio.ensure_future(decide(txn, self._world, now_ms, self._origin))
        self._tasks[txn.transaction_id] = (txn, task)
        task.add_done_callback(lambda done: self._ended(txn.transaction_id, done))
        return task

    def of(self, transaction_id: str) -> asyncio.Task[Decided] | None:
        """The decision of that transaction, if it is under way here."""
        running = self._tasks.get(transaction_id)
        return running[1] if running else None

    async def in_time(self, task: asyncio.Future[Decided]) -> bool:
        """Whether the task ends before the host has waited long enough; it goes on if not. (`asyncio.wait` with one task, at half its price.)"""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()
        alarm = loop.call_later(self._deadline_s, _settle, ended, False)
        task.add_done_callback(lambda _: _settle(ended, True))
        try:
            return await ended
        finally:
            alarm.cancel()

    def _ended(self, transaction_id: str, task: asyncio.Task[Decided]) -> None:
        del self._tasks[transaction_id]
        if not task.cancelled():
            task.exception()  # looked at here, because a deadline may have left nobody else to look


def _settle(ended: asyncio.Future[bool], how: bool) -> None:
    if not ended.done():
        ended.set_result(how)
