"""The ledger app and the SAR app: what follows from a record, and that Redis can forget without a pattern being missed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from models.artefact import Keys, public_of
from models.registry import Registry
from models.sar import Movement
from schemas.avro import encode
from schemas.decision import Decision, Outcome
from schemas.governance import Kind
from schemas.hold import HoldEvent, HoldState
from schemas.ledger import LedgerTransfer, TransferPhase
from schemas.sar import SarCandidate, Typology
from schemas.topics import DECISIONS
from schemas.transaction import TransactionKind
from streams import ledger, sar
from streams.bus import KafkaBus
from streams.control import Standing
from streams.follow import Refused, Source
from streams.sar import WHOLE, SarWorld
from streams.settings import Settings
from tests.streams.test_archive import NOON, a_decision
from tests.world import a_policy, a_transaction

HOUR_MS = 3_600_000


def a_source(topic: str, offset: int) -> Source:
    """A place in partition 1."""
    return Source(topic, 1, offset, NOON, b"a1", b"", ())


def a_hold_event(state: HoldState, posted_minor: int = 0) -> HoldEvent:
    """A step in the life of a hold of ten euros."""
    return HoldEvent(
        event_id=f"evt_{state}",
        hold_id="hld_1",
        transaction_id="t1",
        account_id="a1",
        state=state,
        held_minor=1_000,
        posted_minor=posted_minor,
        currency="EUR",
        at_ms=NOON,
        expires_at_ms=NOON,
        source_topic="decisions",
        source_partition=1,
        source_offset=5,
    )


def test_a_hold_is_reserved_and_resolved_by_one_transfer_each() -> None:
    (pending,) = ledger.on_hold(None, a_hold_event(HoldState.CONFIRMED), a_source("holds", 8))
    (post,) = ledger.on_hold(None, a_hold_event(HoldState.POSTED, 900), a_source("holds", 9))
    assert isinstance(pending, LedgerTransfer)
    assert isinstance(post, LedgerTransfer)
    assert (pending.phase, pending.amount_minor) == (TransferPhase.PENDING, 1_000)
    assert (post.phase, post.amount_minor, post.pending_id) == (TransferPhase.POST, 900, pending.transfer_id)
    assert (post.source_topic, post.source_partition, post.source_offset) == ("holds", 1, 9)


def test_only_an_approved_credit_is_entered_from_its_decision() -> None:
    credit = a_transaction("t1", kind=TransactionKind.TRANSFER_IN)
    approved = a_decision("t1", outcome=Outcome.APPROVE, reasons=(), transaction=credit)
    (direct,) = ledger.on_decision(None, approved, a_source("decisions", 3))
    assert isinstance(direct, LedgerTransfer)
    assert direct.phase is TransferPhase.DIRECT
    assert not ledger.on_decision(None, a_decision("t2"), a_source("decisions", 4))


def a_deposit(number: int, account: str) -> Decision:
    """A cash deposit of 9,000 dollars: three of them within a week are a pattern."""
    at_ms = NOON + number * HOUR_MS
    txn = a_transaction(f"{account}.{number}", kind=TransactionKind.CASH_IN, amount_minor=900_000, currency="USD", account_id=account, at_ms=at_ms)
    return a_decision(txn.transaction_id, at_ms, outcome=Outcome.APPROVE, reasons=(), account_id=account, transaction=txn)


async def followed(world: SarWorld, decision: Decision, offset: int) -> Sequence[SarCandidate]:
    """What the SAR app says of a decision, asked again until Redis is whole."""
    for _ in range(3):
        try:
            found = await sar.on_decision(world, decision, a_source("decisions", offset))
        except sar.MemoryUnavailable:
            continue
        assert not isinstance(found, Refused)
        return [c for c in found if isinstance(c, SarCandidate)]
    raise AssertionError("Redis does not become whole")


def test_structuring_is_told_once_however_often_it_is_delivered_and_though_redis_forgets(real: Settings) -> None:
    deposits = [a_deposit(number, "sar-account") for number in range(3)]

    async def story() -> None:
        bus = KafkaBus(real.changed(produce_timeout_ms=20_000))
        wire = await sar.Wire.connect(real.redis_url)
        world = SarWorld(wire, a_policy(), real)
        first: Sequence[SarCandidate] = ()
        for offset, deposit in enumerate(deposits):
            await bus.tell(DECISIONS, "sar-account", encode(deposit))
            assert not first
            first = await followed(world, deposit, offset)
            assert await followed(world, deposit, offset) == first, "a repeat says the same"
        (candidate,) = first
        assert (candidate.typology, candidate.amount_minor) == (Typology.STRUCTURING, 2_700_000)
        assert candidate.transaction_ids == tuple(d.transaction_id for d in deposits)
        await wire.send((b"DEL", WHOLE, b"moves:sar-account"))
        assert await followed(world, deposits[2], 2) == [candidate], "the log puts back what Redis forgot"
        await bus.close()
        await world.close()

    asyncio.run(story())


def test_a_movement_that_came_twice_counts_once_where_it_came_first() -> None:
    one, two = (Movement(name, TransactionKind.ATM, 1, "EUR", 1, blocked=False) for name in ("one", "two"))
    assert sar._once([one, two, one, two, two]) == [one, two]


def test_a_policy_that_is_not_here_yet_does_not_stop_the_search(tmp_path: Path) -> None:
    class NotHere(Standing):
        def __init__(self) -> None:
            self.registry = Registry(tmp_path, Keys(public_of(b"k" * 32)))

        def item_id(self, kind: Kind) -> str | None:
            return "pol_told_of_and_not_copied_yet"

    world = SarWorld(None, a_policy(), Settings(data_dir=tmp_path), NotHere())  # type: ignore[arg-type]  # nobody asks Redis here
    assert asyncio.run(sar.stay_current(world, frozenset())) == ()
    assert world.policy is a_policy()
