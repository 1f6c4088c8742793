"""SecondOpinions: what models and policies that did not decide a payment would have said of it."""

from __future__ import annotations

from typing import Annotated

from schemas.decision import Outcome, Score
from schemas.governance import Kind
from schemas.record import EpochMs, Id, Record, doc


class Opinion(Record, frozen=True, kw_only=True):
    """What one of them would have said: a model under the policy that decided, a policy with the score of the model that decided."""

    kind: Annotated[Kind, doc("model or policy")]
    item_id: Annotated[Id, doc("which one")]
    score: Annotated[Score | None, doc("0 to 1000; null if no member gave a probability")]
    outcome: Annotated[Outcome, doc("before the account was asked for the money, so never a decline")]


class SecondOpinions(Record, frozen=True, kw_only=True):
    """All that was said of one decision by those who did not make it. There is none where they had no time."""

    opinions_id: Annotated[Id, doc("derived from the decision's id")]
    decision_id: Annotated[Id, doc("the decision")]
    transaction_id: Annotated[Id, doc("the transaction that was decided")]
    account_id: Annotated[Id, doc("its account: key of the topic")]
    decided_at_ms: Annotated[EpochMs, doc("when it was decided, milliseconds since 1970-01-01 UTC")]
    opinions: Annotated[tuple[Opinion, ...], doc("one of each challenger and shadow, and of the champion where a challenger decided")]
