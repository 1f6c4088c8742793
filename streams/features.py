"""`holdfast features`: the catalogue as a table, and one row with its meaning."""

from __future__ import annotations

import argparse
import sys

from features.catalogue import CATALOGUE, Catalogue
from streams.settings import Settings


def table(catalogue: Catalogue) -> str:
    """The catalogue as a Markdown table."""
    lines = ["| feature | catches | reason code | what it says |", "| --- | --- | --- | --- |"]
    lines += [f"| `{row.name}` | {row.catches} | `{row.reason}` | {row.why} |" for row in catalogue.rows]
    return "\n".join(lines)


def explained(catalogue: Catalogue, name: str) -> str:
    """One row, with the expression that it is. KeyError if there is no such feature."""
    row = catalogue.rows[catalogue.index[name]]
    lines = [
        row.name,
        f"  {row.why}",
        f"  catches      {row.catches}",
        f"  reason code  {row.reason} ({row.suspicious} values are suspicious)",
        f"  column       {catalogue.index[name]} of {catalogue.catalogue_id}",
        f"  expression   {row.shape.expression}",
    ]
    return "\n".join(lines)


def command(argv: list[str], settings: Settings) -> int:
    """`holdfast features list | explain NAME`."""
    parser = argparse.ArgumentParser(prog="holdfast features", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="the whole table")
    actions.add_parser("explain", help="one row").add_argument("name")
    args = parser.parse_args(argv)
    if args.action == "list":
        print(table(CATALOGUE))
        print(f"\n{len(CATALOGUE.rows)} features, catalogue {CATALOGUE.catalogue_id}, logs of {', '.join(CATALOGUE.logs)}")
        return 0
    if args.name not in CATALOGUE.index:
        print(f"holdfast features explain: no feature {args.name!r}; `holdfast features list` names them all", file=sys.stderr)
        return 2
    print(explained(CATALOGUE, args.name))
    return 0
