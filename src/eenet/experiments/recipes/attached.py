"""Runs of somebody else's model: what is written down about them, and how they are made again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from eenet.errors import DataError
from eenet.experiments.data.arrays import load_digits, load_image_arrays
from eenet.experiments.data.cifar import load_cifar10
from eenet.experiments.data.dataset import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ArrayDataset,
    DataSplits,
    Normalisation,
    Split,
    as_images,
)
from eenet.experiments.data.imagenet import load_image_folder
from eenet.experiments.recipes.recipe import Recipe
from eenet.experiments.recipes.sources import Source, load_source, load_weights
from eenet.models.attach import attach
from eenet.models.model import MultiExitModel
from eenet.tables.files import sha256
from eenet.training.losses import uniform_weights
from eenet.training.settings import TrainSettings

ATTACHED = "attached"
DATA_SETS = ("digits", "cifar10")
training = partial(TrainSettings, epochs=5.0, batch_size=32, lr=0.02, head_lr=0.05, weighting=uniform_weights)
"""How attached exits are trained, but for what the user says otherwise."""
_TRAINING = ("epochs", "batch_size", "lr", "head_lr", "heads_share")


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """All that is needed to make somebody else's model with its exits again, but for the weights. It holds no code.

    Attributes:
        model: Where the model comes from, see `load_source`.
        exits: Names of the tapped modules.
        input: Shape of one sample.
        num_classes: Handed to timm and torchvision, if anything.
        classes: How many the model tells apart.
        weights: SHA-256 of the state dict that the model began with, if any.
        normalisation: How images are prepared; None: as the data set's own ones are.
        data: ``digits``, ``cifar10``, a ``.npz`` file, or a folder with one of images per class.
        settings: How the exits are trained.
    """

    model: str
    exits: tuple[str, ...]
    input: tuple[int, ...]
    num_classes: int | None
    classes: int
    weights: str | None
    normalisation: Normalisation | None
    data: str
    settings: TrainSettings

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; the seed stands beside them in a run folder."""
        known = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "settings"}
        known["training"] = {name: getattr(self.settings, name) for name in _TRAINING}
        return json.loads(json.dumps(known))

    def at(self, model: MultiExitModel) -> Attachment:
        """Return the same with the modules after which a model's exits sit."""
        return replace(self, exits=tuple(model.whole.names))  # type: ignore[union-attr, arg-type]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Attachment:
        """Rebuild it from what a run folder holds: `to_dict` and the seed.

        Raises:
            KeyError, TypeError, ValueError: A value is missing, of another kind, or cannot be used.
        """
        scale = value["normalisation"]
        return cls(
            **{name: value[name] for name in ("model", "num_classes", "classes", "weights", "data")},
            exits=tuple(str(name) for name in value["exits"]),
            input=tuple(int(size) for size in value["input"]),
            normalisation=None if scale is None else (tuple(map(float, scale[0])), tuple(map(float, scale[1]))),
            settings=training(**value["training"], seed=int(value["seed"])),
        )


def attach_source(
    source: Source, exits: int | Sequence[str] = 4, *, weights: Path | None = None, seed: int = 0
) -> MultiExitModel:
    """Return a source's model with exits, its weights loaded first.

    Args:
        source: As `load_source` returns it.
        exits: How many, or the names of the modules to tap; see `attach`.
        weights: State dict of the model.
        seed: Of the heads.

    Raises:
        AttachError: The model cannot be given such exits.
        InputError: The weights do not fit.
    """
    if weights is not None:
        load_weights(source.model, weights)
    return attach(source.model, source.example_inputs, exits, seed=seed)


def describe(
    spec: str,
    source: Source,
    *,
    data: str,
    settings: TrainSettings,
    num_classes: int | None = None,
    weights: Path | None = None,
) -> Attachment:
    """Return what must be written down about a source's model so that its run can be opened again; `at` adds the exits.

    Raises:
        DataError: The model takes no images.
    """
    if not source.takes_images:
        shape = ",".join(map(str, source.shape))
        raise DataError(
            f"data {data!r} does not fit: it holds images, and {spec} takes {shape} per sample. Train its exits with "
            "fit_exits or a loop of your own, and record with eenet.record."
        )
    folder = spec.removeprefix("hf:")
    return Attachment(
        model=f"hf:{Path(folder).resolve()}" if folder != spec else spec,
        exits=(),
        input=source.shape,
        num_classes=num_classes,
        classes=source.num_classes,
        weights=None if weights is None else sha256(weights),
        normalisation=source.normalisation,
        data=data if data in DATA_SETS else str(Path(data).resolve()),
        settings=settings,
    )


