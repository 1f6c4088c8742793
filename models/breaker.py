"""The circuit breaker: whether a model's or policy's decisions have left the band that was approved, and who is to be taken out for it. Pure."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from models.governance import Inventory, Item
from schemas.governance import Band

WINDOW_MS = 60_000
LEAST = 20
"""Of fewer decisions nothing is said."""
Z = 3.29
"""Of a thousand windows within the band one is wrongly said to have left it (two-sided normal)."""


class Breach(NamedTuple):
    """A band that was left: the share of so many decisions that had this outcome."""

    band: Band
    share: float
    decisions: int

    @property
    def text(self) -> str:
        """In words."""
        band = self.band
        return f"{band.outcome}: {self.share:.1%} of {self.decisions} decisions, approved are {band.low:.1%} to {band.high:.1%}"


@dataclass(slots=True)
class Window:
    """What was decided in the last minute, by outcome, in the order in which it was counted."""

    parts: deque[tuple[int, Mapping[str, int]]] = field(default_factory=deque)

    def add(self, at_ms: int, counts: Mapping[str, int]) -> Counter[str]:
        """Adds what was decided up to a moment, forgets what is older than the window, and returns the sums."""
        self.parts.append((at_ms, counts))
        while self.parts[0][0] <= at_ms - WINDOW_MS:
            self.parts.popleft()
        sums: Counter[str] = Counter()
        for _, each in self.parts:
            sums.update(each)
        return sums


def interval(hits: int, count: int) -> tuple[float, float]:
    """Between which the share lies of which so many of so many were seen (Wilson, 1927): with few decisions wide, with many narrow.

    So of twenty payments that are all blocked enough is known, and of two hundred of which a few too many are, it is not.
    """
    share, slack = hits / count, Z * Z / count
    middle, wide = share + slack / 2, Z * math.sqrt(share * (1 - share) / count + slack / (4 * count))
    return (middle - wide) / (1 + slack), (middle + wide) / (1 + slack)


def breach(bands: Sequence[Band], counts: Mapping[str, int]) -> Breach | None:
    """The first band that the decisions have surely left; None while they may lie within all."""
    decisions = sum(counts.values())
    if decisions < LEAST:
        return None
    for band in bands:
        hits = counts.get(band.outcome, 0)
        low, high = interval(hits, decisions)
        if low > band.high or high < band.low:
            return Breach(band, hits / decisions, decisions)
    return None


class Culprit(NamedTuple):
    """Who is to be taken out, why, and who decides instead; None: nobody has decided before, so that there is only the alarm."""

    item: Item
    breach: Breach
    back_to: Item | None


def culprit(inventory: Inventory, deciding: Sequence[str], counts: Mapping[str, int]) -> Culprit | None:
    """Of those that decide and have left their band the one that began last: what was changed last is the likelier cause.

    One to which was gone back already is not taken out again: then only people can help.
    """
    items = [inventory.items[item_id] for item_id in deciding if item_id in inventory.items]
    left = [(item, found) for item in items if (found := breach(item.bands, counts))]
    if not left:
        return None
    item, found = max(left, key=lambda one: one[0].decided_since[-1])
    return Culprit(item, found, inventory.last_good(item.kind) if inventory.champion(item.kind) == item else None)
