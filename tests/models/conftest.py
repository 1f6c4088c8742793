"""One small ensemble for all proofs of this floor, made by the real training from drawn vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from features.catalogue import CATALOGUE
from models.policy import Policy, policy_from_toml
from models.registry import default_policy_text
from models.train import Artefact, train


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


@pytest.fixture(scope="session")
def policy() -> Policy:
    """The default policy, bound to the catalogue."""
    return policy_from_toml(default_policy_text()).bound(CATALOGUE.names)


@pytest.fixture(scope="session")
def artefact(policy: Policy) -> Artefact:
    """A trained ensemble."""
    return train(*a_history(), CATALOGUE, policy, seed=7)
