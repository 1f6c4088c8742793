"""Proves that the policy file is read row by row, that its mistakes are named, and that its rules fire as they read."""

from __future__ import annotations

import math
from decimal import Decimal

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalogue import CATALOGUE
from models.policy import Comparison, Policy, approved_in_part, hold_terms, least_minor, policy_from_toml
from models.registry import default_policy_text
from schemas.account import AccountStatus
from schemas.decision import Outcome, Reason
from schemas.errors import SettingsError
from schemas.money import EXPONENTS
from schemas.transaction import Transaction, TransactionKind
from streams.policy import lines

DAY_MS = 86_400_000
TEXT = default_policy_text()


def with_rules(*rows: str) -> str:
    """The default policy's text with other rules."""
    start, end = TEXT.index("rules = ["), TEXT.index("\n]\n") + 3
    return TEXT[:start] + "rules = [" + ",\n".join(rows) + "]\n" + TEXT[end:]


def row(feature: str = "a", comparison: str = "at_least", value: float = 3, outcome: str = "review", more: str = "") -> str:
    return f'{{ feature = "{feature}", comparison = "{comparison}", value = {value}, outcome = "{outcome}", reason = "r_{feature}" {more} }}'


def test_the_default_policy_has_the_numbers_of_the_field() -> None:
    policy = policy_from_toml(TEXT)
    assert (policy.review_above, policy.block_above, policy.medium_above, policy.high_above) == (500, 800, 400, 700)
    assert policy.policy_id.startswith("pol_")


def test_the_default_policys_rules_read_features_of_the_catalogue() -> None:
    assert policy_from_toml(TEXT).bound(CATALOGUE.names).plan is not None


def test_a_rule_of_a_feature_that_no_row_computes_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"rules\[2\].*'zeal'"):
        policy_from_toml(with_rules(row("a"), row("zeal"))).bound(["a"])


def test_other_numbers_are_another_policy() -> None:
    assert policy_from_toml(TEXT.replace("review_above = 0.50", "review_above = 0.51")).policy_id != policy_from_toml(TEXT).policy_id


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("review_above = 0.50", "review_abov = 0.50", "policy.score.review_above"),
        ("review_above = 0.50", "review_above = 50", "policy.score.review_above"),
        ("review_above = 0.50", "review_above = 0.5001", "policy.score.review_above"),
        ("review_above = 0.50", "review_above = true", "policy.score.review_above"),
        ("review_above = 0.50", "review_above = 0.50\nextra = 1", "policy.score.extra"),
        ("review_above = 0.50", "review_above = 0.9", "review_above must not exceed"),
        ("recurring = 5", "recuring = 5", "policy.hold.days_by_kind.recuring"),
        ('"4411" = 30', '"441" = 30', "policy.hold.days_by_mcc.441"),
        ('"3351-3441" = 30', '"3441-3351" = 30', "policy.hold.days_by_mcc.3441-3351"),
        ('"4121" = 20', '"4121" = 12.5', "policy.hold.tolerance_percent_by_mcc.4121"),
        ("structuring_count_min = 3", "structuring_count_min = 2.5", "policy.sar.structuring_count_min"),
        ('"6010-6012"', '"6012-6010"', "policy.partial_approval.never_mcc"),
        ('"51-55"', '"55-51"', "policy.schemes.mastercard: '55-51'"),
        ('"51-55"', '"\uff15\uff11-\uff15\uff15"', "policy.schemes.mastercard: '"),
        ('scheme = "mastercard"', 'scheme = "mastercart"', r"policy.hold.days_by_scheme\[1\].scheme: 'mastercart'"),
        ("ZAR = 0.055", "ZZZ = 1", "policy.sar.usd_per_unit.ZZZ"),
        ('"ecommerce", "moto"]', '"ecommerce", "refund"]', "policy.partial_approval.kinds: 'refund'"),
        ('"4829", # money', '"482", # money', "policy.partial_approval.never_mcc"),
        ('refused_by_status = ["closed"]', 'refused_by_status = ["open"]', "policy.credits.refused_by_status: 'open'"),
        ('refused_by_status = ["closed"]', "", "policy.credits.refused_by_status: is missing"),
        ("never_mcc = [", "mcc_never = [", "policy.partial_approval.mcc_never: unknown key"),
        ('outcome = "block", reason', 'outcome = "block", action = "step_down", reason', r"policy.rules\[1\].action"),
        ('otherwise = "review"', 'otherwise = "maybe"', "policy.degraded.otherwise"),
        ('"member_missing:learned"', '"members_missing:learned"', "policy.degraded.members_missing:learned: unknown key"),
        ("score_missing = ", '"score_missing:learned" = ', "policy.degraded.score_missing:learned: unknown key"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "policy.effective_from"),
        ("2026-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "policy.effective_from"),
        ("2026-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00", "policy.effective_from"),
        ("value = 5,", "value = 1e9999999999999999999,", r"policy.rules\[1\].value"),
        ("value = 5,", "value = 1e400,", r"policy.rules\[1\].value"),
        ("sar_usd = 5000", "sar_usd = 1e999999", "policy.sar.sar_usd"),
        ("value = 5,", f"value = {'9' * 5000},", "policy:"),
        ("value = 5,", f"value = {'[' * 5000}{']' * 5000},", "policy:"),
        ('name = "default"', 'name = "default', "policy:"),
        ('outcome = "block"', 'outcome = "decline"', r"policy.rules\[1\].outcome"),
        ('reason = "many_card_payments_1m"', 'reason = ""', r"policy.rules\[1\].reason"),
        ('reason = "many_card_payments_1m"', f'reason = "{"m" * 65}"', r"policy.rules\[1\].reason"),
        ("value = 5,", 'value = "5",', r"policy.rules\[1\].value"),
        ('comparison = "at_least"', 'comparison = ">="', r"policy.rules\[1\].comparison"),
    ],
)
def test_a_mistake_in_the_file_is_named(old: str, new: str, named: str) -> None:
    assert old in TEXT
    with pytest.raises(SettingsError, match=named):
        policy_from_toml(TEXT.replace(old, new, 1))


