"""The legal steps of the ledger: which transfers follow from a hold's event or from an approved credit. Pure.

Two-phase transfers as TigerBeetle knows them: pending reserves, post moves the whole or a part and releases the rest,
void releases all; each pending transfer is resolved at most once, and nothing is ever edited.
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
    HoldState.POSTED: TransferPhase.POST,
    HoldState.VOIDED: TransferPhase.VOID,
    HoldState.EXPIRED: TransferPhase.VOID,
}


def customer(account_id: str) -> str:
    """The ledger account of a customer's account."""
    return f"customer:{account_id}"


def settlement(currency: str) -> str:
    """The ledger account against which payments of a currency are settled."""
    return f"settlement:{currency}"


def transfers_of_hold(event: HoldEvent, partition: int = -1, offset: int = -1) -> tuple[LedgerTransfer, ...]:
    """The transfer that a hold's event asks for; `partition` and `offset` are the event's own place in `holds`.

    Post and void of one hold share one id, so that a pending transfer cannot be resolved twice. A post of less than was
    held releases the rest with it.
    """
    phase = _PHASE[event.state]
    pending = derived_id("trf", event.hold_id, "pending")
    resolves = phase is not TransferPhase.PENDING
    return (
        LedgerTransfer(
            transfer_id=derived_id("trf", event.hold_id, "resolve") if resolves else pending,
            pending_id=pending if resolves else None,
            hold_id=event.hold_id,
            transaction_id=event.transaction_id,
            account_id=event.account_id,
            debit_account_id=customer(event.account_id),
            credit_account_id=settlement(event.currency),
            amount_minor=event.posted_minor if phase is TransferPhase.POST else event.held_minor,
            currency=event.currency,
            phase=phase,
            at_ms=event.at_ms,
            source_topic=HOLDS.name,
            source_partition=partition,
            source_offset=offset,
        ),
    )


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
