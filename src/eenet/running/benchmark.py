"""Timing adaptive inference against the original model: ``eenet bench``."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from eenet.errors import InputError
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer, exit_distribution
from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines import Engine, as_engine, suited
from eenet.running.engines.base import each_exit
from eenet.running.inputs import Inputs, rows_of
from eenet.running.latency import Seconds, Spread, summarise, threads_of, time_stages
from eenet.running.measuring import FlopReport, measure_flops
from eenet.running.progress import track
from eenet.tables.arrays import batch_size
from eenet.tables.table import ExitTable

_WORTH_JUDGING = 1.05  # below this ideal speed-up, the efficiency would be a ratio of noise
_RECORD_SIZES = (64, 48, 96, 24)


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One engine at one batch size; times in milliseconds per sample.

    Attributes:
        engine: Name of the engine.
        dtype: Number format.
        batch_size: Samples per batch.
        full_ms: The original model without exits, median over passes.
        adaptive_ms: With the policy, median over passes.
        full_spread: Quartiles over passes.
        adaptive_spread: Quartiles over passes.
        regrouped_ms: With the policy, samples that stay waiting for full batches (`AdaptiveModel.predict_all`), median
            over passes; None at batch size 1.
        speedup: How many times faster the adaptive passes were.
        ideal_speedup: What the engine's own stage and head times allow, if deciding and dropping samples were free.
        ideal_speedup_flops: What the operations allow.
        efficiency: Share of the ideal saving that was realised; None where almost nothing can be saved.
        efficiency_spread: Quartiles of the same, worked out for each pass.
        regrouped_efficiency: As `efficiency`, of the regrouped passes.
        regrouped_efficiency_spread: Quartiles of the same.
        flips: Samples that left at another exit than in a replay of outputs recorded at another batch size.
        exit_distribution: Share of samples that left at each exit.
    """

    engine: str
    dtype: str
    batch_size: int
    full_ms: float
    adaptive_ms: float
    full_spread: tuple[float, float]
    adaptive_spread: tuple[float, float]
    regrouped_ms: float | None
    speedup: float
    ideal_speedup: float
    ideal_speedup_flops: float
    efficiency: float | None
    efficiency_spread: tuple[float, float] | None
    regrouped_efficiency: float | None
    regrouped_efficiency_spread: tuple[float, float] | None
    flips: int
    exit_distribution: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All rows, and where they were measured.

    Attributes:
        device: Where it ran.
        threads: Of the CPU.
        samples: How many samples a pass covers.
        passes: How many passes were timed.
        rows: One per engine and batch size.
    """

    device: str
    threads: int
    samples: int
    passes: int
    rows: tuple[BenchRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of ``eenet bench --json``."""
        return asdict(self)


@dataclass(kw_only=True)
class _Lane:
    """One engine at one batch size, and what was measured of it.

    Attributes:
        times: Milliseconds per sample of every pass: ``full``, ``adaptive``, ``regrouped``, ``ideal``.
        exit_index: Where each sample left in the last pass.
    """

    engine: Engine
    policy: Policy
    inputs: Inputs
    size: int
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    exit_index: Int[np.ndarray, " sample"] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def bench(
    model: Any,  # noqa: ANN401 - a `MultiExitModel`
    policy: Policy,
    inputs: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 32, 128),
    engines: Sequence[Engine] | None = None,
    passes: int = 7,
    seed: int = 0,
    progress: bool = True,
) -> BenchReport:
    """Time passes over the same samples, the original model and the adaptive one in turns.

    Each pass takes a new random order. A time is the whole pass divided by the number of samples; medians over
    passes are reported. Both run on the same engine; the default is the one that `AdaptiveModel` makes of a model.

    Args:
        model: The `MultiExitModel`; its operations are counted, and flips are counted against its recorded outputs.
        policy: Where to leave.
        inputs: The samples, as the model takes them.
        batch_sizes: Samples per batch; none may exceed the number of samples.
        engines: What to time; default: the eager engine.
        passes: How many passes are timed, after one to warm up.
        seed: Of the orders.
        progress: Show a bar on stderr if it takes more than two seconds.

    Raises:
        InputError: No batch size, a batch size out of range, or no passes.
        ShapeError: Policy, engines and model disagree on the number of exits, or policy and model on that of classes.
    """
    count = batch_size(inputs)
    if passes < 1 or not batch_sizes or min(batch_sizes) < 1 or max(batch_sizes) > count:
        raise InputError(
            f"batch_sizes {list(batch_sizes)} with {passes} passes cannot be timed: sizes must lie in 1 to {count} "
            "(the number of samples) and passes be at least 1. Pass other sizes or more samples."
        )
    policy.require(model.num_exits)
    engines = [suited(engine, inputs) for engine in engines or (as_engine(model),)]
    flops = measure_flops(model, rows_of(inputs, slice(0, 2)))
    expected = _replayed(model, policy, inputs, batch_sizes)
    lanes = [
        _Lane(engine=engine, policy=policy, inputs=inputs, size=size) for engine in engines for size in batch_sizes
    ]
    for lane in lanes:
        _time(lane, passes, seed, progress=progress)
    return BenchReport(
        device=engines[0].device,
        threads=threads_of(engines[0]),
        samples=count,
        passes=passes,
        rows=tuple(_row(lane, flops, expected) for lane in lanes),
    )


