"""Worker processes for the tests of the harness: `python -m tests.streams.workers KIND TOPIC NAME`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence

from schemas.errors import MemoryUnavailable
from schemas.hold import Clearing, HoldEvent, HoldState
from schemas.identity import derived_id
from schemas.record import Record
from schemas.topics import CLEARINGS, HOLDS
from streams.bus import Bus
from streams.follow import Follower, Outputs, Refused, Source, run_follower
from streams.settings import Settings, settings_from


def held(clearing: Clearing, source: Source) -> HoldEvent:
    """The one record that follows from a clearing."""
    return HoldEvent(
        event_id=derived_id("evt", clearing.clearing_id),
        hold_id=derived_id("hld", clearing.clearing_id),
        transaction_id=clearing.transaction_id,
        account_id=clearing.account_id,
        state=HoldState.POSTED,
        held_minor=clearing.amount_minor,
        posted_minor=clearing.amount_minor,
        currency=clearing.currency,
        at_ms=clearing.at_ms,
        expires_at_ms=clearing.at_ms,
        source_topic=source.topic,
        source_partition=source.partition,
        source_offset=source.offset,
    )


def plain(_: None, clearing: Clearing, source: Source) -> Outputs:
    """One record for one; `refuse` is refused."""
    if clearing.clearing_id.endswith("refuse"):
        return Refused("not_today", "clearing_id", "the test says so")
    return (held(clearing, source),)


async def slow(_: None, clearing: Clearing, source: Source) -> Outputs:
    """As `plain`, but takes its time."""
    await asyncio.sleep(0.02)
    return (held(clearing, source),)


async def bad(_: None, clearing: Clearing, source: Source) -> Outputs:
    """As `plain`, but with a bug that `bad` hits."""
    if clearing.clearing_id.endswith("bad"):
        raise ZeroDivisionError("a bug")
    return (held(clearing, source),)


async def hung(_: None, clearing: Clearing, source: Source) -> Outputs:
    """As `plain`, but `hang` never ends."""
    if clearing.clearing_id.endswith("hang"):
        await asyncio.Event().wait()
    return (held(clearing, source),)


def blocked(_: None, clearing: Clearing, source: Source) -> Outputs:
    """As `plain`, but `hang` blocks the whole loop."""
    if clearing.clearing_id.endswith("hang"):
        time.sleep(3600)
    return (held(clearing, source),)


async def patient(tries: dict[str, int], clearing: Clearing, source: Source) -> Outputs:
    """As `plain`, but what it needs does not answer the first three times."""
    tries[clearing.clearing_id] = tries.get(clearing.clearing_id, 0) + 1
    if tries[clearing.clearing_id] < 4:
        raise MemoryUnavailable("asleep")
    return (held(clearing, source),)


async def tick(_: object, partitions: frozenset[int]) -> Sequence[Record]:
    """Says every so often which partitions are ours."""
    print("tick", sorted(partitions), flush=True)
    return ()


async def nothing(settings: Settings, bus: Bus) -> dict[str, int]:
    """A world of nothing but an empty dict."""
    return {}


def main(kind: str, topic: str, name: str) -> int:
    """Runs one worker."""
    settings = settings_from({k: v for k, v in os.environ.items() if k.startswith("HOLDFAST_")})
    if kind == "archive":
        from streams import archive  # which no other has need of

        archive.AGE_S_MAX, archive.ROWS_MAX = 0.5, 50
        return run_follower(archive.APP, archive.archive_world, settings)
    handler = {"plain": plain, "slow": slow, "bad": bad, "hung": hung, "blocked": blocked, "patient": patient}[kind]
    return run_follower(
        Follower(name=name, reads={CLEARINGS._replace(name=topic): handler}, writes=(HOLDS,), every=((0.5, tick),)), nothing, settings
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
