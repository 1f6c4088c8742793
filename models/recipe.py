"""The recipe of an ensemble: members as rows (name, weight, families, estimator, parameters), read from TOML and checked row by row."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from models.fairness import Groups
from schemas.errors import SettingsError
from schemas.record import like

EVERY = "*"
"""In place of families: every column."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Weights = Literal["given", "fitted", "measured"]
"""Where the members' weights come from: the rows, a fit in training, or the fit where it is surely better and else the rows."""
Estimator = Literal["hist_gradient_boosting", "extra_trees", "random_forest", "isolation_forest", "logistic_regression"]


class MemberRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One member: which families of columns it reads, what it is, and how it is grown."""

    name: Annotated[str, like("[a-z_]{1,40}")]
    weight: Share
    families: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    estimator: Estimator
    parameters: dict[str, Any] = {}


class _Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file as it is written."""

    name: str
    honest_per_fraud: Annotated[float, msgspec.Meta(gt=0)]
    parts: Annotated[int, msgspec.Meta(ge=2, le=20)]
    weights: Weights = "given"
    members: tuple[MemberRow, ...]
    groups: tuple[Groups, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """One recipe."""

    recipe_id: str
    name: str
    members: tuple[MemberRow, ...]
    honest_per_fraud: float
    """Of the honest rows so many for each fraud are learned from (or `HONEST_MIN`), drawn by chance; calibration sees all."""
    parts: int
    """Cards are dealt into so many parts; what is said of a part for calibration comes from members that have not seen it."""
    weights_from: Weights
    groups: tuple[Groups, ...] = ()
    """Declared groups of people, across which fairness is measured."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights of the rows, by member; they sum to 1."""
        return {row.name: row.weight for row in self.members}


def recipe_from_toml(text: str) -> Recipe:
    """The recipe that the text says; SettingsError naming the key for what is missing, unknown or out of bounds. Another text is another recipe."""
    try:
        rows = msgspec.convert(tomllib.loads(text), _Text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"recipe: {error}") from None
    for what, names in (("members", [row.name for row in rows.members]), ("groups", [row.name for row in rows.groups])):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SettingsError(f"recipe: there are two {what} {twice[0]!r}")
    total = math.fsum(row.weight for row in rows.members)
    if not math.isclose(total, 1.0, abs_tol=1e-9):
        raise SettingsError(f"recipe: the weights sum to {total:g}, not to 1")
    recipe_id = f"rec_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    return Recipe(recipe_id, rows.name, rows.members, rows.honest_per_fraud, rows.parts, rows.weights, rows.groups)
