"""The HTTP door: authorizations and what follows from them, the decisions by id or transaction, balances, health and readiness."""

from __future__ import annotations

import asyncio
import hmac
import time
from urllib.parse import parse_qs

import msgspec
import numpy as np

from models.answer import FIELD_39, bank_view, host_view
from models.hold import Book
from schemas import avro
from schemas.decision import Decision
from schemas.errors import Conflict, InvalidRecord, MemoryUnavailable, Unavailable
from schemas.hold import ClearingKind
from schemas.record import Id, Record
from schemas.transaction import Transaction, sound
from streams import answers, journal, metrics
from streams.authorize.life import clear, increment
from streams.authorize.problem import INDEFINITE, Problem
from streams.authorize.protocol import Reply, Request
from streams.authorize.requests import Balance, authorization_in, cleared, clearing_in, transaction_of
from streams.authorize.under_way import UnderWay
from streams.pipeline import World

AUTHORIZATIONS, DECISIONS, ACCOUNTS = "/v1/authorizations", "/v1/decisions", "/v1/accounts"
BALANCE = "balance"
STEPS = {"capture": ClearingKind.CAPTURE, "reversal": ClearingKind.REVERSAL}


class HttpDoor:
    """The answers, over one World."""

    def __init__(self, world: World, key: bytes, key_id: str, deadline_ms: int, explain_key: str) -> None:
        self._world = world
        self._key, self._key_id = key, key_id
        self._explain_key = explain_key
        self._deadline_s = deadline_ms / 1000
        self._under_way = UnderWay(world, deadline_ms)

    async def reply(self, request: Request) -> Reply:
        """The answer to any request."""
        made: Reply | Problem
        try:
            made = await (self._authorize(request) if request.path == AUTHORIZATIONS else self._other(request))
        except InvalidRecord as error:
            made = Problem(error.code, error.reason, error.field)
        except Conflict as error:
            made = Problem(error.code, str(error), "transaction_id" if request.path == AUTHORIZATIONS else None, error.transaction_id)
        except Unavailable as error:
            made = Problem(error.code, f"{error}; {INDEFINITE}")
        except TimeoutError:
            made = Problem("deadline")
        return self._refused(request, made) if isinstance(made, Problem) else made

    def _refused(self, request: Request, problem: Problem) -> Reply:
        """The problem's answer, counted and said in the log."""
        code = problem.code
        metrics.REFUSED.labels(code=code).inc()
        status, body = problem.reply(request.request_id)
        about = {"field": problem.param, "transaction_id": problem.about, "request_id": request.request_id}
        journal.logger().info("refused", status=status, code=code, **about)
        return status, body

    async def _authorize(self, request: Request) -> Reply | Problem:
        if request.method != "POST":
            return Problem("method_not_allowed", "use POST")
        now_ms = self._world.clock_ms()
        return await self._decided(self._transaction(request, now_ms), now_ms)

    def _transaction(self, request: Request, now_ms: int) -> Transaction:
        return sound(transaction_of(authorization_in(request), self._key, self._key_id), now_ms, self._world.future_ms_max)

    async def _decided(self, txn: Transaction, now_ms: int) -> Reply | Problem:
        started = time.perf_counter()
        deciding = self._under_way.once(txn, now_ms)
        if not await self._under_way.in_time(deciding):
            return Problem("deadline", about=txn.transaction_id)
        made = deciding.result()
        decision = made.decision or avro.decode(Decision, made.message)
        metrics.decided(decision.outcome, decision.degradations, time.perf_counter() - started)
        journal.decided(decision)
        return 200, host_view(decision)

    async def _other(self, request: Request) -> Reply | Problem:
        """The answer to what is none of the first."""
        path = request.path
        if path.startswith(AUTHORIZATIONS + "/"):
            transaction_id, _, step = path[len(AUTHORIZATIONS) + 1 :].rpartition("/")
            if transaction_id and (step in STEPS or step == "increment"):
                return await self._step(request, transaction_id, step)
            return Problem("not_found")
        if request.method != "GET":
            return Problem("method_not_allowed", "use GET")
        if path == "/health":
            return 200, b'{"status":"alive"}'
        if path == "/ready":
            return await self._ready()
        if path == DECISIONS or path.startswith(DECISIONS + "/"):
            return await self._decision(request, path[len(DECISIONS) + 1 :])
        account_id, _, asked = path.removeprefix(ACCOUNTS + "/").rpartition("/")
        if path.startswith(ACCOUNTS + "/") and account_id and asked == BALANCE:
            return await self._balance(account_id)
        return Problem("not_found")

    async def _step(self, request: Request, transaction_id: str, step: str) -> Reply | Problem:
        """Captures, reverses or raises an authorization; waits first for its decision if that is under way here."""
        if request.method != "POST":
            return Problem("method_not_allowed", "use POST")
        avro.checked(lambda: msgspec.convert({"transaction_id": transaction_id}, _Named))
        running = self._under_way.of(transaction_id)
        async with asyncio.timeout(self._deadline_s):
            if running is not None:
                await asyncio.wait([running])
            now_ms = self._world.clock_ms()
            if step in STEPS:
                return await self._clear(request, STEPS[step], transaction_id, now_ms)
            raised = await increment(self._transaction(request, now_ms), transaction_id, self._world)
        if not isinstance(raised, Transaction):
            return Problem(raised, about=transaction_id)
        return await self._decided(raised, now_ms)

    async def _clear(self, request: Request, kind: ClearingKind, transaction_id: str, now_ms: int) -> Reply | Problem:
        asked = clearing_in(request, kind, transaction_id, now_ms)
        if asked.at_ms > now_ms + self._world.future_ms_max:
            raise InvalidRecord("at_ms", "is in the future", code="time_in_future")
        try:
            made = await clear(asked, self._world, now_ms)
        except Conflict as error:
            return Problem(error.code, f"clearing_id {asked.clearing_id!r} was already used with other contents", "clearing_id", transaction_id)
        if not isinstance(made, tuple):
            return Problem(made, about=transaction_id)
        return 200, cleared(made, asked, FIELD_39["captured" if kind is ClearingKind.CAPTURE else "reversed"].v1987)

    async def _ready(self) -> Reply:
        if not await self._world.answers.whole():
            raise MemoryUnavailable(answers.FORGOT)
        return 200, b'{"status":"ready"}'

    async def _decision(self, request: Request, decision_id: str) -> Reply | Problem:
        if decision_id:
            kept = await self._world.answers.of_decision(decision_id)
        else:
            ids = parse_qs(request.query).get("transaction_id")
            if not ids:
                return Problem("missing_field", "name one: /v1/decisions?transaction_id=...", "transaction_id")
            kept = await self._world.answers.of_transaction(ids[0])
        if kept is None or not kept.told:
            return Problem("not_found", "no such decision, or it is older than answers are kept")
        decision = avro.decode(Decision, kept.message)
        if self._is_the_banks(request):
            known = decision.catalogue_id == self._world.catalogue.catalogue_id
            values = tuple(np.frombuffer(decision.vector, dtype="<f8").tolist())
            names = self._world.catalogue.names if known else tuple(f"feature_{i}" for i in range(len(values)))
            return 200, bank_view(decision, names, values)
        return 200, host_view(decision)

    async def _balance(self, account_id: str) -> Reply | Problem:
        """A balance inquiry; nothing is concluded from what Redis forgot."""
        await self._ready()
        (content,) = answers.sound([*await self._world.books.read(account_id)])
        book = Book.from_bytes(content)
        if not book.known:
            return Problem("unknown_account")
        balance = Balance(
            account_id=account_id,
            currency=book.currency,
            balance_minor=book.balance_minor,
            available_minor=book.available_minor(self._world.clock_ms()),
            response_code=FIELD_39["approve"].v1987,
        )
        return 200, msgspec.json.encode(balance)

    def _is_the_banks(self, request: Request) -> bool:
        sent = dict(request.headers).get(b"authorization", b"")
        return bool(self._explain_key) and hmac.compare_digest(sent, b"Bearer " + self._explain_key.encode())


class _Named(Record, frozen=True):
    """The authorization that a path names."""

    transaction_id: Id
