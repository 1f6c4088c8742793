"""The check reads every topic that the books rest on, and says so when there is nothing to read."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from msgspec import structs

from models.policy import policy_from_toml
from models.registry import default_policy_text
from schemas.avro import encode
from schemas.dead_letter import DeadLetter
from schemas.decision import Outcome
from schemas.errors import SettingsError
from schemas.topics import CLEARINGS, DEAD_LETTERS, DECISIONS, HOLDS, TRANSACTIONS, Topic
from schemas.transaction import TransactionKind
from streams import bus
from streams.bus import KafkaBus
from streams.check import check, check_books
from streams.settings import Settings, librdkafka
from streams.stack import running
from tests.models.decisions import a_decision as moving
from tests.streams.conftest import a_clearing, messages
from tests.streams.test_archive import a_decision
from tests.world import NOON


def tell(settings: Settings, topic: Topic, value: bytes) -> None:
    """Puts one record into a topic."""

    async def told() -> None:
        to = KafkaBus(settings.changed(produce_timeout_ms=20_000))
        await to.tell(topic, "a1", value)
        await to.close()

    asyncio.run(told())


def forget_records(settings: Settings, topic: Topic, partition: int, first: int) -> None:
    """Lets the brokers drop what lies before `first`, as retention does."""
    place = TopicPartition(topic.name, partition, first)
    admin = AdminClient(librdkafka(settings))
    (done,) = admin.delete_records([place]).values()
    assert done.result(20).low_watermark == first


def refuse_all(settings: Settings, topic: Topic) -> None:
    """A dead letter for each record of a topic."""
    for m in messages(settings, topic):
        letter = DeadLetter(
            dead_letter_id=f"dlq_{topic.name}", app="hold", topic=topic.name, partition=m.partition, offset=m.offset,
            code="unknown_hold", field=None, reason="", key=m.key, value=m.value, at_ms=1,
        )  # fmt: skip
        tell(settings, DEAD_LETTERS, encode(letter))


def test_a_lost_clearing_and_an_unreadable_transaction_are_missed_until_they_are_dead_letters(tmp_path: Path) -> None:
    with running(Settings(data_dir=tmp_path, http_port=0), broker_name="embedded", apps=()) as stack:
        tell(stack.settings, CLEARINGS, encode(a_clearing("c1", "a1")))
        tell(stack.settings, TRANSACTIONS, b"rubbish")
        report = check_books(stack.settings)
        assert sorted(d.code for d in report.disagreements) == ["unapplied_clearing", "unreadable_record"], report.lines()
        refuse_all(stack.settings, CLEARINGS)
        refuse_all(stack.settings, TRANSACTIONS)
        assert check_books(stack.settings).agrees


def test_a_candidate_that_nobody_told_is_missed_by_the_policy_of_its_decision(tmp_path: Path) -> None:
    def tell_blocked(settings: Settings, name: str, amount_minor: int, policy_id: str) -> None:
        decision = moving(name, TransactionKind.ECOMMERCE, amount_minor, NOON, Outcome.BLOCK)
        tell(settings, DECISIONS, encode(structs.replace(decision, policy_id=policy_id)))

    own = policy_from_toml(default_policy_text()).policy_id
    with running(Settings(data_dir=tmp_path, http_port=0), broker_name="embedded", apps=()) as stack:
        tell_blocked(stack.settings, "b1", 300_000, own)
        assert check_books(stack.settings).agrees
        tell_blocked(stack.settings, "b2", 300_000, own)
        assert [d.code for d in check_books(stack.settings).disagreements] == ["missing_candidate"]
        tell_blocked(stack.settings, "b3", 1, "pol_gone")
        report = check_books(stack.settings)
        assert report.agrees
        assert "pol_gone" in str(report.figures()["not_asked"])
        assert "not asked whether SAR candidates are missing: " in "\n".join(report.lines())


def test_a_log_that_lost_its_beginning_is_named_and_what_that_may_explain_is_no_disagreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(Settings(data_dir=tmp_path, http_port=0), broker_name="real", apps=()) as stack:
        tell(stack.settings, DECISIONS, encode(moving("b1", TransactionKind.ECOMMERCE, 300, NOON, Outcome.APPROVE)))
        assert [d.code for d in check_books(stack.settings).disagreements] == ["unconfirmed_hold"]
        tell(stack.settings, HOLDS, b"rubbish")
        (gone,) = messages(stack.settings, HOLDS)
        forget_records(stack.settings, HOLDS, gone.partition, gone.offset + 1)
        assert check(["--wait", "600", "--json"], stack.settings) == 1
        *lines, figures = capsys.readouterr().out.splitlines()
        found = json.loads(figures)
        assert (found["dropped"], found["unsettled"], found["disagreements"], found["agrees"]) == ({"holds": 1}, 1, 0, False)
        assert lines[-1] == "the books cannot be checked: the log is not whole; differences that may come of what it lost: 1"
        assert "unconfirmed_hold" not in "".join(lines)
        tell(stack.settings, DECISIONS, b"rubbish")
        tell(stack.settings, DECISIONS, encode(structs.replace(moving("b2", TransactionKind.ECOMMERCE, 300, NOON, Outcome.BLOCK), held_minor=300)))
        report = check_books(stack.settings)
        assert sorted(d.code for d in report.disagreements) == ["unreadable_record", "unsound_decision"]
        assert report.lines()[-1] == "the books do NOT agree: 2 disagreements"


def test_a_check_without_a_system_says_that_none_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "QUERY_S", 0.5)
    assert check([], Settings(data_dir=tmp_path, kafka_bootstrap="127.0.0.1:1")) == 2
    assert f"no system runs in {tmp_path}" in capfd.readouterr().err


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_a_wait_that_would_never_end_is_refused_before_anything_is_read(tmp_path: Path, seconds: str) -> None:
    with pytest.raises(SettingsError, match=r"^--wait: "):
        check(["--wait", seconds], Settings(data_dir=tmp_path, kafka_bootstrap="127.0.0.1:1"))


def test_vectors_are_compared_by_the_same_command_and_a_foreign_one_is_counted(real: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    decision = a_decision("foreign", 1)
    tell(real, DECISIONS, encode(decision))
    assert check(["--features", "--json"], real) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["agrees"]
    assert figures["not_comparable"]["another catalogue decided it"] >= 1
    assert figures["compared"] == figures["equal"]
