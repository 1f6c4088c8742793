"""Parts of the live system are broken while hosts ask: all are answered in time, within the stand-in's limits, and the books agree.

Last of this folder: hosts here take a `503` for an answer and never ask again, so that Redis remembers payments that the log never had.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from streams.stack import Stack
from tests.bench import faults

pytestmark = pytest.mark.integration

SECONDS, RATE, DEADLINE_MS = 4, 30, 1_500
"""`holdfast bench faults` does the same for a minute each."""


@pytest.mark.parametrize("name", ["redis killed", "kafka paused, service killed"])
def test_whatever_is_broken_hosts_are_answered_in_time_and_the_books_agree(stack: Stack, name: str) -> None:
    found = faults.broken(stack, name, SECONDS, RATE, DEADLINE_MS, f"stand-in-{name[0]}")
    print("", faults.HEAD, found.line(), sep="\n  ")
    assert found.check
    assert found.requests
    assert found.in_deadline == found.requests, found.line()
    assert not found.above_limit
    assert not found.changed_repeats
    assert not found.ended
    assert found.stand_ins or "redis" in name, "a Redis may be back before anybody asked it"


def test_a_fault_shows_nothing_where_nobody_asked_or_the_service_fell() -> None:
    sound = faults.Found("a fault", requests=1, in_deadline=1, check=True)
    assert sound.holds
    assert not replace(sound, requests=0, in_deadline=0).holds
    assert not replace(sound, ended=1).holds
