"""Training: a recipe's members grown from examples, calibrated on cards that they have not seen, weighed. Pure; nothing is read or written."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import sklearn
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn, without types

from features.catalogue import CATALOGUE
from models import fairness
from models.calibrate import calibration, fitted_weights
from models.compiled import EQUAL_ON, EQUAL_WITHIN, Curve, Grown, apart, compiled, joined, mixed, plain
from models.decision import top_reason_agrees
from models.drift import snapshot_of
from models.ensemble import Artefact, Ensemble, Member
from models.figures import INTERVAL, Estimate, Ranked, Trial, reliability
from models.gates import held_out_checks, ranking_check
from models.history import HELD_OUT_FROM, Examples, Flags, Floats, Ints, families_of
from models.policy import Policy
from models.recipe import EVERY, MemberRow, Recipe, Weights
from models.trees import IDENTITY, NODE, TERM, lots_of
from schemas.errors import ArtefactError, SettingsError

BLOCKS_ASKED = 100
"""So many held-out blocks at most are asked whether their first reason is the exact one."""
HONEST_MIN = 100_000
"""However few the frauds are, so many honest payments are learned from if there are: fewer would save little time, and cost quality."""
MISTAKEN_MIN = 0.001
"""Where fitted weights are held against given ones, no score counts as surer than this of either."""
LESS_LOSS_MIN = 0.003
"""So much of the log loss is to be gone at the lower end of the interval, which knows of the cards' chance and not of the fit's."""
RANKED_WORSE_MAX = 0.005
"""So much average precision fitted weights may seem to lose, of chance, and still be taken."""
LOTS, DRAWS = 100, 400
"""Cards are dealt into so many lots, and lots are drawn so often, to say whether fitted weights are surely better than given ones."""
ONE_ANOTHERS = r".*sklearn\.utils\.parallel\.delayed"
"""What scikit-learn warns of where two threads fit at once: each empties the process's list of warnings for a moment, and the other sees that."""
ESTIMATORS: Mapping[str, Any] = {
    "hist_gradient_boosting": lambda seed, **p: [("grow", HistGradientBoostingClassifier(random_state=seed, early_stopping=False, **p))],
    "extra_trees": lambda seed, **p: [("grow", ExtraTreesClassifier(random_state=seed, **p))],
    "random_forest": lambda seed, **p: [("grow", RandomForestClassifier(random_state=seed, **p))],
    "isolation_forest": lambda seed, **p: [("grow", IsolationForest(random_state=seed, **p))],
    "logistic_regression": lambda seed, **p: [
        ("impute", SimpleImputer(strategy="median")),
        ("scale", StandardScaler()),
        ("grow", LogisticRegression(random_state=seed, **p)),
    ],
}
"""The steps of each estimator's pipeline."""


class Fitted(NamedTuple):
    """One fitted member: its row, the columns that it reads, its pipeline on them (None: it has none to read) and its calibration."""

    row: MemberRow
    columns: tuple[int, ...]
    pipeline: Any | None
    curve: Curve

    def raw(self, vectors: Floats) -> Floats:
        """float64[rows]: what it says before calibration."""
        return _raw(self.pipeline, vectors, np.arange(len(vectors)), self.columns)

    def said(self, vectors: Floats) -> Floats:
        """float64[rows]: its probability of fraud."""
        return np.interp(self.raw(vectors), *self.curve)


def _raw(pipeline: Any | None, vectors: Floats, rows: npt.NDArray[np.intp], columns: Sequence[int]) -> Floats:
    """float64[rows]: what a pipeline says of these rows by its own columns; one that has none to read says the same of all."""
    said = np.full(len(rows), 0.5)
    for lot in lots_of(len(rows) if pipeline is not None else 0):
        said[lot] = plain(pipeline, _taken(vectors, rows[lot], columns))
    return said


class Weighed(NamedTuple):
    """The members' weights, and the curve that makes a score of their weighted sum."""

    weights: Floats
    curve: Curve

    def scores(self, said: Floats) -> Floats:
        """float64[rows]: the score (0 to 1) of the members' probabilities (float64[rows, members])."""
        return np.interp(said @ self.weights, *self.curve)


