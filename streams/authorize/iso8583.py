"""The ISO 8583 door: many requests in flight on each connection, decided by the `decide` of every door, answered with field 39 from one table."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple, cast

import msgspec

from models.answer import FIELD_39, answer_name
from models.clearing import Asked, named
from models.hold import Book
from models.stand_in import is_stand_in
from schemas import avro
from schemas.decision import Decision, Outcome
from schemas.errors import Conflict, InvalidRecord, SettingsError, Unavailable
from schemas.hold import ClearingKind
from schemas.transaction import Transaction, sound
from streams import answers, journal, metrics
from streams.asked import Origin
from streams.authorize.codec import BadMessage, Codec, Fields, Message, Unreadable
from streams.authorize.dialect import Dialect
from streams.authorize.elements import Elements, Secrets
from streams.authorize.iso_codes import CURRENCY_NUMBERS
from streams.authorize.life import clear, follow_up
from streams.authorize.under_way import SHARE, UnderWay
from streams.world import World

ISO8583 = Origin("iso8583", -1, -1)
FRAME_BYTES_MAX = 8_192
FRAME_S_MAX = 5.0
"""A frame that has begun is whole by then, or the connection is cut."""
SILENT_S_MAX = 900.0
UNREAD_S_MAX = 10.0
"""Who does not read answers for so long is cut."""
UNREAD_BYTES_MAX = 1_048_576
IN_FLIGHT_MAX = 4_096
"""Requests of one connection that are not answered yet; beyond it nothing more is read from it."""
LINES_MAX = 256
DRAIN_S = 5.0
BALANCE_END = 10**12
LOOK_S = 1.0
WORKS = {
    "10": "authorize",
    "20": "authorize",
    "12": "capture",
    "22": "capture",
    "40": "reverse",
    "42": "reverse",
    "80": "network",
    "82": "network",
}
"""What a request asks for, by class and function: the second and third digit of its type."""
REPEATS = "135"
"""The last digit of a message type that repeats another."""
HeaderName = Literal["binary2", "binary4", "text4"]
Peers = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
"""From where hosts come; empty: from anywhere."""


def peers_of(text: str) -> Peers:
    """The networks that a setting names; it must name one. SettingsError for what is none."""
    try:
        peers = tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"HOLDFAST_ISO8583_PEERS: {error}; 0.0.0.0/0,::/0 is everybody") from None
    return peers


class Answer(NamedTuple):
    """What is said to a request: a row of FIELD_39, and the elements besides those that are echoed."""

    name: str
    fields: Fields


OVERLOADED = Answer("overloaded", {})


class Header(NamedTuple):
    """How a frame's length stands before it: so many bytes, as a number or as digits."""

    size: int
    text: bool

    def length(self, frame: bytes | bytearray) -> int | None:
        """The length that the first bytes say; None if it is none."""
        raw = bytes(frame[: self.size])
        if self.text:
            return int(raw) if raw.isdigit() else None
        return int.from_bytes(raw)

    def framed(self, message: bytes) -> bytes:
        """The message behind its length."""
        size = len(message)
        return (f"{size:0{self.size}}".encode() if self.text else size.to_bytes(self.size)) + message


HEADERS: dict[HeaderName, Header] = {"binary2": Header(2, False), "binary4": Header(4, False), "text4": Header(4, True)}


