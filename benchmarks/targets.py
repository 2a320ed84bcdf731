"""The limits we set ourselves in time and memory: starting, deciding, fitting, large tables, running. One core.

    python benchmarks/targets.py start|decide|fit|large|run [--json]

* ``start``: ``import eenet``, ``eenet --help``, and ``eenet compare`` of ``max_prob`` on 5,000 samples, 6 exits and 10
  classes, each in processes of its own: the median, and the peak memory of the last.
* ``decide``: one decision of every policy, ``policy.leaves`` on what 6 exits said: medians with quartiles, decisions
  of one policy in a row, by turns; and "cold", one of each policy after the other, so that the processor's caches are
  full of other work, as between the stages of a model.
* ``fit``: every policy on a table of 5,000 samples, 6 exits and 10 classes, and the comparison of all of them.
  Processor seconds decide, so that other work on the machine does not.
* ``large``: 50,000 samples, 5 exits and 1,000 classes on each side, memory-mapped float16 (1 GB of disk): comparing
  five heuristics, or fitting `stopping`, each with its peak resident memory, mapped pages included.
* ``run``: what a user writes, ``AdaptiveModel(model, policy)``, against what `bench` reports for the eager engine, as
  the ratio of times, of ResNet56, EfficientNet-Lite0 and ViT-tiny (weights as initialised; ``eenet[vision]``).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import log, row, show

from eenet import ExitTable, GeometricScheduler, Policy, Scheduler, StoppingScheduler, compare
from eenet.schedulers import PatienceScheduler, VoteScheduler
from eenet.schedulers.names import POLICIES, scheduler
from eenet.tables import standard_budgets
from eenet.testing import synthetic_table

if TYPE_CHECKING:
    from torch import Tensor

    from eenet import MultiExitModel

SAMPLES, EXITS, CLASSES = 5000, 6, 10
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NOT_ASKED = ("eenet_published",)  # trains networks for every budget


def main() -> None:
    """Measure one thing and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("start", "decide", "fit", "large", "run"))
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    parser.add_argument("--samples", type=int, help="of the tables of fit and large")
    parser.add_argument("--published", action="store_true", help="fit the slow eenet_published, too")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_CORE.items()):  # read when numpy is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_CORE)
    rows = {"start": start, "decide": decide, "fit": fit, "large": large, "run": run}[options.what](options)
    show(rows, as_json=options.json)


# --- start -----------------------------------------------------------------------------------------------------------


