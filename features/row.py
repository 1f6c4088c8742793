"""What a feature is: a frozen value (entity, measure, aggregate, window, filter), and the words in which one is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

from features.fact import DECLINED, EVENT_CODES, FACT_NUMBER, FRAUD, KIND_CODES, MEASURE_NUMBER, PROFILES, Entity
from schemas.account import AccountEventKind
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
    transaction's own; `near`: at most `value` ms from the transaction's own time of day, cyclic; `given`: column is given (an
    amount: is more than nothing); `below_own`: column < the transaction's own; `just_under`: at most a tenth below a power of ten that is at
    least `value`; `weekday`: a time of the transaction's own day of the week, UTC; `older`: a time `value` ms before the transaction's or earlier.
    """

    op: Literal["kinds", "below", "same", "near", "given", "below_own", "just_under", "weekday", "older"]
    column: str
    value: int = 0


def _kinds(*codes: int) -> Condition:
    return Condition("kinds", "kind", sum(1 << code for code in codes))


_CHANGES = (
    AccountEventKind.CREDENTIAL_CHANGED,
    AccountEventKind.EMAIL_CHANGED,
    AccountEventKind.PHONE_CHANGED,
    AccountEventKind.ADDRESS_CHANGED,
)
_REMOTE = (TransactionKind.ECOMMERCE, TransactionKind.MOTO, TransactionKind.RECURRING)

SPENT = _kinds(*(code for kind, code in KIND_CODES.items() if kind not in CREDITS))
"""Attempts to move money out, whether they were approved or not."""
RECEIVED = _kinds(*(code for kind, code in KIND_CODES.items() if kind in CREDITS))
DECLINES = _kinds(DECLINED)
"""The declines and blocks that were decided on those attempts."""
FRAUDS = _kinds(FRAUD)
"""What is known by now to have been fraud: chargebacks and analysts' verdicts, from the moment at which they were learned."""
ANY_PAYMENT = _kinds(*KIND_CODES.values())
PRESENT = _kinds(*(code for kind, code in KIND_CODES.items() if kind in AT_A_PLACE))
REMOTE = _kinds(*(KIND_CODES[kind] for kind in _REMOTE))
LOGINS, LOGIN_FAILURES = _kinds(EVENT_CODES[AccountEventKind.LOGIN]), _kinds(EVENT_CODES[AccountEventKind.LOGIN_FAILED])
BENEFICIARIES = _kinds(EVENT_CODES[AccountEventKind.BENEFICIARY_ADDED])
CHANGES = _kinds(*(EVENT_CODES[kind] for kind in _CHANGES))
"""What a thief changes before the money goes: credentials and the ways in which the holder would be told."""
SMALL = Condition("below", "amount_minor", 500)
"""Less than five major units in most currencies: what card testers try."""


def same(column: str) -> Condition:
    """Rows whose column is the transaction's own; without an own value the feature is missing."""
    return Condition("same", column)


def below_own(column: str) -> Condition:
    """Rows whose column is less than the transaction's own."""
    return Condition("below_own", column)


def given(column: str) -> Condition:
    """Rows that have the column."""
    return Condition("given", column)


AMOUNTS = (SPENT, given("amount_minor"))
"""What usual amounts are made of: attempts to move money out. A card that is stored or verified asks for nothing, and lowers no mean."""


def just_under(least_minor: int) -> Condition:
    """Amounts at most a tenth below a round threshold: `least_minor`, which is a power of ten, or 10, 100 ... times as much.

    A power of ten of a currency is one of its minor units too, so that this needs no table of currencies.
    """
    assert str(least_minor).strip("0") == "1", "a round threshold is a power of ten"
    return Condition("just_under", "amount_minor", least_minor)


SAME_WEEKDAY = Condition("weekday", "at_ms")


