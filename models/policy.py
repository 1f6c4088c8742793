"""The policy: the numbers and rules that compliance owns, read from one TOML file and checked row by row."""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from enum import IntEnum
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from models.trees import Floats
from schemas.account import AccountStatus
from schemas.decision import Action, Outcome
from schemas.errors import SettingsError
from schemas.money import EXPONENTS
from schemas.record import Word
from schemas.transaction import CREDITS, CheckResult, Transaction, TransactionKind

DAY_MS = 86_400_000
UNREAD = frozenset({"members"})
"""Tables that earlier releases asked for and nobody read (weights are the recipe's): a policy that was signed with one stays what it is."""
FLOAT_MAX = float(np.finfo(np.float64).max)
POLICY_BYTES_MAX = 1 << 20
"""Of a policy's text."""
CODE_MAX = 64
"""A reason's code in a decision has one character to so many (`schemas.decision.Reason`): a decision with another one cannot be read."""
SEVERITY = {outcome: place for place, outcome in enumerate(Outcome)}
"""How severe an outcome is; the most severe of several stands."""


class Comparison(Word):
    """How a rule compares a feature with its value. A missing feature (NaN) satisfies none."""

    ABOVE = "above"
    AT_LEAST = "at_least"
    BELOW = "below"
    AT_MOST = "at_most"
    EQUALS = "equals"


_PLACE = {comparison: place for place, comparison in enumerate(Comparison)}


class Condition(NamedTuple):
    """One comparison of one feature, in the feature's unit."""

    feature: str
    comparison: Comparison
    value: float


class Rule(NamedTuple):
    """One row: where every condition holds, the outcome is at least `outcome`, for `reason`.

    With an action the cardholder is asked to authenticate in its place, where one can be: whoever has is no more what the rule is about.
    """

    conditions: tuple[Condition, ...]
    outcome: Outcome
    reason: str
    action: Action | None = None


class Authentication(IntEnum):
    """How a payment stands to strong customer authentication (Directive (EU) 2015/2366, article 97)."""

    IMPOSSIBLE = 0  # nobody is there to be asked
    POSSIBLE = 1
    DONE = 2
    FAILED = 3  # it was asked for, and the retry does not have it


def authentication_of(txn: Transaction) -> Authentication:
    """How this payment stands to it. Only a full result of 3-D Secure is one; an attempt is not, though it shifts the liability."""
    if txn.three_ds_result is CheckResult.MATCH:
        return Authentication.DONE
    if txn.step_up_of is not None:
        return Authentication.FAILED
    return Authentication.POSSIBLE if txn.kind is TransactionKind.ECOMMERCE else Authentication.IMPOSSIBLE


def asked_by(rule: Rule, authentication: Authentication) -> Outcome:
    """The least outcome that a rule that fired asks for."""
    if rule.action is None or authentication is Authentication.IMPOSSIBLE:
        return rule.outcome
    return Outcome.APPROVE if authentication is Authentication.DONE else Outcome.DECLINE


class SarThresholds(NamedTuple):
    """When activity becomes a candidate for the SAR desk; amounts in US dollars, other currencies through `usd_per_unit`."""

    sar_usd: Decimal  # 31 CFR 1020.320: from this amount on
    ctr_usd: Decimal  # 31 CFR 1010.311: cash above this amount in a day is reported anyway
    structuring_window_ms: int
    structuring_count_min: int
    structuring_part_usd_min: Decimal  # smaller deposits are not parts of a pattern
    rapid_window_ms: int
    rapid_share_min: float
    blocked_window_ms: int
    usd_per_unit: Mapping[str, Decimal]

    @property
    def without_rate(self) -> tuple[str, ...]:
        """The currencies that thresholds cannot be said in, so that no pattern is looked for in them."""
        return tuple(sorted(EXPONENTS.keys() - self.usd_per_unit.keys()))

    def minor(self, usd: Decimal, currency: str) -> int:
        """That many US dollars in minor units of a currency, rounded up. KeyError for a currency `without_rate`."""
        units = usd / self.usd_per_unit[currency]
        return int(units.scaleb(EXPONENTS[currency]).to_integral_value(ROUND_CEILING))


class SchemeRow(NamedTuple):
    """How long holds of a card scheme live, of one kind of transaction or (None) of every kind."""

    scheme: str
    kind: TransactionKind | None
    lifetime_ms: int


