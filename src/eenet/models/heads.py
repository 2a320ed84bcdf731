"""Heads for early exits, as plain functions from the shape of a feature tensor to a module.

Any function ``(shape, num_classes) -> nn.Module`` is a head; the ones here cover images and sequences.
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


def pooled_linear(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return global average pooling followed by one linear layer, the cheapest head for images.

    Args:
        shape: shape of the features, ``(sample, channel, height, width)``.
        num_classes: number of classes C.

    Raises:
        ShapeError: the features are not images.
    """
    _check_rank(shape, 4, "pooled_linear", "(sample, channel, height, width)")
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[1], num_classes))


def grid_linear(size: int) -> HeadFactory:
    """Return a head factory: average pooling to a grid of ``size`` x ``size`` cells, then one linear layer.

    Keeps roughly where something was seen, which matters where few layers came before.

    Args:
        size: cells along each side.

    Raises:
        ShapeError: a size below 1.
    """
    _check_size(size)

    def build(shape: Sequence[int], num_classes: int) -> nn.Module:
        _check_rank(shape, 4, "grid_linear", "(sample, channel, height, width)")
        linear = nn.Linear(shape[1] * size * size, num_classes)
        return nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Flatten(), linear)

    return build


class MixedPool(nn.Module):
    """A learnt mix of the largest and of the mean value in each cell of a grid; it begins half and half.

    Args:
        size: cells along each side.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.largest, self.mean = nn.AdaptiveMaxPool2d(size), nn.AdaptiveAvgPool2d(size)
        self.mix = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "sample channel h w"]) -> Float[Tensor, "sample channel cell cell"]:
        """Return the pooled features."""
        mean = self.mean(x)
        pooled: Tensor = mean + torch.sigmoid(self.mix) * (self.largest(x) - mean)
        return pooled


def mixed_linear(size: int = 1) -> HeadFactory:
    """Return a head factory: mixed pooling to a grid of ``size`` x ``size`` cells, then one linear layer.

    The mix of largest and mean value is learnt, one number per head: the largest keeps what is rare and strong in an
    image, as early features often are. Pooling costs twice that of `grid_linear`, which is little beside a stage.

    Args:
        size: cells along each side; the paper has 4 where the features are larger.

    Raises:
        ShapeError: a size below 1.

    Source: Y. Kaya, S. Hong, T. Dumitras, *Shallow-deep networks: understanding and mitigating network overthinking*,
    ICML 2019 (arXiv 1810.07052), section on internal classifiers. There the mix is any number, here within 0 and 1.
    """
    _check_size(size)

    def build(shape: Sequence[int], num_classes: int) -> nn.Module:
        _check_rank(shape, 4, "mixed_linear", "(sample, channel, height, width)")
        return nn.Sequential(MixedPool(size), nn.Flatten(), nn.Linear(shape[1] * size * size, num_classes))

    return build


class AttentionPool(nn.Module):
    """The mean over positions, weighted by a softmax over what a learnt query finds there; it begins as the plain mean.

    Args:
        features: size of the vector at each position.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.query.weight)

    def forward(self, x: Float[Tensor, "sample ..."]) -> Float[Tensor, "sample feature"]:
        """Return the pooled features of images (channels second) or of sequences (features last)."""
        places = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
        weights = self.query(places).softmax(dim=1)
        pooled: Tensor = (weights.transpose(1, 2) @ places).squeeze(1)
        return pooled


def attention_linear(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return attention pooling followed by one linear layer: the head learns where to look.

    The query is one vector, the same for every input: 4 operations per feature and position, next to 1 of the mean.
    For sequences too, where every token takes part, padding included.

    Args:
        shape: shape of the features, ``(sample, channel, height, width)`` or ``(sample, token, feature)``.
        num_classes: number of classes C.

    Raises:
        ShapeError: the features are neither images nor sequences.

    Source: the idea of a learnt query over positions, as in J. Lee et al., *Set transformer*, ICML 2019 (pooling by
    attention), with a single query and head and without projections.
    """
    if len(shape) != 3:
        _check_rank(shape, 4, "attention_linear", "(sample, channel, height, width) or (sample, token, feature)")
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
        raise ShapeError(
            f"width {width:g} is not usable: it multiplies the number of channels. Pass a positive factor such as 2."
        )

    def build(shape: Sequence[int], num_classes: int) -> nn.Module:
        _check_rank(shape, 4, "conv_head", "(sample, channel, height, width)")
        layers: list[nn.Module] = []
        channels = shape[1]
        for stride in strides:
            out = channels if stride == 1 else max(1, round(channels * width))
            conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        return nn.Sequential(*layers, pooled_linear((shape[0], channels, 1, 1), num_classes))

    return build


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside the identity.

    Args:
        channels: of the features, which keep their shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "sample channel height width"]) -> Float[Tensor, "sample channel height width"]:
        """Return the block's features."""
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def residual_head(channels: int) -> HeadFactory:
    """Return a head factory: the short way to a net's end, until there are ``channels``; then pooling, a linear layer.

    Each step halves the image, doubles the channels and adds a residual block. Early features of deep narrow nets know
    little; a small net that starts from them is worth more, at the same cost, than the same number of the deep net's
    own layers. Use it for one early exit: everybody who goes on has paid for it.

    Args:
        channels: those of the backbone's last features, say.

    Raises:
        ShapeError: fewer than 1 channel.
    """
    if channels < 1:
        raise ShapeError(f"channels {channels} are not usable: the last features need some. Pass 1 or more.")

    def build(shape: Sequence[int], num_classes: int) -> nn.Module:
        _check_rank(shape, 4, "residual_head", "(sample, channel, height, width)")
        layers: list[nn.Module] = []
        present = shape[1]
        while present < channels:
            wider = min(2 * present, channels)
            conv = nn.Conv2d(present, wider, 3, stride=2, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(wider), nn.ReLU(), ResidualBlock(wider)]
            present = wider
        return nn.Sequential(*layers, pooled_linear((shape[0], present, 1, 1), num_classes))

    return build


class TokenHead(nn.Module):
    """Classifies a sequence by one of its tokens: linear, tanh, linear.

    Args:
        features: size of a token's vector.
        num_classes: number of classes C.
        place: of the token that is read: 0 for the first, -1 for the last.
    """

    def __init__(self, features: int, num_classes: int, place: int = 0) -> None:
        super().__init__()
        self.place = place
        self.pool = nn.Linear(features, features)
        self.classify = nn.Linear(features, num_classes)

    def forward(self, tokens: Float[Tensor, "sample token feature"]) -> Float[Tensor, "sample class"]:
        """Return the logits read off the token."""
        return self.classify(self.pool(tokens[:, self.place]).tanh())  # type: ignore[no-any-return]


def token_head(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return a head for sequences that reads the first token, as BERT's pooler does.

    Args:
        shape: shape of the features, ``(sample, token, feature)``.
        num_classes: number of classes C.

    Raises:
        ShapeError: the features are not sequences.
    """
    _check_rank(shape, 3, "token_head", "(sample, token, feature)")
    return TokenHead(shape[2], num_classes)


def _check_size(size: int) -> None:
    if size < 1:
        raise ShapeError(f"size {size} is not usable: the grid needs at least 1 cell a side. Pass 1 or more.")


def _check_rank(shape: Sequence[int], rank: int, name: str, wanted: str) -> None:
    if len(shape) != rank:
        raise ShapeError(
            f"shape {tuple(shape)} does not fit {name}: it has {len(shape)} axes and {rank} are needed. Use {name} "
            f"on features of shape {wanted}."
        )
