"""What cannot be decided, on the live system: each bad record is a dead letter with its reason, the rest goes on, the mended comes back."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
from confluent_kafka import Producer

from schemas import avro
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision
from schemas.topics import DEAD_LETTERS, DECISIONS, TRANSACTIONS, Topic
from schemas.transaction import Transaction
from streams.bus import read_topic
from streams.check import agreed
from streams.clock import clock_ms
from streams.dead_letters import dead_letters
from streams.stack import Stack
from tests.bench.walk import transactions

pytestmark = pytest.mark.integration


def unchecked(txn: Transaction, **changes: object) -> bytes:
    """The bytes of a transaction that no honest writer would make."""
    return avro.frame(Transaction) + avro.body(msgspec.structs.replace(txn, **changes))


def cut_off(txn: Transaction) -> bytes:
    """A record whose last fields are missing."""
    return avro.encode(txn)[:-4]


def told(stack: Stack, topic: Topic, ids: set[str], seconds: float = 30) -> list[object]:
    """The records of a topic that are about these transactions (or all, if none are named), once each of them is there."""
    end = time.monotonic() + seconds
    while True:
        records = [avro.decode(topic.record, m.value) for batch in read_topic(stack.settings, topic) for m in batch]
        found = [r for r in records if getattr(r, "transaction_id", None) in ids]
        if {getattr(r, "transaction_id", None) for r in found} >= ids or time.monotonic() > end:
            return found
        time.sleep(0.3)


def letters(stack: Stack, count: int, seconds: float = 30) -> list[DeadLetter]:
    """The dead letters of `transactions`, once there are so many."""
    end = time.monotonic() + seconds
    while True:
        found = [avro.decode(DeadLetter, m.value) for batch in read_topic(stack.settings, DEAD_LETTERS) for m in batch]
        found = [letter for letter in found if letter.topic == TRANSACTIONS.name]
        if len(found) >= count or time.monotonic() > end:
            return found
        time.sleep(0.3)


def test_bad_records_are_dead_letters_and_the_stream_goes_on(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(letters(stack, 0, 0))
    now_ms = clock_ms()
    good = transactions(40, f"good-{now_ms}-", now_ms)
    one = good[0]
    bad: list[tuple[bytes, str, str]] = [
        (b"not avro at all", "unknown_schema", "schema_id"),
        (b"\x00\x00\x00\x27\x0f" + b"x" * 30, "unknown_schema", "schema_id"),
        (cut_off(one), "unreadable_bytes", "value"),
        (avro.frame(Transaction) + b"\x0ashort", "unreadable_bytes", "value"),
        (unchecked(one, transaction_id="bad-amount", amount_minor=-5), "invalid_field", "amount_minor"),
        (unchecked(one, transaction_id="bad-currency", currency="XQX"), "unknown_currency", "currency"),
        (unchecked(one, transaction_id="bad-time", at_ms=now_ms + 86_400_000), "time_in_future", "at_ms"),
        (unchecked(one, amount_minor=one.amount_minor + 1), "transaction_conflict", "transaction_id"),
    ]
    producer = Producer({"bootstrap.servers": stack.settings.kafka_bootstrap, "acks": "all"})
    for txn in good[:20]:
        producer.produce(TRANSACTIONS.name, avro.encode(txn), txn.account_id.encode(), partition=1)
    for value, _, _ in bad:
        producer.produce(TRANSACTIONS.name, value, one.account_id.encode(), partition=1)
    for txn in good[20:]:
        producer.produce(TRANSACTIONS.name, avro.encode(txn), txn.account_id.encode(), partition=1)
    assert producer.flush(30) == 0

    assert {d.transaction_id for d in told(stack, DECISIONS, {t.transaction_id for t in good}) if isinstance(d, Decision)} == {
        t.transaction_id for t in good
    }
    found = letters(stack, before + len(bad))[before:]
    by_value = {letter.value: letter for letter in found}
    assert len(found) == len(bad)
    for value, code, field in bad:
        letter = by_value[value]
        assert (letter.code, letter.field, letter.app, letter.partition) == (code, field, "score", 1), letter
        assert letter.reason

    amount = next(letter for letter in found if letter.field == "amount_minor")
    assert dead_letters(["--json"], stack.settings) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert amount.dead_letter_id in json.dumps(listed)
    assert dead_letters(["resend", amount.dead_letter_id, "--set", "amount_minor=5"], stack.settings) == 0
    (mended,) = told(stack, DECISIONS, {"bad-amount"})
    assert isinstance(mended, Decision)
    assert mended.transaction.amount_minor == 5
    report = agreed(stack.settings, 60)
    assert report.agrees, report.lines()
