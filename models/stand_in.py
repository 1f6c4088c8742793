"""What the stand-in may approve while log or Redis does not answer: rows of limits, and what was approved under them today. Pure."""

from __future__ import annotations

import hashlib
import tomllib
from decimal import Decimal
from itertools import islice
from typing import Annotated, NamedTuple, TypeVar

import msgspec

from models.controls import applying, forbidden
from models.decision import Verdict
from models.hold import OpenHold
from models.policy import DAY_MS, Policy, hold_terms
from schemas import identity
from schemas.account import AccountState, AccountStatus
from schemas.controls import Controls
from schemas.decision import Decision, Outcome, Reason, ReasonSource
from schemas.errors import InvalidRecord, SettingsError
from schemas.hold import HoldState
from schemas.money import to_minor
from schemas.record import Word
from schemas.transaction import CREDITS, Transaction, TransactionKind

T = TypeVar("T")
STAND_IN = "stand_in"
"""What the degradations of its decisions start with; what did not answer comes after the colon."""
CARDS_MAX, MERCHANTS_MAX = 500_000, 100_000
DAYS_MAX = 10
"""More than those whose untold answers hosts may ask for again (`answer_ttl_s`, by default eight)."""


class Refusal(Word):
    """Why the stand-in does not approve; the order of the lines is the precedence. Each is a row of FIELD_39."""

    NOT_COVERED = "stand_in_not_covered"
    CONTROLS = "stand_in_controls"
    UNKNOWN_CARD = "stand_in_unknown_card"
    UNKNOWN_MERCHANT = "stand_in_unknown_merchant"
    AMOUNT = "stand_in_amount"
    CARD_COUNT = "stand_in_card_count"
    CARD_TOTAL = "stand_in_card_total"
    DAY_TOTAL = "stand_in_day_total"


class Row(NamedTuple):
    """One row: payments of these kinds in this currency, and how much of them. Amounts are minor units."""

    currency: str
    kinds: frozenset[TransactionKind]
    amount_max_minor: int
    card_day_max_minor: int
    card_day_count_max: int
    day_max_minor: int


class StandInPolicy(NamedTuple):
    """The rows; the first that covers a payment stands."""

    policy_id: str
    name: str
    known_ms: int
    rows: tuple[Row, ...]

    def row_of(self, txn: Transaction) -> Row | None:
        """The row that covers a payment, if one does."""
        return next((row for row in self.rows if row.currency == txn.own_currency and txn.kind in row.kinds), None)


class _RowText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    currency: str
    kinds: tuple[TransactionKind, ...]
    amount_max: Decimal
    card_day_max: Decimal
    card_day_count_max: Annotated[int, msgspec.Meta(ge=0)]
    day_max: Decimal


class _Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    known_days: Annotated[float, msgspec.Meta(gt=0, le=366)]
    rows: tuple[_RowText, ...]


def stand_in_from_toml(text: str) -> StandInPolicy:
    """The policy that the file's text says; SettingsError naming what is missing, unknown or out of bounds."""
    try:
        read = msgspec.convert(tomllib.loads(text), _Text)
        rows = tuple([_row(row) for row in read.rows])
    except (ValueError, ArithmeticError, RecursionError, InvalidRecord) as error:
        raise SettingsError(f"stand-in policy: {error}") from error
    policy_id = f"sin_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    return StandInPolicy(policy_id, read.name, int(read.known_days * DAY_MS), rows)


def _row(row: _RowText) -> Row:
    credits = sorted(CREDITS & set(row.kinds))
    if credits:
        raise ValueError(f"{credits[0]} brings money in: the stand-in does not decide it")
    for name in ("amount_max", "card_day_max", "day_max"):
        limit: Decimal = getattr(row, name)
        if not limit.is_finite() or limit < 0:
            raise ValueError(f"{name}: {limit} is no amount of nothing or more")
    amount, card_day, day = (to_minor(each, row.currency) for each in (row.amount_max, row.card_day_max, row.day_max))
    return Row(row.currency, frozenset(row.kinds), amount, card_day, row.card_day_count_max, day)


class Approval(msgspec.Struct, frozen=True, array_like=True):
    """What is counted of one approval."""

    currency: str
    card_token: str
    amount_minor: int
    at_ms: int


def approval_of(txn: Transaction, at_ms: int) -> Approval:
    """A payment as it is counted."""
    return Approval(txn.own_currency, str(txn.card_token), txn.own_amount_minor, at_ms)


