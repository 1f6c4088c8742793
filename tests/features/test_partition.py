"""Each entity's part by itself, under an engine of others, gives the bits of one backfill."""

from __future__ import annotations

import random
from dataclasses import replace

import dask
import numpy as np
import pytest
from histories import _Choices, a_transaction, histories
from hypothesis import given, settings
from hypothesis import strategies as st
from past_oracle import Arrival
from payments import DAY
from test_backfill import arrived

from features.backfill import backfill
from features.catalogue import CATALOGUE
from features.partition import groups, joined, tasks, vectors_of_part


def test_each_feature_is_in_one_group() -> None:
    assert sorted(name for group in groups(CATALOGUE) for name in group.features) == sorted(CATALOGUE.names)
    assert ("account", "payee") in {group.entities for group in groups(CATALOGUE)}


@settings(max_examples=25, deadline=None)
@given(histories(most=40, apart=False), st.integers(1, 3))
def test_parts_joined_are_the_whole(history: list[Arrival], of: int) -> None:
    columns, declined = arrived(history)
    done = [(group, vectors_of_part(CATALOGUE, group, part)) for group, part in tasks(CATALOGUE, columns, declined, of)]
    assert joined(CATALOGUE, columns, done).tobytes() == backfill(CATALOGUE, columns, declined).tobytes()


@pytest.mark.parametrize("seed", [14, 27, 42])
def test_a_label_is_learned_in_its_part_when_it_is_in_the_whole_whatever_order_payments_come_in(seed: int) -> None:
    chance = random.Random(seed)
    payments = [a_transaction(number, _Choices(chance.getrandbits(96))) for number in range(300)]
    chance.shuffle(payments)
    columns, declined = arrived([Arrival("pay", txn) for txn in payments])
    learned = [txn.at_ms + chance.randrange(3 * DAY) if chance.random() < 0.4 else 0 for txn in payments]
    columns = replace(columns, learned=np.array(learned))
    catalogue = CATALOGUE.only(("merchant.merchant_fraud_share_30d",))
    done = [(group, vectors_of_part(catalogue, group, part)) for group, part in tasks(catalogue, columns, declined, 3)]
    assert joined(catalogue, columns, done).tobytes() == backfill(catalogue, columns, declined).tobytes()


def test_dask_runs_the_parts_to_the_same_bits() -> None:
    chance = random.Random(5)
    payments = [a_transaction(number, _Choices(chance.getrandbits(96))) for number in range(600)]
    columns, declined = arrived([Arrival("pay", txn) for txn in payments])
    columns = replace(columns, known={"account.credit_limit_minor": np.arange(columns.n, dtype=np.float64)})
    work = list(tasks(CATALOGUE, columns, declined, 2))
    graph = [dask.delayed(vectors_of_part)(CATALOGUE, group, part) for group, part in work]
    said = dask.compute(*graph, scheduler="processes", num_workers=2)
    done = [(group, answer) for (group, _), answer in zip(work, said, strict=True)]
    assert joined(CATALOGUE, columns, done).tobytes() == backfill(CATALOGUE, columns, declined).tobytes()
