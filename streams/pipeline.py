"""`decide`: recall, look, judge, hold, tell. The one way by which anything is decided, for HTTP, ISO 8583 and Faust alike."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from features.engine import Look, Past, look_all
from features.memory import Aside
from features.tally import counts_as_declined
from models.decision import Verdict, judge_all, not_retried, refused, unjudged
from models.hold import Book, OpenHold, Refusal, Step, not_credited, place, standing
from models.opinion import Judged, Judges, Panel
from models.policy import approved_in_part, authentication_of, hold_terms, least_minor, scheme_of
from models.sandbox import Cards, forced
from models.stand_in import hold_of, is_stand_in, said_before
from schemas import avro, identity
from schemas.decision import MEMORY_MISSING, Decision, Outcome
from schemas.errors import Conflict, HoldfastError, InvalidRecord, LogUnavailable, MemoryUnavailable, Unavailable
from schemas.topics import DECISIONS
from schemas.transaction import CREDITS, Transaction
from streams import journal
from streams.answers import FORGOT, WHOLE, AnswerWords, Kept, Made
from streams.asked import HTTP, Ask, Decided, Origin
from streams.books import Change
from streams.stand_in import StandIn
from streams.tracing import Passed
from streams.world import World


class Walk:
    """One transaction on its way: what each stop found. An error, or a first answer from before, ends it early."""

    __slots__ = (
        "ask", "book", "counted", "decision", "declined", "digest", "error", "first", "hold", "judges", "panel", "past", "seen", "txn",
        "verdict",
    )  # fmt: skip
    past: Past
    book: Any
    seen: Look
    verdict: Verdict
    panel: Panel  # as it was when it was judged: others may be promoted while it waits for its account
    judges: Judges  # those of the panel that judged it

    def __init__(self, ask: Ask, content: bytes) -> None:
        """`content`: the transaction's plain Avro."""
        self.ask, self.txn = ask, ask.txn
        self.digest = identity.request_digest(content)
        self.first: Kept | None = None
        self.hold: OpenHold | None = None
        self.declined: tuple[int, ...] = ()
        self.decision: Decision | None = None
        self.error: HoldfastError | None = None
        self.counted = False
        """Whether the stand-in counted it as an approval of its own."""

    @property
    def is_over(self) -> bool:
        """Whether somebody else answers it."""
        course = self.ask.course
        return course is not None and course.over

    @property
    def is_new(self) -> bool:
        """Whether it is to be decided here and now."""
        return self.first is None and self.error is None

    @property
    def is_unkind(self) -> bool:
        """Whether it is remembered as a decline."""
        return counts_as_declined(self.verdict.outcome, self.verdict.action, self.txn.kind, self.verdict.reasons)

    @property
    def degradations(self) -> tuple[str, ...]:
        """What of its past could not be read."""
        return tuple([f"{MEMORY_MISSING}{kind}" for kind in self.past.missing])

    @property
    def message(self) -> bytes:
        """The answer's bytes."""
        assert self.first is not None, "nothing was answered yet"
        return self.first.message

    def end(self) -> Decided | HoldfastError:
        """What comes of it."""
        return self.error or Decided(self.message, self.decision)


async def decide(txn: Transaction, world: World, now_ms: int, origin: Origin = HTTP, logged: Container[Origin] = ()) -> Decided:
    """The decision's message, once the log has it: the first to this transaction, whoever asked first.

    `now_ms` becomes the decision's time. `logged` are the origins that the log is known to have already. Conflict if the
    id came before with other contents; Unavailable if Redis or Kafka did not answer: then the same call again is safe.
    """
    return await world.together.decided(Ask(txn, now_ms, origin, logged), world)


