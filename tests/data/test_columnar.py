"""A file by column says of every row what it says row by row: the same payments, the same labels, the same faults."""

from __future__ import annotations

import math
import tempfile
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.columns import columns_from_arrow, columns_of
from schemas.account import AccountEvent
from schemas.errors import InvalidRecord
from schemas.transaction import Transaction
from streams.columnar import Cells, ColumnReader, Rows, as_table, cells_in, events_by_column, parted
from streams.mapping import Mapping, Row, RowReader, TokenKey, events_in, mapping_from, mapping_in, rows_in, values_of

KEY = TokenKey(b"a test's key", "k1")
NOW_MS = 1_790_000_000_000
TABLES = """
[fields]
transaction_id = "ref"
kind = "type"
account_id = "account"
card_bin = "bin"
mcc = "branch"
merchant_id = "shop"
device_token = "device"
country = "country"
latitude = "lat"
longitude = "lon"
ip = "ip"
ip_proxy = "proxy"
session.keystroke_dwell_ms = "dwell"
fingerprint.os = "system"
fingerprint.emulator = "virtual"
[values.kind]
POS = "card_present"
"" = "atm"
"*" = "ecommerce"
[values.merchant_id]
nobody = ""
[tokens]
card_token = "card"
email_token = "mail"
[attributes]
basket = "basket"
[declined]
column = "answer"
values = ["51", "05"]
"""
TIMES = [
    '[time]\ncolumn = "when"\nzone = "Europe/Berlin"\n',
    '[time]\ncolumn = "when"\nzone = "UTC"\n',
    '[time]\ncolumn = "when"\n',
    '[time]\ncolumn = "when"\nformat = "epoch_s"\n',
    '[time]\ncolumn = "when"\nformat = "epoch_ms"\n',
    '[time]\ncolumn = "when"\nformat = "offset_h"\norigin = "2026-02-28T00:00:00"\n',
    '[time]\ncolumn = "when"\nformat = "%d.%m.%Y %H:%M"\nzone = "America/New_York"\n',
    '[time]\ncolumns = ["when", "clock"]\nzone = "UTC"\n',
]
AMOUNTS = [
    '[amount]\ncolumn = "sum"\ncurrency = "EUR"\n',
    '[amount]\ncolumn = "sum"\ncurrency_column = "ccy"\n',
    '[amount]\ncolumn = "sum"\ncurrency = "KWD"\nunit = "minor"\n',
    '[amount]\ncolumn = "sum"\ncurrency_column = "ccy"\nnegative = "absolute"\nrounding = "half_even"\n',
    '[amount]\ncolumn = "sum"\ncurrency = "EUR"\ndecimal = ","\nstrip = "$ "\n',
    '[amount]\ncolumn = "sum"\ncurrency = "EUR"\n[billing]\ncolumn = "billed"\ncurrency_column = "ccy"\n',
]
LABELS = [
    "",
    '[label]\ncolumn = "fraud"\ndelay = "2d"\n',
    '[label]\ncolumn = "fraud"\nkind_column = "why"\nlearned_at_column = "learned"\nvalues = ["Yes", "1"]\n',
]
CONSTANTS = [
    "",
    '[constants]\nterminal_id = "w1"\n',
]
REF = 'row_id_prefix = "x7-"\n'
MORE = 'customer_id = "ref"'

