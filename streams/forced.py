"""What test cards do to a sandbox besides their verdicts: late decisions, parts that do not answer, a stand-in that is told what to say."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import NoReturn

from models import stand_in as rows
from models.policy import Policy
from models.sandbox import Card, Cards, Effect, card_of, cards_by_token
from schemas.errors import LogUnavailable, MemoryUnavailable, Unavailable
from schemas.transaction import Transaction
from streams.asked import Ask, Course, Decided
from streams.folder import is_sandbox
from streams.pipeline import decide_all
from streams.settings import Settings
from streams.stand_in import StandIn
from streams.world import Together, World

LATE_S = 5.0
"""So long after it came a late card is decided: longer than a host waits that does not say."""
_GONE: dict[str, type[Unavailable]] = {error.code: error for error in (LogUnavailable, MemoryUnavailable)}


def cards_of(settings: Settings) -> Cards | None:
    """The test cards of a sandbox; None for every other system. SettingsError where a sandbox is asked for and may not be."""
    return cards_by_token(settings.token_key.encode(), settings.token_key_id) if is_sandbox(settings) else None


def force(world: World, cards: Cards) -> None:
    """Makes a World obey test cards."""
    world.cards, world.together = cards, ForcedTogether(cards)


def stand_in_of(settings: Settings, cards: Cards | None, now_ms: int) -> StandIn | None:
    """The stand-in of the settings, with the test cards that it knows in a sandbox."""
    if cards is None:
        return StandIn.opened(settings, now_ms)
    made = ForcedStandIn.opened(settings, now_ms)
    if isinstance(made, ForcedStandIn):
        made.cards = cards
    return made


class ForcedTogether(Together):
    """Decides as every World does; only what a test card wants late, or not at all, it keeps back. What has its answer keeps that."""

    def __init__(self, cards: Cards) -> None:
        super().__init__(decide_all)
        self._cards = cards

    def decided(self, ask: Ask, world: World) -> asyncio.Future[Decided]:
        """See `Together.decided`."""
        card = card_of(self._cards, ask.txn)
        at_once = partial(super().decided, ask, world)
        if card is None or card.effect is Effect.VERDICT:
            return at_once()

        async def kept_back(card: Card) -> Decided:
            if await world.answers.of_transaction(ask.txn.transaction_id) is None:
                if card.effect is not Effect.LATE:
                    gone(card)
                await asyncio.sleep(LATE_S)
            return await at_once()

        return asyncio.get_running_loop().create_task(kept_back(card))


class ForcedStandIn(StandIn):
    """The stand-in, which answers a test card as its row says, under no limit; every other card as ever."""

    cards: Cards = {}  # noqa: RUF012 # replaced, never changed

    async def answer(self, txn: Transaction, now_ms: int, course: Course, gone_code: str, policy: Policy, door: str) -> Decided:
        """See `StandIn.answer`. For a card that is to be late, or whose part does not answer, nobody stands in."""
        card = card_of(self.cards, txn)
        if card is not None and card.effect is Effect.LATE:
            await asyncio.sleep(LATE_S)  # the door's own time is over before
            raise TimeoutError
        if card is not None and card.effect is Effect.GONE:
            gone(card)
        return await super().answer(txn, now_ms, course, gone_code, policy, door)

    def _refusal(self, txn: Transaction, now_ms: int) -> rows.Refusal | None:
        card = card_of(self.cards, txn)
        return card.stand_in_refusal if card is not None and card.effect is Effect.STAND_IN else super()._refusal(txn, now_ms)


def gone(card: Card) -> NoReturn:
    """Raises what is said of the part that does not answer this card; of the log where it says none."""
    raise _GONE.get(card.answer, LogUnavailable)("a test card says so")
