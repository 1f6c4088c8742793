"""Transactions as columns: what a backfill reads, and how texts of a file become the numbers that a log row holds, all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.fact import DEGREE, ENTITIES, FACTS, KIND_CODES, MEASURES, country_code, facts_of, mcc_code, measures_of
from schemas.identity import hash32, hash64
from schemas.transaction import Transaction

Array = np.ndarray[Any, np.dtype[Any]]
REQUIRED = ("hash", "at_ms", "kind", "amount_minor")


@dataclass(frozen=True, eq=False)
class TransactionColumns:
    """n transactions in arrival order, one array of n for each thing that a row of the catalogue may read.

    `facts`: int64 or uint64 by FACTS' names; 0 is 'not given', and so is a fact that is absent. Required: hash (hash64s of
    transaction_id), at_ms, kind (kind_codes) and amount_minor (the own amount: billing_amount_minor where given). The others:
    merchant_id terminal_id card account device customer counterparty (hash32s), mcc (mcc_codes), country ip_country
    card_country (country_codes), latitude (latitude_codes), longitude (longitude_codes).
    `tokens`: uint64 by entity name, hash64s of the entity's token, 0: no such entity. It says in which log a row belongs;
    an entity that is absent has no logs.
    `measures`: float64 by MEASURES' names, NaN is 'not given', and so is one that is absent.
    `learned`: int64[n], when each was learned to be fraud, milliseconds since 1970-01-01 UTC, 0: never; None: of none.
    `known`: float64 by `entity.column` of PROFILES, NaN is 'not known'; the value that was known when the transaction happened.
    """

    facts: Mapping[str, Array]
    tokens: Mapping[str, Array]
    measures: Mapping[str, Array] = field(default_factory=dict)
    known: Mapping[str, Array] = field(default_factory=dict)
    learned: Array | None = None

    def __post_init__(self) -> None:
        missing = [name for name in REQUIRED if name not in self.facts]
        assert not missing, f"a backfill needs the facts {missing}"
        names = {fact.name for fact in FACTS}
        assert set(self.facts) <= names, f"unknown facts {set(self.facts) - names}"

    @cached_property
    def n(self) -> int:
        """How many transactions."""
        return len(self.facts["hash"])

    @cached_property
    def fact_matrix(self) -> Array:
        """int64[n, facts], in the order of FACTS."""
        matrix = np.zeros((self.n, len(FACTS)), np.int64)
        for number, fact in enumerate(FACTS):
            if fact.name in self.facts:
                column = np.asarray(self.facts[fact.name])
                matrix[:, number] = column.view(np.int64) if column.dtype == np.uint64 else column
        return matrix

    @cached_property
    def measure_matrix(self) -> Array:
        """float64[n, measures], in the order of MEASURES."""
        matrix = np.full((self.n, len(MEASURES)), np.nan)
        for number, measure in enumerate(MEASURES):
            if measure.name in self.measures:
                matrix[:, number] = self.measures[measure.name]
        return matrix

    def part(self, begin: int, end: int) -> TransactionColumns:
        """Transactions begin to end, as a view."""
        facts, tokens, measures, known = (
            {name: column[begin:end] for name, column in part.items()} for part in (self.facts, self.tokens, self.measures, self.known)
        )
        return TransactionColumns(facts, tokens, measures, known, None if self.learned is None else self.learned[begin:end])


def columns_of(transactions: Sequence[Transaction]) -> TransactionColumns:
    """The columns of transactions in arrival order. Row by row: for tests and small sets; files go by `columns_from_arrow`."""
    facts = np.array([[fact - (fact >> 63 << 64) for fact in facts_of(txn)] for txn in transactions], np.int64).reshape(-1, len(FACTS))
    measures = np.array([measures_of(txn) for txn in transactions], np.float64).reshape(-1, len(MEASURES))
    tokens = {
        entity.name: np.array([0 if (token := getattr(txn, entity.field)) is None else hash64(token) for txn in transactions], np.uint64)
        for entity in ENTITIES
    }
    return TransactionColumns(
        {fact.name: facts[:, number] for number, fact in enumerate(FACTS)},
        tokens,
        {measure.name: measures[:, number] for number, measure in enumerate(MEASURES)},
    )


def _each_unique(column: Any, of: Callable[[str], int], dtype: type) -> Array:
    """`of` of every text in a column (Arrow, or a sequence with None), computed once for each different text; null is 0."""
    array = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column, pa.string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    codes: Array = np.array([0, *(0 if text is None else of(text) for text in array.dictionary.to_pylist())], dtype)
    places: Array = codes[pc.fill_null(array.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False) + 1]
    return places


def hash64s(column: Any) -> Array:
    """uint64: schemas.identity.hash64 of each text, null is 0."""
    return _each_unique(column, hash64, np.uint64)


def hash32s(column: Any) -> Array:
    """int64: schemas.identity.hash32 of each text, null is 0."""
    return _each_unique(column, hash32, np.int64)


def country_codes(column: Any) -> Array:
    """int64: the code of each ISO 3166-1 alpha-2 country, null is 0."""
    return _each_unique(column, country_code, np.int64)


def mcc_codes(column: Any) -> Array:
    """int64: the code of each four-digit merchant category, null is 0."""
    return _each_unique(column, mcc_code, np.int64)


def kind_codes(column: Any) -> Array:
    """int64: the code of each transaction kind."""
    return _each_unique(column, KIND_CODES.__getitem__, np.int64)


def _degree_codes(column: Any, from_degrees: float) -> Array:
    degrees = np.asarray(column, np.float64)
    given = ~np.isnan(degrees)
    codes = np.zeros(len(degrees), np.int64)
    codes[given] = np.rint((degrees[given] + from_degrees) * DEGREE).astype(np.int64) + 1
    return codes


def latitude_codes(column: Any) -> Array:
    """int64: the code of each latitude in degrees north, NaN is 0."""
    return _degree_codes(column, 90.0)


def longitude_codes(column: Any) -> Array:
    """int64: the code of each longitude in degrees east, NaN is 0."""
    return _degree_codes(column, 180.0)


_FACT_FIELDS: dict[str, tuple[str, Callable[[Any], Array]]] = {
    "hash": ("transaction_id", hash64s),
    "kind": ("kind", kind_codes),
    "merchant_id": ("merchant_id", hash32s),
    "terminal_id": ("terminal_id", hash32s),
    "card": ("card_token", hash32s),
    "account": ("account_id", hash32s),
    "device": ("device_token", hash32s),
    "customer": ("customer_id", hash32s),
    "counterparty": ("counterparty_account_id", hash32s),
    "mcc": ("mcc", mcc_codes),
    "country": ("country", country_codes),
    "ip_country": ("ip_country", country_codes),
    "card_country": ("card_country", country_codes),
}


def _numbers(column: Any) -> Array:
    """float64 of an Arrow column, null is NaN."""
    numbers: Array = column.cast(pa.float64()).to_numpy()
    return numbers


def columns_from_arrow(table: Any) -> TransactionColumns:
    """The columns of an Arrow table in arrival order whose columns are named like Transaction's fields (session fields flat).

    at_ms, amount_minor and billing_amount_minor are whole numbers; columns that are absent count as not given.
    """
    names = set(table.column_names)
    facts = {fact: make(table[column]) for fact, (column, make) in _FACT_FIELDS.items() if column in names}
    facts["at_ms"] = table["at_ms"].cast(pa.int64()).to_numpy()
    amount = table["amount_minor"].cast(pa.int64())
    if "billing_amount_minor" in names:
        amount = pc.coalesce(table["billing_amount_minor"].cast(pa.int64()), amount)
    facts["amount_minor"] = amount.to_numpy()
    if {"latitude", "longitude"} <= names:
        facts["latitude"] = latitude_codes(_numbers(table["latitude"]))
        facts["longitude"] = longitude_codes(_numbers(table["longitude"]))
    tokens = {entity.name: hash64s(table[entity.field]) for entity in ENTITIES if entity.field in names}
    measures = {measure.name: _numbers(table[measure.name]) for measure in MEASURES if measure.name in names}
    return TransactionColumns(facts, tokens, measures)
