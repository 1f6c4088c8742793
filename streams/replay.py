"""`holdfast replay FILE --map M.toml`: sends a file through the live system and writes one decision row for each row of it.

How a row finds its answer: a decision ends with the bytes of the transaction that it decided, and a dead letter carries the bytes
that could not be applied; so the row's own bytes are looked for, under the row's account. A row that was decided before (in an
earlier run, or further up in the file) gets no second decision: when nothing comes any more, the decisions of old are searched.

Accounts (`--accounts`) and account events (`--events`) come before the payments that must know them. The accounts go first of all.
The events are put in order of time; before a batch of payments goes, all events up to the batch's latest moment are sent, and the
batch waits until the score app has acknowledged them (for at most FOLLOWED_S: then it goes on, and says so). An event may thus be
remembered before a payment that happened earlier; that changes nothing, as the windows of features are of event time.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import math
import os
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from models.hold import Refusal, UnknownAccount
from schemas.account import AccountState
from schemas.avro import decode, encode
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision
from schemas.errors import InvalidRecord, LogUnavailable, SettingsError
from schemas.identity import digest
from schemas.label import Label
from schemas.topics import ACCOUNT_EVENTS, ACCOUNTS, DEAD_LETTERS, DECISIONS, LABELS, TRANSACTIONS, Topic
from streams.bus import end_offsets, read_topic
from streams.check import agreed
from streams.clock import clock_ms
from streams.folder import Remembered, held_in, running_settings, with_kept_secrets
from streams.lab import ensure_champion
from streams.mapping import BAD_ROWS_SAID, EventRow, Mapping, Row, TokenKey, accounts_in, events_in, mapping_in, rows_count, rows_in, spare
from streams.settings import Settings, librdkafka
from streams.stack import BrokerName, running, say_on_stderr

FRAME = 5
WINDOW, RECENT = 20_000, 50_000
"""Rows that are sent and not yet written, and answers that are kept for rows that repeat them, at most: what bounds the memory."""
BATCH, BATCH_AFTER_EVENTS = 500, 2_000
"""Rows that go at once; more where each batch waits for its account events, as the score app acknowledges once a second."""
FOLLOWED_S, ACCOUNTS_S, ASKED_EVERY_S = 10.0, 45.0, 0.05
DELIVERED_S = 120
"""What has not arrived by then does not arrive; the producer notices some seconds later."""
SEARCH_AFTER_S = 3.0
EMBEDDED_ROWS, EMBEDDED_ROWS_MAX = 5_000, 8_000
"""Up to how many rows an embedded broker is chosen, and how many it can keep (it forgets beyond 5 MB a partition)."""
APPS = ("score", "hold", "ledger", "sar", "tally", "archive")
SCORE, HOLD = APPS[:2]
CONFLICT = "transaction_conflict"
DECLINES = f"HOLDFAST_UNKNOWN_ACCOUNT={UnknownAccount.DECLINE}"
HOLDS = f"HOLDFAST_UNKNOWN_ACCOUNT={UnknownAccount.HOLD}"


class Answer(NamedTuple):
    """One row of the result. `outcome` is the decision's, `refused` (bad row, `error` names the field), `conflict` or `unanswered`."""

    row: int
    transaction_id: str | None
    outcome: str
    score: int | None = None
    risk: str | None = None
    reasons: str = ""
    hold_id: str | None = None
    held_minor: int = 0
    error: str | None = None


COLUMNS = Answer._fields
_TYPES = [pa.int64(), pa.string(), pa.string(), pa.int64(), pa.string(), pa.string(), pa.string(), pa.int64(), pa.string()]
SCHEMA = pa.schema(list(zip(COLUMNS, _TYPES, strict=True)))


class Sent(NamedTuple):
    """A row under way: its number, its transaction's id, and the transaction's bytes."""

    number: int
    transaction_id: str
    content: bytes


def refused(row: Row, fault: InvalidRecord) -> Answer:
    """The answer to a row that is no transaction."""
    return Answer(row.number, None, "refused", error=f"{fault.code}: {fault.field}: {fault.reason}")


