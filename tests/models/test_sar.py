"""Proves that patterns are found where they are, told once, and never made of one amount near a threshold."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import sar
from models.policy import Policy, SarThresholds, policy_from_toml
from models.registry import default_policy_text
from models.sar import Movement, candidates, completions, movement_of, window_ms
from schemas.decision import Decision, Outcome
from schemas.sar import SarCandidate, Typology
from schemas.transaction import TransactionKind as Kind
from tests.models.decisions import HOUR_MS, a_decision

POLICY: Policy = policy_from_toml(default_policy_text())
DAY_MS = 24 * HOUR_MS


def told(*decisions: Decision) -> list[list[SarCandidate]]:
    """What each decision completes, when the movements before it are remembered as bytes."""
    memory: list[bytes] = []
    out = []
    for decision in decisions:
        past = [Movement.from_bytes(b) for b in memory]
        out.append(list(candidates(POLICY, past, decision, "decisions", 0, len(memory))))
        new = movement_of(decision)
        if new is not None:
            memory.append(new.to_bytes())
            again = candidates(POLICY, [*past, new, new], decision, "decisions", 0, len(memory) - 1)
            assert list(again) == out[-1], "a redelivered decision finds what it found before"
    found = [(c.typology, d.transaction_id) for d, each in zip(decisions, out, strict=True) for c in each]
    movements = [Movement.from_bytes(b) for b in memory]
    assert sorted(completions(POLICY, movements)) == sorted(found), "all at once is what one after the other is"
    return out


def deposits(*amounts: int, gap_ms: int = DAY_MS, **more: str) -> list[Decision]:
    return [a_decision(f"D{i}", Kind.CASH_IN, amount * 100, i * gap_ms, **more) for i, amount in enumerate(amounts)]  # type: ignore[arg-type]


def typologies(found: list[list[SarCandidate]]) -> list[list[Typology]]:
    return [[c.typology for c in each] for each in found]


def test_three_deposits_below_the_threshold_that_together_exceed_it_are_structuring() -> None:
    *before, (candidate,) = told(*deposits(4000, 4000, 4000))
    assert before == [[], []]
    assert candidate.typology is Typology.STRUCTURING
    assert (candidate.amount_minor, candidate.transaction_ids) == (1_200_000, ("D0", "D1", "D2"))
    assert (candidate.from_at_ms, candidate.until_at_ms, candidate.detected_at_ms) == (0, 2 * DAY_MS, 2 * DAY_MS + 5)
    assert {e.name: e.value for e in candidate.evidence} == {"deposits": "3", "largest_minor": "400000", "reporting_threshold_minor": "1000000"}


@pytest.mark.parametrize(
    ("amounts", "gap_ms"),
    [
        ((9900,), DAY_MS),  # nearness to 10,000 alone is not suspicious
        ((9900, 9900), DAY_MS),  # two are not yet a pattern
        ((15000, 15000, 15000), DAY_MS),  # reported by themselves
        ((3000, 3000, 4000), DAY_MS),  # exactly 10,000 does not exceed it
        ((900, 900, 900, 900, 900, 900, 900, 900, 900, 900, 900, 900), HOUR_MS),  # a shop's takings
        ((4000, 4000, 4000), 5 * DAY_MS),  # too far apart
    ],
)
def test_what_is_no_pattern_is_not_told(amounts: tuple[int, ...], gap_ms: int) -> None:
    assert not any(told(*deposits(*amounts, gap_ms=gap_ms)))


def test_a_pattern_is_told_once_and_going_on_makes_a_new_one() -> None:
    found = typologies(told(*deposits(6000, 6000, 6000, 6000, 6000, 6000, gap_ms=HOUR_MS)))
    assert found == [[], [], [Typology.STRUCTURING], [], [], [Typology.STRUCTURING]]


def at_days(kind: Kind, *days: float, amount_minor: int = 400_000) -> list[Decision]:
    """Movements that happened on these days, in the order in which they were decided."""
    return [a_decision(f"{kind}{i}", kind, amount_minor, int(day * DAY_MS)) for i, day in enumerate(days)]


def test_a_movement_that_comes_late_counts_when_it_happened() -> None:
    assert not any(told(*at_days(Kind.CASH_IN, 40, 10, 40.5))), "a month apart"
    assert not any(told(*at_days(Kind.CASH_IN, 0, 8, 4))), "no five days have all of them"
    *before, (candidate,) = told(*at_days(Kind.CASH_IN, 42, 40, 41))
    assert before == [[], []]
    assert (candidate.from_at_ms, candidate.until_at_ms) == (40 * DAY_MS, 42 * DAY_MS)
    assert candidate.transaction_ids == ("cash_in1", "cash_in2", "cash_in0"), "oldest first"
    assert typologies(told(*at_days(Kind.CASH_IN, 40, 10, 41, 42)))[-1] == [Typology.STRUCTURING], "one that is late hides no others"


def test_money_that_left_before_it_came_is_not_straight_in_and_out() -> None:
    (came,), (left_before, left_after) = at_days(Kind.TRANSFER_IN, 1, amount_minor=900_000), at_days(Kind.CASH_OUT, 0.9, 1.1, amount_minor=900_000)
    assert not any(told(came, left_before))
    assert typologies(told(came, left_after)) == [[], [Typology.RAPID_MOVEMENT]]
    assert typologies(told(left_after, came)) == [[], [Typology.RAPID_MOVEMENT]], "in whatever order they were decided"


def test_thresholds_are_of_the_currency() -> None:
    assert not any(told(*deposits(2800, 2800, 2800, currency="EUR")))
    assert typologies(told(*deposits(2900, 2900, 2900, currency="EUR")))[-1] == [Typology.STRUCTURING]


def test_in_a_currency_without_a_rate_no_pattern_is_looked_for() -> None:
    assert "VES" in POLICY.sar.without_rate
    assert not any(told(*deposits(4000, 4000, 4000, currency="VES")))


def moves(*rows: tuple[Kind, int, int], outcome: Outcome = Outcome.APPROVE) -> list[Decision]:
    return [a_decision(f"M{i}", kind, amount * 100, hour * HOUR_MS, outcome, counterparty=f"C{i}") for i, (kind, amount, hour) in enumerate(rows)]


def test_money_that_leaves_as_it_came_is_rapid_movement() -> None:
    found = told(*moves((Kind.TRANSFER_IN, 4000, 0), (Kind.TRANSFER_IN, 3000, 2), (Kind.TRANSFER_OUT, 4000, 3), (Kind.ATM, 1600, 5)))
    assert typologies(found) == [[], [], [], [Typology.RAPID_MOVEMENT]]
    assert found[-1][0].amount_minor == 700_000
    assert {e.name: e.value for e in found[-1][0].evidence} == {"inflow_minor": "700000", "outflow_minor": "560000", "counterparties": "4"}


@pytest.mark.parametrize(
    "rows",
    [
        [(Kind.TRANSFER_IN, 7000, 0), (Kind.TRANSFER_OUT, 5000, 3)],  # too much stays
        [(Kind.TRANSFER_IN, 7000, 0), (Kind.TRANSFER_OUT, 7000, 24)],  # a day later
        [(Kind.TRANSFER_OUT, 7000, 0), (Kind.TRANSFER_IN, 7000, 3)],  # out, then in
        [(Kind.TRANSFER_IN, 4900, 0), (Kind.TRANSFER_OUT, 4900, 1)],  # below the SAR amount
        [(Kind.TRANSFER_IN, 7000, 0), (Kind.CARD_PRESENT, 7000, 1)],  # spent, not passed on
    ],
)
def test_what_is_not_straight_in_and_out_is_not_told(rows: list[tuple[Kind, int, int]]) -> None:
    assert not any(told(*moves(*rows)))


def test_of_what_was_approved_in_part_only_that_moved() -> None:
    came, left = moves((Kind.TRANSFER_IN, 7000, 0), (Kind.ATM, 7000, 3))
    assert typologies(told(came, left)) == [[], [Typology.RAPID_MOVEMENT]]
    in_part = msgspec.structs.replace(left, held_minor=100_000, approved_minor=100_000)
    assert typologies(told(came, in_part)) == [[], []]


def test_blocked_attempts_that_reach_the_sar_amount_are_told_with_their_reasons() -> None:
    found = told(*moves((Kind.ECOMMERCE, 3000, 0), (Kind.ECOMMERCE, 2000, 1), (Kind.ECOMMERCE, 100, 2), outcome=Outcome.BLOCK))
    assert typologies(found) == [[], [Typology.BLOCKED_FRAUD], []]
    assert found[1][0].evidence[-1].value == "many_card_payments_1m"


def test_blocked_and_declined_money_did_not_move() -> None:
    rows = ((Kind.TRANSFER_IN, 7000, 0), (Kind.TRANSFER_OUT, 7000, 1))
    assert not any(told(*moves(*rows, outcome=Outcome.DECLINE)))
    assert not any(Typology.RAPID_MOVEMENT in each for each in typologies(told(*moves(*rows, outcome=Outcome.BLOCK))))


def test_movements_are_kept_as_long_as_any_pattern_looks() -> None:
    assert window_ms(POLICY) == 5 * DAY_MS


def found_one_by_one(decisions: list[Decision]) -> list[list[SarCandidate]]:
    """The same where the sums of a window rule nothing out: each pattern is looked for at each movement."""
    with pytest.MonkeyPatch.context() as patched:
        patterns = sar._patterns
        always = lambda *of: [(name, pattern._replace(may_be=lambda came, rest: True)) for name, pattern in patterns(*of)]  # noqa: E731
        patched.setattr(sar, "_patterns", always)
        return told(*decisions)


@given(
    st.lists(
        st.tuples(st.sampled_from([Kind.CASH_IN, Kind.TRANSFER_IN, Kind.TRANSFER_OUT, Kind.ATM]), st.integers(1, 6_000), st.integers(0, 900)),
        max_size=25,
    ),
    st.booleans(),
)
def test_what_the_sums_of_a_window_rule_out_is_no_pattern(rows: list[tuple[Kind, int, int]], blocked: bool) -> None:
    outcome = Outcome.BLOCK if blocked else Outcome.APPROVE
    decisions = [a_decision(f"D{i}", kind, amount * 100, hour * HOUR_MS, outcome) for i, (kind, amount, hour) in enumerate(rows)]
    assert told(*decisions) == found_one_by_one(decisions)


def test_a_thousand_small_attempts_are_not_summed_again_for_each_one(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0

    def counted(movements: list[Movement], thresholds: SarThresholds) -> sar.Found | None:
        nonlocal looked
        looked += len(movements)
        return blocked(movements, thresholds)

    blocked = sar._blocked
    monkeypatch.setattr(sar, "_blocked", counted)
    tried = [movement for i in range(1_001) if (movement := movement_of(a_decision(f"B{i}", Kind.ECOMMERCE, 1_700, i, Outcome.BLOCK)))]
    found = candidates(POLICY, tried, a_decision("B1000", Kind.ECOMMERCE, 1_700, 1_000, Outcome.BLOCK), "decisions", 0, 1_000)
    assert not found
    assert looked <= 1_001, "each is a part of one pattern at most"


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.integers(0, 12_000), st.integers(0, 30), st.sampled_from(list(Outcome))), max_size=25))
def test_every_candidate_rests_on_real_movements_and_no_movement_counts_twice(rows: list[tuple[Kind, int, int, Outcome]]) -> None:
    decisions = [a_decision(f"M{i}", kind, amount * 100, hour * HOUR_MS, outcome) for i, (kind, amount, hour, outcome) in enumerate(rows)]
    found = [c for each in told(*decisions) for c in each]
    assert len({c.candidate_id for c in found}) == len(found)
    for typology in Typology:
        used = [t for c in found if c.typology is typology for t in c.transaction_ids]
        assert len(set(used)) == len(used)
    amounts = {f"M{i}": amount * 100 for i, (_, amount, *_) in enumerate(rows)}
    for c in found:
        assert all(amounts[t] > 0 for t in c.transaction_ids)
        assert c.amount_minor <= sum(amounts[t] for t in c.transaction_ids)
        if c.typology is Typology.STRUCTURING:
            assert max(amounts[t] for t in c.transaction_ids) <= 1_000_000 < c.amount_minor
