"""Timing adaptive inference against the original model: ``eenet bench``."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Int

from eenet.errors import InputError
from eenet.policies.policy import Policy
from eenet.policies.replay import exit_distribution
from eenet.running.adaptive import AdaptiveModel, require_parts, require_source
from eenet.running.engines import Engine, as_engine, suited
from eenet.running.inputs import Data, Inputs, gathered, rows_of
from eenet.running.latency import Seconds, Spread, summarise, threads_of, time_stages
from eenet.running.measuring import FlopReport, counted
from eenet.running.progress import track
from eenet.tables.arrays import batch_size
from eenet.tables.checks import number
from eenet.tables.display import frame, notebook, samples

if TYPE_CHECKING:
    import pandas

_LEAST_SAVING = 1.05  # below this ideal speed-up, the efficiency would be a ratio of noise
_OTHER_SIZES = (64, 48, 96, 24)

_Times: TypeAlias = dict[str, list[float]]
"""Milliseconds per sample of every pass: ``full``, ``adaptive``, ``regrouped``, ``ideal``."""


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
        ideal_speedup_flops: What the operations allow; None where they cannot be counted.
        efficiency: Share of the ideal saving that was realised; None where almost nothing can be saved.
        efficiency_spread: Quartiles of the same, worked out for each pass.
        regrouped_efficiency: As `efficiency`, of the regrouped passes.
        regrouped_efficiency_spread: Quartiles of the same.
        flips: Samples that left at another exit than when the model itself, not optimised, ran them at another batch
            size.
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
    ideal_speedup_flops: float | None
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

    @property
    def verdict(self) -> str:
        """How much faster the fastest engine is with early exits, by batch size, in one sentence."""
        if not self.rows:
            return "Nothing was timed."
        best = min(self.rows, key=lambda row: row.adaptive_ms)
        rows = [row for row in self.rows if (row.engine, row.dtype) == (best.engine, best.dtype)]
        times = ", ".join(f"{row.speedup:.2f}x at batch {row.batch_size}" for row in rows)
        said = (
            f"{best.engine} {best.dtype} is {times} as fast as the original model; {best.ideal_speedup:.2f}x is "
            f"possible at batch {best.batch_size}"
        )
        flips = sum(row.flips for row in rows)
        said += f"; {samples(flips)} left elsewhere than in the model itself." if flips else "."
        if max(row.speedup for row in rows) < _LEAST_SAVING:
            return f"Do not bother: the saving is not on the clock. What was measured: {said}"
        return said

    def __repr__(self) -> str:
        """Say what was timed, and the verdict."""
        return f"BenchReport of {samples(self.samples)} on {self.device}, {self.threads} threads: {self.verdict}"

    def to_frame(self) -> pandas.DataFrame:
        """Return the rows: one per engine, number format and batch size.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return frame([vars(row) for row in self.rows])

    def _repr_html_(self) -> str:
        """Return the verdict and the times for a notebook."""
        keys = ("engine", "dtype", "batch_size", "full_ms", "adaptive_ms", "speedup", "ideal_speedup", "flips")
        return notebook(self.verdict, [{key: getattr(row, key) for key in keys} for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of ``eenet bench --json``."""
        return asdict(self) | {"verdict": self.verdict}


def bench(
    model: object,
    policy: Policy,
    inputs: Data,
    *,
    batch_sizes: Sequence[int] = (1, 32, 128),
    engines: Sequence[Engine] | None = None,
    passes: int = 7,
    seed: int = 0,
    progress: bool = True,
    check_source: bool = True,
) -> BenchReport:
    """Time passes over the same samples, the original model and the adaptive one in turns.

    Each pass takes a new random order. A time is the whole pass divided by the number of samples; medians over
    passes are reported. Both run on the same engine; the default is the one that `AdaptiveModel` makes of a model.

    Args:
        model: The `MultiExitModel`, or an engine such as a cascade; its operations are counted, where a model of
            PyTorch is known, and flips are counted against its own decisions.
        policy: Where to leave.
        inputs: The samples: a batch as the model takes it, or a `DataLoader` or other data that
            `eenet.running.inputs.batches_of` takes, which are read into memory; labels are left out.
        batch_sizes: Samples per batch; none may exceed the number of samples.
        engines: What to time; default: the model's eager engine, or the engine given.
        passes: How many passes are timed, after one to warm up.
        seed: Of the orders.
        progress: Show a bar on stderr if it takes more than two seconds.
        check_source: Refuse a policy that was fitted on a table of another model, as `AdaptiveModel` does.

    Raises:
        InputError: No batch size, a batch size out of range, no passes, a policy of another model, or inputs that the
            model does not take.
        ShapeError: Policy, engines and model disagree on the number of exits, or policy and model on that of classes.
    """
    itself = as_engine(model, optimise=False)
    require_parts(itself.num_exits, policy, None, None)
    engines = engines or (as_engine(model),)
    for engine in (itself, *engines) if check_source else ():
        if engine.dtype == itself.dtype:  # in other formats, flips show how well the policy suits
            require_source(policy, engine)
    inputs = gathered(inputs)
    count = batch_size(inputs)
    batch_sizes = [int(number(size, "batch_sizes", whole=True)) for size in batch_sizes]
    passes = int(number(passes, "passes", whole=True))
    if passes < 1 or not batch_sizes or min(batch_sizes) < 1 or max(batch_sizes) > count:
        raise InputError(
            f"batch_sizes {list(batch_sizes)} with {passes} passes cannot be timed: sizes must lie in 1 to {count} "
            "(the number of samples) and passes be at least 1. Pass other sizes or more samples."
        )
    engines = [suited(engine, inputs) for engine in engines]
    flops = counted(model, rows_of(inputs, np.arange(min(2, count))))  # a copy, for models that write into it
    expected = _decisions(itself, policy, inputs, _other_size(count, batch_sizes))
    rows = []
    for engine in engines:
        for size in batch_sizes:
            generator = np.random.default_rng(seed)
            orders = [generator.permutation(count) for _ in range(passes + 1)]
            text = f"timing {engine.name}, batch size {size}"
            timed = _timed(engine, policy, inputs, size, track(orders, len(orders), text, enabled=progress))
            rows.append(_row(engine, size, *timed, flops=flops, expected=expected))
    return BenchReport(
        device=engines[0].device,
        threads=threads_of(engines[0]),
        samples=count,
        passes=passes,
        rows=tuple(rows),
    )


def _other_size(count: int, batch_sizes: Sequence[int]) -> int:
    """Return a batch size for which there are samples and that is not timed; all of them where every size is timed."""
    wanted = (min(size, count) for size in (*_OTHER_SIZES, max(batch_sizes) + 1, *range(count, 0, -1)))
    return next((size for size in wanted if size not in batch_sizes), count)


def _decisions(engine: Engine, policy: Policy, inputs: Inputs, size: int) -> Int[np.ndarray, " sample"]:
    """Return where each sample leaves the model itself, run at a batch size."""
    adaptive = AdaptiveModel(engine, policy, check_source=False)
    batches = (rows_of(inputs, slice(first, first + size)) for first in range(0, batch_size(inputs), size))
    return adaptive.predict_all(batches, regroup=False).exit_index


def _timed(
    engine: Engine, policy: Policy, inputs: Inputs, size: int, orders: Iterable[np.ndarray]
) -> tuple[_Times, Int[np.ndarray, " sample"]]:
    """Return the times of one pass per order, the first of which warms up and does not count, and the last exits."""
    adaptive = AdaptiveModel(engine, policy, check_source=False)
    times: _Times = defaultdict(list)
    for turn, order in enumerate(orders):
        found, exit_index = _pass(adaptive, inputs, size, order, turn)
        for way, value in found.items() if turn else ():
            times[way].append(value)
    return times, exit_index


def _pass(
    adaptive: AdaptiveModel, inputs: Inputs, size: int, order: np.ndarray, turn: int
) -> tuple[dict[str, float], Int[np.ndarray, " sample"]]:
    """Run all samples once in every way, another way being the first in each pass; return the times per sample."""
    engine, count = adaptive.engine, len(order)
    chunks = [order[first : first + size] for first in range(0, count, size)]
    batches = [rows_of(inputs, rows) for rows in chunks]
    found: list[np.ndarray] = []
    staged: list[Seconds] = []
    ways: dict[str, Callable[[], object]] = {
        "full": lambda: [engine.full(batch) for batch in batches],
        "adaptive": lambda: found.extend(
            adaptive(batch, ids).exit_index for batch, ids in zip(batches, chunks, strict=True)
        ),
        "staged": lambda: staged.extend(
            time_stages(engine, batch, adaptive.policy, decisions=False) for batch in batches
        ),
    }
    if size > 1:
        ways["regrouped"] = lambda: adaptive.predict_all(batches, sample_ids=order)
    times: dict[str, float] = {}
    names = list(ways)
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
        engine.synchronise()
        began = time.perf_counter()
        ways[name]()
        engine.synchronise()
        times[name] = 1e3 * (time.perf_counter() - began) / count
    exit_index = np.concatenate(found)[np.argsort(order)]
    # as if everything but stages and heads were free
    means = {part: sum(run[part] * len(rows) for run, rows in zip(staged, chunks, strict=True)) for part in staged[0]}
    parts = summarise(engine, size, [{part: seconds / count for part, seconds in means.items()}])
    return times | {"ideal": float(np.array(parts.computing)[exit_index].mean())}, exit_index


def _row(
    engine: Engine, size: int, times: _Times, exit_index: np.ndarray, *, flops: FlopReport | None, expected: np.ndarray
) -> BenchRow:
    """Return the row of the report for one engine at one batch size."""
    spreads = {way: Spread.of(values) for way, values in times.items()}
    full, adaptive, ideal = (spreads[way] for way in ("full", "adaptive", "ideal"))
    regrouped = spreads.get("regrouped")
    alone, together = _efficiency(times, "adaptive"), _efficiency(times, "regrouped")
    return BenchRow(
        engine=engine.name,
        dtype=engine.dtype,
        batch_size=size,
        full_ms=full.median,
        adaptive_ms=adaptive.median,
        full_spread=(full.low, full.high),
        adaptive_spread=(adaptive.low, adaptive.high),
        regrouped_ms=None if regrouped is None else regrouped.median,
        speedup=full.median / adaptive.median,
        ideal_speedup=full.median / ideal.median,
        ideal_speedup_flops=None
        if flops is None
        else flops.reference / float(np.array(flops.cumulative)[exit_index].mean()),
        efficiency=alone[0],
        efficiency_spread=alone[1],
        regrouped_efficiency=together[0],
        regrouped_efficiency_spread=together[1],
        flips=int((exit_index != expected).sum()),
        exit_distribution=tuple(exit_distribution(exit_index, engine.num_exits).tolist()),
    )


def _efficiency(times: _Times, way: str) -> tuple[float | None, tuple[float, float] | None]:
    """Return the share of the ideal saving that a way realised, of the medians and as quartiles over passes."""
    if way not in times:
        return None, None
    full, realised, ideal = (np.array(times[name]) for name in ("full", way, "ideal"))
    medians = np.median([full, realised, ideal], axis=1).tolist()
    if medians[0] <= _LEAST_SAVING * medians[2]:
        return None, None
    saved = full > ideal
    spread = Spread.of((full - realised)[saved] / (full - ideal)[saved])
    return (medians[0] - medians[1]) / (medians[0] - medians[2]), (spread.low, spread.high)
