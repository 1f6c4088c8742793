"""`holdfast models compare`, `holdfast policy compare`: what challengers and shadows said of payments, beside what was decided.

`found = compared(Path("archive"), Kind.MODEL, inventory)`, `print("\\n".join(lines(found, inventory)))`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from models.backtest import Effect, Payments
from models.compare import Arm, Beside, Share, arm, beside
from models.governance import Inventory
from models.policy import SEVERITY
from models.registry import Registry
from schemas.errors import SettingsError
from schemas.governance import Kind, State
from schemas.topics import DECISIONS, SECOND_OPINIONS
from streams.backtest import AUTHENTICATED, DECIDED, days_of, missing_of, payments_of
from streams.mapping import readable
from streams.settings import Settings
from streams.training_set import DAY_MS, decisions_in


class Compared(NamedTuple):
    """By id: who decided for which cards, and what who did not decide would have done."""

    arms: Mapping[str, Arm]
    beside: Mapping[str, Beside]


def compared(archive: Path, kind: Kind, since_days: float | None = None) -> Compared:
    """All that decided in the archive and all that gave an opinion there, with the labels known by now. SettingsError without an archive."""
    with readable(archive):
        table, opinions = _decided(archive, since_days), _opinions(archive, kind)
        payments, deciders = payments_of(table, (), archive, None), table[f"{kind}_id"].to_pylist()
    ids = np.array(deciders, dtype=object)
    arms = {name: arm(payments.decided[ids == name], payments.frauds[ids == name]) for name in sorted(set(deciders))}
    rows = pc.index_in(opinions["decision_id"], table["decision_id"].combine_chunks())
    opinions, at = opinions.filter(pc.is_valid(rows)), np.asarray(pc.drop_null(rows).to_numpy(), np.int64)
    names = np.array(opinions["item_id"].to_pylist(), dtype=object)
    would = np.array([SEVERITY[outcome] for outcome in opinions["outcome"].to_pylist()], np.int64)
    scores = np.asarray(opinions["score"].cast(pa.float64()).to_numpy(), np.float64)
    found = {}
    for name in sorted(set(names)):
        own = names == name
        found[str(name)] = beside(_rows(payments, at[own]), would[own], scores[own])
    return Compared(arms, found)


def _decided(archive: Path, since_days: float | None) -> pa.Table:
    """What models and policies decided: where the stand-in answered, the outcome says nothing of them."""
    place = archive / DECISIONS.name
    if not place.is_dir():
        raise SettingsError(f"{archive}: holds no archive of decisions")
    table = decisions_in(place, AUTHENTICATED, ()).to_table(columns=DECIDED)
    if since_days is not None and len(table):
        table = table.filter(pc.greater(table["at_ms"], pc.max(table["at_ms"]).as_py() - int(since_days * DAY_MS)))
    _, stood_in = missing_of(table["degradations"])
    return table.filter(pa.array(~stood_in))


def _opinions(archive: Path, kind: Kind) -> pa.Table:
    """A row for each opinion on a model, or on a policy."""
    place = archive / SECOND_OPINIONS.name
    fields = ("kind", "item_id", "score", "outcome")
    if not any(place.glob("day=*/part-*.parquet")):
        return pa.table({name: pa.array([], pa.int64() if name == "score" else pa.string()) for name in ("decision_id", *fields)})
    table = ds.dataset(place, format="parquet", partitioning=None).to_table(columns=["decision_id", "opinions"]).combine_chunks()
    said = pc.list_flatten(table["opinions"]).combine_chunks()
    ids = pc.take(table["decision_id"], pc.list_parent_indices(table["opinions"]))
    flat = pa.table({"decision_id": ids, **{name: pc.struct_field(said, name) for name in fields}})
    return flat.filter(pc.equal(flat["kind"], str(kind)))


def _rows(payments: Payments, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Payments:
    """Some of the payments; no policy is asked about them again, so that nothing is kept of what was missing."""
    return Payments(
        names=(),
        vectors=payments.vectors[rows],
        scores=payments.scores[rows],
        missing=payments.missing,
        decided=payments.decided[rows],
        at_ms=payments.at_ms[rows],
        amounts_minor=payments.amounts_minor[rows],
        currencies=payments.currencies[rows],
        currency_names=payments.currency_names,
        frauds=payments.frauds[rows],
        authentications=payments.authentications[rows],
        unasked=payments.unasked[rows],
    )


# Commands.


def add_compare(actions: Any) -> None:
    """The parser of the command."""
    parser = actions.add_parser("compare", help="challengers and shadows beside what was decided, from the archive")
    parser.add_argument("--since", type=days_of, metavar="30d", help="payments of so many days (d) or hours (h) back from the last (default: all)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the archive (default: that of the settings)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")


def compare(args: argparse.Namespace, kind: Kind, registry: Registry, settings: Settings) -> int:
    """Says it."""
    found = compared(args.data or settings.archive_dir, kind, args.since)
    print("\n".join(lines(found, registry.inventory())))
    if args.json:
        print(json.dumps(figures_of(found)))
    return 0


def lines(found: Compared, inventory: Inventory) -> list[str]:
    """For people: first who decided, then what the others would have done instead."""
    said = []
    for name, own in found.arms.items():
        said.append(f"{name} ({_standing(inventory, name)}) decided {own.decisions:,} payments")
        said.append(
            f"  reviewed {_percent(own.reviewed)}, blocked {_percent(own.blocked)}; known frauds {own.frauds:,}, missed {own.frauds_missed:,}"
        )
    for name, each in found.beside.items():
        said.append(
            f"{name} ({_standing(inventory, name)}) judged {each.payments:,} payments that others decided, {each.frauds:,} of them known frauds"
        )
        said += [f"  {what:<9} {_effect(effect)}" for what, effect in (("as told", each.told), ("would be", each.would))]
        both = each.overlap
        said.append(f"  alerts of both: {both.both:,}; of those who decided alone: {both.only_live:,}; its own alone: {both.only_candidate:,}")
        if each.ranking:
            more, low, high = each.ranking["against_champion"], each.ranking["against_champion_low"], each.ranking["against_champion_high"]
            said.append(f"  average precision: {more:+.4f} ({low:+.4f} to {high:+.4f}) against those who decided")
    return said if found.beside else [*said, "no challenger or shadow has judged any payment"]


def _standing(inventory: Inventory, name: str) -> str:
    item = inventory.items.get(name)
    if item is None:
        return "of the house"
    return f"{item.state}, {item.share:.1%} of the cards" if item.state is State.CHALLENGER else str(item.state)


def _percent(share: Share) -> str:
    return f"{share.value:.2%} ({share.low:.2%} to {share.high:.2%})"


def _effect(effect: Effect) -> str:
    outcomes = ", ".join(f"{name} {count:,}" for name, count in effect.outcomes.items())
    stopped = f"frauds blocked {effect.fraud_blocked:,}, reviewed {effect.fraud_reviewed:,}, declined {effect.fraud_declined:,}"
    frauds = f"{stopped}, missed {effect.fraud_missed:,}"
    return f"{outcomes}; {frauds}; honest blocked {effect.honest_blocked:,}, reviewed {effect.honest_reviewed:,}"


def figures_of(found: Compared) -> dict[str, Any]:
    """The same for programs."""

    def plain(effect: Effect) -> dict[str, Any]:
        return effect._asdict() | {"money": {currency: amounts._asdict() for currency, amounts in effect.money.items()}}

    arms = {name: own._asdict() | {"reviewed": own.reviewed._asdict(), "blocked": own.blocked._asdict()} for name, own in found.arms.items()}
    rest = {
        name: each._asdict()
        | {"told": plain(each.told), "would": plain(each.would), "overlap": each.overlap._asdict(), "ranking": dict(each.ranking)}
        for name, each in found.beside.items()
    }
    return {"decided": arms, "beside": rest}
