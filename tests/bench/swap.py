"""`holdfast bench swap`: models and policies are swapped under load on real Kafka: no request fails, none is scored by half a model, all converge.

Payments come through every door the whole time (each `authorize`, and the topic) while a model is promoted and rolled back, a challenger gets a
fifth of the cards, and a policy that blocks everybody is promoted, which the breaker takes out. What is counted is read from the log.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from confluent_kafka import Producer

from models.artefact import ARRAYS, CARD
from models.governance import BREAKER, control_of
from models.registry import Registry, default_policy_text
from schemas.avro import decode, encode
from schemas.decision import Decision
from schemas.governance import Act, Kind, Move, State, Tier
from schemas.topics import DEAD_LETTERS, DECISIONS, SECOND_OPINIONS, TRANSACTIONS, Topic
from schemas.transaction import Transaction
from streams.bus import end_offsets, read_tail, read_topic
from streams.clock import clock_ms
from streams.control import told_once
from streams.folder import keys_of
from streams.governance import brought_up, done
from streams.lab import ensure_champion
from streams.settings import Settings
from streams.stack import Stack, running
from tests.bench.features import Check, holds, line
from tests.bench.load import asking
from tests.bench.walk import transactions

CONVERGED_MS_MAX, BROKEN_MS_MAX = 5_000, 15_000
BROKEN_RULE = (
    'rules = [\n    { feature = "behavioural.txn_amount_minor", comparison = "at_least", value = 0, outcome = "block", reason = "everybody" },'
)
ASKED_AGAIN_S, GIVEN_UP_S = 20.0, 15.0
ENOUGH = 3


class Door(NamedTuple):
    """One way in: its name begins the ids of its payments; port 0 is the topic."""

    name: str
    port: int


class Step(NamedTuple):
    """A move, and how long each door went on deciding by what stood before, milliseconds."""

    what: str
    move: Move
    decisions: dict[str, int]
    converged_ms: dict[str, int]


class Load:
    """Payments by every door, until the block ends. A host asks again with the same id where the answer was a 503, as it must; it is counted."""

    def __init__(self, stack: Stack, doors: Sequence[Door], per_s: float) -> None:
        self.failures, self.asked_again, self.sent = list[str](), list[str](), list[str]()
        self._stack, self._over, self._pause_s = stack, threading.Event(), 1 / per_s
        self._threads = [threading.Thread(target=self._http if door.port else self._topic, args=(door,)) for door in doors]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _http(self, door: Door) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", door.port, timeout=ASKED_AGAIN_S)) as connection:
            for txn in transactions(10_000, door.name, clock_ms()):
                if self._over.wait(self._pause_s):
                    return
                self.sent.append(txn.transaction_id)
                if wrong := self._answered(connection, txn):
                    self.failures.append(f"{txn.transaction_id}: {wrong}")

    def _answered(self, connection: http.client.HTTPConnection, txn: Transaction) -> str:
        """Nothing, or why it was not."""
        body = msgspec.json.encode(txn)
        until = time.monotonic() + ASKED_AGAIN_S
        wrong = ""
        while time.monotonic() < until:
            try:
                connection.request("POST", "/v1/authorizations", body, asking(self._stack.settings.api_key))
                response = connection.getresponse()
                content = response.read()
                if response.status == 200:
                    return ""
                wrong = f"{response.status} {content[:200]!r}"
                if response.status != 503:
                    return wrong
            except (OSError, http.client.HTTPException) as error:
                wrong = repr(error)
                connection.close()
            self.asked_again.append(txn.transaction_id)
        return wrong

    def _topic(self, door: Door) -> None:
        producer = Producer({"bootstrap.servers": self._stack.settings.kafka_bootstrap, "acks": "all", "partitioner": "murmur2_random"})
        for txn in transactions(10_000, door.name, clock_ms()):
            if self._over.wait(self._pause_s):
                break
            producer.produce(TRANSACTIONS.name, encode(txn), txn.account_id.encode())
            producer.poll(0)
            self.sent.append(txn.transaction_id)
        if left := producer.flush(ASKED_AGAIN_S):
            self.failures.append(f"{left} payments did not reach the topic")


def another_model(registry: Registry, place: Path, turns: int) -> str:
    """The champion with its members' weights passed on so many times: another score for nearly every payment. It is approved."""

    def passed_on(card: dict[str, Any]) -> None:
        weights = [member["weight"] for member in card["members"]]
        for member, weight in zip(card["members"], (*weights[turns:], *weights[:turns]), strict=True):
            member["weight"] = weight

    return altered(registry, place, passed_on)


