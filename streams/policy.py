"""`holdfast policy`: rules and thresholds without a deploy. Shows the one that judges, checks a changed file, leads it through governance."""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from datetime import UTC, datetime
from pathlib import Path

from features.catalogue import CATALOGUE
from features.fact import ENTITIES, PROFILES
from models.backtest import backtest, read_by
from models.policy import Policy, enterable, policy_from_toml
from models.registry import Registry
from schemas.errors import SettingsError
from schemas.governance import Act, Kind
from streams import backtest as replay
from streams.clock import clock_ms
from streams.compare import add_compare, compare
from streams.governance import ACTS, TO_DECIDE, add_moves, add_signature, described, done, moved, print_moves
from streams.registry import registry_of
from streams.settings import Settings


def lines(policy: Policy) -> list[str]:
    """The policy for people: thresholds, then one line a rule."""
    said = [
        f"{policy.policy_id}  {policy.name}, effective from {_since(policy)}",
        f"  score: review above {policy.review_above}, block above {policy.block_above}",
        f"  risk: medium above {policy.medium_above}, high above {policy.high_above}",
    ]
    for rule in policy.rules:
        conditions = " and ".join(f"{c.feature} {c.comparison} {c.value:.15g}" for c in rule.conditions)
        asked = f", or {rule.action} where a cardholder can be asked" if rule.action else ""
        said.append(f"  {rule.outcome}{asked}: {conditions} -> {rule.reason}")
    if policy.sar.without_rate:
        said.append(f"  no SAR pattern is looked for in currencies without usd_per_unit: {' '.join(policy.sar.without_rate)}")
    return said


def _since(policy: Policy) -> str:
    return datetime.fromtimestamp(policy.effective_from_ms / 1000, UTC).isoformat()


def entered(registry: Registry, text: str, by: str, why: str) -> str:
    """Puts this text into the registry as a draft, and returns its id; twice is once."""
    policy_id = registry.put_policy(text)
    if policy_id not in registry.inventory().items:
        done(registry.move(Kind.POLICY, policy_id, Act.REGISTER, by, why, clock_ms()))
    return policy_id


def _judging(registry: Registry, act: Act, policy_id: str) -> None:
    """SettingsError where a policy is to decide that cannot, or to judge what others decide by what nobody serves."""
    if act is Act.SHADOW:
        registry.load_policy(policy_id).bound(CATALOGUE.names)
    if act in TO_DECIDE:
        in_force(registry.load_policy(policy_id), clock_ms())


def in_force(policy: Policy, at_ms: int) -> None:
    """SettingsError where it is not in force yet: promoted, it would judge at once all the same. Or where a rule reads what nobody serves."""
    policy.bound(CATALOGUE.names)
    if policy.effective_from_ms > at_ms:
        raise SettingsError(f"policy.effective_from: {_since(policy)} is yet to come; promote the policy when it is in force")


MEMORIES = frozenset(entity.name for entity in ENTITIES) | frozenset(f"{kind}_profile" for kind in PROFILES)
"""What of the past can be missing."""


def _members(registry: Registry) -> frozenset[str]:
    """The members of every registered model; while there is none, those of the house's recipe."""
    names = [member["name"] for model in registry.models() if model.card for member in model.card["members"]]
    if not names:
        from streams.train import recipe_in  # takes long to import

        names = [member.name for member in recipe_in().members]
    return frozenset(names)


