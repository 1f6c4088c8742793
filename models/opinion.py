"""Challengers and shadows: for which cards a challenger decides, and what those who do not decide would have said. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from models.decision import weighed_all
from models.ensemble import Ensemble
from models.policy import Authentication, Policy
from models.trees import Floats
from schemas.governance import Kind
from schemas.identity import derived_id, hash64
from schemas.opinion import Opinion, SecondOpinions
from schemas.transaction import Transaction

T = TypeVar("T", Ensemble, Policy)


class Seat(NamedTuple, Generic[T]):
    """One that stands by: a challenger with its share of cards (0 to 1), or a shadow, whose share is 0."""

    item_id: str
    judge: T
    share: float = 0.0


class Judges(NamedTuple):
    """The model and the policy that decide one payment."""

    model: Ensemble
    policy: Policy


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Who decides, and who stands by."""

    champions: Judges
    models: tuple[Seat[Ensemble], ...] = ()
    policies: tuple[Seat[Policy], ...] = ()

    @property
    def seats(self) -> tuple[Seat[Ensemble] | Seat[Policy], ...]:
        """All that stand by."""
        return (*self.models, *self.policies)

    @property
    def splits(self) -> bool:
        """Whether a challenger decides for any card."""
        return any(seat.share for seat in self.seats)

    @property
    def ids(self) -> tuple[tuple[str, float], ...]:
        """Everybody's id and share: equal panels have equal ones."""
        own = ((self.champions.model.model_id, 1.0), (self.champions.policy.policy_id, 1.0))
        return (*own, *((seat.item_id, seat.share) for seat in self.seats))

    def judges_of(self, txn: Transaction) -> Judges:
        """Who decides for this payment's card, or its account where it has none: always the same, as long as the shares are."""
        card = txn.card_token or txn.account_id
        return Judges(_drawn(self.champions.model, self.models, card), _drawn(self.champions.policy, self.policies, card))


def _drawn(champion: T, seats: Sequence[Seat[T]], card: str) -> T:
    """The challenger in whose share the card's own point lies.

    Each challenger has other points, so that not always the same customers are tried on; of the cards that are left each takes so much more.
    """
    left = 1.0
    for seat in seats:
        if seat.share and hash64(f"{seat.item_id}:{card}") / 2**64 * left < seat.share:
            return seat.judge
        left -= seat.share
    return champion


class Judged(NamedTuple):
    """A decision that was made and told, as much of it as a second opinion needs."""

    decision_id: str
    transaction_id: str
    account_id: str
    decided_at_ms: int
    vector: Floats
    degradations: tuple[str, ...]  # of the past: what a model's own members could not say is its own
    judges: Judges
    authentication: Authentication = Authentication.IMPOSSIBLE


def second_opinions(panel: Panel, decided: Sequence[Judged]) -> list[SecondOpinions]:
    """What everybody of the panel but the one that decided says of these decisions, which were made by the same judges; none where nobody else is."""
    if not decided:
        return []
    judges = decided[0].judges
    vectors, missing = np.array([one.vector for one in decided]), [one.degradations for one in decided]
    asked = [one.authentication for one in decided]
    models = [model for model in (panel.champions.model, *(seat.judge for seat in panel.models)) if model is not judges.model]
    policies = [policy for policy in (panel.champions.policy, *(seat.judge for seat in panel.policies)) if policy is not judges.policy]
    others = [(Kind.MODEL, model.model_id, Judges(model, judges.policy)) for model in models]
    others += [(Kind.POLICY, policy.policy_id, Judges(judges.model, policy)) for policy in policies]
    said: list[list[Opinion]] = [[] for _ in decided]
    for kind, item_id, pair in others:
        for own, weighed in zip(said, weighed_all(*pair, vectors, missing, asked), strict=True):
            own.append(Opinion(kind=kind, item_id=item_id, score=weighed.score, outcome=weighed.outcome))
    return [_of(one, opinions) for one, opinions in zip(decided, said, strict=True) if opinions]


def _of(one: Judged, opinions: Sequence[Opinion]) -> SecondOpinions:
    return SecondOpinions(
        opinions_id=derived_id("opn", one.decision_id),
        decision_id=one.decision_id,
        transaction_id=one.transaction_id,
        account_id=one.account_id,
        decided_at_ms=one.decided_at_ms,
        opinions=tuple(opinions),
    )
