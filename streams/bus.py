"""The way to and from the log: tell a record and know that all in-sync replicas have it; read a topic from end to end."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.avro import decode
from schemas.errors import HoldfastError, InvalidRecord, LogUnavailable
from schemas.record import Record
from schemas.topics import Topic
from streams.bell import Bell
from streams.settings import Settings, librdkafka

_LOGGER = logging.getLogger("librdkafka")
QUERY_S = 10.0
READ_MAX = 10_000
POLL_S, IDLE_S = 0.001, 0.1
"""How often acknowledgements are looked for while records are under way and nothing rings (uvloop's timers have milliseconds), and otherwise."""
GROUP = "holdfast-reader"  # a consumer must name one; nothing is ever committed under it


class Message(NamedTuple):
    """One record as it lies in the log; `timestamp_ms` is the broker's or the producer's, milliseconds since 1970-01-01 UTC."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


Headers = tuple[tuple[str, bytes], ...]
"""What goes with a record and is no part of it."""


class Bus(Protocol):
    """What `decide` and the apps need of the log."""

    def tell(self, topic: Topic, key: str, value: bytes, headers: Headers = ()) -> asyncio.Future[None]:
        """Sends; the future is done once all in-sync replicas have it.

        LogUnavailable: indefinite, it may be in the log or not. InvalidRecord: it is too large, and is not in the log.
        """
        ...

    @property
    def well(self) -> bool:
        """Whether the log takes what it is told: false from when it is late until it acknowledges again."""
        ...

    async def close(self) -> None:
        """Waits (bounded) for what is under way and lets go."""
        ...


PATIENCE_MS = 10_000


def patient(settings: Settings) -> Settings:
    """The settings of a command: a person waits longer for a new connection to the log than a payment may."""
    return settings.changed(produce_timeout_ms=max(settings.produce_timeout_ms, PATIENCE_MS))


class KafkaBus:
    """An idempotent acks=all producer, polled by the loop itself when librdkafka rings: no thread of Python's competes for the interpreter.

    Partitions are those of Java's and aiokafka's default (murmur2 of the key). After a fatal producer error (the idempotent
    session is lost) it makes itself a new producer: what was under way is indefinite, what comes after is not touched.
    """

    def __init__(self, settings: Settings, linger_ms: float = 0) -> None:
        self._conf = librdkafka(settings) | {
            "acks": "all",
            "enable.idempotence": True,
            "delivery.timeout.ms": settings.produce_timeout_ms,
            "partitioner": "murmur2_random",
            "linger.ms": linger_ms,
            "socket.nagle.disable": True,
            "queue.buffering.max.messages": 1_000_000,
        }
        self._timeout_s = settings.produce_timeout_ms / 1000
        self._late_s = settings.request_deadline_ms / 2000
        self._failed, self._heard_at = False, 0.0
        self._loop = asyncio.get_running_loop()
        self._under_way = 0
        self._waiting: deque[tuple[Topic, str, bytes, Headers, asyncio.Future[None]]] = deque()
        self._lost = False
        self._closed = False
        self._bell = Bell.known()
        self._look_s = POLL_S if self._bell is None else IDLE_S
        if self._bell is not None:
            self._loop.add_reader(self._bell.number, self._rung)
        self._producer = self._new_producer()
        self._pump = self._loop.call_later(IDLE_S, self._serve)

    def tell(self, topic: Topic, key: str, value: bytes, headers: Headers = ()) -> asyncio.Future[None]:
        """See `Bus.tell`. Where the producer's queue is full the record waits its turn, for as long as a delivery may take."""
        future: asyncio.Future[None] = self._loop.create_future()
        if self._waiting:
            self._wait_for_room(topic, key, value, headers, future)
            return future
        try:
            self._produce(topic, key, value, headers, future)
        except BufferError:
            self._wait_for_room(topic, key, value, headers, future)
        return future

    @property
    def well(self) -> bool:
        """See `Bus.well`. Late is half of the time that a host has: a record that waits, and nothing acknowledged for so long."""
        return not self._failed and (not self._under_way or self._loop.time() - self._heard_at < self._late_s)

    async def close(self) -> None:
        """Waits for what is under way, at most as long as a delivery may take; then it is indefinite."""
        deadline = self._loop.time() + self._timeout_s
        while (self._under_way or self._waiting) and self._loop.time() < deadline:
            await asyncio.sleep(POLL_S)
        self._closed = True
        self._pump.cancel()
        if self._bell is not None:
            self._loop.remove_reader(self._bell.number)
            self._bell.close()
            self._bell = None

    def on_error(self, error: KafkaError) -> None:
        """Called by librdkafka within `poll`. Only a fatal error matters: the rest heals by itself."""
        if error.fatal():
            self._lost = True

    def _new_producer(self) -> Any:
        producer = Producer(self._conf | {"error_cb": self.on_error}, logger=_LOGGER)
        if self._bell is not None:
            self._bell.hang(producer)
        return producer

    def _produce(self, topic: Topic, key: str, value: bytes, headers: Headers, future: asyncio.Future[None]) -> None:
        try:
            delivered = functools.partial(self._delivered, future)
            if headers:
                self._producer.produce(topic.name, value, key.encode(), on_delivery=delivered, headers=list(headers))
            else:
                self._producer.produce(topic.name, value, key.encode(), on_delivery=delivered)
        except KafkaException as error:
            if error.args[0].fatal():
                self._lost = True
            future.set_exception(_named(error.args[0]))
            return
        self._under_way += 1
        if self._under_way == 1 and not self._closed:
            self._heard_at = self._loop.time()
            if self._look_s < IDLE_S:
                self._pump.cancel()
                self._pump = self._loop.call_later(self._look_s, self._serve)

    def _delivered(self, future: asyncio.Future[None], error: KafkaError | None, _: object) -> None:
        """Called by librdkafka within `poll`, so in the loop's own thread."""
        self._under_way -= 1
        self._failed = error is not None and error.code() != KafkaError.MSG_SIZE_TOO_LARGE
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(_named(error))

    def _rung(self) -> None:
        """Something was acknowledged, or there is an error."""
        if self._bell is not None:
            self._bell.heard()
            self._take()

    def _serve(self) -> None:
        """Looks without having been rung for, as often as there is something under way, and now and then."""
        try:
            self._take()
        finally:
            self._pump = self._loop.call_later(self._look_s if self._under_way or self._waiting else IDLE_S, self._serve)

    def _take(self) -> None:
        """Takes what was acknowledged."""
        if self._producer.poll(0):
            self._heard_at = self._loop.time()
        if self._lost:
            self._renew()
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            topic, key, value, headers, future = self._waiting[0]
            try:
                if not future.done():
                    self._produce(topic, key, value, headers, future)
            except BufferError:
                return
            self._waiting.popleft()

    def _renew(self) -> None:
        """A new producer for the lost one, whose records fail as indefinite."""
        lost, self._producer, self._lost = self._producer, self._new_producer(), False
        lost.purge(in_queue=True, in_flight=True, blocking=False)
        lost.flush(self._timeout_s)

    def _wait_for_room(self, topic: Topic, key: str, value: bytes, headers: Headers, future: asyncio.Future[None]) -> None:
        self._waiting.append((topic, key, value, headers, future))
        self._loop.call_later(self._timeout_s, _give_up, future)


def _named(error: KafkaError) -> HoldfastError:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return InvalidRecord("value", "is larger than the log takes", code="too_large")
    return LogUnavailable(error.str())


def _give_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(LogUnavailable("not acknowledged in time: the producer's queue was full"))


class ListBus:
    """A log in memory, for worlds: what was told, by topic, in order. `down` makes it answer like a log that does not."""

    def __init__(self) -> None:
        self.told: dict[str, list[Message]] = defaultdict(list)
        self.down = False

    def tell(self, topic: Topic, key: str, value: bytes, headers: Headers = ()) -> asyncio.Future[None]:
        """See `Bus.tell`: acknowledged at once, or LogUnavailable at once while `down`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.down:
            future.set_exception(LogUnavailable("down"))
            return future
        told = self.told[topic.name]
        told.append(Message(topic.name, 0, len(told), 0, key.encode(), value))
        future.set_result(None)
        return future

    def records(self, topic: Topic) -> list[Record]:
        """What was told to a topic, decoded, oldest first."""
        return [decode(topic.record, message.value) for message in self.told[topic.name]]

    @property
    def well(self) -> bool:
        """See `Bus.well`."""
        return not self.down

    async def close(self) -> None:
        """Nothing to wait for."""


def read_topic(
    settings: Settings, topic: Topic, start: Mapping[int, int] | None = None, partitions: Collection[int] | None = None
) -> Iterator[list[Message]]:
    """All that a topic holds at the time of the call, in batches; within a partition in order of offset.

    `start`: first offset to read by partition (default: the oldest). `partitions`: which (default: all).
    LogUnavailable if the brokers do not answer.
    """
    consumer = reader(settings)
    try:
        ends = _ends(consumer, topic, partitions)
        first = {p: max(low, (start or {}).get(p, low)) for p, (low, _) in ends.items()}
        yield from _read(consumer, topic, first, {p: high for p, (_, high) in ends.items() if first[p] < high})
    except KafkaException as error:
        raise LogUnavailable(f"{topic.name}: {error}") from error
    finally:
        consumer.close()


def read_tail(settings: Settings, topic: Topic, partitions: Collection[int], count: int) -> Iterator[list[Message]]:
    """The last `count` records of each of these partitions (those that the topic has), in batches."""
    start = {p: high - count for p, (_, high) in end_offsets(settings, topic, partitions).items()}
    return read_topic(settings, topic, start, list(start))


def end_offsets(settings: Settings, topic: Topic, partitions: Collection[int] | None = None) -> dict[int, tuple[int, int]]:
    """Oldest offset and next offset of each partition; empty for a topic that is not there. LogUnavailable without an answer."""
    consumer = reader(settings)
    try:
        return _ends(consumer, topic, partitions)
    except KafkaException as error:
        raise LogUnavailable(f"{topic.name}: {error}") from error
    finally:
        consumer.close()


def committed_offsets(settings: Settings, group: str, topic: Topic) -> dict[int, int]:
    """By partition the offset that a consumer group has committed; partitions without one are left out. LogUnavailable without an answer."""
    return {partition: offset for (_, partition), offset in committed_of(settings, group, [topic]).items()}


def committed_of(settings: Settings, group: str, topics: Iterable[Topic]) -> dict[tuple[str, int], int]:
    """The same of several topics, by topic and partition."""
    consumer = reader(settings, group)
    try:
        there = [(t.name, p) for t in topics for p in consumer.list_topics(t.name, timeout=QUERY_S).topics[t.name].partitions]
        places = consumer.committed([TopicPartition(*place) for place in there], timeout=QUERY_S)
        return {(place.topic, place.partition): place.offset for place in places if place.offset >= 0}
    except KafkaException as error:
        raise LogUnavailable(f"{group}: {error}") from error
    finally:
        consumer.close()


def reader(settings: Settings, group: str = GROUP) -> Any:
    """A consumer that commits nothing, to be assigned by hand."""
    return Consumer(
        librdkafka(settings)
        | {
            "group.id": group,
            "log_level": 0,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
            "queued.max.messages.kbytes": 16_384,
        },
        logger=_LOGGER,
    )


def _ends(consumer: Any, topic: Topic, partitions: Collection[int] | None) -> dict[int, tuple[int, int]]:
    there = consumer.list_topics(topic.name, timeout=QUERY_S).topics[topic.name].partitions
    wanted = sorted(there if partitions is None else set(partitions) & set(there))
    return {p: consumer.get_watermark_offsets(TopicPartition(topic.name, p), timeout=QUERY_S) for p in wanted}


def _read(consumer: Any, topic: Topic, first: Mapping[int, int], ends: dict[int, int]) -> Iterator[list[Message]]:
    """Reads each partition from `first` to `ends`; takes partitions out of `ends` as they are done."""
    consumer.assign([TopicPartition(topic.name, p, first[p]) for p in ends])
    silent_s = 0.0
    while ends:
        raw = consumer.consume(READ_MAX, timeout=0.2)
        silent_s = 0.0 if raw else silent_s + 0.2
        if silent_s > QUERY_S:
            raise LogUnavailable(f"{topic.name}: no record within {QUERY_S} s, and the end is not reached")
        batch = []
        for message in raw:
            partition, error = message.partition(), message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if partition not in ends:
                continue
            if error is None and message.offset() < ends[partition]:
                batch.append(Message(topic.name, partition, message.offset(), message.timestamp()[1], message.key(), message.value()))
            if message.offset() >= ends[partition] - (error is None):
                del ends[partition]
        if batch:
            yield batch
