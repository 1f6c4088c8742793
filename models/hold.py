"""The legal moves of holds: an account's book of available funds and open holds, and what may follow from what. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from models.controls import Spending, Usage, counted, forbidden
from models.refusal import Refusal as Refusal
from schemas import avro, identity
from schemas.account import AccountState, AccountStatus
from schemas.controls import Controls, Usability
from schemas.decision import Decision
from schemas.hold import Clearing, ClearingKind, HoldEvent, HoldState
from schemas.identity import INCREMENT, derived_id, increments_of, increments_of_the_same
from schemas.record import Word
from schemas.topics import CLEARINGS
from schemas.transaction import Transaction

FINAL = frozenset({HoldState.POSTED, HoldState.VOIDED, HoldState.EXPIRED})
"""States that end a hold."""
CLOCK_PLACE = ("clock", -1, -1)
"""What stands for the place of the record that caused an expiry: there is none."""
POSTINGS_MAX = 32
"""Postings that a book remembers one by one until its account's owner says a newer balance; older ones then count as one."""
PARTS_MAX = 99
"""Captures and reversals of one hold that leave something of it (source: two digits of Visa's multiple clearing sequence count)."""


_CLOSED = {
    AccountStatus.FROZEN: Refusal.ACCOUNT_FROZEN,
    AccountStatus.DORMANT: Refusal.ACCOUNT_DORMANT,
    AccountStatus.CLOSED: Refusal.ACCOUNT_CLOSED,
}
_RESOLVED_ALREADY = {
    HoldState.POSTED: Refusal.ALREADY_POSTED,
    HoldState.VOIDED: Refusal.ALREADY_VOIDED,
    HoldState.EXPIRED: Refusal.ALREADY_EXPIRED,
}


class UnknownAccount(Word):
    """What to do for an account that nobody has described: refuse, or hold without a funds check."""

    DECLINE = "decline"
    HOLD = "hold"


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one clearing did to a hold: took (capture) or gave back (reversal) `moved_minor`. By it a repeat of the clearing is known."""

    clearing_id: str
    digest: bytes
    kind: ClearingKind
    moved_minor: int
    at_ms: int
    partition: int  # where the clearing lies in its topic
    offset: int
    told: bool = False


class OpenHold(msgspec.Struct, frozen=True, array_like=True):
    """One hold in a book. A resolved one stays, in its final state, until its event was told (`told`)."""

    hold_id: str
    transaction_id: str
    amount_minor: int
    currency: str
    state: HoldState
    lease_until_ms: int  # provisional only: from this moment on it counts no more; 0 afterwards
    expires_at_ms: int  # from this moment on it is expired
    posted_minor: int = 0
    resolved_at_ms: int = 0
    tolerance_minor: int = 0
    released_minor: int = 0
    parts: tuple[Part, ...] = ()
    card: str = ""
    placed_at_ms: int = 0

    @property
    def spending(self) -> Spending:
        """What it adds to limits: what it holds or took, less what it gave back. An increment is no transaction more."""
        minor = self.posted_minor if self.state in FINAL else max(self.posted_minor, self.amount_minor - self.released_minor)
        return Spending(self.card, self.placed_at_ms, minor, int(minor > 0 and not self.transaction_id.startswith(INCREMENT)))

    @property
    def left_minor(self) -> int:
        """What of it is neither taken nor given back: what keeps money from being spent. An open hold has some left."""
        return max(0, self.amount_minor - self.posted_minor - self.released_minor)

    @property
    def tolerated_minor(self) -> int:
        """How much more than what is left its last capture may take: of the tolerance the share that was not given back."""
        return self.tolerance_minor * (self.amount_minor - self.released_minor) // self.amount_minor if self.tolerance_minor else 0

    def part(self, clearing_id: str) -> Part | None:
        """What that clearing did to it, if it did."""
        return next((part for part in self.parts if part.clearing_id == clearing_id), None)

    def live(self, now_ms: int) -> bool:
        """Whether it keeps money from being spent at `now_ms`."""
        if self.state is HoldState.CONFIRMED:
            return now_ms < self.expires_at_ms
        return self.state is HoldState.PROVISIONAL and now_ms < self.lease_until_ms


class Posting(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Money that captures took. A balance as of an earlier moment does not contain it, whenever that balance arrives."""

    at_ms: int
    minor: int
    currency: str


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
    controls: tuple[Controls, ...] = ()
    usage: tuple[Usage, ...] = ()
    postings: tuple[Posting, ...] = ()
    """Those after `as_of_ms`."""

    def available_minor(self, now_ms: int) -> int:
        """Balance and limit less live holds in the account's currency, minor units. Negative after a reinstated hold."""
        held = sum([h.left_minor for h in self.holds if h.currency == self.currency and h.live(now_ms)])
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


