"""What rows of the catalogue mean, on histories short enough to see it. Each history is served and backfilled, and must say the same."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
from payments import DAY, HOUR, MINUTE, T0, a_payment, number, seen

from features.backfill import backfill
from features.catalogue import CATALOGUE
from features.columns import TransactionColumns, columns_of
from features.memory import DictMemory
from schemas.account import AccountEvent, AccountState
from schemas.transaction import BehaviouralSession, Fingerprint, Transaction

A1 = AccountState(account_id="a1", currency="EUR", balance_minor=0, credit_limit_minor=100_000, as_of_ms=1, opened_at_ms=T0 - 400 * DAY)
MUNICH, BERLIN = {"latitude": 48.1, "longitude": 11.6}, {"latitude": 52.5, "longitude": 13.4}


def says(name: str, *records: Transaction | AccountEvent) -> float:
    """What a feature says of the last payment of this history."""

    async def served() -> float:
        memory = DictMemory(CATALOGUE)
        await memory.know_account(A1)
        said = math.nan
        for record in records:
            if isinstance(record, AccountEvent):
                await memory.remember_event(record)
            else:
                said = number(CATALOGUE, await seen(CATALOGUE, memory, record), name)
        return said

    columns = columns_of(records)
    values = {"account.credit_limit_minor": float(A1.credit_limit_minor), "account.opened_at_ms": float(A1.opened_at_ms or 0)}
    known = {name: np.full(columns.n, value) for name, value in values.items()}
    columns = TransactionColumns(columns.facts, columns.tokens, columns.measures, known, columns.asked)
    said, filled = asyncio.run(served()), float(backfill(CATALOGUE, columns)[-1, CATALOGUE.index[name]])
    assert said == filled or (math.isnan(said) and math.isnan(filled))
    return said


def an_event(kind: str, at_ms: int = T0, **fields: Any) -> AccountEvent:
    return AccountEvent(**({"event_id": f"{kind}{at_ms}", "account_id": "a1", "kind": kind, "at_ms": at_ms} | fields))


def sent(name: str, at_ms: int, sender: str, receiver: str, amount_minor: int = 1000) -> Transaction:
    return a_payment(name, at_ms, kind="transfer_out", account_id=sender, counterparty_account_id=receiver, amount_minor=amount_minor)


def got(name: str, at_ms: int, receiver: str, sender: str, amount_minor: int = 1000) -> Transaction:
    return a_payment(name, at_ms, kind="transfer_in", account_id=receiver, counterparty_account_id=sender, amount_minor=amount_minor)


# Velocity.


def test_a_customer_is_counted_over_all_accounts_and_cards() -> None:
    payments = [a_payment(str(n), T0 + n, account_id=f"a{n}", card_token=f"c{n}", customer_id="k1") for n in range(3)]
    assert says("velocity.customer_count_24h", *payments) == 2
    assert says("velocity.customer_amount_24h", *payments) == 2000


def test_cards_on_an_email_address_are_counted_once_each() -> None:
    payments = [a_payment(str(n), T0 + n, card_token=card, email_token="e1") for n, card in enumerate(["c1", "c2", "c1", "c3"])]
    assert says("velocity.email_cards_24h", *payments) == 2
    assert says("velocity.email_count_24h", *payments) == 3


@pytest.mark.parametrize(
    ("amount_minor", "counts"),
    [(89_999, 0), (90_000, 1), (99_999, 1), (100_000, 0), (899_999, 0), (900_000, 1), (999_999, 1), (1_000_000, 0), (9_900, 0), (9_500_000, 1)],
)
def test_amounts_at_most_a_tenth_below_a_round_threshold_are_counted(amount_minor: int, counts: int) -> None:
    history = [a_payment("1", T0, kind="cash_in", amount_minor=amount_minor), a_payment("2", T0 + HOUR)]
    assert says("velocity.account_just_under_count_7d", *history) == counts


def test_terminals_of_an_account_are_counted_once_each() -> None:
    payments = [a_payment(str(n), T0 + n, terminal_id=f"w{n % 2}") for n in range(4)]
    assert says("velocity.account_terminals_24h", *payments) == 2


# Geography.


def test_the_last_place_of_any_payment_counts_also_where_the_card_was_not_there() -> None:
    history = [a_payment("1", T0, kind="ecommerce", **BERLIN), a_payment("2", T0 + HOUR, **MUNICH)]
    assert math.isnan(says("geographic.card_distance_km", *history))
    assert says("geographic.card_any_distance_km", *history) == pytest.approx(504, abs=3)
    assert says("geographic.card_any_speed_kmh", *history) == pytest.approx(504, abs=3)


def test_a_time_below_a_minute_counts_as_a_minute() -> None:
    history = [a_payment("1", T0, **BERLIN), a_payment("2", T0, **MUNICH)]
    assert says("geographic.card_speed_kmh", *history) == pytest.approx(504 * 60, rel=0.01)


def test_the_countries_of_address_card_and_merchant_are_held_against_each_other() -> None:
    bought = a_payment("1", kind="ecommerce", country="DE", card_country="DE", ip_country="FR")
    assert says("geographic.txn_ip_country_differs_card", bought) == 1
    assert says("geographic.txn_ip_country_differs_merchant", bought) == 1
    assert says("geographic.txn_country_differs_card", bought) == 0
    assert says("geographic.txn_ip_country_differs_merchant", a_payment("1", country="DE", ip_country="DE")) == 0
    assert math.isnan(says("geographic.txn_ip_country_differs_merchant", a_payment("1", country="DE")))


def test_the_centre_of_places_on_both_sides_of_the_antimeridian_lies_between_them() -> None:
    taveuni, east = {"latitude": -17.0, "longitude": 179.0}, {"latitude": -17.0, "longitude": -179.0}
    here = {"latitude": -17.0, "longitude": 180.0}
    assert says("geographic.card_centre_km_30d", a_payment("1", T0, **taveuni), a_payment("2", T0, **east), a_payment("3", T0, **here)) < 2
    assert says("geographic.card_centre_km_30d", a_payment("1", T0, **taveuni), a_payment("2", T0, **here)) == pytest.approx(106, abs=2)


def test_a_place_is_new_until_the_card_was_there() -> None:
    assert says("geographic.card_place_new_90d", a_payment("1", T0, **BERLIN), a_payment("2", T0, **MUNICH)) == 1
    assert says("geographic.card_place_new_90d", a_payment("1", T0, **BERLIN), a_payment("2", T0, **BERLIN)) == 0
    assert math.isnan(says("geographic.card_place_new_90d", a_payment("1", T0, **BERLIN), a_payment("2", T0)))


# Device.


def test_the_age_of_card_and_device_together_begins_when_they_first_met() -> None:
    history = [a_payment("1", T0, device_token="d2"), a_payment("2", T0 + HOUR), a_payment("3", T0 + 2 * HOUR), a_payment("4", T0 + 3 * HOUR)]
    assert says("device.card_device_age_s", *history) == 7200
    assert math.isnan(says("device.card_device_age_s", a_payment("1", T0, device_token="d2"), a_payment("2", T0)))


def test_parts_of_a_fingerprint_that_changed_are_counted_where_both_have_them() -> None:
    before = a_payment("1", T0, fingerprint=Fingerprint(os="a", browser="b", screen="c", language="de"))
    after = a_payment("2", T0 + 1, fingerprint=Fingerprint(os="a", browser="x", screen="y", hardware="h"))
    assert says("device.device_parts_changed", before, after) == 2
    assert says("device.device_parts_changed", before, a_payment("x", T0), after) == 2
    assert math.isnan(says("device.device_parts_changed", before, a_payment("2", T0 + 1)))


def test_emulators_and_proxies_are_facts_of_their_own() -> None:
    for fingerprint, says_so in ((Fingerprint(emulator=True), 1), (Fingerprint(emulator=False), 0)):
        assert says("device.txn_emulator", a_payment("1", fingerprint=fingerprint)) == says_so
    assert math.isnan(says("device.txn_emulator", a_payment("1", fingerprint=Fingerprint())))
    assert says("device.txn_proxy", a_payment("1", ip_proxy=True)) == 1


def test_a_device_that_was_last_seen_in_another_country_has_moved() -> None:
    assert says("device.device_ip_country_moved", a_payment("1", T0, ip_country="FR"), a_payment("2", T0 + 1, ip_country="DE")) == 1
    assert says("device.device_ip_country_moved", a_payment("1", T0, ip_country="DE"), a_payment("x", T0), a_payment("2", T0, ip_country="DE")) == 0


# Behaviour.


def test_the_rank_of_an_amount_is_the_share_of_own_amounts_below_it() -> None:
    history = [a_payment(str(n), T0 + n, amount_minor=amount) for n, amount in enumerate([100, 200, 200, 300, 200])]
    assert says("behavioural.card_below_share_30d", *history) == 0.25


def test_a_card_that_is_stored_or_verified_with_nothing_does_not_lower_its_mean() -> None:
    verified = [a_payment(f"v{n}", T0 + n, kind="ecommerce", amount_minor=0) for n in range(2)]
    paid = [a_payment(f"p{n}", T0 + n, amount_minor=amount) for n, amount in enumerate([8_000, 12_000])]
    large = a_payment("1", T0 + MINUTE, amount_minor=20_000)
    assert says("velocity.card_amount_mean_30d", *verified, *paid, large) == 10_000
    assert says("behavioural.card_amount_over_mean_30d", *verified, *paid, large) == 2
    assert says("behavioural.account_amount_over_mean_30d", *verified, *paid, large) == 2
    assert says("behavioural.card_amount_zscore_30d", *verified, *paid, large) == 5
    assert says("network.account_woken_90d", *verified, *paid, a_payment("1", T0 + DAY + 1, amount_minor=20_000)) == 2
    assert math.isnan(says("behavioural.card_amount_over_mean_30d", *verified, large))
    assert says("velocity.card_small_count_1h", *verified, large) == 2


def test_the_share_of_a_weekday_counts_days_of_the_same_name() -> None:
    history = [a_payment(str(n), T0 + day * DAY) for n, day in enumerate([0, 1, 7, 8, 14])]
    assert says("behavioural.card_weekday_share_90d", *history) == 0.5


def test_typing_is_measured_in_the_customers_own_spreads() -> None:
    dwell = [80.0, 120.0, 80.0, 120.0, 140.0]
    history = [
        a_payment(str(n), T0 + n, customer_id="k1", session=BehaviouralSession(keystroke_dwell_ms=value, keystroke_flight_ms=100.0))
        for n, value in enumerate(dwell)
    ]
    history.insert(2, a_payment("untyped", T0 + 2, customer_id="k1"))
    assert says("behavioural.customer_dwell_zscore_30d", *history) == 2
    assert says("behavioural.customer_flight_zscore_30d", *history) == 0
    assert math.isnan(says("behavioural.customer_pointer_zscore_30d", *history))


def test_typing_is_missing_where_neither_of_its_times_was_taken() -> None:
    name = "behavioural.txn_biometrics_missing"
    assert says(name, a_payment("1")) == 1
    assert says(name, a_payment("1", session=BehaviouralSession(pointer_speed_px_s=300.0))) == 1
    assert says(name, a_payment("1", session=BehaviouralSession(keystroke_dwell_ms=80.0))) == 0
    assert says(name, a_payment("1", session=BehaviouralSession(keystroke_flight_ms=120.0))) == 0


# Takeover.


def test_failed_logins_count_where_one_succeeds_after_them_and_a_device_is_new_on_that_day() -> None:
    failed = [an_event("login_failed", T0 + n * MINUTE) for n in range(3)]
    name = "takeover.account_failures_then_new_device_24h"
    assert says(name, *failed, an_event("login", T0 + HOUR, device_token="d2"), a_payment("1", T0 + 2 * HOUR)) == 3
    long_known = an_event("login", T0 - 5 * DAY, device_token="d2")
    assert says(name, long_known, *failed, an_event("login", T0 + HOUR, device_token="d2"), a_payment("1", T0 + 2 * HOUR)) == 0
    assert says(name, *failed, a_payment("1", T0 + 2 * HOUR)) == 0
    new_before = an_event("login", T0 - HOUR, device_token="d2")
    assert says(name, new_before, *failed, a_payment("1", T0 + 2 * HOUR)) == 0
    assert says(name, new_before, a_payment("1", T0 + 2 * HOUR)) == 0
    assert says("takeover.account_login_failures_1h", *failed, a_payment("1", T0 + HOUR)) == 2


def test_the_time_from_a_change_counts_to_the_payment_with_which_money_leaves() -> None:
    change = an_event("phone_changed", T0)
    out = sent("1", T0 + HOUR, "a1", "b")
    assert says("takeover.account_change_to_money_out_s", change, out) == 3600
    assert math.isnan(says("takeover.account_change_to_money_out_s", change, got("1", T0 + HOUR, "a1", "b")))
    assert says("takeover.account_changes_24h", an_event("login", T0), change, an_event("credential_changed", T0 + 1), out) == 2


def test_a_payee_added_today_is_told_from_other_beneficiaries() -> None:
    added = [an_event("beneficiary_added", T0, counterparty_account_id="b"), an_event("beneficiary_added", T0 + 1, counterparty_account_id="c")]
    assert says("takeover.account_beneficiaries_added_24h", *added, sent("1", T0 + HOUR, "a1", "b")) == 2
    assert says("takeover.account_payee_added_24h", *added, sent("1", T0 + HOUR, "a1", "b")) == 1
    assert says("takeover.account_payee_added_24h", *added, sent("1", T0 + HOUR, "a1", "d")) == 0
    assert says("takeover.account_payee_added_24h", *added, sent("1", T0 + DAY, "a1", "b")) == 0
    assert says("takeover.account_payee_added_24h", *added, got("1", T0 + HOUR, "a1", "b")) == 0


def test_an_event_that_arrives_later_or_happened_later_is_not_seen() -> None:
    assert says("takeover.account_changes_24h", an_event("phone_changed", T0 + 1), sent("1", T0, "a1", "b")) == 0
    assert says("takeover.account_changes_24h", sent("1", T0, "a1", "b"), an_event("phone_changed", T0)) == 0


# Identity.


@pytest.mark.parametrize("shared", ["email", "phone", "address"])
def test_accounts_that_share_an_attribute_are_counted(shared: str) -> None:
    payments = [a_payment(str(n), T0 + n * 25 * DAY, account_id=f"a{n}", **{f"{shared}_token": "x"}) for n in range(4)]
    assert says(f"identity.{shared}_accounts_30d", *payments) == 1
    assert says(f"identity.{shared}_accounts_90d", *payments) == 3


def test_an_identity_is_as_old_as_its_email_address_and_as_busy_as_that_age_shows() -> None:
    payments = [a_payment(str(n), T0 + n * 12 * HOUR, email_token="e1") for n in range(9)]
    assert says("identity.email_age_s", *payments) == 4 * 86_400
    assert says("identity.email_per_day_of_age", *payments) == 2


def test_spending_over_the_limit_includes_this_payment_if_money_leaves() -> None:
    before = a_payment("1", T0, amount_minor=60_000)
    assert says("identity.account_spent_over_limit_30d", before, a_payment("2", T0, amount_minor=30_000)) == 0.9
    assert says("identity.account_spent_over_limit_30d", before, got("2", T0, "a1", "b", 30_000)) == 0.6


# Network.


def test_money_that_goes_straight_out_is_a_share_of_what_came_in() -> None:
    name = "network.account_out_over_in_24h"
    assert says(name, got("1", T0, "a1", "b", 10_000), sent("2", T0, "a1", "c", 4_000), sent("3", T0, "a1", "d", 5_500)) == 0.95
    assert math.isnan(says(name, sent("3", T0, "a1", "d", 5_500)))


def test_senders_and_receivers_are_counted_apart() -> None:
    history = [got(str(n), T0 + n, "a1", f"s{n % 3}") for n in range(6)] + [sent(f"o{n}", T0 + n, "a1", "r") for n in range(6)]
    assert says("network.account_senders_24h", *history) == 3
    assert says("network.account_receivers_24h", *history) == 1


def test_an_account_that_slept_is_woken_by_a_large_payment() -> None:
    small, large = a_payment("1", T0, amount_minor=1_000), sent("2", T0 + 50 * DAY, "a1", "b", 20_000)
    assert says("network.account_idle_s", small, large) == 50 * 86_400
    assert says("network.account_woken_90d", small, large) == 1_000
    assert says("network.account_dormant_90d", small, large) == 0
    assert says("network.account_dormant_90d", small, sent("2", T0 + 90 * DAY, "a1", "b", 20_000)) == 1


def test_money_that_goes_back_to_its_sender_is_a_circle_of_two() -> None:
    came = got("1", T0, "a1", "b")
    assert says("network.account_cycles_of_2_7d", came, sent("2", T0 + 1, "a1", "b")) == 1
    assert says("network.account_cycles_of_2_7d", came, sent("2", T0 + 1, "a1", "c")) == 0
    assert says("network.account_cycles_of_2_7d", came, got("2", T0 + 1, "a1", "b")) == 0
    assert says("network.account_cycles_of_2_7d", came, sent("2", T0 + 7 * DAY, "a1", "b")) == 0


def test_money_that_came_around_through_a_third_account_is_a_circle_of_three() -> None:
    through = [sent("1", T0, "b", "c"), got("2", T0 + 1, "a1", "c")]
    name = "network.account_cycles_of_3_7d"
    assert says(name, *through, sent("3", T0 + 2, "a1", "b")) == 1
    assert says(name, *through, sent("3", T0 + 2, "a1", "x")) == 0
    assert says(name, *through, got("3", T0 + 2, "a1", "b")) == 0
    assert says(name, through[0], sent("3", T0 + 2, "a1", "b")) == 0
    assert says(name, *through, sent("3", T0 + 8 * DAY, "a1", "b")) == 0
    two_ways = [sent("4", T0, "b", "d"), got("5", T0 + 1, "a1", "d"), sent("6", T0, "b", "e"), got("7", T0, "a1", "f")]
    assert says(name, *through, *two_ways, sent("3", T0 + 2, "a1", "b")) == 2


def test_payers_of_a_beneficiary_are_counted_from_their_side() -> None:
    history = [sent(str(n), T0 + n * HOUR, f"a{n}", "b") for n in range(5)]
    assert says("network.counterparty_accounts_24h", *history) == 4
    assert says("network.counterparty_age_s", *history) == 4 * 3600


# All.


@pytest.mark.parametrize("kind", ["transfer_out", "transfer_in", "ecommerce", "card_present"])
def test_a_feature_never_sees_its_own_transaction(kind: str) -> None:
    fields = {"customer_id": "k", "email_token": "e", "phone_token": "p", "address_token": "h", "counterparty_account_id": "b", "kind": kind}
    txn = a_payment("1", **fields, **BERLIN, session=BehaviouralSession(keystroke_dwell_ms=80.0), fingerprint=Fingerprint(os="a"), ip_country="DE")
    once, again = backfill(CATALOGUE, columns_of([txn, txn]))
    assert once.tobytes() == again.tobytes()
    counts = [column for column, row in enumerate(CATALOGUE.rows) if getattr(row.shape.expression, "op", "") in ("count", "sum", "distinct")]
    assert len(counts) > 50
    assert set(once[counts][~np.isnan(once[counts])]) == {0.0}
