"""Redis from the log: when Redis has lost what it knew, the topics say it all again; until then nothing is decided."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec

from features.catalogue import CATALOGUE, Catalogue
from features.online import RedisMemory
from features.tally import Verdicts, learned_in_turn, updated
from features.wire import Wire
from models.hold import (
    EMPTY,
    FINAL,
    Book,
    Cause,
    Refusal,
    Step,
    confirm,
    controls_known,
    expire,
    post,
    state_known,
    terms_of,
    told,
    void,
    with_provisional,
)
from schemas import avro, identity
from schemas.account import AccountEvent, AccountState, ProfileValue, RememberedEvent
from schemas.controls import Controls
from schemas.decision import Decision
from schemas.errors import InvalidRecord, MemoryUnavailable
from schemas.hold import HoldEvent, HoldState
from schemas.label import Label
from schemas.record import Record
from schemas.topics import ACCOUNT_CONTROLS, ACCOUNTS, DECISIONS, HOLDS, LABELS, PROFILES, REMEMBERED_EVENTS, Topic
from streams.answers import WHOLE, Answers, Restored, hold_s, kept_s, listed_of, resolved_key, sound
from streams.books import book_key
from streams.bus import Message, committed_of, end_offsets, read_topic
from streams.clock import clock_ms
from streams.hold import APP as HOLD
from streams.hold import APPLIED, due_entry, due_key, remembered_s
from streams.lane import as_fields, places_in
from streams.loaded import keep
from streams.recent import is_ahead
from streams.settings import Settings
from streams.tally import APP as TALLY
from streams.tally import TALLIED, Rows, gather_decision, gather_lessons

R = TypeVar("R", bound=Record)
LOCK = b"rebuilding"
LOCK_S = 30
BUILDING = b"building"
"""Whose rebuilding it is: beside each mark (on a cluster: in each slot), so that what forgets in the middle of it is not called whole."""
POLL_S = 0.2
BATCH = 500
FOLD_DECISIONS = 50_000
"""Decisions whose rows for tallies are kept in memory before they are folded in."""
LOST = "Redis forgot again while it was rebuilt, or another process took over"
_UNLOCK = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
_PUT = b"if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end redis.call('SET', KEYS[1], ARGV[2]) return 1"
_DONE = b"if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end redis.call('SET', KEYS[2], '1') redis.call('DEL', KEYS[1]) return 1"
_RENEW = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('EXPIRE', KEYS[1], ARGV[2]) end return 0"


async def ensure_whole(wire: Wire, rebuild: Callable[[bytes], Awaitable[object]]) -> bool:
    """Redis knows how far it is; if not, one process rebuilds it and the others wait. True if this one did.

    `rebuild` gets the token of the lock, and writes only while the lock is its own. All marks go before it begins: where one node of a
    cluster forgot, all of it decides nothing until it is rebuilt, and what a node forgets meanwhile is not called whole at the end.
    """
    token = uuid.uuid4().hex.encode()
    while True:
        (mine,) = sound(await wire.send((b"SET", LOCK, token, b"NX", b"EX", LOCK_S)))
        if mine is not None:
            return await _made_whole(wire, token, rebuild)
        (whole,) = sound(await wire.send((b"EXISTS", WHOLE)))
        if whole:
            return False
        await asyncio.sleep(POLL_S)


async def _made_whole(wire: Wire, token: bytes, rebuild: Callable[[bytes], Awaitable[object]]) -> bool:
    """Rebuilds under the lock, if it was not done while we waited for it; lets the lock go."""
    renewing = asyncio.create_task(renewed(wire, LOCK, token))
    try:
        (whole,) = sound(await wire.send((b"EXISTS", WHOLE)))
        if not whole:
            sound(await wire.send((b"DEL", WHOLE)))
            sound(await wire.send((b"SET", BUILDING, token)))
            await rebuild(token)
            await _done(wire, token)
        return not whole
    finally:
        renewing.cancel()
        await unlock(wire, LOCK, token)


async def unlock(wire: Wire, lock: bytes, token: bytes) -> None:
    """Lets a lock go, if it is still held by this token."""
    await wire.send((b"EVAL", _UNLOCK, b"1", lock, token))


async def _done(wire: Wire, token: bytes) -> None:
    """Redis is whole. MemoryUnavailable if it forgot meanwhile, or another process took over."""
    if sound(await wire.send((b"EVAL", _RENEW, b"1", LOCK, token, LOCK_S))) != [1]:
        raise MemoryUnavailable(LOST)
    if sound(await wire.send((b"EVAL", _DONE, b"2", BUILDING, WHOLE, token))) != [1]:
        raise MemoryUnavailable(LOST)


async def renewed(wire: Wire, lock: bytes, token: bytes) -> None:
    """Keeps a lock for as long as it runs."""
    while True:
        await asyncio.sleep(LOCK_S / 3)
        with suppress(MemoryUnavailable):
            await wire.send((b"EVAL", _RENEW, b"1", lock, token, LOCK_S))


async def forget_if_behind(settings: Settings, wire: Wire) -> None:
    """Takes the mark away from a Redis that came back older than it was (a power failure, a replica that took over).

    Then the `hold` app has committed more of a topic than Redis says was applied: of decisions, or of clearings where there were no decisions
    meanwhile. Or the `tally` app has committed more than Redis says that tallies have: of labels, or of decisions that it followed after `hold`
    (nothing, where no release has noted it yet). In health it is never so, as Redis is told first: so it is asked last, or a system that goes on
    meanwhile would seem to have gone back. LogUnavailable if the brokers do not answer.

    On a cluster this is seen of the nodes that have `applied` and `tallied`. After another was replaced by its replica (which may lack the last
    writes: Redis copies them without waiting) only `holdfast rebuild` makes sure.
    """
    held, given = await asyncio.to_thread(lambda: [committed_of(settings, app.name, app.reads) for app in (HOLD, TALLY)])
    whole, applied, tallied = sound(await wire.send((b"EXISTS", WHOLE), (b"HGETALL", APPLIED), (b"HGETALL", TALLIED)))
    books, tallies = (places_in(fields) for fields in (applied, tallied))
    behind = any(end > books.get(place, 0) for place, end in held.items()) or any(end > tallies.get(place, end) for place, end in given.items())
    if whole and behind:
        await wire.send((b"DEL", WHOLE))


class Tallied:
    """Tallies in the making: rows are folded in now and then, so that a long log does not stay in memory."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.rows: Rows = defaultdict(list)
        self._catalogue = catalogue
        self._contents: dict[tuple[int, str], bytes] = {}
        self._since = 0

    def fold_if_many(self) -> None:
        """Folds the rows of `FOLD_DECISIONS` decisions at once."""
        self._since += 1
        if self._since >= FOLD_DECISIONS:
            self.contents()

    def contents(self) -> dict[tuple[int, str], bytes]:
        """The bytes of all tallies so far."""
        self._since = 0
        for place, rows in self.rows.items():
            before = self._contents.get(place, b"")
            self._contents[place] = updated(self._catalogue.tally_plan, self._catalogue.tally_layouts, place[0], before, rows)
        self.rows.clear()
        return self._contents


