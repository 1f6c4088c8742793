"""`kill -9` of each app, and of Redis, in the middle of a run on real Kafka: the books agree, and nothing happened twice."""

from __future__ import annotations

import http.client
import random
import re
import threading
import time
from contextlib import closing
from urllib.parse import urlsplit

import msgspec
import pyarrow.dataset as pads
import pytest
from confluent_kafka import Producer
from redis import Redis

from features.catalogue import CATALOGUE, Catalogue
from features.log import tidied
from models.hold import Book
from schemas.account import AccountEvent, AccountEventKind
from schemas.avro import decode, encode
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision
from schemas.hold import Clearing, ClearingKind
from schemas.topics import ACCOUNT_EVENTS, CLEARINGS, DEAD_LETTERS, DECISIONS, REMEMBERED_EVENTS, TRANSACTIONS
from schemas.transaction import Transaction, TransactionKind
from streams.bus import committed_offsets, end_offsets, read_topic
from streams.check import Report, agreed
from streams.clock import clock_ms
from streams.demo import BOOKKEEPERS
from streams.lag import lags
from streams.parity import check_features
from streams.rebuild import Tallied
from streams.stack import APPS, Stack
from streams.tally import gather_decision
from tests.bench.load import asking
from tests.bench.walk import transactions

pytestmark = pytest.mark.integration

BY_TOPIC, BY_HTTP = 450, 60
SETTLED_S = 90
VICTIMS = ("authorize", "score", "hold", "ledger", "redis", "sar and archive", "tally, watch and feedback")
"""Who is killed: one, or several at the same moment; together they are all there are."""


def asked(stack: Stack, txn: Transaction, deadline_s: float) -> bytes:
    """The answer to an authorization, asked again with the same id for as long as the door does not answer."""
    body = msgspec.json.encode(txn)
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", stack.settings.http_port, timeout=10)) as connection:
                connection.request("POST", "/v1/authorizations", body, asking(stack.settings.api_key))
                response = connection.getresponse()
                content = response.read()
            if response.status == 200:
                return content
            assert response.status == 503, (response.status, content)
        except (OSError, http.client.HTTPException):
            pass  # the door was killed: the host asks again
        time.sleep(0.1)
    raise AssertionError(f"{txn.transaction_id} was not answered within {deadline_s} s")


def mixed(payments: list[Transaction]) -> list[Transaction]:
    """The payments with what logs of every kind and tallies remember: transfers, e-mails, phones, addresses of both kinds, BINs."""

    def more(i: int, txn: Transaction) -> Transaction:
        transfer = {"kind": TransactionKind.TRANSFER_OUT, "counterparty_account_id": f"acc{i * 13 % 5_000}"} if i % 7 == 0 else {}
        tokens = {"email_token": f"eml{i % 900}", "phone_token": f"phn{i % 700}", "address_token": f"adr{i % 500}"} if i % 3 == 0 else {}
        places = {"ip": f"10.0.{i % 9}.{i % 200}", "card_bin": f"{400_000 + i % 30}"} if i % 2 == 0 else {}
        return msgspec.structs.replace(txn, **transfer, **tokens, **places)

    return [more(i, txn) for i, txn in enumerate(payments)]


def an_event(name: str, i: int, at_ms: int) -> AccountEvent:
    """What happened to one of thirty accounts besides payments."""
    kind = (AccountEventKind.LOGIN, AccountEventKind.LOGIN_FAILED, AccountEventKind.PHONE_CHANGED)[i % 3]
    return AccountEvent(event_id=f"{name}-e{i}", account_id=f"acc{i % 30}", kind=kind, at_ms=at_ms, device_token=f"dev{i % 4}")