def older(window: Window) -> Condition:
    """Rows from before the window."""
    return Condition("older", "at_ms", window.ms)


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
    the latest row (in event time, then in arrival order); `first`: the smallest; `eastward`: the mean of how far east of the
    transaction's own longitude a longitude lies, the short way around (-180 to less than 180 degrees, in steps), so that the
    antimeridian is no edge. No rows: 0 for count, sum and distinct, else missing.
    """

    entity: Entity
    op: Literal["count", "sum", "mean", "max", "spread", "distinct", "last", "first", "eastward"]
    column: str
    window: Window
    where: tuple[Condition, ...]
    delay: Window | None = None
    """How long after it happened a transaction matures: the window ends that much before now, and a label that was learned later
    counts from then on. None: at once. In a log, labels are known to a backfill alone."""

    @property
    def reach_ms(self) -> int:
        """How far back the oldest row is that it may see, milliseconds."""
        return self.window.ms + (self.delay.ms if self.delay else 0)


def sum_over_count(mean: Fold) -> Calc:
    """A mean as the two folds that a tally can tell."""
    return Calc("over", (replace(mean, op="sum"), replace(mean, op="count", column="at_ms")))


@dataclass(frozen=True)
class Meeting:
    """How many different values, of those that `one` would count as distinct, `other` would too. `other`'s entity comes first in ENTITIES."""

    one: Fold
    other: Fold


@dataclass(frozen=True)
class Calc:
    """A number made of numbers; missing if one of them is. `over`: a / b, missing if b is 0; `above`: 1 if a > b, else 0;
    `parts_differ`: how many bytes of two fingerprints differ where both have one."""

    op: Literal[
        "minus", "over", "times", "larger", "differs", "is_zero", "is_missing", "log1p", "kind_in", "kilometres", "plus", "above", "parts_differ"
    ]
    args: tuple[Expression, ...]


Expression = Own | Known | Constant | Capped | Fold | Meeting | Calc


@dataclass(frozen=True)
class Shape:
    """An expression and the name that follows from it: `entity_measure_window`."""

    name: str
    expression: Expression


@dataclass(frozen=True)
class Feature:
    """A row of the catalogue: what is computed, why an analyst should care, which fraud it catches, and the reason it gives."""

    family: Literal["velocity", "geographic", "device", "behavioural", "takeover", "identity", "network", "merchant", "memory"]
    shape: Shape
    reason: str
    catches: str
    why: str
    suspicious: Literal["high", "low"] = "high"

    @property
    def name(self) -> str:
        """`family.entity_measure_window`."""
        return f"{self.family}.{self.shape.name}"


_PLURALS = {"merchant_id": "merchants", "terminal_id": "terminals", "country": "countries"}
_NOUNS = {"merchant_id": "merchant", "terminal_id": "terminal", "amount_minor": "amount"}


def _joined(*parts: str) -> str:
    return "_".join(part for part in parts if part)


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


def mean(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = AMOUNTS) -> Shape:
    """The mean of a column."""
    return Shape(_name(of, f"{_noun(column)}_mean", window), Fold(of, "mean", column, window, where))


def spread(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = AMOUNTS) -> Shape:
    """The population standard deviation of a column; values above 2^40 count as 2^40."""
    return Shape(_name(of, f"{_noun(column)}_spread", window), Fold(of, "spread", column, window, where))


def maximum(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = (SPENT,)) -> Shape:
    """The largest value of a column."""
    return Shape(_name(of, f"{_noun(column)}_max", window), Fold(of, "max", column, window, where))


def distinct(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = (SPENT,), called: str = "") -> Shape:
    """How many different values a column took (not given does not count)."""
    return Shape(_name(of, called or _PLURALS.get(column, f"{column}s"), window), Fold(of, "distinct", column, window, where))


def _first_within(column: str, of: Entity, window: Window, where: tuple[Condition, ...]) -> Calc:
    """How many values a column took in the window for the first time in 90 days."""
    ever = Fold(of, "distinct", column, EVER, where)
    return Calc("minus", (ever, Fold(of, "distinct", column, EVER, (*where, older(window)))))


def newcomers(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...], called: str) -> Shape:
    """How many values a column took in the window for the first time in 90 days."""
    return Shape(_name(of, called, window), _first_within(column, of, window, where))