def decided(sent: Sent, decision: Decision) -> Answer:
    """The answer that a decision gives."""
    reasons = ";".join(reason.code for reason in decision.reasons)
    risk = None if decision.risk is None else str(decision.risk)
    return Answer(sent.number, sent.transaction_id, str(decision.outcome), decision.score, risk, reasons, decision.hold_id, decision.held_minor)


def not_applied(sent: Sent, letter: DeadLetter) -> Answer:
    """The answer that a dead letter gives."""
    outcome = "conflict" if letter.code == CONFLICT else "refused"
    return Answer(sent.number, sent.transaction_id, outcome, error=f"{letter.code}: {letter.field or 'value'}: {letter.reason}")


class Results(Protocol):
    """Where answers go, in the order of the rows."""

    def write(self, answers: Sequence[Answer]) -> None: ...
    def close(self) -> None: ...


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """What writes results within: SettingsError where it cannot, as on a disk that is full."""
    try:
        yield
    except OSError as error:
        raise SettingsError(f"--out: {error}") from None


class CsvResults:
    """Answers as CSV with a header."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerow(COLUMNS)

    @_writing()
    def write(self, answers: Sequence[Answer]) -> None:
        """Adds them; nothing given is an empty cell."""
        self._writer.writerows(answers)

    @_writing()
    def close(self) -> None:
        """The file is whole."""
        self._file.close()


class ParquetResults:
    """Answers as Parquet, a row group for each 8,192 at least."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._kept: list[Answer] = []

    @_writing()
    def write(self, answers: Sequence[Answer]) -> None:
        """Adds them."""
        self._kept += answers
        if len(self._kept) >= 8192:
            self._flush()

    @_writing()
    def close(self) -> None:
        """The file is whole."""
        try:
            self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist([answer._asdict() for answer in self._kept], SCHEMA))
        self._kept = []


def results_in(path: Path) -> Results:
    """A writer by the file's ending: `.csv` or `.parquet`. SettingsError if it is another, or cannot be written."""
    if path.suffix not in (".csv", ".parquet"):
        raise SettingsError(f"--out: {path}: the result is written as .csv or .parquet")
    try:
        return ParquetResults(path) if path.suffix == ".parquet" else CsvResults(path)
    except OSError as error:
        raise SettingsError(f"--out: {error}") from None


class Desk:
    """Which rows wait for an answer, and which answers wait for their turn. Pure: it knows no Kafka.

    Rows wait by account, then by how long their bytes are, then by the bytes: a decision's ending is looked up once for each length.
    """

    def __init__(self, results: Results) -> None:
        self.outcomes: Counter[str] = Counter()
        self.unknown_accounts = 0
        self.not_applied: set[int] = set()
        """The rows that were sent and are no payments: refused, or a conflict with what was decided of their id."""
        self.written = 0
        self.waiting = 0
        self._results = results
        self._waiting: dict[bytes, dict[int, dict[bytes, list[Sent]]]] = {}
        self._answers: dict[int, Answer] = {}
        self._recent: OrderedDict[bytes, Answer] = OrderedDict()

    def expect(self, account: bytes, sent: Sent) -> None:
        """A row was sent. If it repeats one that was decided lately, byte for byte, its answer is that one's: the first stands."""
        known = self._recent.get(digest(sent.content))
        if known is not None:
            self.answer(known._replace(row=sent.number))
            return
        self._waiting.setdefault(account, {}).setdefault(len(sent.content), {}).setdefault(sent.content, []).append(sent)
        self.waiting += 1

    def answer(self, answer: Answer) -> None:
        """A row has its answer."""
        self._answers[answer.row] = answer

    def on_decision(self, account: bytes | None, value: bytes | None) -> int:
        """Answers the rows whose transaction this decision ends with; returns how many."""
        if value is None:
            return 0
        endings = [value[-length:] for length in self._waiting.get(account or b"", ())]
        return sum(self._settle(account or b"", ending, lambda sent: decided(sent, decode(Decision, value))) for ending in endings)

    def on_dead_letter(self, value: bytes | None) -> int:
        """Answers the rows whose bytes are in this dead letter; returns how many. What is no dead letter answers nobody."""
        try:
            letter = decode(DeadLetter, value)
        except InvalidRecord:
            return 0
        if letter.topic != TRANSACTIONS.name or letter.value is None:
            return 0
        return self._settle(letter.key or b"", letter.value[FRAME:], lambda sent: not_applied(sent, letter))

    def _settle(self, account: bytes, content: bytes, answer: Callable[[Sent], Answer]) -> int:
        """Answers the rows of an account that have these very bytes."""
        lengths = self._waiting.get(account, {})
        found = lengths.get(len(content), {}).pop(content, None)
        if found is None:
            return 0
        if not lengths[len(content)]:
            del lengths[len(content)]
        if not lengths:
            del self._waiting[account]
        for sent in found:
            self.answer(answer(sent))
        self._keep(content, self._answers[found[0].number])
        self.waiting -= len(found)
        return len(found)

    def _keep(self, content: bytes, answer: Answer) -> None:
        self._recent[digest(content)] = answer
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def give_up(self) -> int:
        """Rows that got no answer say so; returns how many."""
        lost = [sent for lengths in self._waiting.values() for rows in lengths.values() for waiting in rows.values() for sent in waiting]
        self._waiting, self.waiting = {}, 0
        for sent in lost:
            self.answer(Answer(sent.number, sent.transaction_id, "unanswered", error="the system gave no answer in time"))
        return len(lost)

    def write(self) -> int:
        """Writes the answers whose turn it is; returns how many rows are written by now."""
        ready = []
        while (answer := self._answers.pop(self.written + 1, None)) is not None:
            ready.append(answer)
            self.outcomes[answer.outcome] += 1
            if answer.outcome in ("conflict", "refused") and answer.transaction_id is not None:
                self.not_applied.add(answer.row)
            self.unknown_accounts += Refusal.UNKNOWN_ACCOUNT in answer.reasons.split(";")
            self.written += 1
        if ready:
            self._results.write(ready)
        return self.written