class Run:
    """One run of payments by both doors, with clearings for a third of those answered over HTTP, and account events beside them."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.stack = stack
        now_ms = clock_ms()
        self.name = name
        self.by_topic = mixed(transactions(BY_TOPIC, f"{name}-t", now_ms))
        self.by_http = mixed(transactions(BY_HTTP, f"{name}-h", now_ms))
        self.answers: dict[str, bytes] = {}
        self._producer = Producer({"bootstrap.servers": stack.settings.kafka_bootstrap, "acks": "all", "partitioner": "murmur2_random"})
        self._threads = [threading.Thread(target=self._topic), threading.Thread(target=self._http)]
        self.errors: list[BaseException] = []

    def __enter__(self) -> Run:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()
        assert self._producer.flush(30) == 0
        assert not self.errors, self.errors

    def _topic(self) -> None:
        for i, txn in enumerate(self.by_topic):
            self._producer.produce(TRANSACTIONS.name, encode(txn), txn.account_id.encode())
            if i % 20 == 0:  # and five in a hundred come twice
                self._producer.produce(TRANSACTIONS.name, encode(txn), txn.account_id.encode())
            if i % 10 == 0:
                event = an_event(self.name, i // 10, txn.at_ms)
                for _ in range(2 if i % 70 == 0 else 1):
                    self._producer.produce(ACCOUNT_EVENTS.name, encode(event), event.account_id.encode())
            if i % 30 == 29:
                self._producer.poll(0)
                time.sleep(0.1)

    def _http(self) -> None:
        try:
            for i, txn in enumerate(self.by_http):
                answer = self.answers[txn.transaction_id] = asked(self.stack, txn, 60)
                said = msgspec.json.decode(answer)
                if i % 3 == 0 and said["hold_id"] and not said["stand_in"]:  # what the stand-in approved the log may not have yet
                    self._clear(txn, i)
        except BaseException as error:  # noqa: BLE001  a thread's assertion is the test's
            self.errors.append(error)

    def _clear(self, txn: Transaction, i: int) -> None:
        capture = i % 2 == 0
        clearing = Clearing(
            clearing_id=f"clr-{txn.transaction_id}",
            transaction_id=txn.transaction_id,
            account_id=txn.account_id,
            kind=ClearingKind.CAPTURE if capture else ClearingKind.REVERSAL,
            amount_minor=txn.amount_minor if capture else 0,
            currency=txn.currency,
            at_ms=clock_ms(),
        )
        self._producer.produce(CLEARINGS.name, encode(clearing), txn.account_id.encode())


def settled(stack: Stack) -> Report:
    """The report once the apps have worked everything off; before that nobody reads all the books."""
    end = time.monotonic() + SETTLED_S / 2
    with lags(stack.settings, BOOKKEEPERS) as following:
        while any(lag.behind for lag in following.look().values()) and time.monotonic() < end:
            time.sleep(0.1)
    return agreed(stack.settings, SETTLED_S, said=0.3)


def archived(stack: Stack) -> list[str]:
    """The ids of all archived decisions."""
    folder = stack.settings.archive_dir / "decisions"
    return pads.dataset(folder, format="parquet", partitioning="hive").to_table(columns=["decision_id"])["decision_id"].to_pylist()


def dead_letters(stack: Stack) -> int:
    """How many there are."""
    return sum(len(batch) for batch in read_topic(stack.settings, DEAD_LETTERS))


def test_every_app_is_killed() -> None:
    assert sorted(part for victims in VICTIMS for part in parts_of(victims)) == sorted((*APPS, "redis"))


def parts_of(victims: str) -> list[str]:
    """The parts that these words name."""
    return re.split(r", | and ", victims)


@pytest.mark.parametrize("victims", VICTIMS)
def test_kill_9_loses_nothing_and_nothing_happens_twice(stack: Stack, victims: str) -> None:
    chance, names = random.Random(victims), parts_of(victims)
    parts = [stack.part(name) for name in names]
    before = dead_letters(stack)
    with Run(stack, names[0]) as run:
        for _ in range(2):
            time.sleep(chance.uniform(0.3, 1.2))
            for part in parts:
                part.kill9()
            for part in parts:
                part.wait_ready(60)
    report = settled(stack)
    print(f"\nkill -9 of {victims}:", *report.lines(), sep="\n  ")
    assert report.agrees, report.lines()
    for txn in run.by_http[::10]:
        assert asked(stack, txn, 10) == run.answers[txn.transaction_id], "a repeat gets the first answer, byte for byte"
    assert dead_letters(stack) == before, "nothing was lost as a dead letter"


def test_every_decision_is_archived_exactly_once_after_all_that(stack: Stack) -> None:
    decisions = settled(stack).counts["decisions"]
    end = time.monotonic() + SETTLED_S
    while len(archived(stack)) < decisions and time.monotonic() < end:
        time.sleep(1)
    ids = archived(stack)
    assert len(ids) == len(set(ids)) == decisions


def remembered(stack: Stack, pattern: str) -> dict[bytes, bytes]:
    """What Redis holds under keys of this pattern."""
    with Redis(unix_socket_path=urlsplit(stack.settings.redis_url).path) as redis:
        keys = sorted(redis.scan_iter(pattern, count=1_000))
        return dict(zip(keys, redis.mget(keys), strict=True)) if keys else {}


def at_rest(logs: dict[bytes, bytes], catalogue: Catalogue = CATALOGUE) -> dict[bytes, bytes]:
    """Each log with each row once: a process that was killed may have left a row twice, which no vector counts twice. Tallies as they are."""
    numbers = {kind.encode(): number for number, kind in enumerate(catalogue.logs)}
    return {k: tidied(catalogue, numbers[k.split(b":")[2]], content) if k.startswith(b"log:") else content for k, content in logs.items()}


def test_a_redis_that_lost_everything_is_rebuilt_from_the_log(stack: Stack) -> None:
    run = Run(stack, "rebuild")
    with run:
        pass
    assert settled(stack).agrees
    events_remembered(stack)
    logs, answers, tallies = remembered(stack, "log:*"), remembered(stack, "ans:*"), tallies_of(stack)
    assert tallies == folded_from_the_log(stack), "a tally is what the log says, though its app was killed on the way"
    books = {key: Book.from_bytes(content) for key, content in remembered(stack, "book:*").items()}
    assert len(logs) > 1_000
    with Redis(unix_socket_path=urlsplit(stack.settings.redis_url).path) as redis:
        redis.flushall()
        end = time.monotonic() + 60
        while not redis.exists("whole"):
            assert time.monotonic() < end, "nobody rebuilt Redis"
            time.sleep(0.1)
    assert at_rest(remembered(stack, "log:*")) == at_rest(logs), "every log, byte for byte"
    assert remembered(stack, "tally:*") == tallies, "every tally, byte for byte"
    assert {key: kept[1:] for key, kept in remembered(stack, "ans:*").items()} == {key: kept[1:] for key, kept in answers.items()}
    now_ms = clock_ms()
    for key, content in remembered(stack, "book:*").items():
        assert Book.from_bytes(content).available_minor(now_ms) == books[key].available_minor(now_ms), key
    for txn in run.by_http[::10]:
        assert asked(stack, txn, 10) == run.answers[txn.transaction_id]
    with Run(stack, "afterwards"):
        pass
    assert settled(stack).agrees


def events_remembered(stack: Stack, least: int = BY_TOPIC // 10) -> None:
    """Returns once the `score` app has remembered all account events, and some are in the logs' topic."""
    end = time.monotonic() + SETTLED_S
    ends = {partition: high for partition, (_, high) in end_offsets(stack.settings, ACCOUNT_EVENTS).items() if high}
    while committed_offsets(stack.settings, "score", ACCOUNT_EVENTS) != ends:
        assert time.monotonic() < end, "the score app does not keep up"
        time.sleep(0.2)
    assert sum(len(batch) for batch in read_topic(stack.settings, REMEMBERED_EVENTS)) >= least