_WORDS = st.sampled_from(
    [
        "",
        " ",
        "a",
        " a",
        "b\u00e9",
        "x" * 64,
        "x" * 65,
        "x" * 300,
        "POS",
        "nobody",
        "true",
        "No",
        "maybe",
        "1",
        "05",
        "0742",
        "742",
        "de",
        "DE",
        "DEU",
    ]
)
_IDS = st.one_of(
    _WORDS, st.sampled_from(["4242 4242-4242 4242", "4242424242424242", "411111", "12", "10.0.0.1", "::1", "1.2.3", "EUR", "KWD", "JPY", "EUX"])
)
_MOMENTS = st.datetimes(datetime(2025, 1, 1), datetime(2026, 12, 31))  # noqa: DTZ001 - some files have no zone
_INSTANTS = st.one_of(st.sampled_from([datetime(2026, 10, 25, 0, 30), datetime(2026, 3, 29, 2, 30), datetime(1950, 1, 1)]), _MOMENTS)  # noqa: DTZ001
_CENTS = st.one_of(st.integers(-200, 100_000_000), st.sampled_from([2**53, 9 * 10**15, 10**17]))
_NUMBERS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (
        pa.float64(),
        st.one_of(
            _CENTS.map(lambda c: c / 100), st.sampled_from([0.125, 0.1 + 0.2, math.nan, math.inf, -0.0, 1e300, 57.2, 91.0]), st.floats(-180, 180)
        ),
    ),
    (pa.float32(), st.sampled_from([12.1, 0.0, 48.25, math.nan, -3.5, 1e10])),
    (pa.int64(), st.one_of(_CENTS, st.sampled_from([1_772_366_400, 1_772_366_400_000, 36, -(2**63)]))),
    (pa.uint64(), st.sampled_from([0, 1, 2**64 - 1])),
    (pa.int32(), st.integers(0, 9999)),
    (pa.decimal128(20, 2), _CENTS.map(lambda c: Decimal(c).scaleb(-2))),
    (pa.decimal128(38, 4), st.sampled_from([Decimal("1.2345"), Decimal("1.2300"), Decimal(10) ** 30])),
    (pa.bool_(), st.booleans()),
    (
        pa.string(),
        st.one_of(
            _CENTS.map(lambda c: str(Decimal(c).scaleb(-2))), st.sampled_from(["1.204,10", "$ 12.30", "twelve", "NaN", "nan", "inf", "1e3", "", "-3"])
        ),
    ),
]
_MOMENT_TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    *((pa.timestamp(unit, tz), _INSTANTS) for unit in ("ms", "us") for tz in (None, "UTC", "Europe/Berlin")),
    (pa.timestamp("s"), _INSTANTS.map(lambda m: m.replace(microsecond=0))),
    (pa.timestamp("ns", "UTC"), _INSTANTS),
    (pa.date32(), st.dates(date(2025, 1, 1), date(2026, 12, 31))),
    (
        pa.string(),
        st.one_of(
            _INSTANTS.map(lambda m: m.isoformat()),
            _MOMENTS.map(lambda m: m.strftime("%d.%m.%Y %H:%M")),
            st.sampled_from(["", "2026-03-01T12:00:00+01:00", "yesterday", "1772366400.25", " 36 ", "2031-01-01"]),
        ),
    ),
    *((kind, values) for kind, values in _NUMBERS if kind in (pa.int64(), pa.float64())),
]
_TEXTS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), _IDS),
    (pa.string(), _IDS),
    (pa.large_string(), _IDS),
    (pa.dictionary(pa.int32(), pa.string()), _IDS),
    (pa.list_(pa.string()), st.lists(_WORDS, max_size=2)),
    (pa.binary(), st.sampled_from([b"x", b""])),
    *_NUMBERS,
]
_SOUND: dict[str, Any] = {"ref": "r1", "account": "a1", "when": "2026-03-01T12:00:00Z", "sum": "12.30", "ccy": "EUR", "type": "POS"}
"""What a row needs; the rest may be missing."""


@st.composite
def columns(draw: st.DrawFn, mapping: Mapping) -> dict[str, pa.Array]:
    """Columns that the mapping names: some as they should be, some of any type and contents."""
    n = draw(st.integers(1, 12))
    made = {}
    for name in mapping.columns:
        if name in _SOUND and draw(st.integers(0, 3)):
            made[name] = pa.array([_SOUND[name]] * n, pa.string())
            continue
        if name not in _SOUND and draw(st.integers(0, 2)):
            made[name] = pa.nulls(n, draw(st.sampled_from([pa.string(), pa.float64(), pa.null()])))
            continue
        kinds = _MOMENT_TYPES if name in ("when", "learned", "clock") else _NUMBERS if name in ("sum", "billed", "lat", "lon", "dwell") else _TEXTS
        kind, values = draw(st.sampled_from(kinds))
        of_rows = draw(st.lists(st.none() | values, min_size=n, max_size=n))
        made[name] = pa.array(of_rows, kind)
    return made


