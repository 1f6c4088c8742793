"""A candidate policy on payments of the past: the outcome is `judge`'s own, money adds up to the minor unit, overlaps are counted once."""

from __future__ import annotations

import functools
from dataclasses import replace

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from features.catalogue import CATALOGUE
from models.backtest import Payments, alerts, backtest, read_by, replayed
from models.compare import beside
from models.decision import NOTHING_MISSING, Missing, judge, severities
from models.ensemble import Ensemble
from models.policy import SEVERITY, Policy, authentication_of, policy_from_toml
from models.registry import default_policy_text
from schemas.decision import Outcome
from schemas.transaction import CheckResult, Transaction, TransactionKind
from tests.models.conftest import a_history
from tests.world import examples_of, quick, trained_quickly

TEXT = default_policy_text()
LIVE = policy_from_toml(TEXT)
STRICT = policy_from_toml(TEXT.replace("review_above = 0.50", "review_above = 0.20").replace("block_above = 0.80", "block_above = 0.50"))
STEPPING = policy_from_toml(TEXT.replace('outcome = "review", reason', 'outcome = "review", action = "step_up", reason'))
READ = read_by(LIVE)
COLUMNS = [CATALOGUE.index[name] for name in READ]
KINDS = ("memory_missing:card", "member_missing:learned", "memory_stale")
APPROVE, REVIEW, DECLINE, BLOCK = (SEVERITY[outcome] for outcome in Outcome)


@functools.cache
def any_ensemble() -> Ensemble:
    return trained_quickly(examples_of(*a_history(1500)), quick(), LIVE.bound(CATALOGUE.names), seed=7).ensemble


VALUES = st.one_of(st.just(float("nan")), st.floats(0, 8), st.sampled_from([0.0, 1.0, 4.0, 5.0, 7.0, 1e6]))
ROWS = 6
PLAIN = Transaction(transaction_id="T", kind=TransactionKind.CARD_PRESENT, at_ms=0, amount_minor=1, currency="EUR", account_id="A")
ONLINE = msgspec.structs.replace(PLAIN, kind=TransactionKind.ECOMMERCE)
DONE = msgspec.structs.replace(ONLINE, three_ds_result=CheckResult.MATCH)
PAYMENTS = [PLAIN, ONLINE, DONE, *(msgspec.structs.replace(one, step_up_of="S") for one in (ONLINE, DONE))]
"""Payments of which nobody, everybody or only some can be asked to authenticate."""


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.float64, (ROWS, len(COLUMNS)), elements=VALUES),
    st.integers(0, 1 << 20),
    st.lists(st.lists(st.sampled_from(KINDS), unique=True).map(tuple), min_size=ROWS, max_size=ROWS),
    st.sampled_from([LIVE, STRICT, STEPPING]),
    st.lists(st.sampled_from(PAYMENTS), min_size=ROWS, max_size=ROWS),
)
def test_the_outcome_of_many_is_the_one_that_judge_gives_each(
    read: np.ndarray, seed: int, missing: list[tuple[str, ...]], policy: Policy, txns: list[Transaction]
) -> None:
    vectors = a_history(ROWS + 2, seed)[0][:ROWS]
    vectors[:, COLUMNS] = read
    bound = policy.bound(CATALOGUE.names)
    verdicts = [judge(any_ensemble(), bound, CATALOGUE.reason_of, txn, v, m) for v, m, txn in zip(vectors, missing, txns, strict=True)]
    scores = np.array([np.nan if v.score is None else v.score for v in verdicts])
    pairs = [(row, KINDS.index(kind)) for row, verdict in enumerate(verdicts) for kind in verdict.degradations]
    rows, kinds = np.array(pairs, np.int64).reshape(-1, 2).T
    asked = np.array([authentication_of(txn) for txn in txns], np.int64)
    judged = severities(policy.bound(READ), np.ascontiguousarray(vectors[:, COLUMNS]), scores, Missing(rows, kinds, KINDS), asked)
    assert judged.tolist() == [SEVERITY[v.outcome] for v in verdicts]


