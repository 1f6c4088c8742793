"""`holdfast keys`: who may ask over HTTP. A key is printed once, when it is made; a running `authorize` takes and forgets keys within seconds."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from schemas.errors import SettingsError
from streams.authorize.keys import CARD_RANGE, Grant, KeyFile, Scope, hash_of, new_key
from streams.clock import clock_ms
from streams.settings import Settings

HOUR_MS = 3_600_000


def command(argv: list[str], settings: Settings) -> int:
    """`holdfast keys create|list|rotate|revoke`: status 0, or 1 where no key has that name."""
    args = _parser().parse_args(argv)
    file, now_ms = KeyFile(settings.keys_dir), clock_ms()
    if args.what == "list":
        return _list(file, args.json)
    if args.what == "create":
        return _create(file, args, now_ms)
    done: str | bool | None = (
        file.remove(args.name) if args.what == "revoke" else file.rotate(args.name, now_ms + round(args.overlap_hours * HOUR_MS), now_ms)
    )
    if not done:
        print(f"no key is called {args.name!r}", file=sys.stderr)
        return 1
    print(done if isinstance(done, str) else f"revoked: {args.name}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast keys", description=__doc__)
    actions = parser.add_subparsers(dest="what", required=True)
    create = actions.add_parser("create", help="make a key and print it; only its hash is kept")
    create.add_argument("name")
    create.add_argument("--scope", action="append", choices=[str(scope) for scope in Scope], required=True, help="what it may do; may be repeated")
    create.add_argument("--bin", action="append", default=[], metavar="DIGITS", help="only cards whose number begins so; may be repeated")
    create.add_argument("--per-s", type=_number, default=0.0, metavar="N", help="requests a second at each process (default: no limit)")
    create.add_argument("--burst", type=int, default=1_000, metavar="N", help="requests at once, after a pause (default %(default)s)")
    create.add_argument("--days", type=_number, metavar="N", help="until when it is valid (default: until it is revoked)")
    actions.add_parser("list", help="every key, never the key itself").add_argument("--json", action="store_true", help="end with one JSON object")
    rotate = actions.add_parser("rotate", help="make and print another key of that name; those before it end after a while")
    rotate.add_argument("name")
    rotate.add_argument("--overlap-hours", type=_number, default=24.0, metavar="H", help="for how long both are valid (default %(default)s)")
    actions.add_parser("revoke", help="make every key of that name invalid").add_argument("name")
    return parser


def _number(text: str) -> float:
    """A number from 0 on; argparse.ArgumentTypeError for what is none, or has no end."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return number


def _create(file: KeyFile, args: argparse.Namespace, now_ms: int) -> int:
    if any(grant.name == args.name for grant in file.grants()):
        raise SettingsError(f"a key is called {args.name!r} already: rotate or revoke it")
    if not all(re.match(CARD_RANGE, digits) for digits in args.bin):
        raise SettingsError("--bin takes 1 to 6 digits: decisions keep no more of a card, so that captures could not be checked by more")
    if args.burst < 1 or not 1 <= len(args.name) <= 64:
        raise SettingsError("--burst takes 1 or more, and a name has 1 to 64 characters")
    key = new_key()
    scopes, until_ms = tuple(Scope(scope) for scope in args.scope), None if args.days is None else now_ms + round(args.days * 24 * HOUR_MS)
    limits: dict[str, Any] = {"per_s": args.per_s, "burst": args.burst, "made_ms": now_ms, "until_ms": until_ms}
    file.add(Grant(name=args.name, sha256=hash_of(key), scopes=scopes, bins=tuple(args.bin), **limits))
    print(key)
    return 0


def _list(file: KeyFile, as_json: bool) -> int:
    used = file.used()
    if as_json:
        rows = [{**_plain(grant), "used_ms": used.get(grant.sha256)} for grant in file.grants()]
        print(json.dumps({"keys": rows}))
        return 0
    table = Table(box=None, pad_edge=False)
    for column in ("name", "may", "cards", "a second", "made", "ends", "last used"):
        table.add_column(column, no_wrap=True)
    for grant in file.grants():
        rate = f"{grant.per_s:g}" if grant.per_s else ""
        times = [_when(at_ms) for at_ms in (grant.made_ms, grant.until_ms, used.get(grant.sha256))]
        table.add_row(grant.name, " ".join(grant.scopes), " ".join(grant.bins), rate, *times)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    return 0


def _plain(grant: Grant) -> dict[str, Any]:
    """The grant without its hash."""
    return {name: getattr(grant, name) for name in grant.__struct_fields__ if name != "sha256"}


def _when(at_ms: int | None) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")[:19] if at_ms else ""
