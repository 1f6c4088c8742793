"""Redis's protocol (RESP2) for recalls, compiled: one buffer of commands from one of rows, and one buffer for the kernels from one of replies.

All else goes through hiredis. Everything compiled is in this file, as in `features/kernel.py`, whose helpers it uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from features.kernel import KIND_FACT, L_SIZE, LOG_AT, LOG_LINE, LOGS, PROFILES, Array, compiled, inlined, kept_up, load64, row_into, store64
from features.said import said

BUILT_ON = {"features/kernel.py": "90a598fff4e4", "features/said.py": "5f8e4befc581"}
"""The files of which compiled code is a part of this one's, as they are: numba keeps that until this very file changes. A test says what to write."""
raw_memcpy: Callable[..., Any] = cast(Any, cgutils).raw_memcpy
NOT_ASKED, NOTHING = -2, -1
"""In place of a length: what was not asked, and what Redis does not have."""
INCOMPLETE, WRONG = -1, -2
"""In place of a position: not all of the reply has come; it is no reply."""
_CR, _LF, _MINUS, _PLUS, _COLON, _DOLLAR, _STAR = 13, 10, 45, 43, 58, 36, 42
_ROOM = 16
"""Bytes of a header such as `$1234567890` with its line end, at most."""
_APPEND = np.frombuffer(b"*3\r\n$6\r\nAPPEND\r\n", np.uint8)
_MGET = np.frombuffer(b"$4\r\nMGET\r\n", np.uint8)
_GOLDEN, _MIX_30, _MIX_27 = (number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""splitmix64's constants, as whole numbers with a sign."""


def _copy(typing_context: Any, to: Any, at: Any, source: Any, begin: Any, count: Any) -> Any:
    """`to[at : at + count] = source[begin : begin + count]`, of two arrays of bytes, for places that are known to be inside."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = context.make_array(signature.args[0])(context, builder, args[0])
        given = context.make_array(signature.args[2])(context, builder, args[2])
        raw_memcpy(builder, builder.gep(target.data, [args[1]]), builder.gep(given.data, [args[3]]), args[4], 1)
        return context.get_dummy_value()

    return types.void(to, types.int64, source, types.int64, types.int64), generate


copy: Callable[[Array, int, Array, int, int], None] = cast(Any, intrinsic(_copy))


@inlined
def _number(buffer: Array, at: int, end: int) -> tuple[int, int]:
    """The whole number that is written from `at` on, and where the next line begins; INCOMPLETE or WRONG in place of that."""
    value, negative, digits = 0, False, 0
    if at < end and buffer[at] == _MINUS:
        negative, at = True, at + 1
    while at < end and 48 <= buffer[at] <= 57 and digits < 18:
        value, at, digits = value * 10 + (buffer[at] - 48), at + 1, digits + 1
    if at + 2 > end:
        return 0, INCOMPLETE
    if digits == 0 or buffer[at] != _CR or buffer[at + 1] != _LF:
        return 0, WRONG
    return -value if negative else value, at + 2


@compiled
def after(buffer: Array, at: int, end: int) -> int:
    """Where the reply that begins at `at` ends, of the bytes before `end`; INCOMPLETE or WRONG."""
    left = 1
    while left > 0:
        if at >= end:
            return INCOMPLETE
        kind = buffer[at]
        if kind in (_DOLLAR, _STAR):
            count, at = _number(buffer, at + 1, end)
            if at < 0:
                return at
            if kind == _STAR:
                left += max(count, 0)
            elif count >= 0:
                at += count + 2
        elif kind in (_PLUS, _MINUS, _COLON):
            at += 1
            while at < end and buffer[at] != _LF:
                at += 1
            at += 1
        else:
            return WRONG
        if at > end:
            return INCOMPLETE
        left -= 1
    return int(at)


@compiled
def skipped(buffer: Array, at: int, end: int, replies: int) -> tuple[int, int]:
    """Goes on over whole replies, so many at most: where the next begins, and how many of them have not come; WRONG in place of that."""
    while replies > 0:
        beyond = after(buffer, at, end)
        if beyond == WRONG:
            return at, WRONG
        if beyond == INCOMPLETE:
            break
        at, replies = beyond, replies - 1
    return at, replies


@inlined
def _written(out: Array, at: int, kind: int, number: int) -> int:
    """Writes `$12` or `*12` and the end of the line; where that ends."""
    digits, rest = 1, number
    while rest >= 10:
        digits, rest = digits + 1, rest // 10
    out[at] = kind
    for digit in range(digits, 0, -1):
        out[at + digit], number = 48 + number % 10, number // 10
    out[at + digits + 1], out[at + digits + 2] = _CR, _LF
    return at + digits + 3


@inlined
def _worded(out: Array, at: int, source: Array, begin: int, count: int) -> int:
    """Writes a word of a command; where that ends."""
    at = _written(out, at, _DOLLAR, count)
    copy(out, at, source, begin, count)
    out[at + count], out[at + count + 1] = _CR, _LF
    return at + count + 2


@inlined
def _named(out: Array, at: int, prefixes: Array, ends: Array, memory: int, words: Array, begin: int, count: int) -> int:
    """Writes a memory's key as a word: the prefix of its kind, and the entity's token."""
    before = ends[memory - 1] if memory > 0 else 0
    size = ends[memory] - before
    at = _written(out, at, _DOLLAR, size + count)
    copy(out, at, prefixes, before, size)
    copy(out, at + size, words, begin, count)
    out[at + size + count], out[at + size + count + 1] = _CR, _LF
    return int(at + size + count + 2)


@inlined
def derived_identity(identity: int, of: int) -> int:
    """`fact.derived_identity`."""
    z = identity + of * _GOLDEN
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX_30
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX_27
    low = (z ^ ((z >> 31) & ((1 << 33) - 1))) & ((1 << 32) - 1)
    return (identity >> 32) << 32 | (low if low != 0 else 1)


@compiled
def spoken(
    fields: Array,
    rules: Array,
    measures: Array,
    words: Array,
    texts: Array,
    source: Array,
    leaves: Array,
    owns: Array,
    stride: int,
    derived: int,
    appends: Array,
    tokens: Array,
) -> None:
    """As `said.said`, of rows of the kind `derived`, which say something of transactions (0: of these themselves).

    Only the logs in which a transaction leaves rows have those.
    """
    said(fields, rules, measures, words, texts, source, leaves, owns, stride, tokens)
    if derived == 0:
        return
    for own in range(0, owns.size, stride):
        store64(owns, own, derived_identity(load64(owns, own), derived))
        store64(owns, own + 8 * KIND_FACT, derived)
    for one in range(tokens.shape[0]):
        for memory in range(tokens.shape[1]):
            if memory >= appends.size or not appends[memory]:
                tokens[one, memory, 1] = NOT_ASKED


def room_for(rows: int, row_bytes: int, prefix_bytes: int, memories: int, reads: int, said: int, aside: int) -> int:
    """Bytes that the commands of so many recalls take at most: `row_bytes` and `prefix_bytes` are of all memories, `aside` of all recalls, and so is
    `said`, once for each memory that takes its token from one field."""
    each = row_bytes + 2 * prefix_bytes + memories * (_APPEND.size + 8 * _ROOM) + _MGET.size + (2 + 2 * reads) * _ROOM
    return rows * each + 2 * said + aside + 8


@compiled
def asked(
    plan: Array,
    fields: Array,
    rules: Array,
    measures: Array,
    kinds: Array,
    texts: Array,
    source: Array,
    leaves: Array,
    owns: Array,
    stride: int,
    derived: int,
    appends: Array,
    tokens: Array,
    prefixes: Array,
    ends: Array,
    words: Array,
    lengths: Array,
    out: Array,
) -> tuple[int, int]:
    """Writes the commands of recalls into `out` (`room_for` bytes); how many bytes, and how many replies they have. Of each, what is written aside,
    the appends to its logs, and one MGET of what is read aside and all its memories. `owns` and `tokens` (where the token of each memory lies in
    `source`) are made first: see `spoken`.

    `lengths` (int64[n, 2 + reads]): how many commands are written aside, and the lengths of what lies in `words` side by side: those commands,
    written already, and the keys that are read aside; NOT_ASKED where there is none. `prefixes` are what keys begin with, one kind of memory ending
    at each of `ends`. `appends` says of each log whether it gets a row.
    """
    spoken(fields, rules, measures, kinds, texts, source, leaves, owns, stride, derived, appends, tokens)
    at, word, replies = 0, 0, 0
    for one in range(lengths.shape[0]):
        copy(out, at, words, word, lengths[one, 1])
        at, word = at + lengths[one, 1], word + lengths[one, 1]
        keys, replies = 0, replies + lengths[one, 0] + 1
        for place in range(2, lengths.shape[1]):
            keys += 1 if lengths[one, place] >= 0 else 0
        for memory in range(tokens.shape[1]):
            begin, size = tokens[one, memory]
            if size < 0:
                continue
            keys += 1
            if memory < plan[LOGS] and appends[memory]:
                line = plan[LOG_AT] + memory * LOG_LINE
                row = plan[line + L_SIZE]
                copy(out, at, _APPEND, 0, _APPEND.size)
                at = _named(out, at + _APPEND.size, prefixes, ends, memory, source, begin, size)
                at = _written(out, at, _DOLLAR, row)
                out[at : at + row + 8] = 0
                row_into(plan, line, owns, one * stride, out, at)
                out[at + row], out[at + row + 1] = _CR, _LF
                at, replies = at + row + 2, replies + 1
        at = _written(out, at, _STAR, 1 + keys)
        copy(out, at, _MGET, 0, _MGET.size)
        at += _MGET.size
        for place in range(2, lengths.shape[1]):
            if lengths[one, place] >= 0:
                at = _worded(out, at, words, word, lengths[one, place])
                word += lengths[one, place]
        for memory in range(tokens.shape[1]):
            if tokens[one, memory, 1] >= 0:
                at = _named(out, at, prefixes, ends, memory, source, tokens[one, memory, 0], tokens[one, memory, 1])
    return at, replies


@compiled
def answered(replies: Array, lengths: Array, tokens: Array, appends: Array, absent: Array, spans: Array, ends: Array) -> bool:
    """Finds in the replies to `asked` what was read: its begin and length into `spans` (int64[n, reads + memories, 2]; NOTHING for what
    Redis does not have, NOT_ASKED). `ends` (int64[n, 2]): where the replies to what was written aside begin and end.

    False if anything is not as it is when all goes well: an error, a log that is not there after an append, or one reply less.
    `absent` is what a memory is that Redis does not have: NOTHING, a length of 0, or WRONG.
    """
    at, end, reads = 0, replies.size, lengths.shape[1] - 2
    for one in range(lengths.shape[0]):
        ends[one, 0] = at
        at, left = skipped(replies, at, end, lengths[one, 0])
        ends[one, 1] = at
        if left != 0:
            return False
        keys = 0
        for place in range(reads):
            keys += 1 if lengths[one, 2 + place] >= 0 else 0
        for memory in range(tokens.shape[1]):
            if tokens[one, memory, 1] >= 0:
                keys += 1
                if memory < appends.size and appends[memory]:
                    if at >= end or replies[at] != _COLON:
                        return False
                    at = after(replies, at, end)
                    if at < 0:
                        return False
        if at >= end or replies[at] != _STAR:
            return False
        count, at = _number(replies, at + 1, end)
        if at < 0 or count != keys:
            return False
        for place in range(spans.shape[1]):
            spans[one, place, 0], spans[one, place, 1] = 0, NOT_ASKED
            if (lengths[one, 2 + place] if place < reads else tokens[one, place - reads, 1]) < 0:
                continue
            if at >= end or replies[at] != _DOLLAR:
                return False
            length, at = _number(replies, at + 1, end)
            if at < 0 or at + max(length, 0) > end:
                return False
            spans[one, place, 0] = at
            if length >= 0:
                at += length + 2
            elif place >= reads:
                length = absent[place - reads]
                if length == WRONG:
                    return False
            spans[one, place, 1] = length
    return bool(at == end)


@compiled
def laid_out(replies: Array, owns: Array, stride: int, reads: int, spans: Array, out: Array, begins: Array) -> int:
    """Writes the kernels' buffer of these transactions (`engine.section` of each, and eight bytes more); its length. `begins` (int64[n + 1]):
    where each begins, and the last ends."""
    memories, at = spans.shape[1] - reads, 0
    for one in range(spans.shape[0]):
        begins[one] = at
        copy(out, at, owns, one * stride, stride)
        words = at + stride
        at = words + 8 * memories
        for memory in range(memories):
            begin, length = spans[one, reads + memory, 0], spans[one, reads + memory, 1]
            store64(out, words + 8 * memory, max(length, -1))
            if length > 0:
                copy(out, at, replies, begin, length)
                at += length
    begins[spans.shape[0]] = at
    out[at : at + 8] = 0
    return int(at + 8)


@compiled
def found(
    plan: Array,
    replies: Array,
    owns: Array,
    stride: int,
    lengths: Array,
    tokens: Array,
    appends: Array,
    absent: Array,
    own: int,
    refresh_ms: int,
    rewritten: int,
    spans: Array,
    ends: Array,
    whole: Array,
    begins: Array,
    marks: Array,
) -> tuple[int, bool]:
    """Writes the kernels' buffer of what was `asked`; its length, 0 if replies are not as they are when all goes well: see `laid_out`, `answered`.

    `marks` (uint8[n, logs]) is what appends leave to do (`kernel.kept_up`); and whether there is any.
    """
    if not answered(replies, lengths, tokens, appends, absent, spans, ends):
        return 0, False
    size = laid_out(replies, owns, stride, lengths.shape[1] - 2, spans, whole, begins)
    kept_up(plan, whole, own, tokens.shape[1] - plan[LOGS] - plan[PROFILES], refresh_ms, rewritten, marks)
    for one in range(marks.shape[0]):
        for log in range(marks.shape[1]):
            if marks[one, log]:
                return size, True
    return size, False
