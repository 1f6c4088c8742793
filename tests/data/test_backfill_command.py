"""`holdfast backfill`: killed, it goes on to the same bytes; some features are those of all; account events come by file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.catalogue import CATALOGUE
from features.fact import FACTS
from schemas.account import AccountState
from schemas.errors import SettingsError
from streams import backfill as backfill_job
from streams import cluster
from streams.backfill import FEATURES_FILE, STATE, backfill
from streams.clock import clock_ms
from streams.mapping import TokenKey, mapping_in
from streams.replay import replay
from streams.settings import Settings
from streams.size import own_redis

SETTINGS = Settings(token_key="a test's key")
COUNT = "velocity.account_count_1h"


def asked(history: Path, out: Path, *more: str) -> list[str]:
    """The arguments of a backfill of the small history, in small lots."""
    files = [str(history / "transactions.parquet"), "--map", str(history / "mapping.toml")]
    return [*files, "--accounts", str(history / "accounts.parquet"), "--out", str(out), "--lot", "1500", *more]


def parts(out: Path) -> dict[str, bytes]:
    """The bytes of each part."""
    return {path.name: path.read_bytes() for path in sorted((out / FEATURES_FILE).iterdir())}


@pytest.fixture(scope="module")
def whole(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backfill that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert backfill(asked(history, out), SETTINGS) == 0
    return out


def begun(history: Path, out: Path) -> subprocess.Popen[bytes]:
    """A backfill in a process of its own."""
    environment = os.environ | {"HOLDFAST_TOKEN_KEY": "a test's key"}
    command = [sys.executable, "-m", "streams.cli", "backfill", *asked(history, out)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def test_a_killed_backfill_goes_on_and_ends_in_the_same_bytes(history: Path, whole: Path, tmp_path: Path) -> None:
    hidden = tmp_path / f".{FEATURES_FILE}"
    run = begun(history, tmp_path)
    while not (hidden / "part-000003.parquet").exists() or not (hidden / STATE).exists():
        assert run.poll() is None, "it was over before it could be killed"
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert not (tmp_path / FEATURES_FILE).exists(), "nothing of it is seen before all is there"
    run = begun(history, tmp_path)
    said = run.communicate()[1].decode()
    assert run.returncode == 0
    assert "going on after " in said
    assert "going on after 0 rows" not in said
    assert parts(tmp_path) == parts(whole)
    assert not hidden.exists()


def test_the_rate_of_a_backfill_that_goes_on_is_of_what_it_made_itself(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    asks = asked(history, tmp_path, "--features", COUNT, "--threads", "1", "--json")
    with monkeypatch.context() as patch:
        patch.setattr("streams.backfill._Place.finish", killed)
        patch.setattr("streams.backfill.STATE_SHARE", 0)
        with pytest.raises(SystemExit):
            backfill(asks, SETTINGS)
    assert backfill(asks, SETTINGS) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["rows"] == pq.read_table(tmp_path / FEATURES_FILE).num_rows
    assert figures["rows_per_s"] == 0, "all was made before"


def test_a_part_is_on_the_disk_before_a_state_or_the_folders_name_speaks_of_it(
    history: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced, folders = os.fsync, set[str](), list[set[str]]()

    def seen(descriptor: int) -> None:
        real(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name == f".{STATE}":
            assert {part.name for part in path.parent.glob("part-*")} <= synced, "all that the state speaks of"
        synced.add(path.name.removeprefix("."))
        if path.is_dir():
            folders.append({part.name for part in path.glob("part-*")})

    monkeypatch.setattr(os, "fsync", seen)
    assert backfill(asked(history, tmp_path), SETTINGS) == 0
    assert set(parts(whole)) <= synced
    assert folders[-1] == set(parts(whole))


def test_what_was_there_before_is_whole_or_gone_wherever_a_backfill_is_killed(
    history: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, **_: object) -> None:
        for part in sorted(path.glob("part-*"))[:1]:
            part.unlink()
            raise SystemExit

    assert backfill(asked(history, tmp_path, "--features", COUNT), SETTINGS) == 0
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            backfill(asked(history, tmp_path), SETTINGS)
    assert parts(tmp_path) == parts(whole)
    assert backfill(asked(history, tmp_path, "--features", COUNT), SETTINGS) == 0
    assert [path.name for path in tmp_path.iterdir()] == [FEATURES_FILE]


def test_two_backfills_do_not_write_into_one_folder(history: Path, whole: Path, tmp_path: Path) -> None:
    run = begun(history, tmp_path)
    while not (tmp_path / f".{FEATURES_FILE}" / "part-000000.parquet").exists():
        assert run.poll() is None, "it was over before another came"
        time.sleep(0.01)
    with pytest.raises(SettingsError, match="another backfill writes into this folder"):
        backfill(asked(history, tmp_path), SETTINGS)
    run.communicate()
    assert run.returncode == 0
    assert parts(tmp_path) == parts(whole)


def test_a_folder_that_cannot_be_written_is_named(history: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"--out: .*file"):
        backfill(asked(history, tmp_path / "file"), SETTINGS)


@pytest.mark.parametrize(
    ("asks", "says"),
    [
        (["{good}", "{cut}"], "cut.parquet: Parquet magic bytes not found"),
        (["{holed}"], "holed.parquet: "),
        (["{good}", "{other}"], r"other.parquet does not fit its mapping:\n- column 'amount' is mapped"),
        (["{good}", "--accounts", "{cut}"], "cut.parquet: Parquet magic bytes not found"),
        (["{good}", "--events", "{cut}"], "cut.parquet: Parquet magic bytes not found"),
        (["{good}", "--known", "{cut}"], "cut.parquet: "),
        (["{good}", "--known", "{good}"], "has no column 'account_id'"),
        (["{good}", "--known", "{dated}"], r"dated.parquet: column 'known_at_ms' is timestamp\[ms\], not int64"),
        (["{good}", "--known", "{told}"], "told.parquet: column 'cluster_size' is string, not double"),
    ],
)
def test_a_file_that_is_broken_or_of_another_kind_is_named(history: Path, tmp_path: Path, asks: list[str], says: str) -> None:
    good, table = history / "transactions.parquet", pq.read_table(history / "transactions.parquet")
    cut, holed, other, dated, told = (tmp_path / f"{name}.parquet" for name in ("cut", "holed", "other", "dated", "told"))
    pq.write_table(table.drop_columns(["amount"]), other)
    pq.write_table(pa.table({"account_id": ["a"], "known_at_ms": pa.array([5], pa.timestamp("ms"))}), dated)
    pq.write_table(pa.table({"account_id": ["a"], "known_at_ms": [5], "cluster_size": ["many"]}), told)
    cut.write_bytes(good.read_bytes()[:5_000])
    holed.write_bytes(good.read_bytes()[:1_000] + bytes(10_000) + good.read_bytes()[11_000:])
    argv = [each.format(good=good, cut=cut, holed=holed, other=other, dated=dated, told=told) for each in asks]
    with pytest.raises(SettingsError, match=says):
        backfill([*argv, "--map", str(history / "mapping.toml"), "--out", str(tmp_path / "out"), "--features", COUNT], SETTINGS)
    assert not list((tmp_path / "out").rglob("part-*")), "nothing is begun with a file that does not fit"


@pytest.mark.parametrize("damage", ["state", "head", "empty", "mapping"])
def test_what_does_not_fit_begins_anew(history: Path, whole: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = tmp_path / f".{FEATURES_FILE}"
    hidden.mkdir()
    (hidden / "part-000000.parquet").write_bytes(b"of old")
    about = {"fingerprint": "another", "done": {}, "sha256": "0"}
    if damage == "state":
        from streams.backfill import Given

        key = TokenKey(SETTINGS.token_key.encode(), SETTINGS.token_key_id)
        given = Given((history / "transactions.parquet",), mapping_in(history / "mapping.toml"), key, history / "accounts.parquet")
        about["fingerprint"] = given.fingerprint(CATALOGUE, 1500)
    (hidden / STATE).write_bytes({"head": b"{", "empty": b""}.get(damage, json.dumps(about).encode() + b"\n"))
    assert backfill(asked(history, tmp_path), SETTINGS) == 0
    assert "beginning anew" in capsys.readouterr().err
    assert parts(tmp_path) == parts(whole)


@pytest.mark.parametrize("changes", [{"read": 4500}, {"lots": None}, {"lotz": 1}])
def test_a_state_whose_count_of_rows_is_damaged_begins_anew(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, int | None]
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    asks = asked(history, tmp_path, "--features", COUNT, "--threads", "1")
    with monkeypatch.context() as patch:
        patch.setattr("streams.backfill._Place.finish", killed)
        patch.setattr("streams.backfill.STATE_SHARE", 0)
        with pytest.raises(SystemExit):
            backfill(asks, SETTINGS)
    state = tmp_path / f".{FEATURES_FILE}" / STATE
    head, _, body = state.read_bytes().partition(b"\n")
    about = json.loads(head)
    state.write_bytes(json.dumps(about | {"done": about["done"] | changes}).encode() + b"\n" + body)
    assert backfill(asks, SETTINGS) == 0
    assert "the state that was kept here is broken: beginning anew" in capsys.readouterr().err
    assert pq.read_table(tmp_path / FEATURES_FILE).num_rows == about["done"]["rows"]


def test_a_bad_account_is_said_and_the_others_are_known(history: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accounts = pq.read_table(history / "accounts.parquet")
    bad = accounts.slice(0, 1).set_column(accounts.column_names.index("ccy"), "ccy", [["EUX"]])
    pq.write_table(pa.concat_tables([accounts, bad.cast(accounts.schema)]), tmp_path / "accounts.parquet")
    argv = [str(history / "transactions.parquet"), "--map", str(history / "mapping.toml"), "--out", str(tmp_path), "--lot", "1500"]
    assert backfill([*argv, "--accounts", str(tmp_path / "accounts.parquet")], SETTINGS) == 0
    assert f"accounts.parquet: row {len(accounts) + 1}: currency: " in capsys.readouterr().err
    assert parts(tmp_path) == parts(whole)


def test_some_features_are_columns_of_all_and_nothing_else_is_written(history: Path, whole: Path, tmp_path: Path) -> None:
    names = ["network.account_cycles_of_3_7d", "velocity.card_count_1h", "memory.account_log_capped", "merchant.merchant_decline_ratio_24h"]
    assert set(names) <= set(CATALOGUE.names)
    assert backfill(asked(history, tmp_path, "--features", ",".join([*names, names[1]])), SETTINGS) == 0
    some, every = pq.read_table(tmp_path / FEATURES_FILE), pq.read_table(whole / FEATURES_FILE)
    assert [name for name in some.column_names if "." in name] == names
    for name in names:
        assert some[name].to_numpy().tobytes() == every[name].to_numpy().tobytes(), name
    for option, wrong in (("--features", "velocity.nonsense"), ("--features", ""), ("--only", "")):
        with pytest.raises(SettingsError, match="no feature"):
            backfill(asked(history, tmp_path, option, wrong), SETTINGS)


def test_lots_go_on_from_one_file_to_the_next(history: Path, whole: Path, tmp_path: Path) -> None:
    table, files = pq.read_table(history / "transactions.parquet"), []
    for number, (begin, end) in enumerate(((0, 700), (700, 710), (710, table.num_rows))):
        pq.write_table(table.slice(begin, end - begin), tmp_path / f"t{number}.parquet", row_group_size=900)
        files.append(str(tmp_path / f"t{number}.parquet"))
    assert backfill([*files, *asked(history, tmp_path / "out")[1:]], SETTINGS) == 0
    assert parts(tmp_path / "out") == parts(whole)


def test_rows_without_ids_are_counted_on_from_file_to_file(tmp_path: Path) -> None:
    """Two tills write their day by the minute: the first rows of both happen at once, and are two payments."""
    (tmp_path / "m.toml").write_text(
        'row_id_prefix = "p-"\n[fields]\naccount_id = "account"\n[constants]\nkind = "card_present"\n'
        '[time]\ncolumn = "minute"\nformat = "offset_m"\norigin = "2026-01-01"\n[amount]\ncolumn = "sum"\ncurrency = "EUR"\n'
        '[label]\ncolumn = "fraud"\ndelay = "1d"\n'
    )
    files = [str(tmp_path / "one.csv"), str(tmp_path / "two.csv")]
    Path(files[0]).write_text("account,minute,sum,fraud\na,0,1.00,1\na,1,oops,0\na,2,1.00,0\n")
    Path(files[1]).write_text("account,minute,sum,fraud\na,0,1.00,0\na,1,1.00,0\na,2,1.00,0\n")
    counts = {}
    for lot in ("1", "4", "9"):
        out = tmp_path / lot
        assert backfill([*files, "--map", str(tmp_path / "m.toml"), "--out", str(out), "--lot", lot, "--features", COUNT], SETTINGS) == 0
        table = pq.read_table(out / FEATURES_FILE)
        counts[lot] = dict(zip(table["transaction_id"].to_pylist(), table[COUNT].to_pylist(), strict=True))
    assert counts["1"] == counts["4"] == counts["9"] == {"p-1": 0.0, "p-3": 1.0, "p-4": 1.0, "p-5": 2.0, "p-6": 4.0}
    said: list[str] = []
    past = cluster.past_of_files([Path(file) for file in files], mapping_in(tmp_path / "m.toml"), TokenKey(b"key", "k1"), clock_ms(), said.append)
    assert said == [f"{files[0]}: row 2: amount_minor: 'oops' is not an amount (column 'sum')", f"{files[0]}: 1 rows are bad and were left out"]
    assert past.learned["transaction_id"].to_pylist() == list(counts["1"]), "or a label of the second file would take back one of the first"


def test_no_cluster_knows_of_a_fraud_before_it_happens_whatever_a_file_says(tmp_path: Path) -> None:
    """As where a file has the day on which a fraud was learned, and not the time."""
    (tmp_path / "m.toml").write_text(
        'row_id_prefix = "p-"\n[fields]\naccount_id = "account"\n[tokens]\ndevice_token = "device"\n[constants]\nkind = "ecommerce"\n'
        '[time]\ncolumn = "hour"\nformat = "offset_h"\norigin = "2026-01-01"\n[amount]\ncolumn = "sum"\ncurrency = "EUR"\n'
        '[label]\ncolumn = "fraud"\nlearned_at_column = "learned"\ndelay = "1d"\n'
    )
    (tmp_path / "f.csv").write_text("account,device,hour,sum,fraud,learned\na,d,0,1.00,0,\nb,d,0,1.00,0,\na,d,22,1.00,1,1\na,d,40,1.00,0,\n")
    asks = ["--file", str(tmp_path / "f.csv"), "--map", str(tmp_path / "m.toml"), "--out", str(tmp_path / "known"), "--every", "7200"]
    assert cluster.command(asks, SETTINGS.changed(data_dir=tmp_path / "data")) == 0
    known = pq.read_table(tmp_path / "known").to_pylist()
    shares = [(row["known_at_ms"] // 3_600_000 % 24, row["cluster_fraud_share"]) for row in known if row["account_id"] == "b"]
    assert shares == [(2, 0.0), (0, 1.0)]


def test_a_refund_that_was_declined_is_no_declined_attempt(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(
        'row_id_prefix = "p-"\n[fields]\naccount_id = "account"\nkind = "kind"\n[declined]\ncolumn = "said"\nvalues = ["51"]\n'
        '[time]\ncolumn = "minute"\nformat = "offset_m"\norigin = "2026-01-01"\n[amount]\ncolumn = "sum"\ncurrency = "EUR"\n'
    )
    (tmp_path / "f.csv").write_text(
        "account,kind,minute,sum,said\na,refund,0,1.00,51\na,ecommerce,1,1.00,51\na,transfer_in,2,1.00,51\na,ecommerce,3,1.00,00\n"
    )
    asks = [str(tmp_path / "f.csv"), "--map", str(tmp_path / "m.toml"), "--out", str(tmp_path), "--features", "velocity.account_declines_24h"]
    assert backfill(asks, SETTINGS) == 0
    table = pq.read_table(tmp_path / FEATURES_FILE)
    assert table["velocity.account_declines_24h"].to_pylist() == [0.0, 0.0, 1.0, 1.0]
    assert table["declined"].to_pylist() == [True, True, True, False]


def test_one_new_feature_alone_is_its_column_of_all(history: Path, whole: Path, tmp_path: Path) -> None:
    name = "network.account_cycles_of_3_7d"
    assert backfill(asked(history, tmp_path, "--only", name), SETTINGS) == 0
    alone, every = pq.read_table(tmp_path / FEATURES_FILE), pq.read_table(whole / FEATURES_FILE)
    assert [column for column in alone.column_names if "." in column] == [name]
    assert alone[name].to_numpy().tobytes() == every[name].to_numpy().tobytes()


@pytest.mark.parametrize(
    "wrong", [["--running"], ["--only", "velocity.card_count_1h", "--running", "a.parquet"], ["--only", "velocity.card_count_1h"]]
)
def test_what_is_asked_for_is_files_or_the_running_system(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        backfill(wrong, SETTINGS)


@pytest.mark.parametrize(
    ("command", "asks"),
    [
        (backfill, ["{file}", "--map", "{map}", "--out", "{folder}"]),
        (replay, ["{file}", "--map", "{map}", "--out", "{file}"]),
        (cluster.command, ["--file", "{file}", "--map", "{map}", "--out", "{file}"]),
    ],
)
def test_what_is_written_takes_the_place_of_nothing_that_is_read(
    history: Path, tmp_path: Path, command: Callable[[list[str], Settings], int], asks: list[str]
) -> None:
    file, settings = tmp_path / FEATURES_FILE, Settings(data_dir=tmp_path / "data", token_key="a test's key")
    file.write_bytes((history / "transactions.parquet").read_bytes())
    with pytest.raises(SettingsError, match=f"would take the place of .*{FEATURES_FILE}"):
        command([each.format(file=file, map=history / "mapping.toml", folder=tmp_path) for each in asks], settings)
    assert file.read_bytes() == (history / "transactions.parquet").read_bytes()


def test_what_is_loaded_into_a_running_system_ends_with_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    with own_redis() as redis:
        settings = SETTINGS.changed(redis_url=f"unix://{redis.connection_pool.connection_kwargs['path']}")
        assert backfill(["--only", COUNT, "--running", "--json"], settings) == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1]) == {}
    assert "nothing to load" in said.err


def test_what_is_known_of_all_accounts_is_gone_through_once_and_not_for_every_lot() -> None:
    many, nobody = 50_000, np.nan
    states = tuple(AccountState(account_id=f"a{n}", currency="EUR", balance_minor=0, credit_limit_minor=n, as_of_ms=1) for n in range(many))
    known = pa.table({"account_id": [f"a{n}" for n in range(many)], "known_at_ms": [2] * many, "cluster_size": np.arange(many) + 1.0})
    lot = pa.table({"account_id": ["a7", "x", "a9", "a7"], "at_ms": [1, 2, 3, 4]})

    def took(knowledge: backfill_job._Knowledge, column: str, wanted: list[float]) -> float:
        began = time.perf_counter()
        found = knowledge.columns(lot)[column]
        assert np.array_equal(found, wanted, equal_nan=True)
        return time.perf_counter() - began

    for given, column, wanted in (
        ((states, None), "account.credit_limit_minor", [7.0, nobody, 9.0, 7.0]),
        (((), known), "account.cluster_size", [nobody, nobody, 10.0, 8.0]),
    ):
        first = min(took(backfill_job._Knowledge(*given), column, wanted) for _ in range(3))
        knowledge = backfill_job._Knowledge(*given)
        assert min(took(knowledge, column, wanted) for _ in range(6)) < first / 5, column


def test_account_events_of_a_file_come_before_the_payments_that_follow_them(history: Path, whole: Path, tmp_path: Path) -> None:
    assert backfill(asked(history, tmp_path, "--events", str(history / "account_events.parquet")), SETTINGS) == 0
    told, untold = pq.read_table(tmp_path / FEATURES_FILE), pq.read_table(whole / FEATURES_FILE)
    assert told["transaction_id"] == untold["transaction_id"]
    name = "takeover.account_login_failures_24h"
    assert untold[name].to_numpy().sum() == 0
    assert told[name].to_numpy().sum() > 0
    name = "velocity.card_count_7d"
    assert told[name].to_numpy().tobytes() == untold[name].to_numpy().tobytes()


def test_account_events_in_order_of_time_are_not_held_all_at_once(history: Path, tmp_path: Path) -> None:
    events = pq.read_table(history / "account_events.parquet")
    paid = pq.read_table(history / "transactions.parquet", columns=["booked_at"])["booked_at"].cast(pa.int64()).to_numpy()

    def peak(many: int) -> int:
        happened = pa.array(np.linspace(paid[0], paid[-1], many).astype(np.int64), pa.timestamp("ms", tz="UTC"))
        more = events.take(np.arange(many) % len(events))
        more = more.set_column(more.column_names.index("happened_at"), "happened_at", happened)
        more = more.set_column(more.column_names.index("event"), "event", [[f"e{number}" for number in range(many)]])
        pq.write_table(more, tmp_path / "events.parquet")
        tracemalloc.start()
        try:
            name = "takeover.account_login_failures_1h"
            assert backfill(asked(history, tmp_path, "--features", name, "--events", str(tmp_path / "events.parquet")), SETTINGS) == 0
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = 70_000, 280_000
    first, second = peak(few), peak(many)
    assert second - first < (many - few) * 8 * len(FACTS), "not even their facts"


def test_account_events_in_any_order_come_when_they_happened(history: Path, tmp_path: Path) -> None:
    events = pq.read_table(history / "account_events.parquet")
    pq.write_table(events.take(np.argsort(np.arange(len(events)) % 7, kind="stable")), tmp_path / "events.parquet")
    for name, file in (("in_order", history / "account_events.parquet"), ("in_any", tmp_path / "events.parquet")):
        assert backfill(asked(history, tmp_path / name, "--features", "takeover.account_login_failures_24h", "--events", str(file)), SETTINGS) == 0
    assert parts(tmp_path / "in_order") == parts(tmp_path / "in_any")


def test_of_bad_account_events_the_first_are_said_and_all_are_counted(history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = pq.read_table(history / "account_events.parquet")
    pq.write_table(events.set_column(events.column_names.index("what"), "what", [["foo"] * len(events)]), tmp_path / "bad.parquet")
    assert backfill(asked(history, tmp_path / "out", "--features", COUNT, "--events", str(tmp_path / "bad.parquet")), SETTINGS) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "bad.parquet" in line]
    assert len(said) == 21
    assert said[-1].endswith(f"{len(events)} rows are bad and were left out")


def test_a_mapping_gives_terminals_a_log_and_their_counts_are_exact(history: Path, whole: Path, tmp_path: Path) -> None:
    name = "merchant.terminal_count_1h"
    mapping = tmp_path / "mapping.toml"
    mapping.write_text((history / "mapping.toml").read_text() + '\n[memory]\nterminal = "log"\n')
    argv = [str(history / "transactions.parquet"), "--map", str(mapping), "--features", name, "--out", str(tmp_path / "out")]
    assert backfill(argv, SETTINGS) == 0
    exact, near = (pq.read_table(folder / FEATURES_FILE)[name].to_numpy() for folder in (tmp_path / "out", whole))
    assert (np.isnan(exact) == np.isnan(near)).all()
    assert (exact != near)[~np.isnan(exact)].any(), "a tally counts to the slice"
    assert np.nanmax(np.abs(exact - near)) <= 3


def test_a_log_that_a_mapping_gives_says_where_it_was_cut(history: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.toml"
    mapping.write_text((history / "mapping.toml").read_text() + '\n[memory]\ncountry = "log"\nterminal = "log"\n')
    argv = [str(history / "transactions.parquet"), "--map", str(mapping), "--out", str(tmp_path / "out")]
    assert backfill(argv, SETTINGS) == 0
    data = pq.read_table(tmp_path / "out" / FEATURES_FILE)
    cut = data["memory.country_log_capped"].to_numpy()
    assert set(cut[~np.isnan(cut)]) == {0.0, 1.0}, "a country has more payments than a log keeps rows, and the vector says from when on"
    assert np.nanmax(data["memory.terminal_log_capped"].to_numpy()) == 0.0, "no terminal of this history has"
    assert "memory.merchant_log_capped" not in data.column_names, "it has a tally, which is not cut"
    assert backfill([*argv, "--features", "memory.country_log_capped"], SETTINGS) == 0
    np.testing.assert_array_equal(cut, pq.read_table(tmp_path / "out" / FEATURES_FILE)["memory.country_log_capped"].to_numpy())


def test_a_memory_that_cannot_be_is_refused(history: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.toml"
    for text, fault in (('card = "tally"', "cannot"), ('nobody = "log"', "no entity")):
        mapping.write_text((history / "mapping.toml").read_text() + f"\n[memory]\n{text}\n")
        with pytest.raises(SettingsError, match=fault):
            backfill([str(history / "transactions.parquet"), "--map", str(mapping), "--out", str(tmp_path)], SETTINGS)
