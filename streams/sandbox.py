"""`holdfast sandbox`: both doors on embedded parts in a folder of its own, where test cards force every outcome. `sandbox cards` lists them."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from pathlib import Path
from types import FrameType

import msgspec
from rich.console import Console

from models.answer import FIELD_39
from models.sandbox import CARDS, PARTIAL, STEP_UPS, Card, Effect
from schemas.decision import Action
from schemas.errors import SettingsError
from streams.authorize.problem import ERRORS
from streams.demo import of_its_own
from streams.folder import SANDBOX, is_owned, made, with_kept_secrets
from streams.lab import ensure_champion
from streams.ready import write_whole
from streams.settings import Settings
from streams.stack import refuse_taken_ports, running
from streams.steps import Steps

APPS = ("authorize", "score", "hold", "ledger", "sar", "tally")
"""Enough for the whole life of an authorization, and for the books to agree."""
LOOK_S = 0.5


class Said(msgspec.Struct, frozen=True):
    """What a program needs to ask the sandbox."""

    http: str
    iso8583: str
    api_key: str
    data: str


def http_says(card: Card) -> str:
    """What the HTTP door answers: the status, then outcome and reason category, or the error's code."""
    if card.outcome is None:
        return f"{ERRORS[card.answer].status} {card.answer}"
    stands_in, steps_up = card.effect is Effect.STAND_IN, card.answer in STEP_UPS
    how = ", stand-in" if stands_in else ", in part" if card.answer == PARTIAL else f", {Action.STEP_UP}" if steps_up else ""
    return f"200 {card.outcome}, {card.category}{how}"


def table() -> str:
    """The test cards as Markdown, for the README."""
    lines = ["| card | forces | HTTP says | 39 (1987) | 39 (1993) |", "| --- | --- | --- | --- | --- |"]
    for card in CARDS:
        code = FIELD_39[card.answer]
        lines.append(f"| `{card.number}` | `{card.answer}` | {http_says(card)} | `{code.v1987}` | `{code.v1993}` |")
    return "\n".join(lines) + "\n"


def command(argv: list[str], settings: Settings) -> int:
    """`holdfast sandbox`: until Ctrl-C or SIGTERM; 0 after a clean stop, 1 when the broker was lost. `holdfast sandbox cards` prints the table."""
    parser = argparse.ArgumentParser(prog="holdfast sandbox", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("cards",), help="print the test cards, and what each forces")
    parser.add_argument("--data", type=Path, default=settings.data_dir / "sandbox", metavar="DIR", help="folder (default %(default)s)")
    parser.add_argument("--http", type=int, default=0, metavar="PORT", help="port of HTTP (default: a free one, the same at each start)")
    parser.add_argument("--iso8583", type=int, default=8583, metavar="PORT", help="port of ISO 8583 (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="when it is ready, print how to ask it as one JSON object")
    asked = parser.parse_args(argv)
    if asked.what == "cards":
        print(table(), end="")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        return _run(its_settings(settings, asked.data).changed(http_port=asked.http, iso8583_port=asked.iso8583), asked.json)
    return 0


def its_settings(settings: Settings, folder: Path) -> Settings:
    """The settings of a sandbox in this folder, which is its own from then on. SettingsError where something else lies in it."""
    mark = folder / SANDBOX
    if not mark.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(f"--data: {folder} holds something that is no sandbox: give it a folder of its own")
    made(folder)
    write_whole(mark, b"made by holdfast sandbox: test cards decide here\n")
    own = of_its_own(settings, folder).changed(sandbox="on", broker_kind="embedded", stand_in_policy="default")
    return with_kept_secrets(own)


def _run(settings: Settings, as_json: bool) -> int:
    if not is_owned(settings.data_dir):  # where it is, that is what the start refuses
        refuse_taken_ports(settings, http="--http", iso8583="--iso8583")
    steps = Steps(Console(stderr=True))
    with steps.step("a first model, trained on simulated history"):
        ensure_champion(settings, steps.say)
    with contextlib.ExitStack() as ending:
        with steps.step("starting broker, Redis and apps"):
            stack = ending.enter_context(running(settings, broker_name="embedded", apps=APPS, say=steps.say))
        own = stack.settings
        said = Said(own.http_url, f"{own.iso8583_host}:{own.iso8583_port}", own.api_key, str(own.data_dir))
        print(msgspec.json.encode(said).decode() if as_json else _for_people(said), flush=True)
        while not stack.failed:
            time.sleep(LOOK_S)
    return 1


def _for_people(said: Said) -> str:
    return (
        f"HTTP {said.http}, ISO 8583 {said.iso8583}, API key {said.api_key}, data in {said.data}\n"
        "`holdfast sandbox cards` lists the test cards; Ctrl-C ends it"
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
