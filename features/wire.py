"""The door to Redis: a transport that sends a loop tick's commands in one write, to one server or a cluster."""

from __future__ import annotations

import asyncio
import functools
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import hiredis
import numpy as np

from features import resp, slots
from features.slots import Command, Node
from schemas.errors import MemoryUnavailable, SettingsError

__all__ = ["Command", "Wire", "address", "parsed", "seeds"]

T = TypeVar("T")
_DOWN = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "MISCONF", "OOM", "BUSY")
"""Errors by which a server says that it cannot serve now, rather than that a command is wrong."""
_BACKOFF_S, _BACKOFF_MAX_S = 0.02, 1.0
_CLUSTER = "redis+cluster://"
_PAUSE_S = 0.005
"""Before a command is sent a third time: what moves a slot tells its nodes one after the other."""
_RELEARN_S = 0.1
_NOBODY = ("", 0)
_FULL = 64
"""Buffered commands that are enough for a write of their own."""
_LATER_S = 0.005
"""So long what nobody waits for may stay buffered."""
_AT_ONCE = 2_048
"""Pieces of commands that are sent to a cluster together, at most."""
_ROOM, _ROOM_MAX = 1 << 18, 1 << 24
"""Bytes in which replies arrive; and how many are kept when a longer one has passed."""


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


Read = Callable[[memoryview], Any]
"""Reads replies in the room in which they arrived, which the next overwrite."""


