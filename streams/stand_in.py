"""The stand-in: answers inside the deadline what log or Redis cannot, within limits of its own, from its own disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from models import stand_in as rows
from models.decision import Verdict
from models.policy import DAY_MS, Policy
from models.registry import default_stand_in_text
from models.stand_in import STAND_IN, Approval, Approved, Known, StandInPolicy, approval_of, is_stand_in, newer_half, stand_in_from_toml
from schemas import avro
from schemas.account import AccountState
from schemas.controls import Controls
from schemas.decision import Decision, Outcome
from schemas.errors import Conflict, InvalidRecord, LogUnavailable, SettingsError
from schemas.topics import ACCOUNT_CONTROLS, DECISIONS
from schemas.transaction import Transaction
from streams import journal, metrics
from streams.asked import Course, Decided
from streams.bus import read_tail, read_topic
from streams.settings import Settings
from streams.spool import DONE, KEPT, Entry, Orphan, Spool

COUNTED = b"C"
"""The kind of an entry that only counts: an approval of today whose decision the log has."""
OFF = "off"
LOG, MEMORY, LATE = "log_unavailable", "memory_unavailable", "deadline"
RECENT_MAX = 20_000
DISK, COUNTED_DISK = 1 << 20, 256
"""Bytes that the disk is not asked to give back: of all, and for each approval that is to be counted, which takes a fraction of it."""
TAIL = 5_000


class Given(NamedTuple):
    """An answer that was given here and that the log does not have yet, or never will in this form."""

    decision: Decision
    message: bytes
    durable: asyncio.Future[None] | None
    """Done when the disk has it; None: it was there when the process started."""


class StandIn:
    """One process's. What it approved today and what it has yet to tell are on its disk."""

    def __init__(self, policy: StandInPolicy, spool: Spool, entries: Iterable[Entry]) -> None:
        self._policy, self._spool = policy, spool
        self._approved, self._known = Approved(), Known(policy.known_ms)
        self._counted: list[Approval] = []
        """Of the approvals that the log has, those of which the disk is to know that they count."""
        self.pending: dict[str, Given] = {}
        """By transaction: what the log is still to be told, oldest first."""
        self._apart: dict[str, Given] = {}
        """Answers that differ from what the log has: a repeat here gets them again."""
        self._recent: dict[str, bytes] = {}
        self.controls_known: dict[int, int] = {}
        """By partition, the offset of `account_controls` up to which it has learned."""
        for kind, content in entries:
            if kind == KEPT:
                decision = avro.decode(Decision, content)
                self.pending[decision.transaction_id] = Given(decision, content, None)
                if _counts(decision):
                    self._approved.add(approval_of(decision.transaction, decision.decided_at_ms))
            elif kind == COUNTED:
                self._counted.append(msgspec.msgpack.decode(content, type=Approval))
                self._approved.add(self._counted[-1])

    @classmethod
    def opened(cls, settings: Settings, now_ms: int) -> StandIn | None:
        """The stand-in of the settings with what its disk has; None if it is switched off: then what was not told before is said."""
        folder, day = settings.data_dir / "stand_in", now_ms // DAY_MS
        if settings.stand_in_policy == OFF:
            if untold := _untold(folder, day):
                said = "the stand-in is off, and what it answered before is on its disk alone: switch it on until the log has it"
                journal.logger().critical(said, untold=untold, folder=str(folder))
            return None
        policy = stand_in_from_toml(_text(settings.stand_in_policy))
        spool, entries = Spool.opened(folder, lambda found: _needed(found, day))
        return cls(policy, spool, entries)

    async def close(self) -> None:
        """Lets the disk go."""
        await self._spool.close()

    def learn(self, settings: Settings) -> None:
        """Learns cards, merchants and answers from the newest decisions of the log, and what controls say now."""
        for batch in read_topic(settings, ACCOUNT_CONTROLS):
            for message in batch:
                self.controls_known[message.partition] = message.offset + 1
                with suppress(InvalidRecord):
                    self.obey(avro.decode(Controls, message.value))
        decisions = []
        for batch in read_tail(settings, DECISIONS, range(DECISIONS.partitions), TAIL):
            for message in batch:
                try:
                    decisions.append((avro.decode(Decision, message.value), message.value or b""))
                except InvalidRecord:
                    continue
        for decision, value in sorted(decisions, key=lambda each: each[0].decided_at_ms):
            self._know(decision)
            self._remember(decision.transaction_id, value)

    def obey(self, said: Controls | AccountState) -> None:
        """See `Known.obey`."""
        self._known.obey(said)

    def note(self, transaction_id: str, made: Decided) -> None:
        """Learns from a decision that was told; of a repeat, what its host heard."""
        if made.decision is not None:
            self._know(made.decision)
        self._remember(transaction_id, made.message)

    def _know(self, decision: Decision) -> None:
        """Learns who is known; the stand-in's own limits say nothing of the card."""
        if not (decision.reasons and decision.reasons[0].code.startswith(STAND_IN)):
            self._known.note(decision.transaction, decision.outcome, decision.decided_at_ms)

    def _remember(self, transaction_id: str, message: bytes) -> None:
        self._recent[transaction_id] = message
        if len(self._recent) > RECENT_MAX:
            self._recent = newer_half(self._recent)

    async def take_over(self, day: int) -> None:
        """What processes that are gone have left for the log is this one's to tell, and counts here, once its own disk has it.

        OSError if that does not take it: then it stays where it is.
        """
        for path in await asyncio.to_thread(self._spool.abandoned):
            orphan = await asyncio.to_thread(Orphan.at, path)
            if orphan is None:
                continue
            kept = orphan.entries
            try:
                needed = _needed(kept, day)
                taken = [(entry, self._taken(entry.content)) for entry in needed if entry.kind == KEPT]
                await asyncio.gather(*[durable for _, durable in taken if durable is not None])
                kept = [entry for entry in needed if entry.kind == COUNTED] + [entry for entry, durable in taken if durable is None]
            finally:
                await asyncio.to_thread(orphan.let_go, kept)

    def _taken(self, message: bytes) -> asyncio.Future[None] | None:
        """Done when the disk has an answer that another process gave; None where one was given here too: that is brought together first."""
        decision = avro.decode(Decision, message)
        if decision.transaction_id in self.pending:
            return None
        if _counts(decision):
            self._approved.add(approval_of(decision.transaction, decision.decided_at_ms))
        return self._put(decision, message, _counts(decision))

    # What it answers.

    def first(self, txn: Transaction) -> Given | None:
        """What was answered to it here, if that is not told yet. Conflict if it came with other contents."""
        given = self._answered(txn.transaction_id)
        if given is not None and given.decision.transaction != txn:
            raise Conflict(txn.transaction_id)
        return given

    def asked(self, transaction_id: str) -> Transaction | None:
        """The transaction of that id as it came first, if it was answered here, or lies among the newest of the log."""
        given = self._answered(transaction_id)
        if given is not None:
            return given.decision.transaction
        before = self._recent.get(transaction_id)
        return None if before is None else avro.decode(Decision, before).transaction

    def _answered(self, transaction_id: str) -> Given | None:
        return self.pending.get(transaction_id) or self._apart.get(transaction_id)

    async def repeated(self, given: Given) -> Decided:
        """The answer again, when it is on the disk. LogUnavailable if that does not take it."""
        if given.durable is not None:
            try:
                await asyncio.shield(given.durable)
            except OSError as error:
                raise LogUnavailable(f"nor can it be kept here: {error}") from None
        return Decided(given.message, given.decision)

    def limited(self, txn: Transaction, verdict: Verdict, now_ms: int) -> tuple[Verdict, bool]:
        """The verdict within its limits, and whether it was counted."""
        why = self._refusal(txn, now_ms) if verdict.outcome is Outcome.APPROVE else None
        counted = verdict.outcome is Outcome.APPROVE and why is None
        if counted:
            self._approved.add(approval_of(txn, now_ms))
        return rows.limited(verdict, why, LOG), counted

    def uncount(self, txn: Transaction, now_ms: int) -> None:
        """Takes back what was counted of a payment."""
        self._approved.add(approval_of(txn, now_ms), -1)

    def kept_back(self, message: bytes, decision: Decision | None, counted: bool) -> asyncio.Future[None]:
        """Keeps a decision that the log does not take now; done when the disk has it. LogUnavailable if it is not to be answered for."""
        decision = decision or avro.decode(Decision, message)
        counts = counted or self._counts_here(decision)
        if not counted and not self._may(decision):
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(LogUnavailable("the log does not take it, and the stand-in may not answer for it"))
            return refused
        return self._kept(decision, message, counts)

    def _may(self, decision: Decision) -> bool:
        """Whether a decision that was made without it can be answered: one that takes no money, or within its limits, which counts it."""
        if not self._counts_here(decision):
            return True
        if self._refusal(decision.transaction, decision.decided_at_ms) is not None:
            return False
        self._approved.add(approval_of(decision.transaction, decision.decided_at_ms))
        return True

    def _counts_here(self, decision: Decision) -> bool:
        """Whether it is an approval that is still to be counted: neither kept here before, nor another process's stand-in's."""
        return _counts(decision) and decision.transaction_id not in self.pending and not is_stand_in(decision.degradations)

    def _refusal(self, txn: Transaction, now_ms: int) -> rows.Refusal | None:
        return rows.refusal(self._policy, self._known, self._approved, txn, now_ms)

    async def answer(self, txn: Transaction, now_ms: int, course: Course, gone: str, policy: Policy, door: str) -> Decided:
        """The answer to one that is late or failed, asked at this `door`, which `policy` would have decided.

        Nothing more of it is kept or told by whoever was at it.
        What is on its way to the log already is answered as it is, if it may be; else it is declined, and reversed once the log has it.
        """
        given = self.first(txn)
        if given is not None:
            return await self.repeated(given)
        before = self._recent.get(txn.transaction_id)
        if before is not None:
            if avro.decode(Decision, before).transaction != txn:
                raise Conflict(txn.transaction_id)
            return Decided(before, None)
        course.over = True
        sent = None if course.sent is None else avro.decode(Decision, course.sent)
        counts = sent is not None and self._counts_here(sent)
        if sent is not None and self._may(sent):
            return await self.repeated(self._given(sent, course.sent or b"", counts))
        why = self._refusal(txn, now_ms) or (None if sent is None else rows.Refusal.NOT_COVERED)
        decision = rows.alone(self._policy, policy, txn, now_ms, why, gone, door)
        if why is None:
            self._approved.add(approval_of(txn, now_ms))
        return await self.repeated(self._given(decision, avro.encode(decision), why is None))

    def _given(self, decision: Decision, message: bytes, counted: bool) -> Given:
        self._kept(decision, message, counted)
        return self.pending[decision.transaction_id]

    def _put(self, decision: Decision, message: bytes, counted: bool) -> asyncio.Future[None]:
        durable = self._spool.append(KEPT, message)
        durable.add_done_callback(partial(self._forget_unkept, decision, counted))
        self.pending[decision.transaction_id] = Given(decision, message, durable)
        return durable

    def _kept(self, decision: Decision, message: bytes, counted: bool) -> asyncio.Future[None]:
        durable = self._put(decision, message, counted)
        self._know(decision)
        metrics.STAND_INS.labels(decision.outcome).inc()
        return durable

    def _forget_unkept(self, decision: Decision, counted: bool, durable: asyncio.Future[None]) -> None:
        """Forgets what the disk did not take: nobody was answered on it."""
        if durable.cancelled() or durable.exception() is None:
            return
        self.pending.pop(decision.transaction_id, None)
        if counted:
            self.uncount(decision.transaction, decision.decided_at_ms)

    # What becomes of it: `streams/forward.py` tells the log.

    def put_off(self, transaction_ids: Iterable[str]) -> None:
        """The log is told of these after all others."""
        for transaction_id in transaction_ids:
            self.pending[transaction_id] = self.pending.pop(transaction_id)

    def done(self, transaction_id: str, apart: bool = False) -> None:
        """Nothing of it is to be told any more. `apart`: the log has another decision, and a repeat here gets what was answered here."""
        given = self.pending.pop(transaction_id, None)
        if given is None:
            return
        if _counts(given.decision):
            self._counted.append(approval_of(given.decision.transaction, given.decision.decided_at_ms))
        self._spool.note(DONE, transaction_id.encode())
        if not self.pending and self._spool.size > DISK + COUNTED_DISK * len(self._counted):
            self._counted = [one for one in self._counted if self._approved.knows(one.at_ms)]
            self._spool.begin_anew([_as_counted(one) for one in self._counted])
        if apart:
            self._apart[transaction_id] = given
            if len(self._apart) > RECENT_MAX:
                self._apart = newer_half(self._apart)
        else:
            self._remember(transaction_id, given.message)


