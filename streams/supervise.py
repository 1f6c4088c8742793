"""`holdfast up` and `holdfast ps`: a whole system kept running on this machine, and what each of its parts is doing."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from models.registry import Registry
from schemas.errors import HoldfastError, LogUnavailable, SettingsError
from streams.authorize.keys import is_valid
from streams.clock import clock_ms
from streams.folder import State, is_owned, kept_secret, keys_of, running_settings, state_of
from streams.lag import Lag, lags
from streams.parts import Seen
from streams.ready import write_whole
from streams.settings import Settings
from streams.stack import APPS, AppCommand, Stack, run_app, running

LOOK_S = 1.0
PROGRESS_EVERY_S = 5.0


class Progress(msgspec.Struct, frozen=True):
    """An app's committed offsets, summed, and when they last grew (0: not since the system was started)."""

    committed: int
    at_ms: int


class Line(msgspec.Struct, frozen=True):
    """One line of `holdfast ps`. `lag` counts records; None where an app follows no topic, or Kafka does not answer."""

    part: str
    state: str
    pid: int
    uptime_s: int
    restarts: int
    memory_mb: int
    lag: int | None
    progress_s: int | None
    ports: Mapping[str, int]
    log: str


def up(argv: list[str], settings: Settings, app_command: AppCommand = run_app) -> int:
    """Runs a system until Ctrl-C, SIGTERM or SIGHUP, and then stops it cleanly. Returns 0, or 1 when a part was lost for good."""
    parser = argparse.ArgumentParser(prog="holdfast up", description="Start broker, Redis and every app, and keep them running.")
    parser.add_argument("--kafka", choices=("real", "embedded"), default="real", help="Apache Kafka, or librdkafka's mock cluster in memory")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1, help="how many Kafka brokers")
    parser.add_argument("--data", type=Path, default=settings.data_dir, metavar="DIR", help="folder for all data (default %(default)s)")
    parser.add_argument("--apps", default=",".join(APPS), metavar="A,B", help="which apps (default %(default)s)")
    asked = parser.parse_args(argv)
    apps = tuple(filter(None, asked.apps.split(",")))
    if unknown := set(apps) - set(APPS):
        raise SettingsError(f"--apps: no app {', '.join(sorted(unknown))}; there are {', '.join(APPS)}")
    if asked.kafka == "embedded" and asked.brokers != 1:
        raise SettingsError("--brokers: the embedded broker is one")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT too: a shell starts its background jobs with it ignored
        signal.signal(number, _interrupt)
    status = 0
    settings = settings.changed(data_dir=asked.data)
    system = running(settings, broker_name=asked.kafka, brokers=asked.brokers, apps=apps, app_command=app_command, say=_say, ready_s=None)
    with contextlib.suppress(KeyboardInterrupt), system as stack:
        _say_no_champion(stack.settings)
        with contextlib.suppress(KeyboardInterrupt):
            status = _watch(stack)
        _say("stopping (once more Ctrl-C kills)")
    _say("stopped")
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # where nobody reads it any more, the system goes on
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _watch(stack: Stack) -> int:
    """Says when all parts are ready, notes the apps' progress, and returns 1 when a part is lost for good."""
    said = False
    progress: dict[str, Progress] = {}
    next_look = 0.0
    with lags(stack.settings, stack.apps) as behind:
        while not stack.failed:
            if not said and all(seen.state == "ready" for seen in stack.parts):
                said = True
                _say(f"all {len(stack.parts)} parts are ready: {_where(stack)}")
                _say_key(stack)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + PROGRESS_EVERY_S
                with contextlib.suppress(LogUnavailable, OSError):  # a full disk ends no system
                    progress = grown(progress, behind.look(), clock_ms())
                    write_whole(_progress_file(stack.settings), msgspec.json.encode(progress))
            time.sleep(LOOK_S)
    return 1


def _where(stack: Stack) -> str:
    settings = stack.settings
    http = f"{settings.http_url}, " if "authorize" in stack.apps else ""
    return f"{http}Kafka {settings.kafka_bootstrap}, data in {settings.data_dir}"


def _say_no_champion(settings: Settings) -> None:
    """Says so where no model was promoted. What is wrong with a registry is said by the apps that cannot use it."""
    with contextlib.suppress(HoldfastError):
        if Registry(settings.registry_dir, keys_of(settings)).champion_id() is None:
            _say(f"no model was promoted in {settings.registry_dir}: authorize and score wait until one is (README: a first model)")


