"""The metrics of every app: one table of rows (name, kind, labels, meaning), served to Prometheus. No label has unbounded values."""

from __future__ import annotations

import argparse
import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from schemas.errors import SettingsError
from streams.settings import Settings

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
REGISTRY = CollectorRegistry()


class Row(NamedTuple):
    """One metric. `labels`: each with the closed list that its values come from."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: dict[str, str]
    meaning: str


TABLE: tuple[Row, ...] = (
    Row("holdfast_decisions_total", "counter", {"outcome": "Outcome"}, "decisions given, by outcome"),
    Row("holdfast_stop_seconds", "histogram", {"stop": "recall look judge hold keep tell total"}, "time of each stop of the walk, seconds"),
    Row("holdfast_degradations_total", "counter", {"kind": "names in the code"}, "decisions made while something was missing, by what"),
    Row("holdfast_stand_ins_total", "counter", {"outcome": "Outcome"}, "answers kept on the stand-in's disk before the log had them, by outcome"),
    Row("holdfast_stand_ins_apart_total", "counter", {}, "answers of the stand-in that the log contradicts: somebody must look"),
    Row("holdfast_shed_total", "counter", {}, "requests refused at once because they could not be answered in time"),
    Row("holdfast_refused_total", "counter", {"code": "codes of schemas/errors.py"}, "requests refused, by code"),
    Row("holdfast_records_total", "counter", {"topic": "schemas/topics.py"}, "records followed to their end, by topic"),
    Row("holdfast_told_total", "counter", {"topic": "schemas/topics.py"}, "records written and acknowledged, by topic"),
    Row("holdfast_skipped_total", "counter", {"topic": "schemas/topics.py"}, "records not written again, because the log had them, by topic"),
    Row("holdfast_dead_letters_total", "counter", {"code": "codes of schemas/errors.py and refusals"}, "records that could not be applied, by code"),
    Row("holdfast_retries_total", "counter", {"part": "codes of Unavailable"}, "tries again, by the part that did not answer"),
    Row("holdfast_batch_seconds", "histogram", {"topic": "schemas/topics.py"}, "time of a batch, from taken to acknowledged, seconds"),
    Row("holdfast_lag_records", "gauge", {"topic": "schemas/topics.py"}, "records that this process has yet to follow, by topic"),
    Row("holdfast_assigned_partitions", "gauge", {}, "partitions that this process follows"),
    Row(
        "holdfast_iso8583_messages_total",
        "counter",
        {"work": "authorize capture reverse network response unknown broken"},
        "ISO 8583 messages that came, by what they ask for",
    ),
    Row("holdfast_iso8583_cut_total", "counter", {"why": "frame unreadable slow unread silent"}, "ISO 8583 connections cut, by why"),
    Row("holdfast_iso8583_lines", "gauge", {}, "open ISO 8583 connections"),
    Row("holdfast_stalled_seconds", "gauge", {}, "time since the watchdog last saw progress while there was lag, seconds"),
    Row("holdfast_drift_psi", "gauge", {"feature": "names of the catalogue, and `score`"}, "population stability index against training, by feature"),
    Row("holdfast_drift_ks", "gauge", {"feature": "names of the catalogue, and `score`"}, "Kolmogorov-Smirnov distance from training, by feature"),
    Row("holdfast_missing_family_share", "gauge", {"family": "families of the catalogue"}, "share of decisions without any value of a family"),
    Row("holdfast_label_delay_seconds", "gauge", {"quantile": "0.5 0.9"}, "time from a payment to its label, seconds"),
    Row("holdfast_precision", "gauge", {"outcome": "review block"}, "share of fraud among what was reviewed or blocked, as labels say"),
    Row("holdfast_calibration_ratio", "gauge", {}, "frauds that labels told of, over those that the scores promised; 1 is right"),
    Row("holdfast_alarm", "gauge", {"kind": "psi ks missing miscalibration", "of": "feature, family, score"}, "1 while it stands, 0 once cleared"),
    Row("holdfast_breach", "gauge", {"kind": "model policy"}, "1 while the decisions of the last minute lie outside the band that was approved"),
    Row("holdfast_second_opinions_total", "counter", {}, "decisions on which challengers and shadows gave their opinion too"),
    Row(
        "holdfast_second_opinions_dropped_total",
        "counter",
        {"why": "full log failed"},
        "decisions without second opinions: no room under load, not acknowledged, or a challenger or shadow failed",
    ),
    Row("holdfast_traces_total", "counter", {}, "traces that the collector has taken"),
    Row("holdfast_traces_dropped_total", "counter", {"why": "full unheard"}, "traces lost: no room under load, or the collector did not take them"),
    Row("holdfast_taken_out_total", "counter", {"kind": "model policy"}, "times that the breaker went back to the last good one"),
)

_KINDS: dict[str, Callable[..., Any]] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


def _made(row: Row) -> Any:
    extra = {"buckets": SECONDS} if row.kind == "histogram" else {}
    return _KINDS[row.kind](row.name.removesuffix("_total"), row.meaning, tuple(row.labels), registry=REGISTRY, **extra)


_BY_NAME: dict[str, Any] = {row.name: _made(row) for row in TABLE if row.name != "holdfast_stop_seconds"}

DECISIONS = _BY_NAME["holdfast_decisions_total"]
DEGRADATIONS = _BY_NAME["holdfast_degradations_total"]
STAND_INS = _BY_NAME["holdfast_stand_ins_total"]
STAND_INS_APART = _BY_NAME["holdfast_stand_ins_apart_total"]
SHED = _BY_NAME["holdfast_shed_total"]
REFUSED = _BY_NAME["holdfast_refused_total"]
RECORDS = _BY_NAME["holdfast_records_total"]
TOLD = _BY_NAME["holdfast_told_total"]
SKIPPED = _BY_NAME["holdfast_skipped_total"]
DEAD_LETTERS = _BY_NAME["holdfast_dead_letters_total"]
RETRIES = _BY_NAME["holdfast_retries_total"]
BATCHES = _BY_NAME["holdfast_batch_seconds"]
LAG = _BY_NAME["holdfast_lag_records"]
ASSIGNED = _BY_NAME["holdfast_assigned_partitions"]
MESSAGES = _BY_NAME["holdfast_iso8583_messages_total"]
CUT = _BY_NAME["holdfast_iso8583_cut_total"]
LINES = _BY_NAME["holdfast_iso8583_lines"]
BREACH = _BY_NAME["holdfast_breach"]
TRACES = _BY_NAME["holdfast_traces_total"]
TRACES_DROPPED = _BY_NAME["holdfast_traces_dropped_total"]
TAKEN_OUT = _BY_NAME["holdfast_taken_out_total"]
OPINIONS = _BY_NAME["holdfast_second_opinions_total"]
OPINIONS_DROPPED = _BY_NAME["holdfast_second_opinions_dropped_total"]
STALLED = _BY_NAME["holdfast_stalled_seconds"]
DRIFT_PSI = _BY_NAME["holdfast_drift_psi"]
DRIFT_KS = _BY_NAME["holdfast_drift_ks"]
MISSING_FAMILY = _BY_NAME["holdfast_missing_family_share"]
LABEL_DELAY = _BY_NAME["holdfast_label_delay_seconds"]
PRECISION = _BY_NAME["holdfast_precision"]
CALIBRATION = _BY_NAME["holdfast_calibration_ratio"]
CALIBRATION.set(math.nan)  # a gauge begins with 0, which would be the worst there is
ALARM = _BY_NAME["holdfast_alarm"]


class Tally:
    """One histogram's counts as plain numbers: an observation costs a third of prometheus_client's, and there are seven a decision."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.total = 0.0


