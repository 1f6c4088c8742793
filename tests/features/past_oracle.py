"""The truth about features: every row of the catalogue computed by brute force over raw history, in plain Python, with no log, hash or plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from features.catalogue import Catalogue
from features.fact import DECLINED, EVENT_CODES, KIND_CODES, country_code, latitude_code, longitude_code
from features.row import Calc, Capped, Condition, Constant, Expression, Fold, Known, Own
from schemas.account import AccountEvent
from schemas.transaction import Transaction

NAN = math.nan
FIELD = {
    "card": "card_token",
    "account": "account_id",
    "device": "device_token",
    "customer": "customer_id",
    "email": "email_token",
    "counterparty": "counterparty_account_id",
    "amount_minor": "own_amount_minor",
}


class Arrival(NamedTuple):
    """Something that reached the memory: a payment, the decline of one, or an account event."""

    what: str
    record: Transaction | AccountEvent

    @property
    def id(self) -> tuple[str, str]:
        return (self.what, self.record.event_id if isinstance(self.record, AccountEvent) else self.record.transaction_id)

    @property
    def code(self) -> int:
        if isinstance(self.record, AccountEvent):
            return EVENT_CODES[self.record.kind]
        return DECLINED if self.what == "decline" else KIND_CODES[self.record.kind]

    def value(self, column: str) -> Any:
        if column == "kind":
            return self.code
        if isinstance(self.record, AccountEvent) and column == "amount_minor":
            return 0
        return getattr(self.record, FIELD.get(column, column), None)


def arrivals_of(catalogue: Catalogue, history: Sequence[Arrival], kind: str, token: str | None) -> list[Arrival]:
    """The unique arrivals at one entity, in order of their first."""
    found: dict[Any, Arrival] = {}
    for arrival in history:
        if isinstance(arrival.record, AccountEvent) and kind != "account":
            continue
        if getattr(arrival.record, FIELD[kind]) == token:
            found.setdefault(arrival.id, arrival)
    return list(found.values())


class Truth:
    """What is true of one transaction, given everything that arrived up to (and with) it or later."""

    def __init__(self, catalogue: Catalogue, history: Sequence[Arrival], txn: Transaction, known: dict[tuple[str, str], float]) -> None:
        self.catalogue, self.txn, self.known = catalogue, txn, known
        self.own = Arrival("pay", txn)
        self.before: dict[str, list[Arrival] | None] = {}
        self.gone: dict[str, int] = {}
        for kind, field in zip(catalogue.logs, catalogue.log_fields, strict=True):
            token = getattr(txn, field)
            if token is None:
                self.before[kind] = None
                continue
            everything = arrivals_of(catalogue, history, kind, token)
            self.before[kind] = everything[: [a.id for a in everything].index(self.own.id)]
            self.gone[kind] = self._gone(self.before[kind] or [])

    def _gone(self, before: list[Arrival]) -> int:
        """How many of them the caps hide."""
        cap = self.catalogue.cap
        gone = 0
        while gone + cap.chunk <= len(before) - cap.rows:
            gone += cap.chunk
        judged = before[: len(before) - len(before) % cap.chunk]
        newest = max((a.record.at_ms for a in judged), default=0)
        while gone < len(judged) and judged[gone].record.at_ms <= newest - self.catalogue.keep_ms:
            gone += 1
        return gone

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(-1 if self.before[kind] is None else len(self.before[kind] or []) for kind in self.catalogue.logs)

    def vector(self) -> list[float]:
        return [self.of(row.shape.expression) for row in self.catalogue.rows]

    def of(self, expression: Expression) -> float:
        match expression:
            case Own(name):
                return self.number(name, self.own)
            case Constant(value):
                return value
            case Known(entity, column):
                return self.known.get((entity.name, column), NAN)
            case Capped(entity):
                return self.capped(entity.name)
            case Fold():
                return self.fold(expression)
            case Calc(op, args):
                return self.calc(op, [self.of(arg) for arg in args])

    def number(self, column: str, of: Arrival) -> float:
        record = of.record
        if column in ("keystroke_dwell_ms", "keystroke_flight_ms", "pointer_speed_px_s", "session_age_s"):
            value = None if self.txn.session is None else getattr(self.txn.session, column)
            return NAN if value is None else value
        value = of.value(column)
        if value is None:
            return NAN
        if column.endswith("country"):
            return float(country_code(value))
        if column in ("latitude", "longitude"):
            return float((latitude_code if column == "latitude" else longitude_code)(getattr(record, column)))
        return 1.0 if isinstance(value, str) else float(value)

    def capped(self, kind: str) -> float:
        before = self.before[kind]
        if before is None:
            return NAN
        newest = max((a.record.at_ms for a in before[: self.gone[kind]]), default=-1)
        return 1.0 if self.gone[kind] and newest > self.txn.at_ms - self.catalogue.longest_ms else 0.0

    def meets(self, condition: Condition, arrival: Arrival) -> bool:
        value = arrival.value(condition.column)
        match condition.op:
            case "kinds":
                return bool(condition.value >> arrival.code & 1)
            case "below":
                return bool(value < condition.value)
            case "same":
                return bool(value == self.own.value(condition.column))
            case "near":
                apart = abs(value - self.txn.at_ms) % 86_400_000
                return min(apart, 86_400_000 - apart) <= condition.value
            case "given":
                return value is not None

    def fold(self, fold: Fold) -> float:
        before = self.before[fold.entity.name]
        if before is None or any(c.op == "same" and self.own.value(c.column) is None for c in fold.where):
            return NAN
        begin, end = self.txn.at_ms - fold.window.ms, self.txn.at_ms
        seen = [a for a in before[self.gone[fold.entity.name] :] if begin < a.record.at_ms <= end]
        seen = [a for a in seen if all(self.meets(c, a) for c in fold.where)]
        return self.aggregate(fold.op, fold.column, seen)

    def aggregate(self, op: str, column: str, seen: list[Arrival]) -> float:
        values = [a.value(column) for a in seen]
        if op == "count":
            return float(len(seen))
        if op == "sum":
            return float(sum(values))
        if op == "distinct":
            return float(len(set(values) - {None}))
        if not seen:
            return NAN
        if op == "mean":
            return float(sum(values)) / len(values)
        if op == "max":
            return float(max(values))
        if op == "first":
            return float(min(values))
        if op == "last":
            newest = max(a.record.at_ms for a in seen)
            return self.number(column, [a for a in seen if a.record.at_ms == newest][-1])
        assert op == "spread"
        return spread(values)

    def calc(self, op: str, args: list[float]) -> float:
        if op == "is_missing":
            return float(math.isnan(args[0]))
        if any(math.isnan(arg) for arg in args):
            return NAN
        a, b = args[0], args[-1]
        match op:
            case "minus":
                return a - b
            case "over":
                return a / b if b else NAN
            case "times":
                return a * b
            case "larger":
                return max(a, b)
            case "differs":
                return float(a != b)
            case "is_zero":
                return float(a == 0)
            case "log1p":
                return math.log1p(a)
            case "kind_in":
                return float(int(b) >> int(a) & 1)
        assert op == "kilometres"
        return kilometres(*args)


def spread(values: list[int]) -> float:
    """Population standard deviation of whole numbers, with the roundings that the definition states."""
    values = [min(value, 2**40 - 1) for value in values]
    n, high, low = len(values), [v // 2**20 for v in values], [v % 2**20 for v in values]
    squares = float(n * sum(a * a for a in high) - sum(high) ** 2) * 2.0**40
    squares += float(n * sum(a * b for a, b in zip(high, low, strict=True)) - sum(high) * sum(low)) * 2.0**21
    squares += float(n * sum(b * b for b in low) - sum(low) ** 2)
    return math.sqrt(max(squares, 0.0)) / n


def kilometres(latitude: float, longitude: float, latitude2: float, longitude2: float) -> float:
    """Haversine over stored places."""
    step = math.pi / 180.0 / 32768.0
    north, north2 = (latitude - 1.0) * step - math.pi / 2.0, (latitude2 - 1.0) * step - math.pi / 2.0
    up, over = math.sin((north2 - north) / 2.0), math.sin((longitude2 - longitude) * step / 2.0)
    return 2.0 * 6371.0088 * math.asin(min(1.0, math.sqrt(up * up + math.cos(north) * math.cos(north2) * over * over)))
