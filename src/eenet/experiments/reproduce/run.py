"""An experiment from training to timing. Each step leaves a file and is not repeated while that is there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from eenet.evaluation import compare, compare_dense, evaluate, evaluate_dense
from eenet.evaluation.segmentation import load_confusion, mean_iou
from eenet.experiments.pages import kept
from eenet.experiments.recipes import Recipe, Run, train
from eenet.experiments.recipes.recipe import claim
from eenet.experiments.reproduce.known import Experiment, Scale
from eenet.experiments.reproduce.page import write_page
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel
from eenet.policies import Dial, Policy
from eenet.running.benchmark import bench
from eenet.running.engines import EagerEngine, Engine, OnnxEngine
from eenet.running.engines.programs import require_exporter
from eenet.running.inputs import rows_of
from eenet.running.measuring import measure_flops
from eenet.running.recording import record
from eenet.schedulers import AutoScheduler, EENetScheduler, Scheduler
from eenet.tables.costs import CostTable
from eenet.tables.files import read_json, write_json
from eenet.tables.table import ExitTable
from eenet.training.checkpoint import read_checkpoint
from eenet.training.fit import FINAL_WEIGHTS

SIZES = (1, 32, 128)
Evaluated: TypeAlias = Literal["calibration", "test"]
SPLITS: tuple[Evaluated, ...] = ("calibration", "test")
TIME = "training.json"
MOST_CLASSES = 100  # for which the paper's scheduler, with the paper's settings, is fitted in minutes
PASSES, TIMED, MAPS = 7, 128, 16  # timed passes, and test samples in a pass (maps take longer)

Results = dict[str, Any]
"""What a step found out, as JSON values."""


def step(name: str, said: str) -> Callable[[Callable[[Steps], Results]], Callable[[Steps], Results]]:
    """Let a method keep its result in a file of the folder, and return what that holds in later calls."""

    def keeping(make: Callable[[Steps], Results]) -> Callable[[Steps], Results]:
        @wraps(make)
        def kept_result(self: Steps) -> Results:
            return kept(self.out / name, partial(make, self), self.note, said)

        return kept_result

    return keeping


@dataclass(frozen=True, kw_only=True)
class Steps:
    """One experiment in one folder; its values are those of `reproduce`."""

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
        """What every exit says about the calibration set and the test set."""
        recorded = []
        for split in SPLITS:
            path = self.out / f"{split}.npz"
            if not path.is_file():
                run, costs = self.run, self.operations
                self.note(f"Recording the {split} set.")
                record(run.model, run.splits.get(split), path, split=split, costs=costs, progress=self.progress)
            recorded.append(ExitTable.load(path))
        return recorded[0], recorded[1]

    @cached_property
    def dense(self) -> bool:
        """Whether answers are maps."""
        return self.run.splits.test.targets(slice(0, 1)).ndim > 1

    @cached_property
    def confusions(self) -> tuple[np.ndarray, np.ndarray]:
        """Confusion counts of the maps of the calibration set and the test set."""
        return load_confusion(self.out / "calibration.npz"), load_confusion(self.out / "test.npz")

    @cached_property
    def operations(self) -> CostTable:
        """What leaving at each exit costs in MFLOPs."""
        return measure_flops(self.run.model, self.examples(2)).costs().convert("MFLOPs")

    def examples(self, count: int) -> Inputs:
        """Return some test samples, as the model takes them."""
        return self.run.splits.test.inputs(slice(0, count))

    @step("comparison.json", "Comparing policies.")
    def comparison(self) -> Results:
        """Compare all policies over redrawn splits."""
        calibration, test = self.tables
        budgets, splits, chosen = self.experiment.budgets, self.experiment.splits, self.schedulers(calibration)
        shared: dict[str, Any] = {"seed": self.seed, "progress": self._tell}
        if self.dense:
            return compare_dense(calibration, test, self.confusions[1], chosen, budgets, **shared).to_dict()
        return compare(calibration, test, chosen, budgets, splits=splits, **shared).to_dict()

    @step("published.json", "Fitting the published scheduler.")
    def published(self) -> Results:
        """Compare the paper's rule with the paper's settings: it trains networks for every budget, so on one split.

        Where there are very many classes that takes hours, and the reason why it is left out is returned.
        """
        calibration, test = self.tables
        if calibration.num_columns > MOST_CLASSES:
            return {
                "left_out": f"the paper's networks read every class: with its settings and {calibration.num_columns} "
                "classes they learn for an hour and more"
            }
        known = self.schedulers(calibration)
        chosen = {name: known[name] for name in ("eenet", "max_prob") if name in known}
        slow = replace(EENetScheduler.published(seed=self.seed), progress=self._tell)
        both = {"eenet_published": slow, **chosen}
        if self.dense:
            return compare_dense(calibration, test, self.confusions[1], both, seed=self.seed).to_dict()
        return compare(calibration, test, both, (), seed=self.seed).to_dict()

    @step("budget.json", "Looking for the smallest budget.")
    def smallest_budget(self) -> Results:
        """Find the smallest budget that loses no more than is allowed, on the calibration set."""
        calibration, test = self.tables
        costs = calibration.require_costs()
        allowed = self._of_exits("calibration")[-1] - self.experiment.loss
        budget, dial = smallest_budget(
            calibration, lambda policy: self._worth(policy, "calibration"), allowed, self.seed
        )
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

    def _of_exits(self, split: Evaluated) -> list[float]:
        """Return what every exit is worth on a set: its accuracy, or the mean IoU of its maps."""
        number = SPLITS.index(split)
        if self.dense:
            return [float(value) for value in mean_iou(self.confusions[number].sum(axis=0))]
        return [float(value) for value in self.tables[number].require_utility("accuracy").mean(axis=0)]

    def _worth(self, policy: Policy, split: Evaluated) -> float:
        """Return what a policy is worth on a set, by the same measure."""
        number = SPLITS.index(split)
        table = self.tables[number]
        if self.dense:
            return evaluate_dense(policy, table, self.confusions[number], table.require_costs()).miou
        return evaluate(policy, table, table.require_costs()).utility

    def policy(self, budget: str) -> Policy:
        """Return the policy `auto` of a budget in FLOPs."""
        return AutoScheduler(seed=self.seed).fit(self.tables[0], budget=budget)

    @step("bench.json", "Timing; nothing else should run now.")
    def timed(self) -> Results:
        """Time the policy of that budget against the original model without exits."""
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
    """Return how many steps the checkpoint in a run folder has done."""
    checkpoint = read_checkpoint(folder)
    return 0 if checkpoint is None else checkpoint.step


def engines(model: MultiExitModel, inputs: Inputs) -> tuple[Engine, ...]:
    """Return the engines that are timed: PyTorch as it is, and ONNX Runtime."""
    return EagerEngine(model), OnnxEngine(model, rows_of(inputs, slice(0, 2)))


def smallest_budget(
    calibration: ExitTable, worth: Callable[[Policy], float], allowed: float, seed: int
) -> tuple[str, Dial]:
    """Return the smallest whole percentage of the full cost that is worth what is allowed, and the dial of `auto`.

    Where no budget is enough, the largest one is returned.
    """
    costs = calibration.require_costs()
    least = int(100 * costs.low / costs.full) + 1  # pays for exit 0
    most = math.ceil(100 * costs.high / costs.full)  # the last exit may cost more than the original model
    budgets = [f"{percent}%" for percent in range(least, most + 1)]
    dial = AutoScheduler(seed=seed).sweep(calibration, budgets=budgets)
    return next((budget for budget in budgets if worth(dial.at(budget)) >= allowed), budgets[-1]), dial


def reproduce(
    experiment: Experiment,
    out: Path,
    *,
    schedulers: Callable[[ExitTable], Mapping[str, Scheduler]],
    scale: Scale = "small",
    data_root: Path | None = None,
    pages: Path | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda said: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train, record, compare, time and write the page of an experiment; what is done already is not done again.

    Policies are fitted on the calibration set and judged on the test set; neither took part in training.

    Args:
        experiment: What is done.
        out: Folder for the run, its tables and all results.
        schedulers: From the calibration set to the policies to compare on it, by name.
        scale: ``small`` or ``paper``.
        data_root: Where the data lies.
        pages: Folder for the page and its plots; default: ``out``.
        seed: Of everything random.
        note: Called with every step before it begins.
        progress: Show progress bars.

    Returns:
        JSON values: where the page is, the exits, the budget found, the areas of the policies, the speed-ups.

    Raises:
        DataError: The data is not there or damaged.
        MissingExtraError: What one of the timed engines needs is not installed.
        InputError: The folder holds another experiment.
    """
    steps = Steps(
        experiment=experiment,
        scale=scale,
        out=out,
        data_root=data_root,
        seed=seed,
        schedulers=schedulers,
        note=note,
        progress=progress,
    )
    require_exporter("onnxruntime")
    steps.recipe.load_data(data_root)  # says what is missing before anything is written
    described = {"experiment": experiment.name, "scale": scale, **steps.recipe.settings.to_dict()}
    claim(out / "experiment.json", described)  # all files of the folder are of this training
    calibration, _ = steps.tables
    found: dict[str, Any] = {
        "title": experiment.title,
        "caveats": experiment.caveats.get(scale, ()),
        "budget": steps.smallest_budget(),
        "bench": steps.timed(),
        "comparison": steps.comparison(),
        "published": steps.published(),
        "training": trained(steps),
        "command": command(experiment, scale, seed),
    }
    page = write_page(pages or out, experiment.name, found, calibration.require_costs())
    return {
        "name": experiment.name,
        "scale": scale,
        "seed": seed,
        "page": str(page),
        "budget": found["budget"],
        "area": found["comparison"]["area"],
        "bench": found["bench"],
    }


def trained(steps: Steps) -> str:
    """Say how the model was trained and how long that took."""
    settings, timed = steps.recipe.settings, steps.out / TIME
    took = "time of training not kept."
    if timed.is_file():
        known, done = read_json(timed, "training"), steps_done(steps.out / "run")
        part = "" if known["steps"] == done else f" for {known['steps']} of {done} steps, the others not timed,"
        took = f"{known['seconds'] / 60:.0f} minutes of training{part} on the machine named below."
    return (
        f"{steps.recipe.summary[0].upper()}{steps.recipe.summary[1:]}: {settings.epochs:g} epoch(s) in batches of "
        f"{settings.batch_size}, seed {settings.seed}, no selection; {took}"
    )


def command(experiment: Experiment, scale: Scale, seed: int) -> str:
    """Return the command that makes the page again."""
    said = f"eenet reproduce {experiment.name} --data-root DIR --out out/{experiment.name}"
    said += f" --threads {torch.get_num_threads()}"  # trained weights depend on it
    return said + ("" if scale == "small" else f" --scale {scale}") + (f" --seed {seed}" if seed else "")
