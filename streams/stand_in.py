"""The stand-in: answers inside the deadline what log or Redis cannot, within limits of its own, from its own disk; and tells the log later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from models import stand_in as rows
from models.answer import host_view
from models.clearing import WHOLE, Asked
from models.decision import Verdict
from models.policy import DAY_MS
from models.registry import default_stand_in_text
from models.stand_in import STAND_IN, Approval, Approved, Known, StandInPolicy, approval_of, is_stand_in, newer_half, stand_in_from_toml
from schemas import avro
from schemas.decision import Decision, Outcome
from schemas.errors import Conflict, HoldfastError, InvalidRecord, LogUnavailable, SettingsError, Unavailable
from schemas.hold import ClearingKind
from schemas.identity import derived_id
from schemas.topics import DECISIONS
from schemas.transaction import Transaction
from streams import journal, metrics
from streams.answers import Kept
from streams.bus import read_tail
from streams.pipeline import Ask, Course, Decided, World, decide_all
from streams.settings import Settings
from streams.spool import DONE, KEPT, Entry, Spool

COUNTED = b"C"
"""The kind of an entry that only counts: an approval of today whose decision the log has."""
OFF = "off"
LOG, MEMORY, LATE = "log_unavailable", "memory_unavailable", "deadline"
AT_ONCE = 64
PAUSE_S = 0.2
RECENT_MAX = 20_000
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
        self.pending: dict[str, Given] = {}
        """By transaction: what the log is still to be told, oldest first."""
        self._apart: dict[str, Given] = {}
        """Answers that differ from what the log has: a repeat here gets them again."""
        self._recent: dict[str, bytes] = {}
        for kind, content in entries:
            if kind == KEPT:
                decision = avro.decode(Decision, content)
                self.pending[decision.transaction_id] = Given(decision, content, None)
                if _counts(decision):
                    self._approved.add(approval_of(decision.transaction, decision.decided_at_ms))
            elif kind == COUNTED:
                self._approved.add(msgspec.msgpack.decode(content, type=Approval))

    @classmethod
    def opened(cls, settings: Settings, now_ms: int) -> StandIn | None:
        """The stand-in of the settings with what its disk has; None if it is switched off."""
        if settings.stand_in_policy == OFF:
            return None
        policy = stand_in_from_toml(_text(settings.stand_in_policy))
        spool, entries = Spool.opened(settings.data_dir / "stand_in", lambda found: _needed(found, now_ms // DAY_MS))
        return cls(policy, spool, entries)

    async def close(self) -> None:
        """Lets the disk go."""
        await self._spool.close()

    def learn(self, settings: Settings) -> None:
        """Learns cards, merchants and answers from the newest decisions of the log."""
        decisions = []
        for batch in read_tail(settings, DECISIONS, range(DECISIONS.partitions), TAIL):
            for message in batch:
                try:
                    decisions.append((avro.decode(Decision, message.value), message.value or b""))
                except InvalidRecord:
                    continue
        for decision, value in sorted(decisions, key=lambda each: each[0].decided_at_ms):
            self._known.note(decision.transaction, decision.outcome, decision.decided_at_ms)
            self._remember(decision.transaction_id, value)

    def note(self, made: Decided, txn: Transaction, now_ms: int) -> None:
        """Learns from a decision that was told."""
        if made.decision is not None:
            self._known.note(txn, made.decision.outcome, now_ms)
            self._remember(txn.transaction_id, made.message)

    def _remember(self, transaction_id: str, message: bytes) -> None:
        self._recent[transaction_id] = message
        if len(self._recent) > RECENT_MAX:
            self._recent = newer_half(self._recent)

    # What it answers.

    def first(self, txn: Transaction) -> Given | None:
        """What was answered to it here, if that is not told yet. Conflict if it came with other contents."""
        given = self.pending.get(txn.transaction_id) or self._apart.get(txn.transaction_id)
        if given is not None and given.decision.transaction != txn:
            raise Conflict(txn.transaction_id)
        return given

    async def repeated(self, given: Given) -> Decided:
        """The answer again, when it is on the disk."""
        if given.durable is not None:
            await asyncio.shield(given.durable)
        return Decided(given.message, given.decision)

    def limited(self, txn: Transaction, verdict: Verdict, now_ms: int) -> tuple[Verdict, bool]:
        """The verdict within its limits, and whether it was counted."""
        why = self._refusal(txn, now_ms) if verdict.outcome is Outcome.APPROVE else None
        counted = verdict.outcome is Outcome.APPROVE and why is None
        if counted:
            self._approved.add(approval_of(txn, now_ms))
        return rows.limited(verdict, why, LOG), counted

    def uncount(self, txn: Transaction, now_ms: int) -> None:
        """Takes back what `limited` counted."""
        self._approved.add(approval_of(txn, now_ms), -1)

    def kept_back(self, message: bytes, decision: Decision | None, counted: bool) -> asyncio.Future[None]:
        """Keeps a decision that the log does not take now; done when the disk has it. LogUnavailable if it is not to be answered for."""
        decision = decision or avro.decode(Decision, message)
        if not counted and not self._may(decision):
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(LogUnavailable("the log does not take it, and the stand-in may not answer for it"))
            return refused
        return self._kept(decision, message)

    def _may(self, decision: Decision) -> bool:
        """Whether a decision that was made without it can be answered: one that takes no money, or within its limits, which counts it."""
        if decision.outcome is not Outcome.APPROVE or self._was_counted(decision):
            return True
        if self._refusal(decision.transaction, decision.decided_at_ms) is not None:
            return False
        self._approved.add(approval_of(decision.transaction, decision.decided_at_ms))
        return True

    def _was_counted(self, decision: Decision) -> bool:
        """Whether it is here, or another process's stand-in approved it."""
        return decision.transaction_id in self.pending or is_stand_in(decision.degradations)

    def _refusal(self, txn: Transaction, now_ms: int) -> rows.Refusal | None:
        return rows.refusal(self._policy, self._known, self._approved, txn, now_ms)

    async def answer(self, txn: Transaction, now_ms: int, course: Course, gone: str, world: World) -> Decided:
        """The answer to one that is late or failed. Nothing more of it is kept or told by whoever was at it.

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
        if sent is not None and self._may(sent):
            return await self.repeated(self._given(sent, course.sent or b""))
        why = self._refusal(txn, now_ms) or (None if sent is None else rows.Refusal.NOT_COVERED)
        decision = rows.alone(self._policy, world.panel.judges_of(txn).policy, txn, now_ms, why, gone)
        if why is None:
            self._approved.add(approval_of(txn, now_ms))
        return await self.repeated(self._given(decision, avro.encode(decision)))

    def _given(self, decision: Decision, message: bytes) -> Given:
        self._kept(decision, message)
        return self.pending[decision.transaction_id]

    def _kept(self, decision: Decision, message: bytes) -> asyncio.Future[None]:
        durable = self._spool.append(KEPT, message)
        self.pending[decision.transaction_id] = Given(decision, message, durable)
        if not (decision.reasons and decision.reasons[0].code.startswith(STAND_IN)):  # its own limits say nothing of the card
            self._known.note(decision.transaction, decision.outcome, decision.decided_at_ms)
        metrics.STAND_INS.labels(decision.outcome).inc()
        return durable

    # What it tells.

    async def tell(self, world: World) -> None:
        """Tells the log for as long as it runs what it has not been told, oldest first; one by one until it answers again."""
        while True:
            await asyncio.sleep(PAUSE_S)
            while self.pending:
                some = list(self.pending.values())[: AT_ONCE if world.bus.well else 1]
                try:
                    await self._tell(some, world)
                except (HoldfastError, OSError) as error:
                    journal.logger().info("the stand-in cannot tell the log yet", waiting=len(self.pending), reason=str(error))
                    break

    async def _tell(self, some: list[Given], world: World) -> None:
        for given in some:
            if given.durable is not None:
                await given.durable
        alone = []
        for given in some:
            decision = given.decision
            if decision.vector:
                await self._tell_whole(given, world)
                continue
            first = await world.answers.of_transaction(decision.transaction_id)
            if first is None or host_view(avro.decode(Decision, first.message)) == host_view(decision):
                alone.append(Ask(decision.transaction, decision.decided_at_ms, said=decision))
            else:
                await self._brought_together(given, first, world)
        for ask, made in zip(alone, await decide_all(alone, world), strict=True):
            if isinstance(made, Conflict):
                self._differs(self.pending[ask.txn.transaction_id], "the log has other contents under this id")
            elif isinstance(made, HoldfastError):
                raise made
            else:
                self._done(ask.txn.transaction_id)

    async def _tell_whole(self, given: Given, world: World) -> None:
        """Tells a decision that has all of its parts, byte for byte: the log may have it already."""
        decision = given.decision
        first = await world.answers.keep(decision.transaction_id, decision.decision_id, given.message)
        if first.message != given.message:
            await self._brought_together(given, first, world)
            return
        if not first.told:
            await world.bus.tell(DECISIONS, decision.account_id, given.message)
            world.answers.told(decision.transaction_id)
        self._done(decision.transaction_id)

    async def _brought_together(self, given: Given, first: Kept, world: World) -> None:
        """The log has, or may have, another decision than the host was told. That one stands; if the host was told no, its hold is reversed."""
        from streams.authorize.life import clear  # it reads the world, and this is a part of it

        other, decision = avro.decode(Decision, first.message), given.decision
        name, account_id = decision.transaction_id, decision.account_id
        if not first.told and decision.hold_id is not None and other.hold_id is None:
            await world.answers.forget(name)  # nobody told it: what the host heard takes its place, at the next try
            return
        if not first.told:
            await world.bus.tell(DECISIONS, account_id, first.message)
            world.answers.told(name)
        if other.hold_id is not None and decision.hold_id is None:
            now_ms = world.clock_ms()
            asked = Asked(ClearingKind.REVERSAL, derived_id("clr", name, STAND_IN), name, account_id, WHOLE, "", now_ms)
            made = await clear(asked, world, now_ms)
            if made in ("not_confirmed", "unknown_hold"):
                raise Unavailable(f"the hold of {name} cannot be reversed yet: {made}")
        elif decision.hold_id is not None and other.hold_id is None:
            self._differs(given, "approved here, and the log says otherwise")
            return
        self._apart[name] = given
        self._done(name)

    def _differs(self, given: Given, what: str) -> None:
        """Nothing brings these together: people must know."""
        metrics.STAND_INS_APART.inc()
        journal.logger().critical("the stand-in's answer is not in the log", transaction_id=given.decision.transaction_id, what=what)
        self._apart[given.decision.transaction_id] = given
        self._done(given.decision.transaction_id)

    def _done(self, transaction_id: str) -> None:
        given = self.pending.pop(transaction_id, None)
        if given is not None:
            self._spool.note(DONE, transaction_id.encode())
            self._remember(transaction_id, given.message)


def _counts(decision: Decision) -> bool:
    return decision.outcome is Outcome.APPROVE


def _text(name: str) -> str:
    if name == "default":
        return default_stand_in_text()
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"stand-in policy {name}: {error}") from error


def _needed(found: list[Entry], day: int) -> list[Entry]:
    """What is still to be told, and of the rest what counts today."""
    done = {content.decode() for kind, content in found if kind == DONE}
    needed = []
    for entry in found:
        if entry.kind == COUNTED and msgspec.msgpack.decode(entry.content, type=Approval).at_ms // DAY_MS == day:
            needed.append(entry)
        elif entry.kind == KEPT:
            decision = avro.decode(Decision, entry.content)
            if decision.transaction_id not in done:
                needed.append(entry)
            elif _counts(decision) and decision.decided_at_ms // DAY_MS == day:
                one = approval_of(decision.transaction, decision.decided_at_ms)
                needed.append(Entry(COUNTED, msgspec.msgpack.encode(one)))
    return needed
