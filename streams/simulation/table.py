"""The simulated bank's export: events become Arrow columns in a layout of their own, with the mapping file that explains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.money import EXPONENTS
from schemas.transaction import CREDITS
from streams.simulation.account_events import WHAT, Doings
from streams.simulation.events import (
    COMPUTER,
    ENTRIES,
    KIND,
    KINDS,
    OUTSIDE_ACCOUNTS,
    RESULTS,
    SLOTS,
    Events,
    address_of,
    email_of,
    mcc_of,
    phone_of,
)
from streams.simulation.fraud import FRAUD_NAMES
from streams.simulation.world import CATEGORIES, CITY_COUNTRY, COUNTRIES, DAY_MS, PER_EURO, Flags, Floats, Ints, World

KIND_CODES: dict[str, str] = {
    "card_present": "POS",
    "contactless": "TAP",
    "ecommerce": "WEB",
    "atm": "ATM",
    "moto": "TEL",
    "recurring": "SUB",
    "transfer_in": "CRE",
    "transfer_out": "DEB",
    "cash_in": "DEP",
    "cash_out": "WDL",
    "refund": "RFD",
}
EVENT_CODES: dict[str, str] = {
    "login": "LOGIN",
    "login_failed": "NO_LOGIN",
    "credential_changed": "PASSWORD",
    "email_changed": "EMAIL",
    "phone_changed": "PHONE",
    "address_changed": "ADDRESS",
    "device_changed": "DEVICE",
    "beneficiary_added": "PAYEE",
    "enrolled": "ENROLLED",
    "kyc_passed": "KYC_OK",
    "kyc_failed": "KYC_NO",
}
PART = 16_384
_CREDIT_KINDS = [KIND[kind] for kind in CREDITS]
MAPPING = """# How Holdfast reads the simulated bank's export (holdfast simulate wrote this file).

[time]
column = "booked_at"
format = "iso8601"
zone = "UTC"

[amount]
column = "amount"
unit = "major"
currency_column = "ccy"

[billing]
column = "billed"
unit = "major"
currency_column = "billed_ccy"

[fields]
transaction_id = "reference"
kind = "type"
account_id = "account_no"
customer_id = "customer_no"
card_country = "issuer_country"
counterparty_account_id = "other_account"
merchant_id = "acceptor"
mcc = "category_code"
terminal_id = "terminal"
country = "place_country"
latitude = "lat"
longitude = "lon"
ip = "client_ip"
ip_country = "client_ip_country"
ip_proxy = "client_ip_proxy"
entry_mode = "entry"
cvv_result = "cvv"
avs_result = "avs"
three_ds_result = "sca"
session.keystroke_dwell_ms = "key_dwell"
session.keystroke_flight_ms = "key_flight"
session.pointer_speed_px_s = "pointer"
session.session_age_s = "session_seconds"
fingerprint.os = "fp_os"
fingerprint.browser = "fp_browser"
fingerprint.screen = "fp_screen"
fingerprint.time_zone = "fp_time_zone"
fingerprint.language = "fp_language"
fingerprint.hardware = "fp_hardware"
fingerprint.emulator = "fp_emulator"

[tokens]
card_token = "card_number"
device_token = "device_id"
email_token = "email"
phone_token = "phone"
address_token = "address"

[values.kind]
POS = "card_present"
TAP = "contactless"
WEB = "ecommerce"
ATM = "atm"
TEL = "moto"
SUB = "recurring"
CRE = "transfer_in"
DEB = "transfer_out"
DEP = "cash_in"
WDL = "cash_out"
RFD = "refund"

[declined]
column = "declined"
values = ["true"]

[accounts]
account_id = "account_no"
balance = "balance"
currency_column = "ccy"
credit_limit = "credit_limit"
opened_at = "opened_at"
home_country = "home_country"

[account_events]
event_id = "event"
kind = "what"
time = "happened_at"
account_id = "account_no"
customer_id = "customer_no"
device_token = "device_id"
email_token = "email"
phone_token = "phone"
address_token = "address"
counterparty_account_id = "other_account"
ip = "client_ip"
ip_country = "client_ip_country"

