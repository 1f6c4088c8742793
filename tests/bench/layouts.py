"""Files in the layouts of public fraud data, invented, with nothing but a mapping: what `evaluate` reaches beside a plain model on their columns.

The names and the shape of columns are those of the public files (ULB's credit cards, Sparkov's simulated card payments, IEEE-CIS, PaySim's mobile
money, the bank account applications of BAF); the contents are drawn here, so that the figures say nothing about those files. What they say is
whether anything of what a file holds is lost on the way from its columns to the ensemble.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pc
from sklearn.ensemble import HistGradientBoostingClassifier

from features.catalogue import CATALOGUE
from models.evaluate import DAY_MS, FITTED, GIVEN, SERVED, Evaluation, rows_tried
from models.figures import USUAL, Sheet, Trial
from models.history import History
from streams.backfill import Given, backfilled
from streams.evaluate import evaluation, table_lines
from streams.mapping import TokenKey, mapping_from
from streams.settings import Settings
from streams.train import recipe_in
from streams.training_set import given_in

Rng = np.random.Generator
Floats = npt.NDArray[np.float64]
FIGURES = ("average_precision", "roc_auc", "card_precision")
PLAIN = "a plain model"
SHARE = 0.97
"""The ensemble's average precision is to be at least this part of what a plain model reaches on the file's own columns."""


class Layout(NamedTuple):
    """One layout: how a file of so many rows is drawn, its mapping, and the columns that a plain model reads (texts as numbers)."""

    table: Callable[[Rng, int], pa.Table]
    mapping: str
    plain: tuple[str, ...]


def _some(rng: Rng, values: Floats, share: float) -> Floats:
    """The values, a share of them missing."""
    return np.where(rng.random(len(values)) < share, np.nan, values)


def _cents(amounts: Floats) -> Floats:
    return np.maximum(amounts, 0.01).round(2)


def _drawn(rng: Rng, odds: Floats, share: float) -> npt.NDArray[np.bool_]:
    """Frauds by these log-odds, shifted so that about this share of the rows is fraud."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-odds - middle))).mean() < share else (low, middle)
    return rng.random(len(odds)) < 1 / (1 + np.exp(-odds - low))


# Credit cards of two days, 28 nameless columns.


def ulb(rng: Rng, rows: int) -> pa.Table:
    """Two days without any card or account: seconds since the start, 28 principal components, the amount."""
    second = np.sort(rng.integers(0, 172_800, rows)).astype(np.float64)
    fraud = rng.random(rows) < 0.00173
    spread = np.linspace(1.9, 0.35, 28)
    parts = rng.standard_t(6, (rows, 28)) * spread
    seen = fraud & (rng.random(rows) < 0.82)  # the others look like anybody's
    kind = rng.integers(0, 3, rows)
    for column, far in {13: -4.2, 16: -4.0, 11: -3.6, 9: -3.2, 10: 2.4, 3: 2.8, 2: -3.5, 6: -2.0}.items():
        parts[:, column] += np.where(seen & (kind != column % 3), far * rng.gamma(3.0, 0.33, rows), 0.0)
    amount = _cents(np.where(fraud, rng.lognormal(2.4, 2.1, rows), rng.lognormal(3.1, 1.6, rows)))
    columns = {"Time": second, **{f"V{number + 1}": parts[:, number] for number in range(28)}, "Amount": amount}
    return pa.table({**columns, "Class": fraud.astype(np.int64)})


ULB = """
row_id_prefix = "ulb-"
[fields]
[constants]
kind = "ecommerce"
account_id = "everybody"
[time]
column = "Time"
format = "offset_s"
origin = "2013-09-01T00:00:00+00:00"
[amount]
column = "Amount"
currency = "EUR"
rounding = "half_even"
[attributes]
"*" = "V*"
[label]
column = "Class"
delay = "0d"
"""

# Simulated card payments with names and places.

CATEGORIES = (
    "grocery_pos",
    "gas_transport",
    "shopping_net",
    "misc_net",
    "shopping_pos",
    "home",
    "food_dining",
    "kids_pets",
    "health_fitness",
    "travel",
)


