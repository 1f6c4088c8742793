"""What a host is told of a decision: outcome, response code, reason category; never score, threshold or feature (OWASP API, enumeration)."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec

from features.catalogue import Catalogue
from models.decision import sentence
from models.stand_in import is_stand_in
from schemas.decision import Action, Decision, Outcome, Reason, ReasonSource
from schemas.record import Record, doc


class Field39(NamedTuple):
    """A response code of ISO 8583:1987, and the action code of ISO 8583:1993 that says the same."""

    v1987: str
    v1993: str


FIELD_39: dict[str, Field39] = {
    # What was decided
    "approve": Field39("00", "000"),
    "partial": Field39("10", "002"),
    "review": Field39("01", "107"),
    "decline": Field39("05", "100"),
    "block": Field39("59", "102"),
    # Who must authenticate, by the card's scheme; 1993 has no such code: one of those for private use
    "step_up": Field39("1A", "180"),
    "step_up_visa": Field39("1A", "180"),
    "step_up_mastercard": Field39("65", "180"),
    "authentication_failed": Field39("63", "122"),
    "authentication_missing": Field39("63", "122"),
    "step_up_unknown": Field39("25", "914"),
    "step_up_mismatch": Field39("12", "902"),
    "step_up_used": Field39("94", "913"),
    # Why an account cannot be debited
    "unknown_account": Field39("14", "111"),
    "account_frozen": Field39("62", "104"),
    "account_closed": Field39("57", "119"),
    "currency_mismatch": Field39("57", "119"),
    "account_dormant": Field39("62", "104"),
    "card_frozen": Field39("62", "104"),
    "card_closed": Field39("14", "111"),
    "card_dormant": Field39("62", "104"),
    "insufficient_funds": Field39("51", "116"),
    # What controls forbid
    "ecommerce_off": Field39("57", "119"),
    "atm_off": Field39("57", "119"),
    "contactless_off": Field39("57", "119"),
    "category_blocked": Field39("57", "119"),
    "country_blocked": Field39("62", "104"),
    "transaction_limit": Field39("61", "121"),
    "day_limit": Field39("61", "121"),
    "week_limit": Field39("61", "121"),
    "month_limit": Field39("61", "121"),
    "day_count": Field39("65", "123"),
    "week_count": Field39("65", "123"),
    "month_count": Field39("65", "123"),
    # Why the stand-in does not approve
    "stand_in_not_covered": Field39("91", "912"),
    "stand_in_controls": Field39("57", "119"),
    "stand_in_unknown_card": Field39("91", "912"),
    "stand_in_unknown_merchant": Field39("91", "912"),
    "stand_in_amount": Field39("61", "121"),
    "stand_in_card_count": Field39("65", "123"),
    "stand_in_card_total": Field39("61", "121"),
    "stand_in_day_total": Field39("91", "912"),
    # What became of a capture or a reversal
    "captured": Field39("00", "000"),
    "reversed": Field39("00", "400"),
    "unknown_hold": Field39("25", "914"),
    "wrong_account": Field39("25", "914"),
    "increment_mismatch": Field39("12", "902"),
    "nothing_held": Field39("21", "914"),
    "already_posted": Field39("21", "902"),
    "already_voided": Field39("21", "902"),
    "already_expired": Field39("21", "902"),
    "late_capture": Field39("21", "902"),
    "clearing_conflict": Field39("94", "913"),
    "too_many_parts": Field39("65", "123"),
    "hold_currency_mismatch": Field39("12", "902"),
    "exceeds_hold": Field39("13", "110"),
    # What became of a message
    "network": Field39("00", "800"),
    "format_error": Field39("30", "904"),
    "unknown_message": Field39("12", "902"),
    "transaction_conflict": Field39("94", "913"),
    "reversed_before": Field39("94", "913"),
    "not_permitted": Field39("58", "119"),
    "signed_off": Field39("91", "910"),
    "memory_unavailable": Field39("91", "912"),
    "log_unavailable": Field39("91", "912"),
    "deadline": Field39("91", "911"),
    "overloaded": Field39("91", "910"),
    "error": Field39("96", "909"),
}
"""ISO 8583 field 39 by outcome, refusal and error: the one table, for every door (source: FACTS of the field; ISO 8583:1993 annex A)."""


_CATEGORY = {ReasonSource.ACCOUNT: "account", ReasonSource.DEGRADED: "unavailable", ReasonSource.AUTHENTICATION: "authentication"}
"""What is said of the reason why a payment is declined: the first of these, as of the response code."""


class Answer(Record, frozen=True, kw_only=True):
    """The host's view of a decision; equal decisions give equal bytes."""

    transaction_id: Annotated[str, doc("the sender's id; of an increment one made of it and the original's: by it the increment is asked for")]
    decision_id: Annotated[str, doc("names the decision; derived from the transaction's id")]
    outcome: Annotated[str, doc("approve, review, decline (the account cannot pay, or authentication is missing) or block (a risk)")]
    action: Annotated[Action | None, doc("step_up: have the cardholder authenticate, and ask again with `step_up_of` and the result")]
    response_code: Annotated[str, doc("ISO 8583:1987 field 39")]
    approved_minor: Annotated[int, doc("what is approved, minor units of the transaction's currency: less than its amount if in part (10)")]
    reason_category: Annotated[str, doc("none, risk, account, authentication or unavailable: all that is said of why")]
    hold_id: Annotated[str | None, doc("the hold, if money is held")]
    held_minor: Annotated[int, doc("what is held, minor units of `currency`")]
    currency: Annotated[str | None, doc("the hold's currency, ISO 4217")]
    hold_expires_at_ms: Annotated[int | None, doc("when the hold ends by itself, milliseconds since 1970-01-01 UTC")]
    decided_at_ms: Annotated[int, doc("when it was decided, milliseconds since 1970-01-01 UTC")]
    stand_in: Annotated[bool, doc("whether the stand-in answered, because Redis or Kafka did not in time")]


