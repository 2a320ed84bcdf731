"""Labelled data sets, in memory or as files, and the three splits of every recipe: train, calibration, test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from eenet.errors import DataError, InputError
from eenet.experiments.data.files import UNLABELLED, Files, ImageFiles, MaskFiles
from eenet.models.inputs import IGNORED
from eenet.training.dataset import Augment, LabelledDataset

Split: TypeAlias = Literal["train", "calibration", "test"]
SPLIT_NAMES: dict[str, Split] = {"train": "train", "calibration": "calibration", "val": "calibration", "test": "test"}
"""Accepted names of splits; ``val`` is short for ``calibration``."""
Normalisation: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, on the scale 0 to 1."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's colours, which most published weights expect."""


@final
class ArrayDataset(LabelledDataset):
    """Images and their labels or masks, in memory or on disk.

    Images may stay ``uint8`` (a quarter of the memory); `prepare` turns them into what a model takes.

    Args:
        images: ``[sample, channel, height, width]``, ``uint8`` (0 to 255) or floating point (0 to 1), or their files.
        labels: the true class of every image; or of every pixel, as masks ``[sample, height, width]`` in ``uint8``
            (255 where there is none) or their files.
        mean: per channel, on the scale 0 to 1, subtracted by `prepare`.
        std: per channel, on the scale 0 to 1, divided by in `prepare`.
        size: height and width that `prepare` brings images to; by default they keep theirs. Masks keep theirs.

    Raises:
        DataError: no samples, or another number of labels than of images, or of means and deviations than of channels.
    """

    def __init__(
        self,
        images: Tensor | ImageFiles,
        labels: Tensor | MaskFiles,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        size: tuple[int, int] | None = None,
    ) -> None:
        if len(images.shape) != 4 or not len(images):
            raise DataError(
                f"images of shape {tuple(images.shape)} are not usable: the shape must be (sample, channel, height, "
                "width) with at least 1 sample."
            )
        count, channels, *picture = images.shape
        if tuple(labels.shape) != (count,) and (
            tuple(labels.shape) != (count, *picture) or labels.dtype != torch.uint8
        ):
            raise DataError(
                f"labels of shape {tuple(labels.shape)} do not fit: there are {count} images. Pass one label per "
                "image, or a uint8 mask of its size."
            )
        if not len(mean) == len(std) == channels:
            raise DataError(
                f"mean and std of {len(mean)} and {len(std)} numbers do not fit: the images have {channels} channels."
            )
        self.images = images
        self.mean = mean
        self.std = std
        self.size = size
        self._labels = labels

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    @property
    def labels(self) -> Int[Tensor, " sample"]:
        """The class of every image; refused where images have masks, which `targets` returns."""
        if isinstance(self._labels, MaskFiles) or self._labels.ndim != 1:
            raise InputError("labels are not there: these images have a class per pixel. Ask for targets(rows).")
        return self._labels

    def prepare(self, images: Shaped[Tensor, "sample channel _ _"]) -> Float[Tensor, "sample channel height width"]:
        """Return raw images as normalised ``float32`` of the wanted size, in channels-last memory order."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        scaled = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.to(torch.float32)
        if self.size is not None and self.size != tuple(scaled.shape[2:]):
            scaled = F.interpolate(scaled, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        return ((scaled - mean) / std).contiguous(memory_format=torch.channels_last)

    def inputs(self, rows: Int[Tensor, " row"] | slice) -> Float[Tensor, "row channel height width"]:
        """Return the prepared images of some rows."""
        return self.prepare(self.images[rows])

    def targets(self, rows: Int[Tensor, " row"] | slice) -> Int[Tensor, "row ..."]:
        """Return the classes of some rows, per image or per pixel; -100 where a mask is unlabelled."""
        return _as_targets(self._labels[rows])

    def training_batch(
        self, rows: Int[Tensor, " row"], augment: Augment | None, generator: torch.Generator
    ) -> tuple[Float[Tensor, "row channel height width"], Int[Tensor, "row ..."]]:
        """Return (prepared images, targets) of some rows, changed at random.

        Masks are changed together with their images, as a further channel: ``augment`` must move pixels only.
        """
        images, labels = self.images[rows], self._labels[rows]
        if augment is not None and labels.ndim == 1:
            images = augment(images, generator)
        elif augment is not None:
            # masks travel as 255 minus the class, so that zeros shifted in from outside mean "unlabelled"
            channel = (UNLABELLED - labels)[:, None].to(images.dtype)
            changed = augment(torch.cat([images, channel], dim=1), generator)
            images, labels = changed[:, :-1], UNLABELLED - changed[:, -1].to(torch.uint8)
        return self.prepare(images), _as_targets(labels)

    def select(self, rows: Int[Tensor, " row"] | Bool[Tensor, " sample"] | slice) -> ArrayDataset:
        """Return a data set of some rows only, or of those where a mask is true; files stay on disk."""
        images = self.images.select(rows) if isinstance(self.images, Files) else self.images[rows]
        labels = self._labels.select(rows) if isinstance(self._labels, Files) else self._labels[rows]
        return ArrayDataset(images, labels, mean=self.mean, std=self.std, size=self.size)

    def resized(self, size: tuple[int, int]) -> ArrayDataset:
        """Return the same samples, brought to another height and width by `prepare`; the stored images are shared."""
        return ArrayDataset(self.images, self._labels, mean=self.mean, std=self.std, size=size)

    def fingerprint(self) -> str:
        """Return a short digest of the labels, of the images, and of the scale and size that `prepare` brings them to.

        Of images in memory the first, middle and last are looked at; of files, the names and how they are read: none
        is opened, and they may lie in another place.
        """
        rows = torch.tensor([0, len(self) // 2, len(self) - 1])
        sample = self.images if isinstance(self.images, Files) else self.images[rows]
        size = self.size or tuple(self.images.shape[2:])
        return digest(self._labels, sample, torch.tensor([self.mean, self.std]), torch.tensor(size))


def as_images(dataset: LabelledDataset) -> ArrayDataset:
    """Return a data set, refusing one that is not made of images."""
    if not isinstance(dataset, ArrayDataset):
        raise DataError("data are no images: their samples are texts. Pass a data set of images.")
    return dataset


def digest(*parts: Tensor | Files) -> str:
    """Return a short digest of the shape and content of tensors, and of the names of files and how they are read."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, Files):
            hashed.update("\n".join([part.reading, *part.names]).encode())
        else:
            hashed.update(f"{part.dtype} {tuple(part.shape)}".encode())
            hashed.update(part.contiguous().view(torch.uint8).numpy().data)
    return hashed.hexdigest()[:16]


