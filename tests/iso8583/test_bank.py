"""A bank's side on j8583, which none of us wrote, against the whole system; and that no card number sent to a door is anywhere behind it."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow.dataset as ds
import pytest
from redis import Redis

from models.hold import UnknownAccount
from schemas.avro import decode
from schemas.hold import HoldEvent, HoldState
from schemas.topics import CLEARINGS, DEAD_LETTERS, DECISIONS, HOLDS, Topic
from streams.answers import message_in
from streams.authorize.codec import Codec, Fields, Message
from streams.authorize.dialect import dialect_of
from streams.authorize.iso8583 import HEADERS
from streams.bus import read_topic
from streams.check import check_books
from streams.clock import clock_ms
from streams.stack import ROOT, Stack
from tests.iso8583.host import Host, Scene, about, at_the_gateway, fields_of
from tests.walk.test_http import a_request

pytestmark = pytest.mark.integration
REQUESTS = 1_000
SEEDED = int(os.environ.get("TESTS_SEEDED_CARDS", "200"))
"""How many cards the search for card numbers sends through both doors; 10,000 take some minutes."""

AT_ONCE, LINES = 70, 8
"""Messages of ISO 8583 that are in flight together (seven are of one card), and connections of HTTP."""


def pan_of(number: int) -> str:
    """The bank's nth card number, as Bank.java makes it."""
    head = f"411111{number:09}"
    doubled = [int(d) * (2 if i % 2 == 0 else 1) for i, d in enumerate(reversed(head))]
    return f"{head}{-sum(d - 9 if d > 9 else d for d in doubled) % 10}"


def ids(stack: Stack, topic: Topic, name: str) -> set[str]:
    """The ids in a topic. A record that was told again, because nobody knew whether it had arrived, has the same one."""
    return {getattr(decode(topic.record, message.value), name) for batch in read_topic(stack.settings, topic) for message in batch}


def ended(stack: Stack) -> Counter[HoldState]:
    """How many holds were posted, voided, confirmed."""
    events = {}
    for batch in read_topic(stack.settings, HOLDS):
        for message in batch:
            event = decode(HoldEvent, message.value)
            events[event.event_id] = event.state
    return Counter(events.values())


