"""What many tests need once: a trained model in a registry."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings as oracles

from tests.first_model import first_model_in

oracles.register_profile("patient", deadline=None)
oracles.load_profile("patient")  # a machine that stands still for a moment is no counterexample
MADE = "TESTS_MODEL_DIR"
"""Names the folder where several runs of tests side by side find what one of them has trained (`python -m tests.first_model FOLDER`)."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a first model, one's own."""
    own = tmp_path_factory.mktemp("trained")
    if MADE not in os.environ:
        return first_model_in(own)
    return Path(shutil.copytree(Path(os.environ[MADE]) / "registry", own / "registry"))