def payments(scores: list[float], frauds: list[int], amounts_minor: list[int], decided: list[int] | None = None) -> Payments:
    """Payments a day apart, in EUR and JPY by turns, on which no rule fires."""
    count = len(scores)
    return Payments(
        names=READ,
        vectors=np.full((count, len(READ)), np.nan),
        scores=np.array(scores, np.float64),
        missing=NOTHING_MISSING,
        decided=np.array(decided or [APPROVE] * count),
        at_ms=np.arange(count) * 86_400_000,
        amounts_minor=np.array(amounts_minor),
        currencies=np.arange(count) % 2,
        currency_names=("EUR", "JPY"),
        frauds=np.array(frauds, np.bool_),
        authentications=np.zeros(count, np.int64),
        unasked=np.zeros(count, np.bool_),
    )


def test_it_says_the_fraud_caught_the_honest_hit_and_the_money_by_currency() -> None:
    found = backtest(STRICT, LIVE, payments([900, 300, 600, 300, 100], [1, 1, 0, 0, 1], [2**60 + 1, 20, 30, 40, 50]))
    assert (found.payments, found.frauds, found.days) == (5, 3, 4.0)
    assert (found.live.fraud_blocked, found.live.fraud_missed, found.live.honest_reviewed, found.live.alerts_per_day) == (1, 2, 1, 0.5)
    assert (found.candidate.fraud_reviewed, found.candidate.honest_blocked, found.candidate.honest_reviewed) == (1, 1, 1)
    assert found.candidate.money["EUR"]._asdict() == {
        "fraud_blocked": 2**60 + 1, "fraud_reviewed": 0, "fraud_declined": 0, "fraud_missed": 50, "honest_blocked": 30, "honest_reviewed": 0,
    }  # fmt: skip
    assert found.candidate.money["JPY"].fraud_reviewed == 20
    assert found.overlap == (2, 2, 0, 1, 1, 0)
    assert found.candidate.outcomes == {"approve": 1, "review": 2, "decline": 0, "block": 2}


def test_an_account_that_could_not_pay_cannot_pay_now_and_a_block_is_a_block() -> None:
    given_ = payments([900, 600, 100], [0, 0, 0], [1, 1, 1], [DECLINE, DECLINE, BLOCK])
    assert replayed(LIVE, given_).tolist() == [BLOCK, DECLINE, APPROVE]
    assert alerts(replayed(LIVE, given_)).tolist() == [True, False, False]


def test_every_fraud_is_in_one_part_also_one_that_the_account_could_not_pay() -> None:
    found = backtest(STRICT, LIVE, payments([900, 600, 100, 100], [1, 1, 1, 1], [1, 2, 4, 8], [APPROVE, APPROVE, DECLINE, APPROVE]))
    live = found.live
    assert (live.fraud_blocked, live.fraud_reviewed, live.fraud_declined, live.fraud_missed) == (1, 1, 1, 1)
    assert (live.money["EUR"].fraud_declined, live.money["JPY"].fraud_missed) == (4, 8)


def test_whom_a_policy_asked_to_authenticate_the_account_did_not_decline() -> None:
    past = payments([300, 300, 600], [0, 0, 0], [1, 1, 1], [DECLINE, DECLINE, DECLINE])
    found = backtest(STRICT, LIVE, replace(past, unasked=np.array([True, False, True])))
    assert found.live.outcomes == {"approve": 1, "review": 1, "decline": 1, "block": 0}


def test_who_stands_by_would_not_have_declined_whom_only_the_policy_asked_to_authenticate() -> None:
    past = replace(payments([300, 300], [1, 1], [1, 1], [DECLINE, DECLINE]), unasked=np.array([True, False]))
    found = beside(past, np.array([APPROVE, APPROVE]), np.array([300.0, 300.0]))
    assert found.would.outcomes == {"approve": 1, "review": 0, "decline": 1, "block": 0}
    assert found.would.fraud_missed == 1
