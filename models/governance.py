"""The legal moves of models and policies, from draft to retired: a table, a fold over the history, named refusals. Pure.

After SR 26-2 (2026): an inventory, materiality tiers, validation by somebody else than the author, re-validation when it is due.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from schemas.decision import Outcome
from schemas.governance import BY_BREAKER, Act, Band, Cause, Control, Kind, Move, State, Tier
from schemas.identity import derived_id
from schemas.record import Word

DAY_MS = 86_400_000
VALID_DAYS: Mapping[Tier, int] = {Tier.LOW: 730, Tier.MEDIUM: 365, Tier.HIGH: 180}
"""The longest time after which it must be validated anew, by materiality."""
USUAL_BANDS = (Band(Outcome.REVIEW, 0.0, 0.5), Band(Outcome.BLOCK, 0.0, 0.5))
"""What is approved of an outcome of which the approver says nothing narrower: that half of all payments are stopped is never meant."""
SYSTEM = "system:"
"""What names begin with under which no person acts."""
BREAKER = f"{SYSTEM}breaker"
"""The name under which the breaker acts."""
STANDING_BY = frozenset({State.APPROVED, State.CHALLENGER, State.SHADOW})
APPROVED = STANDING_BY | {State.CHAMPION}
"""Where a model or policy stands that a third person has approved."""
LEGAL: Mapping[Act, Mapping[State, State]] = {
    Act.VALIDATE: {State.DRAFT: State.VALIDATED} | {state: state for state in State if state not in (State.DRAFT, State.RETIRED)},
    Act.APPROVE: {State.VALIDATED: State.APPROVED},
    Act.CHALLENGE: dict.fromkeys(STANDING_BY, State.CHALLENGER),
    Act.SHADOW: dict.fromkeys(STANDING_BY, State.SHADOW),
    Act.PROMOTE: dict.fromkeys(STANDING_BY, State.CHAMPION),
    Act.ROLL_BACK: dict.fromkeys(STANDING_BY, State.CHAMPION),
    Act.RETIRE: {state: State.RETIRED for state in State if state not in (State.CHAMPION, State.RETIRED)},
}
"""From which state an act leads to which. Registering is the beginning: it leads to draft from nothing. Validating again renews the date."""
DETHRONED: Mapping[Act, State] = {Act.PROMOTE: State.APPROVED, Act.ROLL_BACK: State.VALIDATED}
"""What becomes of the champion: one that was rolled back must be approved anew before it may decide again."""
COMPARED = "against_champion"
"""What the names of figures begin with that were measured beside the champion of that time."""


class Refusal(Word):
    """Facts for which a move is refused; the order of the lines is the precedence."""

    NO_REASON = "no_reason"
    NOBODY = "nobody"
    UNKNOWN = "unknown"
    ALREADY_REGISTERED = "already_registered"
    RETIRED = "retired"
    DECIDES = "decides"
    NOT_VALIDATED = "not_validated"
    NOT_APPROVED = "not_approved"
    NOT_TO_VALIDATE = "not_to_validate"
    OWN_WORK = "own_work"
    OWN_VALIDATION = "own_validation"
    OWN_APPROVAL = "own_approval"
    EXPIRED = "expired"
    GATE_FAILED = "gate_failed"
    SHARES_EXCEED = "shares_exceed"
    NEVER_DECIDED = "never_decided"
    OVERTAKEN = "overtaken"


class Refused(NamedTuple):
    """Why a move may not be made: the fact, and for a person what of it."""

    refusal: Refusal
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """One model or policy, as the moves so far have it."""

    item_id: str
    kind: Kind
    state: State
    author: str
    validated_by: str = ""
    approved_by: str = ""
    tier: Tier | None = None
    validated_at_ms: int = 0
    expires_at_ms: int | None = None
    bands: tuple[Band, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    beside: str = ""
    """The one that decided when it was validated, with which those figures compare it."""
    decided_since: tuple[int, ...] = ()
    """The numbers of the moves that made it champion."""
    since: int = 0
    """The number of the move that put it where it stands."""
    share: float = 0.0
    """Of a challenger: the share of cards for which it decides."""

    def expired(self, now_ms: int) -> bool:
        """Whether it must be validated anew before it may be approved or promoted."""
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms

    def measured(self, champion: Item | None) -> Mapping[str, float]:
        """The figures that count where this champion decides: what compares it with another says nothing of this one."""
        current = champion is not None and champion.item_id == self.beside
        return {name: value for name, value in self.figures.items() if current or not name.startswith(COMPARED)}


@dataclass(frozen=True, slots=True)
class Inventory:
    """Every model and policy by id, in order of registration, and the moves that led there."""

    items: Mapping[str, Item] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()

    def of(self, kind: Kind) -> tuple[Item, ...]:
        """The items of a kind."""
        return tuple(item for item in self.items.values() if item.kind is kind)

    def champion(self, kind: Kind) -> Item | None:
        """The one that decides."""
        return next((item for item in self.of(kind) if item.state is State.CHAMPION), None)

    def standing_by(self, kind: Kind) -> tuple[Item, ...]:
        """Challengers and shadows, in order of registration."""
        return tuple(item for item in self.of(kind) if item.state in (State.CHALLENGER, State.SHADOW))

    def moves_of(self, item_id: str) -> tuple[Move, ...]:
        """What was done with one."""
        return tuple(move for move in self.moves if move.item_id == item_id)

    def last_good(self, kind: Kind, unfit: Collection[str] = ()) -> Item | None:
        """The one that decided before the champion, stands by and could decide again; `unfit` are ids of those that this release cannot use."""
        before = [item for item in self.of(kind) if item.decided_since and item.state in STANDING_BY and item.item_id not in unfit]
        return max(before, key=lambda item: item.decided_since[-1], default=None)


def refused(inventory: Inventory, move: Move, failed: tuple[str, ...] = ()) -> Refused | None:
    """Why this move may not follow; None if it may. `failed` names the gates that its model or policy does not pass."""
    wrong = _worded(move) or out_of_place(inventory, move)
    if wrong or move.act is Act.REGISTER:
        return wrong
    item = inventory.items[move.item_id]
    return _same_eyes(item, move) or _unfit(item, move, failed) or _overfull(inventory, move)


def out_of_place(inventory: Inventory, move: Move) -> Refused | None:
    """Why a line of a history cannot come after the others; None if it can. Whether it is right is asked when it is made, by that day's rules."""
    wrong = _known(inventory, move)
    return wrong if wrong or move.act is Act.REGISTER else _misplaced(inventory.items[move.item_id], move)


