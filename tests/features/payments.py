"""Payments in one line, and the past looked at by name."""

from __future__ import annotations

from typing import Any

from features.catalogue import CATALOGUE, Catalogue
from features.engine import Look, look
from features.memory import Memory
from schemas.transaction import Transaction

T0 = 1_700_000_000_000
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
ON_LOGS = Catalogue(tuple(row for row in CATALOGUE.rows if not Catalogue((row,)).tallies), CATALOGUE.cap)
"""The rows that need nobody to follow the log: what serving alone remembers."""


def a_payment(name: str, at_ms: int = T0, **fields: Any) -> Transaction:
    """A payment at a terminal with card c1 of account a1 on device d1, 10.00 EUR unless said otherwise."""
    given = {"kind": "card_present", "amount_minor": 1000, "currency": "EUR", "account_id": "a1", "card_token": "c1", "device_token": "d1"}
    return Transaction(transaction_id=name, at_ms=at_ms, **(given | {"merchant_id": "m1", "mcc": "5411", "country": "DE"} | fields))


async def seen(catalogue: Catalogue, memory: Memory, txn: Transaction) -> Look:
    """Recalls and looks."""
    return look(catalogue, await memory.recall(txn))


def number(catalogue: Catalogue, looked: Look, name: str) -> float:
    """One feature of a look."""
    return float(looked.values[catalogue.index[name]])
