"""SarCandidate: activity that the SAR desk must look at, with its evidence. Confidential (31 USC 5318(g)(2))."""

from __future__ import annotations

from typing import Annotated

from schemas.record import Currency, EpochMs, Id, MinorUnits, Record, Word, doc


class Typology(Word):
    """The pattern that was seen."""

    STRUCTURING = "structuring"
    RAPID_MOVEMENT = "rapid_movement"
    BLOCKED_FRAUD = "blocked_fraud"


class Evidence(Record, frozen=True, kw_only=True):
    """One figure of the pattern."""

    name: Annotated[str, doc("what was measured, unit last")]
    value: Annotated[str, doc("the figure, as exact text")]


class SarCandidate(Record, frozen=True, kw_only=True):
    """One account's suspicious pattern, once for each account, typology and window."""

    candidate_id: Annotated[Id, doc("derived from account, typology and the transaction that completed the pattern")]
    account_id: Annotated[Id, doc("the account: key of the topic")]
    typology: Annotated[Typology, doc("the pattern")]
    amount_minor: Annotated[MinorUnits, doc("total of the pattern, minor units")]
    currency: Annotated[Currency, doc("ISO 4217")]
    from_at_ms: Annotated[EpochMs, doc("first transaction of the pattern, milliseconds since 1970-01-01 UTC")]
    until_at_ms: Annotated[EpochMs, doc("last transaction of the pattern, milliseconds since 1970-01-01 UTC")]
    detected_at_ms: Annotated[EpochMs, doc("when the completing transaction was decided: the filing clock starts, milliseconds since 1970-01-01 UTC")]
    transaction_ids: Annotated[tuple[str, ...], doc("the transactions of the pattern, oldest first")]
    evidence: Annotated[tuple[Evidence, ...], doc("the figures")]
    policy_id: Annotated[str, doc("the thresholds that were in force")]
    source_topic: Annotated[str, doc("the topic of the record that completed it")]
    source_partition: Annotated[int, doc("its partition")]
    source_offset: Annotated[int, doc("its offset")]
