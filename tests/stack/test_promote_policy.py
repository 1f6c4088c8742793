"""`holdfast policy`: a policy judges from when it is in force, and not before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.registry import default_policy_text
from schemas.errors import ArtefactError, SettingsError
from schemas.governance import Act, Kind
from streams import policy
from streams.governance import brought_up
from streams.policy import command
from streams.registry import registry_of
from streams.settings import Settings


def led(file: Path, settings: Settings) -> None:
    """Enters a policy, validates and approves it: three persons."""
    assert command(["register", str(file), "--as", "ana", "--why", "fewer blocks"], settings) == 0
    assert command(["validate", "newest", "--as", "ben", "--why", "replayed"], settings) == 0
    assert command(["approve", "newest", "--as", "cleo", "--why", "agreed"], settings) == 0


def test_a_policy_that_is_not_yet_in_force_is_not_promoted(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(default_policy_text().replace("2026-01-01T00:00:00Z", "2099-01-01T00:00:00Z").replace('"default"', '"later"'))
    assert command(["check", str(file)], settings) == 0
    led(file, settings)
    with pytest.raises(SettingsError, match=r"effective_from: 2099-01-01T00:00:00\+00:00 is yet to come"):
        command(["promote", "newest", "--as", "cleo", "--why", "now"], settings)
    capsys.readouterr()
    assert command(["show"], settings) == 0
    assert "  default, effective" in capsys.readouterr().out


def test_a_policy_in_force_is_promoted_and_names_the_currencies_that_it_has_no_rate_for(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(default_policy_text().replace('"default"', '"now"').replace("ZAR = 0.055\n", ""))
    led(file, settings)
    assert command(["promote", "newest", "--as", "cleo", "--why", "now"], settings) == 0
    capsys.readouterr()
    assert command(["show"], settings) == 0
    said = capsys.readouterr().out
    assert "  now, effective" in said
    assert "no SAR pattern is looked for in currencies without usd_per_unit: CLF" in said
    assert "YER ZAR ZWG" in said


def test_a_rollback_brings_the_policy_before_back_and_the_other_needs_a_new_approval(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.toml"
    for name in ("first", "second"):
        file.write_text(default_policy_text().replace('"default"', f'"{name}"'))
        led(file, settings)
        assert command(["promote", "newest", "--as", "cleo", "--why", "now"], settings) == 0
    assert command(["rollback", "--as", "dora", "--why", "it blocks too many", "--json"], settings) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["state"], said["moves"][-1]["act"], said["moves"][-1]["by"]) == ("champion", "roll_back", "dora")
    assert command(["show"], settings) == 0
    assert "  first, effective" in capsys.readouterr().out
    with pytest.raises(ArtefactError, match="is validated: promote is not what follows"):
        command(["promote", "newest", "--as", "cleo", "--why", "again"], settings)


def test_the_first_policy_that_is_promoted_can_be_rolled_back_to_the_one_of_the_house(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(default_policy_text().replace('"default"', '"first"'))
    led(file, settings)
    assert command(["promote", "newest", "--as", "cleo", "--why", "now"], settings) == 0
    assert command(["show"], settings) == 0
    assert "  first, effective" in capsys.readouterr().out
    assert command(["rollback", "--as", "dora", "--why", "it blocks too many"], settings) == 0
    assert command(["show"], settings) == 0
    assert "  default, effective" in capsys.readouterr().out
    assert command(["list", "--json"], settings) == 0
    policies = json.loads(capsys.readouterr().out.splitlines()[-1])["policies"]
    assert [(policy["state"], policy["author"]) for policy in policies] == [("validated", "ana"), ("champion", "system:trainer")]
    assert command(["approve", "newest", "--as", "cleo", "--why", "the newest is what a person entered"], settings) == 0


def test_a_rollback_without_an_id_asks_whether_the_one_before_can_decide(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(default_policy_text().replace('"default"', '"first"'))
    led(file, settings)
    assert command(["promote", "newest", "--as", "cleo", "--why", "now"], settings) == 0
    monkeypatch.setattr(policy, "clock_ms", lambda: 0)
    with pytest.raises(SettingsError, match="yet to come"):
        command(["rollback", "--as", "dora", "--why", "it blocks too many"], settings)


def test_a_rollback_without_an_id_goes_back_to_the_last_that_this_release_can_use(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the breaker does. Another release promoted the second, whose catalogue had the feature."""
    file, registry = tmp_path / "policy.toml", registry_of(settings)
    file.write_text(default_policy_text().replace('"default"', '"first"'))
    led(file, settings)
    assert command(["promote", "newest", "--as", "cleo", "--why", "now"], settings) == 0
    second = registry.put_policy(default_policy_text().replace('"velocity.card_count_1m"', '"velocity.card_count_2m"'))
    brought_up(registry, Kind.POLICY, second, "of another release", 1)
    file.write_text(default_policy_text().replace('"default"', '"third"'))
    led(file, settings)
    assert command(["promote", "newest", "--as", "cleo", "--why", "now"], settings) == 0
    capsys.readouterr()
    assert command(["rollback", "--as", "dora", "--why", "it blocks too many"], settings) == 0
    assert f"{second} is passed over: policy default: rules[1]: unknown feature 'velocity.card_count_2m'" in capsys.readouterr().err
    assert registry.policy().name == "first"
    with pytest.raises(SettingsError, match="unknown feature"):
        command(["rollback", second, "--as", "dora", "--why", "that one"], settings)


def test_there_is_a_policy_to_go_back_to_also_where_somebody_had_entered_that_of_the_house(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    for text in (default_policy_text(), default_policy_text().replace('"default"', '"first"')):
        file.write_text(text)
        led(file, settings)
    assert command(["promote", "newest", "--as", "cleo", "--why", "now"], settings) == 0
    assert command(["rollback", "--as", "dora", "--why", "it blocks too many"], settings) == 0


def test_a_policy_of_features_that_nobody_serves_does_not_judge_as_a_shadow_either(settings: Settings, tmp_path: Path) -> None:
    """Another release entered it, whose catalogue had the feature. One that is not yet in force may be a shadow until then."""
    text = default_policy_text().replace('"velocity.card_count_1m"', '"velocity.card_count_2m"')
    registry = registry_of(settings)
    registry.move(Kind.POLICY, registry.put_policy(text), Act.REGISTER, "ana", "fewer blocks", 1)
    for move in (["validate", "newest", "--as", "ben"], ["approve", "newest", "--as", "cleo"]):
        assert command([*move, "--why", "agreed"], settings) == 0
    with pytest.raises(SettingsError, match=r"rules\[1\]: unknown feature 'velocity.card_count_2m'"):
        command(["shadow", "newest", "--as", "cleo", "--why", "beside the other"], settings)
    (tmp_path / "policy.toml").write_text(default_policy_text().replace("2026-01-01T00:00:00Z", "2099-01-01T00:00:00Z"))
    led(tmp_path / "policy.toml", settings)
    assert command(["shadow", "newest", "--as", "cleo", "--why", "to see it first"], settings) == 0


@pytest.mark.parametrize("name", ["System:breaker", "\uff33ystem:breaker", "system\uff1abreaker"])
def test_no_person_acts_under_a_name_of_the_systems_own(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(default_policy_text())
    with pytest.raises(SystemExit):
        command(["register", str(file), "--as", name, "--why", "fewer blocks"], settings)
    assert "--as" in capsys.readouterr().err
