"""`holdfast train`: an ensemble by a recipe, from the vectors that were served or from a backfill of any dataset; and the same as functions.

`examples = training_set(Path("features"))`, `made = trained(examples, recipe_in(None), policy, seed=1)`, `save(made.artefact, folder)`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import models
from features.catalogue import CATALOGUE
from models import decision
from models import train as training
from models.artefact import CARD, model_id_of, packed
from models.document import document
from models.ensemble import Artefact
from models.gates import failed_gates
from models.history import HELD_OUT_FROM, Examples, Floats
from models.policy import SEVERITY, Policy
from models.recipe import Recipe, recipe_from_toml
from models.registry import save
from models.train import measured_only
from schemas.decision import Outcome
from schemas.errors import InvalidRecord, SettingsError
from streams.mapping import TimeRule, moment_ms
from streams.registry import registry_of
from streams.settings import Settings
from streams.tracking import Run, tracked, tracking_uri
from streams.training_set import DAY_MS, training_set

RECIPES = Path(models.__file__).parent / "recipes"
DEFAULT_RECIPE = RECIPES / "default.toml"
SEED_MAX = (1 << 32) - 1
"""scikit-learn takes no greater one."""


class Caught(NamedTuple):
    """Of one kind of fraud (or of the honest) among the held-out rows: how many, and the shares that would be stopped or looked at."""

    rows: int
    blocked: float
    reviewed_or_blocked: float


class Trained(NamedTuple):
    """An artefact and what it does on the rows that it has not seen, with the policy's rules applied."""

    artefact: Artefact
    caught: dict[str, Caught]


def recipe_in(path: Path | None = None) -> Recipe:
    """The recipe in a file, or by its name one that comes with the house (`default`, `few_labels`). SettingsError names the file."""
    path = DEFAULT_RECIPE if path is None else path
    house = RECIPES / f"{path.name}.toml"
    path = house if str(path) == path.name and house.is_file() else path
    try:
        return recipe_from_toml(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, SettingsError) as error:
        raise SettingsError(f"{path}: {error}") from None


def trained(examples: Examples, recipe: Recipe, policy: Policy, seed: int, threads: int = 1) -> Trained:
    """Trains on the first part of the time and measures on the last. ArtefactError if there is nothing to learn from."""
    artefact = training.train(examples, recipe, policy, seed, threads)
    held = slice(int(len(examples.frauds) * HELD_OUT_FROM), None)
    severity = severities(artefact, policy, examples.names, examples.vectors[held])
    kinds = np.where(examples.frauds[held], np.where(examples.kinds[held] == None, "unnamed", examples.kinds[held]), "honest")  # noqa: E711 - by element
    return Trained(artefact, {str(kind): _caught(severity[kinds == kind]) for kind in sorted(set(kinds), key=str)})


def severities(artefact: Artefact, policy: Policy, names: tuple[str, ...], vectors: Floats) -> npt.NDArray[np.int64]:
    """The severity of the outcome that score and rules give each row: what `judge` would say, without accounts.

    Where the columns are not those that the rules read (a backfill of some features), the score alone.
    """
    scores = np.rint(artefact.ensemble.scores(vectors) * 1000)
    read = {condition.feature for rule in policy.rules for condition in rule.conditions}
    judging = policy if read <= set(names) else replace(policy, rules=())
    return decision.severities(judging.bound(names), vectors, scores)


def _caught(severity: npt.NDArray[np.int64]) -> Caught:
    blocked, looked_at = severity >= SEVERITY[Outcome.BLOCK], severity >= SEVERITY[Outcome.REVIEW]
    return Caught(len(severity), round(float(blocked.mean()), 4), round(float(looked_at.mean()), 4))


def figures_of(made: Trained) -> dict[str, Any]:
    """The figures of a training, for programs."""
    artefact = made.artefact
    return {
        "rows": artefact.rows,
        "frauds": artefact.frauds,
        "recipe_id": artefact.recipe_id,
        "weights": {member.name: member.weight for member in artefact.ensemble.members},
        "held_out": dict(artefact.figures),
        "held_out_by_kind": {kind: caught._asdict() for kind, caught in made.caught.items()},
    }


