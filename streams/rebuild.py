"""Redis from the log: when Redis has lost what it knew, the topics say it all again; until then nothing is decided."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from features.catalogue import CATALOGUE
from features.online import RedisMemory, Wire
from models.hold import EMPTY, FINAL, Book, Step, confirm, post, release, state_known, with_provisional
from schemas import avro, identity
from schemas.account import AccountState
from schemas.decision import Decision
from schemas.errors import InvalidRecord, MemoryUnavailable
from schemas.hold import HoldEvent, HoldState
from schemas.record import Record
from schemas.topics import ACCOUNTS, DECISIONS, HOLDS, Topic
from streams.answers import WHOLE, Answers
from streams.bus import end_offsets, read_topic
from streams.hold import APPLIED, RESOLVED_TTL_S, due_key
from streams.settings import Settings

R = TypeVar("R", bound=Record)
LOCK = b"rebuilding"
LOCK_S = b"60"
POLL_S = 0.2
BATCH = 500


async def ensure_whole(wire: Wire, rebuild: Callable[[], Awaitable[object]]) -> bool:
    """Redis knows how far it is; if not, one process rebuilds it and the others wait. True if this one did."""
    while True:
        whole, mine = await wire.send((b"EXISTS", WHOLE), (b"SET", LOCK, str(os.getpid()).encode(), b"NX", b"EX", LOCK_S))
        try:
            if whole:
                return False
            if mine is not None:
                await rebuild()
                return True
        finally:
            if mine is not None:
                await wire.send((b"DEL", LOCK))
        await asyncio.sleep(POLL_S)


class Rebuild:
    """One rebuilding of a Redis from the topics: books, holds, answers, logs and profiles."""

    def __init__(self, settings: Settings, wire: Wire, answers: Answers, memory: RedisMemory, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._wire, self._answers, self._memory = wire, answers, memory
        self._say = say
        self.counts: Counter[str] = Counter()

    async def run(self) -> Counter[str]:
        """Reads accounts, holds and decisions from their first records to their present ends, writes, and marks Redis as whole."""
        ends = end_offsets(self._settings, DECISIONS)
        books: dict[str, Book] = {}
        for _, _, state in self._records(ACCOUNTS, AccountState):
            books[state.account_id] = state_known(books.get(state.account_id, EMPTY), state)
            await self._memory.know_account(state)
        confirmed: set[str] = set()
        resolved: dict[str, HoldEvent] = {}
        for _, _, event in self._records(HOLDS, HoldEvent):
            if event.state in FINAL:
                resolved[event.hold_id] = event
            else:
                confirmed.add(event.hold_id)
        await self._resolved(resolved)
        await self._decisions(books, confirmed, resolved)
        for account_id, book in books.items():
            await self._send((b"SET", b"book:" + account_id.encode(), book.to_bytes()))
        fields = [part for p, (_, end) in ends.items() for part in (f"{DECISIONS.name}:{p}".encode(), str(end).encode())]
        if fields:
            await self._send((b"HSET", APPLIED, *fields))
        await self._send((b"SET", WHOLE, b"1"))
        self.counts["books"] = len(books)
        return self.counts

    async def _resolved(self, resolved: dict[str, HoldEvent]) -> None:
        for hold_id, event in resolved.items():
            await self._send((b"SET", b"resolved:" + hold_id.encode(), f"{event.state} ".encode(), b"EX", RESOLVED_TTL_S))

    async def _decisions(self, books: dict[str, Book], confirmed: set[str], resolved: dict[str, HoldEvent]) -> None:
        seen: set[str] = set()
        kept: list[tuple[str, str, bytes, bytes]] = []
        for partition, message, decision in self._records(DECISIONS, Decision):
            if decision.transaction_id in seen:
                continue
            seen.add(decision.transaction_id)
            digest = identity.digest(avro.body(decision.transaction))
            kept.append((decision.transaction_id, decision.decision_id, digest, message))
            await self._held(books, decision, partition, confirmed, resolved)
            if len(kept) >= BATCH:
                await self._answers.restore(kept)
                kept.clear()
                await self._send((b"EXPIRE", LOCK, LOCK_S))
        await self._answers.restore(kept)
        self.counts["decisions"] = len(seen)
        self.counts["logs"] = await self._memory.restore(
            (d.transaction, d.positions, d.declined_positions) for _, _, d in self._records(DECISIONS, Decision)
        )

    async def _held(
        self, books: dict[str, Book], decision: Decision, partition: int, confirmed: set[str], resolved: dict[str, HoldEvent]
    ) -> None:
        if decision.hold_id is None:
            return
        book = books.get(decision.account_id, EMPTY)
        books[decision.account_id] = held(book, decision, decision.hold_id in confirmed, resolved.get(decision.hold_id))
        if decision.hold_id in confirmed and decision.hold_id not in resolved:
            end, due = str(decision.hold_expires_at_ms).encode(), f"{decision.account_id}\x1f{decision.hold_id}".encode()
            await self._send((b"ZADD", due_key(partition), end, due))

    def _records(self, topic: Topic, kind: type[R]) -> Iterator[tuple[int, bytes, R]]:
        for batch in read_topic(self._settings, topic):
            self._say(f"rebuilding from {topic.name}: {self.counts[topic.name]:,} records")
            for message in batch:
                self.counts[topic.name] += 1
                try:
                    yield message.partition, message.value or b"", avro.decode(kind, message.value)
                except InvalidRecord:
                    self.counts[f"unreadable {topic.name}"] += 1

    async def _send(self, command: tuple[bytes, ...]) -> None:
        (reply,) = await self._wire.send(command)
        if isinstance(reply, Exception):
            raise MemoryUnavailable(f"{command[0].decode()} {command[1].decode()}: {reply}")


def held(book: Book, decision: Decision, confirmed: bool, end: HoldEvent | None) -> Book:
    """The book with the hold that a decision in the log speaks of, or what its last event left of it.

    One that the log of holds does not confirm yet stays provisional until it would expire: the `hold` app is on its way to it.
    """
    assert decision.hold_id is not None
    if end is not None and (end.state is not HoldState.POSTED or (book.known and end.at_ms <= book.as_of_ms)):
        return book  # nothing is left of it, or the balance that its owner said since contains it
    amount, currency, expires_at_ms = decision.held_minor, str(decision.hold_currency), int(decision.hold_expires_at_ms or 0)
    if not confirmed:
        return with_provisional(book, decision.hold_id, decision.transaction_id, amount, currency, expires_at_ms)
    step = confirm(book, decision.hold_id, decision.transaction_id, amount, currency, expires_at_ms)
    if end is None:
        return step.book
    posted = post(step.book, decision.hold_id, end.posted_minor, end.currency, end.at_ms)
    if not isinstance(posted, Step):
        return book
    released = release(posted.book, decision.hold_id)
    return released if isinstance(released, Book) else book


async def _rebuild(settings: Settings) -> Counter[str]:
    wire = await Wire.connect(settings.redis_url, settings.redis_password or None)
    try:
        memory = RedisMemory(wire, CATALOGUE)
        answers = Answers(wire, settings.answer_ttl_s)
        await wire.send((b"DEL", WHOLE))
        return await Rebuild(settings, wire, answers, memory, lambda text: print(text, file=sys.stderr)).run()
    finally:
        await wire.close()


def rebuild(argv: list[str], settings: Settings) -> int:
    """`holdfast rebuild [--json]`: forgets the mark that says how far Redis is, and puts back what the topics say."""
    parser = argparse.ArgumentParser(prog="holdfast rebuild", description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    args = parser.parse_args(argv)
    counts = asyncio.run(_rebuild(settings))
    for what, count in sorted(counts.items()):
        print(f"{count:>10,}  {what}")
    if args.json:
        print(json.dumps(dict(counts)))
    return 0