class Gain(NamedTuple):
    """What fitted weights have more than the given ones, on cards for which neither they nor the members nor the curves were fitted."""

    less_loss: Estimate  # of the given ones' log loss so much is gone, as a share
    average_precision: float  # so much more

    @property
    def sure(self) -> bool:
        """Whether their scores are surely nearer to the truth, by a proper figure that no single surprise rules, and rank it hardly worse."""
        return self.less_loss.low > LESS_LOSS_MIN and self.average_precision > -RANKED_WORSE_MAX

    def plain(self) -> dict[str, float]:
        """For a card."""
        return {"average_precision": self.average_precision} | {f"less_loss_{name}": value for name, value in self.less_loss._asdict().items()}


@dataclass(frozen=True, eq=False)
class Team:
    """The fitted members, with the weights that the recipe gives and with those that fit best."""

    members: tuple[Fitted, ...]
    given: Weighed
    fitted: Weighed
    gain: Gain

    def weighed(self, wanted: Weights) -> tuple[str, Weighed]:
        """Which weights a recipe gets, and these: where it wants them measured, the fitted ones if they surely gain, else the given."""
        taken = wanted if wanted != "measured" else "fitted" if self.gain.sure else "given"
        return taken, self.fitted if taken == "fitted" else self.given

    def said(self, vectors: Floats) -> Floats:
        """float64[rows, members]: each member's probability."""
        return np.column_stack([member.said(vectors) for member in self.members])


# Fitting.


def fit(examples: Examples, recipe: Recipe, seed: int, threads: int = 1) -> Team:
    """The recipe's members on all examples.

    ArtefactError if there are not fraud and honest cards enough to learn and to calibrate from; SettingsError naming the member whose families
    nobody has, or whose estimator does not take its parameters.
    """
    truth, dealt = examples.frauds, _dealt(examples.cards, examples.frauds, recipe.parts, seed)
    if len({*dealt[truth].tolist()}) < 2 or truth.all():
        raise ArtefactError("training needs honest payments, and frauds of several cards")
    drawn = _drawn(truth, recipe.honest_per_fraud, seed)
    vectors = examples.vectors[drawn]
    _known_families(recipe, examples.names)
    shown = {part: dealt[drawn] != part for part in (-1, *range(recipe.parts))}
    columns = [_with_values(_read_by(row, examples.names, recipe), vectors, tuple(shown.values())) for row in recipe.members]
    jobs = [(number, part) for number in range(len(recipe.members)) for part in shown]

    def done(job: tuple[int, int]) -> tuple[Any, Floats]:
        number, part = job
        row, mine = recipe.members[number], columns[number]
        pipeline = _grown(row, vectors[:, mine], truth[drawn], shown[part], seed) if mine else None
        return pipeline, _raw(pipeline, examples.vectors, np.flatnonzero(dealt == part), mine)

    limited = ThreadPoolExecutor(threads, initializer=threadpool_limits, initargs=(1,))
    with warnings.catch_warnings(), threadpool_limits(limits=1), limited as pool:
        warnings.filterwarnings("ignore", message=ONE_ANOTHERS)
        results = dict(zip(jobs, pool.map(done, jobs), strict=True))  # OpenMP's own threads wait for one another longer than they work
    raw = np.empty((len(truth), len(recipe.members)))
    for (number, part), (_, unseen_said) in results.items():
        raw[dealt == part, number] = unseen_said
    curves = [calibration(raw[:, number], truth) for number in range(len(recipe.members))]
    members = tuple(Fitted(row, columns[n], results[n, -1][0], curves[n]) for n, row in enumerate(recipe.members))
    said = np.column_stack([np.interp(raw[:, n], *curve) for n, curve in enumerate(curves)])
    given, best = np.array([row.weight for row in recipe.members]), fitted_weights(said, truth)
    gain = _gain(raw, truth, dealt, np.unique(examples.cards, return_inverse=True)[1], given, seed)
    return Team(members, Weighed(given, calibration(said @ given, truth)), Weighed(best, calibration(said @ best, truth)), gain)


def _surprise(scores: Floats, truth: Flags) -> Floats:
    """float64[rows]: the log loss of each row's score, no surer of anything than MISTAKEN_MIN: else a single mislabelled row says which is better."""
    surprise: Floats = -np.log(np.clip(np.where(truth, scores, 1 - scores), MISTAKEN_MIN, 1 - MISTAKEN_MIN))
    return surprise


