"""The simulated bank's world: places, merchants, customers and their habits, drawn once from a generator and fixed after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Country(NamedTuple):
    """One country: share of the bank's customers, currency, units of it for one euro, hours before UTC, cities (degrees)."""

    code: str
    share: float
    currency: str
    per_euro: float
    utc_offset_h: int
    cities: tuple[tuple[float, float], ...]


COUNTRIES: tuple[Country, ...] = (
    Country("DE", 0.26, "EUR", 1.0, 1, ((52.52, 13.40), (48.14, 11.58), (50.94, 6.96), (53.55, 9.99))),
    Country("FR", 0.18, "EUR", 1.0, 1, ((48.86, 2.35), (45.76, 4.84), (43.30, 5.37))),
    Country("ES", 0.13, "EUR", 1.0, 1, ((40.42, -3.70), (41.39, 2.17), (37.39, -5.98))),
    Country("IT", 0.13, "EUR", 1.0, 1, ((41.90, 12.50), (45.46, 9.19), (40.85, 14.27))),
    Country("NL", 0.10, "EUR", 1.0, 1, ((52.37, 4.90), (51.92, 4.48))),
    Country("GB", 0.12, "GBP", 0.86, 0, ((51.51, -0.13), (53.48, -2.24), (55.95, -3.19))),
    Country("US", 0.08, "USD", 1.09, -5, ((40.71, -74.01), (34.05, -118.24), (41.88, -87.63), (25.76, -80.19))),
    Country("AT", 0.0, "EUR", 1.0, 1, ((48.21, 16.37),)),
    Country("PT", 0.0, "EUR", 1.0, 0, ((38.72, -9.14),)),
    Country("GR", 0.0, "EUR", 1.0, 2, ((37.98, 23.73),)),
    Country("CH", 0.0, "CHF", 0.96, 1, ((47.37, 8.54),)),
    Country("PL", 0.0, "PLN", 4.3, 1, ((52.23, 21.01),)),
    Country("SE", 0.0, "SEK", 11.3, 1, ((59.33, 18.07),)),
    Country("TR", 0.0, "TRY", 35.0, 3, ((41.01, 28.98),)),
    Country("TH", 0.0, "THB", 38.0, 7, ((13.76, 100.50),)),
    Country("JP", 0.0, "JPY", 162.0, 9, ((35.68, 139.69),)),
    Country("MX", 0.0, "MXN", 20.0, -6, ((19.43, -99.13),)),
    Country("BR", 0.0, "BRL", 6.0, -3, ((-23.55, -46.63),)),
    Country("AE", 0.0, "AED", 4.0, 4, ((25.20, 55.27),)),
    Country("ZA", 0.0, "ZAR", 20.0, 2, ((-26.20, 28.05),)),
    Country("VN", 0.0, "VND", 27000.0, 7, ((10.82, 106.63),)),
    Country("AU", 0.0, "AUD", 1.65, 10, ((-33.87, 151.21),)),
)


class Category(NamedTuple):
    """One merchant category: share of merchants' visits, median amount (euro) and its spread, share sold at a distance."""

    mcc: str
    share: float
    median: float
    sigma: float
    remote: float
    moto: float = 0.0
    recurring: float = 0.0