class Terms(NamedTuple):
    """What is said of a hold when it is placed. Amounts in minor units."""

    hold_id: str
    transaction_id: str
    amount_minor: int
    currency: str
    expires_at_ms: int
    tolerance_minor: int = 0
    card: str = ""
    placed_at_ms: int = 0

    def hold(self, state: HoldState, until_ms: int) -> OpenHold:
        """The hold of which nothing is taken or given back yet; `until_ms` is the end of its lease, if it is provisional."""
        own = (self.hold_id, self.transaction_id, self.amount_minor, self.currency, state, until_ms, self.expires_at_ms)
        return OpenHold(*own, tolerance_minor=self.tolerance_minor, card=self.card, placed_at_ms=self.placed_at_ms)


class Step(NamedTuple):
    """The book after a move, and the hold that it was about. A move that changed nothing returns the very book it got."""

    book: Book
    hold: OpenHold


class Cause(NamedTuple):
    """The clearing behind a move: its id, what tells its contents from others, and where it lies in its topic."""

    clearing_id: str = ""
    digest: bytes = b""
    partition: int = -1
    offset: int = -1


UNNAMED = Cause()


def standing(book: Book, currency: str, unknown: UnknownAccount, txn: Transaction | None = None, now_ms: int = 0) -> Refusal | None:
    """Why the account may not be debited in this currency, or by this transaction; None if it may. An account without controls pays nothing."""
    refusal = _standing(book, currency, unknown)
    if refusal is not None or not book.controls or txn is None:
        return refusal
    book = _without_lapsed(book, now_ms)
    return forbidden(book.controls, book.usage, txn, now_ms, _raised_minor(book, txn.transaction_id))


def not_credited(book: Book, refused: Collection[AccountStatus]) -> Refusal | None:
    """Why the account takes no money in, where those of such a status do not; None if it does. One of which nobody has said any does.

    Its bank says the status with its balance, or as its controls.
    """
    said = [book.status] if book.known else []
    said += [AccountStatus(c.status) for c in book.controls if c.card_token is None and c.status is not Usability.ACTIVE]
    return next((_CLOSED[status] for status in said if status in refused), None)


def _raised_minor(book: Book, transaction_id: str) -> int:
    """What the transaction that an increment raises holds or took, its other increments too; 0 for what is no increment."""
    if not transaction_id.startswith(INCREMENT):
        return 0
    own = increments_of_the_same(transaction_id)
    return sum([h.spending.minor for h in book.holds if h.transaction_id.startswith(own) or increments_of(h.transaction_id) == own])


def _raised_until_ms(book: Book, transaction_id: str, now_ms: int) -> list[int]:
    """When the hold that an increment raises expires, if the book has it; nothing for what is no increment."""
    if not transaction_id.startswith(INCREMENT):
        return []
    own = increments_of_the_same(transaction_id)
    return [h.expires_at_ms for h in book.holds if h.expires_at_ms > now_ms and increments_of(h.transaction_id) == own]


