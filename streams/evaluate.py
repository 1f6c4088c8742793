"""`holdfast evaluate`: how good each member and the ensemble would have been, on folds that roll through a history; and the same as functions.

`found = evaluation(Path("features"), recipe_in(None), spans=Spans(7, 7, 7))`, `print("\\n".join(table_lines(found)))`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.evaluate import DAY_MS, Evaluation, Spans, can_be_tried, evaluated, folds, midnight_before
from models.figures import USUAL, Costs, Estimate, Operation, calibration_error
from models.recipe import Recipe
from schemas.errors import ArtefactError, SettingsError
from streams.settings import Settings
from streams.tracking import Run, tracked, tracking_uri
from streams.train import add_data, at_least, recipe_in, until_ms
from streams.training_set import given_in

USUAL_SPANS = ((180, 7), (90, 7), (56, 7), (28, 7), (14, 7), (14, 3), (7, 7), (7, 3), (3, 3), (3, 1), (1, 1), (180, 30), (90, 30), (30, 30))
"""Days of training and of test, the best first; the last are for files that only know the month."""
SPAN_DAYS_MAX = 1_000_000
RANKING = ("roc_auc", "average_precision", "card_precision", "recall_at_fpr_0.001", "recall_at_fpr_0.01", "recall_at_fpr_0.05")
OPERATING = ("value_detection_rate", "false_positives_per_fraud", "alerts_per_day", "saved_minor_per_day")


def evaluation(
    folder: Path,
    recipe: Recipe,
    *,
    spans: Spans | None = None,
    count: int = 4,
    until: int | None = None,
    operation: Operation = USUAL,
    seed: int = 1,
    threads: int = 1,
    resamples: int = 200,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """The evaluation of a recipe on the last `count` folds of the history in a folder (`given_in`), up to `until`.

    By default that is the end of the last day of whose frauds most are known: in an archive those of the newest payments are yet to be noticed.
    Without `spans`: the first of USUAL_SPANS, with the labels' delay as the gap, of which so many folds fit and have frauds to learn from and
    to find; where there is none, of fewer folds.
    """
    history, delay_ms = given_in(folder)
    until = midnight_before(history.mature_ms(delay_ms)) + DAY_MS if until is None else until
    first_ms = midnight_before(int(history.at_ms[0])) if len(history.at_ms) else 0
    gap = math.ceil(delay_ms / DAY_MS)
    if not history.believed().frauds.any():
        raise ArtefactError(f"{folder}: no payment is known as fraud; there is nothing to learn or to find")
    most = max(len(folds(first_ms, until, Spans(train, gap, test), count)) for train, test in USUAL_SPANS)
    usual = [(Spans(train, gap, test), wanted) for wanted in range(most, 0, -1) for train, test in USUAL_SPANS]
    for each, wanted in [(spans, count)] if spans else usual:
        rolled = folds(first_ms, until, each, wanted)
        if spans or (len(rolled) == wanted and all(can_be_tried(history, fold) for fold in rolled)):
            break
    else:
        if most:
            raise ArtefactError(
                f"{folder}: no fold has frauds of several cards that are known when its test begins, and frauds and others to test on"
            )
        raise ArtefactError(
            f"{folder}: too short for one fold of a day, {gap} days until labels are known (the mapping's `delay`), and a day of test"
        )
    say(f"{len(rolled)} folds of {each.train_days:g}/{each.delay_days:g}/{each.test_days} days (training, gap, test)")
    if len(history.currency_names) > 1:
        say(f"amounts are in {', '.join(history.currency_names)}: figures of money are of each by itself, costs in its own minor units")
    return evaluated(history, rolled, recipe, operation, seed=seed, threads=threads, resamples=resamples, say=say)


def table_lines(found: Evaluation) -> list[str]:
    """The table, for people: each model's figures with their 95 % intervals."""
    width = max(map(len, found.table)) + 2
    lines = []
    by_currency = [name for name in next(iter(found.table.values())) if name.startswith(tuple(f"{figure}." for figure in OPERATING))]
    for figures in (RANKING, OPERATING, *(by_currency[at : at + 6] for at in range(0, len(by_currency), 6))):
        lines += ["", " " * width + "".join(f"{name:>26}" for name in figures)]
        lines += [f"{model:<{width}}" + "".join(f"{_cell(estimates[name]):>26}" for name in figures) for model, estimates in found.table.items()]
    ceiling = next(iter(found.table.values()))["card_precision_ceiling"].value
    fitted = [sum(weights) / len(found.folds) for weights in zip(*(tried.weights for tried in found.folds), strict=True)]
    said = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(found.members, fitted, strict=True))
    errors = ", ".join(f"{model} {calibration_error(points):.4f}" for model, points in found.reliability.items())
    return [
        *lines,
        "",
        f"card precision: a perfect model would reach {ceiling:.3f}",
        f"fitted weights, mean of the folds: {said}",
        f"share of the log loss that they take away on unseen cards: {', '.join(f'{_cell(t.gain.less_loss)}, {t.taken}' for t in found.folds)}",
        f"calibration error: {errors}",
    ]


