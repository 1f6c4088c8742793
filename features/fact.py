"""What a log row can hold: each fact of a transaction as one unsigned whole number, with its width. 0 is 'not given'."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from features import said
from features.kernel import Array
from schemas.account import AccountEvent, AccountEventKind
from schemas.avro import messagepack_of
from schemas.identity import hash32
from schemas.transaction import BehaviouralSession, Fingerprint, Transaction, TransactionKind

DEGREE = 91
"""Steps a degree: a place is kept to 1/91 degree, 1.2 km, which 14 and 15 bits hold. Travel and habits need no more."""
AT_MS_MAX = (1 << 42) - 1
"""The latest event time that a row can say, in the year 2109; later ones count as it."""
AMOUNT_MAX = (1 << 40) - 1
"""The largest amount that features know, 10,995,116,277.75 in a currency of cents; a larger one counts as it, in rows and by itself."""
SHORT_MAX = (1 << 16) - 1
"""The largest keystroke time (in tenths of a millisecond) and pointer speed; a larger one counts as it."""

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

FRAUD = 33
"""The kind of the row that says: this transaction is now known to have been fraud."""

WITHDRAWN = 34
"""The kind of the row that takes a row of known fraud back, in tallies alone: it has that row's other facts, and counts once less what it counts."""

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

_U64, _U32 = (1 << 64) - 1, (1 << 32) - 1


def row_identity(id_: str, at_ms: int) -> int:
    """What tells a row from every other of its log, and is never 0: the id's 32-bit hash, and above it the low half of the event time.

    Two different ids are taken for one only if they are of one millisecond (or of two that are 49.7 days apart to the
    millisecond) *and* their hashes agree: one pair in 2^32 of those. A log of 640 rows that all are of one millisecond, the worst there
    is, has such a pair with probability 640^2 / 2^33 = 5e-5. 64 bits of hash alone would take four bytes more.
    An id that comes again with another time is another row: what is decided of it is the first answer or a conflict, but it was tried.
    """
    return min(at_ms, AT_MS_MAX) << 32 & _U64 | hash32(id_)


def derived_identity(identity: int, of: int) -> int:
    """The identity of a row that is not the transaction itself, from its identity and its kind's code, at the same time; never 0.

    Its hash is splitmix64's finalizer, and so not that of a text that a host could send as a transaction id.
    """
    z = (identity + of * 0x9E3779B97F4A7C15) & _U64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _U64
    return identity & ~_U32 | ((z ^ (z >> 31)) & _U32 or 1)


@functools.lru_cache(maxsize=1 << 16)
def short_hash(text: str | None, bits: int = 32) -> int:
    """The low bits of hash32 of an id or token, never 0 if it was given; 0 if it was not."""
    return 0 if text is None else hash32(text) & (1 << bits) - 1 or 1


@functools.cache
def country_code(country: str | None) -> int:
    """ISO 3166-1 alpha-2 as ten bits, five a letter with A = 1; 0 if not given."""
    return 0 if country is None else (ord(country[0]) - 64) << 5 | (ord(country[1]) - 64)


@functools.cache
def mcc_code(mcc: str | None) -> int:
    """The merchant category plus one; 0 if not given."""
    return 0 if mcc is None else int(mcc) + 1


PARTS = ("os", "browser", "screen", "time_zone", "language", "hardware")
"""The parts of a fingerprint, in the order of their bytes, lowest first."""


def part_hash(text: str | None) -> int:
    """One part of a fingerprint as 1 to 255; 0 if not given. Two different parts are alike once in 255: that change is not seen."""
    return 0 if text is None else hash32(text) % 255 + 1


class Rule(NamedTuple):
    """How compiled code finds a fact: the rule's name in `features/said.py`, the transaction's field that gives it (`session.keystroke_dwell_ms`:
    one of its own), and what else the rule needs: fields or numbers."""

    how: int
    field: str
    first: str | int = 0
    second: str | int = 0


class Fact(NamedTuple):
    """One row of the table: its name, its bits in a log, whether 0 means 'not given', and how a transaction gives it (0 if it does not)."""

    name: str
    bits: int
    zero_is_missing: bool
    rule: Rule