CATEGORIES: tuple[Category, ...] = (
    Category("5411", 0.270, 26.0, 0.80, 0.05),
    Category("5814", 0.130, 10.5, 0.50, 0.15),
    Category("5812", 0.090, 34.0, 0.65, 0.02),
    Category("5541", 0.075, 46.0, 0.45, 0.00),
    Category("5912", 0.045, 17.0, 0.70, 0.15),
    Category("5311", 0.035, 48.0, 0.80, 0.30),
    Category("5651", 0.040, 52.0, 0.70, 0.45),
    Category("5732", 0.018, 120.0, 1.00, 0.55),
    Category("5999", 0.060, 29.0, 0.90, 0.55),
    Category("5942", 0.015, 19.0, 0.60, 0.50),
    Category("4111", 0.060, 4.2, 0.60, 0.20),
    Category("4121", 0.020, 15.0, 0.50, 0.60),
    Category("4814", 0.020, 27.0, 0.40, 1.00, 0.05, 0.6),
    Category("4899", 0.030, 12.5, 0.30, 1.00, 0.00, 0.9),
    Category("5816", 0.030, 8.0, 0.80, 1.00, 0.00, 0.2),
    Category("6300", 0.010, 58.0, 0.60, 1.00, 0.20, 0.7),
    Category("7995", 0.010, 30.0, 0.90, 1.00),
    Category("7011", 0.009, 165.0, 0.70, 0.55, 0.25),
    Category("4511", 0.008, 210.0, 0.75, 1.00, 0.05),
    Category("5944", 0.004, 160.0, 1.00, 0.25),
    Category("8011", 0.010, 55.0, 0.70, 0.10, 0.30),
    Category("5200", 0.020, 44.0, 0.90, 0.15),
    Category("5964", 0.005, 47.0, 0.60, 1.00, 0.60),
    Category("6051", 0.002, 140.0, 1.10, 1.00),
    Category("5921", 0.012, 18.0, 0.60, 0.05),
)
NOVEL_MCCS = ("5944", "5732", "6051", "7995", "4511")
ATM_MCC, COUNTER_MCC = "6011", "6010"

_COUNTRY_OF_CITY = np.array([i for i, country in enumerate(COUNTRIES) for _ in country.cities])
CITY_PLACE: Floats = np.array([place for country in COUNTRIES for place in country.cities])
CITY_COUNTRY: Ints = _COUNTRY_OF_CITY.astype(np.int64)
PER_EURO: Floats = np.array([country.per_euro for country in COUNTRIES])
UTC_OFFSET_MS: Ints = np.array([country.utc_offset_h * HOUR_MS for country in COUNTRIES], dtype=np.int64)
PHYSICAL_FAVOURITES, REMOTE_FAVOURITES = 8, 5
TERMINALS = 4


@dataclass(frozen=True)
class World:
    """Everything that does not change while payments happen. Arrays by merchant (`m_`) or by customer (`c_`)."""

    m_category: Ints
    m_city: Ints  # -1: sells at a distance
    m_country: Ints  # where it is at home, also if it sells at a distance
    m_order: Ints  # physical merchants sorted by city, then remote ones
    m_weight: Floats  # cumulated popularity along m_order
    m_bounds: Floats  # (city, 2): the stretch of m_weight that is a city's; the last row is the remote ones'
    c_city: Ints
    c_place: Floats  # (customer, 2): home, degrees
    c_payments_a_day: Floats
    c_logins_a_day: Floats
    c_level: Floats  # log of the customer's price level
    c_remote: Floats  # share of payments made at a distance
    c_tap: Floats
    c_shift_h: Floats  # early bird or night owl
    c_salary: Floats
    c_payday: Ints
    c_physical: Ints
    c_remote_shops: Ints
    c_typing: Floats  # (customer, slot, 3): dwell ms, flight ms, pointer px/s on the phone, the next phone, the computer
    c_tongue: Ints  # the country whose language the devices speak: not always that of the home
    c_computer: Floats  # share of sessions at the computer
    c_thrown: Floats  # share of sessions on devices that are never seen again: private windows, other people's computers
    c_vpn: Floats  # share of sessions behind a rented proxy
    c_office: Floats  # share of sessions behind the employer's proxy
    c_new_phone_ms: Ints  # offset at which the device changes; beyond the end: never
    c_new_email_ms: Ints
    c_new_number_ms: Ints
    c_moved_ms: Ints
    c_trip: Ints  # (customer, 2): offsets of a trip's start and end; beyond the end: never
    c_trip_city: Ints
    c_landlord: Ints
    c_employer: Ints
    c_friends: Ints  # (customer, 3): of the same circle, so that money goes in circles among the honest too
    c_household: Ints  # people who live together: one address, one line, often one tablet
    c_tablet: Flags  # whether the household has a tablet that all use
    c_freelance: Flags  # paid by many strangers
    c_saver: Flags  # sends the salary on to another bank on the day it comes
    c_age_days: Ints  # of the account, at the start
    c_ring: Ints  # -1: a real person; else the group of made-up identities that share attributes

    @property
    def customers(self) -> int:
        """How many."""
        return len(self.c_city)


