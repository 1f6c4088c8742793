"""A feature that is added as one row, while everything runs: it is served, in the decision's record, in the archive and in the training set."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from features.backfill import backfill
from features.catalogue import CATALOGUE, Catalogue
from features.columns import columns_of
from features.fact import CARD
from features.memory import DictMemory
from features.row import Feature, days, spread
from models.hold import UnknownAccount
from schemas.decision import Decision
from schemas.transaction import Transaction
from streams.archive import decisions_table
from streams.backtest import payments_in
from streams.training_set import training_set
from tests.world import NOON, a_transaction, a_world

NEW = Feature("behavioural", spread("amount_minor", of=CARD, window=days(3)), "uneven_amounts", "velocity", "Spread of its amounts of three days")
NAME = "behavioural.card_amount_spread_3d"


def decided(catalogue: Catalogue, payments: list[Transaction]) -> list[Decision]:
    """What a release with this catalogue decides of them, one after the other."""
    made = a_world(UnknownAccount.HOLD)
    made.world = dataclasses.replace(made.world, catalogue=catalogue, memory=DictMemory(catalogue))

    async def paid() -> None:
        for txn in payments:
            await made.decide(txn)

    asyncio.run(paid())
    return made.decisions


def test_a_row_added_at_run_time_is_served_recorded_archived_and_trained_on(tmp_path: Path) -> None:
    catalogue = CATALOGUE.extended([NEW])
    payments = [a_transaction(f"t{n}", at_ms=NOON + n * 60_000, amount_minor=100 + n * n) for n in range(8)]
    decisions = decided(catalogue, payments)
    expected = [np.nan, *(np.std([100 + n * n for n in range(m)]) for m in range(1, 8))]
    vectors = np.array([np.frombuffer(decision.vector, "<f8") for decision in decisions])
    assert {decision.catalogue_id for decision in decisions} == {catalogue.catalogue_id}
    np.testing.assert_allclose(vectors[:, -1], expected)
    assert backfill(catalogue, columns_of(payments))[:, -1].tobytes() == vectors[:, -1].tobytes(), "the same bits offline"

    shelf = tmp_path / "decisions"
    shelf.mkdir()
    pq.write_table(decisions_table(0, list(enumerate(decisions)), catalogue), shelf / "part.parquet")
    assert pq.read_table(shelf)[NAME].to_numpy().tobytes() == vectors[:, -1].tobytes()
    examples = training_set(tmp_path, NOON + 86_400_000, 0, catalogue)
    assert examples.vectors[:, catalogue.index[NAME]].tobytes() == vectors[:, -1].tobytes()


def test_an_archive_of_the_release_before_and_of_this_one_is_trained_on_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = CATALOGUE.extended([NEW])
    payments = [a_transaction(f"t{n}", at_ms=NOON + n * 60_000, amount_minor=100 + n * n) for n in range(8)]
    decisions = decided(catalogue, payments)
    vectors = np.array([np.frombuffer(decision.vector, "<f8") for decision in decisions])
    before = decided(CATALOGUE, [a_transaction("t-before", at_ms=NOON)])
    shelf = tmp_path / "decisions"
    shelf.mkdir()
    for file, rows, archivist in (("a", before, CATALOGUE), ("b", decisions[:4], CATALOGUE), ("c", decisions[4:], catalogue)):
        pq.write_table(decisions_table(0, list(enumerate(rows)), archivist), shelf / f"{file}.parquet")  # who archives is of either release
    assert training_set(tmp_path, NOON + 86_400_000, 0, catalogue).vectors.tobytes() == vectors.tobytes()
    assert len(training_set(tmp_path, NOON + 86_400_000, 0).vectors) == 1
    monkeypatch.setattr("streams.backtest.CATALOGUE", catalogue)
    replayed = payments_in(tmp_path, ["behavioural.txn_amount_minor", NAME])
    columns = [catalogue.index["behavioural.txn_amount_minor"], catalogue.index[NAME]]
    assert replayed.vectors.tobytes() == vectors[:, columns].tobytes()
