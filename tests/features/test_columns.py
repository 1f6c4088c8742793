"""Columns of a file say the same as the transactions of which it is made."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from facts_oracle import latitude_code, short_code
from histories import histories
from hypothesis import given, settings
from hypothesis import strategies as st
from past_oracle import Arrival
from payments import T0, a_payment

from features.backfill import backfill, declined_identities
from features.catalogue import CATALOGUE
from features.columns import Learned, TransactionColumns, columns_from_arrow, columns_of, known_in_time, latitude_codes, short_codes
from features.engine import look
from features.fact import DECLINED, PARTS, derived_identity
from features.memory import DictMemory
from schemas.account import AccountEvent
from schemas.transaction import Transaction

SESSION = ["keystroke_dwell_ms", "keystroke_flight_ms", "pointer_speed_px_s", "session_age_s"]
NESTED = ("session", "fingerprint", "attributes")


def a_table(payments: list[Transaction]) -> pa.Table:
    """The transactions as a file would hold them."""
    plain = [msgspec.to_builtins(txn) for txn in payments]
    rows = [{k: v for k, v in row.items() if k not in NESTED} | (row["session"] or {}) | (row["fingerprint"] or {}) for row in plain]
    names = [name for name in Transaction.__struct_fields__ if name not in NESTED] + [*SESSION, *PARTS, "emulator"]
    numbers = {
        **dict.fromkeys(["at_ms", "amount_minor", "billing_amount_minor"], pa.int64()),
        **dict.fromkeys([*SESSION, "latitude", "longitude"], pa.float64()),
        **dict.fromkeys(["emulator", "ip_proxy", "partial_allowed"], pa.bool_()),
    }
    return pa.table({name: pa.array([row.get(name) for row in rows], numbers.get(name, pa.string())) for name in names})


@settings(max_examples=50, deadline=None)
@given(histories(apart=False))
def test_a_file_backfills_like_its_transactions(history: list[Arrival]) -> None:
    payments = [a.record for a in history if a.what == "pay" and isinstance(a.record, Transaction)]
    one, other = columns_of(payments), columns_from_arrow(a_table(payments))
    assert one.fact_matrix.tobytes() == other.fact_matrix.tobytes()
    assert backfill(CATALOGUE, one).tobytes() == backfill(CATALOGUE, other).tobytes()


def test_columns_that_a_file_does_not_have_are_not_given() -> None:
    payments = [a_payment("1", card_token=None, device_token=None, merchant_id=None, mcc=None, country=None)] * 1
    table = a_table(payments).select(["transaction_id", "kind", "at_ms", "amount_minor", "account_id"])
    assert backfill(CATALOGUE, columns_from_arrow(table)).tobytes() == backfill(CATALOGUE, columns_of(payments)).tobytes()


def test_a_required_fact_that_is_missing_is_named() -> None:
    with pytest.raises(AssertionError, match="amount_minor"):
        TransactionColumns({"hash": np.ones(1, np.uint64), "at_ms": np.ones(1, np.int64), "kind": np.ones(1, np.int64)}, {})


def test_what_is_known_of_an_entity_comes_as_a_column() -> None:
    columns = columns_of([a_payment("1", T0), a_payment("2", T0)])
    known = TransactionColumns(columns.facts, columns.tokens, columns.measures, {"account.credit_limit_minor": np.array([4000.0, math.nan])})
    limit = backfill(CATALOGUE, known)[:, CATALOGUE.index["behavioural.account_amount_over_limit"]]
    assert limit[0] == 0.25
    assert math.isnan(limit[1])


def test_what_becomes_known_on_the_way_is_known_as_serving_would_have_it() -> None:
    payments = [a_payment(str(n), T0 + n, account_id=f"a{n % 2 + 1}") for n in range(12)]
    learned = [
        Learned(3, "account", "a1", "credit_limit_minor", 4000.0, T0),
        Learned(3, "account", "a2", "credit_limit_minor", 8000.0, T0 + 8),
        Learned(6, "account", "a1", "credit_limit_minor", 2000.0, T0 + 5),
        Learned(6, "account", "a1", "credit_limit_minor", 1000.0, T0 + 6),
        Learned(12, "account", "a1", "credit_limit_minor", 1.0, T0),
        Learned(0, "account", "nobody", "credit_limit_minor", 7.0, T0),
    ]

    async def served() -> list[float]:
        memory, said = DictMemory(CATALOGUE), []
        for number, txn in enumerate(payments):
            for each in learned:
                if each.before == number:
                    await memory.know(*each[1:])
            said.append(look(CATALOGUE, await memory.recall(txn)).values[CATALOGUE.index["behavioural.account_amount_over_limit"]])
        return said

    columns = columns_of(payments)
    known = replace(columns, known=known_in_time(columns, learned))
    limits = backfill(CATALOGUE, known)[:, CATALOGUE.index["behavioural.account_amount_over_limit"]]
    assert limits.tobytes() == np.array(asyncio.run(served())).tobytes()
    assert np.isnan(limits).tolist() == [True] * 4 + [False, True, False, True, False, False, False, False]


def test_account_events_leave_rows_and_ask_for_no_vector() -> None:
    event = AccountEvent(event_id="e", account_id="a1", kind="login_failed", at_ms=T0)
    both = backfill(CATALOGUE, columns_of([a_payment("1", T0), event, a_payment("2", T0)]))
    assert both.shape == (2, len(CATALOGUE.rows))
    assert both[:, CATALOGUE.index["takeover.account_login_failures_1h"]].tolist() == [0, 1]
    assert both[:, CATALOGUE.index["velocity.card_count_1h"]].tolist() == [0, 1]


@given(st.lists(st.integers(1, 2**64 - 1), min_size=1))
def test_the_identities_of_declines_at_once_are_those_one_by_one(identities: list[int]) -> None:
    at_once = declined_identities(np.array(identities, np.uint64).view(np.int64)).view(np.uint64)
    assert at_once.tolist() == [derived_identity(identity, DECLINED) for identity in identities]


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), min_size=1))
def test_keystrokes_at_once_are_those_one_by_one(values: list[float | None]) -> None:
    at_once = short_codes([math.nan if value is None else value for value in values], 10.0)
    assert at_once.tolist() == [short_code(value, 10.0) for value in values]


@given(st.lists(st.one_of(st.none(), st.floats(-90, 90)), min_size=1))
def test_places_at_once_are_those_one_by_one(degrees: list[float | None]) -> None:
    at_once = latitude_codes([math.nan if d is None else d for d in degrees])
    assert at_once.tolist() == [latitude_code(d) for d in degrees]
