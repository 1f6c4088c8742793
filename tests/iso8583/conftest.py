"""The bank's program, and a whole system with its ISO 8583 door, on real Kafka and Redis."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.settings import Settings
from streams.stack import ROOT, Stack, running
from tests.first_model import MODEL_KEY

BANK = ROOT / "tests" / "iso8583" / "bank"
KEPT = Path("~/.cache/holdfast/j8583-3.0.0").expanduser()


def a_free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The class path of the bank's program: its libraries fetched with Maven once, as Kafka is, and compiled by the compiler among them."""
    libs = KEPT / "libs"
    if not libs.is_dir():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as draft:
            goal = ["dependency:copy-dependencies", f"-DoutputDirectory={draft}/libs"]
            subprocess.run(["mvn", "-q", "-B", "-C", "-f", str(BANK / "pom.xml"), *goal], stdin=subprocess.DEVNULL, check=True)
            Path(draft, "libs").rename(libs)
    out = tmp_path_factory.mktemp("bank")
    compiler = ["java", "-cp", f"{libs}/*", "org.eclipse.jdt.internal.compiler.batch.Main", "-17", "-warn:none"]
    subprocess.run([*compiler, "-cp", f"{libs / 'j8583-3.0.0.jar'}", "-d", str(out), str(BANK / "Bank.java")], check=True)
    return f"{out}:{libs}/*"


@pytest.fixture(scope="session")
def gateway_stack(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Iterator[Stack]:
    """All apps, with a trained model; accounts that nobody described are held without a funds check."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("gateway"),
        registry_dir=trained,
        http_port=0,
        iso8583_port=a_free_port(),
        unknown_account="hold",
        request_deadline_ms=10_000,
        produce_timeout_ms=5_000,
        model_key=MODEL_KEY,
        log_level="debug",
    )
    with running(settings, broker_name="real") as stack:
        yield stack