def _gain(raw: Floats, truth: Flags, dealt: Ints, cards: Ints, given: Floats, seed: int) -> Gain:
    """What fitted weights gain: those of each part (and all curves) fitted on the other parts; the interval by draws of lots of cards."""
    scores = np.empty((2, len(truth)))
    for part in np.unique(dealt):
        rest, own = dealt != part, dealt == part
        said = np.column_stack([np.interp(raw[:, n], *calibration(raw[rest, n], truth[rest])) for n in range(raw.shape[1])])
        for row, weights in zip(scores, (given, fitted_weights(said[rest], truth[rest])), strict=True):
            row[own] = np.interp(said[own] @ weights, *calibration(said[rest] @ weights, truth[rest]))
    plain, fitted = (np.bincount(cards % LOTS, _surprise(row, truth), LOTS) for row in scores)
    drawn = np.random.default_rng(seed).multinomial(LOTS, np.full(LOTS, 1 / LOTS), DRAWS)
    low, high = np.percentile(1 - drawn @ fitted / np.maximum(drawn @ plain, 1e-300), INTERVAL)
    nothing = np.zeros(len(truth), np.int64)
    ranked = [Ranked.of(Trial(truth, nothing, nothing, nothing, 1), row).figures(np.ones(1))["average_precision"] for row in scores]
    return Gain(Estimate(float(1 - fitted.sum() / plain.sum()), float(low), float(high)), ranked[1] - ranked[0])


def _dealt(cards: Ints, truth: Flags, parts: int, seed: int) -> Ints:
    """By row the part of its card: all payments of a card are in one part, so that a fraud is not calibrated by its own sister.

    Where chance puts all cards with a fraud into one part, they are dealt out one by one.
    """
    _, numbers = np.unique(cards, return_inverse=True)
    part = np.random.default_rng(seed).permutation(int(numbers.max(initial=-1)) + 1) % parts
    defrauded = np.unique(numbers[truth])
    if len(np.unique(part[defrauded])) == 1:
        part[defrauded] = np.arange(len(defrauded)) % parts
    return part[numbers]


def _drawn(truth: Flags, honest_per_fraud: float, seed: int) -> npt.NDArray[np.intp]:
    """The rows to learn from: every fraud and so many honest ones, in order. Calibration sets the level right again."""
    honest = np.flatnonzero(~truth)
    wanted = int(min(len(honest), max(HONEST_MIN, np.ceil(honest_per_fraud * truth.sum()))))
    if wanted < len(honest):
        honest = np.random.default_rng(seed).choice(honest, wanted, replace=False)
    return np.sort(np.concatenate((np.flatnonzero(truth), honest)))


def _taken(vectors: Floats, rows: npt.NDArray[np.intp], columns: Sequence[int]) -> Floats:
    """Some rows of some columns, without a copy of all."""
    taken: Floats = np.empty((len(rows), len(columns)), order="F")
    for place, column in enumerate(columns):
        np.take(vectors[:, column], rows, out=taken[:, place])
    return taken


def measured_only(recipe: Recipe) -> tuple[str, ...]:
    """The columns by which the recipe declares groups and which no member reads: they are there to measure fairness with."""
    return tuple(dict.fromkeys(groups.column for groups in recipe.groups if groups.column.startswith(fairness.MEASURED_ONLY)))


def learned_from(names: Sequence[str], recipe: Recipe) -> tuple[str, ...]:
    """The columns without those that are there to measure fairness with alone."""
    beside = measured_only(recipe)
    return tuple(name for name in names if name not in beside)


def _known_families(recipe: Recipe, names: Sequence[str]) -> None:
    """SettingsError for a family that neither the data nor the catalogue has: a member of a mistyped one would say the same of every row."""
    known = {EVERY, *families_of(names), *CATALOGUE.families}
    for row in recipe.members:
        if unknown := next((family for family in row.families if family not in known), None):
            raise SettingsError(f"recipe: member {row.name}: neither the data nor the catalogue has a family {unknown!r}")


