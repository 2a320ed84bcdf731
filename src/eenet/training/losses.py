"""What multi-exit training minimises, as plain functions.

Logits are ``[sample, class]``, or dense ``[sample, class, height, width]`` against targets ``[sample, height, width]``.

Source: F. Ilhan et al., *Adaptive deep neural network inference optimization with EENet*, WACV 2024, section on
multi-exit training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from eenet.data.dataset import IGNORED
from eenet.errors import ShapeError

Weighting: TypeAlias = Callable[[int], tuple[float, ...]]
"""From the number of exits K to one weight per exit."""


def increasing_weights(num_exits: int) -> tuple[float, ...]:
    """Return weights proportional to 1, 2, ..., K that sum to 1: later exits weigh more (the paper's choice).

    Example:
        >>> [round(weight, 3) for weight in increasing_weights(3)]
        [0.167, 0.333, 0.5]
    """
    total = num_exits * (num_exits + 1) / 2
    return tuple((k + 1) / total for k in range(num_exits))


def uniform_weights(num_exits: int) -> tuple[float, ...]:
    """Return the same weight 1/K for every exit, better for early exits than `increasing_weights`."""
    return (1.0 / num_exits,) * num_exits


def exit_losses(
    logits: Sequence[Float[Tensor, "sample class ..."]],
    targets: Int[Tensor, "sample ..."],
    sample_weights: Float[Tensor, "sample exit"] | None = None,
) -> Float[Tensor, " exit"]:
    """Return the mean cross-entropy of every exit, over samples or, for dense logits, over the pixels with a target.

    Args:
        logits: one tensor per exit; dense ones are brought to the size of the targets, bilinearly.
        targets: the true classes, -100 where nothing is to be learnt.
        sample_weights: factors on each sample's loss at each exit; 1 when not given.

    Raises:
        ShapeError: logits of another kind, such as one answer per word.
    """
    if logits[0].dim() not in (2, 4):
        raise ShapeError(
            f"logits of shape {tuple(logits[0].shape)} cannot be learnt from: [sample, class], or [sample, class, "
            "height, width], is needed. Train such a model with a loop of your own."
        )
    learnt = learnable(targets).clamp_min(1)
    losses: list[Tensor] = []
    for k, exit_logits in enumerate(logits):
        sized = _at_size(exit_logits, targets.shape[1:])
        if sample_weights is None:
            total = F.cross_entropy(sized, targets, reduction="sum")
        else:
            each = F.cross_entropy(sized, targets, reduction="none").reshape(len(targets), -1).sum(dim=1)
            total = (each * sample_weights[:, k]).sum()
        losses.append(total / learnt)
    return torch.stack(losses)


def learnable(targets: Int[Tensor, "sample ..."]) -> Int[Tensor, ""]:
    """Return how many targets there are to learn."""
    return (targets != IGNORED).sum()


def log_shares(labels: Int[Tensor, " sample"], num_classes: int) -> Float[Tensor, " class"]:
    """Return the logarithm of every class's share of the labels; a class that does not occur counts as one sample.

    Args:
        labels: the classes of the training data, -100 where there is none.
        num_classes: number of classes C.
    """
    counts = torch.bincount(labels[labels != IGNORED], minlength=num_classes).clamp_min(1)
    return (counts / counts.sum()).log()


def exit_loss(
    logits: Sequence[Float[Tensor, "sample class ..."]], targets: Int[Tensor, "sample ..."], weights: Sequence[float]
) -> Float[Tensor, ""]:
    """Return ``sum_k w_k CE(z_k, y)``, the mean over samples (or pixels).

    Args:
        logits: one tensor per exit.
        targets: the true classes.
        weights: one weight per exit.

    Raises:
        ShapeError: another number of weights than of exits.
    """
    if len(weights) != len(logits):
        raise ShapeError(f"weights {len(weights)} do not fit: there are {len(logits)} exits. Pass one weight per exit.")
    losses = exit_losses(logits, targets)
    return (losses * losses.new_tensor(list(weights))).sum()


def distillation_loss(
    logits: Sequence[Float[Tensor, "sample class ..."]], temperature: float = 3.0
) -> Float[Tensor, ""]:
    """Return how far the early exits are from the last: ``T^2 mean_k KL(softmax(z_last / T) || softmax(z_k / T))``.

    The last exit is the teacher and gets no gradient; the mean is over samples (or all pixels of the teacher, whose
    size the pupils are brought to) and early exits.

    Args:
        logits: one tensor per exit, at least two.
        temperature: the T that softens both sides.

    Raises:
        ShapeError: fewer than two exits.
    """
    if len(logits) < 2:
        raise ShapeError(
            f"logits of {len(logits)} exits are too few: distillation needs a teacher and a pupil. Pass at least 2 "
            "exits."
        )
    teacher = F.log_softmax(logits[-1].detach() / temperature, dim=1)
    answers = teacher.numel() / teacher.shape[1]
    gaps: list[Tensor] = []
    for exit_logits in logits[:-1]:
        pupil = F.log_softmax(_at_size(exit_logits, teacher.shape[2:]) / temperature, dim=1)
        gaps.append(F.kl_div(pupil, teacher, reduction="sum", log_target=True) / answers)
    return temperature**2 * torch.stack(gaps).mean()


def _at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return dense logits at a height and width; any others as they are."""
    if logits.dim() != 4 or logits.shape[2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
