"""The stand-in's limits: what it approves of whom, and that no order of payments passes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import stand_in
from models.registry import default_stand_in_text
from models.stand_in import Approved, Known, Refusal, approval_of, refusal, stand_in_from_toml
from schemas.account import AccountState, AccountStatus
from schemas.controls import Controls, Limit, Period, Usability
from schemas.decision import Outcome
from schemas.errors import SettingsError
from schemas.transaction import TransactionKind
from tests.world import NOON, a_transaction

POLICY = stand_in_from_toml(default_stand_in_text())
ROW = POLICY.rows[0]
DAY_MS = 86_400_000


def people(*cards: str) -> Known:
    """Those that are known."""
    known = Known(POLICY.known_ms)
    for card in cards or ("crd_k1_1",):
        known.note(a_transaction(card_token=card), Outcome.APPROVE, NOON)
    return known


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"amount_minor": ROW.amount_max_minor}, None),
        ({"amount_minor": ROW.amount_max_minor + 1}, Refusal.AMOUNT),
        ({"currency": "JPY"}, Refusal.NOT_COVERED),
        ({"kind": TransactionKind.ATM}, Refusal.NOT_COVERED),
        ({"card_token": None}, Refusal.NOT_COVERED),
        ({"card_token": "crd_k1_2"}, Refusal.UNKNOWN_CARD),
        ({"merchant_id": "m2"}, Refusal.UNKNOWN_MERCHANT),
        ({"amount_minor": 90_000, "billing_amount_minor": 4_000, "billing_currency": "EUR"}, None),
    ],
)
def test_it_approves_small_payments_of_known_cards_at_known_merchants(changes: dict[str, object], why: Refusal | None) -> None:
    assert refusal(POLICY, people(), Approved(), a_transaction(**changes), NOON) is why


def test_a_card_is_known_until_it_is_declined_or_too_long_ago() -> None:
    known, txn = people(), a_transaction()
    assert refusal(POLICY, known, Approved(), txn, NOON + POLICY.known_ms) is None
    assert refusal(POLICY, known, Approved(), txn, NOON + POLICY.known_ms + 1) is Refusal.UNKNOWN_CARD
    known.note(txn, Outcome.BLOCK, NOON)
    assert refusal(POLICY, known, Approved(), txn, NOON) is Refusal.UNKNOWN_CARD


def some_controls(at_ms: int = NOON, **said: Any) -> Controls:
    """Controls of the account, or of a card of it."""
    return Controls(controls_id=f"ctl_{said.get('card_token', '')}", account_id="a1", counted_since_ms=NOON, at_ms=at_ms, **said)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, None),
        ({"status": Usability.FROZEN}, Refusal.CONTROLS),
        ({"status": Usability.FROZEN, "card_token": "crd_k1_1"}, Refusal.CONTROLS),
        ({"status": Usability.FROZEN, "card_token": "crd_k1_2"}, None),
        ({"categories_blocked": ("5411",)}, Refusal.CONTROLS),
        ({"countries_allowed": ("FR",)}, Refusal.CONTROLS),
        ({"limits": (Limit(period=Period.TRANSACTION, amount_minor=999),)}, Refusal.CONTROLS),
        ({"limits": (Limit(period=Period.TRANSACTION, amount_minor=1_000),)}, None),
        ({"limits": (Limit(period=Period.DAY, amount_minor=10**9),)}, Refusal.CONTROLS),
    ],
)
def test_it_obeys_the_controls_and_approves_nothing_under_a_limit_whose_use_it_does_not_know(said: dict[str, Any], why: Refusal | None) -> None:
    known, txn = people(), a_transaction(amount_minor=1_000)
    known.obey(some_controls(**said))
    assert refusal(POLICY, known, Approved(), txn, NOON) is why
    same = {name: said[name] for name in said if name == "card_token"}
    known.obey(some_controls(NOON - 1, **same))
    assert refusal(POLICY, known, Approved(), txn, NOON) is why, "what was said before does not take the place of what was said later"
    known.obey(some_controls(NOON + 1, **same))
    assert refusal(POLICY, known, Approved(), txn, NOON) is None


def test_it_approves_nothing_of_an_account_that_is_not_open_by_what_was_said_of_it_last() -> None:
    known, txn = people(), a_transaction(amount_minor=1_000)

    def said(at_ms: int, status: AccountStatus) -> Refusal | None:
        known.obey(AccountState(account_id="a1", currency="EUR", balance_minor=0, status=status, as_of_ms=at_ms))
        return refusal(POLICY, known, Approved(), txn, NOON)

    assert said(NOON, AccountStatus.OPEN) is None
    assert said(NOON + 1, AccountStatus.CLOSED) is Refusal.CONTROLS
    assert said(NOON, AccountStatus.OPEN) is Refusal.CONTROLS, "what was said before does not take the place of what was said later"
    assert refusal(POLICY, known, Approved(), a_transaction(account_id="a2", amount_minor=1_000), NOON) is None
    assert said(NOON + 2, AccountStatus.OPEN) is None


def test_where_there_are_too_many_those_are_forgotten_that_paid_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "CARDS_MAX", 10)
    monkeypatch.setattr(stand_in, "MERCHANTS_MAX", 10)
    known = Known(POLICY.known_ms)
    for number in (0, *range(1, 10), 0, 10):
        known.note(a_transaction(card_token=f"c{number}", merchant_id=f"m{number}"), Outcome.APPROVE, NOON + number)
    kept = [n for n in range(11) if known.refusal(a_transaction(card_token=f"c{n}", merchant_id=f"m{n}"), NOON) is None]
    assert kept == [0, 6, 7, 8, 9, 10]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, ROW.amount_max_minor + 500), st.integers(0, 8 * DAY_MS)), max_size=60))
def test_no_card_gets_more_in_a_day_than_the_rows_say_though_the_clock_goes_back_or_answers_of_days_ago_are_asked_for(
    asked: list[tuple[int, int, int]],
) -> None:
    approved, known, given_out = Approved(), people("c0", "c1", "c2"), dict[tuple[int, int], list[int]]()
    for card, amount, later in asked:
        txn, at_ms = a_transaction(card_token=f"c{card}", amount_minor=amount), NOON + later
        if refusal(POLICY, known, approved, txn, at_ms) is None:
            approved.add(approval_of(txn, at_ms))
            given_out.setdefault((card, at_ms // DAY_MS), []).append(amount)
    for amounts in given_out.values():
        assert len(amounts) <= ROW.card_day_count_max
        assert sum(amounts) <= ROW.card_day_max_minor
        assert max(amounts) <= ROW.amount_max_minor


def test_answers_of_days_ago_that_are_asked_for_again_do_not_make_today_begin_anew() -> None:
    approved, txn = Approved(), a_transaction(amount_minor=1)
    for _ in range(ROW.card_day_count_max):
        approved.add(approval_of(txn, NOON))
    for days in range(1, 9):
        assert approved.refusal(ROW, txn, NOON - days * DAY_MS) is None
    assert approved.refusal(ROW, txn, NOON) is Refusal.CARD_COUNT


def test_what_was_taken_back_counts_no_more() -> None:
    approved, txn = Approved(), a_transaction(amount_minor=ROW.amount_max_minor)
    for _ in range(10):
        approved.add(approval_of(txn, NOON))
        approved.add(approval_of(txn, NOON), -1)
    assert approved.refusal(ROW, txn, NOON) is None


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ('amount_max = "50.00"', 'amount_max = "50.001"', "amount"),
        ('card_day_max = "150.00"', 'card_day_max = "-150.00"', "card_day_max"),
        ('day_max = "100000.00"', "day_max = nan", "day_max"),
        ('["card_present"', '["refund"', "refund"),
        ("known_days = 30", "known_days = 0", "known_days"),
        ("known_days = 30", f"known_days = {'[' * 4_000}{']' * 4_000}", "stand-in policy"),
    ],
)
def test_a_wrong_policy_is_refused_by_name(before: str, after: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        stand_in_from_toml(default_stand_in_text().replace(before, after, 1))
