"""`holdfast dead-letters`: lists what could not be applied, and sends mended records back to where they came from."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import msgspec

from schemas.avro import checked, decode, encode
from schemas.catalogue import VERSIONS
from schemas.dead_letter import DeadLetter
from schemas.errors import InvalidRecord, SettingsError, UnreadableBytes
from schemas.record import Record
from schemas.topics import DEAD_LETTERS, TOPICS, Topic
from streams.bus import KafkaBus, patient, read_topic
from streams.settings import Settings


def dead_letters(argv: list[str], settings: Settings) -> int:
    """`holdfast dead-letters [--json] [--code C]` and `holdfast dead-letters resend ID [--value-file F | --set field=value ...]`.

    Status 0; 1 where the letter is not there or the mended record is still not valid.
    """
    args = _parser().parse_args(argv)
    return _resend(args, settings) if args.what == "resend" else _list(args, settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast dead-letters", description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    parser.add_argument("--code", help="only letters with this code")
    resend = parser.add_subparsers(dest="what").add_parser("resend", help="send a mended record back to its topic")
    resend.add_argument("id", help="the dead letter's id")
    mended = resend.add_mutually_exclusive_group()
    mended.add_argument("--value-file", type=Path, help="the mended record: JSON, or the bytes of the wire format")
    mended.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field (JSON, or text); a.b for a nested one")
    return parser


def letters(settings: Settings) -> Iterator[DeadLetter]:
    """Every dead letter in the log, once. What is none is said on stderr."""
    seen: set[str] = set()
    for batch in read_topic(settings, DEAD_LETTERS):
        for message in batch:
            try:
                letter = decode(DeadLetter, message.value)
            except InvalidRecord as error:
                print(f"{DEAD_LETTERS.name}:{message.partition}:{message.offset} is no dead letter: {error}", file=sys.stderr)
                continue
            if letter.dead_letter_id not in seen:
                seen.add(letter.dead_letter_id)
                yield letter


def _list(args: argparse.Namespace, settings: Settings) -> int:
    found = [letter for letter in letters(settings) if args.code in (None, letter.code)]
    for letter in found:
        place = f"{letter.topic}:{letter.partition}:{letter.offset}"
        print(f"{letter.dead_letter_id}  {letter.app:<8} {place:<28} {letter.code:<22} {letter.field or '-'}: {letter.reason}")
    print(f"{len(found):,} dead letters")
    if args.json:
        print(msgspec.json.encode({"count": len(found), "letters": [_shown(letter) for letter in found]}).decode())
    return 0


def plain(topic: Topic, value: bytes | None) -> dict[str, Any]:
    """The fields in a message's value, valid or not. InvalidRecord if there is nothing to read."""
    try:
        magic, schema_id = struct.unpack_from(">bI", value or b"")
        written = next(v.schema for v in VERSIONS if magic == 0 and (v.schema_id, v.record) == (schema_id, topic.record.__name__))
        schema = json.loads(written, object_hook=lambda part: {k: v for k, v in part.items() if k != "logicalType"})
        fields = fastavro.schemaless_reader(io.BytesIO((value or b"")[5:]), schema, None)
    except Exception as error:
        raise UnreadableBytes("its bytes do not decode, so that only a whole new value can mend it (--value-file)") from error
    return fields if isinstance(fields, dict) else {}


def _shown(letter: DeadLetter) -> dict[str, Any]:
    """The letter as JSON; its value as a record where it decodes, and as base64 in any case; so is every field of bytes."""
    shown: dict[str, Any] = msgspec.to_builtins(letter)
    try:
        shown["record"] = msgspec.to_builtins(plain(topic_of(letter), letter.value))
    except InvalidRecord:
        shown["record"] = None
    return shown


def topic_of(letter: DeadLetter) -> Topic:
    """Where it came from. InvalidRecord if that is no topic: a letter is kept longer than a release."""
    found = next((topic for topic in TOPICS if topic.name == letter.topic), None)
    if found is None:
        raise InvalidRecord("topic", f"{letter.topic!r} is no topic of this release")
    return found


def _resend(args: argparse.Namespace, settings: Settings) -> int:
    letter = next((each for each in letters(settings) if each.dead_letter_id == args.id), None)
    if letter is None:
        print(f"there is no dead letter {args.id!r}", file=sys.stderr)
        return _ended(args, sent=False, code="unknown_dead_letter")
    try:
        topic = topic_of(letter)
        record = mended(letter, topic, args.value_file.read_bytes() if args.value_file else None, args.set)
    except InvalidRecord as error:
        print(f"still not valid: {error.field}: {error.reason} ({error.code})", file=sys.stderr)
        return _ended(args, sent=False, code=error.code, field=error.field, reason=error.reason)
    except OSError as error:
        raise SettingsError(f"--value-file: {error}") from error
    asyncio.run(_send(settings, topic, record))
    print(f"{args.id} was mended and sent to {topic.name}")
    return _ended(args, sent=True, topic=topic.name)


def _ended(args: argparse.Namespace, *, sent: bool, **more: str) -> int:
    """The exit status of a resend, told to programs too."""
    if args.json:
        print(json.dumps({"dead_letter_id": args.id, "sent": sent} | more))
    return 0 if sent else 1


def mended(letter: DeadLetter, topic: Topic, contents: bytes | None, changes: list[str]) -> Record:
    """The record to send: from a file's contents (JSON or wire bytes), or the letter's own with changes `field=value`.

    InvalidRecord if it is still not valid, or if the letter's own bytes do not decode.
    """
    if contents is None:
        fields = plain(topic, letter.value)
        for change in changes:
            _change(fields, change)
        return checked(lambda: msgspec.convert(fields, topic.record))
    if contents.lstrip()[:1] == b"{":
        return checked(lambda: msgspec.json.decode(contents, type=topic.record))
    return decode(topic.record, contents)


def _change(fields: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals:
        raise SettingsError(f"--set {change}: not FIELD=VALUE")
    *parents, name = path.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise SettingsError(f"--set {change}: {parent} has no fields")
    try:
        fields[name] = msgspec.json.decode(text)
    except msgspec.DecodeError:
        fields[name] = text


async def _send(settings: Settings, topic: Topic, record: Record) -> None:
    bus = KafkaBus(patient(settings))
    try:
        await bus.tell(topic, str(getattr(record, topic.key)), encode(record))
    finally:
        await bus.close()
