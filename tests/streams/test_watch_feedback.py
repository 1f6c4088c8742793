"""The watch and feedback apps: what a window keeps, that it can be had again from the log, and which labels become dead letters."""

from __future__ import annotations

import asyncio
import errno
import uuid
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Consumer, TopicPartition

from features.catalogue import CATALOGUE
from models.drift import ROWS_MIN, snapshot_of
from schemas.avro import encode
from schemas.decision import Outcome
from schemas.errors import LogUnavailable, SettingsError
from schemas.label import Label, LabelSource
from schemas.topics import DECISIONS, LABELS
from streams import feedback, label, metrics, recent, watch
from streams.bus import KafkaBus, end_offsets
from streams.clock import clock_ms
from streams.feedback import FeedbackWorld, Known
from streams.follow import Refused, Source
from streams.settings import Settings, librdkafka
from streams.watch import WatchWorld, Window, alarms_kept, looked, told
from tests.streams.conftest import messages
from tests.streams.test_archive import NOON, a_decision

HOUR_MS = 3_600_000
LOGGED_MS = NOON + 30 * 24 * HOUR_MS


def at(offset: int, topic: str = DECISIONS.name) -> Source:
    return Source(topic, 1, offset, LOGGED_MS, b"a1", b"", ())


def a_label(transaction_id: str, label_id: str = "l1", **changes: object) -> Label:
    plain = Label(
        label_id=label_id, transaction_id=transaction_id, account_id="a1", fraud=True, learned_at_ms=NOON + HOUR_MS, source=LabelSource.CHARGEBACK
    )
    return msgspec.structs.replace(plain, **changes)


def served(world: WatchWorld, count: int, shift: float, model_id: str = "mdl_now") -> None:
    """So many decisions whose vectors lie so far from training."""
    rng = np.random.default_rng(count)
    for number in range(count):
        vector = (rng.normal(size=len(CATALOGUE.names)) + shift).tobytes()
        decision = a_decision(f"t{shift}-{number}", catalogue_id=CATALOGUE.catalogue_id, vector=vector, model_id=model_id, score=number % 100)
        watch.on_decision(world, decision, at(number))


def trained_on() -> Any:
    rng = np.random.default_rng(0)
    return snapshot_of(CATALOGUE.names, rng.normal(size=(5_000, len(CATALOGUE.names))), np.arange(5_000) % 100.0)


