"""A file's rows by column: what `mapping.RowReader` makes of each row, found once for each different value of a column.

A row of which any value is no good is read by the RowReader itself, which says what is wrong with it: both ways say the same of
every row, and this one says it for whole files.
"""

from __future__ import annotations

import functools
import itertools
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.columns import TransactionColumns, columns_of, event_columns_from_arrow, joined
from schemas.account import AccountEvent
from schemas.errors import InvalidRecord
from schemas.identity import hash32
from schemas.money import EXPONENTS
from schemas.transaction import TOKENS, Attribute, BehaviouralSession, Fingerprint, Transaction, is_card_number, is_ip_address
from streams.mapping import (
    FLAGS,
    FLOATS,
    LEARNED_MS,
    NESTED,
    TOKEN_KINDS,
    AmountRule,
    EventReader,
    LabelRule,
    Mapping,
    Row,
    RowReader,
    TimeRule,
    TokenKey,
    amount_minor,
    arrays_of,
    as_text,
    card_number,
    column_faults,
    columns_in,
    counted_from_ms,
    counted_ms,
    csv_cells,
    event_reader,
    field_of,
    is_parquet,
    known_currency,
    moment_ms,
    number_of,
    readable,
    says_so,
    values_of,
)

Array = np.ndarray[Any, np.dtype[Any]]
ATTRIBUTE = "attribute."
"""Columns of this prefix are what [attributes] of the mapping name, as numbers (`as_number`); NaN where there is none."""
CLOCK = ("clock.hour", "clock.weekday")
"""Columns that stand with attributes, for training: the time of day (UTC, 0 to 24) and the day of the week (0 is Monday)."""
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
PIECE_ROWS = 65_536
_KINDS: dict[str, Any] = typing.get_type_hints(Transaction, include_extras=True) | {
    f"{name}.{field}": kind for name, record in NESTED.items() for field, kind in typing.get_type_hints(record, include_extras=True).items()
}
_EVENT_KINDS: dict[str, Any] = typing.get_type_hints(AccountEvent, include_extras=True)
_ATTRIBUTE = typing.get_type_hints(Attribute, include_extras=True)
_MS_OF = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000)}
_EXACT = 9 * 10**14
"""Up to here a double that is a decimal fraction of at most 15 digits is that fraction's only one, and ten thousand times it is an int64."""


def _is_bare_card(text: str) -> bool:
    return text < ":" and is_card_number(text)


_UNSOUND: dict[str, Callable[[str], bool]] = {**dict.fromkeys(TOKENS, _is_bare_card), "ip": lambda text: not is_ip_address(text)}
"""What `schemas.transaction.sound` refuses in one field, beyond its kind."""


class Cells(NamedTuple):
    """So many rows of a file, from `first` on, as they are: the numbers of those that have cells, these by column; what was no row at all."""

    first: int
    read: int
    numbers: Array
    columns: list[pa.Array]
    bad: list[tuple[int, InvalidRecord]]


class Rows(NamedTuple):
    """So many rows of a file: the good ones, in order, and the others with their numbers.

    `table` has a column for each field of a Transaction that the mapping names (those of session and fingerprint without a dot), `declined`,
    `fraud`, `fraud_kind` and `learned_at_ms` (null: the file does not say), and each attribute as a number.
    """

    read: int
    table: pa.Table
    bad: list[tuple[int, InvalidRecord]]


class _Found(NamedTuple):
    """What a column says: of each row the place of its value among the different ones, what became of these, and which are no good."""

    places: Array
    values: list[Any]
    bad: Array

    @property
    def given(self) -> Array:
        """bool[n]: which rows have a value."""
        return np.array([value is not None for value in self.values], np.bool_)[self.places]

    def of_rows(self, kind: pa.DataType) -> pa.Array:
        """The values of the rows."""
        return pa.array(self.values, kind).take(pa.array(self.places))

    def texts(self) -> pa.DictionaryArray:
        """The values of the rows, each different text once; a row without one has no place, so that tables can be put together."""
        given = np.array([value is not None for value in self.values], np.bool_)
        places = (np.cumsum(given) - 1)[self.places] if len(self.places) else self.places
        indices = pa.array(places, pa.int32(), mask=~given[self.places])
        return pa.DictionaryArray.from_arrays(indices, pa.array([value for value in self.values if value is not None], pa.string()))


