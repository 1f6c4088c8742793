"""The watch app: whether today's payments are still those that the model was trained on, and whether its scores turn out to be true.

All that it keeps is a window: the newest decisions and labels of each of its partitions. A window is a function of the log alone, so a process that
begins reads it from there again and says what the one before would have said; the time is the newest that the log tells. Only which alarms stood is
kept in a file (`watch.json` of the data folder), so that a restart does not fire them again. One process of it is enough, and is meant: two
would each tell the drift of their own partitions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from features.catalogue import CATALOGUE
from models.drift import LIMITS, ROWS_MIN, SCORE, Drift, Quality, Snapshot, Told, alarms, drifts, missing_families, quality, readings
from models.history import Floats
from schemas.decision import Decision, Outcome
from schemas.errors import HoldfastError
from schemas.governance import Kind
from schemas.label import Label
from schemas.record import Record
from schemas.topics import DECISIONS, LABELS
from streams import journal, metrics
from streams.bus import Bus
from streams.clock import clock_ms
from streams.control import Standing
from streams.follow import Follower, Source, run_follower
from streams.lane import Place
from streams.ready import write_whole
from streams.recent import capped, followed_so_far, is_ahead
from streams.registry import registry_of
from streams.settings import Settings

VECTORS_MAX = 5_000
"""Vectors of a partition over which drift is told: the newest."""
LOOK_S = 5.0
UNKNOWN = Drift(np.nan, np.nan)
ALARMS_FILE = "watch.json"
DRIFTS = frozenset({"psi", "ks"})
"""The kinds of alarms that compare with a model's training."""


class Decided(msgspec.Struct, frozen=True):
    """What is kept of a decision."""

    at_ms: int
    score: int | None
    outcome: Outcome


@dataclass(slots=True)
class Window:
    """The newest of one partition. A label may come before its decision is followed: they are set beside each other when asked."""

    vectors: deque[bytes] = field(default_factory=lambda: deque(maxlen=VECTORS_MAX))
    scores: deque[tuple[str, int | None]] = field(default_factory=lambda: deque(maxlen=VECTORS_MAX))  # model and score
    decided: dict[str, Decided] = field(default_factory=dict)  # by transaction
    labels: dict[str, tuple[bool, int]] = field(default_factory=dict)  # by transaction: fraud, and when that was learned
    newest_ms: int = 0


@dataclass(slots=True)
class WatchWorld:
    """The windows, what they are compared with, and the alarms that stand."""

    settings: Settings
    windows: dict[int, Window] = field(default_factory=dict)
    model_id: str | None = None
    snapshot: Snapshot | None = None
    alarms: frozenset[str] = frozenset()
    standing: Standing | None = None
    kept: frozenset[str] | None = None
    """The alarms in the file, as far as this process has written it."""


def decision_seen(window: Window, decision: Decision) -> None:
    """Takes a decision in; one that lies in the log twice counts once."""
    if decision.transaction_id in window.decided:
        return
    window.newest_ms = max(window.newest_ms, decision.decided_at_ms)
    window.decided[decision.transaction_id] = Decided(decision.at_ms, decision.score, decision.outcome)
    capped(window.decided)
    if CATALOGUE.has(decision):
        window.vectors.append(decision.vector)
        window.scores.append((decision.model_id, decision.score))


def label_seen(window: Window, label: Label) -> None:
    """Takes a label in; of several on a transaction the one learned last stands."""
    window.newest_ms = max(window.newest_ms, label.learned_at_ms)
    _, known_ms = window.labels.get(label.transaction_id, (False, 0))
    if label.learned_at_ms >= known_ms:
        window.labels[label.transaction_id] = (label.fraud, label.learned_at_ms)
    capped(window.labels)


def on_decision(world: WatchWorld, decision: Decision, source: Source) -> Sequence[Record]:
    """Takes it in."""
    decision_seen(world.windows.setdefault(source.partition, Window()), decision)
    return ()


def on_label(world: WatchWorld, label: Label, source: Source) -> Sequence[Record]:
    """Takes it in, unless it is dated ahead: it would make labels seem to come late."""
    if is_ahead(label, source.timestamp_ms, world.settings):
        return ()
    label_seen(world.windows.setdefault(source.partition, Window()), label)
    return ()


async def assigned(world: WatchWorld, places: frozenset[Place]) -> None:
    """Reads the windows of these partitions from the log, up to where the group is."""
    world.windows = await asyncio.to_thread(_from_the_log, world.settings, places)


def _from_the_log(settings: Settings, places: frozenset[Place]) -> dict[int, Window]:
    windows = {partition: Window() for _, partition in places}
    for message, decision in followed_so_far(settings, APP.name, DECISIONS, places):
        decision_seen(windows[message.partition], decision)
    for message, label in followed_so_far(settings, APP.name, LABELS, places):
        if not is_ahead(label, message.timestamp_ms, settings):
            label_seen(windows[message.partition], label)
    return windows


# What is said of the windows.


def told(windows: Mapping[int, Window]) -> Told:
    """The decisions of all windows with what was learned of them."""
    rows = [(each, *window.labels.get(name, (False, 0))) for window in windows.values() for name, each in window.decided.items()]
    return Told(
        np.array([each.at_ms for each, _, _ in rows], np.int64),
        np.array([np.nan if each.score is None else each.score for each, _, _ in rows], np.float64),
        np.array([each.outcome is Outcome.BLOCK for each, _, _ in rows], np.bool_),
        np.array([each.outcome is Outcome.REVIEW for each, _, _ in rows], np.bool_),
        np.array([fraud for _, fraud, _ in rows], np.bool_),
        np.array([learned for _, _, learned in rows], np.int64),
    )


