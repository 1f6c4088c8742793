"""The legal moves of holds: an account's book of available funds and open holds, and what may follow from what. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from schemas.account import AccountState, AccountStatus
from schemas.decision import Decision
from schemas.hold import HoldEvent, HoldState
from schemas.identity import derived_id
from schemas.record import Word

FINAL = frozenset({HoldState.POSTED, HoldState.VOIDED, HoldState.EXPIRED})
"""States that end a hold."""


class Refusal(Word):
    """Facts for which a move is refused; the order of the lines is the precedence."""

    UNKNOWN_ACCOUNT = "unknown_account"
    ACCOUNT_FROZEN = "account_frozen"
    ACCOUNT_CLOSED = "account_closed"
    CURRENCY_MISMATCH = "currency_mismatch"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    UNKNOWN_HOLD = "unknown_hold"
    NOT_CONFIRMED = "not_confirmed"
    ALREADY_POSTED = "already_posted"
    ALREADY_VOIDED = "already_voided"
    ALREADY_EXPIRED = "already_expired"
    HOLD_CURRENCY_MISMATCH = "hold_currency_mismatch"
    EXCEEDS_HOLD = "exceeds_hold"
    NOT_YET_EXPIRED = "not_yet_expired"
    NOT_RESOLVED = "not_resolved"


_RESOLVED_ALREADY = {
    HoldState.POSTED: Refusal.ALREADY_POSTED,
    HoldState.VOIDED: Refusal.ALREADY_VOIDED,
    HoldState.EXPIRED: Refusal.ALREADY_EXPIRED,
}


class UnknownAccount(Word):
    """What to do for an account that nobody has described: refuse, or hold without a funds check."""

    DECLINE = "decline"
    HOLD = "hold"


class OpenHold(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One hold in a book. A resolved one stays, in its final state, until its event was told (`release`)."""

    hold_id: str
    transaction_id: str
    amount_minor: int
    currency: str
    state: HoldState
    lease_until_ms: int  # provisional only: from this moment on it counts no more; 0 afterwards
    expires_at_ms: int  # from this moment on it is expired
    posted_minor: int = 0
    resolved_at_ms: int = 0

    def live(self, now_ms: int) -> bool:
        """Whether it keeps money from being spent at `now_ms`."""
        if self.state is HoldState.CONFIRMED:
            return now_ms < self.expires_at_ms
        return self.state is HoldState.PROVISIONAL and now_ms < self.lease_until_ms


class Book(msgspec.Struct, frozen=True, array_like=True):
    """One account: what its owner's books said of it last, less what was posted since, and its holds.

    `version` grows by one with each change; it is what a compare-and-set of the stored bytes compares.
    """

    version: int = 0
    known: bool = False
    currency: str = ""
    balance_minor: int = 0
    credit_limit_minor: int = 0
    status: AccountStatus = AccountStatus.OPEN
    as_of_ms: int = -1
    holds: tuple[OpenHold, ...] = ()

    def available_minor(self, now_ms: int) -> int:
        """Balance and limit less live holds in the account's currency, minor units. Negative after a reinstated hold."""
        held = sum([h.amount_minor for h in self.holds if h.currency == self.currency and h.live(now_ms)])
        return self.balance_minor + self.credit_limit_minor - held

    def hold(self, hold_id: str) -> OpenHold | None:
        """The hold of that id, in whatever state, if the book has it."""
        for hold in self.holds:
            if hold.hold_id == hold_id:
                return hold
        return None

    def to_bytes(self) -> bytes:
        """The version (8 bytes, little-endian) and the book in MessagePack."""
        return self.version.to_bytes(8, "little") + _ENCODER.encode(self)

    @staticmethod
    def from_bytes(content: bytes | None) -> Book:
        """The book in these bytes; the empty book, version 0, for none."""
        return _DECODER.decode(memoryview(content)[8:]) if content else EMPTY


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Book)

EMPTY = Book()
"""The book of an account that nobody has described and that holds nothing."""


class Step(NamedTuple):
    """The book after a move, and the hold that it was about. A move that changed nothing returns the very book it got."""

    book: Book
    hold: OpenHold


def standing(book: Book, currency: str, unknown: UnknownAccount) -> Refusal | None:
    """Why the account may not be debited in this currency, whatever the amount; None if it may."""
    if not book.known:
        return Refusal.UNKNOWN_ACCOUNT if unknown is UnknownAccount.DECLINE else None
    if book.status is AccountStatus.FROZEN:
        return Refusal.ACCOUNT_FROZEN
    if book.status is AccountStatus.CLOSED:
        return Refusal.ACCOUNT_CLOSED
    return Refusal.CURRENCY_MISMATCH if currency != book.currency else None


