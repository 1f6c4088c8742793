"""What can be asked over HTTP, as OpenAPI 3.1: made of the routes, the records and the table of errors; and the same as a page."""

from __future__ import annotations

import argparse
import functools
import html
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from models.answer import FIELD_39, Answer, Explained
from schemas.controls import Controls, Usability
from schemas.decision import Action
from schemas.record import Record
from streams.authorize.controls import ControlsRequest
from streams.authorize.problem import ERRORS, ErrorBody, Problem
from streams.authorize.requests import (
    PAGE,
    PAGE_MAX,
    AuthorizationRequest,
    Balance,
    CaptureRequest,
    ClearingAnswer,
    DecisionPage,
    ExplainedPage,
    ReversalRequest,
    Status,
)
from streams.authorize.routes import OPEN_PATHS, ROUTES, Route
from streams.settings import Settings

Examples = Mapping[str, Mapping[str, Any]]
NOON_MS = 1_767_268_800_000
STREAM = "text/event-stream"
READABLE = ("bad_request", "request_timeout", "head_too_large", "unauthenticated", "rate_limited", "internal")
"""What any request can be told."""
FIELDS = ("unreadable_json", "missing_field", "unknown_field", "invalid_field", "card_number")
ABSENT = ("memory_unavailable", "log_unavailable", "unavailable", "deadline")
RETRYING = ("step_up_unknown", "step_up_mismatch", "step_up_used")
DECIDING = (
    *FIELDS,
    *RETRYING,
    "unknown_currency",
    "time_in_future",
    "transaction_conflict",
    "reversed_before",
    "overloaded",
    *ABSENT,
    "card_not_covered",
)
HELD = ("unknown_hold", "wrong_account", "nothing_held", "already_posted", "already_voided", "already_expired", "not_found")
RAISING = (*HELD, "increment_mismatch")
CLEARING = (*FIELDS, *HELD, *ABSENT, "time_in_future", "transaction_conflict", "clearing_conflict", "too_many_parts", "card_not_covered")
CLEARING_MONEY = ("hold_currency_mismatch", "exceeds_hold", "late_capture")

_PURCHASE = {
    "transaction_id": "t-1",
    "kind": "ecommerce",
    "at_ms": NOON_MS,
    "amount_minor": 1_999,
    "currency": "EUR",
    "account_id": "a-1",
    "card_number": "4111111111111111",
    "merchant_id": "m-1",
    "mcc": "5732",
    "country": "DE",
}
_LIMITED = {
    "limits": [{"period": "day", "amount_minor": 50_000, "count": 10}, {"period": "transaction", "amount_minor": 20_000}],
    "categories_blocked": ["7800-7802", "7995"],
    "countries_allowed": ["DE", "FR"],
    "atm": False,
}
REQUESTS: dict[type[Record], Examples] = {
    AuthorizationRequest: {
        "purchase": _PURCHASE,
        "card_present": _PURCHASE | {"transaction_id": "t-2", "kind": "card_present", "entry_mode": "chip", "terminal_id": "pos-7"},
        "tokens": {name: value for name, value in _PURCHASE.items() if name != "card_number"}
        | {"transaction_id": "t-3", "card_token": "crd_k1_0123456789abcdef"},
        "in_part": _PURCHASE | {"transaction_id": "t-4", "partial_allowed": True},
        "authenticated": _PURCHASE | {"transaction_id": "t-5", "step_up_of": "t-1", "three_ds_result": "match"},
        "refund": _PURCHASE | {"transaction_id": "t-6", "kind": "refund"},
        "account_verification": _PURCHASE | {"transaction_id": "t-7", "amount_minor": 0},
    },
    CaptureRequest: {
        "whole": {"clearing_id": "c-1"},
        "part": {"clearing_id": "c-1", "amount_minor": 500, "currency": "EUR"},
        "one_of_several": {"clearing_id": "c-1", "amount_minor": 500, "currency": "EUR", "final": False},
    },
    ControlsRequest: {
        "account_frozen": {"status": "frozen"},
        "account_limited": _LIMITED,
        "card_frozen": {"account_id": "a-1", "status": "frozen"},
        "card_limited": {"account_id": "a-1", **_LIMITED},
    },
    ReversalRequest: {"whole": {"clearing_id": "c-2"}, "part": {"clearing_id": "c-2", "amount_minor": 500, "currency": "EUR"}},
}
STEP_UPS = ("step_up_visa", "step_up_mastercard", "authentication_failed", "authentication_missing")
DECLINES = ("unknown_account", "account_frozen", "account_closed", "currency_mismatch", "insufficient_funds")


