"""Parts are kept running: started again when they end, with backoff; stopped when asked; gone when their keeper is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from streams.parts import Part
from tests.stack.world import comes_true, keeper_of


def sleeper(tmp_path: Path, script: str = "sleep 100", **rest: object) -> Part:
    return Part("sleeper", ("sh", "-c", script), dict(os.environ), tmp_path / "log", lambda pid: True, **rest)  # type: ignore[arg-type]


def test_a_part_that_is_killed_is_started_again_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    with keeper_of(sleeper(tmp_path), say=said.append) as keeper:
        part = keeper.part("sleeper")
        part.wait_ready(5)
        first = part.pid
        part.kill9()
        assert not part.is_ready()
        part.wait_ready(5)
        assert part.pid != first
        assert part.restarts == 1
    assert any("was ended by SIGKILL" in line for line in said)


def test_a_part_that_keeps_failing_is_started_ever_more_rarely_and_its_last_line_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    with keeper_of(sleeper(tmp_path, "echo no model; exit 3"), say=said.append) as keeper:
        assert comes_true(lambda: keeper.part("sleeper").restarts >= 3)
    ends = [line for line in said if "ended with status 3" in line]
    waits = [line.split("again in ")[1].split(" s")[0] for line in ends]
    assert waits[:3] == ["0.2", "0.4", "0.8"]
    assert "no model" in ends[0]


def test_a_stopped_part_stays_stopped_until_it_is_started(tmp_path: Path) -> None:
    with keeper_of(sleeper(tmp_path)) as keeper:
        part = keeper.part("sleeper")
        part.wait_ready(5)
        part.stop()
        assert not comes_true(lambda: part.state != "stopped", within_s=0.3)
        part.start()
        part.wait_ready(5)
        assert part.restarts == 0


def test_a_part_that_does_not_end_when_asked_is_killed_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    script = f"{sys.executable} -c 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(100)'"
    part = sleeper(tmp_path, f"exec {script}", stop_s=0.2)
    with keeper_of(part, say=said.append):
        assert comes_true(lambda: part.log.exists() and part.log.read_text())
    assert any("killed" in line for line in said)


def test_the_loss_of_a_vital_part_is_final(tmp_path: Path) -> None:
    with keeper_of(sleeper(tmp_path, vital=True)) as keeper:
        part = keeper.part("sleeper")
        part.wait_ready(5)
        part.kill9()
        assert comes_true(lambda: keeper.failed)
        assert part.state == "failed"


def test_a_part_does_not_outlive_a_keeper_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, time; from streams.parts import Keeper, Part\n"
        "keeper = Keeper(lambda text: None, lambda seen: None)\n"
        "part = keeper.add(Part('sleeper', ('sleep', '100'), {'PATH': '/usr/bin:/bin'}, pathlib.Path('log').absolute(), lambda pid: True))\n"
        "part.wait_ready(5); print(part.pid, flush=True); time.sleep(100)"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    lines = iter(parent.stdout)
    child = psutil.Process(next(int(line) for line in lines if line.strip().isdigit()))
    assert comes_true(lambda: child.name() == "sleep")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert comes_true(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
