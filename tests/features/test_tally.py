"""Tallies against brute force over the rows that they took: sums exact to the slice, sketches exact to the bucket, bytes a function of the set."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from payments import DAY, HOUR, MINUTE, T0, a_payment, number, seen
from stores import a_memory, a_redis

from features.backfill import Backfill, backfill
from features.catalogue import CATALOGUE, Catalogue
from features.columns import columns_of
from features.fact import AT_MS, FACT_NUMBER, FRAUD, KIND, MERCHANT, WITHDRAWN
from features.memory import DictMemory, Memory
from features.row import FRAUDS, Feature, Fold, days, distinct, fraud_share, hours, maximum, novel
from features.tally import (
    LATE,
    NOTHING,
    SLICES,
    SOURCES,
    Given,
    Reads,
    Row,
    Update,
    counts_as_declined,
    label_row,
    offsets_in,
    payment_rows,
    told,
    told_all,
    updated,
)
from features.tally_kernel import BUCKETS
from schemas.decision import Action, Outcome, Reason, ReasonSource
from schemas.identity import hash64
from schemas.label import Label, LabelSource
from schemas.topics import DECISIONS
from schemas.transaction import Transaction, TransactionKind

PLAN, LAYOUTS = CATALOGUE.tally_plan, CATALOGUE.tally_layouts
AT_MERCHANT = CATALOGUE.tallies.index("merchant")
SPANS = [0, 10_000, MINUTE, 24 * MINUTE, HOUR, DAY, 7 * DAY, 12 * HOUR, 30 * DAY]


# Brute force.


def meets(row: Row, fold: Fold) -> bool:
    """Whether a row meets a fold's conditions."""
    for condition in fold.where:
        value = row[FACT_NUMBER[condition.column]]
        if condition.op == "kinds" and not condition.value >> (FRAUD if value == WITHDRAWN else value) & 1:
            return False
        if condition.op == "below" and not value < condition.value:
            return False
        if condition.op == "given" and value == 0:
            return False
    return True


