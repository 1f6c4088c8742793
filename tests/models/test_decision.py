"""Proves that the most severe voice stands, that whatever is not approved has its reasons, and that a missing member is a fact."""

from __future__ import annotations

import dataclasses
import functools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from features.catalogue import CATALOGUE
from models.answer import reason_category
from models.attribution import explained
from models.decision import REASONS_MAX, Verdict, judge, refused, sentence, top_reason_agrees, unjudged
from models.ensemble import Ensemble
from models.hold import Refusal
from models.policy import Policy, policy_from_toml
from models.registry import default_policy_text
from models.train import Artefact
from models.trees import calibrated, laid
from schemas.decision import Outcome, Reason, ReasonSource, Risk
from schemas.transaction import CheckResult, Transaction, TransactionKind
from tests.models.conftest import a_history
from tests.models.decisions import a_decision
from tests.world import examples_of, quick, trained_quickly

WIDTH = len(CATALOGUE.names)
POLICY = policy_from_toml(default_policy_text()).bound(CATALOGUE.names)
VECTORS, TRUTH, _ = a_history(400)


def a_transaction(kind: TransactionKind = TransactionKind.CARD_PRESENT, amount_minor: int = 1200) -> Transaction:
    return Transaction(transaction_id="T", kind=kind, at_ms=0, amount_minor=amount_minor, currency="EUR", account_id="A")


def quiet(**values: float) -> np.ndarray:
    """A vector like any honest one of the history, but for these features (double underscores are dots); no rule fires by itself."""
    vector = np.full(WIDTH, 0.1)
    vector[[CATALOGUE.index[f"behavioural.{name}"] for name in ("account_amount_over_limit", "txn_keystroke_dwell_ms")]] = np.nan
    for name, value in values.items():
        vector[CATALOGUE.index[name.replace("__", ".")]] = value
    return vector


def judged(ensemble: Ensemble, vector: np.ndarray, policy: Policy = POLICY, degradations: tuple[str, ...] = ()) -> Verdict:
    return judge(ensemble, policy, CATALOGUE.reason_of, a_transaction(), vector, degradations)


@pytest.fixture(scope="module")
def ensemble(artefact: Artefact) -> Ensemble:
    return artefact.ensemble


@functools.cache
def any_ensemble() -> Ensemble:
    """An ensemble for hypothesis, which takes no fixtures that it would have to reset."""
    return trained_quickly(examples_of(*a_history(1500)), quick(), POLICY, seed=7).ensemble


NUMBERS = st.one_of(st.just(math.nan), st.floats(0, 6), st.sampled_from([0.0, 1.0, 1e4, 1e6]))


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float64, WIDTH, elements=NUMBERS), st.sampled_from(list(TransactionKind)), st.sampled_from([(), ("memory_stale",)]))
def test_every_outcome_but_approve_has_one_to_four_specific_reasons(vector: np.ndarray, kind: TransactionKind, missing: tuple[str, ...]) -> None:
    verdict = judge(any_ensemble(), POLICY, CATALOGUE.reason_of, a_transaction(kind), vector, missing)
    codes = [r.code for r in verdict.reasons]
    assert len(codes) == 0 if verdict.outcome is Outcome.APPROVE else 1 <= len(codes) <= REASONS_MAX
    assert len(set(codes)) == len(codes)
    assert all(r.value is None or math.isfinite(r.value) for r in verdict.reasons)
    msgspec.json.encode(verdict)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float64, WIDTH, elements=NUMBERS))
def test_the_outcome_is_the_most_severe_of_the_score_and_every_rule(vector: np.ndarray) -> None:
    verdict = judged(any_ensemble(), vector)
    assert verdict.score is not None
    banded = Outcome.BLOCK if verdict.score > 800 else Outcome.REVIEW if verdict.score > 500 else Outcome.APPROVE
    asked = [banded, *(r.outcome for r in POLICY.fired(vector))]
    assert verdict.outcome is next(o for o in (Outcome.BLOCK, Outcome.REVIEW, Outcome.APPROVE) if o in asked)
    assert verdict.risk is (Risk.HIGH if verdict.score > 700 else Risk.MEDIUM if verdict.score > 400 else Risk.LOW)


def test_the_score_is_what_the_weighted_sum_of_the_members_means(ensemble: Ensemble) -> None:
    for vector in VECTORS[:50]:
        verdict = judged(ensemble, vector)
        assert [c.weight for c in verdict.contributions] == pytest.approx([0.4, 0.2, 0.15, 0.15, 0.1])
        total = sum(c.weight * (c.probability or 0) for c in verdict.contributions)
        assert verdict.score == round(1000 * calibrated(laid(ensemble.forest), np.array([total]))[0])


