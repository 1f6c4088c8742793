"""Clusters of accounts: known graphs have known communities, and nothing is known before it was learned."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cluster import COLUMNS, HUB, LABELS, TIES, Clusters, clusters_of, ties_of

DAY = 86_400_000
T0 = 1_767_268_800_000
PAST = pa.schema([*((name, pa.string()) for name in TIES), ("at_ms", pa.int64())])
LEARNED = pa.schema(list(zip(LABELS, (pa.string(), pa.string(), pa.bool_(), pa.int64()), strict=True)))
Row = dict[str, Any]


def paid(account: str, at_ms: int = T0, **more: str) -> Row:
    return {"account_id": account, "at_ms": at_ms, **more}


def learned(account: str, fraud: bool = True, at_ms: int = T0, transaction: str | None = None) -> Row:
    return {"transaction_id": transaction or f"t-{account}", "account_id": account, "fraud": fraud, "learned_at_ms": at_ms}


def clusters(rows: Iterable[Row], labels: Sequence[Row] = (), as_of_ms: int = T0 + DAY, hub: int = HUB, days: int = 90) -> Clusters:
    past, said = pa.Table.from_pylist(list(rows), PAST), pa.Table.from_pylist(list(labels), LEARNED)
    return clusters_of(past, said, as_of_ms, days * DAY, random.Random(1), hub)


def known(found: Clusters) -> dict[str, tuple[float, ...]]:
    columns = zip(*(getattr(found, column).tolist() for column in COLUMNS), strict=True)
    return dict(zip(map(str, found.accounts), columns, strict=True))


def ring(name: str, size: int, **same: str) -> list[Row]:
    return [paid(f"{name}{n}", **same) for n in range(size)]


def test_two_rings_that_a_transfer_ties_are_two_clusters() -> None:
    rows = [*ring("a", 5, device_token="d1"), *ring("b", 6, email_token="e1"), paid("a0", counterparty_account_id="b0"), paid("c")]
    found = known(clusters(rows))
    assert {found[f"a{n}"] for n in range(5)} == {(5.0, 0.0, 4.0)}
    assert {found[f"b{n}"] for n in range(6)} == {(6.0, 0.0, 5.0)}
    assert found["c"] == (1.0, 0.0, 0.0), "alone: size 1, and no fraud"


def test_transfers_tie_too_and_a_beneficiary_elsewhere_is_a_member() -> None:
    found = known(clusters([paid("m1", counterparty_account_id="boss"), paid("m2", counterparty_account_id="boss")]))
    assert {name: values[0] for name, values in found.items()} == {"m1": 3.0, "m2": 3.0, "boss": 3.0}
    assert {values[2] for values in found.values()} == {0.0}, "money is no shared identity"


def test_the_fraud_share_is_of_the_others() -> None:
    found = known(clusters(ring("a", 5, phone_token="p"), [learned("a0"), learned("a1"), learned("a1", transaction="again")]))
    assert [found[f"a{n}"][1] for n in range(5)] == [0.25, 0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(("learned_at", "share"), [(T0 + DAY - 1, 1.0), (T0 + DAY, 0.0), (T0 + DAY + 1, 0.0)])
def test_a_label_counts_once_it_was_learned(learned_at: int, share: float) -> None:
    found = known(clusters(ring("a", 2, device_token="d"), [learned("a0", at_ms=learned_at)]))
    assert (found["a0"][1], found["a1"][1]) == (0.0, share)


def test_a_fraud_that_was_withdrawn_is_none_but_not_before() -> None:
    labels = [learned("a0", False, T0 + 2 * DAY), learned("a0", True, T0)]
    rows = ring("a", 2, device_token="d")
    assert [known(clusters(rows, labels, T0 + days * DAY))["a1"][1] for days in (1, 2, 3)] == [1.0, 1.0, 0.0]


def test_what_happens_at_the_moment_or_before_the_window_ties_nobody() -> None:
    rows = [paid("a", T0, device_token="d"), paid("b", T0 + DAY, device_token="d"), paid("c", T0 - 90 * DAY, device_token="d")]
    assert known(clusters(rows, as_of_ms=T0 + DAY)) == {"a": (1.0, 0.0, 0.0)}
    assert known(clusters(rows, as_of_ms=T0 + DAY + 1))["a"] == (2.0, 0.0, 1.0)
    assert known(clusters(rows, as_of_ms=T0))["c"] == (1.0, 0.0, 0.0)


def test_a_hub_ties_nobody() -> None:
    rows = ring("k", 4, device_token="kiosk")
    assert {values[0] for values in known(clusters(rows, hub=4)).values()} == {4.0}
    assert set(known(clusters(rows, hub=3)).values()) == {(1.0, 0.0, 0.0)}
    wages = [paid("employer", counterparty_account_id=f"w{n}") for n in range(4)]
    assert {values[0] for values in known(clusters(wages, hub=3)).values()} == {1.0}


def test_the_order_of_rows_means_nothing() -> None:
    chance = random.Random(3)
    rows = [
        paid(f"a{chance.randrange(300)}", device_token=f"d{chance.randrange(200)}", counterparty_account_id=f"a{chance.randrange(300)}")
        for _ in range(400)
    ]
    first = known(clusters(rows))
    for _ in range(3):
        chance.shuffle(rows)
        assert known(clusters(rows)) == first


def test_nothing_is_no_cluster() -> None:
    assert known(clusters([])) == {}


def test_rings_are_found_in_a_large_bank() -> None:
    chance = np.random.default_rng(5)
    n, rings = 5_000, 40
    rows = [paid(f"a{a}", counterparty_account_id=f"a{b}") for a, b in chance.integers(0, n, (n, 2))]
    members = chance.permutation(n)[: rings * 8].reshape(rings, 8)
    rows += [paid(f"a{account}", device_token=f"r{number}") for number, ring in enumerate(members) for account in ring]
    found = clusters(rows)
    place = {name: int(cluster) for name, cluster in zip(found.accounts, found.cluster, strict=True)}
    together = [len({place[f"a{account}"] for account in ring}) == 1 for ring in members]
    assert np.mean(together) > 0.95
    assert found.cluster_size.max() < 20


small = st.integers(-1, 5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), small, small, small)), st.integers(1, 6))
def test_ties_are_what_brute_force_says(rows: list[tuple[int, int, int, int]], hub: int) -> None:
    accounts, others, devices, emails = (np.array(column, np.int64) for column in zip(*rows, strict=True)) if rows else (np.empty(0, np.int64),) * 4
    ties = ties_of(accounts, others, {"device": devices, "email": emails}, 6, hub)
    expected: dict[tuple[int, int], tuple[float, bool]] = {}

    def tie(pair: tuple[int, int], weight: float, shared: bool) -> None:
        before = expected.get(pair, (0.0, False))
        expected[pair] = (before[0] + weight, before[1] or shared)

    for column in (2, 3):
        for token in {row[column] for row in rows} - {-1}:
            users = sorted({row[0] for row in rows if row[column] == token})
            for pair in itertools.combinations(users, 2) if len(users) <= hub else ():
                tie(pair, 1.0, True)
    transfers = {(min(row[:2]), max(row[:2])) for row in rows if row[1] >= 0 and row[0] != row[1]}
    degree = {account: sum(account in pair for pair in transfers) for account in range(6)}
    for pair in transfers:
        if max(degree[pair[0]], degree[pair[1]]) <= hub:
            tie(pair, 0.5, False)
    got = {tuple(map(int, pair)): (float(weight), bool(shared)) for pair, weight, shared in zip(*ties, strict=True)}
    assert got == expected
