"""Whether the books agree: a fold over the records of all topics that names each disagreement. Pure; `streams/check.py` feeds it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from models.ledger import transfer_of_credit, transfers_of_hold
from models.policy import Policy, approved_in_part
from models.sar import MOVEMENTS_MAX, Movement, belongs, candidate_id, completions, movement_of, whole
from schemas import avro, identity
from schemas.decision import Decision, Outcome
from schemas.hold import Clearing, ClearingKind, HoldEvent, HoldState
from schemas.ledger import LedgerTransfer, TransferPhase
from schemas.sar import SarCandidate, Typology
from schemas.topics import CLEARINGS, SAR_CANDIDATES, TRANSACTIONS
from schemas.transaction import Transaction

FINAL = frozenset({HoldState.POSTED, HoldState.VOIDED, HoldState.EXPIRED})
PARTS = frozenset({HoldState.PARTLY_POSTED, HoldState.PARTLY_VOIDED})
MOVES = frozenset({TransferPhase.POST, TransferPhase.POST_PART, TransferPhase.DIRECT})
"""Phases that move money; the others reserve or release it."""
SAID = tuple(name for name in LedgerTransfer.__struct_fields__ if not name.startswith("source_"))
"""What a hold or credit says of its transfer: all but the place of its record, which may lie in the log twice."""
REFUSABLE = frozenset({TRANSACTIONS.name, CLEARINGS.name})
"""Topics that others write: a record of theirs that does not decode is explained by its dead letter."""
FirstOffsets = Mapping[str, Mapping[int, int]]
"""By topic and partition the oldest offset that is still there. Of a topic that is not named nothing is missed."""


class Disagreement(NamedTuple):
    """One thing that is wrong in the books: a stable code, whose, and in words."""

    code: str
    subject: str
    text: str


class _Made(NamedTuple):
    """What the audit keeps of a decision."""

    hold_id: str | None
    held_minor: int
    tolerance_minor: int
    currency: str | None
    expires_at_ms: int | None
    origin: tuple[str, int, int]
    digest: bytes
    credit: tuple[LedgerTransfer, ...]
    account_id: str
    decided_at_ms: int
    movement: Movement | None


@dataclass(slots=True)
class Audit:
    """Feed it every record of every topic, in any order of topics; then ask for its `disagreements`."""

    counts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    policy_ids: set[str] = field(default_factory=set)
    """Whose the decisions are: of policies, and of the stand-in's."""
    _bytes: dict[str, bytes] = field(default_factory=dict)
    _asked: dict[str, dict[tuple[int, int], bytes]] = field(default_factory=dict)
    _clearings: dict[tuple[int, int], Clearing] = field(default_factory=dict)
    _unreadable: list[tuple[str, int, int, str]] = field(default_factory=list)
    _dead: set[tuple[str, int, int]] = field(default_factory=set)
    _made: dict[str, _Made] = field(default_factory=dict)
    _confirmed: dict[str, HoldEvent] = field(default_factory=dict)
    _resolved: dict[str, HoldEvent] = field(default_factory=dict)
    _parts: dict[str, list[HoldEvent]] = field(default_factory=dict)
    _transfers: dict[str, LedgerTransfer] = field(default_factory=dict)
    _candidates: list[SarCandidate] = field(default_factory=list)
    _twice: list[Disagreement] = field(default_factory=list)
    _unsound: list[Disagreement] = field(default_factory=list)

    def transaction(self, txn: Transaction, partition: int, offset: int) -> None:
        """One record of `transactions`."""
        self.counts["transaction records"] += 1
        self._asked.setdefault(txn.transaction_id, {})[partition, offset] = _digest(txn)

    def clearing(self, clearing: Clearing, partition: int, offset: int) -> None:
        """One record of `clearings`."""
        self.counts["clearing records"] += 1
        self._clearings[partition, offset] = clearing

    def unreadable(self, topic: str, partition: int, offset: int, reason: str) -> None:
        """A record of any topic that does not decode, and why."""
        self.counts["unreadable records"] += 1
        self._unreadable.append((topic, partition, offset, reason))

    def dead_letter(self, topic: str, partition: int, offset: int) -> None:
        """The origin of one record of `dead_letters`."""
        self.counts["dead letters"] += 1
        self._dead.add((topic, partition, offset))

    def decision(self, decision: Decision, message: bytes) -> None:
        """One record of `decisions`."""
        if not self._new("decisions", decision.decision_id, message):
            return
        self.outcomes[decision.outcome] += 1
        self.policy_ids.add(decision.policy_id)
        self._made[decision.transaction_id] = _Made(
            decision.hold_id,
            decision.held_minor,
            decision.hold_tolerance_minor,
            decision.hold_currency,
            decision.hold_expires_at_ms,
            (decision.source_topic, decision.source_partition, decision.source_offset),
            _digest(decision.transaction),
            transfer_of_credit(decision),
            decision.account_id,
            decision.decided_at_ms,
            movement_of(decision),
        )
        if wrong := "; ".join(_unsound(decision)):
            self._unsound.append(Disagreement("unsound_decision", decision.transaction_id, wrong))

    def hold_event(self, event: HoldEvent, message: bytes) -> None:
        """One record of `holds`."""
        part = event.state in PARTS
        stage = f"part {event.clearing_id}" if part else "resolved" if event.state in FINAL else "confirmed"
        if not self._new("hold events", f"{event.hold_id} {stage}", message):
            return
        self.counts[f"holds {event.state}"] += 1
        if part:
            self._parts.setdefault(event.hold_id, []).append(event)
        else:
            (self._resolved if event.state in FINAL else self._confirmed)[event.hold_id] = event

    def transfer(self, transfer: LedgerTransfer, message: bytes) -> None:
        """One record of `ledger`."""
        if self._new("ledger transfers", transfer.transfer_id, message):
            self._transfers[transfer.transfer_id] = transfer

    def candidate(self, candidate: SarCandidate, message: bytes) -> None:
        """One record of `sar_candidates`."""
        if self._new("SAR candidates", candidate.candidate_id, message):
            self._candidates.append(candidate)

    def _new(self, what: str, identity: str, message: bytes) -> bool:
        """Counts a record by id: the same bytes again are a repeat, other bytes under the same id a disagreement."""
        before = self._bytes.setdefault(identity, message)
        if before is message:
            self.counts[what] += 1
            return True
        self.counts[f"repeated {what}"] += 1
        if before != message:
            self._twice.append(Disagreement("two_records_of_one_id", identity, f"{what}: two different records have this id"))
        return False

    def disagreements(self, now_ms: int, grace_ms: int, first_offsets: FirstOffsets, policies: Sequence[Policy] = ()) -> list[Disagreement]:
        """Everything that is wrong, worst first: none if the books agree.

        `grace_ms` is how long after its end a hold may stay unresolved. What lay in `transactions` or `clearings` before
        `first_offsets` has aged away and is not missed. `policies` are all that may have been in force where the SAR app looked for patterns: a
        candidate is missed that every one of them asks for. Where there are none, none is.
        """
        return [
            *self._unread(),
            *self._twice,
            *self._unsound,
            *self._undecided(),
            *self._orphan_decisions(first_offsets),
            *self._unheld(),
            *self._orphan_holds(),
            *self._unapplied(first_offsets),
            *self._orphan_ends(first_offsets),
            *self._overdue(now_ms - grace_ms),
            *self._unbooked(),
            *self._leaning(),
            *self._wrong_candidates(),
            *self._missed_candidates(policies, now_ms - SAR_CANDIDATES.retention_ms),
        ]

    def _unread(self) -> Iterable[Disagreement]:
        for topic, partition, offset, reason in self._unreadable:
            if topic not in REFUSABLE:
                yield Disagreement("unreadable_record", f"{topic} {partition}/{offset}", reason)
            elif (topic, partition, offset) not in self._dead:
                yield Disagreement("unreadable_record", f"{topic} {partition}/{offset}", f"{reason}, nor is it a dead letter")

    def _undecided(self) -> Iterable[Disagreement]:
        for transaction_id, asked in self._asked.items():
            made = self._made.get(transaction_id)
            for (partition, offset), digest in asked.items():
                place = f"{TRANSACTIONS.name} {partition}/{offset}"
                if (TRANSACTIONS.name, partition, offset) in self._dead:
                    continue
                if made is None:
                    yield Disagreement("undecided_transaction", transaction_id, f"{place} has no decision")
                elif digest != made.digest:
                    yield Disagreement("undecided_conflict", transaction_id, f"{place} is not what was decided under this id, nor a dead letter")

    def _orphan_decisions(self, first_offsets: FirstOffsets) -> Iterable[Disagreement]:
        for transaction_id, made in self._made.items():
            topic, partition, offset = made.origin
            aged = _aged(first_offsets, topic, partition, offset)
            if topic == TRANSACTIONS.name and not aged and (partition, offset) not in self._asked.get(transaction_id, ()):
                yield Disagreement("orphan_decision", transaction_id, f"decided, but {topic} {partition}/{offset} is not that transaction")

    def _unheld(self) -> Iterable[Disagreement]:
        for transaction_id, made in self._made.items():
            if made.hold_id is None:
                continue
            event = self._confirmed.get(made.hold_id)
            if event is None:
                yield Disagreement("unconfirmed_hold", made.hold_id, f"{transaction_id} was decided with a hold, but none was confirmed")
            elif _terms(event) != (made.held_minor, made.tolerance_minor, made.currency, made.expires_at_ms):
                text = f"decided {made.held_minor} {made.currency}, held {event.held_minor} {event.currency}"
                yield Disagreement("hold_differs", made.hold_id, text)

    def _orphan_holds(self) -> Iterable[Disagreement]:
        decided = {made.hold_id for made in self._made.values()}
        for hold_id, event in self._confirmed.items():
            if hold_id not in decided:
                yield Disagreement("orphan_hold", hold_id, f"held for {event.transaction_id}, which no decision holds money for")
        for hold_id in self._parts.keys() | self._resolved.keys():
            steps, before = self._steps(hold_id), self._confirmed.get(hold_id)
            if before is None:
                yield Disagreement("resolved_unconfirmed", hold_id, f"{steps[-1].state}, but never confirmed")
                continue
            wrong = next((step for step in steps if (step.held_minor, step.expires_at_ms) != (before.held_minor, before.expires_at_ms)), None)
            if wrong is not None:
                yield Disagreement("hold_differs", hold_id, f"{wrong.state}: {wrong.held_minor} until {wrong.expires_at_ms}, which was not confirmed")
            yield from _beyond(before, steps)

    def _steps(self, hold_id: str) -> list[HoldEvent]:
        """What became of a confirmed hold: parts first, then its end."""
        end = self._resolved.get(hold_id)
        return [*self._parts.get(hold_id, ()), *([] if end is None else [end])]

    def _unapplied(self, first_offsets: FirstOffsets) -> Iterable[Disagreement]:
        for (partition, offset), clearing in self._clearings.items():
            if (CLEARINGS.name, partition, offset) in self._dead:
                continue
            steps = self._steps(identity.hold_id(clearing.transaction_id))
            if not any(self._caused(step, clearing, first_offsets) for step in steps):
                text = f"{CLEARINGS.name} {partition}/{offset}: a {clearing.kind} of {clearing.transaction_id}, moved nothing and is no dead letter"
                yield Disagreement("unapplied_clearing", clearing.clearing_id, text)

    def _caused(self, step: HoldEvent, clearing: Clearing, first_offsets: FirstOffsets) -> bool:
        """Whether the clearing, or one whose repeat it is, caused this step of its hold."""
        if step.source_topic != CLEARINGS.name:
            return False
        cause = self._clearings.get((step.source_partition, step.source_offset))
        if cause is not None:
            return cause == clearing
        return _aged(first_offsets, step.source_topic, step.source_partition, step.source_offset) and _says(clearing, step)

    def _orphan_ends(self, first_offsets: FirstOffsets) -> Iterable[Disagreement]:
        for step in (*(part for parts in self._parts.values() for part in parts), *self._resolved.values()):
            topic, partition, offset = step.source_topic, step.source_partition, step.source_offset
            if topic != CLEARINGS.name or _aged(first_offsets, topic, partition, offset):
                continue
            cause = self._clearings.get((partition, offset))
            if cause is None or not _says(cause, step):
                text = f"{step.state}, {step.posted_minor} taken, but {topic} {partition}/{offset} does not say so"
                yield Disagreement("orphan_end", step.hold_id, text)

    def _overdue(self, end_ms: int) -> Iterable[Disagreement]:
        for hold_id, event in self._confirmed.items():
            if event.expires_at_ms < end_ms and hold_id not in self._resolved:
                yield Disagreement("overdue_hold", hold_id, f"lapsed at {event.expires_at_ms} and is still open")

    def _unbooked(self) -> Iterable[Disagreement]:
        parts = [part for parts in self._parts.values() for part in parts]
        events = [*self._confirmed.values(), *parts, *self._resolved.values()]
        due = {t.transfer_id: t for event in events for t in transfers_of_hold(event)}
        due |= {t.transfer_id: t for made in self._made.values() for t in made.credit}
        for transfer_id in sorted(due.keys() - self._transfers.keys()):
            yield Disagreement("missing_transfer", transfer_id, f"a hold or credit of {due[transfer_id].transaction_id} has no such transfer")
        for transfer_id in sorted(self._transfers.keys() - due.keys()):
            yield Disagreement("orphan_transfer", transfer_id, f"no hold or credit asks for it ({self._transfers[transfer_id].transaction_id})")
        for transfer_id in sorted(due.keys() & self._transfers.keys()):
            must = {name: getattr(due[transfer_id], name) for name in SAID}
            if wrong := "; ".join(_differing(self._transfers[transfer_id], must)):
                yield Disagreement("transfer_differs", transfer_id, wrong)

    def _leaning(self) -> Iterable[Disagreement]:
        for currency, total in self.sums().items():
            if total:
                yield Disagreement("ledger_leans", currency, f"the accounts sum to {total}")

    def balances(self) -> Counter[tuple[str, str]]:
        """Booked balance of each (ledger account, currency), minor units; pending transfers move nothing."""
        balance: Counter[tuple[str, str]] = Counter()
        for transfer in self._transfers.values():
            if transfer.phase in MOVES:
                balance[transfer.debit_account_id, transfer.currency] -= transfer.amount_minor
                balance[transfer.credit_account_id, transfer.currency] += transfer.amount_minor
        return balance

    def sums(self) -> Counter[str]:
        """The sum of all balances of each currency, minor units: zero."""
        total: Counter[str] = Counter()
        for (_, currency), amount in self.balances().items():
            total[currency] += amount
        return total

    def _wrong_candidates(self) -> Iterable[Disagreement]:
        for candidate in self._candidates:
            unknown = [t for t in candidate.transaction_ids if t not in self._made]
            if unknown:
                yield Disagreement("orphan_candidate", candidate.candidate_id, f"rests on undecided transactions: {', '.join(unknown)}")
            elif wrong := "; ".join(_unlike(candidate, {t: self._made[t] for t in candidate.transaction_ids})):
                yield Disagreement("candidate_differs", candidate.candidate_id, wrong)

    def _missed_candidates(self, policies: Sequence[Policy], since_ms: int) -> Iterable[Disagreement]:
        told = {candidate.candidate_id for candidate in self._candidates}
        accounts: dict[str, list[Movement]] = defaultdict(list)
        for made in self._made.values() if policies else ():
            if made.movement is not None:
                accounts[made.account_id].append(made.movement)
        for account_id, movements in accounts.items():
            for typology, transaction_id in sorted(_due(policies, movements)):
                subject = candidate_id(account_id, typology, transaction_id)
                if subject in told or self._made[transaction_id].decided_at_ms < since_ms:
                    continue
                place = next(n for n, movement in enumerate(movements, 1) if movement.transaction_id == transaction_id)
                if place <= MOVEMENTS_MAX or (typology, transaction_id) in _due(policies, movements[place - MOVEMENTS_MAX : place]):
                    text = f"{transaction_id} completes a pattern ({typology}) of {account_id}, and the SAR desk was not told"
                    yield Disagreement("missing_candidate", subject, text)


