"""`holdfast check --features`: every vector of the log computed again from the topics' history, and compared with what was served, bit for bit.

It needs no Redis and stops nobody: a system may decide while its topics are read. A vector whose past the topics do not tell (any more, or
yet) is counted with its reason and is not compared. All is held in memory: about three kilobytes a decision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from features.catalogue import CATALOGUE, Catalogue
from features.columns import TransactionColumns, columns_of
from features.profile import account_knowledge, seen_of
from features.recorded import WHY, Array, Ends, Recorded, Why, heads_in, recomputed, taught
from features.tally import HEADER_BYTES, SOURCES, is_declined
from schemas.account import AccountState, ProfileValue, RememberedEvent
from schemas.avro import decode
from schemas.decision import Decision
from schemas.errors import InvalidRecord
from schemas.label import Label
from schemas.record import Record
from schemas.topics import ACCOUNTS, DECISIONS, LABELS, PROFILES, REMEMBERED_EVENTS, Topic
from streams.bus import Message, end_offsets, read_topic
from streams.recent import is_ahead
from streams.settings import Settings

R = TypeVar("R", bound=Record)
BATCH = 10_000
"""Decisions that become columns together."""
Cell = tuple[str, str, str, int]
"""A profile's kind, its entity's token, a column, and since when it is known."""


@dataclass(frozen=True)
class Difference:
    """One number of one vector that came out otherwise."""

    transaction_id: str
    feature: str
    served: float
    recomputed: float


@dataclass(frozen=True)
class Parity:
    """What the comparison found. `different` counts vectors; `differences` are the first numbers that differ; `features` all, by name."""

    compared: int
    equal: int
    different: int
    not_comparable: dict[str, int]
    features: dict[str, int]
    differences: tuple[Difference, ...]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Whether no vector that can be compared differs."""
        return self.different == 0

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{count:>10,}  {what}" for what, count in sorted(self.counts.items())]
        lines += [f"{self.compared:>10,}  vectors compared", f"{self.equal:>10,}  equal, bit for bit", f"{self.different:>10,}  different"]
        lines += [f"{count:>10,}  not comparable: {why}" for why, count in self.not_comparable.items()]
        lines += [f"{count:>10,}  times different: {name}" for name, count in self.features.items()]
        lines += [f"{d.transaction_id}: {d.feature}: served {d.served!r}, recomputed {d.recomputed!r}" for d in self.differences]
        verdict = "every vector that can be compared is what the topics say" if self.agrees else "vectors do NOT follow from the topics"
        return [*lines, verdict]

    def figures(self) -> dict[str, object]:
        """For programs."""
        first = [
            {"transaction_id": d.transaction_id, "feature": d.feature, "served": repr(d.served), "recomputed": repr(d.recomputed)}
            for d in self.differences
        ]
        return {
            "agrees": self.agrees,
            "compared": self.compared,
            "equal": self.equal,
            "different": self.different,
            "not_comparable": self.not_comparable,
            "different_by_feature": self.features,
            "differences": first,
            "counts": self.counts,
        }


