"""A discrete-event simulation of stages behind each other, each with replicas that run batches."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

_WARM_UP = 0.1  # share of the requests that find replicas idle, and are not counted


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The replicas of one stage, before which samples wait in one line, the first come first.

    A batch starts on the replica that is idle, or becomes so first, as soon as it is full or its first sample has
    waited long enough. It has all samples that wait by then, up to the largest batch.

    Attributes:
        replicas: How many there are.
        seconds: Which a batch of 1, 2, ... samples takes; there is no larger one.
        max_wait_s: How long a sample waits for company, in seconds.
    """

    replicas: int
    seconds: Float64[np.ndarray, " size"]
    max_wait_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What became of the samples that came to a pool.

    Attributes:
        ends: When the batch of each sample ended, in the order they came, in seconds.
        batches: How many samples each batch had.
        busy_s: How many seconds the replicas ran, all together.
    """

    ends: Float64[np.ndarray, " sample"]
    batches: Int[np.ndarray, " batch"]
    busy_s: float


def passed(arrivals: Float64[np.ndarray, " sample"], pool: Pool) -> Passed:
    """Run a pool on samples that come at some times, in seconds, which do not fall.

    The time of this function grows with the number of batches: samples are only counted.
    """
    times, seconds = arrivals.tolist(), pool.seconds.tolist()
    count, most, wait = len(times), len(seconds), pool.max_wait_s
    free = [0.0] * pool.replicas  # when each replica is idle: a heap
    sizes, ends = [], []
    busy, first = 0.0, 0
    while first < count:
        due = times[first] + wait
        if first + most <= count:
            due = min(due, times[first + most - 1])
        start = max(free[0], due)
        size = bisect_right(times, start, first, min(first + most, count)) - first
        taken = seconds[size - 1]
        heapq.heapreplace(free, start + taken)
        busy += taken
        sizes.append(size)
        ends.append(start + taken)
        first += size
    batches = np.array(sizes, dtype=np.int64)
    return Passed(ends=np.repeat(np.array(ends), batches), batches=batches, busy_s=busy)


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """What a stage did in a simulation.

    Attributes:
        utilisation: Share of the time that its replicas ran.
        mean_batch: Samples per batch.
        p99_ms: Of the time from arrival to the end of the stage, waiting included.
    """

    utilisation: float
    mean_batch: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What requests of one sample each went through.

    Attributes:
        requests: How many were counted.
        p50_ms: Median of the latency.
        p99_ms: Its 99th percentile.
        within: Share that was answered in time.
        stages: What each stage did; None of one that nobody reached.
    """

    requests: int
    p50_ms: float
    p99_ms: float
    within: float
    stages: tuple[StageRun | None, ...]


def simulate(
    pools: Sequence[Pool],
    shares: Float64[np.ndarray, " exit"],
    *,
    rate: float,
    slo_s: float,
    requests: int,
    hop_s: float = 0.0,
    seed: int = 0,
) -> Simulated:
    """Let requests come at random (a Poisson process) and pass stage by stage, each leaving where chance lets it.

    Args:
        pools: One per stage.
        shares: Of the samples that leave at each exit; they sum to 1.
        rate: Requests per second.
        slo_s: In how many seconds an answer is in time.
        requests: How many come. The first tenth is not counted: it finds replicas idle.
        hop_s: What it takes to get to a stage, in seconds, each time.
        seed: Of arrivals and exits. The same seed gives the same arrivals, stretched, at any rate.
    """
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(size=requests)) / rate
    exits = np.searchsorted(np.cumsum(shares)[:-1], rng.random(requests), side="right")
    counted = np.arange(requests) >= _WARM_UP * requests
    now, inside = arrivals.copy(), np.arange(requests)
    stages: list[StageRun | None] = []
    for k, pool in enumerate(pools):
        if not len(inside):
            stages.append(None)
            continue
        came = now[inside] + hop_s
        order = np.argsort(came, kind="stable")
        inside, came = inside[order], came[order]
        run = passed(came, pool)
        now[inside] = run.ends
        span = max(run.ends[-1], came[-1]) - came[0] + 1e-12
        late = counted[inside]
        stages.append(
            StageRun(
                utilisation=run.busy_s / (pool.replicas * span),
                mean_batch=float(run.batches.mean()),
                p99_ms=_percentile_ms((run.ends - came)[late] if late.any() else run.ends - came, 99),
            )
        )
        inside = inside[exits[inside] > k]
    latency = (now - arrivals)[counted]
    return Simulated(
        requests=int(counted.sum()),
        p50_ms=_percentile_ms(latency, 50),
        p99_ms=_percentile_ms(latency, 99),
        within=float((latency <= slo_s).mean()),
        stages=tuple(stages),
    )


def _percentile_ms(seconds: Float64[np.ndarray, " sample"], percent: int) -> float:
    return 1e3 * float(np.percentile(seconds, percent))