async def decide_all(asks: Sequence[Ask], world: World) -> list[Decided | HoldfastError]:
    """Recall, look, judge, hold, tell, for many at once: each stop is one round trip or one compiled call for all of them.

    What fails for one touches no other. Who has an answer from before goes from the first stop to the last.
    """
    contents = avro.bodies([ask.txn for ask in asks])
    walks, stops = [Walk(ask, content) for ask, content in zip(asks, contents, strict=True)], Stops(world.observe, len(asks))
    retries = [walk for walk in walks if walk.txn.step_up_of is not None]
    if retries:
        await asyncio.gather(*[follow(walk, world) for walk in retries])
    await recall([walk for walk in walks if walk.error is None], world)
    stops.passed("recall")
    new = [walk for walk in walks if walk.is_new]
    look(new, world)
    stops.passed("look")
    weigh(new, world)
    if world.cards is not None:
        force(new, world.cards)
    limit(new, world)
    stops.passed("judge")
    await settle(new, world)
    stops.passed("hold")
    leave(new, world)
    await keep([walk for walk in new if walk.is_new], world)
    stops.passed("keep")
    leave(walks, world)
    await tell([walk for walk in walks if walk.first is not None and not walk.first.told and walk.error is None], world)
    stops.passed("tell")
    note([walk for walk in new if walk.decision is not None], world)
    for walk in walks:
        if walk.ask.course is not None:
            walk.ask.course.passed = Passed(stops.began_s, stops.times)
    return [walk.end() for walk in walks]


def force(walks: Sequence[Walk], cards: Cards) -> None:
    """In a sandbox: the verdicts that test cards force, and the mark of one on all others."""
    for walk in walks:
        walk.verdict = forced(cards, walk.txn, walk.verdict)


def limit(walks: Sequence[Walk], world: World) -> None:
    """Where the log does not take what is decided, the stand-in's limits hold beside the policy; what it said already stands."""
    stand_in = world.stand_in
    if stand_in is None:
        return
    away = not world.bus.well
    for walk in walks:
        if walk.ask.said is not None:
            walk.verdict, walk.hold = said_before(walk.verdict, walk.ask.said), hold_of(walk.ask.said)
        elif away:
            walk.verdict, walk.counted = stand_in.limited(walk.txn, walk.verdict, walk.ask.now_ms)


def leave(walks: Sequence[Walk], world: World) -> None:
    """Ends those that somebody else answers meanwhile, and takes back what was counted of those that were not approved here after all."""
    for walk in walks:
        if walk.error is None and walk.is_over:
            walk.error = Unavailable("somebody else answers it: it was late")
        of_another = walk.first is not None and walk.decision is None
        if walk.counted and (walk.error is not None or of_another or walk.verdict.outcome is not Outcome.APPROVE):
            assert world.stand_in is not None
            world.stand_in.uncount(walk.txn, walk.ask.now_ms)
            walk.counted = False


async def follow(walk: Walk, world: World) -> None:
    """Finds whether a retry is of a payment whose cardholder was to authenticate, is the same payment, and is the only retry of it.

    A retry is never asked to authenticate again, so that it has none of its own. One that was decided before has its first answer, and what the
    stand-in said stands: it declines whatever names an original, and cannot ask whether that is one.
    """
    txn, original_id = walk.txn, str(walk.txn.step_up_of)
    try:
        if await world.answers.of_transaction(txn.transaction_id) is not None:
            return
        kept = await world.answers.of_transaction(original_id)
        if kept is None and not await world.answers.whole():
            raise MemoryUnavailable(FORGOT)
        wrong = not_retried(txn, None if kept is None else avro.decode(Decision, kept.message))
        if wrong is None and await world.answers.retried_by(original_id, txn.transaction_id) != txn.transaction_id:
            wrong = InvalidRecord("step_up_of", "was retried before, by another transaction", code="step_up_used")
        walk.error = wrong if walk.ask.said is None else None
    except HoldfastError as error:
        walk.error = error


async def recall(walks: Sequence[Walk], world: World) -> None:
    """One round trip: remembers the transactions and looks at the past, the accounts' books, and whether the ids are new."""
    asides = []
    for walk in walks:
        claim, mark = world.answers.claim(walk.txn.transaction_id, walk.digest)
        asides.append(Aside((claim,), (mark, world.books.asked(walk.txn.account_id))))
    pasts = await world.memory.recall_all([walk.txn for walk in walks], asides)
    again: list[Awaitable[None]] = []
    for walk, past, aside in zip(walks, pasts, asides, strict=True):
        walk.past, (fresh,), (whole, walk.book) = past, aside.wrote, aside.found
        if fresh is None or whole is None or isinstance(fresh, Exception):
            again.append(meet(walk, fresh, whole, world))
        elif isinstance(walk.book, Exception):
            walk.error = unread(walk)
    if again:
        await asyncio.gather(*again)


