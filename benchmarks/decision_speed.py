"""What one decision costs at batch size 1: microseconds per exit and policy, on outputs of 6 exits and 10 classes.

    python benchmarks/decision_speed.py [--json]

Times ``policy.leaves`` of one sample and reading its answer off, in torch, and ``decide`` of the same policy in
`eenet_runtime`, which needs no torch: medians with quartiles. Decisions of one policy in a row, by turns of 100; and,
in the column "cold", one of each policy after the other, so that the processor's caches are full of other work, as
between the stages of a model. We hold ourselves to 80 and 20 microseconds for `stopping`, ensemble included, in a row
on an idle core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eenet import (
    EENetScheduler,
    EeroScheduler,
    GeometricScheduler,
    JointScheduler,
    PatienceScheduler,
    PceeScheduler,
    StoppingScheduler,
    TransformedScheduler,
    VoteScheduler,
    fit_geometric_ensemble,
    save_policy,
)
from eenet.core.combined import unmixed
from eenet.core.policy import Policy
from eenet.report import markdown_table
from eenet.testing import synthetic_table

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime" / "src"))  # it need not be installed
import eenet_runtime

LIMITS = {"torch": 80.0, "runtime": 20.0}  # of `stopping`
DECISIONS = 2000
TURN, WARM = 100, 10  # decisions in a row; before them, untimed
SCHEDULERS = {
    "max_prob": GeometricScheduler(),
    "certainty": GeometricScheduler(confidence="certainty"),
    "margin": GeometricScheduler(confidence="margin"),
    "joint": JointScheduler(),
    "patience": PatienceScheduler(),
    "vote": VoteScheduler(),
    "pcee": PceeScheduler(),
    "eero": EeroScheduler(),
    "ztw": TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_geometric_ensemble),
    "eenet": EENetScheduler(epochs=2),
    "stopping, no ensemble": StoppingScheduler(ensemble=False),
    "stopping": StoppingScheduler(),
}


def without_torch(policy: Policy) -> eenet_runtime.Policy:
    """Return the same policy, as the runtime reads it from disk."""
    with tempfile.TemporaryDirectory() as folder:
        save_policy(policy, Path(folder) / "policy")
        return eenet_runtime.load_policy(Path(folder) / "policy")


def microseconds(decide: Callable[[], object]) -> float:
    """Return how long one decision took."""
    began = time.perf_counter()
    bool(decide())
    ended = time.perf_counter()
    return 1e6 * (ended - began)


def decisions() -> dict[tuple[str, str], list[Callable[[], object]]]:
    """Return every decision of every policy and side, ready to be timed."""
    table = synthetic_table(DECISIONS, num_exits=6, num_classes=10)
    policies = {name: unmixed(one.fit(table, budget="60%"))[0][1] for name, one in SCHEDULERS.items()}
    ids = torch.zeros(1, dtype=torch.long)
    seen = [table.log_probs(slice(i, i + 1))[:, : i % (table.num_exits - 1) + 1].clone() for i in range(DECISIONS)]
    alone = [one.numpy()[0].copy() for one in seen]
    ready: dict[tuple[str, str], list[Callable[[], object]]] = {}
    for name, policy in policies.items():
        decide = without_torch(policy).decide
        ready[name, "torch"] = [partial(policy.leaves, one, ids) for one in seen]
        ready[name, "runtime"] = [partial(decide, one, 0) for one in alone]
    return ready


def measure() -> list[dict[str, object]]:
    """Return one row per policy and side."""
    ready = decisions()
    row: dict[tuple[str, str], list[float]] = {key: [] for key in ready}
    cold: dict[tuple[str, str], list[float]] = {key: [] for key in ready}
    with torch.inference_mode():
        for first in range(0, DECISIONS, TURN):
            for key, calls in ready.items():
                for call in calls[:WARM]:
                    call()
                row[key] += [microseconds(call) for call in calls[first : first + TURN]]
            for i in range(first, first + TURN):
                for key, calls in ready.items():
                    cold[key].append(microseconds(calls[i]))
    rows: list[dict[str, object]] = []
    for name, side in ready:
        low, middle, high = np.quantile(row[name, side], (0.25, 0.5, 0.75)).tolist()
        limit = LIMITS[side] if name == "stopping" else None
        taken = {"median_us": middle, "low_us": low, "high_us": high, "cold_us": float(np.median(cold[name, side]))}
        within = None if limit is None else middle <= limit
        rows.append({"policy": name, "side": side, **taken, "limit_us": limit, "within": within})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure()
    if options.json:
        print(json.dumps({"samples": DECISIONS, "exits": 6, "classes": 10, "threads": 1, "rows": rows}))
        return
    shown = [
        (
            row["policy"],
            row["side"],
            f"{row['median_us']:.1f} ({row['low_us']:.1f} to {row['high_us']:.1f})",
            f"{row['cold_us']:.1f}",
            "" if row["limit_us"] is None else f"{row['limit_us']:.0f}",
            "" if row["within"] is None else ("yes" if row["within"] else "NO"),
        )
        for row in rows
    ]
    print(markdown_table(("policy", "in", "microseconds", "cold", "limit", "within"), shown), end="")


if __name__ == "__main__":
    main()
