"""What the SAR desk must look at: structuring, money straight in and out, blocked fraud. Pure: movements in, candidates out.

Thresholds are the policy's. A pattern is told once, by the transaction that completes it; what completed one pattern is
not counted for the next.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

import msgspec

from models.policy import Policy, SarThresholds
from schemas.decision import Decision, Outcome
from schemas.identity import derived_id
from schemas.sar import Evidence, SarCandidate, Typology
from schemas.transaction import TransactionKind

MOVEMENTS_MAX = 1_000
"""Movements that are remembered of an account: the newest."""
INFLOWS = frozenset({TransactionKind.TRANSFER_IN, TransactionKind.CASH_IN})
OUTFLOWS = frozenset({TransactionKind.TRANSFER_OUT, TransactionKind.CASH_OUT, TransactionKind.ATM})


class Movement(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One decided movement of an account, as much of it as patterns need."""

    transaction_id: str
    kind: TransactionKind
    amount_minor: int
    currency: str
    at_ms: int
    blocked: bool  # tried, and blocked as fraud: no money moved
    counterparty_account_id: str | None = None

    def to_bytes(self) -> bytes:
        """The movement in MessagePack, some 60 bytes."""
        return _ENCODER.encode(self)

    @staticmethod
    def from_bytes(content: bytes) -> Movement:
        """The movement in these bytes."""
        return _DECODER.decode(content)


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Movement)
Found = tuple[list[Movement], tuple[Evidence, ...]]


class Pattern(NamedTuple):
    """Which movements count, within which time, whether what came in and all the rest of them (minor units) can be enough, and what is one."""

    counts: Callable[[Movement], bool]
    window_ms: int
    may_be: Callable[[int, int], bool]
    find: Callable[[list[Movement], SarThresholds], Found | None]


def movement_of(decision: Decision) -> Movement | None:
    """The movement that a decision made or prevented; None where it was declined, for then nothing was suspected or moved.

    Of what was approved in part only that moved.
    """
    txn = decision.transaction
    if decision.outcome is Outcome.DECLINE or txn.own_amount_minor == 0:
        return None
    blocked = decision.outcome is Outcome.BLOCK
    amount_minor = txn.own_amount_minor if decision.approved_minor is None else decision.held_minor
    return Movement(txn.transaction_id, txn.kind, amount_minor, txn.own_currency, txn.at_ms, blocked, txn.counterparty_account_id)


def window_ms(policy: Policy) -> int:
    """How far back any pattern looks, milliseconds: how long movements must be kept."""
    return max(policy.sar.structuring_window_ms, policy.sar.rapid_window_ms, policy.sar.blocked_window_ms)


class Whole(NamedTuple):
    """What a candidate says of all its movements together."""

    amount_minor: int
    currency: str
    from_at_ms: int
    until_at_ms: int


def candidate_id(account_id: str, typology: Typology, transaction_id: str) -> str:
    """The one id of the pattern that this transaction completes."""
    return derived_id("sar", account_id, typology, transaction_id)


def whole(typology: Typology, movements: Sequence[Movement]) -> Whole:
    """The amount of a pattern (of money straight in and out: what came in), and from when until when it lasted."""
    counted = [m for m in movements if m.kind in INFLOWS] if typology is Typology.RAPID_MOVEMENT else movements
    times = [m.at_ms for m in movements]
    return Whole(sum(m.amount_minor for m in counted), movements[-1].currency, min(times), max(times))


def belongs(movement: Movement, typology: Typology) -> bool:
    """Whether a movement can be a part of such a pattern, whatever the thresholds are."""
    if typology is Typology.BLOCKED_FRAUD:
        return movement.blocked
    kinds = {TransactionKind.CASH_IN} if typology is Typology.STRUCTURING else INFLOWS | OUTFLOWS
    return not movement.blocked and movement.kind in kinds


