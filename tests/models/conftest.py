"""One small ensemble for all proofs of this floor, made by the real training from drawn vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from features.catalogue import CATALOGUE
from models.history import Examples
from models.policy import Policy, policy_from_toml
from models.recipe import Recipe
from models.registry import default_policy_text
from models.train import Artefact, train
from tests.world import examples_of, quick


def a_history(rows: int = 4000, seed: int = 1) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Vectors, truth and times: one in twenty is fraud, which shows in one family clearly and in all a little; a tenth is missing."""
    rng = np.random.default_rng(seed)
    width = len(CATALOGUE.names)
    truth = rng.random(rows) < 0.05
    vectors = np.abs(rng.normal(size=(rows, width)))
    vectors[truth] += 0.3
    for number, family in enumerate(("velocity", "geographic", "device", "behavioural")):
        mine = truth & (np.arange(rows) % 4 == number)
        vectors[np.ix_(mine, CATALOGUE.families[family][:5])] += 2.5
    vectors[rng.random(vectors.shape) < 0.1] = np.nan
    return vectors, truth, np.arange(rows, dtype=np.int64) * 1000


def some_examples(rows: int = 4000, seed: int = 1) -> Examples:
    """The same as examples."""
    return examples_of(*a_history(rows, seed))


@pytest.fixture(scope="session")
def policy() -> Policy:
    """The default policy, bound to the catalogue."""
    return policy_from_toml(default_policy_text()).bound(CATALOGUE.names)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The default recipe with fewer trees, so that tests are quick."""
    return quick()


@pytest.fixture(scope="session")
def artefact(policy: Policy, recipe: Recipe) -> Artefact:
    """A trained ensemble."""
    return train(some_examples(), recipe, policy, seed=7)
