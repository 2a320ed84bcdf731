"""Labelled data sets, in memory or as files, and the three splits of every recipe: train, calibration, test."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from eenet.errors import DataError, InputError
from eenet.experiments.data.files import UNLABELLED, Files, ImageFiles, MaskFiles, require_same_size
from eenet.models.inputs import IGNORED
from eenet.running.preparation import Preparation
from eenet.tables.arrays import as_array
from eenet.training.augmenting import augmented
from eenet.training.dataset import Augment, LabelledDataset

Split: TypeAlias = Literal["train", "calibration", "test"]
SPLIT_NAMES: dict[str, Split] = {"train": "train", "calibration": "calibration", "val": "calibration", "test": "test"}
"""Accepted names of splits; ``val`` is short for ``calibration``."""
Normalisation: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, on the scale 0 to 1."""
IMAGENET: Normalisation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's colours, which most published weights expect."""


@final
class ArrayDataset(LabelledDataset):
    """Images and their labels or masks, in memory or on disk.

    Images may stay ``uint8`` (a quarter of the memory); `prepare` turns them into what a model takes.

    Args:
        images: ``[sample, channel, height, width]``, ``uint8`` (0 to 255) or floating point (0 to 1), or their files.
        labels: the true class of every image; or of every pixel, as masks ``[sample, height, width]`` in ``uint8``
            (255 where there is none) or their files.
        mean: per channel, on the scale 0 to 1, subtracted by `prepare`; default: those of ImageNet.
        std: per channel, on the scale 0 to 1, divided by in `prepare`; default: those of ImageNet.
        size: height and width that `prepare` brings images to; by default they keep theirs. Masks keep theirs.
        groups: of every image, what it belongs to, such as a street.

    Attributes:
        preparation: how image files and raw images become inputs, as `eenet run` and exports do it too.

    Raises:
        DataError: no samples, or another number of labels than of images, or of means and deviations than of channels.
        InputError: means, deviations or sizes that images cannot be prepared with.
    """

    def __init__(
        self,
        images: Tensor | ImageFiles,
        labels: Tensor | MaskFiles,
        *,
        mean: tuple[float, ...] = IMAGENET[0],
        std: tuple[float, ...] = IMAGENET[1],
        size: tuple[int, int] | None = None,
        groups: Sequence[str] | np.ndarray | None = None,
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
        self.images, self._labels = images, labels
        self.mean, self.std, self.size = mean, std, size
        self.groups = None if groups is None else np.asarray(groups)
        raw_size = picture[0], picture[1]
        self.preparation = Preparation(
            mean=mean,
            std=std,
            size=size or raw_size,
            raw_size=raw_size,
            short_side=images.short_side if isinstance(images, ImageFiles) else None,
        )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Int[Tensor, " sample"]:
        if isinstance(self._labels, MaskFiles) or self._labels.ndim != 1:
            raise InputError("labels are not there: these images have a class per pixel. Ask for targets(rows).")
        return self._labels

    @property
    def files(self) -> list[Files]:
        """The images and masks that are files."""
        return [one for one in (self.images, self._labels) if isinstance(one, Files)]

    def prepare(self, images: Shaped[Tensor, "sample channel _ _"]) -> Float[Tensor, "sample channel height width"]:
        """Return raw images as normalised ``float32`` of the wanted size, in channels-last memory order."""
        prepared = torch.from_numpy(self.preparation.normalised(as_array(images)))
        return prepared.contiguous(memory_format=torch.channels_last)

    def inputs(self, rows: Int[Tensor, " row"] | slice) -> Float[Tensor, "row channel height width"]:
        return self.prepare(self.images[rows])

    def targets(self, rows: Int[Tensor, " row"] | slice) -> Int[Tensor, "row ..."]:
        return _as_targets(self._truth(rows))

    def _truth(self, rows: Int[Tensor, " row"] | slice) -> Int[Tensor, "row ..."] | UInt8[Tensor, "row ..."]:
        """Return the labels or masks of some rows; masks in files must have the size of their images' files."""
        if isinstance(self._labels, Files) and isinstance(self.images, Files):
            require_same_size(self.images.select(rows).paths, self._labels.select(rows).paths)
        return self._labels[rows]

    def training_batch(
        self, rows: Int[Tensor, " row"], augment: Augment | None, generator: torch.Generator
    ) -> tuple[Float[Tensor, "row channel height width"], Int[Tensor, "row ..."]]:
        """Return (prepared images, targets) of some rows, changed at random.

        Masks are changed together with their images, see `augmented`.
        """
        images, labels = self.images[rows], self._truth(rows)
        if augment is not None and labels.ndim == 1:
            images, _ = augmented(augment, images, generator)
        elif augment is not None:
            # masks are passed as 255 minus the class, so that zeros shifted in from outside mean "unlabelled"
            images, masks = augmented(augment, images, generator, UNLABELLED - labels)
            assert masks is not None
            labels = UNLABELLED - masks
        return self.prepare(images), _as_targets(labels)

    def select(self, rows: Int[Tensor, " row"] | Bool[Tensor, " sample"] | slice) -> ArrayDataset:
        images = self.images.select(rows) if isinstance(self.images, Files) else self.images[rows]
        labels = self._labels.select(rows) if isinstance(self._labels, Files) else self._labels[rows]
        groups = None if self.groups is None else self.groups[as_array(rows) if isinstance(rows, Tensor) else rows]
        return ArrayDataset(images, labels, mean=self.mean, std=self.std, size=self.size, groups=groups)

    def resized(self, size: tuple[int, int], scale: Normalisation | None = None) -> ArrayDataset:
        """Return the same samples, brought to another height and width, and mean and deviation, by `prepare`."""
        mean, std = scale or (self.mean, self.std)
        return ArrayDataset(self.images, self._labels, mean=mean, std=std, size=size, groups=self.groups)

    def fingerprint(self) -> str:
        """Return a short digest of the labels, of the images, and of the scale and size that `prepare` brings them to.

        Of images in memory the first, middle and last are looked at; of files, the names and how they are read: none
        is opened, and they may be in another place.
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


# --- splits -----------------------------------------------------------------------------------------------------------


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
        """Unseen samples to evaluate on."""
        return self.load("test")

    def get(self, name: str) -> LabelledDataset:
        """Return a split by its name: ``train``, ``calibration`` (or ``val``) or ``test``."""
        if name not in SPLIT_NAMES:
            raise InputError(f"split {name!r} is not known: there are {', '.join(SPLIT_NAMES)}. Pass one of them.")
        return self.load(SPLIT_NAMES[name])


SPLITS: tuple[Split, ...] = ("train", "test", "calibration")
"""The splits; a class with fewer samples than splits is in the first ones."""
Part: TypeAlias = Literal["train", "held_out"]
"""The two parts that a data set is published in."""


def halved(read: Callable[[Part], LabelledDataset], classes: tuple[str, ...], seed: int) -> DataSplits:
    """Return a published train part for training, and halves of the held-out part for calibration and testing.

    Halves are chosen at random, and within each class where a half would lack one otherwise.
    """
    part = cache(read)

    def load(split: Split) -> LabelledDataset:
        if split == "train":
            return part("train")
        order = shuffled(len(part("held_out")), seed)
        chosen, others = order.tensor_split([len(order) // 2])
        if (labels := _labels_of(part("held_out"))) is not None:
            counts = torch.bincount(labels)
            here = torch.bincount(labels[chosen], minlength=len(counts))
            if bool(((counts > 1) & ((here == 0) | (here == counts))).any()):
                order = order[labels[order].argsort(stable=True)]
                chosen, others = order[1::2], order[::2]
        rows = (chosen if split == "calibration" else others).sort().values
        if labels is not None:
            _warn_of_absent(labels[rows], classes, split)
        return part("held_out").select(rows)

    return DataSplits(load=load, classes=classes)


def _labels_of(dataset: LabelledDataset) -> Int[Tensor, " sample"] | None:
    """Return the classes of samples, None where every sample has several."""
    try:
        return dataset.labels
    except InputError:
        return None


def shared(
    read: Callable[[Int[Tensor, " row"], Split], LabelledDataset],
    labels: Int[Tensor, " sample"] | int,
    classes: tuple[str, ...],
    seed: int,
    *,
    place: Path,
) -> DataSplits:
    """Return samples as splits, as `share_of` chooses them: 60 % to train on, 20 % each for the others.

    Args:
        read: returns samples by row.
        labels: their classes; or how many samples there are, where each has several.
        classes: names of the classes; a warning lists those with fewer than 3 samples.
        seed: decides which sample belongs to which split.
        place: where the data come from, for messages.
    """
    count = labels if isinstance(labels, int) else len(labels)
    if count < 10:
        raise DataError(f"data {place} has {count} samples: three splits need at least 10. Get more.")
    if isinstance(labels, Tensor):
        _warn_of_rare(labels, classes, place)
    return DataSplits(load=lambda split: read(share_of(split, labels, seed), split), classes=classes)


def _warn_of_absent(labels: Int[Tensor, " sample"], classes: tuple[str, ...], split: Split) -> None:
    """Warn of classes that are not in the half of a published held-out part."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    absent = [repr(name) for name, count in zip(classes, counts, strict=False) if not count]
    if absent:
        warnings.warn(
            f"the {split} set has no samples of {len(absent)} of {len(classes)} classes, {_some(absent)}: the held-out "
            "part of the data has fewer than 2 of each. Nothing is known about these classes from it.",
            stacklevel=4,
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _warn_of_rare(labels: Int[Tensor, " sample"], classes: tuple[str, ...], place: Path) -> None:
    """Warn of classes that cannot be in every split."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    rare = [f"{name!r} ({count})" for name, count in zip(classes, counts, strict=True) if count < len(SPLITS)]
    if rare:
        warnings.warn(
            f"data {place} has fewer than {len(SPLITS)} samples of the classes {_some(rare)}: each is missing from a "
            "split. Add samples, or remove the class.",
            stacklevel=4,
        )


def share_of(split: Split, labels: Int[Tensor, " sample"] | int, seed: int) -> Int[Tensor, " row"]:
    """Return the rows of one split, which ``seed`` chooses at random within each class.

    Classes are shared out in the proportions of the splits, and those with 3 samples or more are in every split.

    Args:
        split: which one.
        labels: the class of every sample; or how many samples there are.
        seed: the only source of chance.
    """
    labels = torch.zeros(labels, dtype=torch.int64) if isinstance(labels, int) else labels
    count = len(labels)
    order = shuffled(count, seed)
    order = order[labels[order].argsort(stable=True)]  # class by class, within each at random
    sizes = torch.bincount(labels)
    rank = torch.arange(count) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    found = rank.clamp_max(len(SPLITS) - 1)  # the first sample of a class goes to the first split, and so on
    rest = (rank >= len(SPLITS)).nonzero()[:, 0]
    found[rest] = 0
    wanted = [count - round(0.8 * count), round(0.8 * count) - round(0.6 * count)]
    for number, total in enumerate(wanted, 1):  # those that are left, evenly over the classes
        free = rest[found[rest] == 0]
        more = min(max(0, total - int((found == number).sum())), len(rest) // len(SPLITS))
        found[free[((torch.arange(more) + 0.5) * (len(free) / max(1, more))).long()]] = number
    return order[found == SPLITS.index(split)].sort().values


def shuffled(count: int, seed: int) -> Int[Tensor, " row"]:
    """Return the numbers below ``count`` in an order that ``seed`` decides."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
