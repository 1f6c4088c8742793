"""The ledger app: what became of a hold, and every approved credit, becomes one immutable double entry."""

from __future__ import annotations

from collections.abc import Sequence

from models.ledger import transfer_of_credit, transfers_of_hold
from schemas.decision import Decision
from schemas.hold import HoldEvent
from schemas.record import Record
from schemas.topics import DECISIONS, HOLDS, LEDGER
from streams.bus import Bus
from streams.follow import Follower, Source, run_follower
from streams.settings import Settings


def on_hold(_: None, event: HoldEvent, source: Source) -> Sequence[Record]:
    """Confirmed: pending. Posted: post. Voided or expired: void."""
    return transfers_of_hold(event, source.partition, source.offset)


def on_decision(_: None, decision: Decision, source: Source) -> Sequence[Record]:
    """An approved credit is entered in one step; all else waits for its hold."""
    return transfer_of_credit(decision, source.partition, source.offset)


APP = Follower(name="ledger", reads={HOLDS: on_hold, DECISIONS: on_decision}, writes=(LEDGER,))


async def ledger_world(settings: Settings, bus: Bus) -> None:
    """The ledger needs nothing but the log."""


def run(settings: Settings) -> int:
    """`holdfast run ledger`."""
    return run_follower(APP, ledger_world, settings)
