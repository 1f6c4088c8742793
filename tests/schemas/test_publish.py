"""`holdfast schemas`: what is committed is what the records say, and a registry gets the same schemas under the same ids."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from schemas.catalogue import VERSIONS
from schemas.topics import TOPICS
from streams.schemas import command, faults, publish
from streams.settings import Settings


class RegistryDesk(BaseHTTPRequestHandler):
    """A schema registry as Confluent's REST interface describes it: modes, ids in import mode, compatibility per subject."""

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["content-length"])))

    def _reply(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        """A mode, or a compatibility."""
        what, subject = self.path.partition("?")[0].strip("/").split("/")
        self.server.said.setdefault(subject, {})[what] = self._body()  # type: ignore[attr-defined]
        self._reply(200, {})

    def do_POST(self) -> None:
        """A schema; its id is the sender's only in import mode."""
        subject = self.path.split("/")[2]
        body, said = self._body(), self.server.said.setdefault(subject, {})  # type: ignore[attr-defined]
        if said.get("mode", {}).get("mode") != "IMPORT":
            self._reply(422, {"error_code": 42205, "message": f"Subject {subject} is not in import mode"})
            return
        said.setdefault("versions", {})[body["version"]] = (body["id"] + self.server.shift, json.loads(body["schema"]))  # type: ignore[attr-defined]
        self._reply(200, {"id": body["id"] + self.server.shift})  # type: ignore[attr-defined]


@pytest.fixture
def registry() -> Iterator[ThreadingHTTPServer]:
    """A running registry that knows nothing."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), RegistryDesk)
    server.said, server.shift = {}, 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def url_of(server: ThreadingHTTPServer) -> str:
    """Its address."""
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_every_version_is_registered_under_its_committed_id(registry: ThreadingHTTPServer) -> None:
    done = publish(url_of(registry))
    assert sorted(schema_id for _, schema_id in done) == [v.schema_id for v in VERSIONS]
    for topic in TOPICS:
        said = registry.said[f"{topic.name}-value"]  # type: ignore[attr-defined]
        assert said["mode"] == {"mode": "READWRITE"}, "and the registry is left as it was"
        assert said["config"] == {"compatibility": "FULL_TRANSITIVE"}
        for version in [v for v in VERSIONS if v.record == topic.record.__name__]:
            assert said["versions"][version.version] == (version.schema_id, json.loads(version.schema))


def test_a_registry_that_gives_other_ids_is_said(registry: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]) -> None:
    registry.shift = 100  # type: ignore[attr-defined]
    assert command(["publish", url_of(registry)], Settings()) == 1
    assert "got id 101, not 1" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "registry:8081", "registry", "http://127.0.0.1:1/a b", "http://127.0.0.1:port"])
def test_a_registry_that_is_not_there_is_said(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["publish", url], Settings()) == 1
    assert f"{url}: " in capsys.readouterr().err


def test_the_committed_catalogue_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert faults() == []
    assert command(["check", "--json"], Settings()) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"versions": len(VERSIONS), "faults": []}
