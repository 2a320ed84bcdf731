"""The running average of a model's weights, which is often better than the last of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of a model's parameters; buffers (batch norm) are not averaged.

    After step t (from 0) the average keeps ``min(decay, (1 + t) / (10 + t))`` of itself, so that a short training is
    not dominated by where it began.

    Args:
        model: whose parameters are averaged, from now on.
        decay: what the average keeps of itself at a step, below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the model's parameters after a step."""
        kept = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - kept)

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor]) -> None:
        """Go on from an average that was kept."""
        for name, average in self.weights.items():
            average.copy_(weights[name])

    @torch.no_grad()
    def settle(self) -> None:
        """Make the average the model's own parameters."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.weights[name])
