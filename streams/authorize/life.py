"""What a host can ask of an authorization after it was decided: capture it, reverse it, raise it. For every door.

A door does not touch the book: it tells `clearings`, as the card network does, and the `hold` app applies it. So the log is the truth here
too, and what the `hold` app refuses (a hold that expired, or that the network cleared, in the moments between) is a dead letter.
"""

from __future__ import annotations

import msgspec

from models.clearing import Asked, clearings, named
from models.hold import Book, Refusal
from schemas.avro import decode, encode
from schemas.decision import Decision
from schemas.errors import Conflict, LogUnavailable, MemoryUnavailable
from schemas.hold import Clearing, ClearingKind, HoldState
from schemas.identity import hold_id, increment_id
from schemas.record import Word
from schemas.topics import CLEARINGS
from schemas.transaction import Attribute, Transaction
from streams.answers import FORGOT, sound
from streams.pipeline import World

INCREMENTS = "increments"
"""The attribute of an increment: whose hold it raises."""


class NotCleared(Word):
    """Facts for which nothing is cleared, besides those of `models.hold.Refusal`."""

    WRONG_ACCOUNT = "wrong_account"
    NOTHING_HELD = "nothing_held"


class _First(msgspec.Struct, frozen=True, array_like=True):
    """What is kept under a transaction: what was asked first, and the clearings that it became, as they go to the log."""

    asked: Asked
    account_id: str
    messages: tuple[bytes, ...]


_FIRST = msgspec.msgpack.Decoder(_First)


async def clear(asked: Asked, world: World, now_ms: int) -> tuple[Clearing, ...] | Refusal | NotCleared:
    """Captures or reverses: the clearings, once the log has them; or why not. An empty `account_id` is that of the decision.

    The first that ends a transaction's hold stands: a repeat gets the same again, another one is refused as already posted or voided.
    Conflict: the id came before with other contents. Unavailable: nothing is known; the same call again is safe.
    """
    kept = await world.answers.of_clearing(asked.transaction_id)
    if kept is None:
        made = await _judged(asked, world, now_ms)
        if not isinstance(made, tuple):
            return made
        messages = tuple([encode(clearing) for clearing in made])
        content = msgspec.msgpack.encode(_First(asked, made[0].account_id, messages))
        kept = await world.answers.keep_clearing(asked.transaction_id, content)
    first = _FIRST.decode(kept.message)
    if not asked.repeats(first.asked):
        if asked.clearing_id == first.asked.clearing_id:
            raise Conflict(asked.clearing_id)
        return _already(first.asked)
    if not kept.told:
        for told in [world.bus.tell(CLEARINGS, first.account_id, message) for message in first.messages]:
            await told
        world.answers.told_clearing(asked.transaction_id)
    return tuple([decode(Clearing, message) for message in first.messages])


async def increment(txn: Transaction, original_id: str, world: World) -> Transaction | Refusal | NotCleared:
    """The transaction as one that raises the hold of another, or why it cannot: decided like every transaction, with a hold of its own.

    Its own id, which its sender chose, becomes one that says whose increment it is; the two holds are cleared together.
    """
    attributes = (*txn.attributes, Attribute(name=INCREMENTS, value=original_id))
    raised = msgspec.structs.replace(txn, transaction_id=increment_id(original_id, txn.transaction_id), attributes=attributes)
    if await world.answers.of_transaction(raised.transaction_id) is not None:
        return raised  # it was decided before: whatever became of the original since, the first answer stands
    ended = await world.answers.of_clearing(original_id)
    if ended is not None:
        return _already(_FIRST.decode(ended.message).asked)
    kept = await world.answers.of_transaction(original_id)
    if kept is None:
        return Refusal.UNKNOWN_HOLD
    decision = decode(Decision, kept.message)
    if decision.account_id != txn.account_id:
        return NotCleared.WRONG_ACCOUNT
    return raised if decision.hold_id is not None else NotCleared.NOTHING_HELD


def _already(first: Asked) -> Refusal:
    return Refusal.ALREADY_POSTED if first.kind is ClearingKind.CAPTURE else Refusal.ALREADY_VOIDED


async def _judged(asked: Asked, world: World, now_ms: int) -> tuple[Clearing, ...] | Refusal | NotCleared:
    """What the account's book says to it. Asks whether Redis is whole, so that nothing is concluded from what it forgot."""
    if not await world.answers.whole():
        raise MemoryUnavailable(FORGOT)
    kept = await world.answers.of_transaction(asked.transaction_id)
    if kept is None and asked.account_id:
        asked = named(await _book(asked.account_id, world), asked)
        kept = await world.answers.of_transaction(asked.transaction_id)
    if kept is None:
        return await _of_an_old_one(asked, world, now_ms)
    if not kept.told:
        raise LogUnavailable("whether the authorization was decided is not known yet")
    decision = decode(Decision, kept.message)
    if asked.account_id not in ("", decision.account_id):
        return NotCleared.WRONG_ACCOUNT
    if decision.hold_id is None:
        return NotCleared.NOTHING_HELD
    if now_ms >= (decision.hold_expires_at_ms or 0):
        return Refusal.ALREADY_EXPIRED
    asked = msgspec.structs.replace(asked, account_id=decision.account_id)
    return clearings(await _book(decision.account_id, world), asked, now_ms)


async def _of_an_old_one(asked: Asked, world: World, now_ms: int) -> tuple[Clearing, ...] | Refusal:
    """The same where the answer is not kept any more: only a hold that the log has confirmed is known to be one."""
    if not asked.account_id:
        return Refusal.UNKNOWN_HOLD
    book = await _book(asked.account_id, world)
    hold = book.hold(hold_id(asked.transaction_id))
    if hold is not None and hold.state is HoldState.PROVISIONAL:
        raise LogUnavailable("the hold is placed, but its decision is not kept yet")
    return clearings(book, asked, now_ms)


async def _book(account_id: str, world: World) -> Book:
    (content,) = sound([*await world.books.read(account_id)])
    return Book.from_bytes(content)
