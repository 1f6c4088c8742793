"""The one door of this floor: models and policies in a folder, named by their contents, checked before they are used."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.ensemble import Artefact, Ensemble, Member
from models.policy import Policy, policy_from_toml
from models.trees import Forest, sound
from schemas.errors import ArtefactError

ARRAYS, CARD, SIGNATURE = "arrays.npz", "card.json", "card.sig"
DEFAULT_POLICY = Path(__file__).parent / "policies" / "default.toml"


class Listed(NamedTuple):
    """One registered model: its id, its card, and whether it is the one that decides."""

    model_id: str
    card: Mapping[str, Any]
    champion: bool


def packed(artefact: Artefact) -> dict[str, bytes]:
    """The artefact's files by name: arrays (npz, no pickle) and the card (JSON: members, weights, catalogue, span, figures, SHA-256)."""
    ensemble, out = artefact.ensemble, io.BytesIO()
    np.savez(out, usual=ensemble.usual, suspicious_low=ensemble.suspicious_low, **ensemble.forest._asdict())
    card = {
        "catalogue_id": ensemble.catalogue_id,
        "features": ensemble.names,
        "members": [{"name": m.name, "weight": m.weight, "columns": m.columns} for m in ensemble.members],
        "trained": {
            "rows": artefact.rows,
            "frauds": artefact.frauds,
            "from_at_ms": artefact.from_at_ms,
            "until_at_ms": artefact.until_at_ms,
            "seed": artefact.seed,
            "sklearn_version": artefact.sklearn_version,
            "policy_id": artefact.policy_id,
            "shift": artefact.shift,
        },
        "figures": artefact.figures,
        "sha256": {ARRAYS: hashlib.sha256(out.getvalue()).hexdigest()},
    }
    return {ARRAYS: out.getvalue(), CARD: json.dumps(card, indent=1, allow_nan=False).encode()}


def unpacked(files: Mapping[str, bytes]) -> Ensemble:
    """The ensemble in these files. ArtefactError if they were altered, do not fit together, or do not describe trees."""
    try:
        card = json.loads(files[CARD])
        if hashlib.sha256(files[ARRAYS]).hexdigest() != card["sha256"][ARRAYS]:
            raise ArtefactError(f"{ARRAYS} is not what its card says (SHA-256 differs)")
        with np.load(io.BytesIO(files[ARRAYS]), allow_pickle=False) as arrays:
            a = {name: arrays[name] for name in arrays.files}
        forest = Forest(**{name: a[name] for name in Forest._fields})
        members = tuple(Member(m["name"], float(m["weight"]), tuple(m["columns"])) for m in card["members"])
        names = tuple(card["features"])
        fits = len(a["usual"]) == len(a["suspicious_low"]) == len(names) and len(forest.baselines) == len(members)
        ensemble = Ensemble(
            _model_id(files[CARD]), card["catalogue_id"], names, members, sound(forest, len(names)), a["usual"], a["suspicious_low"]
        )
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ArtefactError(f"the model's files do not fit together: {error}") from error
    if not fits:
        raise ArtefactError("the model's arrays and its card are of different sizes")
    return ensemble


