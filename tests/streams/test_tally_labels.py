"""Labels that say again, withdraw and name others: each fraud counts once, and whoever computes a tally from the log comes to the same bits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

import msgspec
import numpy as np
from confluent_kafka import Consumer, TopicPartition
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.catalogue import CATALOGUE
from features.memory import DictMemory, Memory
from features.recorded import taught
from features.row import FRAUDS
from features.tally import NOTHING, SLICES, VERDICTS_KEPT, Given, Reads, Verdicts, head_of, learned_in_turn, offsets_in, told, told_all
from features.wire import Wire
from schemas.avro import decode, encode
from schemas.identity import hash64
from schemas.label import Label, LabelSource
from schemas.topics import LABELS
from streams import tally
from streams.bus import KafkaBus, committed_offsets, end_offsets, read_topic
from streams.clock import clock_ms
from streams.follow import Source
from streams.load import ensure_loaded
from streams.loaded import LOADED, fill
from streams.rebuild import Tallied
from streams.settings import Settings, librdkafka
from streams.tally import TallyWorld, gather_lessons
from streams.wired import connected
from tests.streams.test_archive import NOON

HOUR = 3_600_000
DAY = 24 * HOUR
PLAN = CATALOGUE.tally_plan
ENTITIES = [("merchant", "m1"), ("merchant", "m2"), ("terminal", "w1"), ("terminal", "w2")]
Placed = tuple[int, int, Label]
"""A label, and the partition and offset where it lies."""


@st.composite
def labels(draw: st.DrawFn) -> list[Placed]:
    """Labels on a few payments of two partitions, as they come: late, twice, of the one kind and of the other, of this merchant or that."""
    ends = [0, 0]
    made: list[Placed] = []
    for number in range(draw(st.integers(1, 12))):
        txn = draw(st.integers(0, 2))
        again = [each for _, _, each in made if each.transaction_id == f"t{txn}"]
        if again and draw(st.integers(0, 3)) == 0:
            label = draw(st.sampled_from(again))
        else:
            label = Label(
                label_id=f"l{number}",
                transaction_id=f"t{txn}",
                account_id=f"a{txn % 2}",
                fraud=draw(st.sampled_from([True, True, False])),
                learned_at_ms=NOON + draw(st.integers(0, 24)) * 12 * HOUR,
                source=draw(st.sampled_from(LabelSource)),
                transacted_at_ms=draw(st.sampled_from([NOON - txn * DAY] * 4 + [NOON + DAY, None])),
                merchant_id=draw(st.sampled_from(["m1", "m1", "m2", None])),
                terminal_id=draw(st.sampled_from(["w1", "w2", None])),
            )
        partition = txn % 2
        made.append((partition, ends[partition], label))
        ends[partition] += draw(st.integers(1, 2))
    return made


# Brute force.


def believed(on_one: Sequence[Label], kind: str) -> tuple[str, int, int] | None:
    """Whom of this kind the labels on one payment say that a fraud was at, when that was, and when it was learned; None: nobody."""
    newest = accumulate((label.learned_at_ms for label in on_one), max)
    in_time = [label for label, latest in zip(on_one, newest, strict=True) if label.learned_at_ms >= latest]
    honest = [number for number, label in enumerate(in_time) if not label.fraud]
    since = in_time[honest[-1] + 1 if honest else 0 :]
    names = [(getattr(each, f"{kind}_id"), each.transacted_at_ms, each.learned_at_ms) for each in since if each.transacted_at_ms is not None]
    said = [each for each in names if each[0] is not None]
    if not said:
        return None
    others = [number for number, each in enumerate(said) if each[:2] != said[-1][:2]]
    return said[others[-1] + 1 if others else 0]  # type: ignore[return-value]  # it names one, and when


def by_brute_force(told_of: Sequence[Placed], kind: str, token: str, window_ms: int, delay_ms: int, now_ms: int) -> int:
    """How many frauds an entity had in a window, by what these labels say."""
    on: dict[str, list[Label]] = defaultdict(list)
    for _, _, label in told_of:
        on[label.transaction_id].append(label)
    slice_ms = window_ms // SLICES
    end, count = (now_ms - delay_ms) // slice_ms, 0
    for on_one in on.values():
        fraud = believed(on_one, kind)
        if fraud is not None and fraud[0] == token:
            slice_ = -(-max(fraud[1], fraud[2] - delay_ms) // slice_ms)
            count += end - SLICES < slice_ <= end
    return count


# Who computes tallies.


SETTLES, ACKNOWLEDGES, DIES = 1, 2, 4
"""What may come after a label: Redis is told, the log is told so too, the app ends and another begins after what was acknowledged."""


def begun(memory: DictMemory, placed: Sequence[Placed], acknowledged: int, until: int) -> TallyWorld:
    """The app as it begins: it knows what the labels say that were acknowledged, and has read those after them."""
    world = TallyWorld(CATALOGUE, memory, Settings())
    for partition, offset, label in placed[:acknowledged]:
        learned_in_turn(world.verdicts, label, partition, offset)
    for each in placed[acknowledged:until]:
        follow(world, each)
    return world


def follow(world: TallyWorld, placed: Placed) -> None:
    """The app reads a label."""
    partition, offset, label = placed
    tally.on_label(world, label, Source(LABELS.name, partition, offset, clock_ms(), None, None, ()))


def lived(placed: Sequence[Placed], happens: Sequence[int] = ()) -> DictMemory:
    """The memory after the app has followed these labels, and what happens after each of them."""
    memory = DictMemory(CATALOGUE)
    world, acknowledged = begun(memory, placed, 0, 0), 0
    for number, each in enumerate(placed):
        follow(world, each)
        what = happens[number] if number < len(happens) else 0
        if what & SETTLES:
            asyncio.run(tally.settle(world, {}))
            acknowledged = number + 1 if what & ACKNOWLEDGES else acknowledged
        if what & DIES:
            world = begun(memory, placed, acknowledged, number + 1)
    asyncio.run(tally.settle(world, {}))
    return memory


def contents_of(memory: DictMemory, kind: str, token: str) -> list[bytes | None]:
    """A tally among those that are not asked."""
    return [memory.tally(each, token).value if each == kind else None for each in CATALOGUE.tallies]  # type: ignore[attr-defined]  # there already


def rebuilt(placed: Sequence[Placed]) -> dict[str, bytes]:
    """What is made of a log that is read partition by partition, by key."""
    tallied, verdicts = Tallied(CATALOGUE), Verdicts()
    for partition, offset, label in sorted(placed, key=lambda each: each[:2]):
        gather_lessons(CATALOGUE, learned_in_turn(verdicts, label, partition, offset), partition, offset, tallied.rows)
    return {CATALOGUE.tally_layouts[number].key(token): content for (number, token), content in tallied.contents().items()}


CHARGEBACK = Label(
    label_id="l1",
    transaction_id="t0",
    account_id="a0",
    fraud=True,
    learned_at_ms=NOON,
    source=LabelSource.CHARGEBACK,
    transacted_at_ms=NOON,
    merchant_id="m1",
    terminal_id="w1",
)


@settings(deadline=None, max_examples=150)
@given(labels(), st.lists(st.integers(0, 7), max_size=12))
@example([(0, 0, CHARGEBACK), (0, 1, CHARGEBACK)], [SETTLES | ACKNOWLEDGES | DIES])
def test_whatever_labels_say_and_whenever_the_app_begins_each_fraud_counts_once_and_a_rebuild_says_the_same(
    made: list[Placed], happens: list[int]
) -> None:
    memory = lived(made, happens)
    assert {key: content for key, content in memory.contents.items() if key.startswith("tally:")} == rebuilt(made)
    for kind, token in ENTITIES:
        for days in (5, 8, 20, 36):
            now_ms = NOON + days * DAY
            numbers = told(PLAN, contents_of(memory, kind, token), now_ms)
            for fold, number in zip(PLAN.folds, numbers, strict=True):
                if fold.entity.name == kind and fold.where == (FRAUDS,):
                    assert fold.delay is not None
                    assert number == by_brute_force(made, kind, token, fold.window.ms, fold.delay.ms, now_ms), (kind, token, fold)


@settings(deadline=None, max_examples=100)
@given(labels())
def test_every_read_of_a_tally_is_told_again_what_it_was_told_from_the_offsets_that_it_had(made: list[Placed]) -> None:
    learned = taught(made)
    for kind, token in ENTITIES:
        served, heads = [], []
        for until in range(len(made) + 1):
            contents = contents_of(lived(made[:until]), kind, token)
            head = head_of(contents[CATALOGUE.tallies.index(kind)])
            heads.append(offsets_in(head or NOTHING))
            served.append(told(PLAN, contents, NOON + 20 * DAY))
        again = np.full((len(heads), len(PLAN.folds)), np.nan)
        reads = Reads(np.full(len(heads), hash64(token), np.uint64), np.array(heads, np.int64), np.full(len(heads), NOON + 20 * DAY))
        told_all(PLAN, CATALOGUE.tallies.index(kind), Given(learned.tokens[kind], learned.sources, learned.offsets, learned.rows), reads, again)
        assert again.tobytes() == np.array(served).tobytes()


def test_what_labels_say_is_kept_for_as_many_labels_as_they_are_held_against_and_no_longer() -> None:
    verdicts, chargeback = Verdicts(), CHARGEBACK
    assert len(learned_in_turn(verdicts, chargeback, 0, 0)) == 3
    assert learned_in_turn(verdicts, chargeback, 0, VERDICTS_KEPT) == ()
    assert learned_in_turn(verdicts, msgspec.structs.replace(chargeback, transaction_id="t9"), 0, 2 * VERDICTS_KEPT + 1) != ()
    assert list(verdicts[0]) == ["t9"]


# On a real log.


def acknowledged(settings: Settings, ends: dict[int, int]) -> None:
    """The `tally` app has acknowledged the labels before these offsets."""
    consumer = Consumer(librdkafka(settings) | {"group.id": "tally"})
    consumer.commit(offsets=[TopicPartition(LABELS.name, partition, end) for partition, end in ends.items()], asynchronous=False)
    consumer.close()


def ends_of(settings: Settings) -> dict[int, int]:
    """The next offset of each partition of labels."""
    return {partition: end for partition, (_, end) in end_offsets(settings, LABELS).items()}


async def tell(settings: Settings, *labels: Label) -> None:
    """Tells them to the log, in this order."""
    bus = KafkaBus(settings.changed(produce_timeout_ms=20_000))
    for label in labels:
        await bus.tell(LABELS, label.account_id, encode(label))
    await bus.close()


async def begun_again(settings: Settings, memory: Memory) -> None:
    """The app begins, follows all labels that it has not acknowledged, and ends."""
    world, there = TallyWorld(CATALOGUE, memory, settings), ends_of(settings)
    await tally.assigned(world, frozenset((LABELS.name, partition) for partition in there))
    for batch in read_topic(settings, LABELS, committed_offsets(settings, "tally", LABELS)):
        for message in batch:
            tally.on_label(world, decode(Label, message.value), Source(*message, ()))
    await tally.settle(world, {})
    acknowledged(settings, there)


def test_who_begins_rebuilds_or_loads_knows_what_the_labels_before_said(real: Settings) -> None:
    merchant = "whose labels lie in a real log"
    first = msgspec.structs.replace(CHARGEBACK, label_id="r1", transaction_id="r1", merchant_id=merchant)
    second = msgspec.structs.replace(first, label_id="r2", transaction_id="r2")
    later = [msgspec.structs.replace(each, label_id=f"{each.label_id}.2", learned_at_ms=NOON + DAY) for each in (first, second)]
    layout = CATALOGUE.tally_layouts[CATALOGUE.tallies.index("merchant")]
    key, name = layout.key(merchant).encode(), layout.key("").encode()

    async def story() -> tuple[float, list[bytes]]:
        memory = DictMemory(CATALOGUE)
        acknowledged(real, ends_of(real))
        await tell(real, first, second)
        await begun_again(real, memory)
        half, half_way = memory.contents[key.decode()], ends_of(real)
        await tell(real, later[0], msgspec.structs.replace(later[1], fraud=False))
        await begun_again(real, memory)
        made = [memory.contents[key.decode()]]
        wire = await Wire.connect(real.redis_url)
        await wire.send((b"FLUSHALL",))
        await (await connected(real)).close()  # it is rebuilt
        made += await wire.send((b"GET", key))
        for states, before in (({}, None), ({(LABELS.name, partition): end for partition, end in half_way.items()}, half)):
            await wire.send((b"DEL", key), (b"HDEL", LOADED, name))
            if before is not None:  # a loading was under way, and goes on
                await fill(wire, frozenset([name]), states)
                await wire.send((b"SET", key, before))
            await ensure_loaded(real, CATALOGUE, lambda text: None)
            made += await wire.send((b"GET", key))
        await wire.close()
        contents = [made[0] if kind == "merchant" else None for kind in CATALOGUE.tallies]
        (place,) = [n for n, fold in enumerate(PLAN.folds) if (fold.entity.name, fold.where) == ("merchant", (FRAUDS,))]
        return float(told(PLAN, contents, NOON + 20 * DAY)[place]), made

    count, made = asyncio.run(story())
    assert count == 1, "one is known by two labels, the other was none"
    assert [each == made[0] for each in made] == [True] * 4
