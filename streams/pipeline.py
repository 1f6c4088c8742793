"""`decide`: recall, look, judge, hold, tell. The one way by which anything is decided, for HTTP, ISO 8583 and Faust alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from features.catalogue import Catalogue
from features.engine import Look, Past, look
from features.memory import Aside, Memory
from models.decision import Verdict, judge, refused
from models.ensemble import Ensemble
from models.hold import Book, OpenHold, Refusal, UnknownAccount, place, standing
from models.policy import Policy, hold_lifetime_ms
from schemas import avro, identity
from schemas.decision import Decision, Outcome
from schemas.errors import MemoryUnavailable
from schemas.topics import DECISIONS
from schemas.transaction import Transaction
from streams.answers import Answers, DictAnswers, Kept, on_whole
from streams.books import Books, DictBooks
from streams.bus import Bus


class Origin(NamedTuple):
    """Where a transaction came from: topic, partition and offset, or HTTP."""

    topic: str
    partition: int
    offset: int


HTTP = Origin("http", -1, -1)


@dataclass(slots=True)
class World:
    """Everything a decision needs, wired once in `streams/cli.py`. Ensemble and policy are replaced when others are promoted."""

    catalogue: Catalogue
    ensemble: Ensemble
    policy: Policy
    memory: Memory
    books: Books | DictBooks
    answers: Answers | DictAnswers
    bus: Bus
    unknown_account: UnknownAccount
    hold_lease_ms: int
    future_ms_max: int
    clock_ms: Callable[[], int]
    observe: Callable[[str, float], None]
    close: Callable[[], Awaitable[None]] | None = None


class Decided(NamedTuple):
    """A decision that the log has: its message, and the record itself where it was made here and now."""

    message: bytes
    decision: Decision | None


async def decide(txn: Transaction, world: World, now_ms: int, origin: Origin = HTTP, logged: Container[Origin] = ()) -> Decided:
    """The decision's message, once the log has it: the first to this transaction, whoever asked first.

    `now_ms` becomes the decision's time. `logged` are the origins that the log is known to have already. Conflict if the
    id came before with other contents; Unavailable if Redis or Kafka did not answer: then the same call again is safe.
    """
    stops = Stops(world.observe)
    content = avro.body(txn)
    past, book, first = await recall(txn, content, world)
    decision = None
    stops.passed("recall")
    if first is None:
        seen = look(world.catalogue, txn, past)
        stops.passed("look")
        degradations = tuple([f"memory_missing:{kind}" for kind in past.missing])
        verdict = judge(world.ensemble, world.policy, world.catalogue.reason_of, txn, seen.values, degradations)
        stops.passed("judge")
        verdict, hold = await settle(txn, verdict, book, world, now_ms)
        declined = await declined_at(txn, verdict, world)
        stops.passed("hold")
        decision = decided(txn, seen, verdict, hold, declined, world, now_ms, origin)
        message = avro.encode_before(decision, content)
        first = await world.answers.keep(txn.transaction_id, decision.decision_id, message)
        decision = decision if first.message is message else None
        stops.passed("keep")
    if not first.told:
        if origin not in logged:
            await world.bus.tell(DECISIONS, txn.account_id, first.message)
        world.answers.told(txn.transaction_id)
        stops.passed("tell")
    return Decided(first.message, decision)


async def recall(txn: Transaction, request: bytes, world: World) -> tuple[Past, bytes | None, Kept | None]:
    """One round trip: remembers the transaction and looks at the past, the account's book, and whether the id is new."""
    digest = identity.digest(request)
    claim, mark = world.answers.claim(txn.transaction_id, digest)
    aside = Aside((claim,), (mark, world.books.asked(txn.account_id)))
    past = await world.memory.recall(txn, aside)
    (fresh,), (whole, book) = aside.wrote, aside.found
    first = await world.answers.first(txn.transaction_id, digest, fresh, whole)
    if isinstance(book, Exception):
        raise MemoryUnavailable(f"the book of {txn.account_id} could not be read: {book}")
    return past, book, first


async def settle(txn: Transaction, verdict: Verdict, book: bytes | None, world: World, now_ms: int) -> tuple[Verdict, OpenHold | None]:
    """The hold, placed in one atomic step, or the verdict that the account's refusal makes of it."""
    if not verdict.holds:
        refusal = standing(Book.from_bytes(book), txn.own_currency, world.unknown_account) if verdict.debits else None
        return (refused(verdict, refusal) if refusal else verdict), None
    expires_at_ms = now_ms + hold_lifetime_ms(world.policy, txn)
    placed = await world.books.change(
        txn.account_id,
        lambda before: place(
            before,
            identity.hold_id(txn.transaction_id),
            txn.transaction_id,
            txn.own_amount_minor,
            txn.own_currency,
            now_ms,
            world.hold_lease_ms,
            expires_at_ms,
            world.unknown_account,
        ),
        seen=book,
    )
    return (refused(verdict, placed), None) if isinstance(placed, Refusal) else (verdict, placed.hold)


async def declined_at(txn: Transaction, verdict: Verdict, world: World) -> tuple[int, ...]:
    """Remembers that it was declined or blocked, if it was: the places of those rows."""
    if verdict.outcome not in (Outcome.DECLINE, Outcome.BLOCK):
        return ()
    return await on_whole(lambda aside: world.memory.decline(txn, aside))


def decided(
    txn: Transaction,
    seen: Look,
    verdict: Verdict,
    hold: OpenHold | None,
    declined: tuple[int, ...],
    world: World,
    now_ms: int,
    origin: Origin,
) -> Decision:
    """The record of it all."""
    return Decision(
        decision_id=identity.decision_id(txn.transaction_id),
        transaction_id=txn.transaction_id,
        account_id=txn.account_id,
        at_ms=txn.at_ms,
        decided_at_ms=now_ms,
        outcome=verdict.outcome,
        reasons=verdict.reasons,
        score=verdict.score,
        risk=verdict.risk,
        contributions=verdict.contributions,
        hold_id=hold.hold_id if hold else None,
        held_minor=hold.amount_minor if hold else 0,
        hold_currency=hold.currency if hold else None,
        hold_expires_at_ms=hold.expires_at_ms if hold else None,
        model_id=world.ensemble.model_id,
        policy_id=world.policy.policy_id,
        catalogue_id=world.catalogue.catalogue_id,
        vector=seen.values.tobytes(),
        positions=seen.positions,
        tally_positions=seen.tally_positions,
        profile_positions=seen.profile_positions,
        declined_positions=declined,
        degradations=verdict.degradations,
        source_topic=origin.topic,
        source_partition=origin.partition,
        source_offset=origin.offset,
        transaction=txn,
    )


class Stops:
    """Times the stops of one walk."""

    __slots__ = ("_observe", "_since")

    def __init__(self, observe: Callable[[str, float], None]) -> None:
        self._observe = observe
        self._since = perf_counter()

    def passed(self, stop: str) -> None:
        """The time since the stop before, in seconds, is this stop's."""
        now = perf_counter()
        self._observe(stop, now - self._since)
        self._since = now
