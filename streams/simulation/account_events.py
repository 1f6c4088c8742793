"""What happens to the simulated accounts besides payments: logins, changes, beneficiaries; the honest's, and what comes before a theft."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.account import AccountEventKind
from streams.simulation.events import FOREIGN_DEVICES, KIND, Events, address_of, email_of, empty, own_device, phone_of, set_session
from streams.simulation.fraud import NUMBER_OF
from streams.simulation.honest import COHORT, MINUTE_MS, moments
from streams.simulation.world import DAY_MS, HOUR_MS, Flags, Ints, World

WHAT: tuple[str, ...] = tuple(AccountEventKind)
NUMBER = {kind: number for number, kind in enumerate(WHAT)}
DOING = np.dtype(
    [
        ("at_ms", "i8"),  # offset from the start of the history
        ("customer", "i4"),
        ("what", "i1"),
        ("device", "i8"),  # these as in a payment; -1 none
        ("ip", "i8"),
        ("ip_country", "i1"),
        ("email", "i8"),
        ("phone", "i8"),
        ("address", "i8"),
        ("counterparty", "i8"),
    ]
)
Doings = NDArray[np.void]
_FROM_A_SESSION = ("customer", "device", "ip", "ip_country")
Rng = np.random.Generator


def _doings(sessions: Events, at_ms: Ints, what: str) -> Doings:
    """One thing done in each of these sessions."""
    made = np.zeros(len(sessions), DOING)
    for name in _FROM_A_SESSION:
        made[name] = sessions[name]
    for name in ("email", "phone", "address", "counterparty"):
        made[name] = -1
    made["at_ms"], made["what"] = at_ms, NUMBER[what]
    return made


def _sessions(rng: Rng, world: World, customer: Ints, at_ms: Ints) -> Events:
    """These customers at a device of theirs."""
    sessions = empty(len(customer))
    sessions["customer"], sessions["at_ms"] = customer, at_ms
    set_session(rng, world, sessions, np.arange(len(customer)))
    return sessions


def _logins(rng: Rng, sessions: Events, at_ms: Ints) -> list[Doings]:
    """A login for each session; before one in nine, one to four that failed."""
    clumsy = np.flatnonzero(rng.random(len(sessions)) < 0.11)
    failed = np.repeat(clumsy, rng.integers(1, 5, len(clumsy)))
    before = rng.integers(4_000, 4 * MINUTE_MS, len(failed))
    return [_doings(sessions, at_ms, "login"), _doings(sessions[failed], at_ms[failed] - before, "login_failed")]


def _everyday(rng: Rng, world: World, people: Ints, days: int) -> list[Doings]:
    """Looking at the account, forgetting the password, and now and then a check of who one is."""
    customer = np.repeat(people, rng.poisson(world.c_logins_a_day[people] * days))
    at_ms = moments(rng, world, customer, rng.integers(0, days, len(customer)))
    sessions = _sessions(rng, world, customer, at_ms)
    forgot = np.flatnonzero(rng.random(len(customer)) < 0.02)
    parts = _logins(rng, sessions, at_ms)
    parts.append(_doings(sessions[forgot], at_ms[forgot] - rng.integers(5_000, MINUTE_MS, len(forgot)), "login_failed"))
    parts.append(_doings(sessions[forgot], at_ms[forgot] + rng.integers(20_000, 8 * MINUTE_MS, len(forgot)), "credential_changed"))
    asked = np.flatnonzero(rng.random(len(customer)) < 0.003)
    passed = rng.random(len(asked)) < 0.9
    parts.append(_doings(sessions[asked[passed]], at_ms[asked[passed]] + 5 * MINUTE_MS, "kyc_passed"))
    parts.append(_doings(sessions[asked[~passed]], at_ms[asked[~passed]] + 5 * MINUTE_MS, "kyc_failed"))
    return parts


def _changes(rng: Rng, world: World, people: Ints, days: int) -> list[Doings]:
    """A new phone is enrolled, a new e-mail, line or address is told; new accounts are checked. People often do two of these at once."""
    parts = []
    moved = (("device_changed", world.c_new_phone_ms), ("email_changed", world.c_new_email_ms))
    for what, when in (*moved, ("phone_changed", world.c_new_number_ms), ("address_changed", world.c_moved_ms)):
        who = people[when[people] < days * DAY_MS]
        sessions = _sessions(rng, world, who, when[who])
        if what == "device_changed":
            sessions["device"] = own_device(world, who, when[who])
        parts += [*_logins(rng, sessions, when[who] - rng.integers(20_000, 5 * MINUTE_MS, len(who))), _told(world, sessions, when[who], what)]
        also = rng.random(len(who)) < (0.5 if what == "device_changed" else 0.12)
        parts.append(_doings(sessions[also], when[who][also] + rng.integers(5_000, 20 * MINUTE_MS, int(also.sum())), "credential_changed"))
        if what == "device_changed":
            parts.append(_doings(sessions, when[who] + rng.integers(5_000, 2 * HOUR_MS, len(who)), "enrolled"))
    young = people[world.c_age_days[people] < 90]
    soon = (rng.random(len(young)) * min(days, 10) * DAY_MS).astype(np.int64)
    opened = _sessions(rng, world, young, soon)
    parts += [_doings(opened, soon, "kyc_passed"), _doings(opened, soon + MINUTE_MS, "enrolled")]
    return parts


def _told(world: World, sessions: Events, at_ms: Ints, what: str) -> Doings:
    """A change with what it changed to."""
    made, customer = _doings(sessions, at_ms, what), sessions["customer"].astype(np.int64)
    made["email"] = email_of(world, customer, at_ms) if what == "email_changed" else -1
    made["phone"] = phone_of(world, customer, at_ms) if what == "phone_changed" else -1
    made["address"] = address_of(world, customer, at_ms) if what == "address_changed" else -1
    return made


def _before_transfers(rng: Rng, sent: Events) -> list[Doings]:
    """Whoever sends money at a device has logged in there, and has added a beneficiary who is new: mostly just now, else days ago."""
    at_ms = sent["at_ms"] - rng.integers(20_000, 12 * MINUTE_MS, len(sent))
    pair = sent["customer"].astype(np.int64) * (1 << 43) + sent["counterparty"]
    order = np.lexsort((sent["at_ms"], pair))
    new = order[np.flatnonzero(np.diff(pair[order], prepend=-1))]
    new = new[rng.random(len(new)) < 0.6]
    just_now = rng.random(len(new)) < 0.7
    days_ago = (rng.random(len(new)) * 6 * DAY_MS).astype(np.int64)
    added = _doings(sent[new], np.where(just_now, (at_ms[new] + sent["at_ms"][new]) // 2, sent["at_ms"][new] - days_ago), "beneficiary_added")
    added["counterparty"] = sent["counterparty"][new]
    return [*_logins(rng, sent, at_ms), added]


def _before_takeovers(rng: Rng, world: World, sent: Events, quiet: Flags) -> list[Doings]:
    """What a thief does before the first payment: guesses, logs in, changes the password or how the owner is told, adds the mule.

    A quiet one has the password, changes nothing but the beneficiary, and waits for hours.
    """
    count = len(sent)
    lead = np.where(quiet, rng.integers(2 * HOUR_MS, 30 * HOUR_MS, count), rng.integers(4 * MINUTE_MS, 3 * HOUR_MS, count))
    inside = sent["at_ms"] - lead
    guesses = np.repeat(np.arange(count), np.where(quiet, rng.random(count) < 0.2, rng.integers(0, 7, count)))
    parts = [
        _doings(sent[guesses], inside[guesses] - rng.integers(3_000, 10 * MINUTE_MS, len(guesses)), "login_failed"),
        _doings(sent, inside, "login"),
        _doings(sent, sent["at_ms"] - np.minimum(lead, rng.integers(20_000, 9 * MINUTE_MS, count)), "login"),
    ]
    change = rng.random(count)
    for what, chosen in (("credential_changed", change < 0.45), ("email_changed", (change > 0.3) & (change < 0.7)), ("phone_changed", change > 0.6)):
        rows = np.flatnonzero(chosen & ~quiet)
        made = _doings(sent[rows], inside[rows] + (rng.uniform(0.02, 0.3, len(rows)) * lead[rows]).astype(np.int64), what)
        thief = FOREIGN_DEVICES + rng.integers(0, 1 << 28, len(rows))
        made["email"] = np.where(sent["email"][rows] >= 0, sent["email"][rows], thief) if what == "email_changed" else -1
        made["phone"] = thief if what == "phone_changed" else -1
        parts.append(made)
    added = _doings(sent, inside + (rng.uniform(0.35, 0.9, count) * lead).astype(np.int64), "beneficiary_added")
    added["counterparty"] = sent["counterparty"]
    return [*parts, added[~quiet | (rng.random(count) < 0.6)]]


def _first_of_each(rows: Events) -> Events:
    """The first payment of each attack."""
    ordered = rows[np.lexsort((rows["at_ms"], rows["attack"]))]
    first: Events = ordered[np.flatnonzero(np.diff(ordered["attack"], prepend=-1))]
    return first


def account_events(rng: Rng, world: World, payments: Events, days: int) -> Doings:
    """All that happened to the accounts within so many days, oldest first."""
    parts = []
    for start in range(0, world.customers, COHORT):
        people = np.arange(start, min(start + COHORT, world.customers))
        parts += [*_everyday(rng, world, people, days), *_changes(rng, world, people, days)]
    stolen = payments["fraud"] == NUMBER_OF["account_takeover"]
    typed = (payments["kind"] == KIND["transfer_out"]) & (payments["device"] >= 0)
    sent: Events = payments[typed & ~stolen]
    first = _first_of_each(payments[stolen])
    long = np.bincount(payments["attack"][stolen], minlength=1)
    parts += [*_before_transfers(rng, sent), *_before_takeovers(rng, world, first, long[first["attack"]] == 1)]
    made = np.concatenate(parts)
    made = made[(made["at_ms"] >= 0) & (made["at_ms"] < days * DAY_MS)]
    ordered: Doings = made[np.argsort(made["at_ms"], kind="stable")]
    return ordered
