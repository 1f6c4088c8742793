"""What can be asked over HTTP, and which scope a key needs for it: one row for each method of each path."""

from __future__ import annotations

import re
from typing import NamedTuple

from streams.authorize.keys import Scope


class Route(NamedTuple):
    """One row. Of the path, what stands in braces is any text."""

    method: str
    path: str
    scope: Scope
    summary: str


ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/authorizations", Scope.AUTHORIZE, "Decide and hold"),
    Route("POST", "/v1/authorizations/{transaction_id}/increment", Scope.AUTHORIZE, "Raise a hold"),
    Route("POST", "/v1/authorizations/{transaction_id}/capture", Scope.CAPTURE, "Capture, whole or a part"),
    Route("POST", "/v1/authorizations/{transaction_id}/reversal", Scope.CAPTURE, "Reverse"),
    Route("GET", "/v1/decisions", Scope.READ, "What was decided, by transaction, card or account"),
    Route("GET", "/v1/decisions/stream", Scope.READ, "Live decisions, as server-sent events"),
    Route("GET", "/v1/decisions/{decision_id}", Scope.READ, "A decision"),
    Route("GET", "/v1/accounts/{account_id}/balance", Scope.READ, "A balance inquiry"),
    Route("GET", "/openapi.json", Scope.READ, "This description"),
    Route("GET", "/docs", Scope.READ, "The same as a page"),
    Route("PUT", "/v1/accounts/{account_id}/controls", Scope.RESTRICT, "Freeze an account, limit it, switch it"),
    Route("GET", "/v1/accounts/{account_id}/controls", Scope.READ, "What is forbidden to an account"),
    Route("PUT", "/v1/cards/{token}/controls", Scope.RESTRICT, "Freeze a card, limit it, switch it"),
    Route("GET", "/v1/cards/{token}/controls", Scope.READ, "What is forbidden to a card"),
    Route("GET", "/health", Scope.READ, "Alive"),
    Route("GET", "/ready", Scope.READ, "Ready to decide"),
)

OPEN_PATHS = frozenset(("/health", "/ready"))
"""What is answered without a key where no setting says otherwise."""
_PLAIN = {(route.method, route.path): route.scope for route in ROUTES if "{" not in route.path}
_SHAPED = tuple((route.method, re.compile(re.sub(r"\{\w+\}", "(.+)", route.path)), route.scope) for route in ROUTES if "{" in route.path)


_PATHS = frozenset(path for _, path in _PLAIN)


def is_known(path: str) -> bool:
    """Whether the table has this path, by whatever method."""
    return path in _PATHS or any(shape.fullmatch(path) for _, shape, _ in _SHAPED)


def methods_of(path: str) -> list[str]:
    """By which methods a path is asked."""
    plain = [method for method, each in _PLAIN if each == path]
    return plain or [method for method, shape, _ in _SHAPED if shape.fullmatch(path)]


def scope_of(method: str, path: str) -> Scope | None:
    """The scope that this needs; None where the table has no such row."""
    plain = _PLAIN.get((method, path))
    if plain is not None:
        return plain
    return next((scope for each, shape, scope in _SHAPED if each == method and shape.fullmatch(path)), None)
