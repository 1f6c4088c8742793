"""Proves that training is repeatable, finds what is there, means what it scores, and refuses what cannot be learned."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from features.catalogue import CATALOGUE
from models import trees
from models.artefact import CARD, packed, unpacked
from models.document import document
from models.ensemble import LEARNED
from models.figures import calibration_error, reliability
from models.history import Examples, Flags, Floats
from models.policy import Policy
from models.recipe import Recipe, recipe_from_toml
from models.train import Artefact, Team, fit, measured
from schemas.errors import ArtefactError, SettingsError
from tests.models.conftest import some_examples
from tests.world import DEFAULT_RECIPE_TEXT, examples_of, quick, trained_quickly

ANY_ESTIMATOR = """
name = "each kind of estimator"
honest_per_fraud = 10
parts = 2
members = [
    { name = "learned", weight = 0.4, families = ["*"], estimator = "extra_trees", parameters = { n_estimators = 20, min_samples_leaf = 3 } },
    { name = "behavioural", weight = 0.2, families = ["behavioural"], estimator = "isolation_forest", parameters = { n_estimators = 20 } },
    { name = "velocity", weight = 0.2, families = ["velocity"], estimator = "logistic_regression", parameters = { max_iter = 500 } },
    { name = "device", weight = 0.2, families = ["device", "geographic"], estimator = "random_forest", parameters = { n_estimators = 20 } },
]
"""


ONE_MEMBER = recipe_from_toml("""
name = "one"
honest_per_fraud = 10
parts = 3
members = [{ name = "learned", weight = 1.0, families = ["velocity"], estimator = "hist_gradient_boosting", parameters = { max_iter = 2 } }]
""")


@pytest.fixture(scope="module")
def team(recipe: Recipe) -> Team:
    return fit(some_examples(), recipe, seed=7)


def test_each_member_reads_its_families_columns_and_the_learned_one_reads_all(artefact: Artefact) -> None:
    columns = {m.name: m.columns for m in artefact.ensemble.members}
    families = CATALOGUE.families
    assert columns.pop(LEARNED) == tuple(range(len(CATALOGUE.names)))
    behaviour = (*families["behavioural"], *families["takeover"], *families["identity"], *families["network"])
    place = (*families["geographic"], *families["merchant"])
    assert columns == {name: families[name] for name in ("device", "velocity")} | {"behavioural": behaviour, "geographic": place}
    starts, roots, nodes = artefact.ensemble.forest.starts, artefact.ensemble.forest.roots, artefact.ensemble.forest.nodes
    ends = np.append(roots[1:], len(nodes))
    for place_of, member in enumerate(artefact.ensemble.members):
        read = nodes["feature"][roots[starts[place_of]] : ends[starts[place_of + 1] - 1]]
        assert set(read[read >= 0].tolist()) <= set(member.columns)


def test_the_same_examples_recipe_and_seed_train_the_same_arrays_on_any_number_of_threads(artefact: Artefact, policy: Policy, recipe: Recipe) -> None:
    again = trained_quickly(some_examples(), recipe, policy, seed=7, threads=2)
    for one, other in zip(artefact.ensemble.forest, again.ensemble.forest, strict=True):
        assert one.tobytes() == other.tobytes()
    assert artefact.figures == again.figures


def test_a_long_history_is_worked_on_in_lots_and_trains_the_same(
    artefact: Artefact, policy: Policy, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "LOT_ROWS", 97)
    again = trained_quickly(some_examples(), recipe, policy, seed=7)
    for one, other in zip(artefact.ensemble.forest, again.ensemble.forest, strict=True):
        assert one.tobytes() == other.tobytes()
    assert (artefact.figures, artefact.checks["score_psi"], artefact.snapshot) == (again.figures, again.checks["score_psi"], again.snapshot)
    examples = some_examples()
    whole = hashlib.sha256(np.ascontiguousarray(examples.vectors).tobytes() + examples.frauds.tobytes())
    assert artefact.data_sha256 == again.data_sha256 == whole.hexdigest()


def test_what_shows_is_found_on_rows_that_training_has_not_seen(artefact: Artefact) -> None:
    figures = artefact.figures
    assert figures["rows"] == 800
    assert (figures["auc"] or 0) > 0.95
    assert (figures["precision_at_review"] or 0) > 0.7
    assert (figures["recall_at_review"] or 0) > 0.5


def test_members_and_the_ensemble_say_the_share_of_fraud_on_rows_that_they_have_not_seen(team: Team) -> None:
    unseen = some_examples(6000, seed=2)
    said = team.said(unseen.vectors)
    for scores in (*said.T, team.given.scores(said), team.fitted.scores(said)):
        assert calibration_error(reliability(scores, unseen.frauds)) < 0.03
        assert scores.mean() == pytest.approx(unseen.frauds.mean(), abs=0.015)


def wanting(weights: str) -> Recipe:
    """The default recipe with its weights from there."""
    return quick(DEFAULT_RECIPE_TEXT.replace('weights = "measured"', f'weights = "{weights}"'))


def test_the_weights_are_the_recipes_or_fitted_and_fitted_ones_sum_to_one(recipe: Recipe, policy: Policy) -> None:
    given = trained_quickly(some_examples(), wanting("given"), policy, seed=7)
    assert {m.name: m.weight for m in given.ensemble.members} == recipe.weights
    fitted = trained_quickly(some_examples(), wanting("fitted"), policy, seed=7)
    weights = [m.weight for m in fitted.ensemble.members]
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1)
    assert weights != list(recipe.weights.values())


def test_a_recipe_without_a_limit_on_the_honest_learns_from_all(team: Team, recipe: Recipe) -> None:
    without = fit(some_examples(), replace(recipe, honest_per_fraud=math.inf), seed=7)
    assert np.array_equal(without.said(some_examples().vectors), team.said(some_examples().vectors))


def test_any_estimator_of_a_recipe_is_served_as_scikit_learn_says_it(policy: Policy) -> None:
    recipe, examples = quick(ANY_ESTIMATOR), some_examples()
    ensemble = trained_quickly(examples, recipe, policy, seed=3).ensemble
    first = int(len(examples.frauds) * 0.8)
    seen = {name: getattr(examples, name)[:first] for name in ("vectors", "frauds", "kinds", "at_ms", "cards")}
    team = fit(replace(examples, **seen), recipe, seed=3)
    wanted = team.given.scores(team.said(examples.vectors))
    assert np.abs(ensemble.scores(examples.vectors) - wanted).max() <= 1e-12


def test_figures_count_the_score_as_it_is_shown(policy: Policy) -> None:
    truth, scores = np.array([True, True, False, False]), np.array([0.9, 0.5004, 0.6, 0.1])
    figures = measured(scores, truth, policy)
    assert (figures["precision_at_review"], figures["recall_at_review"]) == (0.5, 0.5)
    assert (figures["precision_at_block"], figures["recall_at_block"]) == (1.0, 0.5)
    assert figures["share_above_review"] == 0.5
    assert figures["auc"] == pytest.approx(roc_auc_score(truth, scores))
    assert figures["average_precision"] == pytest.approx(average_precision_score(truth, scores))
    assert measured(np.array([0.1]), np.array([False]), policy)["auc"] is None


def test_rows_of_one_class_train_nothing(policy: Policy, recipe: Recipe) -> None:
    examples = some_examples(200)
    for truth in (np.zeros(200, dtype=np.bool_), np.ones(200, dtype=np.bool_), np.arange(200) == 0):
        with pytest.raises(ArtefactError, match="honest payments, and frauds of several cards"):
            trained_quickly(replace(examples, frauds=truth), recipe, policy, seed=1)


def test_frauds_of_two_cards_are_enough_whatever_the_seed_deals() -> None:
    examples = some_examples(400)
    two = replace(examples, frauds=np.isin(np.arange(400), (10, 200, 201)), cards=np.arange(400) // 2)
    one = replace(two, frauds=np.isin(np.arange(400), (200, 201)))
    for seed in range(1, 9):
        assert len(fit(two, ONE_MEMBER, seed).members) == 1
        with pytest.raises(ArtefactError, match="frauds of several cards"):
            fit(one, ONE_MEMBER, seed)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ("{ n_estimatrs = 20, min_samples_leaf = 3 }", "member learned: .*n_estimatrs"),
        ("{ n_estimators = -20 }", "member learned: The 'n_estimators' parameter"),
        ("{ random_state = 3 }", "member learned: .*random_state"),
    ],
)
def test_a_parameter_that_the_estimator_does_not_take_is_named_with_its_member(mistake: str, named: str) -> None:
    text = ANY_ESTIMATOR.replace("{ n_estimators = 20, min_samples_leaf = 3 }", mistake)
    with pytest.raises(SettingsError, match=named):
        fit(some_examples(600), recipe_from_toml(text), seed=1)


def test_a_family_that_nobody_has_is_named_with_its_member() -> None:
    mistyped = quick(ANY_ESTIMATOR.replace('["device", "geographic"]', '["devise"]'))
    with pytest.raises(SettingsError, match=r"member device: .*'devise'"):
        fit(some_examples(600), mistyped, seed=1)


def test_columns_that_never_had_a_value_and_whole_families_of_them_do_not_stop_training(policy: Policy, recipe: Recipe) -> None:
    examples = some_examples()
    examples.vectors[:, [*CATALOGUE.families["device"], CATALOGUE.families["geographic"][0]]] = np.nan
    blind = trained_quickly(examples, recipe, policy, seed=7)
    said = [blind.ensemble.score(vector).probabilities[2] for vector in examples.vectors[:50]]
    assert blind.ensemble.members[2].name == "device"
    assert len(set(said)) == 1
    assert said[0] == pytest.approx(0.05, abs=0.01)
    opened_again = unpacked(packed(blind))  # as a bank without such columns registers it
    assert np.array_equal(opened_again.scores(examples.vectors), blind.ensemble.scores(examples.vectors))


def test_a_column_that_one_card_alone_has_does_not_stop_training() -> None:
    examples = some_examples(600)
    examples.vectors[:, 3] = np.nan
    examples.vectors[examples.cards == examples.cards[5], 3] = [1.0, *[2.0] * (np.count_nonzero(examples.cards == examples.cards[5]) - 1)]
    members = {member.row.name: member.columns for member in fit(examples, quick(), seed=1).members}
    assert 3 not in members["learned"]
    assert 4 in members["learned"]


def test_columns_that_no_catalogue_has_are_learned_from(policy: Policy, recipe: Recipe) -> None:
    examples = some_examples(2000)
    extra = np.where(examples.frauds, 3.0, 0.0) + np.random.default_rng(1).normal(size=2000)
    names, vectors = ("velocity.x", "attribute.v1"), np.column_stack([np.abs(extra) * 0, extra])
    made = trained_quickly(replace(examples, names=names, vectors=vectors, catalogue_id="cat_other"), recipe, policy, seed=1)
    assert made.ensemble.names == names
    assert (made.figures["auc"] or 0) > 0.9


FOREIGN = ("attribute.v1", "attribute.v2", "behavioural.amount", "velocity.x", "device.x", "geographic.x")


def of_foreign_columns(rows: int, seed: int) -> Examples:
    """Fraud lies where an amount and a column of no family meet: the learned member alone can see it, the amount alone says a little."""
    rng = np.random.default_rng(seed)
    vectors = rng.random((rows, len(FOREIGN)))
    truth = (np.abs(vectors[:, 0] - vectors[:, 2]) < 0.012) & (rng.random(rows) < 0.9 * vectors[:, 2])
    return foreign(vectors, truth)


def foreign(vectors: Floats, truth: Flags) -> Examples:
    """Examples of somebody else's columns."""
    examples = examples_of(vectors, truth, np.arange(len(truth), dtype=np.int64) * 1000)
    return replace(examples, names=FOREIGN, catalogue_id="cat_foreign")


