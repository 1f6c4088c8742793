"""What a log row can hold: each fact of a transaction as one unsigned whole number, with its width. 0 is 'not given'."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from schemas.account import AccountEvent, AccountEventKind
from schemas.identity import hash32, hash64
from schemas.transaction import BehaviouralSession, Transaction, TransactionKind

DEGREE = 1 << 15
"""Steps a degree: a place is kept to 1/32768 degree, 3.4 m, which three bytes hold."""

KIND_CODES: dict[str, int] = {
    TransactionKind.CARD_PRESENT: 1,
    TransactionKind.ECOMMERCE: 2,
    TransactionKind.CONTACTLESS: 3,
    TransactionKind.ATM: 4,
    TransactionKind.MOTO: 5,
    TransactionKind.RECURRING: 6,
    TransactionKind.TRANSFER_IN: 7,
    TransactionKind.TRANSFER_OUT: 8,
    TransactionKind.CASH_IN: 9,
    TransactionKind.CASH_OUT: 10,
    TransactionKind.REFUND: 11,
}
"""A transaction kind's code in a row. Codes stay: they are in stored bytes. 12 to 31 are kept for kinds to come."""

DECLINED = 32
"""The kind of the row that says: this transaction was declined or blocked."""

EVENT_CODES: dict[str, int] = {
    AccountEventKind.LOGIN: 40,
    AccountEventKind.LOGIN_FAILED: 41,
    AccountEventKind.CREDENTIAL_CHANGED: 42,
    AccountEventKind.EMAIL_CHANGED: 43,
    AccountEventKind.PHONE_CHANGED: 44,
    AccountEventKind.ADDRESS_CHANGED: 45,
    AccountEventKind.DEVICE_CHANGED: 46,
    AccountEventKind.BENEFICIARY_ADDED: 47,
    AccountEventKind.ENROLLED: 48,
    AccountEventKind.KYC_PASSED: 49,
    AccountEventKind.KYC_FAILED: 50,
}
"""An account event kind's code in a row. All codes are below 63, so that a set of kinds is one 64-bit mask."""

_U64 = (1 << 64) - 1


def derived_hash(hash_: int, of: int) -> int:
    """The hash of a row that is not the transaction itself, from its hash and its kind's code: splitmix64's finalizer, never 0.

    Not a hash of a text that a host could send as a transaction id.
    """
    z = (hash_ + of * 0x9E3779B97F4A7C15) & _U64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _U64
    return (z ^ (z >> 31)) or 1


@functools.lru_cache(maxsize=1 << 16)
def short_hash(text: str | None) -> int:
    """hash32 of an id or token, 0 if it was not given."""
    return 0 if text is None else hash32(text)


def country_code(country: str | None) -> int:
    """ISO 3166-1 alpha-2 as ten bits, five a letter with A = 1; 0 if not given."""
    return 0 if country is None else (ord(country[0]) - 64) << 5 | (ord(country[1]) - 64)


def mcc_code(mcc: str | None) -> int:
    """The merchant category plus one; 0 if not given."""
    return 0 if mcc is None else int(mcc) + 1


def latitude_code(degrees: float | None) -> int:
    """1/32768 degrees north of the South Pole, plus one, halves to even; 0 if not given."""
    return 0 if degrees is None else round((degrees + 90.0) * DEGREE) + 1


def longitude_code(degrees: float | None) -> int:
    """1/32768 degrees east of the antimeridian, plus one, halves to even; 0 if not given."""
    return 0 if degrees is None else round((degrees + 180.0) * DEGREE) + 1


class Fact(NamedTuple):
    """One row of the table: its name, its bytes in a log, whether 0 means 'not given', and how a transaction gives it."""

    name: str
    width: int
    zero_is_missing: bool
    of: Callable[[Transaction], int]