def test_drift_raises_an_alarm_once_which_outlives_the_process_and_clears(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    world = WatchWorld(settings, model_id="mdl_now", snapshot=trained_on())
    served(world, ROWS_MIN, 0.0)
    assert looked(world) == frozenset()
    world.windows = {}
    served(world, ROWS_MIN, 2.0)
    asyncio.run(watch.look(world, frozenset()))
    name = CATALOGUE.names[0]
    assert f"psi:{name}" in world.alarms
    assert "psi:score" not in world.alarms
    assert alarms_kept(settings) == world.alarms
    assert metrics.ALARM.labels("psi", name)._value.get() == 1
    again = WatchWorld(settings, world.windows, "mdl_now", world.snapshot, alarms_kept(settings))
    assert looked(again) == again.alarms, "a restart fires nothing again"
    again.windows = {}
    served(again, ROWS_MIN, 0.0)
    asyncio.run(watch.look(again, frozenset()))
    assert again.alarms == frozenset()
    assert metrics.ALARM.labels("psi", name)._value.get() == 0


def test_alarms_that_find_no_room_on_the_disk_are_said_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = WatchWorld(Settings(data_dir=tmp_path), model_id="mdl_now", snapshot=trained_on())
    served(world, ROWS_MIN, 2.0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as filled:
        filled.setattr(watch, "write_whole", full)
        filled.setattr(watch, "registry_of", full)
        asyncio.run(watch.look(world, frozenset()))
    name = f"psi:{CATALOGUE.names[0]}"
    assert name in world.alarms
    assert alarms_kept(world.settings) == frozenset()
    asyncio.run(watch.look(world, frozenset()))
    assert name in alarms_kept(world.settings), "kept as soon as there is room"


def test_scores_of_another_model_are_not_set_beside_this_ones_training(tmp_path: Path) -> None:
    world = WatchWorld(Settings(data_dir=tmp_path), model_id="mdl_now", snapshot=trained_on())
    served(world, 10, 0.0, "mdl_before")
    assert len(watch.scores_of(world.windows, "mdl_now")) == 0
    assert len(watch.vectors_of(world.windows)) == 10


def test_labels_and_decisions_meet_in_whatever_order_they_come() -> None:
    window = Window()
    watch.label_seen(window, a_label("t1"))
    watch.label_seen(window, a_label("t1", fraud=False, learned_at_ms=NOON))
    for _ in range(2):
        watch.decision_seen(window, a_decision("t1", outcome=Outcome.BLOCK, score=900))
    seen = told({1: window})
    assert (seen.blocked.tolist(), seen.frauds.tolist(), seen.learned_at_ms.tolist()) == ([True], [True], [NOON + HOUR_MS])


def followed(world: FeedbackWorld, said: Label) -> str | None:
    result = asyncio.run(feedback.on_label(world, said, at(0, LABELS.name)))
    return result.code if isinstance(result, Refused) else None


def test_a_drift_that_is_not_told_any_more_is_no_number(tmp_path: Path) -> None:
    gauges = [gauge.labels(name) for gauge in (metrics.DRIFT_PSI, metrics.DRIFT_KS) for name in (CATALOGUE.names[0], "score")]
    world = WatchWorld(Settings(data_dir=tmp_path), model_id="mdl_now", snapshot=trained_on())
    served(world, ROWS_MIN, 2.0)
    looked(world)
    assert np.isfinite([gauge._value.get() for gauge in gauges]).all()
    world.model_id = "mdl_next"  # it has given no score yet
    looked(world)
    assert [np.isnan(gauge._value.get()) for gauge in gauges] == [False, True, False, True]
    world.windows = {}  # another process has them now
    looked(world)
    missing = metrics.MISSING_FAMILY.labels(next(iter(CATALOGUE.families)))
    assert np.isnan([gauge._value.get() for gauge in (*gauges, missing)]).all()


def test_what_no_label_says_is_no_number(tmp_path: Path) -> None:
    gauges = (metrics.CALIBRATION, metrics.PRECISION.labels("block"), metrics.PRECISION.labels("review"), metrics.LABEL_DELAY.labels("0.9"))
    for gauge in gauges:
        gauge.set(0.0)  # as said of the windows that another process has now
    world = WatchWorld(Settings(data_dir=tmp_path))
    served(world, 10, 0.0)
    looked(world)
    assert np.isnan([gauge._value.get() for gauge in gauges]).all()


def test_a_label_learned_in_the_future_makes_no_payment_old_enough_to_be_judged(tmp_path: Path) -> None:
    world, now_ms = WatchWorld(Settings(data_dir=tmp_path)), clock_ms()
    for name, at_ms in (("old", NOON), ("new", now_ms)):
        watch.on_decision(world, a_decision(name, outcome=Outcome.BLOCK, at_ms=at_ms, decided_at_ms=at_ms), at(0))
    for name, learned_at_ms in (("old", NOON + HOUR_MS), ("unknown", now_ms + 48 * HOUR_MS)):
        watch.on_label(world, a_label(name, learned_at_ms=learned_at_ms), at(0, LABELS.name))
    looked(world)
    assert metrics.PRECISION.labels("block")._value.get() == 1.0
    assert metrics.LABEL_DELAY.labels("0.9")._value.get() == 3600


def test_a_window_that_is_full_knows_which_payments_never_were_since_the_oldest_that_it_forgot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "KEPT_MAX", 2)
    world = FeedbackWorld(Settings(), lambda _: 3)
    for number in range(3):
        at_ms = NOON + number * HOUR_MS
        feedback.on_decision(world, a_decision(f"t{number}", at_ms=at_ms, decided_at_ms=at_ms), at(number))
    assert followed(world, a_label("t9", transacted_at_ms=NOON + HOUR_MS)) == "unknown_transaction"
    assert followed(world, a_label("t0", transacted_at_ms=NOON)) is None, "it may have been"


def test_a_payment_that_was_dated_ahead_and_is_forgotten_is_believed_to_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "KEPT_MAX", 1)
    world = FeedbackWorld(Settings(), lambda _: 2)
    for number, ahead_ms in enumerate((240_000, 0)):  # clocks may differ by so much
        decided_at_ms = NOON + number
        feedback.on_decision(world, a_decision(f"t{number}", at_ms=decided_at_ms + ahead_ms, decided_at_ms=decided_at_ms), at(number))
    assert followed(world, a_label("t0", transacted_at_ms=NOON + 240_000)) is None
    assert followed(world, a_label("t9", transacted_at_ms=NOON + 240_001)) == "unknown_transaction"