class _History:
    """What the topics say, gathered into columns."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.ids: list[str] = []
        self.served: list[Array] = []
        self.seen: list[bytes] = []
        self.tokens: list[tuple[str | None, ...]] = []
        self.parts: list[Recorded] = []
        self.why: list[Array] = []
        """Of each decision, what is known at once of why it cannot be compared (`Why`)."""
        self.counts: Counter[str] = Counter()
        self._once: set[str] = set()

    def decisions(self, batch: list[tuple[Message, Decision]]) -> None:
        """Adds decisions, each the first time that it is in the log."""
        new = []
        for message, decision in batch:
            if decision.decision_id not in self._once:
                self._once.add(decision.decision_id)
                new.append((message, decision))
        if not new:
            return
        catalogue, n = self.catalogue, len(new)
        width, heads = 8 * len(catalogue.names), HEADER_BYTES * len(catalogue.tallies)
        foreign = np.array([not catalogue.has(d) or len(d.tally_positions) != heads for _, d in new])
        self.why.append(np.where(foreign, Why.CATALOGUE, [Why.UNREAD if d.unread else Why.COMPARABLE for _, d in new]))
        self.ids += [d.transaction_id for _, d in new]
        self.seen += [d.profile_positions for _, d in new]
        self.tokens += [tuple(getattr(d.transaction, name) for name in catalogue.profile_fields) for _, d in new]
        self.served.append(np.frombuffer(b"".join(bytes(width) if bad else d.vector for (_, d), bad in zip(new, foreign, strict=True)), np.float64))
        told = [bytes(heads) if bad else d.tally_positions for (_, d), bad in zip(new, foreign, strict=True)]
        self.parts.append(
            Recorded(
                columns_of([d.transaction for _, d in new]),
                self._places([d.positions for _, d in new]),
                self._places([d.declined_positions for _, d in new]),
                heads_in(told, len(catalogue.tallies)),
                np.array([m.partition for m, _ in new], np.int64),
                np.array([m.offset for m, _ in new], np.int64),
                np.array([is_declined(d) for _, d in new], np.bool_),
            )
        )
        self.counts[DECISIONS.name] += n

    def events(self, batch: list[tuple[Message, RememberedEvent]]) -> None:
        """Adds account events where they were remembered, each place once."""
        new = []
        for _, remembered in batch:
            place = f"{remembered.remembered_id} {remembered.positions}"
            if place not in self._once:
                self._once.add(place)
                new.append(remembered)
        if not new:
            return
        n, nowhere = len(new), np.full(len(new), -1, np.int64)
        self.parts.append(
            Recorded(
                columns_of([e.event for e in new]),
                self._places([e.positions for e in new]),
                self._places([()] * n),
                np.zeros((n, len(self.catalogue.tallies), SOURCES), np.int64),
                nowhere,
                nowhere,
                np.zeros(n, np.bool_),
            )
        )
        self.counts[REMEMBERED_EVENTS.name] += n

    def _places(self, positions: list[tuple[int, ...]]) -> Array:
        """int64[n, logs]; a record that knew fewer logs has rows in those that it knew."""
        width = len(self.catalogue.logs)
        return np.array([(*places, *(-1,) * width)[:width] for places in positions], np.int64).reshape(len(positions), width)

    def cells(self) -> Iterator[tuple[int, Cell]]:
        """The number of each decision and the profile values that it saw."""
        for number, (tokens, seen) in enumerate(zip(self.tokens, self.seen, strict=True)):
            token_of = dict(zip(self.catalogue.profiles, tokens, strict=True))
            for kind, column, since_ms in seen_of(self.catalogue, seen):
                yield number, (kind, token_of[kind] or "", column, since_ms)


def joined(parts: list[Recorded], known: dict[str, Array]) -> Recorded:
    """All parts as one; `known` are the profile values of those that ask for a vector, who come first."""
    columns = [part.columns for part in parts]
    n = sum(each.n for each in columns)

    def every(name: str) -> dict[str, Array]:
        return {key: np.concatenate([getattr(each, name)[key] for each in columns]) for key in getattr(columns[0], name)}

    whole = {name: np.concatenate((values, np.full(n - len(values), np.nan))) for name, values in known.items()}
    one = TransactionColumns(every("facts"), every("tokens"), every("measures"), whole, np.concatenate([each.asks for each in columns]))
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ("positions", "declined", "heads", "sources", "offsets", "refused")]
    return Recorded(one, *arrays)


class Topics(NamedTuple):
    """Where a history is read: all records of a topic, in batches; and by partition the first offset that is there and the next one. Labels that
    are ahead of time teach nobody."""

    read: Callable[[Topic], Iterable[list[Message]]]
    ends: Callable[[Topic], Mapping[int, tuple[int, int]]]
    is_ahead: Callable[[Label, int], bool] = lambda label, logged_at_ms: False


def _records(topics: Topics, topic: Topic, kind: type[R], counts: Counter[str]) -> Iterator[list[tuple[Message, R]]]:
    """What the topic has now, in batches; what cannot be read is counted."""
    for batch in topics.read(topic):
        read = []
        for message in batch:
            try:
                read.append((message, decode(kind, message.value)))
            except InvalidRecord:
                counts[f"unreadable {topic.name}"] += 1
        for at in range(0, len(read), BATCH):
            yield read[at : at + BATCH]


def _values(topics: Topics, wanted: set[Cell], counts: Counter[str]) -> dict[Cell, float]:
    """The values of these cells, as far as the topics still have them; NaN where they say two different ones."""
    values: dict[Cell, float] = {}

    def said(cell: Cell, value: float) -> None:
        if cell in wanted:
            values[cell] = value if values.get(cell, value) == value else np.nan

    for states in _records(topics, ACCOUNTS, AccountState, counts):
        for _, state in states:
            for column, value in account_knowledge(state):
                said(("account", state.account_id, column, state.as_of_ms), value)
    for known in _records(topics, PROFILES, ProfileValue, counts):
        for _, each in known:
            said((each.kind, each.token, each.column, each.known_at_ms), each.value)
    return values


def _known(history: _History, topics: Topics, why: Array) -> dict[str, Array]:
    """By profile and column the value that each decision saw. `why` notes those whose value is gone."""
    cells = list(history.cells())
    values = _values(topics, {cell for _, cell in cells}, history.counts)
    known = {f"{p.kind}.{column}": np.full(len(history.ids), np.nan) for p in history.catalogue.profile_layouts for column in p.columns}
    for number, cell in cells:
        value = values.get(cell, np.nan)
        known[f"{cell[0]}.{cell[2]}"][number] = value
        if value != value and why[number] == Why.COMPARABLE:
            why[number] = Why.PROFILE
    return known


def _ends(topics: Topics, topic: Topic) -> Ends:
    """The first and the next offset of each of its partitions."""
    said = topics.ends(topic)
    ends = [said.get(partition, (0, 0)) for partition in range(topic.partitions)]
    return Ends(np.array([low for low, _ in ends], np.int64), np.array([high for _, high in ends], np.int64))


def check_features(settings: Settings) -> Parity:
    """Compares what the brokers have. LogUnavailable if they do not answer."""
    return features_compared(Topics(partial(read_topic, settings), partial(end_offsets, settings), partial(is_ahead, settings=settings)))


def features_compared(topics: Topics, catalogue: Catalogue = CATALOGUE, most: int = 20) -> Parity:
    """Reads the topics and compares; the first `most` numbers that differ are named.

    Decisions are read before what they rest on, so that all of that is there; what one rests on and was told later is not compared.
    """
    history = _History(catalogue)
    told = _ends(topics, DECISIONS)
    for decisions in _records(topics, DECISIONS, Decision, history.counts):
        history.decisions(decisions)
    learned = _ends(topics, LABELS)
    read = [each for batch in _records(topics, LABELS, Label, history.counts) for each in batch]
    labels = [(m.partition, m.offset, label) for m, label in read if not topics.is_ahead(label, m.timestamp_ms)]
    for events in _records(topics, REMEMBERED_EVENTS, RememberedEvent, history.counts):
        history.events(events)
    history.counts[LABELS.name] = len(read)
    if not history.ids:
        return Parity(0, 0, 0, {}, {}, (), dict(history.counts))
    why = np.zeros(sum(part.columns.n for part in history.parts), np.int8)
    why[: len(history.ids)] = np.concatenate(history.why)
    recorded = joined(history.parts, _known(history, topics, why))
    ends = Ends(np.concatenate((told.lows, learned.lows)), np.concatenate((told.highs, learned.highs)))
    vectors = recomputed(catalogue, recorded, taught(labels), ends, why)
    return _compared(history, vectors, why[: len(history.ids)], most)


def _compared(history: _History, vectors: Array, why: Array, most: int) -> Parity:
    served, names = np.concatenate(history.served).reshape(vectors.shape), history.catalogue.names
    comparable = why == Why.COMPARABLE
    unlike = (served.view(np.int64) != vectors.view(np.int64)) & comparable[:, None]
    different = int(unlike.any(axis=1).sum())
    rows, columns = np.nonzero(unlike)
    first = zip(rows[:most].tolist(), columns[:most].tolist(), strict=True)
    return Parity(
        compared=int(comparable.sum()),
        equal=int(comparable.sum()) - different,
        different=different,
        not_comparable={text: int((why == reason).sum()) for reason, text in WHY.items() if (why == reason).any()},
        features={names[column]: int(count) for column, count in enumerate(unlike.sum(axis=0)) if count},
        differences=tuple(Difference(history.ids[r], names[c], float(served[r, c]), float(vectors[r, c])) for r, c in first),
        counts=dict(history.counts),
    )
