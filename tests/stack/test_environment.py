"""`deploy/environment.sh`: which Python a checkout's environment is made with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streams.stack import ROOT


def found(*folders: Path) -> str:
    """The Python that `find_python` prints, with these folders before all others; empty where it fails."""
    path = os.pathsep.join((*map(str, folders), "/usr/bin", "/bin"))
    ran = subprocess.run(
        ["bash", "-c", ". deploy/environment.sh; find_python"], cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=False
    )
    return ran.stdout.strip()


def a_python(folder: Path, body: str) -> Path:
    """A program of the name `python3.11` that answers so, whatever it is asked."""
    folder.mkdir()
    program = folder / "python3.11"
    program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("first", "second", "chosen"), [("echo 9", "echo 5", "b"), ("echo 5", "echo 9", "a"), ("echo 100", "echo 95", "a"), ("exit 1", "echo 9", "b")]
)
def test_of_several_pythons_the_quickest_is_taken_and_the_first_where_none_is_by_a_tenth(
    tmp_path: Path, first: str, second: str, chosen: str
) -> None:
    """The times are a few microseconds, which no real Python of this machine does in."""
    pythons = {name: a_python(tmp_path / name, body) for name, body in (("a", first), ("b", second))}
    assert found(tmp_path / "a", tmp_path / "b") == str(pythons[chosen])


def test_without_any_that_can_be_used_none_is_found(tmp_path: Path) -> None:
    names = ("python3.11", "python3.12", "python3.13", "python3")
    folder = a_python(tmp_path / "a", "exit 1").parent
    for name in names[1:]:
        (folder / name).symlink_to("python3.11")
    ran = subprocess.run(
        ["/bin/bash", "-c", ". deploy/environment.sh; find_python || echo none"], cwd=ROOT, env={"PATH": str(folder)}, capture_output=True, text=True
    )
    assert ran.stdout.strip() == "none"


def test_quickness_is_told_in_microseconds() -> None:
    ran = subprocess.run([sys.executable, "deploy/quickness.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 0
