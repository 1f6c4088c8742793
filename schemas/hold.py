"""HoldEvent (what became of a hold) and Clearing (what the card network says: capture or reversal)."""

from __future__ import annotations

from typing import Annotated

from schemas.record import Currency, EpochMs, Id, MinorUnits, Record, Word, doc


class HoldState(Word):
    """The states of a hold. Provisional holds are in Redis only; the log begins with `confirmed`; the last three are final.

    `partly_posted` and `partly_voided` are steps that events tell of: the hold itself stays confirmed, for what is left of it.
    """

    PROVISIONAL = "provisional"
    CONFIRMED = "confirmed"
    PARTLY_POSTED = "partly_posted"
    PARTLY_VOIDED = "partly_voided"
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"


class HoldEvent(Record, frozen=True, kw_only=True):
    """One step in a hold's life; a hold has one `confirmed`, any number of parts, and at most one final step."""

    event_id: Annotated[Id, doc("derived from the hold's id and the state's stage")]
    hold_id: Annotated[Id, doc("the hold")]
    transaction_id: Annotated[Id, doc("the transaction that it was placed for")]
    account_id: Annotated[Id, doc("the account whose money is held: key of the topic")]
    state: Annotated[HoldState, doc("the state that the hold has now")]
    held_minor: Annotated[MinorUnits, doc("amount held at first, minor units")]
    posted_minor: Annotated[MinorUnits, doc("amount that this step took, minor units; 0 unless posted, whole or partly")]
    currency: Annotated[Currency, doc("currency of both amounts, ISO 4217")]
    at_ms: Annotated[EpochMs, doc("when, milliseconds since 1970-01-01 UTC; for `expired` the moment at which it lapsed")]
    expires_at_ms: Annotated[EpochMs, doc("when it lapses if nobody resolves it, milliseconds since 1970-01-01 UTC")]
    source_topic: Annotated[str, doc("the topic of the record that caused it; `clock` for an expiry")]
    source_partition: Annotated[int, doc("its partition; -1 for an expiry")]
    source_offset: Annotated[int, doc("its offset; -1 for an expiry")]
    released_minor: Annotated[MinorUnits, doc("amount that this step returned, minor units; 0 in old records: what was left")] = 0
    tolerance_minor: Annotated[MinorUnits, doc("how much more than was held may be taken in all, minor units")] = 0
    clearing_id: Annotated[str | None, doc("the capture or reversal that caused it; null for `confirmed` and an expiry")] = None
    clearing_digest: Annotated[bytes, doc("what tells that clearing's contents from others under its id")] = b""

    def __post_init__(self) -> None:
        """ValueError for a state that the log never has."""
        if self.state is HoldState.PROVISIONAL:
            raise ValueError("state: a provisional hold is in Redis only")


class ClearingKind(Word):
    """What the network says of an authorization."""

    CAPTURE = "capture"
    REVERSAL = "reversal"


class Clearing(Record, frozen=True, kw_only=True):
    """A capture (take the held money, or part of it) or a reversal (give it back, or part of it)."""

    clearing_id: Annotated[Id, doc("the sender's id")]
    transaction_id: Annotated[Id, doc("the authorized transaction")]
    account_id: Annotated[Id, doc("its account: key of the topic")]
    kind: Annotated[ClearingKind, doc("capture or reversal")]
    amount_minor: Annotated[MinorUnits, doc("amount to take or give back, minor units; a reversal of 0 gives back all that is left")]
    currency: Annotated[Currency, doc("currency of the hold, ISO 4217")]
    at_ms: Annotated[EpochMs, doc("event time, milliseconds since 1970-01-01 UTC")]
    final: Annotated[bool, doc("of a capture: it is the last one, and what it leaves of the hold is returned")] = True
