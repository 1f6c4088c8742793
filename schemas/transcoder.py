"""From MessagePack to Avro and back, compiled. msgspec makes MessagePack of a record, and a validated record of that, in compiled code too,
so that between a record and its message nothing is interpreted. `holdfast bench wire` measures it beside fastavro.

Each byte of the Avro is fastavro's (a test says so). What is read is the plain case alone, as it is written here; whatever else (bytes that are
cut, other encodings of the same value) is left to fastavro, whose word stands, so that an error is told in one way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
Array = np.ndarray[Any, np.dtype[Any]]
LONG, DOUBLE, STRING, BYTES, BOOLEAN, ARRAY, RECORD = range(7)
_PRIMITIVES = {"long": LONG, "double": DOUBLE, "string": STRING, "bytes": BYTES, "boolean": BOOLEAN}
WRONG, ROOM = -1, -2
"""In place of a length: it is not the plain case; there is not room enough."""
GROWTH = 10
"""Bytes of Avro, at most, that one of MessagePack becomes: a branch, and a float that was given as a small whole number."""
DEPTH = 16
"""Arrays and records inside each other, at most."""
WIDEST = 16
"""More bytes than a number, or what precedes a text, takes in either format."""
NIL, FALSE, TRUE, _DOUBLE, _INT64 = 0xC0, 0xC2, 0xC3, 0xCB, 0xD3
_STR8, _BIN8, _FLOAT, _UINT8, _INT8, _ARRAY16, MAP_16 = 0xD9, 0xC4, 0xCA, 0xCC, 0xD0, 0xDC, 0xDE


def compiled(function: F) -> F:
    """The function, compiled when it is first called and kept on disk."""
    return cast(F, numba.njit(cache=True)(function))


class Plan(NamedTuple):
    """A schema for the compiled code: `codes` (int64) has at each value's place its kind, whether it may be null, and of an array the place of
    its items, of a record how many fields it has and of each its place and where its name (a MessagePack text) lies in `names` (uint8)."""

    codes: Array
    names: Array


def plan_of(schema: Any) -> Plan:
    """The plan of a parsed Avro schema, of the kinds that records have."""
    codes, names, named = list[int](), bytearray(), dict[str, Any]()

    def put(schema: Any, nullable: bool = False) -> int:
        """Puts a value's lines behind the others; their place."""
        if isinstance(schema, list):
            return put(schema[1], nullable=True)
        if isinstance(schema, str) and schema not in _PRIMITIVES:
            return put(named[schema], nullable)
        place = len(codes)
        if isinstance(schema, str):
            codes.extend((_PRIMITIVES[schema], nullable))
        elif schema["type"] == "array":
            codes.extend((ARRAY, nullable, 0))
            codes[place + 2] = put(schema["items"])
        elif schema["type"] == "record":
            named[schema["name"]] = schema
            codes.extend((RECORD, nullable, len(schema["fields"])))
            codes.extend([0] * 3 * len(schema["fields"]))
            for number, field in enumerate(schema["fields"]):
                name, line = msgspec.msgpack.encode(field["name"]), place + 3 + 3 * number
                codes[line + 1 : line + 3] = len(names), len(names) + len(name)
                names.extend(name)
                codes[line] = put(field["type"])
        else:
            return put(schema["type"], nullable)
        return place

    put(schema)
    return Plan(np.array(codes, np.int64), np.frombuffer(bytes(names), np.uint8))


@compiled
def _copied(out: Array, to: int, source: Array, at: int, count: int) -> int:
    """Copies bytes; where they end."""
    for byte in range(count):
        out[to + byte] = source[at + byte]
    return to + count


@compiled
def _turned(out: Array, to: int, source: Array, at: int) -> int:
    """Copies eight bytes from the last to the first; where they end."""
    for byte in range(8):
        out[to + byte] = source[at + 7 - byte]
    return to + 8


@compiled
def _put_whole(out: Array, to: int, number: int, width: int) -> int:
    """Writes a whole number of so many bytes, highest first; where it ends."""
    for byte in range(width):
        out[to + byte] = number >> 8 * (width - 1 - byte) & 255
    return to + width


@compiled
def _whole(source: Array, at: int, width: int) -> int:
    """The number without a sign of so many bytes, highest first."""
    number = 0
    for byte in range(width):
        number = number << 8 | source[at + byte]
    return number


@compiled
def _put_long(out: Array, to: int, number: int) -> int:
    """Writes an Avro long: zigzag, then seven bits a byte, lowest first (Avro specification, binary encoding); where it ends."""
    rest = number << 1 ^ number >> 63
    while rest & ~127:
        out[to], rest, to = rest & 127 | 128, rest >> 7 & (1 << 57) - 1, to + 1
    out[to] = rest
    return to + 1


