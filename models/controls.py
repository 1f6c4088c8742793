"""What controls forbid, and what their limits have counted: pure, in the one atomic step that places a hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from models.refusal import Refusal
from schemas.controls import Controls, Period, Usability
from schemas.identity import INCREMENT
from schemas.transaction import EntryMode, Transaction, TransactionKind

DAY_MS = 86_400_000
PERIODS = (Period.DAY, Period.WEEK, Period.MONTH)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNUSABLE = {
    Usability.FROZEN: (Refusal.ACCOUNT_FROZEN, Refusal.CARD_FROZEN),
    Usability.CLOSED: (Refusal.ACCOUNT_CLOSED, Refusal.CARD_CLOSED),
    Usability.DORMANT: (Refusal.ACCOUNT_DORMANT, Refusal.CARD_DORMANT),
}
_ABOVE = {
    Period.TRANSACTION: Refusal.TRANSACTION_LIMIT,
    Period.DAY: Refusal.DAY_LIMIT,
    Period.WEEK: Refusal.WEEK_LIMIT,
    Period.MONTH: Refusal.MONTH_LIMIT,
}
_OFTEN = {Period.DAY: Refusal.DAY_COUNT, Period.WEEK: Refusal.WEEK_COUNT, Period.MONTH: Refusal.MONTH_COUNT}


class Window(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was spent in one period that began at `start_ms`."""

    start_ms: int = 0
    spent_minor: int = 0
    count: int = 0


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What the limits of one card's or account's controls have counted, since those were set: a window for each of PERIODS."""

    controls_id: str
    since_ms: int
    windows: tuple[Window, ...] = (Window(), Window(), Window())


class Spending(NamedTuple):
    """What one hold adds to limits: of which card, when it was placed, how much and how many."""

    card: str
    placed_at_ms: int
    minor: int
    number: int


def start_ms(period: Period, at_ms: int) -> int:
    """When the period that this moment lies in began, milliseconds since 1970-01-01 UTC. Weeks begin on Monday."""
    day = at_ms // DAY_MS
    if period is Period.DAY:
        return day * DAY_MS
    if period is Period.WEEK:
        return (day - (day + 3) % 7) * DAY_MS  # 1970-01-01 was a Thursday
    date = _EPOCH + timedelta(days=day)
    return (day - date.day + 1) * DAY_MS


def applying(controls: Sequence[Controls], card_token: str | None) -> list[Controls]:
    """Those of the account, then those of this card."""
    return [c for c in controls if c.card_token is None] + [c for c in controls if c.card_token is not None and c.card_token == card_token]


def forbidden(controls: Sequence[Controls], usage: Sequence[Usage], txn: Transaction, now_ms: int, raised_minor: int = 0) -> Refusal | None:
    """Why a transaction may not be, by the controls of its account and card; None if it may. One of nothing is within every limit.

    `raised_minor` is what the transaction that an increment raises comes to without it: the two are one transaction.
    """
    return next((refusal for c in applying(controls, txn.card_token) for refusal in _refusals(c, usage, txn, now_ms, raised_minor)), None)


def counted(controls: Sequence[Controls], usage: Sequence[Usage], before: Spending | None, after: Spending | None) -> tuple[Usage, ...]:
    """The usage once what a hold adds to it is `after` and no more `before`. What was placed before a limit was set is not counted."""
    if before and after and before.placed_at_ms != after.placed_at_ms:  # two decided it, and the log has the other one: in another day, maybe
        return counted(controls, counted(controls, usage, before, None), None, after)
    at = after or before
    if at is None:
        return tuple(usage)
    minor = (after.minor if after else 0) - (before.minor if before else 0)
    count = (after.number if after else 0) - (before.number if before else 0)
    mine = {c.controls_id for c in controls if c.card_token in (None, at.card) and c.counts and at.placed_at_ms >= c.counted_since_ms}
    return tuple([_added(one, at.placed_at_ms, minor, count) if one.controls_id in mine else one for one in usage])


def _added(usage: Usage, at_ms: int, minor: int, count: int) -> Usage:
    windows = []
    for period, window in zip(PERIODS, usage.windows, strict=True):
        begin = start_ms(period, at_ms)
        if begin > window.start_ms:
            windows.append(Window(begin, max(0, minor), max(0, count)))
        elif begin == window.start_ms:
            windows.append(Window(begin, window.spent_minor + minor, window.count + count))
        else:
            windows.append(window)
    return msgspec.structs.replace(usage, windows=tuple(windows))


def _window(usage: Sequence[Usage], controls: Controls, period: Period, now_ms: int) -> Window:
    """What was counted in the period that is now."""
    if period is Period.TRANSACTION:
        return Window()
    mine = next((one for one in usage if one.controls_id == controls.controls_id), None)
    window = mine.windows[PERIODS.index(period)] if mine else Window()
    return window if window.start_ms == start_ms(period, now_ms) else Window()


def _refusals(controls: Controls, usage: Sequence[Usage], txn: Transaction, now_ms: int, raised_minor: int) -> Iterator[Refusal]:
    if controls.status is not Usability.ACTIVE:
        yield _UNUSABLE[controls.status][controls.card_token is not None]
    if not controls.ecommerce and txn.kind is TransactionKind.ECOMMERCE:
        yield Refusal.ECOMMERCE_OFF
    if not controls.atm and txn.kind is TransactionKind.ATM:
        yield Refusal.ATM_OFF
    if not controls.contactless and (txn.kind is TransactionKind.CONTACTLESS or txn.entry_mode is EntryMode.CONTACTLESS):
        yield Refusal.CONTACTLESS_OFF
    by_card = txn.card_token is not None
    if not _may(txn.mcc, _has_code, controls.categories_allowed, controls.categories_blocked, by_card):
        yield Refusal.CATEGORY_BLOCKED
    if not _may(txn.country, str.__eq__, controls.countries_allowed, controls.countries_blocked, by_card):
        yield Refusal.COUNTRY_BLOCKED
    yield from _beyond(controls, usage, txn, now_ms, raised_minor)


def _may(value: str | None, fits: object, allowed: tuple[str, ...], blocked: tuple[str, ...], by_card: bool) -> bool:
    """Whether a rule lets it pass. What has no such value passes, but not a card's payment where only some values are allowed."""
    if value is None:
        return not (allowed and by_card)
    assert callable(fits)
    return not any(fits(row, value) for row in blocked) and (not allowed or any(fits(row, value) for row in allowed))


def _has_code(codes: str, mcc: str) -> bool:
    first, _, last = codes.partition("-")
    return first <= mcc <= (last or first)


def _beyond(controls: Controls, usage: Sequence[Usage], txn: Transaction, now_ms: int, raised_minor: int) -> Iterator[Refusal]:
    amount, more = txn.own_amount_minor, not txn.transaction_id.startswith(INCREMENT)
    if not amount:
        return
    for limit in controls.limits:
        window = _window(usage, controls, limit.period, now_ms)
        spent_minor = raised_minor if limit.period is Period.TRANSACTION else window.spent_minor
        if limit.amount_minor is not None and spent_minor + amount > limit.amount_minor:
            yield _ABOVE[limit.period]
        if more and limit.count is not None and limit.period in _OFTEN and window.count + 1 > limit.count:
            yield _OFTEN[limit.period]