def start(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return how long a user waits before anything is done."""
    with tempfile.TemporaryDirectory() as folder:
        tables = []
        for seed in (0, 1):
            tables.append(str(Path(folder) / f"{seed}.npz"))
            synthetic_table(SAMPLES, num_exits=EXITS, num_classes=CLASSES, seed=seed).save(tables[-1])
        commands = {
            "import eenet": ((sys.executable, "-c", "import eenet"), 0.15),
            "eenet --help": ((sys.executable, "-m", "eenet", "--help"), 0.5),
            "eenet compare max_prob": (
                (sys.executable, "-m", "eenet", "compare", *tables, "--policy", "max_prob"),
                1.5,
            ),
        }
        rows = []
        for what, (command, limit) in commands.items():
            taken = [process(command) for _ in range(5)]
            rows.append(row(what, "s", float(np.median([seconds for seconds, _ in taken])), limit))
            rows.append(row(f"{what}, peak memory", "MB", taken[-1][1], 200.0 if "compare" in what else None))
    return rows


def process(command: tuple[str, ...]) -> tuple[float, float]:
    """Return seconds and peak megabytes of a process of its own."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return seconds, used.ru_maxrss / 1024  # Linux counts in KiB


# --- decide ----------------------------------------------------------------------------------------------------------

MICROSECONDS = {("max_prob", 1): 15.0, ("stopping, no ensemble", 1): 20.0, ("stopping", 1): 40.0}
DECISIONS = {1: 2000, 64: 500}
TURN, WARM = 100, 10  # decisions in a row; before them, untimed


def decide(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what one decision costs at batch sizes 1 and 64."""
    table = synthetic_table(
        max(size * count for size, count in DECISIONS.items()), num_exits=EXITS, num_classes=CLASSES
    )
    fitting = table.select(slice(0, SAMPLES))
    names = [name for name in POLICIES if name not in (*NOT_ASKED, "auto")]
    policies = {name: one_rule(scheduler(name, 0).fit(fitting, budget="60%")) for name in names}
    policies["stopping, no ensemble"] = one_rule(StoppingScheduler(ensemble=False).fit(fitting, budget="60%"))
    return [one for size, count in DECISIONS.items() for one in decided(table, policies, size, count)]


def one_rule(policy: Policy) -> Policy:
    """Return the weightiest part of a mixed policy, other policies as they are."""
    return max(policy.components(), key=lambda one: one[0])[1]


def decided(table: ExitTable, policies: dict[str, Policy], size: int, count: int) -> list[dict[str, Any]]:
    """Return a row per policy at one batch size."""
    ids = np.arange(size)
    batches = [table.seen(slice(i * size, (i + 1) * size))[:, : i % (EXITS - 1) + 1] for i in range(count)]
    batches = [np.ascontiguousarray(batch) for batch in batches]
    calls = {name: [partial(policy.leaves, batch, ids) for batch in batches] for name, policy in policies.items()}
    warm: dict[str, list[float]] = {name: [] for name in calls}
    cold: dict[str, list[float]] = {name: [] for name in calls}
    for first in range(0, count, TURN):
        for name, own in calls.items():
            for call in own[:WARM]:
                call()
            warm[name] += [microseconds(call) for call in own[first : first + TURN]]
        for i in range(first, first + TURN):
            for name, own in calls.items():
                cold[name].append(microseconds(own[i]))
    rows = []
    for name in sorted(calls):
        low, middle, high = np.quantile(warm[name], (0.25, 0.5, 0.75)).tolist()
        note = f"{low:.1f} to {high:.1f}; cold {np.median(cold[name]):.1f}"
        rows.append(row(f"{name}, batch {size}", "us", middle, MICROSECONDS.get((name, size)), note))
    return rows


def microseconds(call: Callable[[], object]) -> float:
    """Return how long a call took."""
    began = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - began)


# --- fit -------------------------------------------------------------------------------------------------------------

TEN_BUDGETS = {"stopping": 5.0, "auto": None, "ztw": None}  # seconds; heuristics have a second
SLOW = ("eenet", "eenet_published")  # a network per budget: not at ten of them
ONE_BUDGET, HEURISTIC, ALL = {"eenet": 3.0}, 1.0, 60.0


def fit(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the processor seconds of every fit and of the whole comparison."""
    samples = options.samples or SAMPLES
    val, test = (synthetic_table(samples, num_exits=EXITS, num_classes=CLASSES, seed=seed) for seed in (0, 1))
    costs = val.require_costs()
    budgets, middle = list(standard_budgets(costs)), 0.5 * (costs.low + costs.high)
    schedulers = {name: scheduler(name, 0) for name in POLICIES if options.published or name not in NOT_ASKED}
    schedulers["eenet"].fit(val.select(slice(0, 200)), budget=middle)  # what is loaded late is loaded now
    rows = []
    for name, one in schedulers.items():
        rows.append(timed(f"{name}, 1 budget", partial(one.fit, val, budget=middle), ONE_BUDGET.get(name)))
        if name not in SLOW:
            work = partial(at_all, one, val, budgets)
            rows.append(timed(f"{name}, 10 budgets", work, TEN_BUDGETS.get(name, HEURISTIC)))
    known = {name: one for name, one in schedulers.items() if name not in NOT_ASKED}
    rows.append(timed("compare all, 10 budgets", lambda: compare(val, test, known, budgets), ALL))
    return rows


def at_all(scheduler: Scheduler, table: ExitTable, budgets: list[float]) -> list[Policy]:
    """Return the policy of every budget, of one fit."""
    dial = scheduler.sweep(table, budgets=budgets)
    return [dial.at(budget) for budget in budgets]


def timed(what: str, work: Callable[[], object], limit: float | None) -> dict[str, Any]:
    """Return the processor seconds of some work, wall seconds beside them."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    seconds, wall = time.process_time() - processor, time.perf_counter() - wall
    return row(what, "s", seconds, limit, f"wall {wall:.2f} s")


# --- large -----------------------------------------------------------------------------------------------------------

LARGE, LARGE_EXITS, LARGE_CLASSES, ROWS = 50_000, 5, 1000, 1000
JOBS = {"compare 5 heuristics": 120.0, "fit stopping": 90.0}
MOST_GB = 2.0


def large(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return time and peak memory of both jobs, each in a process of its own."""
    if "EENET_LARGE_JOB" in os.environ:
        return large_job(Path(os.environ["EENET_LARGE_FOLDER"]), os.environ["EENET_LARGE_JOB"])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed, side in enumerate(("val", "test")):
            make_table(Path(folder) / side, options.samples or LARGE, seed)
        for job in JOBS:
            env = os.environ | {"EENET_LARGE_JOB": job, "EENET_LARGE_FOLDER": folder}
            done = subprocess.run(
                [sys.executable, __file__, "large", "--json"], env=env, check=True, stdout=subprocess.PIPE
            )
            rows += json.loads(done.stdout)["rows"]
    return rows


def large_job(folder: Path, job: str) -> list[dict[str, Any]]:
    """Return what one job takes in this process."""

    def load(side: str) -> ExitTable:
        return ExitTable.load(folder / side)

    heuristics = {
        **{name: GeometricScheduler(confidence=name) for name in ("max_prob", "certainty", "margin")},
        "patience": PatienceScheduler(),
        "vote": VoteScheduler(),
    }
    works: dict[str, Callable[[], object]] = {
        "compare 5 heuristics": lambda: compare(load("val"), load("test"), heuristics, ["40%", "60%"]),
        "fit stopping": lambda: StoppingScheduler().sweep(load("val")),
    }
    found = timed(f"load and {job}", works[job], JOBS[job])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
    return [found, row(f"{job}, peak memory", "GB", peak, MOST_GB)]


def make_table(folder: Path, samples: int, seed: int) -> None:
    """Write a folder of `.npy` files, a thousand rows at a time."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    labels = generator.integers(LARGE_CLASSES, size=samples)
    strength = np.linspace(3.0, 7.0, LARGE_EXITS, dtype=np.float32)
    header = {"descr": "<f2", "fortran_order": False, "shape": (samples, LARGE_EXITS, LARGE_CLASSES)}
    with (folder / "logits.npy").open("wb") as handle:  # written, not mapped: mapped pages would count as ours
        np.lib.format.write_array_header_1_0(handle, header)
        for first in range(0, samples, ROWS):
            part = labels[first : first + ROWS]
            block = generator.standard_normal((len(part), LARGE_EXITS, LARGE_CLASSES), dtype=np.float32)
            ease = generator.random((len(part), 1), dtype=np.float32) + 0.3
            block[np.arange(len(part)), :, part] += strength * ease
            block.astype(np.float16).tofile(handle)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "costs.npy", np.linspace(1.0, 5.0, LARGE_EXITS))
    np.save(folder / "cost_unit.npy", np.array("GFLOPs"))


# --- run -------------------------------------------------------------------------------------------------------------

RUN_SIZES, RUN_SAMPLES, RUN_PASSES = (1, 32, 128), 128, 5


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the time of `AdaptiveModel(model, policy)` as a share of what `bench` reports, for models and sizes."""
    import timm
    import torch

    from eenet import attach
    from eenet.experiments.zoo import cifar_resnet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = {
        "ResNet56": (lambda: cifar_resnet(56, exits=(4, 9, 13, 18, 22)), 32),
        "EfficientNet-Lite0": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10), 96),
        "ViT-tiny": (lambda: timm.create_model("vit_tiny_patch16_224"), 224),
    }
    rows = []
    for name, (make, side) in made.items():
        images = torch.randn(RUN_SAMPLES, 3, side, side)
        model = make().eval()
        model = model if name == "ResNet56" else attach(model, images[:2], exits=4).eval()
        for size in RUN_SIZES:
            log(f"{name}, batch {size}")
            rows.append(row(f"{name}, batch {size}", "x", *compared(model, images, size)))
    return rows


