"""The transport to Redis: one write a tick, errors as values, and MemoryUnavailable for everything that means 'it did not answer'."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import hiredis
import numpy as np
import psutil
import pytest
from payments import a_payment
from stores import a_redis, a_wire

from features.catalogue import CATALOGUE
from features.engine import look
from features.log import REWRITTEN_ROWS, row_count
from features.online import RedisMemory
from features.wire import Wire
from schemas.errors import MemoryUnavailable, SettingsError


def on_a_wire(
    scenario: Callable[[Wire], Awaitable[None]],
    *options: str,
    password: str | None = None,
    username: str | None = None,
    timeout_s: float = 5.0,
) -> None:
    async def run(url: str) -> None:
        async with a_wire(url, password, username, timeout_s) as wire:
            await scenario(wire)

    with a_redis(*options) as url:
        asyncio.run(run(url))


def test_replies_come_in_order_and_an_error_is_a_value_in_its_place() -> None:
    async def scenario(wire: Wire) -> None:
        ok, error, value = await wire.send(("SET", "k", b"\x00\xff"), ("LPUSH", "k", 1), ("GET", "k"))
        assert (ok, value) == (b"OK", b"\x00\xff")
        assert isinstance(error, hiredis.ReplyError)
        assert await wire.send(("MULTI",), ("INCR", "n"), ("EXEC",)) == [b"OK", b"QUEUED", [1]]
        assert await wire.send() == []
        assert await wire.send(("GET", "nothing"), ("MGET", "k", "nothing")) == [None, [b"\x00\xff", None]]

    on_a_wire(scenario)


def test_what_is_sent_in_one_tick_goes_out_in_one_write() -> None:
    async def reads(wire: Wire) -> int:
        (info,) = await wire.send(("INFO", "stats"))
        return next(int(line.split(b":")[1]) for line in info.splitlines() if line.startswith(b"total_reads_processed"))

    async def scenario(wire: Wire) -> None:
        before = await reads(wire)
        await asyncio.gather(*[wire.send(("INCR", "n"), ("APPEND", "log", b"row")) for _ in range(25)])
        assert await reads(wire) - before == 2
        assert await wire.send(("GET", "n")) == [b"25"]

    on_a_wire(scenario)


def test_what_nobody_waits_for_goes_along_with_what_comes_next_or_a_little_later_and_is_sent_before_the_end() -> None:
    async def run(url: str) -> None:
        async with a_wire(url, None, None, 5.0) as other:

            async def reads() -> int:
                (info,) = await other.send(("INFO", "stats"))
                return next(int(line.split(b":")[1]) for line in info.splitlines() if line.startswith(b"total_reads_processed"))

            wire = await Wire.connect(url)
            before = await reads()
            wire.post(("SET", "k", "1"), ("EXPIRE", "k", 60))
            written = np.frombuffer(bytearray(hiredis.pack_command(("GET", "k"))), np.uint8)
            assert bytes(await wire.exchange(written.data, 1, bytes)) == b"$1\r\n1\r\n"
            wire.post(("SET", "k", "2"))
            assert await wire.send(("GET", "k")) == [b"2"]
            assert await reads() - before == 3, "two writes of this wire, and one that asked"
            wire.post(("SET", "k", "3"))
            assert await other.send(("GET", "k")) == [b"2"], "not yet"
            await asyncio.sleep(0.1)
            assert await other.send(("GET", "k")) == [b"3"]
            wire.post(("SET", "k", "4"))
            await wire.close()
            await asyncio.sleep(0.1)
            assert await other.send(("GET", "k")) == [b"4"]

    with a_redis() as url:
        asyncio.run(run(url))


def test_many_go_out_as_soon_as_they_are_enough_for_a_write_and_stay_in_order() -> None:
    async def scenario(wire: Wire) -> None:
        said = await asyncio.gather(*[wire.send(("INCR", "many"), ("APPEND", "grows", b"row")) for _ in range(500)])
        assert said == [[n, 3 * n] for n in range(1, 501)]

    on_a_wire(scenario)


def test_a_server_that_does_not_answer_in_time_is_unavailable_and_is_found_again() -> None:
    async def scenario(wire: Wire) -> None:
        await wire.send(("CLIENT", "PAUSE", 600))
        waiting = [wire.send(("SET", "k", 0)), wire.send(("GET", "k"))]
        for request in waiting:
            with pytest.raises(MemoryUnavailable):
                await request
        with pytest.raises(MemoryUnavailable):
            await wire.send(("GET", "k"))
        await _until_connected(wire)
        assert await wire.send(("SET", "k", 1), ("GET", "k")) == [b"OK", b"1"]

    on_a_wire(scenario, timeout_s=0.2)


async def _until_connected(wire: Wire) -> None:
    async with asyncio.timeout(10):
        while not wire.connected:
            await asyncio.sleep(0.01)


def test_a_server_that_dies_is_unavailable_until_another_takes_its_place(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("r")

    async def run() -> None:
        with a_redis(folder=folder) as url:
            wire = await Wire.connect(url)
        async with asyncio.timeout(10):
            while wire.connected:
                await asyncio.sleep(0.01)
        with pytest.raises(MemoryUnavailable):
            await wire.send(("GET", "k"))
        with a_redis(folder=folder):
            await _until_connected(wire)
            assert await wire.send(("GET", "k")) == [None]
            await wire.close()

    asyncio.run(run())


def test_a_server_that_refuses_writes_for_want_of_memory_is_unavailable() -> None:
    async def scenario(wire: Wire) -> None:
        await wire.send(("CONFIG", "SET", "maxmemory", "1"))
        with pytest.raises(MemoryUnavailable, match="OOM"):
            await wire.send(("SET", "k", 1))

    on_a_wire(scenario)


def test_the_password_is_asked_for() -> None:
    async def scenario(wire: Wire) -> None:
        assert await wire.send(("SET", "k", 1)) == [b"OK"]
        for wrong in (None, "wrong"):
            with pytest.raises(MemoryUnavailable):
                await Wire.connect(wire.url, wrong)

    on_a_wire(scenario, "--requirepass", "secret", password="secret")


def test_a_user_is_who_was_named_and_tidying_is_the_same_one() -> None:
    bank = ("--user", "default", "off", "--user", "bank", "on", ">secret", "~*", "+@all")
    txn = a_payment("1")

    async def scenario(wire: Wire) -> None:
        assert await wire.send(("ACL", "WHOAMI")) == [b"bank"]
        memory = RedisMemory(wire, CATALOGUE)
        await memory.recall(txn)
        await memory.recall(txn)
        await memory.tidy("account", txn.account_id)
        size = CATALOGUE.log_layouts[CATALOGUE.logs.index("account")].row_bytes
        log = await memory.log("account", txn.account_id)
        assert row_count(log, size, len(log)) == 1
        await memory.close()
        for password, username in (("secret", None), ("wrong", "bank"), ("secret", "nobody"), (None, "bank")):
            with pytest.raises(MemoryUnavailable):
                await Wire.connect(wire.url, password, username)

    on_a_wire(scenario, *bank, password="secret", username="bank")


def test_logs_that_are_due_are_brought_to_rest_together_and_are_not_read_for_it() -> None:
    async def calls(wire: Wire, command: bytes) -> int:
        (info,) = await wire.send(("INFO", "commandstats"))
        return sum(int(line.split(b"calls=")[1].split(b",")[0]) for line in info.splitlines() if line.startswith(b"cmdstat_%b:" % command))

    async def scenario(wire: Wire) -> None:
        memory = RedisMemory(wire, CATALOGUE)
        payments = [a_payment(str(n), 1_700_000_000_000 + n, account_id=f"a{n % 4}", card_token=f"c{n % 4}") for n in range(4 * REWRITTEN_ROWS)]
        await memory.recall_all(payments)
        await memory.settle()
        assert (await calls(wire, b"get"), memory.tidy_failures) == (0, 0)
        assert await calls(wire, b"set") == 4 + 4 + 1, "in the script: once for each card, account and device, however often it was due meanwhile"
        await memory.recall_all(payments[:3])
        await memory.settle()
        (log,) = await wire.send(("GET", CATALOGUE.log_layouts[0].key("c1")))
        assert len(log) == REWRITTEN_ROWS * CATALOGUE.log_layouts[0].row_bytes, "a row that came twice is there once"
        await memory.close()

    on_a_wire(scenario)


def test_nobody_there_is_unavailable_and_a_wrong_address_is_a_wrong_setting() -> None:
    with pytest.raises(MemoryUnavailable):
        asyncio.run(Wire.connect("unix:///nowhere/redis.sock"))
    for url in ("http://localhost", "unix://", "localhost:6379"):
        with pytest.raises(SettingsError):
            asyncio.run(Wire.connect(url))


def test_requests_of_a_wire_that_is_closed_fail_and_nothing_is_left_running() -> None:
    async def scenario(wire: Wire) -> None:
        request = wire.send(("BLPOP", "nothing", 0))
        await asyncio.sleep(0.01)
        await wire.close()
        with pytest.raises(MemoryUnavailable):
            await request
        with pytest.raises(MemoryUnavailable):
            await wire.send(("GET", "k"))
        assert len(asyncio.all_tasks()) == 1

    on_a_wire(scenario)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_redis_that_does_not_answer_leaves_everything_missing_in_time_and_raises_nothing(how: str) -> None:
    async def run(url: str, pid: int) -> None:
        async with a_wire(url, timeout_s=0.3) as wire:
            memory = RedisMemory(wire, CATALOGUE)
            assert (await memory.recall(a_payment("before"))).missing == ()
            os.kill(pid, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
            for name in ("first", "second"):
                began = time.monotonic()
                txn = a_payment(name)
                past = await memory.recall(txn)
                assert time.monotonic() - began < 0.3 + 3.0, "its own time-out ends it, on a machine that may stand still for a while"
                assert set(past.missing) == {*CATALOGUE.logs, "account_profile", *CATALOGUE.tallies}
                looked = look(CATALOGUE, past)
                assert np.isnan(looked.values[CATALOGUE.index["velocity.card_count_1h"]])
                assert looked.values[CATALOGUE.index["behavioural.txn_amount_minor"]] == txn.amount_minor
                assert set(looked.positions) == {-1}
            os.kill(pid, signal.SIGCONT) if how == "stopped" else None
            await memory.close()

    with a_redis() as url:
        (pid,) = [child.pid for child in psutil.Process().children() if url.removeprefix("unix://") in " ".join(child.cmdline())]
        asyncio.run(run(url, pid))
