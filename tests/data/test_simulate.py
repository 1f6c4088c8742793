"""The simulated bank: the same seed is the same history, with every kind of payment and of fraud, and honest enough to be hard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from schemas.account import AccountEventKind
from schemas.errors import InvalidRecord, SettingsError
from schemas.transaction import TransactionKind, is_card_number
from streams.mapping import TokenKey, accounts_in, events_in, mapping_in, rows_in
from streams.settings import Settings
from streams.simulate import Simulated, simulate, simulated
from streams.simulation.fraud import FRAUDS

KEY = TokenKey(b"k", "k1")
FLOOR_ROWS_PER_S = 40_000


def a_history(seed: int) -> Simulated:
    return simulated(np.random.default_rng(seed), customers=60, days=20, fraud_rate=0.05)


def test_the_same_seed_is_the_same_history_and_another_is_another() -> None:
    again, another = a_history(3), a_history(4)
    for table, same, other in zip(a_history(3), again, another, strict=True):
        assert table == same
        assert table != other


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert simulate(["--out", str(tmp_path / name), "--customers", "40", "--days", "6", "--seed", "5"], Settings()) == 0
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("start", ["1970-01-01", "2199-12-31"])
def test_every_start_that_is_taken_gives_files_that_are_read(tmp_path: Path, start: str) -> None:
    assert simulate(["--out", str(tmp_path), "--customers", "40", "--days", "3", "--start", start], Settings()) == 0
    mapping = mapping_in(tmp_path / "mapping.toml")
    assert len(list(accounts_in(tmp_path / "accounts.parquet", mapping, KEY, 0, print))) == 40
    for rows in (rows_in, events_in):
        read = list(rows(tmp_path / ("transactions.parquet" if rows is rows_in else "account_events.parquet"), mapping, KEY, now_ms=2**43))
        assert not [row for row in read if isinstance(row.content, InvalidRecord)]


def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    (tmp_path / "transactions.parquet").symlink_to("/dev/full")
    with pytest.raises(SettingsError, match=r"--out: .*No space left"):
        simulate(["--out", str(tmp_path), "--customers", "40", "--days", "3"], Settings())


def test_payments_are_made_fast() -> None:
    """At 20,000 customers and 60 days it is many times this; the floor is low because other tests run beside it, and the history is small."""
    began_s = time.process_time()
    history = simulated(np.random.default_rng(1), customers=1500, days=40, fraud_rate=0.01)
    assert history.transactions.num_rows > 80_000
    assert history.transactions.num_rows / (time.process_time() - began_s) > FLOOR_ROWS_PER_S


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
    devices = honest.group_by("account_no").aggregate([("device_id", "count_distinct")])
    assert np.quantile(devices["device_id_count_distinct"].to_numpy(), 0.9) > 2, "computers, tablets and new phones"
    sharing = honest.filter(pc.is_valid(honest["device_id"])).group_by("device_id").aggregate([("account_no", "count_distinct")])
    assert max(sharing["account_no_count_distinct"].to_pylist()) > 1, "families share a tablet"
    assert pc.sum(honest["client_ip_proxy"]).as_py() > 20, "some are behind a proxy"
    assert pc.sum(honest["fp_emulator"]).as_py() < pc.sum(table.filter(table["is_fraud"])["fp_emulator"]).as_py()


def test_the_command_writes_what_replay_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(["--out", str(tmp_path), "--customers", "30", "--days", "5", "--json"], Settings()) == 0
    tables = {"transactions.parquet", "accounts.parquet", "account_events.parquet", "attacks.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == tables | {"mapping.toml"}
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["rows"] == pq.read_metadata(tmp_path / "transactions.parquet").num_rows
    assert figures["attacks"].keys() == figures["fraud_kinds"].keys() <= {fraud.name for fraud in FRAUDS}
    assert simulate(["--out", str(tmp_path), "--customers", "3"], Settings()) == 2


def test_fingerprints_of_a_device_change_a_part_now_and_then(history: Path) -> None:
    table = pq.read_table(history / "transactions.parquet")
    shown = table.filter(pc.and_(pc.invert(table["is_fraud"]), pc.is_valid(table["fp_os"])))
    parts = ("fp_os", "fp_browser", "fp_screen", "fp_time_zone", "fp_language", "fp_hardware")
    of = shown.group_by("device_id").aggregate([(part, "count_distinct") for part in parts])
    changed = {part: sum(n > 1 for n in of[f"{part}_count_distinct"].to_pylist()) for part in parts}
    assert changed["fp_browser"] > 0, "browsers are updated"
    assert changed["fp_time_zone"] > 0, "clocks travel"
    assert (changed["fp_os"], changed["fp_screen"], changed["fp_hardware"]) == (0, 0, 0), "the device is the same device"


def the_events(history: Path) -> pa.Table:
    return pq.read_table(history / "account_events.parquet")


def test_a_takeover_is_told_by_account_events_before_the_money_leaves(history: Path) -> None:
    table, events = pq.read_table(history / "transactions.parquet"), the_events(history).to_pylist()
    stolen = sorted((row for row in table.to_pylist() if row["fraud_kind"] == "account_takeover"), key=lambda row: row["booked_at"])
    assert stolen
    before = [
        [
            e["what"]
            for e in events
            if (e["account_no"], e["device_id"]) == (row["account_no"], row["device_id"]) and e["happened_at"] < row["booked_at"]
        ]
        for row in stolen
    ]
    assert all("LOGIN" in what for what in before), "who sends has logged in, at the same device"
    seen = {word for what in before for word in what}
    assert {"NO_LOGIN", "PAYEE"} <= seen
    assert seen & {"PASSWORD", "EMAIL", "PHONE"}


def test_account_events_do_not_give_fraud_away(history: Path) -> None:
    table, events = pq.read_table(history / "transactions.parquet"), the_events(history)
    robbed = set(table.filter(pc.equal(table["fraud_kind"], "account_takeover"))["account_no"].to_pylist())
    for word in ("NO_LOGIN", "PASSWORD", "PAYEE"):
        told = events.filter(pc.equal(events["what"], word))["account_no"].to_pylist()
        assert sum(account not in robbed for account in told) > 2 * sum(account in robbed for account in told), word
    assert {"EMAIL", "PHONE", "ADDRESS", "DEVICE", "ENROLLED", "KYC_OK"} <= set(events["what"].to_pylist())


def test_account_events_are_in_order_and_their_devices_are_those_of_the_payments(history: Path) -> None:
    events, table = the_events(history), pq.read_table(history / "transactions.parquet")
    assert events["happened_at"].to_pylist() == sorted(events["happened_at"].to_pylist())
    assert pc.count_distinct(events["event"]).as_py() == events.num_rows
    senders = table.filter(pc.and_(pc.equal(table["type"], "DEB"), pc.is_valid(table["device_id"])))
    known = set(zip(events["account_no"].to_pylist(), events["device_id"].to_pylist(), strict=True))
    pairs = list(zip(senders["account_no"].to_pylist(), senders["device_id"].to_pylist(), strict=True))
    assert sum(pair in known for pair in pairs) > 0.98 * len(pairs), "but for the very first minutes"


def test_every_account_event_of_the_file_is_one(history: Path) -> None:
    mapping = mapping_in(history / "mapping.toml")
    rows = list(events_in(history / "account_events.parquet", mapping, KEY, now_ms=2**41))
    assert [row.number for row in rows] == list(range(1, the_events(history).num_rows + 1))
    events = [row.content for row in rows if not isinstance(row.content, InvalidRecord)]
    assert len(events) == len(rows)
    assert {event.kind for event in events} == set(AccountEventKind)
    payments = rows_in(history / "transactions.parquet", mapping, KEY, now_ms=2**41)
    devices = {row.content.device_token for row in payments if not isinstance(row.content, InvalidRecord)} - {None}
    assert len(devices & {event.device_token for event in events}) > 100


def kinds_of(history: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(history / "transactions.parquet").to_pylist() if row["fraud_kind"] == kind]


def test_money_goes_in_circles_and_both_sides_are_booked(history: Path) -> None:
    rows = kinds_of(history, "money_cycle")
    hops = {(row["account_no"], row["other_account"]) for row in rows if row["type"] == "DEB"}
    assert hops
    assert {(row["other_account"], row["account_no"]) for row in rows if row["type"] == "CRE"} == hops
    two = {(a, b) for a, b in hops if (b, a) in hops}
    three = {(a, c) for a, b in hops for b_, c in hops if b == b_ and (c, a) in hops and a != c}
    assert two or three


@pytest.fixture(scope="module")
def town() -> list[dict[str, Any]]:
    """The payments of 400 customers in 40 days."""
    rows: list[dict[str, Any]] = simulated(np.random.default_rng(2), customers=400, days=40, fraud_rate=0.04).transactions.to_pylist()
    return rows


def test_skimmed_cards_were_honestly_used_at_one_terminal_before(town: list[dict[str, Any]]) -> None:
    used: dict[str, set[str]] = {}
    for row in town:
        if row["type"] in ("POS", "TAP") and not row["is_fraud"]:
            used.setdefault(row["terminal"], set()).add(row["card_number"])
    stolen = [row for row in town if row["fraud_kind"] == "terminal_compromise"]
    copied = {row["card_number"] for row in stolen}
    tampered = max(used, key=lambda terminal: len(used[terminal] & copied))
    assert len(used[tampered] & copied) >= 5
    assert sum(row["terminal"] == tampered for row in stolen) < len(stolen) / 4, "they are used elsewhere"


@pytest.mark.parametrize("shared", ["email", "phone", "address", "device_id"])
def test_made_up_people_share_what_they_are_reached_by(town: list[dict[str, Any]], shared: str) -> None:
    owners: dict[str, set[str]] = {}
    for row in town:
        if row["fraud_kind"] == "synthetic_identity":
            owners.setdefault(row[shared], set()).add(row["account_no"])
    assert max(map(len, owners.values())) >= 2


def test_a_tester_tries_the_cards_of_one_bin_at_one_shop(history: Path) -> None:
    rows = kinds_of(history, "card_testing")
    busiest = max({row["acceptor"] for row in rows}, key=lambda shop: sum(row["acceptor"] == shop for row in rows))
    tried = [row for row in rows if row["acceptor"] == busiest]
    assert len({row["card_number"][:6] for row in tried}) == 1
    assert len({row["card_number"] for row in tried}) >= 2
    assert max(row["amount"] for row in tried) < 10


def test_each_attack_has_onset_end_loss_and_the_moment_when_it_was_learned(history: Path) -> None:
    attacks, table = pq.read_table(history / "attacks.parquet"), pq.read_table(history / "transactions.parquet")
    assert set(attacks["fraud_kind"].to_pylist()) == {fraud.name for fraud in FRAUDS}
    assert pc.sum(attacks["payments"]).as_py() == pc.sum(table["is_fraud"]).as_py()
    assert pc.all(pc.less_equal(attacks["onset_at"], attacks["last_at"])).as_py()
    assert pc.all(pc.less(attacks["last_at"], attacks["learned_at"])).as_py()
    assert pc.sum(attacks["lost_eur"]).as_py() > 0


def test_nothing_but_labels_reads_what_only_the_simulator_knows(history: Path) -> None:
    mapping = mapping_in(history / "mapping.toml")
    label, bare = mapping.label, msgspec.structs.replace(mapping, label=None, ignore=("is_fraud", "fraud_kind", "learned_at"))
    assert label is not None
    assert {label.column, label.kind_column, label.learned_at_column} == {"is_fraud", "fraud_kind", "learned_at"}
    assert not {"is_fraud", "fraud_kind", "learned_at"} & {*bare.columns, *mapping.account_events.columns}  # type: ignore[union-attr]  # it is there
    assert not {"is_fraud", "fraud_kind", "attack", "learned_at"} & {*the_events(history).column_names}
    shown = rows_in(history / "transactions.parquet", mapping, KEY, now_ms=2**41)
    hidden = rows_in(history / "transactions.parquet", bare, KEY, now_ms=2**41)
    assert [row.content for row in shown] == [row.content for row in hidden]


LABELS_OF_A_BANK = "label.py"
"""Reads a bank's own file of labels, which has a column of that name."""