def _answer(name: str, outcome: str, category: str, stand_in: bool = False) -> dict[str, Any]:
    """An answer by its row of FIELD_39."""
    held = outcome == "approve"
    approved_minor = 0 if not held else 1_200 if name == "partial" else 1_999
    answer = Answer(
        transaction_id="t-1",
        decision_id="dec_0b6f6a3e5c1d5f2f8a0c5d5a9e4b7c21",
        outcome=outcome,
        action=Action.STEP_UP if name.startswith("step_up") else None,
        response_code=FIELD_39[name].v1987,
        approved_minor=approved_minor,
        reason_category=category,
        hold_id="hld_5f0e9f0c6b7e5a4c9c1d2e3f4a5b6c7d" if held else None,
        held_minor=approved_minor,
        currency="EUR" if held else None,
        hold_expires_at_ms=NOON_MS + 7 * 86_400_000 if held else None,
        decided_at_ms=NOON_MS + 4,
        stand_in=stand_in,
    )
    plain: dict[str, Any] = msgspec.to_builtins(answer)
    return plain


_CLEARED = {"clearing_id": "c-1", "transaction_id": "t-1", "amount_minor": 500, "currency": "EUR", "response_code": "00", "at_ms": NOON_MS}
_CONTROLS = Controls(controls_id="ctl_1", account_id="a-1", status=Usability.FROZEN, counted_since_ms=NOON_MS, at_ms=NOON_MS)
_HELD = _answer("approve", "approve", "none")
_EXPLAINED = {name: _HELD[name] for name in ("transaction_id", "decision_id", "hold_id", "held_minor", "hold_expires_at_ms", "decided_at_ms")} | {
    "account_id": "a-1",
    "at_ms": NOON_MS,
    "outcome": "review",
    "reasons": [
        {
            "code": "many_card_payments_10m",
            "source": "rule",
            "feature": "velocity.card_count_10m",
            "value": 6.0,
            "usual": 0.0,
            "sentence": "6 payments on the card within ten minutes; usual: 0",
        }
    ],
    "score": 612,
    "risk": "medium",
    "contributions": [{"member": "learned", "weight": 0.4, "probability": 0.58}, {"member": "velocity", "weight": 0.1, "probability": 0.97}],
    "hold_currency": "EUR",
    "model_id": "mdl_1",
    "policy_id": "pol_1",
    "catalogue_id": "cat_1",
    "positions": [5, 1],
    "declined_positions": [],
    "degradations": [],
    "source_topic": "http",
    "source_partition": -1,
    "source_offset": -1,
    "transaction": {name: value for name, value in _PURCHASE.items() if name != "card_number"} | {"card_token": "crd_k1_0123456789abcdef"},
    "features": {"velocity.card_count_10m": 6.0, "behaviour.card_amount_over_mean_30d": None},
}
ANSWERS: dict[type[Record], Examples] = {
    Answer: {
        "approve": _answer("approve", "approve", "none"),
        "partial": _answer("partial", "approve", "none"),
        "review": _answer("review", "review", "risk"),
        "block": _answer("block", "block", "risk"),
        **{name: _answer(name, "decline", "authentication") for name in STEP_UPS},
        **{name: _answer(name, "decline", "account") for name in DECLINES},
        "approve_by_stand_in": _answer("approve", "approve", "none", stand_in=True),
        **{name: _answer(name, "decline", "account", stand_in=True) for name in FIELD_39 if name.startswith("stand_in_")},
    },
    ClearingAnswer: {"captured": _CLEARED | {"kind": "capture"}, "reversed": _CLEARED | {"kind": "reversal", "amount_minor": 0}},
    Balance: {"balance": {"account_id": "a-1", "currency": "EUR", "balance_minor": 10_000, "available_minor": 8_001, "response_code": "00"}},
    Controls: {"account_frozen": msgspec.to_builtins(_CONTROLS)},
    DecisionPage: {"page": {"decisions": [_answer("approve", "approve", "none")], "cursor": "t-1"}, "last": {"decisions": [], "cursor": None}},
    Explained: {"explained": _EXPLAINED},
    ExplainedPage: {"page_explained": {"decisions": [_EXPLAINED], "cursor": None}},
    Status: {"alive": {"status": "alive"}, "ready": {"status": "ready"}},
}


