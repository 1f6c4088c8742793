"""The truth about features: every row of the catalogue computed by brute force over raw history, in plain Python, with no log, hash or plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from facts_oracle import latitude_code, longitude_code

from features.catalogue import Catalogue
from features.fact import DECLINED, ENTITIES, EVENT_CODES, KIND_CODES, PARTS, country_code, part_hash
from features.row import Calc, Capped, Condition, Constant, Expression, Fold, Known, Meeting, Own
from schemas.account import AccountEvent
from schemas.transaction import Transaction

NAN = math.nan
FIELD = {
    "card": "card_token",
    "account": "account_id",
    "device": "device_token",
    "customer": "customer_id",
    "email": "email_token",
    "phone": "phone_token",
    "address": "address_token",
    "counterparty": "counterparty_account_id",
    "amount_minor": "own_amount_minor",
    "proxy": "ip_proxy",
}
SESSION = {"dwell": ("keystroke_dwell_ms", 10), "flight": ("keystroke_flight_ms", 10), "pointer": ("pointer_speed_px_s", 1)}
OWNER = {entity.name: entity.log_of or entity.name for entity in ENTITIES}


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
        if isinstance(self.record, AccountEvent):
            return 0 if column == "amount_minor" else getattr(self.record, FIELD.get(column, column), None)
        if column == "amount_minor":
            return min(self.record.own_amount_minor, 2**40 - 1)
        if column == "emulator":
            return None if self.record.fingerprint is None else self.record.fingerprint.emulator
        if column == "fingerprint":
            return self._fingerprint()
        if column in SESSION:
            return self._measured(*SESSION[column])
        if column in ("latitude", "longitude") and self.record.latitude is not None:
            return (latitude_code if column == "latitude" else longitude_code)(getattr(self.record, column))
        return getattr(self.record, FIELD.get(column, column), None)

    def _fingerprint(self) -> tuple[str | None, ...] | None:
        parts = tuple(getattr(self.record.fingerprint, part, None) for part in PARTS)
        return parts if any(parts) else None

    def _measured(self, field: str, steps: int) -> int | None:
        value = getattr(self.record.session, field, None)
        return None if value is None else min(max(round(value * steps), 1), 65535)


def arrivals_of(history: Sequence[Arrival], kind: str, token: str | None) -> list[Arrival]:
    """The unique arrivals at one entity's log, in order of their first."""
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
            everything = arrivals_of(history, OWNER[kind], token)
            ids = [a.id for a in everything]
            self.before[kind] = everything[: ids.index(self.own.id) if self.own.id in ids else len(ids)]
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
            case Meeting(one, other):
                values = [self.seen(fold) for fold in (one, other)]
                if any(seen is None for seen in values):
                    return NAN
                sets = [{a.value(fold.column) for a in seen or ()} - {None} for fold, seen in zip((one, other), values, strict=True)]
                return float(len(sets[0] & sets[1]))
            case Calc(op, args):
                return self.calc(op, [self.of(arg) for arg in args])

    def number(self, column: str, of: Arrival) -> float:
        if column in ("keystroke_dwell_ms", "keystroke_flight_ms", "pointer_speed_px_s", "session_age_s"):
            value = None if self.txn.session is None else getattr(self.txn.session, column)
            return NAN if value is None else value
        value = of.value(column)
        if value is None:
            return NAN
        if column.endswith("country"):
            return float(country_code(value))
        if column == "fingerprint":
            return float(sum(part_hash(part) * 256**place for place, part in enumerate(value)))
        if column in ("emulator", "proxy"):
            return 2.0 if value else 1.0
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
                return value is not None and (condition.column != "amount_minor" or value > 0)
            case "below_own":
                return bool(value < self.own.value(condition.column))
            case "just_under":
                tops = [condition.value * 10**power for power in range(13)]
                return any(top - top // 10 <= value < top for top in tops)
            case "weekday":
                return bool(arrival_day(value) == arrival_day(self.txn.at_ms))
            case "older":
                return bool(value <= self.txn.at_ms - condition.value)

    def seen(self, fold: Fold) -> list[Arrival] | None:
        """The rows that count; None if there is no such log, or no own value to compare with."""
        before = self.before[fold.entity.name]
        if before is None or any(c.op in ("same", "below_own") and self.own.value(c.column) is None for c in fold.where):
            return None
        begin, end = self.txn.at_ms - fold.window.ms, self.txn.at_ms
        seen = [a for a in before[self.gone[fold.entity.name] :] if begin < a.record.at_ms <= end]
        return [a for a in seen if all(self.meets(c, a) for c in fold.where)]

    def fold(self, fold: Fold) -> float:
        seen = self.seen(fold)
        return NAN if seen is None else self.aggregate(fold.op, fold.column, seen)

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
        if op == "eastward":
            own = self.own.value(column)
            return NAN if own is None else float(sum((value - own + 180 * 91) % (360 * 91) - 180 * 91 for value in values)) / len(values)
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
            case "plus":
                return a + b
            case "above":
                return float(a > b)
            case "parts_differ":
                pairs = zip(int(a).to_bytes(6, "little"), int(b).to_bytes(6, "little"), strict=True)
                return float(sum(one != other for one, other in pairs if one and other))
        assert op == "kilometres"
        return kilometres(*args)


def arrival_day(at_ms: int) -> int:
    """The day of the week, UTC, Monday 0."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).weekday()


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
    step = math.pi / 180.0 / 91
    north, north2 = (latitude - 1.0) * step - math.pi / 2.0, (latitude2 - 1.0) * step - math.pi / 2.0
    up, over = math.sin((north2 - north) / 2.0), math.sin((longitude2 - longitude) * step / 2.0)
    return 2.0 * 6371.0088 * math.asin(min(1.0, math.sqrt(up * up + math.cos(north) * math.cos(north2) * over * over)))