[account_events.kinds]
LOGIN = "login"
NO_LOGIN = "login_failed"
PASSWORD = "credential_changed"
EMAIL = "email_changed"
PHONE = "phone_changed"
ADDRESS = "address_changed"
DEVICE = "device_changed"
PAYEE = "beneficiary_added"
ENROLLED = "enrolled"
KYC_OK = "kyc_passed"
KYC_NO = "kyc_failed"

[label]
column = "is_fraud"
values = ["true"]
kind_column = "fraud_kind"
learned_at_column = "learned_at"
delay = "14d"
source = "chargeback"
"""


def _spread(text: pa.Array, given: Flags) -> pa.Array:
    """The texts in the places that are given, null in the others."""
    if given.all():
        return text
    index = pa.array(np.cumsum(given) - 1, mask=~given)
    return pc.take(text, index)


def _text(prefix: str, numbers: Ints, width: int = 0, suffix: str = "") -> pa.Array:
    """`prefix`, the number padded with zeros, and `suffix`; null where the number is negative."""
    given = numbers >= 0
    digits = pa.array(numbers[given]).cast(pa.string())
    return _spread(pc.binary_join_element_wise(prefix, pc.utf8_lpad(digits, width, "0") if width else digits, suffix, ""), given)


def _words(words: Sequence[str] | pa.Array, codes: Ints) -> pa.Array:
    """The word of each code, kept as code and dictionary; null where the code is negative."""
    index = pa.array(codes.astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(index, words if isinstance(words, pa.Array) else pa.array(words))


class Names(NamedTuple):
    """The texts by which the bank knows its customers and merchants, made once."""

    account: pa.Array
    customer: pa.Array
    card: pa.Array
    merchant: pa.Array


def names_of(world: World, block: int) -> Names:
    """The names in this world, with the block in each, so that two histories can meet."""
    customer, merchant = np.arange(world.customers), np.arange(len(world.m_city))
    card = _text("", _card_numbers(customer, block))
    return Names(_text(f"S{block}A", customer, 7), _text(f"S{block}C", customer, 7), card, _text("M", merchant, 6))


def _decimal(cents: Ints, missing: Any = None) -> pa.Array:
    """Decimals with two digits from whole hundredths, without a detour through floats."""
    halves = np.empty((len(cents), 2), np.int64)
    halves[:, 0], halves[:, 1] = cents, cents >> 63
    whole = pa.Array.from_buffers(pa.decimal128(18, 2), len(cents), [None, pa.py_buffer(halves)])
    return whole if missing is None else pc.if_else(pa.array(missing), pa.scalar(None, whole.type), whole)


def _card_numbers(customer: Ints, block: int) -> Ints:
    """A card number of sixteen digits for each customer, with its check digit (ISO/IEC 7812-1); 500 customers share a BIN."""
    digits = ((424_200 + customer // 500 % 90) * 1000 + block % 1000) * 1_000_000 + customer % 1_000_000
    each = digits[:, None] // 10 ** np.arange(15) % 10
    each[:, ::2] *= 2
    checked: Ints = digits * 10 + -(each // 10 + each % 10).sum(axis=1) % 10
    return checked


def _addresses(numbers: Ints) -> pa.Array:
    """IP addresses as text; null where negative."""
    given = numbers >= 0
    value = numbers[given] + (11 << 24)
    octets = (pc.take(_OCTETS, pa.array((value >> shift) & 255)) for shift in (24, 16, 8, 0))
    return _spread(pc.binary_join_element_wise(*octets, "."), given)


_OCTETS = pa.array([str(octet) for octet in range(256)])


def _money_columns(world: World, events: Events) -> dict[str, pa.Array]:
    """Amount in the currency of the place, and what is billed where that is another currency than the account's."""
    home = CITY_COUNTRY[world.c_city[events["customer"]]]
    place = np.where(events["city"] >= 0, CITY_COUNTRY[events["city"]], home)
    codes = [c.currency for c in COUNTRIES]
    number = {code: i for i, code in enumerate(dict.fromkeys(codes))}
    currency = np.array([number[code] for code in codes])
    abroad = currency[place] != currency[home]
    unit = np.array([10 ** (2 - EXPONENTS[code]) for code in codes])[place]
    own = np.maximum(np.rint(events["amount"] * PER_EURO[home] * 100.0), 1.0).astype(np.int64)
    there = np.maximum(np.rint(events["amount"] * PER_EURO[place] * 100.0 / unit), 1.0).astype(np.int64) * unit
    return {
        "amount": _decimal(np.where(abroad, there, own)),
        "ccy": _words(list(number), np.where(abroad, currency[place], currency[home])),
        "billed": _decimal(own, ~abroad),
        "billed_ccy": _words(list(number), np.where(abroad, currency[home], -1)),
    }


