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
        ("device", "i8"),  # -1 none
        ("ip", "i8"),  # -1 none
        ("ip_country", "i1"),
        ("counterparty", "i8"),  # number of an account elsewhere or here; -1 none
        ("entry", "i1"),
        ("cvv", "i1"),
        ("avs", "i1"),
        ("three_ds", "i1"),
        ("session", "f4", 4),  # dwell ms, flight ms, pointer px/s, age s; nan: none
        ("email", "i8"),
        ("declined", "?"),
        ("fraud", "i1"),  # 0 honest, else 1 + index of FRAUDS
        ("learned_ms", "i8"),  # offset; -1 never
    ]
)
Events = NDArray[np.void]
UNKNOWN = (
    *("category", "merchant", "city", "terminal", "device", "ip", "ip_country"),
    *("counterparty", "entry", "cvv", "avs", "three_ds", "email", "learned_ms"),
)
CASH_MACHINE, COUNTER = -2, -3
FOREIGN_DEVICES = 1 << 40  # device numbers from here belong to fraudsters
FOREIGN_IPS = 1 << 30
OUTSIDE_ACCOUNTS = 1 << 40  # account numbers from here are at other banks


def empty(count: int) -> Events:
    """So many rows with nothing in them."""
    events = np.zeros(count, EVENT)
    for name in UNKNOWN:
        events[name] = -1
    events["place"] = np.nan
    events["session"] = np.nan
    return events


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
    return customer * 2 + (at_ms >= world.c_new_phone_ms[customer])


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
    set_place(rng, events, rows, where)
    events["terminal"][rows] = merchant * TERMINALS + rng.integers(0, TERMINALS, len(rows))


def set_place(rng: np.random.Generator, events: Events, rows: Ints, city: Ints) -> None:
    """Puts these rows somewhere in these cities."""
    events["city"][rows] = city
    events["place"][rows] = CITY_PLACE[city] + rng.normal(0.0, 0.05, (len(rows), 2))


def _at_a_distance(rng: np.random.Generator, world: World, events: Events, which: Flags) -> None:
    """Fills device, address, checks and typing of payments made at a distance."""
    rows = np.flatnonzero(which)
    category = events["category"][rows].astype(np.int64)
    draw = rng.random(len(rows))
    recurring = draw < _RECURRING[category]
    moto = ~recurring & (draw < _RECURRING[category] + _MOTO[category])
    typed = ~recurring & ~moto
    events["kind"][rows] = np.select([recurring, moto], [KIND["recurring"], KIND["moto"]], KIND["ecommerce"])
    events["entry"][rows] = np.select([recurring, moto], [ENTRY["credential_on_file"], ENTRY["manual"]], ENTRY["ecommerce"])
    set_session(rng, world, events, rows[typed])
    checked = rows[~recurring]
    slip = rng.random(len(checked))
    events["cvv"][checked] = np.where(slip < 0.012, RESULT["no_match"], RESULT["match"])
    address = [RESULT[word] for word in ("match", "partial", "no_match", "unavailable")]
    events["avs"][checked] = rng.choice(address, len(checked), p=(0.80, 0.10, 0.03, 0.07))
    events["three_ds"][rows[typed]] = rng.choice([RESULT["match"], RESULT["not_checked"], RESULT["no_match"]], int(typed.sum()), p=(0.62, 0.37, 0.01))
    events["declined"][checked] |= slip < 0.012


def set_session(rng: np.random.Generator, world: World, events: Events, rows: Ints) -> None:
    """The customer at the own device: phone, address (a few behind a foreign proxy) and typing (a tenth without measurements)."""
    customer, at_ms = events["customer"][rows].astype(np.int64), events["at_ms"][rows]
    events["device"][rows] = own_device(world, customer, at_ms)
    mobile = rng.random(len(rows)) < 0.4
    events["ip"][rows] = customer * 2 + mobile
    here = CITY_COUNTRY[at_home(world, customer, at_ms)]
    proxy = rng.random(len(rows)) < 0.015
    events["ip_country"][rows] = np.where(proxy, rng.integers(0, CITY_COUNTRY.max() + 1, len(rows)), here)
    typing = np.exp(np.log(world.c_typing[customer]) + rng.normal(0.0, [0.10, 0.14, 0.22], (len(rows), 3)))
    age = np.exp(rng.normal(np.log(240.0), 0.9, len(rows)))
    measured = rng.random(len(rows)) < 0.9
    events["session"][rows] = np.where(measured[:, None], np.column_stack([typing, age]), np.nan)
