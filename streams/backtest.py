"""A candidate policy on the archive: which columns it takes, and what is said of it before anyone saves it. `holdfast policy test` is this.

`payments = payments_in(Path("archive"), read_by(candidate, live))`, `print("\\n".join(lines(backtest(candidate, live, payments))))`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.catalogue import CATALOGUE
from models.backtest import Backtest, Effect, Payments
from models.decision import Missing
from models.history import Flags, Floats, Ints
from models.policy import SEVERITY, Authentication
from models.stand_in import is_stand_in
from schemas.decision import Action
from schemas.errors import SettingsError
from schemas.money import EXPONENTS
from schemas.topics import DECISIONS
from schemas.transaction import CheckResult, TransactionKind
from streams.mapping import readable
from streams.training_set import DAY_MS, WHOLE, archived_verdicts, decisions_in, fill_whole

AUTHENTICATED = ("action", "txn_kind", "txn_three_ds_result", "txn_step_up_of")
"""What says who could be asked to authenticate; null where a file is older than the column."""
COLUMNS = (*AUTHENTICATED, "decision_id", "transaction_id", "at_ms", "outcome", "score", "degradations", "model_id", "policy_id")
DECIDED = {name: pc.field(name) for name in COLUMNS} | {
    "amount_minor": pc.coalesce(pc.field("txn_billing_amount_minor"), pc.field("txn_amount_minor")),
    "currency": pc.coalesce(pc.field("txn_billing_currency"), pc.field("txn_currency")),
}
"""What is read of archived decisions: amounts in the account's own currency."""


def payments_in(folder: Path, names: Sequence[str], since_days: float | None = None, until_ms: int | None = None) -> Payments:
    """The decisions of an archive that were made on this catalogue, with these features and the labels as known at `until_ms`.

    `until_ms` is by default the last payment's time and, for labels, all that was learned; `since_days` counts back from it. SettingsError if there
    are none.
    """
    place = folder / DECISIONS.name
    if not place.is_dir():
        raise SettingsError(f"{folder}: holds no archive of decisions")
    wanted = pc.field("catalogue_id") == CATALOGUE.catalogue_id
    if until_ms is not None:
        wanted &= pc.field("at_ms") <= until_ms
    with readable(folder):
        data = decisions_in(place, AUTHENTICATED, names)
        if since_days is not None:
            last_ms = until_ms if until_ms is not None else pc.max(data.to_table(columns=["at_ms"], filter=wanted)["at_ms"]).as_py()
            wanted &= pc.field("at_ms") > (last_ms or 0) - int(since_days * DAY_MS)
        table = data.to_table(columns=DECIDED | {name: pc.field(name) for name in (WHOLE, *names)}, filter=wanted)
        if not len(table):
            raise SettingsError(f"{folder}: no payment of that time was decided on this catalogue")
        return payments_of(table, tuple(names), folder, until_ms)


def payments_of(table: pa.Table, names: tuple[str, ...], folder: Path, until_ms: int | None) -> Payments:
    """The payments of a table with the columns of `DECIDED` and these features, and the labels in the archive as known at `until_ms`.

    With any features, `WHOLE` is among the columns.
    """
    verdicts = archived_verdicts(folder, table["transaction_id"])
    known = verdicts if until_ms is None else verdicts.until(until_ms)
    frauds = np.zeros(len(table), np.bool_)
    frauds[known.rows] = known.frauds  # of several verdicts on a row the last stands
    currency_names, currencies = _numbered(table["currency"])
    outcomes, outcome_numbers = _numbered(table["outcome"])
    vectors = np.column_stack([_floats(table[name]) for name in names]) if names else np.empty((len(table), 0))
    if names:
        fill_whole(vectors, table[WHOLE], [CATALOGUE.index[name] for name in names], CATALOGUE)
    severity = np.array([{str(o): place for o, place in SEVERITY.items()}[name] for name in outcomes], np.int64)
    missing, stood_in = missing_of(table["degradations"])
    return Payments(
        names=names,
        vectors=vectors,
        scores=_floats(table["score"]),
        missing=missing,
        decided=severity[outcome_numbers],
        at_ms=_ints(table["at_ms"]),
        amounts_minor=_ints(table["amount_minor"]),
        currencies=currencies,
        currency_names=currency_names,
        frauds=frauds,
        authentications=(authentications := _authentications(table)),
        unasked=_are(table["action"], Action.STEP_UP) | (authentications == Authentication.FAILED) | stood_in,
    )


