"""What a service counts, in constant memory."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from eenet.tables.costs import Budget


@dataclass(frozen=True)
class Histogram:
    """How often values fell where.

    Attributes:
        bounds: Upper bounds of the bins, rising; a last bin has none.
        counts: Of each bin, one more than there are bounds.
        total: The sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """The mean of the values, None without any."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """Return the upper bound of the bin that such a share of the values lies in or below; None without any."""
        wanted, seen = share * self.count, 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound
        return None


class Counts:
    """A histogram that grows.

    Args:
        bounds: As of `Histogram`.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Take in a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def read(self) -> Histogram:
        """Return what was counted so far."""
        return Histogram(self.bounds, tuple(self.counts), self.total)


@dataclass(frozen=True)
class Alarm:
    """Something left what calibration promised.

    Attributes:
        name: ``agreement`` or ``cost``.
        since: When it began, in seconds since the epoch.
        evidence: In words, with numbers.
    """

    name: str
    since: float
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The numbers of a service at one moment, counted since it was made.

    Attributes:
        ready: Whether it takes requests.
        requests: Accepted.
        answered: Requests that were answered.
        refused: Requests that were refused because the queue was full.
        cancelled: Requests that nobody waited for any more, dropped before they were finished.
        samples: That were answered.
        failures: Samples that could not be answered.
        waiting: Samples before each stage.
        oldest_wait_s: How long the oldest of them has waited there, 0 without any.
        exits: Samples answered at each exit.
        batches: Batch sizes of each stage.
        stage_ms: Recent time of each stage per batch, in milliseconds; None before its first.
        unit: Of costs; None where costs are not known.
        mean_cost: Of the answered samples.
        recent_cost: Of about the last 500 of them.
        promised_cost: What was asked of the dial for these, which they would cost on data like those of calibration.
        budget: Asked for; None: the model's own policy decides.
        in_force: The mean cost per sample that is aimed at now: the budget, or less where the load asks for less.
        target: What is asked of the dial now so that this is met.
        scores: Probability of the answered class, at each exit.
        latency_ms: From being accepted to being answered, of requests.
        shadows: Samples that also ran to the last exit, to compare the answers.
        agreement: Share of the recent ones whose answer is that of the last exit; None without any.
        promised_agreement: What it is compared with, None as long as that is not known.
        alarms: That are on.
        turns: How often the load turned the budget, down and up.
        slo_ms: The target of the 99th percentile of the latency, None without one.
        recent_p99_ms: Of recent requests, None without any.
    """

    ready: bool
    requests: int
    answered: int
    refused: int
    cancelled: int
    samples: int
    failures: int
    waiting: tuple[int, ...]
    oldest_wait_s: tuple[float, ...]
    exits: tuple[int, ...]
    batches: tuple[Histogram, ...]
    stage_ms: tuple[float | None, ...]
    unit: str | None
    mean_cost: float | None
    recent_cost: float | None
    promised_cost: float | None
    budget: Budget | None
    in_force: float | None
    target: float | None
    scores: tuple[Histogram, ...]
    latency_ms: Histogram
    shadows: int
    agreement: float | None
    promised_agreement: float | None
    alarms: tuple[Alarm, ...]
    turns: tuple[int, int]
    slo_ms: float | None
    recent_p99_ms: float | None
