"""What a capture or reversal becomes: a clearing for each hold, never more than is held, and every refusal by name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.clearing import WHOLE, Asked, ahead, applied, clearings, named
from models.hold import EMPTY, PARTS_MAX, Book, Refusal, Terms, UnknownAccount, confirm, place, post, void
from schemas.hold import ClearingKind
from schemas.identity import hold_id, increment_id

DAY = 86_400_000
amounts = st.integers(1, 10_000)


def a_book(*held: int, tolerance: int = 0) -> Book:
    """A hold of the first amount for `t1`, and increments of the others."""
    book = EMPTY
    for number, amount in enumerate(held):
        txn = increment_id("t1", f"i{number}") if number else "t1"
        book = confirm(book, Terms(hold_id(txn), txn, amount, "EUR", 7 * DAY, tolerance)).book
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
    made = clearings(a_book(*held), asked(ClearingKind.REVERSAL, WHOLE, currency=""), DAY)
    assert isinstance(made, tuple)
    assert [(c.kind, c.amount_minor) for c in made] == [(ClearingKind.REVERSAL, 0)] * len(held)


def test_refusals_are_facts_of_the_hold() -> None:
    book = a_book(500)
    assert clearings(EMPTY, asked(amount=1), DAY) is Refusal.UNKNOWN_HOLD
    assert clearings(book, asked(amount=1), 7 * DAY) is Refusal.LATE_CAPTURE, "exactly seven days: the boundary is expired"
    assert clearings(book, asked(amount=1, at_ms=7 * DAY), DAY) is Refusal.LATE_CAPTURE
    assert clearings(book, asked(ClearingKind.REVERSAL, WHOLE), 7 * DAY) is Refusal.ALREADY_EXPIRED
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
    known = ["t1", increment_id("t1", "i1"), increment_id("t1", "i2")]
    assert named("i1", known) == known[1]
    assert named("t1", known) == "t1"
    assert named("i9", known) == "i9"


parts_asked = st.lists(st.tuples(st.booleans(), st.integers(1, 8_000)), max_size=8)


@given(st.lists(amounts, min_size=1, max_size=4), st.integers(0, 50), parts_asked)
def test_whatever_parts_are_asked_for_never_more_moves_than_was_held_and_tolerated(
    held: list[int], tolerance: int, parts: list[tuple[bool, int]]
) -> None:
    book, taken, given_back = a_book(*held, tolerance=tolerance), 0, 0
    for number, (captures, amount) in enumerate(parts):
        kind = ClearingKind.CAPTURE if captures else ClearingKind.REVERSAL
        part = asked(kind, amount, clearing_id=f"c{number}", final=False)
        left = sum(hold.left_minor for hold in book.holds if hold.live(DAY))
        made = clearings(book, part, DAY)
        if isinstance(made, Refusal):
            spare = sum(hold.tolerated_minor for hold in book.holds if hold.live(DAY)) if captures else 0
            assert not left or amount > left + spare
            continue
        assert sum(c.amount_minor for c in made) == amount
        book = ahead(ahead(book, made), made)
        assert {c.clearing_id for c in made} == {c.clearing_id for c in applied(book, part)}
        taken, given_back = taken + amount * captures, given_back + amount * (not captures)
    assert taken <= sum(held) + tolerance * len(held)
    assert sum(hold.left_minor for hold in book.holds if hold.live(DAY)) == max(0, sum(held) - taken - given_back) or taken + given_back > sum(held)
    assert given_back <= sum(held)


def test_the_last_capture_ends_the_increments_too_and_one_that_is_not_leaves_them() -> None:
    book = a_book(500, 300)
    part = clearings(book, asked(amount=500, final=False), DAY)
    assert isinstance(part, tuple)
    assert [(c.amount_minor, c.final) for c in part] == [(500, False)]
    rest = clearings(ahead(book, part), asked(amount=100, clearing_id="c2"), DAY)
    assert isinstance(rest, tuple)
    assert [(c.transaction_id, c.amount_minor) for c in rest] == [(increment_id("t1", "i1"), 100)]


def test_no_more_parts_are_promised_than_the_books_will_take() -> None:
    book = a_book(1_000)
    for number in range(PARTS_MAX):
        part = clearings(book, asked(amount=1, clearing_id=f"c{number}", final=False), DAY)
        assert isinstance(part, tuple)
        book = ahead(book, part)
    assert clearings(book, asked(amount=1, clearing_id="more", final=False), DAY) is Refusal.TOO_MANY_PARTS
    assert clearings(book, asked(ClearingKind.REVERSAL, 1, clearing_id="more"), DAY) is Refusal.TOO_MANY_PARTS
    last = clearings(book, asked(amount=WHOLE, clearing_id="last"), DAY)
    assert isinstance(last, tuple)
    assert [c.amount_minor for c in last] == [1_000 - PARTS_MAX]


def test_a_partial_reversal_gives_the_newest_increment_back_first() -> None:
    made = clearings(a_book(500, 300), asked(ClearingKind.REVERSAL, 400), DAY)
    assert isinstance(made, tuple)
    assert [c.amount_minor for c in made] == [300, 100]
