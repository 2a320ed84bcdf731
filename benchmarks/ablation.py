"""What each way to train exits adds, on the same model, data and compute.

    python benchmarks/ablation.py --data-root DIR --work runs/ablation

ResNet20 with 4 exits on CIFAR-10, from published weights: every method changes one thing of the plain recipe, all else
stays, and every method is trained once per seed. Accuracy is compared at equal absolute cost, heads included, under the
policy `auto`. Every training leaves a folder and is not repeated while that is there; several of these commands may
share a work folder if they train other seeds (``--seed``, repeatable; with one seed there is no page). Writes
``docs/results/training.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, command_line, data_option, given, log, recorded
from pages.training import methods_page
from torch import nn

from eenet import AutoScheduler, CostTable, ExitTable, MultiExitModel, evaluate
from eenet.evaluation.compare import random_splits
from eenet.evaluation.statistics import curve
from eenet.experiments.data import DataSplits, load_cifar10, random_crop_flip
from eenet.experiments.pages import kept
from eenet.experiments.recipes.vision import PUBLIC_HEAD
from eenet.experiments.zoo import cifar_resnet, load_cifar_resnet_weights
from eenet.models import attention_linear, cascaded, conv_head, mixed_linear, pooled_linear, residual_head
from eenet.models.heads import HeadFactory
from eenet.running.measuring import measure_flops
from eenet.tables.files import read_json
from eenet.training import (
    TrainSettings,
    expected_exit_weights,
    fit_exits,
    increasing_weights,
    rescaled_gradients,
    uniform_weights,
)

SHARES = tuple(percent / 100 for percent in range(45, 105, 5))  # of the original net's cost, where curves are read


def half_last(num_exits: int) -> tuple[float, ...]:
    """Return half of the weight for the last exit, the rest in equal parts for the early ones."""
    return (0.5 / (num_exits - 1),) * (num_exits - 1) + (0.5,)


def small_net_first(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return a small net as the head in the first group of blocks, else the public head."""
    return (residual_head(32) if shape[1] < 32 else PUBLIC_HEAD)(shape, num_classes)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One change of the plain recipe.

    Args:
        name: for the page.
        settings: what is other than in `PLAIN`.
        heads: makes the early heads.
        cascade: whether heads see what the exit before said.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    heads: HeadFactory = PUBLIC_HEAD
    cascade: bool = False

    @property
    def folder(self) -> str:
        """The name as a file name."""
        return self.name.replace(" ", "-")


PLAIN = TrainSettings(
    epochs=0.5,
    batch_size=64,
    lr=0.05,
    head_lr=0.15,
    weighting=uniform_weights,
    distillation=0.0,
    augment=random_crop_flip,
)
METHODS = (
    Method(name="plain"),
    Method(name="increasing weights", settings={"weighting": increasing_weights}),
    Method(name="half the weight last", settings={"weighting": half_last}),
    Method(name="self-distillation", settings={"distillation": 0.1, "distillation_from": 0.1}),
    Method(name="two phases", settings={"heads_share": 0.1}),
    Method(name="rescaled gradients", settings={"gradients": rescaled_gradients}),
    Method(name="weights of samples", settings={"sample_weighting": expected_exit_weights}),
    Method(name="average of weights", settings={"ema": 0.99}),
    Method(name="cascaded heads", cascade=True),
    Method(name="pooled linear heads", heads=pooled_linear),
    Method(name="attention pooling", heads=attention_linear),
    Method(name="mixed pooling", heads=mixed_linear()),
    Method(name="strided convolutions", heads=conv_head((2, 2))),
    Method(name="small net first", heads=small_net_first),
)


def main() -> None:
    """Do what is not done yet, then write the page."""
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder of the trainings; made if it is not there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, action="append", help="default: 0, 1 and 2")
    options = given(parser)
    seeds = options.seed or [0, 1, 2]
    found = list(trained(options, seeds))
    if len(seeds) > 1:
        methods_page(found, options, SHARES, steps=steps_of(options.work), size=PLAIN.batch_size)


def trained(options: argparse.Namespace, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield what every method reaches with every seed."""
    for seed in seeds:
        for method in METHODS:
            folder = options.work / f"{method.folder}-{seed}"
            found = kept(folder / "result.json", partial(one_method, method, seed, folder, options.data_root), log)
            yield {"method": method.name, "seed": seed, **found}


def one_method(method: Method, seed: int, folder: Path, root: Path) -> dict[str, Any]:
    """Train a method with a seed, which also draws the halves of the test images, and judge it under `auto`."""
    splits = load_cifar10(root, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cifar_resnet(20, exits=(2, 5, 7), heads=method.heads)
        load_cifar_resnet_weights(model, root / "weights" / "cifar10_resnet" / "resnet20.safetensors")
        if method.cascade:
            model = cascaded(model, 10)
    model.to(memory_format=torch.channels_last)
    reference = measure_flops(cifar_resnet(20, exits=(2, 5, 7)), splits.test.inputs(slice(0, 2))).reference / 1e6
    fit_exits(model, splits.train, replace(PLAIN, seed=seed, **method.settings), out=folder)
    return judged(both_recorded(model, splits, folder), reference, SHARES, splits=1)


def steps_of(folder: Path) -> int:
    """Return how many steps the trainings of the methods took."""
    steps = {read_json(path, "history")["steps"] for path in folder.glob("*/history.json")}
    return int(steps.pop())


def both_recorded(model: MultiExitModel, splits: DataSplits, folder: Path) -> tuple[ExitTable, ExitTable]:
    """Return what the exits say about both halves of the test images."""
    costs = measure_flops(model, splits.test.inputs(slice(0, 2))).costs().convert("MFLOPs")
    calibration, test = (recorded(model, splits.get(name), folder, name, costs) for name in ("calibration", "test"))
    return calibration, test


def judged(
    tables: tuple[ExitTable, ExitTable], reference: float, shares: Sequence[float], *, splits: int
) -> dict[str, Any]:
    """Return what the exits cost and get right, and the area under the curve of `auto`, split by split.

    Args:
        tables: of the two halves.
        reference: cost of the original net.
        shares: of that cost, where the curve is read.
        splits: how often the halves are redrawn.
    """
    costs = tables[0].require_costs()
    return {
        "unit": costs.unit,
        "reference": reference,
        "costs": list(costs.cumulative),
        "accuracy": tables[1].require_utility("accuracy").mean(axis=0).tolist(),
        "areas": areas(tables, costs, [share * reference for share in shares], splits),
        "sides": [table.num_samples for table in tables],
    }


def areas(tables: tuple[ExitTable, ExitTable], costs: CostTable, budgets: Sequence[float], splits: int) -> list[float]:
    """Return the mean accuracy of `auto` over the same absolute budgets for all models, for every split."""
    if costs.low > budgets[0]:
        raise SystemExit(f"exit 0 costs {costs.low:g} {costs.unit}, more than the first budget, {budgets[0]:g}")
    found = []
    for fitting, judging in random_splits(*tables, splits, 0):
        dial = AutoScheduler(seed=0).sweep(fitting, costs, budgets=list(budgets))
        points = [evaluate(dial.at(budget), judging, costs) for budget in budgets]
        drawn = curve(
            np.array([point.cost for point in points]),
            np.array([point.utility for point in points]),
            anchor=(costs.low, points[0].static_utility[0]),
        )
        found.append(drawn.area(budgets))
    return found


if __name__ == "__main__":
    main()
