"""Which samples go to which side, decided by a seed alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from eenet.data.dataset import DataSplits, LabelledDataset, Split

__all__ = ["LEAST", "Part", "halved", "share_of", "shared"]

LEAST = 10
"""Samples below which a side of `shared` would be empty or a single one."""
_SHARES: dict[Split, tuple[float, float]] = {"train": (0.0, 0.6), "calibration": (0.6, 0.8), "test": (0.8, 1.0)}

Part: TypeAlias = Literal["train", "held_out"]
"""The two parts that a data set is published in."""


def halved(read: Callable[[Part], LabelledDataset], classes: tuple[str, ...], seed: int) -> DataSplits:
    """Return a data set's train part for training, and two halves of its held-out part for calibration and testing.

    Args:
        read: returns one part; called when a side of it is first asked for.
        classes: names of the classes.
        seed: decides which held-out samples are calibration.
    """
    part = cache(read)

    def load(split: Split) -> LabelledDataset:
        if split == "train":
            return part("train")
        order, half = _order(len(part("held_out")), seed), len(part("held_out")) // 2
        return part("held_out").select((order[:half] if split == "calibration" else order[half:]).sort().values)

    return DataSplits(load=load, classes=classes)


def shared(
    read: Callable[[Int[Tensor, " row"], Split], LabelledDataset], count: int, classes: tuple[str, ...], seed: int
) -> DataSplits:
    """Return a pool of samples as splits: 60 % to train on, 20 % for calibration, 20 % for testing.

    Args:
        read: returns some rows of the pool, for one side.
        count: samples in the pool.
        classes: names of the classes.
        seed: decides which sample belongs to which side.
    """
    return DataSplits(load=lambda split: read(share_of(split, count, seed), split), classes=classes)


def share_of(split: Split, count: int, seed: int) -> Int[Tensor, " row"]:
    """Return the rows of one side of a pool, as `shared` deals them out."""
    first, last = (round(share * count) for share in _SHARES[split])
    return _order(count, seed)[first:last].sort().values


def _order(count: int, seed: int) -> Int[Tensor, " row"]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
