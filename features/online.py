"""The door to Redis: a transport that sends a loop tick's commands in one write, and the memory of entities that rests on it."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import hiredis
from redis.asyncio import Redis
from redis.exceptions import RedisError, WatchError

from features.catalogue import Catalogue
from features.engine import Past, packed, place_in, to_recall
from features.fact import HASH, declined_facts, event_facts, facts_of
from features.layout import at_ms_of
from features.log import is_due, rebuilt_log, row_count, tidied
from features.memory import Aside, Decided, Updates, event_rows, gathered, occurs_twice, tally_keys
from features.profile import profile_write, profile_writes
from features.tally import HEADER_BYTES, updated
from schemas.account import AccountEvent, AccountState
from schemas.errors import MemoryUnavailable, SettingsError
from schemas.transaction import Transaction

Command = tuple[Any, ...]
"""A command's words: bytes, str, int or float."""
_DOWN = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOAUTH", "WRONGPASS", "MISCONF", "OOM", "BUSY")
"""Errors by which a server says that it cannot serve now, rather than that a command is wrong."""
_BACKOFF_S, _BACKOFF_MAX_S = 0.02, 1.0
_DAY_MS = 86_400_000
_TRIES = 64
_SWAP = b"""
if redis.call('EXISTS', 'whole') == 0 then return redis.error_reply('FORGOT Redis does not know how far it is') end
local now = redis.call('GET', KEYS[1]) or ''
if string.sub(now, 1, #ARGV[1]) ~= ARGV[1] or (#ARGV[1] == 0 and now ~= '') then return now end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
"""Replaces a tally whose head is still the one that was read: a later one has taken other rows."""
_SWAP_SHA = hashlib.sha1(_SWAP, usedforsecurity=False).hexdigest()


def address(url: str) -> dict[str, Any]:
    """Where a Redis is: `unix:///path` or `redis://host:port`, as redis-py names the parts. SettingsError for anything else."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return {"unix_socket_path": parts.path}
    if parts.scheme == "redis" and parts.hostname:
        return {"host": parts.hostname, "port": parts.port or 6379}
    raise SettingsError(f"Redis address {url!r} is neither unix:///path nor redis://host:port")


class _Request:
    """Commands that were sent together and wait for their replies. Without a future nobody wants to know them."""

    __slots__ = ("awaited", "deadline", "erred", "future", "replies")

    def __init__(self, future: asyncio.Future[list[Any]] | None, awaited: int, deadline: float) -> None:
        self.future, self.awaited, self.deadline, self.erred = future, awaited, deadline, False
        self.replies: list[Any] = []

    def settle(self) -> None:
        """All replies are there."""
        if self.future is None or self.future.done():
            return
        down = _down(self.replies) if self.erred else None
        if down is None:
            self.future.set_result(self.replies)
        else:
            self.future.set_exception(MemoryUnavailable(f"Redis: {down}"))

    def fail(self, reason: str) -> None:
        """Nobody knows whether the commands were carried out."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(MemoryUnavailable(reason))


def _down(replies: list[Any]) -> Any:
    """The first reply by which the server says that it cannot serve now."""
    return next((r for r in replies if isinstance(r, hiredis.ReplyError) and str(r).startswith(_DOWN)), None)


class _Link(asyncio.Protocol):
    """One connection: buffers what is sent in a loop tick, and pairs replies with requests in order."""

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self.wire, self.loop = wire, loop
        self.reader = hiredis.Reader()
        self.transport: asyncio.Transport | None = None
        self.waiting: deque[_Request] = deque()
        self.unsent: list[bytes] = []
        self.away = 0
        """Requests that were written and are not answered. What is sent meanwhile waits for them: under load that is fewer, larger writes,
        and a write that wakes Redis costs more than all else here; without load nothing waits."""
        self.alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The connection stands."""
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """The connection fell: all that wait are told, and the wire looks for another."""
        self.end(f"the connection to Redis was lost: {error or 'closed'}")
        self.wire._lost(self)

    def end(self, reason: str) -> None:
        """Fails all requests and closes."""
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        waiting, self.waiting, self.unsent = self.waiting, deque(), []
        for request in waiting:
            request.fail(reason)
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def data_received(self, data: bytes) -> None:
        """Replies came."""
        try:
            self.reader.feed(data)
            waiting, gets = self.waiting, self.reader.gets
            while (reply := gets()) is not False:
                request = waiting[0]
                request.replies.append(reply)
                if reply.__class__ is hiredis.ReplyError:
                    request.erred = True
                if len(request.replies) == request.awaited:
                    waiting.popleft().settle()
                    self.away -= 1
            if not self.away and self.unsent:
                self.loop.call_soon(self._flush)  # after those whom the replies woke: what they send goes along
        except (hiredis.ProtocolError, IndexError) as error:
            self.end(f"Redis answered in no known way: {error}")

    def send(self, commands: tuple[Command, ...], future: asyncio.Future[list[Any]] | None, timeout_s: float) -> None:
        """Buffers commands; the first of a tick arranges the write."""
        if not (self.unsent or self.away):
            self.loop.call_soon(self._flush)
        self.unsent += map(hiredis.pack_command, commands)
        self.waiting.append(_Request(future, len(commands), self.loop.time() + timeout_s))
        if self.alarm is None:
            self.alarm = self.loop.call_later(timeout_s, self._ring)

    def _flush(self) -> None:
        unsent, self.unsent = self.unsent, []
        self.away = len(self.waiting)
        if self.transport is not None and unsent:
            self.transport.write(b"".join(unsent))

    def _ring(self) -> None:
        """Ends the connection if its oldest request is overdue: replies come in order, so a late one would meet the wrong request."""
        self.alarm = None
        if not self.waiting:
            return
        left_s = self.waiting[0].deadline - self.loop.time()
        if left_s <= 0:
            self.end("Redis did not answer in time")
        else:
            self.alarm = self.loop.call_later(left_s, self._ring)


