"""What benchmarks print is what they say: payments that nobody answered are no capacity, and no promise is kept by them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from features.catalogue import CATALOGUE
from streams.authorize.codec import Codec
from streams.authorize.dialect import dialect_of
from streams.authorize.iso8583 import HEADERS
from streams.backtest import payments_in
from streams.clock import clock_ms
from streams.settings import Settings
from tests.bench import load_iso, shadow
from tests.bench.authorize import goals, iso_frames
from tests.bench.features import holds
from tests.bench.load import closed_loop, open_loop
from tests.bench.pace import arrivals, paced
from tests.bench.policy import an_archive, policy
from tests.bench.swap import checks
from tests.bench.walk import transactions


def test_payments_that_are_not_answered_beside_a_shadow_are_told_from_opinions_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([{"given": 1.0, "full": 0.0, "log": 0.0, "failed": 0.0}, {"given": 4.0, "full": 0.0, "log": 0.0, "failed": 2.0}])
    monkeypatch.setattr(shadow, "counted", lambda _: next(counts))
    monkeypatch.setattr(shadow, "load", lambda *_, **__: {"count": 10.0, "failed": 7.0})
    stack: Any = SimpleNamespace(part=lambda _: psutil.Process(), settings=SimpleNamespace(http_port=0, api_key=""))
    found = shadow.Door(stack, 0).asked(1)
    assert (found["not_200"], found["failed"], found["given"]) == (7.0, 2.0, 3.0)


def test_what_is_refused_is_no_capacity() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        writer.close()
        gone.append(writer)

    async def play() -> dict[str, float]:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        async with server:
            found = await closed_loop(server.sockets[0].getsockname()[1], [b"GET / HTTP/1.1\r\n\r\n"] * 100, connections=2, seconds=5)
            while len(gone) < 2:
                await asyncio.sleep(0.01)
        return found

    gone: list[asyncio.StreamWriter] = []
    found = asyncio.run(play())
    assert (found["per_s"], found["count"], found["failed"]) == (0.0, 100, 100)
    assert [goal.holds for goal in goals({"closed": found | {"per_s": 9_000.0}})] == [True, False]


def test_messages_that_are_answered_by_no_decision_are_no_capacity_of_iso_8583() -> None:
    codec, answers = Codec(dialect_of("1987-ascii")), itertools.chain(["91"] * 50, itertools.repeat("00"))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readexactly(2):
                message = codec.decode(await reader.readexactly(int.from_bytes(head)))
                writer.write(
                    HEADERS["binary2"].framed(codec.encode(message._replace(mti="0110", fields={11: message.fields[11], 39: next(answers)})))
                )
        writer.close()
        gone.set()

    async def play() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        frames = [iso_frames(transactions(1, "i", clock_ms()))] * 100
        async with server:
            with pytest.raises(AssertionError, match="91"):
                await load_iso.closed_loop(server.sockets[0].getsockname()[1], frames, connections=1, seconds=5)
            await gone.wait()

    gone = asyncio.Event()
    asyncio.run(play())


def test_a_swap_by_which_a_payment_is_lost_does_not_hold() -> None:
    none = ("failures", "dead_letters", "of_no_known_model", "of_half_a_model", "cards_of_two_judges", "breaker_alarms", "breaker_ms")
    found: dict[str, Any] = {**dict.fromkeys(none, 0), "requests": 10, "decisions": 10, "converged_ms": {"promoted": {"a": 1}}}
    assert all(map(holds, checks(found)))
    assert not all(map(holds, checks(found | {"decisions": 9})))


def test_each_arrival_is_begun_once_in_order_at_its_moment_and_never_before() -> None:
    async def main() -> None:
        for rate in (500, 20_000):
            began, seen = time.perf_counter(), list[tuple[int, float, float]]()
            moments = [began + moment for moment in arrivals(rate, 0.2, 3)]
            late = await paced(moments, lambda number, moment, seen=seen: seen.append((number, moment, time.perf_counter())))  # type: ignore[misc]
            assert [each[:2] for each in seen] == list(enumerate(moments))
            assert all(now >= moment for _, moment, now in seen)
            assert len(late) == len(moments) == pytest.approx(rate * 0.2, rel=0.4)
        assert await paced([], lambda number, moment: None) == []

    asyncio.run(main())


def test_an_open_loop_counts_each_payment_once_though_the_service_cuts_its_connections() -> None:
    """Answers 200 twice on a connection, then 503, then nothing: it ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.append(True)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for status in (b"200 OK", b"200 OK", b"503 Service Unavailable"):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 %b\r\ncontent-length: 2\r\n\r\n{" % status)
                await asyncio.sleep(0.001)
                writer.write(b"}")
                heard.append(status)
            await reader.readuntil(b"\r\n\r\n")
            heard.append(b"cut")
        writer.close()
        served.append(writer)

    async def main() -> dict[str, float]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            found = await open_loop(server.sockets[0].getsockname()[1], [b"GET / HTTP/1.1\r\n\r\n"] * 1_000, connections=4, rate=500, seconds=1)
            while len(served) < len(begun):
                await asyncio.sleep(0.01)
            await asyncio.gather(*(writer.wait_closed() for writer in served))
        return found

    heard, begun, served = list[bytes](), list[bool](), list[asyncio.StreamWriter]()
    found = asyncio.run(main())
    assert found["count"] == len(heard) > 300
    assert found["failed"] == len(heard) - heard.count(b"200 OK") > 50
    assert found["good_per_s"] == pytest.approx(heard.count(b"200 OK"), rel=0.1)


def test_a_replay_of_policies_is_measured_over_payments_of_which_some_are_frauds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    an_archive(tmp_path, 20_000)
    assert payments_in(tmp_path, CATALOGUE.names[:2]).frauds.sum() > 10
    policy(["--rows", "20000", "--json"], Settings())
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["decisions"] == 20_000
