"""How far today's payments are from those that the model was trained on, and when that is an alarm. Pure.

A snapshot keeps of each feature, and of the score, the deciles of the training rows and the share of rows between them: a few numbers, however
many rows there were. A value on an edge belongs to the bin below it; the last bin is for what was missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.history import Flags, Floats, Ints

SCORE = "score"
BINS_MAX = 10
ROWS_MIN = 1_000
"""Of fewer rows no drift is told: their bins differ by chance."""
LEAST_SHARE = 1e-4
"""An empty bin counts as so much, so that the index is finite."""


class Snapshot(NamedTuple):
    """By column: the edges between its bins (at most nine, rising) and the share of the rows in each bin, that of the missing last."""

    names: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    shares: tuple[tuple[float, ...], ...]

    def plain(self) -> dict[str, Any]:
        """As a card holds it."""
        return {name: {"edges": edges, "shares": shares} for name, edges, shares in zip(*self, strict=True)}

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Snapshot | None:
        """The snapshot in a model's card; None where it was trained by an earlier release."""
        held = card.get("snapshot")
        if not held:
            return None
        return cls(tuple(held), tuple(tuple(c["edges"]) for c in held.values()), tuple(tuple(c["shares"]) for c in held.values()))


class Drift(NamedTuple):
    """One column's distance from the snapshot."""

    psi: float
    """Population stability index over the snapshot's bins (symmetric relative entropy)."""
    ks: float
    """Kolmogorov and Smirnov's distance, taken at the edges alone: never more than the true one."""


def snapshot_of(names: Sequence[str], vectors: Floats, scores: Floats) -> Snapshot:
    """The snapshot of training rows: their features (float64[rows, names], NaN is missing), and their scores as shown (0 to 1000)."""
    columns = [*(vectors[:, number] for number in range(len(names))), scores]
    edges = [_edges(column) for column in columns]
    shares = [tuple(float(f"{share:.6g}") for share in shares_in(column, bounds)) for column, bounds in zip(columns, edges, strict=True)]
    return Snapshot((*names, SCORE), tuple(edges), tuple(shares))


def _edges(column: Floats) -> tuple[float, ...]:
    """The deciles, each once. The greatest value is no edge: above it there was nothing."""
    there = column[np.isfinite(column)]
    if not len(there):
        return ()
    deciles = np.quantile(there, np.arange(1, BINS_MAX) / BINS_MAX, method="lower")
    return tuple(float(edge) for edge in np.unique(deciles))


def shares_in(column: Floats, edges: Sequence[float]) -> Floats:
    """float64[edges + 2]: the share of the values in each bin, that of the missing last."""
    missing = np.isnan(column)
    counts = np.bincount(np.searchsorted(np.asarray(edges, np.float64), column[~missing], "left"), minlength=len(edges) + 1)
    return np.append(counts, missing.sum()) / max(len(column), 1)


def drift(column: Floats, edges: Sequence[float], shares: Sequence[float]) -> Drift:
    """How far the values are from a column of the snapshot. What is missing is a bin of the index, and no part of the distance."""
    now, then = shares_in(column, edges), np.asarray(shares)
    return Drift(_psi(now, then), _ks(now[:-1], then[:-1]))


def psi(before: Floats, now: Floats) -> float:
    """The population stability index of `now` against `before`, in ranges with equally many of `before`; ties make them fewer."""
    edges = _edges(before)
    return _psi(shares_in(now, edges), shares_in(before, edges))


def drifts(snapshot: Snapshot, names: Sequence[str], vectors: Floats, scores: Floats) -> dict[str, Drift]:
    """The drift of each feature and of the score. There is none of what the snapshot does not know, and of less than `ROWS_MIN` rows.

    `scores` may be fewer than the rows: those that this snapshot's model gave.
    """
    columns = {**{name: vectors[:, number] for number, name in enumerate(names)}, SCORE: scores}
    there = {name: column for name, column in columns.items() if len(column) >= ROWS_MIN}
    return {name: drift(there[name], edges, shares) for name, edges, shares in zip(*snapshot, strict=True) if name in there}


def _psi(now: Floats, then: Floats) -> float:
    now, then = np.maximum(now, LEAST_SHARE), np.maximum(then, LEAST_SHARE)
    return float(((now - then) * np.log(now / then)).sum())


