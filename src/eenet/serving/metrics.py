"""The numbers of a service in the text format of Prometheus, and as JSON for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from eenet.serving.service import Service
from eenet.serving.watch import Histogram, Snapshot
from eenet.tables.costs import CostTable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ALARMS = ("agreement", "cost")
"""Names of what can leave what calibration promised."""

_SHOWN = (
    *("ready", "requests", "answered", "refused", "samples", "failures", "waiting", "oldest_wait_s", "exits", "turns"),
    *("unit", "mean_cost", "recent_cost", "in_force", "slo_ms", "recent_p99_ms", "shadows", "agreement"),
    "promised_agreement",
)


def prometheus_text(name: str, service: Service) -> bytes:
    """Return what Prometheus reads at ``/metrics``.

    Args:
        name: Of the model, a label of every metric.
        service: Whose numbers.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(name, service.snapshot()))
    return generate_latest(registry)


class _Numbers(Collector):
    """Metrics of one moment.

    Args:
        name: Of the model.
        now: Its numbers.
    """

    def __init__(self, name: str, now: Snapshot) -> None:
        self._name, self._now = name, now

    def collect(self) -> Iterable[Metric]:
        yield from self._totals()
        yield from self._stages()
        yield from self._budget()
        yield from self._promise()

    def _totals(self) -> Iterator[Metric]:
        now = self._now
        yield self._counter("requests", "Requests that were accepted", now.requests)
        yield self._counter("answers", "Requests that were answered", now.answered)
        yield self._counter("refused", "Requests that were refused because the queue was full", now.refused)
        yield self._counter("cancelled", "Requests that were dropped before they were finished", now.cancelled)
        yield self._counter("samples", "Samples that were answered", now.samples)
        yield self._counter("failures", "Samples that could not be answered", now.failures)
        yield self._gauge("ready", "1 while requests are taken", float(now.ready))
        seconds = _scaled(now.latency_ms, 1e-3)
        yield self._histogram("latency_seconds", "From being accepted to being answered", [((), seconds)])

    def _stages(self) -> Iterator[Metric]:
        now = self._now
        exits = CounterMetricFamily("eenet_exit_samples", "Samples answered at each exit", labels=["model", "exit"])
        for k, count in enumerate(now.exits):
            exits.add_metric([self._name, str(k)], count)
        yield exits
        for name, text, values in (
            ("waiting_samples", "Samples that wait before each stage", now.waiting),
            ("oldest_wait_seconds", "How long the oldest of them has waited there", now.oldest_wait_s),
            ("stage_seconds", "Recent time of a stage per batch", [_times(value, 1e-3) for value in now.stage_ms]),
        ):
            found = GaugeMetricFamily(f"eenet_{name}", text, labels=["model", "stage"])
            for k, value in enumerate(values):
                if value is not None:
                    found.add_metric([self._name, str(k)], value)
            yield found
        batches = [(("stage", str(k)), one) for k, one in enumerate(now.batches)]
        yield self._histogram("batch_samples", "Samples per batch of a stage", batches)
        scores = [(("exit", str(k)), one) for k, one in enumerate(now.scores)]
        yield self._histogram("score", "Probability of the answered class", scores)

    def _budget(self) -> Iterator[Metric]:
        now = self._now
        for name, text, value in (
            (
                "budget_cost",
                "Mean cost per sample that was asked for",
                None if now.budget is None else now.budget.value,
            ),
            ("budget_in_force_cost", "Mean cost per sample that is aimed at under this load", now.in_force),
            ("target_cost", "What is asked of the dial so that this is met", now.target),
            ("mean_cost", "Mean cost of all answered samples", now.mean_cost),
            ("recent_cost", "Mean cost of recent samples", now.recent_cost),
            ("promised_cost", "What these cost on data like those of calibration", now.promised_cost),
            ("slo_seconds", "Target of the 99th percentile of the latency", _times(now.slo_ms, 1e-3)),
            ("recent_p99_seconds", "99th percentile of recent latencies", _times(now.recent_p99_ms, 1e-3)),
        ):
            if value is not None:
                yield self._gauge(name, text, value)
        turns = CounterMetricFamily(
            "eenet_turns", "How often the load turned the budget", labels=["model", "direction"]
        )
        for direction, count in zip(("down", "up"), now.turns, strict=True):
            turns.add_metric([self._name, direction], count)
        yield turns

    def _promise(self) -> Iterator[Metric]:
        now = self._now
        yield self._counter("shadows", "Samples that also ran to the last exit", now.shadows)
        for name, text, value in (
            ("agreement", "Share of recent shadows whose answer is that of the last exit", now.agreement),
            ("promised_agreement", "What it is compared with", now.promised_agreement),
        ):
            if value is not None:
                yield self._gauge(name, text, value)
        alarms = GaugeMetricFamily("eenet_alarm", "1 while a promise is left", labels=["model", "name"])
        on = {one.name for one in now.alarms}
        for name in (*ALARMS, *sorted(on.difference(ALARMS))):
            alarms.add_metric([self._name, name], float(name in on))
        yield alarms

    def _counter(self, name: str, text: str, value: float) -> Metric:
        found = CounterMetricFamily(f"eenet_{name}", text, labels=["model"])
        found.add_metric([self._name], value)
        return found

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        found = GaugeMetricFamily(f"eenet_{name}", text, labels=["model"])
        found.add_metric([self._name], value)
        return found

    def _histogram(self, name: str, text: str, parts: Iterable[tuple[tuple[str, ...], Histogram]]) -> Metric:
        """Return histograms, each with the name and the value of its label."""
        found: HistogramMetricFamily | None = None
        for label, one in parts:
            if found is None:
                found = HistogramMetricFamily(f"eenet_{name}", text, labels=["model", *label[:1]])
            found.add_metric([self._name, *label[1:]], _cumulative(one), one.total)
        return found or HistogramMetricFamily(f"eenet_{name}", text, labels=["model"])


def _cumulative(one: Histogram) -> list[tuple[str, float]]:
    """Return how many values are at most each bound, as Prometheus counts."""
    counted, seen = [], 0
    for bound, count in zip((*one.bounds, math.inf), one.counts, strict=True):
        seen += count
        counted.append(("+Inf" if bound == math.inf else f"{bound:.6g}", float(seen)))
    return counted


def _scaled(one: Histogram, factor: float) -> Histogram:
    return Histogram(tuple(bound * factor for bound in one.bounds), one.counts, one.total * factor)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def page_numbers(name: str, service: Service, costs: CostTable | None) -> dict[str, Any]:
    """Return what the page shows, as JSON-ready values.

    Args:
        name: Of the model.
        service: Whose numbers.
        costs: That budgets are asked in; None: the budget cannot be turned.
    """
    now = service.snapshot()
    return {
        "model": name,
        **{key: getattr(now, key) for key in _SHOWN},
        "budget": None if now.budget is None else {"text": now.budget.text, "value": now.budget.value},
        "costs": None if costs is None else {"low": costs.low, "high": costs.high, "full": costs.full},
        "latency_ms": {"p50": _finite(now.latency_ms.quantile(0.5)), "p99": _finite(now.latency_ms.quantile(0.99))},
        "mean_batch": [one.mean for one in now.batches],
        "mean_score": [one.mean for one in now.scores],
        "alarms": [{"name": one.name, "since": one.since, "evidence": one.evidence} for one in now.alarms],
    }


def _finite(value: float | None) -> float | None:
    """Return a quantile; None where it lies beyond the last bound."""
    return value if value is not None and math.isfinite(value) else None
