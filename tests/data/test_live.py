"""Replay and demo on a live system: embedded broker and Redis, every app a process of its own."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from schemas.account import AccountEvent
from schemas.avro import decode
from schemas.topics import ACCOUNT_EVENTS
from streams.bus import read_topic
from streams.replay import APPS, replay
from streams.settings import Settings
from streams.stack import running
from tests.first_model import MODEL_KEY

ROWS = 400


@pytest.fixture(scope="module")
def a_file(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some rows of the small history as CSV, and after them: row 6 again, row 8 again with another amount, and row 10 without an amount."""
    path = tmp_path_factory.mktemp("file") / "payments.csv"
    pa_csv.write_csv(pq.read_table(history / "transactions.parquet").slice(0, ROWS), path)
    header, *lines = path.read_text().splitlines()
    amount = header.replace('"', "").split(",").index("amount")
    again, changed, bad = lines[5], lines[7].split(","), lines[9].split(",")
    changed[amount], bad[amount] = "77777.77", ""
    bad[0] = '"another"'
    path.write_text("\n".join([header, *lines, again, ",".join(changed), ",".join(bad)]) + "\n")
    return path


def settings_for(folder: Path, registry: Path) -> Settings:
    return Settings(data_dir=folder, registry_dir=registry, model_key=MODEL_KEY, http_port=0)


def answers_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_replay_starts_a_system_where_none_runs_and_each_row_gets_its_answer(
    a_file: Path, history: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(a_file), "--map", str(history / "mapping.toml"), "--out", str(tmp_path / "out.csv"), "--data", str(tmp_path / "data"), "--json"]
    assert replay(argv, settings_for(tmp_path / "data", trained)) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    answers = answers_in(tmp_path / "out.csv")
    assert [int(a["row"]) for a in answers] == list(range(1, ROWS + 4))
    assert {a["outcome"] for a in answers[:ROWS]} <= {"approve", "review", "decline", "block"}
    assert answers[ROWS] == answers[5] | {"row": str(ROWS + 1)}, "the same row has the same answer"
    assert answers[ROWS + 1]["outcome"] == "conflict"
    assert (answers[ROWS + 2]["outcome"], answers[ROWS + 2]["error"]) == ("refused", "missing_field: amount_minor: is empty (column 'amount')")
    assert figures["books_agree"]
    assert figures["unanswered"] == 0


def test_accounts_and_account_events_are_known_before_the_payments_are_decided(
    history: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = pq.read_table(history / "account_events.parquet")
    pq.write_table(pq.read_table(history / "transactions.parquet").slice(0, ROWS), tmp_path / "payments.parquet")
    pq.write_table(events.take(list(reversed(range(200)))), tmp_path / "events.parquet")
    argv = [str(tmp_path / "payments.parquet"), "--map", str(history / "mapping.toml"), "--out", str(tmp_path / "out.csv"), "--json"]
    argv += ["--accounts", str(history / "accounts.parquet"), "--events", str(tmp_path / "events.parquet"), "--data", str(tmp_path / "data")]
    settings = settings_for(tmp_path / "data", trained).changed(unknown_account="decline")
    with running(settings, broker_name="embedded", apps=APPS) as stack:
        assert replay(argv, settings) == 0
        remembered = [decode(AccountEvent, m.value) for batch in read_topic(stack.settings, ACCOUNT_EVENTS) for m in batch if m.value is not None]
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["accounts_sent"], figures["account_events_sent"], figures["batches_not_awaited"]) == (200, 200, 0)
    assert figures["unknown_accounts"] == 0, "each account was told before its first payment"
    assert len(remembered) == 200


def test_a_second_replay_of_a_file_gets_the_first_answers(a_file: Path, history: Path, trained: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "data", trained).changed(unknown_account="hold")
    with running(settings, broker_name="embedded", apps=APPS):
        for name in ("first.csv", "second.csv"):
            argv = [str(a_file), "--map", str(history / "mapping.toml"), "--out", str(tmp_path / name), "--data", str(tmp_path / "data")]
            assert replay(argv, settings) == 0
    assert answers_in(tmp_path / "first.csv") == answers_in(tmp_path / "second.csv")
