"""Judgement: score, rules and what was missing become one outcome with its reasons; the most severe stands. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from features.row import Feature, Fold
from models.attribution import Explained, explained
from models.ensemble import Ensemble, Scored
from models.hold import Refusal
from models.policy import SEVERITY, Authentication, Policy, Rule, asked_by, authentication_of
from models.trees import Floats
from schemas.decision import Action, Contribution, Decision, Outcome, Reason, ReasonSource, Risk
from schemas.errors import InvalidRecord
from schemas.transaction import CREDITS, CheckResult, Transaction

REASONS_MAX = 4
"""Regulation B, comment 9(b)(2)-1: more than four reasons are not likely to help."""
TOP_REASON_AGREES_MIN = 0.9
"""Where a member is too deep to be attributed exactly: the share of blocks whose first reason must be the exact one."""


class Verdict(msgspec.Struct, frozen=True):
    """What follows from the vector, before the account is asked for the money."""

    outcome: Outcome
    reasons: tuple[Reason, ...]
    score: int | None
    risk: Risk | None
    contributions: tuple[Contribution, ...]
    degradations: tuple[str, ...]
    debits: bool  # the transaction takes money from the account
    holds: bool  # its amount is to be held now
    action: Action | None = None
    room_minor: int | None = None  # a test card's: no more than this may be held, as if the account had no more


class Missing(NamedTuple):
    """What was missing of many decisions: pairs of a row and a kind of what was missing, in no order."""

    rows: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    names: tuple[str, ...]  # of the kinds


NOTHING_MISSING = Missing(np.empty(0, np.int64), np.empty(0, np.int64), ())


def judge(
    ensemble: Ensemble, policy: Policy, reason_of: Sequence[str], txn: Transaction, vector: Floats, degradations: tuple[str, ...] = ()
) -> Verdict:
    """`judge_all` of one."""
    return judge_all(ensemble, policy, reason_of, (txn,), vector[np.newaxis], (degradations,))[0]


def judge_all(
    ensemble: Ensemble,
    policy: Policy,
    reason_of: Sequence[str],
    txns: Sequence[Transaction],
    vectors: Floats,
    degradations: Sequence[tuple[str, ...]],
) -> list[Verdict]:
    """The verdict on each transaction.

    `policy` is bound to the catalogue that the rows of `vectors` (float64[transactions, columns], NaN is missing) follow; `reason_of`
    is the catalogue's reason code by column; `degradations` are what was missing so far of each. Thresholds are compared with the
    score as it is shown (0 to 1000), so that the record alone explains the outcome.
    """
    judged = zip(txns, vectors, degradations, ensemble.score_all(vectors), policy.fired_all(vectors), strict=True)
    return [_judged(ensemble, policy, reason_of, *one) for one in judged]


def _judged(
    ensemble: Ensemble,
    policy: Policy,
    reason_of: Sequence[str],
    txn: Transaction,
    vector: Floats,
    degradations: tuple[str, ...],
    scored: Scored,
    fired: Sequence[Rule],
) -> Verdict:
    """One verdict: of the score's band, the rules that fired and what was missing, the most severe."""
    authentication = authentication_of(txn)
    score, outcome, degradations = _weighed(ensemble, policy, scored, fired, degradations, authentication)
    reasons: tuple[Reason, ...] = ()
    if outcome is not Outcome.APPROVE:
        unmet = [rule for rule in fired if asked_by(rule, authentication) is not Outcome.APPROVE]
        unmet.sort(key=lambda rule: -SEVERITY[asked_by(rule, authentication)])
        told = _reasons(ensemble, policy, reason_of, vector, scored, _band(policy, score), unmet, degradations)
        first = unauthenticated(txn) if outcome is Outcome.DECLINE and authentication is Authentication.FAILED else ()
        reasons = _distinct(chain(first, told))
    debits = txn.kind not in CREDITS
    return Verdict(
        outcome,
        reasons,
        score,
        _risk(policy, score),
        _contributions(ensemble, scored),
        degradations,
        debits,
        debits and outcome in (Outcome.APPROVE, Outcome.REVIEW) and txn.own_amount_minor > 0,
        _action(policy, outcome, fired, degradations, authentication),
    )


