"""The SAR app: holds each decision against its account's recent movements, and tells the patterns that it completes.

The movements are kept in Redis (`moves:<account>`, a list, the newest last) and can be had again from the log: `whole:moves` says
that Redis has not forgotten them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from features.wire import Command, Wire
from models.policy import Policy
from models.registry import Registry
from models.sar import MOVEMENTS_MAX, Movement, candidates, movement_of, window_ms
from schemas.avro import decode
from schemas.decision import Decision
from schemas.errors import HoldfastError, InvalidRecord, MemoryUnavailable
from schemas.governance import Kind
from schemas.record import Record
from schemas.topics import DECISIONS, SAR_CANDIDATES
from streams import journal, metrics
from streams.answers import sound
from streams.bus import Bus, read_topic
from streams.control import Standing, waited_for
from streams.folder import keys_of
from streams.follow import Follower, Source, run_follower
from streams.settings import Settings

WHOLE, BUILDING = b"whole:moves", b"building:moves"
ACCOUNTS_AT_A_TIME = 200
POLICY_S = 2.0
NO_RATE = "no_usd_rate"
"""What is missing where a currency has no rate in the policy: no pattern is looked for in it."""

_PUT = b"""
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
redis.call('DEL', KEYS[1])
redis.call('RPUSH', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""
"""Nothing is put over what another process put back, and follows; and what forgets in the middle of it is not called whole."""
_DONE = b"if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end redis.call('SET', KEYS[1], '1') return 1"


@dataclass(slots=True)
class SarWorld:
    """Redis, the policy in force, and how to put Redis back."""

    wire: Wire
    policy: Policy
    settings: Settings
    standing: Standing | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    without_rate: set[str] = field(default_factory=set)

    async def close(self) -> None:
        """Lets Redis go."""
        if self.standing is not None:
            self.standing.close()
        await self.wire.close()


async def on_decision(world: SarWorld, decision: Decision, source: Source) -> Sequence[Record]:
    """Remembers the movement, looks at those before it, and says which patterns it completes. A repeat says the same."""
    new = movement_of(decision)
    if new is None:
        return ()
    if new.currency not in world.policy.sar.usd_per_unit:
        _degraded(world, new.currency)
    key = _key(decision.account_id)
    whole, _, _, _, moves = await world.wire.send(
        (b"EXISTS", WHOLE),
        (b"RPUSH", key, new.to_bytes()),
        (b"LTRIM", key, -MOVEMENTS_MAX, -1),
        (b"PEXPIRE", key, _kept_ms(world)),
        (b"LRANGE", key, 0, -1),
    )
    if not whole:
        await rebuild(world)
        raise MemoryUnavailable("Redis had forgotten the movements: they were put back from the log")
    if not isinstance(moves, list):
        raise MemoryUnavailable(f"the movements of an account could not be read: {moves}")
    return candidates(world.policy, _once(map(Movement.from_bytes, moves)), decision, source.topic, source.partition, source.offset)


def _degraded(world: SarWorld, currency: str) -> None:
    """Counts a movement in which no pattern can be found, and says so, once for each currency."""
    metrics.DEGRADATIONS.labels(NO_RATE).inc()
    if currency not in world.without_rate:
        world.without_rate.add(currency)
        journal.logger().warning(NO_RATE, currency=currency, policy_id=world.policy.policy_id)


async def rebuild(world: SarWorld) -> None:
    """Puts the movements of all accounts back from the log of decisions, unless it was done meanwhile."""
    async with world.turn:
        (whole,) = await world.wire.send((b"EXISTS", WHOLE))
        if whole:
            return
        sound(await world.wire.send((b"SET", BUILDING, b"1")))
        moves = await asyncio.to_thread(_movements, world.settings)
        for some in _in_parts(list(moves.items())):
            await _built(world, [_put_back(world, _key(account_id), kept) for account_id, kept in some])
        await _built(world, [(b"EVAL", _DONE, b"2", WHOLE, BUILDING)])
        journal.logger().info("movements put back from the log", accounts=len(moves))


async def _built(world: SarWorld, commands: Sequence[Command]) -> None:
    """Does so much of a rebuilding. MemoryUnavailable if Redis forgot since it began."""
    if not all(sound(await world.wire.send(*commands))):
        raise MemoryUnavailable("Redis forgot again while the movements were put back")


def _in_parts(accounts: list[tuple[str, deque[Movement]]]) -> Iterable[list[tuple[str, deque[Movement]]]]:
    return (accounts[i : i + ACCOUNTS_AT_A_TIME] for i in range(0, len(accounts), ACCOUNTS_AT_A_TIME))


def _put_back(world: SarWorld, key: bytes, kept: Iterable[Movement]) -> Command:
    return (b"EVAL", _PUT, b"3", key, WHOLE, BUILDING, _kept_ms(world), *(m.to_bytes() for m in kept))


def _movements(settings: Settings) -> dict[str, deque[Movement]]:
    """Each account's newest movements, as the log tells them."""
    moves: dict[str, deque[Movement]] = defaultdict(lambda: deque(maxlen=MOVEMENTS_MAX))
    for batch in read_topic(settings, DECISIONS):
        for message in batch:
            try:
                decision = decode(Decision, message.value)
            except InvalidRecord:
                continue
            if movement := movement_of(decision):
                moves[decision.account_id].append(movement)
    return moves


def _once(movements: Iterable[Movement]) -> list[Movement]:
    """Each movement once, where it came first (a redelivered decision appends its movement again)."""
    first: dict[str, Movement] = {}
    for movement in movements:
        first.setdefault(movement.transaction_id, movement)
    return list(first.values())


def _key(account_id: str) -> bytes:
    return b"moves:" + account_id.encode()


def _kept_ms(world: SarWorld) -> int:
    return 2 * window_ms(world.policy)


async def stay_current(world: SarWorld, _: frozenset[int]) -> Sequence[Record]:
    """Takes over a policy that was promoted or rolled back, by people or by the breaker; one that cannot be read yet is said, not taken."""
    if world.standing is not None:
        try:
            world.policy = await asyncio.to_thread(_policy, world.standing)
        except (HoldfastError, OSError) as error:
            journal.logger().error("the promoted policy cannot be used", reason=str(error))
    return ()


def _policy(standing: Standing) -> Policy:
    return standing.registry.policy_of(standing.item_id(Kind.POLICY))


APP = Follower(name="sar", reads={DECISIONS: on_decision}, writes=(SAR_CANDIDATES,), every=((POLICY_S, stay_current),))


async def sar_world(settings: Settings, bus: Bus) -> SarWorld:
    """Redis and the promoted policy of the settings; the movements are there."""
    wire = await Wire.connect(settings.redis_url, settings.redis_password or None, settings.redis_username or None)
    standing = Standing(Registry(settings.registry_dir, keys_of(settings)), settings)
    world = SarWorld(wire, await waited_for("a policy", lambda: _policy(standing)), settings, standing)
    try:
        await rebuild(world)
    except HoldfastError as error:
        journal.logger().warning("the movements cannot be put back yet", reason=str(error))
    return world


def run(settings: Settings) -> int:
    """`holdfast run sar`."""
    return run_follower(APP, sar_world, settings)