def _read_by(row: MemberRow, names: Sequence[str], recipe: Recipe) -> tuple[int, ...]:
    """The columns of a member's families; of families that the data has not there are none."""
    allowed, families = set(learned_from(names, recipe)), families_of(names)
    wanted = range(len(names)) if EVERY in row.families else (column for family in row.families for column in families.get(family, ()))
    return tuple(column for column in wanted if names[column] in allowed)


def _with_values(columns: Sequence[int], vectors: Floats, shown: Sequence[Flags]) -> tuple[int, ...]:
    """The columns that have two values or more, a missing one counted, and one that is not missing among each lot of rows that a fit is shown.

    From others nothing is to be learned, and scikit-learn cannot bin them: those of one card alone are missing wherever it is left out. A bank
    whose files know no devices has a whole family of them; that member then says the same of every row.
    """
    return tuple(c for c in columns if _differs(vectors[:, c]) and all((~np.isnan(vectors[:, c]) & rows).any() for rows in shown))


def _differs(column: Floats) -> bool:
    return not ((column == column[0]) | (np.isnan(column) & np.isnan(column[0]))).all()


def _grown(row: MemberRow, mine: Floats, truth: Flags, seen: Flags, seed: int) -> Any:
    """A member's pipeline, fitted on the rows that it may see. SettingsError for parameters that its estimator does not take."""
    try:
        return Pipeline(ESTIMATORS[row.estimator](seed, **row.parameters)).fit(mine[seen], truth[seen])
    except (TypeError, ValueError) as error:
        raise SettingsError(f"recipe: member {row.name}: {error}") from error


# From fitted members to what is served.


def train(examples: Examples, recipe: Recipe, policy: Policy, seed: int, threads: int = 1, parity_rows: int = EQUAL_ON) -> Artefact:
    """The recipe's ensemble, grown from the first four fifths of the examples and measured on the last, which it has not seen.

    Every member must equal scikit-learn's own answer on `parity_rows` rows, or ArtefactError; a model that serves needs the default.
    The same examples, recipe and seed give the same artefact.
    """
    whole, examples = examples, examples.read_by(learned_from(examples.names, recipe))
    first = int(len(examples.frauds) * HELD_OUT_FROM)
    seen = replace(
        examples,
        vectors=examples.vectors[:first],
        frauds=examples.frauds[:first],
        kinds=examples.kinds[:first],
        at_ms=examples.at_ms[:first],
        cards=examples.cards[:first],
    )
    team = fit(seen, recipe, seed, threads)
    ensemble, parity = assembled(team, recipe, seen, seed, parity_rows)
    late, truth = examples.vectors[first:], examples.frauds[first:]
    scores = ensemble.scores(late)
    late_rows, alerts = slice(first, None), np.rint(scores * 1000) > policy.review_above
    treated = fairness.measured(recipe.groups, whole.names, whole.vectors[late_rows], alerts, truth, whole.cards[late_rows])
    figures = measured(scores, truth, policy)
    blocked = late[np.flatnonzero(np.rint(scores * 1000) > policy.block_above)[:BLOCKS_ASKED]]
    return Artefact(
        ensemble=ensemble,
        rows=len(examples.frauds),
        frauds=int(examples.frauds.sum()),
        from_at_ms=int(examples.at_ms[0]),
        until_at_ms=int(examples.at_ms[-1]),
        learned_until_ms=int(seen.at_ms[-1]),
        seed=seed,
        sklearn_version=sklearn.__version__,
        policy_id=policy.policy_id,
        recipe_id=recipe.recipe_id,
        figures=figures,
        checks={
            **parity,
            "top_reason_agrees": top_reason_agrees(ensemble, _reasons(examples.names), np.ascontiguousarray(blocked)),
            **held_out_checks(ensemble.scores(seen.vectors), scores, truth),
            **ranking_check(figures),
            **fairness.checks(recipe.groups, treated),
        },
        fairness=treated,
        data_sha256=_digest(examples),
        weights={"wanted": recipe.weights_from, "taken": team.weighed(recipe.weights_from)[0], "given": recipe.weights, "gain": team.gain.plain()},
        plots=plots(scores, truth),
        snapshot=snapshot_of(examples.names, seen.vectors, np.rint(scores * 1000)).plain(),
    )


