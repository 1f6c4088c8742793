"""Runs on MLflow's local store, read back through MLflow's own client."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from models.artefact import CARD
from models.evaluate import DAY_MS, Spans, evaluated, folds
from models.policy import policy_from_toml
from models.recipe import Recipe, recipe_from_toml
from models.registry import Registry, default_policy_text
from schemas.errors import SettingsError
from streams import evaluate, train
from streams.folder import keys_of, with_kept_secrets
from streams.settings import Settings
from streams.tracking import EXPERIMENT, Run, tracked, tracking_uri
from tests.iso8583.conftest import a_free_port
from tests.models.test_evaluate import RECIPE, a_history

pytestmark = pytest.mark.filterwarnings("ignore")  # those of MLflow and of what it brings


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipe_from_toml(RECIPE)


@pytest.fixture(scope="module")
def runs(recipe: Recipe) -> tuple[train.Trained, Run, Run]:
    """A training, and how it and an evaluation are told."""
    history = a_history()
    made = train.trained(history.training_set(history.last_ms, 2 * DAY_MS), recipe, policy_from_toml(default_policy_text()), seed=1)
    found = evaluated(history, folds(0, 20 * DAY_MS, Spans(7, 2, 3), 1), recipe, resamples=5)
    return made, train.run_of(made, recipe), evaluate.run_of(found, recipe)


def test_a_run_is_read_back_as_it_was_told_and_names_the_model_of_the_registry(runs: tuple[train.Trained, Run, Run], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    settings = with_kept_secrets(Settings(data_dir=tmp_path))
    made, training, evaluating = runs
    told = [tracked(run, settings) for run in (training, evaluating)]
    client = MlflowClient(tracking_uri=tracking_uri(settings), registry_uri=tracking_uri(settings))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    assert found.keys() == set(told)
    first, second = (found[run_id] for run_id in told)
    assert [run.info.status for run in (first, second)] == ["FINISHED", "FINISHED"]
    assert first.data.metrics["auc"] == pytest.approx(made.artefact.figures["auc"])
    assert first.data.params["data_sha256"] == made.artefact.data_sha256
    assert first.data.tags["holdfast.model_id"] == Registry(settings.registry_dir, keys_of(settings)).register(made.artefact)
    document = Path(client.download_artifacts(told[0], "model_document.html", str(tmp_path))).read_text()
    assert "<svg" in document, "the plots are in it"
    assert json.loads(Path(client.download_artifacts(told[0], CARD, str(tmp_path))).read_text())["figures"]["auc"] is not None
    low, value, high = (second.data.metrics[f"ensemble fitted weights.roc_auc{end}"] for end in (".low", "", ".high"))
    assert 0.5 < low <= high <= 1.0
    assert 0.5 < value <= 1.0
    assert {file.path for file in client.list_artifacts(told[1])} == {"evaluation.json", "table.txt"}


def test_what_cannot_be_told_is_no_metric(runs: tuple[train.Trained, Run, Run]) -> None:
    assert all(value == value for run in runs[1:] for value in run.metrics.values() if value is not None)


def test_a_server_that_does_not_answer_as_one_is_named(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, tracking_uri="nonsense://tracking")
    with pytest.raises(SettingsError, match="nonsense://tracking does not take the run"):
        tracked(Run("none", {}, {}, {}), settings)


def test_a_server_that_is_not_there_is_said_within_seconds(tmp_path: Path) -> None:
    gone = f"http://127.0.0.1:{a_free_port()}"
    began = time.monotonic()
    with pytest.raises(SettingsError, match=f"{gone} does not take the run"):
        tracked(Run("none", {}, {}, {}), Settings(data_dir=tmp_path, tracking_uri=gone))
    assert time.monotonic() - began < 30