def count_if_newcomer(
    column: str, *, of: Entity, window: Window, where: tuple[Condition, ...], newcomer: tuple[Condition, ...], called: str
) -> Shape:
    """How many rows meet `where`, if after the first of them a row of `newcomer` followed, and in the same window one of those had a value
    for the first time in 90 days; else 0. Which of them that was is not known: it may have come before, and a known one after.
    """
    latest, first = Fold(of, "last", "at_ms", window, newcomer), Fold(of, "first", "at_ms", window, where)
    not_followed = Calc("is_missing", (Calc("over", (Constant(1.0), Calc("above", (latest, first)))),))
    none_new = Calc("is_zero", (_first_within(column, of, window, newcomer),))
    counted = Calc("times", (Fold(of, "count", "at_ms", window, where), Calc("is_zero", (none_new,))))
    return Shape(_name(of, called, window), Calc("times", (counted, Calc("is_zero", (not_followed,)))))


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


def surge(*, of: Entity, window: Window, against: Window) -> Shape:
    """How many times as many rows as the longer window would let expect; missing without rows in that."""
    usual = Calc("times", (Fold(of, "count", "at_ms", against, (SPENT,)), Constant(window.ms / against.ms)))
    return Shape(_name(of, "surge", window), Calc("over", (Fold(of, "count", "at_ms", window, (SPENT,)), usual)))


def fraud_share(*, of: Entity, window: Window, delay: Window) -> Shape:
    """Frauds that became known, over the transactions that matured in the window; missing if none matured.

    A transaction matures a fixed delay after it happened; a label that is learned later than that counts from then on, so that
    frauds learned late can be more than what matured: it may be above 1.
    """
    frauds = Fold(of, "count", "at_ms", window, (FRAUDS,), delay)
    return Shape(_name(of, "fraud_share", window), Calc("over", (frauds, Fold(of, "count", "at_ms", window, (SPENT,), delay))))


def _seconds_since(at_ms: Expression) -> Calc:
    return Calc("over", (Calc("minus", (Own("at_ms"), at_ms)), Constant(1000.0)))


def since_last(*, of: Entity, window: Window = EVER, where: tuple[Condition, ...] = (SPENT,)) -> Shape:
    """Seconds since the latest row."""
    return Shape(f"{of.name}_since_last_s", _seconds_since(Fold(of, "last", "at_ms", window, where)))


def since(*, of: Entity, where: tuple[Condition, ...], called: str, window: Window = EVER) -> Shape:
    """Seconds from the latest row of `where` to this payment; missing if no money leaves with it, or without such a row."""
    seconds = _seconds_since(Fold(of, "last", "at_ms", window, where))
    return Shape(f"{of.name}_{called}_s", Calc("over", (seconds, _IS_SPENDING)))


def idle(*, of: Entity, window: Window = EVER) -> Shape:
    """Seconds since the latest payment of any kind, in or out."""
    return Shape(f"{of.name}_idle_s", _seconds_since(Fold(of, "last", "at_ms", window, (ANY_PAYMENT,))))


def pair_age(column: str, *, of: Entity, window: Window = EVER, where: tuple[Condition, ...] = (ANY_PAYMENT,)) -> Shape:
    """Seconds since the entity first came with the transaction's own value of the column, at most the window; missing if it never did."""
    return Shape(f"{of.name}_{_noun(column)}_age_s", _seconds_since(Fold(of, "first", "at_ms", window, (*where, same(column)))))


def per_day_of_age(*, of: Entity, window: Window = EVER, where: tuple[Condition, ...] = (ANY_PAYMENT,)) -> Shape:
    """Rows for each day since the entity was first seen; an age below a day counts as a day. Missing if it never was."""
    days_seen = Calc("over", (_seconds_since(Fold(of, "first", "at_ms", window, where)), Constant(86_400.0)))
    counted = Fold(of, "count", "at_ms", window, where)
    return Shape(f"{of.name}_per_day_of_age", Calc("over", (counted, Calc("larger", (days_seen, Constant(1.0))))))


def age(*, of: Entity, window: Window = EVER, where: tuple[Condition, ...] = (ANY_PAYMENT,)) -> Shape:
    """Seconds since the entity was first seen, at most the window; missing if it never was."""
    return Shape(f"{of.name}_age_s", _seconds_since(Fold(of, "first", "at_ms", window, where)))


_PLACED = (PRESENT, given("latitude"))
_PLACED_ANYHOW = (ANY_PAYMENT, given("latitude"))
_PLACES = {"": _PLACED, "any": _PLACED_ANYHOW}


