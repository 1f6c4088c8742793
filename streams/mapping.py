"""The mapping file: which column of somebody's file is which field of a Transaction, and the rows read by it.

A mapping is TOML (all tables but `time`, `amount` and `fields` may be left out):

    row_id_prefix = "file7-"        # instead of fields.transaction_id: the id is this and the row's number, counted on from file to file
    ignore = ["comment"]            # columns that mean nothing here; "*": all that are not mapped
    [csv]        delimiter = ","  encoding = "utf-8"  quote = '"'
    [time]       column = "when"  (or columns = ["date", "clock"], joined by a blank)
                 format = "iso8601" | "epoch_s" | "epoch_ms" | "offset_s" | "offset_h" | "offset_30d" (with origin) | a strptime format
                 zone = "Europe/Berlin"  (of local times; of a time that happens twice the first is meant, one that never was is refused)
    [amount]     column = "sum"  unit = "major" | "minor"  currency = "EUR" or currency_column = "ccy"
                 decimal = ","  strip = "$ "  negative = "refuse" | "absolute"  rounding = "refuse" | "half_even"
    [billing]    the same, of the amount in the account's currency
    [fields]     transaction_id = "ref"  session.keystroke_dwell_ms = "dwell"  fingerprint.os = "os" ...
    [constants]  kind = "ecommerce" ...
    [values.kind]  POS = "card_present"  "*" = "ecommerce"
    [tokens]     card_token = "card_number" ...   # raw values; they become keyed tokens and go no further
    [attributes] basket_size = "items"  "*" = "V*" ...   # columns for training (`attribute.basket_size`); texts by a number each.
                 # "*": every column that fits, by its own name, if nothing else of the mapping names it and it is not in `ignore`
    [declined]   column = "status"  values = ["51", "05"]
    [accounts]   account_id = "no"  balance = "balance"  currency_column = "ccy"  (of a file of accounts; amounts in major units)
                 credit_limit = "limit"  opened_at = "since"  home_country = "country"
    [account_events]  kind = "what"  time = "at"  account_id = "no"  event_id = "id" (or row_id_prefix = "ev-")  device_token = "device" ...
                 kinds = { LOGIN_OK = "login", ... }  (of a file of account events; its time is written as [time] says, or format, zone, origin)
    [memory]     terminal = "log"   # offline: exact counts, of the latest 512 rows at least, where serving keeps a tally
    [label]      column = "fraud"  values = ["1"]  kind_column  learned_at_column  delay = "30d"  source = "chargeback"

Rows are numbered from 1, the header is not counted. An empty cell is a value not given. Amounts never pass through a float:
text becomes Decimal, and a float in a Parquet file is taken as the shortest decimal that means it (`repr`). `decimal` and `strip` are of texts.

In a file of account events a raw value becomes the same token as in the file of payments, so that the device of an event is the
device of a payment: every `..._token` that [fields] does not take as it is, and every id that [tokens] names.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import itertools
import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, DecimalException
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TextIO, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.fact import ENTITIES
from schemas.account import AccountEvent, AccountEventKind, AccountState
from schemas.avro import checked
from schemas.errors import InvalidRecord, SettingsError
from schemas.identity import derived_id, keyed_token
from schemas.label import Label, LabelSource
from schemas.money import EXPONENTS, to_minor
from schemas.topics import ACCOUNT_EVENTS
from schemas.transaction import BehaviouralSession, Fingerprint, Transaction, sound

BATCH_ROWS = 8192
BAD_ROWS_SAID = 20
T = TypeVar("T")
REQUIRED = ("transaction_id", "kind", "account_id")
BY_TABLE = frozenset({"at_ms", "amount_minor", "currency", "billing_amount_minor", "billing_currency", "session", "fingerprint", "attributes"})
NESTED = {"session": BehaviouralSession, "fingerprint": Fingerprint}
"""Records inside a transaction whose fields a mapping names with a dot."""
_FLAG_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
TOKEN_KINDS = {
    "card_token": "crd",
    "device_token": "dev",
    "email_token": "eml",
    "phone_token": "phn",
    "address_token": "adr",
    "account_id": "acc",
    "customer_id": "cus",
    "counterparty_account_id": "acc",
    "transaction_id": "txn",
}
"""Fields that may be made from a raw value, and the kind of their tokens; the HTTP door makes the same ones."""
_ENTITIES = frozenset(entity.name for entity in ENTITIES if not entity.log_of)
_PADDED = ("mcc", "card_last4")
_UPPER = ("country", "card_country", "ip_country")
_PAN = re.compile(r"^[0-9]{8,19}$")
"""Card numbers of files, where invented ones are shorter than those that the doors take."""
_EVENTS = ACCOUNT_EVENTS.name
"""The table of a file of account events, named as their topic is."""
_GROUPED = re.compile(r"^[+-]?[1-9][0-9]{0,2}(\.[0-9]{3})+(,[0-9]*)?$")
_DELAY = re.compile(r"^([0-9]{1,9})([smhd])$")
_EPOCH, _MS, _HALF_MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1), timedelta(microseconds=500)
LEARNED_MS = (0, 32_503_680_000_000)
"""When a label may have been learned: what `schemas.record.EpochMs` allows."""
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_NUMBERED = re.compile(r"^attributes\[([0-9]+)\]")
_OFFSET = re.compile(r"^offset_([1-9][0-9]{0,5})?([smhd])$")
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view, pa.types.is_string_view)
EVERY = "*"
"""The attribute whose column is a pattern."""


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the mapping file."""


class CsvRule(_Table, frozen=True, kw_only=True):
    """How a CSV file is written."""

    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","
    quote: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = '"'
    encoding: str = "utf-8"


class TimeRule(_Table, frozen=True, kw_only=True):
    """How the event time is written."""

    column: str | None = None
    columns: tuple[str, ...] = ()
    format: str = "iso8601"
    zone: str | None = None
    origin: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return self.columns or ((self.column,) if self.column else ())