def altered(registry: Registry, place: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """The champion with another card, approved."""
    files = place / "models" / str(registry.champion_id())
    card = json.loads((files / CARD).read_bytes())
    change(card)
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / CARD).write_text(json.dumps(card))
        shutil.copy(files / ARRAYS, Path(made) / ARRAYS)
        model_id = registry.register(Path(made))
    if model_id not in registry.inventory().items:
        done(registry.move(Kind.MODEL, model_id, Act.REGISTER, "ana", "another card", clock_ms()))
        done(registry.move(Kind.MODEL, model_id, Act.VALIDATE, "ben", "a test", clock_ms(), figures={"against_champion_low": 0.0}))
    if registry.inventory().items[model_id].state is State.VALIDATED:
        done(registry.move(Kind.MODEL, model_id, Act.APPROVE, "cleo", "a test", clock_ms(), tier=Tier.LOW))
    return model_id


class Swaps:
    """The moves, one after the other, and what each is to lead to."""

    def __init__(self, stack: Stack, doors: Sequence[Door], between_s: float) -> None:
        self._doors = doors
        self.registry = Registry(stack.settings.registry_dir, keys_of(stack.settings))
        self.moves: list[tuple[str, Move]] = []
        self.stack, self._between_s = stack, between_s

    def move(self, what: str, kind: Kind, item_id: str, act: Act, **terms: Any) -> None:
        """Makes it, tells it, and lets payments go on for a while."""
        move = done(self.registry.move(kind, item_id, act, "dora", "under load", clock_ms(), **terms))
        told_once(self.stack.settings, control_of(move, None))
        self.moves.append((what, move))
        until = time.monotonic() + GIVEN_UP_S
        while not all(self._decides(door, move) for door in self._doors) and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(self._between_s)

    def _decides(self, door: Door, move: Move) -> bool:
        """Whether the newest of the log were decided by it there."""
        tail = (decode(Decision, m.value) for batch in read_tail(self.stack.settings, DECISIONS, range(4), 100) for m in batch)
        return sum(move.item_id in (d.model_id, d.policy_id) and d.transaction_id.startswith(door.name) for d in tail) >= ENOUGH


def broken_policy(registry: Registry) -> str:
    """A policy that blocks everybody, approved: nobody looked."""
    policy_id = registry.put_policy(default_policy_text().replace('"default"', '"everybody"').replace("rules = [", BROKEN_RULE, 1))
    done(registry.move(Kind.POLICY, policy_id, Act.REGISTER, "ana", "a slip", clock_ms()))
    done(registry.move(Kind.POLICY, policy_id, Act.VALIDATE, "ben", "a slip", clock_ms()))
    done(registry.move(Kind.POLICY, policy_id, Act.APPROVE, "cleo", "a slip", clock_ms(), tier=Tier.LOW))
    return policy_id


