"""Labelled arrays in memory and the three splits every recipe has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from eenet.data.augment import Augment
from eenet.errors import DataError, InputError

Split: TypeAlias = Literal["train", "calibration", "test"]
SPLIT_NAMES: dict[str, Split] = {"train": "train", "calibration": "calibration", "val": "calibration", "test": "test"}
"""Accepted names of splits; ``val`` is short for ``calibration``."""


class ArrayDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels held in memory.

    Images may stay ``uint8`` (a quarter of the memory); `prepare` turns them into what a model takes.

    Args:
        images: ``[sample, channel, height, width]``, ``uint8`` (0 to 255) or floating point (0 to 1).
        labels: the true classes.
        mean: per channel, on the scale 0 to 1, subtracted by `prepare`.
        std: per channel, on the scale 0 to 1, divided by in `prepare`.
        size: height and width that `prepare` brings images to; by default they keep theirs.

    Raises:
        DataError: no samples, or another number of labels than of images, or of means and deviations than of channels.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        size: tuple[int, int] | None = None,
    ) -> None:
        if images.ndim != 4 or not len(images):
            raise DataError(
                f"images of shape {tuple(images.shape)} are not usable: the shape must be (sample, channel, height, "
                "width) with at least 1 sample."
            )
        if labels.shape != images.shape[:1]:
            raise DataError(
                f"labels of shape {tuple(labels.shape)} do not fit: there are {len(images)} images. Pass one label "
                "per image."
            )
        if not len(mean) == len(std) == images.shape[1]:
            raise DataError(
                f"mean and std of {len(mean)} and {len(std)} numbers do not fit: the images have {images.shape[1]} "
                "channels."
            )
        self.images = images
        self.labels = labels
        self.mean = mean
        self.std = std
        self.size = size

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one prepared image and its label, for use with a ``DataLoader``."""
        return self.prepare(self.images[index : index + 1])[0], self.labels[index]

    def prepare(self, images: Tensor) -> Float[Tensor, "sample channel height width"]:
        """Return raw images as normalised ``float32`` of the wanted size, in channels-last memory order."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        scaled = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.to(torch.float32)
        if self.size is not None and self.size != tuple(scaled.shape[2:]):
            scaled = F.interpolate(scaled, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        return ((scaled - mean) / std).contiguous(memory_format=torch.channels_last)

    def inputs(self, rows: Int[Tensor, " row"] | slice) -> Float[Tensor, "row channel height width"]:
        """Return the prepared images of some rows."""
        return self.prepare(self.images[rows])

    def targets(self, rows: Int[Tensor, " row"] | slice) -> Int[Tensor, " row"]:
        """Return the true classes of some rows."""
        return self.labels[rows]

    def training_batch(
        self, rows: Int[Tensor, " row"], augment: Augment | None, generator: torch.Generator
    ) -> tuple[Float[Tensor, "row channel height width"], Int[Tensor, " row"]]:
        """Return the (prepared images, true classes) of some rows to train on.

        Args:
            rows: which samples.
            augment: changes the raw images, if anything does.
            generator: the only source of chance.
        """
        images = self.images[rows]
        if augment is not None:
            images = augment(images, generator)
        return self.prepare(images), self.targets(rows)

    def fingerprint(self) -> str:
        """Return a short digest of the labels, by which a training that is resumed knows its data."""
        return hashlib.sha256(self.labels.contiguous().numpy().tobytes()).hexdigest()[:16]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (prepared images, labels) in row order; the last batch may be smaller."""
        for first in range(0, len(self), batch_size):
            rows = slice(first, first + batch_size)
            yield self.inputs(rows), self.labels[rows]

    def select(self, rows: Int[Tensor, " row"] | slice) -> ArrayDataset:
        """Return a data set of some rows only."""
        return ArrayDataset(self.images[rows], self.labels[rows], mean=self.mean, std=self.std, size=self.size)

    def resized(self, size: tuple[int, int]) -> ArrayDataset:
        """Return the same samples, brought to another height and width by `prepare`; the stored images are shared."""
        return ArrayDataset(self.images, self.labels, mean=self.mean, std=self.std, size=size)


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """The train, calibration and test side of a data set, each loaded when first asked for.

    Policies are fitted on the calibration side; neither it nor the test side takes part in training.

    Args:
        load: returns one split; called at most once per split.
        classes: names of the classes, in label order.
    """

    load: Callable[[Split], ArrayDataset]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Make `load` remember what it returned."""
        object.__setattr__(self, "load", cache(self.load))

    @property
    def train(self) -> ArrayDataset:
        """The samples a model is trained on."""
        return self.load("train")

    @property
    def calibration(self) -> ArrayDataset:
        """Unseen samples to fit policies on."""
        return self.load("calibration")

    @property
    def test(self) -> ArrayDataset:
        """Unseen samples to judge on."""
        return self.load("test")

    def get(self, name: str) -> ArrayDataset:
        """Return a split by its name.

        Args:
            name: ``train``, ``calibration`` (or ``val``) or ``test``.

        Raises:
            InputError: no such split.
        """
        if name not in SPLIT_NAMES:
            raise InputError(f"split {name!r} is not known: there are {', '.join(SPLIT_NAMES)}. Pass one of them.")
        return self.load(SPLIT_NAMES[name])
