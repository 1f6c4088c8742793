"""Transactions as columns: what a backfill reads, and how texts of a file become the numbers that a log row holds, all at once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.fact import (
    AMOUNT_MAX,
    AT_MS_MAX,
    DEGREE,
    ENTITIES,
    EVENT_CODES,
    FACTS,
    KIND_CODES,
    MEASURES,
    PARTS,
    SHORT_MAX,
    country_code,
    event_facts,
    mcc_code,
    owns_of,
    part_hash,
    short_hash,
)
from schemas.account import AccountEvent
from schemas.identity import hash32, hash64
from schemas.transaction import Transaction

Array = np.ndarray[Any, np.dtype[Any]]
REQUIRED = ("hash", "at_ms", "kind", "amount_minor")


@dataclass(frozen=True, eq=False)
class TransactionColumns:
    """n transactions (and account events) in arrival order, one array of n for each thing that a row of the catalogue may read.

    `facts`: int64 or uint64 by FACTS' names; 0 is 'not given', and so is a fact that is absent. Required: hash (row_identities of
    transaction_id and at_ms), at_ms, kind (kind_codes) and amount_minor (the own amount: billing_amount_minor where given, at most
    AMOUNT_MAX). The others: merchant_id terminal_id card account device customer counterparty (short_hashes), mcc (mcc_codes),
    country ip_country card_country (country_codes), latitude (latitude_codes), longitude (longitude_codes), fingerprint
    (fingerprint_codes), emulator proxy (yes_codes), dwell flight pointer (short_codes).
    `tokens`: uint64 by entity name, hash64s of the entity's token, 0: no such entity. It says in which log a row belongs;
    an entity that is absent has no logs.
    `measures`: float64 by MEASURES' names, NaN is 'not given', and so is one that is absent.
    `known`: float64 by `entity.column` of PROFILES, NaN is 'not known'; the value that was known when the transaction happened
    (`known_in_time` makes it).
    `asked`: bool, false for what leaves rows in logs and asks for no vector: an account event. None: all ask.
    `learned`: int64[n], when each was learned to be fraud, milliseconds since 1970-01-01 UTC, 0: never; None: of none.
    """

    facts: Mapping[str, Array]
    tokens: Mapping[str, Array]
    measures: Mapping[str, Array] = field(default_factory=dict)
    known: Mapping[str, Array] = field(default_factory=dict)
    asked: Array | None = None
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
    def asks(self) -> Array:
        """bool[n]: who asks for a vector."""
        return np.ones(self.n, np.bool_) if self.asked is None else np.asarray(self.asked, np.bool_)

    @cached_property
    def fact_matrix(self) -> Array:
        """int64[n, facts], in the order of FACTS."""
        matrix = np.full((self.n, len(FACTS)), 0, np.int64)  # not zeros: that memory is of small pages, and it is read in every order
        for number, fact in enumerate(FACTS):
            if fact.name in self.facts:
                column = np.asarray(self.facts[fact.name])
                matrix[:, number] = column.view(np.int64) if column.dtype == np.uint64 else column
        return matrix

    @cached_property
    def measure_matrix(self) -> Array:
        """float64[n, measures], in the order of MEASURES."""
        matrix = np.full((self.n, len(MEASURES)), np.nan)
        for number, name in enumerate(MEASURES):
            if name in self.measures:
                matrix[:, number] = self.measures[name]
        return matrix

    def part(self, begin: int, end: int) -> TransactionColumns:
        """Transactions begin to end, as a view."""
        return self.taken(slice(begin, end))

    def taken(self, which: slice | Array) -> TransactionColumns:
        """Some of the transactions, in the order given."""
        facts, tokens, measures, known = (
            {name: column[which] if np.ndim(column) else column for name, column in part.items()}
            for part in (self.facts, self.tokens, self.measures, self.known)
        )
        taken = TransactionColumns(
            facts,
            tokens,
            measures,
            known,
            None if self.asked is None else self.asked[which],
            None if self.learned is None else self.learned[which],
        )
        made = ("fact_matrix", "measure_matrix")  # what was made of all needs not be made of some
        vars(taken).update({name: vars(self)[name][which] for name in made if name in vars(self)})
        return taken


def joined(parts: Sequence[TransactionColumns]) -> TransactionColumns:
    """The columns of all parts, one after the other; each must have what the first has. Nothing is known of them, or learned."""

    def of_all(named: Callable[[TransactionColumns], Mapping[str, Array]]) -> dict[str, Array]:
        return {name: np.concatenate([named(part)[name] for part in parts]) for name in named(parts[0])}

    asked = np.concatenate([part.asks for part in parts])
    return TransactionColumns(of_all(lambda p: p.facts), of_all(lambda p: p.tokens), of_all(lambda p: p.measures), asked=asked)


def _token(record: Transaction | AccountEvent, field_: str) -> str | None:
    """In whose log a record belongs: an account event in the account's, and nowhere else."""
    token: str | None = getattr(record, field_) if field_ == "account_id" or isinstance(record, Transaction) else None
    return token


