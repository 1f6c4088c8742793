"""The memory of entities in Redis."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from array import array
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple, cast

import hiredis
import numpy as np

from features import log, resp
from features.catalogue import Catalogue
from features.engine import (
    KEPT_ON,
    OWN_BYTES,
    UNTIDY,
    Bytes,
    Past,
    assembled,
    buffer_of,
    event_bytes,
    kept_up,
    marked_in,
    place_in,
    places,
    row_slices,
    rows_of,
    section,
)
from features.fact import DECLINED, HASH, LEAVES, MEASURES, SAYING, event_facts
from features.kernel import Array
from features.log import REWRITTEN_ROWS, rebuilt_log, tidied
from features.memory import Aside, Decided, Happened, Ready, Updates, event_rows, gathered, keys_of, prefixes_of, tokens_of
from features.profile import profile_write, profile_writes
from features.tally import HEADER_BYTES, updated
from features.wire import Command, Wire, parsed
from schemas.account import AccountEvent, AccountState
from schemas.avro import messagepack_of
from schemas.errors import MemoryUnavailable
from schemas.transaction import Transaction

_DAY_MS = 86_400_000
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


_ALONE = Aside()
_DONE = b"+OK\r\n"
"""What Redis says to a single write that it did."""


def _bytes(key: bytes | str) -> bytes:
    return key if isinstance(key, bytes) else key.encode()


class _Asked(NamedTuple):
    """What one transaction asks of its memories: the key of each log, the row that goes there (b"": none, it is only read; None: neither),
    the keys of profiles and tallies, and what else goes along."""

    own: bytes
    """What the rows say (`own_bytes`)."""
    keys: list[str | None]
    rows: Sequence[bytes | None]
    more: list[str | None]
    aside: Aside


class _Group(NamedTuple):
    """Transactions that are recalled together, and what else goes along. `derived`: the kind of the rows that say something of them, 0: themselves.

    `owns` are what the rows say, each OWN_BYTES; `tokens` where the token of each memory lies in `source` (`resp.spoken`).
    """

    txns: Sequence[Transaction]
    asides: Sequence[Aside]
    derived: int
    source: Bytes
    owns: Bytes
    tokens: Array


class _Given(NamedTuple):
    """The commands of a group, written, how many replies they have, and the lengths of what goes along: see `resp.asked`."""

    commands: Bytes
    replies: int
    lengths: Array


class _Found(NamedTuple):
    """What the memories answered: the logs, the profiles and tallies, and the kinds of logs that could not be read."""

    logs: list[bytes | None]
    more: list[bytes | None]
    missing: tuple[str, ...]


async def _only(answers: Awaitable[list[Past]]) -> Past:
    (past,) = await answers
    return past


async def _sound(answers: Awaitable[list[tuple[int, ...] | MemoryUnavailable]]) -> tuple[int, ...]:
    (said,) = await answers
    if isinstance(said, MemoryUnavailable):
        raise said
    return said


def warm(catalogue: Catalogue) -> None:
    """Loads (the first time on a machine: compiles) what serving from Redis runs, so that the first payment does not wait for it."""
    log.warm(catalogue)
    memory, txn = RedisMemory(cast(Wire, None), catalogue), log.WARM
    for derived in (0, DECLINED):
        group = memory._grouped((txn,), (), derived)
        given = memory._written(group)
        keys = int((group.tokens[..., 1] >= 0).sum())
        replies = b":0\r\n" * (given.replies - 1) + b"*%d\r\n" % keys + b"$0\r\n\r\n" * keys
        pasts = memory._read(group, given, memoryview(bytearray(replies)))
        assert not any(past.missing for past in pasts), "replies in which nothing is"
        places(catalogue, pasts)
    memory._spoken(group)


class RedisMemory:
    """The memory of entities in Redis: one string per log and per profile, commands that touch one key each (and one MGET)."""

    def __init__(self, wire: Wire, catalogue: Catalogue, ttl_s: int | None = None) -> None:
        """`ttl_s`: how long a log is kept after it grew, less an eighth at most; by default twice its longest window with slack."""
        self.wire, self.catalogue = wire, catalogue
        self.ttl_s = 2 * catalogue.keep_ms // 1000 if ttl_s is None else ttl_s
        self._refresh_ms = max(_DAY_MS, self.ttl_s * 1000 // 8)
        """Expiry is put off when a log is new, and when an event falls into another span of this length than the one before it."""
        self._keys, self._logs, self._profiles = keys_of(catalogue), len(catalogue.logs), len(catalogue.profiles)
        self._tokens, prefixes = tokens_of(catalogue), [prefix.encode() for prefix in prefixes_of(catalogue)]
        fields = (*catalogue.log_fields, *catalogue.profile_fields, *catalogue.tally_fields)
        self._leaves, self._uses = np.array([LEAVES[field] for field in fields], np.int64), max(map(fields.count, fields), default=0)
        self._prefixes, self._prefix_ends = np.frombuffer(b"".join(prefixes), np.uint8), np.cumsum([len(prefix) for prefix in prefixes])
        self._rows = tuple(_NOTHING if entity.log_of else place for entity, place in zip(catalogue.log_entities, row_slices(catalogue), strict=True))
        self._kinds = (*[f"{kind}_profile" for kind in catalogue.profiles], *catalogue.tallies)
        self._nothings = (None,) * self._profiles + (b"",) * len(catalogue.tallies)  # a tally that is not there is one without a row
        self._row_bytes = sum(layout.row_bytes for layout in catalogue.log_layouts)
        self._appends = np.array([not entity.log_of for entity in catalogue.log_entities], np.uint8)
        """Of each log whether a transaction leaves a row there."""
        absent = [resp.WRONG if appends else 0 for appends in self._appends] + [resp.NOTHING] * self._profiles + [0] * len(catalogue.tallies)
        self._absent = np.array(absent)
        """What each memory is that Redis does not have: after an append it is there, and a tally that is not is one without a row."""
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
        for key, nothing, kind in zip(asked.more, self._nothings, self._kinds, strict=True):
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

    async def _append_and_read(self, asked: _Asked) -> list[bytes | None]:
        """One request: the appends, and those logs."""
        found = self._parted(await self.wire.ask(*self._commands(asked)), asked)
        left = self._left(buffer_of([section(asked.own, (*found.logs, *found.more))]), 1)
        self._keep_up(left, lambda _, log: self._grown(asked, found.logs, log))
        return found.logs

    @staticmethod
    def _grown(asked: _Asked, logs: Sequence[bytes | None], number: int) -> tuple[str, bytes] | None:
        """Key and bytes of a log, if it got a row and was read."""
        key, log = asked.keys[number], logs[number]
        return (key, log) if asked.rows[number] and key is not None and log is not None else None

    def _left(self, whole: Bytes, count: int) -> list[tuple[int, int, int]]:
        """What the appends of so many leave to do; `whole` is the kernels' buffer of them."""
        return kept_up(self.catalogue, whole, count, self._refresh_ms, REWRITTEN_ROWS)

    def _keep_up(self, left: list[tuple[int, int, int]], log_of: Callable[[int, int], tuple[str, bytes] | None]) -> None:
        """What appends leave to do (`kept_up`): expiry for a new log or a new span, tidying when a chunk is full or a row came twice.

        `log_of` gives the key and the bytes of a log of one of them, None if it got no row.
        """
        for one, number, flag in left:
            if (found := log_of(one, number)) is None:
                continue
            key, log = found
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
        if not txns:
            return Ready([])
        group = self._grouped(txns, asides)
        return self._or_nothing(group, self._exchanged(group))

    def _grouped(self, txns: Sequence[Transaction], asides: Sequence[Aside], derived: int = 0) -> _Group:
        source = np.frombuffer(messagepack_of(txns), np.uint8)
        owns, tokens = np.empty(len(txns) * OWN_BYTES, np.uint8), np.empty((len(txns), len(self._absent), 2), np.int64)
        return _Group(txns, asides or (_ALONE,) * len(txns), derived, source, owns, tokens)

    def _spoken(self, group: _Group) -> None:
        """What the rows say, and whose they are."""
        resp.spoken(*SAYING, group.source, self._leaves, group.owns, OWN_BYTES, group.derived, self._appends, group.tokens)

    def _exchanged(self, group: _Group) -> Awaitable[list[Past]]:
        """What the group is told; the commands are sent now. With one server compiled code writes them and reads the replies."""
        if not self.wire.is_single:
            return self._exchanged_in_pieces(group)
        given = self._written(group)
        return self.wire.exchange(given.commands.data, given.replies, functools.partial(self._read, group, given))

    def _written(self, group: _Group) -> _Given:
        """The commands of a group."""
        reads = max([len(aside.reads) for aside in group.asides], default=0)
        words, sizes = list[bytes](), array("q")
        for aside in group.asides:
            writes = aside.writes
            given = [hiredis.pack_command(writes[0]) if len(writes) == 1 else b"".join(map(hiredis.pack_command, writes)), *map(_bytes, aside.reads)]
            sizes.append(len(writes))
            sizes.extend(map(len, given))
            sizes.extend((resp.NOT_ASKED,) * (1 + reads - len(given)))
            words += given
        lengths, said = np.frombuffer(sizes, np.int64).reshape(len(group.txns), 2 + reads), np.frombuffer(b"".join(words), np.uint8)
        room = resp.room_for(
            len(group.txns), self._row_bytes, self._prefixes.size, len(self._absent), reads, self._uses * group.source.size, said.size
        )
        out = np.empty(room, np.uint8)
        size, replies = resp.asked(
            self.catalogue.program,
            *SAYING,
            group.source,
            self._leaves,
            group.owns,
            OWN_BYTES,
            group.derived,
            self._appends,
            group.tokens,
            self._prefixes,
            self._prefix_ends,
            said,
            lengths,
            out,
        )
        return _Given(out[:size], replies, lengths)

    def _read(self, group: _Group, given: _Given, replies: memoryview) -> list[Past]:
        found = self._found_at_once(group, given, np.frombuffer(replies, np.uint8))
        if found is None:
            return self._read_with_care(group, replies, given.replies)
        whole, begins = found
        return [Past(whole, begin, end) for begin, end in pairwise(begins)]

    async def _or_nothing(self, group: _Group, sent: Awaitable[list[Past]]) -> list[Past]:
        try:
            return await sent
        except MemoryUnavailable as error:
            owns = group.owns.tobytes()
            return [self._forgotten(owns[n * OWN_BYTES : (n + 1) * OWN_BYTES], aside, error) for n, aside in enumerate(group.asides)]

    def _found_at_once(self, group: _Group, given: _Given, replies: Bytes) -> tuple[Bytes, list[int]] | None:
        """The kernels' buffer of all, and where each begins in it and the last ends; None if replies are not all as they are when all goes well."""
        of, reads = len(group.txns), given.lengths.shape[1] - 2
        spans, ends, begins = np.empty((of, reads + len(self._absent), 2), np.int64), np.empty((of, 2), np.int64), np.empty(of + 1, np.int64)
        room, marks = np.empty(replies.size + group.owns.size + 8 * (of * len(self._absent) + 1), np.uint8), np.empty((of, self._logs), np.uint8)
        size, marked = resp.found(
            self.catalogue.program,
            replies,
            group.owns,
            OWN_BYTES,
            given.lengths,
            group.tokens,
            self._appends,
            self._absent,
            len(MEASURES),
            self._refresh_ms,
            REWRITTEN_ROWS,
            spans,
            ends,
            room,
            begins,
            marks,
        )
        if not size:
            return None
        whole = room[:size]
        whole.flags.writeable = False

        def said(at: int, length: int) -> bytes | None:
            return replies[at : at + length].tobytes() if length >= 0 else None

        if reads or any(aside is not _ALONE for aside in group.asides):
            for aside, (begin, end), found in zip(group.asides, ends.tolist(), spans[:, :reads].tolist(), strict=True):
                wrote = replies[begin:end].tobytes()
                aside.wrote = [b"OK"] if wrote == _DONE else parsed(wrote, len(aside.writes))
                aside.found = [said(at, length) for at, length in found[: len(aside.reads)]]
        if marked:
            self._keep_up(marked_in(marks), lambda one, log: self._log_of(group, one, log, said(*spans[one, reads + log].tolist())))
        return whole, begins.tolist()

    def _log_of(self, group: _Group, one: int, log: int, content: bytes | None) -> tuple[str, bytes] | None:
        """Key and bytes of a log of one of a group, if it got a row and is there."""
        token = self._tokens(group.txns[one])[log]
        return (self.catalogue.log_layouts[log].key(token), content) if self._appends[log] and token and content else None

    def _read_with_care(self, group: _Group, replies: memoryview, count: int) -> list[Past]:
        """What replies say that are not all as they are when all goes well."""
        asked, ends = self._each(group)
        return self._pasts(asked, ends, parsed(replies, count))

    def _each(self, group: _Group) -> tuple[list[_Asked], list[int]]:
        """What each one asks, and where its commands end. Of what is derived from a transaction only the logs hear that it leaves rows in."""
        asked, ends, owns = list[_Asked](), [0], group.owns.tobytes()
        own = [owns[at : at + OWN_BYTES] for at in range(0, len(owns), OWN_BYTES)]
        for txn, said, rows, aside in zip(group.txns, own, rows_of(self.catalogue, own), group.asides, strict=True):
            keys = self._keys(txn)
            if group.derived:
                keys = [key if appends else None for key, appends in zip(keys, self._appends, strict=False)] + [None] * len(self._kinds)
            own_rows = [None if key is None else rows[place] for key, place in zip(keys, self._rows, strict=False)]
            asked.append(_Asked(said, keys[: self._logs], own_rows, keys[self._logs :], aside))
            ends.append(ends[-1] + len(self._commands(asked[-1])))
        return asked, ends[1:]

    def _exchanged_in_pieces(self, group: _Group) -> Awaitable[list[Past]]:
        """From a cluster: each command goes to the node that has its key."""
        self._spoken(group)
        asked, ends = self._each(group)
        return self._read_in_pieces(asked, ends, self.wire.ask(*[command for one in asked for command in self._commands(one)]))

    async def _read_in_pieces(self, asked: list[_Asked], ends: list[int], sent: asyncio.Future[list[Any]]) -> list[Past]:
        return self._pasts(asked, ends, await sent)

    def _pasts(self, asked: list[_Asked], ends: list[int], replies: list[Any]) -> list[Past]:
        pasts, read, there, found = list[Past](), list[Past](), list[_Asked](), list[list[bytes | None]]()
        for one, begin, end in zip(asked, (0, *ends), ends, strict=False):
            try:
                logs, more, missing = self._parted(replies[begin:end], one)
            except MemoryUnavailable as error:
                pasts.append(self._forgotten(one.own, one.aside, error))
                continue
            pasts.append(Past.of(one.own, (*logs, *more), missing))
            read.append(pasts[-1])
            there.append(one)
            found.append(logs)
        if there:
            self._keep_up(self._left(assembled(read), len(read)), lambda one, log: self._grown(there[one], found[one], log))
        return pasts

    def _forgotten(self, own: bytes, aside: Aside, error: MemoryUnavailable) -> Past:
        """The past of one whose memory does not answer."""
        if aside is not _ALONE:
            aside.wrote, aside.found = [error] * len(aside.writes), [error] * len(aside.reads)
        return Past.nothing(self.catalogue, own)

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

    def decline_all(self, txns: Sequence[Transaction], asides: Sequence[Aside] = ()) -> Awaitable[list[tuple[int, ...] | MemoryUnavailable]]:
        """Remembers that they were declined or blocked; the places of those rows in each log (-1: no such entity). Twice is once.

        All in one round trip, sent at the call; an error of one (or of what is asked aside of it) touches no other.
        """
        if not txns:
            return Ready([])
        group = self._grouped(txns, asides, DECLINED)
        return self._places(group, self._exchanged(group))

    async def _places(self, group: _Group, sent: Awaitable[list[Past]]) -> list[tuple[int, ...] | MemoryUnavailable]:
        try:
            pasts = await sent
        except MemoryUnavailable as error:
            return [error] * len(group.txns)
        found: list[tuple[int, ...] | MemoryUnavailable] = [tuple(each) for each in places(self.catalogue, pasts)]
        for number, aside in enumerate(group.asides):
            for said in (*aside.wrote, *aside.found):
                if isinstance(said, Exception):
                    found[number] = said if isinstance(said, MemoryUnavailable) else MemoryUnavailable(f"Redis: {said}")
        return found

    def decline(self, txn: Transaction, aside: Aside | None = None) -> Awaitable[tuple[int, ...]]:
        """`decline_all` of one."""
        return _sound(self.decline_all((txn,), (aside or _ALONE,)))

    def remember_event(self, event: AccountEvent, aside: Aside | None = None) -> Awaitable[tuple[int, ...]]:
        """Appends an account event to the account's log; its position in each log, in the order of the catalogue's logs."""
        rows = event_rows(self.catalogue, event)
        layouts = self.catalogue.log_layouts
        keys = [None if row is None else layout.key(event.account_id) for layout, row in zip(layouts, rows, strict=True)]
        facts = event_facts(event)
        asked = _Asked(event_bytes(facts), keys, rows, [None] * len(self._kinds), aside or _ALONE)
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
