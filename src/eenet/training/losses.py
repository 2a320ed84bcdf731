"""What multi-exit training minimises, as plain functions.

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
    logits: Sequence[Float[Tensor, "sample class"]], labels: Int[Tensor, " sample"]
) -> Float[Tensor, " exit"]:
    """Return the mean cross-entropy of every exit.

    Args:
        logits: one tensor per exit.
        labels: the true classes.
    """
    return torch.stack([F.cross_entropy(exit_logits, labels) for exit_logits in logits])


def exit_loss(
    logits: Sequence[Float[Tensor, "sample class"]], labels: Int[Tensor, " sample"], weights: Sequence[float]
) -> Float[Tensor, ""]:
    """Return ``sum_k w_k CE(z_k, y)``, the mean over samples.

    Args:
        logits: one tensor per exit.
        labels: the true classes.
        weights: one weight per exit.

    Raises:
        ShapeError: another number of weights than of exits.
    """
    if len(weights) != len(logits):
        raise ShapeError(f"weights {len(weights)} do not fit: there are {len(logits)} exits. Pass one weight per exit.")
    losses = exit_losses(logits, labels)
    return (losses * losses.new_tensor(list(weights))).sum()


def distillation_loss(logits: Sequence[Float[Tensor, "sample class"]], temperature: float = 3.0) -> Float[Tensor, ""]:
    """Return how far the early exits are from the last: ``T^2 mean_k KL(softmax(z_last / T) || softmax(z_k / T))``.

    The last exit is the teacher and gets no gradient; the mean is over samples and early exits.

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
    teacher = F.log_softmax(logits[-1].detach() / temperature, dim=-1)
    pupils = [F.log_softmax(exit_logits / temperature, dim=-1) for exit_logits in logits[:-1]]
    gaps = [F.kl_div(pupil, teacher, reduction="batchmean", log_target=True) for pupil in pupils]
    return temperature**2 * torch.stack(gaps).mean()