@compiled
def _long(source: Array, at: int, end: int) -> tuple[int, int]:
    """An Avro long, and where it ends; WRONG if it is not there, or longer than those of 63 bits."""
    rest, shift = 0, 0
    while at < end and shift < 63:
        byte = source[at]
        at += 1
        rest |= (byte & 127) << shift
        if byte < 128:
            return rest >> 1 ^ -(rest & 1), at
        shift += 7
    return 0, WRONG


@compiled
def given(source: Array, at: int) -> tuple[int, int]:
    """A whole number in MessagePack, and where it ends; WRONG if it is none, or none of 64 bits with a sign."""
    byte = _whole(source, at, 1)
    at += 1
    if byte < 128:
        return byte, at
    if byte >= 224:
        return byte - 256, at
    width = 1 << (byte & 3)
    if _UINT8 <= byte < _UINT8 + 4:
        number = _whole(source, at, width)
        return (number, at + width) if number >= 0 else (0, WRONG)
    if _INT8 <= byte < _INT8 + 4:
        number, unused = _whole(source, at, width), 64 - 8 * width
        return number << unused >> unused, at + width
    return 0, WRONG


@compiled
def counted(source: Array, at: int, short: int, most: int, long: int, width: int) -> tuple[int, int]:
    """How long a text, array or map in MessagePack is, and where that is said; WRONG if it is none.

    A short one says it in its first byte, `short` and the length, which is `most` at most. A longer one begins with `long`, `long` + 1 or so,
    and has it in `width` bytes or twice as many with each.
    """
    byte = _whole(source, at, 1)
    if short <= byte <= short + most:
        return byte - short, at + 1
    if long <= byte < long + 3:
        wide = width << (byte - long)
        if wide <= 4:
            return _whole(source, at + 1, wide), at + 1 + wide
    return 0, WRONG


@compiled
def passed_over(source: Array, at: int) -> int:
    """Where the value in MessagePack that begins there ends."""
    left = 1
    while left > 0:
        byte = _whole(source, at, 1)
        left, at = left - 1, at + 1
        if 0x80 <= byte < 0x90:
            left += 2 * (byte & 15)
        elif 0x90 <= byte < 0xA0:
            left += byte & 15
        elif 0xA0 <= byte < 0xC0:
            at += byte & 31
        elif _STR8 <= byte < _STR8 + 3 or _BIN8 <= byte < _BIN8 + 3:
            width = 1 << (byte - (_STR8 if byte >= _STR8 else _BIN8))
            at += width + _whole(source, at, width)
        elif _FLOAT <= byte <= _DOUBLE:
            at += 4 << (byte - _FLOAT)
        elif _UINT8 <= byte < _INT8 + 4:
            at += 1 << (byte & 3)
        elif _ARRAY16 <= byte < MAP_16 + 2:
            width = 2 << (byte & 1)
            left += _whole(source, at, width) * (1 if byte < MAP_16 else 2)
            at += width
    return int(at)


@compiled
def _to_avro(codes: Array, source: Array, at: int, out: Array, to: int) -> tuple[int, int]:
    """Writes as Avro, from `to` on, the value in MessagePack that begins at `at`; where both end. WRONG if it is not of the schema."""
    frames = np.empty((DEPTH, 2), np.int64)  # of the arrays and records at hand: place in `codes`, and how many values are left
    depth, node = 0, 0
    while True:
        kind, null = codes[node], source[at] == NIL
        if codes[node + 1]:
            out[to], to = 0 if null else 2, to + 1
        elif null:
            return WRONG, WRONG
        if null:
            at += 1
        elif kind == LONG:
            number, at = given(source, at)
            if at < 0:
                return WRONG, WRONG
            to = _put_long(out, to, number)
        elif kind == DOUBLE:
            if source[at] == _DOUBLE:
                to, at = _turned(out, to, source, at + 1), at + 9
            else:
                number, at = given(source, at)
                if at < 0:
                    return WRONG, WRONG
                one = np.array([np.float64(number)])
                to = _copied(out, to, one.view(np.uint8), 0, 8)
        elif kind in (STRING, BYTES):
            size, at = counted(source, at, 0xA0, 31, _STR8, 1) if kind == STRING else counted(source, at, _BIN8, -1, _BIN8, 1)
            if at < 0:
                return WRONG, WRONG
            to, at = _copied(out, _put_long(out, to, size), source, at, size), at + size
        elif kind == BOOLEAN:
            if source[at] != TRUE and source[at] != FALSE:
                return WRONG, WRONG
            out[to], to, at = source[at] == TRUE, to + 1, at + 1
        else:
            size, at = counted(source, at, 0x90, 15, _ARRAY16, 2) if kind == ARRAY else counted(source, at, 0x80, 15, MAP_16, 2)
            if at < 0 or depth == DEPTH or (kind == RECORD and size != codes[node + 2]):
                return WRONG, WRONG
            frames[depth, 0], frames[depth, 1], depth = node, size, depth + 1
            if kind == ARRAY and size:
                to = _put_long(out, to, size)
        while depth and not frames[depth - 1, 1]:
            depth -= 1
            if codes[frames[depth, 0]] == ARRAY:
                out[to], to = 0, to + 1
        if not depth:
            return at, to
        over, left = frames[depth - 1, 0], frames[depth - 1, 1]
        frames[depth - 1, 1] = left - 1
        if codes[over] == ARRAY:
            node = codes[over + 2]
        else:  # its fields are in the schema's order, and each begins with its name
            line = over + 3 + 3 * (codes[over + 2] - left)
            at, node = at + codes[line + 2] - codes[line + 1], codes[line]


