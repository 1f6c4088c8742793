"""The HTTP door: authorizations and what follows from them, the decisions by id or transaction, balances, health and readiness."""

from __future__ import annotations

import asyncio
import time

import msgspec
import numpy as np

from models.answer import FIELD_39, bank_view, host_view
from models.hold import Book
from models.stand_in import is_stand_in
from schemas import avro
from schemas.decision import Decision
from schemas.errors import Conflict, InvalidRecord, MemoryUnavailable, Unavailable
from schemas.hold import ClearingKind
from schemas.record import Id, Record
from schemas.transaction import Transaction, sound, with_own_id
from streams import answers, journal, metrics
from streams.asked import Course
from streams.authorize.controls import SHAPE, controls
from streams.authorize.keys import Grant, Key, Keyring, Scope, bearer
from streams.authorize.life import clear, gives_all_back, increment, overtake
from streams.authorize.live import Live
from streams.authorize.openapi import description, page
from streams.authorize.problem import INDEFINITE, Problem
from streams.authorize.protocol import Reply, Request, Special, Stream
from streams.authorize.requests import (
    PAGE_MAX,
    Balance,
    DecisionsAsked,
    authorization_in,
    cleared,
    clearing_in,
    decisions_in,
    transaction_of,
)
from streams.authorize.routes import OPEN_PATHS, is_known, methods_of, scope_of
from streams.authorize.tokens import Tokens
from streams.authorize.under_way import UnderWay
from streams.world import World

