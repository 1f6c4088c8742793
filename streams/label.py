"""`holdfast label`: tells the log what turned out to be true of a payment (a chargeback, an analyst's verdict), or of each row of a file.

A file is CSV; its header names fields of `schemas/label.py`, with `learned_at` and `transacted_at` (ISO 8601) for the times. A label's id is derived
from what it says, so that a file that is told twice says nothing new. Nothing is told of a file with a bad row.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
from collections.abc import Mapping
from pathlib import Path

import msgspec

from schemas.avro import checked, encode
from schemas.errors import InvalidRecord, SettingsError
from schemas.identity import derived_id
from schemas.label import Label, LabelSource
from schemas.topics import LABELS
from streams.bus import KafkaBus, patient
from streams.clock import clock_ms
from streams.mapping import TimeRule, moment_ms
from streams.settings import Settings

UTC = TimeRule(zone="UTC")
COLUMNS = ("transaction_id", "account_id", "fraud", "fraud_kind", "learned_at", "source", "transacted_at", "merchant_id", "terminal_id")
NEEDED = ("transaction_id", "account_id", "fraud", "source")
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def label_of(row: Mapping[str, str | None], now_ms: int) -> Label:
    """The label that a row of texts says; without `learned_at` it was learned now. InvalidRecord names the field."""
    said = {name: text for name, text in row.items() if text}
    for name in NEEDED:
        if name not in said:
            raise InvalidRecord(name, "is missing")
    learned_ms = moment_ms(said["learned_at"], UTC, "learned_at") if "learned_at" in said else now_ms
    if learned_ms > now_ms:
        raise InvalidRecord("learned_at", "is yet to come")
    if said["fraud"].lower() not in TRUTHS:
        raise InvalidRecord("fraud", f"{said['fraud']!r} is neither true nor false")
    if said["source"] not in list(LabelSource):
        raise InvalidRecord("source", f"{said['source']!r} is none of {', '.join(LabelSource)}")
    fraud = TRUTHS[said["fraud"].lower()]
    fields = {
        "label_id": derived_id("lbl", said["transaction_id"], said["source"], str(fraud), said.get("fraud_kind", ""), str(learned_ms)),
        "transaction_id": said["transaction_id"],
        "account_id": said["account_id"],
        "fraud": fraud,
        "fraud_kind": said.get("fraud_kind"),
        "learned_at_ms": learned_ms,
        "source": said["source"],
        "transacted_at_ms": moment_ms(said["transacted_at"], UTC, "transacted_at") if "transacted_at" in said else None,
        "merchant_id": said.get("merchant_id"),
        "terminal_id": said.get("terminal_id"),
    }
    return checked(lambda: msgspec.convert(fields, Label))


def labels_in(path: Path, now_ms: int) -> list[Label]:
    """The labels of a file. SettingsError names the first row and field that is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            header = rows.fieldnames or ()
            if unknown := sorted(set(header) - set(COLUMNS)):
                raise SettingsError(f"{path}: unknown column {unknown[0]!r}; there are {', '.join(COLUMNS)}")
            if twice := [name for name in COLUMNS if header.count(name) > 1]:
                raise SettingsError(f"{path}: column {twice[0]!r} stands there twice")
            if missing := [name for name in NEEDED if name not in header]:
                raise SettingsError(f"{path}: column {missing[0]!r} is missing")
            return [_of_row(row, number, path, now_ms) for number, row in enumerate(rows, 1)]
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error


def _of_row(row: Mapping[str, str | None], number: int, path: Path, now_ms: int) -> Label:
    try:
        if None in row:
            raise InvalidRecord("row", "has more cells than the header")
        return label_of(row, now_ms)
    except InvalidRecord as error:
        raise SettingsError(f"{path}: row {number}: {error}") from None


async def _told(settings: Settings, labels: list[Label]) -> None:
    bus = KafkaBus(patient(settings))
    try:
        await asyncio.gather(*(bus.tell(LABELS, label.account_id, encode(label)) for label in labels))
    finally:
        await bus.close()


def command(argv: list[str], settings: Settings) -> int:
    """`holdfast label TRANSACTION --account A (--fraud KIND | --honest) --source WHO`, or `holdfast label --file FILE`."""
    parser = argparse.ArgumentParser(prog="holdfast label", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("transaction", nargs="?", help="id of the transaction")
    parser.add_argument("--account", help="its account")
    verdict = parser.add_mutually_exclusive_group()
    verdict.add_argument("--fraud", nargs="?", const="", metavar="KIND", help="it was fraud, of this kind if known")
    verdict.add_argument("--honest", action="store_true", help="it was not")
    parser.add_argument("--source", choices=list(LabelSource), help="who says so")
    parser.add_argument("--learned", metavar="ISO8601", help="when it was learned (default: now)")
    parser.add_argument("--file", type=Path, metavar="CSV", help="a label in each row")
    args = parser.parse_args(argv)
    if (args.file is None) == (args.transaction is None):
        raise SettingsError("give either a transaction or --file")
    if args.learned == "":
        raise SettingsError("--learned: '' is not a time")
    if args.file is not None:
        if beside := [f"--{name}" for name in ("account", "fraud", "honest", "source", "learned") if getattr(args, name) not in (None, False)]:
            raise SettingsError(f"--file: each of its rows says {', '.join(beside)} itself")
        labels = labels_in(args.file, clock_ms())
    elif args.fraud is None and not args.honest:
        raise SettingsError("say --fraud or --honest")
    else:
        said = {"transaction_id": args.transaction, "account_id": args.account, "source": args.source, "learned_at": args.learned}
        labels = [label_of(said | {"fraud": str(not args.honest), "fraud_kind": args.fraud}, clock_ms())]
    asyncio.run(_told(settings, labels))
    print(f"{len(labels)} told: {labels[0].label_id if len(labels) == 1 else LABELS.name}")
    return 0
