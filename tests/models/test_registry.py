"""Proves that a model is named by its contents, checked before it is used, and promoted in one step."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from models.artefact import ARRAYS, BYTES_MAX, CARD, SIGNATURE, Keys, public_of
from models.gates import failed_gates
from models.registry import Registry, default_policy_text, save
from models.train import Artefact
from schemas.errors import ArtefactError, SettingsError
from schemas.governance import Act, Kind, Move, Tier
from streams.governance import brought_up, done
from tests.models.conftest import a_history

KEYS, OTHER = (Keys(public_of(private), private) for private in (b"k" * 32, b"o" * 32))


def refused(attempt: Callable[[], Any]) -> str:
    """The code of the ArtefactError."""
    with pytest.raises(ArtefactError) as error:
        attempt()
    return error.value.code


def test_a_model_comes_back_as_it_was_trained(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path, KEYS)
    model_id = registry.register(artefact)
    loaded = registry.load(model_id)
    vectors, _, _ = a_history(300)
    assert (loaded.totals(vectors) == artefact.ensemble.totals(vectors)).all()
    assert (loaded.members, loaded.names, loaded.catalogue_id) == (artefact.ensemble.members, artefact.ensemble.names, artefact.ensemble.catalogue_id)
    assert loaded.model_id == model_id


def test_registered_twice_or_from_its_folder_is_the_same_model(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path / "registry", KEYS)
    save(artefact, tmp_path / "trained")
    assert registry.register(artefact) == registry.register(artefact) == registry.register(tmp_path / "trained")
    assert len(registry.models()) == 1


def test_nothing_is_the_champion_until_it_went_through_every_state(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path, KEYS)
    model_id = registry.register(artefact)
    assert registry.champion_id() is None
    with pytest.raises(ArtefactError, match="no model was promoted"):
        registry.champion()
    brought_up(registry, Kind.MODEL, model_id, "a test", 1)
    assert registry.champion().model_id == model_id
    assert [listed.champion for listed in registry.models()] == [True]
    with pytest.raises(ArtefactError, match="missing"):
        registry.move(Kind.MODEL, "mdl_0", Act.PROMOTE, "a", "b", 3)


@pytest.mark.parametrize("done_before", range(4))
def test_a_first_one_is_led_on_from_where_an_interrupted_start_left_it(tmp_path: Path, done_before: int) -> None:
    whole, cut = Registry(tmp_path / "whole", KEYS), Registry(tmp_path / "cut", KEYS)
    policy_id = whole.put_policy(default_policy_text())
    assert policy_id == cut.put_policy(default_policy_text())
    brought_up(whole, Kind.POLICY, policy_id, "a test", 1)
    moves = sorted((tmp_path / "whole" / "moves").glob("*.json"))
    (tmp_path / "cut" / "moves").mkdir()
    for line in moves[:done_before]:
        (tmp_path / "cut" / "moves" / line.name).write_bytes(line.read_bytes())
    brought_up(cut, Kind.POLICY, policy_id, "a test", 1)
    assert cut.inventory() == whole.inventory()


def test_a_file_in_place_of_the_folder_is_no_empty_registry(tmp_path: Path) -> None:
    assert Registry(tmp_path / "not_yet", KEYS).models() == ()
    (tmp_path / "registry").write_text("")
    with pytest.raises(ArtefactError, match="registry is not a folder"):
        Registry(tmp_path / "registry", KEYS).models()
    with pytest.raises(ArtefactError, match="registry is not a folder"):
        Registry(tmp_path / "registry", KEYS).policy()


def test_what_cannot_be_opened_any_more_can_still_be_taken_away(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path, KEYS)
    model_id, policy_id = registry.register(artefact), registry.put_policy(default_policy_text())
    for kind, item_id in ((Kind.MODEL, model_id), (Kind.POLICY, policy_id)):
        assert isinstance(registry.move(kind, item_id, Act.REGISTER, "ana", "new", 1), Move)
    shutil.rmtree(tmp_path / "models")
    shutil.rmtree(tmp_path / "policies")
    for kind, item_id in ((Kind.MODEL, model_id), (Kind.POLICY, policy_id)):
        with pytest.raises(ArtefactError):
            registry.move(kind, item_id, Act.VALIDATE, "ben", "looked", 2)
        assert isinstance(registry.move(kind, item_id, Act.RETIRE, "ben", "its files are lost", 2), Move)


def moves_made(tmp_path: Path, artefact: Artefact) -> tuple[Registry, list[Path]]:
    """A registry whose history has four lines."""
    registry = Registry(tmp_path, KEYS)
    brought_up(registry, Kind.MODEL, registry.register(artefact), "a test", 1)
    return registry, sorted((tmp_path / "moves").glob("*.json"))


def test_a_line_of_the_history_that_is_changed_taken_out_or_moved_is_seen(tmp_path: Path, artefact: Artefact) -> None:
    registry, lines = moves_made(tmp_path, artefact)
    assert len(lines) == len(registry.inventory().moves) == 4
    kept = [line.read_bytes() for line in lines]
    lines[1].write_bytes(kept[1].replace(b"system:checker", b"system:trainer"))
    assert refused(registry.inventory) == "unsigned"
    lines[1].write_bytes(kept[2])
    assert refused(registry.inventory) == "altered"
    lines[1].write_bytes(b"{}")
    assert refused(registry.inventory) == "malformed"
    lines[1].unlink()
    assert refused(registry.inventory) == "altered"
    lines[1].write_bytes(kept[1])
    assert len(registry.inventory().moves) == 4
    assert refused(Registry(tmp_path, OTHER).inventory) == "unsigned"


def test_a_full_history_takes_no_more_moves_and_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.registry.MOVES_MAX", 2)
    registry = Registry(tmp_path, KEYS)
    for name in ("first", "second"):
        policy_id = registry.put_policy(default_policy_text().replace('"default"', f'"{name}"'))
        done(registry.move(Kind.POLICY, policy_id, Act.REGISTER, "ana", "made", 1))
    assert refused(lambda: registry.move(Kind.POLICY, policy_id, Act.VALIDATE, "ben", "read", 1, expires_at_ms=2)) == "oversized"
    assert len(registry.inventory().moves) == 2


def test_a_file_beside_the_history_that_is_no_line_of_it_changes_nothing(tmp_path: Path) -> None:
    """A copy that a person or a file manager made."""
    registry = Registry(tmp_path, KEYS)
    done(registry.move(Kind.POLICY, registry.put_policy(default_policy_text()), Act.REGISTER, "ana", "made", 1))
    line = tmp_path / "moves" / "00000001.json"
    for name in ("00000001 (copy).json", "00000009.old.json", "2.json"):
        shutil.copy(line, line.with_name(name))
    assert len(registry.inventory().moves) == 1


def test_who_has_no_private_key_makes_no_move(tmp_path: Path, artefact: Artefact) -> None:
    model_id = Registry(tmp_path, KEYS).register(artefact)
    checking = Registry(tmp_path, Keys(KEYS.public))
    assert refused(lambda: checking.move(Kind.MODEL, model_id, Act.REGISTER, "ana", "trained", 1)) == "no_private_key"
    assert checking.inventory().moves == ()


@pytest.mark.parametrize(
    "terms", [{"expires_at_ms": 10**18}, {"figures": {"against_champion_low": float("nan")}}, {"why": "x" * 2001}, {"by": "b" * 129}]
)
def test_a_move_that_nobody_could_read_again_is_not_made(tmp_path: Path, terms: dict[str, Any]) -> None:
    registry = Registry(tmp_path, KEYS)
    policy_id = registry.put_policy(default_policy_text())
    registry.move(Kind.POLICY, policy_id, Act.REGISTER, "ana", "a rule", 1)
    said = {"by": "ben", "why": "read", "expires_at_ms": 9, **terms}
    assert refused(lambda: registry.move(Kind.POLICY, policy_id, Act.VALIDATE, said.pop("by"), said.pop("why"), 2, **said)) == "malformed"
    assert len(registry.inventory().moves) == 1


def test_two_who_move_at_once_write_two_lines(tmp_path: Path) -> None:
    registry = Registry(tmp_path, KEYS)
    ids = [registry.put_policy(default_policy_text().replace("block_above = 0.80", f"block_above = 0.8{i}")) for i in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda policy_id: registry.move(Kind.POLICY, policy_id, Act.REGISTER, "ana", "a rule", 1), ids))
    assert sorted(move.number for move in made if isinstance(move, Move)) == list(range(1, 9))
    assert {move.item_id for move in registry.inventory().moves} == set(ids)


@pytest.mark.parametrize("file", [ARRAYS, CARD, SIGNATURE])
def test_an_altered_file_is_refused(tmp_path: Path, artefact: Artefact, file: str) -> None:
    registry = Registry(tmp_path, KEYS)
    model_id = registry.register(artefact)
    path = tmp_path / "models" / model_id / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtefactError, match=model_id) as error:
        registry.load(model_id)
    assert error.value.code == ("unsigned" if file == SIGNATURE else "altered")


def test_a_model_that_the_key_did_not_sign_is_refused(tmp_path: Path, artefact: Artefact) -> None:
    model_id = Registry(tmp_path, KEYS).register(artefact)
    assert Registry(tmp_path, Keys(KEYS.public)).load(model_id).model_id == model_id, "who only checks needs no private key"
    assert refused(lambda: Registry(tmp_path, OTHER).load(model_id)) == "unsigned"
    (tmp_path / "models" / model_id / SIGNATURE).unlink()
    assert refused(lambda: Registry(tmp_path, KEYS).load(model_id)) == "missing"


def test_who_has_no_private_key_registers_nothing(tmp_path: Path, artefact: Artefact) -> None:
    assert refused(lambda: Registry(tmp_path, Keys(KEYS.public)).register(artefact)) == "no_private_key"
    assert refused(lambda: Registry(tmp_path, Keys(KEYS.public, OTHER.private)).register(artefact)) == "no_private_key"
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("file", [ARRAYS, CARD, SIGNATURE])
def test_a_file_too_large_is_refused_before_it_is_read(tmp_path: Path, artefact: Artefact, file: str) -> None:
    registry = Registry(tmp_path, KEYS)
    model_id = registry.register(artefact)
    os.truncate(tmp_path / "models" / model_id / file, BYTES_MAX[file] + 1)
    assert refused(lambda: registry.load(model_id)) == "oversized"


@pytest.mark.parametrize(
    ("checks", "failed"),
    [
        ({"parity_max": 1e-11}, "parity_max"),
        ({"parity_max": float("nan")}, "parity_max"),
        ({"parity_rows": 99_999.0}, "parity_rows"),
        ({"top_reason_agrees": 0.89}, "top_reason_agrees"),
        ({"calibration_error": 0.03}, "calibration_error"),
        ({"score_psi": 0.3}, "score_psi"),
        ({"auc_low": 0.5}, "auc_low"),
    ],
)
def test_a_model_that_fails_a_gate_is_not_promoted(checks: dict[str, float], failed: str, artefact: Artefact) -> None:
    assert failed_gates(artefact.checks, False) == ()
    assert failed_gates({**artefact.checks, **checks}, False) == (failed,)


def test_a_model_whose_checks_were_never_made_is_not_promoted(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path, KEYS)
    model_id = registry.register(dataclasses.replace(artefact, checks={}))
    assert refused(lambda: brought_up(registry, Kind.MODEL, model_id, "a test", 1)) == "gate_failed"
    assert registry.champion_id() is None


def test_a_model_that_was_compared_with_an_earlier_champion_is_not_promoted_over_a_later_one(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path, KEYS)
    first, second, third = (registry.register(dataclasses.replace(artefact, data_sha256=f"{n:064x}")) for n in range(3))
    brought_up(registry, Kind.MODEL, first, "a test", 1)
    compared = {"figures": {"against_champion_low": 0.0}, "expires_at_ms": 9}
    for model_id in (second, third):
        done(registry.move(Kind.MODEL, model_id, Act.REGISTER, "ana", "new", 1))
        done(registry.move(Kind.MODEL, model_id, Act.VALIDATE, "ben", "better", 1, **compared))
        done(registry.move(Kind.MODEL, model_id, Act.APPROVE, "cleo", "fit", 1, tier=Tier.LOW))
    done(registry.move(Kind.MODEL, second, Act.PROMOTE, "cleo", "now", 1))
    promotion = lambda model_id: registry.move(Kind.MODEL, model_id, Act.PROMOTE, "cleo", "now", 1)  # noqa: E731 - a short name for it
    assert registry.inventory().items[third].beside == first
    assert refused(lambda: done(promotion(third))) == "gate_failed"
    assert refused(lambda: done(registry.move(Kind.MODEL, third, Act.CHALLENGE, "cleo", "a few", 1, share=0.1))) == "gate_failed"
    done(registry.move(Kind.MODEL, first, Act.ROLL_BACK, "cleo", "a bad day", 1))
    done(promotion(third))  # with the one that decides again it was compared
    assert refused(lambda: done(promotion(first))) == "gate_failed", "when it was validated none decided"
    done(registry.move(Kind.MODEL, first, Act.VALIDATE, "dan", "better", 1, **compared))
    done(promotion(first))
    assert registry.champion_id() == first


def test_a_champion_that_no_process_of_this_release_can_use_need_not_be_compared_with(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path, KEYS)
    earlier = dataclasses.replace(artefact, ensemble=dataclasses.replace(artefact.ensemble, catalogue_id="cat_earlier"))
    worse, model_id, another = (registry.register(dataclasses.replace(artefact, data_sha256=f"{n:064x}")) for n in range(3))
    brought_up(registry, Kind.MODEL, registry.register(earlier), "a test", 1)
    done(registry.move(Kind.MODEL, worse, Act.REGISTER, "ana", "new", 1))
    done(registry.move(Kind.MODEL, worse, Act.VALIDATE, "ben", "compared", 1, figures={"against_champion": -0.1, "against_champion_low": -0.2}))
    assert refused(lambda: done(registry.move(Kind.MODEL, worse, Act.APPROVE, "cleo", "fit", 1, tier=Tier.LOW))) == "gate_failed"
    brought_up(registry, Kind.MODEL, model_id, "a test", 1)
    assert registry.champion_id() == model_id
    assert refused(lambda: brought_up(registry, Kind.MODEL, another, "a test", 1)) == "gate_failed"


def test_the_card_says_how_the_model_was_made(tmp_path: Path, artefact: Artefact) -> None:
    registry = Registry(tmp_path, KEYS)
    registry.register(artefact)
    (listed,) = registry.models()
    assert listed.card["trained"]["rows"] == 4000
    assert listed.card["figures"]["auc"] == artefact.figures["auc"]
    assert [m["weight"] for m in listed.card["members"]] == [0.4, 0.2, 0.15, 0.15, 0.1]


def test_the_default_policy_judges_until_another_is_promoted(tmp_path: Path) -> None:
    registry = Registry(tmp_path, KEYS)
    first = registry.policy()
    other = default_policy_text().replace("block_above = 0.80", "block_above = 0.85")
    policy_id = registry.put_policy(other)
    assert registry.policy().policy_id == first.policy_id
    brought_up(registry, Kind.POLICY, policy_id, "a test", 5)
    assert (registry.policy().policy_id, registry.policy().block_above) == (policy_id, 850)
    (tmp_path / "policies" / f"{policy_id}.toml").write_text(default_policy_text())
    with pytest.raises(ArtefactError):
        registry.policy()


def test_a_policy_with_a_mistake_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="block_above"):
        Registry(tmp_path, KEYS).put_policy(default_policy_text().replace("block_above = 0.80", "block_above = 8"))


def test_what_finds_no_room_on_the_disk_names_its_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        Registry(tmp_path, KEYS).put_policy(default_policy_text())
    assert str(error.value.filename).startswith(str(tmp_path / "policies" / "pol_"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_move_is_on_the_disk_with_its_name_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, real, kept = Registry(tmp_path, KEYS), os.fsync, list[list[str]]()

    def seen(descriptor: int) -> None:
        real(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            kept.append(sorted(name for name in os.listdir(descriptor) if not name.startswith(".")))

    monkeypatch.setattr(os, "fsync", seen)
    policy_id = registry.put_policy(default_policy_text())
    registry.move(Kind.POLICY, policy_id, Act.REGISTER, "ana", "a test", 1)
    assert kept == [[f"{policy_id}.sig"], [f"{policy_id}.sig", f"{policy_id}.toml"], ["00000001.json"]]


def test_a_folder_that_does_not_answer_is_no_error_to_who_asks_whether_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, real = Registry(tmp_path, KEYS), Path.stat
    brought_up(registry, Kind.POLICY, registry.put_policy(default_policy_text()), "a test", 1)
    before = registry.moves_at()

    def stale(path: Path, **rest: Any) -> os.stat_result:
        if path.name == "moves":
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, **rest)

    with monkeypatch.context() as gone:
        gone.setattr(Path, "stat", stale)
        assert registry.moves_at() == 0
    assert registry.moves_at() == before > 0


def test_an_id_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="not an id"):
        Registry(tmp_path, KEYS).load("../../etc")
