"""A model, its data and how it is trained, under one name; and the run folder that training leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from eenet.errors import DataError, InputError
from eenet.experiments.data.dataset import DataSplits
from eenet.models.model import MultiExitModel
from eenet.tables.checks import number
from eenet.tables.files import read_object, write_json
from eenet.training.checkpoint import unmoved
from eenet.training.fit import fit_exits
from eenet.training.settings import TrainSettings

RECIPE_FILE = "recipe.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model, its data and how it is trained.

    Args:
        name: what users call it.
        summary: one line for users.
        make: returns the model, randomly initialised.
        data: returns the splits, from (data root or None, seed).
        settings: how to train; their seed also decides initialisation and splits.
        pretrained: loads published weights into the model, from (model, data root).
        needs_root: whether the data is in a folder the user names.
        fetch: downloads the data into a data root where they are not there; none where they cannot be had that way.
        details: what else is needed to make the recipe again, as JSON values; kept in the run folder.
    """

    name: str
    summary: str
    make: Callable[[], MultiExitModel]
    data: Callable[[Path | None, int], DataSplits]
    settings: TrainSettings
    pretrained: Callable[[MultiExitModel, Path], None] | None = None
    needs_root: bool = False
    fetch: Callable[[Path], object] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> MultiExitModel:
        """Return the model before training and before any published weights, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return self.make().to(memory_format=torch.channels_last)

    def load_data(self, root: Path | None = None) -> DataSplits:
        """Return the splits of the data in a folder, where there must be one; files are checked now, read when needed.

        Raises:
            DataError: the folder was not given, or lacks what is needed.
        """
        if self.needs_root and root is None:
            raise DataError(
                f"data root is missing: the data of recipe {self.name} is in a folder. Pass --data-root with that "
                "folder."
            )
        return self.data(root, self.settings.seed)

    def download(self, root: Path) -> None:
        """Fetch the data from their authors' page into ``root``, where they are not there.

        Raises:
            DataError: they cannot be had that way.
            RunError: the page does not answer.
        """
        if self.fetch is None:
            raise DataError(
                f"data of recipe {self.name} cannot be downloaded: their authors ask for an account, or publish no "
                "checksum. Get them by hand; the page on data sets describes the folders."
            )
        self.fetch(root)

    def with_seed(self, seed: int) -> Recipe:
        """Return the same recipe with another seed, a whole number from 0 to 2^32 - 1; else an `InputError`."""
        seed = int(number(seed, "seed", 0, 2**32 - 1, whole=True))
        return replace(self, settings=replace(self.settings, seed=seed))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained recipe, as found in its folder.

    Args:
        recipe: the recipe, with the seed it was trained with.
        model: the trained model, in evaluation mode.
        path: the folder.
        data_root: folder with the data, where the recipe needs one.
    """

    recipe: Recipe
    model: MultiExitModel
    path: Path
    data_root: Path | None

    @cached_property
    def splits(self) -> DataSplits:
        """The splits of the run's data, the same as in training."""
        return self.recipe.load_data(self.data_root)


def train(recipe: Recipe, out: Path, *, data_root: Path | None = None, progress: bool = True) -> Run:
    """Train a recipe in a folder, continuing where an earlier attempt was stopped, and return the run.

    Args:
        recipe: what to train.
        out: the run folder.
        data_root: folder with the data, where the recipe needs one.
        progress: show a progress bar on stderr.

    Raises:
        DataError: data or weights are missing or damaged.
        InputError: the folder holds a run of another recipe or other settings.
    """
    out, data_root = Path(out), None if data_root is None else Path(data_root).resolve()
    splits, model = recipe.load_data(data_root), recipe.build()
    if recipe.pretrained is not None and data_root is not None:
        recipe.pretrained(model, data_root)
    described = {
        "recipe": recipe.name,
        **recipe.details,
        "seed": recipe.settings.seed,
        "data_root": None if data_root is None else str(data_root),
    }
    samples = splits.train  # files that cannot be read are reported before anything is written
    claim(out / RECIPE_FILE, described)
    fit_exits(model, samples, recipe.settings, out=out, progress=progress)
    return Run(recipe=recipe, model=model, path=out, data_root=data_root)


def claim(path: Path, described: Mapping[str, Any]) -> None:
    """Write into a file what its folder is for, or refuse a folder of something else; the data may have moved."""
    if path.exists():
        found = read_object(path, "run")
        for key, value in described.items():
            if key != "data_root" and unmoved(found.get(key)) != unmoved(value):
                raise InputError(
                    f"out {path.parent} is taken: it holds a run with {key} {found.get(key)}, this one has {value}. "
                    "Choose another folder."
                )
    write_json(path, dict(described), sealed=True)
