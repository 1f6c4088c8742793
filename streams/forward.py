"""Store and forward: what the stand-in answered reaches the log, once, when the log takes it again; also after a crash in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic

from models.answer import host_view
from models.clearing import WHOLE, Asked
from models.policy import DAY_MS
from models.stand_in import STAND_IN
from schemas import avro
from schemas.decision import Decision
from schemas.errors import Conflict, HoldfastError, InvalidRecord, Unavailable
from schemas.hold import ClearingKind
from schemas.identity import derived_id
from schemas.topics import DECISIONS
from streams import journal, metrics
from streams.answers import Kept, Made
from streams.asked import Ask, Origin
from streams.authorize.life import clear
from streams.pipeline import decide_all
from streams.stand_in import Given, StandIn
from streams.world import World

AT_ONCE = 64
PAUSE_S = 0.2
LOOK_S = 60.0
"""So often it looks for what processes that are gone have left."""


async def forward(stand_in: StandIn, world: World) -> None:
    """Tells the log for as long as it runs what it has not been told, oldest first; one by one until it answers again.

    What cannot be brought together with the log's yet is tried again after all others. What processes that are gone have left is told too.
    """
    look_s = 0.0
    while True:
        await asyncio.sleep(PAUSE_S)
        if monotonic() >= look_s:
            look_s = monotonic() + LOOK_S
            try:
                await stand_in.take_over(world.clock_ms() // DAY_MS)
            except (HoldfastError, OSError) as error:
                journal.logger().warning("what another process left for the log cannot be taken over yet", reason=str(error))
        while stand_in.pending:
            some = list(stand_in.pending.values())[: AT_ONCE if world.bus.well else 1]
            try:
                waiting = await _told(some, stand_in, world)
            except (HoldfastError, OSError) as error:
                journal.logger().info("the stand-in cannot tell the log yet", waiting=len(stand_in.pending), reason=str(error))
                break
            stand_in.put_off(waiting)
            if len(waiting) == len(some):
                break


async def _told(some: Sequence[Given], stand_in: StandIn, world: World) -> list[str]:
    """Tells the log of these; returns the transactions that wait for others before it can be."""
    for given in some:
        if given.durable is not None:
            await given.durable
    alone, waiting = list[Ask](), list[str]()
    for given in some:
        decision = given.decision
        if decision.vector:
            is_told = await _told_whole(given, stand_in, world)
        else:
            first = await world.answers.of_transaction(decision.transaction_id)
            if first is None or _is_heard(first.message, decision):
                origin = Origin(decision.source_topic, decision.source_partition, decision.source_offset)
                alone.append(Ask(decision.transaction, decision.decided_at_ms, origin, said=decision))
                continue
            is_told = await _brought_together(given, first, stand_in, world)
        if not is_told:
            waiting.append(decision.transaction_id)
    for ask, made in zip(alone, await decide_all(alone, world), strict=True):
        if isinstance(made, Conflict):
            _differs(ask.txn.transaction_id, stand_in, "the log has other contents under this id")
        elif isinstance(made, Unavailable):
            raise made
        elif isinstance(made, HoldfastError):
            _differs(ask.txn.transaction_id, stand_in, f"the log cannot have it: {made}")
        elif _is_heard(made.message, ask.said):  # else who was late with it kept another meanwhile: the next try brings them together
            stand_in.done(ask.txn.transaction_id)
    return waiting


def _is_heard(message: bytes, said: Decision | None) -> bool:
    """Whether a decision is what the host heard."""
    return said is not None and host_view(avro.decode(Decision, message)) == host_view(said)


async def _told_whole(given: Given, stand_in: StandIn, world: World) -> bool:
    """Tells a decision that has all of its parts, byte for byte: the log may have it already. Whether that is over."""
    decision = given.decision
    try:
        first = await world.answers.keep(*Made.of(decision, given.message))
    except InvalidRecord as error:
        _differs(decision.transaction_id, stand_in, f"the log cannot have it: {error}")
        return True
    if first.message != given.message:
        return await _brought_together(given, first, stand_in, world)
    if not first.told:
        await world.bus.tell(DECISIONS, decision.account_id, given.message)
        world.answers.told(decision.transaction_id)
    stand_in.done(decision.transaction_id)
    return True


async def _brought_together(given: Given, first: Kept, stand_in: StandIn, world: World) -> bool:
    """The log has, or may have, another decision than the host was told. That one stands; if the host was told no, its hold is reversed.

    Whether that is over: not where that hold cannot be reversed yet.
    """
    other, decision = avro.decode(Decision, first.message), given.decision
    name, account_id = decision.transaction_id, decision.account_id
    if not first.told and decision.held_minor > other.held_minor:
        await world.answers.forget(name)  # nobody told it: what the host heard takes its place, at the next try
        return False
    if not first.told:
        await world.bus.tell(DECISIONS, account_id, first.message)
        world.answers.told(name)
    if other.hold_id is not None and decision.hold_id is None:
        now_ms = world.clock_ms()
        asked = Asked(ClearingKind.REVERSAL, derived_id("clr", name, STAND_IN), name, account_id, WHOLE, "", now_ms)
        made: object
        try:
            made = await clear(asked, world, now_ms)
        except Unavailable as error:
            made = error
        if isinstance(made, Unavailable) or made in ("not_confirmed", "unknown_hold"):
            journal.logger().info("what the stand-in declined cannot be reversed yet", transaction_id=name, reason=str(made))
            return False
        if made == "already_posted":
            _differs(name, stand_in, "declined here; the log approved it, and it was captured meanwhile")
            return True
    elif decision.held_minor > other.held_minor:
        _differs(name, stand_in, "approved here, and the log says otherwise, or approved it in part")
        return True
    stand_in.done(name, apart=True)
    return True


def _differs(transaction_id: str, stand_in: StandIn, what: str) -> None:
    """Nothing brings these together: people must know."""
    metrics.STAND_INS_APART.inc()
    journal.logger().critical("the stand-in's answer is not in the log", transaction_id=transaction_id, what=what)
    stand_in.done(transaction_id, apart=True)