class Day:
    """What was approved in one day of UTC."""

    __slots__ = ("cards", "totals")

    def __init__(self) -> None:
        self.cards: dict[tuple[str, str], tuple[int, int]] = {}
        """By currency and card: how many, and how much."""
        self.totals: dict[str, int] = {}


class Approved:
    """What was approved under the rows, by day: a later day begins with nothing, and a clock that goes back finds what its day had."""

    def __init__(self) -> None:
        self._days: dict[int, Day] = {}

    def refusal(self, row: Row, txn: Transaction, at_ms: int) -> Refusal | None:
        """Which limit one more approval would pass, if any."""
        day = self._day(at_ms)
        count, minor = day.cards.get((row.currency, str(txn.card_token)), (0, 0))
        amount = txn.own_amount_minor
        if amount > row.amount_max_minor:
            return Refusal.AMOUNT
        if count >= row.card_day_count_max:
            return Refusal.CARD_COUNT
        if minor + amount > row.card_day_max_minor:
            return Refusal.CARD_TOTAL
        return Refusal.DAY_TOTAL if day.totals.get(row.currency, 0) + amount > row.day_max_minor else None

    def add(self, one: Approval, times: int = 1) -> None:
        """Counts an approval; `times` -1 takes it back."""
        day, place = self._day(one.at_ms), (one.currency, one.card_token)
        count, minor = day.cards.get(place, (0, 0))
        day.cards[place] = count + times, minor + times * one.amount_minor
        day.totals[one.currency] = day.totals.get(one.currency, 0) + times * one.amount_minor

    def knows(self, at_ms: int) -> bool:
        """Whether it still has what was approved that day."""
        return at_ms // DAY_MS in self._days

    def _day(self, at_ms: int) -> Day:
        """That day; of all, those that were asked for last stay."""
        number = at_ms // DAY_MS
        if number not in self._days or number != next(reversed(self._days)):
            self._days[number] = self._days.pop(number) if number in self._days else Day()
            while len(self._days) > DAYS_MAX:
                del self._days[next(iter(self._days))]
        return self._days[number]


