"""A bank's dialect of ISO 8583 as a table: how elements are packed, which of them carries what, and what its codes mean. Read from TOML."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from schemas.errors import SettingsError
from schemas.transaction import CheckResult, EntryMode, TransactionKind

FOLDER = Path(__file__).with_name("dialects")
_NOTATION = re.compile(r"(n|a|an|ans|as|ns|z|b|s|x\+n) (\.{1,6})?([0-9]{1,6})\Z")
_PART = re.compile(r"([0-9]{1,3})(?:\[(-?[0-9]{0,3}):(-?[0-9]{0,3})\])?\Z")
_EXTENDS_MAX = 4
_AMOUNT, _AMOUNTS = "000000001000", "0002978C000000009000"
_ANSWERED = {
    1987: {"response": "00", "original_amount": _AMOUNTS},
    1993: {"response": "000", "original_amount": _AMOUNT * 2},
}
_ANSWERED_ALWAYS = {"approval": "1A2B3C", "amount": _AMOUNT, "billing_amount": _AMOUNT, "balance": _AMOUNTS}
"""Examples of what answers carry, by row of the map."""

Work = Literal["sign_on", "sign_off", "echo"]


class Element(NamedTuple):
    """One data element: its kind in the standard's notation, digits of its length (0: it has none), size (digits, characters or bytes)."""

    kind: str
    length_digits: int
    size_max: int


class Part(NamedTuple):
    """The part of an element that carries something."""

    number: int
    start: int | None
    stop: int | None

    def of(self, fields: dict[int, str]) -> str | None:
        """Its text without padding around it, or None where the message does not have it or has blanks there."""
        value = fields.get(self.number)
        if value is None:
            return None
        return (value if self.start is None and self.stop is None else value[self.start : self.stop]).strip() or None


class Map(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of which element carries what. Required: what identifies a message, and what answers it."""

    stan: Part
    rrn: Part
    acquirer: Part
    response: Part
    approval: Part
    network: Part
    card_number: Part
    processing_code: Part
    amount: Part
    currency: Part
    sent_at: Part
    original_stan: Part
    original_acquirer: Part
    billing_amount: Part | None = None
    billing_currency: Part | None = None
    local_time: Part | None = None
    local_date: Part | None = None
    mcc: Part | None = None
    entry_mode: Part | None = None
    condition: Part | None = None
    track2: Part | None = None
    terminal: Part | None = None
    merchant: Part | None = None
    country: Part | None = None
    acquirer_country: Part | None = None
    balance: Part | None = None
    replacement: Part | None = None
    replaced: Part | None = None
    function: Part | None = None
    sequence: Part | None = None
    sequence_count: Part | None = None
    account: Part | None = None
    counterparty: Part | None = None
    partial: Part | None = None
    original_amount: Part | None = None
    authentication: Part | None = None


class Dialect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One dialect, complete. `dialects/1987-ascii.toml` says what each row means."""

    version: Literal[1987, 1993]
    text: Literal["ascii", "ebcdic"]
    numeric: Literal["text", "packed"]
    length: Literal["text", "packed", "binary"]
    filler: Literal["before", "after", "after_variable"]
    bitmap: Literal["binary", "hex"]
    time: Literal["transmission", "local"]
    zone: Annotated[float, Meta(ge=-14, le=14)]
    prefix_bytes: Annotated[int, Meta(ge=0, le=64)]
    echo: tuple[int, ...]
    fields: dict[int, Element]
    map: Map
    network: dict[str, Work]
    entry_modes: dict[str, EntryMode]
    kinds: dict[str, TransactionKind]
    conditions: dict[str, TransactionKind]
    partials: tuple[str, ...] = ()
    in_part: tuple[str, ...] = ()
    authentications: dict[str, CheckResult] = {}


def dialect_of(name: str) -> Dialect:
    """The dialect of that name in `dialects/`, or in the TOML file at that path. SettingsError names what is wrong."""
    try:
        rows = _rows(name, Path(), _EXTENDS_MAX)
        rows["fields"] = {int(number): _element(text) for number, text in rows["fields"].items()}
        rows["map"] = {what: _part(text, rows["fields"]) for what, text in rows["map"].items()}
        return _able_to_answer(msgspec.convert(rows, Dialect, strict=False))
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise SettingsError(f"dialect {name}: {error}") from None


def _able_to_answer(dialect: Dialect) -> Dialect:
    """The dialect, if its elements can carry what is answered: else hosts would wait for answers that cannot be written."""
    for what, example in (_ANSWERED_ALWAYS | _ANSWERED[dialect.version]).items():
        part: Part | None = getattr(dialect.map, what)
        if part is None:
            continue
        kind, _, size_max = dialect.fields[part.number]
        if len(example) > size_max or kind in ("z", "b", "x+n") or (kind == "n" and not example.isdigit()):
            raise ValueError(f"{what}: element {part.number} cannot carry {example!r}")
    return dialect


def _rows(name: str, beside: Path, extends_max: int) -> dict[str, Any]:
    """The tables of a file over those of the file that it extends."""
    own = FOLDER / f"{name}.toml"
    rows = tomllib.loads((own if own.is_file() else beside / name).read_text(encoding="utf-8-sig"))
    extended = rows.pop("extends", None)
    if extended is None:
        return rows
    if extends_max == 0:
        raise ValueError(f"more than {_EXTENDS_MAX} files extend one another")
    merged = _rows(extended, (beside / name).parent, extends_max - 1)
    for key, value in rows.items():
        merged[key] = merged.get(key, {}) | value if isinstance(value, dict) else value
    return merged


def _element(text: object) -> Element:
    found = _NOTATION.match(str(text))
    if found is None:
        raise ValueError(f"{text!r} is not a notation like `n 6`, `ans ..99` or `b ...999`")
    return Element(found[1], len(found[2] or ""), int(found[3]))


def _part(text: object, fields: dict[int, Element]) -> Part:
    found = _PART.match(str(text))
    if found is None or int(found[1]) not in fields:
        raise ValueError(f"{text!r} is no part of an element of [fields], like `11` or `90[4:10]`")
    return Part(int(found[1]), int(found[2]) if found[2] else None, int(found[3]) if found[3] else None)