def _replayed(model: object, policy: Policy, inputs: Inputs, batch_sizes: Sequence[int]) -> Int[np.ndarray, " sample"]:
    """Return where replay lets each sample leave, on outputs recorded at a batch size that is not timed."""
    engine, count = suited(as_engine(model, optimise=False), inputs), batch_size(inputs)
    size = _record_size(count, batch_sizes)
    parts = []
    with engine.session():
        for first in range(0, count, size):
            said = list(each_exit(engine, rows_of(inputs, slice(first, first + size))))
            parts.append(np.stack([seen for seen, _ in said], axis=1))
    outputs = np.concatenate(parts)
    if said[0][1] is None:
        table = ExitTable(logits=outputs)
    else:
        table = ExitTable(features=outputs, utility=np.zeros(outputs.shape[:2]))
    return Replayer(table).exit_index(policy)


def _record_size(count: int, batch_sizes: Sequence[int]) -> int:
    """Return a batch size for which there are samples and that is not timed; all of them where every size is timed."""
    wanted = (min(size, count) for size in (*_RECORD_SIZES, max(batch_sizes) + 1, *range(count, 0, -1)))
    return next((size for size in wanted if size not in batch_sizes), count)


def _time(lane: _Lane, passes: int, seed: int, *, progress: bool) -> None:
    """Time the passes of one engine at one batch size; the first one warms up and does not count."""
    orders, count = np.random.default_rng(seed), batch_size(lane.inputs)
    adaptive = AdaptiveModel(lane.engine, lane.policy)
    text = f"timing {lane.engine.name}, batch size {lane.size}"
    for turn in track(range(passes + 1), passes + 1, text, enabled=progress):
        order = orders.permutation(count)
        times = _pass(lane, adaptive, order, turn)
        for way, value in times.items() if turn else ():
            lane.times[way].append(value)


def _pass(lane: _Lane, adaptive: AdaptiveModel, order: np.ndarray, turn: int) -> dict[str, float]:
    """Run all samples once in every way, another way being the first in each pass; return the times per sample."""
    engine, count = lane.engine, len(order)
    chunks = [order[first : first + lane.size] for first in range(0, count, lane.size)]
    batches = [rows_of(lane.inputs, rows) for rows in chunks]
    found: list[np.ndarray] = []
    staged: list[Seconds] = []
    ways: dict[str, Callable[[], object]] = {
        "full": lambda: [engine.full(batch) for batch in batches],
        "adaptive": lambda: found.extend(
            adaptive(batch, ids).exit_index for batch, ids in zip(batches, chunks, strict=True)
        ),
        "staged": lambda: staged.extend(time_stages(engine, batch) for batch in batches),
    }
    if lane.size > 1:
        ways["regrouped"] = lambda: adaptive.predict_all(batches, sample_ids=order)
    times: dict[str, float] = {}
    names = list(ways)
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
        engine.synchronise()
        began = time.perf_counter()
        ways[name]()
        engine.synchronise()
        times[name] = 1e3 * (time.perf_counter() - began) / count
    lane.exit_index = np.concatenate(found)[np.argsort(order)]
    # as if everything but stages and heads were free
    means = {part: sum(run[part] * len(rows) for run, rows in zip(staged, chunks, strict=True)) for part in staged[0]}
    parts = summarise(engine, lane.size, [{part: seconds / count for part, seconds in means.items()}])
    return times | {"ideal": float(np.array(parts.computing)[lane.exit_index].mean())}


def _row(lane: _Lane, flops: FlopReport, expected: np.ndarray) -> BenchRow:
    """Return the row of the report for one engine at one batch size."""
    spreads = {way: Spread.of(values) for way, values in lane.times.items()}
    full, adaptive, ideal = (spreads[way] for way in ("full", "adaptive", "ideal"))
    regrouped = spreads.get("regrouped")
    alone, together = _efficiency(lane.times, "adaptive"), _efficiency(lane.times, "regrouped")
    return BenchRow(
        engine=lane.engine.name,
        dtype=lane.engine.dtype,
        batch_size=lane.size,
        full_ms=full.median,
        adaptive_ms=adaptive.median,
        full_spread=(full.low, full.high),
        adaptive_spread=(adaptive.low, adaptive.high),
        regrouped_ms=None if regrouped is None else regrouped.median,
        speedup=full.median / adaptive.median,
        ideal_speedup=full.median / ideal.median,
        ideal_speedup_flops=flops.reference / float(np.array(flops.cumulative)[lane.exit_index].mean()),
        efficiency=alone[0],
        efficiency_spread=alone[1],
        regrouped_efficiency=together[0],
        regrouped_efficiency_spread=together[1],
        flips=int((lane.exit_index != expected).sum()),
        exit_distribution=tuple(exit_distribution(lane.exit_index, lane.engine.num_exits).tolist()),
    )


def _efficiency(times: Mapping[str, Sequence[float]], way: str) -> tuple[float | None, tuple[float, float] | None]:
    """Return the share of the ideal saving that a way realised, of the medians and as quartiles over passes."""
    if way not in times:
        return None, None
    full, realised, ideal = (np.array(times[name]) for name in ("full", way, "ideal"))
    medians = np.median([full, realised, ideal], axis=1).tolist()
    if medians[0] <= _WORTH_JUDGING * medians[2]:
        return None, None
    saved = full > ideal
    spread = Spread.of((full - realised)[saved] / (full - ideal)[saved])
    return (medians[0] - medians[1]) / (medians[0] - medians[2]), (spread.low, spread.high)
