"""What a member says, and what it means: curves from raw outputs to the share of fraud, and weights that fit what turned out. Pure."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from models.compiled import Curve
from models.history import Flags, Floats

EDGE = 1e-6
"""Outputs nearer to 0 or 1 than this count as this near."""
ODDS = np.linspace(-13.75, 13.75, 221)
GRID = 1 / (1 + np.exp(-ODDS))
"""Outputs, and their log-odds, at which a curve has its points; between them lines are straight."""
STRENGTH = 1.0
"""How strongly slopes are drawn towards 1 and the shift towards 0: as much as one row would. No slope is infinite where classes part cleanly."""
ROUNDS = 50
STILL = 1e-9
"""A step of a fit that is no longer than this ends it."""
NEAR = 1e-9
"""Weights whose mean log likelihood is this near to the greatest are the ones sought."""
SUREST = 13.0
"""No curve goes beyond these log-odds: nobody has seen payments enough to be surer."""


def calibration(raw: Floats, truth: Flags) -> Curve:
    """The curve from raw outputs (0 to 1) to the share of fraud, strictly rising, so that no order is lost.

    Beta calibration: logit p = a ln s - b ln(1 - s) + c with a, b not negative (M. Kull, T. Silva Filho, P. Flach 2017).
    """
    columns = _logs(raw)
    kept = [0, 1]
    a, b, c = _logistic(columns, truth, kept)
    if min(a, b) < 0:
        kept = [1] if a < b else [0]
        a, b, c = _logistic(columns, truth, kept)
    if max(a, b) <= 0:  # it says the opposite of the truth: of slopes that are not negative none is likelier than the share of fraud alone
        a, b, c = _logistic(columns, truth, [])
    logs = _logs(GRID)
    height = 1 / (1 + np.exp(-np.clip(a * logs[:, 0] + b * logs[:, 1] + c, -SUREST, SUREST) - 0.01 * ODDS))  # level nowhere
    ends = 0.9 * height[0], 1 - 0.9 * (1 - height[-1])  # beyond the grid it still rises, a little
    return Curve(np.concatenate(([0.0], GRID, [1.0])), np.concatenate((ends[:1], height, ends[1:])))


def _logs(raw: Floats) -> Floats:
    inner = np.clip(raw, EDGE, 1 - EDGE)
    return np.column_stack([np.log(inner), -np.log1p(-inner)])


def _logistic(columns: Floats, truth: Flags, kept: list[int]) -> tuple[float, float, float]:
    """Slopes and shift of greatest likelihood; the slope of a column that is not kept is 0.

    Newton's method, each step halved until it leads down: whole steps go round in circles where outputs hardly differ.
    """
    design = np.column_stack([columns[:, kept], np.ones(len(truth))])
    usual = np.append(np.full(len(kept), 1.0), 0.0)
    found, height = usual, _unlikely(design, truth, usual, usual)
    for _ in range(ROUNDS):
        said = 1 / (1 + np.exp(-np.clip(design @ found, -30.0, 30.0)))
        slope = design.T @ (said - truth) + STRENGTH * (found - usual)
        bend = (design * (said * (1 - said))[:, None]).T @ design + STRENGTH * np.eye(len(found))
        step = np.linalg.solve(bend, slope)
        while (lower := _unlikely(design, truth, found - step, usual)) > height and np.abs(step).max() > STILL:
            step = step / 2
        found, height = found - step, lower
        if np.abs(step).max() <= STILL:
            break
    slopes = dict(zip(kept, found[:-1].tolist(), strict=True))
    return slopes.get(0, 0.0), slopes.get(1, 0.0), float(found[-1])


def _unlikely(design: Floats, truth: Flags, found: Floats, usual: Floats) -> float:
    """What the fit makes least: the negative log likelihood, and how far slopes and shift are from the usual ones."""
    odds = design @ found
    return float(np.logaddexp(0, odds).sum() - odds[truth].sum() + STRENGTH / 2 * ((found - usual) ** 2).sum())


def fitted_weights(said: Floats, truth: Flags) -> Floats:
    """float64[members], not negative, sum 1: the weights with which the members' probabilities (float64[rows, members]) fit the truth best.

    The greatest likelihood of a mixture, by Newton's steps over weights that are not negative (Y. Kim, P. Carbonetto, M. Stephens, M. Anitescu
    2020, "A fast algorithm for maximum likelihood estimation of mixture proportions using sequential quadratic programming"): the sum of the
    weights is taken off the mean log likelihood, whose maximum then has the sum 1 by itself.
    """
    likely = np.clip(np.where(truth[:, None], said, 1 - said), 1e-12, None)
    weights: Floats = np.full(said.shape[1], 1 / said.shape[1])
    mixture = likely @ weights
    for _ in range(ROUNDS):
        shares = likely / mixture[:, None]
        mean = shares.mean(axis=0)
        if mean.max() - 1 < NEAR:  # so much log likelihood a row is missing at most
            break
        bend = shares.T @ shares / len(truth)
        root = np.linalg.cholesky(bend + EDGE * np.trace(bend) * np.eye(len(weights)))
        step = nnls(root.T, np.linalg.solve(root, 2 * mean - 1))[0] - weights
        length, along = 1.0, likely @ step
        while np.log(np.maximum(mixture + length * along, 1e-300)).mean() - length * step.sum() < np.log(mixture).mean() and length > EDGE:
            length /= 2
        weights, mixture = weights + length * step, mixture + length * along
    sharing: Floats = weights / weights.sum()
    return sharing