def _standing(book: Book, currency: str, unknown: UnknownAccount) -> Refusal | None:
    if not book.known:
        return Refusal.UNKNOWN_ACCOUNT if unknown is UnknownAccount.DECLINE else None
    if book.status is not AccountStatus.OPEN:
        return _CLOSED[book.status]
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
    tolerance_minor: int = 0,
    txn: Transaction | None = None,
    least_minor: int = 0,
) -> Step | Refusal:
    """A provisional hold on the account's funds, leased until `now_ms + lease_ms`, or why not.

    Where less is available than is asked for, but `least_minor` or more (0: all or nothing), what there is is held, and captures take no more
    than that. Nothing else is approved in part: limits are asked about the whole amount, for they are said of the payment and not of the money.

    An increment's expires no later than what it raises: from then on neither is captured, and its money would be held for nobody.

    A repeat finds the hold of its id and returns it unchanged, in whatever state; only one whose lease has lapsed is
    placed anew, with the funds checked anew, because its money was free for others meanwhile. Nothing is held for zero.
    """
    assert amount_minor > 0, "a hold of nothing: ask `standing` instead"
    earlier = book.hold(hold_id)
    if earlier is not None and (earlier.state is not HoldState.PROVISIONAL or earlier.live(now_ms)):
        return Step(book, earlier)
    expires_at_ms = min([expires_at_ms, *_raised_until_ms(book, transaction_id, now_ms)])
    book = _without_lapsed(book, now_ms)
    refusal = standing(book, currency, unknown, txn, now_ms)
    if refusal is not None:
        return refusal
    if book.known and amount_minor > (available := book.available_minor(now_ms)):
        if not 0 < least_minor <= available:
            return Refusal.INSUFFICIENT_FUNDS
        amount_minor, tolerance_minor = available, 0
    card = (txn and txn.card_token) or ""
    terms = Terms(hold_id, transaction_id, amount_minor, currency, expires_at_ms, tolerance_minor, card, now_ms)
    hold = terms.hold(HoldState.PROVISIONAL, now_ms + lease_ms)
    return Step(_with(book, hold), hold)


def _without_lapsed(book: Book, now_ms: int) -> Book:
    """The book, in the same version, without provisional holds whose lease is over: what they were to spend, limits count no more."""
    lapsed = [h for h in book.holds if h.state is HoldState.PROVISIONAL and not h.live(now_ms)]
    if not lapsed:
        return book
    usage = book.usage
    for hold in lapsed if book.controls else ():
        usage = counted(book.controls, usage, hold.spending, None)
    return msgspec.structs.replace(book, holds=tuple([h for h in book.holds if h not in lapsed]), usage=usage)


def confirm(book: Book, terms: Terms) -> Step:
    """The hold that a decision in the log speaks of, without a lease: the log is the truth.

    One that has lapsed, or is not in the book, is reinstated as the decision says, even past the limit. One that is
    confirmed or resolved stays as it is. Whoever calls knows that the hold was not resolved and released before.
    """
    earlier = book.hold(terms.hold_id)
    if earlier is not None and earlier.state is not HoldState.PROVISIONAL:
        return Step(book, earlier)
    hold = terms.hold(HoldState.CONFIRMED, 0)
    return Step(_with(book, hold), hold)


def with_provisional(book: Book, terms: Terms) -> Book:
    """The book with a hold that the log speaks of and nobody has confirmed yet: provisional for as long as it lives, funds unasked."""
    return _with(book, terms.hold(HoldState.PROVISIONAL, terms.expires_at_ms))


def terms_of(decision: Decision) -> Terms:
    """The terms of the hold that a decision placed."""
    assert decision.hold_id is not None
    amount, currency, expires_at_ms = decision.held_minor, str(decision.hold_currency), int(decision.hold_expires_at_ms or 0)
    card = decision.transaction.card_token or ""
    return Terms(
        decision.hold_id, decision.transaction_id, amount, currency, expires_at_ms, decision.hold_tolerance_minor, card, decision.decided_at_ms
    )


def cleared(book: Book, clearing: Clearing, partition: int = -1, offset: int = -1) -> Step | Refusal:
    """What a clearing makes of the book. One that comes again changes nothing; another one under its id is refused."""
    hold_id, digest = identity.hold_id(clearing.transaction_id), contents(clearing)
    hold = book.hold(hold_id)
    earlier = hold.part(clearing.clearing_id) if hold is not None else None
    if hold is not None and earlier is not None:
        return Step(book, hold) if earlier.digest == digest else Refusal.CLEARING_CONFLICT
    cause = Cause(clearing.clearing_id, digest, partition, offset)
    if clearing.kind is ClearingKind.CAPTURE:
        return post(book, hold_id, clearing.amount_minor, clearing.currency, clearing.at_ms, cause, clearing.final)
    return void(book, hold_id, clearing.at_ms, cause, clearing.amount_minor, clearing.currency)


