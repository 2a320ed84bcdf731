"""Outcome tables: reading, fitting within the budget, and certificates that are kept, on planted outcomes.

    python benchmarks/outcomes.py
    python benchmarks/outcomes.py --rows 10000 --draws 100 --json

The outcomes are made up by `eenet.testing.planted_outcomes`: costs differ from sample to sample. Fitting is for one
budget; seconds are those of processors, all threads added up. Certificates are given on many small tables, and checked
on one large one of the same distribution.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

from common import log, row, show

BUDGET, DELTA = "40%", 0.1
LIMITS = {"read": 10.0, "fit": 10.0}  # seconds, at 100,000 rows of 5 stages


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--draws", type=int, default=300, help="tables on which a certificate is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    options = parser.parse_args()
    rows = [*speed(options), *certificates(options)]
    show(rows, as_json=options.json, n=options.rows, stages=options.stages, draws=options.draws, seed=options.seed)


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what reading and fitting take, and which share of the budget is spent on the fitting data."""
    from eenet import AutoScheduler, StoppingScheduler, read_outcomes
    from eenet.policies import Replayer
    from eenet.testing import planted_outcomes

    columns = planted_outcomes(options.rows, stages=options.stages, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        started = time.process_time()
        table = read_outcomes(path)
        found = [row("reading the CSV file", "s of CPU", time.process_time() - started, LIMITS["read"])]
    budget = table.require_costs().budget(BUDGET).value
    for name, scheduler in (("stopping", StoppingScheduler()), ("auto", AutoScheduler())):
        log(f"fitting {name}")
        started = time.process_time()
        policy = scheduler.fit(table, budget=BUDGET)
        found.append(row(f"fitting {name}", "s of CPU", time.process_time() - started, LIMITS["fit"]))
        spent = Replayer(table).expected(policy)[0] / budget
        found.append(row(f"{name}: expected cost on the fitting data", "of the budget", spent, 1.0))
    return found


def certificates(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return how often a certificate is broken on a large table of the same distribution."""
    from eenet import StoppingScheduler, certify, read_outcomes
    from eenet.errors import RunError
    from eenet.policies import Replayer
    from eenet.testing import planted_outcomes

    truth = read_outcomes(planted_outcomes(100_000, stages=3, seed=options.seed))
    reviewed = truth.with_fallback(cost=20.0)
    broken, refused = {"budget": 0, "accuracy": 0}, 0
    for draw in range(options.draws):
        if draw % 50 == 0:
            log(f"certificates: {draw} of {options.draws}")
        table = read_outcomes(planted_outcomes(600, stages=3, seed=options.seed + 1 + draw))
        try:
            policy = certify(StoppingScheduler(), table, budget=3.0, delta=DELTA, seed=draw).policy
            broken["budget"] += Replayer(truth).expected(policy)[0] > 3.0
        except RunError:
            refused += 1
        own = table.with_fallback(cost=20.0)
        sure = certify(StoppingScheduler(), own, guarantee="accuracy", epsilon=0.05, delta=DELTA, seed=draw).policy
        broken["accuracy"] += 1 - Replayer(reviewed).expected(sure)[1] > 0.05
    note = f"{options.draws} tables of 600 rows; {refused} refused"
    what = {"budget": "broken certificates of a budget", "accuracy": "broken certificates of at most 5 % wrong"}
    return [row(what[key], "of the draws", count / options.draws, DELTA, note) for key, count in broken.items()]


if __name__ == "__main__":
    main()
