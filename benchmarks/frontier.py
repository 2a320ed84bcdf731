"""All that is kept against a plain recipe: ResNet56 with 6 exits on CIFAR-10, trained as long.

    eenet reproduce cifar10-resnet56-6 --data-root DIR --out out/cifar10-resnet56-6
    python benchmarks/frontier.py --data-root DIR --best out/cifar10-resnet56-6 --work runs/frontier

*Best* is the recipe ``cifar10-resnet56-6``, whose trained run is read from ``--best``. *Plain* is the same with heads
of three convolutions, as in the paper's public code, at even distances, and without distillation. Accuracy is compared
at equal absolute cost, in operations and in measured time, under the policy `auto`. What is done already is not done
again; timing comes last, and nothing else should run then. Writes ``docs/results/frontier.md``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ablation import both_recorded, judged
from common import RESULTS, command_line, data_option, given, log
from pages.training import FRONTIER as NAME
from pages.training import frontier_page

from eenet import ExitTable, MultiExitModel
from eenet.experiments.data import DataSplits
from eenet.experiments.pages import kept
from eenet.experiments.recipes import RECIPES
from eenet.experiments.recipes.vision import CIFAR_WEIGHTS, PUBLIC_HEAD
from eenet.experiments.zoo import cifar_resnet, load_cifar_resnet_weights
from eenet.models.weights import load_tensors
from eenet.running.latency import measure_latency
from eenet.training import fit_exits, uniform_weights
from eenet.training.fit import FINAL_WEIGHTS

BEST = RECIPES[NAME]
PLAIN = replace(
    BEST,
    name="plain",
    make=partial(cifar_resnet, 56, exits=(4, 9, 13, 18, 22), heads=PUBLIC_HEAD),
    settings=replace(BEST.settings, distillation=0.0, weighting=uniform_weights),
)
SHARES = tuple(percent / 100 for percent in range(35, 105, 5))  # of the original net's cost, where curves are read
SIZES = (1, 32)


def main() -> None:
    """Do what is not done yet, then write the page."""
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--best", type=Path, required=True, help=f"folder of `eenet reproduce {NAME}`")
    parser.add_argument("--work", type=Path, required=True, help="folder of the plain run; made if it is not there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--splits", type=int, default=5, help="redrawn halves of the test images")
    parser.add_argument("--passes", type=int, default=10, help="timed passes")
    options = given(parser)
    splits = BEST.load_data(options.data_root)
    models = {"plain": plain_model(options, splits), "best": best_model(options)}
    folders = {"plain": options.work, "best": options.best}
    tables = {name: both_recorded(model, splits, folders[name]) for name, model in models.items()}
    in_flops = {
        name: kept(options.work / f"{name}.json", partial(in_operations, tables[name], options.splits), log)
        for name in models
    }
    timed = kept(options.work / "timed.json", partial(in_time, models, tables, splits, options), log)
    frontier_page(in_flops, timed, options, SHARES)


def plain_model(options: argparse.Namespace, splits: DataSplits) -> MultiExitModel:
    """Return the trained model of the plain recipe."""
    model = PLAIN.build()
    load_cifar_resnet_weights(model, options.data_root / CIFAR_WEIGHTS)
    fit_exits(model, splits.train, PLAIN.settings, out=options.work)
    return model


def best_model(options: argparse.Namespace) -> MultiExitModel:
    """Return the trained model of the best recipe."""
    model = BEST.build()
    model.load_state_dict(load_tensors(options.best / "run" / FINAL_WEIGHTS, "weights"))
    return model.eval()


def in_operations(tables: tuple[ExitTable, ExitTable], splits: int) -> dict[str, Any]:
    """Judge a model by its operations, which its tables know."""
    reference = tables[0].require_costs().reference
    assert reference is not None  # of a counted table
    return judged(tables, reference, SHARES, splits=splits)


def in_time(
    models: dict[str, MultiExitModel],
    tables: dict[str, tuple[ExitTable, ExitTable]],
    splits: DataSplits,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Judge both models by measured time at each batch size; the original net's is the mean of two measurements."""
    inputs = splits.test.inputs(slice(0, max(SIZES)))
    times = {
        name: measure_latency(model, inputs, batch_sizes=SIZES, passes=options.passes) for name, model in models.items()
    }
    found = []
    for index, size in enumerate(SIZES):
        costs = {name: timed[index].costs() for name, timed in times.items()}
        reference = float(np.mean([cost.full for cost in costs.values()]))
        for name, cost in costs.items():
            sides = tables[name]
            timed = replace(sides[0], costs=cost), replace(sides[1], costs=cost)
            found.append(
                {"recipe": name, "batch_size": size, **judged(timed, reference, SHARES, splits=options.splits)}
            )
    return found


if __name__ == "__main__":
    main()
