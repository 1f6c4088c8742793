"""`holdfast check --verdicts`: every decision of the log judged again, by the model and the policy that it names, and compared with what was said.

A decision carries its vector, what was missing when it was judged, and the transaction; with the model and the policy from the registry its score,
members, risk, outcome, action and reasons follow. What the account refused is taken from the record, which says so. It needs no Redis, and stops
nobody.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from features.catalogue import CATALOGUE
from models.decision import Verdict, judge_all, refused
from models.hold import Refusal
from models.opinion import Judges
from models.registry import Registry
from models.sandbox import SANDBOX
from models.stand_in import is_stand_in
from schemas.avro import decode
from schemas.decision import MEMORY_MISSING, Decision, ReasonSource
from schemas.errors import ArtefactError, InvalidRecord, SettingsError
from schemas.topics import DECISIONS
from streams.bus import Message, end_offsets, read_topic
from streams.folder import keys_of
from streams.settings import Settings

SHOWN = 20
WITHIN = 1e-9
"""So far a member's probability may be from what was said: another processor's exponential ends in another bit."""
STAND_IN, FORCED, UNSCORED = (
    "the stand-in answered it",
    "decided in a sandbox, where test cards force verdicts",
    "a member or the model did not answer",
)
FOREIGN = "decided on another catalogue"
"""Why a decision does not follow from its model and policy alone."""
DROPPED, UNREADABLE = "the log dropped it", "no decision can be read from it: `holdfast check` names it"
"""Why a record of the log is not there to be judged again."""


class Difference(NamedTuple):
    """One part of a decision that comes out otherwise."""

    transaction_id: str
    part: str
    said: str
    again: str


@dataclass
class Verdicts:
    """What the comparison found. `lost`: how many cannot be judged again because their model or policy cannot be used, by why."""

    compared: int = 0
    equal: int = 0
    apart: Counter[str] = field(default_factory=Counter)
    not_comparable: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether every decision that can be compared is what its model and policy say, and none has lost them."""
        return self.compared == self.equal and not self.lost

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.compared:>10,}  decisions judged again", f"{self.equal:>10,}  equal", f"{self.compared - self.equal:>10,}  different"]
        lines += [f"{count:>10,}  not comparable: {why}" for why, count in sorted(self.not_comparable.items())]
        lines += [f"{count:>10,}  times different: {part}" for part, count in sorted(self.apart.items())]
        lines += [f"{count:>10,}  cannot be judged again: {why}" for why, count in sorted(self.lost.items())]
        lines += [f"{d.transaction_id}: {d.part}: said {d.said}, again {d.again}" for d in self.differences]
        verdict = (
            "every decision that can be compared is what its model and policy say" if self.agrees else "decisions do NOT follow from the registry"
        )
        return [*lines, verdict]

    def figures(self) -> dict[str, object]:
        """For programs."""
        return {
            "agrees": self.agrees,
            "compared": self.compared,
            "equal": self.equal,
            "different": self.compared - self.equal,
            "different_by_part": dict(self.apart),
            "not_comparable": dict(self.not_comparable),
            "lost": dict(self.lost),
            "differences": [each._asdict() for each in self.differences],
        }


