"""What a host can ask of an authorization after it was decided: capture it, reverse it, raise it. For every door.

A door does not touch the book: it tells `clearings`, as the card network does, and the `hold` app applies it. So the log is the truth here
too, and what the `hold` app refuses (a hold that expired, or that the network cleared, in the moments between) is a dead letter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from models.clearing import WHOLE, Asked, ahead, applied, beyond, clearings, named, open_holds, raised_by, unconfirmed_increments, without
from models.decision import Raised, not_raised
from models.hold import Book, OpenHold, Refusal
from schemas.avro import decode, encode
from schemas.decision import Action, Decision
from schemas.errors import Conflict, InvalidRecord, LogUnavailable, MemoryUnavailable
from schemas.hold import Clearing, ClearingKind, HoldState
from schemas.identity import INCREMENT, hold_id, increment_id
from schemas.record import Word
from schemas.topics import CLEARINGS, DECISIONS
from schemas.transaction import Attribute, Transaction
from streams.answers import FORGOT, UNTOLD_MS_MAX, Kept, came_too_late, sound
from streams.world import World

INCREMENTS = "increments"
"""The attribute of an increment: whose hold it raises."""


class NotCleared(Word):
    """Facts for which nothing is cleared, besides those of `models.hold.Refusal`."""

    WRONG_ACCOUNT = "wrong_account"
    NOTHING_HELD = "nothing_held"


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    """One thing that was asked of a transaction's holds, and the clearings that it became, as they go to the log."""

    asked: Asked
    account_id: str
    messages: tuple[bytes, ...]
    ends: bool  # nothing of the transaction is held afterwards
    told: bool


class _Standing(NamedTuple):
    """What a request is judged on: itself, with the names that the books know, and its account's book."""

    asked: Asked
    book: Book


_ENTRIES = msgspec.msgpack.Decoder(tuple[_Entry, ...])
_TRIES = 16
_ALREADY = {HoldState.POSTED: Refusal.ALREADY_POSTED, HoldState.VOIDED: Refusal.ALREADY_VOIDED, HoldState.EXPIRED: Refusal.ALREADY_EXPIRED}


async def clear(asked: Asked, world: World, now_ms: int) -> tuple[Clearing, ...] | Refusal | NotCleared:
    """Captures or reverses, whole or in part: the clearings, once the log has them; or why not. An empty `account_id` is the decision's.

    What was asked before counts, though the `hold` app may not have applied it yet: all that doors ask of a transaction and its increments is
    kept in one list, changed by compare-and-set. A repeat gets the same again. Conflict: the id came before with other contents. InvalidRecord: its
    time is before the authorization. Unavailable: nothing is known; the same call again is safe.

    A reversal of all of an authorization that nobody knows may have overtaken it: it is UNKNOWN_HOLD, and should that come, it is refused.
    """
    first_id = await _first_id(asked, world)
    for _ in range(_TRIES):
        content = await world.answers.of_clearings(first_id)
        entries = _ENTRIES.decode(content) if content else ()
        earlier = next((entry for entry in entries if entry.asked.clearing_id == asked.clearing_id), None)
        if earlier is not None:
            if not asked.repeats(earlier.asked):
                raise Conflict(asked.clearing_id)
            await _told(first_id, content, entries, world)
            return _clearings_of(earlier)
        judged = await _judged(asked, first_id, entries, world, now_ms)
        if judged is Refusal.UNKNOWN_HOLD and gives_all_back(asked):
            return await overtake(asked, world)
        if not isinstance(judged, _Entry):
            return judged
        changed = (*entries, judged)
        content_now = msgspec.msgpack.encode(changed)
        if await world.answers.swap_clearings(first_id, content, content_now):
            await _told(first_id, content_now, changed, world)
            return _clearings_of(judged)
    raise MemoryUnavailable(f"what was asked of {asked.transaction_id} changed under {_TRIES} tries")


async def overtake(asked: Asked, world: World, cards: Sequence[str] = ()) -> Refusal:
    """A reversal of all of an authorization that nobody knows is UNKNOWN_HOLD; should that come, with a card whose number begins as one of `cards`
    (empty: any), it is refused. LogUnavailable if it was decided meanwhile; the same call again is safe.
    """
    if not await world.answers.reverse_ahead(asked.transaction_id, cards):
        raise LogUnavailable("the authorization was decided meanwhile")
    return Refusal.UNKNOWN_HOLD


