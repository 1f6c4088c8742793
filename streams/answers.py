"""The first answer to a transaction, kept in Redis, so that every repeat gets it byte for byte and a changed repeat is refused.

`txn:<id>` holds the digest of the first contents that came with the id; `ans:<id>` one byte (kept or told) and the decision's message, packed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from lz4 import block

from features.memory import Aside
from features.wire import Command, Wire
from schemas.decision import Decision
from schemas.errors import Conflict, HoldfastError, InvalidRecord, MemoryUnavailable

T = TypeVar("T")
KEPT, TOLD = b"K", b"T"
_PACKED = b"\x01"
"""Precedes a message that lz4 packed, to less than half; a message as it is begins with 0 (`schemas.avro.frame`)."""
REVERSED = b"R"
"""In the place of the first contents and of the answer: it was reversed before it came, and nobody decides it any more."""
_REVERSED_OF = REVERSED + b" " * 16
"""The same, if its card is one of those that follow: who reversed it may move no others. It is longer than what stands for contents, and a message
begins with no space."""
LISTED_MAX = 1_000
"""Of one card or account: the newest are found by it."""
AFTER_HOLD_S = 86_400
"""So long an answer is kept beyond its hold: what is asked of the hold, and refused as late, needs it."""
CLEARING_TTL_S = b"3456000"  # 40 days, as `streams/hold.py` remembers a resolved hold
UNTOLD_MS_MAX = 120_000
"""A kept decision that the log still does not have after this was given up by its asker: nobody answered for it."""
FORGOT = "Redis does not know how far it is: it must be rebuilt from the log"
WHOLE = b"whole"
"""The key whose being there says that Redis has not forgotten: set when it was rebuilt from the log, and never otherwise.

On a cluster it is one key in each slot (`features/slots.py`): who asks for it beside other keys asks for the marks of their slots, in the
same round trip, and so does the script that writes a book. So a node that forgot decides nothing, though its neighbours did not forget.
"""


def _answer(state: bytes, message: bytes) -> bytes:
    """What is kept of a message."""
    packed: bytes = block.compress(message)
    return state + _PACKED + packed


def message_in(answer: bytes) -> bytes:
    """The message in what is kept of it."""
    return bytes(block.decompress(memoryview(answer)[2:])) if answer[1:2] == _PACKED else answer[1:]


class Kept(NamedTuple):
    """A decision's message as it was first given, and whether the log has acknowledged it."""

    message: bytes
    told: bool


class Made(NamedTuple):
    """A decision's message that is to be kept, if it is the first to its transaction."""

    transaction_id: str
    decision_id: str
    message: bytes
    hold_s: int = 0
    """How long its hold lives, if it has one."""
    card_bin: str | None = None

    @classmethod
    def of(cls, decision: Decision, message: bytes) -> Made:
        """Of a decision and its message."""
        return cls(decision.transaction_id, decision.decision_id, message, hold_s(decision), decision.transaction.card_bin)


def hold_s(decision: Decision) -> int:
    """How long the hold that a decision places lives, seconds; 0 where it places none."""
    return 0 if decision.hold_expires_at_ms is None else (decision.hold_expires_at_ms - decision.decided_at_ms) // 1000


def kept_s(ttl_s: int, holds_s: int) -> int:
    """How long an answer is kept whose hold lives so long."""
    return max(ttl_s, holds_s + AFTER_HOLD_S) if holds_s else ttl_s


class AnswerWords(NamedTuple):
    """What keeps a message: under its transaction, which its decision's id names; and for how long. A third key is there if that is longer than
    the transaction's contents are kept, which are to be kept as long."""

    keys: tuple[bytes, ...]
    contents: tuple[bytes, bytes, bytes]


class Listed(NamedTuple):
    """A decision that the log has, and by what it is to be found."""

    transaction_id: str
    decided_at_ms: int
    account_id: str
    card_token: str | None

    @property
    def keys(self) -> list[bytes]:
        """Where it is listed."""
        return [listed_key(name, of) for name, of in (("account", self.account_id), ("card", self.card_token)) if of]


def listed_key(name: str, of: str) -> bytes:
    """The sorted set of the transactions of an `account` or a `card`, by when they were decided."""
    return f"of:{name}:{of}".encode()


def listed_of(decision: Decision) -> Listed:
    """By what a decision is to be found."""
    return Listed(decision.transaction_id, decision.decided_at_ms, decision.account_id, decision.transaction.card_token)


class Page(NamedTuple):
    """Decisions' messages, the newest first; `cursor` asks for those after them, None where there are none."""

    messages: list[bytes]
    cursor: str | None


