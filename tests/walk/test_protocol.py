"""HTTP on the wire: what hosts send in pieces, ahead of time, too long or too slowly, over a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace

import httptools
import pytest

from streams.authorize import protocol
from streams.authorize.protocol import BODY_BYTES_MAX, HEAD_BYTES_MAX, HttpProtocol, Reply, Request, Stream

POST = b"POST /echo?x=1 HTTP/1.1\r\nhost: h\r\n"


class Echo:
    """Answers with what it was asked, after a while if the path says so."""

    is_draining = False

    def shed(self, url: bytes) -> bytes | None:
        """Refuses one path, as a door does that has too much to do."""
        return b'{"error":"full"}' if url == b"/full" else None

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.ended = asyncio.Event()
        """A stream has."""

    async def pours(self) -> AsyncIterator[bytes]:
        """One part, and then nothing for long."""
        try:
            yield b"id: 1\n\n"
            await asyncio.sleep(60)
        finally:
            self.ended.set()

    async def reply(self, request: Request) -> Reply | Stream:
        """What was asked, as JSON."""
        self.asked.append(request)
        if request.path == "/stream":
            return Stream(b"", self.pours())
        if request.path == "/slow":
            await asyncio.sleep(0.05)
        if request.path == "/bug":
            raise ZeroDivisionError("a bug")
        return 200, json.dumps([request.method, request.path, request.query, len(request.body), request.body[:20].decode()]).encode()


class Host:
    """One connection to a server over an `Echo`."""

    def __init__(self, echo: Echo, state: SimpleNamespace, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.echo, self.state, self.reader, self.writer = echo, state, reader, writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ask(self, content: bytes) -> tuple[int, dict[str, str], bytes]:
        """Sends bytes and takes an answer."""
        self.writer.write(content)
        return await self.answer()

    async def cut(self) -> bool:
        """Whether the server ended the connection."""
        return await asyncio.wait_for(self.reader.read(), 2) == b""


def on_a_connection(play: Callable[[Host], Awaitable[None]]) -> None:
    """Runs a scene."""

    async def main() -> None:
        echo, state = Echo(), SimpleNamespace(connections=set(), tasks=set(), total_requests=0)
        server = await asyncio.get_running_loop().create_server(lambda: HttpProtocol(SimpleNamespace(loaded_app=echo), state, {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            await asyncio.wait_for(play(Host(echo, state, reader, writer)), 10)
        finally:
            writer.close()
            server.close()
            await server.wait_closed()

    asyncio.run(main())


def test_what_has_begun_to_come_when_the_process_stops_is_answered() -> None:
    async def play(host: Host) -> None:
        host.writer.write(POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await host.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        host.echo.is_draining = True
        for connection in list(host.state.connections):
            connection.shutdown()
        status, headers, _ = await host.ask(b"ab")
        assert (status, headers["connection"]) == (200, "close")
        assert await host.cut()

    on_a_connection(play)


def test_a_target_may_name_its_host_and_a_header_may_end_in_blanks() -> None:
    async def play(host: Host) -> None:
        status, _, body = await host.ask(b"POST HTTP://h:1/echo?x=/://y HTTP/1.1\r\nhost: h\r\nx: 1 \t\r\ncontent-length: 2\r\n\r\nab")
        assert (status, json.loads(body)) == (200, ["POST", "/echo", "x=/://y", 2, "ab"])
        assert (b"x", b"1") in host.echo.asked[0].headers
        _, _, body = await host.ask(b"GET /at?to=http://h/x HTTP/1.1\r\nhost: h\r\n\r\n")
        assert json.loads(body)[1:3] == ["/at", "to=http://h/x"]

    on_a_connection(play)


def test_a_request_in_single_bytes_is_one_request() -> None:
    async def play(host: Host) -> None:
        for byte in POST + b"content-length: 3\r\n\r\nabc":
            host.writer.write(bytes((byte,)))
            await host.writer.drain()
        status, headers, body = await host.answer()
        assert (status, headers["content-type"], json.loads(body)) == (200, "application/json", ["POST", "/echo", "x=1", 3, "abc"])

    on_a_connection(play)


def test_what_comes_after_a_body_is_no_header() -> None:
    async def play(host: Host) -> None:
        chunks = b"2\r\nab\r\n0\r\nauthorization: Bearer x\r\n\r\n"
        await host.ask(POST + b"transfer-encoding: chunked\r\n\r\n" + chunks)
        await host.ask(POST + b"authorization: Bearer y\r\ncontent-length: 0\r\n\r\n")
        assert [dict(asked.headers).get(b"authorization") for asked in host.echo.asked] == [None, b"Bearer y"]

    on_a_connection(play)


def test_a_chunked_body_is_put_together() -> None:
    async def play(host: Host) -> None:
        _, _, body = await host.ask(POST + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n")
        assert json.loads(body)[3:] == [5, "abcde"]

    on_a_connection(play)


def test_requests_sent_ahead_are_answered_in_order() -> None:
    async def play(host: Host) -> None:
        paths = ["/slow", "/a", "/slow", *[f"/{n}" for n in range(2 * protocol.WAITING_MAX)]]
        host.writer.write(b"".join(b"GET %s HTTP/1.1\r\n\r\n" % path.encode() for path in paths))
        assert [json.loads((await host.answer())[2])[1] for _ in paths] == paths
        assert host.state.total_requests == len(paths)
        behind = host.echo.asked[1]
        assert 0.04 < time.perf_counter() - behind.heard_s < 5, "it waits from then on, and not from its turn"
        assert behind.heard_s - host.echo.asked[0].heard_s < 0.04

    on_a_connection(play)


def test_a_path_is_unquoted_and_a_head_request_gets_no_body() -> None:
    async def play(host: Host) -> None:
        assert json.loads((await host.ask(b"GET /a%20b HTTP/1.1\r\n\r\n"))[2])[1] == "/a b"
        host.writer.write(b"HEAD /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
        assert b"content-length: " in await host.reader.readuntil(b"\r\n\r\n")
        assert json.loads((await host.answer())[2])[1] == "/b"

    on_a_connection(play)


def test_expect_is_answered_before_the_body_comes() -> None:
    async def play(host: Host) -> None:
        host.writer.write(POST + b"expect: 100-continue\r\ncontent-length: 1\r\n\r\n")
        assert await host.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await host.ask(b"x"))[0] == 200

    on_a_connection(play)


@pytest.mark.parametrize("ending", [b"connection: close\r\n\r\n", b"\r\n"])
def test_a_connection_ends_when_the_host_says_so(ending: bytes) -> None:
    async def play(host: Host) -> None:
        version = b"1.1" if b"close" in ending else b"1.0"
        status, headers, _ = await host.ask(b"GET /a HTTP/%s\r\n%s" % (version, ending))
        assert (status, headers["connection"], await host.cut()) == (200, "close", True)

    on_a_connection(play)


def test_a_body_that_is_too_long_is_cut_one_byte_beyond() -> None:
    async def play(host: Host) -> None:
        size = 3 * BODY_BYTES_MAX
        _, _, body = await host.ask(POST + b"content-length: %d\r\n\r\n" % size + b"x" * size)
        assert json.loads(body)[3] == BODY_BYTES_MAX + 1

    on_a_connection(play)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n", 431),
    ],
)
def test_what_cannot_be_read_is_refused_and_the_connection_ends(content: bytes, status: int) -> None:
    async def play(host: Host) -> None:
        answered, headers, body = await host.ask(content)
        assert (answered, headers["connection"]) == (status, "close")
        assert json.loads(body)["error"]["request_id"] == headers["request-id"]
        assert await host.cut()

    on_a_connection(play)


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /a HTTP/1.1\r\nx: ",
        b"GET /a HTTP/1.1\r\n",
        b"GET /",
        POST + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: ",
        b"GET /slow HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\nx: ",
        b"GET /slow HTTP/1.1\r\n\r\nGET /",
        b"GET /slow HTTP/1.1\r\nconnection: close\r\n\r\nGET /a HTTP/1.1\r\nx: ",
    ],
)
def test_a_head_without_end_is_not_kept(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []

    class Parser(httptools.HttpRequestParser):  # type: ignore[misc] # it has no types
        def feed_data(self, data: bytes) -> None:
            fed.append(len(data))
            super().feed_data(data)

    monkeypatch.setattr(protocol.httptools, "HttpRequestParser", Parser)

    async def play(host: Host) -> None:
        host.writer.write(begin)
        await host.writer.drain()
        await asyncio.sleep(0.01)
        (connection,) = host.state.connections
        for _ in range(64):
            connection.data_received(b"y" * HEAD_BYTES_MAX)
        assert sum(fed) <= len(begin) + 2 * HEAD_BYTES_MAX
        if b"slow" in begin:
            assert (await host.answer())[0] == 200
        if b"close" not in begin:
            assert (await host.answer())[0] == 431
        assert await host.cut()

    on_a_connection(play)


def test_a_head_in_pieces_that_is_no_longer_than_it_may_be_is_read() -> None:
    async def play(host: Host) -> None:
        for piece in (POST + b"x: ", *[b"y" * (HEAD_BYTES_MAX // 4)] * 3, b"\r\nz: 1\r\ncontent-length: 2\r\n\r\na", b"b"):
            host.writer.write(piece)
            await host.writer.drain()
            await asyncio.sleep(0.005)
        assert (await host.answer())[0] == 200

    on_a_connection(play)


def test_what_follows_an_upgrade_is_not_read_and_what_cannot_be_read_is_refused_after_what_could() -> None:
    async def upgrade(host: Host) -> None:
        status, headers, _ = await host.ask(b"GET /slow HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nx")
        assert (status, headers["connection"], await host.cut()) == (200, "close", True)

    async def nonsense(host: Host) -> None:
        host.writer.write(b"GET /slow HTTP/1.1\r\n\r\nnonsense\r\n\r\n")
        assert [(await host.answer())[0] for _ in range(2)] == [200, 400]
        assert await host.cut()

    on_a_connection(upgrade)
    on_a_connection(nonsense)


def test_a_bug_is_a_500_and_the_connection_goes_on() -> None:
    async def play(host: Host) -> None:
        assert (await host.ask(b"GET /bug HTTP/1.1\r\n\r\n"))[0] == 500
        assert (await host.ask(b"GET /a HTTP/1.1\r\n\r\n"))[0] == 200

    on_a_connection(play)


def test_a_slow_request_and_a_silent_connection_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "REQUEST_S", 0.1)
    monkeypatch.setattr(protocol, "IDLE_S", 0.3)

    async def slow(host: Host) -> None:
        assert (await host.ask(POST + b"content-length: 5\r\n\r\nab"))[0] == 408
        assert await host.cut()

    async def silent(host: Host) -> None:
        assert (await host.ask(b"GET /a HTTP/1.1\r\n\r\n"))[0] == 200
        assert await host.cut()
        assert not host.state.connections

    on_a_connection(slow)
    on_a_connection(silent)


def test_a_clean_stop_answers_what_was_asked_and_takes_no_more() -> None:
    async def play(host: Host) -> None:
        host.writer.write(b"GET /slow HTTP/1.1\r\n\r\n")
        while not host.echo.asked:
            await asyncio.sleep(0.005)
        for connection in list(host.state.connections):
            connection.shutdown()
        host.writer.write(b"GET /late HTTP/1.1\r\n\r\n")
        status, headers, _ = await host.answer()
        assert (status, headers["connection"], await host.cut()) == (200, "close", True)
        assert [request.path for request in host.echo.asked] == ["/slow"]

    on_a_connection(play)


@pytest.mark.parametrize("read_s", [0.0, 0.05])
def test_a_stream_ends_when_its_host_goes_and_not_only_when_something_is_written_to_it(read_s: float) -> None:
    async def play(host: Host) -> None:
        host.writer.write(b"GET /stream HTTP/1.1\r\n\r\n")
        await asyncio.sleep(read_s)
        host.writer.write_eof()
        await asyncio.wait_for(host.echo.ended.wait(), 2)
        assert (await host.reader.read()).startswith(b"HTTP/1.1 200 OK")

    on_a_connection(play)


def test_what_is_too_much_is_refused_at_once_and_the_connection_stands() -> None:
    async def play(host: Host) -> None:
        status, headers, body = await host.ask(b"POST /full HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nhi")
        assert (status, headers["retry-after"], body) == (503, "1", b'{"error":"full"}')
        assert host.echo.asked == []
        assert (await host.ask(POST + b"content-length: 2\r\n\r\nhi"))[0] == 200

    on_a_connection(play)


def test_a_door_that_is_draining_answers_and_ends_the_connection() -> None:
    async def play(host: Host) -> None:
        assert "connection" not in (await host.ask(POST + b"content-length: 2\r\n\r\nhi"))[1]
        host.echo.is_draining = True
        two = b"GET /slow HTTP/1.1\r\nhost: h\r\n\r\n" * 2
        assert "connection" not in (await host.ask(two))[1], "what was asked behind it is answered first"
        status, headers, _ = await host.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await host.cut()

    on_a_connection(play)
