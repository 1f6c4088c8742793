"""The simulated bank's fraudsters: one row of the table for each kind, with its onset, its pace, its amounts and when it was learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from streams.simulation.events import (
    COUNTER,
    ENTRY,
    FOREIGN_DEVICES,
    FOREIGN_IPS,
    KIND,
    OUTSIDE_ACCOUNTS,
    RESULT,
    Events,
    at_home,
    empty,
    set_place,
    set_session,
    spend,
)
from streams.simulation.world import CATEGORIES, CITY_COUNTRY, COUNTRIES, DAY_MS, NOVEL_MCCS, TERMINALS, Floats, Ints, World

SECOND_MS = 1000
MULES = OUTSIDE_ACCOUNTS + (1 << 30)


class Attacks(NamedTuple):
    """The rows of all attacks of one kind: number of the attack, step in it, offset in ms, victim; and the honest past."""

    attack: Ints
    step: Ints
    at_ms: Ints
    victim: Ints
    past: Events
    last_step: Ints

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.attack)

    def each(self, values: Any) -> Any:
        """One value for each attack, given to its rows."""
        return values[self.attack]

    @property
    def number(self) -> int:
        """How many attacks."""
        return int(self.attack.max()) + 1 if self.rows else 0


Rng = np.random.Generator


def _money(events: Events, amount: Any) -> None:
    events["amount"] = np.round(np.clip(amount, 0.5, 25_000.0), 2)


def _lognormal(rng: Rng, median: float, sigma: float, count: int) -> Floats:
    return np.exp(rng.normal(np.log(median), sigma, count))


def _foreign(rng: Rng, here: Ints) -> Ints:
    """Another country than `here`, each equally likely."""
    return (here + rng.integers(1, len(COUNTRIES), len(here))) % len(COUNTRIES)


def _city_in(rng: Rng, country: Ints) -> Ints:
    """A city of each country."""
    first = np.searchsorted(CITY_COUNTRY, country, side="left")
    many = np.searchsorted(CITY_COUNTRY, country, side="right") - first
    return first + (rng.random(len(country)) * many).astype(np.int64)


def _thief_device(rng: Rng, events: Events, attacks: Attacks, abroad: float) -> None:
    """Another device and address for each attack, from abroad with this probability; typing of another person."""
    number = rng.integers(0, 1 << 28, attacks.number)
    events["device"] = FOREIGN_DEVICES + attacks.each(number)
    events["ip"] = FOREIGN_IPS + attacks.each(number)
    distant = attacks.each(rng.random(attacks.number) < abroad)
    events["ip_country"] = np.where(distant, attacks.each(rng.integers(0, len(COUNTRIES), attacks.number)), events["ip_country"])
    typing = np.exp(rng.normal(np.log([95.0, 140.0, 620.0, 120.0]), [0.25, 0.35, 0.4, 0.9], (attacks.number, 4)))[attacks.attack]
    measured = ~np.isnan(events["session"][:, 0])
    events["session"][measured] = typing[measured]


def _remote(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Purchases at a distance, all typed."""
    events = spend(rng, world, attacks.victim, attacks.at_ms, remote=np.ones(attacks.rows, bool))
    events["kind"], events["entry"] = KIND["ecommerce"], ENTRY["ecommerce"]
    set_session(rng, world, events, np.arange(attacks.rows))
    events["declined"] = False
    return events


def _present(rng: Rng, world: World, attacks: Attacks, city: Ints) -> Events:
    """Purchases at counters of these cities, with chip or stripe."""
    events = spend(rng, world, attacks.victim, attacks.at_ms, remote=np.zeros(attacks.rows, bool), city=city)
    events["declined"] = False
    return events


def _stolen_checks(rng: Rng, events: Events, cvv_known: float) -> None:
    """Checks as a thief passes them: the CVV often, the address seldom, 3-D Secure avoided."""
    count = len(events)
    events["cvv"] = np.where(rng.random(count) < cvv_known, RESULT["match"], RESULT["no_match"])
    events["avs"] = np.where(rng.random(count) < 0.35, RESULT["match"], RESULT["no_match"])
    events["three_ds"] = np.where(rng.random(count) < 0.12, RESULT["no_match"], RESULT["not_checked"])


def velocity(rng: Rng, world: World, attacks: Attacks) -> Events:
    """A stolen card is emptied in shops of one town, one small payment after the other."""
    events = _present(rng, world, attacks, at_home(world, attacks.victim, attacks.at_ms))
    events["kind"], events["entry"] = KIND["contactless"], ENTRY["contactless"]
    _money(events, rng.uniform(18.0, 50.0, attacks.rows))
    events["declined"] = rng.random(attacks.rows) < 0.15
    return events


