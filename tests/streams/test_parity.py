"""`holdfast check --features`: what was served follows from the topics alone, and what does not is named or counted, never passed over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from features.catalogue import CATALOGUE
from features.fact import AT_MS, AT_MS_MAX
from features.recorded import WHY, Why, _columns
from features.tally import learned_in_turn
from schemas.account import AccountEvent, AccountEventKind, AccountState, ProfileValue
from schemas.avro import decode, encode
from schemas.decision import Decision
from schemas.label import Label
from schemas.topics import ACCOUNT_EVENTS, ACCOUNTS, DECISIONS, LABELS, PROFILES, REMEMBERED_EVENTS, Topic
from schemas.transaction import Transaction
from streams.bus import Message
from streams.follow import Source
from streams.parity import Parity, Topics, features_compared
from streams.score import on_account_event
from streams.settings import Settings
from streams.tally import TallyWorld, on_decision, on_label, settle
from tests.bench.parity import Traffic
from tests.world import NOON, TestWorld, a_transaction, a_world

DAY_MS = 86_400_000


@dataclass
class Bank:
    """A world whose topics are followed, and can be read afterwards."""

    at: TestWorld = field(default_factory=a_world)
    read: dict[str, int] = field(default_factory=lambda: {DECISIONS.name: 0, LABELS.name: 0})
    events: int = 0
    dropped: int = 0
    """How many of the oldest records of each topic the broker says that it has no more."""

    async def decide(self, txn: Transaction) -> None:
        """Decides a payment."""
        self.at.now_ms = max(self.at.now_ms, txn.at_ms)
        await self.at.decide(txn)

    async def happened(self, event: AccountEvent) -> None:
        """An account event comes by its topic."""
        self.events += 1
        source = Source(ACCOUNT_EVENTS.name, 0, self.events, 0, None, None, frozenset())
        await on_account_event(self.at.world, event, source)

    async def state(self, state: AccountState) -> None:
        """The bank says what it knows of an account, and the `hold` app passes it on."""
        await self.at.bus.tell(ACCOUNTS, state.account_id, encode(state))
        await self.at.world.memory.know_account(state)

    async def known(self, value: ProfileValue) -> None:
        """A job makes a value known."""
        await self.at.bus.tell(PROFILES, value.value_id, encode(value))
        await self.at.world.memory.know(value.kind, value.token, value.column, value.value, value.known_at_ms)

    async def label(self, label: Label) -> None:
        """The bank learned something."""
        await self.at.bus.tell(LABELS, label.account_id, encode(label))

    async def followed(self) -> None:
        """The `tally` app starts again and reads all that is new in the topics."""
        follower = TallyWorld(self.at.world.catalogue, self.at.world.memory, Settings())
        for message in self.at.bus.told[LABELS.name][: self.read[LABELS.name]]:
            learned_in_turn(follower.verdicts, decode(Label, message.value), message.partition, message.offset)
        for topic, kind, handler in ((DECISIONS, Decision, on_decision), (LABELS, Label, on_label)):
            for message in self.at.bus.told[topic.name][self.read[topic.name] :]:
                handler(follower, decode(kind, message.value), Source(*message, frozenset()))  # type: ignore[operator]
            self.read[topic.name] = len(self.at.bus.told[topic.name])
        await settle(follower, {})

    def ends(self, topic: Topic) -> dict[int, tuple[int, int]]:
        """The offsets of a topic."""
        return {0: (self.dropped, len(self.at.bus.told[topic.name]))}

    def compared(self) -> Parity:
        """What the check says."""
        topics = Topics(lambda topic: [self.at.bus.told[topic.name]], self.ends)
        return features_compared(topics, self.at.world.catalogue)

    def changed(self, number: int, **changes: object) -> None:
        """Another decision in the place of one in the log."""
        message = self.at.bus.told[DECISIONS.name][number]
        decision = msgspec.structs.replace(decode(Decision, message.value), **changes)
        self.at.bus.told[DECISIONS.name][number] = message._replace(value=encode(decision))

    def without(self, topic: Topic, gone: Callable[[Message], bool]) -> None:
        """Takes records out of a topic; the others keep their offsets."""
        self.at.bus.told[topic.name] = [message for message in self.at.bus.told[topic.name] if not gone(message)]


def lived(story: Callable[[Bank], Awaitable[None]]) -> Bank:
    """A bank in which this happened."""

    async def living() -> Bank:
        bank = Bank()
        await story(bank)
        return bank

    return asyncio.run(living())


def traffic(seed: str, count: int = 400) -> Callable[[Bank], Awaitable[None]]:
    """A mixed history; the tallies are followed now and then."""

    async def story(bank: Bank) -> None:
        mixed = Traffic(count, seed, NOON)
        chance = mixed.chance
        for i, (txn, _) in enumerate(mixed.arrivals()):
            if i % (count // 3) == 0:
                for state in mixed.states(txn.at_ms - chance.randrange(DAY_MS)):
                    await bank.state(state)
            if chance.random() < 0.2:
                await bank.happened(mixed.event(min(i, count - 1)))
            if chance.random() < 0.1:
                await bank.label(mixed.label(min(i, count - 1)))
            if chance.random() < 0.1:
                size, at_ms = float(chance.randrange(9)), txn.at_ms - chance.randrange(9)
                await bank.known(
                    ProfileValue(value_id="v", kind="account", token=txn.account_id, column="cluster_size", value=size, known_at_ms=at_ms)
                )
            if chance.random() < 0.2:
                await bank.followed()
            await bank.decide(txn)

    return story


@pytest.mark.parametrize("seed", ["one", "two", "three"])
def test_every_vector_of_a_mixed_history_follows_from_the_topics(seed: str) -> None:
    found = lived(traffic(seed)).compared()
    assert found.agrees, found.lines()
    assert (found.compared, found.equal, sum(found.not_comparable.values())) == (400, 400, 0), found.lines()


def test_the_order_of_the_log_does_not_matter_but_its_positions() -> None:
    bank = lived(traffic("order", 150))
    for topic in (DECISIONS, REMEMBERED_EVENTS):
        bank.at.bus.told[topic.name].reverse()
    assert bank.compared().equal == 150


def test_one_bit_of_one_vector_is_found_and_named() -> None:
    bank = lived(traffic("bit", 60))
    vector = np.frombuffer(bank.at.decisions[17].vector).copy()
    column = CATALOGUE.index["velocity.account_count_24h"]
    served = vector[column]
    vector[column] = np.nextafter(served, 1e9)
    bank.changed(17, vector=vector.tobytes())
    found = bank.compared()
    assert not found.agrees
    assert (found.equal, found.different, found.features) == (59, 1, {"velocity.account_count_24h": 1})
    (difference,) = found.differences
    assert (difference.transaction_id, difference.served, difference.recomputed) == (bank.at.decisions[17].transaction_id, vector[column], served)
    assert any("bit-" in line and "velocity.account_count_24h" in line for line in found.lines())


async def five_payments(bank: Bank) -> None:
    """Of one card, a minute apart, followed each."""
    for n in range(5):
        await bank.decide(a_transaction(f"t{n}", at_ms=NOON + n * 60_000))
        await bank.followed()


def counted(found: Parity) -> tuple[int, dict[str, int]]:
    """How many are equal, and why others were not compared."""
    assert found.agrees, found.lines()
    return found.equal, found.not_comparable


def test_what_rests_on_a_row_of_which_no_decision_speaks_is_counted_and_not_compared() -> None:
    async def story(bank: Bank) -> None:
        await five_payments(bank)
        await bank.at.world.memory.recall(a_transaction("never decided", at_ms=NOON + 400_000))
        await bank.decide(a_transaction("after", at_ms=NOON + 500_000))
        await bank.decide(a_transaction("elsewhere", at_ms=NOON + 500_000, card_token="crd_k1_2", account_id="a2"))

    assert counted(lived(story).compared()) == (6, {"a log has a row before it that no record speaks of": 1})


def test_a_log_that_began_again_is_not_compared_from_there_on() -> None:
    async def story(bank: Bank) -> None:
        await five_payments(bank)
        memory = bank.at.world.memory
        for key in [key for key in memory.contents if key.startswith("log:")]:  # type: ignore[attr-defined]
            del memory.contents[key]  # type: ignore[attr-defined]
        for n in range(3):
            await bank.decide(a_transaction(f"again{n}", at_ms=NOON + n * 60_000))

    equal, why = counted(lived(story).compared())
    assert why == {WHY[Why.BEGAN_AGAIN]: 8 - equal}
    assert equal == 2, "the first of each life"


def test_where_another_release_wrote_a_log_of_its_own_meanwhile_is_not_compared() -> None:
    async def story(bank: Bank) -> None:
        await five_payments(bank)
        memory = bank.at.world.memory
        before = {key: log for key, log in memory.contents.items() if key.startswith("log:")}  # type: ignore[attr-defined]
        await bank.decide(a_transaction("theirs", at_ms=NOON + 400_000))
        memory.contents |= before  # type: ignore[attr-defined]
        await bank.decide(a_transaction("ours", at_ms=NOON + 500_000))
        await bank.decide(a_transaction("after", at_ms=NOON + 600_000))

    bank = lived(story)
    bank.changed(5, catalogue_id="cat_theirs")
    assert counted(bank.compared()) == (6, {WHY[Why.CATALOGUE]: 1, WHY[Why.BEGAN_AGAIN]: 1}), "its first place is the same in both"


def test_a_profile_value_that_the_topics_have_no_more_is_not_compared() -> None:
    async def story(bank: Bank) -> None:
        for as_of_ms in (NOON - 2, NOON + 90_000):
            await bank.state(AccountState(account_id="a1", currency="EUR", balance_minor=9, credit_limit_minor=as_of_ms, as_of_ms=as_of_ms))
            await five_payments(bank) if as_of_ms < NOON else await bank.decide(a_transaction("new", at_ms=NOON + 500_000))

    bank = lived(story)
    assert counted(bank.compared()) == (6, {})
    bank.without(ACCOUNTS, lambda message: decode(AccountState, message.value).as_of_ms < NOON)
    assert counted(bank.compared()) == (1, {"a profile value that it saw is no longer in the topics": 5})


def test_a_state_that_was_not_known_yet_makes_no_difference() -> None:
    async def story(bank: Bank) -> None:
        await bank.state(AccountState(account_id="a1", currency="EUR", balance_minor=9, opened_at_ms=5, as_of_ms=NOON + DAY_MS))
        await five_payments(bank)
        assert all(decision.profile_positions == b"" for decision in bank.at.decisions)

    assert counted(lived(story).compared()) == (5, {})


def test_another_catalogue_and_a_tally_ahead_of_the_reading_are_not_compared() -> None:
    bank = lived(five_payments)
    bank.changed(2, catalogue_id="cat_another")
    heads = bank.at.decisions[4].tally_positions
    bank.changed(4, tally_positions=(99).to_bytes(5, "little") + heads[5:])
    why = {"another catalogue decided it": 1, "a tally had taken what came after this reading of the topics began": 1}
    assert counted(bank.compared()) == (3, why)


def test_what_a_tally_had_of_dropped_records_is_not_compared() -> None:
    bank = lived(five_payments)
    bank.dropped = 1
    assert counted(bank.compared()) == (1, {"a tally had taken what the topics have dropped": 4})


def test_a_decision_without_a_memory_that_did_not_answer_is_not_compared() -> None:
    bank = lived(five_payments)
    bank.changed(4, positions=(-1,) * len(CATALOGUE.logs))
    assert counted(bank.compared()) == (4, {"a memory did not answer when it was decided": 1})


def test_a_decision_without_a_tally_that_did_not_answer_is_not_compared() -> None:
    async def story(bank: Bank) -> None:
        await five_payments(bank)
        await bank.followed()
        await bank.decide(a_transaction("t-late", at_ms=NOON))

    bank = lived(story)
    read = bank.at.decisions[5]
    assert any(read.tally_positions), "it had taken the five"
    vector = np.frombuffer(read.vector).copy()
    vector[CATALOGUE.index["merchant.merchant_count_1h"]] = np.nan
    unread = {"vector": vector.tobytes(), "tally_positions": bytes(len(read.tally_positions))}
    bank.changed(5, **unread)
    assert bank.compared().different == 1, "as if the tally were new"
    bank.changed(5, degradations=("memory_missing:merchant",))
    assert counted(bank.compared()) == (5, {"a memory did not answer when it was decided": 1})


def test_a_tally_that_went_back_in_time_is_not_compared() -> None:
    async def story(bank: Bank) -> None:
        await five_payments(bank)
        await bank.label(Traffic(20, "l", NOON).label(3))

    def head(decisions: int, labels: int) -> bytes:
        offsets = [decisions, *(0,) * (DECISIONS.partitions - 1), labels, *(0,) * (LABELS.partitions - 1)]
        return b"".join(offset.to_bytes(5, "little") for offset in offsets) * len(CATALOGUE.tallies)

    bank = lived(story)
    bank.changed(3, tally_positions=head(3, 1))
    bank.changed(4, tally_positions=head(5, 0))
    assert counted(bank.compared()) == (0, {"a tally had gone back in time": 5})


def test_more_entities_than_a_million_have_each_its_own_newest_time() -> None:
    owners = np.arange((1 << 21) + 2) // 2
    facts = np.column_stack([np.zeros_like(owners)] * 2 + [owners % 7 + 1])
    facts[:, AT_MS] = np.where(np.arange(len(owners)) % 2 == 0, AT_MS_MAX - owners, 5)
    starts = np.arange(0, len(owners), 2)
    log = SimpleNamespace(layout=SimpleNamespace(facts=np.arange(3)), source=np.arange(len(owners)), starts=starts, group=owners)
    newest = _columns(log, facts).reshape(3, -1)[-1]  # type: ignore[arg-type]  # of _Placed what it reads
    assert np.array_equal(newest, np.repeat(AT_MS_MAX - owners[::2], 2))


def test_nothing_in_the_log_is_nothing_to_compare() -> None:
    assert counted(Bank().compared()) == (0, {})


def test_one_events_id_at_two_accounts_is_two_rows() -> None:
    async def story(bank: Bank) -> None:
        for account in ("a1", "a2"):
            await bank.happened(AccountEvent(event_id="same", account_id=account, kind=AccountEventKind.LOGIN, at_ms=NOON - 1))
            await bank.decide(a_transaction(f"t-{account}", account_id=account, card_token=f"crd_{account}"))

    assert counted(lived(story).compared()) == (2, {})


def test_an_event_is_told_where_it_lies_and_told_again_with_the_same_place() -> None:
    async def story(bank: Bank) -> None:
        event = Traffic(20, "e", NOON).event(3)
        await bank.happened(event)
        await bank.happened(event)

    first, second = lived(story).at.bus.records(REMEMBERED_EVENTS)
    assert first.positions == second.positions  # type: ignore[attr-defined]
    assert first.remembered_id == second.remembered_id  # type: ignore[attr-defined]
