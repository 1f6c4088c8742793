"""The history that training and evaluation read: the vectors that were served (the archive's Parquet), or those of a backfill.

Honesty in time: a label counts from the moment at which it was *learned*. `training_set` shows the rows that were old enough at a moment for most
labels to have come in, and of them what was known then.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from features.catalogue import CATALOGUE, Catalogue
from models.history import Examples, Floats, History, Ints, Verdicts
from schemas.errors import ArtefactError, SettingsError
from schemas.topics import DECISIONS, LABELS
from streams.backfill import FEATURES_FILE
from streams.clock import clock_ms
from streams.columnar import ATTRIBUTE, as_number
from streams.mapping import readable

DAY_MS = 86_400_000
ATTRIBUTES = "txn_attributes"
"""The archive's column of what a transaction says beside the record."""
WHOLE = "vector"
"""The archive's column of whole vectors as bytes, of decisions that were made on another catalogue than that of who archived them."""
USUAL_DELAY_MS = 14 * DAY_MS
"""After what time most of an archive's labels have come in, where nobody says otherwise; a backfill's mapping says it."""
NUMBERS = {"at_ms": pa.int64(), "amount_minor": pa.int64(), "fraud": pa.bool_(), "learned_at_ms": pa.int64()}
TEXTS = ("card_token", "account_id", "fraud_kind")
"""What is read of a backfill beside its features."""
BATCH_ROWS = 65_536
HELD_BYTES = 1 << 30
"""A matrix of more lies in a file that has no name, so that the system may write to disk what it has no memory for."""


class Given(NamedTuple):
    """A history, and after what time its labels are mature."""

    history: History
    label_delay_ms: int


def training_set(
    folder: Path, until_ms: int | None = None, label_delay_ms: int | None = None, catalogue: Catalogue = CATALOGUE, attributes: Sequence[str] = ()
) -> Examples:
    """The rows in a folder that were at least `label_delay_ms` old at `until_ms`, with their labels as known then.

    By default `until_ms` is the history's last moment, and the delay is that of the folder; `attributes` as in `given_in`. SettingsError for a
    delay below nothing: it would show payments that were made after `until_ms`.
    """
    if label_delay_ms is not None and label_delay_ms < 0:
        raise SettingsError("a label's delay is no time before its payment")
    history, usual_ms = given_in(folder, catalogue, attributes)
    return history.training_set(history.last_ms if until_ms is None else until_ms, usual_ms if label_delay_ms is None else label_delay_ms)


def given_in(folder: Path, catalogue: Catalogue = CATALOGUE, attributes: Sequence[str] = ()) -> Given:
    """The history in what `holdfast backfill` wrote (any dataset, by any catalogue), or in an archive (decisions made on this catalogue).

    A backfill has a column for each attribute of its mapping. An archive's transactions hold whatever their senders said beside the record: of
    those `attributes` (`attribute.age`) become columns, for groups to be declared by; NaN where a transaction has none.
    """
    with readable(folder):
        if (folder / FEATURES_FILE).exists():
            return _backfilled(folder / FEATURES_FILE)
        if (folder / DECISIONS.name).is_dir():
            return Given(_archived(folder, catalogue, attributes), USUAL_DELAY_MS)
    raise SettingsError(f"{folder}: holds neither {FEATURES_FILE} (`holdfast backfill` writes it) nor an archive of decisions")


def _backfilled(path: Path) -> Given:
    """The rows of a backfill of which the file said whether they were fraud."""
    data = ds.dataset(path, format="parquet")
    about = {key.decode(): value.decode() for key, value in (data.schema.metadata or {}).items()}
    if "catalogue_id" not in about:
        raise ArtefactError(f"{path} names no catalogue: backfill again")
    names = tuple(name for name in data.schema.names if "." in name)
    _of_types(path, data.schema, names)
    beside = data.to_table(columns=[*NUMBERS, *TEXTS, *({"currency"} & set(data.schema.names))])  # which earlier releases did not write
    said = pc.is_valid(beside["fraud"])
    if not pc.any(said).as_py():
        raise SettingsError(f"{path}: of no row is it said whether it was fraud; the mapping's [label] names the column that says it")
    for name in NUMBERS:
        if empty := beside[name].filter(said).null_count:
            rows_of = f"{empty:,} row{'s' if empty > 1 else ''}"
            raise ArtefactError(f"{path}: {name}: is empty in {rows_of} of which it is said whether they were fraud: backfill again")
    rows = _in_time(beside["at_ms"], said)
    vectors = _matrix(data, names, len(beside), rows)
    beside = beside.take(pa.array(rows))
    verdicts = Verdicts.in_order(np.arange(len(rows)), _flags(beside["fraud"]), _objects(beside["fraud_kind"]), _ints(beside["learned_at_ms"]))
    cards = _cards(beside["card_token"], beside["account_id"])
    currency_names, currencies = _currencies(beside["currency"]) if "currency" in beside.column_names else ((), None)
    amounts = _ints(beside["amount_minor"])
    history = History(about["catalogue_id"], names, vectors, _ints(beside["at_ms"]), cards, amounts, verdicts, currency_names, currencies)
    return Given(history, int(about["label_delay_ms"]))


