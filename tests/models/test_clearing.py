"""What a capture or reversal becomes: a clearing for each hold, never more than is held, and every refusal by name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.clearing import Asked, clearings, named
from models.hold import EMPTY, Book, Refusal, UnknownAccount, confirm, place, post, void
from schemas.hold import ClearingKind
from schemas.identity import hold_id, increment_id

DAY = 86_400_000
amounts = st.integers(1, 10_000)


def a_book(*held: int) -> Book:
    """A hold of the first amount for `t1`, and increments of the others."""
    book = EMPTY
    for number, amount in enumerate(held):
        txn = increment_id("t1", f"i{number}") if number else "t1"
        book = confirm(book, hold_id(txn), txn, amount, "EUR", 7 * DAY).book
    return book


def asked(kind: ClearingKind = ClearingKind.CAPTURE, amount: int = 0, **changes: object) -> Asked:
    """A capture or reversal of `t1` at noon of the first day."""
    plain: dict[str, object] = {"clearing_id": "c1", "transaction_id": "t1", "account_id": "a1", "currency": "EUR", "at_ms": DAY // 2}
    return Asked(kind=kind, amount_minor=amount, **(plain | changes))  # type: ignore[arg-type]


@given(st.lists(amounts, min_size=1, max_size=5), st.data())
def test_a_capture_is_shared_among_the_holds_and_the_books_take_it(held: list[int], data: st.DataObject) -> None:
    book, amount = a_book(*held), data.draw(st.integers(0, sum(held)))
    made = clearings(book, asked(amount=amount), DAY)
    assert isinstance(made, tuple)
    assert sum(c.amount_minor for c in made) == amount
    assert len({c.clearing_id for c in made}) == len({c.transaction_id for c in made}) == len(held)
    for clearing in made:
        hold = hold_id(clearing.transaction_id)
        captures = clearing.kind is ClearingKind.CAPTURE
        step = post(book, hold, clearing.amount_minor, "EUR", clearing.at_ms) if captures else void(book, hold, clearing.at_ms)
        assert not isinstance(step, Refusal)
        book = step.book
    assert book.available_minor(DAY) == 0, "nothing is held any more"


@given(st.lists(amounts, min_size=1, max_size=5), amounts)
def test_more_than_is_held_is_refused(held: list[int], more: int) -> None:
    assert clearings(a_book(*held), asked(amount=sum(held) + more), DAY) is Refusal.EXCEEDS_HOLD


@given(st.lists(amounts, min_size=1, max_size=5))
def test_a_reversal_gives_all_of_it_back(held: list[int]) -> None:
    made = clearings(a_book(*held), asked(ClearingKind.REVERSAL, currency=""), DAY)
    assert isinstance(made, tuple)
    assert [(c.kind, c.amount_minor) for c in made] == [(ClearingKind.REVERSAL, 0)] * len(held)


def test_refusals_are_facts_of_the_hold() -> None:
    book = a_book(500)
    assert clearings(EMPTY, asked(amount=1), DAY) is Refusal.UNKNOWN_HOLD
    assert clearings(book, asked(amount=1), 7 * DAY) is Refusal.ALREADY_EXPIRED, "exactly seven days: the boundary is expired"
    assert clearings(book, asked(amount=1, at_ms=7 * DAY), DAY) is Refusal.ALREADY_EXPIRED
    assert clearings(book, asked(amount=1, currency="USD"), DAY) is Refusal.HOLD_CURRENCY_MISMATCH
    posted = post(book, hold_id("t1"), 500, "EUR", DAY)
    assert not isinstance(posted, Refusal)
    assert clearings(posted.book, asked(amount=1), DAY) is Refusal.ALREADY_POSTED


def test_a_hold_that_the_log_has_not_confirmed_yet_is_cleared_all_the_same() -> None:
    step = place(EMPTY, hold_id("t1"), "t1", 500, "EUR", 0, 30_000, 7 * DAY, UnknownAccount.HOLD)
    assert not isinstance(step, Refusal)
    made = clearings(step.book, asked(amount=500), 1_000)
    assert isinstance(made, tuple)
    assert made[0].amount_minor == 500


def test_an_increment_is_found_by_the_id_that_its_sender_chose() -> None:
    book = a_book(500, 100)
    assert named(book, asked(transaction_id="i1")).transaction_id == increment_id("t1", "i1")
    assert named(book, asked(transaction_id="t1")).transaction_id == "t1"
    assert named(book, asked(transaction_id="i9")).transaction_id == "i9"
