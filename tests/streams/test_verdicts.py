"""`holdfast check --verdicts`: what was decided follows from the model, the policy and the record, and what does not is named or counted."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from models.opinion import Judges
from schemas.account import AccountStatus
from schemas.avro import encode
from schemas.decision import Decision, Outcome, ReasonSource
from schemas.errors import ArtefactError, SettingsError
from schemas.topics import DECISIONS
from schemas.transaction import TransactionKind
from streams.bus import Message
from streams.verdicts import DROPPED, FORCED, FOREIGN, STAND_IN, UNREADABLE, UNSCORED, Bench, Verdicts, log_compared, verdicts_compared
from tests.world import NOON, TestWorld, a_transaction, a_world, an_ensemble

REFUSED = "pol_of_an_earlier_release"


class Known(Bench):
    """Who decides in these tests; everybody else is lost."""

    def __init__(self, judges: Judges) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # nothing is opened
        self._known = judges

    def _judges(self, model_id: str, policy_id: str) -> Judges:
        if policy_id == REFUSED:
            raise SettingsError("policy.extra: unknown key")
        if (model_id, policy_id) != (self._known.model.model_id, self._known.policy.policy_id):
            raise ArtefactError(f"model {model_id} is not in the registry")
        return self._known


def decided_much(stepping: bool = False) -> TestWorld:
    """Approvals, blocks or requests to authenticate, refusals of accounts, and credits."""
    world = a_world()
    if stepping:
        world.ask_for_authentication()
    world.know(balance_minor=9_000)
    world.know("a2", status=AccountStatus.FROZEN)

    async def pay() -> None:
        for number in range(40):
            kind = (TransactionKind.ECOMMERCE, TransactionKind.REFUND, TransactionKind.CARD_PRESENT)[number % 3]
            account = f"a{1 + number % 3}"
            await world.decide(a_transaction(f"t{number}", kind=kind, account_id=account, at_ms=NOON + number * 400, amount_minor=700))
        for number in range(3):
            await world.decide(a_transaction(f"later{number}", card_token=f"crd_k1_{number}", account_id="a1", at_ms=NOON + 10**7, amount_minor=1))

    asyncio.run(pay())
    return world


def compared(world: TestWorld, *decisions: Decision) -> Verdicts:
    return verdicts_compared([decisions or world.decisions], Known(world.world.panel.champions))


@pytest.mark.parametrize("stepping", [False, True])
def test_all_that_was_decided_is_decided_so_again(stepping: bool) -> None:
    world = decided_much(stepping)
    found = compared(world)
    assert found.agrees, found.lines()
    assert (found.compared, found.equal) == (43, 43)
    outcomes = {decision.outcome for decision in world.decisions}
    sources = {reason.source for decision in world.decisions for reason in decision.reasons}
    assert outcomes >= {Outcome.DECLINE, Outcome.BLOCK, *(() if stepping else (Outcome.APPROVE,))}
    assert sources >= {ReasonSource.RULE, *(() if stepping else (ReasonSource.ACCOUNT,))}
    assert any(decision.action for decision in world.decisions) is stepping


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("score", lambda d: {"score": (d.score or 0) + 1}),
        ("outcome", lambda d: {"outcome": Outcome.REVIEW if d.outcome is not Outcome.REVIEW else Outcome.APPROVE}),
        ("risk", lambda d: {"risk": None}),
        ("reasons", lambda d: {"reasons": d.reasons[1:] or (msgspec.structs.replace(REASON, code="other"),)}),
        ("contributions", lambda d: {"contributions": d.contributions[1:]}),
        ("contributions", lambda d: {"contributions": (msgspec.structs.replace(d.contributions[0], probability=0.123), *d.contributions[1:])}),
        ("score", lambda d: {"vector": bytes(len(d.vector))}),
    ],
)
def test_what_was_altered_is_named(part: str, change: Any) -> None:
    world = decided_much()
    decision = next(d for d in world.decisions if d.score)
    found = compared(world, msgspec.structs.replace(decision, **change(decision)))
    assert not found.agrees
    assert part in found.apart, found.lines()
    assert found.differences[0].transaction_id == decision.transaction_id
    assert f"{found.apart[part]:>10,}  times different: {part}" in found.lines()
    assert found.figures()["different"] == 1


REASON = next(reason for decision in decided_much().decisions for reason in decision.reasons)


def test_what_does_not_follow_is_counted_by_why_and_a_lost_model_is_no_agreement() -> None:
    world = decided_much()
    one, *_ = world.decisions
    other = {
        STAND_IN: msgspec.structs.replace(one, degradations=("stand_in:log",), vector=b""),
        FORCED: msgspec.structs.replace(one, degradations=("sandbox",)),
        UNSCORED: msgspec.structs.replace(one, degradations=(f"member_missing:{an_ensemble().members[0].name}",)),
        FOREIGN: msgspec.structs.replace(one, catalogue_id="cat_other"),
    }
    found = compared(world, one, *other.values())
    assert (found.agrees, found.compared, dict(found.not_comparable)) == (True, 1, dict.fromkeys(other, 1))
    lost = compared(world, one, msgspec.structs.replace(one, model_id="mdl_gone"), msgspec.structs.replace(one, policy_id=REFUSED))
    assert not lost.agrees
    assert (lost.compared, lost.equal, sum(lost.lost.values())) == (1, 1, 2)
    assert all(any(why in line for line in lost.lines()) for why in ("mdl_gone", "unknown key"))


def test_what_the_log_dropped_and_what_cannot_be_read_is_counted() -> None:
    world = decided_much()
    told = [Message(DECISIONS.name, 0, 3 + place, 0, None, encode(decision)) for place, decision in enumerate(world.decisions[:2])]
    broken = Message(DECISIONS.name, 1, 0, 0, None, b"no decision")
    found = log_compared([[*told, broken, told[0]]], [3, 0], Known(world.world.panel.champions))
    assert (found.agrees, found.compared, dict(found.not_comparable)) == (True, 2, {DROPPED: 3, UNREADABLE: 1})
    assert f"{3:>10,}  not comparable: {DROPPED}" in found.lines()
    whole = log_compared([told], [0, 0], Known(world.world.panel.champions))
    assert not whole.not_comparable
