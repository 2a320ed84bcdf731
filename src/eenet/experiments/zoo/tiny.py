"""Very small nets with exits, for tests and the data sets that come along."""

from __future__ import annotations

from torch import nn

from eenet.errors import InputError
from eenet.experiments.zoo.parts import convolution
from eenet.experiments.zoo.resnet import BasicBlock, Classifier, Stem
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


def tiny_resnet(num_classes: int = 10, in_channels: int = 1, deep: int = 10) -> MultiExitModel:
    """Return a small residual net with three exits, most of whose layers come after the second, randomly initialised.

    One block of 16 channels at half the image's height and width, one of 32 at a quarter (exit 0), one of 64 at an
    eighth (exit 1), and ``deep`` further ones of 64 there (exit 2). Early heads are `pooled_linear`.

    Args:
        num_classes: number of classes C.
        in_channels: channels of the images.
        deep: blocks after exit 1.

    Raises:
        InputError: no block after exit 1.
    """
    if deep < 1:
        raise InputError(f"deep {deep} is not enough: the last exit needs blocks of its own. Pass 1 or more.")
    stages = [
        nn.Sequential(Stem(in_channels, 16), BasicBlock(16, 16, 2), BasicBlock(16, 32, 2)),
        nn.Sequential(BasicBlock(32, 64, 2)),
        nn.Sequential(*(BasicBlock(64, 64, 1) for _ in range(deep))),
    ]
    early = [pooled_linear((2, channels, 4, 4), num_classes) for channels in (32, 64)]
    return MultiExitModel(stages, [*early, Classifier(64, num_classes)])