def columns_of(records: Sequence[Transaction | AccountEvent]) -> TransactionColumns:
    """The columns of transactions, and of account events among them, in arrival order. Row by row: for tests and small sets.

    Files go by `columns_from_arrow`.
    """
    paid = np.array([isinstance(record, Transaction) for record in records], np.bool_)
    own = owns_of([record for record in records if isinstance(record, Transaction)]).view(np.int64).reshape(-1, len(FACTS) + len(MEASURES))
    facts, measures = np.empty((len(records), len(FACTS)), np.int64), np.full((len(records), len(MEASURES)), math.nan)
    facts[paid], measures[paid] = own[:, : len(FACTS)], own[:, len(FACTS) :].view(np.float64)
    for number, record in enumerate(records):
        if isinstance(record, AccountEvent):
            facts[number] = np.array(event_facts(record), np.uint64).view(np.int64)
    tokens = {
        entity.name: np.array([0 if (token := _token(record, entity.field)) is None else hash64(token) for record in records], np.uint64)
        for entity in ENTITIES
    }
    return TransactionColumns(
        {fact.name: facts[:, number] for number, fact in enumerate(FACTS)},
        tokens,
        {name: measures[:, number] for number, name in enumerate(MEASURES)},
        asked=paid,
    )


def merged(columns: TransactionColumns, others: TransactionColumns, at: Array) -> TransactionColumns:
    """The columns with each of the others put before the row `at` of them, of equals in their order. What is known is known of `columns` alone."""

    def of_both(one: Mapping[str, Array], other: Mapping[str, Array], nothing: Any, kind: type) -> dict[str, Array]:
        names = dict.fromkeys((*one, *other))
        return {
            name: np.insert(one[name] if name in one else np.full(columns.n, nothing, kind), at, other.get(name, nothing)).astype(kind, copy=False)
            for name in names
        }

    facts = np.insert(columns.fact_matrix, at, others.fact_matrix, axis=0)
    return TransactionColumns(
        {fact.name: facts[:, number] for number, fact in enumerate(FACTS)},
        of_both(columns.tokens, others.tokens, 0, np.uint64),
        of_both(columns.measures, others.measures, math.nan, np.float64),
        of_both(columns.known, {}, math.nan, np.float64),
        np.insert(columns.asks, at, others.asks),
        None if columns.learned is None else np.insert(columns.learned, at, 0),
    )


class Learned(NamedTuple):
    """One column of a profile becoming known: it reaches the memory before the row `before` of the history does."""

    before: int
    kind: str
    token: str
    column: str
    value: float
    known_at_ms: int


def known_in_time(columns: TransactionColumns, learned: Sequence[Learned]) -> dict[str, Array]:
    """`known` of these columns as serving would have it: the latest that had arrived, missing before its own time.

    Of two that arrive before the same row, the later in `learned` is the later. A value that comes late replaces the one before,
    also for those that it was not yet known to.
    """
    by_column: dict[tuple[str, str], list[Learned]] = defaultdict(list)
    for each in learned:
        by_column[each.kind, each.column].append(each)
    at_ms = np.asarray(columns.facts["at_ms"], np.int64)
    return {f"{kind}.{column}": _in_time(columns.tokens[kind], at_ms, said) for (kind, column), said in by_column.items()}


