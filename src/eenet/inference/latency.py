"""Timing every stage, head and decision of an engine, batch size by batch size."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.core.alone import Row
from eenet.core.combined import unmixed
from eenet.core.costs import CostTable
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.scorers import ConfidenceScorer
from eenet.core.views import FEW_CLASSES
from eenet.errors import InputError
from eenet.inference.engines import DenseEngine, EagerEngine, Engine, suited
from eenet.inference.fitting import require_exits
from eenet.inference.progress import track
from eenet.inference.stepping import log_probs, split_leaving
from eenet.models.inputs import Inputs, State, batch_size
from eenet.models.model import MultiExitModel

__all__ = ["Latency", "Seconds", "Spread", "measure_latency", "rows_of", "time_full", "time_stages"]

_WARM_UPS = 2

Seconds = dict[str, float]
"""Seconds of one run by part: ``full``, ``start``, ``stage 0``, ``head 0``, ``decision 0``, ..., ``answer``."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A time in milliseconds per sample.

    Attributes:
        median: Over the passes.
        low: The lower quartile.
        high: The upper quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return median and quartiles of some times."""
        low, median, high = np.quantile(np.asarray(values), (0.25, 0.5, 0.75)).tolist()
        return cls(median=median, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long an engine takes per sample at one batch size, part by part.

    Attributes:
        engine: Name of the engine.
        dtype: Number format.
        device: Where it ran.
        threads: Of the CPU.
        batch_size: Samples per batch.
        passes: How often everything was timed.
        full: The original model without exits.
        start: Making the first state.
        stages: Each stage.
        heads: Each head.
        decisions: At each exit but the last: asking the policy and, beyond one sample, keeping half of the batch. A
            single sample is decided as `AdaptiveModel` decides one.
        answer: Of maps: upsampling the answer and choosing every pixel's class, wherever a sample leaves; in `full` as
            well. The head's time includes summing its map up. Else 0.
    """

    engine: str
    dtype: str
    device: str
    threads: int
    batch_size: int
    passes: int
    full: Spread
    start: Spread
    stages: tuple[Spread, ...]
    heads: tuple[Spread, ...]
    decisions: tuple[Spread, ...]
    answer: Spread = Spread(median=0.0, low=0.0, high=0.0)

    @property
    def computing(self) -> tuple[float, ...]:
        """Milliseconds per sample up to each exit, the answer included, as if deciding were free."""
        steps = [stage.median + head.median for stage, head in zip(self.stages, self.heads, strict=True)]
        return tuple(accumulate(steps, initial=self.start.median + self.answer.median))[1:]

    @property
    def cumulative(self) -> tuple[float, ...]:
        """Milliseconds per sample of leaving at each exit, decisions included."""
        deciding = accumulate((*(part.median for part in self.decisions), 0.0))
        return tuple(a + b for a, b in zip(self.computing, deciding, strict=True))

    def costs(self) -> CostTable:
        """Return the costs of leaving at each exit, in ms."""
        return CostTable(self.cumulative, "ms", self.full.median)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: the costs and what they are made of."""
        return self.costs().to_dict() | asdict(self)


def measure_latency(
    model: MultiExitModel | Engine,
    example_inputs: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 32, 128),
    passes: int = 15,
    policy: Policy | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Latency, ...]:
    """Time every stage, head and decision at every batch size.

    The batch sizes take turns within each pass, in random order, so that a machine that slows down slows all of
    them down alike. The clock waits for the device.

    Args:
        model: An engine, or a model, which then runs in the eager engine.
        example_inputs: Samples to run; repeated or cut to each batch size.
        batch_sizes: Samples per batch.
        passes: How often everything is timed, after two runs to warm up.
        policy: Whose decisions are timed; default: one threshold on the log-odds of the top class.
        seed: Of the order.
        progress: Show a bar on stderr if it takes more than two seconds.

    Returns:
        One record per batch size, in the order asked.

    Raises:
        InputError: A batch size or number of passes below 1.
        ShapeError: The policy has another number of exits than the model.
    """
    if passes < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise InputError(
            f"batch_sizes {list(batch_sizes)} with {passes} passes cannot be timed: both must be at least 1. Pass more."
        )
    if policy is not None:
        require_exits(model.num_exits, policy)
    engine = suited(model if isinstance(model, Engine) else EagerEngine(model), example_inputs)
    policy = policy or _usual_policy(engine)
    batches = {size: rows_of(example_inputs, torch.arange(size) % batch_size(example_inputs)) for size in batch_sizes}
    runs: dict[int, list[Seconds]] = defaultdict(list)
    order = random.Random(seed)
    rounds = [size for _ in range(passes + _WARM_UPS) for size in order.sample(list(batches), len(batches))]
    for size in track(rounds, len(rounds), "timing", enabled=progress):
        runs[size].append(time_full(engine, batches[size]) | time_stages(engine, batches[size], policy))
    return tuple(summarise(engine, size, runs[size][_WARM_UPS:]) for size in batch_sizes)


def rows_of(inputs: Inputs, rows: Tensor) -> Inputs:
    """Return some samples of a batch."""
    picked: Inputs = pytree.tree_map_only(Tensor, lambda leaf: leaf[rows.to(leaf.device)], inputs)
    return picked


def time_full(engine: Engine, inputs: Inputs) -> Seconds:
    """Return the seconds per sample of the original model without exits."""
    began = _now(engine)
    engine.full(inputs)
    return {"full": (_now(engine) - began) / batch_size(inputs)}


def time_stages(engine: Engine, inputs: Inputs, policy: Policy | None = None) -> Seconds:
    """Return the seconds per sample of every part, nobody leaving.

    Args:
        engine: What runs.
        inputs: One batch.
        policy: Whose decisions are timed too; None: none are made.
    """
    count = batch_size(inputs)
    seconds: Seconds = {}
    decide = None if policy is None else _decisions(engine, policy, count)
    with engine.session():
        mark = _now(engine)
        state = engine.start(inputs)
        mark = _lap(engine, mark, "start", seconds)
        for k in range(engine.num_exits):
            state = engine.stage(k, state)
            mark = _lap(engine, mark, f"stage {k}", seconds)
            logits = engine.head(k, state)
            mark = _lap(engine, mark, f"head {k}", seconds)
            if decide is None or k == engine.num_exits - 1:
                continue
            decide(k, logits, state)
            mark = _lap(engine, mark, f"decision {k}", seconds)
        if isinstance(engine, DenseEngine):
            last = torch.full((count,), engine.num_exits - 1, device=engine.device)
            mark = _now(engine)
            engine.answers(last)
            _lap(engine, mark, "answer", seconds)
    return {part: value / count for part, value in seconds.items()}


def _decisions(engine: Engine, policy: Policy, count: int) -> Callable[[int, Tensor, State], None]:
    """Return what makes one batch's decision at an exit, from its logits and the state, and is called exit by exit."""
    ids, half = (torch.arange(0, count, step, device=engine.device) for step in (1, 2))
    parts: list[Tensor] = []
    told: list[Row] = []

    def decide(k: int, logits: Tensor, state: State) -> None:
        newest = log_probs(logits, k)
        if alone and newest.shape[1] <= FEW_CLASSES:
            told.append(newest.tolist()[0])
            asked.leaves_one(asked.shown_one(told), k)
            return
        parts.append(newest.unsqueeze(1))
        split_leaving(asked.leaves(torch.cat(parts, dim=1), ids))
        if count > 1:
            engine.select(state, half)

    asked = policy if count > 1 else max(unmixed(policy), key=lambda part: part[0])[1]  # one sample, one tossed coin
    alone = count == 1 and asked.single and engine.device.type == "cpu"
    return decide


