"""What many tests need once: a trained model in a registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings as oracles

from streams.settings import Settings

oracles.register_profile("patient", deadline=None)
oracles.load_profile("patient")  # a machine that stands still for a moment is no counterexample
MODEL_KEY = "7e57" * 16
"""The key that signs it."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a first model, made by the steps of the risk team."""
    from streams.lab import ensure_champion

    settings = Settings(data_dir=tmp_path_factory.mktemp("trained"), model_key=MODEL_KEY)
    ensure_champion(settings, lambda text: None)
    return settings.registry_dir
