"""Reads Avro that was written by the reader's own schema: one loop over the fields, in half of fastavro's time.

It says None for whatever it does not take at once (bytes that are cut, other encodings of the same value): fastavro is asked then,
and its word stands. So this knows the plain case only, and an error is told in one way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

Reader = Callable[[bytes, int], tuple[Any, int]]
"""Content and place -> the value there and the place after it."""
_DOUBLE = struct.Struct("<d").unpack_from
_STRING = "string"


class _Odd(Exception):
    """Not the plain case."""


def plain(read: Reader, content: bytes) -> Any:
    """The value that fills these bytes, records as dicts without the fields that are null by default; None if it is not the plain case."""
    try:
        value, end = read(content, 0)
    except (_Odd, IndexError, UnicodeDecodeError, struct.error):
        return None
    return value if end == len(content) else None


def reader_of(schema: Any, named: dict[str, Reader] | None = None) -> Reader:
    """What reads a value of this parsed Avro schema, of the kinds that records have."""
    named = {} if named is None else named
    if isinstance(schema, str):
        return _PRIMITIVES.get(schema) or named[schema]
    if isinstance(schema, list):
        return _nullable(reader_of(schema[1], named))
    if schema["type"] == "array":
        return _array(reader_of(schema["items"], named))
    if schema["type"] == "record":
        named[schema["name"]] = read = _record(schema["fields"], named)
        return read
    return reader_of(schema["type"], named)


def _long(content: bytes, at: int) -> tuple[int, int]:
    byte = content[at]
    rest, shift = byte & 127, 7
    while byte > 127:
        at += 1
        byte = content[at]
        rest |= (byte & 127) << shift
        shift += 7
    if rest >> 63:
        raise _Odd
    return (rest >> 1) ^ -(rest & 1), at + 1


def _bytes(content: bytes, at: int) -> tuple[bytes, int]:
    size, at = _long(content, at)
    if size < 0:
        raise _Odd
    return content[at : at + size], at + size


def _string(content: bytes, at: int) -> tuple[str, int]:
    value, at = _bytes(content, at)
    return value.decode(), at


def _double(content: bytes, at: int) -> tuple[float, int]:
    return _DOUBLE(content, at)[0], at + 8


def _boolean(content: bytes, at: int) -> tuple[bool, int]:
    if content[at] > 1:
        raise _Odd
    return content[at] == 1, at + 1


_PRIMITIVES: dict[str, Reader] = {"long": _long, "double": _double, "string": _string, "bytes": _bytes, "boolean": _boolean}


def _nullable(read: Reader) -> Reader:
    def read_some(content: bytes, at: int) -> tuple[Any, int]:
        if content[at] == 0:
            return None, at + 1
        if content[at] != 2:
            raise _Odd
        return read(content, at + 1)

    return read_some


def _array(read: Reader) -> Reader:
    def read_all(content: bytes, at: int) -> tuple[list[Any], int]:
        values: list[Any] = []
        while content[at]:
            count, at = _long(content, at)
            if count < 0:
                raise _Odd
            for _ in range(count):
                value, at = read(content, at)
                values.append(value)
        return values, at + 1

    return read_all


def _record(fields: list[Any], named: dict[str, Reader]) -> Reader:
    """A record as a dict. Short strings and nulls, which most fields are, are read here: a call for each costs more than the reading."""
    rows = [(field["name"], *_kind(field), reader_of(field["type"], named)) for field in fields]

    def read(content: bytes, at: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        for name, skips, text, read_value in rows:
            byte = content[at]
            if skips and byte == 0:
                at += 1
                continue
            if text:
                begin = at + text
                size = content[begin - 1]
                if (byte == 2 or text == 1) and not size & 129:  # even: not negative; below 128: the length is this byte alone
                    at = begin + (size >> 1)
                    values[name] = content[begin:at].decode()
                    continue
            values[name], at = read_value(content, at)
        return values, at

    return read


def _kind(field: Any) -> tuple[bool, int]:
    """Whether null is left out (it is the default), and for a string how many bytes precede its characters: branch and length."""
    kind = field["type"]
    some = isinstance(kind, list)
    text = (kind[1] if some else kind) == _STRING
    return some and field.get("default", 0) is None, (2 if some else 1) if text else 0