def _different(column: pa.Array) -> tuple[Array, list[Any]]:
    """Of each row the place of its value among the different ones; those."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        coded = column.dictionary_encode(null_encoding="encode")
    except pa.ArrowNotImplementedError:  # a list or a record is its text, whatever that says
        return np.arange(len(column)), values_of(column)
    return coded.indices.to_numpy(zero_copy_only=False), values_of(coded.dictionary)


def _each(column: pa.Array, of: Callable[[Any], Any]) -> _Found:
    """`of` each value of a column; no good is what it raises InvalidRecord for."""
    places, values = _different(column)
    found, bad = [], np.zeros(len(values), np.bool_)
    for number, value in enumerate(values):
        try:
            found.append(of(value))
        except InvalidRecord:
            found.append(None)
            bad[number] = True
    return _Found(places, found, bad)


def _fit(found: _Found, kind: Any, unsound: Callable[[str], bool] | None = None) -> _Found:
    """What was found, without what the kind of field does not allow, or is unsound."""
    bad = found.bad | _unfit(found.values, kind)
    if unsound is not None:
        bad = bad | np.array([value is not None and unsound(value) for value in found.values], np.bool_)
    if not bad.any():
        return found
    return found._replace(values=[None if no_good else value for value, no_good in zip(found.values, bad, strict=True)], bad=bad)


def _all_are(values: list[Any], kind: Any) -> bool:
    try:
        msgspec.convert(values, list[kind])
    except msgspec.ValidationError:
        return False
    return True


def _unfit(values: list[Any], kind: Any) -> Array:
    """bool[n]: which of the values are none that the kind of field allows."""
    if _all_are(values, kind):
        return np.zeros(len(values), np.bool_)
    return np.array([not _all_are([value], kind) for value in values], np.bool_)


def _outside(values: Array, kind: Any) -> Array:
    """bool[n]: which of the numbers the kind of field does not allow; whatever lies between two that it allows, it allows."""
    if not len(values) or _all_are([values.min().item(), values.max().item()], kind):
        return np.zeros(len(values), np.bool_)
    return _unfit(values.tolist(), kind)


def _flat(field: str) -> str:
    return field.rpartition(".")[2]


class ColumnReader:
    """A mapping made ready for a file's columns and one key: turns rows of cells into Rows. `before`: how many rows the files before it have."""

    def __init__(self, mapping: Mapping, columns: Sequence[str], key: TokenKey, now_ms: int, future_ms_max: int = 300_000, before: int = 0) -> None:
        self._mapping, self._at = mapping, {name: columns.index(name) for name in mapping.columns}
        self._one_by_one = RowReader(mapping, columns, key, now_ms, future_ms_max, before)
        self._at_ms_max = now_ms + future_ms_max

    def rows(self, cells: Cells) -> Rows:
        """What the rows are."""
        made = _Making(self._mapping, self._at, self._one_by_one, cells)
        doubtful = made.doubtful | (made.at_ms > self._at_ms_max)
        table = pa.table(made.columns)
        if not doubtful.any():
            return Rows(cells.read, table, cells.bad)
        again = zip(*(values_of(column.filter(pa.array(doubtful))) for column in cells.columns), strict=True)
        looked = [self._one_by_one.row(int(number), row) for number, row in zip(cells.numbers[doubtful], again, strict=True)]
        bad = [(row.number, row.content) for row in looked if isinstance(row.content, InvalidRecord)]
        table = table.filter(pa.array(~doubtful))
        if good := [row for row in looked if isinstance(row.content, Transaction)]:
            numbers = np.concatenate((cells.numbers[~doubtful], [row.number for row in good]))
            table = pa.concat_tables([table, as_table(good, table.schema)]).combine_chunks().take(pa.array(np.argsort(numbers)))
        return Rows(cells.read, table, sorted([*cells.bad, *bad], key=lambda each: each[0]))


