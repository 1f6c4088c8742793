"""What is under way, shown to whoever waits: a spinner with the time on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

TICK_S = 5.0


class Steps:
    """Steps of a start, one after the other. `say` tells a detail of the step that is under way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._detail = ""

    @property
    def elapsed_s(self) -> float:
        """Since the first moment."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """A detail of the step that is under way."""
        self._detail = text
        if not self._console.is_terminal:
            self.line(f"  {text}")

    def line(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f"[{self.elapsed_s:6.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Shows that this is under way for as long as the block runs, and how long it took."""
        began, self._detail = time.monotonic(), ""
        with self._spinning(text) if self._console.is_terminal else self._ticking(text):
            yield
        self.line(f"{text}: {time.monotonic() - began:.1f} s")

    @contextlib.contextmanager
    def _spinning(self, text: str) -> Iterator[None]:
        progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=self._console, transient=True)
        task = progress.add_task(text, total=None)
        with progress, self._repeating(0.2, lambda: progress.update(task, description=f"{text}  {self._detail}")):
            yield

    @contextlib.contextmanager
    def _ticking(self, text: str) -> Iterator[None]:
        began = time.monotonic()
        self.line(f"{text} ...")
        with self._repeating(TICK_S, lambda: self.line(f"  still: {text} ({time.monotonic() - began:.0f} s)")):
            yield

    @contextlib.contextmanager
    def _repeating(self, every_s: float, work: Callable[[], object]) -> Iterator[None]:
        over = threading.Event()

        def repeat() -> None:
            while not over.wait(every_s):
                work()

        thread = threading.Thread(target=repeat, name="steps", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
