"""The hold app: follows the log of decisions and the network's clearings, keeps the accounts' books, and says what became of each hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from features.memory import Memory
from features.wire import Command, Wire
from models.hold import (
    CLOCK_PLACE,
    FINAL,
    Book,
    OpenHold,
    Refusal,
    Step,
    cleared,
    confirm,
    confirmed_event,
    contents,
    controls_known,
    expire,
    state_known,
    terms_of,
    told,
    untold_events,
)
from schemas.account import AccountState
from schemas.avro import decode, encode
from schemas.controls import Controls
from schemas.decision import Decision
from schemas.errors import MemoryUnavailable, Unavailable
from schemas.hold import Clearing, ClearingKind, HoldState
from schemas.identity import hold_id
from schemas.record import Record
from schemas.topics import ACCOUNT_CONTROLS, ACCOUNTS, CLEARINGS, DECISIONS, HOLDS, Topic
from streams import journal
from streams.answers import UNTOLD_MS_MAX, WHOLE, Answers, listed_of, resolved_key, sound
from streams.asked import Origin
from streams.books import Books, DictBooks, book_key
from streams.bus import Bus
from streams.follow import Follower, Handler, Outputs, Refused, Source, soon
from streams.lane import Place, as_fields, places_in

RESOLVED_TTL_S, OVERDUE_S = 3_456_000, 864_000
"""A resolved hold is remembered for 40 days, and for ten more than it would have lived: until it is seen that it is due no more."""
DUE_AT_A_TIME = b"500"
APPLIED = b"applied"
"""By topic and partition, the offset after the last record of which the books know."""
CLOCK = Origin(*CLOCK_PLACE)
STUCK_MS = 30_000
"""An expiry waits for clearings that are followed, but no longer than this for the next of them."""


@dataclass(slots=True)
class HoldWorld:
    """What the app needs, wired in `streams/wired.py`. `log_ends(topic, partitions)` are their next offsets."""

    wire: Wire
    books: Books | DictBooks
    answers: Answers
    memory: Memory
    bus: Bus
    clock_ms: Callable[[], int]
    log_ends: Callable[[Topic, Collection[int]], Awaitable[Mapping[int, int]]]
    close: Callable[[], Awaitable[None]]
    known: Mapping[Place, int] = field(default_factory=dict)
    """By place, the offset below which the books know all: what comes again from there (the group's offsets were lost) changes nothing."""
    behind: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By partition in which clearings wait: how far they are followed, and since when."""

    async def ask(self, *commands: Command) -> list[Any]:
        """The replies of a Redis that is whole; MemoryUnavailable from one that forgot: nothing may be concluded from what it lacks."""
        whole, *replies = sound(await self.wire.send((b"EXISTS", WHOLE), *commands))
        if not whole:
            raise MemoryUnavailable("Redis does not know how far it is: it must be rebuilt from the log")
        return replies


async def on_decision(world: HoldWorld, decision: Decision, source: Source) -> Sequence[Record]:
    """Confirms the hold that a decision in the log speaks of: told first, so that nothing can resolve what was not said to be held.

    A decision that lies in the log twice (an indefinite tell was told again) is followed once: the book says so.
    """
    world.answers.told(decision.transaction_id)  # its asker may have died before it noted that the log has it
    world.answers.enlist(listed_of(decision))
    if decision.hold_id is None:
        return ()
    hold, account_id = decision.hold_id, decision.account_id
    content, resolved = await world.ask((b"GET", book_key(account_id)), (b"EXISTS", resolved_key(hold)))
    earlier = Book.from_bytes(content).hold(hold)
    if resolved or (earlier is not None and earlier.state is not HoldState.PROVISIONAL):
        return ()
    if source[:3] not in source.logged:
        await world.bus.tell(HOLDS, account_id, encode(confirmed_event(decision, source.topic, source.partition, source.offset)))
    terms, end = terms_of(decision), int(decision.hold_expires_at_ms or 0)
    await world.ask((b"ZADD", due_key(source.partition), str(end).encode(), due_entry(account_id, hold)))
    await world.books.change(account_id, lambda before: confirm(before, terms), seen=content)
    return ()


async def on_clearing(world: HoldWorld, clearing: Clearing, source: Source) -> Sequence[Record] | Refused:
    """Takes or gives back the hold, or a part of it, or says why not. One that was applied before is only told, if it was not."""
    await world.ask()
    step = await world.books.change(clearing.account_id, lambda before: cleared(before, clearing, source.partition, source.offset))
    if isinstance(step, Refusal):
        return await _refusal(world, hold_id(clearing.transaction_id), clearing, source, step)
    await _tell(world, clearing.account_id, step.hold, source.logged)
    if step.hold.state in FINAL:  # where a crash leaves it, it goes when it would have lapsed
        await world.ask((b"ZREM", due_key(source.partition), due_entry(clearing.account_id, step.hold.hold_id)))
    return ()


async def _refusal(world: HoldWorld, hold: str, clearing: Clearing, source: Source, refusal: Refusal) -> Sequence[Record] | Refused:
    """The refusal by its best name; nothing for a clearing that was applied before; Unavailable while the hold is on its way."""
    code: str = refusal
    if refusal in (Refusal.UNKNOWN_HOLD, Refusal.NOT_CONFIRMED):
        (resolved,) = await world.ask((b"GET", resolved_key(hold)))
        if isinstance(resolved, bytes):
            state, *by = resolved.decode().split()
            if contents(clearing).hex() in by or f"{source.partition}/{source.offset}" in by:
                return ()
            late = state == HoldState.EXPIRED and clearing.kind is ClearingKind.CAPTURE
            code = Refusal.LATE_CAPTURE if late else f"already_{state}"
        else:
            code = await _unfollowed(world, clearing, source, refusal)
    return Refused(code=code, field="transaction_id", reason=f"{clearing.clearing_id} cannot clear {hold}: {code}")


async def _unfollowed(world: HoldWorld, clearing: Clearing, source: Source, refusal: Refusal) -> str:
    """Why there is no hold to clear. Unavailable if this app has yet to read the decision that places it.

    A decision lies in the partition of the clearing's own number (both are keyed by account), so once that is followed to its end,
    what is not there will not come.
    """
    answer = await world.answers.of_transaction(clearing.transaction_id)
    if answer is None:
        return refusal
    decision = decode(Decision, answer.message)
    if decision.account_id != clearing.account_id:
        return "wrong_account"
    if decision.hold_id is None:
        return "nothing_held"
    waiting = Unavailable(f"the decision that places {decision.hold_id} was not followed yet")
    if not answer.told and world.clock_ms() < decision.decided_at_ms + UNTOLD_MS_MAX:
        raise waiting
    end = (await world.log_ends(DECISIONS, (source.partition,))).get(source.partition, 0)
    if not await soon(lambda: _is_followed(world, DECISIONS, source.partition, end)):
        raise waiting
    (content,) = await world.ask((b"GET", book_key(clearing.account_id)))
    now = Book.from_bytes(content).hold(decision.hold_id)
    if now is not None and now.state is not HoldState.PROVISIONAL:
        raise waiting  # it was confirmed since the refusal: the next try finds it
    return refusal


async def _is_followed(world: HoldWorld, topic: Topic, partition: int, end: int) -> bool:
    """Whether the books know what the topic says up to there."""
    return await _followed(world, topic, partition) >= end


async def _followed(world: HoldWorld, topic: Topic, partition: int) -> int:
    """The offset up to which the books know what the topic says."""
    (applied,) = await world.ask((b"HGET", APPLIED, f"{topic.name}:{partition}".encode()))
    return int(applied or 0)


async def on_account(world: HoldWorld, state: AccountState, source: Source) -> Sequence[Record]:
    """Takes over balance, limit and status, and what the features' profile wants to know of an account."""
    await world.ask()
    await world.books.change(state.account_id, lambda book: state_known(book, state))
    await world.memory.know_account(state)
    return ()


async def on_controls(world: HoldWorld, controls: Controls, source: Source) -> Sequence[Record]:
    """Takes over what an account's owner or the bank forbids, if the door that was told of it did not."""
    await world.ask()
    await world.books.change(controls.account_id, lambda book: controls_known(book, controls))
    return ()


async def expire_due(world: HoldWorld, partitions: frozenset[int]) -> Sequence[Record]:
    """Ends the holds of these partitions that nobody resolved in time, and notes that they need no more watching.

    A clearing that the log has by then goes first: it was in time by its own time, however long nobody read it.
    """
    now_ms = world.clock_ms()
    for partition in sorted(partitions):
        (due,) = await world.ask((b"ZRANGEBYSCORE", due_key(partition), b"-inf", str(now_ms).encode(), b"LIMIT", b"0", DUE_AT_A_TIME))
        if due and not await _all_is_cleared(world, partition, now_ms):
            continue
        for entry in due:
            account_id, hold = entry.decode().rsplit("\x1f", 1)
            if await _ended(world, account_id, hold, now_ms):
                await world.ask((b"ZREM", due_key(partition), entry))
    return ()


async def _all_is_cleared(world: HoldWorld, partition: int, now_ms: int) -> bool:
    """Whether the books know the clearings that the log has, or get no further: not every offset is a record's (a transaction's marker is none)."""
    end = (await world.log_ends(CLEARINGS, (partition,))).get(partition, 0)
    if await soon(lambda: _is_followed(world, CLEARINGS, partition, end)):
        world.behind.pop(partition, None)
        return True
    far = await _followed(world, CLEARINGS, partition)
    before, since_ms = world.behind.get(partition, (-1, now_ms))
    world.behind[partition] = far, since_ms if far == before else now_ms
    return far == before and now_ms - since_ms >= STUCK_MS


async def _ended(world: HoldWorld, account_id: str, hold: str, now_ms: int) -> bool:
    """Expires the hold and tells it; whether it needs no more watching. One that is not confirmed yet does."""
    step = await world.books.change(account_id, lambda book: _expired(book, hold, now_ms))
    if isinstance(step, Step):
        await _tell(world, account_id, step.hold)
        return True
    if step is Refusal.UNKNOWN_HOLD:
        (resolved,) = await world.ask((b"EXISTS", resolved_key(hold)))
        return bool(resolved)
    return step in (Refusal.ALREADY_POSTED, Refusal.ALREADY_VOIDED)


def _expired(book: Book, hold: str, now_ms: int) -> Step | Refusal:
    """The expiry, once more if a crash came before it was told. A clearing that resolved the hold comes again by itself."""
    earlier = book.hold(hold)
    if earlier is not None and earlier.state is HoldState.EXPIRED:
        return Step(book, earlier)
    return expire(book, hold, now_ms)


def due_key(partition: int) -> bytes:
    """The sorted set of open holds of a partition of the log, by the moment at which they lapse."""
    return b"due:%d" % partition


def due_entry(account_id: str, hold: str) -> bytes:
    """A hold in that set."""
    return f"{account_id}\x1f{hold}".encode()


async def _tell(world: HoldWorld, account_id: str, hold: OpenHold, logged: Container[Any] = ()) -> None:
    """What became of the hold to the log, in order; only then does the book let it go, so that a crash in between tells it again.

    Whoever comes next to an untold part tells it, by the bytes that its own clearing would have given it: nothing ends before its parts.
    """
    events = untold_events(account_id, hold)
    for event in events:
        if event.source_topic == CLOCK.topic or (event.source_topic, event.source_partition, event.source_offset) not in logged:
            await world.bus.tell(HOLDS, account_id, encode(event))
    if hold.state in FINAL:
        said = " ".join((str(hold.state), *(part.digest.hex() for part in hold.parts)))
        await world.ask((b"SET", resolved_key(hold.hold_id), said.encode(), b"EX", remembered_s(hold.expires_at_ms, world.clock_ms())))
    if events:
        await world.books.change(account_id, lambda book: told(book, hold))
        journal.logger().debug("hold moved", transaction_id=hold.transaction_id, hold_id=hold.hold_id, state=str(hold.state))


def remembered_s(expires_at_ms: int, now_ms: int) -> int:
    """How long a hold that would lapse then, and is resolved now, is remembered, seconds."""
    return max(RESOLVED_TTL_S, (expires_at_ms - now_ms) // 1000 + OVERDUE_S)


async def assigned(world: HoldWorld, places: frozenset[Place]) -> None:
    """Asks what the books know of these places. Of more than a topic has they know nothing: it is another one."""
    (fields,) = await world.ask((b"HGETALL", APPLIED))
    said = places_in(fields)
    known: dict[Place, int] = {}
    for topic in APP.reads:
        partitions = [partition for name, partition in places if name == topic.name]
        for partition, end in (await world.log_ends(topic, partitions)).items() if partitions else ():
            offset = said.get((topic.name, partition), 0)
            known[topic.name, partition] = offset if offset <= end else 0
    world.known = known


def once(handler: Handler) -> Handler:
    """The handler, for what the books do not know yet."""

    async def if_unknown(world: HoldWorld, record: Record, source: Source) -> Outputs:
        if source.offset < world.known.get((source.topic, source.partition), 0):
            return ()
        return await handler(world, record, source)  # type: ignore[no-any-return, misc]  # each of these is a coroutine function

    return if_unknown


async def applied(world: HoldWorld, done: Mapping[Place, int]) -> Mapping[Place, int]:
    """Redis notes how far it is in the log, before the group's own offsets do; never less than the books know, while that comes again."""
    far = {place: max(offset, world.known.get(place, 0)) for place, offset in done.items()}
    await world.ask((b"HSET", APPLIED, *as_fields(far)))
    return done


APP = Follower(
    name="hold",
    reads={DECISIONS: once(on_decision), CLEARINGS: once(on_clearing), ACCOUNTS: once(on_account), ACCOUNT_CONTROLS: once(on_controls)},
    writes=(HOLDS,),
    every=((1.0, expire_due),),
    assigned=assigned,
    settle=applied,
)
