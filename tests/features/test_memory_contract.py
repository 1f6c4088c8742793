"""What a memory promises, by name; the same class runs on the dict and on a real Redis."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence

import msgspec
import pytest
from clusters import a_cluster
from histories import histories
from hypothesis import HealthCheck, given, settings
from past_oracle import Arrival
from payments import DAY, HOUR, MINUTE, ON_LOGS, T0, a_payment, number, seen
from stores import a_memory, a_redis, a_wire

from features.backfill import backfill
from features.catalogue import CATALOGUE, Catalogue
from features.columns import columns_of
from features.engine import Look
from features.fact import country_code
from features.layout import Cap
from features.memory import Memory
from features.online import RedisMemory
from schemas.account import AccountEvent, AccountState
from schemas.transaction import Transaction

SHORT = Catalogue(CATALOGUE.rows, Cap(rows=8, chunk=4))
NONE = (-1,) * (len(CATALOGUE.logs) - 1)
"""The positions in all logs but the account's of something that has no other entity."""


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with a_redis() as url:
        yield url


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with a_cluster() as cluster:
        yield cluster.url


@pytest.fixture(params=["redis_url", "cluster_url"])
def url(request: pytest.FixtureRequest) -> str:
    """Where a Redis or a cluster is."""
    return str(request.getfixturevalue(request.param))


