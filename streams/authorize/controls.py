"""Controls of cards and accounts by HTTP: told to the log first, then put into the account's book, where every payment meets them."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

import msgspec

from models.hold import Book, controls_known
from schemas import avro
from schemas.controls import Categories, Controls, Limit, Period, Usability
from schemas.errors import InvalidRecord, MemoryUnavailable
from schemas.identity import derived_id
from schemas.record import Country, Id, Record, Token, doc
from schemas.topics import ACCOUNT_CONTROLS
from schemas.transaction import is_card_number
from streams.answers import FORGOT, sound
from streams.authorize.problem import Problem
from streams.authorize.protocol import Reply, Request
from streams.authorize.requests import account_in, read
from streams.world import World

SHAPE = re.compile(r"/v1/(cards|accounts)/(.+)/controls\Z")
ROWS_MAX = 64
_TRIES = 16


class ControlsRequest(Record, frozen=True, kw_only=True):
    """All controls of a card or an account as they are to be from now on: what is left out is not restricted."""

    account_id: Annotated[Id | None, doc("of a card: the account that its payments are made from")] = None
    status: Annotated[Usability, doc("whether it may be used")] = Usability.ACTIVE
    limits: Annotated[tuple[Limit, ...], doc("limits in money and number")] = ()
    categories_allowed: Annotated[tuple[Categories, ...], doc("merchant category codes or ranges of them that alone may be paid; empty: all")] = ()
    categories_blocked: Annotated[tuple[Categories, ...], doc("merchant category codes or ranges of them that may not be paid")] = ()
    countries_allowed: Annotated[tuple[Country, ...], doc("countries that alone may be paid in, ISO 3166-1 alpha-2; empty: all")] = ()
    countries_blocked: Annotated[tuple[Country, ...], doc("countries that may not be paid in, ISO 3166-1 alpha-2")] = ()
    ecommerce: Annotated[bool, doc("whether it may be used in e-commerce")] = True
    atm: Annotated[bool, doc("whether it may be used at cash machines")] = True
    contactless: Annotated[bool, doc("whether it may be used contactless")] = True


class _Subject(Record, frozen=True, kw_only=True):
    """Whose controls a path names."""

    account_id: Id
    card_token: Token | None


_REQUESTS = msgspec.json.Decoder(ControlsRequest)
_ROWS = ("limits", "categories_allowed", "categories_blocked", "countries_allowed", "countries_blocked")


async def controls(request: Request, world: World, now_ms: int) -> Reply | Problem:
    """The answer to `PUT` and `GET` of `/v1/cards/{token}/controls` and `/v1/accounts/{id}/controls`."""
    if not await world.answers.whole():
        raise MemoryUnavailable(FORGOT)
    if request.method == "PUT":
        sent = avro.checked(lambda: read(request, _REQUESTS))
        return 200, msgspec.json.encode(await _put(sent, _subject(request, sent.account_id), world, now_ms))
    if request.method != "GET":
        return Problem("method_not_allowed", "use PUT or GET")
    found = await _now(_subject(request, account_in(request.query)), world)
    return Problem("not_found", "nothing is restricted") if found is None else (200, msgspec.json.encode(found))


def _subject(request: Request, account_id: str | None) -> _Subject:
    shape = SHAPE.match(request.path)
    assert shape is not None, "who calls has looked at the path"
    named = shape[2]
    if shape[1] == "cards" and is_card_number(named):
        raise InvalidRecord("token", "is a card number, not a token of one", code="card_number")
    values = {"account_id": account_id, "card_token": named} if shape[1] == "cards" else {"account_id": named, "card_token": None}
    if values["account_id"] is None:
        raise InvalidRecord("account_id", "name the account that the card belongs to", code="missing_field")
    if account_id is not None and account_id != values["account_id"]:
        raise InvalidRecord("account_id", "is not the account that the path names")
    return avro.checked(lambda: msgspec.convert(values, _Subject))


async def _put(sent: ControlsRequest, subject: _Subject, world: World, now_ms: int) -> Controls:
    """The controls once the log has them and the book obeys them. What says nothing new is not told again.

    Who finds that others were put at the same moment says it once more, after them: so the log's newest is the book's.
    """
    for name in _ROWS:
        if len(getattr(sent, name)) > ROWS_MAX:
            raise InvalidRecord(name, f"has more than {ROWS_MAX} rows")
    for number, limit in enumerate(sent.limits):
        if limit.amount_minor is None and (limit.count is None or limit.period is Period.TRANSACTION):
            raise InvalidRecord(f"limits[{number}]", "limits nothing: an amount_minor, or a count of a day, a week or a month")
    for name in ("categories_allowed", "categories_blocked"):
        for number, row in enumerate(getattr(sent, name)):
            first, _, last = row.partition("-")
            if last and last < first:
                raise InvalidRecord(f"{name}[{number}]", "goes from a code to one that is not lower")
    for _ in range(_TRIES):
        earlier = await _now(subject, world)
        made = _made(sent, subject, earlier, now_ms)
        if earlier is not None and msgspec.structs.replace(made, at_ms=earlier.at_ms) == earlier:
            made = earlier
        else:
            await world.bus.tell(ACCOUNT_CONTROLS, made.controls_id, avro.encode(made))
        book = await world.books.change(made.account_id, partial(controls_known, controls=made))
        if made in book.controls:
            return made
    raise MemoryUnavailable(f"the controls of {subject.account_id} changed under {_TRIES} tries")


def _made(sent: ControlsRequest, subject: _Subject, earlier: Controls | None, now_ms: int) -> Controls:
    """The record. Limits go on counting from when there first was one that spans transactions."""
    values = {name: getattr(sent, name) for name in ControlsRequest.__struct_fields__ if name != "account_id"}
    made = Controls(
        controls_id=_id(subject),
        account_id=subject.account_id,
        card_token=subject.card_token,
        counted_since_ms=now_ms,
        at_ms=now_ms if earlier is None else max(now_ms, earlier.at_ms + 1),
        **values,
    )
    if earlier is None or (made.counts and not earlier.counts):
        return made
    return msgspec.structs.replace(made, counted_since_ms=earlier.counted_since_ms)


async def _now(subject: _Subject, world: World) -> Controls | None:
    """What is in force now."""
    (content,) = sound([*await world.books.read(subject.account_id)])
    return next((c for c in Book.from_bytes(content).controls if c.controls_id == _id(subject)), None)


def _id(subject: _Subject) -> str:
    return derived_id("ctl", subject.account_id, subject.card_token or "")
