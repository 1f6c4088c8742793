"""What benchmarks print is what they say: payments that nobody answered are no capacity, and no promise is kept by them."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.bench import shadow
from tests.bench.authorize import goals
from tests.bench.features import holds
from tests.bench.load import closed_loop
from tests.bench.swap import checks


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


def test_a_swap_by_which_a_payment_is_lost_does_not_hold() -> None:
    none = ("failures", "dead_letters", "of_no_known_model", "of_half_a_model", "cards_of_two_judges", "breaker_alarms", "breaker_ms")
    found: dict[str, Any] = {**dict.fromkeys(none, 0), "requests": 10, "decisions": 10, "converged_ms": {"promoted": {"a": 1}}}
    assert all(map(holds, checks(found)))
    assert not all(map(holds, checks(found | {"decisions": 9})))