def test_a_pure_velocity_attack_is_blocked_by_a_rule(ensemble: Ensemble) -> None:
    verdict = judged(ensemble, quiet(velocity__card_count_1m=6, velocity__card_count_10m=6))
    assert verdict.outcome is Outcome.BLOCK
    assert [(r.code, r.source, r.value) for r in verdict.reasons][:2] == [
        ("many_card_payments_1m", ReasonSource.RULE, 6.0),
        ("many_card_payments_10m", ReasonSource.RULE, 6.0),
    ]
    assert not verdict.holds


def test_impossible_travel_needs_the_card_at_the_terminal(ensemble: Ensemble) -> None:
    far = {"geographic__card_speed_kmh": 5000.0, "geographic__card_distance_km": 4000.0}
    assert judged(ensemble, quiet(**far, behavioural__txn_not_present=0)).reasons[0].code == "impossible_travel"
    assert "impossible_travel" not in [r.code for r in judged(ensemble, quiet(**far, behavioural__txn_not_present=1)).reasons if r.source == "rule"]


def test_a_models_reason_names_a_value_that_is_unusual_in_the_suspicious_direction(ensemble: Ensemble) -> None:
    seen = 0
    for vector in VECTORS[TRUTH]:
        for reason in judged(ensemble, vector).reasons:
            if reason.source is ReasonSource.MODEL and reason.value is not None:
                column = CATALOGUE.index[reason.feature or ""]
                low = CATALOGUE.rows[column].suspicious == "low"
                assert (reason.value < ensemble.usual[column]) if low else (reason.value > ensemble.usual[column])
                seen += 1
    assert seen > 5


def test_rows_of_one_reason_speak_together_and_the_foremost_is_named(ensemble: Ensemble) -> None:
    reason_of = tuple("many" if name.startswith("velocity") else code for name, code in zip(CATALOGUE.names, CATALOGUE.reason_of, strict=True))
    for vector in VECTORS[TRUTH]:
        scored = ensemble.score(vector)
        moved = np.where(ensemble.telling(vector), np.maximum(ensemble.contributions(scored, vector), 0), 0)
        by_code = {code: sum(m for m, c in zip(moved, reason_of, strict=True) if c == code) for code in set(reason_of)}
        verdict = judge(ensemble, POLICY, reason_of, a_transaction(), vector)
        said = [r for r in verdict.reasons if r.source is ReasonSource.MODEL]
        ruled = {r.code for r in verdict.reasons} - {r.code for r in said}
        wanted = sorted((c for c in by_code if by_code[c] > 0 and c not in ruled), key=lambda c: -by_code[c])
        assert [r.code for r in said] == wanted[: len(said)] or not any(by_code.values())
        for reason in said:
            mine = [moved[c] for c, code in enumerate(reason_of) if code == reason.code]
            assert moved[CATALOGUE.index[reason.feature or ""]] == max(mine)


def test_a_forest_too_deep_is_explained_by_its_paths_and_how_often_that_is_right_is_known(ensemble: Ensemble) -> None:
    hasty = dataclasses.replace(ensemble)
    object.__setattr__(hasty, "known", explained(ensemble.forest, 0))
    assert top_reason_agrees(ensemble, CATALOGUE.reason_of, VECTORS[TRUTH]) == 1.0
    assert 0.3 < top_reason_agrees(hasty, CATALOGUE.reason_of, VECTORS[TRUTH]) <= 1.0


@pytest.mark.parametrize(
    ("feature", "value", "usual", "said"),
    [
        ("velocity.card_count_10m", 12.0, 0.3, "12 payments on the card within ten minutes; usual: 0.3"),
        ("velocity.card_merchants_1h", 7.0, 1.0, "7 different merchants within an hour; usual: 1"),
        ("velocity.card_amount_1h", 125_000.0, 0.0, "Spent with the card within an hour, declined attempts too, minor units: 125,000; usual: 0"),
        ("velocity.card_count_1m", 5.0, None, "5 payments on the card within a minute"),
        ("velocity.card_decline_ratio_24h", None, 0.0, "Share of the card's attempts of a day that were declined: missing; usual: 0"),
    ],
)
def test_a_reason_is_a_sentence_with_its_numbers(feature: str, value: float | None, usual: float | None, said: str) -> None:
    row = CATALOGUE.rows[CATALOGUE.index[feature]]
    assert sentence(Reason(code=row.reason, source=ReasonSource.MODEL, feature=feature, value=value, usual=usual), row) == said


def test_every_reason_of_a_feature_carries_its_value_and_what_is_usual(ensemble: Ensemble) -> None:
    vector = np.full(len(CATALOGUE.names), np.nan)
    vector[CATALOGUE.index["velocity.card_count_10m"]] = 11
    verdict = judge(ensemble, POLICY, CATALOGUE.reason_of, a_transaction(), vector)
    told = [reason for reason in verdict.reasons if reason.feature]
    assert told
    for reason in told:
        usual = ensemble.usual[CATALOGUE.index[str(reason.feature)]]
        assert reason.usual == (None if np.isnan(usual) else usual)


