"""Timing every stage, head and decision of an engine, batch size by batch size."""

from __future__ import annotations

import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from eenet.errors import InputError
from eenet.policies.policy import Policy, ScorePolicy
from eenet.policies.scorers import ColumnScorer, ConfidenceScorer
from eenet.running.engines import Engine, as_engine, suited
from eenet.running.engines.base import each_exit
from eenet.running.inputs import Inputs, rows_of
from eenet.running.loop import Group, Loop
from eenet.running.progress import track
from eenet.tables.arrays import batch_size
from eenet.tables.checks import instance, listed, number
from eenet.tables.costs import CostTable

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
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
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
        decisions: At each exit but the last: what the loop does to decide there and, beyond one sample, to go on with
            half of the batch.
        answer: Making the answer, wherever a sample leaves; of maps this is upsampling and choosing every pixel's
            class, which is in `full` as well.
        length: Tokens of the texts, where several lengths were measured.
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
    length: int | None = None

    @property
    def computing(self) -> tuple[float, ...]:
        """Milliseconds per sample up to each exit, the answer included, as if deciding were free."""
        return self._computing("median")

    @property
    def cumulative(self) -> tuple[float, ...]:
        """Milliseconds per sample of leaving at each exit, decisions included."""
        return self._leaving("median")

    @property
    def quartiles(self) -> tuple[tuple[float, float], ...]:
        """The same where all parts are at their lower quartile, and where all are at their upper one, for each exit."""
        return tuple(zip(self._leaving("low"), self._leaving("high"), strict=True))

    def _computing(self, which: str) -> tuple[float, ...]:
        parts = zip(self.stages, self.heads, strict=True)
        steps = [getattr(stage, which) + getattr(head, which) for stage, head in parts]
        return tuple(accumulate(steps, initial=getattr(self.start, which) + getattr(self.answer, which)))[1:]

    def _leaving(self, which: str) -> tuple[float, ...]:
        deciding = accumulate((*(getattr(part, which) for part in self.decisions), 0.0))
        return tuple(a + b for a, b in zip(self._computing(which), deciding, strict=True))

    def costs(self) -> CostTable:
        """Return the costs of leaving at each exit, in ms."""
        return CostTable(self.cumulative, "ms", self.full.median)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: the costs, between what they lie, and what they are made of."""
        return self.costs().to_dict() | asdict(self) | {"quartiles": [list(pair) for pair in self.quartiles]}


def measure_latency(
    model: object,
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
        model: An engine, or a `MultiExitModel`, which then runs in the eager engine.
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
    passes, batch_sizes = int(number(passes, "passes", 1, whole=True)), counts(batch_sizes, "batch_sizes")
    if not batch_sizes:
        raise InputError("batch_sizes are empty: there is nothing to be timed. Pass for example (1, 32).")
    engine = as_engine(model)
    if policy is not None:
        instance(policy, Policy, "policy").require(engine.num_exits)
    engine = suited(engine, example_inputs)
    policy = policy or _usual_policy(engine, example_inputs)
    count = batch_size(example_inputs)
    batches = {size: rows_of(example_inputs, np.arange(size) % count) for size in batch_sizes}
    runs: dict[int, list[Seconds]] = defaultdict(list)
    order = random.Random(seed)
    rounds = [size for _ in range(passes + _WARM_UPS) for size in order.sample(list(batches), len(batches))]
    for size in track(rounds, len(rounds), "timing", enabled=progress):
        began = _now(engine)
        engine.full(batches[size])
        full = (_now(engine) - began) / size
        runs[size].append({"full": full} | time_stages(engine, batches[size], policy))
    return tuple(summarise(engine, size, runs[size][_WARM_UPS:]) for size in batch_sizes)


def counts(values: Sequence[int], name: str) -> tuple[int, ...]:
    """Return whole numbers of at least 1 that come from outside."""
    return tuple(int(number(value, name, 1, whole=True)) for value in listed(values, name))


def time_stages(engine: Engine, inputs: Inputs, policy: Policy, *, decisions: bool = True) -> Seconds:
    """Return the seconds per sample of every part, no sample leaving before the last exit.

    Args:
        engine: What runs.
        inputs: One batch.
        policy: Decides.
        decisions: Time its decisions and answers as well, as the loop makes them; False: only stages, heads, and the
            answers of heads that answer with more than logits.
    """
    count, last = batch_size(inputs), engine.num_exits - 1
    ids, every_second = np.arange(count), np.arange(0, count, 2)
    if count == 1:  # a single sample of a mixture follows one of its policies: time the one that most samples follow
        policy = max(policy.components(), key=lambda part: part[0])[1]
    seconds: Seconds = {}
    mark = 0.0

    def lap(part: str) -> None:
        nonlocal mark
        mark, began = _now(engine), mark
        seconds[part] = (mark - began) / count

    with engine.session():
        mark = _now(engine)
        state = engine.start(inputs)
        lap("start")
        loop, group = Loop(engine, policy), Group(state, ids, ids, policy)
        for k in range(engine.num_exits):
            state = engine.stage(k, state)
            lap(f"stage {k}")
            output, answer = engine.head(k, state)
            lap(f"head {k}")
            seen = loop.read(k, group, output, answer) if decisions else None
            if seen is not None and k < last:
                policy.decide(seen, ids)[0].nonzero()
                if count > 1:
                    loop.kept(k, group, state, every_second)
                lap(f"decision {k}")
        if decisions or answer is not None:
            loop.leave(last, group, slice(None), answer)
            lap("answer")
    return seconds


def summarise(engine: Engine, size: int, runs: Sequence[Seconds]) -> Latency:
    """Return medians and quartiles over runs of one engine at one batch size; a part that was not timed counts as 0."""

    def spread(part: str) -> Spread:
        return Spread.of([1e3 * run.get(part, 0.0) for run in runs])

    def spreads(part: str, count: int = engine.num_exits) -> tuple[Spread, ...]:
        return tuple(spread(f"{part} {k}") for k in range(count))

    return Latency(
        engine=engine.name,
        dtype=engine.dtype,
        device=engine.device,
        threads=threads_of(engine),
        batch_size=size,
        passes=len(runs),
        full=spread("full"),
        start=spread("start"),
        stages=spreads("stage"),
        heads=spreads("head"),
        decisions=spreads("decision", engine.num_exits - 1),
        answer=spread("answer"),
    )


def threads_of(engine: Engine) -> int:
    """Return the number of CPU threads an engine uses: its own, else PyTorch's where that is loaded, else all cores."""
    if engine.threads is not None:
        return engine.threads
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else os.cpu_count() or 1


def _usual_policy(engine: Engine, inputs: Inputs) -> Policy:
    """Return a policy like most: one confidence (of features, one column) and one threshold per exit."""
    with engine.session():
        output, answer = next(each_exit(engine, rows_of(inputs, slice(0, 1))))
    scorer = ConfidenceScorer("max_prob") if answer is None else ColumnScorer(0, output.shape[1])
    return ScorePolicy(scorer, np.array([0.0] * (engine.num_exits - 1) + [-np.inf]))


def _now(engine: Engine) -> float:
    """Return the time once the device has finished."""
    engine.synchronise()
    return time.perf_counter()
