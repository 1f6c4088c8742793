"""Serving and backfill against brute force over raw history: equal, not nearly equal. hypothesis chooses the histories."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence

import numpy as np
from histories import histories
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from past_oracle import Arrival, Truth, spread
from payments import ON_LOGS

from features.backfill import backfill
from features.catalogue import Catalogue
from features.columns import columns_of
from features.engine import Look, look
from features.layout import Cap
from features.memory import DictMemory
from schemas.account import AccountEvent
from schemas.transaction import Transaction

SMALL = Catalogue(ON_LOGS.rows, Cap(rows=4, chunk=2))
"""A log so short that every history reaches its caps."""
many = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def same(ours: Sequence[float], truth: Sequence[float], names: tuple[str, ...]) -> None:
    """Equal to the bit, any NaN like any other."""
    for name, our, true in zip(names, ours, truth, strict=True):
        assert our == true or (math.isnan(our) and math.isnan(true)), f"{name}: {our} is not {true}"


async def served(catalogue: Catalogue, history: Sequence[Arrival]) -> list[Look | tuple[int, ...]]:
    """What serving says at each arrival: a look at a payment, the positions of other rows."""
    memory = DictMemory(catalogue)
    said: list[Look | tuple[int, ...]] = []
    for what, record in history:
        if isinstance(record, AccountEvent):
            said.append(await memory.remember_event(record))
        elif what == "decline":
            said.append(await memory.decline(record))
        else:
            said.append(look(catalogue, await memory.recall(record)))
    return said


def check_served(catalogue: Catalogue, history: Sequence[Arrival]) -> None:
    for number, said in enumerate(asyncio.run(served(catalogue, history))):
        record = history[number].record
        if isinstance(said, Look) and isinstance(record, Transaction):
            truth = Truth(catalogue, history[: number + 1], record, {})
            assert said.positions == truth.positions
            same(said.values.tolist(), truth.vector(), catalogue.names)


@many
@given(histories())
def test_serving_equals_brute_force(history: list[Arrival]) -> None:
    check_served(ON_LOGS, history)


@many
@given(histories(most=40, redelivered=2))
def test_serving_equals_brute_force_when_logs_are_trimmed_underway(history: list[Arrival]) -> None:
    check_served(SMALL, history)


def asked(history: Sequence[Arrival]) -> list[tuple[int, Transaction]]:
    """The payments, with their places in the history."""
    return [(number, a.record) for number, a in enumerate(history) if a.what == "pay" and isinstance(a.record, Transaction)]


def filled(catalogue: Catalogue, history: Sequence[Arrival]) -> np.ndarray:
    """The backfill of a history in which declines follow their payments at once."""
    rows = [(number, a.record) for number, a in enumerate(history) if a.what != "decline"]
    declined = [number + 1 < len(history) and history[number + 1].what == "decline" for number, _ in rows]
    return backfill(catalogue, columns_of([record for _, record in rows]), np.array(declined))


@many
@given(histories(apart=False), st.sampled_from([ON_LOGS, SMALL]))
def test_backfill_equals_brute_force(history: list[Arrival], catalogue: Catalogue) -> None:
    for row, (number, txn) in zip(filled(catalogue, history), asked(history), strict=True):
        same(row.tolist(), Truth(catalogue, history[: number + 1], txn, {}).vector(), catalogue.names)


@many
@given(histories(apart=False))
def test_backfill_equals_serving_bit_for_bit(history: list[Arrival]) -> None:
    looks = [said for said in asyncio.run(served(ON_LOGS, history)) if isinstance(said, Look)]
    assert filled(ON_LOGS, history).tobytes() == b"".join(said.values.tobytes() for said in looks)


@given(st.lists(st.integers(0, 2**40 - 1), min_size=1, max_size=40))
def test_the_spread_is_the_population_standard_deviation(values: list[int]) -> None:
    assert math.isclose(spread(values), statistics.pstdev(values), rel_tol=1e-9, abs_tol=1e-9)