def tallies_of(stack: Stack) -> dict[bytes, bytes]:
    """Every tally, once the `tally` app has read all decisions."""
    end = time.monotonic() + SETTLED_S
    ends = {partition: high for partition, (_, high) in end_offsets(stack.settings, DECISIONS).items() if high}
    while committed_offsets(stack.settings, "tally", DECISIONS) != ends:
        assert time.monotonic() < end, "the tally app does not keep up"
        time.sleep(0.2)
    return remembered(stack, "tally:*")


def folded_from_the_log(stack: Stack) -> dict[bytes, bytes]:
    """Every tally as the decisions in the log make it, each once."""
    made, seen = Tallied(CATALOGUE), set()
    for batch in read_topic(stack.settings, DECISIONS):
        for message in batch:
            decision = decode(Decision, message.value)
            if decision.decision_id not in seen:
                seen.add(decision.decision_id)
                gather_decision(CATALOGUE, decision, message.partition, message.offset, made.rows)
    return {CATALOGUE.tally_layouts[number].key(token).encode(): content for (number, token), content in made.contents().items()}


def test_a_redis_that_loses_everything_while_payments_run_loses_nothing(stack: Stack) -> None:
    before = dead_letters(stack)
    with Run(stack, "flushed") as run:
        for _ in range(2):
            time.sleep(1.5)
            with Redis(unix_socket_path=urlsplit(stack.settings.redis_url).path) as redis:
                redis.flushall()
    report = settled(stack)
    print("\nFLUSHALL while payments run:", *report.lines(), sep="\n  ")
    assert report.agrees, report.lines()
    new = [decode(DeadLetter, m.value) for batch in read_topic(stack.settings, DEAD_LETTERS) for m in batch][before:]
    assert not new, [(letter.app, letter.topic, letter.code, letter.reason) for letter in new]
    for txn in run.by_http[::10]:
        assert asked(stack, txn, 30) == run.answers[txn.transaction_id], "a repeat gets the first answer, byte for byte"


def test_after_all_that_every_vector_that_can_be_compared_is_what_the_topics_say(stack: Stack) -> None:
    """The apps and Redis were killed, Redis forgot three times: what was served meanwhile still follows from the log."""
    settled(stack)
    found = check_features(stack.settings)
    print("\n", *found.lines(), sep="\n  ")
    assert found.agrees, found.lines()
    assert found.compared > 0.95 * (found.compared + sum(found.not_comparable.values())), found.lines()
