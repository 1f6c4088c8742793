"""`holdfast check`: reads the topics and says whether the books agree, naming each disagreement."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from models.audit import Audit, Disagreement
from models.policy import Policy
from models.registry import Registry
from schemas.avro import decode
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision
from schemas.errors import ArtefactError, InvalidRecord, LogUnavailable, SettingsError
from schemas.hold import Clearing, HoldEvent
from schemas.ledger import LedgerTransfer
from schemas.sar import SarCandidate
from schemas.topics import CLEARINGS, DEAD_LETTERS, DECISIONS, HOLDS, LEDGER, SAR_CANDIDATES, TRANSACTIONS, Topic
from schemas.transaction import Transaction
from streams.bus import Message, end_offsets, read_topic
from streams.clock import clock_ms
from streams.folder import is_owned, keys_of
from streams.parity import check_features
from streams.settings import Settings
from streams.verdicts import check_verdicts

GRACE_MS = 60_000
READ = (TRANSACTIONS, CLEARINGS, DEAD_LETTERS, DECISIONS, HOLDS, LEDGER, SAR_CANDIDATES)
"""In this order: what is asked before what follows from it, so that an answer given meanwhile is not missed."""
KEPT_WHOLE = (DECISIONS, HOLDS, LEDGER)
"""Topics that must still have their first record: books of which a part is gone cannot be checked."""
SEEN_IN_A_PART = ("unreadable_record", "two_records_of_one_id", "unsound_decision", "posted_above_hold", "released_above_hold")
"""Disagreements that are so whatever the brokers dropped; any other may come of records that are gone."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found. `aged` are topics whose oldest records the broker no longer has, though it should, and
    `unsettled` how many differences may come of that; `not_asked` is why nobody asked whether SAR candidates are missing."""

    counts: Counter[str]
    outcomes: Counter[str]
    sums: Counter[str]
    disagreements: list[Disagreement]
    aged: dict[str, int]
    unsettled: int = 0
    not_asked: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the books are whole and agree."""
        return not self.disagreements and not self.aged

    def lines(self, most: int = 50) -> list[str]:
        """For people: counts, then each disagreement by name (the first `most`), then the verdict."""
        lines = [f"{count:>10,}  {what}" for what, count in sorted(self.counts.items())]
        lines += [f"{count:>10,}  decided {outcome}" for outcome, count in sorted(self.outcomes.items())]
        lines += [f"{total:>10,}  sum of all ledger accounts, {currency}" for currency, total in sorted(self.sums.items())]
        lines += [f"{name}: the broker dropped its oldest {lost} records, so the books cannot be checked" for name, lost in self.aged.items()]
        lines += [f"{d.code}: {d.subject}: {d.text}" for d in self.disagreements[:most]]
        lines += [f"not asked whether SAR candidates are missing: {self.not_asked}"] if self.not_asked else []
        hidden = len(self.disagreements) - most
        lines += [f"... and {hidden:,} more"] if hidden > 0 else []
        return [*lines, self._verdict]

    @property
    def _verdict(self) -> str:
        if self.disagreements:
            return f"the books do NOT agree: {len(self.disagreements):,} disagreements"
        if self.aged:
            return f"the books cannot be checked: the log is not whole; differences that may come of what it lost: {self.unsettled:,}"
        return "the books agree"

    def figures(self) -> dict[str, object]:
        """For programs."""
        return {
            "agrees": self.agrees,
            "counts": dict(self.counts),
            "outcomes": dict(self.outcomes),
            "ledger_sums_minor": dict(self.sums),
            "disagreements": len(self.disagreements),
            "disagreements_by_code": dict(Counter(d.code for d in self.disagreements)),
            "dropped": self.aged,
            "unsettled": self.unsettled,
            "not_asked": self.not_asked,
        }


