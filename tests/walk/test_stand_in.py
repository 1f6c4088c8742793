"""The stand-in at the door: what hosts hear while log or Redis is gone, and that the log gets it once."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from models.registry import default_stand_in_text
from models.stand_in import stand_in_from_toml
from schemas import avro
from schemas.decision import Decision, Outcome, Reason, ReasonSource
from schemas.errors import HoldfastError, MemoryUnavailable
from schemas.hold import ClearingKind
from schemas.topics import CLEARINGS, Topic
from streams import forward as forwarding
from streams import metrics, spool
from streams import stand_in as standing
from streams.answers import Kept, Made
from streams.authorize.keys import Scope
from streams.forward import forward
from streams.settings import Settings
from streams.spool import Spool, entries_in
from streams.stand_in import StandIn
from tests.iso8583.fuzz import warm_up
from tests.walk.test_http import Host, a_request
from tests.world import NOON, a_world

POLICY = stand_in_from_toml(default_stand_in_text())
CARD = {"card_number": "4111111111111111"}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PAUSE_S", 0.005)
    warm_up()  # what compiles meanwhile is answered by the stand-in, as at a service that is not ready


def opened(folder: Path) -> StandIn:
    """The stand-in on this disk."""
    return StandIn(POLICY, *Spool.opened(folder, lambda found: standing._needed(found, NOON // 86_400_000)))


def at_the_door(folder: Path, play: Callable[[Host], Awaitable[None]]) -> None:
    """Runs a scene with a stand-in, after a payment by which card and merchant are known."""

    async def main() -> None:
        world = a_world()
        world.know(balance_minor=100_000)
        world.world.stand_in = opened(folder)
        host = Host(world, 1_500)
        status, answer, _ = await host.authorize(transaction_id="known")
        assert (status, answer["outcome"], answer["stand_in"]) == (200, "approve", False)
        await play(host)
        await world.world.stand_in.close()

    asyncio.run(main())


def minutes_apart(number: int) -> int:
    """Times that are no attack."""
    return NOON - (10 - number) * 1_200_000


@contextmanager
def acknowledged_late(host: Host) -> Iterator[None]:
    """The log has what it is told meanwhile, and says so at the end."""
    bus, acknowledged = host.world.world.bus, asyncio.get_running_loop().create_future()
    tell = bus.tell

    def told(topic: Topic, key: str, value: bytes) -> asyncio.Future[None]:
        tell(topic, key, value)
        return acknowledged

    bus.tell = told  # type: ignore[method-assign]
    yield
    acknowledged.set_result(None)
    bus.tell = tell  # type: ignore[method-assign]


async def told_all(host: Host) -> None:
    """Returns when the log has all that the stand-in answered."""
    stand_in = host.world.world.stand_in
    assert stand_in is not None
    telling = asyncio.create_task(forward(stand_in, host.world.world))
    async with asyncio.timeout(5):
        while stand_in.pending:
            await asyncio.sleep(0.005)
    telling.cancel()
    with suppress(asyncio.CancelledError):
        await telling


def test_a_log_that_is_down_leaves_small_payments_of_those_that_are_known(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        host.world.bus.down = True
        _, small, bytes_ = await host.authorize(transaction_id="small", amount_minor=4_000)
        _, large, _ = await host.authorize(transaction_id="large", amount_minor=6_000)
        assert (small["outcome"], small["response_code"], small["held_minor"], small["stand_in"]) == ("approve", "00", 4_000, True)
        assert (large["outcome"], large["response_code"], large["reason_category"], large["stand_in"]) == ("decline", "61", "unavailable", True)
        assert large["hold_id"] is None
        assert (await host.authorize(transaction_id="small", amount_minor=4_000))[2] == bytes_
        assert (await host.authorize(transaction_id="small", amount_minor=4_001))[0] == 409
        assert [d.transaction_id for d in host.world.decisions] == ["known"]
        host.world.bus.down = False
        await told_all(host)
        assert [(d.transaction_id, d.outcome, d.degradations) for d in host.world.decisions[1:]] == [
            ("small", "approve", ("stand_in:log_unavailable",)),
            ("large", "decline", ("stand_in:log_unavailable",)),
        ]
        assert (await host.authorize(transaction_id="small", amount_minor=4_000))[2] == bytes_

    at_the_door(tmp_path, play)


@pytest.mark.parametrize("limits", [{}, {"bins": ("4111",)}])
def test_what_follows_an_answer_of_the_stand_in_is_to_come_again_until_the_log_has_it(limits: dict[str, Any], tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        following: dict[str, dict[str, Any]] = {
            "increment": a_request(transaction_id="more", amount_minor=500),
            "capture": {"clearing_id": "c1", "amount_minor": 1_000, "currency": "EUR", "final": False},
            "reversal": {"clearing_id": "c2"},
        }
        world = host.world.world
        recall_all = world.memory.recall_all

        async def gone(*_: object) -> None:
            raise MemoryUnavailable("gone")

        world.memory.recall_all = gone  # type: ignore[method-assign,assignment]
        assert (await host.authorize(transaction_id="small", amount_minor=4_000))[1]["stand_in"] is True
        world.memory.recall_all = recall_all  # type: ignore[method-assign]
        host.carry("its", Scope.AUTHORIZE, Scope.CAPTURE, **limits)
        for what, sent in following.items():
            status, answer, _ = await host.step(what, "small", **sent)
            assert (status, answer["error"]["code"]) == (503, "log_unavailable"), what
        await told_all(host)
        assert (await host.step("increment", "small", **following["increment"]))[0] == 200

    at_the_door(tmp_path, play)


def test_a_reversal_waits_for_the_log_to_have_the_increment_that_the_stand_in_approved(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        host.world.bus.down = True
        raised = (await host.step("increment", "known", **a_request(transaction_id="more", amount_minor=500)))[1]
        assert (raised["outcome"], raised["stand_in"]) == ("approve", True)
        assert (await host.step("reversal", "known", clearing_id="r1"))[0] == 503
        host.world.bus.down = False
        assert (await host.step("reversal", "known", clearing_id="r1"))[0] == 503
        await told_all(host)
        assert (await host.step("reversal", "known", clearing_id="r1"))[0] == 200
        assert {clearing.transaction_id for clearing in host.world.bus.records(CLEARINGS)} == {"known", raised["transaction_id"]}  # type: ignore[attr-defined]

    at_the_door(tmp_path, play)


def test_what_the_stand_in_gives_back_of_its_own_waits_for_none_that_it_still_has(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        with acknowledged_late(host):
            assert (await host.authorize(transaction_id="large", amount_minor=6_000))[1]["outcome"] == "decline"
        host.world.bus.down = True
        assert (await host.step("increment", "large", **a_request(transaction_id="more", amount_minor=500)))[1]["outcome"] == "approve"
        host.world.bus.down = False
        await told_all(host)
        assert [clearing.transaction_id for clearing in host.world.bus.records(CLEARINGS)] == ["large"]  # type: ignore[attr-defined]

    at_the_door(tmp_path, play)


def test_a_retry_of_nothing_that_the_stand_in_declined_keeps_nobody_after_it_from_the_log(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        async def gone(*_: object) -> None:
            raise MemoryUnavailable("gone")

        world = host.world.world
        with pytest.MonkeyPatch.context() as away:
            away.setattr(world.memory, "recall_all", gone)
            away.setattr(world.answers, "of_transaction", gone)
            retry = (await host.authorize(transaction_id="retry", step_up_of="never", amount_minor=4_000))[1]
            small = (await host.authorize(transaction_id="small", amount_minor=4_000))[1]
        assert [(each["outcome"], each["stand_in"]) for each in (retry, small)] == [("decline", True), ("approve", True)]
        await told_all(host)
        assert [(d.transaction_id, d.outcome) for d in host.world.decisions[1:]] == [("retry", "decline"), ("small", "approve")]
        status, answer, _ = await host.authorize(transaction_id="again", step_up_of="never", amount_minor=4_000)
        assert (status, answer["error"]["code"]) == (404, "step_up_unknown")

    at_the_door(tmp_path, play)


def test_a_card_stays_known_though_one_of_its_payments_was_too_large_for_the_stand_in(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        host.world.bus.down = True
        codes = [(await host.authorize(transaction_id=f"t{amount}", amount_minor=amount))[1]["response_code"] for amount in (6_000, 4_000)]
        assert codes == ["61", "00"]

    at_the_door(tmp_path, play)


def test_what_another_process_declined_meanwhile_takes_nothing_of_the_days_limits(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        answers, keep_all = host.world.answers, host.world.answers.keep_all

        async def second(made: Sequence[Made]) -> list[Kept | HoldfastError]:
            why = (Reason(code="stand_in_amount", source=ReasonSource.DEGRADED),)
            said: dict[str, Any] = {"outcome": Outcome.DECLINE, "reasons": why, "hold_id": None}
            firsts = [avro.encode(structs.replace(avro.decode(Decision, one.message), **said)) for one in made]
            return await keep_all([one._replace(message=first) for one, first in zip(made, firsts, strict=True)])

        host.world.bus.down = True
        answers.keep_all = second  # type: ignore[method-assign]
        for number in range(6):
            assert (await host.authorize(transaction_id=f"t{number}", amount_minor=2_900, at_ms=minutes_apart(number)))[1]["outcome"] == "decline"
        answers.keep_all = keep_all  # type: ignore[method-assign]
        assert (await host.authorize(transaction_id="own", amount_minor=100))[1]["outcome"] == "approve", "five a day"

    at_the_door(tmp_path, play)


def test_after_a_crash_the_log_gets_what_hosts_heard_and_the_day_is_not_forgotten(tmp_path: Path) -> None:
    heard: dict[str, bytes] = {}

    async def before(host: Host) -> None:
        host.world.bus.down = True
        for number in range(7):
            _, answer, heard[f"t{number}"] = await host.authorize(transaction_id=f"t{number}", amount_minor=2_900, at_ms=minutes_apart(number))
            assert answer["outcome"] == ("approve" if number < 5 else "decline"), "five a day"

    async def after(host: Host) -> None:
        host.world.bus.down = True
        for name, bytes_ in heard.items():
            assert (await host.authorize(transaction_id=name, amount_minor=2_900, at_ms=minutes_apart(int(name[1:]))))[2] == bytes_
        _, more, _ = await host.authorize(transaction_id="more", amount_minor=100)
        assert (more["outcome"], more["response_code"]) == ("decline", "65")
        host.world.bus.down = False
        await told_all(host)
        assert sorted(d.transaction_id for d in host.world.decisions) == sorted(["known", "more", *heard])

    at_the_door(tmp_path, before)
    at_the_door(tmp_path, after)


def test_what_a_process_that_never_comes_back_left_is_told_by_another(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        one = host.world.world.stand_in
        assert one is not None
        host.world.bus.down = True
        for number in range(7):
            _, answer, _ = await host.authorize(transaction_id=f"t{number}", amount_minor=2_900, at_ms=minutes_apart(number))
            assert answer["outcome"] == ("approve" if number < 5 else "decline"), "five a day"
        other = host.world.world.stand_in = opened(tmp_path)
        other._know(host.world.decisions[0])
        day = NOON // 86_400_000
        await other.take_over(day)
        await other.take_over(day)
        assert not other.pending, "the other process lives"
        await one.close()
        await other.take_over(day)
        assert not other.pending, "it may be starting again"
        await other.take_over(day)
        assert list(other.pending) == [f"t{number}" for number in range(7)]
        assert list(entries_in((tmp_path / "0.spool").read_bytes())) == []
        _, more, _ = await host.authorize(transaction_id="more", amount_minor=100)
        assert (more["outcome"], more["response_code"]) == ("decline", "65"), "its approvals count here too"
        await other.close()
        again = host.world.world.stand_in = StandIn(POLICY, *Spool.opened(tmp_path, list))
        await again.take_over(day)
        await again.take_over(day)
        host.world.bus.down = False
        await told_all(host)
        assert sorted(d.transaction_id for d in host.world.decisions) == sorted(["known", "more", *[f"t{number}" for number in range(7)]])

    at_the_door(tmp_path, play)


def test_a_stand_in_that_is_switched_off_says_what_it_leaves_untold(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, stand_in_policy="off")

    def said() -> list[tuple[str, int]]:
        with capture_logs() as lines:
            assert StandIn.opened(settings, NOON) is None
        return [(line["log_level"], line["untold"]) for line in lines]

    assert said() == []

    async def play(host: Host) -> None:
        host.world.bus.down = True
        for name in ("t1", "t2"):
            assert (await host.authorize(transaction_id=name, amount_minor=100))[1]["outcome"] == "approve"

    at_the_door(tmp_path / "stand_in", play)
    assert said() == [("critical", 2)]


def test_what_is_answered_again_after_the_log_had_it_outlives_a_crash_too(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        host.world.bus.down = True
        stand_in = host.world.world.stand_in
        assert stand_in is not None
        for _ in range(2):  # the second time it is forgotten in memory and in Redis
            _, heard, _ = await host.authorize(transaction_id="small", amount_minor=4_000)
            assert (heard["outcome"], heard["stand_in"]) == ("approve", True)
            if not stand_in._counted:
                stand_in.done("small")
                stand_in._recent.clear()
        await stand_in.close()
        restarted = host.world.world.stand_in = opened(tmp_path)
        assert list(restarted.pending) == ["small"]

    at_the_door(tmp_path, play)


def test_the_disk_is_given_back_once_the_log_has_all_and_the_day_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "DISK", 2_000)

    async def answer(host: Host, numbers: range) -> list[str]:
        host.world.bus.down = True
        said = [(await host.authorize(transaction_id=f"t{n}", amount_minor=2_900, at_ms=minutes_apart(n)))[1] for n in numbers]
        host.world.bus.down = False
        return [each["outcome"] for each in said]

    async def before(host: Host) -> None:
        assert await answer(host, range(4)) == ["approve"] * 4
        sizes.append(spooled(tmp_path))
        await told_all(host)

    async def after(host: Host) -> None:
        assert await answer(host, range(4, 6)) == ["approve", "decline"], "five a day"

    sizes: list[int] = []
    at_the_door(tmp_path, before)
    assert sizes[0] > 2_000 > 4 * spooled(tmp_path) > 0
    at_the_door(tmp_path, after)


def spooled(folder: Path) -> int:
    """Bytes of the spools."""
    return sum(path.stat().st_size for path in folder.glob("*.spool"))


def test_what_the_disk_does_not_take_is_not_answered_and_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = spool._synced

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def play(host: Host) -> None:
        host.world.bus.down = True
        monkeypatch.setattr(spool, "_synced", full)
        for _ in range(7):
            status, answer, _ = await host.authorize(transaction_id="small", amount_minor=4_000)
            assert (status, answer["error"]["code"]) == (503, "log_unavailable")
        monkeypatch.setattr(spool, "_synced", synced)
        _, kept, _ = await host.authorize(transaction_id="later", amount_minor=3_000)
        assert (kept["outcome"], kept["stand_in"]) == ("approve", True)
        host.world.bus.down = False
        await told_all(host)
        assert [d.transaction_id for d in host.world.decisions[1:]] == ["later"]
        assert (await host.authorize(transaction_id="small", amount_minor=4_000))[0] == 200

    at_the_door(tmp_path, play)


def test_a_disk_that_is_slow_has_what_a_memory_that_failed_early_left_of_the_hosts_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = spool._synced

    def slow(*each: Any) -> None:
        sleep(0.3)  # twice what the stand-in has at the end of the time
        synced(*each)

    async def gone(*_: object) -> None:
        raise MemoryUnavailable("gone")

    async def play(host: Host) -> None:
        host.world.world.memory.recall_all = gone  # type: ignore[method-assign,assignment]
        monkeypatch.setattr(spool, "_synced", slow)
        status, answer, _ = await host.authorize(transaction_id="small", amount_minor=4_000)
        assert (status, answer.get("outcome"), answer.get("stand_in")) == (200, "approve", True)

    at_the_door(tmp_path, play)


def test_a_repeat_waits_for_a_disk_that_hangs_no_longer_than_its_host_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = spool._synced

    def hangs(*each: Any) -> None:
        sleep(1.5)
        synced(*each)

    async def play(host: Host) -> None:
        host.world.bus.down = True
        monkeypatch.setattr(spool, "_synced", hangs)
        body = json.dumps(a_request(transaction_id="small", amount_minor=4_000)).encode()
        began = asyncio.get_running_loop().time()
        for _ in range(3):
            status, answer, _ = await host.ask("POST", "/v1/authorizations", body, {"Holdfast-Deadline-Ms": "200"})
            assert (status, answer["error"]["code"]) == (503, "deadline")
        assert asyncio.get_running_loop().time() - began < 1.2

    at_the_door(tmp_path, play)


def test_a_memory_that_is_gone_is_made_up_for_afterwards(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        world = host.world.world
        recall_all = world.memory.recall_all

        async def gone(*_: object) -> None:
            raise MemoryUnavailable("gone")

        world.memory.recall_all = gone  # type: ignore[method-assign,assignment]
        _, small, bytes_ = await host.authorize(transaction_id="small", amount_minor=4_000)
        assert (small["outcome"], small["stand_in"]) == ("approve", True)
        _, unknown, _ = await host.authorize(transaction_id="new", merchant_id="m9")
        assert (unknown["outcome"], unknown["response_code"]) == ("decline", "91")
        world.memory.recall_all = recall_all  # type: ignore[method-assign]
        await told_all(host)
        small_one, new_one = host.world.decisions[1:]
        assert small_one.score is not None
        assert small_one.vector
        assert small_one.held_minor == 4_000
        assert new_one.outcome is Outcome.DECLINE
        assert not new_one.declined_positions, "it was declined because the memory was gone: no feature counts that"
        assert (await host.authorize(transaction_id="small", amount_minor=4_000))[2] == bytes_

    at_the_door(tmp_path, play)


def test_a_tip_may_be_captured_on_what_the_stand_in_approved_at_a_restaurant(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        world, restaurant = host.world.world, {"mcc": "5812", "amount_minor": 4_000}
        assert (await host.authorize(transaction_id="before", **restaurant))[1]["stand_in"] is False

        async def gone(*_: object) -> None:
            raise MemoryUnavailable("gone")

        with pytest.MonkeyPatch.context() as away:
            away.setattr(world.memory, "recall_all", gone)
            _, dinner, bytes_ = await host.authorize(transaction_id="dinner", **restaurant)
        assert (dinner["outcome"], dinner["stand_in"]) == ("approve", True)
        await told_all(host)
        assert [d.hold_tolerance_minor for d in host.world.decisions[1:]] == [800, 800]
        assert (await host.authorize(transaction_id="dinner", **restaurant))[2] == bytes_

    at_the_door(tmp_path, play)


def test_what_the_stand_in_said_is_counted_as_nobodys_whose_rates_the_breaker_watches(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        memory, before = host.world.world.memory, host.world.world.given.copy()
        recall_all = memory.recall_all

        async def gone(*_: object) -> None:
            raise MemoryUnavailable("gone")

        memory.recall_all = gone  # type: ignore[method-assign,assignment]
        for number in range(3):
            _, large, _ = await host.authorize(transaction_id=f"gone{number}", amount_minor=6_000)
            assert (large["outcome"], large["stand_in"]) == ("decline", True)
        memory.recall_all = recall_all  # type: ignore[method-assign]
        host.world.bus.down = True
        assert (await host.authorize(transaction_id="away", amount_minor=7_000))[1]["outcome"] == "decline"
        host.world.bus.down = False
        await told_all(host)
        assert len(host.world.decisions) == 5
        assert host.world.world.given == before

    at_the_door(tmp_path, play)


def test_what_another_process_decided_and_a_repeat_heard_here_is_what_is_heard_while_the_memory_is_gone(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        world = host.world.world
        world.stand_in, stand_in = None, world.stand_in
        _, large, bytes_ = await host.authorize(transaction_id="large", amount_minor=6_000)
        assert large["outcome"] == "approve"
        world.stand_in = stand_in
        assert (await host.authorize(transaction_id="large", amount_minor=6_000))[2] == bytes_

        async def gone(*_: object) -> None:
            raise MemoryUnavailable("gone")

        world.memory.recall_all = gone  # type: ignore[method-assign,assignment]
        assert (await host.authorize(transaction_id="large", amount_minor=6_000))[2] == bytes_

    at_the_door(tmp_path, play)


def test_an_approval_above_the_limit_that_the_log_may_have_is_declined_and_reversed(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        world, tell = host.world.world, host.world.bus.tell

        def late(topic: Topic, key: str, value: bytes) -> asyncio.Future[None]:
            tell(topic, key, value)
            return asyncio.get_running_loop().create_future()

        world.bus.tell = late  # type: ignore[method-assign]
        _, large, bytes_ = await host.authorize(transaction_id="large", amount_minor=6_000)
        _, small, _ = await host.authorize(transaction_id="small", amount_minor=4_000)
        assert (large["outcome"], large["response_code"], large["stand_in"]) == ("decline", "61", True)
        assert small["outcome"] == "approve"
        world.bus.tell = tell  # type: ignore[method-assign]
        await told_all(host)
        (clearing,) = host.world.bus.records(CLEARINGS)
        assert (clearing.kind, clearing.transaction_id) == (ClearingKind.REVERSAL, "large")  # type: ignore[attr-defined]
        assert (await host.authorize(transaction_id="large", amount_minor=6_000))[2] == bytes_

    at_the_door(tmp_path, play)


def test_a_decline_that_cannot_be_reversed_yet_keeps_nobody_after_it_from_the_log(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        stand_in = host.world.world.stand_in
        assert stand_in is not None
        with acknowledged_late(host):
            assert (await host.authorize(transaction_id="large", amount_minor=6_000))[1]["outcome"] == "decline"
        book = host.world.books.books["a1"]
        host.world.know("a2")
        host.world.books.books["a1"] = host.world.books.books[
            "a2"
        ]  # the lease of its hold has ended, and no `hold` app runs that would bring it back
        host.world.bus.down = True
        assert (await host.authorize(transaction_id="small", amount_minor=4_000))[1]["outcome"] == "approve"
        host.world.bus.down = False
        telling = asyncio.create_task(forward(stand_in, host.world.world))
        async with asyncio.timeout(2):
            while "small" in stand_in.pending:
                await asyncio.sleep(0.005)
        assert list(stand_in.pending) == ["large"]
        telling.cancel()
        assert [d.transaction_id for d in host.world.decisions] == ["known", "large", "small"]
        host.world.books.books["a1"] = book
        await told_all(host)
        assert [clearing.transaction_id for clearing in host.world.bus.records(CLEARINGS)] == ["large"]  # type: ignore[attr-defined]

    at_the_door(tmp_path, play)


def test_a_repeat_that_waits_while_the_stand_in_declines_hears_no_approval_that_is_reversed(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        with acknowledged_late(host):
            body = json.dumps(a_request(transaction_id="large", amount_minor=6_000)).encode()
            patient = asyncio.create_task(host.ask("POST", "/v1/authorizations", body, {"Holdfast-Deadline-Ms": "10000"}))
            _, heard, bytes_ = await host.ask("POST", "/v1/authorizations", body, {"Holdfast-Deadline-Ms": "1500"})
            assert (heard["outcome"], heard["stand_in"]) == ("decline", True)
        assert (await patient)[2] == bytes_

    at_the_door(tmp_path, play)


def test_an_approval_that_is_kept_while_its_decline_is_on_its_way_to_the_log_is_reversed(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        answers, asked, kept = host.world.answers, asyncio.Event(), asyncio.Event()
        keep_all, of_transaction = answers.keep_all, answers.of_transaction

        async def late(made: Sequence[Made]) -> list[Kept | MemoryUnavailable]:
            await asked.wait()
            found = await keep_all(made)
            kept.set()
            return found

        async def nothing_yet(transaction_id: str) -> Kept | None:
            found = await of_transaction(transaction_id)
            asked.set()
            await kept.wait()
            return found

        answers.keep_all = late  # type: ignore[method-assign]
        _, large, bytes_ = await host.authorize(transaction_id="large", amount_minor=6_000)
        assert (large["outcome"], large["stand_in"]) == ("decline", True)
        answers.keep_all, answers.of_transaction = keep_all, nothing_yet  # type: ignore[method-assign]
        await told_all(host)
        assert [(one.transaction_id, one.outcome) for one in host.world.decisions[1:]] == [("large", "approve")]
        (clearing,) = host.world.bus.records(CLEARINGS)
        assert (clearing.kind, clearing.transaction_id) == (ClearingKind.REVERSAL, "large")  # type: ignore[attr-defined]
        assert (await host.authorize(transaction_id="large", amount_minor=6_000))[2] == bytes_

    at_the_door(tmp_path, play)


def test_what_was_declined_here_and_captured_as_the_log_has_it_is_counted(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        with acknowledged_late(host):
            assert (await host.authorize(transaction_id="large", amount_minor=6_000))[1]["outcome"] == "decline"
        assert (await host.step("capture", "large", clearing_id="c1"))[1]["amount_minor"] == 6_000
        apart = metrics.STAND_INS_APART._value.get()
        await told_all(host)
        assert metrics.STAND_INS_APART._value.get() == apart + 1

    at_the_door(tmp_path, play)


@pytest.mark.parametrize("told", [False, True])
def test_more_than_was_approved_in_part_before_the_answer_was_lost_is_what_the_log_gets_or_counted(told: bool, tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        answers = host.world.answers
        keep_all = answers.keep_all

        async def lost(made: Sequence[Made]) -> list[Kept | MemoryUnavailable]:
            await keep_all(made)
            if told:
                answers.told_all([one.transaction_id for one in made])
            return [MemoryUnavailable("lost")] * len(made)

        host.world.know(balance_minor=1_700, as_of_ms=2)
        answers.keep_all = lost  # type: ignore[method-assign]
        heard = (await host.authorize(transaction_id="part", amount_minor=4_000, partial_allowed=True))[1]
        assert (heard["outcome"], heard["held_minor"], heard["stand_in"]) == ("approve", 4_000, True)
        answers.keep_all = keep_all  # type: ignore[method-assign]
        apart = metrics.STAND_INS_APART._value.get()
        await told_all(host)
        assert metrics.STAND_INS_APART._value.get() == apart + told
        assert [(one.transaction_id, one.held_minor) for one in host.world.decisions[1:]] == ([] if told else [("part", 4_000)])

    at_the_door(tmp_path, play)


def test_of_the_answers_that_differ_from_the_log_only_the_newest_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "RECENT_MAX", 4)

    async def play(host: Host) -> None:
        stand_in = host.world.world.stand_in
        assert stand_in is not None
        host.world.bus.down = True
        for number in range(20):
            await host.authorize(transaction_id=f"t{number}", amount_minor=6_000)
            stand_in.done(f"t{number}", apart=True)
        assert list(stand_in._apart) == [f"t{number}" for number in range(16, 20)]

    at_the_door(tmp_path, play)


def test_a_host_says_how_long_it_waits_and_may_ask_where_the_time_goes() -> None:
    async def main() -> None:
        world = a_world()
        world.know()
        host = Host(world)
        body = __import__("json").dumps(a_request()).encode()
        for wrong in ("0", "-1", "soon", "60001"):
            status, answer, _ = await host.ask("POST", "/v1/authorizations", body, {"Holdfast-Deadline-Ms": wrong})
            assert (status, answer["error"]["param"]) == (422, "holdfast-deadline-ms")
        world.bus.tell = lambda *_: asyncio.get_running_loop().create_future()  # type: ignore[method-assign]
        began = asyncio.get_running_loop().time()
        status, answer, _ = await host.ask("POST", "/v1/authorizations", body, {"Holdfast-Deadline-Ms": "30"})
        assert (status, answer["error"]["code"]) == (503, "deadline")
        assert 0.03 <= asyncio.get_running_loop().time() - began < 0.5

    asyncio.run(main())