def contents(clearing: Clearing) -> bytes:
    """What tells a repeat of a clearing from another one under its id."""
    return identity.digest(avro.body(clearing))


def post(book: Book, hold_id: str, amount_minor: int, currency: str, at_ms: int, cause: Cause = UNNAMED, final: bool = True) -> Step | Refusal:
    """Takes the held money, or part of it, out of the balance. The last one returns the rest; one that leaves nothing is the last.

    More than is left and tolerated is refused. `at_ms` is the capture's own time: from `expires_at_ms` on it is late, and up to
    the book's `as_of_ms` the balance that the owner said contains it already.
    """
    hold = _resolvable(book, hold_id, at_ms, Refusal.LATE_CAPTURE)
    if not isinstance(hold, OpenHold):
        return hold
    if currency != hold.currency:
        return Refusal.HOLD_CURRENCY_MISMATCH
    if amount_minor > hold.left_minor + hold.tolerated_minor:
        return Refusal.EXCEEDS_HOLD
    assert amount_minor >= 0
    moved = amount_minor if at_ms > book.as_of_ms else 0
    postings = _with_posting(book.postings, Posting(at_ms, moved, currency)) if moved else book.postings
    taken = moved if book.known and currency == book.currency else 0
    ends = final or amount_minor >= hold.left_minor
    after = msgspec.structs.replace(hold, posted_minor=hold.posted_minor + amount_minor)
    step = _cleared(book, after, Part(cause.clearing_id, cause.digest, ClearingKind.CAPTURE, amount_minor, at_ms, *cause[2:]), ends)
    if isinstance(step, Refusal):
        return step
    return Step(msgspec.structs.replace(step.book, balance_minor=book.balance_minor - taken, postings=postings), step.hold)


def _with_posting(postings: tuple[Posting, ...], posting: Posting) -> tuple[Posting, ...]:
    """These and one more. Of too many the first two of one currency become one, at the later's moment: what was taken stays taken."""
    after = sorted((*postings, posting), key=lambda one: (one.currency, one.at_ms))
    if len(after) > POSTINGS_MAX:
        pairs = [place for place in range(len(after) - 1) if after[place].currency == after[place + 1].currency]
        first = min(pairs, key=lambda place: after[place + 1].at_ms, default=None)
        if first is not None:
            one, other = after[first], after[first + 1]
            after[first : first + 2] = [Posting(other.at_ms, one.minor + other.minor, one.currency)]
    return tuple(after)


def void(book: Book, hold_id: str, at_ms: int, cause: Cause = UNNAMED, amount_minor: int = 0, currency: str = "") -> Step | Refusal:
    """Returns what is left of the held money, or `amount_minor` of it if that is not 0. From `expires_at_ms` on it has returned by itself."""
    hold = _resolvable(book, hold_id, at_ms, Refusal.ALREADY_EXPIRED)
    if not isinstance(hold, OpenHold):
        return hold
    if amount_minor and currency and currency != hold.currency:
        return Refusal.HOLD_CURRENCY_MISMATCH
    if amount_minor > hold.left_minor:
        return Refusal.EXCEEDS_HOLD
    given = amount_minor or hold.left_minor
    after = msgspec.structs.replace(hold, released_minor=hold.released_minor + given)
    return _cleared(book, after, Part(cause.clearing_id, cause.digest, ClearingKind.REVERSAL, given, at_ms, *cause[2:]), given == hold.left_minor)


def expire(book: Book, hold_id: str, now_ms: int) -> Step | Refusal:
    """Ends a hold that nobody resolved in time, at the very millisecond `expires_at_ms`, which is when it is said to have ended."""
    hold = _unresolved(book, hold_id)
    if not isinstance(hold, OpenHold):
        return hold
    if now_ms < hold.expires_at_ms:
        return Refusal.NOT_YET_EXPIRED
    after = msgspec.structs.replace(hold, state=HoldState.EXPIRED, resolved_at_ms=hold.expires_at_ms)
    return Step(_with(book, after), after)