_STREAMED = (
    "retry: 1000\nid: 6.0.3.1\n\nid: 7.0.3.1\nevent: decision\ndata: "
    + msgspec.json.encode(_answer("approve", "approve", "none")).decode()
    + "\n\n: nothing new\nid: 7.0.3.1\n\n"
)
"""What a stream says: where it begins, a decision, and that there was none for a while."""


class Shape(NamedTuple):
    """What a route takes and gives, and the errors of ERRORS that are its own. Several answers: one of them."""

    answers: tuple[type[Record], ...] = ()
    request: type[Record] | None = None
    errors: tuple[str, ...] = ()
    parameters: tuple[dict[str, Any], ...] = ()
    media: str = "application/json"
    examples: tuple[str, ...] = ()
    """Those of the request that are its own; none: all."""


def _parameter(name: str, place: str, meaning: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "description": meaning, "schema": schema}


_TEXT = {"type": "string", "minLength": 1, "maxLength": 128}
_DEADLINE = _parameter("Holdfast-Deadline-Ms", "header", "how long the host waits", {"type": "integer", "minimum": 1, "maximum": 60_000})
_TIMING = _parameter("Holdfast-Timing", "header", "1: the header `server-timing` says where the time went", {"type": "string"})
_TRACE = _parameter("traceparent", "header", "the trace that this is a part of, and whether it is kept (W3C Trace Context)", {"type": "string"})
_WAITS = (_DEADLINE, _TIMING, _TRACE)
_LISTED = (
    _parameter("transaction_id", "query", "the one decision of this transaction", _TEXT),
    _parameter("card", "query", "those of this card, by its token", _TEXT),
    _parameter("account", "query", "those of this account", _TEXT),
    _parameter("limit", "query", "at most so many", {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE}),
    _parameter("cursor", "query", "those after the page that gave it", _TEXT),
)
_LAST = _parameter("Last-Event-ID", "header", "the id of the last event that was heard: those after it", _TEXT)
_ACCOUNT = _parameter("account_id", "query", "the account that the card belongs to", _TEXT)
_RAISES = ("purchase", "card_present", "tokens", "in_part")
_RESTRICTED = ("not_found", "card_not_covered", "missing_field", "invalid_field", "card_number", *ABSENT)
_FOUND = ("not_found", "card_not_covered", *ABSENT)
SHAPES: dict[str, Shape] = {
    "POST /v1/authorizations": Shape((Answer,), AuthorizationRequest, DECIDING, _WAITS),
    "POST /v1/authorizations/{transaction_id}/increment": Shape((Answer,), AuthorizationRequest, (*DECIDING, *RAISING), _WAITS, examples=_RAISES),
    "POST /v1/authorizations/{transaction_id}/capture": Shape((ClearingAnswer,), CaptureRequest, (*CLEARING, *CLEARING_MONEY), (_DEADLINE,)),
    "POST /v1/authorizations/{transaction_id}/reversal": Shape((ClearingAnswer,), ReversalRequest, (*CLEARING, *CLEARING_MONEY), (_DEADLINE,)),
    "GET /v1/decisions": Shape(
        (Answer, DecisionPage, Explained, ExplainedPage), None, (*_FOUND, "missing_field", "unknown_field", "invalid_field", "card_number"), _LISTED
    ),
    "GET /v1/decisions/stream": Shape((), None, ("streams_busy", "invalid_field", "log_unavailable"), (_LAST,), STREAM),
    "GET /v1/decisions/{decision_id}": Shape((Answer, Explained), None, _FOUND),
    "GET /v1/accounts/{account_id}/balance": Shape((Balance,), None, ("not_found", "unknown_account", "card_not_covered", *ABSENT)),
    "PUT /v1/accounts/{account_id}/controls": Shape(
        (Controls,), ControlsRequest, (*_RESTRICTED, *FIELDS), examples=("account_frozen", "account_limited")
    ),
    "GET /v1/accounts/{account_id}/controls": Shape((Controls,), None, _RESTRICTED),
    "PUT /v1/cards/{token}/controls": Shape((Controls,), ControlsRequest, (*_RESTRICTED, *FIELDS), examples=("card_frozen", "card_limited")),
    "GET /v1/cards/{token}/controls": Shape((Controls,), None, _RESTRICTED, (_ACCOUNT,)),
    "GET /openapi.json": Shape(),
    "GET /docs": Shape(media="text/html"),
    "GET /health": Shape((Status,)),
    "GET /ready": Shape((Status,), None, ("memory_unavailable", "draining")),
}


