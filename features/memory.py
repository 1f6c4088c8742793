"""What a memory promises, and one that keeps the promise inside the process: for tests, and for whoever has no Redis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from features.catalogue import Catalogue
from features.engine import Past, own_bytes, packed, place_in, to_recall
from features.fact import HASH, declined_facts, event_facts, facts_in, facts_of
from features.layout import LogLayout, ProfileLayout
from features.log import is_due, log_rows, rebuilt_log, row_count, tidied
from features.profile import Write, profile_write, profile_writes
from features.tally import TallyLayout, Update, updated
from schemas.account import AccountEvent, AccountState
from schemas.errors import MemoryUnavailable
from schemas.transaction import Transaction

T = TypeVar("T")
Decided = tuple[Transaction, tuple[int, ...], tuple[int, ...]]
"""A decided transaction, its positions and the positions of its decline rows (empty: none)."""
Happened = tuple[AccountEvent, tuple[int, ...]]
"""An account event and its positions."""


Updates = Mapping[tuple[int, str], Sequence[Update]]
"""By number of the tally and the entity's token: rows, and where in the log they are from."""


class Aside:
    """What else is asked in the round trip of a recall: writes (commands of one key each) and keys to read. The replies are put here.

    A store in this process has answered already and asks nothing: what it puts in place of a command or a key is the reply.
    """

    __slots__ = ("found", "reads", "writes", "wrote")

    def __init__(self, writes: tuple[Any, ...] = (), reads: tuple[Any, ...] = ()) -> None:
        self.writes, self.reads = writes, reads
        self.wrote: Sequence[Any] = ()
        self.found: Sequence[Any] = ()


class Memory(Protocol):
    """Remembers and recalls. What is remembered is remembered at the call; the answer comes when it is awaited."""

    def recall_all(self, txns: Sequence[Transaction], asides: Sequence[Aside] = ()) -> Awaitable[list[Past]]:
        """Appends each transaction to its logs, reads them, its profiles and tallies. What cannot be read is missing, never an error."""

    def recall(self, txn: Transaction, aside: Aside | None = None) -> Awaitable[Past]:
        """`recall_all` of one."""

    def decline_all(self, txns: Sequence[Transaction], asides: Sequence[Aside] = ()) -> Awaitable[list[tuple[int, ...] | MemoryUnavailable]]:
        """Remembers that they were declined or blocked; the places of those rows in each log (-1: no such entity). Twice is once."""

    def decline(self, txn: Transaction, aside: Aside | None = None) -> Awaitable[tuple[int, ...]]:
        """`decline_all` of one."""

    def remember_event(self, event: AccountEvent, aside: Aside | None = None) -> Awaitable[tuple[int, ...]]:
        """Appends an account event to the account's log; its position in each log, in the order of the catalogue's logs."""

    def know(self, kind: str, token: str, column: str, value: float, known_at_ms: int) -> Awaitable[None]:
        """Makes one column of a profile known since `known_at_ms`."""

    def know_account(self, state: AccountState) -> Awaitable[None]:
        """Makes an account's state known as of its `as_of_ms`."""

    def take(self, updates: Updates) -> Awaitable[None]:
        """Gives rows to tallies, each once: a tally ignores what it has taken."""

    def put_tallies(self, contents: Mapping[tuple[int, str], bytes]) -> Awaitable[None]:
        """Writes these tallies, replacing them. For a memory that forgot."""

    def tally(self, kind: str, token: str) -> Awaitable[bytes]:
        """The bytes of an entity's tally, empty if it has none."""

    def restore(self, decided: Iterable[Decided], happened: Iterable[Happened] = ()) -> Awaitable[int]:
        """Writes the logs of these decided transactions and account events, replacing them; how many logs. For a memory that forgot."""

    def log(self, kind: str, token: str) -> Awaitable[bytes]:
        """The bytes of an entity's log, empty if it has none."""

    def tidy(self, kind: str, token: str) -> Awaitable[None]:
        """Brings a log to rest: each row once, old chunks in the header."""

    def settle(self) -> Awaitable[None]:
        """Returns when all work in the background is done."""

    def close(self) -> Awaitable[None]:
        """Ends work in the background."""