def test_a_label_that_cannot_be_right_becomes_a_dead_letter() -> None:
    world = FeedbackWorld(Settings(), lambda _: 8)
    feedback.on_decision(world, a_decision("t1"), at(7))
    assert followed(world, a_label("t1")) is None
    assert followed(world, a_label("t1")) is None, "delivered again"
    assert followed(world, a_label("t1", "l2")) == "repeated"
    assert followed(world, a_label("t1", "l3", learned_at_ms=1)) == "learned_too_early"
    ahead = a_label("t1", "l5", learned_at_ms=LOGGED_MS + HOUR_MS)
    assert followed(world, ahead) == "learned_in_future"
    assert followed(world, msgspec.structs.replace(ahead, learned_at_ms=NOON + 2 * HOUR_MS)) is None, "mended"
    assert followed(world, a_label("t2")) == "unknown_transaction"
    assert followed(world, a_label("t1", "l4", account_id="a2")) == "unknown_transaction", "though both accounts may lie in one partition"


def test_no_label_waits_for_a_record_that_is_no_decision() -> None:
    world = FeedbackWorld(Settings(), lambda _: 9)
    feedback.on_decision(world, a_decision("t1"), at(7))
    with pytest.raises(LogUnavailable):
        followed(world, a_label("t2"))
    asyncio.run(feedback.settle(world, {(DECISIONS.name, 1): 9, (LABELS.name, 1): 1}))  # offset 8 became a dead letter
    assert followed(world, a_label("t2")) == "unknown_transaction"


def test_a_label_that_was_laid_aside_is_nothing_to_the_mended_one_after_a_restart_either(real: Settings) -> None:
    account, early = f"a-{uuid.uuid4().hex}", a_label("t1", learned_at_ms=1)

    async def told_once() -> None:
        bus = KafkaBus(real.changed(produce_timeout_ms=20_000))
        decision = a_decision("t1")
        await bus.tell(DECISIONS, account, encode(decision))
        await bus.tell(DECISIONS, account, b"no decision")
        await bus.tell(LABELS, account, encode(early))
        await bus.close()

    asyncio.run(told_once())
    place = next(m.partition for m in messages(real, LABELS) if m.key == account.encode())
    group = Consumer(librdkafka(real) | {"group.id": feedback.APP.name})
    ends = {topic.name: end_offsets(real, topic, [place])[place][1] for topic in (DECISIONS, LABELS)}
    group.commit(offsets=[TopicPartition(name, place, end) for name, end in ends.items()], asynchronous=False)
    group.close()

    world = FeedbackWorld(real, lambda _: ends[DECISIONS.name])
    asyncio.run(feedback.assigned(world, frozenset((name, place) for name in ends)))
    from_now_on = at(ends[LABELS.name], LABELS.name)._replace(partition=place)
    assert asyncio.run(feedback.on_label(world, a_label("t1"), from_now_on)) == ()
    again = asyncio.run(feedback.on_label(world, a_label("t2", transacted_at_ms=NOON + 1), from_now_on))
    assert isinstance(again, Refused)
    assert again.code == "unknown_transaction"


def test_a_label_that_is_ahead_of_its_decision_waits_for_it() -> None:
    world = FeedbackWorld(Settings(), lambda _: 8)
    with pytest.raises(LogUnavailable):
        followed(world, a_label("t1"))
    feedback.on_decision(world, a_decision("t1"), at(7))
    assert followed(world, a_label("t1")) is None


def test_a_label_on_nothing_does_not_wait_for_a_moment_without_decisions() -> None:
    ends = [0]

    def busy(_: int) -> int:
        """The end of a log that grows at each look."""
        ends.append(ends[-1] + 1)
        return ends[-1]

    async def story() -> object:
        async def follow() -> None:
            while True:
                await asyncio.sleep(0.01)
                await feedback.settle(world, {(DECISIONS.name, 1): ends[-1]})

        world = FeedbackWorld(Settings(), busy)
        following = asyncio.create_task(follow())
        try:
            return await feedback.on_label(world, a_label("t1"), at(0, LABELS.name))
        finally:
            following.cancel()

    assert isinstance(asyncio.run(story()), Refused)


def test_a_payment_older_than_what_is_kept_is_believed_to_exist() -> None:
    world = FeedbackWorld(Settings(), lambda _: 8, {1: Known(since_ms=NOON, next=8)})
    assert followed(world, a_label("t9")) is None
    assert followed(world, a_label("t9", transacted_at_ms=NOON - 1)) is None


