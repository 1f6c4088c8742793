"""The simulated bank's events as one array of rows: what a payment is before it is written to a file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.transaction import CheckResult, EntryMode, TransactionKind
from streams.simulation.world import (
    ATM_MCC,
    CATEGORIES,
    CITY_COUNTRY,
    CITY_PLACE,
    COUNTER_MCC,
    COUNTRIES,
    TERMINALS,
    Flags,
    Floats,
    Ints,
    World,
    shop,
)

KINDS: tuple[str, ...] = tuple(TransactionKind)
ENTRIES: tuple[str, ...] = tuple(EntryMode)
RESULTS: tuple[str, ...] = tuple(CheckResult)
KIND = {kind: i for i, kind in enumerate(KINDS)}
ENTRY = {entry: i for i, entry in enumerate(ENTRIES)}
RESULT = {result: i for i, result in enumerate(RESULTS)}

EVENT = np.dtype(
    [
        ("at_ms", "i8"),  # offset from the start of the history
        ("customer", "i4"),
        ("kind", "i1"),
        ("amount", "f8"),  # euro; rounded to the account's currency when it is written
        ("category", "i1"),  # index of CATEGORIES; -2 cash machine, -3 counter, -1 none
        ("merchant", "i4"),  # -1 none
        ("city", "i2"),  # where the terminal is; -1 at a distance or none
        ("terminal", "i4"),  # -1 none
        ("place", "f4", 2),  # degrees of the terminal; nan: none
        ("country", "i1"),  # of terminal or merchant; -1 none
        ("device", "i8"),  # -1 none
        ("looks", "i8"),  # the device whose fingerprint it shows; -1 not taken
        ("zone", "i1"),  # country to which the device's clock is set
        ("tongue", "i1"),  # country whose language the device speaks
        ("emulator", "?"),
        ("ip", "i8"),  # -1 none
        ("ip_country", "i1"),
        ("proxy", "?"),
        ("counterparty", "i8"),  # number of an account elsewhere or here; -1 none
        ("entry", "i1"),
        ("cvv", "i1"),
        ("avs", "i1"),
        ("three_ds", "i1"),
        ("session", "f4", 4),  # dwell ms, flight ms, pointer px/s, age s; nan: none
        ("email", "i8"),
        ("declined", "?"),
        ("fraud", "i1"),  # 0 honest, else 1 + index of FRAUDS
        ("attack", "i4"),  # number of the attack within its kind; -1 honest
        ("learned_ms", "i8"),  # offset; -1 never
    ]
)
Events = NDArray[np.void]
UNKNOWN = (
    *("category", "merchant", "city", "terminal", "country", "device", "looks", "zone", "tongue", "ip", "ip_country"),
    *("counterparty", "entry", "cvv", "avs", "three_ds", "email", "attack", "learned_ms"),
)
CASH_MACHINE, COUNTER = -2, -3
CASH_TERMINALS = 1 << 29  # terminal numbers from here are cash machines and counters
SLOTS = 4  # device numbers are four times the customer's, and what it is: phone, next phone, computer, -
COMPUTER = 2
FAMILY_DEVICES, THROWN_DEVICES = 1 << 38, 1 << 39  # tablets by household; devices that are seen once
FOREIGN_DEVICES = 1 << 40  # device numbers from here belong to fraudsters
HOME_IPS, MOBILE_IPS, OFFICE_IPS, HOTEL_IPS, RENTED_IPS, FOREIGN_IPS = 0, 1 << 26, 1 << 27, 3 << 26, 1 << 28, 1 << 30
OUTSIDE_ACCOUNTS = 1 << 40  # account numbers from here are at other banks


def _nothing() -> Events:
    nothing = np.zeros(1, EVENT)
    for name in UNKNOWN:
        nothing[name] = -1
    nothing["place"] = np.nan
    nothing["session"] = np.nan
    return nothing


_NOTHING = _nothing()


def empty(count: int) -> Events:
    """So many rows with nothing in them."""
    return np.repeat(_NOTHING, count)


class Gathered:
    """Rows that come piece by piece and lie in one place: each further copy of a long history would cost as much as making it."""

    def __init__(self, room: int) -> None:
        self._kept, self._count = np.empty(room, EVENT), 0

    def add(self, rows: Events) -> None:
        """Puts them after what is there."""
        until = self._count + len(rows)
        if until > len(self._kept):
            self._kept = np.concatenate([self.all, np.empty(until, EVENT)])
        self._kept[self._count : until] = rows
        self._count = until

    @property
    def all(self) -> Events:
        """What is there now."""
        return self._kept[: self._count]


def email_of(world: World, customer: Ints, at_ms: Ints) -> Ints:
    """The number of the customer's e-mail address at a moment; a few couples have one together, and half of the made-up people of a group."""
    ring = world.c_ring[customer]
    people = np.where(customer % 19 < 2, world.customers + world.c_household[customer], customer)
    people = np.where((ring >= 0) & (customer % 2 == 0), 2 * world.customers + ring, people)
    return people * 2 + (at_ms >= world.c_new_email_ms[customer])


