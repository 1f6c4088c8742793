"""`holdfast bench iso8583`: what a message costs beside a kept library, in the same run, and what a million hostile inputs do to the door."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import iso8583 as kept
import structlog

from streams.authorize.codec import Codec, Message
from streams.authorize.dialect import dialect_of
from streams.settings import Settings
from tests.iso8583.fuzz import QUIET_S_MAX, Fuzzed, fuzzed
from tests.iso8583.host import fields_of
from tests.iso8583.pyiso8583 import spec_of

ROUNDS = 20_000


def us_each(work: Callable[[], object]) -> float:
    """Processor time of one call, microseconds: the best of five runs."""
    times = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(ROUNDS // 5):
            work()
        times.append(time.process_time() - began)
    return round(min(times) / (ROUNDS // 5) * 1e6, 1)


def codec_us(name: str) -> dict[str, float]:
    """Reading and writing an authorization of 17 elements, ours and pyiso8583's."""
    dialect = dialect_of(name)
    codec, spec, message = Codec(dialect), spec_of(dialect), Message(b"", "0100", fields_of())
    raw = codec.encode(message)
    theirs = {"t": message.mti} | {str(n): v for n, v in message.fields.items()}
    return {
        "decode_us": us_each(lambda: codec.decode(raw)),
        "encode_us": us_each(lambda: codec.encode(message)),
        "pyiso8583_decode_us": us_each(lambda: kept.decode(raw, spec)),
        "pyiso8583_encode_us": us_each(lambda: kept.encode(dict(theirs), spec)),
    }


def holds(found: Fuzzed) -> bool:
    """Whether nothing crashed, nothing failed inside, and nothing took long."""
    counts = found.counts
    return not (counts["crashed"] or counts["unsound"] or counts["answer 96"] or counts["answer 909"]) and found.slowest_s < QUIET_S_MAX


def iso8583(argv: list[str], settings: Settings) -> int:
    """Exit status 0 if no input broke the door and none took longer than 50 ms of processor time."""
    parser = argparse.ArgumentParser(prog="holdfast bench iso8583", description=__doc__)
    parser.add_argument("--fuzz", type=int, default=1_000_000, metavar="N", help="inputs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    wanted = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    codecs = {name: codec_us(name) for name in ("1987-ascii", "1987-binary", "1987-ebcdic")}
    found = fuzzed(wanted.fuzz, wanted.seed)
    figures = {"codec": codecs, "fuzz": dict(found.counts), "slowest_ms": round(found.slowest_s * 1000, 1), "holds": holds(found)}
    if wanted.json:
        print(json.dumps(figures))
    else:
        for name, row in codecs.items():
            print(name, row)
        print(f"{found.counts['inputs']:,} inputs, slowest {figures['slowest_ms']} ms: {dict(found.counts)}")
    return 0 if figures["holds"] else 1
