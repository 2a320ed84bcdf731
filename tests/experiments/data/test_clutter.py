"""Pictures of a large digit among small ones: made by code, hard and easy before anything is trained."""

import numpy as np
import torch

from eenet.experiments.data import clutter, load_cluttered_digits
from eenet.experiments.data.clutter import LARGE, MOST_OTHERS, SIDE, SMALL, _pictures


def test_the_splits_are_those_of_the_seed(monkeypatch):
    monkeypatch.setattr(clutter, "COUNTS", {"train": 40, "calibration": 30, "test": 20})
    splits, again, other = load_cluttered_digits(), load_cluttered_digits(), load_cluttered_digits(seed=1)
    for split, count in clutter.COUNTS.items():
        one, same = splits.load(split), again.load(split)
        assert one.images.shape == (count, 1, SIDE, SIDE) and one.images.dtype == torch.float32
        assert one.images.min() >= 0 and one.images.max() <= 1
        assert torch.equal(one.images, same.images) and torch.equal(one.labels, same.labels)
        assert not torch.equal(one.images, other.load(split).images)
    assert not torch.equal(splits.train.images[:20], splits.load("test").images)
    assert splits.classes == tuple("0123456789")


def test_a_picture_has_its_digit_and_up_to_four_small_ones(monkeypatch):
    monkeypatch.setattr(clutter, "NOISE", (0.0, 0.0))
    digits = np.stack([np.full((8, 8), value, np.float32) for value in (0.25, 0.5, 1.0)])
    pictures, chosen = _pictures(digits, 300, np.random.default_rng(0))
    lit = (pictures > 0).sum(axis=(1, 2, 3))
    large = {size * size for size in LARGE}
    alone = np.isin(lit, list(large))
    assert 0.1 < alone.mean() < 0.35  # no small one is drawn for one picture in five
    assert lit.max() <= max(large) + MOST_OTHERS * max(SMALL) ** 2
    for picture, digit in zip(pictures, chosen, strict=True):
        assert (picture >= 0.999 * digits[digit, 0, 0]).sum() >= min(LARGE) ** 2
    assert set(chosen) == {0, 1, 2}


def test_noise_grows_with_hardness():
    blank = np.zeros((1, 8, 8), np.float32)
    pictures, _ = _pictures(blank, 400, np.random.default_rng(1))
    spread = pictures.std(axis=(1, 2, 3))
    assert spread.max() > 2 * spread.min() > 0