class Desk:
    """Answers messages: what they ask is decided, captured or reversed in one World."""

    def __init__(self, world: World, dialect: Dialect, secrets: Secrets, deadline_ms: int) -> None:
        self._world, self._dialect = world, dialect
        self._elements = Elements(dialect, secrets)
        self._under_way = UnderWay(world, deadline_ms, ISO8583)
        self._deadline_s = deadline_ms / 1000
        self._v1993 = dialect.version == 1993
        self.codec = Codec(dialect)
        self.network_part = dialect.map.network.number

    def work(self, mti: str) -> str:
        """What a message type asks for: a row of WORKS, `response` (nothing), or `unknown`."""
        if mti[2] in "13579":  # whatever its version and class: who answers answers to another gateway has no end of them
            return "response"
        if mti[0] != ("1" if self._v1993 else "0") or mti[1] not in "1248":
            return "unknown"
        return WORKS.get(mti[1:3], "unknown")

    async def answer(self, work: str, message: Message, heard_s: float) -> Answer:
        """The answer to a request, whatever happens. `heard_s` is when it was read (`perf_counter`): from then on its host waits."""
        try:
            return await self._works[work](self, message, self._world.clock_ms(), heard_s)
        except InvalidRecord as error:
            return self.refused(error.code if error.code in FIELD_39 else "format_error", error.code, error.field)
        except Conflict as error:
            return self.refused("transaction_conflict", error.code)
        except Unavailable as error:
            return self.refused(error.code if error.code in FIELD_39 else "error", error.code)
        except TimeoutError:
            return self.refused("deadline", "deadline")
        except Exception as error:  # noqa: BLE001 # a bug must not take the line down, and its text may hold what the message held
            journal.logger().error("a message could not be answered", work=work, error=type(error).__name__)
            return self.refused("error", "error")

    def refused(self, name: str, code: str, field: str | None = None) -> Answer:
        """An answer that is counted and said in the log, by code and element alone."""
        metrics.REFUSED.labels(code=code).inc()
        journal.logger().info("refused", door="iso8583", code=code, field=field)
        return Answer(name, {})

    def network(self, fields: Fields) -> str | None:
        """Which network management a message asks for, if it is one that we do."""
        return self._dialect.network.get(self._dialect.map.network.of(fields) or "")

    def reply(self, request: Message, answer: Answer) -> bytes:
        """The bytes of the answer: the request's own elements that the dialect echoes, the response code, and what the answer adds."""
        fields = {number: request.fields[number] for number in self._dialect.echo if number in request.fields}
        fields |= answer.fields
        code = FIELD_39[answer.name]
        fields[self._dialect.map.response.number] = code.v1993 if self._v1993 else code.v1987
        mti = request.mti
        answered = f"{mti[:2]}{int(mti[2]) | 1}{int(mti[3]) & ~1}"
        return self.codec.encode(Message(request.prefix, answered, fields))

    def turned_away(self, work: str) -> Answer | None:
        """The answer to what cannot be answered in time, said before anything of it is read; None: it can. Only new authorizations are refused."""
        return None if work != "authorize" or self._under_way.admits() else OVERLOADED

    def _left_s(self, heard_s: float) -> float:
        """How long its host waits yet. TimeoutError if it does no more: it waited behind others."""
        left_s = self._deadline_s - (time.perf_counter() - heard_s)
        if left_s <= 0:
            raise TimeoutError
        return left_s

    async def _authorize(self, message: Message, now_ms: int, heard_s: float) -> Answer:
        started = time.perf_counter()
        elements, fields = self._elements, message.fields
        original = elements.original(fields)
        txn = elements.transaction(fields, elements.key(fields), now_ms)
        if original is not None:
            async with asyncio.timeout(self._left_s(heard_s)):
                if running := self._under_way.of(original.transaction_id):
                    await asyncio.wait(running)
                raised = await follow_up(txn, original.transaction_id, self._world, now_ms)
            if not isinstance(raised, Transaction):
                return self.refused(raised, raised)
            txn = raised
        if message.mti[3] in REPEATS:
            async with asyncio.timeout(self._left_s(heard_s)):
                txn = await self._as_first(txn)
        made, _ = await self._under_way.answered(sound(txn, now_ms, self._world.future_ms_max), now_ms, self._left_s(heard_s))
        decision = made.decision or avro.decode(Decision, made.message)
        if not is_stand_in(decision.degradations):
            metrics.decided(decision.outcome, decision.degradations, time.perf_counter() - started)
        journal.decided(decision)
        added: Fields = {}
        if decision.outcome is Outcome.APPROVE:
            added[self._dialect.map.approval.number] = decision.decision_id[4:10].upper()
            if decision.approved_minor is not None:
                added |= self._in_part(decision, decision.approved_minor)
            if elements.asks_balance(fields) and self._dialect.map.balance is not None:
                left_s = self._deadline_s * SHARE - (time.perf_counter() - heard_s)
                for number, amounts in (await self._available(self._dialect.map.balance.number, decision, now_ms, left_s)).items():
                    added[number] = added.get(number, "") + amounts
        return Answer(answer_name(decision), added)

    async def _as_first(self, txn: Transaction) -> Transaction:
        """A repeat as what it repeats: it may carry the time of its own sending."""
        first = self._under_way.asked(txn.transaction_id)
        if first is None:
            try:
                kept = await self._world.answers.of_transaction(txn.transaction_id)
            except Unavailable:
                return txn
            first = None if kept is None else avro.decode(Decision, kept.message).transaction
        return txn if first is None or msgspec.structs.replace(txn, at_ms=first.at_ms) != first else first

    def _in_part(self, decision: Decision, approved_minor: int) -> Fields:
        """What is approved in place of the amount, in the account's currency too where the request was, and what was asked for."""
        row, txn = self._dialect.map, decision.transaction
        made: Fields = {row.amount.number: f"{approved_minor:012}"}
        if txn.billing_amount_minor is not None and row.billing_amount is not None and row.billing_currency is not None:
            made |= {row.billing_amount.number: f"{decision.held_minor:012}", row.billing_currency.number: CURRENCY_NUMBERS[txn.own_currency]}
        if row.original_amount is not None:
            asked = f"{txn.amount_minor:012}"
            said = f"{asked}{0:012}" if self._v1993 else f"0057{CURRENCY_NUMBERS[txn.currency]}D{asked}"
            made[row.original_amount.number] = said
        return made

    async def _available(self, number: int, decision: Decision, now_ms: int, wait_s: float) -> Fields:
        """Additional amounts: account type unspecified, amount type `available`, currency, sign, twelve digits.

        None if nobody knows them, or says them in time: the decision stands, and is what the host is to hear.
        """
        try:
            async with asyncio.timeout(wait_s):
                (content,) = answers.sound([*await self._world.books.read(decision.account_id)])
        except (Unavailable, TimeoutError):
            return {}
        book = Book.from_bytes(content)
        available = book.available_minor(now_ms)
        if not book.known or abs(available) >= BALANCE_END:
            return {}
        return {number: f"0002{CURRENCY_NUMBERS[book.currency]}{'D' if available < 0 else 'C'}{abs(available):012}"}

    async def _capture(self, message: Message, now_ms: int, heard_s: float) -> Answer:
        return await self._cleared(ClearingKind.CAPTURE, message.fields, now_ms, heard_s)

    async def _reverse(self, message: Message, now_ms: int, heard_s: float) -> Answer:
        return await self._cleared(ClearingKind.REVERSAL, message.fields, now_ms, heard_s)

    async def _cleared(self, kind: ClearingKind, fields: Fields, now_ms: int, heard_s: float) -> Answer:
        asked = self._elements.asked(kind, fields, now_ms)
        if asked.at_ms > now_ms + self._world.future_ms_max:
            raise InvalidRecord("at_ms", "is in the future", code="time_in_future")
        async with asyncio.timeout(self._left_s(heard_s)):
            if running := self._under_way.all_of(asked.transaction_id):
                await asyncio.wait(running)
            made = await clear(await self._of_its_account(asked, fields), self._world, now_ms)
        if isinstance(made, tuple):
            return Answer("captured" if kind is ClearingKind.CAPTURE else "reversed", {})
        return self.refused(made, made)

    async def _of_its_account(self, asked: Asked, fields: Fields) -> Asked:
        """The same, of the account that its original named: what follows of the same card need not name it again."""
        card, world = self._elements.card_alone(fields), self._world
        if card is None:
            return asked
        kept = await world.answers.of_transaction(asked.transaction_id)
        if kept is None:  # an increment is kept by another id than its sender's
            kept = await world.answers.of_transaction(named(asked.transaction_id, await world.answers.listed("card", card)))
        decision = None if kept is None else avro.decode(Decision, kept.message)
        if decision is None or decision.transaction.card_token != card:
            return asked
        return msgspec.structs.replace(asked, account_id=decision.account_id)

    _works: dict[str, Callable[[Desk, Message, int, float], Awaitable[Answer]]] = {  # noqa: RUF012 # a table, never changed
        "authorize": _authorize,
        "capture": _capture,
        "reverse": _reverse,
    }


