"""What a sweep finds for many at once is what the kernel folds for each alone, in long logs as in short ones."""

from __future__ import annotations

import asyncio
import random

import numpy as np
from histories import NOON, histories
from hypothesis import HealthCheck, given, settings
from past_oracle import Arrival, Truth
from payments import ON_LOGS, a_payment
from test_kernel_oracle import asked, filled, same, served

from features import kernel
from features.catalogue import CATALOGUE, Catalogue
from features.engine import Look
from features.fact import CARD
from features.row import ANY_PAYMENT, SPENT, Feature, Fold, Shape, below_own, count, days, hours, maximum, older, total
from features.row import same as own_same
from features.sweep import EVENTS, sweep_plan


def test_every_aggregate_of_the_catalogue_is_swept_but_those_of_two_logs() -> None:
    plan = sweep_plan(CATALOGUE.program)
    left = set()
    for log in range(int(plan.rest[kernel.LOGS])):
        line = plan.rest[kernel.LOG_AT] + log * kernel.LOG_LINE
        at, cells = (int(plan.rest[line + place]) for place in (kernel.L_CELL_AT, kernel.L_CELLS))
        left |= set(plan.rest[at : at + cells * kernel.CELL_LINE : kernel.CELL_LINE].tolist())
    assert left == {kernel.COLLECT, kernel.MEETING}


def a_row(number: int, shape: Shape) -> Feature:
    """A row of its own name."""
    return Feature("velocity", Shape(f"{shape.name}_{number}", shape.expression), "unswept", "card_testing", "a test")


UNSWEPT = (
    maximum("amount_minor", of=CARD, window=hours(24), where=(SPENT, own_same("merchant_id"))),
    total("amount_minor", of=CARD, window=days(7), where=(SPENT, below_own("amount_minor"))),
    count(of=CARD, window=days(30), where=(SPENT, own_same("country"), below_own("amount_minor")), called="small_here"),
    count(of=CARD, window=days(30), where=(ANY_PAYMENT, own_same("device"), older(hours(24))), called="known_device"),
    Shape("card_dearest_ever", Fold(CARD, "first", "amount_minor", days(90), (SPENT,))),
)
"""Shapes that a sweep leaves to the kernel's fold, but for the last two: it finds those with the others."""
MIXED = Catalogue((*ON_LOGS.rows, *(a_row(number, shape) for number, shape in enumerate(UNSWEPT))))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(histories(apart=False))
def test_rows_that_cannot_be_swept_are_folded_beside_the_others(history: list[Arrival]) -> None:
    for row, (number, txn) in zip(filled(MIXED, history), asked(history), strict=True):
        same(row.tolist(), Truth(MIXED, history[: number + 1], txn, {}).vector(), MIXED.names)


def a_long_life(events: int, seed: int) -> list[Arrival]:
    """One card, busy beyond its caps: some payments come late, some twice, many in the same moment."""
    chance, clock, history = random.Random(seed), NOON, []
    for number in range(events):
        clock += chance.choice([0, 1, 60_000, 3_600_000])
        late = chance.choice([60_000, 86_400_000]) if chance.random() < 0.05 else 0
        place = chance.choice([None, (48.1, 11.6), (-17.7, 179.9), (-17.7, -179.9)])
        txn = a_payment(
            str(number),
            clock - late,
            merchant_id=chance.choice(["m1", "m2", "m3", None]),
            amount_minor=chance.choice([0, 499, 12_345, 99_999, 2**40]),
            latitude=place and place[0],
            longitude=place and place[1],
        )
        history.append(Arrival("pay", txn))
        if chance.random() < 0.05:
            history.append(chance.choice(history[-50:]))
    return history


def test_a_log_longer_than_what_is_laid_out_at_a_time_gives_the_served_bits() -> None:
    history = a_long_life(EVENTS + 1_500, seed=4)
    looks = [said.values for said in asyncio.run(served(ON_LOGS, history)) if isinstance(said, Look)]
    ours, theirs = filled(ON_LOGS, history), np.array(looks)
    wrong = np.flatnonzero((ours.view(np.int64) != theirs.view(np.int64)).any(axis=0))
    assert not len(wrong), [ON_LOGS.names[column] for column in wrong]