def _worded(move: Move) -> Refused | None:
    if not move.why.strip():
        return Refused(Refusal.NO_REASON, "say why")
    return None if move.by.strip() else Refused(Refusal.NOBODY, "say who")


def _known(inventory: Inventory, move: Move) -> Refused | None:
    there = inventory.items.get(move.item_id)
    if move.act is Act.REGISTER:
        return Refused(Refusal.ALREADY_REGISTERED, f"{move.item_id} is registered") if there else None
    return None if there and there.kind is move.kind else Refused(Refusal.UNKNOWN, f"no {move.kind} {move.item_id} is registered")


_PLACES: Mapping[State, Refusal] = {
    State.RETIRED: Refusal.RETIRED,
    State.CHAMPION: Refusal.DECIDES,
    State.DRAFT: Refusal.NOT_VALIDATED,
    State.VALIDATED: Refusal.NOT_APPROVED,
}


def _misplaced(item: Item, move: Move) -> Refused | None:
    """The state that does not allow the act."""
    if item.state in LEGAL[move.act]:
        return None
    return Refused(_PLACES.get(item.state, Refusal.NOT_TO_VALIDATE), f"{item.item_id} is {item.state}: {move.act} is not what follows")


def _same_eyes(item: Item, move: Move) -> Refused | None:
    """Author, validator and approver are three persons."""
    if move.act in (Act.VALIDATE, Act.APPROVE) and _same(move.by, item.author):
        return Refused(Refusal.OWN_WORK, f"{move.by} is its author: another person must {move.act} it")
    if move.act is Act.APPROVE and _same(move.by, item.validated_by):
        return Refused(Refusal.OWN_VALIDATION, f"{move.by} validated it: another person must approve it")
    if move.act is Act.VALIDATE and item.state in APPROVED and _same(move.by, item.approved_by):
        return Refused(Refusal.OWN_APPROVAL, f"{move.by} approved it: another person must validate it anew")
    return None