async def meet(walk: Walk, fresh: object, whole: object, world: World) -> None:
    """The first answer to one who seems to have come before."""
    try:
        walk.first = await world.answers.first(walk.txn.transaction_id, walk.digest, fresh, whole, walk.txn.card_bin)
    except HoldfastError as error:
        walk.error = error
    if walk.is_new and isinstance(walk.book, Exception):
        walk.error = unread(walk)


def unread(walk: Walk) -> MemoryUnavailable:
    """Why one whose account's book Redis did not give is not decided."""
    return MemoryUnavailable(f"the book of {walk.txn.account_id} could not be read: {walk.book}")


def look(walks: Sequence[Walk], world: World) -> None:
    """One compiled call: the vectors."""
    if not walks:
        return
    looks = look_all(world.catalogue, [walk.past for walk in walks])
    for walk, seen in zip(walks, looks, strict=True):
        walk.seen = seen


def weigh(walks: Sequence[Walk], world: World) -> None:
    """Two compiled calls, the members' and the rules', for each pair of judges: the verdicts."""
    panel, parts = world.panel, dict[Judges, list[Walk]]()
    splits = panel.splits
    for walk in walks:
        walk.panel, walk.judges = panel, panel.judges_of(walk.txn) if splits else panel.champions
        parts.setdefault(walk.judges, []).append(walk)
    for judges, own in parts.items():
        vectors, missing, txns = np.array([walk.seen.values for walk in own]), [walk.degradations for walk in own], [walk.txn for walk in own]
        try:
            verdicts = judge_all(*judges, world.catalogue.reason_of, txns, vectors, missing)
        except Exception as error:  # noqa: BLE001 a broken model is a fact that the policy handles, and the payment waits
            journal.logger().error("the model cannot score", model_id=judges.model.model_id, error=repr(error))
            verdicts = [unjudged(judges.policy, txn, each) for txn, each in zip(txns, missing, strict=True)]
        for walk, verdict in zip(own, verdicts, strict=True):
            walk.verdict = verdict


async def settle(walks: Sequence[Walk], world: World) -> None:
    """The holds, each placed in one atomic step, or the verdicts that the accounts' refusals make of it; declines are remembered.

    Where one Redis has all keys, that step keeps the answer too: a round trip less.

    Who is to authenticate was not declined yet: four honest payments would be four declines of the card. What would have brought money in is no
    attempt of which a share could be declined."""
    holding = [walk for walk in walks if walk.verdict.holds]
    asking = [walk for walk in walks if walk.verdict.debits and not walk.verdict.holds]
    changes = [Change(walk.txn.account_id, placing(walk, world), walk.book, Keeping(walk, world)) for walk in holding]
    placed = await world.books.change_all(changes)
    for walk, result in zip(holding, placed, strict=True):
        if isinstance(result, HoldfastError):
            walk.error = result
        elif isinstance(result, Refusal):
            walk.verdict = refused(walk.verdict, result)
        elif not can_be_of(walk.txn, result.hold):
            walk.error = Conflict(walk.txn.transaction_id)
        else:
            walk.hold = result.hold
    for walk in asking:
        refusal = standing(Book.from_bytes(walk.book), walk.txn.own_currency, world.unknown_account, walk.txn, walk.ask.now_ms)
        walk.verdict = refused(walk.verdict, refusal) if refusal else walk.verdict
    for walk in [walk for walk in walks if walk.txn.kind in CREDITS and walk.ask.said is None]:
        refusal = not_credited(Book.from_bytes(walk.book), walk.judges.policy.credits_refused)
        walk.verdict = refused(walk.verdict, refusal) if refusal else walk.verdict
    await remember_declines([walk for walk in walks if walk.error is None and walk.is_unkind], world)


class Keeping:
    """The answer that a walk's hold leads to, to be kept in the step that places the hold."""

    __slots__ = ("_decision", "_message", "_walk", "_world")
    _decision: Decision
    _message: bytes

    def __init__(self, walk: Walk, world: World) -> None:
        self._walk, self._world = walk, world

    def words(self, result: Step) -> AnswerWords | None:
        """The decision with this hold; None if the stand-in has answered already, or nobody waits any more."""
        if self._walk.ask.said is not None or self._walk.is_over:
            return None
        self._decision = decided(self._walk, self._world, result.hold)
        self._message = avro.encode(self._decision)
        return self._world.answers.words(Made.of(self._decision, self._message))

    def was_kept(self) -> None:
        """Nobody answered it before."""
        self._walk.decision, self._walk.first = self._decision, Kept(self._message, told=False)