AUTHORIZATIONS, DECISIONS, ACCOUNTS = "/v1/authorizations", "/v1/decisions", "/v1/accounts"
BALANCE = "balance"
DEADLINE_MS_MAX = 60_000
SHEDDABLE = AUTHORIZATIONS.encode()
_, OVERLOADED = Problem("overloaded").reply("")
"""One body for all of them: to make one for each would cost what is short."""
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
        live: Live | None = None,
    ) -> None:
        self._world = world
        self._key, self._key_id = key, key_id
        self._keys, self._tokens, self._open_paths = keys, tokens, open_paths
        self._live = live
        self._deadline_s = deadline_ms / 1000
        self._under_way = UnderWay(world, deadline_ms)
        self.is_draining = False

    def shed(self, url: bytes) -> bytes | None:
        """See `protocol.Door.shed`: only new authorizations are refused."""
        return None if url != SHEDDABLE or self._under_way.admits() else OVERLOADED

    async def reply(self, request: Request) -> Reply | Special | Stream:
        """The answer to any request."""
        made: Reply | Special | Stream | Problem
        if request.method == "HEAD" and request.path in self._open_paths:  # as many who watch a service ask; the body is left out where it is written
            request = request._replace(method="GET")
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
            made = Problem(error.code, str(error), "transaction_id", error.transaction_id)
        except Unavailable as error:
            made = Problem(error.code, f"{error}; {INDEFINITE}")
        except TimeoutError:
            made = Problem("deadline")
        return self._refused(request, made) if isinstance(made, Problem) else made

    async def _of_token(self, request: Request, tokens: Tokens, now_ms: int) -> Key | None:
        sent = bearer(request.headers)
        return None if sent is None or sent.count(b".") != 2 else await tokens.of(sent, now_ms)

    async def _is_still_valid(self, request: Request, key: Key) -> bool:
        """Whether the key with which a request came would be taken now."""
        now_ms = self._world.clock_ms()
        if key is NOBODY or self._keys.of(request.headers, now_ms) is not None:
            return True
        return self._tokens is not None and await self._of_token(request, self._tokens, now_ms) is not None

    def _barred(self, request: Request, key: Key) -> Problem | None:
        """Why this key may not ask that, or not now; None if it may. What is open to who has no key is open to every key."""
        if request.method == "GET" and request.path in self._open_paths:
            return None
        if not key.takes(time.monotonic()):
            return Problem("rate_limited", retry_after_s=key.wait_s)
        scope = scope_of(request.method, request.path)
        if scope is None:  # not found, or not by this method
            return None if is_known(request.path) else Problem("not_found")
        return None if scope in key.scopes else Problem("scope_missing", f"needs the scope {scope}")

    def _refused(self, request: Request, problem: Problem) -> Reply | Special:
        """The problem's answer, counted and said in the log."""
        code = problem.code
        metrics.REFUSED.labels(code=code).inc()
        status, body = problem.reply(request.request_id)
        field = problem.param and journal.name_of(problem.param)
        about = {"field": field, "transaction_id": problem.about, "request_id": request.request_id}
        journal.logger().info("refused", status=status, code=code, **about)
        if status == 405:
            return Special(status, body, b"allow: %b\r\n" % ", ".join(methods_of(request.path)).encode())
        return (status, body) if problem.retry_after_s is None else Special(status, body, b"retry-after: %d\r\n" % problem.retry_after_s)

    async def _authorize(self, request: Request, key: Key, now_ms: int) -> Reply | Special | Problem:
        if request.method != "POST":
            return Problem("method_not_allowed", "use POST")
        txn = self._transaction(request, key, now_ms)
        return await self._decided(txn, now_ms, request) if isinstance(txn, Transaction) else txn

    def _transaction(self, request: Request, key: Key, now_ms: int) -> Transaction | Problem:
        """The transaction that the body describes, if its card is one of the key's."""
        sent = authorization_in(request)
        if not key.covers(sent.card_number or sent.card_bin):
            return Problem("card_not_covered", param="card_number" if sent.card_number else "card_bin", about=sent.transaction_id)
        return sound(with_own_id(transaction_of(sent, self._key, self._key_id)), now_ms, self._world.future_ms_max)

    async def _decided(self, txn: Transaction, now_ms: int, request: Request, took_s: float = 0.0) -> Reply | Special | Problem:
        """Decides within what is left of the host's time after `took_s` of it."""
        started = time.perf_counter()
        wait_s, timed, traceparent = _wishes(request, self._deadline_s)
        try:
            made, course = await self._under_way.answered(txn, now_ms, wait_s - took_s, traceparent)
        except TimeoutError:
            return Problem("deadline", about=txn.transaction_id)
        decision = made.decision or avro.decode(Decision, made.message)
        if not is_stand_in(decision.degradations):
            metrics.decided(decision.outcome, decision.degradations, time.perf_counter() - started)
        journal.decided(decision)
        body = host_view(decision)
        return Special(200, body, _timing(course, time.perf_counter() - started)) if timed else (200, body)

    async def _other(self, request: Request, key: Key) -> Reply | Special | Stream | Problem:
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
        if path == "/openapi.json":
            return 200, description()
        if path == "/docs":
            return Special(200, page(), b"", b"text/html; charset=utf-8")
        if path == DECISIONS + "/stream":
            return await self._stream(request, key)
        if path == DECISIONS:
            return await self._decisions(request, key)
        if path.startswith(DECISIONS + "/"):
            return await self._shown(await self._world.answers.of_decision(path[len(DECISIONS) + 1 :]), key)
        account_id, _, asked = path.removeprefix(ACCOUNTS + "/").rpartition("/")
        if path.startswith(ACCOUNTS + "/") and account_id and asked == BALANCE:
            return await self._balance(account_id) if key.covers(None) else Problem("card_not_covered", "a key of some cards asks for no account")
        return Problem("not_found")

    async def _step(self, request: Request, transaction_id: str, step: str, key: Key) -> Reply | Special | Problem:
        """Captures, reverses or raises an authorization; waits first for its decision if that is under way here."""
        if request.method != "POST":
            return Problem("method_not_allowed", "use POST")
        avro.checked(lambda: msgspec.convert({"transaction_id": transaction_id}, _Named))
        began_s = time.perf_counter()
        async with asyncio.timeout(_wishes(request, self._deadline_s)[0]):
            if running := self._under_way.all_of(transaction_id) if step in STEPS else self._under_way.of(transaction_id):
                await asyncio.wait(running)
            now_ms = self._world.clock_ms()
            if not key.covers(None) and (barred := await self._not_covered(request, transaction_id, step, key, now_ms)):
                return barred
            if step in STEPS:
                return await self._clear(request, STEPS[step], transaction_id, now_ms)
            txn = self._transaction(request, key, now_ms)
            if not isinstance(txn, Transaction):
                return txn
            raised = await increment(txn, transaction_id, self._world, now_ms)
        if not isinstance(raised, Transaction):
            return Problem(raised, about=transaction_id)
        return await self._decided(raised, now_ms, request, time.perf_counter() - began_s)

    async def _not_covered(self, request: Request, transaction_id: str, step: str, key: Key, now_ms: int) -> Problem | None:
        """Why a key of some cards may not move an authorization: asked for those alone, which it costs a round trip.

        One that nobody knows has no card yet: a reversal that overtook it is remembered, and stands if it comes with a card of the key's.
        """
        kept = await self._world.answers.of_transaction(transaction_id)
        txn = self._under_way.asked(transaction_id) if kept is None else avro.decode(Decision, kept.message).transaction
        if txn is not None and key.covers(txn.card_bin):
            return None
        if txn is None:
            await self._whole()
            if step == "reversal" and gives_all_back(asked := clearing_in(request, STEPS[step], transaction_id, now_ms)):
                return Problem(await overtake(asked, self._world, key.grant.bins), about=transaction_id)
        return Problem("card_not_covered", about=transaction_id)

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

    async def _ready(self) -> Reply | Problem:
        if self.is_draining:
            return Problem("draining")
        return await self._whole()

    async def _whole(self) -> Reply:
        if not await self._world.answers.whole():
            raise MemoryUnavailable(answers.FORGOT)
        return 200, b'{"status":"ready"}'

    async def _decisions(self, request: Request, key: Key) -> Reply | Problem:
        """One decision by its transaction, or a page of those of a card or an account."""
        asked = decisions_in(request.query)
        if asked.name == "transaction_id":
            return await self._shown(await self._world.answers.of_transaction(asked.of), key)
        await self._whole()
        decisions, cursor = await self._page(asked, key)
        shown = b",".join([self._view(decision, key) for decision in decisions])
        return 200, b'{"decisions":[%b],"cursor":%b}' % (shown, msgspec.json.encode(cursor))

    async def _page(self, asked: DecisionsAsked, key: Key) -> tuple[list[Decision], str | None]:
        """As many as were asked for, of cards that the key covers, and the last of them where more such come: no other is named."""
        covered, cursor, size = list[Decision](), asked.cursor, asked.limit + 1 if key.covers(None) else PAGE_MAX
        while True:
            found = await self._world.answers.page(asked.name, asked.of, size, cursor)
            decisions = [avro.decode(Decision, message) for message in found.messages]
            covered += [decision for decision in decisions if key.covers(decision.transaction.card_bin)]
            cursor = found.cursor
            if cursor is None or len(covered) > asked.limit:
                break
        shown = covered[: asked.limit]
        return shown, shown[-1].transaction_id if len(covered) > asked.limit else None

    async def _shown(self, kept: answers.Kept | None, key: Key) -> Reply | Problem:
        if kept is None or not kept.told:
            await self._whole()
            return Problem("not_found", "no such decision, or it is older than answers are kept; ask for an increment by its answer's transaction_id")
        decision = avro.decode(Decision, kept.message)
        if not key.covers(decision.transaction.card_bin):
            return Problem("card_not_covered", about=decision.transaction_id)
        return 200, self._view(decision, key)

    def _view(self, decision: Decision, key: Key) -> bytes:
        """What the key may see of a decision."""
        if Scope.EXPLAIN not in key.scopes:
            return host_view(decision)
        known = decision.catalogue_id == self._world.catalogue.catalogue_id
        values = tuple(np.frombuffer(decision.vector, dtype="<f8").tolist())
        names = self._world.catalogue.names if known else tuple(f"feature_{i}" for i in range(len(values)))
        return bank_view(decision, names, values, self._world.catalogue)

    async def _stream(self, request: Request, key: Key) -> Stream | Problem:
        """What is decided from now on, or since the last event that the client had, for as long as the key is valid."""
        if self._live is None or not self._live.has_room:
            return Problem("streams_busy")
        sent = dict(request.headers).get(b"last-event-id")
        events = await self._live.begin(
            None if sent is None else sent.decode("latin-1"),
            lambda decision: self._view(decision, key) if key.covers(decision.transaction.card_bin) else None,
            lambda: self._is_still_valid(request, key),
        )
        return Stream(b"content-type: text/event-stream\r\ncache-control: no-store\r\n", events)

    async def _balance(self, account_id: str) -> Reply | Problem:
        """A balance inquiry; nothing is concluded from what Redis forgot."""
        await self._whole()
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


