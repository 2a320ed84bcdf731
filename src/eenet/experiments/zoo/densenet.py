"""DenseNets (Huang et al., 2017) with exits after or inside their dense blocks; the layers are torchvision's.

Source: G. Huang, Z. Liu, L. van der Maaten, K. Weinberger, *Densely connected convolutional networks*, CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eenet.errors import InputError
from eenet.experiments.zoo.parts import check_kind, check_stem, divided
from eenet.libraries import library
from eenet.models.heads import HeadFactory, conv_head
from eenet.models.model import MultiExitModel

BLOCKS_121 = (6, 12, 24, 16)


class DenseLayers(nn.Module):
    """Layers of torchvision of one dense block: each reads every feature before it and adds its own."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Float[Tensor, "sample channel h w"]) -> Float[Tensor, "sample feature h w"]:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, dim=1)


def densenet121(
    num_classes: int = 1000,
    *,
    exits: int | Sequence[int] = (6, 18, 42),
    stem: str = "imagenet",
    growth: int = 32,
    heads: HeadFactory | None = None,
) -> MultiExitModel:
    """Return a DenseNet121 with early exits, randomly initialised.

    With 1000 classes and without its early heads it has 7,978,856 parameters and takes 2.83 billion
    multiply-accumulates for an image of 224 x 224, as torchvision states of its own.

    Args:
        num_classes: number of classes C.
        exits: numbers of dense layers, of 58, after which an early exit sits, the original output being the last exit;
            or how many exits there are, it included, at even distances. After the last layer of a block the exit
            sits after the transition. The default is that of the four exits of EENet.
        stem: ``imagenet``, a 7x7 convolution of stride 2 and a pooling, or ``cifar``, a 3x3 convolution of stride 1.
        growth: channels each dense layer adds; EENet's net for CIFAR-100 has 12.
        heads: makes the early heads; by default two 3x3 convolutions of stride 2 and a pooled linear layer.

    Raises:
        InputError: exits outside the net, a growth below 1, or an unknown stem.

    Source: Huang et al. 2017, table 1; F. Ilhan et al., *Adaptive deep neural network inference optimization with
    EENet*, WACV 2024, for the places of the exits.
    """
    check_stem(stem)
    return densenet_with_exits(_net(BLOCKS_121, growth, num_classes, stem), exits=exits, heads=heads)


def densenet_cifar(
    num_classes: int = 10,
    *,
    depth: int = 100,
    growth: int = 12,
    exits: int | Sequence[int] = 3,
    heads: HeadFactory | None = None,
) -> MultiExitModel:
    """Return a DenseNet-BC for 32x32 images with early exits, randomly initialised.

    Args:
        num_classes: number of classes C.
        depth: number of layers, 6 n + 4; the net has three blocks of n dense layers, each of two convolutions.
        growth: channels each dense layer adds. Depth 100 and growth 12 make the net of 0.8 million parameters.
        exits: as of `densenet121`, of 3 n dense layers.
        heads: as of `densenet121`.

    Source: Huang et al. 2017, sections 3 and 4.2 and table 2.
    """
    if depth < 10 or (depth - 4) % 6:
        raise InputError(
            f"depth {depth} is not possible: the net has 6 n + 4 layers. Pass 40, 100 or 190, for example."
        )
    net = _net(((depth - 4) // 6,) * 3, growth, num_classes, "cifar")
    return densenet_with_exits(net, exits=exits, heads=heads)


def densenet_with_exits(
    net: nn.Module, *, exits: int | Sequence[int] = 4, heads: HeadFactory | None = None
) -> MultiExitModel:
    """Return a model with early exits, as of `densenet121`, that shares the weights of a DenseNet of torchvision.

    Such a ``net`` may have published weights; its classifier is the last head.

    Raises:
        InputError: another net, or exits outside it.
    """
    check_kind(net, "torchvision.models", "DenseNet")
    parts: dict[str, Any] = dict(net.get_submodule("features").named_children())
    classifier = net.get_submodule("classifier")
    blocks = [list(part.children()) for name, part in parts.items() if name.startswith("denseblock")]
    transitions = [part for name, part in parts.items() if name.startswith("transition")]
    stem = [part for name, part in parts.items() if name.endswith("0")]
    layers = [(number, layer) for number, block in enumerate(blocks) for layer in block]
    rows = [_modules(row, blocks, transitions) for row in divided(layers, exits, "dense layer")]
    make_head = conv_head(width=1.0) if heads is None else heads
    classes = _num_classes(classifier)
    early, channels, size = [], stem[0].out_channels, 32 if len(stem) == 1 else 56  # of a usual image, after the stem
    for row in rows[:-1]:
        channels, size = _size_after(row, channels, size)
        early.append(make_head((2, channels, size, size), classes))
    last = nn.Sequential(parts["norm5"], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    stages = [nn.Sequential(*stem, *rows[0]), *(nn.Sequential(*row) for row in rows[1:])]
    return MultiExitModel(stages, [*early, last])


def _num_classes(classifier: nn.Module) -> int:
    """Return how many classes a classifier tells apart, which fine-tuning may have made a sequence."""
    linear = [part for part in classifier.modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise InputError(
            f"net has a classifier {type(classifier).__name__} without a linear layer: early exits need its number of "
            "classes. Use eenet.attach, which asks the answer itself."
        )
    return linear[-1].out_features


def _net(blocks: Sequence[int], growth: int, num_classes: int, stem: str) -> Any:  # noqa: ANN401
    """Return torchvision's net; the stem for small images is one convolution in place of its four modules."""
    if growth < 1:
        raise InputError(f"growth {growth} is not possible: every dense layer adds channels. Pass 1 or more.")
    models = library("torchvision.models")
    net = models.DenseNet(growth, tuple(blocks), num_init_features=2 * growth, num_classes=num_classes)
    if stem == "cifar":
        del net.features.norm0, net.features.relu0, net.features.pool0
        net.features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.features.conv0.weight)
    return net


def _modules(
    row: Sequence[tuple[int, nn.Module]], blocks: Sequence[list[nn.Module]], transitions: Sequence[nn.Module]
) -> list[nn.Module]:
    """Return the modules that hold some layers, each with the number of its block; a transition after a block's end."""
    modules: list[nn.Module] = []
    for number, group in groupby(row, key=lambda pair: pair[0]):
        layers = [layer for _, layer in group]
        modules.append(DenseLayers(layers))
        if layers[-1] is blocks[number][-1]:
            modules += transitions[number : number + 1]
    return modules


def _size_after(row: Sequence[Any], channels: int, size: int) -> tuple[int, int]:
    """Return channels and height of the features after some modules, given those before them."""
    for module in row:
        if isinstance(module, DenseLayers):
            channels += sum(layer.conv2.out_channels for layer in module.layers)  # type: ignore[union-attr,misc]
        else:
            channels, size = module.conv.out_channels, size // 2
    return channels, size
