"""The worlds of the apps that decide and of those that keep Redis, wired from the settings, and how each of these apps is run."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features.catalogue import CATALOGUE, Catalogue
from features.online import RedisMemory, warm
from features.wire import Wire
from models.hold import UnknownAccount
from schemas.account import AccountState
from schemas.controls import Controls
from schemas.errors import HoldfastError, Unavailable
from schemas.governance import Control
from schemas.topics import ACCOUNT_CONTROLS, ACCOUNTS, CONTROL, Topic
from streams import journal, metrics
from streams.answers import WHOLE, Answers, sound
from streams.books import Books
from streams.breaker import watch_rates
from streams.bus import Bus, KafkaBus, end_offsets
from streams.clock import clock_ms
from streams.control import HEAR_S, Ear
from streams.folder import required_keys
from streams.forced import cards_of, force, stand_in_of
from streams.forward import forward
from streams.hold import HoldWorld
from streams.judgement import Bench, first_panel, stay_current
from streams.lane import Place, as_fields
from streams.load import ensure_loaded, load
from streams.loaded import is_kept, is_left
from streams.opinion import give
from streams.pipeline import decide_all
from streams.rebuild import ensure_whole, forget_if_behind, rebuilt
from streams.settings import Settings
from streams.stand_in import StandIn
from streams.tally import NOTE, TALLIED, TallyWorld
from streams.tracing import Tracer
from streams.world import Together, World

REFRESH_S = 2.0
MEMORY_SHARE = 0.4
"""Of the time that a host waits: Redis is late when one answer takes longer, and then nobody waits for it until it answers again."""
OPINIONS_LINGER_MS = 2
"""So long second opinions wait to be sent together: nobody waits for them."""
GARBAGE = 50_000
"""Objects made before a collection of the youngest: a decision's records hold no circles, so that collecting often finds nothing."""
NOTHING_KNOWN = np.full(len(CATALOGUE.names), np.nan)
"""The vector with which the compiled code is made to load before the first payment."""


@dataclass
class Parts:
    """What every app that uses Redis shares; `close` ends it."""

    settings: Settings
    wire: Wire
    catalogue: Catalogue
    memory: RedisMemory
    answers: Answers
    books: Books
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def close(self) -> None:
        """Ends what runs beside the work, and lets Redis go."""
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            with suppress(asyncio.CancelledError):
                await task
        await self.memory.close()
        await self.wire.close()


async def connected(settings: Settings, timeout_s: float = 1.0) -> Parts:
    """The parts on the Redis of the settings, once it is whole: rebuilt from the log if it has forgotten, or has gone back in time."""
    wire = await Wire.connect(settings.redis_url, settings.redis_password or None, settings.redis_username or None, timeout_s)
    parts = Parts(settings, wire, CATALOGUE, RedisMemory(wire, CATALOGUE), Answers(wire, settings.answer_ttl_s), Books(wire))
    await forget_if_behind(settings, wire)
    while True:
        try:
            await ensure_whole(wire, rebuilder(settings))
            await stay_loaded(parts)
            return parts
        except Unavailable as error:
            journal.logger().warning("the rebuilding begins again", reason=str(error))
            await asyncio.sleep(REFRESH_S)


def rebuilder(settings: Settings) -> Callable[[bytes], Awaitable[object]]:
    """What puts Redis back from the log, in a thread and a loop of its own: this one goes on answering."""
    log = journal.logger()
    return lambda token: asyncio.to_thread(lambda: asyncio.run(rebuilt(settings, token, log.info)))


async def stay_loaded(parts: Parts) -> None:
    """Returns when Redis has what this release reads, up to the end that the topics have now: another may decide beside it and write its own."""
    if not await is_kept(parts.wire, parts.catalogue):
        log = journal.logger()
        await asyncio.to_thread(lambda: asyncio.run(ensure_loaded(parts.settings, parts.catalogue, log.info)))


async def stay_whole(parts: Parts) -> None:
    """Rebuilds Redis when it has come back empty; meanwhile nothing is decided, because every decision asks for the mark."""
    while True:
        await asyncio.sleep(REFRESH_S)
        with suppress(HoldfastError):
            (whole,) = sound(await parts.wire.send((b"EXISTS", WHOLE)))
            if not whole:
                journal.logger().warning("redis has forgotten: rebuilding from the log")
                await ensure_whole(parts.wire, rebuilder(parts.settings))


async def stay_level(parts: Parts) -> None:
    """Follows for this release what another decides, where nobody else does it: in a thread and a loop of its own."""
    log, stop = journal.logger(), threading.Event()
    try:
        while True:
            await asyncio.sleep(REFRESH_S)
            with suppress(HoldfastError):
                if await is_left(parts.wire, parts.catalogue):
                    log.warning("another release decides: following what it leaves in the past")
                    await asyncio.to_thread(lambda: asyncio.run(load(parts.settings, parts.catalogue, None, stop.is_set, log.info)))
    finally:
        stop.set()


def beside(parts: Parts, work: Coroutine[Any, Any, None]) -> None:
    """Runs something beside the work. If it ends by an error, so does the process: it must not be missed in silence."""
    task = asyncio.create_task(work)
    task.add_done_callback(_must_not_end)
    parts.tasks.append(task)


def _must_not_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        journal.logger().critical("failed beside the work", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)


