"""Traces of authorizations: a span of the door and one of each stop of the walk, told to any OpenTelemetry collector (OTLP over HTTP, as JSON).

Who asks with a `traceparent` (W3C Trace Context) has decided whether its trace is kept; of the others a share is. What is kept goes to a
thread of its own through a queue with an end: under load spans are dropped and counted, and no payment waits for a collector. The
exporter is our own because OpenTelemetry's SDK with its exporter is eight packages, for one POST of a documented JSON.
"""

from __future__ import annotations

import json
import queue
import random
import re
import threading
import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any, NamedTuple

from streams import journal, metrics
from streams.settings import Settings

WAITING_MAX = 2_048
"""Traces that wait for the collector."""
LOT_MAX, LOT_S = 256, 1.0
"""So many traces go to the collector together, and none waits longer for others."""
POST_S = 5.0
SERVER, INTERNAL, ERROR = 2, 1, 2
"""Kinds of span, and the status code of one that failed (OTLP 1.3, trace.proto)."""
_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


class Parent(NamedTuple):
    """What a `traceparent` says: whose trace it is, of which span ours is a part, and whether the trace is kept."""

    trace_id: str
    span_id: str
    sampled: bool


class Traced(NamedTuple):
    """The span of a door that is to be told."""

    trace_id: str
    span_id: str
    parent_id: str

    @property
    def traceparent(self) -> bytes:
        """What says to others that theirs is a part of it."""
        return f"00-{self.trace_id}-{self.span_id}-01".encode()


class Passed(NamedTuple):
    """The stops of a walk and the seconds that each took: they follow each other from `since_s` on, by `time.perf_counter`."""

    since_s: float = 0.0
    stops: Sequence[tuple[str, float]] = ()


class Done(NamedTuple):
    """A trace that has ended: times are `time.perf_counter`'s."""

    traced: Traced
    name: str
    began_s: float
    ended_s: float
    passed: Passed
    said: dict[str, str]
    failed: bool


def parent_of(header: bytes) -> Parent | None:
    """What a `traceparent` says; None for what is none: then the trace is a new one (W3C Trace Context, 4.3)."""
    found = _PARENT.fullmatch(header)
    if found is None or (found[1] == b"00" and found[5] is not None):  # version 00 ends there; later ones may go on
        return None
    return Parent(found[2].decode(), found[3].decode(), bool(int(found[4], 16) & 1))


class Tracer:
    """One process's. `close` tells what waits."""

    def __init__(self, endpoint: str, share: float, service: str) -> None:
        self._endpoint, self._share, self._service = endpoint, share, service
        self._chance = random.Random()
        self._waiting: queue.Queue[Done | None] = queue.Queue(WAITING_MAX)
        self._unheard = False
        self._thread = threading.Thread(target=self._tell, name="tracing", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, settings: Settings, service: str) -> Tracer | None:
        """The tracer of the settings; None where no collector is named."""
        return cls(settings.trace_endpoint, settings.trace_share, service) if settings.trace_endpoint else None

    def begin(self, header: bytes | None) -> Traced | None:
        """The span that is to be told of a request with this `traceparent`; None if none is."""
        parent = None if header is None else parent_of(header)
        if parent is not None:
            return Traced(parent.trace_id, self._id(64), parent.span_id) if parent.sampled else None
        return Traced(self._id(128), self._id(64), "") if self._chance.random() < self._share else None

    def end(self, traced: Traced, name: str, began_s: float, passed: Passed, said: dict[str, str], failed: bool = False) -> None:
        """The request was answered, or failed: to be told, if there is room."""
        try:
            self._waiting.put_nowait(Done(traced, name, began_s, time.perf_counter(), passed, said, failed))
        except queue.Full:
            metrics.TRACES_DROPPED.labels("full").inc()

    def close(self) -> None:
        """Tells what waits, as long as one POST may take, and ends."""
        try:
            self._waiting.put(None, timeout=POST_S)
        except queue.Full:
            return
        self._thread.join(2 * POST_S)

    def _id(self, bits: int) -> str:
        return f"{self._chance.getrandbits(bits) or 1:0{bits // 4}x}"

    def _tell(self) -> None:
        ended = False
        while not ended:
            lot = [self._waiting.get()]
            until_s = time.monotonic() + LOT_S
            while lot[-1] is not None and len(lot) < LOT_MAX and (left_s := until_s - time.monotonic()) > 0:
                try:
                    lot.append(self._waiting.get(timeout=left_s))
                except queue.Empty:
                    break
            ended = lot[-1] is None
            if told := [done for done in lot if done is not None]:
                self._post(told)

    def _post(self, lot: list[Done]) -> None:
        body = json.dumps(as_otlp(lot, self._service, time.time() - time.perf_counter(), self._id)).encode()
        try:
            request = urllib.request.Request(self._endpoint, body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=POST_S) as answer:
                answer.read()
        except (OSError, ValueError, HTTPException) as error:
            metrics.TRACES_DROPPED.labels("unheard").inc(len(lot))
            if not self._unheard:  # once, until it is heard again: each trace that was lost is counted
                journal.logger().warning("the collector does not take traces", endpoint=self._endpoint, reason=str(error))
            self._unheard = True
        else:
            self._unheard = False
            metrics.TRACES.inc(len(lot))


def as_otlp(lot: list[Done], service: str, epoch_s: float, new_id: Any) -> dict[str, Any]:
    """The body of one POST (OTLP 1.3, JSON Protobuf encoding: ids in hex, nanoseconds as text). `epoch_s` is the time at `perf_counter` 0."""
    spans = [span for done in lot for span in _spans(done, epoch_s, new_id)]
    resource = {"attributes": _attributes({"service.name": f"holdfast-{service}"})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "holdfast"}, "spans": spans}]}]}


def _spans(done: Done, epoch_s: float, new_id: Any) -> list[dict[str, Any]]:
    def span(name: str, span_id: str, parent_id: str, kind: int, began_s: float, ended_s: float) -> dict[str, Any]:
        nanos = {"startTimeUnixNano": str(int((epoch_s + began_s) * 1e9)), "endTimeUnixNano": str(int((epoch_s + ended_s) * 1e9))}
        return {"traceId": done.traced.trace_id, "spanId": span_id, "parentSpanId": parent_id, "name": name, "kind": kind} | nanos

    door = span(done.name, done.traced.span_id, done.traced.parent_id, SERVER, done.began_s, done.ended_s)
    door["attributes"] = _attributes(done.said)
    if done.failed:
        door["status"] = {"code": ERROR}
    made, at_s = [door], done.passed.since_s
    for stop, took_s in done.passed.stops:
        made.append(span(stop, new_id(64), done.traced.span_id, INTERNAL, at_s, at_s + took_s))
        at_s += took_s
    return made


def _attributes(said: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in said.items()]
