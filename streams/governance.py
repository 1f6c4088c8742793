"""The moves of models and policies from the command line: who, what, why; and the first ones of a system, made under names of its own."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from features.catalogue import CATALOGUE
from models.ensemble import Ensemble
from models.gates import against
from models.governance import COMPARED, DAY_MS, SYSTEM, TOLD, Inventory, Item, Refused, control_of, is_of_system
from models.registry import Registry, default_policy_text
from schemas.decision import Outcome
from schemas.errors import ArtefactError, HoldfastError, SettingsError, Unavailable
from schemas.governance import Act, Band, Kind, Move, State, Tier
from streams.clerk import entered
from streams.clock import clock_ms
from streams.control import told_once, told_so_far
from streams.settings import Settings
from streams.training_set import training_set

TRAINER, CHECKER, STARTER = f"{SYSTEM}trainer", f"{SYSTEM}checker", f"{SYSTEM}starter"
"""The names under which a system without a model makes one, validates it by its gates, and approves and promotes it."""
UPWARDS: dict[State | None, tuple[Act, str]] = {
    None: (Act.REGISTER, TRAINER),
    State.DRAFT: (Act.VALIDATE, CHECKER),
    State.VALIDATED: (Act.APPROVE, STARTER),
}
"""By state what it makes of its own first one, and under which name; from any later state it is promoted."""
NEWEST = "newest"
VALID_DAYS, VALID_DAYS_MAX = 365, 36_500
ACTS: dict[str, tuple[Act, str]] = {
    "validate": (Act.VALIDATE, "say that it does what it is for; by another person than its author"),
    "approve": (Act.APPROVE, "allow it to decide; by a third person, and only if it passes every gate"),
    "challenge": (Act.CHALLENGE, "let it decide for a share of cards, or stand by for that; what it does not decide it judges after"),
    "shadow": (Act.SHADOW, "let it judge what others have decided, and decide nothing"),
    "promote": (Act.PROMOTE, "make it the one that decides, within seconds"),
    "rollback": (Act.ROLL_BACK, "back to the last that decided before and can now (or to ID)"),
    "retire": (Act.RETIRE, "take it out for good"),
}
"""By command the act, and what it means."""
TO_DECIDE = frozenset({Act.PROMOTE, Act.ROLL_BACK, Act.CHALLENGE})


def done(outcome: Move | Refused) -> Move:
    """The move; ArtefactError where it was refused."""
    if isinstance(outcome, Refused):
        raise ArtefactError(f"{outcome.refusal}: {outcome.text}", str(outcome.refusal))
    return outcome


def brought_up(registry: Registry, kind: Kind, item_id: str, why: str, at_ms: int) -> None:
    """Leads a first model or policy to champion by three names of the system's own, from where it stands. The gates are the same for it."""
    registry.keep_house_policy()
    terms: dict[Act, dict[str, Any]] = {Act.VALIDATE: {"expires_at_ms": at_ms + VALID_DAYS * DAY_MS}, Act.APPROVE: {"tier": Tier.LOW}}
    while (state := _state(registry.inventory(), item_id)) is not State.CHAMPION:
        act, by = UPWARDS.get(state, (Act.PROMOTE, STARTER))
        done(registry.move(kind, item_id, act, by, why, at_ms, **terms.get(act, {})))


def _state(inventory: Inventory, item_id: str) -> State | None:
    return inventory.items[item_id].state if item_id in inventory.items else None


def with_house_policy(registry: Registry, inventory: Inventory, candidate_id: str) -> Inventory:
    """The inventory with the policy that comes with the house as the one that judges, where none was promoted yet and another is to be.

    So there is something to go back to, for people and for the breaker.
    """
    if inventory.champion(Kind.POLICY) is not None:
        return inventory
    policy_id = registry.put_policy(default_policy_text())
    if policy_id == candidate_id or _state(inventory, policy_id) is State.RETIRED:
        return inventory
    brought_up(registry, Kind.POLICY, policy_id, "it comes with the house, and judged before any was promoted", clock_ms())
    return registry.inventory()


# Commands.


