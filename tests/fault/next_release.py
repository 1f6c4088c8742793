"""The release after this one, as a program: `holdfast` with three rows more in its catalogue, and a registry of its own beside the other's."""

from __future__ import annotations

import os
import sys

import features.catalogue
from features.fact import ACCOUNT, CARD, IP
from features.row import Feature, count, days, distinct, hours

NEW = (
    Feature("behavioural", distinct("mcc", of=CARD, window=days(7)), "many_trades_7d", "velocity", "Kinds of merchant within a week"),
    Feature("behavioural", distinct("card", of=ACCOUNT, window=days(7)), "many_cards_7d", "velocity", "Cards of the account within a week"),
    Feature("velocity", count(of=IP, window=hours(2)), "many_address_payments_2h", "velocity", "Payments from the IP address within two hours"),
)
"""Each needs something of its memory that no row before it did: a column in the log of cards and of accounts, sums in the tally of addresses."""
NEXT = features.catalogue.CATALOGUE.extended(NEW)
BESIDE = "-next"

if __name__ == "__main__":
    features.catalogue.CATALOGUE = NEXT
    os.environ["HOLDFAST_REGISTRY_DIR"] += BESIDE
    from streams.cli import main

    sys.exit(main())
