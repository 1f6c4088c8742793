"""What follows from a capture or a reversal that a host asks for: the clearings of the hold and of its increments, or why not. Pure."""

from __future__ import annotations

import msgspec

from models.hold import Book, OpenHold, Refusal
from schemas.hold import Clearing, ClearingKind, HoldState
from schemas.identity import INCREMENT, derived_id, hold_id, increment_end, increments_of

_ENDED = {
    HoldState.POSTED: Refusal.ALREADY_POSTED,
    HoldState.VOIDED: Refusal.ALREADY_VOIDED,
    HoldState.EXPIRED: Refusal.ALREADY_EXPIRED,
}


WHOLE = -1
"""The amount of a capture that takes all that is held, whatever that is."""


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A capture (of `amount_minor`, or WHOLE; an empty currency is the hold's) or a reversal of the whole (0), as a door understood it."""

    kind: ClearingKind
    clearing_id: str
    transaction_id: str
    account_id: str
    amount_minor: int
    currency: str
    at_ms: int

    def repeats(self, first: Asked) -> bool:
        """Whether it asks for the same thing, at whatever time: a repeat may carry the time of its own sending."""
        return msgspec.structs.replace(self, at_ms=first.at_ms) == first


def clearings(book: Book, asked: Asked, now_ms: int) -> tuple[Clearing, ...] | Refusal:
    """One clearing for each hold of the transaction: its own and those of its increments.

    A capture takes from the hold first, then from its increments; what it leaves of a hold is returned, and a hold that it
    takes nothing from is reversed. More than all of them hold is refused. Holds are looked at as at `now_ms`, when they are about to end.
    """
    first = book.hold(hold_id(asked.transaction_id))
    if first is None:
        return Refusal.UNKNOWN_HOLD
    if first.state in _ENDED:
        return _ENDED[first.state]
    if max(now_ms, asked.at_ms) >= first.expires_at_ms:
        return Refusal.ALREADY_EXPIRED
    holds = [first, *_increments(book, asked, now_ms)]
    if asked.kind is ClearingKind.REVERSAL:
        return tuple(_clearing(asked, hold, 0) for hold in holds)
    if asked.currency and any(hold.currency != asked.currency for hold in holds):
        return Refusal.HOLD_CURRENCY_MISMATCH
    held = sum(hold.amount_minor for hold in holds)
    left, made = held if asked.amount_minor == WHOLE else asked.amount_minor, []
    if left > held:
        return Refusal.EXCEEDS_HOLD
    for hold in holds:
        taken = min(left, hold.amount_minor)
        left -= taken
        made.append(_clearing(asked, hold, taken))
    return tuple(made)


def named(book: Book, asked: Asked) -> Asked:
    """The same, about an increment if it names one by the id that its sender chose."""
    if book.hold(hold_id(asked.transaction_id)) is not None:
        return asked
    end = increment_end(asked.transaction_id)
    found = [h.transaction_id for h in book.holds if h.transaction_id.startswith(INCREMENT) and h.transaction_id.endswith(end)]
    return msgspec.structs.replace(asked, transaction_id=found[0]) if found else asked


def _increments(book: Book, asked: Asked, now_ms: int) -> list[OpenHold]:
    """The holds of its increments that have not ended."""
    prefix, until_ms = increments_of(asked.transaction_id), max(now_ms, asked.at_ms)
    return [h for h in book.holds if h.transaction_id.startswith(prefix) and h.state not in _ENDED and until_ms < h.expires_at_ms]


def _clearing(asked: Asked, hold: OpenHold, taken_minor: int) -> Clearing:
    own = hold.transaction_id == asked.transaction_id
    kind = ClearingKind.CAPTURE if asked.kind is ClearingKind.CAPTURE and (taken_minor or own) else ClearingKind.REVERSAL
    return Clearing(
        clearing_id=asked.clearing_id if own else derived_id("clr", asked.clearing_id, hold.hold_id),
        transaction_id=hold.transaction_id,
        account_id=asked.account_id,
        kind=kind,
        amount_minor=taken_minor,
        currency=hold.currency,
        at_ms=asked.at_ms,
    )