def phone_of(world: World, customer: Ints, at_ms: Ints) -> Ints:
    """The number of the customer's line at a moment: a household's, for every third its own; made-up people have one for four."""
    people = np.where(customer % 3 == 0, customer, world.customers + world.c_household[customer])
    people = np.where(world.c_ring[customer] >= 0, 2 * world.customers + world.c_ring[customer], people)
    return people * 2 + (at_ms >= world.c_new_number_ms[customer])


def address_of(world: World, customer: Ints, at_ms: Ints) -> Ints:
    """The number of the house where the customer lives at a moment; made-up people live in one house, four by four."""
    house = np.where(world.c_ring[customer] >= 0, world.customers + world.c_ring[customer], world.c_household[customer])
    moved = at_ms >= world.c_moved_ms[customer]
    return np.where(moved, 2 * world.customers + customer, house)


def mcc_of(category: int) -> str:
    """The merchant category code behind a category number; empty if none."""
    return {CASH_MACHINE: ATM_MCC, COUNTER: COUNTER_MCC, -1: ""}.get(category) or CATEGORIES[category].mcc


_MEDIAN: Floats = np.log(np.array([c.median for c in CATEGORIES]))
_SIGMA: Floats = np.array([c.sigma for c in CATEGORIES])
_MOTO: Floats = np.array([c.moto for c in CATEGORIES])
_RECURRING: Floats = np.array([c.recurring for c in CATEGORIES])


def at_home(world: World, customer: Ints, at_ms: Ints) -> Ints:
    """The city in which each customer is at a moment: home, or where the trip goes."""
    trip = world.c_trip[customer]
    away = (at_ms >= trip[:, 0]) & (at_ms < trip[:, 1])
    return np.where(away, world.c_trip_city[customer], world.c_city[customer])


def own_device(world: World, customer: Ints, at_ms: Ints) -> Ints:
    """The number of the customer's phone at a moment."""
    return customer * SLOTS + (at_ms >= world.c_new_phone_ms[customer])


def choose_shops(rng: np.random.Generator, world: World, customer: Ints, city: Ints, remote: Flags) -> Ints:
    """A merchant for each payment: seven in ten times a favourite, the first ones more often."""
    count = len(customer)
    fresh = shop(rng, world, np.where(remote, -1, city))
    rank = (rng.random(count) ** 2.2 * np.where(remote, world.c_remote_shops.shape[1], world.c_physical.shape[1])).astype(np.int64)
    physical = world.c_physical[customer, rank]
    distant = world.c_remote_shops[customer, np.minimum(rank, world.c_remote_shops.shape[1] - 1)]
    usual = (rng.random(count) < 0.7) & (remote | (city == world.c_city[customer]))
    return np.where(usual, np.where(remote, distant, physical), fresh)


