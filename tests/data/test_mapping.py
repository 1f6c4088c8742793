"""The mapping file: every fault is named, and CSV and Parquet mean the same rows."""

from __future__ import annotations

import csv
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.feedback import doubted
from schemas.account import AccountEvent
from schemas.errors import InvalidRecord, SettingsError
from schemas.label import Label
from schemas.money import to_major
from schemas.transaction import Transaction
from streams.columnar import ColumnReader, as_number, cells_in
from streams.mapping import (
    AmountRule,
    EventRow,
    Row,
    TimeRule,
    TokenKey,
    accounts_in,
    amount_minor,
    events_in,
    field_of,
    mapping_from,
    mapping_in,
    moment_ms,
    rows_count,
    rows_in,
)

KEY = TokenKey(b"a test's key", "k1")
NOW_MS = 1_790_000_000_000
MINIMAL = """
ignore = ["comment"]
[time]
column = "when"
zone = "Europe/Berlin"
[amount]
column = "sum"
currency = "EUR"
[fields]
transaction_id = "ref"
kind = "type"
account_id = "account"
mcc = "branch"
[values.kind]
POS = "card_present"
[tokens]
card_token = "card"
[label]
column = "fraud"
delay = "2d"
"""
HEADER = ["ref", "type", "account", "when", "sum", "card", "branch", "fraud", "comment"]
GOOD = ["r1", "POS", "a1", "2026-03-01T12:00:00", "12.30", "4242 4242-4242 4242", "742", "", "hello"]


def a_csv(path: Path, *records: list[str], header: list[str] = HEADER) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *records])
    return path


def read(path: Path, mapping: str = MINIMAL) -> list[Row]:
    return list(rows_in(path, mapping_from(mapping), KEY, now_ms=NOW_MS))


def test_attributes_by_a_pattern_are_the_columns_that_nothing_else_names(tmp_path: Path) -> None:
    header, record = [*HEADER, "V1", "V2", "W", ""], [*GOOD, "0.5", "red", "7", "x"]
    path = a_csv(tmp_path / "a.csv", record, header=header)
    with pytest.raises(SettingsError, match="column 'W' is neither mapped nor in `ignore`"):
        read(path, MINIMAL + '[attributes]\nfirst = "V1"\n"*" = "V*"\n')
    (row,) = read(path, MINIMAL.replace('"comment"', '"comment", ""') + '[attributes]\nfirst = "V1"\n"*" = "*"\n')
    assert isinstance(row.content, Transaction)
    assert [(attribute.name, attribute.value) for attribute in row.content.attributes] == [("first", "0.5"), ("V2", "red"), ("W", "7")]


def test_a_pattern_that_no_column_fits_is_named(tmp_path: Path) -> None:
    path = a_csv(tmp_path / "a.csv", GOOD)
    with pytest.raises(SettingsError, match=r"column 'W\*' is mapped, but the file has none of this name"):
        read(path, MINIMAL + '[attributes]\n"*" = "W*"\n')
    (row,) = read(path, MINIMAL + '[attributes]\n"*" = "*"\n')
    assert isinstance(row.content, Transaction), "all that are left may be none"


@pytest.mark.parametrize("text", ["1_000", "\u0661\u0662", "\uff11\uff12"])
def test_a_number_is_of_ascii_digits_alone(tmp_path: Path, text: str) -> None:
    amount = text if text.isascii() else f"{text}.30"
    (row,) = read(a_csv(tmp_path / "a.csv", [*GOOD[:4], amount, *GOOD[5:]]))
    assert isinstance(row.content, InvalidRecord)
    assert row.content.code == "invalid_amount"
    with pytest.raises(InvalidRecord, match="is not a number"):
        field_of("latitude", text, None)
    with pytest.raises(InvalidRecord, match="is not a time"):
        moment_ms(text, TimeRule(format="epoch_s"))
    assert as_number(text) < 0, "a text, which some number below all that are counted stands for"


