"""Transaction: one movement of money that asks to be decided, as it arrives by HTTP, ISO 8583, topic or file."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from typing import Annotated

from msgspec import Meta

from schemas.errors import InvalidRecord
from schemas.identity import INCREMENT
from schemas.money import EXPONENTS
from schemas.record import Country, Currency, EpochMs, Id, MinorUnits, Record, Token, Word, doc, like


class TransactionKind(Word):
    """What kind of movement it is, from the account's side."""

    CARD_PRESENT = "card_present"
    ECOMMERCE = "ecommerce"
    CONTACTLESS = "contactless"
    ATM = "atm"
    MOTO = "moto"
    RECURRING = "recurring"
    TRANSFER_IN = "transfer_in"
    TRANSFER_OUT = "transfer_out"
    CASH_IN = "cash_in"
    CASH_OUT = "cash_out"
    REFUND = "refund"


CREDITS = frozenset({TransactionKind.TRANSFER_IN, TransactionKind.CASH_IN, TransactionKind.REFUND})
"""Kinds that bring money in: they are decided, but nothing is held for them."""

AT_A_PLACE = frozenset({TransactionKind.CARD_PRESENT, TransactionKind.CONTACTLESS, TransactionKind.ATM})
"""Kinds at which the card itself was at a terminal, so that its place is the card's place."""


class EntryMode(Word):
    """How the card's data entered (ISO 8583 field 22, reduced)."""

    CHIP = "chip"
    CONTACTLESS = "contactless"
    MAGSTRIPE = "magstripe"
    FALLBACK = "fallback"
    MANUAL = "manual"
    ECOMMERCE = "ecommerce"
    CREDENTIAL_ON_FILE = "credential_on_file"


class CheckResult(Word):
    """The *result* of a CVV, AVS or 3-D Secure check; what was checked is never stored (PCI DSS 3.3.1)."""

    MATCH = "match"
    PARTIAL = "partial"
    NO_MATCH = "no_match"
    NOT_CHECKED = "not_checked"
    UNAVAILABLE = "unavailable"


class BehaviouralSession(Record, frozen=True, kw_only=True):
    """How the person typed and moved in the session that made the payment."""

    keystroke_dwell_ms: Annotated[float | None, doc("mean time a key is held, milliseconds")] = None
    keystroke_flight_ms: Annotated[float | None, doc("mean time from one key to the next, milliseconds")] = None
    pointer_speed_px_s: Annotated[float | None, doc("mean pointer speed, CSS pixels per second")] = None
    session_age_s: Annotated[float | None, doc("time since the session began, seconds")] = None


Part = Annotated[str, Meta(min_length=1, max_length=128)]


class Fingerprint(Record, frozen=True, kw_only=True):
    """What the customer's device says of itself, part by part, so that a change of some parts can be told from another device."""

    os: Annotated[Part | None, doc("operating system and its version")] = None
    browser: Annotated[Part | None, doc("browser or app, and its version")] = None
    screen: Annotated[Part | None, doc("screen size and depth")] = None
    time_zone: Annotated[Part | None, doc("time zone that the device is set to")] = None
    language: Annotated[Part | None, doc("language that the device is set to")] = None
    hardware: Annotated[Part | None, doc("model, or graphics and processor")] = None
    emulator: Annotated[bool | None, doc("true: it is an emulator or a virtual machine")] = None


class Attribute(Record, frozen=True, kw_only=True):
    """One thing that the record did not foresee."""

    name: Annotated[Id, doc("the attribute's name")]
    value: Annotated[str, doc("its value, as text"), Meta(max_length=256)]


Degrees90 = Annotated[float, Meta(ge=-90, le=90)]
Degrees180 = Annotated[float, Meta(ge=-180, le=180)]
Mcc = Annotated[str, like("[0-9]{4}")]
Bin = Annotated[str, like("[0-9]{6,8}")]
IpAddress = Annotated[str, Meta(min_length=2, max_length=45)]
Last4 = Annotated[str, like("[0-9]{4}")]


