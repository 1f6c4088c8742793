"""The risk team's steps after `train`: register what was trained, promote it; and all steps in one where there is no model yet."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.catalogue import CATALOGUE
from models.document import document
from models.policy import Policy
from models.registry import OF_ANOTHER_RELEASE, Listed, Registry, save
from schemas.errors import ArtefactError
from schemas.governance import Act, Kind
from streams.backfill import Given, backfilled
from streams.clock import clock_ms
from streams.compare import add_compare, compare
from streams.folder import keys_of, with_kept_secrets
from streams.governance import (
    CHECKER,
    NEWEST,
    STARTER,
    TO_DECIDE,
    TRAINER,
    add_moves,
    add_signature,
    brought_up,
    described,
    done,
    found,
    gate_line,
    moved,
    print_moves,
    served_here,
    standing,
)
from streams.mapping import TokenKey, mapping_in
from streams.registry import registry_of
from streams.settings import Settings
from streams.simulate import simulated, written
from streams.training_set import training_set
from streams.warm import warming

if TYPE_CHECKING:
    from streams.train import Trained

FIRST_CUSTOMERS, FIRST_DAYS, FIRST_FRAUD_RATE, FIRST_SEED = 900, 60, 0.02, 20_260_101
"""The simulated history of the first model: large enough to learn each kind of fraud, small enough to be ready within seconds."""
Say = Callable[[str], None]


# Register, promote, list.


def register(argv: list[str], settings: Settings) -> int:
    """`holdfast register DIR --as PERSON`: checks a trained artefact, signs it and enters it into the registry as a draft; prints its id."""
    parser = argparse.ArgumentParser(prog="holdfast register", description=(register.__doc__ or "").splitlines()[0])
    parser.add_argument("artefact", type=Path, help="what `holdfast train` wrote")
    add_signature(parser, "trained")
    args = parser.parse_args(argv)
    registry = registry_of(settings)
    model_id = registry.register(args.artefact)
    if model_id not in registry.inventory().items:
        done(registry.move(Kind.MODEL, model_id, Act.REGISTER, args.by, args.why, clock_ms()))
    print(model_id)
    if args.json:
        print(json.dumps(described(registry.inventory(), model_id, clock_ms())))
    public = keys_of(with_kept_secrets(settings)).public.hex()
    print(f"services check it with HOLDFAST_MODEL_PUBLIC_KEY={public}", file=sys.stderr, flush=True)
    return 0


def promote(argv: list[str], settings: Settings) -> int:
    """`holdfast promote ID --as PERSON --why TEXT`: `holdfast models promote`."""
    return models(["promote", *argv], settings)


def models(argv: list[str], settings: Settings) -> int:
    """`holdfast models list|show|document|compare|validate|approve|promote|rollback|retire|challenge|shadow`: every model and its moves."""
    parser = argparse.ArgumentParser(prog="holdfast models", description=(models.__doc__ or "").splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="all of them, oldest first; `*` marks the one that decides")
    listing.add_argument("--json", action="store_true", help="end with one JSON object")
    show = actions.add_parser("show", help="one, with its gates and all that was done with it")
    show.add_argument("item_id", metavar="ID", help=f"the model's id, or `{NEWEST}`")
    show.add_argument("--json", action="store_true", help="end with one JSON object")
    paper = actions.add_parser("document", help="write the model document: one HTML file for supervisors, ready to print")
    paper.add_argument("item_id", metavar="ID", help=f"the model's id, or `{NEWEST}`")
    paper.add_argument("--out", type=Path, metavar="FILE", help="default: ID.html")
    add_compare(actions)
    add_moves(actions, Kind.MODEL)
    args = parser.parse_args(argv if argv[:1] and not argv[0].startswith("--json") else ["list", *argv])
    registry = registry_of(settings)
    if args.action == "list":
        return _list(registry, args.json)
    if args.action == "show":
        _show(registry, args.item_id, args.json)
    elif args.action == "compare":
        return compare(args, Kind.MODEL, registry, settings)
    elif args.action == "document":
        _write_document(registry, args.item_id, args.out)
    else:
        moved(args, Kind.MODEL, registry, settings, functools.partial(_served, registry))
    return 0


def _served(registry: Registry, act: Act, model_id: str) -> None:
    """ArtefactError where a model is to decide or to judge that reads what this release does not serve."""
    if act in TO_DECIDE | {Act.SHADOW}:
        served_here(registry.load(model_id))


def _list(registry: Registry, as_json: bool) -> int:
    """Prints every model; 1 if one of them is not sound."""
    listed, at_ms = registry.models(), clock_ms()
    for model in listed:
        print(f"{'*' if model.champion else ' '} {model.model_id}  {standing(model.item, at_ms)}; {model.fault or _said_of(model.card)}")
    if as_json:
        print(json.dumps({"models": [_listed(model, at_ms) for model in listed]}))
    return 1 if any(model.fault for model in listed) else 0


def _said_of(card: Mapping[str, Any]) -> str:
    figures, about = card["figures"], card["trained"]
    said = ", ".join(f"{name} {figures[name]:.3f}" for name in ("auc", "average_precision") if figures.get(name) is not None)
    return f"{about['rows']} rows, {about['frauds']} frauds; held out: {said}"


def _listed(model: Listed, at_ms: int) -> dict[str, Any]:
    """One model of the list, for programs."""
    item = model.item
    stands = (
        {"state": item.state, "tier": item.tier, "expires_at_ms": item.expires_at_ms, "expired": item.expired(at_ms)} if item else {"state": None}
    )
    fault = {"fault": model.fault} if model.fault else {}
    return {"model_id": model.model_id, "champion": model.champion, "figures": model.card.get("figures"), **stands, **fault}


def _show(registry: Registry, asked: str, as_json: bool) -> None:
    inventory = registry.inventory()
    model_id = found(inventory, Kind.MODEL, asked)
    print(gate_line(registry, inventory, model_id))
    items = [item for item in inventory.of(Kind.MODEL) if item.item_id == model_id]
    print_moves(inventory, items)
    if as_json:
        stands = described(inventory, model_id, clock_ms()) if items else {"item_id": model_id, "state": None}
        print(json.dumps(stands | {"gates_failed": registry.failing(inventory, model_id)}))


def _write_document(registry: Registry, asked: str, out: Path | None) -> None:
    inventory = registry.inventory()
    model_id = found(inventory, Kind.MODEL, asked)
    failed = registry.failing(inventory, model_id)
    text = document(model_id, registry.card(model_id), inventory.items.get(model_id), inventory.moves_of(model_id), failed, CATALOGUE)
    file = out or Path(f"{model_id}.html")
    file.write_text(text, encoding="utf-8")
    print(file)


# All steps in one, for a system that has no model yet.


def ensure_champion(settings: Settings, say: Say) -> str:
    """The id of the model that decides; where there is none for this catalogue, the first one is made by the same steps, and said so.

    Its history is simulated: it gets a system going and finds what the simulator does. A bank trains its own.
    """
    registry = registry_of(settings)
    champion = who_decides(registry, say)
    if champion is not None:
        return champion
    say("no model decides yet: training a first one on simulated history (simulate, backfill, train, register, promote)")
    place = settings.data_dir / "first_model"
    with warming():
        made = first_model(place, settings, registry.policy(), say)
    model_id = registry.register(place / "artefact")
    brought_up(registry, Kind.MODEL, model_id, "the first model of an empty system, trained on simulated history", clock_ms())
    quality = made.artefact.figures
    say(f"no person has seen it: entered by {TRAINER}, validated by {CHECKER}, approved and promoted by {STARTER}")
    say(f"{model_id} decides (held out: AUC {quality['auc'] or 0:.3f}, average precision {quality['average_precision'] or 0:.3f})")
    return model_id


def who_decides(registry: Registry, say: Say) -> str | None:
    """The champion where it can decide with this release; one that cannot, because it is of another format or catalogue, is said."""
    champion = registry.champion_id()
    if champion is None:
        return None
    try:
        registry.load_for(champion, CATALOGUE)
    except ArtefactError as error:
        if error.code not in OF_ANOTHER_RELEASE:
            raise
        say(f"{champion} cannot decide with this release: {error}")
        return None
    return champion


def first_model(place: Path, settings: Settings, policy: Policy, say: Say) -> Trained:
    """Simulates, backfills and trains in this folder."""
    from streams.train import recipe_in, trained  # and scikit-learn with it: no other step takes those seconds

    rng = np.random.default_rng(FIRST_SEED)
    history = simulated(rng, customers=FIRST_CUSTOMERS, days=FIRST_DAYS, fraud_rate=FIRST_FRAUD_RATE)
    written(history, place / "history")
    say(f"simulated {history.transactions.num_rows} payments of {FIRST_CUSTOMERS} customers")
    key = TokenKey(settings.token_key.encode(), settings.token_key_id)
    source, mapping = place / "history", mapping_in(place / "history" / "mapping.toml")
    given = Given((source / "transactions.parquet",), mapping, key, accounts=source / "accounts.parquet")
    backfilled(CATALOGUE, given, place / "features", now_ms=clock_ms(), say=say)
    say("training five members")
    made = trained(training_set(place / "features"), recipe_in(), policy, seed=1, threads=len(os.sched_getaffinity(0)))
    save(made.artefact, place / "artefact")
    return made
