"""Training: five members grown from one matrix of served vectors and what turned out to be true. Pure; nothing is read or written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, roc_auc_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn, without types

from features.catalogue import Catalogue
from models.compiled import EQUAL_ON, EQUAL_WITHIN, Grown, apart, compiled, joined, mixed
from models.decision import top_reason_agrees
from models.ensemble import LEARNED, Ensemble, Member
from models.ensemble import Artefact as Artefact
from models.policy import Policy
from models.trees import Floats, probabilities_of_all
from schemas.errors import ArtefactError

Labels = npt.NDArray[np.bool_]
GROWTH: dict[str, Any] = {
    "learning_rate": 0.12,
    "max_leaf_nodes": 16,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,
    "early_stopping": False,
}
READS = {"behavioural": ("behavioural", "takeover", "identity", "network")}
"""The families of features that a member reads, if not the one of its own name alone."""
TREES = {LEARNED: 64}
TREES_OF_A_FAMILY = 32
BLOCKS_ASKED = 100
"""So many held-out blocks at most are asked whether their first reason is the exact one."""
TUNED_FROM, HELD_OUT_FROM = 0.70, 0.80
"""In order of time: the first 70 % grow the trees, the next 10 % set the level of the score, the last 20 % are only measured."""


def train(
    vectors: Floats,
    frauds: Labels,
    at_ms: npt.NDArray[np.int64],
    catalogue: Catalogue,
    policy: Policy,
    seed: int,
) -> Artefact:
    """Five members on `vectors` (float64[rows, columns of the catalogue], NaN is missing), by the policy's weights and thresholds.

    Rows are put in order of `at_ms`; figures come from the last fifth, which no tree and no level has seen. Every member
    must equal scikit-learn's `predict_proba` on every row, or ArtefactError. ArtefactError too if a part has only one class.
    """
    order = np.argsort(at_ms, kind="stable")
    rows, truth = np.ascontiguousarray(vectors[order], dtype=np.float64), np.asarray(frauds, dtype=np.bool_)[order]
    grown_until, tuned_until = int(len(rows) * TUNED_FROM), int(len(rows) * HELD_OUT_FROM)
    if not 0 < truth[:grown_until].sum() < grown_until:
        raise ArtefactError("training needs honest and fraudulent rows in the first 70 % of the time")
    members = _members(policy.weights, catalogue.families, len(catalogue.names))
    asked = mixed(rows, EQUAL_ON, seed)
    with threadpool_limits(limits=1):  # on a shared machine OpenMP's threads wait for one another longer than they work
        grown, distances = zip(*(_grown(member, rows, truth, grown_until, seed, asked) for member in members), strict=True)
    usual, low = _usual(rows[:grown_until][~truth[:grown_until]]), np.array([row.suspicious == "low" for row in catalogue.rows])
    ensemble = Ensemble("", catalogue.catalogue_id, catalogue.names, members, joined(grown), usual, low)
    tuned = slice(grown_until, tuned_until)
    shift = _level(ensemble, rows[tuned], truth[tuned], policy)
    ensemble = replace(ensemble, forest=ensemble.forest._replace(baselines=ensemble.forest.baselines + shift))
    blocked = rows[tuned_until:][np.rint(ensemble.scores(rows[tuned_until:]) * 1000) > policy.block_above][:BLOCKS_ASKED]
    checks = {
        "parity_max": max(distances),
        "parity_rows": float(len(asked)),
        "top_reason_agrees": top_reason_agrees(ensemble, catalogue.reason_of, blocked),
    }
    figures = measured(ensemble.totals(rows[tuned_until:]), truth[tuned_until:], policy)
    return Artefact(
        ensemble=ensemble,
        rows=len(rows),
        frauds=int(truth.sum()),
        from_at_ms=int(at_ms[order[0]]),
        until_at_ms=int(at_ms[order[-1]]),
        seed=seed,
        sklearn_version=sklearn.__version__,
        policy_id=policy.policy_id,
        shift=shift,
        figures=figures,
        checks=checks,
    )


def _members(weights: Mapping[str, float], families: Mapping[str, Sequence[int]], width: int) -> tuple[Member, ...]:
    """The members: the learned one on every column, each other on its family's."""
    unknown = sorted(weights.keys() - families.keys() - {LEARNED})
    if unknown:
        raise ArtefactError(f"the catalogue has no family {unknown[0]!r}, which the policy gives a weight")
    return tuple(Member(name, weight, _read_by(name, families, width)) for name, weight in weights.items())


