"""The HTTP door: what a host sends, what it gets, and that the first answer stands whatever comes after."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from models import hold
from models.answer import FIELD_39
from models.hold import Refusal, confirm, terms_of
from models.refusal import DECLINES
from schemas.account import AccountStatus
from schemas.errors import MemoryUnavailable
from schemas.identity import keyed_token
from schemas.topics import CLEARINGS, DECISIONS
from schemas.transaction import TransactionKind
from streams.answers import UNTOLD_MS_MAX, Kept, Made, listed_of
from streams.authorize.http import HttpDoor
from streams.authorize.keys import Grant, Keyring, Scope, hash_of
from streams.authorize.life import NotCleared
from streams.authorize.problem import ERRORS
from streams.authorize.protocol import HEADS, Request, Special
from streams.authorize.routes import OPEN_PATHS, ROUTES
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
        self.world, self.key = world, "host"
        world.world.clock_ms = lambda: world.now_ms
        self.grants = {"host": Grant(name="host", sha256=hash_of("host"), scopes=(Scope.AUTHORIZE, Scope.CAPTURE, Scope.READ))}
        self.door = HttpDoor(world.world, KEY, "k1", deadline_ms, Keyring(again=lambda: self.grants.values()))

    async def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, Any, bytes]:
        """(status, decoded body, body)."""
        path, _, query = path.partition("?")
        headers = {"Authorization": f"Bearer {self.key}"} | (headers or {})
        sent = tuple((k.lower().encode(), v.encode()) for k, v in headers.items())
        status, content, *_ = await self.door.reply(Request(method, path, query, sent, body))
        return status, json.loads(content), content

    def carry(self, name: str, *scopes: Scope, **limits: Any) -> None:
        """From now on asks with a key of these scopes and limits."""
        self.key = name
        self.grants[name] = Grant(name=name, sha256=hash_of(name), scopes=scopes, **limits)

    async def authorize(self, **changes: Any) -> tuple[int, Any, bytes]:
        """Sends an authorization."""
        return await self.ask("POST", "/v1/authorizations", json.dumps(a_request(**changes)).encode())

    async def step(self, step: str, original_id: str = "t1", /, **sent: Any) -> tuple[int, Any, bytes]:
        """Captures, reverses or raises an authorization."""
        return await self.ask("POST", f"/v1/authorizations/{original_id}/{step}", json.dumps(sent).encode())


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
        assert (status, error["error"]["code"], error["error"]["param"]) == (409, "transaction_conflict", "transaction_id")

    at_the_door(play)


@pytest.mark.parametrize("changes", [{"amount_minor": 500}, {"amount_minor": 2_000}, {"billing_amount_minor": 1_000, "billing_currency": "USD"}])
def test_an_id_whose_hold_outlives_its_answer_is_no_other_payments(changes: dict[str, Any]) -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        host.world.books.books["a1"] = confirm(host.world.books.books["a1"], terms_of(host.world.decisions[0])).book
        for sent, status, said in ((changes, 409, "transaction_conflict"), ({}, 200, 1_000)):
            host.world.answers.kept.clear()
            host.world.answers.digests.clear()
            got = await host.authorize(**sent)
            assert (got[0], got[1]["error"]["code"] if "error" in got[1] else got[1]["held_minor"]) == (status, said)
        assert len(host.world.books.books["a1"].holds) == 1

    at_the_door(play)


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"amount_minor": -1}, "amount_minor", "invalid_field"),
        ({"amount_minor": 1.5}, "amount_minor", "invalid_field"),
        ({"amount_minor": ...}, "amount_minor", "missing_field"),
        ({"currency": "XQX"}, "currency", "unknown_currency"),
        ({"card_number": "4111111111111111\n"}, "card_number", "invalid_field"),
        ({"country": "DE\n"}, "country", "invalid_field"),
        ({"transaction_id": "inc_1"}, "transaction_id", "invalid_field"),
        ({"at_ms": NOON + 86_400_000}, "at_ms", "time_in_future"),
        ({"kind": "barter"}, "kind", "invalid_field"),
        ({"card_number": "4111"}, "card_number", "invalid_field"),
        ({"card_token": "crd_k1_1"}, "card_number", "invalid_field"),
        ({"card_bin": "42424242"}, "card_bin", "invalid_field"),
        ({"card_last4": "4242"}, "card_last4", "invalid_field"),
        ({"cvv": "123"}, "cvv", "unknown_field"),
    ],
)
def test_a_wrong_field_is_a_422_that_names_it(changes: dict[str, Any], field: str, code: str) -> None:
    async def play(host: Host) -> None:
        status, error, _ = await host.authorize(**changes)
        assert (status, error["error"]["param"], error["error"]["code"]) == (422, field, code)
        assert host.world.decisions == []

    at_the_door(play)


@pytest.mark.parametrize(("body", "field"), [(b"", "body"), (b"{", "body"), (b"[]", "value"), (b"x" * 70_000, "body")])
def test_a_body_that_is_no_request_is_a_422(body: bytes, field: str) -> None:
    async def play(host: Host) -> None:
        status, error, _ = await host.ask("POST", "/v1/authorizations", body)
        assert (status, error["error"]["param"]) == (422, field)

    at_the_door(play)


def test_a_compressed_body_is_not_read() -> None:
    async def play(host: Host) -> None:
        status, error, _ = await host.ask("POST", "/v1/authorizations", b"{}", {"Content-Encoding": "gzip"})
        assert (status, error["error"]["param"]) == (422, "content-encoding")

    at_the_door(play)


def test_a_log_that_does_not_answer_is_a_503_and_a_later_repeat_is_safe() -> None:
    async def play(host: Host) -> None:
        host.world.bus.down = True
        status, error, _ = await host.authorize()
        assert (status, error["error"]["code"]) == (503, "log_unavailable")
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
        assert (status, error["error"]["code"]) == (503, "deadline")
        await asyncio.sleep(0.15)
        assert (await host.authorize())[0] == 200
        assert len(host.world.decisions) == 1

    at_the_door(play, deadline_ms=20)


def test_what_waited_behind_others_for_as_long_as_its_host_does_is_refused_and_not_begun() -> None:
    async def play(host: Host) -> None:
        head = ((b"authorization", b"Bearer host"), (b"holdfast-deadline-ms", b"500"))
        request = Request("POST", "/v1/authorizations", "", head, json.dumps(a_request()).encode(), heard_s=time.perf_counter() - 0.6)
        for path in (request.path, "/v1/authorizations/t0/increment"):
            status, content, *_ = await host.door.reply(request._replace(path=path))
            assert (status, json.loads(content)["error"]["code"]) == (503, "deadline")
        assert not host.world.decisions
        assert (await host.door.reply(request._replace(heard_s=time.perf_counter() - 0.1)))[0] == 200

    at_the_door(play)


@pytest.mark.parametrize("step", ["capture", "reversal", "increment"])
def test_what_follows_an_authorization_is_answered_in_the_time_that_the_host_gives(step: str) -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        of_transaction = host.world.answers.of_transaction

        async def slow(transaction_id: str) -> Any:
            await asyncio.sleep(0.03)
            return await of_transaction(transaction_id)

        host.world.answers.of_transaction = slow  # type: ignore[method-assign]
        sent = a_request(transaction_id="i1") if step == "increment" else {"clearing_id": "c1"}
        path, body = f"/v1/authorizations/t1/{step}", json.dumps(sent).encode()
        for said, answer in (("20", (503, "deadline")), ("soon", (422, "invalid_field"))):
            status, error, _ = await host.ask("POST", path, body, {"Holdfast-Deadline-Ms": said})
            assert (status, error["error"]["code"]) == answer
        assert (await host.ask("POST", path, body))[0] == 200

    at_the_door(play)


def test_decisions_are_found_by_id_and_by_transaction() -> None:
    async def play(host: Host) -> None:
        _, answer, content = await host.authorize()
        assert (await host.ask("GET", f"/v1/decisions/{answer['decision_id']}"))[2] == content
        assert (await host.ask("GET", "/v1/decisions?transaction_id=t1"))[2] == content
        assert (await host.ask("GET", "/v1/decisions/dec_0"))[0] == 404
        assert (await host.ask("GET", "/v1/decisions?transaction_id=t9"))[0] == 404
        assert (await host.ask("GET", "/v1/decisions"))[1]["error"]["param"] == "transaction_id"

    at_the_door(play)


def test_only_the_banks_own_people_see_score_and_features() -> None:
    async def play(host: Host) -> None:
        _, answer, _ = await host.authorize()
        path = f"/v1/decisions/{answer['decision_id']}"
        host.carry("host", Scope.AUTHORIZE, Scope.READ)
        assert "score" not in (await host.ask("GET", path))[1]
        host.carry("bank", Scope.READ, Scope.EXPLAIN)
        whole = (await host.ask("GET", path))[1]
        assert whole["features"]["velocity.card_count_10m"] == 0
        assert whole["transaction"]["kind"] == TransactionKind.ECOMMERCE
        assert "vector" not in whole

    at_the_door(play)


def test_the_banks_own_people_read_reasons_as_sentences_with_what_is_usual() -> None:
    async def play(host: Host) -> None:
        for number in range(8):
            _, answer, _ = await host.authorize(transaction_id=f"t{number}")
        host.carry("bank", Scope.READ, Scope.EXPLAIN)
        whole = (await host.ask("GET", f"/v1/decisions/{answer['decision_id']}"))[1]
        reason = next(r for r in whole["reasons"] if r["feature"] == "velocity.card_count_10m")
        assert reason["value"] == 7
        assert reason["sentence"] == f"7 payments on the card within ten minutes; usual: {reason['usual']:g}"

    at_the_door(play)


def test_the_decisions_of_a_card_and_an_account_come_in_pages_the_newest_first() -> None:
    async def play(host: Host) -> None:
        for number in range(7):
            await host.authorize(transaction_id=f"t{number}", amount_minor=number)
            host.world.now_ms += number % 2  # two of each millisecond
        for decision in host.world.decisions:
            host.world.world.answers.enlist(listed_of(decision))
        card = host.world.decisions[0].transaction.card_token
        for query in ("account=a1", f"card={card}"):
            seen, asked, more = [], 0, ""
            while asked < 10:
                status, page, _ = await host.ask("GET", f"/v1/decisions?{query}&limit=3{more}")
                assert status == 200
                seen += [decision["transaction_id"] for decision in page["decisions"]]
                asked += 1
                if page["cursor"] is None:
                    break
                more = f"&cursor={page['cursor']}"
            assert (seen, asked) == ([f"t{number}" for number in (6, 5, 4, 3, 2, 1, 0)], 3)
        assert (await host.ask("GET", "/v1/decisions?account=a2"))[1] == {"decisions": [], "cursor": None}
        assert (await host.ask("GET", "/v1/decisions?account=a1&cursor=gone"))[1] == {"decisions": [], "cursor": None}
        host.carry("others", Scope.READ, bins=("5",))
        assert (await host.ask("GET", "/v1/decisions?account=a1"))[1]["decisions"] == []


def test_the_pages_of_a_key_of_some_cards_are_full_and_name_no_payment_of_others() -> None:
    async def play(host: Host) -> None:
        cards = ("4111111111111111", "5555555555554444")
        for number, card in enumerate([0, 1, 0, 0, 1, 0]):
            await host.authorize(transaction_id=f"t{number}", amount_minor=number, card_number=cards[card])
            host.world.now_ms += 1
        for decision in host.world.decisions:
            host.world.world.answers.enlist(listed_of(decision))
        host.carry("own", Scope.READ, bins=("5",))
        pages, more = [], ""
        while more is not None:
            _, page, _ = await host.ask("GET", f"/v1/decisions?account=a1&limit=1{more}")
            pages.append(([decision["transaction_id"] for decision in page["decisions"]], page["cursor"]))
            more = f"&cursor={page['cursor']}" if page["cursor"] else None
        assert pages == [(["t4"], "t4"), (["t1"], None)]

    at_the_door(play)


@pytest.mark.parametrize("name", ["4111111111111111", "n" * 60 + "4111 1111 1111 1111", "n" * 60_000])
def test_log_and_error_keep_little_of_a_name_that_nobody_knows_and_no_card_number(name: str) -> None:
    async def play(host: Host) -> None:
        with capture_logs() as said:
            status, error, body = await host.authorize(**{name: 1})
        (line,) = said
        assert (status, error["error"]["param"]) == (422, line["field"])
        assert 0 < len(line["field"]) <= 64
        assert "1111" not in line["field"]
        assert (len(body) < 1_000, b"1111" in body) == (True, False)

    at_the_door(play)


def test_an_error_has_no_card_number_that_came_where_none_belongs() -> None:
    async def play(host: Host) -> None:
        for kind in ("4111111111111111", "%B4111111111111111^NAME^2512101"):
            status, _, body = await host.authorize(kind=kind)
            assert (status, b"1111111" in body) == (422, False)
        await host.authorize(transaction_id="4111111111111111")
        status, error, body = await host.authorize(transaction_id="4111111111111111", amount_minor=2_000)
        assert (status, error["error"]["code"], b"1111111" in body) == (409, "transaction_conflict", False)

    at_the_door(play)


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("", "transaction_id", "missing_field"),
        ("limit=3", "transaction_id", "missing_field"),
        ("account=a1&card=c", "transaction_id", "invalid_field"),
        ("account=a1&account=a2", "transaction_id", "invalid_field"),
        ("account=", "account", "invalid_field"),
        ("account=a1&limit=0", "limit", "invalid_field"),
        ("account=a1&limit=201", "limit", "invalid_field"),
        ("account=a1&limit=%C2%B2", "limit", "invalid_field"),
        ("account=a1&cursor=", "cursor", "invalid_field"),
        ("account=a1&since=1", "since", "unknown_field"),
        ("card=4111111111111111", "card", "card_number"),
        ("card=4111+1111-1111+1111", "card", "card_number"),
    ],
)
def test_a_query_that_is_none_is_refused_by_the_name_of_what_is_wrong(query: str, param: str, code: str) -> None:
    async def play(host: Host) -> None:
        status, error, _ = await host.ask("GET", f"/v1/decisions?{query}")
        assert (status, error["error"]["param"], error["error"]["code"]) == (422, param, code)

    at_the_door(play)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/ready", 200),
        ("GET", "/v1/authorizations", 405),
        ("HEAD", "/health", 200),
        ("HEAD", "/ready", 200),
        ("HEAD", "/v1/decisions/stream", 405),
        ("POST", "/health", 405),
        ("GET", "/", 404),
        ("POST", "/v1/authorization", 404),
        ("OPTIONS", "*", 404),
    ],
)
def test_other_paths(method: str, path: str, status: int) -> None:
    async def play(host: Host) -> None:
        assert (await host.ask(method, path))[0] == status

    at_the_door(play)


ASKS = [
    ("POST", "/v1/authorizations", Scope.AUTHORIZE),
    ("POST", "/v1/authorizations/t1/increment", Scope.AUTHORIZE),
    ("POST", "/v1/authorizations/t1/capture", Scope.CAPTURE),
    ("POST", "/v1/authorizations/t1/reversal", Scope.CAPTURE),
    ("PUT", "/v1/accounts/a1/controls", Scope.RESTRICT),
    ("GET", "/v1/accounts/a1/controls", Scope.READ),
    ("PUT", "/v1/cards/crd_k1_1/controls", Scope.RESTRICT),
    ("GET", "/v1/cards/crd_k1_1/controls?account_id=a1", Scope.READ),
    ("GET", "/v1/decisions?transaction_id=t1", Scope.READ),
    ("GET", "/v1/decisions/dec_1", Scope.READ),
    ("GET", "/v1/decisions/stream", Scope.READ),
    ("GET", "/v1/accounts/a1/balance", Scope.READ),
    ("GET", "/openapi.json", Scope.READ),
]


@pytest.mark.parametrize(("method", "path", "scope"), ASKS)
def test_nothing_is_open_and_each_ask_needs_its_scope(method: str, path: str, scope: Scope) -> None:
    async def play(host: Host) -> None:
        host.key = "guessed"
        assert (await host.ask(method, path))[1]["error"]["code"] == "unauthenticated"
        host.carry("another", *({*Scope} - {scope, Scope.ADMIN}))
        status, error, _ = await host.ask(method, path)
        assert (status, error["error"]["code"], error["error"]["type"]) == (403, "scope_missing", "authentication")
        host.carry("this", scope)
        assert (await host.ask(method, path))[0] in (200, 404, 422, 503)

    at_the_door(play)


def test_every_row_of_the_routes_is_asked_above_or_open() -> None:
    asked = {(method, path.partition("?")[0].replace("t1", "{transaction_id}")) for method, path, _ in ASKS}
    asked = {(m, p.replace("dec_1", "{decision_id}").replace("a1", "{account_id}").replace("crd_k1_1", "{token}")) for m, p in asked}
    assert {(route.method, route.path) for route in ROUTES if route.path not in {*OPEN_PATHS, "/docs"}} == asked  # /docs is no JSON


def test_what_is_open_is_open_to_every_key_and_takes_nothing_of_its_rate() -> None:
    async def play(host: Host) -> None:
        host.carry("cautious", Scope.AUTHORIZE, per_s=0.001, burst=1)
        assert [(await host.ask("GET", path))[0] for path in ("/health", "/ready", "/health")] == [200, 200, 200]
        assert [(await host.authorize())[0], (await host.authorize())[0]] == [200, 429]
        assert (await host.ask("GET", "/ready"))[0] == 200

    at_the_door(play)


def test_who_has_no_key_learns_of_no_path_but_the_open_ones() -> None:
    async def play(host: Host) -> None:
        host.key = ""
        for path in ("/", "/v1/nothing", "/v1/authorizations/t1/refund", "/metrics", "/health/", "//health"):
            assert (await host.ask("GET", path))[0] == 401, path
        assert (await host.ask("GET", "/health"))[0] == 200
        host.carry("host", Scope.READ)
        assert (await host.ask("GET", "/v1/nothing"))[0] == 404
        assert (await host.ask("GET", "/v1/authorizations"))[0] == 405

    at_the_door(play)


def test_a_key_of_some_cards_sees_and_moves_no_other_card() -> None:
    async def play(host: Host) -> None:
        decision_id = (await host.authorize())[1]["decision_id"]
        host.carry("others", Scope.AUTHORIZE, Scope.CAPTURE, Scope.READ, bins=("5",))
        asked = [
            await host.authorize(transaction_id="t2"),
            await host.authorize(transaction_id="t2", card_bin="511111"),
            await host.authorize(transaction_id="t2", card_number=...),
            await host.step("capture", **CLEARING),
            await host.step("increment", **a_request(transaction_id="i1", card_number="5111111111111111")),
            await host.ask("GET", f"/v1/decisions/{decision_id}"),
            await host.ask("GET", "/v1/accounts/a1/balance"),
        ]
        assert [error["error"]["code"] for _, error, _ in asked] == ["card_not_covered"] * len(asked)
        assert len(host.world.decisions) == 1
        host.carry("own", Scope.AUTHORIZE, Scope.CAPTURE, Scope.READ, bins=("5", "41111111"))
        assert (await host.authorize(transaction_id="t2"))[0] == 200
        host.carry("its", Scope.CAPTURE, bins=("4111",))
        assert (await host.step("capture", **CLEARING))[0] == 200

    at_the_door(play)


def test_a_reversal_by_a_key_of_some_cards_that_overtakes_its_authorization_stands_if_that_is_of_its_cards() -> None:
    async def play(host: Host) -> None:
        host.carry("own", Scope.AUTHORIZE, Scope.CAPTURE, bins=("4",))
        status, error, _ = await host.step("reversal", **CLEARING)
        assert (status, error["error"]["code"]) == (404, "unknown_hold")
        assert (await host.step("reversal", "t3", **CLEARING | {"amount_minor": 1, "currency": "EUR"}))[1]["error"]["code"] == "card_not_covered"
        assert (await host.authorize())[1]["error"]["code"] == "reversed_before"
        host.carry("others", Scope.CAPTURE, bins=("5", "4112"))
        assert (await host.step("reversal", "t2", **CLEARING))[1]["error"]["code"] == "unknown_hold"
        host.carry("own", Scope.AUTHORIZE, Scope.CAPTURE, bins=("4",))
        assert (await host.authorize(transaction_id="t2"))[1]["outcome"] == "approve", "who reversed it may not move its card"
        assert len(host.world.decisions) == 1

    at_the_door(play)


@pytest.mark.parametrize("limits", [{}, {"bins": ("4111",)}])
def test_nothing_is_concluded_from_what_redis_forgot(limits: dict[str, Any]) -> None:
    async def play(host: Host) -> None:
        decision_id = (await host.authorize())[1]["decision_id"]

        async def is_not_whole() -> bool:
            return False

        host.world.answers.kept.clear()
        host.world.answers.whole = is_not_whole  # type: ignore[method-assign]
        host.carry("its", Scope.AUTHORIZE, Scope.CAPTURE, Scope.READ, **limits)
        asked = [
            await host.ask("GET", f"/v1/decisions/{decision_id}"),
            await host.ask("GET", "/v1/decisions?transaction_id=t1"),
            await host.step("increment", **a_request(transaction_id="i1")),
            await host.step("capture", **CLEARING),
            await host.step("reversal", **CLEARING),
        ]
        assert [(status, error["error"]["code"]) for status, error, _ in asked] == [(503, "memory_unavailable")] * len(asked)

    at_the_door(play)


def test_past_its_rate_a_key_is_told_when_to_ask_again_and_others_go_on() -> None:
    async def play(host: Host) -> None:
        host.carry("slow", Scope.READ, per_s=0.1, burst=2)
        asks = [await host.ask("GET", "/v1/accounts/a1/balance") for _ in range(3)]
        assert [status for status, _, _ in asks] == [200, 200, 429]
        assert (asks[2][1]["error"]["type"], asks[2][1]["error"]["code"]) == ("rate_limit", "rate_limited")
        refused = await host.door.reply(Request("GET", "/v1/accounts/a1/balance", "", ((b"authorization", b"Bearer slow"),), b""))
        assert isinstance(refused, Special)
        assert refused.head in (b"retry-after: 10\r\n", b"retry-after: 9\r\n")
        host.key = "host"
        assert (await host.ask("GET", "/v1/accounts/a1/balance"))[0] == 200

    at_the_door(play)


CLEARING = {"clearing_id": "c1"}


def test_every_error_has_the_one_body_and_names_the_request() -> None:
    async def play(host: Host) -> None:
        _, error, _ = await host.authorize(amount_minor=-1)
        assert error["error"].keys() == {"type", "code", "message", "param", "request_id", "response_code", "doc"}
        fault = error["error"]
        assert (fault["type"], fault["request_id"], fault["response_code"]) == ("invalid_request", "req_0", "30")

    at_the_door(play)


def test_whatever_a_host_can_be_told_is_a_row_of_the_table() -> None:
    moves = {"not_confirmed", "not_yet_expired", "not_resolved"}  # of the books, never of a host
    decided = {str(refusal) for refusal in DECLINES}  # a decline, with status 200
    assert {str(refusal) for refusal in (*Refusal, *NotCleared)} - moves - decided <= ERRORS.keys()
    assert {row.answer for row in ERRORS.values()} <= FIELD_39.keys()
    assert {row.status for row in ERRORS.values()} <= HEADS.keys()


@pytest.mark.parametrize(("sent", "taken"), [({}, 1_000), ({"amount_minor": 700, "currency": "EUR"}, 700)])
def test_a_capture_takes_the_whole_or_a_part_and_its_repeat_gets_the_same_bytes(sent: dict[str, Any], taken: int) -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        status, answer, first = await host.step("capture", **CLEARING, **sent)
        assert (status, answer["kind"], answer["amount_minor"], answer["currency"], answer["response_code"]) == (200, "capture", taken, "EUR", "00")
        host.world.now_ms += 60_000
        assert (await host.step("capture", **CLEARING, **sent))[2] == first
        status, error, _ = await host.step("capture", clearing_id="c1", amount_minor=1, currency="EUR")
        assert (status, error["error"]["code"], error["error"]["param"]) == (409, "transaction_conflict", "clearing_id")
        status, error, _ = await host.step("capture", clearing_id="c2")
        assert (status, error["error"]["code"], error["error"]["type"], error["error"]["response_code"]) == (409, "already_posted", "refused", "21")
        (clearing,) = host.world.bus.records(CLEARINGS)
        assert (clearing.kind, clearing.amount_minor) == ("capture", taken)  # type: ignore[attr-defined]

    at_the_door(play)


def test_an_authorization_is_captured_in_parts_and_reversed_in_part_and_each_repeat_gets_the_same_bytes() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        sent = [
            ("capture", {"clearing_id": "c1", "amount_minor": 400, "currency": "EUR", "final": False}),
            ("reversal", {"clearing_id": "c2", "amount_minor": 100, "currency": "EUR"}),
            ("capture", {"clearing_id": "c3", "amount_minor": 300, "currency": "EUR", "final": False}),
        ]
        answers = [await host.step(step, **body) for step, body in sent]
        assert [(status, answer["amount_minor"]) for status, answer, _ in answers] == [(200, 400), (200, 100), (200, 300)]
        for (step, body), (_, _, first) in zip(sent, answers, strict=True):
            assert (await host.step(step, **body))[2] == first
        status, error, _ = await host.step("capture", clearing_id="c1", amount_minor=399, currency="EUR", final=False)
        assert (status, error["error"]["code"]) == (409, "transaction_conflict")
        assert (await host.step("capture", clearing_id="c4", amount_minor=201, currency="EUR"))[1]["error"]["code"] == "exceeds_hold"
        assert (await host.step("increment", **a_request(transaction_id="i1", amount_minor=500)))[0] == 200, "it is still open"
        assert (await host.step("capture", clearing_id="c4"))[1]["amount_minor"] == 700
        assert (await host.step("capture", clearing_id="c5"))[1]["error"]["code"] == "already_posted"
        taken = [c.amount_minor for c in host.world.bus.records(CLEARINGS) if c.kind == "capture"]  # type: ignore[attr-defined]
        assert sum(taken) == 1_400

    at_the_door(play)


def test_an_increment_that_the_log_does_not_have_takes_no_part_in_a_capture() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        host.world.bus.down = True
        assert (await host.step("increment", **a_request(transaction_id="i1", amount_minor=500)))[0] == 503
        host.world.bus.down = False
        assert (await host.step("capture", **CLEARING))[1]["amount_minor"] == 1_000

    at_the_door(play)


def test_a_reversal_of_all_is_to_come_again_while_another_process_may_tell_the_log_of_an_increment() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        host.world.bus.down = True
        assert (await host.step("increment", **a_request(transaction_id="i1", amount_minor=500)))[0] == 503
        host.world.bus.down = False
        assert (await host.step("reversal", clearing_id="r1"))[1]["error"]["code"] == "log_unavailable"
        assert (await host.step("reversal", clearing_id="r2", amount_minor=300, currency="EUR"))[0] == 200
        host.world.now_ms += UNTOLD_MS_MAX
        assert (await host.step("reversal", clearing_id="r1"))[0] == 200, "nobody answered for it"

    at_the_door(play)


@pytest.mark.parametrize("asked_again", [False, True])
def test_an_increment_that_placed_its_hold_and_was_not_approved_takes_no_part_in_a_capture_or_reversal(asked_again: bool) -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        keep_all, increment = host.world.answers.keep_all, a_request(transaction_id="i1", amount_minor=500)

        async def gone(made: Sequence[Made]) -> list[Kept | MemoryUnavailable]:
            return [MemoryUnavailable("gone")] * len(made)

        host.world.answers.keep_all = gone  # type: ignore[assignment,method-assign]
        assert (await host.step("increment", **increment))[0] == 503
        host.world.answers.keep_all = keep_all  # type: ignore[method-assign]
        if asked_again:
            host.world.now_ms += host.world.world.hold_lease_ms
            host.world.know(as_of_ms=2, status=AccountStatus.FROZEN)
            assert (await host.step("increment", **increment))[1]["outcome"] == "decline"
        assert (await host.step("reversal", clearing_id="r1", amount_minor=300, currency="EUR"))[0] == 200
        assert (await host.step("capture", **CLEARING))[1]["amount_minor"] == 700

    at_the_door(play)


def test_a_payment_whose_decider_died_between_its_hold_and_its_answer_can_be_reversed_once_the_hold_has_lapsed() -> None:
    async def play(host: Host) -> None:
        keep_all, named = host.world.answers.keep_all, {"clearing_id": "r1", "account_id": "a1"}

        async def gone(made: Sequence[Made]) -> list[Kept | MemoryUnavailable]:
            return [MemoryUnavailable("gone")] * len(made)

        host.world.answers.keep_all = gone  # type: ignore[assignment,method-assign]
        assert (await host.authorize())[0] == 503
        host.world.answers.keep_all = keep_all  # type: ignore[method-assign]
        for step in ("capture", "reversal"):
            assert (await host.step(step, **named))[1]["error"]["code"] == "log_unavailable", "it may be decided yet"
        host.world.now_ms += host.world.world.hold_lease_ms
        for step in ("capture", "reversal"):
            assert (await host.step(step, **named))[1]["error"]["code"] == "unknown_hold"
        assert (await host.step("increment", **a_request(transaction_id="i1")))[1]["error"]["code"] == "unknown_hold"
        assert (await host.authorize())[1]["error"]["code"] == "reversed_before"
        assert host.world.bus.records(CLEARINGS) == []

    at_the_door(play)


def test_captures_that_come_together_never_take_more_than_is_held() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        body = {"amount_minor": 300, "currency": "EUR", "final": False}
        answers = await asyncio.gather(*(host.step("capture", clearing_id=f"c{n}", **body) for n in range(5)))
        assert sorted(status for status, _, _ in answers) == [200, 200, 200, 422, 422]

    at_the_door(play)


def test_a_reversal_gives_all_of_it_back_once_also_where_it_overtook_the_decision() -> None:
    async def play(host: Host) -> None:
        (_, decided, _), (status, answer, _) = await asyncio.gather(host.authorize(), host.step("reversal", **CLEARING))
        assert decided["outcome"] == "approve"
        assert (status, answer["kind"], answer["amount_minor"], answer["response_code"]) == (200, "reversal", 0, "00")
        assert (await host.step("capture", clearing_id="c2"))[1]["error"]["code"] == "already_voided"

    at_the_door(play)


@pytest.mark.parametrize(("named", "sent"), [("t1", {}), ("i1", {"account_id": "a1"})])
def test_a_reversal_waits_for_the_increment_that_it_overtook(named: str, sent: dict[str, Any]) -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        tell = host.world.bus.tell
        host.world.world.bus.tell = lambda *told: asyncio.ensure_future(asyncio.sleep(0.1)) if tell(*told) else None  # type: ignore[method-assign, assignment]
        raising = asyncio.create_task(host.step("increment", **a_request(transaction_id="i1", amount_minor=500)))
        await asyncio.sleep(0.05)
        status, _, _ = await host.step("reversal", named, **CLEARING, **sent)
        assert ((await raising)[1]["outcome"], status) == ("approve", 200)
        given_back = [clearing.transaction_id for clearing in host.world.bus.records(CLEARINGS)]  # type: ignore[attr-defined]
        assert host.world.decisions[1].transaction_id in given_back

    at_the_door(play, deadline_ms=5_000)


def test_an_increment_raises_the_hold_and_is_captured_with_it() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        status, answer, first = await host.step("increment", **a_request(transaction_id="i1", amount_minor=500))
        assert (status, answer["outcome"], answer["held_minor"]) == (200, "approve", 500)
        assert (await host.step("increment", **a_request(transaction_id="i1", amount_minor=500)))[2] == first
        assert (await host.ask("GET", f"/v1/decisions?transaction_id={answer['transaction_id']}"))[2] == first
        assert "its answer's transaction_id" in (await host.ask("GET", "/v1/decisions?transaction_id=i1"))[1]["error"]["message"]
        assert (await host.step("increment", **a_request(transaction_id="i2", account_id="a2")))[1]["error"]["code"] == "wrong_account"
        status, answer, _ = await host.step("capture", **CLEARING)
        assert (status, answer["amount_minor"]) == (200, 1_500)
        assert (await host.step("increment", **a_request(transaction_id="i3")))[1]["error"]["code"] == "already_posted"

    at_the_door(play)


def test_an_increment_is_held_no_longer_than_what_it_raises() -> None:
    async def play(host: Host) -> None:
        ends = (await host.authorize())[1]["hold_expires_at_ms"]
        host.world.now_ms += 86_400_000
        assert (await host.step("increment", **a_request(transaction_id="i1", amount_minor=500)))[1]["hold_expires_at_ms"] == ends
        for decision in host.world.decisions:  # as the `hold` app does
            host.world.books.books["a1"] = confirm(host.world.books.books["a1"], terms_of(decision)).book
        host.world.now_ms = ends - 1
        assert (await host.ask("GET", "/v1/accounts/a1/balance"))[1]["available_minor"] == 8_500
        host.world.now_ms = ends
        assert (await host.step("capture", **CLEARING))[1]["error"]["code"] == "late_capture"
        assert (await host.ask("GET", "/v1/accounts/a1/balance"))[1]["available_minor"] == 10_000

    at_the_door(play)


@pytest.mark.parametrize(
    ("step", "sent", "status", "code"),
    [
        ("capture", {"amount_minor": 1_001, "currency": "EUR"}, 422, "exceeds_hold"),
        ("capture", {"amount_minor": 1, "currency": "USD"}, 422, "hold_currency_mismatch"),
        ("capture", {"amount_minor": 1}, 422, "invalid_field"),
        ("capture", {"account_id": "a2"}, 404, "wrong_account"),
        ("capture", {"at_ms": NOON + 86_400_000}, 422, "time_in_future"),
        ("capture", {"at_ms": NOON // 1_000}, 422, "invalid_field"),
        ("reversal", {"at_ms": NOON // 1_000}, 422, "invalid_field"),
        ("reversal", {"amount_minor": 1}, 422, "invalid_field"),
        ("reversal", {"amount_minor": 0, "currency": "EUR"}, 422, "invalid_field"),
        ("reversal", {"amount_minor": 1_001, "currency": "EUR"}, 422, "exceeds_hold"),
        ("reversal", {"final": False}, 422, "unknown_field"),
        ("reversal", {"clearing_id": ""}, 422, "invalid_field"),
        ("refund", {}, 404, "not_found"),
    ],
)
def test_a_step_that_cannot_be_is_refused_by_name(step: str, sent: dict[str, Any], status: int, code: str) -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        answered, error, _ = await host.step(step, **(CLEARING | sent))
        assert (answered, error["error"]["code"]) == (status, code)
        assert host.world.bus.records(CLEARINGS) == []

    at_the_door(play)


def test_a_capture_from_before_its_authorization_is_refused_by_its_time_unless_clocks_may_differ_so_much() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        earliest = NOON - host.world.world.future_ms_max
        error = (await host.step("capture", **CLEARING, at_ms=earliest - 1))[1]["error"]
        assert (error["param"], error["message"]) == ("at_ms", "is before the authorization")
        assert (await host.step("capture", **CLEARING, at_ms=earliest))[0] == 200

    at_the_door(play)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "refund"}, "kind"),
        ({"card_number": "5500000000000004"}, "card_token"),
        ({"card_number": ...}, "card_token"),
        ({"merchant_id": "m2"}, "merchant_id"),
        ({"billing_currency": "USD", "billing_amount_minor": 1_000}, "currency"),
    ],
)
def test_what_is_no_increment_is_refused_by_its_field(changes: dict[str, Any], field: str) -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        status, error, _ = await host.step("increment", **a_request(transaction_id="i1", **changes))
        assert (status, error["error"]["code"], error["error"]["param"]) == (422, "increment_mismatch", field)
        assert len(host.world.decisions) == 1
        assert (await host.step("increment", **a_request(transaction_id="i1", kind="moto")))[1]["outcome"] == "approve", "keyed in at the desk"

    at_the_door(play)


def test_an_increment_whose_id_came_with_other_contents_is_a_409_that_names_it() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        await host.step("increment", **a_request(transaction_id="i1"))
        status, error, _ = await host.step("increment", **a_request(transaction_id="i1", amount_minor=2))
        assert (status, error["error"]["code"], error["error"]["param"]) == (409, "transaction_conflict", "transaction_id")

    at_the_door(play)


def test_an_increment_that_names_an_increment_raises_what_that_raises() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        _, first, _ = await host.step("increment", **a_request(transaction_id="i1", amount_minor=500))
        status, second, _ = await host.step("increment", first["transaction_id"], **a_request(transaction_id="i2", amount_minor=300))
        assert (status, second["held_minor"]) == (200, 300)
        assert (await host.step("capture", **CLEARING))[1]["amount_minor"] == 1_800
        assert (await host.step("capture", second["transaction_id"], clearing_id="c2"))[1]["error"]["code"] == "already_posted"

    at_the_door(play)


def test_a_hold_that_outlives_its_answer_is_raised_and_captured_as_any_other() -> None:
    async def play(host: Host) -> None:
        world, lodging = host.world, {"mcc": "7011"}
        await host.authorize(**lodging)
        world.books.books["a1"] = confirm(world.books.books["a1"], terms_of(world.decisions[0])).book
        world.answers.kept.clear()
        world.answers.digests.clear()
        world.now_ms += 20 * 86_400_000
        more = a_request(transaction_id="i1", amount_minor=500, at_ms=world.now_ms, **lodging)
        for changes, code in (
            ({"account_id": "a2"}, "unknown_hold"),
            ({"card_number": "5500000000000004"}, "increment_mismatch"),
            ({"billing_amount_minor": 500, "billing_currency": "USD"}, "increment_mismatch"),
            ({"kind": "refund"}, "increment_mismatch"),
        ):
            assert (await host.step("increment", **(more | changes)))[1]["error"]["code"] == code
        _, first, content = await host.step("increment", **more)
        assert (first["outcome"], first["held_minor"]) == ("approve", 500)
        assert (await host.step("increment", **more))[2] == content
        world.bus.down = True
        assert (await host.step("increment", **(more | {"transaction_id": "i2"})))[0] == 503
        world.bus.down = False
        assert (await host.step("increment", first["transaction_id"], **(more | {"transaction_id": "i3"})))[1]["held_minor"] == 500
        said = await host.step("capture", clearing_id="c1", account_id="a1")
        assert said[1]["amount_minor"] == 2_000, "without what the log does not have"
        assert (await host.step("increment", **(more | {"transaction_id": "i4"})))[1]["error"]["code"] == "already_posted"

    at_the_door(play)


def test_an_increment_that_outlives_its_answer_is_still_one_of_what_it_raised() -> None:
    async def play(host: Host) -> None:
        world, lodging = host.world, {"mcc": "7011"}
        await host.authorize(**lodging)
        _, first, _ = await host.step("increment", **a_request(transaction_id="i1", amount_minor=500, **lodging))
        for decision in world.decisions:
            world.books.books["a1"] = confirm(world.books.books["a1"], terms_of(decision)).book
        world.answers.kept.clear()
        world.answers.digests.clear()
        world.now_ms += 20 * 86_400_000
        more = a_request(transaction_id="i2", amount_minor=300, at_ms=world.now_ms, **lodging)
        assert (await host.step("increment", first["transaction_id"], **more))[1]["held_minor"] == 300
        assert (await host.step("capture", clearing_id="c1", account_id="a1"))[1]["amount_minor"] == 1_800
        assert (await host.step("reversal", "i1", clearing_id="c2", account_id="a1"))[1]["error"]["code"] == "already_posted"

    at_the_door(play)


def test_a_hold_that_outlives_its_answer_and_has_expired_is_not_raised() -> None:
    async def play(host: Host) -> None:
        world = host.world
        _, answer, _ = await host.authorize(mcc="7011")
        world.answers.kept.clear()
        world.answers.digests.clear()
        more = a_request(transaction_id="i1", mcc="7011")
        assert (await host.step("increment", **more))[1]["error"]["code"] == "log_unavailable", "the log may not have it"
        world.books.books["a1"] = confirm(world.books.books["a1"], terms_of(world.decisions[0])).book
        world.now_ms = answer["hold_expires_at_ms"]
        assert (await host.step("increment", **more))[1]["error"]["code"] == "already_expired"

    at_the_door(play)


def test_what_its_sender_says_of_an_increment_does_not_hide_what_it_raises() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        said = [{"name": "increments", "value": "t9"}]
        _, raised, _ = await host.step("increment", **a_request(transaction_id="i1", amount_minor=500, attributes=said))
        assert (await host.step("capture", raised["transaction_id"], clearing_id="c1"))[1]["amount_minor"] == 500
        assert (await host.step("capture", clearing_id="c2"))[1]["amount_minor"] == 1_000

    at_the_door(play)


def test_an_increment_that_was_given_back_alone_is_not_captured_with_the_rest() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        for name in ("i1", "i2"):
            _, raised, _ = await host.step("increment", **a_request(transaction_id=name, amount_minor=500))
        assert (await host.step("reversal", "i1", clearing_id="r1", account_id="a1"))[0] == 200
        assert (await host.step("reversal", raised["transaction_id"], clearing_id="r2"))[0] == 200
        assert (await host.step("reversal", "i1", clearing_id="r3", account_id="a1"))[1]["error"]["code"] == "already_voided"
        assert (await host.step("increment", **a_request(transaction_id="i3", amount_minor=200)))[1]["outcome"] == "approve"
        assert (await host.step("capture", clearing_id="c1", amount_minor=1_201, currency="EUR"))[1]["error"]["code"] == "exceeds_hold"
        assert (await host.step("capture", clearing_id="c2"))[1]["amount_minor"] == 1_200
        assert (await host.step("capture", "i1", clearing_id="c3", account_id="a1"))[1]["error"]["code"] == "already_voided"

    at_the_door(play)


def test_an_expired_hold_is_not_raised_and_what_outlives_it_can_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "_raised_until_ms", lambda *_: [])  # as the stand-in, or an earlier release, held it

    async def play(host: Host) -> None:
        _, answer, _ = await host.authorize()
        host.world.now_ms = answer["hold_expires_at_ms"] - 1
        later = a_request(at_ms=host.world.now_ms, transaction_id="i1", amount_minor=500)
        assert (await host.step("increment", **later))[0] == 200
        host.world.now_ms += 1
        assert (await host.step("increment", **(later | {"transaction_id": "i2"})))[1]["error"]["code"] == "already_expired"
        assert (await host.step("increment", **later))[0] == 200, "the first answer stands"
        assert (await host.step("capture", clearing_id="c1"))[1]["error"]["code"] == "late_capture"
        assert (await host.step("reversal", clearing_id="c2"))[0] == 200
        assert (await host.step("reversal", clearing_id="c3"))[1]["error"]["code"] == "already_voided"

    at_the_door(play)


def test_what_nobody_knows_holds_nothing_or_has_expired_is_not_captured() -> None:
    async def play(host: Host) -> None:
        assert (await host.step("capture", **CLEARING))[1]["error"]["code"] == "unknown_hold"
        await host.authorize(amount_minor=99_999)
        assert (await host.step("capture", **CLEARING))[1]["error"]["code"] == "nothing_held"
        await host.authorize(transaction_id="t2")
        host.world.now_ms += 40 * 86_400_000
        assert (await host.step("capture", "t2", **CLEARING))[1]["error"]["code"] == "late_capture"
        assert (await host.step("reversal", "t2", **CLEARING))[1]["error"]["code"] == "already_expired"
        assert (await host.ask("GET", "/v1/authorizations/t2/capture"))[0] == 405

    at_the_door(play)


def test_an_authorization_that_its_reversal_overtook_is_refused_when_it_comes() -> None:
    async def play(host: Host) -> None:
        for clearing_id in ("c1", "c1", "c2"):
            assert (await host.step("reversal", clearing_id=clearing_id))[1]["error"]["code"] == "unknown_hold"
        for changes in ({}, {}, {"amount_minor": 5}):
            status, problem, _ = await host.authorize(**changes)
            error = problem["error"]
            assert (status, error["code"], error["param"], error["response_code"]) == (409, "reversed_before", "transaction_id", "94")
        assert host.world.decisions == []
        assert (await host.ask("GET", "/v1/decisions?transaction_id=t1"))[0] == 404
        assert (await host.step("reversal", "t2", clearing_id="c3", amount_minor=5, currency="EUR"))[0] == 404
        assert (await host.step("capture", "t2", clearing_id="c4"))[0] == 404
        assert (await host.authorize(transaction_id="t2"))[0] == 200, "what was to be reversed in part stands for the rest"
        assert (await host.step("reversal", "i1", clearing_id="c5"))[0] == 404
        assert (await host.step("increment", "t2", **a_request(transaction_id="i1")))[1]["error"]["code"] == "reversed_before"
        assert (await host.step("increment", "t2", **a_request(transaction_id="i2")))[0] == 200

    at_the_door(play)


@pytest.mark.parametrize("sent", [{}, {"amount_minor": 400, "currency": "EUR"}])
@pytest.mark.parametrize("step", ["capture", "reversal"])
def test_what_is_asked_of_a_hold_that_lapsed_before_it_was_followed_is_asked_again(step: str, sent: dict[str, Any]) -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        host.world.now_ms += 31_000
        await host.authorize(transaction_id="t2")  # finds the money of the first free
        status, error, _ = await host.step(step, **CLEARING, **sent)
        assert (status, error["error"]["code"]) == (503, "log_unavailable")
        first = host.world.decisions[0]
        host.world.books.books["a1"] = confirm(host.world.books.books["a1"], terms_of(first)).book  # as the `hold` app does
        assert (await host.step(step, **CLEARING, **sent))[0] == 200

    at_the_door(play)


def test_a_capture_that_the_log_did_not_acknowledge_is_indefinite_and_its_repeat_is_safe() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        host.world.bus.down = True
        status, error, _ = await host.step("capture", **CLEARING)
        assert (status, error["error"]["code"], error["error"]["type"]) == (503, "log_unavailable", "unavailable")
        host.world.bus.down = False
        assert (await host.step("capture", **CLEARING))[0] == 200
        assert len(host.world.bus.told[CLEARINGS.name]) == 1

    at_the_door(play)


def test_a_log_that_does_not_take_a_capture_of_several_holds_fails_once() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        await host.step("increment", **a_request(transaction_id="i1", amount_minor=500))
        unheard: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        host.world.bus.down = True
        assert (await host.step("capture", **CLEARING))[0] == 503
        gc.collect()
        assert not unheard
        host.world.bus.down = False
        assert (await host.step("capture", **CLEARING))[1]["amount_minor"] == 1_500

    at_the_door(play)


def test_what_was_decided_and_never_told_is_reversed_once_its_asker_has_given_it_up() -> None:
    async def play(host: Host) -> None:
        host.world.bus.down = True
        assert (await host.authorize())[0] == 503
        host.world.bus.down = False
        assert (await host.step("reversal", **CLEARING))[1]["error"]["code"] == "log_unavailable", "it may be on its way to the log"
        host.world.now_ms += UNTOLD_MS_MAX
        assert (await host.step("capture", clearing_id="c2"))[0] == 503
        assert (await host.step("reversal", **CLEARING))[0] == 200
        assert (len(host.world.decisions), len(host.world.bus.told[CLEARINGS.name])) == (1, 1)
        assert (await host.step("capture", clearing_id="c2"))[1]["error"]["code"] == "already_voided"

    at_the_door(play)


@pytest.mark.parametrize(
    ("old", "new", "param"),
    [
        (b'"currency"', b'"amount_minor":1,"currency"', "amount_minor"),
        (b'"currency"', b' "amount_minor" :\n1,"currency"', "amount_minor"),
        (b'"currency"', b'"amount\\u005fminor":1,"currency"', "amount_minor"),
        (b'"currency"', b'"ip":"2001:db8::1","ip":"2001:db8::1","currency"', "ip"),
        (b'"currency"', b'"session":{"keystroke_dwell_ms":5},"session":{},"currency"', "session"),
        (b'"currency"', b'"attributes":[{"name":"a","value":"b:c"}],"amount_minor":1,"currency"', "amount_minor"),
        (b'"currency"', b'"attributes":[{"name":"a","value":"b:c"},{"name":"d","value":"e"}],"ip":"2001:db8::1","currency"', None),
        (b'"m1"', b'"m:1"', None),
    ],
)
def test_a_field_that_is_given_twice_is_refused_by_name(old: bytes, new: bytes, param: str | None) -> None:
    async def play(host: Host) -> None:
        body = json.dumps(a_request()).encode().replace(old, new, 1)
        status, answer, _ = await host.ask("POST", "/v1/authorizations", body)
        if param is None:
            assert status == 200
            return
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (422, "invalid_field", param)
        assert answer["error"]["message"].endswith("is given twice")
        await host.authorize()
        twice = b'{"clearing_id":"c1","amount_minor":1,"currency":"EUR","amount_minor":900}'
        status, answer, _ = await host.ask("POST", "/v1/authorizations/t1/capture", twice)
        assert (status, answer["error"]["param"]) == (422, "amount_minor")

    at_the_door(play)


def test_a_refund_and_a_verification_for_nothing_are_decided_and_hold_nothing() -> None:
    async def play(host: Host) -> None:
        for number, changes in enumerate(({"kind": "refund"}, {"amount_minor": 0})):
            status, answer, _ = await host.authorize(transaction_id=f"t{number}", **changes)
            assert (status, answer["outcome"], answer["response_code"], answer["hold_id"]) == (200, "approve", "00", None)

    at_the_door(play)


def test_a_balance_inquiry_says_what_is_available() -> None:
    async def play(host: Host) -> None:
        await host.authorize()
        status, balance, _ = await host.ask("GET", "/v1/accounts/a1/balance")
        assert (status, balance["balance_minor"], balance["available_minor"], balance["currency"]) == (200, 10_000, 9_000, "EUR")
        status, error, _ = await host.ask("GET", "/v1/accounts/a9/balance")
        assert (status, error["error"]["code"], error["error"]["response_code"]) == (404, "unknown_account", "14")

    at_the_door(play)


def test_less_than_was_asked_for_is_approved_where_the_host_can_take_it() -> None:
    async def play(host: Host) -> None:
        _, whole, _ = await host.authorize(amount_minor=4_000, partial_allowed=True)
        assert (whole["response_code"], whole["approved_minor"]) == ("00", 4_000)
        status, answer, content = await host.authorize(transaction_id="t2", amount_minor=9_000, partial_allowed=True)
        assert (status, answer["outcome"], answer["response_code"], answer["reason_category"]) == (200, "approve", "10", "none")
        assert (answer["approved_minor"], answer["held_minor"], answer["currency"]) == (6_000, 6_000, "EUR")
        assert (await host.authorize(transaction_id="t2", amount_minor=9_000, partial_allowed=True))[2] == content
        assert (await host.authorize(transaction_id="t2", amount_minor=9_000))[0] == 409, "not the same request"
        _, declined, _ = await host.authorize(transaction_id="t3", amount_minor=1, partial_allowed=True)
        assert (declined["response_code"], declined["approved_minor"]) == ("51", 0)
        assert (await host.ask("GET", "/v1/decisions?transaction_id=t2"))[1]["approved_minor"] == 6_000

    at_the_door(play)


def test_what_was_approved_in_part_is_captured_and_raised_as_what_is_held() -> None:
    async def play(host: Host) -> None:
        await host.authorize(amount_minor=12_000, partial_allowed=True)
        assert (await host.step("capture", clearing_id="c0", amount_minor=12_000, currency="EUR"))[1]["error"]["code"] == "exceeds_hold"
        _, raised, _ = await host.step("increment", **a_request(transaction_id="t2", amount_minor=500, partial_allowed=True))
        assert raised["response_code"] == "51", "nothing is left to raise it by"
        host.world.know(balance_minor=10_300, as_of_ms=2)
        _, raised, _ = await host.step("increment", **a_request(transaction_id="t3", amount_minor=500, partial_allowed=True))
        assert (raised["response_code"], raised["approved_minor"], raised["held_minor"]) == ("10", 300, 300)
        _, taken, _ = await host.step("capture", clearing_id="c1")
        assert taken["amount_minor"] == 10_300

    at_the_door(play)


@pytest.mark.parametrize(("card", "code"), [("4111111111111111", "1A"), ("5555555555554444", "65"), ("6011111111111117", "1A")])
def test_the_host_is_told_to_have_the_cardholder_authenticate_and_the_result_is_taken(card: str, code: str) -> None:
    async def play(host: Host) -> None:
        host.world.ask_for_authentication()
        status, answer, _ = await host.authorize(card_number=card)
        assert (status, answer["outcome"], answer["action"], answer["response_code"]) == (200, "decline", "step_up", code)
        assert (answer["reason_category"], answer["held_minor"], answer["approved_minor"]) == ("authentication", 0, 0)
        _, problem, _ = await host.authorize(card_number=card, transaction_id="t2", step_up_of="t1", amount_minor=1_001, three_ds_result="match")
        assert (problem["error"]["code"], problem["error"]["param"], problem["error"]["type"]) == ("step_up_mismatch", "amount_minor", "refused")
        _, answer, _ = await host.authorize(card_number=card, transaction_id="t2", step_up_of="t1", three_ds_result="match")
        assert (answer["outcome"], answer["action"], answer["response_code"], answer["held_minor"]) == ("approve", None, "00", 1_000)
        status, problem, _ = await host.authorize(card_number=card, transaction_id="t3", step_up_of="t1", three_ds_result="match")
        assert (status, problem["error"]["code"]) == (409, "step_up_used")
        status, problem, _ = await host.authorize(card_number=card, transaction_id="t4", step_up_of="t2", three_ds_result="match")
        assert (status, problem["error"]["code"]) == (404, "step_up_unknown")

    at_the_door(play)


def test_a_retry_that_failed_has_its_own_code_and_the_cards_other_payments_are_blocked_as_before() -> None:
    async def play(host: Host) -> None:
        host.world.ask_for_authentication()
        await host.authorize()
        _, answer, _ = await host.authorize(transaction_id="t2", step_up_of="t1", three_ds_result="no_match")
        assert (answer["outcome"], answer["action"], answer["response_code"], answer["reason_category"]) == ("decline", None, "63", "authentication")
        _, answer, _ = await host.authorize(transaction_id="t3", kind="card_present")
        assert (answer["outcome"], answer["response_code"], answer["reason_category"]) == ("block", "59", "risk")

    at_the_door(play)
