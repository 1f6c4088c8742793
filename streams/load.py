"""What a release reads that the one before did not: filled from the topics into the running Redis, while the other goes on deciding.

A layout's version is part of its keys, so that neither release is in the other's way. First all that the topics have is gathered and written;
then each new record is followed. What a decision of one release leaves in the past reaches the keys of the other that way, until one of
them is gone. `holdfast backfill --only NAMES --running` does it beforehand and for both; a release that starts without it fills its own.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

from features.catalogue import Catalogue
from features.log import Told, grown, in_turn, log_rows, rebuilt_log, row_count
from features.memory import event_rows
from features.online import RedisMemory
from features.tally import Lesson, Verdicts, learned_in_turn
from features.wire import Wire
from schemas.account import AccountState, ProfileValue, RememberedEvent
from schemas.avro import decode
from schemas.decision import Decision
from schemas.errors import InvalidRecord, LogUnavailable, MemoryUnavailable, SettingsError, Unavailable
from schemas.label import Label
from schemas.record import Record
from schemas.topics import ACCOUNTS, DECISIONS, LABELS, PROFILES, REMEMBERED_EVENTS, Topic
from streams.answers import WHOLE, sound
from streams.bus import GROUP, Message, committed_of, end_offsets, read_tail, read_topic
from streams.clock import clock_ms
from streams.follow import TAIL
from streams.lane import Place
from streams.loaded import LOADER, beginnings, fill, filled, is_kept, keep, not_kept
from streams.rebuild import LOCK_S, LOST, POLL_S, Tallied, renewed, unlock
from streams.recent import is_ahead
from streams.settings import Settings, librdkafka
from streams.tally import Rows, decisions_before, gather_decision, gather_lessons, remembered, verdicts_before

TOPICS: tuple[Topic, ...] = (DECISIONS, LABELS, REMEMBERED_EVENTS, ACCOUNTS, PROFILES)
"""What is followed. What an older record of one rests on is in those before it or comes later: rows that are out of turn wait."""
QUIET_MS, SILENT_MS = 10_000, 600_000
"""A release that has decided nothing for so long, while another did, is taken to be gone: the first where a person ends the loading."""
COMMAND, APP = b"command:", b"app:"
AGAIN_S = 2.0
AT_ONCE = 256
BATCH = 2_000
POLL_KAFKA_S = 0.05
Say = Callable[[str], None]
_SWAP = b"""
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


class Stopped(Exception):
    """It was asked to end before all was gathered."""


class _Row(NamedTuple):
    """A row of a log, and the record that tells it."""

    told: Told
    place: Place
    offset: int


