"""`holdfast features`: the catalogue as a table, one row with its meaning, and what the memory of it takes in Redis."""

from __future__ import annotations

import argparse
import json
import sys

import msgspec
from redis.exceptions import RedisError

from features.catalogue import CATALOGUE, Catalogue
from features.meaning import OF_ALL, meaning
from schemas.errors import MemoryUnavailable, SettingsError
from streams.clock import clock_ms
from streams.settings import Settings
from streams.size import CARD_BYTES_MAX, CARD_EVENTS, ENTITIES_MAX, EVENTS_MAX, Sizes, card_bytes, client_of, filled_sizes, sizes_of
from streams.size import table as size_table


def table(catalogue: Catalogue) -> str:
    """The catalogue as a Markdown table."""
    lines = ["| feature | catches | reason code | what it says |", "| --- | --- | --- | --- |"]
    lines += [f"| `{row.name}` | {row.catches} | `{row.reason}` | {row.why} |" for row in catalogue.rows]
    return "\n".join(lines)


def explained(catalogue: Catalogue, name: str) -> str:
    """One row, with its exact meaning. KeyError if there is no such feature."""
    row = catalogue.rows[catalogue.index[name]]
    lines = [
        row.name,
        f"  {row.why}",
        f"  catches      {row.catches}",
        f"  reason code  {row.reason} ({row.suspicious} values are suspicious)",
        f"  column       {catalogue.index[name]} of {catalogue.catalogue_id}",
        f"  is           {meaning(row.shape.expression)}",
    ]
    return "\n".join(lines)


def command(argv: list[str], settings: Settings) -> int:
    """`holdfast features list | explain NAME | size`."""
    parser = argparse.ArgumentParser(prog="holdfast features", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="the whole table")
    actions.add_parser("explain", help="one row").add_argument("name")
    size = actions.add_parser("size", help="bytes, rows, trimming and expiry by kind of entity, in the running Redis or in one filled for it")
    size.add_argument("--sample", type=int, default=20_000, metavar="N", help="keys to look at, at most (default %(default)s)")
    size.add_argument("--entities", type=int, metavar="N", help="fill a Redis of its own with so many entities of each kind (default 10000)")
    size.add_argument("--events", type=int, metavar="E", help=f"events in each log of it (default {CARD_EVENTS})")
    size.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    if args.action == "size":
        return sizes(args, settings)
    if args.action == "list":
        print(table(CATALOGUE))
        print(f"\n{OF_ALL}\n\n{len(CATALOGUE.rows)} features, catalogue {CATALOGUE.catalogue_id}, logs of {', '.join(CATALOGUE.logs)}")
        return 0
    if args.name not in CATALOGUE.index:
        print(f"holdfast features explain: no feature {args.name!r}; `holdfast features list` names them all", file=sys.stderr)
        return 2
    print(f"{explained(CATALOGUE, args.name)}\n\n{OF_ALL}")
    return 0


def sizes(args: argparse.Namespace, settings: Settings) -> int:
    """What is measured. Status 1 if a card's log with `CARD_EVENTS` events was measured and takes more than it may."""
    asked = ((args.sample, None), (args.entities, ENTITIES_MAX), (args.events, EVENTS_MAX))
    if any(number is not None and (number < 1 or (most is not None and number > most)) for number, most in asked):
        raise SettingsError(f"--sample, --entities and --events are at least 1, --events at most {EVENTS_MAX:,}, --entities {ENTITIES_MAX:,}")
    filling = args.entities is not None or args.events is not None
    events = args.events or CARD_EVENTS
    if filling:
        found = filled_sizes(CATALOGUE, args.entities or 10_000, events, args.sample, lambda text: print(text, file=sys.stderr, flush=True))
    else:
        found = _running_sizes(args.sample, settings)
    print(size_table(found))
    taken = card_bytes(found) if filling and events == CARD_EVENTS else None
    if taken is not None:
        print(f"a card's log with {CARD_EVENTS} events: {taken:,.0f} bytes, {CARD_BYTES_MAX:,} at most")
    fits = taken is None or taken <= CARD_BYTES_MAX
    if args.json:
        print(json.dumps(msgspec.to_builtins(found) | {"card_bytes": taken, "card_bytes_max": CARD_BYTES_MAX, "fits": fits}))
    return 0 if fits else 1


def _running_sizes(sample: int, settings: Settings) -> Sizes:
    try:
        with client_of(settings) as redis:
            return sizes_of(redis, CATALOGUE, sample, clock_ms())
    except (RedisError, OSError) as error:
        raise MemoryUnavailable(f"Redis: {error}") from error
