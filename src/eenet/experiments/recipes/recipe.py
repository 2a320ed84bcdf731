"""A model, its data and how it is trained, under one name; and the run folder that training leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from eenet import environment
from eenet.errors import DataError, InputError
from eenet.experiments.data.dataset import DataSplits
from eenet.experiments.recipes.stored import preparation_of, store
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel
from eenet.running.preparation import Preparation
from eenet.running.stored import Prepares, stored_classes, stored_preparation
from eenet.tables.checks import number
from eenet.tables.files import read_object, write_json
from eenet.training.checkpoint import IDENTITY, unmoved
from eenet.training.dataset import LabelledDataset
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

    def root(self, root: Path | None) -> Path | None:
        """Return the folder of the data: the one given, else that of the environment, where there must be one."""
        return environment.data_folder() if root is None and self.needs_root else root

    def load_data(self, root: Path | None = None) -> DataSplits:
        """Return the splits of the data in a folder, where there must be one; files are checked now, read when needed.

        Raises:
            DataError: the folder was not given, or lacks what is needed.
        """
        root = self.root(root)
        if self.needs_root and root is None:
            raise DataError(
                f"data root is missing: the data of recipe {self.name} is in a folder. Pass --data-root with that "
                f"folder, or set {environment.DATA}."
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
        stored: what the folder says about the run, as JSON values.
    """

    recipe: Recipe
    model: MultiExitModel
    path: Path
    data_root: Path | None
    stored: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def splits(self) -> DataSplits:
        """The splits of the run's data, the same as in training."""
        return self.recipe.load_data(self.data_root)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; the data are opened only where the folder does not say."""
        return stored_classes(self.stored) or self.splits.classes

    @cached_property
    def preparation(self) -> Prepares | None:
        """How image files or texts become inputs; the data are opened only where the folder does not say."""
        return stored_preparation(self.stored, self.path) or preparation_of(self.splits)

    def example(self, count: int = 2) -> tuple[Inputs, str]:
        """Return test inputs, or, where the data are gone, made-up ones of the same form, and the reason why."""
        try:
            return self.splits.test.inputs(slice(0, count)), ""
        except DataError as error:
            how = stored_preparation(self.stored, self.path)
            if how is None:
                raise
            made = _made_up(how, count)
            return made, f"{error} Inputs of the same form are made up here."


def _made_up(how: Prepares, count: int) -> Inputs:
    """Return inputs of random pixels, or of words without meaning."""
    if isinstance(how, Preparation):
        pixels = np.random.default_rng(0).integers(0, 256, (count, *how.shape), dtype=np.uint8)
        return torch.from_numpy(how.normalised(pixels)).contiguous(memory_format=torch.channels_last)
    made: Any = how([" ".join(["word"] * (how.max_tokens >> row % 2)) for row in range(count)])
    inputs: Inputs = pytree.tree_map(torch.from_numpy, made)
    return inputs


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
    out, root = Path(out), recipe.root(data_root)
    data_root = None if root is None else Path(root).resolve()
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
    described |= store(splits, out)
    write_json(out / RECIPE_FILE, described, sealed=True)
    fit_exits(model, samples, recipe.settings, out=out, progress=progress)
    return Run(recipe=recipe, model=model, path=out, data_root=data_root, stored=described)


def claim(path: Path, described: Mapping[str, Any]) -> None:
    """Write into a file what its folder is for, or refuse a folder of something else; the data may have moved."""
    found = read_object(path, "run") if path.exists() else {}
    if found:
        require_same(found, {key: value for key, value in described.items() if key != "data_root"}, path.parent)
    write_json(path, {**found, **described}, sealed=True)


def require_same(found: Mapping[str, Any], described: Mapping[str, Any], folder: Path) -> None:
    """Refuse a folder with a run of other settings, and list those that differ.

    Raises:
        InputError: They differ.
    """
    there, here = _flat(found), _flat(described)
    keys = [key for key in here if unmoved(there.get(key)) != unmoved(here[key])]
    if keys:
        listed = "; ".join(f"{key.replace('_', ' ')} {there.get(key)}, not {here[key]}" for key in keys)
        raise InputError(
            f"out {folder} is taken: it holds a run with {listed}. Choose another folder, or the settings of that run."
        )


def require_same_samples(samples: LabelledDataset, name: str, folder: Path) -> None:
    """Refuse samples other than those that a finished run was trained on, as far as their fingerprint tells.

    Of others, split anew, some that were trained on would be judged on.

    Args:
        samples: To train on, as they are now.
        name: Of the data.
        folder: Of the run.

    Raises:
        InputError: They are others.
    """
    trained = read_object(folder / IDENTITY, "checkpoint")
    if (trained.get("samples"), trained.get("data")) != (len(samples), samples.fingerprint()):
        raise InputError(
            f"data {name} have changed since {folder} was trained: its {trained.get('samples')} training samples are "
            f"not the {len(samples)} of today, which are split anew, so that some it learnt from could be judged on. "
            "Pass another --out, or the data as they were."
        )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of which none is a mapping: its own stand in its place."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {key: value}
    return flat
