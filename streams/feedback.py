"""The feedback app: holds each label against the decision that it is of, and lays aside for people what cannot be right (dead letters).

It writes nothing else: `labels` is read as it is by training, tallies and archive, where a later label replaces an earlier one. What it keeps is the
newest decisions and labels of its partitions, read from the log again when a process begins; a payment older than that is believed to exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from models.feedback import Doubt, doubted
from schemas.decision import Decision
from schemas.errors import LogUnavailable
from schemas.label import Label
from schemas.record import Record
from schemas.topics import DECISIONS, LABELS
from streams.bus import Bus, end_offsets
from streams.follow import Follower, Outputs, Refused, Source, run_follower
from streams.lane import Place
from streams.recent import capped, followed_so_far
from streams.settings import Settings

WHOLE = -1
"""The time from which on a window knows all payments, where it holds its partition from the first record on."""


@dataclass(slots=True)
class Known:
    """The newest of one partition. Every payment that was decided after `since_ms` is in it."""

    happened: dict[str, int] = field(default_factory=dict)  # by transaction: its time
    labels: dict[str, list[Label]] = field(default_factory=dict)  # by transaction
    since_ms: int = WHOLE
    next: int = 0  # offset of the next decision


@dataclass(slots=True)
class FeedbackWorld:
    """What is known by partition."""

    settings: Settings
    end_of: Callable[[int], int]  # the offset after the last decision of a partition
    known: dict[int, Known] = field(default_factory=dict)


def decision_seen(known: Known, decision: Decision, offset: int) -> None:
    """Takes a decision in. A window that is full forgets its oldest, and says from when on it knows all."""
    known.next = offset + 1
    known.happened.setdefault(decision.transaction_id, decision.at_ms)
    if capped(known.happened):
        known.since_ms = max(known.since_ms, decision.decided_at_ms)


def on_decision(world: FeedbackWorld, decision: Decision, source: Source) -> Sequence[Record]:
    """Takes it in."""
    decision_seen(world.known.setdefault(source.partition, Known()), decision, source.offset)
    return ()


async def on_label(world: FeedbackWorld, label: Label, source: Source) -> Outputs:
    """Nothing, or why it is laid aside. LogUnavailable while its decision may yet be followed: it is tried again."""
    known = world.known.setdefault(source.partition, Known())
    happened_ms = known.happened.get(label.transaction_id)
    if happened_ms is None:
        if (label.transacted_at_ms is None and known.since_ms != WHOLE) or (label.transacted_at_ms or 0) <= known.since_ms:
            return ()
        await _followed_to_the_end(world, known, source.partition)
        happened_ms = known.happened.get(label.transaction_id)
    if happened_ms is None:
        return Refused(Doubt.UNKNOWN_TRANSACTION, "transaction_id", f"no decision of account {label.account_id} is on this transaction")
    earlier = known.labels.setdefault(label.transaction_id, [])
    doubt = doubted(label, happened_ms, earlier)
    if doubt is not None:
        return Refused(*doubt)
    if label not in earlier:
        earlier.append(label)
    capped(known.labels)
    return ()


async def _followed_to_the_end(world: FeedbackWorld, known: Known, partition: int) -> None:
    """LogUnavailable while decisions are in the log that were not followed yet: the label's own may be among them."""
    if known.next < await asyncio.to_thread(world.end_of, partition):
        raise LogUnavailable(f"{DECISIONS.name} of partition {partition} are followed to {known.next} only")


async def assigned(world: FeedbackWorld, places: frozenset[Place]) -> None:
    """Reads what is known of these partitions from the log, up to where the group is."""
    world.known = await asyncio.to_thread(_from_the_log, world.settings, places)


def _from_the_log(settings: Settings, places: frozenset[Place]) -> dict[int, Known]:
    known = {partition: Known() for _, partition in places}
    for partition, offset, decision in followed_so_far(settings, APP.name, DECISIONS, places):
        if not known[partition].next and offset > 0:
            known[partition].since_ms = decision.decided_at_ms
        decision_seen(known[partition], decision, offset)
    for partition, _, label in followed_so_far(settings, APP.name, LABELS, places):
        earlier = known[partition].labels.setdefault(label.transaction_id, [])
        if label not in earlier:
            earlier.append(label)
    return known


APP = Follower(name="feedback", reads={DECISIONS: on_decision, LABELS: on_label}, assigned=assigned)


async def feedback_world(settings: Settings, _: Bus) -> FeedbackWorld:
    """Nothing is known yet; `assigned` reads it."""
    return FeedbackWorld(settings, lambda partition: end_offsets(settings, DECISIONS, [partition]).get(partition, (0, 0))[1])


def run(settings: Settings) -> int:
    """`holdfast run feedback`."""
    return run_follower(APP, feedback_world, settings)