@st.composite
def files(draw: st.DrawFn) -> tuple[Mapping, dict[str, pa.Array]]:
    """A mapping and a file's columns."""
    text = draw(st.sampled_from(TIMES)) + draw(st.sampled_from(AMOUNTS)) + TABLES + draw(st.sampled_from(LABELS)) + draw(st.sampled_from(CONSTANTS))
    if draw(st.booleans()):
        text = REF + text.replace('transaction_id = "ref"', MORE)
    mapping = mapping_from(text)
    return mapping, draw(columns(mapping))


def by_row(mapping: Mapping, names: list[str], arrays: list[pa.Array], numbers: list[int]) -> list[Row]:
    reader = RowReader(mapping, names, KEY, NOW_MS, 300_000)
    cells = zip(*(values_of(array) for array in arrays), strict=True)
    return [reader.row(number, row) for number, row in zip(numbers, cells, strict=True)]


def said(faults: list[tuple[int, InvalidRecord]]) -> list[tuple[int, str, str, str]]:
    return [(number, fault.field, fault.code, str(fault)) for number, fault in faults]


def assert_same(rows: list[Row], found: Rows) -> None:
    """Both say the same of every row."""
    good = [row for row in rows if isinstance(row.content, Transaction)]
    assert said([(row.number, row.content) for row in rows if isinstance(row.content, InvalidRecord)]) == said(found.bad)
    assert found.read == len(rows)
    assert found.table.num_rows == len(good)
    expected = as_table(good, found.table.schema)
    for name in found.table.column_names:
        plain = found.table.schema.field(name).type
        kind = plain.value_type if pa.types.is_dictionary(plain) else plain
        one, other = (table[name].cast(kind).to_pylist() for table in (found.table, expected))
        assert repr([math.nan if value is None and kind == pa.float64() else value for value in other]) == repr(one), name
    table = found.table.unify_dictionaries().combine_chunks()
    one, other = columns_from_arrow(table), columns_of([row.content for row in good if isinstance(row.content, Transaction)])
    assert one.fact_matrix.tobytes() == other.fact_matrix.tobytes()
    assert one.measure_matrix.tobytes() == other.measure_matrix.tobytes()
    for entity, tokens in other.tokens.items():
        assert np.array_equal(one.tokens.get(entity, np.zeros(len(good), np.uint64)), tokens), entity


@pytest.mark.parametrize("delay", ["400000d", "999999999d"])
def test_a_label_that_is_learned_beyond_all_times_makes_a_bad_row(delay: str) -> None:
    mapping = mapping_from(AMOUNTS[0] + TIMES[1] + TABLES + f'[label]\ncolumn = "fraud"\ndelay = "{delay}"\n')
    arrays = {name: pa.array([_SOUND.get(name)] * 2, pa.string()) for name in mapping.columns}
    arrays |= {"when": pa.array([NOW_MS] * 2, pa.timestamp("ms", "UTC")), "fraud": pa.array(["1", None])}
    found = ColumnReader(mapping, list(arrays), KEY, NOW_MS).rows(Cells(1, 2, np.arange(1, 3), list(arrays.values()), []))
    assert [(row, fault.field) for row, fault in found.bad] == [(1, "learned_at_ms")]
    assert_same(by_row(mapping, list(arrays), list(arrays.values()), [1, 2]), found)