class AmountRule(_Table, frozen=True, kw_only=True):
    """How an amount is written."""

    column: str
    unit: Literal["major", "minor"] = "major"
    currency: str | None = None
    currency_column: str | None = None
    decimal: Literal[".", ","] = "."
    strip: str = ""
    negative: Literal["refuse", "absolute"] = "refuse"
    rounding: Literal["refuse", "half_even"] = "refuse"


class DeclinedRule(_Table, frozen=True, kw_only=True):
    """Which rows were declined in history: those whose cell is one of `values`."""

    column: str
    values: tuple[str, ...] = ("1", "true", "yes")


class LabelRule(_Table, frozen=True, kw_only=True):
    """Which rows turned out to be fraud, and when that was known: in a column, else `delay` after the event."""

    column: str
    values: tuple[str, ...] = ("1", "true", "yes")
    kind_column: str | None = None
    learned_at_column: str | None = None
    delay: Annotated[str, msgspec.Meta(pattern=_DELAY.pattern)] = "30d"
    source: LabelSource = LabelSource.CHARGEBACK

    @property
    def delay_ms(self) -> int:
        """The delay, milliseconds."""
        count, unit = _DELAY.match(self.delay).groups()  # type: ignore[union-attr]  # the pattern was checked when it was read
        return int(count) * _UNIT_MS[unit]


class AccountsRule(_Table, frozen=True, kw_only=True):
    """How a file of accounts is written: field and column. Amounts are in major units; other columns are of no interest."""

    account_id: str
    balance: str
    currency: str | None = None
    currency_column: str | None = None
    credit_limit: str | None = None
    opened_at: str | None = None
    home_country: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that it reads, once."""
        named = (getattr(self, name) for name in self.__struct_fields__ if name != "currency")
        return tuple(dict.fromkeys(name for name in named if name is not None))


_ACCOUNT_COLUMNS = {"balance_minor": "balance", "credit_limit_minor": "credit_limit", "opened_at_ms": "opened_at", "currency": "currency_column"}
"""Where the rule's name for a column is not the field's."""


class AccountEventsRule(_Table, frozen=True, kw_only=True):
    """How a file of account events is written: field and column, and which words mean which kind. Other columns are of no interest."""

    kind: str
    time: str
    account_id: str
    event_id: str | None = None
    row_id_prefix: str | None = None
    kinds: dict[str, str] = {}
    format: str | None = None
    zone: str | None = None
    origin: str | None = None
    customer_id: str | None = None
    device_token: str | None = None
    email_token: str | None = None
    phone_token: str | None = None
    address_token: str | None = None
    counterparty_account_id: str | None = None
    ip: str | None = None
    ip_country: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """The columns of the fields that are text, by field."""
        named = {name: getattr(self, name) for name in _EVENT_FIELDS}
        return {name: column for name, column in named.items() if column is not None}

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that it reads, once."""
        return tuple(dict.fromkeys((self.kind, self.time, *self.fields.values())))

    def time_rule(self, payments: TimeRule) -> TimeRule:
        """How its time is written: as that of the payments is, but for what it says itself. What is to count since 1970 takes no origin over."""
        since_1970 = self.format in ("epoch_s", "epoch_ms")
        origin = self.origin or (None if since_1970 else payments.origin)
        return TimeRule(column=self.time, format=self.format or payments.format, zone=self.zone or payments.zone, origin=origin)


_EVENT_TOKENS = ("device_token", "email_token", "phone_token", "address_token")
_EVENT_FIELDS = ("event_id", "account_id", "customer_id", *_EVENT_TOKENS, "counterparty_account_id", "ip", "ip_country")


class Mapping(_Table, frozen=True, kw_only=True):
    """The whole mapping file. `fields` has a dotted name for what is inside the session or the fingerprint."""

    time: TimeRule
    amount: AmountRule
    fields: dict[str, str]
    billing: AmountRule | None = None
    constants: dict[str, str | int | float] = {}
    values: dict[str, dict[str, str]] = {}
    tokens: dict[str, str] = {}
    attributes: dict[str, str] = {}
    declined: DeclinedRule | None = None
    label: LabelRule | None = None
    accounts: AccountsRule | None = None
    account_events: AccountEventsRule | None = None
    memory: dict[str, Literal["log", "tally"]] = {}
    csv: CsvRule = CsvRule()
    ignore: tuple[str, ...] = ()
    row_id_prefix: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that it reads, once."""
        amounts = [a for rule in (self.amount, self.billing) if rule for a in (rule.column, rule.currency_column)]
        label = [self.label.column, self.label.kind_column, self.label.learned_at_column] if self.label else []
        declined = [self.declined.column] if self.declined else []
        named = [*self.time.names, *amounts, *self.fields.values(), *self.tokens.values(), *self.attributes.values(), *declined, *label]
        return tuple(dict.fromkeys(name for name in named if name))

    def column_of(self, field: str) -> str | None:
        """The file's column (of a time in parts: columns) that a field of a Transaction or a Label comes from; None if from none."""
        of_rules = {"at_ms": " + ".join(self.time.names)}
        if self.label is not None:
            of_rules["learned_at_ms"] = self.label.learned_at_column or self.label.column
        for prefix, rule in (("", self.amount), ("billing_", self.billing)):
            if rule is not None:
                of_rules |= {f"{prefix}amount_minor": rule.column, f"{prefix}currency": rule.currency_column or ""}
        return (of_rules | self.tokens | self.fields).get(field) or None

    def for_columns(self, names: Sequence[str]) -> Mapping:
        """The same for a file of these columns: in place of the pattern among the attributes stand the columns that it means.

        One that no column fits stays, as the name of a column that the file lacks; `*` means all that are left, of which there may be none.
        """
        pattern = self.attributes.get(EVERY)
        if pattern is None:
            return self
        named = {name: column for name, column in self.attributes.items() if name != EVERY}
        taken = {*msgspec.structs.replace(self, attributes=named).columns, *self.ignore, ""}
        meant = [name for name in names if name not in taken and name not in named and fnmatchcase(name, pattern)]
        misfit = {} if meant or pattern == EVERY else {EVERY: pattern}
        return msgspec.structs.replace(self, attributes=named | misfit | dict(zip(meant, meant, strict=True)))


