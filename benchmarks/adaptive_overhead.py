"""What deciding costs: the policy's and the bookkeeping's share of the full model's time.

A ResNet56 with 6 exits (random weights: times do not depend on them) runs with several policies that let samples leave
everywhere. The engine's own calls are timed inside the adaptive run; what is left is deciding, dropping samples and
putting answers together. Its share of the full model's time is the overhead; the targets are 3 % at batch size 128 and
5 % at batch size 1.

    python benchmarks/adaptive_overhead.py --out overhead.json > overhead.md
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from common import command_line, given, log
from torch import Tensor

from eenet import AdaptiveModel, ConfidenceScorer, EagerEngine, Policy, ScorePolicy
from eenet.experiments.zoo import cifar_resnet
from eenet.policies import (
    EENetScorer,
    Ensemble,
    MixedPolicy,
    Scorer,
    StoppingScorer,
    Transform,
    TransformedPolicy,
    VoteScorer,
)
from eenet.policies.learned import StoppingState
from eenet.report import markdown_table
from eenet.running.engines.base import Engine, ExitOutput, State
from eenet.tables.arrays import log_softmax
from eenet.tables.files import write_json

EXITS = (4, 9, 13, 18, 22)
TARGETS = {1: 0.05, 128: 0.03}
CLOCK = time.process_time  # on one thread the same share as by the wall clock, whatever else the machine does


class Stopwatch(Engine):
    """An engine that notes how long the model itself runs; `select` is bookkeeping and does not count."""

    def __init__(self, inner: Engine) -> None:
        self.inner, self.seconds = inner, 0.0
        self.name, self.dtype, self.device, self.num_exits = inner.name, inner.dtype, inner.device, inner.num_exits

    @staticmethod
    def clocked(run: Callable[[], object]) -> float:
        """Return the seconds that something takes."""
        began = CLOCK()
        run()
        return CLOCK() - began

    def session(self) -> AbstractContextManager[object]:
        return self.inner.session()

    def start(self, inputs: object) -> State:
        began = CLOCK()
        result = self.inner.start(inputs)
        self.seconds += CLOCK() - began
        return result

    def stage(self, index: int, state: State) -> State:
        began = CLOCK()
        result = self.inner.stage(index, state)
        self.seconds += CLOCK() - began
        return result

    def head(self, index: int, state: State) -> ExitOutput:
        began = CLOCK()
        result = self.inner.head(index, state)
        self.seconds += CLOCK() - began
        return result

    def full(self, inputs: object) -> object:
        """Run the original model."""
        return self.inner.full(inputs)

    def select(self, state: State, rows: np.ndarray) -> State:
        return self.inner.select(state, rows)

    def join(self, states: Sequence[State]) -> State:
        return self.inner.join(states)


def policies(logits: np.ndarray) -> dict[str, Policy]:
    """Policies that let about a sixth of the samples leave at every exit."""
    chance = np.random.default_rng(0)
    num_exits, num_classes = logits.shape[1:]
    said = log_softmax(logits)

    def spread(scorer: Scorer, transform: Transform | None = None) -> ScorePolicy:
        seen = said if transform is None else transform.history(said)
        inside = np.ones(len(logits), dtype=bool)
        thresholds = []
        for k in range(num_exits - 1):
            scores = scorer(seen[:, : k + 1])
            share = 1 / (num_exits - k)
            thresholds.append(float(np.quantile(scores[inside], 1 - share)) if inside.any() else math.inf)
            inside &= scores < thresholds[-1]
        return ScorePolicy(scorer, np.array([*thresholds, -math.inf], dtype=np.float32))

    max_prob = spread(ConfidenceScorer("max_prob"))
    eenet = EENetScorer(weight=chance.random((num_exits, num_classes + 2 + num_exits)) / 20, num_columns=num_classes)
    together = Ensemble(weight=chance.random((num_exits, num_exits)), bias=np.zeros((num_exits, num_classes)))
    width = StoppingState().width(num_classes)
    stopping = StoppingScorer(
        weight=chance.random((num_exits - 1, width)), bias=np.zeros(num_exits - 1), num_columns=num_classes
    )
    later = ScorePolicy(max_prob.scorer, max_prob.thresholds + np.float32(0.01))
    return {
        "max_prob": max_prob,
        "certainty": spread(ConfidenceScorer("certainty")),
        "vote": spread(VoteScorer()),
        "eenet": spread(eenet),
        "stopping": spread(stopping),
        "stopping, ensemble": TransformedPolicy(together, spread(stopping, together)),
        "max_prob, mixed": MixedPolicy(max_prob, later, 0.5),
    }


def measure(engine: Engine, policy: Policy, images: Tensor, size: int, passes: int) -> dict[str, float]:
    """Return medians over passes, in milliseconds per sample, and the overhead's share of the full model's time."""
    batches = images.split(size)
    watch = Stopwatch(engine)
    adaptive = AdaptiveModel(watch, policy)
    rows: list[tuple[float, float, float]] = []
    for turn in range(passes + 1):
        began = CLOCK()
        for batch in batches:
            engine.full(batch)
        full = CLOCK() - began
        watch.seconds, began = 0.0, CLOCK()
        for batch in batches:
            adaptive(batch)
        total = CLOCK() - began
        if turn:  # the first one warms up
            rows.append((full, total, total - watch.seconds))
    full, total, overhead = (1e3 * np.median(column) / len(images) for column in zip(*rows, strict=True))
    shares = np.quantile([row[2] / row[0] for row in rows], (0.25, 0.5, 0.75)).tolist()
    return {
        "full_ms": float(full),
        "adaptive_ms": float(total),
        "overhead_ms": float(overhead),
        "share": shares[1],
        "share_low": shares[0],
        "share_high": shares[2],
    }


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--passes", type=int, default=9)
    parser.add_argument("--samples", type=int, default=256, help="at batch size 128; at batch size 1 an eighth of it")
    parser.add_argument("--batch-size", type=int, choices=tuple(TARGETS), help="only this one")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = given(parser)
    torch.manual_seed(0)
    images = torch.randn(max(options.samples, 128), 3, 32, 32)
    model = cifar_resnet(56, exits=EXITS).eval()
    with torch.inference_mode():
        logits = torch.stack(model(images), dim=1).numpy()
    rows = []
    for size, target in TARGETS.items():
        for name, policy in policies(logits).items() if options.batch_size in (None, size) else ():
            some = images if size > 1 else images[: max(8, len(images) // 8)]
            found = measure(EagerEngine(model), policy, some, size, options.passes)
            rows.append({"batch_size": size, "policy": name, "target": target, **found})
            log(f"{name}, batch size {size}: {found['share']:.2%}")
    if options.out:
        write_json(options.out, {"threads": options.threads, "passes": options.passes, "exits": 6, "rows": rows})
    cells = [
        (
            str(row["batch_size"]),
            row["policy"],
            f"{row['full_ms']:.3f}",
            f"{row['overhead_ms']:.4f}",
            f"{row['share']:.2%}",
            f"{row['share_low']:.2%} to {row['share_high']:.2%}",
            f"{row['target']:.0%}",
        )
        for row in rows
    ]
    print(
        markdown_table(("batch", "policy", "full, ms", "deciding, ms", "share of full", "quartiles", "target"), cells)
    )


if __name__ == "__main__":
    main()
