"""`holdfast policy test`: a candidate on the archive of decisions that a world made, before anyone saves it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from features.catalogue import CATALOGUE
from models.artefact import Keys, public_of
from models.backtest import Money, backtest, read_by
from models.policy import policy_from_toml
from models.registry import DEFAULT_POLICY, Registry, default_policy_text
from schemas.decision import Decision, Outcome
from schemas.errors import SettingsError
from schemas.governance import Kind
from schemas.topics import DECISIONS, LABELS, SECOND_OPINIONS, Topic
from streams.backfill import FEATURES_FILE
from streams.backtest import lines, money, payments_in
from streams.compare import Compared, compared
from streams.mapping import mapping_in
from streams.policy import command, read
from streams.settings import Settings
from streams.train import DEFAULT_RECIPE, recipe_in
from streams.training_set import training_set
from tests.data.test_lab import archived
from tests.first_model import MODEL_KEY

ROWS = 800


@pytest.fixture(scope="module")
def archive(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    archived(history, folder, ROWS)
    return folder


def test_the_policy_that_judged_gives_what_was_told(archive: Path) -> None:
    live = policy_from_toml(default_policy_text())
    payments = payments_in(archive, read_by(live))
    found = backtest(live, live, payments)
    assert (found.payments, found.as_told) == (ROWS, 1.0)
    assert found.overlap.only_candidate == found.overlap.only_live == 0
    assert found.frauds > 0


def test_a_stricter_candidate_is_told_of_and_nothing_is_saved(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, settings = tmp_path / "p.toml", Settings(data_dir=tmp_path / "data", archive_dir=archive)
    file.write_text(default_policy_text().replace("review_above = 0.50", "review_above = 0.01"))
    assert command(["test", str(file), "--since", "1d", "--json"], settings) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    live, candidate = figures["live"], figures["candidate"]
    assert candidate["alerts_per_day"] >= live["alerts_per_day"]
    assert candidate["fraud_missed"] <= live["fraud_missed"]
    assert isinstance(candidate["money_minor"]["EUR"]["honest_reviewed"], int)
    assert figures["payments"] < ROWS
    assert not (tmp_path / "data" / "registry" / "policies").exists()
    assert command(["test", str(file), "--alerts-per-day-max", "0.01"], settings) == 1
    assert "at most 0.01 are allowed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option",
    [("--alerts-per-day-max", "nan"), ("--alerts-per-day-max", "-1"), ("--honest-blocked-max", "-1"), ("--since", f"{'9' * 400}d")],
)
def test_a_bound_that_is_none_is_refused(archive: Path, tmp_path: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.toml"
    file.write_text(default_policy_text())
    with pytest.raises(SystemExit):
        command(["test", str(file), *option], Settings(data_dir=tmp_path / "data", archive_dir=archive))
    assert option[0] in capsys.readouterr().err


def test_what_is_said_to_people_names_money_and_leaves_out_currencies_without_any(archive: Path) -> None:
    live = policy_from_toml(default_policy_text())
    found = backtest(live, live, payments_in(archive, read_by(live)))
    idle = found.live._replace(money=found.live.money | {"XPF": Money(0, 0, 0, 0, 0, 0)})
    said = lines(found._replace(live=idle, candidate=idle))
    assert not [line for line in said if "XPF" in line]
    (missed,) = [line for line in said if line.startswith("fraud missed, money") and "EUR" in line]
    assert money(found.live.money["EUR"].fraud_missed, "EUR") in missed


def test_each_command_about_a_policy_ends_with_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, settings = tmp_path / "p.toml", Settings(data_dir=tmp_path / "data")

    def told(*argv: str) -> Any:
        assert command([*argv, "--json"], settings) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    file.write_text(default_policy_text().replace('"default"', '"mine"'))
    assert (told("show")["name"], told("check", str(file))["name"], told("check", str(file))["valid"]) == ("default", "mine", True)
    assert told("register", str(file), "--as", "ana", "--why", "a rule")["state"] == "draft"
    assert [each["author"] for each in told("list")["policies"]] == ["ana"]


@pytest.mark.parametrize(("content", "named"), [(b"\xff\xfe\x00", "utf-8"), (b"name = 3", "is missing")])
def test_what_is_wrong_with_a_file_is_said_to_people_and_to_programs(
    content: bytes, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=named):
        command(["check", str(file), "--json"], Settings(data_dir=tmp_path / "data"))
    assert named in json.loads(capsys.readouterr().out)["fault"]


def test_a_policy_that_is_larger_than_the_registry_reads_is_refused_by_check_and_by_register(tmp_path: Path) -> None:
    file, settings = tmp_path / "p.toml", Settings(data_dir=tmp_path / "data")
    file.write_text(default_policy_text() + "#" * (1 << 20))
    for argv in (["check", str(file)], ["register", str(file), "--as", "ana", "--why", "a rule"]):
        with pytest.raises(SettingsError, match=r"policy: has .* bytes"):
            command(argv, settings)
    assert not list((tmp_path / "data").rglob("pol_*"))


def test_a_threshold_that_would_turn_a_pattern_off_unsaid_is_refused_where_a_policy_is_entered(tmp_path: Path) -> None:
    file, text = tmp_path / "p.toml", default_policy_text()
    old = "structuring_part_usd_min = 1000"
    assert old in text
    file.write_text(text.replace(old, "structuring_part_usd_min = 10000"))
    assert command(["check", str(file)], Settings(data_dir=tmp_path / "data")) == 0
    file.write_text(text.replace(old, "structuring_part_usd_min = 10000.01"))
    for argv in (["check", str(file)], ["register", str(file), "--as", "ana", "--why", "a rule"]):
        with pytest.raises(SettingsError, match=r"policy.sar.structuring_part_usd_min: 10000.01 exceeds ctr_usd"):
            command(argv, Settings(data_dir=tmp_path / "data"))
    assert policy_from_toml(file.read_text()), "one that was signed before stays what it is"


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("member_missing:device", ""),
        ("member_missing:lerned", "policy.degraded.member_missing:lerned: no registered model has such a member"),
        ("memory_missing:card", ""),
        ("memory_missing:account_profile", ""),
        ("memory_missing:crad", "policy.degraded.memory_missing:crad: nothing has such a memory"),
    ],
)
def test_what_can_never_be_missing_is_refused_where_a_policy_is_entered(tmp_path: Path, trained: Path, key: str, named: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(default_policy_text().replace("[degraded]", f'[degraded]\n"{key}" = "block"', 1))
    for settings in (Settings(data_dir=tmp_path), Settings(data_dir=tmp_path, registry_dir=trained, model_key=MODEL_KEY)):
        if named:
            with pytest.raises(SettingsError, match=named):
                command(["check", str(file)], settings)
        else:
            assert command(["check", str(file)], settings) == 0


def test_labels_that_were_learned_later_are_not_seen(archive: Path) -> None:
    all_known = payments_in(archive, ())
    assert payments_in(archive, (), until_ms=int(all_known.at_ms.max())).frauds.sum() < all_known.frauds.sum()


def test_what_the_stand_in_answered_was_decided_by_no_model_and_no_policy(archive: Path, history: Path, tmp_path: Path) -> None:
    def told(decision: Decision) -> Decision:
        even = decision.at_ms % 2 == 0
        return msgspec.structs.replace(decision, degradations=("stand_in:log_unavailable",)) if even else decision

    archived(history, tmp_path / "half", ROWS, told)
    archived(history, tmp_path / "all", ROWS, lambda decision: msgspec.structs.replace(decision, degradations=("stand_in:deadline",)))
    for kind in Kind:
        (usual,), (half,) = (compared(folder, kind).arms.values() for folder in (archive, tmp_path / "half"))
        assert usual.decisions == ROWS
        assert 0 < half.decisions < ROWS
        assert compared(tmp_path / "all", kind) == Compared({}, {})


@pytest.mark.parametrize("outcome", [Outcome.APPROVE, Outcome.DECLINE])
def test_what_the_stand_in_answered_is_judged_by_score_and_rules_alone(archive: Path, history: Path, tmp_path: Path, outcome: Outcome) -> None:
    """Neither policy would review a payment because the log was away, and no account declined what the stand-in did."""

    def told(decision: Decision) -> Decision:
        return msgspec.structs.replace(decision, outcome=outcome, degradations=(*decision.degradations, "stand_in:log_unavailable"))

    archived(history, tmp_path, ROWS, told)
    live = policy_from_toml(default_policy_text())
    usual, apart = (backtest(live, live, payments_in(folder, read_by(live))) for folder in (archive, tmp_path))
    assert apart.candidate == usual.candidate


def test_what_an_editor_puts_before_a_text_is_no_part_of_a_policy_a_recipe_or_a_mapping(history: Path, tmp_path: Path) -> None:
    """Some editors of Windows begin a file with U+FEFF."""
    registry = Registry(tmp_path / "registry", Keys(public_of(b"k" * 32), b"k" * 32))
    reads_policy: Callable[[Path], Any] = lambda path: read(path, registry)  # noqa: E731 - a name for it says no more
    asked: list[tuple[Callable[[Path], Any], Path]] = [
        (reads_policy, DEFAULT_POLICY),
        (recipe_in, DEFAULT_RECIPE),
        (mapping_in, history / "mapping.toml"),
    ]
    for reads, path in asked:
        marked = tmp_path / path.name
        marked.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig", newline="\r\n")
        assert reads(marked) == reads(path)


def test_a_recipe_is_a_file_however_it_is_called_or_one_of_the_house_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(DEFAULT_RECIPE.read_text(encoding="utf-8"), encoding="utf-8")
    assert recipe_in(tmp_path / "mine") == recipe_in(Path("default")) == recipe_in()
    assert recipe_in(Path("few_labels")) != recipe_in()
    with pytest.raises(SettingsError, match=r"^nowhere: .*No such file"):
        recipe_in(Path("nowhere"))


def test_an_archive_from_before_whole_vectors_were_kept_is_read(history: Path, tmp_path: Path) -> None:
    archived(history, tmp_path, 40)
    names, before = CATALOGUE.names[:3], payments_in(tmp_path, CATALOGUE.names[:3])
    for path in (tmp_path / DECISIONS.name).rglob("*.parquet"):
        pq.write_table(pq.ParquetFile(path).read().drop_columns(["vector"]), path)
    assert payments_in(tmp_path, names).vectors.tobytes() == before.vectors.tobytes()
    assert training_set(tmp_path, label_delay_ms=0).vectors.size


def test_an_archive_without_payments_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no archive of decisions"):
        payments_in(tmp_path, ())


@pytest.mark.parametrize("topic", [DECISIONS, LABELS, SECOND_OPINIONS])
def test_a_file_of_the_archive_that_cannot_be_read_is_named_and_a_day_without_one_holds_nothing(archive: Path, tmp_path: Path, topic: Topic) -> None:
    broken = Path(shutil.copytree(archive, tmp_path / "archive"))
    day = broken / topic.name / "day=2020-01-01"
    day.mkdir(parents=True)
    asked = [lambda: training_set(broken), lambda: payments_in(broken, ()), lambda: compared(broken, Kind.MODEL)]
    for ask in asked[:2] if topic is SECOND_OPINIONS else asked:
        ask()
    (day / "part-0-000000000000000.parquet").write_bytes(b"PAR1, cut off")
    for ask in asked[2:] if topic is SECOND_OPINIONS else asked:
        with pytest.raises(SettingsError, match=r"day=2020-01-01/part-0-000000000000000\.parquet"):
            ask()


def test_a_folder_in_which_nothing_was_archived_yet_is_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / DECISIONS.name / "day=2026-01-01").mkdir(parents=True)
    for ask in (lambda: training_set(tmp_path), lambda: payments_in(tmp_path, ()), lambda: compared(tmp_path, Kind.MODEL)):
        with pytest.raises(SettingsError, match="no decision is archived yet"):
            ask()
    (tmp_path / FEATURES_FILE).write_bytes(b"PAR1, cut off")
    with pytest.raises(SettingsError, match=FEATURES_FILE):
        training_set(tmp_path)


def test_money_is_written_with_its_currencys_digits() -> None:
    assert [money(123456, "EUR"), money(123456, "JPY"), money(1005, "KWD")] == ["1,234.56 EUR", "123,456 JPY", "1.005 KWD"]
