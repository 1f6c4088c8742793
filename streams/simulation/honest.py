"""The simulated bank's honest customers: shopping, cash, salaries, rents, bills, friends, refunds, and the odd things that people do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from streams.simulation.events import (
    CASH_MACHINE,
    CASH_TERMINALS,
    COUNTER,
    ENTRY,
    KIND,
    OUTSIDE_ACCOUNTS,
    Events,
    at_home,
    empty,
    set_place,
    set_session,
    spend,
)
from streams.simulation.world import CATEGORIES, CITY_COUNTRY, DAY_MS, HOUR_MS, UTC_OFFSET_MS, Flags, Floats, Ints, World

MINUTE_MS = 60_000
COHORT = 250
"""Customers whose payments are made at once: few enough that their arrays stay in the processor's cache."""
LANDLORDS, UTILITIES, STRANGERS, OWN_ELSEWHERE = (OUTSIDE_ACCOUNTS + (n << 20) for n in (1, 2, 3, 64))
_DAY_PARTS: Floats = np.array([[8.6, 1.2], [12.6, 1.4], [18.2, 2.0], [15.0, 4.5]])
_SMALL = np.array([c.mcc in ("5816", "4111", "5814") for c in CATEGORIES])
Rng = np.random.Generator
Amounts = NDArray[np.floating]


def moments(rng: Rng, world: World, customer: Ints, day: Ints) -> Ints:
    """A moment of each day at which this customer pays: morning, noon, evening or any hour, local time; offset in ms."""
    part = _DAY_PARTS[np.searchsorted([0.18, 0.45, 0.82], rng.random(len(customer)))]
    hour = part[:, 0] + part[:, 1] * rng.standard_normal(len(customer)) + world.c_shift_h[customer]
    local = day * DAY_MS + (np.mod(hour, 24.0) * HOUR_MS).astype(np.int64)
    moment: Ints = np.maximum(local - UTC_OFFSET_MS[CITY_COUNTRY[world.c_city[customer]]], 0)
    return moment


def shopping_days(days: int, first_weekday: int, first_day_of_year: int) -> Floats:
    """Cumulated weights of the days: more on Fridays and Saturdays, half as much again in the five weeks before Christmas."""
    day = np.arange(days)
    weekday = np.array([0.95, 0.95, 0.97, 1.0, 1.18, 1.15, 0.80])[(day + first_weekday) % 7]
    season = np.where(((day + first_day_of_year) % 365 >= 323) & ((day + first_day_of_year) % 365 <= 357), 1.5, 1.0)
    weight = np.cumsum(weekday * season)
    return np.asarray(weight / weight[-1], np.float64)


def _shopping(rng: Rng, world: World, people: Ints, days: Floats) -> Events:
    """Card payments in shops and at a distance; now and then a big ticket, a spree, and one that is declined and tried again."""
    customer = np.repeat(people, rng.poisson(world.c_payments_a_day[people] * len(days)))
    at_ms = moments(rng, world, customer, np.searchsorted(days, rng.random(len(customer)), side="right"))
    events = spend(rng, world, customer, at_ms)
    big = rng.random(len(events)) < 0.012
    events["amount"][big] = np.round(events["amount"][big] * rng.uniform(3.0, 12.0, int(big.sum())), 2)
    events["declined"] |= rng.random(len(events)) < 0.015
    return np.concatenate([events, _sprees(rng, world, people, len(days)), _trifles(rng, world, people, len(days)), _tried_again(rng, events)])


def _bursts(rng: Rng, world: World, people: Ints, days: int, in_90_days: float, most: int) -> tuple[Ints, Ints, Ints]:
    """Customer, onset and number of the burst for each of its rows, three rows at least."""
    who = np.repeat(people, rng.poisson(in_90_days * days / 90.0 * np.minimum(world.c_payments_a_day[people], 2.0)))
    times = rng.integers(3, most, len(who))
    onset = moments(rng, world, who, rng.integers(0, days, len(who)))
    return np.repeat(who, times), np.repeat(onset, times), np.repeat(np.arange(len(who)), times)


