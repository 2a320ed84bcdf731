"""A very small net with exits, for tests and the embedded data set."""

from __future__ import annotations

from torch import nn

from eenet.errors import InputError
from eenet.experiments.zoo.parts import convolution
from eenet.models.heads import grid_linear, pooled_linear
from eenet.models.model import MultiExitModel


def tiny_cnn(num_classes: int = 10, exits: int = 3, in_channels: int = 1, width: int = 16) -> MultiExitModel:
    """Return a small convolutional net for small images, with an exit after every stage, randomly initialised.

    Every stage is a pair of 3x3 convolutions with batch norm; the second stage halves the image, and every further one
    adds channels.

    Args:
        num_classes: number of classes C.
        exits: number of exits K, the original output included.
        in_channels: channels of the images.
        width: channels of the first stage.

    Raises:
        InputError: fewer than two exits.
    """
    if exits < 2:
        raise InputError(f"exits {exits} are not enough: leaving early needs at least 2. Pass 2 or more.")
    stages: list[nn.Module] = []
    heads: list[nn.Module] = []
    before = in_channels
    for k in range(exits):
        channels = width * (k + 1)
        stages.append(
            nn.Sequential(*convolution(before, channels, stride=2 if k == 1 else 1), *convolution(channels, channels))
        )
        make_head = pooled_linear if k == exits - 1 else grid_linear(2)
        heads.append(make_head((2, channels, 2, 2), num_classes))
        before = channels
    return MultiExitModel(stages, heads)