def placing(walk: Walk, world: World) -> Callable[[Book], Step | Refusal]:
    """The move that places a walk's hold."""
    txn, now_ms = walk.txn, walk.ask.now_ms
    hold_id, amount_minor, terms = identity.hold_id(txn.transaction_id), txn.own_amount_minor, hold_terms(walk.judges.policy, txn)
    own = (hold_id, txn.transaction_id, amount_minor, txn.own_currency, now_ms, world.hold_lease_ms, now_ms + terms.lifetime_ms)
    tolerance_minor, verdict = amount_minor * terms.tolerance_percent // 100, walk.verdict
    in_part = txn.partial_allowed and verdict.outcome is Outcome.APPROVE and not is_stand_in(verdict.degradations)
    least = least_minor(walk.judges.policy, txn) if in_part else 0
    if verdict.room_minor is not None:
        if not 0 < least <= verdict.room_minor:
            return lambda before: Refusal.INSUFFICIENT_FUNDS
        own, tolerance_minor = (*own[:2], verdict.room_minor, *own[3:]), 0
    return lambda before: place(before, *own, world.unknown_account, tolerance_minor, txn, least)


def can_be_of(txn: Transaction, hold: OpenHold) -> bool:
    """Whether a hold is of the transaction's money, or of a part of it. One can outlive the answer by which a changed repeat is known."""
    amount_minor = txn.own_amount_minor
    in_part = txn.partial_allowed and hold.amount_minor < amount_minor
    return hold.currency == txn.own_currency and (in_part or hold.amount_minor == amount_minor)


async def remember_declines(walks: Sequence[Walk], world: World) -> None:
    """Remembers that they were declined or blocked, and the places of those rows, in one round trip."""
    asides = [Aside((), (WHOLE,)) for _ in walks]
    said = await world.memory.decline_all([walk.txn for walk in walks], asides)
    for walk, places, aside in zip(walks, said, asides, strict=True):
        if isinstance(places, HoldfastError):
            walk.error = places
        elif aside.found[0] is None:
            walk.error = MemoryUnavailable(FORGOT)
        else:
            walk.declined = places


async def keep(walks: Sequence[Walk], world: World) -> None:
    """One round trip: keeps what was decided, or finds that somebody else was first."""
    made = []
    for walk in walks:
        decision = walk.decision = decided(walk, world, walk.hold)
        made.append(Made.of(decision, avro.encode(decision)))
    for walk, own, first in zip(walks, made, await world.answers.keep_all(made), strict=True):
        if isinstance(first, HoldfastError):
            walk.error = first
            continue
        walk.first = first
        if first.message is not own.message:
            walk.decision = None


async def tell(walks: Sequence[Walk], world: World) -> None:
    """Puts on the log what it does not have yet."""
    untold = [walk for walk in walks if walk.ask.origin not in walk.ask.logged]
    if world.stand_in is not None and not world.bus.well:
        kept_back = [walk for walk in untold if walk.ask.said is None]
        await keep_back(kept_back, world.stand_in)
        walks, untold = ([walk for walk in some if walk.ask.said is not None] for some in (walks, untold))
    asked = Counter([walk.ask.origin.topic for walk in untold if walk.ask.said is None])
    world.telling.update(asked)
    under_way = [(walk, told(walk, world)) for walk in untold]
    try:
        for walk, acknowledged in under_way:  # all are on their way: to gather them costs more than to wait for one after the other
            try:
                await acknowledged
            except HoldfastError as error:
                walk.error = error
    finally:
        world.telling.subtract(asked)
    world.answers.told_all([walk.txn.transaction_id for walk in walks if walk.error is None])


