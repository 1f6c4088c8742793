"""Proves for which cards a challenger decides: always the same, so many as its share says, none twice, and none for a shadow."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.catalogue import CATALOGUE
from models.decision import judge, weighed_all
from models.opinion import Judged, Judges, Panel, Seat, second_opinions
from models.policy import Authentication
from schemas.governance import Kind
from tests.world import a_policy, a_transaction, an_ensemble

CARDS = [a_transaction(card_token=f"crd_k1_{number}") for number in range(4_000)]


def a_model(name: str) -> Seat:  # type: ignore[type-arg]  # of an Ensemble
    """A seat whose judge is known by name."""
    return Seat(name, dataclasses.replace(an_ensemble(), model_id=name))


def a_panel(**shares: float) -> Panel:
    """The champion `m1`, and others with these shares."""
    champions = Judges(dataclasses.replace(an_ensemble(), model_id="m1"), a_policy())
    return Panel(champions, tuple(a_model(name)._replace(share=share) for name, share in shares.items()))


def decided(panel: Panel) -> list[str]:
    """By card who decides."""
    return [panel.judges_of(txn).model.model_id for txn in CARDS]


@pytest.mark.parametrize("shares", [{"m2": 0.05}, {"m2": 0.3, "m3": 0.2}, {"m2": 0.5, "m3": 0.5}, {"m2": 0.0, "m3": 1.0}])
def test_a_challenger_decides_for_its_share_of_cards(shares: dict[str, float]) -> None:
    who = decided(a_panel(**shares))
    for name, share in shares.items():
        wide = 4 * (share * (1 - share) / len(CARDS)) ** 0.5
        assert who.count(name) / len(CARDS) == pytest.approx(share, abs=wide)


def test_a_cards_judge_stays_the_same_and_another_challenger_is_tried_on_other_cards() -> None:
    first = decided(a_panel(m2=0.1))
    assert decided(a_panel(m2=0.1)) == first
    assert decided(a_panel(m2=0.1, m3=0.1))[: len(first)] != first, "the third has cards of its own"
    both = [(a, b) for a, b in zip(first, decided(a_panel(m9=0.1)), strict=True) if a == "m2" and b == "m9"]
    assert len(both) < 0.02 * len(CARDS), "of a tenth about a tenth is tried on again"


@given(st.lists(st.floats(0, 0.25), min_size=1, max_size=4), st.integers(0, 500))
def test_a_share_that_grows_takes_cards_and_gives_none_back(shares: list[float], number: int) -> None:
    small = a_panel(**{f"s{place}": share for place, share in enumerate(shares)})
    large = dataclasses.replace(small, models=(small.models[0]._replace(share=0.25), *small.models[1:]))
    if small.judges_of(CARDS[number]).model.model_id == "s0":
        assert large.judges_of(CARDS[number]).model.model_id == "s0"


def test_a_payment_without_a_card_is_split_by_its_account() -> None:
    panel = a_panel(m2=0.5)
    who = {panel.judges_of(a_transaction(card_token=None, account_id=f"a{n}")).model.model_id for n in range(20)}
    assert who == {"m1", "m2"}


def test_a_second_opinion_is_what_the_other_would_have_decided() -> None:
    vectors = np.random.default_rng(3).random((50, len(CATALOGUE.names)))
    vectors[:, CATALOGUE.index["velocity.card_count_10m"]] = np.arange(50) % 12
    weighed = weighed_all(an_ensemble(), a_policy(), vectors, [("memory_missing:card",), ()] * 25, [Authentication.IMPOSSIBLE] * 50)
    for vector, said, missing in zip(vectors, weighed, [("memory_missing:card",), ()] * 25, strict=True):
        verdict = judge(an_ensemble(), a_policy(), CATALOGUE.reason_of, CARDS[0], vector, missing)
        assert said == (verdict.score, verdict.outcome, verdict.degradations)


def test_everybody_but_the_one_that_decided_gives_an_opinion_the_champion_too() -> None:
    panel = a_panel(m2=1.0, m3=0.0)
    vector = np.full(len(CATALOGUE.names), np.nan)
    judges = panel.judges_of(CARDS[0])
    (said,) = second_opinions(panel, [Judged("dec_1", "t1", "a1", 5, vector, (), judges)])
    assert [(one.kind, one.item_id) for one in said.opinions] == [(Kind.MODEL, "m1"), (Kind.MODEL, "m3")]
    policies = dataclasses.replace(a_panel(), policies=(Seat("p2", dataclasses.replace(a_policy(), policy_id="p2", review_above=-1)),))
    (said,) = second_opinions(policies, [Judged("dec_1", "t1", "a1", 5, vector, (), policies.champions)])
    assert [(one.kind, one.item_id, one.outcome) for one in said.opinions] == [(Kind.POLICY, "p2", "review")]
    assert second_opinions(a_panel(), [Judged("dec_1", "t1", "a1", 5, vector, (), a_panel().champions)])[0].opinions, "another panel's own"