def _step(number: Ints) -> Ints:
    """The place of each row within its group, from 0; groups are one after the other."""
    return np.arange(len(number)) - np.searchsorted(number, number)


def _sprees(rng: Rng, world: World, people: Ints, days: int) -> Events:
    """Gifts, holidays, furniture: within an hour or two, in many shops or at many sites, dearer than usual, sent to other addresses."""
    customer, onset, number = _bursts(rng, world, people, days, 0.9, 10)
    at_ms = onset + _step(number) * rng.integers(2 * MINUTE_MS, 15 * MINUTE_MS, len(number))
    distant = (rng.random(int(number.max(initial=0)) + 1) < 0.5)[number]
    events = spend(rng, world, customer, at_ms, remote=distant)
    events["amount"] = np.round(events["amount"] * rng.uniform(1.0, 4.0, len(events)), 2)
    return events


def _trifles(rng: Rng, world: World, people: Ints, days: int) -> Events:
    """Games, songs, tickets: tiny amounts one after the other at one merchant, and some are declined."""
    customer, onset, number = _bursts(rng, world, people, days, 0.35, 12)
    at_ms = onset + _step(number) * rng.integers(20_000, 3 * MINUTE_MS, len(number))
    events = spend(rng, world, customer, at_ms, remote=np.ones(len(number), bool))
    sellers = np.flatnonzero(_SMALL[world.m_category] & (world.m_city < 0))
    merchant = rng.choice(sellers, int(number.max(initial=0)) + 1)[number]
    events["merchant"], events["category"], events["country"] = merchant, world.m_category[merchant], world.m_country[merchant]
    events["amount"] = np.round(rng.uniform(0.5, 6.0, len(events)), 2)
    events["declined"] = rng.random(len(events)) < 0.12
    return events


def _tried_again(rng: Rng, events: Events) -> Events:
    """What was declined is tried again within minutes, once to three times; half of it succeeds."""
    first: Events = events[events["declined"] & (rng.random(len(events)) < 0.6)]
    again = np.repeat(first, rng.integers(1, 4, len(first)))
    again["at_ms"] += rng.integers(15_000, 6 * MINUTE_MS, len(again))
    again["declined"] = rng.random(len(again)) < 0.5
    return again


def _travelling(world: World, events: Events) -> Flags:
    """Which payments in person would fall into the journey to or from a trip (six hours each)."""
    trip, at_ms = world.c_trip[events["customer"]], events["at_ms"][:, None]
    return np.asarray(((at_ms > trip - 6 * HOUR_MS) & (at_ms < trip)).any(axis=1) & (events["city"] >= 0))


def _cash(rng: Rng, world: World, people: Ints, days: int) -> Events:
    """Cash machines (twice a month), counters, and the deposits of those who trade in cash: some of them near 10,000."""
    machine = np.repeat(people, rng.poisson(days / 15.0, len(people)))
    counter = np.repeat(people, rng.poisson(days / 300.0, len(people)))
    traders = people[rng.random(len(people)) < 0.03]
    deposit = np.repeat(traders, rng.poisson(days / 6.0, len(traders)))
    customer = np.concatenate([machine, counter, deposit])
    which = np.repeat([0, 1, 2], [len(machine), len(counter), len(deposit)])
    events = empty(len(customer))
    events["customer"] = customer
    events["at_ms"] = moments(rng, world, customer, rng.integers(0, days, len(customer)))
    notes = np.maximum(10.0, np.round(np.exp(rng.normal(np.log(80.0), 0.6, len(customer))) / 10.0) * 10.0)
    takings = np.round(np.exp(rng.normal(np.log(2200.0), 1.0, len(customer))) / 5.0) * 5.0
    events["amount"] = np.select([which == 0, which == 1], [notes, notes * 6.0], np.clip(takings, 50.0, 9900.0))
    events["kind"] = np.array([KIND["atm"], KIND["cash_out"], KIND["cash_in"]])[which]
    events["category"] = np.where(which == 0, CASH_MACHINE, COUNTER)
    city = np.where(which == 0, at_home(world, customer, events["at_ms"]), world.c_city[customer])
    set_place(rng, events, np.arange(len(events)), city)
    events["terminal"] = city * 8 + rng.integers(0, 8, len(events)) + CASH_TERMINALS
    events["entry"] = np.where(which == 0, ENTRY["chip"], -1)
    events["declined"] = (which == 0) & (rng.random(len(events)) < 0.02)
    return events


