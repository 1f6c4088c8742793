"""The training set of any mapped file: what it reads, what it may not see, and that foreign columns are learned from and evaluated."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.catalogue import CATALOGUE
from models.evaluate import Spans
from models.policy import policy_from_toml
from models.registry import default_policy_text
from schemas.errors import ArtefactError, SettingsError
from streams import backfill as backfill_job
from streams import columnar, evaluate, train
from streams.cli import main
from streams.clock import clock_ms
from streams.governance import served_here
from streams.settings import Settings
from streams.training_set import DAY_MS, archived_verdicts, given_in, training_set

BEGAN_MS = 1_735_689_600_000
MAPPING = """
row_id_prefix = "row-"
ignore = ["note"]
[fields]
account_id = "holder"
card_token = "plastic"
terminal_id = "till"
[constants]
kind = "card_present"
[time]
column = "second"
format = "offset_s"
origin = "2025-01-01T00:00:00+00:00"
[amount]
column = "sum"
currency = "EUR"
[attributes]
v1 = "V1"
v2 = "V2"
[label]
column = "class"
values = ["1"]
delay = "1d"
[memory]
terminal = "log"
"""
RECIPE = """
name = "small"
honest_per_fraud = 20
parts = 2
members = [
    { name = "learned", weight = 0.6, families = ["*"], estimator = "hist_gradient_boosting", parameters = { max_iter = 30 } },
    { name = "velocity", weight = 0.4, families = ["velocity"], estimator = "hist_gradient_boosting", parameters = { max_iter = 10 } },
]
"""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of somebody else's, with nameless numbers in it, backfilled by its mapping."""
    folder = tmp_path_factory.mktemp("foreign")
    rng = np.random.default_rng(1)
    count = 6000
    second = np.sort(rng.integers(0, 12 * 86_400, count))
    card = rng.integers(0, 800, count)
    fraud = (card % 20 == 0) & (rng.random(count) < 0.6)
    v1 = [f"{value:.6f}" for value in rng.normal(size=count) + 3 * fraud]
    v2 = np.where(rng.random(count) < 0.1, "", rng.choice(["red", "4.5"], count))
    columns = {"second": second, "holder": [f"h{c // 2}" for c in card], "plastic": [f"p{c}" for c in card], "till": rng.integers(0, 30, count)}
    columns |= {"sum": [f"{a:.2f}" for a in rng.gamma(2, 20, count)], "V1": v1, "V2": v2, "class": fraud.astype(int), "note": ["x"] * count}
    pq.write_table(pa.table(columns), folder / "payments.parquet")
    (folder / "map.toml").write_text(MAPPING)
    (folder / "recipe.toml").write_text(RECIPE)
    argv = [str(folder / "payments.parquet"), "--map", str(folder / "map.toml"), "--out", str(folder)]
    assert backfill_job.backfill(argv, Settings(data_dir=folder / "data")) == 0
    return folder


