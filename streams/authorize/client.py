"""A client of the HTTP door, sync and async: typed asks and answers, errors as types, and repeats with the same id until a deadline.

    with Client("https://holdfast.bank", key) as client:
        answer = client.authorize(AuthorizationRequest(transaction_id="t-1", kind=TransactionKind.ECOMMERCE, ...))

A repeat is safe because its id is in the body: the door gives the first answer again. So a request that was not answered, or whose result is
indefinite, is sent again by itself, with ever longer pauses, until it is answered or `deadline_s` has passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from yarl import URL

from models.answer import Answer, Explained, host_view
from schemas.record import Record
from streams.authorize.problem import ErrorBody, ErrorType, Fault
from streams.authorize.requests import (
    AuthorizationRequest,
    Balance,
    CaptureRequest,
    ClearingAnswer,
    DecisionPage,
    ExplainedPage,
    ReversalRequest,
)

R = TypeVar("R", bound=Record)
AGAIN = frozenset((408, 429, 502, 503, 504))
"""What is asked again; 502 and 504 says a load balancer whose service did not answer."""
PAUSE_S, PAUSE_S_MAX = 0.05, 1.0
AUTHORIZATIONS = "/v1/authorizations"


class Failed(Exception):
    """What the door refused. `fault.code` is a row of `problem.ERRORS`, `fault.param` the field that is to blame."""

    def __init__(self, status: int, fault: Fault) -> None:
        super().__init__(f"{fault.code}: {fault.message} ({fault.request_id})")
        self.status, self.fault = status, fault


class InvalidRequest(Failed):
    """The request is wrong; a repeat will be too."""


class NotAllowed(Failed):
    """The key is not valid, or may not do this."""


class Refused(Failed):
    """The books refuse it: no such hold, already captured, more than is held."""


class RateLimited(Failed):
    """More than the key's rate, until the deadline."""


class NotNow(Failed):
    """Not answered for now, until the deadline: the result is indefinite; ask again with the same id."""


class Broken(Failed):
    """A bug of the door."""


class Unanswered(Exception):
    """Nobody answered until the deadline: the result is indefinite; ask again with the same id."""


TYPES: dict[ErrorType, type[Failed]] = {
    ErrorType.INVALID_REQUEST: InvalidRequest,
    ErrorType.AUTHENTICATION: NotAllowed,
    ErrorType.REFUSED: Refused,
    ErrorType.RATE_LIMIT: RateLimited,
    ErrorType.UNAVAILABLE: NotNow,
    ErrorType.INTERNAL: Broken,
}


class Ask(NamedTuple):
    """One request, the same at each repeat."""

    method: str
    path: str
    body: bytes = b""
    timed: bool = False
    """Whether the door is told how long there is to answer."""


class Heard(NamedTuple):
    """What came back; status 0 where nothing did, and then why."""

    status: int
    body: bytes = b""
    retry_after: str = ""


Course = Generator[float, Heard, R]
"""A request's course: yields how long the next answer may take, or, below 0, how long to pause first; returns the answer."""


