"""HTTP/1.1 on one connection, under uvicorn: whole requests in, whole answers out, in order; what is too large or too slow is cut.

uvicorn keeps the sockets, the clean stop and its connections; this takes the place of its ASGI protocol, whose messages cost a
third of an authorization. httptools (the parser of Node.js) reads the bytes.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

import httptools

from streams import journal
from streams.authorize.problem import Problem

BODY_BYTES_MAX = 65_536
HEAD_BYTES_MAX = 16_384
HEADERS_MAX = 64
CONNECTIONS_MAX = 4_096
"""Of this process; who comes beyond is cut at once: those that are here keep their files and their memory."""
WAITING_MAX = 16
"""Requests that a connection may send ahead of its answers before it is not read any more."""
HANDSHAKE_S, REQUEST_S, IDLE_S, UNREAD_S = 5.0, 10.0, 75.0, 10.0
"""Who has not agreed on TLS by then, a request that is not whole, a connection that asks nothing for so long, and one that does not read its
answers, are cut."""
HEADS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n".encode()
    + {503: b"retry-after: 1\r\n", 401: b"www-authenticate: Bearer\r\n"}.get(status.value, b"")
    for status in HTTPStatus
}
"""The head of an answer by its status, all but what is its own."""
ENDS = b"request-id: %b\r\ncontent-length: %d\r\n\r\n"

Reply = tuple[int, bytes]
"""Status and JSON body."""


class Special(NamedTuple):
    """An answer with more in its head."""

    status: int
    body: bytes
    head: bytes
    """Whole lines."""
    kind: bytes = b""
    """Its content type, where it is not JSON."""


_COUNT, _PROCESS = itertools.count(1), secrets.token_hex(4)


def request_id() -> str:
    """What names a request: this process by chance, and a count."""
    return f"req_{_PROCESS}{next(_COUNT):08x}"


class Stream(NamedTuple):
    """An answer that goes on until one side ends it. The iterator is closed then."""

    head: bytes
    """Whole lines."""
    parts: AsyncIterator[bytes]


class Request(NamedTuple):
    """One request. The body is cut where it is longer than it may be, one byte beyond. Header names are in lower case."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    request_id: str = "req_0"
    heard_s: float = 0.0
    """When it was whole (`perf_counter`): from then on its host waits, behind others too. 0: now."""


class Door(Protocol):
    """What answers. `is_draining`: it will stop soon, so that connections end with the answer that they wait for."""

    is_draining: bool

    def shed(self, url: bytes) -> bytes | None:
        """The body of a `503` for what cannot be answered in time, said before anything of it is read; None: it can, and counts as asked."""
        ...

    def reply(self, request: Request) -> Awaitable[Reply | Special | Stream]:
        """The answer to one request."""
        ...


def _without_authority(target: bytes) -> bytes:
    """A target in absolute form as one in origin form, any other as it is (RFC 9112, 3.2.2: a server takes both)."""
    scheme, _, rest = target.partition(b"://")
    return b"/" + rest.partition(b"/")[2] if scheme.lower() in (b"http", b"https") else target


