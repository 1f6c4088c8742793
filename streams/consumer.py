"""Faust's consumer as we run it: whole batches into lanes, and no commit past a record that is in flight."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, cast

import faust
import uvloop
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from yarl import URL

from streams.bus import Message
from streams.lane import SESSION_S, Reading
from streams.settings import Settings

HEARTBEAT_S, COMMIT_S = 1.5, 1.0
POLL_S, POLL_PRESSED_S = 1.0, 0.02
FETCH_WAIT_MS = {"kafka": 500, "embedded": 50}
"""How long a broker may hold a fetch that finds nothing. The embedded one holds it so long even if something comes meanwhile."""


class Thread(driver.AIOKafkaConsumerThread):
    """Faust's thread around aiokafka's consumer, where Faust fixes how long a fetch is held."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = transport.fetch_wait_ms
        return consumer


class Consumer(driver.Consumer):
    """Three changes to Faust's.

    `_new_offset`: a partition's records finish in order, so what may be committed is what the turn says is finished, and
    nothing else (faust-streaming #606: Faust's own commits past a record in flight). `_commit_offsets`: a commit that failed
    is not remembered as done (#316). `_drain_messages`: Faust makes two asyncio tasks for each record and waits for room in
    a full buffer, which is why it must watch for a rebalance meanwhile; here a batch goes into its lane at once, a topic
    whose lane is full is not asked for more, and nothing ever waits while the flow is suspended.
    """

    @property
    def reading(self) -> Reading:
        """Put there by `faust_app`."""
        return cast(Transport, self.transport).reading

    def _new_consumer_thread(self) -> Any:
        return Thread(self, loop=self.loop, beacon=self.beacon, thread_loop=uvloop.new_event_loop())

    def _filter_tps_with_pending_acks(self, topics: object = None) -> Iterator[TP]:
        return iter([TP(*place) for place in self.reading.turn.next])

    def _new_offset(self, tp: TP) -> int | None:
        return self.reading.turn.next.get(tp)

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        ours = self.assignment()
        mine = {tp: offset for tp, offset in offsets.items() if tp in ours}
        if not mine or not await self._commit(mine):
            return False
        self._committed_offset.update(mine)
        return True

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: Faust's alarms look at streams that we do not use; `streams/watchdog.py` looks at the log itself."""

    async def _drain_messages(self, fetcher: Any) -> None:
        rewind = False
        while not (self.should_stop or fetcher.should_stop):
            if not self.flow_active:
                await self.wait(self.can_resume_flow.wait())
                continue
            reading, turn = self.reading, self.reading.turn
            if rewind:
                await self._rewind()
                rewind = False
            wanted = {tp for tp in self._get_active_partitions() if reading.lanes[tp.topic].has_room}
            pressed = not all(lane.has_room for lane in reading.lanes.values())
            if not wanted:
                await asyncio.sleep(POLL_PRESSED_S)
                continue
            records = await self._getmany(wanted, POLL_PRESSED_S if pressed else POLL_S)
            if turn is not reading.turn or not self.flow_active:
                rewind = bool(records)
                continue
            for tp, found in records.items():
                reading.lanes[tp.topic].put([Message(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value) for r in found])

    async def _rewind(self) -> None:
        """Back to what was committed (or to the beginning), after records of one turn were read in another and dropped."""
        await self._thread.call_thread(_rewind, self._thread._ensure_consumer())


async def _rewind(consumer: Any) -> None:
    """In the consumer's thread. Unlike aiokafka's `seek_to_committed`, also where nothing was committed yet."""
    for tp in consumer.assignment():
        offset = await consumer.committed(tp)
        consumer.seek(tp, offset or (await consumer.beginning_offsets([tp]))[tp])


class Transport(driver.Transport):
    """Faust's transport with our consumer."""

    Consumer = Consumer
    reading: Reading
    fetch_wait_ms: int


def faust_app(name: str, reading: Reading, settings: Settings) -> Any:
    """The Faust app: raw bytes, no tables, no web server, no topic made by it; group and app are called `name`."""
    brokers = [URL(f"kafka://{address}") for address in settings.kafka_bootstrap.split(",")]
    folder = settings.data_dir / "faust"
    folder.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        name,
        broker=brokers,
        broker_credentials=_credentials(settings),
        datadir=str(folder / name),
        store="memory://",
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=SESSION_S,
        broker_heartbeat_interval=HEARTBEAT_S,
        broker_commit_interval=COMMIT_S,
        broker_request_timeout=30.0,
        broker_max_poll_records=settings.batch_max,
        broker_max_poll_interval=3600.0,  # our watchdog sees a stall sooner
        stream_buffer_maxsize=256,
        stream_wait_empty=False,
    )
    app.transport = transport = Transport(brokers, app)
    transport.reading, transport.fetch_wait_ms = reading, FETCH_WAIT_MS[settings.broker_kind]
    return app


def _credentials(settings: Settings) -> Any:
    secure = ssl.create_default_context(cafile=settings.kafka_ca_file or None) if settings.kafka_protocol.endswith("SSL") else None
    if settings.kafka_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=settings.kafka_username, password=settings.kafka_password, mechanism=settings.kafka_sasl_mechanism, ssl_context=secure
        )
    return secure and faust.SSLCredentials(secure)