def _same(name: str, other: str) -> bool:
    """Whether two names are one person's: Ana is ana, and Zoë is Zoë, however it is typed."""
    return _plain(name) == _plain(other)


def is_of_system(name: str) -> bool:
    """Whether a name is one of the system's own, under which no person acts, however it is typed."""
    return _plain(name).startswith(SYSTEM)


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())


def _unfit(item: Item, move: Move, failed: tuple[str, ...]) -> Refused | None:
    """What keeps a model or policy from deciding, however it stands. Rolling back is for bad days: it asks only that it has decided before."""
    if move.act is Act.ROLL_BACK:
        return None if item.decided_since else Refused(Refusal.NEVER_DECIDED, f"{item.item_id} has never decided: promote it")
    if not to_decide(move):
        return None
    if (_approved(item, move) if move.act is Act.APPROVE else item).expired(move.at_ms):
        return Refused(Refusal.EXPIRED, f"the validation of {item.item_id} has expired: it must be validated anew")
    return Refused(Refusal.GATE_FAILED, f"{item.item_id} does not pass: {', '.join(failed)}") if failed else None


def to_decide(move: Move) -> bool:
    """Whether it lets a model or policy decide, so that it must be fit to."""
    return move.act in (Act.APPROVE, Act.PROMOTE) or (move.act is Act.CHALLENGE and move.share > 0)


def _overfull(inventory: Inventory, move: Move) -> Refused | None:
    """The challengers cannot decide for more cards than there are."""
    if move.act is not Act.CHALLENGE:
        return None
    taken = sum(item.share for item in inventory.standing_by(move.kind) if item.item_id != move.item_id)
    fits = taken + move.share - 1 < 1e-9  # 33, 56 and 11 % are all of them, though their floats sum to more
    return None if fits else Refused(Refusal.SHARES_EXCEED, f"other challengers decide for {taken:.1%} of the cards: {move.share:.1%} are not left")


def after(inventory: Inventory, move: Move) -> Inventory:
    """The inventory after a move that is not refused."""
    items, was = dict(inventory.items), inventory.champion(move.kind)
    if move.act in DETHRONED and was is not None:
        items[was.item_id] = replace(was, state=DETHRONED[move.act], since=move.number)
    items[move.item_id] = _MOVED[move.act](items.get(move.item_id), move)
    if move.act is Act.VALIDATE:
        items[move.item_id] = replace(items[move.item_id], beside=was.item_id if was else "")
    return Inventory(items, (*inventory.moves, move))


def _begun(_: Item | None, move: Move) -> Item:
    return Item(move.item_id, move.kind, State.DRAFT, move.by, since=move.number)


def _validated(item: Item | None, move: Move) -> Item:
    assert item is not None
    led = item if item.state is LEGAL[move.act][item.state] else _led(item, move)
    ends = _ends(item.tier, move.at_ms, move.expires_at_ms) if item.state in APPROVED else move.expires_at_ms
    return replace(led, validated_by=move.by, validated_at_ms=move.at_ms, expires_at_ms=ends, figures=move.figures)


def _ends(tier: Tier | None, validated_at_ms: int, said_ms: int | None) -> int:
    """Until when it holds: the tier's own limit shortens the time that the validator gave."""
    assert tier is not None
    latest = validated_at_ms + VALID_DAYS[tier] * DAY_MS
    return latest if said_ms is None else min(latest, said_ms)


def _approved(item: Item | None, move: Move) -> Item:
    assert item is not None
    ends = _ends(move.tier, item.validated_at_ms, item.expires_at_ms)
    said = {band.outcome for band in move.bands}
    bands = (*move.bands, *(band for band in USUAL_BANDS if band.outcome not in said))
    return replace(_led(item, move), approved_by=move.by, tier=move.tier, expires_at_ms=ends, bands=bands)


def _enthroned(item: Item | None, move: Move) -> Item:
    assert item is not None
    return replace(_led(item, move), decided_since=(*item.decided_since, move.number))


def _led(item: Item | None, move: Move) -> Item:
    assert item is not None
    return replace(item, state=LEGAL[move.act][item.state], since=move.number, share=move.share)