def place(
    book: Book,
    hold_id: str,
    transaction_id: str,
    amount_minor: int,
    currency: str,
    now_ms: int,
    lease_ms: int,
    expires_at_ms: int,
    unknown: UnknownAccount,
) -> Step | Refusal:
    """A provisional hold on the account's funds, leased until `now_ms + lease_ms`, or why not.

    A repeat finds the hold of its id and returns it unchanged, in whatever state; only one whose lease has lapsed is
    placed anew, with the funds checked anew, because its money was free for others meanwhile. Nothing is held for zero.
    """
    assert amount_minor > 0, "a hold of nothing: ask `standing` instead"
    earlier = book.hold(hold_id)
    if earlier is not None and (earlier.state is not HoldState.PROVISIONAL or earlier.live(now_ms)):
        return Step(book, earlier)
    refusal = standing(book, currency, unknown)
    if refusal is not None:
        return refusal
    if book.known and amount_minor > book.available_minor(now_ms):
        return Refusal.INSUFFICIENT_FUNDS
    hold = OpenHold(hold_id, transaction_id, amount_minor, currency, HoldState.PROVISIONAL, now_ms + lease_ms, expires_at_ms)
    kept = [h for h in book.holds if h.state is not HoldState.PROVISIONAL or h.live(now_ms)]
    return Step(_changed(book, (*kept, hold)), hold)


def confirm(book: Book, hold_id: str, transaction_id: str, amount_minor: int, currency: str, expires_at_ms: int) -> Step:
    """The hold that a decision in the log speaks of, without a lease: the log is the truth.

    One that has lapsed, or is not in the book, is reinstated as the decision says, even past the limit. One that is
    confirmed or resolved stays as it is. Whoever calls knows that the hold was not resolved and released before.
    """
    earlier = book.hold(hold_id)
    if earlier is not None and earlier.state is not HoldState.PROVISIONAL:
        return Step(book, earlier)
    hold = OpenHold(hold_id, transaction_id, amount_minor, currency, HoldState.CONFIRMED, 0, expires_at_ms)
    return Step(_with(book, hold), hold)


def with_provisional(book: Book, hold_id: str, transaction_id: str, amount_minor: int, currency: str, expires_at_ms: int) -> Book:
    """The book with a hold that the log speaks of and nobody has confirmed yet: provisional for as long as it lives, funds unasked."""
    return _with(book, OpenHold(hold_id, transaction_id, amount_minor, currency, HoldState.PROVISIONAL, expires_at_ms, expires_at_ms))


def post(book: Book, hold_id: str, amount_minor: int, currency: str, at_ms: int) -> Step | Refusal:
    """Takes the held money, or part of it, out of the balance; the rest is returned. More than was held is refused.

    `at_ms` is the capture's own time: from `expires_at_ms` on it is too late, and up to the book's `as_of_ms` the balance that the
    owner said contains it already.
    """
    hold = _resolvable(book, hold_id, at_ms)
    if not isinstance(hold, OpenHold):
        return hold
    if currency != hold.currency:
        return Refusal.HOLD_CURRENCY_MISMATCH
    if amount_minor > hold.amount_minor:
        return Refusal.EXCEEDS_HOLD
    assert amount_minor >= 0
    taken = amount_minor if book.known and hold.currency == book.currency and at_ms > book.as_of_ms else 0
    return _resolved(book, hold, HoldState.POSTED, at_ms, posted_minor=amount_minor, taken_minor=taken)


def void(book: Book, hold_id: str, at_ms: int) -> Step | Refusal:
    """Returns the held money. From `expires_at_ms` on it has returned by itself."""
    hold = _resolvable(book, hold_id, at_ms)
    return _resolved(book, hold, HoldState.VOIDED, at_ms) if isinstance(hold, OpenHold) else hold


def expire(book: Book, hold_id: str, now_ms: int) -> Step | Refusal:
    """Ends a hold that nobody resolved in time, at the very millisecond `expires_at_ms`, which is when it is said to have ended."""
    hold = _unresolved(book, hold_id)
    if not isinstance(hold, OpenHold):
        return hold
    if now_ms < hold.expires_at_ms:
        return Refusal.NOT_YET_EXPIRED
    return _resolved(book, hold, HoldState.EXPIRED, hold.expires_at_ms)