@pytest.mark.parametrize("encoding", ["UTF_8", "utf-8", "U8", "utf8"])
def test_a_byte_order_mark_is_no_part_of_the_first_columns_name(tmp_path: Path, encoding: str) -> None:
    path = a_csv(tmp_path / "a.csv", GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (row,) = read(path, MINIMAL + f'[csv]\nencoding = "{encoding}"\n')
    assert isinstance(row.content, Transaction)


def test_a_row_becomes_a_transaction_with_tokens_for_raw_values(tmp_path: Path) -> None:
    (row,) = read(a_csv(tmp_path / "a.csv", GOOD))
    txn = row.content
    assert isinstance(txn, Transaction)
    assert (txn.transaction_id, txn.kind, txn.account_id, txn.amount_minor, txn.currency) == ("r1", "card_present", "a1", 1230, "EUR")
    assert txn.at_ms == int(datetime(2026, 3, 1, 12, tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000)
    assert txn.card_token is not None
    assert txn.card_token.startswith("crd_k1_")
    assert (txn.card_bin, txn.card_last4, txn.mcc) == ("424242", "4242", "0742")
    assert "4242424242424242" not in repr(row)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[time", "not TOML"),
        (f"time = {'9' * 5_000}", "not TOML"),
        (f"time = {'[' * 4_000}{']' * 4_000}", "not TOML"),
        (MINIMAL.replace("[time]", "[tyme]"), "tyme: no such table"),
        (MINIMAL.replace("[time]", "[tyme]"), "[time]: is missing"),
        (MINIMAL.replace('kind = "type"', ""), "kind: required, but mapped nowhere"),
        (MINIMAL.replace('account_id = "account"', ""), "account_id: required, but mapped nowhere"),
        (MINIMAL.replace('mcc = "branch"', 'mmc = "branch"'), "mmc: a Transaction has no such field"),
        (MINIMAL.replace('mcc = "branch"', 'currency = "branch"'), "currency: has its own table"),
        (MINIMAL.replace('mcc = "branch"', 'card_token = "branch"'), "card_token: mapped twice"),
        (MINIMAL.replace('zone = "Europe/Berlin"', 'zone = "Europe/Bielefeld"'), "unknown zone 'Europe/Bielefeld'"),
        (MINIMAL.replace('zone = "Europe/Berlin"', 'format = "%d.%m.%Y"'), "`zone` is needed"),
        (MINIMAL.replace('zone = "Europe/Berlin"', 'format = "unix"'), "unknown format 'unix'"),
        (MINIMAL.replace('zone = "Europe/Berlin"', 'format = "offset_s"'), "needs an origin"),
        (MINIMAL.replace('currency = "EUR"', ""), "needs either currency or currency_column"),
        (MINIMAL.replace('currency = "EUR"', 'currency = "EUX"'), "unknown ISO 4217 currency 'EUX'"),
        (MINIMAL.replace('delay = "2d"', 'delay = "two days"'), "[label]"),
        (MINIMAL.replace('delay = "2d"', 'delay = "1000000000d"'), "[label]"),
        (MINIMAL.replace("[values.kind]", "[values.entry_mode]"), "values.entry_mode: is not mapped"),
        (MINIMAL.replace('card_token = "card"', 'mcc_token = "card"'), "mcc_token: a Transaction has no such field"),
        (MINIMAL.replace('column = "when"', 'colum = "when"'), "unknown field `colum`"),
        (MINIMAL.replace('zone = "Europe/Berlin"', 'format = "offset_s"\norigin = "foo"'), "origin 'foo' is not a time"),
        (
            MINIMAL.replace('zone = "E', 'format = "offset_s"\norigin = "2026-03-29T02:30:00"\nzone = "E'),
            "[time]: origin 2026-03-29T02:30:00 never was in",
        ),
        (MINIMAL + '[constants]\n"fingerprint.os" = "iOS"\n', "fingerprint.os: is inside a record, it cannot be in [constants]"),
        (MINIMAL.replace('kind = "type"', "") + '[constants]\nkind = "ecomerce"\n', "constants.kind: Invalid enum value 'ecomerce'"),
        (MINIMAL + "[constants]\nterminal_id = 5\n", "constants.terminal_id: Expected `str | null`, got `int`"),
        (MINIMAL + '[constants]\ncountry = "Germany"\n', "constants.country: Expected"),
        (MINIMAL.replace('mcc = "branch"', "mcc = 5"), "[fields.mcc]: Expected `str`, got `int`"),
        (MINIMAL.replace("[values.kind]", "[values.kind]\nXX = 5"), "[values.kind.XX]: Expected `str`, got `int`"),
        (MINIMAL + '[memory]\nterminal = "sketch"\n', "[memory.terminal]: Invalid enum value 'sketch'"),
        (MINIMAL + '[csv]\nencoding = "klingon"\n', "[csv]: unknown encoding 'klingon'"),
        (MINIMAL + '[csv]\nencoding = "hex"\n', "[csv]: unknown encoding 'hex'"),
        (MINIMAL + "[csv]\ndelimiter = ';'\nquote = ';'\n", "[csv]: delimiter and quote"),
    ],
)
def test_a_fault_of_the_mapping_is_named(text: str, named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        mapping_from(text)
    assert named in str(refused.value)


def test_all_faults_of_a_mapping_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        mapping_from('[time]\ncolumn = "t"\nzone = "Nowhere"\n[amount]\ncolumn = "a"\n[fields]\nmmc = "m"\n')
    assert len(str(refused.value).splitlines()) == 1 + 6


def test_a_file_that_is_not_in_the_mappings_encoding_is_named(tmp_path: Path) -> None:
    path = a_csv(tmp_path / "a.csv", GOOD)
    with pytest.raises(SettingsError, match="encoding 'utf-16'"):
        rows_in(path, mapping_from(MINIMAL + '[csv]\nencoding = "utf-16"\n'), KEY, now_ms=NOW_MS)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("by_column", [False, True])
def test_a_file_that_ends_within_a_character_is_named(tmp_path: Path, encoding: str, by_column: bool) -> None:
    path = a_csv(tmp_path / "a.csv", GOOD)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding)[:-1])
    mapping = mapping_from(f'{MINIMAL}[csv]\nencoding = "{encoding}"\n')
    with pytest.raises(SettingsError, match=f"a.csv: is not text in the encoding '{encoding}'"):
        list(cells_in(path, mapping)[1] if by_column else rows_in(path, mapping, KEY, now_ms=NOW_MS))
    with pytest.raises(SettingsError, match="is not text"):
        rows_count(path, mapping)