class Happened(NamedTuple):
    """An account event on its way: when it happened, and its record."""

    at_ms: int
    key: bytes
    value: bytes


def in_order(rows: Iterable[EventRow], say: Callable[[str], None]) -> list[Happened]:
    """The events in order of time, those of the same millisecond as the file has them; bad rows are left out, and the first ones said."""
    kept, bad = [], 0
    for row in rows:
        if isinstance(row.content, InvalidRecord):
            bad += 1
            if bad <= BAD_ROWS_SAID:
                say(f"account event in row {row.number}: {row.content.code}: {row.content.field}: {row.content.reason}")
        else:
            kept.append(Happened(row.content.at_ms, row.content.account_id.encode(), encode(row.content)))
    if bad:
        say(f"{bad} rows of the account events are bad and were left out")
    return sorted(kept, key=lambda each: each.at_ms)


class Line:
    """The way to the system and back: rows go to `transactions`; what is told of them is read from where the topics now end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._failed: KafkaError | None = None
        self._ends: dict[tuple[str, int], int] = {}
        self._groups: dict[str, Any] = {}
        quiet = librdkafka(settings) | {"log_level": 0}  # what goes wrong is raised here, or seen by who waits for answers
        self._producer = Producer(
            quiet
            | {"acks": "all", "enable.idempotence": True, "partitioner": "murmur2_random", "linger.ms": 5, "delivery.timeout.ms": DELIVERED_S * 1000}
        )
        self._consumer = Consumer(
            quiet | {"group.id": "holdfast-replay", "enable.auto.commit": False, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 50}
        )
        places = []
        for topic in (DECISIONS, DEAD_LETTERS):
            self._producer.list_topics(topic.name, timeout=10)  # on the embedded broker a topic appears when a producer asks for it
            places += [TopicPartition(topic.name, p, end) for p, (_, end) in end_offsets(settings, topic).items()]
        self._consumer.assign(places)

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Sends a record; waits while the producer's queue is full. LogUnavailable if one before it did not arrive."""
        while True:
            if self._failed is not None:
                raise LogUnavailable(f"the file could not be sent: {self._failed.str()}")
            try:
                self._producer.produce(topic, value, key, on_delivery=self._delivered)
                return
            except BufferError:
                self._producer.poll(0.1)

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        self._failed = error or self._failed
        if error is None:
            self._ends[message.topic(), message.partition()] = message.offset() + 1

    def followed(self, app: str, topic: Topic, timeout_s: float = FOLLOWED_S) -> bool:
        """Waits until an app has acknowledged all that was sent to a topic; False if it did not in time."""
        self.flush()
        deadline = time.monotonic() + timeout_s
        while (behind := self._behind(app, topic)) and time.monotonic() < deadline:
            time.sleep(ASKED_EVERY_S)
        return not behind

    def _behind(self, app: str, topic: Topic) -> bool:
        """Whether the app's group has yet to acknowledge a record that was sent."""
        ends = {partition: end for (name, partition), end in self._ends.items() if name == topic.name}
        if app not in self._groups:
            self._groups[app] = Consumer(librdkafka(self._settings) | {"log_level": 0, "group.id": app, "enable.auto.commit": False})
        places = [TopicPartition(topic.name, partition) for partition in ends]
        return any(place.offset < ends[place.partition] for place in self._groups[app].committed(places, timeout=FOLLOWED_S)) if places else False

    def flush(self) -> None:
        """Returns when all that was sent has arrived. LogUnavailable if some did not."""
        left = self._producer.flush(DELIVERED_S + 30)
        if self._failed is not None:
            raise LogUnavailable(f"the file could not be sent: {self._failed.str()}")
        if left:
            raise LogUnavailable(f"the file could not be sent: {left} records have not arrived")

    def listen(self, timeout_s: float) -> list[tuple[str, bytes | None, bytes | None]]:
        """What was told since: topic, key and value of each record."""
        self._producer.poll(0)
        told = []
        for message in self._consumer.consume(1000, timeout_s):
            if (error := message.error()) is None:
                told.append((message.topic() or "", message.key(), message.value()))
            elif not error.retriable() and error.code() != KafkaError._PARTITION_EOF:
                raise LogUnavailable(error.str())
        return told

    def of_old(self) -> Iterator[tuple[bytes | None, bytes | None]]:
        """Key and value of every decision in the log."""
        for batch in read_topic(self._settings, DECISIONS):
            for message in batch:
                yield message.key, message.value

    def close(self) -> None:
        """Lets go."""
        for consumer in (self._consumer, *self._groups.values()):
            consumer.close()


