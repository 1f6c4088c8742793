"""Fuzzes the HTTP door over a World in memory: requests from a grammar, mutated, in pieces. Counts the answers by status."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any, NamedTuple

from models.hold import UnknownAccount
from schemas.transaction import Transaction
from streams.authorize.http import HttpDoor
from streams.authorize.keys import Grant, Keyring, Scope, hash_of
from streams.authorize.openapi import description, page
from streams.authorize.protocol import HttpProtocol
from streams.authorize.routes import ROUTES
from tests.iso8583.fuzz import Wire, is_sound, mutated, warm_up
from tests.walk.test_http import KEY, a_request
from tests.world import a_world

WORLD_OF = 2_000
"""Inputs to one World; then a fresh one, so that memory stays small."""
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**53,
    2**53 + 1,
    2**70,
    1e300,
    0.5,
    "",
    "x" * 300,
    "é€😀",
    "\0",
    "4111111111111111",
    [],
    {},
    [[]],
    {"a": {}},
)
HEADERS = (b"host: h", b"expect: 100-continue", b"holdfast-timing: 1", b"holdfast-deadline-ms: 5000", b"last-event-id: 1.2", b"connection: close")
ODD_HEADERS = (b"holdfast-deadline-ms: " + b"9" * 5_000, b"content-encoding: gzip", b"upgrade: h2c", b"authorization: Bearer \xff\xfe", b"x: \x01")


class Fuzzed(NamedTuple):
    """What became of the inputs, and the longest that one took, seconds of processor time."""

    counts: Counter[str]
    slowest_s: float


class Connection(Wire):
    """What the protocol under test needs of a transport besides."""

    def close(self) -> None:
        """The connection ends."""
        self.cut = True

    def pause_reading(self) -> None:
        """Nothing: whole inputs are put in."""

    def resume_reading(self) -> None:
        """Nothing."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Nothing is known."""
        return default


def an_input(chance: random.Random) -> bytes:
    """A request from the grammar of the door, whole or mutated, or noise."""
    if chance.random() < 0.03:
        return chance.randbytes(chance.randrange(300))
    made = a_whole(chance)
    return made if chance.random() < 0.6 else mutated(chance, made)


def a_whole(chance: random.Random) -> bytes:
    """A request that can be read, of whatever sense."""
    route = chance.choice(ROUTES) if chance.random() < 0.5 else ROUTES[0]
    number = chance.randrange(500)
    path = route.path.replace("{account_id}", f"a{number}").replace("{decision_id}", f"dec_{number}").replace("{transaction_id}", f"t{number}")
    if route.path == "/v1/decisions":
        path += "?" + chance.choice((f"transaction_id=t{number}", f"account=a{number}&limit=3", "card=x&cursor=%00", "limit=%C2%B2", "&&=", ""))
    method = route.method if chance.random() < 0.95 else chance.choice(("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS"))
    body = a_body(chance, route.path, number) if route.method == "POST" else b""
    headers = [header for header in HEADERS if chance.random() < 0.1]
    headers += [b"authorization: Bearer " + chance.choices((b"all", b"few", b"no"), (18, 1, 1))[0]]
    if chance.random() < 0.03:
        headers.append(chance.choice(ODD_HEADERS))
    if body and chance.random() < 0.1:
        return f"{method} {path} HTTP/1.1\r\n".encode() + b"\r\n".join(
            [*headers, b"transfer-encoding: chunked", b"", b"%x" % len(body), body, b"0", b"", b""]
        )
    length = len(body) if chance.random() < 0.98 else chance.choice((0, 1, len(body) + 5, 10**9))
    return f"{method} {path} HTTP/1.1\r\n".encode() + b"\r\n".join([*headers, b"content-length: %d" % length, b"", body])


def a_body(chance: random.Random, path: str, number: int) -> bytes:
    """What is posted there, with fields left out, odd, unknown, or none of JSON."""
    said: dict[str, Any] = (
        {"clearing_id": f"c{number}"}
        if path.endswith(("capture", "reversal"))
        else a_request(transaction_id=f"t{number}", account_id=f"a{number % 50}", amount_minor=chance.randrange(5_000))
    )
    if chance.random() < 0.3:
        said = {name: value for name, value in said.items() if chance.random() > 0.05}
        fields = (*Transaction.__struct_fields__, "card_number", "email", "clearing_id", "final", "cvv")
        for _ in range(chance.choice((1, 1, 3))):
            said[chance.choice(fields)] = chance.choice(ODD)
    body = json.dumps(said).encode()
    return (
        body
        if chance.random() < 0.95
        else chance.choice((b"[" * 9_000, b"{" + body, body[:-1], b"\xff" + body, b"x" * 70_000, mutated(chance, body)))
    )


async def _fuzzed(count: int, seed: int) -> Fuzzed:
    chance, counts, slowest_s = random.Random(seed), Counter[str](), 0.0
    asyncio.get_running_loop().set_exception_handler(lambda _, context: counts.update(("crashed",)))
    for begin in range(0, count, WORLD_OF):
        world = a_world(UnknownAccount.HOLD)
        grants = [
            Grant(name="all", sha256=hash_of("all"), scopes=(Scope.ADMIN,)),
            Grant(name="few", sha256=hash_of("few"), scopes=(Scope.AUTHORIZE, Scope.READ), bins=("5",), per_s=1.0, burst=20),
        ]
        config = SimpleNamespace(loaded_app=HttpDoor(world.world, KEY, "k1", 60_000, Keyring(grants)))
        state = SimpleNamespace(connections=set(), tasks=set(), total_requests=0)
        for _ in range(min(WORLD_OF, count - begin)):
            data, wire, protocol = an_input(chance), Connection(), HttpProtocol(config, state, {})
            cut = chance.randrange(len(data)) if data and chance.random() < 0.2 else len(data)
            gc.disable()  # a collection of the whole test's garbage is not the door's time
            began = time.process_time()
            protocol.connection_made(wire)
            for part in filter(None, (data[:cut], data[cut:])):
                if not wire.cut:
                    protocol.data_received(part)
                while state.tasks:
                    await asyncio.sleep(0)
            protocol.connection_lost(None)
            slowest_s = max(slowest_s, time.process_time() - began)
            gc.enable()
            answers = STATUS.findall(b"".join(wire.written))
            counts.update(["inputs", *(f"answer {status.decode()}" for status in answers or [b"none"])])
        counts["unsound"] += sum(not is_sound(decision.transaction) for decision in world.decisions)
    return Fuzzed(counts, slowest_s)


def fuzzed(count: int, seed: int) -> Fuzzed:
    """Puts so many inputs to the door."""
    warm_up()
    description(), page()
    return asyncio.run(_fuzzed(count, seed))


def holds(found: Fuzzed, quiet_s_max: float) -> bool:
    """Whether nothing crashed, nothing was answered with 5xx (but for streams, which a door without a log has not), nothing was slow."""
    broken = sum(number for name, number in found.counts.items() if name.startswith("answer 5") and name != "answer 503")
    return not broken and not found.counts["crashed"] and not found.counts["unsound"] and found.slowest_s < quiet_s_max
