"""What the tests of the stack share: a keeper for a block, and waiting for a thing to come true."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from streams.parts import Keeper, Part, Say


@contextlib.contextmanager
def keeper_of(*parts: Part, say: Say = print) -> Iterator[Keeper]:
    """A keeper of these parts, which ends with the block."""
    keeper = Keeper(say, lambda seen: None)
    try:
        for part in parts:
            keeper.add(part)
        yield keeper
    finally:
        keeper.close()


def comes_true(ask: Callable[[], object], within_s: float = 10.0) -> bool:
    """Whether `ask` becomes true in time."""
    deadline = time.monotonic() + within_s
    while not ask():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