def as_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Good rows one by one as a table like that of Rows."""
    columns = []
    for field in schema:
        column = pa.array([_value_of(row, field.name) for row in rows], pa.string() if pa.types.is_dictionary(field.type) else field.type)
        columns.append(column.dictionary_encode() if pa.types.is_dictionary(field.type) else column)
    return pa.table(columns, schema=schema)


def _value_of(row: Row, name: str) -> Any:
    txn = row.content
    assert isinstance(txn, Transaction)
    if name == "declined":
        return row.declined
    if name in ("fraud", "fraud_kind", "learned_at_ms"):
        return None if row.label is None else getattr(row.label, name)
    if name in CLOCK:
        return dict(zip(CLOCK, (each.item() for each in clock_of(np.array(txn.at_ms))), strict=True))[name]
    if name.startswith(ATTRIBUTE):
        return next((as_number(each.value) for each in txn.attributes if each.name == name.removeprefix(ATTRIBUTE)), float("nan"))
    for part, record in (("session", BehaviouralSession), ("fingerprint", Fingerprint)):
        if name in record.__struct_fields__:
            return getattr(getattr(txn, part), name, None)
    value = getattr(txn, name)
    return str(value) if isinstance(value, str) else value


def clock_of(at_ms: Array) -> tuple[Array, Array]:
    """What CLOCK names, of each time."""
    return at_ms % _DAY_MS / _HOUR_MS, (at_ms // _DAY_MS + 3) % 7.0  # 1970 began on a Thursday


def as_number(text: str | None) -> float:
    """The number that a text is, or one below all that are amounts or counts that stands for it: the same text is the same number everywhere.

    Trees split such numbers like any other, several times where a column has many texts. NaN: there is no text.
    """
    if text is None:
        return math.nan
    try:
        number = number_of(text)
    except ValueError:
        number = math.inf
    return -1e10 - hash32(text) if math.isinf(number) else number


class _Making:
    """The columns of good rows as they are made, and in which rows something is doubtful."""

    def __init__(self, mapping: Mapping, at: dict[str, int], reader: RowReader, cells: Cells) -> None:
        self._mapping, self._at, self._reader, self._cells = mapping, at, reader, cells
        self._n = len(cells.numbers)
        self.columns: dict[str, pa.Array] = {}
        self.doubtful = np.zeros(self._n, np.bool_)
        for field, value in mapping.constants.items():
            self._constant(field, value)
        for field, column in mapping.fields.items():
            self._field(field, self._column(column))
        for field, column in mapping.tokens.items():
            self._token(field, self._column(column))
        if mapping.row_id_prefix is not None:
            ids = [f"{mapping.row_id_prefix}{number}" for number in (cells.numbers + reader.before).tolist()]
            self._add("transaction_id", _Found(np.arange(self._n), ids, np.zeros(self._n, np.bool_)))
        self.at_ms = self._times()
        amounts = self._amount(mapping.amount, "amount_minor", "currency", np.ones(self._n, np.bool_))
        if mapping.billing is not None:
            given = _each(self._column(mapping.billing.column), as_text).given
            billed = self._amount(mapping.billing, "billing_amount_minor", "billing_currency", given)
            self.doubtful |= given & ((billed == 0) != (amounts == 0))
        self._place()
        self._beside()

    def _column(self, name: str) -> pa.Array:
        return self._cells.columns[self._at[name]]

    def _add(self, field: str, found: _Found) -> None:
        """A field, if its values are such as it may have."""
        values = _fit(found, _KINDS[field], _UNSOUND.get(field))
        self.doubtful |= values.bad[values.places]
        if field in FLOATS:
            self.columns[_flat(field)] = pa.array(values.of_rows(pa.float64()).to_numpy(zero_copy_only=False))
        else:
            self.columns[_flat(field)] = values.of_rows(pa.bool_()) if field in FLAGS else values.texts()

    def _constant(self, field: str, value: str | float) -> None:
        """A value that all rows have; a word of a list is text."""
        self._add(field, _Found(np.zeros(self._n, np.int64), [value], np.zeros(1, np.bool_)))

    def _field(self, field: str, column: pa.Array) -> None:
        words = self._mapping.values.get(field)
        if field in FLOATS and words is None and pa.types.is_float64(column.type):
            self._floats(field, column)
        else:
            self._add(field, _each(column, lambda cell: field_of(field, cell, words)))

    def _floats(self, field: str, column: pa.Array) -> None:
        """Numbers as they are; the text of one has no zero that is less than zero."""
        values = column.to_numpy(zero_copy_only=False) + 0.0
        given = np.flatnonzero(~np.isnan(values))
        self.doubtful[given] |= _outside(values[given], _KINDS[field])
        self.columns[_flat(field)] = pa.array(values)

    def _token(self, field: str, column: pa.Array) -> None:
        """Tokens in place of raw values; of a card number also the BIN, unless a column says it."""
        raw = _each(column, card_text if field == "card_token" else as_text)
        kind, token = TOKEN_KINDS[field], self._reader.token
        self._add(field, raw._replace(values=[None if text is None else token(kind, text) for text in raw.values]))
        if field == "card_token":
            bins = raw._replace(values=[None if text is None else text[:6] for text in raw.values])
            self._add_where_not_given("card_bin", bins)

    def _add_where_not_given(self, field: str, found: _Found) -> None:
        stated = self.columns.get(field)
        self._add(field, found)
        if stated is not None:
            stated, cut = stated.cast(pa.string()), self.columns[field].cast(pa.string())
            self.columns[field] = pc.coalesce(stated, cut).dictionary_encode()

    def _times(self) -> Array:
        """int64[n]: when each happened."""
        rule = self._mapping.time
        columns = [self._column(name) for name in rule.names]
        at_ms, bad = _moments(columns[0], rule) if len(columns) == 1 else _moments_in_columns(columns, rule)
        bad[~bad] = _outside(at_ms[~bad], _KINDS["at_ms"])
        self.doubtful |= bad
        self.columns["at_ms"] = pa.array(at_ms)
        return at_ms

    def _amount(self, rule: AmountRule, field: str, currency_field: str, given: Array) -> Array:
        """Adds an amount and its currency, where given; int64[n]: the minor units. Without a currency that is known it is doubtful."""
        if rule.currency is not None:
            currencies = _Found(np.zeros(self._n, np.int64), [rule.currency], np.zeros(1, np.bool_))
        else:
            currencies = _each(self._column(rule.currency_column or ""), lambda cell: known_currency(cell, currency_field))
        minor, bad = _amounts(self._column(rule.column), currencies, rule, given)
        bad[given & ~bad] = _outside(minor[given & ~bad], _KINDS[field])
        self.doubtful |= bad
        self.columns[field] = pa.array(minor, mask=~given)
        where_given = np.where(given, currencies.places, len(currencies.values))
        self.columns[currency_field] = currencies._replace(places=where_given, values=[*currencies.values, None]).texts()
        return minor

    def _place(self) -> None:
        """A latitude without a longitude is doubtful."""
        nowhere = [np.isnan(self.columns[name].to_numpy()) if name in self.columns else True for name in ("latitude", "longitude")]
        self.doubtful |= nowhere[0] != nowhere[1]

    def _beside(self) -> None:
        """What is no field of a Transaction: declined or not, the label, the attributes."""
        declined, label = self._mapping.declined, self._mapping.label
        no = pa.array(np.zeros(self._n, np.bool_))
        self.columns["declined"] = no if declined is None else self._is_one_of(declined)
        if label is None:
            nothing = {"fraud": pa.bool_(), "fraud_kind": pa.string(), "learned_at_ms": pa.int64()}
            self.columns |= {name: pa.nulls(self._n, kind) for name, kind in nothing.items()}
        else:
            self._label(label)
        if self._mapping.attributes:
            for name, values in zip(CLOCK, clock_of(self.at_ms), strict=True):
                self.columns[name] = pa.array(values)
        for name, column in self._mapping.attributes.items():
            found = _each(self._column(column), as_text)
            unfit = _unfit(found.values, _ATTRIBUTE["value"] | None) | _unfit([name], _ATTRIBUTE["name"])
            self.doubtful |= unfit[found.places] & found.given
            numbers = np.array([as_number(text) for text in found.values], np.float64)
            self.columns[f"{ATTRIBUTE}{name}"] = pa.array(numbers[found.places])

    def _is_one_of(self, rule: Any) -> pa.Array:
        return _each(self._column(rule.column), lambda cell: says_so(rule, cell)).of_rows(pa.bool_())

    def _label(self, rule: LabelRule) -> None:
        given = _each(self._column(rule.column), as_text).given
        fraud, learned = self._is_one_of(rule), self.at_ms + rule.delay_ms
        if rule.learned_at_column is not None:
            told = _each(column := self._column(rule.learned_at_column), as_text).given
            at_ms, bad = _moments(column, self._mapping.time)
            self.doubtful |= bad & told & given
            learned = np.where(told, at_ms, learned)
        self.doubtful |= given & ((learned < LEARNED_MS[0]) | (learned > LEARNED_MS[1]))
        kinds = pa.nulls(self._n, pa.string())
        if rule.kind_column is not None:
            kinds = pc.if_else(fraud, _each(self._column(rule.kind_column), as_text).of_rows(pa.string()), kinds)
        said = pa.array(given)
        self.columns["fraud"] = pc.if_else(said, fraud, None)
        self.columns["fraud_kind"] = pc.if_else(said, kinds, None)
        self.columns["learned_at_ms"] = pa.array(learned, mask=~given)


def card_text(cell: Any) -> str | None:
    """A cell as the digits of a card number; None if it is empty."""
    text = as_text(cell)
    return None if text is None else card_number(text)


# Times.


def _moments(column: pa.Array, rule: TimeRule) -> tuple[Array, Array]:
    """int64[n]: `moment_ms` of each cell; and which are no good."""
    at_ms, sure = _plain_moments(column, rule)
    if not sure.all():
        found = _each(column.filter(pa.array(~sure)), lambda cell: moment_ms(cell, rule))
        at_ms[~sure] = _whole(found.values)[found.places]
        bad = np.zeros(len(column), np.bool_)
        bad[~sure] = found.bad[found.places]
        return at_ms, bad
    return at_ms, ~sure


def _plain_moments(column: pa.Array, rule: TimeRule) -> tuple[Array, Array]:
    """The moments of cells that are whole numbers, or times in UTC; and which are."""
    kind, nothing = column.type, np.zeros(len(column), np.int64)
    if pa.types.is_timestamp(kind) and kind.unit in _MS_OF and "UTC" in (kind.tz, rule.zone if kind.tz is None else None):
        ticks, (unit_ms, ticks_a_ms) = _integers(column.view(pa.int64())), _MS_OF[kind.unit]
        return (ticks * unit_ms + ticks_a_ms // 2) // ticks_a_ms, _is_given(column) & _within(ticks, 2**53 - 1)
    unit_ms = counted_ms(rule)
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind) and unit_ms:
        start_ms = counted_from_ms(rule)
        counted = _integers(column)
        most = 2**62 // unit_ms
        return start_ms + np.clip(counted, -most, most) * unit_ms, _is_given(column) & _within(counted, most - 1)
    return nothing, nothing > 0


def _moments_in_columns(columns: Sequence[pa.Array], rule: TimeRule) -> tuple[Array, Array]:
    """int64[n]: `moment_ms` of the texts of each row's cells, joined by blanks; and which are no good."""
    texts = [_each(column, as_text) for column in columns]
    combined = texts[0].places.astype(np.int64)
    for text in texts[1:]:
        combined = combined * len(text.values) + text.places
    _, where, places = np.unique(combined, return_index=True, return_inverse=True)
    joined = [" ".join(part for text in texts if (part := text.values[text.places[row]])) for row in where]
    found = _each(pa.array(joined, pa.string()), lambda cell: moment_ms(cell, rule))
    places = found.places[places]
    return _whole(found.values)[places], found.bad[places]


