"""Every writer of eenet, stopped before each of its file operations: old or new, whole, and nothing left in the end."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from tests.hostile import artefacts
from tests.hostile.artefacts import COSTS, RECIPE, digest, fitted
from tests.support.faults import FAULTS, with_fault
from tests.support.replaying import ReplayEngine, rows

from eenet import ExitTable, save_policy
from eenet.evaluation.segmentation import find_confusion
from eenet.report import page, write_page
from eenet.running import record
from eenet.tables.atomic import restore
from eenet.tables.files import read_json, write_json
from eenet.tables.tensors import load_arrays, save_arrays
from eenet.testing import synthetic_table

OLD, NEW = range(2)
SIZES = (1, 200, 1000, 3000)  # bytes that fit into a file
STEPS = {("export", "KILL"): 2, ("bundle", "full"): 3, ("bundle", "TERM"): 3, ("bundle", "INT"): 2}
STEPS |= {("export", fault): 5 for fault in ("full", "INT", "TERM")}
"""Of how many operations one is tried, where all would take long."""


@dataclass(frozen=True)
class Writer:
    """What is written at a path in a version, and how it is read."""

    write: Callable[[Path, int], object]
    read: Callable[[Path], object]


def table(version: int) -> ExitTable:
    return replace(synthetic_table(60, num_exits=3, num_classes=10, seed=version), costs=COSTS, split=f"{version}")


def recorded(path: Path, version: int) -> None:
    made = table(version)
    record(ReplayEngine(made.logits), (rows(60), made.labels), path, batch_size=25, progress=False)


def policy(path: Path, version: int) -> None:
    made, dial = fitted(version)
    save_policy(made, path, costs=COSTS, dial=dial, info={"version": version})


def comparison(path: Path, version: int) -> None:
    """Write a set of files that belong together, as `eenet compare` does, into a folder that has others, too."""
    from eenet.tables.atomic import atomic_files

    with atomic_files(path, "comparison") as draft:
        for name in ("a.json", "b.json", "c.json"):
            write_json(draft / name, {"version": version})


def read_comparison(path: Path) -> set[Any]:
    restore(path / "comparison")  # as `eenet report` does
    return {read_json(path / name, "file")["version"] for name in ("a.json", "b.json", "c.json")}


def plain_writers() -> dict[str, Writer]:
    return {
        "table.npz": Writer(lambda path, version: table(version).save(path), artefacts.of_table),
        "table": Writer(lambda path, version: table(version).save(path), artefacts.of_table),
        "recorded.npz": Writer(recorded, artefacts.of_table),
        "recorded": Writer(recorded, lambda path: (artefacts.of_table(path), find_confusion(path))),
        "policy": Writer(policy, artefacts.of_saved_policy),
        "costs.json": Writer(
            lambda path, version: write_json(path, {"version": version}, sealed=True), lambda path: read_json(path, "")
        ),
        "weights.safetensors": Writer(
            lambda path, version: save_arrays(path, {"x": np.full(300, version)}),
            lambda path: digest(load_arrays(path, "weights")["x"]),
        ),
        "page.html": Writer(lambda path, version: write_page(path, page(f"{version}", [])), Path.read_text),
        "comparison": Writer(comparison, read_comparison),
    }


def torch_writers() -> dict[str, Writer]:
    import torch

    from eenet.experiments.recipes import RECIPES
    from eenet.running import Bundle, export
    from eenet.training.checkpoint import write_checkpoint

    torch.set_num_threads(1)
    models = [RECIPES[RECIPE].with_seed(version).build().eval() for version in (OLD, NEW)]
    example = torch.randn(2, 1, 8, 8)
    programs: dict[int, Any] = {}
    exporting = importlib.import_module("eenet.running.exporting")
    make = exporting.stage_programs

    def exported(path: Path, version: int) -> None:
        if version not in programs:
            programs[version] = list(make(models[version], example))
        with mock.patch.object(exporting, "stage_programs", lambda *_: programs[version]):
            export(models[version], fitted(version)[0], example, path, costs=COSTS)

    def bundled(path: Path, version: int) -> None:
        made, dial = fitted(version)
        info = {"recipe": RECIPE, "seed": version}
        Bundle(model=models[version], policy=made, costs=COSTS, info=info, dial=dial).save(path)

    def checkpoint(path: Path, version: int) -> None:
        path.mkdir(exist_ok=True)
        optimizer = torch.optim.SGD(models[version].parameters(), lr=0.1)
        write_checkpoint(path, models[version], optimizer, None, torch.zeros(version + 1, 3))

    return {
        "bundle": Writer(bundled, artefacts.of_bundle),
        "export": Writer(exported, artefacts.of_export),
        "checkpoint": Writer(checkpoint, artefacts.of_checkpoint),
    }


def stopped(name: str, writer: Writer, fault: str, folder: Path) -> Iterator[str]:
    """Stop a writer before each of its operations in turn; yield how it ended, and what is wrong afterwards."""
    path = folder / name
    known = []
    for version in (NEW, OLD):
        writer.write(path, version)
        known.append(writer.read(path))
    for after in SIZES if fault == "size" else range(1, 400, STEPS.get((name, fault), 1)):
        end = with_fault(lambda: writer.write(path, NEW), str(folder), after, fault)
        place = f"{name}, {fault} {after}, {end}"
        try:
            found = writer.read(path)
        except Exception as error:  # noqa: BLE001 - whatever it is
            yield f"{place}: {type(error).__name__} {error}"
            return
        if found not in known:
            yield f"{place}: neither old nor new"
        if end in ("done", "survived") and found != known[0]:
            yield f"{place}: not written"
        own = ("raised OSError", "raised KeyboardInterrupt")
        if end.startswith("raised") and not end.startswith(own) and "\neenet.errors." not in end:
            yield f"{place}: raw error"
        writer.write(path, OLD)  # the next run
        left = [one.name for one in folder.iterdir() if one != path]
        left += [one.name for one in path.iterdir() if "eenet-" in one.name] if path.is_dir() else []
        if left:
            yield f"{place}: left {left}"
            return
        if end == "done" and fault != "size":
            return
    if fault != "size":
        yield f"{name}, {fault}: the writer never came to its end"


def main() -> None:
    """Stop writers, in a process of its own: arguments are a folder, ``plain`` or ``torch``, and names, if not all."""
    folder, kind, *names = sys.argv[1:]
    writers = plain_writers() if kind == "plain" else torch_writers()
    failures = []
    for name in names or writers:
        for fault in (*FAULTS, "size"):
            place = Path(folder, f"{name}-{fault}")
            place.mkdir()
            failures += stopped(name, writers[name], fault, place)
    print(json.dumps({"failures": failures}))


if __name__ == "__main__":
    main()
