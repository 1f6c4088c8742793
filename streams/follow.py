"""How an app follows the log: records in, records out, acknowledged only when what follows from them is in the log.

An app is one value, `Follower`. Delivery is at least once, so every effect must be idempotent; what the harness writes itself it
does not write again when it finds it at the end of the output partitions.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import uvloop

from schemas.avro import decode, encode
from schemas.dead_letter import DeadLetter
from schemas.errors import Conflict, InvalidRecord, LogUnavailable, Unavailable
from schemas.identity import derived_id
from schemas.record import EPOCH_MS_MAX, Record
from schemas.topics import TOPICS, Topic
from streams import journal, metrics
from streams.bus import Bus, KafkaBus, Message, committed_of, end_offsets, read_tail
from streams.lane import SESSION_S, Lane, Place, Reading, Turn
from streams.named import named
from streams.ready import forget_ready, tell_ready
from streams.settings import Settings
from streams.watchdog import Watchdog

TOPIC_OF: dict[type[Record], Topic] = {topic.record: topic for topic in TOPICS}
VALUE_MAX = 900_000
"""Bytes of a value that a dead letter can hold: the log takes no record of more than a megabyte."""
TAIL = 20_000
"""Records at the end of an app's output that are read when partitions are assigned, so that they are not written again."""
IDS_MAX = 200_000
"""Ids of written records that are remembered: the newest."""
REASON_MAX, KEY_MAX = 1_000, 10_000
"""Characters of a dead letter's reason and bytes of its key, so that no record is so bad that its letter cannot be written."""
BACKOFF_S, BACKOFF_S_MAX = 0.05, 2.0
FINISH_S = 8.0
FAILED = 1


_SOON_S = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Pauses in which what was told until now is followed."""


async def soon(is_so: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it is so, or is in a moment: what is in the log by now is followed then, while its end has gone further where many are told."""
    for wait_s in _SOON_S:
        await asyncio.sleep(wait_s)
        if await is_so():
            return True
    return False


class Source(NamedTuple):
    """Where a record came from. `logged`: inputs (topic, partition, offset) whose output this app has already written."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    logged: Container[Any]


class Refused(NamedTuple):
    """A record that is valid and cannot be applied: it becomes a dead letter, and the stream goes on."""

    code: str
    field: str | None
    reason: str


Outputs = Sequence[Record] | Refused
Handler = Callable[[Any, Any, Source], Awaitable[Outputs] | Outputs]
"""World, the decoded record, its source -> the records to write. A plain function is called in order, a coroutine function
concurrently for different keys and in order for the same key (of one topic; topics are independent of each other)."""


@dataclass(frozen=True)
class Follower:
    """An app. Its name is Faust's app id, the consumer group, the container and the argument of `holdfast run`."""

    name: str
    reads: Mapping[Topic, Handler]
    writes: tuple[Topic, ...] = ()
    every: tuple[tuple[float, Callable[[Any, frozenset[int]], Awaitable[Sequence[Record]]]], ...] = ()
    """(seconds, what is to be done then for the partitions of the first topic that are ours): returns records to write."""
    assigned: Callable[[Any, frozenset[Place]], Awaitable[None]] | None = None
    """Called before any record of newly assigned places (topic, partition) is applied."""
    settle: Callable[[Any, Mapping[Place, int]], Awaitable[Mapping[Place, int]]] | None = None
    """Gets by place the offset after the last record that is worked off, returns what may be acknowledged of it."""
    leaving: Callable[[Any], Awaitable[None]] | None = None
    """Called when partitions are taken away or the process ends, after the last batch and before the last acknowledgement."""


class Written(NamedTuple):
    """What the end of the output says (and what was written since): ids of records, oldest first, and the inputs that they came from."""

    ids: dict[str, None]
    sources: set[tuple[str, int, int]]


