"""A data folder of its own for each test's system."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.settings import Settings, settings_from


@pytest.fixture
def settings() -> Iterator[Settings]:
    """Settings of a system in a fresh folder, on any free port."""
    with tempfile.TemporaryDirectory(prefix="holdfast-test-") as name:
        yield settings_from({"HOLDFAST_DATA_DIR": str(Path(name) / "data"), "HOLDFAST_HTTP_PORT": "0"})
