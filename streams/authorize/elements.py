"""What the elements of an ISO 8583 message mean: who sent it, the transaction that it asks for, the capture or reversal that it asks for.

Card numbers end here: PAN and account numbers that could be one become keyed tokens; track, PIN and chip data are read by nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from models.clearing import WHOLE, Asked
from schemas.errors import InvalidRecord
from schemas.hold import ClearingKind
from schemas.identity import derived_id, keyed_token
from schemas.transaction import CREDITS, Attribute, EntryMode, Transaction, TransactionKind, is_card_number
from streams.authorize.codec import Fields
from streams.authorize.dialect import Dialect, Part
from streams.authorize.iso_codes import COUNTRIES, CURRENCIES

_PAN = re.compile(r"[0-9]{12,19}\Z")
_MCC = re.compile(r"[0-9]{4}\Z")
_ID_MAX, _AMOUNT_MAX = 64, 2**53
"""What records hold: an element of a bank's own dialect can be longer, and a decision with more than that could be read by nobody."""
_HOUR_S = 3_600
_HALF_YEAR_S = 15_778_800
_KIND_OF_ENTRY = {
    EntryMode.ECOMMERCE: TransactionKind.ECOMMERCE,
    EntryMode.CREDENTIAL_ON_FILE: TransactionKind.ECOMMERCE,
    EntryMode.CONTACTLESS: TransactionKind.CONTACTLESS,
}
INQUIRIES = ("30", "31", "38", "39")
"""Processing codes that ask about the account and move nothing, whatever their amount; it may be left out."""
BALANCE_INQUIRIES = ("30", "31")
CREDIT = "2"
"""Processing codes that begin so bring money in (ISO 8583:1987): taken for a purchase, one would hold it."""


class Key(NamedTuple):
    """What makes a message the one it is: the same three are the same transaction, however often it is sent."""

    acquirer: str
    rrn: str
    stan: str

    @property
    def transaction_id(self) -> str:
        """The derived id of the transaction."""
        return derived_id("txn", *self)


class Secrets(NamedTuple):
    """The key of the tokens, and its name."""

    key: bytes
    key_id: str

    def token(self, kind: str, value: str) -> str:
        """The keyed token of a value."""
        return keyed_token(self.key, self.key_id, kind, value)


