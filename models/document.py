"""The model document: what a supervisor reads about one model, as one HTML file that prints well and needs nothing else. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from features.catalogue import Catalogue
from models.compiled import EQUAL_ON, EQUAL_WITHIN
from models.decision import TOP_REASON_AGREES_MIN
from models.drift import PSI_MAX
from models.gates import ACROSS_GROUPS, AUC_OF_CHANCE, BESIDE_CHAMPION, CALIBRATION_ERROR_MAX, FAIRNESS_RATIO_MAX, GATES, WORSE_THAN_CHAMPION_MAX
from models.governance import Item
from schemas.governance import Move

WIDE, HIGH, EDGE = 460, 300, 46
STYLE = """
body { font: 15px/1.5 Georgia, serif; color: #1c1c1c; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #bbb; break-after: avoid; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; } th, td { text-align: left; padding: .2rem .6rem .2rem 0; vertical-align: top; }
th { border-bottom: 1px solid #888; } td { border-bottom: 1px solid #e4e4e4; overflow-wrap: anywhere; } thead { display: table-header-group; }
tr, figure { break-inside: avoid; } figure { margin: 1rem 0; } figcaption { font-size: .85rem; color: #444; }
.digest { font-family: monospace; font-size: .78rem; } .no { color: #a11616; font-weight: bold; } svg { max-width: 100%; height: auto; }
@page { size: A4; margin: 18mm; } @media print { body { margin: 0; max-width: none; font-size: 10.5pt; } }
"""
PURPOSE = (
    "Says of each payment, while the customer waits, how likely it is fraud: a score from 0 to 1000. The policy's thresholds and rules turn it into "
    "approval, review or block, with at most four reasons. It decides about payments, not about people's credit, and not where it was not trained."
)
NOT_DECLARED = "Not measured: the recipe declares no groups ([[groups]]: a column, and its ranges or values)."
FIXED_LIMITS = (
    "Labels are what was known at the end of training: fraud that nobody had noticed counts as honest.",
    "The held-out rows are the last fifth of the payments; what changes afterwards shows in monitoring, not here.",
)


def document(model_id: str, card: Mapping[str, Any], item: Item | None, moves: Sequence[Move], failed: Sequence[str], catalogue: Catalogue) -> str:
    """The HTML of one model. `failed` names the gates that it does not pass now."""
    state = f"{item.state}{f', tier {item.tier}' if item.tier else ''}" if item else "not entered"
    ends = f", validation holds until {_day(item.expires_at_ms)}" if item and item.expires_at_ms else ""
    said = item.figures if item else {}
    parts = [
        f"<h1>Model document</h1><p class=digest>{escape(model_id)}</p><p>State: <b>{escape(state)}</b>{escape(ends)}.</p>",
        _section("Purpose", f"<p>{escape(PURPOSE)}</p>{_reasons_given(moves)}"),
        _section("Lineage", _lineage(card)),
        _section("Members", _members(card)),
        _section("Evaluation on rows that training has not seen", _table(("figure", "value"), _figures(card["figures"]))),
        _section("Gates", _gates({**card.get("checks", {}), **said}, failed, item.beside if item else "")),
        _section("Fairness across declared groups", _fairness(card)),
        _section("Plots", _reliability(card) + _scores(card)),
        _section("Limits", f"<ul>{''.join(f'<li>{escape(limit)}</li>' for limit in (*_own_limits(card), *FIXED_LIMITS))}</ul>"),
        _section("Approvals and all other moves", _moves(moves) + _bands(item)),
        _section("Features and their reasons", _features(card, catalogue)),
    ]
    head = f"<meta charset=utf-8><title>Model {escape(model_id)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are plain text."""
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead><tbody>{lines}</tbody></table>"


def _reasons_given(moves: Sequence[Move]) -> str:
    """Why it was made, in its author's words."""
    return f"<p>Its author {escape(moves[0].by)} says: {escape(moves[0].why)}</p>" if moves else ""


def _lineage(card: Mapping[str, Any]) -> str:
    trained = card["trained"]
    learned_ms = trained.get("learned_until_ms")
    rows = [
        ("training data", f"{trained['rows']:,} payments, {trained['frauds']:,} of them fraud"),
        ("from, until", f"{_moment(trained['from_at_ms'])} to {_moment(trained['until_at_ms'])}"),
        ("grown from payments until", "not recorded" if learned_ms is None else _moment(learned_ms)),
        ("training data, SHA-256", trained.get("data_sha256") or "not recorded"),
        ("recipe", trained["recipe_id"]),
        ("catalogue of features", card["catalogue_id"]),
        ("policy whose thresholds it was measured with", trained["policy_id"]),
        ("arrays, SHA-256", card["sha256"]),
        ("seed, scikit-learn", f"{trained['seed']}, {trained['sklearn_version']}"),
    ]
    return _table(("what", "which"), rows)


def _members(card: Mapping[str, Any]) -> str:
    about = card.get("weights", {})
    given = about.get("given", {})
    rows = [
        (m["name"], f"{m['weight']:.2f}", f"{given[m['name']]:.2f}" if m["name"] in given else "", str(len(m["columns"]))) for m in card["members"]
    ]
    return _table(("member", "weight", "of the recipe", "columns that it reads"), rows) + (f"<p>{_weights(about)}</p>" if about else "")


def _weights(about: Mapping[str, Any]) -> str:
    """Whose weights they are and why, in words."""
    gain = about["gain"]
    interval = f"interval of 95 %: {gain['less_loss_low']:.1%} to {gain['less_loss_high']:.1%}"
    measured = (
        f"On cards for which neither were fitted, the weights that fit best leave {gain['less_loss_value']:.1%} less log loss than the recipe's"
        f" ({interval}) and change the average precision by {gain['average_precision']:+.3f}."
    )
    why = {
        ("measured", "fitted"): "They are surely better, so that these are the fitted ones.",
        ("measured", "given"): "They are not surely better, so that these are the recipe's.",
        ("fitted", "fitted"): "The recipe asks for the fitted ones.",
        ("given", "given"): "The recipe asks for its own.",
    }
    return f"{measured} {why[about['wanted'], about['taken']]}"


def _figures(figures: Mapping[str, float | None]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), "could not be measured" if value is None else f"{value:,.4g}") for name, value in figures.items()]


LIMITS: Mapping[str, str] = {
    "parity_max": f"at most {EQUAL_WITHIN:g}",
    "parity_rows": f"at least {EQUAL_ON:,}",
    "top_reason_agrees": f"at least {TOP_REASON_AGREES_MIN:g}",
    "calibration_error": f"at most {CALIBRATION_ERROR_MAX}",
    "score_psi": f"at most {PSI_MAX}",
    "auc_low": f"above {AUC_OF_CHANCE}",
    "against_champion_low": f"at least {-WORSE_THAN_CHAMPION_MAX}",
    "fairness_ratio_low": f"at most {FAIRNESS_RATIO_MAX}",
}


def _gates(figures: Mapping[str, float], failed: Sequence[str], beside: str) -> str:
    """The checks with their limits; what compares with a champion names it."""
    names = [*GATES, *(name for name in (*BESIDE_CHAMPION, *ACROSS_GROUPS) if name in figures or name in failed)]
    said = {n: _measured(v) + (f" (beside {beside})" if n in BESIDE_CHAMPION else "") for n, v in figures.items()}
    rows = [(n, said.get(n, "never measured"), LIMITS.get(n, ""), "FAILED" if n in failed else "passed") for n in names]
    more = [(n, v, "", "") for n, v in said.items() if n not in names]
    return _table(("check", "measured", "limit", ""), rows + more).replace("<td>FAILED</td>", "<td class=no>FAILED</td>")


def _measured(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _fairness(card: Mapping[str, Any]) -> str:
    """How honest payments of each declared group were treated, or that nobody declared any."""
    declared, found = card.get("checks", {}).get("fairness_declared", 0), card.get("fairness", {})
    if not declared:
        return f"<p class=no>{NOT_DECLARED}</p>"
    said = f"<p>Alerts on honest payments, above the policy's review threshold; the gate allows {FAIRNESS_RATIO_MAX} at the lower end.</p>"
    if len(found) < declared:
        said += f"<p class=no>{declared - len(found):.0f} of {declared:.0f} declared columns were not in the data: never measured.</p>"
    for name, each in found.items():
        rows = [(row["group"], f"{row['honest']:,}", *_treated(row)) for row in each["groups"]]
        head = (f"{name.replace('_', ' ')} ({each['column']})", "honest payments", "alerted", "times as often as the others", "interval of 95 %")
        said += _table(head, rows)
    return said


def _treated(row: Mapping[str, Any]) -> tuple[str, str, str]:
    if row["ratio"] is None:
        return "too few to say", "", ""
    return f"{row['alerted']:.2%}", f"{row['ratio']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}"


def _own_limits(card: Mapping[str, Any]) -> list[str]:
    """What follows from how this one was made."""
    trained, empty = card["trained"], [m["name"] for m in card["members"] if not m["columns"]]
    days = (trained["until_at_ms"] - trained["from_at_ms"]) / 86_400_000
    limits = [f"Learned from {days:.0f} days and {trained['frauds']:,} frauds; kinds of fraud that are not among them it cannot know."]
    return limits + [f"The data had nothing for the member {name}: it says the same of every payment." for name in empty]


def _moves(moves: Sequence[Move]) -> str:
    return _table(("when", "what", "who", "why"), [(_moment(m.at_ms), str(m.act), m.by, m.why) for m in moves])


def _bands(item: Item | None) -> str:
    if item is None or not item.bands:
        return ""
    return _table(("outcome", "approved share of decisions"), [(b.outcome, f"{b.low:.1%} to {b.high:.1%}") for b in item.bands])


def _features(card: Mapping[str, Any], catalogue: Catalogue) -> str:
    """Every column that a member reads: what it is, and the reason that it gives."""
    read: dict[int, list[str]] = {}
    for member in card["members"]:
        for column in member["columns"]:
            read.setdefault(column, []).append(member["name"])
    rows = []
    for column, members in sorted(read.items()):
        name = card["features"][column]
        place = catalogue.index.get(name)
        why, reason = (catalogue.rows[place].why, catalogue.reason_of[place]) if place is not None else ("a column of the file", name)
        rows.append((name, why, reason, ", ".join(members)))
    return _table(("feature", "what it is", "reason code", "read by"), rows)


# Plots, as SVG.


def _reliability(card: Mapping[str, Any]) -> str:
    """How often it was fraud, against what the score said; the size of a point is the logarithm of its rows."""
    points = card.get("plots", {}).get("reliability", [])
    if not points:
        return "<p>No plot: there were no rows to measure on.</p>"
    dots = "".join(
        f'<circle cx="{_x(said):.1f}" cy="{_y(true):.1f}" r="{2 + math.log10(rows):.1f}" fill="#2456a6"><title>{rows:.0f} rows</title></circle>'
        for said, true, rows in points
    )
    line = " ".join(f"{_x(said):.1f},{_y(true):.1f}" for said, true, _ in points)
    diagonal = f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#999" stroke-dasharray="4 4"/>'
    body = (
        f'{diagonal}<polyline points="{line}" fill="none" stroke="#2456a6"/>{dots}{_axis("mean score of the range (0 to 1)", "share that was fraud")}'
    )
    return _figure(body, "Reliability: on the dashed line the score means what it says. Larger points are more rows.")


def _scores(card: Mapping[str, Any]) -> str:
    """How many honest and how many fraudulent payments got which score; the height is logarithmic, or the honest would hide all else."""
    counts = card.get("plots", {}).get("scores", [])
    if not counts:
        return ""
    top = math.log10(1 + max(max(pair) for pair in counts))
    step = (WIDE - 2 * EDGE) / len(counts)
    bars = ""
    for place, pair in enumerate(counts):
        for side, (count, colour) in enumerate(zip(pair, ("#8a8f98", "#b3321f"), strict=True)):
            high = math.log10(1 + count) / top * (HIGH - 2 * EDGE)
            left = EDGE + place * step + side * step / 2
            bars += f'<rect x="{left:.1f}" y="{HIGH - EDGE - high:.1f}" width="{step / 2 - 1:.1f}" height="{high:.1f}" fill="{colour}"/>'
    ends = f'<text x="{EDGE - 6}" y="{EDGE + 4}" text-anchor="end">{10**top - 1:,.0f}</text>'
    body = f"{bars}{_axis('score (0 to 1)', 'payments, logarithmic', ticks_up=False)}{ends}"
    return _figure(body, "Scores of the held-out payments: honest grey, fraud red.")


def _figure(body: str, caption: str) -> str:
    opening = f'<svg viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" height="{HIGH}" role="img" font-family="sans-serif" font-size="11">'
    return f"<figure>{opening}{body}</svg><figcaption>{escape(caption)}</figcaption></figure>"


def _axis(across: str, up: str, ticks_up: bool = True) -> str:
    """Both axes from 0 to 1 with their titles."""
    lines = f'<path d="M{EDGE} {EDGE} V{HIGH - EDGE} H{WIDE - EDGE}" fill="none" stroke="#333"/>'
    below = "".join(f'<text x="{_x(t):.1f}" y="{HIGH - EDGE + 15}" text-anchor="middle">{t:g}</text>' for t in (0, 0.25, 0.5, 0.75, 1))
    beside = "".join(f'<text x="{EDGE - 6}" y="{_y(t) + 4:.1f}" text-anchor="end">{t:g}</text>' for t in (0.5, 1)) if ticks_up else ""
    titles = f'<text x="{WIDE / 2}" y="{HIGH - 10}" text-anchor="middle">{escape(across)}</text><text x="{EDGE}" y="{EDGE - 14}">{escape(up)}</text>'
    return lines + below + beside + titles


def _x(value: float) -> float:
    return EDGE + value * (WIDE - 2 * EDGE)


def _y(value: float) -> float:
    return HIGH - EDGE - value * (HIGH - 2 * EDGE)


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
