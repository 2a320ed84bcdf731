"""Which parameters of a model belong to which part, and what each phase of a training moves."""

from __future__ import annotations

import torch
from torch import nn

from eenet.models.cascade import early_heads
from eenet.models.model import MultiExitModel
from eenet.training.settings import Phase, TrainSettings


class Phases:
    """Puts a model into the phases of its training, and back.

    Args:
        model: the model; what its owner froze stays frozen: weights, running statistics and dropout.
    """

    def __init__(self, model: MultiExitModel) -> None:
        self.model = model
        kept = {id(parameter) for parameter in _beside_early_heads(model)}  # such as a classifier that heads share
        early = nn.ModuleList(early_heads(model)).parameters()
        self.heads = [parameter for parameter in early if id(parameter) not in kept]
        self.frozen = [module for module in model.modules() if _is_frozen(module)]
        mine = {id(parameter) for parameter in self.heads}
        self.backbone = [parameter for parameter in model.parameters() if id(parameter) not in mine]
        self.owners = [parameter.requires_grad for parameter in self.backbone]
        self.phase: Phase | None = None

    def enter(self, phase: Phase) -> None:
        """Make everything learn, or freeze all but the early heads: neither their weights nor statistics then move."""
        if phase == self.phase:
            return
        self.phase = phase
        self.model.train(phase == "joint")
        for head in early_heads(self.model):
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

    def optimizer(self, settings: TrainSettings) -> torch.optim.Optimizer:
        """Return the optimiser of backbone and early heads, weight decay on weights of two or more axes only."""
        groups = [
            {
                "params": [parameter for parameter in parameters if (parameter.ndim > 1) == decayed],
                "weight_decay": settings.weight_decay if decayed else 0.0,
                "early_heads": early,
            }
            for early, parameters in ((False, self.backbone), (True, self.heads))
            for decayed in (True, False)
        ]
        return settings.optimiser(groups, settings.momentum)


def _beside_early_heads(model: MultiExitModel) -> list[nn.Parameter]:
    """Return the parameters that something else than an early head owns as well."""
    last = model.heads[-1]
    heads = {id(head) for head in early_heads(model)} - {id(last)}
    found: list[nn.Parameter] = []
    seen: set[int] = set(heads)
    waiting: list[nn.Module] = [last, model]
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            found += module.parameters(recurse=False)
            waiting += module.children()
    return found


def _is_frozen(module: nn.Module) -> bool:
    """Tell whether a module has weights and none of them, here or further in, is to learn."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
