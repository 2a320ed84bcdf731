"""Maps of classes: what a dense head says about an image as a whole, and how far its answer is right."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from eenet.data.dataset import IGNORED
from eenet.errors import DataError, ShapeError

__all__ = ["confusions", "label_map", "map_logits", "summary"]

_ENTRIES = 1 << 22  # numbers worked on at a time, or those of one sample where it has more


def map_logits(logits: Tensor, index: int) -> Float[Tensor, "sample class height width"]:
    """Return the logits of exit ``index``, which must be a map per sample.

    Raises:
        ShapeError: They are something else.
    """
    if logits.dim() != 4:
        raise ShapeError(
            f"logits of exit {index} of shape {tuple(logits.shape)} do not fit: maps are [sample, class, height, "
            "width]. Use AdaptiveModel and record for heads that return one vector per sample."
        )
    return logits


def summary(logits: Float[Tensor, "sample class height width"]) -> Float[Tensor, "sample class"]:
    """Return the log of the mean over pixels of the class probabilities, sorted per pixel from large to small.

    Place 0 holds the mean over pixels of the largest probability, place 1 that of the second, and so on: whoever reads
    log-probabilities, a policy say, finds the mean confidence where it looks for the largest chance. Which class a
    place belongs to differs from pixel to pixel, so a summary names no class. The probabilities sum to 1.

    Args:
        logits: What a dense head says, at the head's own resolution.

    Returns:
        float32, falling from place to place; a mean of 0 is raised to the smallest normal number.
    """
    step = max(1, _ENTRIES // logits[0].numel())
    # double: a mean rounded once to float32 does not depend on the batch it was computed in
    mean = torch.cat([_rising(part).mean(dim=1, dtype=torch.float64) for part in torch.split(logits, step)])
    return mean.flip(1).clamp_min(torch.finfo(torch.float32).tiny).log().float()


def _rising(logits: Float[Tensor, "sample class height width"]) -> Float[Tensor, "sample pixel class"]:
    """Return the probabilities of every pixel, from small to large."""
    rows = logits.flatten(2).transpose(1, 2).contiguous()  # a pixel's numbers side by side, wherever they came from
    probs = torch.softmax(rows, dim=-1, dtype=torch.float32)
    if probs.is_cpu:
        return torch.from_numpy(np.sort(probs.numpy(force=True), axis=-1))  # a third of torch's time
    return probs.sort(dim=-1).values


def label_map(
    logits: Float[Tensor, "sample class height width"], size: tuple[int, int]
) -> Int[Tensor, "sample rows columns"]:
    """Return the class of every pixel: the largest logit, after bilinear upsampling.

    Args:
        logits: What a dense head says.
        size: Height and width of the answer.
    """
    step = max(1, _ENTRIES // (logits.shape[1] * size[0] * size[1]))
    return torch.cat([_enlarged(part, size).argmax(dim=1) for part in torch.split(logits, step)])


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    # channels last: less than half the time of upsampling and of choosing the largest
    logits = logits.float().contiguous(memory_format=torch.channels_last)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def confusions(
    answers: Int[Tensor, "sample height width"], targets: Int[Tensor, "sample height width"], num_classes: int
) -> Int[Tensor, "sample class class"]:
    """Return how many pixels of each true class (first axis) were answered with each class, per sample.

    Args:
        answers: The class of every pixel, as answered.
        targets: The true one; `IGNORED` pixels are not counted.
        num_classes: Number of classes.

    Raises:
        DataError: A target is no class.
    """
    asked = targets != IGNORED
    strange = asked & ((targets < 0) | (targets >= num_classes))
    if strange.any():
        row = int(strange.flatten(1).any(dim=1).nonzero()[0])
        raise DataError(
            f"targets hold {int(targets[strange][0])} in image {row} of a batch: there are {num_classes} classes, 0 to "
            f"{num_classes - 1}, and {IGNORED} for pixels that do not count. Correct the masks, or the number of "
            "classes of the model."
        )
    cells = num_classes * num_classes
    first = cells * torch.arange(len(targets), device=targets.device)[:, None, None]
    counts = torch.bincount((first + targets * num_classes + answers)[asked], minlength=len(targets) * cells)
    return counts.view(len(targets), num_classes, num_classes)
