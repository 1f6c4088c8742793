"""Models and a policy are swapped under load on real Kafka: no request fails, each decision is of one whole model, and the breaker helps once."""

from __future__ import annotations

import pytest

from streams.stack import Stack
from tests.bench.features import holds
from tests.bench.swap import Door, checks, swapped, told

pytestmark = pytest.mark.integration


def test_a_swap_under_load_fails_no_request_and_every_process_follows(stack: Stack) -> None:
    found = swapped(stack, (Door("swap-a", stack.settings.http_port), Door("swap-t", 0)), per_s=50, between_s=0.5)
    told(found, as_json=False)
    assert found["failed"] == []
    assert [check for check in checks(found) if not holds(check)] == []
    assert min(count for by_door in found["decisions_after"].values() for count in by_door.values()) >= 3
    assert found["decisions"] == found["requests"]
    assert found["second_opinions"] > 0
    assert found["challenger_share"] == pytest.approx(0.2, abs=0.15)
    assert found["breaker_alarms"] == 1
    assert "block: 100.0% of" in found["breaker_why"]
