"""The breaker beside a process that decides: a policy that blocks everybody is taken out within seconds, once, and said."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from models.artefact import Keys, public_of
from models.governance import BREAKER, Inventory, Item, breaker_event, control_of, deciding
from models.opinion import Judges, Panel
from models.policy import Policy
from models.registry import Registry, default_policy_text
from schemas.avro import decode
from schemas.errors import ArtefactError
from schemas.governance import Act, Band, Cause, Control, Kind, Move, State, Tier
from schemas.topics import CONTROL
from streams import breaker, clerk, control, metrics
from streams.clerk import entered, entering
from streams.control import Standing, newest, told_once, told_so_far
from streams.governance import brought_up, item_lines
from streams.settings import Settings
from tests.world import TestWorld, a_world

PRIVATE = b"k" * 32


def a_registry(folder: Path, names: tuple[str, ...]) -> tuple[Registry, list[str]]:
    """A registry in which policies of these names decided one after the other."""
    registry = Registry(folder, Keys(public_of(PRIVATE), PRIVATE))
    ids = [registry.put_policy(default_policy_text().replace('"default"', f'"{name}"')) for name in names]
    for number, policy_id in enumerate(ids):
        brought_up(registry, Kind.POLICY, policy_id, "a test", number + 1)
    return registry, ids


def watched(world: TestWorld, registry: Registry, outcome: str, seconds: int = 12) -> list[Control]:
    """What the breaker told while every payment had this outcome, ten a tick."""

    async def run() -> None:
        task = asyncio.create_task(breaker.watch_rates(world.world, registry, every_s=0.02))
        for _ in range(seconds * 4):
            await asyncio.sleep(0.01)
            for _ in range(10):
                world.world.given.update((judge, outcome) for judge in world.deciding)
        task.cancel()

    asyncio.run(run())
    return [decode(Control, message.value) for message in world.bus.told[CONTROL.name]]


def judged_by(world: TestWorld, policy_id: str) -> TestWorld:
    """The world with this policy deciding."""
    model, policy = world.world.panel.champions
    world.world.panel = Panel(Judges(model, dataclasses.replace(policy, policy_id=policy_id)))
    return world


def test_a_policy_that_blocks_everybody_is_taken_out_once(tmp_path: Path) -> None:
    registry, (before, now) = a_registry(tmp_path, ("before", "now"))
    told = watched(judged_by(a_world(), now), registry, "block")
    assert [(event.item_id, event.previous_id, event.cause) for event in told] == [(before, now, Cause.BREAKER)]
    assert "100.0% of" in told[0].why
    assert deciding(registry.inventory(), Kind.POLICY, newest({}, told)[Kind.POLICY]) == before
    assert metrics.REGISTRY.get_sample_value("holdfast_breach", {"kind": "policy"}) == 1


def test_of_two_processes_that_see_it_the_first_in_the_log_raises_the_alarm(tmp_path: Path) -> None:
    registry, (_, now) = a_registry(tmp_path, ("before", "now"))
    worlds = [judged_by(a_world(), now) for _ in range(2)]
    log: list[Control] = []

    async def run() -> None:
        tasks = [asyncio.create_task(breaker.watch_rates(world.world, registry, every_s=0.02)) for world in worlds]
        for _ in range(40):
            await asyncio.sleep(0.01)
            for number, world in enumerate(worlds):
                world.world.given.update({(judge, "block"): 10 + number for judge in world.deciding})
                log.extend(e for m in world.bus.told[CONTROL.name] if (e := decode(Control, m.value)) not in log)
                if len(log) > 1:  # both have told it
                    world.world.told = newest({}, log)
        for task in tasks:
            task.cancel()

    with capture_logs() as said:
        asyncio.run(run())
    assert len({event.control_id for event in log}) == 1
    assert len(log) == 2
    assert [line["log_level"] for line in said] == ["critical"]


def test_a_history_that_could_not_be_read_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, (before, now) = a_registry(tmp_path, ("before", "now"))
    answers, read = iter((OSError("no answer"), ArtefactError("half there"))), registry.inventory

    def late() -> Inventory:
        if error := next(answers, None):
            raise error
        return read()

    monkeypatch.setattr(registry, "inventory", late)
    assert [event.item_id for event in watched(judged_by(a_world(), now), registry, "block")] == [before]


def test_one_that_approves_is_left_alone(tmp_path: Path) -> None:
    registry, (_, now) = a_registry(tmp_path, ("before", "now"))
    assert watched(judged_by(a_world(), now), registry, "approve") == []


def test_the_one_that_was_gone_back_to_stays_whatever_it_does(tmp_path: Path) -> None:
    registry, (before, _) = a_registry(tmp_path, ("before", "now"))
    assert watched(judged_by(a_world(), before), registry, "block") == []


def test_one_that_this_release_cannot_use_is_not_gone_back_to(tmp_path: Path) -> None:
    registry, (good,) = a_registry(tmp_path, ("good",))
    foreign, now = (
        registry.put_policy(default_policy_text().replace('"default"', f'"{name}"').replace("velocity.", f"{family}."))
        for name, family in (("foreign", "of_another_catalogue"), ("now", "velocity"))
    )
    for number, policy_id in enumerate((foreign, now), 2):
        brought_up(registry, Kind.POLICY, policy_id, "a test", number)
    last = registry.inventory().last_good(Kind.POLICY)
    assert last is not None
    assert last.item_id == foreign
    assert [event.item_id for event in watched(judged_by(a_world(), now), registry, "block")] == [good]


def test_an_event_that_came_late_changes_nothing(tmp_path: Path) -> None:
    registry, (_, now) = a_registry(tmp_path, ("before", "now"))
    (event,) = watched(judged_by(a_world(), now), registry, "block")
    later = msgspec.structs.replace(event, number=event.number + 4, item_id=now)
    assert newest({}, [later, event])[Kind.POLICY] == later
    assert newest({}, [event, later])[Kind.POLICY] == later


def test_a_history_without_the_line_of_which_the_log_tells_is_said(tmp_path: Path) -> None:
    registry, _ = a_registry(tmp_path, ("before", "now"))
    last = registry.inventory().moves[-1]
    told = [control_of(last, None)]
    assert entered(registry, told) == []
    (newest_line,) = tmp_path.rglob(f"{last.number:08d}.json")
    newest_line.unlink()
    assert registry.inventory().moves[-1].number == last.number - 1, "by itself the history looks whole"
    with pytest.raises(ArtefactError, match=f"tells of line {last.number} .*ends at line {last.number - 1}: its newest lines were taken away"):
        entered(registry, told)


def test_what_a_person_promotes_while_the_breakers_event_is_entered_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, (before, now) = a_registry(tmp_path, ("before", "now"))
    items = registry.inventory().items
    event = breaker_event(items[now], items[before], "block: 100.0% of 30 decisions", 50)
    newer = registry.put_policy(default_policy_text().replace('"default"', '"newer"'))
    for act, by, terms in ((Act.REGISTER, "ana", {}), (Act.VALIDATE, "ben", {}), (Act.APPROVE, "cleo", {"tier": Tier.LOW})):
        assert isinstance(registry.move(Kind.POLICY, newer, act, by, "a test", 60, **terms), Move)
    person, opened = Registry(tmp_path, Keys(public_of(PRIVATE), PRIVATE)), registry.load_policy

    def while_opened(policy_id: str) -> Policy:
        monkeypatch.setattr(registry, "load_policy", opened)
        assert isinstance(person.move(Kind.POLICY, newer, Act.PROMOTE, "dora", "it is better", 70), Move)
        return opened(policy_id)

    monkeypatch.setattr(registry, "load_policy", while_opened)
    assert entered(registry, [event]) == []
    champion = registry.inventory().champion(Kind.POLICY)
    assert champion is not None
    assert champion.item_id == newer


def test_a_history_signed_with_another_key_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_registry(tmp_path, ("now",))
    monkeypatch.setattr(clerk, "LOOK_S", 0.01)
    monkeypatch.setattr(control, "QUERY_S", 0.01)
    looks, said = [], list[str]()
    monkeypatch.setattr(clerk, "entered", lambda *given: looks.append(given) or entered(*given))
    with entering(Settings(kafka_bootstrap="127.0.0.1:1", registry_dir=tmp_path, model_key="ab" * 32), said.append):
        until = time.monotonic() + 20
        while len(looks) < 5 and time.monotonic() < until:
            time.sleep(0.01)
    assert len(looks) >= 5
    assert ["is not signed with the key" in each for each in said] == [True]


@pytest.mark.integration
def test_who_asks_who_decides_hears_the_breaker_before_it_is_entered_and_the_entry_says_the_same(tmp_path: Path, real: Settings) -> None:
    registry, (before, now) = a_registry(tmp_path, ("before", "now"))
    items = registry.inventory().items
    standing = Standing(registry, real)
    assert standing.item_id(Kind.POLICY) == now
    told_once(real, breaker_event(items[now], items[before], "block: 100.0% of 30 decisions", 50))
    until = time.monotonic() + 10
    while standing.item_id(Kind.POLICY) != before and time.monotonic() < until:
        pass
    assert standing.item_id(Kind.POLICY) == before
    assert registry.inventory().moves[-1].item_id == now
    (move,) = entered(registry, told_so_far(real).values())
    assert (move.item_id, move.by, move.why, move.at_ms) == (before, BREAKER, "block: 100.0% of 30 decisions", 50)
    assert entered(registry, told_so_far(real).values()) == []
    assert standing.item_id(Kind.POLICY) == before
    standing.close()


@pytest.mark.parametrize(("high", "said"), [(0.005, "0.5%"), (0.07, "7%"), (0.5, "50%"), (1.0, "100%")])
def test_a_band_is_shown_as_it_was_approved(high: float, said: str) -> None:
    item = Item("m1", Kind.MODEL, State.APPROVED, "ana", bands=(Band("block", 0.0, high),))
    assert f"  band: block 0% to {said}" in item_lines(Inventory({"m1": item}), item, 0)