def check_books(settings: Settings, grace_ms: int = GRACE_MS) -> Report:
    """Reads every topic from its first record to its present end. LogUnavailable if the brokers do not answer."""
    audit = Audit()
    aged: dict[str, int] = {}
    first_offsets: dict[str, dict[int, int]] = {}
    for topic in READ:
        first_offsets[topic.name] = {partition: low for partition, (low, _) in end_offsets(settings, topic).items()}
        dropped = sum(first_offsets[topic.name].values())
        if dropped and topic in KEPT_WHOLE:
            aged[topic.name] = dropped
        for batch in read_topic(settings, topic):
            for message in batch:
                _feed(audit, topic, message)
    now_ms = clock_ms()
    try:
        policies, not_asked = _policies(settings, audit.policy_ids), ""
    except (ArtefactError, SettingsError) as error:
        policies, not_asked = [], str(error)
    found = audit.disagreements(now_ms, grace_ms, first_offsets, policies)
    sure = [d for d in found if d.code in SEEN_IN_A_PART] if aged else found
    return Report(audit.counts, audit.outcomes, audit.sums(), sure, aged, len(found) - len(sure), not_asked)


def _policies(settings: Settings, named: Collection[str]) -> list[Policy]:
    """The policy that is in force and those that decided. ArtefactError or SettingsError where one cannot be read any more."""
    registry = Registry(settings.registry_dir, keys_of(settings))
    current, house = registry.policy(), registry.policy_of(None)
    known = {policy.policy_id: policy for policy in (current, house)}
    wanted = {current.policy_id, *(policy_id for policy_id in named if policy_id.startswith("pol_"))}
    return [known.get(policy_id) or registry.load_policy(policy_id) for policy_id in sorted(wanted)]


def _feed(audit: Audit, topic: Topic, message: Message) -> None:
    try:
        record = decode(topic.record, message.value)
    except InvalidRecord as error:
        audit.unreadable(topic.name, message.partition, message.offset, str(error))
        return
    match record:
        case Transaction():
            audit.transaction(record, message.partition, message.offset)
        case Clearing():
            audit.clearing(record, message.partition, message.offset)
        case DeadLetter():
            audit.dead_letter(record.topic, record.partition, record.offset)
        case Decision():
            audit.decision(record, message.value or b"")
        case HoldEvent():
            audit.hold_event(record, message.value or b"")
        case LedgerTransfer():
            audit.transfer(record, message.value or b"")
        case SarCandidate():
            audit.candidate(record, message.value or b"")
        case _:
            raise AssertionError(f"{topic.name} is not audited")


def agreed(settings: Settings, wait_s: float, said: float = 2.0) -> Report:
    """The report as soon as the books agree or the log is not whole, or the last one after `wait_s` seconds: the apps may still be at work."""
    deadline = time.monotonic() + wait_s
    while True:
        report = check_books(settings)
        left_s = deadline - time.monotonic()
        if report.agrees or report.aged or left_s <= 0:
            return report
        print(f"  {len(report.disagreements):,} disagreements so far; the apps have {left_s:.0f} s left to settle them", file=sys.stderr)
        time.sleep(min(said, left_s))


def check(argv: list[str], settings: Settings) -> int:
    """`holdfast check [--wait S | --features | --verdicts] [--json]`: exit status 0 if books, vectors or verdicts agree, 1 if not, 2 if topics
    cannot be read."""
    parser = argparse.ArgumentParser(prog="holdfast check", description=__doc__)
    parser.add_argument("--wait", type=float, default=0, metavar="S", help="give the apps up to S seconds to finish what is under way")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--features", action="store_true", help="instead of the books: compute every vector again, and compare bit for bit")
    instead.add_argument("--verdicts", action="store_true", help="instead of the books: judge every decision again, by its own model and policy")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    args = parser.parse_args(argv)
    if not 0 <= args.wait < math.inf:
        raise SettingsError(f"--wait: {args.wait:g} is not a number of seconds from 0 on")
    try:
        report = check_features(settings) if args.features else check_verdicts(settings) if args.verdicts else agreed(settings, args.wait)
    except LogUnavailable as error:
        nobody = "" if is_owned(settings.data_dir) else f"no system runs in {settings.data_dir}, and "
        print(f"holdfast check: {nobody}the brokers at {settings.kafka_bootstrap} do not answer: {error}", file=sys.stderr)
        return 2
    print("\n".join(report.lines()))
    if args.json:
        print(json.dumps(report.figures()))
    return 0 if report.agrees else 1
