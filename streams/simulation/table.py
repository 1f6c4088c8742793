"""The simulated bank's export: events become Arrow columns in a layout of their own, with the mapping file that explains it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.money import EXPONENTS
from streams.simulation.events import ENTRIES, KINDS, OUTSIDE_ACCOUNTS, RESULTS, Events, mcc_of
from streams.simulation.fraud import FRAUD_NAMES
from streams.simulation.world import CATEGORIES, CITY_COUNTRY, COUNTRIES, DAY_MS, PER_EURO, Floats, Ints, World

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
entry_mode = "entry"
cvv_result = "cvv"
avs_result = "avs"
three_ds_result = "sca"
session.keystroke_dwell_ms = "key_dwell"
session.keystroke_flight_ms = "key_flight"
session.pointer_speed_px_s = "pointer"
session.session_age_s = "session_seconds"

[tokens]
card_token = "card_number"
device_token = "fingerprint"
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

[label]
column = "is_fraud"
values = ["true"]
kind_column = "fraud_kind"
learned_at_column = "learned_at"
delay = "14d"
source = "chargeback"
"""


def _text(prefix: str, numbers: Ints, width: int = 0) -> pa.Array:
    """`prefix` and the number, padded with zeros; null where the number is negative."""
    digits = pa.array(numbers, mask=numbers < 0).cast(pa.string())
    return pc.binary_join_element_wise(prefix, pc.utf8_lpad(digits, width, "0") if width else digits, "")


def _words(words: list[str], codes: Ints) -> pa.Array:
    """The word of each code; null where the code is negative."""
    index = pa.array(codes.astype(np.int32), mask=codes < 0)
    return pc.take(pa.array([w or None for w in words]), index)


def _decimal(cents: Ints, missing: Any = None) -> pa.Array:
    """Decimals with two digits from whole hundredths, without a detour through floats."""
    halves = np.empty((len(cents), 2), np.int64)
    halves[:, 0], halves[:, 1] = cents, cents >> 63
    whole = pa.Array.from_buffers(pa.decimal128(18, 2), len(cents), [None, pa.py_buffer(halves)])
    return whole if missing is None else pc.if_else(pa.array(missing), pa.scalar(None, whole.type), whole)


def _card_numbers(customers: int, block: int) -> list[str]:
    """A card number of sixteen digits for each customer, with its check digit (ISO/IEC 7812-1); 500 customers share a BIN."""
    numbers = []
    for customer in range(customers):
        digits = f"{424200 + customer // 500 % 90:06d}{block % 1000:03d}{customer % 1_000_000:06d}"
        doubled = [int(d) * (2 - i % 2) for i, d in enumerate(digits)]
        numbers.append(digits + str(-sum(d // 10 + d % 10 for d in doubled) % 10))
    return numbers


def _addresses(numbers: Ints) -> pa.Array:
    """IP addresses as text; null where negative."""
    value = numbers + (11 << 24)
    octets = [pa.array((value >> shift) & 255).cast(pa.string()) for shift in (24, 16, 8, 0)]
    return pc.if_else(pa.array(numbers < 0), pa.scalar(None, pa.string()), pc.binary_join_element_wise(*octets, "."))


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


def _identity_columns(world: World, events: Events, block: int) -> dict[str, pa.Array]:
    """Who pays, with what: cards only where a card is used, contact data only where a device is."""
    customer = events["customer"].astype(np.int64)
    by_card = events["entry"] >= 0
    typed = events["device"] >= 0
    ring = world.c_ring[customer]
    shared = np.where(ring >= 0, (1 << 41) + ring, customer)
    email = np.where(events["email"] >= 0, events["email"], customer)
    country = [c.code for c in COUNTRIES]
    home = CITY_COUNTRY[world.c_city[customer]]
    return {
        "account_no": _text(f"S{block}A", customer, 7),
        "customer_no": _text(f"S{block}C", customer, 7),
        "card_number": _words(_card_numbers(world.customers, block), np.where(by_card, customer, -1)),
        "issuer_country": _words(country, np.where(by_card, home, -1)),
        "fingerprint": _text(f"fp{block}-", np.where(typed, events["device"], -1)),
        "email": pc.binary_join_element_wise(_text(f"p{block}.", np.where(typed, email, -1)), "mail.example", "@"),
        "phone": _text(f"+4930{block % 100:02d}", np.where(typed, shared, -1), 8),
        "address": _text("Main Street ", np.where(typed, shared, -1)),
        "other_account": pc.coalesce(
            _text(f"S{block}A", np.where(events["counterparty"] < OUTSIDE_ACCOUNTS, events["counterparty"], -1), 7),
            _text(f"X{block}-", np.where(events["counterparty"] >= OUTSIDE_ACCOUNTS, events["counterparty"] - OUTSIDE_ACCOUNTS, -1)),
        ),
    }


def _place_columns(events: Events) -> dict[str, pa.Array]:
    """Where and how it was accepted."""
    categories = [mcc_of(c) for c in range(-3, len(CATEGORIES))]
    country = [c.code for c in COUNTRIES]
    place = np.where(events["city"] >= 0, CITY_COUNTRY[events["city"]], -1)
    return {
        "acceptor": _text("M", events["merchant"], 6),
        "category_code": _words(categories, events["category"].astype(np.int64) + 3),
        "terminal": _text("T", events["terminal"], 8),
        "place_country": _words(country, place),
        "lat": _float(events["place"][:, 0]),
        "lon": _float(events["place"][:, 1]),
        "client_ip": _addresses(events["ip"]),
        "client_ip_country": _words(country, events["ip_country"]),
        "entry": _words(list(ENTRIES), events["entry"]),
        "cvv": _words(list(RESULTS), events["cvv"]),
        "avs": _words(list(RESULTS), events["avs"]),
        "sca": _words(list(RESULTS), events["three_ds"]),
    }


def transactions_table(world: World, events: Events, start_ms: int, block: int) -> pa.Table:
    """The events, in the order in which they happened, as the bank would export them."""
    events = events[np.argsort(events["at_ms"], kind="stable")]
    session = events["session"]
    columns = {
        "reference": _text(f"S{block}-", np.arange(len(events)), 9),
        "booked_at": _moment(start_ms, events["at_ms"]),
        "type": _words([KIND_CODES[k] for k in KINDS], events["kind"]),
        **_money_columns(world, events),
        **_identity_columns(world, events, block),
        **_place_columns(events),
        **{name: _float(session[:, i]) for i, name in enumerate(("key_dwell", "key_flight", "pointer", "session_seconds"))},
        "declined": pa.array(events["declined"]),
        "is_fraud": pa.array(events["fraud"] > 0),
        "fraud_kind": _words(list(FRAUD_NAMES), np.where(events["fraud"] > 0, events["fraud"], -1)),
        "learned_at": _moment(start_ms, events["learned_ms"]),
    }
    return pa.table(columns)


def accounts_table(rng: np.random.Generator, world: World, start_ms: int, block: int) -> pa.Table:
    """Each account at the start: balance, limit, when it was opened, where its holder lives."""
    customer = np.arange(world.customers)
    home = CITY_COUNTRY[world.c_city]
    rate: Floats = PER_EURO[home]
    age_days = np.where(world.c_ring >= 0, rng.integers(5, 60, len(customer)), rng.integers(90, 6000, len(customer)))
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
            "opened_at": pa.array(start_ms - age_days * DAY_MS, pa.timestamp("ms", tz="UTC")),
            "home_country": _words([c.code for c in COUNTRIES], home),
        }
    )
