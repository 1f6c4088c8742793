"""The client of hosts: typed both ways, errors by their types, and repeats with the same id until it was answered or the deadline passed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest

from models.answer import Answer
from streams.answers import listed_of
from streams.authorize.client import AsyncClient, Client, Heard, InvalidRequest, NotAllowed, NotNow, Refused, Unanswered, course
from streams.authorize.keys import Grant, Scope, hash_of
from streams.authorize.requests import AuthorizationRequest, CaptureRequest, ReversalRequest
from tests.walk.test_http import a_request
from tests.walk.test_served import KEY, Served, served


def an_ask(**changes: Any) -> AuthorizationRequest:
    """What a host asks."""
    return msgspec.convert(a_request(**changes), AuthorizationRequest)


class InThread:
    """The sync client, used from a loop, so that one scene serves both."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return lambda *args, **more: asyncio.to_thread(getattr(self._client, name), *args, **more)


@pytest.fixture(params=["sync", "async"])
def with_client(request: pytest.FixtureRequest) -> Callable[[Callable[[Any, Served], Awaitable[None]]], None]:
    """Runs a scene with a client of each kind."""

    def run(play: Callable[[Any, Served], Awaitable[None]], key: str = KEY, deadline_s: float = 20.0, path: str = "") -> None:
        async def scene(door: Served) -> None:
            url = f"http://127.0.0.1:{door.port}{path}"
            if request.param == "sync":
                with Client(url, key, deadline_s) as client:
                    await play(InThread(client), door)
            else:
                async with AsyncClient(url, key, deadline_s) as client:
                    await play(client, door)

        served(scene)

    return run


def test_the_life_of_an_authorization(with_client: Any) -> None:
    async def play(client: Any, door: Served) -> None:
        answer = await client.authorize(an_ask())
        assert (answer.outcome, answer.response_code, answer.held_minor) == ("approve", "00", 1_000)
        assert await client.authorize(an_ask()) == answer
        assert await client.decision("t1") == answer
        assert (await client.balance("a1")).available_minor == 9_000
        door.world.world.answers.enlist(listed_of(door.world.decisions[0]))
        assert (await client.decisions("account", "a1")).decisions == (answer,)
        assert (await client.increment("t1", an_ask(transaction_id="i1", amount_minor=500))).held_minor == 500
        assert (await client.capture("t1", CaptureRequest(clearing_id="c1"))).amount_minor == 1_500
        with pytest.raises(Refused) as refused:
            await client.reverse("t1", ReversalRequest(clearing_id="c2"))
        assert (refused.value.status, refused.value.fault.code) == (409, "already_posted")
        with pytest.raises(InvalidRequest) as wrong:
            await client.authorize(an_ask(amount_minor=7))
        assert wrong.value.fault.code == "transaction_conflict"

    with_client(play)


def test_a_key_that_may_see_all_gets_the_answers_of_every_host(with_client: Any) -> None:
    async def play(client: Any, door: Served) -> None:
        door.keys.take([Grant(name="all", sha256=hash_of(KEY), scopes=(Scope.ADMIN,))])
        for ask in (an_ask(), an_ask(transaction_id="t2", amount_minor=1_000_000)):
            answer = await client.authorize(ask)
            assert await client.decision(ask.transaction_id) == answer
        for decision in door.world.decisions:
            door.world.world.answers.enlist(listed_of(decision))
        page = await client.decisions("account", "a1", 1)
        assert (page.decisions, page.cursor) == ((answer,), "t2")

    with_client(play)


def test_a_wrong_key_is_an_error_of_its_own_at_once(with_client: Any) -> None:
    async def play(client: Any, door: Served) -> None:
        with pytest.raises(NotAllowed):
            await client.authorize(an_ask())

    with_client(play, key="hf_guessed")


def test_the_path_of_its_url_stands_before_what_is_asked(with_client: Any) -> None:
    async def play(client: Any, door: Served) -> None:
        with pytest.raises(InvalidRequest) as wrong:
            await client.balance("a1")
        assert wrong.value.fault.code == "not_found", "nobody is at /gateway here"

    with_client(play, path="/gateway/")