def _due(policies: Sequence[Policy], movements: Sequence[Movement]) -> set[tuple[Typology, str]]:
    """The patterns that these complete whichever of the policies was in force, and the transactions that complete them."""
    return set.intersection(*[set(completions(policy, movements)) for policy in policies])


def _unsound(decision: Decision) -> Iterable[str]:
    """Where a decision contradicts its own transaction, or its outcome its reasons or its hold."""
    txn, held, approved = decision.transaction, decision.hold_id is not None, decision.outcome is Outcome.APPROVE
    in_part = held and approved and 0 < decision.held_minor < txn.own_amount_minor
    must = {
        "decision_id": identity.decision_id(txn.transaction_id),
        "transaction_id": txn.transaction_id,
        "account_id": txn.account_id,
        "at_ms": txn.at_ms,
        "hold_id": identity.hold_id(txn.transaction_id) if held else None,
        "hold_currency": txn.own_currency if held else None,
        "held_minor": decision.held_minor if in_part else txn.own_amount_minor if held else 0,
        "approved_minor": approved_in_part(txn, decision.held_minor) if in_part else None,
    }
    yield from _differing(decision, must)
    if held and decision.outcome not in (Outcome.APPROVE, Outcome.REVIEW):
        yield f"outcome is {decision.outcome}, and money is held"
    if approved == bool(decision.reasons):
        yield f"outcome is {decision.outcome}, with {len(decision.reasons)} reasons"
    if (decision.score is None) != all(said.probability is None for said in decision.contributions):
        yield f"score is {decision.score}, which is not what the members said"