class Transaction(Record, frozen=True, kw_only=True):
    """One payment, transfer or cash movement. Required: id, kind, time, amount, currency, account."""

    transaction_id: Annotated[Id, doc("the sender's id: the idempotency key; the first answer to it stands")]
    kind: Annotated[TransactionKind, doc("what kind of movement it is")]
    at_ms: Annotated[EpochMs, doc("event time, milliseconds since 1970-01-01 UTC")]
    amount_minor: Annotated[MinorUnits, doc("transaction amount, minor units of `currency`")]
    currency: Annotated[Currency, doc("transaction currency, ISO 4217")]
    account_id: Annotated[Id, doc("the account whose money moves: key of the topic")]
    billing_amount_minor: Annotated[MinorUnits | None, doc("amount in the account's currency, minor units; null: same as amount_minor")] = None
    billing_currency: Annotated[Currency | None, doc("the account's currency, ISO 4217; null: same as currency")] = None
    customer_id: Annotated[Id | None, doc("the customer who owns the account")] = None
    card_token: Annotated[Token | None, doc("keyed token of the card number")] = None
    card_bin: Annotated[Bin | None, doc("first 6 to 8 digits of the card number")] = None
    card_last4: Annotated[Last4 | None, doc("last four digits of the card number")] = None
    card_country: Annotated[Country | None, doc("country of the card's issuer, ISO 3166-1 alpha-2")] = None
    device_token: Annotated[Token | None, doc("keyed token of the device fingerprint")] = None
    email_token: Annotated[Token | None, doc("keyed token of the e-mail address")] = None
    phone_token: Annotated[Token | None, doc("keyed token of the phone number")] = None
    address_token: Annotated[Token | None, doc("keyed token of the billing address")] = None
    counterparty_account_id: Annotated[Id | None, doc("the other account of a transfer: beneficiary or sender")] = None
    merchant_id: Annotated[Id | None, doc("the acceptor's id (ISO 8583 field 42)")] = None
    mcc: Annotated[Mcc | None, doc("merchant category code, ISO 18245, four digits")] = None
    terminal_id: Annotated[Id | None, doc("the terminal's id (ISO 8583 field 41)")] = None
    country: Annotated[Country | None, doc("where the merchant or terminal is, ISO 3166-1 alpha-2")] = None
    latitude: Annotated[Degrees90 | None, doc("of the terminal, degrees north, WGS 84")] = None
    longitude: Annotated[Degrees180 | None, doc("of the terminal, degrees east, WGS 84")] = None
    ip: Annotated[IpAddress | None, doc("IP address of the customer's device")] = None
    ip_country: Annotated[Country | None, doc("country of that address, ISO 3166-1 alpha-2")] = None
    ip_proxy: Annotated[bool | None, doc("true: the address is a known proxy, VPN or Tor exit")] = None
    entry_mode: Annotated[EntryMode | None, doc("how the card's data entered")] = None
    cvv_result: Annotated[CheckResult | None, doc("result of the CVV check")] = None
    avs_result: Annotated[CheckResult | None, doc("result of the address check")] = None
    three_ds_result: Annotated[CheckResult | None, doc("result of 3-D Secure")] = None
    session: Annotated[BehaviouralSession | None, doc("the behavioural session, if there was one")] = None
    fingerprint: Annotated[Fingerprint | None, doc("the parts of the device's fingerprint, if they were taken")] = None
    attributes: Annotated[tuple[Attribute, ...], doc("what this record did not foresee")] = ()
    partial_allowed: Annotated[bool, doc("true: the sender can take an approval of less than the amount")] = False
    step_up_of: Annotated[Id | None, doc("the transaction whose answer asked for authentication, where this one is its retry")] = None

    @property
    def own_amount_minor(self) -> int:
        """The amount in the account's currency, minor units: what features measure and holds hold."""
        return self.amount_minor if self.billing_amount_minor is None else self.billing_amount_minor

    @property
    def own_currency(self) -> str:
        """The account's currency as the transaction states it, ISO 4217."""
        return self.currency if self.billing_currency is None else self.billing_currency


