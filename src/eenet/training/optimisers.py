"""What moves the weights along their gradients, as plain functions of the groups of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Groups: TypeAlias = list[dict[str, Any]]
"""Parameters with their weight decay, as every optimiser of PyTorch takes them."""

Optimiser: TypeAlias = Callable[[Groups, float], torch.optim.Optimizer]
"""From groups of parameters and a momentum to an optimiser; its learning rates are set anew before every step.

What it remembers must be tensors in its ``state`` of a parameter, as with PyTorch's own: that is what checkpoints keep.
"""


def sgd(groups: Groups, momentum: float) -> torch.optim.Optimizer:
    """Return stochastic gradient descent with Nesterov momentum: what convolutional nets are usually trained with.

    Args:
        groups: of parameters.
        momentum: share of the direction that is kept from step to step.
    """
    return torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=momentum > 0)


def adamw(groups: Groups, momentum: float) -> torch.optim.Optimizer:
    """Return AdamW: what transformers are usually trained with, at rates a thousand times smaller than those of `sgd`.

    Args:
        groups: of parameters.
        momentum: of the gradients' running mean; that of their squares keeps 0.999.

    Source: I. Loshchilov, F. Hutter, *Decoupled weight decay regularization*, ICLR 2019.
    """
    return torch.optim.AdamW(groups, lr=1.0, betas=(momentum, 0.999))