def _whole(values: list[int | None]) -> Array:
    """int64 of each moment, 0 of none; one that is beyond all times stays beyond."""
    return np.array([0 if value is None else min(max(value, -(2**53)), 2**53) for value in values], np.int64)


def _integers(column: pa.Array) -> Array:
    """int64 of whole numbers, 0 where there is none."""
    numbers: Array = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return numbers


def _within(numbers: Array, most: int) -> Array:
    """Which whole numbers are at most so far from 0; of the least int64 `abs` is less than 0."""
    within: Array = (numbers >= -most) & (numbers <= most)
    return within


def _is_given(column: pa.Array) -> Array:
    given: Array = column.is_valid().to_numpy(zero_copy_only=False)
    return given


# Amounts.


def _amounts(column: pa.Array, currencies: _Found, rule: AmountRule, given: Array) -> tuple[Array, Array]:
    """int64[n]: `amount_minor` of each cell that is given; and which are no good."""
    bad = currencies.bad[currencies.places] & given
    exponents = np.array([EXPONENTS.get(name or "", 0) for name in currencies.values], np.int64)[currencies.places]
    minor, sure = _plain_amounts(column, rule, exponents)
    rest = given & ~bad & ~sure
    if rest.any():
        minor[rest], bad[rest] = _read_amounts(column.filter(pa.array(rest)), currencies._replace(places=currencies.places[rest]), rule)
    return minor, bad