class Restored(NamedTuple):
    """One decision as the log has it, and how long its answer is still to be kept."""

    transaction_id: str
    decision_id: str
    digest: bytes
    message: bytes
    ttl_s: int
    listed: Listed | None = None
    step_up_of: str | None = None


_SWAP = b"""
local now = redis.call('GET', KEYS[1])
if (now or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""

_PAGE = b"""
local first = 0
if ARGV[1] ~= '' then
  local rank = redis.call('ZREVRANK', KEYS[1], ARGV[1])
  if not rank then return {} end
  first = rank + 1
end
return redis.call('ZREVRANGE', KEYS[1], first, first + ARGV[2])
"""
"""In one step: what is listed between the two moves the ranks, and a page would begin before the cursor."""


def resolved_key(hold: str) -> bytes:
    """What a hold ended as, and by which clearings: kept longer than any hold lives, so that a late clearing is refused by name."""
    return b"resolved:" + hold.encode()


def came_too_late() -> InvalidRecord:
    """Why a transaction that was reversed before it came is not decided."""
    return InvalidRecord("transaction_id", "was reversed before it came: nothing is decided or held for it", code="reversed_before")


def _mark(cards: Sequence[str]) -> bytes:
    return _REVERSED_OF + ",".join(cards).encode() if cards else REVERSED


def _reverses(content: object, card_bin: str | None) -> bool:
    """Whether what stands in the place of contents or an answer says that a transaction of such a card was reversed before it came."""
    if not isinstance(content, bytes) or not content.startswith(_REVERSED_OF):
        return content == REVERSED
    return (card_bin or "").startswith(tuple(content[len(_REVERSED_OF) :].decode().split(",")))


def sound(replies: list[Any]) -> list[Any]:
    """The replies, if Redis did what it was asked; MemoryUnavailable if one is an error, so that an error is never taken for data."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise MemoryUnavailable(f"Redis: {reply}")
    return replies


async def on_whole(read: Callable[[Aside], Awaitable[T]]) -> T:
    """What `read` answers; MemoryUnavailable if Redis, asked in the same round trip, does not say that it is whole.

    A row that is appended to a Redis that forgot has no place in the log as it will be rebuilt: it must be appended again.
    """
    aside = Aside((), (WHOLE,))
    answer = await read(aside)
    if aside.found[0] is None:
        raise MemoryUnavailable(FORGOT)
    return answer