class Wire:
    """One connection to a Redis that many tasks share. Never WATCH on it: tasks would drop each other's watches."""

    def __init__(self, url: str, password: str | None, username: str | None, timeout_s: float) -> None:
        self.url, self.password, self.username, self.timeout_s = url, password, username, timeout_s
        self._loop = asyncio.get_running_loop()
        self._link: _Link | None = None
        self._again: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def connect(cls, url: str, password: str | None = None, username: str | None = None, timeout_s: float = 1.0) -> Wire:
        """A wire to `unix:///path` or `redis://host:port`, as that user or the default one. MemoryUnavailable if nobody answers in time."""
        wire = cls(url, password, username, timeout_s)
        await wire._open()
        return wire

    @property
    def connected(self) -> bool:
        """Whether requests are sent now (else they fail at once, while the wire reconnects in the background)."""
        return self._link is not None

    def send(self, *commands: Command) -> asyncio.Future[list[Any]]:
        """Sends commands; the future gives their replies in order. Buffered at the call: all of one loop tick go in one write.

        Replies are bytes, int, None or lists; an error reply is a `hiredis.ReplyError` in its place, not raised. MemoryUnavailable
        on timeout, a lost connection, or a server that cannot serve (loading, read only, out of memory): then it is unknown whether
        the commands were carried out. MULTI to EXEC belong in one call.
        """
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if self._link is None:
            future.set_exception(MemoryUnavailable("Redis is not connected"))
        elif not commands:
            future.set_result([])
        else:
            self._link.send(commands, future, self.timeout_s)
        return future

    def post(self, *commands: Command) -> None:
        """Sends commands of which nobody needs to know whether they were carried out."""
        if self._link is not None:
            self._link.send(commands, None, self.timeout_s)

    async def close(self) -> None:
        """Closes; requests that wait fail."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
            await asyncio.gather(self._again, return_exceptions=True)
        if self._link is not None:
            link, self._link = self._link, None
            link.end("the wire was closed")
            await asyncio.sleep(0)

    async def _open(self) -> None:
        where, loop = address(self.url), self._loop
        try:
            async with asyncio.timeout(self.timeout_s):
                if "unix_socket_path" in where:
                    _, link = await loop.create_unix_connection(lambda: _Link(self, loop), where["unix_socket_path"])
                else:
                    _, link = await loop.create_connection(lambda: _Link(self, loop), where["host"], where["port"])
        except OSError as error:
            raise MemoryUnavailable(f"no Redis at {self.url}: {error}") from error
        await self._greet(link)
        self._link = link

    async def _greet(self, link: _Link) -> None:
        """Authenticates, and makes sure that the server serves."""
        greeting: tuple[Command, ...] = (*self._auth(), ("PING",))
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        link.send(greeting, future, self.timeout_s)
        try:
            replies = await future
            wrong = [reply for reply in replies if isinstance(reply, hiredis.ReplyError)]
            if wrong:
                raise MemoryUnavailable(f"Redis at {self.url}: {wrong[0]}")
        except BaseException:
            link.end("Redis does not serve")
            raise

    def _auth(self) -> tuple[Command, ...]:
        if self.username is not None:
            return (("AUTH", self.username, self.password or ""),)
        return () if self.password is None else (("AUTH", self.password),)

    def _lost(self, link: _Link) -> None:
        if link is self._link and not self._closed:
            self._link = None
            self._again = self._loop.create_task(self._reopen())

    async def _reopen(self) -> None:
        delay_s = _BACKOFF_S
        while not self._closed:
            try:
                await self._open()
                return
            except MemoryUnavailable:
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _BACKOFF_MAX_S)


_ALONE = Aside()


class RedisMemory:
    """The memory of entities in Redis: one string per log and per profile, plain commands that touch one key each (and one MGET)."""

    def __init__(self, wire: Wire, catalogue: Catalogue, ttl_s: int | None = None) -> None:
        """`ttl_s`: how long a log is kept after it grew, less an eighth at most; by default twice its longest window with slack."""
        self.wire, self.catalogue = wire, catalogue
        self.ttl_s = 2 * catalogue.keep_ms // 1000 if ttl_s is None else ttl_s
        self._refresh_ms = max(_DAY_MS, self.ttl_s * 1000 // 8)
        """Expiry is put off when a log is new, and when an event falls into another span of this length than the one before it."""
        self.tidy_failures = 0
        self._untidy: dict[str, int] = {}
        self._tidying: asyncio.Task[None] | None = None
        self._client: Redis | None = None

    def _keys(self, txn: Transaction) -> list[str | None]:
        """The key of each log; None where the transaction has no such entity."""
        fields = zip(self.catalogue.log_layouts, self.catalogue.log_fields, strict=True)
        tokens = ((layout, getattr(txn, field)) for layout, field in fields)
        return [None if token is None else layout.key(token) for layout, token in tokens]

    def _profile_keys(self, txn: Transaction) -> list[str | None]:
        fields = zip(self.catalogue.profile_layouts, self.catalogue.profile_fields, strict=True)
        tokens = ((layout, getattr(txn, field)) for layout, field in fields)
        return [None if token is None else layout.key(token) for layout, token in tokens]

    async def _read(
        self, sent: asyncio.Future[list[Any]], keys: list[str | None], rows: tuple[bytes | None, ...], more: list[str | None], aside: Aside
    ) -> tuple[list[bytes | None], list[bytes | None], tuple[str, ...]]:
        """The logs and profiles in the replies to appends and MGET, and the kinds of those that could not be read."""
        replies = await sent
        values = replies[-1]
        if isinstance(values, hiredis.ReplyError):
            raise MemoryUnavailable(f"Redis: {values}")
        at, of = len(aside.writes), len(aside.reads)
        if aside is not _ALONE:
            aside.wrote, aside.found = replies[:at], values[:of]
        logs: list[bytes | None] = []
        missing: list[str] = []
        for number, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if key is None or row is None:
                logs.append(None)
                continue
            if not row:
                logs.append(values[of] or b"")
                of += 1
                continue
            length, log = replies[at], values[of]
            at, of = at + 1, of + 1
            if not log or length.__class__ is not int:
                logs.append(None)
                missing.append(self.catalogue.logs[number])
                continue
            logs.append(log)
            self._keep_up(number, key, row, length, log)
        found = iter(values[of:])
        return logs, [None if key is None else next(found) for key in more], tuple(missing)

    def _append_and_read(
        self, keys: list[str | None], rows: tuple[bytes | None, ...], more: list[str | None], aside: Aside = _ALONE
    ) -> Awaitable[tuple[list[bytes | None], list[bytes | None], tuple[str, ...]]]:
        """One request: the appends, and one MGET of those logs and of more keys; and what is asked aside."""
        logs = [key for key, row in zip(keys, rows, strict=True) if row is not None]
        appends: list[Command] = [(b"APPEND", key, row) for key, row in zip(keys, rows, strict=True) if row]
        read = (b"MGET", *aside.reads, *logs, *[key for key in more if key is not None])
        return self._read(self.wire.send(*aside.writes, *appends, read), keys, rows, more, aside)

    def _keep_up(self, number: int, key: str, row: bytes, length: int, log: bytes) -> None:
        """What an append leaves to do: expiry for a new log or a new day, tidying when a chunk is full or a row came twice."""
        size = len(row)
        before = log[length - 2 * size : length - size]
        span = at_ms_of(row) // self._refresh_ms
        if length == size or at_ms_of(before) // self._refresh_ms != span:
            self.wire.post(("EXPIRE", key, self.ttl_s))
        if is_due(self.catalogue, row_count(log, size, length)) or occurs_twice(log, row):
            self._untidy[key] = number
            if self._tidying is None or self._tidying.done():
                self._tidying = asyncio.get_running_loop().create_task(self._tidy_all())

    def recall(self, txn: Transaction, aside: Aside | None = None) -> Awaitable[Past]:
        """Appends the transaction to its logs, reads them, its profiles and tallies, in one round trip. The commands are sent at the call.

        MemoryUnavailable if Redis does not answer; a key of the wrong type makes its entity kind `missing`.
        """
        facts, tallies = facts_of(txn), tally_keys(self.catalogue, txn)
        rows, more = to_recall(self.catalogue, txn, facts), [*self._profile_keys(txn), *tallies]
        return self._recalled(facts, tallies, self._append_and_read(self._keys(txn), rows, more, aside or _ALONE))

    async def _recalled(
        self, facts: tuple[int, ...], keys: list[str | None], read: Awaitable[tuple[list[bytes | None], list[bytes | None], tuple[str, ...]]]
    ) -> Past:
        logs, more, missing = await read
        profiles = len(more) - len(keys)
        tallies = [None if key is None else content or b"" for key, content in zip(keys, more[profiles:], strict=True)]
        return Past(tuple(logs), tuple(more[:profiles]), missing, facts, tuple(tallies))

    async def take(self, updates: Updates) -> None:
        """Gives rows to tallies, each once, by compare-and-set of their heads; MemoryUnavailable if Redis does not answer, or forgot."""
        layouts = self.catalogue.tally_layouts
        left = {(number, layouts[number].key(token)): new for (number, token), new in updates.items()}
        contents = await self._obeyed(*(("GET", key) for _, key in left))
        for _ in range(_TRIES):
            swaps: dict[tuple[int, str], tuple[bytes, bytes]] = {}
            for (number, key), content in zip(left, contents, strict=True):
                before = content or b""
                after = updated(self.catalogue.tally_plan, layouts, number, before, left[number, key])
                if after is not before:
                    swaps[number, key] = before, after
            if not swaps:
                return
            replies = await self._swapped([(key, before, after, layouts[number].keep_s) for (number, key), (before, after) in swaps.items()])
            lost = [(place, reply) for place, reply in zip(swaps, replies, strict=True) if reply != 1]
            left, contents = {place: left[place] for place, _ in lost}, [reply if isinstance(reply, bytes) else None for _, reply in lost]
        raise MemoryUnavailable(f"tallies changed under {_TRIES} tries")

    async def put_tallies(self, contents: Mapping[tuple[int, str], bytes]) -> None:
        """Writes these tallies, replacing them. For a Redis that forgot."""
        layouts, left = self.catalogue.tally_layouts, iter(contents.items())
        while batch := list(islice(left, 256)):
            await self._obeyed(*(("SET", layouts[number].key(token), content, "EX", layouts[number].keep_s) for (number, token), content in batch))

    async def tally(self, kind: str, token: str) -> bytes:
        """The bytes of an entity's tally, empty if it has none."""
        (content,) = await self._obeyed(("GET", self.catalogue.tally_layouts[self.catalogue.tallies.index(kind)].key(token)))
        return content if isinstance(content, bytes) else b""

    async def _swapped(self, swaps: list[tuple[str, bytes, bytes, int]]) -> list[Any]:
        """1 for each tally that was replaced, and what is there for each that was another by then."""
        commands = [("EVALSHA", _SWAP_SHA, 1, key, before[:HEADER_BYTES], after, keep_s) for key, before, after, keep_s in swaps]
        replies = await self.wire.send(*commands)
        if any(isinstance(reply, hiredis.ReplyError) and "NOSCRIPT" in str(reply) for reply in replies):
            await self._obeyed(("SCRIPT", "LOAD", _SWAP))
            replies = await self.wire.send(*commands)
        refused = [reply for reply in replies if isinstance(reply, hiredis.ReplyError)]
        if refused:
            raise MemoryUnavailable(f"Redis: {refused[0]}")
        return replies

    def decline(self, txn: Transaction) -> Awaitable[tuple[int, ...]]:
        """Remembers that it was declined or blocked; the place of that row in each log (-1: no such entity). Twice is once."""
        facts = declined_facts(facts_of(txn))
        return self._placed(facts[HASH], self._append_and_read(self._keys(txn), packed(self.catalogue, txn, facts), []))

    def remember_event(self, event: AccountEvent) -> Awaitable[tuple[int, ...]]:
        """Appends an account event to the account's log; its position in each log, in the order of the catalogue's logs."""
        rows = event_rows(self.catalogue, event)
        layouts = self.catalogue.log_layouts
        keys = [None if row is None else layout.key(event.account_id) for layout, row in zip(layouts, rows, strict=True)]
        return self._placed(event_facts(event)[HASH], self._append_and_read(keys, rows, []))

    async def _placed(self, hash_: int, read: Awaitable[tuple[list[bytes | None], list[bytes | None], tuple[str, ...]]]) -> tuple[int, ...]:
        logs, _, _ = await read
        pairs = zip(self.catalogue.log_layouts, logs, strict=True)
        return tuple(-1 if log is None else place_in(log, layout.row_bytes, hash_)[0] for layout, log in pairs)

    async def _obeyed(self, *commands: Command) -> list[Any]:
        """The replies; MemoryUnavailable if a command was refused."""
        replies = await self.wire.send(*commands)
        refused = [reply for reply in replies if isinstance(reply, hiredis.ReplyError)]
        if refused:
            raise MemoryUnavailable(f"Redis: {refused[0]}")
        return replies

    async def know(self, kind: str, token: str, column: str, value: float, known_at_ms: int) -> None:
        """Makes one column of a profile known since `known_at_ms`."""
        write = profile_write(self.catalogue, kind, token, column, value, known_at_ms)
        if write is not None:
            await self._obeyed(write)

    async def know_account(self, state: AccountState) -> None:
        """Makes an account's state known as of its `as_of_ms`."""
        await self._obeyed(*profile_writes(self.catalogue, state))

    async def restore(self, decided: Iterable[Decided]) -> int:
        """Writes the logs of these decided transactions, replacing them; how many logs. For a Redis that forgot."""
        logs = gathered(self.catalogue, decided)
        left = iter(logs.items())
        while batch := list(islice(left, 256)):
            sets: list[Command] = []
            for (number, token), rows in batch:
                key = self.catalogue.log_layouts[number].key(token)
                sets.append(("SET", key, rebuilt_log(self.catalogue, number, rows), "EX", self.ttl_s))
            await self._obeyed(*sets)
        return len(logs)

    async def log(self, kind: str, token: str) -> bytes:
        """The bytes of an entity's log, empty if it has none."""
        key = self.catalogue.log_layouts[self.catalogue.logs.index(kind)].key(token)
        (content,) = await self.wire.send(("GET", key))
        return content if isinstance(content, bytes) else b""

    async def tidy(self, kind: str, token: str) -> None:
        """Brings a log to rest: each row once, old chunks in the header. MemoryUnavailable if Redis does not answer."""
        number = self.catalogue.logs.index(kind)
        try:
            await self._tidy(self.catalogue.log_layouts[number].key(token), number)
        except (RedisError, OSError) as error:
            raise MemoryUnavailable(f"Redis: {error}") from error

    async def _tidy(self, key: str, number: int) -> None:
        """Watches, reads, replaces; again if the log grew meanwhile."""
        if self._client is None:
            wire = self.wire
            self._client = Redis(username=wire.username, password=wire.password, socket_timeout=wire.timeout_s, **address(wire.url))
        while True:
            async with self._client.pipeline() as pipe:
                await pipe.watch(key)
                old = await pipe.get(key)
                if not isinstance(old, bytes) or (new := tidied(self.catalogue, number, old)) == old:
                    return
                pipe.multi()  # type: ignore[no-untyped-call]  # redis-py left it without types
                pipe.set(key, new, keepttl=True)
                try:
                    await pipe.execute()
                    return
                except WatchError:
                    continue

    async def _tidy_all(self) -> None:
        while self._untidy:
            key, number = self._untidy.popitem()
            try:
                await self._tidy(key, number)
            except (RedisError, OSError):
                self.tidy_failures += 1

    async def settle(self) -> None:
        """Returns when all tidying that was due is done."""
        while self._tidying is not None and not self._tidying.done():
            await self._tidying

    async def close(self) -> None:
        """Ends the tidying and its connection; the wire stays open."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