FACTS: tuple[Fact, ...] = (
    Fact("hash", 32, False, Rule(said.IDENTITY, "transaction_id", "at_ms", AT_MS_MAX)),
    Fact("at_ms", 42, False, Rule(said.TIME, "at_ms", AT_MS_MAX)),
    Fact("kind", 6, False, Rule(said.WORD, "kind")),
    Fact("amount_minor", 40, False, Rule(said.AMOUNT, "amount_minor", AMOUNT_MAX, "billing_amount_minor")),
    Fact("merchant_id", 20, True, Rule(said.HASHED, "merchant_id", 20)),
    Fact("terminal_id", 20, True, Rule(said.HASHED, "terminal_id", 20)),
    Fact("card", 24, True, Rule(said.HASHED, "card_token", 24)),
    Fact("account", 32, True, Rule(said.HASHED, "account_id", 32)),
    Fact("device", 20, True, Rule(said.HASHED, "device_token", 20)),
    Fact("customer", 24, True, Rule(said.HASHED, "customer_id", 24)),
    Fact("counterparty", 32, True, Rule(said.HASHED, "counterparty_account_id", 32)),
    Fact("mcc", 14, True, Rule(said.DIGITS, "mcc")),
    Fact("country", 10, True, Rule(said.LETTERS, "country")),
    Fact("ip_country", 10, True, Rule(said.LETTERS, "ip_country")),
    Fact("card_country", 10, True, Rule(said.LETTERS, "card_country")),
    Fact("latitude", 14, True, Rule(said.DEGREES, "latitude", 90, DEGREE)),
    Fact("longitude", 15, True, Rule(said.DEGREES, "longitude", 180, DEGREE)),
    Fact("fingerprint", 48, True, Rule(said.PARTS, f"fingerprint.{PARTS[0]}", len(PARTS))),
    Fact("emulator", 2, True, Rule(said.ANSWER, "fingerprint.emulator")),
    Fact("proxy", 2, True, Rule(said.ANSWER, "ip_proxy")),
    Fact("dwell", 16, True, Rule(said.STEPS, "session.keystroke_dwell_ms", 10, SHORT_MAX)),
    Fact("flight", 16, True, Rule(said.STEPS, "session.keystroke_flight_ms", 10, SHORT_MAX)),
    Fact("pointer", 16, True, Rule(said.STEPS, "session.pointer_speed_px_s", 1, SHORT_MAX)),
)
"""Every fact. The first three are in every row, in this order. Adding one is one line here.

`hash` is the row's identity, of which a row stores 32 bits beside the time. Ids are hashes as short as their use in one log of
at most 640 rows allows: with 20 bits, a value that is new is taken for one of 100 others once in 10,000 times, and a count of 100
different ones is one too low once in 200 logs; with 32 bits (accounts, which two logs compare) 4,000 times more seldom.
Keystrokes are in tenths of a millisecond, the pointer in pixels a second.
"""

FACT_NUMBER: dict[str, int] = {fact.name: number for number, fact in enumerate(FACTS)}
HASH, AT_MS, KIND = 0, 1, 2

MEASURES: tuple[str, ...] = ("keystroke_dwell_ms", "keystroke_flight_ms", "pointer_speed_px_s", "session_age_s")
"""The numbers of the transaction alone that no log holds, of its behavioural session: milliseconds, pixels a second and seconds; NaN if not given."""

MEASURE_NUMBER: dict[str, int] = {name: number for number, name in enumerate(MEASURES)}
NO_MEASURES = (float("nan"),) * len(MEASURES)
"""What a transaction without a behavioural session says."""
OWN = struct.Struct(f"<Q{len(FACTS) - 1}q{len(MEASURES)}d")
"""A transaction's facts and measures, as the kernels read them."""


class Saying(NamedTuple):
    """How transactions say something, as `said.said` reads it."""

    fields: Array
    rules: Array
    measures: Array
    words: Array
    texts: Array


def _leaves() -> tuple[list[tuple[int, int]], list[str]]:
    """The fields of a transaction as `said.said` goes through them, and the names of its leaves."""
    fields, leaves = list[tuple[int, int]](), list[str]()
    records = {"session": BehaviouralSession, "fingerprint": Fingerprint}
    for name in Transaction.__struct_fields__:
        inside = records[name].__struct_fields__ if name in records else ()
        fields += [(len(msgspec.msgpack.encode(name)), len(inside)), *((len(msgspec.msgpack.encode(each)), 0) for each in inside)]
        leaves += [f"{name}.{each}" for each in inside] or [name]
    return fields, leaves


_FIELDS, _LEAVES = _leaves()
LEAVES = {name: number for number, name in enumerate(_LEAVES)}
"""The number of each thing that a transaction says: of its fields, and of those of the records in them."""