class Replay:
    """One file on its way through. `run` returns when each row has its answer, or when none came for `wait_s`."""

    def __init__(
        self,
        rows: Iterator[Row],
        desk: Desk,
        line: Line,
        rate: float | None,
        wait_s: float,
        said: Callable[[int], None],
        events: Iterable[Happened] = (),
    ) -> None:
        self.sent = 0
        self.events = 0
        self.unfollowed = 0
        self.labels: list[tuple[int, Label]] = []
        """Each with the number of its row."""
        self.unlearned = 0
        self._rows, self._desk, self._line = rows, desk, line
        self._rate, self._wait_s, self._said = rate, wait_s, said
        self._began = self._heard = self._searched = time.monotonic()
        self._more = True
        self._events = deque(events)
        self._batch = BATCH_AFTER_EVENTS if self._events else BATCH
        self._now_ms = clock_ms()

    def run(self) -> None:
        """Sends, listens and writes until all rows are written."""
        while self._more or self._desk.waiting:
            self._send_some()
            self._listen(0.02 if self._has_room() and self._more else 0.2)
            self._said(self._desk.write())
            if self._desk.waiting and not (self._more and self._has_room()):
                self._look_back()
        self._send_events(math.inf)
        self._line.flush()
        self._said(self._desk.write())

    def _has_room(self) -> bool:
        return self.sent - self._desk.written < WINDOW

    def _allowed(self) -> int:
        """Rows that may go now: a batch, or what the rate allows."""
        if self._rate is None:
            return self._batch
        return max(0, min(self._batch, int((time.monotonic() - self._began) * self._rate) - self.sent))

    def _send_some(self) -> None:
        if not (self._more and self._has_room()):
            return
        allowed = self._allowed()
        rows = list(itertools.islice(self._rows, allowed))
        self._more = len(rows) == allowed
        self.sent += len(rows)
        times = [row.content.at_ms for row in rows if not isinstance(row.content, InvalidRecord)]
        if times and self._send_events(max(times)) and not self._line.followed(SCORE, ACCOUNT_EVENTS):
            self.unfollowed += 1
        for row in rows:
            self._send(row)

    def _send_events(self, until_ms: float) -> int:
        """Sends the account events up to a moment; returns how many."""
        before = self.events
        while self._events and self._events[0].at_ms <= until_ms:
            event = self._events.popleft()
            self._line.send(ACCOUNT_EVENTS.name, event.key, event.value)
            self.events += 1
        return self.events - before

    def _send(self, row: Row) -> None:
        if isinstance(row.content, InvalidRecord):
            self._desk.answer(refused(row, row.content))
            return
        value, key = encode(row.content), row.content.account_id.encode()
        self._desk.expect(key, Sent(row.number, row.content.transaction_id, value[FRAME:]))
        self._line.send(TRANSACTIONS.name, key, value)
        if row.label is not None:
            self._keep(row.number, row.label)

    def _keep(self, number: int, label: Label) -> None:
        if label.learned_at_ms <= self._now_ms:
            self.labels.append((number, label))
        else:
            self.unlearned += 1

    def _listen(self, timeout_s: float) -> None:
        answered = 0
        for topic, key, value in self._line.listen(timeout_s):
            answered += self._desk.on_decision(key, value) if topic == DECISIONS.name else self._desk.on_dead_letter(value)
        if answered or (self._more and self._has_room()):
            self._heard = self._searched = time.monotonic()

    def _look_back(self) -> None:
        """Nothing comes and nothing can go: searches the decisions of old; gives up when that has not helped for long."""
        now = time.monotonic()
        if now - self._searched < SEARCH_AFTER_S:
            return
        found = sum(self._desk.on_decision(key, value) for key, value in self._line.of_old())
        self._searched = time.monotonic()
        if found:
            self._heard = self._searched
        elif now - self._heard > self._wait_s:
            self._desk.give_up()

    def send_labels(self) -> int:
        """Sends what is known by now of the rows that are payments, in the order in which it was learned; returns how many."""
        known = [label for number, label in self.labels if number not in self._desk.not_applied]
        for label in sorted(known, key=lambda each: (each.learned_at_ms, each.label_id)):
            self._line.send(LABELS.name, label.account_id.encode(), encode(label))
        self._line.flush()
        return len(known)