def vectors_of(windows: Mapping[int, Window]) -> Floats:
    """float64[decisions, features] of all windows."""
    return np.frombuffer(b"".join(v for window in windows.values() for v in window.vectors), "<f8").reshape(-1, len(CATALOGUE.names))


def scores_of(windows: Mapping[int, Window], model_id: str | None) -> Floats:
    """The scores that this model gave."""
    given = [score for window in windows.values() for model, score in window.scores if model == model_id]
    return np.array([np.nan if score is None else score for score in given], np.float64)


def looked(world: WatchWorld) -> frozenset[str]:
    """Sets the gauges to what the windows say; the alarms that stand now."""
    vectors, seen = vectors_of(world.windows), told(world.windows)
    newest_ms = max((window.newest_ms for window in world.windows.values()), default=0)
    known = quality(seen, min(newest_ms, clock_ms()))  # a label that says it was learned in the future makes no payment older than it is
    drifted = drifts(world.snapshot, CATALOGUE.names, vectors, scores_of(world.windows, world.model_id)) if world.snapshot else {}
    missing = missing_families(CATALOGUE.families, vectors)
    for name in (*CATALOGUE.names, SCORE):
        each = drifted.get(name, UNKNOWN)
        metrics.DRIFT_PSI.labels(name).set(each.psi)
        metrics.DRIFT_KS.labels(name).set(each.ks)
    for family in CATALOGUE.families:
        metrics.MISSING_FAMILY.labels(family).set(missing.get(family, np.nan))
    _tell_quality(known)
    found = readings(drifted, missing, known)
    return alarms(_compared(world.alarms, found) if world.model_id and len(vectors) >= ROWS_MIN else world.alarms, found)


def _compared(standing: frozenset[str], found: Mapping[str, float]) -> frozenset[str]:
    """Those of the alarms that can still clear: a drift that enough payments do not tell was one from the training of another model."""
    return frozenset(name for name in standing if name in found or name.partition(":")[0] not in DRIFTS)


def _tell_quality(known: Quality) -> None:
    gauges = (
        (metrics.LABEL_DELAY.labels("0.5"), known.delay_p50_s),
        (metrics.LABEL_DELAY.labels("0.9"), known.delay_p90_s),
        (metrics.PRECISION.labels("block"), known.precision_block),
        (metrics.PRECISION.labels("review"), known.precision_review),
        (metrics.CALIBRATION, known.calibration),
    )
    for gauge, value in gauges:
        gauge.set(np.nan if value is None else value)


async def look(world: WatchWorld, _: frozenset[int]) -> Sequence[Record]:
    """Looks at the windows, and says which alarms have fired and which have cleared."""
    await asyncio.to_thread(_take_champion, world)
    now = looked(world)
    for name in sorted(now - world.alarms):
        journal.logger().warning("alarm", alarm=name)
    for name in sorted(world.alarms - now):
        journal.logger().info("alarm has cleared", alarm=name)
    tell_alarms(now, world.alarms)
    if now != world.alarms:
        world.alarms = now
    if now != world.kept:
        _keep(world, now)
    return ()


def _keep(world: WatchWorld, now: frozenset[str]) -> None:
    """Keeps which alarms stand; where there is no room for them, the next look tries again."""
    try:
        write_whole(world.settings.data_dir / ALARMS_FILE, msgspec.json.encode(sorted(now)))
        world.kept = now
    except OSError as error:
        journal.logger().error("which alarms stand cannot be kept", reason=str(error))


def tell_alarms(standing: frozenset[str], before: frozenset[str]) -> None:
    """Sets the gauge of each alarm that stands, and of each that stood."""
    for name in standing | before:
        metrics.ALARM.labels(*name.split(":")).set(int(name in standing))


def _take_champion(world: WatchWorld) -> None:
    """Compares with the training of the model that decides now."""
    try:
        standing = world.standing = world.standing or Standing(registry_of(world.settings), world.settings)
        model_id = standing.item_id(Kind.MODEL)
        if model_id != world.model_id and model_id is not None:
            world.snapshot = Snapshot.of_card(standing.registry.card(model_id))
            world.model_id = model_id
            journal.logger().info("comparing with the training of", model_id=model_id, has_snapshot=world.snapshot is not None)
    except (HoldfastError, OSError) as error:
        journal.logger().warning("the model that decides cannot be read", reason=str(error))


def alarms_kept(settings: Settings) -> frozenset[str]:
    """The alarms that stood when an earlier process ended; none where its word cannot be read.

    One of what this release does not look at would never clear: it is left out.
    """
    looked_at = frozenset(f"{kind}:{name}" for kind in LIMITS for name in (*CATALOGUE.names, *CATALOGUE.families, SCORE))
    try:
        return looked_at.intersection(msgspec.json.decode((settings.data_dir / ALARMS_FILE).read_bytes(), type=list[str]))
    except (OSError, msgspec.DecodeError):
        return frozenset()


APP = Follower(name="watch", reads={DECISIONS: on_decision, LABELS: on_label}, every=((LOOK_S, look),), assigned=assigned)


async def watch_world(settings: Settings, _: Bus) -> WatchWorld:
    """Empty windows, which `assigned` fills, and the alarms that stood."""
    return WatchWorld(settings, alarms=alarms_kept(settings))


def run(settings: Settings) -> int:
    """`holdfast run watch`."""
    return run_follower(APP, watch_world, settings)
