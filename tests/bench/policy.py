"""`holdfast bench policy`: how long a candidate policy takes on an archive of a million decisions, from Parquet to figures."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.catalogue import CATALOGUE
from models.backtest import backtest, read_by
from models.policy import policy_from_toml
from models.registry import default_policy_text
from streams.backtest import payments_in
from streams.settings import Settings
from tests.bench.features import Check, holds, line

SECONDS_MAX = 10.0
FILE_ROWS = 20_000
DAY_MS = 86_400_000


def an_archive(folder: Path, rows: int, seed: int = 1) -> None:
    """Files as the archive app writes them, in the columns that matter here and in all features: 30 days, 1 % alerts, labels of 0.2 %."""
    rng = np.random.default_rng(seed)
    some = rng.exponential(1.0, (FILE_ROWS, len(CATALOGUE.names)))
    some[rng.random(some.shape) < 0.2] = np.nan
    for first in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - first)
        at_ms = np.sort(rng.integers(0, DAY_MS, count)) + (first * 30 // rows) * DAY_MS
        chosen = rng.permutation(count)
        columns = {
            "transaction_id": [f"txn-{seed}-{first + i:010d}" for i in range(count)],
            "decision_id": [f"dec-{seed}-{first + i:010d}" for i in range(count)],
            "model_id": ["mdl_live"] * count,
            "policy_id": ["pol_live"] * count,
            "txn_kind": rng.choice(["card_present", "ecommerce"], count),
            "at_ms": at_ms,
            "outcome": rng.choice(["approve", "review", "decline", "block"], count, p=[0.97, 0.01, 0.015, 0.005]),
            "score": (rng.beta(0.3, 8, count) * 1000).astype(np.int64),
            "degradations": pa.array([["memory_missing:card"] if i % 1000 == 0 else [] for i in range(count)], pa.list_(pa.string())),
            "catalogue_id": [CATALOGUE.catalogue_id] * count,
            "txn_amount_minor": rng.integers(100, 100_000, count),
            "txn_currency": rng.choice(["EUR", "USD", "JPY"], count),
            "txn_billing_amount_minor": pa.nulls(count, pa.int64()),
            "txn_billing_currency": pa.nulls(count, pa.string()),
        } | {name: some[chosen, number] for number, name in enumerate(CATALOGUE.names)}
        place = folder / "decisions" / f"day={first * 30 // rows}"
        place.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), place / f"part-0-{first:015d}.parquet", compression="zstd")
        frauds = np.flatnonzero(rng.random(count) < 0.002)
        label = {
            "transaction_id": [columns["transaction_id"][i] for i in frauds],
            "fraud": [True] * len(frauds),
            "fraud_kind": pa.nulls(len(frauds), pa.string()),
            "learned_at_ms": at_ms[frauds] + DAY_MS,
        }
        shelf = folder / "labels" / place.name
        shelf.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(label), shelf / f"part-0-{first:015d}.parquet")


def policy(argv: list[str], settings: Settings) -> int:
    """`holdfast bench policy [--rows N] [--json]`: exit status 0 if the replay is quick enough."""
    parser = argparse.ArgumentParser(prog="holdfast bench policy", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="decisions in the archive")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    args = parser.parse_args(argv)
    live = policy_from_toml(default_policy_text())
    candidate = policy_from_toml(default_policy_text().replace("review_above = 0.50", "review_above = 0.30"))
    with tempfile.TemporaryDirectory() as folder:
        an_archive(Path(folder), args.rows)
        began, cpu_began = time.perf_counter(), time.process_time()
        payments = payments_in(Path(folder), read_by(candidate, live))
        read_s = time.perf_counter() - began
        found = backtest(candidate, live, payments)
        figures = {
            "decisions": float(found.payments),
            "seconds": time.perf_counter() - began,
            "read_seconds": read_s,
            "cpu_seconds": time.process_time() - cpu_began,
        }
    check: Check = (f"{found.payments:,} decisions replayed with two policies", figures["seconds"], "s", "below", SECONDS_MAX)
    print(line(check))
    print(f"of it reading {figures['read_seconds']:.2f} s; processor time of all {figures['cpu_seconds']:.2f} s")
    if args.json:
        print(json.dumps(figures | {"holds": holds(check)}))
    return 0 if holds(check) else 1
