"""What hosts send over HTTP, and what they get besides the answer to an authorization: records, checked as they are read."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec

from models.answer import Answer, Explained
from models.clearing import WHOLE, Asked
from schemas import avro, identity
from schemas.errors import InvalidRecord
from schemas.hold import Clearing, ClearingKind
from schemas.record import Currency, EpochMs, Id, MinorUnits, Record, SignedMinorUnits, doc, like
from schemas.transaction import Transaction
from streams.authorize.protocol import BODY_BYTES_MAX, Request

Pan = Annotated[str, like("[0-9]{12,19}")]
Some = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Raw = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class AuthorizationRequest(Transaction, frozen=True, kw_only=True):
    """A Transaction as a host may send it: with raw identifiers instead of tokens. They become tokens here and go no further."""

    card_number: Annotated[Pan | None, doc("the card number; becomes card_token, card_bin and card_last4")] = None
    device_id: Annotated[Raw | None, doc("the device fingerprint; becomes device_token")] = None
    email: Annotated[Raw | None, doc("the e-mail address; becomes email_token")] = None
    phone: Annotated[Raw | None, doc("the phone number; becomes phone_token")] = None
    address: Annotated[Raw | None, doc("the billing address; becomes address_token")] = None


class ReversalRequest(Record, frozen=True, kw_only=True):
    """Gives back what an authorization and its increments hold, or a part of it."""

    clearing_id: Annotated[Id, doc("the sender's id: the idempotency key")]
    account_id: Annotated[Id | None, doc("the account, checked if given; needed where the decision is older than answers are kept")] = None
    at_ms: Annotated[EpochMs | None, doc("event time, milliseconds since 1970-01-01 UTC; null: now")] = None
    amount_minor: Annotated[Some | None, doc("amount to give back, minor units; null: all that is left")] = None
    currency: Annotated[Currency | None, doc("currency of `amount_minor`, ISO 4217; needed with it")] = None


class CaptureRequest(Record, frozen=True, kw_only=True):
    """Takes what an authorization and its increments hold, or a part of it; the last capture returns the rest."""

    clearing_id: Annotated[Id, doc("the sender's id: the idempotency key")]
    account_id: Annotated[Id | None, doc("the account, checked if given; needed where the decision is older than answers are kept")] = None
    at_ms: Annotated[EpochMs | None, doc("event time, milliseconds since 1970-01-01 UTC; null: now")] = None
    amount_minor: Annotated[MinorUnits | None, doc("amount to take, minor units; null: all that is left")] = None
    currency: Annotated[Currency | None, doc("currency of `amount_minor`, ISO 4217; needed with it")] = None
    final: Annotated[bool, doc("false: more captures of the same authorization will come, and the rest stays held for them")] = True


class ClearingAnswer(Record, frozen=True, kw_only=True):
    """What a capture or a reversal became; a repeat gets the same bytes."""

    clearing_id: Annotated[str, doc("the sender's id")]
    transaction_id: Annotated[str, doc("the authorization")]
    kind: Annotated[ClearingKind, doc("capture or reversal")]
    amount_minor: Annotated[int, doc("amount taken or given back, minor units; 0 for a reversal of all that was left")]
    currency: Annotated[str, doc("the hold's currency, ISO 4217")]
    response_code: Annotated[str, doc("ISO 8583:1987 field 39")]
    at_ms: Annotated[int, doc("event time, milliseconds since 1970-01-01 UTC")]


class Balance(Record, frozen=True, kw_only=True):
    """What an account has."""

    account_id: Annotated[str, doc("the account")]
    currency: Annotated[str, doc("its currency, ISO 4217")]
    balance_minor: Annotated[SignedMinorUnits, doc("the balance, minor units")]
    available_minor: Annotated[SignedMinorUnits, doc("balance and credit limit less live holds, minor units")]
    response_code: Annotated[str, doc("ISO 8583:1987 field 39")]


class DecisionPage(Record, frozen=True, kw_only=True):
    """Decisions of a card or an account, the newest first."""

    decisions: Annotated[tuple[Answer, ...], doc("at most `limit` of them")]
    cursor: Annotated[str | None, doc("asks for those after these; null: there are none")]


class ExplainedPage(Record, frozen=True, kw_only=True):
    """The same for a key of the scope `explain`."""

    decisions: Annotated[tuple[Explained, ...], doc("at most `limit` of them")]
    cursor: Annotated[str | None, doc("asks for those after these; null: there are none")]


class Status(Record, frozen=True, kw_only=True):
    """How the process is."""

    status: Annotated[str, doc("alive, or ready")]


class DecisionsAsked(NamedTuple):
    """Which decisions: of one `transaction_id`, or a page of those of a `card` or an `account`."""

    name: str
    of: str
    limit: int
    cursor: str | None


PAGE, PAGE_MAX = 50, 200
RAW_FIELDS = {"card_number": "crd", "device_id": "dev", "email": "eml", "phone": "phn", "address": "adr"}
TOKEN_FIELDS = {"crd": "card_token", "dev": "device_token", "eml": "email_token", "phn": "phone_token", "adr": "address_token"}
_NAMES = Transaction.__struct_fields__
_AUTHORIZATIONS = msgspec.json.Decoder(AuthorizationRequest)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_WITH_COLONS = ("session", "fingerprint", "attributes", "ip")
"""Fields whose values often have colons."""
R = TypeVar("R")
_CLEARINGS: dict[ClearingKind, msgspec.json.Decoder[Any]] = {
    ClearingKind.CAPTURE: msgspec.json.Decoder(CaptureRequest),
    ClearingKind.REVERSAL: msgspec.json.Decoder(ReversalRequest),
}


def transaction_of(request: AuthorizationRequest, key: bytes, key_id: str) -> Transaction:
    """The Transaction with keyed tokens in place of raw identifiers; InvalidRecord if both were sent, or parts of another card number."""
    values = dict(zip(_NAMES, msgspec.structs.astuple(request), strict=False))  # the raw fields come last
    for field, kind in RAW_FIELDS.items():
        raw = getattr(request, field)
        if raw is None:
            continue
        if values[TOKEN_FIELDS[kind]] is not None:
            raise InvalidRecord(field, f"came together with {TOKEN_FIELDS[kind]}: send one of them")
        values[TOKEN_FIELDS[kind]] = identity.keyed_token(key, key_id, kind, raw)
    if (number := request.card_number) is not None:
        begins, ends = values["card_bin"] or number[:6], values["card_last4"] or number[-4:]
        for field, fits in (("card_bin", number.startswith(begins)), ("card_last4", number.endswith(ends))):
            if not fits:
                raise InvalidRecord(field, "is no part of card_number")
        values["card_bin"], values["card_last4"] = begins, ends
    return Transaction(**values)


def authorization_in(request: Request) -> AuthorizationRequest:
    """What the body asks for; InvalidRecord names the field that is wrong."""
    return avro.checked(lambda: read(request, _AUTHORIZATIONS))


def decisions_in(query: str) -> DecisionsAsked:
    """What the query asks for; InvalidRecord names the parameter that is missing, unknown, given twice or wrong."""
    pairs = parse_qsl(query, keep_blank_values=True)
    values = dict(pairs)
    named = [name for name in ("transaction_id", "card", "account") if name in values]
    if unknown := [name for name, _ in pairs if name not in ("transaction_id", "card", "account", "limit", "cursor")]:
        raise InvalidRecord(unknown[0], "is none of transaction_id, card, account, limit, cursor", code="unknown_field")
    if len(named) != 1 or len(values) < len(pairs):
        raise InvalidRecord(
            "transaction_id", "name one, and once: transaction_id, card or account", code="invalid_field" if named else "missing_field"
        )
    (name,) = named
    of, limit, cursor = values[name], values.get("limit", str(PAGE)), values.get("cursor")
    if not 1 <= len(of) <= 128 or "\0" in of:
        raise InvalidRecord(name, "has 1 to 128 characters")
    if name == "card" and re.fullmatch(r"[0-9 -]{12,25}", of):
        raise InvalidRecord(name, "is a card number: ask by its token, addresses are written into logs", code="card_number")
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= PAGE_MAX:
        raise InvalidRecord("limit", f"is a number from 1 to {PAGE_MAX}")
    if cursor is not None and not 1 <= len(cursor) <= 128:
        raise InvalidRecord("cursor", "is what the page before gave")
    return DecisionsAsked(name, of, int(limit), cursor)


def account_in(query: str) -> str | None:
    """The account that a query names, if it names one; InvalidRecord for any other parameter, and where it is given twice."""
    pairs = parse_qsl(query, keep_blank_values=True)
    if unknown := next((name for name, _ in pairs if name != "account_id"), None):
        raise InvalidRecord(unknown, "is not account_id", code="unknown_field")
    if len(pairs) > 1:
        raise InvalidRecord("account_id", "name it once")
    return pairs[0][1] if pairs else None


def clearing_in(request: Request, kind: ClearingKind, transaction_id: str, now_ms: int) -> Asked:
    """The capture or reversal that the body asks for. Without an amount it is WHOLE."""
    sent = avro.checked(lambda: read(request, _CLEARINGS[kind]))
    if (sent.amount_minor is None) != (sent.currency is None):
        raise InvalidRecord("currency", "amount_minor and currency come together")
    return Asked(
        kind=kind,
        clearing_id=sent.clearing_id,
        transaction_id=transaction_id,
        account_id=sent.account_id or "",
        amount_minor=WHOLE if sent.amount_minor is None else sent.amount_minor,
        currency=sent.currency or "",
        at_ms=now_ms if sent.at_ms is None else sent.at_ms,
        final=sent.final if isinstance(sent, CaptureRequest) else True,
    )


def cleared(made: tuple[Clearing, ...], asked: Asked, code: str) -> bytes:
    """The answer's JSON to the clearings that a capture or reversal became."""
    answer = ClearingAnswer(
        clearing_id=asked.clearing_id,
        transaction_id=asked.transaction_id,
        kind=asked.kind,
        amount_minor=sum(clearing.amount_minor for clearing in made),
        currency=made[0].currency,
        response_code=code,
        at_ms=made[0].at_ms,
    )
    return msgspec.json.encode(answer)


def read(request: Request, decoder: msgspec.json.Decoder[R]) -> R:
    """The record that the body is. InvalidRecord names a field that is given twice: which of its values is meant, no two readers agree (RFC 8259, 4).

    Each field has a colon. Only where there are more than its fields and the values that may have some account for is it read in full.
    """
    body = body_of(request)
    made, fields = decoder.decode(body), _FIELDS.decode(body)
    more = body.count(b":") - len(fields)
    if more and more != sum([bytes(fields[name]).count(b":") for name in _WITH_COLONS if name in fields]):
        json.loads(body, object_pairs_hook=_each_once)
    return made


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidRecord(next(name for name in names if names.count(name) > 1), "is given twice")
    return fields


def body_of(request: Request) -> bytes:
    """The body, if it may be read."""
    if any(name == b"content-encoding" for name, _ in request.headers):
        raise InvalidRecord("content-encoding", "compressed bodies are not read")
    if len(request.body) > BODY_BYTES_MAX:
        raise InvalidRecord("body", f"is longer than {BODY_BYTES_MAX} bytes")
    return request.body
