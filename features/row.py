"""What a feature is: a frozen value (entity, measure, aggregate, window, filter), and the words in which one is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from features.fact import DECLINED, FACT_NUMBER, KIND_CODES, MEASURE_NUMBER, PROFILES, Entity
from schemas.transaction import AT_A_PLACE, CREDITS, TransactionKind

SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000


@dataclass(frozen=True)
class Window:
    """The last `ms` milliseconds before a transaction: half-open in event time, (T - ms, T]."""

    ms: int
    name: str


def minutes(n: int) -> Window:
    """The last n minutes."""
    return Window(n * MINUTE_MS, f"{n}m")


def hours(n: int) -> Window:
    """The last n hours."""
    return Window(n * HOUR_MS, f"{n}h")


def days(n: int) -> Window:
    """The last n days of 24 hours."""
    return Window(n * DAY_MS, f"{n}d")


EVER = days(90)
"""How far back 'never before', 'first seen' and 'last' look: a log is no longer than this."""


@dataclass(frozen=True)
class Condition:
    """What a row must be, to count. `kinds`: its kind is in the mask `value`; `below`: column < value; `same`: column as the
    transaction's own; `near`: at most `value` ms from the transaction's own time of day, cyclic; `given`: column is given."""

    op: Literal["kinds", "below", "same", "near", "given"]
    column: str
    value: int = 0


def _kinds(*codes: int) -> Condition:
    return Condition("kinds", "kind", sum(1 << code for code in codes))


_REMOTE = (TransactionKind.ECOMMERCE, TransactionKind.MOTO, TransactionKind.RECURRING)

SPENT = _kinds(*(code for kind, code in KIND_CODES.items() if kind not in CREDITS))
"""Attempts to move money out, whether they were approved or not."""
RECEIVED = _kinds(*(code for kind, code in KIND_CODES.items() if kind in CREDITS))
DECLINES = _kinds(DECLINED)
"""The declines and blocks that were decided on those attempts."""
ANY_PAYMENT = _kinds(*KIND_CODES.values())
PRESENT = _kinds(*(code for kind, code in KIND_CODES.items() if kind in AT_A_PLACE))
REMOTE = _kinds(*(KIND_CODES[kind] for kind in _REMOTE))
SMALL = Condition("below", "amount_minor", 500)
"""Less than five major units in most currencies: what card testers try."""


def same(column: str) -> Condition:
    """Rows whose column is the transaction's own; without an own value the feature is missing."""
    return Condition("same", column)


def near_own_hour(width: int) -> Condition:
    """Rows at most `width` hours from the transaction's own time of day, around the clock."""
    return Condition("near", "at_ms", width * HOUR_MS)


@dataclass(frozen=True)
class Own:
    """A fact or measure of the transaction itself."""

    name: str


@dataclass(frozen=True)
class Known:
    """A column of an entity's profile, as known at the time of the transaction."""

    entity: Entity
    column: str


@dataclass(frozen=True)
class Constant:
    """A number."""

    value: float


@dataclass(frozen=True)
class Capped:
    """1 if the log of the entity has lost a row that its longest window would have seen, else 0."""

    entity: Entity


@dataclass(frozen=True)
class Fold:
    """One aggregate over the rows of an entity's log, in a window, that meet all conditions.

    `count`; `sum`, `mean`, `max`, `spread` (population standard deviation) and `distinct` of a column; `last`: the column in
    the latest row (in event time, then in arrival order); `first`: the smallest. No rows: 0 for count, sum and distinct, else missing.
    """

    entity: Entity
    op: Literal["count", "sum", "mean", "max", "spread", "distinct", "last", "first"]
    column: str
    window: Window
    where: tuple[Condition, ...]


@dataclass(frozen=True)
class Calc:
    """A number made of numbers; missing if one of them is. `over`: a / b, missing if b is 0."""

    op: Literal["minus", "over", "times", "larger", "differs", "is_zero", "is_missing", "log1p", "kind_in", "kilometres"]
    args: tuple[Expression, ...]


Expression = Own | Known | Constant | Capped | Fold | Calc


@dataclass(frozen=True)
class Shape:
    """An expression and the name that follows from it: `entity_measure_window`."""

    name: str
    expression: Expression


@dataclass(frozen=True)
class Feature:
    """A row of the catalogue: what is computed, why an analyst should care, which fraud it catches, and the reason it gives."""

    family: Literal["velocity", "geographic", "device", "behavioural", "network", "memory"]
    shape: Shape
    reason: str
    catches: str
    why: str
    suspicious: Literal["high", "low"] = "high"

    @property
    def name(self) -> str:
        """`family.entity_measure_window`."""
        return f"{self.family}.{self.shape.name}"


