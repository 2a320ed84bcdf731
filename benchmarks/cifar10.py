"""A result page for one of the CIFAR-10 recipes: exits, costs, comparison, real speed-up.

    python benchmarks/cifar10.py cifar10_resnet56_6 --data-root DIR --run runs/cifar10_resnet56_6

Trains the recipe if the run folder holds no finished run (about half an hour on one core; it resumes), records both
halves of the test images, compares all policies over redrawn splits, `eenet_published` on one split, times the adaptive
model against the original one, and writes ``docs/results/RECIPE.md`` with its plots. Every step leaves a file in the
run folder and is not repeated while that file is there.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eenet import compare
from eenet.cli.loading import readable
from eenet.cli.names import DEFAULT_POLICIES, scheduler
from eenet.core.files import atomic_path, read_json, write_json
from eenet.core.table import ExitTable
from eenet.inference.bench import bench
from eenet.inference.flops import measure_flops
from eenet.inference.record import record
from eenet.recipes import RECIPES, Run, open_run, train
from eenet.report import comparison_markdown, gain_over_random, markdown_table, save_figure, utility_cost

BUDGETS = ("40%", "60%", "80%")
TIMED_BUDGETS = ("40%", "60%")
SPLITS = 10
TIMED, PASSES = 512, 5  # test images in a pass
SIZES = (1, 32, 128)
CAVEATS = (
    "The images are CIFAR-10 **re-compressed as JPEG** (about 30 dB): a network trained on the true images loses "
    "about ten "
    "points on them. Nothing here may be compared with published CIFAR-10 figures, the paper's included.",
    "The starting weights were trained on the true CIFAR-10 train images and fine-tuned here on their re-compressed "
    "form, so no train image can calibrate: policies are fitted on one half of the **test** images and judged on "
    "the other.",
    "One training with one seed. The fine-tuning is short and its length was fixed beforehand; nothing was "
    "selected on held-out data.",
)


def main() -> None:
    """Do what is not done yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=[name for name in RECIPES if name.startswith("cifar10")])
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("EENET_DATA", "../shared/data")))
    parser.add_argument("--run", type=Path, required=True, help="run folder; made if it is not there")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--threads", type=int, default=1, help="for training, timing and everything else")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # before training: its result depends on the number of threads
    train(RECIPES[options.recipe], options.run, data_root=options.data_root)
    run = open_run(options.run, data_root=options.data_root)
    tables = recorded(run)
    comparison = kept(run, "comparison.json", lambda: compared(tables, list(DEFAULT_POLICIES), SPLITS, options.seed))
    published = kept(
        run, "published.json", lambda: compared(tables, ["eenet_published", "eenet", "max_prob"], 1, options.seed)
    )
    timed = kept(run, "bench.json", lambda: timings(run, tables, options.seed))
    write_page(run, comparison, published, timed, options)