def _of_types(path: Path, schema: pa.Schema, features: Sequence[str]) -> None:
    """ArtefactError for a column that a backfill of this release writes and that is not here, or holds something else."""
    if missing := next((name for name in (*NUMBERS, *TEXTS) if name not in schema.names), None):
        raise ArtefactError(f"{path}: {missing}: is missing: backfill again")
    for name, wanted in (NUMBERS | dict.fromkeys(features, pa.float64())).items():
        if schema.field(name).type != wanted:
            raise ArtefactError(f"{path}: {name}: is of type {schema.field(name).type}, not {wanted}: backfill again")


def _archived(folder: Path, catalogue: Catalogue, attributes: Sequence[str]) -> History:
    """The vectors that were served on this catalogue, these attributes beside them, and what was learned of them."""
    data = decisions_in(folder / DECISIONS.name, (), catalogue.names)
    named = ["transaction_id", "at_ms", "catalogue_id", "account_id", "txn_card_token", "txn_amount_minor", "txn_billing_amount_minor"]
    named += ["txn_currency", "txn_billing_currency"]
    own = pc.field("catalogue_id") == catalogue.catalogue_id
    beside = data.to_table(columns={name: pc.field(name) for name in named} | {WHOLE: pc.if_else(own, pc.field(WHOLE), None)})
    rows = _in_time(beside["at_ms"], pc.equal(beside["catalogue_id"], catalogue.catalogue_id))
    vectors, width = _matrix(data, catalogue.names, len(beside), rows, len(attributes)), len(catalogue.names)
    beside = beside.take(pa.array(rows))
    fill_whole(vectors[:, :width], beside[WHOLE], range(width), catalogue)
    if attributes:
        said = data.to_table(columns=[ATTRIBUTES])[ATTRIBUTES].take(pa.array(rows)).combine_chunks()
        for column, name in enumerate(attributes, width):
            vectors[:, column] = _attribute(said, name)
    amounts = pc.coalesce(beside["txn_billing_amount_minor"], beside["txn_amount_minor"])
    currency_names, currencies = _currencies(pc.coalesce(beside["txn_billing_currency"], beside["txn_currency"]))
    cards = _cards(beside["txn_card_token"], beside["account_id"])
    verdicts = archived_verdicts(folder, beside["transaction_id"])
    names = (*catalogue.names, *attributes)
    return History(catalogue.catalogue_id, names, vectors, _ints(beside["at_ms"]), cards, _ints(amounts), verdicts, currency_names, currencies)


def decisions_in(place: Path, texts: Sequence[str], numbers: Sequence[str]) -> ds.Dataset:
    """The archived decisions, with these columns whichever release wrote the first of their files; null where a file is older than the column.

    SettingsError where there is none.
    """
    data = ds.dataset(place, format="parquet", partitioning=None)
    if not data.files:
        raise SettingsError(f"{place}: no decision is archived yet")
    expected = [*(pa.field(name, pa.string()) for name in texts), *(pa.field(name, pa.float64()) for name in numbers), pa.field(WHOLE, pa.binary())]
    return data.replace_schema(pa.schema([*data.schema, *(column for column in expected if column.name not in data.schema.names)]))


def fill_whole(vectors: Floats, whole: pa.ChunkedArray, columns: Sequence[int], catalogue: Catalogue) -> None:
    """Fills the rows of which the archive has the vector's bytes: a release that did not know this catalogue's columns by name has put them there."""
    texts = whole.combine_chunks()
    for row in np.flatnonzero(_flags(texts.is_valid())):
        vector = np.frombuffer(texts[row].as_py(), "<f8")
        if len(vector) == len(catalogue.names):
            vectors[row] = vector[columns]