_MOVED: Mapping[Act, Callable[[Item | None, Move], Item]] = {
    Act.REGISTER: _begun,
    Act.VALIDATE: _validated,
    Act.APPROVE: _approved,
    Act.CHALLENGE: _led,
    Act.SHADOW: _led,
    Act.PROMOTE: _enthroned,
    Act.ROLL_BACK: _enthroned,
    Act.RETIRE: _led,
}


# Who decides and who stands by: the history, and what the control topic says beyond it.

TOLD: Mapping[Act, Cause] = {
    Act.PROMOTE: Cause.PROMOTED,
    Act.ROLL_BACK: Cause.ROLLED_BACK,
    Act.CHALLENGE: Cause.CHALLENGED,
    Act.SHADOW: Cause.SHADOWED,
    Act.RETIRE: Cause.RETIRED,
}
"""The moves that running processes are told of, and as what."""


def control_of(move: Move, previous_id: str | None) -> Control:
    """The event that tells of a move."""
    return _control(move.kind, move.item_id, previous_id, TOLD[move.act], move.by, move.why, move.at_ms, move.number)


def breaker_event(item: Item, back_to: Item | None, why: str, now_ms: int) -> Control:
    """The event with which the breaker undoes the move that lets this one decide: a champion gives way, a challenger decides for no card any more."""
    if item.state is State.CHALLENGER:
        return _control(item.kind, item.item_id, None, Cause.STOOD_DOWN, BREAKER, why, now_ms, item.since)
    assert back_to is not None, "a champion gives way to somebody"
    return _control(item.kind, back_to.item_id, item.item_id, Cause.BREAKER, BREAKER, why, now_ms, item.since)


def cut_off(inventory: Inventory, told: Iterable[Control]) -> Control | None:
    """An event about a line that the history does not have: lines are written before they are told, so its newest were taken away."""
    return next((event for event in told if event.number > len(inventory.moves)), None)


def unentered(inventory: Inventory, told: Iterable[Control]) -> tuple[tuple[Control, Act], ...]:
    """What the breaker told and the history does not have yet, with the act that enters it."""
    found = []
    for event in told:
        item = inventory.items.get(event.item_id)
        if item is None or event.cause not in BY_BREAKER or item.kind is not event.kind:
            continue
        if event.cause is Cause.STOOD_DOWN and item.state is State.CHALLENGER and event.number >= item.since:
            found.append((event, Act.SHADOW))
        champion = inventory.champion(event.kind)
        if event.cause is Cause.BREAKER and champion not in (None, item) and deciding(inventory, event.kind, event) == item.item_id:
            found.append((event, Act.ROLL_BACK))
    return tuple(found)


def standing_by(inventory: Inventory, kind: Kind, told: Mapping[str, Control]) -> tuple[Item, ...]:
    """Challengers and shadows, as the history has them. One that the breaker stood down decides for no card, whether it was entered yet or not."""
    return tuple(_stood_down(item, told.get(f"{kind}:{item.item_id}")) for item in inventory.standing_by(kind))


def _stood_down(item: Item, told: Control | None) -> Item:
    stands_down = told is not None and told.cause is Cause.STOOD_DOWN and told.number >= item.since
    return replace(item, share=0.0) if stands_down else item


def _control(kind: Kind, item_id: str, previous_id: str | None, cause: Cause, by: str, why: str, at_ms: int, number: int) -> Control:
    """The same cause of the same line is the same event, whichever process tells it."""
    control_id = derived_id("ctl", kind, cause, str(number), item_id)
    return Control(
        control_id=control_id, kind=kind, item_id=item_id, previous_id=previous_id, cause=cause, by=by, why=why, at_ms=at_ms, number=number
    )


def deciding(inventory: Inventory, kind: Kind, told: Control | None) -> str | None:
    """The id of the one that decides: the history's champion, or what the control topic said of that same line or a later one.

    Only what the signed history made champion once is followed: the topic can point back, never to what nobody approved.
    """
    champion = inventory.champion(kind)
    since = champion.decided_since[-1] if champion else 0
    if told is not None and told.number >= since:
        item = inventory.items.get(told.item_id)
        if item is not None and item.kind is kind and item.decided_since and item.state is not State.RETIRED:
            return item.item_id
    return champion.item_id if champion else None
