"""A node of a Redis Cluster that forgets, alone: nothing is decided on it, wherever its slots go, until all was rebuilt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from features.catalogue import CATALOGUE
from features.online import RedisMemory
from features.slots import key_slot, mark_in
from features.wire import Wire
from models.hold import Book, state_known
from schemas.account import AccountState
from schemas.errors import MemoryUnavailable
from schemas.identity import decision_id
from schemas.transaction import Transaction
from streams.answers import WHOLE, Answers, Kept
from streams.books import Books, book_key
from streams.rebuild import BUILDING, LOCK, ensure_whole
from tests.features.clusters import Cluster, Server
from tests.world import NOON, a_transaction, a_world

NAMES = [f"a{n}" for n in range(60)]
DIGEST = b"d" * 16


def on_a(url: str, scenario: Callable[[Wire], Awaitable[None]]) -> None:
    async def run() -> None:
        wire = await Wire.connect(url, timeout_s=5.0)
        await scenario(wire)
        await wire.close()

    asyncio.run(run())


def kept_by(cluster: Cluster, server: Server, key: Callable[[str], bytes]) -> set[str]:
    """The names whose key is on that node."""
    return {name for name in NAMES if cluster.owner(key_slot(key(name))) is server}


def state(name: str) -> AccountState:
    """An account with money."""
    return AccountState(account_id=name, currency="EUR", balance_minor=100, as_of_ms=1)


async def refused(asked: Callable[[str], Awaitable[Any]]) -> set[str]:
    """The names for which Redis was unavailable."""
    found = set()
    for name in NAMES:
        try:
            await asked(name)
        except MemoryUnavailable:
            found.add(name)
    return found


def test_the_node_that_forgot_takes_no_book_and_no_claim_and_the_others_go_on(cluster: Cluster, cluster_url: str) -> None:
    forgetful = cluster.masters[1]

    async def scenario(wire: Wire) -> None:
        books, answers = Books(wire), Answers(wire, 3600)

        async def claimed(name: str) -> Kept | None:
            command, mark = answers.claim(name, DIGEST)
            fresh, (whole,) = await wire.send(command, (b"MGET", mark))
            return await answers.first(name, DIGEST, fresh, whole)

        async def written(name: str) -> object:
            return await books.change(name, lambda book: state_known(book, state(name)))

        assert await answers.whole()
        assert await refused(written) == set()
        forgetful.ask("FLUSHALL")
        assert not await answers.whole()
        assert await refused(written) - kept_by(cluster, forgetful, book_key) == set()
        assert await refused(claimed) == kept_by(cluster, forgetful, lambda name: b"txn:" + name.encode())
        lost = sorted(kept_by(cluster, forgetful, book_key))
        with pytest.raises(MemoryUnavailable, match="FORGOT"):
            await books.change(lost[0], lambda book: Book(currency="USD"))

    on_a(cluster_url, scenario)


def test_a_slot_that_was_forgotten_takes_no_book_where_it_went_either(cluster: Cluster, cluster_url: str) -> None:
    slot = key_slot(book_key("a0"))

    async def scenario(wire: Wire) -> None:
        cluster.owner(slot).ask("FLUSHALL")
        healthy = next(server for server in cluster.masters if server is not cluster.owner(slot))
        await asyncio.to_thread(cluster.move, slot, healthy)
        with pytest.raises(MemoryUnavailable, match="FORGOT"):
            await Books(wire).change("a0", lambda book: state_known(book, state("a0")))

    on_a(cluster_url, scenario)


def test_a_single_slot_without_its_mark_is_noticed_once_a_decision_asked_for_it(cluster: Cluster, cluster_url: str) -> None:
    slot = key_slot(book_key("a0"))

    async def scenario(wire: Wire) -> None:
        answers = Answers(wire, 3600)
        cluster.owner(slot).ask("DEL", mark_in(slot, WHOLE))
        assert await wire.send((b"MGET", WHOLE, book_key("a0"), book_key("a1"))) == [[None, None, None]]
        assert not await answers.whole()
        await wire.send((b"SET", WHOLE, b"1"))
        assert await answers.whole()

    on_a(cluster_url, scenario)


def test_a_cluster_of_which_a_node_forgot_is_rebuilt_once_and_whole_again(cluster: Cluster, cluster_url: str) -> None:
    built: list[bytes] = []

    async def scenario(wire: Wire) -> None:
        async def rebuild(token: bytes) -> None:
            assert await wire.send((b"GET", LOCK)) == [token]
            assert await wire.send(
                (
                    b"EXISTS",
                    WHOLE,
                ),
                (b"GET", book_key("a0")),
            ) == [0, None], "no slot is whole meanwhile"
            built.append(token)
            await asyncio.sleep(0.05)

        assert not await ensure_whole(wire, rebuild), "nobody forgot"
        cluster.masters[2].ask("FLUSHALL")
        assert sorted(await asyncio.gather(*(ensure_whole(wire, rebuild) for _ in range(3)))) == [False, False, True]
        assert len(built) == 1
        assert await wire.send((b"EXISTS", WHOLE)) == [1]
        assert await wire.send((b"EXISTS", BUILDING)) == [0]

    on_a(cluster_url, scenario)


def test_a_node_that_forgets_while_it_is_rebuilt_is_rebuilt_again(cluster: Cluster, cluster_url: str) -> None:
    forgetting = [cluster.masters[0], cluster.masters[2]]

    async def scenario(wire: Wire) -> None:
        async def rebuild(token: bytes) -> None:
            if forgetting:
                forgetting.pop().ask("FLUSHALL")

        await wire.send((b"DEL", WHOLE))
        for _ in range(2):
            with pytest.raises(MemoryUnavailable):
                await ensure_whole(wire, rebuild)
            assert await wire.send((b"EXISTS", WHOLE)) == [0]
        assert await ensure_whole(wire, rebuild)
        assert await wire.send((b"EXISTS", WHOLE)) == [1]

    on_a(cluster_url, scenario)


def test_payments_are_decided_and_held_once_while_their_slots_move(cluster: Cluster, cluster_url: str) -> None:
    accounts = NAMES[:6]
    payments = [a_transaction(f"p{n}", account_id=accounts[n % 6], card_token=f"c{n % 6}") for n in range(240)]
    slots = [key_slot(key) for name in accounts for key in (book_key(name), CATALOGUE.log_layouts[0].key(f"c{name[1:]}"))]

    def move_them(running: asyncio.Event) -> int:
        moved = 0
        while running.is_set():
            for slot in slots:
                moved += cluster.move(slot, next(server for server in cluster.masters if server is not cluster.owner(slot)))
        return moved

    async def scenario(wire: Wire) -> None:
        scene, books = a_world(), Books(wire)
        scene.world.memory = RedisMemory(wire, CATALOGUE)
        scene.world.books, scene.world.answers = books, Answers(wire, 3600)
        unavailable = 0

        async def decided(txn: Transaction) -> bytes:
            nonlocal unavailable
            while True:
                try:
                    return (await scene.decide(txn)).message
                except MemoryUnavailable:
                    unavailable += 1
                    await asyncio.sleep(0.01)

        async def in_turn(part: list[Transaction]) -> list[bytes]:
            return [await decided(txn) for txn in part]

        for name in accounts:
            await books.change(name, lambda book, name=name: state_known(book, rich(name)))  # type: ignore[misc]
        running = asyncio.Event()
        running.set()
        mover = asyncio.create_task(asyncio.to_thread(move_them, running))
        try:
            first = await asyncio.gather(*(in_turn(payments[n::8]) for n in range(8)))
            again = await asyncio.gather(*(in_turn(payments[n::8]) for n in range(8)))
        finally:
            running.clear()
            moved = await mover
        print(f"{moved} keys moved while {2 * len(payments)} payments were asked for; {unavailable} times unavailable")
        assert moved > 0
        assert again == first, "a repeat gets the first answer, byte for byte"
        assert {d.transaction_id: d.decision_id for d in scene.decisions} == {t.transaction_id: decision_id(t.transaction_id) for t in payments}
        for name in accounts:
            held = {d.hold_id: d.held_minor for d in scene.decisions if d.account_id == name and d.hold_id}
            book = Book.from_bytes((await books.read(name))[0])
            assert {hold.hold_id: hold.amount_minor for hold in book.holds} == held
            assert book.available_minor(NOON) == rich(name).balance_minor - sum(held.values())
        await scene.world.memory.close()

    on_a(cluster_url, scenario)


def rich(name: str) -> AccountState:
    """An account that can pay for everything."""
    return AccountState(account_id=name, currency="EUR", balance_minor=10_000_000, as_of_ms=1)