class Ready(Generic[T]):
    """An answer that is there already."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __await__(self) -> Generator[None, None, T]:
        yield from ()
        return self.value


def occurs_twice(log: bytes, row: bytes) -> bool:
    """Whether a log that ends in (or near) this row also has it earlier; a cheap test that may, hardly ever, say yes wrongly."""
    return log.find(row[:8]) != log.rfind(row[:8])


Keys = Callable[[Transaction], list[str | None]]
"""The key of each memory that a transaction has; None where it has no such entity."""


def _layouts(catalogue: Catalogue) -> list[LogLayout | ProfileLayout | TallyLayout]:
    return [*catalogue.log_layouts, *catalogue.profile_layouts, *catalogue.tally_layouts]


def tokens_of(catalogue: Catalogue) -> Callable[[Transaction], tuple[str | None, ...]]:
    """The token of the entity of each memory of a transaction: of its logs, then its profiles, then its tallies, each in the catalogue's order."""
    fields = (*catalogue.log_fields, *catalogue.profile_fields, *catalogue.tally_fields)
    given = attrgetter(*fields, "account_id", "account_id")  # with two more it says a tuple, however few fields there are
    return lambda txn: given(txn)[:-2]


def prefixes_of(catalogue: Catalogue) -> list[str]:
    """What the keys of each memory begin with, in the order of `tokens_of`; the token follows."""
    return [layout.key("") for layout in _layouts(catalogue)]


def keys_of(catalogue: Catalogue) -> Keys:
    """What names the memories of a transaction, in the order of `tokens_of`."""
    tokens, prefixes = tokens_of(catalogue), prefixes_of(catalogue)
    return lambda txn: [None if token is None else prefix + token for prefix, token in zip(prefixes, tokens(txn), strict=True)]


def event_rows(catalogue: Catalogue, event: AccountEvent) -> tuple[bytes | None, ...]:
    """The row that an account event appends to each log: to the account's, None elsewhere."""
    facts = event_facts(event)
    layouts = zip(catalogue.logs, catalogue.log_layouts, strict=True)
    return tuple(layout.pack(facts) if name == "account" else None for name, layout in layouts)


def gathered(catalogue: Catalogue, decided: Iterable[Decided], happened: Iterable[Happened] = ()) -> dict[tuple[int, str], list[tuple[int, bytes]]]:
    """The rows of decided transactions and account events by log number and token, with their positions."""
    logs: dict[tuple[int, str], list[tuple[int, bytes]]] = defaultdict(list)
    for txn, positions, declined_positions in decided:
        for row in log_rows(catalogue, txn, positions, declined_positions):
            logs[row.log_number, row.token].append((row.position, row.row))
    for event, positions in happened:
        for number, (packed_row, place) in enumerate(zip(event_rows(catalogue, event), positions, strict=False)):
            if packed_row is not None and place >= 0:
                logs[number, event.account_id].append((place, packed_row))
    return logs


def _answer(aside: Aside | None) -> None:
    if aside is not None:
        aside.wrote, aside.found = aside.writes, aside.reads


