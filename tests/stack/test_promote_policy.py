"""`holdfast policy`: a policy judges from when it is in force, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.registry import default_policy_text
from schemas.errors import SettingsError
from streams.policy import command
from streams.settings import Settings


def test_a_policy_that_is_not_yet_in_force_is_not_promoted(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(default_policy_text().replace("2026-01-01T00:00:00Z", "2099-01-01T00:00:00Z").replace('"default"', '"later"'))
    assert command(["check", str(file)], settings) == 0
    with pytest.raises(SettingsError, match=r"effective_from: 2099-01-01T00:00:00\+00:00 is yet to come"):
        command(["promote", str(file)], settings)
    capsys.readouterr()
    assert command(["show"], settings) == 0
    assert "  default, effective" in capsys.readouterr().out


def test_a_policy_in_force_is_promoted_and_names_the_currencies_that_it_has_no_rate_for(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(default_policy_text().replace('"default"', '"now"').replace("ZAR = 0.055\n", ""))
    assert command(["promote", str(file)], settings) == 0
    capsys.readouterr()
    assert command(["show"], settings) == 0
    said = capsys.readouterr().out
    assert "  now, effective" in said
    assert "no SAR pattern is looked for in currencies without usd_per_unit: CLF" in said
    assert "YER ZAR ZWG" in said
