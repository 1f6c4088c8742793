"""Slots: where a key lives, how commands are split by them, and how their replies are one answer again."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot as redis_py_key_slot

from features.slots import SLOTS, Way, joined, key_slot, owners, pieces, to_repeat, unmarked, way


@given(st.binary(max_size=40) | st.text("{}ab", max_size=9).map(str.encode))
def test_a_key_lives_where_redis_py_says(key: bytes) -> None:
    assert key_slot(key) == redis_py_key_slot(key)


@pytest.mark.parametrize(("key", "slot"), [("123456789", 0x31C3), ("foo", 12182), ("a{foo}b", 12182), ("{foo}{bar}", 12182), ("", 0)])
def test_a_key_lives_where_the_specification_says(key: str, slot: int) -> None:
    assert key_slot(key) == key_slot(key.encode()) == slot


KEYS = st.integers(0, 9).map("k{}".format)


@given(st.dictionaries(KEYS, st.binary(max_size=3)), st.lists(st.lists(KEYS, min_size=1) | KEYS))
def test_pieces_answer_together_as_the_commands_would(contents: dict[str, bytes], asked: list[Any]) -> None:
    commands = [("MGET", *keys) if isinstance(keys, list) else (b"GET", keys) for keys in asked]
    parts = pieces(commands)
    assert all(len(part.command) == 2 and part.slot == key_slot(part.command[1]) for part in parts)
    replies = [[contents.get(part.command[1])] if part.command[0] == "MGET" else contents.get(part.command[1]) for part in parts]
    plain = [[contents.get(key) for key in keys] if isinstance(keys, list) else contents.get(keys) for keys in asked]
    assert joined(commands, parts, replies) == plain


def test_a_script_goes_to_its_first_key_and_a_command_without_a_key_to_every_node() -> None:
    parts = pieces([("EVALSHA", "sha", 2, "foo", "a{foo}", "value"), (b"SCRIPT", b"LOAD", b"return 1"), ("INFO",)])
    assert [part.slot for part in parts] == [12182, None, None]


def test_a_mark_that_is_read_is_that_of_each_slot_that_the_call_touches() -> None:
    commands = [("SET", "foo", 1), ("MGET", b"whole", "bar", "a{foo}"), ("EXISTS", b"whole:moves")]
    parts = pieces(commands, [7])
    touched = sorted({key_slot("foo"), key_slot("bar")})
    assert [part.slot for part in parts if part.is_mark] == touched * 2
    assert all(key_slot(part.command[1]) == part.slot for part in parts)
    assert len({part.command[1] for part in parts}) == 7
    assert joined(commands, parts, [b"OK", [b"1"], [b"1"], [b"b"], [b"f"], 1, 1]) == [b"OK", [b"1", b"b", b"f"], 1]
    replies = [b"OK", [b"1"], [None], [b"b"], [b"f"], 0, 1]
    assert joined(commands, parts, replies) == [b"OK", [None, b"b", b"f"], 0]
    assert unmarked(parts, replies) == {touched[0]: True, touched[1]: False}
    assert [part.slot for part in pieces([("EXISTS", b"whole")], [7, 9])] == [7, 9]


def test_a_mark_that_is_written_is_written_in_every_slot() -> None:
    for command in (("SET", b"whole", 1), ("EVAL", b"script", 2, b"building", b"whole", b"token")):
        parts = pieces([command])
        assert [part.slot for part in parts] == list(range(SLOTS))
        first = 3 if command[0] == "EVAL" else 1
        assert all({key_slot(key) for key in part.command[first : first + 2] if b"{" in str(key).encode()} == {part.slot} for part in parts)
        assert joined([command], parts, [1] * SLOTS) == [1]
        assert joined([command], parts, [1] * 99 + [0] + [1] * (SLOTS - 100)) == [0]


def test_a_mark_behind_a_scripts_first_key_is_that_of_its_slot() -> None:
    (part,) = pieces([(b"EVALSHA", b"sha", b"2", b"book:foo", b"whole", b"whole")])
    book, mark, argument = part.command[3:]
    assert (book, argument, key_slot(mark)) == (b"book:foo", b"whole", key_slot(b"book:foo"))


def test_an_error_of_one_piece_stands_for_all_of_its_command() -> None:
    error = hiredis.ReplyError("ERR no")
    commands = [("MGET", "a", "b"), ("GET", "a")]
    assert joined(commands, pieces(commands), [[b"1"], error, b"1"]) == [error, b"1"]


def test_what_was_refused_is_sent_again_with_the_reads_of_its_key_behind_it_and_nothing_else() -> None:
    parts = pieces([("GET", "a"), ("APPEND", "a", 1), ("APPEND", "b", 1), ("MGET", "a", "b"), ("EXPIRE", "a", 1), ("GET", "a")])
    replies: list[Any] = [b"0", hiredis.ReplyError("MOVED 1 h:1"), 1, [b"0"], [b"1"], 1, b"0"]
    assert to_repeat(parts, replies, range(7)) == [1, 3, 6]
    replies[1] = hiredis.ReplyError("WRONGTYPE no")
    assert to_repeat(parts, replies, range(7)) == []


def test_refusals_say_the_way() -> None:
    asked = ("10.0.0.1", 7000)
    assert way(Exception("MOVED 3999 10.0.0.2:7001"), asked) == Way(("10.0.0.2", 7001), False)
    assert way(Exception("ASK 3999 ::1:7001"), asked) == Way(("::1", 7001), True)
    assert way(Exception("MOVED 3999 :7001"), asked) == Way(("10.0.0.1", 7001), False)
    assert way(Exception("TRYAGAIN Multiple keys request during rehashing of slot"), asked) == Way(None, False)


def test_the_map_names_the_master_of_each_slot() -> None:
    reply = [[0, 99, [b"a", 1, b"id"], [b"r", 9, b"id"]], [100, SLOTS - 2, [b"", 2, b"id"]]]
    found = owners(reply, ("asked", 5))
    assert [found[0], found[99], found[100], found[-2], found[-1]] == [("a", 1), ("a", 1), ("asked", 2), ("asked", 2), None]
    assert len(found) == SLOTS