def kept(run: Run, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a step's result, made now or by an earlier call."""
    path = run.path / name
    if not path.is_file():
        write_json(path, make())
    value: dict[str, Any] = read_json(path, "result")
    return value


def recorded(run: Run) -> tuple[ExitTable, ExitTable]:
    """Return what every exit says about the two halves of the test images."""
    tables = []
    for split in ("calibration", "test"):
        path = run.path / f"{split}.npz"
        if not path.is_file():
            costs = readable(measure_flops(run.model, run.splits.test.inputs(slice(0, 2))).costs())
            record(run.model, run.splits.get(split), path, split=split, costs=costs)
        tables.append(ExitTable.load(path))
    return tables[0], tables[1]


def compared(tables: tuple[ExitTable, ExitTable], policies: list[str], splits: int, seed: int) -> dict[str, Any]:
    """Compare policies by name; several splits are redrawn from both halves."""
    schedulers = {name: scheduler(name, seed) for name in policies}
    # few asked budgets with the published scheduler: it trains networks for every one of them
    budgets = BUDGETS if splits > 1 else ()
    return compare(tables[0], tables[1], schedulers, budgets, splits=splits, seed=seed).to_dict()


def timings(run: Run, tables: tuple[ExitTable, ExitTable], seed: int) -> dict[str, Any]:
    """Time the policy of each budget against the original model."""
    inputs = run.splits.test.inputs(slice(0, TIMED))
    costs = tables[0].require_costs()
    reports = {}
    for budget in TIMED_BUDGETS:
        policy = scheduler("eenet", seed).fit(tables[0], costs, budget=budget)
        reports[budget] = bench(run.model, policy, inputs, batch_sizes=SIZES, passes=PASSES, seed=seed).to_dict()
    return reports


def write_page(
    run: Run, comparison: dict[str, Any], published: dict[str, Any], timed: dict[str, Any], options: argparse.Namespace
) -> None:
    """Write the Markdown page and its plots."""
    name = run.recipe.name
    images = {"curves": utility_cost(comparison), "gain": gain_over_random(comparison)}
    for kind, figure in images.items():
        save_figure(figure, options.out / f"{name}_{kind}.png", dpi=100)
    settings = run.recipe.settings
    intro = "\n\n".join(
        (
            f"{run.recipe.summary[0].upper()}{run.recipe.summary[1:]}: {settings.epochs:g} epoch(s) in batches of "
            f"{settings.batch_size}, "
            f"seed {settings.seed}, no selection.",
            f"![Utility against cost]({name}_curves.png)",
            f"![Gain over the best static mix]({name}_gain.png)",
        )
    )
    comparison = comparison | {"notes": [*CAVEATS, *comparison["notes"]]}
    command = f"python benchmarks/cifar10.py {name} --data-root DIR --run runs/{name} --seed {options.seed}"
    page = comparison_markdown(comparison, title=name, command=command, intro=intro)
    parts = [
        page,
        "## The published scheduler\n",
        published_section(published),
        "## Real speed-up\n",
        speed_section(timed),
        machine(),
    ]
    with atomic_path(options.out / f"{name}.md") as draft:
        draft.write_text("\n".join(parts), encoding="utf-8")


def published_section(published: dict[str, Any]) -> str:
    """Return how the paper's rule with the paper's settings does, on one split and the ten standard budgets."""
    area = published["area"]
    seconds = {row["policy"]: row["fit_seconds"] for row in published["rows"]}
    rows = [
        (name, f"{100 * area[name]:.2f}", f"{seconds[name]:.1f}") for name in sorted(area, key=lambda name: -area[name])
    ]
    pairs = [pair for pair in published["pairs"] if pair["a"] == "eenet_published"]
    lines = [
        f"* {pair['a']} - {pair['b']}: {pair['difference']:+.2f} points, 95 % interval "
        f"{pair['low']:+.2f} to {pair['high']:+.2f} ({'significant' if pair['significant'] else 'not significant'})"
        for pair in pairs
    ]
    head = "One split (calibration half, test half), ten standard budgets; seconds for all ten together.\n\n"
    return head + markdown_table(("policy", "area %", "fit s"), rows) + "\n" + "\n".join(lines) + "\n"


def speed_section(timed: dict[str, Any]) -> str:
    """Return full against adaptive inference by budget and batch size."""
    rows = []
    for budget, report in timed.items():
        for row in report["rows"]:
            low, high = row["adaptive_spread"]
            efficiency = "-" if row["efficiency"] is None else f"{row['efficiency']:.2f}"
            rows.append(
                (
                    budget,
                    str(row["batch_size"]),
                    f"{row['full_ms']:.2f}",
                    f"{row['adaptive_ms']:.2f} ({low:.2f} to {high:.2f})",
                    f"{row['speedup']:.2f}",
                    f"{row['ideal_speedup']:.2f}",
                    f"{row['ideal_speedup_flops']:.2f}",
                    efficiency,
                    str(row["flips"]),
                )
            )
    report = next(iter(timed.values()))
    head = (
        f"Policy `eenet` on {report['samples']} test images, engine eager (PyTorch) in float32, "
        f"{report['threads']} thread(s); full = "
        "the original model without exits on the same engine. Milliseconds per sample, medians over "
        f"{report['passes']} passes in turns (quartiles in brackets). Efficiency = realised share of the saving "
        f"that the engine's own stage "
        "times promise; flips = samples whose exit differs from replay on logits recorded at another batch size.\n\n"
    )
    columns = ("budget", "batch", "full", "adaptive", "speed-up", "ideal", "ideal by FLOPs", "efficiency", "flips")
    return head + markdown_table(columns, rows)


def machine() -> str:
    """Return the machine and the software in a line."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return (
        f"Machine: {cpu or platform.machine()}, {os.cpu_count()} cores, {platform.system()}; Python "
        f"{platform.python_version()}, "
        f"torch {torch.__version__}.\n"
    )


if __name__ == "__main__":
    main()
