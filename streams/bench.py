"""`holdfast bench`: runs a benchmark of `tests/bench/`, which is where the measuring code lives; needs a checkout."""

from __future__ import annotations

import importlib
import sys

from streams.settings import Settings
from streams.stack import ROOT

BENCHES = (
    "walk", "features", "parity", "models", "shadow", "evaluate", "terminals", "layouts", "fuzz", "iso8583", "http", "policy", "swap", "faults",
    "authorize", "life", "wire",
)  # fmt: skip


def bench(argv: list[str], settings: Settings) -> int:
    """`holdfast bench <name> [--json]`: exit status 0 if what the benchmark checks holds."""
    if not argv or argv[0] not in BENCHES:
        print(f"usage: holdfast bench {{{','.join(BENCHES)}}} [--json]", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    module = importlib.import_module(f"tests.bench.{argv[0]}")
    return int(getattr(module, argv[0])(argv[1:], settings))