def test_no_code_reads_the_hidden_columns_or_the_attacks() -> None:
    house = Path(__file__).parents[2]
    sources = [path for floor in ("schemas", "features", "models", "streams") for path in (house / floor).rglob("*.py")]
    others = [path for path in sources if path.parent.name != "simulation" and path.name not in ("simulate.py", LABELS_OF_A_BANK)]
    assert len(others) > 50
    for path in others:
        for word in ("is_fraud", 'learned_at"', "attacks.parquet"):
            assert word not in path.read_text(encoding="utf-8"), f"{path} names {word}"


def test_card_numbers_have_their_check_digit(history: Path) -> None:
    numbers = set(pq.read_table(history / "transactions.parquet")["card_number"].to_pylist()) - {None}
    assert all(is_card_number(number) and len(number) == 16 for number in numbers)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--start", "foo"), ("--start", "2025-13-01"), ("--start", "0001-01-01"), ("--start", "9999-12-31"), ("--seed", "-1"), ("--out", "/dev/null/x")],
)
def test_an_option_that_makes_no_sense_is_named(option: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=option):
        simulate(["--out", str(tmp_path), "--customers", "30", "--days", "5", option, value], Settings())


@pytest.mark.parametrize(
    "size", [("--days", "100000"), ("--days", "3651"), ("--customers", "100000001"), ("--customers", "1000000", "--days", "101")]
)
def test_a_history_without_end_is_refused(size: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(["--out", str(tmp_path / "none"), "--customers", "30", *size], Settings()) == 2
    assert "at most 3,650 days" in capsys.readouterr().err
