"""What one decision costs at batch size 1: microseconds per exit and policy, on outputs of 6 exits and 10 classes.

    python benchmarks/decision_speed.py [--json]

Times ``policy.leaves`` of one sample and reading its answer off, in turns over the policies; medians with quartiles. We
hold ourselves to 80 microseconds for `stopping`, ensemble included, on an idle core.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from eenet import EENetScheduler, GeometricScheduler, JointScheduler, PceeScheduler, StoppingScheduler, VoteScheduler
from eenet.core.policy import unmixed
from eenet.report import markdown_table
from eenet.testing import synthetic_table

LIMIT = 80.0
DECISIONS = 2000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = synthetic_table(2000, num_exits=6, num_classes=10)
    schedulers = {
        "max_prob": GeometricScheduler(),
        "certainty": GeometricScheduler(confidence="certainty"),
        "margin": GeometricScheduler(confidence="margin"),
        "joint": JointScheduler(),
        "vote": VoteScheduler(),
        "pcee": PceeScheduler(),
        "eenet": EENetScheduler(epochs=2),
        "stopping, no ensemble": StoppingScheduler(ensemble=False),
        "stopping": StoppingScheduler(),
    }
    policies = {name: unmixed(one.fit(table, budget="60%"))[0][1] for name, one in schedulers.items()}
    seconds = {name: [] for name in policies}
    ids = torch.zeros(1, dtype=torch.long)
    with torch.inference_mode():
        for i in range(DECISIONS):
            k = i % (table.num_exits - 1)
            seen = table.log_probs(slice(i, i + 1))[:, : k + 1].clone()
            for name, policy in policies.items():
                began = time.perf_counter()
                bool(policy.leaves(seen, ids))
                seconds[name].append(time.perf_counter() - began)
    rows = []
    for name, taken in seconds.items():
        low, middle, high = (1e6 * np.quantile(taken[DECISIONS // 10 :], q) for q in (0.25, 0.5, 0.75))
        limit = LIMIT if name == "stopping" else None
        within = None if limit is None else bool(middle <= limit)
        rows.append({"policy": name, "median_us": middle, "low_us": low, "high_us": high, "limit_us": limit})
        rows[-1]["within"] = within
    if options.json:
        print(json.dumps({"samples": DECISIONS, "exits": 6, "classes": 10, "threads": 1, "rows": rows}))
        return
    shown = [
        (
            row["policy"],
            f"{row['median_us']:.0f} ({row['low_us']:.0f} to {row['high_us']:.0f})",
            "" if row["limit_us"] is None else f"{row['limit_us']:.0f}",
            "" if row["within"] is None else ("yes" if row["within"] else "NO"),
        )
        for row in rows
    ]
    print(markdown_table(("policy", "microseconds", "limit", "within"), shown), end="")


if __name__ == "__main__":
    main()
