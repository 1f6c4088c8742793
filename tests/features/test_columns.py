"""Columns of a file say the same as the transactions of which it is made."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from histories import histories
from hypothesis import given, settings
from hypothesis import strategies as st
from past_oracle import Arrival
from payments import T0, a_payment

from features.backfill import backfill, declined_hashes
from features.catalogue import CATALOGUE
from features.columns import TransactionColumns, columns_from_arrow, columns_of, latitude_codes
from features.fact import DECLINED, derived_hash, latitude_code
from schemas.transaction import Transaction

FLAT = ["keystroke_dwell_ms", "keystroke_flight_ms", "pointer_speed_px_s", "session_age_s"]


def a_table(payments: list[Transaction]) -> pa.Table:
    """The transactions as a file would hold them."""
    plain = [msgspec.to_builtins(txn) for txn in payments]
    rows = [{**{k: v for k, v in row.items() if k not in ("session", "attributes")}, **(row["session"] or {})} for row in plain]
    names = [name for name in Transaction.__struct_fields__ if name not in ("session", "attributes")] + FLAT
    numbers = {
        **dict.fromkeys(["at_ms", "amount_minor", "billing_amount_minor"], pa.int64()),
        **dict.fromkeys([*FLAT, "latitude", "longitude"], pa.float64()),
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


@given(st.lists(st.integers(1, 2**64 - 1), min_size=1))
def test_decline_hashes_at_once_are_those_one_by_one(hashes: list[int]) -> None:
    at_once = declined_hashes(np.array(hashes, np.uint64).view(np.int64)).view(np.uint64)
    assert at_once.tolist() == [derived_hash(hash_, DECLINED) for hash_ in hashes]


@given(st.lists(st.one_of(st.none(), st.floats(-90, 90)), min_size=1))
def test_places_at_once_are_those_one_by_one(degrees: list[float | None]) -> None:
    at_once = latitude_codes([math.nan if d is None else d for d in degrees])
    assert at_once.tolist() == [latitude_code(d) for d in degrees]
