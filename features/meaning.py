"""A row's exact meaning in words, for whoever must answer for it: made from the expression that is computed, so that it cannot differ."""

from __future__ import annotations

from features import said
from features.fact import DECLINED, EVENT_CODES, FACTS, FRAUD, KIND_CODES, Entity
from features.row import (
    ANY_PAYMENT,
    CHANGES,
    FRAUDS,
    HOUR_MS,
    PRESENT,
    RECEIVED,
    REMOTE,
    SPENT,
    Calc,
    Capped,
    Condition,
    Constant,
    Expression,
    Fold,
    Known,
    Meeting,
    Own,
    Window,
)
from features.tally import LATE, SLICES

_KINDS = {
    SPENT: "attempts to move money out",
    RECEIVED: "payments in",
    ANY_PAYMENT: "payments in or out",
    PRESENT: "payments with the card present",
    REMOTE: "remote card payments",
    CHANGES: "changes of credentials, e-mail, phone or address",
}
_KIND_NAMES = {code: name for name, code in (KIND_CODES | EVENT_CODES).items()} | {DECLINED: "declines and blocks", FRAUD: "known frauds"}
_ANSWERS = frozenset(fact.name for fact in FACTS if fact.rule.how == said.ANSWER)
"""Facts that are 1 for no and 2 for yes."""
_MISSING_AT_0 = frozenset(fact.name for fact in FACTS if fact.zero_is_missing)
_CALCS = {
    "minus": "{0} - {1}",
    "plus": "{0} + {1}",
    "over": "{0} / {1} (missing if that is 0)",
    "times": "{0} * {1}",
    "larger": "the larger of {0} and {1}",
    "above": "1 if {0} is above {1}, else 0",
    "differs": "1 if {0} differs from {1}, else 0",
    "is_zero": "1 if {0} is 0, else 0",
    "is_missing": "1 if {0} is missing, else 0",
    "log1p": "ln(1 + {0})",
    "kilometres": "great-circle kilometres from ({0}, {1}) to ({2}, {3})",
    "parts_differ": "how many parts differ between {0} and {1}, where both are given",
}
_FOLDS = {
    "count": "the number of",
    "sum": "the sum of {column} over",
    "mean": "the mean of {column} over",
    "max": "the largest {column} of",
    "spread": "the population standard deviation of {column} over",
    "distinct": "the number of different {column} values among",
    "last": "{column} of the latest of",
    "first": "the smallest {column} of",
    "eastward": "the mean distance east of the own longitude over",
}
_SKETCHED = ", about (a sketch: standard error below 7 % up to 500; a late T is not told the values that came again after its slice)"

OF_ALL = """\
What is counted arrived before the payment that is decided, which is in none of it unless the line says so.
Payments are attempts, whatever was answered, and so is what was spent.
Amounts are minor units of each account's own currency, and are summed as they are.
The latest, first, largest and mean of no rows are missing, and so is what is made of something missing."""
"""What holds for every row."""


def meaning(expression: Expression) -> str:
    """The expression in words."""
    match expression:
        case Own(name):
            return f"the transaction's own {name}"
        case Known(entity, column):
            return f"the {entity.name}'s {column} as known at the time"
        case Constant(value):
            return f"{value:.12g}"
        case Capped(entity):
            return f"1 if the {entity.name}'s log has lost a row that its longest window would have seen, else 0"
        case Meeting(one, other):
            return f"the number of different {one.column} values that are both among {_rows(one)} and, as {other.column}, among {_rows(other)}"
        case Fold(op=op, column=column):
            about = _SKETCHED if op == "distinct" and expression.entity.memory == "tally" else ""
            return f"{_FOLDS[op].format(column=column)} {_rows(expression)}{about}"
        case Calc("minus", (Own(name), Constant(1.0))) if name in _ANSWERS:
            return f"1 if the transaction says yes to {name}, 0 if it says no (missing if it says neither)"
        case Calc("is_zero", (Calc("is_zero", (part,)),)):
            return f"1 if {_inner(part)} is not 0, else 0"
        case Calc("is_zero", (Calc("is_missing", (Calc("over", (Constant(1.0), Calc("above") as part)),)),)):
            return f"{meaning(part)}, as where one of them is missing"
        case Calc("over", (part, Constant(value))):
            return f"{_inner(part)} / {value:.12g}"
        case Calc("kind_in", (part, Constant(value))):
            return f"1 if {_inner(part)} is {_named(int(value), ' or ')}, else 0"
        case Calc(op, args):
            return _CALCS[op].format(*(_inner(arg) for arg in args))


def _inner(expression: Expression) -> str:
    text = meaning(expression)
    return f"[{text}]" if isinstance(expression, Fold | Calc | Meeting) else text


def _rows(fold: Fold) -> str:
    """Which rows a fold reads."""
    kinds = [condition for condition in fold.where if condition.op == "kinds"]
    others = [condition for condition in fold.where if condition.op != "kinds"]
    what = " that are also ".join(map(_kinds, kinds)) or "all rows"
    such = "".join(f", {_condition(condition)}" for condition in others)
    return f"the {_owner(fold.entity)} {what}{such}, {_window(fold)}"


def _owner(entity: Entity) -> str:
    return f"{entity.name}'s own" if entity.log_of else f"{entity.name}'s"


def _kinds(condition: Condition) -> str:
    known = _KINDS.get(condition)
    return known or _named(condition.value, " and ")


def _named(kinds: int, joined: str) -> str:
    """The kinds in a set."""
    return joined.join(name for code, name in _KIND_NAMES.items() if kinds >> code & 1)


def _condition(condition: Condition) -> str:
    column, value = condition.column, condition.value
    return {
        "below": f"with {column} below {value:,}",
        "same": f"with the transaction's own {column} (missing without one)",
        "near": f"at most {value // HOUR_MS} hours from the transaction's own time of day",
        "given": f"with {column} {'given' if column in _MISSING_AT_0 else 'above 0'}",
        "below_own": f"with {column} below the transaction's own",
        "just_under": f"with {column} at most a tenth below {value:,} or ten, a hundred ... times that",
        "weekday": "of the transaction's own day of the week, UTC",
        "older": f"with event time at most T - {value // HOUR_MS}h",
    }[condition.op]


def _window(fold: Fold) -> str:
    """The window, half-open in event time (T is the transaction's), and how exact it is."""
    if fold.entity.memory == "tally":
        return _tally_window(fold.window, fold.delay, FRAUDS in fold.where)
    return f"with event time in (T - {fold.window.name}, T], exact to the millisecond"


def _tally_window(window: Window, delay: Window | None, of_labels: bool) -> str:
    slice_s = window.ms / SLICES / 1000
    after = f"{delay.name} after they happened" if delay else ""
    when = f"the later of {after} and when that was learned, rounded up to a slice" if of_labels else after
    matured = f"matured ({when}) " if delay else ""
    return f"{matured}in the {SLICES} slices of {slice_s:g} s that end with T's own ({LATE} more are kept for the late)"
