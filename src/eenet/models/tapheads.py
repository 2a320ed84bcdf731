"""The usual heads for what a foreign model shows at its taps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import ShapeError
from eenet.models.heads import TokenHead
from eenet.models.inputs import Inputs
from eenet.models.taps import Whole

__all__ = ["classes_of", "feature_axis", "usual_heads"]

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


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


def classes_of(answer: Tensor) -> int:
    """Return how many classes an answer tells apart: its last axis where each word has one, else the second."""
    return answer.shape[-1 if answer.dim() == 3 else 1]


def usual_heads(whole: Whole, inputs: Inputs, shown: Sequence[Tensor]) -> list[nn.Module]:
    """Return a head for every tap of a model.

    One answer per sample: pictures and patches are averaged; of words one token is read, as padding would spoil the
    mean: the first, or the last where each word only knows those before it. One answer per token: a linear layer. One
    per pixel: a 1x1 convolution, resized.

    Args:
        whole: The model; in evaluation mode.
        inputs: What goes into it.
        shown: What it shows at its taps and, last, its answer.

    Raises:
        ShapeError: A tap has no usual head.
    """
    *taps, answer = shown
    words = any(isinstance(leaf, Tensor) and not leaf.is_floating_point() for leaf in pytree.tree_leaves(inputs))
    place = -1 if words and answer.dim() == 2 and _looks_back_only(whole, inputs) else 0
    heads: list[nn.Module] = []
    for name, tap in zip(whole.names, taps, strict=True):
        if answer.dim() == 4 and tap.dim() == 4:
            heads.append(DenseHead(tap.shape[1], answer.shape[1], answer.shape[2:]))
        elif answer.dim() == 3 and tap.dim() == 3:
            heads.append(nn.Linear(tap.shape[2], answer.shape[2]))
        elif answer.dim() == 2 and tap.dim() == 3 and words:
            heads.append(TokenHead(tap.shape[2], answer.shape[1], place))
        else:
            axis = feature_axis(whole.model.get_submodule(name), tap.shape) if answer.dim() == 2 else None
            if axis is None:
                raise ShapeError(
                    f"features of shape {tuple(tap.shape)} behind module {name!r} have no usual head for an answer of "
                    f"shape {tuple(answer.shape)}. Pass heads of your own."
                )
            heads.append(PooledHead(tap.shape[axis], answer.shape[1], axis))
    return heads


def feature_axis(module: nn.Module, shape: Sequence[int]) -> int | None:
    """Return the axis of a tapped tensor that holds the features of a place, None where that cannot be told.

    The last layer with weights says it: a convolution and its norms have them in axis 1, a linear layer and its norms
    in the axis of their size, first or last. Where no layer says it, pictures are taken to be square, features not.

    Args:
        module: The tapped module.
        shape: Of what it returns, batch first.
    """
    if len(shape) == 2:
        return 1
    for layer in reversed(list(module.modules())):
        if isinstance(layer, _CHANNELS_FIRST) and any(True for _ in layer.parameters(recurse=False)):
            return 1
        size = getattr(layer, "out_features", None) or (getattr(layer, "normalized_shape", None) or (None,))[-1]
        axes = [axis for axis in (1, len(shape) - 1) if shape[axis] == size]
        if axes:
            return axes[-1] if len(axes) == 1 or len(shape) == 3 else None
    if len(shape) == 3:
        return None
    first, last = len(set(shape[2:])) == 1, len(set(shape[1:-1])) == 1
    return None if first == last else 1 if first else len(shape) - 1


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