@functools.cache
def document() -> dict[str, Any]:
    """The description, as plain values."""
    records = {record for shape in SHAPES.values() for record in (*shape.answers, shape.request) if record is not None} | {ErrorBody}
    _, schemas = msgspec.json.schema_components(sorted(records, key=lambda one: one.__name__), ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, SHAPES[f"{route.method} {route.path}"])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "version": "1",
            "description": "Decides every payment while the customer waits. A repeat with the same id gets the same answer, byte for byte.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "an API key, or a JWT of the bank's own"}},
            "schemas": schemas,
        },
    }


def _operation(route: Route, shape: Shape) -> dict[str, Any]:
    parameters = [_parameter(name, "path", name.replace("_", " "), _TEXT | {"maxLength": 64}) for name in _in_braces(route.path)]
    made: dict[str, Any] = {
        "operationId": "_".join([route.method.lower(), *route.path.replace("/v1", "").strip("/").replace("{", "").replace("}", "").split("/")]),
        "summary": route.summary,
        "description": f"Needs the scope `{route.scope}`.",
        "parameters": [*parameters, *shape.parameters],
        "responses": {"200": _answered(shape), **_refused((*READABLE, "scope_missing", *shape.errors))},
    }
    if route.path in OPEN_PATHS:
        made["security"] = [{}, {"key": []}]
    if shape.request is not None:
        examples = REQUESTS[shape.request]
        own = {name: examples[name] for name in shape.examples or examples}
        content = {"schema": _ref(shape.request), "examples": _examples(own)}
        made["requestBody"] = {"required": True, "content": {"application/json": content}}
    return made


def _answered(shape: Shape) -> dict[str, Any]:
    if not shape.answers:
        if shape.media == STREAM:
            said = "Events while the key is valid: `data` is an Answer (with the scope `explain` an Explained), `id` asks for those after it"
            return {"description": said, "content": {shape.media: {"schema": {"type": "string"}, "examples": _examples({"events": _STREAMED})}}}
        schema: dict[str, Any] = {"type": "object"} if shape.media == "application/json" else {"type": "string"}
        return {"description": "Answered", "content": {shape.media: {"schema": schema}}}
    refs = [_ref(record) for record in shape.answers]
    examples = {name: value for record in shape.answers for name, value in _examples(ANSWERS[record]).items()}
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}  # the last page is the same of both kinds
    return {"description": shape.answers[0].__doc__ or "", "content": {shape.media: {"schema": schema, "examples": examples}}}


def _refused(codes: Iterable[str]) -> dict[str, Any]:
    """The answers of these errors by their status, with an example for each code."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(ERRORS[code].status, []).append(code)
    return {
        str(status): {
            "description": "; ".join(f"`{code}`: {ERRORS[code].meaning}" for code in same),
            "content": {"application/json": {"schema": _ref(ErrorBody), "examples": _examples({code: _error(code) for code in same})}},
        }
        for status, same in sorted(by_status.items())
    }


def _error(code: str) -> Any:
    _, body = Problem(code).reply("req_8c4d1f2a00000001")
    return msgspec.json.decode(body)


def _examples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"value": value} for name, value in values.items()}


def _ref(record: type[Record]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{record.__name__}"}


def _in_braces(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


@functools.cache
def description() -> bytes:
    """The description as JSON."""
    return msgspec.json.encode(document())


@functools.cache
def page() -> bytes:
    """The description as a page of its own: no script, nothing from elsewhere."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>Holdfast</title><style>{STYLE}</style><main>"]
    whole = document()
    parts += [f"<h1>Holdfast</h1><p>{_said(whole['info']['description'])} <a href=openapi.json>openapi.json</a>", "<nav>"]
    operations = [(method.upper(), path, made) for path, methods in whole["paths"].items() for method, made in methods.items()]
    parts += [f"<a href=#{made['operationId']}><b>{method}</b> {path}</a>" for method, path, made in operations]
    parts.append("<a href=#errors>errors</a><a href=#records>records</a></nav>")
    for method, path, made in operations:
        parts.append(f"<section id={made['operationId']}><h2><b>{method}</b> {path}</h2><p>{made['summary']}. {_said(made['description'])}")
        parts += [_row_of_parameter(parameter) for parameter in made["parameters"]]
        for name, content in made.get("requestBody", {}).get("content", {}).items():
            parts.append(f"<h3>Body, {name}: {_link(content['schema'])}</h3>{_shown(content)}")
        for status, answer in made["responses"].items():
            (content,) = answer["content"].values()
            parts.append(f"<details><summary><b class=s{status[0]}>{status}</b> {_said(answer['description'])}</summary>")
            parts.append(f"<p>{_link(content['schema'])}{_shown(content)}</details>")
        parts.append("</section>")
    parts.append("<h1 id=errors>Errors</h1><table>")
    parts += [
        f"<tr id={code}><td><code>{code}</code><td>{row.status}<td>{row.type}<td>{FIELD_39[row.answer].v1987}<td>{_said(row.meaning)}"
        for code, row in ERRORS.items()
    ]
    parts.append("</table>")
    parts.append("<h1 id=records>Records</h1>")
    parts += [_record(name, schema) for name, schema in whole["components"]["schemas"].items()]
    return "".join([*parts, "</main></html>"]).encode()


