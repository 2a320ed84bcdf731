"""The page of `gpu.py`: what stopping early saves on a GPU."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eenet.experiments.pages import again, bullets, machine, spread, write_page
from eenet.report import markdown_table

COMMAND = "python benchmarks/gpu.py --work runs/gpu"
HEAD = ("engine", "batch", "full [ms]", "adaptive [ms]", "speed-up", "ideal", "by operations", "flips")
CAVEATS = (
    "Weights are random, and thresholds are fitted to half of the operations on the same samples: who leaves where is "
    "like after training, what is answered is not.",
    "Inputs come from the memory of the CPU, and at every exit the GPU is waited for, once per batch.",
    "Graphs are made for batches of 1, 2, 4, ... samples; others are filled up.",
)


def gpu_page(found: Mapping[str, Sequence[Mapping[str, Any]]], options: argparse.Namespace, device: str) -> Path:
    """Write the page and return where it stands."""
    sections = [f"## {title}\n\n{markdown_table(HEAD, [_cells(row) for row in rows])}" for title, rows in found.items()]
    return write_page(
        options.out / "gpu.md",
        "# Speed on a GPU",
        f"On one {device}: the original model without exits beside the same model with exits, on the same engine, in "
        "float32, milliseconds per sample, medians over passes with quartiles. *Ideal* is the speed-up if all but "
        "stages and heads took no time, *by operations* what their number promises; *flips* are samples that leave "
        "elsewhere than in eager. `graphs` captures every stage with its head as a CUDA graph.",
        *sections,
        bullets("Caveats", CAVEATS),
        again(COMMAND),
        f"Seed {options.seed}, {options.passes} passes. GPU: {device}. " + machine(),
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return (row["engine"], "-", row["error"], *["-"] * (len(HEAD) - 3))
    operations = row["ideal_speedup_flops"]
    return (
        row["engine"],
        str(row["batch_size"]),
        spread(row["full_ms"], row["full_spread"]),
        spread(row["adaptive_ms"], row["adaptive_spread"]),
        f"{row['speedup']:.2f}",
        f"{row['ideal_speedup']:.2f}",
        "-" if operations is None else f"{operations:.2f}",
        str(row["flips"]),
    )
