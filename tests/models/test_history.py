"""Proves that training sees of labels what was known at a moment and nothing that was learned later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from models.history import Examples, History, Verdicts, families_of

Event = tuple[int, bool, int]  # row, fraud, learned
HOURS = st.integers(0, 100)


def a_history(at: list[int], verdicts: list[Event]) -> History:
    """Rows at these times, and what was learned of them."""
    rows, frauds, learned = (np.array([event[n] for event in verdicts]) for n in range(3))
    kinds: npt.NDArray[np.object_] = np.array([f"kind {event[2]}" if event[1] else None for event in verdicts], dtype=object)
    known = Verdicts.in_order(rows.astype(np.int64), frauds.astype(np.bool_), kinds, learned.astype(np.int64))
    times = np.array(sorted(at), np.int64)
    return History("cat_x", ("a.one",), np.arange(len(at), dtype=np.float64)[:, None], times, times % 3, times * 10, known)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[Event]]:
    at = draw(st.lists(HOURS, min_size=1, max_size=12))
    events = st.tuples(st.integers(0, len(at) - 1), st.booleans(), HOURS)
    return at, draw(st.lists(events, max_size=20))


def bytes_of(examples: Examples) -> tuple[object, ...]:
    return (examples.vectors.tobytes(), examples.frauds.tobytes(), examples.kinds.tolist(), examples.at_ms.tobytes(), examples.cards.tobytes())


@given(histories(), HOURS, HOURS, st.lists(st.tuples(st.integers(0, 11), st.booleans(), HOURS), max_size=20))
def test_whatever_is_learned_later_leaves_no_trace_in_a_training_set(
    made: tuple[list[int], list[Event]], until: int, delay: int, leak: list[Event]
) -> None:
    at, verdicts = made
    before = a_history(at, verdicts).training_set(until, delay)
    later = [(row % len(at), fraud, until + 1 + learned) for row, fraud, learned in leak]
    after = a_history(at, [event for event in verdicts if event[2] <= until] + later).training_set(until, delay)
    assert bytes_of(before) == bytes_of(after)


@given(histories(), HOURS, HOURS, HOURS)
def test_a_training_set_is_what_somebody_would_have_written_down_on_that_day(
    made: tuple[list[int], list[Event]], until: int, delay: int, since: int
) -> None:
    at, verdicts = made
    believed = {}
    for row, fraud, learned in sorted(verdicts, key=lambda event: event[2]):
        if learned <= until:
            believed[row] = fraud
    old = [row for row, moment in enumerate(sorted(at)) if since <= moment <= until - delay]
    examples = a_history(at, verdicts).training_set(until, delay, since)
    assert examples.vectors[:, 0].tolist() == old
    assert examples.frauds.tolist() == [believed.get(row, False) for row in old]
    assert examples.until_ms == until


def test_a_verdict_that_is_taken_back_counts_as_long_as_it_stood() -> None:
    history = a_history([1, 2], [(0, True, 10), (0, False, 20)])
    assert history.believed(9).frauds.tolist() == [False, False]
    assert history.believed(10).frauds.tolist() == [True, False]
    assert history.believed(10).since_ms.tolist() == [10, 0]
    assert history.believed(10).kinds.tolist() == ["kind 10", None]
    assert history.believed().frauds.tolist() == [False, False]
    assert history.believed().since_ms.tolist() == [0, 0]


def test_columns_are_of_the_family_that_their_name_begins_with() -> None:
    assert families_of(("a.one", "b.one", "a.two.x")) == {"a": (0, 2), "b": (1,)}
    assert replace(a_history([1], []), names=("a.one",)).last_ms == 1
