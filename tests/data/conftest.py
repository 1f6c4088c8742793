"""A small simulated history that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streams.simulate import simulated, written


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transactions.parquet, accounts.parquet and mapping.toml: 200 customers, 45 days."""
    folder = tmp_path_factory.mktemp("history")
    written(simulated(np.random.default_rng(7), customers=200, days=45, fraud_rate=0.05, block=7), folder)
    return folder
