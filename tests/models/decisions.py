"""Decisions for proofs: as the pipeline makes them, with only what a proof needs to say."""

from __future__ import annotations

from schemas import identity
from schemas.decision import Contribution, Decision, Outcome, Reason, ReasonSource
from schemas.transaction import CREDITS, Transaction, TransactionKind

HOUR_MS = 3_600_000


def a_decision(
    transaction_id: str,
    kind: TransactionKind,
    amount_minor: int,
    at_ms: int = 0,
    outcome: Outcome = Outcome.APPROVE,
    currency: str = "USD",
    counterparty: str | None = None,
) -> Decision:
    """The decision on this transaction of account A; a debit that is not declined or blocked holds its amount for seven days."""
    txn = Transaction(
        transaction_id=transaction_id,
        kind=kind,
        at_ms=at_ms,
        amount_minor=amount_minor,
        currency=currency,
        account_id="A",
        counterparty_account_id=counterparty,
    )
    held = kind not in CREDITS and outcome in (Outcome.APPROVE, Outcome.REVIEW) and amount_minor > 0
    reasons = () if outcome is Outcome.APPROVE else (Reason(code="many_card_payments_1m", source=ReasonSource.RULE),)
    return Decision(
        decision_id=identity.decision_id(transaction_id),
        transaction_id=transaction_id,
        account_id="A",
        at_ms=at_ms,
        decided_at_ms=at_ms + 5,
        outcome=outcome,
        reasons=reasons,
        score=100,
        risk=None,
        contributions=(Contribution(member="learned", weight=1.0, probability=0.1),),
        hold_id=identity.hold_id(transaction_id) if held else None,
        held_minor=amount_minor if held else 0,
        hold_currency=currency if held else None,
        hold_expires_at_ms=at_ms + 7 * 24 * HOUR_MS if held else None,
        model_id="mdl_x",
        policy_id="pol_x",
        catalogue_id="cat_x",
        vector=b"",
        positions=(),
        declined_positions=(),
        degradations=(),
        source_topic="http",
        source_partition=-1,
        source_offset=-1,
        transaction=txn,
    )