def _wishes(request: Request, wait_s: float) -> tuple[float, bool, bytes | None]:
    """How long the host waits from now on, whether it wants to know where the time goes, and what trace this is a part of.

    TimeoutError if it waits no more.
    """
    timed, traceparent = False, None
    for name, value in request.headers:
        if name == b"holdfast-deadline-ms":
            if not value.isdigit() or len(value) > 9 or not 1 <= int(value) <= DEADLINE_MS_MAX:
                raise InvalidRecord("holdfast-deadline-ms", f"is a number from 1 to {DEADLINE_MS_MAX}")
            wait_s = int(value) / 1000
        elif name == b"holdfast-timing":
            timed = value == b"1"
        elif name == b"traceparent":
            traceparent = value
    left_s = wait_s - (time.perf_counter() - request.heard_s if request.heard_s else 0.0)
    if left_s <= 0:
        raise TimeoutError  # it waited behind others for so long: to begin it now would help nobody
    return left_s, timed, traceparent


def _timing(course: Course, total_s: float) -> bytes:
    """The header that says how long each stop took, milliseconds."""
    stops = [*course.passed.stops, ("total", total_s)]
    return b"server-timing: " + ", ".join([f"{stop};dur={seconds * 1000:.3f}" for stop, seconds in stops]).encode() + b"\r\n"


class _Named(Record, frozen=True):
    """The authorization that a path names."""

    transaction_id: Id