def newer_half(kept: dict[str, T]) -> dict[str, T]:
    """What came last into a dict, half of it: so that a full one is not looked through at each new entry."""
    return dict(islice(kept.items(), len(kept) // 2, None))


class Known:
    """The cards whose last answer was an approval, the merchants that had one, and what the owners and the bank forbid."""

    def __init__(self, known_ms: int) -> None:
        self._known_ms = known_ms
        self._cards: dict[str, int] = {}
        self._merchants: dict[str, int] = {}
        self._controls: dict[str, dict[str, Controls]] = {}
        """By account those of it and of its cards."""
        self._closed: dict[str, int] = {}
        """Accounts that may not be debited, and as of when their owner's books said so last."""

    def obey(self, said: Controls | AccountState) -> None:
        """Controls stand from now on, if none that were said later do; so does whether an account may be debited."""
        if isinstance(said, AccountState):
            if said.as_of_ms <= self._closed.get(said.account_id, -1):
                return
            self._closed.pop(said.account_id, None)
            if said.status is not AccountStatus.OPEN:
                self._closed[said.account_id] = said.as_of_ms
            return
        controls = said
        own = self._controls.setdefault(controls.account_id, {})
        earlier = own.get(controls.controls_id)
        if earlier is None or earlier.at_ms <= controls.at_ms:
            own[controls.controls_id] = controls

    def _is_forbidden(self, txn: Transaction, at_ms: int) -> bool:
        """Whether its account's status or controls forbid a payment, or may: what was spent under limits of a day or longer is not known here."""
        if txn.account_id in self._closed:
            return True
        own = tuple(self._controls.get(txn.account_id, {}).values())
        return any(each.counts for each in applying(own, txn.card_token)) or forbidden(own, (), txn, at_ms) is not None

    def note(self, txn: Transaction, outcome: Outcome, at_ms: int) -> None:
        """Learns from a decision."""
        card = txn.card_token
        if card is None:
            return
        self._cards.pop(card, None)  # who comes again is not among those that came first
        if outcome is not Outcome.APPROVE:
            return
        self._cards[card] = at_ms
        if txn.merchant_id is not None:
            self._merchants.pop(txn.merchant_id, None)
            self._merchants[txn.merchant_id] = at_ms
        if len(self._cards) > CARDS_MAX:
            self._cards = newer_half(self._cards)
        if len(self._merchants) > MERCHANTS_MAX:
            self._merchants = newer_half(self._merchants)

    def refusal(self, txn: Transaction, at_ms: int) -> Refusal | None:
        """What is forbidden, or who is not known."""
        if self._is_forbidden(txn, at_ms):
            return Refusal.CONTROLS
        if at_ms - self._cards.get(txn.card_token or "", -self._known_ms - 1) > self._known_ms:
            return Refusal.UNKNOWN_CARD
        if at_ms - self._merchants.get(txn.merchant_id or "", -self._known_ms - 1) > self._known_ms:
            return Refusal.UNKNOWN_MERCHANT
        return None


def refusal(policy: StandInPolicy, known: Known, approved: Approved, txn: Transaction, at_ms: int) -> Refusal | None:
    """Why the stand-in does not approve a payment; None if it does."""
    row = policy.row_of(txn)
    if row is None or txn.card_token is None or txn.step_up_of is not None:
        return Refusal.NOT_COVERED
    return known.refusal(txn, at_ms) or approved.refusal(row, txn, at_ms)


def limited(verdict: Verdict, why: Refusal | None, gone: str) -> Verdict:
    """The verdict as the stand-in gives it: an approval that it refuses is a decline for its own reason. `gone` is what did not answer."""
    degradations = (*verdict.degradations, f"{STAND_IN}:{gone}")
    if why is None or verdict.outcome is not Outcome.APPROVE:
        return msgspec.structs.replace(verdict, degradations=degradations)
    reasons = (Reason(code=why, source=ReasonSource.DEGRADED),)
    return msgspec.structs.replace(verdict, outcome=Outcome.DECLINE, reasons=reasons, degradations=degradations, holds=False)


def alone(policy: StandInPolicy, judging: Policy, txn: Transaction, at_ms: int, why: Refusal | None, gone: str, door: str) -> Decision:
    """The stand-in's decision where nothing of the past is known: it has no vector and no score; `said_before` goes with those.

    Money is held on the terms of `judging`, which would have decided; `door` is where it was asked.
    """
    holds, terms = why is None and txn.own_amount_minor > 0, hold_terms(judging, txn)
    return Decision(
        decision_id=identity.decision_id(txn.transaction_id),
        transaction_id=txn.transaction_id,
        account_id=txn.account_id,
        at_ms=txn.at_ms,
        decided_at_ms=at_ms,
        outcome=Outcome.DECLINE if why else Outcome.APPROVE,
        reasons=(Reason(code=why, source=ReasonSource.DEGRADED),) if why else (),
        score=None,
        risk=None,
        contributions=(),
        hold_id=identity.hold_id(txn.transaction_id) if holds else None,
        held_minor=txn.own_amount_minor if holds else 0,
        hold_currency=txn.own_currency if holds else None,
        hold_expires_at_ms=at_ms + terms.lifetime_ms if holds else None,
        model_id="",
        policy_id=policy.policy_id,
        catalogue_id="",
        vector=b"",
        positions=(),
        hold_tolerance_minor=txn.own_amount_minor * terms.tolerance_percent // 100 if holds else 0,
        declined_positions=(),
        degradations=(f"{STAND_IN}:{gone}",),
        source_topic=door,
        source_partition=-1,
        source_offset=-1,
        transaction=txn,
    )


def said_before(verdict: Verdict, decision: Decision) -> Verdict:
    """What the stand-in said, with the score that the model gives it afterwards. The account is not asked: the host has its answer."""
    degradations = tuple(dict.fromkeys((*decision.degradations, *verdict.degradations)))
    return Verdict(decision.outcome, decision.reasons, verdict.score, verdict.risk, verdict.contributions, degradations, debits=False, holds=False)


def hold_of(decision: Decision) -> OpenHold | None:
    """The hold that a decision speaks of."""
    if decision.hold_id is None or decision.hold_currency is None or decision.hold_expires_at_ms is None:
        return None
    own = (decision.hold_id, decision.transaction_id, decision.held_minor, decision.hold_currency)
    return OpenHold(*own, HoldState.PROVISIONAL, 0, decision.hold_expires_at_ms, tolerance_minor=decision.hold_tolerance_minor)


def is_stand_in(degradations: tuple[str, ...]) -> bool:
    """Whether the stand-in had a part in a decision."""
    return any(each.startswith(STAND_IN) for each in degradations)