def read(path: Path, registry: Registry) -> str:
    """A policy file's text, if every key, feature, member and memory in it is known. SettingsError names what is wrong."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    enterable(policy_from_toml(text).bound(CATALOGUE.names), _members(registry), MEMORIES)
    return text


def command(argv: list[str], settings: Settings) -> int:
    """`holdfast policy show | check FILE | test FILE | register FILE | list | compare | validate|approve|promote|rollback|retire ID`."""
    parser = argparse.ArgumentParser(prog="holdfast policy", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="the policy that judges")
    listing = actions.add_parser("list", help="every registered policy and its moves")
    check = actions.add_parser("check", help="whether a file is a policy for this catalogue")
    check.add_argument("file", type=Path)
    for parser_of in (show, listing, check):
        parser_of.add_argument("--json", action="store_true", help="end with one JSON object")
    _add_test(actions.add_parser("test", help="replay a file over the archive: what it would have caught and hurt; nothing is saved"))
    register = actions.add_parser("register", help="put a file into the registry, as a draft; prints its id")
    register.add_argument("file", type=Path)
    add_signature(register)
    add_compare(actions)
    add_moves(actions, Kind.POLICY)
    args = parser.parse_args(argv)
    registry = registry_of(settings)
    if args.action in ACTS:
        moved(args, Kind.POLICY, registry, settings, functools.partial(_judging, registry))
    elif args.action == "compare":
        return compare(args, Kind.POLICY, registry, settings)
    elif args.action == "test":
        return tested(policy_from_toml(read(args.file, registry)), registry.policy(), args, settings)
    elif args.action == "register":
        policy_id = entered(registry, read(args.file, registry), args.by, args.why)
        print(policy_id)
        if args.json:
            print(json.dumps(described(registry.inventory(), policy_id, clock_ms())))
    elif args.action == "list":
        _list(registry, args.json)
    else:
        _print(registry.policy() if args.action == "show" else checked(args.file, registry, args.json), args.json)
    return 0


def _list(registry: Registry, as_json: bool) -> None:
    inventory = registry.inventory()
    items = inventory.of(Kind.POLICY)
    print_moves(inventory, items)
    if as_json:
        print(json.dumps({"policies": [described(inventory, item.item_id, clock_ms()) for item in items]}))


def checked(file: Path, registry: Registry, as_json: bool) -> Policy:
    """The policy in a file. SettingsError names what is wrong with it; a program is told of that too."""
    try:
        return policy_from_toml(read(file, registry))
    except SettingsError as error:
        if as_json:
            print(json.dumps({"valid": False, "fault": str(error)}))
        raise


def _print(policy: Policy, as_json: bool) -> None:
    print("\n".join(lines(policy)))
    if as_json:
        about = {name: getattr(policy, name) for name in ("policy_id", "name", "effective_from_ms", "review_above", "block_above")}
        print(json.dumps(about | {"rules": len(policy.rules), "valid": True}))


# The test of a candidate, before anyone saves it.


def _add_test(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--since", type=replay.days_of, metavar="30d", help="payments of so many days (d) or hours (h) back from the last (default: all)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="the archive (default: that of the settings)")
    parser.add_argument("--alerts-per-day-max", type=bound_of, metavar="N", help="exit status 1 if the candidate gives more")
    parser.add_argument("--honest-blocked-max", type=bound_of, metavar="N", help="exit status 1 if the candidate blocks more honest payments")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")


def bound_of(text: str) -> float:
    """The number of an option that is a bound; nothing is above one that is no number."""
    try:
        bound = float(text)
    except ValueError:
        bound = math.nan
    if not bound >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return bound


def tested(candidate: Policy, live: Policy, args: argparse.Namespace, settings: Settings) -> int:
    """Says what the candidate would have done; 1 if it breaks a bound that was given."""
    began = time.perf_counter()
    payments = replay.payments_in(args.data or settings.archive_dir, read_by(candidate, live), args.since)
    found = backtest(candidate, live, payments)
    seconds = time.perf_counter() - began
    print("\n".join(replay.lines(found)))
    bounds = [
        (args.alerts_per_day_max, found.candidate.alerts_per_day, "alerts a day"),
        (args.honest_blocked_max, found.candidate.honest_blocked, "honest blocked"),
    ]
    broken = [f"{name}: {value:,.1f}, at most {most:,g} are allowed" for most, value, name in bounds if most is not None and value > most]
    print("\n".join([f"replayed in {seconds:.2f} s", *broken]))
    if args.json:
        print(json.dumps(replay.figures_of(found) | {"seconds": seconds, "within_bounds": not broken}))
    return 1 if broken else 0