def _in_time(tokens: Array, at_ms: Array, learned: list[Learned]) -> Array:
    """float64[n]: of each row, what had been said last of its token."""
    said_of = np.array([hash64(each.token) for each in learned], np.uint64)
    before = np.array([each.before for each in learned], np.int64)
    order = np.lexsort((np.arange(len(learned)), before, said_of))
    groups, group = np.unique(said_of[order], return_inverse=True)
    asks = np.searchsorted(groups, np.asarray(tokens))
    asks[asks == len(groups)] = 0
    width = len(tokens) + 1
    last = np.searchsorted(group * width + np.minimum(before[order], len(tokens)), asks * width + np.arange(len(tokens)), side="right") - 1
    known = (groups[asks] == tokens) & (last >= 0)
    known[known] = group[last[known]] == asks[known]
    since = np.array([each.known_at_ms for each in learned], np.int64)[order]
    known[known] = (since[last[known]] > 0) & (since[last[known]] <= at_ms[known])
    values = np.full(len(tokens), np.nan)
    values[known] = np.array([each.value for each in learned])[order][last[known]]
    return values


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


def short_hashes(column: Any, bits: int = 32) -> Array:
    """int64: fact.short_hash of each text, null is 0."""
    return _each_unique(column, lambda text: short_hash(text, bits), np.int64)


def row_identities(ids: Any, at_ms: Array) -> Array:
    """uint64: fact.row_identity of each id and time."""
    hashes = _each_unique(ids, hash32, np.uint64)
    identities: Array = np.minimum(at_ms, AT_MS_MAX).astype(np.uint64) << np.uint64(32) | hashes
    return identities


