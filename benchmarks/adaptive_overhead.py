"""What deciding costs: the policy's and the bookkeeping's share of the full model's time.

A ResNet56 with 6 exits (random weights: times do not depend on them) runs with several policies that let samples leave
everywhere. The engine's own calls are timed inside the adaptive run; what is left is deciding, dropping samples and
putting answers together. Its share of the full model's time is the overhead; the targets are 3 % at batch size 128 and
5 % at batch size 1.

    python benchmarks/adaptive_overhead.py --out overhead.json > overhead.md
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eenet import (
    ConfidenceScorer,
    EagerEngine,
    Engine,
    MixedPolicy,
    Policy,
    ScorePolicy,
    Transform,
    TransformedPolicy,
    cifar_resnet,
)
from eenet.core.files import write_json
from eenet.core.scorers import Scorer
from eenet.inference.adaptive import AdaptiveModel
from eenet.inference.record import outputs
from eenet.models.inputs import Inputs, State
from eenet.schedulers.eenet import EENetScorer
from eenet.schedulers.ensemble import Ensemble
from eenet.schedulers.heuristics import VoteScorer
from eenet.schedulers.stopping import StoppingScorer, StoppingState

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

    def start(self, inputs: Inputs) -> State:
        began = CLOCK()
        result = self.inner.start(inputs)
        self.seconds += CLOCK() - began
        return result

    def stage(self, index: int, state: State) -> State:
        began = CLOCK()
        result = self.inner.stage(index, state)
        self.seconds += CLOCK() - began
        return result

    def head(self, index: int, state: State) -> Tensor:
        began = CLOCK()
        result = self.inner.head(index, state)
        self.seconds += CLOCK() - began
        return result

    def full(self, inputs: Inputs) -> Tensor:
        """Run the original model."""
        return self.inner.full(inputs)

    def select(self, state: State, rows: Tensor) -> State:
        return self.inner.select(state, rows)

    def join(self, states: Sequence[State]) -> State:
        return self.inner.join(states)


def policies(logits: Tensor) -> dict[str, Policy]:
    """Policies that let about a sixth of the samples leave at every exit."""
    num_exits, num_classes = logits.shape[1:]
    weight = torch.rand(num_exits, num_classes + 3 + num_exits - 1) / 20

    def spread(scorer: Scorer, transform: Transform | None = None) -> ScorePolicy:
        seen = torch.log_softmax(logits, dim=-1)
        seen = seen if transform is None else transform.history(seen)
        inside = torch.ones(len(logits), dtype=torch.bool)
        thresholds = []
        for k in range(num_exits - 1):
            scores = scorer(seen[:, : k + 1])
            share = 1 / (num_exits - k)
            thresholds.append(float(scores[inside].quantile(1 - share)) if inside.any() else math.inf)
            inside &= scores < thresholds[-1]
        return ScorePolicy(scorer, torch.tensor([*thresholds, -math.inf]))

    max_prob, eenet = spread(ConfidenceScorer("max_prob")), spread(EENetScorer(num_exits, num_classes, weight))
    together = Ensemble(num_exits, num_classes, torch.rand(num_exits, num_exits).tril())
    columns = StoppingState().own_columns(num_classes)
    stopping = StoppingScorer(num_exits, columns, weight=torch.rand(num_exits - 1, columns, dtype=torch.float64))
    later = ScorePolicy(max_prob.scorer, max_prob.thresholds + 0.01)
    return {
        "max_prob": max_prob,
        "certainty": spread(ConfidenceScorer("certainty")),
        "vote": spread(VoteScorer()),
        "eenet": eenet,
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


def markdown(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    lines = [
        "| batch size | policy | full, ms | deciding, ms | share of full | quartiles | target |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        quartiles = f"{row['share_low']:.2%} to {row['share_high']:.2%}"
        lines.append(
            f"| {row['batch_size']} | {row['policy']} | {row['full_ms']:.3f} | {row['overhead_ms']:.4f} "
            f"| {row['share']:.2%} | {quartiles} | {row['target']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=9)
    parser.add_argument("--samples", type=int, default=256, help="at batch size 128; at batch size 1 an eighth of it")
    parser.add_argument("--batch-size", type=int, choices=tuple(TARGETS), help="only this one")
    parser.add_argument("--out", type=Path, help="write the JSON here; default: print it below the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(max(args.samples, 128), 3, 32, 32)
    engine = EagerEngine(cifar_resnet(56, exits=EXITS))
    rows = []
    for name, policy in policies(outputs(engine, images)).items():
        for size, target in TARGETS.items():
            if args.batch_size not in (None, size):
                continue
            some = images if size > 1 else images[: max(8, len(images) // 8)]
            found = measure(engine, policy, some, size, args.passes)
            rows.append({"batch_size": size, "policy": name, "target": target, **found})
            print(f"{name}, batch size {size}: {found['share']:.2%}", file=sys.stderr)
    rows.sort(key=lambda row: row["batch_size"])
    result = {"threads": 1, "torch": torch.__version__, "passes": args.passes, "exits": 6, "rows": rows}
    print(markdown(result))
    if args.out:
        write_json(args.out, result)
    else:
        print("\n" + json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
