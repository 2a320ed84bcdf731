"""Digits among digits: pictures made by code, of which some are easy and some are hard, for the demo.

Every picture shows one large handwritten digit and a number of smaller ones; the class is that of the large one. How
many small ones there are, and how much noise, is drawn before anything is trained. A small part of a net reads a digit
that stands alone; to tell the large one from the small ones takes more layers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64

from eenet.experiments.data.arrays import DIGITS_ROWS
from eenet.experiments.data.dataset import ArrayDataset, DataSplits, Split, shuffled

SIDE = 32
MOST_OTHERS = 4
LARGE, SMALL = range(15, 20), range(10, 14)  # height and width of the digits, in pixels
NOISE = (0.05, 0.15)  # standard deviation of an easy picture, and what is added for the hardest
COUNTS: dict[Split, int] = {"train": 6000, "calibration": 2000, "test": 2000}
_MEAN, _STD = (0.2,), (0.3,)
_OVERLAP = 2  # pixels by which digits may touch
_TRIES = 12  # places tried for a small digit before it is left out
_STREAMS: dict[Split, int] = {"train": 0, "calibration": 1, "test": 2}


def load_cluttered_digits(*, seed: int = 0) -> DataSplits:
    """Return pictures of 32x32 pixels, made from the 1797 digits that scikit-learn contains.

    6,000 to train on, 2,000 for calibration, 2,000 for testing. No handwritten digit is used in two splits; within a
    split each is used several times, at other places and sizes.

    Args:
        seed: Of the splits and of the pictures.
    """

    @cache
    def made(split: Split) -> ArrayDataset:
        from sklearn import datasets

        digits = datasets.load_digits()
        rows = shuffled(len(digits.target), seed)[DIGITS_ROWS[split]].numpy()
        generator = np.random.default_rng((seed, _STREAMS[split]))
        pictures, chosen = _pictures((digits.images[rows] / 16).astype(np.float32), COUNTS[split], generator)
        labels = torch.from_numpy(digits.target[rows][chosen].astype(np.int64))
        return ArrayDataset(torch.from_numpy(pictures), labels, mean=_MEAN, std=_STD)

    return DataSplits(load=made, classes=tuple("0123456789"))


def _pictures(
    digits: Float32[np.ndarray, "digit 8 8"], count: int, generator: np.random.Generator
) -> tuple[Float32[np.ndarray, "picture 1 32 32"], Int64[np.ndarray, " picture"]]:
    """Return pictures between 0 and 1, and which digit is the large one in each."""
    sizes = sorted({*LARGE, *SMALL})
    scaled = {size: _resized(digits, size) for size in sizes}
    chosen = generator.integers(len(digits), size=count)
    hardness = generator.random(count)
    pictures = np.zeros((count, SIDE, SIDE), np.float32)
    for picture, digit, hard in zip(pictures, chosen.tolist(), hardness.tolist(), strict=True):
        size = int(generator.choice(LARGE))
        top, left = generator.integers(SIDE - size + 1, size=2).tolist()
        for _ in range(int(hard * (MOST_OTHERS + 1))):
            _add_small(picture, scaled, (top, left, size), generator)
        _paste(picture, scaled[size][digit], top, left)
    deviations = (NOISE[0] + NOISE[1] * hardness).astype(np.float32)
    pictures += generator.standard_normal(pictures.shape, dtype=np.float32) * deviations[:, None, None]
    return pictures.clip(0, 1)[:, None], chosen


def _resized(digits: Float32[np.ndarray, "digit 8 8"], size: int) -> Float32[np.ndarray, "digit size size"]:
    images = torch.from_numpy(digits)[:, None]
    enlarged: np.ndarray = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)[:, 0].numpy()
    return enlarged


def _add_small(
    picture: Float32[np.ndarray, "32 32"],
    scaled: dict[int, np.ndarray],
    large: tuple[int, int, int],
    generator: np.random.Generator,
) -> None:
    """Put a small digit beside the large one, where there is room."""
    top, left, size = large
    small = int(generator.choice(SMALL))
    digit = scaled[small][generator.integers(len(scaled[small]))]
    for _ in range(_TRIES):
        y, x = generator.integers(SIDE - small + 1, size=2).tolist()
        apart = max(top - (y + small), y - (top + size), left - (x + small), x - (left + size))
        if apart >= -_OVERLAP:
            _paste(picture, digit, y, x)
            return


def _paste(picture: Float32[np.ndarray, "32 32"], digit: Float32[np.ndarray, "size size"], top: int, left: int) -> None:
    place = picture[top : top + len(digit), left : left + len(digit)]
    np.maximum(place, digit, out=place)
