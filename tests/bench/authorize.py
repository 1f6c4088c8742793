"""`holdfast bench authorize`: the doors on real Kafka and Redis, every decision durable before its answer, each figure beside its limit.

Open loop: Poisson arrivals, each timed from its scheduled moment, the generator's own stalls beside it. In the same run: a null handler on
the same server (`/health`), and a bare produce-and-wait (acks=all) at the same rate. The curve past capacity is drawn as an SVG file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import uvloop

from schemas.avro import encode
from schemas.topics import TRANSACTIONS
from schemas.transaction import Transaction
from streams.authorize.codec import Codec, Message
from streams.authorize.dialect import dialect_of
from streams.authorize.iso8583 import HEADERS
from streams.bus import KafkaBus, patient
from streams.clock import clock_ms
from streams.settings import Settings
from streams.stack import ROOT, Stack, running
from tests.bench.load import CONNECTIONS_MAX, asking, quantiles_ms
from tests.bench.observed import observed, traced
from tests.bench.pace import arrivals, paced
from tests.bench.walk import Payments, load, pinned, score, scratch, transactions
from tests.collector import Collector, collecting
from tests.iso8583.host import fields_of

PARTS = ("open", "capacity", "iso8583", "typical", "overload", "observed", "score")
DEADLINE_MS = 1_000
STEPS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
"""The curve's rates, as multiples of the capacity measured before."""
AUTHORIZATIONS = "/v1/authorizations"
Figures = dict[str, float]
CONNECTIONS = 64
PER_S_MAX = 12_000
"""No door is asked faster than this in a closed loop: it is what issue 6 aims at."""
WARM_S = 30.0
"""So long a stack is asked before it is measured, for the curve as for the capacity that it is held against: the broker's compilers take half of
a core for about so long."""
LEASE_MS = 5_000
"""No `hold` app confirms and clears here, so this ends holds: an account has a few at a time, as accounts have, and not one of each payment."""
WARM = 500
"""Records that a producer tells before it is measured: a new one is given its number by the broker within half a second."""
CURVE = ROOT / "tests" / "bench" / "overload.svg"


class Goal(NamedTuple):
    """A promise: what was measured, and what it must be at least or at most."""

    name: str
    value: float
    least: float = float("-inf")
    most: float = float("inf")

    @property
    def holds(self) -> bool:
        """Whether it is kept."""
        return self.least <= self.value <= self.most

    def line(self) -> str:
        """For people."""
        asked = f"at least {self.least:,.2f}" if self.least > float("-inf") else f"at most {self.most:,.2f}"
        return f"{self.name:<58} {self.value:>12,.2f}   {asked:<22} {'holds' if self.holds else 'DOES NOT HOLD'}"


class Bodies:
    """Requests that nobody has sent yet, of one history."""

    def __init__(self, prefix: str) -> None:
        self.history = Payments(prefix)

    def more(self, count: int) -> list[bytes]:
        """So many of them."""
        return [msgspec.json.encode(txn) for txn in self.history.more(count)]

    def frames(self, count: int) -> bytes:
        """So many of them as ISO 8583."""
        return iso_frames(self.history.more(count))


def produced(settings: Settings, rate: float, seconds: float) -> dict[str, float]:
    """A bare produce-and-wait of records as large as a decision, open loop: what durability alone costs."""

    async def main() -> dict[str, float]:
        bus, took = KafkaBus(patient(settings)), list[float]()
        value = encode(transactions(1, "p", clock_ms())[0]) * 8
        for number in range(WARM):
            await bus.tell(TRANSACTIONS, f"acc{number}", value)

        async def one(number: int, moment: float) -> None:
            await bus.tell(TRANSACTIONS, f"acc{number}", value)
            took.append(time.perf_counter() - moment)

        now, under_way = time.perf_counter(), set[asyncio.Task[None]]()
        await paced(
            [now + moment for moment in arrivals(rate, seconds, 5)], lambda number, moment: under_way.add(asyncio.create_task(one(number, moment)))
        )
        await asyncio.gather(*under_way)
        await bus.close()
        return quantiles_ms(took)

    return uvloop.run(main())


def opened(door: Settings, bodies: list[bytes], rate: float, seconds: float, *options: str, connections: int = CONNECTIONS) -> Figures:
    """An open loop at this rate."""
    return offered(door, bodies, "--connections", str(connections), "--seconds", str(seconds), "--rate", str(rate), *options)


def offered(door: Settings, bodies: list[bytes], *options: str) -> Figures:
    """What a load on the service of these settings measured."""
    return load(door.http_port, bodies, *options, api_key=door.api_key)


