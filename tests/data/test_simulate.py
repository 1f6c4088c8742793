"""The simulated bank: the same seed is the same history, with every kind of payment and of fraud, and honest enough to be hard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from schemas.errors import InvalidRecord, SettingsError
from schemas.transaction import TransactionKind
from streams.mapping import TokenKey, mapping_in, rows_in
from streams.settings import Settings
from streams.simulate import simulate, simulated
from streams.simulation.fraud import FRAUDS


def a_history(seed: int) -> tuple[object, object]:
    return tuple(simulated(np.random.default_rng(seed), customers=60, days=20, fraud_rate=0.05))


def test_the_same_seed_is_the_same_history_and_another_is_another() -> None:
    assert a_history(3) == a_history(3)
    assert a_history(3) != a_history(4)


def test_every_kind_of_payment_and_of_fraud_happens(history: Path) -> None:
    rows = list(rows_in(history / "transactions.parquet", mapping_in(history / "mapping.toml"), TokenKey(b"k", "k1"), now_ms=2**41))
    assert not [row for row in rows if isinstance(row.content, InvalidRecord)]
    assert {row.content.kind for row in rows if not isinstance(row.content, InvalidRecord)} == set(TransactionKind)
    assert {row.label.fraud_kind for row in rows if row.label and row.label.fraud} == {fraud.name for fraud in FRAUDS}


def test_rows_come_in_the_order_in_which_they_happened_with_ids_of_their_own(history: Path) -> None:
    table = pq.read_table(history / "transactions.parquet")
    assert table["booked_at"].to_pylist() == sorted(table["booked_at"].to_pylist())
    assert pc.count_distinct(table["reference"]).as_py() == table.num_rows


def test_fraud_is_learned_after_it_happened_and_honest_rows_are_never_named(history: Path) -> None:
    table = pq.read_table(history / "transactions.parquet")
    fraud = table.filter(table["is_fraud"])
    assert pc.all(pc.greater(fraud["learned_at"], fraud["booked_at"])).as_py()
    assert table.filter(pc.invert(table["is_fraud"]))["learned_at"].null_count == table.num_rows - fraud.num_rows
    assert 0.03 < fraud.num_rows / table.num_rows < 0.08


def test_the_honest_do_odd_things_too(history: Path) -> None:
    table = pq.read_table(history / "transactions.parquet")
    honest = table.filter(pc.invert(table["is_fraud"]))
    abroad = pc.not_equal(honest["place_country"], honest["issuer_country"])
    assert pc.sum(abroad).as_py() > 0, "some travel"
    assert pc.sum(pc.equal(honest["cvv"], "no_match")).as_py() > 0, "some mistype"
    devices = honest.group_by("account_no").aggregate([("fingerprint", "count_distinct")])
    assert max(devices["fingerprint_count_distinct"].to_pylist()) > 1, "some have a new phone"


def test_the_command_writes_what_replay_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(["--out", str(tmp_path), "--customers", "30", "--days", "5", "--json"], Settings()) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"transactions.parquet", "accounts.parquet", "mapping.toml"}
    assert '"rows"' in capsys.readouterr().out.splitlines()[-1]
    assert simulate(["--out", str(tmp_path), "--customers", "3"], Settings()) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("--start", "foo"), ("--start", "2025-13-01"), ("--start", "0001-01-01"), ("--start", "9999-12-31"), ("--seed", "-1"), ("--out", "/dev/null/x")],
)
def test_an_option_that_makes_no_sense_is_named(option: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=option):
        simulate(["--out", str(tmp_path), "--customers", "30", "--days", "5", option, value], Settings())
