"""One contract, every store: answers and books in this process and in a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest

from features.catalogue import CATALOGUE
from features.online import RedisMemory, warm
from features.wire import Wire
from models.hold import EMPTY, Book, Refusal, Step, UnknownAccount, place, state_known
from models.sar import Movement
from schemas.account import AccountEvent, AccountEventKind, AccountState
from schemas.errors import Conflict, InvalidRecord, MemoryUnavailable
from schemas.transaction import TransactionKind
from streams import rebuild as rebuilding
from streams import sar
from streams.answers import AFTER_HOLD_S, WHOLE, Answers, AnswerWords, DictAnswers, Kept, Listed, Made, Page, Restored, on_whole, sound
from streams.books import Books, Change, DictBooks
from streams.settings import Settings
from tests.world import NOON, a_policy, a_transaction

Use = Callable[[Any], Awaitable[None]]


@asynccontextmanager
async def opened(kind: str, url: str) -> Any:
    """(answers, books, wire) of one kind."""
    if kind == "dict":
        yield DictAnswers(), DictBooks(), None
        return
    wire = await Wire.connect(url)
    yield Answers(wire, 3600), Books(wire), wire
    await wire.close()


@pytest.fixture(params=["dict", "redis", "cluster"])
def using(request: pytest.FixtureRequest) -> Callable[[Use], None]:
    """Runs a test's coroutine with the stores."""

    url = "" if request.param == "dict" else request.getfixturevalue(f"{request.param}_url")

    def run(use: Use) -> None:
        async def main() -> None:
            async with opened(request.param, url) as stores:
                await use(stores)

        asyncio.run(main())

    return run


async def first(stores: Any, transaction_id: str, digest: bytes, card_bin: str | None = None) -> Kept | None:
    """The first answer, as it is asked for aside of a recall."""
    answers, _, wire = stores
    claim, mark = answers.claim(transaction_id, digest)
    fresh, (whole,) = (claim, (mark,)) if wire is None else await wire.send(claim, (b"MGET", mark))
    kept: Kept | None = await answers.first(transaction_id, digest, fresh, whole, card_bin)
    return kept


