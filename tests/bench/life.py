"""`holdfast bench life`: very many lives of authorizations, step by step, against plain arithmetic. Counts what happened in them."""

from __future__ import annotations

import argparse
import json
import time

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from streams.settings import Settings
from tests.models.life import COUNTS, Life


def life(argv: list[str], _: Settings) -> int:
    """Exit status 0 if no life broke a rule; else hypothesis prints the shortest one that does."""
    parser = argparse.ArgumentParser(prog="holdfast bench life", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, metavar="N", help="lives (default %(default)s)")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="steps in each, at most (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    wanted = parser.parse_args(argv)
    COUNTS.clear()
    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    began, broken = time.perf_counter(), ""
    try:
        run_state_machine_as_test(Life, settings=settings(max_examples=wanted.runs, stateful_step_count=wanted.steps, **quiet))  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 # the finding is the result
        broken = f"{type(error).__name__}: {error}"
    figures = {"runs": wanted.runs, "steps": wanted.steps, "seconds": round(time.perf_counter() - began, 1), "did": dict(sorted(COUNTS.items()))}
    figures |= {"broken": broken, "holds": not broken}
    if wanted.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{count:>12,}  {what}" for what, count in sorted(COUNTS.items())))
        print(broken or "available was balance less active holds, no hold ended twice, no money came from nothing")
    return 1 if broken else 0