def release(book: Book, hold_id: str) -> Book | Refusal:
    """The book without a resolved hold, after its event was told; the same book if it is not there."""
    hold = book.hold(hold_id)
    if hold is None:
        return book
    if hold.state not in FINAL:
        return Refusal.NOT_RESOLVED
    return _changed(book, tuple(h for h in book.holds if h.hold_id != hold_id))


def state_known(book: Book, state: AccountState) -> Book:
    """The book with balance, limit and status as the account's owner says them; what is not newer is ignored.

    The balance said is taken whole: it contains every posting up to its `as_of_ms`, and the owner sends another after the next.
    """
    if book.known and state.as_of_ms <= book.as_of_ms:
        return book
    return Book(book.version + 1, True, state.currency, state.balance_minor, state.credit_limit_minor, state.status, state.as_of_ms, book.holds)


def untold(book: Book) -> tuple[OpenHold, ...]:
    """Resolved holds whose event may not have been told yet: tell it (again), then `release`."""
    return tuple(h for h in book.holds if h.state in FINAL)


def confirmed_event(decision: Decision, topic: str, partition: int, offset: int) -> HoldEvent:
    """The first event of the hold that a decision placed, caused by that decision's record in the log."""
    assert decision.hold_id is not None
    assert decision.hold_currency is not None
    assert decision.hold_expires_at_ms is not None
    return HoldEvent(
        event_id=derived_id("evt", decision.hold_id, "confirmed"),
        hold_id=decision.hold_id,
        transaction_id=decision.transaction_id,
        account_id=decision.account_id,
        state=HoldState.CONFIRMED,
        held_minor=decision.held_minor,
        posted_minor=0,
        currency=decision.hold_currency,
        at_ms=decision.decided_at_ms,
        expires_at_ms=decision.hold_expires_at_ms,
        source_topic=topic,
        source_partition=partition,
        source_offset=offset,
    )


def resolved_event(account_id: str, hold: OpenHold, topic: str, partition: int, offset: int) -> HoldEvent:
    """The last event of a resolved hold. All three endings share one id, so that a hold cannot end twice in the log."""
    assert hold.state in FINAL
    return HoldEvent(
        event_id=derived_id("evt", hold.hold_id, "resolved"),
        hold_id=hold.hold_id,
        transaction_id=hold.transaction_id,
        account_id=account_id,
        state=hold.state,
        held_minor=hold.amount_minor,
        posted_minor=hold.posted_minor,
        currency=hold.currency,
        at_ms=hold.resolved_at_ms,
        expires_at_ms=hold.expires_at_ms,
        source_topic=topic,
        source_partition=partition,
        source_offset=offset,
    )


def _unresolved(book: Book, hold_id: str) -> OpenHold | Refusal:
    """The confirmed hold of that id, or why it cannot be resolved."""
    hold = book.hold(hold_id)
    if hold is None:
        return Refusal.UNKNOWN_HOLD
    if hold.state is HoldState.PROVISIONAL:
        return Refusal.NOT_CONFIRMED
    return _RESOLVED_ALREADY.get(hold.state, hold)


def _resolvable(book: Book, hold_id: str, at_ms: int) -> OpenHold | Refusal:
    """The same, if at `at_ms` it had not expired."""
    hold = _unresolved(book, hold_id)
    return Refusal.ALREADY_EXPIRED if isinstance(hold, OpenHold) and at_ms >= hold.expires_at_ms else hold


def _resolved(book: Book, hold: OpenHold, state: HoldState, at_ms: int, posted_minor: int = 0, taken_minor: int = 0) -> Step:
    """The book with the hold in its final state and what was taken gone from the balance."""
    after = msgspec.structs.replace(hold, state=state, posted_minor=posted_minor, resolved_at_ms=at_ms)
    changed = _with(book, after)
    return Step(msgspec.structs.replace(changed, balance_minor=book.balance_minor - taken_minor), after)


def _with(book: Book, hold: OpenHold) -> Book:
    """The book with this hold in the place of the one with its id, or at the end."""
    if book.hold(hold.hold_id) is None:
        return _changed(book, (*book.holds, hold))
    return _changed(book, tuple(hold if h.hold_id == hold.hold_id else h for h in book.holds))


def _changed(book: Book, holds: tuple[OpenHold, ...]) -> Book:
    """The next version of the book, with these holds."""
    return Book(book.version + 1, book.known, book.currency, book.balance_minor, book.credit_limit_minor, book.status, book.as_of_ms, holds)
