"""The one door of this floor: models and policies in a folder, named by their contents, checked before they are used.

What was done with them is a history beside them: one signed file a move, each holding the hash of the one before, none ever written twice.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from features.catalogue import CATALOGUE, Catalogue
from models.artefact import ARRAYS, BYTES_MAX, CARD, SIGNATURE, Keys, opened, packed, unpacked
from models.ensemble import Artefact, Ensemble
from models.gates import failed_gates, ranking_check
from models.governance import COMPARED, Inventory, Item, Refusal, Refused, after, out_of_place, refused, to_decide
from models.policy import POLICY_BYTES_MAX, Policy, policy_from_toml
from schemas.errors import ArtefactError
from schemas.governance import Act, Kind, Move

DEFAULT_POLICY = Path(__file__).parent / "policies" / "default.toml"
MOVE_BYTES_MAX = 1 << 20
MOVES_MAX = 1 << 16
"""A history longer than this is not read, and none becomes so long: nobody makes so many moves."""
NAME_DIGITS = 8
"""Of the name of a line's file; files of other names are none of the history's."""
OTHER_CATALOGUE = "other_catalogue"
OF_ANOTHER_RELEASE = ("missing", "malformed", OTHER_CATALOGUE)
"""Codes of an ArtefactError by which a model is one that this release cannot decide with, and no forged or altered one."""


class Listed(NamedTuple):
    """One registered model: its id, its card, whether it is the one that decides, and how it stands (None: nobody entered it).

    Of a model that is not sound the card is empty, and `fault` says why.
    """

    model_id: str
    card: Mapping[str, Any]
    champion: bool
    item: Item | None
    fault: str = ""


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

    def load_for(self, model_id: str, catalogue: Catalogue) -> Ensemble:
        """The same, if it can decide what has this catalogue; ArtefactError with the code `other_catalogue` if not."""
        ensemble = self.load(model_id)
        if (ensemble.catalogue_id, ensemble.names) != (catalogue.catalogue_id, catalogue.names):
            raise ArtefactError(
                f"model {model_id} was trained on catalogue {ensemble.catalogue_id}, not on {catalogue.catalogue_id}", OTHER_CATALOGUE
            )
        return ensemble

    def card(self, model_id: str) -> Mapping[str, Any]:
        """The card of the model of that id, checked as a whole."""
        files = self._files(model_id)
        opened(files, self._keys, model_id)
        card: Mapping[str, Any] = json.loads(files[CARD])
        return card

    def _files(self, model_id: str) -> dict[str, bytes]:
        return {name: _read(self._model(model_id) / name, BYTES_MAX[name]) for name in (CARD, SIGNATURE, ARRAYS)}

    def models(self) -> tuple[Listed, ...]:
        """Every registered model, by end of its training span, newest last; behind those the ones that are not sound, which nobody would serve."""
        inventory = self.inventory()
        champion = _id_of(inventory.champion(Kind.MODEL))
        ids = sorted(path.parent.name for path in (self._folder / "models").glob(f"mdl_*/{ARRAYS}") if (path.parent / CARD).exists())
        listed = [self._listed(model_id, model_id == champion, inventory.items.get(model_id)) for model_id in ids]
        return tuple(sorted(listed, key=lambda each: (bool(each.fault), each.card["trained"]["until_at_ms"] if each.card else 0, each.model_id)))

    def _listed(self, model_id: str, champion: bool, item: Item | None) -> Listed:
        try:
            return Listed(model_id, self.card(model_id), champion, item)
        except ArtefactError as error:
            return Listed(model_id, {}, champion, item, str(error))

    # The history.

    def inventory(self) -> Inventory:
        """What the history leads to, each line checked. ArtefactError where one is missing, altered, unsigned or does not follow."""
        inventory, before = Inventory(), ""
        for number in range(1, MOVES_MAX + 2):
            path = self._move(number)
            if not path.exists():
                self._whole(number)
                return inventory
            line = _read(path, MOVE_BYTES_MAX)
            move = _checked_move(line, self._keys, path.name)
            wrong = out_of_place(inventory, move)
            if (move.number, move.before) != (number, before) or wrong:
                raise ArtefactError(f"{path}: does not follow from the lines before it{f' ({wrong.text})' if wrong else ''}", "altered")
            inventory, before = after(inventory, move), hashlib.sha256(line).hexdigest()
        raise ArtefactError(f"{self._folder}: the history has more than {MOVES_MAX} lines", "oversized")

    def _whole(self, number: int) -> None:
        """ArtefactError if there are lines after one that is not there. Lines are written in order: one that came meanwhile was never missing.

        And if what should be the registry's folder is none: a folder that is not there yet has no history, a file hides one.
        """
        if self._folder.exists() and not self._folder.is_dir():
            raise ArtefactError(f"{self._folder} is not a folder", "missing")
        later = any(int(path.stem) > number for path in (self._folder / "moves").glob(f"{'[0-9]' * NAME_DIGITS}.json"))
        if later and not self._move(number).exists():
            raise ArtefactError(f"{self._move(number)}: was taken out of the history", "altered")

    def move(self, kind: Kind, item_id: str, act: Act, by: str, why: str, now_ms: int, *, only_as: int | None = None, **terms: Any) -> Move | Refused:
        """Makes a move, if it is legal and its gates pass; it is in the history for ever. `terms` are those of `Move`.

        Whoever comes at the same time writes the same number: one is first, and the other is judged again on what that one did; with `only_as`,
        the number of the line that it is meant to be, it is refused then.
        """
        while True:
            inventory = self.inventory()
            number = len(inventory.moves) + 1
            if number > MOVES_MAX:
                raise ArtefactError(f"{self._folder}: the history is full: it has {MOVES_MAX} lines", "oversized")
            if only_as not in (None, number):
                return Refused(Refusal.OVERTAKEN, f"line {only_as} of the history was written by somebody else")
            before = hashlib.sha256(_read(self._move(number - 1), MOVE_BYTES_MAX)).hexdigest() if number > 1 else ""
            move = Move(number=number, kind=kind, item_id=item_id, act=act, by=by, why=why, at_ms=now_ms, before=before, **terms)
            wrong = refused(inventory, move, self._failed(inventory, move))
            if wrong:
                return wrong
            content = msgspec.json.encode(move)
            line = msgspec.json.encode({"move": content.decode(), "signature": self._keys.signature(content).hex()})
            _checked_move(line, self._keys, f"{number}, which was not made")  # a line that nobody can read would close the whole history
            if _written_first(self._move(number), line):
                return move

    def moves_at(self) -> int:
        """Changes whenever a move is made: when the folder of the history was written; 0 while nobody can tell."""
        try:
            return (self._folder / "moves").stat().st_mtime_ns
        except OSError:
            return 0

    def _failed(self, inventory: Inventory, move: Move) -> tuple[str, ...]:
        """The gates that stand against a move; the model or policy itself is opened and checked, but to be taken away."""
        if move.act is Act.RETIRE and move.item_id in inventory.items:
            return ()
        if move.kind is Kind.POLICY:
            self.load_policy(move.item_id)
            return ()
        failing = self.failing(inventory, move.item_id)
        return failing if to_decide(move) and move.item_id in inventory.items else ()

    def failing(self, inventory: Inventory, model_id: str) -> tuple[str, ...]:
        """The gates that a model does not pass now. With a champion that no process of this release can use it need not be compared, but may be."""
        item, champion = inventory.items.get(model_id), inventory.champion(Kind.MODEL)
        card = self.card(model_id)  # of an earlier release it has no check of the ranking, and the figures that say it
        figures = {**ranking_check(card["figures"]), **card.get("checks", {}), **(item.measured(champion) if item else {})}
        beside = champion is not None and champion.item_id != model_id and (COMPARED in figures or self._serves(champion.item_id))
        return failed_gates(figures, beside)

    def _serves(self, model_id: str) -> bool:
        """Whether this release can decide with the model: not with one of another format or catalogue."""
        try:
            self.load_for(model_id, CATALOGUE)
        except ArtefactError as error:
            return error.code not in OF_ANOTHER_RELEASE
        return True

    def champion_id(self) -> str | None:
        """The id of the model that decides; None if none was promoted."""
        return _id_of(self.inventory().champion(Kind.MODEL))

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

    def keep_house_policy(self) -> None:
        """Puts the policy that comes with the house beside the others, for what it decides while none is promoted: later releases have another."""
        self.put_policy(default_policy_text())

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
        return self.policy_of(_id_of(self.inventory().champion(Kind.POLICY)))

    def policy_of(self, policy_id: str | None) -> Policy:
        """The policy of that id; None: the default that comes with the house."""
        return policy_from_toml(default_policy_text()) if policy_id is None else self.load_policy(policy_id)

    def _model(self, model_id: str) -> Path:
        return self._folder / "models" / _safe(model_id)

    def _policy(self, policy_id: str) -> Path:
        return self._folder / "policies" / f"{_safe(policy_id)}.toml"

    def _move(self, number: int) -> Path:
        return self._folder / "moves" / f"{number:0{NAME_DIGITS}d}.json"


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the history as it lies on disk: the move's own text, as it was signed."""

    move: str
    signature: str


