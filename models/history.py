"""A history to learn from: vectors, when they happened, and every verdict on them with the time at which it was learned. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
HELD_OUT_FROM = 0.80
"""In order of time: the first 80 % of the examples train, the last 20 % are only measured."""


class Verdicts(NamedTuple):
    """What was learned of rows, in the order in which it was learned; a later verdict on the same row replaces an earlier one."""

    rows: Ints
    frauds: Flags
    kinds: npt.NDArray[np.object_]  # which kind of fraud; None: honest, or not said
    learned_at_ms: Ints

    @classmethod
    def in_order(cls, rows: Ints, frauds: Flags, kinds: npt.NDArray[np.object_], learned_at_ms: Ints) -> Verdicts:
        """The same in order of time; of one moment's the one given last stands."""
        order = np.argsort(learned_at_ms, kind="stable")
        return cls(rows[order], frauds[order], kinds[order], learned_at_ms[order])

    def until(self, moment_ms: int) -> Verdicts:
        """Those that were known at a moment, that moment's own included."""
        known = slice(0, int(np.searchsorted(self.learned_at_ms, moment_ms, "right")))
        return Verdicts(self.rows[known], self.frauds[known], self.kinds[known], self.learned_at_ms[known])


class Believed(NamedTuple):
    """By row: whether it was believed to be fraud, of which kind, and since when (0 if it is not)."""

    frauds: Flags
    kinds: npt.NDArray[np.object_]
    since_ms: Ints


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows to learn from, in order of time, with what was believed of them at one moment. What was learned later is not in here."""

    catalogue_id: str
    names: tuple[str, ...]
    vectors: Floats  # [rows, names]; NaN is missing
    frauds: Flags
    kinds: npt.NDArray[np.object_]
    at_ms: Ints
    cards: Ints  # a number for each card
    until_ms: int  # the moment

    def read_by(self, names: Sequence[str]) -> Examples:
        """The same with these columns alone, in this order. KeyError for one that is not there."""
        place = {name: number for number, name in enumerate(self.names)}
        columns = [place[name] for name in names]
        if tuple(names) == self.names:
            return self
        first = columns == list(range(len(columns)))  # of those a view: a copy of a long history may not fit into memory
        return replace(self, names=tuple(names), vectors=self.vectors[:, : len(columns)] if first else self.vectors[:, columns])


@dataclass(frozen=True, eq=False)
class History:
    """Everything, in order of time: what only an evaluation may see. Training gets a `training_set` of it."""

    catalogue_id: str
    names: tuple[str, ...]
    vectors: Floats  # [rows, names]; NaN is missing
    at_ms: Ints
    cards: Ints  # a number for each card, or account where there is none
    amounts_minor: Ints
    verdicts: Verdicts
    currency_names: tuple[str, ...] = ()  # those of the amounts, in order; none where it is not said
    currencies: Ints | None = None  # by row the number of its currency

    def __post_init__(self) -> None:
        assert (np.diff(self.at_ms) >= 0).all(), "rows are in order of time"
        assert (np.diff(self.verdicts.learned_at_ms) >= 0).all(), "verdicts are in the order in which they were learned"

    @property
    def last_ms(self) -> int:
        """The last moment at which something happened, milliseconds since 1970."""
        return int(self.at_ms[-1]) if len(self.at_ms) else 0

    def mature_ms(self, label_delay_ms: int) -> int:
        """The time up to which most labels of payments have come in: so much before the last moment of which the history tells."""
        told_ms = max(self.last_ms, int(self.verdicts.learned_at_ms[-1])) if len(self.verdicts.learned_at_ms) else self.last_ms
        return min(self.last_ms, told_ms - label_delay_ms)

    def believed(self, moment_ms: int | None = None) -> Believed:
        """What was believed of each row at a moment (None: in the end). Of whom nobody had complained, that one was believed honest."""
        known = self.verdicts if moment_ms is None else self.verdicts.until(moment_ms)
        frauds, since_ms = np.zeros(len(self.at_ms), np.bool_), np.zeros(len(self.at_ms), np.int64)
        kinds: npt.NDArray[np.object_] = np.full(len(self.at_ms), None, dtype=object)
        frauds[known.rows], kinds[known.rows] = known.frauds, known.kinds  # of several verdicts on a row the last stands
        since_ms[known.rows] = np.where(known.frauds, known.learned_at_ms, 0)
        return Believed(frauds, kinds, since_ms)

    def training_set(self, until_ms: int, label_delay_ms: int, from_ms: int | None = None) -> Examples:
        """The rows from `from_ms` on that were at least `label_delay_ms` old at `until_ms`, with the labels as known then.

        Fraud that nobody had noticed by then is honest in it, as it would have been at that bank on that day.
        """
        first = 0 if from_ms is None else int(np.searchsorted(self.at_ms, from_ms, "left"))
        rows = slice(first, int(np.searchsorted(self.at_ms, until_ms - label_delay_ms, "right")))
        believed = self.believed(until_ms)
        return Examples(
            self.catalogue_id,
            self.names,
            self.vectors[rows],
            believed.frauds[rows],
            believed.kinds[rows],
            self.at_ms[rows],
            self.cards[rows],
            until_ms,
        )


def families_of(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The columns of each family: a column's name begins with its family's."""
    families = dict.fromkeys(name.partition(".")[0] for name in names)
    return {family: tuple(i for i, name in enumerate(names) if name.partition(".")[0] == family) for family in families}
