"""Beside the work of each process that decides: its decisions' outcomes, second by second, against the bands that were approved."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from models.breaker import Culprit, Window, culprit
from models.governance import Inventory, breaker_event
from models.registry import Registry
from schemas.errors import HoldfastError
from schemas.governance import Kind
from streams import journal, metrics
from streams.control import tell
from streams.pipeline import World

NAME = "system:breaker"
EVERY_S = 1.0


async def watch_rates(world: World, registry: Registry) -> None:
    """Takes out a model or policy whose decisions leave its band, by the event with which people roll back; every process hears it.

    A process counts its own decisions, so it needs nobody to tell it. The alarm is raised once for a breach and clears with it.
    """
    alarmed: Kind | None = None
    seen: tuple[int, str, str] | None = None
    window, inventory, before = Window(), Inventory(), metrics.outcomes()
    while True:
        await asyncio.sleep(EVERY_S)
        now = registry.moves_at(), world.ensemble.model_id, world.policy.policy_id
        counts, before = _since(before), metrics.outcomes()
        if now != seen:
            window, inventory, seen = Window(), await _read(registry, inventory), now
            continue  # this second's decisions are of both
        found = culprit(inventory, now[1:], window.add(world.clock_ms(), counts))
        if alarmed and (found is None or found.item.kind is not alarmed):
            metrics.BREACH.labels(alarmed).set(0)
            alarmed = None
        if found and alarmed is None:
            alarmed = found.item.kind
            await alarm(found, world)


async def alarm(found: Culprit, world: World) -> None:
    """Says it, and goes back to the last good one where there is one."""
    kind, back = found.item.kind, found.back_to
    metrics.BREACH.labels(kind).set(1)
    journal.logger().critical(
        "left its approved band", kind=kind, item_id=found.item.item_id, reason=found.breach.text, back_to=back.item_id if back else None
    )
    if back is None:
        return
    metrics.TAKEN_OUT.labels(kind).inc()
    try:
        await tell(world.bus, breaker_event(found.item, back, found.breach.text, NAME, world.clock_ms()))
    except HoldfastError as error:
        journal.logger().error("the breaker's event was not acknowledged", reason=str(error))


async def _read(registry: Registry, known: Inventory) -> Inventory:
    try:
        return await asyncio.to_thread(registry.inventory)
    except (HoldfastError, OSError) as error:
        journal.logger().error("the registry's history cannot be read", reason=str(error))
        return known


def _since(before: Mapping[str, int]) -> dict[str, int]:
    """What this process has decided since, by outcome."""
    return {outcome: count - before[outcome] for outcome, count in metrics.outcomes().items()}
