"""The journal: structured logs, one JSON object a line on stderr, with the app's name and the transaction's id and never a card number."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from schemas.decision import Decision, Outcome
from streams.settings import Settings

_DIGITS = re.compile(r"[a-z]{3}_[0-9a-f]{32}|\d(?:[ -]?\d){11,}")
"""A derived id (let be), or digits that are enough for a card number, together or in groups."""
_GROUP = re.compile(r"\d+")
_LENGTHS = range(12, 20)
"""Of card numbers, in digits; the door takes those."""
_EPOCH_MS = re.compile(r"1[5-9]\d{11}|2\d{12}")
MASK = "[card number removed]"
NAME_MAX = 64


def without_card_numbers(text: str) -> str:
    """The text with whatever may be a card number masked. A 13-digit time in milliseconds of this half century is let be."""

    def masked(found: re.Match[str]) -> str:
        return found[0] if found[0][3] == "_" else _masked(found[0])

    return _DIGITS.sub(masked, text)


def name_of(sent: str, size_max: int = NAME_MAX) -> str:
    """A name that somebody sent, as a line can bear it: masked, and no longer than the names that are known."""
    return without_card_numbers(sent[: 4 * size_max])[:size_max]


def _masked(text: str) -> str:
    """Groups of digits without those that together satisfy the Luhn check (ISO/IEC 7812-1, annex B), whatever numbers stand beside them."""
    groups, digits = [each.span() for each in _GROUP.finditer(text)], [int(each) for each in text if each.isdigit()]
    counts = [0, *itertools.accumulate(end - begin for begin, end in groups)]
    sums = [[0, *itertools.accumulate(d if at % 2 != odd else 2 * d - 9 * (d > 4) for at, d in enumerate(digits))] for odd in (0, 1)]
    made, at = "", 0
    for first, (begin, _) in enumerate(groups):
        if begin < at:
            continue
        for last in range(first, min(first + _LENGTHS.stop, len(groups))):
            start, stop, end = counts[first], counts[last + 1], groups[last][1]
            if stop - start >= _LENGTHS.stop:
                break
            checked = sums[stop % 2][stop] - sums[stop % 2][start]
            if stop - start in _LENGTHS and checked % 10 == 0 and not _EPOCH_MS.fullmatch(text, begin, end):
                made, at = f"{made}{text[at:begin]}{MASK}", end
                break
    return made + text[at:]


def _mask(value: Any) -> Any:
    if isinstance(value, str):
        return without_card_numbers(value)
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        text = str(value)
        safe = without_card_numbers(text)
        return value if safe == text else safe
    if isinstance(value, Mapping):
        return {_mask(k): _mask(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_mask(v) for v in value]
    return without_card_numbers(repr(value))


def mask_card_numbers(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor that every line goes through last."""
    return {k: _mask(v) for k, v in event.items()}


class _Stderr:
    """Writes lines to stderr. Where nobody reads it any more, the lines are lost and the work goes on."""

    def msg(self, line: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = msg


def start(settings: Settings, app: str) -> None:
    """Sends structlog's and the standard library's logs to stderr as JSON lines named `app`, from `log_level` on."""
    level = getattr(logging, settings.log_level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(app),
    ]
    final: list[Any] = [structlog.processors.format_exc_info, mask_card_numbers, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=shared + final,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=False,
    )
    _bound.cache_clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[_without_meta, *final]))
    logging.raiseExceptions = False
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)


def logger(**bound: Any) -> Any:
    """A logger that adds these fields to each line. Cheap below the level: `log.info(...)` is then one call that does nothing."""
    return structlog.get_logger(**bound)


@functools.cache
def _bound() -> Any:
    """A logger that is made once after `start`."""
    return structlog.get_logger().bind()


def decided(decision: Decision) -> None:
    """One line for a decision of which somebody may ask why. Approvals are in the log of decisions, and not said again here."""
    if decision.outcome is Outcome.APPROVE:
        return
    _bound().info(
        "decided",
        transaction_id=decision.transaction_id,
        decision_id=decision.decision_id,
        outcome=str(decision.outcome),
        reasons=[reason.code for reason in decision.reasons],
        score=decision.score,
    )


def _named(app: str) -> Any:
    def name(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["app"] = app
        return event

    return name


def _without_meta(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {k: v for k, v in event.items() if k not in ("_record", "_from_structlog")}