def told(book: Book, hold: OpenHold) -> Book:
    """The book once the log has all that `hold`, as it was when it was told, says: a resolved one goes, parts of another are marked."""
    now = book.hold(hold.hold_id)
    if now is None:
        return book
    if hold.state in FINAL:
        return _changed(book, tuple(h for h in book.holds if h.hold_id != hold.hold_id))
    count = len(hold.parts)
    if all(part.told for part in now.parts[:count]):
        return book
    parts = (*(msgspec.structs.replace(part, told=True) for part in now.parts[:count]), *now.parts[count:])
    return _with(book, msgspec.structs.replace(now, parts=parts))


def release(book: Book, hold_id: str) -> Book | Refusal:
    """The book without a resolved hold, after its event was told; the same book if it is not there."""
    hold = book.hold(hold_id)
    if hold is None:
        return book
    return told(book, hold) if hold.state in FINAL else Refusal.NOT_RESOLVED


def state_known(book: Book, state: AccountState) -> Book:
    """The book with balance, limit and status as the account's owner says them; what is not newer is ignored.

    The balance said contains every posting up to its `as_of_ms`, and no later one, however late it arrives.
    """
    if book.known and state.as_of_ms <= book.as_of_ms:
        return book
    since = tuple([posting for posting in book.postings if posting.at_ms > state.as_of_ms])
    balance_minor = state.balance_minor - sum([posting.minor for posting in since if posting.currency == state.currency])
    said = (True, state.currency, balance_minor, state.credit_limit_minor, state.status, state.as_of_ms)
    return Book(book.version + 1, *said, book.holds, book.controls, book.usage, since)


def controls_known(book: Book, controls: Controls) -> Book:
    """The book with these controls in the place of those of the same card or account; what is not newer is ignored.

    Their limits go on counting; where they begin to, the holds that were placed since are counted.
    """
    earlier = next((c for c in book.controls if c.controls_id == controls.controls_id), None)
    if earlier is not None and controls.at_ms <= earlier.at_ms:
        return book
    others = tuple(c for c in book.controls if c.controls_id != controls.controls_id)
    usage = tuple(one for one in book.usage if one.controls_id != controls.controls_id or _goes_on(one, controls))
    if controls.counts and len(usage) == len([c for c in others if c.counts]):
        (fresh,) = usage_of(book.holds, controls)
        usage = (*usage, fresh)
    book = msgspec.structs.replace(book, controls=(*others, controls))
    return _changed(book, book.holds, usage)


def usage_of(holds: Sequence[OpenHold], controls: Controls) -> tuple[Usage, ...]:
    """What the limits of these controls count of these holds."""
    usage: tuple[Usage, ...] = (Usage(controls.controls_id, controls.counted_since_ms),)
    for hold in holds:
        usage = counted((controls,), usage, None, hold.spending)
    return usage


def _goes_on(usage: Usage, controls: Controls) -> bool:
    return controls.counts and usage.since_ms == controls.counted_since_ms


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
        tolerance_minor=decision.hold_tolerance_minor,
    )


def part_event(account_id: str, hold: OpenHold, part: Part) -> HoldEvent:
    """The event of a capture or reversal that left something of the hold. Its id is the clearing's own, so that no part is told twice."""
    took = part.kind is ClearingKind.CAPTURE
    return HoldEvent(
        event_id=derived_id("evt", hold.hold_id, "part", part.clearing_id),
        hold_id=hold.hold_id,
        transaction_id=hold.transaction_id,
        account_id=account_id,
        state=HoldState.PARTLY_POSTED if took else HoldState.PARTLY_VOIDED,
        held_minor=hold.amount_minor,
        posted_minor=part.moved_minor if took else 0,
        currency=hold.currency,
        at_ms=part.at_ms,
        expires_at_ms=hold.expires_at_ms,
        source_topic=CLEARINGS.name,
        source_partition=part.partition,
        source_offset=part.offset,
        released_minor=0 if took else part.moved_minor,
        tolerance_minor=hold.tolerance_minor,
        clearing_id=part.clearing_id,
        clearing_digest=part.digest,
    )


