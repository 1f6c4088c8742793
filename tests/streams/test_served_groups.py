"""Groups that a recipe declares are found in what was served: from the archive to the gate, with a model that can still be served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from features.catalogue import CATALOGUE
from models.artefact import CARD
from models.governance import Refused
from models.registry import Registry
from schemas.governance import Act, Kind, Move, Tier
from schemas.label import Label, LabelSource
from schemas.topics import DECISIONS, LABELS
from schemas.transaction import Attribute
from streams import train
from streams.columnar import as_number
from streams.folder import keys_of
from streams.governance import served_here
from streams.settings import Settings
from streams.training_set import given_in, training_set
from tests.first_model import MODEL_KEY
from tests.streams.test_archive import a_decision, an_archive
from tests.world import DEFAULT_RECIPE_TEXT, NOON, a_transaction

ROWS, MINUTE_MS = 4_000, 60_000
DECLARED = '\n[[groups]]\nname = "age"\ncolumn = "attribute.age"\nbounds = [60]\n'
PLACES = ((DECISIONS.name, 0), (LABELS.name, 0))


def served(folder: Path, busy_of_old: float, told: bool = True) -> Path:
    """An archive in which seven of ten payments of busy cards are fraud: 6 % of all cards are busy, but of the old another share."""
    chance = np.random.default_rng(1)
    ages, vectors = chance.integers(18, 95, ROWS), chance.random((ROWS, len(CATALOGUE.names)))
    busy = chance.random(ROWS) < np.where(ages >= 60, busy_of_old, 0.06)
    vectors[:, CATALOGUE.index["velocity.card_count_10m"]] = np.where(busy, 11, 1)
    frauds = busy & (chance.random(ROWS) < 0.7)
    archive = an_archive(folder, PLACES[0])
    archive.open(PLACES)
    for n, (age, vector, fraud) in enumerate(zip(ages.tolist(), vectors, frauds.tolist(), strict=True)):
        at_ms = NOON + n * MINUTE_MS
        said = (Attribute(name="branch", value=f"b{n % 7}"), Attribute(name="age", value=str(age))) if told else ()
        txn = a_transaction(f"t{n}", account_id="a1", card_token=f"crd_k1_{n // 2}", at_ms=at_ms, attributes=said)
        archive.add(a_decision(f"t{n}", at_ms, transaction=txn, at_ms=at_ms, vector=vector.tobytes()), PLACES[0], n)
        if fraud:
            label = Label(label_id=f"l{n}", transaction_id=f"t{n}", account_id="a1", fraud=True, learned_at_ms=at_ms, source=LabelSource.ANALYST)
            archive.add(label, PLACES[1], n)
    archive.write_all()
    return folder


def approved(tmp_path: Path, data: Path) -> Move | Refused:
    """What the registry says to a model that was trained on an archive, by the command, when it is to be approved."""
    (tmp_path / "recipe.toml").write_text(DEFAULT_RECIPE_TEXT.replace("max_iter = 200", "max_iter = 40") + DECLARED)
    settings = Settings(data_dir=tmp_path / "data", model_key=MODEL_KEY)
    argv = [
        "--data",
        str(data),
        "--recipe",
        str(tmp_path / "recipe.toml"),
        "--label-delay-days",
        "0",
        "--threads",
        "1",
        "--out",
        str(tmp_path / "made"),
    ]
    assert train.train(argv, settings) == 0
    card = json.loads((tmp_path / "made" / CARD).read_bytes())
    assert tuple(card["features"]) == CATALOGUE.names, "no member read an age, and the model can be served"
    assert card["checks"]["fairness_declared"] == 1
    registry = Registry(settings.registry_dir, keys_of(settings))
    model_id = registry.register(tmp_path / "made")
    served_here(registry.load(model_id))
    moves = ((Act.REGISTER, "ana", {}), (Act.VALIDATE, "ben", {}), (Act.APPROVE, "cleo", {"tier": Tier.LOW}))
    *_, last = [registry.move(Kind.MODEL, model_id, act, by, "a test", NOON, **terms) for act, by, terms in moves]  # type: ignore[arg-type]
    return last


def test_an_attribute_of_what_was_served_is_the_number_that_a_backfill_makes_of_it(tmp_path: Path) -> None:
    data = served(tmp_path, 0.06)
    names = ("attribute.age", "attribute.branch", "attribute.nowhere")
    plain, history = given_in(data).history, given_in(data, attributes=names).history
    assert (plain.names, history.names) == (CATALOGUE.names, (*CATALOGUE.names, *names))
    np.testing.assert_array_equal(history.vectors[:, :-3], plain.vectors)
    assert history.vectors[:, -3].tolist() == np.random.default_rng(1).integers(18, 95, ROWS).tolist()
    assert history.vectors[:, -2].tolist() == [as_number(f"b{n % 7}") for n in range(ROWS)]
    assert np.isnan(history.vectors[:, -1]).all()


def test_a_served_history_too_large_for_memory_stays_in_its_file_where_groups_are_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = served(tmp_path, 0.06)
    in_memory = given_in(data, attributes=("attribute.age",)).history
    monkeypatch.setattr("streams.training_set.HELD_BYTES", 0)
    examples = training_set(data, label_delay_ms=0, attributes=("attribute.age",))
    learned = examples.read_by(CATALOGUE.names).vectors
    np.testing.assert_array_equal(examples.vectors, in_memory.vectors)
    assert np.shares_memory(learned, examples.vectors), "what members learn from is no copy of it"
    assert (examples.vectors.flags.owndata, learned.flags.owndata, learned.flags.f_contiguous) == (False, False, True)


def test_of_an_attribute_that_is_said_twice_the_first_counts_as_in_a_backfill(tmp_path: Path) -> None:
    archive = an_archive(tmp_path, PLACES[0])
    for n, values in enumerate((("30", "70"), (), ("70",))):
        txn = a_transaction(f"t{n}", account_id="a1", attributes=tuple(Attribute(name="age", value=value) for value in values))
        archive.add(a_decision(f"t{n}", NOON + n, transaction=txn, at_ms=NOON + n), PLACES[0], n)
    archive.write_all()
    np.testing.assert_array_equal(given_in(tmp_path, attributes=("attribute.age",)).history.vectors[:, -1], [30.0, np.nan, 70.0])


@pytest.mark.parametrize(("busy_of_old", "stopped"), [(0.06, False), (0.3, True)])
def test_who_alerts_one_group_more_often_is_not_approved(tmp_path: Path, busy_of_old: float, stopped: bool) -> None:
    last = approved(tmp_path, served(tmp_path / "archive", busy_of_old))
    assert isinstance(last, Refused) is stopped
    if isinstance(last, Refused):
        assert "fairness_ratio_low" in str(last)


def test_where_nobody_was_served_with_the_attribute_nothing_was_measured_and_nobody_is_approved(tmp_path: Path) -> None:
    last = approved(tmp_path, served(tmp_path / "archive", 0.06, told=False))
    assert isinstance(last, Refused)
    assert "fairness_ratio_low" in str(last)
