"""Timing adaptive inference against the original model: ``eenet bench``."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from eenet.core.policy import Policy
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer, exit_distribution
from eenet.errors import InputError
from eenet.inference.adaptive import AdaptiveModel
from eenet.inference.dense import DenseAdaptiveModel
from eenet.inference.engines import DenseEngine, EagerEngine, Engine, suited
from eenet.inference.fitting import require_classes, require_exits
from eenet.inference.flops import FlopReport, measure_flops
from eenet.inference.latency import Seconds, Spread, rows_of, summarise, time_stages
from eenet.inference.progress import track
from eenet.inference.record import outputs
from eenet.models.inputs import Inputs, batch_size
from eenet.models.model import MultiExitModel

__all__ = ["BenchReport", "BenchRow", "bench"]

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
            over passes; None at batch size 1, and for models of maps, which are not regrouped.
        speedup: How many times faster the adaptive passes were.
        ideal_speedup: What the engine's own stage and head times promise, were deciding and dropping samples free.
        ideal_speedup_flops: What the operations promise.
        efficiency: Share of the ideal saving that was realised; None where there is next to nothing to save.
        efficiency_spread: Quartiles of the same, worked out for each pass.
        regrouped_efficiency: As `efficiency`, of the regrouped passes.
        regrouped_efficiency_spread: Quartiles of the same.
        flips: Samples that left elsewhere than replay on logits recorded at another batch size says.
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


@dataclass(frozen=True)
class _Lane:
    """What runs: one engine at one batch size, on the same samples."""

    engine: Engine
    policy: Policy
    inputs: Inputs
    size: int


@dataclass(frozen=True)
class _Times:
    """What was measured in the passes of one engine at one batch size; milliseconds per sample."""

    full: list[float]
    adaptive: list[float]
    regrouped: list[float]
    ideal: list[float]
    exit_index: Tensor


def bench(
    model: MultiExitModel,
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

    Each pass draws a new random order. A time is the whole pass divided by the number of samples; medians over
    passes are reported. Both sides run on the same engine.

    Args:
        model: The multi-exit model; it counts operations, and records the logits that flips are judged by.
        policy: Where to leave.
        inputs: The samples, as the model takes them, on its device.
        batch_sizes: Samples per batch; none may exceed the number of samples.
        engines: What to time; default: the eager engine.
        passes: How many passes are timed, after one to warm up.
        seed: Of the orders.
        progress: Show a bar on stderr if it takes more than two seconds.

    Raises:
        InputError: No batch size, a batch size out of range, or no passes.
        ShapeError: Policy, engines and model disagree on the number of exits, or policy and model on that of classes.
    """
    _check(model, policy, inputs, batch_sizes, passes)
    engines = [suited(engine, inputs) for engine in engines or (EagerEngine(model),)]
    flops = measure_flops(model, rows_of(inputs, torch.arange(min(2, batch_size(inputs)))))
    expected = _replayed(model, policy, inputs, batch_sizes)
    lanes = [_Lane(engine, policy, inputs, size) for engine in engines for size in batch_sizes]
    rows = [_row(lane, _time(lane, passes, seed, progress=progress), flops, expected) for lane in lanes]
    return BenchReport(
        device=str(engines[0].device),
        threads=torch.get_num_threads(),
        samples=batch_size(inputs),
        passes=passes,
        rows=tuple(rows),
    )


def _check(model: MultiExitModel, policy: Policy, inputs: Inputs, batch_sizes: Sequence[int], passes: int) -> None:
    """Refuse what cannot be timed, before any work starts."""
    count = batch_size(inputs)
    if passes < 1 or not batch_sizes or min(batch_sizes) < 1 or max(batch_sizes) > count:
        raise InputError(
            f"batch_sizes {list(batch_sizes)} with {passes} passes cannot be timed: sizes must lie in 1 to {count} "
            "(the number of samples) and passes be at least 1. Pass other sizes or more samples."
        )
    require_exits(model.num_exits, policy)


def _replayed(
    model: MultiExitModel, policy: Policy, inputs: Inputs, batch_sizes: Sequence[int]
) -> Int[Tensor, " sample"]:
    """Return where replay lets each sample leave, on logits recorded at a batch size that is not timed."""
    engine = suited(EagerEngine(model, optimise=False), inputs)
    size = _record_size(batch_size(inputs), batch_sizes)
    chunks = torch.split(torch.arange(batch_size(inputs)), size)
    logits = torch.cat([outputs(engine, rows_of(inputs, rows)).cpu() for rows in chunks])
    require_classes(policy, logits.shape[2])
    return Replayer(ExitTable(logits=logits)).exit_index(copy.deepcopy(policy).to("cpu"))


def _record_size(count: int, batch_sizes: Sequence[int]) -> int:
    """Return a batch size that so many samples fill and that is not timed; all of them where every size is timed."""
    wanted = (min(size, count) for size in (*_RECORD_SIZES, max(batch_sizes) + 1, *range(count, 0, -1)))
    return next((size for size in wanted if size not in batch_sizes), count)


