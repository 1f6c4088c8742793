"""A log at rest: what tidying and rebuilding leave depends on the unique rows alone, never on when they were done."""

from __future__ import annotations

import random

from histories import histories
from hypothesis import given, settings
from hypothesis import strategies as st
from past_oracle import Arrival
from payments import DAY, T0, a_payment

from features.catalogue import CATALOGUE, Catalogue
from features.engine import KEPT_ON, UNTIDY, buffer_of, kept_up, own_bytes, row_bytes, section
from features.engine import rows_of as packed_at_once
from features.fact import FACTS, facts_of, row_identity
from features.layout import Cap, at_ms_of
from features.log import REWRITTEN_ROWS, Told, grown, in_turn, is_due, log_rows, rebuilt_log, row_count, tidied, warm
from schemas.transaction import Transaction

SHORT = Catalogue(CATALOGUE.rows, Cap(rows=8, chunk=4))
SIZE = SHORT.log_layouts[0].row_bytes
days = st.lists(st.sampled_from([0, 0, 1, 2, 90, 97, 98, 200]), min_size=1, max_size=60)


def rows_of(when: list[int]) -> list[bytes]:
    """A card's rows, on these days."""
    rows = [row_bytes(SHORT, a_payment(str(n), T0 + day * DAY))[0] for n, day in enumerate(when)]
    return [row for row in rows if row is not None]


@settings(max_examples=200, deadline=None)
@given(days, st.sets(st.integers(0, 59)), st.sets(st.integers(0, 59)))
def test_a_log_at_rest_does_not_depend_on_when_it_was_tidied(when: list[int], tidy_after: set[int], twice: set[int]) -> None:
    rows = rows_of(when)
    log = b""
    for number, row in enumerate(rows):
        log += row + (row if number in twice else b"")
        if number in tidy_after:
            log = tidied(SHORT, 0, log)
    at_rest = tidied(SHORT, 0, b"".join(rows))
    assert tidied(SHORT, 0, log) == at_rest
    assert tidied(SHORT, 0, at_rest) == at_rest
    assert row_count(at_rest, SIZE, len(at_rest)) == len(rows)
    assert len(at_rest) <= (8 + 2 * 4 + 1) * SIZE