def resolved_event(account_id: str, hold: OpenHold, topic: str, partition: int, offset: int) -> HoldEvent:
    """The last event of a resolved hold. All three endings share one id, so that a hold cannot end twice in the log."""
    assert hold.state in FINAL
    last = None if hold.state is HoldState.EXPIRED or not hold.parts else hold.parts[-1]
    posted = 0 if hold.state is not HoldState.POSTED else hold.posted_minor if last is None else last.moved_minor
    earlier = hold.parts if last is None else hold.parts[:-1]
    left = hold.amount_minor - posted - sum([part.moved_minor for part in earlier])
    return HoldEvent(
        event_id=derived_id("evt", hold.hold_id, "resolved"),
        hold_id=hold.hold_id,
        transaction_id=hold.transaction_id,
        account_id=account_id,
        state=hold.state,
        held_minor=hold.amount_minor,
        posted_minor=posted,
        currency=hold.currency,
        at_ms=hold.resolved_at_ms,
        expires_at_ms=hold.expires_at_ms,
        source_topic=topic,
        source_partition=partition,
        source_offset=offset,
        released_minor=max(0, left),
        tolerance_minor=hold.tolerance_minor,
        clearing_id=None if last is None else last.clearing_id,
        clearing_digest=b"" if last is None else last.digest,
    )


def untold_events(account_id: str, hold: OpenHold) -> tuple[HoldEvent, ...]:
    """What the log may not have yet of a hold, in order: parts by the bytes that their own clearings gave them, and then its end."""
    by_clock = hold.state is HoldState.EXPIRED
    ended = hold.state in FINAL
    parts = hold.parts[:-1] if ended and not by_clock else hold.parts
    events = [part_event(account_id, hold, part) for part in parts if not part.told]
    if ended:
        place = CLOCK_PLACE if by_clock else (CLEARINGS.name, hold.parts[-1].partition, hold.parts[-1].offset)
        events.append(resolved_event(account_id, hold, *place))
    return tuple(events)


def _unresolved(book: Book, hold_id: str) -> OpenHold | Refusal:
    """The confirmed hold of that id, or why it cannot be resolved."""
    hold = book.hold(hold_id)
    if hold is None:
        return Refusal.UNKNOWN_HOLD
    if hold.state is HoldState.PROVISIONAL:
        return Refusal.NOT_CONFIRMED
    return _RESOLVED_ALREADY.get(hold.state, hold)


def _resolvable(book: Book, hold_id: str, at_ms: int, expired: Refusal) -> OpenHold | Refusal:
    """The same, if at `at_ms` it had not expired: that has the name `expired`."""
    hold = _unresolved(book, hold_id)
    if hold is Refusal.ALREADY_EXPIRED or (isinstance(hold, OpenHold) and at_ms >= hold.expires_at_ms):
        return expired
    return hold


def _cleared(book: Book, hold: OpenHold, part: Part, ends: bool) -> Step | Refusal:
    """The book with the hold after a clearing, in its final state if that `ends` it."""
    if not ends and len(hold.parts) >= PARTS_MAX:
        return Refusal.TOO_MANY_PARTS
    state = hold.state
    if ends:
        state = HoldState.POSTED if part.kind is ClearingKind.CAPTURE else HoldState.VOIDED
    after = msgspec.structs.replace(hold, state=state, resolved_at_ms=part.at_ms if ends else 0, parts=(*hold.parts, part))
    return Step(_with(book, after), after)


def _with(book: Book, hold: OpenHold) -> Book:
    """The book with this hold in the place of the one with its id, or at the end, and what limits count of it."""
    earlier, usage = book.hold(hold.hold_id), book.usage
    if book.controls:
        usage = counted(book.controls, usage, earlier.spending if earlier else None, hold.spending)
    if earlier is None:
        return _changed(book, (*book.holds, hold), usage)
    return _changed(book, tuple(hold if h.hold_id == hold.hold_id else h for h in book.holds), usage)


def _changed(book: Book, holds: tuple[OpenHold, ...], usage: tuple[Usage, ...] | None = None) -> Book:
    """The next version of the book, with these holds."""
    said = (book.known, book.currency, book.balance_minor, book.credit_limit_minor, book.status, book.as_of_ms)
    return Book(book.version + 1, *said, holds, book.controls, book.usage if usage is None else usage, book.postings)
