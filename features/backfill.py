"""Vectors of millions of past transactions, bit for bit what serving gave (or would have given) for that arrival order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from features.carried import Labels, Logs, Lot, Repeats, State, Tallies, named, under
from features.catalogue import Catalogue
from features.columns import TransactionColumns, derived_identities
from features.fact import AT_MS, DECLINED
from features.swept import Own, Swept

Array = np.ndarray[Any, np.dtype[Any]]
EPOCH = 65_536
"""Arrivals after which what nobody can see any more is forgotten, and up to which a repeat is told what the first one was."""
STATE_FORM = 4
"""Grows when what `Backfill.state` gives takes another shape: who keeps states does not restore one of another form."""
LATEST_PART = 100
"""An epoch's moment is that of which one arrival in so many is older: neither one wrong clock nor what comes late decides it."""


def declined_identities(identities: Array) -> Array:
    """`fact.derived_identity(identity, DECLINED)` of each; int64 in, int64 out."""
    return derived_identities(identities, DECLINED)


def known_columns(catalogue: Catalogue, columns: TransactionColumns) -> Array:
    """float64[n, profile columns], in the plan's order."""
    names = [f"{profile.kind}.{column}" for profile in catalogue.profile_layouts for column in profile.columns]
    known = np.full((columns.n, len(names)), np.nan)
    for number, name in enumerate(names):
        if name in columns.known:
            known[:, number] = columns.known[name]
    return known


class Backfill:
    """A backfill under way. It takes transactions (and account events) in arrival order, any number at a time: the vectors are the same
    however they are parted, and what it carries does not grow with the length of the history.

    What it forgets, and when, depends on the arrivals alone. At each `epoch` arrivals: the logs whose newest row is older by the longest
    window and the cap's slack than all but one in a hundred of those arrivals, and tallies of which nothing can be seen. Rows beyond a
    log's cap go as in serving. A transaction that comes again is recognised in a log for `RECOGNISED` rows; tallies tell it what they told the
    first for an epoch.
    """

    def __init__(self, catalogue: Catalogue, epoch: int = EPOCH, threads: int = 1) -> None:
        self.catalogue, self._epoch, self._swept = catalogue, epoch, Swept(catalogue, threads)
        self._logs, self._tallies, self._labels = Logs(catalogue), Tallies(catalogue, epoch), Labels(catalogue)
        self._repeats = Repeats(len(catalogue.tally_plan.folds), epoch)
        self._number, self._forget_ms = 0, -1
        self._times = np.zeros(0, np.int64)

    @property
    def rows_carried(self) -> int:
        """How many rows of logs are carried."""
        return self._logs.rows

    def vectors(self, columns: TransactionColumns, declined: Array | None = None, into: Array | None = None) -> Array:
        """float64[asked, features]: the vector of each transaction that asks for one, in the catalogue's order, NaN is missing.

        The past of a transaction is what came before its own first occurrence; in a log that it only looks into, what came there before
        itself. `declined` (bool[n]) says which were declined or blocked: the row of that fact follows the transaction at once, as if
        nothing had come between. `into`: an array of at least so many rows, of which the vectors take the first; who needs them for a
        moment alone gives the same again, because memory that was never touched is slow. None: a new one.
        """
        refused = np.zeros(columns.n, np.bool_) if declined is None else np.ascontiguousarray(declined, np.bool_)
        columns, refused = self._labels.among(columns, refused)
        asked = np.concatenate(([0], np.cumsum(columns.asks)))
        out = np.empty((int(asked[-1]), len(self.catalogue.rows))) if into is None else into[: asked[-1]]
        begin = 0
        while begin < columns.n:
            end = min(columns.n, begin + self._epoch - self._number % self._epoch)
            self._part(columns.part(begin, end), refused[begin:end], out[asked[begin] : asked[end]])
            begin = end
        return out

    def _part(self, columns: TransactionColumns, declined: Array, out: Array) -> None:
        """Transactions of one epoch."""
        facts = np.ascontiguousarray(columns.fact_matrix)
        identities = np.ascontiguousarray(facts[:, 0])
        lot = Lot(columns, facts, declined, declined_identities(identities))
        found = self._logs.arrive(lot, self._forget_ms)
        told = self._told(lot, identities)
        own = Own(facts, columns.measure_matrix, told, known_columns(self.catalogue, columns), columns.asks)
        self._swept.vectors(own, found, self._logs, out)
        self._logs.rest(found, self._forget_ms)
        self._end(facts[:, AT_MS])

    def _told(self, lot: Lot, identities: Array) -> Array:
        """What the tallies tell each."""
        if not self.catalogue.tallies:
            return np.empty((len(identities), 0))
        firsts = self._repeats.firsts(identities, self._number)
        told = self._tallies.arrive(lot, firsts, self._number)
        self._repeats.answer(identities, firsts, self._number, told)
        return told

    def _end(self, at_ms: Array) -> None:
        """Counts the arrivals, and at the end of an epoch forgets."""
        self._number += len(at_ms)
        self._times = np.concatenate((self._times, at_ms))
        if self._number % self._epoch == 0 and len(self._times):
            place = len(self._times) // LATEST_PART
            moment = int(np.partition(self._times, place)[place])
            self._times = np.zeros(0, np.int64)
            self._forget_ms = moment - self.catalogue.keep_ms
            self._tallies.forget(moment)

    def state(self) -> State:
        """All that another needs to go on, by name."""
        self._logs.tidy(self._forget_ms)
        own = {"number": np.array([self._number]), "forget_ms": np.array([self._forget_ms]), "times": self._times}
        parts = {"logs": self._logs.state(), "tallies": self._tallies.state(), "taught": self._labels.state(), "repeats": self._repeats.state()}
        return own | {name: part for prefix, state in parts.items() for name, part in named(prefix, state).items()}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Goes on where the backfill of this state was; it must be one of the same catalogue and epoch."""
        self._number, self._forget_ms, self._times = int(state["number"][0]), int(state["forget_ms"][0]), state["times"]
        self._logs.restore(under("logs", state))
        self._tallies.restore(under("tallies", state))
        self._labels.restore(under("taught", state))
        self._repeats.restore(under("repeats", state))


def backfill(catalogue: Catalogue, columns: TransactionColumns, declined: Array | None = None) -> Array:
    """float64[asked, features]: the vectors of a whole history at once, as `Backfill.vectors` gives them."""
    return Backfill(catalogue).vectors(columns, declined)