@dataclass
class Side:
    """The keys of one release that are to be filled: by number, those of its logs and tallies; and what was gathered for them."""

    catalogue: Catalogue
    memory: RedisMemory
    logs: frozenset[int]
    tallies: frozenset[int]
    profiles: bool
    rows: dict[tuple[int, str], list[_Row]] = field(default_factory=lambda: defaultdict(list))
    updates: Rows = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, catalogue: Catalogue, wire: Wire, names: frozenset[bytes]) -> Side:
        """The layouts whose keys begin with one of these names."""

        def numbers(layouts: Iterable[Any]) -> frozenset[int]:
            return frozenset(number for number, layout in enumerate(layouts) if layout.key("").encode() in names)

        logs, tallies = numbers(catalogue.log_layouts), numbers(catalogue.tally_layouts)
        return cls(catalogue, RedisMemory(wire, catalogue), logs, tallies, bool(numbers(catalogue.profile_layouts)))

    def decision(self, message: Message, decision: Decision) -> None:
        """Gathers the rows of a decision."""
        txn, place = decision.transaction, (message.topic, message.partition)
        for number, token, position, row in log_rows(self.catalogue, txn, decision.positions, decision.declined_positions):
            if number in self.logs:
                self.rows[number, token].append(_Row(Told(position, row, decision.decided_at_ms), place, message.offset))

    def event(self, message: Message, remembered: RememberedEvent) -> None:
        """Gathers the rows of an account event."""
        place = (message.topic, message.partition)
        rows = zip(event_rows(self.catalogue, remembered.event), remembered.positions, strict=False)
        for number, (row, position) in enumerate(rows):
            if row is not None and position >= 0 and number in self.logs:
                told = Told(position, row, remembered.remembered_at_ms)
                self.rows[number, remembered.account_id].append(_Row(told, place, message.offset))

    def counted(self, message: Message, given: Decision | Sequence[Lesson]) -> None:
        """Gathers what tallies get of a decision, or of what a label gives."""
        if not self.tallies:
            return
        rows: Rows = defaultdict(list)
        gather = gather_decision if isinstance(given, Decision) else gather_lessons
        gather(self.catalogue, given, message.partition, message.offset, rows)  # type: ignore[arg-type]  # each its own record
        for place, updates in rows.items():
            if place[0] in self.tallies:
                self.updates[place] += updates

    async def give(self, lost_before_ms: int) -> None:
        """Writes what was gathered; rows that are out of turn stay."""
        updates, self.updates = self.updates, defaultdict(list)
        await self.memory.take(updates)
        places = list(self.rows)
        for at in range(0, len(places), AT_ONCE):
            await asyncio.gather(*(self._grow(place, lost_before_ms) for place in places[at : at + AT_ONCE]))

    async def _grow(self, place: tuple[int, str], lost_before_ms: int) -> None:
        number, token = place
        layout = self.catalogue.log_layouts[number]
        key, size = layout.key(token), layout.row_bytes
        while True:
            (log,) = sound(await self.memory.wire.send((b"GET", key)))
            log = log or b""
            ready, waiting = in_turn([row.told for row in self.rows[place]], row_count(log, size, len(log)), lost_before_ms)
            after = grown(self.catalogue, number, log, ready) if ready else log
            if after == log:
                break
            (swapped,) = sound(await self.memory.wire.send((b"EVAL", _SWAP, b"1", key, log, after, self.memory.ttl_s)))
            if swapped:
                break
        if waiting:
            self.rows[place] = [row for row in self.rows[place] if row.told in waiting]
        else:
            del self.rows[place]

    async def begin(self, lost_before_ms: int) -> int:
        """Writes the logs of all that was gathered, whatever lies under their keys; rows that are out of turn stay. How many logs."""
        waits: dict[tuple[int, str], list[_Row]] = defaultdict(list)
        places, written = list(self.rows), 0
        for at in range(0, len(places), AT_ONCE):
            sets: list[tuple[Any, ...]] = []
            for number, token in places[at : at + AT_ONCE]:
                rows = self.rows[number, token]
                ready, waiting = in_turn([row.told for row in rows], 0, lost_before_ms)
                if waiting:
                    waits[number, token] = [row for row in rows if row.told in waiting]
                if ready:
                    log = rebuilt_log(self.catalogue, number, [(told.position, told.row) for told in ready])
                    sets.append((b"SET", self.catalogue.log_layouts[number].key(token), log, b"EX", self.memory.ttl_s))
            sound(await self.memory.wire.send(*sets))
            written += len(sets)
        self.rows = waits
        return written


