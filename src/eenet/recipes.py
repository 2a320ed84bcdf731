"""Recipes: a model, its data and how it is trained, under one name; and the run folders they leave behind.

A run folder holds ``recipe.json`` (recipe, seed, data root), ``model.safetensors``, ``history.json`` and the
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from eenet.core.files import load_tensors, read_json, write_json
from eenet.data.augment import random_crop_flip
from eenet.data.cifar10 import load_cifar10_packed
from eenet.data.dataset import DataSplits
from eenet.data.digits import load_digits
from eenet.errors import DataError, InputError
from eenet.models.heads import conv_head
from eenet.models.model import MultiExitModel
from eenet.models.zoo.resnet import cifar_resnet, load_cifar_resnet_weights
from eenet.models.zoo.tiny import tiny_cnn
from eenet.training.fit import FINAL_WEIGHTS, fit_exits
from eenet.training.losses import uniform_weights
from eenet.training.settings import TrainSettings

RECIPE_FILE = "recipe.json"
CIFAR_WEIGHTS = Path("weights", "cifar10_resnet", "resnet56.safetensors")


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
        needs_root: whether the data lies in a folder the user names.
    """

    name: str
    summary: str
    make: Callable[[], MultiExitModel]
    data: Callable[[Path | None, int], DataSplits]
    settings: TrainSettings
    pretrained: Callable[[MultiExitModel, Path], None] | None = None
    needs_root: bool = False

    def build(self) -> MultiExitModel:
        """Return the model before training and before any published weights, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return self.make().to(memory_format=torch.channels_last)

    def load_data(self, root: Path | None = None) -> DataSplits:
        """Return the splits of the data; files are checked now and read when needed.

        Args:
            root: folder with the data, where the recipe needs one.

        Raises:
            DataError: the folder was not given, or lacks what is needed.
        """
        if self.needs_root and root is None:
            raise DataError(
                f"data root is missing: the data of recipe {self.name} lies in a folder. Pass --data-root with that "
                "folder."
            )
        return self.data(root, self.settings.seed)

    def with_seed(self, seed: int) -> Recipe:
        """Return the same recipe with another seed."""
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
    """Train a recipe in a folder, going on where an earlier attempt was stopped, and return the run.

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
        "seed": recipe.settings.seed,
        "data_root": None if data_root is None else str(data_root),
    }
    _claim(out / RECIPE_FILE, described)
    fit_exits(model, splits.train, recipe.settings, out=out, progress=progress)
    return Run(recipe=recipe, model=model, path=out, data_root=data_root)


def open_run(path: Path, *, data_root: Path | None = None) -> Run:
    """Return the run in a folder, its model loaded and in evaluation mode.

    Args:
        path: the run folder.
        data_root: where the data lies now, if not where it lay in training.

    Raises:
        InputError: no finished run is there, or its recipe is not known.
    """
    path = Path(path)
    described = read_json(path / RECIPE_FILE, "run")
    name = described.get("recipe") if isinstance(described, dict) else None
    if name not in RECIPES:
        raise InputError(
            f"run {path} cannot be opened: its recipe {name!r} is not known. The recipes are {', '.join(RECIPES)}."
        )
    if not (path / FINAL_WEIGHTS).is_file():
        raise InputError(f"run {path} is not finished: {FINAL_WEIGHTS} is missing. Run the training again, it resumes.")
    recipe = RECIPES[name].with_seed(int(described.get("seed", 0)))
    model = recipe.build()
    _load_weights(model, path / FINAL_WEIGHTS)
    root = data_root if data_root is not None else described.get("data_root")
    return Run(recipe=recipe, model=model.eval(), path=path, data_root=None if root is None else Path(root))


def _load_weights(model: MultiExitModel, path: Path) -> None:
    try:
        model.load_state_dict(load_tensors(path, "run"))
    except RuntimeError as error:
        raise InputError(
            f"run {path} does not fit its recipe: {str(error).splitlines()[-1].strip()} Train it again."
        ) from error


def _claim(path: Path, described: dict[str, object]) -> None:
    if path.exists():
        found = read_json(path, "run")
        for key in ("recipe", "seed"):
            if found.get(key) != described[key]:
                raise InputError(
                    f"out {path.parent} is taken: it holds a run with {key} {found.get(key)}, this one has "
                    f"{described[key]}. Choose another folder."
                )
    write_json(path, described)


def _cifar10_data(root: Path | None, seed: int) -> DataSplits:
    return load_cifar10_packed(Path() if root is None else root, seed=seed)


def _cifar10_weights(model: MultiExitModel, root: Path) -> None:
    load_cifar_resnet_weights(model, root / CIFAR_WEIGHTS)


def _digits_data(root: Path | None, seed: int) -> DataSplits:
    return load_digits(seed=seed)


def _cifar10_settings(head_lr: float) -> TrainSettings:
    return TrainSettings(
        epochs=1.0,
        batch_size=64,
        lr=0.03,
        head_lr=head_lr,
        heads_share=0.06,
        weighting=uniform_weights,
        augment=random_crop_flip,
    )


digits_tiny = Recipe(
    name="digits_tiny",
    summary="3 exits on the embedded 8x8 digits; trains in seconds",
    make=partial(tiny_cnn, exits=3, width=48),
    data=_digits_data,
    settings=TrainSettings(epochs=8, batch_size=32, lr=0.1, weighting=uniform_weights),
)

cifar10_resnet56_3 = Recipe(
    name="cifar10_resnet56_3",
    summary="ResNet56 with 3 exits on packed CIFAR-10, fine-tuned from published weights",
    make=partial(cifar_resnet, 56, exits=(9, 18), heads=conv_head((2, 2, 1, 2))),
    data=_cifar10_data,
    settings=_cifar10_settings(head_lr=0.15),
    pretrained=_cifar10_weights,
    needs_root=True,
)

cifar10_resnet56_6 = Recipe(
    name="cifar10_resnet56_6",
    summary="ResNet56 with 6 exits on packed CIFAR-10, fine-tuned from published weights",
    make=partial(cifar_resnet, 56, exits=(4, 9, 13, 18, 22), heads=conv_head((2, 2))),
    data=_cifar10_data,
    settings=_cifar10_settings(head_lr=0.3),
    pretrained=_cifar10_weights,
    needs_root=True,
)

RECIPES = {recipe.name: recipe for recipe in (digits_tiny, cifar10_resnet56_3, cifar10_resnet56_6)}
