"""What benchmarks print is what they say: payments that nobody answered are no capacity, and no promise is kept by them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.bench import shadow


def test_payments_that_are_not_answered_beside_a_shadow_are_told_from_opinions_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([{"given": 1.0, "full": 0.0, "log": 0.0, "failed": 0.0}, {"given": 4.0, "full": 0.0, "log": 0.0, "failed": 2.0}])
    monkeypatch.setattr(shadow, "counted", lambda _: next(counts))
    monkeypatch.setattr(shadow, "load", lambda *_, **__: {"per_s": 10.0, "failed": 7.0})
    stack: Any = SimpleNamespace(part=lambda _: psutil.Process(), settings=SimpleNamespace(http_port=0, api_key=""))
    found = shadow.Door(stack, 0).asked(1, "--seconds", "1")
    assert (found["not_200"], found["failed"], found["given"]) == (7.0, 2.0, 3.0)
