"""`holdfast sandbox` as an integrator starts it: every card at both doors on real sockets, and afterwards the books agree."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from models.answer import FIELD_39
from models.sandbox import CARDS, PARTIAL
from streams.authorize.codec import Codec
from streams.authorize.dialect import dialect_of
from streams.clock import clock_ms
from streams.sandbox import http_says, its_settings
from streams.settings import Settings
from streams.stack import ROOT
from tests.first_model import MODEL_KEY
from tests.iso8583.conftest import a_free_port
from tests.iso8583.host import Host, fields_of
from tests.walk.test_http import a_request
from tests.walk.test_sandbox import TAKES_PART, code_of, said

pytestmark = pytest.mark.integration


def asked(where: dict[str, str], **changes: Any) -> tuple[int, Any]:
    """An authorization over HTTP."""
    body = json.dumps(a_request(at_ms=clock_ms(), account_id="nobody-described-it", **changes)).encode()
    headers = {"authorization": f"Bearer {where['api_key']}", "content-type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{where['http']}/v1/authorizations", body, headers), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


async def codes(where: dict[str, str]) -> dict[str, str]:
    """Field 39 of each card over ISO 8583."""
    host, _, port = where["iso8583"].partition(":")
    line = Host(Codec(dialect_of("1987-ascii")), "binary2", *await asyncio.open_connection(host, int(port)))
    now, found = time.gmtime(), {}
    at = {"f7": time.strftime("%m%d%H%M%S", now), "f12": time.strftime("%H%M%S", now), "f13": time.strftime("%m%d", now)}
    for number, card in enumerate(CARDS, 1):
        part = TAKES_PART if card.answer == PARTIAL else None
        own = fields_of(**at, f2=card.number, f11=f"{number:06}", f37=f"{number:012}", f60=part, f102=None)
        found[card.number] = await line.code("0100", own)
    line.writer.close()
    return found


def test_the_sandbox_of_the_command_does_what_the_table_says(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    its_settings(Settings(), folder)
    shutil.copytree(trained, folder / "registry")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")} | {"HOLDFAST_MODEL_KEY": MODEL_KEY}
    command = [sys.executable, "-m", "streams.cli", "sandbox", "--data", str(folder), "--iso8583", str(a_free_port()), "--json"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=log, text=True) as sandbox,
    ):
        try:
            assert sandbox.stdout is not None
            line = sandbox.stdout.readline()
            assert line, (tmp_path / "log").read_text()[-3000:]
            where = json.loads(line)
            heard = {}
            for card in CARDS:
                sent = {"transaction_id": f"http-{card.number[6:]}", "card_number": card.number, "partial_allowed": card.answer == PARTIAL}
                status, answer = asked(where, **sent)
                heard[card.number] = said(status, answer), code_of(answer)
            assert heard == {card.number: (http_says(card), FIELD_39[card.answer].v1987) for card in CARDS}
            assert asyncio.run(codes(where)) == {card.number: FIELD_39[card.answer].v1987 for card in CARDS}
            _, approved = asked(where, transaction_id="again", card_number=CARDS[0].number)
            assert approved["held_minor"] == 1_000
            checking = [sys.executable, "-m", "streams.cli", "check", "--wait", "60"]
            done = subprocess.run(checking, cwd=ROOT, env=environ | {"HOLDFAST_DATA_DIR": str(folder)}, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        finally:
            sandbox.send_signal(signal.SIGINT)
            assert sandbox.wait(60) == 0, (tmp_path / "log").read_text()[-3000:]


@pytest.mark.parametrize("door", ["http", "iso8583"])
def test_a_port_that_is_taken_is_refused_before_a_model_is_trained(tmp_path: Path, door: str) -> None:
    folder = tmp_path / "sandbox"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = {"iso8583": str(a_free_port())} | {door: str(port)}
        command = [sys.executable, "-m", "streams.cli", "sandbox", "--data", str(folder), *(f"--{name}={value}" for name, value in ports.items())]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert f"--{door}: port {port} of 127.0.0.1 is taken" in done.stderr
    assert "trained" not in done.stderr
    assert not (folder / "registry").exists()
