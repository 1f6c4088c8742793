"""What follows from a capture or a reversal that a host asks for: the clearings of the hold and of its increments, or why not. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from models.hold import Book, OpenHold, Refusal, Step, Terms, cleared, confirm
from schemas.hold import Clearing, ClearingKind, HoldState
from schemas.identity import INCREMENT, derived_id, hold_id, increment_end, increments_of, increments_of_the_same

_ENDED = {
    HoldState.POSTED: Refusal.ALREADY_POSTED,
    HoldState.VOIDED: Refusal.ALREADY_VOIDED,
    HoldState.EXPIRED: Refusal.ALREADY_EXPIRED,
}


WHOLE = -1
"""The amount of a capture or reversal of all that is left, whatever that is."""


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A capture (of `amount_minor`, or WHOLE) or a reversal (of `amount_minor`, or WHOLE), as a door understood it.

    An empty currency is the hold's. A capture that is not `final` leaves the rest of the hold for others to come. `was_minor` is of a reversal
    in part whose sender says of which amount something is to stay, in whatever currency; else 0.
    """

    kind: ClearingKind
    clearing_id: str
    transaction_id: str
    account_id: str
    amount_minor: int
    currency: str
    at_ms: int
    final: bool = True
    was_minor: int = 0

    def repeats(self, first: Asked) -> bool:
        """Whether it asks for the same thing, at whatever time: a repeat may carry the time of its own sending."""
        was_minor = self.was_minor if first.was_minor else 0  # an earlier release did not keep it
        return msgspec.structs.replace(self, at_ms=first.at_ms, was_minor=was_minor) == first


def beyond(asked: Asked, before: Iterable[Asked]) -> Asked | Refusal:
    """What is asked without what those before it gave back: who says again what of the same amount is to stay includes that. None raises a hold."""
    given = [one.amount_minor for one in before if one.was_minor and one.was_minor == asked.was_minor and one.transaction_id == asked.transaction_id]
    more_minor = asked.amount_minor - max(given, default=0)
    return msgspec.structs.replace(asked, amount_minor=more_minor) if not given or more_minor >= 0 else Refusal.EXCEEDS_HOLD


def clearings(book: Book, asked: Asked, now_ms: int) -> tuple[Clearing, ...] | Refusal:
    """One clearing for each hold of the transaction that it moves: its own and those of its increments.

    A capture takes from the hold first, then from its increments, then what their tolerance allows. The last capture returns what it leaves
    of them, and reverses a hold that it takes nothing from. A partial reversal gives the newest increment back first. More than is left of
    all of them is refused, and so is what the books will refuse. Holds are looked at as at `now_ms`, when they are about to move.
    """
    holds = open_holds(book, asked.transaction_id, max(now_ms, asked.at_ms))
    if not holds:
        return _nothing_left(book.hold(hold_id(asked.transaction_id)), asked.kind)
    if asked.currency and any(hold.currency != asked.currency for hold in holds):
        return Refusal.HOLD_CURRENCY_MISMATCH
    made = _captures(holds, asked) if asked.kind is ClearingKind.CAPTURE else _reversals(holds, asked)
    if isinstance(made, Refusal):
        return made
    return next((step for step in [_step(book, clearing) for clearing in made] if isinstance(step, Refusal)), made)


def _nothing_left(first: OpenHold | None, kind: ClearingKind) -> Refusal:
    """Why none of its holds is open: what became of its own, which has lapsed if it is not said to have ended."""
    if first is None:
        return Refusal.UNKNOWN_HOLD
    late = first.state not in (HoldState.POSTED, HoldState.VOIDED) and kind is ClearingKind.CAPTURE
    return Refusal.LATE_CAPTURE if late else _ENDED.get(first.state, Refusal.ALREADY_EXPIRED)


def _captures(holds: list[OpenHold], asked: Asked) -> tuple[Clearing, ...] | Refusal:
    left = sum(hold.left_minor for hold in holds) if asked.amount_minor == WHOLE else asked.amount_minor
    taken = []
    for hold in holds:
        taken.append(min(left, hold.left_minor))
        left -= taken[-1]
    for number, hold in enumerate(holds):
        above = min(left, hold.tolerated_minor)
        taken[number] += above
        left -= above
    if left:
        return Refusal.EXCEEDS_HOLD
    made = []
    for hold, amount in zip(holds, taken, strict=True):
        if amount or hold is holds[0]:
            made.append(_clearing(asked, hold, ClearingKind.CAPTURE, amount, asked.final))
        elif asked.final:
            made.append(_clearing(asked, hold, ClearingKind.REVERSAL, 0, True))
    return tuple(made)


