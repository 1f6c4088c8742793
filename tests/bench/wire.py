"""`holdfast bench wire`: what it costs to write a payment and its decision as messages and to read them, beside fastavro in the same run."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import fastavro
import msgspec

from models.hold import UnknownAccount
from schemas import avro
from schemas.decision import Decision
from schemas.record import Record
from schemas.transaction import Transaction
from streams.settings import Settings
from tests.bench.features import Check, holds, line
from tests.bench.walk import transactions
from tests.world import NOON, a_world

OVER_FASTAVRO_MAX = 0.5
TURNS = 40


def some_decisions(txns: Sequence[Transaction]) -> list[Decision]:
    """What the walk decides of them, with all features and five members."""
    world = a_world(UnknownAccount.HOLD)

    async def decided() -> None:
        for txn in txns:
            await world.decide(txn)

    asyncio.run(decided())
    return world.decisions


def by_fastavro(record: type[Record]) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """What writes and reads (validated, as `avro.decode` does) a record's messages with that library alone."""
    head, schema = avro.frame(record), fastavro.parse_schema(avro.avro_schema(record))

    def encode(one: Any) -> bytes:
        out = io.BytesIO()
        out.write(head)
        fastavro.schemaless_writer(out, schema, msgspec.to_builtins(one, builtin_types=(bytes,)))
        return out.getvalue()

    plain = fastavro.parse_schema(avro._without_logical_types(avro.avro_schema(record)))

    def decode(message: bytes) -> Any:
        return msgspec.convert(fastavro.schemaless_reader(io.BytesIO(message[len(head) :]), plain, None), record)

    return encode, decode


def least_us(work: Sequence[tuple[Callable[[Any], Any], Sequence[Any]]]) -> list[float]:
    """Microseconds of processor for each piece of work, by the quickest of so many turns; all pieces in turn, so that the machine's pace is one."""
    least = [float("inf")] * len(work)
    for _ in range(TURNS):
        for number, (function, values) in enumerate(work):
            began = time.process_time()
            for value in values:
                function(value)
            least[number] = min(least[number], (time.process_time() - began) / len(values) * 1e6)
    return least


def measured(count: int) -> dict[str, float]:
    """Microseconds for each record and way, and ours over fastavro's."""
    txns = transactions(count, "a", NOON)
    figures: dict[str, float] = {}
    for name, record, values in (("transaction", Transaction, txns), ("decision", Decision, some_decisions(txns))):
        encode, decode = by_fastavro(record)
        messages = [avro.encode(one) for one in values]
        assert messages == [encode(one) for one in values], "the same bytes"
        assert list(map(decode, messages)) == [avro.decode(record, one) for one in messages] == list(values), "the same records"
        ways = (("encode", avro.encode, encode, values), ("decode", lambda one, record=record: avro.decode(record, one), decode, messages))
        for way, ours, theirs, given in ways:
            own_us, fastavro_us = least_us(((ours, given), (theirs, given)))
            figures |= {f"{name}_{way}_us": own_us, f"{name}_{way}_fastavro_us": fastavro_us, f"{name}_{way}_over": own_us / fastavro_us}
        figures[f"{name}_bytes"] = sum(map(len, messages)) / len(messages)
    return figures


def wire(argv: list[str], settings: Settings) -> int:
    """`holdfast bench wire [--count N] [--json]`: exit status 0 if each takes half of fastavro's time at most."""
    parser = argparse.ArgumentParser(prog="holdfast bench wire", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="payments")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    figures = measured((args := parser.parse_args(argv)).count)
    checks: list[Check] = [
        (f"{name}, {way}d: over fastavro", figures[f"{name}_{way}_over"], "", "at most", OVER_FASTAVRO_MAX)
        for name in ("transaction", "decision")
        for way in ("encode", "decode")
    ]
    for name in ("transaction", "decision"):
        print(f"{name}, {figures[f'{name}_bytes']:,.0f} bytes")
        for way in ("encode", "decode"):
            own_us, fastavro_us = figures[f"{name}_{way}_us"], figures[f"{name}_{way}_fastavro_us"]
            print(f"  {way} {own_us:.1f} us of processor, fastavro {fastavro_us:.1f}")
    for check in checks:
        print(line(check))
    all_hold = all(map(holds, checks))
    if args.json:
        print(json.dumps(figures | {"holds": all_hold}))
    return 0 if all_hold else 1
