"""Models and policies are promoted and rolled back under load by both doors: no request fails, none is scored by half a model, all converge."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer

from features.catalogue import CATALOGUE
from models.artefact import ARRAYS, CARD
from models.governance import control_of
from models.registry import Registry, default_policy_text
from schemas.avro import decode, encode
from schemas.decision import Decision
from schemas.governance import Act, Kind, Move, Tier
from schemas.topics import DEAD_LETTERS, DECISIONS, TRANSACTIONS
from streams.bus import read_topic
from streams.control import told_once
from streams.folder import keys_of
from streams.governance import brought_up, done
from streams.settings import Settings
from streams.stack import Stack, running
from tests.bench.walk import transactions
from tests.conftest import MODEL_KEY

pytestmark = pytest.mark.integration

CONVERGED_MS = 5_000
BETWEEN_S = 6.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Iterator[Stack]:
    """The two processes that decide, on a registry of their own."""
    data = tmp_path_factory.mktemp("swap")
    shutil.copytree(trained, data / "registry")
    settings = Settings(data_dir=data, http_port=0, unknown_account="hold", request_deadline_ms=5_000, model_key=MODEL_KEY)
    with running(settings, apps=("authorize", "score", "hold")) as stack:
        yield stack


def registry_of(stack: Stack) -> Registry:
    """The registry with the key to sign."""
    settings = stack.settings.changed(model_key=MODEL_KEY)
    return Registry(settings.registry_dir, keys_of(settings))


def another_model(registry: Registry, folder: Path) -> str:
    """The champion with two weights exchanged: another score for nearly every payment. It is approved."""
    place = folder / "models" / str(registry.champion_id())
    card = json.loads((place / CARD).read_bytes())
    first, second, *_ = card["members"]
    first["weight"], second["weight"] = second["weight"], first["weight"]
    made = folder / "made"
    made.mkdir()
    (made / CARD).write_text(json.dumps(card))
    shutil.copy(place / ARRAYS, made / ARRAYS)
    model_id = registry.register(made)
    now_ms = time.time_ns() // 1_000_000
    done(registry.move(Kind.MODEL, model_id, Act.REGISTER, "ana", "weights exchanged", now_ms))
    done(registry.move(Kind.MODEL, model_id, Act.VALIDATE, "ben", "a test", now_ms, figures={"against_champion_low": 0.0}))
    done(registry.move(Kind.MODEL, model_id, Act.APPROVE, "cleo", "a test", now_ms, tier=Tier.LOW))
    return model_id


class Load:
    """Payments by both doors, until the block ends."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.failures, self.answered, self.sent = stack, list[str](), 0, 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._http, args=(n,)) for n in range(2)] + [threading.Thread(target=self._topic)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _http(self, number: int) -> None:
        """One request after the other, none asked again."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.stack.settings.http_port, timeout=20)) as connection:
            for txn in transactions(50_000, f"swap-h{number}", time.time_ns() // 1_000_000):
                if self._over.is_set():
                    return
                try:
                    connection.request("POST", "/v1/authorizations", msgspec.json.encode(txn), {"content-type": "application/json"})
                    response = connection.getresponse()
                    content = response.read()
                    if response.status != 200:
                        self.failures.append(f"{response.status} {content[:200]!r}")
                except (OSError, http.client.HTTPException) as error:
                    self.failures.append(repr(error))
                    connection.close()
                self.answered += 1
                time.sleep(0.005)

    def _topic(self) -> None:
        producer = Producer({"bootstrap.servers": self.stack.settings.kafka_bootstrap, "acks": "all", "partitioner": "murmur2_random"})
        for txn in transactions(50_000, "swap-t", time.time_ns() // 1_000_000):
            if self._over.is_set():
                break
            producer.produce(TRANSACTIONS.name, encode(txn), txn.account_id.encode())
            producer.poll(0)
            self.sent += 1
            time.sleep(0.01)
        assert producer.flush(30) == 0


def champion_told(stack: Stack, kind: Kind, item_id: str, act: Act) -> Move:
    """Another one decides: in the history, and told on the topic."""
    registry = registry_of(stack)
    move = done(registry.move(kind, item_id, act, "dora", "under load", time.time_ns() // 1_000_000))
    told_once(stack.settings, control_of(move, None))
    return move


def decisions(stack: Stack) -> list[Decision]:
    """All that the log holds."""
    return [decode(Decision, message.value) for batch in read_topic(stack.settings, DECISIONS) for message in batch]


def test_a_swap_under_load_fails_no_request_and_every_process_follows(stack: Stack) -> None:
    registry = registry_of(stack)
    first = str(registry.champion_id())
    second = another_model(registry, stack.settings.registry_dir)
    plain = registry.put_policy(default_policy_text().replace('"default"', '"plain"'))
    strict = registry.put_policy(default_policy_text().replace('"default"', '"strict"').replace("review_above = 0.50", "review_above = 0.40"))
    with Load(stack) as load:
        time.sleep(2)
        moves = []
        for kind, item_id, act in ((Kind.MODEL, second, Act.PROMOTE), (Kind.MODEL, first, Act.ROLL_BACK)):
            moves.append(champion_told(stack, kind, item_id, act))
            time.sleep(BETWEEN_S)
        for policy_id in (plain, strict):
            brought_up(registry, Kind.POLICY, policy_id, "only the folder says it", time.time_ns() // 1_000_000)
            moves.append(registry.inventory().moves[-1])
            time.sleep(BETWEEN_S)
        moves.append(champion_told(stack, Kind.POLICY, plain, Act.ROLL_BACK))
        time.sleep(BETWEEN_S)
    time.sleep(2)
    made = decisions(stack)
    by_door = {topic: [d for d in made if d.source_topic == topic] for topic in ("http", TRANSACTIONS.name)}
    print(f"\nswap under load: {load.answered} requests by HTTP, {load.sent} by topic, {len(made)} decisions, failures = {len(load.failures)}")
    assert load.failures == []
    assert sum(len(batch) for batch in read_topic(stack.settings, DEAD_LETTERS)) == 0
    assert min(load.answered, load.sent, *map(len, by_door.values())) > 300
    for number, move in enumerate(moves):
        until = moves[number + 1].at_ms if number + 1 < len(moves) else made[-1].decided_at_ms + 1
        for door, given in by_door.items():
            span = [d for d in given if move.at_ms < d.decided_at_ms < until]
            others = [d.decided_at_ms - move.at_ms for d in span if move.item_id not in (d.model_id, d.policy_id)]
            print(f"  {move.act} of a {move.kind}: {door} converged after {max(others, default=0)} ms ({len(span)} decisions)")
            assert max(others, default=0) < CONVERGED_MS
            assert len(others) < len(span), "it has taken over"
    assert {d.model_id for d in made} == {first, second}
    for model_id in (first, second):
        mine = [d for d in made if d.model_id == model_id]
        vectors = np.array([np.frombuffer(d.vector) for d in mine])
        assert vectors.shape[1] == len(CATALOGUE.names)
        scores = np.rint(registry.load(model_id).scores(vectors) * 1000)
        assert scores.tolist() == [d.score for d in mine], "each decision's score is the whole of the model that it names"