def _moment(start_ms: int, offsets: Ints) -> pa.Array:
    """Moments in UTC; null where the offset is negative."""
    return pa.array(offsets + start_ms, pa.timestamp("ms", tz="UTC"), mask=offsets < 0)


def _float(values: Any) -> pa.Array:
    """Numbers; null where not given."""
    return pa.array(np.round(values.astype(np.float64), 4), from_pandas=True)


def _identity_columns(world: World, names: Names, events: Events, block: int) -> dict[str, pa.Array]:
    """Who pays, with what: cards only where a card is used, contact data only where a device is."""
    customer, at_ms = events["customer"].astype(np.int64), events["at_ms"]
    typed = events["device"] >= 0
    email = np.where(events["email"] >= 0, events["email"], email_of(world, customer, at_ms))
    contact = (email, phone_of(world, customer, at_ms), address_of(world, customer, at_ms))
    home = CITY_COUNTRY[world.c_city[customer]]
    by_card = events["entry"] >= 0
    return {
        "account_no": _words(names.account, customer),
        "customer_no": _words(names.customer, customer),
        "card_number": _words(names.card, np.where(by_card, customer, -1)),
        "issuer_country": _words(_COUNTRY_CODES, np.where(by_card, home, -1)),
        "other_account": _other_accounts(events["counterparty"], block),
        "device_id": _text(f"fp{block}-", events["device"]),
        **_contact_columns(block, *(np.where(typed, numbers, -1) for numbers in contact)),
    }


def _contact_columns(block: int, email: Ints, phone: Ints, address: Ints) -> dict[str, pa.Array]:
    """What payments and account events say of the person; null where negative."""
    return {
        "email": _text(f"p{block}.", email, suffix="@mail.example"),
        "phone": _text(f"+4930{block % 100:02d}", phone, 8),
        "address": _text("Main Street ", address),
    }


def _other_accounts(counterparty: Ints, block: int) -> pa.Array:
    """Accounts of this bank by their number, others by one of their own."""
    given = counterparty >= 0
    number = counterparty[given]
    here = number < OUTSIDE_ACCOUNTS
    own, other = _text(f"S{block}A", number % OUTSIDE_ACCOUNTS, 7), _text(f"X{block}-", number % OUTSIDE_ACCOUNTS)
    return _spread(pc.if_else(pa.array(here), own, other), given)


def _place_columns(names: Names, events: Events) -> dict[str, pa.Array]:
    """Where and how it was accepted."""
    return {
        "acceptor": _words(names.merchant, events["merchant"]),
        "category_code": _words(_CATEGORY_CODES, _CODE_OF_CATEGORY[events["category"].astype(np.int64) + 3]),
        "terminal": _text("T", events["terminal"], 8),
        "place_country": _words(_COUNTRY_CODES, events["country"]),
        "lat": _float(events["place"][:, 0]),
        "lon": _float(events["place"][:, 1]),
        "client_ip": _addresses(events["ip"]),
        "client_ip_country": _words(_COUNTRY_CODES, events["ip_country"]),
        "client_ip_proxy": pa.array(events["proxy"], mask=events["ip"] < 0),
        "entry": _words(list(ENTRIES), events["entry"]),
        "cvv": _words(list(RESULTS), events["cvv"]),
        "avs": _words(list(RESULTS), events["avs"]),
        "sca": _words(list(RESULTS), events["three_ds"]),
    }


