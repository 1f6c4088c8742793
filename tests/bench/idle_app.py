"""The limit of an app: the harness following `transactions` with a handler that only awaits. Prints records/s once it has seen them all."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.record import Record
from schemas.topics import TRANSACTIONS
from schemas.transaction import Transaction
from streams.bus import Bus
from streams.follow import Follower, Source, run_follower
from streams.settings import Settings, settings_from


@dataclass
class Count:
    """How many were seen, and when the first and the last were."""

    wanted: int
    seen: int = 0
    began: float = 0.0


async def on_transaction(count: Count, txn: Transaction, source: Source) -> Sequence[Record]:
    """Decoded, validated, awaited once, and that is all."""
    count.began = count.began or time.perf_counter()
    count.seen += 1
    if count.seen == count.wanted:
        print(count.wanted / (time.perf_counter() - count.began), flush=True)
        os.kill(os.getpid(), 15)
    await asyncio.sleep(0)
    return ()


async def make_world(settings: Settings, bus: Bus) -> Count:
    """Nothing but a counter."""
    return Count(int(sys.argv[1]))


if __name__ == "__main__":
    app = Follower(name="idle", reads={TRANSACTIONS: on_transaction})
    sys.exit(run_follower(app, make_world, settings_from(os.environ)))