def note(walks: Sequence[Walk], world: World) -> None:
    """Counts what was decided here and now, and leaves what the log has to those who did not decide it.

    Where the stand-in had a part, the outcome says nothing of the model and the policy: an outage would have them leave their bands.
    """
    for walk in walks:
        if not is_stand_in(walk.verdict.degradations):
            world.given[walk.judges.model.model_id, walk.verdict.outcome] += 1
            world.given[walk.judges.policy.policy_id, walk.verdict.outcome] += 1
        if (walk.panel.models or walk.panel.policies) and walk.error is None and world.opinions.has_room():
            world.opinions.offer(walk.panel, judged(walk))


def judged(walk: Walk) -> Judged:
    """The part of it that a second opinion needs."""
    txn, now_ms = walk.txn, walk.ask.now_ms
    assert walk.decision is not None
    return Judged(
        walk.decision.decision_id,
        txn.transaction_id,
        txn.account_id,
        now_ms,
        walk.seen.values,
        walk.degradations,
        walk.judges,
        authentication_of(txn),
    )


def told(walk: Walk, world: World) -> asyncio.Future[None]:
    """Sends one on its way to the log, with the trace that it is a part of."""
    course = walk.ask.course
    if course is not None:
        course.sent = walk.message
        if course.traced is not None:
            return world.bus.tell(DECISIONS, walk.txn.account_id, walk.message, (("traceparent", course.traced.traceparent),))
    return world.bus.tell(DECISIONS, walk.txn.account_id, walk.message)


async def keep_back(walks: Sequence[Walk], stand_in: StandIn) -> None:
    """Puts on the stand-in's disk what the log does not take now; it tells the log later. LogUnavailable for what it may not answer for."""
    made = [stand_in.kept_back(walk.message, walk.decision, walk.counted) for walk in walks]
    for walk, failed in zip(walks, await asyncio.gather(*made, return_exceptions=True), strict=True):
        if isinstance(failed, HoldfastError):
            walk.error = failed
        elif failed is not None:
            walk.error = LogUnavailable(f"nor can it be kept here: {failed}")


def decided(walk: Walk, world: World, hold: OpenHold | None) -> Decision:
    """The record of it all, with what is held for it."""
    txn, verdict, seen, origin = walk.txn, walk.verdict, walk.seen, walk.ask.origin
    return Decision(
        decision_id=identity.decision_id(txn.transaction_id),
        transaction_id=txn.transaction_id,
        account_id=txn.account_id,
        at_ms=txn.at_ms,
        decided_at_ms=walk.ask.now_ms,
        outcome=verdict.outcome,
        reasons=verdict.reasons,
        score=verdict.score,
        risk=verdict.risk,
        contributions=verdict.contributions,
        hold_id=hold.hold_id if hold else None,
        held_minor=hold.amount_minor if hold else 0,
        hold_currency=hold.currency if hold else None,
        hold_expires_at_ms=hold.expires_at_ms if hold else None,
        model_id=walk.judges.model.model_id,
        policy_id=walk.judges.policy.policy_id if walk.ask.said is None else walk.ask.said.policy_id,
        catalogue_id=world.catalogue.catalogue_id,
        vector=seen.values.tobytes(),
        positions=seen.positions,
        tally_positions=seen.tally_positions,
        profile_positions=seen.profile_positions,
        hold_tolerance_minor=hold.tolerance_minor if hold else 0,
        declined_positions=walk.declined,
        degradations=verdict.degradations,
        source_topic=origin.topic,
        source_partition=origin.partition,
        source_offset=origin.offset,
        approved_minor=approved_in_part(txn, hold.amount_minor) if hold and verdict.outcome is Outcome.APPROVE else None,
        action=verdict.action,
        card_scheme=scheme_of(walk.judges.policy, txn.card_bin) if verdict.action and txn.card_bin else None,
        transaction=txn,
    )


class Stops:
    """Times the stops of walks that go together."""

    __slots__ = ("_count", "_observe", "_since", "began_s", "times")

    def __init__(self, observe: Callable[[str, float, int], None], count: int) -> None:
        self._observe, self._count = observe, count
        self._since = self.began_s = perf_counter()
        self.times: list[tuple[str, float]] = []

    def passed(self, stop: str) -> None:
        """The time since the stop before, in seconds, is this stop's, of each walk."""
        now = perf_counter()
        took = now - self._since
        self._observe(stop, took, self._count)
        self.times.append((stop, took))
        self._since = now