def at_rest_by_hand(when: list[int]) -> bytes:
    """The log of rows on these days at rest, row by row as `Cap` says it."""
    rows, ats, cap = rows_of(when), [T0 + day * DAY for day in when], SHORT.cap
    last_chunk = (len(rows) - cap.chunk) // cap.chunk * cap.chunk
    gone = max(0, (len(rows) - cap.chunk - cap.rows) // cap.chunk * cap.chunk)
    while last_chunk > 0 and gone < last_chunk and ats[gone] <= max(ats[:last_chunk]) - SHORT.keep_ms:
        gone += 1
    return (SHORT.log_layouts[0].header(gone, max(ats[:gone])) if gone else b"") + b"".join(rows[gone:])


@settings(max_examples=300, deadline=None)
@given(days)
def test_a_log_at_rest_has_what_the_last_chunk_may_see_and_the_rest_in_its_header(when: list[int]) -> None:
    assert tidied(SHORT, 0, b"".join(rows_of(when))) == at_rest_by_hand(when)


REFRESH_MS = 30 * DAY


@settings(max_examples=200, deadline=None)
@given(days, st.lists(st.integers(0, 59), max_size=3), st.booleans())
def test_what_an_append_leaves_to_do_is_what_its_log_says(when: list[int], again: list[int], at_rest: bool) -> None:
    rows = rows_of(when)
    log, own = b"".join(rows[:-1]), a_payment(str(len(when) - 1), T0 + when[-1] * DAY)
    log = tidied(SHORT, 0, log) if at_rest else log
    log += b"".join(rows[number] for number in again if number < len(rows)) + rows[-1]
    place = len(log) - SIZE
    span = own.at_ms // REFRESH_MS
    fresh = place == 0 or at_ms_of(log, place - SIZE) // REFRESH_MS != span
    untidy = is_due(SHORT, row_count(log, SIZE, len(log))) or log.find(rows[-1][:8]) != place
    begun = own_bytes(own)
    logs = (log, *[None] * (len(SHORT.logs) - 1))
    one = section(begun, (*logs, *[None] * (len(SHORT.profiles) + len(SHORT.tallies))))
    nothing = section(begun, (None,) * (len(SHORT.logs) + len(SHORT.profiles) + len(SHORT.tallies)))
    to_do = kept_up(SHORT, buffer_of([nothing, one, nothing, one]), 4, REFRESH_MS, REWRITTEN_ROWS)
    flag = (KEPT_ON if fresh else 0) | (UNTIDY if untidy else 0)
    assert to_do == ([(1, 0, flag), (3, 0, flag)] if flag else [])


@settings(max_examples=100, deadline=None)
@given(histories())
def test_rows_that_are_packed_at_once_are_those_that_are_packed_one_by_one(arrivals: list[Arrival]) -> None:
    payments = [arrival.record for arrival in arrivals if isinstance(arrival.record, Transaction)]
    together = packed_at_once(CATALOGUE, [own_bytes(txn) for txn in payments])
    for txn, row in zip(payments, together, strict=True):
        facts = facts_of(txn)
        assert row == b"".join(layout.pack(facts) for layout in CATALOGUE.log_layouts)


@settings(max_examples=200, deadline=None)
@given(days, st.randoms())
def test_a_log_is_rebuilt_from_positions_to_the_same_bytes(when: list[int], chance: object) -> None:
    placed = list(enumerate(rows_of(when)))
    at_rest = tidied(SHORT, 0, b"".join(row for _, row in placed))
    chance.shuffle(placed)  # type: ignore[attr-defined]
    assert rebuilt_log(SHORT, 0, placed) == at_rest


def test_a_log_that_had_expired_and_begun_again_is_rebuilt_without_its_older_time() -> None:
    rows = rows_of([0, 1, 2, 400, 401])
    old, new = list(enumerate(rows[:3])), list(enumerate(rows[3:]))
    assert rebuilt_log(SHORT, 0, old + new) == tidied(SHORT, 0, b"".join(rows[3:]))


@settings(max_examples=200, deadline=None)
@given(days, st.randoms(use_true_random=False), st.sets(st.integers(0, 59)))
def test_a_log_that_follows_what_is_told_out_of_turn_ends_in_the_bytes_of_a_rebuilt_one(
    when: list[int], chance: random.Random, again: set[int]
) -> None:
    rows = rows_of(when)
    told = [Told(position, row, told_ms=position) for position, row in enumerate(rows)]
    told += [told[number] for number in again if number < len(told)]
    chance.shuffle(told)
    log, waiting = b"", []
    while told or waiting:
        waiting += [told.pop() for _ in range(min(len(told), chance.randrange(1, 8)))]
        ready, waiting = in_turn(waiting, row_count(log, SIZE, len(log)), lost_before_ms=0)
        log = grown(SHORT, 0, log, ready)
    assert log == rebuilt_log(SHORT, 0, list(enumerate(rows)))


@settings(max_examples=200, deadline=None)
@given(days, st.sets(st.integers(0, 59)), st.integers(1, 59))
def test_places_of_which_nothing_is_told_are_counted_as_a_rebuilt_log_counts_them(when: list[int], lost: set[int], first: int) -> None:
    placed = [(position, row) for position, row in enumerate(rows_of(sorted(when))) if position not in lost]
    log, waiting = b"", [Told(position, row, told_ms=position) for position, row in placed[:first]]
    for more in (placed[first:], []):
        ready, waiting = in_turn(waiting, row_count(log, SIZE, len(log)), lost_before_ms=len(when))
        assert not waiting, "who was told before that waits for nobody"
        log, waiting = grown(SHORT, 0, log, ready), [Told(position, row, told_ms=position) for position, row in more]
    assert log == (rebuilt_log(SHORT, 0, placed) if placed else b"")


def test_a_row_behind_one_that_may_still_be_told_waits_for_it() -> None:
    rows = [Told(position, row, told_ms=1_000) for position, row in enumerate(rows_of([0, 0, 0, 0]))]
    assert in_turn([rows[3], rows[0]], 0, lost_before_ms=1_000) == ([rows[0]], [rows[3]])
    assert in_turn([rows[3], rows[0]], 0, lost_before_ms=1_001) == ([rows[0], rows[3]], [])


def test_a_row_that_was_cut_off_is_not_read() -> None:
    rows = rows_of([0, 1])
    assert tidied(SHORT, 0, b"".join(rows) + rows[0][:7]) == b"".join(rows)


def test_a_decision_gives_rows_to_the_logs_that_it_has_positions_in() -> None:
    txn = a_payment("1", device_token=None)
    assert [(row.log_number, row.token, row.position) for row in log_rows(CATALOGUE, txn, (3, 4, -1), ())] == [(0, "c1", 3), (1, "a1", 4)]
    assert [(row.log_number, row.position) for row in log_rows(CATALOGUE, txn, (3, 4, -1), (4, 5, -1))] == [(0, 3), (1, 4), (0, 4), (1, 5)]
    assert [row.log_number for row in log_rows(CATALOGUE, a_payment("1"), (3,), ())] == [0]


@given(st.data())
def test_a_row_holds_every_column_to_its_last_bit(data: st.DataObject) -> None:
    facts = [data.draw(st.integers(0, (1 << fact.bits) - 1)) for fact in FACTS]
    facts[0] = row_identity("a", facts[1])
    for layout in CATALOGUE.log_layouts:
        row = int.from_bytes(layout.pack(tuple(facts)), "little")
        read = [row >> offset & (1 << FACTS[fact].bits) - 1 for offset, fact in zip(layout.offsets[1:], layout.facts[1:], strict=True)]
        assert read == [facts[fact] for fact in layout.facts[1:]]
        assert row & (1 << 64) - 1 == facts[0]
        assert at_ms_of(layout.pack(tuple(facts))) == facts[1]


def test_warming_needs_nothing_and_leaves_nothing() -> None:
    warm(CATALOGUE)