def add_moves(actions: Any, kind: Kind) -> None:
    """The parsers of a kind's moves."""
    for name, (act, text) in ACTS.items():
        parser = actions.add_parser(name, help=text)
        optional = {"nargs": "?"} if act is Act.ROLL_BACK else {}
        parser.add_argument("item_id", metavar="ID", help=f"the {kind}'s id, or `{NEWEST}`", **optional)
        add_signature(parser)
        if act is Act.VALIDATE:
            parser.add_argument(
                "--valid-days", type=float, default=VALID_DAYS, metavar="N", help="after so many it must be validated anew (%(default)s)"
            )
        if act is Act.VALIDATE and kind is Kind.MODEL:
            parser.add_argument("--data", type=Path, metavar="DIR", help="compare it with the champion on these rows, later than its training")
        if act is Act.APPROVE:
            parser.add_argument("--tier", choices=list(Tier), default=Tier.HIGH, help="materiality (default %(default)s)")
            help_text = "approved share of decisions, like review=0:0.1; outside it the breaker acts (review and block: by default up to a half)"
            parser.add_argument("--band", action="append", type=band_of, default=[], metavar="OUTCOME=LOW:HIGH", help=help_text)
        if act is Act.CHALLENGE:
            parser.add_argument("--share", type=percent_of, default=0.0, metavar="PERCENT", help="of the cards it decides for so many (default none)")


def add_signature(parser: argparse.ArgumentParser, why: str | None = None) -> None:
    """Who and why. The name is what is said: that only the right people sign is what the private key is for."""
    parser.add_argument("--as", dest="by", type=person_of, required=True, metavar="PERSON", help="who does this")
    parser.add_argument("--why", required=why is None, default=why, metavar="TEXT", help="why, for the history")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")


def person_of(text: str) -> str:
    """The name, if it is none of the system's own."""
    if is_of_system(text):
        raise argparse.ArgumentTypeError(f"{text!r} is a name of the system's own, under which no person acts")
    return text


def band_of(text: str) -> Band:
    """The band that `review=0:0.1` says."""
    outcome, _, bounds = text.partition("=")
    low, _, high = bounds.partition(":")
    try:
        band = Band(Outcome(outcome), float(low), float(high))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like review=0:0.1") from None
    if not 0 <= band.low <= band.high <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a band goes from a share to one that is not lower, both 0 to 1")
    return band


def percent_of(text: str) -> float:
    """The share that `5` or `2.5` says."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of percent")
    return share


def moved(args: argparse.Namespace, kind: Kind, registry: Registry, settings: Settings, fit: Callable[[Act, str], None]) -> Move:
    """Makes the move that the command asks for, says it, and tells the log where another one decides now.

    `fit` raises where this release cannot let the one of that id do what the act lets it do.
    """
    act, _ = ACTS[args.action]
    entered(registry, told_so_far(settings).values())
    inventory = registry.inventory()
    item = last_good(inventory, kind, functools.partial(fit, act)) if args.item_id is None else found(inventory, kind, args.item_id)
    fit(act, item)
    if kind is Kind.POLICY and act is Act.PROMOTE:
        inventory = with_house_policy(registry, inventory, item)
    registry.keep_house_policy()
    before = inventory.champion(kind)
    move = done(registry.move(kind, item, act, args.by, args.why, clock_ms(), **_terms(args, act, kind, item, registry, len(inventory.moves))))
    print(f"{item}: {act} by {move.by}; now {registry.inventory().items[item].state}")
    if act in TOLD:
        _told(settings, move, before)
    if args.json:
        print(json.dumps(described(registry.inventory(), item, clock_ms())))
    return move


def last_good(inventory: Inventory, kind: Kind, fit: Callable[[str], None]) -> str:
    """The id of the last that decided before the present one and that this release can use, as the breaker goes back.

    Where there is none, the error is that of the nearest.
    """
    unfit: dict[str, HoldfastError] = {}
    while last := inventory.last_good(kind, unfit):
        try:
            fit(last.item_id)
        except HoldfastError as error:
            unfit[last.item_id] = error
            continue
        for item_id, reason in unfit.items():
            print(f"{item_id} is passed over: {reason}", file=sys.stderr)
        return last.item_id
    raise next(iter(unfit.values()), ArtefactError(f"no {kind} decided before the present one", "never_decided"))


def found(inventory: Inventory, kind: Kind, asked: str) -> str:
    """The id that is meant: `newest` is the last that a person registered, or the system where nobody did."""
    if asked != NEWEST:
        return asked
    items = inventory.of(kind)
    if not items:
        raise ArtefactError(f"no {kind} is registered", "unknown")
    return ([item for item in items if not item.author.startswith(SYSTEM)] or items)[-1].item_id


def _terms(args: argparse.Namespace, act: Act, kind: Kind, item_id: str, registry: Registry, lines: int) -> dict[str, Any]:
    """What a move says besides who, what and why. `lines`: how many the history had before anything was measured."""
    if act is Act.APPROVE:
        return {"tier": Tier(args.tier), "bands": tuple(args.band)}
    if act is Act.CHALLENGE:
        return {"share": args.share}
    if act is not Act.VALIDATE:
        return {}
    if not 0 < args.valid_days <= VALID_DAYS_MAX:
        raise SettingsError(f"--valid-days: a validation holds for some time, and for {VALID_DAYS_MAX:,} days at most")
    expires_at_ms = clock_ms() + int(args.valid_days * DAY_MS)
    if kind is not Kind.MODEL or not args.data:
        return {"expires_at_ms": expires_at_ms}
    figures = compared(registry, item_id, args.data)  # takes minutes: another one may decide by then, with which it was not compared
    return {"expires_at_ms": expires_at_ms, "figures": figures, "only_as": lines + 1}


def compared(registry: Registry, item_id: str, data: Path) -> dict[str, float]:
    """The candidate against the champion, on rows that the candidate has not learned from: those held out of its training, and what came later.

    Nothing without a champion. The champion may have learned from some of them, which is to its favour. Where an earlier release trained the
    candidate, whose card does not say what was held out, it is what came later alone.
    """
    champion = registry.champion_id()
    if champion is None or champion == item_id:
        return {}
    ours, theirs = registry.load(item_id), registry.load(champion)
    trained = registry.card(item_id)["trained"]
    examples = training_set(data, None, None)
    unseen = examples.at_ms > trained.get("learned_until_ms", trained["until_at_ms"])
    for model in (ours, theirs):
        if not set(model.names) <= set(examples.names):
            raise ArtefactError(f"{data}: has not all the columns that {model.model_id} reads")
    days = (examples.at_ms[unseen] // DAY_MS).astype(np.int64)
    own, other = (model.scores(examples.read_by(model.names).vectors[unseen]) for model in (ours, theirs))
    figures = against(own, other, examples.frauds[unseen], days, seed=1)
    said = ", ".join(f"{name} {value:+.4f}" for name, value in figures.items()) or "no fraud among them: nothing can be said"
    print(f"average precision on {unseen.sum()} rows: {said}")
    return figures


def _told(settings: Settings, move: Move, before: Item | None) -> None:
    """Tells running processes. Where the log does not answer they find it in the registry's folder."""
    try:
        told_once(settings, control_of(move, before.item_id if before and move.act in (Act.PROMOTE, Act.ROLL_BACK) else None))
    except Unavailable as error:
        print(f"the log did not take it ({error}); processes that read this registry's folder take it over within seconds", file=sys.stderr)


