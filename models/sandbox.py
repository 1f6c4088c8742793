"""Test cards: what each of them forces in a sandbox, as rows. A service that is none knows none of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from models import stand_in
from models.decision import Verdict, refused, unauthenticated
from models.policy import Authentication, authentication_of
from models.refusal import Refusal
from schemas.decision import Action, Outcome, Reason, ReasonSource
from schemas.identity import keyed_token
from schemas.record import Word
from schemas.transaction import Transaction

SANDBOX = "sandbox"
"""The degradation that every decision of a sandbox has."""
FORCED = "sandbox_card"
"""The reason of an outcome that a test card forces."""


PARTIAL = "partial"
"""The answer of an approval in part."""
STEP_UPS, UNAUTHENTICATED = ("step_up_visa", "step_up_mastercard"), "authentication_failed"
"""The answers that ask for authentication, by the card's scheme, and the one to a retry that does not have it."""


class Effect(Word):
    """Where on the walk a test card has its effect."""

    VERDICT = "verdict"  # it is judged so; everything after that is as always
    STAND_IN = "stand_in"  # it is not decided, and the stand-in says so
    LATE = "late"  # it is approved, and told, after the deadline; nobody stands in
    GONE = "gone"  # a part does not answer, and nobody stands in


class Card(NamedTuple):
    """One test card. `answer` is the row of FIELD_39 with which it is answered."""

    number: str
    answer: str
    effect: Effect

    @property
    def outcome(self) -> Outcome | None:
        """What is decided; None where nobody answers in time."""
        if self.effect in (Effect.LATE, Effect.GONE):
            return None
        if self.answer == PARTIAL:
            return Outcome.APPROVE
        return Outcome(self.answer) if self.answer in tuple(Outcome) else Outcome.DECLINE

    @property
    def category(self) -> str:
        """The reason category that a host is told, of what is decided."""
        if self.outcome is Outcome.APPROVE:
            return "none"
        if self.effect is Effect.STAND_IN:
            return "unavailable"
        if self.answer in (*STEP_UPS, UNAUTHENTICATED):
            return "authentication"
        return "account" if self.outcome is Outcome.DECLINE else "risk"

    @property
    def stand_in_refusal(self) -> stand_in.Refusal | None:
        """Why the stand-in declines it; None if it approves."""
        return None if self.answer == Outcome.APPROVE else stand_in.Refusal(self.answer)


_V, _S, _L, _G = Effect.VERDICT, Effect.STAND_IN, Effect.LATE, Effect.GONE
CARDS: tuple[Card, ...] = (
    # What is decided
    Card("4000000000010001", "approve", _V),
    Card("4000000010010009", "partial", _V),
    Card("4000000001010000", "review", _V),
    Card("4000000005010006", "decline", _V),
    Card("4000000059010001", "block", _V),
    # Who must authenticate, and is approved once that was done
    Card("4000000018010001", "step_up_visa", _V),
    Card("5100000065040006", "step_up_mastercard", _V),
    Card("4000000063010005", "authentication_failed", _V),
    # Why an account cannot be debited
    Card("4000000014010005", "unknown_account", _V),
    Card("4000000062010006", "account_frozen", _V),
    Card("4000000057010003", "account_closed", _V),
    Card("4000000062020005", "account_dormant", _V),
    Card("4000000062030004", "card_frozen", _V),
    Card("4000000014020004", "card_closed", _V),
    Card("4000000062040003", "card_dormant", _V),
    Card("4000000057020002", "currency_mismatch", _V),
    Card("4000000057030001", "ecommerce_off", _V),
    Card("4000000057040000", "atm_off", _V),
    Card("4000000057050009", "contactless_off", _V),
    Card("4000000057060008", "category_blocked", _V),
    Card("4000000062050002", "country_blocked", _V),
    Card("4000000061010007", "transaction_limit", _V),
    Card("4000000061020006", "day_limit", _V),
    Card("4000000061030005", "week_limit", _V),
    Card("4000000061040004", "month_limit", _V),
    Card("4000000065010003", "day_count", _V),
    Card("4000000065020002", "week_count", _V),
    Card("4000000065030001", "month_count", _V),
    Card("4000000051010009", "insufficient_funds", _V),
    # What the stand-in says
    Card("4000000000020000", "approve", _S),
    Card("4000000091010001", "stand_in_not_covered", _S),
    Card("4000000057070007", "stand_in_controls", _S),
    Card("4000000091020000", "stand_in_unknown_card", _S),
    Card("4000000091030009", "stand_in_unknown_merchant", _S),
    Card("4000000061050003", "stand_in_amount", _S),
    Card("4000000065040000", "stand_in_card_count", _S),
    Card("4000000061060002", "stand_in_card_total", _S),
    Card("4000000091040008", "stand_in_day_total", _S),
    # Where nobody answers
    Card("4000000091050007", "deadline", _L),
    Card("4000000091060006", "log_unavailable", _G),
    Card("4000000091070005", "memory_unavailable", _G),
)
"""The table: digits 9 and 10 of a number are field 39 of 1987 (18 for 1A), the next two tell those of one code apart, the last is the check digit."""

