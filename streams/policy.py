"""`holdfast policy`: rules and thresholds without a deploy. Shows the one that judges, checks a changed file, promotes it."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from features.catalogue import CATALOGUE
from models.policy import Policy, policy_from_toml
from models.registry import Registry
from schemas.errors import SettingsError
from streams.folder import keys_of, with_kept_secrets
from streams.run import clock_ms
from streams.settings import Settings


def lines(policy: Policy) -> list[str]:
    """The policy for people: thresholds, then one line a rule."""
    said = [
        f"{policy.policy_id}  {policy.name}, effective from {_since(policy)}",
        f"  score: review above {policy.review_above}, block above {policy.block_above}",
        f"  risk: medium above {policy.medium_above}, high above {policy.high_above}",
    ]
    for rule in policy.rules:
        conditions = " and ".join(f"{c.feature} {c.comparison} {c.value:g}" for c in rule.conditions)
        said.append(f"  {rule.outcome}: {conditions} -> {rule.reason}")
    if policy.sar.without_rate:
        said.append(f"  no SAR pattern is looked for in currencies without usd_per_unit: {' '.join(policy.sar.without_rate)}")
    return said


def _since(policy: Policy) -> str:
    return datetime.fromtimestamp(policy.effective_from_ms / 1000, UTC).isoformat()


def promoted(registry: Registry, text: str, now_ms: int) -> None:
    """Makes this text the policy that judges. SettingsError where it is not in force yet: it would judge at once all the same."""
    policy = policy_from_toml(text)
    if policy.effective_from_ms > now_ms:
        raise SettingsError(f"policy.effective_from: {_since(policy)} is yet to come; promote the policy when it is in force")
    registry.promote_policy(registry.put_policy(text), now_ms)


def read(path: Path) -> str:
    """A policy file's text, if every key and every feature in it is known. SettingsError names what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    policy_from_toml(text).bound(CATALOGUE.names)
    return text


def command(argv: list[str], settings: Settings) -> int:
    """`holdfast policy show | check FILE | promote FILE`."""
    parser = argparse.ArgumentParser(prog="holdfast policy", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("show", help="the policy that judges")
    for name, text in (("check", "whether a file is a policy for this catalogue"), ("promote", "make it the one that judges, within seconds")):
        actions.add_parser(name, help=text).add_argument("file", type=Path)
    args = parser.parse_args(argv)
    settings = with_kept_secrets(settings)
    registry = Registry(settings.registry_dir, keys_of(settings))
    if args.action == "show":
        print("\n".join(lines(registry.policy())))
        return 0
    text = read(args.file)
    if args.action == "promote":
        promoted(registry, text, clock_ms())
    print("\n".join(lines(policy_from_toml(text))))
    return 0