@functools.lru_cache(maxsize=4096)
def _checked_move(line: bytes, keys: Keys, name: str) -> Move:
    """The move in these bytes, if the key signed it."""
    try:
        said = msgspec.json.decode(line, type=_Line)
        keys.check(said.move.encode(), bytes.fromhex(said.signature), f"move {name}")
        return msgspec.json.decode(said.move, type=Move)
    except (msgspec.DecodeError, ValueError) as error:
        raise ArtefactError(f"move {name}: {error}", "malformed") from None


def _id_of(item: Item | None) -> str | None:
    return item.item_id if item else None


def default_policy_text() -> str:
    """The text of the policy that comes with the house."""
    return DEFAULT_POLICY.read_text(encoding="utf-8")


def default_stand_in_text() -> str:
    """The text of the stand-in's policy that comes with the house."""
    return DEFAULT_POLICY.with_name("stand_in.toml").read_text(encoding="utf-8")


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
    _beside(path, content).replace(path)
    on_disk(path.parent)


def _written_first(path: Path, content: bytes) -> bool:
    """Writes the file whole, unless it is there already: what is there is never written over."""
    beside = _beside(path, content)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    on_disk(path.parent)
    return True


def on_disk(path: Path) -> None:
    """Returns when a file's contents, or a folder's names, outlive a power failure: nothing may speak of what does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, content: bytes) -> Path:
    """The content on disk, in the same folder. OSError that names the path where there is no room for it, and nothing stays of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        Path(beside).unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
    Path(beside).chmod(0o644)
    return Path(beside)
