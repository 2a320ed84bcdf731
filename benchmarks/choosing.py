"""How well `auto` chooses: against every other policy, on real tables, at three sizes of the calibration set.

    python benchmarks/choosing.py --tables RUNS --data-root DIR --work WORK

RUNS contains folders with calibration.npz and test.npz, as `eenet reproduce` leaves them; a table that is not there is
left out, and the page says so. Two more tables, of weak exits, are made here: four exits of ResNet20 whose heads alone
learn, on published weights, and on random ones. Calibration and test set of each table are pooled; for every size
N some samples are drawn to fit on, the others are the test set, several times over. What counts is the area: the mean
utility over the ten standard budgets. We hold ourselves to: `auto` at most 0.1 points below the best other policy
everywhere, the bounds aside, and at least 0.5 points above `stopping` with the scalar ensemble where exits are weak.
Every result is kept in WORK and is not made again while its file is there.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, command_line, data_option, given, log, recorded

from eenet import compare, measure
from eenet.experiments import pages
from eenet.experiments.data import load_cifar10
from eenet.experiments.recipes.vision import SHORT
from eenet.experiments.zoo.resnet import cifar_resnet, load_cifar_resnet_weights
from eenet.models.heads import pooled_linear
from eenet.report import markdown_table
from eenet.schedulers.names import POLICIES, scheduler
from eenet.tables.table import ExitTable
from eenet.training.fit import fit_exits

STRONG = ("cifar10-resnet56-3", "sst2-bert", "agnews-bert")
WEAK = ("resnet20-frozen", "resnet20-random")
SIZES = (200, 1000, 5000)
SLOW = ("eenet_published", "eenet_paper")
PLACES = {"resnet20-frozen": (3, 5, 7), "resnet20-random": (2, 4, 6, 8)}  # of random weights, the last exit is none
WEIGHTS = Path("weights", "cifar10_resnet", "resnet20.safetensors")
ALLOWED, GAIN = 0.1, 0.5


def main() -> None:
    """Do what is not done yet, then write the page."""
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--tables", type=Path, required=True, help=f"folder of run folders: {', '.join(STRONG)}")
    parser.add_argument("--work", type=Path, required=True, help="folder of tables made here and of the results")
    parser.add_argument("--splits", type=int, default=10, help="draws of the calibration set")
    parser.add_argument("--size", type=int, action="append", help=f"of the calibration set; default: {SIZES}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--remark", action="append", default=[], help="a sentence for the page, such as on the tables")
    options = given(parser)
    options.work.mkdir(parents=True, exist_ok=True)
    places = {name: options.tables / name for name in STRONG}
    places |= {name: weak(name, options) for name in WEAK if (options.data_root / WEIGHTS).is_file()}
    found, missing = {}, []
    for name in (*STRONG, *WEAK):
        paths = [places[name] / f"{part}.npz" for part in ("calibration", "test")] if name in places else []
        if not paths or not all(path.is_file() for path in paths):
            missing.append(name)
            continue
        pooled = ExitTable.concat([ExitTable.load(path) for path in paths])
        if name == "resnet20-random":
            pooled = pooled.until(4)
        for size in options.size or SIZES:
            if 2 * size > pooled.num_samples + size // 2:
                continue  # too few are left to judge on
            path = options.work / f"{name}.{size}.json"
            found[name, size] = pages.kept(path, partial(compared, name, pooled, size, options), log)
    log(f"wrote {page(found, missing, options)}")


def weak(name: str, options: argparse.Namespace) -> Path:
    """Return the folder of a table of weak exits: only the heads of a frozen net learn, for one pass."""
    folder = options.work / name
    if (folder / "test.npz").is_file():
        return Path(folder)
    import torch

    torch.manual_seed(options.seed)
    splits = load_cifar10(options.data_root, seed=options.seed)
    model = cifar_resnet(20, exits=PLACES[name], heads=pooled_linear)
    if name == "resnet20-frozen":
        load_cifar_resnet_weights(model, options.data_root / WEIGHTS)
    log(f"{name}: training heads")
    fit_exits(model, splits.train, replace(SHORT, heads_share=1.0, seed=options.seed), progress=False)
    costs = measure(model, splits.test.inputs(slice(2)), batch_sizes=()).costs().convert("MFLOPs")
    for part in ("calibration", "test"):
        recorded(model, splits.get(part), folder, part, costs)
    return Path(folder)


def compared(name: str, pooled: ExitTable, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the areas of all policies over redrawn calibration sets of some size."""
    log(f"{name}, N = {size}")
    val, test = pooled.select(slice(0, size)), pooled.select(slice(size, None))
    chosen = {policy: scheduler(policy, options.seed) for policy in POLICIES if policy not in SLOW}
    result = compare(val, test, chosen, splits=options.splits, seed=options.seed).to_dict()
    return {
        "exits": [one["utility_test"] for one in result["exits"]],
        "n_test": result["n_test"],
        "area": result["area"],
        "pairs": [pair for pair in result["pairs"] if "auto" in (pair["a"], pair["b"])],
    }


def page(found: dict[tuple[str, int], dict[str, Any]], missing: list[str], options: argparse.Namespace) -> Path:
    """Write the page."""
    rows, short = [], []
    for (name, size), one in found.items():
        area = {policy: value for policy, value in one["area"].items() if policy not in ("random", "oracle")}
        others = {policy: value for policy, value in area.items() if policy != "auto"}
        best = max(others, key=lambda policy: others[policy])
        behind = 100 * (others[best] - area["auto"])
        gain = 100 * (area["auto"] - area["stopping"])
        if behind > ALLOWED:
            short.append(f"{name} at N = {size} ({behind:.2f} below {best})")
        exits = " ".join(f"{100 * value:.0f}" for value in one["exits"])
        cells = [name, exits, str(size), str(one["n_test"]), f"{100 * area['auto']:.2f}", best, f"{-behind:+.2f}"]
        rows.append((*cells, f"{gain:+.2f}", f"{100 * (area['auto'] - area['max_prob']):+.2f}"))
    head = (
        "table",
        "exits, %",
        "N",
        "test",
        "auto",
        "best other",
        "auto minus it",
        "minus stopping",
        "minus max_prob",
    )
    verdict = (
        f"`auto` is at most {ALLOWED} points below the best other policy on every table and size."
        if not short
        else f"`auto` misses its mark of {ALLOWED} points at: {'; '.join(short)}."
    )
    parts = [
        f"# How well `auto` chooses\n\n{verdict}",
        markdown_table(head, rows),
        "Areas in points: the mean utility over ten budgets, means over "
        f"{options.splits} draws of N samples to fit on, all others being the test set. *best other* is chosen "
        "with the test results known, out of all policies but the bounds: to equal it is as much as a choice can do. "
        "`stopping` "
        "has the scalar ensemble; what `auto` gains over it where exits are weak is the matrix combination. "
        "`resnet20-frozen` has published weights, `resnet20-random` random ones; of both only the heads learnt.",
    ]
    if missing:
        parts.append(f"Left out, because their tables are not at hand: {', '.join(missing)}.")
    command = f"python benchmarks/choosing.py --tables RUNS --data-root DIR --work WORK --splits {options.splits}"
    command += f" --seed {options.seed}"
    parts += options.remark
    return pages.write_page(options.out / "choosing.md", *parts, pages.again(command), pages.machine())


if __name__ == "__main__":
    main()
