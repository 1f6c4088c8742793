"""LedgerTransfer: one immutable double entry. Debit and credit are in one record, so the books cannot lean."""

from __future__ import annotations

from typing import Annotated

from schemas.record import Currency, EpochMs, Id, MinorUnits, Record, Word, doc


class TransferPhase(Word):
    """Two-phase transfers: pending, then any parts of it, then post (the rest or a part of it) or void; `direct` is one step (credits)."""

    PENDING = "pending"
    POST_PART = "post_part"
    VOID_PART = "void_part"
    POST = "post"
    VOID = "void"
    DIRECT = "direct"


class LedgerTransfer(Record, frozen=True, kw_only=True):
    """Moves, or reserves, `amount_minor` from the debit account to the credit account."""

    transfer_id: Annotated[Id, doc("derived from the hold's (or transaction's) id, the phase, and the clearing of a part")]
    pending_id: Annotated[Id | None, doc("the pending transfer that this one resolves, or a part of it; null for pending and direct")]
    hold_id: Annotated[Id | None, doc("the hold that it follows; null for direct")]
    transaction_id: Annotated[Id, doc("the transaction behind it")]
    account_id: Annotated[Id, doc("the customer's account: key of the topic")]
    debit_account_id: Annotated[str, doc("the ledger account that is debited")]
    credit_account_id: Annotated[str, doc("the ledger account that is credited")]
    amount_minor: Annotated[MinorUnits, doc("minor units: reserved (pending), moved (post, post_part, direct) or released (void, void_part)")]
    currency: Annotated[Currency, doc("ISO 4217")]
    phase: Annotated[TransferPhase, doc("which step it is")]
    at_ms: Annotated[EpochMs, doc("when, milliseconds since 1970-01-01 UTC")]
    source_topic: Annotated[str, doc("the topic of the record that caused it")]
    source_partition: Annotated[int, doc("its partition")]
    source_offset: Annotated[int, doc("its offset")]
