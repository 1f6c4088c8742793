"""Traces: what a collector hears of an authorization, whose trace it is a part of, how many are kept, and that nobody waits for a collector."""

from __future__ import annotations

import itertools
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from streams import metrics, tracing
from streams.authorize.under_way import UnderWay
from streams.bus import Headers
from streams.settings import Settings
from streams.tracing import Tracer, parent_of
from tests.collector import Collector, collecting
from tests.iso8583.host import Host as IsoHost
from tests.iso8583.host import Scene, at_the_gateway, fields_of
from tests.walk.test_http import Host, a_request, at_the_door
from tests.world import a_transaction

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEPT, LEFT = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
STOPS = ["recall", "look", "judge", "hold", "keep", "tell"]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on the loopback."""
    with collecting() as one:
        yield one


def a_tracer(collector: Collector, share: float = 1.0) -> Tracer:
    """A tracer that tells it."""
    made = Tracer.of(Settings(trace_endpoint=collector.url, trace_share=share), "authorize")
    assert made is not None
    return made


def dropped(why: str) -> float:
    """How many traces were lost so far."""
    return float(metrics.TRACES_DROPPED.labels(why)._value.get())


async def ask(host: Host, transaction_id: str, traceparent: str | None = None) -> None:
    """An authorization that is approved."""
    headers = {} if traceparent is None else {"traceparent": traceparent}
    status, answer, _ = await host.ask("POST", "/v1/authorizations", json.dumps(a_request(transaction_id=transaction_id)).encode(), headers)
    assert (status, answer["outcome"]) == (200, "approve")


def test_a_collector_hears_the_door_and_each_stop_in_the_trace_of_who_asked(collector: Collector) -> None:
    told: list[Headers] = []

    async def play(host: Host) -> None:
        tell = host.world.bus.tell

        def telling(topic: Any, key: str, value: bytes, headers: Headers = ()) -> Any:
            told.append(headers)
            return tell(topic, key, value, headers)

        host.world.bus.tell = telling  # type: ignore[method-assign]
        host.world.world.tracer = tracer = a_tracer(collector)
        before_ns = time.time_ns()
        await ask(host, "t1", KEPT)
        tracer.close()
        after_ns = time.time_ns()
        door, *stops = collector.spans
        assert (door["traceId"], door["parentSpanId"], door["name"], door["kind"]) == (TRACE, SPAN, "authorize http", 2)
        assert [span["name"] for span in stops] == STOPS
        assert {(span["traceId"], span["parentSpanId"]) for span in stops} == {(TRACE, door["spanId"])}
        assert len({span["spanId"] for span in collector.spans}) == 7
        assert {a["key"]: a["value"]["stringValue"] for a in door["attributes"]}["holdfast.outcome"] == "approve"
        times = [(int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])) for span in collector.spans]
        slack_ns = 50_000_000  # of two clocks
        assert all(before_ns - slack_ns <= began <= ended <= after_ns + slack_ns for began, ended in times)
        assert all(abs(this[1] - following[0]) < 10_000 for this, following in itertools.pairwise(times[1:])), "one after the other"
        assert times[0][0] <= times[1][0] + 1_000_000, "the door is there before the walk"
        assert collector.bodies[0]["resourceSpans"][0]["resource"]["attributes"] == [
            {"key": "service.name", "value": {"stringValue": "holdfast-authorize"}}
        ]
        assert told == [(("traceparent", f"00-{TRACE}-{door['spanId']}-01".encode()),)], "the record on the log names the trace"

    at_the_door(play)


def test_the_host_says_whether_its_trace_is_kept_and_of_the_others_a_share_is(collector: Collector) -> None:
    tracer = a_tracer(collector, 0.25)
    assert all(tracer.begin(KEPT.encode()) for _ in range(50))
    assert not any(tracer.begin(LEFT.encode()) for _ in range(50))
    kept = sum(tracer.begin(None) is not None for _ in range(4_000))
    assert 850 < kept < 1_150
    tracer.close()


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_what_is_no_traceparent_begins_a_trace_of_its_own(header: str) -> None:
    assert parent_of(header.encode()) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    parent = parent_of(f"cc-{TRACE}-{SPAN}-03-what-will-be".encode())
    assert parent is not None
    assert parent == (TRACE, SPAN, True)


def test_where_no_collector_is_named_nothing_is_traced() -> None:
    assert Tracer.of(Settings(), "authorize") is None


def test_iso_8583_is_traced_too_and_a_failure_says_so(collector: Collector) -> None:
    async def play(scene: Scene, host: IsoHost) -> None:
        scene.world.world.tracer = tracer = a_tracer(collector)
        assert await host.code("0100", fields_of()) == "00"
        scene.world.bus.down = True
        assert await host.code("0100", fields_of(f11="000002")) == "91"
        tracer.close()

    at_the_gateway(play)
    doors = [span for span in collector.spans if span["kind"] == 2]
    assert [(span["name"], span["parentSpanId"], "status" in span) for span in doors] == [
        ("authorize iso8583", "", False),
        ("authorize iso8583", "", True),
    ]
    assert doors[1]["attributes"] == [{"key": "error.type", "value": {"stringValue": "log_unavailable"}}]


def test_nobody_waits_for_a_collector_and_what_is_lost_is_counted(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    collector.status = 503
    unheard = dropped("unheard")

    async def play(host: Host) -> None:
        host.world.world.tracer = tracer = a_tracer(collector)
        await ask(host, "t1")
        tracer.close()
        assert dropped("unheard") == unheard + 1

    at_the_door(play)
    monkeypatch.setattr(tracing, "WAITING_MAX", 3)
    monkeypatch.setattr(Tracer, "_tell", lambda self: None)  # a collector so slow that nothing leaves the queue
    full = dropped("full")

    async def many(host: Host) -> None:
        host.world.world.tracer = a_tracer(collector)
        for number in range(10):
            host.world.know(f"a{number}")
            status, _, _ = await host.authorize(transaction_id=f"t{number}", account_id=f"a{number}", card_number=f"{4111111111111111 + number}")
            assert status == 200
        assert dropped("full") == full + 7

    at_the_door(many)


def test_a_collector_that_speaks_no_http_does_not_end_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strange(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            """Answers as no web server does."""
            self.connection.recv(65_536)
            self.wfile.write(b"what?\r\n")

    monkeypatch.setattr(tracing, "LOT_MAX", 1)
    unheard = dropped("unheard")
    with socketserver.TCPServer(("127.0.0.1", 0), Strange) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        tracer = Tracer(f"http://127.0.0.1:{server.server_address[1]}/v1/traces", 1.0, "authorize")
        for name in ("one", "another"):
            traced = tracer.begin(None)
            assert traced is not None
            tracer.end(traced, name, time.perf_counter(), tracing.Passed(), {})
        tracer.close()
        server.shutdown()
        thread.join()
    assert dropped("unheard") == unheard + 2


def test_a_walk_that_nobody_traces_costs_no_coroutine_more() -> None:
    async def play(host: Host) -> None:
        under_way = UnderWay(host.world.world, 1_000)
        answering = under_way.answered(a_transaction(), host.world.now_ms, 1.0)
        assert getattr(answering, "__qualname__", "") == "UnderWay._answered"
        await answering

    at_the_door(play)
