"""The feedback app: holds each label against the decision that it is of, and lays aside for people what cannot be right (dead letters).

It writes nothing else: `labels` is read as it is by training, tallies and archive, where a later label replaces an earlier one. What it keeps is the
newest decisions and labels of its partitions, read from the log again when a process begins; a payment older than that is believed to exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from models.feedback import Doubt, Doubted, doubted
from schemas.decision import Decision
from schemas.errors import LogUnavailable
from schemas.label import Label
from schemas.record import Record
from schemas.topics import DECISIONS, LABELS
from streams.bus import Bus, committed_offsets, end_offsets
from streams.follow import Follower, Outputs, Refused, Source, run_follower, soon
from streams.lane import Place
from streams.recent import capped, followed_so_far, is_ahead
from streams.settings import Settings

WHOLE = -1
"""The time from which on a window knows all payments, where it holds its partition from the first record on."""


class Payment(NamedTuple):
    """What is kept of a decision."""

    account_id: str
    at_ms: int
    decided_at_ms: int


@dataclass(slots=True)
class Known:
    """The newest of one partition. Every payment that was decided, and says that it was, after `since_ms` is in it."""

    happened: dict[str, Payment] = field(default_factory=dict)  # by transaction
    labels: dict[str, list[Label]] = field(default_factory=dict)  # by transaction
    since_ms: int = WHOLE
    next: int = 0  # offset after the last record of decisions that was followed, whether it could be read or not


@dataclass(slots=True)
class FeedbackWorld:
    """What is known by partition."""

    settings: Settings
    end_of: Callable[[int], int]  # the offset after the last decision of a partition
    known: dict[int, Known] = field(default_factory=dict)


def decision_seen(known: Known, decision: Decision, offset: int) -> None:
    """Takes a decision in. A window that is full forgets its oldest, and says from when on it knows all."""
    known.next = offset + 1
    known.happened.setdefault(decision.transaction_id, Payment(decision.account_id, decision.at_ms, decision.decided_at_ms))
    oldest = next(iter(known.happened.values()))
    oldest_ms = max(oldest.at_ms, oldest.decided_at_ms)  # a payment may be dated ahead of its decision, and labels know its own time alone
    if capped(known.happened):
        known.since_ms = max(known.since_ms, oldest_ms)


def label_seen(known: Known, label: Label) -> Doubted | None:
    """Why a label on a payment that is known is laid aside; else it is kept, for those that come after it."""
    earlier = known.labels.setdefault(label.transaction_id, [])
    doubt = doubted(label, known.happened[label.transaction_id].at_ms, earlier)
    if doubt is None and label not in earlier:
        earlier.append(label)
    capped(known.labels)
    return doubt


def is_of_its_account(known: Known, label: Label) -> bool:
    """Whether a payment is known on which the label is: another account's may lie in the same partition."""
    payment = known.happened.get(label.transaction_id)
    return payment is not None and payment.account_id == label.account_id


def on_decision(world: FeedbackWorld, decision: Decision, source: Source) -> Sequence[Record]:
    """Takes it in."""
    decision_seen(world.known.setdefault(source.partition, Known()), decision, source.offset)
    return ()


async def on_label(world: FeedbackWorld, label: Label, source: Source) -> Outputs:
    """Nothing, or why it is laid aside. LogUnavailable while its decision may yet be followed: it is tried again."""
    if is_ahead(label, source.timestamp_ms, world.settings):
        return Refused(Doubt.LEARNED_IN_FUTURE, "learned_at_ms", f"learned at {label.learned_at_ms}, which was yet to come")
    known = world.known.setdefault(source.partition, Known())
    if label.transaction_id not in known.happened:
        if (label.transacted_at_ms is None and known.since_ms != WHOLE) or (label.transacted_at_ms or 0) <= known.since_ms:
            return ()
        await _followed_to_the_end(world, known, source.partition)
    if not is_of_its_account(known, label):
        return Refused(Doubt.UNKNOWN_TRANSACTION, "transaction_id", f"no decision of account {label.account_id} is on this transaction")
    doubt = label_seen(known, label)
    return () if doubt is None else Refused(*doubt)


async def _followed_to_the_end(world: FeedbackWorld, known: Known, partition: int) -> None:
    """LogUnavailable while decisions are in the log that were not followed yet: the label's own may be among them."""
    end = await asyncio.to_thread(world.end_of, partition)

    async def is_followed() -> bool:
        return known.next >= end

    if not await soon(is_followed):
        raise LogUnavailable(f"{DECISIONS.name} of partition {partition} are followed to {known.next} only")


async def settle(world: FeedbackWorld, done: Mapping[Place, int]) -> Mapping[Place, int]:
    """Notes how far decisions were followed: what could not be read is no decision that a label waits for."""
    for (topic, partition), offset in done.items():
        if topic == DECISIONS.name:
            known = world.known.setdefault(partition, Known())
            known.next = max(known.next, offset)
    return done


async def assigned(world: FeedbackWorld, places: frozenset[Place]) -> None:
    """Reads what is known of these partitions from the log, up to where the group is."""
    world.known = await asyncio.to_thread(_from_the_log, world.settings, places)


def _from_the_log(settings: Settings, places: frozenset[Place]) -> dict[int, Known]:
    known = {partition: Known() for _, partition in places}
    for message, decision in followed_so_far(settings, APP.name, DECISIONS, places):
        own = known[message.partition]
        if not own.next and message.offset > 0:
            own.since_ms = decision.decided_at_ms
        decision_seen(own, decision, message.offset)
    for message, label in followed_so_far(settings, APP.name, LABELS, places):
        own = known[message.partition]
        if is_of_its_account(own, label) and not is_ahead(label, message.timestamp_ms, settings):
            label_seen(own, label)
    for partition, offset in committed_offsets(settings, APP.name, DECISIONS).items():
        if partition in known:
            known[partition].next = offset
    return known


APP = Follower(name="feedback", reads={DECISIONS: on_decision, LABELS: on_label}, assigned=assigned, settle=settle)


async def feedback_world(settings: Settings, _: Bus) -> FeedbackWorld:
    """Nothing is known yet; `assigned` reads it."""
    return FeedbackWorld(settings, lambda partition: end_offsets(settings, DECISIONS, [partition]).get(partition, (0, 0))[1])


def run(settings: Settings) -> int:
    """`holdfast run feedback`."""
    return run_follower(APP, feedback_world, settings)
