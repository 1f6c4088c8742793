"""The journal never says a card number; the metrics have no label without bounds."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from urllib.request import urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.identity import derived_id
from schemas.transaction import is_card_number
from streams import journal, metrics
from streams.settings import Settings

CARDS = ("4111111111111111", "5500000000000004", "378282246310005", "6011000990139424", "3530111333300000", "6304000000000000", "630400000000")


@pytest.mark.parametrize("card", CARDS)
def test_a_card_number_is_masked_wherever_it_stands(card: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = structlog_state()
    try:
        journal.start(Settings(data_dir=tmp_path), "test")
        grouped = " ".join(card[i : i + 4] for i in range(0, len(card), 4))
        log = journal.logger(transaction_id="txn-1")
        log.info(f"paid with {card}", number=int(card), deep={"list": [grouped, {card: card}]}, raw=card.encode())
        logging.getLogger("someone.else").error("card %s", card)
        try:
            raise ValueError(card)
        except ValueError:
            log.critical("failed", exc_info=True)
    finally:
        restore(before)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for line in lines:
        said = json.loads(line)
        assert said["app"] == "test"
        assert card not in line
        assert grouped not in line
        assert journal.MASK in line


def test_times_and_derived_ids_and_short_numbers_are_let_be() -> None:
    for text in ("1767268800000", derived_id("dec", "t1"), "123456789012", "amount 1000000"):
        assert journal.without_card_numbers(text) == text


@given(st.text(alphabet="0123456789", min_size=11, max_size=18))
def test_every_number_that_passes_the_check_is_masked(digits: str) -> None:
    card = next(digits + last for last in "0123456789" if is_card_number(digits + last))
    if not journal._EPOCH_MS.fullmatch(card):
        assert card not in journal.without_card_numbers(f"x{card}y")


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("text", ["01 {}", "2026-11-29 {}", "12-{}", "{} 12", "{}-1 2 3", "1 2 3 {} 4", "5 {} {}"])
def test_a_card_number_is_masked_whatever_number_stands_beside_it(text: str, card: str) -> None:
    for groups in (card, " ".join(card[i : i + 4] for i in range(0, len(card), 4)), "-".join(card)):
        said = journal.without_card_numbers(text.format(*(groups,) * text.count("{}")))
        assert groups not in said
        assert said.count(journal.MASK) >= text.count("{}")


@given(st.lists(st.text("0123456789", min_size=1, max_size=6), min_size=1, max_size=30), st.sampled_from(" -"))
def test_no_card_number_is_left_among_groups_of_digits(groups: list[str], between: str) -> None:
    left = journal.without_card_numbers(between.join(groups)).replace(journal.MASK, "x").split("x")
    for text in left:
        parts = text.strip(between).split(between)
        runs = ["".join(parts[first:last]) for first in range(len(parts)) for last in range(first + 1, len(parts) + 1)]
        assert not any(is_card_number(run) for run in runs if not journal._EPOCH_MS.fullmatch(run))


LABELS = {"outcome", "stop", "kind", "code", "topic", "part", "work", "why", "feature", "family", "quantile", "of"}
"""Each has a closed list of values: none is made of what a host sends."""


def test_metrics_are_served_and_their_labels_are_bounded(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    end = metrics.serve(Settings(data_dir=tmp_path, metrics_port=port))
    try:
        metrics.decided("approve", ("model_missing",), 0.002)
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    finally:
        end()
    assert 'holdfast_decisions_total{outcome="approve"}' in text
    assert all(row.name in text and row.meaning and row.name in metrics.table() for row in metrics.TABLE)
    assert {label for row in metrics.TABLE for label in row.labels} <= LABELS


def structlog_state() -> tuple[object, ...]:
    """What `journal.start` changes."""
    return logging.root.handlers[:], logging.root.level, logging.raiseExceptions


def restore(state: tuple[object, ...]) -> None:
    """Puts it back."""
    import structlog

    structlog.reset_defaults()
    logging.root.handlers[:], logging.root.level, logging.raiseExceptions = state  # type: ignore[assignment]
