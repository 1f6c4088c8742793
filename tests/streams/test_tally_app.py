"""The tally app: what it gathers, and that nothing is acknowledged before Redis has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import msgspec
import pytest

from features.catalogue import CATALOGUE
from features.memory import DictMemory, Updates
from features.row import FRAUDS, days
from features.tally import offsets_in, told
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

DAY = 86_400_000
DONE = {("decisions", 1): 9}
LOGGED_DAY = 3650


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
    """A place in partition 1, logged LOGGED_DAY days from noon."""
    return Source(topic, 1, offset, NOON + LOGGED_DAY * DAY, b"a1", b"", ())


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
    honest = msgspec.structs.replace(label, transaction_id="t2", transacted_at_ms=NOON, merchant_id="m1", fraud=False)
    tally.on_label(world, honest, at(5, "labels"))
    assert sorted(CATALOGUE.tallies[number] for number, _ in world.rows) == ["merchant", "terminal"]
    asyncio.run(tally.settle(world, {}))
    assert offsets_in(of_merchant(world)[:40])[DECISIONS.partitions + 1] == 5


def a_label(label_id: str, txn: str = "t1", learned_day: int = 1, **changes: object) -> Label:
    """A chargeback of a payment at noon, learned some days later."""
    label = Label(
        label_id=label_id,
        transaction_id=txn,
        account_id="a1",
        fraud=True,
        learned_at_ms=NOON + learned_day * DAY,
        source=LabelSource.CHARGEBACK,
        transacted_at_ms=NOON,
        merchant_id="m1",
        terminal_id="w1",
    )
    return msgspec.structs.replace(label, **changes)


def frauds(world: TallyWorld, kind: str, token: str) -> float:
    """How many known frauds of 30 days the tally of an entity tells when what was learned of NOON has matured."""

    async def read() -> bytes:
        return await world.memory.tally(kind, token)

    plan, contents = CATALOGUE.tally_plan, [None if each != kind else asyncio.run(read()) for each in CATALOGUE.tallies]
    numbers = told(plan, contents, NOON + 20 * DAY)
    (place,) = [n for n, fold in enumerate(plan.folds) if (fold.entity.name, fold.window, fold.where) == (kind, days(30), (FRAUDS,))]
    return float(numbers[place])


def learned(*labels: Label, world: TallyWorld | None = None, first: int = 0) -> TallyWorld:
    """The app's world after these labels."""
    world = a_tally_world() if world is None else world
    for offset, label in enumerate(labels, first):
        tally.on_label(world, label, at(offset, "labels"))
    asyncio.run(tally.settle(world, {}))
    return world


def test_a_label_that_is_dated_ahead_takes_nothing_from_what_is_known_of_its_merchant() -> None:
    """By when the log took it: who reads it again later, when that time has come, makes the same of it."""
    world = learned(a_label("l1"), a_label("l2", "t2", learned_day=LOGGED_DAY + 1), a_label("l3", "t3"))
    assert frauds(world, "merchant", "m1") == 2
    learned(a_label("l4", "t2"), world=world, first=3)
    assert frauds(world, "merchant", "m1") == 3, "its mended record counts"


def test_a_fraud_that_two_labels_tell_of_counts_once() -> None:
    chargeback = a_label("l1")
    verdict = a_label("l2", learned_day=5, source=LabelSource.ANALYST)
    for again in (chargeback, verdict, msgspec.structs.replace(verdict, merchant_id=None), msgspec.structs.replace(verdict, transacted_at_ms=None)):
        world = learned(chargeback, again)
        assert (frauds(world, "merchant", "m1"), frauds(world, "terminal", "w1")) == (1, 1)


def test_a_fraud_that_turns_out_to_be_none_is_taken_back_and_may_be_one_again() -> None:
    story = [a_label("l1"), a_label("l2", "t2"), a_label("l3", "t1", 4, fraud=False), a_label("l4", "t1", 9), a_label("l5", "t2", 9, fraud=False)]
    counts = [frauds(learned(*story[:until]), "merchant", "m1") for until in range(6)]
    assert counts == [0, 1, 2, 1, 2, 1]


def test_to_take_it_back_a_label_need_say_neither_when_it_was_nor_whose() -> None:
    world = learned(a_label("l1"), a_label("l2", learned_day=2, fraud=False, transacted_at_ms=None, merchant_id=None, terminal_id=None))
    assert (frauds(world, "merchant", "m1"), frauds(world, "terminal", "w1")) == (0, 0)


def test_what_was_learned_last_stands_though_an_older_label_is_delivered_again_after_it() -> None:
    chargeback, honest = a_label("l1"), a_label("l2", learned_day=3, fraud=False)
    for story in ((chargeback, honest, chargeback), (honest, chargeback), (chargeback, honest, honest, chargeback, honest)):
        assert frauds(learned(*story), "merchant", "m1") == 0


def test_of_two_merchants_that_labels_name_the_later_has_the_fraud_and_the_other_is_given_back_what_it_was_given() -> None:
    world = learned(a_label("l1"), a_label("l2", learned_day=3, merchant_id="m2", terminal_id=None))
    assert [frauds(world, *of) for of in (("merchant", "m1"), ("merchant", "m2"), ("terminal", "w1"))] == [0, 1, 1]
    learned(a_label("l3", learned_day=4, fraud=False), world=world, first=2)
    assert [frauds(world, *of) for of in (("merchant", "m1"), ("merchant", "m2"), ("terminal", "w1"))] == [0, 0, 0]


def test_a_tally_that_began_again_between_a_label_and_its_withdrawal_tells_no_less_than_nothing() -> None:
    world = learned(a_label("l1"))
    world.memory.contents.clear()  # type: ignore[attr-defined]
    learned(a_label("l2", learned_day=2, fraud=False), world=world, first=1)
    assert frauds(world, "merchant", "m1") == 0
    learned(a_label("l3", "t3"), world=world, first=2)
    assert 0 <= frauds(world, "merchant", "m1") <= 1


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
