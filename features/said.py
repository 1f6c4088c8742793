"""What transactions say of themselves, compiled: facts, measures and the tokens of their entities, from the MessagePack that msgspec makes of them.

Everything compiled is in this file, as in `features/kernel.py`, whose helpers it uses beside those of `schemas/transcoder.py`.
"""

from __future__ import annotations

import numpy as np

from features.kernel import Array, compiled, inlined, load64, store64
from schemas.transcoder import MAP_16, NIL, TRUE, counted, given, passed_over

BUILT_ON = {"features/kernel.py": "90a598fff4e4", "schemas/transcoder.py": "b2a3df4d308e"}
"""The files of which compiled code is a part of this one's, as they are: numba keeps that until this very file changes. A test says what to write."""
NOT_GIVEN = -1
"""In place of where a leaf lies."""
FACT_LINE = 4  # how, leaf, and what else the rule needs: two numbers
IDENTITY, TIME, WORD, AMOUNT, HASHED, DIGITS, LETTERS, DEGREES, PARTS, ANSWER, STEPS = range(11)
"""How a fact comes from a leaf: see `_fact`."""
_U32, _FLOAT = (1 << 32) - 1, 0xCB
_BLOCK = 128
_IV = np.array(
    [
        *(0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1),
        *(0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179),
    ],
    np.uint64,
).view(np.int64)
"""BLAKE2b's initial state (RFC 7693, 2.6), and the order in which its twelve rounds take the words of a block (2.7)."""
_SIGMA = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    ],
    np.int64,
)
_SIZE = 4
"""Bytes of the hash (`schemas.identity.hash32`)."""


@inlined
def _turned(value: int, by: int) -> int:
    """The word's bits, turned to the right."""
    return ((value >> by) & ((1 << (64 - by)) - 1)) | (value << (64 - by))


@inlined
def _mixed(a: int, b: int, c: int, d: int, x: int, y: int) -> tuple[int, int, int, int]:
    """BLAKE2b's mixing function G (RFC 7693, 3.1)."""
    a += b + x
    d = _turned(d ^ a, 32)
    c += d
    b = _turned(b ^ c, 24)
    a += b + y
    d = _turned(d ^ a, 16)
    c += d
    return a, _turned(b ^ c, 63), c, d


@compiled
def _compressed(state: Array, block: Array, count: int, last: bool) -> None:
    """BLAKE2b's compression function F (RFC 7693, 3.2): takes a block into the state; `count` bytes have come so far."""
    a0, a1, a2, a3, b0, b1, b2, b3 = state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7]
    c0, c1, c2, c3, d0, d1, d2, d3 = _IV[0], _IV[1], _IV[2], _IV[3], _IV[4] ^ count, _IV[5], _IV[6], _IV[7]
    if last:
        d2 = ~d2
    for number in range(12):
        m = _SIGMA[number]
        a0, b0, c0, d0 = _mixed(a0, b0, c0, d0, block[m[0]], block[m[1]])
        a1, b1, c1, d1 = _mixed(a1, b1, c1, d1, block[m[2]], block[m[3]])
        a2, b2, c2, d2 = _mixed(a2, b2, c2, d2, block[m[4]], block[m[5]])
        a3, b3, c3, d3 = _mixed(a3, b3, c3, d3, block[m[6]], block[m[7]])
        a0, b1, c2, d3 = _mixed(a0, b1, c2, d3, block[m[8]], block[m[9]])
        a1, b2, c3, d0 = _mixed(a1, b2, c3, d0, block[m[10]], block[m[11]])
        a2, b3, c0, d1 = _mixed(a2, b3, c0, d1, block[m[12]], block[m[13]])
        a3, b0, c1, d2 = _mixed(a3, b0, c1, d2, block[m[14]], block[m[15]])
    state[0], state[1], state[2], state[3] = state[0] ^ a0 ^ c0, state[1] ^ a1 ^ c1, state[2] ^ a2 ^ c2, state[3] ^ a3 ^ c3
    state[4], state[5], state[6], state[7] = state[4] ^ b0 ^ d0, state[5] ^ b1 ^ d1, state[6] ^ b2 ^ d2, state[7] ^ b3 ^ d3