def _kilometres(of: Entity, window: Window, where: tuple[Condition, ...]) -> Calc:
    last_latitude = Fold(of, "last", "latitude", window, where)
    last_longitude = Fold(of, "last", "longitude", window, where)
    return Calc("kilometres", (Own("latitude"), Own("longitude"), last_latitude, last_longitude))


def distance_km(*, of: Entity, window: Window = EVER, places: Literal["", "any"] = "") -> Shape:
    """Kilometres from the place of the latest card-present row, or of `any` row with a place.

    Great circle, mean Earth radius 6371.0088 km, between places that are kept to 1.2 km.
    """
    return Shape(_joined(of.name, places, "distance_km"), _kilometres(of, window, _PLACES[places]))


def speed_kmh(*, of: Entity, window: Window = EVER, places: Literal["", "any"] = "") -> Shape:
    """The speed that this distance takes, km/h; a time below a minute counts as a minute, because places are kept to 1.2 km."""
    past_s = _seconds_since(Fold(of, "last", "at_ms", window, _PLACES[places]))
    hours_past = Calc("over", (Calc("larger", (past_s, Constant(60.0))), Constant(3600.0)))
    return Shape(_joined(of.name, places, "speed_kmh"), Calc("over", (_kilometres(of, window, _PLACES[places]), hours_past)))


def centre_km(*, of: Entity, window: Window) -> Shape:
    """Kilometres from the centre of the places in the window: their mean latitude, and the mean of how far east of here they lie.

    The mean is of longitudes relative to this one, the short way around, so that places on both sides of the antimeridian have
    their centre between them. Who is at home on opposite sides of the Earth has none, and this says something between.
    """
    latitude = Fold(of, "mean", "latitude", window, _PLACED_ANYHOW)
    longitude = Calc("plus", (Own("longitude"), Fold(of, "eastward", "longitude", window, _PLACED_ANYHOW)))
    return Shape(_name(of, "centre_km", window), Calc("kilometres", (Own("latitude"), Own("longitude"), latitude, longitude)))


def new_place(*, of: Entity, window: Window = EVER) -> Shape:
    """1 if no row is of the transaction's own place (a cell of 1/91 degree, 1.2 km at most), else 0."""
    seen = Fold(of, "count", "at_ms", window, (ANY_PAYMENT, same("latitude"), same("longitude")))
    return Shape(_name(of, "place_new", window), Calc("is_zero", (seen,)))


def parts_changed(*, of: Entity, window: Window = EVER) -> Shape:
    """How many of the six parts of the fingerprint differ from the latest one (parts that both have). One change in 255 is not seen."""
    latest = Fold(of, "last", "fingerprint", window, (ANY_PAYMENT, given("fingerprint")))
    return Shape(f"{of.name}_parts_changed", Calc("parts_differ", (Own("fingerprint"), latest)))


def moved(column: str, *, of: Entity, window: Window = EVER) -> Shape:
    """1 if the column was another when the entity was last seen with one, else 0."""
    latest = Fold(of, "last", column, window, (ANY_PAYMENT, given(column)))
    return Shape(f"{of.name}_{_noun(column)}_moved", Calc("differs", (Own(column), latest)))


def ratio_to_mean(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = AMOUNTS) -> Shape:
    """The transaction's own value over the entity's mean."""
    usual = mean(column, of=of, window=window, where=where).expression
    return Shape(_name(of, f"{_noun(column)}_over_mean", window), Calc("over", (Own(column), usual)))


def zscore(column: str, *, of: Entity, window: Window, where: tuple[Condition, ...] = AMOUNTS) -> Shape:
    """How many spreads the own value lies above the entity's mean; a spread below a tenth of the mean counts as that tenth."""
    usual = mean(column, of=of, window=window, where=where).expression
    wide = spread(column, of=of, window=window, where=where).expression
    least = Calc("times", (usual, Constant(0.1)))
    return Shape(
        _name(of, f"{_noun(column)}_zscore", window),
        Calc("over", (Calc("minus", (Own(column), usual)), Calc("larger", (wide, least)))),
    )