class Line(asyncio.Protocol):
    """One connection of a host."""

    def __init__(self, desk: Desk, header: Header, lines: set[Line], peers: Peers = ()) -> None:
        self._desk, self._header, self._lines, self._peers = desk, header, lines, peers
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._signed_off = False
        self._heard_s = self._loop.time()
        self._read_s = 0.0
        """When what is taken now was read (`perf_counter`)."""
        self._begun_s: float | None = None
        """Since when a frame is incomplete."""
        self._unread_s: float | None = None
        """Since when the host does not read."""
        self._paused = False
        """Whether nothing is read from it: what it sends meanwhile is not late."""
        self.ends = False
        """Whether this process does: nothing is begun any more that nobody would answer."""
        self._unsent: list[bytes] = []
        self._is_reading = False
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, if there is room."""
        stream = cast(asyncio.Transport, transport)  # uvloop's are none of its kind by name
        if not self._is_allowed(stream.get_extra_info("peername")):
            metrics.CUT.labels("peer").inc()
            journal.logger().warning("connection refused", door="iso8583", peer=str(stream.get_extra_info("peername")))
            stream.abort()
            return
        if len(self._lines) >= LINES_MAX:
            stream.abort()
            return
        self._transport = stream
        stream.set_write_buffer_limits(high=UNREAD_BYTES_MAX)
        self._lines.add(self)
        metrics.LINES.set(len(self._lines))

    def _is_allowed(self, peer: Any) -> bool:
        """Whether it comes from where hosts are; everybody is where no network is named."""
        if not self._peers:
            return True
        address = ipaddress.ip_address(peer[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._peers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection. What is being decided for it goes on: the host may ask again on another one."""
        self._transport = None
        self._lines.discard(self)
        metrics.LINES.set(len(self._lines))

    def pause_writing(self) -> None:
        """The host does not read its answers: nothing more is read from it."""
        self._unread_s = self._loop.time()
        self._balance()

    def resume_writing(self) -> None:
        """It reads again."""
        self._unread_s = None
        self._balance()

    def data_received(self, data: bytes) -> None:
        """Takes every whole frame; what is left is the begin of one."""
        self._heard_s, self._read_s = self._loop.time(), time.perf_counter()
        self._buffer += data
        self._is_reading = True
        try:
            self._take_frames()
        finally:
            self._is_reading = False
            self._flush()

    def _take_frames(self) -> None:
        buffer, header, at = self._buffer, self._header, 0
        while self._transport is not None and len(buffer) - at >= header.size:
            length = header.length(buffer[at : at + header.size])
            if length is None or length > FRAME_BYTES_MAX:
                return self.cut("frame")
            end = at + header.size + length
            if len(buffer) < end:
                break
            if length:  # an empty frame keeps a connection alive
                self._frame(bytes(buffer[at + header.size : end]))
            at = end
            self._begun_s = None
        del buffer[:at]
        if not buffer:
            self._begun_s = None
        elif self._begun_s is None:
            self._begun_s = self._heard_s
        return None

    @property
    def waits(self) -> bool:
        """Whether a frame has begun and is not whole."""
        return self._begun_s is not None

    def look(self, now_s: float) -> None:
        """Cuts the connection of a host that is too slow, or that has gone."""
        if self._begun_s is not None and not self._paused and now_s - self._begun_s > FRAME_S_MAX:
            self.cut("slow")
        elif self._unread_s is not None and now_s - self._unread_s > UNREAD_S_MAX:
            self.cut("unread")
        elif now_s - self._heard_s > SILENT_S_MAX:
            self.cut("silent")

    def cut(self, why: str) -> None:
        """Ends the connection at once."""
        metrics.CUT.labels(why).inc()
        journal.logger().warning("connection cut", door="iso8583", why=why)
        self._flush()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def close(self) -> None:
        """Ends the connection once its answers are sent."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _frame(self, data: bytes) -> None:
        desk = self._desk
        try:
            message = desk.codec.decode(data)
        except BadMessage as error:
            metrics.MESSAGES.labels("broken").inc()
            if desk.work(error.message.mti) != "response":
                self._send(desk.reply(error.message, desk.refused("format_error", error.code, error.field)))
            return
        except Unreadable:
            self.cut("unreadable")
            return
        work = desk.work(message.mti)
        metrics.MESSAGES.labels(work).inc()
        if work == "network":
            self._send(desk.reply(message, self._managed(message.fields)))
        elif work == "unknown":
            self._send(desk.reply(message, desk.refused("unknown_message", "unknown_message")))
        elif work != "response" and self._signed_off:
            self._send(desk.reply(message, desk.refused("signed_off", "signed_off")))
        elif work != "response" and self.ends:
            self._send(desk.reply(message, desk.refused("overloaded", "draining")))
        elif (refused := desk.turned_away(work)) is not None:
            self._send(desk.reply(message, refused))
        elif work != "response":
            task = self._loop.create_task(self._answered(work, message, self._read_s))
            self.tasks.add(task)
            task.add_done_callback(self._done)
            if len(self.tasks) >= IN_FLIGHT_MAX:
                self._balance()

    def _managed(self, fields: Fields) -> Answer:
        """Sign on, sign off, echo."""
        work = self._desk.network(fields)
        if work is None:
            return self._desk.refused("unknown_message", "unknown_message")
        if work != "echo":
            self._signed_off = work == "sign_off"
            journal.logger().info(work, door="iso8583")
        network = self._desk.network_part
        return Answer("network", {network: fields[network]})

    async def _answered(self, work: str, message: Message, heard_s: float) -> None:
        answer = await self._desk.answer(work, message, heard_s)
        self._send(self._desk.reply(message, answer))

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if len(self.tasks) == IN_FLIGHT_MAX // 2:
            self._balance()

    def _send(self, message: bytes) -> None:
        """Sends an answer: with those that are made in the same tick where there may be some, as each write costs as much as the answer."""
        self._unsent.append(self._header.framed(message))
        if self._is_reading:
            return
        if len(self.tasks) <= 1:
            self._flush()
        elif len(self._unsent) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None and unsent:
            self._transport.write(b"".join(unsent))

    def _balance(self) -> None:
        """Reads from the host only while it reads from us and does not have too much in flight."""
        if self._transport is None or self._transport.is_closing():
            return
        paused, self._paused = self._paused, self._unread_s is not None or len(self.tasks) >= IN_FLIGHT_MAX
        if self._paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
            if paused and self._begun_s is not None:
                self._begun_s = self._loop.time()


class Gateway:
    """Listens, and ends with every answer given."""

    def __init__(self, desk: Desk, header: HeaderName, peers: Peers = (), tls: ssl.SSLContext | None = None) -> None:
        self._desk, self._header, self._peers, self._tls = desk, HEADERS[header], peers, tls
        self._lines: set[Line] = set()
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None

    async def listen(self, host: str, port: int) -> int:
        """Starts to listen; the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Line(self._desk, self._header, self._lines, self._peers),
            host,
            port,
            backlog=256,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else FRAME_S_MAX,  # until then it is no line, and nobody else would cut it
        )
        self._looking = asyncio.create_task(self._look())
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stops listening, answers what was asked (as long as `DRAIN_S`), refuses what comes meanwhile, and ends the connections."""
        if self._server is None or self._looking is None:
            return
        self._server.close()
        self._looking.cancel()
        for line in self._lines:
            line.ends = True
        under_way = [task for line in self._lines for task in line.tasks]
        if under_way:
            await asyncio.wait(under_way, timeout=DRAIN_S)
        for line in tuple(self._lines):
            line.close()
        await asyncio.sleep(0)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = asyncio.get_running_loop().time()
            for line in tuple(self._lines):
                line.look(now_s)