Cards = Mapping[str, Card]
"""By the token that a door makes of the number."""


def cards_by_token(key: bytes, key_id: str) -> Cards:
    """The test cards as a system with this token key knows them."""
    return {keyed_token(key, key_id, "crd", card.number): card for card in CARDS}


def card_of(cards: Cards, txn: Transaction) -> Card | None:
    """The test card with which a transaction is made, if it is one."""
    return None if txn.card_token is None else cards.get(txn.card_token)


def forced(cards: Cards, txn: Transaction, verdict: Verdict) -> Verdict:
    """The verdict in a sandbox: what the transaction's test card forces, else what was judged. Either way its record says that it is a sandbox's.

    What is forced to be declined or blocked asks no account; what is forced to be approved or reviewed still has to be paid by one. An
    approval in part is of half the amount, where host and policy allow one, and a decline for want of funds elsewhere.
    """
    marked = msgspec.structs.replace(verdict, degradations=(*verdict.degradations, SANDBOX))
    card = card_of(cards, txn)
    if card is None or card.effect in (Effect.STAND_IN, Effect.GONE):
        return marked
    refusal = Refusal(card.answer) if card.answer in tuple(Refusal) else None
    outcome, reasons, action = (Outcome.APPROVE, (), None) if refusal else _outcome(card, txn)
    pays = verdict.debits and refusal is None and outcome in (Outcome.APPROVE, Outcome.REVIEW)
    holds = pays and txn.own_amount_minor > 0
    made = msgspec.structs.replace(marked, outcome=outcome, reasons=reasons, debits=pays, holds=holds, action=action)
    if card.answer == PARTIAL:
        return msgspec.structs.replace(made, room_minor=txn.own_amount_minor // 2)
    return made if refusal is None else refused(made, refusal)


def _outcome(card: Card, txn: Transaction) -> tuple[Outcome, tuple[Reason, ...], Action | None]:
    """What a card forces, before any account is asked. Who is to authenticate is approved once that was done."""
    own = (Reason(code=FORCED, source=ReasonSource.RULE),)
    if card.answer in STEP_UPS:
        authentication = authentication_of(txn)
        if authentication is Authentication.FAILED:
            return Outcome.DECLINE, unauthenticated(txn), None
        return (Outcome.APPROVE, (), None) if authentication is Authentication.DONE else (Outcome.DECLINE, own, Action.STEP_UP)
    if card.answer == UNAUTHENTICATED:
        return Outcome.DECLINE, (Reason(code=UNAUTHENTICATED, source=ReasonSource.AUTHENTICATION),), None
    outcome = Outcome.APPROVE if card.effect is Effect.LATE or card.answer == PARTIAL else Outcome(card.answer)
    return outcome, () if outcome is Outcome.APPROVE else own, None
