"""Beside the work of each process that decides: what it decided, second by second, against the bands that were approved."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import NamedTuple

from features.catalogue import Catalogue
from models.breaker import Culprit, Window, culprit
from models.governance import Inventory, breaker_event
from models.registry import Registry
from schemas.errors import HoldfastError
from schemas.governance import Cause, Control, Kind
from streams import journal, metrics
from streams.control import same, tell
from streams.world import World

EVERY_S = 1.0
HEARD_WITHIN = 5
"""So many looks after the log took the event it has been heard, or this process hears nothing."""


class Told(NamedTuple):
    """An event of ours that the log has, and what it is about."""

    found: Culprit
    event: Control


async def watch_rates(world: World, registry: Registry, every_s: float = EVERY_S) -> None:
    """Takes out a model or policy whose decisions leave its band, by an event as people roll back; every process hears it.

    A process counts its own decisions, so it needs nobody to tell it. The event is told until the log has it. Of several processes that tell the
    same, the one whose event lies first in the log raises the alarm; it clears with the breach.
    """
    alarmed: Kind | None = None
    told: Told | None = None
    waited, seen = HEARD_WITHIN, object()
    window, inventory, before, unfit = Window(), Inventory(), Counter[tuple[str, str]](), set[str]()
    while True:
        await asyncio.sleep(every_s)
        if told and waited < HEARD_WITHIN:
            waited, first = _heard(told.event, world, waited)
            alarmed = alarm(told.found) if first else alarmed
        now = registry.moves_at(), world.panel.ids
        counts, before = world.given - before, world.given.copy()
        if now != seen:
            window, unfit = Window(), set()
            if read := await _read(registry):
                inventory, seen = read, now
            continue  # this second's decisions are of both
        found = culprit(inventory, window.add(world.clock_ms(), counts), unfit)
        if alarmed and (found is None or found.item.kind is not alarmed):
            metrics.BREACH.labels(alarmed).set(0)
            alarmed = None
        event = breaker_event(found.item, found.back_to, found.breach.text, world.clock_ms()) if found and found.gives_way else None
        if found is None or (event and (same(event, world.told.get(event.place)) or (told and same(event, told.event)))):
            continue
        if event and event.cause is Cause.BREAKER and not await asyncio.to_thread(can_decide, event, registry, world.catalogue):
            unfit.add(event.item_id)  # the next look goes further back
        elif event and await acknowledged(event, world):
            told, waited = Told(found, event), HEARD_WITHIN if alarmed else 0
        elif alarmed is None:
            alarmed = alarm(found)


def _heard(event: Control, world: World, waited: int) -> tuple[int, bool]:
    """For how many looks our event was waited for on the topic, and whether the alarm is ours: it lies first there, or is not to be heard at all."""
    heard = world.told.get(event.place)
    if not same(event, heard):
        return waited + 1, waited + 1 == HEARD_WITHIN
    return HEARD_WITHIN, heard == event


def alarm(found: Culprit) -> Kind:
    """Says it, and returns of what kind."""
    item, back = found.item, found.back_to
    metrics.BREACH.labels(item.kind).set(1)
    if found.gives_way:
        metrics.TAKEN_OUT.labels(item.kind).inc()
    instead = back.item_id if back else None
    journal.logger().critical("left its approved band", kind=item.kind, item_id=item.item_id, reason=found.breach.text, back_to=instead)
    return item.kind


def can_decide(event: Control, registry: Registry, catalogue: Catalogue) -> bool:
    """Whether the one that is to decide can be used here: with one of another catalogue no process could decide that starts."""
    try:
        if event.kind is Kind.POLICY:
            registry.load_policy(event.item_id).bound(catalogue.names)
        else:
            registry.load_for(event.item_id, catalogue)
    except (HoldfastError, OSError) as error:
        journal.logger().error("the last good one cannot decide here", item_id=event.item_id, reason=str(error))
        return False
    return True


async def acknowledged(event: Control, world: World) -> bool:
    """Whether the log has the event; where it does not answer, the next look tells it again."""
    try:
        await tell(world.bus, event)
    except HoldfastError as error:
        journal.logger().error("the breaker's event was not acknowledged", reason=str(error))
        return False
    return True


async def _read(registry: Registry) -> Inventory | None:
    """The history; None where it cannot be read, and the next look tries again: one who knows no bands watches nothing."""
    try:
        return await asyncio.to_thread(registry.inventory)
    except (HoldfastError, OSError) as error:
        journal.logger().error("the registry's history cannot be read", reason=str(error))
        return None
