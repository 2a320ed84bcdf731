"""The steps of an experiment, from training to timing. Each leaves a file and is not repeated while that is there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from eenet.core.costs import CostTable
from eenet.core.files import read_json, write_json
from eenet.core.policy import Policy
from eenet.core.table import ExitTable
from eenet.evaluation import compare, compare_dense, evaluate, evaluate_dense
from eenet.evaluation.segmentation import load_confusion, mean_iou
from eenet.inference.bench import bench
from eenet.inference.engines import EagerEngine, Engine, OnnxEngine
from eenet.inference.flops import measure_flops
from eenet.inference.latency import rows_of
from eenet.inference.record import record
from eenet.inference.record_dense import holds_masks, record_dense
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel
from eenet.recipes import Recipe, Run, train
from eenet.reproduce.experiment import Experiment, Scale
from eenet.schedulers import AutoScheduler, EENetScheduler, Scheduler
from eenet.training.checkpoint import read_checkpoint
from eenet.training.fit import FINAL_WEIGHTS

__all__ = ["Results", "SIZES", "Steps", "steps_done"]

SIZES = (1, 32, 128)
Side: TypeAlias = Literal["calibration", "test"]
SIDES: tuple[Side, ...] = ("calibration", "test")
TIME = "training.json"
MOST_CLASSES = 100  # for which the paper's scheduler, with the paper's settings, is fitted in minutes
PASSES, TIMED, MAPS = 7, 128, 16  # timed passes, and test samples in a pass (maps take longer)

Results = dict[str, Any]
"""What a step found out, as JSON values."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """One experiment in one folder.

    Attributes:
        experiment: What is done.
        scale: At which scale.
        out: The folder.
        data_root: Where the data lies.
        seed: Of everything random.
        schedulers: From the calibration side to the policies to compare on it, by name.
        note: Told about every step before it begins.
        progress: Show progress bars.
    """

    experiment: Experiment
    scale: Scale
    out: Path
    data_root: Path | None
    seed: int
    schedulers: Callable[[ExitTable], Mapping[str, Scheduler]]
    note: Callable[[str], None]
    progress: bool = True

    @property
    def recipe(self) -> Recipe:
        """What is trained."""
        return self.experiment.recipes[self.scale].with_seed(self.seed)

    @cached_property
    def run(self) -> Run:
        """The trained model; trained now, or further, where that is not done."""
        folder = self.out / "run"
        resume = partial(train, self.recipe, folder, data_root=self.data_root)
        if (folder / FINAL_WEIGHTS).is_file():
            return resume(progress=False)  # no step is left: it checks that this is that training, and loads
        self.note(f"Training {self.recipe.name}: {self.recipe.summary}.")
        began, first = time.monotonic(), steps_done(folder)
        try:
            return resume(progress=self.progress)
        finally:
            self._add_time(time.monotonic() - began, steps_done(folder) - first)

    @cached_property
    def tables(self) -> tuple[ExitTable, ExitTable]:
        """What every exit says about the calibration and the test side."""
        recorded = []
        for split in SIDES:
            path = self.out / f"{split}.npz"
            if not path.is_file():
                run, costs = self.run, self.operations
                self.note(f"Recording the {split} side.")
                write = record_dense if self.dense else record
                write(run.model, run.splits.get(split), path, split=split, costs=costs, progress=self.progress)
            recorded.append(ExitTable.load(path))
        return recorded[0], recorded[1]

    @cached_property
    def dense(self) -> bool:
        """Whether answers are maps."""
        return holds_masks(self.run.splits.test)

    @cached_property
    def confusions(self) -> tuple[Tensor, Tensor]:
        """Confusion counts of the maps of the calibration and the test side."""
        return load_confusion(self.out / "calibration.npz"), load_confusion(self.out / "test.npz")

    @cached_property
    def operations(self) -> CostTable:
        """What leaving at each exit costs in MFLOPs."""
        return measure_flops(self.run.model, self.examples(2)).costs().convert("MFLOPs")

    def examples(self, count: int) -> Inputs:
        """Return some test samples, as the model takes them."""
        return self.run.splits.test.inputs(slice(0, count))

    def comparison(self) -> Results:
        """Compare all policies over redrawn splits."""
        return self._kept("comparison.json", "Comparing policies.", self._compared)

    def published(self) -> Results:
        """Compare the paper's rule with the paper's settings: it trains networks for every budget, so on one split.

        Where there are very many classes that takes hours, and the reason why it is left out is returned.
        """
        return self._kept("published.json", "Fitting the published scheduler.", self._published)

    def smallest_budget(self) -> Results:
        """Find the smallest budget that loses no more than is allowed, on the calibration side."""
        return self._kept("budget.json", "Looking for the smallest budget.", self._search_budget)

    def timed(self) -> Results:
        """Time the policy of that budget against the original model without exits."""
        return self._kept("bench.json", "Timing; nothing else should run now.", self._timings)

    def _kept(self, name: str, said: str, make: Callable[[], Results]) -> Results:
        path = self.out / name
        if not path.is_file():
            self.note(said)
            write_json(path, make())
        value: Results = read_json(path, "result")
        return value

    def _compared(self) -> Results:
        calibration, test = self.tables
        budgets, splits, chosen = self.experiment.budgets, self.experiment.splits, self.schedulers(calibration)
        shared: dict[str, Any] = {"seed": self.seed, "progress": self._tell}
        if self.dense:
            return compare_dense(calibration, test, self.confusions[1], chosen, budgets, **shared).to_dict()
        return compare(calibration, test, chosen, budgets, splits=splits, **shared).to_dict()

    def _published(self) -> Results:
        calibration, test = self.tables
        if calibration.num_classes > MOST_CLASSES:
            return {
                "left_out": f"the paper's networks read every class: with its settings and {calibration.num_classes} "
                "classes they learn for an hour and more"
            }
        known = self.schedulers(calibration)
        chosen = {name: known[name] for name in ("eenet", "max_prob") if name in known}
        slow = replace(EENetScheduler.published(seed=self.seed), progress=self._tell)
        both = {"eenet_published": slow, **chosen}
        if self.dense:
            return compare_dense(calibration, test, self.confusions[1], both, seed=self.seed).to_dict()
        return compare(calibration, test, both, (), seed=self.seed).to_dict()

    def _search_budget(self) -> Results:
        calibration, test = self.tables
        costs = calibration.require_costs()
        allowed = self._of_exits("calibration")[-1] - self.experiment.loss
        most = math.ceil(100 * costs.high / costs.full)  # the last exit may cost more than the original model
        budgets = [f"{percent}%" for percent in range(least_percent(costs), most + 1)]
        dial = AutoScheduler(seed=self.seed).sweep(calibration, budgets=budgets)
        for budget in budgets:
            if self._worth(dial.at(budget), "calibration") >= allowed:
                break
        report = evaluate(self.policy(budget), test, costs, budget=budget)
        utility = self._of_exits("test")
        return {
            "budget": budget,
            "loss": self.experiment.loss,
            "measure": "mean IoU" if self.dense else "accuracy",
            "test_utility": self._worth(self.policy(budget), "test"),
            "test_cost": report.cost / costs.full,
            "full_utility": utility[-1],
            "utility": utility,
            "exit_distribution": list(report.exit_distribution),
            "reason": dial.reason,
        }

    def _of_exits(self, side: Side) -> list[float]:
        """Return what every exit is worth on a side: its accuracy, or the mean IoU of its maps."""
        number = SIDES.index(side)
        if self.dense:
            return mean_iou(self.confusions[number].sum(dim=0)).tolist()
        return self.tables[number].require_utility("accuracy").mean(dim=0).tolist()

    def _worth(self, policy: Policy, side: Side) -> float:
        """Return what a policy is worth on a side, by the same measure."""
        number = SIDES.index(side)
        table = self.tables[number]
        if self.dense:
            return evaluate_dense(policy, table, self.confusions[number], table.require_costs()).miou
        return evaluate(policy, table, table.require_costs()).utility

    def policy(self, budget: str) -> Policy:
        """Return the policy `auto` of a budget in FLOPs."""
        return AutoScheduler(seed=self.seed).fit(self.tables[0], budget=budget)

    def _timings(self) -> Results:
        policy = self.policy(self.smallest_budget()["budget"])
        count = min(MAPS if self.dense else TIMED, len(self.run.splits.test))
        inputs = self.examples(count)
        return bench(
            self.run.model,
            policy,
            inputs,
            batch_sizes=[size for size in SIZES if size <= count],
            engines=engines(self.run.model, inputs),
            passes=PASSES,
            seed=self.seed,
            progress=self.progress,
        ).to_dict()

    def _tell(self, part: str, done: int, total: int) -> None:
        if self.progress:
            self.note(f"[{done}/{total}] {part}")

    def _add_time(self, seconds: float, steps: int) -> None:
        """Keep how long how many steps took, over all the times training was resumed; a kill leaves its steps out."""
        path = self.out / TIME
        before = read_json(path, "training") if path.is_file() else {"seconds": 0.0, "steps": 0}
        write_json(path, {"seconds": before["seconds"] + seconds, "steps": before["steps"] + steps})


def steps_done(folder: Path) -> int:
    """Return how many steps the checkpoint in a run folder has behind it."""
    checkpoint = read_checkpoint(folder)
    return 0 if checkpoint is None else checkpoint.step


def engines(model: MultiExitModel, inputs: Inputs) -> tuple[Engine, ...]:
    """Return the engines that are timed: PyTorch as it is, and ONNX Runtime."""
    return EagerEngine(model), OnnxEngine(model, rows_of(inputs, torch.arange(2)))


def least_percent(costs: CostTable) -> int:
    """Return the smallest whole percentage of the full cost that pays for exit 0."""
    return int(100 * costs.low / costs.full) + 1
