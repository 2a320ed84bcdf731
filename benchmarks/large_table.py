"""A table larger than comfortable: 50,000 samples, 5 exits and 1,000 classes on each side, memory-mapped.

    python benchmarks/large_table.py [--what heuristics|stopping] [--json]

Makes folders of float16 `.npy` files in a temporary folder (1 GB of disk) and prints time and peak resident memory of
one of two jobs: comparing five heuristics on both sides, or fitting `stopping` on one. Our limits: 120 and 90 seconds
(of one core, so that other work on the machine does not count) and 2 GB, mapped pages of the files included.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eenet import ExitTable, GeometricScheduler, PatienceScheduler, StoppingScheduler, VoteScheduler, compare
from eenet.report import markdown_table

EXITS, CLASSES, ROWS = 5, 1000, 1000
JOBS = {"heuristics": ("compare 5 heuristics on both sides", 120.0), "stopping": ("fit stopping on one side", 90.0)}
LIMIT_GB = 2.0


def make_table(folder: Path, samples: int, seed: int) -> None:
    """Write a folder of `.npy` files, a thousand rows at a time."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    labels = generator.integers(CLASSES, size=samples)
    strength = np.linspace(3.0, 7.0, EXITS, dtype=np.float32)
    header = {"descr": "<f2", "fortran_order": False, "shape": (samples, EXITS, CLASSES)}
    with (folder / "logits.npy").open("wb") as handle:  # written, not mapped: mapped pages would count as ours
        np.lib.format.write_array_header_1_0(handle, header)
        for start in range(0, samples, ROWS):
            part = labels[start : start + ROWS]
            block = generator.standard_normal((len(part), EXITS, CLASSES), dtype=np.float32)
            ease = generator.random((len(part), 1), dtype=np.float32) + 0.3
            block[np.arange(len(part)), :, part] += strength * ease
            block.astype(np.float16).tofile(handle)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "costs.npy", np.linspace(1.0, 5.0, EXITS))
    np.save(folder / "cost_unit.npy", np.array("GFLOPs"))


def peak_gigabytes() -> float:
    """Return the most memory this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB


def compare_heuristics(scratch: Path) -> dict[str, float]:
    """Compare five heuristics on both sides."""
    schedulers = {
        **{name: GeometricScheduler(confidence=name) for name in ("max_prob", "certainty", "margin")},
        "patience": PatienceScheduler(),
        "vote": VoteScheduler(),
    }
    return compare(ExitTable.load(scratch / "val"), ExitTable.load(scratch / "test"), schedulers, ["40%", "60%"]).area


def fit_stopping(scratch: Path) -> dict[str, float]:
    """Fit one policy for all budgets."""
    dial = StoppingScheduler().sweep(ExitTable.load(scratch / "val"))
    return {"policies": float(len(dial.policies)), "fit_utility": dial.fit_utilities[-1]}


def measure(what: str, samples: int) -> dict[str, Any]:
    """Return time and peak memory of loading and one job."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for seed, side in enumerate(("val", "test") if what == "heuristics" else ("val",)):
            make_table(scratch / side, samples, seed)
        before, started, processor = peak_gigabytes(), time.perf_counter(), time.process_time()
        found = compare_heuristics(scratch) if what == "heuristics" else fit_stopping(scratch)
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return {
        "what": what,
        "samples": samples,
        "exits": EXITS,
        "classes": CLASSES,
        "threads": torch.get_num_threads(),
        "wall_s": seconds,
        "processor_s": processor,
        "limit_s": JOBS[what][1],
        "peak_gb_before": before,
        "peak_gb": peak_gigabytes(),
        "limit_gb": LIMIT_GB,
        "found": found,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=list(JOBS), default="heuristics")
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    parser.add_argument("--samples", type=int, default=50_000, help="of each side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.what, options.samples)
    if options.json:
        print(json.dumps(result))
        return
    rows = [
        (f"load and {JOBS[options.what][0]}, wall s", f"{result['wall_s']:.1f}", ""),
        (f"load and {JOBS[options.what][0]}, processor s", f"{result['processor_s']:.1f}", f"{result['limit_s']:g}"),
        ("peak resident memory before, GB", f"{result['peak_gb_before']:.2f}", ""),
        ("peak resident memory, GB", f"{result['peak_gb']:.2f}", f"{result['limit_gb']:g}"),
    ]
    print(markdown_table(("what", "measured", "limit"), rows), end="")


if __name__ == "__main__":
    main()