def _saying() -> Saying:
    def number(value: str | int) -> int:
        return LEAVES[value] if isinstance(value, str) else value

    first = LEAVES[f"fingerprint.{PARTS[0]}"]
    assert [LEAVES[f"fingerprint.{part}"] for part in PARTS] == list(range(first, first + len(PARTS))), "parts are leaves side by side"
    kinds = [(kind.encode(), code) for kind, code in KIND_CODES.items()]
    ends = list(accumulate(len(kind) for kind, _ in kinds))
    return Saying(
        np.array(_FIELDS),
        np.array([(rule.how, LEAVES[rule.field], number(rule.first), number(rule.second)) for _, _, _, rule in FACTS]),
        np.array([LEAVES[f"session.{name}"] for name in MEASURES]),
        np.array([(code, end - len(kind), len(kind)) for (kind, code), end in zip(kinds, ends, strict=True)]),
        np.frombuffer(b"".join(kind for kind, _ in kinds), np.uint8),
    )


SAYING = _saying()
_NO_TOKENS, _NO_SPANS = np.empty(0, np.int64), np.empty((0, 0, 2), np.int64)


def owns_of(txns: Sequence[Transaction]) -> Array:
    """uint8[n * OWN.size]: each transaction's facts and measures."""
    owns = np.empty(len(txns) * OWN.size, np.uint8)
    said.said(*SAYING, np.frombuffer(messagepack_of(txns), np.uint8), _NO_TOKENS, owns, OWN.size, _NO_SPANS)
    return owns


def facts_in(own: bytes) -> tuple[int, ...]:
    """The facts of one transaction, in the order of FACTS, of what `owns_of` made of it."""
    return OWN.unpack(own)[: len(FACTS)]


def facts_of(txn: Transaction) -> tuple[int, ...]:
    """The transaction's facts, in the order of FACTS."""
    return facts_in(owns_of((txn,)).tobytes())


def measures_of(txn: Transaction) -> tuple[float, ...]:
    """The transaction's own measures, in the order of MEASURES; NaN where not given."""
    return OWN.unpack(owns_of((txn,)).tobytes())[len(FACTS) :]


def declined_facts(facts: tuple[int, ...]) -> tuple[int, ...]:
    """The facts of the row that says that the transaction with these facts was declined: same time, same contents, own hash."""
    return (derived_identity(facts[HASH], DECLINED), facts[AT_MS], DECLINED, *facts[3:])


def event_facts(event: AccountEvent) -> tuple[int, ...]:
    """The facts of an account event's row: what it shares with a transaction, the rest not given."""
    code = EVENT_CODES[event.kind]
    given = {
        "hash": derived_identity(row_identity(event.event_id, event.at_ms), code),
        "at_ms": min(event.at_ms, AT_MS_MAX),
        "kind": code,
        "account": short_hash(event.account_id),
        "device": short_hash(event.device_token, 20),
        "customer": short_hash(event.customer_id, 24),
        "counterparty": short_hash(event.counterparty_account_id),
        "ip_country": country_code(event.ip_country),
    }
    return tuple(given.get(fact.name, 0) for fact in FACTS)


class Entity(NamedTuple):
    """A thing that has a memory, and the field in which a transaction names it (None: this transaction has no such thing).

    `log_of` says whose log it is: another entity's, if the transaction only looks into that one and leaves no row there. `memory` is
    the kind that it has unless a catalogue says otherwise: a log, or a tally where it is too busy for one.
    """

    name: str
    field: str
    log_of: str = ""
    memory: Literal["log", "tally"] = "log"


CARD = Entity("card", "card_token")
ACCOUNT = Entity("account", "account_id")
DEVICE = Entity("device", "device_token")
CUSTOMER = Entity("customer", "customer_id")
EMAIL = Entity("email", "email_token")
PHONE = Entity("phone", "phone_token")
ADDRESS = Entity("address", "address_token")
COUNTERPARTY = Entity("counterparty", "counterparty_account_id")
PAYEE = Entity("payee", "counterparty_account_id", "account")
"""The other account of a transfer, as its own payments tell of it: its account log, read and not written."""
MERCHANT = Entity("merchant", "merchant_id", memory="tally")
TERMINAL = Entity("terminal", "terminal_id", memory="tally")
IP = Entity("ip", "ip", memory="tally")
BIN = Entity("bin", "card_bin", memory="tally")
COUNTRY = Entity("country", "country", memory="tally")

ENTITIES: tuple[Entity, ...] = (
    *(CARD, ACCOUNT, DEVICE, CUSTOMER, EMAIL, PHONE, ADDRESS, COUNTERPARTY, PAYEE),
    *(MERCHANT, TERMINAL, IP, BIN, COUNTRY),
)
"""Every entity that may have a memory, in the order in which memories are numbered. One exists if a row of the catalogue reads it."""

PROFILES: dict[str, tuple[str, ...]] = {
    "account": ("opened_at_ms", "home_country", "credit_limit_minor", "cluster_size", "cluster_fraud_share", "shared_identities")
}
"""What is known of an entity and changes slowly: the columns of its profile. Countries as `country_code`."""
