"""Random changes of training images: functions of raw images of any number type, and no other source of chance."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor

Images: TypeAlias = Shaped[Tensor, "sample channel height width"]


def random_crop_flip(images: Images, generator: torch.Generator, pad: int = 4) -> Images:
    """Return every image shifted by up to ``pad`` pixels and, with probability one half, mirrored.

    What is shifted in from outside is zero.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    top = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator)
    mirror = torch.rand(count, 1, generator=generator) < 0.5
    across = torch.arange(width).expand(count, width)
    columns = left + torch.where(mirror, width - 1 - across, across)
    rows = top + torch.arange(height)
    return _gathered(padded, rows, columns)


def random_crop_flip_cut(images: Images, generator: torch.Generator, pad: int = 4, hole: int = 12) -> Images:
    """Return every image as `random_crop_flip` does, with a square of zeros, ``hole`` pixels wide, somewhere in it.

    Its centre lies in the image, its rim may not. Nets that start from weights which have learnt the training images
    by heart cannot rely on one part of them.

    Source:
        T. DeVries, G. W. Taylor, *Improved regularization of convolutional neural networks with cutout*, 2017
        (arXiv 1708.04552).
    """
    shifted = random_crop_flip(images, generator, pad)
    count, _, height, width = shifted.shape
    top = torch.randint(0, height, (count, 1), generator=generator) - hole // 2
    left = torch.randint(0, width, (count, 1), generator=generator) - hole // 2
    rows, columns = torch.arange(height) - top, torch.arange(width) - left
    inside = ((rows >= 0) & (rows < hole))[:, :, None] & ((columns >= 0) & (columns < hole))[:, None, :]
    return shifted.masked_fill(inside[:, None], 0)


def random_flip(images: Images, generator: torch.Generator) -> Images:
    """Return every image, with probability one half, mirrored."""
    mirror = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirror, images.flip(-1), images)


def random_resized_crop_flip(images: Images, generator: torch.Generator, smallest: float = 0.35) -> Images:
    """Return a part of every image, enlarged to the image's size and, with probability one half, mirrored.

    The part has between ``smallest`` and all of the image's area; the ratio of its height and width is between 3/4 and
    4/3 of the image's. Pixels are repeated, not mixed: a channel that holds classes still does.

    Source:
        C. Szegedy et al., *Going deeper with convolutions*, CVPR 2015, section 6.
    """
    count, _, height, width = images.shape
    chance = torch.rand(5, count, 1, generator=generator)
    area, proportion = smallest + (1 - smallest) * chance[0], (4 / 3) ** (chance[1] - 0.5)  # a root of the proportion
    high, wide = ((area.sqrt() * factor).clamp_max(1) for factor in (proportion, 1 / proportion))
    rows = (chance[2] * (1 - high) + (torch.arange(height) + 0.5) / height * high) * height
    across = (torch.arange(width) + 0.5) / width
    across = torch.where(chance[4] < 0.5, 1 - across, across)
    columns = (chance[3] * (1 - wide) + across * wide) * width
    return _gathered(images, rows.long().clamp_max(height - 1), columns.long().clamp_max(width - 1))


def _gathered(
    images: Shaped[Tensor, "sample channel _ _"],
    rows: Int[Tensor, "sample height"],
    columns: Int[Tensor, "sample width"],
) -> Shaped[Tensor, "sample channel height width"]:
    """Return the pixels where some rows and columns of every image meet."""
    count, channels = images.shape[:2]
    sample, channel = torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1)
    return images[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
