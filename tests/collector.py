"""A collector of traces on the loopback, as OpenTelemetry's is one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from streams.tracing import SERVER


class Collector(ThreadingHTTPServer):
    """Takes what is told, and says `status` to it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hearing)
        self.bodies: list[Any] = []
        self.status = 200

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    @property
    def spans(self) -> list[dict[str, Any]]:
        """All spans that came."""
        return [span for body in self.bodies for resource in body["resourceSpans"] for scope in resource["scopeSpans"] for span in scope["spans"]]

    @property
    def traces(self) -> int:
        """How many requests were told of."""
        return sum(span["kind"] == SERVER for span in self.spans)


class _Hearing(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        """Keeps the body."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/json")
        if self.server.status == 200:
            self.server.bodies.append(body)
        self.send_response(self.server.status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens."""
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()
