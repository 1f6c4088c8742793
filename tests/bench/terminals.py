"""An invented dataset after a published description: customers who pay at terminals near them, and three kinds of fraud.

Y.-A. Le Borgne, W. Siblini, B. Lebichot, G. Bontempi, "Reproducible Machine Learning for Credit Card Fraud Detection - Practical Handbook" (2022),
chapter 3: amounts above 220; terminals that are compromised for 28 days; customers whose third payment is five times as much for 14 days. The
best figures published for it with folds of 7/7/7 days are about .87 (ROC AUC), .66 to .70 (average precision) and .30 (card precision at 100).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.catalogue import CATALOGUE
from models.evaluate import SERVED, Spans
from streams.backfill import Given, backfilled
from streams.evaluate import evaluation, table_lines
from streams.mapping import TokenKey, mapping_from
from streams.settings import Settings
from streams.train import recipe_in

DAY_S = 86_400
FLOORS = {"roc_auc": 0.87, "average_precision": 0.66, "card_precision": 0.27}
"""What the ensemble is to reach with default settings; the draw is another than the published one, so that the last digit is not compared."""
MAPPING = """
[fields]
transaction_id = "TRANSACTION_ID"
account_id = "CUSTOMER_ID"
card_token = "CUSTOMER_ID"
terminal_id = "TERMINAL_ID"
[constants]
kind = "card_present"
[time]
column = "TX_DATETIME"
format = "%Y-%m-%d %H:%M:%S"
zone = "UTC"
[amount]
column = "TX_AMOUNT"
currency = "USD"
[label]
column = "TX_FRAUD"
values = ["1"]
delay = "7d"
"""


def payments(rng: np.random.Generator, customers: int, terminals: int, days: int) -> pa.Table:
    """The payments in order of time, with the columns of the published files."""
    homes, places = rng.uniform(0, 100, (customers, 2)), rng.uniform(0, 100, (terminals, 2))
    means, rates = rng.uniform(5, 100, customers), rng.uniform(0, 4, customers)
    near = [np.flatnonzero(((places - home) ** 2).sum(axis=1) < 25) for home in homes]
    counts = np.where([len(each) > 0 for each in near], 1, 0)[:, None] * rng.poisson(rates[:, None], (customers, days))
    customer = np.repeat(np.repeat(np.arange(customers), days), counts.ravel())
    day = np.repeat(np.tile(np.arange(days), customers), counts.ravel())
    second = rng.normal(DAY_S / 2, 20_000, len(day)).astype(np.int64)
    customer, day, second = (column[(second > 0) & (second < DAY_S)] for column in (customer, day, second))
    at_hand = np.array([len(each) for each in near])[customer]
    terminal = np.array([near[who][place] for who, place in zip(customer, (rng.random(len(day)) * at_hand).astype(int), strict=True)])
    amount = rng.normal(means[customer], means[customer] / 2)
    amount = np.where(amount < 0, rng.uniform(0, 2 * means[customer]), amount).round(2)
    order = np.argsort(day * DAY_S + second, kind="stable")
    customer, day, second, terminal, amount = (column[order] for column in (customer, day, second, terminal, amount))
    fraud = amount > 220
    for begins in range(days):
        fraud |= np.isin(terminal, rng.choice(terminals, 2, replace=False)) & (day >= begins) & (day < begins + 28)
        theirs = np.flatnonzero(np.isin(customer, rng.choice(customers, 3, replace=False)) & (day >= begins) & (day < begins + 14))
        dear = rng.choice(theirs, len(theirs) // 3, replace=False)
        amount[dear] *= 5
        fraud[dear] = True
    when = (np.datetime64("2018-04-01T00:00:00") + (day * DAY_S + second).astype("timedelta64[s]")).astype(str)
    columns = {"TRANSACTION_ID": np.arange(len(day)), "TX_DATETIME": [text.replace("T", " ") for text in when], "CUSTOMER_ID": customer}
    return pa.table(columns | {"TERMINAL_ID": terminal, "TX_AMOUNT": amount.round(2), "TX_FRAUD": fraud.astype(np.int64)})


def terminals(argv: list[str], settings: Settings) -> int:
    """`holdfast bench terminals [--days N] [--json]`: exit status 0 if the ensemble reaches what is published, with default settings."""
    parser = argparse.ArgumentParser(prog="holdfast bench terminals", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--customers", type=int, default=5000)
    parser.add_argument("--days", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "payments.parquet"
        pq.write_table(payments(np.random.default_rng(1), args.customers, 2 * args.customers, args.days), path)
        given = Given((path,), mapping_from(MAPPING), TokenKey(b"bench", "k1"))
        backfilled(CATALOGUE, given, Path(folder), now_ms=2**41, say=_say, threads=threads, bar=True)
        found = evaluation(Path(folder), recipe_in(), spans=Spans(7, 7, 7), threads=threads, say=_say)
    print("\n".join(table_lines(found)))
    reached = {name: found.table[SERVED][name].value for name in FLOORS}
    holds = all(reached[name] >= floor for name, floor in FLOORS.items())
    print(", ".join(f"{name} {reached[name]:.3f} ({floor} at least)" for name, floor in FLOORS.items()), "holds" if holds else "does NOT hold")
    if args.json:
        print(json.dumps(reached | {"holds": holds}))
    return 0 if holds else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
