"""The simulated bank's fraudsters: one row of the table for each kind, with its onset, its pace, its amounts and when it was learned.

Each kind has loud attacks, as textbooks tell them, and quiet ones: a payment or two, priced as the victim's own, at the victim's
hours, in the victim's town, from a device that shows the victim's fingerprint but for a part or two. They are what is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from streams.simulation.events import (
    CASH_TERMINALS,
    COMPUTER,
    COUNTER,
    ENTRY,
    FOREIGN_DEVICES,
    FOREIGN_IPS,
    HOME_IPS,
    KIND,
    OUTSIDE_ACCOUNTS,
    RENTED_IPS,
    RESULT,
    SLOTS,
    Events,
    at_home,
    choose_shops,
    empty,
    set_checks,
    set_place,
    set_session,
    spend,
)
from streams.simulation.honest import moments
from streams.simulation.world import CATEGORIES, CITY_COUNTRY, COUNTRIES, DAY_MS, NOVEL_MCCS, Flags, Floats, Ints, World

SECOND_MS = 1000
CARDS_OF_A_BIN = 500
MULES = OUTSIDE_ACCOUNTS + (1 << 30)
SENDERS = OUTSIDE_ACCOUNTS + (3 << 20)  # the range of the honest's strangers
Rng = np.random.Generator


class Attacks(NamedTuple):
    """The rows of all attacks of one kind: number of the attack, step in it, offset in ms, victim, whether it is quiet; and the honest past."""

    attack: Ints
    step: Ints
    at_ms: Ints
    victim: Ints
    quiet: Flags
    last_step: Ints
    past: Events

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.attack)

    @property
    def number(self) -> int:
        """How many attacks."""
        return int(self.attack.max()) + 1

    @property
    def first(self) -> Ints:
        """The first row of each attack."""
        return np.flatnonzero(self.step == 0)

    def each(self, values: Any) -> Any:
        """One value for each attack, given to its rows."""
        return values[self.attack]


def _lognormal(rng: Rng, median: float, sigma: float, count: int) -> Floats:
    return np.asarray(np.exp(rng.normal(np.log(median), sigma, count)))


def _take(events: Events, attacks: Attacks, amount: Any) -> None:
    """These amounts where the attack is loud; a quiet one takes what the victim would have paid."""
    wanted = np.where(attacks.quiet, events["amount"], amount)
    events["amount"] = np.round(np.clip(wanted, 0.5, 25_000.0), 2)


def _declined(rng: Rng, events: Events, attacks: Attacks, share: float) -> None:
    """What somebody's older rules stopped: so much of the loud attacks, little of the quiet ones."""
    events["declined"] = rng.random(len(events)) < np.where(attacks.quiet, 0.02, share)


def _city_in(rng: Rng, country: Ints) -> Ints:
    """A city of each country."""
    first = np.searchsorted(CITY_COUNTRY, country, side="left")
    many = np.searchsorted(CITY_COUNTRY, country, side="right") - first
    return first + (rng.random(len(country)) * many).astype(np.int64)


def _near(world: World, victim: Ints) -> Ints:
    """Another city of the victim's country, or of the next one where it has one only."""
    return (world.c_city[victim] + 1) % len(CITY_COUNTRY)


def _thief_device(rng: Rng, world: World, events: Events, attacks: Attacks, abroad: float) -> None:
    """Another device, address and hand for each attack. Quiet ones mirror the victim's fingerprint, and half use the victim's own device."""
    number = rng.integers(0, 1 << 28, attacks.number) * SLOTS
    borrowed = attacks.quiet & attacks.each(rng.random(attacks.number) < 0.5)
    events["device"] = np.where(borrowed, events["device"], FOREIGN_DEVICES + attacks.each(number))
    events["looks"] = np.where(attacks.quiet | (events["looks"] < 0), events["looks"], events["device"])
    country = attacks.each(rng.integers(0, len(COUNTRIES), attacks.number))
    distant = ~attacks.quiet & attacks.each(rng.random(attacks.number) < abroad)
    events["zone"] = np.where(distant, country, events["zone"])
    events["tongue"] = np.where(~borrowed & attacks.each(rng.random(attacks.number) < 0.6), country, events["tongue"])
    events["emulator"] |= ~attacks.quiet & attacks.each(rng.random(attacks.number) < 0.2)
    _thief_address(rng, events, attacks, distant, country, borrowed)
    typing = np.exp(rng.normal(np.log([95.0, 140.0, 620.0, 180.0]), [0.25, 0.35, 0.4, 0.9], (attacks.number, 4)))[attacks.attack]
    measured = ~np.isnan(events["session"][:, 0]) & ~borrowed
    events["session"][measured] = typing[measured]


