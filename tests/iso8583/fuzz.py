"""Fuzzes the ISO 8583 door over a World in memory: messages from a grammar, mutated, in frames that lie. Counts what became of them."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from features.catalogue import CATALOGUE
from features.log import warm
from models.hold import UnknownAccount
from schemas.transaction import Transaction
from streams.authorize.codec import Codec, Fields, Message
from streams.authorize.dialect import FOLDER, Dialect, dialect_of
from streams.authorize.elements import Secrets
from streams.authorize.iso8583 import HEADERS, Desk, Line
from tests.iso8583.host import KEY, about, fields_of
from tests.world import a_transaction, a_world

QUIET_S_MAX = 0.05
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))
TYPES = ("0100", "0101", "0120", "0200", "0220", "0400", "0420", "0421", "0800", "0110", "0300", "0990", "1100", "1420", "1804", "9999")
WORLD_OF = 2_000
"""Inputs to one World; then a fresh one, so that memory stays small."""


class Fuzzed(NamedTuple):
    """What became of the inputs, and the longest that one took, seconds of processor time."""

    counts: Counter[str]
    slowest_s: float


class Wire(asyncio.Transport):
    """Takes what a line writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.cut = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keeps it."""
        self.written.append(bytes(data))

    def abort(self) -> None:
        """The line was cut."""
        self.cut = True

    def is_closing(self) -> bool:
        """Whether it was."""
        return self.cut

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing to limit."""


def inputs(chance: random.Random, dialect: Dialect, codec: Codec) -> Iterator[bytes]:
    """Messages without end: from the grammar of the dialect, whole or mutated, or noise."""
    while True:
        how = chance.random()
        if how < 0.05:
            yield chance.randbytes(chance.randrange(200))
            continue
        data = codec.encode(Message(b"", chance.choice(TYPES), a_message(chance, dialect)))
        yield data if how < 0.5 else mutated(chance, data)


def a_message(chance: random.Random, dialect: Dialect) -> Fields:
    """A plausible message with some elements left out, and some of whatever the grammar allows."""
    base = about() if chance.random() < 0.3 else fields_of()
    number = chance.randrange(1_000)  # small, so that keys and cards come again
    base |= {2: f"4111110000{number:06}", 4: f"{number:012}", 11: f"{number:06}", 102: f"a{number}"}
    base[dialect.map.network.number] = chance.choice((*dialect.network, "301", "831"))
    fields = {n: v for n, v in base.items() if n in dialect.fields and fits(v, dialect, n) and chance.random() > 0.04}
    for other in chance.sample(sorted(dialect.fields), chance.choice((0, 0, 1, 4, 20))):
        fields[other] = a_value(chance, dialect, other)
    return fields


def fits(value: str, dialect: Dialect, number: int) -> bool:
    """Whether an element of the first dialect is one of this."""
    kind, _, size_max = dialect.fields[number]
    return len(value) <= size_max and (kind != "n" or value.isdigit()) and kind not in ("b", "x+n")


def a_value(chance: random.Random, dialect: Dialect, number: int) -> str:
    """Anything that the element may hold."""
    kind, digits, size_max = dialect.fields[number]
    size = chance.randrange(size_max + 1) if digits else size_max
    if kind == "b":
        return chance.randbytes(size).hex().upper()
    if kind in ("n", "z", "x+n"):
        return ("C" if kind == "x+n" else "") + "".join(chance.choices("0123456789", k=size))
    return "".join(chance.choices("0159 AZaz=^/;'\"\\{}%", k=size))


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut out, doubled, put in."""
    raw = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at, end = sorted((chance.randrange(len(raw) + 1), chance.randrange(len(raw) + 1)))
        what = chance.random()
        if what < 0.5 and at < len(raw):
            raw[at] = chance.choice((raw[at] ^ 1 << chance.randrange(8), 0, 0xFF, chance.randrange(256)))
        elif what < 0.7:
            del raw[at : min(end, at + 20)]
        elif what < 0.9:
            raw[at:at] = raw[at : at + 10]
        else:
            raw[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(raw)


def is_sound(txn: Transaction) -> bool:
    """Whether what was decided is a transaction as its record says: the door makes it without asking."""
    try:
        return msgspec.convert(msgspec.to_builtins(txn), Transaction) == txn
    except msgspec.ValidationError:
        return False


async def _fuzzed(count: int, seed: int) -> Fuzzed:
    chance, counts, slowest_s = random.Random(seed), Counter[str](), 0.0
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: counts.update(("crashed",)))
    for begin in range(0, count, WORLD_OF):
        name, header = chance.choice(NAMES), HEADERS[chance.choice(("binary2", "binary4", "text4"))]
        world, dialect = a_world(UnknownAccount.HOLD), dialect_of(name)
        desk = Desk(world.world, dialect, Secrets(KEY, "k1"), 600_000)
        line, wire = Line(desk, header, set()), Wire()
        line.connection_made(wire)
        messages = inputs(chance, dialect, desk.codec)
        for _ in range(min(WORLD_OF, count - begin)):
            data = header.framed(next(messages))
            if chance.random() < 0.02:  # a frame whose length lies
                data = bytes((data[0] ^ chance.randrange(3), *data[1:]))
            gc.disable()  # a collection of the whole test's garbage is not the door's time
            began = time.process_time()
            line.data_received(data)
            while line.tasks:
                await asyncio.sleep(0)
            slowest_s = max(slowest_s, time.process_time() - began)
            gc.enable()
            counts["inputs"] += 1
            for answer in wire.written:
                codes = desk.codec.decode(answer[header.size :]).fields
                counts["answer " + codes[dialect.map.response.number]] += 1
            if wire.cut:
                counts["cut"] += 1
                line.connection_lost(None)
            if wire.cut or line.waits:
                line, wire = Line(desk, header, set()), Wire()
                line.connection_made(wire)
            wire.written.clear()
        counts["unsound"] += sum(not is_sound(decision.transaction) for decision in world.decisions)
    return Fuzzed(counts, slowest_s)


def fuzzed(count: int, seed: int) -> Fuzzed:
    """Puts so many inputs to the door, one after the other."""
    warm_up()
    return asyncio.run(_fuzzed(count, seed))


def warm_up() -> None:
    """Lets everything compile that a decision asks for, as a service does before it is ready."""
    warm(CATALOGUE)

    async def decided() -> None:
        world = a_world(UnknownAccount.HOLD)
        for number in range(8):  # the last of so many are blocked, for reasons of rules and of the model
            await world.decide(a_transaction(f"t{number}"))

    asyncio.run(decided())
