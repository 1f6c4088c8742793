"""Decisions that go together: what fails for one touches no other, and whoever asks gets an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.decision import Outcome
from schemas.errors import Conflict, LogUnavailable, MemoryUnavailable
from schemas.topics import Topic
from schemas.transaction import Transaction
from streams import pipeline
from streams.asked import Decided
from streams.world import GROUP_MAX, GROUP_MIN, GROUPS, groups_of
from tests.world import TestWorld, a_transaction, a_world


def together(world: TestWorld, txns: Sequence[Transaction]) -> list[Decided | BaseException]:
    """Decides these within one tick."""

    async def main() -> list[Decided | BaseException]:
        return await asyncio.gather(*(world.decide(txn) for txn in txns), return_exceptions=True)

    return asyncio.run(main())


def test_who_conflicts_or_cannot_be_told_touches_no_other() -> None:
    world = a_world()
    for account in ("a1", "a2", "a3"):
        world.know(account)
    together(world, [a_transaction("t1")])
    tell = world.bus.tell

    def deaf(topic: Topic, key: str, value: bytes) -> asyncio.Future[None]:
        world.bus.down = key == "a2"
        return tell(topic, key, value)

    world.bus.tell = deaf  # type: ignore[method-assign]
    txns = [a_transaction("t1", amount_minor=5), a_transaction("t2", account_id="a2"), a_transaction("t3", account_id="a3"), a_transaction("t1")]
    conflict, untold, new, repeat = together(world, txns)
    assert isinstance(conflict, Conflict)
    assert isinstance(untold, LogUnavailable)
    assert isinstance(new, Decided)
    assert new.decision is not None
    assert isinstance(repeat, Decided)
    assert repeat.decision is None, "the answer from before"
    assert [decision.transaction_id for decision in world.decisions] == ["t1", "t3"]


def test_a_repeat_whose_account_cannot_be_read_touches_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_world()
    world.know("a2")
    asked = world.books.asked
    verification = a_transaction("t1", amount_minor=0)
    world.bus.down = True
    monkeypatch.setattr(world.books, "asked", lambda account: MemoryUnavailable("gone") if account == "a1" else asked(account))
    for _ in range(2):  # the second time its id is known
        lost, other = together(world, [verification, a_transaction("t2", account_id="a2")])
        assert isinstance(lost, MemoryUnavailable)
        assert isinstance(other, LogUnavailable)


def test_many_of_one_account_spend_its_money_once() -> None:
    world = a_world()
    world.know(balance_minor=2_000)
    together(world, [a_transaction(f"t{n}", amount_minor=900, merchant_id=f"m{n}") for n in range(4)])
    assert sorted(decision.outcome for decision in world.decisions) == [Outcome.APPROVE] * 2 + [Outcome.DECLINE] * 2
    assert sum(decision.held_minor for decision in world.decisions) == 1_800


def test_a_bug_is_everybodys_and_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipeline, "look_all", bug)
    assert {type(each) for each in together(a_world(), [a_transaction(f"t{n}") for n in range(30)])} == {ZeroDivisionError}


def test_a_model_that_breaks_is_a_reason_to_review_and_no_reason_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise IndexError("a broken tree")

    monkeypatch.setattr(pipeline, "judge_all", broken)
    world = a_world()
    world.know()
    together(world, [a_transaction("t1"), a_transaction("t2", account_id="a2")])
    one, other = sorted(world.decisions, key=lambda decision: decision.transaction_id)
    assert (one.outcome, one.score, one.degradations, one.held_minor) == (Outcome.REVIEW, None, ("score_missing",), 1_000)
    assert other.outcome is Outcome.DECLINE, "its account is unknown"


@given(st.integers(1, 5_000))
def test_groups_are_neither_too_large_nor_so_small_that_they_do_not_pay(count: int) -> None:
    groups = groups_of(count)
    sizes = [len(range(number, count, groups)) for number in range(groups)]
    assert sum(sizes) == count
    assert max(sizes) <= GROUP_MAX
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(count, GROUP_MIN)
    assert groups >= min(GROUPS, count // GROUP_MIN)