class MemoryContract:
    """Each test is a promise."""

    url: str | None = None

    def on(self, scenario: Callable[[Memory], Awaitable[None]], catalogue: Catalogue = CATALOGUE) -> None:
        async def run() -> None:
            async with a_memory(catalogue, self.url) as memory:
                await scenario(memory)

        asyncio.run(run())

    def counts(self, name: str, *payments: Transaction) -> list[float]:
        """What one feature says of each payment, in order."""
        found: list[float] = []

        async def scenario(memory: Memory) -> None:
            found.extend([number(CATALOGUE, await seen(CATALOGUE, memory, txn), name) for txn in payments])

        self.on(scenario)
        return found

    def test_nobody_asked_is_nothing_found(self) -> None:
        async def scenario(memory: Memory) -> None:
            assert await asyncio.wait_for(memory.recall_all(()), 0.2) == []
            assert (await memory.recall(a_payment("1"))).missing == ()

        self.on(scenario)

    def test_a_payment_never_sees_itself(self) -> None:
        assert self.counts("velocity.card_count_7d", a_payment("1"), a_payment("1"), a_payment("2")) == [0, 0, 1]

    def test_windows_are_half_open_to_the_millisecond(self) -> None:
        name = "velocity.card_count_10m"
        end = T0 + 10 * MINUTE
        assert self.counts(name, a_payment("1", T0), a_payment("2", end))[1] == 0
        assert self.counts(name, a_payment("1", T0 + 1), a_payment("2", end))[1] == 1
        assert self.counts(name, a_payment("1", end), a_payment("2", end))[1] == 1
        assert self.counts(name, a_payment("1", end + 1), a_payment("2", end))[1] == 0

    def test_a_late_event_sees_the_window_of_its_own_time(self) -> None:
        late = [a_payment("1", T0), a_payment("2", T0 + DAY), a_payment("3", T0 + HOUR)]
        assert self.counts("velocity.card_count_24h", *late)[2] == 1
        assert self.counts("velocity.card_since_last_s", *late)[2] == 3600

    def test_events_of_one_millisecond_follow_arrival_order(self) -> None:
        berlin, sydney = {"latitude": 52.5, "longitude": 13.4}, {"latitude": -33.9, "longitude": 151.2}
        name = "geographic.card_distance_km"
        here = a_payment("3", T0, **berlin)
        assert self.counts(name, a_payment("1", T0, **berlin), a_payment("2", T0, **sydney), here)[2] > 16_000
        assert self.counts(name, a_payment("1", T0, **sydney), a_payment("2", T0, **berlin), here)[2] == 0

    def test_a_redelivered_payment_meets_the_same_past_and_not_itself(self) -> None:
        async def scenario(memory: Memory) -> None:
            payments = [a_payment(str(n), T0 + n * MINUTE, amount_minor=100 * n) for n in range(20)]
            first = [await seen(CATALOGUE, memory, txn) for txn in payments]
            again = [await seen(CATALOGUE, memory, txn) for txn in payments]
            for one, other in zip(first, again, strict=True):
                assert one.values.tobytes() == other.values.tobytes()
                assert one.positions == other.positions
                assert (one.repeated, other.repeated) == ((), (0, 1, 2))

        self.on(scenario)

    def test_a_decline_counts_once_however_often_it_is_told(self) -> None:
        async def scenario(memory: Memory) -> None:
            declined = a_payment("1")
            await seen(CATALOGUE, memory, declined)
            places = [await memory.decline(declined) for _ in range(3)]
            assert [place[:3] for place in places] == [(1, 1, 1)] * 3
            after = await seen(CATALOGUE, memory, a_payment("2"))
            assert number(CATALOGUE, after, "velocity.card_declines_24h") == 1
            assert number(CATALOGUE, after, "velocity.card_count_24h") == 1
            assert number(CATALOGUE, after, "velocity.card_decline_ratio_24h") == 1
            assert after.positions[:3] == (2, 2, 2)

        self.on(scenario)

    def test_an_entity_that_is_not_given_has_no_position_and_no_numbers(self) -> None:
        async def scenario(memory: Memory) -> None:
            looked = await seen(CATALOGUE, memory, a_payment("1", card_token=None, device_token=None))
            assert looked.positions == (-1, 0, *NONE[1:])
            assert math.isnan(number(CATALOGUE, looked, "velocity.card_count_1h"))
            assert number(CATALOGUE, looked, "device.txn_device_missing") == 1

        self.on(scenario)

    def test_a_log_at_rest_is_as_if_no_row_had_come_twice(self) -> None:
        payments = [a_payment(str(n), T0 + n * MINUTE) for n in range(30)]
        logs: list[bytes] = []

        async def once(memory: Memory) -> None:
            for txn in payments:
                await memory.recall(txn)
            await memory.settle()
            logs.append(await memory.log("card", "c1"))

        async def again(memory: Memory) -> None:
            for number_, txn in enumerate(payments):
                await memory.recall(txn)
                if number_ % 3 == 0:
                    await memory.recall(payments[number_ - number_ % 2])
            await memory.settle()
            logs.append(await memory.log("card", "c1"))

        for catalogue in (CATALOGUE, SHORT):
            self.on(once, catalogue)
            self.on(again, catalogue)
            assert logs[-1] == logs[-2]

    def test_a_full_log_is_trimmed_and_the_vector_says_so(self) -> None:
        async def scenario(memory: Memory) -> None:
            looks = [await seen(SHORT, memory, a_payment(str(n), T0 + n * MINUTE)) for n in range(40)]
            await memory.settle()
            size = SHORT.log_layouts[0].row_bytes
            assert len(await memory.log("card", "c1")) <= (8 + 2 * 4 + 1) * size
            assert [looked.positions[0] for looked in looks] == list(range(40))
            capped = [number(SHORT, looked, "memory.card_log_capped") for looked in looks]
            assert capped == [0.0] * 12 + [1.0] * 28
            assert max(number(SHORT, looked, "velocity.card_count_24h") for looked in looks) == 11

        self.on(scenario, SHORT)

    def test_rows_too_old_for_any_window_are_trimmed_without_a_trace_in_the_vector(self) -> None:
        async def scenario(memory: Memory) -> None:
            for n in range(4):
                await memory.recall(a_payment(str(n), T0 + n * MINUTE))
            looks = [await seen(SHORT, memory, a_payment(f"later{n}", T0 + 200 * DAY + n)) for n in range(8)]
            await memory.settle()
            log = await memory.log("card", "c1")
            assert len(log) == 9 * SHORT.log_layouts[0].row_bytes
            assert log[:8] == bytes(8)
            assert {number(SHORT, looked, "memory.card_log_capped") for looked in looks} == {0.0}

        self.on(scenario, SHORT)

    def test_what_becomes_known_later_is_not_known_yet(self) -> None:
        async def scenario(memory: Memory) -> None:
            state = AccountState(
                account_id="a1", currency="EUR", balance_minor=0, credit_limit_minor=4000, as_of_ms=T0, opened_at_ms=T0 - DAY, home_country="DE"
            )
            await memory.know_account(state)
            before = await seen(CATALOGUE, memory, a_payment("1", T0 - 1))
            after = await seen(CATALOGUE, memory, a_payment("2", T0, country="FR"))
            names = ("behavioural.account_open_s", "geographic.account_country_differs_home", "behavioural.account_amount_over_limit")
            assert all(math.isnan(number(CATALOGUE, before, name)) for name in names)
            assert [number(CATALOGUE, after, name) for name in names] == [86_400.0, 1.0, 0.25]
            await memory.know("account", "a1", "home_country", float(country_code("FR")), T0)
            moved = await seen(CATALOGUE, memory, a_payment("3", T0, country="FR"))
            assert [number(CATALOGUE, moved, name) for name in names] == [86_400.0, 0.0, 0.25]

        self.on(scenario)

    def test_an_account_event_is_a_row_of_the_accounts_log_and_no_payment(self) -> None:
        async def scenario(memory: Memory) -> None:
            event = AccountEvent(event_id="1", account_id="a1", kind="login_failed", at_ms=T0, device_token="d1")
            assert await memory.remember_event(event) == (-1, 0, *NONE[1:])
            assert await memory.remember_event(event) == (-1, 0, *NONE[1:])
            looked = await seen(CATALOGUE, memory, a_payment("1"))
            assert looked.positions == (0, 1, 0, *NONE[2:])
            assert number(CATALOGUE, looked, "velocity.account_count_1h") == 0

        self.on(scenario)

    def test_the_log_of_the_one_who_is_paid_is_looked_into_and_gets_no_row(self) -> None:
        async def scenario(memory: Memory) -> None:
            paid = [a_payment(f"p{n}", T0 + n, kind="transfer_out", account_id="b", counterparty_account_id="c") for n in range(3)]
            for txn in paid:
                await memory.recall(txn)
            payee = CATALOGUE.logs.index("payee")
            looked = await seen(CATALOGUE, memory, a_payment("1", T0 + HOUR, kind="transfer_out", counterparty_account_id="b"))
            assert looked.positions[payee] == 3
            unknown = await seen(CATALOGUE, memory, a_payment("2", T0 + HOUR, kind="transfer_out", counterparty_account_id="nobody"))
            assert unknown.positions[payee] == 0
            assert await memory.log("account", "nobody") == b""
            assert len(await memory.log("account", "b")) == 3 * CATALOGUE.log_layouts[payee].row_bytes
            assert (await seen(CATALOGUE, memory, a_payment("3"))).positions[payee] == -1
            to_itself = await seen(CATALOGUE, memory, a_payment("4", T0 + HOUR, kind="transfer_out", account_id="b", counterparty_account_id="b"))
            assert to_itself.positions[payee] == to_itself.positions[CATALOGUE.logs.index("account")] == 3

        self.on(scenario)

    def test_a_memory_that_forgot_is_restored_to_the_same_bytes_and_goes_on_in_the_same_way(self) -> None:
        async def scenario(memory: Memory) -> None:
            decided, happened = [], []
            for n in range(50):
                if n % 5 == 0:
                    event = AccountEvent(event_id=str(n), account_id="a1", kind="login", at_ms=T0 + n * HOUR, device_token="d1")
                    happened.append((event, await memory.remember_event(event)))
                txn = a_payment(str(n), T0 + n * HOUR, card_token=f"c{n % 2}", device_token=("d1", None, "d2")[n % 3])
                looked = await seen(SHORT, memory, txn)
                decided.append((txn, looked.positions, await memory.decline(txn) if n % 4 == 0 else ()))
            await memory.settle()
            entities = [("card", "c0"), ("card", "c1"), ("account", "a1"), ("device", "d1"), ("device", "d2")]
            live = [await memory.log(*entity) for entity in entities]
            async with a_memory(SHORT, self.url) as other:
                assert await other.restore(as_they_come(decided), reversed(happened)) == len(entities)
                assert [await other.log(*entity) for entity in entities] == live
                txn = a_payment("next", T0 + 60 * HOUR, card_token="c0")
                restored = await seen(SHORT, other, txn)
                assert restored.positions[:3] == (38, 73, 22)
            if self.url is None:
                assert (await seen(SHORT, memory, txn)).values.tobytes() == restored.values.tobytes()

        self.on(scenario, SHORT)

    def test_positions_go_on_after_a_restore_that_misses_an_undecided_row(self) -> None:
        async def scenario(memory: Memory) -> None:
            decided = [(txn, (await seen(CATALOGUE, memory, txn)).positions, ()) for txn in (a_payment(str(n), T0 + n) for n in range(6))]
            del decided[2]
            async with a_memory(CATALOGUE, self.url) as other:
                await other.restore(decided)
                assert (await seen(CATALOGUE, other, a_payment("6", T0 + 6))).positions[:3] == (6, 6, 6)

        self.on(scenario)


