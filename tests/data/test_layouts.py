"""Files in the layouts of public fraud data go through `backfill`, `train` and `evaluate` with nothing but a mapping."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.csv as pc
import pytest

from streams.backfill import backfill
from streams.evaluate import evaluate
from streams.settings import Settings
from streams.train import train
from tests.bench.layouts import LAYOUTS

RECIPE = """
name = "small"
honest_per_fraud = 30
parts = 2
members = [
    { name = "learned", weight = 0.8, families = ["*"], estimator = "hist_gradient_boosting", parameters = { max_iter = 15, max_features = 0.5 } },
    { name = "device", weight = 0.2, families = ["device"], estimator = "hist_gradient_boosting", parameters = { max_iter = 5 } },
]
"""
ROWS = {"ulb": 16_000, "sparkov": 6000, "ieee": 2000, "paysim": 8000, "baf": 6000}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_public_layout_needs_a_mapping_and_nothing_else(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, settings = LAYOUTS[name], Settings(data_dir=tmp_path / "data")
    rows = ROWS[name]
    pc.write_csv(layout.table(np.random.default_rng(4), rows), tmp_path / "file.csv")
    (tmp_path / "map.toml").write_text(layout.mapping)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    about = ["--data", str(tmp_path), "--recipe", str(tmp_path / "recipe.toml"), "--threads", "1", "--json"]
    assert backfill([str(tmp_path / "file.csv"), "--map", str(tmp_path / "map.toml"), "--out", str(tmp_path), "--json"], settings) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (made["rows"], made["bad_rows"]) == (rows, 0)
    assert train([*about, "--out", str(tmp_path / "artefact")], settings) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] > 0.9 * rows
    assert evaluate([*about, "--resamples", "5"], settings) == 0
    table = json.loads(capsys.readouterr().out.splitlines()[-1])["table"]
    assert table["learned"]["roc_auc"]["value"] > 0.5
    assert table["learned"]["roc_auc"]["low"] < table["learned"]["roc_auc"]["high"], "an interval is there, however few the days"
