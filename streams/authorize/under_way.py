"""What a door is deciding at the moment: one decision for each transaction, waited for no longer than a host waits."""

from __future__ import annotations

import asyncio
from functools import partial

from schemas.errors import Conflict
from schemas.transaction import Transaction
from streams.pipeline import HTTP, Ask, Decided, Origin, World


class UnderWay:
    """The decisions under way in this process. `deadline_ms` is how long a host waits."""

    def __init__(self, world: World, deadline_ms: int, origin: Origin = HTTP) -> None:
        self._world = world
        self._origin = origin
        self._deadline_s = deadline_ms / 1000
        self._deciding: dict[str, tuple[Transaction, asyncio.Future[Decided]]] = {}

    def once(self, txn: Transaction, now_ms: int) -> asyncio.Future[Decided]:
        """One decision under way for each transaction in this process: a repeat during the first waits for the first."""
        running = self._deciding.get(txn.transaction_id)
        if running is not None:
            if running[0] != txn:
                raise Conflict(txn.transaction_id)
            return running[1]
        deciding = self._world.together.decided(Ask(txn, now_ms, self._origin), self._world)
        self._deciding[txn.transaction_id] = (txn, deciding)
        deciding.add_done_callback(partial(self._ended, txn.transaction_id))
        return deciding

    def of(self, transaction_id: str) -> asyncio.Future[Decided] | None:
        """The decision of that transaction, if it is under way here."""
        running = self._deciding.get(transaction_id)
        return running[1] if running else None

    async def in_time(self, deciding: asyncio.Future[Decided]) -> bool:
        """Whether it ends before the host has waited long enough; it goes on if not. (`asyncio.wait` with one, at half its price.)"""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()
        alarm = loop.call_later(self._deadline_s, _settle, ended, False)
        deciding.add_done_callback(lambda _: _settle(ended, True))
        try:
            return await ended
        finally:
            alarm.cancel()

    def _ended(self, transaction_id: str, deciding: asyncio.Future[Decided]) -> None:
        del self._deciding[transaction_id]
        if not deciding.cancelled():
            deciding.exception()  # looked at here, because a deadline may have left nobody else to look


def _settle(ended: asyncio.Future[bool], how: bool) -> None:
    if not ended.done():
        ended.set_result(how)
