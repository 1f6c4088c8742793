"""Proves that a model is named by its contents, checked before it is used, and promoted in one step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.registry import ARRAYS, CARD, Registry, default_policy_text, packed, save, unpacked
from models.train import Artefact
from schemas.errors import ArtefactError, SettingsError
from tests.models.conftest import a_history


def test_a_model_comes_back_as_it_was_trained(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path)
    model_id = registry.register(artefact)
    loaded = registry.load(model_id)
    vectors, _, _ = a_history(300)
    assert (loaded.totals(vectors) == artefact.ensemble.totals(vectors)).all()
    assert (loaded.members, loaded.names, loaded.catalogue_id) == (artefact.ensemble.members, artefact.ensemble.names, artefact.ensemble.catalogue_id)
    assert loaded.model_id == model_id


def test_registered_twice_or_from_its_folder_is_the_same_model(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path / "registry")
    save(artefact, tmp_path / "trained")
    assert registry.register(artefact) == registry.register(artefact) == registry.register(tmp_path / "trained")
    assert len(registry.models()) == 1


def test_nothing_is_the_champion_until_it_is_promoted_and_history_is_kept(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path)
    model_id = registry.register(artefact)
    assert registry.champion_id() is None
    with pytest.raises(ArtefactError, match="no model was promoted"):
        registry.champion()
    registry.promote(model_id, 1)
    registry.promote(model_id, 2)
    assert registry.champion().model_id == model_id
    assert [listed.champion for listed in registry.models()] == [True]
    assert [p["at_ms"] for p in json.loads((tmp_path / "champion.json").read_bytes())["promoted"]] == [1, 2]
    with pytest.raises(ArtefactError, match="missing"):
        registry.promote("mdl_0", 3)


@pytest.mark.parametrize("file", [ARRAYS, CARD])
def test_an_altered_file_is_refused(tmp_path: Path, artefact: Artefact, file: str) -> None:
    registry = Registry(tmp_path)
    model_id = registry.register(artefact)
    path = tmp_path / "models" / model_id / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtefactError):
        registry.load(model_id)


def test_a_model_that_the_key_did_not_sign_is_refused(tmp_path: Path, artefact: Artefact) -> None:
    unsigned = Registry(tmp_path).register(artefact)
    with pytest.raises(ArtefactError, match="not signed"):
        Registry(tmp_path, b"key").load(unsigned)
    signed = Registry(tmp_path, b"key").register(artefact)
    assert Registry(tmp_path, b"key").load(signed).model_id == signed
    with pytest.raises(ArtefactError, match="not signed"):
        Registry(tmp_path, b"other").load(signed)


def test_arrays_that_hold_objects_are_refused_and_never_unpickled(tmp_path: Path, artefact: Artefact) -> None:
    files = packed(artefact)
    np.savez(tmp_path / "a.npz", usual=np.array([object()]))
    card = json.loads(files[CARD])
    content = (tmp_path / "a.npz").read_bytes()
    import hashlib

    card["sha256"][ARRAYS] = hashlib.sha256(content).hexdigest()
    with pytest.raises(ArtefactError, match="do not fit"):
        unpacked({ARRAYS: content, CARD: json.dumps(card).encode()})


def test_the_card_says_how_the_model_was_made(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path)
    registry.register(artefact)
    (listed,) = registry.models()
    assert listed.card["trained"]["rows"] == 4000
    assert listed.card["figures"]["auc"] == artefact.figures["auc"]
    assert [m["weight"] for m in listed.card["members"]] == [0.4, 0.2, 0.15, 0.15, 0.1]


def test_the_default_policy_judges_until_another_is_promoted(tmp_path: Path) -> None:
    registry = Registry(tmp_path, b"key")
    first = registry.policy()
    other = default_policy_text().replace("block_above = 0.80", "block_above = 0.85")
    policy_id = registry.put_policy(other)
    assert registry.policy().policy_id == first.policy_id
    registry.promote_policy(policy_id, 5)
    assert (registry.policy().policy_id, registry.policy().block_above) == (policy_id, 850)
    (tmp_path / "policies" / f"{policy_id}.toml").write_text(default_policy_text())
    with pytest.raises(ArtefactError):
        registry.policy()


def test_a_policy_with_a_mistake_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="block_above"):
        Registry(tmp_path).put_policy(default_policy_text().replace("block_above = 0.80", "block_above = 8"))


def test_an_id_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="not an id"):
        Registry(tmp_path).load("../../etc")