def _read_amounts(column: pa.Array, currencies: _Found, rule: AmountRule) -> tuple[Array, Array]:
    """The same, each different amount of a currency by itself."""
    places, values = _different(column)
    pairs, places = np.unique(places.astype(np.int64) * len(currencies.values) + currencies.places, return_inverse=True)
    minor, bad = np.zeros(len(pairs), np.int64), np.zeros(len(pairs), np.bool_)
    for number, pair in enumerate(pairs.tolist()):
        value, currency = divmod(pair, len(currencies.values))
        try:
            amount = amount_minor(values[value], currencies.values[currency], rule, "amount_minor")
            bad[number] = not -(2**53) <= amount <= 2**53
            minor[number] = 0 if bad[number] else amount
        except InvalidRecord:
            bad[number] = True
    return minor[places], bad[places]


def _plain_amounts(column: pa.Array, rule: AmountRule, exponents: Array) -> tuple[Array, Array]:
    """Minor units of cells that are whole numbers, decimals, or doubles that are the nearest to a whole number of minor units; and which are.

    A double v is the nearest to minor / 10^e exactly if the (correctly rounded) division gives v, and its shortest decimal is then that one:
    no other of at most 15 digits has the same double.
    """
    none = np.zeros(len(column), np.int64), np.zeros(len(column), np.bool_)
    shifts = 10 ** (exponents if rule.unit == "major" else np.zeros_like(exponents))
    if pa.types.is_float64(column.type):
        values = column.to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore", over="ignore"):
            nearest = np.rint(values * shifts)
            sure = (abs(nearest) < _EXACT) & (nearest / shifts == values)
        minor = np.where(sure, nearest, 0.0).astype(np.int64)
    elif len(column) and pa.types.is_decimal128(column.type) and 0 <= column.type.scale <= 18:
        minor, sure = _divided(*_unscaled(column), shifts, 10**column.type.scale)
    elif pa.types.is_integer(column.type) and not pa.types.is_uint64(column.type):
        minor, sure = _divided(_integers(column), _is_given(column), shifts, 1)
    else:
        return none
    return (abs(minor) if rule.negative == "absolute" else minor), sure