FACTS: tuple[Fact, ...] = (
    Fact("hash", 8, False, lambda t: hash64(t.transaction_id)),
    Fact("at_ms", 6, False, lambda t: t.at_ms),
    Fact("kind", 1, False, lambda t: KIND_CODES[t.kind]),
    Fact("amount_minor", 7, False, lambda t: t.own_amount_minor),
    Fact("merchant_id", 4, True, lambda t: short_hash(t.merchant_id)),
    Fact("terminal_id", 4, True, lambda t: short_hash(t.terminal_id)),
    Fact("card", 4, True, lambda t: short_hash(t.card_token)),
    Fact("account", 4, True, lambda t: short_hash(t.account_id)),
    Fact("device", 4, True, lambda t: short_hash(t.device_token)),
    Fact("customer", 4, True, lambda t: short_hash(t.customer_id)),
    Fact("counterparty", 4, True, lambda t: short_hash(t.counterparty_account_id)),
    Fact("mcc", 2, True, lambda t: mcc_code(t.mcc)),
    Fact("country", 2, True, lambda t: country_code(t.country)),
    Fact("ip_country", 2, True, lambda t: country_code(t.ip_country)),
    Fact("card_country", 2, True, lambda t: country_code(t.card_country)),
    Fact("latitude", 3, True, lambda t: latitude_code(t.latitude)),
    Fact("longitude", 3, True, lambda t: longitude_code(t.longitude)),
)
"""Every fact. The first three are in every row, in this order. Adding one is one line here."""

FACT_NUMBER: dict[str, int] = {fact.name: number for number, fact in enumerate(FACTS)}
HASH, AT_MS, KIND = 0, 1, 2

_NAN = float("nan")


class Measure(NamedTuple):
    """A number of the transaction alone that no log holds: read from its behavioural session, NaN if it was not given."""

    name: str
    of: Callable[[BehaviouralSession], float | None]


MEASURES: tuple[Measure, ...] = (
    Measure("keystroke_dwell_ms", lambda s: s.keystroke_dwell_ms),
    Measure("keystroke_flight_ms", lambda s: s.keystroke_flight_ms),
    Measure("pointer_speed_px_s", lambda s: s.pointer_speed_px_s),
    Measure("session_age_s", lambda s: s.session_age_s),
)
"""The behavioural session, milliseconds, pixels a second and seconds."""

MEASURE_NUMBER: dict[str, int] = {measure.name: number for number, measure in enumerate(MEASURES)}

_FACTS_OF = tuple(fact.of for fact in FACTS)
_MEASURES_OF = tuple(measure.of for measure in MEASURES)
_NO_MEASURES = (_NAN,) * len(MEASURES)


def facts_of(txn: Transaction) -> tuple[int, ...]:
    """The transaction's facts, in the order of FACTS."""
    return tuple([of(txn) for of in _FACTS_OF])


def measures_of(txn: Transaction) -> tuple[float, ...]:
    """The transaction's own measures, in the order of MEASURES; NaN where not given."""
    if txn.session is None:
        return _NO_MEASURES
    return tuple([_NAN if (value := of(txn.session)) is None else float(value) for of in _MEASURES_OF])


def declined_facts(facts: tuple[int, ...]) -> tuple[int, ...]:
    """The facts of the row that says that the transaction with these facts was declined: same time, same contents, own hash."""
    return (derived_hash(facts[HASH], DECLINED), facts[AT_MS], DECLINED, *facts[3:])


def event_facts(event: AccountEvent) -> tuple[int, ...]:
    """The facts of an account event's row: what it shares with a transaction, the rest not given."""
    code = EVENT_CODES[event.kind]
    given = {
        "hash": derived_hash(hash64(event.event_id), code),
        "at_ms": event.at_ms,
        "kind": code,
        "account": short_hash(event.account_id),
        "device": short_hash(event.device_token),
        "customer": short_hash(event.customer_id),
        "counterparty": short_hash(event.counterparty_account_id),
        "ip_country": country_code(event.ip_country),
    }
    return tuple(given.get(fact.name, 0) for fact in FACTS)


class Entity(NamedTuple):
    """A thing that has a memory, and the field in which a transaction names it (None: this transaction has no such thing)."""

    name: str
    field: str


CARD = Entity("card", "card_token")
ACCOUNT = Entity("account", "account_id")
DEVICE = Entity("device", "device_token")
CUSTOMER = Entity("customer", "customer_id")
EMAIL = Entity("email", "email_token")
PHONE = Entity("phone", "phone_token")
COUNTERPARTY = Entity("counterparty", "counterparty_account_id")

ENTITIES: tuple[Entity, ...] = (CARD, ACCOUNT, DEVICE, CUSTOMER, EMAIL, PHONE, COUNTERPARTY)
"""Every entity that may have a log, in the order in which logs are numbered. A log exists if a row of the catalogue reads it."""

PROFILES: dict[str, tuple[str, ...]] = {
    "account": ("opened_at_ms", "home_country", "credit_limit_minor", "cluster_size", "cluster_fraud_share", "shared_identities")
}
"""What is known of an entity and changes slowly: the columns of its profile. Countries as `country_code`."""
