"""`authorize` without metrics, log lines of decisions and traces, so that `holdfast bench authorize` can say what they cost."""

from __future__ import annotations

import sys
from typing import Any

from streams import journal, metrics
from streams.cli import main


def nothing(*_: Any) -> None:
    """What is done in place of counting and of saying."""


if __name__ == "__main__":
    metrics.observe = metrics.decided = journal.decided = nothing  # type: ignore[assignment]
    metrics.serve = lambda settings: nothing  # type: ignore[assignment]
    sys.exit(main(["run", "authorize"]))