def test_a_bank_on_j8583_has_everything_its_own_way(gateway_stack: Stack, bank: str) -> None:
    command = ["java", "-cp", bank, "Bank", "127.0.0.1", str(gateway_stack.settings.iso8583_port), "ascii", str(REQUESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    print(done.stdout)
    assert done.returncode == 0, (done.stdout[-4000:], done.stderr[-4000:])
    figures = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    approved = int(figures["authorizations"].split("00=")[1].split(",")[0].rstrip("}"))
    assert len(ids(gateway_stack, DECISIONS, "transaction_id")) == REQUESTS
    assert len(ids(gateway_stack, CLEARINGS, "clearing_id")) == approved
    end = time.monotonic() + 300
    while sum(ended(gateway_stack)[state] for state in (HoldState.POSTED, HoldState.VOIDED)) < approved:
        assert time.monotonic() < end, ended(gateway_stack)
        time.sleep(1)
    states = ended(gateway_stack)
    assert (states[HoldState.VOIDED], states[HoldState.POSTED]) == (approved // 2, approved - approved // 2)
    assert ids(gateway_stack, DEAD_LETTERS, "dead_letter_id") == set()


def test_packed_digits_are_what_j8583_packs(bank: str) -> None:
    async def play(scene: Scene, host: Host) -> None:
        scene.world.world.unknown_account = UnknownAccount.HOLD
        scene.world.now_ms = clock_ms()
        command = ["java", "-cp", bank, "Bank", "127.0.0.1", str(scene.port), "binary", "200"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()[-4000:]
        assert len(scene.world.decisions) == 200

    at_the_gateway(play, "1987-binary")


def sensitive(number: int) -> dict[str, str]:
    """What the nth card must leave nowhere: number, track 1, track 2, PIN block, chip data."""
    pan = pan_of(50_000 + number)
    return {
        "pan": pan,
        "track1": f"B{pan}^DOE/JANE^3012101000000000{number:04}",
        "track2": f"{pan}=3012101{number:05}",
        "pin": f"{0xA1B2C3D4E5F60000 + number:016X}",
        "chip": f"5A08{pan}9F2608{0xFEDCBA9876540000 + number:016X}",
    }


def seeded() -> Iterator[tuple[str, Fields]]:
    """Messages with card data where it belongs and where it does not, whole and wrong."""
    for n in range(1, SEEDED + 1):
        card = sensitive(n)
        own = {"f11": f"{n:06}", "f37": f"7{n:011}", "f2": card["pan"], "f35": card["track2"], "f45": card["track1"], "f52": card["pin"]}
        fields = fields_of(**own, f55=card["chip"], f102=None, f7=time.strftime("%m%d%H%M%S", time.gmtime()))
        yield "0100", fields
        yield "0100", fields | {102: card["pan"], 11: f"{n + 100_000:06}"}
        yield "0100", fields | {11: f"{n + 200_000:06}", 49: "999"}
        yield "0100", fields | {11: f"{n + 300_000:06}", 7: "9999999999", 48: card["pan"], 103: card["pan"], 44: card["pan"]}
        yield "0100", fields | {4: "000000009999"}
        yield "0300", fields
        yield "0420", about(f"{n:06}", f2=card["pan"], f35=card["track2"], f102=None, f37=f"7{n:011}", f7=fields[7])


async def sends_everything(stack: Stack) -> int:
    """Sends them all, each also broken, some cards at a time; how many answers had any of it."""
    codec = Codec(dialect_of("1987-ascii"))
    host = Host(codec, "binary2", *await asyncio.open_connection("127.0.0.1", stack.settings.iso8583_port))
    told, messages = 0, seeded()
    while lot := list(itertools.islice(messages, AT_ONCE)):
        for mti, fields in lot:
            whole = codec.encode(Message(b"", mti, fields))
            host.send_raw(whole)
            host.send_raw(whole[: 25 + len(whole) // 2])
        numbers = {fields[2].encode() for _, fields in lot}
        for _ in range(2 * len(lot)):
            size = HEADERS["binary2"].length(await host.reader.readexactly(2)) or 0
            answer = await host.reader.readexactly(size)
            told += any(number in answer for number in numbers)
    host.writer.close()
    return told


def over_http(stack: Stack) -> Counter[str]:
    """The same cards through HTTP by several connections."""
    with ThreadPoolExecutor(LINES) as pool:
        return sum(pool.map(lambda first: over_one_line(stack, range(first, SEEDED + 1, LINES)), range(1, LINES + 1)), Counter[str]())


def over_one_line(stack: Stack, numbers: Iterable[int]) -> Counter[str]:
    """Cards through HTTP, where they belong and where they do not; statuses, and `told` for answers that had any of it."""
    counts, now_ms = Counter[str](), clock_ms()
    line = http.client.HTTPConnection(stack.settings.http_host, stack.settings.http_port, timeout=60)
    for n in numbers:
        card = sensitive(n)
        sent = a_request(transaction_id=f"pan-{n}", at_ms=now_ms, account_id=f"pan-{n}", card_number=card["pan"])
        odd = sent | {"transaction_id": f"odd-{n}"}
        bodies = [
            sent,
            sent | {"amount_minor": 1},
            odd | {"track2": card["track2"], "pin": card["pin"], "cvv": "123"},
            odd | {"card_number": card["track2"]},
            odd | {"card_number": ..., "card_token": card["pan"]},
            odd | {"currency": card["track1"]},
            odd | {"at_ms": card["pan"]},
        ]
        asks = [("POST", "/v1/authorizations", json.dumps({k: v for k, v in body.items() if v is not ...})) for body in bodies]
        asks.append(("POST", "/v1/authorizations", asks[0][2][:-9]))
        asks.append(("POST", f"/v1/authorizations/{card['pan']}/capture", json.dumps({"clearing_id": "c"})))
        asks += [("GET", f"/v1/decisions?card={card['pan']}", ""), ("GET", f"/v1/decisions/{card['pan']}", ""), ("GET", f"/{card['track2']}", "")]
        for method, path, body in asks:
            headers = {"authorization": f"Bearer {stack.settings.api_key}", "x-card": card["pan"]}
            line.request(method, path, body.encode() if method == "POST" else None, headers)
            answer = line.getresponse()
            content = answer.read()
            counts[str(answer.status)] += 1
            counts["told"] += bool(leaked(content, {card["pan"]}))
    line.close()
    return counts


def values_in_redis(stack: Stack) -> Iterator[bytes]:
    """Every key and value, and the message in each answer."""
    with Redis(unix_socket_path=stack.settings.redis_url.removeprefix("unix://")) as client:
        for key in client.scan_iter(count=1_000):
            yield key
            if key.startswith(b"ans:"):
                yield message_in(client.get(key) or b"")
            yield {
                b"string": client.get,
                b"hash": lambda k: repr(client.hgetall(k)).encode(),
                b"zset": lambda k: repr(client.zrange(k, 0, -1)).encode(),
                b"set": lambda k: repr(client.smembers(k)).encode(),
                b"list": lambda k: repr(client.lrange(k, 0, -1)).encode(),
            }[client.type(key)](key) or b""


def bytes_behind_the_door(stack: Stack) -> Iterator[tuple[str, bytes]]:
    """What lies on disk (Kafka's log, logs of the apps, whatever they left), in Redis, and in the archive's columns."""
    for path in sorted(stack.settings.data_dir.rglob("*")):
        if path.is_file() and path.suffix not in (".parquet", ".index", ".timeindex"):  # the archive below; Kafka's tables of offsets
            yield str(path), path.read_bytes()
    yield "redis", b"\n".join(values_in_redis(stack))
    if stack.settings.archive_dir.is_dir():
        for batch in ds.dataset(stack.settings.archive_dir, format="parquet", partitioning=None, exclude_invalid_files=True).to_batches():
            yield "archive", repr(batch.to_pylist()).encode()


OF_CARDS = [
    re.compile(rb"(?=(411111[0-9]{10}))"),  # as digits
    re.compile(rb"(?=(\x41\x11\x11[\x00-\x99]{5}))", re.DOTALL),  # packed
]
OF_SECRETS = [re.compile(pattern) for pattern in (rb"DOE/JANE", rb"=3012101", rb"A1B2C3D4E5F6", rb"\xa1\xb2\xc3\xd4\xe5\xf6", rb"FEDCBA987654")]
"""What is in every track 1, track 2, PIN block and cryptogram that was sent."""


def leaked(content: bytes, cards: set[str]) -> list[str]:
    """What of the cards is in there, masked."""
    found = [match[1] for pattern in OF_CARDS for match in pattern.finditer(content)]
    numbers = [digits for raw in found if (digits := raw.decode() if len(raw) == 16 else raw.hex()) in cards]
    return [f"{number[:6]}..{number[-4:]}" for number in numbers] + [str(pattern.pattern) for pattern in OF_SECRETS if pattern.search(content)]


def test_no_card_number_track_or_pin_is_anywhere_behind_the_door(gateway_stack: Stack) -> None:
    assert asyncio.run(sends_everything(gateway_stack)) == 0
    answers = over_http(gateway_stack)
    assert answers["told"] == 0
    assert answers["200"] == SEEDED, answers
    assert answers["409"] == SEEDED, answers
    assert answers["422"] >= 6 * SEEDED, answers
    assert not answers["500"]
    cards = {sensitive(n)["pan"] for n in range(1, SEEDED + 1)} | {pan_of(n) for n in range(1, REQUESTS + 1)}
    assert leaked(f"{sensitive(1)}".encode() + bytes.fromhex(pan_of(1)), cards), "the search finds what is there"
    found, looked = [], 0
    for place, content in bytes_behind_the_door(gateway_stack):
        looked += len(content)
        found += [(place, what) for what in leaked(content, cards)]
    print(f"{len(cards):,} cards, {looked:,} bytes, {len(found)} found; answers of HTTP {dict(answers)}")
    assert found == []
    assert looked > 1_000_000


def test_afterwards_the_books_agree(gateway_stack: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", "check", "--wait", "120"],
        cwd=ROOT,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "HOLDFAST_DATA_DIR": str(gateway_stack.settings.data_dir)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert check_books(gateway_stack.settings).agrees
