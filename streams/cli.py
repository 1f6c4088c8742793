"""The composition root: the table of commands; `streams/wired.py` wires the worlds of those that decide."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Mapping
from typing import NamedTuple

from schemas.errors import HoldfastError
from streams.named import named
from streams.settings import Settings, settings_from


class Command(NamedTuple):
    """One row: what runs it (`module:function`, imported when asked for) and what it is for."""

    target: str
    help: str
    live: bool = False
    """Whether it is about the system that runs in the data folder, if one does, and takes that one's addresses."""


COMMANDS: dict[str, Command] = {
    "demo": Command("streams.demo:demo", "the whole system for a minute on embedded parts, and whether its books agree"),
    "sandbox": Command("streams.sandbox:command", "both doors on embedded parts, where test cards force every outcome; `sandbox cards`: which"),
    "up": Command("streams.supervise:up", "start broker, Redis and all apps, and keep them running"),
    "ps": Command("streams.supervise:ps", "each part's state, lag and last progress"),
    "run": Command("streams.run:run", "one app, against the Kafka and Redis of the settings"),
    "keys": Command("streams.keys:command", "who may ask over HTTP: create, list, rotate, revoke API keys", live=True),
    "openapi": Command("streams.authorize.openapi:command", "what can be asked over HTTP, as OpenAPI 3.1 or as a page"),
    "check": Command("streams.check:check", "whether the books agree", live=True),
    "replay": Command("streams.replay:replay", "send a file through the live system: one decision row for each input row"),
    "simulate": Command("streams.simulate:simulate", "a labelled history of honest customers and of each fraud kind"),
    "backfill": Command("streams.backfill:backfill", "the features of a history, as they would have been served", live=True),
    "train": Command("streams.train:train", "train the ensemble on a backfill or on what was served"),
    "evaluate": Command("streams.evaluate:evaluate", "how good members and ensemble are, on folds that roll through a history"),
    "register": Command("streams.lab:register", "check a trained artefact and put it into the registry"),
    "promote": Command("streams.lab:promote", "make an approved model the one that decides", live=True),
    "models": Command("streams.lab:models", "every model: list, validate, approve, promote, roll back, retire", live=True),
    "policy": Command("streams.policy:command", "rules and thresholds without a deploy: show, check, test, register, promote", live=True),
    "label": Command("streams.label:command", "tell what turned out to be true of a payment, or of a file of them", live=True),
    "rebuild": Command("streams.rebuild:rebuild", "put back into Redis what the log says", live=True),
    "cluster": Command("streams.cluster:command", "find communities of accounts and make them known to serving", live=True),
    "dead-letters": Command("streams.dead_letters:dead_letters", "list what could not be applied; send mended records back", live=True),
    "features": Command("streams.features:command", "the catalogue of features, and what their memory takes", live=True),
    "schemas": Command("streams.schemas:command", "topics and wire schemas: show, check, freeze, publish"),
    "metrics": Command("streams.metrics:command", "the table of metrics"),
    "settings": Command("streams.settings:command", "the table of settings"),
    "bench": Command("streams.bench:bench", "measure, each figure with its limit beside it"),
}


def usage() -> str:
    """What `holdfast` says when asked nothing it knows."""
    lines = [f"  {name:<13} {row.help}" for name, row in COMMANDS.items()]
    return "\n".join(["usage: holdfast <command> [options]", "", *lines, "", "`holdfast <command> --help` says more."])


def settings_of(command: Command, environ: Mapping[str, str]) -> Settings:
    """The settings that the environment says; for a live command those of the system in the data folder, unless a broker is named."""
    settings = settings_from(environ)
    if not command.live or "HOLDFAST_KAFKA_BOOTSTRAP" in environ:
        return settings
    from streams.folder import running_settings

    return running_settings(settings) or settings


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit status. What Holdfast refuses, and a file that cannot be, is one line and status 2; no reader is 141."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"holdfast: no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    if wrong := next((text for text in rest if not is_utf_8(text)), None):
        print(f"holdfast {name}: {wrong!a} is no text in UTF-8", file=sys.stderr)
        return 2
    try:
        settings = settings_of(COMMANDS[name], os.environ)
        status = int(named(COMMANDS[name].target)(rest, settings))
        print(end="", flush=True)
        return status
    except HoldfastError as error:
        print(f"holdfast {name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _unread():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
            return 141
        if error.filename is None:
            raise
        print(f"holdfast {name}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def is_utf_8(argument: str) -> bool:
    """Whether the bytes of an argument were UTF-8: Python reads others as lone surrogates, and only who writes them out would find them."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def _unread() -> bool:
    """Whether nobody reads any more what this command prints."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