async def authorizing_world(settings: Settings, bus: Bus) -> World:
    """The World of `authorize`: whoever asks it waits, so that Redis is late sooner, and somebody stands in."""
    world = await deciding_world(settings, bus, min(1.0, MEMORY_SHARE * settings.request_deadline_ms / 1000))
    world.tracer = Tracer.of(settings, "authorize")
    stand_in = world.stand_in = await asyncio.to_thread(stand_in_of, settings, world.cards, clock_ms())
    if stand_in is None:
        return world
    await asyncio.to_thread(stand_in.learn, settings)
    let_go = world.close

    async def close() -> None:
        for task in beside_it:
            task.cancel()
        await asyncio.gather(*beside_it, return_exceptions=True)
        await stand_in.close()
        if let_go is not None:
            await let_go()

    controls = Ear(settings, ACCOUNT_CONTROLS, Controls, stand_in.controls_known)
    works = [forward(stand_in, world), obey(stand_in, controls), obey(stand_in, Ear(settings, ACCOUNTS, AccountState))]
    beside_it = [asyncio.create_task(work) for work in works]
    for task in beside_it:
        task.add_done_callback(_must_not_end)
    world.close = close
    return world


async def obey(stand_in: StandIn, ear: Ear[Controls] | Ear[AccountState]) -> None:
    """Tells the stand-in of controls, or of accounts, for as long as it runs, whoever said them: Redis, which has them too, may not answer.

    Without a pause while there are more: a bank says all its accounts at once.
    """
    try:
        while True:
            heard: Sequence[Controls | AccountState] = await asyncio.to_thread(ear.heard, HEAR_S)
            for said in heard:
                stand_in.obey(said)
            if not heard:
                await asyncio.sleep(HEAR_S)
    finally:
        ear.close()


async def deciding_world(settings: Settings, bus: Bus, memory_timeout_s: float = 1.0) -> World:
    """The World of the apps that decide: `authorize` and `score`."""
    cards = cards_of(settings)
    parts = await connected(settings, memory_timeout_s)
    ear, bench = Ear(settings, CONTROL, Control), Bench(settings, parts.catalogue)
    panel, told = await first_panel(bench, ear)
    warm(parts.catalogue)
    model, policy = panel.champions
    (scored,) = model.score_all(NOTHING_KNOWN[np.newaxis])
    model.contributions(scored, NOTHING_KNOWN)
    policy.fired(NOTHING_KNOWN)
    world = World(
        catalogue=parts.catalogue,
        panel=panel,
        memory=parts.memory,
        books=parts.books,
        answers=parts.answers,
        bus=bus,
        unknown_account=UnknownAccount(settings.unknown_account),
        hold_lease_ms=settings.hold_lease_ms,
        future_ms_max=settings.future_ms_max,
        clock_ms=clock_ms,
        observe=metrics.observe,
        together=Together(decide_all),
        close=parts.close,
    )
    beside(parts, stay_whole(parts))
    beside(parts, stay_current(world, bench, ear, told))
    if cards is None:
        beside(parts, watch_rates(world, bench.registry))
    else:  # where cards decide, what is decided says nothing of the model
        force(world, cards)
    beside(parts, second_opinions(world, settings))
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)
    return world


async def second_opinions(world: World, settings: Settings) -> None:
    """Lets those who stand by give theirs, on a connection of their own: a broker answers each connection's requests one after the other."""
    await world.opinions.some.wait()
    bus = KafkaBus(settings, OPINIONS_LINGER_MS)
    try:
        await give(world.opinions, bus, world.together)
    finally:
        await bus.close()


async def hold_world(settings: Settings, bus: Bus) -> HoldWorld:
    """The World of the `hold` app."""
    parts = await connected(settings)
    beside(parts, stay_whole(parts))

    async def log_ends(topic: Topic, partitions: Collection[int]) -> dict[int, int]:
        return {partition: end for partition, (_, end) in (await asyncio.to_thread(end_offsets, settings, topic, partitions)).items()}

    return HoldWorld(parts.wire, parts.books, parts.answers, parts.memory, bus, clock_ms, log_ends, parts.close)


def run_authorize(settings: Settings) -> int:
    """The HTTP door."""
    from streams.authorize.serve import serve

    required_keys(settings)
    return serve(settings, authorizing_world)


def run_score(settings: Settings) -> int:
    """The app that decides transactions of the topic."""
    from streams.follow import run_follower
    from streams.score import APP

    required_keys(settings)
    return run_follower(APP, deciding_world, settings)


def run_hold(settings: Settings) -> int:
    """The app that keeps the books."""
    from streams.follow import run_follower
    from streams.hold import APP

    return run_follower(APP, hold_world, settings)


async def tally_world(settings: Settings, bus: Bus) -> TallyWorld:
    """The World of the `tally` app."""
    parts = await connected(settings)
    beside(parts, stay_whole(parts))
    beside(parts, stay_level(parts))

    async def note(done: Mapping[Place, int]) -> None:
        sound(await parts.wire.send((b"EVAL", NOTE, b"1", TALLIED, *as_fields(done))))

    return TallyWorld(parts.catalogue, parts.memory, settings, parts.close, lambda: stay_loaded(parts), note)


def run_tally(settings: Settings) -> int:
    """The app that keeps the tallies."""
    from streams.follow import run_follower
    from streams.tally import APP

    return run_follower(APP, tally_world, settings)