def _mixed(numbers: Ints) -> Ints:
    """Each number's bits, well mixed (the finaliser of splitmix64), not negative: from which a device's parts are taken."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z >> np.uint64(2)).astype(np.int64)


def _fingerprint_columns(events: Events, start_ms: int) -> dict[str, pa.Array]:
    """What the device shows of itself: fixed by what it looks like, but for the browser, which is new each month, and the clock, which travels."""
    shown = events["looks"] >= 0
    bits = _mixed(events["looks"])
    family = np.where(events["looks"] % SLOTS == COMPUTER, 2, 0) + (bits & 1)
    month = (events["at_ms"] + start_ms - RELEASES_FROM_MS) // (28 * DAY_MS) - (bits >> 4) % 5 // 4  # every fifth is a month late
    browser = family * RELEASES + np.clip(month, 0, RELEASES - 1)
    return {
        "fp_os": _words(_SYSTEMS, np.where(shown, family * 3 + (bits >> 8) % 3, -1)),
        "fp_browser": _words(_BROWSERS, np.where(shown, browser, -1)),
        "fp_screen": _words(_SCREENS, np.where(shown, family * 5 + (bits >> 12) % 5, -1)),
        "fp_time_zone": _words(_ZONES, np.where(shown, events["zone"], -1)),
        "fp_language": _words(_LANGUAGES, np.where(shown, events["tongue"], -1)),
        "fp_hardware": _words(_HARDWARE, np.where(shown, family * 12 + (bits >> 20) % 12, -1)),
        "fp_emulator": pa.array(events["emulator"], mask=~shown),
    }


RELEASES_FROM_MS, RELEASES = 1_577_836_800_000, 400
"""Browsers count their versions from 2020 on, one every four weeks."""
_CATEGORY_CODES = [mcc_of(category) for category in range(-3, len(CATEGORIES)) if category != -1]
_CODE_OF_CATEGORY = np.concatenate([[0, 1, -1], np.arange(2, len(CATEGORIES) + 2)])
_COUNTRY_CODES = [c.code for c in COUNTRIES]
_ZONES = [f"{'UTC' if c.utc_offset_h == 0 else f'UTC{c.utc_offset_h:+d}'}/{c.code}" for c in COUNTRIES]
_LANGUAGES = [f"{'en' if c.code in ('GB', 'US', 'AU', 'ZA') else c.code.lower()}-{c.code}" for c in COUNTRIES]
_FAMILIES = (("iOS", "Safari"), ("Android", "Chrome Mobile"), ("Windows", "Chrome"), ("macOS", "Safari Desktop"))
"""In order: two of phones, two of computers."""
_SYSTEMS = [f"{system} {version}" for system, _ in _FAMILIES for version in (1, 2, 3)]
_BROWSERS = [f"{browser} {80 + release}" for _, browser in _FAMILIES for release in range(RELEASES)]
_SCREENS = [f"{system} {size}" for system, _ in _FAMILIES for size in ("S", "M", "L", "XL", "XXL")]
_HARDWARE = [f"{system} model {model}" for system, _ in _FAMILIES for model in range(12)]


def transactions_table(world: World, events: Events, start_ms: int, block: int) -> pa.Table:
    """The events, in the order in which they happened, as the bank would export them."""
    order = np.argsort(events["at_ms"], kind="stable")
    names = names_of(world, block)
    parts = [_transactions(world, names, events[order[at : at + PART]], at, start_ms, block) for at in range(0, len(order), PART)]
    return pa.concat_tables(parts)


def _transactions(world: World, names: Names, events: Events, first: int, start_ms: int, block: int) -> pa.Table:
    """One part of the export: so few rows that its arrays stay in the processor's cache."""
    session = events["session"]
    columns = {
        "reference": _text(f"S{block}-", np.arange(first, first + len(events)), 9),
        "booked_at": _moment(start_ms, events["at_ms"]),
        "type": _words([KIND_CODES[k] for k in KINDS], events["kind"]),
        **_money_columns(world, events),
        **_identity_columns(world, names, events, block),
        **_place_columns(names, events),
        **{name: _float(session[:, i]) for i, name in enumerate(("key_dwell", "key_flight", "pointer", "session_seconds"))},
        **_fingerprint_columns(events, start_ms),
        "declined": pa.array(events["declined"]),
        "is_fraud": pa.array(events["fraud"] > 0),
        "fraud_kind": _words(FRAUD_NAMES[1:], events["fraud"] - 1),
        "learned_at": _moment(start_ms, events["learned_ms"]),
    }
    return pa.table(columns)


