"""The tally app: what it gathers, and that nothing is acknowledged before Redis has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import msgspec
import pytest

from features.catalogue import CATALOGUE
from features.memory import DictMemory, Updates
from features.tally import offsets_in
from schemas.decision import Action, Decision, Outcome
from schemas.errors import MemoryUnavailable
from schemas.label import Label, LabelSource
from schemas.topics import DECISIONS
from schemas.transaction import TransactionKind
from streams import tally
from streams.follow import Source
from streams.settings import Settings
from streams.tally import TallyWorld
from tests.streams.test_archive import NOON, a_decision
from tests.world import a_transaction

DONE = {("decisions", 1): 9}


class Flaky(DictMemory):
    """A memory that does not answer when it is told not to."""

    down = False

    def take(self, updates: Updates) -> Awaitable[None]:
        if self.down:
            raise MemoryUnavailable("down")
        return super().take(updates)


def a_tally_world() -> TallyWorld:
    return TallyWorld(CATALOGUE, Flaky(CATALOGUE), Settings())


def decided(name: str, outcome: Outcome = Outcome.APPROVE, **changes: object) -> Decision:
    txn = a_transaction(name, merchant_id="m1", terminal_id="w1", ip=None, country="DE", card_bin=None, **changes)
    return msgspec.structs.replace(a_decision(name), outcome=outcome, transaction=txn)


def at(offset: int, topic: str = "decisions") -> Source:
    """A place in partition 1."""
    return Source(topic, 1, offset, NOON, b"a1", b"", ())


def of_merchant(world: TallyWorld) -> bytes:
    async def read() -> bytes:
        return await world.memory.tally("merchant", "m1")

    return asyncio.run(read())


def test_a_decision_reaches_the_tally_of_each_entity_that_its_transaction_names() -> None:
    world = a_tally_world()
    assert tally.on_decision(world, decided("t1"), at(7)) == ()
    assert tally.on_decision(world, decided("t2", Outcome.BLOCK), at(8)) == ()
    named = {CATALOGUE.tallies[number]: len(rows) for (number, _), rows in world.rows.items()}
    assert named == {"merchant": 3, "terminal": 3, "country": 3}, "a block gives two rows: the attempt and the decline"
    assert asyncio.run(tally.settle(world, DONE)) == DONE
    assert offsets_in(of_merchant(world)[:40])[1] == 9


def test_who_is_to_authenticate_was_not_declined() -> None:
    world = a_tally_world()
    tally.on_decision(world, msgspec.structs.replace(decided("t1", Outcome.DECLINE), action=Action.STEP_UP), at(7))
    assert {CATALOGUE.tallies[number]: len(rows) for (number, _), rows in world.rows.items()} == {"merchant": 1, "terminal": 1, "country": 1}


def test_what_would_have_brought_money_in_is_no_declined_attempt() -> None:
    world = a_tally_world()
    tally.on_decision(world, decided("t1", Outcome.BLOCK, kind=TransactionKind.REFUND), at(7))
    assert {len(rows) for rows in world.rows.values()} == {1}


def test_a_decision_that_lies_in_the_log_twice_counts_once() -> None:
    world = a_tally_world()
    for offset in (7, 8):
        tally.on_decision(world, decided("t1"), at(offset))
    assert {len(rows) for rows in world.rows.values()} == {1}


def test_a_label_teaches_the_merchant_and_the_terminal_that_it_names_and_nobody_else() -> None:
    world = a_tally_world()
    label = Label(label_id="l1", transaction_id="t1", account_id="a1", fraud=True, learned_at_ms=NOON, source=LabelSource.CHARGEBACK)
    tally.on_label(world, label, at(3, "labels"))
    assert not world.rows, "it names no merchant and no time"
    tally.on_label(world, msgspec.structs.replace(label, transacted_at_ms=NOON, merchant_id="m1", terminal_id="w1"), at(4, "labels"))
    tally.on_label(world, msgspec.structs.replace(label, transacted_at_ms=NOON, merchant_id="m1", fraud=False), at(5, "labels"))
    assert sorted(CATALOGUE.tallies[number] for number, _ in world.rows) == ["merchant", "terminal"]
    asyncio.run(tally.settle(world, {}))
    assert offsets_in(of_merchant(world)[:40])[DECISIONS.partitions + 1] == 5


def test_nothing_is_acknowledged_before_redis_has_it_and_nothing_is_lost_while_it_does_not_answer() -> None:
    world = a_tally_world()
    assert isinstance(world.memory, Flaky)
    world.memory.down = True
    tally.on_decision(world, decided("t1"), at(7))
    with pytest.raises(MemoryUnavailable):
        asyncio.run(tally.settle(world, DONE))
    tally.on_decision(world, decided("t2"), at(8))
    world.memory.down = False
    asyncio.run(tally.settle(world, DONE))
    assert offsets_in(of_merchant(world)[:40])[1] == 9
    assert not world.rows
