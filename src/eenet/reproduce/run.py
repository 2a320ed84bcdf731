"""An experiment from end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from eenet.core.files import read_json
from eenet.core.table import ExitTable
from eenet.inference.engines.onnx import check_onnx
from eenet.recipes.recipe import claim
from eenet.reproduce.experiment import Experiment, Scale
from eenet.reproduce.page import write_page
from eenet.reproduce.steps import TIME, Steps, steps_done
from eenet.schedulers import Scheduler

__all__ = ["reproduce"]


def reproduce(
    experiment: Experiment,
    out: Path,
    *,
    schedulers: Callable[[ExitTable], Mapping[str, Scheduler]],
    scale: Scale = "small",
    data_root: Path | None = None,
    pages: Path | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda said: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train, record, compare, time and write the page of an experiment; what is done already is not done again.

    Policies are fitted on the calibration side and judged on the test side; neither took part in training.

    Args:
        experiment: What is done.
        out: Folder for the run, its tables and all results.
        schedulers: From the calibration side to the policies to compare on it, by name.
        scale: ``small`` or ``paper``.
        data_root: Where the data lies.
        pages: Folder for the page and its plots; default: ``out``.
        seed: Of everything random.
        note: Told about every step before it begins.
        progress: Show progress bars.

    Returns:
        JSON values: where the page is, the exits, the budget found, the areas of the policies, the speed-ups.

    Raises:
        DataError: The data is not there or damaged.
        MissingExtraError: What one of the timed engines needs is not installed.
        InputError: The folder holds another experiment.
    """
    steps = Steps(
        experiment=experiment,
        scale=scale,
        out=out,
        data_root=data_root,
        seed=seed,
        schedulers=schedulers,
        note=note,
        progress=progress,
    )
    check_onnx()
    steps.recipe.load_data(data_root)  # says what is missing before anything is written
    described = {"experiment": experiment.name, "scale": scale, **steps.recipe.settings.to_dict()}
    claim(out / "experiment.json", described)  # all files of the folder are of this training
    calibration, _ = steps.tables
    found: dict[str, Any] = {
        "title": experiment.title,
        "caveats": experiment.caveats.get(scale, ()),
        "budget": steps.smallest_budget(),
        "bench": steps.timed(),
        "comparison": steps.comparison(),
        "published": steps.published(),
        "training": trained(steps),
        "command": command(experiment, scale, seed),
    }
    page = write_page(pages or out, experiment.name, found, calibration.require_costs())
    return {
        "name": experiment.name,
        "scale": scale,
        "seed": seed,
        "page": str(page),
        "budget": found["budget"],
        "area": found["comparison"]["area"],
        "bench": found["bench"],
    }


def trained(steps: Steps) -> str:
    """Say how the model was trained and how long that took."""
    settings, kept = steps.recipe.settings, steps.out / TIME
    took = "time of training not kept."
    if kept.is_file():
        told, done = read_json(kept, "training"), steps_done(steps.out / "run")
        part = "" if told["steps"] == done else f" for {told['steps']} of {done} steps, the others not timed,"
        took = f"{told['seconds'] / 60:.0f} minutes of training{part} on the machine named below."
    return (
        f"{steps.recipe.summary[0].upper()}{steps.recipe.summary[1:]}: {settings.epochs:g} epoch(s) in batches of "
        f"{settings.batch_size}, seed {settings.seed}, no selection; {took}"
    )


def command(experiment: Experiment, scale: Scale, seed: int) -> str:
    """Return the command that makes the page again."""
    said = f"eenet reproduce {experiment.name} --data-root DIR --out out/{experiment.name}"
    said += f" --threads {torch.get_num_threads()}"  # trained weights depend on it
    return said + ("" if scale == "small" else f" --scale {scale}") + (f" --seed {seed}" if seed else "")
