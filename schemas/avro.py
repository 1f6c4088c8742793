"""Wire format: Avro in the Confluent framing (magic byte 0, four-byte schema id), ids from the committed catalogue."""

from __future__ import annotations

import functools
import io
import json
import re
import struct
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import fastavro
import msgspec
import numpy as np

from schemas.catalogue import VERSIONS
from schemas.errors import InvalidRecord, UnknownSchema, UnreadableBytes
from schemas.record import Record, Word
from schemas.transcoder import GROWTH, ROOM, WRONG, Plan, all_to_avro, plan_of, to_avro, to_messagepack

R = TypeVar("R", bound=Record)
_FRAME = struct.Struct(">bI")
_ROOM = 512
"""Bytes that are mostly enough for the heads of a record's values in MessagePack."""
_PRIMITIVES: dict[object, str] = {int: "long", float: "double", str: "string", bool: "boolean", bytes: "bytes"}


def _avro_type(annotation: Any, seen: set[str]) -> Any:
    """The Avro type of a field's annotation."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [a for a in args if a is not type(None)]
        return ["null", _avro_type(inner, seen)]
    if origin is tuple:
        return {"type": "array", "items": _avro_type(args[0], seen)}
    if isinstance(annotation, type) and issubclass(annotation, Word):
        return "string"
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return _avro_record(annotation, seen)
    return _PRIMITIVES[annotation]


def _description(annotation: Any) -> str:
    """A field's `doc` text: with it the words of a closed list."""
    metas = typing.get_args(annotation)[1:]
    text = next(m.description for m in metas if isinstance(m, msgspec.Meta) and m.description)
    plain = typing.get_args(annotation)[0]
    words = [a for a in (plain, *typing.get_args(plain)) if isinstance(a, type) and issubclass(a, Word)]
    return text + "".join(f" (one of: {', '.join(words[0])})" for _ in words[:1])


def _default(value: Any) -> Any:
    """A field's default as JSON; Avro writes bytes as the string of those code points."""
    if isinstance(value, Word):
        return value.value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return list(value) if value == () else value


def _avro_record(record: type[Record], seen: set[str]) -> Any:
    """The Avro schema of a record, or its name where it was already spelled out."""
    if record.__name__ in seen:
        return f"holdfast.{record.__name__}"
    seen.add(record.__name__)
    hints = typing.get_type_hints(record, include_extras=True)
    fields = []
    for field in msgspec.structs.fields(record):
        kind = _avro_type(hints[field.encode_name], seen)
        if field.name.endswith("at_ms") or field.name.endswith("as_of_ms"):
            stamp = {"type": "long", "logicalType": "timestamp-millis"}
            kind = ["null", stamp] if isinstance(kind, list) else stamp
        row: dict[str, Any] = {"name": field.name, "type": kind, "doc": _description(hints[field.name])}
        if not field.required:
            row["default"] = _default(field.default)
        fields.append(row)
    text = (record.__doc__ or "").strip()
    return {"type": "record", "name": record.__name__, "namespace": "holdfast", "doc": text, "fields": fields}


def avro_schema(record: type[Record]) -> dict[str, Any]:
    """The Avro schema that a record's fields say, as JSON-ready dict."""
    schema: dict[str, Any] = _avro_record(record, set())
    return schema


def _without_logical_types(schema: Any) -> Any:
    """The same schema by which a timestamp stays a number: the bytes are the same, and nobody wants datetimes here."""
    if isinstance(schema, dict):
        return {k: _without_logical_types(v) for k, v in schema.items() if k not in ("logicalType", "doc")}
    if isinstance(schema, list):
        return [_without_logical_types(s) for s in schema]
    return schema


@functools.cache
def _written_by(schema_id: int) -> tuple[str, Any]:
    """Record name and parsed schema of a committed id."""
    for version in VERSIONS:
        if version.schema_id == schema_id:
            return version.record, fastavro.parse_schema(_without_logical_types(json.loads(version.schema)))
    raise UnknownSchema(f"schema id {schema_id} is not in the catalogue")


@functools.cache
def _newest(record: type[Record]) -> tuple[int, Any]:
    """Newest committed schema id of a record, and its parsed schema."""
    ids = [v.schema_id for v in VERSIONS if v.record == record.__name__]
    if not ids:
        raise UnknownSchema(f"record {record.__name__} is not in the catalogue")
    return max(ids), _written_by(max(ids))[1]


@functools.cache
def _plan(record: type[Record]) -> Plan:
    """How a record is written, and read where the newest schema wrote it."""
    return plan_of(_newest(record)[1])


