"""AccountState (what the bank's books say of an account), AccountEvent (what happened to it besides payments), and what became of both."""

from __future__ import annotations

from typing import Annotated

from schemas.money import EXPONENTS
from schemas.record import Country, Currency, EpochMs, Id, MinorUnits, Record, SignedMinorUnits, Token, Word, doc
from schemas.transaction import Attribute, IpAddress


class AccountStatus(Word):
    """Whether the account may be debited."""

    OPEN = "open"
    FROZEN = "frozen"
    DORMANT = "dormant"
    CLOSED = "closed"


class AccountState(Record, frozen=True, kw_only=True):
    """An account's balance, limit and status as its owner's books say; the newest `as_of_ms` stands."""

    account_id: Annotated[Id, doc("the account: key of the topic")]
    currency: Annotated[Currency, doc("the account's currency, ISO 4217")]
    balance_minor: Annotated[SignedMinorUnits, doc("booked balance, minor units, negative if overdrawn; without open holds")]
    credit_limit_minor: Annotated[MinorUnits, doc("how far below zero it may go, minor units")] = 0
    status: Annotated[AccountStatus, doc("whether it may be debited")] = AccountStatus.OPEN
    as_of_ms: Annotated[EpochMs, doc("when the books said so, milliseconds since 1970-01-01 UTC")]
    opened_at_ms: Annotated[EpochMs | None, doc("when the account was opened, milliseconds since 1970-01-01 UTC")] = None
    home_country: Annotated[Country | None, doc("where its holder lives, ISO 3166-1 alpha-2")] = None

    def __post_init__(self) -> None:
        """ValueError for a currency that nobody has: no payment would ever be in it."""
        if self.currency not in EXPONENTS:
            raise ValueError(f"currency: unknown ISO 4217 currency {self.currency!r}")


class AccountEventKind(Word):
    """What happened."""

    LOGIN = "login"
    LOGIN_FAILED = "login_failed"
    CREDENTIAL_CHANGED = "credential_changed"
    EMAIL_CHANGED = "email_changed"
    PHONE_CHANGED = "phone_changed"
    ADDRESS_CHANGED = "address_changed"
    DEVICE_CHANGED = "device_changed"
    BENEFICIARY_ADDED = "beneficiary_added"
    ENROLLED = "enrolled"
    KYC_PASSED = "kyc_passed"
    KYC_FAILED = "kyc_failed"


class AccountEvent(Record, frozen=True, kw_only=True):
    """Something that happened to an account besides a payment."""

    event_id: Annotated[Id, doc("the sender's id: the first record with it stands")]
    account_id: Annotated[Id, doc("the account: key of the topic")]
    kind: Annotated[AccountEventKind, doc("what happened")]
    at_ms: Annotated[EpochMs, doc("event time, milliseconds since 1970-01-01 UTC")]
    customer_id: Annotated[Id | None, doc("the customer who owns the account")] = None
    device_token: Annotated[Token | None, doc("keyed token of the device it was done with")] = None
    email_token: Annotated[Token | None, doc("keyed token of the (new) e-mail address")] = None
    phone_token: Annotated[Token | None, doc("keyed token of the (new) phone number")] = None
    address_token: Annotated[Token | None, doc("keyed token of the (new) address")] = None
    counterparty_account_id: Annotated[Id | None, doc("the beneficiary that was added")] = None
    ip: Annotated[IpAddress | None, doc("IP address it was done from")] = None
    ip_country: Annotated[Country | None, doc("country of that address, ISO 3166-1 alpha-2")] = None
    attributes: Annotated[tuple[Attribute, ...], doc("what this record did not foresee")] = ()


class RememberedEvent(Record, frozen=True, kw_only=True):
    """An account event and where its row lies in the logs: with the decisions' positions, the order in which everything arrived."""

    remembered_id: Annotated[Id, doc("derived from the event's id, kind and time: what tells its row from every other")]
    account_id: Annotated[Id, doc("the account: key of the topic")]
    remembered_at_ms: Annotated[EpochMs, doc("when it was put into the logs, milliseconds since 1970-01-01 UTC")]
    catalogue_id: Annotated[str, doc("the feature catalogue whose logs `positions` counts")]
    positions: Annotated[tuple[int, ...], doc("rows before it in each entity log, in the order of the catalogue's logs; -1: it has no row there")]
    source_topic: Annotated[str, doc("where the event came from: a topic's name")]
    source_partition: Annotated[int, doc("its partition")]
    source_offset: Annotated[int, doc("its offset")]
    event: Annotated[AccountEvent, doc("the event itself")]


class ProfileValue(Record, frozen=True, kw_only=True):
    """One value that a job of ours made known of an entity, for instance the size of an account's cluster."""

    value_id: Annotated[Id, doc("derived from kind, token and column: key of the topic, so that the newest value of each stays")]
    kind: Annotated[str, doc("the entity's kind, for example `account`")]
    token: Annotated[Token, doc("which entity: its id or token")]
    column: Annotated[str, doc("which column of its profile")]
    value: Annotated[float, doc("the value, in the column's unit")]
    known_at_ms: Annotated[EpochMs, doc("since when it is known, milliseconds since 1970-01-01 UTC")]
