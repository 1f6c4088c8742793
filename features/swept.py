"""The vectors of a lot at once: each log is swept for all who look into it, then every transaction's expressions are worked out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from features import kernel, sweep_kernel
from features.carried import Found, Logs
from features.catalogue import Catalogue
from features.sweep import sweep_plan

Array = np.ndarray[Any, np.dtype[Any]]


class Own(NamedTuple):
    """What each transaction brings itself: int64 facts, float64 measures, what tallies told it, what is known of it; who asks."""

    facts: Array
    measures: Array
    told: Array
    known: Array
    asks: Array


class Swept:
    """A catalogue's rows, ready to be worked out for lots of transactions, in so many threads. The vectors are those of `kernel.look_on`."""

    def __init__(self, catalogue: Catalogue, threads: int = 1) -> None:
        self._program, self._plan, self._threads = catalogue.program, sweep_plan(catalogue.program), threads
        self._cells = np.empty(0)

    def vectors(self, own: Own, found: Found, logs: Logs, out: Array) -> None:
        """Writes the vector of each that asks, in order, into `out`."""
        n, plan = len(own.asks), self._plan
        if len(self._cells) < n * len(plan.registers):
            self._cells = np.empty(n * len(plan.registers))
        firsts, slow = np.zeros((len(found.places), n), np.int64), np.zeros(n, np.bool_)
        for log in range(len(found.places)):
            self._sweep(log, own, found, logs, firsts[log], slow)
        outs = np.cumsum(own.asks) - 1

        def finish(some: Array) -> None:
            kernel.finish(
                self._program,
                plan.rest,
                plan.registers,
                plan.cell_at,
                plan.meetings,
                some,
                *own[:-1],
                found.places,
                found.positions,
                firsts,
                logs.segments,
                logs.flat,
                slow,
                self._cells,
                outs,
                out,
            )

        self._each(finish, np.array_split(np.flatnonzero(own.asks), self._threads))

    def _sweep(self, log: int, own: Own, found: Found, logs: Logs, firsts: Array, slow: Array) -> None:
        """One log."""
        places, positions = found.places[log], found.positions[log]
        order, starts, touched = np.empty(len(places), np.int64), np.empty(len(places) + 1, np.int64), np.empty(len(places), np.int64)
        groups = sweep_kernel.grouped(places, own.asks, np.zeros(logs.count, np.int64), order, starts, touched)
        kernel.first_seen(self._program, log, order, starts, touched, groups, positions, logs.segments, logs.flat, firsts)

        def sweep(some: Array) -> None:
            of = (order, starts, touched, int(some[0]), int(some[-1]) + 1, positions, firsts)
            sweep_kernel.sweep(self._plan.words, log, *of, own.facts, logs.segments, logs.flat, slow, self._cells)

        self._each(sweep, np.array_split(np.arange(groups), self._threads))

    def _each(self, work: Callable[[Array], None], parts: Iterable[Array]) -> None:
        """Does it for each part, each in a thread of its own: what is compiled runs beside the others."""
        parts = [part for part in parts if len(part)]
        if len(parts) <= 1:
            for part in parts:
                work(part)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(work, parts))
