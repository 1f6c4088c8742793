"""`holdfast up` keeps a system running and stops it cleanly; `holdfast ps` tells about it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas.errors import SettingsError, Unavailable
from schemas.topics import DECISIONS
from schemas.transaction import TransactionKind
from streams import supervise
from streams.bus import end_offsets
from streams.demo import HONEST, Board, demo, of_its_own
from streams.folder import is_owned, running_settings, state_of
from streams.lag import Lag
from streams.parts import Seen
from streams.settings import Settings
from streams.stack import APPS, running
from streams.supervise import Progress, _say_no_champion, grown, ps, up
from tests.first_model import MODEL_KEY
from tests.models.decisions import a_decision
from tests.stack.trivial_app import trivial
from tests.stack.world import comes_true

ROOT = Path(__file__).parents[2]


@contextmanager
def an_embedded_system(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """`holdfast up` with the least apps there are, all ready."""
    command = [sys.executable, "-m", "tests.stack.trivial_app", "up", "--kafka", "embedded", "--data", str(settings.data_dir)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings.as_environ(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert any("parts are ready" in line for line in process.stdout)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def shown(settings: Settings, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, object]]]:
    """The exit status of `holdfast ps --json`, and its parts by name."""
    status = ps(["--json"], settings)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    return status, {part["part"]: part for part in said["parts"]}


@pytest.mark.integration
def test_a_killed_app_comes_back_and_ps_tells(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with an_embedded_system(settings):
        status, before = shown(settings, capsys)
        assert status == 0
        assert set(before) == {"redis", "broker", *APPS}
        assert before["authorize"]["lag"] is None
        assert before["ledger"]["lag"] == 0
        psutil.Process(int(str(before["score"]["pid"]))).kill()
        assert comes_true(lambda: (after := shown(settings, capsys)[1]["score"])["restarts"] == 1 and after["state"] == "ready")
        assert ps([], settings) == 0
        assert "score" in capsys.readouterr().out


@pytest.mark.integration
def test_a_system_goes_on_where_nobody_reads_any_more_what_is_said_of_it(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with an_embedded_system(settings) as process:
        assert process.stdout is not None
        process.stdout.close()
        psutil.Process(int(str(shown(settings, capsys)[1]["score"]["pid"]))).kill()
        assert comes_true(lambda: (after := shown(settings, capsys)[1]["score"])["restarts"] == 1 and after["state"] == "ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, 120)  # 120: Python could not empty its own buffer


def test_up_says_that_no_model_was_promoted_where_none_was(settings: Settings, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings.changed(model_key=MODEL_KEY)
    _say_no_champion(settings)
    assert "no model was promoted" in capsys.readouterr().out
    _say_no_champion(settings.changed(registry_dir=trained))
    assert capsys.readouterr().out == ""


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_all_cleanly(settings: Settings, number: int) -> None:
    with an_embedded_system(settings) as process:
        pids = pids_of(settings)
        process.send_signal(number)
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(30) == 0
    assert said.splitlines()[-1].endswith("stopped")
    assert "killed" not in said.replace("kills", "")
    assert not any(map(lives, pids))
    assert not is_owned(settings.data_dir)


@pytest.mark.integration
def test_nothing_outlives_a_killed_supervisor(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with an_embedded_system(settings) as process:
        pids = pids_of(settings)
        assert len(pids) == len(APPS) + 2
        process.kill()
        assert comes_true(lambda: not any(map(lives, pids)))
    assert shown(settings, capsys) == (3, {})


@pytest.mark.integration
def test_another_command_finds_the_running_system_and_no_second_one_may_start(settings: Settings) -> None:
    assert running_settings(settings) is None
    with running(settings, apps=("hold",), app_command=trivial) as stack:
        assert running_settings(settings) == stack.settings
        assert stack.settings.token_key
        assert stack.settings.token_key not in (settings.data_dir / "state.json").read_text()
        with pytest.raises(SettingsError, match="runs in this folder already"):
            up(["--kafka", "embedded"], settings)
    assert running_settings(settings) is None


@pytest.mark.integration
def test_brokers_started_here_are_reached_though_those_of_the_settings_ask_for_a_password(settings: Settings) -> None:
    bank = settings.changed(kafka_protocol="SASL_SSL", kafka_username="holdfast", kafka_password="secret")
    with running(bank, apps=()) as stack:
        assert end_offsets(stack.settings, DECISIONS) == {}


@pytest.mark.integration
def test_an_app_that_never_becomes_ready_fails_the_start_and_shows_why(settings: Settings) -> None:
    system = running(settings, apps=("broken",), app_command=trivial, ready_s=5)
    with pytest.raises(Unavailable, match=r"broken is not ready .*: this app is broken"), system:
        raise AssertionError("a broken app was taken for ready")


def test_an_app_that_there_is_not_is_said_before_anything_starts(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="--apps: no app foo; there are authorize, score"):
        up(["--kafka", "embedded", "--apps", "hold,foo"], settings)
    assert not settings.data_dir.exists()


@pytest.mark.integration
@pytest.mark.parametrize("place", ["bank/archive", "data/../bank/archive"])
def test_an_embedded_start_leaves_an_archive_outside_its_folder_alone(settings: Settings, place: str) -> None:
    archive = settings.data_dir.parent / "bank" / "archive"
    said: list[str] = []
    for folder in (archive, settings.data_dir / "archive"):
        folder.mkdir(parents=True)
        (folder / "kept").write_text("a day of decisions")
    settings = settings.changed(archive_dir=settings.data_dir.parent / place)
    with running(settings, apps=("hold",), app_command=trivial, say=said.append) as stack:
        assert stack.settings.archive_dir == settings.data_dir / "archive"
        assert not stack.settings.archive_dir.exists(), "the one of the run before was set aside"
    assert [path.name for path in archive.parent.rglob("*")] == ["archive", "kept"]
    assert len(list(settings.data_dir.glob("archive-until-*/kept"))) == 1
    assert any("is left alone" in line for line in said)


@pytest.mark.parametrize("argument", ["--seconds=-1", "--seconds=nan", "--rate=0", "--rate=inf"])
def test_a_demo_of_no_payments_or_without_end_is_refused_before_a_model_is_trained(tmp_path: Path, argument: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{argument.partition('=')[0]}: "):
        demo([argument], Settings(data_dir=tmp_path))


def test_a_disk_that_is_full_ends_no_system(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Looked:
        settings, apps, parts = Settings(), (), (Seen("hold", "starting", 1, 0, 0, {}, ""),)
        looks = 0

        @property
        def failed(self) -> bool:
            """At the third look."""
            self.looks += 1
            return self.looks > 2

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(supervise, "LOOK_S", 0.01)
    monkeypatch.setattr(supervise, "write_whole", full)
    stack: Any = Looked()
    assert supervise._watch(stack) == 1
    assert stack.looks == 3


@pytest.mark.parametrize("seconds", ["1e9", "1e300"])
def test_a_demo_of_more_payments_than_memory_holds_is_refused_before_a_model_is_trained(tmp_path: Path, seconds: str) -> None:
    with pytest.raises(SettingsError, match=r"^--seconds, --rate: .* more than the 10,000,000 "):
        demo(["--seconds", seconds, "--rate", "1e30"], Settings(data_dir=tmp_path))


def test_a_demo_shows_any_rate() -> None:
    decisions = [a_decision(f"t{i}", TransactionKind.ECOMMERCE, 100) for i in range(3_000)]
    board = Board(dict.fromkeys([decision.transaction_id for decision in decisions], HONEST), 0.0)
    assert all(board.was_decided(decision) for decision in decisions)
    assert board.rate == 600
    board.recent = deque(at - 5.0 for at in board.recent)
    assert board.rate == 0


def test_the_demo_keeps_to_its_own_folder(tmp_path: Path) -> None:
    folders = {f"{name}_dir": tmp_path / "bank" / name for name in ("archive", "registry", "keys")}
    bank = Settings(data_dir=tmp_path, **folders, iso8583_port=8583, trace_endpoint="http://collector.bank:4318/v1/traces")
    own = of_its_own(bank, tmp_path / "demo")
    assert {own.data_dir, *(getattr(own, name).parent for name in folders)} == {tmp_path / "demo"}
    assert (own.iso8583_port, own.trace_endpoint) == (0, "")


def test_progress_is_dated_when_the_committed_offsets_grow() -> None:
    first = grown({}, {"hold": Lag(10, 5)}, 1_000)
    assert first == {"hold": Progress(10, 0)}
    second = grown(first, {"hold": Lag(12, 3)}, 2_000)
    assert second == {"hold": Progress(12, 2_000)}
    assert grown(second, {"hold": Lag(12, 3)}, 3_000) == second


def pids_of(settings: Settings) -> list[int]:
    state = state_of(settings.data_dir)
    assert state is not None
    return [part.pid for part in state.parts]


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