def test_columns_that_are_missing_or_unknown_are_named_before_the_first_row(tmp_path: Path) -> None:
    path = a_csv(tmp_path / "a.csv", header=["ref", "type", "account", "when", "sum", "card", "fraud", "comment", "shoe_size"])
    with pytest.raises(SettingsError) as refused:
        rows_in(path, mapping_from(MINIMAL), KEY, now_ms=NOW_MS)
    assert "column 'branch' is mapped, but the file has none" in str(refused.value)
    assert "column 'shoe_size' is neither mapped nor in `ignore`" in str(refused.value)
    assert rows_count(a_csv(tmp_path / "b.csv", GOOD, GOOD), mapping_from(MINIMAL)) == 2


def changed(column: str, value: str) -> list[str]:
    return [value if name == column else cell for name, cell in zip(HEADER, GOOD, strict=True)]


@pytest.mark.parametrize(
    ("record", "field", "code"),
    [
        (changed("ref", ""), "transaction_id", "missing_field"),
        (changed("account", ""), "account_id", "missing_field"),
        (changed("type", "CHEQUE"), "kind", "invalid_field"),
        (changed("when", "yesterday"), "at_ms", "invalid_field"),
        (changed("when", ""), "at_ms", "missing_field"),
        (changed("when", "2031-01-01T00:00:00"), "at_ms", "time_in_future"),
        (changed("sum", ""), "amount_minor", "missing_field"),
        (changed("sum", "12.345"), "amount_minor", "invalid_amount"),
        (changed("sum", "twelve"), "amount_minor", "invalid_amount"),
        (changed("sum", "-3"), "amount_minor", "invalid_field"),
        (changed("sum", "NaN"), "amount_minor", "invalid_amount"),
        (changed("sum", "1e9999999"), "amount_minor", "invalid_amount"),
        (changed("branch", "shoes"), "mcc", "invalid_field"),
        (changed("card", "1234"), "card_token", "invalid_field"),
        (GOOD[:-1], "row", "wrong_width"),
        ([*GOOD, "more"], "row", "wrong_width"),
        (changed("when", "2026-03-29T02:30:00"), "at_ms", "invalid_field"),
    ],
)
def test_a_bad_row_is_named_with_its_number_and_field_and_the_others_go_on(tmp_path: Path, record: list[str], field: str, code: str) -> None:
    rows = read(a_csv(tmp_path / "a.csv", GOOD, record, GOOD))
    assert [row.number for row in rows] == [1, 2, 3]
    assert [isinstance(row.content, InvalidRecord) for row in rows] == [False, True, False]
    fault = rows[1].content
    assert isinstance(fault, InvalidRecord)
    assert (fault.field, fault.code) == (field, code)
    wrong = [name for name, cell, good in zip(HEADER, record, GOOD, strict=False) if cell != good]
    assert [name for name in HEADER if f"(column {name!r})" in fault.reason] == wrong, "and the column: whoever made the file knows no other name"


def test_a_quote_that_nobody_closes_makes_a_bad_row_and_swallows_none_silently(tmp_path: Path) -> None:
    path = a_csv(tmp_path / "a.csv", GOOD, changed("comment", "unclosed"), GOOD, GOOD)
    path.write_text(path.read_text().replace("unclosed", '"unclosed'))
    first, second = (row.content for row in read(path))
    assert isinstance(first, Transaction)
    assert isinstance(second, InvalidRecord)
    assert "is not CSV" in second.reason


def test_an_attribute_that_cannot_be_is_named_with_its_column(tmp_path: Path) -> None:
    mapping = MINIMAL + '[attributes]\nbasket = "items"\nnote = "text"\n'
    path = a_csv(tmp_path / "a.csv", [*GOOD, "", "x" * 257], header=[*HEADER, "items", "text"])
    (row,) = read(path, mapping)
    assert isinstance(row.content, InvalidRecord)
    assert "(column 'text')" in row.content.reason, "it is the first attribute of its row, and the second of the mapping"


def test_bytes_that_are_no_text_make_a_bad_row_not_a_failed_file(tmp_path: Path) -> None:
    path = a_csv(tmp_path / "a.csv", GOOD, GOOD)
    path.write_bytes(path.read_bytes().replace(b"hello", b"h\xe9llo", 1))
    first, second = (row.content for row in read(path))
    assert isinstance(first, InvalidRecord)
    assert first.code == "unreadable_bytes"
    assert isinstance(second, Transaction)


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
@pytest.mark.parametrize("by_column", [False, True])
def test_a_parquet_file_with_a_text_that_is_no_text_is_named(tmp_path: Path, by_column: bool, kind: pa.DataType) -> None:
    mapping = mapping_from(MINIMAL)
    column = pa.Array.from_buffers(kind, 1, pa.array([b"m\xff"], pa.binary()).buffers())
    pq.write_table(pa.table(dict.fromkeys(mapping.columns, column)), tmp_path / "a.parquet")
    with pytest.raises(SettingsError, match=r"a\.parquet: .*UTF8"):
        list(cells_in(tmp_path / "a.parquet", mapping)[1] if by_column else rows_in(tmp_path / "a.parquet", mapping, KEY, now_ms=NOW_MS))


