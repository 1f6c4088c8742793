"""Second opinions: challengers and shadows judge what was decided, after it was told, in the time that deciding leaves them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from time import perf_counter

from models.opinion import Judged, Panel, second_opinions
from schemas.avro import encode
from schemas.opinion import SecondOpinions
from schemas.topics import SECOND_OPINIONS
from streams import journal, metrics
from streams.bus import Bus

WAITING_MAX = 2_000
"""Decisions that wait for second opinions, at most: what finds no room is dropped."""
LOT = 8
"""So many are judged at a time: a payment that comes meanwhile waits for them."""
SHARE = 0.1
"""Of the process's time second opinions take so much at most, however many wait; under more load they are dropped first."""


class Waiting:
    """Decisions in the order in which they were told, each with the panel of its time."""

    def __init__(self) -> None:
        self._rows: deque[tuple[Panel, Judged]] = deque()
        self.some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._rows)

    def offer(self, panel: Panel, judged: Judged) -> None:
        """Takes one in, if there is room."""
        if len(self._rows) < WAITING_MAX:
            self._rows.append((panel, judged))
            self.some.set()
        else:
            metrics.OPINIONS_DROPPED.labels("full").inc()

    def lot(self) -> tuple[Panel, list[Judged]] | None:
        """The next few of one panel and one pair of judges; None where nothing waits."""
        if not self._rows:
            self.some.clear()
            return None
        panel, first = self._rows.popleft()
        taken = [first]
        while self._rows and len(taken) < LOT and self._rows[0][0] is panel and self._rows[0][1].judges == first.judges:
            taken.append(self._rows.popleft()[1])
        return panel, taken


async def give(waiting: Waiting, bus: Bus) -> None:
    """Judges what waits, a few at a time, and rests nine times as long as that took. Nothing that fails here reaches who decides."""
    while True:
        await waiting.some.wait()
        began = perf_counter()
        if found := waiting.lot():
            sent = [bus.tell(SECOND_OPINIONS, one.account_id, encode(one)) for one in _judged(*found)]
            await asyncio.sleep((perf_counter() - began) * (1 / SHARE - 1))
            for failed in await asyncio.gather(*sent, return_exceptions=True):
                (metrics.OPINIONS_DROPPED.labels("log") if failed else metrics.OPINIONS).inc()


def _judged(panel: Panel, taken: Sequence[Judged]) -> list[SecondOpinions]:
    try:
        return second_opinions(panel, taken)
    except Exception as error:  # noqa: BLE001 a challenger that fails is no reason not to decide
        metrics.OPINIONS_DROPPED.labels("failed").inc(len(taken))
        journal.logger().error("a challenger or shadow failed", error=repr(error), panel=panel.ids)
        return []
