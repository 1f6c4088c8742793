"""Proves that each step of a hold, and each approved credit, asks for exactly one transfer, and that a pending one is resolved once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.audit import Audit
from models.hold import EMPTY, Step, Terms, confirm, confirmed_event, expire, post, resolved_event, void
from models.ledger import customer, settlement, transfer_of_credit, transfers_of_hold
from schemas.avro import encode
from schemas.decision import Decision, Outcome
from schemas.hold import HoldEvent, HoldState
from schemas.ledger import TransferPhase
from schemas.transaction import TransactionKind
from tests.models.decisions import a_decision


def events(decision: Decision, ending: HoldState | None, part_minor: int = 0) -> list[HoldEvent]:
    """The events of the hold that a decision placed, through the moves themselves."""
    told = [confirmed_event(decision, "decisions", 0, 1)]
    hold, end = str(decision.hold_id), int(decision.hold_expires_at_ms or 0)
    book = confirm(EMPTY, Terms(hold, decision.transaction_id, decision.held_minor, str(decision.hold_currency), end)).book
    moves = {
        HoldState.POSTED: lambda: post(book, hold, part_minor, str(decision.hold_currency), end - 1),
        HoldState.VOIDED: lambda: void(book, hold, end - 1),
        HoldState.EXPIRED: lambda: expire(book, hold, end),
    }
    if ending is not None:
        step = moves[ending]()
        assert isinstance(step, Step)
        told.append(resolved_event("A", step.hold, "clearings", 0, 2))
    return told


def test_a_confirmed_hold_is_pending_and_a_post_moves_its_part() -> None:
    decision = a_decision("T", TransactionKind.CARD_PRESENT, 1000)
    pending, posted = (transfers_of_hold(e, 3, 4)[0] for e in events(decision, HoldState.POSTED, 400))
    assert (pending.phase, pending.amount_minor, pending.pending_id) == (TransferPhase.PENDING, 1000, None)
    assert (posted.phase, posted.amount_minor, posted.pending_id) == (TransferPhase.POST, 400, pending.transfer_id)
    assert (posted.debit_account_id, posted.credit_account_id) == (customer("A"), settlement("USD"))
    assert (posted.source_topic, posted.source_partition, posted.source_offset) == ("holds", 3, 4)


def test_a_void_and_an_expiry_release_everything_under_the_id_that_a_post_would_have() -> None:
    decision = a_decision("T", TransactionKind.CARD_PRESENT, 1000)
    endings = [transfers_of_hold(events(decision, state, 1)[1])[0] for state in (HoldState.POSTED, HoldState.VOIDED, HoldState.EXPIRED)]
    assert len({t.transfer_id for t in endings}) == 1
    assert [(t.phase, t.amount_minor) for t in endings] == [(TransferPhase.POST, 1), (TransferPhase.VOID, 1000), (TransferPhase.VOID, 1000)]


def test_only_an_approved_credit_moves_money_at_once() -> None:
    (direct,) = transfer_of_credit(a_decision("T", TransactionKind.REFUND, 70), 1, 2)
    assert (direct.phase, direct.debit_account_id, direct.credit_account_id) == (TransferPhase.DIRECT, settlement("USD"), customer("A"))
    assert transfer_of_credit(a_decision("T", TransactionKind.REFUND, 70, outcome=Outcome.REVIEW)) == ()
    assert transfer_of_credit(a_decision("T", TransactionKind.REFUND, 0)) == ()
    assert transfer_of_credit(a_decision("T", TransactionKind.CARD_PRESENT, 70)) == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(TransactionKind)),
            st.sampled_from(["USD", "EUR"]),
            st.integers(1, 10_000),
            st.sampled_from(list(Outcome)),
            st.sampled_from([None, HoldState.POSTED, HoldState.VOIDED, HoldState.EXPIRED]),
            st.integers(0, 100),
            st.integers(1, 2),
        ),
        max_size=12,
    )
)
def test_whatever_happens_the_books_agree_even_if_everything_is_told_twice(
    walks: list[tuple[TransactionKind, str, int, Outcome, HoldState | None, int, int]],
) -> None:
    audit = Audit()
    posted = 0
    for number, (kind, currency, amount, outcome, ending, percent, times) in enumerate(walks):
        decision = a_decision(f"T{number}", kind, amount, outcome=outcome, currency=currency)
        told = events(decision, ending, amount * percent // 100) if decision.hold_id else []
        posted += sum(e.posted_minor for e in told)
        for _ in range(times):
            audit.decision(decision, encode(decision))
            for event in told:
                audit.hold_event(event, encode(event))
            for transfer in (*(t for e in told for t in transfers_of_hold(e)), *transfer_of_credit(decision)):
                audit.transfer(transfer, encode(transfer))
    assert audit.disagreements(0, 0, {}) == []
    assert sum(-a for (account, _), a in audit.balances().items() if account == "customer:A") == posted - sum(
        a for k, _, a, o, *_ in walks if k in ("transfer_in", "cash_in", "refund") and o is Outcome.APPROVE
    )
