"""Runs a command that must not outlive its parent, not even by kill -9: `python tether.py <parent's pid> <command...>`.

Linux sends the signal that PR_SET_PDEATHSIG names when the *thread* that started the process ends, and keeps the wish across exec. So this
file asks for SIGKILL and then becomes the command; the process id stays the same. It stands alone (no imports of ours, run with -I -S), so
that it costs 20 ms, and no Python code runs between fork and exec in a parent that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Ties itself to the parent `argv[0]` (where the system is Linux), then becomes the command `argv[1:]`."""
    parent, command = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the wish was heard
        raise SystemExit("the process that started this one is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
