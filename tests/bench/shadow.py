"""`holdfast bench shadow`: what a shadow model and a shadow policy cost those who decide, on real Kafka and Redis, in turns of one run.

Each turn asks one `authorize` on one core, first in an open loop at a fixed rate (each payment timed from its scheduled moment), then in a closed
loop as fast as it answers: with nobody beside it, with a shadow model, with a shadow policy too, and with nobody once more. A ratio is the median
of the turns' ratios; that of the capacities is of the process's own time for each answer, which does not count what else the machine does. Two
runs with nobody beside are apart too, by what else the machine does: a ratio of times holds if it is not beyond its bound, or not beyond that.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from models.governance import control_of
from models.registry import Registry, default_policy_text
from schemas.governance import Act, Kind, Tier
from streams.clock import clock_ms
from streams.control import told_once
from streams.folder import keys_of
from streams.governance import done
from streams.lab import ensure_champion
from streams.settings import Settings
from streams.stack import Stack, running
from tests.bench.authorize import Bodies
from tests.bench.features import Check, holds, line
from tests.bench.swap import altered
from tests.bench.walk import load, pinned, scratch

NOBODY, MODEL, BOTH, AGAIN = "nobody", "a model", "a model and a policy", "nobody again"
P50_RATIO_MAX, P99_RATIO_MAX = 1.10, 1.10
"""At the fixed rate a payment may take so many times as long with somebody beside as without."""
APART_MAX = 1.30
"""Where two runs with nobody beside are typically farther apart than this, the machine is too busy with other things for the bench to say."""
CAPACITY_RATIO_MIN = 0.90
"""Second opinions have a tenth of the process's time (`streams/opinion.py`): so much of its capacity is left at least."""
TAKEN_OVER_S, DRAINED_S, CONNECTIONS = 20.0, 0.5, 32
Figures = dict[str, float]


def counted(port: int) -> Figures:
    """How many second opinions the process has given and dropped so far, and for which reason."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    given = re.findall(r"^holdfast_second_opinions_total (\S+)", text, re.M)
    dropped = re.findall(r'^holdfast_second_opinions_dropped_total\{why="(\w+)"\} (\S+)', text, re.M)
    return {"given": sum(map(float, given)), "full": 0.0, "log": 0.0, "failed": 0.0} | {why: float(count) for why, count in dropped}


class Beside:
    """Who stands by: shadows of a registry, each told to the running process as a person would tell it."""

    def __init__(self, stack: Stack) -> None:
        self._settings, self._registry = stack.settings, Registry(stack.settings.registry_dir, keys_of(stack.settings))
        self._turn, self._there = 0, list[tuple[Kind, str]]()

    def stand(self, who: str) -> None:
        """Retires who stood by, and lets others stand by in their place: what was retired does not come back."""
        for kind, item_id in self._there:
            self._move(kind, item_id, Act.RETIRE)
        self._there, self._turn = [], self._turn + 1
        if who in (MODEL, BOTH):
            self._there.append((Kind.MODEL, self._model()))
        if who == BOTH:
            self._there.append((Kind.POLICY, self._policy()))
        for kind, item_id in self._there:
            self._move(kind, item_id, Act.SHADOW)

    def _model(self) -> str:
        """The champion itself under another id: as much work as the champion's own."""
        return altered(self._registry, self._settings.registry_dir, lambda card: card["trained"].update(seed=1_000 + self._turn))

    def _policy(self) -> str:
        text = default_policy_text().replace('"default"', f'"turn {self._turn}"')
        policy_id = self._registry.put_policy(text)
        for act, by, terms in ((Act.REGISTER, "ana", {}), (Act.VALIDATE, "ben", {}), (Act.APPROVE, "cleo", {"tier": Tier.LOW})):
            done(self._registry.move(Kind.POLICY, policy_id, act, by, "a bench", clock_ms(), **terms))
        return policy_id

    def _move(self, kind: Kind, item_id: str, act: Act) -> None:
        move = done(self._registry.move(kind, item_id, act, "dora", "a bench", clock_ms()))
        told_once(self._settings, control_of(move, None))