_STOP: dict[str, Tally] = {stop: Tally() for stop in ("recall", "look", "judge", "hold", "keep", "tell", "total")}


class Stops(Collector):
    """Shows the tallies of the stops as one Prometheus histogram."""

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The histogram as it stands."""
        row = next(row for row in TABLE if row.name == "holdfast_stop_seconds")
        family = HistogramMetricFamily(row.name, row.meaning, labels=list(row.labels))
        bounds = [*map(str, SECONDS), "+Inf"]
        for stop, tally in _STOP.items():
            buckets = list(zip(bounds, itertools.accumulate(tally.counts), strict=True))
            family.add_metric([stop], buckets=buckets, sum_value=tally.total)
        return [family]


REGISTRY.register(Stops())
_OUTCOME: dict[str, Any] = {outcome: DECISIONS.labels(outcome) for outcome in ("approve", "review", "decline", "block")}


def observe(stop: str, seconds: float, count: int = 1) -> None:
    """Notes how long one stop of the walk took so many decisions, seconds each."""
    tally = _STOP[stop]
    tally.counts[bisect_left(SECONDS, seconds)] += count
    tally.total += seconds * count


def outcomes() -> dict[str, int]:
    """How many decisions this process has given, by outcome."""
    (family,) = DECISIONS.collect()
    return {sample.labels["outcome"]: int(sample.value) for sample in family.samples if sample.name.endswith("_total")}


def decided(outcome: str, degradations: Iterable[str], seconds: float) -> None:
    """Notes one decision and how long it took in all, seconds."""
    _OUTCOME[outcome].inc()
    observe("total", seconds)
    for kind in degradations:
        DEGRADATIONS.labels(kind).inc()


def table() -> str:
    """The table of metrics as Markdown, for the README."""
    lines = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{row.name}` | {row.kind} | {', '.join(row.labels)} | {row.meaning} |" for row in TABLE]
    return "\n".join(lines) + "\n"


def serve(settings: Settings) -> Callable[[], None]:
    """Serves the metrics at `metrics_host:metrics_port` if a port is set; returns what ends it. SettingsError where nobody can listen there."""
    if not settings.metrics_port:
        return lambda: None
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host, REGISTRY)
    except OSError as error:
        place = f"{settings.metrics_host}:{settings.metrics_port}"
        raise SettingsError(f"HOLDFAST_METRICS_HOST, HOLDFAST_METRICS_PORT: cannot listen at {place}: {error.strerror}") from None

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end


def command(argv: list[str], settings: Settings) -> int:
    """`holdfast metrics`: the table of metrics."""
    argparse.ArgumentParser(prog="holdfast metrics", description=__doc__).parse_args(argv)
    print(table(), end="")
    return 0