def candidates(
    policy: Policy, movements: Sequence[Movement], decision: Decision, topic: str, partition: int, offset: int
) -> tuple[SarCandidate, ...]:
    """The patterns that this decision's movement completes.

    `movements` are the account's recent ones in the order of the log (the new one may be among them or not: the past ends
    at its first occurrence, so that a redelivered decision gives the same candidates). The place is the decision's own.
    None in a currency that the policy has no rate for: every pattern has an amount, and amounts are in US dollars.
    """
    new = movement_of(decision)
    if new is None or new.currency not in policy.sar.usd_per_unit:
        return ()
    past: list[Movement] = []
    for movement in movements:
        if movement.transaction_id == new.transaction_id:
            break
        if movement.currency == new.currency:
            past.append(movement)
    found = []
    for typology, pattern in _patterns(policy.sar, new.currency):
        seen = _completed([m for m in (*past, new) if pattern.counts(m)], new, pattern, policy.sar)
        if seen is not None:
            found.append(_candidate(policy, typology, seen, decision, topic, partition, offset))
    return tuple(found)


def completions(policy: Policy, movements: Sequence[Movement]) -> Iterator[tuple[Typology, str]]:
    """Each pattern that movements of an account complete, and the transaction that completes it.

    They are each once, in the order of the log: what `candidates` says of one after the other, in one go.
    """
    for currency in sorted({m.currency for m in movements} & policy.sar.usd_per_unit.keys()):
        for typology, pattern in _patterns(policy.sar, currency):
            counting = [m for m in movements if m.currency == currency and pattern.counts(m)]
            for movement, found in zip(counting, _each_completed(counting, pattern, policy.sar), strict=True):
                if found is not None:
                    yield typology, movement.transaction_id


def _patterns(sar: SarThresholds, currency: str) -> tuple[tuple[Typology, Pattern], ...]:
    """The table, for movements in one currency."""
    reported, suspect, share = sar.minor(sar.ctr_usd, currency), sar.minor(sar.sar_usd, currency), Decimal(str(sar.rapid_share_min))
    return (
        (
            Typology.STRUCTURING,
            Pattern(lambda m: _is_part(m, sar), sar.structuring_window_ms, lambda came, rest: came > reported, _structuring),
        ),
        (
            Typology.RAPID_MOVEMENT,
            Pattern(
                lambda m: belongs(m, Typology.RAPID_MOVEMENT),
                sar.rapid_window_ms,
                lambda came, rest: min(came, rest) >= suspect and rest >= share * came,
                _rapid,
            ),
        ),
        (
            Typology.BLOCKED_FRAUD,
            Pattern(lambda m: belongs(m, Typology.BLOCKED_FRAUD), sar.blocked_window_ms, lambda came, rest: came + rest >= suspect, _blocked),
        ),
    )


class _Latest:
    """The movements of a window that ends with the latest: where they begin, what came in by them, and all the rest."""

    def __init__(self, window: int) -> None:
        self._window = window
        self.begin = self.came = self.rest = 0

    def add(self, movements: list[Movement]) -> None:
        """The last of these movements, in order of time, is new."""
        self._count(movements[-1], 1)
        while movements[self.begin].at_ms <= movements[-1].at_ms - self._window:
            self._count(movements[self.begin], -1)
            self.begin += 1

    def look_again(self, movements: list[Movement]) -> None:
        """Others than the last are new, or are there no more."""
        self.begin = bisect_right(movements, movements[-1].at_ms - self._window, key=_at_ms) if movements else 0
        self.came = self.rest = 0
        for movement in movements[self.begin :]:
            self._count(movement, 1)

    def _count(self, movement: Movement, sign: int) -> None:
        if movement.kind in INFLOWS:
            self.came += sign * movement.amount_minor
        else:
            self.rest += sign * movement.amount_minor


def _completed(counting: list[Movement], new: Movement, pattern: Pattern, sar: SarThresholds) -> Found | None:
    """The pattern that `new`, the last of the counting movements, completes."""
    if not counting or counting[-1] is not new:
        return None
    found = None
    for each in _each_completed(counting, pattern, sar):
        found = each
    return found


