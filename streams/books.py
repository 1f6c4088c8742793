"""The accounts' books in Redis: one string an account, changed only by compare-and-set, by the legal moves of `models/hold.py`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from features.wire import Command, Wire
from models.hold import EMPTY, Book, Step
from schemas.errors import MemoryUnavailable
from streams.answers import WHOLE, AnswerWords, sound

M = TypeVar("M")
_SWAP = b"""
if redis.call('EXISTS', KEYS[2]) == 0 then return redis.error_reply('FORGOT Redis does not know how far it is') end
if redis.call('GETRANGE', KEYS[1], 0, 7) ~= ARGV[1] then return redis.call('GET', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
_SWAP_SHA = hashlib.sha1(_SWAP, usedforsecurity=False).hexdigest().encode()
_SWAP_AND_KEEP = b"""
if redis.call('EXISTS', KEYS[2]) == 0 then return redis.error_reply('FORGOT Redis does not know how far it is') end
if redis.call('GETRANGE', KEYS[1], 0, 7) ~= ARGV[1] then return redis.call('GET', KEYS[1]) end
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[5])
redis.call('SET', KEYS[4], ARGV[4], 'EX', ARGV[5])
if KEYS[5] then redis.call('EXPIRE', KEYS[5], ARGV[5]) end
return 1
"""
"""As `_SWAP`, and the answer that rests on it, if there is none yet: both or neither. For one server that has all keys. The hold comes first:
should Redis stop between them, one without an answer lapses, and an answer without its hold would stand."""
_SWAP_AND_KEEP_SHA = hashlib.sha1(_SWAP_AND_KEEP, usedforsecurity=False).hexdigest().encode()
_SCRIPTS = {_SWAP_SHA: _SWAP, _SWAP_AND_KEEP_SHA: _SWAP_AND_KEEP}
_NOSCRIPT = "NOSCRIPT"
_TRIES = 64
UNREAD = object()


def book_key(account_id: str) -> bytes:
    """Where an account's book is."""
    return b"book:" + account_id.encode()


class Along(Protocol):
    """An answer that rests on what a move says, to be kept in the same step where one server has both."""

    def words(self, result: Any) -> AnswerWords | None:
        """The answer, if the move says this; None: it is to be kept later, if at all."""

    def was_kept(self) -> None:
        """The book was changed and the answer kept."""


class Change(NamedTuple, Generic[M]):
    """A pure move for an account's book, the book's bytes if the caller has just read them (see `Books.change`), and what goes along."""

    account_id: str
    move: Callable[[Book], M]
    seen: object
    along: Along | None = None


class _Tried(NamedTuple, Generic[M]):
    """A first try that is under way: what the move said, the book's bytes after it, whose turn it is, and the answer that goes along."""

    result: M
    content: bytes
    turn: _Turn
    along: Along | None


def after(result: object, book: Book) -> Book:
    """The book after a move that said this of it: a Step, a Book, or a Refusal, which changes nothing."""
    return result.book if isinstance(result, Step) else result if isinstance(result, Book) else book


def moved(move: Callable[[Book], M], book: Book) -> tuple[M, bytes | None]:
    """What the move says, and the bytes of the book after it; None if there is nothing to write."""
    result = move(book)
    changed = after(result, book)
    return result, None if changed is book else changed.to_bytes()


class _Turn:
    """Who in this process changes an account: one at a time, each starting from what the one before left. Mostly there is only one."""

    __slots__ = ("lock", "newest", "users")

    def __init__(self) -> None:
        self.lock: asyncio.Lock | None = None
        """Made when a second one comes; the first holds it then."""
        self.users = 1
        self.newest: bytes | None = None

    async def comes(self) -> None:
        """Waits until those who came before are done."""
        self.users += 1
        if self.lock is None:
            self.lock = asyncio.Lock()
            await self.lock.acquire()  # for the first one: nobody else has it, so this does not wait
        try:
            await self.lock.acquire()
        except BaseException:
            self.users -= 1
            raise

    def ends(self) -> bool:
        """Lets the next one come; whether there is none."""
        self.users -= 1
        if self.lock is not None:
            self.lock.release()
        return not self.users


class Books:
    """All books of one Redis."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._turns: dict[str, _Turn] = {}

    def asked(self, account_id: str) -> bytes:
        """What to read aside to get an account's book."""
        return book_key(account_id)

    def read(self, account_id: str) -> asyncio.Future[list[Any]]:
        """Sends the read of an account's book."""
        return self._wire.send((b"GET", book_key(account_id)))

    async def change(self, account_id: str, move: Callable[[Book], M], seen: object = UNREAD) -> M:
        """Applies a pure move to the account's book and returns what the move says; atomic against every other change.

        `move(book)` gives a Step, a Book or a Refusal; the very book it got means that there is nothing to write. `seen` is
        the book's bytes if the caller has just read them: a stale read costs one more round trip, never a wrong book.
        """
        turn = self._turns.get(account_id)
        if turn is None:
            turn = self._turns[account_id] = _Turn()
        else:
            await turn.comes()
        try:
            return await self._change(account_id, move, seen, turn)
        finally:
            if turn.ends():
                del self._turns[account_id]

    async def change_all(self, changes: Sequence[Change[M]]) -> list[M | MemoryUnavailable]:
        """`change` of each, the first tries in one request; what was refused or failed does not touch the others."""
        results: dict[int, M | MemoryUnavailable] = {}
        alone: dict[int, object] = {}
        tries: dict[int, _Tried[M]] = {}
        try:
            commands = [self._try(number, change, results, alone, tries) for number, change in enumerate(changes)]
            replies = await self._evaluated([command for command in commands if command is not None])
            for (number, tried), reply in zip(tries.items(), replies, strict=True):
                if reply == 1:
                    tried.turn.newest, results[number] = tried.content, tried.result
                    if tried.along is not None:
                        tried.along.was_kept()
                else:
                    alone[number] = reply if isinstance(reply, bytes) else UNREAD
        except MemoryUnavailable as error:
            results |= dict.fromkeys(tries, error)
        finally:
            for number, tried in tries.items():
                if tried.turn.ends():
                    del self._turns[changes[number].account_id]
        again = [self.change(changes[number].account_id, changes[number].move, seen) for number, seen in alone.items()]
        for number, said in zip(alone, await asyncio.gather(*again, return_exceptions=True), strict=True):
            if isinstance(said, BaseException) and not isinstance(said, MemoryUnavailable):
                raise said
            results[number] = said
        return [results[number] for number in range(len(changes))]

    def _try(
        self,
        number: int,
        change: Change[M],
        results: dict[int, M | MemoryUnavailable],
        alone: dict[int, object],
        tries: dict[int, _Tried[M]],
    ) -> Command | None:
        """The command of a first try, which is noted in `tries`; none where there is nothing to write, or it goes `alone`."""
        account_id, move, seen, along = change
        if seen is UNREAD or account_id in self._turns:
            alone[number] = seen
            return None
        known = seen if isinstance(seen, bytes) else None
        result, content = moved(move, Book.from_bytes(known))
        if content is None:
            results[number] = result
            return None
        words = along.words(result) if along is not None and self._wire.is_single else None
        turn = self._turns[account_id] = _Turn()
        tries[number] = _Tried(result, content, turn, along if words else None)
        version = known[:8] if known else b""
        if words is None:
            return b"EVALSHA", _SWAP_SHA, b"2", book_key(account_id), WHOLE, version, content
        keys = (book_key(account_id), WHOLE, *words.keys)
        return b"EVALSHA", _SWAP_AND_KEEP_SHA, b"%d" % len(keys), *keys, version, content, *words.contents

    async def _evaluated(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to these scripts. One that Redis does not know yet is sent in full."""
        replies = await self._wire.ask(*commands)
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, Exception) and _NOSCRIPT in str(reply)]
        again = await self._wire.ask(*[(b"EVAL", _SCRIPTS[commands[n][1]], *commands[n][2:]) for n in unknown])
        for n, reply in zip(unknown, again, strict=True):
            replies[n] = reply
        return replies

    async def _change(self, account_id: str, move: Callable[[Book], M], seen: object, turn: _Turn) -> M:
        known = turn.newest or (seen if isinstance(seen, bytes) else None)
        if known is None and seen is UNREAD:
            (known,) = sound(await self.read(account_id))
        for _ in range(_TRIES):
            result, content = moved(move, Book.from_bytes(known))
            if content is None:
                return result
            reply = await self._swap(account_id, known[:8] if known else b"", content)
            if reply == 1:
                turn.newest = content
                return result
            known = reply if isinstance(reply, bytes) else None
        raise MemoryUnavailable(f"the book of {account_id} changed under {_TRIES} tries")

    async def _swap(self, account_id: str, version: bytes, content: bytes) -> object:
        (reply,) = await self._evaluated([(b"EVALSHA", _SWAP_SHA, b"2", book_key(account_id), WHOLE, version, content)])
        if isinstance(reply, Exception):
            raise MemoryUnavailable(f"the book of {account_id} could not be written: {reply}")
        return reply


class DictBooks:
    """The same in this process, for worlds."""

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}

    def asked(self, account_id: str) -> bytes | None:
        """See `Books.asked`: here the book itself."""
        book = self.books.get(account_id)
        return None if book is None else book.to_bytes()

    def read(self, account_id: str) -> asyncio.Future[list[Any]]:
        """See `Books.read`."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        future.set_result([self.asked(account_id)])
        return future

    async def change(self, account_id: str, move: Callable[[Book], M], seen: object = UNREAD) -> M:
        """See `Books.change`."""
        book = self.books.get(account_id, EMPTY)
        result = move(book)
        self.books[account_id] = after(result, book)
        return result

    async def change_all(self, changes: Sequence[Change[M]]) -> list[M | MemoryUnavailable]:
        """See `Books.change_all`."""
        return [await self.change(change.account_id, change.move, change.seen) for change in changes]
