"""The risk team's steps after `backfill`: train on its features, register what was trained, promote it.

Honesty in time: a row's label counts as known when it was *learned*. Training stands at a cutoff (by default the history's last
moment), takes rows that are old enough for most labels to have come in (`mature`), and believes of them what was known at the cutoff:
fraud that nobody had noticed by then is honest in its eyes, as it would have been at that bank on that day.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.catalogue import CATALOGUE, Catalogue
from models import train as training
from models.policy import SEVERITY, Policy
from models.registry import Registry, save
from models.train import HELD_OUT_FROM, Artefact
from schemas.decision import Outcome
from schemas.errors import ArtefactError, InvalidRecord, SettingsError
from schemas.topics import DECISIONS, LABELS
from streams.backfill import FEATURES_FILE, Given, backfilled
from streams.folder import keys_of, with_kept_secrets
from streams.mapping import TokenKey, mapping_in
from streams.settings import Settings
from streams.simulate import simulated, written

DAY_MS = 86_400_000
FIRST_CUSTOMERS, FIRST_DAYS, FIRST_FRAUD_RATE, FIRST_SEED = 900, 60, 0.02, 20_260_101
"""The simulated history of the first model: large enough to learn each kind of fraud, small enough to be ready within seconds."""
Say = Callable[[str], None]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


# Train.


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows to learn from, in order of time: vectors, what was believed of them at the cutoff, and which kind it was."""

    vectors: Floats
    frauds: Flags
    kinds: npt.NDArray[np.object_]
    at_ms: npt.NDArray[np.int64]
    cutoff_ms: int


class Caught(NamedTuple):
    """Of one kind of fraud (or of the honest) among the held-out rows: how many, and the shares that would be stopped or looked at."""

    rows: int
    blocked: float
    reviewed_or_blocked: float


class Trained(NamedTuple):
    """An artefact and what it does on the rows that it has not seen, with the policy's rules applied."""

    artefact: Artefact
    caught: dict[str, Caught]


def examples_in(folder: Path, catalogue: Catalogue, cutoff_ms: int | None = None, mature_ms: int | None = None) -> Examples:
    """The examples in a backfill's folder, as they were known at the cutoff. ArtefactError if they are of another catalogue."""
    path = folder / FEATURES_FILE
    if not path.exists():
        raise SettingsError(f"{path}: there is none; `holdfast backfill` writes it")
    table = pq.read_table(path)
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if about.get("catalogue_id") != catalogue.catalogue_id:
        raise ArtefactError(f"{path} was made for catalogue {about.get('catalogue_id')}, not for {catalogue.catalogue_id}: backfill again")
    at_ms = table["at_ms"].to_numpy()
    cutoff_ms = int(at_ms.max()) if cutoff_ms is None else cutoff_ms
    mature_ms = int(about["label_delay_ms"]) if mature_ms is None else mature_ms
    kept = np.flatnonzero((at_ms <= cutoff_ms - mature_ms) & table["fraud"].is_valid().to_numpy())
    kept = kept[np.argsort(at_ms[kept], kind="stable")]
    table = table.take(pa.array(kept))
    known = table["learned_at_ms"].to_numpy() <= cutoff_ms
    vectors = np.column_stack([table[name].to_numpy() for name in catalogue.names]) if len(kept) else np.empty((0, len(catalogue.names)))
    kinds = np.array(table["fraud_kind"].to_pylist(), dtype=object)
    return Examples(vectors, table["fraud"].to_numpy(zero_copy_only=False) & known, kinds, table["at_ms"].to_numpy(), cutoff_ms)


def examples_in_archive(folder: Path, catalogue: Catalogue, cutoff_ms: int, mature_ms: int) -> Examples:
    """The examples in a system's archive: the vectors that were served, and the newest label of each that was known at the cutoff.

    A decision old enough that nobody complained of is believed honest. SettingsError where there is no archive.
    """
    if not (folder / DECISIONS.name).is_dir():
        raise SettingsError(f"{folder}: holds no archive of decisions")
    decisions = pq.read_table(folder / DECISIONS.name, columns=["transaction_id", "at_ms", "catalogue_id", *catalogue.names], partitioning=None)
    fits = (decisions["at_ms"].to_numpy() <= cutoff_ms - mature_ms) & (np.array(decisions["catalogue_id"]) == catalogue.catalogue_id)
    decisions = decisions.take(pa.array(np.flatnonzero(fits))).sort_by("at_ms")
    labels = _labels_known(folder / LABELS.name, cutoff_ms)
    believed = [labels.get(each, (False, None)) for each in decisions["transaction_id"].to_pylist()]
    vectors = np.column_stack([decisions[name].to_numpy() for name in catalogue.names])
    kinds = np.array([kind for _, kind in believed], dtype=object)
    return Examples(vectors, np.array([fraud for fraud, _ in believed], np.bool_), kinds, decisions["at_ms"].to_numpy(), cutoff_ms)


def _labels_known(folder: Path, cutoff_ms: int) -> dict[str, tuple[bool, str | None]]:
    """What was known of each transaction at the cutoff: fraud or not, and which kind."""
    if not folder.is_dir():
        return {}
    columns = ["transaction_id", "fraud", "fraud_kind", "learned_at_ms"]
    table = pq.read_table(folder, columns=columns, partitioning=None).sort_by("learned_at_ms")
    known = table.take(pa.array(np.flatnonzero(table["learned_at_ms"].to_numpy() <= cutoff_ms)))
    rows = (known[name].to_pylist() for name in columns[:3])
    return {transaction_id: (fraud, kind) for transaction_id, fraud, kind in zip(*rows, strict=True)}