def sparkov(rng: Rng, rows: int) -> pa.Table:
    """Half a year of named cards; who steals one buys for two days, dear, at night, in few categories."""
    cards, days = max(rows // 600, 40), 180
    card, day = rng.integers(0, cards, rows), rng.integers(0, days, rows)
    second = (rng.normal(14, 4.5, rows) % 24 * 3600).astype(np.int64)
    category = rng.integers(0, len(CATEGORIES), rows)
    amount = rng.lognormal(np.log(20 + 8 * category), 0.9)
    stolen_on = np.where(rng.random(cards) < 0.8, rng.integers(5, days - 2, cards), -9)
    fraud = (day >= stolen_on[card]) & (day < stolen_on[card] + 2) & (rng.random(rows) < 0.75)
    night = fraud & (rng.random(rows) < 0.85)
    second[night] = rng.integers(22 * 3600, 28 * 3600, night.sum()) % 86_400
    category[fraud] = rng.choice([0, 2, 3, 4], fraud.sum(), p=[0.3, 0.3, 0.2, 0.2])
    amount[fraud] = np.array([310, 0, 1000, 800, 880] + [0] * 5)[category[fraud]] * rng.lognormal(0, 0.18, fraud.sum())
    order = np.argsort(day * 86_400 + second, kind="stable")
    card, day, second, category, amount, fraud = (column[order] for column in (card, day, second, category, amount, fraud))
    home = rng.uniform((28, -120), (47, -72), (cards, 2))
    when = (np.datetime64("2020-01-01T00:00:00") + (day * 86_400 + second).astype("timedelta64[s]")).astype(str)
    columns = {"": np.arange(rows), "trans_date_trans_time": [text.replace("T", " ") for text in when]}
    columns |= {"cc_num": 4_000_000_000_000 + card * 7919, "merchant": [f"fraud_{m}" for m in rng.integers(0, 600, rows)]}
    columns |= {"category": [CATEGORIES[c] for c in category], "amt": _cents(amount), "gender": [("F", "M")[c % 2] for c in card]}
    columns |= {"lat": home[card, 0].round(4), "long": home[card, 1].round(4), "city_pop": (card * 977) % 90_000 + 100}
    columns |= {"trans_num": [f"{number:032x}" for number in range(rows)], "unix_time": np.arange(rows)}
    merch = home[card] + rng.uniform(-1, 1, (rows, 2))
    columns |= {"merch_lat": merch[:, 0].round(6), "merch_long": merch[:, 1].round(6), "is_fraud": fraud.astype(np.int64)}
    return pa.table(columns)


SPARKOV = """
ignore = ["", "unix_time"]
[fields]
transaction_id = "trans_num"
merchant_id = "merchant"
latitude = "merch_lat"
longitude = "merch_long"
[tokens]
card_token = "cc_num"
account_id = "cc_num"
[constants]
kind = "card_present"
[time]
column = "trans_date_trans_time"
format = "%Y-%m-%d %H:%M:%S"
zone = "UTC"
[amount]
column = "amt"
currency = "USD"
[attributes]
"*" = "*"
[label]
column = "is_fraud"
delay = "1d"
"""

# Many nameless columns with holes.


def ieee(rng: Rng, rows: int, columns_v: int = 60) -> pa.Table:
    """Four months of payments with counts, day differences, many V columns in blocks that are missing together, and texts."""
    at_s = np.sort(rng.integers(86_400, 121 * 86_400, rows))
    card = rng.integers(1000, 1000 + max(rows // 12, 50), rows)
    product = rng.choice(5, rows, p=[0.6, 0.12, 0.12, 0.09, 0.07])
    domain = rng.choice(8, rows)
    amount = rng.lognormal(4.2, 1.0, rows)
    hidden = rng.normal(size=(rows, 6))
    values = hidden[:, rng.integers(0, 6, columns_v)] * rng.uniform(0.4, 1.5, columns_v) + rng.normal(size=(rows, columns_v))
    bad_card = (card * 2_654_435_761) % 1000 < 60
    counts = rng.poisson(np.exp(0.6 * hidden[:, 0] + 0.8 * bad_card))
    known_d = rng.gamma(1.5, 60.0, rows) * np.where(bad_card, 0.3, 1.0)
    odds = 1.1 * hidden[:, 0] + 0.9 * np.maximum(hidden[:, 1], 0) * hidden[:, 2] + 1.4 * (product == 1) + 1.2 * (domain == 3) * (product != 0)
    fraud = _drawn(rng, odds + 2.0 * bad_card + 0.5 * (np.log(amount) > 6) - 0.004 * known_d, 0.035)
    table: dict[str, Any] = {"TransactionID": 2_987_000 + np.arange(rows), "isFraud": fraud.astype(np.int64), "TransactionDT": at_s}
    table |= {"TransactionAmt": amount.round(3), "ProductCD": [("W", "C", "R", "H", "S")[p] for p in product], "card1": card}
    table |= {"addr1": _some(rng, (card % 300 + 100).astype(np.float64), 0.1)}
    table |= {"P_emaildomain": [(None, "gmail.com", "yahoo.com", "mail.com", "aol.com", "icloud.com", "live.com", "cox.net")[d] for d in domain]}
    table |= {"C1": counts.astype(np.float64), "D1": _some(rng, known_d.round(), 0.1)}
    table |= {"M4": [("M0", "M1", "M2", None)[m] for m in rng.integers(0, 4, rows)]}
    for first in range(0, columns_v, 12):
        missing = rng.random(rows) < (0.05, 0.45, 0.8)[first // 12 % 3]
        table |= {f"V{c + 1}": np.where(missing, np.nan, values[:, c].round(4)) for c in range(first, min(first + 12, columns_v))}
    return pa.table(table)


IEEE = """
[fields]
transaction_id = "TransactionID"
account_id = "card1"
card_token = "card1"
[tokens]
email_token = "P_emaildomain"
[constants]
kind = "ecommerce"
[time]
column = "TransactionDT"
format = "offset_s"
origin = "2017-12-01T00:00:00+00:00"
[amount]
column = "TransactionAmt"
currency = "USD"
rounding = "half_even"
[attributes]
"*" = "*"
domain = "P_emaildomain"
card = "card1"
[label]
column = "isFraud"
delay = "1d"
"""

# Mobile money.


def paysim(rng: Rng, rows: int) -> pa.Table:
    """A month in hours: who takes an account over sends all of its money away and cashes it out."""
    step = np.sort(rng.integers(1, 744, rows))
    kind = rng.choice(["PAYMENT", "CASH_OUT", "CASH_IN", "TRANSFER", "DEBIT"], rows, p=[0.34, 0.35, 0.22, 0.08, 0.01]).astype(object)
    amount = rng.lognormal(10.5, 1.6, rows)
    before = np.where(rng.random(rows) < 0.35, 0.0, rng.lognormal(10.5, 2.0, rows))
    fraud = rng.random(rows) < 0.004
    kind[fraud] = rng.choice(["TRANSFER", "CASH_OUT"], fraud.sum())
    before[fraud] = rng.lognormal(12.5, 1.5, fraud.sum())
    amount = np.where(fraud, before, amount)
    emptied = ~fraud & (rng.random(rows) < 0.01)
    amount[emptied] = before[emptied]
    after = np.where(kind == "CASH_IN", before + amount, np.maximum(before - amount, 0.0))
    theirs = np.where((rng.random(rows) < 0.5) | (fraud & (kind == "TRANSFER")) | (kind == "PAYMENT"), 0.0, rng.lognormal(12, 2, rows))
    theirs_after = np.where((kind == "PAYMENT") | (fraud & (kind == "TRANSFER")), 0.0, theirs + amount)
    to = [f"{'M' if k == 'PAYMENT' else 'C'}{n}" for k, n in zip(kind, rng.integers(0, max(rows // 3, 10), rows), strict=True)]
    table: dict[str, Any] = {
        "step": step,
        "type": kind.tolist(),
        "amount": _cents(amount),
        "nameOrig": [f"C{n}" for n in rng.permutation(10 * rows)[:rows]],
    }
    table |= {"oldbalanceOrg": before.round(2), "newbalanceOrig": after.round(2), "nameDest": to}
    table |= {"oldbalanceDest": theirs.round(2), "newbalanceDest": theirs_after.round(2)}
    return pa.table({**table, "isFraud": fraud.astype(np.int64), "isFlaggedFraud": np.zeros(rows, np.int64)})


PAYSIM = """
row_id_prefix = "paysim-"
ignore = ["isFlaggedFraud"]
[fields]
kind = "type"
account_id = "nameOrig"
counterparty_account_id = "nameDest"
[values.kind]
PAYMENT = "ecommerce"
CASH_OUT = "cash_out"
CASH_IN = "cash_in"
TRANSFER = "transfer_out"
DEBIT = "atm"
[time]
column = "step"
format = "offset_h"
origin = "2025-01-01T00:00:00+00:00"
[amount]
column = "amount"
currency = "EUR"
[attributes]
"*" = "*"
type = "type"
[label]
column = "isFraud"
delay = "1d"
"""

# Applications for bank accounts.


def baf(rng: Rng, rows: int) -> pa.Table:
    """Eight months, of which only the number of the month is known; -1 is missing, and some columns are texts."""
    month = np.sort(rng.integers(0, 8, rows))
    income = rng.integers(1, 10, rows) / 10
    similar = rng.beta(1.0, 1.0, rows)
    moved = np.where(rng.random(rows) < 0.7, -1, rng.integers(5, 380, rows))
    age = rng.choice(np.arange(10, 100, 10), rows)
    risk, limit = rng.normal(130, 60, rows).round(), rng.choice([190, 200, 500, 1000, 1500, 2000], rows, p=[0.1, 0.5, 0.15, 0.1, 0.1, 0.05])
    housing, payment, system = rng.integers(0, 7, rows), rng.integers(0, 5, rows), rng.integers(0, 5, rows)
    velocity = rng.gamma(8.0, 700.0, rows)
    odds = 1.2 * (housing == 0) + 0.9 * (system == 1) - 1.1 * similar + 0.03 * (age - 40) + 1.2 * income + 0.006 * risk + 0.0006 * limit
    fraud = _drawn(rng, odds + 0.7 * (payment == 2) - 0.5 * (moved > 0) + 0.7 * rng.normal(size=rows), 0.011)
    table: dict[str, Any] = {"fraud_bool": fraud.astype(np.int64), "income": income, "name_email_similarity": similar}
    table |= {"prev_address_months_count": moved, "customer_age": age, "intended_balcon_amount": rng.normal(8, 20, rows)}
    table |= {"payment_type": [f"A{chr(65 + p)}" for p in payment], "velocity_6h": velocity, "credit_risk_score": risk}
    table |= {"housing_status": [f"B{chr(65 + h)}" for h in housing], "proposed_credit_limit": limit.astype(np.float64)}
    return pa.table({**table, "device_os": [("linux", "windows", "macintosh", "x11", "other")[s] for s in system], "month": month})


BAF = """
row_id_prefix = "baf-"
[fields]
[constants]
kind = "ecommerce"
account_id = "everybody"
[time]
column = "month"
format = "offset_30d"
origin = "2025-01-01T00:00:00+00:00"
[amount]
column = "proposed_credit_limit"
currency = "USD"
[attributes]
"*" = "*"
[label]
column = "fraud_bool"
delay = "0d"
"""

LAYOUTS: dict[str, Layout] = {
    "ulb": Layout(ulb, ULB, ("V*",)),
    "sparkov": Layout(sparkov, SPARKOV, ("category", "gender", "lat", "long", "city_pop", "merch_lat", "merch_long")),
    "ieee": Layout(ieee, IEEE, ("V*", "C1", "D1", "M4", "addr1", "card1", "ProductCD", "P_emaildomain")),
    "paysim": Layout(paysim, PAYSIM, ("type", "oldbalance*", "newbalance*")),
    "baf": Layout(baf, BAF, ("[!fm]*",)),
}


# What a plain model reaches.


def plain_columns(table: pa.Table, patterns: tuple[str, ...]) -> Floats:
    """float64[rows, columns]: the file's columns that fit, texts as numbers in the order of their letters."""
    names = [name for name in table.column_names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return np.column_stack([_numbers(table[name]) for name in names])


def _numbers(column: pa.ChunkedArray) -> Floats:
    if not pa.types.is_string(column.type):
        return np.asarray(column.to_numpy(), np.float64)
    texts = sorted({text for text in column.to_pylist() if text is not None})
    code = {text: float(number) for number, text in enumerate(texts)}
    return np.array([code.get(text, np.nan) for text in column.to_pylist()])


def plain_figures(history: History, own: Floats, found: Evaluation) -> dict[str, float]:
    """The figures, means of the folds, of one gradient boosting on these columns, the amount and the time of day."""
    columns = np.column_stack([own, history.amounts_minor, history.at_ms % DAY_MS])
    truth, reached = history.believed(), []
    for tried in found.folds:
        fold = tried.fold
        examples = history.training_set(fold.test_from_ms, fold.test_from_ms - fold.train_until_ms + 1, fold.train_from_ms)
        first = int(np.searchsorted(history.at_ms, fold.train_from_ms, "left"))
        model = HistGradientBoostingClassifier(
            learning_rate=0.05, max_iter=250, max_leaf_nodes=31, l2_regularization=1.0, early_stopping=False, random_state=1
        )
        model.fit(columns[first : first + len(examples.frauds)], examples.frauds)
        rows, _ = rows_tried(history, fold, truth)
        days = (history.at_ms[rows] - fold.test_from_ms) // DAY_MS
        tested = Trial(truth.frauds[rows], days, history.cards[rows], history.amounts_minor[rows], int(days.max()) + 1)
        reached.append(Sheet.of(tested, model.predict_proba(columns[rows])[:, 1], USUAL).figures(np.ones(tested.lots)))
    return {name: float(np.mean([each[name] for each in reached])) for name in FIGURES}


def compared(layout: Layout, rows: int, folder: Path, seed: int = 1) -> dict[str, Any]:
    """Draws a file, backfills and evaluates it with default settings; the figures of the ensemble, and the plain model's."""
    path = folder / "file.csv"
    table = layout.table(np.random.default_rng(seed), rows)
    pc.write_csv(table, path)
    began, cpu = time.perf_counter(), time.process_time()
    threads = len(os.sched_getaffinity(0))
    made = backfilled(
        CATALOGUE, Given((path,), mapping_from(layout.mapping), TokenKey(b"bench", "k1")), folder, now_ms=2**41, say=_say, threads=threads
    )
    backfill_cpu = time.process_time() - cpu
    found = evaluation(folder, recipe_in(), threads=threads, say=_say)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    _say("\n".join(table_lines(found)))
    history = given_in(folder).history
    assert len(history.at_ms) == rows, "every row was taken"
    figures = {model: {name: found.table[model][name].value for name in FIGURES} for model in ("learned", GIVEN, FITTED, SERVED)}
    return {
        "rows": made.rows,
        "columns": table.num_columns,
        "seconds": seconds,
        "backfill_cpu_seconds": backfill_cpu,
        "cpu_seconds": cpu,
        "recall_at_fpr_0.01": found.table[SERVED]["recall_at_fpr_0.01"].value,
        "weights_taken": [tried.taken for tried in found.folds],
        "reached": figures | {PLAIN: plain_figures(history, plain_columns(table, layout.plain), found)},
    }


def layouts(argv: list[str], settings: Settings) -> int:
    """`holdfast bench layouts [--rows N] [--only NAME] [--json]`: exit status 0 if nothing is lost on the way from a file's columns."""
    parser = argparse.ArgumentParser(prog="holdfast bench layouts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--only", choices=tuple(LAYOUTS))
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    figures, holds = {}, True
    for name in (args.only,) if args.only else LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            one = figures[name] = compared(LAYOUTS[name], args.rows, Path(folder))
        reached = one["reached"]
        holds &= reached[SERVED]["average_precision"] >= SHARE * reached[PLAIN]["average_precision"]
        print(f"{name}: {one['rows']:,} rows, {one['columns']} columns; {one['seconds']:.0f} s, {one['cpu_seconds']:.0f} s of CPU")
        for model, figures_of_it in reached.items():
            print(f"  {model:<34}" + "  ".join(f"{figure.replace('_', ' ')} {value:.3f}" for figure, value in figures_of_it.items()), flush=True)
    print(f"{'holds' if holds else 'does NOT hold'}: at least {SHARE:.0%} of the plain model's average precision each")
    if args.json:
        print(json.dumps({"layouts": figures, "holds": holds}))
    return 0 if holds else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