def test_the_bounds_of_a_number_are_within_them() -> None:
    text = TEXT.replace("default_days = 7", "default_days = 0.001", 1).replace("AOA = 0.0011", "AOA = 0.000000001", 1)
    policy = policy_from_toml(text)
    assert (policy.hold_default_ms, policy.sar.usd_per_unit["AOA"]) == (86_400, Decimal("1e-9"))


def test_a_rule_is_shown_with_its_whole_value_and_what_it_asks_for() -> None:
    *_, plain, asking, _ = lines(policy_from_toml(with_rules(row("a", value=1_234_567), row("b", value=0.1, more=', action = "step_up"'))))
    assert plain == "  review: a at_least 1234567 -> r_a"
    assert asking == "  review, or step_up where a cardholder can be asked: b at_least 0.1 -> r_b"


def test_the_longest_reason_of_a_rule_is_one_that_a_decision_can_tell() -> None:
    longest = policy_from_toml(TEXT.replace("many_card_payments_1m", "m" * 64)).rules[0].reason
    assert msgspec.convert({"code": longest, "source": "rule"}, Reason).code == longest
    with pytest.raises(msgspec.ValidationError, match="code"):
        msgspec.convert({"code": longest + "m", "source": "rule"}, Reason)


ORACLE = {
    Comparison.ABOVE: lambda given, value: given > value,
    Comparison.AT_LEAST: lambda given, value: given >= value,
    Comparison.BELOW: lambda given, value: given < value,
    Comparison.AT_MOST: lambda given, value: given <= value,
    Comparison.EQUALS: lambda given, value: given == value,
}
SMALL = st.sampled_from([-1.0, 0.0, 1.0, 2.0])
CONDITIONS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(list(Comparison)), SMALL), min_size=1, max_size=3)
Drawn = list[tuple[list[tuple[str, Comparison, float]], str]]


