"""Move (who did what with a model or policy, and why) and Control (which one decides from now on)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.record import EpochMs, Id, Record, Word, doc


class Kind(Word):
    """What is governed."""

    MODEL = "model"
    POLICY = "policy"


class State(Word):
    """Where a model or policy stands."""

    DRAFT = "draft"
    VALIDATED = "validated"
    APPROVED = "approved"
    CHAMPION = "champion"
    CHALLENGER = "challenger"
    SHADOW = "shadow"
    RETIRED = "retired"


class Act(Word):
    """What a person, or the system under a name of its own, does with one."""

    REGISTER = "register"
    VALIDATE = "validate"
    APPROVE = "approve"
    CHALLENGE = "challenge"
    SHADOW = "shadow"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    RETIRE = "retire"


class Tier(Word):
    """Materiality: how much depends on it (SR 26-2). A higher one is validated again sooner."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


Share = Annotated[float, Meta(ge=0, le=1)]


class Band(msgspec.Struct, frozen=True):
    """The share of decisions with this outcome that was approved; outside it the breaker takes the champion out."""

    outcome: str
    low: Share
    high: Share


class Move(Record, frozen=True, kw_only=True):
    """One line of the registry's history. `before` is the SHA-256 of the line before: none can be taken out or changed unseen."""

    number: Annotated[int, Meta(ge=1), doc("counts the history's lines from 1")]
    kind: Annotated[Kind, doc("model or policy")]
    item_id: Annotated[Id, doc("which one")]
    act: Annotated[Act, doc("what was done")]
    by: Annotated[str, Meta(min_length=1, max_length=128), doc("who")]
    why: Annotated[str, Meta(min_length=1, max_length=2000), doc("why, in that person's words")]
    at_ms: Annotated[EpochMs, doc("when, milliseconds since 1970-01-01 UTC")]
    before: Annotated[str, doc("SHA-256 of the line before, hex; empty for the first")]
    tier: Annotated[Tier | None, doc("approval: materiality")] = None
    expires_at_ms: Annotated[EpochMs | None, doc("validation: from then on it must be validated anew, milliseconds since 1970-01-01 UTC")] = None
    bands: Annotated[tuple[Band, ...], doc("approval: the shares of outcomes that are approved")] = ()
    share: Annotated[Share, doc("challenge: the share of cards for which it decides in the champion's place")] = 0.0
    figures: Annotated[dict[str, float], doc("validation: what was measured, by name")] = msgspec.field(default_factory=dict)


class Cause(Word):
    """Why another one decides, or stands by in another way."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    BREAKER = "breaker"
    CHALLENGED = "challenged"
    SHADOWED = "shadowed"
    RETIRED = "retired"
    STOOD_DOWN = "stood_down"


BY_BREAKER = frozenset({Cause.BREAKER, Cause.STOOD_DOWN})
"""What nobody did: the breaker took a champion out, or took its share from a challenger."""
OF_CHAMPION = frozenset({Cause.PROMOTED, Cause.ROLLED_BACK, Cause.BREAKER})


class Control(Record, frozen=True, kw_only=True):
    """From now on this one decides, or stands by. A pointer only: whoever follows it takes what the signed history knows in that place."""

    control_id: Annotated[Id, doc("derived from the rest")]
    kind: Annotated[Kind, doc("model or policy")]
    item_id: Annotated[Id, doc("the one that decides from now on; of a challenger, a shadow or one retired, that one")]
    previous_id: Annotated[Id | None, doc("the one that decided until now")]
    cause: Annotated[Cause, doc("what was done: by a person, or (breaker, stood_down) by the breaker")]
    by: Annotated[str, doc("who")]
    why: Annotated[str, doc("why")]
    at_ms: Annotated[EpochMs, doc("when, milliseconds since 1970-01-01 UTC")]
    number: Annotated[int, doc("the line of the registry's history that it follows; of a breaker's event the line that it undoes")]

    @property
    def place(self) -> str:
        """Key of the topic, of which the newest stands: the kind for who decides, and one of its own for each that stands by."""
        return str(self.kind) if self.cause in OF_CHAMPION else f"{self.kind}:{self.item_id}"
