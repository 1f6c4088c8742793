"""The simulated bank's honest customers: shopping, cash, salaries, rents, friends, refunds, trips, sprees and big tickets."""

from __future__ import annotations

import numpy as np

from streams.simulation.events import CASH_MACHINE, COUNTER, ENTRY, KIND, OUTSIDE_ACCOUNTS, Events, at_home, empty, set_place, set_session, spend
from streams.simulation.world import CITY_COUNTRY, DAY_MS, HOUR_MS, UTC_OFFSET_MS, Floats, Ints, World

MINUTE_MS = 60_000
_DAY_PARTS: Floats = np.array([[8.6, 1.2], [12.6, 1.4], [18.2, 2.0], [15.0, 4.5]])


def moments(rng: np.random.Generator, world: World, customer: Ints, day: Ints) -> Ints:
    """A moment of each day at which this customer pays: morning, noon, evening or any hour, local time; offset in ms."""
    part = _DAY_PARTS[rng.choice(4, len(customer), p=(0.18, 0.27, 0.37, 0.18))]
    hour = part[:, 0] + part[:, 1] * rng.normal(0.0, 1.0, len(customer)) + world.c_shift_h[customer]
    local = day * DAY_MS + (np.mod(hour, 24.0) * HOUR_MS).astype(np.int64)
    moment: Ints = np.maximum(local - UTC_OFFSET_MS[CITY_COUNTRY[world.c_city[customer]]], 0)
    return moment


def _days(rng: np.random.Generator, count: int, days: int, first_weekday: int, first_day_of_year: int) -> Ints:
    """Days on which people pay: more on Fridays and Saturdays, half as much again in the five weeks before Christmas."""
    day = np.arange(days)
    weekday = np.array([0.95, 0.95, 0.97, 1.0, 1.18, 1.15, 0.80])[(day + first_weekday) % 7]
    season = np.where(((day + first_day_of_year) % 365 >= 323) & ((day + first_day_of_year) % 365 <= 357), 1.5, 1.0)
    weight = weekday * season
    chosen: Ints = rng.choice(days, count, p=weight / weight.sum())
    return chosen


def _shopping(rng: np.random.Generator, world: World, days: int, first_weekday: int, first_day_of_year: int) -> Events:
    """Card payments in shops and at a distance, with now and then a big ticket, a spree, and a declined one."""
    real = np.flatnonzero(world.c_ring < 0)
    paid = rng.poisson(world.c_payments_a_day[real] * days)
    customer = np.repeat(real, paid)
    day = _days(rng, len(customer), days, first_weekday, first_day_of_year)
    at_ms = moments(rng, world, customer, day)
    spree = rng.random(len(customer)) < 0.006
    times = np.where(spree, rng.integers(3, 8, len(customer)), 1)
    step = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    customer, at_ms = np.repeat(customer, times), np.repeat(at_ms, times)
    at_ms = at_ms + step * rng.integers(3 * MINUTE_MS, 15 * MINUTE_MS, len(step))
    events = spend(rng, world, customer, at_ms)
    big = rng.random(len(events)) < 0.004
    events["amount"][big] = np.round(events["amount"][big] * rng.uniform(4.0, 14.0, int(big.sum())), 2)
    events["declined"] |= rng.random(len(events)) < 0.012
    return events


def _travelled(world: World, events: Events) -> Events:
    """Without the payments in person that would fall into the journey to or from a trip (ten hours each)."""
    trip = world.c_trip[events["customer"]]
    leaving = (events["at_ms"] > trip[:, 0] - 10 * HOUR_MS) & (events["at_ms"] < trip[:, 0])
    returning = (events["at_ms"] > trip[:, 1] - 10 * HOUR_MS) & (events["at_ms"] < trip[:, 1])
    kept: Events = events[~((leaving | returning) & (events["city"] >= 0))]
    return kept