def _reversals(holds: list[OpenHold], asked: Asked) -> tuple[Clearing, ...] | Refusal:
    if asked.amount_minor == WHOLE:
        return tuple(_clearing(asked, hold, ClearingKind.REVERSAL, 0, True) for hold in holds)
    left, made = asked.amount_minor, []
    if left > sum(hold.left_minor for hold in holds):
        return Refusal.EXCEEDS_HOLD
    for hold in reversed(holds):
        if given := min(left, hold.left_minor):
            made.append(_clearing(asked, hold, ClearingKind.REVERSAL, given, True))
            left -= given
    return tuple(made)


def unconfirmed_increments(book: Book, transaction_id: str) -> tuple[str, ...]:
    """Increments of a transaction of whose decisions the book does not know whether the log has them. One that nobody told takes no part."""
    return tuple(
        h.transaction_id for h in book.holds if h.state is HoldState.PROVISIONAL and h.transaction_id != transaction_id and _is_of(h, transaction_id)
    )


def without(book: Book, transaction_ids: Collection[str]) -> Book:
    """The book to judge by, without the holds of these transactions."""
    if not transaction_ids:
        return book
    return msgspec.structs.replace(book, holds=tuple(h for h in book.holds if h.transaction_id not in transaction_ids))


def ahead(book: Book, coming: Sequence[Clearing]) -> Book:
    """The book as it will be once these clearings, which the log has or is about to have, are applied. Those that are change nothing."""
    for clearing in coming:
        step = _step(book, clearing)
        book = step.book if isinstance(step, Step) else book
    return book


def _step(book: Book, clearing: Clearing) -> Step | Refusal:
    """What the `hold` app will make of it. The log has the hold's decision, or nobody would have cleared it."""
    hold = book.hold(hold_id(clearing.transaction_id))
    if hold is not None and hold.state is HoldState.PROVISIONAL:
        terms = Terms(hold.hold_id, hold.transaction_id, hold.amount_minor, hold.currency, hold.expires_at_ms, hold.tolerance_minor)
        book = confirm(book, terms).book
    return cleared(book, clearing)


def applied(book: Book, asked: Asked) -> tuple[Clearing, ...]:
    """The clearings under the asked one's id that the book's holds have had, as far as they are still there; none if it is new."""
    holds = [h for h in book.holds if _is_of(h, asked.transaction_id)]
    found = [(hold, hold.part(_clearing_id(asked, hold))) for hold in holds]
    return tuple(
        Clearing(
            clearing_id=part.clearing_id,
            transaction_id=hold.transaction_id,
            account_id=asked.account_id,
            kind=part.kind,
            amount_minor=part.moved_minor if part.kind is asked.kind else 0,
            currency=hold.currency,
            at_ms=part.at_ms,
        )
        for hold, part in found
        if part is not None
    )


def named(transaction_id: str, known: Iterable[str]) -> str:
    """The same id; of those that are known an increment's, where it is the one that its sender chose for it."""
    ids = list(known)
    if transaction_id in ids:
        return transaction_id
    end = increment_end(transaction_id)
    return next((each for each in ids if each.startswith(INCREMENT) and each.endswith(end)), transaction_id)


def raised_by(increment: str, known: Iterable[str]) -> str:
    """The transaction that an increment raises, if it is known; else the increment."""
    own = increments_of_the_same(increment)
    return next((each for each in known if increments_of(each) == own), increment)


def open_holds(book: Book, transaction_id: str, until_ms: int) -> list[OpenHold]:
    """The holds of a transaction that have not ended, its own first."""
    return sorted(
        [h for h in book.holds if _is_of(h, transaction_id) and h.state not in _ENDED and until_ms < h.expires_at_ms],
        key=lambda h: h.transaction_id != transaction_id,
    )


def _is_of(hold: OpenHold, transaction_id: str) -> bool:
    return hold.transaction_id == transaction_id or hold.transaction_id.startswith(increments_of(transaction_id))


def _clearing_id(asked: Asked, hold: OpenHold) -> str:
    return asked.clearing_id if hold.transaction_id == asked.transaction_id else derived_id("clr", asked.clearing_id, hold.hold_id)


def _clearing(asked: Asked, hold: OpenHold, kind: ClearingKind, amount_minor: int, final: bool) -> Clearing:
    return Clearing(
        clearing_id=_clearing_id(asked, hold),
        transaction_id=hold.transaction_id,
        account_id=asked.account_id,
        kind=kind,
        amount_minor=amount_minor,
        currency=hold.currency,
        at_ms=asked.at_ms,
        final=final,
    )