def _time(lane: _Lane, passes: int, seed: int, *, progress: bool) -> _Times:
    """Time the passes of one engine at one batch size; the first one warms up and does not count."""
    lane.policy.to(lane.engine.device)
    count = batch_size(lane.inputs)
    times = _Times([], [], [], [], torch.zeros(count, dtype=torch.long))
    generator = torch.Generator().manual_seed(seed)
    dense = isinstance(lane.engine, DenseEngine)
    adaptive = (DenseAdaptiveModel if dense else AdaptiveModel)(lane.engine, lane.policy)
    text = f"timing {lane.engine.name}, batch size {lane.size}"
    for turn in track(range(passes + 1), passes + 1, text, enabled=progress):
        _pass(lane, adaptive, torch.split(torch.randperm(count, generator=generator), lane.size), turn, times)
    return times


def _pass(
    lane: _Lane, adaptive: AdaptiveModel | DenseAdaptiveModel, chunks: Sequence[Tensor], turn: int, times: _Times
) -> None:
    """Run all samples once in every way, who begins changing from pass to pass."""
    engine = lane.engine
    batches = [rows_of(lane.inputs, rows) for rows in chunks]
    order = torch.cat(list(chunks))
    ids = [rows.to(engine.device) for rows in chunks]
    found: list[Tensor] = []
    staged: list[Seconds] = []
    sides: dict[str, Callable[[], object]] = {
        "full": lambda: [engine.full(batch) for batch in batches],
        "adaptive": lambda: found.extend(
            adaptive(batch, names).exit_index for batch, names in zip(batches, ids, strict=True)
        ),
        "staged": lambda: staged.extend(time_stages(engine, batch) for batch in batches),
    }
    if isinstance(adaptive, AdaptiveModel) and lane.size > 1:
        together = torch.cat(ids)
        sides["regrouped"] = lambda: adaptive.predict_all(batches, sample_ids=together)
    seconds: dict[str, float] = {}
    names = list(sides)
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
        engine.synchronise()
        began = time.perf_counter()
        sides[name]()
        engine.synchronise()
        seconds[name] = time.perf_counter() - began
    times.exit_index[order] = torch.cat(found).cpu()
    if turn:
        scale = 1e3 / len(order)
        times.full.append(scale * seconds["full"])
        times.adaptive.append(scale * seconds["adaptive"])
        times.regrouped.append(scale * seconds.get("regrouped", math.nan))
        times.ideal.append(_ideal(engine, [len(rows) for rows in chunks], staged, times.exit_index))


def _ideal(engine: Engine, sizes: Sequence[int], staged: Sequence[Seconds], exit_index: Tensor) -> float:
    """Return what a pass would take per sample by the times of stages and heads, were everything else free."""
    means = {part: sum(run[part] * n for run, n in zip(staged, sizes, strict=True)) / sum(sizes) for part in staged[0]}
    computing = torch.tensor(summarise(engine, max(sizes), [means]).computing, dtype=torch.float64)
    return float(computing[exit_index].mean())


def _row(lane: _Lane, times: _Times, flops: FlopReport, expected: Tensor) -> BenchRow:
    """Return what the times of one engine at one batch size amount to."""
    full, adaptive, regrouped, ideal = map(Spread.of, (times.full, times.adaptive, times.regrouped, times.ideal))
    operations = torch.tensor(flops.cumulative, dtype=torch.float64)
    judged = full.median / ideal.median > _WORTH_JUDGING

    def efficiency(realised: Spread, passes: list[float]) -> tuple[float | None, tuple[float, float] | None]:
        """Return the share of the ideal saving, of the medians and as quartiles over passes."""
        if not judged or math.isnan(realised.median):
            return None, None
        each = [(f - r) / (f - i) for f, r, i in zip(times.full, passes, times.ideal, strict=True) if f > i]
        spread = Spread.of(each)
        return (full.median - realised.median) / (full.median - ideal.median), (spread.low, spread.high)

    alone, together = efficiency(adaptive, times.adaptive), efficiency(regrouped, times.regrouped)
    return BenchRow(
        engine=lane.engine.name,
        dtype=lane.engine.dtype,
        batch_size=lane.size,
        full_ms=full.median,
        adaptive_ms=adaptive.median,
        full_spread=(full.low, full.high),
        adaptive_spread=(adaptive.low, adaptive.high),
        regrouped_ms=None if math.isnan(regrouped.median) else regrouped.median,
        speedup=full.median / adaptive.median,
        ideal_speedup=full.median / ideal.median,
        ideal_speedup_flops=flops.reference / float(operations[times.exit_index].mean()),
        efficiency=alone[0],
        efficiency_spread=alone[1],
        regrouped_efficiency=together[0],
        regrouped_efficiency_spread=together[1],
        flips=int((times.exit_index != expected).sum()),
        exit_distribution=tuple(exit_distribution(times.exit_index, lane.engine.num_exits).tolist()),
    )