def course(answer: type[R], deadline_s: float) -> Course[R]:
    """How a request is repeated, for both clients. Raises Failed or Unanswered."""
    end, pause_s = time.monotonic() + deadline_s, PAUSE_S
    while True:
        heard = yield max(end - time.monotonic(), 0.001)
        if heard.status == 200:
            try:
                return _read(answer, heard.body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Unanswered(f"answered with what is no {answer.__name__}: {error}") from None
        wait_s = pause_s * random.uniform(0.5, 1.0)
        if heard.status == 429 and heard.retry_after.isdecimal():
            wait_s = max(wait_s, float(heard.retry_after))
        pause_s = min(2 * pause_s, PAUSE_S_MAX)
        if (heard.status and heard.status not in AGAIN) or time.monotonic() + wait_s >= end:
            raise failure(heard)
        yield -wait_s


def _read(answer: type[R], body: bytes) -> R:
    """The answer. Of what was decided a key of the scope `explain` gets the whole: of that, what every host gets."""
    try:
        return msgspec.json.decode(body, type=answer)
    except msgspec.ValidationError:
        if answer is Answer:
            return msgspec.json.decode(host_view(msgspec.json.decode(body, type=Explained)), type=answer)
        if answer is DecisionPage:
            page = msgspec.json.decode(body, type=ExplainedPage)
            shown = tuple([_read(Answer, msgspec.json.encode(one)) for one in page.decisions])
            return msgspec.convert(DecisionPage(decisions=shown, cursor=page.cursor), answer)
        raise


def failure(heard: Heard) -> Exception:
    """The error by its type."""
    if not heard.status:
        return Unanswered(f"not answered in time: {heard.body.decode(errors='replace')}")
    try:
        fault = msgspec.json.decode(heard.body, type=ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Unanswered(f"answered with status {heard.status} by somebody who is not Holdfast")
    return TYPES[fault.type](heard.status, fault)


def _posted(path: str, record: Record, timed: bool = False) -> Ask:
    return Ask("POST", path, msgspec.json.encode(record), timed)


def _step(transaction_id: str, step: str) -> str:
    return f"{AUTHORIZATIONS}/{quote(transaction_id, safe='')}/{step}"


def _listed(by: str, of: str, limit: int, cursor: str | None) -> Ask:
    more = {} if cursor is None else {"cursor": cursor}
    return Ask("GET", "/v1/decisions?" + urlencode({by: of, "limit": limit, **more}))


class Client:
    """One connection, kept open; of one thread. `deadline_s` is how long an ask may take, repeats and pauses included."""

    def __init__(self, url: str, key: str, deadline_s: float = 3.0, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        where = (parts.hostname or "", parts.port)
        self._connection = http.client.HTTPSConnection(*where, context=tls) if parts.scheme == "https" else http.client.HTTPConnection(*where)
        self._base, self._key, self._deadline_s = parts.path.rstrip("/"), _sendable(key), deadline_s

    def __enter__(self) -> Client:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the connection."""
        self._connection.close()

    def authorize(self, request: AuthorizationRequest) -> Answer:
        """Decides and holds."""
        return self._asked(_posted(AUTHORIZATIONS, request, timed=True), Answer)

    def increment(self, transaction_id: str, request: AuthorizationRequest) -> Answer:
        """Raises a hold; the request's own id is another one."""
        return self._asked(_posted(_step(transaction_id, "increment"), request, timed=True), Answer)

    def capture(self, transaction_id: str, request: CaptureRequest) -> ClearingAnswer:
        """Takes what is held, or a part."""
        return self._asked(_posted(_step(transaction_id, "capture"), request), ClearingAnswer)

    def reverse(self, transaction_id: str, request: ReversalRequest) -> ClearingAnswer:
        """Gives back what is held, or a part."""
        return self._asked(_posted(_step(transaction_id, "reversal"), request), ClearingAnswer)

    def decision(self, transaction_id: str) -> Answer:
        """What was decided of a transaction , as every host gets it, whatever the key."""
        return self._asked(Ask("GET", "/v1/decisions?" + urlencode({"transaction_id": transaction_id})), Answer)

    def decisions(self, by: str, of: str, limit: int = 50, cursor: str | None = None) -> DecisionPage:
        """A page of the decisions of a `card` (by its token) or an `account`, the newest first."""
        return self._asked(_listed(by, of, limit, cursor), DecisionPage)

    def balance(self, account_id: str) -> Balance:
        """What an account has."""
        return self._asked(Ask("GET", f"/v1/accounts/{quote(account_id, safe='')}/balance"), Balance)

    def _asked(self, ask: Ask, answer: type[R]) -> R:
        steps = course(answer, self._deadline_s)
        step = next(steps)
        while True:
            if step < 0:
                time.sleep(-step)
                step = next(steps)
            try:
                step = steps.send(self._heard(ask, step))
            except StopIteration as end:
                made: R = end.value
                return made

    def _heard(self, ask: Ask, timeout_s: float) -> Heard:
        connection, end_s = self._connection, time.monotonic() + timeout_s
        connection.timeout = timeout_s
        try:
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(timeout_s)
            with _cut_at(connection.sock, end_s):
                connection.request(ask.method, self._base + ask.path, ask.body or None, _headers(self._key, ask, timeout_s))
                response = connection.getresponse()
                return Heard(response.status, response.read(), response.headers.get("retry-after", ""))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Heard(0, repr(error).encode())


class AsyncClient:
    """The same for asyncio: many asks at once, over as many connections as they need."""

    def __init__(self, url: str, key: str, deadline_s: float = 3.0, tls: ssl.SSLContext | None = None) -> None:
        self._url, self._key, self._deadline_s = url.rstrip("/"), _sendable(key), deadline_s
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=tls if tls is not None else True))

    async def __aenter__(self) -> AsyncClient:
        """Itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the connections."""
        await self._session.close()

    async def authorize(self, request: AuthorizationRequest) -> Answer:
        """See `Client.authorize`."""
        return await self._asked(_posted(AUTHORIZATIONS, request, timed=True), Answer)

    async def increment(self, transaction_id: str, request: AuthorizationRequest) -> Answer:
        """See `Client.increment`."""
        return await self._asked(_posted(_step(transaction_id, "increment"), request, timed=True), Answer)

    async def capture(self, transaction_id: str, request: CaptureRequest) -> ClearingAnswer:
        """See `Client.capture`."""
        return await self._asked(_posted(_step(transaction_id, "capture"), request), ClearingAnswer)

    async def reverse(self, transaction_id: str, request: ReversalRequest) -> ClearingAnswer:
        """See `Client.reverse`."""
        return await self._asked(_posted(_step(transaction_id, "reversal"), request), ClearingAnswer)

    async def decision(self, transaction_id: str) -> Answer:
        """See `Client.decision`."""
        return await self._asked(Ask("GET", "/v1/decisions?" + urlencode({"transaction_id": transaction_id})), Answer)

    async def decisions(self, by: str, of: str, limit: int = 50, cursor: str | None = None) -> DecisionPage:
        """See `Client.decisions`."""
        return await self._asked(_listed(by, of, limit, cursor), DecisionPage)

    async def balance(self, account_id: str) -> Balance:
        """See `Client.balance`."""
        return await self._asked(Ask("GET", f"/v1/accounts/{quote(account_id, safe='')}/balance"), Balance)

    async def _asked(self, ask: Ask, answer: type[R]) -> R:
        steps = course(answer, self._deadline_s)
        step = next(steps)
        while True:
            if step < 0:
                await asyncio.sleep(-step)
                step = next(steps)
            try:
                step = steps.send(await self._heard(ask, step))
            except StopIteration as end:
                made: R = end.value
                return made

    async def _heard(self, ask: Ask, timeout_s: float) -> Heard:
        wait: Any = aiohttp.ClientTimeout(total=timeout_s)
        url = URL(self._url + ask.path, encoded=True)
        try:
            headers = _headers(self._key, ask, timeout_s)
            async with self._session.request(
                ask.method, url, data=ask.body or None, headers=headers, timeout=wait, allow_redirects=False
            ) as got:  # cards and the key go nowhere else
                return Heard(got.status, await got.read(), got.headers.get("retry-after", ""))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return Heard(0, repr(error).encode())


@contextlib.contextmanager
def _cut_at(connected: socket.socket, end_s: float) -> Iterator[None]:
    """Ends a connection at that moment: a socket's timeout is of each read alone, and who sends byte by byte would never be late."""
    alarm = threading.Timer(end_s - time.monotonic(), _cut, (connected,))
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def _cut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # of TLS too the socket beneath: its own would have another thread read in plain


def _sendable(key: str) -> str:
    """The key. ValueError, which does not name it, where it has what no header carries: the HTTP library's own would print it."""
    if not all("!" <= character <= "~" for character in key):
        raise ValueError("key: has a line end, a space or another character that no key has")
    return key


def _headers(key: str, ask: Ask, timeout_s: float) -> dict[str, str]:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    return headers | {"holdfast-deadline-ms": str(min(60_000, max(1, int(timeout_s * 1000))))} if ask.timed else headers