def card_testing(rng: Rng, world: World, attacks: Attacks) -> Events:
    """A script tries card numbers of one BIN with tiny amounts at one shop; most are declined."""
    attacks = attacks._replace(victim=(attacks.victim + attacks.step // 6) % world.customers)
    events = _remote(rng, world, attacks)
    _thief_device(rng, events, attacks, 0.8)
    _stolen_checks(rng, events, 0.3)
    _one_shop(rng, world, events, attacks)
    _money(events, rng.uniform(0.5, 4.0, attacks.rows))
    events["session"] = np.nan
    events["declined"] = rng.random(attacks.rows) < 0.6
    return events


def _one_shop(rng: Rng, world: World, events: Events, attacks: Attacks) -> None:
    """The same shop at a distance for all rows of an attack."""
    distant = np.flatnonzero(world.m_city < 0)
    merchant = attacks.each(rng.choice(distant, attacks.number))
    events["merchant"], events["category"] = merchant, world.m_category[merchant]


def impossible_travel(rng: Rng, world: World, attacks: Attacks) -> Events:
    """A copied card is used on another continent minutes after its owner used it at home."""
    seen = np.flatnonzero(attacks.past["city"] >= 0)
    after = attacks.past[rng.choice(seen, attacks.number)]
    start = after["at_ms"] + rng.integers(8 * 60, 70 * 60, attacks.number) * SECOND_MS
    first = attacks.each(np.flatnonzero(attacks.step == 0))
    at_ms = attacks.each(start) + attacks.at_ms - attacks.at_ms[first]
    moved = attacks._replace(victim=attacks.each(after["customer"].astype(np.int64)), at_ms=at_ms)
    far = (after["city"] + rng.integers(12, len(CITY_COUNTRY) - 8, attacks.number)) % len(CITY_COUNTRY)
    events = _present(rng, world, moved, moved.each(far))
    events["kind"] = KIND["card_present"]
    events["entry"] = rng.choice([ENTRY["magstripe"], ENTRY["fallback"], ENTRY["chip"]], len(events), p=(0.6, 0.2, 0.2))
    _money(events, _lognormal(rng, 190.0, 0.7, attacks.rows))
    return events


def unusual_country(rng: Rng, world: World, attacks: Attacks) -> Events:
    """The card is used in a country where its owner never was."""
    home = CITY_COUNTRY[world.c_city[attacks.victim]]
    city = attacks.each(_city_in(rng, _foreign(rng, home[attacks.step == 0])))
    events = _present(rng, world, attacks, city)
    events["kind"], events["entry"] = KIND["card_present"], rng.choice([ENTRY["magstripe"], ENTRY["chip"]], attacks.rows, p=(0.45, 0.55))
    _money(events, _lognormal(rng, 120.0, 0.8, attacks.rows))
    return events


def mcc_novelty(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Jewellery, electronics, gambling, quasi-cash: what is easily turned into money, bought by someone who never does."""
    events = _remote(rng, world, attacks)
    wanted = np.flatnonzero(np.isin([c.mcc for c in CATEGORIES], NOVEL_MCCS)[world.m_category] & (world.m_city < 0))
    merchant = rng.choice(wanted, attacks.rows)
    events["merchant"], events["category"] = merchant, world.m_category[merchant]
    _thief_device(rng, events, attacks, 0.25)
    _stolen_checks(rng, events, 0.9)
    _money(events, _lognormal(rng, 340.0, 0.7, attacks.rows))
    return events


def card_not_present(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Stolen card data, another device, often another country."""
    events = _remote(rng, world, attacks)
    _thief_device(rng, events, attacks, 0.65)
    _stolen_checks(rng, events, 0.75)
    _money(events, _lognormal(rng, 150.0, 0.8, attacks.rows))
    events["declined"] = rng.random(attacks.rows) < 0.2
    return events


def account_takeover(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Someone else is in the account: new device, new e-mail, and the money goes to a beneficiary nobody knew."""
    events = empty(attacks.rows)
    events["customer"], events["at_ms"], events["kind"] = attacks.victim, attacks.at_ms, KIND["transfer_out"]
    set_session(rng, world, events, np.arange(attacks.rows))
    _thief_device(rng, events, attacks, 0.5)
    events["email"] = FOREIGN_DEVICES + attacks.each(rng.integers(0, 1 << 28, attacks.number))
    events["counterparty"] = MULES + attacks.each(rng.integers(0, 400, attacks.number))
    _money(events, 0.35 * world.c_salary[attacks.victim] * _lognormal(rng, 1.0, 0.5, attacks.rows))
    return events


def synthetic_identity(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Made-up customers who share attributes open accounts and spend up to the limit at once."""
    made_up = np.flatnonzero(world.c_ring >= 0)
    attacks = attacks._replace(victim=attacks.each(rng.choice(made_up, attacks.number)))
    events = _remote(rng, world, attacks)
    events["device"] = FOREIGN_DEVICES + (1 << 30) + world.c_ring[attacks.victim]
    events["ip"] = FOREIGN_IPS + (1 << 28) + world.c_ring[attacks.victim]
    _money(events, _lognormal(rng, 260.0, 0.6, attacks.rows))
    return events


def money_mule(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Money comes in from strangers and leaves within the hour, nearly all of it."""
    events = empty(attacks.rows)
    events["customer"], events["at_ms"] = attacks.victim, attacks.at_ms
    out = attacks.step % 2 == 1
    events["kind"] = np.where(out, KIND["transfer_out"], KIND["transfer_in"])
    set_session(rng, world, events, np.flatnonzero(out))
    strangers = OUTSIDE_ACCOUNTS + (1 << 31) + rng.integers(0, 1 << 20, attacks.rows)
    events["counterparty"] = np.where(out, MULES + attacks.each(rng.integers(0, 400, attacks.number)), strangers)
    sums = _lognormal(rng, 2600.0, 0.5, attacks.rows)
    _money(events, np.where(out, np.roll(sums, 1) * rng.uniform(0.88, 0.98, attacks.rows), sums))
    return events


def structuring(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Cash comes in day after day, each deposit a little under 10,000, and then leaves by transfer."""
    events = empty(attacks.rows)
    events["customer"], events["at_ms"] = attacks.victim, attacks.at_ms
    last = attacks.step == attacks.last_step
    events["kind"] = np.where(last, KIND["transfer_out"], KIND["cash_in"])
    events["category"] = np.where(last, -1, COUNTER)
    cash = np.flatnonzero(~last)
    set_place(rng, events, cash, world.c_city[attacks.victim[cash]])
    set_session(rng, world, events, np.flatnonzero(last))
    events["counterparty"] = np.where(last, MULES + attacks.each(rng.integers(0, 400, attacks.number)), -1)
    deposits = np.round(rng.uniform(8200.0, 9900.0, attacks.rows) / 50.0) * 50.0
    _money(events, np.where(last, _lognormal(rng, 18_000.0, 0.2, attacks.rows), deposits))
    return events


def terminal_compromise(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Copies of many cards are swiped at one tampered terminal."""
    attacks = attacks._replace(victim=rng.choice(np.flatnonzero(world.c_ring < 0), attacks.rows))
    shops = np.flatnonzero(world.m_city >= 0)
    merchant = attacks.each(rng.choice(shops, attacks.number))
    events = _present(rng, world, attacks, world.m_city[merchant])
    events["merchant"], events["category"], events["terminal"] = merchant, world.m_category[merchant], merchant * TERMINALS
    events["kind"], events["entry"] = KIND["card_present"], rng.choice([ENTRY["fallback"], ENTRY["magstripe"]], attacks.rows)
    _money(events, _lognormal(rng, 160.0, 0.6, attacks.rows))
    return events


def transaction_cluster(rng: Rng, world: World, attacks: Attacks) -> Events:
    """One device buys the same thing at one shop with many people's cards."""
    attacks = attacks._replace(victim=rng.choice(np.flatnonzero(world.c_ring < 0), attacks.rows))
    events = _remote(rng, world, attacks)
    _thief_device(rng, events, attacks, 0.3)
    _stolen_checks(rng, events, 0.85)
    _one_shop(rng, world, events, attacks)
    _money(events, attacks.each(np.round(rng.uniform(60, 400, attacks.number)).astype(np.int64)) - 0.01)
    return events


def behavioural_biometrics(rng: Rng, world: World, attacks: Attacks) -> Events:
    """The customer's own device, steered by someone or something else: the rhythm is wrong."""
    events = _remote(rng, world, attacks)
    script = attacks.each(rng.integers(0, 2, attacks.number)) == 1
    factor = np.where(script[:, None], [[0.25, 0.2, 3.5, 0.1]], [[1.7, 2.2, 0.45, 3.0]]) * np.exp(rng.normal(0.0, 0.1, (attacks.rows, 4)))
    events["session"] = np.column_stack([world.c_typing[attacks.victim], np.full(attacks.rows, 240.0)]) * factor
    _money(events, _lognormal(rng, 180.0, 0.7, attacks.rows))
    return events


def device_change(rng: Rng, world: World, attacks: Attacks) -> Events:
    """A fingerprint never seen on the card, at home, with orders that are larger than usual."""
    events = _remote(rng, world, attacks)
    _thief_device(rng, events, attacks, 0.0)
    events["three_ds"] = RESULT["not_checked"]
    _money(events, _lognormal(rng, 130.0, 0.7, attacks.rows))
    return events


class Fraud(NamedTuple):
    """One kind: share of all fraudulent rows, rows of one attack (least, most), median seconds from row to row, median days until learned."""

    name: str
    share: float
    rows: tuple[int, int]
    gap_s: float
    learned_days: float
    shape: Callable[[Rng, World, Attacks], Events]


FRAUDS: tuple[Fraud, ...] = (
    Fraud("velocity", 0.10, (8, 22), 45.0, 1.5, velocity),
    Fraud("card_testing", 0.13, (15, 40), 8.0, 0.6, card_testing),
    Fraud("impossible_travel", 0.05, (1, 4), 900.0, 3.0, impossible_travel),
    Fraud("unusual_country", 0.07, (2, 6), 2400.0, 4.0, unusual_country),
    Fraud("mcc_novelty", 0.06, (1, 4), 1500.0, 5.0, mcc_novelty),
    Fraud("card_not_present", 0.18, (2, 7), 1200.0, 6.0, card_not_present),
    Fraud("account_takeover", 0.08, (2, 5), 600.0, 2.0, account_takeover),
    Fraud("synthetic_identity", 0.05, (5, 12), 14_000.0, 12.0, synthetic_identity),
    Fraud("money_mule", 0.06, (2, 6), 1500.0, 9.0, money_mule),
    Fraud("structuring", 0.03, (4, 7), 50_000.0, 10.0, structuring),
    Fraud("terminal_compromise", 0.06, (6, 15), 420.0, 5.0, terminal_compromise),
    Fraud("transaction_cluster", 0.05, (6, 18), 300.0, 3.0, transaction_cluster),
    Fraud("behavioural_biometrics", 0.04, (1, 4), 300.0, 6.0, behavioural_biometrics),
    Fraud("device_change", 0.04, (2, 5), 1800.0, 6.0, device_change),
)
FRAUD_NAMES: tuple[str, ...] = ("", *(fraud.name for fraud in FRAUDS))


def _attacks(rng: Rng, world: World, fraud: Fraud, rows: int, days: int, past: Events) -> Attacks:
    """Attacks of one kind with so many rows in all, and at least one attack."""
    least, most = fraud.rows
    count = max(1, round(rows / ((least + most) / 2)))
    long = rng.integers(least, most + 1, count)
    attack = np.repeat(np.arange(count), long)
    step = np.arange(len(attack)) - np.repeat(np.cumsum(long) - long, long)
    gaps = _lognormal(rng, fraud.gap_s, 0.5, len(attack)) * SECOND_MS
    elapsed = np.cumsum(gaps) - gaps
    elapsed -= np.repeat(elapsed[np.cumsum(long) - long], long)
    last = elapsed[np.cumsum(long) - 1]
    onset = rng.uniform(0.06, 0.99, count) * np.maximum(days * DAY_MS - last, 1.0)
    victim = rng.choice(np.flatnonzero(world.c_ring < 0), count)
    at_ms = (onset[attack] + elapsed).astype(np.int64)
    return Attacks(attack, step, at_ms, victim[attack], past, (long - 1)[attack])


def _learned(rng: Rng, events: Events, attacks: Attacks, days: float) -> None:
    """When it became known: after the attack's last row, lognormal, at most 120 days."""
    end = np.zeros(attacks.number, np.int64)
    np.maximum.at(end, attacks.attack, events["at_ms"])
    delay = np.minimum(_lognormal(rng, days, 0.7, attacks.number), 120.0) * DAY_MS
    events["learned_ms"] = attacks.each(end + delay.astype(np.int64))


def fraudulent(rng: Rng, world: World, past: Events, days: int, rows: int) -> Events:
    """About so many rows of fraud, of every kind, unordered; those after the last day are cut."""
    parts = []
    for number, fraud in enumerate(FRAUDS, 1):
        attacks = _attacks(rng, world, fraud, round(rows * fraud.share), days, past)
        events = fraud.shape(rng, world, attacks)
        events["fraud"] = number
        _learned(rng, events, attacks, fraud.learned_days)
        parts.append(events)
    events = np.concatenate(parts)
    kept: Events = events[events["at_ms"] < days * DAY_MS]
    return kept
