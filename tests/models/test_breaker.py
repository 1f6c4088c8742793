"""Proves that the breaker takes out what has surely left its band, soon when all are blocked and never for noise; and goes back only once."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.breaker import LEAST, WINDOW_MS, Window, breach, culprit, interval
from models.governance import BREAKER, USUAL_BANDS, Inventory, breaker_event
from schemas.governance import Act, Band
from tests.models.test_governance import BOTH, UP, a_move, after, story


@pytest.mark.parametrize(
    ("bands", "counts", "left"),
    [
        (USUAL_BANDS, {"block": LEAST}, "block"),
        (USUAL_BANDS, {"block": LEAST - 1}, None),
        (USUAL_BANDS, {"review": 30, "approve": 2}, "review"),
        (USUAL_BANDS, {"decline": 500}, None),
        (USUAL_BANDS, {"approve": 500}, None),
        (USUAL_BANDS, {"block": 110, "approve": 90}, None),
        (USUAL_BANDS, {"block": 1100, "approve": 900}, "block"),
        ((Band("review", 0.01, 0.1),), {"approve": 100}, None),
        ((Band("review", 0.01, 0.1),), {"approve": 5000}, "review"),
        ((Band("decline", 0, 0.05),), {"decline": 30, "approve": 70}, "decline"),
        ((), {"block": 1000}, None),
    ],
)
def test_a_band_is_left_when_chance_cannot_explain_it(bands: tuple[Band, ...], counts: Mapping[str, int], left: str | None) -> None:
    found = breach(bands, counts)
    assert (found.band.outcome if found else None) == left


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@example((0, 9))
def test_an_interval_holds_what_was_seen(seen: tuple[int, int]) -> None:
    low, high = interval(*seen)
    assert 0 <= low <= seen[0] / seen[1] <= high <= 1


@pytest.mark.parametrize("count", range(LEAST, 200))
def test_none_of_an_outcome_and_all_of_one_are_within_bands_that_end_there(count: int) -> None:
    assert breach((Band("block", 0.0, 0.0), Band("approve", 1.0, 1.0)), {"approve": count}) is None


def test_noise_at_the_edge_of_a_band_hardly_ever_trips_it() -> None:
    chance = random.Random(1)
    draws = [sum(chance.random() < 0.1 for _ in range(300)) for _ in range(2_000)]
    assert sum(breach((Band("block", 0, 0.1),), {"block": hits, "approve": 300 - hits}) is not None for hits in draws) <= 6


def test_a_window_forgets_what_is_a_minute_old() -> None:
    window = Window()
    window.add(0, {("m1", "block"): 5})
    assert window.add(WINDOW_MS - 1, {("m1", "block"): 1})["m1"]["block"] == 6
    assert window.add(WINDOW_MS, {("m1", "approve"): 1, ("m2", "approve"): 3}) == {"m1": {"block": 1, "approve": 1}, "m2": {"approve": 3}}


def test_a_window_forgets_what_a_clock_that_went_back_has_yet_to_see() -> None:
    window = Window()
    window.add(100 * WINDOW_MS, {("m1", "block"): 5})
    assert window.add(WINDOW_MS, {("m1", "approve"): 1}) == {"m1": {"approve": 1}}
    assert len(window.parts) == 1


def of(deciding: tuple[str, ...], counts: Mapping[str, int]) -> Mapping[str, Mapping[str, int]]:
    """What all of these decided together."""
    return dict.fromkeys(deciding, counts)


def test_the_champion_goes_back_to_the_one_before_and_that_one_stays() -> None:
    inventory, _ = story(BOTH)
    found = culprit(inventory, of(("m2", "pol_of_the_house"), {"block": 100}))
    assert found is not None
    assert found.back_to is not None
    assert (found.item.item_id, found.back_to.item_id) == ("m2", "m1")
    again = culprit(inventory, of(("m1",), {"block": 100}))
    assert again is not None
    assert again.back_to is None, "it was gone back to already"


def test_what_the_breaker_went_back_to_stays_after_it_was_entered() -> None:
    inventory, _ = story(UP + "cleo promote m1\n" + UP.replace("m1", "m2") + "cleo promote m2\n" + UP.replace("m1", "m3") + "cleo promote m3")
    inventory = after(inventory, a_move(inventory, Act.ROLL_BACK, BREAKER, "m2"))
    found = culprit(inventory, of(("m2",), {"block": 100}))
    assert found is not None
    assert not found.gives_way
    by_hand, _ = story(BOTH + UP.replace("m1", "m3") + "cleo promote m3\ndora roll_back m2")
    found = culprit(by_hand, of(("m2",), {"block": 100}))
    assert found is not None
    assert found.back_to is not None, "people may have gone back to a bad one"


def test_a_challenger_that_blocks_its_cards_gives_way_though_all_payments_together_are_within_the_band() -> None:
    inventory, _ = story(BOTH + UP.replace("m1", "m3") + "cleo challenge:0.05 m3")
    found = culprit(inventory, {"m2": {"approve": 1_000}, "m3": {"block": 50}})
    assert found is not None
    assert (found.item.item_id, found.gives_way) == ("m3", True)
    event = breaker_event(found.item, found.back_to, found.breach.text, 5)
    assert (event.item_id, event.cause) == ("m3", "stood_down")


def test_the_first_of_all_has_nothing_to_go_back_to_and_only_alarms() -> None:
    inventory, _ = story(UP + "cleo promote m1")
    found = culprit(inventory, of(("m1",), {"block": 100}))
    assert found is not None
    assert found.back_to is None
    assert culprit(inventory, of(("m1",), {"approve": 100})) is None


def test_of_model_and_policy_the_one_that_was_changed_last_is_taken_out() -> None:
    inventory, _ = story(BOTH)
    for item_id in ("p1", "p2"):
        for by, act in (("ana", Act.REGISTER), ("ben", Act.VALIDATE), ("cleo", Act.APPROVE), ("cleo", Act.PROMOTE)):
            inventory = after(inventory, a_move(inventory, act, by, item_id, kind="policy"))
    found = culprit(inventory, of(("m2", "p2"), {"review": 100}))
    assert found is not None
    assert found.item.item_id == "p2"
    assert culprit(Inventory(), of(("m2", "p2"), {"review": 100})) is None
