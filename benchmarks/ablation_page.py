"""Writes the page of `ablation.py`: no number stands here, all come from its results."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from eenet.core.files import atomic_path
from eenet.report import markdown_table
from eenet.reproduce import EXPERIMENTS, machine

Results = Mapping[str, Any]
CAVEATS = EXPERIMENTS["cifar10-resnet56-6"].caveats["small"][:2]  # re-compressed images, seen by the weights


def write_page(
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
    parts = [
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
        "Caveats:\n\n" + "\n".join(f"* {caveat}" for caveat in CAVEATS),
        "## Again",
        "```\npython benchmarks/ablation.py --data-root DIR --work runs/ablation"
        + "".join(f" --seed {seed}" for seed in seeds)
        + "\n```",
        machine(),
    ]
    path: Path = options.out / "training.md"
    with atomic_path(path) as draft:
        draft.write_text("\n\n".join(part.rstrip("\n") for part in parts) + "\n", encoding="utf-8")
    return path


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
        "Add nothing that these seeds could show (not significant)": [
            name for name, (_, low, high) in gaps.items() if low <= 0 <= high
        ],
    }
    said = [f"* {head}: {', '.join(names) or 'none'}." for head, names in groups.items()]
    return "\n".join([*said, "", f"No correction is made for {len(gaps)} comparisons."])
