"""Keeps processes running: starts each part, sees that it ends, starts it again with backoff, stops all in order. One thread does it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from schemas.errors import Unavailable
from streams.clock import clock_ms

TETHER = Path(__file__).with_name("tether.py")
LOOK_S = 0.05
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 30.0
STABLE_S = 30.0
"""A part that ran this long has earned a fresh backoff."""
LOG_BYTES_MAX = 50_000_000
"""A longer log is set aside (as `.1`, one generation) when its part starts."""

Say = Callable[[str], None]


class Part(NamedTuple):
    """What to run. `is_ready(pid)` asks whether that life of it does its work; `before()` is called ahead of each start."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    log: Path
    is_ready: Callable[[int], bool]
    before: Callable[[], object] = lambda: None
    ports: Mapping[str, int] = {}
    stop_s: float = 15.0
    vital: bool = False
    """A vital part holds what no restart brings back: when it ends, the run is over."""


class Seen(msgspec.Struct, frozen=True):
    """What is known of a part now. `state`: starting, ready, ended (it will be started again), stopped (on purpose), failed (vital)."""

    name: str
    state: str
    pid: int
    started_at_ms: int
    restarts: int
    ports: Mapping[str, int]
    log: str


class Running:
    """One part's process through its lives. Started only by the keeper's thread (the tether hangs on it); ended by anyone."""

    def __init__(self, part: Part, say: Say) -> None:
        self.part = part
        self.restarts = 0
        self._say = say
        self._lock = threading.Lock()
        """Held where a process is started and where one stops being wanted, so that none is started after that."""
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = True
        self._ready = False
        self._failed = False
        self._started_at = 0.0
        self._started_at_ms = 0
        self._next_start = 0.0
        self._backoff_s = BACKOFF_FIRST_S

    @property
    def pid(self) -> int:
        """Of the present life, or of the last one; 0 before the first."""
        return self._process.pid if self._process else 0

    @property
    def state(self) -> str:
        """See `Seen.state`."""
        if self._failed:
            return "failed"
        if self._alive():
            return "ready" if self._ready else "starting"
        return "ended" if self._wanted else "stopped"

    @property
    def seen(self) -> Seen:
        """What is known of it now."""
        part = self.part
        return Seen(part.name, self.state, self.pid, self._started_at_ms, self.restarts, dict(part.ports), str(part.log))

    def is_ready(self) -> bool:
        """Whether the present life is alive and has said that it does its work."""
        return self._alive() and self.part.is_ready(self.pid)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Returns when it is ready. Unavailable, with the end of its log, when it is not in time or will never be."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if self._failed or time.monotonic() > deadline:
                raise Unavailable(f"{self.part.name} is not ready ({self.state}): {last_line(self.part.log)} (log: {self.part.log})")
            time.sleep(LOOK_S)

    def signal(self, number: int) -> None:
        """Sends a signal to the present life; nothing if there is none."""
        if self._process and self._alive():
            self._process.send_signal(number)

    def kill9(self) -> None:
        """Ends the present life at once, and returns when it is over. The keeper starts the next."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Asks it to end (SIGTERM), insists after `stop_s`; it stays stopped until `start`."""
        with self._lock:
            self._wanted = False
        if not self._process:
            return
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(self.part.stop_s)
        except subprocess.TimeoutExpired:
            self._say(f"{self.part.name} did not end within {self.part.stop_s:.0f} s of being asked; killed")
            self.kill9()
        self._started_at = 0.0  # its end is noted: who starts it now, before the keeper looks, starts nothing that ended by itself

    def start(self) -> None:
        """Wants it running (again); the keeper starts it within LOOK_S."""
        self._next_start = 0.0
        self._wanted = True

    def restart(self) -> None:
        """Stops it cleanly and wants it running again."""
        self.stop()
        self.start()

    def look(self, now: float) -> None:
        """The keeper's look: starts what should run and does not, notices what ended or became ready."""
        if self._process and self._process.poll() is not None and self._started_at:
            self._ended(now)
        if not self._alive():
            with self._lock:
                if self._wanted and not self._failed and now >= self._next_start:
                    self._begin(now)
        elif not self._ready and self.part.is_ready(self.pid):
            self._ready = True
            self._say(f"{self.part.name} is ready after {now - self._started_at:.1f} s")

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _begin(self, now: float) -> None:
        part = self.part
        part.before()
        part.log.parent.mkdir(parents=True, exist_ok=True)
        if part.log.exists() and part.log.stat().st_size > LOG_BYTES_MAX:
            part.log.replace(part.log.with_name(part.log.name + ".1"))
        self._ready = False
        with part.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *part.command],
                env=dict(part.environ), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._started_at, self._started_at_ms = now, clock_ms()

    def _ended(self, now: float) -> None:
        """Takes note of an end, once: expected, fatal, or to be followed by another start."""
        lived_s, self._started_at = now - self._started_at, 0.0
        if not self._wanted or self._process is None:
            return
        how = _ending(self._process.returncode)
        if self.part.vital:
            self._failed = True
            self._say(f"{self.part.name} {how}, and what it held is lost: the run is over. Last line: {last_line(self.part.log)}")
            return
        if lived_s >= STABLE_S:
            self._backoff_s = BACKOFF_FIRST_S
        self.restarts += 1
        self._next_start = now + self._backoff_s
        again = f"starting it again in {self._backoff_s:.1f} s"
        self._say(f"{self.part.name} {how} after {lived_s:.1f} s; {again}. Last line: {last_line(self.part.log)}")
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)


class Keeper:
    """The parts that run, in the order in which they were added, and the thread that keeps them running."""

    def __init__(self, say: Say, changed: Callable[[tuple[Seen, ...]], None]) -> None:
        self._say = say
        self._changed = changed
        self._running: dict[str, Running] = {}
        self._last: tuple[Seen, ...] = ()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._thread.start()

    def add(self, part: Part) -> Running:
        """Wants a part running from now on."""
        running = Running(part, self._say)
        self._running = {**self._running, part.name: running}
        return running

    def part(self, name: str) -> Running:
        """The part of that name; KeyError if there is none."""
        return self._running[name]

    @property
    def seen(self) -> tuple[Seen, ...]:
        """What is known of each part now."""
        return tuple(running.seen for running in self._running.values())

    @property
    def failed(self) -> bool:
        """Whether a vital part ended."""
        return any(running.state == "failed" for running in self._running.values())

    def stop(self, names: Sequence[str]) -> None:
        """Stops those parts at the same time, and returns when all have ended."""
        threads = [threading.Thread(target=self._running[name].stop) for name in names if name in self._running]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Ends the thread; whatever still runs ends with it (the tether)."""
        for running in self._running.values():
            running.stop()
        self._closing.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._closing.is_set():
            now = time.monotonic()
            for running in self._running.values():
                self._look(running, now)
            self._tell()
            self._closing.wait(LOOK_S)
        self._tell()

    def _look(self, running: Running, now: float) -> None:
        try:
            running.look(now)
        except OSError as error:  # no process to be had, disk full: say so, and look again; ending this thread would kill every part
            self._say(f"{running.part.name} cannot be started: {error}")
            self._closing.wait(1.0)

    def _tell(self) -> None:
        seen = self.seen
        if seen != self._last:
            self._last = seen
            with contextlib.suppress(OSError):
                self._changed(seen)


def last_line(log: Path) -> str:
    """The last line that is not empty, shortened; empty where there is no log."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""
    return ""


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