def _say_key(stack: Stack) -> None:
    """Says where the system's own key is, while it is valid: a log is no place for the key itself."""
    path = kept_secret(stack.settings.data_dir, "api_key")
    if "authorize" in stack.apps and path.exists() and is_valid(stack.settings.keys_dir, stack.settings.api_key):
        _say(f'its API key: curl -H "Authorization: Bearer $(cat {path})"; `holdfast keys` makes others')


def grown(before: Mapping[str, Progress], now: Mapping[str, Lag], now_ms: int) -> dict[str, Progress]:
    """The progress of each app after another look: dated `now_ms` where the committed offsets grew since the look before."""
    after = {}
    for app, lag in now.items():
        was = before.get(app, Progress(lag.committed, 0))
        after[app] = Progress(lag.committed, now_ms if lag.committed > was.committed else was.at_ms)
    return after


def _progress_file(settings: Settings) -> Path:
    return settings.data_dir / "progress.json"


def ps(argv: list[str], settings: Settings) -> int:
    """Prints a line for each part. Returns 0 when all are ready, 1 when one is not, 3 when no system runs in the folder."""
    parser = argparse.ArgumentParser(prog="holdfast ps", description="Each part's state, lag and last progress.")
    parser.add_argument("--data", type=Path, default=settings.data_dir, metavar="DIR", help="folder of the system (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    asked = parser.parse_args(argv)
    settings = settings.changed(data_dir=asked.data)
    state = state_of(settings.data_dir)
    alive = state is not None and is_owned(settings.data_dir)
    lines = _lines(settings, state, clock_ms()) if state is not None and alive else []
    if asked.json:
        print(msgspec.json.encode({"running": alive, "data": str(settings.data_dir), "parts": lines}).decode())
    elif alive:
        _show(lines)
    else:
        print(f"no system runs in {settings.data_dir}")
    if not alive:
        return 3
    started = {line.part for line in lines}
    yet = [app for app in (state.apps if state is not None else ()) if app not in started]
    if yet and not asked.json:
        print(f"yet to be started: {', '.join(yet)}")
    return 0 if not yet and all(line.state == "ready" for line in lines) else 1


def _lines(settings: Settings, state: State, now_ms: int) -> list[Line]:
    apps = [seen.name for seen in state.parts if seen.name in APPS]
    found: dict[str, Lag] = {}
    progress: dict[str, Progress] = {}
    with contextlib.suppress(HoldfastError), lags(running_settings(settings) or settings, apps) as behind:
        found = behind.look()
    with contextlib.suppress(OSError, msgspec.DecodeError):
        progress = msgspec.json.decode(_progress_file(settings).read_bytes(), type=dict[str, Progress])
    return [_line(seen, found.get(seen.name), progress.get(seen.name), now_ms) for seen in state.parts]


def _line(seen: Seen, lag: Lag | None, progress: Progress | None, now_ms: int) -> Line:
    lives = seen.state in ("ready", "starting")
    memory_mb = 0
    with contextlib.suppress(psutil.Error):
        memory_mb = psutil.Process(seen.pid).memory_info().rss >> 20 if lives else 0
    return Line(
        part=seen.name,
        state=seen.state,
        pid=seen.pid,
        uptime_s=(now_ms - seen.started_at_ms) // 1000 if lives else 0,
        restarts=seen.restarts,
        memory_mb=memory_mb,
        lag=lag.behind if lag else None,
        progress_s=(now_ms - progress.at_ms) // 1000 if progress and progress.at_ms else None,
        ports=seen.ports,
        log=seen.log,
    )


def _show(lines: list[Line]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("part", "state", "pid", "up", "restarts", "MB", "lag", "last progress", "ports"):
        table.add_column(name, justify="right" if name in ("pid", "up", "restarts", "MB", "lag") else "left", no_wrap=True)
    for line in lines:
        lag = "" if line.lag is None else str(line.lag)
        progress = "" if line.progress_s is None else f"{_span(line.progress_s)} ago"
        ports = " ".join(f"{name} {port}" for name, port in line.ports.items())
        counts = (_span(line.uptime_s), str(line.restarts), str(line.memory_mb))
        table.add_row(line.part, line.state, str(line.pid), *counts, lag, progress, ports)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def _span(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    minutes, _ = divmod(seconds, 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