def test_a_debit_is_held_where_it_is_approved_or_reviewed_and_a_credit_never(ensemble: Ensemble) -> None:
    calm = judged(ensemble, quiet())
    assert (calm.outcome, calm.debits, calm.holds) == (Outcome.APPROVE, True, True)
    credit = judge(ensemble, POLICY, CATALOGUE.reason_of, a_transaction(TransactionKind.REFUND), quiet())
    assert (credit.debits, credit.holds) == (False, False)
    nothing = judge(ensemble, POLICY, CATALOGUE.reason_of, a_transaction(amount_minor=0), quiet())
    assert (nothing.debits, nothing.holds) == (True, False), "an account verification holds nothing"


def test_an_account_that_cannot_pay_is_declined_for_its_own_reason(ensemble: Ensemble) -> None:
    reviewed = judged(ensemble, quiet(velocity__card_count_10m=5))
    assert reviewed.outcome is Outcome.REVIEW
    declined = refused(reviewed, Refusal.INSUFFICIENT_FUNDS)
    assert (declined.outcome, declined.holds) == (Outcome.DECLINE, False)
    assert [(r.code, r.source) for r in declined.reasons] == [
        ("insufficient_funds", ReasonSource.ACCOUNT),
        ("many_card_payments_10m", ReasonSource.RULE),
    ]
    blocked = judged(ensemble, quiet(velocity__card_count_1m=9))
    assert refused(blocked, Refusal.ACCOUNT_FROZEN) is blocked


def test_a_member_without_a_voice_is_left_out_and_the_others_speak_for_it(ensemble: Ensemble) -> None:
    verdict = judged(ensemble.without("device"), quiet())
    whole = judged(ensemble, quiet())
    assert verdict.degradations == ("member_missing:device",)
    assert sum(c.weight for c in verdict.contributions) == pytest.approx(1)
    said = {c.member: c for c in verdict.contributions}
    assert (said["device"].weight, said["device"].probability) == (0.0, None)
    assert said["learned"].weight == pytest.approx(0.40 / 0.85)
    assert said["learned"].probability == {c.member: c.probability for c in whole.contributions}["learned"]
    assert verdict.outcome is Outcome.APPROVE


def test_a_broken_member_is_left_out_like_a_missing_one(ensemble: Ensemble) -> None:
    baselines = ensemble.forest.baselines.copy()
    baselines[0] = np.nan
    broken = dataclasses.replace(ensemble, forest=ensemble.forest._replace(baselines=baselines))
    verdict = judged(broken, VECTORS[0])
    assert verdict.degradations == ("member_missing:learned",)
    assert verdict.outcome is Outcome.REVIEW, "the policy does not approve without the learned member"
    assert verdict.reasons[-1] == msgspec.structs.replace(verdict.reasons[-1], code="member_missing", source=ReasonSource.DEGRADED)


def test_without_any_member_the_rules_still_speak_and_nothing_is_approved(ensemble: Ensemble) -> None:
    deaf = ensemble.without(*(m.name for m in ensemble.members))
    verdict = judged(deaf, quiet())
    assert (verdict.score, verdict.risk, verdict.outcome) == (None, None, Outcome.REVIEW)
    assert [r.code for r in verdict.reasons] == ["score_missing"]
    assert judged(deaf, quiet(velocity__card_count_1m=9)).outcome is Outcome.BLOCK


def test_what_was_missing_before_the_judgement_is_kept_and_judged(ensemble: Ensemble) -> None:
    verdict = judged(ensemble, quiet(), degradations=("profile_missing",))
    assert (verdict.outcome, verdict.degradations) == (Outcome.REVIEW, ("profile_missing",))
    assert [(r.code, r.source) for r in verdict.reasons] == [("profile_missing", ReasonSource.DEGRADED)]


ONE = CATALOGUE.names[0]
PLAIN_RULE = '{ feature = "%s", comparison = "at_least", value = %d, outcome = "%s", reason = "%s" %s }'


def stepping(*rules: tuple[int, str, str]) -> Policy:
    """A policy of these rules: from which value of the first feature on, the outcome, whether it steps up. No score asks for more than approval."""
    start, end = default_policy_text().index("rules = ["), default_policy_text().index("\n]\n") + 3
    rows = [PLAIN_RULE % (ONE, least, outcome, f"r{n}", ', action = "step_up"' if steps else "") for n, (least, outcome, steps) in enumerate(rules)]
    text = default_policy_text()[:start] + "rules = [" + ", ".join(rows) + "]\n" + default_policy_text()[end:]
    text = text.replace("review_above = 0.50", "review_above = 1").replace("block_above = 0.80", "block_above = 1")
    return policy_from_toml(text).bound(CATALOGUE.names)


