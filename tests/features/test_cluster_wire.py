"""One wire over a cluster of real servers: what it takes to move slots and to lose a master while payments run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import hiredis
import numpy as np
import pytest
from clusters import Cluster, Server, a_cluster
from payments import DAY, MINUTE, T0, a_payment, seen
from stores import a_wire

from features.catalogue import CATALOGUE
from features.engine import Look, look
from features.log import row_count
from features.memory import DictMemory
from features.online import RedisMemory
from features.slots import SLOTS, key_slot
from features.wire import Wire
from schemas.errors import MemoryUnavailable, SettingsError
from schemas.transaction import Transaction

SLACK_S = 3.0
"""What a machine that does other work may add to a time-out, or stand still: without one nothing would end here."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with a_cluster() as cluster:
        yield cluster


def on_the(cluster: Cluster, scenario: Callable[[Wire], Awaitable[None]], timeout_s: float = 5.0) -> None:
    async def run() -> None:
        async with a_wire(cluster.url, timeout_s=timeout_s) as wire:
            await wire.send(("FLUSHALL",))
            await scenario(wire)

    asyncio.run(run())


def another(cluster: Cluster, slot: int) -> Server:
    """A master that does not serve the slot."""
    owner = cluster.owner(slot)
    return next(server for server in cluster.masters if server is not owner)


def half_moved(cluster: Cluster, slot: int, *keys: str) -> Callable[[], None]:
    """Begins to move a slot, takes these keys over, and leaves it so until the function is called that it returns."""
    source, to = cluster.owner(slot), another(cluster, slot)
    to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
    source.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)

    def finish() -> None:
        left = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100)
        if left:
            source.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *left)
        cluster.give(slot, to)

    return finish


def test_replies_of_all_nodes_come_in_the_order_of_the_commands(cluster: Cluster) -> None:
    async def scenario(wire: Wire) -> None:
        keys = [f"k{n}" for n in range(100)]
        assert {cluster.owner(key_slot(key)).port for key in keys} == {server.port for server in cluster.masters}
        assert await wire.send(*(("SET", key, key) for key in keys)) == [b"OK"] * 100
        first, error, read = await wire.send(("MGET", *keys, "none"), ("LPUSH", "k1", 1), ("GET", "k2"))
        assert first == [*(key.encode() for key in keys), None]
        assert isinstance(error, hiredis.ReplyError)
        assert read == b"k2"
        (pushed,) = await wire.send(("RPUSH", "list", 1))
        assert (pushed, await wire.send(("MGET", "k1", "list"))) == (1, [[b"k1", None]])
        assert await wire.send() == []
        assert await wire.send(("PING",)) == [b"PONG"]

    on_the(cluster, scenario)


