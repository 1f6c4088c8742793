"""What many tests need once: a trained model in a registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.settings import Settings


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a first model, made by the steps of the risk team."""
    from streams.lab import first_model

    data = tmp_path_factory.mktemp("trained")
    settings = Settings(data_dir=data)
    first_model(settings)
    return settings.registry_dir
