"""What a training moves and how fast: learning rates, optimisers, phases, and the running average of the weights.

All of them are plain functions or small objects that know nothing of the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from eenet.models.chained_heads import early_heads
from eenet.models.model import MultiExitModel

# --- learning rates ---------------------------------------------------------------------------------------------------

Phase = Literal["heads", "joint"]

LearningRate: TypeAlias = Callable[[float], float]
"""From the share of the steps after the warm-up that is done, 0 to 1, to a factor on the peak learning rate."""


def constant(done: float) -> float:
    """Return 1: the rate stays at its peak."""
    return 1.0


def cosine_decay(done: float) -> float:
    """Return a factor that falls from 1 to 0 along half a cosine.

    Example:
        >>> [round(cosine_decay(done), 3) for done in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]

    Source: I. Loshchilov, F. Hutter, *SGDR: stochastic gradient descent with warm restarts*, ICLR 2017.
    """
    return 0.5 + 0.5 * math.cos(math.pi * done)


def step_decay(done: float, milestones: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> float:
    """Return a factor that is 1 at first and falls by ``factor`` at every milestone.

    Other milestones: ``functools.partial(step_decay, milestones=(0.3, 0.6, 0.9))``.

    Args:
        done: share of the steps that is done.
        milestones: shares at which the rate falls.
        factor: by which it falls.

    Example:
        >>> [round(step_decay(done), 3) for done in (0.4, 0.5, 0.9)]
        [1.0, 0.1, 0.01]

    Source: K. He et al., *Deep residual learning for image recognition*, CVPR 2016, section 4.2; DenseNet and MSDNet
    have these milestones.
    """
    return factor ** sum(done >= milestone for milestone in milestones)


# --- optimisers -------------------------------------------------------------------------------------------------------

Groups: TypeAlias = list[dict[str, Any]]
"""Parameters with their weight decay, as every optimiser of PyTorch takes them."""

Optimiser: TypeAlias = Callable[[Groups, float], torch.optim.Optimizer]
"""From groups of parameters and a momentum to an optimiser; its learning rates are set anew before every step.

What it remembers must be tensors in its ``state`` of a parameter, as with PyTorch's own: that is what checkpoints keep.
"""


def sgd(groups: Groups, momentum: float) -> torch.optim.Optimizer:
    """Return stochastic gradient descent with Nesterov momentum: what convolutional nets are usually trained with."""
    return torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=momentum > 0)


def adamw(groups: Groups, momentum: float) -> torch.optim.Optimizer:
    """Return AdamW: what transformers are usually trained with, at rates a thousand times smaller than those of `sgd`.

    ``momentum`` is that of the gradients' running mean; that of their squares keeps 0.999.

    Source: I. Loshchilov, F. Hutter, *Decoupled weight decay regularization*, ICLR 2019.
    """
    return torch.optim.AdamW(groups, lr=1.0, betas=(momentum, 0.999))


# --- phases -----------------------------------------------------------------------------------------------------------


class Phases:
    """Puts a model into the phases of its training, and back; what its owner froze stays frozen, dropout too."""

    def __init__(self, model: MultiExitModel) -> None:
        self.model = model
        self.early = early_heads(model)
        names = tuple(f"{name}." for name in self.early)
        every = dict(model.named_parameters(remove_duplicate=False))
        shared = {id(parameter) for name, parameter in every.items() if not name.startswith(names)}
        own = {id(parameter) for parameter in every.values()} - shared
        self.heads = [parameter for parameter in model.parameters() if id(parameter) in own]
        self.backbone = [parameter for parameter in model.parameters() if id(parameter) in shared]
        self.frozen = [module for module in model.modules() if _is_frozen(module)]
        self.owners = [parameter.requires_grad for parameter in self.backbone]
        self.phase: Phase | None = None

    def enter(self, phase: Phase) -> None:
        """Make everything learn, or freeze all but the early heads: neither their weights nor statistics then move."""
        if phase == self.phase:
            return
        self.phase = phase
        self.model.train(phase == "joint")
        for head in self.early.values():
            head.train()
        for module in self.frozen:
            module.training = False
        for parameter, owner in zip(self.backbone, self.owners, strict=True):
            parameter.requires_grad_(owner and phase == "joint")

    def leave(self) -> None:
        """Bring the model into evaluation mode and its owner's choice of what is frozen back."""
        self.model.eval()
        for parameter, owner in zip(self.backbone, self.owners, strict=True):
            parameter.requires_grad_(owner)

    def optimizer(self, make: Optimiser, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
        """Return the optimiser of backbone and early heads, weight decay on weights of two or more axes only."""
        groups = [
            {
                "params": [parameter for parameter in parameters if (parameter.ndim > 1) == decayed],
                "weight_decay": weight_decay if decayed else 0.0,
                "early_heads": early,
            }
            for early, parameters in ((False, self.backbone), (True, self.heads))
            for decayed in (True, False)
        ]
        return make(groups, momentum)


def _is_frozen(module: nn.Module) -> bool:
    """Tell whether a module has weights and none of them, here or further in, is to learn."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


# --- running average --------------------------------------------------------------------------------------------------


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
        """Continue from a saved average."""
        for name, average in self.weights.items():
            average.copy_(weights[name])

    @torch.no_grad()
    def settle(self) -> None:
        """Make the average the model's own parameters."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.weights[name])
