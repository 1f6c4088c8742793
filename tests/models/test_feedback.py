"""Which labels are laid aside, as a table."""

from __future__ import annotations

import msgspec
import pytest

from models.feedback import doubted
from schemas.label import Label, LabelSource

FIRST = Label(label_id="l1", transaction_id="t1", account_id="a1", fraud=True, learned_at_ms=100, source=LabelSource.CHARGEBACK)


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({}, None),  # delivered again: nothing
        ({"label_id": "l2", "learned_at_ms": 200, "fraud": False}, None),  # people learn
        ({"label_id": "l2", "source": LabelSource.ANALYST}, None),  # two who agree
        ({"label_id": "l2", "learned_at_ms": 49}, "learned_too_early"),
        ({"fraud": False}, "changed_repeat"),
        ({"label_id": "l2"}, "repeated"),
        ({"label_id": "l2", "fraud": False, "source": LabelSource.ANALYST}, "contradicting"),
    ],
)
def test_a_label_after_another_on_a_payment_of_moment_50(changes: dict[str, object], doubt: str | None) -> None:
    found = doubted(msgspec.structs.replace(FIRST, **changes), 50, [FIRST])
    assert (found and str(found.doubt)) == doubt
