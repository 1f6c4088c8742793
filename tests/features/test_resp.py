"""Redis's protocol in compiled code: what it writes and reads is what hiredis and the careful way write and read, wherever the bytes are cut."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import hiredis
import numpy as np
import pytest
from histories import histories
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from past_oracle import Arrival
from payments import a_payment
from stores import a_redis, a_wire

from features import resp
from features.catalogue import CATALOGUE
from features.engine import OWN_BYTES, assembled, own_bytes
from features.fact import DECLINED
from features.memory import Aside
from features.online import RedisMemory
from features.wire import Wire, _Link, parsed
from schemas.errors import MemoryUnavailable
from schemas.transaction import Transaction

said = st.recursive(
    st.one_of(
        st.binary(max_size=40).map(lambda word: b"$%d\r\n%b\r\n" % (len(word), word)),
        st.integers(-(10**15), 10**15).map(lambda number: b":%d\r\n" % number),
        st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"+OK\r\n", b"-ERR no\r\n", b"*0\r\n", b"$0\r\n\r\n"]),
    ),
    lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda all_: b"*%d\r\n" % len(all_) + b"".join(all_)),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(said, min_size=1, max_size=6), st.data())
def test_whole_replies_are_found_wherever_the_bytes_are_cut(replies: list[bytes], data: Any) -> None:
    whole = b"".join(replies)
    cut = data.draw(st.integers(0, len(whole)))
    there = sum(1 for n in range(len(replies)) if len(b"".join(replies[: n + 1])) <= cut)
    room = np.frombuffer(whole + b"$5\r\nrest of before", np.uint8).copy()
    at, left = resp.skipped(room, 0, cut, len(replies))
    assert (at, left) == (len(b"".join(replies[:there])), len(replies) - there)
    assert resp.skipped(room, at, len(whole), left) == (len(whole), 0)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=60))
def test_no_bytes_are_read_beyond_their_end(noise: bytes) -> None:
    at, left = resp.skipped(np.frombuffer(noise, np.uint8).copy(), 0, len(noise), 3)
    assert 0 <= at <= len(noise)
    assert left in (resp.WRONG, 0, 1, 2, 3)


def test_what_is_no_reply_is_wrong() -> None:
    for wrong in (b"?\r\n", b"$x\r\n", b"*\r\n", b"$12 \r\n", b"HTTP/1.1 200 OK\r\n"):
        assert resp.skipped(np.frombuffer(wrong, np.uint8).copy(), 0, len(wrong), 1)[1] == resp.WRONG


class Recorded:
    """A wire that keeps what it is asked, and answers what it is told."""

    is_single = True

    def __init__(self) -> None:
        self.commands = b""
        self.replies: bytes | None = None
        self.posted: list[Any] = []

    def exchange(self, commands: memoryview, replies: int, read: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.commands, self.count = bytes(commands), replies
        if self.replies is None:
            future.set_exception(MemoryUnavailable("nobody answers"))
        else:
            future.set_result(read(memoryview(self.replies)))
        return future

    async def ask(self, *commands: Any) -> list[Any]:
        raise MemoryUnavailable("what is due in the background waits")

    def post(self, *commands: Any) -> None:
        self.posted += commands


def asides_of(count: int, some: Sequence[int]) -> list[Aside]:
    """A write and two reads, one, or nothing."""
    kinds = [
        lambda: Aside(((b"SET", b"txn:1", b"\r\n$-1", b"NX"),), (b"whole", "book:ä")),
        lambda: Aside((), ("whole",)),
        lambda: Aside(((b"PING",), (b"GET", b"x")), ()),
        Aside,
    ]
    return [kinds[some[number % len(some)]]() for number in range(count)]


def a_group(memory: RedisMemory, payments: Sequence[Transaction], asides: Sequence[Aside], derived: int = 0) -> Any:
    """The payments as they are recalled together."""
    group = memory._grouped(payments, asides, derived)
    memory._spoken(group)
    return group


some_asides = st.lists(st.integers(0, 3), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(histories(), some_asides, st.booleans())
def test_the_commands_are_those_that_are_asked_in_pieces(arrivals: list[Arrival], some: list[int], declined: bool) -> None:
    payments = [arrival.record for arrival in arrivals if isinstance(arrival.record, Transaction)]
    payments = [structs.replace(txn, account_id=f"ä{txn.account_id}") for txn in payments]

    async def run() -> None:
        wire = Recorded()
        memory = RedisMemory(cast(Wire, wire), CATALOGUE)
        asides = asides_of(len(payments), some)
        await (memory.decline_all if declined else memory.recall_all)(payments, asides)
        group = a_group(memory, payments, asides, DECLINED if declined else 0)
        commands = [command for one in memory._each(group)[0] for command in memory._commands(one)]
        assert wire.commands == b"".join(map(hiredis.pack_command, commands))
        assert wire.count == len(commands)

    if payments:
        asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(histories(), some_asides, st.data())
def test_what_is_read_at_once_is_what_is_read_with_care(arrivals: list[Arrival], some: list[int], data: Any) -> None:
    payments = [arrival.record for arrival in arrivals if isinstance(arrival.record, Transaction)]

    def word(content: bytes | None) -> bytes:
        return b"$-1\r\n" if content is None else b"$%d\r\n%b\r\n" % (len(content), content)

    async def run() -> None:
        wire = Recorded()
        memory = RedisMemory(cast(Wire, wire), CATALOGUE)
        asides, others = asides_of(len(payments), some), asides_of(len(payments), some)
        asked, _ = memory._each(a_group(memory, payments, asides))
        replies = []
        for one in asked:
            rows = [row for row in one.rows if row]
            logs = [row * data.draw(st.integers(1, 3)) for row in rows]
            replies += [b"+OK\r\n" for _ in one.aside.writes] + [b":%d\r\n" % len(log) for log in logs]
            read = [word(data.draw(st.none() | st.binary(max_size=9))) for _ in one.aside.reads]
            left = iter(logs)
            for row in one.rows:
                if row is not None:
                    read.append(word(next(left) if row else data.draw(st.none() | st.just(rows[0][:20] * 2))))
            more = [key for key in one.more if key is not None]
            read += [word(data.draw(st.none() | st.binary(min_size=96, max_size=200))) for _ in more]
            replies.append(b"*%d\r\n" % len(read) + b"".join(read))
        wire.replies = b"".join(replies)
        pasts = await memory.recall_all(payments, asides)
        careful = memory._read_with_care(a_group(memory, payments, others), memoryview(wire.replies), wire.count)
        assert [past.missing for past in pasts] == [past.missing for past in careful] == [()] * len(payments)
        assert assembled(pasts).tobytes() == assembled(careful).tobytes()
        assert [(one.wrote, one.found) for one in asides] == [(one.wrote, one.found) for one in others]
        assert own_bytes(payments[0]) == assembled(pasts).tobytes()[:OWN_BYTES]

    if payments:
        asyncio.run(run())


@pytest.mark.parametrize("pieces", [1, 7, 4096])
def test_replies_that_come_in_pieces_and_are_larger_than_the_room_are_put_together(pieces: int) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        link = _Link(cast(Wire, None), loop)
        contents = [b"a" * 3, b"b" * (700_000 if pieces > 7 else 700), b"", b"d" * 5]
        asked = [loop.create_future() for _ in contents]
        for future in asked:
            link.send((("GET", "k"),), future, 60.0)
        whole = memoryview(b"".join(b"$%d\r\n%b\r\n" % (len(content), content) for content in contents))
        while whole:
            room = link.get_buffer(-1)
            count = min(pieces, len(room), len(whole))
            room[:count] = whole[:count]
            whole = whole[count:]
            link.buffer_updated(count)
        assert [await future for future in asked] == [[content] for content in contents]
        link.end_with("done")

    asyncio.run(run())


def test_a_key_of_the_wrong_type_makes_its_kind_missing_and_nothing_else() -> None:
    async def run(url: str) -> None:
        async with a_wire(url, None, None, 5.0) as wire:
            memory = RedisMemory(wire, CATALOGUE)
            payments = [a_payment(str(n), 1_750_000_000_000 + n, card_token=f"crd_k1_{n % 2}") for n in range(4)]
            await wire.send(("LPUSH", CATALOGUE.log_layouts[CATALOGUE.logs.index("card")].key("crd_k1_1"), "x"))
            pasts = await memory.recall_all(payments)
            assert [past.missing for past in pasts] == [(), ("card",), (), ("card",)]
            await memory.close()

    with a_redis() as url:
        asyncio.run(run(url))


def test_a_server_that_cannot_serve_is_unavailable_and_an_error_is_a_value() -> None:
    (error,) = parsed(b"-ERR no such thing\r\n", 1)
    assert isinstance(error, hiredis.ReplyError)
    with pytest.raises(MemoryUnavailable, match="LOADING"):
        parsed(b"+OK\r\n-LOADING Redis is loading the dataset in memory\r\n", 2)
