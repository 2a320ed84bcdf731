"""The usual head for what a foreign model shows at a tap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import ShapeError
from eenet.models.heads import HeadFactory, TokenHead
from eenet.models.inputs import Inputs

__all__ = ["usual_head"]


class PooledHead(nn.Module):
    """Normalises, takes the mean over all places, and classifies.

    Args:
        features: Size of the vector at each place.
        num_classes: Number of classes.
        axis: Of the features in the tapped tensor.
    """

    def __init__(self, features: int, num_classes: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.norm = nn.LayerNorm(features)
        self.classify = nn.Linear(features, num_classes)

    def forward(self, shown: Tensor) -> Tensor:
        """Return the logits."""
        places = [axis for axis in range(1, shown.dim()) if axis != self.axis % shown.dim()]
        pooled = shown.mean(dim=places) if places else shown
        logits: Tensor = self.classify(self.norm(pooled))
        return logits


class DenseHead(nn.Module):
    """Classifies every place and brings the result to the size of the model's answer.

    Args:
        features: Size of the vector at each place.
        num_classes: Number of classes.
        size: Height and width of the answer.
    """

    def __init__(self, features: int, num_classes: int, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)
        self.classify = nn.Conv2d(features, num_classes, 1)

    def forward(self, shown: Tensor) -> Tensor:
        """Return the logits of every place."""
        return F.interpolate(self.classify(shown), size=self.size, mode="bilinear", align_corners=False)


def usual_head(model: nn.Module, inputs: Inputs, answer: Tensor) -> HeadFactory:
    """Return a head factory that suits a model.

    One answer per sample: pictures and patches are averaged; of words one token is read, as padding would spoil the
    mean: the first, or the last where each word only knows those before it. One answer per token: a linear layer. One
    per pixel: a 1x1 convolution, resized.

    Args:
        model: From the inputs to what it shows at its taps and, last, its answer; in evaluation mode.
        inputs: What goes into the model.
        answer: What comes out.
    """
    words = any(isinstance(leaf, Tensor) and not leaf.is_floating_point() for leaf in pytree.tree_leaves(inputs))
    place = -1 if words and answer.dim() == 2 and _looks_back_only(model, inputs) else 0

    def build(shape: Sequence[int], num_classes: int) -> nn.Module:
        if answer.dim() == 4 and len(shape) == 4:
            return DenseHead(shape[1], answer.shape[1], answer.shape[2:])
        if answer.dim() == 3 and len(shape) == 3:
            return nn.Linear(shape[2], answer.shape[2])
        if answer.dim() != 2 or len(shape) < 2:
            raise ShapeError(
                f"features of shape {tuple(shape)} have no usual head for an answer of shape {tuple(answer.shape)}. "
                "Pass heads of your own."
            )
        if len(shape) == 3 and words:
            return TokenHead(shape[2], num_classes, place)
        last = len(shape) != 4 or (shape[1] == shape[2] != shape[3])  # pictures with channels last: square in front
        axis = -1 if last else 1
        return PooledHead(shape[axis], num_classes, axis)

    return build


@torch.no_grad()
def _looks_back_only(model: nn.Module, inputs: Inputs) -> bool:
    """Tell whether what is said about the first word stays as it is, whatever words follow it."""

    def others(leaf: Tensor) -> Tensor:
        if leaf.is_floating_point() or leaf.dim() != 2 or int(leaf.max()) < 2:  # no numbers of words
            return leaf
        return torch.cat((leaf[:, :1], int(leaf.max()) - leaf[:, 1:]), dim=1)

    changed = pytree.tree_map_only(Tensor, others, inputs)
    pairs = zip(pytree.tree_leaves(inputs), pytree.tree_leaves(changed), strict=True)
    if all(torch.equal(leaf, other) for leaf, other in pairs):
        return False  # there is nothing to tell it by
    shown = [(a, b) for a, b in zip(model(inputs), model(changed), strict=True) if a.dim() == b.dim() == 3]
    return bool(shown) and all(torch.allclose(a[:, 0], b[:, 0], rtol=1e-3, atol=1e-5) for a, b in shown)