def _each_completed(counting: list[Movement], pattern: Pattern, sar: SarThresholds) -> Iterator[Found | None]:
    """The pattern that each of the counting movements completes; earlier completions use up what they counted.

    Only where the sums can be enough are the movements looked at one by one: an account may have a thousand that are no pattern.
    """
    unused: list[Movement] = []
    latest = _Latest(pattern.window_ms)
    for movement in counting:
        insort(unused, movement, key=_at_ms)
        found: Found | None = None
        late = unused[-1] is not movement
        if not late:
            latest.add(unused)
            if not pattern.may_be(latest.came, latest.rest):
                yield None
                continue
        for first, after in _stretches(unused, movement.at_ms, pattern.window_ms):
            found = pattern.find(unused[first:after], sar)
            if found is not None:
                del unused[first:after]
                break
        if late or found is not None:
            latest.look_again(unused)
        yield found


def _stretches(movements: list[Movement], at_ms: int, window: int) -> Iterator[tuple[int, int]]:
    """Which of the movements, in order of time, lie within the window up to one of this time, and up to each later one that it was late for."""
    for after in range(bisect_right(movements, at_ms, key=_at_ms), bisect_left(movements, at_ms + window, key=_at_ms) + 1):
        yield bisect_right(movements, movements[after - 1].at_ms - window, key=_at_ms), after


def _at_ms(movement: Movement) -> int:
    return movement.at_ms


def _is_part(movement: Movement, sar: SarThresholds) -> bool:
    """A cash deposit that is itself not reported (31 CFR 1010.311), and not too small to be part of a pattern."""
    low, high = (sar.minor(usd, movement.currency) for usd in (sar.structuring_part_usd_min, sar.ctr_usd))
    return belongs(movement, Typology.STRUCTURING) and low <= movement.amount_minor <= high


def _structuring(parts: list[Movement], sar: SarThresholds) -> Found | None:
    """Several deposits, none reported by itself, that together exceed the reporting threshold (31 CFR 1010.314)."""
    total = sum(m.amount_minor for m in parts)
    threshold = sar.minor(sar.ctr_usd, parts[0].currency)
    if len(parts) < sar.structuring_count_min or total <= threshold:
        return None
    largest = max(m.amount_minor for m in parts)
    return parts, (_figure("deposits", len(parts)), _figure("largest_minor", largest), _figure("reporting_threshold_minor", threshold))


def _rapid(recent: list[Movement], sar: SarThresholds) -> Found | None:
    """Money that came in and, but for a small rest, left again within the window, in an amount that must be reported."""
    first = next((i for i, m in enumerate(recent) if m.kind in INFLOWS), None)
    if first is None or recent[-1].kind not in OUTFLOWS:
        return None
    flow = recent[first:]
    came = sum(m.amount_minor for m in flow if m.kind in INFLOWS)
    left = sum(m.amount_minor for m in flow if m.kind in OUTFLOWS)
    if min(came, left) < sar.minor(sar.sar_usd, flow[0].currency) or Decimal(left) < Decimal(str(sar.rapid_share_min)) * came:
        return None
    others = {m.counterparty_account_id for m in flow} - {None}
    return flow, (_figure("inflow_minor", came), _figure("outflow_minor", left), _figure("counterparties", len(others)))


def _blocked(blocked: list[Movement], sar: SarThresholds) -> Found | None:
    """Attempts that were blocked as fraud and together reach the amount that must be reported (31 CFR 1020.320)."""
    threshold = sar.minor(sar.sar_usd, blocked[0].currency)
    if sum(m.amount_minor for m in blocked) < threshold:
        return None
    return blocked, (_figure("attempts", len(blocked)), _figure("reporting_threshold_minor", threshold))


def _figure(name: str, value: int) -> Evidence:
    return Evidence(name=name, value=str(value))


def _candidate(policy: Policy, typology: Typology, found: Found, decision: Decision, topic: str, partition: int, offset: int) -> SarCandidate:
    """The record, with what the decision itself said as further evidence."""
    movements, figures = found
    reasons = ",".join(r.code for r in decision.reasons)
    return SarCandidate(
        candidate_id=candidate_id(decision.account_id, typology, decision.transaction_id),
        account_id=decision.account_id,
        typology=typology,
        **whole(typology, movements)._asdict(),
        detected_at_ms=decision.decided_at_ms,
        transaction_ids=tuple(m.transaction_id for m in movements),
        evidence=(*figures, *((Evidence(name="reasons", value=reasons),) if reasons else ())),
        policy_id=policy.policy_id,
        source_topic=topic,
        source_partition=partition,
        source_offset=offset,
    )