def test_a_record_that_is_no_csv_makes_a_bad_row_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = a_csv(tmp_path / "a.csv", GOOD, changed("comment", "x" * 200_000), GOOD)
    path.write_text("\n" + path.read_text().replace("\n", "\n\n"))
    rows = read(path)
    assert [row.number for row in rows] == [1, 2, 3]
    assert [isinstance(row.content, InvalidRecord) for row in rows] == [False, True, False]


def test_a_label_is_known_after_its_delay_or_when_the_file_says_so(tmp_path: Path) -> None:
    unlabelled, fraud, honest = read(a_csv(tmp_path / "a.csv", GOOD, changed("fraud", "TRUE"), changed("fraud", "no")))
    assert unlabelled.label is None
    assert fraud.label is not None
    assert honest.label is not None
    assert isinstance(fraud.content, Transaction)
    assert (fraud.label.fraud, honest.label.fraud) == (True, False)
    assert fraud.label.learned_at_ms == fraud.content.at_ms + 2 * 86_400_000
    told = MINIMAL.replace('delay = "2d"', 'learned_at_column = "comment"')
    (row,) = read(a_csv(tmp_path / "b.csv", [*changed("fraud", "1")[:-1], "2026-03-09T00:00:00Z"]), told)
    assert row.label is not None
    assert row.label.learned_at_ms == int(datetime(2026, 3, 9, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("cell", "rule", "at"),
    [
        ("2026-03-01T12:00:00+01:00", TimeRule(), "2026-03-01T11:00:00.000"),
        ("2026-03-01 12:00:00.1239", TimeRule(zone="UTC"), "2026-03-01T12:00:00.124"),
        ("1.3.2026 7:05", TimeRule(format="%d.%m.%Y %H:%M", zone="America/New_York"), "2026-03-01T12:05:00.000"),
        ("1772366400", TimeRule(format="epoch_s"), "2026-03-01T12:00:00.000"),
        ("1772366400.25", TimeRule(format="epoch_s"), "2026-03-01T12:00:00.250"),
        (1772366400000, TimeRule(format="epoch_ms"), "2026-03-01T12:00:00.000"),
        ("36", TimeRule(format="offset_h", origin="2026-02-28T00:00:00"), "2026-03-01T12:00:00.000"),
        ("2", TimeRule(format="offset_30d", origin="2026-01-01T00:00:00"), "2026-03-02T00:00:00.000"),
        (datetime(2026, 3, 1, 12, tzinfo=UTC), TimeRule(), "2026-03-01T12:00:00.000"),
        ("2026-10-25T02:30:00", TimeRule(zone="Europe/Berlin"), "2026-10-25T00:30:00.000"),
        (date(2025, 4, 25), TimeRule(zone="Africa/Cairo"), "2025-04-24T22:00:00.000"),
    ],
)
def test_times_are_read_as_the_rule_says(cell: object, rule: TimeRule, at: str) -> None:
    assert datetime.fromtimestamp(moment_ms(cell, rule) / 1000, UTC).isoformat(timespec="milliseconds") == f"{at}+00:00"


@pytest.mark.parametrize("cell", ["1e9999999", "inf", "nan", "soon"])
def test_a_count_of_seconds_that_is_no_time_is_refused(cell: str) -> None:
    with pytest.raises(InvalidRecord) as refused:
        moment_ms(cell, TimeRule(format="epoch_s"))
    assert refused.value.field == "at_ms"


@pytest.mark.parametrize("cell", ["2026-03-29T02:00:00", datetime(2026, 3, 29, 2, 59, 59)])  # noqa: DTZ001 - local
def test_a_local_time_that_never_was_is_refused(cell: object) -> None:
    with pytest.raises(InvalidRecord, match="never was in Europe/Berlin") as refused:
        moment_ms(cell, TimeRule(zone="Europe/Berlin"))
    assert refused.value.field == "at_ms"


@pytest.mark.parametrize("by_column", [False, True])
def test_a_time_of_a_zone_that_nobody_knows_here_is_that_moment(tmp_path: Path, by_column: bool) -> None:
    columns = {name: [value] for name, value in zip(HEADER, GOOD, strict=True)} | {"when": pa.array([1_700_000_000_123], pa.timestamp("ms", "GMT+5"))}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    if by_column:
        names, pieces = cells_in(tmp_path / "a.parquet", mapping_from(MINIMAL))
        (found,) = (ColumnReader(mapping_from(MINIMAL), names, KEY, NOW_MS).rows(cells) for cells in pieces)
        assert found.table["at_ms"].to_pylist() == [1_700_000_000_123]
    else:
        (row,) = read(tmp_path / "a.parquet")
        assert isinstance(row.content, Transaction)
        assert row.content.at_ms == 1_700_000_000_123


def test_a_local_time_without_a_zone_is_refused() -> None:
    with pytest.raises(InvalidRecord) as refused:
        moment_ms("2026-03-01T12:00:00", TimeRule())
    assert refused.value.field == "at_ms"


@pytest.mark.parametrize(
    ("cell", "currency", "rule", "minor"),
    [
        ("12.3", "EUR", {}, 1230),
        ("$ 1,204.10", "USD", {"strip": "$, "}, 120410),
        ("1.204,10", "EUR", {"decimal": ","}, 120410),
        ("-1.234.567,8", "EUR", {"decimal": ",", "negative": "absolute"}, 123456780),
        ("12.500", "EUR", {"decimal": ","}, 1250000),
        ("1204", "JPY", {}, 1204),
        ("1204.00", "JPY", {}, 1204),
        ("1.234", "KWD", {}, 1234),
        ("1230", "EUR", {"unit": "minor"}, 1230),
        ("-5.00", "EUR", {"negative": "absolute"}, 500),
        ("0.125", "EUR", {"rounding": "half_even"}, 12),
        (0.1, "EUR", {}, 10),
        (57.2, "EUR", {}, 5720),
        (0.1 + 0.2, "EUR", {"rounding": "half_even"}, 30),
        (Decimal("8.40"), "EUR", {}, 840),
        (12.5, "EUR", {"decimal": ","}, 1250),
        (Decimal("12.50"), "EUR", {"decimal": ",", "strip": ". "}, 1250),
        (57.2, "EUR", {"strip": "."}, 5720),
        (12, "EUR", {}, 1200),
    ],
)
def test_amounts_are_exact(cell: object, currency: str, rule: dict[str, str], minor: int) -> None:
    assert amount_minor(cell, currency, AmountRule(column="sum", **rule), "amount_minor") == minor  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["12.50", "0.125", "1.20.400", "1.2040", "1.204.5", "12.500.0,10"])
