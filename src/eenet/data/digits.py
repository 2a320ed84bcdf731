"""The embedded data set: handwritten digits that come with scikit-learn.

Source: E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, UCI machine learning repository, 1998.
"""

from __future__ import annotations

import numpy as np
import torch

from eenet.data.dataset import ArrayDataset, DataSplits, Split

DIGITS_CLASSES = tuple("0123456789")
MEAN, STD = (0.3053,), (0.3761,)
PARTS: dict[Split, slice] = {"train": slice(0, 797), "calibration": slice(797, 1297), "test": slice(1297, 1797)}


def load_digits(*, seed: int = 0) -> DataSplits:
    """Return the 1797 digits of 8x8 pixels: 797 to train on, 500 for calibration, 500 for testing.

    Args:
        seed: decides which digit belongs to which side.

    Example:
        >>> splits = load_digits()
        >>> len(splits.train), len(splits.calibration), len(splits.test)
        (797, 500, 500)
    """

    def load(split: Split) -> ArrayDataset:
        from sklearn import datasets

        digits = datasets.load_digits()
        images = torch.from_numpy((digits.images / 16).astype(np.float32))[:, None]
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[PARTS[split]]
        return ArrayDataset(images[rows], torch.from_numpy(digits.target.astype(np.int64))[rows], mean=MEAN, std=STD)

    return DataSplits(load=load, classes=DIGITS_CLASSES)