def derived_identities(identities: Array, of: int | Array) -> Array:
    """`fact.derived_identity(identity, of)` of each; int64 in, int64 out. `of`: one code, or one for each."""
    given = identities.view(np.uint64)
    z = given + np.asarray(of, np.uint64).reshape(-1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = (z ^ (z >> np.uint64(31))) & np.uint64(0xFFFFFFFF)
    z[z == 0] = 1
    derived: Array = (given & np.uint64(0xFFFFFFFF00000000) | z).view(np.int64)
    return derived


def fingerprint_codes(parts: Mapping[str, Any], n: int) -> Array:
    """int64[n]: the code of fingerprints of which these are the columns, by the names of PARTS; a part that is absent is not given."""
    codes = np.zeros(n, np.int64)
    for place, part in enumerate(PARTS):
        if part in parts:
            codes |= _each_unique(parts[part], part_hash, np.int64) << 8 * place
    return codes


def yes_codes(column: Any) -> Array:
    """int64: 2 for true, 1 for false, 0 for null."""
    codes: Array = pc.fill_null(pc.add(column.cast(pa.int64()), 1), 0).to_numpy()
    return codes


def short_codes(column: Any, steps: float) -> Array:
    """int64: each number in steps, as `said.STEPS` has it; NaN is 0."""
    numbers = np.asarray(column, np.float64)
    given = ~np.isnan(numbers)
    codes = np.zeros(len(numbers), np.int64)
    with np.errstate(over="ignore"):
        codes[given] = np.rint(np.clip(numbers[given] * steps, 1.0, float(SHORT_MAX))).astype(np.int64)
    return codes


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
    with np.errstate(over="ignore"):
        codes[given] = np.rint((degrees[given] + from_degrees) * DEGREE).astype(np.int64) + 1
    return codes


def latitude_codes(column: Any) -> Array:
    """int64: the code of each latitude in degrees north, NaN is 0."""
    return _degree_codes(column, 90.0)


def longitude_codes(column: Any) -> Array:
    """int64: the code of each longitude in degrees east, NaN is 0."""
    return _degree_codes(column, 180.0)


def _short(bits: int) -> Callable[[Any], Array]:
    return lambda column: short_hashes(column, bits)


_ID_FIELDS = {
    "merchant_id": "merchant_id",
    "terminal_id": "terminal_id",
    "card": "card_token",
    "account": "account_id",
    "device": "device_token",
    "customer": "customer_id",
    "counterparty": "counterparty_account_id",
}
_FACT_FIELDS: dict[str, tuple[str, Callable[[Any], Array]]] = {
    "kind": ("kind", kind_codes),
    **{fact.name: (_ID_FIELDS[fact.name], _short(fact.bits)) for fact in FACTS if fact.name in _ID_FIELDS},
    "mcc": ("mcc", mcc_codes),
    "country": ("country", country_codes),
    "ip_country": ("ip_country", country_codes),
    "card_country": ("card_country", country_codes),
    "emulator": ("emulator", yes_codes),
    "proxy": ("ip_proxy", yes_codes),
    "dwell": ("keystroke_dwell_ms", lambda column: short_codes(_numbers(column), 10.0)),
    "flight": ("keystroke_flight_ms", lambda column: short_codes(_numbers(column), 10.0)),
    "pointer": ("pointer_speed_px_s", lambda column: short_codes(_numbers(column), 1.0)),
}


def _numbers(column: Any) -> Array:
    """float64 of an Arrow column, null is NaN."""
    numbers: Array = column.cast(pa.float64()).to_numpy()
    return numbers


def columns_from_arrow(table: Any) -> TransactionColumns:
    """The columns of an Arrow table in arrival order whose columns are named like Transaction's fields (session and fingerprint flat).

    at_ms, amount_minor and billing_amount_minor are whole numbers; columns that are absent count as not given.
    """
    names = set(table.column_names)
    facts = {fact: make(table[column]) for fact, (column, make) in _FACT_FIELDS.items() if column in names}
    at_ms = table["at_ms"].cast(pa.int64()).to_numpy()
    facts["at_ms"], facts["hash"] = np.minimum(at_ms, AT_MS_MAX), row_identities(table["transaction_id"], at_ms)
    amount = table["amount_minor"].cast(pa.int64())
    if "billing_amount_minor" in names:
        amount = pc.coalesce(table["billing_amount_minor"].cast(pa.int64()), amount)
    facts["amount_minor"] = np.minimum(amount.to_numpy(), AMOUNT_MAX)
    facts["fingerprint"] = fingerprint_codes({part: table[part] for part in PARTS if part in names}, len(at_ms))
    if {"latitude", "longitude"} <= names:
        facts["latitude"] = latitude_codes(_numbers(table["latitude"]))
        facts["longitude"] = longitude_codes(_numbers(table["longitude"]))
    tokens = {entity.name: hash64s(table[entity.field]) for entity in ENTITIES if entity.field in names}
    measures = {name: _numbers(table[name]) for name in MEASURES if name in names}
    return TransactionColumns(facts, tokens, measures)


_EVENT_FACTS = {fact: _FACT_FIELDS[fact] for fact in ("account", "device", "customer", "counterparty", "ip_country")}


def event_columns_from_arrow(table: Any) -> TransactionColumns:
    """The same of account events, whose columns are named like AccountEvent's fields: `columns_of` them, of all at once."""
    at_ms = table["at_ms"].to_numpy()
    codes = _each_unique(table["kind"], EVENT_CODES.__getitem__, np.int64)
    facts = {fact.name: np.zeros(len(at_ms), np.int64) for fact in FACTS}
    facts |= {fact: make(table[column]) for fact, (column, make) in _EVENT_FACTS.items() if column in table.column_names}
    identities = derived_identities(row_identities(table["event_id"], at_ms).view(np.int64), codes)
    facts |= {"hash": identities, "at_ms": np.minimum(at_ms, AT_MS_MAX), "kind": codes}
    tokens = {entity.name: np.zeros(len(at_ms), np.uint64) for entity in ENTITIES}
    tokens |= {entity.name: hash64s(table["account_id"]) for entity in ENTITIES if entity.field == "account_id"}
    measures = {name: np.full(len(at_ms), math.nan) for name in MEASURES}
    return TransactionColumns(facts, tokens, measures, asked=np.zeros(len(at_ms), np.bool_))
