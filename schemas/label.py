"""Label: what turned out to be true of a transaction, and when that was learned.

Of several on one transaction, what was learned last stands; of what was learned at one moment, what comes later in the log.
"""

from __future__ import annotations

from typing import Annotated

from schemas.record import EpochMs, Id, Record, Word, doc


class LabelSource(Word):
    """Who said so. Never our own approvals: a model must not teach itself."""

    CHARGEBACK = "chargeback"
    ANALYST = "analyst"
    CUSTOMER = "customer"


class Label(Record, frozen=True, kw_only=True):
    """A verdict on one transaction; a later label replaces an earlier one."""

    label_id: Annotated[Id, doc("the sender's id, or derived")]
    transaction_id: Annotated[Id, doc("the transaction")]
    account_id: Annotated[Id, doc("its account: key of the topic")]
    fraud: Annotated[bool, doc("true: it was fraud")]
    fraud_kind: Annotated[str | None, doc("which kind, if known")] = None
    learned_at_ms: Annotated[EpochMs, doc("when it became known, milliseconds since 1970-01-01 UTC")]
    source: Annotated[LabelSource, doc("who said so")]
    transacted_at_ms: Annotated[EpochMs | None, doc("event time of the transaction, milliseconds since 1970-01-01 UTC")] = None
    merchant_id: Annotated[Id | None, doc("its merchant, as a chargeback names it: whose risk it teaches")] = None
    terminal_id: Annotated[Id | None, doc("its terminal, likewise")] = None
