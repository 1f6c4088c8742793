"""The job end to end: from the archive, or from a file, to what the next payment's vector knows of its account's cluster."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.catalogue import CATALOGUE
from features.engine import look
from features.online import RedisMemory
from features.profile import profile_write
from models.cluster import COLUMNS
from schemas.account import AccountState
from schemas.errors import SettingsError
from schemas.label import Label, LabelSource
from schemas.topics import DECISIONS, LABELS, Topic
from streams import backfill as backfill_job
from streams import cluster
from streams.archive import Archive
from streams.clock import clock_ms
from streams.rebuild import rebuild
from streams.settings import Settings
from streams.stack import running
from tests.features.stores import a_wire
from tests.streams.test_archive import a_decision
from tests.world import NOON, a_transaction

DAY_MS = 86_400_000
NAMES = [f"network.account_{column}" for column in COLUMNS]
MAPPING = """
[fields]
transaction_id = "id"
account_id = "account"
device_token = "device"
[time]
column = "at"
format = "epoch_ms"
[amount]
column = "amount"
currency = "EUR"
[constants]
kind = "ecommerce"
[label]
column = "fraud"
learned_at_column = "learned"
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings that reach a Redis, and a broker that is told what becomes known."""
    with running(Settings(data_dir=tmp_path_factory.mktemp("system"), http_port=0), apps=()) as stack:
        yield stack.settings


@pytest.fixture
def job(system: Settings, tmp_path: Path) -> Settings:
    """Settings with an empty Redis and an empty archive."""

    async def emptied() -> None:
        async with a_wire(system.redis_url) as wire:
            await wire.send(("FLUSHALL",))

    asyncio.run(emptied())
    return system.changed(data_dir=tmp_path, archive_dir=tmp_path / "archive")


def archived(job: Settings, payments: dict[str, tuple[str, str, int]], frauds: dict[str, int], partition: int = 0) -> None:
    """Archives decisions (id: account, device, decided at) and labels (id of a fraud: learned at), as the app does."""
    archive = Archive(job.archive_dir, lambda: 0.0)
    archive.open([(DECISIONS.name, partition), (LABELS.name, partition)])
    for offset, (name, (account, device, at_ms)) in enumerate(payments.items()):
        txn = a_transaction(name, account_id=account, device_token=device, at_ms=at_ms)
        archive.add(a_decision(name, at_ms, account_id=account, transaction=txn), (DECISIONS.name, partition), offset)
    for offset, (name, at_ms) in enumerate(frauds.items()):
        account = payments[name][0]
        label = Label(label_id=f"l-{name}", transaction_id=name, account_id=account, fraud=True, learned_at_ms=at_ms, source=LabelSource.CHARGEBACK)
        archive.add(label, (LABELS.name, partition), offset)
    archive.write_all()


def ran(job: Settings, as_of_ms: int, days: int = 90) -> cluster.Figures:
    return cluster.run_once(job, as_of_ms, days * DAY_MS, 20, 1)


def next_payment(job: Settings, account: str, at_ms: int) -> list[float]:
    """What the vector of the account's next payment says of its cluster."""

    async def looked() -> list[float]:
        async with a_wire(job.redis_url) as wire:
            memory = RedisMemory(wire, CATALOGUE)
            txn = a_transaction(f"next-{account}-{at_ms}", account_id=account, at_ms=at_ms)
            values = look(CATALOGUE, await memory.recall(txn)).values
            await memory.close()
            return [float(values[CATALOGUE.index[name]]) for name in NAMES]

    return asyncio.run(looked())


RING = {f"t{n}": (f"ring{n}", "one-device", NOON + n) for n in range(4)} | {"alone": ("loner", "another", NOON)}


def test_from_the_archive_to_the_vector_of_the_next_payment(job: Settings) -> None:
    archived(job, RING, {"t0": NOON + DAY_MS})
    figures = ran(job, NOON + DAY_MS + 1)
    assert (figures.accounts, figures.edges, figures.communities, figures.largest, figures.frauds, figures.rows_written) == (5, 6, 1, 4, 1, 5)
    assert next_payment(job, "ring0", NOON + DAY_MS + 1) == [4.0, 0.0, 3.0]
    assert next_payment(job, "ring1", NOON + DAY_MS + 1) == [4.0, pytest.approx(1 / 3), 3.0]
    assert next_payment(job, "loner", NOON + DAY_MS + 1) == [1.0, 0.0, 0.0]
    assert np.isnan(next_payment(job, "ring1", NOON + DAY_MS)).all(), "a payment before the job's moment knows nothing of it"
    assert np.isnan(next_payment(job, "stranger", NOON + DAY_MS + 1)).all()


def test_a_label_learned_after_the_moment_changes_nothing(job: Settings) -> None:
    archived(job, RING, {"t0": NOON + DAY_MS})
    ran(job, NOON + DAY_MS)
    assert next_payment(job, "ring1", NOON + DAY_MS) == [4.0, 0.0, 3.0]