_PLURALS = {"merchant_id": "merchants", "terminal_id": "terminals", "country": "countries", "counterparty": "counterparties"}
_NOUNS = {"merchant_id": "merchant", "terminal_id": "terminal", "amount_minor": "amount"}


def _name(of: Entity, measure: str, window: Window) -> str:
    return f"{of.name}_{measure}_{window.name}"


def _noun(column: str) -> str:
    return _NOUNS.get(column, column)


def count(*, of: Entity, window: Window, where: tuple[Condition, ...] = (SPENT,), called: str = "count") -> Shape:
    """How many rows."""
    return Shape(_name(of, called, window), Fold(of, "count", "at_ms", window, where))


def declines(*, of: Entity, window: Window) -> Shape:
    """How many transactions were declined or blocked."""
    return count(of=of, window=window, where=(DECLINES,), called="declines")


def total(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = (SPENT,), called: str = "") -> Shape:
    """The sum of a column, exact."""
    return Shape(_name(of, called or _noun(column), window), Fold(of, "sum", column, window, where))


def mean(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = (SPENT,)) -> Shape:
    """The mean of a column."""
    return Shape(_name(of, f"{_noun(column)}_mean", window), Fold(of, "mean", column, window, where))


def spread(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = (SPENT,)) -> Shape:
    """The population standard deviation of a column; values above 2^40 count as 2^40."""
    return Shape(_name(of, f"{_noun(column)}_spread", window), Fold(of, "spread", column, window, where))


def maximum(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = (SPENT,)) -> Shape:
    """The largest value of a column."""
    return Shape(_name(of, f"{_noun(column)}_max", window), Fold(of, "max", column, window, where))


def distinct(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = (SPENT,)) -> Shape:
    """How many different values a column took (not given does not count)."""
    return Shape(_name(of, _PLURALS.get(column, f"{column}s"), window), Fold(of, "distinct", column, window, where))


def novel(column: str, *, of: Entity, window: Window = EVER, where: tuple[Condition, ...] = (ANY_PAYMENT,)) -> Shape:
    """1 if no row has the transaction's own value of the column, else 0."""
    seen = Fold(of, "count", "at_ms", window, (*where, same(column)))
    return Shape(_name(of, f"{_noun(column)}_new", window), Calc("is_zero", (seen,)))


def share(part: tuple[Condition, ...], *, of: Entity, window: Window, called: str, whole: tuple[Condition, ...] = (SPENT,)) -> Shape:
    """The share of the rows of `whole` that also meet `part`; missing without rows."""
    parts = Fold(of, "count", "at_ms", window, (*whole, *part))
    return Shape(_name(of, f"{called}_share", window), Calc("over", (parts, Fold(of, "count", "at_ms", window, whole))))


def decline_ratio(*, of: Entity, window: Window) -> Shape:
    """Declines over attempts; missing without attempts."""
    parts = Fold(of, "count", "at_ms", window, (DECLINES,))
    return Shape(_name(of, "decline_ratio", window), Calc("over", (parts, Fold(of, "count", "at_ms", window, (SPENT,)))))


def _seconds_since(at_ms: Expression) -> Calc:
    return Calc("over", (Calc("minus", (Own("at_ms"), at_ms)), Constant(1000.0)))


def since_last(*, of: Entity, window: Window = EVER, where: tuple[Condition, ...] = (SPENT,)) -> Shape:
    """Seconds since the latest row."""
    return Shape(f"{of.name}_since_last_s", _seconds_since(Fold(of, "last", "at_ms", window, where)))


def age(*, of: Entity, window: Window = EVER, where: tuple[Condition, ...] = (ANY_PAYMENT,)) -> Shape:
    """Seconds since the entity was first seen, at most the window; missing if it never was."""
    return Shape(f"{of.name}_age_s", _seconds_since(Fold(of, "first", "at_ms", window, where)))


def _placed(of: Entity) -> tuple[Condition, ...]:
    return (PRESENT, Condition("given", "latitude"))


def _kilometres(of: Entity, window: Window) -> Calc:
    last_latitude = Fold(of, "last", "latitude", window, _placed(of))
    last_longitude = Fold(of, "last", "longitude", window, _placed(of))
    return Calc("kilometres", (Own("latitude"), Own("longitude"), last_latitude, last_longitude))


