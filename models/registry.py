"""The one door of this floor: models and policies in a folder, named by their contents, checked before they are used."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from models.artefact import ARRAYS, BYTES_MAX, CARD, SIGNATURE, Keys, opened, packed, unpacked
from models.compiled import EQUAL_ON, EQUAL_WITHIN
from models.decision import TOP_REASON_AGREES_MIN
from models.ensemble import Artefact, Ensemble
from models.policy import Policy, policy_from_toml
from schemas.errors import ArtefactError

POLICY_BYTES_MAX = 1 << 20
DEFAULT_POLICY = Path(__file__).parent / "policies" / "default.toml"
GATES: dict[str, Callable[[float], bool]] = {
    "parity_max": lambda apart: apart <= EQUAL_WITHIN,
    "parity_rows": lambda rows: rows >= EQUAL_ON,
    "top_reason_agrees": lambda share: share >= TOP_REASON_AGREES_MIN,
}
"""What the checks in a model's card must be before it may decide; a check that was never made fails."""


class Listed(NamedTuple):
    """One registered model: its id, its card, and whether it is the one that decides."""

    model_id: str
    card: Mapping[str, Any]
    champion: bool


def failed_gates(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the gates that a model with this card does not pass."""
    checks = card.get("checks", {})
    return tuple(name for name, passes in GATES.items() if name not in checks or not passes(checks[name]))


def save(artefact: Artefact, folder: Path) -> None:
    """Writes a trained artefact's files to a folder, from which it can be registered."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in packed(artefact).items():
        _write(folder / name, content)


class Registry:
    """A folder of models and policies. What is registered is signed, and what is not signed by the key is not loaded."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        self._folder, self._keys = folder, keys

    def register(self, artefact: Artefact | Path) -> str:
        """Puts a trained artefact (or the folder it was saved to) into the registry and returns its id; twice is once."""
        files = packed(artefact) if isinstance(artefact, Artefact) else {name: _read(artefact / name, BYTES_MAX[name]) for name in (ARRAYS, CARD)}
        model_id = unpacked(files).model_id
        files[SIGNATURE] = self._keys.signature(files[CARD])
        for name in (ARRAYS, SIGNATURE, CARD):  # the card last: with it the model is there
            _write(self._model(model_id) / name, files[name])
        return model_id

    def load(self, model_id: str) -> Ensemble:
        """The model of that id. ArtefactError if it is missing, too large, altered, unsigned or unsound."""
        return opened(self._files(model_id), self._keys, model_id)

    def card(self, model_id: str) -> Mapping[str, Any]:
        """The card of the model of that id, checked as a whole."""
        files = self._files(model_id)
        opened(files, self._keys, model_id)
        card: Mapping[str, Any] = json.loads(files[CARD])
        return card

    def _files(self, model_id: str) -> dict[str, bytes]:
        return {name: _read(self._model(model_id) / name, BYTES_MAX[name]) for name in (CARD, SIGNATURE, ARRAYS)}

    def models(self) -> tuple[Listed, ...]:
        """Every registered model, by end of its training span, newest last."""
        champion = self.champion_id()
        ids = [path.parent.name for path in (self._folder / "models").glob(f"mdl_*/{ARRAYS}") if (path.parent / CARD).exists()]
        cards = sorted(((model_id, self.card(model_id)) for model_id in ids), key=lambda c: (c[1]["trained"]["until_at_ms"], c[0]))
        return tuple(Listed(model_id, card, model_id == champion) for model_id, card in cards)

    def promote(self, model_id: str, now_ms: int) -> None:
        """Makes a registered model the one that decides, in one atomic step; the history of champions is kept. ArtefactError where a gate fails."""
        failed = failed_gates(self.card(model_id))
        if failed:
            raise ArtefactError(f"model {model_id} cannot be promoted: {', '.join(failed)}", "gate_failed")
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
        _write(self._policy(policy_id).with_suffix(".sig"), self._keys.signature(text.encode()))
        _write(self._policy(policy_id), text.encode())
        return policy_id

    def promote_policy(self, policy_id: str, now_ms: int) -> None:
        """Makes a policy of the registry the one that judges."""
        self.load_policy(policy_id)
        self._promote("policy.json", policy_id, now_ms)

    def load_policy(self, policy_id: str) -> Policy:
        """The policy of that id, not yet bound to a catalogue. ArtefactError if it is missing or altered."""
        text = _read(self._policy(policy_id), POLICY_BYTES_MAX)
        self._keys.check(text, _read(self._policy(policy_id).with_suffix(".sig"), BYTES_MAX[SIGNATURE]), f"policy {policy_id}")
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

    def _promoted(self, file: str) -> str | None:
        path = self._folder / file
        return str(json.loads(_read(path, BYTES_MAX[CARD]))["promoted"][-1]["id"]) if path.exists() else None

    def _promote(self, file: str, what: str, now_ms: int) -> None:
        path = self._folder / file
        history = json.loads(_read(path, BYTES_MAX[CARD]))["promoted"] if path.exists() else []
        _write(path, json.dumps({"promoted": [*history, {"id": what, "at_ms": now_ms}]}, indent=1).encode())


def default_policy_text() -> str:
    """The text of the policy that comes with the house."""
    return DEFAULT_POLICY.read_text(encoding="utf-8")


def _safe(name: str) -> str:
    """The id, if it can be nothing but a file's name here."""
    if not name.replace("_", "").isalnum():
        raise ArtefactError(f"{name!r} is not an id")
    return name


def _read(path: Path, bytes_max: int) -> bytes:
    """The file's bytes; one byte more than allowed is never read."""
    try:
        with path.open("rb") as file:
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise ArtefactError(f"{path} is missing or unreadable: {error}", "missing") from error
    if len(content) > bytes_max:
        raise ArtefactError(f"{path} is larger than {bytes_max} bytes", "oversized")
    return content


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