class Row(NamedTuple):
    """One row of a file: its number (from 1), what it is (a Transaction or why it is none), its label, whether it was declined."""

    number: int
    content: Transaction | InvalidRecord
    label: Label | None
    declined: bool


class TokenKey(NamedTuple):
    """The secret with which raw values become tokens, and its name."""

    key: bytes
    key_id: str


def mapping_from(text: str) -> Mapping:
    """The mapping in a TOML text; SettingsError with one line for each fault."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"the mapping is not TOML: {error}") from None
    for nested in NESTED:
        if isinstance(tables.get("fields"), dict) and isinstance(tables["fields"].get(nested), dict):
            tables["fields"] |= {f"{nested}.{name}": column for name, column in tables["fields"].pop(nested).items()}
    faults = _faults_of_tables(tables)
    if not faults:
        mapping = msgspec.convert(tables, Mapping)
        faults = _faults_of_meaning(mapping)
    if faults:
        raise SettingsError("the mapping has faults:\n" + "\n".join(f"- {fault}" for fault in faults))
    return mapping


def mapping_in(path: Path) -> Mapping:
    """The mapping in a file; SettingsError names the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    try:
        return mapping_from(text)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _faults_of_tables(tables: dict[str, Any]) -> list[str]:
    """What is wrong with the shape of each table."""
    hints = typing.get_type_hints(Mapping, include_extras=True)
    faults = [f"{name}: no such table or key" for name in tables if name not in hints]
    faults += [f"[{name}]: is missing" for name in ("time", "amount", "fields") if name not in tables]
    return faults + [fault for name in tables if name in hints for fault in _faults_of_shape(name, tables[name], hints[name])]


def _faults_of_shape(name: str, table: Any, kind: Any) -> list[str]:
    """What of a table is of another shape than it has, by key where it may have any: msgspec names no key of those."""
    try:
        msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        if typing.get_origin(kind) is dict and isinstance(table, dict):
            of_each = typing.get_args(kind)[1]
            return [fault for key, value in table.items() for fault in _faults_of_shape(f"{name}.{key}", value, of_each)]
        return [f"[{name}]: {error}"]
    return []


def _faults_of_meaning(mapping: Mapping) -> list[str]:
    """What is wrong with what the tables say together."""
    sources: dict[str, list[str]] = {}
    for table, fields in (("fields", mapping.fields), ("constants", mapping.constants), ("tokens", mapping.tokens)):
        for field in fields:
            sources.setdefault(field, []).append(table)
    if mapping.row_id_prefix is not None:
        sources.setdefault("transaction_id", []).append("row_id_prefix")
    faults = [f"{field}: mapped twice, in {' and '.join(tables)}" for field, tables in sources.items() if len(tables) > 1]
    faults += [f"{field}: required, but mapped nowhere" for field in REQUIRED if field not in sources]
    faults += [f"{field}: a Transaction has no such field" for field in sources if field not in _FIELDS]
    faults += [f"{field}: has its own table, it cannot be in [{sources[field][0]}]" for field in sources if field in BY_TABLE]
    faults += [f"{field}: is inside a record, it cannot be in [constants]" for field in mapping.constants if "." in field and field in _FIELDS]
    faults += _faults_of_constants(mapping.constants)
    faults += [f"tokens.{field}: cannot be a token" for field in mapping.tokens if field in _FIELDS and field not in TOKEN_KINDS]
    faults += [f"values.{field}: is not mapped in [fields]" for field in mapping.values if field not in mapping.fields]
    faults += [f"[memory]: there is no entity {name!r}" for name in mapping.memory if name not in _ENTITIES]
    faults += _faults_of_time(mapping.time, "time") + _faults_of_amounts(mapping) + _faults_of_csv(mapping.csv)
    return faults + (_faults_of_events(mapping.account_events, mapping.time) if mapping.account_events else [])


def _faults_of_constants(constants: dict[str, str | int | float]) -> list[str]:
    """Which constants are no values of their fields."""
    faults, kinds = [], typing.get_type_hints(Transaction, include_extras=True)
    for field, value in constants.items():
        try:
            msgspec.convert(value, kinds.get(field, Any))
        except msgspec.ValidationError as error:
            faults.append(f"constants.{field}: {error}")
    return faults


def _faults_of_events(rule: AccountEventsRule, payments: TimeRule) -> list[str]:
    """What is wrong with how a file of account events is said to be written."""
    faults = [] if (rule.event_id is None) != (rule.row_id_prefix is None) else [f"[{_EVENTS}]: needs either event_id or row_id_prefix"]
    kinds = set(AccountEventKind)
    faults += [f"[{_EVENTS}]: kinds.{word}: {kind!r} is no kind of account event" for word, kind in rule.kinds.items() if kind not in kinds]
    own = rule.format is not None or rule.zone is not None or rule.origin is not None
    return faults + (_faults_of_time(rule.time_rule(payments), _EVENTS) if own else [])


def _faults_of_csv(rule: CsvRule) -> list[str]:
    """What is wrong with how a CSV file is said to be written."""
    faults = []
    try:
        "".encode(rule.encoding)
    except (LookupError, ValueError):
        faults.append(f"[csv]: unknown encoding {rule.encoding!r}")
    if rule.delimiter == rule.quote or {rule.delimiter, rule.quote} & {"\r", "\n", "\0"}:
        faults.append("[csv]: delimiter and quote must be two different characters, and no line breaks")
    return faults


def _faults_of_amounts(mapping: Mapping) -> list[str]:
    """What is wrong with the amounts' currencies."""
    faults = []
    for name, rule in (("amount", mapping.amount), ("billing", mapping.billing), ("accounts", mapping.accounts)):
        if rule and (rule.currency is None) == (rule.currency_column is None):
            faults.append(f"[{name}]: needs either currency or currency_column")
        if rule and rule.currency is not None and rule.currency not in EXPONENTS:
            faults.append(f"[{name}]: unknown ISO 4217 currency {rule.currency!r}")
    return faults


