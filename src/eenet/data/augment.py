"""Random changes of training images, as plain functions of a batch and a generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor

Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""From raw images and a generator to changed images of the same shape."""


def random_crop_flip(
    images: Shaped[Tensor, "sample channel height width"], generator: torch.Generator, pad: int = 4
) -> Shaped[Tensor, "sample channel height width"]:
    """Return every image shifted by up to ``pad`` pixels and, with probability one half, mirrored.

    What is shifted in from outside is zero.

    Args:
        images: raw images, of any number type.
        generator: the only source of chance.
        pad: largest shift, in pixels.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    top = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator)
    mirror = torch.rand(count, 1, generator=generator) < 0.5
    across = torch.arange(width).expand(count, width)
    columns = left + torch.where(mirror, width - 1 - across, across)
    rows = top + torch.arange(height)
    sample, channel = torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1)
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