def _action(policy: Policy, outcome: Outcome, fired: Sequence[Rule], degradations: Sequence[str], authentication: Authentication) -> Action | None:
    """Asks for authentication where that alone stands in the way: what is declined or blocked for more is not helped by it."""
    if outcome is not Outcome.DECLINE or authentication is not Authentication.POSSIBLE:
        return None
    if Outcome.DECLINE in [policy.outcome_without(each) for each in degradations]:
        return None
    return next((rule.action for rule in fired if rule.action is not None), None)


def unauthenticated(txn: Transaction) -> tuple[Reason, ...]:
    """Why a retry is declined that was to be authenticated and is not: it failed, or there was none."""
    code = "authentication_failed" if txn.three_ds_result is CheckResult.NO_MATCH else "authentication_missing"
    return (Reason(code=code, source=ReasonSource.AUTHENTICATION),)


class Weighed(NamedTuple):
    """What the score, the rules and what was missing lead to, before reasons are asked for."""

    score: int | None
    outcome: Outcome
    degradations: tuple[str, ...]


def weighed_all(
    ensemble: Ensemble, policy: Policy, vectors: Floats, degradations: Sequence[tuple[str, ...]], authentications: Sequence[Authentication]
) -> list[Weighed]:
    """Score and outcome of `judge_all` without its reasons, which cost more than all else: for those who do not decide."""
    said = zip(ensemble.score_all(vectors), policy.fired_all(vectors), degradations, authentications, strict=True)
    return [_weighed(ensemble, policy, *one) for one in said]


def _weighed(
    ensemble: Ensemble, policy: Policy, scored: Scored, fired: Sequence[Rule], degradations: tuple[str, ...], authentication: Authentication
) -> Weighed:
    score = None if scored.score is None else round(scored.score * 1000)
    if score is None or None in scored.probabilities:
        degradations = (*degradations, *_missing(ensemble, scored))
    outcome = _band(policy, score)
    if fired or degradations:
        asked = (outcome, *(asked_by(r, authentication) for r in fired), *(policy.outcome_without(d) for d in degradations))
        outcome = max(asked, key=_severity)
    if authentication is Authentication.FAILED:
        outcome = max((outcome, Outcome.DECLINE), key=_severity)
    return Weighed(score, outcome, degradations)


