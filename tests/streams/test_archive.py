"""The archive holds each decision once, whatever dies and whatever comes twice."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from features.catalogue import CATALOGUE
from schemas.avro import encode
from schemas.decision import Contribution, Decision, Outcome, Reason, ReasonSource, Risk
from schemas.identity import decision_id
from schemas.label import Label, LabelSource
from schemas.topics import DECISIONS
from schemas.transaction import BehaviouralSession
from streams import archive
from streams.archive import Archive
from streams.settings import Settings
from tests.streams.conftest import Bench
from tests.world import NOON, a_transaction

DAY_MS = 86_400_000
PLACE = (DECISIONS.name, 0)
VECTOR = np.arange(len(CATALOGUE.names), dtype="<f8")


def a_decision(name: str, decided_at_ms: int = NOON, **changes: object) -> Decision:
    """A decision with something in every field."""
    txn = a_transaction(name, account_id="a1", session=BehaviouralSession(session_age_s=3.5))
    plain: dict[str, object] = {
        "decision_id": decision_id(name),
        "transaction_id": name,
        "account_id": "a1",
        "at_ms": txn.at_ms,
        "decided_at_ms": decided_at_ms,
        "outcome": Outcome.REVIEW,
        "reasons": (Reason(code="many", source=ReasonSource.RULE, feature="velocity.card_count_10m", value=9.0),),
        "score": 700,
        "risk": Risk.HIGH,
        "contributions": (Contribution(member="learned", weight=1.0, probability=0.7),),
        "hold_id": None,
        "held_minor": 0,
        "hold_currency": None,
        "hold_expires_at_ms": None,
        "model_id": "mdl_1",
        "policy_id": "pol_1",
        "catalogue_id": CATALOGUE.catalogue_id,
        "vector": VECTOR.tobytes(),
        "positions": (1, -1),
        "declined_positions": (),
        "degradations": (),
        "source_topic": "http",
        "source_partition": -1,
        "source_offset": -1,
        "transaction": txn,
    }
    return Decision(**(plain | changes))  # type: ignore[arg-type]


def an_archive(folder: Path, place: tuple[str, int] = PLACE) -> Archive:
    """An archive that owns one partition."""
    made = Archive(folder, lambda: 0.0)
    made.open([place])
    return made


def read(folder: Path, topic: str = "decisions", columns: list[str] | None = None) -> pa.Table:
    """All that is in the archive (or these columns of it), as a notebook reads it."""
    return pads.dataset(folder / topic, format="parquet", partitioning="hive").to_table(columns)


def test_a_decision_becomes_one_row_with_its_features_by_name(tmp_path: Path) -> None:
    made = an_archive(tmp_path)
    made.add(a_decision("t1"), PLACE, 0)
    made.add(a_decision("t2", catalogue_id="cat_old"), PLACE, 1)
    made.write_all()
    rows = {row["transaction_id"]: row for row in read(tmp_path).to_pylist()}
    known, old = rows["t1"], rows["t2"]
    assert [known[name] for name in CATALOGUE.names] == VECTOR.tolist()
    assert known["vector"] is None
    assert {old[name] for name in CATALOGUE.names} == {None}
    assert old["vector"] == VECTOR.tobytes()
    assert (known["outcome"], known["score"], known["txn_amount_minor"], known["txn_session_session_age_s"]) == ("review", 700, 1_000, 3.5)
    assert known["reasons"] == [{"code": "many", "source": "rule", "feature": "velocity.card_count_10m", "value": 9.0, "usual": None}]
    assert (known["log_partition"], known["log_offset"], known["day"].isoformat() if hasattr(known["day"], "isoformat") else known["day"]) == (
        0,
        0,
        "2026-01-01",
    )


def test_only_what_is_in_a_file_may_be_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "ROWS_MAX", 3)
    made = an_archive(tmp_path)
    for offset in (10, 11):
        made.add(a_decision(f"t{offset}"), PLACE, offset)
        assert made.written({PLACE: offset + 1}) == {PLACE: 10}
    made.add(a_decision("t12"), PLACE, 12)
    assert made.written({PLACE: 13}) == {PLACE: 13}
    made.add(a_decision("t12"), PLACE, 13)
    assert made.written({PLACE: 14}) == {PLACE: 14}, "a repeat waits for nothing"
    assert read(tmp_path).num_rows == 3


def test_where_little_happens_a_file_waits_longer_the_more_its_day_has_and_ten_seconds_where_much_does(tmp_path: Path) -> None:
    now_s = 0.0

    def begun() -> Archive:
        made = Archive(tmp_path, lambda: now_s)
        made.open([PLACE])
        return made

    def waited_s(made: Archive, rows: int = 1, day: int = 0) -> float:
        """How long the next file waits, of so many rows."""
        nonlocal now_s
        since_s, first = now_s, made._waiting[PLACE].next
        for offset in range(first, first + rows):
            made.add(a_decision(f"t{offset}", NOON + day * DAY_MS), PLACE, offset)
        while made.written({PLACE: first + rows}) == {PLACE: first}:
            now_s += 1
        return now_s - since_s

    made = begun()
    assert [waited_s(made) for _ in range(7)] == [10, 12, 14, 15, 17, 19, 20]
    made = begun()
    assert waited_s(made) == 22, "a restart knows how many the day has"
    assert waited_s(made, rows=archive.ROWS_FEW) == 10
    assert [waited_s(made, day=1) for _ in range(3)] == [25, 12, 14], "its first is written with the patience of the day before"
    made._waiting[PLACE].files = 1_000
    assert waited_s(made) == archive.AGE_S_LAST


def test_a_restart_goes_on_after_the_last_file_and_knows_what_came_before(tmp_path: Path) -> None:
    first = an_archive(tmp_path)
    for offset in range(5):
        first.add(a_decision(f"t{offset}"), PLACE, offset)
    first.write_all()
    first.add(a_decision("t5"), PLACE, 5)
    again = an_archive(tmp_path)
    for offset in range(8):
        again.add(a_decision(f"t{offset}"), PLACE, offset)
    again.add(a_decision("t2"), PLACE, 8)
    again.write_all()
    assert sorted(read(tmp_path)["transaction_id"].to_pylist()) == [f"t{n}" for n in range(8)]


def of_two_days(folder: Path, count: int = 5) -> Archive:
    """An archive that was told of payments of two days in turns."""
    made = an_archive(folder)
    for offset in range(count):
        made.add(a_decision(f"t{offset}", NOON + offset % 2 * DAY_MS), PLACE, offset)
    return made


def test_a_file_that_somebody_put_beside_ours_does_not_keep_the_archive_from_going_on(tmp_path: Path) -> None:
    made = an_archive(tmp_path)
    made.add(a_decision("t1"), PLACE, 0)
    made.write_all()
    (ours,) = (tmp_path / "decisions").glob("day=*/part-*.parquet")
    for name in (f"{ours.stem}_copy", "part-0-mine"):
        pq.write_table(pa.table({"note": ["a notebook's own"]}), ours.with_name(f"{name}.parquet"))
    again = an_archive(tmp_path)
    again.add(a_decision("t1"), PLACE, 1)
    again.add(a_decision("t2"), PLACE, 2)
    again.write_all()
    assert [path.name for path in sorted(ours.parent.glob("part-0-0*[0-9].parquet"))] == [ours.name, "part-0-000000000000002.parquet"]


def test_a_file_holds_one_day_however_the_days_are_mixed(tmp_path: Path) -> None:
    of_two_days(tmp_path).write_all()
    assert sorted(str(path.relative_to(tmp_path / "decisions")) for path in tmp_path.rglob("*.parquet")) == [
        "day=2026-01-01/part-0-000000000000000.parquet",
        "day=2026-01-02/part-0-000000000000001.parquet",
    ]
    assert an_archive(tmp_path)._waiting[PLACE].next == 5
    assert sorted(read(tmp_path)["log_offset"].to_pylist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("before", [0, 4])
def test_a_crash_between_the_files_of_two_days_loses_and_doubles_nothing(tmp_path: Path, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    of_two_days(tmp_path, before).write_all()
    put = archive._put
    files: list[Path] = []

    def dies(path: Path, table: pa.Table) -> None:
        files.append(path)
        if len(files) == 2:
            raise KeyboardInterrupt
        put(path, table)

    monkeypatch.setattr(archive, "_put", dies)
    with pytest.raises(KeyboardInterrupt):
        of_two_days(tmp_path, before + 5).write_all()
    monkeypatch.setattr(archive, "_put", put)
    assert read(tmp_path).num_rows == before + 3
    again = an_archive(tmp_path)
    assert again._waiting[PLACE].next == before, "what is not there is asked for again"
    of_two_days(tmp_path, before + 9).write_all()
    assert sorted(read(tmp_path)["log_offset"].to_pylist()) == list(range(before + 9))
    assert an_archive(tmp_path)._waiting[PLACE].next == before + 9


def test_who_was_cut_off_cannot_write_beside_its_heir(tmp_path: Path) -> None:
    old, heir = an_archive(tmp_path), an_archive(tmp_path)
    for made in (old, heir):
        made.add(a_decision("t0"), PLACE, 0)
    heir.write_all()
    with pytest.raises(FileExistsError):
        old.write_all()
    assert read(tmp_path).num_rows == 1
    assert not list(tmp_path.rglob(".part*"))


def test_what_finds_no_room_on_the_disk_names_its_file_leaves_nothing_and_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made = an_archive(tmp_path)
    made.add(a_decision("t0"), PLACE, 0)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as error:
            made.write_all()
    assert str(error.value.filename).startswith(str(tmp_path / "decisions" / "day="))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    made.write_all()
    assert read(tmp_path).num_rows == 1


def test_labels_are_archived_by_the_day_on_which_they_were_learned(tmp_path: Path) -> None:
    made = an_archive(tmp_path, ("labels", 2))
    made.add(Label(label_id="l1", transaction_id="t1", account_id="a1", fraud=True, learned_at_ms=NOON, source=LabelSource.ANALYST), ("labels", 2), 7)
    made.write_all()
    (row,) = read(tmp_path, "labels").to_pylist()
    assert (row["label_id"], row["fraud"], row["source"], row["log_offset"]) == ("l1", True, "analyst", 7)


def test_after_kill_9_every_decision_is_in_the_archive_exactly_once(real: Settings, tmp_path: Path) -> None:
    bench = Bench(real.changed(data_dir=tmp_path), DECISIONS, "archive")
    names = [f"k{n}" for n in range(1_200)]
    try:
        for seen, part in ((100, names[:500]), (300, names[500:900]), (600, names[900:])):
            worker = bench.start("archive", ready=False)
            bench.tell_bytes(*((f"a{n % 9}", encode(a_decision(name))) for n, name in enumerate(part)))
            bench.until(lambda seen=seen: len(archived(bench)) > seen)
            worker.kill()
            assert worker.wait() == -signal.SIGKILL
        bench.tell_bytes(*((f"a{n % 9}", encode(a_decision(name))) for n, name in enumerate(names[:50])))
        worker = bench.start("archive")
        bench.until(lambda: len(archived(bench)) >= 1_200)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
        assert sorted(archived(bench)) == sorted(names)
    finally:
        bench.close()


def archived(bench: Bench) -> list[str]:
    """This test's transactions in the bench's archive."""
    folder = bench.settings.archive_dir
    if not any((folder / "decisions").rglob("[!.]*.parquet")):
        return []
    return [name for name in read(folder, columns=["transaction_id"])["transaction_id"].to_pylist() if name.startswith("k")]
