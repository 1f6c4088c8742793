"""What a model must pass before it may be approved or decide: limits on figures that training and validation measured. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from models.compiled import EQUAL_ON, EQUAL_WITHIN
from models.decision import TOP_REASON_AGREES_MIN
from models.drift import PSI_MAX, psi
from models.figures import DAYS_DRAWN_MIN, GROUPS, Ranked, Trial, calibration_error, reliability
from models.history import Flags, Floats

CALIBRATION_ERROR_MAX = 0.02
"""A score of 500 means one in two: so far may said and true be apart, weighed by rows (expected calibration error, ten bins)."""
AUC_OF_CHANCE = 0.5
"""A ranking must surely be better: one that says the same of every payment has this, and is calibrated and stable all the same."""
WORSE_THAN_CHAMPION_MAX = 0.02
"""So much average precision may be lost against the champion, at the lower end of the interval."""
FAIRNESS_RATIO_MAX = 1.25
"""So many times as often as the others' a group's honest payments may be alerted, as far as chance does not explain it: four fifths, turned round
(29 CFR 1607.4(D), made for hiring; no rule gives a figure for payments)."""
RESAMPLES = 200
GATES: Mapping[str, Callable[[float], bool]] = {
    "parity_max": lambda apart: apart <= EQUAL_WITHIN,
    "parity_rows": lambda rows: rows >= EQUAL_ON,
    "top_reason_agrees": lambda share: share >= TOP_REASON_AGREES_MIN,
    "calibration_error": lambda error: error <= CALIBRATION_ERROR_MAX,
    "score_psi": lambda psi: psi <= PSI_MAX,
    "auc_low": lambda low: low > AUC_OF_CHANCE,
}
"""By figure what it must be; a check that was never made fails."""
BESIDE_CHAMPION: Mapping[str, Callable[[float], bool]] = {
    "against_champion_low": lambda low: low >= -WORSE_THAN_CHAMPION_MAX,
}
"""Likewise, where another model decides now: measured by whoever validates, on rows that he chooses."""


ACROSS_GROUPS: Mapping[str, Callable[[float], bool]] = {
    "fairness_ratio_low": lambda low: low <= FAIRNESS_RATIO_MAX,
}
"""Likewise, where the recipe declares groups."""


def failed_gates(figures: Mapping[str, float], beside_champion: bool) -> tuple[str, ...]:
    """The names of the gates that a model with these figures does not pass."""
    declared = figures.get("fairness_declared", 0) > 0
    asked = {**GATES, **(BESIDE_CHAMPION if beside_champion else {}), **(ACROSS_GROUPS if declared else {})}
    return tuple(name for name, passes in asked.items() if name not in figures or not passes(figures[name]))


def held_out_checks(earlier: Floats, later: Floats, truth: Flags) -> dict[str, float]:
    """The checks that scores (0 to 1) allow: of rows that were learned from, and of later ones with the truth about them.

    Where there are no later rows they are not made; and without a fraud among those nobody knows what a score means.
    """
    if not len(later) or not len(earlier):
        return {}
    meant = {"calibration_error": calibration_error(reliability(later, truth))} if truth.any() else {}
    return {**meant, "score_psi": psi(earlier, later)}


def ranking_check(figures: Mapping[str, float | None]) -> dict[str, float]:
    """How well held-out rows were surely ranked: the lower end of the 95 % interval of the area under the ROC curve, after Hanley and McNeil
    (Radiology 143, 1982). Of a training's figures (`auc`, `frauds`, `rows`); nothing where there was no fraud, or nothing else.
    """
    auc, frauds, rows = figures.get("auc"), figures.get("frauds"), figures.get("rows")
    if auc is None or not frauds or not rows:
        return {}
    honest, both, other = rows - frauds, auc / (2 - auc) - auc * auc, 2 * auc * auc / (1 + auc) - auc * auc
    variance = (auc * (1 - auc) + (frauds - 1) * both + (honest - 1) * other) / (frauds * honest)
    return {"auc_low": auc - 1.96 * max(variance, 0.0) ** 0.5}


def against(candidate: Floats, champion: Floats, truth: Flags, days: np.ndarray[tuple[int], np.dtype[np.int64]], seed: int) -> dict[str, float]:
    """How much average precision the candidate has more than the champion on the same rows: the difference and its 95 % interval.

    By a bootstrap over days, the same days for both; over groups of payments where the days are too few. Nothing where there is no fraud, or
    nothing else.
    """
    if not truth.any() or truth.all():
        return {}
    numbers = np.unique(days, return_inverse=True)[1].astype(np.int64)
    if numbers.max() + 1 < DAYS_DRAWN_MIN:
        numbers = np.arange(len(truth)) % GROUPS
    count, nothing = int(numbers.max()) + 1, np.zeros(len(truth), np.int64)
    tested = Trial(truth, numbers, nothing, nothing, count)
    ours, theirs = Ranked.of(tested, candidate), Ranked.of(tested, champion)

    def more(weights: Floats) -> float:
        return ours.figures(weights)["average_precision"] - theirs.figures(weights)["average_precision"]

    rng = np.random.default_rng(seed)
    drawn = [more(np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return {"against_champion": more(np.ones(count)), "against_champion_low": float(low), "against_champion_high": float(high)}
