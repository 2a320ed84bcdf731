"""An experiment from training to timing. Each step leaves a file and is not repeated while that is there."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from eenet.evaluation import Report, compare, evaluate
from eenet.evaluation.segmentation import find_confusion, mean_iou
from eenet.experiments.pages import kept
from eenet.experiments.recipes import Recipe, Run, train
from eenet.experiments.recipes.recipe import claim
from eenet.experiments.reproduce import parity
from eenet.experiments.reproduce.figures import Figures
from eenet.experiments.reproduce.known import Experiment, Scale
from eenet.experiments.reproduce.page import write_page
from eenet.experiments.reproduce.paper import PAPER
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel
from eenet.policies import Dial, Policy
from eenet.running.benchmark import bench
from eenet.running.engines import EagerEngine, Engine, OnnxEngine
from eenet.running.engines.programs import require_exporter
from eenet.running.inputs import rows_of
from eenet.running.measuring import measure, measure_flops
from eenet.running.recording import record
from eenet.schedulers import AutoScheduler, EENetScheduler, GeometricScheduler, Scheduler, StoppingScheduler
from eenet.schedulers.base import LEAST_GROUPS
from eenet.tables.costs import CostTable
from eenet.tables.files import read_json, write_json
from eenet.tables.table import ExitTable
from eenet.training.checkpoint import steps_done
from eenet.training.fit import FINAL_WEIGHTS

SIZES = (1, 32, 128)
Evaluated: TypeAlias = Literal["calibration", "test"]
TIME = "training.json"
WITHOUT_SAMPLES = "without_samples"  # folder of the figures for pages that are passed on: data sets often may not be
MOST_CLASSES = 100  # for which the paper's scheduler, with the paper's settings, is fitted in minutes
PASSES, TIMED, MAPS = 7, 128, 16  # timed passes, and test samples in a pass (maps take longer)

Results = dict[str, Any]
"""Results of a step, as JSON values."""


def step(name: str, note: str) -> Callable[[Callable[[Reproduction], Results]], Callable[[Reproduction], Results]]:
    """Let a method keep its result in a file of the folder, and return the content of that file in later calls."""

    def keeping(make: Callable[[Reproduction], Results]) -> Callable[[Reproduction], Results]:
        @wraps(make)
        def kept_result(self: Reproduction) -> Results:
            result: Results = kept(self.out / name, partial(make, self), self.note, note)
            return result

        return kept_result

    return keeping


class Recorded(NamedTuple):
    """The outputs of every exit on a set, and the confusion counts where they are maps."""

    table: ExitTable
    confusion: np.ndarray | None

    @property
    def exits(self) -> list[float]:
        """The accuracy of every exit, or the mean IoU of its maps."""
        if self.confusion is None:
            return [float(value) for value in self.table.require_utility("accuracy").mean(axis=0)]
        return [float(value) for value in mean_iou(self.confusion.sum(axis=0))]

    def evaluated(self, policy: Policy) -> tuple[float, Report]:
        """Return the accuracy of a policy, or the mean IoU of its maps; and all that is known about it."""
        report = evaluate(policy, self.table, confusion=self.confusion)
        return report.utility if report.maps is None else report.maps.miou, report


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One experiment in one folder: train, record, compare, time; a step that is done already is not done again.

    Policies are fitted on the calibration set and evaluated on the test set; neither took part in training.

    Attributes:
        experiment: What is done.
        out: Folder for the run, its tables and all results.
        schedulers: From the calibration set to the policies to compare on it, by name.
        scale: ``small`` or ``paper``.
        data_root: The folder of the data.
        seed: Of everything random.
        note: Called with every step before it begins.
        progress: Show progress bars.
    """

    experiment: Experiment
    out: Path
    schedulers: Callable[[ExitTable], Mapping[str, Scheduler]]
    scale: Scale = "small"
    data_root: Path | None = None
    seed: int = 0
    note: Callable[[str], None] = lambda text: None
    progress: bool = True

    def page(self, pages: Path | None = None) -> Results:
        """Do all steps and write the page with its plots, into a folder of its own if one is given.

        Returns:
            JSON values: where the page is, the exits, the budget found, the areas of the policies, the speed-ups.

        Raises:
            DataError: The data is missing or damaged.
            MissingExtraError: A package that one of the timed engines needs is not installed.
            InputError: The folder contains another experiment.
        """
        require_exporter("onnxruntime")
        self.recipe.load_data(self.data_root)  # missing files are reported before anything is written
        described = {"experiment": self.experiment.name, "scale": self.scale, **self.recipe.settings.to_dict()}
        claim(self.out / "experiment.json", described)  # all files of the folder are of this training
        costs = self.recorded["calibration"].table.require_costs()
        found: Results = {
            "title": self.experiment.title,
            "caveats": self.experiment.caveats.get(self.scale, ()),
            "budget": self.smallest_budget(),
            "bench": self.timed(),
            "comparison": self.comparison(),
            "published": self.published(),
            "figures": self.figures(),
            "training": self.trained(),
            "command": self.command(),
        }
        folder = pages or self.out
        folder.mkdir(parents=True, exist_ok=True)
        if any(one.ours == self.experiment.name for one in PAPER):
            beside = self.parity()
            if pages is not None:
                parity.keep(pages, self.experiment.name, beside)
        for name in found["figures"]["files"].values() if folder.resolve() != self.out.resolve() else ():
            shutil.copyfile(self.out / WITHOUT_SAMPLES / name, folder / name)
        page = write_page(folder, self.experiment.name, found, costs)
        return {
            "name": self.experiment.name,
            "scale": self.scale,
            "seed": self.seed,
            "page": str(page),
            "budget": found["budget"],
            "area": found["comparison"]["area"],
            "bench": found["bench"],
        }

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
    def recorded(self) -> dict[Evaluated, Recorded]:
        """The outputs on the calibration set and the test set."""
        splits: tuple[Evaluated, ...] = ("calibration", "test")
        return {split: self._recorded(split) for split in splits}

    def _recorded(self, split: Evaluated) -> Recorded:
        path = self.out / f"{split}.npz"
        if not path.is_file():
            run, costs = self.run, self.operations
            self.note(f"Recording the {split} set.")
            data = run.splits.get(split)
            record(run.model, data, path, split=split, costs=costs, group=data.groups, progress=self.progress)
        table = ExitTable.load(path)
        if table.num_groups < LEAST_GROUPS:  # nothing is known of others, as from the one street of CamVid's val images
            table = replace(table, group=None)
        return Recorded(table, find_confusion(path))

    @cached_property
    def operations(self) -> CostTable:
        """What leaving at each exit costs in MFLOPs."""
        return measure_flops(self.run.model, self.examples(2)).costs().convert("MFLOPs")

    def examples(self, count: int) -> Inputs:
        """Return some test samples, as the model takes them."""
        return self.run.splits.test.inputs(slice(0, count))

    @step("comparison.json", "Comparing policies.")
    def comparison(self) -> Results:
        """Compare all policies over random splits; those of maps on the one that was recorded."""
        (calibration, _), (test, confusion) = self.recorded.values()
        return compare(
            calibration,
            test,
            self.schedulers(calibration),
            self.experiment.budgets,
            confusion=confusion,
            splits=self.experiment.splits if confusion is None else 1,
            seed=self.seed,
            progress=self._note_progress,
        ).to_dict()

    @step("published.json", "Fitting the published scheduler.")
    def published(self) -> Results:
        """Compare the paper's rule, converged and as published: it trains networks for every budget, so on one split.

        Where there are very many classes that takes hours, and the reason why it is left out is returned.
        """
        (calibration, _), (test, confusion) = self.recorded.values()
        if calibration.num_columns > MOST_CLASSES:
            return {
                "left_out": f"the paper's networks read every class: with its settings and {calibration.num_columns} "
                "classes they learn for an hour and more"
            }
        known = self.schedulers(calibration)
        chosen = {name: known[name] for name in ("eenet", "max_prob") if name in known}
        slow = {"eenet_published": EENetScheduler.published, "eenet_paper": EENetScheduler.paper}
        made = {name: replace(make(seed=self.seed), progress=self._note_progress) for name, make in slow.items()}
        return compare(calibration, test, made | chosen, confusion=confusion, seed=self.seed).to_dict()

    @step("figures.json", "Drawing figures.")
    def figures(self) -> Results:
        """Draw who leaves where, scores and weights, and count what they show; see `Figures`.

        All are drawn twice: with samples of the data set, for the folder, and without, for pages elsewhere.
        """
        (calibration, _), (test, confusion) = self.recorded.values()
        found = self.smallest_budget()
        learning: Scheduler = StoppingScheduler(seed=self.seed)
        name = "stopping"
        if calibration.num_columns <= MOST_CLASSES:
            name, learning = "eenet_paper", EENetScheduler.paper(seed=self.seed)
        drawn = Figures(
            table=test,
            max_prob=GeometricScheduler(seed=self.seed).sweep(calibration),
            auto=AutoScheduler(seed=self.seed).sweep(calibration),
            learned=(name, learning.fit(calibration, budget=found["budget"])),
            cost=found["test_cost"] * calibration.require_costs().full,
            samples=self.run.splits.test,
            maps=confusion is not None,
        )
        replace(drawn, samples=None).save(self.out / WITHOUT_SAMPLES, self.experiment.name)
        return drawn.save(self.out, self.experiment.name)

    @step("budget.json", "Looking for the smallest budget.")
    def smallest_budget(self) -> Results:
        """Find the smallest budget that loses no more than is allowed, on the calibration set."""
        calibration, test = self.recorded.values()
        allowed = calibration.exits[-1] - self.experiment.loss
        budget, dial = smallest_budget(
            calibration.table, lambda policy: calibration.evaluated(policy)[0], allowed, self.seed
        )
        reached, report = test.evaluated(self.policy(budget))
        return {
            "budget": budget,
            "loss": self.experiment.loss,
            "measure": "accuracy" if test.confusion is None else "mean IoU",
            "test_utility": reached,
            "test_cost": report.cost / report.full_cost,
            "full_utility": test.exits[-1],
            "utility": test.exits,
            "exit_distribution": list(report.exit_distribution),
            "reason": dial.reason,
        }

    def policy(self, budget: str) -> Policy:
        """Return the policy `auto` of a budget in FLOPs."""
        return AutoScheduler(seed=self.seed).fit(self.recorded["calibration"].table, budget=budget)

    @step("bench.json", "Timing; nothing else should run now.")
    def timed(self) -> Results:
        """Time the policy of that budget against the original model without exits."""
        policy = self.policy(self.smallest_budget()["budget"])
        maps = self.recorded["test"].confusion is not None
        count = min(MAPS if maps else TIMED, len(self.run.splits.test))
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

    @step("latency.json", "Timing every exit; nothing else should run now.")
    def measured(self) -> Results:
        """Time every exit at batch size 1, and the policy's decisions."""
        inputs = self.examples(min(TIMED, len(self.run.splits.test)))
        policy = self.policy(self.smallest_budget()["budget"])
        found = measure(self.run.model, inputs, batch_sizes=(1,), passes=PASSES, policy=policy, progress=self.progress)
        return found.to_dict()

    @step("parity.json", "Comparing at the paper's budgets.")
    def parity(self) -> Results:
        """Compare at the paper's relative budgets, by operations and by time at batch 1; see `parity.results`."""
        calibration, test = self.recorded.values()
        return parity.results(
            next(one for one in PAPER if one.ours == self.experiment.name),
            (calibration.table, test.table, test.confusion),
            self.schedulers(calibration.table),
            self.measured(),
            splits=self.experiment.splits if test.confusion is None else 1,
            seed=self.seed,
            progress=self._note_progress,
        )

    def trained(self) -> str:
        """Return how the model was trained and how long that took, in one sentence."""
        settings, timed = self.recipe.settings, self.out / TIME
        took = "time of training not kept."
        if timed.is_file():
            known, done = read_json(timed, "training"), steps_done(self.out / "run")
            part = "" if known["steps"] == done else f" for {known['steps']} of {done} steps, the others not timed,"
            took = f"{known['seconds'] / 60:.0f} minutes of training{part} on the machine named below."
        return (
            f"{self.recipe.summary[0].upper()}{self.recipe.summary[1:]}: {settings.epochs:g} epoch(s) in batches of "
            f"{settings.batch_size}, seed {settings.seed}, no selection; {took}"
        )

    def command(self) -> str:
        """Return the command that makes the page again."""
        name, scale, seed = self.experiment.name, self.scale, self.seed
        words = f"eenet reproduce {name} --data-root DIR --out out/{name}"
        words += f" --threads {torch.get_num_threads()}"  # trained weights depend on it
        return words + ("" if scale == "small" else f" --scale {scale}") + (f" --seed {seed}" if seed else "")

    def _note_progress(self, part: str, done: int, total: int) -> None:
        if self.progress:
            self.note(f"[{done}/{total}] {part}")

    def _add_time(self, seconds: float, steps: int) -> None:
        """Keep how long how many steps took, over all the times training was resumed; a kill leaves its steps out."""
        path = self.out / TIME
        before = read_json(path, "training") if path.is_file() else {"seconds": 0.0, "steps": 0}
        write_json(path, {"seconds": before["seconds"] + seconds, "steps": before["steps"] + steps})


def engines(model: MultiExitModel, inputs: Inputs) -> tuple[Engine, ...]:
    """Return the engines that are timed: PyTorch as it is, and ONNX Runtime."""
    return EagerEngine(model), OnnxEngine(model, rows_of(inputs, slice(0, 2)))


def smallest_budget(
    calibration: ExitTable, quality: Callable[[Policy], float], allowed: float, seed: int
) -> tuple[str, Dial]:
    """Return the smallest whole percentage of the full cost whose quality is the allowed one, and the dial of `auto`.

    Where no budget is enough, the largest one is returned.
    """
    costs = calibration.require_costs()
    least = int(100 * costs.low / costs.full) + 1  # pays for exit 0
    most = math.ceil(100 * costs.high / costs.full)  # the last exit may cost more than the original model
    budgets = [f"{percent}%" for percent in range(least, most + 1)]
    dial = AutoScheduler(seed=seed).sweep(calibration, budgets=budgets)
    return next((budget for budget in budgets if quality(dial.at(budget)) >= allowed), budgets[-1]), dial