def _unlike(candidate: SarCandidate, made: Mapping[str, _Made]) -> Iterable[str]:
    """Where a candidate does not say what was decided of its transactions. Of a policy's thresholds nothing is asked: they change."""
    movements = [each.movement for each in made.values() if each.movement is not None and belongs(each.movement, candidate.typology)]
    foreign = [each.account_id for each in made.values() if each.account_id != candidate.account_id]
    if len(movements) < len(made) or not made:
        yield f"not all its transactions can be {candidate.typology}"
    elif foreign:
        yield f"account_id is {candidate.account_id}, must be {foreign[0]}"
    else:
        yield from _differing(candidate, whole(candidate.typology, movements)._asdict())
    last = next((each for t, each in made.items() if candidate_id(candidate.account_id, candidate.typology, t) == candidate.candidate_id), None)
    if last is None:
        yield "candidate_id is that of no transaction of the pattern"
    else:
        yield from _differing(candidate, {"detected_at_ms": last.decided_at_ms})


def _differing(record: Decision | SarCandidate | LedgerTransfer, must: Mapping[str, object]) -> Iterable[str]:
    """In words, each field that is not what it must be."""
    pairs = ((name, getattr(record, name), must_be) for name, must_be in must.items())
    return (f"{name} is {is_now}, must be {must_be}" for name, is_now, must_be in pairs if is_now != must_be)