@compiled
def hash_of(source: Array, at: int, size: int, state: Array, block: Array) -> int:
    """`schemas.identity.hash32` of so many bytes. `state` and `block`: room for 8 and 16 words."""
    for number in range(8):
        state[number] = _IV[number]
    state[0] ^= 0x01010000 | _SIZE
    begin = 0
    while True:
        part = min(size - begin, _BLOCK)
        for number in range(part // 8):
            block[number] = load64(source, at + begin + 8 * number)
        for number in range(part // 8, 16):
            block[number] = 0
        for place in range(part // 8 * 8, part):
            block[place // 8] |= source[at + begin + place] << (8 * (place & 7))
        begin += part
        _compressed(state, block, begin, begin == size)
        if begin == size:
            found: int = state[0] & _U32
            return found if found != 0 else 1


@inlined
def _text(source: Array, at: int) -> tuple[int, int]:
    """Where a text's bytes begin, and how many they are."""
    size, begin = counted(source, at, 0xA0, 31, 0xD9, 1)
    return begin, size


@inlined
def _number(source: Array, at: int) -> float:
    """A number that is a float, or was given as a whole one."""
    if source[at] == _FLOAT:
        bits = 0
        for byte in range(8):
            bits = bits << 8 | source[at + 1 + byte]
        return float(np.int64(bits).view(np.float64))
    return float(given(source, at)[0])


@inlined
def _worded(source: Array, at: int, words: Array, texts: Array) -> int:
    """The code of the word that lies there, of `words` (code, begin and length in `texts` of each); 0 if it is none of them."""
    begin, size = _text(source, at)
    for number in range(words.shape[0]):
        if words[number, 2] == size:
            same = True
            for byte in range(size):
                same = same and texts[words[number, 1] + byte] == source[begin + byte]
            if same:
                return int(words[number, 0])
    return 0


@inlined
def _fact(rules: Array, fact: int, source: Array, leaves: Array, words: Array, texts: Array, state: Array, block: Array) -> int:
    """One fact. The rules and what else they need:

    IDENTITY (leaf of the time, its most): the text's hash below the low half of the time. TIME, AMOUNT (most; of an amount, the leaf that counts
    in place of this one where it is given). WORD: its code. HASHED (bits). DIGITS: the number, plus one. LETTERS: five bits each. DEGREES (what is
    added, steps a degree): rounded half to even, plus one. PARTS (how many leaves): a byte of each one's hash. ANSWER: 1 no, 2 yes. STEPS (steps,
    most): rounded half to even, 1 at least, 0 for NaN.
    """
    how, leaf, first, second = rules[fact, 0], rules[fact, 1], rules[fact, 2], rules[fact, 3]
    at = leaves[leaf]
    if how == PARTS:
        parts = 0
        for part in range(first):
            if leaves[leaf + part] != NOT_GIVEN:
                begin, size = _text(source, leaves[leaf + part])
                parts |= (hash_of(source, begin, size, state, block) % 255 + 1) << 8 * part
        return parts
    if how == AMOUNT and leaves[second] != NOT_GIVEN:
        at = leaves[second]
    if at == NOT_GIVEN:
        return 0
    if how == IDENTITY:
        begin, size = _text(source, at)
        return int(min(given(source, leaves[first])[0], second) << 32 | hash_of(source, begin, size, state, block))
    if how == HASHED:
        begin, size = _text(source, at)
        found = hash_of(source, begin, size, state, block) & ((1 << first) - 1)
        return found if found != 0 else 1
    if how in (TIME, AMOUNT):
        return int(min(given(source, at)[0], first))
    if how == WORD:
        return _worded(source, at, words, texts)
    if how == DIGITS:
        begin, size = _text(source, at)
        number = 0
        for digit in range(size):
            number = number * 10 + source[begin + digit] - 48
        return number + 1
    if how == LETTERS:
        begin, size = _text(source, at)
        letters = 0
        for letter in range(size):
            letters = letters << 5 | (source[begin + letter] - 64)
        return letters
    if how == DEGREES:
        return int(np.rint((_number(source, at) + first) * second)) + 1
    if how == ANSWER:
        return 2 if source[at] == TRUE else 1
    value = _number(source, at) * first
    if np.isnan(value):
        return 0
    return 1 if value < 1.0 else int(second) if value > second else int(np.rint(value))


@inlined
def _beyond(source: Array, at: int) -> int:
    """Where the value that begins there ends: mostly it is nothing, or a short text."""
    byte = source[at]
    if byte == NIL:
        return at + 1
    if 0xA0 <= byte < 0xC0:
        return int(at + 1 + (byte & 31))
    return int(passed_over(source, at))


@inlined
def _found(source: Array, at: int, fields: Array, leaves: Array) -> int:
    """Notes where each leaf of a transaction that begins there lies; where the transaction ends. `fields`: see `said`."""
    at, leaf, field = at + (3 if source[at] == MAP_16 else 1), 0, 0
    while field < fields.shape[0]:
        at, inside, field = at + fields[field, 0], fields[field, 1], field + 1
        if inside == 0:
            leaves[leaf] = at if source[at] != NIL else NOT_GIVEN
            at, leaf = _beyond(source, at), leaf + 1
        elif source[at] != NIL:
            at += 1
        else:
            leaves[leaf : leaf + inside] = NOT_GIVEN
            at, leaf, field = at + 1, leaf + inside, field + inside
    return int(at)


@compiled
def said(
    fields: Array, rules: Array, measures: Array, words: Array, texts: Array, source: Array, tokens: Array, owns: Array, stride: int, spans: Array
) -> None:
    """Of the transactions that are a MessagePack array in `source`: facts and measures into `owns`, those of one each `stride` bytes, and where the
    text of each of the leaves `tokens` lies into `spans` (int64[n, tokens, 2]: begin and length, NOT_GIVEN as the length of what is not given).

    `fields` (int64[fields, 2]): of each in its order how long its name is in MessagePack, and how many leaves it has if it is a record, else 0: it is
    one itself. Those of a record (at most 15) follow. `rules` (int64[facts, FACT_LINE]): how each fact comes from a leaf.
    `measures`: their leaves. `words`: codes, and where those words lie in `texts`.
    """
    state, block = np.empty(8, np.int64), np.empty(16, np.int64)
    leaves = np.empty(fields.shape[0], np.int64)
    count, at = counted(source, 0, 0x90, 15, 0xDC, 2)
    for one in range(count):
        at = _found(source, at, fields, leaves)
        to = one * stride
        for fact in range(rules.shape[0]):
            store64(owns, to, _fact(rules, fact, source, leaves, words, texts, state, block))
            to += 8
        for measure in range(measures.size):
            value = np.nan
            if leaves[measures[measure]] != NOT_GIVEN:
                value = _number(source, leaves[measures[measure]])
            store64(owns, to, int(np.float64(value).view(np.int64)))
            to += 8
        for token in range(tokens.size):
            spans[one, token, 0], spans[one, token, 1] = 0, NOT_GIVEN
            if leaves[tokens[token]] != NOT_GIVEN:
                spans[one, token, 0], spans[one, token, 1] = _text(source, leaves[tokens[token]])
