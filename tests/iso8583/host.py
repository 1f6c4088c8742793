"""A card authorization host for tests: messages of a dialect, and a connection to a gateway on a World in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from features.catalogue import CATALOGUE
from features.log import warm
from streams.authorize.codec import Codec, Fields, Message
from streams.authorize.dialect import Dialect, dialect_of
from streams.authorize.elements import Key, Secrets
from streams.authorize.iso8583 import HEADERS, Desk, Gateway, HeaderName
from tests.world import NOON, TestWorld, a_world

KEY = b"k" * 32
PAN = "4111111111111111"


def fields_of(**changes: Any) -> Fields:
    """The elements of a plain purchase at noon on 2026-01-01, 10.00 EUR; `f4="..."` changes one, `f4=None` leaves it out."""
    plain: dict[int, str | None] = {
        2: PAN,
        3: "000000",
        4: "000000001000",
        7: "0101120000",
        11: "000001",
        12: "130000",
        13: "0101",
        18: "5411",
        22: "051",
        25: "00",
        32: "123456",
        37: "600112000001",
        41: "TERM0001",
        42: "MERCHANT0000001",
        43: "A SHOP                   BERLIN       DE",
        49: "978",
        102: "a1",
    }
    plain |= {int(name[1:]): value for name, value in changes.items()}
    return {number: value for number, value in plain.items() if value is not None}


def about(original_stan: str = "000001", **changes: Any) -> Fields:
    """The elements of a message about an authorization: another trace number, the original's in element 90."""
    named = {"f11": "000900", "f90": f"0100{original_stan}010112000000000123456{'0' * 11}"}
    return fields_of(**(named | changes))


def transaction_id(stan: str = "000001", rrn: str = "600112000001") -> str:
    """The id that the gateway derives."""
    return Key("123456", rrn, stan).transaction_id


class Host:
    """A connection, with answers as they come."""

    def __init__(self, codec: Codec, header: HeaderName, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.codec, self.header = codec, HEADERS[header]
        self.reader, self.writer = reader, writer

    def send(self, mti: str, fields: Fields) -> None:
        """Sends a message."""
        self.writer.write(self.header.framed(self.codec.encode(Message(b"", mti, fields))))

    def send_raw(self, data: bytes) -> None:
        """Sends a frame as it is."""
        self.writer.write(self.header.framed(data))

    async def read(self) -> Message:
        """The next answer."""
        length = self.header.length(await self.reader.readexactly(self.header.size))
        assert length is not None
        return self.codec.decode(await self.reader.readexactly(length))

    async def ask(self, mti: str, fields: Fields) -> tuple[str, Fields]:
        """Sends a message and takes its answer: the type and the elements."""
        self.send(mti, fields)
        _, answered, got = await asyncio.wait_for(self.read(), 600)
        return answered, got

    async def code(self, mti: str, fields: Fields) -> str:
        """The response code that a message gets."""
        return (await self.ask(mti, fields))[1][39]

    async def is_cut(self) -> bool:
        """Whether the gateway ends the connection."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 600) == b""
        except ConnectionError:
            return True


class Scene:
    """A World, a gateway over it, and connections to it."""

    def __init__(self, world: TestWorld, dialect: Dialect, header: HeaderName, deadline_ms: int) -> None:
        self.world = world
        world.world.clock_ms = lambda: world.now_ms
        self.desk = Desk(world.world, dialect, Secrets(KEY, "k1"), deadline_ms)
        self.header = header
        self.gateway = Gateway(self.desk, header)
        self.port = 0
        self._hosts: list[Host] = []

    async def connect(self) -> Host:
        """Another connection."""
        host = Host(self.desk.codec, self.header, *await asyncio.open_connection("127.0.0.1", self.port))
        self._hosts.append(host)
        return host

    async def close(self) -> None:
        """Ends it all."""
        for host in self._hosts:
            host.writer.close()
        await self.gateway.close()
        await asyncio.sleep(0.01)


def at_the_gateway(
    play: Callable[[Scene, Host], Awaitable[None]], dialect: str = "1987-ascii", header: HeaderName = "binary2", deadline_ms: int = 600_000
) -> None:
    """Runs a scene with one connection; the account `a1` has 100.00 EUR."""

    warm(CATALOGUE)

    async def main() -> None:
        world = a_world()
        world.know(balance_minor=10_000)
        scene = Scene(world, dialect_of(dialect), header, deadline_ms)
        scene.port = await scene.gateway.listen("127.0.0.1", 0)
        try:
            await play(scene, await scene.connect())
        finally:
            await scene.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the service does
        runner.run(main())


__all__ = ["KEY", "NOON", "PAN", "Host", "Scene", "about", "at_the_gateway", "fields_of", "transaction_id"]
