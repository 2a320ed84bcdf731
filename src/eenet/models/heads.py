"""Heads for early exits, as plain functions from the shape of a feature tensor to a module.

Any function ``(shape, num_classes) -> nn.Module`` is a head; the ones here cover images, sequences and maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from eenet.errors import ShapeError

HeadFactory: TypeAlias = Callable[[Sequence[int], int], nn.Module]
"""From (shape of the features, batch first; number of classes) to a module that returns logits."""
BranchHeadFactory: TypeAlias = Callable[[Sequence[Sequence[int]], int], nn.Module]
"""From (shapes of the branches, the finest first; number of classes) to a module that returns logits per pixel."""


def pooled_linear(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return global average pooling followed by one linear layer, the cheapest head for images.

    Raises:
        ShapeError: the features are not images; the same for all heads that read images.
    """
    return _on_grid(nn.AdaptiveAvgPool2d, 1, "pooled_linear")(shape, num_classes)


def grid_linear(size: int) -> HeadFactory:
    """Return a head factory: average pooling to a grid of ``size`` x ``size`` cells, then one linear layer.

    Keeps roughly where in the image something is, which matters after only a small number of layers.

    Raises:
        ShapeError: a size below 1.
    """
    return _on_grid(nn.AdaptiveAvgPool2d, size, "grid_linear")


class MixedPool(nn.Module):
    """A learnt mix of the largest and of the mean value in each cell of a square grid; it begins half and half."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.largest, self.mean = nn.AdaptiveMaxPool2d(size), nn.AdaptiveAvgPool2d(size)
        self.mix = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "sample channel h w"]) -> Float[Tensor, "sample channel cell cell"]:
        mean = self.mean(x)
        pooled: Tensor = mean + torch.sigmoid(self.mix) * (self.largest(x) - mean)
        return pooled


def mixed_linear(size: int = 1) -> HeadFactory:
    """Return a head factory: mixed pooling to a grid of ``size`` x ``size`` cells, then one linear layer.

    The mix of largest and mean value is learnt, one number per head: the largest keeps what is rare and strong in an
    image, as early features often are. Pooling costs twice that of `grid_linear`, which is little beside a stage. The
    paper has a size of 4 where the features are larger.

    Raises:
        ShapeError: a size below 1.

    Source: Y. Kaya, S. Hong, T. Dumitras, *Shallow-deep networks: understanding and mitigating network overthinking*,
    ICML 2019 (arXiv 1810.07052), section on internal classifiers. There the mix is any number, here within 0 and 1.
    """
    return _on_grid(MixedPool, size, "mixed_linear")


def _on_grid(pool: Callable[[int], nn.Module], size: int, name: str) -> HeadFactory:
    """Return a head factory: pooling to ``size`` x ``size`` cells, then one linear layer."""
    _require_one("size", size, "the grid needs cells in each direction")

    def build(shape: Sequence[int], num_classes: int) -> nn.Module:
        _check_rank(shape, 4, name)
        return nn.Sequential(pool(size), nn.Flatten(), nn.Linear(shape[1] * size * size, num_classes))

    return build


class AttentionPool(nn.Module):
    """The mean over positions, weighted by a softmax of what a learnt query finds; it begins as the plain mean."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.query.weight)

    def forward(self, x: Float[Tensor, "sample ..."]) -> Float[Tensor, "sample feature"]:
        places = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
        weights: Tensor = self.query(places).softmax(dim=1)
        return (weights.transpose(1, 2) @ places).squeeze(1)


