"""`holdfast bench models`: what a score and its reasons cost, beside plain scikit-learn in the same run, and how far apart the two are.

Two ensembles of five members over all features of the catalogue: the champion as `models/train.py` grows it, and one with a member of each
kind that is compiled (boosted trees, two forests, an isolation forest, a linear one). One payment at a time, on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from features.catalogue import CATALOGUE
from models.compiled import EQUAL_WITHIN, apart, compiled, joined, mixed, plain
from models.decision import judge
from models.ensemble import Ensemble, Member
from models.policy import policy_from_toml
from models.registry import default_policy_text
from models.train import train
from models.trees import Floats
from schemas.decision import ReasonSource
from schemas.transaction import Transaction, TransactionKind
from streams.settings import Settings
from streams.train import recipe_in
from tests.bench.features import Check, holds, line

SCORE_US_MAX, REASONS_MS_MAX = 15.0, 1.0
POLICY = policy_from_toml(default_policy_text()).bound(CATALOGUE.names)


def of_each_kind() -> list[Any]:
    """A member of each kind, not yet fitted."""
    return [
        HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=16, random_state=1),
        RandomForestClassifier(40, max_leaf_nodes=32, random_state=1),
        ExtraTreesClassifier(40, max_leaf_nodes=32, random_state=1),
        IsolationForest(n_estimators=40, max_samples=64, random_state=1),
        make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(max_iter=500)),
    ]


def microseconds(work: Callable[[Floats], Any], rows: Floats) -> float:
    """The median time of one row, in microseconds; every row is another one."""
    spent = []
    for row in rows:
        began = time.perf_counter()
        work(row)
        spent.append((time.perf_counter() - began) * 1e6)
    return statistics.median(spent)


def measured(count: int, rows_of_parity: int) -> dict[str, float]:
    """All figures."""
    from tests.models.conftest import a_history
    from tests.world import examples_of

    vectors, truth, at_ms = a_history(6_000)
    champion = train(examples_of(vectors, truth, at_ms), recipe_in(), POLICY, seed=1).ensemble
    width = tuple(range(len(CATALOGUE.names)))
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore")
        estimators = [estimator.fit(vectors, truth) for estimator in of_each_kind()]
    grown = [compiled(estimator, width) for estimator in estimators]
    members = tuple(Member(type(e).__name__, 0.2, width) for e in estimators)
    kinds = Ensemble("bench", CATALOGUE.catalogue_id, CATALOGUE.names, members, joined(grown), champion.usual, champion.suspicious_low)
    asked = mixed(vectors, rows_of_parity, seed=2)
    fresh = mixed(vectors, len(vectors) + count, seed=3)[-count:]
    with threadpool_limits(limits=1):
        figures = {
            "parity_max": max(apart(g, e, asked, asked) for g, e in zip(grown, estimators, strict=True)),
            "parity_rows": float(len(asked)),
            "plain_us": microseconds(lambda row: [plain(e, row[None]) for e in estimators], fresh[: max(count // 100, 20)]),
        }
    for name, ensemble in (("champion", champion), ("kinds", kinds)):
        ensemble.score(fresh[0])
        figures[f"{name}_trees"] = float(len(ensemble.forest.roots))
        figures[f"{name}_nodes"] = float(len(ensemble.forest.nodes))
        figures[f"{name}_score_us"] = microseconds(ensemble.score, fresh)
        figures[f"{name}_exact_members"] = float(ensemble.known.exact.sum())
        figures[f"{name}_contributions_us"] = microseconds(lambda row, e=ensemble: e.contributions(e.score(row), row), fresh[: count // 5])  # type: ignore[misc]
    return figures | blocks(champion, vectors[truth])


def blocks(ensemble: Ensemble, frauds: Floats) -> dict[str, float]:
    """What judging costs where the score blocks: rules, score, reasons and all."""
    txn = Transaction(transaction_id="T", kind=TransactionKind.CARD_PRESENT, at_ms=0, amount_minor=1_200, currency="EUR", account_id="A")
    said = [judge(ensemble, POLICY, CATALOGUE.reason_of, txn, row) for row in frauds]
    chosen = np.array([any(r.source is ReasonSource.MODEL for r in verdict.reasons) for verdict in said])
    work = microseconds(lambda row: judge(ensemble, POLICY, CATALOGUE.reason_of, txn, row), frauds[chosen])
    return {"explained_payments": float(chosen.sum()), "judged_with_reasons_us": work}


def models(argv: list[str], settings: Settings) -> int:
    """`holdfast bench models [--count N] [--json]`: exit status 0 if each figure holds."""
    parser = argparse.ArgumentParser(prog="holdfast bench models", description=__doc__)
    parser.add_argument("--count", type=int, default=5_000, help="payments that are scored one by one")
    parser.add_argument("--rows", type=int, default=100_000, help="rows on which compiled members are compared with scikit-learn")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    args = parser.parse_args(argv)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        f = measured(args.count, args.rows)
    finally:
        os.sched_setaffinity(0, cores)
    checks: list[Check] = [
        ("champion, one payment's score, median", f["champion_score_us"], "us", "below", SCORE_US_MAX),
        ("a member of each kind, median", f["kinds_score_us"], "us", "below", SCORE_US_MAX),
        ("champion, score with reasons, median", f["judged_with_reasons_us"] / 1000, "ms", "below", REASONS_MS_MAX),
        ("apart from scikit-learn, 1e-12", f["parity_max"] / EQUAL_WITHIN, "", "at most", 1.0),
    ]
    for check in checks:
        print(line(check))
    print(f"plain scikit-learn, a member of each kind: {f['plain_us'] / 1000:.1f} ms, {f['plain_us'] / f['kinds_score_us']:,.0f} times as long")
    print(f"champion: {f['champion_trees']:.0f} trees, {f['champion_exact_members']:.0f} of 5 members explained exactly; "
          f"of each kind: {f['kinds_trees']:.0f} trees, {f['kinds_exact_members']:.0f} of 5")  # fmt: skip
    all_hold = all(holds(check) for check in checks)
    if args.json:
        print(json.dumps(f | {"holds": all_hold}))
    return 0 if all_hold else 1