class Door:
    """The service that is asked, and the figures of its second opinions."""

    def __init__(self, stack: Stack, metrics_port: int) -> None:
        self._stack, self._metrics_port, self._bodies = stack, metrics_port, Bodies("w")
        self._process = psutil.Process(stack.part("authorize").pid)

    def asked(self, count: float, *options: str) -> Figures:
        """What a load measured, the process's time for each answer, and how many second opinions were given, and dropped, meanwhile."""
        before, cpu_s = counted(self._metrics_port), sum(self._process.cpu_times()[:2])
        found = load(self._stack.settings.http_port, self._bodies.more(int(count)), *options, api_key=self._stack.settings.api_key)
        after, cpu_s = counted(self._metrics_port), sum(self._process.cpu_times()[:2]) - cpu_s
        found["cpu_us"] = cpu_s / found["count"] * 1e6
        return found | {"not_200": found["failed"]} | {name: after[name] - before[name] for name in after}

    def drain(self) -> None:
        """Returns when second opinions on what was decided before are all given."""
        before, now = Figures(), counted(self._metrics_port)
        while before != now:
            time.sleep(DRAINED_S)
            before, now = now, counted(self._metrics_port)

    def wait(self, wanted: Callable[[Figures], bool]) -> None:
        """Returns when a few payments show it. AssertionError if they do not."""
        until = time.monotonic() + TAKEN_OVER_S
        while not wanted(self.asked(50, "--connections", "2", "--seconds", "1")):
            assert time.monotonic() < until, f"who stands by was not taken over within {TAKEN_OVER_S} s"
            time.sleep(0.5)


def turns(stack: Stack, count: int, rate: float, seconds: float) -> dict[str, list[dict[str, Figures]]]:
    """By who stands by, the figures of each turn: at the fixed rate and as fast as it answers."""
    pinned(stack.part("authorize").pid)
    (metrics_port,) = (seen.ports["metrics"] for seen in stack.parts if seen.name == "authorize")
    door, beside = Door(stack, metrics_port), Beside(stack)
    door.asked(30_000, "--seconds", "3")  # warm
    found: dict[str, list[dict[str, Figures]]] = {NOBODY: [], MODEL: [], BOTH: [], AGAIN: []}
    for turn in range(count):
        for who in (tuple(found), tuple(reversed(found)))[turn % 2]:  # so that who comes first does not always find the quieter machine
            door.drain()
            beside.stand(who)
            door.wait(lambda figures, who=who: (figures["given"] > 0) is (who in (MODEL, BOTH)))  # type: ignore[misc]
            steady = door.asked(rate * seconds * 1.2 + 100, "--rate", str(rate), "--connections", str(CONNECTIONS), "--seconds", str(seconds))
            full = door.asked(8_000 * seconds, "--connections", str(CONNECTIONS), "--seconds", str(seconds))
            found[who].append({"steady": steady, "full": full})
            print(f"turn {turn + 1}, beside: {who}: p99 {steady['p99_ms']:.2f} ms, {full['per_s']:,.0f}/s", file=sys.stderr, flush=True)
    return found


def summed(found: dict[str, list[dict[str, Figures]]]) -> dict[str, dict[str, float]]:
    """By who stands by: medians of the turns, and what was counted in all of them together."""
    told = {}
    for who, each in found.items():

        def over(name: str, part: str, each: list[dict[str, Figures]] = each) -> float:
            return statistics.median(own[part][name] / alone[part][name] for own, alone in zip(each, found[NOBODY], strict=True))

        def apart(name: str, each: list[dict[str, Figures]] = each) -> float:
            ratios = [own["steady"][name] / alone["steady"][name] for own, alone in zip(each, found[NOBODY], strict=True)]
            return statistics.median(max(ratio, 1 / ratio) for ratio in ratios)

        steady, full = [turn["steady"] for turn in each], [turn["full"] for turn in each]
        told[who] = {
            "p50_ms": statistics.median(turn["p50_ms"] for turn in steady),
            "p99_ms": statistics.median(turn["p99_ms"] for turn in steady),
            "stall_ms": statistics.median(turn["stall_ms"] for turn in steady),
            "capacity_per_s": statistics.median(turn["per_s"] for turn in full),
            "capacity_cpu_us": statistics.median(turn["cpu_us"] for turn in full),
            **{f"over_nobodys_{name}": over(name, part) for name, part in (("p50_ms", "steady"), ("p99_ms", "steady"), ("cpu_us", "full"))},
            **{f"apart_{name}": apart(name) for name in ("p50_ms", "p99_ms")},
            "not_200": sum(turn["not_200"] for turn in (*steady, *full)),
            **{f"steady_{name}": sum(turn[name] for turn in steady) for name in ("given", "full", "failed")},
            **{f"full_{name}": sum(turn[name] for turn in full) for name in ("given", "full", "failed")},
        }
    return told


