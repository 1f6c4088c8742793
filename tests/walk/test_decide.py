"""The walk of one payment, told on a world: what is decided, held, told, and what a repeat gets."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from features.catalogue import CATALOGUE
from features.online import RedisMemory, warm
from features.wire import Wire
from models.hold import EMPTY, Book, HoldState, UnknownAccount, state_known
from models.ledger import transfer_of_credit
from models.opinion import Judges, Panel
from schemas.account import AccountState, AccountStatus
from schemas.avro import decode
from schemas.decision import Action, Decision, Outcome
from schemas.errors import Conflict, InvalidRecord, LogUnavailable
from schemas.identity import decision_id, hold_id
from schemas.topics import TRANSACTIONS
from schemas.transaction import CheckResult, Transaction, TransactionKind
from streams.answers import Answers
from streams.books import Books
from streams.follow import Source
from streams.score import on_transaction
from tests.world import NOON, TestWorld, a_transaction, a_world

T = TypeVar("T")


def run(work: Awaitable[T]) -> T:
    """Runs to the end."""

    async def main() -> T:
        return await work

    return asyncio.run(main())


def test_an_approved_payment_is_held_and_told() -> None:
    world = a_world()
    world.know()
    made = run(world.decide(a_transaction()))
    (decision,) = world.decisions
    assert decision.outcome is Outcome.APPROVE
    assert decision.reasons == ()
    assert (decision.hold_id, decision.held_minor, decision.hold_currency) == (hold_id("t1"), 1_000, "EUR")
    assert decision.decision_id == decision_id("t1")
    assert decode(Decision, made.message) == decision
    book = world.books.books["a1"]
    assert book.available_minor(NOON) == 99_000
    assert book.holds[0].state is HoldState.PROVISIONAL


def test_an_untold_hold_lapses_by_itself() -> None:
    world = a_world()
    world.know()
    world.bus.down = True
    with pytest.raises(LogUnavailable):
        run(world.decide(a_transaction()))
    book = world.books.books["a1"]
    assert book.available_minor(NOON + 29_999) == 99_000
    assert book.available_minor(NOON + 30_000) == 100_000


def test_a_retry_after_an_indefinite_answer_tells_the_same_bytes_once() -> None:
    world = a_world()
    world.know()
    world.bus.down = True
    with pytest.raises(LogUnavailable):
        run(world.decide(a_transaction()))
    world.bus.down = False
    world.now_ms += 5_000
    made = run(world.decide(a_transaction()))
    (decision,) = world.decisions
    assert decision.decided_at_ms == NOON, "the first decision stands, though it was told later"
    assert decode(Decision, made.message) == decision
    assert world.books.books["a1"].available_minor(NOON) == 99_000, "and holds once"


def test_a_repeat_gets_the_first_answer_byte_for_byte() -> None:
    world = a_world()
    world.know()
    first = run(world.decide(a_transaction()))
    world.now_ms += 60_000
    assert run(world.decide(a_transaction())).message == first.message
    assert len(world.decisions) == 1


def test_concurrent_repeats_get_one_decision() -> None:
    world = a_world()
    world.know()

    async def both() -> list[bytes]:
        made = await asyncio.gather(*(world.decide(a_transaction()) for _ in range(5)))
        return [m.message for m in made]

    messages = asyncio.run(both())
    assert len(set(messages)) == 1
    assert len({d.decision_id for d in world.decisions}) == 1
    assert world.books.books["a1"].available_minor(NOON) == 99_000


def test_the_same_id_with_other_contents_is_a_conflict_and_changes_nothing() -> None:
    world = a_world()
    world.know()
    run(world.decide(a_transaction()))
    with pytest.raises(Conflict):
        run(world.decide(a_transaction(amount_minor=2_000)))
    assert len(world.decisions) == 1
    assert world.books.books["a1"].available_minor(NOON) == 99_000


def test_what_a_topic_brings_under_the_id_of_an_increment_is_refused() -> None:
    world = a_world()
    with pytest.raises(InvalidRecord, match="transaction_id: begins with inc_"):
        run(on_transaction(world.world, a_transaction("inc_1"), Source(TRANSACTIONS.name, 0, 0, NOON, b"a1", b"", ())))
    assert world.decisions == []


@pytest.mark.parametrize(
    ("account", "code"),
    [
        ({}, "unknown_account"),
        ({"balance_minor": 999}, "insufficient_funds"),
        ({"status": "frozen"}, "account_frozen"),
        ({"status": "closed"}, "account_closed"),
    ],
)
def test_an_account_that_cannot_pay_is_a_decline_with_its_own_reason(account: dict[str, object], code: str) -> None:
    world = a_world()
    if account:
        if "status" in account:
            account = {"status": AccountStatus(str(account["status"]))}
        world.know(**account)  # type: ignore[arg-type]
    run(world.decide(a_transaction()))
    (decision,) = world.decisions
    assert (decision.outcome, decision.reasons[0].code, decision.hold_id) == (Outcome.DECLINE, code, None)
    assert decision.declined_positions, "and the logs know that it was declined"


def test_exactly_the_available_money_can_be_spent() -> None:
    world = a_world()
    world.know(balance_minor=1_000)
    run(world.decide(a_transaction("t1")))
    run(world.decide(a_transaction("t2", amount_minor=1)))
    assert [d.outcome for d in world.decisions] == [Outcome.APPROVE, Outcome.DECLINE]


def test_an_unknown_account_may_hold_without_a_funds_check() -> None:
    world = a_world(UnknownAccount.HOLD)
    run(world.decide(a_transaction()))
    assert world.decisions[0].outcome is Outcome.APPROVE
    assert world.books.books["a1"].holds
    assert world.books.books["a1"].known is EMPTY.known


@pytest.mark.parametrize("kind", [TransactionKind.REFUND, TransactionKind.TRANSFER_IN, TransactionKind.CASH_IN])
def test_money_that_comes_in_holds_nothing(kind: TransactionKind) -> None:
    world = a_world()
    run(world.decide(a_transaction(kind=kind)))
    (decision,) = world.decisions
    assert decision.hold_id is None
    assert decision.outcome is not Outcome.DECLINE


@pytest.mark.parametrize(
    ("status", "outcome"), [("open", Outcome.APPROVE), ("frozen", Outcome.APPROVE), ("dormant", Outcome.APPROVE), ("closed", Outcome.DECLINE)]
)
@pytest.mark.parametrize("kind", [TransactionKind.REFUND, TransactionKind.TRANSFER_IN])
def test_money_that_comes_in_is_refused_where_the_account_is_closed_alone(kind: TransactionKind, status: str, outcome: Outcome) -> None:
    world = a_world()
    world.know(status=AccountStatus(status))
    run(world.decide(a_transaction(kind=kind)))
    (decision,) = world.decisions
    assert decision.outcome is outcome
    assert [reason.code for reason in decision.reasons] == ([] if outcome is Outcome.APPROVE else ["account_closed"])
    assert not transfer_of_credit(decision) or outcome is Outcome.APPROVE
    assert not decision.declined_positions


def test_the_decision_carries_what_it_was_made_on() -> None:
    world = a_world()
    world.know()
    for i in range(3):
        run(world.decide(a_transaction(f"t{i}", at_ms=NOON + i)))
    last = world.decisions[-1]
    values = np.frombuffer(last.vector, "<f8")
    assert len(values) == len(CATALOGUE.names)
    assert values[CATALOGUE.index["velocity.card_count_10m"]] == 2, "its own transaction is not in it"
    assert last.catalogue_id == CATALOGUE.catalogue_id
    assert last.positions[CATALOGUE.logs.index("card")] == 2
    model, policy = world.world.panel.champions
    assert (last.model_id, last.policy_id) == (model.model_id, policy.policy_id)


def test_a_pure_velocity_attack_is_stopped_with_specific_reasons() -> None:
    world = a_world()
    world.know(balance_minor=10_000_000)
    for i in range(40):
        run(world.decide(a_transaction(f"t{i}", at_ms=NOON + i * 1_000, merchant_id=f"m{i}")))
    last = world.decisions[-1]
    assert last.outcome is Outcome.BLOCK
    assert 1 <= len(last.reasons) <= 4
    assert any(r.feature and r.feature.startswith("velocity.") for r in last.reasons)
    assert last.hold_id is None


def test_a_refund_that_is_blocked_is_no_declined_attempt_of_the_card() -> None:
    world = a_world()
    world.know(balance_minor=10_000_000)
    for i in range(41):
        kind = TransactionKind.CARD_PRESENT if i < 39 else TransactionKind.REFUND
        run(world.decide(a_transaction(f"t{i}", at_ms=NOON + i * 1_000, merchant_id=f"m{i}", kind=kind)))
    paid, refunded, last = world.decisions[-3:]
    assert (paid.outcome, refunded.outcome) == (Outcome.BLOCK, Outcome.BLOCK)
    assert paid.declined_positions
    assert not refunded.declined_positions
    before, after = (np.frombuffer(each.vector, "<f8")[CATALOGUE.index["velocity.card_declines_24h"]] for each in (refunded, last))
    assert before == after > 0


def test_every_outcome_but_approval_has_one_to_four_reasons() -> None:
    world = a_world()
    world.know(balance_minor=5_000)
    for i in range(30):
        run(world.decide(a_transaction(f"t{i}", at_ms=NOON + i * 500, amount_minor=400)))
    for decision in world.decisions:
        assert (1 <= len(decision.reasons) <= 4) is (decision.outcome is not Outcome.APPROVE)


def test_a_model_promoted_while_a_payment_waits_for_its_account_is_not_the_one_that_judged_it() -> None:
    world = a_world()
    world.know()
    (model, policy), asked = world.world.panel.champions, world.books.change_all

    async def promoted_meanwhile(changes: Any) -> Any:
        others = Judges(dataclasses.replace(model, model_id="mdl_other"), dataclasses.replace(policy, policy_id="pol_other"))
        world.world.panel = Panel(others)
        return await asked(changes)

    world.books.change_all = promoted_meanwhile  # type: ignore[method-assign]  # the same books; a promotion comes between
    run(world.decide(a_transaction()))
    (decision,) = world.decisions
    assert (decision.model_id, decision.policy_id) == (model.model_id, policy.policy_id)


def test_on_one_redis_a_hold_and_its_answer_are_one_step_also_where_others_change_the_account(redis_url: str) -> None:
    async def main() -> None:
        warm(CATALOGUE)
        wire = await Wire.connect(redis_url)
        scene, books = a_world(), Books(wire)
        scene.world.memory, scene.world.books, scene.world.answers = RedisMemory(wire, CATALOGUE), books, Answers(wire, 3600)
        state = AccountState(account_id="a1", balance_minor=2_500, currency="EUR", as_of_ms=1)
        await books.change("a1", lambda book: state_known(book, state))
        later = list[int]()

        async def kept_later(made: Any) -> Any:
            later.append(len(made))
            return await keep_all(made)

        keep_all = scene.world.answers.keep_all
        scene.world.answers.keep_all = kept_later  # type: ignore[method-assign]
        alone = await scene.decide(a_transaction("alone"))
        assert later == [0], "the step that placed the hold kept the answer"
        together = await asyncio.gather(*(scene.decide(a_transaction(name)) for name in ("one", "other")))
        first, *others = scene.decisions
        assert (first.outcome, first.hold_id) == (Outcome.APPROVE, hold_id("alone"))
        assert sorted((each.outcome, each.hold_id is None, each.reasons[:1] and each.reasons[0].code) for each in others) == [
            (Outcome.APPROVE, False, ()),
            (Outcome.DECLINE, True, "insufficient_funds"),
        ]
        book = Book.from_bytes((await books.read("a1"))[0])
        assert sorted(each.hold_id for each in book.holds) == sorted(each.hold_id for each in scene.decisions if each.hold_id)
        for name, made in zip(("alone", "one", "other"), (alone, *together), strict=True):
            assert (await scene.decide(a_transaction(name))).message == made.message, "a repeat gets the same bytes"
        await scene.world.memory.close()
        await wire.close()

    asyncio.run(main())


WARMED = """
import asyncio, sys
from numba.core.dispatcher import Dispatcher
from features.catalogue import CATALOGUE
from features.online import RedisMemory, warm
from features.wire import Wire
from streams.answers import Answers
from streams.books import Books
from tests.world import a_transaction, a_world

