"""A replay's desk: every row gets its answer, in the order of the rows, whatever order the answers come in."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.avro import body, encode
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision, Outcome, Reason, ReasonSource
from schemas.errors import InvalidRecord, SettingsError
from schemas.identity import decision_id
from schemas.topics import TRANSACTIONS
from schemas.transaction import Transaction, TransactionKind
from streams.mapping import Row
from streams.replay import Answer, Desk, Sent, refused, results_in


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


def decision(of: Transaction, outcome: Outcome = Outcome.APPROVE) -> bytes:
    reasons = () if outcome is Outcome.APPROVE else (Reason(code="many_card_payments_1m", source=ReasonSource.RULE),)
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


def test_what_a_decision_ends_with_is_its_transaction() -> None:
    of = txn(1)
    assert decision(of).endswith(body(of))
    assert msgspec.structs.replace(of, amount_minor=5) != of
