"""LedgerTransfer: one immutable double entry. Debit and credit are in one record, so the books cannot lean."""

from __future__ import annotations

from typing import Annotated

from schemas.record import Currency, EpochMs, Id, MinorUnits, Record, Word, doc


class TransferPhase(Word):
    """Two-phase transfers: pending, then post (whole or part) or void; `direct` is one step (credits)."""

    PENDING = "pending"
    POST = "post"
    VOID = "void"
    DIRECT = "direct"


class LedgerTransfer(Record, frozen=True, kw_only=True):
    """Moves, or reserves, `amount_minor` from the debit account to the credit account."""

    transfer_id: Annotated[Id, doc("derived from the hold's (or transaction's) id and the phase")]
    pending_id: Annotated[Id | None, doc("the pending transfer that this one resolves; null for pending and direct")]
    hold_id: Annotated[Id | None, doc("the hold that it follows; null for direct")]
    transaction_id: Annotated[Id, doc("the transaction behind it")]
    account_id: Annotated[Id, doc("the customer's account: key of the topic")]
    debit_account_id: Annotated[str, doc("the ledger account that is debited")]
    credit_account_id: Annotated[str, doc("the ledger account that is credited")]
    amount_minor: Annotated[MinorUnits, doc("minor units: reserved (pending), moved (post, direct) or released (void)")]
    currency: Annotated[Currency, doc("ISO 4217")]
    phase: Annotated[TransferPhase, doc("which step it is")]
    at_ms: Annotated[EpochMs, doc("when, milliseconds since 1970-01-01 UTC")]
    source_topic: Annotated[str, doc("the topic of the record that caused it")]
    source_partition: Annotated[int, doc("its partition")]
    source_offset: Annotated[int, doc("its offset")]