def as_they_come(
    decided: Sequence[tuple[Transaction, tuple[int, ...], tuple[int, ...]]],
) -> list[tuple[Transaction, tuple[int, ...], tuple[int, ...]]]:
    """Another order than that of the positions, and records that went through bytes."""
    copied = [(msgspec.json.decode(msgspec.json.encode(txn), type=Transaction), p, d) for txn, p, d in decided]
    return copied[1::2] + copied[::2]


class TestDictMemory(MemoryContract):
    """The contract in this process."""


class TestRedisMemory(MemoryContract):
    """The contract on a real Redis."""

    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self.url = redis_url


class TestClusterMemory(MemoryContract):
    """The contract on a real Redis Cluster of three masters."""

    @pytest.fixture(autouse=True)
    def _server(self, cluster_url: str) -> None:
        self.url = cluster_url


async def _told(memory: Memory, history: Sequence[Arrival], catalogue: Catalogue) -> list[bytes | tuple[int, ...]]:
    told: list[bytes | tuple[int, ...]] = []
    for what, record in history:
        if isinstance(record, AccountEvent):
            told.append(await memory.remember_event(record))
        elif what == "decline":
            told.append(await memory.decline(record))
        else:
            looked: Look = await seen(catalogue, memory, record)
            told += [looked.values.tobytes(), looked.positions]
    await memory.settle()
    told += [await memory.log(kind, token) for kind, token in (("card", "c1"), ("card", "c2"), ("account", "a1"), ("device", "d1"))]
    return told


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=histories(most=40, redelivered=4))
def test_both_memories_say_the_same_and_keep_the_same_bytes(url: str, history: list[Arrival]) -> None:
    async def both() -> None:
        async with a_memory(SHORT, url) as redis, a_memory(SHORT, None) as own:
            assert await _told(redis, history, SHORT) == await _told(own, history, SHORT)

    asyncio.run(both())


