"""The least app there is, and a system made of it: `python -m tests.stack.trivial_app run NAME`, `... up ARGUMENTS`."""

from __future__ import annotations

import os
import signal
import sys

from streams.ready import tell_ready
from streams.settings import settings_from


def trivial(name: str) -> tuple[str, ...]:
    """How the app is started."""
    return (sys.executable, "-P", "-m", "tests.stack.trivial_app", "run", name)


def main(argv: list[str]) -> int:
    """Says that it is ready and waits to be ended."""
    word, *rest = argv
    settings = settings_from(os.environ)
    if word == "up":
        from streams.supervise import up  # which an app has no need of, and which takes a second

        return up(rest, settings, app_command=trivial)
    if "broken" in rest:
        print("this app is broken", flush=True)
        return 7
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    tell_ready(settings, rest[0])
    signal.sigwait({signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