def test_the_same_run_again_writes_nothing_and_a_later_one_only_what_changed(job: Settings) -> None:
    archived(job, RING, {"t0": NOON + DAY_MS})
    assert [ran(job, NOON + DAY_MS).rows_written for _ in range(2)] == [5, 0]
    assert ran(job, NOON + 2 * DAY_MS).rows_written == 3, "the fraud was learned: the three others' share changed"
    assert ran(job, NOON + DAY_MS).rows_written == 0, "what a later run made known stands"
    assert next_payment(job, "ring1", NOON + 2 * DAY_MS)[1] == pytest.approx(1 / 3)


def test_an_account_that_left_its_cluster_is_alone_again(job: Settings) -> None:
    stays = {f"later{n}": (f"ring{n}", "one-device", NOON + 20 * DAY_MS) for n in range(3)}
    archived(job, RING | stays, {})
    ran(job, NOON + DAY_MS, days=30)
    assert next_payment(job, "ring3", NOON + DAY_MS) == [4.0, 0.0, 3.0]
    ran(job, NOON + 40 * DAY_MS, days=30)
    assert next_payment(job, "ring3", NOON + 40 * DAY_MS) == [1.0, 0.0, 0.0]
    assert next_payment(job, "ring0", NOON + 40 * DAY_MS) == [3.0, 0.0, 2.0]


def test_what_else_is_known_of_the_account_stays(job: Settings) -> None:
    archived(job, RING, {})
    state = AccountState(
        account_id="ring0", currency="EUR", balance_minor=0, credit_limit_minor=500, as_of_ms=1, opened_at_ms=NOON, home_country="FR"
    )

    async def known() -> None:
        async with a_wire(job.redis_url) as wire:
            await RedisMemory(wire, CATALOGUE).know_account(state)

    asyncio.run(known())
    ran(job, NOON + DAY_MS)

    async def limit() -> bytes:
        write = profile_write(CATALOGUE, "account", "ring0", "credit_limit_minor", 500.0, 1)
        assert write is not None
        async with a_wire(job.redis_url) as wire:
            (cell,) = await wire.send(("GETRANGE", write[1], write[2], write[2] + 15))
            assert cell == write[3]
            return bytes(cell)

    assert asyncio.run(limit())
    assert next_payment(job, "ring0", NOON + DAY_MS) == [4.0, 0.0, 3.0]


def test_what_the_job_made_known_is_in_a_topic_and_a_rebuild_puts_it_back(job: Settings) -> None:
    archived(job, RING, {"t0": NOON + DAY_MS})
    for day in (1, 2):
        ran(job, NOON + day * DAY_MS)

    async def forgotten() -> None:
        async with a_wire(job.redis_url) as wire:
            await wire.send(("FLUSHALL",))

    before = next_payment(job, "ring1", NOON + 2 * DAY_MS)
    asyncio.run(forgotten())
    assert rebuild([], job) == 0
    assert next_payment(job, "ring1", NOON + 2 * DAY_MS) == before == [4.0, pytest.approx(1 / 3), 3.0]


def test_without_an_archive_the_job_says_so(job: Settings) -> None:
    with pytest.raises(SettingsError, match="no archive"):
        ran(job, NOON)


def test_the_scheduled_job_runs_again_and_ends_when_asked(job: Settings) -> None:
    archived(job, RING, {})
    environ = os.environ | job.as_environ()
    command = [sys.executable, "-m", "streams.cli", "cluster", "--every", "0.2", "--days", "100000", "--archive", str(job.archive_dir), "--json"]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    runs = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert [run["rows_written"] for run in runs] == [5, 0, 0]
    assert next_payment(job, "ring2", clock_ms()) == [4.0, 0.0, 3.0]