@settings(deadline=None)  # the first call compiles
@given(
    st.lists(st.tuples(CONDITIONS, st.sampled_from(["review", "block"])), min_size=1, max_size=5),
    st.lists(st.one_of(SMALL, st.just(math.nan)), min_size=3, max_size=3),
)
def test_rules_fire_exactly_where_all_their_conditions_hold(rules: Drawn, values: list[float]) -> None:
    rows = []
    for (first, *rest), outcome in rules:
        more = ", ".join(f'{{ feature = "{f}", comparison = "{c}", value = {v} }}' for f, c, v in rest)
        rows.append(row(*first[:2], first[2], outcome, f", and = [{more}]" if rest else ""))
    policy = policy_from_toml(with_rules(*rows)).bound(["a", "b", "c"])
    given_values = dict(zip("abc", values, strict=True))
    wanted = [r for r, (conditions, _) in zip(policy.rules, rules, strict=True) if all(ORACLE[c](given_values[f], v) for f, c, v in conditions)]
    fired = policy.fired(np.array(values))
    assert sorted(fired) == sorted(wanted)
    assert [r.outcome for r in fired] == sorted((r.outcome for r in fired), key=[Outcome.BLOCK, Outcome.REVIEW].index)


def test_a_policy_without_rules_is_a_policy() -> None:
    assert policy_from_toml(with_rules()).bound(["a"]).fired(np.zeros(1)) == ()


def txn(kind: TransactionKind, mcc: str | None = None, card_bin: str | None = None) -> Transaction:
    return Transaction(transaction_id="T", kind=kind, at_ms=0, amount_minor=1, currency="EUR", account_id="A", mcc=mcc, card_bin=card_bin)


@pytest.mark.parametrize(
    ("kind", "mcc", "days"),
    [
        (TransactionKind.CARD_PRESENT, None, 7),
        (TransactionKind.CARD_PRESENT, "5411", 7),
        (TransactionKind.ECOMMERCE, "5411", 10),
        (TransactionKind.RECURRING, None, 5),
        (TransactionKind.ECOMMERCE, "7011", 30),
        (TransactionKind.CARD_PRESENT, "3351", 30),
        (TransactionKind.CARD_PRESENT, "3441", 30),
        (TransactionKind.CARD_PRESENT, "3442", 7),
    ],
)
def test_a_hold_lives_by_merchant_category_then_kind_then_seven_days(policy: Policy, kind: TransactionKind, mcc: str | None, days: int) -> None:
    assert hold_terms(policy, txn(kind, mcc)).lifetime_ms == days * DAY_MS


@pytest.mark.parametrize(
    ("card_bin", "mcc", "days"),
    [("411111", None, 10), ("511111", None, 7), ("222100", None, 7), ("222099", None, 10), ("559999", "7011", 30), ("560000", None, 10)],
)
def test_a_hold_lives_by_the_cards_scheme_before_its_kind(policy: Policy, card_bin: str, mcc: str | None, days: int) -> None:
    assert hold_terms(policy, txn(TransactionKind.ECOMMERCE, mcc, card_bin)).lifetime_ms == days * DAY_MS


@pytest.mark.parametrize(("mcc", "percent"), [("5812", 20), ("5542", 15), ("5411", 0), (None, 0)])
def test_what_may_be_taken_above_the_hold_is_the_merchants_kind_of_business(policy: Policy, mcc: str | None, percent: int) -> None:
    assert hold_terms(policy, txn(TransactionKind.CARD_PRESENT, mcc)).tolerance_percent == percent


def test_a_policy_from_before_schemes_and_tolerances_is_still_a_policy() -> None:
    before, _, rest = TEXT.partition("[schemes]")
    _, _, rest = rest.partition("[hold]")
    text = f"{before}[hold]{rest}".replace(TEXT[TEXT.index("days_by_scheme") : TEXT.index("[hold.days_by_kind]")], "\n")
    text = text.replace(TEXT[TEXT.index("[hold.tolerance") : TEXT.index("[sar]")], "")
    old = policy_from_toml(text)
    assert (old.schemes, old.tolerance_by_mcc, hold_terms(old, txn(TransactionKind.ECOMMERCE, "5812", "511111")).lifetime_ms) == ((), (), 10 * DAY_MS)


def test_dollar_thresholds_are_rounded_up_in_other_currencies(policy: Policy) -> None:
    assert policy.sar.minor(Decimal(10_000), "USD") == 1_000_000
    assert policy.sar.minor(Decimal(10_000), "EUR") == 869_566
    assert policy.sar.minor(Decimal(10_000), "JPY") == 1_492_538
    assert policy.sar.minor(Decimal(10_000), "KWD") == 3_125_000