def compared(model: MultiExitModel, images: Tensor, size: int) -> tuple[float, float, str]:
    """Return the ratio of both times, its limit, and both times."""
    import torch

    from eenet import AdaptiveModel, ConfidenceScorer, ScorePolicy, bench

    with torch.inference_mode():
        table = ExitTable(logits=torch.stack(model(images), dim=1), utility=np.zeros((len(images), model.num_exits)))
    scorer, last = ConfidenceScorer("max_prob"), model.num_exits - 1
    thresholds = [np.median(scorer(table.seen()[:, : k + 1])) for k in range(last)]  # half of the rest leave at each
    policy = ScorePolicy(scorer, np.array([*thresholds, -np.inf], dtype=np.float32))
    report = bench(model, policy, images, batch_sizes=(size,), passes=RUN_PASSES, progress=False)
    promised = report.rows[0].adaptive_ms
    adaptive, times = AdaptiveModel(model, policy), []
    for _ in range(RUN_PASSES + 1):
        began = time.perf_counter()
        for part in images.split(size):
            adaptive(part)
        times.append(1e3 * (time.perf_counter() - began) / len(images))
    realised = float(np.median(times[1:]))  # the first one warms up
    return realised / promised, 1.05, f"{realised:.3f} and {promised:.3f} ms"


if __name__ == "__main__":
    main()
