"""What a release may be loaded with: refusals, and which release the one before it was."""

from __future__ import annotations

import pytest

from features.catalogue import CATALOGUE
from features.fact import CARD
from features.row import Feature, count, days, distinct
from schemas.errors import SettingsError
from streams.load import without
from streams.loaded import beginnings

NEW = Feature("behavioural", distinct("mcc", of=CARD, window=days(7)), "many_trades_7d", "velocity", "Kinds of merchant within a week")
SLOW = Feature("velocity", count(of=CARD, window=days(120)), "many_card_payments_120d", "velocity", "Payments of the card in four months")


def test_the_release_before_has_the_same_catalogue_without_the_new_rows() -> None:
    following = CATALOGUE.extended([NEW])
    before = without(following, [NEW.name])
    assert before.catalogue_id == CATALOGUE.catalogue_id
    assert [name.split(b":")[2] for name in beginnings(following) if name not in beginnings(before)] == [b"card"], "the card's log has a column more"


def test_a_window_that_is_longer_than_logs_are_kept_for_cannot_be_loaded() -> None:
    with pytest.raises(SettingsError, match="a log is kept for 90 days"):
        without(CATALOGUE.extended([SLOW]), [SLOW.name])


def test_a_log_that_no_decision_has_a_place_in_cannot_be_loaded() -> None:
    of_phones = [name for name in CATALOGUE.names if "phone" in name]
    with pytest.raises(SettingsError, match="no decision says its place in a log of phone"):
        without(CATALOGUE, of_phones)