def test_a_point_that_parts_no_thousands_is_no_amount_with_a_decimal_comma(text: str) -> None:
    with pytest.raises(InvalidRecord, match="is not an amount"):
        amount_minor(text, "EUR", AmountRule(column="sum", decimal=","), "amount_minor")


def test_a_float_that_is_no_whole_number_of_cents_is_refused_not_rounded() -> None:
    with pytest.raises(InvalidRecord):
        amount_minor(0.1 + 0.2, "EUR", AmountRule(column="sum", currency="EUR"), "amount_minor")


@pytest.mark.parametrize("text", ["1e999999999999999999", "-1e999999999999999999", "1_000", "12_34"])
@pytest.mark.parametrize("unit", ["major", "minor"])
def test_a_number_beyond_all_or_with_an_underscore_is_no_amount(text: str, unit: Literal["major", "minor"]) -> None:
    with pytest.raises(InvalidRecord) as caught:
        amount_minor(text, "EUR", AmountRule(column="sum", currency="EUR", unit=unit, negative="absolute"), "amount_minor")
    assert (caught.value.field, caught.value.code) == ("amount_minor", "invalid_amount")


@given(st.integers(0, 10**12), st.sampled_from(["EUR", "JPY", "KWD", "CLF"]), st.booleans())
def test_every_amount_survives_the_way_to_text_and_back(minor: int, currency: str, comma: bool) -> None:
    text = str(to_major(minor, currency))
    rule = AmountRule(column="sum", currency=currency, decimal="," if comma else ".")
    assert amount_minor(text.replace(".", ",") if comma else text, currency, rule, "amount_minor") == minor


def test_the_clock_may_be_in_two_columns_and_ids_may_be_row_numbers(tmp_path: Path) -> None:
    text = MINIMAL.replace('column = "when"', 'columns = ["when", "comment"]').replace('transaction_id = "ref"', 'merchant_id = "ref"')
    text = 'row_id_prefix = "x7-"\n' + text.replace('ignore = ["comment"]', "")
    record = [*changed("when", "2026-03-01")[:-1], "12:00"]
    first, second = (row.content for row in read(a_csv(tmp_path / "a.csv", record, record), text))
    assert isinstance(first, Transaction)
    assert isinstance(second, Transaction)
    assert (first.transaction_id, second.transaction_id, first.merchant_id) == ("x7-1", "x7-2", "r1")


def test_csv_and_parquet_of_the_same_table_are_the_same_rows(history: Path, tmp_path: Path) -> None:
    mapping = mapping_in(history / "mapping.toml")
    table = pq.read_table(history / "transactions.parquet").slice(0, 1500)
    pq.write_table(table, tmp_path / "t.parquet")
    pa_csv.write_csv(table, tmp_path / "t.csv")
    by_parquet, by_csv = (list(rows_in(tmp_path / name, mapping, KEY, now_ms=NOW_MS)) for name in ("t.parquet", "t.csv"))
    assert len(by_parquet) == 1500
    assert not [row for row in by_parquet if isinstance(row.content, InvalidRecord)]
    assert by_parquet == by_csv


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.string_view()])
def test_a_text_that_parquet_has_as_bytes_or_as_a_view_is_that_text(tmp_path: Path, kind: pa.DataType) -> None:
    mapping = mapping_from(MINIMAL)
    table = pa.table({name: pa.array([cell, cell], pa.string()) for name, cell in zip(HEADER, GOOD, strict=True)})
    pq.write_table(table, tmp_path / "texts.parquet")
    pq.write_table(pa.table([column.cast(kind) for column in table.columns], HEADER), tmp_path / "bytes.parquet")
    texts, same = (read(tmp_path / name) for name in ("texts.parquet", "bytes.parquet"))
    assert same == texts
    columns, pieces = cells_in(tmp_path / "bytes.parquet", mapping)
    (found,) = (ColumnReader(mapping, columns, KEY, NOW_MS).rows(cells) for cells in pieces)
    assert found.table["account_id"].to_pylist() == ["a1", "a1"]
    assert not found.bad