def distance_km(*, of: Entity, window: Window = EVER) -> Shape:
    """Kilometres from the place of the latest card-present row (great circle, mean Earth radius 6371.0088 km)."""
    return Shape(f"{of.name}_distance_km", _kilometres(of, window))


def speed_kmh(*, of: Entity, window: Window = EVER) -> Shape:
    """The speed that this distance takes, km/h; a time below a second counts as one second."""
    past_s = _seconds_since(Fold(of, "last", "at_ms", window, _placed(of)))
    hours_past = Calc("over", (Calc("larger", (past_s, Constant(1.0))), Constant(3600.0)))
    return Shape(f"{of.name}_speed_kmh", Calc("over", (_kilometres(of, window), hours_past)))


def ratio_to_mean(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = (SPENT,)) -> Shape:
    """The transaction's own value over the entity's mean."""
    usual = mean(column, of=of, window=window, where=where).expression
    return Shape(_name(of, f"{_noun(column)}_over_mean", window), Calc("over", (Own(column), usual)))


def zscore(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = (SPENT,)) -> Shape:
    """How many spreads the own value lies above the entity's mean; a spread below a tenth of the mean counts as that tenth."""
    usual = mean(column, of=of, window=window, where=where).expression
    wide = spread(column, of=of, window=window, where=where).expression
    least = Calc("times", (usual, Constant(0.1)))
    return Shape(
        _name(of, f"{_noun(column)}_zscore", window),
        Calc("over", (Calc("minus", (Own(column), usual)), Calc("larger", (wide, least)))),
    )


def own(name: str) -> Shape:
    """A fact or measure of the transaction itself."""
    return Shape(f"txn_{name}", Own(name))


def own_log(name: str) -> Shape:
    """ln(1 + value) of the transaction's own fact."""
    return Shape(f"txn_{_noun(name)}_log", Calc("log1p", (Own(name),)))


def own_missing(name: str, called: str = "") -> Shape:
    """1 if the transaction came without it, else 0."""
    return Shape(f"txn_{called or _noun(name)}_missing", Calc("is_missing", (Own(name),)))


def own_kind(kinds: Condition, called: str) -> Shape:
    """1 if the transaction's kind is one of these, else 0."""
    return Shape(f"txn_{called}", Calc("kind_in", (Own("kind"), Constant(float(kinds.value)))))


def own_differs(column: str, other: str, called: str) -> Shape:
    """1 if two of the transaction's own facts differ, 0 if they agree; missing if one is."""
    return Shape(f"txn_{called}", Calc("differs", (Own(column), Own(other))))


def differs_from_known(column: str, of: Entity, known: str, called: str) -> Shape:
    """1 if the transaction's own fact differs from what is known of the entity, 0 if it agrees; missing if one is."""
    return Shape(f"{of.name}_{called}", Calc("differs", (Own(column), Known(of, known))))


def known_age(of: Entity, known: str, called: str) -> Shape:
    """Seconds since a time that is known of the entity."""
    return Shape(f"{of.name}_{called}_s", _seconds_since(Known(of, known)))


def over_known(column: str, of: Entity, known: str, called: str) -> Shape:
    """The transaction's own value over what is known of the entity."""
    return Shape(f"{of.name}_{called}", Calc("over", (Own(column), Known(of, known))))


def known(of: Entity, column: str) -> Shape:
    """What is known of an entity, as it is."""
    return Shape(f"{of.name}_{column}", Known(of, column))


def log_capped(*, of: Entity) -> Shape:
    """1 if the entity's log has lost a row that its longest window would have seen, else 0."""
    return Shape(f"{of.name}_log_capped", Capped(of))


def parts(expression: Expression) -> Iterator[Expression]:
    """The expression and everything in it, operands first."""
    if isinstance(expression, Calc):
        for arg in expression.args:
            yield from parts(arg)
    yield expression


def checked(feature: Feature) -> Feature:
    """The feature, if every fact, measure and profile column that it names exists; else AssertionError."""
    for part in parts(feature.shape.expression):
        if isinstance(part, Own):
            assert part.name in FACT_NUMBER or part.name in MEASURE_NUMBER, f"{feature.name}: unknown fact {part.name}"
        if isinstance(part, Known):
            assert part.column in PROFILES.get(part.entity.name, ()), f"{feature.name}: unknown profile column {part.column}"
        if isinstance(part, Fold):
            assert all(c in FACT_NUMBER for c in (part.column, *(w.column for w in part.where))), f"{feature.name}: unknown column"
    return feature