class Answers:
    """The answers of one Redis. `ttl_s` is how long a repeat is recognised (a day at least: Stripe's contract), or longer, while its hold lives."""

    def __init__(self, wire: Wire, ttl_s: int) -> None:
        self._wire, self._ttl_s = wire, ttl_s
        self._ttl = str(ttl_s).encode()

    async def whole(self) -> bool:
        """Whether Redis answers and knows how far it is."""
        (marked,) = sound(await self._wire.send((b"EXISTS", WHOLE)))
        return bool(marked)

    def claim(self, transaction_id: str, digest: bytes) -> tuple[Command, bytes]:
        """What to write and what to read aside to learn whether the id is new, and whether Redis is whole. See `first`."""
        return (b"SET", b"txn:" + transaction_id.encode(), digest, b"NX", b"EX", self._ttl), WHOLE

    async def first(self, transaction_id: str, digest: bytes, fresh: Any, whole: Any, card_bin: str | None = None) -> Kept | None:
        """The first answer, if there is one. Conflict if the id came with other contents; MemoryUnavailable if Redis forgot.

        InvalidRecord if it was reversed before it came, by who may move its card.
        """
        if isinstance(fresh, Exception):
            raise fresh if isinstance(fresh, MemoryUnavailable) else MemoryUnavailable(f"Redis: {fresh}")
        if whole is None:
            raise MemoryUnavailable(FORGOT)
        if fresh is not None:
            return None
        txn = transaction_id.encode()
        owner, answer = sound(await self._wire.send((b"GET", b"txn:" + txn), (b"GET", b"ans:" + txn)))
        if owner is None:  # it was there a moment ago
            raise MemoryUnavailable(FORGOT)
        if _reverses(owner, card_bin):
            raise came_too_late()
        if owner.startswith(_REVERSED_OF):  # by who may not
            (swapped,) = sound(await self._wire.send((b"EVAL", _SWAP, b"1", b"txn:" + txn, owner, digest, self._ttl)))
            if not swapped:
                raise MemoryUnavailable(f"{transaction_id} came twice at once")
        elif owner != digest:
            raise Conflict(transaction_id)
        return _kept_in(answer)

    def words(self, made: Made) -> AnswerWords:
        """What keeps a message."""
        txn, ttl_s = made.transaction_id.encode(), kept_s(self._ttl_s, made.hold_s)
        keys, answer = (b"ans:" + txn, b"dec:" + made.decision_id.encode()), _answer(KEPT, made.message)
        if ttl_s == self._ttl_s:
            return AnswerWords(keys, (answer, txn, self._ttl))
        return AnswerWords((*keys, b"txn:" + txn), (answer, txn, str(ttl_s).encode()))

    async def keep_all(self, made: Sequence[Made]) -> list[Kept | HoldfastError]:
        """Keeps each message if it is the first, and returns the first of each, all in one request."""
        commands: list[Command] = []
        for (answer, decision, *contents), (message, txn, ttl) in map(self.words, made):
            commands += ((b"SET", answer, message, b"NX", b"EX", ttl), (b"SET", decision, txn, b"EX", ttl))
            if contents:
                self._wire.post(*[(b"EXPIRE", key, ttl) for key in contents])
        try:
            replies = await self._wire.ask(*commands)
        except MemoryUnavailable as error:
            return [error] * len(made)
        return [await self._kept(one, *both) for one, *both in zip(made, replies[::2], replies[1::2], strict=True)]

    async def _kept(self, made: Made, kept: Any, named: Any) -> Kept | HoldfastError:
        """The first answer, by the replies to `keep_all`."""
        try:
            sound([kept, named])
            if kept is not None:
                return Kept(made.message, told=False)
            (answer,) = sound(await self._wire.send((b"GET", b"ans:" + made.transaction_id.encode())))
            if _reverses(answer, made.card_bin):
                return came_too_late()
            first = _kept_in(answer)
            if first is None:  # a stub that `told` left where Redis had lost the answer, or the mark of who may not reverse it
                (answer, *_), (message, _, ttl) = self.words(made)
                sound(await self._wire.send((b"SET", answer, message, b"EX", ttl)))
            return first or Kept(made.message, told=False)
        except MemoryUnavailable as error:
            return error

    async def keep(self, transaction_id: str, decision_id: str, message: bytes, holds_s: int = 0, card_bin: str | None = None) -> Kept:
        """`keep_all` of one."""
        (kept,) = await self.keep_all((Made(transaction_id, decision_id, message, holds_s, card_bin),))
        if isinstance(kept, HoldfastError):
            raise kept
        return kept

    def told_all(self, transaction_ids: Sequence[str]) -> None:
        """Notes that the log has these answers; nobody needs to wait for it (a repeat would only tell the same bytes again)."""
        if transaction_ids:
            self._wire.post(*[(b"SETRANGE", b"ans:" + transaction_id.encode(), b"0", TOLD) for transaction_id in transaction_ids])

    def told(self, transaction_id: str) -> None:
        """`told_all` of one."""
        self.told_all((transaction_id,))

    async def restore(self, decisions: list[Restored]) -> None:
        """Puts back what the log says was decided, over whatever is there: the log is the truth."""
        commands: list[tuple[bytes, ...]] = []
        for transaction_id, decision_id, digest, message, ttl_s, listed, step_up_of in decisions:
            txn, ttl = transaction_id.encode(), str(ttl_s).encode()
            commands.append((b"SET", b"txn:" + txn, digest, b"EX", ttl))
            commands.append((b"SET", b"ans:" + txn, _answer(TOLD, message), b"EX", ttl))
            commands.append((b"SET", b"dec:" + decision_id.encode(), txn, b"EX", ttl))
            commands.extend(self._listing(listed) if listed is not None else ())
            if step_up_of is not None:
                commands.append((b"SET", b"stp:" + step_up_of.encode(), txn, b"EX", ttl))
        sound(await self._wire.send(*commands))

    async def of_transaction(self, transaction_id: str) -> Kept | None:
        """The answer to a transaction, if there is one."""
        (answer,) = sound(await self._wire.send((b"GET", b"ans:" + transaction_id.encode())))
        return _kept_in(answer)

    async def reverse_ahead(self, transaction_id: str, cards: Sequence[str] = ()) -> bool:
        """Has a transaction that nobody has answered refused when it comes, or comes to its answer; False if it has one.

        `cards` is what the number of its card must begin with for that; empty: whatever its card.
        """
        txn, mark = transaction_id.encode(), _mark(cards)
        key = b"ans:" + txn
        _, answer = sound(await self._wire.send((b"SET", key, mark, b"NX", b"EX", self._ttl), (b"GET", key)))
        if answer is None or not answer.startswith(REVERSED):
            return False
        sound(await self._wire.send((b"SET", b"txn:" + txn, mark, b"EX", self._ttl)))
        return True

    async def is_reversed_ahead(self, transaction_id: str, card_bin: str | None = None) -> bool:
        """Whether that was done to it, by who may move its card."""
        (owner,) = sound(await self._wire.send((b"GET", b"txn:" + transaction_id.encode())))
        return _reverses(owner, card_bin)

    async def retried_by(self, transaction_id: str, own: str) -> str:
        """The first transaction that came as the retry of one whose cardholder was to authenticate: `own`, if none was before."""
        key = b"stp:" + transaction_id.encode()
        _, first = sound(await self._wire.send((b"SET", key, own.encode(), b"NX", b"EX", self._ttl), (b"GET", key)))
        return own if first is None else str(first.decode())

    async def forget(self, transaction_id: str) -> None:
        """Forgets an answer that nobody was told."""
        sound(await self._wire.send((b"DEL", b"ans:" + transaction_id.encode())))

    async def of_decision(self, decision_id: str) -> Kept | None:
        """The answer that a decision's id names, if there is one."""
        (txn,) = sound(await self._wire.send((b"GET", b"dec:" + decision_id.encode())))
        return await self.of_transaction(txn.decode()) if isinstance(txn, bytes) else None

    def enlist(self, listed: Listed) -> None:
        """Makes a decision that the log has to be found by its card and account; nobody needs to wait for it. Twice is once."""
        self._wire.post(*self._listing(listed))

    def _listing(self, listed: Listed) -> list[Command]:
        at, txn = str(listed.decided_at_ms).encode(), listed.transaction_id.encode()
        commands: list[Command] = []
        for key in listed.keys:
            commands += [(b"ZADD", key, at, txn), (b"ZREMRANGEBYRANK", key, b"0", b"-%d" % (LISTED_MAX + 1)), (b"EXPIRE", key, self._ttl)]
        return commands

    async def listed(self, name: str, of: str) -> list[str]:
        """The transactions of an `account` or a `card` that are found by it, the newest first."""
        (found,) = sound(await self._wire.send((b"ZREVRANGE", listed_key(name, of), b"0", b"-1")))
        return [txn.decode() for txn in found]

    async def page(self, name: str, of: str, limit: int, cursor: str | None) -> Page:
        """The decisions of an `account` or a `card` after the cursor, which is the last transaction that was seen."""
        words = (b"1", listed_key(name, of), (cursor or "").encode(), str(limit).encode())
        (found,) = sound(await self._wire.send((b"EVAL", _PAGE, *words)))
        shown = found[:limit]
        if not shown:
            return Page([], None)
        kept = sound(await self._wire.send(*[(b"GET", b"ans:" + txn) for txn in shown]))
        messages = [answer.message for answer in map(_kept_in, kept) if answer is not None]
        return Page(messages, shown[-1].decode() if len(found) > limit else None)

    async def of_clearings(self, transaction_id: str) -> bytes | None:
        """What was asked of a transaction's holds, as `swap_clearings` put it."""
        (content,) = sound(await self._wire.send((b"GET", b"clr:" + transaction_id.encode())))
        return content if isinstance(content, bytes) else None

    async def swap_clearings(self, transaction_id: str, before: bytes | None, content: bytes) -> bool:
        """Puts what was asked of a transaction's holds, if `before` is still what is there. Kept longer than any hold lives."""
        words = (b"1", b"clr:" + transaction_id.encode(), before or b"", content, CLEARING_TTL_S)
        (swapped,) = sound(await self._wire.send((b"EVAL", _SWAP, *words)))
        return bool(swapped)

    async def ended(self, hold_id: str) -> str | None:
        """What a hold ended as, if it did and the log was told."""
        (said,) = sound(await self._wire.send((b"GET", resolved_key(hold_id))))
        return said.decode().partition(" ")[0] if isinstance(said, bytes) else None


