"""Images in memory: the embedded digits, and a ``.npz`` file of one's own.

Source of the digits: E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, UCI machine learning
repository, 1998.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from eenet.errors import require
from eenet.experiments.data.dataset import ArrayDataset, DataSplits, Normalisation, Split, share_of, shared, shuffled
from eenet.experiments.data.files import bad_file, read_arrays
from eenet.running.preparation import is_on_scale
from eenet.tables.arrays import as_array

DIGITS_MEAN, DIGITS_STD = (0.3053,), (0.3761,)
DIGITS_ROWS: dict[Split, slice] = {"train": slice(0, 797), "calibration": slice(797, 1297), "test": slice(1297, 1797)}


def load_digits(*, seed: int = 0) -> DataSplits:
    """Return the 1797 digits of 8x8 pixels: 797 to train on, 500 for calibration, 500 for testing.

    Args:
        seed: decides which digit belongs to which split.

    Raises:
        MissingExtraError: At the first split that is read: scikit-learn is not installed.

    Example:
        >>> splits = load_digits()
        >>> len(splits.train), len(splits.calibration), len(splits.test)
        (797, 500, 500)
    """

    def load(split: Split) -> ArrayDataset:
        require("sklearn", reason="the digits come with it")
        from sklearn import datasets

        digits = datasets.load_digits()
        images = torch.from_numpy((digits.images / 16).astype(np.float32))[:, None]
        labels = torch.from_numpy(digits.target.astype(np.int64))
        rows = shuffled(len(images), seed)[DIGITS_ROWS[split]]
        return ArrayDataset(images[rows], labels[rows], mean=DIGITS_MEAN, std=DIGITS_STD)

    return DataSplits(load=load, classes=tuple("0123456789"))


def load_image_arrays(path: Path, *, seed: int = 0, normalisation: Normalisation | None = None) -> DataSplits:
    """Return labelled images as splits: 60 % to train on, 20 % for calibration, 20 % for testing, chosen by ``seed``.

    Args:
        path: ``.npz`` with ``images`` ``[sample, channel, height, width]``, uint8 (0 to 255) or floats (0 to 1), and
            ``labels`` ``[sample]``, classes from 0 on; optionally ``classes``, their names.
        seed: decides which image belongs to which split.
        normalisation: mean and standard deviation per channel; default: those of the training images.
    """
    images, labels, classes = _read(Path(path))

    @cache
    def scale() -> Normalisation:
        if normalisation is not None and len(normalisation[0]) == images.shape[1]:
            return normalisation
        training = images[share_of("train", labels, seed)].double() / (255 if images.dtype == torch.uint8 else 1)
        std = training.std(dim=(0, 2, 3)).clamp_min(1e-3)
        return tuple(training.mean(dim=(0, 2, 3)).tolist()), tuple(std.tolist())

    def read(rows: Int[Tensor, " row"], split: Split) -> ArrayDataset:
        mean, std = scale()
        return ArrayDataset(images[rows], labels[rows], mean=mean, std=std)

    return shared(read, labels, classes, seed, place=path)


def _read(path: Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    arrays = read_arrays(path, ("images", "labels"), ("classes",))
    images, labels = as_array(arrays["images"]), arrays["labels"]
    _check(path, images, labels)
    found = int(labels.max()) + 1
    names = _named(arrays["classes"]) if "classes" in arrays else tuple(map(str, range(min(found, len(labels)))))
    if len(names) < found:
        fact = f"names {len(names)} classes, the labels go up to {found - 1}: one name per class is needed"
        if "classes" not in arrays:
            fact = f"has labels up to {found - 1} and {len(labels)} images: classes are numbered from 0 without gaps"
        raise bad_file(path, fact, "Number them so, or add the names of all as classes.")
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), names


def _named(classes: np.ndarray) -> tuple[str, ...]:
    """Return names of classes as text; files of C programs and of h5py have them as bytes."""
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in classes.tolist())


def _check(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    if images.ndim != 4 or not len(images) or (images.dtype != np.uint8 and images.dtype.kind != "f"):
        needed = "[sample, channel, height, width] is needed, uint8 (0 to 255) or floats (0 to 1)"
        fact = f"has images of shape {images.shape} and type {images.dtype}: {needed}"
        raise bad_file(path, fact, "Convert them.")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        fact = f"has labels of shape {labels.shape} and type {labels.dtype}: there are {len(images)} images"
        raise bad_file(path, fact, "Give one class per image, as whole numbers.")
    if labels.min() < 0:
        fact = f"has the label {labels.min()} in row {labels.argmin()}: classes are counted from 0"
        raise bad_file(path, fact, "Number them so, and leave out images without a class.")
    if images.dtype.kind == "f":
        bad = ~is_on_scale(images)
        if bad.any():
            fact = f"has a value outside 0 to 1 in image {int(bad.argmax())}: floats are on the scale 0 to 1"
            raise bad_file(path, fact, "Rescale them, or pass uint8 from 0 to 255.")