def _faults_of_time(rule: TimeRule, table: str) -> list[str]:
    """What is wrong with the time's columns, format and zone."""
    faults = []
    if (rule.column is None) == (not rule.columns):
        faults.append(f"[{table}]: needs either column or columns")
    if rule.zone is not None:
        try:
            ZoneInfo(rule.zone)
        except (KeyError, ValueError, OSError):
            faults.append(f"[{table}]: unknown zone {rule.zone!r}")
    if rule.format.startswith("offset_") and rule.origin is None:
        faults.append(f"[{table}]: format {rule.format} needs an origin")
    if rule.origin is not None and not _is_iso(rule.origin):
        faults.append(f"[{table}]: origin {rule.origin!r} is not a time of format iso8601")
    if not faults and rule.origin is not None:
        try:
            counted_from_ms(rule)
        except InvalidRecord as fault:
            faults.append(f"[{table}]: origin {fault.reason}")
    if "%" not in rule.format and rule.format not in ("iso8601", "epoch_s", "epoch_ms") and not _OFFSET.match(rule.format):
        faults.append(f"[{table}]: unknown format {rule.format!r}")
    if "%" in rule.format and "%z" not in rule.format and rule.zone is None:
        faults.append(f"[{table}]: format {rule.format!r} has no zone in it, so `zone` is needed")
    return faults