def transfer(customer: Ints, at_ms: Ints, kind: str, amount: Amounts, counterparty: Ints) -> Events:
    """Money in or out of these accounts, without a session."""
    events = empty(len(customer))
    events["customer"], events["at_ms"], events["kind"] = customer, at_ms, KIND[kind]
    events["amount"], events["counterparty"] = np.maximum(np.round(amount, 2), 1.0), counterparty
    return events


def typed_transfer(rng: Rng, world: World, customer: Ints, at_ms: Ints, amount: Amounts, counterparty: Ints) -> Events:
    """Money out that somebody sends at a device."""
    events = transfer(customer, at_ms, "transfer_out", amount, counterparty)
    set_session(rng, world, events, np.arange(len(events)))
    return events


def booked_at_the_other_side(rng: Rng, sent: Events) -> Events:
    """The same transfers as the receivers see them, seconds later; their counterparties must be accounts of this bank."""
    at_ms = sent["at_ms"] + rng.integers(1000, 20_000, len(sent))
    return transfer(sent["counterparty"].astype(np.int64), at_ms, "transfer_in", sent["amount"], sent["customer"].astype(np.int64))


def _standing(rng: Rng, world: World, people: Ints, days: int) -> Events:
    """Each month a salary in on the payday; rent and two bills out, without anybody at a device. Savers then move money elsewhere."""
    months = np.arange(-30, days, 30)
    customer, month = np.repeat(people, len(months)), np.tile(months, len(people))
    salary, payday = world.c_salary[customer], month + world.c_payday[customer]
    paid = transfer(customer, moments(rng, world, customer, payday), "transfer_in", salary, OUTSIDE_ACCOUNTS + world.c_employer[customer])
    paid["at_ms"] = payday * DAY_MS + rng.integers(4 * HOUR_MS, 9 * HOUR_MS, len(customer))
    first = (month + 31) * DAY_MS + rng.integers(4 * HOUR_MS, 9 * HOUR_MS, len(customer))
    rent = transfer(customer, first, "transfer_out", np.round(salary * 0.31), LANDLORDS + world.c_landlord[customer])
    parts = [paid, rent]
    for bill, (day, median) in enumerate(((5, 62.0), (17, 38.0))):
        due = (month + 30 + day) * DAY_MS + rng.integers(4 * HOUR_MS, 9 * HOUR_MS, len(customer))
        amount = median * np.exp(0.35 * rng.standard_normal(len(customer)))
        parts.append(transfer(customer, due, "transfer_out", amount, UTILITIES + bill * 64 + customer % 40))
    saved = paid[world.c_saver[customer]]
    who = saved["customer"].astype(np.int64)
    later = saved["at_ms"] + (np.exp(rng.normal(np.log(2.5), 1.0, len(who))) * HOUR_MS).astype(np.int64)
    parts.append(typed_transfer(rng, world, who, later, saved["amount"] * rng.uniform(0.3, 0.95, len(who)), OWN_ELSEWHERE + who))
    events = np.concatenate(parts)
    kept: Events = events[events["at_ms"] >= 0]
    return kept


