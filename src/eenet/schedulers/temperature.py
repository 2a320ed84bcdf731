"""Temperatures: how much too sure, or too unsure, each exit is of itself."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.core.table import ExitTable
from eenet.errors import TableError

__all__ = ["fit_temperatures"]

_LOWEST, _HIGHEST = 0.05, 20.0  # where every sample is right (or wrong) the best temperature is 0 (or infinity)
_STEPS = 100
_TOLERANCE = 1e-10


def fit_temperatures(table: ExitTable) -> Float[Tensor, " exit"]:
    """Return the temperature ``T_k`` of each exit that makes the labels most likely under ``softmax(logits / T_k)``.

    The mean negative log-likelihood is convex in ``1 / T``, so its minimum is found by Newton steps inside a bracket,
    for all exits at once, in double, over the table's chunks. Temperatures keep every sample's choice of class.

    Guarantee: on the table it is fitted on, no exit's likelihood is lower than with ``T = 1``.

    Args:
        table: With labels; data that took no part in training.

    Returns:
        float64 temperatures in [0.05, 20]: above 1 where an exit is too sure. Exactly 1 where the likelihood does not
        depend on the temperature.

    Raises:
        TableError: The table has no labels.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]).repeat(4, 1, 1)
        >>> fit_temperatures(ExitTable(logits=logits, labels=torch.tensor([0, 0, 0, 1])))  # 2 / log 3
        tensor([1.8205, 1.0000], dtype=torch.float64)

    Source:
        *On Calibration of Modern Neural Networks* (Guo et al., ICML 2017), temperature scaling.
    """
    if table.labels is None:
        raise TableError(
            f"table {table.split or '(unnamed)'!r} lacks labels: fitting temperatures needs 'labels', for 'utility' "
            f"does not say which class is right. Add them."
        )
    labels = table.labels
    inverse = torch.ones(table.num_exits, dtype=torch.float64)
    low, high = inverse / _HIGHEST, inverse / _LOWEST
    at_low, at_high = _slopes(table, labels, low)[0], _slopes(table, labels, high)[0]
    # the slope grows with the inverse temperature: where it has one sign the end is best, where it is 0 nothing matters
    low, high = torch.where(at_high <= 0, high, low), torch.where(at_low >= 0, low, high)
    flat = (at_low == 0) & (at_high == 0)
    inverse = torch.where(flat, inverse, inverse.clamp(low, high))
    low, high = torch.where(flat, inverse, low), torch.where(flat, inverse, high)
    for _ in range(_STEPS):
        slope, curvature = _slopes(table, labels, inverse)
        low, high = torch.where(slope < 0, inverse, low), torch.where(slope > 0, inverse, high)
        newton = inverse - slope / curvature  # NaN where nothing depends on the temperature
        settled = ((newton - inverse).abs() <= _TOLERANCE * inverse) | (slope == 0) | (high - low <= _TOLERANCE * low)
        if settled.all():
            break
        inside = (newton > low) & (newton < high)
        inverse = torch.where(settled, inverse, torch.where(inside, newton, (low * high).sqrt()))
    return 1 / inverse


def _slopes(
    table: ExitTable, labels: Int[Tensor, " sample"], inverse: Float[Tensor, " exit"]
) -> tuple[Float[Tensor, " exit"], Float[Tensor, " exit"]]:
    """Return the first and second derivative of the summed negative log-likelihood by the inverse temperature."""
    slope, curvature = torch.zeros_like(inverse), torch.zeros_like(inverse)
    for rows in table.chunks():
        logits = table.logits[rows].double()
        label = labels[rows, None, None].expand(-1, table.num_exits, 1)
        excess = logits - logits.gather(2, label)  # of each class over the right one: the likelihood knows only these
        probs = torch.softmax(excess * inverse[:, None], dim=2)
        mean = (probs * excess).sum(dim=2)
        slope += mean.sum(dim=0)
        curvature += (probs * (excess - mean.unsqueeze(2)).square()).sum(dim=(0, 2))
    return slope, curvature
