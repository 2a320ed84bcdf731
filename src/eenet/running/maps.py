"""Maps of classes: a summary of an image's map for the policy, its labels, and how many pixels are right."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

from eenet.errors import DataError, ShapeError
from eenet.models.inputs import IGNORED

_ENTRIES = 1 << 22  # numbers worked on at a time, or those of one sample where it has more
_CONFIDENCES = ("max_prob", "margin", "certainty")
_LEAST = 1e-300  # keeps logarithms finite where a probability is 0


def map_columns(num_classes: int) -> tuple[str, ...]:
    """Return the names of the columns of a `summary`."""
    return (*_CONFIDENCES, *(f"p{i}" for i in range(num_classes)))


def map_logits(logits: object, index: int) -> Float[Tensor, "sample class height width"]:
    """Return the logits of exit ``index``, which must be a map per sample.

    Args:
        logits: A tensor or an array.
        index: Of the exit.

    Raises:
        ShapeError: They are something else.
    """
    tensor = logits if isinstance(logits, Tensor) else torch.from_numpy(np.asarray(logits))
    if tensor.dim() != 4 or tensor.shape[1] < 2:
        raise ShapeError(
            f"logits of exit {index} of shape {tuple(tensor.shape)} do not fit: maps are [sample, class, height, "
            "width], of at least 2 classes. Use record for heads that return one vector per sample."
        )
    return tensor


def summary(logits: Float[Tensor, "sample class height width"]) -> Float32[np.ndarray, "sample column"]:
    """Return what a policy reads of maps: numbers about the image as a whole, named by `map_columns`.

    ``p0`` is the mean over pixels of the largest class probability, ``p1`` that of the second largest, and so on: which
    class that is differs from pixel to pixel, so a summary names no class. ``max_prob`` are the log-odds of ``p0``,
    ``margin`` is ``p0 - p1``, ``certainty`` one minus the relative entropy of the ``p``.

    Args:
        logits: Of a dense head, at its own resolution.

    Returns:
        Finite numbers, on the CPU; a row depends on its own image alone, to the bit.
    """
    step = max(1, _ENTRIES // logits[0].numel())
    # double: a mean rounded once to float32 does not depend on the batch it was computed in
    mean = torch.cat([_rising(part).mean(dim=1, dtype=torch.float64) for part in torch.split(logits, step)])
    rounded = mean.flip(1).float().numpy(force=True)
    p = rounded.astype(np.float64)
    # the chance of all other classes, added up by itself: it stays above 0 where 1 - p0 would not
    odds = p[:, 0] / np.maximum(p[:, 1:].sum(axis=1), _LEAST)
    certainty = 1.0 + (p * np.log(np.maximum(p, _LEAST))).sum(axis=1) / math.log(p.shape[1])
    columns = np.stack([np.log(odds), p[:, 0] - p[:, 1], certainty], axis=1)
    return np.concatenate([columns.astype(np.float32), rounded], axis=1)


def _rising(logits: Float[Tensor, "sample class height width"]) -> Float[Tensor, "sample pixel class"]:
    """Return the probabilities of every pixel, from small to large."""
    rows = logits.flatten(2).transpose(1, 2).contiguous()  # a pixel's numbers next to each other in memory
    probs = torch.softmax(rows, dim=-1, dtype=torch.float32)
    if probs.is_cpu:
        return torch.from_numpy(np.sort(probs.numpy(force=True), axis=-1))  # a third of torch's time
    return probs.sort(dim=-1).values


def label_map(
    logits: Float[Tensor, "sample class height width"], size: tuple[int, int]
) -> Int[Tensor, "sample rows columns"]:
    """Return the class of every pixel: the largest logit, after bilinear upsampling.

    Args:
        logits: Of a dense head.
        size: Height and width of the answer.
    """
    step = max(1, _ENTRIES // (logits.shape[1] * size[0] * size[1]))
    return torch.cat([_enlarged(part, size).argmax(dim=1) for part in torch.split(logits, step)])


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    # channels last: less than half the time of upsampling and of choosing the largest
    logits = logits.float().contiguous(memory_format=torch.channels_last)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def confusions(
    answers: Int[Tensor, "sample height width"], targets: Int[np.ndarray, "sample height width"], num_classes: int
) -> Int[np.ndarray, "sample class class"]:
    """Return how many pixels of each true class (first axis) were answered with each class, per sample.

    Args:
        answers: The class of every pixel, as answered.
        targets: The true one; `IGNORED` pixels are not counted.
        num_classes: Number of classes.

    Raises:
        DataError: A target is no class.
    """
    counted = targets != IGNORED
    wrong = counted & ((targets < 0) | (targets >= num_classes))
    if wrong.any():
        row = int(wrong.any(axis=(1, 2)).argmax())
        raise DataError(
            f"targets hold {int(targets[wrong][0])} in image {row} of a batch: there are {num_classes} classes, 0 to "
            f"{num_classes - 1}, and {IGNORED} for pixels that do not count. Correct the masks, or the number of "
            "classes of the model."
        )
    cells = num_classes * num_classes
    first = cells * np.arange(len(targets))[:, None, None] + targets * num_classes
    places = torch.from_numpy(first[counted]).to(answers.device) + answers[torch.from_numpy(counted).to(answers.device)]
    counts = torch.bincount(places, minlength=len(targets) * cells)
    return counts.view(len(targets), num_classes, num_classes).numpy(force=True)