def test_a_float_column_of_32_bits_means_the_short_decimal(tmp_path: Path) -> None:
    columns = {name: [value] for name, value in zip(HEADER, GOOD, strict=True)}
    table = pa.table(columns).set_column(HEADER.index("sum"), "sum", pa.array([12.1], pa.float32()))
    pq.write_table(table, tmp_path / "t.parquet")
    (row,) = read(tmp_path / "t.parquet")
    assert isinstance(row.content, Transaction)
    assert row.content.amount_minor == 1210


def test_a_word_of_a_column_of_numbers_means_a_number_or_none(tmp_path: Path) -> None:
    mapping = mapping_from(
        MINIMAL.replace("[fields]", '[fields]\nlatitude = "lat"\nlongitude = "lon"')
        + '[values.latitude]\nhere = "52.5"\n"n/a" = ""\n[values.longitude]\nhere = "13.4"\n"n/a" = ""\n'
    )
    path = a_csv(tmp_path / "a.csv", *([*GOOD, place, place] for place in ("here", "n/a", "48.1", "there")), header=[*HEADER, "lat", "lon"])
    here, nowhere, there, bad = (row.content for row in rows_in(path, mapping, KEY, now_ms=NOW_MS))
    assert [(txn.latitude, txn.longitude) for txn in (here, nowhere, there) if isinstance(txn, Transaction)] == [
        (52.5, 13.4),
        (None, None),
        (48.1, 48.1),
    ]
    assert isinstance(bad, InvalidRecord)
    assert str(bad) == "latitude: 'there' is not a number (column 'lat')"
    columns, pieces = cells_in(path, mapping)
    (found,) = (ColumnReader(mapping, columns, KEY, NOW_MS).rows(cells) for cells in pieces)
    assert found.table["latitude"].combine_chunks().fill_null(0.0).to_pylist()[::2] == [52.5, 48.1]
    assert [number for number, _ in found.bad] == [4]


NESTED = MINIMAL + '[constants]\nmerchant_id = "m1"\nterminal_id = "w1"\n'


def test_nested_fields_and_flags_are_mapped_by_their_dotted_name(tmp_path: Path) -> None:
    mapping = NESTED.replace("[fields]", '[fields]\nip_proxy = "proxy"\nfingerprint.os = "system"\nfingerprint.emulator = "virtual"')
    header = [*HEADER, "proxy", "system", "virtual"]
    rows = read(a_csv(tmp_path / "f.csv", [*GOOD, "yes", "iOS 19", "false"], [*GOOD, "", "", ""], [*GOOD, "maybe", "", ""], header=header), mapping)
    full, bare, bad = (row.content for row in rows)
    assert isinstance(full, Transaction)
    assert isinstance(bare, Transaction)
    assert isinstance(bad, InvalidRecord)
    assert full.fingerprint is not None
    assert (full.ip_proxy, full.fingerprint.os, full.fingerprint.emulator, full.fingerprint.browser) == (True, "iOS 19", False, None)
    assert (bare.ip_proxy, bare.fingerprint) == (None, None)
    assert bad.field == "ip_proxy"


def test_a_label_that_says_something_else_than_an_earlier_file_is_another_label(tmp_path: Path) -> None:
    mapping = MINIMAL.replace('column = "fraud"', 'column = "fraud"\nlearned_at_column = "comment"').replace('ignore = ["comment"]', "")

    def label(fraud: str, learned: str) -> Label:
        (row,) = read(a_csv(tmp_path / "a.csv", [*GOOD[:-2], fraud, learned]), mapping)
        assert row.label is not None
        return row.label

    first, again, later = label("0", "2026-04-01"), label("0", "2026-04-01"), label("1", "2026-05-01")
    assert first == again
    assert len({first.label_id, later.label_id, label("1", "2026-05-02").label_id}) == 3
    assert doubted(later, 0, [first]) is None, "what was learned last stands"


