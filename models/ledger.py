"""The legal steps of the ledger: which transfers follow from a hold's event or from an approved credit. Pure.

Two-phase transfers as TigerBeetle knows them: pending reserves, post moves the whole or a part and releases the rest,
void releases all; each pending transfer is resolved at most once, and nothing is ever edited. Before that, parts of it may be posted
or released one by one (`post_part`, `void_part`): what was posted in all never exceeds what was reserved and the hold's tolerance.
"""

from __future__ import annotations

from schemas.decision import Decision, Outcome
from schemas.hold import HoldEvent, HoldState
from schemas.identity import derived_id
from schemas.ledger import LedgerTransfer, TransferPhase
from schemas.topics import DECISIONS, HOLDS
from schemas.transaction import CREDITS

_PHASE = {
    HoldState.CONFIRMED: TransferPhase.PENDING,
    HoldState.PARTLY_POSTED: TransferPhase.POST_PART,
    HoldState.PARTLY_VOIDED: TransferPhase.VOID_PART,
    HoldState.POSTED: TransferPhase.POST,
    HoldState.VOIDED: TransferPhase.VOID,
    HoldState.EXPIRED: TransferPhase.VOID,
}
_PARTS = frozenset({TransferPhase.POST_PART, TransferPhase.VOID_PART})


def customer(account_id: str) -> str:
    """The ledger account of a customer's account."""
    return f"customer:{account_id}"


def settlement(currency: str) -> str:
    """The ledger account against which payments of a currency are settled."""
    return f"settlement:{currency}"


def transfers_of_hold(event: HoldEvent, partition: int = -1, offset: int = -1) -> tuple[LedgerTransfer, ...]:
    """The transfer that a hold's event asks for; `partition` and `offset` are the event's own place in `holds`.

    Post and void of one hold share one id, so that a pending transfer cannot be resolved twice; a part has its clearing's. A post of less
    than was left releases the rest with it, and one within the hold's tolerance moves more than was reserved.
    """
    phase = _PHASE[event.state]
    pending = derived_id("trf", event.hold_id, "pending")
    return (
        LedgerTransfer(
            transfer_id=_transfer_id(event, phase),
            pending_id=None if phase is TransferPhase.PENDING else pending,
            hold_id=event.hold_id,
            transaction_id=event.transaction_id,
            account_id=event.account_id,
            debit_account_id=customer(event.account_id),
            credit_account_id=settlement(event.currency),
            amount_minor=_amount_minor(event, phase),
            currency=event.currency,
            phase=phase,
            at_ms=event.at_ms,
            source_topic=HOLDS.name,
            source_partition=partition,
            source_offset=offset,
        ),
    )


def _transfer_id(event: HoldEvent, phase: TransferPhase) -> str:
    if phase in _PARTS:
        return derived_id("trf", event.hold_id, "part", event.clearing_id or "")
    return derived_id("trf", event.hold_id, "pending" if phase is TransferPhase.PENDING else "resolve")


def _amount_minor(event: HoldEvent, phase: TransferPhase) -> int:
    """What is reserved, moved or released. An event from before parts were known does not say what it released: all that was held."""
    if phase is TransferPhase.PENDING:
        return event.held_minor
    if phase in (TransferPhase.POST, TransferPhase.POST_PART):
        return event.posted_minor
    return event.released_minor or event.held_minor


def transfer_of_credit(decision: Decision, partition: int = -1, offset: int = -1) -> tuple[LedgerTransfer, ...]:
    """The one-step transfer of an approved credit; none for anything else. The place is the decision's own in `decisions`."""
    txn = decision.transaction
    if txn.kind not in CREDITS or decision.outcome is not Outcome.APPROVE or txn.own_amount_minor == 0:
        return ()
    return (
        LedgerTransfer(
            transfer_id=derived_id("trf", txn.transaction_id, "direct"),
            pending_id=None,
            hold_id=None,
            transaction_id=txn.transaction_id,
            account_id=txn.account_id,
            debit_account_id=settlement(txn.own_currency),
            credit_account_id=customer(txn.account_id),
            amount_minor=txn.own_amount_minor,
            currency=txn.own_currency,
            phase=TransferPhase.DIRECT,
            at_ms=decision.decided_at_ms,
            source_topic=DECISIONS.name,
            source_partition=partition,
            source_offset=offset,
        ),
    )
