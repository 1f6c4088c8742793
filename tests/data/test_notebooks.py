"""The notebooks run from top to bottom on a small archive, and every plot has a title and says its units."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.catalogue import CATALOGUE
from streams.backfill import FEATURES_FILE
from tests.data.test_lab import archived
from tests.first_model import MODEL_KEY

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
CELL_LINES_MAX = 22


@pytest.fixture(scope="module")
def archive(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    archived(history, folder, 4_000)
    return folder


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    """Plots go nowhere, and are closed again."""
    mpl.use("Agg")
    yield
    plt.close("all")


def cells(path: Path) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    return list(notebook["cells"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_and_its_plots_say_what_they_show(
    path: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_ARCHIVE_DIR", str(archive))
    monkeypatch.setenv("HOLDFAST_DATA_DIR", str(tmp_path / "data"))
    names: dict[str, Any] = {}
    for cell in cells(path):
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert len(said.splitlines()) >= 4, "conclusions are in words"
    assert "nan" not in said
    axes = [ax for number in plt.get_fignums() for ax in plt.figure(number).axes]
    assert len(axes) >= 2
    assert [ax for ax in axes if not (ax.get_title() and ax.get_xlabel())] == []


@pytest.fixture(scope="module")
def unchanging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of a world in which nothing changes and fraud is plain to see: what the gates measure is good."""
    folder, rng, rows = tmp_path_factory.mktemp("unchanging"), np.random.default_rng(1), 12_000
    fraud = rng.random(rows) < 0.05
    columns: dict[str, Any] = {name: np.zeros(rows) for name in CATALOGUE.names}
    for name in CATALOGUE.names[::6]:
        columns[name] = rng.normal(size=rows) + 2.0 * (fraud & (rng.random(rows) < 0.6))
    at_ms = np.arange(rows) * 60_000
    beside = {"at_ms": at_ms, "card_token": [f"c{n % 4000}" for n in range(rows)], "account_id": ["a"] * rows, "amount_minor": np.full(rows, 1000)}
    beside |= {"fraud": fraud, "fraud_kind": pa.nulls(rows, pa.string()), "learned_at_ms": at_ms}
    about = {"catalogue_id": CATALOGUE.catalogue_id, "label_delay_ms": "0"}
    pq.write_table(pa.table(beside | columns).replace_schema_metadata(about), folder / FEATURES_FILE)
    return folder


def test_a_model_that_passes_its_gates_is_promoted_by_the_notebook(
    unchanging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_ARCHIVE_DIR", str(unchanging))
    monkeypatch.setenv("HOLDFAST_DATA_DIR", str(tmp_path / "data"))
    names: dict[str, Any] = {}
    steps = ["".join(cell["source"]) for cell in cells(next(path for path in NOTEBOOKS if path.stem == "3_promote")) if cell["cell_type"] == "code"]
    for step in steps:
        exec(step, names)
    said = capsys.readouterr().out
    assert f"{names['model_id']} is in the registry; it decides nothing yet" in said
    assert "Every gate passes." in said
    assert "validate by ana: refused" in said
    assert "promote by cleo: done" in said
    assert f"{names['model_id']} decides now; running systems take it over within seconds" in said
    assert names["registry"].champion_id() == names["model_id"]
    exec(steps[0], names)
    assert capsys.readouterr().out == f"{names['model_id']} is in the registry; it decides\n", "who runs it again is told of the champion that it is"


def test_where_another_model_decides_the_notebook_says_that_it_was_not_compared(
    unchanging: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "data" / "registry")
    monkeypatch.setenv("HOLDFAST_ARCHIVE_DIR", str(unchanging))
    monkeypatch.setenv("HOLDFAST_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HOLDFAST_MODEL_KEY", MODEL_KEY)
    names: dict[str, Any] = {}
    for cell in cells(next(path for path in NOTEBOOKS if path.stem == "3_promote")):
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert "It fails against_champion_low: nobody can approve it." in said
    assert f"{names['model_id']} does not decide, because" in said


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_cells_without_outputs_and_calls_nothing_private(path: Path) -> None:
    for cell in cells(path):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert len(source.splitlines()) <= CELL_LINES_MAX
            assert "._" not in source


def test_there_are_the_four() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["1_explore", "2_train", "3_promote", "4_drift_and_policy"]