def _is_iso(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def column_faults(mapping: Mapping, columns: Sequence[str]) -> list[str]:
    """What of the mapping a file with these columns lacks, and which of its columns the mapping does not know."""
    faults = [f"column {name!r} is mapped, but the file has none of this name" for name in mapping.columns if name not in columns]
    faults += [f"column {name!r} comes twice" for name in dict.fromkeys(columns) if list(columns).count(name) > 1]
    if "*" not in mapping.ignore:
        unknown = [name for name in columns if name not in mapping.columns and name not in mapping.ignore]
        faults += [f"column {name!r} is neither mapped nor in `ignore`" for name in unknown]
    return faults


# From cells to fields.


def as_text(value: Any) -> str | None:
    """A cell as text; None if it is empty. Whole floats and decimals lose their zeros: an id column with gaps often became float."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return None if value != value else repr(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal) and value == (whole := value.to_integral_value()):
        return f"{whole:f}"
    return str(value).strip() or None


def number_of(text: str) -> float:
    """The number that a text is; ValueError if it is none. Python would take 1_000, and digits of other scripts."""
    return float(in_ascii(text))


def in_ascii(text: str) -> str:
    """The text, if it can be a number as files have them; else ValueError."""
    if not text.isascii() or "_" in text:
        raise ValueError(f"{text!r} is not a number")
    return text


def _number(value: Any, field: str) -> float | None:
    text = as_text(value)
    if text is None:
        return None
    try:
        return number_of(text)
    except ValueError:
        raise InvalidRecord(field, f"{text!r} is not a number") from None


@functools.cache
def _zone(name: str | None) -> Any:
    return None if name is None else ZoneInfo(name)


def _epoch_ms(moment: datetime, zone: str | None, field: str) -> int:
    if moment.tzinfo is None:
        if zone is None:
            raise InvalidRecord(field, f"{moment.isoformat()} has no zone, and the mapping names none")
        if _leapt_over(moment, moment.replace(tzinfo=_zone(zone))):
            raise InvalidRecord(field, f"{moment.isoformat()} never was in {zone}: its clocks leap over it")
        moment = moment.replace(tzinfo=_zone(zone))
    return (moment - _EPOCH + _HALF_MS) // _MS


def _leapt_over(local: datetime, there: datetime) -> bool:
    """Whether the zone's clocks leap over a local time. Midnight is no such: there that day begins, an hour later, and a date means it."""
    return local.time() != datetime.min.time() and there.replace(fold=1).utcoffset() > there.utcoffset()  # type: ignore[operator]  # it has a zone


def moment_ms(value: Any, rule: TimeRule, field: str = "at_ms") -> int:
    """A cell as milliseconds since 1970 UTC, rounded to the millisecond; InvalidRecord if it is no such time."""
    text = as_text(value)
    if text is None:
        raise InvalidRecord(field, "is empty", code="missing_field")
    try:
        if isinstance(value, datetime):
            return _epoch_ms(value, rule.zone, field)
        if isinstance(value, date):
            return _epoch_ms(datetime(value.year, value.month, value.day), rule.zone, field)  # noqa: DTZ001 - the zone comes from the rule
        if rule.format == "iso8601":
            return _epoch_ms(datetime.fromisoformat(text), rule.zone, field)
        if "%" in rule.format:
            return _epoch_ms(datetime.strptime(text, rule.format), rule.zone, field)  # noqa: DTZ007 - the zone comes from the rule
        return _counted_ms(text, rule)
    except (ValueError, ArithmeticError):
        raise InvalidRecord(field, f"{text!r} is not a time of format {rule.format}") from None


def counted_ms(rule: TimeRule) -> int:
    """The milliseconds of the unit of times that count since 1970 or since the origin; 0: they are of another format."""
    offset = _OFFSET.match(rule.format)
    return int(offset[1] or 1) * _UNIT_MS[offset[2]] if offset else {"epoch_s": 1000, "epoch_ms": 1}.get(rule.format, 0)


def counted_from_ms(rule: TimeRule) -> int:
    """Where such times begin to count."""
    return 0 if rule.origin is None else _epoch_ms(datetime.fromisoformat(rule.origin), rule.zone or "UTC", "at_ms")


def _counted_ms(text: str, rule: TimeRule) -> int:
    start_ms, unit_ms = counted_from_ms(rule), counted_ms(rule)
    return start_ms + int((Decimal(in_ascii(text)) * unit_ms).to_integral_value(ROUND_HALF_EVEN))


def amount_minor(value: Any, currency: str, rule: AmountRule, field: str) -> int:
    """A cell as minor units of the currency; InvalidRecord if it is none, or if digits would be lost."""
    if isinstance(value, float) and value == value:
        text: str | None = repr(value)
    else:
        text = as_text(value)
    if text is None:
        raise InvalidRecord(field, "is empty", code="missing_field")
    written = isinstance(value, str)  # a number is none of the file's texts
    plain = text.translate(_without(rule.strip)) if written else text
    try:
        amount = Decimal(in_ascii(_with_a_point(plain) if written and rule.decimal == "," else plain))
        amount = abs(amount) if rule.negative == "absolute" else amount
        if rule.unit == "minor" and currency in EXPONENTS:
            amount = amount.scaleb(-EXPONENTS[currency])
        if rule.rounding == "half_even" and amount.is_finite() and currency in EXPONENTS:
            amount = amount.quantize(Decimal(1).scaleb(-EXPONENTS[currency]), ROUND_HALF_EVEN)
    except (DecimalException, ValueError):
        raise InvalidRecord(field, f"{text!r} is not an amount", code="invalid_amount") from None
    return to_minor(amount, currency, field)


def _with_a_point(text: str) -> str:
    """An amount with a decimal comma as one with a point. ValueError where a point parts no thousands: it may be a decimal point."""
    if "." in text and not _GROUPED.match(text):
        raise ValueError(f"{text!r} has a point that parts no thousands")
    return text.replace(".", "").replace(",", ".")


@functools.cache
def _without(characters: str) -> dict[int, None]:
    return dict.fromkeys(map(ord, characters))


def _field_types() -> dict[str, Any]:
    """Every field that a mapping may name, with its type; those of nested records with a dot."""
    inside = {f"{name}.{field}": kind for name, record in NESTED.items() for field, kind in typing.get_type_hints(record).items()}
    return typing.get_type_hints(Transaction) | inside


_FIELDS = _field_types()
FLOATS = frozenset(name for name, kind in _FIELDS.items() if float in (kind, *typing.get_args(kind)))
FLAGS = frozenset(name for name, kind in _FIELDS.items() if bool in (kind, *typing.get_args(kind)))
Cells = Sequence[Any]


def field_of(field: str, cell: Any, words: dict[str, str] | None) -> Any:
    """A cell as the field's type; None if it is not given. `words` says what words of the file mean."""
    text = as_text(cell)
    if words is not None:
        text = words.get(text or "", words.get("*", text) if text is not None else None)
    if text is None:
        return None
    if field in FLOATS:
        return _number(text, field)
    if field in FLAGS:
        if text.lower() not in _FLAG_WORDS:
            raise InvalidRecord(field, f"{text!r} is neither true nor false")
        return _FLAG_WORDS[text.lower()]
    if field in _PADDED and text.isdigit():
        return text.zfill(4)
    return text.upper() if field in _UPPER else text


def card_number(text: str) -> str:
    """The digits of a card number; InvalidRecord, without them, if it is none."""
    digits = text.replace(" ", "").replace("-", "")
    if not _PAN.match(digits):
        raise InvalidRecord("card_token", "is not a card number of 8 to 19 digits")
    return digits


def known_currency(cell: Any, field: str) -> str:
    """A cell as a currency of ISO 4217; InvalidRecord if it is none."""
    currency = as_text(cell)
    if currency is None:
        raise InvalidRecord(field, "is empty", code="missing_field")
    if currency not in EXPONENTS:
        raise InvalidRecord(field, f"unknown ISO 4217 currency {currency!r}", code="unknown_currency")
    return currency


def says_so(rule: DeclinedRule | LabelRule, cell: Any) -> bool:
    """Whether a cell is one of the rule's words."""
    return (as_text(cell) or "").lower() in {value.lower() for value in rule.values}


def in_column(fault: InvalidRecord, column: str | None) -> InvalidRecord:
    """The fault with the file's column beside the field: whoever made the file knows no other name."""
    return InvalidRecord(fault.field, f"{fault.reason} (column {column!r})", fault.code) if column else fault


class RowReader:
    """A mapping made ready for a file's columns and one key: turns a row of cells into a Row."""

    def __init__(self, mapping: Mapping, columns: Sequence[str], key: TokenKey, now_ms: int, future_ms_max: int, before: int = 0) -> None:
        self._mapping, self._key, self.before = mapping, key, before
        self._at = {name: columns.index(name) for name in mapping.columns}
        self._now_ms, self._future_ms_max = now_ms, future_ms_max
        self._plain = [(field, self._at[column], mapping.values.get(field)) for field, column in mapping.fields.items()]
        self.token = functools.lru_cache(maxsize=200_000)(self._tokenised)

    def row(self, number: int, cells: Cells) -> Row:
        """The row with this number; whatever is wrong with it is its content."""
        try:
            txn = self._transaction(number, cells)
            label = self._label(txn, cells)
        except InvalidRecord as fault:
            return Row(number, in_column(fault, self._column_of(fault.field, cells)), None, False)
        return Row(number, txn, label, self._says_so(self._mapping.declined, cells))

    def _column_of(self, field: str, cells: Cells) -> str | None:
        """The column of a field that is wrong; an attribute's field has its number, among those that the row has."""
        if (numbered := _NUMBERED.match(field)) is None:
            return self._mapping.column_of(field)
        return [column for column in self._mapping.attributes.values() if as_text(cells[self._at[column]]) is not None][int(numbered[1])]

    def _transaction(self, number: int, cells: Cells) -> Transaction:
        mapping = self._mapping
        values: dict[str, Any] = dict(mapping.constants)
        for field, at, words in self._plain:
            value = field_of(field, cells[at], words)
            if value is None:
                continue
            record, dot, part = field.partition(".")
            if dot:
                values.setdefault(record, {})[part] = value
            else:
                values[field] = value
        self._add_tokens(values, cells)
        if mapping.row_id_prefix is not None:
            values["transaction_id"] = f"{mapping.row_id_prefix}{self.before + number}"
        values["at_ms"] = self._moment(cells)
        values["currency"], values["amount_minor"] = self._amount(mapping.amount, "amount_minor", "currency", cells)
        self._add_billing(values, cells)
        if mapping.attributes:
            named = [(name, as_text(cells[self._at[column]])) for name, column in mapping.attributes.items()]
            values["attributes"] = [{"name": name, "value": text} for name, text in named if text is not None]
        return sound(checked(lambda: msgspec.convert(values, Transaction)), self._now_ms, self._future_ms_max)

    def _add_tokens(self, values: dict[str, Any], cells: Cells) -> None:
        """Tokens in place of raw values; of a card number also the BIN and the last four digits."""
        for field, column in self._mapping.tokens.items():
            raw = as_text(cells[self._at[column]])
            if raw is None:
                continue
            if field == "card_token":
                raw = card_number(raw)
                values.setdefault("card_bin", raw[:6])
                values.setdefault("card_last4", raw[-4:])
            values[field] = self.token(TOKEN_KINDS[field], raw)

    def _tokenised(self, kind: str, raw: str) -> str:
        return keyed_token(self._key.key, self._key.key_id, kind, raw)

    def _moment(self, cells: Cells) -> int:
        names = self._mapping.time.names
        if len(names) == 1:
            return moment_ms(cells[self._at[names[0]]], self._mapping.time)
        parts = [as_text(cells[self._at[name]]) for name in names]
        return moment_ms(" ".join(part for part in parts if part), self._mapping.time)

    def _amount(self, rule: AmountRule, field: str, currency_field: str, cells: Cells) -> tuple[str, int]:
        stated = rule.currency or cells[self._at[rule.currency_column]]  # type: ignore[index]  # one of both is given, checked when read
        currency = known_currency(stated, currency_field)
        return currency, amount_minor(cells[self._at[rule.column]], currency, rule, field)

    def _add_billing(self, values: dict[str, Any], cells: Cells) -> None:
        rule = self._mapping.billing
        if rule is not None and as_text(cells[self._at[rule.column]]) is not None:
            currency, amount = self._amount(rule, "billing_amount_minor", "billing_currency", cells)
            values["billing_currency"], values["billing_amount_minor"] = currency, amount

    def _says_so(self, rule: DeclinedRule | LabelRule | None, cells: Cells) -> bool:
        return rule is not None and says_so(rule, cells[self._at[rule.column]])

    def _label(self, txn: Transaction, cells: Cells) -> Label | None:
        """What became known of the row, and when; None where the cell is empty."""
        rule = self._mapping.label
        if rule is None or as_text(cells[self._at[rule.column]]) is None:
            return None
        fraud = self._says_so(rule, cells)
        learned = cells[self._at[rule.learned_at_column]] if rule.learned_at_column else None
        at_ms = moment_ms(learned, self._mapping.time, "learned_at_ms") if as_text(learned) is not None else txn.at_ms + rule.delay_ms
        if not LEARNED_MS[0] <= at_ms <= LEARNED_MS[1]:
            raise InvalidRecord("learned_at_ms", f"{as_text(learned)!r} is no time between 1970 and 3000")
        kind = as_text(cells[self._at[rule.kind_column]]) if rule.kind_column and fraud else None
        return Label(
            label_id=derived_id("lbl", txn.transaction_id, "file", rule.source, str(fraud), kind or "", str(at_ms)),
            transaction_id=txn.transaction_id,
            account_id=txn.account_id,
            fraud=fraud,
            fraud_kind=kind,
            learned_at_ms=at_ms,
            source=rule.source,
            transacted_at_ms=txn.at_ms,
            merchant_id=txn.merchant_id,
            terminal_id=txn.terminal_id,
        )


def account_of(record: dict[str, Any], mapping: Mapping, key: TokenKey, as_of_ms: int) -> AccountState:
    """An account in a row of an accounts file, as of a moment; InvalidRecord names the field."""
    rule = mapping.accounts
    assert rule is not None, "asked for only where the mapping has accounts"
    account = as_text(record[rule.account_id])
    if account is not None and "account_id" in mapping.tokens:
        account = keyed_token(key.key, key.key_id, TOKEN_KINDS["account_id"], account)
    currency = rule.currency or as_text(record[rule.currency_column or ""]) or ""
    money = AmountRule(column="", currency=currency)
    limit = record[rule.credit_limit] if rule.credit_limit else None
    opened = record[rule.opened_at] if rule.opened_at else None
    values = {
        "account_id": account,
        "currency": currency,
        "balance_minor": amount_minor(record[rule.balance], currency, money, "balance_minor"),
        "credit_limit_minor": 0 if as_text(limit) is None else amount_minor(limit, currency, money, "credit_limit_minor"),
        "as_of_ms": as_of_ms,
        "opened_at_ms": None if as_text(opened) is None else moment_ms(opened, mapping.time, "opened_at_ms"),
        "home_country": as_text(record[rule.home_country]) if rule.home_country else None,
    }
    return checked(lambda: msgspec.convert(values, AccountState))


# From files to rows.


def spare(out: Path, *read: Path | None) -> None:
    """SettingsError if what is to be written would take the place of a file that is read."""
    for path in read:
        if path is not None and path.resolve().is_relative_to(out.resolve()):
            raise SettingsError(f"--out: {out} would take the place of {path}, which is read")


def is_parquet(path: Path) -> bool:
    """Whether the file is Parquet, by its first four bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def rows_in(
    path: Path, mapping: Mapping, key: TokenKey, *, now_ms: int, future_ms_max: int = 300_000, skip: int = 0, before: int = 0
) -> Iterator[Row]:
    """The file's rows in order, from the one after `skip` on, with bounded memory; `before`: how many rows the files before it have.

    SettingsError if the file does not fit the mapping or cannot be read.
    """
    mapping = for_file(mapping, path)
    columns, cells = _cells_in(path, mapping.csv, mapping.columns, lambda names: column_faults(mapping, names))
    reader = RowReader(mapping, columns, key, now_ms, future_ms_max, before)
    numbered = itertools.islice(enumerate(cells, 1), skip, None)
    return (Row(number, row, None, False) if isinstance(row, InvalidRecord) else reader.row(number, row) for number, row in numbered)


class EventRow(NamedTuple):
    """One row of a file of account events: its number (from 1), and the event or why it is none."""

    number: int
    content: AccountEvent | InvalidRecord


def events_in(path: Path, mapping: Mapping, key: TokenKey, *, now_ms: int, future_ms_max: int = 300_000) -> Iterator[EventRow]:
    """The account events in a file (CSV or Parquet), in its order, with bounded memory.

    SettingsError if the mapping has no [account_events], or the file has not the columns that it names, or cannot be read.
    """
    reader, cells = event_reader(path, mapping, key, now_ms + future_ms_max), _cells_in(path, mapping.csv, *_of_events(mapping))[1]
    return (EventRow(number, row if isinstance(row, InvalidRecord) else reader.event(number, row)) for number, row in enumerate(cells, 1))


def event_reader(path: Path, mapping: Mapping, key: TokenKey, at_ms_max: int) -> EventReader:
    """What reads the file's account events. SettingsError as `events_in`."""
    columns = columns_in(path, mapping.csv, *_of_events(mapping))
    assert mapping.account_events is not None, "that was refused"
    return EventReader(mapping, mapping.account_events, columns, key, at_ms_max)


def _of_events(mapping: Mapping) -> tuple[tuple[str, ...], Callable[[Sequence[str]], list[str]]]:
    """The columns that account events have, and what is wrong with a file's."""
    rule = mapping.account_events
    if rule is None:
        raise SettingsError(f"the mapping has no [{_EVENTS}], which a file of account events needs")
    return rule.columns, lambda names: _misfits(_EVENTS, rule.columns, names)


def _misfits(table: str, wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    faults = [f"column {name!r}, which [{table}] names, is not in the file" for name in wanted if name not in names]
    return faults + [f"column {name!r}, which [{table}] names, comes twice" for name in wanted if list(names).count(name) > 1]


class EventReader:
    """The rule of account events made ready for a file's columns and one key: turns a row of cells into an AccountEvent."""

    def __init__(self, mapping: Mapping, rule: AccountEventsRule, columns: Sequence[str], key: TokenKey, at_ms_max: int) -> None:
        self.rule, self.time, self.at_ms_max = rule, rule.time_rule(mapping.time), at_ms_max
        self.width = len(columns)
        self.at = {name: columns.index(name) for name in rule.columns}
        raw = {field for field in rule.fields if field in mapping.tokens or (field in _EVENT_TOKENS and field not in mapping.fields)}
        self.fields = [(field, self.at[column], TOKEN_KINDS.get(field) if field in raw else None) for field, column in rule.fields.items()]
        self.token = functools.lru_cache(maxsize=200_000)(lambda kind, value: keyed_token(key.key, key.key_id, kind, value))

    def event(self, number: int, cells: Cells) -> AccountEvent | InvalidRecord:
        """The event of the row with this number, or what is wrong with it."""
        try:
            return self._event(number, cells)
        except InvalidRecord as fault:
            return in_column(fault, ({"at_ms": self.rule.time, "kind": self.rule.kind} | self.rule.fields).get(fault.field))

    def _event(self, number: int, cells: Cells) -> AccountEvent:
        values: dict[str, Any] = {"kind": self.kind(cells[self.at[self.rule.kind]])}
        for field, at, token in self.fields:
            if (text := self.field(field, token, cells[at])) is not None:
                values[field] = text
        if self.rule.row_id_prefix is not None:
            values["event_id"] = f"{self.rule.row_id_prefix}{number}"
        values["at_ms"] = moment_ms(cells[self.at[self.rule.time]], self.time)
        if values["at_ms"] > self.at_ms_max:
            raise InvalidRecord("at_ms", "is in the future", code="time_in_future")
        return checked(lambda: msgspec.convert(values, AccountEvent))

    def field(self, field: str, token: str | None, cell: Any) -> str | None:
        """A cell as the field's text, or as its token of that kind; None if it is empty."""
        text = as_text(cell)
        if text is None:
            return None
        return self.token(token, text) if token else text.upper() if field in _UPPER else text

    def kind(self, cell: Any) -> str:
        """The kind by the rule's words; a word that it does not name must be a kind itself."""
        text = as_text(cell)
        if text is None:
            raise InvalidRecord("kind", "is empty", code="missing_field")
        return self.rule.kinds.get(text, text)


def accounts_in(path: Path, mapping: Mapping, key: TokenKey, as_of_ms: int, say: Callable[[str], None]) -> Iterator[AccountState]:
    """The accounts in a file (CSV or Parquet), as of a moment; bad rows are left out, and the first ones said, with row (from 1) and field.

    SettingsError if the mapping has no [accounts], or the file has not the columns that it names, or cannot be read.
    """
    rule = mapping.accounts
    if rule is None:
        raise SettingsError("the mapping has no [accounts], which a file of accounts needs")
    names, cells = _cells_in(path, mapping.csv, rule.columns, lambda names: _misfits("accounts", rule.columns, names))
    read = (row if isinstance(row, InvalidRecord) else _account(dict(zip(names, row, strict=True)), mapping, key, as_of_ms) for row in cells)
    return good(path, read, say)


def _account(record: dict[str, Any], mapping: Mapping, key: TokenKey, as_of_ms: int) -> AccountState | InvalidRecord:
    try:
        return account_of(record, mapping, key, as_of_ms)
    except InvalidRecord as fault:
        return in_column(fault, getattr(mapping.accounts, _ACCOUNT_COLUMNS.get(fault.field, fault.field), None))


def good(path: Path, read: Iterator[T | InvalidRecord], say: Callable[[str], None]) -> Iterator[T]:
    """What is good of all of a file's rows; the first bad ones are said with their number (from 1), and in the end how many there were."""
    bad = 0
    for number, row in enumerate(read, 1):
        if isinstance(row, InvalidRecord):
            bad += 1
            if bad <= BAD_ROWS_SAID:
                say(f"{path}: row {number}: {row}")
        else:
            yield row
    if bad:
        say(f"{path}: {bad} rows are bad and were left out")


def rows_count(path: Path, mapping: Mapping) -> int:
    """How many rows the file has: exact for Parquet, by counting for CSV. SettingsError if it cannot be read."""
    with readable(path):
        if is_parquet(path):
            count: int = pq.read_metadata(path).num_rows
            return count
    mapping = for_file(mapping, path)
    return sum(1 for _ in _cells_in(path, mapping.csv, mapping.columns, lambda names: column_faults(mapping, names))[1])


def for_file(mapping: Mapping, path: Path) -> Mapping:
    """The mapping with every attribute of this file by its name. SettingsError if the file cannot be read."""
    return mapping.for_columns(_names_in(path, mapping.csv))


def _cells_in(
    path: Path, rule: CsvRule, wanted: Sequence[str], faults: Callable[[Sequence[str]], list[str]]
) -> tuple[list[str], Iterator[Cells | InvalidRecord]]:
    """The columns that `columns_in` says, and each row's cells in them."""
    names = columns_in(path, rule, wanted, faults)
    return names, _parquet_cells(path, names) if is_parquet(path) else csv_cells(path, rule, len(names))


def columns_in(path: Path, rule: CsvRule, wanted: Sequence[str], faults: Callable[[Sequence[str]], list[str]]) -> list[str]:
    """Columns of a file (of Parquet only the wanted ones). SettingsError names what `faults` says of all its columns."""
    names = _names_in(path, rule)
    if found := faults(names):
        raise SettingsError(f"{path} does not fit its mapping:\n" + "\n".join(f"- {fault}" for fault in found))
    return [name for name in names if name in wanted] if is_parquet(path) else names


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What reads a file within: SettingsError names the file where it cannot be read, or is broken (a text that is no UTF-8, too)."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"{path}: {error}") from None


def _names_in(path: Path, rule: CsvRule) -> list[str]:
    """The names of the file's columns."""
    with readable(path):
        if is_parquet(path):
            names: list[str] = pq.read_schema(path).names
            return names
        return _csv_names(path, rule)


def _csv_names(path: Path, rule: CsvRule) -> list[str]:
    """The header."""
    try:
        with _csv_file(path, rule) as file:
            return [name.strip() for name in next(filter(None, _csv_reader(file, rule)), [])]
    except (csv.Error, UnicodeError) as error:
        raise SettingsError(f"{path}: its header is not CSV in the encoding {rule.encoding!r}: {error}") from None


def csv_cells(path: Path, rule: CsvRule, width: int) -> Iterator[Cells | InvalidRecord]:
    """Each record's cells or what is wrong with it; blank lines are no records. SettingsError where the file's encoding tells no more text."""
    with _csv_file(path, rule) as file:
        records = _csv_reader(file, rule)
        try:
            next(filter(None, records), None)
            yield from _sound_records(records, width)
        except UnicodeError as error:
            raise SettingsError(f"{path}: is not text in the encoding {rule.encoding!r}: {error}") from None


def _csv_file(path: Path, rule: CsvRule) -> TextIO:
    encoding = "utf-8-sig" if codecs.lookup(rule.encoding).name == "utf-8" else rule.encoding
    return path.open(encoding=encoding, errors="surrogateescape", newline="")


def _csv_reader(file: TextIO, rule: CsvRule) -> Iterator[list[str]]:
    return csv.reader(file, delimiter=rule.delimiter, quotechar=rule.quote, strict=True)


def _sound_records(records: Iterator[list[str]], width: int) -> Iterator[Cells | InvalidRecord]:
    """The records that are not blank; one that the csv module cannot read is a bad row of its own."""
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield InvalidRecord("row", f"is not CSV: {error}", code="wrong_width")
            continue
        if record:
            yield _sound_record(record, width)


def _sound_record(record: list[str], width: int) -> Cells | InvalidRecord:
    if len(record) != width:
        return InvalidRecord("row", f"has {len(record)} cells, the header has {width}", code="wrong_width")
    if not "".join(record).isascii():
        try:
            "".join(record).encode()
        except UnicodeEncodeError:
            return InvalidRecord("row", "has bytes that are not text in the file's encoding", code="unreadable_bytes")
    return record


def _parquet_cells(path: Path, columns: Sequence[str]) -> Iterator[Cells]:
    """Each row's cells in these columns."""
    with readable(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns)):
            yield from zip(*map(values_of, arrays_of(batch, columns)), strict=True)


def arrays_of(batch: pa.RecordBatch, columns: Sequence[str]) -> list[pa.Array]:
    """The columns of these names; bytes are the text that they are in UTF-8, which is how old writers leave texts. ArrowInvalid if it is none."""
    batch.validate(full=True)
    found = [batch.column(name) for name in columns]
    return [column.cast(pa.string()) if any(is_one(column.type) for is_one in _BYTES) else column for column in found]


def values_of(column: pa.Array) -> list[Any]:
    """A column's values as Python objects; a 32-bit float as the shortest decimal that means it, a time beyond the year 9999 as its text."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_temporal(column.type):
        return [_time_of(each) for each in column]
    values: list[Any] = column.to_pylist()
    if pa.types.is_float32(column.type):
        return [None if value is None else float(str(np.float32(value))) for value in values]
    return values


def _time_of(cell: pa.Scalar) -> Any:
    """A time as Python has it, in UTC if its zone is unknown, as text where it has none; the pandas NaT is none."""
    try:
        value = cell.as_py()
    except KeyError:
        return _time_of(cell.cast(pa.timestamp(cell.type.unit, "UTC")))
    except (OverflowError, ValueError):
        return cell.cast(pa.string()).as_py()
    return None if value != value else value