ASKS = stepping((1, "review", "steps"), (2, "review", ""), (3, "block", "steps"), (4, "block", ""))
STEP_UPS = """
    # value, kind, 3-D Secure, retry -> outcome, action, first reason
    0 ecommerce -     -     -> approve -       -
    1 ecommerce -     -     -> decline step_up r0
    1 ecommerce no_match - -> decline step_up r0
    1 ecommerce partial - -> decline step_up r0
    1 ecommerce match -     -> approve -       -
    1 card_present - -      -> review  -       r0
    1 moto - -              -> review  -       r0
    1 recurring - -         -> review  -       r0
    1 ecommerce match retry -> approve -       -
    1 ecommerce no_match retry -> decline -    authentication_failed
    1 ecommerce - retry     -> decline -       authentication_missing
    1 ecommerce partial retry -> decline -     authentication_missing
    1 ecommerce unavailable retry -> decline - authentication_missing
    0 ecommerce - retry     -> decline -       authentication_missing
    2 ecommerce - -         -> decline step_up r0
    2 ecommerce match retry -> review  -       r1
    3 ecommerce - -         -> decline step_up r2
    3 ecommerce match retry -> review  -       r1
    3 card_present - -      -> block   -       r2
    3 ecommerce no_match retry -> decline -    authentication_failed
    4 ecommerce no_match retry -> block -      r3
    4 ecommerce - -         -> block   -       r3
    4 ecommerce match retry -> block   -       r3
"""


@pytest.mark.parametrize("row", [line.strip() for line in STEP_UPS.strip().splitlines() if "#" not in line])
def test_what_an_action_makes_of_a_rule(ensemble: Ensemble, row: str) -> None:
    asked, _, wanted = row.partition("->")
    value, kind, result, retry = asked.split()
    outcome, action, reason = wanted.split()
    txn = msgspec.structs.replace(
        a_transaction(TransactionKind(kind)),
        three_ds_result=None if result == "-" else CheckResult(result),
        step_up_of="S" if retry == "retry" else None,
    )
    verdict = judge(ensemble, ASKS, CATALOGUE.reason_of, txn, quiet(**{ONE.replace(".", "__"): int(value)}))
    assert (verdict.outcome, str(verdict.action or "-")) == (outcome, action)
    assert (verdict.reasons[0].code if verdict.reasons else "-") == reason
    assert verdict.holds == (verdict.outcome in (Outcome.APPROVE, Outcome.REVIEW))


def test_an_account_that_cannot_pay_and_a_part_whose_loss_declines_need_nobody_to_authenticate(ensemble: Ensemble) -> None:
    txn, vector = a_transaction(TransactionKind.ECOMMERCE), quiet(**{ONE.replace(".", "__"): 1})
    verdict = refused(judge(ensemble, ASKS, CATALOGUE.reason_of, txn, vector), Refusal.ACCOUNT_FROZEN)
    assert (verdict.outcome, verdict.action, verdict.reasons[0].code) == (Outcome.DECLINE, None, "account_frozen")
    strict = dataclasses.replace(ASKS, degraded={"otherwise": Outcome.DECLINE})
    verdict = judge(ensemble, strict, CATALOGUE.reason_of, txn, vector, ("memory_missing:card",))
    assert (verdict.outcome, verdict.action) == (Outcome.DECLINE, None)


def test_a_retry_without_authentication_is_declined_where_nothing_can_be_judged() -> None:
    retry = msgspec.structs.replace(a_transaction(TransactionKind.ECOMMERCE), step_up_of="S")
    assert unjudged(POLICY, retry, ()).outcome is Outcome.DECLINE
    assert not unjudged(POLICY, retry, ()).holds
    assert unjudged(POLICY, msgspec.structs.replace(retry, three_ds_result=CheckResult.MATCH), ()).outcome is Outcome.REVIEW


@pytest.mark.parametrize(
    ("sources", "category"),
    [
        (["rule"], "account"),
        (["account"], "account"),
        (["account", "authentication"], "account"),
        (["authentication", "rule"], "authentication"),
        (["rule", "degraded"], "unavailable"),
        (["degraded"], "unavailable"),
    ],
)
def test_the_category_of_a_decline_is_that_of_the_reason_that_declines(sources: list[str], category: str) -> None:
    reasons = tuple(Reason(code=f"r{number}", source=ReasonSource(source)) for number, source in enumerate(sources))
    declined = msgspec.structs.replace(a_decision("D", TransactionKind.ECOMMERCE, 100, outcome=Outcome.DECLINE), reasons=reasons)
    assert reason_category(declined) == category
