"""Those who stand by judge after the answer, lose their turn under load before anybody waits, and are beside the decision in the archive."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from time import process_time

import numpy as np
import pytest

from models.opinion import Judges, Panel, Seat
from schemas.avro import decode
from schemas.decision import Decision, Outcome
from schemas.governance import Kind
from schemas.identity import decision_id
from schemas.opinion import SecondOpinions
from schemas.topics import DECISIONS, SECOND_OPINIONS, Topic
from streams import metrics, opinion
from streams.archive import Archive
from streams.bus import Headers, ListBus
from streams.compare import compared
from tests.world import TestWorld, a_policy, a_transaction, a_world, an_ensemble

CHAMPIONS = Judges(dataclasses.replace(an_ensemble(), model_id="mdl_champion"), a_policy())
SHADOW = dataclasses.replace(an_ensemble(), model_id="mdl_shadow")
STRICT = dataclasses.replace(a_policy(), policy_id="pol_strict", review_above=-1)  # reviews a score of 0 too


def with_beside(world: TestWorld, model_share: float = 0.0) -> TestWorld:
    """The world with another model and a stricter policy standing by."""
    world.world.panel = Panel(CHAMPIONS, (Seat("mdl_shadow", SHADOW, model_share),), (Seat("pol_strict", STRICT),))
    world.know()
    return world


async def decided(world: TestWorld, count: int, seconds: float = 5.0) -> list[SecondOpinions]:
    """Decides so many, and gives those who stand by the time that they need."""
    giving = asyncio.create_task(opinion.give(world.world.opinions, world.bus, world.world.together))
    for number in range(count):
        await world.decide(a_transaction(f"t{number}", card_token=f"crd_k1_{number}", account_id="a1", amount_minor=1))
    until = asyncio.get_running_loop().time() + seconds
    while len(world.bus.told[SECOND_OPINIONS.name]) < count and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.01)
    giving.cancel()
    return [decode(SecondOpinions, message.value) for message in world.bus.told[SECOND_OPINIONS.name]]


def test_a_shadow_decides_nothing_and_what_it_says_is_recorded_under_the_decision() -> None:
    plain, world = with_beside(a_world()), a_world()
    world.world.panel = Panel(CHAMPIONS)
    world.know()
    said = asyncio.run(decided(plain, 20))
    for number in range(20):
        asyncio.run(world.decide(a_transaction(f"t{number}", card_token=f"crd_k1_{number}", account_id="a1", amount_minor=1)))
    assert [m.value for m in plain.bus.told[DECISIONS.name]] == [m.value for m in world.bus.told[DECISIONS.name]], "the same bytes as without it"
    by_id = {d.decision_id: d for d in plain.decisions}
    assert {one.decision_id for one in said} == set(by_id)
    for one in said:
        (model, policy) = one.opinions
        assert (model.kind, model.item_id, model.score) == (Kind.MODEL, "mdl_shadow", by_id[one.decision_id].score)
        assert (policy.kind, policy.item_id, policy.outcome) == (Kind.POLICY, "pol_strict", Outcome.REVIEW)


def test_a_challenger_decides_for_its_cards_and_the_decision_names_it() -> None:
    world = with_beside(a_world(), 0.5)
    said = {one.decision_id: one for one in asyncio.run(decided(world, 40))}
    own = {d.model_id for d in world.decisions}
    assert own == {"mdl_shadow", "mdl_champion"}
    for decision in world.decisions:
        assert decision.model_id == world.world.panel.judges_of(decision.transaction).model.model_id
        beside = said[decision.decision_id].opinions[0].item_id
        assert {decision.model_id, beside} == own, "the other one gives its opinion"
    (first, *_) = world.decisions
    again = asyncio.run(world.decide(a_transaction("t0", card_token="crd_k1_0", account_id="a1", amount_minor=1)))
    assert decode(Decision, again.message) == first


def test_what_finds_no_room_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opinion, "WAITING_MAX", 5)
    world = with_beside(a_world())
    before = dropped("full")
    for number in range(12):
        asyncio.run(world.decide(a_transaction(f"t{number}", amount_minor=1)))
    assert (len(world.decisions), len(world.world.opinions), dropped("full") - before) == (12, 5, 7)


def test_one_that_fails_is_counted_and_nobody_waits_for_it() -> None:
    world = a_world()
    unbound = dataclasses.replace(a_policy(), policy_id="pol_unbound", plan=None)
    world.know()
    world.world.panel = Panel(CHAMPIONS, policies=(Seat("pol_unbound", unbound),))
    before = dropped("failed")
    assert asyncio.run(decided(world, 3, seconds=0.3)) == []
    assert (len(world.decisions), dropped("failed") - before) == (3, 3)


class BusyBus(ListBus):
    """A log whose reports take their time of the loop, after they were waited for."""

    def __init__(self, report_s: float) -> None:
        super().__init__()
        self.report_s, self.busy_s = report_s, 0.0

    def tell(self, topic: Topic, key: str, value: bytes, headers: Headers = ()) -> asyncio.Future[None]:
        future, loop = super().tell(topic, key, value, headers), asyncio.get_running_loop()
        reported: asyncio.Future[None] = loop.create_future()
        loop.call_later(0.001, self._report, reported, future)
        return reported

    def _report(self, reported: asyncio.Future[None], future: asyncio.Future[None]) -> None:
        until = process_time() + self.report_s
        while process_time() < until:
            pass
        self.busy_s += self.report_s
        reported.set_result(future.result())


@pytest.mark.parametrize("deciding", [False, True], ids=["idle", "under load"])
def test_all_that_second_opinions_cost_is_within_their_share_not_their_judging_alone(deciding: bool) -> None:
    world, bus = with_beside(a_world()), BusyBus(report_s=0.003)

    async def given() -> tuple[float, int]:
        for number in range(300):
            await world.decide(a_transaction(f"t{number}", card_token=f"crd_k1_{number}", account_id="a1", amount_minor=1))
        loop, load = asyncio.get_running_loop(), world.world.together
        giving = asyncio.create_task(opinion.give(world.world.opinions, bus, load))
        await asyncio.sleep(1.0)  # one lot at least, by which the cost is known
        before, began = bus.busy_s, loop.time()
        if deciding:
            load._under_way.add(giving)  # for ever
        await asyncio.sleep(2.0)
        giving.cancel()
        return (bus.busy_s - before) / (loop.time() - began), len(bus.told[SECOND_OPINIONS.name])

    share, count = asyncio.run(given())
    assert count, "some are given all the same"
    assert share <= 1.5 * opinion.SHARE, share  # of few lots one more or less


def test_nothing_is_judged_while_a_payment_is_decided_as_long_as_that_does_not_last() -> None:
    world = with_beside(a_world())

    async def given() -> list[int]:
        await world.decide(a_transaction("t1", amount_minor=1))
        load, told = world.world.together, world.bus.told[SECOND_OPINIONS.name]
        giving = asyncio.create_task(opinion.give(world.world.opinions, world.bus, load))
        load._under_way.add(giving)
        await asyncio.sleep(opinion.PATIENCE_S / 2)
        counts = [len(told)]
        load._under_way.discard(giving)
        await asyncio.sleep(opinion.LOOK_S * 5)
        giving.cancel()
        return [*counts, len(told)]

    assert asyncio.run(given()) == [0, 1]


def dropped(why: str) -> float:
    """How many were."""
    return float(metrics.REGISTRY.get_sample_value("holdfast_second_opinions_dropped_total", {"why": why}) or 0)


def test_the_archive_sets_them_beside_the_decisions_and_they_can_be_compared(tmp_path: Path) -> None:
    world = with_beside(a_world(), 0.3)
    said = asyncio.run(decided(world, 60))
    archive = Archive(tmp_path, lambda: 0.0)
    archive.open([(DECISIONS.name, 0), (SECOND_OPINIONS.name, 0)])
    for offset, decision in enumerate(world.decisions):
        archive.add(decision, (DECISIONS.name, 0), offset)
    for offset, one in enumerate(said):
        archive.add(one, (SECOND_OPINIONS.name, 0), offset)
        archive.add(one, (SECOND_OPINIONS.name, 0), offset + 100)  # once more: it counts once
    archive.write_all()
    models, policies = compared(tmp_path, Kind.MODEL), compared(tmp_path, Kind.POLICY)
    own = [d for d in world.decisions if d.model_id == "mdl_shadow"]
    assert models.arms["mdl_shadow"].decisions == len(own)
    assert models.beside["mdl_shadow"].payments == 60 - len(own)
    assert models.beside["mdl_champion"].payments == len(own)
    strict = policies.beside["pol_strict"]
    assert (strict.payments, strict.would.outcomes["review"], strict.overlap.only_live) == (60, 60, 0)
    assert strict.told.outcomes["approve"] == sum(d.outcome is Outcome.APPROVE for d in world.decisions)
    assert np.isclose(models.arms["mdl_shadow"].blocked.value, np.mean([d.outcome is Outcome.BLOCK for d in own]))
    assert {one.decision_id for one in said} == {decision_id(f"t{number}") for number in range(60)}
