"""Decision: what was decided of a transaction, why, on which facts, by which model and policy. The log of these is the truth."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.record import Currency, EpochMs, Id, MinorUnits, Record, Word, doc
from schemas.transaction import Transaction


class Outcome(Word):
    """What the host is told, in order of severity."""

    APPROVE = "approve"
    REVIEW = "review"
    DECLINE = "decline"
    BLOCK = "block"


MEMORY_MISSING = "memory_missing:"
"""A degradation begins so where a memory could not be read; the kind of entity follows."""


class Action(Word):
    """What the host shall do about an outcome."""

    STEP_UP = "step_up"


class Risk(Word):
    """The score's level, for people."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class ReasonSource(Word):
    """Which part gave the reason."""

    RULE = "rule"
    MODEL = "model"
    ACCOUNT = "account"
    DEGRADED = "degraded"
    AUTHENTICATION = "authentication"


class Reason(Record, frozen=True, kw_only=True):
    """One specific reason, never 'the score was low' (Reg B)."""

    code: Annotated[Id, doc("stable code, for example `many_card_payments_10m`")]
    source: Annotated[ReasonSource, doc("which part gave it")]
    feature: Annotated[str | None, doc("the feature that it rests on, if one")] = None
    value: Annotated[float | None, doc("that feature's value, in the feature's unit")] = None
    usual: Annotated[float | None, doc("the feature's median among honest payments, as the model was trained; null: it had none")] = None


Score = Annotated[int, Meta(ge=0, le=1000)]


class Contribution(Record, frozen=True, kw_only=True):
    """What one member of the ensemble said."""

    member: Annotated[str, doc("the member's name")]
    weight: Annotated[float, doc("its weight; the weights that were used sum to 1")]
    probability: Annotated[float | None, doc("its probability of fraud, 0 to 1; null: it gave none")]


class Decision(Record, frozen=True, kw_only=True):
    """One decision. `transaction` is last, so that its bytes are encoded once and appended."""

    decision_id: Annotated[Id, doc("derived from the transaction's id")]
    transaction_id: Annotated[Id, doc("the transaction that was decided")]
    account_id: Annotated[Id, doc("its account: key of the topic")]
    at_ms: Annotated[EpochMs, doc("event time of the transaction, milliseconds since 1970-01-01 UTC")]
    decided_at_ms: Annotated[EpochMs, doc("when it was decided, milliseconds since 1970-01-01 UTC")]
    outcome: Annotated[Outcome, doc("approve, review, decline (the account cannot pay, or authentication is missing) or block (fraud)")]
    reasons: Annotated[tuple[Reason, ...], doc("one to four, most severe first; none for an approval")]
    score: Annotated[Score | None, doc("0 to 1000; null if no member gave a probability")]
    risk: Annotated[Risk | None, doc("level of the score")]
    contributions: Annotated[tuple[Contribution, ...], doc("what each member said")]
    hold_id: Annotated[str | None, doc("the hold that was placed, if one was; derived from the transaction's id")]
    held_minor: Annotated[MinorUnits, doc("amount held, minor units of `hold_currency`; 0 without a hold")]
    hold_currency: Annotated[Currency | None, doc("currency of the hold, ISO 4217")]
    hold_expires_at_ms: Annotated[EpochMs | None, doc("when the hold lapses if nobody resolves it, milliseconds since 1970-01-01 UTC")]
    model_id: Annotated[str, doc("the ensemble that scored it")]
    policy_id: Annotated[str, doc("the policy that judged it")]
    catalogue_id: Annotated[str, doc("the feature catalogue that `vector` follows")]
    vector: Annotated[bytes, doc("the features, 64-bit IEEE floats, little-endian, in the catalogue's order; NaN is missing")]
    positions: Annotated[tuple[int, ...], doc("rows before it in each entity log, in the order of the catalogue's logs; -1: no such entity")]
    declined_positions: Annotated[tuple[int, ...], doc("place of its decline row in each log, in the same order; empty: none was written")]
    degradations: Annotated[tuple[str, ...], doc("what was missing when it was decided; empty in health")]
    source_topic: Annotated[str, doc("where the transaction came from: a topic's name, or `http`")]
    source_partition: Annotated[int, doc("its partition; -1 for http")]
    source_offset: Annotated[int, doc("its offset; -1 for http")]
    tally_positions: Annotated[bytes, doc("of each tally that was read, what of the log it held: `features/tally.py` says how")] = b""
    profile_positions: Annotated[bytes, doc("of each profile value that was read, since when it was known: `features/profile.py` says how")] = b""
    hold_tolerance_minor: Annotated[MinorUnits, doc("how much more than was held captures may take in all (tips, fuel), minor units")] = 0
    approved_minor: Annotated[MinorUnits | None, doc("of an approval in part: how much, minor units of the transaction's currency; else null")] = None
    action: Annotated[Action | None, doc("what the host is to do; step_up: have the cardholder authenticate, and ask again")] = None
    card_scheme: Annotated[str | None, doc("with an action: the card's scheme by the policy, whose code the answer has")] = None
    transaction: Annotated[Transaction, doc("the transaction itself")]

    def __post_init__(self) -> None:
        """ValueError for a hold of which is not said in what money it is, or when it lapses."""
        if self.hold_id is not None and (self.hold_currency is None or self.hold_expires_at_ms is None):
            raise ValueError("hold_id: a hold has a hold_currency and a hold_expires_at_ms")

    @property
    def unread(self) -> bool:
        """Whether a memory did not answer when it was decided."""
        return any(each.startswith(MEMORY_MISSING) for each in self.degradations)
