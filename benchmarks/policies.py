"""The result page that sets all policies side by side: real tables, planted optima, certificates, the controller.

    eenet train cifar10_resnet56_6 --data-root DIR --out RUNS/cifar10_resnet56_6
    eenet record RUNS/cifar10_resnet56_6 --split val --out RUNS/cifar10_resnet56_6/calibration.npz
    eenet record RUNS/cifar10_resnet56_6 --split test --out RUNS/cifar10_resnet56_6/test.npz
    python benchmarks/sst2.py --data-root DIR --run RUNS/sst2_minilm_6
    python benchmarks/policies.py --tables RUNS --work WORK

The first three likewise for ``cifar10_resnet56_3``. A table that is not there is left out, and the page says so. On
each, all policies are compared over redrawn splits, and `eenet_published`, which trains networks for every budget, over
fewer of the same ones. The planted part needs no data. We hold ourselves to: `auto` at most 0.2 points below the best
simple policy on any table; on ``cifar10_resnet56_6`` 1 point above `max_prob` and surely above `joint`; mean costs on
new data within 2 % of those on the fitting data. Every step leaves a JSON file in WORK and is not repeated while that
file is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, command_line, given, log
from pages.policies import policies_page
from scipy.stats import binomtest

from eenet import compare
from eenet.evaluation.compare import random_splits
from eenet.experiments.pages import kept
from eenet.policies import Dial, Policy, Replayer
from eenet.schedulers import JointScheduler, Scheduler
from eenet.schedulers.certify import certify
from eenet.schedulers.control import BudgetController
from eenet.schedulers.names import POLICIES, scheduler
from eenet.tables.costs import standard_budgets
from eenet.tables.files import read_json, write_json
from eenet.tables.table import ExitTable
from eenet.testing import (
    classwise_accuracies,
    classwise_optimum,
    classwise_table,
    gaussian_accuracies,
    gaussian_optimum,
    gaussian_table,
    measure_gain,
)

TABLES = ("cifar10_resnet56_6", "cifar10_resnet56_3", "sst2_minilm_6")
SMALL = ("sst2_minilm_6",)  # where `eenet_published` is fast enough for all splits
PLANTED: dict[str, tuple[Callable[..., ExitTable], Callable[[float], float], tuple[float, ...]]] = {
    "gaussian": (gaussian_table, gaussian_optimum, gaussian_accuracies()),
    "classwise": (classwise_table, classwise_optimum, classwise_accuracies()),
}
PLANTED_POLICIES = ("max_prob", "joint", "eenet", "pcee", "eero", "stopping", "auto")
FITTED, SEEDS, FRESH, FRESH_SEED = 5000, (1, 2, 3, 4, 5, 6), 300_000, 999
DRAWS, DRAW_SIZES, DRAW_FRESH, DELTA = 300, (1000,), 100_000, 0.1
PROMISES: tuple[dict[str, Any], ...] = (
    {"guarantee": "budget", "budget": 2.2},
    {"guarantee": "accuracy", "epsilon": 0.02},
)
STREAM, STREAMS, HARDER, STREAM_BUDGETS = 20_000, 5, 0.45, (1.5, 2.2, 3.0)
INFORMATION = (0.8, 0.2, 1.4, 0.1, 1.5, 1.0)  # of `gaussian_table`; times HARDER in the second half of the stream


def main() -> None:
    """Do what is not done yet, then write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--tables", type=Path, required=True, help=f"folder of run folders: {', '.join(TABLES)}")
    parser.add_argument("--work", type=Path, required=True, help="folder of the JSON files; made if it is not there")
    parser.add_argument("--splits", type=int, default=10, help="of every comparison")
    parser.add_argument("--published-splits", type=int, default=3, help="of eenet_published; 0 leaves it out")
    parser.add_argument("--policy", action="append", choices=list(POLICIES), help="instead of all; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, default=0, help="of splits and policies")
    options = given(parser)
    chosen = [name for name in options.policy or POLICIES if name != "eenet_published"]
    options.work.mkdir(parents=True, exist_ok=True)
    real, left_out = {}, {}
    for name in TABLES:
        missing = [p for p in ("calibration.npz", "test.npz") if not (options.tables / name / p).is_file()]
        if missing:
            left_out[name] = f"there is no {' and no '.join(missing)} in its run folder"
        else:
            real[name] = real_table(name, chosen, options)
    results = {
        "real": real,
        "left_out": left_out,
        "planted": kept(
            options.work / "planted.json", lambda: planted([n for n in PLANTED_POLICIES if n in chosen]), log
        ),
        "certificates": kept(options.work / "certificates.json", certificates, log),
        "controller": kept(options.work / "controller.json", controller, log),
    }
    print(policies_page(results, options))


# --- real tables -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Watched(Scheduler):
    """Another scheduler that keeps every dial it was fitted to, so that nothing has to be fitted twice."""

    inner: Scheduler
    dials: list[Dial] = field(default_factory=list)

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        """Fit and keep."""
        self.dials.append(self.inner.dial(table, budgets))
        return self.dials[-1]


def real_table(name: str, chosen: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return all policies on one table, how they keep budgets, and `eenet_published` on some of the splits."""
    tables = [ExitTable.load(options.tables / name / f"{split}.npz") for split in ("calibration", "test")]
    paths = {kind: options.work / f"{name}.{kind}.json" for kind in ("policies", "budgets", "published")}
    if not (paths["policies"].is_file() and paths["budgets"].is_file()):
        watched = {policy: Watched(inner=scheduler(policy, options.seed)) for policy in chosen}
        write_json(paths["policies"], compared(name, tables, watched, options.splits, options.seed))
        write_json(paths["budgets"], budget_deviations(tables, watched, options.splits, options.seed))
    result = {kind: read_json(paths[kind], "result") for kind in ("policies", "budgets")}
    splits = options.splits if name in SMALL else options.published_splits
    if options.published_splits:
        schedulers = {policy: scheduler(policy, options.seed) for policy in ("eenet_published", "max_prob")}
        make = partial(compared, name, tables, schedulers, splits, options.seed)
        result["published"] = kept(paths["published"], make, log)
    return result


def compared(
    name: str, tables: Sequence[ExitTable], schedulers: Mapping[str, Scheduler], splits: int, seed: int
) -> dict[str, Any]:
    """Compare policies at the ten standard budgets; the same seed gives the same splits."""

    def told(step: str, done: int, steps: int) -> None:
        log(f"{name}: {step} ({done} of {steps})")

    return compare(tables[0], tables[1], schedulers, splits=splits, seed=seed, progress=told).to_dict()


def budget_deviations(
    tables: Sequence[ExitTable], schedulers: Mapping[str, Watched], splits: int, seed: int
) -> dict[str, Any]:
    """Return by how much the cost on the test set differs from that on the fitting set, as a share of it."""
    costs = tables[0].require_costs()
    budgets = standard_budgets(costs)
    found: dict[str, list[list[float]]] = {name: [] for name in schedulers}
    for split, (val, test) in enumerate(random_splits(tables[0], tables[1], splits, seed)):
        log(f"budgets: split {split + 1} of {splits}")
        on_val, on_test = Replayer(val), Replayer(test)
        for name, watched in schedulers.items():
            policies = [watched.dials[split].at(budget) for budget in budgets]
            found[name].append([realised(on_test, policy) / on_val.expected(policy)[0] - 1 for policy in policies])
    return {
        name: {"mean": float(np.abs(rows).mean()), "worst": float(np.abs(rows).max()), "deviations": rows}
        for name, rows in found.items()
    }


def realised(replayer: Replayer, policy: Policy) -> float:
    """Return the mean cost of the exits that samples really took, coins included."""
    return replayer.mean_cost(replayer.exit_index(policy))


# --- planted optimum -------------------------------------------------------------------------------------------------


def planted(names: Iterable[str]) -> dict[str, Any]:
    """Return what policies gain on fresh samples, what could be gained, and how they keep budgets there."""
    rows = []
    for kind, (make, optimum, accuracies) in PLANTED.items():
        fresh = make(FRESH, seed=FRESH_SEED)
        chances = np.exp(fresh.seen().astype(np.float64))  # exact, given all evidence so far
        budgets = standard_budgets(fresh.require_costs())
        for name in names:
            log(f"planted: {kind}, {name}")
            gains = []
            for seed in SEEDS:
                dial = scheduler(name, seed).sweep(make(FITTED, seed=seed), budgets=budgets)
                policies = [dial.at(budget) for budget in budgets]
                found = [measure_gain(p, fresh, optimum, chances=chances, accuracies=accuracies) for p in policies]
                gains.append([asdict(gain) for gain in found])
            rows.append({"table": kind, "policy": name, "budgets": list(budgets), "gains": gains})
    return {"fitted": FITTED, "seeds": list(SEEDS), "fresh": FRESH, "rows": rows}


# --- certificates ----------------------------------------------------------------------------------------------------


def certificates() -> dict[str, Any]:
    """Return how often promises are broken over many draws of the calibration data, and what they cost."""
    fresh = gaussian_table(DRAW_FRESH, expected=True, seed=FRESH_SEED)
    judge, costs = Replayer(fresh), fresh.require_costs()
    full = float(fresh.require_utility("judging")[:, -1].mean())
    rows = []
    for promise in PROMISES:
        for size in DRAW_SIZES:
            log(f"certificates: {promise['guarantee']}, {size} samples")
            draws = [one_draw(promise, size, seed, judge, full) for seed in range(DRAWS)]
            means = {key: float(np.mean([draw[key] for draw in draws])) for key in draws[0]}
            sure = binomtest(round(DRAWS * means["broken"]), DRAWS).proportion_ci()
            rows.append({"promise": promise, "size": size, "low": float(sure.low), "high": float(sure.high)} | means)
    return {"draws": DRAWS, "delta": DELTA, "fresh": DRAW_FRESH, "full_utility": full, "unit": costs.unit, "rows": rows}


def one_draw(promise: dict[str, Any], size: int, seed: int, judge: Replayer, full: float) -> dict[str, float]:
    """Certify on one draw; judge what came of it, and of a plain fit on all of the draw, on fresh samples."""
    table = gaussian_table(size, seed=seed)
    certified = certify(JointScheduler(), table, delta=DELTA, seed=seed, **promise)
    cost, utility = judge.expected(certified.policy)
    told = {"cost": cost, "utility": utility, "fell_back": float(certified.certificate.fell_back)}
    if promise["guarantee"] == "accuracy":
        plain_cost, plain_utility = looks_good_enough(table, promise["epsilon"], judge)
        broken, plainly = full - utility > promise["epsilon"], full - plain_utility > promise["epsilon"]
    else:
        policy = JointScheduler().fit(table, budget=promise["budget"])
        plain_cost, plain_utility = judge.expected(policy)
        broken, plainly = cost > promise["budget"], plain_cost > promise["budget"]
    paid = {"utility_lost": plain_utility - utility, "cost_added": cost - plain_cost}
    return told | paid | {"broken": float(broken), "plainly_broken": float(plainly)}


def looks_good_enough(table: ExitTable, epsilon: float, judge: Replayer) -> tuple[float, float]:
    """Return cost and utility on fresh samples of the cheapest policy that loses no more on the draw itself."""
    dial = JointScheduler().sweep(table)
    enough = float(table.require_utility("judging")[:, -1].mean()) - epsilon
    good = (p for p, utility in zip(dial.policies, dial.fit_utilities, strict=True) if utility >= enough)
    return judge.expected(next(good, dial.policies[-1]))


# --- controller ------------------------------------------------------------------------------------------------------


def controller() -> dict[str, Any]:
    """Return what a stream costs whose second half is harder, under a fixed policy and under a controller."""
    dial = JointScheduler().sweep(gaussian_table(FITTED, seed=SEEDS[0]))
    half, harder = STREAM // 2, tuple(HARDER * value for value in INFORMATION)
    rows: dict[float, list[dict[str, float]]] = {budget: [] for budget in STREAM_BUDGETS}
    for stream in range(STREAMS):
        log(f"controller: stream {stream + 1} of {STREAMS}")
        seed = FRESH_SEED + 1 + 2 * stream
        parts = [gaussian_table(half, expected=True, information=INFORMATION, seed=seed)]
        parts.append(gaussian_table(half, expected=True, information=harder, seed=seed + 1))
        table = ExitTable.concat(parts)
        known, replayer = table.require_utility("judging"), Replayer(table)
        for budget in STREAM_BUDGETS:
            policy, trace = dial.at(budget), BudgetController(dial, budget).replay(table)
            rows[budget].append(
                {
                    "fixed_first": realised(Replayer(parts[0]), policy),
                    "fixed_second": realised(Replayer(parts[1]), policy),
                    "fixed": realised(replayer, policy),
                    "fixed_utility": float(replayer.utility(policy).mean()),
                    "controlled_first": float(trace.cost[:half].mean()),
                    "controlled_second": float(trace.cost[half:].mean()),
                    "controlled": trace.mean_cost,
                    "controlled_utility": float(known[np.arange(len(known)), trace.exit_index].mean()),
                }
            )
    told = [{"budget": budget, "streams": streams} for budget, streams in rows.items()]
    return {"samples": STREAM, "harder": HARDER, "unit": dial.costs.unit, "fitted": FITTED, "rows": told}


if __name__ == "__main__":
    main()
