"""Proves that fairness is measured as it says: by brute force, with an interval that is right 95 times in 100, and that the gate asks for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
import pytest

from features.catalogue import CATALOGUE
from models.artefact import CARD, packed
from models.document import document
from models.fairness import Groups, checks, measured, treated
from models.gates import failed_gates
from models.history import Examples
from models.recipe import recipe_from_toml
from schemas.errors import SettingsError
from tests.world import DEFAULT_RECIPE_TEXT, a_policy, examples_of, quick, trained_quickly

AGE = Groups(name="age", column="attribute.age", bounds=(30, 60))
DECLARED = '\n[[groups]]\nname = "age"\ncolumn = "attribute.age"\nbounds = [30, 60]\n'
ROWS = 6_000


def drawn(rate_of_old: float, seed: int, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Ages, alerts, frauds and cards: 5 % of the honest are alerted, but of the old another share; two payments of a card are alike."""
    chance = np.random.default_rng(seed)
    ages, cards = np.repeat(chance.integers(18, 90, rows // 2).astype(np.float64), 2), np.repeat(np.arange(rows // 2), 2)
    alerts = np.repeat(chance.random(rows // 2), 2) < np.where(ages >= 60, rate_of_old, 0.05)
    return ages, alerts, chance.random(rows) < 0.02, cards


def test_a_group_is_a_range_from_its_lower_bound_on_or_a_value_and_the_missing_are_in_none() -> None:
    assert AGE.names == ("below 30", "30 to below 60", "60 and above")
    assert AGE.of(np.array([29.9, 30, 59, 60, np.nan])).tolist() == [0, 1, 1, 2, -1]
    coded = Groups(name="sex", column="attribute.sex", values={"women": 1, "men": 2})
    assert coded.of(np.array([2, 1, 3, np.nan])).tolist() == [1, 0, -1, -1]


def test_ratios_are_those_of_brute_force() -> None:
    ages, alerts, frauds, cards = drawn(0.2, 1)
    old = next(row for row in treated(AGE, ages, alerts, frauds, cards) if row.group == "60 and above")
    own, others = ~frauds & (ages >= 60), ~frauds & (ages < 60)
    assert (old.honest, old.alerted) == (own.sum(), pytest.approx(alerts[own].mean()))
    assert old.ratio == pytest.approx(alerts[own].mean() / alerts[others].mean(), rel=0.01)
    assert old.low is not None
    assert old.high is not None
    assert 2.5 < old.low < old.ratio < old.high < 7


def test_where_there_is_no_difference_the_interval_hardly_ever_denies_it() -> None:
    rows = [row for seed in range(30) for row in treated(AGE, *drawn(0.05, seed, 3_000)) if row.low is not None and row.high is not None]
    missed = sum(not row.low <= 1 <= row.high for row in rows if row.low is not None and row.high is not None)
    assert missed <= 0.12 * len(rows)


@pytest.mark.parametrize(("rate", "failed"), [(0.05, ()), (0.2, ("fairness_ratio_low",))])
def test_the_gate_fails_where_chance_does_not_explain_the_difference(rate: float, failed: tuple[str, ...]) -> None:
    ages, alerts, frauds, cards = drawn(rate, 2)
    found = checks([AGE], measured([AGE], ("attribute.age",), ages[:, np.newaxis], alerts, frauds, cards))
    assert across(found) == failed


def test_what_was_declared_and_could_not_be_measured_fails_and_what_was_not_declared_is_not_asked() -> None:
    ages, alerts, frauds, cards = drawn(0.05, 3)
    assert across(checks([AGE], measured([AGE], ("another",), ages[:, np.newaxis], alerts, frauds, cards))) == ("fairness_ratio_low",)
    few = slice(0, 300)
    assert across(checks([AGE], measured([AGE], (AGE.column,), ages[few, np.newaxis], alerts[few], frauds[few], cards[few])))
    assert across(checks([], {})) == ()


def across(found: Mapping[str, float]) -> tuple[str, ...]:
    """Which of the gates across groups fail."""
    return tuple(name for name in failed_gates(found, beside_champion=False) if name.startswith("fairness"))


@pytest.mark.parametrize("text", ["bounds = [60, 30]", "bounds = [30]\nvalues = { old = 1 }", ""])
def test_a_declaration_says_ranges_or_values(text: str) -> None:
    with pytest.raises(SettingsError, match="groups age"):
        recipe_from_toml(DEFAULT_RECIPE_TEXT + DECLARED.replace("bounds = [30, 60]", text))


def with_ages(rows: int = 2_000) -> Examples:
    """Fraud is where the card was busy; busier the older, with an age beside the features."""
    chance = np.random.default_rng(1)
    vectors = chance.random((rows, len(CATALOGUE.names) + 1))
    busy = CATALOGUE.index["velocity.card_count_10m"]
    vectors[:, busy], vectors[:, -1] = chance.integers(0, 12, rows), chance.integers(18, 90, rows)
    examples = examples_of(vectors[:, :-1], vectors[:, busy] > 9, np.arange(rows))
    return dataclasses.replace(examples, names=(*examples.names, AGE.column), vectors=vectors)


def test_a_declared_attribute_is_measured_with_and_never_learned_from_and_the_document_says_it() -> None:
    made = trained_quickly(with_ages(), quick(DEFAULT_RECIPE_TEXT + DECLARED), a_policy(), seed=1)
    assert made.ensemble.names == CATALOGUE.names, "so that it can be served"
    assert made.checks["fairness_declared"] == 1
    said = document("mdl_1", json.loads(packed(made)[CARD]), None, (), (), CATALOGUE)
    assert "age (attribute.age)" in said
    assert "60 and above" in said
    undeclared = {"fairness_declared": 0.0}
    plain = dataclasses.replace(made, checks={**made.checks, **undeclared}, fairness={})
    assert "the recipe declares no groups" in document("mdl_1", json.loads(packed(plain)[CARD]), None, (), (), CATALOGUE)
