"""The risk team's steps on a small history, end to end."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from features.catalogue import CATALOGUE
from features.engine import look
from features.memory import DictMemory
from features.tally import LABELLED, Update, label_row, payment_rows
from models.history import HELD_OUT_FROM
from models.hold import UnknownAccount
from models.registry import Registry
from schemas.decision import Decision
from schemas.errors import ArtefactError, InvalidRecord, SettingsError
from schemas.governance import Act, Band, Kind
from schemas.topics import DECISIONS, LABELS
from streams import backfill as backfill_job
from streams import governance, lab, train
from streams.archive import Archive
from streams.clerk import entering
from streams.folder import keys_of
from streams.governance import band_of
from streams.mapping import Row, TokenKey, accounts_in, mapping_in, rows_in
from streams.settings import Settings
from streams.training_set import training_set
from tests.first_model import MODEL_KEY
from tests.world import a_policy, a_world, quick, trained_quickly

KEY = TokenKey(b"a test's key", "k1")


def good_rows(history: Path) -> list[Row]:
    rows = rows_in(history / "transactions.parquet", mapping_in(history / "mapping.toml"), KEY, now_ms=2**41)
    return [row for row in rows if not isinstance(row.content, InvalidRecord)]


@pytest.fixture(scope="module")
def features(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backfilled features of the small history."""
    folder = tmp_path_factory.mktemp("features")
    files, accounts = [str(history / "transactions.parquet")], str(history / "accounts.parquet")
    argv = [*files, "--map", str(history / "mapping.toml"), "--accounts", accounts, "--out", str(folder)]
    assert backfill_job.backfill(argv, Settings(token_key="a test's key")) == 0
    return folder


def test_a_backfill_gives_what_would_have_been_served(history: Path, features: Path) -> None:
    mapping = mapping_in(history / "mapping.toml")
    memory = DictMemory(CATALOGUE)
    for state in accounts_in(history / "accounts.parquet", mapping, KEY, 1, print):
        memory.know_account(state)
    backfilled = pq.read_table(features / backfill_job.FEATURES_FILE)
    matrix = np.column_stack([backfilled[name].to_numpy() for name in CATALOGUE.names])
    rows = good_rows(history)
    labels = sorted((row.label.learned_at_ms, number) for number, row in enumerate(rows) if row.label and row.label.fraud)
    newest = taught = 0
    for number, row in enumerate(rows[:800]):
        assert not isinstance(row.content, InvalidRecord)
        newest = max(newest, row.content.at_ms)
        while taught < len(labels) and labels[taught][0] <= newest:
            of = rows[labels[taught][1]]
            assert of.label is not None
            told_to_tallies(memory, DECISIONS.partitions, taught, [label_row(of.label)], of.content, LABELLED)
            taught += 1
        served = look(CATALOGUE, memory.recall(row.content).value).values  # type: ignore[attr-defined]  # it is there already
        assert served.tobytes() == matrix[number].tobytes(), backfilled["transaction_id"][number]
        if row.declined:
            memory.decline(row.content)
        told_to_tallies(memory, 0, number, payment_rows(row.content, row.declined), row.content, CATALOGUE.tallies)


def told_to_tallies(memory: DictMemory, source: int, offset: int, given: list[Any], txn: Any, kinds: Sequence[str]) -> None:
    """Gives rows to the tallies of a transaction's entities of these kinds, as the tally app does."""
    tokens = [getattr(txn, field) if kind in kinds else None for kind, field in zip(CATALOGUE.tallies, CATALOGUE.tally_fields, strict=True)]
    memory.take({(n, token): [Update(source, offset, row) for row in given] for n, token in enumerate(tokens) if token is not None})