def with_own_id(txn: Transaction) -> Transaction:
    """The transaction as somebody sent it; InvalidRecord if its id begins as those of increments do, which limits count with what they raise."""
    if txn.transaction_id.startswith(INCREMENT):
        raise InvalidRecord("transaction_id", f"begins with {INCREMENT}, as only the ids of increments do")
    return txn


TOKENS = ("card_token", "device_token", "email_token", "phone_token", "address_token")
_CARD_NUMBER = re.compile(r"[0-9](?:[ -]?[0-9]){11,18}")
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_HEX = "[0-9A-Fa-f]{1,4}"
_SOME = f"(?:{_HEX}(?::{_HEX})*)?"
_IP = re.compile(rf"(?:(?:{_OCTET}\.){{3}}{_OCTET}|(?:{_HEX}:){{7}}{_HEX}|(?!(?::*[0-9A-Fa-f]+(?![0-9A-Fa-f])){{8}}){_SOME}::{_SOME})\Z")
"""The usual forms, in half a microsecond; `ipaddress`, which takes four, is asked about others. Nothing possessive (`*+`): some versions of CPython
3.11 take such a group for more than it is, and with it `0:::` for an address."""
_DOUBLED = str.maketrans("0123456789", "0246813579")
"""Each digit doubled, and the digits of that added: every second digit of a card number counts so."""


def is_card_number(text: str) -> bool:
    """Whether it is 12 to 19 digits, in groups or not, that satisfy the Luhn check (ISO/IEC 7812-1, annex B)."""
    if _CARD_NUMBER.fullmatch(text) is None:
        return False
    digits = text.replace(" ", "").replace("-", "")[::-1]
    return sum(map(int, digits[::2] + digits[1::2].translate(_DOUBLED))) % 10 == 0


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


def is_ip_address(text: str) -> bool:
    """Whether it is an IP address, of version 4 or 6."""
    return _IP.match(text) is not None or _is_ipv6(text)


def sound(txn: Transaction, now_ms: int, future_ms_max: int) -> Transaction:
    """The transaction, if it holds what types cannot say; else InvalidRecord naming the field.

    Known currencies, billing amount and currency together, nothing billed for an amount of nothing and for no other, no card number in place
    of a token, an IP address that is one, and not further in the future than `future_ms_max`.
    """
    for field in ("currency", "billing_currency"):
        code = getattr(txn, field)
        if code is not None and code not in EXPONENTS:
            raise InvalidRecord(field, f"unknown ISO 4217 currency {code!r}", code="unknown_currency")
    if (txn.billing_amount_minor is None) != (txn.billing_currency is None):
        raise InvalidRecord("billing_currency", "billing_amount_minor and billing_currency come together")
    if txn.billing_amount_minor and not txn.amount_minor:
        raise InvalidRecord("billing_amount_minor", "is more than nothing, of an amount_minor of 0")
    if txn.billing_amount_minor == 0 and txn.amount_minor:
        raise InvalidRecord("billing_amount_minor", "is nothing, of an amount_minor that is more")
    if (txn.latitude is None) != (txn.longitude is None):
        raise InvalidRecord("longitude", "latitude and longitude come together")
    tokens = (txn.card_token, txn.device_token, txn.email_token, txn.phone_token, txn.address_token)
    for place, token in enumerate(tokens):
        if token is not None and token < ":" and is_card_number(token):  # what begins with a digit is less than a colon
            raise InvalidRecord(TOKENS[place], "is a card number, not a token of one", code="card_number")
    if txn.ip is not None and not is_ip_address(txn.ip):
        raise InvalidRecord("ip", "is no IP address")
    if txn.at_ms > now_ms + future_ms_max:
        raise InvalidRecord("at_ms", f"is {(txn.at_ms - now_ms) // 1000} s in the future", code="time_in_future")
    return txn