@compiled
def to_avro(codes: Array, source: Array, out: Array) -> int:
    """Writes as Avro the value that is MessagePack in `source`, as msgspec writes it; how many bytes. WRONG if it is not of the schema.

    `out` has room for GROWTH bytes of each, and of one more.
    """
    return _to_avro(codes, source, 0, out, 0)[1]


@compiled
def all_to_avro(codes: Array, source: Array, out: Array, ends: Array) -> bool:
    """As `to_avro`, of each of the values that are an array in `source`; where each ends, into `ends`. Whether all are of the schema."""
    count, at = counted(source, 0, 0x90, 15, _ARRAY16, 2)
    to = 0
    for number in range(count):
        at, to = _to_avro(codes, source, at, out, to)
        if to < 0:
            return False
        ends[number] = to
    return True


@compiled
def to_messagepack(codes: Array, names: Array, source: Array, out: Array) -> int:
    """Writes as MessagePack, with every field of each record, the value that fills `source` as Avro; how many bytes.

    WRONG if that is not the plain case; ROOM if `out` is too short for it.
    """
    frames = np.empty((DEPTH, 2), np.int64)
    depth, node, at, to, end, room = 0, 0, 0, 0, source.size, out.size
    while True:
        kind, null = codes[node], False
        if room - to < WIDEST:
            return ROOM
        if codes[node + 1]:
            if at >= end or source[at] & ~2:
                return WRONG
            null, at = source[at] == 0, at + 1
        if null:
            out[to], to = NIL, to + 1
        elif kind == LONG:
            number, at = _long(source, at, end)
            if at < 0:
                return WRONG
            out[to] = _INT64
            to = _put_whole(out, to + 1, number, 8)
        elif kind == DOUBLE:
            if end - at < 8:
                return WRONG
            out[to] = _DOUBLE
            to, at = _turned(out, to + 1, source, at), at + 8
        elif kind in (STRING, BYTES):
            size, at = _long(source, at, end)
            if at < 0 or not 0 <= size <= end - at:
                return WRONG
            if room - to < size + WIDEST:
                return ROOM
            out[to] = _STR8 + 2 if kind == STRING else _BIN8 + 2
            to, at = _copied(out, _put_whole(out, to + 1, size, 4), source, at, size), at + size
        elif kind == BOOLEAN:
            if at >= end or source[at] > 1:
                return WRONG
            out[to], to, at = TRUE if source[at] else FALSE, to + 1, at + 1
        elif kind == ARRAY:
            size, at = _long(source, at, end)
            if at < 0 or not 0 <= size <= end - at or depth == DEPTH:
                return WRONG
            out[to] = _ARRAY16 + 1
            to = _put_whole(out, to + 1, size, 4)
            if size:
                frames[depth, 0], frames[depth, 1], depth = node, size, depth + 1
        else:
            if depth == DEPTH:
                return WRONG
            out[to] = MAP_16
            to = _put_whole(out, to + 1, codes[node + 2], 2)
            frames[depth, 0], frames[depth, 1], depth = node, codes[node + 2], depth + 1
        while depth and not frames[depth - 1, 1]:
            depth -= 1
            if codes[frames[depth, 0]] == ARRAY:
                if at >= end or source[at]:
                    return WRONG
                at += 1
        if not depth:
            return int(to) if at == end else WRONG
        over, left = frames[depth - 1, 0], frames[depth - 1, 1]
        frames[depth - 1, 1] = left - 1
        if codes[over] == ARRAY:
            node = codes[over + 2]
        else:
            line = over + 3 + 3 * (codes[over + 2] - left)
            begin, size = codes[line + 1], codes[line + 2] - codes[line + 1]
            if room - to < size + WIDEST:
                return ROOM
            to, node = _copied(out, to, names, begin, size), codes[line]