def save(artefact: Artefact, folder: Path) -> None:
    """Writes a trained artefact's files to a folder, from which it can be registered."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in packed(artefact).items():
        _write(folder / name, content)


class Registry:
    """A folder of models and policies. With a key, what is registered is signed, and what is not signed by it is not loaded."""

    def __init__(self, folder: Path, key: bytes = b"") -> None:
        self._folder, self._key = folder, key

    def register(self, artefact: Artefact | Path) -> str:
        """Puts a trained artefact (or the folder it was saved to) into the registry and returns its id; twice is once."""
        files = packed(artefact) if isinstance(artefact, Artefact) else {name: _read(artefact / name) for name in (ARRAYS, CARD)}
        model_id = unpacked(files).model_id
        if self._key:
            files[SIGNATURE] = self._sign(files[CARD])
        for name in (ARRAYS, SIGNATURE, CARD):  # the card last: with it the model is there
            if name in files:
                _write(self._model(model_id) / name, files[name])
        return model_id

    def load(self, model_id: str) -> Ensemble:
        """The model of that id. ArtefactError if it is missing, altered, or not signed with the key."""
        files = {name: _read(self._model(model_id) / name) for name in (ARRAYS, CARD)}
        if _model_id(files[CARD]) != model_id:
            raise ArtefactError(f"model {model_id}: {CARD} was altered")
        self._check(files[CARD], self._model(model_id) / SIGNATURE, f"model {model_id}")
        return unpacked(files)

    def models(self) -> tuple[Listed, ...]:
        """Every registered model, by end of its training span, newest last."""
        champion = self.champion_id()
        cards = [(path.parent.name, json.loads(_read(path))) for path in (self._folder / "models").glob(f"mdl_*/{CARD}")]
        cards.sort(key=lambda c: (c[1]["trained"]["until_at_ms"], c[0]))
        return tuple(Listed(model_id, card, model_id == champion) for model_id, card in cards)

    def promote(self, model_id: str, now_ms: int) -> None:
        """Makes a registered model the one that decides, in one atomic step; the history of champions is kept."""
        self.load(model_id)
        self._promote("champion.json", model_id, now_ms)

    def champion_id(self) -> str | None:
        """The id of the model that decides; None if none was promoted."""
        return self._promoted("champion.json")

    def champion(self) -> Ensemble:
        """The model that decides, checked. ArtefactError if none was promoted."""
        model_id = self.champion_id()
        if model_id is None:
            raise ArtefactError(f"no model was promoted in {self._folder}")
        return self.load(model_id)

    def put_policy(self, text: str) -> str:
        """Puts a policy file's text into the registry and returns its id. SettingsError names what is wrong with it."""
        policy_id = policy_from_toml(text).policy_id
        if self._key:
            _write(self._policy(policy_id).with_suffix(".sig"), self._sign(text.encode()))
        _write(self._policy(policy_id), text.encode())
        return policy_id

    def promote_policy(self, policy_id: str, now_ms: int) -> None:
        """Makes a policy of the registry the one that judges."""
        self.load_policy(policy_id)
        self._promote("policy.json", policy_id, now_ms)

    def load_policy(self, policy_id: str) -> Policy:
        """The policy of that id, not yet bound to a catalogue. ArtefactError if it is missing or altered."""
        text = _read(self._policy(policy_id))
        self._check(text, self._policy(policy_id).with_suffix(".sig"), f"policy {policy_id}")
        policy = policy_from_toml(text.decode())
        if policy.policy_id != policy_id:
            raise ArtefactError(f"policy {policy_id}: the file was altered")
        return policy

    def policy(self) -> Policy:
        """The policy that judges, not yet bound to a catalogue: the promoted one, else the default that comes with the house."""
        policy_id = self._promoted("policy.json")
        return policy_from_toml(default_policy_text()) if policy_id is None else self.load_policy(policy_id)

    def _model(self, model_id: str) -> Path:
        return self._folder / "models" / _safe(model_id)

    def _policy(self, policy_id: str) -> Path:
        return self._folder / "policies" / f"{_safe(policy_id)}.toml"

    def _sign(self, content: bytes) -> bytes:
        return hmac.new(self._key, content, hashlib.sha256).hexdigest().encode()

    def _check(self, content: bytes, signature: Path, what: str) -> None:
        if self._key and not (signature.exists() and hmac.compare_digest(_read(signature), self._sign(content))):
            raise ArtefactError(f"{what} is not signed with the key of this installation")

    def _promoted(self, file: str) -> str | None:
        path = self._folder / file
        return str(json.loads(_read(path))["promoted"][-1]["id"]) if path.exists() else None

    def _promote(self, file: str, what: str, now_ms: int) -> None:
        path = self._folder / file
        history = json.loads(_read(path))["promoted"] if path.exists() else []
        _write(path, json.dumps({"promoted": [*history, {"id": what, "at_ms": now_ms}]}, indent=1).encode())


def default_policy_text() -> str:
    """The text of the policy that comes with the house."""
    return DEFAULT_POLICY.read_text(encoding="utf-8")


def _model_id(card: bytes) -> str:
    """The id that the card's bytes give: the card holds the hashes of all else."""
    return f"mdl_{hashlib.sha256(card).hexdigest()[:32]}"


def _safe(name: str) -> str:
    """The id, if it can be nothing but a file's name here."""
    if not name.replace("_", "").isalnum():
        raise ArtefactError(f"{name!r} is not an id")
    return name


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing") from error


def _write(path: Path, content: bytes) -> None:
    """Writes the file whole or not at all: beside it first, on disk, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    Path(beside).chmod(0o644)
    Path(beside).replace(path)