def test_attributes_are_columns_for_training_and_a_text_is_always_the_same_number(foreign: Path) -> None:
    history, delay_ms = given_in(foreign)
    given = pq.read_table(foreign / "payments.parquet")
    assert history.names == (*CATALOGUE.names, "memory.terminal_log_capped", "clock.hour", "clock.weekday", "attribute.v1", "attribute.v2")
    assert history.vectors[:, -4].tolist() == [second % 86_400 / 3600 for second in given["second"].to_pylist()]
    assert history.vectors[[0, -1], -3].tolist() == [2, 6], "2025-01-01 was a Wednesday"
    assert history.vectors[:, -2].tolist() == [float(text) for text in given["V1"].to_pylist()]
    numbers = [{"": np.nan, "4.5": 4.5, "red": columnar.as_number("red")}[text] for text in given["V2"].to_pylist()]
    np.testing.assert_array_equal(history.vectors[:, -1], numbers)
    assert delay_ms == DAY_MS
    assert len(set(history.cards.tolist())) == 800
    assert history.amounts_minor.tolist() == [round(float(text) * 100) for text in given["sum"].to_pylist()]


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("at_ms", pa.array([None, 1], pa.int64()), r"features.parquet: at_ms: is empty in 1 row of which it is said whether they were fraud"),
        ("amount_minor", pa.array([1, None], pa.int64()), "amount_minor: is empty in 1 row"),
        ("learned_at_ms", pa.array([None, None], pa.int64()), "learned_at_ms: is empty in 2 rows"),
        ("learned_at_ms", pa.array([1.0, None]), "learned_at_ms: is of type double, not int64"),
        ("at_ms", pa.array(["1", "2"]), "at_ms: is of type string, not int64"),
        ("fraud", pa.array(["yes", "no"]), "fraud: is of type string, not bool"),
        ("velocity.card_count_1m", pa.array(["1", "2"]), "velocity.card_count_1m: is of type string, not double"),
        ("learned_at_ms", None, "learned_at_ms: is missing"),
    ],
)
def test_a_backfill_that_somebody_has_changed_is_refused_by_its_column(
    foreign: Path, tmp_path: Path, column: str, values: pa.Array | None, reason: str
) -> None:
    rows = pq.read_table(foreign / "features.parquet").slice(0, 2)
    place = rows.schema.get_field_index(column)
    changed = rows.remove_column(place) if values is None else rows.set_column(place, column, values)
    (tmp_path / "features.parquet").mkdir()
    pq.write_table(changed, tmp_path / "features.parquet" / "part-0.parquet")
    with pytest.raises(ArtefactError, match=reason):
        given_in(tmp_path)