def _attribute(said: pa.ListArray, name: str) -> Floats:
    """float64[rows]: what each transaction says under this name, as the number that a backfill would make of it; of two it is the first."""
    parts = pc.list_flatten(said)
    found = np.flatnonzero(_flags(pc.equal(pc.struct_field(parts, "name"), name.removeprefix(ATTRIBUTE))))[::-1]
    texts = pc.struct_field(parts, "value").take(pa.array(found)).dictionary_encode()
    column, numbers = np.full(len(said), np.nan), np.array([as_number(text) for text in texts.dictionary.to_pylist()], np.float64)
    column[_ints(pc.list_parent_indices(said))[found]] = numbers[_ints(texts.indices)]
    return column


def archived_verdicts(archive: Path, transaction_ids: pa.ChunkedArray) -> Verdicts:
    """The labels of these transactions in an archive, by their row; of others there are none, and none that is dated ahead.

    Such a one would say that all labels of the newest payments had come in.
    """
    folder = archive / LABELS.name
    columns = ["transaction_id", "fraud", "fraud_kind", "learned_at_ms"]
    if not any(folder.glob("day=*/part-*.parquet")):
        return Verdicts(np.empty(0, np.int64), np.empty(0, np.bool_), np.empty(0, object), np.empty(0, np.int64))
    labels = ds.dataset(folder, format="parquet", partitioning=None).to_table(columns=columns, filter=pc.field("learned_at_ms") <= clock_ms())
    rows = pc.index_in(labels["transaction_id"], transaction_ids.combine_chunks())
    labels, rows = labels.filter(pc.is_valid(rows)), pc.drop_null(rows)
    return Verdicts.in_order(_ints(rows), _flags(labels["fraud"]), _objects(labels["fraud_kind"]), _ints(labels["learned_at_ms"]))


def _in_time(at_ms: pa.ChunkedArray, wanted: Any) -> Ints:
    """The numbers of the wanted rows, in order of time."""
    rows = np.flatnonzero(_flags(wanted))
    return rows[np.argsort(_ints(at_ms)[rows], kind="stable")]


def _matrix(data: ds.Dataset, names: Sequence[str], count: int, rows: Ints, more: int = 0) -> Floats:
    """float64[rows, names + more] in the order of `rows`, column by column, as trees are grown from it. A lot is read at a time.

    So many `more` columns stand behind the names, not yet filled.
    """
    place = np.full(count, -1)
    place[rows] = np.arange(len(rows))
    matrix = _room(len(rows), len(names) + more)
    first = 0
    for batch in data.to_batches(columns=list(names), batch_size=BATCH_ROWS):
        into = place[first : first + len(batch)]
        kept = into >= 0
        for number, name in enumerate(names):
            matrix[into[kept], number] = batch.column(name).to_numpy(zero_copy_only=False)[kept]
        first += len(batch)
    return matrix


def _room(rows: int, columns: int) -> Floats:
    """float64[rows, columns], column by column. SettingsError where the file finds no room: written to without any, it would end the process."""
    size = 8 * rows * columns
    if size <= HELD_BYTES:
        return np.empty((rows, columns), order="F")
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise SettingsError(f"TMPDIR ({tempfile.gettempdir()}): no room for {size:,} bytes of vectors: {error.strerror}") from None
        return np.memmap(file, np.float64, "w+", shape=(rows, columns), order="F").view(np.ndarray)


def _cards(cards: pa.ChunkedArray, accounts: pa.ChunkedArray) -> Ints:
    """A number for each card; for a payment without one, of its account; where one account has all payments, for each payment."""
    numbers = _ints(pc.coalesce(cards, accounts).combine_chunks().dictionary_encode().indices)
    return numbers if numbers.any() else np.arange(len(numbers))


def _currencies(column: pa.ChunkedArray) -> tuple[tuple[str, ...], Ints]:
    """Each once, in order, and by row the number of its own."""
    coded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    found = coded.dictionary.to_pylist()
    names = tuple(sorted(found))
    return names, np.array([names.index(name) for name in found], np.int64)[_ints(coded.indices)]


def _ints(column: Any) -> Ints:
    return np.ascontiguousarray(column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy(), np.int64)


def _flags(column: Any) -> npt.NDArray[np.bool_]:
    return np.array(column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy(), np.bool_)


def _objects(column: Any) -> npt.NDArray[np.object_]:
    return np.array(column.to_pylist(), dtype=object)