def test_a_currency_without_a_rate_has_no_threshold_at_all(policy: Policy) -> None:
    assert policy.sar.minor(Decimal(5_000), "VND") > 100_000_000, "5,000 VND are twenty cents"
    assert set(policy.sar.without_rate) == EXPONENTS.keys() - policy.sar.usd_per_unit.keys()
    with pytest.raises(KeyError):
        policy.sar.minor(Decimal(5_000), policy.sar.without_rate[0])


def test_the_default_policy_has_a_rate_but_where_there_are_several_or_none(policy: Policy) -> None:
    assert " ".join(policy.sar.without_rate) == "CLF IRR KPW SDG SSP SYP UYI UYW VED VES YER ZWG"


def test_what_is_missing_has_an_outcome_by_its_whole_name_then_by_its_kind(policy: Policy) -> None:
    assert policy.outcome_without("member_missing:learned") is Outcome.REVIEW
    assert policy.outcome_without("member_missing:device") is Outcome.APPROVE
    assert policy.outcome_without("something_else:device") is Outcome.REVIEW


def test_a_policy_that_was_signed_with_the_members_weights_of_earlier_releases_is_still_read() -> None:
    policy = policy_from_toml(TEXT + "\n[members]\nlearned = 1.0\n")
    assert policy.policy_id != policy_from_toml(TEXT).policy_id


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, 1),
        ({"partial_allowed": False}, 0),
        ({"kind": TransactionKind.ATM}, 0),
        ({"kind": TransactionKind.RECURRING}, 0),
        ({"kind": TransactionKind.TRANSFER_OUT}, 0),
        ({"kind": TransactionKind.REFUND}, 0),
        ({"amount_minor": 0}, 0),
        ({"mcc": "6011"}, 0),
        ({"mcc": "6012"}, 0),
        ({"mcc": "6013"}, 1),
        ({"mcc": "7995"}, 0),
        ({"currency": "KWD", "billing_amount_minor": 3_100, "billing_currency": "EUR"}, 4),  # 1.000 KWD are 31.00 EUR: a fils is 3.1 cents
        ({"currency": "JPY", "billing_amount_minor": 6, "billing_currency": "EUR"}, 1),
    ],
)
def test_which_payments_may_be_approved_in_part_and_for_how_little(changes: dict[str, object], least: int) -> None:
    plain = {"kind": TransactionKind.CARD_PRESENT, "amount_minor": 1_000, "currency": "EUR", "mcc": "5411", "partial_allowed": True}
    txn = Transaction(transaction_id="T", at_ms=0, account_id="A", **(plain | changes))  # type: ignore[arg-type]
    assert least_minor(policy_from_toml(TEXT), txn) == least


def test_a_policy_without_rows_for_it_approves_nothing_in_part() -> None:
    start = TEXT.index("[partial_approval]")
    older = policy_from_toml(TEXT[:start] + TEXT[TEXT.index("[credits]") :])
    txn = Transaction(
        transaction_id="T", kind=TransactionKind.ECOMMERCE, at_ms=0, amount_minor=9, currency="EUR", account_id="A", partial_allowed=True
    )
    assert least_minor(older, txn) == 0


def test_a_policy_without_rows_for_it_refuses_no_credit() -> None:
    older = policy_from_toml(TEXT[: TEXT.index("[credits]")] + TEXT[TEXT.index("[sar]") :])
    assert (older.credits_refused, policy_from_toml(TEXT).credits_refused) == (frozenset(), {AccountStatus.CLOSED})


@given(st.integers(1, 10**12), st.integers(1, 10**12), st.data())
def test_what_is_approved_in_part_is_at_least_one_minor_unit_and_never_more_than_is_held(asked: int, own: int, data: st.DataObject) -> None:
    txn = Transaction(
        transaction_id="T", kind=TransactionKind.MOTO, at_ms=0, amount_minor=asked, currency="KWD", account_id="A",
        billing_amount_minor=own, billing_currency="EUR", partial_allowed=True,
    )  # fmt: skip
    least = least_minor(policy_from_toml(TEXT), txn)
    held = data.draw(st.integers(least, max(least, own)))
    approved = approved_in_part(txn, held)
    if held == own:
        assert approved is None
    elif held < own:
        assert approved is not None
        assert 1 <= approved < asked or (asked == 1 and held >= own)
        assert approved * own <= asked * held