def warmed(stack: Stack, bodies: Bodies, seconds: float) -> None:
    """Keeps its service on one core, and asks it all that it can answer: then what it runs is loaded, and the broker's machine code is made."""
    pinned(stack.part("authorize").pid)
    offered(stack.settings, bodies.more(int(PER_S_MAX * seconds)), "--connections", str(CONNECTIONS), "--seconds", str(seconds))


def overloaded(door: Settings, bodies: Bodies, rate: float, seconds: float) -> Figures:
    """An open loop by two generators together: one cannot ask fast enough."""
    each = bodies.more(int(rate * seconds * 1.1) + 100)

    def generate(lot: list[bytes]) -> Figures:
        return opened(door, lot, rate / 2, seconds, connections=CONNECTIONS_MAX)

    with ThreadPoolExecutor() as both:
        halves = list(both.map(generate, (each[::2], each[1::2])))
    summed = {name: sum(half[name] for half in halves) for name in ("per_s", "asked_per_s", "good_per_s", "failed")}
    return summed | {name: max(half[name] for half in halves) for name in ("good_p99_ms", "p99_ms", "stall_ms")}


def iso_frames(payments: Sequence[Transaction]) -> bytes:
    """Payments as frames of the default dialect, one after the other: the same cards, times and merchants."""
    codec, header = Codec(dialect_of("1987-ascii")), HEADERS["binary2"]
    made = (iso_fields(number, txn) for number, txn in enumerate(payments))
    return b"".join([header.framed(codec.encode(Message(b"", "0100", fields))) for fields in made])


def iso_fields(number: int, txn: Transaction) -> dict[int, str]:
    """The elements of a payment."""
    at, card = time.gmtime(txn.at_ms / 1000), int(txn.account_id.removeprefix("acc"))
    sent = {"f7": time.strftime("%m%d%H%M%S", at), "f12": time.strftime("%H%M%S", at), "f13": time.strftime("%m%d", at)}
    shop = {"f41": f"{(txn.terminal_id or '')[:8]:8}", "f42": f"{(txn.merchant_id or '')[:15]:15}"}
    entry = {"f22": {"card_present": "051", "contactless": "071", "ecommerce": "810"}[txn.kind]}
    named = {"f2": f"40000012{card:08}", "f4": f"{txn.amount_minor:012}", "f11": f"{number % 1_000_000:06}", "f37": f"{number:012}"}
    return fields_of(**sent, **shop, **entry, **named, f102=txn.account_id)


def iso_closed(port: int, frames: bytes, seconds: float) -> dict[str, float]:
    """The ISO 8583 door in a closed loop."""
    command = [sys.executable, "-m", "tests.bench.load_iso", str(port), "--connections", str(CONNECTIONS), "--seconds", str(seconds)]
    ran = subprocess.run(command, input=frames, capture_output=True, cwd=ROOT, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stderr.decode())
    figures: dict[str, float] = json.loads(ran.stdout)
    return figures


def stops(door: Settings, bodies: list[bytes]) -> dict[str, float]:
    """Where the time of single requests goes, as their answers say: mean milliseconds of each stop."""
    sums: dict[str, float] = {}
    for body in bodies:
        request = urllib.request.Request(f"http://127.0.0.1:{door.http_port}{AUTHORIZATIONS}", body, asking(door.api_key) | {"Holdfast-Timing": "1"})
        with urllib.request.urlopen(request) as answer:
            for part in answer.headers["server-timing"].split(", "):
                stop, _, took = part.partition(";dur=")
                sums[stop] = sums.get(stop, 0.0) + float(took) / len(bodies)
    return {stop: round(took, 3) for stop, took in sums.items()}


def doors(stack: Stack, args: argparse.Namespace, collector: Collector) -> dict[str, Any]:
    """All that is asked for of one service on one core."""
    door, pid = stack.settings, stack.part("authorize").pid
    bodies, seconds = Bodies("b"), args.seconds
    warmed(stack, bodies, args.warm_seconds)
    found: dict[str, Any] = {"rate_per_s": args.rate, "stops_ms": stops(door, bodies.more(50))}
    if "open" in args.only:
        found["null"] = opened(door, [], args.rate, seconds, "--path", "/health")
        found["produce"] = produced(stack.settings, args.rate, seconds)
        found["authorize"] = opened(door, bodies.more(int(args.rate * seconds * 1.2)), args.rate, seconds)
    if "capacity" in args.only:
        before = sum(psutil.Process(pid).cpu_times()[:2])
        found["closed"] = offered(door, bodies.more(int(PER_S_MAX * seconds)), "--connections", str(CONNECTIONS), "--seconds", str(seconds))
        found["cpu_us"] = (sum(psutil.Process(pid).cpu_times()[:2]) - before) / found["closed"]["count"] * 1e6
    if "iso8583" in args.only:
        found["iso8583"] = iso_closed(door.iso8583_port, bodies.frames(int(PER_S_MAX * seconds)), seconds)
    if "typical" in args.only:
        found["typical"] = typical(stack.settings.redis_url, bodies.more(int(300 * seconds)), min(seconds, 20))
    if "observed" in args.only:
        found["observed"] = observed(stack, collector, bodies.history, args.turns, min(seconds, args.step_seconds))
    return found