def severities(
    policy: Policy,
    vectors: Floats,
    scores: Floats,
    missing: Missing = NOTHING_MISSING,
    authentications: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """int64[rows]: the severity of the outcome that `judge_all` gives, from what a decision records of it.

    `scores` are as shown (0 to 1000, NaN is none) and `missing` names all that a decision records as missing; `policy` is bound to the columns
    of `vectors`, which need be those alone that its rules read. `authentications` (int64[rows]) are numbers of Authentication: without them
    nobody could have been asked.
    """
    banded = np.where(scores > policy.block_above, SEVERITY[Outcome.BLOCK], np.where(scores > policy.review_above, SEVERITY[Outcome.REVIEW], 0))
    most = np.maximum(banded, policy.severest_all(vectors, authentications))
    without = np.array([SEVERITY[policy.outcome_without(name)] for name in missing.names], dtype=np.int64)
    np.maximum.at(most, missing.rows, without[missing.kinds])
    if authentications is not None:
        np.maximum(most, SEVERITY[Outcome.DECLINE], out=most, where=authentications == Authentication.FAILED)
    return most


def refused(verdict: Verdict, refusal: Refusal) -> Verdict:
    """The verdict where the account cannot pay: a decline with the account's own reason first, unless it was a block anyway."""
    if verdict.outcome is Outcome.BLOCK:
        return verdict
    reason = Reason(code=str(refusal), source=ReasonSource.ACCOUNT)
    return msgspec.structs.replace(verdict, outcome=Outcome.DECLINE, reasons=_distinct((reason, *verdict.reasons)), holds=False, action=None)


def unjudged(policy: Policy, txn: Transaction, degradations: tuple[str, ...]) -> Verdict:
    """The verdict where neither model nor rules can be asked, because they are broken: what the policy says of a missing score."""
    missing = (*degradations, "score_missing")
    outcome = max((policy.outcome_without(each) for each in missing), key=_severity)
    told = () if outcome is Outcome.APPROVE else (Reason(code="score_missing", source=ReasonSource.DEGRADED),)
    if authentication_of(txn) is Authentication.FAILED:
        outcome, told = max((outcome, Outcome.DECLINE), key=_severity), (*unauthenticated(txn), *told)
    debits = txn.kind not in CREDITS
    holds = debits and outcome in (Outcome.APPROVE, Outcome.REVIEW) and txn.own_amount_minor > 0
    return Verdict(outcome, told, None, None, (), missing, debits, holds)


_SAME = ("account_id", "card_token", "kind", "amount_minor", "currency", "billing_amount_minor", "billing_currency", "merchant_id")
"""What a payment and its retry have in common (dynamic linking: Delegated Regulation (EU) 2018/389, article 5, links amount and payee)."""


_RAISED = ("card_token", "merchant_id", "currency")


def not_retried(txn: Transaction, original: Decision | None) -> InvalidRecord | None:
    """Why a transaction is not the retry of the one that it names in `step_up_of`; None if it is."""
    if original is None or original.action is not Action.STEP_UP:
        return InvalidRecord("step_up_of", "names no payment that was to be authenticated", code="step_up_unknown")
    for field in _SAME:
        if getattr(txn, field) != getattr(original.transaction, field):
            return InvalidRecord(field, f"is not that of {original.transaction_id}, which it is said to be the retry of", code="step_up_mismatch")
    return None


class Raised(NamedTuple):
    """What an authorization that is to be raised has in common with its increments."""

    transaction_id: str
    card_token: str | None
    merchant_id: str | None
    currency: str


def not_raised(txn: Transaction, original: Raised) -> InvalidRecord | None:
    """Why a transaction cannot raise the hold of the original: it takes money, by the same card, for the same merchant, in the hold's currency."""
    if txn.kind in CREDITS:
        return InvalidRecord("kind", "brings money in and raises no hold", code="increment_mismatch")
    for field, own, its in zip(_RAISED, (txn.card_token, txn.merchant_id, txn.own_currency), original[1:], strict=True):
        if own != its:
            return InvalidRecord(field, f"is not that of {original.transaction_id}, which it is to raise", code="increment_mismatch")
    return None


def _severity(outcome: Outcome) -> int:
    return SEVERITY[outcome]


def _missing(ensemble: Ensemble, scored: Scored) -> Iterator[str]:
    """Names of the degradations of a score that not all members made."""
    if scored.total is None:
        yield "score_missing"
        return
    for name in scored.missing(ensemble.members):
        yield f"member_missing:{name}"


def _band(policy: Policy, score: int | None) -> Outcome:
    """What the score alone asks for."""
    if score is None or score <= policy.review_above:
        return Outcome.APPROVE
    return Outcome.BLOCK if score > policy.block_above else Outcome.REVIEW


def _risk(policy: Policy, score: int | None) -> Risk | None:
    if score is None:
        return None
    if score > policy.high_above:
        return Risk.HIGH
    return Risk.MEDIUM if score > policy.medium_above else Risk.LOW


def _contributions(ensemble: Ensemble, scored: Scored) -> tuple[Contribution, ...]:
    """What each member said, in the ensemble's order."""
    said = zip(ensemble.members, scored.weights, scored.probabilities, strict=True)
    return tuple([Contribution(member=m.name, weight=w, probability=p) for m, w, p in said])


def _reasons(
    ensemble: Ensemble,
    policy: Policy,
    reason_of: Sequence[str],
    vector: Floats,
    scored: Scored,
    banded: Outcome,
    fired: Sequence[Rule],
    degradations: Sequence[str],
) -> Iterator[Reason]:
    """Reasons, most severe first: of the rules, of the score if it asks for more than approval, of what was missing."""
    for rule in fired:
        feature = rule.conditions[0].feature
        column = ensemble.names.index(feature)
        usual = _value(ensemble.usual[column])
        yield Reason(code=rule.reason, source=ReasonSource.RULE, feature=feature, value=_value(vector[column]), usual=usual)
    if banded is not Outcome.APPROVE:
        yield from _of_the_model(ensemble, reason_of, vector, scored)
    for missing in degradations:
        if policy.outcome_without(missing) is not Outcome.APPROVE:
            yield Reason(code=missing.partition(":")[0], source=ReasonSource.DEGRADED)


def _of_the_model(ensemble: Ensemble, reason_of: Sequence[str], vector: Floats, scored: Scored, known: Explained | None = None) -> Iterator[Reason]:
    """The reasons that raised the score most, each the sum of its columns and named for the one that did most.

    A value on the honest side of the usual one, or a missing one, would make a reason that reads as an error ("many
    payments": none): such a column is named only if nothing better can be said, and then alone.
    """
    moved = ensemble.contributions(scored, vector, known)
    telling = np.flatnonzero((moved > 0) & ensemble.telling(vector))
    if not len(telling):
        telling = np.array([np.argmax(moved)])
    telling = telling[np.argsort(-moved[telling], kind="stable")]
    raised: dict[str, float] = {}
    foremost: dict[str, int] = {}
    for column, up in zip(telling.tolist(), moved[telling].tolist(), strict=True):
        code = reason_of[column]
        raised[code] = raised.get(code, 0.0) + up
        foremost.setdefault(code, column)
    for code in sorted(raised, key=lambda c: -raised[c]):
        column = foremost[code]
        value, usual = _value(vector[column]), _value(ensemble.usual[column])
        yield Reason(code=code, source=ReasonSource.MODEL, feature=ensemble.names[column], value=value, usual=usual)


def top_reason_agrees(ensemble: Ensemble, reason_of: Sequence[str], vectors: Floats) -> float:
    """The share of these vectors (blocks) whose first reason of the score is the one that exact attribution of every member gives."""
    if ensemble.known.exact.all() or not len(vectors):
        return 1.0
    exact = explained(ensemble.forest, np.inf)
    agreed = 0
    for vector in vectors:
        scored = ensemble.score(vector)
        first, wanted = (next(_of_the_model(ensemble, reason_of, vector, scored, known)) for known in (None, exact))
        agreed += first.code == wanted.code
    return agreed / len(vectors)


def sentence(reason: Reason, row: Feature) -> str:
    """The reason in an analyst's words: "12 payments on the card within ten minutes; usual: 0.3". `row` is its feature's."""
    what = row.why.partition(":")[0]
    value = "missing" if reason.value is None else _said(reason.value)
    counted = isinstance(row.shape.expression, Fold) and row.shape.expression.op in ("count", "distinct")
    said = f"{value} {what[0].lower()}{what[1:]}" if counted else f"{what}: {value}"
    return said if reason.usual is None else f"{said}; usual: {_said(reason.usual)}"


def _said(value: float) -> str:
    """A number as people write it."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2g}"


def _value(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _distinct(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """The first four with different codes."""
    first: dict[str, Reason] = {}
    for reason in reasons:
        first.setdefault(reason.code, reason)
        if len(first) == REASONS_MAX:
            break
    return tuple(first.values())