@pytest.mark.parametrize("kind", [pa.decimal128(38, 10), pa.decimal128(3, 0), pa.float64(), pa.int8()], ids=str)
def test_a_flag_that_a_database_wrote_as_a_number_is_that_flag(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {name: [value] * 2 for name, value in zip(HEADER, GOOD, strict=True)}
    pq.write_table(
        pa.table(columns | {"fraud": pa.array([1, 0], pa.int8()).cast(kind), "branch": pa.array([5411] * 2, pa.decimal128(6, 2))}),
        tmp_path / "a.parquet",
    )
    rows = read(tmp_path / "a.parquet")
    assert [row.label and row.label.fraud for row in rows] == [True, False]
    assert [row.content.mcc for row in rows if isinstance(row.content, Transaction)] == ["5411"] * 2


def test_a_label_of_a_file_names_the_merchant_that_it_teaches(tmp_path: Path) -> None:
    (row,) = read(a_csv(tmp_path / "f.csv", [*GOOD[:7], "1", "hello"]), NESTED)
    assert isinstance(row.content, Transaction)
    assert row.label is not None
    assert (row.label.transacted_at_ms, row.label.merchant_id, row.label.terminal_id) == (row.content.at_ms, "m1", "w1")


EVENT_HEADER = ["id", "what", "when", "account", "phone_id", "line", "payee", "land", "noise"]
A_LOGIN = ["e1", "IN", "2026-03-01T12:00:00", "a1", "p-7", "+49 30 1", "", "de", "x"]


def with_events(rule: str) -> str:
    """A mapping of payments whose devices are tokens, with this table of account events."""
    return MINIMAL.replace("[tokens]", '[tokens]\ndevice_token = "phone_id"') + f"[account_events]\n{rule}"


RULE = """event_id = "id"
kind = "what"
time = "when"
account_id = "account"
device_token = "phone_id"
phone_token = "line"
counterparty_account_id = "payee"
ip_country = "land"
kinds = { IN = "login" }
"""


def read_events(path: Path, rule: str = RULE) -> list[EventRow]:
    return list(events_in(path, mapping_from(with_events(rule)), KEY, now_ms=NOW_MS))


def test_an_account_event_has_the_tokens_of_the_payments(tmp_path: Path) -> None:
    ((number, event),) = read_events(a_csv(tmp_path / "e.csv", A_LOGIN, header=EVENT_HEADER))
    payment = read(a_csv(tmp_path / "p.csv", [*GOOD, "p-7"], header=[*HEADER, "phone_id"]), with_events(RULE))[0].content
    assert isinstance(event, AccountEvent)
    assert isinstance(payment, Transaction)
    assert (number, event.event_id, event.kind, event.account_id, event.at_ms) == (1, "e1", "login", payment.account_id, payment.at_ms)
    assert event.device_token == payment.device_token
    assert event.phone_token is not None
    assert event.phone_token.startswith("phn_k1_"), "a raw value that no payment has becomes a token too"
    assert (event.ip_country, event.counterparty_account_id) == ("DE", None)
    assert "+49 30 1" not in repr(event)


def test_events_without_ids_are_numbered_and_may_have_a_time_of_their_own(tmp_path: Path) -> None:
    rule = RULE.replace('event_id = "id"', 'row_id_prefix = "ev-"\nformat = "epoch_s"')
    record = [*A_LOGIN[:2], "1772366400", *A_LOGIN[3:]]
    first, second = read_events(a_csv(tmp_path / "e.csv", record, [*record[:1], "login_failed", *record[2:]], header=EVENT_HEADER), rule)
    assert isinstance(first.content, AccountEvent)
    assert isinstance(second.content, AccountEvent)
    assert (first.content.event_id, second.content.event_id) == ("ev-1", "ev-2")
    assert (first.content.at_ms, second.content.kind) == (1_772_366_400_000, "login_failed")


@pytest.mark.parametrize(("own", "at_ms"), [('format = "epoch_s"', 3_600_000), ('format = "offset_h"', 86_400_000 + 3_600 * 3_600_000)])
def test_account_events_that_count_since_1970_do_so_whatever_origin_the_payments_have(tmp_path: Path, own: str, at_ms: int) -> None:
    text = with_events(f"{RULE}{own}\n").replace("[time]\n", '[time]\nformat = "offset_s"\norigin = "1970-01-02T00:00:00Z"\n', 1)
    record = [*A_LOGIN[:2], "3600", *A_LOGIN[3:]]
    ((_, event),) = events_in(a_csv(tmp_path / "e.csv", record, header=EVENT_HEADER), mapping_from(text), KEY, now_ms=NOW_MS)
    assert isinstance(event, AccountEvent)
    assert event.at_ms == at_ms


@pytest.mark.parametrize(
    ("cell", "value", "field", "code"),
    [
        ("id", "", "event_id", "missing_field"),
        ("what", "JUMPED", "kind", "invalid_field"),
        ("what", "", "kind", "missing_field"),
        ("when", "", "at_ms", "missing_field"),
        ("when", "noon", "at_ms", "invalid_field"),
        ("when", "2036-01-01T00:00:00", "at_ms", "time_in_future"),
        ("account", "", "account_id", "missing_field"),
        ("land", "Germany", "ip_country", "invalid_field"),
    ],
)
def test_a_bad_account_event_is_named_with_its_row_and_field(tmp_path: Path, cell: str, value: str, field: str, code: str) -> None:
    bad = [value if name == cell else text for name, text in zip(EVENT_HEADER, A_LOGIN, strict=True)]
    rows = read_events(a_csv(tmp_path / "e.csv", A_LOGIN, bad, A_LOGIN[:4], A_LOGIN, header=EVENT_HEADER))
    assert [isinstance(row.content, InvalidRecord) for row in rows] == [False, True, True, False]
    fault = rows[1].content
    assert isinstance(fault, InvalidRecord)
    assert (rows[1].number, fault.field, fault.code) == (2, field, code)
    assert fault.reason.endswith(f"(column {cell!r})")


@pytest.mark.parametrize(("balance", "minor"), [("-5.10", -510), ("-0.00", 0), ("+5.10", 510), ("10", 1000)])
def test_a_balance_may_be_less_than_nothing(tmp_path: Path, balance: str, minor: int) -> None:
    mapping = mapping_from(f'{MINIMAL}[accounts]\naccount_id = "nr"\nbalance = "saldo"\ncurrency = "EUR"\n')
    (account,) = accounts_in(a_csv(tmp_path / "a.csv", ["a1", balance], header=["nr", "saldo"]), mapping, KEY, NOW_MS, print)
    assert account.balance_minor == minor


@pytest.mark.parametrize(
    ("cell", "value", "field"),
    [
        ("saldo", "much", "balance_minor"),
        ("saldo", "--5.10", "balance_minor"),
        ("saldo", "-+5.10", "balance_minor"),
        ("waehrung", "EURO", "currency"),
        ("land", "de", "home_country"),
        ("nr", "", "account_id"),
    ],
)
def test_a_bad_account_is_named_with_its_row_field_and_column_and_the_others_are_read(tmp_path: Path, cell: str, value: str, field: str) -> None:
    mapping = mapping_from(f'{MINIMAL}[accounts]\naccount_id = "nr"\nbalance = "saldo"\ncurrency_column = "waehrung"\nhome_country = "land"\n')
    header, good = ["nr", "saldo", "waehrung", "land"], ["a1", "10.00", "EUR", "DE"]
    bad = [value if name == cell else text for name, text in zip(header, good, strict=True)]
    said: list[str] = []
    read = accounts_in(a_csv(tmp_path / "a.csv", good, bad, ["a3", *good[1:]], header=header), mapping, KEY, NOW_MS, said.append)
    assert [account.account_id for account in read] == ["a1", "a3"]
    assert re.fullmatch(f"{tmp_path}/a.csv: row 2: {field}: .*\\(column '{cell}'\\)", said[0])
    assert said[1:] == [f"{tmp_path}/a.csv: 1 rows are bad and were left out"]


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"", r"column 'nr', which \[accounts\] names, is not in the file"),
        (b"nr;saldo\n", r"column 'saldo', which \[accounts\] names, is not in the file"),
        (b"nr,saldo,saldo\na1,10.00,90.00\n", r"column 'saldo', which \[accounts\] names, comes twice"),
        (b"PAR1", "accounts: "),
    ],
)
def test_a_file_of_accounts_that_does_not_fit_is_named(tmp_path: Path, contents: bytes, says: str) -> None:
    (tmp_path / "accounts").write_bytes(contents)
    mapping = mapping_from(f'{MINIMAL}[accounts]\naccount_id = "nr"\nbalance = "saldo"\ncurrency = "EUR"\n')
    with pytest.raises(SettingsError, match=says):
        list(accounts_in(tmp_path / "accounts", mapping, KEY, NOW_MS, print))


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"nr,saldo\na1,10.00\na2\n", "row 2: row: has 1 cells, the header has 2"),
        (b"nr,saldo\na1,10.00,EUR\n", "row 1: row: has 3 cells, the header has 2"),
        (b"nr,saldo\na\xff,10.00\n", "row 1: row: has bytes that are not text"),
    ],
)
def test_a_broken_row_of_a_file_of_accounts_is_said(tmp_path: Path, contents: bytes, says: str) -> None:
    (tmp_path / "accounts").write_bytes(contents)
    mapping = mapping_from(f'{MINIMAL}[accounts]\naccount_id = "nr"\nbalance = "saldo"\ncurrency = "EUR"\n')
    said: list[str] = []
    list(accounts_in(tmp_path / "accounts", mapping, KEY, NOW_MS, said.append))
    assert said[0].startswith(f"{tmp_path}/accounts: {says}")


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (RULE.replace('kind = "what"', ""), "[account_events]: Object missing required field `kind`"),
        (RULE.replace("event_id", "row_id"), "[account_events]: Object contains unknown field `row_id`"),
        (RULE.replace('event_id = "id"', ""), "[account_events]: needs either event_id or row_id_prefix"),
        (RULE + 'row_id_prefix = "e"\n', "[account_events]: needs either event_id or row_id_prefix"),
        (RULE.replace('"login"', '"logon"'), "[account_events]: kinds.IN: 'logon' is no kind of account event"),
        (RULE + 'format = "unix"\n', "[account_events]: unknown format 'unix'"),
        (RULE + 'zone = "Nowhere"\n', "[account_events]: unknown zone 'Nowhere'"),
    ],
)
def test_a_fault_of_the_table_of_account_events_is_named(rule: str, named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        mapping_from(with_events(rule))
    assert named in str(refused.value)


def test_a_file_of_account_events_that_does_not_fit_is_named_at_once(tmp_path: Path) -> None:
    path = a_csv(tmp_path / "e.csv", header=["id", "what", "when", "account"])
    with pytest.raises(SettingsError, match=r"column 'phone_id', which \[account_events\] names, is not in the file"):
        events_in(path, mapping_from(with_events(RULE)), KEY, now_ms=NOW_MS)
    with pytest.raises(SettingsError, match=r"the mapping has no \[account_events\]"):
        events_in(path, mapping_from(MINIMAL), KEY, now_ms=NOW_MS)
    with pytest.raises(SettingsError, match="No such file"):
        events_in(tmp_path / "none.csv", mapping_from(with_events(RULE)), KEY, now_ms=NOW_MS)


def test_csv_and_parquet_of_the_same_account_events_are_the_same(history: Path, tmp_path: Path) -> None:
    mapping = mapping_in(history / "mapping.toml")
    table = pq.read_table(history / "account_events.parquet")
    pa_csv.write_csv(table, tmp_path / "events.csv")
    from_csv = list(events_in(tmp_path / "events.csv", mapping, KEY, now_ms=2**41))
    assert from_csv == list(events_in(history / "account_events.parquet", mapping, KEY, now_ms=2**41))
    assert len(from_csv) == table.num_rows