def test_simulate_backfill_train_register_promote(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    assert train.train(["--data", str(features), "--out", str(tmp_path / "artefact"), "--json"], settings) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["held_out"]["auc"] > 0.8
    assert "honest" in figures["held_out_by_kind"]
    assert lab.register([str(tmp_path / "artefact"), "--as", "ana", "--json"], settings) == 0
    model_id, about = capsys.readouterr().out.splitlines()
    assert (json.loads(about)["item_id"], json.loads(about)["state"]) == (model_id, "draft")
    with pytest.raises(ArtefactError, match=r"not_validated: .* is draft: promote is not what follows"):
        lab.promote([model_id, "--as", "ana", "--why", "it is mine"], settings)
    with pytest.raises(ArtefactError, match="own_work: ana is its author"):
        lab.models(["validate", model_id, "--as", "ana", "--why", "it is mine"], settings)
    assert lab.models(["validate", model_id, "--as", "ben", "--why", "figures read"], settings) == 0
    assert lab.models(["approve", "newest", "--as", "cleo", "--why", "all gates passed", "--tier", "low"], settings) == 0
    assert lab.promote([model_id, "--as", "cleo", "--why", "first"], settings) == 0
    capsys.readouterr()
    assert lab.models(["show", "newest", "--json"], settings) == 0
    said = capsys.readouterr().out
    assert "gates: all passed" in said
    assert (shown := json.loads(said.splitlines()[-1]))["gates_failed"] == []
    assert (shown["item_id"], shown["state"]) == (model_id, "champion")
    with pytest.raises(SettingsError, match="--valid-days"):
        lab.models(["validate", model_id, "--as", "ben", "--why", "for ever", "--valid-days", "inf"], settings)
    assert lab.models([], settings) == 0
    assert capsys.readouterr().out.startswith(f"* {model_id}")
    copied = shutil.copytree(tmp_path / "data" / "registry" / "models" / model_id, tmp_path / "data" / "registry" / "models" / "mdl_copied")
    assert copied.is_dir()
    assert lab.models(["list", "--json"], settings) == 1, "one is not what its name says"
    *said, about = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["*", "mdl_copied"]
    sound, broken = json.loads(about)["models"]
    assert (sound["model_id"], "fault" in sound) == (model_id, False)
    assert broken["fault"] == "model mdl_copied: card.json was altered"
    assert lab.ensure_champion(settings, lambda text: pytest.fail("there is a champion already")) == model_id


def test_a_comparison_during_which_somebody_made_a_move_is_not_entered(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path, registry_dir=Path(shutil.copytree(trained, tmp_path / "registry")), model_key=MODEL_KEY)
    registry = lab.registry_of(settings)
    champion = registry.champion_id()

    def compared(registry: Registry, model_id: str, data: Path) -> dict[str, float]:
        registry.move(Kind.MODEL, model_id, Act.VALIDATE, "dora", "the same at the same time", 1, expires_at_ms=2)
        return {"against_champion_low": 0.0}

    monkeypatch.setattr("streams.governance.compared", compared)
    with pytest.raises(ArtefactError, match="overtaken: line 5 of the history was written by somebody else"):
        lab.models(["validate", str(champion), "--as", "ben", "--why", "as good", "--data", str(tmp_path)], settings)
    assert registry.inventory().moves[-1].by == "dora"


def test_a_candidate_is_compared_on_rows_that_it_has_not_learned_from(features: Path, tmp_path: Path, trained: Path) -> None:
    """Trained on the newest rows too, it has learned from all those whose labels are known by now."""
    settings = Settings(data_dir=tmp_path, registry_dir=Path(shutil.copytree(trained, tmp_path / "registry")), model_key=MODEL_KEY)
    registry, examples = lab.registry_of(settings), training_set(features, None, 0)
    made = trained_quickly(examples, quick(), a_policy(), seed=1)
    model_id = registry.register(made)
    learned = examples.at_ms[: int(len(examples.at_ms) * HELD_OUT_FROM)]
    assert registry.card(model_id)["trained"]["learned_until_ms"] == learned[-1]
    assert learned[-1] > training_set(features).at_ms[-1], "the labels of later rows are yet to come"
    assert governance.compared(registry, model_id, features) == {}


@pytest.mark.parametrize("text", ["revew=0:0.1", "review=0.3:0.1", "review=nan:0.5", "review=0:7", "review", "review=0"])
def test_a_band_that_would_guard_nothing_is_not_taken(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        band_of(text)
    assert band_of("review=0:0.1") == Band("review", 0.0, 0.1)


def test_what_an_older_release_left_decides_nothing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    old = tmp_path / "registry" / "models" / "mdl_0"
    old.mkdir(parents=True)
    (old / "card.json").write_text("{}")
    (old / "arrays.npz").write_bytes(b"PK")
    (tmp_path / "registry" / "champion.json").write_text('{"promoted": [{"id": "mdl_0", "at_ms": 1}]}')
    registry = lab.registry_of(settings)
    assert lab.who_decides(registry, lambda text: None) is None
    assert registry.models() == ()


def test_the_first_model_of_an_empty_system_is_the_only_one_and_decides(trained: Path) -> None:
    registry = Registry(trained, keys_of(Settings(model_key=MODEL_KEY)))
    assert [m.model_id for m in registry.models()] == [registry.champion().model_id] == [lab.who_decides(registry, pytest.fail)]


def test_the_policy_of_the_house_is_kept_so_that_a_later_release_can_judge_its_decisions_again(tmp_path: Path, trained: Path) -> None:
    settings = Settings(data_dir=tmp_path, registry_dir=Path(shutil.copytree(trained, tmp_path / "registry")), model_key=MODEL_KEY)
    registry = lab.registry_of(settings)
    house, champion = registry.policy().policy_id, str(registry.champion_id())
    shutil.rmtree(tmp_path / "registry" / "policies", ignore_errors=True)
    assert lab.models(["validate", champion, "--as", "ben", "--why", "figures read"], settings) == 0
    assert registry.load_policy(house).policy_id == house
    assert registry.inventory().of(Kind.POLICY) == (), "nobody promoted it"
    shutil.rmtree(tmp_path / "registry" / "policies")
    with entering(settings, pytest.fail):
        pass
    assert registry.load_policy(house).policy_id == house


def test_bad_rows_are_named_and_left_out(history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.csv as pa_csv

    pa_csv.write_csv(pq.read_table(history / "transactions.parquet").slice(0, 20), tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    lines[3] = lines[3].replace("POS", "XXX").replace("TAP", "XXX").replace("WEB", "XXX").replace("SUB", "XXX")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    argv = [str(tmp_path / "t.csv"), "--map", str(history / "mapping.toml"), "--out", str(tmp_path / "out"), "--json"]
    assert backfill_job.backfill(argv, Settings(data_dir=tmp_path / "data")) == 0
    said = capsys.readouterr()
    assert "row 3: kind:" in said.err
    assert json.loads(said.out.splitlines()[-1])["bad_rows"] == 1


def archived(history: Path, folder: Path, count: int, told: Callable[[Decision], Decision] = lambda decision: decision) -> None:
    """Decides some rows of the history in a world, and archives decisions (as they were `told`) and labels as the app does."""
    world, archive = a_world(UnknownAccount.HOLD), Archive(folder, lambda: 0.0)
    archive.open([(DECISIONS.name, 0), (LABELS.name, 0)])
    rows = good_rows(history)[:count]

    async def decide_all() -> list[Decision]:
        world.now_ms = 2**41
        return [d for row in rows if (d := (await world.decide(row.content)).decision)]  # type: ignore[arg-type]  # good rows

    for offset, decision in enumerate(asyncio.run(decide_all())):
        archive.add(told(decision), (DECISIONS.name, 0), offset)
    for offset, row in enumerate(rows):
        if row.label is not None and row.label.fraud:
            archive.add(row.label, (LABELS.name, 0), offset)
    archive.write_all()