# The command.


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast replay", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="CSV or Parquet")
    parser.add_argument("--map", type=Path, required=True, help="the mapping file (TOML): which column is which field")
    parser.add_argument("--out", type=Path, help="where the decision rows go, .csv or .parquet (default: <file>.decisions.csv here)")
    parser.add_argument("--accounts", type=Path, help="a file of accounts, read by the mapping's [accounts]: they are told first")
    parser.add_argument("--events", type=Path, help=f"a file of account events, read by the mapping's [{ACCOUNT_EVENTS.name}], merged by time")
    by_default = f"as before in its folder; in a new one embedded up to {EMBEDDED_ROWS} rows"
    parser.add_argument("--kafka", choices=("real", "embedded"), help=f"where a system must be started (default: {by_default})")
    parser.add_argument("--data", type=Path, default=settings.data_dir, metavar="DIR", help="folder of the system (default %(default)s)")
    parser.add_argument("--rate", type=float, metavar="N", help="rows a second at most")
    parser.add_argument("--wait", type=float, default=60.0, metavar="S", help="give up when no answer came for so long (default %(default)s)")
    parser.add_argument("--no-labels", action="store_true", help="do not send the labels of the file")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser


def replay(argv: list[str], settings: Settings) -> int:
    """`holdfast replay`: exit status 0 if each row has its answer (and, where it started the system, the books agree)."""
    args = _parser(settings).parse_args(argv)
    _check_bounds(args)
    settings = settings.changed(data_dir=args.data)
    mapping = mapping_in(args.map)
    out = args.out or Path(f"{args.file.stem}.decisions.csv")
    spare(out, args.file, args.map, args.accounts, args.events)
    rows_in(args.file, mapping, TokenKey(b"", ""), now_ms=0)  # a file that does not fit is said before anything is started
    total = rows_count(args.file, mapping)
    _check_beside(args, mapping)
    there = _reached(settings, mapping)
    if there is None:
        chosen_broker(args.kafka, held_in(settings.data_dir), total)  # a refusal leaves the results of an earlier run
    results = results_in(out)
    if there is not None:
        for text in forewarned(there):
            say_on_stderr(text)
        figures = _replayed(there, args, mapping, results, total)
        whole = figures["unanswered"] == 0
    else:
        figures, whole = _on_own_system(settings, args, mapping, results, total)
    print("\n".join(summary(figures, out)))
    if args.json:
        print(json.dumps(figures))
    return 0 if whole else 1


