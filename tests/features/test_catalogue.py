"""The catalogue as a table: what every row must have, and that a new row is all that a new feature takes."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from payments import HOUR, ON_LOGS, T0, a_payment, number, seen

import features.catalogue
from features.backfill import backfill
from features.catalogue import CATALOGUE, Catalogue
from features.columns import columns_of
from features.fact import CARD, CUSTOMER, EVENT_CODES, KIND_CODES
from features.layout import Cap
from features.meaning import meaning
from features.memory import DictMemory
from features.row import Feature, Fold, Own, Shape, count, days, distinct, hours, spread, total
from schemas.account import AccountEventKind
from schemas.transaction import TransactionKind

NEW = (
    Feature("velocity", total("amount_minor", of=CARD, window=hours(6)), "high_card_spend_6h", "velocity", "Spent within six hours"),
    Feature("device", distinct("terminal_id", of=CARD, window=days(7)), "many_terminals_7d", "terminal_compromise", "A column that the log had not"),
    Feature("velocity", count(of=CUSTOMER, window=hours(1)), "many_customer_payments_1h", "velocity", "An entity that had no log"),
    Feature("behavioural", spread("amount_minor", of=CARD, window=days(7)), "uneven_amounts", "velocity", "Spread of the card's amounts"),
)


FEWER = Catalogue(tuple(row for row in ON_LOGS.rows if "customer" not in repr(row.shape)))
"""Without customers, so that they can be added."""


def test_there_are_at_least_80_features_in_nine_families() -> None:
    assert len(CATALOGUE.rows) >= 80
    families = ["velocity", "geographic", "device", "behavioural", "takeover", "identity", "network", "merchant", "memory"]
    assert list(CATALOGUE.families) == families
    assert sorted(column for columns in CATALOGUE.families.values() for column in columns) == list(range(len(CATALOGUE.rows)))


def test_every_row_has_a_derived_name_a_reason_and_a_line_for_the_analyst() -> None:
    for row in CATALOGUE.rows:
        assert re.fullmatch(r"[a-z]+\.[a-z0-9_]+", row.name)
        assert re.fullmatch(r"[a-z][a-z0-9_]+", row.reason)
        assert row.catches
        assert 10 < len(row.why) < 120
        assert "\n" not in row.why
        assert not re.search(r"\b(the same of|such)\b", row.why.lower()), "a decision's reason shows the line alone"
    assert CATALOGUE.index["velocity.card_count_10m"] == CATALOGUE.names.index("velocity.card_count_10m")


def test_the_readme_says_how_many_there_are() -> None:
    readme = Path(__file__).parents[2] / "README.md"
    assert f"There are {len(CATALOGUE.rows)} of them in nine families" in readme.read_text()


def test_the_row_that_the_readme_shows_is_one_of_the_catalogue_as_it_stands_there() -> None:
    (shown,) = re.findall(r"```python\n(Feature.*?)\n```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL)
    row = eval(shown, dict(vars(features.catalogue)))
    assert isinstance(row, Feature)
    assert (row.name, row.shape) == ("velocity.card_count_10m", CATALOGUE.rows[CATALOGUE.index["velocity.card_count_10m"]].shape)


def test_rows_are_narrow() -> None:
    widths = {"card": 25, "account": 37, "device": 25, "customer": 21, "email": 20, "phone": 20, "address": 20, "counterparty": 20}
    assert {layout.kind: layout.row_bytes for layout in CATALOGUE.log_layouts} == widths


def test_a_hundred_events_of_a_card_fit_in_3_KB() -> None:
    key_and_redis_own_words = 132
    assert 100 * CATALOGUE.log_layouts[0].row_bytes + key_and_redis_own_words <= 3 * 1024


def test_every_kind_of_transaction_and_event_has_its_own_code() -> None:
    codes = [*KIND_CODES.values(), *EVENT_CODES.values()]
    assert set(KIND_CODES) == set(TransactionKind)
    assert set(EVENT_CODES) == set(AccountEventKind)
    assert len(set(codes)) == len(codes)
    assert max(codes) < 63


def test_the_id_follows_what_is_computed_and_not_how_it_is_described() -> None:
    row = CATALOGUE.rows[0]
    described = Catalogue((replace(row, why="Said otherwise", reason="other"), *CATALOGUE.rows[1:]), CATALOGUE.cap)
    assert described.catalogue_id == CATALOGUE.catalogue_id
    assert CATALOGUE.extended(NEW[:1]).catalogue_id != CATALOGUE.catalogue_id
    assert Catalogue(CATALOGUE.rows, Cap(rows=256)).catalogue_id != CATALOGUE.catalogue_id


def test_a_new_column_is_a_new_layout_and_nothing_else_moves() -> None:
    more = CATALOGUE.extended(NEW[1:2])
    old, new = CATALOGUE.log_layouts, more.log_layouts
    assert old[0].version != new[0].version
    assert [layout.version for layout in old[1:]] == [layout.version for layout in new[1:]]
    assert more.names[: len(CATALOGUE.names)] == CATALOGUE.names


def test_a_new_row_is_served_and_backfilled_at_once() -> None:
    catalogue = FEWER.extended(NEW)
    payments = [
        a_payment(str(n), T0 + n * HOUR // 4, amount_minor=100 + n, terminal_id=f"t{n % 3}", customer_id=("k1", None)[n % 2]) for n in range(40)
    ]

    async def served() -> list[np.ndarray]:
        memory = DictMemory(catalogue)
        looks = [await seen(catalogue, memory, txn) for txn in payments]
        assert number(catalogue, looks[-1], "velocity.card_amount_6h") == sum(100 + n for n in range(16, 39))
        assert number(catalogue, looks[-1], "device.card_terminals_7d") == 3
        assert number(catalogue, looks[-2], "velocity.customer_count_1h") == 1
        assert number(catalogue, looks[-1], "behavioural.card_amount_spread_7d") == pytest.approx(np.std([100 + n for n in range(39)]))
        assert (*FEWER.logs[:3], "customer", *FEWER.logs[3:]) == catalogue.logs
        return [looked.values for looked in looks]

    matrix = backfill(catalogue, columns_of(payments))
    assert matrix.tobytes() == np.array(asyncio.run(served())).tobytes()


def test_a_row_that_names_what_does_not_exist_is_refused_when_the_catalogue_is_made() -> None:
    wrong = (
        Shape("txn_colour", Own("colour")),
        Shape("card_colours_7d", Fold(CARD, "distinct", "colour", days(7), ())),
    )
    for shape in wrong:
        with pytest.raises(AssertionError, match="colour"):
            CATALOGUE.extended([Feature("velocity", shape, "colour", "velocity", "There is no colour")])


def test_every_row_says_its_exact_meaning_in_words() -> None:
    said = [meaning(row.shape.expression) for row in CATALOGUE.rows]
    assert not any("(" + word in text for word in ("op=", "Entity", "Fold", "Window") for text in said)
    of = dict(zip(CATALOGUE.names, said, strict=True))
    assert of["velocity.card_count_10m"] == (
        "the number of the card's attempts to move money out, with event time in (T - 10m, T], exact to the millisecond"
    )
    assert "attempts to move money out, with amount_minor above 0, with event" in of["velocity.card_amount_mean_30d"]
    assert "in the 60 slices of 60 s that end with T's own" in of["velocity.ip_cards_1h"]
    about = "about (a sketch: standard error below 7 % up to 500; a late T is not told the values that came again after its slice)"
    assert of["velocity.ip_cards_1h"].endswith(about)
    frauds, payments = of["merchant.merchant_fraud_share_30d"].split("] / [")
    assert "matured (the later of 7d after they happened and when that was learned, rounded up to a slice)" in frauds
    assert "matured (7d after they happened) in the 60 slices" in payments
    assert "* 0.00595238095238]" in of["merchant.merchant_surge_1h"]
    assert "is above 7776000, else 0" in of["network.account_dormant_90d"]
    assert "login, with event time at most T - 24h, with event time in (T - 90d, T]" in of["takeover.account_new_login_devices_24h"]
    failures = of["takeover.account_failures_then_new_device_24h"]
    assert "is 0, else 0] is 0" not in failures, "nobody reads what is not not"
    assert "in (T - 90d, T], exact to the millisecond]] is not 0, else 0]" in failures
    assert failures.endswith("in (T - 24h, T], exact to the millisecond], else 0, as where one of them is missing]")
    assert of["device.txn_emulator"] == "1 if the transaction says yes to emulator, 0 if it says no (missing if it says neither)"
    assert of["behavioural.txn_not_present"] == "1 if the transaction's own kind is ecommerce or moto or recurring, else 0"