def test_what_is_indefinite_is_asked_again_until_it_is_not(with_client: Any) -> None:
    async def play(client: Any, door: Served) -> None:
        door.world.bus.down = True
        asking = asyncio.create_task(client.authorize(an_ask()))
        await asyncio.sleep(0.5)
        assert not asking.done()
        door.world.bus.down = False
        assert (await asking).outcome == "approve"
        assert len(door.world.decisions) == 1

    with_client(play)


def test_past_the_deadline_it_says_that_the_result_is_indefinite(with_client: Any) -> None:
    async def play(client: Any, door: Served) -> None:
        door.world.bus.down = True
        began = time.monotonic()
        with pytest.raises((NotNow, Unanswered)):
            await client.authorize(an_ask())
        assert time.monotonic() - began < 10

    with_client(play, deadline_s=0.5)


def test_where_nobody_listens_it_is_unanswered() -> None:
    with Client("http://127.0.0.1:1", KEY, 0.3) as client, pytest.raises(Unanswered):
        client.authorize(an_ask())


@contextlib.contextmanager
def a_stranger(answer: bytes, gap_s: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """The address of somebody who answers whatever he is asked with these bytes, one by one if there is a gap, and what he was asked."""
    asked: list[bytes] = []

    def one(taken: socket.socket) -> None:
        with taken, contextlib.suppress(OSError):
            asked.append(taken.recv(65_536))
            for byte in answer if gap_s else ():
                taken.sendall(bytes((byte,)))
                time.sleep(gap_s)
            taken.sendall(b"" if gap_s else answer)

    def every() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=listener.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=every, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked


def authorized(kind: str, url: str, deadline_s: float) -> Answer:
    """The answer to one ask of one client."""

    async def at_once() -> Answer:
        async with AsyncClient(url, KEY, deadline_s) as client:
            return await client.authorize(an_ask())

    if kind == "async":
        return asyncio.run(at_once())
    with Client(url, KEY, deadline_s) as client:
        return client.authorize(an_ask())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_who_answers_byte_by_byte_is_not_waited_for_past_the_deadline(kind: str) -> None:
    began = time.monotonic()
    with a_stranger(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b" " * 100, 0.05) as (url, _), pytest.raises(Unanswered):
        authorized(kind, url, 0.4)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("body", [b"<html>", b"", b'{"a": 1}', b'{"transaction_id": "\xff"}'])
def test_what_is_no_answer_of_holdfast_is_unanswered(kind: str, body: bytes) -> None:
    with a_stranger(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)) as (url, _), pytest.raises(Unanswered, match="Answer"):
        authorized(kind, url, 2.0)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_card_and_a_key_are_sent_to_nobody_else(kind: str) -> None:
    with a_stranger(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as (elsewhere, asked):
        moved = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % elsewhere.encode()
        with a_stranger(moved) as (url, _), pytest.raises(Unanswered, match="307"):
            authorized(kind, url, 2.0)
        assert not asked


@pytest.mark.parametrize("after", ["0", "\N{SUPERSCRIPT TWO}"])
def test_a_door_that_says_at_once_is_not_asked_without_a_pause(after: str) -> None:
    steps = course(Answer, 20.0)
    next(steps)
    assert steps.send(Heard(429, b"", after)) < -0.01


def test_why_nobody_answered_is_said() -> None:
    with Client("http://127.0.0.1:1", KEY, 0.1) as client, pytest.raises(Unanswered, match="Refused"):
        client.authorize(an_ask())


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_a_load_balancer_could_not_have_answered_is_asked_again_until_the_deadline(status: int) -> None:
    steps = course(Answer, 20.0)
    for _ in range(3):
        assert next(steps) > 0
        assert steps.send(Heard(status, b"<html>Bad Gateway</html>")) < 0, "a pause"
    late = course(Answer, 0.0)
    next(late)
    with pytest.raises(Unanswered):
        late.send(Heard(status, b"<html>Bad Gateway</html>"))


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\0", " ", "\N{EURO SIGN}"])
def test_a_key_that_no_header_carries_is_refused_without_a_word_of_it(kind: str, end: str) -> None:
    key = "hf_in_no_log" + end

    async def made() -> None:
        async with AsyncClient("http://127.0.0.1:1", key):
            pass

    with pytest.raises(ValueError, match="key: ") as refused:
        asyncio.run(made()) if kind == "async" else Client("http://127.0.0.1:1", key)
    assert "hf_in_no_log" not in repr(refused.value)