# Lists.


def described(inventory: Inventory, item_id: str, at_ms: int) -> dict[str, Any]:
    """One item for programs."""
    item = inventory.items[item_id]
    plain: dict[str, Any] = msgspec.to_builtins(item)
    return plain | {"expired": item.expired(at_ms), "moves": msgspec.to_builtins(inventory.moves_of(item_id))}


def item_lines(inventory: Inventory, item: Item, at_ms: int) -> list[str]:
    """One item for people, with everything that was done with it."""
    ends = f", valid until {_day(item.expires_at_ms)}" if item.expires_at_ms else ""
    said = f"{item.item_id}  {standing(item, at_ms)}, author {item.author}{f', tier {item.tier}' if item.tier else ''}{ends}"
    lines = [said, *(f"  band: {band.outcome} {100 * band.low:g}% to {100 * band.high:g}%" for band in item.bands)]
    lines += [f"  {name}: {value:.4g}{f' (beside {item.beside})' if name.startswith(COMPARED) else ''}" for name, value in item.figures.items()]
    return lines + [f"  {_moment(move.at_ms)}  {move.act} by {move.by}: {move.why}" for move in inventory.moves_of(item.item_id)]


def standing(item: Item | None, at_ms: int) -> str:
    """The state in words; one whose validation has expired says so."""
    if item is None:
        return "not entered"
    return f"{item.state}, EXPIRED: validate anew" if item.expired(at_ms) else str(item.state)


def gate_line(registry: Registry, inventory: Inventory, item_id: str) -> str:
    """The same for people."""
    said = ", ".join(registry.failing(inventory, item_id))
    return f"  gates: {'not passed: ' + said if said else 'all passed'}"


def served_here(ensemble: Ensemble) -> None:
    """ArtefactError for a model that reads other columns than this release serves."""
    if ensemble.catalogue_id != CATALOGUE.catalogue_id:
        raise ArtefactError(f"{ensemble.model_id} was trained on another catalogue than this release has ({CATALOGUE.catalogue_id}): train again")
    foreign = [name for name in ensemble.names if name not in CATALOGUE.index]
    if foreign:
        raise ArtefactError(f"{ensemble.model_id} reads {foreign[0]!r}, which no request carries: it is for comparing, and cannot decide")


def print_moves(inventory: Inventory, items: Sequence[Item]) -> None:
    """Items with all that was done with them."""
    at_ms = clock_ms()
    for item in items:
        print("\n".join(item_lines(inventory, item, at_ms)))


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")