def trained(examples: Examples, catalogue: Catalogue, policy: Policy, seed: int) -> Trained:
    """Trains on the first part of the time and measures on the last. ArtefactError if there is nothing to learn from."""
    artefact = training.train(examples.vectors, examples.frauds, examples.at_ms, catalogue, policy, seed)
    held = slice(int(len(examples.vectors) * HELD_OUT_FROM), None)
    severity = severities(artefact, policy.bound(catalogue.names), examples.vectors[held])
    kinds = np.where(examples.frauds[held], np.where(examples.kinds[held] == None, "unnamed", examples.kinds[held]), "honest")  # noqa: E711 - by element
    return Trained(artefact, {str(kind): _caught(severity[kinds == kind]) for kind in sorted(set(kinds), key=str)})


def severities(artefact: Artefact, policy: Policy, vectors: Floats) -> npt.NDArray[np.int64]:
    """The severity of the outcome that score and rules give each row: what `judge` would say, without accounts."""
    scores = np.rint(artefact.ensemble.scores(vectors) * 1000)
    banded = np.where(scores > policy.block_above, SEVERITY[Outcome.BLOCK], np.where(scores > policy.review_above, SEVERITY[Outcome.REVIEW], 0))
    ruled = [max((SEVERITY[rule.outcome] for rule in policy.fired(vector)), default=0) for vector in vectors]
    return np.maximum(banded, np.array(ruled, dtype=np.int64))


def _caught(severity: npt.NDArray[np.int64]) -> Caught:
    blocked, looked_at = severity >= SEVERITY[Outcome.BLOCK], severity >= SEVERITY[Outcome.REVIEW]
    return Caught(len(severity), round(float(blocked.mean()), 4), round(float(looked_at.mean()), 4))


def figures_of(made: Trained) -> dict[str, Any]:
    """The figures of a training, for programs."""
    artefact = made.artefact
    return {
        "rows": artefact.rows,
        "frauds": artefact.frauds,
        "held_out": dict(artefact.figures),
        "held_out_by_kind": {kind: caught._asdict() for kind, caught in made.caught.items()},
    }


def figure_lines(made: Trained) -> list[str]:
    """The figures of a training, for people."""
    figures = ", ".join(f"{name} {value:.3f}" for name, value in made.artefact.figures.items() if value is not None)
    lines = [f"held out (the last fifth of the time): {figures}", f"{'kind':<24}{'rows':>7}{'blocked':>10}{'or reviewed':>13}"]
    return lines + [f"{kind:<24}{c.rows:>7}{c.blocked:>10.1%}{c.reviewed_or_blocked:>13.1%}" for kind, c in made.caught.items()]


def train(argv: list[str], settings: Settings) -> int:
    """`holdfast train --features DIR --out DIR`: trains the ensemble on backfilled or archived vectors; says how good it is on later rows."""
    parser = argparse.ArgumentParser(prog="holdfast train", description=(train.__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--features", type=Path, metavar="DIR", help="what `holdfast backfill` wrote")
    source.add_argument("--archive", type=Path, metavar="DIR", help="what the archive app wrote: the vectors that were served")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the artefact, to be registered")
    parser.add_argument("--cutoff", metavar="ISO8601", help="train as of this moment (default: the history's last)")
    parser.add_argument("--mature-days", type=float, help="leave out rows younger than this at the cutoff (default: the label's delay, or 14)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    cutoff_ms = None if args.cutoff is None else _moment_ms(args.cutoff)
    mature_ms = None if args.mature_days is None else int(args.mature_days * DAY_MS)
    _say("training five members (some tens of seconds for 100,000 rows)")
    if args.features:
        examples = examples_in(args.features, CATALOGUE, cutoff_ms, mature_ms)
    else:
        mature_ms = 14 * DAY_MS if mature_ms is None else mature_ms
        examples = examples_in_archive(args.archive, CATALOGUE, _now_ms() if cutoff_ms is None else cutoff_ms, mature_ms)
    made = trained(examples, CATALOGUE, registry_of(settings).policy(), args.seed)
    save(made.artefact, args.out)
    print("\n".join(figure_lines(made)))
    print(f"artefact in {args.out}: `holdfast register {args.out}` puts it into the registry")
    if args.json:
        print(json.dumps(figures_of(made)))
    return 0


# Register, promote, list.


def register(argv: list[str], settings: Settings) -> int:
    """`holdfast register DIR`: checks a trained artefact, signs it and puts it into the registry; prints its id."""
    parser = argparse.ArgumentParser(prog="holdfast register", description=(register.__doc__ or "").splitlines()[0])
    parser.add_argument("artefact", type=Path, help="what `holdfast train` wrote")
    print(registry_of(settings).register(parser.parse_args(argv).artefact))
    _say(f"services check it with HOLDFAST_MODEL_PUBLIC_KEY={keys_of(with_kept_secrets(settings)).public.hex()}")
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
    made = trained(examples_in(place / "features", CATALOGUE), CATALOGUE, policy, seed=1)
    save(made.artefact, place / "artefact")
    return made


def registry_of(settings: Settings) -> Registry:
    """The registry of these settings, with the key of its data folder."""
    settings = with_kept_secrets(settings)
    return Registry(settings.registry_dir, keys_of(settings))


def _moment_ms(text: str) -> int:
    from streams.mapping import TimeRule, moment_ms

    try:
        return moment_ms(text, TimeRule(zone="UTC"), "--cutoff")
    except InvalidRecord as error:
        raise SettingsError(str(error)) from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
