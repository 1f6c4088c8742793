"""A history beyond one machine: features by the entities that they read, and each entity's part of the history by itself.

A feature reads the past of one entity (or of two of which one looks into the other's log), and entities are independent. So an engine that
can group rows runs `vectors_of_part` for each group of features and each part of the entities, and joins what comes by row: the very
function, and the bits, of a backfill in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from features.backfill import backfill
from features.catalogue import Catalogue
from features.columns import TransactionColumns
from features.fact import AT_MS, ENTITIES
from features.row import Capped, Expression, Fold, parts

Array = np.ndarray[Any, np.dtype[Any]]


class Group(NamedTuple):
    """Features that read the past of the same entities. Without entities they read the transaction (and what is known) alone."""

    entities: tuple[str, ...]
    features: tuple[str, ...]


class Part(NamedTuple):
    """Some rows of a history: their numbers, their columns (those that others are to answer ask for nothing), and who was declined."""

    rows: Array
    columns: TransactionColumns
    declined: Array


def groups(catalogue: Catalogue) -> tuple[Group, ...]:
    """The catalogue's features, by the entities whose past they read."""
    by: dict[tuple[str, ...], list[str]] = {}
    for row in catalogue.rows:
        by.setdefault(_read(row.shape.expression), []).append(row.name)
    return tuple(Group(entities, tuple(names)) for entities, names in by.items())


def _read(expression: Expression) -> tuple[str, ...]:
    read = {part.entity for part in parts(expression) if isinstance(part, Fold | Capped)}
    return tuple(entity.name for entity in ENTITIES if entity in read)


def part_of(group: Group, columns: TransactionColumns, declined: Array, number: int, of: int) -> Part:
    """Part `number` of `of`: the rows of the entities that fall into it, those of the logs that these look into, and those at which their
    labels are learned, whose ever they are.

    Rows go by the token of the entity that the others look from, so that all that it remembers is in one part.
    """
    none = np.zeros(columns.n, np.uint64)
    main = next((entity for entity in ENTITIES if entity.name in group.entities and not entity.log_of), None)
    looks = [entity for entity in ENTITIES if entity.name in group.entities and entity.log_of]
    owner = main.name if main else looks[0].log_of if looks else ""
    tokens = np.asarray(columns.tokens.get(owner, none))
    asking = tokens if main or not looks else np.asarray(columns.tokens.get(looks[0].name, none))
    mine = asking % np.uint64(of) == number
    needed = mine.copy()
    for look in looks:
        seen = np.unique(np.asarray(columns.tokens.get(look.name, none))[mine])
        needed |= np.isin(np.asarray(columns.tokens.get(look.log_of, none)), seen[seen != 0])
    if columns.learned is not None:
        clock = np.maximum.accumulate(columns.fact_matrix[:, AT_MS])
        reached = np.searchsorted(clock, columns.learned[needed & (columns.learned > 0)])
        needed[reached[reached < columns.n]] = True
    rows = np.flatnonzero(needed)
    chosen = _taken(columns, rows)
    return Part(rows, replace(chosen, asked=columns.asks[rows] & mine[rows]), declined[rows])


def _taken(columns: TransactionColumns, rows: Array) -> TransactionColumns:
    """These rows of the columns."""
    facts, tokens, measures, known = (
        {name: np.asarray(column)[rows] for name, column in each.items()} for each in (columns.facts, columns.tokens, columns.measures, columns.known)
    )
    return TransactionColumns(facts, tokens, measures, known, None, None if columns.learned is None else columns.learned[rows])


def vectors_of_part(catalogue: Catalogue, group: Group, part: Part) -> tuple[Array, Array]:
    """The numbers of the rows that this part answers, and their vectors of the group's features (float64[rows, features])."""
    vectors = backfill(catalogue.only(group.features), part.columns, part.declined)
    return part.rows[part.columns.asks], vectors


def tasks(catalogue: Catalogue, columns: TransactionColumns, declined: Array, of: int) -> Iterator[tuple[Group, Part]]:
    """What there is to do, each alone: each group of features in `of` parts."""
    for group in groups(catalogue):
        for number in range(of):
            yield group, part_of(group, columns, declined, number, of)


def joined(catalogue: Catalogue, columns: TransactionColumns, done: list[tuple[Group, tuple[Array, Array]]]) -> Array:
    """float64[asked, features]: the vectors of all, from those of the parts."""
    out = np.full((int(columns.asks.sum()), len(catalogue.rows)), np.nan)
    places = np.cumsum(columns.asks) - 1
    for group, (rows, vectors) in done:
        columns_at = np.array([catalogue.index[name] for name in group.features])
        out[places[rows][:, None], columns_at] = vectors
    return out