def _divided(units: Array, sure: Array, shifts: Array, divisor: int) -> tuple[Array, Array]:
    """units * shifts / divisor where that is whole, and where it is."""
    sure = sure & _within(units, _EXACT)
    whole = np.where(sure, units, 0) * shifts
    return whole // divisor, sure & (whole % divisor == 0)


def _unscaled(column: pa.Array) -> tuple[Array, Array]:
    """int64[n]: the digits of decimals without their point; and which are given and have no more than an int64 holds."""
    words = np.frombuffer(column.buffers()[1], np.int64)[2 * column.offset : 2 * (column.offset + len(column))].reshape(-1, 2)
    return words[:, 0], _is_given(column) & (words[:, 1] == words[:, 0] >> 63)


# Account events.


class Events(NamedTuple):
    """Account events of a file, in its order: as columns, and when each happened; and what is none, with its number."""

    columns: TransactionColumns
    at_ms: Array
    bad: list[tuple[int, InvalidRecord]]


def events_by_column(path: Path, mapping: Mapping, key: TokenKey, *, now_ms: int, future_ms_max: int = 300_000) -> Iterator[Events]:
    """What `mapping.events_in` says of the file's rows, in pieces."""
    reader = event_reader(path, mapping, key, now_ms + future_ms_max)
    columns = list(reader.at)
    wanted = list(reader.at.values())
    pieces = _parquet_pieces(path, columns, 0) if is_parquet(path) else _csv_pieces(path, mapping, wanted, reader.width, 0)
    return (_events(reader, columns, cells) for cells in pieces)


