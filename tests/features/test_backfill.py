"""A backfill in lots: however a history is parted, the bits are the same, and what is carried stays small."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
from histories import NOON, histories
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from past_oracle import Arrival
from payments import DAY, T0, a_payment

from features.backfill import Backfill, backfill
from features.catalogue import CATALOGUE, Catalogue
from features.columns import TransactionColumns, columns_of
from features.layout import Cap
from schemas.transaction import CREDITS

SMALL = Catalogue(CATALOGUE.rows, Cap(rows=4, chunk=2))
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def arrived(history: list[Arrival]) -> tuple[TransactionColumns, np.ndarray]:
    """The columns of a history (declines follow their payments at once), labels learned within days, and who was declined."""
    rows = [(number, a.record) for number, a in enumerate(history) if a.what != "decline"]
    declined = [number + 1 < len(history) and history[number + 1].what == "decline" for number, _ in rows]
    columns = columns_of([record for _, record in rows])
    learned = np.where(columns.facts["amount_minor"] % 5 == 0, columns.facts["at_ms"] + 5 * DAY, 0)
    return replace(columns, learned=learned), np.array(declined)


def in_lots(under_way: Backfill, columns: TransactionColumns, declined: np.ndarray, ends: list[int]) -> bytes:
    """The vectors of the history in lots that end there."""
    edges = [0, *sorted(min(end, columns.n) for end in ends), columns.n]
    return b"".join(under_way.vectors(columns.part(a, b), declined[a:b]).tobytes() for a, b in pairwise(edges))


cuts = st.lists(st.integers(0, 40), max_size=6)


@many
@given(histories(most=40, apart=False), cuts, st.sampled_from([CATALOGUE, SMALL]), st.sampled_from([3, 7, 1000]))
def test_any_lots_give_the_same_bits(history: list[Arrival], ends: list[int], catalogue: Catalogue, epoch: int) -> None:
    columns, declined = arrived(history)
    assert in_lots(Backfill(catalogue, epoch), columns, declined, ends) == Backfill(catalogue, epoch).vectors(columns, declined).tobytes()


@many
@given(histories(most=40, apart=False), st.integers(0, 40), st.sampled_from([CATALOGUE, SMALL]), st.sampled_from([3, 1000]))
def test_another_goes_on_from_the_state_to_the_same_bits(history: list[Arrival], cut: int, catalogue: Catalogue, epoch: int) -> None:
    columns, declined = arrived(history)
    cut = min(cut, columns.n)
    one, other = Backfill(catalogue, epoch), Backfill(catalogue, epoch)
    said = one.vectors(columns.part(0, cut), declined[:cut]).tobytes()
    other.restore(one.state())
    said += other.vectors(columns.part(cut, columns.n), declined[cut:]).tobytes()
    assert said == Backfill(catalogue, epoch).vectors(columns, declined).tobytes()


@settings(max_examples=30, deadline=None)
@given(histories(most=40, apart=False))
def test_threads_give_the_same_bits(history: list[Arrival]) -> None:
    columns, declined = arrived(history)
    assert Backfill(CATALOGUE, threads=3).vectors(columns, declined).tobytes() == backfill(CATALOGUE, columns, declined).tobytes()


def a_stream(days: int, cards: int, per_day: int) -> TransactionColumns:
    """Days of payments; each card is used for a fortnight and never again."""
    number = np.arange(days * per_day)
    day = number // per_day
    who = (day // 14) * cards + number * 7919 % cards
    columns = columns_of([a_payment("1", email_token="e1")])
    facts = {name: np.resize(np.asarray(column), len(number)) for name, column in columns.facts.items()}
    at_ms = T0 + day * DAY + number % per_day * (DAY // per_day)
    facts["at_ms"] = at_ms
    facts["hash"] = at_ms.astype(np.uint64) << np.uint64(32) | (number + 1).astype(np.uint64)
    tokens = {name: (who + 1).astype(np.uint64) for name in ("card", "account", "device", "merchant", "ip")}
    return TransactionColumns(facts, tokens, {})


def test_what_is_carried_does_not_grow_with_the_length_of_the_history() -> None:
    columns = a_stream(days=600, cards=20, per_day=10)
    under_way, carried, stored = Backfill(CATALOGUE, epoch=200), [], []
    for begin in range(0, columns.n, 1_000):
        under_way.vectors(columns.part(begin, begin + 1_000))
        state = under_way.state()
        carried.append(under_way.rows_carried)
        stored.append(sum(part.nbytes for part in state.values()))
    assert carried[-1] <= 1.2 * carried[3], carried
    assert stored[-1] <= 1.2 * stored[3], stored
    assert carried[-1] < 3 * 10 * (97 + 14 + 40)


def test_a_busy_log_keeps_no_more_than_can_be_seen() -> None:
    columns = a_stream(days=60, cards=1, per_day=400)
    under_way = Backfill(CATALOGUE)
    for begin in range(0, columns.n, 1_000):
        under_way.vectors(columns.part(begin, begin + 1_000))
    assert under_way.rows_carried < 3 * 5 * 2300


def test_a_forgotten_log_begins_anew_and_a_late_row_does_not_bring_it_back() -> None:
    old = [a_payment(f"o{n}", NOON + n) for n in range(10)]
    others = [a_payment(f"p{n}", NOON + 120 * DAY + n, card_token="c9", account_id="a9") for n in range(10)]
    columns = columns_of([*old, *others, a_payment("late", NOON + DAY), a_payment("new", NOON + 121 * DAY)])
    counts = Backfill(CATALOGUE, epoch=10).vectors(columns)[-2:, CATALOGUE.index["velocity.card_count_7d"]]
    assert counts.tolist() == [0, 0]
    assert backfill(CATALOGUE, columns)[-2:, CATALOGUE.index["velocity.card_count_7d"]].tolist() == [10, 0]


@settings(max_examples=30, deadline=None)
@given(histories(apart=False), st.lists(st.sampled_from(CATALOGUE.names), min_size=1, max_size=5, unique=True), st.sampled_from([CATALOGUE, SMALL]))
def test_a_part_of_the_catalogue_has_the_numbers_of_the_whole(history: list[Arrival], names: list[str], catalogue: Catalogue) -> None:
    columns, declined = arrived(history)
    whole = backfill(catalogue, columns, declined)[:, [catalogue.index[name] for name in names]]
    assert backfill(catalogue.only(names), columns, declined).tobytes() == np.ascontiguousarray(whole).tobytes()


EXACT = Catalogue(CATALOGUE.rows, memory={"merchant": "log", "terminal": "log"})


def test_a_part_without_frauds_is_cut_where_the_whole_is_by_the_labels_that_lie_in_its_logs() -> None:
    columns = replace(columns_of([a_payment(f"p{n}", NOON + n) for n in range(1_000)]), learned=np.arange(1_000) % 2 * (NOON + 100))
    name = "merchant.merchant_count_1h"
    whole = backfill(EXACT, columns)[:, EXACT.index[name]]
    assert backfill(EXACT.only([name]), columns)[:, 0].tolist() == whole.tolist()


def true_fraud_share(history: list[Arrival], columns: TransactionColumns, number: int, field: str) -> float:
    """Brute force: of the payments that matured in the 30 days that end seven days ago, those known to be fraud by now."""
    own, learned = history[number].record, columns.learned
    assert learned is not None
    now, seen, spent, frauds = own.at_ms - 7 * DAY, set(), 0, 0
    clock = max(arrival.record.at_ms for arrival in history[: number + 1])
    for place, arrival in enumerate(history[:number]):
        txn = arrival.record
        if txn == own:
            break
        if txn in seen or getattr(txn, field) != getattr(own, field):
            continue
        seen.add(txn)
        spent += txn.kind not in CREDITS and now - 30 * DAY < txn.at_ms <= now
        counts_from = max(txn.at_ms, learned[place] - 7 * DAY)
        frauds += bool(0 < learned[place] <= clock) and now - 30 * DAY < counts_from <= now
    return frauds / spent if spent else math.nan


@many
@given(histories(most=40, redelivered=0, apart=False), cuts)
def test_a_terminal_with_a_log_has_the_exact_share_of_matured_fraud(history: list[Arrival], ends: list[int]) -> None:
    history = [arrival for arrival in history if arrival.what == "pay"]
    columns, declined = arrived(history)
    said = np.frombuffer(in_lots(Backfill(EXACT, 1000), columns, declined, ends)).reshape(-1, len(EXACT.rows))
    for field, name in (("merchant_id", "merchant.merchant_fraud_share_30d"), ("terminal_id", "merchant.terminal_fraud_share_30d")):
        for number, arrival in enumerate(history):
            if getattr(arrival.record, field) is not None:
                truth = true_fraud_share(history, columns, number, field)
                assert np.array_equal(said[number, EXACT.index[name]], truth, equal_nan=True), (number, name)