def curve(door: Settings, capacity: float, seconds: float, warm_s: float) -> list[Figures]:
    """Past capacity, each step on a stack of its own: what one leaves in Redis, and in the file that Redis rewrites then, is not the next one's."""
    steps = []
    for step in STEPS:
        own = door.changed(data_dir=door.data_dir / f"at_{step}", iso8583_port=_free_port())
        with running(own, broker_name="real", apps=("authorize",)) as stack:
            bodies = Bodies("o")
            warmed(stack, bodies, warm_s)
            steps.append({"times": step} | overloaded(stack.settings, bodies, capacity * step, seconds))
    return steps


def typical(redis_url: str, bodies: list[bytes], seconds: float) -> dict[str, float]:
    """A typical stack (`tests.bench.typical`) in the same closed loop, on one core and the same Redis."""
    port = _free_port()
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # on one core OpenMP's threads wait for one another far longer than they work
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.typical", str(port), redis_url], cwd=ROOT, env=one_thread)
    try:
        for _ in range(1_200):
            if process.poll() is not None:
                raise RuntimeError("the typical stack ended before it listened")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        pinned(process.pid)
        return load(port, bodies, "--connections", "32", "--seconds", str(seconds), api_key="")
    finally:
        process.terminate()
        process.wait()


def drawn(found: dict[str, Any], path: Path) -> None:
    """The overload curve: asked against answered, and the answered ones' p99."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    asked = [row["asked_per_s"] for row in found["overload"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(asked, [row["good_per_s"] for row in found["overload"]], marker="o")
    left.plot(asked, asked, linestyle=":", color="grey")
    left.axhline(found["closed"]["per_s"], linestyle="--", color="grey")
    left.set(xlabel="asked /s", ylabel="answered 200 /s", title="goodput (dashed: capacity)", ylim=(0, found["closed"]["per_s"] * 1.5))
    right.plot(asked, [row["good_p99_ms"] for row in found["overload"]], marker="o")
    right.axhline(DEADLINE_MS, linestyle="--", color="grey")
    right.set(xlabel="asked /s", ylabel="p99 of those answered, ms", title="latency (dashed: deadline)")
    figure.tight_layout()
    figure.savefig(path)


def goals(found: dict[str, Any]) -> list[Goal]:
    """The promises of issue 6, as far as they are measured here and were asked for."""
    made = []
    if "authorize" in found:
        one, floor = found["authorize"], {q: found["null"][q] + found["produce"][q] for q in ("p50_ms", "p99_ms")}
        made += [
            Goal(f"p50 at {found['rate_per_s']:.0f}/s, ms", one["p50_ms"], most=2),
            Goal(f"p99 at {found['rate_per_s']:.0f}/s, ms", one["p99_ms"], most=8),
            Goal(f"p99.9 at {found['rate_per_s']:.0f}/s, ms", one["p999_ms"], most=25),
            Goal("p50 over null handler and bare produce", one["p50_ms"] / floor["p50_ms"], most=2),
            Goal("p99 over null handler and bare produce", one["p99_ms"] / floor["p99_ms"], most=2),
            Goal("not answered 200", one["failed"], most=0),
        ]
    if "closed" in found:
        capacity = found["closed"]["per_s"]
        made += [Goal("capacity of one core, /s", capacity, least=8_000), Goal("at capacity not answered 200", found["closed"]["failed"], most=0)]
        if "typical" in found:
            made.append(Goal("capacity over that of a typical stack", capacity / found["typical"]["per_s"], least=250))
        if "iso8583" in found:
            made.append(Goal("ISO 8583 over HTTP", found["iso8583"]["per_s"] / capacity, least=0.8))
        if "overload" in found:
            most = found["overload"][-1]
            made += [
                Goal("goodput at 3 times capacity, over capacity", most["good_per_s"] / capacity, least=0.8),
                Goal("p99 of those answered at 3 times capacity, ms", most["good_p99_ms"], most=DEADLINE_MS),
            ]
    if "observed" in found:
        made.append(Goal("metrics, tracing at 1 % and logs: processor time over none", found["observed"]["cpu_over_none"], most=1.1))
    if "score" in found:
        made += [
            Goal("`score`, one worker, /s", found["score"]["score_per_s"], least=10_000),
            Goal("`score` over an app that does nothing", found["score"]["score_over_limit"], least=0.55),
        ]
    return made


def asked_parts(text: str) -> frozenset[str]:
    """The parts that a list names, and those that they are measured against. ArgumentTypeError for what is none."""
    parts = frozenset(text.split(","))
    if unknown := parts - set(PARTS):
        raise argparse.ArgumentTypeError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return parts | ({"capacity"} if parts & {"typical", "iso8583", "overload"} else frozenset())


def authorize(argv: list[str], settings: Settings) -> int:
    """`holdfast bench authorize [--only PARTS] [--seconds S] [--json]` and more: exit status 0 if every goal that was measured holds."""
    parser = argparse.ArgumentParser(prog="holdfast bench authorize", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="length of each part (default %(default)s)")
    parser.add_argument("--step-seconds", type=float, default=10, help="length of each step of the overload curve, at most")
    parser.add_argument("--warm-seconds", type=float, default=WARM_S, help="how long all is under load before it is measured (default %(default)s)")
    parser.add_argument("--rate", type=float, default=1_000, help="of the open loop, a second")
    parser.add_argument("--score", type=int, default=100_000, metavar="N", help="transactions of the `score` agent's backlog; 0: leave it out")
    parser.add_argument("--plot", type=Path, default=CURVE, help="where the overload curve is drawn")
    parser.add_argument("--only", type=asked_parts, default=frozenset(PARTS), metavar="A,B", help=f"parts to measure, of {', '.join(PARTS)}")
    parser.add_argument("--turns", type=int, default=8, help="pairs of turns with and without metrics, tracing and logs")
    parser.add_argument("--registry", type=Path, metavar="DIR", help="whose champion decides (default: a first model is trained)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    args = parser.parse_args(argv)
    from streams.lab import ensure_champion

    with scratch() as folder, collecting() as collector:
        registry = args.registry or folder / "registry"
        secret = settings.model_key or "be" * 32
        own = settings.changed(model_key=secret, data_dir=folder, registry_dir=registry, http_port=0, unknown_account="hold", hold_lease_ms=LEASE_MS)
        ensure_champion(own, lambda text: print(text, file=sys.stderr))
        iso = own.changed(data_dir=folder / "doors", registry_dir=registry, request_deadline_ms=DEADLINE_MS, iso8583_port=_free_port())
        with running(traced(iso, collector), broker_name="real", apps=("authorize",)) as stack:
            found = doors(stack, args, collector)
        if "overload" in args.only:
            step_s = min(args.seconds, args.step_seconds)
            found["overload"] = curve(iso.changed(data_dir=folder / "past"), found["closed"]["per_s"], step_s, args.warm_seconds)
        if args.score and "score" in args.only:
            found["score"] = score(own.changed(data_dir=folder / "score", registry_dir=registry), args.score)
    if "overload" in found:
        drawn(found, args.plot)
    said = goals(found)
    print("where the time of one request goes, ms:", found["stops_ms"])
    for name, row in ((name, found[name]) for name in ("null", "produce", "authorize") if name in found):
        stalls = f"  generator's stalls p99 {row['stall_ms']:.2f}, longest {row['stall_max_ms']:.2f}" if "stall_ms" in row else ""
        print(f"{name:<10} p50 {row['p50_ms']:>7.2f}  p99 {row['p99_ms']:>7.2f}  p99.9 {row['p999_ms']:>7.2f} ms{stalls}")
    if "typical" in found:
        print(f"a typical stack answers {found['typical']['per_s']:,.1f}/s, {found['typical']['failed']:.0f} of them not 200")
    if "observed" in found:
        row = found["observed"]
        print(
            f"processor time of a request {row['cpu_us']:,.0f} us, {row['cpu_us_none']:,.0f} without metrics, tracing and logs; "
            f"capacity without over with {row['capacity_of_none_over']:.3f}; {row['lines']:,.0f} lines, {row['traces']:,.0f} traces"
        )
    for row in found.get("overload", ()):
        print(
            f"asked {row['asked_per_s']:>8,.0f}/s ({row['times']:.1f} x)  answered {row['good_per_s']:>8,.0f}/s  p99 {row['good_p99_ms']:>7,.1f} ms"
        )
    print(*[goal.line() for goal in said], sep="\n")
    holds = all(goal.holds for goal in said)
    print("holds" if holds else "does NOT hold")
    if args.json:
        told = {goal.name: {"value": goal.value, "holds": goal.holds} for goal in said}
        print(json.dumps({"goals": told, "holds": holds, **found}))
    return 0 if holds else 1


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