class Chains:
    """Work under way by key: what comes with a key waits for the work of that key that came before, of whatever batch."""

    def __init__(self) -> None:
        self._last: dict[bytes, asyncio.Task[None]] = {}

    def begin(
        self, key: bytes | int, indexes: list[int], chain: Callable[[list[int], asyncio.Task[None] | None], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        """Begins this work, after what is under way with its key. A number is no key: nothing waits for it."""
        if isinstance(key, int):
            return asyncio.create_task(chain(indexes, None))
        task = self._last[key] = asyncio.create_task(chain(indexes, self._last.get(key)))
        task.add_done_callback(lambda done: self._last.pop(key) if self._last.get(key) is done else None)
        return task


class Harness:
    """One run of one follower. `fault` is done when the process must end: with the error, or (by a signal) without."""

    def __init__(self, follower: Follower, world: Any, bus: Bus, settings: Settings) -> None:
        self.lanes = {topic.name: Lane(topic, settings.batch_max) for topic in follower.reads}
        self.reading = Reading(self.lanes)
        self.fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._follower = follower
        self._world = world
        self._bus = bus
        self._settings = settings
        self._written = Written({}, set())
        self._log = journal.logger()
        self._tasks: set[asyncio.Task[None]] = set()
        self._preparing = asyncio.Lock()
        self._stopping = False
        self.failed = False
        """Whether something failed that nobody foresaw, be it while the process ends: nothing more is acknowledged."""

    def fail(self, error: BaseException) -> None:
        """Ends the process: nothing of the batch under way is acknowledged."""
        self.failed = True
        if not self.fault.done():
            self.fault.set_exception(error)
        else:
            self._log.critical("failed", error=type(error).__name__, reason=str(error), exc_info=error)

    def stop(self) -> None:
        """Ends the process in good order."""
        if not self.fault.done():
            self.fault.set_result(None)

    def begin(self, work: Awaitable[None]) -> None:
        """Runs something beside the lanes; if it fails, so does the process."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 an unknown failure ends the process
                self.fail(error)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What the agents do.

    async def follow(self, lane: Lane) -> None:
        """The life of an agent: batch after batch. No exception ever leaves it (Faust would acknowledge the record).

        Where different keys go beside each other, the next batch begins while the last records of the one before are under way; batches
        end, and are acknowledged, in their order.
        """
        handler, chains = self._follower.reads[lane.topic], Chains()
        overlaps = inspect.iscoroutinefunction(handler)
        before: asyncio.Task[None] | None = None
        while True:
            messages = await lane.take()
            turn = self.reading.turn
            await turn.prepared.wait()
            batch = asyncio.create_task(self._work_off(lane, handler, messages, turn, chains, before))
            await (batch if before is None or not overlaps else before)
            if self.failed:
                return
            before = batch if overlaps else None

    async def _work_off(
        self, lane: Lane, handler: Handler, messages: list[Message], turn: Turn, chains: Chains, before: asyncio.Task[None] | None
    ) -> None:
        """One batch, unless its turn is over."""
        try:
            if not (turn.over or self._stopping):
                await self._batch(lane, handler, messages, turn, chains, before)
        except Exception as error:  # noqa: BLE001 an unknown failure ends the process
            self.fail(error)
        finally:
            lane.rest()

    async def _batch(
        self, lane: Lane, handler: Handler, messages: list[Message], turn: Turn, chains: Chains, before: asyncio.Task[None] | None
    ) -> None:
        began = perf_counter()
        outputs = await self._apply(lane, handler, messages, turn, chains)
        if before is not None:
            await before
        if self.failed or turn is not self.reading.turn:
            return  # the one before failed, and nothing after it may be acknowledged; or the next owner does it all again
        await self._tell([record for records in outputs for record in records], lane)
        if turn is self.reading.turn:
            lane.done.update((m.partition, m.offset + 1) for m in messages)
        await self._settle(lane, turn)
        metrics.RECORDS.labels(lane.topic.name).inc(len(messages))
        metrics.BATCHES.labels(lane.topic.name).observe(perf_counter() - began)

    async def _apply(self, lane: Lane, handler: Handler, messages: list[Message], turn: Turn, chains: Chains) -> list[Sequence[Record]]:
        """What follows from each record, in the order of the records."""
        if not inspect.iscoroutinefunction(handler):
            return [await self._one(lane, handler, message, turn) for message in messages]
        outputs: list[Sequence[Record]] = [()] * len(messages)
        own: dict[bytes | int, list[int]] = {}
        for i, message in enumerate(messages):
            own.setdefault(i if message.key is None else message.key, []).append(i)

        async def chain(indexes: list[int], earlier: asyncio.Task[None] | None) -> None:
            if earlier is not None:
                await asyncio.wait((earlier,))
                if earlier.cancelled() or earlier.exception():
                    return  # its batch fails and is done again, in order
            for i in indexes:
                outputs[i] = await self._one(lane, handler, messages[i], turn)

        await asyncio.gather(*[chains.begin(key, indexes, chain) for key, indexes in own.items()])
        return outputs

    async def _one(self, lane: Lane, handler: Handler, message: Message, turn: Turn) -> Sequence[Record]:
        """What follows from one record; tries again for as long as a part that it needs does not answer, and its partition is ours.

        Nothing once another turn began: what it waits for may be followed elsewhere now, and would never come here.
        """
        pause_s = BACKOFF_S
        source = Source(*message, self._written.sources)
        while turn is self.reading.turn:
            try:
                result = handler(self._world, decode(lane.topic.record, message.value), source)
                outputs = result if isinstance(result, Sequence) else await result
                return [self._dead_letter(message, *outputs)] if isinstance(outputs, Refused) else outputs
            except InvalidRecord as error:
                return [self._dead_letter(message, error.code, error.field, error.reason)]
            except Conflict as error:
                return [self._dead_letter(message, error.code, "transaction_id", str(error))]
            except Unavailable as error:
                pause_s = await self._pause(error, pause_s, lane)
        return ()

    def _dead_letter(self, message: Message, code: str, field: str | None, reason: str) -> DeadLetter:
        topic, partition, offset, timestamp_ms, key, value = message
        name = self._follower.name
        letter_id = derived_id("dlq", name, topic, str(partition), str(offset))
        metrics.DEAD_LETTERS.labels(str(code)).inc()
        reason, field = reason[:REASON_MAX], field and field[:REASON_MAX]
        if value is not None and len(value) > VALUE_MAX:
            reason = f"{reason} (its {len(value):,} bytes are too many for a dead letter: they are only where it came from)"
            value = None
        if key is not None and len(key) > KEY_MAX:
            key = None
        self._log.warning("dead letter", dead_letter_id=letter_id, topic=topic, partition=partition, offset=offset, code=str(code), field=field)
        return DeadLetter(
            dead_letter_id=letter_id,
            app=name,
            topic=topic,
            partition=partition,
            offset=offset,
            code=str(code),
            field=field,
            reason=reason,
            key=key,
            value=value,
            at_ms=min(max(0, timestamp_ms), EPOCH_MS_MAX),
        )

    async def _pause(self, error: Unavailable, pause_s: float, lane: Lane | None) -> float:
        """Waits before another try; returns how long to wait the next time."""
        metrics.RETRIES.labels(error.code).inc()
        self._log.warning("unavailable, will try again", code=error.code, reason=str(error), pause_s=pause_s)
        if lane:
            lane.pulse += 1
        await asyncio.sleep(pause_s)
        return min(2 * pause_s, BACKOFF_S_MAX)

    async def _tell(self, records: Sequence[Record], lane: Lane | None = None) -> None:
        """Writes the records, in order, and returns when the log has them all. From the first that failed on, all go again."""
        pause_s = BACKOFF_S
        left = list({_id(record): record for record in records if not self._is_written(record)}.values())
        while left:
            topics = [TOPIC_OF[type(record)] for record in left]
            told = [self._bus.tell(t, str(getattr(r, t.key)), encode(r)) for t, r in zip(topics, left, strict=True)]
            results = await asyncio.gather(*told, return_exceptions=True)
            failed = next((i for i, result in enumerate(results) if result is not None), len(left))
            for topic, record in zip(topics[:failed], left[:failed], strict=True):
                metrics.TOLD.labels(topic.name).inc()
                self._remember(getattr(record, record.__struct_fields__[0]))
            left = left[failed:]
            if left:
                error = results[failed]
                if not isinstance(error, LogUnavailable):
                    raise error or AssertionError("a result that is neither None nor an error")
                pause_s = await self._pause(error, pause_s, lane)

    def _remember(self, record_id: str) -> None:
        """What was written is not written again, though what it follows from may lie in the log twice."""
        ids = self._written.ids
        ids[record_id] = None
        if len(ids) > IDS_MAX:
            del ids[next(iter(ids))]

    def _is_written(self, record: Record) -> bool:
        identity = getattr(record, record.__struct_fields__[0])
        written = identity in self._written.ids
        if written:
            metrics.SKIPPED.labels(TOPIC_OF[type(record)].name).inc()
        return written

    async def _settle(self, lane: Lane, turn: Turn) -> None:
        """Lets be committed what may be."""
        done: Mapping[Place, int] = {(lane.topic.name, partition): offset for partition, offset in lane.done.items()}
        pause_s = BACKOFF_S
        while self._follower.settle and done:
            try:
                done = await self._follower.settle(self._world, done)
                break
            except Unavailable as error:
                pause_s = await self._pause(error, pause_s, lane)
        turn.next.update(done)

    async def repeat(self, seconds: float, work: Callable[[Any, frozenset[int]], Awaitable[Sequence[Record]]]) -> None:
        """Does what an app has to do every so often, for the partitions of its first topic that are ours."""
        first = next(iter(self.lanes))
        while True:
            await asyncio.sleep(seconds)
            turn = self.reading.turn
            await turn.prepared.wait()
            if turn.over or self._stopping:
                continue
            with suppress(Unavailable):
                await self._tell(await work(self._world, turn.partitions(first)))
                for lane in self.lanes.values():
                    await self._settle(lane, turn)

    # What Faust tells us.

    async def on_revoked(self, app: Any) -> None:
        """Lets the batches under way finish (for as long as the group waits), commits, and forgets what waits."""
        self.reading.turn.end()
        for lane in self.lanes.values():
            lane.empty()
        await self._rest(SESSION_S / 2)
        await app.consumer.commit()
        self.reading.begin(Turn())

    def on_assigned(self, places: frozenset[Place]) -> None:
        """A new turn, prepared beside Faust's own work on it."""
        self.reading.turn.end()
        self.reading.begin(Turn(places))
        metrics.ASSIGNED.set(len(places))
        self.begin(self._prepare(self.reading.turn))

    async def say_dropped(self, places: frozenset[Place]) -> None:
        """Warns of each of these places whose next record the brokers dropped before it was followed."""
        with suppress(Unavailable):
            committed = await asyncio.to_thread(committed_of, self._settings, self._follower.name, self._follower.reads)
            for topic in self._follower.reads:
                partitions = {partition for name, partition in places if name == topic.name}
                for partition, (first, _) in (await asyncio.to_thread(end_offsets, self._settings, topic, partitions)).items():
                    offset = committed.get((topic.name, partition), first)
                    if offset < first:
                        self._log.warning(
                            "the brokers dropped records before they were followed", topic=topic.name, partition=partition, next=offset, first=first
                        )

    async def _prepare(self, turn: Turn) -> None:
        pause_s = BACKOFF_S
        async with self._preparing:  # a turn that is still at it, though it is over, must not replace what this one reads
            while not turn.over:
                try:
                    self._written = await asyncio.to_thread(self._read_written, {partition for _, partition in turn.places})
                    if self._follower.assigned:
                        await self._follower.assigned(self._world, turn.places)
                    break
                except Unavailable as error:
                    pause_s = await self._pause(error, pause_s, None)
        if turn.over:
            return
        turn.prepared.set()
        tell_ready(self._settings, self._follower.name)
        self._log.info("following", partitions=sorted(f"{topic}:{partition}" for topic, partition in turn.places))

    def _read_written(self, partitions: set[int]) -> Written:
        written = Written({}, set())
        for topic in self._follower.writes:
            count = max(1, TAIL // max(1, len(partitions)))
            for batch in read_tail(self._settings, topic, partitions, count):
                for message in batch:
                    with suppress(InvalidRecord):
                        record: Any = decode(topic.record, message.value)
                        written.ids[_id(record)] = None
                        written.sources.add((record.source_topic, record.source_partition, record.source_offset))
        return written

    async def _rest(self, timeout_s: float) -> None:
        """Waits for the batches under way; if they finish in time, lets the world finish too."""
        turn = self.reading.turn
        try:
            await asyncio.wait_for(asyncio.gather(*(lane.idle.wait() for lane in self.lanes.values())), timeout_s)
            if self._follower.leaving and turn.places:
                await self._follower.leaving(self._world)
                for lane in self.lanes.values():
                    await asyncio.wait_for(self._settle(lane, turn), timeout_s)
        except (TimeoutError, Unavailable) as error:
            self._log.warning("work was left unfinished: it will be done again", reason=repr(error))

    async def finish(self) -> None:
        """Begins no batch any more, and lets those under way finish."""
        self._stopping = True
        self.reading.turn.end()
        for task in self._tasks:
            task.cancel()
        if not self.failed:
            await self._rest(FINISH_S)


def _id(record: Any) -> str:
    """A record's id: its first field (`schemas/`)."""
    return str(getattr(record, record.__struct_fields__[0]))


def assembled(harness: Harness, name: str, settings: Settings) -> Any:
    """The Faust app with one agent for each topic. Faust is imported here: what an app is, others ask too (the rebuilding, the commands)."""
    app = named("streams.consumer:faust_app")(name, harness.reading, settings)

    def agent(lane: Lane) -> None:
        async def follow(_: Any) -> None:
            await harness.follow(lane)

        app.agent(app.topic(lane.topic.name, value_serializer="raw"), name=f"{name}.{lane.topic.name}", concurrency=1)(follow)

    for lane in harness.lanes.values():
        agent(lane)

    async def on_revoked(*_: Any, **__: Any) -> None:
        await harness.on_revoked(app)

    async def on_assigned(_: Any, places: Any, **__: Any) -> None:
        ours = frozenset((topic, partition) for topic, partition in places)
        harness.on_assigned(ours)
        harness.begin(harness.say_dropped(ours))

    app.on_partitions_revoked.connect(on_revoked, weak=False)
    app.on_partitions_assigned.connect(on_assigned, weak=False)
    return app


def run_follower(follower: Follower, make_world: Callable[[Settings, Bus], Awaitable[Any]], settings: Settings) -> int:
    """Runs an app until SIGTERM or SIGINT (returns 0) or until something that nobody foresaw happens (returns 1).

    `make_world(settings, bus)` is called once, in the loop; if the world has a coroutine `close`, it is called at the end.
    A stall ends the process from within with status `watchdog.STALLED`.
    """
    journal.start(settings, follower.name)
    end_metrics = metrics.serve(settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(follower, make_world, settings))
    finally:
        end_metrics()


async def _run(follower: Follower, make_world: Callable[[Settings, Bus], Awaitable[Any]], settings: Settings) -> int:
    forget_ready(settings, follower.name)
    log = journal.logger()
    bus = KafkaBus(settings, linger_ms=1)
    world = await make_world(settings, bus)
    harness = Harness(follower, world, bus, settings)
    app = assembled(harness, follower.name, settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, harness.stop)
    watchdog = Watchdog(follower.name, harness.reading, settings)
    watchdog.start()
    harness.begin(_until_crashed(app))
    for seconds, work in follower.every:
        harness.begin(harness.repeat(seconds, work))
    try:
        await harness.fault
        log.info("stopping")
        status = 0
    except Exception as error:
        log.critical("failed", error=type(error).__name__, reason=str(error), exc_info=error)
        status = FAILED
    last_resort = threading.Timer(2.5 * FINISH_S, os._exit, (status or FAILED,))
    last_resort.daemon = True
    last_resort.start()
    watchdog.stop()
    await harness.finish()
    with suppress(TimeoutError):
        await asyncio.wait_for(app.stop(), FINISH_S)
    await bus.close()
    if close := getattr(world, "close", None):
        await close()
    forget_ready(settings, follower.name)
    return FAILED if harness.failed else status


async def _until_crashed(app: Any) -> None:
    """Starts the Faust app; raises if one of its services crashes."""
    await app.start()
    await app._crashed.wait()
    raise app.crash_reason or RuntimeError("Faust crashed")