def slice_of(row: Row, fold: Fold) -> int:
    """The slice in which a row counts: a label's once it is known, never before."""
    slice_ms, delay_ms = fold.window.ms // SLICES, fold.delay.ms if fold.delay else 0
    return -(-max(row[AT_MS], row[-1] - delay_ms) // slice_ms) if row[-1] else row[AT_MS] // slice_ms


def kept(rows: Sequence[Row], fold: Fold, sharing: Iterable[Fold]) -> list[Row]:
    """The rows that count for a fold, without what is too old beside the newest slice of any fold that shares its ring."""
    slices = [slice_of(row, other) for other in sharing for row in rows if meets(row, other) and given_value(row, other)]
    reach = SLICES + LATE + (-(-fold.delay.ms // (fold.window.ms // SLICES)) + 1 if fold.delay else 0)
    oldest = max(slices, default=0) - reach
    return [row for row in rows if meets(row, fold) and given_value(row, fold) and slice_of(row, fold) > oldest]


def given_value(row: Row, fold: Fold) -> bool:
    """A value that is not given is no different value."""
    return fold.op != "distinct" or row[FACT_NUMBER[fold.column]] != 0


def bucket(value: int) -> int:
    """The bucket of a value: Knuth's multiplicative hash, its top eight bits."""
    return (value * 0x9E3779B1 % 2**32) >> 24


def by_brute_force(rows: Sequence[Row], fold: Fold, folds: Sequence[Fold], now: int) -> float:
    """What a tally of these rows tells of a fold."""
    same_ring = [f for f in folds if f.op != "distinct" and f.window == fold.window and f.delay == fold.delay]
    mine = kept(rows, fold, [fold] if fold.op == "distinct" else same_ring)
    end = (now - (fold.delay.ms if fold.delay else 0)) // (fold.window.ms // SLICES)
    if fold.op == "distinct":
        latest: dict[int, int] = {}
        for row in mine:
            place = bucket(row[FACT_NUMBER[fold.column]])
            latest[place] = max(latest.get(place, -1), slice_of(row, fold))
        hit = sum(end - SLICES < last <= end for last in latest.values())
        return BUCKETS * math.log(BUCKETS / max(BUCKETS - hit, 1))
    inside = [row for row in mine if end - SLICES < slice_of(row, fold) <= end]
    return float(sum((-1 if row[KIND] == WITHDRAWN else 1) * (1 if fold.op == "count" else row[FACT_NUMBER[fold.column]]) for row in inside))


@st.composite
def updates(draw: st.DrawFn) -> list[Update]:
    """Rows of a few partitions, each with growing offsets: payments, declines, labels; early, late and on the edges of slices."""
    ends = [0] * SOURCES
    made: list[Update] = []
    for name in range(draw(st.integers(1, 40))):
        at = T0 + draw(st.sampled_from(SPANS)) + draw(st.sampled_from(SPANS)) + draw(st.sampled_from([0, 0, -1, 1]))
        what = draw(st.sampled_from(["paid", "paid", "paid", "declined", "fraud"]))
        source = draw(st.integers(0, 2)) + (DECISIONS.partitions if what == "fraud" else 0)
        ends[source] += draw(st.integers(1, 3))
        txn = a_payment(
            f"t{name}", at, amount_minor=draw(st.sampled_from([0, 499, 500, 2**40])), card_token=draw(st.sampled_from(["c1", "c2", "c3", None]))
        )
        if what == "fraud":
            learned = at + draw(st.sampled_from([0, 1, DAY, 7 * DAY, 9 * DAY]))
            rows = [label_of(txn, learned)]
            if draw(st.booleans()):
                made.append(Update(source, ends[source], rows[0]))
                ends[source] += draw(st.integers(1, 3))
                rows = [(*rows[0][:KIND], WITHDRAWN, *rows[0][KIND + 1 :])]
        else:
            rows = payment_rows(txn, what == "declined")
        made += [Update(source, ends[source], row) for row in rows]
    return made


def label_of(txn: Transaction, learned_at_ms: int) -> Row:
    """The row of a chargeback."""
    row = label_row(
        Label(
            label_id=f"lbl-{txn.transaction_id}",
            transaction_id=txn.transaction_id,
            account_id=txn.account_id,
            fraud=True,
            learned_at_ms=learned_at_ms,
            source=LabelSource.CHARGEBACK,
            transacted_at_ms=txn.at_ms,
            merchant_id=txn.merchant_id,
            terminal_id=txn.terminal_id,
        )
    )
    assert row is not None
    return row


def in_batches(made: Sequence[Update], seed: int) -> list[list[Update]]:
    """The same updates in another interleaving of their sources and other groups, some given twice."""
    rng = random.Random(seed)
    queues = [[u for u in made if u.source == source] for source in range(SOURCES)]
    grouped: list[list[Update]] = []
    while any(queues):
        queue = rng.choice([q for q in queues if q])
        size = rng.randint(1, len(queue))
        while size < len(queue) and queue[size].offset == queue[size - 1].offset:
            size += 1  # the rows of one record come together
        grouped.append(queue[:size])
        if rng.random() < 0.3:
            grouped.append(queue[:size])
        del queue[:size]
    return grouped


def taken(batches: Iterable[Sequence[Update]], number_: int = AT_MERCHANT) -> bytes:
    content = b""
    for batch in batches:
        content = updated(PLAN, LAYOUTS, number_, content, batch)
    return content


@settings(deadline=None, max_examples=200)
@given(updates(), st.sampled_from(SPANS), st.sampled_from([0, -1, 1, 5 * DAY, -MINUTE]), st.integers(0, 2**32))
def test_what_a_tally_tells_is_what_its_rows_say(made: list[Update], ago: int, more: int, seed: int) -> None:
    now = max(u.row[AT_MS] for u in made) - ago + more
    contents: list[bytes | None] = [None] * len(LAYOUTS)
    contents[AT_MERCHANT] = taken(in_batches(made, seed))
    numbers = told(PLAN, contents, now)
    rows = [u.row for u in made]
    for fold, value in zip(PLAN.folds, numbers, strict=True):
        if fold.entity != MERCHANT:
            assert math.isnan(value)
        else:
            assert value == by_brute_force(rows, fold, LAYOUTS[AT_MERCHANT].folds, now), fold


@settings(deadline=None, max_examples=200)
@given(updates(), st.integers(0, 2**32), st.integers(0, 2**32))
def test_its_bytes_are_a_function_of_the_set_of_rows_however_they_came(made: list[Update], one: int, other: int) -> None:
    first, second = taken(in_batches(made, one)), taken(in_batches(made, other))
    assert first == second
    assert len(first) <= LAYOUTS[AT_MERCHANT].bytes_max
    ends = offsets_in(first)
    assert [ends[source] for source in range(SOURCES)] == [
        max((u.offset + 1 for u in made if u.source == source), default=0) for source in range(SOURCES)
    ]


def test_a_row_that_a_tally_has_taken_changes_nothing() -> None:
    row = Update(0, 7, payment_rows(a_payment("1"), declined=False)[0])
    once = taken([[row]])
    assert updated(PLAN, LAYOUTS, AT_MERCHANT, once, [row]) is once


def test_no_entity_is_missing_and_an_entity_without_a_row_counts_zero() -> None:
    nothing, nobody = told(PLAN, [b""] * len(LAYOUTS), T0), told(PLAN, [None] * len(LAYOUTS), T0)
    assert np.isnan(nobody).all()
    assert (nothing == 0).all()


def a_row_of(catalogue: Catalogue, name: str, rows: Sequence[Update], now: int) -> float:
    """One merchant feature of a payment at m1 at this moment, after its tally took these rows."""

    async def run() -> float:
        memory = DictMemory(catalogue)
        await memory.take({(catalogue.tallies.index("merchant"), "m1"): list(rows)})
        return number(catalogue, await seen(catalogue, memory, a_payment("now", now)), name)

    return asyncio.run(run())


def test_a_window_reaches_back_more_than_59_and_at_most_60_slices() -> None:
    now = T0 - T0 % HOUR + HOUR - 1  # the last millisecond of its slice: then the window is whole
    at = [now - HOUR, now - HOUR + 1, now - HOUR + MINUTE]
    for moment, expected in zip(at, (0, 1, 1), strict=True):
        rows = [Update(0, 1, payment_rows(a_payment("1", moment), declined=False)[0])]
        assert a_row_of(CATALOGUE, "merchant.merchant_count_1h", rows, now) == expected
    first_of_slice = now + 1
    rows = [Update(0, 1, payment_rows(a_payment("1", first_of_slice - 59 * MINUTE - 1), declined=False)[0])]
    assert a_row_of(CATALOGUE, "merchant.merchant_count_1h", rows, first_of_slice) == 0


def test_a_late_payment_meets_the_slices_of_its_own_time() -> None:
    rows = [Update(0, n, payment_rows(a_payment(str(n), T0 + n * MINUTE), declined=False)[0]) for n in range(1, 5)]
    assert [a_row_of(CATALOGUE, "merchant.merchant_count_1h", rows, T0 + n * MINUTE) for n in range(6)] == [0, 1, 2, 3, 4, 4]


def test_a_label_counts_when_its_payment_has_matured_and_it_was_learned_and_never_before() -> None:
    shares = Catalogue(
        (Feature("merchant", fraud_share(of=MERCHANT, window=days(30), delay=days(7)), "risky", "terminal_compromise", "Share of frauds"),)
    )
    paid, name = a_payment("1", T0), "merchant.merchant_fraud_share_30d"
    half_day = 12 * HOUR
    for learned_after, first_known in ((DAY, 7 * DAY), (10 * DAY, 10 * DAY)):
        rows = [Update(0, 1, payment_rows(paid, declined=False)[0]), Update(DECISIONS.partitions, 1, label_of(paid, T0 + learned_after))]
        assert math.isnan(a_row_of(shares, name, rows, T0 + 7 * DAY - half_day))
        assert a_row_of(shares, name, rows, T0 + first_known + half_day) == 1.0
        if learned_after > 7 * DAY:
            assert a_row_of(shares, name, rows, T0 + learned_after - 1) == 0.0


@pytest.mark.parametrize("different", [10, 50, 200, 500])
def test_the_standard_error_of_a_sketch_is_below_seven_percent_up_to_500_values(different: int) -> None:
    cards = Catalogue((Feature("merchant", distinct("card", of=MERCHANT, window=hours(1)), "many_cards", "card_testing", "Cards at the merchant"),))
    errors = []
    for trial in range(100):
        rows = [Update(0, n + 1, payment_rows(a_payment(f"{n}", card_token=f"c{trial}-{n}"), declined=False)[0]) for n in range(different)]
        content = updated(cards.tally_plan, cards.tally_layouts, 0, b"", rows)
        errors.append(told(cards.tally_plan, [content], T0)[0] / different - 1)
    assert math.sqrt(np.mean(np.square(errors))) < 0.08  # of 100 trials
    assert abs(np.mean(errors)) < 0.03


def test_a_late_transaction_is_not_told_the_values_that_came_again_after_its_slice() -> None:
    cards = Catalogue((Feature("merchant", distinct("card", of=MERCHANT, window=hours(1)), "many_cards", "card_testing", "Cards at the merchant"),))
    paid = [a_payment("first", card_token="c"), a_payment("other", card_token="d"), a_payment("again", card_token="c", at_ms=T0 + MINUTE)]
    rows = [Update(0, n + 1, payment_rows(payment, declined=False)[0]) for n, payment in enumerate(paid)]
    content = updated(cards.tally_plan, cards.tally_layouts, 0, b"", rows)
    assert [round(told(cards.tally_plan, [content], at_ms)[0]) for at_ms in (T0, T0 + MINUTE)] == [1, 2]


def test_a_tally_refuses_rows_that_it_cannot_say_by_name() -> None:
    frauds = distinct("card", of=MERCHANT, window=hours(1), where=(FRAUDS,))
    for shape, what in (
        (maximum("amount_minor", of=MERCHANT, window=hours(1)), "max"),
        (novel("card", of=MERCHANT), "same"),
        (frauds, "take a fraud back"),
    ):
        with pytest.raises(AssertionError, match=f"merchant has a tally: it.* cannot .*{what}"):
            Catalogue((Feature("merchant", shape, "reason", "velocity", "What a tally cannot tell"),)).tally_layouts  # noqa: B018 - asked for its error


# The same past, lived through or computed at once.


def a_history(count: int, seed: int) -> list[tuple[Transaction, bool, int]]:
    """Payments with whether they were declined and when they were learned to be fraud (0: never), some late, some twice, of these some with the
    label on the second row alone."""
    rng = random.Random(seed)
    made: list[tuple[Transaction, bool, int]] = []
    at = T0
    for n in range(count):
        at += rng.choice([0, 1, 1000, HOUR, DAY])
        late = rng.choice([0, 0, 0, 2 * MINUTE, 3 * HOUR])
        txn = a_payment(
            f"t{n}",
            at - late,
            merchant_id=rng.choice(["m1", "m2", None]),
            terminal_id=rng.choice(["w1", None]),
            ip=rng.choice([None, "10.0.0.1", "10.0.0.2"]),
            card_bin=rng.choice(["411111", None]),
            card_token=rng.choice(["c1", "c2", "c3"]),
            amount_minor=rng.choice([100, 1000]),
        )
        made.append((txn, rng.random() < 0.2, at - late + rng.choice([1, 8, 20]) * DAY if rng.random() < 0.2 else 0))
        if rng.random() < 0.1:
            txn, declined, learned = rng.choice(made)
            made.append((txn, declined, learned or rng.choice([0, txn.at_ms + 8 * DAY])))
    return made


async def lived_through(catalogue: Catalogue, history: Sequence[tuple[Transaction, bool, int]], memory: Memory) -> np.ndarray:
    """The vectors of a history as serving gives them, each decision told to the tallies at once, each label when it was learned."""
    vectors, given_, labels, newest = [], set(), sorted((learned, i) for i, (_, _, learned) in enumerate(history) if learned), 0
    first: dict[str, np.ndarray] = {}
    taught: set[str] = set()
    for i, (txn, declined, _) in enumerate(history):
        newest = max(newest, txn.at_ms)
        for learned, of in labels:
            label = history[of][0]
            if of < i and learned <= newest and label.transaction_id not in taught:
                taught.add(label.transaction_id)
                await give(catalogue, memory, label, [Update(DECISIONS.partitions, len(taught), label_of(label, learned))])
        looked = await seen(catalogue, memory, txn)
        vectors.append(first.setdefault(txn.transaction_id, looked.values))
        if txn.transaction_id not in given_:
            given_.add(txn.transaction_id)
            if declined:
                await memory.decline(txn)
            await give(catalogue, memory, txn, [Update(0, i, row) for row in payment_rows(txn, declined)])
    return np.array(vectors)


async def give(catalogue: Catalogue, memory: Memory, txn: Transaction, rows: list[Update]) -> None:
    tokens = [getattr(txn, field) for field in catalogue.tally_fields]
    named = [(n, t) for n, t in enumerate(tokens) if t is not None and (rows[0].row[-1] == 0 or catalogue.tallies[n] in ("merchant", "terminal"))]
    await memory.take(dict.fromkeys(named, rows))


@pytest.mark.parametrize("seed", range(8))
def test_a_backfill_gives_the_bits_that_serving_gave(seed: int) -> None:
    history = a_history(120, seed)
    live = asyncio.run(lived_through(CATALOGUE, history, DictMemory(CATALOGUE)))
    columns = replace(columns_of([txn for txn, _, _ in history]), learned=np.array([learned for _, _, learned in history]))
    declined = np.array([declined for _, declined, _ in history])
    assert backfill(CATALOGUE, columns, declined).tobytes() == live.tobytes()
    lots, under_way = [], Backfill(CATALOGUE)
    for at in range(0, columns.n, 25):
        lots.append(under_way.vectors(columns.part(at, min(at + 25, columns.n)), declined[at : at + 25]))
        state, under_way = under_way.state(), Backfill(CATALOGUE)
        under_way.restore(state)
    assert np.concatenate(lots).tobytes() == live.tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_any_read_is_repeated_from_the_offsets_that_it_had(seed: int) -> None:
    rng, number_ = random.Random(seed), CATALOGUE.tallies.index("ip")
    rows: list[tuple[str, Update]] = []
    contents = {"10.0.0.1": b"", "10.0.0.2": b""}
    waiting: list[tuple[str, Update]] = []
    asked, expected = [], []
    ends = [0, 0]
    for n in range(200):
        ip, source, at = rng.choice(list(contents)), rng.randrange(2), T0 + n * MINUTE - rng.choice([0, 0, 90_000])
        asked.append((ip, offsets_in(contents[ip][: len(NOTHING)] or NOTHING), at))
        expected.append(told(PLAN, [contents[ip] if i == number_ else None for i in range(len(LAYOUTS))], at))
        ends[source] += 1
        update = Update(source, ends[source], payment_rows(a_payment(f"t{n}", at, ip=ip, card_token=f"c{n % 7}"), declined=n % 5 == 0)[0])
        rows.append((ip, update))
        waiting.append((ip, update))
        while waiting and rng.random() < 0.5:  # the tally app is behind, by more or less
            who, late = waiting.pop(0)
            contents[who] = updated(PLAN, LAYOUTS, number_, contents[who], [late])
    given_ = Given(
        np.array([hash64(ip) for ip, _ in rows], np.uint64),
        np.array([u.source for _, u in rows]),
        np.array([u.offset for _, u in rows]),
        np.array([(row := u.row) and [row[0] - (row[0] >> 63 << 64), *row[1:]] for _, u in rows], np.int64),
    )
    reads = Reads(np.array([hash64(ip) for ip, _, _ in asked], np.uint64), np.array([p for _, p, _ in asked]), np.array([at for _, _, at in asked]))
    out = np.full((len(asked), len(PLAN.folds)), np.nan)
    told_all(PLAN, number_, given_, reads, out)
    assert out.tobytes() == np.array(expected).tobytes()


class TestInRedis:
    """Tallies in a real Redis."""

    def test_two_workers_at_once_lose_no_row_and_count_none_twice(self) -> None:
        async def run(url: str) -> None:
            async with a_memory(CATALOGUE, url) as one, a_memory(CATALOGUE, url) as other:
                number_ = CATALOGUE.tallies.index("ip")
                per = 40

                async def work(memory: Memory, source: int) -> None:
                    for n in range(1, per + 1):
                        row = payment_rows(a_payment(f"{source}-{n}", T0 + n, ip="10.0.0.9"), declined=False)[0]
                        await memory.take({(number_, "10.0.0.9"): [Update(source, n, row)]})
                        if n % 3 == 0:  # delivered again
                            await memory.take({(number_, "10.0.0.9"): [Update(source, n, row)]})

                await asyncio.gather(work(one, 0), work(other, 1), work(one, 2), work(other, 3))
                content = await one.tally("ip", "10.0.0.9")
                assert offsets_in(content)[:4] == (per + 1,) * 4
                looked = await seen(CATALOGUE, one, a_payment("now", T0 + per, ip="10.0.0.9"))
                assert number(CATALOGUE, looked, "velocity.ip_count_10m") == 4 * per
                assert looked.tally_positions[number_ * len(NOTHING) :][: len(NOTHING)] == content[: len(NOTHING)]

        with a_redis() as url:
            asyncio.run(run(url))

    def test_serving_from_redis_gives_the_bits_that_serving_from_a_dict_gives(self) -> None:
        history = a_history(60, 99)

        async def run(url: str) -> bytes:
            async with a_memory(CATALOGUE, url) as memory:
                return (await lived_through(CATALOGUE, history, memory)).tobytes()

        with a_redis() as url:
            assert asyncio.run(run(url)) == asyncio.run(lived_through(CATALOGUE, history, DictMemory(CATALOGUE))).tobytes()


@pytest.mark.parametrize(
    ("outcome", "action", "kind", "sources", "counts"),
    [
        (Outcome.DECLINE, None, TransactionKind.ECOMMERCE, (ReasonSource.ACCOUNT,), True),
        (Outcome.BLOCK, None, TransactionKind.ECOMMERCE, (), True),
        (Outcome.REVIEW, None, TransactionKind.ECOMMERCE, (ReasonSource.RULE,), False),
        (Outcome.DECLINE, Action.STEP_UP, TransactionKind.ECOMMERCE, (ReasonSource.RULE,), False),
        (Outcome.BLOCK, None, TransactionKind.REFUND, (ReasonSource.RULE,), False),
        (Outcome.DECLINE, None, TransactionKind.ECOMMERCE, (ReasonSource.DEGRADED,), False),
        (Outcome.DECLINE, None, TransactionKind.ECOMMERCE, (ReasonSource.DEGRADED, ReasonSource.RULE), True),
    ],
)
def test_a_decline_is_of_an_attempt_to_move_money_out_for_what_lies_with_the_payment(
    outcome: Outcome, action: Action | None, kind: TransactionKind, sources: tuple[ReasonSource, ...], counts: bool
) -> None:
    assert counts_as_declined(outcome, action, kind, [Reason(code="why", source=source) for source in sources]) is counts