def prices(rng: np.random.Generator, world: World, customer: Ints, category: Ints) -> Floats:
    """Amounts in euro: lognormal by category around the customer's own level; a few end in .00 or .99, as prices do."""
    amount = np.exp(_MEDIAN[category] + world.c_level[customer] + rng.normal(0.0, 1.0, len(customer)) * _SIGMA[category])
    ending = rng.random(len(customer))
    amount = np.where(ending < 0.18, np.maximum(np.round(amount), 1.0), amount)
    amount = np.where(ending > 0.82, np.floor(amount) + 0.99, amount)
    return np.clip(np.round(amount, 2), 0.2, 25_000.0)


def spend(rng: np.random.Generator, world: World, customer: Ints, at_ms: Ints, remote: Flags | None = None, city: Ints | None = None) -> Events:
    """Ordinary card payments of these customers at these moments, where they then are: what fraud must be told apart from."""
    count = len(customer)
    distant = rng.random(count) < world.c_remote[customer] if remote is None else remote
    where = at_home(world, customer, at_ms) if city is None else city
    merchant = choose_shops(rng, world, customer, where, distant)
    category = world.m_category[merchant]
    events = empty(count)
    events["at_ms"], events["customer"], events["merchant"], events["category"] = at_ms, customer, merchant, category
    events["amount"] = prices(rng, world, customer, category)
    _in_person(rng, world, events, ~distant, where)
    _at_a_distance(rng, world, events, distant)
    return events


def _in_person(rng: np.random.Generator, world: World, events: Events, which: Flags, city: Ints) -> None:
    """Fills terminal, place and entry of payments at a counter: small ones are mostly tapped."""
    rows = np.flatnonzero(which)
    merchant, where = events["merchant"][rows].astype(np.int64), city[rows]
    tapped = rng.random(len(rows)) < world.c_tap[events["customer"][rows]] * np.where(events["amount"][rows] < 50.0, 1.0, 0.35)
    swiped = ~tapped & (rng.random(len(rows)) < np.where(CITY_COUNTRY[where] == 6, 0.05, 0.004))
    events["kind"][rows] = np.where(tapped, KIND["contactless"], KIND["card_present"])
    events["entry"][rows] = np.where(tapped, ENTRY["contactless"], np.where(swiped, ENTRY["magstripe"], ENTRY["chip"]))
    fails = swiped & (rng.random(len(rows)) < 0.15)  # the chip is worn
    events["entry"][rows[fails]] = ENTRY["fallback"]
    set_place(rng, events, rows, where)
    events["terminal"][rows] = merchant * TERMINALS + rng.integers(0, TERMINALS, len(rows))


def set_place(rng: np.random.Generator, events: Events, rows: Ints, city: Ints) -> None:
    """Puts these rows somewhere in these cities."""
    events["city"][rows] = city
    events["country"][rows] = CITY_COUNTRY[city]
    events["place"][rows] = CITY_PLACE[city] + rng.normal(0.0, 0.05, (len(rows), 2))


def _at_a_distance(rng: np.random.Generator, world: World, events: Events, which: Flags) -> None:
    """Fills device, address, checks and typing of payments made at a distance."""
    rows = np.flatnonzero(which)
    category = events["category"][rows].astype(np.int64)
    draw = rng.random(len(rows))
    recurring = draw < _RECURRING[category]
    moto = ~recurring & (draw < _RECURRING[category] + _MOTO[category])
    typed = ~recurring & ~moto
    events["country"][rows] = world.m_country[events["merchant"][rows]]
    events["kind"][rows] = np.select([recurring, moto], [KIND["recurring"], KIND["moto"]], KIND["ecommerce"])
    events["entry"][rows] = np.select([recurring, moto], [ENTRY["credential_on_file"], ENTRY["manual"]], ENTRY["ecommerce"])
    set_session(rng, world, events, rows[typed])
    set_checks(rng, events, rows[~recurring])
    events["three_ds"][rows[moto]] = -1


_CHECKED = np.array([RESULT[word] for word in ("match", "partial", "no_match", "unavailable")], dtype=np.int8)
_AUTHENTICATED = np.array([RESULT[word] for word in ("match", "not_checked", "no_match")], dtype=np.int8)


