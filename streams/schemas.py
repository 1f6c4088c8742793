"""`holdfast schemas`: the table of topics, freezing the wire schemas, and registering them with a Confluent-compatible registry."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import schemas.catalogue
from schemas.avro import avro_schema
from schemas.catalogue import VERSIONS
from schemas.errors import SettingsError
from schemas.freeze import frozen, incompatible, module_text
from schemas.topics import DAY_MS, TOPICS
from streams.settings import Settings


def topics_table() -> str:
    """The topics as a Markdown table."""
    lines = ["| topic | record | key | partitions | kept | written by | read by |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for topic in TOPICS:
        kept = "newest of each key" if topic.compacted else "for ever" if topic.retention_ms < 0 else f"{topic.retention_ms // DAY_MS} days"
        row = [f"`{topic.name}`", topic.record.__name__, f"`{topic.key}`", str(topic.partitions), kept]
        lines.append(f"| {' | '.join([*row, ', '.join(topic.writers), ', '.join(topic.readers)])} |")
    return "\n".join(lines)


def faults() -> list[str]:
    """Why the committed catalogue is not what the records say, or not FULL_TRANSITIVE; empty if all is well."""
    found = []
    for topic in TOPICS:
        now = avro_schema(topic.record)
        own = [v for v in VERSIONS if v.record == topic.record.__name__]
        if not own or json.loads(own[-1].schema) != now:
            found.append(f"{topic.record.__name__}: the record is not its newest committed schema; run `holdfast schemas freeze`")
        for version in own:
            found += [f"{version.record} v{version.version}: {why}" for why in incompatible(json.loads(version.schema), now)]
    return found


def publish(url: str, timeout_s: float = 10) -> list[tuple[str, int]]:
    """Registers every committed schema as `<topic>-value` under its committed id and version; (subject, id) of each.

    The registry's import mode is what lets us say the ids, which our messages carry. OSError if the registry does not
    answer or refuses; SettingsError if it gave a schema another id, because then its readers could not read us.
    """
    done = []
    for topic in TOPICS:
        subject = f"{topic.name}-value"
        own = [v for v in VERSIONS if v.record == topic.record.__name__]
        _send(f"{url}/mode/{subject}?force=true", "PUT", {"mode": "IMPORT"}, timeout_s)
        try:
            for version in own:
                content = {"schema": version.schema, "id": version.schema_id, "version": version.version}
                reply = _send(f"{url}/subjects/{subject}/versions", "POST", content, timeout_s)
                if reply.get("id") != version.schema_id:
                    raise SettingsError(f"{url}: {subject} version {version.version} got id {reply.get('id')}, not {version.schema_id}")
                done.append((subject, version.schema_id))
        finally:
            _send(f"{url}/mode/{subject}?force=true", "PUT", {"mode": "READWRITE"}, timeout_s)
        _send(f"{url}/config/{subject}", "PUT", {"compatibility": "FULL_TRANSITIVE"}, timeout_s)
    return done


def _send(url: str, method: str, content: Mapping[str, object], timeout_s: float) -> dict[str, object]:
    headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        reply: dict[str, object] = json.load(response)
        return reply


def command(argv: list[str], settings: Settings) -> int:
    """`holdfast schemas topics|check|freeze|publish URL`."""
    parser = argparse.ArgumentParser(prog="holdfast schemas", description=__doc__)
    parser.add_argument("action", choices=("topics", "check", "freeze", "publish"))
    parser.add_argument("url", nargs="?", help="the registry's address, for publish")
    parser.add_argument("--json", action="store_true", help="check: end with one JSON object of the figures")
    args = parser.parse_args(argv)
    if args.action == "topics":
        print(topics_table())
        return 0
    if args.action == "publish":
        return _publish(args.url)
    if args.action == "freeze":
        Path(schemas.catalogue.__file__).write_text(module_text(frozen(VERSIONS)))
        print(f"{len(frozen(VERSIONS)) - len(VERSIONS)} new versions")
        return 0
    found = faults()
    print("\n".join(found) or f"{len(VERSIONS)} committed schemas; every record is its newest, fully compatible with all before")
    if args.json:
        print(json.dumps({"versions": len(VERSIONS), "faults": found}))
    return 1 if found else 0


def _publish(url: str | None) -> int:
    if not url:
        print("holdfast schemas publish: name the registry's address", file=sys.stderr)
        return 2
    try:
        for subject, schema_id in publish(url.rstrip("/")):
            print(f"{subject}: id {schema_id}")
    except SettingsError as error:
        print(f"holdfast schemas publish: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: the address is none, or the answer is no JSON
        detail = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
        print(f"holdfast schemas publish: {url}: {error} {detail}", file=sys.stderr)
        return 1
    return 0
