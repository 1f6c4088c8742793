"""The score app: transactions that arrive by topic are decided as those that arrive by HTTP are; account events are remembered."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from schemas.account import AccountEvent, RememberedEvent
from schemas.avro import encode
from schemas.identity import derived_id
from schemas.record import Record
from schemas.topics import ACCOUNT_EVENTS, DECISIONS, REMEMBERED_EVENTS, TRANSACTIONS
from schemas.transaction import Transaction, sound, with_own_id
from streams import journal, metrics
from streams.answers import on_whole
from streams.asked import Origin
from streams.follow import Follower, Source
from streams.pipeline import decide
from streams.world import World


async def on_transaction(world: World, txn: Transaction, source: Source) -> Sequence[Record]:
    """Decides, and tells the decision itself. Conflict and InvalidRecord become dead letters."""
    began, now_ms = perf_counter(), world.clock_ms()
    sound(with_own_id(txn), now_ms, world.future_ms_max)
    made = await decide(txn, world, now_ms, Origin(source.topic, source.partition, source.offset), source.logged)
    if made.decision is not None:
        metrics.decided(made.decision.outcome, made.decision.degradations, perf_counter() - began)
        journal.decided(made.decision)
    return ()


async def on_account_event(world: World, event: AccountEvent, source: Source) -> Sequence[Record]:
    """Puts the event into the account's past, and tells at once where, as `decide` does: Redis is rebuilt from what was told by then."""
    origin = Origin(source.topic, source.partition, source.offset)
    if origin not in source.logged:
        positions = await on_whole(lambda aside: world.memory.remember_event(event, aside))
        remembered = remembered_event(event, positions, world.catalogue.catalogue_id, origin, world.clock_ms())
        await world.bus.tell(REMEMBERED_EVENTS, event.account_id, encode(remembered))
    return ()


def remembered_event(event: AccountEvent, positions: tuple[int, ...], catalogue_id: str, origin: Origin, now_ms: int) -> RememberedEvent:
    """The record of it. Its id is of all that tells the event's row from others: an id that came with another account, kind or time has two rows."""
    return RememberedEvent(
        remembered_id=derived_id("rem", event.account_id, event.event_id, event.kind, str(event.at_ms)),
        account_id=event.account_id,
        remembered_at_ms=now_ms,
        catalogue_id=catalogue_id,
        positions=positions,
        source_topic=origin.topic,
        source_partition=origin.partition,
        source_offset=origin.offset,
        event=event,
    )


APP = Follower(name="score", reads={TRANSACTIONS: on_transaction, ACCOUNT_EVENTS: on_account_event}, writes=(DECISIONS, REMEMBERED_EVENTS))
