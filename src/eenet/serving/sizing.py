"""How many replicas each stage needs: from times per batch and shares of exits, checked by a simulation."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.optimize import brentq

from eenet.errors import InputError
from eenet.running.latency import Latency
from eenet.running.manifest import decoded
from eenet.serving.simulation import Pool, Simulated, simulate
from eenet.tables.checks import number
from eenet.tables.costs import CostTable
from eenet.tables.files import fault, read_object

_BATCH_SHARE = 0.25  # of the target for the latency that one batch may take, as the server has it
_FEWEST, _MOST = 50_000, 1_000_000  # requests of a simulation
_SPAN = 20  # targets for the latency that a simulation lasts, where it can
_ROUNDS = 60
_EVEN = 1e-3  # how far shares may be from 1 in sum
_NOTHING = {"median": 0.0, "low": 0.0, "high": 0.0}
_ABSENT = {"answer": _NOTHING, "length": None}
"""What a row of a profile of an older version lacks."""


@dataclass(frozen=True, kw_only=True)
class StageSize:
    """What one stage needs.

    Attributes:
        replicas: How many; 0 where no sample comes.
        rate: Samples per second that come.
        max_batch: The size of its batches at which a sample takes the least time.
        batch_ms: What such a batch takes.
        load: Share of their capacity, at such batches, that is used.
        mean_batch: Samples per batch in the simulation.
        p99_ms: The 99th percentile of the time spent there in the simulation, waiting included.
    """

    replicas: int
    rate: float
    max_batch: int
    batch_ms: float
    load: float
    mean_batch: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """What a load needs.

    Attributes:
        rate: Requests of one sample per second.
        slo_ms: The target for the 99th percentile of the latency.
        shares: Of the samples that leave at each exit.
        stages: What each stage needs.
        threads: Of the CPU, that each replica uses.
        p50_ms: Median of the latency in the simulation.
        p99_ms: Its 99th percentile.
        within: Share of the answers that come in time.
        requests: How many the simulation counted.
        full: Replicas that the original model needs, with the same batching; None: it cannot reach the target.
        servers: How many servers that each run all stages have the same capacity, by their times alone.
    """

    rate: float
    slo_ms: float
    shares: tuple[float, ...]
    stages: tuple[StageSize, ...]
    threads: int
    p50_ms: float
    p99_ms: float
    within: float
    requests: int
    full: int | None
    servers: int

    @property
    def replicas(self) -> int:
        """Of all stages."""
        return sum(stage.replicas for stage in self.stages)

    @property
    def goodput(self) -> float:
        """Answers in time, per second."""
        return self.rate * self.within

    @property
    def reached(self) -> bool:
        """Whether the target is met in the simulation."""
        return self.p99_ms <= self.slo_ms

    @property
    def verdict(self) -> str:
        """What the load needs, in a sentence or two."""
        listed = " + ".join(str(stage.replicas) for stage in self.stages)
        load = f"{self.rate:,.10g} requests/s within {self.slo_ms:g} ms"
        if not self.reached:
            return (
                f"{load} is not reached: with {self.replicas} replicas ({listed} by stage) p99 is {self.p99_ms:.3g} ms "
                "in the simulation. Allow more time, a smaller budget, or shorter waits for full batches."
            )
        servers = "1 server that runs all" if self.servers == 1 else f"{self.servers} servers that run all"
        full = "cannot reach this" if self.full is None else f"needs {self.full}"
        return (
            f"{load}: {self.replicas} replicas ({listed} by stage), or {servers}. The "
            f"full model {full}. In the simulation of the stages p99 is {self.p99_ms:.3g} ms, and {self.within:.2%} of "
            "the answers are in time."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        more = ("replicas", "goodput", "reached", "verdict")
        return asdict(self) | {name: getattr(self, name) for name in more}


def size_stages(
    latencies: Sequence[Latency],
    shares: Sequence[float],
    *,
    rate: float,
    slo_ms: float,
    max_batch: int = 32,
    max_wait_ms: float = 2.0,
    hop_ms: float = 0.0,
    load: float = 0.8,
    seed: int = 0,
) -> Sizing:
    """Return the replicas that each stage needs, so that the 99th percentile of the latency is within a target.

    Where every stage has replicas of its own, it needs at least as many as its samples fill, in batches of the size at
    which a sample takes the least time (of those that take at most a quarter of the target). From there on a
    simulation adds replicas where most time is lost, until the target is met. Requests of one sample come at random;
    before each stage they wait in one line. Other ways to share requests among replicas lose some of that.

    Args:
        latencies: What `eenet.running.latency.measure_latency` returns: times of one engine at several batch sizes.
        shares: Of the samples that leave at each exit; they sum to 1.
        rate: Requests per second.
        slo_ms: The target, in milliseconds.
        max_batch: The largest batch.
        max_wait_ms: How long a sample waits for a full batch at each stage, in milliseconds.
        hop_ms: What it takes to get a sample to a stage, such as over the network, in milliseconds.
        load: Share of its capacity that a stage may use, below 1.
        seed: Of the simulation.

    Raises:
        InputError: A value is out of range, shares do not fit, or the target is below what a sample computes alone.
    """
    rows = sorted(latencies, key=lambda row: row.batch_size)
    given = _checked_shares(shares, rows)
    rate, slo_s = number(rate, "rate", above=0, high=1e9), number(slo_ms, "slo_ms", above=0, high=1e6) / 1e3
    largest = int(number(max_batch, "max_batch", 1, 4096, whole=True))
    wait_s, hop_s = number(max_wait_ms, "max_wait_ms", 0) / 1e3, number(hop_ms, "hop_ms", 0) / 1e3
    load = number(load, "load", above=0, below=1)
    reach = np.cumsum(given[::-1])[::-1]
    seconds = [_best_batches(one, slo_s) for one in stage_seconds(rows, given, largest)]
    if (needed := _alone(seconds, given, hop_s)) > slo_s:
        raise InputError(
            f"slo_ms {1e3 * slo_s:g} is out of reach: of 100 samples one computes at least {1e3 * needed:.4g} ms, even "
            "alone on idle replicas. Allow more time, or a smaller budget."
        )
    search = _Search(rate=rate, slo_s=slo_s, wait_s=wait_s, hop_s=hop_s, load=load, seed=int(number(seed, "seed")))
    pools, found = search.run(seconds, given)
    each = np.array([one[-1] / len(one) for one in seconds])
    return Sizing(
        rate=rate,
        slo_ms=1e3 * slo_s,
        shares=tuple(given.tolist()),
        stages=_stage_sizes(pools, found, rate * reach),
        threads=rows[0].threads,
        p50_ms=found.p50_ms,
        p99_ms=found.p99_ms,
        within=found.within,
        requests=found.requests,
        full=search.full(_best_batches(_seconds(rows, lambda row: row.full.median, largest), slo_s)),
        servers=max(1, math.ceil(rate * float(reach @ each) / load)),
    )


def _stage_sizes(pools: Sequence[Pool], found: Simulated, rates: Float64[np.ndarray, " exit"]) -> tuple[StageSize, ...]:
    return tuple(
        StageSize(
            replicas=pool.replicas if rate > 0 else 0,
            rate=rate,
            max_batch=len(pool.seconds),
            batch_ms=1e3 * float(pool.seconds[-1]),
            load=rate * float(pool.seconds[-1]) / len(pool.seconds) / pool.replicas,
            mean_batch=0.0 if ran is None else ran.mean_batch,
            p99_ms=0.0 if ran is None else ran.p99_ms,
        )
        for pool, ran, rate in zip(pools, found.stages, rates.tolist(), strict=True)
    )


def stage_seconds(
    latencies: Sequence[Latency], shares: Float64[np.ndarray, " exit"], max_batch: int
) -> list[Float64[np.ndarray, " size"]]:
    """Return what each stage takes for batches of 1 to ``max_batch`` samples, in seconds; decisions included.

    Between the sizes that were measured the times of batches are joined by lines; beyond the largest, a sample takes
    as long as there. The answers of those that leave are counted where they leave.

    Args:
        latencies: Of one engine, by growing batch size.
        shares: As of `size_stages`.
        max_batch: The largest batch.
    """
    reach = np.cumsum(shares[::-1])[::-1]
    leaving = np.divide(shares, reach, out=np.zeros_like(shares), where=reach > 0)
    last = len(shares) - 1

    def stage(k: int) -> Float64[np.ndarray, " size"]:
        def taken(row: Latency) -> float:
            parts = row.stages[k].median + row.heads[k].median + float(leaving[k]) * row.answer.median
            return parts + (0.0 if k else row.start.median) + (row.decisions[k].median if k < last else 0.0)

        return _seconds(latencies, taken, max_batch)

    return [stage(k) for k in range(len(shares))]


def _seconds(
    latencies: Sequence[Latency], taken: Callable[[Latency], float], max_batch: int
) -> Float64[np.ndarray, " size"]:
    """Return the seconds of batches of 1, 2, ... samples, given what one sample takes at each size, in ms."""
    known = np.array([row.batch_size for row in latencies], dtype=np.float64)
    whole = known * np.array([taken(row) for row in latencies])
    sizes = np.arange(1.0, max_batch + 1)
    found = np.interp(sizes, known, whole)
    found = np.where(sizes > known[-1], whole[-1] / known[-1] * sizes, found)
    rising: np.ndarray = np.maximum.accumulate(np.maximum(found, 1e-6))  # more samples never take less time
    return rising / 1e3


def _best_batches(seconds: Float64[np.ndarray, " size"], slo_s: float) -> Float64[np.ndarray, " kept"]:
    """Return the times up to the batch at which a sample takes the least time, of those that are quick enough."""
    quick = max(int((seconds <= _BATCH_SHARE * slo_s).sum()), 1)
    each = seconds[:quick] / np.arange(1, quick + 1)
    return seconds[: int(each.argmin()) + 1]


def _alone(seconds: Sequence[np.ndarray], shares: np.ndarray, hop_s: float) -> float:
    """Return within how many seconds 99 of 100 samples are answered that find all replicas idle, and no company."""
    times = np.cumsum([one[0] + hop_s for one in seconds])
    return float(times[int((np.cumsum(shares) < 0.99 - 1e-12).sum())])


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Looks for the fewest replicas that meet a target."""

    rate: float
    slo_s: float
    wait_s: float
    hop_s: float
    load: float
    seed: int

    def run(self, seconds: Sequence[np.ndarray], shares: Float64[np.ndarray, " exit"]) -> tuple[list[Pool], Simulated]:
        """Return the pools of all stages, and what their simulation says."""
        reach = np.cumsum(shares[::-1])[::-1]
        pools = [
            Pool(replicas=self._least(one, self.rate * float(r)), seconds=one, max_wait_s=self.wait_s)
            for one, r in zip(seconds, reach, strict=True)
        ]
        for _ in range(_ROUNDS):
            found = self._simulated(pools, shares)
            if found.p99_ms <= 1e3 * self.slo_s:
                break
            lost = [
                0.0 if ran is None else ran.p99_ms - 1e3 * float(pool.seconds[0])
                for pool, ran in zip(pools, found.stages, strict=True)
            ]
            worst = int(np.argmax(lost))
            more = pools[worst].replicas + max(1, pools[worst].replicas // 20)
            pools[worst] = replace(pools[worst], replicas=more)
        return pools, found

    def full(self, seconds: np.ndarray) -> int | None:
        """Return how many replicas of a model without exits meet the target; None: none do."""
        if _alone([seconds], np.ones(1), self.hop_s) > self.slo_s:
            return None
        pools, found = self.run([seconds], np.ones(1))
        return pools[0].replicas if found.p99_ms <= 1e3 * self.slo_s else None

    def _least(self, seconds: np.ndarray, rate: float) -> int:
        """Return how many replicas are filled to no more than is allowed."""
        return max(1, math.ceil(rate * float(seconds[-1]) / len(seconds) / self.load - 1e-9))

    def _simulated(self, pools: Sequence[Pool], shares: Float64[np.ndarray, " exit"]) -> Simulated:
        requests = int(min(max(_SPAN * self.slo_s * self.rate, _FEWEST), _MOST))
        settings: dict[str, Any] = {"rate": self.rate, "slo_s": self.slo_s, "hop_s": self.hop_s, "seed": self.seed}
        return simulate(pools, shares, requests=requests, **settings)


def _checked_shares(shares: Sequence[float], rows: Sequence[Latency]) -> Float64[np.ndarray, " exit"]:
    if not rows:
        raise InputError("latencies are empty: there are no times to size by. Pass those of one batch size at least.")
    if len(kinds := {(row.engine, row.dtype, row.length, len(row.stages)) for row in rows}) > 1:
        raise InputError(
            f"latencies of {len(kinds)} engines, formats or lengths do not fit together. Pass those of one."
        )
    found = np.array([number(one, f"share of exit {k}", 0, 1) for k, one in enumerate(shares)], dtype=np.float64)
    if len(found) != len(rows[0].stages) or abs(found.sum() - 1) > _EVEN:
        listed = ", ".join(f"{one:.4g}" for one in found)
        raise InputError(
            f"shares {listed} do not fit: there are {len(rows[0].stages)} exits, and the shares of all sum to 1. Pass "
            "one per exit."
        )
    even: np.ndarray = found / found.sum()
    return even


def likely_shares(costs: CostTable, mean_cost: float) -> tuple[float, ...]:
    """Return the shares of exits that say no more than a mean cost: those of the largest entropy.

    An estimate, where nothing else is known: shares fall or rise exponentially with the cost of the exit.

    Args:
        costs: Of the exits.
        mean_cost: In their unit; beyond the cheapest or the last exit, all leave there.
    """
    values = np.array(costs.cumulative)
    scaled = (values - values[0]) / (values[-1] - values[0])
    wanted = (float(mean_cost) - values[0]) / (values[-1] - values[0])

    def at(slope: float) -> Float64[np.ndarray, " exit"]:
        weights = slope * scaled
        weights = np.exp(weights - weights.max())
        return np.asarray(weights / weights.sum())

    steep = 1e4
    if wanted <= float(at(-steep) @ scaled) + 1e-9:
        return tuple(np.eye(len(values))[0].tolist())
    if wanted >= float(at(steep) @ scaled) - 1e-9:
        return tuple(np.eye(len(values))[-1].tolist())
    slope = brentq(lambda one: float(at(one) @ scaled) - wanted, -steep, steep, xtol=1e-9)
    return tuple(at(slope).tolist())


def load_latencies(
    path: str | os.PathLike[str],
    engine: str | None = None,
    dtype: str | None = None,
    length: int | None = None,
) -> tuple[Latency, ...]:
    """Read the times of one engine, at all batch sizes, from what ``eenet profile`` wrote.

    Args:
        path: The JSON file.
        engine: Whose times; needed if several were measured.
        dtype: In which number format; needed if several were measured.
        length: At how many tokens of the texts; needed if several were measured.

    Raises:
        InputError: The file is missing or damaged, has no such times, or those of several.
    """
    listed = read_object(path, "latency").get("latency")
    try:
        rows = [decoded(Latency, _ABSENT | row, f"latency[{i}]") for i, row in enumerate(listed or ())]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"latency {path} is damaged: {fault(error)}. Write it with eenet profile.") from error
    asked = {"engine": engine, "dtype": dtype, "length": length}
    wanted = {name: value for name, value in asked.items() if value is not None}
    fitting = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    if wrong := [row.batch_size for row in rows if row.batch_size < 1]:
        raise InputError(f"latency {path} is damaged: its batch size is {wrong[0]}. Write it with eenet profile.")
    kinds = {(row.engine, row.dtype, row.length) for row in fitting}
    if len(kinds) != 1:
        measured = sorted({f"{row.engine} {row.dtype} {row.length or ''}".rstrip() for row in rows})
        fault_of = "was not measured" if not kinds else "is not unique"
        what = " and ".join(f"{name} {value}" for name, value in wanted.items()) or "time of stages"
        raise InputError(f"{what} {fault_of}: {path} contains {', '.join(measured) or 'none'}. Choose one of these.")
    return tuple(sorted(fitting, key=lambda row: row.batch_size))
