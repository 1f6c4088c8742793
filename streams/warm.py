"""`python -m streams.warm`: compiles what serving runs, and keeps it on disk, for processes that start later."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from features.catalogue import CATALOGUE
from features.online import warm


@contextmanager
def warming() -> Iterator[None]:
    """Compiles it in a process beside what is done meanwhile, and ends with both: on two cores apps then start as soon as there is a model."""
    beside = subprocess.Popen([sys.executable, "-P", "-m", "streams.warm"], stdin=subprocess.DEVNULL)
    try:
        yield
    except BaseException:
        beside.terminate()
        raise
    finally:
        beside.wait()


if __name__ == "__main__":
    warm(CATALOGUE)