def _digest(txn: Transaction) -> bytes:
    """What tells one transaction's contents from another's."""
    return identity.digest(avro.body(txn))


def _aged(first_offsets: FirstOffsets, topic: str, partition: int, offset: int) -> bool:
    """Whether the broker has dropped that record, or nobody read its topic."""
    first = first_offsets.get(topic)
    return first is None or offset < first.get(partition, 0)


def _terms(event: HoldEvent) -> tuple[int, int, str, int]:
    """On what terms money is held."""
    return event.held_minor, event.tolerance_minor, event.currency, event.expires_at_ms


def _beyond(confirmed: HoldEvent, steps: list[HoldEvent]) -> Iterable[Disagreement]:
    """Where the steps of a hold took or gave back more than there was, or the last one does not say what was left."""
    held, tolerance, hold_id, last = confirmed.held_minor, confirmed.tolerance_minor, confirmed.hold_id, steps[-1]
    posted, released = sum(step.posted_minor for step in steps), sum(step.released_minor for step in steps)
    above = posted + released - held
    if posted > held + tolerance:
        yield Disagreement("posted_above_hold", hold_id, f"posted {posted} of {held}, with {tolerance} of tolerance")
    elif above > (tolerance if last.state is HoldState.POSTED and not last.released_minor else 0):  # only a last capture may take more than is left
        yield Disagreement("released_above_hold", hold_id, f"released {released} of {held}, of which {posted} were posted")
    elif last.state in FINAL and released and above < 0:
        yield Disagreement("rest_differs", hold_id, f"ended, but {released} released and {posted} posted are not the {held} that were held")


def _says(clearing: Clearing, step: HoldEvent) -> bool:
    """Whether this step of a hold is what the clearing asks for."""
    posts = clearing.kind is ClearingKind.CAPTURE
    if step.hold_id != identity.hold_id(clearing.transaction_id) or step.at_ms != clearing.at_ms:
        return False
    if step.state not in ((HoldState.POSTED, HoldState.PARTLY_POSTED) if posts else (HoldState.VOIDED, HoldState.PARTLY_VOIDED)):
        return False
    if posts:
        return step.posted_minor == clearing.amount_minor
    return clearing.amount_minor in (0, step.released_minor)
