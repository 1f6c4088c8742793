"""The description of HTTP is what the door does: schemathesis asks by it, every example is true, every error has one."""

from __future__ import annotations

import asyncio
import html
import json
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from jsonschema_rs import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from models.answer import Answer
from models.hold import UnknownAccount
from schemas.errors import MemoryUnavailable
from streams.answers import listed_of
from streams.authorize import openapi
from streams.authorize.http import HttpDoor
from streams.authorize.keys import Grant, Keyring, Scope, hash_of
from streams.authorize.openapi import ANSWERS, READABLE, REQUESTS, SHAPES, document, page
from streams.authorize.problem import ERRORS, ErrorBody, Problem
from streams.authorize.requests import AuthorizationRequest
from streams.authorize.routes import ROUTES
from streams.authorize.serve import http_server
from streams.cli import main
from streams.settings import Settings
from tests.walk.test_http import Host, at_the_door
from tests.world import a_world

NOT_SAID = {"method_not_allowed"}
"""Of no operation: it is said where there is none."""


def test_each_route_is_described_and_each_error_shown() -> None:
    assert {f"{route.method} {route.path}" for route in ROUTES} == SHAPES.keys()
    told = {code for shape in SHAPES.values() for code in shape.errors} | {*READABLE, "scope_missing"} | NOT_SAID
    assert told == ERRORS.keys()


def test_whatever_is_asked_of_an_authorization_may_say_how_long_its_host_waits() -> None:
    posted = {path: route["post"] for path, route in document()["paths"].items() if "post" in route}
    assert len(posted) == 4
    for path, route in posted.items():
        assert "Holdfast-Deadline-Ms" in [parameter["name"] for parameter in route["parameters"]], path


