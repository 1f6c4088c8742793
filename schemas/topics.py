"""The topics, as one table: name, key, record, partitions, retention, compaction, who writes, who reads."""

from __future__ import annotations

from typing import NamedTuple

from schemas.account import AccountEvent, AccountState, ProfileValue, RememberedEvent
from schemas.controls import Controls
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision
from schemas.governance import Control
from schemas.hold import Clearing, HoldEvent
from schemas.label import Label
from schemas.ledger import LedgerTransfer
from schemas.opinion import SecondOpinions
from schemas.record import Record
from schemas.sar import SarCandidate
from schemas.transaction import Transaction

DAY_MS = 86_400_000
FOREVER = -1


class Topic(NamedTuple):
    """One row of the table. `retention_ms` -1 keeps for ever; `compacted` keeps the newest of each key. `log_time`: records bear
    the time at which the broker took them, and not what their producer says."""

    name: str
    record: type[Record]
    key: str
    partitions: int
    retention_ms: int
    compacted: bool
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    log_time: bool = False


TRANSACTIONS = Topic("transactions", Transaction, "account_id", 4, 7 * DAY_MS, False, ("hosts", "replay"), ("score",))
ACCOUNTS = Topic("accounts", AccountState, "account_id", 4, FOREVER, True, ("bank",), ("hold",))
ACCOUNT_CONTROLS = Topic("account_controls", Controls, "controls_id", 4, FOREVER, True, ("authorize", "bank"), ("hold",))
ACCOUNT_EVENTS = Topic("account_events", AccountEvent, "account_id", 4, 90 * DAY_MS, False, ("bank",), ("score",))
REMEMBERED_EVENTS = Topic("remembered_events", RememberedEvent, "account_id", 4, FOREVER, False, ("score",), ("rebuild", "check"))
PROFILES = Topic("profiles", ProfileValue, "value_id", 4, FOREVER, True, ("cluster",), ("rebuild", "check"))
CLEARINGS = Topic("clearings", Clearing, "account_id", 4, 90 * DAY_MS, False, ("authorize", "network"), ("hold",))
LABELS = Topic(
    "labels", Label, "account_id", 4, FOREVER, False, ("bank", "replay", "label"), ("tally", "archive", "watch", "feedback"), log_time=True
)
DECISIONS = Topic(
    "decisions", Decision, "account_id", 4, FOREVER, False, ("authorize", "score"), ("hold", "ledger", "sar", "tally", "archive", "watch", "feedback")
)
HOLDS = Topic("holds", HoldEvent, "account_id", 4, FOREVER, False, ("hold",), ("ledger",))
LEDGER = Topic("ledger", LedgerTransfer, "account_id", 4, FOREVER, False, ("ledger",), ("bank",))
SAR_CANDIDATES = Topic("sar_candidates", SarCandidate, "account_id", 4, 1826 * DAY_MS, False, ("sar",), ("SAR desk",))
DEAD_LETTERS = Topic("dead_letters", DeadLetter, "dead_letter_id", 4, 365 * DAY_MS, False, ("every app",), ("operators",))
SECOND_OPINIONS = Topic("second_opinions", SecondOpinions, "account_id", 4, 90 * DAY_MS, False, ("every app that decides",), ("archive",))
CONTROL = Topic("control", Control, "place", 1, FOREVER, True, ("risk team", "every app that decides"), ("every app that asks who decides",))

TOPICS: tuple[Topic, ...] = (
    TRANSACTIONS,
    ACCOUNTS,
    ACCOUNT_CONTROLS,
    ACCOUNT_EVENTS,
    REMEMBERED_EVENTS,
    PROFILES,
    CLEARINGS,
    LABELS,
    DECISIONS,
    HOLDS,
    LEDGER,
    SAR_CANDIDATES,
    DEAD_LETTERS,
    SECOND_OPINIONS,
    CONTROL,
)
"""Every topic. Those keyed by account share one partition count, so an account's records meet in one partition number.

Four partitions, because the embedded broker (librdkafka's mock cluster) has always four. A tally's head has a place for each partition of
decisions and labels: a system that needs more partitions changes the numbers here, before its first start.
"""
