"""What a host is told of a decision: outcome, response code, reason category; never score, threshold or feature (OWASP API, enumeration)."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.decision import Decision, Outcome, Reason, ReasonSource
from schemas.record import Record

APPROVED, REFER, DO_NOT_HONOUR, SUSPECTED_FRAUD = "00", "01", "05", "59"

RESPONSE_CODES: dict[str, str] = {
    "unknown_account": "14",
    "account_frozen": "62",
    "account_closed": "57",
    "currency_mismatch": "57",
    "insufficient_funds": "51",
}
"""ISO 8583 field 39 for the refusals of an account (source: FACTS of the field; Visa and Mastercard response code lists)."""


class Answer(Record, frozen=True, kw_only=True):
    """The host's view of a decision; equal decisions give equal bytes."""

    transaction_id: str
    decision_id: str
    outcome: str
    response_code: str
    reason_category: str
    hold_id: str | None
    held_minor: int
    currency: str | None
    hold_expires_at_ms: int | None
    decided_at_ms: int


def response_code(outcome: Outcome, reasons: tuple[Reason, ...]) -> str:
    """ISO 8583 field 39: approved, refer, the account's own refusal, or suspected fraud."""
    if outcome is Outcome.APPROVE:
        return APPROVED
    if outcome is Outcome.REVIEW:
        return REFER
    if outcome is Outcome.BLOCK:
        return SUSPECTED_FRAUD
    return next((RESPONSE_CODES[r.code] for r in reasons if r.code in RESPONSE_CODES), DO_NOT_HONOUR)


def reason_category(outcome: Outcome, reasons: tuple[Reason, ...]) -> str:
    """`none`, `risk`, `account` or `unavailable`: all that leaves the bank of a reason."""
    if outcome is Outcome.APPROVE:
        return "none"
    if outcome is Outcome.DECLINE:
        return "account"
    return "unavailable" if all(r.source is ReasonSource.DEGRADED for r in reasons) else "risk"


def host_view(decision: Decision) -> bytes:
    """The answer's JSON, as every host gets it, the first time and every time after."""
    answer = Answer(
        transaction_id=decision.transaction_id,
        decision_id=decision.decision_id,
        outcome=decision.outcome,
        response_code=response_code(decision.outcome, decision.reasons),
        reason_category=reason_category(decision.outcome, decision.reasons),
        hold_id=decision.hold_id,
        held_minor=decision.held_minor,
        currency=decision.hold_currency,
        hold_expires_at_ms=decision.hold_expires_at_ms,
        decided_at_ms=decision.decided_at_ms,
    )
    return msgspec.json.encode(answer)


def bank_view(decision: Decision, names: tuple[str, ...], values: tuple[float, ...]) -> bytes:
    """The whole decision's JSON with its features by name, for the bank's own people."""
    plain: dict[str, Any] = msgspec.to_builtins(decision, builtin_types=(bytes,))
    del plain["vector"]
    plain["features"] = {n: None if v != v else v for n, v in zip(names, values, strict=True)}
    return msgspec.json.encode(plain)