def _digest(examples: Examples) -> str:
    """The SHA-256 of the vectors, row by row, and of what was believed of them."""
    found = hashlib.sha256()
    for lot in lots_of(len(examples.frauds)):
        found.update(np.ascontiguousarray(examples.vectors[lot]).tobytes())
    found.update(examples.frauds.tobytes())
    return found.hexdigest()


def plots(scores: Floats, truth: Flags) -> dict[str, list[list[float]]]:
    """The points of the document's plots: reliability (said, true, rows), and how many honest and fraud rows have a score in each twentieth."""
    points = [[point.said, point.true, float(point.rows)] for point in reliability(scores, truth)]
    counts = [np.histogram(scores[rows], bins=20, range=(0, 1))[0] for rows in (~truth, truth)]
    return {"reliability": points, "scores": np.column_stack(counts).astype(np.float64).tolist()}


def assembled(team: Team, recipe: Recipe, examples: Examples, seed: int, parity_rows: int = EQUAL_ON) -> tuple[Ensemble, dict[str, float]]:
    """The ensemble that serves what was fitted, and how far its arrays are from scikit-learn; ArtefactError if that is too far."""
    _, weighed = team.weighed(recipe.weights_from)
    asked = mixed(examples.vectors, parity_rows, seed)
    grown, distances = zip(*(_compiled(member, asked) for member in team.members), strict=True)
    members = tuple(Member(m.row.name, float(w), m.columns) for m, w in zip(team.members, weighed.weights, strict=True))
    usual = _usual(examples.vectors, ~examples.frauds)
    low = np.array([name in CATALOGUE.index and CATALOGUE.rows[CATALOGUE.index[name]].suspicious == "low" for name in examples.names])
    ensemble = Ensemble("", examples.catalogue_id, examples.names, members, joined(grown, weighed.curve), usual, low)
    return ensemble, {"parity_max": max(distances), "parity_rows": float(len(asked))}


def _reasons(names: Sequence[str]) -> tuple[str, ...]:
    """The reason code of each column; a column that no catalogue has is its own."""
    return tuple(CATALOGUE.reason_of[CATALOGUE.index[name]] if name in CATALOGUE.index else name for name in names)


def _compiled(member: Fitted, asked: Floats) -> tuple[Grown, float]:
    """One member as arrays, and how far it is from its pipeline on the rows that are asked."""
    if member.pipeline is None:
        none = np.empty(0, dtype=np.int32)
        return Grown(np.empty(0, NODE), np.empty(0), none, np.empty(0, TERM), 0.5, IDENTITY, member.curve), 0.0
    grown = compiled(member.pipeline, member.columns)._replace(curve=member.curve)
    distance = apart(grown, member.pipeline, asked[:, member.columns], asked)
    if not distance <= EQUAL_WITHIN:
        raise ArtefactError(f"member {member.row.name}: {distance} apart from scikit-learn")
    return grown, distance


def _usual(vectors: Floats, honest: Flags) -> Floats:
    """float64[columns]: the median of each column in honest rows, NaN where it never had a value there."""
    columns = (column[honest & ~np.isnan(column)] for column in vectors.T)
    return np.array([np.median(there) if len(there) else np.nan for there in columns])


def measured(scores: Floats, truth: Flags, policy: Policy) -> dict[str, float | None]:
    """Figures of scores (0 to 1) against the truth: ranking, and precision and recall above the policy's thresholds."""
    both = 0 < truth.sum() < len(truth)
    nothing = np.zeros(len(truth), np.int64)
    ranking = Ranked.of(Trial(truth, nothing, nothing, nothing, 1), scores).figures(np.ones(1)) if both else {}
    figures: dict[str, float | None] = {
        "rows": float(len(truth)),
        "frauds": float(truth.sum()),
        "auc": ranking.get("roc_auc"),
        "average_precision": ranking.get("average_precision"),
    }
    for name, above in (("review", policy.review_above), ("block", policy.block_above)):
        flagged = np.rint(scores * 1000) > above
        hits = int((flagged & truth).sum())
        figures[f"precision_at_{name}"] = hits / int(flagged.sum()) if flagged.any() else None
        figures[f"recall_at_{name}"] = hits / int(truth.sum()) if truth.any() else None
        figures[f"share_above_{name}"] = float(flagged.mean()) if len(truth) else None
    return figures