def _check_bounds(args: Any) -> None:
    """SettingsError for a rate or a wait that makes no sense."""
    if args.rate is not None and not 0 < args.rate < math.inf:
        raise SettingsError(f"--rate: {args.rate:g} is not a number of rows above 0")
    if not 0 <= args.wait < math.inf:
        raise SettingsError(f"--wait: {args.wait:g} is not a number of seconds from 0 on")


def _check_beside(args: Any, mapping: Mapping) -> None:
    """SettingsError if the file of accounts or of account events does not fit: said before anything is started."""
    if args.events is not None:
        events_in(args.events, mapping, TokenKey(b"", ""), now_ms=0)
    if args.accounts is not None:
        accounts_in(args.accounts, mapping, TokenKey(b"", ""), 0, say_on_stderr)


def forewarned(there: Settings) -> list[str]:
    """What to know of the system that is there before a file is sent through it."""
    if UnknownAccount(there.unknown_account) is UnknownAccount.HOLD:
        return []
    return [f"this system declines payments of accounts that nobody described ({DECLINES}): their rows get {Refusal.UNKNOWN_ACCOUNT}"]


def summary(figures: dict[str, Any], out: Path) -> list[str]:
    """The figures of a run, for people."""
    lines = [
        f"{figures['rows']} rows in {figures['seconds']} s ({figures['rows_per_s']}/s) -> {out}",
        "  " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(figures["outcomes"].items())),
    ]
    if unknown := figures["unknown_accounts"]:
        lines.append(f"  {unknown} rows were declined for {Refusal.UNKNOWN_ACCOUNT}: a system started with {HOLDS} holds without a funds check")
    sent, unlearned = figures["labels_sent"], figures["labels_not_yet_learned"]
    if sent or unlearned:
        lines.append(f"  {sent} labels sent" + (f"; {unlearned} not, because they are learned only after now" if unlearned else ""))
    if told := figures["accounts_sent"] or figures["account_events_sent"]:
        lines.append(f"  {figures['accounts_sent']} accounts and {figures['account_events_sent']} account events sent")
    if told and figures["batches_not_awaited"]:
        lines.append(f"  {figures['batches_not_awaited']} batches went before the score app had acknowledged their account events")
    return lines


def _reached(settings: Settings, mapping: Mapping) -> Settings | None:
    """The settings of the system that is there: one that runs in the data folder, or one that the environment names.

    SettingsError for one that is named without the key of its tokens: the file's tokens would be other cards than its door's.
    """
    there = running_settings(settings)
    if there is not None or "HOLDFAST_KAFKA_BOOTSTRAP" not in os.environ:
        return there
    if mapping.tokens and not settings.token_key:
        raise SettingsError("HOLDFAST_TOKEN_KEY: not given, and the mapping has [tokens]: they must be made by the key of the system")
    return settings


def chosen_broker(asked: BrokerName | None, kept: Remembered | None, rows: int) -> tuple[BrokerName, int]:
    """Which broker is started for so many rows, and how many of it: what was asked for, else what the folder holds, else by size."""
    before: BrokerName | None = None if kept is None else "real" if kept.broker_kind == "kafka" else "embedded"
    kind: BrokerName = asked or before or ("embedded" if rows <= EMBEDDED_ROWS else "real")
    if kind == "embedded" and rows > EMBEDDED_ROWS_MAX:
        raise SettingsError(
            f"--kafka: an embedded broker keeps the decisions of some {EMBEDDED_ROWS_MAX} rows only, and the file has {rows}: use --kafka real"
            + (", and another folder (--data), as this one is of an embedded system" if before == "embedded" else "")
        )
    return kind, kept.brokers if kept is not None and before == kind else 1