@settings(max_examples=150, deadline=None)
@given(files())
def test_every_row_is_by_column_what_it_is_by_itself(file: tuple[Mapping, dict[str, pa.Array]]) -> None:
    mapping, arrays = file
    names, n = list(arrays), len(next(iter(arrays.values())))
    cells = Cells(4, n, np.arange(4, 4 + n), list(arrays.values()), [])
    assert_same(by_row(mapping, names, list(arrays.values()), list(range(4, 4 + n))), ColumnReader(mapping, names, KEY, NOW_MS).rows(cells))


@pytest.mark.parametrize("column", ["sum", "when"])
@pytest.mark.parametrize("number", [-(2**63), -(2**63) + 1, 2**62, 2**63 - 1])
@pytest.mark.parametrize("kind", [pa.int64(), *(pa.timestamp(unit, "UTC") for unit in ("s", "ms", "us", "ns")), pa.timestamp("us")], ids=str)
def test_a_number_or_a_time_beyond_all_is_a_bad_row(column: str, number: int, kind: pa.DataType) -> None:
    mapping = mapping_from(AMOUNTS[0] + TIMES[4 if kind == pa.int64() else 1] + TABLES)
    arrays = {name: pa.array([_SOUND.get(name)] * 2, pa.string()) for name in mapping.columns}
    arrays["when"] = pa.array([NOW_MS * 1000] * 2, pa.timestamp("us", "UTC"))
    arrays[column] = pa.array([number, None], pa.int64()).cast(kind)
    found = ColumnReader(mapping, list(arrays), KEY, NOW_MS).rows(Cells(1, 2, np.arange(1, 3), list(arrays.values()), []))
    assert [(row, fault.field) for row, fault in found.bad] == [(row, "amount_minor" if column == "sum" else "at_ms") for row in (1, 2)]
    assert_same(by_row(mapping, list(arrays), list(arrays.values()), [1, 2]), found)


def test_a_payment_of_nothing_that_bills_more_is_a_bad_row_and_so_is_one_of_more_that_bills_nothing() -> None:
    mapping = mapping_from(AMOUNTS[5] + TIMES[1] + TABLES)
    arrays = {name: pa.array([_SOUND.get(name)] * 5, pa.string()) for name in mapping.columns}
    arrays |= {"when": pa.array([NOW_MS * 1000] * 5, pa.timestamp("us", "UTC")), "ccy": pa.array(["USD"] * 5)}
    arrays |= {"sum": pa.array([0, 0, 0, 7, 7]), "billed": pa.array([5, 0, None, 5, 0])}
    found = ColumnReader(mapping, list(arrays), KEY, NOW_MS).rows(Cells(1, 5, np.arange(1, 6), list(arrays.values()), []))
    assert_same(by_row(mapping, list(arrays), list(arrays.values()), [1, 2, 3, 4, 5]), found)
    assert [(row, fault.field) for row, fault in found.bad] == [(1, "billing_amount_minor"), (5, "billing_amount_minor")]


@given(st.lists(st.integers(0, 10**14), min_size=1), st.sampled_from(["EUR", "JPY", "KWD", "CLF"]))
def test_every_double_that_is_an_amount_is_that_amount(minor: list[int], currency: str) -> None:
    mapping = mapping_from(AMOUNTS[0].replace("EUR", currency) + TIMES[1] + TABLES)
    power = {"EUR": 100, "JPY": 1, "KWD": 1000, "CLF": 10_000}[currency]
    arrays = {name: pa.array([_SOUND.get(name)] * len(minor), pa.string()) for name in mapping.columns}
    arrays["sum"] = pa.array([amount / power for amount in minor])
    found = ColumnReader(mapping, list(arrays), KEY, NOW_MS).rows(Cells(1, len(minor), np.arange(1, len(minor) + 1), list(arrays.values()), []))
    assert not found.bad
    assert found.table["amount_minor"].to_pylist() == minor


def pieces(path: Path, mapping: Mapping, skip: int, size: int) -> list[Rows]:
    names, cells = cells_in(path, mapping, skip)
    reader, found = ColumnReader(mapping, names, KEY, NOW_MS), []
    for piece in cells:
        while piece.read:
            some, piece = parted(piece, min(size, piece.read))
            found.append(reader.rows(some))
    return found


