"""Controls: what an account's owner or the bank forbids a card or an account, whatever its balance."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.record import Country, EpochMs, Id, MinorUnits, Record, Token, Word, doc, like

Categories = Annotated[str, like("[0-9]{4}(-[0-9]{4})?")]
Count = Annotated[int, Meta(ge=0, le=2**31)]


class Usability(Word):
    """Whether a card or an account may be used."""

    ACTIVE = "active"
    FROZEN = "frozen"
    DORMANT = "dormant"
    CLOSED = "closed"


class Period(Word):
    """What a limit counts: one transaction, or all of a calendar day, a week from Monday or a month, in UTC."""

    TRANSACTION = "transaction"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class Limit(Record, frozen=True, kw_only=True):
    """How much, or how often."""

    period: Annotated[Period, doc("what it counts")]
    amount_minor: Annotated[MinorUnits | None, doc("at most so much in the period, minor units of the account's currency; null: no such limit")] = (
        None
    )
    count: Annotated[Count | None, doc("at most so many in the period; null: no such limit; nothing for one transaction")] = None


class Controls(Record, frozen=True, kw_only=True):
    """All controls of one card or account; the newest `at_ms` stands, whole."""

    controls_id: Annotated[Id, doc("derived from account and card: key of the topic, so that the newest of each stays")]
    account_id: Annotated[Id, doc("the account")]
    card_token: Annotated[Token | None, doc("keyed token of the card; null: the controls are the account's")] = None
    status: Annotated[Usability, doc("whether it may be used")] = Usability.ACTIVE
    limits: Annotated[tuple[Limit, ...], doc("limits in money and number")] = ()
    categories_allowed: Annotated[tuple[Categories, ...], doc("merchant category codes or ranges of them that alone may be paid; empty: all")] = ()
    categories_blocked: Annotated[tuple[Categories, ...], doc("merchant category codes or ranges of them that may not be paid")] = ()
    countries_allowed: Annotated[tuple[Country, ...], doc("countries that alone may be paid in, ISO 3166-1 alpha-2; empty: all")] = ()
    countries_blocked: Annotated[tuple[Country, ...], doc("countries that may not be paid in, ISO 3166-1 alpha-2")] = ()
    ecommerce: Annotated[bool, doc("whether it may be used in e-commerce")] = True
    atm: Annotated[bool, doc("whether it may be used at cash machines")] = True
    contactless: Annotated[bool, doc("whether it may be used contactless")] = True
    counted_since_ms: Annotated[EpochMs, doc("from when on limits count what is spent, milliseconds since 1970-01-01 UTC")]
    at_ms: Annotated[EpochMs, doc("when it was said, milliseconds since 1970-01-01 UTC")]

    @property
    def counts(self) -> bool:
        """Whether it has a limit that spans transactions."""
        return any(limit.period is not Period.TRANSACTION for limit in self.limits)
