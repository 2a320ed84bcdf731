"""ResNets for 32x32 images (He et al., 2016), cut into stages after chosen blocks.

Source: K. He, X. Zhang, S. Ren, J. Sun, *Deep residual learning for image recognition*, CVPR 2016, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from eenet.errors import InputError
from eenet.experiments.zoo.parts import check_weights, divided
from eenet.models.heads import HeadFactory, conv_head
from eenet.models.model import MultiExitModel
from eenet.models.weights import load_tensors

LAYER_CHANNELS = (16, 32, 64)
IMAGE_SIZE = 32


class Stem(nn.Module):
    """The first convolution with its batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "sample channel h w"]) -> Float[Tensor, "sample feature h w"]:
        return F.relu(self.bn1(self.conv1(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters.

    Where the block halves the image, the shortcut takes every second pixel and fills up the new channels with zeros,
    half of them in front ("option A" of the paper).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Float[Tensor, "sample channel h w"]) -> Float[Tensor, "sample feature h2 w2"]:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.new_channels:
            front = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.new_channels - front))
        return F.relu(out + x)


class Classifier(nn.Module):
    """The original output: global average pooling and a linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Float[Tensor, "sample channel h w"]) -> Float[Tensor, "sample class"]:
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def cifar_resnet(
    depth: int = 56,
    *,
    exits: int | Sequence[int] = (9, 18),
    num_classes: int = 10,
    in_channels: int = 3,
    heads: HeadFactory | None = None,
) -> MultiExitModel:
    """Return a ResNet for 32x32 images with early exits after some of its blocks, randomly initialised.

    With 56 layers, 10 classes and without its early heads it has 0.85 million parameters, as published, and takes 125
    million multiply-accumulates for an image, as published too.

    Args:
        depth: number of layers, 6 n + 2; the net has three groups of n blocks.
        exits: numbers of blocks after which an early exit sits, increasing, each below the number of blocks, the
            original output being the last exit; or how many exits there are, it included, at even distances.
        num_classes: number of classes C.
        in_channels: channels of the images.
        heads: makes the early heads; by default two strided convolutions and a pooled linear layer.

    Raises:
        InputError: a depth that is not 6 n + 2, or exits that are not increasing block numbers.

    Source of the counts: K. He et al., *Deep residual learning for image recognition*, CVPR 2016, table 6; H. Li et
    al., *Pruning filters for efficient ConvNets*, ICLR 2017, table 1.
    """
    if depth < 8 or (depth - 2) % 6:
        raise InputError(
            f"depth {depth} is not possible: the net has 6 n + 2 layers. Pass 20, 32, 44 or 56, for example."
        )
    rows = divided(_blocks(depth), exits, "block")
    stages = [nn.Sequential(*row) for row in rows]
    stages[0].insert(0, Stem(in_channels, LAYER_CHANNELS[0]))
    make_head = conv_head() if heads is None else heads
    early = [make_head(_shape_after(row[-1]), num_classes) for row in rows[:-1]]
    return MultiExitModel(stages, [*early, Classifier(LAYER_CHANNELS[-1], num_classes)])


def _blocks(depth: int) -> list[BasicBlock]:
    blocks: list[BasicBlock] = []
    before = LAYER_CHANNELS[0]
    for channels in LAYER_CHANNELS:
        for index in range((depth - 2) // 6):
            stride = 2 if index == 0 and channels != LAYER_CHANNELS[0] else 1
            blocks.append(BasicBlock(before, channels, stride))
            before = channels
    return blocks


def _shape_after(block: BasicBlock) -> tuple[int, int, int, int]:
    size = IMAGE_SIZE >> LAYER_CHANNELS.index(block.conv2.out_channels)
    return (2, block.conv2.out_channels, size, size)


def load_cifar_resnet_weights(model: MultiExitModel, path: Path) -> None:
    """Load published weights of the net without exits into the backbone of ``model``; the early heads stay as they are.

    Args:
        model: made by `cifar_resnet` with the depth the weights were made for.
        path: a safetensors file with keys ``conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear``.

    Raises:
        DataError: a key is missing, unknown, or of another shape.
        InputError: the file is missing or corrupt.

    Source: keys as in https://github.com/akamaster/pytorch_resnet_cifar10.
    """
    found = load_tensors(path, "weights")
    modules = [*(module for stage in model.stages for module in stage.children()), model.heads[-1]]
    blocks = (len(modules) - 2) // len(LAYER_CHANNELS)  # of each layer
    names = (f"layer{layer}.{block}." for layer in range(1, 4) for block in range(blocks))
    own = {
        prefix + name: tensor
        for prefix, module in zip(("", *names, ""), modules, strict=True)
        for name, tensor in module.state_dict(keep_vars=True).items()
        if not name.endswith("num_batches_tracked")
    }
    check_weights(own, found, path)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])
