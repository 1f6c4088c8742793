"""`holdfast bench http`: a million inputs from a grammar and by mutation to the HTTP door: none may crash it, get a 5xx, or take 50 ms."""

from __future__ import annotations

import argparse
import json

from streams.settings import Settings
from tests.iso8583.fuzz import QUIET_S_MAX
from tests.walk.http_fuzz import fuzzed, holds


def http(argv: list[str], settings: Settings) -> int:
    """`holdfast bench http [--fuzz N] [--seed S] [--json]`: exit status 0 if nothing broke."""
    parser = argparse.ArgumentParser(prog="holdfast bench http", description=__doc__)
    parser.add_argument("--fuzz", type=int, default=1_000_000, metavar="N", help="inputs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=2, help="chance begins here (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    wanted = parser.parse_args(argv)
    found = fuzzed(wanted.fuzz, wanted.seed)
    good = holds(found, QUIET_S_MAX)
    for name, number in sorted(found.counts.items()):
        print(f"{name:<14} {number:>10,}")
    print(f"slowest {found.slowest_s * 1000:.1f} ms of processor time, less than {QUIET_S_MAX * 1000:.0f}")
    print("holds" if good else "does NOT hold")
    if wanted.json:
        print(json.dumps({"fuzz": dict(found.counts), "slowest_ms": round(found.slowest_s * 1000, 1), "holds": good}))
    return 0 if good else 1