def test_two_writers_at_once_leave_one_order_and_positions_say_which(redis_url: str) -> None:
    """Two wires, payments of one card interleaved and some sent twice: positions order them, and that order backfills to the same bits."""
    payments = [a_payment(str(n), T0 + (n * 7919 % 600) * MINUTE, amount_minor=n) for n in range(600)]

    async def write(memory: Memory, part: list[Transaction]) -> list[tuple[Transaction, Look]]:
        looks = []
        for begin in range(0, len(part), 7):
            some = part[begin : begin + 7]
            looks += list(zip(some, await asyncio.gather(*[seen(ON_LOGS, memory, txn) for txn in some]), strict=True))
        return looks

    async def both() -> None:
        async with a_memory(ON_LOGS, redis_url) as one, a_wire(redis_url) as wire:
            other = RedisMemory(wire, ON_LOGS)
            parts = await asyncio.gather(write(one, payments[::2] + payments[:60]), write(other, payments[1::2] + payments[:60:3]))
            first = {looked.positions[0]: (txn, looked) for txn, looked in (*parts[1], *parts[0])}
            assert sorted(first) == list(range(600))
            for txn, looked in (*parts[0], *parts[1]):
                assert first[looked.positions[0]][1].values.tobytes() == looked.values.tobytes(), txn.transaction_id
            await asyncio.gather(one.settle(), other.settle())
            await other.close()
            in_order = [first[position] for position in range(600)]
            matrix = backfill(ON_LOGS, columns_of([txn for txn, _ in in_order]))
            assert matrix.tobytes() == b"".join(looked.values.tobytes() for _, looked in in_order)
            live = await one.log("card", "c1")
            async with a_memory(ON_LOGS, None) as restored:
                await restored.restore((txn, looked.positions, ()) for txn, looked in parts[0] + parts[1])
                assert await restored.log("card", "c1") == live

    asyncio.run(both())