def _as_targets(labels: Shaped[Tensor, "row ..."]) -> Int[Tensor, "row ..."]:
    if labels.ndim == 1:
        return labels.long()
    return labels.long().masked_fill(labels == UNLABELLED, IGNORED)


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """The train, calibration and test split of a data set, each loaded when first asked for.

    Policies are fitted on the calibration set; neither it nor the test set takes part in training.

    Args:
        load: returns one split; called at most once per split.
        classes: names of the classes, in label order.
    """

    load: Callable[[Split], LabelledDataset]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Make `load` remember what it returned."""
        object.__setattr__(self, "load", cache(self.load))

    @property
    def train(self) -> LabelledDataset:
        """The samples a model is trained on."""
        return self.load("train")

    @property
    def calibration(self) -> LabelledDataset:
        """Unseen samples to fit policies on."""
        return self.load("calibration")

    @property
    def test(self) -> LabelledDataset:
        """Unseen samples to judge on."""
        return self.load("test")

    def get(self, name: str) -> LabelledDataset:
        """Return a split by its name: ``train``, ``calibration`` (or ``val``) or ``test``."""
        if name not in SPLIT_NAMES:
            raise InputError(f"split {name!r} is not known: there are {', '.join(SPLIT_NAMES)}. Pass one of them.")
        return self.load(SPLIT_NAMES[name])


# --- which samples go to which split ----------------------------------------------------------------------------------

_SHARES: dict[Split, tuple[float, float]] = {"train": (0.0, 0.6), "calibration": (0.6, 0.8), "test": (0.8, 1.0)}

Part: TypeAlias = Literal["train", "held_out"]
"""The two parts that a data set is published in."""


def halved(read: Callable[[Part], LabelledDataset], classes: tuple[str, ...], seed: int) -> DataSplits:
    """Return a published train part for training, and halves of the held-out part for calibration and testing."""
    part = cache(read)

    def load(split: Split) -> LabelledDataset:
        if split == "train":
            return part("train")
        order, half = _order(len(part("held_out")), seed), len(part("held_out")) // 2
        return part("held_out").select((order[:half] if split == "calibration" else order[half:]).sort().values)

    return DataSplits(load=load, classes=classes)


def shared(
    read: Callable[[Int[Tensor, " row"], Split], LabelledDataset],
    count: int,
    classes: tuple[str, ...],
    seed: int,
    *,
    place: Path,
) -> DataSplits:
    """Return a pool of ``count`` samples as splits: 60 % to train on, 20 % for calibration, 20 % for testing.

    ``read`` returns some rows of the pool, for one split; ``seed`` decides which sample belongs to which; the pool lies
    in a ``place``, and is refused if a split would be empty or a single sample.
    """
    if count < 10:
        raise DataError(f"data {place} has {count} samples: three splits need at least 10. Get more.")
    return DataSplits(load=lambda split: read(share_of(split, count, seed), split), classes=classes)


def share_of(split: Split, count: int, seed: int) -> Int[Tensor, " row"]:
    """Return the rows of one split of a pool, as `shared` deals them out."""
    first, last = (round(share * count) for share in _SHARES[split])
    return _order(count, seed)[first:last].sort().values


def _order(count: int, seed: int) -> Int[Tensor, " row"]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