def entered(swaps: Swaps, within_s: float = 30.0) -> Move:
    """The breaker's line of the history, once it is there."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        last = swaps.registry.inventory().moves[-1]
        if last.by == BREAKER:
            return last
        time.sleep(0.2)
    raise AssertionError(f"the breaker did not take out the policy within {within_s} s")


def alarms(stack: Stack) -> int:
    """How often it was said in the journals of those that decide."""
    logs = [log for name in ("authorize", "score") for log in (stack.settings.data_dir / "logs").glob(f"{name}*.log")]
    return sum(log.read_text(errors="replace").count("left its approved band") for log in logs)


def broken(made: Sequence[Decision], swaps: Swaps, line_: Move, alarmed: int) -> dict[str, Any]:
    """How long the policy that blocks everybody decided, and how often the alarm was raised for it."""
    promoted = swaps.moves[-1][1]
    blocked_ms = max((d.decided_at_ms - promoted.at_ms for d in made if d.policy_id == promoted.item_id), default=0)
    return {"breaker_ms": blocked_ms, "breaker_alarms": alarmed, "breaker_why": line_.why}


def read(stack: Stack, topic: Topic, start: dict[int, int]) -> list[bytes]:
    """What the topic has from there on."""
    return [message.value for batch in read_topic(stack.settings, topic, start) for message in batch if message.value]


def ends(stack: Stack, topic: Topic) -> dict[int, int]:
    """Where a topic ends now."""
    return {partition: high for partition, (_, high) in end_offsets(stack.settings, topic, None).items()}


def swapped(stack: Stack, doors: Sequence[Door], per_s: float, between_s: float) -> dict[str, Any]:
    """The figures of all moves under load. The registry is left with the champion that it had."""
    swaps = Swaps(stack, doors, between_s)
    first = str(swaps.registry.champion_id())
    second, third = (another_model(swaps.registry, stack.settings.registry_dir, turns) for turns in (1, 2))
    house_policy(swaps.registry)
    started = {topic: ends(stack, topic) for topic in (DECISIONS, DEAD_LETTERS, SECOND_OPINIONS)}
    alarmed = alarms(stack)
    with Load(stack, doors, per_s) as load:
        time.sleep(1.0)
        swaps.move("promoted", Kind.MODEL, second, Act.PROMOTE)
        swaps.move("rolled back", Kind.MODEL, first, Act.ROLL_BACK)
        swaps.move("challenged", Kind.MODEL, third, Act.CHALLENGE, share=0.2)
        swaps.move("broken", Kind.POLICY, broken_policy(swaps.registry), Act.PROMOTE)
        line_ = entered(swaps)
        time.sleep(between_s + 1)
    done(swaps.registry.move(Kind.MODEL, third, Act.RETIRE, "dora", "the test is over", clock_ms()))
    made = all_made(stack, started[DECISIONS], len(load.sent))
    known = {name: swaps.registry.load(name) for name in (first, second, third)}
    steps = [step(what, move, swaps.moves[n + 1 :], made, doors) for n, (what, move) in enumerate(swaps.moves) if what in ("promoted", "rolled back")]
    return {
        "requests": len(load.sent),
        "failures": len(load.failures),
        "failed": load.failures[:5],
        "asked_again": len(load.asked_again),
        "dead_letters": len(read(stack, DEAD_LETTERS, started[DEAD_LETTERS])),
        "decisions": len({d.decision_id for d in made}),
        "of_no_known_model": sum(d.model_id not in known for d in made),
        "of_half_a_model": half(made, known),
        "converged_ms": {each.what: each.converged_ms for each in steps},
        "decisions_after": {each.what: each.decisions for each in steps},
        **challenge(made, swaps, third),
        "second_opinions": len(read(stack, SECOND_OPINIONS, started[SECOND_OPINIONS])),
        **broken(made, swaps, line_, alarms(stack) - alarmed),
    }


def all_made(stack: Stack, start: dict[int, int], count: int) -> list[Decision]:
    """The decisions on the payments, once so many are there; what there is of them where they do not come."""
    until = time.monotonic() + GIVEN_UP_S
    while True:
        made = [decode(Decision, value) for value in read(stack, DECISIONS, start)]
        if len({d.decision_id for d in made}) >= count or time.monotonic() > until:
            return made
        time.sleep(0.5)


def house_policy(registry: Registry) -> None:
    """A policy that has decided, for the breaker to go back to: the default one."""
    policy_id = registry.put_policy(default_policy_text())
    item = registry.inventory().items.get(policy_id)
    if item is None or not item.decided_since:
        brought_up(registry, Kind.POLICY, policy_id, "the policy of the house", clock_ms())


def step(what: str, move: Move, later: Sequence[tuple[str, Move]], made: Sequence[Decision], doors: Sequence[Door]) -> Step:
    """What a door decided after the move by another model than it names, until the next move."""
    until = later[0][1].at_ms if later else clock_ms()
    counts, converged = {}, {}
    for door in doors:
        span = [d for d in made if move.at_ms < d.decided_at_ms < until and d.transaction_id.startswith(door.name)]
        counts[door.name] = len(span)
        converged[door.name] = max((d.decided_at_ms - move.at_ms for d in span if d.model_id != move.item_id), default=0)
        if all(d.model_id != move.item_id for d in span):
            converged[door.name] = until - move.at_ms
    return Step(what, move, counts, converged)


def half(made: Sequence[Decision], known: dict[str, Any]) -> int:
    """How many decisions have another score than the whole of the model that they name gives their vector."""
    wrong = 0
    for model_id, model in known.items():
        own = [d for d in made if d.model_id == model_id]
        if own:
            scores = np.rint(model.scores(np.array([np.frombuffer(d.vector) for d in own])) * 1000)
            wrong += int((scores != np.array([d.score for d in own], np.float64)).sum())
    return wrong


def challenge(made: Sequence[Decision], swaps: Swaps, third: str) -> dict[str, float]:
    """The challenger's share of the decisions after it was taken over everywhere, and how many cards had two judges then."""
    move = next(move for what, move in swaps.moves if what == "challenged")
    own = [d for d in made if d.decided_at_ms > move.at_ms + 3_000]
    judges: dict[str | None, set[str]] = {}
    for d in own:
        judges.setdefault(d.transaction.card_token, set()).add(d.model_id)
    mine = sum(d.model_id == third for d in own)
    return {"challenger_share": mine / len(own) if own else float("nan"), "cards_of_two_judges": sum(len(who) > 1 for who in judges.values())}