def _ks(now: Floats, then: Floats) -> float:
    if not now.sum() or not then.sum():
        return 0.0
    return float(np.abs(np.cumsum(now) / now.sum() - np.cumsum(then) / then.sum()).max())


def missing_families(families: Mapping[str, Sequence[int]], vectors: Floats) -> dict[str, float]:
    """By family the share of the vectors in which it has no value at all."""
    if not len(vectors):
        return {}
    gone = np.isnan(vectors)
    return {family: float(gone[:, list(columns)].all(axis=1).mean()) for family, columns in families.items()}


# What labels say, as they arrive.


class Told(NamedTuple):
    """Decisions, and what was learned of them: a row each."""

    at_ms: Ints
    scores: Floats  # 0 to 1000; NaN: there was none
    blocked: Flags
    reviewed: Flags
    frauds: Flags  # as the labels say so far
    learned_at_ms: Ints  # 0: no label


class Quality(NamedTuple):
    """What labels say of decisions; None: nothing is known of it yet."""

    delay_p50_s: float | None
    delay_p90_s: float | None
    precision_block: float | None
    precision_review: float | None
    calibration: float | None  # frauds that are known, over those that the scores promised
    promised: float = 0.0  # frauds that the scores of those decisions promised


def quality(told: Told, now_ms: int) -> Quality:
    """The figures at a moment. Precision and calibration are of decisions old enough for nine in ten of the labels: others would look too good."""
    labelled = told.learned_at_ms > 0
    delays = np.maximum(told.learned_at_ms - told.at_ms, 0)[labelled] / 1000
    if not len(delays):
        return Quality(None, None, None, None, None)
    half, most = (float(q) for q in np.quantile(delays, (0.5, 0.9)))
    ripe = told.at_ms <= now_ms - most * 1000
    promised = float(np.nansum(told.scores[ripe]) / 1000)
    known = float(told.frauds[ripe & ~np.isnan(told.scores)].sum())
    return Quality(
        half,
        most,
        _share(told.frauds, ripe & told.blocked),
        _share(told.frauds, ripe & told.reviewed),
        known / promised if promised >= 1 else None,
        promised,
    )


def _share(frauds: Flags, rows: npt.NDArray[np.bool_]) -> float | None:
    return float(frauds[rows].mean()) if rows.any() else None


# Alarms.


class Limit(NamedTuple):
    """A reading above `raises` is an alarm, which clears once it is at or below `clears`; between the two nothing changes."""

    raises: float
    clears: float


PSI_MAX = 0.25
"""The field's own rule of thumb: above a quarter the population has shifted (Siddiqi, Credit Risk Scorecards, 2006)."""
LIMITS: Mapping[str, Limit] = {
    "psi": Limit(PSI_MAX, 0.20),
    "ks": Limit(0.25, 0.20),
    "missing": Limit(0.50, 0.25),
    "miscalibration": Limit(2.0, 1.5),  # frauds known against promised, either way
}
"""By kind of reading. An alarm's name is `kind:of`."""
BY_CHANCE = 3.0
"""Frauds that count on either side of the ratio, so that few are no alarm: none of four promised is one, which chance does in 2 of 100 (Poisson)."""


def readings(drifted: Mapping[str, Drift], missing: Mapping[str, float], seen: Quality) -> dict[str, float]:
    """What alarms look at, by `kind:of`."""
    found = {f"psi:{name}": each.psi for name, each in drifted.items()} | {f"ks:{name}": each.ks for name, each in drifted.items()}
    found |= {f"missing:{family}": share for family, share in missing.items()}
    if seen.calibration is not None:
        ratio = (seen.calibration * seen.promised + BY_CHANCE) / (seen.promised + BY_CHANCE)
        found["miscalibration:score"] = max(ratio, 1 / ratio)
    return found


def alarms(raised: frozenset[str], found: Mapping[str, float], limits: Mapping[str, Limit] = LIMITS) -> frozenset[str]:
    """The alarms that stand after these readings, of those that stood before. What was not read stays as it was."""
    limit_of = {name: limits[name.partition(":")[0]] for name in found}
    risen = {name for name, value in found.items() if value > limit_of[name].raises}
    fallen = {name for name, value in found.items() if value <= limit_of[name].clears}
    return (raised | risen) - fallen
