"""The audit: books that agree, and each way in which they may not, by name."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from decimal import Decimal

import msgspec
import pytest

from models.audit import Audit
from models.hold import OpenHold, confirmed_event, resolved_event
from models.ledger import transfer_of_credit, transfers_of_hold
from models.policy import Policy
from models.sar import MOVEMENTS_MAX, candidates, movement_of
from schemas.avro import encode
from schemas.decision import Decision, Outcome, Reason, ReasonSource
from schemas.hold import Clearing, ClearingKind, HoldEvent, HoldState
from schemas.ledger import LedgerTransfer, TransferPhase
from schemas.sar import SarCandidate, Typology
from schemas.transaction import Transaction, TransactionKind
from streams.asked import Origin
from tests.models.decisions import a_decision
from tests.world import NOON, a_policy, a_transaction, a_world

FIRST = {"transactions": {0: 0}, "clearings": {0: 0}}
CAPTURED = {"source_topic": "clearings", "source_partition": 0, "source_offset": 4, "clearing_id": "p9"}
LONG_AFTER = NOON + 40 * 86_400_000


def a_clearing(clearing_id: str, transaction_id: str, kind: ClearingKind, amount_minor: int) -> Clearing:
    """What the network says of a payment a little later."""
    return Clearing(
        clearing_id=clearing_id,
        transaction_id=transaction_id,
        account_id="a1",
        kind=kind,
        amount_minor=amount_minor,
        currency="EUR",
        at_ms=NOON + 9,
    )


class Books:
    """Three decided payments and a credit with all that follows: one hold open, one posted in part, one voided."""

    def __init__(self) -> None:
        world = a_world()
        world.know()
        self.transactions = [a_transaction(f"t{i}", at_ms=NOON + i) for i in range(3)]
        self.transactions.append(a_transaction("t3", kind=TransactionKind.REFUND))
        for offset, txn in enumerate(self.transactions):
            asyncio.run(world.decide(txn, Origin("transactions", 0, offset)))
        self.decisions: list[Decision] = world.decisions
        held = [d for d in self.decisions if d.hold_id]
        self.holds: list[HoldEvent] = [confirmed_event(d, "decisions", 0, i) for i, d in enumerate(held)]
        self.clearings = [a_clearing("c1", "t1", ClearingKind.CAPTURE, 400), a_clearing("c2", "t2", ClearingKind.REVERSAL, 0)]
        for offset, d, state, posted in ((0, held[1], HoldState.POSTED, 400), (1, held[2], HoldState.VOIDED, 0)):
            end = OpenHold(str(d.hold_id), d.transaction_id, d.held_minor, "EUR", state, 0, int(d.hold_expires_at_ms or 0), posted, NOON + 9)
            self.holds.append(resolved_event("a1", end, "clearings", 0, offset))
        self.transfers: list[LedgerTransfer] = [t for e in self.holds for t in transfers_of_hold(e)]
        self.transfers += [t for d in self.decisions for t in transfer_of_credit(d)]
        self.dead: list[tuple[str, int, int]] = []
        self.unreadable: list[tuple[str, int, int]] = []

    def audit(self) -> Audit:
        """All of it, read."""
        audit = Audit()
        for offset, txn in enumerate(self.transactions):
            audit.transaction(txn, 0, offset)
        for offset, clearing in enumerate(self.clearings):
            audit.clearing(clearing, 0, offset)
        for place in self.unreadable:
            audit.unreadable(*place, "does not decode")
        for place in self.dead:
            audit.dead_letter(*place)
        for d in self.decisions:
            audit.decision(d, encode(d))
        for e in self.holds:
            audit.hold_event(e, encode(e))
        for t in self.transfers:
            audit.transfer(t, encode(t))
        return audit

    def codes(self, now_ms: int = NOON) -> set[str]:
        """The codes of what is wrong."""
        return {d.code for d in self.audit().disagreements(now_ms, 0, FIRST)}


def changed(records: list[Decision] | list[HoldEvent] | list[LedgerTransfer], index: int, **changes: object) -> None:
    """Replaces one record by a changed one."""
    records[index] = msgspec.structs.replace(records[index], **changes)  # type: ignore[call-overload]


def test_whole_books_agree_and_sum_to_zero() -> None:
    audit = Books().audit()
    assert audit.disagreements(NOON, 0, FIRST) == []
    assert audit.sums() == {"EUR": 0}
    assert audit.counts["holds confirmed"] == 3
    assert sum(abs(v) for v in audit.balances().values()) > 0, "zero, and not because nothing moved"


def test_the_same_record_twice_is_a_repeat_and_no_disagreement() -> None:
    books = Books()
    books.decisions.append(books.decisions[0])
    books.holds.append(books.holds[0])
    assert books.codes() == set()
    assert books.audit().counts["repeated decisions"] == 1


def an_extra_transaction(b: Books) -> None:
    b.transactions.append(a_transaction("t9"))


def no_first_decision(b: Books) -> None:
    del b.decisions[0]


def another_decision_of_one_id(b: Books) -> None:
    b.decisions.append(msgspec.structs.replace(b.decisions[0], decided_at_ms=1))


def another_transaction_at_its_place(b: Books) -> None:
    b.transactions[0] = a_transaction("t8")


def no_confirmation(b: Books) -> None:
    del b.holds[0]


def another_amount_held(b: Books) -> None:
    changed(b.holds, 0, held_minor=1)


def resolved_twice(b: Books) -> None:
    b.holds.append(msgspec.structs.replace(b.holds[3], state=HoldState.VOIDED, posted_minor=0))


def posted_too_much(b: Books) -> None:
    changed(b.holds, 3, posted_minor=10_000)


def no_transfer(b: Books) -> None:
    del b.transfers[0]


def a_transfer_of_another_amount(b: Books) -> None:
    changed(b.transfers, 0, amount_minor=1)


def a_transfer_of_nothing(b: Books) -> None:
    b.transfers.append(msgspec.structs.replace(b.transfers[0], transfer_id="trf_x"))


def a_capture_that_nobody_applied(b: Books) -> None:
    b.clearings.append(a_clearing("c3", "t0", ClearingKind.CAPTURE, 1_000))


def a_second_capture_of_one_hold(b: Books) -> None:
    b.clearings.append(a_clearing("c3", "t1", ClearingKind.CAPTURE, 400))


def parts_first(b: Books) -> None:
    """The open hold of `t0` is taken and given back in parts and then expires: what each step says."""
    event = b.holds[0]
    kinds = ((HoldState.PARTLY_POSTED, ClearingKind.CAPTURE, 300, 0), (HoldState.PARTLY_VOIDED, ClearingKind.REVERSAL, 0, 200))
    for state, kind, posted, released in kinds:
        offset = len(b.clearings)
        b.clearings.append(msgspec.structs.replace(a_clearing(f"p{offset}", "t0", kind, posted or released), final=False))
        part = {"posted_minor": posted, "released_minor": released, "clearing_id": f"p{offset}", "at_ms": NOON + 9}
        place = {"source_topic": "clearings", "source_partition": 0, "source_offset": offset}
        b.holds.append(msgspec.structs.replace(event, event_id=f"evt_p{offset}", state=state, **part, **place))
    end = {"at_ms": event.expires_at_ms, "released_minor": 500, "source_topic": "clock", "source_partition": -1, "source_offset": -1}
    b.holds.append(msgspec.structs.replace(event, event_id="evt_end", state=HoldState.EXPIRED, **end))
    b.transfers += [t for e in b.holds[-3:] for t in transfers_of_hold(e)]


def more_parts_than_were_held(b: Books) -> None:
    parts_first(b)
    changed(b.holds, -3, posted_minor=1_001)


def more_given_back_than_was_left(b: Books) -> None:
    parts_first(b)
    changed(b.holds, -2, released_minor=701)


def an_end_that_forgets_a_part(b: Books) -> None:
    parts_first(b)
    changed(b.holds, -1, released_minor=400)


def an_end_of_other_money(b: Books) -> None:
    changed(b.holds, 3, held_minor=1)


def more_given_back_with_the_last_capture_than_was_left(b: Books) -> None:
    changed(b.holds, 0, tolerance_minor=100)
    changed(b.decisions, 0, hold_tolerance_minor=100)
    parts_first(b)
    changed(b.holds, -1, state=HoldState.POSTED, posted_minor=500, released_minor=50, **CAPTURED)
    b.clearings.append(msgspec.structs.replace(a_clearing("p9", "t0", ClearingKind.CAPTURE, 500), at_ms=b.holds[-1].at_ms))
    b.transfers[-1:] = transfers_of_hold(b.holds[-1])


def a_part_that_nobody_booked(b: Books) -> None:
    parts_first(b)
    del b.transfers[-2]


def one_part_twice(b: Books) -> None:
    parts_first(b)
    b.holds.append(msgspec.structs.replace(b.holds[-3], posted_minor=299))


def a_changed_repeat_of_a_clearing(b: Books) -> None:
    b.clearings.append(msgspec.structs.replace(b.clearings[0], amount_minor=399))


def money_taken_without_a_capture(b: Books) -> None:
    b.clearings[0] = a_clearing("c9", "t9", ClearingKind.CAPTURE, 400)
    b.dead.append(("clearings", 0, 0))


def other_money_taken_than_was_captured(b: Books) -> None:
    b.clearings[0] = msgspec.structs.replace(b.clearings[0], amount_minor=401)


def another_transaction_under_a_decided_id(b: Books) -> None:
    b.transactions.append(a_transaction("t0", amount_minor=2))


def a_transaction_that_does_not_decode(b: Books) -> None:
    b.unreadable.append(("transactions", 0, 4))


def a_decision_that_does_not_decode(b: Books) -> None:
    b.unreadable.append(("decisions", 0, 4))
    b.dead.append(("decisions", 0, 4))


@pytest.mark.parametrize(
    ("spoil", "codes"),
    [
        (an_extra_transaction, {"undecided_transaction"}),
        (no_first_decision, {"undecided_transaction", "orphan_hold"}),
        (another_decision_of_one_id, {"two_records_of_one_id"}),
        (another_transaction_at_its_place, {"undecided_transaction", "orphan_decision"}),
        (no_confirmation, {"unconfirmed_hold", "orphan_transfer"}),
        (another_amount_held, {"hold_differs", "transfer_differs"}),
        (resolved_twice, {"two_records_of_one_id"}),
        (posted_too_much, {"posted_above_hold", "transfer_differs", "orphan_end"}),
        (no_transfer, {"missing_transfer"}),
        (a_transfer_of_another_amount, {"transfer_differs"}),
        (a_transfer_of_nothing, {"orphan_transfer"}),
        (a_capture_that_nobody_applied, {"unapplied_clearing"}),
        (a_second_capture_of_one_hold, {"unapplied_clearing"}),
        (parts_first, set()),
        (more_parts_than_were_held, {"posted_above_hold", "orphan_end", "transfer_differs"}),
        (more_given_back_than_was_left, {"released_above_hold", "orphan_end", "transfer_differs"}),
        (an_end_that_forgets_a_part, {"rest_differs", "transfer_differs"}),
        (an_end_of_other_money, {"hold_differs"}),
        (more_given_back_with_the_last_capture_than_was_left, {"released_above_hold"}),
        (a_part_that_nobody_booked, {"missing_transfer"}),
        (one_part_twice, {"two_records_of_one_id"}),
        (a_changed_repeat_of_a_clearing, {"unapplied_clearing"}),
        (money_taken_without_a_capture, {"orphan_end"}),
        (other_money_taken_than_was_captured, {"orphan_end"}),
        (another_transaction_under_a_decided_id, {"undecided_conflict"}),
        (a_transaction_that_does_not_decode, {"unreadable_record"}),
        (a_decision_that_does_not_decode, {"unreadable_record"}),
    ],
)
def test_each_disagreement_is_named(spoil: Callable[[Books], None], codes: set[str]) -> None:
    books = Books()
    spoil(books)
    assert books.codes() == codes


@pytest.mark.parametrize(
    ("field", "value"), [("account_id", "a2"), ("hold_id", "hld_other"), ("transaction_id", "t9"), ("at_ms", 1), ("pending_id", "trf_other")]
)
def test_a_transfer_that_is_changed_in_any_field_is_named_with_it(field: str, value: object) -> None:
    books = Books()
    posted = next(i for i, t in enumerate(books.transfers) if t.phase is TransferPhase.POST)
    books.transfers[posted] = msgspec.structs.replace(books.transfers[posted], **{field: value})
    (found,) = books.audit().disagreements(NOON, 0, FIRST)
    assert found.code == "transfer_differs"
    assert found.text.startswith(f"{field} is {value}, must be ")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"decision_id": "dec_other"}, "decision_id is dec_other, must be dec_"),
        ({"at_ms": 1}, "at_ms is 1, must be "),
        ({"outcome": Outcome.REVIEW}, "outcome is review, with 0 reasons"),
        ({"outcome": Outcome.BLOCK, "reasons": (Reason(code="stolen", source=ReasonSource.RULE),)}, "outcome is block, and money is held"),
        ({"reasons": (Reason(code="stolen", source=ReasonSource.RULE),)}, "outcome is approve, with 1 reasons"),
        ({"score": None}, "score is None, which is not what the members said"),
        ({"contributions": ()}, "score is "),
        ({"approved_minor": 5}, "approved_minor is 5, must be None"),
    ],
)
def test_a_decision_that_contradicts_itself_is_named_with_what_it_says(changes: dict[str, object], text: str) -> None:
    books = Books()
    changed(books.decisions, 0, **changes)
    (found,) = books.audit().disagreements(NOON, 0, FIRST)
    assert (found.code, found.subject) == ("unsound_decision", "t0")
    assert found.text.startswith(text)


@pytest.mark.parametrize("changes", [{"amount_minor": 2_000}, {"amount_minor": 999}, {"account_id": "a2"}, {"at_ms": 3}])
def test_a_payment_that_was_changed_within_its_decision_is_named(changes: dict[str, object]) -> None:
    books = Books()
    decision = books.decisions[0]
    changed(books.decisions, 0, transaction=msgspec.structs.replace(decision.transaction, **changes))  # type: ignore[arg-type]
    assert "unsound_decision" in books.codes()


def a_pattern(books: Books) -> SarCandidate:
    """Three payments of one account that were blocked, and the candidate that rests on them."""
    own = [a_decision(f"b{n}", TransactionKind.ECOMMERCE, 200_000, NOON + n, Outcome.BLOCK, "EUR") for n in range(3)]
    books.decisions += own
    (candidate,) = candidates(a_policy(), [m for d in own if (m := movement_of(d))], own[-1], "decisions", 0, 9)
    return candidate


def test_a_candidate_that_nobody_told_is_missed_where_every_policy_asks_for_it() -> None:
    books, policy = Books(), a_policy()
    candidate = a_pattern(books)
    lenient = dataclasses.replace(policy, sar=policy.sar._replace(sar_usd=Decimal(10_000)))

    def found(policies: list[Policy], now_ms: int = NOON) -> list[tuple[str, str]]:
        return [(d.code, d.subject) for d in audit.disagreements(now_ms, 0, {}, policies)]

    audit = books.audit()
    assert found([policy]) == [("missing_candidate", candidate.candidate_id)]
    assert found([policy, lenient]) == found([]) == []
    assert found([policy], NOON + 2_000 * 86_400_000)[-1:] != [("missing_candidate", candidate.candidate_id)], "the topic keeps none of so long ago"
    audit.candidate(candidate, encode(candidate))
    assert found([policy]) == []


def test_of_an_account_that_moves_much_a_pattern_is_missed_where_the_app_still_saw_all_of_it() -> None:
    books = Books()
    first, *rest = [a_decision(f"b{n}", TransactionKind.ECOMMERCE, 400_000, NOON + n, Outcome.BLOCK, "EUR") for n in range(2)]
    others = [a_decision(f"o{n}", TransactionKind.ECOMMERCE, 1, NOON, Outcome.APPROVE, "EUR") for n in range(MOVEMENTS_MAX - 1)]
    for between, codes in ((others[1:], {"missing_candidate"}), (others, set())):
        books.decisions = [first, *between, *rest]
        codes_found = {d.code for d in books.audit().disagreements(NOON, 0, {}, [a_policy()])}
        assert codes_found & {"missing_candidate"} == codes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, None),
        ({"evidence": (), "policy_id": "pol_another"}, None),
        ({"amount_minor": 1}, "amount_minor is 1, must be 600000"),
        ({"currency": "USD"}, "currency is USD, must be EUR"),
        ({"typology": Typology.STRUCTURING}, "not all its transactions can be structuring"),
        ({"account_id": "a2"}, "account_id is a2, must be "),
        ({"from_at_ms": 1}, "from_at_ms is 1, must be "),
        ({"until_at_ms": 1}, "until_at_ms is 1, must be "),
        ({"detected_at_ms": 1}, "detected_at_ms is 1, must be "),
        ({"candidate_id": "sar_other"}, "candidate_id is that of no transaction of the pattern"),
        ({"transaction_ids": ("b1", "b2")}, "amount_minor is 600000, must be 400000"),
        ({"transaction_ids": ("b0", "b1", "b2", "t0")}, "not all its transactions can be blocked_fraud"),
        ({"transaction_ids": ()}, "not all its transactions can be blocked_fraud"),
    ],
)
def test_a_candidate_that_does_not_say_what_was_decided_is_named(changes: dict[str, object], text: str | None) -> None:
    books = Books()
    candidate = msgspec.structs.replace(a_pattern(books), **changes)  # type: ignore[arg-type]
    audit = books.audit()
    audit.candidate(candidate, encode(candidate))
    found = audit.disagreements(NOON, 0, {})
    assert [d.code for d in found] == ([] if text is None else ["candidate_differs"])
    assert text is None or found[0].text.startswith(text)


def test_a_hold_that_nobody_ended_in_time_is_named() -> None:
    assert Books().codes(LONG_AFTER) == {"overdue_hold"}


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (an_extra_transaction, ("transactions", 0, 4)),
        (another_transaction_under_a_decided_id, ("transactions", 0, 4)),
        (a_transaction_that_does_not_decode, ("transactions", 0, 4)),
        (a_capture_that_nobody_applied, ("clearings", 0, 2)),
        (a_second_capture_of_one_hold, ("clearings", 0, 2)),
        (a_changed_repeat_of_a_clearing, ("clearings", 0, 2)),
    ],
)
def test_a_dead_letter_explains_what_was_not_applied(spoil: Callable[[Books], None], place: tuple[str, int, int]) -> None:
    books = Books()
    spoil(books)
    books.dead.append((place[0], 1, place[2]))
    assert books.codes() != set(), "the dead letter of another partition"
    books.dead.append(place)
    assert books.codes() == set()


def test_what_comes_twice_with_the_same_contents_is_explained_by_what_became_of_the_first() -> None:
    books = Books()
    books.clearings += books.clearings
    books.transactions += books.transactions
    assert books.codes() == set()


def test_a_clearing_that_aged_away_explains_its_hold_and_its_repeats() -> None:
    audit = Audit()
    books = Books()
    for event in books.holds:
        audit.hold_event(event, encode(event))
    audit.clearing(books.clearings[0], 0, 7)
    assert not clearing_codes(audit, 2)
    audit.clearing(msgspec.structs.replace(books.clearings[1], at_ms=NOON + 10), 0, 8)
    assert clearing_codes(audit, 2) == {"unapplied_clearing"}
    assert clearing_codes(audit, 1) == {"unapplied_clearing", "orphan_end"}


def clearing_codes(audit: Audit, first_offset: int) -> set[str]:
    """What is wrong with the clearings, of which those before an offset have aged away."""
    found = audit.disagreements(NOON, 0, {"clearings": {0: first_offset}})
    return {d.code for d in found} & {"unapplied_clearing", "orphan_end"}


def test_what_aged_away_is_not_missed() -> None:
    books = Books()
    audit = books.audit()
    fresh: list[Transaction] = books.transactions[2:]
    aged = Audit()
    for offset, txn in enumerate(fresh, 2):
        aged.transaction(txn, 0, offset)
    for d in books.decisions:
        aged.decision(d, encode(d))
    codes = {d.code for d in aged.disagreements(NOON, 0, {"transactions": {0: 2}})}
    assert "orphan_decision" not in codes
    assert audit.disagreements(NOON, 0, FIRST | {"transactions": {0: 2}}) == []
