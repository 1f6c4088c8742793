"""Proves the legal moves of models and policies: four eyes and two more, gates, expiry, rollback, and who decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.governance import (
    BREAKER,
    DAY_MS,
    LEGAL,
    Inventory,
    Refused,
    after,
    breaker_event,
    control_of,
    deciding,
    out_of_place,
    refused,
    standing_by,
    unentered,
)
from schemas.decision import Outcome
from schemas.governance import Act, Band, Kind, Move, State, Tier

ENDS = 100 * DAY_MS


def a_move(inventory: Inventory, act: Act, by: str, item_id: str = "m1", at_ms: int = 1, **changes: object) -> Move:
    """The next line of a history."""
    terms: dict[str, object] = {"tier": Tier.HIGH} if act is Act.APPROVE else {"expires_at_ms": ENDS} if act is Act.VALIDATE else {}
    given_terms = {"kind": Kind.MODEL, "why": "because", **terms, **changes}
    return Move(number=len(inventory.moves) + 1, item_id=item_id, act=act, by=by, at_ms=at_ms, before="", **given_terms)  # type: ignore[arg-type]


def story(text: str) -> tuple[Inventory, str]:
    """The inventory after lines like `ana register m1`, and the refusal of the last, or nothing."""
    inventory, last = Inventory(), ""
    for line in text.strip().splitlines():
        by, said, item_id, *rest = line.split()
        act, _, share = said.partition(":")
        assert not last, f"refused before {line}: {last}"
        move = a_move(inventory, Act(act), by, item_id, int(rest[0]) * DAY_MS if rest else 1, share=float(share or 0))
        wrong = refused(inventory, move, tuple(rest[1:]))
        last = str(wrong.refusal) if wrong else ""
        inventory = inventory if wrong else after(inventory, move)
    return inventory, last


UP = "ana register m1\nben validate m1\ncleo approve m1\n"
TWO = UP + UP.replace("m1", "m2")
BOTH = UP + "cleo promote m1\n" + UP.replace("m1", "m2") + "cleo promote m2\n"


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (UP + "cleo promote m1", ""),
        ("ana register m1\nana validate m1", "own_work"),
        ("ana register m1\nben validate m1\nana approve m1", "own_work"),
        ("ana register m1\nben validate m1\nben approve m1", "own_validation"),
        ("ana register m1\nAna validate m1", "own_work"),
        ("ana register m1\nben validate m1\nBEN approve m1", "own_validation"),
        ("zo\u00eb register m1\nZoe\u0308 validate m1", "own_work"),
        (UP + "cleo validate m1", "own_approval"),
        (UP + "cleo promote m1\ndan validate m1\nCleo validate m1", "own_approval"),
        (BOTH + "dora roll_back m1\ncleo validate m2\ndora approve m2", ""),
        ("ana register m1\nben approve m1", "not_validated"),
        ("ana register m1\nben promote m1", "not_validated"),
        ("ana register m1\nben validate m1\ncleo promote m1", "not_approved"),
        ("ana register m1\nana register m1", "already_registered"),
        ("ana promote m1", "unknown"),
        ("ana register m1\nben validate m1\ncleo approve m1 99", ""),
        ("ana register m1\nben validate m1\ncleo approve m1 100", "expired"),
        (UP + "cleo promote m1 99", ""),
        (UP + "cleo promote m1 100", "expired"),
        (UP + "dan validate m1 100\ncleo promote m1 100", "expired"),
        ("ana register m1\nben validate m1\ncleo approve m1 1 parity_max", "gate_failed"),
        (UP + "cleo promote m1 1 parity_max", "gate_failed"),
        (UP + "cleo promote m1\ncleo retire m1", "decides"),
        (UP + "cleo promote m1\ncleo promote m1", "decides"),
        (UP + "cleo retire m1\nben validate m1", "retired"),
        (UP + "cleo shadow m1\ncleo challenge m1\ncleo promote m1", ""),
        (UP + "cleo roll_back m1", "never_decided"),
        (UP + "cleo challenge m1 100", ""),
        (UP + "cleo challenge:0.1 m1 99", ""),
        (UP + "cleo challenge:0.1 m1 100", "expired"),
        (UP + "cleo challenge:0.1 m1 1 parity_max", "gate_failed"),
        (TWO + "cleo challenge:0.6 m1\ncleo challenge:0.4 m2", ""),
        (TWO + "cleo challenge:0.6 m1\ncleo challenge:0.5 m2", "shares_exceed"),
        (TWO + UP.replace("m1", "m3") + "cleo challenge:0.33 m1\ncleo challenge:0.56 m2\ncleo challenge:0.11 m3", ""),
        (TWO + "cleo challenge:0.6 m1\ncleo challenge:0.4001 m2", "shares_exceed"),
        (TWO + "cleo challenge:0.6 m1\ncleo challenge:0.9 m1\ncleo shadow m1\ncleo challenge:1 m2", ""),
        (BOTH + "dora roll_back m1 500", ""),
        (BOTH + "dora roll_back m1\ndora promote m2", "not_approved"),
        (BOTH + "dora roll_back m1\neve approve m2\ndora promote m2", ""),
        (BOTH + "dora retire m1\ndora roll_back m1", "retired"),
    ],
)
def test_what_may_follow_what(text: str, ends: str) -> None:
    assert story(text)[1] == ends


def test_a_move_says_who_and_why() -> None:
    for said in ({"by": " "}, {"why": " "}):
        move = a_move(Inventory(), Act.REGISTER, **{"by": "ana", **said})  # type: ignore[arg-type]
        wrong = refused(Inventory(), move)
        assert wrong is not None
        assert wrong.refusal in ("nobody", "no_reason")


def test_the_tier_shortens_how_long_a_validation_holds() -> None:
    inventory, _ = story(UP)
    assert inventory.items["m1"].expires_at_ms == ENDS
    long = after(Inventory(), a_move(Inventory(), Act.REGISTER, "ana"))
    long = after(long, a_move(long, Act.VALIDATE, "ben", expires_at_ms=10_000 * DAY_MS))
    long = after(long, a_move(long, Act.APPROVE, "cleo"))
    assert long.items["m1"].expires_at_ms == 180 * DAY_MS + 1
    again = after(long, a_move(long, Act.VALIDATE, "dan", at_ms=DAY_MS, expires_at_ms=10_000 * DAY_MS))
    assert again.items["m1"].expires_at_ms == 181 * DAY_MS


def test_a_tiers_time_begins_with_the_validation_and_not_with_the_approval() -> None:
    for waited_days, ends in ((179, ""), (180, "expired")):
        inventory, _ = story("ana register m1")
        inventory = after(inventory, a_move(inventory, Act.VALIDATE, "ben", at_ms=0, expires_at_ms=300 * DAY_MS))
        approval = a_move(inventory, Act.APPROVE, "cleo", at_ms=waited_days * DAY_MS)
        wrong = refused(inventory, approval)
        assert (str(wrong.refusal) if wrong else "") == ends
        assert after(inventory, approval).items["m1"].expires_at_ms == 180 * DAY_MS


def test_an_outcome_of_which_the_approver_says_no_band_has_the_usual_one() -> None:
    inventory, _ = story("ana register m1\nben validate m1")
    narrow = Band(Outcome.REVIEW, 0.0, 0.1)
    approved = after(inventory, a_move(inventory, Act.APPROVE, "cleo", bands=(narrow,)))
    assert set(approved.items["m1"].bands) == {narrow, Band(Outcome.BLOCK, 0.0, 0.5)}


def test_a_champion_gives_way_and_stands_by() -> None:
    inventory, _ = story(BOTH)
    assert (inventory.items["m1"].state, inventory.items["m2"].state) == (State.APPROVED, State.CHAMPION)
    last = inventory.last_good(Kind.MODEL)
    assert last is not None
    assert last.item_id == "m1"


def test_the_history_gives_the_same_inventory_again() -> None:
    inventory, _ = story(BOTH + "dora roll_back m1")
    again = Inventory()
    for move in inventory.moves:
        assert out_of_place(again, move) is None
        again = after(again, move)
    assert again == inventory
    assert out_of_place(Inventory(), inventory.moves[1]), "without the line before it"


def test_a_history_that_was_made_by_earlier_rules_is_still_read() -> None:
    inventory, _ = story("ana register m1\nben validate m1")
    approved = a_move(inventory, Act.APPROVE, "BEN")
    assert isinstance(refused(inventory, approved), Refused), "today that is the same person"
    assert out_of_place(inventory, approved) is None


acts = st.tuples(st.sampled_from(Act), st.sampled_from(("ana", "ben", "cleo")), st.sampled_from(("m1", "m2", "m3")))


@given(st.lists(acts, max_size=40))
def test_whatever_is_tried_at_most_one_decides_and_three_persons_stand_behind_it(tries: list[tuple[Act, str, str]]) -> None:
    inventory = Inventory()
    for act, by, item_id in tries:
        move = a_move(inventory, act, by, item_id)
        inventory = inventory if refused(inventory, move) else after(inventory, move)
    champions = [item for item in inventory.items.values() if item.state is State.CHAMPION]
    assert len(champions) <= 1
    for item in champions:
        assert len({item.author, item.validated_by, item.approved_by}) == 3
    assert all(item.state in State for item in inventory.items.values())


def test_every_state_is_reached_and_every_act_leads_somewhere() -> None:
    assert {state for leads in LEGAL.values() for state in leads.values()} == set(State) - {State.DRAFT}
    assert set(LEGAL) == set(Act) - {Act.REGISTER}


def test_who_decides_is_the_champion_and_a_breakers_event_points_back_until_the_next_promotion() -> None:
    inventory, _ = story(BOTH)
    m1, m2 = inventory.items["m1"], inventory.items["m2"]
    assert deciding(inventory, Kind.MODEL, None) == "m2"
    assert deciding(inventory, Kind.POLICY, None) is None
    promoted = control_of(inventory.moves[-1], "m1")
    assert deciding(inventory, Kind.MODEL, promoted) == "m2"
    broken = breaker_event(m2, m1, "too many blocks", 5)
    assert deciding(inventory, Kind.MODEL, broken) == "m1"
    again = after(inventory, a_move(inventory, Act.ROLL_BACK, "dora", "m1"))
    back = after(again, a_move(again, Act.APPROVE, "dora", "m2"))
    later = after(back, a_move(back, Act.PROMOTE, "dora", "m2"))
    assert deciding(later, Kind.MODEL, broken) == "m2", "a promotion after the breaker's event counts"


def test_the_topic_cannot_make_decide_what_never_did() -> None:
    inventory, _ = story(BOTH + UP.replace("m1", "m3"))
    m2, m3 = inventory.items["m2"], inventory.items["m3"]
    assert deciding(inventory, Kind.MODEL, breaker_event(m2, m3, "a forged event", 5)) == "m2"


def test_a_share_stays_when_it_is_validated_again_and_goes_with_any_other_move() -> None:
    inventory, _ = story(UP + "cleo challenge:0.2 m1\ndan validate m1 5")
    assert (inventory.items["m1"].share, inventory.items["m1"].since) == (0.2, 4)
    for act in ("shadow", "promote", "retire", "challenge"):
        assert story(UP + f"cleo challenge:0.2 m1\ncleo {act} m1")[0].items["m1"].share == 0


def test_what_the_breaker_did_is_entered_once_and_says_the_same_as_the_topic() -> None:
    inventory, _ = story(BOTH + UP.replace("m1", "m3") + "cleo challenge:0.2 m3")
    items = inventory.items
    events = [breaker_event(items["m2"], items["m1"], "too many blocks", 5), breaker_event(items["m3"], items["m2"], "too many reviews", 5)]
    told = {event.place: event for event in events}
    assert len(told) == 2, "neither replaces the other on the compacted topic"
    assert [item.share for item in standing_by(inventory, Kind.MODEL, told)] == [0.0]
    before = deciding(inventory, Kind.MODEL, told[Kind.MODEL])
    for event, act in unentered(inventory, events):
        inventory = after(inventory, a_move(inventory, act, event.by, event.item_id, why=event.why))
    assert unentered(inventory, events) == ()
    assert deciding(inventory, Kind.MODEL, None) == deciding(inventory, Kind.MODEL, told[Kind.MODEL]) == before == "m1"
    assert {item.item_id: item.state for item in inventory.of(Kind.MODEL)} == {"m1": State.CHAMPION, "m2": State.VALIDATED, "m3": State.SHADOW}
    assert [(move.by, move.why) for move in inventory.moves[-2:]] == [(BREAKER, "too many blocks"), (BREAKER, "too many reviews")]
    again = after(inventory, a_move(inventory, Act.CHALLENGE, "cleo", "m3", share=0.1))
    assert [item.share for item in standing_by(again, Kind.MODEL, told)] == [0.1], "people say more than the old event"
