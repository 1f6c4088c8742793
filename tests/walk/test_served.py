"""The doors as they are served, over real sockets: TLS 1.3, certificates of clients, JWTs by JWKS, and limits that hold on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from schemas.avro import decode, encode
from schemas.decision import Decision
from schemas.errors import InvalidRecord, SettingsError
from schemas.topics import DECISIONS
from streams.authorize import iso8583, live, protocol, serve, tokens
from streams.authorize.dialect import dialect_of
from streams.authorize.elements import Secrets
from streams.authorize.http import HttpDoor
from streams.authorize.iso8583 import Desk, Gateway, peers_of
from streams.authorize.keys import Grant, Keyring, Scope, bearer, hash_of
from streams.authorize.live import Live
from streams.authorize.serve import http_server
from streams.authorize.tls import listening
from streams.authorize.tokens import tokens_of
from streams.bus import KafkaBus
from streams.pipeline import decide
from streams.settings import Settings
from streams.stack import running
from tests.walk.test_http import a_request
from tests.world import NOON, TestWorld, a_transaction, a_world

KEY = "hf_test"
BEARER = b"authorization: Bearer hf_test\r\n"


class Authority:
    """Who signs certificates, into PEM files of a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.key, self.name = folder, ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._signed(self.name, self.key.public_key(), ca=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> Path:
        """A file with a certificate and its private key."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._signed(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key(), ca=False)
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path = self.folder / f"{name}.pem"
        path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
        return path

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key).serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        return made.sign(self.key, hashes.SHA256())


@dataclass
class Served:
    """A door that listens."""

    port: int
    world: TestWorld
    tls: ssl.SSLContext | None = None
    keys: Keyring = field(default_factory=Keyring)

    async def opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to it."""
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, server_hostname="localhost" if self.tls else None)

    async def answer(self, reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
        """The next answer."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers, json.loads(await reader.readexactly(int(headers["content-length"])))

    async def ask(self, content: bytes) -> tuple[int, dict[str, str], Any]:
        """Sends bytes on a connection of their own and takes the answer."""
        reader, writer = await self.opened()
        try:
            writer.write(content)
            return await self.answer(reader)
        finally:
            writer.close()

    async def authorize(self, body: bytes, headers: bytes = BEARER) -> tuple[int, dict[str, str], Any]:
        """Posts an authorization."""
        return await self.ask(b"POST /v1/authorizations HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b" % (headers, len(body), body))


def served(play: Callable[[Served], Awaitable[None]], settings: Settings | None = None, tls: ssl.SSLContext | None = None) -> None:
    """Runs a scene at the HTTP door."""

    async def main() -> None:
        one = (settings or Settings()).changed(http_port=0)
        test = a_world()
        test.know(balance_minor=10_000)
        test.world.clock_ms = lambda: test.now_ms
        keys = Keyring([Grant(name="all", sha256=hash_of(KEY), scopes=(Scope.AUTHORIZE, Scope.CAPTURE, Scope.READ))])
        server = http_server(HttpDoor(test.world, b"k" * 32, "k1", 5_000, keys, tokens=tokens_of(one), live=Live(one)), one)
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            await asyncio.wait_for(play(Served(server.servers[0].sockets[0].getsockname()[1], test, tls, keys)), 30)
        finally:
            server.should_exit = True
            await running

    asyncio.run(main())


def client(authority: Authority, certificate: Path | None = None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """How a host speaks TLS."""
    context = ssl.create_default_context(cafile=str(authority.path))
    context.maximum_version = newest
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


@pytest.fixture
def bank(tmp_path: Path) -> Authority:
    """The bank's authority."""
    return Authority(tmp_path, "bank")


def with_tls(bank: Authority, **changes: Any) -> Settings:
    """Settings with a certificate of that authority."""
    return Settings(tls_certificate_file=str(bank.issue("server")), **changes)


HEALTH = b"GET /health HTTP/1.1\r\n\r\n"


def test_http_speaks_tls_1_3_and_nothing_older(bank: Authority) -> None:
    async def play(door: Served) -> None:
        assert (await door.authorize(json.dumps(a_request()).encode()))[2]["outcome"] == "approve"
        door.tls = client(bank, newest=ssl.TLSVersion.TLSv1_2)
        with pytest.raises(OSError):  # ssl's own are OSErrors
            await door.opened()
        door.tls = None
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await door.ask(HEALTH)

    served(play, with_tls(bank), client(bank))


def test_where_an_authority_of_clients_is_named_nobody_else_is_heard(bank: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "stranger").issue("host")

    async def play(door: Served) -> None:
        assert (await door.ask(HEALTH))[0] == 200
        for certificate in (None, stranger):
            door.tls = client(bank, certificate)
            with pytest.raises((asyncio.IncompleteReadError, OSError)):
                await door.ask(HEALTH)

    served(play, with_tls(bank, http_client_ca_file=str(bank.path)), client(bank, bank.issue("host")))


def test_http_cuts_who_says_nothing_of_tls(bank: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HANDSHAKE_S", 0.2)

    async def play(door: Served) -> None:
        reader, writer = await door.opened()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()

    served(play, with_tls(bank))


def test_iso8583_cuts_who_says_nothing_of_tls(bank: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iso8583, "FRAME_S_MAX", 0.2)

    async def main() -> None:
        desk = Desk(a_world().world, dialect_of("1987-ascii"), Secrets(b"k" * 32, "k1"), 1_000)
        gateway = Gateway(desk, "binary2", (), listening(with_tls(bank), ""))
        reader, writer = await asyncio.open_connection("127.0.0.1", await gateway.listen("127.0.0.1", 0))
        try:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
        finally:
            writer.close()
            await gateway.close()

    asyncio.run(main())


def test_iso8583_speaks_it_too_to_known_clients_from_known_networks(bank: Authority) -> None:
    settings = with_tls(bank, iso8583_client_ca_file=str(bank.path))

    async def heard(peers: str, tls: ssl.SSLContext) -> bytes:
        desk = Desk(a_world().world, dialect_of("1987-ascii"), Secrets(b"k" * 32, "k1"), 1_000)
        gateway = Gateway(desk, "binary2", peers_of(peers), listening(settings, settings.iso8583_client_ca_file))
        port = await gateway.listen("127.0.0.1", 0)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="localhost")
            echo = b"0800822000000000000004000000000000000101120000000077301"
            writer.write(len(echo).to_bytes(2) + echo)
            size = int.from_bytes(await reader.readexactly(2))
            answer = await reader.readexactly(size)
            writer.close()
            return answer
        except (asyncio.IncompleteReadError, OSError):
            return b"cut"
        finally:
            await gateway.close()

    known = client(bank, bank.issue("host"))
    assert asyncio.run(heard("127.0.0.0/8,::1", known)).startswith(b"0810")
    assert asyncio.run(heard("127.0.0.0/8,::1", client(bank))) == b"cut"
    assert asyncio.run(heard("10.0.0.0/8", known)) == b"cut"


@pytest.mark.parametrize("changes", [{"http_client_ca_file": "ca.pem"}, {"tls_key_file": "k.pem"}, {"tls_certificate_file": "/no/such.pem"}])
def test_half_of_tls_is_refused_and_never_none(changes: dict[str, str]) -> None:
    settings = Settings(**changes)
    with pytest.raises(SettingsError, match="TLS_"):
        listening(settings, settings.http_client_ca_file)


def test_a_peers_setting_that_names_nobody_is_refused() -> None:
    for text in ("", "bank", "10.0.0.1/8"):
        with pytest.raises(SettingsError, match="ISO8583_PEERS"):
            peers_of(text)


class Provider:
    """An identity provider: a signing key, its JWKS in a file, tokens."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jwks.json"
        self.rotate("one")

    def rotate(self, name: str) -> None:
        """Signs with another key from now on."""
        self.name, self.key = name, ec.generate_private_key(ec.SECP256R1())
        public = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        self.path.write_text(json.dumps({"keys": [public | {"kid": name, "alg": "ES256", "use": "sig"}]}))

    def token(self, key: Any = None, algorithm: str = "ES256", **claims: Any) -> bytes:
        """The headers of a request with a token."""
        said = {"sub": "host-1", "iss": "https://id.bank", "aud": "holdfast", "exp": 4_000_000_000, "scope": "authorize read openid"}
        said = {name: value for name, value in (said | claims).items() if value is not None}
        return (
            b"authorization: Bearer "
            + jwt.encode(said, None if algorithm == "none" else key or self.key, algorithm, headers={"kid": self.name}).encode()
            + b"\r\n"
        )


@pytest.mark.parametrize("by_url", [False, True])
def test_a_jwt_of_the_bank_is_a_key_with_the_scopes_that_it_claims(by_url: bool, tmp_path: Path) -> None:
    provider = Provider(tmp_path)
    fetched = []

    class Web(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(provider.path.read_bytes())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    async def play(door: Served) -> None:
        body = json.dumps(a_request()).encode()
        token = provider.token()
        for _ in range(3):
            assert (await door.authorize(body, token))[0] == 200
        assert len(fetched) == by_url
        assert (await door.ask(b"POST /v1/authorizations/t1/capture HTTP/1.1\r\n" + token + b"\r\n"))[2]["error"]["code"] == "scope_missing"
        assert (await door.authorize(body, provider.token(card_bins=["5"])))[2]["error"]["code"] == "card_not_covered"
        assert (await door.authorize(body, provider.token(scope=None, scp=["authorize"])))[0] == 200
        weak = "a shared secret of thirty-two bytes"
        bad = [
            provider.token(exp=1_000_000_000),
            provider.token(exp=None),
            provider.token(aud="another"),
            provider.token(iss="https://id.other"),
            provider.token(sub=None),
            provider.token(card_bins="5"),
            provider.token(card_bins=[]),
            provider.token(card_bins=["4111111"]),
            provider.token(ec.generate_private_key(ec.SECP256R1())),
            provider.token(weak, "HS256"),
            provider.token(algorithm="none"),
            b"authorization: Bearer a.b.c\r\n",
        ]
        with capture_logs() as said:
            assert [(await door.authorize(body, one))[0] for one in bad * 2] == [401] * len(bad) * 2
        reasons = [line["reason"] for line in said if line["event"] == "a token of the issuer cannot be taken"]
        assert reasons == [  # once each, and nothing of those that anybody could have made
            "Signature has expired",
            'Token is missing the "exp" claim',
            "Audience doesn't match",
            "Invalid issuer",
            'Token is missing the "sub" claim',
            "Expected `array`, got `str` - at `$.card_bins`",
            "Expected `array` of length >= 1 - at `$.card_bins`",
            "Expected `str` matching regex '^[0-9]{1,6}\\\\Z' - at `$.card_bins[0]`",
        ]

    web = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    serving = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        source = f"http://127.0.0.1:{web.server_port}/jwks" if by_url else str(provider.path)
        served(play, Settings(jwt_keys=source, jwt_issuer="https://id.bank", jwt_audience="holdfast"))
    finally:
        web.shutdown()
        web.server_close()
        serving.join()


def test_an_issuer_whose_clock_is_a_little_ahead_is_believed_and_a_token_that_ended_is_not(tmp_path: Path) -> None:
    provider, now_s = Provider(tmp_path), int(time.time())
    asked = {
        "a clock ahead": provider.token(iat=now_s + 10, nbf=now_s + 10),
        "another day": provider.token(nbf=now_s + 86_400),
        "just ended": provider.token(exp=now_s - 5),
    }

    async def play() -> None:
        one = tokens.Tokens(provider.path.read_bytes, "https://id.bank", "holdfast")
        with capture_logs() as said:
            taken = {name: await one.of(bearer([tuple(token.strip().split(b": ", 1))]) or b"", now_s * 1000) for name, token in asked.items()}
        assert [name for name, key in taken.items() if key is not None] == ["a clock ahead"]
        assert [line["reason"] for line in said] == ["The token is not yet valid (nbf)", "it has expired"]

    asyncio.run(play())


def test_a_key_that_the_provider_took_back_signs_no_more_and_a_provider_that_is_down_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(tmp_path)
    monkeypatch.setattr(tokens, "FRESH_S", 0.0)
    monkeypatch.setattr(tokens, "AGAIN_S", 0.0)

    async def play(door: Served) -> None:
        body = json.dumps(a_request()).encode()
        old = provider.token()
        assert (await door.authorize(body, old))[0] == 200
        provider.rotate("two")
        assert [(await door.authorize(body, token))[0] for token in (old, provider.token())] == [401, 200]
        provider.path.unlink()
        assert (await door.authorize(body, provider.token()))[0] == 200

    served(play, Settings(jwt_keys=str(provider.path), jwt_issuer="https://id.bank", jwt_audience="holdfast"))


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"keys": 5}', b'{"keys": [5]}', b"\xff", b"[" * 100_000])
def test_what_is_no_jwks_stops_nobody(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider(tmp_path)
    monkeypatch.setattr(tokens, "FRESH_S", 0.0)

    async def play(door: Served) -> None:
        body = json.dumps(a_request()).encode()
        assert (await door.authorize(body, provider.token()))[0] == 200
        provider.path.write_bytes(content)
        assert [(await door.authorize(body, provider.token()))[0] for _ in range(2)] == [200, 200]

    served(play, Settings(jwt_keys=str(provider.path), jwt_issuer="https://id.bank", jwt_audience="holdfast"))


def test_a_provider_that_does_not_answer_keeps_no_payment_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, answers = Provider(tmp_path), threading.Event()
    headers, known = [tuple(provider.token().strip().split(b": ", 1))], provider.path.read_bytes()
    monkeypatch.setattr(tokens, "FRESH_S", 0.0)

    def read() -> bytes:
        assert answers.wait(30)
        return known

    async def play() -> None:
        one = tokens.Tokens(read, "https://id.bank", "holdfast")
        answers.set()
        assert await one.of(bearer(headers) or b"", NOON) is not None
        answers.clear()
        async with asyncio.timeout(2):
            assert await one.of(bearer(headers) or b"", NOON) is not None
        answers.set()

    asyncio.run(play())


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"])
def test_a_provider_that_answers_byte_by_byte_is_not_waited_for(begin: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "FETCH_S", 0.2)
    headers, ended = [tuple(Provider(tmp_path).token().strip().split(b": ", 1))], asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        with contextlib.suppress(ConnectionError):
            for _ in range(60):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()
        ended.set()

    async def play() -> None:
        async with await asyncio.start_server(drip, "127.0.0.1", 0) as web:
            source = f"http://127.0.0.1:{web.sockets[0].getsockname()[1]}/jwks"
            one = tokens_of(Settings(jwt_keys=source, jwt_issuer="https://id.bank", jwt_audience="holdfast"))
            assert one is not None
            async with asyncio.timeout(2):
                with capture_logs() as said:
                    assert await one.of(bearer(headers) or b"", NOON) is None
            assert [line["event"] for line in said] == ["the JWKS cannot be read"]
            assert f"{source}: TimeoutError" in said[0]["reason"]
            await ended.wait()

    asyncio.run(play())


def test_jwts_for_nobody_in_particular_are_refused() -> None:
    with pytest.raises(SettingsError, match="JWT_AUDIENCE"):
        tokens_of(Settings(jwt_keys="jwks.json", jwt_issuer="https://id.bank"))
    with pytest.raises(SettingsError, match="JWT_KEYS"):
        Settings().changed(jwt_keys="http://id.bank/jwks")


def deep(depth: int) -> bytes:
    """JSON so deep."""
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 60_000, 422),
        (b"[" * 30_000 + b"]" * 30_000, 422),
        (deep(9_000), 422),
        (b'{"transaction_id":' + b"[" * 60_000, 422),
        (b'{"attributes":' + b"[" * 60_000, 422),
        (b'{"attributes":[{"name":' + deep(9_000) + b"}]}", 422),
        (b'"' + b"x" * protocol.BODY_BYTES_MAX + b'"', 422),
        (b"\xff" * 1_000, 422),
        (b'{"transaction_id":"\xff"}', 422),
    ],
)
def test_what_is_too_deep_or_too_long_is_refused_and_the_next_is_answered(body: bytes, status: int) -> None:
    async def play(door: Served) -> None:
        answered, _, error = await door.authorize(body)
        assert (answered, error["error"]["type"]) == (status, "invalid_request")
        assert (await door.authorize(json.dumps(a_request()).encode()))[0] == 200

    served(play)


def test_more_headers_than_anyone_needs_are_refused() -> None:
    async def play(door: Served) -> None:
        for count, status in ((protocol.HEADERS_MAX, 200), (protocol.HEADERS_MAX + 1, 431)):
            headers = b"".join(b"x-%d: 1\r\n" % number for number in range(count))
            assert (await door.ask(b"GET /health HTTP/1.1\r\n" + headers + b"\r\n"))[0] == status

    served(play)


def test_who_drips_bytes_is_cut_while_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "REQUEST_S", 0.3)

    async def play(door: Served) -> None:
        slow = [await door.opened() for _ in range(50)]
        for _, writer in slow:
            writer.write(b"POST /v1/authorizations HTTP/1.1\r\n" + BEARER + b"content-length: 10\r\n\r\n")
        for _ in range(4):
            for _, writer in slow:
                writer.write(b" ")
            assert (await door.ask(HEALTH))[0] == 200
            await asyncio.sleep(0.1)
        for reader, writer in slow:
            with contextlib.suppress(ConnectionError):  # it wrote on: the answer may be lost with the connection
                assert (await door.answer(reader))[0] == 408
                assert await reader.read() == b""
            assert reader.at_eof() or reader.exception() is not None
            writer.close()

    served(play)


def test_who_asks_and_does_not_read_is_read_no_more_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "UNREAD_S", 0.3)
    monkeypatch.setattr(protocol, "REQUEST_S", 0.5)

    async def play(door: Served) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as host:
            host.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            host.setblocking(False)
            await loop.sock_connect(host, ("127.0.0.1", door.port))
            asked = b"GET /%s HTTP/1.1\r\n\r\n" % (b"x" * 50) * 500
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 50_000_000:
                    await asyncio.wait_for(loop.sock_sendall(host, asked), 10)
                    sent += len(asked)
            assert sent < 50_000_000, "what it sends is not taken for ever"
            assert (await door.ask(HEALTH))[0] == 200

    served(play)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings that reach a log of decisions."""
    with running(Settings(data_dir=tmp_path_factory.mktemp("log"), http_port=0), broker_name="embedded", apps=()) as stack:
        yield stack.settings


def test_live_decisions_go_on_after_the_last_that_was_heard(log: Settings) -> None:
    decided: list[Decision] = []

    async def told(door: Served, *names: str) -> None:
        bus = KafkaBus(log.changed(produce_timeout_ms=10_000))
        for name in names:
            decision = decode(Decision, (await decide(a_transaction(name, account_id=f"a-{name}"), door.world.world, NOON)).message)
            decided.append(decision)
            await bus.tell(DECISIONS, decision.account_id, encode(decision))
        await bus.close()

    async def heard(door: Served, count: int, headers: bytes = b"") -> tuple[list[str], bytes]:
        """The transactions of so many events of a stream, and the id to go on after."""
        reader, writer = await door.opened()
        writer.write(b"GET /v1/decisions/stream HTTP/1.1\r\n" + BEARER + headers + b"\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        assert b"content-type: text/event-stream" in head
        begins = await reader.readuntil(b"\n\n")
        assert begins.startswith(b"retry: 1000\nid: ")
        found, last = list[str](), begins[len(b"retry: 1000\nid: ") : -2]
        while len(found) < count:
            event = (await reader.readuntil(b"\n\n")).decode().splitlines()
            fields = dict(line.split(": ", 1) for line in event if line)
            found.append(json.loads(fields["data"])["transaction_id"])
            last = fields["id"].encode()
        writer.close()
        return found, last

    async def play(door: Served) -> None:
        await told(door, *(f"p{n}" for n in range(5)))  # the topic is there from now on
        first = asyncio.create_task(heard(door, 10))
        await asyncio.sleep(1.0)
        await told(door, *(f"q{n}" for n in range(10)))
        names, last = await first
        assert sorted(names) == [f"q{n}" for n in range(10)]
        await told(door, *(f"r{n}" for n in range(10)))
        assert sorted((await heard(door, 10, b"last-event-id: " + last + b"\r\n"))[0]) == sorted(f"r{n}" for n in range(10))
        _, quiet = await heard(door, 0)
        await told(door, "s")
        assert await heard(door, 1, b"last-event-id: " + quiet + b"\r\n") == (["s"], ANY), "one that heard nothing loses nothing either"
        zero = b".".join([b"0"] * last.count(b".") + [b"0"])
        whole = sorted(decision.transaction_id for decision in decided)
        assert sorted((await heard(door, 26, b"last-event-id: " + zero + b"\r\n"))[0]) == whole
        beyond = b".".join([b"99", *zero.split(b".")[1:]])
        for bad in (b"1", b"x.y", zero + b".0", b"-1" + zero[1:], beyond):
            status, _, error = await door.ask(b"GET /v1/decisions/stream HTTP/1.1\r\n" + BEARER + b"last-event-id: " + bad + b"\r\n\r\n")
            assert (status, error["error"]["param"]) == (422, "last-event-id")

    served(play, log)


def test_a_record_that_is_no_decision_ends_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    class Consumer:
        """A partition in memory, as librdkafka gives it."""

        def __init__(self, *values: bytes | None) -> None:
            self._messages = [
                SimpleNamespace(error=lambda: None, partition=lambda: 0, offset=partial(int, n), value=partial(lambda v: v, value))
                for n, value in enumerate(values)
            ]

        def assign(self, places: object) -> None: ...

        def consume(self, count: int, timeout: float) -> list[SimpleNamespace]:
            taken, self._messages = self._messages, []
            return taken

        def close(self) -> None: ...

    async def play() -> None:
        message = (await decide(a_transaction("p1"), a_world().world, NOON)).message
        monkeypatch.setattr(live, "end_offsets", lambda *_: {0: (0, 0)})
        monkeypatch.setattr(live, "reader", lambda _: Consumer(b"no decision", None, message))
        still = iter((True, False))
        events = await Live(Settings()).begin(None, lambda decision: decision.transaction_id.encode(), lambda: asyncio.sleep(0, next(still)))
        assert [event async for event in events] == [b"retry: 1000\nid: 0\n\n", b"id: 3\nevent: decision\ndata: p1\n\n"]

    asyncio.run(play())


def test_a_stream_does_not_go_on_behind_what_the_log_has_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        monkeypatch.setattr(live, "end_offsets", lambda *_: {0: (5, 9), 1: (0, 2)})
        streams = Live(Settings())
        for lost in ("4.2", "0.0"):
            with pytest.raises(InvalidRecord, match=r"the oldest is 5\.0"):
                await streams.begin(lost, lambda _: None, lambda: asyncio.sleep(0, True))
        events: Any = await streams.begin("5.0", lambda _: None, lambda: asyncio.sleep(0, False))
        await events.aclose()

    asyncio.run(play())


def test_streams_end_with_the_service_and_are_no_more_than_it_can_bear(log: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STREAMS_MAX", 2)
    asked = b"GET /v1/decisions/stream HTTP/1.1\r\n" + BEARER + b"\r\n"

    def begun(port: int) -> tuple[socket.socket, bytes]:
        """A connection that asked for a stream, and the first line that it got."""
        host = socket.create_connection(("127.0.0.1", port), timeout=20)
        host.sendall(asked)
        return host, host.recv(12)

    async def play(door: Served) -> None:
        opened = [await asyncio.to_thread(begun, door.port) for _ in range(3)]
        assert [line[9:12] for _, line in opened] == [b"200", b"200", b"503"]
        for host, _ in opened[1:]:
            host.close()
        left.append(opened[0][0])
        while len(left) < 2:  # what ended leaves room, a moment later
            host, line = await asyncio.to_thread(begun, door.port)
            if line[9:12] == b"200":
                left.append(host)
            else:
                host.close()
                await asyncio.sleep(0.05)

    left: list[socket.socket] = []
    served(play, log)  # ends, though two listen
    for host in left:
        while host.recv(65_536):
            pass
        host.close()


def test_past_the_most_connections_those_that_are_here_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CONNECTIONS_MAX", 3)

    async def play(door: Served) -> None:
        here = [await door.opened() for _ in range(3)]
        for reader, writer in here:
            writer.write(HEALTH)
            assert (await door.answer(reader))[0] == 200
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await door.ask(HEALTH)
        for reader, writer in here:
            writer.write(HEALTH)
            assert (await door.answer(reader))[0] == 200
            writer.close()
        await asyncio.sleep(0.05)
        assert (await door.ask(HEALTH))[0] == 200

    served(play)


def test_a_stream_ends_with_the_key_that_it_came_with(log: Settings) -> None:
    async def play(door: Served) -> None:
        bus = KafkaBus(log.changed(produce_timeout_ms=10_000))
        await bus.tell(DECISIONS, "a1", (await decide(a_transaction(), door.world.world, NOON)).message)  # the topic is there from now on
        await bus.close()
        reader, writer = await door.opened()
        writer.write(b"GET /v1/decisions/stream HTTP/1.1\r\n" + BEARER + b"\r\n")
        assert (await reader.readuntil(b"\n\n")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(1.0)
        assert not reader.at_eof()
        door.keys.take(())
        await asyncio.wait_for(reader.read(), 5)
        writer.close()

    served(play, log)
