"""The HTTP door: `POST /v1/authorizations`, the decisions by id or transaction, health and readiness. Raw ASGI under uvicorn."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import parse_qs

import msgspec
import numpy as np

from models.answer import bank_view, host_view
from schemas import avro, identity
from schemas.decision import Decision
from schemas.errors import Conflict, InvalidRecord, Unavailable
from schemas.record import doc
from schemas.transaction import Transaction, sound
from streams import journal, metrics
from streams.pipeline import Decided, World, decide

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Reply = tuple[int, bytes]
BODY_BYTES_MAX = 65_536
INDEFINITE = "the result is indefinite: ask again with the same transaction_id"
Pan = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{12,19}$")]
Raw = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class AuthorizationRequest(Transaction, frozen=True, kw_only=True):
    """A Transaction as a host may send it: with raw identifiers instead of tokens. They become tokens here and go no further."""

    card_number: Annotated[Pan | None, doc("the card number; becomes card_token, card_bin and card_last4")] = None
    device_id: Annotated[Raw | None, doc("the device fingerprint; becomes device_token")] = None
    email: Annotated[Raw | None, doc("the e-mail address; becomes email_token")] = None
    phone: Annotated[Raw | None, doc("the phone number; becomes phone_token")] = None
    address: Annotated[Raw | None, doc("the billing address; becomes address_token")] = None


RAW_FIELDS = {"card_number": "crd", "device_id": "dev", "email": "eml", "phone": "phn", "address": "adr"}
TOKEN_FIELDS = {"crd": "card_token", "dev": "device_token", "eml": "email_token", "phn": "phone_token", "adr": "address_token"}
_NAMES = Transaction.__struct_fields__
_REQUESTS = msgspec.json.Decoder(AuthorizationRequest)


def transaction_of(request: AuthorizationRequest, key: bytes, key_id: str) -> Transaction:
    """The Transaction with keyed tokens in place of raw identifiers; InvalidRecord if both were sent."""
    values = dict(zip(_NAMES, msgspec.structs.astuple(request), strict=False))  # the raw fields come last
    for field, kind in RAW_FIELDS.items():
        raw = getattr(request, field)
        if raw is None:
            continue
        if values[TOKEN_FIELDS[kind]] is not None:
            raise InvalidRecord(field, f"came together with {TOKEN_FIELDS[kind]}: send one of them")
        values[TOKEN_FIELDS[kind]] = identity.keyed_token(key, key_id, kind, raw)
    if request.card_number is not None:
        values["card_bin"] = values["card_bin"] or request.card_number[:6]
        values["card_last4"] = values["card_last4"] or request.card_number[-4:]
    return Transaction(**values)


def problem(status: int, code: str, detail: str, field: str | None = None) -> Reply:
    """An error as JSON: its stable code, the field if one is to blame, and words for a person."""
    return status, msgspec.json.encode({"error": code, "field": field, "detail": detail})


def refused(status: int, code: str, detail: str, field: str | None, transaction_id: str | None) -> Reply:
    """A `problem` that is counted and said in the log."""
    metrics.REFUSED.labels(code=code).inc()
    journal.logger().info("refused", status=status, code=code, field=field, transaction_id=transaction_id)
    return problem(status, code, detail, field)


class HttpDoor:
    """The ASGI application over one World."""

    def __init__(self, world: World, key: bytes, key_id: str, deadline_ms: int, explain_key: str) -> None:
        self._world = world
        self._key, self._key_id = key, key_id
        self._deadline_s = deadline_ms / 1000
        self._explain_key = explain_key
        self._under_way: dict[str, tuple[Transaction, asyncio.Task[Decided]]] = {}

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, body = await self._reply(scope, receive)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _reply(self, scope: dict[str, Any], receive: Receive) -> Reply:
        path, method = scope["path"], scope["method"]
        if path == "/v1/authorizations":
            return await self._authorize(scope, receive) if method == "POST" else problem(405, "method_not_allowed", "use POST")
        if method != "GET":
            return problem(405, "method_not_allowed", "use GET")
        if path == "/health":
            return 200, b'{"status":"alive"}'
        if path == "/ready":
            return await self._ready()
        if path == "/v1/decisions" or path.startswith("/v1/decisions/"):
            return await self._decision(scope, path[len("/v1/decisions/") :])
        return problem(404, "not_found", "no such path")

    async def _ready(self) -> Reply:
        try:
            whole = await self._world.answers.whole()
        except Unavailable as error:
            return problem(503, error.code, str(error))
        return (200, b'{"status":"ready"}') if whole else problem(503, "memory_unavailable", "Redis is being rebuilt from the log")

    async def _authorize(self, scope: dict[str, Any], receive: Receive) -> Reply:
        started = time.perf_counter()
        transaction_id = None
        try:
            body = await _body(scope, receive)
            request = avro.checked(lambda: _REQUESTS.decode(body))
            transaction_id = request.transaction_id
            now_ms = self._world.clock_ms()
            txn = sound(transaction_of(request, self._key, self._key_id), now_ms, self._world.future_ms_max)
            task = self._once(txn, now_ms)
            if not await self._in_time(task):
                return refused(503, "deadline", f"not decided in time; {INDEFINITE}", None, transaction_id)
            made = task.result()
        except InvalidRecord as error:
            return refused(422, error.code, error.reason, error.field, transaction_id)
        except Conflict as error:
            return refused(409, error.code, str(error), "transaction_id", transaction_id)
        except Unavailable as error:
            return refused(503, error.code, f"{error}; {INDEFINITE}", None, transaction_id)
        decision = made.decision or avro.decode(Decision, made.message)
        metrics.decided(decision.outcome, decision.degradations, time.perf_counter() - started)
        journal.decided(decision)
        return 200, host_view(decision)

    def _once(self, txn: Transaction, now_ms: int) -> asyncio.Task[Decided]:
        """One decision under way for each transaction in this process: a repeat during the first waits for the first."""
        running = self._under_way.get(txn.transaction_id)
        if running is not None:
            if running[0] != txn:
                raise Conflict(txn.transaction_id)
            return running[1]
        task = asyncio.ensure_future(decide(txn, self._world, now_ms))
        self._under_way[txn.transaction_id] = (txn, task)
        task.add_done_callback(lambda done: self._ended(txn.transaction_id, done))
        return task

    async def _in_time(self, task: asyncio.Task[Decided]) -> bool:
        """Whether the task ends before the host has waited long enough; it goes on if not. (`asyncio.wait` with one task, at half its price.)"""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()
        alarm = loop.call_later(self._deadline_s, _settle, ended, False)
        task.add_done_callback(lambda _: _settle(ended, True))
        try:
            return await ended
        finally:
            alarm.cancel()

    def _ended(self, transaction_id: str, task: asyncio.Task[Decided]) -> None:
        del self._under_way[transaction_id]
        if not task.cancelled():
            task.exception()  # looked at here, because a deadline may have left nobody else to look

    async def _decision(self, scope: dict[str, Any], decision_id: str) -> Reply:
        try:
            if decision_id:
                kept = await self._world.answers.of_decision(decision_id)
            else:
                ids = parse_qs(scope["query_string"].decode("latin-1")).get("transaction_id")
                if not ids:
                    return problem(422, "missing_field", "name one: /v1/decisions?transaction_id=...", "transaction_id")
                kept = await self._world.answers.of_transaction(ids[0])
        except Unavailable as error:
            return problem(503, error.code, str(error))
        if kept is None or not kept.told:
            return problem(404, "not_found", "no such decision, or it is older than answers are kept")
        decision = avro.decode(Decision, kept.message)
        if self._is_the_banks(scope):
            known = decision.catalogue_id == self._world.catalogue.catalogue_id
            values = tuple(np.frombuffer(decision.vector, dtype="<f8").tolist())
            names = self._world.catalogue.names if known else tuple(f"feature_{i}" for i in range(len(values)))
            return 200, bank_view(decision, names, values)
        return 200, host_view(decision)

    def _is_the_banks(self, scope: dict[str, Any]) -> bool:
        sent = dict(scope["headers"]).get(b"authorization", b"")
        return bool(self._explain_key) and hmac.compare_digest(sent, b"Bearer " + self._explain_key.encode())


def _settle(ended: asyncio.Future[bool], how: bool) -> None:
    if not ended.done():
        ended.set_result(how)


async def _body(scope: dict[str, Any], receive: Receive) -> bytes:
    if any(name == b"content-encoding" for name, _ in scope["headers"]):
        raise InvalidRecord("content-encoding", "compressed bodies are not read")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRecord("body", "the connection ended before the body did")
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise InvalidRecord("body", f"is longer than {BODY_BYTES_MAX} bytes")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)