def test_a_file_of_labels_is_told_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    header = "transaction_id,account_id,fraud,fraud_kind,learned_at,source"
    file.write_text(f"{header}\nt1,a1,true,takeover,2026-01-01T13:00:00Z,chargeback\nt2,a2,0,,2026-01-01T14:00:00Z,analyst\n")
    first, second = label.labels_in(file, NOON + 10 * HOUR_MS)
    assert (first.fraud, first.fraud_kind, first.learned_at_ms, second.fraud) == (True, "takeover", NOON + HOUR_MS, False)
    assert label.labels_in(file, NOON + 99 * HOUR_MS)[0].label_id == first.label_id, "told twice it is the same label"
    with pytest.raises(SettingsError, match=r"row 2: learned_at"):
        label.labels_in(file, NOON + HOUR_MS)
    file.write_text(f"{header},colour\n")
    with pytest.raises(SettingsError, match="unknown column 'colour'"):
        label.labels_in(file, NOON)


HEADER = "transaction_id,account_id,fraud,source"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (f"{HEADER}\nt1,a1,1,analyst\n{'t' * 65},a1,1,analyst\n".encode(), "row 2: transaction_id"),
        (f"{HEADER},learned_at\nt1,a1,1,analyst,1969-12-31\n".encode(), "row 1: learned_at_ms"),
        (b"", "column 'transaction_id' is missing"),
        (b"transaction_id,account_id,source\n", "column 'fraud' is missing"),
        (f"{HEADER}\nt1,a1,1,analyst,takeover\n".encode(), "row 1: row: has more cells than the header"),
        (f"{HEADER},fraud\nt1,a1,1,analyst,0\n".encode(), "column 'fraud' stands there twice"),
        (f"{HEADER}\nt1,Müller,1,analyst\n".encode("latin-1"), "'utf-8' codec can't decode"),
        (f"{HEADER}\nt1,a1,1,{'x' * 200_000}\n".encode(), "field larger than field limit"),
        (f'{HEADER},merchant_id\nt1,a1,1,analyst,"m1\nt2,a2,1,analyst,m2\n'.encode(), "unexpected end of data"),
    ],
)
def test_a_file_that_is_no_labels_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, fault: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=f"labels.csv: {fault}"):
        label.labels_in(file, NOON)


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["t1", "--account", "a1", "--honest", "--source", "analyst", "--learned", ""], "--learned: '' is not a time"),
        (["--file", "labels.csv", "--honest"], "--file: each of its rows says --honest itself"),
        (["--file", "labels.csv", "--learned", "2026-01-01", "--account", "a1"], "--file: each of its rows says --account, --learned itself"),
    ],
)
def test_what_would_not_be_told_as_it_was_said_is_refused(argv: list[str], fault: str) -> None:
    """A variable of a script that nobody has set is an empty text: the label would be learned now."""
    with pytest.raises(SettingsError, match=fault):
        label.command(argv, Settings())


def test_a_file_of_labels_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f"{HEADER}\nt1,a1,true,analyst\n", encoding="utf-8-sig")
    (told_label,) = label.labels_in(file, NOON)
    assert told_label.transaction_id == "t1"


def test_a_drift_against_the_training_of_a_model_that_decides_no_more_is_no_alarm() -> None:
    name = CATALOGUE.names[0]
    drifted = frozenset({f"psi:{name}", "psi:score", "ks:score"})
    world = WatchWorld(Settings(), model_id="mdl_now", snapshot=trained_on(), alarms=drifted)
    assert looked(world) == drifted, "before its window is there nothing is known"
    served(world, ROWS_MIN, 2.0, model_id="mdl_before")
    assert {alarm for alarm in looked(world) if alarm in drifted} == {f"psi:{name}"}, "the new one has given no scores yet"
    world.snapshot = None  # an earlier release trained it
    assert not drifted & looked(world)


def test_an_alarm_of_what_this_release_does_not_look_at_does_not_stand_for_ever(tmp_path: Path) -> None:
    kept = [f"psi:{CATALOGUE.names[0]}", "missing:device", "miscalibration:score", "psi:a_feature_of_old", "nonsense"]
    (tmp_path / watch.ALARMS_FILE).write_bytes(msgspec.json.encode(kept))
    assert alarms_kept(Settings(data_dir=tmp_path)) == set(kept[:3])
