"""A replay's desk: every row gets its answer, in the order of the rows, whatever order the answers come in."""

from __future__ import annotations

import contextlib
import csv
import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.account import AccountEvent, AccountEventKind
from schemas.avro import body, decode, encode
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision, Outcome, Reason, ReasonSource
from schemas.errors import InvalidRecord, LogUnavailable, SettingsError
from schemas.identity import decision_id
from schemas.label import Label, LabelSource
from schemas.topics import ACCOUNT_EVENTS, DEAD_LETTERS, DECISIONS, LABELS, TRANSACTIONS, Topic
from schemas.transaction import Transaction, TransactionKind
from streams.folder import Remembered
from streams.mapping import EventRow, Row
from streams.replay import (
    BATCH_AFTER_EVENTS,
    DELIVERED_S,
    Answer,
    Desk,
    Line,
    Replay,
    Sent,
    chosen_broker,
    forewarned,
    in_order,
    refused,
    replay,
    results_in,
    summary,
)
from streams.settings import Settings


class Kept:
    """Results in a list."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def write(self, answers: Sequence[Answer]) -> None:
        self.answers += answers

    def close(self) -> None:
        """Nothing to close."""


def txn(number: int, amount_minor: int = 100, account: str = "a1") -> Transaction:
    return Transaction(
        transaction_id=f"t{number}",
        kind=TransactionKind.ECOMMERCE,
        at_ms=1000 + number,
        amount_minor=amount_minor,
        currency="EUR",
        account_id=account,
    )


def decision(of: Transaction, outcome: Outcome = Outcome.APPROVE, reason: str = "many_card_payments_1m") -> bytes:
    reasons = () if outcome is Outcome.APPROVE else (Reason(code=reason, source=ReasonSource.RULE),)
    return encode(
        Decision(
            decision_id=decision_id(of.transaction_id), transaction_id=of.transaction_id, account_id=of.account_id, at_ms=of.at_ms,
            decided_at_ms=5000, outcome=outcome, reasons=reasons, score=7, risk=None, contributions=(), hold_id=None, held_minor=0,
            hold_currency=None, hold_expires_at_ms=None, model_id="m", policy_id="p", catalogue_id="c", vector=b"", positions=(),
            declined_positions=(), degradations=(), source_topic=TRANSACTIONS.name, source_partition=0, source_offset=0, transaction=of,
        )
    )  # fmt: skip


def dead_letter(of: Transaction, code: str = "transaction_conflict") -> bytes:
    return encode(
        DeadLetter(
            dead_letter_id="dlq_1", app="score", topic=TRANSACTIONS.name, partition=0, offset=3, code=code, field="transaction_id",
            reason="was used before", key=of.account_id.encode(), value=encode(of), at_ms=5000,
        )
    )  # fmt: skip


def expect(desk: Desk, number: int, of: Transaction) -> None:
    desk.expect(of.account_id.encode(), Sent(number, of.transaction_id, body(of)))


def test_a_decision_answers_the_row_whose_bytes_it_ends_with() -> None:
    kept = Kept()
    desk = Desk(kept)
    expect(desk, 1, txn(1))
    assert desk.on_decision(b"a1", decision(txn(1, amount_minor=999))) == 0, "the same id with other contents is another payment"
    assert desk.on_decision(b"a2", decision(txn(1))) == 0
    assert desk.on_decision(b"a1", decision(txn(1), Outcome.BLOCK)) == 1
    assert desk.write() == 1
    assert kept.answers == [Answer(1, "t1", "block", 7, None, "many_card_payments_1m")]
    assert desk.waiting == 0


def test_rows_with_the_same_contents_share_a_decision_and_other_contents_are_a_conflict() -> None:
    kept = Kept()
    desk = Desk(kept)
    expect(desk, 1, txn(1))
    expect(desk, 2, txn(1))
    expect(desk, 3, txn(1, amount_minor=999))
    assert desk.on_decision(b"a1", decision(txn(1))) == 2
    expect(desk, 4, txn(1))
    assert desk.waiting == 1, "a row that repeats what was decided lately has its answer at once"
    assert desk.on_dead_letter(dead_letter(txn(1, amount_minor=999))) == 1
    desk.write()
    assert [(a.row, a.outcome) for a in kept.answers] == [(1, "approve"), (2, "approve"), (3, "conflict"), (4, "approve")]


@pytest.mark.parametrize("value", [None, b"", b"{}", decision(txn(1))])
def test_a_record_of_the_dead_letters_topic_that_is_none_answers_nobody(value: bytes | None) -> None:
    desk = Desk(Kept())
    expect(desk, 1, txn(1))
    assert desk.on_dead_letter(value) == 0
    assert desk.on_dead_letter(dead_letter(txn(1))) == 1


def test_a_bad_row_is_refused_with_its_field_and_what_got_no_answer_says_so() -> None:
    kept = Kept()
    desk = Desk(kept)
    desk.answer(refused(Row(1, fault := InvalidRecord("amount_minor", "is empty", code="missing_field"), None, False), fault))
    expect(desk, 2, txn(2))
    assert desk.give_up() == 1
    desk.write()
    assert [(a.outcome, (a.error or "")[:29]) for a in kept.answers] == [
        ("refused", "missing_field: amount_minor: "),
        ("unanswered", "the system gave no answer in "),
    ]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(range(6)), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_every_row_is_written_once_and_in_order(ids: list[int], chance: random.Random) -> None:
    kept = Kept()
    desk = Desk(kept)
    told: list[Transaction] = []
    for number, which in enumerate(ids, 1):
        of = txn(which, account=f"a{which % 2}")
        expect(desk, number, of)
        told.append(of)
        if chance.random() < 0.5:
            of = told.pop(chance.randrange(len(told)))
            desk.on_decision(of.account_id.encode(), decision(of))
            desk.write()
    for of in told:
        desk.on_decision(of.account_id.encode(), decision(of))
    assert desk.write() == len(ids)
    assert [a.row for a in kept.answers] == list(range(1, len(ids) + 1))
    assert [a.transaction_id for a in kept.answers] == [f"t{which}" for which in ids]
    assert desk.waiting == 0


def test_csv_and_parquet_results_say_the_same(tmp_path: Path) -> None:
    answers = [Answer(1, "t1", "approve", 12, "low", "", "hld_1", 100), Answer(2, None, "refused", error="invalid_field: mcc: no")]
    for name in ("a.csv", "a.parquet"):
        results = results_in(tmp_path / name)
        results.write(answers)
        results.close()
    with (tmp_path / "a.csv").open(newline="") as file:
        as_csv = [{k: v or None for k, v in row.items()} for row in csv.DictReader(file)]
    as_parquet = [{k: None if v in (None, "") else str(v) for k, v in row.items()} for row in pq.read_table(tmp_path / "a.parquet").to_pylist()]
    assert as_csv == as_parquet
    with pytest.raises(SettingsError):
        results_in(tmp_path / "a.xlsx")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_disk_that_is_full_is_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.symlink_to("/dev/full")
    with pytest.raises(SettingsError, match=r"--out: .*No space left"), contextlib.closing(results_in(path)) as results:
        results.write([Answer(row, f"t{row}", f"approve{row}") for row in range(10_000)])


def test_what_a_decision_ends_with_is_its_transaction() -> None:
    of = txn(1)
    assert decision(of).endswith(body(of))
    assert msgspec.structs.replace(of, amount_minor=5) != of


def test_a_file_of_one_account_takes_no_longer_for_each_row_than_one_of_many() -> None:
    desk = Desk(Kept())
    payments = [txn(number) for number in range(10_000)]
    told = [(of.account_id.encode(), decision(of)) for of in payments]
    random.Random(1).shuffle(told)
    for number, of in enumerate(payments, 1):
        expect(desk, number, of)
    began_s = time.process_time()
    assert sum(desk.on_decision(account, value) for account, value in told) == len(payments)
    assert time.process_time() - began_s < 4.0, "each decision was compared with each row that waits"


def test_rows_of_unknown_accounts_are_counted_and_the_summary_says_what_changes_it() -> None:
    assert "HOLDFAST_UNKNOWN_ACCOUNT=decline" in forewarned(Settings())[0]
    assert forewarned(Settings(unknown_account="hold")) == []
    desk = Desk(Kept())
    for number, reason in enumerate(("unknown_account", "many_card_payments_1m", "unknown_account"), 1):
        expect(desk, number, txn(number))
        desk.on_decision(b"a1", decision(txn(number), Outcome.DECLINE, reason))
    desk.write()
    assert desk.unknown_accounts == 2
    figures = {
        "rows": 3, "seconds": 1.0, "rows_per_s": 3, "outcomes": {"decline": 3}, "unknown_accounts": 2, "labels_sent": 5, "labels_not_yet_learned": 4,
        "accounts_sent": 0, "account_events_sent": 0, "batches_not_awaited": 0,
    }  # fmt: skip
    lines = summary(figures, Path("out.csv"))
    assert "2 rows were declined for unknown_account" in lines[2]
    assert "HOLDFAST_UNKNOWN_ACCOUNT=hold" in lines[2]
    assert lines[3] == "  5 labels sent; 4 not, because they are learned only after now"
    told = summary(figures | {"accounts_sent": 3, "account_events_sent": 9, "batches_not_awaited": 1}, Path("out.csv"))
    assert told[4:] == ["  3 accounts and 9 account events sent", "  1 batches went before the score app had acknowledged their account events"]
    quiet = summary(figures | {"unknown_accounts": 0, "labels_sent": 0, "labels_not_yet_learned": 0}, Path("out.csv"))
    assert quiet == lines[:2]


def happened(number: int, at_ms: int, account: str = "a1") -> EventRow:
    return EventRow(number, AccountEvent(event_id=f"e{number}", account_id=account, kind=AccountEventKind.LOGIN, at_ms=at_ms))


def test_account_events_go_in_order_of_time_and_bad_ones_are_said() -> None:
    said: list[str] = []
    rows = [happened(1, 30), happened(2, 10), EventRow(3, InvalidRecord("kind", "is empty", code="missing_field")), happened(4, 10)]
    ordered = in_order(rows, said.append)
    assert [decode(AccountEvent, each.value).event_id for each in ordered] == ["e2", "e4", "e1"]
    assert said == ["account event in row 3: missing_field: kind: is empty", "1 rows of the account events are bad and were left out"]


class RecordedLine(Line):
    """A line that keeps what is sent, and answers each payment at once."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []
        self._told = 0

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        record: Transaction | AccountEvent = decode(Transaction if topic == TRANSACTIONS.name else AccountEvent, value)
        self.sent.append((topic, record.at_ms))

    def followed(self, app: str, topic: Topic, timeout_s: float = 1.0) -> bool:
        return True

    def flush(self) -> None:
        """Nothing waits."""

    def listen(self, timeout_s: float) -> list[tuple[str, bytes | None, bytes | None]]:
        of = [txn(at_ms - 1000) for topic, at_ms in self.sent[self._told :] if topic == TRANSACTIONS.name]
        self._told = len(self.sent)
        return [(DECISIONS.name, each.account_id.encode(), decision(each)) for each in of]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4000), max_size=60), st.integers(1, 3 * BATCH_AFTER_EVENTS // 2))
def test_an_account_event_is_sent_before_every_payment_that_comes_after_it(times: list[int], payments: int) -> None:
    line = RecordedLine()
    rows = iter([Row(number, txn(number), None, False) for number in range(1, payments + 1)])
    events = in_order([happened(n, at) for n, at in enumerate(times)], print)
    run = Replay(rows, Desk(Kept()), line, None, 5.0, lambda done: None, events)
    run.run()
    assert sorted(line.sent) == sorted([(TRANSACTIONS.name, 1000 + n) for n in range(1, payments + 1)] + [(ACCOUNT_EVENTS.name, at) for at in times])
    latest = -1
    for topic, at_ms in line.sent:
        if topic == TRANSACTIONS.name:
            latest = max(latest, at_ms)
        else:
            assert at_ms > latest, "a payment of a later time was sent before it"


class ConflictingLine(RecordedLine):
    """A line at whose other end an id that comes again with other contents is a conflict; it keeps the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[Label] = []
        self.payments: list[Transaction] = []

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        if topic == LABELS.name:
            self.labels.append(decode(Label, value))
        else:
            self.payments.append(decode(Transaction, value))

    def listen(self, timeout_s: float) -> list[tuple[str, bytes | None, bytes | None]]:
        told, self.payments = self.payments, []
        first = {each.transaction_id: each for each in reversed(told)}
        return [
            (DECISIONS.name, each.account_id.encode(), decision(each))
            if first[each.transaction_id] is each
            else (DEAD_LETTERS.name, None, dead_letter(each))
            for each in told
        ]


def test_what_is_known_of_a_row_that_is_no_payment_is_not_told() -> None:
    line, rows = ConflictingLine(), []
    for number, (of, fraud, learned_at_ms) in enumerate(((txn(1), False, 30), (txn(1, amount_minor=999), True, 20), (txn(2), True, 10)), 1):
        about = {"transaction_id": of.transaction_id, "account_id": "a1", "source": LabelSource.CHARGEBACK}
        label = Label(label_id=f"l{number}", fraud=fraud, learned_at_ms=learned_at_ms, **about)
        rows.append(Row(number, of, label, False))
    run = Replay(iter(rows), Desk(Kept()), line, None, 5.0, lambda done: None)
    run.run()
    assert run.send_labels() == 2
    assert [label.label_id for label in line.labels] == ["l3", "l1"]


def test_what_has_not_arrived_is_not_taken_as_sent() -> None:
    waited: list[float] = []

    def flush(timeout_s: float) -> int:
        waited.append(timeout_s)
        return 3

    line = Line.__new__(Line)
    line._failed, line._producer = None, SimpleNamespace(flush=flush)  # type: ignore[assignment]  # a broker that went away
    with pytest.raises(LogUnavailable, match="3 records have not arrived"):
        line.flush()
    assert waited[0] > DELIVERED_S, "until the producer has given each of them up"


def test_a_folder_gets_the_kind_of_broker_that_it_had_before() -> None:
    real, embedded = Remembered("kafka", 3), Remembered("embedded", 1)
    assert chosen_broker(None, None, 5_000) == ("embedded", 1)
    assert chosen_broker(None, None, 5_001) == ("real", 1)
    assert chosen_broker(None, real, 10) == ("real", 3)
    assert chosen_broker(None, embedded, 8_000) == ("embedded", 1)
    assert chosen_broker("embedded", real, 10) == ("embedded", 1), "what is asked for stands; the folder then refuses it"
    with pytest.raises(SettingsError, match="another folder"):
        chosen_broker(None, embedded, 8_001)
    with pytest.raises(SettingsError, match=r"use --kafka real$"):
        chosen_broker("embedded", None, 8_001)


@pytest.mark.parametrize(
    ("option", "value"), [("--rate", "-3"), ("--rate", "0"), ("--rate", "nan"), ("--wait", "-1"), ("--wait", "inf"), ("--out", "/dev/null/x.csv")]
)
def test_an_option_that_makes_no_sense_is_named_before_anything_starts(history: Path, tmp_path: Path, option: str, value: str) -> None:
    argv = [str(history / "transactions.parquet"), "--map", str(history / "mapping.toml"), option, value]
    with pytest.raises(SettingsError, match=option):
        replay(argv, Settings(data_dir=tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_broker_that_is_too_small_is_refused_before_the_results_of_an_earlier_run_are_written_over(history: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("of before")
    argv = [str(history / "transactions.parquet"), "--map", str(history / "mapping.toml"), "--kafka", "embedded", "--out", str(out)]
    with pytest.raises(SettingsError, match="--kafka"):
        replay(argv, Settings(data_dir=tmp_path / "data"))
    assert out.read_text() == "of before"


@pytest.mark.parametrize(("option", "says"), [("--events", "column 'event', which"), ("--accounts", "column 'balance', which")])
def test_a_file_beside_the_payments_that_does_not_fit_is_named_before_anything_starts(history: Path, tmp_path: Path, option: str, says: str) -> None:
    payments = str(history / "transactions.parquet")
    argv = [payments, "--map", str(history / "mapping.toml"), option, payments]
    with pytest.raises(SettingsError, match=says):
        replay(argv, Settings(data_dir=tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_named_system_needs_the_key_of_its_tokens(history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_KAFKA_BOOTSTRAP", "127.0.0.1:1")
    argv = [str(history / "transactions.parquet"), "--map", str(history / "mapping.toml"), "--out", str(tmp_path / "out.csv")]
    with pytest.raises(SettingsError, match="HOLDFAST_TOKEN_KEY"):
        replay(argv, Settings(data_dir=tmp_path / "data", kafka_bootstrap="127.0.0.1:1"))