def _merchants(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Merchants with a category, a city (or none) and a popularity (Pareto: few large, many small)."""
    share = np.array([c.share for c in CATEGORIES])
    category = rng.choice(len(CATEGORIES), count, p=share / share.sum())
    remote = rng.random(count) < np.array([c.remote for c in CATEGORIES])[category]
    homes = np.array([COUNTRIES[c].share + 0.02 for c in CITY_COUNTRY])
    city = np.where(remote, -1, rng.choice(len(CITY_COUNTRY), count, p=homes / homes.sum()))
    cities = len(CITY_COUNTRY)
    city[: cities * 4] = np.arange(cities * 4) % cities  # every city has shops
    order = np.argsort(np.where(city < 0, cities, city), kind="stable")
    weight = np.cumsum(rng.pareto(1.6, count)[order] + 0.05)
    place = np.where(city < 0, cities, city)[order]
    first = np.searchsorted(place, np.arange(cities + 1), side="left")
    last = np.searchsorted(place, np.arange(cities + 1), side="right")
    padded = np.concatenate([[0.0], weight])
    return {
        "m_category": category.astype(np.int64),
        "m_city": city.astype(np.int64),
        "m_country": CITY_COUNTRY[np.where(city < 0, rng.choice(len(CITY_COUNTRY), count, p=homes / homes.sum()), city)],
        "m_order": order.astype(np.int64),
        "m_weight": weight,
        "m_bounds": np.stack([padded[first], padded[last]], axis=1),
    }


def shop(rng: np.random.Generator, merchants: dict[str, Any] | World, city: Ints) -> Ints:
    """One merchant for each city given (-1: one that sells at a distance), by popularity."""
    get = merchants.__getitem__ if isinstance(merchants, dict) else lambda name: getattr(merchants, name)
    bounds = get("m_bounds")[city]
    at = bounds[:, 0] + rng.random(len(city)) * (bounds[:, 1] - bounds[:, 0])
    order: Ints = get("m_order")
    found: Ints = order[np.minimum(np.searchsorted(get("m_weight"), at, side="right"), len(order) - 1)]
    return found


def _someday(rng: np.random.Generator, count: int, span_ms: int, share_in_90_days: float) -> Ints:
    """The offset at which something happens to each of so many; beyond the end for those to whom it does not."""
    chosen = rng.random(count) < min(0.9, share_in_90_days * span_ms / (90 * DAY_MS))
    return np.where(chosen, (rng.random(count) * span_ms * 0.95).astype(np.int64), np.int64(span_ms * 4))


def _customers(rng: np.random.Generator, count: int, span_ms: int) -> dict[str, Any]:
    """Customers' homes, habits and incomes; one in thirty hardly uses the account."""
    homes = np.array([COUNTRIES[c].share / len(COUNTRIES[c].cities) for c in CITY_COUNTRY])
    city = rng.choice(len(CITY_COUNTRY), count, p=homes / homes.sum())
    salary = np.exp(rng.normal(np.log(2400.0), 0.45, count))
    asleep = np.where(rng.random(count) < 0.033, 0.03, 1.0)
    return {
        "c_city": city.astype(np.int64),
        "c_place": CITY_PLACE[city] + rng.normal(0.0, 0.06, (count, 2)),
        "c_tongue": np.where(rng.random(count) < 0.14, rng.integers(0, len(COUNTRIES), count), CITY_COUNTRY[city]),
        "c_payments_a_day": rng.gamma(2.2, 1.35 / 2.2, count) * asleep,
        "c_logins_a_day": rng.gamma(0.9, 0.25 / 0.9, count) * asleep,
        "c_level": 0.35 * (np.log(salary) - np.log(2400.0)) + rng.normal(0.0, 0.22, count),
        "c_remote": rng.beta(2.0, 5.5, count),
        "c_tap": rng.beta(4.0, 1.8, count),
        "c_shift_h": rng.normal(0.0, 1.3, count),
        "c_salary": salary,
        "c_payday": rng.choice([0, 14, 24, 26, 29], count),
        "c_landlord": rng.integers(0, max(1, count // 12), count),
        "c_employer": rng.integers(0, max(1, count // 25), count),
        "c_freelance": rng.random(count) < 0.06,
        "c_saver": rng.random(count) < 0.07,
        "c_age_days": np.where(rng.random(count) < 0.06, rng.integers(2, 75, count), rng.integers(90, 6000, count)),
        **_oddities(rng, city, span_ms),
        **_devices(rng, count),
    }


def _oddities(rng: np.random.Generator, city: Ints, span_ms: int) -> dict[str, Any]:
    """What happens to people: trips (near ones more often than far ones), a new phone, a new address."""
    count = len(city)
    near = np.where(rng.random(count) < 0.6, rng.integers(1, 12, count), rng.integers(1, len(CITY_COUNTRY), count))
    start = _someday(rng, count, span_ms, 0.45)
    return {
        "c_trip": np.stack([start, start + rng.integers(1, 13, count) * DAY_MS], axis=1),
        "c_trip_city": ((city + near) % len(CITY_COUNTRY)).astype(np.int64),
        "c_new_phone_ms": _someday(rng, count, span_ms, 0.20),
        "c_new_email_ms": _someday(rng, count, span_ms, 0.04),
        "c_new_number_ms": _someday(rng, count, span_ms, 0.05),
        "c_moved_ms": _someday(rng, count, span_ms, 0.05),
    }


def _devices(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """What people pay with, and how they type on it: on another device everybody is somebody else, a little."""
    own = np.log([95.0, 140.0, 620.0]) + rng.normal(0.0, [0.18, 0.25, 0.30], (count, 1, 3))
    by_slot = rng.normal(0.0, [0.16, 0.22, 0.30], (count, 3, 3)) + np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.15, -0.2, 0.35]])
    private = rng.random(count) < 0.05
    return {
        "c_typing": np.exp(own + by_slot),
        "c_computer": np.where(rng.random(count) < 0.45, rng.beta(1.5, 3.0, count), 0.0),
        "c_thrown": np.where(private, rng.uniform(0.3, 1.0, count), 0.02),
        "c_vpn": np.where(rng.random(count) < 0.06, rng.uniform(0.2, 0.9, count), 0.008),
        "c_office": np.where(rng.random(count) < 0.12, rng.uniform(0.1, 0.6, count), 0.0),
    }


def _together(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Who lives with whom (one to four), and each one's three friends: neighbours in a circle of six."""
    household = np.cumsum(rng.random(count) < 0.45)
    people, circle = np.arange(count), np.arange(count) // 6 * 6
    friends = circle[:, None] + (people[:, None] - circle[:, None] + np.array([1, 2, 5])) % 6
    return {
        "c_household": household,
        "c_tablet": (rng.random(household[-1] + 1) < 0.3)[household],
        "c_friends": np.where(friends < count, friends, rng.integers(0, count, (count, 3))),
    }


def drawn(rng: np.random.Generator, customers: int, span_ms: int) -> World:
    """A world of so many customers; one in fifty is a made-up identity, which lives quietly until its day comes."""
    merchants = _merchants(rng, max(len(CITY_COUNTRY) * 30, customers // 4))
    people = _customers(rng, customers, span_ms)
    made_up = max(4, customers // 50)
    real = customers - made_up
    ring = np.full(customers, -1, dtype=np.int64)
    ring[real:] = np.arange(made_up) // 4
    people["c_age_days"][real:] = rng.integers(5, 120, made_up)
    people["c_payments_a_day"][real:] *= 0.5
    together = _together(rng, customers)
    together["c_friends"] %= real
    homes = np.repeat(people["c_city"], PHYSICAL_FAVOURITES)
    physical = shop(rng, merchants, homes).reshape(customers, PHYSICAL_FAVOURITES)
    remote = shop(rng, merchants, np.full(customers * REMOTE_FAVOURITES, -1)).reshape(customers, REMOTE_FAVOURITES)
    return World(**merchants, **people, **together, c_physical=physical, c_remote_shops=remote, c_ring=ring)