def _thief_address(rng: Rng, events: Events, attacks: Attacks, distant: Flags, country: Ints, borrowed: Flags) -> None:
    """The thief's own address, or a rented one; a quiet one's is in the victim's country and on no list."""
    rented = attacks.each(rng.random(attacks.number) < 0.4)
    own = np.where(
        rented & ~attacks.quiet, RENTED_IPS + rng.integers(0, 700, attacks.rows), FOREIGN_IPS + attacks.each(rng.integers(0, 1 << 28, attacks.number))
    )
    neighbour = HOME_IPS + attacks.each(rng.integers(0, 1 << 22, attacks.number))
    events["ip"] = np.where(borrowed, events["ip"], np.where(attacks.quiet, neighbour, own))
    events["ip_country"] = np.where(distant, country, events["ip_country"])
    events["proxy"] |= rented & ~attacks.quiet & (rng.random(attacks.rows) < 0.7)


def _remote(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Purchases at a distance, all typed."""
    events = spend(rng, world, attacks.victim, attacks.at_ms, remote=np.ones(attacks.rows, bool))
    events["kind"], events["entry"] = KIND["ecommerce"], ENTRY["ecommerce"]
    set_session(rng, world, events, np.arange(attacks.rows))
    set_checks(rng, events, np.arange(attacks.rows))
    events["declined"] = False
    return events


def _present(rng: Rng, world: World, attacks: Attacks, city: Ints) -> Events:
    """Purchases at counters of these cities, as the victim would make them there."""
    events = spend(rng, world, attacks.victim, attacks.at_ms, remote=np.zeros(attacks.rows, bool), city=city)
    events["declined"] = False
    return events


def _copied(rng: Rng, events: Events, attacks: Attacks, chip: float) -> None:
    """Loud attacks with a copied stripe, some with a real chip; quiet ones pay as people do there."""
    entry = np.where(rng.random(len(events)) < chip, ENTRY["chip"], rng.choice([ENTRY["magstripe"], ENTRY["fallback"]], len(events), p=(0.8, 0.2)))
    events["entry"] = np.where(attacks.quiet, events["entry"], entry)
    events["kind"] = np.where(attacks.quiet, events["kind"], KIND["card_present"])


def _stolen_checks(rng: Rng, events: Events, attacks: Attacks, cvv_known: float) -> None:
    """Checks as a thief passes them: the CVV often, the address less so, 3-D Secure avoided. Quiet ones bought whole identities."""
    count, loud = len(events), ~attacks.quiet
    cvv = np.where(rng.random(count) < cvv_known, RESULT["match"], RESULT["no_match"])
    avs = np.where(rng.random(count) < 0.5, RESULT["match"], RESULT["no_match"])
    events["cvv"], events["avs"] = np.where(loud, cvv, events["cvv"]), np.where(loud, avs, events["avs"])
    events["three_ds"] = np.where(rng.random(count) < 0.08, RESULT["no_match"], np.where(loud, RESULT["not_checked"], events["three_ds"]))


def _sell(world: World, events: Events, merchant: Ints, which: Flags) -> None:
    """The merchant of these rows, at a distance."""
    chosen = np.where(which, merchant, events["merchant"])
    events["merchant"], events["category"], events["country"] = chosen, world.m_category[chosen], world.m_country[chosen]


def _one_shop(rng: Rng, world: World, events: Events, attacks: Attacks) -> None:
    """The same shop at a distance for all rows of an attack: a popular one, for the honest to be there too."""
    nobody = np.zeros(attacks.number, np.int64)
    shop = choose_shops(rng, world, nobody, nobody, np.ones(attacks.number, bool))
    _sell(world, events, attacks.each(shop), np.ones(attacks.rows, bool))


def velocity(rng: Rng, world: World, attacks: Attacks) -> Events:
    """A stolen card is emptied in shops of one town, one small payment after the other; quietly: three or four in an afternoon."""
    events = _present(rng, world, attacks, at_home(world, attacks.victim, attacks.at_ms))
    events["kind"] = np.where(attacks.quiet, events["kind"], KIND["contactless"])
    events["entry"] = np.where(attacks.quiet, events["entry"], ENTRY["contactless"])
    _take(events, attacks, rng.uniform(12.0, 50.0, attacks.rows))
    _declined(rng, events, attacks, 0.12)
    return events


def card_testing(rng: Rng, world: World, attacks: Attacks) -> Events:
    """A script tries the cards of a whole BIN with tiny amounts at one shop; quietly: one card, a song now, another tomorrow."""
    real = int((world.c_ring < 0).sum())
    whole = attacks.each(rng.random(attacks.number) < 0.6)
    first = attacks.victim // CARDS_OF_A_BIN * CARDS_OF_A_BIN
    cards = np.where(whole, first + rng.integers(0, CARDS_OF_A_BIN, attacks.rows), attacks.victim + attacks.step // 6) % real
    attacks = attacks._replace(victim=np.where(attacks.quiet, attacks.victim, cards))
    events = _remote(rng, world, attacks)
    _thief_device(rng, world, events, attacks, 0.8)
    _stolen_checks(rng, events, attacks, 0.3)
    _one_shop(rng, world, events, attacks)
    events["amount"] = np.round(rng.uniform(0.5, 6.0, attacks.rows), 2)
    events["session"][~attacks.quiet] = np.nan
    events["declined"] = rng.random(attacks.rows) < np.where(attacks.quiet, 0.15, 0.5)
    return events


def impossible_travel(rng: Rng, world: World, attacks: Attacks) -> Events:
    """A copied card is used far away minutes after its owner used it at home; quietly: in the next city, some hours later."""
    seen = np.flatnonzero((attacks.past["city"] >= 0) & (world.c_ring[attacks.past["customer"]] < 0))
    after = attacks.past[rng.choice(seen, attacks.number)]
    quiet = attacks.quiet[attacks.first]
    start = (
        after["at_ms"] + np.where(quiet, rng.integers(2 * 3600, 9 * 3600, attacks.number), rng.integers(8 * 60, 100 * 60, attacks.number)) * SECOND_MS
    )
    at_ms = attacks.each(start) + attacks.at_ms - attacks.each(attacks.at_ms[attacks.first])
    moved = attacks._replace(victim=attacks.each(after["customer"].astype(np.int64)), at_ms=at_ms)
    far = (after["city"] + np.where(quiet, 1, rng.integers(12, len(CITY_COUNTRY) - 8, attacks.number))) % len(CITY_COUNTRY)
    events = _present(rng, world, moved, moved.each(far))
    _copied(rng, events, attacks, 0.3)
    _take(events, attacks, _lognormal(rng, 140.0, 0.8, attacks.rows))
    return events


def unusual_country(rng: Rng, world: World, attacks: Attacks) -> Events:
    """The card is used in a country where its owner never was; quietly: next door, as on a trip."""
    home = CITY_COUNTRY[world.c_city[attacks.victim]]
    foreign = (home + attacks.each(rng.integers(1, len(COUNTRIES), attacks.number))) % len(COUNTRIES)
    city = np.where(attacks.quiet, (_near(world, attacks.victim) + 2) % len(CITY_COUNTRY), attacks.each(_city_in(rng, foreign[attacks.first])))
    events = _present(rng, world, attacks, city)
    _copied(rng, events, attacks, 0.6)
    _take(events, attacks, _lognormal(rng, 95.0, 0.9, attacks.rows))
    return events


def mcc_novelty(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Jewellery, electronics, gambling, quasi-cash: what is easily turned into money, bought by someone who seldom does."""
    events = _remote(rng, world, attacks)
    wanted = np.flatnonzero(np.isin([c.mcc for c in CATEGORIES], NOVEL_MCCS)[world.m_category] & (world.m_city < 0))
    _sell(world, events, rng.choice(wanted, attacks.rows), np.ones(attacks.rows, bool))
    _thief_device(rng, world, events, attacks, 0.25)
    _stolen_checks(rng, events, attacks, 0.9)
    _take(events, attacks, _lognormal(rng, 260.0, 0.8, attacks.rows))
    return events


def card_not_present(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Stolen card data, another device, often another country; quietly: one order that the victim might have made."""
    events = _remote(rng, world, attacks)
    _thief_device(rng, world, events, attacks, 0.65)
    _stolen_checks(rng, events, attacks, 0.8)
    _take(events, attacks, _lognormal(rng, 110.0, 0.9, attacks.rows))
    _declined(rng, events, attacks, 0.2)
    return events


def account_takeover(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Someone else is in the account (its account events come before): the money goes to a beneficiary who was added just now."""
    events = empty(attacks.rows)
    events["customer"], events["at_ms"], events["kind"] = attacks.victim, attacks.at_ms, KIND["transfer_out"]
    set_session(rng, world, events, np.arange(attacks.rows))
    _thief_device(rng, world, events, attacks, 0.5)
    changed = ~attacks.quiet & attacks.each(rng.random(attacks.number) < 0.4)
    events["email"] = np.where(changed, FOREIGN_DEVICES + attacks.each(rng.integers(0, 1 << 28, attacks.number)), -1)
    events["counterparty"] = _collector(rng, attacks)
    events["amount"] = np.round(_lognormal(rng, 90.0, 0.9, attacks.rows))
    _take(events, attacks, 0.35 * world.c_salary[attacks.victim] * _lognormal(rng, 1.0, 0.6, attacks.rows))
    return events


def _collector(rng: Rng, attacks: Attacks) -> Any:
    """An account elsewhere for each attack; half of the loud ones share four hundred, the rest are met once."""
    shared = MULES + attacks.each(rng.integers(0, 400, attacks.number))
    fresh = SENDERS + attacks.each(rng.integers(0, 1 << 20, attacks.number))
    return np.where(~attacks.quiet & attacks.each(rng.random(attacks.number) < 0.5), shared, fresh)


def synthetic_identity(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Made-up customers who share phone, address and device spend up to the limit, soon after opening, having paid quietly before."""
    made_up = np.flatnonzero(world.c_ring >= 0)
    attacks = attacks._replace(victim=attacks.each(rng.choice(made_up, attacks.number)))
    events = _remote(rng, world, attacks)
    ring = world.c_ring[attacks.victim]
    events["device"] = np.where(attacks.quiet, events["device"], FOREIGN_DEVICES + (1 << 34) + ring * SLOTS + COMPUTER)
    events["looks"] = np.where(attacks.quiet, events["looks"], events["device"])
    events["ip"] = np.where(attacks.quiet, events["ip"], FOREIGN_IPS + (1 << 28) + ring)
    _take(events, attacks, _lognormal(rng, 220.0, 0.7, attacks.rows))
    return events


def money_mule(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Money comes in from many strangers and goes out to a few, nearly all of it, within the hour.

    Half of the mules are accounts that slept. Quietly: one sum of a salary's size comes in, and a part of it leaves next day.
    """
    asleep = np.flatnonzero((world.c_payments_a_day < 0.15) & (world.c_ring < 0))
    aged = rng.random(attacks.number) < (0.5 if len(asleep) else 0.0)
    mule = np.where(aged, rng.choice(asleep if len(asleep) else np.arange(1), attacks.number), attacks.victim[attacks.first])
    attacks = attacks._replace(victim=attacks.each(mule))
    events = empty(attacks.rows)
    events["customer"], events["at_ms"] = attacks.victim, attacks.at_ms
    out = attacks.step > attacks.last_step * attacks.each(rng.uniform(0.4, 0.75, attacks.number))
    out &= (attacks.step > 0) | (attacks.last_step == 0)
    events["kind"] = np.where(out, KIND["transfer_out"], KIND["transfer_in"])
    set_session(rng, world, events, np.flatnonzero(out))
    events["counterparty"] = np.where(out, _collector(rng, attacks), SENDERS + rng.integers(0, 1 << 20, attacks.rows))
    sums = np.where(attacks.quiet, _lognormal(rng, 700.0, 0.9, attacks.rows), _lognormal(rng, 1500.0, 0.8, attacks.rows))
    received = np.bincount(attacks.attack, np.where(out, 0.0, sums), attacks.number)
    leaving = np.bincount(attacks.attack, out, attacks.number)
    kept = np.where(attacks.quiet, rng.uniform(0.4, 0.9, attacks.rows), rng.uniform(0.85, 0.98, attacks.rows))
    share = attacks.each(received / np.maximum(leaving, 1)) * kept
    events["amount"] = np.round(np.clip(np.where(out & (share > 0), share, sums), 1.0, 25_000.0), 2)
    return events


def money_cycle(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Money goes round in a circle of two or three accounts of this bank, one row at each side, and comes back a little smaller."""
    long = attacks.each(rng.integers(2, 4, attacks.number))
    hop = attacks.step // 2
    member = attacks.victim + 37 * ((hop + attacks.step % 2) % long)
    other = attacks.victim + 37 * ((hop + 1 - attacks.step % 2) % long)
    real = int((world.c_ring < 0).sum())
    sent = attacks.step % 2 == 0
    events = empty(attacks.rows)
    events["customer"], events["counterparty"] = member % real, other % real
    events["kind"] = np.where(sent, KIND["transfer_out"], KIND["transfer_in"])
    set_out = np.flatnonzero(sent)
    before = np.maximum(np.arange(attacks.rows) - 1, 0)
    events["at_ms"] = np.where(sent, attacks.at_ms, attacks.at_ms[before] + rng.integers(1000, 20_000, attacks.rows))
    set_session(rng, world, events, set_out)
    start = attacks.each(
        np.where(attacks.quiet[attacks.first], _lognormal(rng, 60.0, 0.8, attacks.number), _lognormal(rng, 2400.0, 0.6, attacks.number))
    )
    events["amount"] = np.round(np.maximum(start * 0.97**hop, 1.0), 2)
    return events


def structuring(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Cash comes in day after day, each deposit a little under 10,000, and then leaves by transfer; quietly: in smaller sums."""
    events = empty(attacks.rows)
    events["customer"], events["at_ms"] = attacks.victim, attacks.at_ms
    last = (attacks.step == attacks.last_step) & (attacks.step > 0)
    events["kind"] = np.where(last, KIND["transfer_out"], KIND["cash_in"])
    events["category"] = np.where(last, -1, COUNTER)
    cash = np.flatnonzero(~last)
    set_place(rng, events, cash, world.c_city[attacks.victim[cash]])
    set_session(rng, world, events, np.flatnonzero(last))
    events["counterparty"] = np.where(last, _collector(rng, attacks), -1)
    deposits = np.round(np.where(attacks.quiet, rng.uniform(1500.0, 6000.0, attacks.rows), rng.uniform(8200.0, 9900.0, attacks.rows)) / 50.0) * 50.0
    gathered = attacks.each(np.bincount(attacks.attack, np.where(last, 0.0, deposits), attacks.number)) * rng.uniform(0.6, 0.95, attacks.rows)
    events["amount"] = np.round(np.where(last, np.minimum(gathered, 25_000.0), deposits), 2)
    return events


def terminal_compromise(rng: Rng, world: World, attacks: Attacks) -> Events:
    """Cards that were used at one tampered terminal within ten days are used elsewhere later: at machines, in other shops, quietly as usual."""
    victim, seen_ms = _skimmed(rng, attacks)
    later = seen_ms + (_lognormal(rng, 4.0, 0.8, attacks.rows) * DAY_MS).astype(np.int64)
    attacks = attacks._replace(victim=victim, at_ms=later)
    city = np.where(attacks.quiet, world.c_city[victim], attacks.each(rng.integers(0, len(CITY_COUNTRY), attacks.number)))
    events = _present(rng, world, attacks, city)
    _copied(rng, events, attacks, 0.25)
    _take(events, attacks, _lognormal(rng, 130.0, 0.8, attacks.rows))
    return events


def _skimmed(rng: Rng, attacks: Attacks) -> tuple[Ints, Ints]:
    """For each row a card that was at its attack's terminal, and when: terminals are as likely as they are busy."""
    past = attacks.past
    at_shops = np.flatnonzero((past["terminal"] >= 0) & (past["terminal"] < CASH_TERMINALS))
    anchors = past[rng.choice(at_shops, attacks.number)]
    at_shops = at_shops[np.isin(past["terminal"][at_shops], anchors["terminal"])]
    at_shops = at_shops[np.lexsort((past["at_ms"][at_shops], past["terminal"][at_shops]))]
    terminal, at_ms = past["terminal"][at_shops], past["at_ms"][at_shops]
    row = np.empty(attacks.rows, np.int64)
    for number, anchor in enumerate(anchors):
        start, end = np.searchsorted(terminal, [anchor["terminal"], anchor["terminal"] + 1])
        first, last = start + np.searchsorted(at_ms[start:end], [anchor["at_ms"], anchor["at_ms"] + 10 * DAY_MS])
        mine = np.flatnonzero(attacks.attack == number)
        row[mine] = first + rng.permutation(max(len(mine), last - first))[: len(mine)] % (last - first)
    return past["customer"][at_shops[row]].astype(np.int64), at_ms[row]


def transaction_cluster(rng: Rng, world: World, attacks: Attacks) -> Events:
    """One device buys the same thing at one shop with many people's cards; quietly: other things, hours apart, from other devices."""
    attacks = attacks._replace(victim=rng.choice(np.flatnonzero(world.c_ring < 0), attacks.rows))
    events = _remote(rng, world, attacks)
    _thief_device(rng, world, events, attacks, 0.3)
    _stolen_checks(rng, events, attacks, 0.85)
    _one_shop(rng, world, events, attacks)
    _take(events, attacks, attacks.each(np.round(rng.uniform(30, 300, attacks.number)).astype(np.int64)) - 0.01)
    return events


def behavioural_biometrics(rng: Rng, world: World, attacks: Attacks) -> Events:
    """The customer's own device, steered by someone or something else: the rhythm is wrong; quietly: only a little."""
    events = _remote(rng, world, attacks)
    script = attacks.each(rng.integers(0, 2, attacks.number)) == 1
    power = np.where(attacks.quiet, 0.3, 1.0)[:, None]
    factor = np.where(script[:, None], [[0.4, 0.35, 2.4, 0.25]], [[1.5, 1.8, 0.55, 2.2]]) ** power
    events["session"] *= factor * np.exp(rng.normal(0.0, 0.15, (attacks.rows, 4)))
    _take(events, attacks, _lognormal(rng, 130.0, 0.8, attacks.rows))
    return events


def device_change(rng: Rng, world: World, attacks: Attacks) -> Events:
    """A fingerprint never seen on the card, at home, with orders that are larger than usual."""
    events = _remote(rng, world, attacks)
    _thief_device(rng, world, events, attacks, 0.0)
    events["three_ds"] = np.where(attacks.quiet, events["three_ds"], RESULT["not_checked"])
    _take(events, attacks, _lognormal(rng, 100.0, 0.8, attacks.rows))
    return events


class Fraud(NamedTuple):
    """One kind: share of all fraudulent rows, rows of a loud attack and of a quiet one (least, most), median seconds from row to row,
    median days until learned, share of quiet attacks."""

    name: str
    share: float
    rows: tuple[int, int]
    quiet_rows: tuple[int, int]
    gap_s: float
    learned_days: float
    quiet: float
    shape: Callable[[Rng, World, Attacks], Events]


QUIET_GAP_S = 4 * 3600.0
FRAUDS: tuple[Fraud, ...] = (
    Fraud("velocity", 0.09, (8, 20), (3, 4), 60.0, 1.5, 0.5, velocity),
    Fraud("card_testing", 0.10, (15, 40), (1, 3), 8.0, 0.6, 0.85, card_testing),
    Fraud("impossible_travel", 0.05, (1, 4), (1, 2), 900.0, 3.0, 0.5, impossible_travel),
    Fraud("unusual_country", 0.07, (2, 6), (1, 2), 2400.0, 4.0, 0.55, unusual_country),
    Fraud("mcc_novelty", 0.06, (1, 4), (1, 1), 1500.0, 5.0, 0.5, mcc_novelty),
    Fraud("card_not_present", 0.17, (2, 7), (1, 2), 1200.0, 6.0, 0.65, card_not_present),
    Fraud("account_takeover", 0.08, (2, 5), (1, 1), 600.0, 2.0, 0.6, account_takeover),
    Fraud("synthetic_identity", 0.05, (5, 12), (2, 4), 14_000.0, 12.0, 0.6, synthetic_identity),
    Fraud("money_mule", 0.06, (4, 9), (2, 2), 1500.0, 9.0, 0.6, money_mule),
    Fraud("money_cycle", 0.03, (6, 6), (6, 6), 3000.0, 11.0, 0.5, money_cycle),
    Fraud("structuring", 0.03, (4, 7), (4, 7), 50_000.0, 10.0, 0.4, structuring),
    Fraud("terminal_compromise", 0.08, (6, 15), (6, 15), 420.0, 5.0, 0.5, terminal_compromise),
    Fraud("transaction_cluster", 0.05, (6, 18), (3, 6), 300.0, 3.0, 0.5, transaction_cluster),
    Fraud("behavioural_biometrics", 0.04, (1, 4), (1, 2), 300.0, 6.0, 0.5, behavioural_biometrics),
    Fraud("device_change", 0.04, (2, 5), (1, 2), 1800.0, 6.0, 0.5, device_change),
)
FRAUD_NAMES: tuple[str, ...] = ("", *(fraud.name for fraud in FRAUDS))
NUMBER_OF = {name: number for number, name in enumerate(FRAUD_NAMES)}


def _attacks(rng: Rng, world: World, fraud: Fraud, rows: int, days: int, past: Events) -> Attacks:
    """Attacks of one kind with so many rows in all, at least a loud one; quiet ones begin at the victim's hours and take their time."""
    loud, quiet = sum(fraud.rows) / 2, sum(fraud.quiet_rows) / 2
    count = max(1, round(rows / ((1.0 - fraud.quiet) * loud + fraud.quiet * quiet)))
    hushed = rng.random(count) < fraud.quiet
    hushed[0] = False
    bounds = np.where(hushed[:, None], fraud.quiet_rows, fraud.rows)
    long = rng.integers(bounds[:, 0], bounds[:, 1] + 1)
    attack = np.repeat(np.arange(count), long)
    first = np.cumsum(long) - long
    gaps = _lognormal(rng, 1.0, 0.5, len(attack)) * np.where(hushed, max(QUIET_GAP_S, fraud.gap_s), fraud.gap_s)[attack] * SECOND_MS
    elapsed = np.cumsum(gaps) - gaps
    elapsed -= np.repeat(elapsed[first], long)
    room = np.maximum(days * DAY_MS - elapsed[first + long - 1], 1.0)
    onset = rng.uniform(0.06, 0.99, count) * room
    victim = rng.choice(np.flatnonzero(world.c_ring < 0), count)
    usual = moments(rng, world, victim, (onset // DAY_MS).astype(np.int64))
    start = np.where(hushed, np.minimum(usual, room), onset)
    at_ms = (start[attack] + elapsed).astype(np.int64)
    return Attacks(attack, np.arange(len(attack)) - first[attack], at_ms, victim[attack], hushed[attack], (long - 1)[attack], past)


def _learned(rng: Rng, events: Events, attacks: Attacks, days: float) -> None:
    """When it became known: after the attack's last row, lognormal, at most 120 days; quiet ones later."""
    end = np.zeros(attacks.number, np.int64)
    np.maximum.at(end, attacks.attack, events["at_ms"])
    slower = np.where(attacks.quiet[attacks.first], 1.6, 1.0)
    delay = np.minimum(_lognormal(rng, days, 0.7, attacks.number) * slower, 120.0) * DAY_MS
    events["learned_ms"] = attacks.each(end + delay.astype(np.int64))


def fraudulent(rng: Rng, world: World, past: Events, days: int, rows: int) -> Events:
    """About so many rows of fraud, of every kind, unordered; those after the last day are cut."""
    parts = []
    for number, fraud in enumerate(FRAUDS, 1):
        attacks = _attacks(rng, world, fraud, round(rows * fraud.share), days, past)
        events = fraud.shape(rng, world, attacks)
        events["fraud"], events["attack"] = number, attacks.attack
        _learned(rng, events, attacks, fraud.learned_days)
        parts.append(events)
    events = np.concatenate(parts)
    kept: Events = events[events["at_ms"] < days * DAY_MS]
    return kept