def checks(told: dict[str, dict[str, float]]) -> list[Check]:
    """What is promised: deciding does not wait for who stands by, and under load he is dropped, and that is counted."""
    made = list[Check]()
    p50_max, p99_max = max(P50_RATIO_MAX, told[AGAIN]["apart_p50_ms"]), max(P99_RATIO_MAX, told[AGAIN]["apart_p99_ms"])
    made += [(f"nobody from nobody: {name}", told[AGAIN][f"apart_{name}_ms"], "times", "at most", APART_MAX) for name in ("p50", "p99")]
    for who in (MODEL, BOTH):
        own = told[who]
        made += [
            (f"{who}: p50 over nobody's", own["over_nobodys_p50_ms"], "", "at most", p50_max),
            (f"{who}: p99 over nobody's", own["over_nobodys_p99_ms"], "", "at most", p99_max),
            (f"{who}: capacity over nobody's", 1 / own["over_nobodys_cpu_us"], "", "at least", CAPACITY_RATIO_MIN),
            (f"{who}: given at the rate", own["steady_given"], "", "at least", 1.0),
            (f"{who}: dropped at the rate", own["steady_full"], "", "at most", 0.0),
            (f"{who}: dropped at capacity", own["full_full"], "", "at least", 1.0),
            (f"{who}: failed", own["steady_failed"] + own["full_failed"], "", "at most", 0.0),
        ]
    return [*made, ("not answered 200", sum(each["not_200"] for each in told.values()), "", "at most", 0.0)]


def shadow(argv: list[str], settings: Settings) -> int:
    """`holdfast bench shadow [--turns N] [--rate R] [--seconds S] [--json]`: exit status 0 if each figure holds."""
    parser = argparse.ArgumentParser(prog="holdfast bench shadow", description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="of each of the four (default %(default)s)")
    parser.add_argument("--rate", type=float, default=300, help="of the open loop, a second (default %(default)g)")
    parser.add_argument("--seconds", type=float, default=4, help="length of each part of a turn (default %(default)g)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    parser.add_argument("--registry", type=Path, metavar="DIR", help="whose champion decides, signed with this model key (default: one is trained)")
    args = parser.parse_args(argv)
    with scratch() as folder:
        registry = folder / "registry"
        if args.registry:
            shutil.copytree(args.registry, registry)
        own = settings.changed(model_key=settings.model_key or "be" * 32, data_dir=folder, registry_dir=registry, http_port=0, unknown_account="hold")
        ensure_champion(own, lambda text: print(text, file=sys.stderr))
        with running(own, broker_name="real", apps=("authorize",)) as stack:
            found = turns(stack, args.turns, args.rate, args.seconds)
    told: dict[str, Any] = summed(found)
    for who, own_figures in told.items():
        print(f"beside: {who:<22}" + ", ".join(f"{name.replace('_', ' ')} {figure:,.2f}" for name, figure in own_figures.items()))
    held = checks(told)
    for check in held:
        print(line(check))
    all_hold = all(holds(check) for check in held)
    if args.json:
        print(json.dumps({"rate_per_s": args.rate, "turns": args.turns, "beside": told, "holds": all_hold}))
    return 0 if all_hold else 1