class Elements:
    """Reads messages of one dialect."""

    def __init__(self, dialect: Dialect, secrets: Secrets) -> None:
        self._dialect, self._map, self._secrets = dialect, dialect.map, secrets

    def key(self, fields: Fields) -> Key:
        """The message's own key; InvalidRecord names the element that is missing."""
        row = self._map
        return Key(_needed(row.acquirer, fields).lstrip("0"), _needed(row.rrn, fields), _needed(row.stan, fields))

    def original(self, fields: Fields) -> Key | None:
        """The key of the authorization that the message is about, if it says so. An original is known by the same retrieval reference."""
        part = self._map.original_stan
        stan = part.of(fields)
        if stan is None or not fields[part.number].strip("0 "):
            return None
        own = self.key(fields)
        acquirer = (self._map.original_acquirer.of(fields) or "").lstrip("0")
        return Key(acquirer or own.acquirer, own.rrn, stan)

    def transaction(self, fields: Fields, key: Key, now_ms: int) -> Transaction:
        """The transaction that the message asks for, with keyed tokens in place of numbers; InvalidRecord names the element at fault."""
        row, dialect = self._map, self._dialect
        code = _needed(row.processing_code, fields)
        pan = self._card_number(fields)
        entry = dialect.entry_modes.get(_text(row.entry_mode, fields) or "")
        billing, moves = _text(row.billing_amount, fields), code not in INQUIRIES
        return Transaction(
            transaction_id=key.transaction_id,
            kind=self._kind(code, entry, fields),
            at_ms=self.at_ms(fields, now_ms),
            amount_minor=_amount(row.amount, fields) if moves else 0,
            currency=_currency(_needed(row.currency, fields)),
            account_id=self.account(fields, pan),
            billing_amount_minor=None if billing is None else _amount(row.billing_amount, fields) if moves else 0,
            billing_currency=None if billing is None else _currency(_text(row.billing_currency, fields) or ""),
            card_token=pan and self._secrets.token("crd", pan),
            card_bin=pan and pan[:6],
            card_last4=pan and pan[-4:],
            counterparty_account_id=self._safe(_id(row.counterparty, fields)),
            merchant_id=_id(row.merchant, fields),
            mcc=_mcc(row.mcc, fields),
            terminal_id=_id(row.terminal, fields),
            country=COUNTRIES.get(_text(row.country, fields) or "") or COUNTRIES.get(_text(row.acquirer_country, fields) or ""),
            entry_mode=entry,
            attributes=(
                Attribute(name="acquirer", value=key.acquirer),
                Attribute(name="rrn", value=key.rrn),
                Attribute(name="stan", value=key.stan),
            ),
            three_ds_result=dialect.authentications.get(_text(row.authentication, fields) or ""),
            partial_allowed=_text(row.partial, fields) in dialect.partials,
        )

    def asked(self, kind: ClearingKind, fields: Fields, now_ms: int) -> Asked:
        """The capture or reversal that the message asks for. Without original data it is about the message with its own key."""
        row, own = self._map, self.key(fields)
        original = self.original(fields) or own
        pan = self._card_number(fields)
        known = pan is not None or _text(row.account, fields) is not None
        amount, currency, was = (*self._captured(fields), 0) if kind is ClearingKind.CAPTURE else self._given_back(fields)
        return Asked(
            kind=kind,
            clearing_id=derived_id("clr", *own, kind),
            transaction_id=original.transaction_id,
            account_id=self.account(fields, pan) if known else "",
            amount_minor=amount,
            currency=currency,
            at_ms=self.at_ms(fields, now_ms),
            final=kind is ClearingKind.REVERSAL or not self._more_to_come(fields),
            was_minor=was,
        )

    def card_alone(self, fields: Fields) -> str | None:
        """The token of the card of a message that names no account."""
        pan = self._card_number(fields) if _text(self._map.account, fields) is None else None
        return pan and self._secrets.token("crd", pan)

    def _captured(self, fields: Fields) -> tuple[int, str]:
        """What a capture takes. InvalidRecord for a credit, such as the advice of a refund: it would take what it is to bring."""
        code = self._map.processing_code.of(fields) or ""
        if code.startswith(CREDIT) or self._dialect.kinds.get(code) in CREDITS:
            raise InvalidRecord(f"element {self._map.processing_code.number}", f"{code} brings money in and captures none", code="unknown_message")
        return self._taken(fields)

    def _taken(self, fields: Fields) -> tuple[int, str]:
        """What it is about, in the account's currency."""
        row = self._map
        billed = _text(row.billing_amount, fields)
        amount, currency = (row.amount, row.currency) if billed is None else (row.billing_amount, row.billing_currency)
        return _amount(amount, fields), _currency(_needed(currency, fields))

    def _given_back(self, fields: Fields) -> tuple[int, str, int]:
        """What a reversal gives back, and of what: what was asked for less what stays of it; where it is not in part, all that is left.

        Where it is billed in another currency, the part that stays is rounded up.
        """
        row, in_part = self._map, self._dialect.in_part
        stays = _text(row.replacement, fields) or ""
        if not stays.strip("0 ") or (in_part and _text(row.function, fields) not in in_part):
            return WHOLE, "", 0
        asked, amount = _amount(row.replaced or row.amount, fields), _amount(row.amount, fields)
        if not stays.isdigit() or int(stays) >= asked:
            raise InvalidRecord(f"element {row.replacement and row.replacement.number}", "leaves nothing to reverse", code="format_error")
        taken, currency = self._taken(fields)
        return taken * (asked - int(stays)) // amount, currency, asked

    def _more_to_come(self, fields: Fields) -> bool:
        """Whether a capture says that it is not the last: number and count of a multiple clearing, where the dialect has them."""
        number, count = _text(self._map.sequence, fields), _text(self._map.sequence_count, fields)
        return number is not None and count is not None and number.isdigit() and count.isdigit() and int(number) < int(count)

    def asks_balance(self, fields: Fields) -> bool:
        """Whether it wants to know what is available."""
        return self._map.processing_code.of(fields) in BALANCE_INQUIRIES

    def at_ms(self, fields: Fields, now_ms: int) -> int:
        """The event time, milliseconds since 1970-01-01 UTC. Messages do not say the year: it is the one nearest to now."""
        row = self._map
        if self._dialect.time == "local" and row.local_date is not None and row.local_time is not None:
            text, part = _needed(row.local_date, fields) + _needed(row.local_time, fields), row.local_date
            behind_s = self._dialect.zone * _HOUR_S
        else:
            text, part, behind_s = _needed(row.sent_at, fields), row.sent_at, 0
        return int(_nearest(text, part, now_ms // 1000) - behind_s) * 1000

    def account(self, fields: Fields, pan: str | None) -> str:
        """The account's id; a number that could be a card's is tokenized. Where the message names none, the card stands for its account."""
        account = self._safe(_id(self._map.account, fields))
        if account is not None:
            return account
        if pan is None:
            raise _missing(self._map.card_number)
        return self._secrets.token("acc", pan)

    def _safe(self, number: str | None) -> str | None:
        return self._secrets.token("acc", number) if number is not None and is_card_number(number) else number

    def _card_number(self, fields: Fields) -> str | None:
        """The card number, or that of its track 2."""
        part = self._map.card_number
        number = part.of(fields)
        if number is None and self._map.track2 is not None:
            part = self._map.track2
            track = part.of(fields)
            number = None if track is None else re.split("[=D]", track, maxsplit=1)[0]
        if number is not None and _PAN.match(number) is None:
            raise InvalidRecord(f"element {part.number}", "is no card number", code="format_error")
        return number

    def _kind(self, code: str, entry: EntryMode | None, fields: Fields) -> TransactionKind:
        """By processing code, else by condition, else by how the card's data entered. InvalidRecord for a credit that the dialect has no row for."""
        if code.startswith(CREDIT) and code not in self._dialect.kinds:
            raise InvalidRecord(f"element {self._map.processing_code.number}", f"{code} is a credit of no known kind", code="unknown_message")
        said = self._dialect.kinds.get(code) or self._dialect.conditions.get(_text(self._map.condition, fields) or "")
        return said or (_KIND_OF_ENTRY.get(entry, TransactionKind.CARD_PRESENT) if entry else TransactionKind.CARD_PRESENT)


def _nearest(text: str, part: Part, now_s: int) -> float:
    """The moment `MMDDhhmmss` nearest to now, seconds since 1970-01-01 UTC."""
    year = datetime.fromtimestamp(now_s, UTC).year
    try:
        month, day, hour, minute, second = (int(text[at : at + 2]) for at in range(0, 10, 2))
        found = datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
        if abs(found - now_s) <= _HALF_YEAR_S:
            return found
        year += 1 if found < now_s else -1
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        raise InvalidRecord(f"element {part.number}", "is no time", code="format_error") from None


def _text(part: Part | None, fields: Fields) -> str | None:
    return None if part is None else part.of(fields)


def _needed(part: Part | None, fields: Fields) -> str:
    value = _text(part, fields)
    if value is None:
        raise _missing(part)
    return value


def _id(part: Part | None, fields: Fields) -> str | None:
    return _fitting(part, fields, lambda text: len(text) <= _ID_MAX, f"is longer than {_ID_MAX} characters")


def _mcc(part: Part | None, fields: Fields) -> str | None:
    return _fitting(part, fields, lambda text: _MCC.match(text) is not None, "is no category of four digits")


def _amount(part: Part | None, fields: Fields) -> int:
    _needed(part, fields)
    return int(_fitting(part, fields, lambda text: text.isdigit() and int(text) <= _AMOUNT_MAX, "is no amount") or 0)


def _fitting(part: Part | None, fields: Fields, fits: Callable[[str], bool], else_: str) -> str | None:
    """The text, if it fits; InvalidRecord if it does not."""
    text = _text(part, fields)
    if part is not None and text is not None and not fits(text):
        raise InvalidRecord(f"element {part.number}", else_, code="format_error")
    return text


def _missing(part: Part | None) -> InvalidRecord:
    return InvalidRecord(f"element {part.number}" if part else "element", "is missing", code="missing_field")


def _currency(code: str) -> str:
    return CURRENCIES.get(code, code)