def _cash(rng: np.random.Generator, world: World, days: int) -> Events:
    """Cash machines (twice a month), counters, and the deposits of those who trade in cash: some of them near 10,000."""
    real = np.flatnonzero(world.c_ring < 0)
    machine = np.repeat(real, rng.poisson(days / 15.0, len(real)))
    counter = np.repeat(real, rng.poisson(days / 300.0, len(real)))
    traders = real[rng.random(len(real)) < 0.03]
    deposit = np.repeat(traders, rng.poisson(days / 6.0, len(traders)))
    customer = np.concatenate([machine, counter, deposit])
    which = np.repeat([0, 1, 2], [len(machine), len(counter), len(deposit)])
    events = empty(len(customer))
    events["customer"] = customer
    events["at_ms"] = moments(rng, world, customer, rng.integers(0, days, len(customer)))
    notes = np.maximum(10.0, np.round(np.exp(rng.normal(np.log(80.0), 0.6, len(customer))) / 10.0) * 10.0)
    takings = np.round(np.exp(rng.normal(np.log(1400.0), 0.8, len(customer))) / 5.0) * 5.0
    events["amount"] = np.select([which == 0, which == 1], [notes, notes * 6.0], np.clip(takings, 50.0, 9900.0))
    events["kind"] = np.array([KIND["atm"], KIND["cash_out"], KIND["cash_in"]])[which]
    events["category"] = np.where(which == 0, CASH_MACHINE, COUNTER)
    city = np.where(which == 0, at_home(world, customer, events["at_ms"]), world.c_city[customer])
    set_place(rng, events, np.arange(len(events)), city)
    events["terminal"] = city * 8 + rng.integers(0, 8, len(events)) + (1 << 29)
    events["entry"] = np.where(which == 0, ENTRY["chip"], -1)
    events["declined"] = (which == 0) & (rng.random(len(events)) < 0.02)
    return events


def _transfers(rng: np.random.Generator, world: World, days: int) -> Events:
    """Salaries in, rents out, and money between friends, which is one row at each side."""
    real = np.flatnonzero(world.c_ring < 0)
    months = np.arange(0, days, 30)
    pay, rent = (np.repeat(real, len(months)), np.tile(months, len(real))), np.repeat(real, len(months))
    lent = np.repeat(real, rng.poisson(days / 20.0, len(real)))
    friend = world.c_friends[lent, rng.integers(0, 3, len(lent))]
    customer = np.concatenate([pay[0], rent, lent])
    day = np.concatenate([pay[1] + 25, pay[1] + 1, rng.integers(0, days, len(lent))])
    events = empty(len(customer))
    events["customer"] = customer
    events["at_ms"] = moments(rng, world, customer, day)
    salary = world.c_salary[customer]
    sums = np.round(np.exp(rng.normal(np.log(35.0), 0.9, len(customer))), 0) + 1.0
    wages, rents = slice(0, len(rent)), slice(len(rent), 2 * len(rent))
    events["amount"] = sums
    events["amount"][wages], events["amount"][rents] = np.round(salary[wages], 2), np.round(salary[rents] * 0.31, 0)
    events["kind"] = KIND["transfer_out"]
    events["kind"][wages] = KIND["transfer_in"]
    events["counterparty"] = np.concatenate(
        [OUTSIDE_ACCOUNTS + world.c_employer[pay[0]], OUTSIDE_ACCOUNTS + (1 << 20) + world.c_landlord[rent], friend]
    )
    typed = np.arange(2 * len(rent), len(events))
    set_session(rng, world, events, typed)
    received = empty(len(lent))
    received["customer"], received["counterparty"] = friend, lent
    received["amount"], received["kind"] = events["amount"][typed], KIND["transfer_in"]
    received["at_ms"] = events["at_ms"][typed] + rng.integers(1000, 20_000, len(lent))
    both: Events = np.concatenate([events, received])
    return both


def _refunds(rng: np.random.Generator, events: Events) -> Events:
    """One in fifty purchases at a distance comes back, whole, some days later."""
    returned = (events["kind"] == KIND["ecommerce"]) & ~events["declined"] & (rng.random(len(events)) < 0.02)
    bought: Events = events[returned].copy()
    bought["at_ms"] += (rng.uniform(2.0, 15.0, len(bought)) * DAY_MS).astype(np.int64)
    bought["kind"] = KIND["refund"]
    for name in ("device", "ip", "ip_country", "cvv", "avs", "three_ds"):
        bought[name] = -1
    bought["session"] = np.nan
    return bought


def honest(rng: np.random.Generator, world: World, days: int, first_weekday: int, first_day_of_year: int) -> Events:
    """All rows of the honest, unordered; those after the last day are cut."""
    shopping = _shopping(rng, world, days, first_weekday, first_day_of_year)
    parts = [shopping, _cash(rng, world, days), _transfers(rng, world, days), _refunds(rng, shopping)]
    events = _travelled(world, np.concatenate(parts))
    kept: Events = events[events["at_ms"] < days * DAY_MS]
    return kept
