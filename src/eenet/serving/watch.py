"""What a service counts and compares with what calibration promised, in constant memory."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

import numpy as np

from eenet.log import logger
from eenet.tables.costs import Budget

LATENCIES_MS = tuple(round(0.1 * 1.25**i, 6) for i in range(60))
"""Bounds of the bins of latencies: 0.1 ms to about a minute."""
SCORES = tuple(i / 20 for i in range(1, 20))
"""Bounds of the bins of probabilities."""
_FIRST = 200  # samples whose agreement is a reference
_SHADOWS = 200  # recent samples whose agreement is compared with it
_COSTS = 500  # recent samples whose cost is compared with what was promised
_LATENCIES = 512  # recent requests that the 99th percentile is read from
_JUDGED = 50  # samples between two looks at their cost
_ERRORS = 3.0  # standard errors


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


class _Window:
    """The mean of the newest values, from running sums."""

    def __init__(self, size: int) -> None:
        self.values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        self.values.append(value)

    @property
    def full(self) -> bool:
        return len(self.values) == self.values.maxlen

    @property
    def mean(self) -> float | None:
        return sum(self.values) / len(self.values) if self.values else None


class Watch:
    """Counts what a service does, and raises alarms; one thread at a time.

    *Agreement*: some samples run to the last exit too. Their answers agree with the last exit's in a share that
    calibration bounds from below: where the early answers are right in a share ``u`` and the last exit's in a share
    ``v``, at least ``u + v - 1`` of them are the same. The first 200 at a budget give a closer reference. *Cost*: what
    samples cost, beside what the policies that they followed cost on the calibration set. An alarm begins when the
    newest 200 answers, or 500 costs, are further off than chance explains (3 standard errors) and a little more (1
    point of agreement, 5 % of the cost), and ends when they are back within half of that.

    Args:
        stages: How many there are.
        max_batch: The largest batch.
    """

    def __init__(self, stages: int, max_batch: int) -> None:
        sizes = tuple(float(1 << i) for i in range((max_batch - 1).bit_length() + 1))
        self.requests = self.answered = self.refused = self.cancelled = self.failures = self.samples = 0
        self.exits = [0] * stages
        self.spent = 0.0
        self.batches = [Counts(sizes) for _ in range(stages)]
        self.scores = [Counts(SCORES) for _ in range(stages)]
        self.latencies = Counts(LATENCIES_MS)
        self.recent_latencies: deque[float] = deque(maxlen=_LATENCIES)
        self.shadows = 0
        self.alarms: dict[str, Alarm] = {}
        self._costs, self._promised = _Window(_COSTS), _Window(_COSTS)
        self._agreed = _Window(_SHADOWS)
        self._first: list[bool] = []
        self.bound: float | None = None

    def left(self, exit_index: int, scores: np.ndarray, cost: float, promised: list[float]) -> None:
        """Take in samples that were answered at one exit.

        Args:
            exit_index: That exit.
            scores: Probability of the answered class, of each.
            cost: Of leaving there; NaN: not known.
            promised: What each was expected to cost; NaN: not known, or a budget of its own.
        """
        self.samples += len(scores)
        self.exits[exit_index] += len(scores)
        counts = self.scores[exit_index]
        for score in scores.tolist():
            counts.add(score)
        self.spent += cost * len(scores)
        for one in promised:
            if not math.isnan(one + cost):
                self._costs.add(cost)
                self._promised.add(one)
        if self._costs.full and self.samples // _JUDGED > (self.samples - len(scores)) // _JUDGED:
            self._judge_cost()

    def latency(self, seconds: float) -> None:
        """Take in how long a request took."""
        self.answered += 1
        self.latencies.add(1e3 * seconds)
        self.recent_latencies.append(seconds)

    def turned(self, bound: float | None) -> None:
        """Take in that another budget is in force, and the least agreement that calibration promises at it."""
        self.bound = bound
        self._first.clear()
        self._agreed.values.clear()

    def shadow(self, agrees: bool) -> None:
        """Take in whether an answer is that of the last exit."""
        self.shadows += 1
        self._agreed.add(agrees)
        if len(self._first) < _FIRST:
            self._first.append(agrees)
        if self._agreed.full:
            self._judge_agreement()

    @property
    def agreement(self) -> float | None:
        """The recent agreement with the last exit."""
        return self._agreed.mean

    @property
    def promised_agreement(self) -> float | None:
        """The least agreement that was promised, or the first one at this budget where that is larger."""
        first = sum(self._first) / _FIRST if len(self._first) == _FIRST else None
        known = [one for one in (first, self.bound) if one is not None]
        return max(known, default=None)

    @property
    def recent_cost(self) -> float | None:
        """Mean cost of recent samples."""
        return self._costs.mean

    @property
    def promised_cost(self) -> float | None:
        """What these were expected to cost."""
        return self._promised.mean

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile of the latency of recent requests."""
        if not self.recent_latencies:
            return None
        return 1e3 * sorted(self.recent_latencies)[int(0.99 * (len(self.recent_latencies) - 1))]

    def _judge_agreement(self) -> None:
        promised, found = self.promised_agreement, self.agreement
        if promised is None or found is None:
            return
        share = min(max(promised, 1 / _FIRST), 1 - 1 / _FIRST)
        margin = 0.01 + _ERRORS * math.sqrt(share * (1 - share) * (1 / _SHADOWS + 1 / _FIRST))
        evidence = (
            f"{found:.1%} of the last {_SHADOWS} compared answers are those of the last exit, {promised:.1%} was "
            "promised"
        )
        self._judge("agreement", promised - found, margin, evidence)

    def _judge_cost(self) -> None:
        costs = np.array(self._costs.values)
        found, promised = float(costs.mean()), self._promised.mean
        assert promised is not None
        margin = 0.05 * promised + _ERRORS * float(costs.std()) / math.sqrt(len(costs))
        evidence = (
            f"the last {len(costs)} samples cost {found:.4g} in the mean, and the policies that they followed "
            f"{promised:.4g} on the calibration set"
        )
        self._judge("cost", abs(found - promised), margin, evidence)

    def _judge(self, name: str, off: float, margin: float, evidence: str) -> None:
        """Begin an alarm, bring its evidence up to date, or end it."""
        alarm = self.alarms.get(name)
        if alarm is None and off > margin:
            self.alarms[name] = Alarm(name, time.time(), evidence)
            logger.warning("alarm %s: %s", name, evidence)
        elif alarm is not None and off <= margin / 2:
            del self.alarms[name]
            logger.info("alarm %s is over: %s", name, evidence)
        elif alarm is not None:
            self.alarms[name] = Alarm(name, alarm.since, evidence)
