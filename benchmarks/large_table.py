"""A table larger than comfortable: 50,000 samples, 5 exits and 1,000 classes on each side, memory-mapped.

    python benchmarks/large_table.py [--json]

Makes two folders of float16 `.npy` files in a temporary folder (1 GB of disk), compares the heuristics on them and
prints time and peak resident memory. Our limits: 2 minutes (of one core, so that other work on the machine does not
count) and 2 GB, mapped pages of the files included.
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

from eenet import ExitTable, GeometricScheduler, PatienceScheduler, VoteScheduler, compare
from eenet.report import markdown_table

EXITS, CLASSES, ROWS = 5, 1000, 1000
LIMITS = {"seconds": 120.0, "gigabytes": 2.0}


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


def measure(samples: int) -> dict[str, Any]:
    """Return time and peak memory of loading and comparing."""
    schedulers = {
        **{name: GeometricScheduler(confidence=name) for name in ("max_prob", "certainty", "margin")},
        "patience": PatienceScheduler(),
        "vote": VoteScheduler(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for seed, side in enumerate(("val", "test")):
            make_table(Path(scratch) / side, samples, seed)
        before, started, processor = peak_gigabytes(), time.perf_counter(), time.process_time()
        val, test = (ExitTable.load(Path(scratch) / side) for side in ("val", "test"))
        loaded = time.perf_counter() - started
        found = compare(val, test, schedulers, ["40%", "60%"])
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return {
        "samples": samples,
        "exits": EXITS,
        "classes": CLASSES,
        "threads": torch.get_num_threads(),
        "load_s": loaded,
        "wall_s": seconds,
        "processor_s": processor,
        "limit_s": LIMITS["seconds"],
        "peak_gb_before": before,
        "peak_gb": peak_gigabytes(),
        "limit_gb": LIMITS["gigabytes"],
        "area": found.area,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    parser.add_argument("--samples", type=int, default=50_000, help="of each side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.samples)
    if options.json:
        print(json.dumps(result))
        return
    rows = [
        ("load both sides, wall s", f"{result['load_s']:.1f}", ""),
        ("load and compare 5 heuristics, wall s", f"{result['wall_s']:.1f}", ""),
        ("load and compare 5 heuristics, processor s", f"{result['processor_s']:.1f}", f"{result['limit_s']:g}"),
        ("peak resident memory before, GB", f"{result['peak_gb_before']:.2f}", ""),
        ("peak resident memory, GB", f"{result['peak_gb']:.2f}", f"{result['limit_gb']:g}"),
    ]
    print(markdown_table(("what", "measured", "limit"), rows), end="")


if __name__ == "__main__":
    main()
