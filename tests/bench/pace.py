"""Poisson arrivals, each begun at its moment by a timer of the system: an event loop's own count milliseconds, early or late by half of one."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence

_LIBC = ctypes.CDLL(None, use_errno=True)
FAST, SLACK_S = 2_000, 0.001
"""Where more come in a second, those that come within so long of each other are begun together: what the generator takes is not left for what it
measures, and there the wait behind others is longer by far."""
_MONOTONIC, _ABSOLUTE = 1, 1
"""`perf_counter`'s clock, and moments on it instead of spans: see timerfd_create(2)."""


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """When each comes, seconds from the first moment on: exponential gaps, `rate` a second on average."""
    chance, at = random.Random(seed), 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        yield at


async def paced(moments: Sequence[float], begin: Callable[[int, float], None]) -> list[float]:
    """Calls `begin` with number and moment (`perf_counter`) of each when it has come; how late each was, seconds."""
    if not moments:
        return []
    slack_s = SLACK_S if len(moments) > FAST * (moments[-1] - moments[0]) else 0.0
    loop, over = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    late: list[float] = []
    timer = _LIBC.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "no timer")

    def due() -> None:
        while len(late) < len(moments):
            moment = moments[len(late)]
            behind = (now := time.perf_counter()) - moment
            if behind < 0:
                moment = max(moment, now + slack_s)
                _LIBC.timerfd_settime(timer, _ABSOLUTE, struct.pack("@4q", 0, 0, int(moment), int(moment % 1 * 1e9) + 1), None)
                return
            late.append(behind)
            begin(len(late) - 1, moment)
        if not over.done():
            over.set_result(None)

    def rung() -> None:
        os.read(timer, 8)
        due()

    loop.add_reader(timer, rung)
    try:
        due()
        await over
    finally:
        loop.remove_reader(timer)
        os.close(timer)
    return late
