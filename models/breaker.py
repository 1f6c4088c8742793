"""The circuit breaker: whether a model's or policy's decisions have left the band that was approved, and who is to be taken out for it. Pure."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from models.governance import BREAKER, Inventory, Item
from schemas.governance import Band, State

WINDOW_MS = 60_000
LEAST = 20
"""Of fewer decisions nothing is said."""
Z = 3.29
"""Of a thousand windows within the band one is wrongly said to have left it (two-sided normal)."""


Given = tuple[str, str]
"""A model's or policy's id, and an outcome that it gave."""


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
    """What was decided in the last minute, by who decided and outcome, in the order in which it was counted."""

    parts: deque[tuple[int, Mapping[Given, int]]] = field(default_factory=deque)

    def add(self, at_ms: int, counts: Mapping[Given, int]) -> dict[str, Counter[str]]:
        """Adds what was decided up to a moment, forgets what is older than the window, and returns the sums by outcome of each that decided.

        What a clock that went back has yet to see is forgotten too: it would stay until then, and count as of the last minute.
        """
        self.parts.append((at_ms, counts))
        while not at_ms - WINDOW_MS < self.parts[0][0] <= at_ms:
            self.parts.popleft()
        sums: dict[str, Counter[str]] = {}
        for _, each in self.parts:
            for (item_id, outcome), count in each.items():
                sums.setdefault(item_id, Counter())[outcome] += count
        return sums


def interval(hits: int, count: int, z: float = Z) -> tuple[float, float]:
    """Between which the share lies of which so many of so many were seen (Wilson, 1927): with few decisions wide, with many narrow.

    So of twenty payments that are all blocked enough is known, and of two hundred of which a few too many are, it is not.
    """
    share, slack = hits / count, z * z / count
    middle, wide = share + slack / 2, z * math.sqrt(share * (1 - share) / count + slack / (4 * count))
    low, high = (middle - wide) / (1 + slack), (middle + wide) / (1 + slack)
    return min(share, max(low, 0.0)), max(share, min(high, 1.0))  # of none and of all they meet, but for rounding


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
    """Who is to be taken out, why, and who decides instead: of a challenger the champion; None: nobody, so that there is only the alarm."""

    item: Item
    breach: Breach
    back_to: Item | None

    @property
    def gives_way(self) -> bool:
        """Whether somebody else can decide in its place."""
        return self.back_to is not None or self.item.state is State.CHALLENGER


def culprit(inventory: Inventory, counts: Mapping[str, Mapping[str, int]], unfit: Collection[str] = ()) -> Culprit | None:
    """Of those that have left their band with what they decided (by id, by outcome) the one that began last: the likelier cause.

    One to which the breaker has gone back already is not taken out again: then only people can help. To those that are `unfit` nobody goes back.
    """
    left = [(item, found) for item_id, own in counts.items() if (item := inventory.items.get(item_id)) and (found := breach(item.bands, own))]
    if not left:
        return None
    item, found = max(left, key=lambda one: one[0].since)
    return Culprit(item, found, _instead(inventory, item, unfit))


def _instead(inventory: Inventory, item: Item, unfit: Collection[str]) -> Item | None:
    champion = inventory.champion(item.kind)
    if item.state is State.CHALLENGER:
        return champion  # None: the policy of the house
    gone_back_to = champion != item or inventory.moves[item.since - 1].by == BREAKER
    return None if gone_back_to else inventory.last_good(item.kind, unfit)
