"""How the committed catalogue grows: today's records against the newest committed versions, and what it must stay compatible with."""

from __future__ import annotations

import json
from typing import Any

from schemas.avro import avro_schema
from schemas.topics import TOPICS
from schemas.version import Version


def frozen(committed: tuple[Version, ...]) -> tuple[Version, ...]:
    """The catalogue with a new version for each record whose schema is not its newest committed one."""
    versions = list(committed)
    for record in [topic.record for topic in TOPICS]:
        schema = json.dumps(avro_schema(record), separators=(",", ":"))
        own = [v for v in versions if v.record == record.__name__]
        if not own or own[-1].schema != schema:
            versions.append(Version(len(versions) + 1, record.__name__, len(own) + 1, schema))
    # Transaction is nested in Decision and also stands alone: each topic's record is a row of its own.
    return tuple(versions)


def module_text(versions: tuple[Version, ...]) -> str:
    """The text of `schemas/catalogue.py` for these versions."""
    lines = [
        '"""The committed catalogue of wire schemas. Written by `holdfast schemas freeze`; a row is never edited."""',
        "# ruff: noqa: E501",
        "",
        "from schemas.version import Version",
        "",
        "VERSIONS: tuple[Version, ...] = (",
    ]
    for v in versions:
        lines.append(f"    Version({v.schema_id}, {v.record!r}, {v.version}, {v.schema!r}),")
    return "\n".join([*lines, ")", ""])


def incompatible(old: Any, new: Any, path: str = "") -> list[str]:
    """Why `new` is not fully compatible with `old` (readers of each read what the other wrote); empty if it is.

    Follows the Avro specification's schema resolution for what Holdfast's records use: records, unions with null,
    arrays and primitives, all without promotion. Stricter than a registry: types must be the same.
    """
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type") == "record":
        before, after = ({f["name"]: f for f in s["fields"]} for s in (old, new))
        faults = [f"{path}{n}: removed, but it has no default" for n in before.keys() - after.keys() if "default" not in before[n]]
        faults += [f"{path}{n}: added without a default" for n in after.keys() - before.keys() if "default" not in after[n]]
        for name in sorted(before.keys() & after.keys()):
            faults += incompatible(before[name]["type"], after[name]["type"], f"{path}{name}.")
        return faults
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type") == "array":
        return incompatible(old["items"], new["items"], f"{path}[].")
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [fault for a, b in zip(old, new, strict=True) for fault in incompatible(a, b, path)]
    bare_old, bare_new = (s["type"] if isinstance(s, dict) else s for s in (old, new))
    return [] if bare_old == bare_new else [f"{path.rstrip('.')}: {bare_old} became {bare_new}"]
