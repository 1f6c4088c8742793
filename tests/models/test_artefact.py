"""Proves that no byte of a model file is believed: 100,000 mutations (here a few) crash nothing, and what was not signed is not served."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.artefact import ARRAYS, CARD, SIGNATURE, Keys, model_id_of, opened, packed, public_of, unpacked
from models.train import Artefact
from schemas.errors import ArtefactError
from tests.bench.fuzz import fuzzed

KEYS = Keys(public_of(b"k" * 32), b"k" * 32)


@pytest.fixture(scope="module")
def files(artefact: Artefact) -> dict[str, bytes]:
    made = packed(artefact)
    return made | {SIGNATURE: KEYS.signature(made[CARD])}


def resigned(files: dict[str, bytes], **card: object) -> dict[str, bytes]:
    """The files with other values in the card, signed again: what a bank's own mistake could make."""
    content = json.dumps(json.loads(files[CARD]) | card).encode()
    return files | {CARD: content, SIGNATURE: KEYS.signature(content)}


def code_of(files: dict[str, bytes]) -> str:
    with pytest.raises(ArtefactError) as refused:
        opened(files, KEYS, model_id_of(files[CARD]))
    return refused.value.code


def test_what_was_packed_is_opened(files: dict[str, bytes], artefact: Artefact) -> None:
    ensemble = opened(files, KEYS, model_id_of(files[CARD]))
    for one, other in zip(ensemble.forest, artefact.ensemble.forest, strict=True):
        assert (one == other).all()
    assert np.array_equal(ensemble.usual, artefact.ensemble.usual, equal_nan=True)
    assert (ensemble.suspicious_low == artefact.ensemble.suspicious_low).all()


def test_each_refusal_has_its_name(files: dict[str, bytes]) -> None:
    card = json.loads(files[CARD])
    members = card["members"]
    assert code_of(files | {SIGNATURE: bytes(64)}) == "unsigned"
    assert code_of(files | {SIGNATURE: b"short"}) == "unsigned"
    assert code_of(files | {SIGNATURE: bytes(65)}) == "oversized"
    assert code_of(files | {ARRAYS: files[ARRAYS] + b"x"}) == "altered"
    assert code_of(resigned(files, format=2)) == "malformed"
    assert code_of(resigned(files, arrays=card["arrays"] | {"nodes": card["arrays"]["nodes"] + 1})) == "malformed"
    assert code_of(resigned(files, arrays=card["arrays"] | {"nodes": -1})) == "malformed"
    assert code_of(resigned(files, members=members[:-1])) == "malformed"
    assert code_of(resigned(files, members=[*members[:-1], members[-1] | {"weight": 0.5}])) == "malformed"
    assert code_of(resigned(files, members=[members[0] | {"columns": [len(card["features"])]}, *members[1:]])) == "malformed"
    assert code_of(resigned(files, features=[card["features"][0]] * len(card["features"]))) == "malformed"
    for part in ("trained", "figures", "checks"):
        assert code_of(resigned(files, **{part: None})) == "malformed"
    assert code_of(resigned(files, trained={name: said for name, said in card["trained"].items() if name != "until_at_ms"})) == "malformed"
    assert code_of(resigned(files, trained=card["trained"] | {"until_at_ms": "tomorrow"})) == "malformed"
    assert code_of(resigned(files, figures=card["figures"] | {"auc": "good"})) == "malformed"
    assert code_of(resigned(files, checks=card["checks"] | {"parity_max": "none"})) == "malformed"
    assert code_of(resigned(files, snapshot={"score": {"edges": [1.0], "shares": [0.5, 0.5]}})) == "malformed"
    with pytest.raises(ArtefactError):
        unpacked(files | {CARD: b"[" * 100_000})


def test_mutated_files_are_refused_by_name_and_none_is_served(files: dict[str, bytes]) -> None:
    counts = fuzzed(files, KEYS, 600, seed=11)
    assert counts["mutated"] == 600
    assert counts["served"] == 0
    assert sum(counts[code] for code in counts if code.startswith("refused_")) == 600


def test_mutated_files_that_somebody_signed_crash_nothing(files: dict[str, bytes]) -> None:
    counts = fuzzed(files, KEYS, 600, seed=12, signed=True)
    assert counts["refused_unsound_arrays"] > 50
    assert counts["refused_malformed"] > 50
    assert counts["out_of_bounds"] == 0
