"""Simulated history, to exercise the system: honest customers with their oddities, and every kind of fraud, each labelled.

Statistics that it follows. From memory of published reports, not checked against them, and rounded:
- about 1.3 card payments a person and day, of about 45 euro (Federal Reserve Payments Study; ECB payment statistics);
- most stolen value is card-not-present (ECB report on card fraud), hence that kind's share here;
- amounts within a merchant category are close to lognormal, merchants' sizes close to Pareto.
By standard: check digits of card numbers by ISO/IEC 7812-1; categories are codes of ISO 18245; countries ISO 3166-1, currencies ISO 4217.
Everything else is assumed: paces, amounts, how often people travel, buy phones, hide behind proxies or log in, the shares of each fraud
kind and of its quiet attacks, and the delays until fraud is learned. The default share of fraud, 1 % of the rows, is some twenty times
that of real card payments, so that short histories have enough of each kind. Half of the attacks are quiet (see simulation/fraud.py)
and the honest do odd things often, so that no model finds all fraud without stopping the honest. Figures reached on this data say
that the system works; they say nothing about how well a bank's fraud will be found.

Written are `transactions.parquet`, `account_events.parquet`, `accounts.parquet` and `mapping.toml`, which `replay` and `backfill` read, and
`attacks.parquet`, the truth about each attack (onset, end, payments, money lost, when it was learned), which nothing reads. The columns
`is_fraud`, `fraud_kind` and `learned_at` of the transactions are for labels alone: nothing else may read them.
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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import SettingsError
from streams.settings import Settings
from streams.simulation.account_events import account_events
from streams.simulation.events import Gathered
from streams.simulation.fraud import fraudulent
from streams.simulation.honest import honest, shopping_days
from streams.simulation.table import MAPPING, account_events_table, accounts_table, attacks_table, transactions_table
from streams.simulation.world import DAY_MS, drawn

START_MS = int(datetime(2025, 10, 1, tzinfo=UTC).timestamp() * 1000)
PAYMENTS_A_DAY = 1.95
"""A little more than an honest customer makes: room for the rows of a history."""
DAYS_MAX, CUSTOMER_DAYS_MAX = 3_650, 100_000_000
"""A history of more is not made: it is made whole in memory."""


class Simulated(NamedTuple):
    """What the simulated bank exports, and what only the simulator knows.

    Transactions, oldest first; accounts as of the start; account events, oldest first; attacks, the truth about each, for nobody but people.
    """

    transactions: pa.Table
    accounts: pa.Table
    account_events: pa.Table
    attacks: pa.Table


def simulated(rng: np.random.Generator, *, customers: int, days: int, fraud_rate: float, start_ms: int = START_MS, block: int = 0) -> Simulated:
    """A history of `days` days from `start_ms` (ms since 1970 UTC), the same for the same state of `rng`.

    `fraud_rate` is the share of fraudulent rows (at least one attack of each kind happens); `block` is part of every reference and
    account number, and its last three digits of every card number, so that histories whose blocks differ in those can meet in one system.
    """
    world = drawn(rng, customers, days * DAY_MS)
    start = datetime.fromtimestamp(start_ms / 1000, UTC)
    gathered = Gathered(int(customers * days * PAYMENTS_A_DAY / (1.0 - fraud_rate)))
    for part in honest(rng, world, shopping_days(days, start.weekday(), start.timetuple().tm_yday - 1)):
        gathered.add(part)
    bad = fraudulent(rng, world, gathered.all, days, round(len(gathered.all) * fraud_rate / (1.0 - fraud_rate)))
    gathered.add(bad)
    payments = gathered.all
    beside = account_events(rng, world, payments, days)
    return Simulated(
        transactions_table(world, payments, start_ms, block),
        accounts_table(rng, world, start_ms, block),
        account_events_table(world, beside, start_ms, block),
        attacks_table(bad, start_ms),
    )


def written(history: Simulated, folder: Path) -> None:
    """Writes a Parquet file for each table of the history, and `mapping.toml`, into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in history._asdict().items():
        pq.write_table(_plain(table), folder / f"{name}.parquet", compression="zstd", store_schema=False, row_group_size=65_536)
    (folder / "mapping.toml").write_text(MAPPING, encoding="utf-8")