def run_of(made: Trained, recipe: Recipe) -> Run:
    """A training as it is tracked, under the id that the model has in the registry: `tracked(run_of(made, recipe), settings)`."""
    artefact, files = made.artefact, packed(made.artefact)
    card, model_id = json.loads(files[CARD]), model_id_of(files[CARD])
    by_kind = {f"blocked.{kind}": caught.blocked for kind, caught in made.caught.items()}
    weights = {f"weight.{member.name}": member.weight for member in artefact.ensemble.members}
    html = document(model_id, card, None, (), failed_gates(artefact.checks, beside_champion=False), CATALOGUE)
    return Run(
        name=f"train {recipe.name}",
        params={"catalogue_id": artefact.ensemble.catalogue_id, "model_id": model_id, **card["trained"], **weights},
        metrics={**artefact.figures, **artefact.checks, **by_kind},
        texts={"model_document.html": html, CARD: files[CARD].decode()},
        tags={"holdfast.model_id": model_id},
    )


def figure_lines(made: Trained) -> list[str]:
    """The figures of a training, for people."""
    figures = ", ".join(f"{name} {value:.3f}" for name, value in made.artefact.figures.items() if value is not None)
    lines = [f"held out (the last fifth of the payments): {figures}", f"{'kind':<24}{'rows':>7}{'blocked':>10}{'or reviewed':>13}"]
    return lines + [f"{kind:<24}{c.rows:>7}{c.blocked:>10.1%}{c.reviewed_or_blocked:>13.1%}" for kind, c in made.caught.items()]


def train(argv: list[str], settings: Settings) -> int:
    """`holdfast train --data DIR --out DIR`: trains the ensemble on backfilled or archived vectors; says how good it is on later rows."""
    parser = argparse.ArgumentParser(prog="holdfast train", description=(train.__doc__ or "").splitlines()[0])
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the artefact, to be registered")
    parser.add_argument(
        "--label-delay-days",
        type=days,
        metavar="N",
        help="leave out rows younger than this at --until (default: the mapping's delay; archive 14)",
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    recipe, policy = recipe_in(args.recipe), registry_of(settings).policy()
    delay_ms = None if args.label_delay_days is None else int(args.label_delay_days * DAY_MS)
    examples = training_set(args.data, until_ms(args), delay_ms, attributes=measured_only(recipe))
    if not len(examples.frauds):
        raise SettingsError(f"{args.data}: no payment is old enough for its label to be known; --label-delay-days says how old that is")
    args.out.mkdir(parents=True, exist_ok=True)  # before minutes of work for a place that cannot be written to
    print(f"training {len(recipe.members)} members on {len(examples.frauds)} rows", file=sys.stderr, flush=True)
    made = trained(examples, recipe, policy, args.seed, args.threads)
    save(made.artefact, args.out)
    print("\n".join(figure_lines(made)))
    print(f"artefact in {args.out}: `holdfast register {args.out}` puts it into the registry")
    if args.track:
        print(f"run {tracked(run_of(made, recipe), settings)} at {tracking_uri(settings)}")
    if args.json:
        print(json.dumps(figures_of(made)))
    return 0


def add_data(parser: argparse.ArgumentParser, until: str = "the history's last") -> None:
    """The options by which `train` and `evaluate` say what they read and how they work."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what `holdfast backfill` or the archive app wrote")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="members as rows (TOML), or `default` or `few_labels` of the house")
    parser.add_argument("--until", metavar="ISO8601", help=f"no later payment is seen, and no later label learned from (default: {until})")
    seed = "the same seed, data and recipe give the same (default %(default)s)"
    parser.add_argument("--seed", type=at_least(0, SEED_MAX), default=1, metavar="N", help=seed)
    parser.add_argument("--track", action="store_true", help="tell the run on MLflow (the extra `tracking`)")
    parser.add_argument("--threads", type=at_least(1), default=len(os.sched_getaffinity(0)), metavar="N", help="default: one a core, %(default)s")


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """Reads a whole number of an option that is not below this one, nor above the other."""
    said = f"from {least} on" if most is None else f"from {least} to {most}"

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {said}")
        return int(text)

    return number


def days(text: str) -> float:
    """Reads the days of an option."""
    if not re.fullmatch(r"\d{1,5}(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return float(text)


def until_ms(args: argparse.Namespace) -> int | None:
    """What `--until` says."""
    try:
        return None if args.until is None else moment_ms(args.until, TimeRule(zone="UTC"), "--until")
    except InvalidRecord as error:
        raise SettingsError(str(error)) from None