def summarise(engine: Engine, size: int, runs: Sequence[Seconds]) -> Latency:
    """Return medians and quartiles over runs of one engine at one batch size; a part that was not timed counts as 0."""

    def spread(part: str) -> Spread:
        return Spread.of([1e3 * run.get(part, 0.0) for run in runs])

    exits = range(engine.num_exits)
    return Latency(
        engine=engine.name,
        dtype=engine.dtype,
        device=str(engine.device),
        threads=torch.get_num_threads() if engine.threads is None else engine.threads,
        batch_size=size,
        passes=len(runs),
        full=spread("full"),
        start=spread("start"),
        stages=tuple(spread(f"stage {k}") for k in exits),
        heads=tuple(spread(f"head {k}") for k in exits),
        decisions=tuple(spread(f"decision {k}") for k in exits[:-1]),
        answer=spread("answer"),
    )


def _usual_policy(engine: Engine) -> Policy:
    """Return a policy like most: one confidence, one threshold per exit."""
    thresholds = torch.tensor([0.0] * (engine.num_exits - 1) + [-torch.inf])
    return ScorePolicy(ConfidenceScorer("max_prob"), thresholds).to(engine.device)


def _now(engine: Engine) -> float:
    """Return the time once the device has finished."""
    engine.synchronise()
    return time.perf_counter()


def _lap(engine: Engine, mark: float, part: str, seconds: Seconds) -> float:
    """Note the time since ``mark`` and return the new mark."""
    now = _now(engine)
    seconds[part] = now - mark
    return now
