"""Runs of training and evaluation on a tracking server that risk teams know (MLflow): the one place that speaks to it.

Without `HOLDFAST_TRACKING_URI` they are in a SQLite file of the data folder, which a server can be given as its store. MLflow is the extra
`tracking`: what decides, approves and serves never asks it, so that a server that is gone stops nobody.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from schemas.errors import SettingsError
from streams.clock import clock_ms
from streams.settings import Settings

EXPERIMENT = "holdfast"
FOLDER = "tracking"


class Run(NamedTuple):
    """One run: what went in, what came out, and files by name, plots among them."""

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float | None]  # what cannot be told is left out
    texts: Mapping[str, str]
    tags: Mapping[str, str] = {}


def tracking_uri(settings: Settings) -> str:
    """Where runs are told: the server of the settings, else a file of the data folder."""
    return settings.tracking_uri or f"sqlite:///{settings.data_dir / FOLDER / 'runs.db'}"


def tracked(run: Run, settings: Settings) -> str:
    """Tells the run and returns its id there. SettingsError if MLflow is not installed, or its server does not take the run."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a bank's trainings are nobody else's business
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # six seconds; its seven take four minutes to say that nobody is there
    try:
        mlflow, entities = importlib.import_module("mlflow"), importlib.import_module("mlflow.entities")
    except ImportError:
        raise SettingsError("runs are tracked with MLflow, which is not installed: the extra `tracking` brings it") from None
    uri = tracking_uri(settings)
    if not settings.tracking_uri:
        (settings.data_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        made = client.create_run(_experiment(client, settings), run_name=run.name, tags=dict(run.tags))
        now_ms = clock_ms()
        metrics = [entities.Metric(_safe(name), value, now_ms, 0) for name, value in run.metrics.items() if value is not None]
        params = [entities.Param(name, str(value)) for name, value in run.params.items()]
        client.log_batch(made.info.run_id, metrics=metrics, params=params)
        for name, text in run.texts.items():
            client.log_text(made.info.run_id, text, name)
        client.set_terminated(made.info.run_id)
    except mlflow.exceptions.MlflowException as error:
        raise SettingsError(f"{uri} does not take the run: {error}") from None
    return str(made.info.run_id)


def _experiment(client: Any, settings: Settings) -> str:
    """The id of the house's experiment; a local one keeps its files in the data folder."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    files = None if settings.tracking_uri else (settings.data_dir / FOLDER / "files").as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=files))


def _safe(name: str) -> str:
    """The name, with what MLflow allows in it: `ensemble, fitted weights.roc_auc` has a comma."""
    return re.sub(r"[^\w\-. /]", "", name)