class Bench:
    """The models and policies that decisions name, each opened once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._opened: dict[tuple[str, str], Judges | str] = {}

    def judges(self, model_id: str, policy_id: str) -> Judges | str:
        """Both, or why they cannot be used."""
        pair = model_id, policy_id
        if pair not in self._opened:
            try:
                self._opened[pair] = self._judges(*pair)
            except (ArtefactError, SettingsError) as error:  # a policy that this release would not take any more among them
                self._opened[pair] = str(error)
        return self._opened[pair]

    def _judges(self, model_id: str, policy_id: str) -> Judges:
        house = self._registry.policy_of(None)
        policy = house if house.policy_id == policy_id else self._registry.policy_of(policy_id)
        return Judges(self._registry.load_for(model_id, CATALOGUE), policy.bound(CATALOGUE.names))


def check_verdicts(settings: Settings) -> Verdicts:
    """Compares what the brokers have. LogUnavailable if they do not answer; SettingsError without the public key of the models."""
    lows = [low for low, _ in end_offsets(settings, DECISIONS).values()]
    return log_compared(read_topic(settings, DECISIONS), lows, Bench(Registry(settings.registry_dir, keys_of(settings))))


def log_compared(batches: Iterable[Sequence[Message]], lows: Iterable[int], bench: Bench) -> Verdicts:
    """Judges what is in the log again, and counts what is not: `lows` are the oldest offsets of its partitions, which all begin at 0."""
    absent = Counter({DROPPED: sum(lows)})
    found = verdicts_compared(_decisions(batches, absent), bench)
    found.not_comparable += absent  # of those that there are
    return found


def _decisions(batches: Iterable[Sequence[Message]], absent: Counter[str]) -> Iterator[list[Decision]]:
    """Each decision, the first time that it is in the log; what cannot be read is counted as absent."""
    once = set[str]()
    for batch in batches:
        new = list[Decision]()
        for message in batch:
            try:
                decision = decode(Decision, message.value)
            except InvalidRecord:
                absent[UNREADABLE] += 1
                continue
            if decision.decision_id not in once:
                once.add(decision.decision_id)
                new.append(decision)
        yield new


def verdicts_compared(batches: Iterable[Sequence[Decision]], bench: Bench) -> Verdicts:
    """Judges these decisions again."""
    found = Verdicts()
    for batch in batches:
        parts = defaultdict[tuple[str, str], list[Decision]](list)
        for decision in batch:
            if why := _not_comparable(decision):
                found.not_comparable[why] += 1
            else:
                parts[decision.model_id, decision.policy_id].append(decision)
        for pair, decisions in parts.items():
            judges = bench.judges(*pair)
            if isinstance(judges, str):
                found.lost[judges] += len(decisions)
            else:
                for decision, verdict in zip(decisions, _again(decisions, judges), strict=True):
                    _compare(decision, verdict, found)
    return found


def _not_comparable(decision: Decision) -> str:
    if is_stand_in(decision.degradations):
        return STAND_IN
    if SANDBOX in decision.degradations:
        return FORCED
    if not CATALOGUE.has(decision):
        return FOREIGN
    return UNSCORED if len(_missing(decision)) < len(decision.degradations) else ""


def _missing(decision: Decision) -> tuple[str, ...]:
    """What of its past could not be read."""
    return tuple(each for each in decision.degradations if each.startswith(MEMORY_MISSING))


def _again(decisions: Sequence[Decision], judges: Judges) -> Iterator[Verdict]:
    """The verdicts, with what the account refused as the records say it."""
    vectors = np.frombuffer(b"".join(decision.vector for decision in decisions), np.float64).reshape(len(decisions), -1)
    txns, missing = [decision.transaction for decision in decisions], [_missing(decision) for decision in decisions]
    for decision, verdict in zip(decisions, judge_all(*judges, CATALOGUE.reason_of, txns, vectors, missing), strict=True):
        refusal = next((reason.code for reason in decision.reasons[:1] if reason.source is ReasonSource.ACCOUNT), "")
        yield refused(verdict, Refusal(refusal)) if refusal in {*Refusal} else verdict


def _compare(decision: Decision, verdict: Verdict, found: Verdicts) -> None:
    found.compared += 1
    unlike = [
        (part, getattr(decision, part), getattr(verdict, part))
        for part in ("score", "risk", "outcome", "action", "reasons", "degradations")
        if getattr(decision, part) != getattr(verdict, part)
    ]
    members = [(each.member, each.weight, each.probability) for each in decision.contributions]
    again = [(each.member, each.weight, each.probability) for each in verdict.contributions]
    if not _alike(members, again):
        unlike.append(("contributions", members, again))
    found.equal += not unlike
    for part, said, now in unlike:
        found.apart[part] += 1
        if len(found.differences) < SHOWN:
            found.differences.append(Difference(decision.transaction_id, part, _said(said), _said(now)))


def _alike(said: Sequence[tuple[str, float, float | None]], again: Sequence[tuple[str, float, float | None]]) -> bool:
    """Whether the same members said the same."""
    return len(said) == len(again) and all(
        name == other and abs(weight - weight_again) <= WITHIN and (one is None) == (two is None) and abs((one or 0.0) - (two or 0.0)) <= WITHIN
        for (name, weight, one), (other, weight_again, two) in zip(said, again, strict=True)
    )


def _said(value: object) -> str:
    return ", ".join(map(_said, value)) if isinstance(value, tuple | list) else str(getattr(value, "code", value))
