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
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import judged, kept, recorded

from eenet import ExitTable, MultiExitModel
from eenet.core.files import atomic_path, load_tensors
from eenet.data import DataSplits
from eenet.evaluation.statistics import nadeau_bengio
from eenet.inference.latency import measure_latency
from eenet.models import cifar_resnet, load_cifar_resnet_weights
from eenet.recipes import RECIPES
from eenet.recipes.vision import CIFAR_WEIGHTS, PUBLIC_HEAD
from eenet.report import markdown_table
from eenet.reproduce import EXPERIMENTS, machine
from eenet.training import fit_exits, uniform_weights
from eenet.training.fit import FINAL_WEIGHTS

NAME = "cifar10-resnet56-6"
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("EENET_DATA", "../shared/data")))
    parser.add_argument("--best", type=Path, required=True, help=f"folder of `eenet reproduce {NAME}`")
    parser.add_argument("--work", type=Path, required=True, help="folder of the plain run; made if it is not there")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--splits", type=int, default=5, help="redrawn halves of the test images")
    parser.add_argument("--passes", type=int, default=10, help="timed passes")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    splits = BEST.load_data(options.data_root)
    models = {"plain": plain_model(options, splits), "best": best_model(options)}
    folders = {"plain": options.work, "best": options.best}
    tables = {name: recorded(model, splits, folders[name]) for name, model in models.items()}
    in_flops = {
        name: kept(options.work / f"{name}.json", partial(in_operations, tables[name], options.splits))
        for name in models
    }
    write_page(in_flops, kept(options.work / "timed.json", partial(in_time, models, tables, splits, options)), options)


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


def write_page(in_flops: dict[str, Any], in_time: list[dict[str, Any]], options: argparse.Namespace) -> Path:
    """Write the page and return where it stands."""
    parts = [
        "# What the recipe gains",
        f"ResNet56 with 6 exits, {BEST.settings.epochs:g} passes over the train images from published weights, one "
        f"training each. *Best* is the recipe `{NAME}`: early exits where they know enough, a small net of its own as "
        "the first head, next to nothing as the last ones, and distillation from the last exit. *Plain* is the same "
        "with heads of three convolutions, as in the paper's public code, at even distances, and without distillation.",
        exits_table(in_flops),
        "Accuracy at **equal absolute cost**, heads paid for, under the same policy, `auto`, fitted on one half of the "
        f"test images and judged on the other. *Area* is the mean accuracy over {len(SHARES)} budgets from "
        f"{SHARES[0]:.0%} to {SHARES[-1]:.0%} of the original net's cost; gains are in points. Time is that of the "
        f"eager engine on {options.threads} thread(s).",
        areas_table(in_flops, in_time),
        f"The interval (95 %) is that of {options.splits} redrawn halves (Nadeau and Bengio's corrected t): it knows "
        "the luck of the halves, not that of training.",
        "Caveats:\n\n" + "\n".join(f"* {caveat}" for caveat in EXPERIMENTS[NAME].caveats["small"]),
        "## Again",
        f"```\neenet reproduce {NAME} --data-root DIR --out out/{NAME}\npython benchmarks/frontier.py --data-root DIR "
        f"--best out/{NAME} --work runs/frontier --splits {options.splits} --passes {options.passes}\n```",
        machine(),
    ]
    path: Path = options.out / "frontier.md"
    with atomic_path(path) as draft:
        draft.write_text("\n\n".join(part.rstrip("\n") for part in parts) + "\n", encoding="utf-8")
    return path


def exits_table(recipes: dict[str, Any]) -> str:
    """Return what the exits of both recipes cost and get right."""
    rows = [
        (name, str(k), f"{cost:.1f}", f"{100 * cost / one['reference']:.0f}", f"{100 * right:.2f}")
        for name, one in recipes.items()
        for k, (cost, right) in enumerate(zip(one["costs"], one["accuracy"], strict=True))
    ]
    unit = next(iter(recipes.values()))["unit"]
    return markdown_table(("recipe", "exit", unit, "% of the original net", "accuracy, %"), rows)


def areas_table(in_flops: dict[str, Any], in_time: list[dict[str, Any]]) -> str:
    """Return the areas of both recipes in operations and in measured time, and what the best one gains."""
    sets = {"operations": in_flops}
    for one in in_time:
        sets.setdefault(f"measured time, batch size {one['batch_size']}", {})[one["recipe"]] = one
    rows = []
    for name, pair in sets.items():
        plain, best = (100 * np.array(pair[recipe]["areas"]) for recipe in ("plain", "best"))
        calibration, test = pair["best"]["sides"]
        low, high = nadeau_bengio(best - plain, num_fit=calibration, num_test=test)
        gain = f"{(best - plain).mean():+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append((name, f"{plain.mean():.2f}", f"{best.mean():.2f}", gain))
    return markdown_table(("at equal", "plain: area, %", "best: area, %", "gain"), rows)


if __name__ == "__main__":
    main()