def _read_by(member: str, families: Mapping[str, Sequence[int]], width: int) -> tuple[int, ...]:
    """The columns of a member: all of the learned one's, else those of the families that it reads."""
    return tuple(range(width)) if member == LEARNED else tuple(c for family in READS.get(member, (member,)) for c in families.get(family, ()))


def _grown(member: Member, rows: Floats, truth: Labels, until: int, seed: int, asked: Floats) -> tuple[Grown, float]:
    """One member, fitted on the first rows, and how far its compiled self is from scikit-learn on all that are asked."""
    estimator = HistGradientBoostingClassifier(max_iter=TREES.get(member.name, TREES_OF_A_FAMILY), random_state=seed, **GROWTH)
    told = _often(truth[:until])
    columns = _with_values(member.columns, rows[:until])
    mine = rows[:, columns] if columns else np.zeros((len(rows), 1))
    estimator.fit(mine[told], truth[told])
    grown = compiled(estimator, columns or member.columns[:1])
    distance = apart(grown, estimator, asked[:, columns] if columns else np.zeros((len(asked), 1)), asked)
    if not distance <= EQUAL_WITHIN:
        raise ArtefactError(f"member {member.name}: {distance} apart from scikit-learn")
    return grown, distance


def _with_values(columns: Sequence[int], rows: Floats) -> tuple[int, ...]:
    """The columns that have a value in some row: scikit-learn (1.9) cannot bin one that has none, and nothing is to be learned from it.

    A bank whose files know no devices has a whole family of them; that member then says the same of every row.
    """
    return tuple(c for c in columns if not np.isnan(rows[:, c]).all())


def _often(truth: Labels) -> npt.NDArray[np.intp]:
    """Rows to learn from: each honest one once, each fraud as often as the root of its rarity says; `_level` sets the level right again.

    Whole repeats and no `sample_weight`, because weighted bins take scikit-learn (1.9) ten times as long.
    """
    rarity = (len(truth) - truth.sum()) / max(int(truth.sum()), 1)
    return np.repeat(np.arange(len(truth)), np.where(truth, max(round(math.sqrt(rarity)), 1), 1))


def _usual(honest: Floats) -> Floats:
    """float64[columns]: the median of each column, NaN where it never had a value."""
    return np.array([np.median(c[~np.isnan(c)]) if (~np.isnan(c)).any() else np.nan for c in honest.T])


def _level(ensemble: Ensemble, rows: Floats, truth: Labels, policy: Policy) -> float:
    """The shift of log-odds (a prior shift) by which the score speaks to the policy's thresholds.

    Fraud is rare, and members know unequally much: their weighted sum is too shy for fixed thresholds. To say that fraud
    were more frequent by so much is to add a constant to the log-odds. Of the shifts from -4 to 9 it takes the one at which
    both thresholds mean most: greatest sum of F1 at review and at block, the smallest shift of equals. Without both
    classes in the rows it is 0.
    """
    if not 0 < truth.sum() < len(truth):
        return 0.0
    said = probabilities_of_all(ensemble.forest, rows)
    odds, weights = said / (1 - said), np.array([m.weight for m in ensemble.members])

    def worth(shift: float) -> tuple[float, float]:
        raised = odds * math.exp(shift)
        totals = (raised / (1 + raised)) @ weights
        return _f1(totals, truth, policy.review_above) + _f1(totals, truth, policy.block_above), -abs(shift)

    return max((step / 4 for step in range(-16, 37)), key=worth)


def _f1(totals: Floats, truth: Labels, above: int) -> float:
    flagged = np.rint(totals * 1000) > above
    return float(2 * (flagged & truth).sum() / max(int(flagged.sum() + truth.sum()), 1))


def measured(totals: Floats, truth: Labels, policy: Policy) -> dict[str, float | None]:
    """Figures of scores (0 to 1) against the truth: ranking, and precision and recall above the policy's thresholds."""
    both = 0 < truth.sum() < len(truth)
    figures: dict[str, float | None] = {
        "rows": float(len(truth)),
        "frauds": float(truth.sum()),
        "auc": float(roc_auc_score(truth, totals)) if both else None,
        "average_precision": float(average_precision_score(truth, totals)) if both else None,
    }
    for name, above in (("review", policy.review_above), ("block", policy.block_above)):
        flagged = np.rint(totals * 1000) > above
        hits = int((flagged & truth).sum())
        figures[f"precision_at_{name}"] = hits / int(flagged.sum()) if flagged.any() else None
        figures[f"recall_at_{name}"] = hits / int(truth.sum()) if truth.any() else None
        figures[f"share_above_{name}"] = float(flagged.mean()) if len(truth) else None
    return figures
