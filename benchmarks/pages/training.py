"""The pages of `ablation.py` and `frontier.py`: what training methods add, and what the best recipe gains."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from eenet.evaluation.statistics import nadeau_bengio
from eenet.experiments.pages import again, bullets, machine, write_page
from eenet.experiments.recipes import RECIPES
from eenet.experiments.reproduce import EXPERIMENTS
from eenet.report import markdown_table

Results = Mapping[str, Any]
FRONTIER = "cifar10-resnet56-6"
CAVEATS = EXPERIMENTS[FRONTIER].caveats["small"][:2]  # re-compressed images, seen by the weights


def methods_page(
    methods: Sequence[Results], options: argparse.Namespace, shares: Sequence[float], *, steps: int, size: int
) -> Path:
    """Write the page and return where it stands.

    Args:
        methods: what every method reached with every seed.
        options: of the command.
        shares: of the original net's cost, where curves are read.
        steps: of every training.
        size: images in a step.
    """
    seeds = sorted({one["seed"] for one in methods})
    return write_page(
        options.out / "training.md",
        "# What each training method adds",
        f"ResNet20 with 4 exits on CIFAR-10, from published weights, {steps} steps of {size} images, the same for all. "
        "*Plain*: uniform weights of exits, no distillation, heads of three convolutions as in the paper's public "
        "code. Every method changes one thing.",
        "Accuracy is compared at **equal absolute cost**, heads paid for, under the same policy, `auto`, fitted on one "
        f"half of the test images and judged on the other. *Area* is the mean accuracy over {len(shares)} budgets from "
        f"{shares[0]:.0%} to {shares[-1]:.0%} of the original net's cost. Means over {len(seeds)} seeds, which draw "
        "heads, order, augmentation and halves; differences are in points, their interval (95 %) is Student's t of the "
        "paired differences.",
        methods_table(methods),
        verdict(methods),
        "A training this short favours what learns fast: that a method adds nothing here does not say that it adds "
        "nothing to long trainings from scratch, for which some of them were made.",
        bullets("Caveats", CAVEATS),
        again(
            "python benchmarks/ablation.py --data-root DIR --work runs/ablation"
            + "".join(f" --seed {seed}" for seed in seeds)
        ),
        machine(),
    )


def differences(methods: Sequence[Results]) -> dict[str, tuple[float, float, float]]:
    """Return (mean, low, high) of every method's area minus plain's, in points, over the seeds."""
    areas = {(one["method"], one["seed"]): 100 * one["areas"][0] for one in methods}
    seeds = sorted({seed for _, seed in areas})
    found = {}
    for name in dict.fromkeys(name for name, _ in areas if name != "plain"):
        gaps = np.array([areas[name, seed] - areas["plain", seed] for seed in seeds])
        half = float(student.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
        found[name] = float(gaps.mean()), float(gaps.mean()) - half, float(gaps.mean()) + half
    return found


def methods_table(methods: Sequence[Results]) -> str:
    """Return accuracy, cost and area of every method."""
    gaps, rows = differences(methods), []
    for name in dict.fromkeys(one["method"] for one in methods):
        runs = [one for one in methods if one["method"] == name]
        accuracy = 100 * np.mean([one["accuracy"] for one in runs], axis=0)
        full = 100 * runs[0]["costs"][-1] / runs[0]["reference"]
        area = 100 * np.mean([one["areas"][0] for one in runs])
        gap = "" if name == "plain" else "{:+.2f} ({:+.2f} to {:+.2f})".format(*gaps[name])
        rows.append((name, " / ".join(f"{one:.1f}" for one in accuracy), f"{full:.0f}", f"{area:.2f}", gap))
    columns = ("method", "accuracy of the exits, %", "cost of the last, %", "area, %", "against plain")
    return markdown_table(columns, rows)


def verdict(methods: Sequence[Results]) -> str:
    """Say which methods add something, which cost something, and which do neither beyond chance."""
    gaps = differences(methods)
    groups = {
        "Better than plain": [name for name, (_, low, _) in gaps.items() if low > 0],
        "Worse than plain": [name for name, (_, _, high) in gaps.items() if high < 0],
        "Add nothing that these seeds could show": [name for name, (_, low, high) in gaps.items() if low <= 0 <= high],
    }
    said = [f"* {head}: {', '.join(names) or 'none'}." for head, names in groups.items()]
    return "\n".join([*said, "", f"No correction is made for {len(gaps)} comparisons."])


# --- the best recipe -------------------------------------------------------------------------------------------------


def frontier_page(
    in_flops: dict[str, Any], in_time: list[dict[str, Any]], options: argparse.Namespace, shares: Sequence[float]
) -> Path:
    """Write the page and return where it stands."""
    return write_page(
        options.out / "frontier.md",
        "# What the recipe gains",
        f"ResNet56 with 6 exits, {RECIPES[FRONTIER].settings.epochs:g} passes over the train images from published "
        f"weights, one training each. *Best* is the recipe `{FRONTIER}`: early exits where they know enough, a small "
        "net of its own as the first head, next to nothing as the last ones, and distillation from the last exit. "
        "*Plain* is the same with heads of three convolutions, as in the paper's public code, at even distances, and "
        "without distillation.",
        exits_table(in_flops),
        "Accuracy at **equal absolute cost**, heads paid for, under the same policy, `auto`, fitted on one half of the "
        f"test images and judged on the other. *Area* is the mean accuracy over {len(shares)} budgets from "
        f"{shares[0]:.0%} to {shares[-1]:.0%} of the original net's cost; gains are in points. Time is that of the "
        f"eager engine on {options.threads} thread(s).",
        areas_table(in_flops, in_time),
        f"The interval (95 %) is that of {options.splits} redrawn halves (Nadeau and Bengio's corrected t): it knows "
        "the luck of the halves, not that of training.",
        bullets("Caveats", EXPERIMENTS[FRONTIER].caveats["small"]),
        again(
            f"eenet reproduce {FRONTIER} --data-root DIR --out out/{FRONTIER}",
            f"python benchmarks/frontier.py --data-root DIR --best out/{FRONTIER} --work runs/frontier --splits "
            f"{options.splits} --passes {options.passes}",
        ),
        machine(),
    )


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
