"""Proves that a recipe is read row by row and that what is wrong with it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.recipe import recipe_from_toml
from schemas.errors import SettingsError
from streams.train import RECIPES, recipe_in
from tests.world import DEFAULT_RECIPE_TEXT


def test_the_default_recipe_has_five_members_with_the_weights_of_the_house() -> None:
    recipe = recipe_from_toml(DEFAULT_RECIPE_TEXT)
    assert dict(recipe.weights) == {"learned": 0.40, "behavioural": 0.20, "device": 0.15, "geographic": 0.15, "velocity": 0.10}
    assert recipe.members[0].families == ("*",)
    assert recipe.weights_from == "measured"
    assert recipe.recipe_id != recipe_from_toml(DEFAULT_RECIPE_TEXT + "# another text\n").recipe_id


def test_every_recipe_that_comes_with_the_house_is_one() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    assert [recipe_in(Path(name)).name for name in names] == names == ["default", "few_labels"]
    unsupervised = {row.name for row in recipe_in(Path("few_labels")).members if row.estimator == "isolation_forest"}
    assert unsupervised == {"behavioural", "device"}


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("weight = 0.40", "weight = 0.41", "sum to 1.01"),
        ("weight = 0.40", "weight = -0.40", "weight"),
        ('estimator = "hist_gradient_boosting"', 'estimator = "oracle"', "oracle"),
        ('name = "device"', 'name = "velocity"', "two members 'velocity'"),
        ('name = "device"', 'name = "device\\n"', r"members\[2\].name"),
        ('families = ["device"]', "families = []", r"members\[2\].families"),
        ("parts = 3", "parts = 1", "parts"),
        ("parts = 3", "parts = 3\nparst = 4", "parst"),
        ("parts = 3", "parts =", "recipe"),
        ("parts = 3", f"parts = {'9' * 5000}", "recipe"),
        ("parts = 3", f"parts = {'[' * 5000}{']' * 5000}", "recipe"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(old: str, new: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        recipe_from_toml(DEFAULT_RECIPE_TEXT.replace(old, new, 1))