async def increment(txn: Transaction, original_id: str, world: World, now_ms: int) -> Transaction | Refusal | NotCleared:
    """The transaction as one that raises the hold of another, or why it cannot: decided like every transaction, with a hold of its own.

    Its own id, which its sender chose, becomes one that says whose increment it is; the two holds are cleared together. InvalidRecord names the
    field by which it is none: a card, a merchant or a currency that is not the original's; or that it
    was reversed before it came. One that names an increment, by either of its ids, raises what that raises.
    """
    named_so, kept = await _found(original_id, txn.account_id, world)
    original_id = await _raised_by(named_so, kept, txn.account_id, world)
    attributes = (*txn.attributes, Attribute(name=INCREMENTS, value=original_id))
    raised = msgspec.structs.replace(txn, transaction_id=increment_id(original_id, txn.transaction_id), attributes=attributes)
    if await world.answers.of_transaction(raised.transaction_id) is not None:
        return raised  # it was decided before: whatever became of the original since, the first answer stands
    if await world.answers.is_reversed_ahead(txn.transaction_id, txn.card_bin):
        raise came_too_late()
    content = await world.answers.of_clearings(original_id)
    ended = next((entry for entry in _ENTRIES.decode(content) if entry.ends), None) if content else None
    if ended is not None:
        return _already(ended.asked)
    if original_id != named_so:
        kept = await world.answers.of_transaction(original_id)
    if kept is None:
        if not await world.answers.whole():
            raise MemoryUnavailable(FORGOT)
        _not_by_the_stand_in(original_id, world)
        return await _old_one_refuses(txn, original_id, world, now_ms) or raised
    decision = decode(Decision, kept.message)
    if decision.account_id != txn.account_id:
        return NotCleared.WRONG_ACCOUNT
    if decision.hold_id is None:
        return NotCleared.NOTHING_HELD
    first = decision.transaction
    if (mismatch := not_raised(txn, Raised(original_id, first.card_token, first.merchant_id, str(decision.hold_currency)))) is not None:
        raise mismatch
    if _has_expired(decision, now_ms):
        return Refusal.ALREADY_EXPIRED
    by_the_network = await world.answers.ended(decision.hold_id)
    if by_the_network and not open_holds(await _book(decision.account_id, world), original_id, now_ms):
        return _ALREADY[HoldState(by_the_network)]
    return raised


async def _old_one_refuses(txn: Transaction, original_id: str, world: World, now_ms: int) -> Refusal | None:
    """Why a transaction cannot raise a hold that outlives its answer, by what the book knows of it, which is no merchant; None if it can."""
    hold = _known(await _book(txn.account_id, world), original_id, now_ms)
    if hold is None or original_id.startswith(INCREMENT):
        return Refusal.UNKNOWN_HOLD
    if (mismatch := not_raised(txn, Raised(original_id, hold.card or None, txn.merchant_id, hold.currency))) is not None:
        raise mismatch
    return _ALREADY.get(hold.state) or (Refusal.ALREADY_EXPIRED if now_ms >= hold.expires_at_ms else None)


async def follow_up(txn: Transaction, original_id: str, world: World, now_ms: int) -> Transaction | Refusal | NotCleared:
    """What a door that has but one way to name an original asks for: the retry of one whose cardholder was to authenticate, else an increment."""
    kept = await world.answers.of_transaction(original_id)
    if kept is not None and decode(Decision, kept.message).action is Action.STEP_UP:
        return msgspec.structs.replace(txn, step_up_of=original_id)
    return await increment(txn, original_id, world, now_ms)


def _has_expired(decision: Decision, now_ms: int) -> bool:
    return now_ms >= (decision.hold_expires_at_ms or 0)


def _already(last: Asked) -> Refusal:
    return Refusal.ALREADY_POSTED if last.kind is ClearingKind.CAPTURE else Refusal.ALREADY_VOIDED


def _clearings_of(entry: _Entry) -> tuple[Clearing, ...]:
    return tuple([decode(Clearing, message) for message in entry.messages])


async def _told(transaction_id: str, content: bytes | None, entries: tuple[_Entry, ...], world: World) -> None:
    """Returns once the log has all that was asked, in order: also what another process asked for and did not live to tell."""
    untold = [entry for entry in entries if not entry.told]
    for entry in untold:
        await asyncio.gather(*[world.bus.tell(CLEARINGS, entry.account_id, message) for message in entry.messages])
    if untold:  # if somebody has added to it meanwhile, he tells it all again, which changes nothing
        done = tuple(msgspec.structs.replace(entry, told=True) for entry in entries)
        await world.answers.swap_clearings(transaction_id, content, msgspec.msgpack.encode(done))


