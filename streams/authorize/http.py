"""The HTTP door: `POST /v1/authorizations`, the decisions by id or transaction, health and readiness."""

from __future__ import annotations

import hmac
import time
from typing import Annotated
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
from streams.authorize.protocol import BODY_BYTES_MAX, Reply, Request
from streams.authorize.under_way import UnderWay
from streams.pipeline import World

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
    """The answers, over one World."""

    def __init__(self, world: World, key: bytes, key_id: str, deadline_ms: int, explain_key: str) -> None:
        self._world = world
        self._key, self._key_id = key, key_id
        self._explain_key = explain_key
        self._under_way = UnderWay(world, deadline_ms)

    async def reply(self, request: Request) -> Reply:
        """The answer to any request."""
        method, path = request.method, request.path
        if path == "/v1/authorizations":
            return await self._authorize(request) if method == "POST" else problem(405, "method_not_allowed", "use POST")
        if method != "GET":
            return problem(405, "method_not_allowed", "use GET")
        if path == "/health":
            return 200, b'{"status":"alive"}'
        if path == "/ready":
            return await self._ready()
        if path == "/v1/decisions" or path.startswith("/v1/decisions/"):
            return await self._decision(request, path[len("/v1/decisions/") :])
        return problem(404, "not_found", "no such path")

    async def _ready(self) -> Reply:
        try:
            whole = await self._world.answers.whole()
        except Unavailable as error:
            return problem(503, error.code, str(error))
        return (200, b'{"status":"ready"}') if whole else problem(503, "memory_unavailable", "Redis is being rebuilt from the log")

    async def _authorize(self, request: Request) -> Reply:
        started = time.perf_counter()
        transaction_id = None
        try:
            asked = avro.checked(lambda: _REQUESTS.decode(_body(request)))
            transaction_id = asked.transaction_id
            now_ms = self._world.clock_ms()
            txn = sound(transaction_of(asked, self._key, self._key_id), now_ms, self._world.future_ms_max)
            deciding = self._under_way.once(txn, now_ms)
            if not await self._under_way.in_time(deciding):
                return refused(503, "deadline", f"not decided in time; {INDEFINITE}", None, transaction_id)
            made = deciding.result()
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

    async def _decision(self, request: Request, decision_id: str) -> Reply:
        try:
            if decision_id:
                kept = await self._world.answers.of_decision(decision_id)
            else:
                ids = parse_qs(request.query).get("transaction_id")
                if not ids:
                    return problem(422, "missing_field", "name one: /v1/decisions?transaction_id=...", "transaction_id")
                kept = await self._world.answers.of_transaction(ids[0])
        except Unavailable as error:
            return problem(503, error.code, str(error))
        if kept is None or not kept.told:
            return problem(404, "not_found", "no such decision, or it is older than answers are kept")
        decision = avro.decode(Decision, kept.message)
        if self._is_the_banks(request):
            known = decision.catalogue_id == self._world.catalogue.catalogue_id
            values = tuple(np.frombuffer(decision.vector, dtype="<f8").tolist())
            names = self._world.catalogue.names if known else tuple(f"feature_{i}" for i in range(len(values)))
            return 200, bank_view(decision, names, values)
        return 200, host_view(decision)

    def _is_the_banks(self, request: Request) -> bool:
        sent = dict(request.headers).get(b"authorization", b"")
        return bool(self._explain_key) and hmac.compare_digest(sent, b"Bearer " + self._explain_key.encode())


def _body(request: Request) -> bytes:
    if any(name == b"content-encoding" for name, _ in request.headers):
        raise InvalidRecord("content-encoding", "compressed bodies are not read")
    if len(request.body) > BODY_BYTES_MAX:
        raise InvalidRecord("body", f"is longer than {BODY_BYTES_MAX} bytes")
    return request.body