def _counts(decision: Decision) -> bool:
    return decision.outcome is Outcome.APPROVE


def _as_counted(one: Approval) -> Entry:
    return Entry(COUNTED, msgspec.msgpack.encode(one))


def _text(name: str) -> str:
    if name == "default":
        return default_stand_in_text()
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"stand-in policy {name}: {error}") from error


def _untold(folder: Path, day: int) -> int:
    """How many answers lie in spools that no process has, and are to be told."""
    count = 0
    for path in folder.glob("*.spool"):
        orphan = Orphan.at(path)
        if orphan is not None:
            count += sum(kind == KEPT for kind, _ in _needed(orphan.entries, day))
            orphan.let_go(orphan.entries)
    return count


def _needed(found: list[Entry], day: int) -> list[Entry]:
    """What is still to be told, and of the rest what counts today. In order: what was told once may have been answered again."""
    counted, kept = list[Entry](), dict[str, tuple[Decision, Entry]]()
    for entry in found:
        if entry.kind == COUNTED and msgspec.msgpack.decode(entry.content, type=Approval).at_ms // DAY_MS == day:
            counted.append(entry)
        elif entry.kind == KEPT:
            decision = avro.decode(Decision, entry.content)
            kept[decision.transaction_id] = decision, entry
        elif entry.kind == DONE and entry.content.decode() in kept:
            decision, _ = kept.pop(entry.content.decode())
            if _counts(decision) and decision.decided_at_ms // DAY_MS == day:
                counted.append(_as_counted(approval_of(decision.transaction, decision.decided_at_ms)))
    return [*counted, *[entry for _, entry in kept.values()]]
