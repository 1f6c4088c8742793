"""The door to Redis: a transport that sends a loop tick's commands in one write, and the memory of entities that rests on it."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections import defaultdict, deque
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import hiredis

from features import slots
from features.catalogue import Catalogue
from features.engine import KEPT_ON, UNTIDY, Past, event_bytes, kept_up, own_bytes, packed, place_in, row_slices, rows_of, section
from features.fact import HASH, declined_facts, event_facts, facts_of
from features.log import REWRITTEN_ROWS, rebuilt_log, tidied
from features.memory import Aside, Decided, Happened, Updates, event_rows, gathered, keys_of
from features.profile import profile_write, profile_writes
from features.slots import Command, Node
from features.tally import HEADER_BYTES, updated
from schemas.account import AccountEvent, AccountState
from schemas.errors import MemoryUnavailable, SettingsError
from schemas.transaction import Transaction

__all__ = ["Command", "RedisMemory", "Wire", "address", "seeds"]

_DOWN = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "MISCONF", "OOM", "BUSY")
"""Errors by which a server says that it cannot serve now, rather than that a command is wrong."""
_BACKOFF_S, _BACKOFF_MAX_S = 0.02, 1.0
_DAY_MS = 86_400_000
_CLUSTER = "redis+cluster://"
_PAUSE_S = 0.005
"""Before a command is sent a third time: what moves a slot tells its nodes one after the other."""
_RELEARN_S = 0.1
_NOBODY = ("", 0)
_FULL = 64
"""Buffered commands that are enough for a write of their own."""
_AT_ONCE = 2_048
"""Pieces of commands that are sent to a cluster together, at most."""
_SWAP = b"""
local size = #ARGV[1]
if redis.call('GETRANGE', KEYS[1], 0, size - 1) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2] .. redis.call('GETRANGE', KEYS[1], size, -1), 'KEEPTTL')
return 1
"""
"""What a log begins with, replaced if it still begins so; what was appended meanwhile stays behind it."""
_SWAP_SHA = hashlib.sha1(_SWAP, usedforsecurity=False).hexdigest().encode()
_TAKE = b"""
if redis.call('EXISTS', KEYS[2]) == 0 then return redis.error_reply('FORGOT Redis does not know how far it is') end
local now = redis.call('GET', KEYS[1]) or ''
if string.sub(now, 1, #ARGV[1]) ~= ARGV[1] or (#ARGV[1] == 0 and now ~= '') then return now end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
"""A tally, replaced if its head is still the one that was read: a later one has taken other rows. KEYS[2]: the mark of a whole Redis."""
_TAKE_SHA = hashlib.sha1(_TAKE, usedforsecurity=False).hexdigest().encode()
_TRIES = 64
_TIDIED_AT_ONCE = 16
"""Logs that are brought to rest with one request: Redis does not work on more of that between two decisions."""
_NOTHING = slice(0)


def address(url: str) -> dict[str, Any]:
    """Where a Redis is: `unix:///path` or `redis://host:port`, as redis-py names the parts. SettingsError for anything else."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return {"unix_socket_path": parts.path}
    if parts.scheme == "redis" and parts.hostname:
        return {"host": parts.hostname, "port": parts.port or 6379}
    raise SettingsError(f"Redis address {url!r} is neither unix:///path nor redis://host:port nor redis+cluster://host:port,host:port")


def seeds(url: str) -> tuple[Node, ...]:
    """The nodes that a `redis+cluster://host:port,host:port` names: any one that answers tells of all others."""
    places = [address(f"redis://{place}") for place in url.removeprefix(_CLUSTER).split(",")]
    return tuple((place["host"], place["port"]) for place in places)


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
        except (hiredis.ProtocolError, IndexError) as error:
            self.end(f"Redis answered in no known way: {error}")

    def send(self, commands: tuple[Command, ...], future: asyncio.Future[list[Any]] | None, timeout_s: float) -> None:
        """Buffers commands; the first of a tick arranges the write. Many together go at once: Redis works while the next are prepared."""
        if not self.unsent:
            self.loop.call_soon(self._flush)
        self.unsent += map(hiredis.pack_command, commands)
        if len(self.unsent) >= _FULL:
            self._flush()
        self.waiting.append(_Request(future, len(commands), self.loop.time() + timeout_s))
        if self.alarm is None:
            self.alarm = self.loop.call_later(timeout_s, self._ring)

    def _flush(self) -> None:
        unsent, self.unsent = self.unsent, []
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
        """A wire to the Redis or (`redis+cluster://`) the cluster of that address, as that user or the default one.

        MemoryUnavailable if nobody answers in time.
        """
        wire = (ClusterWire if url.startswith(_CLUSTER) else cls)(url, password, username, timeout_s)
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

    def ask(self, *commands: Command) -> asyncio.Future[list[Any]]:
        """As `send`; on a cluster a node that is not reached fails its own commands alone."""
        return self.send(*commands)

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


class _Group:
    """The pieces of commands that were sent together to a cluster, and the replies that came."""

    __slots__ = ("commands", "error", "future", "left", "partial", "pieces", "replies", "said_by")

    def __init__(self, commands: tuple[Command, ...], parts: list[slots.Piece], future: asyncio.Future[list[Any]], partial: bool) -> None:
        self.commands, self.pieces, self.future, self.partial = commands, parts, future, partial
        self.replies: list[Any] = [None] * len(parts)
        self.said_by: list[Node] = [_NOBODY] * len(parts)
        self.left = 0
        self.error: BaseException | None = None

    def answer(self) -> None:
        """Gives the asker what came."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(slots.joined(self.commands, self.pieces, self.replies))
        else:
            self.future.set_exception(self.error)


class ClusterWire(Wire):
    """A wire to each master of a Redis Cluster, behind the face of one.

    Each command touches one slot and goes to the node that serves it; those of one call for one node go in one request, in their
    order. Two calls of which neither waits for the other have no order between them while a slot moves. A command is sent again
    only when a node said that it did not carry it out, and not beyond the time of the call.
    """

    def __init__(self, url: str, password: str | None, username: str | None, timeout_s: float) -> None:
        super().__init__(url, password, username, timeout_s)
        self._seeds = seeds(url)
        self._owners: list[Node | None] = [None] * slots.SLOTS
        self._masters: frozenset[Node | None] = frozenset(self._owners)
        self._wires: dict[Node, Wire] = {}
        self._opening: defaultdict[Node, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stretches: tuple[int, ...] = ()
        self._unmarked: set[int] = set()
        """Slots whose marks were missing when they were last read: a read of the mark alone asks for them, and for one of each stretch."""
        self._relearning: asyncio.Task[None] | None = None
        self._following: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Whether every slot has a master that is connected."""
        return None not in self._masters and all(map(self._reaches, self._masters))

    def send(self, *commands: Command) -> asyncio.Future[list[Any]]:
        """See `Wire.send`. Nothing is sent if one of the nodes that it takes is not connected. MULTI is for a single server."""
        parts = self._for_nodes(slots.pieces(commands, (*self._stretches, *self._unmarked)))
        if len(parts) <= _AT_ONCE:
            return self._send(commands, parts)
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self._keep(self._send_in_turn(commands, parts, future))
        return future

    async def _send_in_turn(self, commands: tuple[Command, ...], parts: list[slots.Piece], future: asyncio.Future[list[Any]]) -> None:
        """Some pieces after the others: what is for every slot has the time of a call for each lot, and lets others send in between."""
        replies: list[Any] = []
        try:
            for begin in range(0, len(parts), _AT_ONCE):
                lot = [piece._replace(place=place, part=-1) for place, piece in enumerate(parts[begin : begin + _AT_ONCE])]
                replies += await self._send(tuple(piece.command for piece in lot), lot)
        except (MemoryUnavailable, asyncio.CancelledError) as error:
            if not future.done():
                future.set_exception(error if isinstance(error, MemoryUnavailable) else MemoryUnavailable("the wire was closed"))
        else:
            if not future.done():
                future.set_result(slots.joined(commands, parts, replies))

    def ask(self, *commands: Command) -> asyncio.Future[list[Any]]:
        """See `Wire.ask`: what a node that is not reached would have said is `slots.Unreached`."""
        return self._send(commands, self._for_nodes(slots.pieces(commands, (*self._stretches, *self._unmarked))), partial=True)

    def _send(self, commands: tuple[Command, ...], parts: list[slots.Piece], partial: bool = False) -> asyncio.Future[list[Any]]:
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        group = _Group(commands, parts, future, partial)
        routes: dict[Node, list[int]] = {}
        for number, piece in enumerate(group.pieces):
            node = group.said_by[number] = self._node_of(piece)
            routes.setdefault(node, []).append(number)
        gone = [node for node in routes if not self._reaches(node)]
        if gone:
            self._relearn()
            error = MemoryUnavailable("a node of the Redis cluster is not connected")
            if not partial or len(gone) == len(routes):
                future.set_exception(error)
                return future
            for node in gone:
                self._unreached(group, routes.pop(node), error)
        if not routes:
            future.set_result([])
        else:
            deadline = self._loop.time() + self.timeout_s
            group.left = len(routes)
            for node, numbers in routes.items():
                sent = self._wires[node].send(*[group.pieces[number].command for number in numbers])
                sent.add_done_callback(functools.partial(self._answered, group, numbers, deadline))
        return future

    def post(self, *commands: Command) -> None:
        """See `Wire.post`."""
        self.send(*commands).add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)

    async def close(self) -> None:
        """Closes; requests that wait fail."""
        self._closed = True
        under_way = [task for task in (*self._following, self._relearning) if task is not None]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        wires, self._wires = self._wires, {}
        for wire in wires.values():
            await wire.close()

    def _reaches(self, node: Node | None) -> bool:
        wire = None if node is None else self._wires.get(node)
        return wire is not None and wire.connected

    def _for_nodes(self, parts: list[slots.Piece]) -> list[slots.Piece]:
        """What is for every node, once for each: as a piece of one of its slots."""
        if all(piece.slot is not None for piece in parts):
            return parts
        one_each = {node: slot for slot, node in enumerate(self._owners)}.values()
        return [one for piece in parts for one in ([piece] if piece.slot is not None else [piece._replace(slot=slot) for slot in one_each])]

    def _node_of(self, piece: slots.Piece) -> Node:
        assert piece.slot is not None
        return self._owners[piece.slot] or _NOBODY

    def _answered(self, group: _Group, numbers: list[int], deadline: float, sent: asyncio.Future[list[Any]]) -> None:
        """Takes what one node said; after the last, gives the answer or follows those that were refused."""
        group.left -= 1
        group.error = self._taken(group, numbers, sent) or group.error
        if group.left:
            return
        again = [] if group.error is not None else slots.to_repeat(group.pieces, group.replies, range(len(group.pieces)))
        if again:
            self._keep(self._follow(group, again, deadline))
        else:
            self._answer(group)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something until it is done or the wire is closed."""
        task = self._loop.create_task(work)
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    def _answer(self, group: _Group) -> None:
        """Gives the asker what came, and notes which slots are without their mark."""
        if group.error is None:
            for slot, missing in slots.unmarked(group.pieces, group.replies).items():
                (self._unmarked.add if missing else self._unmarked.discard)(slot)
        group.answer()

    def _taken(self, group: _Group, numbers: list[int], sent: asyncio.Future[list[Any]]) -> BaseException | None:
        if sent.cancelled():
            return MemoryUnavailable("the request to a node of the Redis cluster was cancelled")
        if (error := sent.exception()) is not None:
            self._relearn()
            if group.partial:
                self._unreached(group, numbers, error)
                return None
            return error
        for number, reply in zip(numbers, sent.result(), strict=True):
            group.replies[number] = reply
        return None

    @staticmethod
    def _unreached(group: _Group, numbers: list[int], error: BaseException) -> None:
        for number in numbers:
            group.replies[number] = slots.Unreached(str(error))

    async def _follow(self, group: _Group, again: list[int], deadline: float) -> None:
        """Sends the refused pieces again, to where they were referred to, until none is refused."""
        try:
            async with asyncio.timeout_at(deadline):
                for hop in range(slots.SLOTS):
                    if hop:
                        await asyncio.sleep(_PAUSE_S)
                    await self._repeat(group, again)
                    again = slots.to_repeat(group.pieces, group.replies, again)
                    if not again:
                        break
        except TimeoutError:
            group.error = MemoryUnavailable("a slot of the Redis cluster was not served in time")
        except asyncio.CancelledError:
            group.error = MemoryUnavailable("the wire was closed")
        except MemoryUnavailable as error:
            group.error = error
        self._answer(group)

    async def _repeat(self, group: _Group, again: list[int]) -> None:
        """One more try of these pieces: each goes where the last refusal of its key said."""
        ways: dict[bytes | str, slots.Way] = {}
        routes: dict[Node, list[int]] = {}
        for number in again:
            piece = group.pieces[number]
            if slots.is_refused(group.replies[number]):
                ways[piece.key] = slots.way(group.replies[number], group.said_by[number])
            routes.setdefault(await self._on_the_way(piece, ways[piece.key]), []).append(number)
        sent = [self._resend(node, [(group.pieces[n].command, ways[group.pieces[n].key].asking) for n in routes[node]]) for node in routes]
        results = await asyncio.gather(*sent, return_exceptions=True)
        for (node, numbers), replies in zip(routes.items(), results, strict=True):
            if isinstance(replies, BaseException):
                self._relearn()
                raise replies
            for number, reply in zip(numbers, replies, strict=True):
                group.replies[number], group.said_by[number] = reply, node

    async def _on_the_way(self, piece: slots.Piece, way: slots.Way) -> Node:
        """The node to which a piece is to go, and a wire to it is open; a slot that moved is noted on the map."""
        if way.node is None:
            return self._node_of(piece)
        await self._reached(way.node)
        if not way.asking and piece.slot is not None and self._owners[piece.slot] != way.node:
            self._owners[piece.slot] = way.node
            self._relearn(way.node)
        return way.node

    async def _resend(self, node: Node, commands: list[tuple[Command, bool]]) -> list[Any]:
        """The replies of a node to commands, those marked so each behind an ASKING."""
        if not self._reaches(node):
            raise MemoryUnavailable("a node of the Redis cluster is not connected")
        words = [word for command, asking in commands for word in ((("ASKING",), command) if asking else (command,))]
        replies = iter(await self._wires[node].send(*words))
        return [(next(replies), next(replies))[1] if asking else next(replies) for _, asking in commands]

    async def _reached(self, node: Node) -> Wire:
        """The wire to a node, opened if need be."""
        async with self._opening[node]:
            if node not in self._wires:
                host = f"[{node[0]}]" if ":" in node[0] else node[0]
                self._wires[node] = await Wire.connect(f"redis://{host}:{node[1]}", self.password, self.username, self.timeout_s)
            return self._wires[node]

    async def _open(self) -> None:
        """Learns the map, and reaches every master. MemoryUnavailable if that fails."""
        try:
            await self._learn(None)
        except BaseException:
            await self.close()
            raise

    async def _learn(self, knows: Node | None) -> None:
        """Asks for a map by which every slot is served: the node that knows best, those that are connected, those of the address.

        MemoryUnavailable if nobody has one; then the last map that was told stands.
        """
        error = MemoryUnavailable(f"no node of the Redis cluster at {self.url} answers")
        nodes = [node for node in (knows, *self._wires, *self._seeds) if node is not None]
        for node in sorted(dict.fromkeys(nodes), key=lambda node: not self._reaches(node)):
            try:
                (reply,) = await (await self._reached(node)).send(("CLUSTER", "SLOTS"))
            except MemoryUnavailable as unavailable:
                error = unavailable
                continue
            if isinstance(reply, list):
                await self._adopt(slots.owners(reply, node))
                if self.connected:
                    return
            said = "not every slot is served" if isinstance(reply, list) else str(reply)
            error = MemoryUnavailable(f"the Redis cluster at {self.url}: {said}")
        raise error

    async def _adopt(self, owners: list[Node | None]) -> None:
        """Takes over a map; reaches its masters, and lets those go that are masters no more and do not answer."""
        self._owners, self._masters = owners, frozenset(owners)
        self._stretches = tuple(slot for slot in range(slots.SLOTS) if not slot or owners[slot] != owners[slot - 1])
        await asyncio.gather(*(self._reached(node) for node in self._masters if node is not None), return_exceptions=True)
        for node in [node for node, wire in self._wires.items() if node not in self._masters and not wire.connected]:
            await self._wires.pop(node).close()

    def _relearn(self, knows: Node | None = None) -> None:
        """Sees to it that the map is learned again; for as long as it names masters that do not answer."""
        if not self._closed and (self._relearning is None or self._relearning.done()):
            self._relearning = self._loop.create_task(self._learn_all(knows))

    async def _learn_all(self, knows: Node | None) -> None:
        while True:
            with suppress(MemoryUnavailable):
                return await self._learn(knows)
            await asyncio.sleep(_RELEARN_S)


_ALONE = Aside()


class _Asked(NamedTuple):
    """What one transaction asks of its memories: the key of each log, the row that goes there (b"": none, it is only read; None: neither),
    the keys of profiles and tallies, and what else goes along."""

    own: bytes
    """What the rows say (`own_bytes`)."""
    keys: list[str | None]
    rows: Sequence[bytes | None]
    more: list[str | None]
    aside: Aside


class _Found(NamedTuple):
    """What the memories answered: the logs, the profiles and tallies, and the kinds of logs that could not be read."""

    logs: list[bytes | None]
    more: list[bytes | None]
    missing: tuple[str, ...]


async def _only(answers: Awaitable[list[Past]]) -> Past:
    (past,) = await answers
    return past


class RedisMemory:
    """The memory of entities in Redis: one string per log and per profile, commands that touch one key each (and one MGET)."""

    def __init__(self, wire: Wire, catalogue: Catalogue, ttl_s: int | None = None) -> None:
        """`ttl_s`: how long a log is kept after it grew, less an eighth at most; by default twice its longest window with slack."""
        self.wire, self.catalogue = wire, catalogue
        self.ttl_s = 2 * catalogue.keep_ms // 1000 if ttl_s is None else ttl_s
        self._refresh_ms = max(_DAY_MS, self.ttl_s * 1000 // 8)
        """Expiry is put off when a log is new, and when an event falls into another span of this length than the one before it."""
        self._keys, self._logs, self._profiles = keys_of(catalogue), len(catalogue.logs), len(catalogue.profiles)
        self._rows = tuple(_NOTHING if entity.log_of else place for entity, place in zip(catalogue.log_entities, row_slices(catalogue), strict=True))
        self._kinds = (*[f"{kind}_profile" for kind in catalogue.profiles], *catalogue.tallies)
        self._nothings = (None,) * self._profiles + (b"",) * len(catalogue.tallies)  # a tally that is not there is one without a row
        self.tidy_failures = 0
        self._untidy: dict[str, tuple[int, bytes]] = {}
        self._tidying: asyncio.Task[None] | None = None

    def _parted(self, replies: list[Any], asked: _Asked) -> _Found:
        """What the replies to one's appends and MGET say."""
        values, aside = replies[-1], asked.aside
        if isinstance(values, hiredis.ReplyError):
            raise MemoryUnavailable(f"Redis: {values}")
        at, of = len(aside.writes), len(aside.reads)
        if aside is not _ALONE:
            aside.wrote, aside.found = replies[:at], values[:of]
        logs: list[bytes | None] = []
        missing: list[str] = []
        for row in asked.rows:
            log = None
            if row:
                log = values[of]
                if log.__class__ is not bytes or replies[at].__class__ is not int:
                    log = None
                    missing.append(self.catalogue.logs[len(logs)])
                at, of = at + 1, of + 1
            elif row is not None:
                log = b"" if values[of] is None else values[of]
                if log.__class__ is not bytes:
                    log = None
                    missing.append(self.catalogue.logs[len(logs)])
                of += 1
            logs.append(log)
        others: list[bytes | None] = []
        for key, nothing, kind in zip(asked.more, self._nothings, self._kinds, strict=False):
            value = None
            if key is not None:
                value = nothing if values[of] is None else values[of]
                if isinstance(value, Exception):
                    value = None
                    missing.append(kind)
                of += 1
            others.append(value)
        return _Found(logs, others, tuple(dict.fromkeys(missing)) if missing else ())

    def _commands(self, asked: _Asked) -> list[Command]:
        """What is asked aside, the appends, and one MGET of those logs and of more keys."""
        _, keys, rows, more, aside = asked
        appends: list[Command] = [(b"APPEND", key, row) for key, row in zip(keys, rows, strict=True) if row]
        logs = [key for key, row in zip(keys, rows, strict=True) if row is not None]
        return [*aside.writes, *appends, (b"MGET", *aside.reads, *logs, *[key for key in more if key is not None])]

    def _append_and_read(self, asked: _Asked) -> Awaitable[list[bytes | None]]:
        """One request: the appends, and those logs."""
        return self._logs_in(asked, self.wire.ask(*self._commands(asked)))

    async def _logs_in(self, asked: _Asked, sent: asyncio.Future[list[Any]]) -> list[bytes | None]:
        logs = self._parted(await sent, asked).logs
        others = (None,) * (self._profiles + len(self.catalogue.tallies))
        self._keep_up([asked], [section(asked.own, (*logs, *others))], [logs])
        return logs

    def _keep_up(self, asked: Sequence[_Asked], sections: Sequence[bytes], logs: Sequence[Sequence[bytes | None]]) -> None:
        """What appends leave to do: expiry for a new log or a new span, tidying when a chunk is full or a row came twice."""
        for one, number, flag in kept_up(self.catalogue, sections, self._refresh_ms, REWRITTEN_ROWS):
            key, log = asked[one].keys[number], logs[one][number]
            if not asked[one].rows[number] or key is None or log is None:
                continue
            if flag & KEPT_ON:
                self.wire.post(("EXPIRE", key, self.ttl_s))
            if flag & UNTIDY:
                self._untidy[key] = number, log
        if self._untidy and (self._tidying is None or self._tidying.done()):
            self._tidying = asyncio.get_running_loop().create_task(self._tidy_all())

    def recall_all(self, txns: Sequence[Transaction], asides: Sequence[Aside] = ()) -> Awaitable[list[Past]]:
        """Appends each transaction to its logs, reads them, its profiles and tallies, all in one round trip. The commands are sent at the call.

        Never an error: what could not be read (no answer in time, a node gone, a key of the wrong type) is `missing`, by the kind of
        entity. Then what was asked aside has the error in its place.
        """
        owns = [own_bytes(txn, facts_of(txn)) for txn in txns]
        commands: list[Command] = []
        asked: list[_Asked] = []
        ends: list[int] = []
        for txn, own, rows, aside in zip(txns, owns, rows_of(self.catalogue, owns), asides or (_ALONE,) * len(txns), strict=True):
            keys = self._keys(txn)
            own_rows = [None if key is None else rows[place] for key, place in zip(keys, self._rows, strict=False)]
            one = _Asked(own, keys[: self._logs], own_rows, keys[self._logs :], aside)
            asked.append(one)
            commands += self._commands(one)
            ends.append(len(commands))
        return self._recalled(asked, ends, self.wire.ask(*commands))

    async def _recalled(self, asked: list[_Asked], ends: list[int], sent: asyncio.Future[list[Any]]) -> list[Past]:
        try:
            replies = await sent
        except MemoryUnavailable as error:
            return [self._forgotten(one.aside, error) for one in asked]
        pasts = [self._past(one, replies[begin:end]) for one, begin, end in zip(asked, (0, *ends), ends, strict=False)]
        there = [number for number, past in enumerate(pasts) if past.section is not None]
        if there:
            self._keep_up([asked[n] for n in there], [pasts[n].section or b"" for n in there], [pasts[n].logs for n in there])
        return pasts

    def _past(self, asked: _Asked, replies: list[Any]) -> Past:
        try:
            logs, more, missing = self._parted(replies, asked)
        except MemoryUnavailable as error:
            return self._forgotten(asked.aside, error)
        profiles, tallies = tuple(more[: self._profiles]), tuple(more[self._profiles :])
        return Past(tuple(logs), profiles, missing, None, tallies, section(asked.own, (*logs, *more)))

    def _forgotten(self, aside: Aside, error: MemoryUnavailable) -> Past:
        """The past of one whose memory does not answer."""
        if aside is not _ALONE:
            aside.wrote, aside.found = [error] * len(aside.writes), [error] * len(aside.reads)
        return Past.nothing(self.catalogue)

    def recall(self, txn: Transaction, aside: Aside | None = None) -> Awaitable[Past]:
        """`recall_all` of one."""
        return _only(self.recall_all((txn,), (aside or _ALONE,)))

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
        arguments = [(2, key, b"whole", before[:HEADER_BYTES], after, keep_s) for key, before, after, keep_s in swaps]
        replies = await self.wire.send(*((b"EVALSHA", _TAKE_SHA, *given) for given in arguments))
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")]
        if unknown:
            again = await self.wire.send(*((b"EVAL", _TAKE, *arguments[i]) for i in unknown))
            for i, reply in zip(unknown, again, strict=True):
                replies[i] = reply
        refused = [reply for reply in replies if isinstance(reply, hiredis.ReplyError)]
        if refused:
            raise MemoryUnavailable(f"Redis: {refused[0]}")
        return replies

    def decline(self, txn: Transaction, aside: Aside | None = None) -> Awaitable[tuple[int, ...]]:
        """Remembers that it was declined or blocked; the place of that row in each log (-1: no such entity). Twice is once."""
        facts = declined_facts(facts_of(txn))
        asked = _Asked(own_bytes(txn, facts), self._keys(txn)[: self._logs], packed(self.catalogue, txn, facts), [], aside or _ALONE)
        return self._placed(facts[HASH], self._append_and_read(asked))

    def remember_event(self, event: AccountEvent, aside: Aside | None = None) -> Awaitable[tuple[int, ...]]:
        """Appends an account event to the account's log; its position in each log, in the order of the catalogue's logs."""
        rows = event_rows(self.catalogue, event)
        layouts = self.catalogue.log_layouts
        keys = [None if row is None else layout.key(event.account_id) for layout, row in zip(layouts, rows, strict=True)]
        facts = event_facts(event)
        asked = _Asked(event_bytes(facts), keys, rows, [], aside or _ALONE)
        return self._placed(facts[HASH], self._append_and_read(asked))

    async def _placed(self, hash_: int, logs: Awaitable[list[bytes | None]]) -> tuple[int, ...]:
        pairs = zip(self.catalogue.log_layouts, await logs, strict=True)
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

    async def restore(self, decided: Iterable[Decided], happened: Iterable[Happened] = ()) -> int:
        """Writes the logs of these decided transactions and account events, replacing them; how many logs. For a Redis that forgot."""
        logs = gathered(self.catalogue, decided, happened)
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
        key = self.catalogue.log_layouts[number].key(token)
        (old,) = await self.wire.send(("GET", key))
        if isinstance(old, bytes) and (refused := await self._tidied({key: (number, old)})):
            raise MemoryUnavailable(f"Redis: {refused[0]}")

    async def _tidied(self, logs: dict[str, tuple[int, bytes]]) -> list[Exception]:
        """Replaces these logs, which were read so, by themselves at rest; reads those again that another process was first to replace.
        What is appended meanwhile does not disturb. Returns what was said of those that could not be replaced.
        """
        refused: list[Exception] = []
        while logs:
            swaps = [(1, key, old, tidied(self.catalogue, number, old)) for key, (number, old) in logs.items()]
            replies = await self.wire.ask(*((b"EVALSHA", _SWAP_SHA, *swap) for swap in swaps))
            unknown = [n for n, reply in enumerate(replies) if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")]
            for n, reply in zip(unknown, await self.wire.ask(*((b"EVAL", _SWAP, *swaps[n]) for n in unknown)), strict=True):
                replies[n] = reply
            refused += [reply for reply in replies if isinstance(reply, Exception)]
            lost = [key for key, reply in zip(logs, replies, strict=True) if reply == 0]
            now = await self.wire.ask(*(("GET", key) for key in lost))
            logs = {key: (logs[key][0], log) for key, log in zip(lost, now, strict=True) if isinstance(log, bytes)}
        return refused

    async def _tidy_all(self) -> None:
        while self._untidy:
            some = dict(islice(self._untidy.items(), _TIDIED_AT_ONCE))
            for key in some:
                del self._untidy[key]
            try:
                self.tidy_failures += len(await self._tidied(some))
            except MemoryUnavailable:
                self.tidy_failures += len(some)

    async def settle(self) -> None:
        """Returns when all tidying that was due is done."""
        while self._tidying is not None and not self._tidying.done():
            await self._tidying

    async def close(self) -> None:
        """Ends the tidying; the wire stays open."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
