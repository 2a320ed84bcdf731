"""Runs of somebody else's model: what is written down about them, and how they are made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from eenet.core.files import sha256
from eenet.data.arrays import load_image_arrays
from eenet.data.cifar10 import load_cifar10
from eenet.data.dataset import IMAGENET_MEAN, IMAGENET_STD, ArrayDataset, DataSplits, Normalisation, Split, as_images
from eenet.data.digits import load_digits
from eenet.data.image_folder import load_image_folder
from eenet.errors import DataError
from eenet.models.attach import attach
from eenet.models.model import MultiExitModel
from eenet.recipes.recipe import Recipe
from eenet.recipes.sources import Source, load_source
from eenet.recipes.weights import load_weights
from eenet.training.losses import uniform_weights
from eenet.training.settings import TrainSettings

__all__ = ["ATTACHED", "DATA_SETS", "Attachment", "attach_source", "attached_recipe"]

ATTACHED = "attached"
DATA_SETS = ("digits", "cifar10")
_PLAIN = ("model", "num_classes", "classes", "weights", "data")


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
        """Return JSON-ready values; the seed stands beside them in a run folder."""
        settings = self.settings
        return {
            **{key: getattr(self, key) for key in _PLAIN},
            "exits": list(self.exits),
            "input": list(self.input),
            "normalisation": None if self.normalisation is None else [list(values) for values in self.normalisation],
            "training": {
                "epochs": settings.epochs,
                "batch_size": settings.batch_size,
                "lr": settings.lr,
                "head_lr": settings.head_lr,
                "heads_share": settings.heads_share,
            },
        }

    def at(self, model: MultiExitModel) -> Attachment:
        """Return the same with the modules that a model's exits sit behind."""
        return replace(self, exits=tuple(model.whole.names))  # type: ignore[union-attr, arg-type]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Attachment:
        """Rebuild it from what a run folder holds: `to_dict` and the seed.

        Raises:
            KeyError: A value is missing.
            TypeError: A value is of another kind.
            ValueError: A value cannot be used.
        """
        scale = value["normalisation"]
        return cls(
            **{key: value[key] for key in _PLAIN},
            exits=tuple(str(name) for name in value["exits"]),
            input=tuple(int(size) for size in value["input"]),
            normalisation=None if scale is None else (tuple(map(float, scale[0])), tuple(map(float, scale[1]))),
            settings=training(**value["training"], seed=int(value["seed"])),
        )


def training(
    *,
    epochs: float = 5.0,
    batch_size: int = 32,
    lr: float = 0.02,
    head_lr: float | None = 0.05,
    heads_share: float = 0.0,
    seed: int = 0,
) -> TrainSettings:
    """Return how attached exits are trained; see `TrainSettings`."""
    return TrainSettings(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        head_lr=head_lr,
        heads_share=heads_share,
        weighting=uniform_weights,
        seed=seed,
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
    """Return what must be written down about a model so that its run can be opened again; `at` adds the exits.

    Args:
        spec: Where the model came from; a folder or file in it may be relative.
        source: What was found there.
        data: ``digits``, ``cifar10``, a ``.npz`` file, or a folder with one of images per class.
        settings: How the exits are trained.
        num_classes: As handed to `load_source`.
        weights: State dict that was loaded.

    Raises:
        DataError: The model takes no images.
    """
    if not source.takes_images:
        shown = ",".join(map(str, source.shape))
        raise DataError(
            f"data {data!r} does not fit: it holds images, and {spec} takes {shown} per sample. Train its exits with "
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
    """Return a recipe that makes a model with attached exits, or goes on with one that is made already.

    Args:
        attachment: What is known about it.
        model: Its model, before training; default: made from its source when the recipe is built.
    """

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

    def data(root: Path | None, seed: int) -> DataSplits:
        return load_attached_data(attachment, root, seed)

    return Recipe(
        name=ATTACHED,
        summary=f"{attachment.model} with {len(attachment.exits) + 1} exits",
        make=make,
        data=data,
        settings=attachment.settings,
        needs_root=attachment.data == "cifar10",
        details=attachment.to_dict(),
    )


def wanted_classes(spec: str, data: str, root: Path | None) -> int | None:
    """Return how many classes a library's model must be made with for some data; None where it decides itself.

    Raises:
        DataError: The data are missing or damaged.
    """
    if spec.partition(":")[0] not in ("timm", "torchvision"):
        return None
    return len(_splits(data, root).classes)


def load_attached_data(attachment: Attachment, root: Path | None, seed: int) -> DataSplits:
    """Return an attached run's data as the model takes it.

    Args:
        attachment: Says which data and what the model takes.
        root: Folder with the data; of a file or a folder of one's own, the folder it lies in now.
        seed: Of the splits.

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