def compiled():
    parts = [part for name, module in sys.modules.items() if name.startswith(("features", "schemas")) for part in vars(module).values()]
    return {part.py_func.__qualname__: len(part.signatures) for part in parts if isinstance(part, Dispatcher)}

async def main(url):
    wire = await Wire.connect(url, timeout_s=60)
    scene = a_world()
    scene.world.memory, scene.world.books, scene.world.answers = RedisMemory(wire, CATALOGUE), Books(wire), Answers(wire, 3600)
    warm(CATALOGUE)
    before = compiled()
    await asyncio.gather(*(scene.decide(a_transaction(name)) for name in ("one", "other")))
    assert len(scene.decisions) == 2
    assert compiled() == before, {name: count for name, count in compiled().items() if before.get(name) != count}
    await scene.world.memory.close()
    await wire.close()

asyncio.run(main(sys.argv[1]))
"""


def test_what_decides_is_compiled_before_the_first_payment(redis_url: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    alone = subprocess.run([sys.executable, "-c", WARMED, redis_url], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert alone.returncode == 0, alone.stderr


def test_a_payment_is_approved_in_part_where_its_host_can_take_that_and_the_policy_lets_it() -> None:
    world = a_world()
    world.know(balance_minor=700)
    first = run(world.decide(a_transaction(partial_allowed=True)))
    again = run(world.decide(a_transaction(partial_allowed=True)))
    (decision,) = world.decisions
    assert first.message == again.message, "a repeat gets the same bytes"
    assert (decision.outcome, decision.reasons, decision.held_minor, decision.approved_minor) == (Outcome.APPROVE, (), 700, 700)
    assert decision.transaction.amount_minor == 1_000, "and the record says both"
    assert decision.hold_tolerance_minor == 0
    assert world.books.books["a1"].available_minor(NOON) == 0


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, Outcome.DECLINE),
        ({"partial_allowed": True, "kind": TransactionKind.ATM}, Outcome.DECLINE),
        ({"partial_allowed": True, "mcc": "6011"}, Outcome.DECLINE),
        ({"partial_allowed": True, "amount_minor": 700}, Outcome.APPROVE),
        ({"partial_allowed": True, "amount_minor": 0}, Outcome.APPROVE),
        ({"partial_allowed": True, "kind": TransactionKind.REFUND}, Outcome.APPROVE),
    ],
)
def test_what_is_not_approved_in_part_is_approved_whole_or_not_at_all(changes: dict[str, Any], outcome: Outcome) -> None:
    world = a_world()
    world.know(balance_minor=700)
    run(world.decide(a_transaction(**changes)))
    (decision,) = world.decisions
    assert (decision.outcome, decision.approved_minor) == (outcome, None)


def test_in_another_currency_what_is_held_is_what_there_is_and_what_is_approved_is_worth_no_more() -> None:
    world = a_world()
    world.know(balance_minor=700)
    run(world.decide(a_transaction(partial_allowed=True, amount_minor=1_100, currency="USD", billing_amount_minor=1_000, billing_currency="EUR")))
    (decision,) = world.decisions
    assert (decision.held_minor, decision.hold_currency, decision.approved_minor) == (700, "EUR", 770)


def test_a_review_is_not_approved_in_part() -> None:
    world = a_world()
    world.know(balance_minor=700)
    champions = world.world.panel.champions
    world.world.panel = Panel(Judges(champions.model, dataclasses.replace(champions.policy, review_above=-1)))  # a score of 0 too
    run(world.decide(a_transaction(partial_allowed=True)))
    (decision,) = world.decisions
    assert (decision.outcome, decision.reasons[0].code) == (Outcome.DECLINE, "insufficient_funds")


def an_online(transaction_id: str = "t1", **changes: Any) -> Transaction:
    return a_transaction(transaction_id, kind=TransactionKind.ECOMMERCE, card_bin="411111", **changes)


def a_stepped_world() -> TestWorld:
    """A world in which `t1` was asked to authenticate."""
    world = a_world()
    world.know()
    world.ask_for_authentication()
    run(world.decide(an_online()))
    return world


def test_a_cardholder_is_asked_to_authenticate_and_nothing_is_held_nor_remembered_as_a_decline() -> None:
    world = a_stepped_world()
    (decision,) = world.decisions
    assert (decision.outcome, decision.action, decision.card_scheme) == (Outcome.DECLINE, Action.STEP_UP, "visa")
    assert (decision.hold_id, decision.held_minor, decision.declined_positions) == (None, 0, ())
    assert decision.reasons[0].code == "many_card_payments_1m"
    assert world.books.books["a1"].available_minor(NOON) == 100_000


def test_the_authenticated_retry_is_decided_on_everything_else() -> None:
    world = a_stepped_world()
    retry = an_online("t2", step_up_of="t1", three_ds_result=CheckResult.MATCH)
    first = run(world.decide(retry))
    assert run(world.decide(retry)).message == first.message
    decision = world.decisions[1]
    assert (decision.outcome, decision.action, decision.held_minor) == (Outcome.APPROVE, None, 1_000)
    poor = an_online("t4", step_up_of="t3", three_ds_result=CheckResult.MATCH, amount_minor=200_000)
    run(world.decide(an_online("t3", amount_minor=200_000)))
    run(world.decide(poor))
    assert world.decisions[-1].reasons[0].code == "insufficient_funds"


@pytest.mark.parametrize(
    ("result", "code"),
    [(CheckResult.NO_MATCH, "authentication_failed"), (None, "authentication_missing"), (CheckResult.PARTIAL, "authentication_missing")],
)
def test_a_retry_that_is_not_authenticated_is_a_decline_of_its_own_name(result: CheckResult | None, code: str) -> None:
    world = a_stepped_world()
    run(world.decide(an_online("t2", step_up_of="t1", three_ds_result=result)))
    decision = world.decisions[1]
    assert (decision.outcome, decision.action, decision.reasons[0].code, decision.hold_id) == (Outcome.DECLINE, None, code, None)
    assert decision.declined_positions, "this one was declined"


MATCH = {"three_ds_result": CheckResult.MATCH}


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"step_up_of": "t0"}, "step_up_unknown", "step_up_of"),
        ({"step_up_of": "t2"}, "step_up_unknown", "step_up_of"),  # its own
        ({"step_up_of": "t1", "amount_minor": 1_001}, "step_up_mismatch", "amount_minor"),
        ({"step_up_of": "t1", "currency": "USD"}, "step_up_mismatch", "currency"),
        ({"step_up_of": "t1", "merchant_id": "m2"}, "step_up_mismatch", "merchant_id"),
        ({"step_up_of": "t1", "card_token": "crd_k1_2"}, "step_up_mismatch", "card_token"),
        ({"step_up_of": "t1", "account_id": "a2"}, "step_up_mismatch", "account_id"),
    ],
)
def test_a_retry_is_of_one_payment_that_asked_for_it(changes: dict[str, Any], code: str, field: str) -> None:
    world = a_stepped_world()
    with pytest.raises(InvalidRecord) as refused:
        run(world.decide(an_online("t2", **(MATCH | changes))))
    assert (refused.value.code, refused.value.field) == (code, field)
    assert len(world.decisions) == 1
    run(world.decide(an_online("t2", step_up_of="t1", **MATCH)))
    assert world.decisions[1].outcome is Outcome.APPROVE, "and leaves the right one to come"


def test_one_payment_has_one_retry_and_that_has_none() -> None:
    world = a_stepped_world()
    run(world.decide(an_online("t2", step_up_of="t1")))
    with pytest.raises(InvalidRecord) as refused:
        run(world.decide(an_online("t3", step_up_of="t1", **MATCH)))
    assert refused.value.code == "step_up_used"
    with pytest.raises(InvalidRecord) as refused:
        run(world.decide(an_online("t3", step_up_of="t2", **MATCH)))
    assert refused.value.code == "step_up_unknown"
    world.answers.kept.pop("t1")
    run(world.decide(an_online("t2", step_up_of="t1")))
    assert len(world.decisions) == 2, "a repeat of the retry has its answer, though the first payment is no more known"
