"""The life of a hold as the app applies it: confirmed by the log, posted, voided or expired exactly once, whatever comes twice or late."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import msgspec
import pytest

from features.catalogue import CATALOGUE
from features.online import RedisMemory, warm
from features.wire import Command, Wire
from models.hold import EMPTY, Book, UnknownAccount, state_known
from models.opinion import Judges, Panel
from schemas.account import AccountState
from schemas.avro import decode, encode
from schemas.decision import Decision
from schemas.errors import InvalidRecord, Unavailable
from schemas.hold import Clearing, ClearingKind, HoldEvent, HoldState
from schemas.topics import CLEARINGS, DECISIONS, HOLDS, Topic
from schemas.transaction import Transaction
from streams.answers import WHOLE, Answers, DictAnswers, Kept, resolved_key
from streams.authorize.life import increment
from streams.books import Books
from streams.bus import ListBus
from streams.follow import Refused, Source
from streams.hold import APP as HOLD
from streams.hold import APPLIED, HoldWorld, applied, assigned, due_key, expire_due, on_account, on_clearing, on_decision
from streams.pipeline import decide, decide_all
from streams.rebuild import held
from streams.world import Together, World
from tests.world import NOON, a_policy, a_transaction, a_world, an_ensemble

DAY = 86_400_000


class Scene:
    """A decider and the hold app on one Redis and one log."""

    def __init__(self, wire: Wire) -> None:
        self.now_ms = NOON
        self.bus = ListBus()
        books, answers, memory = Books(wire), Answers(wire, 3600), RedisMemory(wire, CATALOGUE)
        panel = Panel(Judges(an_ensemble(), a_policy()))
        self.world = World(
            CATALOGUE, panel, memory, books, answers, self.bus, UnknownAccount.DECLINE, 30_000, 300_000, self.clock,
            lambda stop, seconds, count: None, Together(decide_all),
        )  # fmt: skip
        self.holds = HoldWorld(wire, books, answers, memory, self.bus, self.clock, self.log_ends, memory.close)

    def clock(self) -> int:
        """The scene's time."""
        return self.now_ms

    async def log_ends(self, topic: Topic, partitions: Collection[int]) -> dict[int, int]:
        """The next offsets of a topic."""
        return dict.fromkeys(partitions, len(self.bus.told[topic.name]))

    async def know(self, balance_minor: int, as_of_ms: int = 1) -> None:
        """The bank says the balance."""
        state = AccountState(account_id="a1", currency="EUR", balance_minor=balance_minor, as_of_ms=as_of_ms)
        await on_account(self.holds, state, a_source("accounts", 0))

    async def pay(self, transaction_id: str, amount_minor: int, follow: bool = True) -> Decision:
        """A payment is decided, and the hold app follows."""
        made = await decide(a_transaction(transaction_id, amount_minor=amount_minor), self.world, self.now_ms)
        decision = decode(Decision, made.message)
        if follow:
            await on_decision(self.holds, decision, a_source("decisions", len(self.bus.told[DECISIONS.name])))
            await applied(self.holds, {("decisions", 0): len(self.bus.told[DECISIONS.name])})
        return decision

    async def clear(self, transaction_id: str, amount_minor: int, clearing_id: str = "c1", final: bool = True, back: int = 0, offset: int = 0) -> Any:
        """A capture of the amount, or a reversal for 0: of the whole, or of what is given `back`."""
        clearing = Clearing(
            clearing_id=clearing_id,
            transaction_id=transaction_id,
            account_id="a1",
            kind=ClearingKind.CAPTURE if amount_minor else ClearingKind.REVERSAL,
            amount_minor=amount_minor or back,
            currency="EUR",
            at_ms=self.now_ms,
            final=final,
        )
        return await on_clearing(self.holds, clearing, a_source("clearings", offset))

    def rebuilt(self, decision: Decision, balance_minor: int) -> Book:
        """The account's book as the log of holds makes it."""
        state = AccountState(account_id="a1", currency="EUR", balance_minor=balance_minor, as_of_ms=1)
        steps = [decode(HoldEvent, m.value) for m in self.bus.told[HOLDS.name]][1:]
        return held(state_known(EMPTY, state), decision, True, steps)

    def states(self) -> list[HoldState]:
        """What the log says became of holds."""
        return [decode(HoldEvent, m.value).state for m in self.bus.told[HOLDS.name]]

    async def available(self) -> int:
        """What the account may spend now."""
        (content,) = await self.world.books.read("a1")
        return Book.from_bytes(content).available_minor(self.now_ms)