def _kept_in(answer: object) -> Kept | None:
    """What is kept under `ans:`; None for nothing and for what stands there in place of an answer."""
    return Kept(message_in(answer), answer[:1] == TOLD) if isinstance(answer, bytes) and answer[1:2] not in (b"", b" ") else None


class DictAnswers:
    """The same in this process, for worlds."""

    def __init__(self) -> None:
        self.digests: dict[str, bytes] = {}
        self.kept: dict[str, Kept] = {}
        self.ids: dict[str, str] = {}
        self.clearings: dict[str, bytes] = {}
        self.retries: dict[str, str] = {}
        self.lists: dict[bytes, dict[str, int]] = {}

    async def whole(self) -> bool:
        """See `Answers.whole`."""
        return True

    def claim(self, transaction_id: str, digest: bytes) -> tuple[object, object]:
        """See `Answers.claim`: here the answers themselves."""
        return (b"OK" if self.digests.setdefault(transaction_id, digest) is digest else None), b"1"

    async def first(self, transaction_id: str, digest: bytes, fresh: Any, whole: Any, card_bin: str | None = None) -> Kept | None:
        """See `Answers.first`."""
        owner = self.digests[transaction_id]
        if _reverses(owner, card_bin):
            raise came_too_late()
        if owner.startswith(_REVERSED_OF):
            self.digests[transaction_id] = digest
        elif owner != digest:
            raise Conflict(transaction_id)
        return self.kept.get(transaction_id)

    def words(self, made: Made) -> AnswerWords | None:
        """None: nothing here is done in one step with anything else."""
        return None

    async def keep_all(self, made: Sequence[Made]) -> list[Kept | HoldfastError]:
        """See `Answers.keep_all`."""
        return [came_too_late() if await self.is_reversed_ahead(one.transaction_id, one.card_bin) else await self.keep(*one) for one in made]

    async def keep(self, transaction_id: str, decision_id: str, message: bytes, holds_s: int = 0, card_bin: str | None = None) -> Kept:
        """See `Answers.keep`."""
        if await self.is_reversed_ahead(transaction_id, card_bin):
            raise came_too_late()
        self.ids[decision_id] = transaction_id
        return self.kept.setdefault(transaction_id, Kept(message, told=False))

    def told_all(self, transaction_ids: Sequence[str]) -> None:
        """See `Answers.told_all`."""
        for transaction_id in transaction_ids:
            self.told(transaction_id)

    def told(self, transaction_id: str) -> None:
        """See `Answers.told`."""
        self.kept[transaction_id] = Kept(self.kept[transaction_id].message, told=True)

    async def of_transaction(self, transaction_id: str) -> Kept | None:
        """See `Answers.of_transaction`."""
        return self.kept.get(transaction_id)

    async def reverse_ahead(self, transaction_id: str, cards: Sequence[str] = ()) -> bool:
        """See `Answers.reverse_ahead`."""
        if transaction_id in self.kept:
            return False
        self.digests[transaction_id] = _mark(cards)
        return True

    async def is_reversed_ahead(self, transaction_id: str, card_bin: str | None = None) -> bool:
        """See `Answers.is_reversed_ahead`."""
        return _reverses(self.digests.get(transaction_id), card_bin)

    async def retried_by(self, transaction_id: str, own: str) -> str:
        """See `Answers.retried_by`."""
        return self.retries.setdefault(transaction_id, own)

    async def forget(self, transaction_id: str) -> None:
        """See `Answers.forget`."""
        self.kept.pop(transaction_id, None)

    async def of_decision(self, decision_id: str) -> Kept | None:
        """See `Answers.of_decision`."""
        return self.kept.get(self.ids.get(decision_id, ""))

    def enlist(self, listed: Listed) -> None:
        """See `Answers.enlist`."""
        for key in listed.keys:
            self.lists.setdefault(key, {})[listed.transaction_id] = listed.decided_at_ms

    async def listed(self, name: str, of: str) -> list[str]:
        """See `Answers.listed`."""
        found = sorted(self.lists.get(listed_key(name, of), {}).items(), key=lambda one: (one[1], one[0]), reverse=True)
        return [txn for txn, _ in found]

    async def page(self, name: str, of: str, limit: int, cursor: str | None) -> Page:
        """See `Answers.page`."""
        ids = await self.listed(name, of)
        first = 0 if cursor is None else ids.index(cursor) + 1 if cursor in ids else len(ids)
        shown = ids[first : first + limit]
        return Page([self.kept[txn].message for txn in shown], shown[-1] if len(ids) > first + limit else None)

    async def of_clearings(self, transaction_id: str) -> bytes | None:
        """See `Answers.of_clearings`."""
        return self.clearings.get(transaction_id)

    async def swap_clearings(self, transaction_id: str, before: bytes | None, content: bytes) -> bool:
        """See `Answers.swap_clearings`."""
        if self.clearings.get(transaction_id) != before:
            return False
        self.clearings[transaction_id] = content
        return True

    async def ended(self, hold_id: str) -> str | None:
        """See `Answers.ended`: here nobody applies clearings."""
        return None
