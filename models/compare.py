"""Challengers and shadows beside those that decided: on the same payments, and card by card where a challenger decided. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from models.backtest import BLOCK, DAY_MS, DECLINE, REVIEW, Effect, Overlap, Payments, alerts, effect, overlap, span_days
from models.breaker import interval
from models.gates import against
from models.history import Flags, Floats, Ints

Z = 1.96
"""Of an interval of 95 %."""


class Beside(NamedTuple):
    """What one would have done, beside what was done, on the payments of which it gave its opinion."""

    payments: int
    frauds: int
    told: Effect
    would: Effect
    overlap: Overlap
    ranking: Mapping[str, float]  # average precision more than that of those who decided, with its interval; empty without frauds


class Share(NamedTuple):
    """A share of decisions, and between which it lies in 95 of 100."""

    value: float
    low: float
    high: float


class Arm(NamedTuple):
    """What one decided: its own cards, so that its outcomes are those of customers, and the account's refusals among them."""

    decisions: int
    reviewed: Share
    blocked: Share
    frauds: int
    frauds_missed: int


def beside(payments: Payments, would: Ints, scores: Floats) -> Beside:
    """One's opinions of these payments: severities and scores (0 to 1000). An account that could not pay then cannot pay now."""
    outcomes: Ints = np.where((payments.decided == DECLINE) & ~payments.unasked & (would < BLOCK), DECLINE, would)
    days = span_days(payments.at_ms)
    both = ~(np.isnan(scores) | np.isnan(payments.scores))
    ranking = against(scores[both] / 1000, payments.scores[both] / 1000, payments.frauds[both], payments.at_ms[both] // DAY_MS, seed=1)
    return Beside(
        payments=len(would),
        frauds=int(payments.frauds.sum()),
        told=effect(payments.decided, payments, days),
        would=effect(outcomes, payments, days),
        overlap=overlap(alerts(outcomes), alerts(payments.decided), payments.frauds),
        ranking=ranking,
    )


def arm(decided: Ints, frauds: Flags) -> Arm:
    """The sums of what one decided (severities), with what is known of it now."""
    count = len(decided)
    reviewed, blocked = (_share(int((decided == severity).sum()), count) for severity in (REVIEW, BLOCK))
    return Arm(count, reviewed, blocked, int(frauds.sum()), int((frauds & (decided < REVIEW)).sum()))


def _share(hits: int, count: int) -> Share:
    return Share(hits / count, *interval(hits, count, Z)) if count else Share(0.0, 0.0, 1.0)