def test_every_example_is_one() -> None:
    for records in (REQUESTS, ANSWERS):
        for record, examples in records.items():
            for example in examples.values():
                msgspec.convert(example, record)
    for path in document()["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                for name, example in answer["content"].get("application/json", {}).get("examples", {}).items():
                    if status != "200":
                        assert msgspec.convert(example["value"], ErrorBody).error.code == name


@pytest.mark.parametrize("path", [path for path, route in document()["paths"].items() if route.keys() & {"post", "put"}])
def test_every_example_of_a_request_is_taken_as_it_stands(path: str) -> None:
    named = path.format_map({"transaction_id": "t", "account_id": "b-7", "token": "crd_k1_0123456789abcdef"})
    step = path.rpartition("/")[2]

    async def taken(method: str, sent: dict[str, Any]) -> None:
        world = a_world(UnknownAccount.HOLD)
        world.ask_for_authentication()
        host = Host(world, 10_000)
        host.carry("all", Scope.ADMIN)
        original = REQUESTS[AuthorizationRequest]["purchase"] | {"transaction_id": sent.get("step_up_of", "t")}
        if "step_up_of" in sent:
            assert (await host.ask("POST", "/v1/authorizations", msgspec.json.encode(original)))[1]["action"] == "step_up"
        if step in ("increment", "capture", "reversal"):
            held = (sent if step == "increment" else original) | {"transaction_id": "t", "three_ds_result": "match"}
            assert (await host.ask("POST", "/v1/authorizations", msgspec.json.encode(held)))[1]["held_minor"] == 1_999
        status, answer, _ = await host.ask(method, named, msgspec.json.encode(sent))
        assert status == 200, (path, sent, answer)

    for method, operation in document()["paths"][path].items():
        for example in operation.get("requestBody", {"content": {}})["content"].get("application/json", {"examples": {}})["examples"].values():
            asyncio.run(taken(method.upper(), example["value"]))


def test_what_a_key_that_may_see_all_gets_is_described() -> None:
    async def play(host: Host) -> None:
        for number in range(8):
            _, answer, _ = await host.authorize(transaction_id=f"t{number}")
        for decision in host.world.decisions:
            host.world.world.answers.enlist(listed_of(decision))
        host.carry("bank", Scope.READ, Scope.EXPLAIN)
        one, few = "/v1/decisions/{decision_id}", "/v1/decisions"
        for route, path in ((one, one.format_map(answer)), (few, f"{few}?transaction_id=t7"), (few, f"{few}?account=a1"), (few, f"{few}?account=a2")):
            status, said, _ = await host.ask("GET", path)
            content = document()["paths"][route]["get"]["responses"]["200"]["content"]["application/json"]
            assert status == 200
            Draft202012Validator({**content["schema"], "components": document()["components"]}).validate(said)
            for example in content["examples"].values():
                Draft202012Validator({**content["schema"], "components": document()["components"]}).validate(example["value"])

    at_the_door(play)


def test_what_an_authorization_is_told_where_nobody_stands_in_is_described() -> None:
    async def play(host: Host) -> None:
        sent = json.dumps(REQUESTS[AuthorizationRequest]["purchase"] | {"account_id": "a1"}).encode()
        host.world.bus.down = True
        _, unacknowledged, _ = await host.ask("POST", "/v1/authorizations", sent)
        host.world.world.memory.recall_all = gone  # type: ignore[method-assign]
        _, forgotten, _ = await host.ask("POST", "/v1/authorizations", sent)
        codes = [answer["error"]["code"] for answer in (unacknowledged, forgotten)]
        assert codes == ["log_unavailable", "memory_unavailable"]
        for route in ("", "/{transaction_id}/increment"):
            assert {*codes} <= {*SHAPES[f"POST /v1/authorizations{route}"].errors}

    async def gone(*_: object) -> Any:
        raise MemoryUnavailable("it is away")

    at_the_door(play)


class Links(HTMLParser):
    """What a page names and where it points."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.to: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One element."""
        assert tag not in ("script", "link", "img", "iframe")
        values = dict(attrs)
        self.ids |= {values["id"] or ""} if "id" in values else set()
        self.to |= {values["href"] or ""} if "href" in values else set()


def test_events_are_shown_as_they_come() -> None:
    content = document()["paths"]["/v1/decisions/stream"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    begin, event, quiet, end = content["examples"]["events"]["value"].split("\n\n")
    assert (begin, quiet, end) == ("retry: 1000\nid: 6.0.3.1", ": nothing new\nid: 7.0.3.1", "")
    assert event.startswith("id: 7.0.3.1\nevent: decision\ndata: ")
    msgspec.json.decode(event.partition("data: ")[2], type=Answer)
    assert f"<pre>{html.escape(begin)}\n\nid: " in page().decode()


def test_the_page_has_all_of_it_and_nothing_from_elsewhere() -> None:
    links = Links()
    links.feed(page().decode())
    assert {to.removeprefix("#") for to in links.to} - links.ids == {"openapi.json"}
    assert document()["components"]["schemas"].keys() <= links.ids
    docs = [msgspec.json.decode(Problem(code).reply("")[1], type=ErrorBody).error.doc for code in ERRORS]
    assert {doc.removeprefix("/docs#") for doc in docs} == ERRORS.keys() <= links.ids


def test_the_command_prints_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["openapi"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(openapi.description())
    assert main(["openapi", "--html"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    """The address of a door over a world, in a thread of its own."""
    began, ended = threading.Event(), threading.Event()
    address: list[str] = []

    async def serve() -> None:
        world = a_world()
        world.know(balance_minor=10_000)
        world.world.clock_ms = lambda: world.now_ms
        keys = Keyring([Grant(name="all", sha256=hash_of("hf_test"), scopes=(Scope.AUTHORIZE, Scope.CAPTURE, Scope.READ))])
        server = http_server(HttpDoor(world.world, b"k" * 32, "k1", 10_000, keys), Settings(http_port=0))
        server.install_signal_handlers = lambda: None
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        address.append(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        began.set()
        while not ended.is_set():
            await asyncio.sleep(0.05)
        server.should_exit = True
        await running

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert began.wait(120)
    yield address[0]
    ended.set()
    thread.join()


schema = schemathesis.openapi.from_dict(document())


def is_right_as_sent(case: Any, url: str) -> bool:
    """Whether only the query and the headers were drawn to be wrong, and what arrives of them is right all the same.

    The key is sent with every request, though the drawn one had none; and an unknown parameter without a value is not sent at all.
    """
    wrong = {place.value for place, drawn in case.meta.components.items() if drawn.mode.is_negative}
    sent = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    described = {p["name"]: p["schema"] for p in case.operation.definition.raw.get("parameters", []) if p["in"] == "query"}
    headers = {p["name"].lower() for p in case.operation.definition.raw.get("parameters", []) if p["in"] == "header"}
    return (
        wrong <= {"query", "header"}
        and len(dict(sent)) == len(sent)
        and all(name in described and is_described(value, described[name]) for name, value in sent)
        and not any(name.lower() in headers for name in case.headers or {})
    )


def is_described(value: str, schema: dict[str, Any]) -> bool:
    """Whether the text of a query is one of a schema."""
    if schema["type"] == "integer":
        return value.isdecimal() and schema["minimum"] <= int(value) <= schema["maximum"]
    return bool(schema["minLength"] <= len(value) <= schema["maxLength"])


@schema.exclude(path="/v1/decisions/stream").parametrize()
@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck))
def test_what_is_described_is_what_is_answered(case: Any, door: str) -> None:
    response = case.call(base_url=door, headers={"Authorization": "Bearer hf_test"})
    but = [positive_data_acceptance]  # no schema says that an id came before, or that a time is yet to come
    if "x-schemathesis-unknown-property" in (case.headers or {}) or is_right_as_sent(case, response.request.url):
        but.append(negative_data_rejection)  # HTTP lets everybody send headers of his own
    if response.status_code == 503:
        assert response.json()["error"]["code"] == "deadline", "it was asked to answer within so few milliseconds"
        but.append(not_a_server_error)
    case.validate_response(response, excluded_checks=but)
