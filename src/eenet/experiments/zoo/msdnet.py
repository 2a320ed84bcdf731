"""Multi-scale dense networks (Huang et al., 2018): nets made for early exits, with coarse features from the start.

Every layer works at several scales at once and the classifiers read the coarsest, so that even the first of them reads
features of the whole image. The net is divided into as many parts as there are scales; from part to part the finest
scale is dropped and the channels are halved.

Source: G. Huang, D. Chen, T. Li, F. Wu, L. van der Maaten, K. Weinberger, *Multi-scale dense networks for resource
efficient image classification*, ICLR 2018; details as in https://github.com/kalviny/MSDNet-PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eenet.errors import InputError
from eenet.experiments.zoo.parts import check_stem, convolution, reading, with_heads
from eenet.models.heads import HeadFactory, conv_head, pooled_linear
from eenet.models.model import MultiExitModel

CLASSIFIER_CHANNELS = 128


def _bottleneck(in_channels: int, channels: int, width: int, stride: int) -> nn.Sequential:
    """Return a 1x1 convolution to at most ``width`` times the channels, and a 3x3 convolution."""
    inner = min(in_channels, width * channels)
    return nn.Sequential(convolution(in_channels, inner, 1), convolution(inner, channels, stride=stride))


class Scales(nn.Module):
    """The first layer: an image as features at several scales, each half the height of the one before."""

    def __init__(self, stem: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        pairs = pairwise(channels)
        self.steps = nn.ModuleList([stem, *(convolution(before, after, stride=2) for before, after in pairs)])

    def forward(self, x: Float[Tensor, "sample channel h w"]) -> list[Tensor]:
        scales = []
        for step in self.steps:
            x = step(x)
            scales.append(x)
        return scales


class MultiScaleLayer(nn.Module):
    """A layer: new features at every scale, from that scale and the next finer one, appended to those there are.

    Args:
        channels: of each scale that comes in, the finest first.
        new: channels added at each of them.
        widths: of the bottlenecks that read each of them.
        drop: leave the finest scale out of what is returned.
    """

    def __init__(self, channels: Sequence[int], new: Sequence[int], widths: Sequence[int], *, drop: bool) -> None:
        super().__init__()
        self.first = 1 if drop else 0
        self.same, self.down = nn.ModuleList(), nn.ModuleList()
        for scale in range(self.first, len(channels)):
            share = new[scale] // 2 if scale else new[scale]  # the finest scale has nothing finer to read
            self.same.append(_bottleneck(channels[scale], share, widths[scale], 1))
            if scale:
                self.down.append(_bottleneck(channels[scale - 1], share, widths[scale - 1], 2))

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        out = []
        for i, same in enumerate(self.same):
            scale = i + self.first
            finer = [self.down[scale - 1](scales[scale - 1])] if scale else []
            out.append(torch.cat([scales[scale], *finer, same(scales[scale])], dim=1))
        return out


class Halving(nn.Module):
    """The transition between parts of the net: a 1x1 convolution at every scale."""

    def __init__(self, channels: Sequence[int], fewer: Sequence[int]) -> None:
        super().__init__()
        pairs = zip(channels, fewer, strict=True)
        self.steps = nn.ModuleList(convolution(before, after, 1) for before, after in pairs)

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        return [step(scales[i]) for i, step in enumerate(self.steps)]


def msdnet(
    num_classes: int,
    *,
    layers: Sequence[int],
    channels: int,
    growth: int,
    factors: Sequence[int],
    stem: str = "cifar",
    heads: HeadFactory | None = None,
) -> MultiExitModel:
    """Return a multi-scale dense network, randomly initialised; its state is a list of scales, the finest first.

    Args:
        num_classes: number of classes C.
        layers: number of layers of each stage; an exit sits after each, so there are as many exits.
        channels: of the first layer at a scale of factor 1.
        growth: channels each layer adds at a scale of factor 1.
        factors: of channels and growth at each scale, the finest first; they are the widths of the bottlenecks too.
        stem: what makes the finest scale: ``cifar``, a 3x3 convolution, or ``imagenet``, a 7x7 convolution of stride 2
            and a pooling.
        heads: makes the early heads, from the shape of the coarsest scale; by default those of the last exit: two 3x3
            convolutions of stride 2, pooling and a linear layer.

    Raises:
        InputError: fewer than two stages, an empty stage, fewer layers than scales, an unknown stem, or channels that
            cannot be divided.

    Source: Huang et al. 2018, section 4 and appendix A.
    """
    _check(layers, channels, growth, factors, stem)
    first = Scales(_stem(stem, channels * factors[0]), [channels * factor for factor in factors])
    modules, widths = _layers(sum(layers), channels, growth, factors)
    ends = tuple(accumulate(layers))
    stages = [nn.Sequential(*chain(*modules[start:end])) for start, end in pairwise((0, *ends))]
    stages[0].insert(0, first)
    shapes = [(2, widths[end - 1] * factors[-1], 7, 7) for end in ends]
    last = reading(-1, _classifier(stem))
    return with_heads(stages, shapes, num_classes, early=reading(-1, heads) if heads else last, last=last)


def msdnet_cifar(
    num_classes: int = 10, *, layers: Sequence[int] = (4, 2, 2, 2, 2, 2, 2), heads: HeadFactory | None = None
) -> MultiExitModel:
    """Return `msdnet` for 32x32 images: 3 scales, 16 channels, growth 6.

    With layers ``(1, 2, 3, 4, 5)`` it is the one with a growing span of the paper.

    Source: Huang et al. 2018, appendix A.
    """
    return msdnet(num_classes, layers=layers, channels=16, growth=6, factors=(1, 2, 4), heads=heads)


def msdnet_imagenet(
    num_classes: int = 1000, *, layers: Sequence[int] = (7, 7, 7, 7, 7), heads: HeadFactory | None = None
) -> MultiExitModel:
    """Return `msdnet` for 224x224 images: 4 scales, 32 channels, growth 16; by default EENet's 35 layers with 5 exits.

    With layers ``(4, 4, 4, 4, 4)``, whose weights the authors of the PyTorch code publish, and its early heads it has
    23.96 million parameters and takes 1.361 billion operations for an image by the rule of that code, which counts ReLU
    and pooling too, as it states. For the 35 layers no counts are published.

    Source: Huang et al. 2018, appendix A; F. Ilhan et al., *Adaptive deep neural network inference optimization with
    EENet*, WACV 2024, and its public code for the 35 layers.
    """
    factors = (1, 2, 4, 4)
    return msdnet(num_classes, layers=layers, channels=32, growth=16, factors=factors, stem="imagenet", heads=heads)


def _layers(total: int, channels: int, growth: int, factors: Sequence[int]) -> tuple[list[list[nn.Module]], list[int]]:
    """Return the modules of every layer, and the channels after it at a scale of factor 1."""
    part = -(-total // len(factors))  # layers between two drops of the finest scale
    modules, widths = [], []
    for layer in range(total):
        before, after = (_kept(factors, number, total, part) for number in (max(0, layer - 1), layer))
        sizes, new = ([each * factor for factor in before] for each in (channels, growth))
        made: list[nn.Module] = [MultiScaleLayer(sizes, new, before, drop=len(after) < len(before))]
        channels += growth
        if layer and layer % part == 0:
            made.append(Halving([channels * factor for factor in after], [channels // 2 * factor for factor in after]))
            channels //= 2
        modules.append(made)
        widths.append(channels)
    return modules, widths


def _kept(factors: Sequence[int], layer: int, total: int, part: int) -> Sequence[int]:
    """Return the factors of the scales a layer returns; those that no later classifier reads are left out."""
    return factors[-min(len(factors) - layer // part, total - layer) :]


def _stem(name: str, channels: int) -> nn.Module:
    if name == "cifar":
        return convolution(3, channels)
    return nn.Sequential(convolution(3, channels, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))


def _classifier(stem: str) -> HeadFactory:
    """Return what makes the classifiers of the paper: of small images they have 128 channels, else those they read."""
    return conv_head(width=1.0) if stem == "imagenet" else _small_classifier


def _small_classifier(shape: Sequence[int], num_classes: int) -> nn.Module:
    channels = CLASSIFIER_CHANNELS
    convolutions = (convolution(before, channels, stride=2) for before in (shape[1], channels))
    return nn.Sequential(*convolutions, pooled_linear((shape[0], channels, 1, 1), num_classes))


def _check(layers: Sequence[int], channels: int, growth: int, factors: Sequence[int], stem: str) -> None:
    """Refuse nets that cannot be built, naming what is wrong."""
    if len(layers) < 2 or min(layers) < 1:
        raise InputError(
            f"layers {tuple(layers)} are not possible: every exit ends a stage of at least one layer. Pass 2 or more "
            "positive numbers."
        )
    if not factors or min(factors) < 1 or sum(layers) < len(factors):
        raise InputError(
            f"factors {tuple(factors)} are not possible: the {sum(layers)} layers need a positive factor for each of "
            f"1 to {sum(layers)} scales. Pass for example (1, 2, 4)."
        )
    if channels < 1 or growth < 1 or any(growth * factor % 2 for factor in factors[1:]):
        raise InputError(
            f"growth {growth} with {channels} channels is not possible: both are at least 1, and each scale but the "
            "finest takes half of its growth from the finer one. Pass an even growth."
        )
    check_stem(stem)
