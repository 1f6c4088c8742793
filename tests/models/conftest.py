"""One small ensemble for all proofs of this floor, made by the real training from drawn vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import models
from features.catalogue import CATALOGUE
from models.history import Examples
from models.policy import Policy, policy_from_toml
from models.recipe import Recipe, recipe_from_toml
from models.registry import default_policy_text
from models.train import Artefact, train

DEFAULT_RECIPE_TEXT = (Path(models.__file__).parent / "recipes" / "default.toml").read_text(encoding="utf-8")


def a_history(rows: int = 4000, seed: int = 1) -> Examples:
    """Examples: one in twenty is fraud, which shows in one family clearly and in all a little; a tenth is missing."""
    rng = np.random.default_rng(seed)
    width = len(CATALOGUE.names)
    truth = rng.random(rows) < 0.05
    vectors = np.abs(rng.normal(size=(rows, width)))
    vectors[truth] += 0.3
    for number, family in enumerate(("velocity", "geographic", "device", "behavioural")):
        mine = truth & (np.arange(rows) % 4 == number)
        vectors[np.ix_(mine, CATALOGUE.families[family][:5])] += 2.5
    vectors[rng.random(vectors.shape) < 0.1] = np.nan
    kinds = np.where(truth, "theft", None).astype(object)
    at_ms = np.arange(rows, dtype=np.int64) * 1000
    return Examples(CATALOGUE.catalogue_id, CATALOGUE.names, vectors, truth, kinds, at_ms, np.arange(rows) // 2, int(at_ms[-1]))


@pytest.fixture(scope="session")
def policy() -> Policy:
    """The default policy, bound to the catalogue."""
    return policy_from_toml(default_policy_text()).bound(CATALOGUE.names)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The default recipe with fewer trees, so that tests are quick."""
    return quick(DEFAULT_RECIPE_TEXT)


def quick(text: str) -> Recipe:
    """A recipe of this text with fewer trees."""
    return recipe_from_toml(text.replace("max_iter = 200", "max_iter = 60").replace("max_iter = 100", "max_iter = 30"))


@pytest.fixture(scope="session")
def artefact(policy: Policy, recipe: Recipe) -> Artefact:
    """A trained ensemble."""
    return train(a_history(), recipe, policy, seed=7)