class HoldTerms(NamedTuple):
    """On what terms money is held: for how long, and how much more of it than was held a capture may take."""

    lifetime_ms: int
    tolerance_percent: int


class PartialRows(NamedTuple):
    """Which payments may be approved in part, where their host can take that: of these kinds, outside these merchant categories."""

    kinds: frozenset[TransactionKind] = frozenset()
    never_mcc: tuple[tuple[int, int], ...] = ()  # first and last code of a range


class RulePlan(NamedTuple):
    """All conditions as rows of arrays, for the compiled check."""

    columns: npt.NDArray[np.int32]
    comparisons: npt.NDArray[np.int32]
    values: Floats
    rules: npt.NDArray[np.int32]  # by rule: its first condition; one more entry at the end


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One policy. `plan` is there once it is `bound` to a catalogue's names; only then can it judge."""

    policy_id: str
    name: str
    effective_from_ms: int
    review_above: int  # score, 0 to 1000
    block_above: int
    medium_above: int
    high_above: int
    degraded: Mapping[str, Outcome]  # by what is missing, or `otherwise`: the outcome is at least this
    rules: tuple[Rule, ...]
    hold_default_ms: int
    hold_by_kind_ms: Mapping[TransactionKind, int]
    hold_by_mcc_ms: tuple[tuple[int, int, int], ...]  # first and last code of a range, and its lifetime; the first match stands
    hold_by_scheme: tuple[SchemeRow, ...]  # the first match stands
    schemes: tuple[tuple[str, str, str], ...]  # first and last digits of a card number, of the same length, and the scheme
    tolerance_by_mcc: tuple[tuple[int, int, int], ...]  # first and last code of a range, and percent
    sar: SarThresholds
    partial: PartialRows
    credits_refused: frozenset[AccountStatus]  # an account of such a status takes no money in
    plan: RulePlan | None = None

    def bound(self, names: Sequence[str]) -> Policy:
        """The policy whose rules read columns of a vector with these names. SettingsError names an unknown feature."""
        column = {name: i for i, name in enumerate(names)}
        conditions = [c for rule in self.rules for c in rule.conditions]
        for number, rule in enumerate(self.rules, 1):
            for condition in rule.conditions:
                if condition.feature not in column:
                    raise SettingsError(f"policy {self.name}: rules[{number}]: unknown feature {condition.feature!r}")
        firsts = np.cumsum([0, *(len(rule.conditions) for rule in self.rules)])
        plan = RulePlan(
            np.array([column[c.feature] for c in conditions], dtype=np.int32),
            np.array([_PLACE[c.comparison] for c in conditions], dtype=np.int32),
            np.array([c.value for c in conditions], dtype=np.float64),
            firsts.astype(np.int32),
        )
        return replace(self, plan=plan)

    def fired(self, vector: Floats) -> tuple[Rule, ...]:
        """The rules whose conditions all hold for this vector, most severe first, in the file's order within."""
        return self.fired_all(vector[np.newaxis])[0]

    def fired_all(self, vectors: Floats) -> list[tuple[Rule, ...]]:
        """`fired` of each row of a matrix, in one compiled call."""
        assert self.plan is not None, "a policy judges only once it is bound to a catalogue"
        hits = np.empty((len(vectors), len(self.rules) + 1), dtype=np.int32)
        _fired_all(self.plan.columns, self.plan.comparisons, self.plan.values, self.plan.rules, vectors, hits)
        return [self._by_severity(numbers[:count]) if count else () for count, *numbers in hits.tolist()]

    def severest_all(self, vectors: Floats, authentications: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        """int64[rows]: the severity of the most severe rule that fires for each row of a matrix, 0 where none does.

        `authentications` (int64[rows] of Authentication) says what rules with an action come to; without it each asks for its outcome.
        """
        assert self.plan is not None, "a policy judges only once it is bound to a catalogue"
        most = np.zeros(len(vectors), dtype=np.int64)
        if not self.rules:
            return most
        if authentications is None or all(rule.action is None for rule in self.rules):
            return self._severest(vectors, most, Authentication.IMPOSSIBLE)
        for each in Authentication:
            rows = np.flatnonzero(authentications == each)
            most[rows] = self._severest(vectors[rows], most[rows], each)
        return most

    def _severest(self, vectors: Floats, most: npt.NDArray[np.int64], authentication: Authentication) -> npt.NDArray[np.int64]:
        assert self.plan is not None
        severity = np.array([SEVERITY[asked_by(rule, authentication)] for rule in self.rules], dtype=np.int64)
        _severest_all(self.plan.columns, self.plan.comparisons, self.plan.values, self.plan.rules, severity, np.ascontiguousarray(vectors), most)
        return most

    def _by_severity(self, numbers: list[int]) -> tuple[Rule, ...]:
        return tuple(sorted((self.rules[number] for number in numbers), key=lambda rule: -SEVERITY[rule.outcome]))

    def outcome_without(self, missing: str) -> Outcome:
        """The least outcome where this is missing: `member_missing:device` is looked up whole, then as `member_missing`."""
        kind = missing.partition(":")[0]
        return self.degraded.get(missing) or self.degraded.get(kind) or self.degraded["otherwise"]


@numba.njit(cache=True)
def _fired(columns, comparisons, values, rules, vector, hits):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """Writes the numbers of the rules that fire to `hits` and returns how many did."""
    count = 0
    for rule in range(rules.size - 1):
        holds = True
        for i in range(rules[rule], rules[rule + 1]):
            given, value, how = vector[columns[i]], values[i], comparisons[i]
            if how == 0:
                holds = given > value
            elif how == 1:
                holds = given >= value
            elif how == 2:
                holds = given < value
            elif how == 3:
                holds = given <= value
            else:
                holds = given == value
            if not holds:
                break
        if holds:
            hits[count] = rule
            count += 1
    return count


@numba.njit(cache=True)
def _fired_all(columns, comparisons, values, rules, vectors, hits):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """For every row of a matrix: how many rules fire, then their numbers."""
    for row in range(vectors.shape[0]):
        hits[row, 0] = _fired(columns, comparisons, values, rules, vectors[row], hits[row, 1:])


@numba.njit(cache=True)
def _severest_all(columns, comparisons, values, rules, severity, vectors, most):  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    """For every row of a matrix the most severe outcome of the rules that fire, as a severity."""
    hits = np.empty(rules.size, np.int32)
    for row in range(vectors.shape[0]):
        for i in range(_fired(columns, comparisons, values, rules, vectors[row], hits)):
            most[row] = max(most[row], severity[hits[i]])


def hold_terms(policy: Policy, txn: Transaction) -> HoldTerms:
    """On what terms this transaction's money is held: its lifetime by merchant category, else by scheme, else by kind, else the policy's default."""
    return _terms(policy, txn.kind, txn.mcc, txn.card_bin)


@functools.lru_cache(maxsize=16_384)
def _terms(policy: Policy, kind: TransactionKind, mcc: str | None, card_bin: str | None) -> HoldTerms:
    lifetime_ms = _in_range(policy.hold_by_mcc_ms, mcc) or _of_scheme(policy, kind, card_bin) or policy.hold_by_kind_ms.get(kind)
    return HoldTerms(lifetime_ms or policy.hold_default_ms, _in_range(policy.tolerance_by_mcc, mcc) or 0)


def least_minor(policy: Policy, txn: Transaction) -> int:
    """The least that this payment may be approved for in part, minor units of the account's currency; 0 where it may not.

    It is what one minor unit of the transaction's currency costs: less would be an approval of nothing.
    """
    rows = policy.partial
    if not txn.partial_allowed or txn.kind not in rows.kinds or not txn.amount_minor:
        return 0
    if txn.mcc is not None and any(first <= int(txn.mcc) <= last for first, last in rows.never_mcc):
        return 0
    return -(-txn.own_amount_minor // txn.amount_minor)


def approved_in_part(txn: Transaction, held_minor: int) -> int | None:
    """What is approved where less is held than was asked for, minor units of the transaction's currency, rounded down; None where all is."""
    return None if held_minor == txn.own_amount_minor else txn.amount_minor * held_minor // txn.own_amount_minor


def _in_range(ranges: tuple[tuple[int, int, int], ...], mcc: str | None) -> int | None:
    """What the first range that has this code says; None if none has."""
    return None if mcc is None else next((value for first, last, value in ranges if first <= int(mcc) <= last), None)


def _of_scheme(policy: Policy, kind: TransactionKind, card_bin: str | None) -> int | None:
    if card_bin is None:
        return None
    scheme = scheme_of(policy, card_bin)
    return next((row.lifetime_ms for row in policy.hold_by_scheme if row.scheme == scheme and row.kind in (None, kind)), None)


def scheme_of(policy: Policy, card_bin: str) -> str | None:
    """The card scheme whose range the first digits of a card number lie in."""
    return next((scheme for first, last, scheme in policy.schemes if first <= card_bin[: len(first)] <= last), None)


def policy_from_toml(text: str) -> Policy:
    """The policy that the file's text says; SettingsError naming the key for whatever is missing, unknown or out of bounds.

    The id is derived from the text: other numbers are another policy.
    """
    content = text.encode()
    if len(content) > POLICY_BYTES_MAX:
        raise SettingsError(f"policy: has {len(content)} bytes; {POLICY_BYTES_MAX} are allowed")
    try:
        rows = tomllib.loads(text, parse_float=_decimal)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"policy: {error}") from error
    table = _Table({key: row for key, row in rows.items() if key not in UNREAD}, "policy")
    score, risk, hold = table.table("score"), table.table("risk"), table.table("hold")
    schemes = _schemes(table.table("schemes", {}))
    policy = Policy(
        policy_id=f"pol_{hashlib.sha256(content).hexdigest()[:32]}",
        name=table.take("name", str),
        effective_from_ms=_epoch_ms(table.take("effective_from", datetime)),
        review_above=score.per_mille("review_above"),
        block_above=score.per_mille("block_above"),
        medium_above=risk.per_mille("medium_above"),
        high_above=risk.per_mille("high_above"),
        degraded=_degraded(table.table("degraded")),
        rules=tuple(_rule(row) for row in table.rows_of("rules")),
        hold_default_ms=hold.days_ms("default_days"),
        hold_by_kind_ms=_by_kind(hold.table("days_by_kind")),
        hold_by_mcc_ms=_by_mcc(hold.table("days_by_mcc")),
        hold_by_scheme=tuple(_scheme_row(row, schemes) for row in hold.rows_of("days_by_scheme", [])),
        schemes=schemes,
        tolerance_by_mcc=_tolerances(hold.table("tolerance_percent_by_mcc", {})),
        sar=_sar(table.table("sar")),
        partial=_partial(table.table("partial_approval", {"kinds": []})),
        credits_refused=_refusing(table.table("credits", {"refused_by_status": []})),
    )
    for part in (score, risk, hold, table):
        part.done()
    if not (policy.review_above <= policy.block_above and policy.medium_above <= policy.high_above):
        raise SettingsError("policy.score: review_above must not exceed block_above, nor risk.medium_above risk.high_above")
    return policy


def enterable(policy: Policy, members: Collection[str], memories: Collection[str]) -> None:
    """SettingsError naming the key of what no policy may be entered with, where there are these members and kinds of memory.

    One that was signed with it before stays what it is.
    """
    for missing in policy.degraded:
        kind, _, of = missing.partition(":")
        if kind == "member_missing" and of and of not in members:
            raise SettingsError(f"policy.degraded.{missing}: no registered model has such a member; there are {', '.join(sorted(members))}")
        if kind == "memory_missing" and of and of not in memories:
            raise SettingsError(f"policy.degraded.{missing}: nothing has such a memory; there are {', '.join(sorted(memories))}")
    if policy.sar.structuring_part_usd_min > policy.sar.ctr_usd:
        least = policy.sar.structuring_part_usd_min
        raise SettingsError(f"policy.sar.structuring_part_usd_min: {least} exceeds ctr_usd: no deposit would be part of a pattern")


def _decimal(text: str) -> Decimal:
    """The number; NaN, which its key's bounds refuse, where the exponent is more than a decimal has."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("nan")


class _Table:
    """A TOML table that is taken apart key by key, and says what was not taken."""

    def __init__(self, rows: dict[str, Any], path: str) -> None:
        self._rows, self._path, self._taken = rows, path, set[str]()

    def take(self, key: str, kind: Any, default: Any = None) -> Any:
        """The key's value, of this type."""
        self._taken.add(key)
        value = self._rows.get(key, default)
        if value is None:
            raise SettingsError(f"{self._path}.{key}: is missing")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise SettingsError(f"{self._path}.{key}: {value!r} is of the wrong type")
        return value

    def number(self, key: str, low: float = -FLOAT_MAX, high: float = FLOAT_MAX) -> Decimal:
        """The key's value as a decimal within bounds: at most what a float holds, so that no sum of money and no comparison is beyond all numbers."""
        value = Decimal(self.take(key, int | Decimal))
        if not value.is_finite() or not Decimal(str(low)) <= value <= Decimal(str(high)):  # the float 0.001 is more than 0.001
            raise SettingsError(f"{self._path}.{key}: {value} is not between {low} and {high}")
        return value

    def whole(self, key: str, low: int, high: int) -> int:
        """A whole number within bounds; what is behind the point would be silently lost."""
        value = self.number(key, low, high)
        if value != int(value):
            raise SettingsError(f"{self._path}.{key}: {value} is no whole number")
        return int(value)

    def per_mille(self, key: str) -> int:
        """A threshold from 0 to 1, as the score counts it; more than three decimals would be silently lost."""
        value = self.number(key, 0, 1) * 1000
        if value != int(value):
            raise SettingsError(f"{self._path}.{key}: has more than three decimals")
        return int(value)

    def days_ms(self, key: str) -> int:
        """A number of days, in milliseconds."""
        return int(self.number(key, 0.001, 366) * DAY_MS)

    def hours_ms(self, key: str) -> int:
        """A number of hours, in milliseconds."""
        return int(self.number(key, 0.001, 8784) * 3_600_000)

    def word(self, key: str, words: Any, default: Any = None) -> Any:
        """One of a closed list of words."""
        value = self.take(key, str, default)
        if value not in list(words):
            raise SettingsError(f"{self._path}.{key}: {value!r} is none of {', '.join(words)}")
        return words(value)

    def text(self, key: str, length_max: int) -> str:
        """A text of at least one character and at most so many."""
        value: str = self.take(key, str)
        if not 1 <= len(value) <= length_max:
            raise SettingsError(f"{self._path}.{key}: has {len(value)} characters, not 1 to {length_max}")
        return value

    def table(self, key: str, default: Any = None) -> _Table:
        """The table under this key."""
        return _Table(self.take(key, dict, default), f"{self._path}.{key}")

    def rows_of(self, key: str, default: Any = None) -> list[_Table]:
        """The rows under this key, counted from 1."""
        rows = self.take(key, list, default)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise SettingsError(f"{self._path}.{key}[{number}]: is not a table")
        return [_Table(row, f"{self._path}.{key}[{number}]") for number, row in enumerate(rows, 1)]

    def given(self) -> list[str]:
        """Every key that the file gives here."""
        return list(self._rows)

    def wrong(self, key: str, reason: str) -> SettingsError:
        """The error that names the key."""
        return SettingsError(f"{self._path}.{key}: {reason}")

    def done(self) -> None:
        """SettingsError for a key that nobody took: a misspelt threshold must not be a silent default."""
        unknown = sorted(self._rows.keys() - self._taken)
        if unknown:
            raise SettingsError(f"{self._path}.{unknown[0]}: unknown key")


def _epoch_ms(at: datetime) -> int:
    if at.tzinfo is None:
        raise SettingsError("policy.effective_from: needs a UTC offset, for example 2026-01-01T00:00:00Z")
    try:
        return int((at.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)
    except OverflowError:
        raise SettingsError(f"policy.effective_from: {at.isoformat()} is in no year from 1 to 9999 (UTC)") from None


_OF_SOME = ("member_missing", "memory_missing")
"""What may be missing of the degradations that say of which member or memory."""


def _degraded(table: _Table) -> dict[str, Outcome]:
    table.word("otherwise", Outcome)
    for missing in table.given():
        kind, _, of = missing.partition(":")
        if kind not in (*_OF_SOME, "score_missing", "otherwise") or (of and kind not in _OF_SOME):
            raise table.wrong(missing, f"unknown key: takes {', '.join(_OF_SOME)}, alone or with a colon and of what, score_missing, otherwise")
    return {missing: table.word(missing, Outcome) for missing in table.given()}


def _condition(row: _Table) -> Condition:
    return Condition(row.take("feature", str), row.word("comparison", Comparison), float(row.number("value")))


def _rule(row: _Table) -> Rule:
    more = row.rows_of("and", [])
    action = row.word("action", Action) if "action" in row.given() else None
    rule = Rule((_condition(row), *(_condition(m) for m in more)), row.word("outcome", Outcome), row.text("reason", CODE_MAX), action)
    for part in (row, *more):
        part.done()
    if rule.outcome not in (Outcome.REVIEW, Outcome.BLOCK):
        raise row.wrong("outcome", f"a rule reviews or blocks; {rule.outcome} is not its to say")
    return rule


def _by_kind(table: _Table) -> dict[TransactionKind, int]:
    for kind in table.given():
        if kind not in list(TransactionKind):
            raise table.wrong(kind, "no such kind of transaction")
    return {TransactionKind(kind): table.days_ms(kind) for kind in table.given()}


def _by_mcc(table: _Table) -> tuple[tuple[int, int, int], ...]:
    return tuple((*_range(table, codes), table.days_ms(codes)) for codes in table.given())


def _tolerances(table: _Table) -> tuple[tuple[int, int, int], ...]:
    return tuple((*_range(table, codes), table.whole(codes, 0, 100)) for codes in table.given())


def _partial(table: _Table) -> PartialRows:
    kinds = table.take("kinds", list)
    for kind in kinds:
        if kind not in list(TransactionKind) or kind in CREDITS:
            raise table.wrong("kinds", f"{kind!r} is no kind of transaction that takes money")
    never = [_range(table, codes, "never_mcc") for codes in table.take("never_mcc", list, [])]
    rows = PartialRows(frozenset(TransactionKind(kind) for kind in kinds), tuple(never))
    table.done()
    return rows


def _refusing(table: _Table) -> frozenset[AccountStatus]:
    statuses = table.take("refused_by_status", list)
    for status in statuses:
        if status not in list(AccountStatus) or status == AccountStatus.OPEN:
            raise table.wrong("refused_by_status", f"{status!r} is none of frozen, dormant, closed")
    table.done()
    return frozenset(AccountStatus(status) for status in statuses)


def _range(table: _Table, codes: str, key: str = "") -> tuple[int, int]:
    first, _, last = str(codes).partition("-")
    last = last or first
    if not all(len(c) == 4 and c.isdecimal() for c in (first, last)) or first > last:
        raise table.wrong(key or codes, "is neither a merchant category code nor a range of them, like 3351-3441")
    return int(first), int(last)


def _scheme_row(row: _Table, schemes: Sequence[tuple[str, str, str]]) -> SchemeRow:
    kind = row.word("kind", TransactionKind) if "kind" in row.given() else None
    made = SchemeRow(row.take("scheme", str), kind, row.days_ms("days"))
    row.done()
    if made.scheme not in [scheme for *_, scheme in schemes]:
        raise row.wrong("scheme", f"{made.scheme!r} has no range of first digits in [schemes]")
    return made


def _schemes(table: _Table) -> tuple[tuple[str, str, str], ...]:
    ranges = []
    for scheme in table.given():
        for digits in table.take(scheme, list):
            first, _, last = str(digits).partition("-")
            last = last or first
            if not (str(digits).isascii() and first.isdecimal() and last.isdecimal() and len(last) == len(first) <= 6 and first <= last):
                raise table.wrong(scheme, f"{digits!r} is no range of first digits, like 51-55")
            ranges.append((first, last, scheme))
    return tuple(ranges)


def _sar(table: _Table) -> SarThresholds:
    rates = table.table("usd_per_unit")
    for currency in rates.given():
        if currency not in EXPONENTS:
            raise rates.wrong(currency, "unknown ISO 4217 currency")
    thresholds = SarThresholds(
        sar_usd=table.number("sar_usd", 0),
        ctr_usd=table.number("ctr_usd", 0),
        structuring_window_ms=table.days_ms("structuring_window_days"),
        structuring_count_min=table.whole("structuring_count_min", 2, 100),
        structuring_part_usd_min=table.number("structuring_part_usd_min", 0),
        rapid_window_ms=table.hours_ms("rapid_window_hours"),
        rapid_share_min=float(table.number("rapid_share_min", 0, 1)),
        blocked_window_ms=table.hours_ms("blocked_window_hours"),
        usd_per_unit={currency: rates.number(currency, 1e-9) for currency in rates.given()},
    )
    table.done()
    return thresholds