def checks(found: dict[str, Any]) -> list[Check]:
    """What is promised."""
    slowest = max(ms for by_door in found["converged_ms"].values() for ms in by_door.values())
    wrong = ("failures", "dead_letters", "of_no_known_model", "of_half_a_model", "cards_of_two_judges")
    return [
        *((name.replace("_", " "), float(found[name]), "", "at most", 0.0) for name in wrong),
        ("payments without a decision", float(found["requests"] - found["decisions"]), "", "at most", 0.0),
        ("alarms of the breaker", float(found["breaker_alarms"]), "", "at most", 1.0),
        ("the breaker, from promotion to the last block", float(found["breaker_ms"]), "ms", "at most", float(BROKEN_MS_MAX)),
        ("slowest to converge", float(slowest), "ms", "at most", float(CONVERGED_MS_MAX)),
    ]


def swap(argv: list[str], settings: Settings) -> int:
    """Two `authorize`, `score`, and what the log says of them; exit status 0 if all that is promised holds."""
    parser = argparse.ArgumentParser(prog="holdfast bench swap", description=__doc__)
    parser.add_argument("--between", type=float, default=6.0, metavar="S", help="seconds from move to move (default %(default)g)")
    parser.add_argument("--per-second", type=float, default=100.0, metavar="N", help="payments a second and door (default %(default)g)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="hf-bench-") as folder:
        own = settings.changed(data_dir=Path(folder), http_port=0, unknown_account="hold", request_deadline_ms=5_000, produce_timeout_ms=4_000)
        ensure_champion(own, lambda text: None)
        with running(own, broker_name="real", apps=("authorize", "score", "hold")) as stack:
            other = stack.start_another("authorize")
            stack.part("authorize-2").wait_ready(60)
            doors = (Door("swap-a", stack.settings.http_port), Door("swap-b", other.http_port), Door("swap-t", 0))
            found = swapped(stack, doors, args.per_second, args.between)
    return told(found, args.json)


def told(found: dict[str, Any], as_json: bool, say: Callable[[str], None] = print) -> int:
    """Says it all; the exit status."""
    for name, value in found.items():
        say(f"{name.replace('_', ' ')}: {value}")
    held = checks(found)
    for check in held:
        say(line(check))
    if as_json:
        say(json.dumps(found))
    return 0 if all(holds(check) for check in held) else 1