def test_a_history_that_is_too_large_for_memory_lies_in_a_file_and_is_the_same(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = given_in(foreign).history.vectors
    monkeypatch.setattr("streams.training_set.HELD_BYTES", 0)
    in_file = given_in(foreign).history.vectors
    np.testing.assert_array_equal(in_file, in_memory)
    assert (in_memory.flags.owndata, in_file.flags.owndata, in_file.flags.f_contiguous) == (True, False, True)


def test_a_disk_without_room_for_a_history_is_said_before_it_ends_the_process(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int, begin: int, size: int) -> None:
        assert (begin, size) == (0, in_memory.nbytes)
        raise OSError(errno.ENOSPC, "No space left on device")

    in_memory = given_in(foreign).history.vectors
    monkeypatch.setattr("streams.training_set.HELD_BYTES", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SettingsError, match=rf"TMPDIR \(.*\): no room for {in_memory.nbytes:,} bytes of vectors: No space left on device"):
        given_in(foreign)


def test_a_text_is_a_number_below_all_others_and_no_number_is_infinite() -> None:
    as_number = columnar.as_number
    assert (as_number("1e3"), as_number("-7")) == (1000.0, -7.0)
    assert as_number("gmail.com") != as_number("yahoo.com")
    assert all(-2e10 < as_number(text) < -1e10 for text in ("gmail.com", "inf", "-Infinity", "M0"))


def test_fraud_that_nobody_had_noticed_is_honest_in_training(foreign: Path) -> None:
    until_ms = BEGAN_MS + 6 * DAY_MS
    everything = given_in(foreign).history
    truth = everything.believed().frauds
    mature, young = (training_set(foreign, until_ms, delay * DAY_MS) for delay in (1, 0))
    old = everything.at_ms <= until_ms - DAY_MS
    assert mature.frauds.tolist() == truth[old].tolist()
    assert young.frauds.sum() == mature.frauds.sum(), "of the last day nothing was known"
    assert len(young.frauds) > len(mature.frauds)


def test_a_label_moved_beyond_the_moment_cannot_be_told_from_an_honest_one(foreign: Path, tmp_path: Path) -> None:
    until_ms = BEGAN_MS + 6 * DAY_MS

    def told_as(frauds: npt.NDArray[np.bool_]) -> bytes:
        table = pq.read_table(foreign / backfill_job.FEATURES_FILE)
        later = table["learned_at_ms"].to_numpy() > until_ms
        table = table.set_column(table.column_names.index("fraud"), "fraud", pa.array(np.where(later, frauds, table["fraud"].to_numpy())))
        (tmp_path / backfill_job.FEATURES_FILE).unlink(missing_ok=True)
        pq.write_table(table, tmp_path / backfill_job.FEATURES_FILE)
        seen = training_set(tmp_path, until_ms, 0)
        return seen.vectors.tobytes() + seen.frauds.tobytes() + seen.at_ms.tobytes()

    assert told_as(np.zeros(6000, np.bool_)) == told_as(np.ones(6000, np.bool_))


def test_no_delay_shows_a_payment_of_after_the_moment(foreign: Path) -> None:
    until_ms = BEGAN_MS + 6 * DAY_MS
    assert training_set(foreign, until_ms, 0).at_ms.max() <= until_ms
    with pytest.raises(SettingsError, match="no time before its payment"):
        training_set(foreign, until_ms, -DAY_MS)


def test_a_file_without_labels_or_without_a_fraud_is_said_to_be_that(foreign: Path, tmp_path: Path) -> None:
    table, recipe = pq.read_table(foreign / backfill_job.FEATURES_FILE), train.recipe_in(foreign / "recipe.toml")
    place = table.column_names.index("fraud")
    pq.write_table(table.set_column(place, "fraud", pa.nulls(6000, pa.bool_())), tmp_path / backfill_job.FEATURES_FILE)
    for read in (training_set, lambda folder: evaluate.evaluation(folder, recipe)):
        with pytest.raises(SettingsError, match=r"of no row is it said whether it was fraud; the mapping's \[label\]"):
            read(tmp_path)
    pq.write_table(table.set_column(place, "fraud", pa.array(np.zeros(6000, np.bool_))), tmp_path / backfill_job.FEATURES_FILE)
    for spans in (None, Spans(4, 1, 2)):
        with pytest.raises(ArtefactError, match="no payment is known as fraud"):
            evaluate.evaluation(tmp_path, recipe, spans=spans)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (evaluate.evaluate, ["--folds", "0"]),
        (evaluate.evaluate, ["--cards", "0"]),
        (evaluate.evaluate, ["--resamples", "none"]),
        (evaluate.evaluate, ["--spans", "nan/7/7"]),
        (evaluate.evaluate, ["--spans", "7/1e308/7"]),
        (evaluate.evaluate, ["--costs", "inf/1/1"]),
        (train.train, ["--out", "x", "--seed", "-1"]),
        (train.train, ["--out", "x", "--seed", "4294967296"]),
        (train.train, ["--out", "x", "--threads", "0"]),
        (train.train, ["--out", "x", "--label-delay-days", "nan"]),
        (train.train, ["--out", "x", "--label-delay-days", "-3"]),
    ],
)
def test_a_number_that_means_nothing_is_refused_before_anything_is_read(command: Callable[[list[str], Settings], int], option: list[str]) -> None:
    with pytest.raises((SystemExit, SettingsError)) as refused:
        command(["--data", "nowhere", *option], Settings())
    assert refused.value.args == (2,) or str(refused.value).startswith(option[-2])