class HttpProtocol(asyncio.Protocol):
    """One connection. uvicorn makes it with its configuration, whose app is the door, and its server's state."""

    def __init__(self, config: Any, server_state: Any, app_state: object, _loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._door: Door = config.loaded_app
        self._state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._waiting: deque[Request] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._pouring = False
        self._last = False
        """No request is taken any more after those that wait."""
        self._half_closed = False
        """The host sends nothing more."""
        self._refusal: Problem | None = None
        """What is said after the last answer."""
        self._heard_at = self._unread_at = self._loop.time()
        self._room: asyncio.Future[None] | None = None
        """What ends when the host reads again, while it does not."""
        self._alarm: asyncio.TimerHandle | None = None
        self._in_request = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = self._body_bytes = 0
        self._untold_bytes = 0
        """What came since the parser last told of a part: it keeps a header that is not whole, and copies it whole with each piece that comes."""
        self._parts: list[bytes] = []

    # What the transport tells.

    def connection_made(self, transport: Any) -> None:
        """The connection stands."""
        self._transport = transport
        if len(self._state.connections) >= CONNECTIONS_MAX:
            self._last = True
            transport.abort()
            return
        self._state.connections.add(self)
        self._alarm = self._loop.call_later(REQUEST_S, self._look)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection fell. What is being decided goes on: the host may ask again."""
        self._state.connections.discard(self)
        self._last = True
        self._waiting.clear()
        self._roomy()
        self._stop_pouring()
        if self._alarm is not None:
            self._alarm.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._last:
            return  # no request is taken any more
        self._untold_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_after_answers()  # nothing is upgraded here: what was asked is answered, what follows is of no known kind
        except httptools.HttpParserError:
            self._refuse(Problem("bad_request"))
        if self._untold_bytes > HEAD_BYTES_MAX:
            self._refuse(Problem("head_too_large", param="headers"))

    def eof_received(self) -> bool:
        """The host sends nothing more; what it asked is answered first. A stream ends: nothing else is heard of a host that goes away."""
        self._last = self._half_closed = True
        self._stop_pouring()
        return self._answering is not None and self._transport.get_extra_info("sslcontext") is None  # TLS has no half-closed connection here

    def pause_writing(self) -> None:
        """The host does not read: nothing more is read of it either, and nothing answered."""
        self._room, self._unread_at = self._loop.create_future(), self._loop.time()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The host reads again."""
        self._roomy()
        if self._answering is None:
            self._transport.resume_reading()

    def shutdown(self) -> None:
        """uvicorn stops: what was asked, or has begun to come, is answered, then the connection ends. A stream ends now: its host comes again."""
        self._stop_pouring()
        if not self._in_request:
            self._end_after_answers()

    # What the parser tells.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._headers, self._parts, self._head_bytes, self._body_bytes = b"", [], [], 0, 0
        self._in_request, self._in_head, self._heard_at, self._untold_bytes = True, True, self._loop.time(), 0

    def on_url(self, url: bytes) -> None:
        """The target, or a part of it."""
        self._url += url
        self._untold_bytes = 0
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. What comes after a body is counted and left: it cannot say who asks, or how (RFC 9110, 6.5.1)."""
        self._untold_bytes = 0
        if self._in_head:
            self._headers.append((name.lower(), value.rstrip(b" \t")))
        self._count_head(len(name) + len(value) if len(self._headers) <= HEADERS_MAX else HEAD_BYTES_MAX + 1)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        if any(name == b"expect" and value.lower() == b"100-continue" for name, value in self._headers):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of the body; beyond the most there may be, one byte is kept so that this can be seen."""
        self._untold_bytes = 0
        room = BODY_BYTES_MAX + 1 - self._body_bytes
        if room > 0:
            self._parts.append(body[:room])
            self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_request, self._heard_at = False, self._loop.time()
        if self._last:
            return
        if self._answering is None and not self._door.is_draining and (shed := self._door.shed(self._url)) is not None:
            self._write((503, shed), request_id(), keep_alive=True)
            self._last = not self._parser.should_keep_alive()
            if self._last:
                self._end()
            return
        path, query = self._url, b""
        if b"://" in path:
            path = _without_authority(path)
        if b"?" in path:
            path, _, query = path.partition(b"?")
        text = path.decode("latin-1")
        keep_alive = bool(self._parser.should_keep_alive())
        method = self._parser.get_method().decode("latin-1")
        text = unquote(text) if "%" in text else text
        body = b"".join(self._parts)
        self._waiting.append(Request(method, text, query.decode("latin-1"), tuple(self._headers), body, request_id(), time.perf_counter()))
        self._last = not keep_alive
        if self._answering is None:
            self._answering = self._loop.create_task(self._answer_all())
            self._state.tasks.add(self._answering)
            self._answering.add_done_callback(self._state.tasks.discard)
        elif len(self._waiting) >= WAITING_MAX:
            self._transport.pause_reading()

    # What is done.

    async def _answer_all(self) -> None:
        """Answers what waits, in order."""
        while self._waiting:
            if self._room is not None:
                await self._room
                continue
            request = self._waiting.popleft()
            try:
                made = await self._door.reply(request)
            except Exception as error:  # noqa: BLE001 a bug must not leave the host without an answer
                journal.logger().error("a request could not be answered", path=request.path, request_id=request.request_id, exc_info=error)
                made = Problem("internal").reply(request.request_id)
            if isinstance(made, Stream):
                await self._pour(made, request)
                return
            self._last = self._last or (self._door.is_draining and not self._waiting)
            more = bool(self._waiting) or self._refusal is not None or not self._last
            self._write(made, request.request_id, more, request.method != "HEAD")
            self._state.total_requests += 1
        self._answering = None
        if self._last:
            self._end()
        elif self._room is None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def _pour(self, stream: Stream, request: Request) -> None:
        """Writes what comes, as fast as the host reads; the connection ends with it."""
        self._pouring = True
        parts: Any = stream.parts
        try:
            if not self._transport.is_closing():
                head = b"HTTP/1.1 200 OK\r\n%brequest-id: %b\r\nconnection: close\r\n\r\n"
                self._transport.write(head % (stream.head, request.request_id.encode()))
            async for part in parts:
                if self._room is not None:
                    await self._room
                if self._transport.is_closing() or self._half_closed:
                    break
                self._transport.write(part)
        except asyncio.CancelledError:
            pass  # the host has gone, or this process ends
        except Exception as error:  # noqa: BLE001 the host comes again, and says what it had
            journal.logger().error("a stream ended", path=request.path, request_id=request.request_id, exc_info=error)
        finally:
            await parts.aclose()
            self._answering, self._last = None, True
            self._waiting.clear()
            self._end()

    def _write(self, made: Reply | Special, name: str, keep_alive: bool, whole: bool = True) -> None:
        if not self._transport.is_closing():
            ends = ENDS if keep_alive else b"connection: close\r\n" + ENDS
            body = made[1]
            head = HEADS[made[0]]
            if isinstance(made, Special):
                head = (head.replace(b"application/json", made.kind) if made.kind else head) + made.head
            self._transport.write(head + ends % (name.encode(), len(body)) + (body if whole else b""))

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(Problem("head_too_large", param="headers"))

    def _refuse(self, problem: Problem) -> None:
        """Answers what cannot be read, after what came before it, and ends: where the next request would begin is not known."""
        if not self._last:
            self._refusal = problem
        self._end_after_answers()

    def _end_after_answers(self) -> None:
        """Takes nothing more; the connection ends when all that was asked is answered."""
        self._last = True
        if self._answering is None and self._transport is not None:
            self._end()

    def _end(self) -> None:
        if self._refusal is not None:
            name = request_id()
            self._write(self._refusal.reply(name), name, keep_alive=False)
        if self._transport.is_closing():
            return
        self._transport.close()
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_later(UNREAD_S, self._transport.abort)  # who does not read what is left would stay for ever

    def _look(self) -> None:
        """Cuts a connection whose request is too slow, that has asked nothing for long, or that does not read."""
        if self._room is not None and self._loop.time() - self._unread_at >= UNREAD_S:
            self._transport.abort()
            return
        silent_s, patience_s = self._loop.time() - self._heard_at, REQUEST_S if self._in_request else IDLE_S
        if self._answering is None and silent_s >= patience_s:
            if self._in_request:
                self._refuse(Problem("request_timeout"))
            self._end_after_answers()
            return
        self._alarm = self._loop.call_later(min(REQUEST_S, UNREAD_S, max(patience_s - silent_s, 0.1)), self._look)

    def _stop_pouring(self) -> None:
        if self._pouring and self._answering is not None:
            self._answering.cancel()

    def _roomy(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)
