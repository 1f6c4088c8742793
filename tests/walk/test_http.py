"""The HTTP door: what a host sends, what it gets, and that the first answer stands whatever comes after."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from schemas.identity import keyed_token
from schemas.topics import DECISIONS
from schemas.transaction import TransactionKind
from streams.authorize.http import HttpDoor
from streams.authorize.protocol import Request
from tests.world import NOON, TestWorld, a_world

KEY = b"k" * 32


def a_request(**changes: Any) -> dict[str, Any]:
    """What a host sends."""
    plain = {
        "transaction_id": "t1",
        "kind": "ecommerce",
        "at_ms": NOON,
        "amount_minor": 1_000,
        "currency": "EUR",
        "account_id": "a1",
        "card_number": "4111111111111111",
        "merchant_id": "m1",
    }
    return {k: v for k, v in (plain | changes).items() if v is not ...}


class Host:
    """A card authorization host and the door it knocks at."""

    def __init__(self, world: TestWorld, deadline_ms: int = 1_000) -> None:
        self.world = world
        world.world.clock_ms = lambda: world.now_ms
        self.door = HttpDoor(world.world, KEY, "k1", deadline_ms, "secret")

    async def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, Any, bytes]:
        """(status, decoded body, body)."""
        path, _, query = path.partition("?")
        sent = tuple((k.lower().encode(), v.encode()) for k, v in (headers or {}).items())
        status, content = await self.door.reply(Request(method, path, query, sent, body))
        return status, json.loads(content), content

    async def authorize(self, **changes: Any) -> tuple[int, Any, bytes]:
        """Sends an authorization."""
        return await self.ask("POST", "/v1/authorizations", json.dumps(a_request(**changes)).encode())


def at_the_door(play: Callable[[Host], Awaitable[None]], deadline_ms: int = 1_000) -> None:
    """Runs a scene."""

    async def main() -> None:
        world = a_world()
        world.know(balance_minor=10_000)
        await play(Host(world, deadline_ms))

    asyncio.run(main())


def test_an_authorization_is_answered_without_saying_why() -> None:
    async def play(host: Host) -> None:
        status, answer, _ = await host.authorize()
        assert status == 200
        assert (answer["outcome"], answer["response_code"], answer["held_minor"], answer["currency"]) == ("approve", "00", 1_000, "EUR")
        assert not {"score", "reasons", "vector", "contributions", "features"} & answer.keys()

    at_the_door(play)


def test_raw_identifiers_become_keyed_tokens_and_go_no_further() -> None:
    async def play(host: Host) -> None:
        await host.authorize(device_id="d-1", email="a@example.org")
        (decision,) = host.world.decisions
        txn = decision.transaction
        assert txn.card_token == keyed_token(KEY, "k1", "crd", "4111111111111111")
        assert (txn.card_bin, txn.card_last4) == ("411111", "1111")
        assert txn.device_token == keyed_token(KEY, "k1", "dev", "d-1")
        message = host.world.bus.told[DECISIONS.name][0].value or b""
        assert b"4111111111111111" not in message
        assert b"a@example.org" not in message

    at_the_door(play)


def test_the_first_answer_stands_byte_for_byte_before_during_and_after() -> None:
    async def play(host: Host) -> None:
        during = await asyncio.gather(*(host.authorize() for _ in range(5)))
        host.world.now_ms += 60_000
        after = await host.authorize()
        assert len({content for _, _, content in (*during, after)}) == 1
        assert len(host.world.decisions) == 1

    at_the_door(play)


def test_the_same_id_with_other_contents_is_a_409() -> None:
    async def play(host: Host) -> None:
        both = await asyncio.gather(host.authorize(), host.authorize(amount_minor=2))
        assert sorted(status for status, _, _ in both) == [200, 409]
        status, error, _ = await host.authorize(amount_minor=3)
        assert (status, error["error"], error["field"]) == (409, "transaction_conflict", "transaction_id")

    at_the_door(play)


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"amount_minor": -1}, "amount_minor", "invalid_field"),
        ({"amount_minor": 1.5}, "amount_minor", "invalid_field"),
        ({"amount_minor": ...}, "amount_minor", "missing_field"),
        ({"currency": "XQX"}, "currency", "unknown_currency"),
        ({"at_ms": NOON + 86_400_000}, "at_ms", "time_in_future"),
        ({"kind": "barter"}, "kind", "invalid_field"),
        ({"card_number": "4111"}, "card_number", "invalid_field"),
        ({"card_token": "crd_k1_1"}, "card_number", "invalid_field"),
        ({"cvv": "123"}, "cvv", "unknown_field"),
    ],
)
def test_a_wrong_field_is_a_422_that_names_it(changes: dict[str, Any], field: str, code: str) -> None:
    async def play(host: Host) -> None:
        status, error, _ = await host.authorize(**changes)
        assert (status, error["field"], error["error"]) == (422, field, code)
        assert host.world.decisions == []

    at_the_door(play)


@pytest.mark.parametrize(("body", "field"), [(b"", "body"), (b"{", "body"), (b"[]", "value"), (b"x" * 70_000, "body")])
def test_a_body_that_is_no_request_is_a_422(body: bytes, field: str) -> None:
    async def play(host: Host) -> None:
        status, error, _ = await host.ask("POST", "/v1/authorizations", body)
        assert (status, error["field"]) == (422, field)

    at_the_door(play)


def test_a_compressed_body_is_not_read() -> None:
    async def play(host: Host) -> None:
        status, error, _ = await host.ask("POST", "/v1/authorizations", b"{}", {"Content-Encoding": "gzip"})
        assert (status, error["field"]) == (422, "content-encoding")

    at_the_door(play)


def test_a_log_that_does_not_answer_is_a_503_and_a_later_repeat_is_safe() -> None:
    async def play(host: Host) -> None:
        host.world.bus.down = True
        status, error, _ = await host.authorize()
        assert (status, error["error"]) == (503, "log_unavailable")
        assert (await host.ask("GET", "/v1/decisions?transaction_id=t1"))[0] == 404, "what the log does not have was not decided"
        host.world.bus.down = False
        assert (await host.authorize())[0] == 200
        assert len(host.world.decisions) == 1

    at_the_door(play)


def test_what_takes_too_long_is_a_503_and_goes_on() -> None:
    async def play(host: Host) -> None:
        told = host.world.bus.tell

        def slow(*args: Any) -> Any:
            return asyncio.ensure_future(asyncio.sleep(0.1)) if told(*args) else None

        host.world.world.bus.tell = slow  # type: ignore[method-assign, assignment]
        status, error, _ = await host.authorize()
        assert (status, error["error"]) == (503, "deadline")
        await asyncio.sleep(0.15)
        assert (await host.authorize())[0] == 200
        assert len(host.world.decisions) == 1

    at_the_door(play, deadline_ms=20)


def test_decisions_are_found_by_id_and_by_transaction() -> None:
    async def play(host: Host) -> None:
        _, answer, content = await host.authorize()
        assert (await host.ask("GET", f"/v1/decisions/{answer['decision_id']}"))[2] == content
        assert (await host.ask("GET", "/v1/decisions?transaction_id=t1"))[2] == content
        assert (await host.ask("GET", "/v1/decisions/dec_0"))[0] == 404
        assert (await host.ask("GET", "/v1/decisions?transaction_id=t9"))[0] == 404
        assert (await host.ask("GET", "/v1/decisions"))[1]["field"] == "transaction_id"

    at_the_door(play)


def test_only_the_banks_own_people_see_score_and_features() -> None:
    async def play(host: Host) -> None:
        _, answer, _ = await host.authorize()
        path = f"/v1/decisions/{answer['decision_id']}"
        assert "score" not in (await host.ask("GET", path, headers={"Authorization": "Bearer wrong"}))[1]
        whole = (await host.ask("GET", path, headers={"Authorization": "Bearer secret"}))[1]
        assert whole["features"]["velocity.card_count_10m"] == 0
        assert whole["transaction"]["kind"] == TransactionKind.ECOMMERCE
        assert "vector" not in whole

    at_the_door(play)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/health", 200), ("GET", "/ready", 200), ("GET", "/v1/authorizations", 405), ("POST", "/health", 405), ("GET", "/", 404)],
)
def test_other_paths(method: str, path: str, status: int) -> None:
    async def play(host: Host) -> None:
        assert (await host.ask(method, path))[0] == status

    at_the_door(play)