def _events(reader: EventReader, names: Sequence[str], cells: Cells) -> Events:
    of = dict(zip(names, cells.columns, strict=True))
    at_ms, doubtful = _moments(of[reader.rule.time], reader.time)
    doubtful |= at_ms > reader.at_ms_max
    doubtful[~doubtful] = _outside(at_ms[~doubtful], _EVENT_KINDS["at_ms"])
    found = {"kind": _each(of[reader.rule.kind], reader.kind)}
    for field, _, token in reader.fields:
        found[field] = _each(of[reader.rule.fields[field]], functools.partial(reader.field, field, token))
    if reader.rule.row_id_prefix is not None:
        ids = [f"{reader.rule.row_id_prefix}{number}" for number in cells.numbers.tolist()]
        found["event_id"] = _Found(np.arange(len(ids)), ids, np.zeros(len(ids), np.bool_))
    for field, each in found.items():
        found[field] = fit = _fit(each, _EVENT_KINDS[field])
        doubtful |= fit.bad[fit.places]
    sure = pa.array(~doubtful)
    table = pa.table({field: each.texts() for field, each in found.items()} | {"at_ms": pa.array(at_ms)}).filter(sure)
    again = [
        (int(number), reader.event(int(number), row)) for number, row in zip(cells.numbers[doubtful], _rows_of(reader, of, doubtful), strict=True)
    ]
    bad = sorted([*cells.bad, *((number, event) for number, event in again if isinstance(event, InvalidRecord))], key=lambda each: each[0])
    columns, good = event_columns_from_arrow(table), [(number, event) for number, event in again if isinstance(event, AccountEvent)]
    if not good:
        return Events(columns, at_ms[~doubtful], bad)
    order = np.argsort(np.concatenate((cells.numbers[~doubtful], [number for number, _ in good])))
    times = np.concatenate((at_ms[~doubtful], [event.at_ms for _, event in good]))
    return Events(joined([columns, columns_of([event for _, event in good])]).taken(order), times[order], bad)


def _rows_of(reader: EventReader, of: dict[str, pa.Array], which: Array) -> Iterator[tuple[Any, ...]]:
    """The cells of some rows, each in the place where the reader looks for it."""
    by_place = {place: values_of(of[name].filter(pa.array(which))) for name, place in reader.at.items()}
    return zip(*(by_place.get(place, itertools.repeat(None)) for place in range(max(by_place) + 1)), strict=False)


# From files to rows.


def cells_in(path: Path, mapping: Mapping, skip: int = 0) -> tuple[list[str], Iterator[Cells]]:
    """Columns of a file that are read, and its rows from the one after `skip` on, in pieces. SettingsError as `mapping.rows_in`."""
    columns = columns_in(path, mapping.csv, mapping.columns, lambda names: column_faults(mapping, names))
    if is_parquet(path):
        return columns, _parquet_pieces(path, columns, skip)
    wanted = [name for name in columns if name in mapping.columns]
    return wanted, _csv_pieces(path, mapping, [columns.index(name) for name in wanted], len(columns), skip)


def _parquet_pieces(path: Path, columns: Sequence[str], skip: int) -> Iterator[Cells]:
    with readable(path), pq.ParquetFile(path) as file:
        groups, number = list(range(file.num_row_groups)), 0
        while groups and number + file.metadata.row_group(groups[0]).num_rows <= skip:
            number += file.metadata.row_group(groups.pop(0)).num_rows
        for batch in file.iter_batches(batch_size=PIECE_ROWS, row_groups=groups, columns=list(columns)):
            part = batch.slice(min(max(skip - number, 0), batch.num_rows))
            number += batch.num_rows
            if part.num_rows:
                first = number - part.num_rows + 1
                yield Cells(first, part.num_rows, np.arange(first, number + 1), arrays_of(part, columns), [])


def _csv_pieces(path: Path, mapping: Mapping, wanted: Sequence[int], width: int, skip: int) -> Iterator[Cells]:
    numbered = itertools.islice(enumerate(csv_cells(path, mapping.csv, width), 1), skip, None)
    while some := list(itertools.islice(numbered, PIECE_ROWS)):
        good = [(number, row) for number, row in some if not isinstance(row, InvalidRecord)]
        by_column = list(zip(*(row for _, row in good), strict=True)) or [()] * width
        bad = [(number, row) for number, row in some if isinstance(row, InvalidRecord)]
        numbers, columns = np.array([number for number, _ in good], np.int64), [pa.array(by_column[at], pa.string()) for at in wanted]
        yield Cells(some[0][0], len(some), numbers, columns, bad)


def parted(cells: Cells, count: int) -> tuple[Cells, Cells]:
    """The first rows, so many, and the others."""
    next_, place = cells.first + count, int(np.searchsorted(cells.numbers, cells.first + count))
    before, after = ([each for each in cells.bad if (each[0] < next_) is side] for side in (True, False))
    return (
        Cells(cells.first, count, cells.numbers[:place], [column[:place] for column in cells.columns], before),
        Cells(next_, cells.read - count, cells.numbers[place:], [column[place:] for column in cells.columns], after),
    )
