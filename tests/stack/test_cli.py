"""The command line: what becomes of an error that no command expects."""

from __future__ import annotations

import subprocess
import sys


def test_a_command_whose_reader_has_gone_ends_without_a_word() -> None:
    command = [sys.executable, "-m", "streams.cli", "features", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as listing:
        assert listing.stdout
        assert listing.stderr
        listing.stdout.close()
        assert listing.stderr.read() == ""
    assert listing.returncode == 141, "as a shell says of what SIGPIPE ended"


def test_a_command_without_a_standard_output_does_its_work() -> None:
    asked = subprocess.run(["sh", "-c", '"$0" -m streams.cli features list >&-', sys.executable], stderr=subprocess.PIPE, text=True, check=False)
    assert (asked.returncode, asked.stderr) == (0, "")