def a_source(topic: str, offset: int) -> Source:
    """A record's place."""
    return Source(topic, 0, offset, 0, b"a1", b"", frozenset())


@pytest.fixture
def on_stage(redis_url: str) -> Callable[[Callable[[Scene], Awaitable[None]]], None]:
    """Runs a scene to its end."""

    warm(CATALOGUE)  # compiled while Redis is asked, the first time on a machine, it would make Redis seem late

    def run(play: Callable[[Scene], Awaitable[None]]) -> None:
        async def main() -> None:
            wire = await Wire.connect(redis_url)
            scene = Scene(wire)
            await play(scene)
            await scene.holds.close()
            await wire.close()

        asyncio.run(main())

    return run


Stage = Callable[[Callable[[Scene], Awaitable[None]]], None]


def test_a_hold_is_confirmed_and_posted_once(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        assert await scene.available() == 6_000
        assert await scene.clear("t1", 3_000) == ()
        assert await scene.available() == 7_000, "the rest is returned"
        assert await scene.clear("t1", 3_000) == (), "the same clearing again is nothing new"
        changed = await scene.clear("t1", 2_000)
        assert isinstance(changed, Refused), "the same clearing with other contents is another one"
        again = await scene.clear("t1", 1_000, "c2")
        assert isinstance(again, Refused)
        assert again.code == "already_posted"
        assert scene.states() == [HoldState.CONFIRMED, HoldState.POSTED]

    on_stage(play)


def test_parts_are_taken_and_given_back_one_by_one_and_each_is_told_once(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        for _ in range(2):
            assert await scene.clear("t1", 1_000, "c1", final=False) == ()
            assert await scene.clear("t1", 0, "c2", back=500, offset=1) == ()
            assert await scene.available() == 6_500, "what was taken was held"
        conflict = await scene.clear("t1", 900, "c1", final=False)
        assert isinstance(conflict, Refused)
        assert conflict.code == "clearing_conflict"
        assert (await scene.clear("t1", 2_501, "c3")).code == "exceeds_hold"
        assert await scene.clear("t1", 2_000, "c3", offset=2) == ()
        assert await scene.available() == 7_000
        assert await scene.clear("t1", 1_000, "c1", final=False) == (), "a repeat after the end is still a repeat"
        assert (await scene.clear("t1", 1, "c4")).code == "already_posted"
        assert scene.states() == [HoldState.CONFIRMED, HoldState.PARTLY_POSTED, HoldState.PARTLY_VOIDED, HoldState.POSTED]
        events = [decode(HoldEvent, m.value) for m in scene.bus.told[HOLDS.name]]
        assert [(e.posted_minor, e.released_minor) for e in events] == [(0, 0), (1_000, 0), (0, 500), (2_000, 500)]
        assert len({e.event_id for e in events}) == 4

    on_stage(play)


def test_parts_are_put_back_from_the_log_and_their_repeats_are_known_again(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        decision = await scene.pay("t1", 4_000)
        await scene.clear("t1", 1_000, "c1", final=False, offset=3)
        await scene.clear("t1", 0, "c2", back=500, offset=4)
        (content,) = await scene.world.books.read("a1")
        now = Book.from_bytes(content)
        again = scene.rebuilt(decision, 10_000)
        assert (again.holds, again.balance_minor) == (now.holds, now.balance_minor)
        await scene.clear("t1", 2_000, "c3")
        ended = scene.rebuilt(decision, 10_000)
        assert (ended.holds, ended.balance_minor) == ((), 7_000)

    on_stage(play)


def test_a_part_that_a_crash_left_untold_is_told_before_the_hold_ends(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        scene.bus.down = True
        with pytest.raises(Unavailable):
            await scene.clear("t1", 1_000, "c1", final=False, offset=7)
        scene.bus.down = False
        cleared_at = scene.now_ms
        scene.now_ms += 8 * DAY
        await expire_due(scene.holds, frozenset({0}))
        scene.now_ms = cleared_at
        assert await scene.clear("t1", 1_000, "c1", final=False, offset=7) == ()
        assert scene.states() == [HoldState.CONFIRMED, HoldState.PARTLY_POSTED, HoldState.EXPIRED]
        part, end = (decode(HoldEvent, m.value) for m in scene.bus.told[HOLDS.name][1:])
        assert (part.source_topic, part.source_offset, end.source_topic, end.released_minor) == ("clearings", 7, "clock", 3_000)
        assert await scene.available() == 9_000

    on_stage(play)


def test_a_tip_is_taken_above_the_hold_where_the_merchants_kind_of_business_allows_it(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        made = await decide(a_transaction("t1", amount_minor=4_000, mcc="5812"), scene.world, scene.now_ms)
        decision = decode(Decision, made.message)
        assert decision.hold_tolerance_minor == 800
        await on_decision(scene.holds, decision, a_source("decisions", 0))
        assert (await scene.clear("t1", 4_801)).code == "exceeds_hold"
        assert await scene.clear("t1", 4_800) == ()
        assert await scene.available() == 5_200

    on_stage(play)


def test_a_reversal_returns_the_money(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        await scene.clear("t1", 0)
        assert await scene.available() == 10_000
        assert scene.states() == [HoldState.CONFIRMED, HoldState.VOIDED]

    on_stage(play)


def test_a_hold_expires_to_the_millisecond(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        end = (await scene.pay("t1", 4_000)).hold_expires_at_ms
        assert end == NOON + 7 * DAY
        scene.now_ms = end - 1
        await expire_due(scene.holds, frozenset({0}))
        assert scene.states() == [HoldState.CONFIRMED]
        scene.now_ms = end
        await expire_due(scene.holds, frozenset({0}))
        await expire_due(scene.holds, frozenset({0}))
        assert scene.states() == [HoldState.CONFIRMED, HoldState.EXPIRED]
        assert await scene.available() == 10_000
        late = await scene.clear("t1", 4_000)
        assert isinstance(late, Refused)
        assert late.code == "late_capture"
        nothing = await scene.clear("t1", 0)
        assert isinstance(nothing, Refused)
        assert nothing.code == "already_expired"

    on_stage(play)


class DictWire:
    """As much of a Redis as the hold app asks of it beside the books, at a scene's time."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.due: dict[bytes, int] = {}
        self.ends_ms: dict[bytes, int] = {}

    async def log_ends(self, topic: Topic, partitions: Collection[int]) -> dict[int, int]:
        """The next offsets of a topic."""
        return dict.fromkeys(partitions, 1)

    async def send(self, *commands: Command) -> list[Any]:
        """The replies."""
        return [self.reply(*command) for command in commands]

    def reply(self, name: bytes, key: bytes | memoryview, *words: Any) -> Any:
        """The reply to one command."""
        if name == b"ZADD":
            self.due[words[1]] = int(words[0])
        elif name == b"ZREM":
            self.due.pop(words[0])
        elif name == b"ZRANGEBYSCORE":
            return [entry for entry, score in self.due.items() if score <= int(words[1])]
        elif name == b"SET":
            self.ends_ms[bytes(key)] = self.clock() + int(words[2]) * 1000
        elif name == b"EXISTS":
            return int(key == WHOLE or self.ends_ms.get(bytes(key), 0) > self.clock())
        elif name == b"HGET":
            return b"1"  # all is followed
        return None


@pytest.mark.parametrize("days", [7, 366])
def test_a_hold_that_ended_long_before_it_would_have_lapsed_needs_no_more_watching_when_it_would(days: int) -> None:
    async def play() -> None:
        world = a_world()
        world.know()
        wire = DictWire(lambda: world.now_ms)
        answers, bus = DictAnswers(), world.bus
        holds = HoldWorld(wire, world.books, answers, world.world.memory, bus, wire.clock, wire.log_ends, bus.close)  # type: ignore[arg-type]
        end_ms = NOON + days * DAY
        decision = msgspec.structs.replace(decode(Decision, (await world.decide(a_transaction("t1"))).message), hold_expires_at_ms=end_ms)
        answers.kept["t1"] = Kept(b"", told=True)
        await on_decision(holds, decision, a_source("decisions", 0))
        clearing = Clearing(
            clearing_id="c1", transaction_id="t1", account_id="a1", kind=ClearingKind.CAPTURE, amount_minor=1_000, currency="EUR", at_ms=NOON
        )
        watched = dict(wire.due)
        assert await on_clearing(holds, clearing, a_source("clearings", 0)) == ()
        wire.due |= watched  # a crash had come between
        world.now_ms = end_ms
        await expire_due(holds, frozenset({0}))
        assert not wire.due

    asyncio.run(play())


@pytest.mark.parametrize("amount_minor", [4_000, 0])
def test_a_hold_is_watched_until_it_is_captured_or_reversed(on_stage: Stage, amount_minor: int) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        decision = await scene.pay("t1", 4_000)
        watched = (b"ZCARD", due_key(0))
        await scene.clear("t1", amount_minor and 1_000, final=False, back=1_000)
        assert await scene.holds.ask(watched) == [1]
        await scene.clear("t1", amount_minor and 3_000, clearing_id="c2")
        assert await scene.holds.ask(watched) == [0]
        await on_decision(scene.holds, decision, a_source("decisions", 1))
        assert await scene.holds.ask(watched) == [0]

    on_stage(play)


def test_more_than_was_held_is_refused_and_the_hold_stays(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        more = await scene.clear("t1", 4_001)
        assert isinstance(more, Refused)
        assert more.code == "exceeds_hold"
        assert scene.states() == [HoldState.CONFIRMED]

    on_stage(play)


def test_a_clearing_ahead_of_the_log_waits_and_one_for_nothing_is_refused(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000, follow=False)
        with pytest.raises(Unavailable):
            await scene.clear("t1", 4_000)
        nothing = await scene.clear("t9", 4_000)
        assert isinstance(nothing, Refused)
        assert nothing.code == "unknown_hold"

    on_stage(play)


def test_a_clearing_of_what_nobody_told_does_not_wait_for_a_moment_without_decisions(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        async def busy(topic: Topic, partitions: Collection[int]) -> dict[int, int]:
            """The end of a log that grows at each look, and is followed to there a moment later."""
            ends.append(len(ends) + 1)
            followed.append(asyncio.create_task(follow(ends[-1])))
            return dict.fromkeys(partitions, ends[-1])

        async def follow(end: int) -> None:
            await asyncio.sleep(0.02)
            await applied(scene.holds, {("decisions", 0): end})

        ends: list[int] = []
        followed: list[asyncio.Task[None]] = []
        scene.holds.log_ends = busy
        await scene.know(10_000)
        scene.bus.down = True
        with pytest.raises(Unavailable):
            await scene.pay("t1", 4_000)
        scene.now_ms += 3_600_000  # its asker gave it up; the card's network stood in, and captures
        refused = await scene.clear("t1", 4_000)
        assert isinstance(refused, Refused)
        assert refused.code == "not_confirmed"
        await asyncio.gather(*followed)

    on_stage(play)


def test_a_crash_before_the_last_event_was_told_tells_it_once_more(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        scene.bus.down = True
        with pytest.raises(Unavailable):
            await scene.clear("t1", 4_000)
        assert scene.states() == [HoldState.CONFIRMED]
        scene.bus.down = False
        await scene.clear("t1", 4_000)
        assert scene.states() == [HoldState.CONFIRMED, HoldState.POSTED]
        assert await scene.available() == 6_000

    on_stage(play)


def test_a_crash_before_an_expiry_was_told_tells_it_once_more(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        scene.now_ms += 8 * DAY
        scene.bus.down = True
        with pytest.raises(Unavailable):
            await expire_due(scene.holds, frozenset({0}))
        scene.bus.down = False
        await expire_due(scene.holds, frozenset({0}))
        assert scene.states() == [HoldState.CONFIRMED, HoldState.EXPIRED]

    on_stage(play)


def test_a_lapsed_hold_that_the_log_knows_is_reinstated(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        decision = await scene.pay("t1", 4_000, follow=False)
        scene.now_ms += 60_000
        assert await scene.available() == 10_000, "the lease is over"
        await on_decision(scene.holds, decision, a_source("decisions", 0))
        assert await scene.available() == 6_000

    on_stage(play)


def test_a_decision_followed_again_after_its_hold_was_posted_holds_nothing(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        decision = await scene.pay("t1", 4_000)
        await scene.clear("t1", 4_000)
        await on_decision(scene.holds, decision, a_source("decisions", 0))
        assert await scene.available() == 6_000
        (content,) = await scene.world.books.read("a1")
        assert Book.from_bytes(content).holds == ()

    on_stage(play)


def test_what_the_books_know_is_not_followed_again_where_the_groups_offsets_were_lost(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        decision = await scene.pay("t1", 4_000)
        await scene.clear("t1", 4_000)
        scene.bus.tell(CLEARINGS, "a1", encode(A_CAPTURE))
        await applied(scene.holds, {("clearings", 0): 1})
        await scene.holds.ask((b"DEL", resolved_key(str(decision.hold_id))))  # as after 40 days
        places = frozenset({("decisions", 0), ("clearings", 0), ("clearings", 1)})
        await assigned(scene.holds, places)
        follow, clear = HOLD.reads[DECISIONS], HOLD.reads[CLEARINGS]
        again = follow(scene.holds, decision, a_source("decisions", 0)), clear(scene.holds, A_CAPTURE, a_source("clearings", 0))
        assert [await outputs for outputs in again if inspect.isawaitable(outputs)] == [(), ()]
        assert scene.states() == [HoldState.CONFIRMED, HoldState.POSTED]
        assert await scene.available() == 6_000
        (content,) = await scene.holds.ask((b"HGETALL", APPLIED))
        assert await applied(scene.holds, {("clearings", 0): 0}) == {("clearings", 0): 0}, "the group's own offset is as far as it read again"
        assert await scene.holds.ask((b"HGETALL", APPLIED)) == [content], "a crash on the way does not make the books forget the rest"
        scene.bus.told.clear()  # other topics, on which nothing of this was told
        await assigned(scene.holds, places)
        assert set(scene.holds.known.values()) == {0}

    on_stage(play)


A_CAPTURE = Clearing(
    clearing_id="c1", transaction_id="t1", account_id="a1", kind=ClearingKind.CAPTURE, amount_minor=4_000, currency="EUR", at_ms=NOON
)


def test_a_capture_that_the_log_has_goes_before_the_expiry_however_long_nobody_read_it(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        scene.bus.tell(CLEARINGS, "a1", encode(A_CAPTURE))
        scene.now_ms += 8 * DAY  # so long the app was down
        await expire_due(scene.holds, frozenset({0}))
        assert scene.states() == [HoldState.CONFIRMED]
        assert await on_clearing(scene.holds, A_CAPTURE, a_source("clearings", 0)) == ()
        await applied(scene.holds, {("clearings", 0): 1})
        await expire_due(scene.holds, frozenset({0}))
        assert scene.states() == [HoldState.CONFIRMED, HoldState.POSTED]
        assert await scene.available() == 6_000

    on_stage(play)


def test_an_expiry_does_not_wait_for_an_offset_that_is_no_records(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        for _ in range(3):
            scene.bus.tell(CLEARINGS, "a1", b"")
        scene.now_ms += 8 * DAY
        for far, wait_ms, states in ((1, 0, 1), (1, 29_999, 1), (2, 1, 1), (2, 29_999, 1), (2, 1, 2)):
            await applied(scene.holds, {("clearings", 0): far})
            scene.now_ms += wait_ms
            await expire_due(scene.holds, frozenset({0}))
            assert len(scene.states()) == states
        assert scene.states() == [HoldState.CONFIRMED, HoldState.EXPIRED]

    on_stage(play)


def test_a_clearing_for_a_decision_that_nobody_told_is_refused_after_a_while(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        scene.bus.down = True
        with pytest.raises(Unavailable):
            await scene.pay("t1", 4_000)
        scene.bus.down = False
        with pytest.raises(Unavailable):
            await scene.clear("t1", 4_000)
        scene.now_ms += 120_000
        refused = await scene.clear("t1", 4_000)
        assert isinstance(refused, Refused)
        assert refused.code == "not_confirmed"

    on_stage(play)


def test_a_clearing_for_another_account_is_refused_at_once(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        clearing = Clearing(
            clearing_id="c1",
            transaction_id="t1",
            account_id="a2",
            kind=ClearingKind.CAPTURE,
            amount_minor=4_000,
            currency="EUR",
            at_ms=NOON,
        )
        refused = await on_clearing(scene.holds, clearing, a_source("clearings", 0))
        assert isinstance(refused, Refused)
        assert refused.code == "wrong_account"

    on_stage(play)


def test_nothing_is_concluded_from_a_redis_that_forgot(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        decision = await scene.pay("t1", 4_000)
        await scene.holds.wire.send(("FLUSHALL",))
        with pytest.raises(Unavailable):
            await scene.clear("t1", 4_000)
        with pytest.raises(Unavailable):
            await on_decision(scene.holds, decision, a_source("decisions", 0))
        with pytest.raises(Unavailable):
            await expire_due(scene.holds, frozenset({0}))
        with pytest.raises(Unavailable):
            await scene.know(10_000, as_of_ms=2)
        assert scene.states() == [HoldState.CONFIRMED]

    on_stage(play)


def test_a_capture_that_the_banks_balance_contains_is_not_taken_again(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        await scene.know(6_000, as_of_ms=NOON + 1)
        await scene.clear("t1", 4_000)
        assert await scene.available() == 6_000

    on_stage(play)


def test_an_account_with_any_name_expires(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        state = AccountState(account_id="a\x1fb", currency="EUR", balance_minor=5_000, as_of_ms=1)
        await on_account(scene.holds, state, a_source("accounts", 0))
        made = await decide(a_transaction("t1", account_id="a\x1fb"), scene.world, NOON)
        await on_decision(scene.holds, decode(Decision, made.message), a_source("decisions", 0))
        scene.now_ms += 8 * DAY
        await expire_due(scene.holds, frozenset({0}))
        assert scene.states() == [HoldState.CONFIRMED, HoldState.EXPIRED]

    on_stage(play)


def test_a_retry_of_nothing_is_refused_by_name_where_nobody_else_is_decided(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        await scene.know(10_000)
        with pytest.raises(InvalidRecord) as refused:
            await asyncio.wait_for(decide(a_transaction("t1", step_up_of="t0"), scene.world, scene.now_ms), 1)
        assert refused.value.code == "step_up_unknown"
        assert (await scene.pay("t2", 1_000)).outcome == "approve"

    on_stage(play)


def test_what_the_network_captured_or_reversed_is_not_raised(on_stage: Stage) -> None:
    async def play(scene: Scene) -> None:
        async def raised(transaction_id: str) -> Any:
            return await increment(a_transaction(transaction_id, amount_minor=500), "t1", scene.world, scene.now_ms)

        await scene.know(10_000)
        await scene.pay("t1", 4_000)
        await scene.clear("t1", 1_000, final=False)
        assert isinstance(await raised("i1"), Transaction), "some of it is still held"
        await scene.clear("t1", 3_000, "c2")
        assert await raised("i2") == "already_posted"

    on_stage(play)