class Load:
    """One filling. Who calls it holds the lock of this token."""

    def __init__(self, settings: Settings, wire: Wire, token: bytes, say: Say) -> None:
        self._settings, self._wire, self._token, self._say = settings, wire, token, say
        self._patience_ms = settings.produce_timeout_ms + 500
        self.counts: Counter[str] = Counter()
        self._next: dict[Place, int] = {}
        self._seen: dict[str, None] = {}
        self._verdicts: Verdicts = {}
        self._decided_ms: Counter[str] = Counter()
        """By catalogue, when it last decided."""
        self._again: dict[Place, int] = {}
        """Up to where what is followed was gathered before: it is read once more for the release before."""
        self._reread: dict[str, None] = {}
        """The ids of the decisions that count in that, and of the last before."""

    async def fill(self, catalogue: Catalogue, before: Catalogue | None, until: Callable[[], bool] | None) -> None:
        """Fills what this catalogue reads and nobody keeps, and goes on until told; without `until`, to the ends that the topics have now.

        From the end of what was there on, decisions of this catalogue are given to the keys of the release `before` as well. Without one, it
        ends by itself when no other release decides any more.
        """
        await self._ours()
        missing, _ = await not_kept(self._wire, catalogue)
        if not missing:
            return
        sides = [Side.of(catalogue, self._wire, missing)]
        self._next = await filled(self._wire)
        back = await asyncio.to_thread(self._given) if before else {}
        if self._next:
            await asyncio.to_thread(self._resume)
        else:
            await self._begin(sides[0], until or (lambda: False))
        await self._noted(sides, missing)
        if before is not None:
            gone = frozenset(beginnings(before)) - frozenset(beginnings(catalogue))
            sides.append(Side.of(before, self._wire, gone))
            self._back_to(back)
            self._reread = await asyncio.to_thread(self._decided_before)
        labels = {partition: offset for (topic, partition), offset in self._next.items() if topic == LABELS.name}
        self._verdicts = await asyncio.to_thread(verdicts_before, self._settings, labels)
        if until is None:
            ends = await asyncio.to_thread(ends_now, self._settings)
            until = lambda: all(self._next.get(place, 0) >= end for place, end in ends.items())  # noqa: E731 - a name for it says no more
        self._say("loaded: following what is decided meanwhile")
        told: Callable[[], bool] = until
        await self._follow(sides, lambda: told() or (before is None and self._is_alone(catalogue, SILENT_MS)))
        if self._is_alone(catalogue, QUIET_MS if before else SILENT_MS):
            await keep(self._wire, catalogue)

    def _is_alone(self, catalogue: Catalogue, quiet_ms: int) -> bool:
        """Whether it decides, and no other has done so for a while: from now on its keys are kept by who decides."""
        own = self._decided_ms[catalogue.catalogue_id]
        other = max((at for name, at in self._decided_ms.items() if name != catalogue.catalogue_id), default=0)
        return own > other and clock_ms() - other > quiet_ms

    def _given(self) -> dict[Place, int]:
        """Up to where the `tally` app has given tallies what they get."""
        return committed_of(self._settings, "tally", (DECISIONS, LABELS))

    def _back_to(self, given: Mapping[Place, int]) -> None:
        """Reads again from there: a tally takes no row that lies before one that it took, so that none may be left out before the first."""
        self._again = dict(self._next)
        self._next |= {place: min(self._next.get(place, offset), offset) for place, offset in given.items()}

    # What was there.

    async def _begin(self, side: Side, stopped: Callable[[], bool]) -> None:
        """Gathers all that the topics have, and writes it."""
        lost_before_ms = clock_ms() - self._patience_ms
        tallies, known = await asyncio.to_thread(self._gather, side, stopped)
        for record in known:
            await _know(side, record)
        await self._ours()
        await side.memory.put_tallies(tallies)
        self.counts["tallies"], self.counts["logs"] = len(tallies), await side.begin(lost_before_ms)

    def _gather(self, side: Side, stopped: Callable[[], bool]) -> tuple[dict[tuple[int, str], bytes], list[Record]]:
        """Gathers the rows of logs; the bytes of all tallies, and what profiles are told. In a thread: the lock is renewed meanwhile."""
        oldest_ms = clock_ms() - side.catalogue.keep_ms - side.catalogue.cap.slack_ms
        known: list[Record] = []
        tallied = Tallied(side.catalogue)
        tallied.rows = side.updates
        for message, record in self._records(side, stopped):
            if isinstance(record, Decision):
                if record.transaction_id in self._seen:
                    continue
                self._seen[record.transaction_id] = None
                self._notice(record)
                side.counted(message, record)
                tallied.fold_if_many()
                if record.decided_at_ms > oldest_ms:
                    side.decision(message, record)
            elif isinstance(record, Label):
                side.counted(message, self._learned(message, record))
            elif isinstance(record, RememberedEvent):
                if record.remembered_at_ms > oldest_ms:
                    side.event(message, record)
            else:
                known.append(record)
        return tallied.contents(), known

    def _records(self, side: Side, stopped: Callable[[], bool]) -> Iterable[tuple[Message, Record]]:
        """The records that count for it, topic by topic, up to the ends; from there on they are followed."""
        for topic in TOPICS:
            ends = {p: end for p, (_, end) in end_offsets(self._settings, topic).items()}
            self._next |= {(topic.name, p): end for p, end in ends.items()}
            if topic in (ACCOUNTS, PROFILES) and not side.profiles:
                continue
            for batch in read_topic(self._settings, topic):
                if stopped():
                    raise Stopped
                self.counts[topic.name] += len(batch)
                self._say(f"loading from {topic.name}: {self.counts[topic.name]:,} records")
                for message in batch:
                    if message.offset < ends.get(message.partition, 0) and (record := self._decoded(topic, message)) is not None:
                        yield message, record

    def _decoded(self, topic: Topic, message: Message) -> Record | None:
        try:
            return decode(topic.record, message.value)
        except InvalidRecord:
            self.counts[f"unreadable {topic.name}"] += 1
            return None

    def _learned(self, message: Message, label: Label) -> tuple[Lesson, ...]:
        return (
            () if is_ahead(label, message.timestamp_ms, self._settings) else learned_in_turn(self._verdicts, label, message.partition, message.offset)
        )

    def _notice(self, decision: Decision) -> None:
        self._decided_ms[decision.catalogue_id] = max(self._decided_ms[decision.catalogue_id], decision.decided_at_ms)

    def _resume(self) -> None:
        """Notices who decided last, and the decisions before those that are to be read now: one that lies in the log twice counts once."""
        self._seen = self._decided_before()
        for batch in read_tail(self._settings, DECISIONS, range(DECISIONS.partitions), TAIL // DECISIONS.partitions):
            for message in batch:
                decision = self._decoded(DECISIONS, message)
                if isinstance(decision, Decision):
                    self._notice(decision)

    def _decided_before(self) -> dict[str, None]:
        """The transactions of the last decisions before what is to be read next."""
        ends = {partition: offset for (topic, partition), offset in self._next.items() if topic == DECISIONS.name}
        return {decision.transaction_id: None for decision in decisions_before(self._settings, ends)}

    # What comes.

    async def _follow(self, sides: list[Side], done: Callable[[], bool]) -> None:
        consumer = _consumer(self._settings, self._next)
        try:
            while True:
                for message in await asyncio.to_thread(_polled, consumer):
                    await self._take(sides, message)
                lost_before_ms = clock_ms() - self._patience_ms
                for side in sides:
                    await side.give(lost_before_ms)
                await self._noted(sides, frozenset())
                if done():
                    return
        finally:
            await asyncio.to_thread(consumer.close)

    async def _take(self, sides: list[Side], message: Message) -> None:
        """Gathers what one record gives to each side."""
        topic = next(topic for topic in TOPICS if topic.name == message.topic)
        self._next[message.topic, message.partition] = max(self._next.get((message.topic, message.partition), 0), message.offset + 1)
        record = self._decoded(topic, message)
        if isinstance(record, Decision):
            self._notice(record)
            read = message.offset < self._again.get((message.topic, message.partition), 0)
            again = remembered(self._reread if read else self._seen, record.transaction_id)
            for side in sides:
                if not again:
                    side.counted(message, record)
                    if record.catalogue_id != side.catalogue.catalogue_id:
                        side.decision(message, record)
        elif isinstance(record, Label):
            lessons = self._learned(message, record)
            for side in sides:
                side.counted(message, lessons)
        elif isinstance(record, RememberedEvent):
            for side in sides:
                if record.catalogue_id != side.catalogue.catalogue_id:
                    side.event(message, record)
        elif record is not None:
            for side in sides:
                await _know(side, record)

    async def _noted(self, sides: list[Side], names: frozenset[bytes]) -> None:
        """Notes how far it is: not past a record of which a row waits."""
        await self._ours()
        far = dict(self._next)
        for side in sides:
            for rows in side.rows.values():
                for row in rows:
                    far[row.place] = min(far[row.place], row.offset)
        await fill(self._wire, names, far)

    async def _ours(self) -> None:
        holder, whole = sound(await self._wire.send((b"GET", LOADER), (b"EXISTS", WHOLE)))
        if holder != self._token or not whole:
            raise MemoryUnavailable(LOST)


async def _know(side: Side, record: Record) -> None:
    """Makes known what a profile has, where its columns are new."""
    if side.profiles and isinstance(record, AccountState):
        await side.memory.know_account(record)
    elif side.profiles and isinstance(record, ProfileValue):
        await side.memory.know(record.kind, record.token, record.column, record.value, record.known_at_ms)


def _consumer(settings: Settings, start: Mapping[Place, int]) -> Any:
    """What follows these places from these offsets on, in no group's name."""
    alone = {"group.id": GROUP, "enable.auto.commit": False, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 20}
    consumer = Consumer(librdkafka(settings) | alone)
    consumer.assign([TopicPartition(topic, partition, offset) for (topic, partition), offset in start.items()])
    return consumer


def _polled(consumer: Any) -> list[Message]:
    """The next records. LogUnavailable after what does not heal by itself."""
    try:
        raw = consumer.consume(BATCH, timeout=POLL_KAFKA_S)
    except KafkaException as error:
        raise LogUnavailable(str(error)) from error
    return [Message(m.topic(), m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value()) for m in raw if m.error() is None]


@asynccontextmanager
async def _locked(wire: Wire, who: bytes) -> AsyncIterator[bytes | None]:
    """The token of the lock of who fills; None if another has it. The command takes it from an app, which fills for one release alone."""
    token = who + uuid.uuid4().hex.encode()
    mine, holder = sound(await wire.send((b"SET", LOADER, token, b"NX", b"EX", LOCK_S), (b"GET", LOADER)))
    if mine is None and who == COMMAND and holder is not None and holder.startswith(APP):
        (mine,) = sound(await wire.send((b"SET", LOADER, token, b"EX", LOCK_S)))
    if mine is None:
        yield None
        return
    renewing = asyncio.create_task(renewed(wire, LOADER, token))
    try:
        yield token
    finally:
        renewing.cancel()
        await unlock(wire, LOADER, token)


async def ensure_loaded(settings: Settings, catalogue: Catalogue, say: Say) -> None:
    """Returns when Redis has all that this release reads, as far as the topics said it at the call: who fills is waited for, or it is done here.

    On a connection of its own. It reads and computes without pause: run it in a loop that serves nobody. Unavailable if Redis forgot.
    """
    wire = await connected_to(settings)
    try:
        ends: dict[Place, int] = {}
        while not await is_kept(wire, catalogue):
            async with _locked(wire, APP) as token:
                if token is not None:
                    await Load(settings, wire, token, say).fill(catalogue, None, None)
                    return
            missing, _ = await not_kept(wire, catalogue)
            ends = ends or await asyncio.to_thread(ends_now, settings)
            far = await filled(wire)
            if not far and not missing:
                return
            if far and all(far.get(place, 0) >= end for place, end in ends.items()):
                return
            await asyncio.sleep(POLL_S)
    finally:
        await wire.close()


def ends_now(settings: Settings) -> dict[Place, int]:
    """The next offset of each partition of what is followed."""
    return {(topic.name, p): end for topic in TOPICS for p, (_, end) in end_offsets(settings, topic).items()}


async def connected_to(settings: Settings) -> Wire:
    """A wire to the Redis of the settings."""
    return await Wire.connect(settings.redis_url, settings.redis_password or None, settings.redis_username or None)


async def load(settings: Settings, catalogue: Catalogue, before: Catalogue | None, stop: Callable[[], bool], say: Say) -> Counter[str]:
    """Fills what this catalogue reads and nobody keeps, for as long as another release may decide: see `Load.fill`."""
    wire, counts = await connected_to(settings), Counter[str]()
    try:
        while not stop():
            try:
                async with _locked(wire, COMMAND if before else APP) as token:
                    if token is not None:
                        under_way = Load(settings, wire, token, say)
                        counts = under_way.counts
                        await under_way.fill(catalogue, before, stop)
                        return counts
                say("another process fills it now: waiting")
            except Stopped:
                return counts
            except Unavailable as error:
                say(f"beginning again: {error}")
            await asyncio.sleep(AGAIN_S)
        return counts
    finally:
        await wire.close()


# The command.


def without(catalogue: Catalogue, names: Sequence[str]) -> Catalogue:
    """The catalogue of the release that had none of these features. SettingsError if what they read cannot be filled from the topics."""
    before = Catalogue(tuple(row for row in catalogue.rows if row.name not in names), catalogue.cap, catalogue.memory, catalogue.reach_ms)
    if before.keep_ms < catalogue.keep_ms:
        days = before.longest_ms // 86_400_000
        raise SettingsError(f"a log is kept for {days} days: a longer window begins with the release that has it, and cannot be loaded")
    new = [log for log in catalogue.logs if log not in before.logs]
    if new:
        raise SettingsError(f"no decision says its place in a log of {new[0]}: that log begins with the release that has it, and cannot be loaded")
    return before


async def _loaded(settings: Settings, catalogue: Catalogue, before: Catalogue) -> Counter[str]:
    wire = await connected_to(settings)
    try:
        if not (await not_kept(wire, catalogue))[1]:
            await keep(wire, before)
        if not (await not_kept(wire, catalogue))[0]:
            _say("what runs keeps all that these features read: there is nothing to load")
            return Counter()
        if strange := (await not_kept(wire, before))[0]:
            raise SettingsError(f"what runs keeps no {sorted(strange)[0].decode()}: it is not this release without these features alone")
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        counts = await load(settings, catalogue, before, stop.is_set, _say)
        for what, count in sorted(counts.items()):
            print(f"{count:>10,}  {what}")
        left, _ = await not_kept(wire, catalogue)
        _say("both releases may decide: who starts, or this command again, goes on from here" if left else "this release decides alone")
        return counts
    finally:
        await wire.close()


def loaded(catalogue: Catalogue, names: Sequence[str], settings: Settings) -> Counter[str]:
    """`holdfast backfill --only NAMES --running`: until SIGINT or SIGTERM; returns how much of what was read and filled."""
    return asyncio.run(_loaded(settings, catalogue, without(catalogue, names)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
