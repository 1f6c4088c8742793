"""A whole system on this machine: a broker, Redis and the apps, each a process of its own, started, kept running and stopped in order."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from schemas.errors import SettingsError
from streams import broker, folder, kafka, memory_server
from streams.authorize.keys import with_local
from streams.clerk import entering
from streams.clock import clock_ms
from streams.parts import Keeper, Part, Running, Say, Seen
from streams.ready import forget_ready, is_ready
from streams.settings import BENEATH_DATA, PREFIX, Settings

APPS = ("authorize", "score", "hold", "ledger", "sar", "tally", "archive", "watch", "feedback")
"""Every app; each name is also its consumer group and the argument of `holdfast run`."""

REDIS = "redis"
BROKER = "broker"
BrokerName = Literal["real", "embedded"]
AppCommand = Callable[[str], Sequence[str]]
ROOT = Path(__file__).resolve().parents[1]
BROKER_READY_S = 90.0
KAFKA_STOP_S = 30.0


def run_app(name: str) -> tuple[str, ...]:
    """How an app is started."""
    return (sys.executable, "-P", "-m", "streams.cli", "run", name)


def say_on_stderr(text: str) -> None:
    """One line with the time, for a person."""
    with contextlib.suppress(OSError):  # as the journal does where nobody reads it any more
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Stack:
    """What runs. `settings` reach it (addresses, secrets); `part(name)` is one process, to be watched, killed, stopped, started."""

    def __init__(self, settings: Settings, brokers: int, say: Say, wanted: Sequence[str]) -> None:
        self.settings = settings
        self.say = say
        self.apps: tuple[str, ...] = ()
        self.brokers: tuple[str, ...] = ()
        self._memory = folder.remembered(settings, brokers)
        self._started_at_ms = clock_ms()
        self._wanted = tuple(wanted)
        self._keeper = Keeper(say, self._changed)

    def part(self, name: str) -> Running:
        """The part of that name: an app, `redis`, `broker` (embedded) or `kafka-1` and so on. KeyError if there is none."""
        return self._keeper.part(name)

    @property
    def parts(self) -> tuple[Seen, ...]:
        """What is known of each part now."""
        return self._keeper.seen

    @property
    def failed(self) -> bool:
        """Whether a part ended whose loss no restart mends (the embedded broker)."""
        return self._keeper.failed

    def wait_ready(self, names: Sequence[str], timeout_s: float) -> None:
        """Returns when all of them are ready. Unavailable names the one that is not, with the end of its log."""
        deadline = time.monotonic() + timeout_s
        for name in names:
            self.part(name).wait_ready(max(0.0, deadline - time.monotonic()))

    def start_broker(self, brokers: int) -> None:
        """Starts the broker (or brokers) and waits for it; real ones get their topics."""
        if self.settings.broker_kind == "embedded":
            self._start_embedded()
        else:
            self._start_kafka(brokers)

    def start_redis(self) -> None:
        """Starts Redis in the data folder; does not wait. An embedded broker forgets, so an old Redis would know more than the log: it goes."""
        embedded = self.settings.broker_kind == "embedded"
        place, path = self.settings.data_dir / REDIS, folder.socket_path(self.settings.data_dir, "redis.sock")
        if embedded:
            shutil.rmtree(place, ignore_errors=True)
            self._set_archive_aside()
        place.mkdir(parents=True, exist_ok=True)
        executable = memory_server.embedded_executable() if embedded else memory_server.real_executable()
        self.settings = self.settings.changed(redis_url=f"unix://{path}", redis_username="", redis_password="")
        self._add(REDIS, memory_server.command(executable, place, path), lambda _: memory_server.answers(path))

    def start_apps(self, apps: Sequence[str], command: AppCommand) -> None:
        """Starts the apps, all at once; does not wait."""
        for app in apps:
            self._start_app(app, command(app))
            self.apps = (*self.apps, app)

    def start_another(self, app: str, number: int = 2, command: AppCommand = run_app) -> Settings:
        """One more process of an app, the `number`th, in the same group; does not wait. Its settings: a folder and ports of its own."""
        name = f"{app}-{number}"
        shared = {name: getattr(self.settings, name) for name in BENEATH_DATA}
        ports = {"http_port": self.port(f"{name} http"), "metrics_port": self.port(f"{name} metrics")}
        if self.settings.iso8583_port:
            ports["iso8583_port"] = self.port(f"{name} iso8583")
        own = self.settings.changed(data_dir=self.settings.data_dir / name, **shared, **ports)
        self._add(name, command(app), lambda pid: is_ready(own, app, pid), settings=own, before=lambda: forget_ready(own, app))
        self.apps = (*self.apps, name)
        return own

    def close(self) -> None:
        """Stops all: the apps, then Redis, then the brokers, each asked first and killed only when it does not end."""
        self._keeper.stop(self.apps)
        self._keeper.stop((REDIS,))
        self._keeper.stop(self.brokers)
        self._keeper.close()

    def remember(self) -> None:
        """Writes the ports and the kind of system into the folder, for the next start."""
        folder.keep(self.settings.data_dir, self._memory)

    def port(self, name: str) -> int:
        """A free port, the same at each start if it can be."""
        return folder.port_of(self._memory, name)

    def _set_archive_aside(self) -> None:
        """An embedded broker counts its offsets from 0 again: an archive of the run before would seem to have them already."""
        archive = self.settings.archive_dir
        if archive.exists():
            archive.rename(archive.with_name(f"{archive.name}-until-{time.strftime('%Y%m%dT%H%M%S')}"))

    def _start_embedded(self) -> None:
        served = broker.Served(self.settings.data_dir / "broker.json")
        command = (sys.executable, "-P", "-m", "streams.broker", str(served.path))
        self.brokers = (BROKER,)
        self._add(BROKER, command, served.is_ready, vital=True)
        self.wait_ready(self.brokers, BROKER_READY_S)
        self._reached_at(served.bootstrap(), copies=1)

    def _start_kafka(self, brokers: int) -> None:
        libs = kafka.fetched(self.settings, self.say)
        place = self.settings.data_dir / "kafka"
        nodes = [
            kafka.Node(number, place / str(number), self.port(f"kafka-{number}"), self.port(f"kafka-{number} controller"))
            for number in range(1, brokers + 1)
        ]
        self.remember()
        kafka.formatted(libs, nodes)
        self.brokers = tuple(f"kafka-{node.number}" for node in nodes)
        for node, name in zip(nodes, self.brokers, strict=True):
            self._add_node(name, kafka.command(libs, node, brokers), node)
        self.wait_ready(self.brokers, BROKER_READY_S)
        self._reached_at(",".join(f"127.0.0.1:{node.port}" for node in nodes), brokers)
        kafka.ensure_topics(self.settings, brokers)

    def _reached_at(self, bootstrap: str, copies: int) -> None:
        """Our own brokers ask nobody who he is, whatever those of the settings do."""
        own = {"kafka_bootstrap": bootstrap, "kafka_protocol": "PLAINTEXT", "topic_replication": copies, "min_insync": min(2, copies)}
        self.settings = self.settings.changed(**own)

    def _add_node(self, name: str, command: Sequence[str], node: kafka.Node) -> None:
        ports = {"kafka": node.port, "controller": node.controller_port}
        self._add(name, command, lambda _: kafka.answers(node), ports=ports, stop_s=KAFKA_STOP_S)

    def _start_app(self, app: str, command: Sequence[str]) -> None:
        metrics_port = self.port(f"{app} metrics")
        ports = {"metrics": metrics_port} | (self._doors() if app == "authorize" else {})
        settings = self.settings.changed(metrics_port=metrics_port)
        self._add(app, command, lambda pid: is_ready(settings, app, pid), settings=settings, before=lambda: forget_ready(settings, app), ports=ports)

    def _doors(self) -> dict[str, int]:
        """The ports on which payments arrive."""
        doors = {"http": self.settings.http_port, "iso8583": self.settings.iso8583_port}
        return {door: port for door, port in doors.items() if port}

    def _add(self, name: str, command: Sequence[str], ready: Callable[[int], bool], *, settings: Settings | None = None, **rest: object) -> None:
        log = self.settings.data_dir / "logs" / f"{name}.log"
        self._keeper.add(Part(name, command, _environ(settings), log, ready, **rest))  # type: ignore[arg-type] # the rest are Part's own fields

    def _changed(self, seen: tuple[Seen, ...]) -> None:
        folder.write_state(self.settings, self._started_at_ms, seen, self._wanted)


def _environ(settings: Settings | None) -> dict[str, str]:
    """The environment of a part: ours without our settings, and the settings that it is to have (an app's only)."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return inherited | (_checking_only(settings).as_environ() if settings else {})


def _checking_only(settings: Settings) -> Settings:
    """The settings of an app: it checks models and API keys, and has no key to sign with or to ask with."""
    settings = settings.changed(api_key="")
    return settings.changed(model_key="", model_public_key=folder.keys_of(settings).public.hex()) if settings.model_key else settings


@contextlib.contextmanager
def running(
    settings: Settings,
    *,
    broker_name: BrokerName = "embedded",
    brokers: int = 1,
    apps: Sequence[str] = APPS,
    app_command: AppCommand = run_app,
    say: Say = say_on_stderr,
    ready_s: float | None = 180.0,
) -> Iterator[Stack]:
    """A system in `settings.data_dir`, ready when the block begins and stopped when it ends; data stays on disk for the next one.

    `settings.http_port` 0 chooses a free port. Addresses and missing secrets are filled in: use `stack.settings`.
    SettingsError: the folder is in use or holds another kind of system, or the HTTP port is taken. Unavailable: a program is missing, or a
    part did not become ready (`ready_s` is the apps' time together; None does not wait for them).
    """
    kind: Literal["kafka", "embedded"] = "kafka" if broker_name == "real" else "embedded"
    folder.is_sandbox(settings.changed(broker_kind=kind))
    with folder.owned(settings.data_dir), contextlib.ExitStack() as ending:
        settings = folder.with_kept_secrets(settings.changed(broker_kind=kind))
        stack = Stack(_own_archive(settings, say) if kind == "embedded" else settings, brokers, say, apps)
        ending.callback(stack.close)
        _choose_ports(stack)
        with_local(settings.keys_dir, settings.api_key)
        stack.start_redis()
        stack.start_broker(brokers)
        stack.start_apps(apps, app_command)
        if apps and stack.settings.model_key:
            ending.enter_context(entering(stack.settings, say))
        stack.remember()
        if ready_s is not None:
            stack.wait_ready((REDIS, *apps), ready_s)
        yield stack


def _own_archive(settings: Settings, say: Say) -> Settings:
    """An archive outside the data folder is not for the log of an embedded broker, which ends with it and counts from 0 again."""
    if settings.data_dir in Path(os.path.normpath(settings.archive_dir)).parents:
        return settings
    own = settings.changed(archive_dir=Path("archive"))
    say(f"the archive in {settings.archive_dir} is left alone: what an embedded broker tells goes to {own.archive_dir}")
    return own


def _choose_ports(stack: Stack) -> None:
    refuse_taken_ports(stack.settings)
    if stack.settings.http_port == 0:
        stack.settings = stack.settings.changed(http_port=stack.port("http"))


def refuse_taken_ports(settings: Settings, *, http: str = f"{PREFIX}HTTP_PORT", iso8583: str = f"{PREFIX}ISO8583_PORT") -> None:
    """SettingsError, by the name of what gave it, where another program listens at a door's port; 0 is any port."""
    if settings.iso8583_port and not folder.is_free(settings.iso8583_port, settings.iso8583_host):
        raise SettingsError(f"{iso8583}: port {settings.iso8583_port} of {settings.iso8583_host} is taken; give another one, or 0")
    if settings.http_port and not folder.is_free(settings.http_port, settings.http_host):
        raise SettingsError(f"{http}: port {settings.http_port} of {settings.http_host} is taken; give another one, or 0 for any")
