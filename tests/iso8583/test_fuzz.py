"""Whatever comes to the ISO 8583 door, it answers or cuts: no crash, no internal error, nothing that takes long. A bench puts a million inputs."""

from __future__ import annotations

from tests.iso8583.fuzz import QUIET_S_MAX, fuzzed


def test_ten_thousand_inputs_break_nothing() -> None:
    counts, slowest_s = fuzzed(10_000, seed=1)
    print(dict(counts), slowest_s)
    assert counts["inputs"] == 10_000
    assert counts["crashed"] == counts["unsound"] == 0
    assert counts["answer 96"] + counts["answer 909"] == 0
    assert counts["answer 00"] + counts["answer 000"] > 300, "the grammar reaches what it is to test"
    assert counts["answer 30"] + counts["answer 904"] > 500
    assert slowest_s < QUIET_S_MAX