class ExplainedReason(Reason, frozen=True, kw_only=True):
    """A reason, for the bank's own people."""

    sentence: Annotated[str, doc("the same as a sentence; left out where the feature is none of this release's catalogue")] = ""


class Explained(Decision, frozen=True, kw_only=True):
    """The bank's view of a decision: whole, with its features by name. For keys of the scope `explain`, in place of an Answer."""

    reasons: Annotated[tuple[ExplainedReason, ...], doc("one to four, most severe first; none for an approval")]
    vector: Annotated[bytes, doc("left out: `features` has it")] = b""
    features: Annotated[dict[str, float | None], doc("the features by their names; null: missing")]


def answer_name(decision: Decision) -> str:
    """The row of FIELD_39 that a decision is answered with: its outcome, or the refusal of the account or of the stand-in."""
    outcome = decision.outcome
    if decision.action is Action.STEP_UP:
        by_scheme = f"step_up_{decision.card_scheme}"
        return by_scheme if by_scheme in FIELD_39 else "step_up"
    if outcome is Outcome.DECLINE:
        return next((r.code for r in decision.reasons if r.source in _CATEGORY and r.code in FIELD_39), outcome)
    return "partial" if outcome is Outcome.APPROVE and decision.approved_minor is not None else outcome


def approved_minor(decision: Decision) -> int:
    """What the host is told to be approved, minor units of the transaction's currency."""
    if decision.outcome is not Outcome.APPROVE:
        return 0
    return decision.transaction.amount_minor if decision.approved_minor is None else decision.approved_minor


def reason_category(decision: Decision) -> str:
    """`none`, `risk`, `account`, `authentication` or `unavailable`: all that leaves the bank of a reason."""
    if decision.outcome is Outcome.APPROVE:
        return "none"
    if decision.action is Action.STEP_UP:
        return "authentication"
    if decision.outcome is Outcome.DECLINE:
        return _CATEGORY[next((reason.source for reason in decision.reasons if reason.source in _CATEGORY), ReasonSource.ACCOUNT)]
    return "unavailable" if {reason.source for reason in decision.reasons} <= {ReasonSource.DEGRADED} else "risk"


def host_view(decision: Decision) -> bytes:
    """The answer's JSON, as every host gets it, the first time and every time after."""
    answer = Answer(
        transaction_id=decision.transaction_id,
        decision_id=decision.decision_id,
        outcome=decision.outcome,
        action=decision.action,
        response_code=FIELD_39[answer_name(decision)].v1987,
        approved_minor=approved_minor(decision),
        reason_category=reason_category(decision),
        hold_id=decision.hold_id,
        held_minor=decision.held_minor,
        currency=decision.hold_currency,
        hold_expires_at_ms=decision.hold_expires_at_ms,
        decided_at_ms=decision.decided_at_ms,
        stand_in=bool(decision.degradations) and is_stand_in(decision.degradations),
    )
    return msgspec.json.encode(answer)


def bank_view(decision: Decision, names: tuple[str, ...], values: tuple[float, ...], catalogue: Catalogue) -> bytes:
    """The Explained of a decision as JSON; a reason of a feature that is known here as a sentence too."""
    plain: dict[str, Any] = msgspec.to_builtins(decision, builtin_types=(bytes,))
    for reason, said in zip(decision.reasons, plain["reasons"], strict=True):
        if reason.feature in catalogue.index:
            said["sentence"] = sentence(reason, catalogue.rows[catalogue.index[reason.feature]])
    del plain["vector"]
    plain["features"] = {n: None if v != v else v for n, v in zip(names, values, strict=True)}
    return msgspec.json.encode(plain)
