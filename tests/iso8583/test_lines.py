"""What a line does with many messages at once: what it cannot answer in time it refuses in one go, and what is answered together is sent together."""

from __future__ import annotations

import asyncio
from collections import Counter

from streams.authorize.codec import Message
from streams.authorize.dialect import dialect_of
from streams.authorize.elements import Secrets
from streams.authorize.iso8583 import Desk, Line
from streams.authorize.under_way import PER_S_FIRST, SHED_SHARE
from tests.iso8583.fuzz import Wire
from tests.iso8583.host import HEADERS, KEY, fields_of
from tests.world import a_world

HEADER = HEADERS["binary2"]


class Hosted:
    """A line over a World in memory, and what it wrote."""

    def __init__(self) -> None:
        self.world = a_world()
        self.world.world.clock_ms = lambda: self.world.now_ms
        self.desk, self.wire = Desk(self.world.world, dialect_of("1987-ascii"), Secrets(KEY, "k1"), 1_000), Wire()
        self.line = Line(self.desk, HEADER, set())
        self.line.connection_made(self.wire)

    def frame(self, number: int, mti: str = "0100") -> bytes:
        """One message."""
        return HEADER.framed(self.desk.codec.encode(Message(b"", mti, fields_of(f11=f"{number % 1_000_000:06}", f37=f"{number:012}"))))

    def codes(self) -> Counter[str]:
        """How often each response code was written."""
        found, at, said = Counter[str](), 0, b"".join(self.wire.written)
        while at < len(said):
            length = int.from_bytes(said[at : at + 2])
            found[self.desk.codec.decode(said[at + 2 : at + 2 + length]).fields[39]] += 1
            at += 2 + length
        return found

    async def answered(self, count: int) -> None:
        """Returns when so many answers were written."""
        async with asyncio.timeout(600):
            while self.codes().total() < count:
                await asyncio.sleep(0.01)


def test_what_is_more_than_can_be_answered_in_time_is_refused_while_it_is_read() -> None:
    async def main() -> None:
        hosted, count = Hosted(), int(2 * PER_S_FIRST * SHED_SHARE)
        hosted.line.data_received(b"".join(hosted.frame(number) for number in range(count)))
        assert hosted.codes() == {"91": count - PER_S_FIRST * SHED_SHARE - 1}, "nothing is decided yet"
        assert len(hosted.wire.written) == 1
        assert len(hosted.line.tasks) == PER_S_FIRST * SHED_SHARE + 1
        for task in hosted.line.tasks:
            task.cancel()
        await asyncio.gather(*hosted.line.tasks, return_exceptions=True)

    asyncio.run(main())


def test_what_is_decided_together_is_sent_together_and_what_is_alone_at_once() -> None:
    async def main() -> None:
        hosted = Hosted()
        hosted.world.know(balance_minor=10**9)
        hosted.line.data_received(hosted.frame(1))
        await hosted.answered(1)
        assert len(hosted.wire.written) == 1
        hosted.line.data_received(b"".join(hosted.frame(number) for number in range(2, 102)))
        await hosted.answered(101)
        assert not {"91", "96"} & hosted.codes().keys()
        assert len(hosted.wire.written) <= 20, "they are decided in a few groups"

    asyncio.run(main())


def test_what_was_answered_before_a_frame_that_cannot_be_read_is_sent() -> None:
    async def main() -> None:
        hosted = Hosted()
        hosted.line.data_received(hosted.frame(1, "0909") + b"\xff\xff")
        assert hosted.wire.cut
        assert hosted.codes() == {"12": 1}

    asyncio.run(main())
