"""Two services and two workers write at once on real Kafka and Redis: every vector of the log follows from the topics, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.topics import DECISIONS
from streams.settings import Settings
from tests.bench.parity import compared
from tests.first_model import MODEL_KEY

pytestmark = pytest.mark.integration

PAYMENTS = 1_500
"""`holdfast bench parity` does the same with 100,000."""


def test_every_vector_is_what_the_topics_say_with_two_services_and_two_workers(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("parity"), registry_dir=trained, http_port=0, unknown_account="hold", model_key=MODEL_KEY
    ).changed(token_key="parity", request_deadline_ms=10_000)
    found, _ = compared(settings, PAYMENTS, "ci")
    print("\n", *found.lines(), sep="\n  ")
    assert found.agrees, found.lines()
    assert found.counts[DECISIONS.name] == PAYMENTS, found.lines()
    assert found.equal >= 0.98 * PAYMENTS, "a row of a decision that lost to another leaves what follows it uncompared; no more than that"