_IS_SPENDING = Calc("kind_in", (Own("kind"), Constant(float(SPENT.value))))
"""1 if money leaves with this transaction, else 0."""
_OWN_SPENDING = Calc("times", (Own("amount_minor"), _IS_SPENDING))


def _spent_with_this(of: Entity, window: Window) -> Calc:
    """What left in the window and leaves now, minor units."""
    return Calc("plus", (Fold(of, "sum", "amount_minor", window, (SPENT,)), _OWN_SPENDING))


def out_over_in(*, of: Entity, window: Window) -> Shape:
    """What left in the window, this payment included, over what came in; missing if nothing did."""
    inflow = Fold(of, "sum", "amount_minor", window, (RECEIVED,))
    return Shape(_name(of, "out_over_in", window), Calc("over", (_spent_with_this(of, window), inflow)))


def spent_over_known(known: str, *, of: Entity, window: Window, called: str) -> Shape:
    """What left in the window, this payment included, over what is known of the entity."""
    return Shape(_name(of, called, window), Calc("over", (_spent_with_this(of, window), Known(of, known))))


def woken(column: str, *, of: Entity, window: Window = EVER) -> Shape:
    """Days without any payment, times the own value over the entity's mean: large if both are."""
    days_idle = Calc("over", (_seconds_since(Fold(of, "last", "at_ms", window, (ANY_PAYMENT,))), Constant(86_400.0)))
    usual = mean(column, of=of, window=window).expression
    return Shape(_name(of, "woken", window), Calc("times", (days_idle, Calc("over", (Own(column), usual)))))


def dormant(known_opened: str, *, of: Entity, window: Window = EVER) -> Shape:
    """1 if it has been open for longer than the window and nothing moved in it, else 0."""
    quiet = Calc("is_zero", (Fold(of, "count", "at_ms", window, (ANY_PAYMENT,)),))
    old = Calc("above", (_seconds_since(Known(of, known_opened)), Constant(window.ms / 1000.0)))
    return Shape(_name(of, "dormant", window), Calc("times", (quiet, old)))


def count_if_spending(*, of: Entity, window: Window, where: tuple[Condition, ...], called: str) -> Shape:
    """How many rows, if money leaves with this payment; else 0."""
    return Shape(_name(of, called, window), Calc("times", (Fold(of, "count", "at_ms", window, where), _IS_SPENDING)))


def cycle_of_two(*, of: Entity, window: Window) -> Shape:
    """How often the one who is paid now had paid this account; 0 if no money leaves."""
    return count_if_spending(of=of, window=window, where=(RECEIVED, same("counterparty")), called="cycles_of_2")


def cycle_of_three(*, of: Entity, through: Entity, window: Window) -> Shape:
    """How many accounts sent money here and got money from the one who is paid now (in either order); 0 if no money leaves.

    Both sides are distinct 32-bit hashes: of 100 senders and 100 receivers two are taken for one with probability 2e-6.
    """
    senders = Fold(of, "distinct", "counterparty", window, (RECEIVED,))
    receivers = Fold(through, "distinct", "counterparty", window, (SPENT,))
    return Shape(_name(of, "cycles_of_3", window), Calc("times", (Meeting(receivers, senders), _IS_SPENDING)))


def own_yes(name: str) -> Shape:
    """1 if the transaction says yes to it, 0 if no; missing if nobody said."""
    return Shape(f"txn_{name}", Calc("minus", (Own(name), Constant(1.0))))


def own(name: str) -> Shape:
    """A fact or measure of the transaction itself."""
    return Shape(f"txn_{name}", Own(name))


def own_log(name: str) -> Shape:
    """ln(1 + value) of the transaction's own fact."""
    return Shape(f"txn_{_noun(name)}_log", Calc("log1p", (Own(name),)))


def own_missing(*names: str, called: str = "") -> Shape:
    """1 if the transaction came without any of them, else 0."""
    missing = (Calc("is_missing", (Own(name),)) for name in names)
    return Shape(f"txn_{called or _noun(names[0])}_missing", reduce(lambda one, other: Calc("times", (one, other)), missing))


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
    if isinstance(expression, Meeting):
        yield from (expression.one, expression.other)
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
