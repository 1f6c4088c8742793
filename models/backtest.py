"""A candidate policy judged on payments that were decided: what it would have caught, whom it would have hurt, what it would have cost. Pure.

The past stays as it was: what a payment's features say of earlier ones does not change because the candidate would have stopped those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from models.decision import Missing, severities
from models.history import Flags, Floats, Ints
from models.policy import SEVERITY, Policy
from schemas.decision import Outcome

DAY_MS = 86_400_000
REVIEW, DECLINE, BLOCK = (SEVERITY[outcome] for outcome in (Outcome.REVIEW, Outcome.DECLINE, Outcome.BLOCK))


@dataclass(frozen=True, eq=False)
class Payments:
    """Decided payments, a row each: what a policy reads of them, and what is known of them now."""

    names: tuple[str, ...]  # of the columns of `vectors`: at least those that the policies read
    vectors: Floats  # [rows, names]; NaN is missing
    scores: Floats  # 0 to 1000 as shown; NaN: there was none
    missing: Missing
    decided: Ints  # the severity of the outcome that was told
    at_ms: Ints
    amounts_minor: Ints  # in the account's currency
    currencies: Ints  # a number for each currency
    currency_names: tuple[str, ...]
    frauds: Flags  # as the labels say; of whom nobody complained, that one is honest
    authentications: Ints  # numbers of Authentication
    unasked: Flags  # of what was declined, what no account declined: authentication was missing, or the stand-in answered


class Money(NamedTuple):
    """Minor units of one currency."""

    fraud_blocked: int
    fraud_reviewed: int
    fraud_declined: int
    fraud_missed: int
    honest_blocked: int
    honest_reviewed: int


class Effect(NamedTuple):
    """What one policy does to the payments. An alert is a review or a block; a decline is the account's and no policy's."""

    outcomes: dict[str, int]
    fraud_blocked: int
    fraud_reviewed: int
    fraud_declined: int
    fraud_missed: int
    honest_blocked: int
    honest_reviewed: int
    alerts_per_day: float
    money: dict[str, Money]  # by currency


class Overlap(NamedTuple):
    """The alerts of two policies beside each other, and how many of each part were fraud."""

    both: int
    only_candidate: int
    only_live: int
    both_fraud: int
    only_candidate_fraud: int
    only_live_fraud: int


class Backtest(NamedTuple):
    """The candidate beside the policy that is live, on the same payments, scores and missing parts."""

    payments: int
    frauds: int
    days: float
    live: Effect
    candidate: Effect
    overlap: Overlap
    as_told: float  # the share of payments to which the live policy gives the outcome that was told then


def read_by(*policies: Policy) -> tuple[str, ...]:
    """The features that the rules of these policies read."""
    return tuple(dict.fromkeys(c.feature for policy in policies for rule in policy.rules for c in rule.conditions))


def replayed(policy: Policy, payments: Payments) -> Ints:
    """int64[rows]: the severity of each payment's outcome under a policy. An account that could not pay then cannot pay now."""
    judged = severities(policy.bound(payments.names), payments.vectors, payments.scores, payments.missing, payments.authentications)
    outcomes: Ints = np.where((payments.decided == DECLINE) & ~payments.unasked & (judged < BLOCK), DECLINE, judged)
    return outcomes


def backtest(candidate: Policy, live: Policy, payments: Payments) -> Backtest:
    """What the candidate would have done, beside what the live policy would have done on the same."""
    days = span_days(payments.at_ms)
    would, does = replayed(candidate, payments), replayed(live, payments)
    return Backtest(
        payments=len(would),
        frauds=int(payments.frauds.sum()),
        days=days,
        live=effect(does, payments, days),
        candidate=effect(would, payments, days),
        overlap=overlap(alerts(would), alerts(does), payments.frauds),
        as_told=float((does == payments.decided).mean()) if len(does) else 1.0,
    )


def span_days(at_ms: Ints) -> float:
    """Days from the first payment to the last, at least one: a rate of less than a day is no rate a day."""
    return max(1.0, float(np.ptp(at_ms)) / DAY_MS) if len(at_ms) else 1.0


def alerts(severity: Ints) -> Flags:
    """Which payments somebody has to look at."""
    looked_at: Flags = (severity == REVIEW) | (severity == BLOCK)
    return looked_at


def effect(severity: Ints, payments: Payments, days: float) -> Effect:
    """The counts and the money of outcomes that were given to payments."""
    parts = _parts(severity, payments.frauds)
    sums = {name: _by_currency(payments, rows) for name, rows in parts.items()}
    money = {currency: Money(**{name: int(sums[name][number]) for name in Money._fields}) for number, currency in enumerate(payments.currency_names)}
    counts = np.bincount(severity, minlength=len(SEVERITY))
    return Effect(
        outcomes={str(outcome): int(counts[place]) for outcome, place in SEVERITY.items()},
        alerts_per_day=float(alerts(severity).sum()) / days,
        money=money,
        **{name: int(rows.sum()) for name, rows in parts.items()},
    )


def _parts(severity: Ints, frauds: Flags) -> dict[str, Flags]:
    """Which rows are in each of the six parts that counts and money are told of. Fraud that the account could not pay was not missed."""
    return {
        "fraud_blocked": frauds & (severity == BLOCK),
        "fraud_reviewed": frauds & (severity == REVIEW),
        "fraud_declined": frauds & (severity == DECLINE),
        "fraud_missed": frauds & (severity < REVIEW),
        "honest_blocked": ~frauds & (severity == BLOCK),
        "honest_reviewed": ~frauds & (severity == REVIEW),
    }


def _by_currency(payments: Payments, rows: Flags) -> Ints:
    """Exact sums: int64, never through a float."""
    sums = np.zeros(len(payments.currency_names), np.int64)
    np.add.at(sums, payments.currencies[rows], payments.amounts_minor[rows])
    return sums


def overlap(candidate: Flags, live: Flags, frauds: Flags) -> Overlap:
    """How far two policies look at the same payments."""
    parts = (candidate & live, candidate & ~live, live & ~candidate)
    return Overlap(*(int(part.sum()) for part in parts), *(int((part & frauds).sum()) for part in parts))