def set_checks(rng: np.random.Generator, events: Events, rows: Ints) -> None:
    """The honest's checks: one in forty mistypes the CVV, many give another address than the bank's, and much is not authenticated."""
    slip = rng.random(len(rows))
    events["cvv"][rows] = np.where(slip < 0.025, RESULT["no_match"], RESULT["match"])
    events["avs"][rows] = _CHECKED[np.searchsorted([0.72, 0.85, 0.93], rng.random(len(rows)))]
    events["three_ds"][rows] = _AUTHENTICATED[np.searchsorted([0.50, 0.98], rng.random(len(rows)))]
    events["declined"][rows] |= slip < 0.02


def set_session(rng: np.random.Generator, world: World, events: Events, rows: Ints) -> None:
    """The customer at a device: which one, what it shows of itself, from where, and how it is typed (a quarter without measurements)."""
    customer, at_ms = events["customer"][rows].astype(np.int64), events["at_ms"][rows]
    here = CITY_COUNTRY[at_home(world, customer, at_ms)]
    device, looks, slot = _device_of(rng, world, customer, at_ms)
    events["device"][rows] = device
    events["looks"][rows] = np.where(rng.random(len(rows)) < 0.93, looks, -1)
    events["zone"][rows], events["tongue"][rows] = here, world.c_tongue[customer]
    events["emulator"][rows] = rng.random(len(rows)) < 0.004
    _set_address(rng, world, events, rows, here)
    measured = rng.random(len(rows)) < 0.75
    typing = np.log(world.c_typing[customer, slot]) + rng.standard_normal((len(rows), 3)) * [0.15, 0.20, 0.28]
    age = np.log(240.0) + 0.9 * rng.standard_normal(len(rows))
    events["session"][rows] = np.where(measured[:, None], np.exp(np.column_stack([typing, age])), np.nan)


def _device_of(rng: np.random.Generator, world: World, customer: Ints, at_ms: Ints) -> tuple[Ints, Ints, Ints]:
    """Each session's device, the device that it looks like, and the slot of typing: phone, computer, the family's tablet, or one seen only now.

    A private window is a new device that looks like the old one; somebody else's computer is new in both.
    """
    count = len(customer)
    draw, other = rng.random(count), rng.random(count)
    phone = own_device(world, customer, at_ms)
    slot = phone - customer * SLOTS
    computer = draw < world.c_computer[customer]
    family = world.c_tablet[customer] & (other < 0.12)
    thrown = 1.0 - other < world.c_thrown[customer]
    looks = np.where(computer, customer * SLOTS + COMPUTER, phone)
    looks = np.where(family, FAMILY_DEVICES + world.c_household[customer] * SLOTS, looks)
    device = np.where(thrown, THROWN_DEVICES + rng.integers(0, 1 << 36, count), looks)
    looks = np.where(thrown & (world.c_thrown[customer] < 0.1), device, looks)
    return device, looks, np.where(computer | family | thrown, COMPUTER, slot)


def _set_address(rng: np.random.Generator, world: World, events: Events, rows: Ints, here: Ints) -> None:
    """At home, on the move (thousands share an address), behind the employer's proxy (which may be abroad) or a rented one."""
    customer, count = events["customer"][rows].astype(np.int64), len(rows)
    draw = rng.random(count)
    office = draw < world.c_office[customer]
    rented = 1.0 - draw < world.c_vpn[customer]
    mobile = rng.random(count) < 0.4
    employer = world.c_employer[customer]
    ip = np.where(mobile, MOBILE_IPS + here * 4096 + customer % 300, HOME_IPS + world.c_household[customer])
    ip = np.where(here != CITY_COUNTRY[world.c_city[customer]], HOTEL_IPS + here * 4096 + rng.integers(0, 900, count), ip)
    ip = np.select([office, rented], [OFFICE_IPS + employer, RENTED_IPS + rng.integers(0, 700, count)], ip)
    elsewhere = np.where(office, np.where(employer % 4 == 0, employer % len(COUNTRIES), here), rng.integers(0, len(COUNTRIES), count))
    events["ip"][rows] = ip
    events["ip_country"][rows] = np.where(office | rented, elsewhere, here)
    events["proxy"][rows] = (office & (employer % 2 == 0)) | (rented & (rng.random(count) < 0.8))