def test_where_members_have_little_to_say_measured_weights_leave_them_out_and_unseen_rows_are_ranked_better(policy: Policy) -> None:
    """Four of the five read next to nothing: with the recipe's weights they have six tenths of the say."""
    examples, unseen = of_foreign_columns(8000, seed=3), of_foreign_columns(20_000, seed=4)
    made = {wanted: trained_quickly(examples, wanting(wanted), policy, seed=7) for wanted in ("given", "measured")}
    reached = {wanted: measured(one.ensemble.scores(unseen.vectors), unseen.frauds, policy) for wanted, one in made.items()}
    assert (reached["measured"]["auc"] or 0) > (reached["given"]["auc"] or 1) + 0.005
    assert (made["measured"].weights["wanted"], made["measured"].weights["taken"]) == ("measured", "fitted")
    assert made["measured"].ensemble.members[0].weight > 0.9
    said = document("mdl_1", json.loads(packed(made["measured"])[CARD]), None, (), (), CATALOGUE)
    assert "They are surely better, so that these are the fitted ones" in said


def test_where_fitted_weights_are_not_surely_better_the_recipes_stand_and_the_document_says_so(policy: Policy) -> None:
    few = some_examples(600)
    made = trained_quickly(few, wanting("measured"), policy, seed=7)
    assert {m.name: m.weight for m in made.ensemble.members} == made.weights["given"]
    assert made.weights["taken"] == "given"
    said = document("mdl_1", json.loads(packed(made)[CARD]), None, (), (), CATALOGUE)
    assert "They are not surely better, so that these are the recipe" in said


def test_where_no_member_knows_anything_fitted_weights_are_hardly_ever_surely_better() -> None:
    sure = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        sure += fit(foreign(rng.random((900, len(FOREIGN))), rng.random(900) < 0.06), quick(), seed=seed).gain.sure
    assert sure <= 1
