"""One part, looked at by hand: what is noted of its lives."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from streams.parts import Part, Running


def test_a_part_for_which_there_is_no_process_has_not_ended_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    running = Running(Part("sleeper", ("sleep", "100"), dict(os.environ), tmp_path / "log", lambda _: False), said.append)
    running.look(100.0)
    running.kill9()
    running.look(101.0)

    def none_to_be_had(*_: object, **__: object) -> None:
        raise BlockingIOError("no process to be had")

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", none_to_be_had)
        for now in (102.0, 103.0, 104.0):
            with pytest.raises(BlockingIOError):
                running.look(now)
    running.look(105.0)
    assert running.state == "starting"
    running.stop()
    assert running.restarts == 1
    assert len(said) == 1


def test_a_part_that_is_started_at_once_after_it_was_stopped_has_not_ended_by_itself(tmp_path: Path) -> None:
    said: list[str] = []
    running = Running(Part("sleeper", ("sleep", "100"), dict(os.environ), tmp_path / "log", lambda _: False, vital=True), said.append)
    running.look(100.0)
    first = running.pid
    running.restart()
    running.look(101.0)
    assert running.state == "starting"
    assert running.pid != first
    running.stop()
    assert running.restarts == 0
    assert said == []