class _Request:
    """Commands that were sent together and wait for their replies. Without a future nobody wants to know them."""

    __slots__ = ("awaited", "deadline", "future", "left", "read")

    def __init__(self, future: asyncio.Future[Any] | None, awaited: int, deadline: float, read: Read | None = None) -> None:
        self.future, self.awaited, self.deadline, self.read = future, awaited, deadline, read
        self.left = awaited

    def settle(self, replies: memoryview, reader: hiredis.Reader) -> None:
        """All replies are there."""
        if self.future is None or self.future.done():
            return
        try:
            self.future.set_result(parsed(replies, self.awaited, reader) if self.read is None else self.read(replies))
        except Exception as error:  # noqa: BLE001 whoever asked is told, and the connection goes on
            self.future.set_exception(error)

    def fail(self, reason: str) -> None:
        """Nobody knows whether the commands were carried out."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(MemoryUnavailable(reason))


def parsed(replies: bytes | memoryview, count: int, reader: hiredis.Reader | None = None) -> list[Any]:
    """So many replies, an error as a `hiredis.ReplyError` in its place. MemoryUnavailable if the server says that it cannot serve now.

    `reader`: one that has read all that it was given, and has room already.
    """
    reader = hiredis.Reader() if reader is None else reader
    reader.feed(replies)  # type: ignore[arg-type]  # it takes any buffer
    gets = reader.gets
    try:
        found = [gets() for _ in range(count)]
    except hiredis.ProtocolError as error:
        raise MemoryUnavailable(f"Redis answered in no known way: {error}") from error
    for reply in found:
        if reply.__class__ is hiredis.ReplyError and str(reply).startswith(_DOWN):
            raise MemoryUnavailable(f"Redis: {reply}")
    return found


class _Link(asyncio.BufferedProtocol):
    """One connection: buffers what is sent in a loop tick, and pairs replies with requests in order."""

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self.wire, self.loop = wire, loop
        self.transport: asyncio.Transport | None = None
        self.waiting: deque[_Request] = deque()
        self.unsent: list[bytes] = []
        self.soon: asyncio.Handle | None = None
        self.later: asyncio.TimerHandle | None = None
        """The write that is arranged for what is unsent."""
        self.alarm: asyncio.TimerHandle | None = None
        self.reader = hiredis.Reader()
        self._renew(_ROOM)

    def _renew(self, size: int) -> None:
        self.room = np.empty(size, np.uint8)
        self.view = memoryview(self.room)  # type: ignore[arg-type]
        self.begin = self.at = self.end = 0
        """Where the replies of the oldest request begin, the next of them, and where what has come ends."""

    def connection_made(self, transport: Any) -> None:
        """The connection stands."""
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """The connection fell: all that wait are told, and the wire looks for another."""
        self.end_with(f"the connection to Redis was lost: {error or 'closed'}")
        self.wire._lost(self)

    def end_with(self, reason: str, flushed: bool = False) -> None:
        """Fails all requests and closes; `flushed`: what is unsent is sent first, where that takes no waiting."""
        if flushed:
            self._flush()
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        waiting, self.waiting, self.unsent = self.waiting, deque(), []
        for request in waiting:
            request.fail(reason)
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room for what comes."""
        if self.end == self.room.size:
            before, begin, at, used = self.room, self.begin, self.at, self.end - self.begin
            self._renew(before.size if 2 * used <= before.size else 2 * before.size)
            self.room[:used] = before[begin:]
            self.at, self.end = at - begin, used
        return self.view[self.end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Replies came, or parts of them."""
        self.end += nbytes
        waiting = self.waiting
        while self.at < self.end:
            if not waiting:
                self.end_with("Redis answered in no known way: nobody asked")
                return
            request = waiting[0]
            self.at, request.left = resp.skipped(self.room, self.at, self.end, request.left)
            if request.left:
                if request.left == resp.WRONG:
                    self.end_with("Redis answered in no known way")
                return
            waiting.popleft()
            replies, self.begin = self.view[self.begin : self.at], self.at
            request.settle(replies, self.reader)
            if self.reader.has_data():  # what it could not read stays in it
                self.reader = hiredis.Reader()
        if self.room.size > _ROOM_MAX:
            self._renew(_ROOM)
        self.begin = self.at = self.end = 0

    def send(self, commands: tuple[Command, ...], future: asyncio.Future[list[Any]] | None, timeout_s: float) -> None:
        """Buffers commands; the first of a tick arranges the write. Many together go at once: Redis works while the next are prepared.

        What nobody waits for goes along with what comes next, or a little later: a write of its own costs more than all else of it.
        """
        if future is not None:
            if self.soon is None:
                self.soon = self.loop.call_soon(self._flush)
        elif self.later is None:
            self.later = self.loop.call_later(_LATER_S, self._flush_late)
        self.unsent += map(hiredis.pack_command, commands)
        if len(self.unsent) >= _FULL:
            self._flush()
        self._wait(_Request(future, len(commands), self.loop.time() + timeout_s), timeout_s)

    def exchange(self, commands: memoryview, replies: int, future: asyncio.Future[Any], read: Read, timeout_s: float) -> None:
        """Sends commands that are written already, behind what is buffered, in one write."""
        self._flush(commands)
        self._wait(_Request(future, replies, self.loop.time() + timeout_s, read), timeout_s)

    def _wait(self, request: _Request, timeout_s: float) -> None:
        self.waiting.append(request)
        if self.alarm is None:
            self.alarm = self.loop.call_later(timeout_s, self._ring)

    def _flush_late(self) -> None:
        self.later = None
        self._flush()

    def _flush(self, more: memoryview | None = None) -> None:
        """What is unsent goes. The later write stays, if one is arranged: to end and begin a timer each time costs more than it saves."""
        if self.soon is not None:
            self.soon.cancel()
            self.soon = None
        unsent, self.unsent = self.unsent, []
        if self.transport is None:
            return
        if unsent:
            self.transport.write(b"".join(unsent if more is None else (*unsent, more)))
        elif more is not None:
            self.transport.write(more)

    def _ring(self) -> None:
        """Ends the connection if its oldest request is overdue: replies come in order, so a late one would meet the wrong request."""
        self.alarm = None
        if not self.waiting:
            return
        left_s = self.waiting[0].deadline - self.loop.time()
        if left_s <= 0:
            self.end_with("Redis did not answer in time")
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
        resp.skipped(np.empty(0, np.uint8), 0, 0, 0)  # the first time on a machine it is compiled: not while an answer is waited for
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

    @property
    def is_single(self) -> bool:
        """Whether one server has every key, so that `exchange` is possible."""
        return True

    def exchange(self, commands: memoryview, replies: int, read: Callable[[memoryview], T]) -> asyncio.Future[T]:
        """Sends commands that are written already; the future gives what `read` makes of their replies (so many), in the room in which they came.

        To a single server alone. MemoryUnavailable on timeout or a lost connection.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if self._link is None:
            future.set_exception(MemoryUnavailable("Redis is not connected"))
        else:
            self._link.exchange(commands, replies, future, read, self.timeout_s)
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
            link.end_with("the wire was closed", flushed=True)
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
            link.end_with("Redis does not serve")
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
    def is_single(self) -> bool:
        """Many servers have the keys."""
        return False

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
