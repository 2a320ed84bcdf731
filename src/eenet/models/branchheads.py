"""Heads for dense prediction that read several branches, each of another resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from eenet.errors import ShapeError

__all__ = ["BranchHead", "BranchHeadFactory", "branch_head"]

BranchHeadFactory: TypeAlias = Callable[[Sequence[Sequence[int]], int], nn.Module]
"""From (shapes of the branches, the finest first; number of classes) to a module that returns logits per pixel."""


class BranchHead(nn.Module):
    """Classifies every pixel of the finest branch by all branches.

    The head of HRNetV2 brings every branch to the finest resolution, joins their channels and applies a 1x1
    convolution. A 1x1 convolution and a bilinear resizing may change places, so here each branch passes its own part
    of that convolution at its own resolution and the results are added: the same output, with a fraction of the
    multiplications.

    Args:
        channels: of each branch, the finest first.
        width: channels of that convolution.
        num_classes: number of classes C.
    """

    def __init__(self, channels: Sequence[int], width: int, num_classes: int) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.Conv2d(count, width, 1, bias=False) for count in channels)
        self.norm = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, branches: list[Tensor]) -> Float[Tensor, "sample class h w"]:
        """Return the logits of every pixel of the finest branch."""
        mixed = self.mix[0](branches[0])
        for i, mix in enumerate(self.mix[1:], start=1):
            mixed = mixed + resized(mix(branches[i]), branches[0])
        return self.classify(F.relu(self.norm(mixed)))  # type: ignore[no-any-return]


def branch_head(width: int | None = None) -> BranchHeadFactory:
    """Return a head factory for branches: all of them mixed by a 1x1 convolution, then one more to the classes.

    Args:
        width: channels between the two; None: as many as the branches have together, which is the head of HRNetV2.

    Raises:
        ShapeError: a width below 1.

    Source: K. Sun et al., *High-resolution representations for labeling pixels and regions*, arXiv 1904.04514,
    section 3.
    """
    if width is not None and width < 1:
        raise ShapeError(f"width {width} is not usable: the head needs at least 1 channel. Pass 1 or more.")

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