def attached_recipe(attachment: Attachment, model: MultiExitModel | None = None) -> Recipe:
    """Return a recipe that makes a model with attached exits, or goes on with one that is made already."""

    def make() -> MultiExitModel:
        if model is not None:
            return model
        source = load_source(
            attachment.model,
            shape=attachment.input,
            num_classes=attachment.num_classes,
            seed=attachment.settings.seed,
        )
        return attach_source(source, attachment.exits, seed=attachment.settings.seed)

    return Recipe(
        name=ATTACHED,
        summary=f"{attachment.model} with {len(attachment.exits) + 1} exits",
        make=make,
        data=partial(load_attached_data, attachment),
        settings=attachment.settings,
        needs_root=attachment.data == "cifar10",
        details=attachment.to_dict(),
    )


def wanted_classes(spec: str, data: str, root: Path | None) -> int | None:
    """Return how many classes a library's model must be made with for some data; None where it decides itself."""
    if spec.partition(":")[0] not in ("timm", "torchvision"):
        return None
    return len(_splits(data, root).classes)


def load_attached_data(attachment: Attachment, root: Path | None, seed: int) -> DataSplits:
    """Return an attached run's data as the model takes it; data of one's own may have moved to ``root``.

    Raises:
        DataError: The data are missing or damaged, or do not fit the model.
    """
    size = max(attachment.input[1:])  # of a folder's images, the middle square is taken
    splits = _splits(attachment.data, root, seed=seed, size=size, normalisation=attachment.normalisation)
    known = len(splits.classes)
    if known > attachment.classes:
        raise DataError(
            f"data {attachment.data!r} have {known} classes, the model tells {attachment.classes} apart: it cannot "
            f"name all. Pass --num-classes {known}, or make the model so."
        )
    more = tuple(str(k) for k in range(known, attachment.classes))

    def load(split: Split) -> ArrayDataset:
        return _fitted(as_images(splits.load(split)), attachment)

    return DataSplits(load=load, classes=(*splits.classes, *more))


def _splits(
    data: str, root: Path | None, *, seed: int = 0, size: int = 224, normalisation: Normalisation | None = None
) -> DataSplits:
    if data == "digits":
        return load_digits(seed=seed)
    if data == "cifar10":
        if root is None:
            raise DataError("data root is missing: cifar10 lies in a folder. Pass --data-root with that folder.")
        return load_cifar10(root, seed=seed)
    path = Path(data)
    moved = None if root is None else root / path.name
    path = moved if moved is not None and moved.exists() else path
    if path.suffix == ".npz":
        return load_image_arrays(path, seed=seed, normalisation=normalisation)
    if not path.is_dir():
        raise DataError(
            f"data {data!r} are of no known kind: there are {' and '.join(DATA_SETS)}, a file .npz, or a folder with "
            "one folder of images per class. Pass one of them."
        )
    return load_image_folder(path, seed=seed, size=size, normalisation=normalisation or (IMAGENET_MEAN, IMAGENET_STD))


def _fitted(dataset: ArrayDataset, attachment: Attachment) -> ArrayDataset:
    """Return a data set with the channels and the size that the model takes."""
    channels, height, width = attachment.input
    found = dataset.images.shape[1]
    if isinstance(dataset.images, Tensor) and found == 1 and channels > 1:  # grey as every colour
        dataset = ArrayDataset(
            dataset.images.expand(-1, channels, -1, -1),
            dataset.labels,
            mean=dataset.mean * channels,
            std=dataset.std * channels,
        )
    elif found != channels:
        raise DataError(
            f"data {attachment.data!r} have {found} channels, the model takes {channels}: they do not fit. Pass images "
            f"of {channels} channels, or --input {found},{height},{width} where the model can be made so."
        )
    return dataset.resized((height, width))