def test_a_backfill_knows_of_clusters_what_was_known_at_the_time(tmp_path: Path) -> None:
    """Three accounts meet on one device within three days; the job would have run each midnight."""
    day = [NOON + n * DAY_MS for n in range(4)]
    rows = [("p0", "a", "d", day[0], 1, day[0] + DAY_MS // 4), ("p1", "b", "d", day[0] + 1, 0, None), ("p2", "a", None, day[1], 0, None)]
    rows += [("p3", "c", "d", day[1] + 1, 0, None), ("p4", "b", None, day[2], 0, None), ("p5", "c", None, day[2] + 1, 0, None)]
    columns = dict(zip(("id", "account", "device", "at", "fraud", "learned"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns | {"amount": [1.0] * 6}), tmp_path / "f.parquet")
    (tmp_path / "m.toml").write_text(MAPPING)
    settings = Settings(data_dir=tmp_path, token_key="k")
    file, mapping, known = str(tmp_path / "f.parquet"), str(tmp_path / "m.toml"), str(tmp_path / "known.parquet")
    assert cluster.command(["--file", file, "--map", mapping, "--out", known, "--every", "43200"], settings) == 0
    assert backfill_job.backfill([file, "--map", mapping, "--known", known, "--out", str(tmp_path / "out")], settings) == 0
    table = pq.read_table(tmp_path / "out" / backfill_job.FEATURES_FILE, columns=NAMES)
    got = list(zip(*(table[name].to_pylist() for name in NAMES), strict=True))
    assert np.isnan(got[:2]).all()
    assert np.isnan(got[3]).all(), "c was not seen before"
    assert got[2] == (2.0, 0.0, 1.0), "a is with b, who did nothing"
    assert got[4] == (3.0, 0.5, 2.0), "b is with a, whose fraud is known, and c"
    assert got[5] == (3.0, 0.5, 2.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--days", "nan"), ("--days", "inf"), ("--days", "1e12"), ("--days", "0"), ("--every", "nan"), ("--every", "0.0001"), ("--hub", "0")],
)
def test_a_number_that_means_nothing_is_refused(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(SettingsError, match=option):
        cluster.command([option, value], Settings(data_dir=tmp_path))


def test_an_archive_is_named_as_every_file_from_where_the_command_is_given(job: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    archived(job, RING, {})
    monkeypatch.chdir(job.data_dir)
    elsewhere = job.changed(data_dir=job.data_dir / "elsewhere")
    assert cluster.command(["--archive", "archive"], elsewhere) == 0


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": ["p0"], "account": ["a"], "device": ["d"], "at": [NOON], "fraud": [0], "learned": [NOON], "amount": [1.0]}),
        tmp_path / "f.parquet",
    )
    (tmp_path / "m.toml").write_text(MAPPING)
    argv = ["--file", str(tmp_path / "f.parquet"), "--map", str(tmp_path / "m.toml"), "--out", str(tmp_path / "f.parquet" / "known.parquet")]
    with pytest.raises(SettingsError, match=r"--out: .*f\.parquet"):
        cluster.command(argv, Settings(data_dir=tmp_path, token_key="k"))


def test_what_is_known_is_joined_as_of_each_row() -> None:
    known = pa.table({"account_id": ["b", "a", "a", "a", "z"], "known_at_ms": [5, 10, 20, 20, 1], "cluster_size": [9.0, 1.0, 2.0, 3.0, 7.0]})
    accounts, at_ms = ["a", "a", "a", "a", "b", "b", "c"], [9, 10, 19, 20, 4, 99, 99]
    asked = pa.table({"account_id": accounts, "at_ms": at_ms})
    sizes = backfill_job._Knowledge((), known).columns(asked)["account.cluster_size"]
    assert np.array_equal(sizes, [np.nan, 1.0, 1.0, 3.0, np.nan, 9.0, np.nan], equal_nan=True)
    stated = backfill_job._Knowledge((AccountState(account_id="a", currency="EUR", balance_minor=0, as_of_ms=0),), known)
    assert stated.columns(asked)["account.credit_limit_minor"][0] == 0.0


@pytest.mark.parametrize(("topic", "at_ms"), [(DECISIONS, NOON), (DECISIONS, NOON - DAY_MS), (LABELS, NOON)])
@pytest.mark.parametrize("content", [b"", b"PAR1, cut off", None])
def test_a_file_of_the_archive_that_cannot_be_read_is_named(tmp_path: Path, topic: Topic, at_ms: int, content: bytes | None) -> None:
    settings = Settings(data_dir=tmp_path, archive_dir=tmp_path / "archive")
    archived(settings, RING | {"before": ("a", "d", NOON - DAY_MS)}, {"t0": NOON})
    (file,) = (tmp_path / "archive" / topic.name).glob(f"day={datetime.fromtimestamp(at_ms / 1000, UTC).date()}/*.parquet")
    pq.write_table(pa.table({"another": [1]}), file) if content is None else file.write_bytes(content)
    with pytest.raises(SettingsError, match=str(file)):
        cluster.archived_past(settings.archive_dir, NOON + DAY_MS // 4, DAY_MS // 2)


def test_a_day_whose_first_file_is_still_being_written_holds_nothing_yet(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, archive_dir=tmp_path / "archive")
    archived(settings, RING, {})
    for day in ("day=2025-12-31", "day=2026-01-02"):
        (settings.archive_dir / DECISIONS.name / day).mkdir()
        (settings.archive_dir / DECISIONS.name / day / ".part-0-000000000000009.parquet.7").write_bytes(b"PAR1")
    assert cluster.archived_past(settings.archive_dir, NOON + DAY_MS, DAY_MS).events.num_rows == len(RING)


def test_an_archive_that_does_not_answer_is_read_again_the_next_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    handlers, tries = dict[int, Callable[[], None]](), list[int]()

    def run_once(*_: object) -> cluster.Figures:
        tries.append(1)
        if len(tries) > 1:
            handlers[signal.SIGTERM]()
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(cluster, "run_once", run_once)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    assert cluster.command(["--every", "0.01"], Settings()) == 0
    assert len(tries) == 2
    assert "Stale file handle; again in" in capsys.readouterr().err