class DictMemory:
    """A memory in this process: the same bytes under the same keys, in a dict."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.contents: dict[str, bytes] = {}
        self._keys = keys_of(catalogue)

    def _append(self, number: int, token: str, row: bytes) -> bytes:
        """Appends a row and returns the log; tidies what it leaves behind when it is time. b"" is no row: it only reads."""
        key = self.catalogue.log_layouts[number].key(token)
        if not row:
            return self.contents.get(key, b"")
        log = self.contents[key] = self.contents.get(key, b"") + row
        if is_due(self.catalogue, row_count(log, len(row), len(log))) or occurs_twice(log, row):
            self.contents[key] = tidied(self.catalogue, number, log)
        return log

    def _appended(self, tokens: Iterable[str | None], rows: Iterable[bytes | None]) -> list[bytes | None]:
        pairs = enumerate(zip(tokens, rows, strict=True))
        return [None if row is None or token is None else self._append(n, token, row) for n, (token, row) in pairs]

    def _tokens(self, txn: Transaction) -> list[str | None]:
        return [getattr(txn, field) for field in self.catalogue.log_fields]

    def _positions(self, logs: Iterable[bytes | None], hash_: int) -> tuple[int, ...]:
        pairs = zip(self.catalogue.log_layouts, logs, strict=True)
        return tuple(-1 if log is None else place_in(log, layout.row_bytes, hash_)[0] for layout, log in pairs)

    def recall_all(self, txns: Sequence[Transaction], asides: Sequence[Aside] = ()) -> Awaitable[list[Past]]:
        """Appends each transaction to its logs and reads them, its profiles and its tallies."""
        for aside in asides:
            _answer(aside)
        return Ready([self._recalled(txn) for txn in txns])

    def recall(self, txn: Transaction, aside: Aside | None = None) -> Awaitable[Past]:
        """`recall_all` of one."""
        _answer(aside)
        return Ready(self._recalled(txn))

    def _recalled(self, txn: Transaction) -> Past:
        own = own_bytes(txn)
        logs = self._appended(self._tokens(txn), to_recall(self.catalogue, txn, facts_in(own)))
        keys, profiles_end = self._keys(txn)[len(logs) :], len(self.catalogue.profiles)
        profiles = tuple(None if key is None else self.contents.get(key) for key in keys[:profiles_end])
        tallies = tuple(None if key is None else self.contents.get(key, b"") for key in keys[profiles_end:])
        return Past.of(own, (*logs, *profiles, *tallies))

    def take(self, updates: Updates) -> Awaitable[None]:
        """Gives rows to tallies."""
        for (number, token), new in updates.items():
            key = self.catalogue.tally_layouts[number].key(token)
            self.contents[key] = updated(self.catalogue.tally_plan, self.catalogue.tally_layouts, number, self.contents.get(key, b""), new)
        return Ready(None)

    def decline_all(self, txns: Sequence[Transaction], asides: Sequence[Aside] = ()) -> Awaitable[list[tuple[int, ...] | MemoryUnavailable]]:
        """`decline` of each."""
        return Ready([self.decline(txn, aside).value for txn, aside in zip(txns, asides or (None,) * len(txns), strict=True)])

    def decline(self, txn: Transaction, aside: Aside | None = None) -> Ready[tuple[int, ...]]:
        """Appends the decline rows; their positions."""
        _answer(aside)
        facts = declined_facts(facts_of(txn))
        logs = self._appended(self._tokens(txn), packed(self.catalogue, txn, facts))
        return Ready(self._positions(logs, facts[HASH]))

    def remember_event(self, event: AccountEvent, aside: Aside | None = None) -> Awaitable[tuple[int, ...]]:
        """Appends an account event to the account's log; its positions."""
        _answer(aside)
        rows = event_rows(self.catalogue, event)
        logs = self._appended([event.account_id] * len(rows), rows)
        return Ready(self._positions(logs, event_facts(event)[HASH]))

    def _write(self, write: Write | None) -> None:
        if write is not None:
            _, key, offset, cell = write
            old = self.contents.get(key, b"").ljust(offset, b"\0")
            self.contents[key] = old[:offset] + cell + old[offset + len(cell) :]

    def know(self, kind: str, token: str, column: str, value: float, known_at_ms: int) -> Awaitable[None]:
        """Makes one column of a profile known since `known_at_ms`."""
        self._write(profile_write(self.catalogue, kind, token, column, value, known_at_ms))
        return Ready(None)

    def know_account(self, state: AccountState) -> Awaitable[None]:
        """Makes an account's state known as of its `as_of_ms`."""
        for write in profile_writes(self.catalogue, state):
            self._write(write)
        return Ready(None)

    def put_tallies(self, contents: Mapping[tuple[int, str], bytes]) -> Awaitable[None]:
        """Writes these tallies, replacing them."""
        self.contents |= {self.catalogue.tally_layouts[number].key(token): content for (number, token), content in contents.items()}
        return Ready(None)

    def tally(self, kind: str, token: str) -> Awaitable[bytes]:
        """The bytes of an entity's tally."""
        return Ready(self.contents.get(self.catalogue.tally_layouts[self.catalogue.tallies.index(kind)].key(token), b""))

    def restore(self, decided: Iterable[Decided], happened: Iterable[Happened] = ()) -> Awaitable[int]:
        """Writes the logs of these decided transactions and account events, replacing them."""
        logs = gathered(self.catalogue, decided, happened)
        for (number, token), rows in logs.items():
            self.contents[self.catalogue.log_layouts[number].key(token)] = rebuilt_log(self.catalogue, number, rows)
        return Ready(len(logs))

    def log(self, kind: str, token: str) -> Awaitable[bytes]:
        """The bytes of an entity's log."""
        return Ready(self.contents.get(self.catalogue.log_layouts[self.catalogue.logs.index(kind)].key(token), b""))

    def tidy(self, kind: str, token: str) -> Awaitable[None]:
        """Brings a log to rest."""
        number = self.catalogue.logs.index(kind)
        key = self.catalogue.log_layouts[number].key(token)
        if key in self.contents:
            self.contents[key] = tidied(self.catalogue, number, self.contents[key])
        return Ready(None)

    def settle(self) -> Awaitable[None]:
        """Nothing runs in the background."""
        return Ready(None)

    def close(self) -> Awaitable[None]:
        """Nothing to end."""
        return Ready(None)
