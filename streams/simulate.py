"""Simulated history, to exercise the system: honest customers with their oddities, and every kind of fraud, each labelled.

Figures it follows. From memory of published reports, not checked against them, and rounded:
- about 1.3 card payments a person and day, of about 45 euro (Federal Reserve Payments Study; ECB payment statistics);
- most stolen value is card-not-present (ECB report on card fraud), hence that kind's share here;
- amounts within a merchant category are close to lognormal, merchants' sizes close to Pareto;
- check digits of card numbers by ISO/IEC 7812-1; categories are codes of ISO 18245.
Everything else (paces, amounts, shares of each fraud kind, delays until fraud is learned) is assumed. The default share of
fraud, 1 % of the rows, is some twenty times that of real card payments, so that short histories have enough of each kind.
Figures reached on this data say that the system works; they say nothing about how well a bank's fraud will be found.

The columns `is_fraud`, `fraud_kind` and `learned_at` are for labels alone: nothing else may read them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import SettingsError
from streams.settings import Settings
from streams.simulation.fraud import fraudulent
from streams.simulation.honest import honest
from streams.simulation.table import MAPPING, accounts_table, transactions_table
from streams.simulation.world import DAY_MS, drawn

START_MS = int(datetime(2025, 10, 1, tzinfo=UTC).timestamp() * 1000)


class Simulated(NamedTuple):
    """What the simulated bank exports: its transactions, oldest first, and its accounts as of the start."""

    transactions: pa.Table
    accounts: pa.Table


def simulated(rng: np.random.Generator, *, customers: int, days: int, fraud_rate: float, start_ms: int = START_MS, block: int = 0) -> Simulated:
    """A history of `days` days from `start_ms` (ms since 1970 UTC), the same for the same state of `rng`.

    `fraud_rate` is the share of fraudulent rows (at least one attack of each kind happens); `block` is part of every
    reference, account and card number, so that two histories with different blocks can meet in one system.
    """
    world = drawn(rng, customers, days * DAY_MS)
    start = datetime.fromtimestamp(start_ms / 1000, UTC)
    past = honest(rng, world, days, start.weekday(), start.timetuple().tm_yday - 1)
    bad = fraudulent(rng, world, past, days, round(len(past) * fraud_rate / (1.0 - fraud_rate)))
    events = np.concatenate([past, bad])
    return Simulated(transactions_table(world, events, start_ms, block), accounts_table(rng, world, start_ms, block))


def written(history: Simulated, folder: Path) -> None:
    """Writes `transactions.parquet`, `accounts.parquet` and `mapping.toml` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(history.transactions, folder / "transactions.parquet", compression="zstd", store_schema=False, row_group_size=65_536)
    pq.write_table(history.accounts, folder / "accounts.parquet", compression="zstd", store_schema=False)
    (folder / "mapping.toml").write_text(MAPPING, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast simulate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for transactions.parquet, accounts.parquet, mapping.toml")
    parser.add_argument("--customers", type=int, default=2000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fraud-rate", type=float, default=0.01, help="share of fraudulent rows, 0 to 0.5")
    parser.add_argument("--start", default="2025-10-01", help="first day, YYYY-MM-DD, UTC")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser


def simulate(argv: list[str], settings: Settings) -> int:
    """`holdfast simulate`: writes a simulated history and says how large it is and how fast it was made."""
    args = _parser().parse_args(argv)
    if args.customers < 20 or args.days < 2 or not 0.0 <= args.fraud_rate <= 0.5:
        print("holdfast simulate: needs at least 20 customers and 2 days, and a fraud rate from 0 to 0.5", file=sys.stderr)
        return 2
    start_ms = _start_ms(args.start)
    if args.seed < 0:
        raise SettingsError(f"--seed: {args.seed} is less than 0")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out: {error}") from None
    print(f"simulating {args.customers} customers for {args.days} days", file=sys.stderr)
    began = time.perf_counter()
    history = simulated(
        np.random.default_rng(args.seed), customers=args.customers, days=args.days, fraud_rate=args.fraud_rate, start_ms=start_ms, block=args.seed
    )
    made_s = time.perf_counter() - began
    written(history, args.out)
    wrote_s = time.perf_counter() - began - made_s
    summary = _summary(history, made_s, wrote_s)
    print(f"{summary['rows']} rows, {summary['fraud_rows']} of them fraud, in {made_s:.1f} s ({summary['rows_per_s']}/s), written in {wrote_s:.1f} s")
    if args.json:
        print(json.dumps(summary))
    return 0


def _start_ms(text: str) -> int:
    """The first moment of a day, milliseconds since 1970 UTC. SettingsError if it is no day of 1970 to 2199."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"--start: {text!r} is not a day as YYYY-MM-DD") from None
    if not 1970 <= day.year < 2200:
        raise SettingsError(f"--start: {text} is not in the years 1970 to 2199")
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _summary(history: Simulated, made_s: float, wrote_s: float) -> dict[str, object]:
    """Sizes and rates of a history."""
    rows = history.transactions.num_rows
    kinds = history.transactions["fraud_kind"].value_counts().to_pylist()
    return {
        "rows": rows,
        "accounts": history.accounts.num_rows,
        "fraud_rows": sum(k["counts"] for k in kinds if k["values"]),
        "fraud_kinds": {k["values"]: k["counts"] for k in kinds if k["values"]},
        "rows_per_s": int(rows / made_s),
        "write_s": round(wrote_s, 3),
    }
