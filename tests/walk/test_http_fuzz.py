"""Whatever comes to the HTTP door, it answers or cuts: no crash, no 5xx, nothing that takes long. `holdfast bench http` puts a million inputs."""

from __future__ import annotations

from tests.iso8583.fuzz import QUIET_S_MAX
from tests.walk.http_fuzz import fuzzed, holds


def test_ten_thousand_inputs_break_nothing() -> None:
    found = fuzzed(10_000, seed=1)
    counts = found.counts
    assert counts["inputs"] == 10_000
    assert holds(found, QUIET_S_MAX), (dict(counts), found.slowest_s)
    assert counts["answer 200"] > 1_500, "the grammar reaches what it is to test"
    assert min(counts[f"answer {status}"] for status in (400, 401, 403, 404, 405, 409, 422, 429)) > 5
