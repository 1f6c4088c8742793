"""The risk team's steps after `train`: register what was trained, promote it; and all steps in one where there is no model yet."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from features.catalogue import CATALOGUE
from models.policy import Policy
from models.registry import Registry, save
from schemas.errors import ArtefactError
from streams.backfill import Given, backfilled
from streams.folder import keys_of, with_kept_secrets
from streams.mapping import TokenKey, mapping_in
from streams.registry import registry_of
from streams.settings import Settings
from streams.simulate import simulated, written
from streams.train import Trained, recipe_in, trained
from streams.training_set import training_set

FIRST_CUSTOMERS, FIRST_DAYS, FIRST_FRAUD_RATE, FIRST_SEED = 900, 60, 0.02, 20_260_101
"""The simulated history of the first model: large enough to learn each kind of fraud, small enough to be ready within seconds."""
Say = Callable[[str], None]


# Register, promote, list.


def register(argv: list[str], settings: Settings) -> int:
    """`holdfast register DIR`: checks a trained artefact, signs it and puts it into the registry; prints its id."""
    parser = argparse.ArgumentParser(prog="holdfast register", description=(register.__doc__ or "").splitlines()[0])
    parser.add_argument("artefact", type=Path, help="what `holdfast train` wrote")
    print(registry_of(settings).register(parser.parse_args(argv).artefact))
    public = keys_of(with_kept_secrets(settings)).public.hex()
    print(f"services check it with HOLDFAST_MODEL_PUBLIC_KEY={public}", file=sys.stderr, flush=True)
    return 0


def promote(argv: list[str], settings: Settings) -> int:
    """`holdfast promote MODEL_ID`: makes a registered model the one that decides; running apps take it over within seconds."""
    parser = argparse.ArgumentParser(prog="holdfast promote", description=(promote.__doc__ or "").splitlines()[0])
    parser.add_argument("model_id")
    model_id = parser.parse_args(argv).model_id
    registry = registry_of(settings)
    if registry.load(model_id).catalogue_id != CATALOGUE.catalogue_id:
        raise ArtefactError(f"{model_id} was trained on another catalogue than this release has ({CATALOGUE.catalogue_id}): train again")
    registry.promote(model_id, _now_ms())
    print(f"{model_id} decides")
    return 0


def models(argv: list[str], settings: Settings) -> int:
    """`holdfast models`: the registered models, oldest first; `*` marks the one that decides."""
    parser = argparse.ArgumentParser(prog="holdfast models", description=(models.__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    listed = registry_of(settings).models()
    for model in listed:
        figures, about = model.card["figures"], model.card["trained"]
        said = ", ".join(f"{name} {figures[name]:.3f}" for name in ("auc", "average_precision") if figures.get(name) is not None)
        print(f"{'*' if model.champion else ' '} {model.model_id}  {about['rows']} rows, {about['frauds']} frauds; held out: {said}")
    if args.json:
        print(json.dumps({"models": [{"model_id": m.model_id, "champion": m.champion, "figures": m.card["figures"]} for m in listed]}))
    return 0


# All steps in one, for a system that has no model yet.


def ensure_champion(settings: Settings, say: Say) -> str:
    """The id of the model that decides; where there is none for this catalogue, the first one is made by the same steps, and said so.

    Its history is simulated: it gets a system going and finds what the simulator does. A bank trains its own.
    """
    registry = registry_of(settings)
    champion = registry.champion_id()
    if champion is not None and _decides_here(registry, champion, say):
        return champion
    say("no model decides yet: training a first one on simulated history (simulate, backfill, train, register, promote)")
    place = settings.data_dir / "first_model"
    made = first_model(place, settings, registry.policy(), say)
    model_id = registry.register(place / "artefact")
    registry.promote(model_id, _now_ms())
    quality = made.artefact.figures
    say(f"{model_id} decides (held out: AUC {quality['auc'] or 0:.3f}, average precision {quality['average_precision'] or 0:.3f})")
    return model_id


def _decides_here(registry: Registry, champion: str, say: Say) -> bool:
    """Whether the champion can decide with this release; one that cannot, because it is of another format or catalogue, is said."""
    try:
        return registry.load(champion).catalogue_id == CATALOGUE.catalogue_id
    except ArtefactError as error:
        if error.code not in ("missing", "malformed"):
            raise
        say(f"{champion} cannot decide with this release: {error}")
        return False


def first_model(place: Path, settings: Settings, policy: Policy, say: Say) -> Trained:
    """Simulates, backfills and trains in this folder."""
    rng = np.random.default_rng(FIRST_SEED)
    history = simulated(rng, customers=FIRST_CUSTOMERS, days=FIRST_DAYS, fraud_rate=FIRST_FRAUD_RATE)
    written(history, place / "history")
    say(f"simulated {history.transactions.num_rows} payments of {FIRST_CUSTOMERS} customers")
    key = TokenKey(settings.token_key.encode(), settings.token_key_id)
    source, mapping = place / "history", mapping_in(place / "history" / "mapping.toml")
    given = Given((source / "transactions.parquet",), mapping, key, accounts=source / "accounts.parquet")
    backfilled(CATALOGUE, given, place / "features", now_ms=_now_ms(), say=say)
    say("training five members")
    made = trained(training_set(place / "features"), recipe_in(), policy, seed=1, threads=len(os.sched_getaffinity(0)))
    save(made.artefact, place / "artefact")
    return made


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
