"""How long an evaluation takes: so many invented rows and features, four folds, training of every member included."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import numpy as np

from models.evaluate import DAY_MS, SERVED, Spans, evaluated, folds
from models.history import History, Verdicts
from streams.evaluate import table_lines
from streams.settings import Settings
from streams.train import recipe_in

SECONDS_MAX = 300
DAYS, DELAY_DAYS, SPANS = 70, 7, Spans(28, 7, 7)
FAMILIES = ("velocity", "behavioural", "device", "geographic", "merchant")


def an_invented_history(rows: int, features: int, seed: int = 1) -> History:
    """Payments of 70 days, of which about one in 120 is fraud that shows in some columns of each family; some values are missing."""
    rng = np.random.default_rng(seed)
    at_ms = np.sort(rng.integers(0, DAYS * DAY_MS, rows))
    cards = rng.integers(0, max(rows // 25, 20), rows)
    risky = rng.random(int(cards.max()) + 1) < 0.1
    frauds = risky[cards] & (rng.random(rows) < 1 / 12)
    vectors = np.empty((rows, features), order="F")
    for column in range(features):
        vectors[:, column] = rng.gamma(2.0, 1.0, rows) if column % 2 else rng.normal(size=rows)
        if column % 10 == 0:
            vectors[frauds & (rng.random(rows) < 0.5), column] += 1.5
        vectors[rng.random(rows) < 0.05, column] = np.nan
    names = tuple(f"{FAMILIES[column % len(FAMILIES)]}.f{column}" for column in range(features))
    nothing = np.full(rows, None, dtype=object)
    verdicts = Verdicts.in_order(np.arange(rows), frauds, nothing, at_ms + DELAY_DAYS * DAY_MS)
    return History("cat_invented", names, vectors, at_ms, cards, rng.integers(100, 50_000, rows), verdicts)


def evaluate(argv: list[str], settings: Settings) -> int:
    """`holdfast bench evaluate [--rows N] [--features N] [--json]`: exit status 0 if it took less than five minutes."""
    parser = argparse.ArgumentParser(prog="holdfast bench evaluate", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    history = an_invented_history(args.rows, args.features)
    began, cpu_began = time.perf_counter(), time.process_time()
    rolled = folds(0, DAYS * DAY_MS, SPANS, 4)
    found = evaluated(history, rolled, recipe_in(), threads=args.threads, say=lambda text: print(text, file=sys.stderr, flush=True))
    figures = {
        "rows": args.rows,
        "features": args.features,
        "folds": len(rolled),
        "train_rows": sum(tried.train_rows for tried in found.folds),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu_began,
        "average_precision": found.table[SERVED]["average_precision"].value,
        "limit_seconds": SECONDS_MAX,
    }
    print("\n".join(table_lines(found)))
    holds = figures["seconds"] < SECONDS_MAX
    print(f"{args.rows:,} rows, {args.features} features, {len(rolled)} folds: {figures['seconds']:.1f} s (limit {SECONDS_MAX}),", end=" ")
    print(f"{figures['cpu_seconds']:.1f} s of CPU: {'holds' if holds else 'does NOT hold'}")
    if args.json:
        print(json.dumps(figures | {"holds": holds}))
    return 0 if holds else 1
