"""How long fitting takes, on one core: every policy on a synthetic table of 5,000 samples, 6 exits and 10 classes.

    python benchmarks/policies_speed.py [--json] [--skip-published]

Prints seconds and the limits we hold ourselves to: the default `eenet` at one budget within 3 s, `stopping` at ten
budgets within 5 s, any heuristic at ten budgets within 1 s, the whole comparison of all policies but `eenet_published`
at ten budgets within 60 s. Processor seconds decide, so that other work on the machine does not; what torch loads on
first use is not counted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from eenet import Dial, Policy, compare, standard_budgets
from eenet.cli.names import POLICIES
from eenet.report import markdown_table
from eenet.testing import synthetic_table

SLOW = ("eenet", "eenet_published")
LEARNT = {"stopping": 5.0, "auto": None, "ztw": None}  # what they may take at ten budgets; the rest are heuristics
LIMITS = {"eenet, 1 budget": 3.0, "heuristic": 1.0, "compare": 60.0}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall and the processor seconds of a piece of work."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def at_all(dial: Dial, budgets: list[float]) -> list[Policy]:
    """Return the policy of every budget."""
    return [dial.at(budget) for budget in budgets]


def row(what: str, seconds: tuple[float, float], limit: float | None) -> dict[str, Any]:
    """Return one line of the result."""
    kept = None if limit is None else seconds[1] <= limit
    return {"what": what, "wall_s": seconds[0], "processor_s": seconds[1], "limit_s": limit, "within": kept}


def measure(samples: int, *, published: bool) -> list[dict[str, Any]]:
    """Return the timings of every policy and of the comparison."""
    val = synthetic_table(samples, num_exits=6, num_classes=10, seed=0)
    test = synthetic_table(samples, num_exits=6, num_classes=10, seed=1)
    budgets, one = list(standard_budgets(val.costs)), 0.5 * (val.costs.low + val.costs.high)
    POLICIES["eenet"](0).fit(val.select(slice(0, 200)), budget=one)  # what torch loads lazily is loaded now
    rows = []
    for name, make in POLICIES.items():
        if name != "eenet_published" or published:
            limit = LIMITS.get(f"{name}, 1 budget")
            rows.append(row(f"{name}, 1 budget", timed(lambda make=make: make(0).fit(val, budget=one)), limit))
        if name not in SLOW:
            seconds = timed(lambda make=make: at_all(make(0).sweep(val, budgets=budgets), budgets))
            rows.append(row(f"{name}, 10 budgets", seconds, LEARNT.get(name, LIMITS["heuristic"])))
    schedulers = {name: make(0) for name, make in POLICIES.items() if name != "eenet_published"}
    seconds = timed(lambda: compare(val, test, schedulers, budgets))
    rows.append(row("compare, all but eenet_published, 10 budgets", seconds, LIMITS["compare"]))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--skip-published", action="store_true", help="leave out the slow eenet_published")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.samples, published=not options.skip_published)
    if options.json:
        print(json.dumps({"samples": options.samples, "exits": 6, "classes": 10, "threads": 1, "rows": rows}))
        return
    shown = [
        (
            entry["what"],
            f"{entry['wall_s']:.2f}",
            f"{entry['processor_s']:.2f}",
            "" if entry["limit_s"] is None else f"{entry['limit_s']:g}",
            "" if entry["within"] is None else ("yes" if entry["within"] else "NO"),
        )
        for entry in rows
    ]
    print(markdown_table(("what", "wall s", "processor s", "limit s", "within"), shown), end="")


if __name__ == "__main__":
    main()