def _on_own_system(settings: Settings, args: Any, mapping: Mapping, results: Results, total: int) -> tuple[dict[str, Any], bool]:
    """Starts a system for the run, replays, checks the books, stops it."""
    kafka, brokers = chosen_broker(args.kafka, held_in(settings.data_dir), total)
    say_on_stderr(
        f"no system runs in {settings.data_dir}: starting one for this run ({kafka} Kafka; unknown accounts are held without a funds check)"
    )
    settings = with_kept_secrets(settings.changed(unknown_account="hold", http_port=0))
    ensure_champion(settings, say_on_stderr)
    with running(settings, broker_name=kafka, brokers=brokers, apps=APPS) as stack:
        figures = _replayed(stack.settings, args, mapping, results, total)
        report = agreed(stack.settings, 60.0)
    print("\n".join(report.lines(10)))
    return figures | {"books_agree": report.agrees}, report.agrees and figures["unanswered"] == 0


def _replayed(settings: Settings, args: Any, mapping: Mapping, results: Results, total: int) -> dict[str, Any]:
    """Sends the file through the system of these settings; returns the figures of the run."""
    key = TokenKey(settings.token_key.encode(), settings.token_key_id)
    rows = rows_in(args.file, mapping, key, now_ms=clock_ms(), future_ms_max=settings.future_ms_max)
    events = in_order(_events(args, mapping, key, settings), say_on_stderr)
    began = time.monotonic()
    try:
        with contextlib.closing(Line(settings)) as line, _progress(total) as said:
            desk = Desk(results)
            first, rows = _peeked(rows)
            accounts = tell_accounts(line, accounts_in(args.accounts, mapping, key, first, say_on_stderr)) if args.accounts else 0
            run = Replay(rows, desk, line, args.rate, args.wait, said, events)
            run.run()
            seconds = time.monotonic() - began
            labels = 0 if args.no_labels else run.send_labels()
    except KafkaException as error:
        raise LogUnavailable(str(error)) from error
    finally:
        results.close()
    return {
        "rows": desk.written,
        "outcomes": dict(desk.outcomes),
        "unanswered": desk.outcomes["unanswered"],
        "unknown_accounts": desk.unknown_accounts,
        "seconds": round(seconds, 1),
        "rows_per_s": round(desk.written / max(seconds, 1e-9)),
        "labels_sent": labels,
        "labels_not_yet_learned": run.unlearned,
        "accounts_sent": accounts,
        "account_events_sent": run.events,
        "batches_not_awaited": run.unfollowed,
    }


def _events(args: Any, mapping: Mapping, key: TokenKey, settings: Settings) -> Iterable[EventRow]:
    if args.events is None:
        return ()
    return events_in(args.events, mapping, key, now_ms=clock_ms(), future_ms_max=settings.future_ms_max)


def _peeked(rows: Iterator[Row]) -> tuple[int, Iterator[Row]]:
    """The moment of the first good row within a batch, as of which the accounts are told (0 if there is none), and the rows."""
    seen = list(itertools.islice(rows, BATCH))
    times = [row.content.at_ms for row in seen if not isinstance(row.content, InvalidRecord)]
    return min(times, default=0), itertools.chain(seen, rows)


def tell_accounts(line: Line, accounts: Iterable[AccountState]) -> int:
    """Tells the bank's accounts, and waits until the hold app knows them; returns how many. LogUnavailable if it does not come to know them."""
    told = 0
    for state in accounts:
        line.send(ACCOUNTS.name, state.account_id.encode(), encode(state))
        told += 1
    if not line.followed(HOLD, ACCOUNTS, ACCOUNTS_S):
        raise LogUnavailable(f"the {HOLD} app did not acknowledge {told} accounts within {ACCOUNTS_S:.0f} s")
    return told


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal; a line every five seconds elsewhere."""
    console = Console(stderr=True)
    began = said_at = time.monotonic()
    bar = Progress(
        TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"), TimeRemainingColumn(), console=console
    )
    task: TaskID = bar.add_task("replay", total=total, rate=0)

    def said(done: int) -> None:
        nonlocal said_at
        now = time.monotonic()
        rate = done / max(now - began, 1e-9)
        bar.update(task, completed=done, rate=round(rate))
        if not console.is_terminal and now - said_at > 5.0:
            said_at = now
            left_s = (total - done) / rate if rate else 0.0
            print(f"replay {done}/{total} rows, {rate:.0f}/s, {left_s:.0f} s left", file=sys.stderr, flush=True)

    with bar if console.is_terminal else contextlib.nullcontext():
        yield said