def _cell(figure: Estimate) -> str:
    digits = 3 if abs(figure.value) < 100 else 0
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]" if figure.value == figure.value else "-"


def figures_of(found: Evaluation) -> dict[str, Any]:
    """The evaluation, for programs; what cannot be told is null."""
    return {
        "folds": [
            tried._asdict()
            | {"fold": tried.fold._asdict(), "weights": dict(zip(found.members, tried.weights, strict=True)), "gain": tried.gain.plain()}
            for tried in found.folds
        ],
        "table": {model: {name: _told(figure) for name, figure in figures.items()} for model, figures in found.table.items()},
        "reliability": {model: [point._asdict() for point in points] for model, points in found.reliability.items()},
    }


def run_of(found: Evaluation, recipe: Recipe) -> Run:
    """An evaluation as it is tracked: `tracked(run_of(found, recipe), settings)`."""
    metrics = {
        f"{model}.{name}{end}": value if value == value else None
        for model, figures in found.table.items()
        for name, figure in figures.items()
        for end, value in zip(("", ".low", ".high"), figure, strict=True)
    }
    folds = {f"fold_{number}": tried.fold._asdict() for number, tried in enumerate(found.folds, 1)}
    rows = {"train_rows": sum(tried.train_rows for tried in found.folds), "test_rows": sum(tried.test_rows for tried in found.folds)}
    texts = {"table.txt": "\n".join(table_lines(found)), "evaluation.json": json.dumps(figures_of(found))}
    return Run(f"evaluate {recipe.name}", {"recipe_id": recipe.recipe_id, **rows, **folds}, metrics, texts)


def _told(figure: Estimate) -> dict[str, float | None]:
    return {name: value if value == value else None for name, value in figure._asdict().items()}


def evaluate(argv: list[str], settings: Settings) -> int:
    """`holdfast evaluate --data DIR`: trains and tests on rolling folds; a table of members and ensembles with intervals."""
    parser = argparse.ArgumentParser(prog="holdfast evaluate", description=(evaluate.__doc__ or "").splitlines()[0])
    add_data(parser, until="the end of the last day whose labels have come in")
    parser.add_argument("--spans", type=_spans, metavar="T/D/S", help="days of training, gap and test, like 28/7/7 (default: what fits the history)")
    parser.add_argument("--folds", type=at_least(1), default=4, metavar="N", help="the last so many that fit (default %(default)s)")
    parser.add_argument("--cards", type=at_least(1), default=100, metavar="K", help="card precision at so many a day (default %(default)s)")
    parser.add_argument("--alert-above", type=int, default=500, metavar="SCORE", help="an alert is a score above this (default %(default)s)")
    costs = "minor units for a review and for an honest customer hurt, share of a fraud that an alert saves"
    usual = "/".join(f"{cost:g}" for cost in USUAL.costs)
    parser.add_argument("--costs", type=_costs, default=USUAL.costs, metavar="R/H/S", help=f"{costs} (default {usual})")
    parser.add_argument("--resamples", type=at_least(1), default=200, metavar="N", help="draws of the bootstrap (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    operation, recipe = Operation(args.alert_above, args.cards, args.costs), recipe_in(args.recipe)
    found = evaluation(
        args.data,
        recipe,
        spans=args.spans,
        count=args.folds,
        until=until_ms(args),
        operation=operation,
        seed=args.seed,
        threads=args.threads,
        resamples=args.resamples,
        say=_say,
    )
    print("\n".join(table_lines(found)))
    if args.track:
        print(f"run {tracked(run_of(found, recipe), settings)} at {tracking_uri(settings)}")
    if args.json:
        print(json.dumps(figures_of(found)))
    return 0


def _spans(text: str) -> Spans:
    train, delay, test = _three("--spans", text)
    if min(train, delay) < 0 or train == 0 or test < 1 or test != int(test):
        raise SettingsError(f"--spans {text}: training takes some time, and a test whole days")
    if max(train, delay, test) > SPAN_DAYS_MAX:
        raise SettingsError(f"--spans {text}: no history has more than {SPAN_DAYS_MAX:,} days")
    return Spans(train, delay, int(test))


def _costs(text: str) -> Costs:
    return Costs(*_three("--costs", text))


def _three(option: str, text: str) -> tuple[float, float, float]:
    try:
        one, two, three = map(float, text.split("/"))
    except ValueError:
        raise SettingsError(f"{option}: {text!r} is not three numbers with slashes between") from None
    if not all(map(math.isfinite, (one, two, three))):
        raise SettingsError(f"{option}: {text!r} is not three numbers with slashes between")
    return one, two, three


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
