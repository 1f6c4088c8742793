"""One whole system on real Kafka and Redis for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.settings import Settings
from streams.stack import Stack, running
from tests.first_model import MODEL_KEY


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Iterator[Stack]:
    """All apps, with a trained model; accounts that nobody described are held without a funds check."""
    data = tmp_path_factory.mktemp("whole")
    settings = Settings(data_dir=data, registry_dir=trained, http_port=0, unknown_account="hold", request_deadline_ms=5_000, model_key=MODEL_KEY)
    settings = settings.changed(drain_ms=3_000)  # a load balancer on a busy machine takes that long to see that a service is not ready
    with running(settings, broker_name="real") as stack:
        yield stack
