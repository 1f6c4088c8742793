"""Second opinions: challengers and shadows judge what was decided, after it was told, in the time that deciding leaves them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from time import process_time
from typing import Protocol

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
"""Of one processor second opinions take so much at most, however many wait; under more load they are dropped first."""
LOOK_S, PATIENCE_S = 0.005, 0.25
"""How often it is looked whether nobody is deciding: answers go out before anything else is begun. Under load that is waited for only so long."""
_FULL, _LOG, _FAILED = (metrics.OPINIONS_DROPPED.labels(why) for why in ("full", "log", "failed"))


class Deciding(Protocol):
    """What second opinions give way to."""

    begun: int
    """How many groups of decisions have been begun."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being decided."""
        ...


class Waiting:
    """Decisions in the order in which they were told, each with the panel of its time."""

    def __init__(self) -> None:
        self._rows: deque[tuple[Panel, Judged]] = deque()
        self.some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._rows)

    def has_room(self) -> bool:
        """Whether one more can wait; one that cannot counts as dropped, before anything was made for it."""
        if len(self._rows) < WAITING_MAX:
            return True
        _FULL.inc()
        return False

    def offer(self, panel: Panel, judged: Judged) -> None:
        """Takes one in, for which there is room."""
        self._rows.append((panel, judged))
        if len(self._rows) == 1:
            self.some.set()

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


class Spent:
    """What lots cost of a processor, all told: judging, encoding, sending, the log's threads and its reports.

    Only where nobody decides meanwhile can that be seen, from what the process has used; elsewhere a lot cost what such ones cost, or what it
    took to make it if that is more.
    """

    def __init__(self, deciding: Deciding) -> None:
        self._deciding = deciding
        self._each_s = 0.0
        self._began_s, self._begun, self._made_s = 0.0, 0, 0.0

    def began(self) -> None:
        """A lot is begun."""
        self._began_s, self._begun = process_time(), self._deciding.begun if self._deciding.is_idle else -1

    def made(self) -> None:
        """It is on its way to the log."""
        self._made_s = process_time() - self._began_s

    def told_s(self, count: int) -> float:
        """It is in the log: what it cost, seconds."""
        if self._deciding.begun == self._begun:
            spent_s = process_time() - self._began_s
            self._each_s = (self._each_s + spent_s / count) / 2 if self._each_s else spent_s / count
            return spent_s
        return max(self._made_s, self._each_s * count)


async def give(waiting: Waiting, bus: Bus, deciding: Deciding) -> None:
    """Judges what waits, a few at a time, and rests nine times as long as that took of a processor. Nothing that fails here reaches who decides."""
    spent = Spent(deciding)
    while True:
        await waiting.some.wait()
        await _left_alone(deciding)
        spent.began()
        if found := waiting.lot():
            sent = [bus.tell(SECOND_OPINIONS, one.account_id, encode(one)) for one in _judged(*found)]
            spent.made()
            for failed in await asyncio.gather(*sent, return_exceptions=True):
                (_LOG if failed else metrics.OPINIONS).inc()
            await asyncio.sleep(spent.told_s(len(found[1])) * (1 / SHARE - 1))


async def _left_alone(deciding: Deciding) -> None:
    """Returns when nobody decides, or is seen to decide for a good while."""
    until = asyncio.get_running_loop().time() + PATIENCE_S
    await asyncio.sleep(LOOK_S)
    while not deciding.is_idle and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(LOOK_S)


def _judged(panel: Panel, taken: Sequence[Judged]) -> list[SecondOpinions]:
    try:
        return second_opinions(panel, taken)
    except Exception as error:  # noqa: BLE001 a challenger that fails is no reason not to decide
        _FAILED.inc(len(taken))
        journal.logger().error("a challenger or shadow failed", error=repr(error), panel=panel.ids)
        return []
