"""The command line: what becomes of an error that no command expects, and what it tells of a feature."""

from __future__ import annotations

import subprocess
import sys

import pytest

from features.catalogue import CATALOGUE
from streams import features
from streams.cli import main
from streams.settings import Settings
from streams.simulation.fraud import FRAUDS


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


@pytest.mark.parametrize("asked", [["list"], ["explain", "velocity.card_count_10m"]])
def test_what_is_told_of_a_feature_says_what_is_in_its_past_and_when_it_is_missing(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert features.command(asked, Settings()) == 0
    told = capsys.readouterr().out
    assert "arrived before the payment that is decided" in told
    assert "Payments are attempts, whatever was answered" in told
    assert "of no rows are missing" in told


def test_features_name_fraud_as_its_labels_do() -> None:
    assert {row.catches for row in CATALOGUE.rows} - {"degraded"} == {fraud.name for fraud in FRAUDS}


@pytest.mark.parametrize("argv", [["label", "t\udcff", "--account", "a", "--honest", "--source", "analyst"], ["models", "show", "t\udcff"]])
def test_an_argument_that_is_no_utf_8_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """So Python reads bytes of another encoding, which no topic and no history could hold."""
    assert main(argv) == 2
    assert capsys.readouterr().err == f"holdfast {argv[0]}: 't\\udcff' is no text in UTF-8\n"
