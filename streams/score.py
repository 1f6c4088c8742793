"""The score app: transactions that arrive by topic are decided as those that arrive by HTTP are; account events are remembered."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from schemas.account import AccountEvent
from schemas.record import Record
from schemas.topics import ACCOUNT_EVENTS, DECISIONS, TRANSACTIONS
from schemas.transaction import Transaction, sound
from streams import journal, metrics
from streams.follow import Follower, Source
from streams.pipeline import Origin, World, decide


async def on_transaction(world: World, txn: Transaction, source: Source) -> Sequence[Record]:
    """Decides, and tells the decision itself. Conflict and InvalidRecord become dead letters."""
    began, now_ms = perf_counter(), world.clock_ms()
    sound(txn, now_ms, world.future_ms_max)
    made = await decide(txn, world, now_ms, Origin(source.topic, source.partition, source.offset), source.logged)
    if made.decision is not None:
        metrics.decided(made.decision.outcome, made.decision.degradations, perf_counter() - began)
        journal.decided(made.decision)
    return ()


async def on_account_event(world: World, event: AccountEvent, source: Source) -> Sequence[Record]:
    """Puts the event into the account's past."""
    await world.memory.remember_event(event)
    return ()


APP = Follower(name="score", reads={TRANSACTIONS: on_transaction, ACCOUNT_EVENTS: on_account_event}, writes=(DECISIONS,))