def attention_linear(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return attention pooling followed by one linear layer: the head learns where to look.

    The query is one vector, the same for every input: 4 operations per feature and position, next to 1 of the mean. For
    sequences, ``(sample, token, feature)``, as well as for images; every token takes part, padding included.

    Raises:
        ShapeError: the features are neither images nor sequences.

    Source: the idea of a learnt query over positions, as in J. Lee et al., *Set transformer*, ICML 2019 (pooling by
    attention), with a single query and head and without projections.
    """
    if len(shape) != 3:
        _check_rank(shape, 4, "attention_linear")
    features = shape[1] if len(shape) == 4 else shape[2]
    return nn.Sequential(AttentionPool(features), nn.Linear(features, num_classes))


def conv_head(strides: Sequence[int] = (2, 2), width: float = 2.0) -> HeadFactory:
    """Return a head factory: 3x3 convolutions (batch norm, ReLU), then pooling and a linear layer.

    Early features are fine in space and poor in meaning; the strided convolutions trade the one for the other. A
    convolution of stride 2 also multiplies the number of channels by ``width``; with the default of 2 each of them
    costs the same whatever the exit.

    Args:
        strides: stride of each convolution, in order.
        width: factor on the number of channels at every strided convolution.

    Raises:
        ShapeError: no strides, a stride below 1, or a width that is not positive.
    """
    if not strides or min(strides) < 1:
        raise ShapeError(
            f"strides {tuple(strides)} are not usable: each convolution needs a stride of 1 or more. Pass for "
            "example (2, 2)."
        )
    if width <= 0:
        raise ShapeError(f"width {width:g} is not usable: it multiplies the number of channels. Pass 2, for example.")

    def build(shape: Sequence[int], num_classes: int) -> nn.Module:
        _check_rank(shape, 4, "conv_head")
        layers: list[nn.Module] = []
        channels = shape[1]
        for stride in strides:
            out = channels if stride == 1 else max(1, round(channels * width))
            layers += _convolution(channels, out, stride)
            channels = out
        return nn.Sequential(*layers, pooled_linear((shape[0], channels, 1, 1), num_classes))

    return build


def _convolution(channels: int, out: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "sample channel height width"]) -> Float[Tensor, "sample channel height width"]:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def residual_head(channels: int) -> HeadFactory:
    """Return a head factory: the short way to a net's end, until there are ``channels``; then pooling, a linear layer.

    Each step halves the image, doubles the channels and adds a residual block. Early features of deep narrow nets
    classify badly; a small net that starts from them is more accurate, at the same cost, than further layers of the
    deep net. Use it for one early exit only: samples that do not leave there pay for it too. ``channels`` are for
    example those of the backbone's last features.

    Raises:
        ShapeError: fewer than 1 channel.
    """
    _require_one("channels", channels, "the last features need some")

    def build(shape: Sequence[int], num_classes: int) -> nn.Module:
        _check_rank(shape, 4, "residual_head")
        layers: list[nn.Module] = []
        present = shape[1]
        while present < channels:
            wider = min(2 * present, channels)
            layers += [*_convolution(present, wider, 2), ResidualBlock(wider)]
            present = wider
        return nn.Sequential(*layers, pooled_linear((shape[0], present, 1, 1), num_classes))

    return build


class TokenHead(nn.Module):
    """Classifies a sequence by one of its tokens (``place`` 0: the first, -1: the last): linear, tanh, linear."""

    def __init__(self, features: int, num_classes: int, place: int = 0) -> None:
        super().__init__()
        self.place = place
        self.pool = nn.Linear(features, features)
        self.classify = nn.Linear(features, num_classes)

    def forward(self, tokens: Float[Tensor, "sample token feature"]) -> Float[Tensor, "sample class"]:
        logits: Tensor = self.classify(self.pool(tokens[:, self.place]).tanh())
        return logits


def token_head(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return a head for sequences, ``(sample, token, feature)``, that reads the first token, as BERT's pooler does.

    Raises:
        ShapeError: the features are not sequences.
    """
    _check_rank(shape, 3, "token_head")
    return TokenHead(shape[2], num_classes)


# --- dense prediction from several branches, each of another resolution ---------------------------------------------


class BranchHead(nn.Module):
    """Classifies every pixel of the finest branch by all branches, the finest first.

    The head of HRNetV2 brings every branch to the finest resolution, joins their channels and applies a 1x1 convolution
    to ``width`` channels. A 1x1 convolution and a bilinear resizing may change places, so here each branch passes its
    own part of that convolution at its own resolution and the results are added: the same output, with a fraction of
    the multiplications.
    """

    def __init__(self, channels: Sequence[int], width: int, num_classes: int) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.Conv2d(count, width, 1, bias=False) for count in channels)
        self.norm = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, branches: list[Tensor]) -> Float[Tensor, "sample class h w"]:
        mixed = self.mix[0](branches[0])
        for i, mix in enumerate(self.mix[1:], start=1):
            mixed = mixed + resized(mix(branches[i]), branches[0])
        logits: Tensor = self.classify(F.relu(self.norm(mixed)))
        return logits


def branch_head(width: int | None = None) -> BranchHeadFactory:
    """Return a head factory for branches: all of them mixed by a 1x1 convolution, then one more to the classes.

    ``width`` is that of channels between the two; None: as many as the branches have together, which is the head of
    HRNetV2.

    Raises:
        ShapeError: a width below 1.

    Source: K. Sun et al., *High-resolution representations for labeling pixels and regions*, arXiv 1904.04514, section
    3.
    """
    if width is not None:
        _require_one("width", width, "the head needs channels")

    def build(shapes: Sequence[Sequence[int]], num_classes: int) -> nn.Module:
        if not shapes or any(len(shape) != 4 for shape in shapes):
            raise ShapeError(
                f"shapes {[tuple(shape) for shape in shapes]} do not fit branch_head: it reads branches of shape "
                "(sample, channel, height, width). Use it on a list of such features."
            )
        channels = [shape[1] for shape in shapes]
        return BranchHead(channels, width or sum(channels), num_classes)

    return build


def resized(x: Float[Tensor, "sample channel h w"], like: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return features brought to the height and width of others, bilinearly."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _require_one(name: str, value: int, why: str) -> None:
    if value < 1:
        raise ShapeError(f"{name} {value} is not usable: {why}. Pass 1 or more.")


def _check_rank(shape: Sequence[int], rank: int, name: str) -> None:
    if len(shape) != rank:
        wanted = {3: "(sample, token, feature)", 4: "(sample, channel, height, width)"}[rank]
        raise ShapeError(
            f"shape {tuple(shape)} does not fit {name}: it has {len(shape)} axes and {rank} are needed. Use {name} "
            f"on features of shape {wanted}."
        )