def test_many_commands_are_sent_in_lots_and_a_mark_is_in_every_slot(cluster: Cluster) -> None:
    async def scenario(wire: Wire) -> None:
        assert await wire.send(*(("INCR", f"k{n % 100}") for n in range(5_000)), ("MGET", "k1", "k2")) == [
            *(n // 100 + 1 for n in range(5_000)),
            [b"50", b"50"],
        ]
        assert await wire.send(("EXISTS", b"whole")) == [0]
        assert await wire.send(("SET", b"whole", 1)) == [b"OK"]
        assert sum(server.ask("DBSIZE") for server in cluster.masters) == 100 + SLOTS
        assert await wire.send(("EXISTS", b"whole"), ("MGET", "k1", b"whole")) == [1, [b"50", b"1"]]
        await wire.send(("DEL", b"whole"))
        assert sum(server.ask("DBSIZE") for server in cluster.masters) == 100

    on_the(cluster, scenario, timeout_s=1.0)


def test_a_slot_that_moved_is_found_and_its_command_carried_out_once(cluster: Cluster) -> None:
    async def scenario(wire: Wire) -> None:
        slot = key_slot("n")
        for count in range(1, 8, 2):
            assert await wire.send(("INCR", "n"), ("GET", "n"), ("INCR", "other")) == [count, str(count).encode(), count]
            assert await asyncio.to_thread(cluster.move, slot, another(cluster, slot)) == 1
            assert await wire.send(("INCR", "n"), ("GET", "n"), ("INCR", "other")) == [count + 1, str(count + 1).encode(), count + 1]

    on_the(cluster, scenario)


def test_a_slot_that_is_half_moved_is_asked_for_where_each_key_is(cluster: Cluster) -> None:
    async def scenario(wire: Wire) -> None:
        slot = key_slot("{t}")
        await wire.send(("SET", "{t}stays", 1), ("SET", "{t}went", 1))
        finish = half_moved(cluster, slot, "{t}went")
        appends = [("APPEND", f"{{t}}{key}", 2) for key in ("stays", "went", "new")]
        read = ("MGET", "{t}stays", "{t}went", "{t}new")
        assert await wire.send(*appends, read) == [2, 2, 1, [b"12", b"12", b"2"]]
        finish()
        assert await wire.send(read) == [[b"12", b"12", b"2"]]

    on_the(cluster, scenario)


def test_a_script_whose_keys_are_on_both_sides_waits_until_they_are_on_one(cluster: Cluster) -> None:
    async def scenario(wire: Wire) -> None:
        script = ("EVAL", b"return redis.call('INCRBY', KEYS[1], redis.call('GET', KEYS[2]))", 2, "{u}a", "{u}b")
        await wire.send(("SET", "{u}a", 1), ("SET", "{u}b", 2))
        finish = half_moved(cluster, key_slot("{u}"), "{u}b")
        waiting = asyncio.ensure_future(wire.send(script))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        finish()
        assert await waiting == [3]

    on_the(cluster, scenario)


def test_a_half_moved_script_is_unavailable_when_its_time_is_over(cluster: Cluster) -> None:
    async def scenario(wire: Wire) -> None:
        await wire.send(("SET", "{v}a", 1), ("SET", "{v}b", 2))
        finish = half_moved(cluster, key_slot("{v}"), "{v}b")
        began = time.monotonic()
        with pytest.raises(MemoryUnavailable):
            await wire.send(("EVAL", b"return 1", 2, "{v}a", "{v}b"))
        assert time.monotonic() - began < 0.3 + SLACK_S
        finish()
        assert await wire.send(("EVAL", b"return 1", 2, "{v}a", "{v}b")) == [1]

    on_the(cluster, scenario, timeout_s=0.3)


def lane(name: str, count: int) -> list[Transaction]:
    """Payments of one card, account, device and so on, some of them sent twice."""
    one = {"card_token": name, "account_id": name, "device_token": name, "customer_id": name, "email_token": name, "phone_token": name}
    payments = [a_payment(f"{name}.{n}", T0 + n * MINUTE, address_token=name, amount_minor=n, **one) for n in range(count)]
    return [again for n, txn in enumerate(payments) for again in ([txn, txn] if n % 20 == 7 else [txn])]


async def in_turn(memory: RedisMemory, payments: list[Transaction], unavailable: list[float]) -> list[Look]:
    """What is seen of each; asked again after MemoryUnavailable, of which it notes how long it took."""
    looks = []
    for txn in payments:
        while True:
            began = time.monotonic()
            try:
                looks.append(await seen(CATALOGUE, memory, txn))
                break
            except MemoryUnavailable:
                unavailable.append(time.monotonic() - began)
                await asyncio.sleep(0.02)
    return looks


async def agrees(memory: RedisMemory, payments: list[Transaction], looks: list[Look]) -> None:
    """The vectors and positions are those of a memory in this process, and so are the logs at rest: each row once."""
    own = DictMemory(CATALOGUE)
    for txn, looked in zip(payments, looks, strict=True):
        expected = await seen(CATALOGUE, own, txn)
        assert (looked.values.tobytes(), looked.positions) == (expected.values.tobytes(), expected.positions), txn.transaction_id
    token = payments[0].account_id
    for kind, layout in zip(CATALOGUE.logs, CATALOGUE.log_layouts, strict=True):
        if kind in ("counterparty", "payee"):
            continue  # no payment of a lane has another account
        await memory.tidy(kind, token)
        await own.tidy(kind, token)
        log = await memory.log(kind, token)
        assert log == await own.log(kind, token)
        assert row_count(log, layout.row_bytes, len(log)) == len({txn.transaction_id for txn in payments})


def test_slots_move_while_payments_run_and_nothing_is_lost_or_twice(cluster: Cluster) -> None:
    lanes = [lane(f"lane{n}", 250) for n in range(8)]
    shared = [a_payment(f"s{n}", T0 + n * 7919 % 600 * MINUTE, card_token="shared", account_id=f"s{n}", device_token=None) for n in range(600)]
    keys = [layout.key(token) for layout in CATALOGUE.log_layouts for token in ("shared", *(f"lane{n}" for n in range(8)))]

    def move_them(running: asyncio.Event) -> int:
        moved = 0
        while running.is_set():
            for slot in map(key_slot, keys):
                moved += cluster.move(slot, another(cluster, slot), pause_s=0.001)
        return moved

    async def scenario(wire: Wire) -> None:
        memory, unavailable = RedisMemory(wire, CATALOGUE), list[float]()
        running = asyncio.Event()
        running.set()
        mover = asyncio.create_task(asyncio.to_thread(move_them, running))
        parts = [shared[n::4] for n in range(4)]
        try:
            looks = await asyncio.gather(*(in_turn(memory, payments, unavailable) for payments in (*lanes, *parts)))
        finally:
            running.clear()
            moved = await mover
        await memory.settle()
        print(f"{moved} keys moved while {sum(map(len, looks))} payments ran; {len(unavailable)} times unavailable")
        assert moved > 20
        assert (unavailable, memory.tidy_failures) == ([], 0)
        for payments, looked in zip(lanes, looks, strict=False):
            await agrees(memory, payments, looked)
        of_card = CATALOGUE.logs.index("card")
        told = [pair for payments, looked in zip(parts, looks[len(lanes) :], strict=True) for pair in zip(payments, looked, strict=True)]
        told.sort(key=lambda pair: pair[1].positions[of_card])
        assert [looked.positions[of_card] for _, looked in told] == list(range(600))
        own = DictMemory(CATALOGUE)
        for txn, looked in told:
            assert looked.values.tobytes() == (await seen(CATALOGUE, own, txn)).values.tobytes()
        await memory.tidy("card", "shared")
        await own.tidy("card", "shared")
        assert await memory.log("card", "shared") == await own.log("card", "shared")
        await memory.close()

    on_the(cluster, scenario)


def test_while_a_master_is_gone_what_it_holds_is_missing_in_time_and_the_rest_is_there() -> None:
    lanes = [lane(f"lane{n}", 300) for n in range(8)]
    spent: list[float] = []
    gone: list[frozenset[str]] = []

    async def remembered(memory: RedisMemory, payments: list[Transaction]) -> None:
        for txn in payments:
            began = time.monotonic()
            past = await memory.recall(txn)
            spent.append(time.monotonic() - began)
            gone.append(frozenset(past.missing))
            looked = look(CATALOGUE, past)
            for kind, position in zip(CATALOGUE.logs, looked.positions, strict=True):
                assert kind not in past.missing or position == -1
            if "card" in past.missing:
                assert np.isnan(looked.values[CATALOGUE.index["velocity.card_count_1h"]])
            await asyncio.sleep(0.001)

    async def scenario(wire: Wire) -> None:
        memory = RedisMemory(wire, CATALOGUE)

        async def kill() -> None:
            await asyncio.sleep(0.2)
            cluster.masters[1].kill9()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(cluster.masters[1].start)

        await asyncio.gather(kill(), *(remembered(memory, payments) for payments in lanes))
        for _ in range(100):
            past = await memory.recall(a_payment("after", T0 + DAY, card_token="lane1", account_id="lane1", device_token="lane1"))
            if not past.missing:
                break
            await asyncio.sleep(0.1)
        assert past.missing == (), "it goes on when the node is back"
        print(f"{sum(map(bool, gone))} of {len(gone)} with something missing, {max(spent):.3f} s at most")
        assert max(spent) < wire.timeout_s + SLACK_S
        assert frozenset() in gone
        assert any(0 < len(kinds) < len(CATALOGUE.logs) for kinds in gone), "what other nodes hold was there"
        await memory.close()

    with a_cluster("--appendonly", "yes", "--appendfsync", "no") as cluster:
        on_the(cluster, scenario, timeout_s=0.5)


def test_a_replica_takes_over_from_a_master_that_is_gone() -> None:
    keys = [f"k{n}" for n in range(60)]
    lost = range(SLOTS // 3)

    async def scenario(wire: Wire) -> None:
        await wire.send(*(("SET", key, 1) for key in keys))
        await asyncio.to_thread(cluster.masters[0].ask, "WAIT", 1, 5000)
        cluster.masters[0].kill9()
        there = next(key for key in keys if key_slot(key) in lost)
        async with asyncio.timeout(20):
            while True:
                began = time.monotonic()
                try:
                    assert await wire.send(("MGET", *keys)) == [[b"1"] * len(keys)]
                    assert await wire.send(("INCR", there)) == [2]
                    return
                except MemoryUnavailable:
                    assert time.monotonic() - began < wire.timeout_s + SLACK_S
                    await asyncio.sleep(0.05)

    with a_cluster(replicas=1) as cluster:
        on_the(cluster, scenario, timeout_s=0.5)


def test_a_user_is_who_was_named_on_every_node() -> None:
    async def scenario(url: str) -> None:
        async with a_wire(url, "secret", "bank") as wire:
            assert await wire.send(("ACL", "WHOAMI")) == [b"bank"]
        with pytest.raises(MemoryUnavailable):
            await Wire.connect(url, "wrong", "bank")

    with a_cluster("--user", "bank", "on", ">secret", "~*", "+@all") as cluster:
        asyncio.run(scenario(cluster.url))


def test_an_address_of_no_cluster_is_said_to_be_none() -> None:
    with pytest.raises(MemoryUnavailable):
        asyncio.run(Wire.connect("redis+cluster://127.0.0.1:1,127.0.0.1:2"))
    for wrong in ("redis+cluster://", "redis+cluster://a:1,", "redis+cluster:///path"):
        with pytest.raises(SettingsError):
            asyncio.run(Wire.connect(wrong))


def test_a_wire_that_is_closed_leaves_nothing_running(cluster: Cluster) -> None:
    async def scenario(wire: Wire) -> None:
        requests: list[asyncio.Future[list[Any]]] = [wire.send(("BLPOP", f"nothing{n}", 0)) for n in range(9)]
        await asyncio.sleep(0.01)
        await wire.close()
        for request in requests:
            with pytest.raises(MemoryUnavailable):
                await request
        with pytest.raises(MemoryUnavailable):
            await wire.send(("GET", "k"))
        assert len(asyncio.all_tasks()) == 1

    on_the(cluster, scenario)