def test_an_id_is_new_once_and_its_first_answer_stands(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        answers = stores[0]
        digest = b"d" * 16
        assert await first(stores, "t", digest) is None
        assert await first(stores, "t", digest) is None, "claimed, and not yet answered"
        assert (await answers.keep("t", "dec_t", b"one")).message == b"one"
        assert (await answers.keep("t", "dec_t", b"two")).message == b"one"
        kept = await first(stores, "t", digest)
        assert (kept.message, kept.told) == (b"one", False)
        answers.told("t")
        kept = await first(stores, "t", digest)
        assert (kept.message, kept.told) == (b"one", True)
        assert (await answers.of_transaction("t")).message == (await answers.of_decision("dec_t")).message == b"one"
        assert await answers.of_transaction("u") is None
        assert await answers.of_decision("dec_u") is None

    using(use)


def test_what_was_reversed_before_it_came_is_neither_new_nor_kept(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        answers = stores[0]
        assert await answers.reverse_ahead("t1")
        assert await answers.reverse_ahead("t1"), "a repeat is the same"
        assert await answers.is_reversed_ahead("t1")
        assert await answers.of_transaction("t1") is None
        with pytest.raises(InvalidRecord, match="reversed before"):
            await first(stores, "t1", b"d")
        assert await first(stores, "t2", b"d") is None
        assert await answers.reverse_ahead("t2"), "under way, and nobody has its answer yet"
        with pytest.raises(InvalidRecord, match="reversed before"):
            await answers.keep("t2", "dec2", b"m")
        await answers.keep("t3", "dec3", b"m")
        assert not await answers.reverse_ahead("t3")
        assert not await answers.is_reversed_ahead("t3")
        assert (await answers.of_transaction("t3")).message == b"m"

    using(use)


def test_what_was_reversed_ahead_for_some_cards_is_new_with_any_other(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        answers = stores[0]
        assert await answers.reverse_ahead("t1", ("4111", "5"))
        assert [await answers.is_reversed_ahead("t1", card) for card in ("411111", "511111", "411211", None)] == [True, True, False, False]
        assert await answers.of_transaction("t1") is None
        with pytest.raises(InvalidRecord, match="reversed before"):
            await first(stores, "t1", b"d", "411111")
        assert await first(stores, "t1", b"d", "411211") is None
        with pytest.raises(Conflict):
            await first(stores, "t1", b"e", "411211")
        assert (await answers.keep("t1", "dec1", b"m", 0, "411211")).message == b"m"
        assert (await first(stores, "t1", b"d", "411211")).message == b"m"
        assert await first(stores, "t2", b"d", "511111") is None
        assert await answers.reverse_ahead("t2", ("5",)), "under way, and nobody has its answer yet"
        with pytest.raises(InvalidRecord, match="reversed before"):
            await answers.keep("t2", "dec2", b"m", 0, "511111")

    using(use)


def test_another_digest_is_a_conflict(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        await first(stores, "t", b"d" * 16)
        with pytest.raises(Conflict):
            await first(stores, "t", b"e" * 16)

    using(use)


def test_what_was_asked_of_a_hold_grows_only_from_what_is_there(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        answers = stores[0]
        assert await answers.of_clearings("t") is None
        assert await answers.swap_clearings("t", None, b"one")
        assert not await answers.swap_clearings("t", None, b"two"), "somebody was first"
        assert await answers.of_clearings("t") == b"one"
        assert await answers.swap_clearings("t", b"one", b"one two")
        assert not await answers.swap_clearings("t", b"one", b"one three")
        assert await answers.of_clearings("t") == b"one two"
        assert await answers.of_transaction("t") is None, "answers and clearings do not meet"
        assert await answers.ended("h") is None

    using(use)


def test_pages_miss_nothing_while_the_list_grows(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        answers = stores[0]

        async def enlist(numbers: range) -> None:
            for number in numbers:
                await answers.keep(f"t{number}", f"dec_{number}", b"%d" % number)
                answers.enlist(Listed(f"t{number}", number, "a1", None))

        async def all_pages() -> list[bytes]:
            page = await answers.page("account", "a1", 1, None)
            found = list(page.messages)
            while page.cursor is not None:
                page = await answers.page("account", "a1", 1, page.cursor)
                found += page.messages
            return found

        await enlist(range(100))
        growing = asyncio.create_task(enlist(range(100, 900)))
        assert (await all_pages())[-100:] == [b"%d" % number for number in reversed(range(100))]
        await growing

    using(use)


def test_a_list_gives_its_newest_first_in_pages_that_nothing_new_disturbs(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        answers = stores[0]
        for number in range(6):
            await answers.keep(f"t{number}", f"dec_{number}", b"%d" % number)
            answers.enlist(Listed(f"t{number}", 1_000 + number // 2, "a1", "c1" if number % 2 else None))
        answers.enlist(Listed("t0", 1_000, "a1", None))  # what is followed twice
        assert (await answers.page("card", "c1", 9, None)) == Page([b"5", b"3", b"1"], None)
        assert await answers.listed("account", "a1") == ["t5", "t4", "t3", "t2", "t1", "t0"]
        assert await answers.listed("account", "a2") == []
        page = await answers.page("account", "a1", 4, None)
        assert page == Page([b"5", b"4", b"3", b"2"], "t2")
        await answers.keep("t9", "dec_9", b"9")
        answers.enlist(Listed("t9", 2_000, "a1", None))
        assert await answers.page("account", "a1", 4, page.cursor) == Page([b"1", b"0"], None)
        assert await answers.page("account", "a1", 4, "nobody") == await answers.page("account", "a2", 4, None) == Page([], None)

    using(use)


def a_place(i: int) -> Callable[[Book], Step | Refusal]:
    """A hold of 10 of the account's money."""
    return lambda book: place(book, f"h{i}", f"t{i}", 10, "EUR", 1_000, 30_000, 9_000_000, UnknownAccount.DECLINE)


def test_concurrent_holds_never_spend_more_than_there_is(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        books = stores[1]
        state = AccountState(account_id="a", currency="EUR", balance_minor=255, as_of_ms=1)
        await books.change("a", lambda book: state_known(book, state))
        (seen,) = await books.read("a")
        steps = await asyncio.gather(*(books.change("a", a_place(i), seen=seen) for i in range(40)))
        assert sum(isinstance(step, Step) for step in steps) == 25
        assert {step for step in steps if not isinstance(step, Step)} == {Refusal.INSUFFICIENT_FUNDS}
        book = Book.from_bytes((await books.read("a"))[0])
        assert book.available_minor(1_000) == 5

    using(use)


def test_changes_that_go_together_are_each_what_they_would_be_alone(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        books = stores[1]
        names = ["a", "b", "c", "a", "unknown", "a"]
        for name in "abc":
            state = AccountState(account_id=name, currency="EUR", balance_minor=25 if name == "a" else 10, as_of_ms=1)
            await books.change(name, lambda book, state=state: state_known(book, state))
        seen = {name: (await books.read(name))[0] for name in names}
        await books.change("b", a_place(9))
        said = await books.change_all([Change(name, a_place(i), seen[name]) for i, name in enumerate(names)])
        refused = [i for i, each in enumerate(said) if isinstance(each, Refusal)]
        assert len([i for i in refused if names[i] == "a"]) == 1, "three of ten each, and there are 25"
        assert {names[i]: said[i] for i in refused} == {
            "a": Refusal.INSUFFICIENT_FUNDS,
            "b": Refusal.INSUFFICIENT_FUNDS,
            "unknown": Refusal.UNKNOWN_ACCOUNT,
        }
        assert Book.from_bytes((await books.read("a"))[0]).available_minor(1_000) == 5
        assert await books.change_all([]) == []

    using(use)


class _Answer:
    """An answer that goes along with a hold."""

    def __init__(self, answers: Any, number: int) -> None:
        self.made, self.answers, self.kept = Made(f"t{number}", f"dec_t{number}", b"hold %d" % number), answers, False

    def words(self, result: Step) -> AnswerWords | None:
        words: AnswerWords | None = self.answers.words(self.made)
        return words

    def was_kept(self) -> None:
        self.kept = True


def test_an_answer_that_goes_along_is_kept_if_its_hold_is_placed_and_not_otherwise(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        answers, books, wire = stores
        names = ["a", "b", "c", "d", "a"]
        for name in "abcd":
            state = AccountState(account_id=name, currency="EUR", balance_minor=25, as_of_ms=1)
            await books.change(name, lambda book, state=state: state_known(book, state))
        seen = {name: (await books.read(name))[0] for name in names}
        along = [_Answer(answers, number) for number in range(len(names))]
        if wire is not None:
            await wire.send(("SCRIPT", "FLUSH"))
        await books.change("b", a_place(9))  # somebody was faster in the account
        await answers.keep("t2", "dec_t2", b"first")  # and in this answer
        said = await books.change_all([Change(name, a_place(i), seen[name], along[i]) for i, name in enumerate(names)])
        assert all(isinstance(each, Step) for each in said), "each is placed, at once or later"
        at_once = [one.kept for one in along]
        assert at_once == [wire is not None and wire.is_single and number in (0, 3) for number in range(len(names))]
        for number, one in enumerate(along):
            kept = await answers.of_transaction(f"t{number}")
            assert kept == (Kept(b"first", told=False) if number == 2 else Kept(one.made.message, told=False) if one.kept else None)
            if one.kept:
                assert await answers.of_decision(f"dec_t{number}") == kept
                assert await wire.send(("TTL", f"ans:t{number}"), ("TTL", f"dec:dec_t{number}")) == [3600, 3600]
            assert await answers.keep(*one.made) == (kept or Kept(one.made.message, told=False))
            held = Book.from_bytes((await books.read(names[number]))[0])
            assert held.hold(f"h{number}") is not None

    using(use)


def test_what_is_kept_is_packed_and_what_was_kept_as_it_is_can_be_read(redis_url: str) -> None:
    async def main() -> None:
        async with opened("redis", redis_url) as (answers, _, wire):
            message = b"\0\0\0\0\1" + bytes(1_344) + b"decision" * 9
            assert await answers.keep("t", "dec_t", message) == Kept(message, told=False)
            answers.told("t")
            assert await answers.of_transaction("t") == Kept(message, told=True)
            (content, _) = await wire.send(("GET", "ans:t"), ("SET", "ans:before", b"T" + message))
            assert len(content) < len(message) / 2
            assert await answers.of_transaction("before") == Kept(message, told=True)

    asyncio.run(main())


def test_where_redis_forgot_neither_a_hold_nor_its_answer_is_kept(redis_url: str) -> None:
    async def main() -> None:
        async with opened("redis", redis_url) as (answers, books, wire):
            await books.change("a", lambda book: state_known(book, AccountState(account_id="a", currency="EUR", balance_minor=25, as_of_ms=1)))
            (seen,), along = await books.read("a"), _Answer(answers, 1)
            await wire.send(("DEL", WHOLE))
            (said,) = await books.change_all([Change("a", a_place(1), seen, along)])
            assert isinstance(said, MemoryUnavailable)
            assert not along.kept
            assert await wire.send(("EXISTS", "ans:t1", "dec:dec_t1"), ("GET", "book:a")) == [0, seen]

    asyncio.run(main())


def test_a_move_that_changes_nothing_writes_nothing(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        books = stores[1]
        assert await books.change("a", a_place(1)) is Refusal.UNKNOWN_ACCOUNT
        assert Book.from_bytes((await books.read("a"))[0]) == EMPTY

    using(use)


def test_processes_that_race_for_an_account_lose_no_hold(redis_url: str) -> None:
    async def main() -> None:
        wires = [await Wire.connect(redis_url) for _ in range(4)]
        stores = [Books(wire) for wire in wires]
        state = AccountState(account_id="a", currency="EUR", balance_minor=10_000, as_of_ms=1)
        await stores[0].change("a", lambda book: state_known(book, state))
        await asyncio.gather(*(stores[i % 4].change("a", a_place(i)) for i in range(60)))
        book = Book.from_bytes((await stores[0].read("a"))[0])
        assert len(book.holds) == 60
        assert book.available_minor(1_000) == 10_000 - 600
        for wire in wires:
            await wire.close()

    asyncio.run(main())


def test_a_redis_that_forgot_decides_nothing(redis_url: str) -> None:
    async def main() -> None:
        wire = await Wire.connect(redis_url)
        answers = Answers(wire, 3600)
        await wire.send((b"FLUSHALL",))
        with pytest.raises(MemoryUnavailable):
            await first((answers, None, wire), "t", b"d" * 16)
        assert not await answers.whole()
        await wire.close()

    asyncio.run(main())


def test_the_script_is_put_back_after_redis_lost_it(redis_url: str) -> None:
    async def main() -> None:
        wire = await Wire.connect(redis_url)
        books = Books(wire)
        state = AccountState(account_id="a", currency="EUR", balance_minor=10, as_of_ms=1)
        await wire.send((b"SCRIPT", b"FLUSH"))
        await books.change("a", lambda book: state_known(book, state))
        assert Book.from_bytes((await books.read("a"))[0]).balance_minor == 10
        await wire.close()

    asyncio.run(main())


def test_an_error_of_redis_is_never_taken_for_an_answer() -> None:
    assert sound([b"OK", None, 1]) == [b"OK", None, 1]
    with pytest.raises(MemoryUnavailable, match="NOREPLICAS"):
        sound([b"OK", hiredis.ReplyError("NOREPLICAS Not enough good replicas to write.")])


def test_a_stub_left_by_told_is_no_answer(redis_url: str) -> None:
    async def main() -> None:
        wire = await Wire.connect(redis_url)
        answers = Answers(wire, 3600)
        answers.told("t")
        assert await answers.of_transaction("t") is None
        assert (await answers.keep("t", "dec_t", b"one")).message == b"one"
        assert (await answers.keep("t", "dec_t", b"two")).message == b"one"
        answers.told("u")
        await answers.restore([Restored("u", "dec_u", b"d" * 16, b"said", 60)])
        assert (await answers.of_decision("dec_u")) == Kept(b"said", told=True)
        await wire.close()

    asyncio.run(main())


def test_no_book_is_written_in_a_redis_that_forgot(redis_url: str) -> None:
    async def main() -> None:
        wire = await Wire.connect(redis_url)
        books = Books(wire)
        state = AccountState(account_id="a", currency="EUR", balance_minor=10, as_of_ms=1)
        await wire.send((b"FLUSHALL",))
        with pytest.raises(MemoryUnavailable, match="FORGOT"):
            await books.change("a", lambda book: state_known(book, state))
        await wire.close()

    asyncio.run(main())


def test_a_row_that_is_appended_to_a_redis_that_forgot_is_not_taken_for_remembered(redis_url: str) -> None:
    """It has no place in the log that will be rebuilt: at its end another row would lie there."""

    async def main() -> None:
        wire = await Wire.connect(redis_url)
        warm(CATALOGUE)
        memory = RedisMemory(wire, CATALOGUE)
        event = AccountEvent(event_id="1", account_id="forgot", kind=AccountEventKind.LOGIN, at_ms=1)
        await wire.send((b"DEL", WHOLE))
        for read in (lambda aside: memory.remember_event(event, aside), lambda aside: memory.decline(a_transaction(), aside)):
            with pytest.raises(MemoryUnavailable, match="rebuilt"):
                await on_whole(read)
        await wire.send((b"SET", WHOLE, b"1"), (b"DEL", CATALOGUE.log_layouts[CATALOGUE.logs.index("account")].key("forgot")))
        places = await on_whole(lambda aside: memory.remember_event(event, aside))
        assert places[CATALOGUE.logs.index("account")] == 0
        await memory.close()
        await wire.close()

    asyncio.run(main())


def test_the_first_retry_stands_also_after_a_rebuild(redis_url: str) -> None:
    async def main() -> None:
        wire = await Wire.connect(redis_url)
        for answers in (Answers(wire, 3600), DictAnswers()):
            assert [await answers.retried_by("t1", own) for own in ("t2", "t3", "t2")] == ["t2"] * 3
            assert await answers.retried_by("t4", "t5") == "t5"
        await wire.send((b"FLUSHALL",))
        answers = Answers(wire, 3600)
        await answers.restore([Restored("t2", "dec_2", b"d" * 16, b"said", 60, None, "t1")])
        assert await answers.retried_by("t1", "t3") == "t2"
        await wire.close()

    asyncio.run(main())


def test_a_rebuilding_by_hand_keeps_its_lock_while_it_reads_without_a_pause(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def reads(settings: Settings, token: bytes, say: Callable[[str], None]) -> Counter[str]:
        time.sleep(1.5)
        wire = await Wire.connect(settings.redis_url)
        assert await wire.send((b"GET", rebuilding.LOCK)) == [token]
        await wire.close()
        return Counter(holds=7)

    monkeypatch.setattr(rebuilding, "LOCK_S", 1)
    monkeypatch.setattr(rebuilding, "rebuilt", reads)
    assert rebuilding.rebuild([], Settings(redis_url=redis_url)) == 0


@pytest.mark.parametrize("kind", ["redis", "cluster"])
def test_movements_that_are_put_back_late_do_not_replace_what_was_followed_since(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, later = request.getfixturevalue(f"{kind}_url"), []

    def moves(_: Settings) -> dict[str, deque[Movement]]:
        if later:
            asyncio.run(later.pop()())  # meanwhile another process has done the same, and follows
        return {"a1": deque([moved("t1")])}

    def moved(name: str) -> Movement:
        return Movement(name, TransactionKind.CASH_IN, 1, "USD", NOON, blocked=False)

    async def follows() -> None:
        wire = await Wire.connect(url)
        await sar.rebuild(sar.SarWorld(wire, a_policy(), Settings()))
        await wire.send((b"RPUSH", b"moves:a1", moved("t2").to_bytes()))
        await wire.close()

    async def main() -> None:
        wire = await Wire.connect(url)
        later.append(follows)
        await sar.rebuild(sar.SarWorld(wire, a_policy(), Settings()))
        (kept,) = await wire.send((b"LRANGE", b"moves:a1", 0, -1))
        assert [Movement.from_bytes(each).transaction_id for each in kept] == ["t1", "t2"]
        await wire.close()

    monkeypatch.setattr(sar, "_movements", moves)
    asyncio.run(main())


def test_movements_that_are_forgotten_while_they_are_put_back_are_not_called_whole(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forgets() -> None:
        wire = await Wire.connect(redis_url)
        await wire.send((b"FLUSHALL",))
        await wire.close()

    def moves(_: Settings) -> dict[str, deque[Movement]]:
        asyncio.run(forgets())
        return {}

    async def main() -> None:
        wire = await Wire.connect(redis_url)
        world = sar.SarWorld(wire, a_policy(), Settings())
        with pytest.raises(MemoryUnavailable, match="again"):
            await sar.rebuild(world)
        monkeypatch.setattr(sar, "_movements", lambda _: {})
        await sar.rebuild(world)
        assert await wire.send((b"EXISTS", sar.WHOLE)) == [1]
        await wire.close()

    monkeypatch.setattr(sar, "_movements", moves)
    asyncio.run(main())


def test_an_answer_is_kept_as_long_as_its_hold_and_a_day_more_with_the_contents_that_a_repeat_is_held_against(using: Callable[[Use], None]) -> None:
    async def use(stores: Any) -> None:
        answers, books, wire = stores
        lives_s = 30 * 86_400
        for number, holds_s, kept in ((0, 0, 3_600), (1, 60, 60 + AFTER_HOLD_S), (2, lives_s, lives_s + AFTER_HOLD_S)):
            await answers.keep(f"t{number}", f"dec_t{number}", b"one", holds_s)
            assert await answers.of_transaction(f"t{number}") == Kept(b"one", told=False)
            if wire is None:  # in memory nothing expires
                continue
            await wire.send(answers.claim(f"t{number}", b"d")[0], answers.claim(f"u{number}", b"d")[0])
            await answers.keep(f"t{number}", f"dec_t{number}", b"one", holds_s)
            along = _Answer(answers, 0)
            along.made = Made(f"u{number}", f"dec_u{number}", b"other", holds_s)
            await books.change(
                f"a{number}", lambda book: state_known(book, AccountState(account_id="a", currency="EUR", balance_minor=25, as_of_ms=1))
            )
            await books.change_all([Change(f"a{number}", a_place(number), (await books.read(f"a{number}"))[0], along)])
            names = [f"{kind}{txn}{number}" for txn in ("t", "u") for kind in ("ans:", "txn:", "dec:dec_")]
            ends = [await wire.send(("TTL", name)) for name in names]
            assert ends[:3] == [[kept]] * 3
            assert not along.kept or ends[3:] == [[kept]] * 3

    using(use)
