"""What makes a label one that nobody should learn from in silence. Pure; the names are those of dead letters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from schemas.label import Label
from schemas.record import Word


class Doubt(Word):
    """Why a label is laid aside for people. The order is the precedence."""

    LEARNED_IN_FUTURE = "learned_in_future"
    UNKNOWN_TRANSACTION = "unknown_transaction"
    LEARNED_TOO_EARLY = "learned_too_early"
    CHANGED_REPEAT = "changed_repeat"
    CONTRADICTING = "contradicting"
    REPEATED = "repeated"


class Doubted(NamedTuple):
    """A doubt, the field that it rests on, and the reason in words."""

    doubt: Doubt
    field: str
    reason: str


def doubted(label: Label, happened_at_ms: int, earlier: Iterable[Label]) -> Doubted | None:
    """What is wrong with a label on a payment of that time, after the labels on it that came before. None: nothing.

    Another verdict learned at another time is no contradiction: people learn, and what was learned last stands. The same label delivered again is
    nothing at all.
    """
    if label.learned_at_ms < happened_at_ms:
        return Doubted(Doubt.LEARNED_TOO_EARLY, "learned_at_ms", f"learned at {label.learned_at_ms}, the payment was at {happened_at_ms}")
    found = [each for each in (_beside(label, other) for other in earlier) if each is not None]
    return min(found, key=lambda each: list(Doubt).index(each.doubt), default=None)


def _beside(label: Label, other: Label) -> Doubted | None:
    """What is wrong with a label beside one that came before."""
    if label == other:
        return None
    if label.label_id == other.label_id:
        return Doubted(Doubt.CHANGED_REPEAT, "label_id", f"{label.label_id} said something else before")
    if label.learned_at_ms == other.learned_at_ms and label.fraud != other.fraud:
        return Doubted(Doubt.CONTRADICTING, "fraud", f"{other.label_id} says the opposite, learned at the same moment: neither came last")
    if (label.fraud, label.source, label.learned_at_ms) == (other.fraud, other.source, other.learned_at_ms):
        return Doubted(Doubt.REPEATED, "transaction_id", f"{other.label_id} said the same")
    return None