def _authentications(table: pa.Table) -> Ints:
    """How each payment stands to authentication, as `models.policy.authentication_of` says."""
    possible = np.where(_are(table["txn_kind"], TransactionKind.ECOMMERCE), Authentication.POSSIBLE, Authentication.IMPOSSIBLE)
    retried = np.where(table["txn_step_up_of"].is_valid().to_numpy(), Authentication.FAILED, possible)
    found: Ints = np.where(_are(table["txn_three_ds_result"], CheckResult.MATCH), Authentication.DONE, retried).astype(np.int64)
    return found


def _are(column: pa.ChunkedArray, word: str) -> Any:
    """bool[rows]: where a column of words says this one."""
    return pc.fill_null(pc.equal(column.cast(pa.string()), str(word)), False).to_numpy()


def missing_of(column: pa.ChunkedArray) -> tuple[Missing, Flags]:
    """The pairs of row and kind in a column of lists, and which rows the stand-in answered.

    That is nothing which was missing: when the rest was back the payment got its features and its score.
    """
    names, kinds = _numbered(pc.list_flatten(column))
    rows, by_stand_in = _ints(pc.list_parent_indices(column)), np.array([is_stand_in((name,)) for name in names], np.bool_)[kinds]
    stood_in = np.zeros(len(column), np.bool_)
    stood_in[rows[by_stand_in]] = True
    return Missing(rows[~by_stand_in], kinds[~by_stand_in], names), stood_in


def _numbered(column: Any) -> tuple[tuple[str, ...], Ints]:
    """The different values, and for each row the number of its own."""
    coded = pc.dictionary_encode(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    return tuple(coded.dictionary.to_pylist()), np.asarray(coded.indices.to_numpy(zero_copy_only=False), np.int64)


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)


def _ints(column: Any) -> Ints:
    return np.asarray(column.to_numpy(), np.int64)


# For people and programs.


def days_of(text: str) -> float:
    """Days, of a text like 30d or 12h."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([dh])", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time like 30d or 12h")
    return float(found[1]) / (24 if found[2] == "h" else 1)


def money(amount_minor: int, currency: str) -> str:
    """An amount as people read it, exactly."""
    digits = EXPONENTS[currency]
    whole, part = divmod(amount_minor, 10**digits)
    return f"{whole:,}{f'.{part:0{digits}d}' if digits else ''} {currency}"


def lines(found: Backtest) -> list[str]:
    """What the candidate would do, beside what is live."""
    live, candidate, both = found.live, found.candidate, found.overlap
    rows: list[tuple[str, Any, Any]] = [(name, live.outcomes[name], candidate.outcomes[name]) for name in live.outcomes]
    rows += [(name.replace("_", " "), getattr(live, name), getattr(candidate, name)) for name in Effect._fields if name not in ("outcomes", "money")]
    said = [
        f"{found.payments:,} payments of {found.days:.1f} days, {found.frauds:,} of them known as fraud; "
        f"the live policy gives {found.as_told:.1%} of them the outcome that was told",
        f"{'':<24}{'live':>20}{'candidate':>20}{'difference':>20}",
        *(f"{name:<24}{_number(old):>20}{_number(new):>20}{_number(new - old, '+'):>20}" for name, old, new in rows),
    ]
    for currency, amounts in candidate.money.items():
        if not any((*amounts, *live.money[currency])):
            continue
        for name, old, new in zip(amounts._fields, live.money[currency], amounts, strict=True):
            sign = "-" if new < old else "+"
            difference = f"{sign}{money(abs(new - old), currency)}"
            said.append(f"{f'{name}, money'.replace('_', ' '):<24}{money(old, currency):>20}{money(new, currency):>20}{difference:>20}")
    return [
        *said,
        f"alerts of both: {both.both:,} ({both.both_fraud:,} fraud); "
        f"of the candidate alone: {both.only_candidate:,} ({both.only_candidate_fraud:,}); "
        f"of the live policy alone: {both.only_live:,} ({both.only_live_fraud:,})",
    ]


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign},}" if isinstance(value, int) else f"{value:{sign},.1f}"


def figures_of(found: Backtest) -> dict[str, Any]:
    """The same for programs."""

    def plain(effect: Effect) -> dict[str, Any]:
        return effect._asdict() | {"money_minor": {currency: amounts._asdict() for currency, amounts in effect.money.items()}, "money": None}

    told = found._asdict() | {"live": plain(found.live), "candidate": plain(found.candidate), "overlap": found.overlap._asdict()}
    for name in ("live", "candidate"):
        del told[name]["money"]
    return told
