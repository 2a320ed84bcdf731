"""The two official layouts of CIFAR: pickled batches, and records of bytes.

Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from eenet.data.labels import known_labels
from eenet.data.pickled import read_pickled
from eenet.errors import DataError

__all__ = ["SIZE", "read_names", "read_pickled_batches", "read_pickled_names", "read_records"]

SIZE = 32
PIXELS = 3 * SIZE * SIZE

Batch = tuple[UInt8[Tensor, "sample 3 32 32"], Int[Tensor, " sample"]]


def read_pickled_batches(paths: Sequence[Path], key: str, classes: int) -> Batch:
    """Return the images and labels of pickled batches, joined; the files are not executed.

    Args:
        paths: the files.
        key: what the labels are called in them.
        classes: how many there are.

    Raises:
        DataError: a file is missing, damaged, or holds something else.
    """
    images, labels = [], []
    for path in paths:
        batch = read_pickled(path)
        if not isinstance(batch.get("data"), np.ndarray) or not isinstance(batch.get(key), list):
            raise DataError(
                f"data file {path} is not of CIFAR: the array data and the list {key} were expected, found "
                f"{', '.join(sorted(batch)) or 'nothing'}. Get it again."
            )
        if batch["data"].shape != (len(batch[key]), PIXELS):
            raise DataError(
                f"data file {path} is damaged: {len(batch[key])} images of {PIXELS} bytes were expected, found "
                f"{batch['data'].shape}. Get it again."
            )
        images.append(batch["data"])
        labels += known_labels(batch[key], classes, path)
    return _joined(images, labels)


def read_records(paths: Sequence[Path], labels: int, classes: int) -> Batch:
    """Return the images and labels of binary files, joined.

    Args:
        paths: the files: records of one or two labels and the image, a byte per number.
        labels: how many labels a record has; the last is the one that is wanted.
        classes: how many there are.

    Raises:
        DataError: a file is missing or truncated.
    """
    length, images, found = labels + PIXELS, [], []
    for path in paths:
        if not path.is_file():
            raise DataError(f"data file {path} is missing: there is no such file. Get the whole data set.")
        raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        if not len(raw) or len(raw) % length:
            raise DataError(
                f"data file {path} is truncated: records of {length} bytes were expected, found {len(raw)} bytes. Get "
                "it again."
            )
        records = raw.reshape(-1, length)
        images.append(records[:, labels:])
        found += known_labels(records[:, labels - 1].tolist(), classes, path)
    return _joined(images, found)


def read_names(path: Path, classes: int) -> tuple[str, ...]:
    """Return the names of classes, a line each."""
    names = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return _all_names(names, classes, path)


def read_pickled_names(path: Path, key: str, classes: int) -> tuple[str, ...]:
    """Return the names of classes in a pickled file, which is not executed."""
    names = read_pickled(path).get(key, [])
    return _all_names([name.decode() if isinstance(name, bytes) else str(name) for name in names], classes, path)


def _all_names(names: Sequence[str], classes: int, path: Path) -> tuple[str, ...]:
    if len(names) != classes:
        raise DataError(f"data file {path} names {len(names)} classes: {classes} were expected. Get it again.")
    return tuple(names)


def _joined(images: Sequence[np.ndarray], labels: Sequence[int]) -> Batch:
    pixels = np.concatenate(images).reshape(-1, 3, SIZE, SIZE)
    return torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64)
