"""Every error of the HTTP door as one row, and the one body that all of them have (as Stripe's)."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from models.answer import FIELD_39
from schemas.record import Record, Word, doc
from streams import journal


class ErrorType(Word):
    """Who has to do something about it."""

    INVALID_REQUEST = "invalid_request"
    AUTHENTICATION = "authentication"
    REFUSED = "refused"
    RATE_LIMIT = "rate_limit"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class Row(NamedTuple):
    """An error: its status, its type, the row of FIELD_39 that says the same to an ISO 8583 host, and what it means."""

    status: int
    type: ErrorType
    answer: str
    meaning: str


_I, _A, _R, _U = ErrorType.INVALID_REQUEST, ErrorType.AUTHENTICATION, ErrorType.REFUSED, ErrorType.UNAVAILABLE
SAID_MAX = 256
"""Characters of a message."""
INDEFINITE = "the result is indefinite: ask again with the same id"
ERRORS: dict[str, Row] = {
    # The request cannot be read
    "bad_request": Row(400, _I, "format_error", "these bytes are not HTTP/1.1 as this door speaks it"),
    "request_timeout": Row(408, _I, "format_error", "the request was not whole in time"),
    "head_too_large": Row(431, _I, "format_error", "target and headers are too long"),
    "not_found": Row(404, _I, "unknown_message", "no such path, or no such thing: decisions are kept for a time"),
    "method_not_allowed": Row(405, _I, "unknown_message", "the path takes another method"),
    "unreadable_json": Row(422, _I, "format_error", "the body is no JSON"),
    "missing_field": Row(422, _I, "format_error", "`param` is needed"),
    "unknown_field": Row(422, _I, "format_error", "nobody knows `param`; nothing is ignored"),
    "invalid_field": Row(422, _I, "format_error", "`param` has a value that it cannot have"),
    "unknown_currency": Row(422, _I, "format_error", "no currency of ISO 4217"),
    "card_number": Row(422, _I, "format_error", "a card number came where its token belongs"),
    "time_in_future": Row(422, _I, "format_error", "`at_ms` is too far ahead of our clock"),
    # Who may
    "unauthenticated": Row(401, _A, "not_permitted", "no valid key: `Authorization: Bearer` and a key of `holdfast keys create`"),
    "scope_missing": Row(403, _A, "not_permitted", "the key may not do this"),
    "card_not_covered": Row(403, _A, "not_permitted", "the card is none of the key's"),
    "rate_limited": Row(429, ErrorType.RATE_LIMIT, "not_permitted", "more than the key's rate: again after `Retry-After` seconds"),
    # The id came before
    "transaction_conflict": Row(409, _I, "transaction_conflict", "the same id came before with other contents: the first stands"),
    "reversed_before": Row(409, _R, "reversed_before", "a reversal of this id came first, while nobody knew it: it is not decided any more"),
    # The retry of a payment whose cardholder was to authenticate
    "step_up_unknown": Row(404, _R, "step_up_unknown", "`step_up_of` names no payment that was to be authenticated"),
    "step_up_mismatch": Row(422, _R, "step_up_mismatch", "`param` is not that of the payment that `step_up_of` names"),
    "step_up_used": Row(409, _R, "step_up_used", "the payment that `step_up_of` names was retried before, by another transaction"),
    # What the books refuse
    "unknown_account": Row(404, _R, "unknown_account", "nobody has described this account"),
    "unknown_hold": Row(404, _R, "unknown_hold", "nobody knows this authorization"),
    "wrong_account": Row(404, _R, "wrong_account", "the authorization is another account's"),
    "increment_mismatch": Row(422, _R, "increment_mismatch", "`param` is not that of the authorization that it is to raise"),
    "nothing_held": Row(409, _R, "nothing_held", "the authorization was not approved, was for nothing or brought money in: it holds none"),
    "already_posted": Row(409, _R, "already_posted", "the hold was captured before"),
    "already_voided": Row(409, _R, "already_voided", "the hold was reversed before"),
    "already_expired": Row(409, _R, "already_expired", "the hold has expired"),
    "late_capture": Row(409, _R, "late_capture", "the capture came after the hold had expired: its money was free, and may be spent"),
    "clearing_conflict": Row(409, _R, "transaction_conflict", "the same clearing id came before with other contents: the first stands"),
    "too_many_parts": Row(409, _R, "too_many_parts", "as many parts as a hold can have were captured or reversed: the next one must be the last"),
    "hold_currency_mismatch": Row(422, _R, "hold_currency_mismatch", "the hold is in another currency"),
    "exceeds_hold": Row(422, _R, "exceeds_hold", "more than is left of the hold and its tolerance"),
    # Not now
    "memory_unavailable": Row(503, _U, "memory_unavailable", f"Redis does not answer, or is being rebuilt; {INDEFINITE}"),
    "log_unavailable": Row(503, _U, "log_unavailable", f"Kafka has not acknowledged; {INDEFINITE}"),
    "unavailable": Row(503, _U, "memory_unavailable", f"a part does not answer; {INDEFINITE}"),
    "overloaded": Row(503, _U, "overloaded", "more is asked than can be answered in time: nothing was begun; ask again later"),
    "draining": Row(503, _U, "overloaded", "this process will stop: ask another one"),
    "deadline": Row(503, _U, "deadline", f"not done in time; {INDEFINITE}"),
    "streams_busy": Row(503, _U, "memory_unavailable", "this process has as many live streams as it can bear: again, or at another"),
    "internal": Row(500, ErrorType.INTERNAL, "error", "a bug on this side; it was noted"),
}
"""Errors by their stable codes: the one table, for the door, its description and its client."""


class Fault(Record, frozen=True, kw_only=True):
    """What went wrong."""

    type: Annotated[ErrorType, doc("who has to do something about it")]
    code: Annotated[str, doc("its stable name: what a program looks at")]
    message: Annotated[str, doc("words for a person; they may change")]
    param: Annotated[str | None, doc("the field or parameter that is to blame, if one is")]
    request_id: Annotated[str, doc("names this request in our log; also the header `request-id`")]
    response_code: Annotated[str, doc("ISO 8583:1987 field 39 of the same refusal")]
    doc: Annotated[str, doc("where this service's own page says what the code means")] = ""


class ErrorBody(Record, frozen=True, kw_only=True):
    """The body of every answer that is none of 200."""

    error: Annotated[Fault, doc("what went wrong")]


class Problem(NamedTuple):
    """An error before it is put into words for the wire."""

    code: str
    message: str = ""
    param: str | None = None
    about: str | None = None
    """The transaction that it is about, for our log."""
    retry_after_s: int | None = None

    def reply(self, request_id: str) -> tuple[int, bytes]:
        """Status and body. The code must be a row of ERRORS. What was sent is said again shortly and without card numbers: hosts log errors."""
        row = ERRORS[self.code]
        fault = Fault(
            type=row.type,
            code=self.code,
            message=journal.name_of(self.message, SAID_MAX) or row.meaning,
            param=self.param and journal.name_of(self.param),
            request_id=request_id,
            response_code=FIELD_39[row.answer].v1987,
            doc=f"/docs#{self.code}",
        )
        return row.status, msgspec.json.encode(ErrorBody(error=fault))