async def _judged(
    asked: Asked, first_id: str, entries: tuple[_Entry, ...], world: World, now_ms: int
) -> _Entry | tuple[Clearing, ...] | Refusal | NotCleared:
    """What becomes of it, given what was asked before; clearings that the book has had under its id, where that list was forgotten."""
    found = await _standing(asked, world, now_ms)
    if not isinstance(found, _Standing):
        return found if not entries or not entries[-1].ends else _already(entries[-1].asked)
    named_so, book = found
    unheld = [name for name in unconfirmed_increments(book, named_so.transaction_id) if not await _is_held(name, named_so, world, now_ms)]
    book = without(book, unheld)
    done = applied(book, named_so)
    if done:
        total = sum(clearing.amount_minor for clearing in done)
        further = asked.was_minor and total <= asked.amount_minor
        if any(c.kind is asked.kind for c in done) and (further or asked.amount_minor in (WHOLE, total)):
            return done
        raise Conflict(asked.clearing_id)
    book = ahead(book, [clearing for entry in entries for clearing in _clearings_of(entry)])
    rest = beyond(asked, [entry.asked for entry in entries])
    if isinstance(rest, Refusal):
        return rest
    made = clearings(book, msgspec.structs.replace(named_so, amount_minor=rest.amount_minor), now_ms)
    if not isinstance(made, tuple):
        return await _named_refusal(made, named_so, entries, world)
    after = ahead(book, made)
    ends = not open_holds(after, first_id, now_ms)
    return _Entry(asked, named_so.account_id, tuple([encode(clearing) for clearing in made]), ends, told=False)


async def _named_refusal(refusal: Refusal, asked: Asked, entries: tuple[_Entry, ...], world: World) -> Refusal:
    """The refusal by its best name: a hold that the book has let go ended as the list or Redis says.

    LogUnavailable where it did not end: its lease did, before the `hold` app had read of it, which will bring it back.
    """
    if refusal is not Refusal.UNKNOWN_HOLD:
        return refusal
    if entries and entries[-1].ends:
        return _already(entries[-1].asked)
    ended = await world.answers.ended(hold_id(asked.transaction_id))
    if ended == HoldState.EXPIRED and asked.kind is ClearingKind.CAPTURE:
        return Refusal.LATE_CAPTURE
    if not ended and await world.answers.of_transaction(asked.transaction_id) is not None:
        raise LogUnavailable("the log has the hold, and the books do not follow it yet")
    return _ALREADY[HoldState(ended)] if ended else refusal


async def _standing(asked: Asked, world: World, now_ms: int) -> _Standing | Refusal | NotCleared:
    """What the account's book is asked about. Asks whether Redis is whole, so that nothing is concluded from what it forgot."""
    if not await world.answers.whole():
        raise MemoryUnavailable(FORGOT)
    found_id, kept = await _found(asked.transaction_id, asked.account_id, world)
    asked = msgspec.structs.replace(asked, transaction_id=found_id)
    if kept is None:
        _not_by_the_stand_in(asked.transaction_id, world)
        return await _of_an_old_one(asked, world, now_ms)
    decision = decode(Decision, kept.message)
    if asked.account_id not in ("", decision.account_id):
        return NotCleared.WRONG_ACCOUNT
    if not kept.told:
        await _told_late(asked, kept, decision, world, now_ms)
    if decision.hold_id is None:
        return NotCleared.NOTHING_HELD
    _not_before(decision.at_ms, asked, world)
    if _has_expired(decision, now_ms) and asked.kind is ClearingKind.CAPTURE:
        return Refusal.LATE_CAPTURE
    book = await _book(decision.account_id, world)
    if _has_expired(decision, now_ms) and not open_holds(book, asked.transaction_id, now_ms):  # an increment of the stand-in's may outlive it
        return Refusal.ALREADY_EXPIRED
    return _Standing(msgspec.structs.replace(asked, account_id=decision.account_id), book)


async def _told_late(asked: Asked, kept: Kept, decision: Decision, world: World, now_ms: int) -> None:
    """Tells the log what a process decided and did not live to tell, so that who never heard of it can reverse it. LogUnavailable otherwise."""
    if now_ms < decision.decided_at_ms + UNTOLD_MS_MAX or not gives_all_back(asked):
        raise LogUnavailable("whether the authorization was decided is not known yet")
    _not_by_the_stand_in(asked.transaction_id, world)
    await world.bus.tell(DECISIONS, decision.account_id, kept.message)
    world.answers.told(asked.transaction_id)


def _not_by_the_stand_in(transaction_id: str, world: World) -> None:
    """LogUnavailable where the stand-in answered, and the log does not have it yet: it is no unknown one."""
    if _is_with_the_stand_in(transaction_id, world):
        raise LogUnavailable("the stand-in answered, and the log does not have that yet")


