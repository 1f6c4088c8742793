"""What many tests need once: a trained model in a registry."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings as oracles

from streams.settings import Settings

oracles.register_profile("patient", deadline=None)
oracles.load_profile("patient")  # a machine that stands still for a moment is no counterexample
MODEL_KEY = "7e57" * 16
"""The key that signs it."""


MADE = "TESTS_MODEL_DIR"
"""Names the folder where several runs of tests side by side find what one of them has trained (`python -m tests.conftest FOLDER`)."""


def first_model_in(folder: Path) -> Path:
    """A registry with a first model in this folder, made by the steps of the risk team."""
    from streams.lab import ensure_champion

    settings = Settings(data_dir=folder, model_key=MODEL_KEY)
    ensure_champion(settings, lambda text: None)
    return settings.registry_dir


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a first model, one's own."""
    own = tmp_path_factory.mktemp("trained")
    if MADE not in os.environ:
        return first_model_in(own)
    return Path(shutil.copytree(Path(os.environ[MADE]) / "registry", own / "registry"))


if __name__ == "__main__":
    first_model_in(Path(sys.argv[1]))
