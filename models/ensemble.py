"""The ensemble: members' probabilities, weighted into one; a member that gives none is left out and said to be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.attribution import Explained, contributions, explained
from models.trees import Floats, Forest, Laid, calibrated, scored, scored_all

Flags = npt.NDArray[np.bool_]
LEARNED = "learned"
"""The member that reads every column; each other member is named for the family of columns that it reads."""


class Member(NamedTuple):
    """One member: its name, its weight, and the columns of the catalogue that it was trained on."""

    name: str
    weight: float
    columns: tuple[int, ...]


class Scored(NamedTuple):
    """What the members said of one transaction."""

    probabilities: tuple[float | None, ...]  # by member; None: it gave none
    weights: tuple[float, ...]  # by member; those that were used sum to 1, a member that was not has 0
    total: float | None  # weighted sum, 0 to 1; None: no member gave a probability
    score: float | None  # the total on the ensemble's own curve, 0 to 1

    def missing(self, members: tuple[Member, ...]) -> tuple[str, ...]:
        """Names of the members that gave no probability."""
        return tuple(m.name for m, p in zip(members, self.probabilities, strict=True) if p is None)


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """Five members over one catalogue. `absent` members are known to be unfit and are not listened to."""

    model_id: str
    catalogue_id: str
    names: tuple[str, ...]
    members: tuple[Member, ...]
    forest: Forest
    usual: Floats  # by column: the honest rows' median at training; NaN if they had none
    suspicious_low: Flags  # by column: it is small values that are suspicious
    absent: frozenset[str] = frozenset()
    _weights: tuple[float, ...] = field(init=False)
    _spoken: Floats = field(init=False)
    known: Explained = field(init=False)  # what reasons need to know of the forest
    _walk: Laid = field(init=False)

    def __post_init__(self) -> None:
        """Weights of those present, so that they sum to 1."""
        heard = tuple(0.0 if m.name in self.absent else m.weight for m in self.members)
        share = 1.0 if math.isclose(sum(heard), 1.0) else sum(heard) or 1.0
        object.__setattr__(self, "_weights", tuple(w / share for w in heard))
        object.__setattr__(self, "_spoken", np.array(self._weights))
        object.__setattr__(self, "known", explained(self.forest))
        object.__setattr__(self, "_walk", self.known.walk)

    def without(self, *names: str) -> Ensemble:
        """The ensemble that does not listen to these members; the weights of the others are scaled to sum to 1."""
        return replace(self, absent=self.absent | set(names))

    def score(self, vector: Floats) -> Scored:
        """Members' probabilities, their weighted sum and the score for one vector (float64[columns], NaN is missing)."""
        return self._scored(scored(self._walk, self._spoken, vector).tolist())

    def score_all(self, rows: Floats) -> list[Scored]:
        """`score` of each row of a matrix, in one compiled call."""
        return [self._scored(said) for said in scored_all(self._walk, self._spoken, rows).tolist()]

    def _scored(self, told: list[float]) -> Scored:
        """What the compiled part told of one vector: probabilities, weighted sum, score."""
        *said, total, score = told
        if self.absent or not math.isfinite(total):
            return self._of_those_heard(said)
        return Scored(tuple(said), self._weights, total, score)

    def _of_those_heard(self, said: list[float]) -> Scored:
        """The same where a member is absent or broken (its probability is not a number)."""
        heard = [m.name not in self.absent and math.isfinite(p) for m, p in zip(self.members, said, strict=True)]
        share = sum(m.weight for m, h in zip(self.members, heard, strict=True) if h)
        if share <= 0:
            return Scored((None,) * len(said), (0.0,) * len(said), None, None)
        weights = tuple(m.weight / share if h else 0.0 for m, h in zip(self.members, heard, strict=True))
        kept = tuple(p if h else None for p, h in zip(said, heard, strict=True))
        total = sum(p * w for p, w in zip(kept, weights, strict=True) if p is not None)
        return Scored(kept, weights, total, float(calibrated(self._walk, np.array([total]))[0]))

    def totals(self, rows: Floats) -> Floats:
        """float64[rows]: the weighted sum for each row of a matrix; `scores` are what is compared with thresholds."""
        totals: Floats = scored_all(self._walk, self._spoken, rows)[:, len(self.members)]
        return totals

    def scores(self, rows: Floats) -> Floats:
        """float64[rows]: the score (0 to 1) for each row of a matrix; for training, notebooks and re-scoring."""
        return calibrated(self._walk, self.totals(rows))

    def telling(self, vector: Floats) -> Flags:
        """bool[columns]: whether the value lies on the suspicious side of the usual one, so that it can be given as a reason."""
        above: Flags = np.where(self.suspicious_low, vector < self.usual, vector > self.usual)
        return above

    def contributions(self, scored: Scored, vector: Floats, known: Explained | None = None) -> Floats:
        """float64[columns]: how far each column moved the score of the members that were heard from what they expect, for reasons."""
        return contributions(self.forest, known or self.known, np.array(scored.weights), vector)


@dataclass(frozen=True, slots=True, eq=False)
class Artefact:
    """What training made: an ensemble without an id yet, and what its card says of how it was made."""

    ensemble: Ensemble
    rows: int
    frauds: int
    from_at_ms: int
    until_at_ms: int
    learned_until_ms: int  # the last row that it was grown from: what is later it has not learned from
    seed: int
    sklearn_version: str
    policy_id: str
    recipe_id: str
    figures: Mapping[str, float | None]  # measured on the held-out rows; None: could not be measured
    checks: Mapping[str, float] = field(default_factory=dict)  # by name what the gates of a promotion look at: `models/registry.py`
    snapshot: Mapping[str, object] = field(default_factory=dict)  # by column where the training rows lay: `models/drift.py`
    data_sha256: str = ""  # of the vectors and labels that it was trained and measured on
    fairness: Mapping[str, object] = field(default_factory=dict)  # by declared groups how each was treated: `models/fairness.py`
    weights: Mapping[str, object] = field(default_factory=dict)  # where the members' weights come from, and what others would have gained
    plots: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)  # by name the points of the model document's plots
