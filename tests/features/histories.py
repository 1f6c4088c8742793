"""Histories for hypothesis: few entities, times on the edges of windows, duplicates, late events, equal milliseconds, reorderings."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from past_oracle import Arrival

from schemas.account import AccountEvent, AccountEventKind
from schemas.transaction import BehaviouralSession, Fingerprint, Transaction, TransactionKind

NOON = 1_700_000_000_000
_SPANS = [0, 60_000, 600_000, 3_600_000, 7_200_000, 86_400_000, 7 * 86_400_000, 30 * 86_400_000, 90 * 86_400_000, 97 * 86_400_000]

_AMOUNTS = [0, 499, 500, 1000, 12345, 90_000, 99_999, 100_000, 999_999, 2**40 - 1, 2**40, 2**53]
_PLACES = [None, (48.1, 11.6), (52.5, 13.4), (-33.9, 151.2), (90.0, 180.0), (-90.0, -180.0), (-17.7, 179.9), (-17.7, -179.9)]
_SESSIONS = [
    None,
    BehaviouralSession(keystroke_dwell_ms=81.5, keystroke_flight_ms=120.04, pointer_speed_px_s=700.0),
    BehaviouralSession(keystroke_dwell_ms=0.0, pointer_speed_px_s=1e9),
    BehaviouralSession(session_age_s=2.25),
]
_FINGERPRINTS = [
    None,
    Fingerprint(),
    Fingerprint(os="o1", browser="b1", emulator=False),
    Fingerprint(os="o2", browser="b1", screen="s1", time_zone="z1", language="l1", hardware="h1", emulator=True),
    Fingerprint(browser="b2", hardware="h2"),
]
_KINDS = list(TransactionKind)


class _Choices:
    """Many choices out of one drawn number: hypothesis draws and shrinks one number where it would draw twenty."""

    def __init__(self, number: int) -> None:
        self.number = number

    def of(self, *values: Any) -> Any:
        """One of the values; the first if the number is small."""
        self.number, place = divmod(self.number, len(values))
        return values[place]

    def time(self) -> int:
        """On, one before or one after the edge of a window or of two."""
        return NOON + self.of(*_SPANS) + self.of(0, 0, *_SPANS) + int(self.of(0, 0, 1, -1))


numbers = st.binary(min_size=12, max_size=12).map(lambda drawn: int.from_bytes(drawn, "little"))


def a_transaction(number: int, choices: _Choices) -> Transaction:
    """One transaction of few entities."""
    of = choices.of
    place = of(*_PLACES)
    return Transaction(
        at_ms=choices.time(),
        kind=of(*_KINDS),
        amount_minor=of(*_AMOUNTS),
        card_token=of("c1", "c1", None, "c2"),
        device_token=of("d1", None, "d2"),
        merchant_id=of("m1", None, "m2", "m3"),
        terminal_id=of("w1", None, "w2"),
        account_id=of("a1", "a2", "a3"),
        customer_id=of("k1", None),
        email_token=of("e1", None, "e2"),
        phone_token=of("p1", None),
        address_token=of("h1", None),
        mcc=of(None, "0000", "5411", "9999"),
        country=of(None, "DE", "FR", "AA", "ZZ"),
        card_country=of(None, "DE", "FR"),
        ip_country=of(None, "DE", "FR"),
        counterparty_account_id=of(None, "a1", "a2", "a3"),
        billing_amount_minor=of(None, None, 7, 2**41),
        latitude=place and place[0],
        longitude=place and place[1],
        session=of(*_SESSIONS),
        fingerprint=of(*_FINGERPRINTS),
        ip_proxy=of(None, True, False),
        transaction_id=f"t{number}",
        currency="EUR",
    )


def an_event(number: int, choices: _Choices) -> AccountEvent:
    """One account event."""
    of = choices.of
    return AccountEvent(
        at_ms=choices.time(),
        kind=of(*AccountEventKind, AccountEventKind.LOGIN, AccountEventKind.LOGIN),
        account_id=of("a1", "a2"),
        device_token=of("d1", None, "d2"),
        counterparty_account_id=of(None, "a2", "a3"),
        ip_country=of(None, "DE"),
        event_id=f"t{number}",
    )


def _tail(arrivals: list[Arrival], most: int) -> list[Arrival]:
    """The last `most` unique arrivals, counted by their first coming."""
    firsts: dict[Any, Arrival] = {}
    for arrival in arrivals:
        firsts.setdefault(arrival.id, arrival)
    return list(firsts.values())[-most:]


@st.composite
def histories(draw: st.DrawFn, most: int = 24, redelivered: int = 100, apart: bool = True) -> list[Arrival]:
    """Arrivals: payments, some again (one of the last `redelivered` unique ones), declines (`apart`: at any time later, else
    directly after their payment) and account events."""
    arrivals: list[Arrival] = []
    for number, drawn in enumerate(draw(st.lists(numbers, min_size=1, max_size=most))):
        choices = _Choices(drawn)
        paid = [a for a in _tail(arrivals, redelivered) if a.what == "pay"]
        choice = choices.of("pay", "pay", "pay", "pay", "declined", "again", "again", "event", "decline", "decline")
        if choice == "again" and paid:
            arrivals.append(choices.of(*paid))
        elif choice == "event":
            arrivals.append(Arrival("event", an_event(number, choices)))
        elif choice == "decline" and paid and apart:
            arrivals.append(Arrival("decline", choices.of(*paid).record))
        else:
            arrivals.append(Arrival("pay", a_transaction(number, choices)))
            if choice == "declined" and not apart:
                arrivals.append(Arrival("decline", arrivals[-1].record))
    return arrivals