def _lending(rng: Rng, world: World, people: Ints, days: int) -> Events:
    """Money between friends, one row at each side; a third of it comes back, or goes on around the circle."""
    lent = np.repeat(people, rng.poisson(days / 20.0 * np.minimum(world.c_payments_a_day[people], 2.0)))
    friend = world.c_friends[lent, rng.integers(0, 3, len(lent))]
    sums = np.round(np.exp(rng.normal(np.log(35.0), 1.0, len(lent)))) + 1.0
    sent = typed_transfer(rng, world, lent, moments(rng, world, lent, rng.integers(0, days, len(lent))), sums, friend)
    back = np.flatnonzero(rng.random(len(lent)) < 0.33)
    to = np.where(rng.random(len(back)) < 0.7, lent[back], world.c_friends[friend[back], 0])
    later = sent["at_ms"][back] + (np.exp(rng.normal(np.log(20.0), 1.3, len(back))) * HOUR_MS).astype(np.int64)
    returned = typed_transfer(rng, world, friend[back], later, sums[back], to)
    both = np.concatenate([sent, returned])
    return np.concatenate([both, booked_at_the_other_side(rng, both)])


def _strangers(rng: Rng, world: World, people: Ints, days: int) -> Events:
    """Large sums to people whom nobody knew before (cars, deposits, craftsmen), sums from buyers, and the fees of those who work for many."""
    buyers = np.repeat(people, rng.poisson(0.5 * days / 90.0, len(people)))
    out = np.exp(rng.normal(np.log(700.0), 1.1, len(buyers)))
    at_ms = moments(rng, world, buyers, rng.integers(0, days, len(buyers)))
    spent = typed_transfer(rng, world, buyers, at_ms, out, STRANGERS + rng.integers(0, 1 << 20, len(buyers)))
    working = people[world.c_freelance[people]]
    sellers = np.concatenate(
        [np.repeat(people, rng.poisson(0.25 * days / 90.0, len(people))), np.repeat(working, rng.poisson(days / 6.0, len(working)))]
    )
    received = moments(rng, world, sellers, rng.integers(0, days, len(sellers)))
    sums = np.exp(rng.normal(np.log(600.0), 1.0, len(sellers)))
    fees = transfer(sellers, received, "transfer_in", sums, STRANGERS + rng.integers(0, 1 << 20, len(sellers)))
    on = np.flatnonzero(rng.random(len(sellers)) < 0.35)  # what comes in is needed elsewhere at once
    later = received[on] + (np.exp(rng.normal(np.log(3.0), 1.2, len(on))) * HOUR_MS).astype(np.int64)
    passed = typed_transfer(rng, world, sellers[on], later, sums[on] * rng.uniform(0.4, 1.0, len(on)), STRANGERS + rng.integers(0, 1 << 20, len(on)))
    return np.concatenate([spent, fees, passed])


def _refunds(rng: Rng, events: Events) -> Events:
    """One in fifty purchases at a distance comes back, whole, some days later."""
    returned = (events["kind"] == KIND["ecommerce"]) & ~events["declined"] & (rng.random(len(events)) < 0.02)
    bought: Events = events[returned].copy()
    bought["at_ms"] += (rng.uniform(2.0, 15.0, len(bought)) * DAY_MS).astype(np.int64)
    bought["kind"] = KIND["refund"]
    for name in ("device", "looks", "ip", "ip_country", "cvv", "avs", "three_ds"):
        bought[name] = -1
    bought["session"], bought["proxy"] = np.nan, False
    return bought


def honest(rng: Rng, world: World, days: Floats) -> Iterator[Events]:
    """All rows of the honest (and of made-up people, whose day has not come), cohort by cohort; those after the last day are cut.

    `days` are the cumulated weights of the days, as `shopping_days` gives them.
    """
    for start in range(0, world.customers, COHORT):
        yield _of_some(rng, world, np.arange(start, min(start + COHORT, world.customers)), days)


def _of_some(rng: Rng, world: World, people: Ints, days: Floats) -> Events:
    """The rows of these customers."""
    shopping = _shopping(rng, world, people, days)
    real = people[world.c_ring[people] < 0]
    parts = [shopping, _refunds(rng, shopping), _cash(rng, world, real, len(days)), _standing(rng, world, real, len(days))]
    parts += [_lending(rng, world, real, len(days)), _strangers(rng, world, real, len(days))]
    events = np.concatenate(parts)
    kept: Events = events[(events["at_ms"] < len(days) * DAY_MS) & ~_travelling(world, events)]
    return kept