def _record(name: str, schema: Mapping[str, Any]) -> str:
    head = f"<section id={name}><h2>{name}</h2><p>{_said(schema.get('description', ''))}"
    if "enum" in schema:
        return " ".join([head, *[f"<code>{word}</code>" for word in schema["enum"]], "</section>"])
    needed = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{field}</code>{'' if field in needed else ' <i>optional</i>'}<td>{_link(kind)}<td>{_said(kind.get('description', ''))}"
        for field, kind in schema.get("properties", {}).items()
    )
    return f"{head}<table>{rows}</table></section>"


def _row_of_parameter(parameter: Mapping[str, Any]) -> str:
    return f"<p><code>{parameter['name']}</code> <i>{parameter['in']}</i> {_said(parameter['description'])}"


def _link(schema: Mapping[str, Any]) -> str:
    """What a value may be, in a few words, with a link where it is a record."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"<a href=#{name}>{name}</a>"
    either = schema.get("anyOf") or schema.get("oneOf")
    if either:
        return " or ".join(_link(one) for one in either)
    if schema.get("type") == "array":
        return f"list of {_link(schema.get('items', {}))}"
    limits = [f"{word} {schema[name]}" for name, word in _LIMITS.items() if name in schema]
    return html.escape(" ".join([str(schema.get("type", "any")), *limits]))


_LIMITS = {"minimum": "from", "maximum": "to", "minLength": "at least", "maxLength": "at most", "pattern": "like"}


def _shown(content: Mapping[str, Any]) -> str:
    """The examples of a body."""
    values = {name: _text(one["value"]) for name, one in content.get("examples", {}).items()}
    return "".join(f"<details><summary>{name}</summary><pre>{html.escape(text)}</pre></details>" for name, text in values.items())


def _text(example: Any) -> str:
    return example if isinstance(example, str) else msgspec.json.format(msgspec.json.encode(example)).decode()


def _said(text: str) -> str:
    """Words with what stands in backquotes as code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;color:#222;margin:0}main{max-width:56rem;margin:auto;padding:1rem}"
    "nav a{display:block;text-decoration:none;padding:.1rem 0}code,pre,nav,h2{font-family:ui-monospace,monospace}"
    "section{border-top:1px solid #ddd;padding:.5rem 0}h2{font-size:1.05rem}h3{font-size:1rem}b{color:#0a5}b.s4,b.s5{color:#a30}"
    "pre{background:#f6f6f4;padding:.6rem;overflow:auto}details{margin:.2rem 0}details details{margin-left:1.2rem}summary{cursor:pointer}"
    "table{border-collapse:collapse;width:100%}td{border-top:1px solid #eee;padding:.25rem .5rem .25rem 0;vertical-align:top}i{color:#777}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}a{color:#8cf}pre{background:#222}td,section{border-color:#333}}"
)


def command(argv: list[str], settings: Settings) -> int:
    """Prints the description: JSON, or with `--html` the page."""
    parser = argparse.ArgumentParser(prog="holdfast openapi", description=__doc__)
    parser.add_argument("--html", action="store_true", help="the page, whole in one file")
    print((page() if parser.parse_args(argv).html else description()).decode())
    return 0
