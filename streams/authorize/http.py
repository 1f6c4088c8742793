"""The HTTP door: authorizations and what follows from them, the decisions by id or transaction, balances, health and readiness."""

from __future__ import annotations

import asyncio
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
from streams.authorize.controls import SHAPE, controls
from streams.authorize.keys import Grant, Key, Keyring, Scope, bearer
from streams.authorize.life import clear, increment
from streams.authorize.problem import INDEFINITE, Problem
from streams.authorize.protocol import Reply, Request, Special
from streams.authorize.requests import Balance, authorization_in, cleared, clearing_in, transaction_of
from streams.authorize.routes import is_known, scope_of
from streams.authorize.tokens import Tokens
from streams.authorize.under_way import UnderWay
from streams.pipeline import World

AUTHORIZATIONS, DECISIONS, ACCOUNTS = "/v1/authorizations", "/v1/decisions", "/v1/accounts"
BALANCE = "balance"
OPEN_PATHS = frozenset(("/health", "/ready"))
STEPS = {"capture": ClearingKind.CAPTURE, "reversal": ClearingKind.REVERSAL}


NOBODY = Key(Grant(name="nobody", sha256="0" * 64, scopes=()))
"""Who asks what is open."""


class HttpDoor:
    """The answers, over one World."""

    def __init__(
        self,
        world: World,
        key: bytes,
        key_id: str,
        deadline_ms: int,
        keys: Keyring,
        open_paths: frozenset[str] = OPEN_PATHS,
        tokens: Tokens | None = None,
    ) -> None:
        self._world = world
        self._key, self._key_id = key, key_id
        self._keys, self._tokens, self._open_paths = keys, tokens, open_paths
        self._deadline_s = deadline_ms / 1000
        self._under_way = UnderWay(world, deadline_ms)

    async def reply(self, request: Request) -> Reply | Special:
        """The answer to any request."""
        made: Reply | Special | Problem
        try:
            now_ms = self._world.clock_ms()
            key = self._keys.of(request.headers, now_ms)
            if key is None and self._tokens is not None:
                key = await self._of_token(request, self._tokens, now_ms)
            if key is None:
                made = await self._other(request, NOBODY) if request.path in self._open_paths else Problem("unauthenticated")
            else:
                made = self._barred(request, key) or await (
                    self._authorize(request, key, now_ms) if request.path == AUTHORIZATIONS else self._other(request, key)
                )
        except InvalidRecord as error:
            made = Problem(error.code, error.reason, error.field)
        except Conflict as error:
            made = Problem(error.code, str(error), "transaction_id" if request.path == AUTHORIZATIONS else None, error.transaction_id)
        except Unavailable as error:
            made = Problem(error.code, f"{error}; {INDEFINITE}")
        except TimeoutError:
            made = Problem("deadline")
        return self._refused(request, made) if isinstance(made, Problem) else made

    async def _of_token(self, request: Request, tokens: Tokens, now_ms: int) -> Key | None:
        sent = bearer(request.headers)
        return None if sent is None or sent.count(b".") != 2 else await tokens.of(sent, now_ms)

    def _barred(self, request: Request, key: Key) -> Problem | None:
        """Why this key may not ask that, or not now; None if it may."""
        if not key.takes(time.monotonic()):
            return Problem("rate_limited", retry_after_s=key.wait_s)
        scope = scope_of(request.method, request.path)
        if scope is None:  # not found, or not by this method
            return None if is_known(request.path) or Scope.ADMIN in key.scopes else Problem("not_found")
        return None if scope in key.scopes else Problem("scope_missing", f"needs the scope {scope}")

    def _refused(self, request: Request, problem: Problem) -> Reply | Special:
        """The problem's answer, counted and said in the log."""
        code = problem.code
        metrics.REFUSED.labels(code=code).inc()
        status, body = problem.reply(request.request_id)
        about = {"field": problem.param, "transaction_id": problem.about, "request_id": request.request_id}
        journal.logger().info("refused", status=status, code=code, **about)
        return (status, body) if problem.retry_after_s is None else Special(status, body, b"retry-after: %d\r\n" % problem.retry_after_s)

    async def _authorize(self, request: Request, key: Key, now_ms: int) -> Reply | Problem:
        if request.method != "POST":
            return Problem("method_not_allowed", "use POST")
        txn = self._transaction(request, key, now_ms)
        return await self._decided(txn, now_ms) if isinstance(txn, Transaction) else txn

    def _transaction(self, request: Request, key: Key, now_ms: int) -> Transaction | Problem:
        """The transaction that the body describes, if its card is one of the key's."""
        sent = authorization_in(request)
        if not key.covers(sent.card_number or sent.card_bin):
            return Problem("card_not_covered", param="card_number" if sent.card_number else "card_bin", about=sent.transaction_id)
        return sound(transaction_of(sent, self._key, self._key_id), now_ms, self._world.future_ms_max)

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

    async def _other(self, request: Request, key: Key) -> Reply | Problem:
        """The answer to what is none of the first."""
        path = request.path
        if path.startswith(AUTHORIZATIONS + "/"):
            transaction_id, _, step = path[len(AUTHORIZATIONS) + 1 :].rpartition("/")
            if transaction_id and (step in STEPS or step == "increment"):
                return await self._step(request, transaction_id, step, key)
            return Problem("not_found")
        if SHAPE.match(path):
            async with asyncio.timeout(self._deadline_s):
                covered = key.covers(None)
                return await controls(request, self._world, self._world.clock_ms()) if covered else Problem("card_not_covered")
        if request.method != "GET":
            return Problem("method_not_allowed", "use GET")
        if path == "/health":
            return 200, b'{"status":"alive"}'
        if path == "/ready":
            return await self._ready()
        if path == DECISIONS or path.startswith(DECISIONS + "/"):
            return await self._decision(request, path[len(DECISIONS) + 1 :], key)
        account_id, _, asked = path.removeprefix(ACCOUNTS + "/").rpartition("/")
        if path.startswith(ACCOUNTS + "/") and account_id and asked == BALANCE:
            return await self._balance(account_id) if key.covers(None) else Problem("card_not_covered", "a key of some cards asks for no account")
        return Problem("not_found")

    async def _step(self, request: Request, transaction_id: str, step: str, key: Key) -> Reply | Problem:
        """Captures, reverses or raises an authorization; waits first for its decision if that is under way here."""
        if request.method != "POST":
            return Problem("method_not_allowed", "use POST")
        avro.checked(lambda: msgspec.convert({"transaction_id": transaction_id}, _Named))
        running = self._under_way.of(transaction_id)
        async with asyncio.timeout(self._deadline_s):
            if running is not None:
                await asyncio.wait([running])
            now_ms = self._world.clock_ms()
            if not key.covers(None) and not await self._covers(key, transaction_id):
                return Problem("card_not_covered", about=transaction_id)
            if step in STEPS:
                return await self._clear(request, STEPS[step], transaction_id, now_ms)
            txn = self._transaction(request, key, now_ms)
            if not isinstance(txn, Transaction):
                return txn
            raised = await increment(txn, transaction_id, self._world)
        if not isinstance(raised, Transaction):
            return Problem(raised, about=transaction_id)
        return await self._decided(raised, now_ms)

    async def _covers(self, key: Key, transaction_id: str) -> bool:
        """Whether the card of an authorization is one of the key's: asked for keys of some cards alone, which it costs a round trip."""
        kept = await self._world.answers.of_transaction(transaction_id)
        return kept is not None and key.covers(avro.decode(Decision, kept.message).transaction.card_bin)

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

    async def _decision(self, request: Request, decision_id: str, key: Key) -> Reply | Problem:
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
        if not key.covers(decision.transaction.card_bin):
            return Problem("card_not_covered", about=decision.transaction_id)
        if Scope.EXPLAIN in key.scopes:
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


class _Named(Record, frozen=True):
    """The authorization that a path names."""

    transaction_id: Id
