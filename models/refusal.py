"""Why money is not held or moved: the facts, by stable names."""

from __future__ import annotations

from schemas.record import Word


class Refusal(Word):
    """Facts for which a move is refused; the order of the lines is the precedence."""

    UNKNOWN_ACCOUNT = "unknown_account"
    ACCOUNT_FROZEN = "account_frozen"
    ACCOUNT_CLOSED = "account_closed"
    ACCOUNT_DORMANT = "account_dormant"
    CARD_FROZEN = "card_frozen"
    CARD_CLOSED = "card_closed"
    CARD_DORMANT = "card_dormant"
    CURRENCY_MISMATCH = "currency_mismatch"
    ECOMMERCE_OFF = "ecommerce_off"
    ATM_OFF = "atm_off"
    CONTACTLESS_OFF = "contactless_off"
    CATEGORY_BLOCKED = "category_blocked"
    COUNTRY_BLOCKED = "country_blocked"
    TRANSACTION_LIMIT = "transaction_limit"
    DAY_LIMIT = "day_limit"
    WEEK_LIMIT = "week_limit"
    MONTH_LIMIT = "month_limit"
    DAY_COUNT = "day_count"
    WEEK_COUNT = "week_count"
    MONTH_COUNT = "month_count"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    UNKNOWN_HOLD = "unknown_hold"
    NOT_CONFIRMED = "not_confirmed"
    ALREADY_POSTED = "already_posted"
    ALREADY_VOIDED = "already_voided"
    ALREADY_EXPIRED = "already_expired"
    LATE_CAPTURE = "late_capture"
    CLEARING_CONFLICT = "clearing_conflict"
    HOLD_CURRENCY_MISMATCH = "hold_currency_mismatch"
    EXCEEDS_HOLD = "exceeds_hold"
    TOO_MANY_PARTS = "too_many_parts"
    NOT_YET_EXPIRED = "not_yet_expired"
    NOT_RESOLVED = "not_resolved"


DECLINES = frozenset(tuple(Refusal)[: tuple(Refusal).index(Refusal.INSUFFICIENT_FUNDS) + 1])
"""Why a payment is declined, which is a decision and no error: all up to the funds."""
