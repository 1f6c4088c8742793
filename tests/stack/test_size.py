"""What memory takes is what Redis says, by kind; trimming and expiry are seen; and a filled Redis is as serving would have filled it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from redis import Redis

from features.catalogue import CATALOGUE, Catalogue
from features.layout import Cap
from features.online import RedisMemory
from features.profile import profile_write
from schemas.errors import MemoryUnavailable, SettingsError
from streams import features, size
from streams.settings import Settings
from tests.features.stores import a_redis, a_wire
from tests.world import NOON, a_transaction

DAY_MS = 86_400_000
ALLOCATION_STEP = 64
"""Bytes between two sizes that Redis's allocator hands out for a string of a few hundred: which one it took depends on what was free."""


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with a_redis() as url:
        yield url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with size.client_of(Settings(redis_url=redis_url)) as client:
        client.flushall()
        yield client


def served(url: str, catalogue: Catalogue, payments: int, card: str = "crd_k1_1") -> None:
    """So many payments of one card and account, an hour apart, remembered as serving does."""

    async def remembered() -> None:
        async with a_wire(url) as wire:
            memory = RedisMemory(wire, catalogue)
            for n in range(payments):
                await memory.recall(a_transaction(f"{card}-{n}", card_token=card, at_ms=NOON + n * 3_600_000))
                await memory.settle()
            await memory.close()

    asyncio.run(remembered())


def by_kind(sizes: size.Sizes) -> dict[str, size.Size]:
    return {each.kind: each for each in sizes.kinds}


def test_each_kind_is_counted_and_bytes_are_what_redis_says(redis: Redis, redis_url: str) -> None:
    served(redis_url, CATALOGUE, 10)
    served(redis_url, CATALOGUE, 4, "crd_k1_2")
    write = profile_write(CATALOGUE, "account", "a1", "home_country", 1.0, 1)
    assert write is not None
    redis.execute_command(*write)
    redis.set("ans:t1", b"x" * 100, ex=60)
    redis.set("log:00000000:card:crd_k1_1", b"an older layout")
    redis.set("whole", 1)
    found = size.sizes_of(redis, CATALOGUE, 1_000, NOON)
    kinds = by_kind(found)
    assert sorted(kinds) == ["ans", "log:account", "log:card", "log:card (old layout)", "other", "profile:account"]
    cards = [redis.memory_usage(CATALOGUE.log_layouts[0].key(card), samples=0) for card in ("crd_k1_1", "crd_k1_2")]
    card = kinds["log:card"]
    assert (card.keys, card.rows_mean, card.bytes_total, card.bytes_p99) == (2, 7.0, sum(cards), max(cards))
    assert card.row_bytes == CATALOGUE.log_layouts[0].row_bytes
    assert (card.without_ttl, kinds["profile:account"].without_ttl, kinds["ans"].without_ttl) == (0, 1, 0)
    assert card.ttl_days_min == pytest.approx(2 * CATALOGUE.keep_ms / DAY_MS, abs=0.1)
    assert found.exact
    assert found.keys == sum(each.keys for each in found.kinds) == redis.dbsize()


@pytest.mark.parametrize("key", ["ans:t1", "ans:2026-01-31T23:59:58", "txn:urn:uuid:1", "book:a:b:c", "of:account:a:b"])
def test_an_id_with_colons_makes_no_kind_of_its_own(key: str) -> None:
    assert size.kind_of(key.encode(), frozenset()) == key.partition(":")[0]


def test_trimming_is_seen_and_whether_it_cut_what_a_window_would_have_seen(redis: Redis, redis_url: str) -> None:
    short = Catalogue(CATALOGUE.rows, Cap(rows=8, chunk=4))
    served(redis_url, short, 30)
    card = by_kind(size.sizes_of(redis, short, 1_000, NOON + DAY_MS))["log:card"]
    assert card.rows_trimmed > 0
    assert (card.rows_mean or 0) + card.rows_trimmed == 30
    assert (card.logs_trimmed, card.logs_cut) == (1, 1)
    later = by_kind(size.sizes_of(redis, short, 1_000, NOON + 2 * short.longest_ms))["log:card"]
    assert (later.logs_trimmed, later.logs_cut) == (1, 0), "what was trimmed is older than every window by then"


def test_a_sample_estimates_the_whole(redis: Redis) -> None:
    pipe = redis.pipeline()
    for n in range(6_000):
        pipe.set(f"{('ans', 'txn', 'txn')[n % 3]}:{n}", b"x" * 50)
    pipe.execute()
    found = size.sizes_of(redis, CATALOGUE, 2_000, NOON)
    kinds = by_kind(found)
    assert not found.exact
    assert sum(each.sampled for each in found.kinds) == 2_000
    assert kinds["txn"].keys == pytest.approx(4_000, rel=0.1)
    assert kinds["ans"].keys == pytest.approx(2_000, rel=0.2)


@pytest.mark.parametrize("events", [5, 100, 150, 700])
def test_a_filled_redis_takes_what_serving_makes_it_take(redis: Redis, redis_url: str, events: int) -> None:
    size.fill(redis, CATALOGUE, 3, events, NOON, lambda text: None)
    filled = by_kind(size.sizes_of(redis, CATALOGUE, 1_000, NOON))
    assert {kind for kind in filled if kind.startswith("log:")} == {f"log:{each.name}" for each in CATALOGUE.log_entities if not each.log_of}
    assert {kind for kind in filled if kind.startswith("tally:")} == {f"tally:{kind}" for kind in CATALOGUE.tallies}
    assert filled["profile:account"].keys == 3
    redis.flushall()
    served(redis_url, CATALOGUE, events, size._token("card", 0))
    one = by_kind(size.sizes_of(redis, CATALOGUE, 1_000, NOON))["log:card"]
    assert (one.rows_mean, one.rows_trimmed) == (filled["log:card"].rows_mean, filled["log:card"].rows_trimmed / 3)
    assert one.bytes_mean == pytest.approx(filled["log:card"].bytes_mean, rel=0.02, abs=ALLOCATION_STEP)


def test_the_command_says_whether_a_card_takes_too_much(capsys: pytest.CaptureFixture[str]) -> None:
    status = features.command(["size", "--events", "100", "--entities", "50", "--json"], Settings())
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (status, told["card_bytes"] <= told["card_bytes_max"]) == (0, True), "a hundred events of a card fit into 3 KB"
    logs = [f"log:{entity.name}" for entity in CATALOGUE.log_entities if not entity.log_of]
    tallies = [f"tally:{kind}" for kind in CATALOGUE.tallies]
    assert {each["kind"]: each["keys"] for each in told["kinds"]} == dict.fromkeys([*logs, *tallies, "profile:account"], 50)


def test_of_a_cluster_one_node_is_asked_for() -> None:
    with pytest.raises(SettingsError, match=r"HOLDFAST_REDIS_URL: .* one node of a cluster"):
        features.command(["size"], Settings(redis_url="redis+cluster://127.0.0.1:7000,127.0.0.1:7001"))


def test_a_redis_that_does_not_answer_is_said(tmp_path: object) -> None:
    with pytest.raises(MemoryUnavailable):
        features.command(["size"], Settings(redis_url=f"unix://{tmp_path}/none"))


@pytest.mark.parametrize("asked", [("--events", "100000000000"), ("--events", "10001"), ("--entities", "10000001"), ("--entities", "0")])
def test_a_redis_without_end_is_not_filled(asked: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match="--events at most 10,000, --entities 10,000,000"):
        features.command(["size", *asked], Settings())