def account_events_table(world: World, doings: Doings, start_ms: int, block: int) -> pa.Table:
    """What happened to the accounts besides payments, oldest first."""
    names = names_of(world, block)
    parts = [_account_events(names, doings[at : at + PART], at, start_ms, block) for at in range(0, max(len(doings), 1), PART)]
    return pa.concat_tables(parts)


def _account_events(names: Names, doings: Doings, first: int, start_ms: int, block: int) -> pa.Table:
    customer = doings["customer"].astype(np.int64)
    return pa.table(
        {
            "event": _text(f"E{block}-", np.arange(first, first + len(doings)), 9),
            "happened_at": _moment(start_ms, doings["at_ms"]),
            "what": _words([EVENT_CODES[w] for w in WHAT], doings["what"]),
            "account_no": _words(names.account, customer),
            "customer_no": _words(names.customer, customer),
            "device_id": _text(f"fp{block}-", doings["device"]),
            **_contact_columns(block, doings["email"], doings["phone"], doings["address"]),
            "other_account": _other_accounts(doings["counterparty"], block),
            "client_ip": _addresses(doings["ip"]),
            "client_ip_country": _words(_COUNTRY_CODES, doings["ip_country"]),
        }
    )


def attacks_table(events: Events, start_ms: int) -> pa.Table:
    """One row for each attack: its kind, its onset and its last payment, how many, the money lost (euro: what went out and was not declined),
    and when it was learned."""
    bad = events[events["fraud"] > 0]
    bad = bad[np.lexsort((bad["at_ms"], bad["attack"], bad["fraud"]))]
    of = bad["fraud"].astype(np.int64) * (1 << 32) + bad["attack"]
    first = np.flatnonzero(np.diff(of, prepend=-1))
    rows = np.diff(np.append(first, len(bad)))
    lost = np.where(bad["declined"] | np.isin(bad["kind"], _CREDIT_KINDS), 0.0, bad["amount"])
    sums = np.add.reduceat(lost, first) if len(bad) else lost
    return pa.table(
        {
            "fraud_kind": _words(FRAUD_NAMES[1:], bad["fraud"][first] - 1),
            "attack": bad["attack"][first],
            "onset_at": _moment(start_ms, bad["at_ms"][first]),
            "last_at": _moment(start_ms, bad["at_ms"][first + rows - 1]),
            "payments": rows,
            "lost_eur": _decimal(np.rint(sums * 100.0).astype(np.int64)),
            "learned_at": _moment(start_ms, bad["learned_ms"][first]),
        }
    )


def accounts_table(rng: np.random.Generator, world: World, start_ms: int, block: int) -> pa.Table:
    """Each account at the start: balance, limit, when it was opened, where its holder lives."""
    customer = np.arange(world.customers)
    home = CITY_COUNTRY[world.c_city]
    rate: Floats = PER_EURO[home]
    poor = rng.random(len(customer)) < 0.02
    balance = np.where(poor, 40.0, world.c_salary * rng.uniform(0.8, 5.0, len(customer))) * rate
    limit = np.where(poor, 0.0, np.round(world.c_salary * 2.0, -2)) * rate
    return pa.table(
        {
            "account_no": _text(f"S{block}A", customer, 7),
            "customer_no": _text(f"S{block}C", customer, 7),
            "ccy": _words([c.currency for c in COUNTRIES], home),
            "balance": _decimal(np.rint(balance * 100.0).astype(np.int64)),
            "credit_limit": _decimal(np.rint(limit * 100.0).astype(np.int64)),
            "opened_at": pa.array(np.maximum(start_ms - world.c_age_days * DAY_MS, 0), pa.timestamp("ms", tz="UTC")),
            "home_country": _words(_COUNTRY_CODES, home),
        }
    )
