"""Proves that training is repeatable, finds what is there, measures on what it has not seen, and refuses what cannot be learned."""

from __future__ import annotations

import numpy as np
import pytest

from features.catalogue import CATALOGUE
from models.policy import Policy
from models.train import Artefact, measured, train
from schemas.errors import ArtefactError
from tests.models.conftest import a_history


def test_each_member_reads_its_familys_columns_and_the_learned_one_reads_all(artefact: Artefact) -> None:
    columns = {m.name: m.columns for m in artefact.ensemble.members}
    assert columns.pop("learned") == tuple(range(len(CATALOGUE.names)))
    families = CATALOGUE.families
    behaviour = (*families["behavioural"], *families["takeover"], *families["identity"], *families["network"])
    assert columns == {name: families[name] for name in ("device", "geographic", "velocity")} | {"behavioural": behaviour}
    starts, roots, nodes = artefact.ensemble.forest.starts, artefact.ensemble.forest.roots, artefact.ensemble.forest.nodes
    ends = np.append(roots[1:], len(nodes))
    for place, member in enumerate(artefact.ensemble.members):
        read = nodes["feature"][roots[starts[place]] : ends[starts[place + 1] - 1]]
        assert set(read[read >= 0].tolist()) <= set(member.columns)


def test_the_same_rows_and_seed_train_the_same_trees(artefact: Artefact, policy: Policy) -> None:
    again = train(*a_history(), CATALOGUE, policy, seed=7)
    for one, other in zip(artefact.ensemble.forest, again.ensemble.forest, strict=True):
        assert (one == other).all()
    assert artefact.figures == again.figures


def test_what_shows_is_found_on_rows_that_training_has_not_seen(artefact: Artefact) -> None:
    figures = artefact.figures
    assert figures["rows"] == 800
    assert (figures["auc"] or 0) > 0.95
    assert (figures["precision_at_review"] or 0) > 0.7
    assert (figures["recall_at_review"] or 0) > 0.5


def test_figures_count_the_score_as_it_is_shown(policy: Policy) -> None:
    truth = np.array([True, True, False, False])
    figures = measured(np.array([0.9, 0.5004, 0.6, 0.1]), truth, policy)
    assert (figures["precision_at_review"], figures["recall_at_review"]) == (0.5, 0.5)
    assert (figures["precision_at_block"], figures["recall_at_block"]) == (1.0, 0.5)
    assert figures["share_above_review"] == 0.5
    assert measured(np.array([0.1]), np.array([False]), policy)["auc"] is None


def test_rows_of_one_class_train_nothing(policy: Policy) -> None:
    vectors, _, at_ms = a_history(200)
    with pytest.raises(ArtefactError, match="honest and fraudulent"):
        train(vectors, np.zeros(200, dtype=np.bool_), at_ms, CATALOGUE, policy, seed=1)


def test_the_order_in_which_rows_come_does_not_matter_their_time_does(artefact: Artefact, policy: Policy) -> None:
    vectors, truth, at_ms = a_history()
    mixed = np.random.default_rng(5).permutation(len(truth))
    again = train(vectors[mixed], truth[mixed], at_ms[mixed], CATALOGUE, policy, seed=7)
    assert again.figures == artefact.figures


def test_columns_that_never_had_a_value_and_whole_families_of_them_do_not_stop_training(policy: Policy) -> None:
    vectors, truth, at_ms = a_history()
    vectors = vectors.copy()
    vectors[:, [*CATALOGUE.families["device"], CATALOGUE.families["geographic"][0]]] = np.nan
    blind = train(vectors, truth, at_ms, CATALOGUE, policy, seed=7)
    said = [blind.ensemble.score(vector).probabilities[2] for vector in vectors[:50]]
    assert blind.ensemble.members[2].name == "device"
    assert len(set(said)) == 1