def _is_with_the_stand_in(transaction_id: str, world: World) -> bool:
    return world.stand_in is not None and transaction_id in world.stand_in.pending


async def _found(transaction_id: str, account_id: str, world: World) -> tuple[str, Kept | None]:
    """The id by which a transaction was decided, an increment's too if it is named by the one that its sender chose, and the answer to it.

    The account's book has it while it is held, then the list of what the log has of the account.
    """
    kept = await world.answers.of_transaction(transaction_id)
    if kept is not None or not account_id:
        return transaction_id, kept
    book = await _book(account_id, world)
    found = named(transaction_id, [hold.transaction_id for hold in book.holds])
    if found == transaction_id and book.hold(hold_id(transaction_id)) is None:
        found = named(transaction_id, await world.answers.listed("account", account_id))
    return found, await world.answers.of_transaction(found)


async def _first_id(asked: Asked, world: World) -> str:
    """The authorization whose list it belongs to: of an increment, that which it raises, so that both know what was asked of the other."""
    found, kept = await _found(asked.transaction_id, asked.account_id, world)
    return await _raised_by(found, kept, asked.account_id, world)


async def _raised_by(transaction_id: str, kept: Kept | None, account_id: str, world: World) -> str:
    """The authorization that an increment raises; of any other transaction, itself. What says so stands behind all that the sender said.

    Where that is not kept any more, the book knows it as long as it has the authorization's own hold.
    """
    if not transaction_id.startswith(INCREMENT):
        return transaction_id
    if kept is None:
        holds = (await _book(account_id, world)).holds if account_id else ()
        return raised_by(transaction_id, [hold.transaction_id for hold in holds])
    attributes = decode(Decision, kept.message).transaction.attributes
    return next((each.value for each in reversed(attributes) if each.name == INCREMENTS), transaction_id)


async def _is_held(transaction_id: str, asked: Asked, world: World, now_ms: int) -> bool:
    """Whether the log has a decision that holds this money: one that was late may have placed a hold, and was declined or never answered.

    LogUnavailable while whoever decided it may tell the log yet, and it would outlive what gives back all. What the stand-in gives back of its own
    waits for none: it would wait for itself.
    """
    kept = await world.answers.of_transaction(transaction_id)
    decision = None if kept is None else decode(Decision, kept.message)
    if kept is not None and decision is not None and (kept.told or decision.hold_id is None):
        return decision.hold_id is not None
    if not _is_with_the_stand_in(asked.transaction_id, world):
        _not_by_the_stand_in(transaction_id, world)
        if decision is not None and gives_all_back(asked) and now_ms < decision.decided_at_ms + UNTOLD_MS_MAX:
            raise LogUnavailable("whether an increment was decided is not known yet")
    return False


def gives_all_back(asked: Asked) -> bool:
    """Whether it is a reversal of all that is left."""
    return (asked.kind, asked.amount_minor) == (ClearingKind.REVERSAL, WHOLE)


async def _of_an_old_one(asked: Asked, world: World, now_ms: int) -> _Standing | Refusal:
    """The same where the answer is not kept any more: only a hold that the log has confirmed is known to be one."""
    if not asked.account_id:
        return Refusal.UNKNOWN_HOLD
    book = await _book(asked.account_id, world)
    hold = _known(book, asked.transaction_id, now_ms)
    if hold is None:
        return _Standing(asked, without(book, (asked.transaction_id,)))
    _not_before(hold.placed_at_ms, asked, world)
    return _Standing(asked, book)


def _known(book: Book, transaction_id: str, now_ms: int) -> OpenHold | None:
    """The hold of a transaction whose answer is not kept; none where its lease is over: who placed it did not live to decide.

    LogUnavailable while it may be decided yet.
    """
    hold = book.hold(hold_id(transaction_id))
    if hold is None or hold.state is not HoldState.PROVISIONAL:
        return hold
    if hold.live(now_ms):
        raise LogUnavailable("the hold is placed, but its decision is not kept yet")
    return None


def _not_before(at_ms: int, asked: Asked, world: World) -> None:
    """InvalidRecord where it is of a time before the authorization, by more than clocks may differ: today's balance would contain it already."""
    if asked.at_ms < at_ms - world.future_ms_max:
        raise InvalidRecord("at_ms", "is before the authorization")


async def _book(account_id: str, world: World) -> Book:
    (content,) = sound([*await world.books.read(account_id)])
    return Book.from_bytes(content)
