"""The facts and measures of a transaction by plain Python, as `features/fact.py` describes them: what the compiled code is compared with."""

from __future__ import annotations

import math

from features.fact import AMOUNT_MAX, AT_MS_MAX, DEGREE, KIND_CODES, PARTS, SHORT_MAX, country_code, mcc_code, part_hash, row_identity, short_hash
from schemas.transaction import Fingerprint, Transaction


def latitude_code(degrees: float | None) -> int:
    """1/91 degrees north of the South Pole, plus one, halves to even; 0 if not given."""
    return 0 if degrees is None else round((degrees + 90.0) * DEGREE) + 1


def longitude_code(degrees: float | None) -> int:
    """1/91 degrees east of the antimeridian, plus one, halves to even; 0 if not given."""
    return 0 if degrees is None else round((degrees + 180.0) * DEGREE) + 1


def fingerprint_code(fingerprint: Fingerprint | None) -> int:
    """A byte for each part; 0 if none was given."""
    return 0 if fingerprint is None else sum(part_hash(getattr(fingerprint, part)) << 8 * place for place, part in enumerate(PARTS))


def yes_code(yes: bool | None) -> int:
    """2 for yes, 1 for no, 0 if nobody said."""
    return 0 if yes is None else 1 + yes


def short_code(value: float | None, steps: float) -> int:
    """A positive number in steps, halves to even, at least 1 and at most SHORT_MAX; 0 if not given."""
    if value is None or value != value:
        return 0
    value *= steps
    return 1 if value < 1.0 else SHORT_MAX if value > SHORT_MAX else round(value)


def facts_said(txn: Transaction) -> tuple[int, ...]:
    """The transaction's facts, in the order of FACTS."""
    fingerprint, session = txn.fingerprint, txn.session
    return (
        row_identity(txn.transaction_id, txn.at_ms),
        min(txn.at_ms, AT_MS_MAX),
        KIND_CODES[txn.kind],
        min(txn.own_amount_minor, AMOUNT_MAX),
        short_hash(txn.merchant_id, 20),
        short_hash(txn.terminal_id, 20),
        short_hash(txn.card_token, 24),
        short_hash(txn.account_id, 32),
        short_hash(txn.device_token, 20),
        short_hash(txn.customer_id, 24),
        short_hash(txn.counterparty_account_id, 32),
        mcc_code(txn.mcc),
        country_code(txn.country),
        country_code(txn.ip_country),
        country_code(txn.card_country),
        latitude_code(txn.latitude),
        longitude_code(txn.longitude),
        fingerprint_code(fingerprint),
        yes_code(fingerprint and fingerprint.emulator),
        yes_code(txn.ip_proxy),
        short_code(session and session.keystroke_dwell_ms, 10.0),
        short_code(session and session.keystroke_flight_ms, 10.0),
        short_code(session and session.pointer_speed_px_s, 1.0),
    )


def measures_said(txn: Transaction) -> tuple[float, ...]:
    """Its measures, in the order of MEASURES; NaN where not given."""
    session = txn.session
    if session is None:
        return (math.nan,) * 4
    given = (session.keystroke_dwell_ms, session.keystroke_flight_ms, session.pointer_speed_px_s, session.session_age_s)
    return tuple(math.nan if value is None else float(value) for value in given)
