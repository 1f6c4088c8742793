"""`holdfast run <app>`: runs one app, against the Kafka and Redis of the settings."""

from __future__ import annotations

import argparse

from streams.folder import made
from streams.named import named
from streams.settings import Settings

APPS: dict[str, str] = {
    "authorize": "streams.wired:run_authorize",
    "score": "streams.wired:run_score",
    "hold": "streams.wired:run_hold",
    "ledger": "streams.ledger:run",
    "sar": "streams.sar:run",
    "tally": "streams.wired:run_tally",
    "archive": "streams.archive:run",
    "watch": "streams.watch:run",
    "feedback": "streams.feedback:run",
}
"""What runs each app (`module:function`, imported when asked for)."""


def run(argv: list[str], settings: Settings) -> int:
    """`holdfast run <app>`: until SIGTERM; 0 after a clean stop."""
    parser = argparse.ArgumentParser(prog="holdfast run", description=__doc__)
    parser.add_argument("app", choices=APPS)
    app = parser.parse_args(argv).app
    made(settings.data_dir)
    return int(named(APPS[app])(settings))