class Rebuild:
    """One rebuilding of a Redis from the topics: books, holds, answers, logs and profiles. Who calls it holds the lock."""

    def __init__(self, settings: Settings, wire: Wire, token: bytes, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._token = token
        self._wire = wire
        self._answers, self._memory = Answers(wire, settings.answer_ttl_s), RedisMemory(wire, CATALOGUE)
        self._say = say
        self._now_ms = clock_ms()
        self.counts: Counter[str] = Counter()

    async def run(self) -> Counter[str]:
        """Reads the topics from their first records to their present ends, and writes what still counts.

        It begins when nothing can be under way any more that was decided before Redis forgot.
        """
        if any(end for _, end in end_offsets(self._settings, DECISIONS).values()):
            await asyncio.sleep(self._settings.produce_timeout_ms / 1000 + 0.5)
        books: dict[str, Book] = {}
        for _, state in self._records(ACCOUNTS, AccountState):
            books[state.account_id] = state_known(books.get(state.account_id, EMPTY), state)
            await self._memory.know_account(state)
        for _, controls in self._records(ACCOUNT_CONTROLS, Controls):
            books[controls.account_id] = controls_known(books.get(controls.account_id, EMPTY), controls)
        for _, known in self._records(PROFILES, ProfileValue):
            await self._memory.know(known.kind, known.token, known.column, known.value, known.known_at_ms)
        confirmed: set[str] = set()
        steps: dict[str, dict[str, HoldEvent]] = {}
        for _, event in self._records(HOLDS, HoldEvent):
            if event.state is HoldState.CONFIRMED:
                confirmed.add(event.hold_id)
            else:  # a repeat has the id of the first, which stands: so has another end of the same hold, as the ledger sees it
                steps.setdefault(event.hold_id, {}).setdefault(event.event_id, event)
        moved = {hold_id: tuple(events.values()) for hold_id, events in steps.items()}
        await self._ours()
        await self._resolved(moved)
        await self._decisions(books, confirmed, moved)
        await self._ours()
        await self._books(books)
        await self._ours()
        await self._applied()
        await keep(self._wire, CATALOGUE)
        return self.counts

    async def _applied(self) -> None:
        """How far the `hold` and the `tally` app are, as far as anybody knows: they say the rest themselves. What they have yet to read is not
        applied."""
        for key, app in ((APPLIED, HOLD), (TALLIED, TALLY)):
            if ends := committed_of(self._settings, app.name, app.reads):
                await self._send((b"HSET", key, *as_fields(ends)))

    async def _books(self, books: dict[str, Book]) -> None:
        """The books, in versions that no book before the loss had: a change that began then cannot match by accident."""
        version = self._now_ms << 20
        for account_id, book in books.items():
            content = msgspec.structs.replace(book, version=version).to_bytes()
            (put,) = sound(await self._wire.send((b"EVAL", _PUT, b"2", book_key(account_id), BUILDING, self._token, content)))
            if not put:
                raise MemoryUnavailable(LOST)
        self.counts["books"] = len(books)

    async def _resolved(self, moved: dict[str, tuple[HoldEvent, ...]]) -> None:
        for hold_id, steps in moved.items():
            left_s = remembered_s(steps[-1].expires_at_ms, steps[-1].at_ms) - (self._now_ms - steps[-1].at_ms) // 1000
            if steps[-1].state in FINAL and left_s > 0:
                said = " ".join((str(steps[-1].state), *(_by(step) for step in steps))).encode()
                await self._send((b"SET", resolved_key(hold_id), said, b"EX", left_s))

    async def _decisions(self, books: dict[str, Book], confirmed: set[str], moved: dict[str, tuple[HoldEvent, ...]]) -> None:
        seen: set[str] = set()
        kept: list[Restored] = []
        tallies = Tallied(CATALOGUE)
        oldest_row_ms = self._now_ms - CATALOGUE.keep_ms - CATALOGUE.cap.slack_ms
        rows = []
        for message, decision in self._records(DECISIONS, Decision):
            if decision.transaction_id in seen:
                continue
            seen.add(decision.transaction_id)
            gather_decision(CATALOGUE, decision, message.partition, message.offset, tallies.rows)
            if decision.decided_at_ms > oldest_row_ms:
                rows.append((decision.transaction, decision.positions, decision.declined_positions))
            left_s = kept_s(self._settings.answer_ttl_s, hold_s(decision)) - (self._now_ms - decision.decided_at_ms) // 1000
            if left_s > 0:
                digest = identity.request_digest(avro.body(decision.transaction))
                kept.append(
                    Restored(
                        decision.transaction_id,
                        decision.decision_id,
                        digest,
                        message.value or b"",
                        left_s,
                        listed_of(decision),
                        decision.transaction.step_up_of,
                    )
                )
            await self._held(books, decision, message.partition, confirmed, moved)
            tallies.fold_if_many()
            if len(kept) >= BATCH:
                await self._ours()
                await self._answers.restore(kept)
                kept.clear()
        await self._ours()
        await self._answers.restore(kept)
        self.counts["decisions"] = len(seen)
        self.counts["logs"] = await self._memory.restore(rows, self._happened(oldest_row_ms))
        verdicts: Verdicts = {}
        for message, label in self._records(LABELS, Label):
            if not is_ahead(label, message.timestamp_ms, self._settings):
                place = message.partition, message.offset
                gather_lessons(CATALOGUE, learned_in_turn(verdicts, label, *place), *place, tallies.rows)
        await self._ours()
        self.counts["tallies"] = len(tallies.contents())
        await self._memory.put_tallies(tallies.contents())

    def _happened(self, oldest_ms: int) -> Iterator[tuple[AccountEvent, tuple[int, ...]]]:
        """The account events whose rows a log may still have, and where. What `score` has not told yet is still to come to it."""
        for _, remembered in self._records(REMEMBERED_EVENTS, RememberedEvent):
            if remembered.remembered_at_ms > oldest_ms:
                yield remembered.event, remembered.positions

    async def _held(
        self, books: dict[str, Book], decision: Decision, partition: int, confirmed: set[str], moved: dict[str, tuple[HoldEvent, ...]]
    ) -> None:
        if decision.hold_id is None:
            return
        book, steps = books.get(decision.account_id, EMPTY), moved.get(decision.hold_id, ())
        books[decision.account_id] = held(book, decision, decision.hold_id in confirmed, steps)
        if decision.hold_id in confirmed and not (steps and steps[-1].state in FINAL):
            end = str(decision.hold_expires_at_ms).encode()
            await self._send((b"ZADD", due_key(partition), end, due_entry(decision.account_id, decision.hold_id)))

    def _records(self, topic: Topic, kind: type[R]) -> Iterator[tuple[Message, R]]:
        """All that the topic has now, each with where it lies."""
        for batch in read_topic(self._settings, topic):
            self._say(f"rebuilding from {topic.name}: {self.counts[topic.name]:,} records")
            for message in batch:
                self.counts[topic.name] += 1
                try:
                    yield message, avro.decode(kind, message.value)
                except InvalidRecord:
                    self.counts[f"unreadable {topic.name}"] += 1

    async def _ours(self) -> None:
        """Goes on only while nobody else rebuilds: Redis may have forgotten again, the lock with all else."""
        (holder,) = sound(await self._wire.send((b"GET", LOCK)))
        if holder != self._token:
            raise MemoryUnavailable(LOST)

    async def _send(self, command: tuple[bytes | int, ...]) -> None:
        sound(await self._wire.send(command))


def held(book: Book, decision: Decision, confirmed: bool, steps: Sequence[HoldEvent]) -> Book:
    """The book with the hold that a decision in the log speaks of, or what its events left of it.

    One that the log of holds does not confirm yet stays provisional until it would expire: the `hold` app is on its way to it.
    """
    assert decision.hold_id is not None
    terms = terms_of(decision)
    if not confirmed:
        return with_provisional(book, terms)
    book = confirm(book, terms).book
    for event in steps:
        step = _moved(book, event)
        book = told(step.book, step.hold) if isinstance(step, Step) else book
    return book


def _moved(book: Book, event: HoldEvent) -> Step | Refusal:
    """The move that an event tells of, once more."""
    cause = Cause(event.clearing_id or "", event.clearing_digest, event.source_partition, event.source_offset)
    match event.state:
        case HoldState.POSTED | HoldState.PARTLY_POSTED:
            return post(book, event.hold_id, event.posted_minor, event.currency, event.at_ms, cause, event.state is HoldState.POSTED)
        case HoldState.VOIDED | HoldState.PARTLY_VOIDED:
            return void(book, event.hold_id, event.at_ms, cause, event.released_minor)
        case _:
            return expire(book, event.hold_id, event.expires_at_ms)


def _by(step: HoldEvent) -> str:
    """What `resolved:` says of the clearing behind an event; of one from before digests were told its place."""
    return step.clearing_digest.hex() or f"{step.source_partition}/{step.source_offset}"


async def rebuilt(settings: Settings, token: bytes, say: Callable[[str], None]) -> Counter[str]:
    """Rebuilds on a connection of its own. It reads and computes without pause: run it in a loop that serves nobody."""
    wire = await Wire.connect(settings.redis_url, settings.redis_password or None, settings.redis_username or None)
    try:
        return await Rebuild(settings, wire, token, say).run()
    finally:
        await wire.close()


async def _forgotten_and_rebuilt(settings: Settings) -> Counter[str]:
    wire = await Wire.connect(settings.redis_url, settings.redis_password or None, settings.redis_username or None)
    counts: Counter[str] = Counter()

    async def rebuild(token: bytes) -> None:
        reading = rebuilt(settings, token, lambda text: print(text, file=sys.stderr))
        counts.update(await asyncio.to_thread(asyncio.run, reading))  # this loop keeps the lock

    try:
        await wire.send((b"DEL", WHOLE))
        if not await ensure_whole(wire, rebuild):
            print("another process of the system rebuilt it", file=sys.stderr)
        return counts
    finally:
        await wire.close()


def rebuild(argv: list[str], settings: Settings) -> int:
    """`holdfast rebuild [--json]`: forgets the mark that says that Redis is whole, and puts back what the topics say."""
    parser = argparse.ArgumentParser(prog="holdfast rebuild", description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    args = parser.parse_args(argv)
    counts = asyncio.run(_forgotten_and_rebuilt(settings))
    for what, count in sorted(counts.items()):
        print(f"{count:>10,}  {what}")
    if args.json:
        print(json.dumps(dict(counts)))
    return 0