@pytest.mark.parametrize(("suffix", "skip"), [("parquet", 0), ("parquet", 1300), ("csv", 0), ("csv", 700)])
def test_a_file_in_pieces_from_some_row_on_has_all_its_rows(history: Path, tmp_path: Path, suffix: str, skip: int) -> None:
    mapping = mapping_in(history / "mapping.toml")
    table = pq.read_table(history / "transactions.parquet").slice(0, 1500)
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        pa_csv.write_csv(table, path)
        lines = path.read_text().splitlines()
        lines[3], lines[900] = "too,few", lines[900].replace(lines[900].split(",")[0], '"\u00e9' + "x" * 80 + '"')
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        pq.write_table(table, path, row_group_size=400)
    rows = list(rows_in(path, mapping, KEY, now_ms=NOW_MS, skip=skip))
    found = pieces(path, mapping, skip, 333)
    assert [each.read for each in found] == [333] * ((1500 - skip) // 333) + [(1500 - skip) % 333]
    place = 0
    for each in found:
        assert_same(rows[place : place + each.read], each)
        place += each.read
    assert place == len(rows)


EVENTS = """
[account_events]
kind = "what"
time = "when"
account_id = "account"
device_token = "device"
customer_id = "who"
ip_country = "from"
counterparty_account_id = "to"
kinds = { LOGIN_OK = "login", "" = "login_failed" }
"""


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(TIMES[:6]), st.sampled_from(['event_id = "id"\n', 'row_id_prefix = "ev-"\n']))
def test_every_account_event_is_by_column_what_it_is_by_itself(data: st.DataObject, time: str, named: str) -> None:
    mapping = mapping_from(time + AMOUNTS[0] + TABLES + EVENTS + named)
    assert mapping.account_events is not None
    n, arrays = data.draw(st.integers(1, 8)), {}
    sound = {"what": "login", "account": "a1", "when": "2026-03-01T12:00:00Z", "id": "e1"}
    for name in mapping.account_events.columns:
        kind, values = data.draw(st.sampled_from(_MOMENT_TYPES if name == "when" else _TEXTS))
        usual = name in sound and data.draw(st.integers(0, 3))
        arrays[name] = pa.array(
            [sound[name]] * n if usual else data.draw(st.lists(st.none() | values, min_size=n, max_size=n)), None if usual else kind
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        pq.write_table(pa.table(arrays), path)
        rows = list(events_in(path, mapping, KEY, now_ms=NOW_MS))
        (found,) = events_by_column(path, mapping, KEY, now_ms=NOW_MS)
    good = [row.content for row in rows if isinstance(row.content, AccountEvent)]
    assert said([(row.number, row.content) for row in rows if isinstance(row.content, InvalidRecord)]) == said(found.bad)
    assert found.at_ms.tolist() == [event.at_ms for event in good]
    assert found.columns.fact_matrix.tobytes() == columns_of(good).fact_matrix.tobytes()
    for entity, tokens in columns_of(good).tokens.items():
        assert found.columns.tokens[entity].tobytes() == tokens.tobytes(), entity
    assert not found.columns.asks.any()


def test_account_events_of_a_csv_file_are_those_of_the_parquet_file(history: Path, tmp_path: Path) -> None:
    mapping = mapping_in(history / "mapping.toml")
    table = pq.read_table(history / "account_events.parquet").slice(0, 500)
    pq.write_table(table, tmp_path / "e.parquet")
    pa_csv.write_csv(table.add_column(0, "more", pa.array(["x"] * 500)), tmp_path / "e.csv")
    one, other = (next(events_by_column(tmp_path / name, mapping, KEY, now_ms=2**41)) for name in ("e.parquet", "e.csv"))
    assert one.columns.n == 500
    assert one.columns.fact_matrix.tobytes() == other.columns.fact_matrix.tobytes()
