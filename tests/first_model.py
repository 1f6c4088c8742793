"""A registry with a first model, made by the steps of the risk team: `python -m tests.first_model FOLDER`. It takes nothing that only checks need."""

from __future__ import annotations

import sys
from pathlib import Path

from streams.settings import Settings

MODEL_KEY = "7e57" * 16
"""The key that signs it."""


def first_model_in(folder: Path) -> Path:
    """Makes it in this folder; where the registry is."""
    from streams.lab import ensure_champion  # most tests train nothing

    settings = Settings(data_dir=folder, model_key=MODEL_KEY)
    ensure_champion(settings, lambda text: None)
    return settings.registry_dir


if __name__ == "__main__":
    first_model_in(Path(sys.argv[1]))