def _plain(table: pa.Table) -> pa.Table:
    """The table with texts in place of codes: the bytes of a file with dictionaries of ours depend on more than its contents (pyarrow 26)."""
    fields = [pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in table.schema]
    return table.cast(pa.schema(fields))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast simulate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the Parquet files and mapping.toml")
    parser.add_argument("--customers", type=int, default=2000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fraud-rate", type=float, default=0.01, help="share of fraudulent rows, 0 to 0.5; at least one attack of each kind happens")
    parser.add_argument("--start", default="2025-10-01", help="first day, YYYY-MM-DD, UTC")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser


def simulate(argv: list[str], settings: Settings) -> int:
    """`holdfast simulate`: writes a simulated history and says how large it is and how fast it was made."""
    args = _parser().parse_args(argv)
    if args.customers < 20 or args.days < 2 or not 0.0 <= args.fraud_rate <= 0.5:
        print("holdfast simulate: needs at least 20 customers and 2 days, and a fraud rate from 0 to 0.5", file=sys.stderr)
        return 2
    if args.days > DAYS_MAX or args.customers * args.days > CUSTOMER_DAYS_MAX:
        print(f"holdfast simulate: makes at most {DAYS_MAX:,} days, and {CUSTOMER_DAYS_MAX:,} days of all customers together", file=sys.stderr)
        return 2
    start_ms = _start_ms(args.start)
    if args.seed < 0:
        raise SettingsError(f"--seed: {args.seed} is less than 0")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out: {error}") from None
    print(f"simulating {args.customers} customers for {args.days} days", file=sys.stderr)
    began, cpu_began = time.perf_counter(), time.process_time()
    history = simulated(
        np.random.default_rng(args.seed), customers=args.customers, days=args.days, fraud_rate=args.fraud_rate, start_ms=start_ms, block=args.seed
    )
    made_s, made_cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    try:
        written(history, args.out)
    except OSError as error:
        raise SettingsError(f"--out: {error}") from None
    wrote_s = time.perf_counter() - began - made_s
    summary = _summary(history, made_s, made_cpu_s, wrote_s)
    print(
        f"{summary['rows']} payments, {summary['fraud_rows']} of them fraud, and {summary['account_event_rows']} account events in {made_s:.1f} s"
        f" ({summary['rows_per_s']} payments/s; {summary['rows_per_core_s']} a second of one core), written in {wrote_s:.1f} s"
    )
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


def _summary(history: Simulated, made_s: float, made_cpu_s: float, wrote_s: float) -> dict[str, object]:
    """Sizes and rates of a history: payments in a second, and in a second of one core; account events are made within, and not counted."""
    rows = history.transactions.num_rows
    kinds = history.transactions["fraud_kind"].value_counts().to_pylist()
    return {
        "rows": rows,
        "account_event_rows": history.account_events.num_rows,
        "accounts": history.accounts.num_rows,
        "fraud_rows": sum(k["counts"] for k in kinds if k["values"]),
        "fraud_kinds": {k["values"]: k["counts"] for k in kinds if k["values"]},
        "attacks": _attacks(history.attacks),
        "rows_per_s": int(rows / made_s),
        "rows_per_core_s": int(rows / made_cpu_s),
        "made_s": round(made_s, 3),
        "write_s": round(wrote_s, 3),
    }


def _attacks(attacks: pa.Table) -> dict[str, dict[str, float]]:
    """Of each kind of fraud: how many attacks, what was lost (euro), and the median hours that they went on and days until they were learned."""
    figures = {}
    hours = pc.divide(pc.subtract(attacks["last_at"], attacks["onset_at"]).cast(pa.int64()), 3_600_000.0)
    days = pc.divide(pc.subtract(attacks["learned_at"], attacks["last_at"]).cast(pa.int64()), 86_400_000.0)
    for kind in sorted(set(attacks["fraud_kind"].to_pylist())):
        of = pc.equal(attacks["fraud_kind"].cast(pa.string()), kind)
        figures[kind] = {
            "attacks": pc.sum(of).as_py(),
            "lost_eur": float(pc.sum(attacks["lost_eur"].filter(of)).as_py()),
            "hours_median": round(float(np.median(hours.filter(of))), 2),
            "learned_days_median": round(float(np.median(days.filter(of))), 2),
        }
    return figures