def test_a_foreign_file_is_trained_on_and_evaluated_with_its_own_columns(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    about = ["--data", str(foreign), "--recipe", str(foreign / "recipe.toml"), "--json"]
    assert train.train([*about, "--out", str(tmp_path / "artefact")], settings) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["held_out"]["auc"] > 0.9
    assert evaluate.evaluate([*about, "--spans", "4/1/2", "--folds", "2", "--resamples", "20", "--cards", "5"], settings) == 0
    said = capsys.readouterr()
    told = json.loads(said.out.splitlines()[-1])
    table = told["table"]
    assert all(set(tried["gain"]) == {"average_precision", "less_loss_value", "less_loss_low", "less_loss_high"} for tried in told["folds"])
    assert all(set(tried["weights"]) == {name for name in table if "ensemble" not in name} for tried in told["folds"])
    assert table["learned"]["roc_auc"]["value"] > 0.9 > table["velocity"]["roc_auc"]["value"]
    assert "fold 2 of 2" in said.err
    assert "ensemble, fitted weights" in said.out


def test_without_spans_the_longest_training_that_fits_is_taken(foreign: Path) -> None:
    said: list[str] = []
    recipe = train.recipe_in(foreign / "recipe.toml")
    found = evaluate.evaluation(foreign, recipe, count=1, resamples=2, say=said.append)
    assert said[0] == "1 folds of 7/1/3 days (training, gap, test)"
    again = evaluate.evaluation(foreign, recipe, spans=Spans(7, 1, 3), count=1, resamples=2)
    assert found.folds == again.folds


def test_an_evaluation_of_payments_in_several_currencies_says_what_its_money_is(foreign: Path, tmp_path: Path) -> None:
    table, recipe, said = pq.read_table(foreign / backfill_job.FEATURES_FILE), train.recipe_in(foreign / "recipe.toml"), list[str]()
    assert given_in(foreign).history.currency_names == ("EUR",)
    place = table.column_names.index("currency")
    two = table.set_column(place, "currency", pa.array(["USD", *["EUR"] * (len(table) - 1)]))
    for each, currencies in ((two, ("EUR", "USD")), (table.remove_column(place), ())):
        pq.write_table(each, tmp_path / backfill_job.FEATURES_FILE)
        assert given_in(tmp_path).history.currency_names == currencies
    pq.write_table(two, tmp_path / backfill_job.FEATURES_FILE)
    assert np.flatnonzero(given_in(tmp_path).history.currencies).tolist() == [0]
    found = evaluate.evaluation(tmp_path, recipe, spans=Spans(4, 1, 2), count=1, resamples=2, say=said.append)
    assert said[1] == "amounts are in EUR, USD: figures of money are of each by itself, costs in its own minor units"
    assert "value_detection_rate.USD" in "\n".join(evaluate.table_lines(found))


def test_no_day_is_tested_whose_frauds_nobody_has_noticed_yet(foreign: Path, tmp_path: Path) -> None:
    """As in an archive: nothing is known but what was learned up to its end, of a fraud three days after it."""
    table, recipe = pq.read_table(foreign / backfill_job.FEATURES_FILE), train.recipe_in(foreign / "recipe.toml")
    at_ms, frauds = (table[name].to_numpy(zero_copy_only=False) for name in ("at_ms", "fraud"))
    learned = at_ms + 3 * DAY_MS * frauds
    seen = learned <= at_ms.max()
    for name, column in (("fraud", frauds & seen), ("learned_at_ms", np.where(seen, learned, at_ms))):
        table = table.set_column(table.column_names.index(name), name, pa.array(column))
    about = table.schema.metadata | {b"label_delay_ms": str(3 * DAY_MS).encode()}
    pq.write_table(table.replace_schema_metadata(about), tmp_path / backfill_job.FEATURES_FILE)
    found = evaluate.evaluation(tmp_path, recipe, count=1, resamples=2)
    assert found.folds[-1].fold.test_until_ms == BEGAN_MS + 9 * DAY_MS
    assert evaluate.evaluation(foreign, recipe, count=1, resamples=2).folds[-1].fold.test_until_ms == BEGAN_MS + 12 * DAY_MS
    asked = evaluate.evaluation(tmp_path, recipe, spans=Spans(4, 3, 4), until=BEGAN_MS + 12 * DAY_MS, count=1, resamples=2)
    assert asked.folds[-1].fold.test_until_ms == BEGAN_MS + 12 * DAY_MS


def test_a_label_that_is_dated_ahead_is_none_of_an_archive_yet(tmp_path: Path) -> None:
    folder, now_ms = tmp_path / "labels" / "day=2026-01-01", clock_ms()
    folder.mkdir(parents=True)
    learned = {"transaction_id": ["t1", "t2", "t2"], "fraud": [True] * 3, "fraud_kind": ["ring", None, None]}
    pq.write_table(pa.table(learned | {"learned_at_ms": [now_ms - 2, now_ms + 10 * DAY_MS, now_ms - 1]}), folder / "part-0.parquet")
    found = archived_verdicts(tmp_path, pa.chunked_array([["t1", "t2"]]))
    assert (found.rows.tolist(), found.learned_at_ms.tolist()) == ([0, 1], [now_ms - 2, now_ms - 1])


def test_a_history_of_which_frauds_were_learned_too_late_is_said_to_be_that_and_not_too_short(foreign: Path, tmp_path: Path) -> None:
    table, recipe = pq.read_table(foreign / backfill_job.FEATURES_FILE), train.recipe_in(foreign / "recipe.toml")
    late = pa.array(np.where(table["fraud"], table["at_ms"].to_numpy() + 400 * 86_400_000, table["learned_at_ms"]))
    pq.write_table(table.set_column(table.column_names.index("learned_at_ms"), "learned_at_ms", late), tmp_path / backfill_job.FEATURES_FILE)
    with pytest.raises(ArtefactError, match="no fold has frauds of several cards that are known when its test begins"):
        evaluate.evaluation(tmp_path, recipe)


def test_a_place_that_cannot_be_written_to_is_one_line_before_any_training(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "file").write_text("in the way")
    assert main(["train", "--data", str(foreign), "--out", str(tmp_path / "file" / "trained"), "--recipe", str(foreign / "recipe.toml")]) == 2
    assert capsys.readouterr().err == f"holdfast train: {tmp_path / 'file' / 'trained'}: Not a directory\n"


def test_a_file_of_one_account_and_no_cards_is_trained_on_payment_by_payment(foreign: Path, tmp_path: Path) -> None:
    table = pq.read_table(foreign / backfill_job.FEATURES_FILE)
    alike = {"card_token": pa.nulls(6000, pa.string()), "account_id": pa.array(["everybody"] * 6000)}
    for name, column in alike.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / backfill_job.FEATURES_FILE)
    found = evaluate.evaluation(tmp_path, train.recipe_in(foreign / "recipe.toml"), spans=Spans(4, 1, 2), count=1, resamples=2)
    assert found.folds[0].test_rows > 900
    assert found.table["learned"]["roc_auc"].value > 0.9


def test_what_cannot_be_trained_on_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holdfast backfill"):
        training_set(tmp_path)
    pq.write_table(pa.table({"at_ms": [1]}), tmp_path / backfill_job.FEATURES_FILE)
    with pytest.raises(ArtefactError, match="names no catalogue"):
        training_set(tmp_path)
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        train.recipe_in(tmp_path / "nowhere.toml")
    with pytest.raises(SettingsError, match="three numbers"):
        evaluate.evaluate(["--data", str(tmp_path), "--spans", "7/7"], Settings())


def test_a_model_that_reads_a_files_own_columns_is_not_promoted(foreign: Path) -> None:
    history = given_in(foreign).history  # by a catalogue with another memory; as if by the one that serves
    examples = replace(history.training_set(history.last_ms, DAY_MS), catalogue_id=CATALOGUE.catalogue_id)
    made = train.trained(examples, train.recipe_in(foreign / "recipe.toml"), policy_from_toml(default_policy_text()), seed=1)
    with pytest.raises(ArtefactError, match=r"reads 'memory\.terminal_log_capped', which no request carries"):
        served_here(made.artefact.ensemble)