def _as_pythons(value: Any) -> Any:
    """numpy's number as Python's; TypeError for what no record holds."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"no record holds a {type(value).__name__}")


_packed = msgspec.msgpack.Encoder(enc_hook=_as_pythons).encode


def messagepack_of(records: Record | Sequence[Record]) -> bytes:
    """A record, or several as an array, in MessagePack: each a map of all its fields, in their order."""
    return _packed(records)


@functools.cache
def _unpacked(record: type[R]) -> Callable[[Any], R]:
    """What makes a validated record of MessagePack."""
    return msgspec.msgpack.Decoder(record).decode


def body(record: Record) -> bytes:
    """The record in plain Avro, without a frame."""
    packed = np.frombuffer(messagepack_of(record), np.uint8)
    out = np.empty(GROWTH * (packed.size + 1), np.uint8)
    size = to_avro(_plan(type(record)).codes, packed, out)
    if size == WRONG:
        raise TypeError(f"what this {type(record).__name__} holds is not of its own schema: {record}")
    return out[:size].tobytes()


def bodies(records: Sequence[Record]) -> list[bytes]:
    """`body` of each of these records of one type."""
    if not records:
        return []
    packed = np.frombuffer(messagepack_of(records), np.uint8)
    out, ends = np.empty(GROWTH * (packed.size + 1), np.uint8), np.empty(len(records), np.int64)
    if not all_to_avro(_plan(type(records[0])).codes, packed, out, ends):
        return [body(record) for record in records]  # which says what is wrong
    content, last = out[: ends[-1]].tobytes(), ends.tolist()
    return [content[begin:end] for begin, end in zip((0, *last), last, strict=False)]


@functools.cache
def frame(record: type[Record]) -> bytes:
    """The five bytes that precede a record of this type."""
    return _FRAME.pack(0, _newest(record)[0])


def encode(record: Record) -> bytes:
    """The record as a message's value: frame and Avro."""
    return frame(type(record)) + body(record)


def decode(record: type[R], value: bytes | None) -> R:
    """The record in a message's value, validated. UnknownSchema, UnreadableBytes or InvalidRecord (names the field) if not."""
    if value is None:
        raise UnreadableBytes("the message has no value")
    if len(value) < _FRAME.size or value[0] != 0:
        raise UnknownSchema("not in the Confluent framing: magic byte 0 and a schema id")
    name, writer = _written_by(_FRAME.unpack_from(value)[1])
    if name != record.__name__:
        raise UnknownSchema(f"the schema id is of {name}, not of {record.__name__}")
    return from_body(record, value[_FRAME.size :], writer)


def from_body(record: type[R], content: bytes, writer: Any = None) -> R:
    """The record in plain Avro bytes (written by the newest schema, or by `writer`)."""
    _, reader = _newest(record)
    if writer is None or writer is reader:
        found = _plain(record, content)
        if found is not None:
            return found
    source = io.BytesIO(content)
    try:
        values = fastavro.schemaless_reader(source, writer or reader, None if writer in (None, reader) else reader)
    except Exception as error:
        raise UnreadableBytes(f"does not decode: {type(error).__name__}: {error}") from error
    if source.read(1):
        raise UnreadableBytes("bytes are left over after the record")
    return checked(lambda: msgspec.convert(values, record))


def _plain(record: type[R], content: bytes) -> R | None:
    """The record in these bytes of the newest schema; None if they are not as they are written here, or hold no valid record."""
    codes, names = _plan(record)
    source = np.frombuffer(content, np.uint8)
    size, room = ROOM, 2 * source.size + names.size + _ROOM
    while size == ROOM:
        out = np.empty(room, np.uint8)
        size, room = to_messagepack(codes, names, source, out), 2 * room
    if size == WRONG:
        return None
    try:
        found: R = _unpacked(record)(out[:size])
        return found
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


_SAID = re.compile(r"^(?:(?P<own>[a-z_]+): )?(?P<reason>.*?)(?: - at `\$\.?(?P<field>[^`]*)`)?$", re.DOTALL)
"""A message: the field that a record names which looks at its fields together (`currency: unknown ...`), the reason, and where it was."""
_NAMED = re.compile(r"(?:missing required|contains unknown) field `(?P<field>[^`]*)`")


def checked(convert: Callable[[], R]) -> R:
    """Runs a msgspec conversion; its error becomes an InvalidRecord that names the field."""
    try:
        return convert()
    except UnicodeDecodeError as error:
        raise InvalidRecord("body", f"is no UTF-8: {error.reason}", code="unreadable_json") from None
    except msgspec.ValidationError as error:
        raise _invalid(error) from error
    except msgspec.DecodeError as error:
        raise InvalidRecord("body", str(error), code="unreadable_json") from error


def _invalid(error: msgspec.ValidationError) -> InvalidRecord:
    """The error that names the field."""
    said = _SAID.match(str(error))
    assert said is not None, "any text is like this"
    named = _NAMED.search(str(error))
    parts = [said["field"], said["own"], named["field"] if named else None]
    field = ".".join(p for p in parts if p) or "value"
    code = "missing_field" if "missing required" in str(error) else "unknown_field" if named else "invalid_field"
    return InvalidRecord(field, said["reason"], code=code)
