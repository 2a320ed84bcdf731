"""How a training runs a model: the logits are the same, the gradients are not.

Source: H. Li, H. Zhang, X. Qi, R. Yang, G. Huang, *Improved techniques for training adaptive deep networks*, ICCV 2019
(arXiv 1908.06294), section on gradient equilibrium.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from eenet.errors import InputError
from eenet.models.inputs import State
from eenet.models.model import MultiExitModel

Forward: TypeAlias = Callable[[MultiExitModel, State], list[Tensor]]
"""From a model and its inputs to the logits of every exit, of which the gradients are taken."""


def plain_gradients(model: MultiExitModel, inputs: State) -> list[Tensor]:
    """Return the logits of every exit; what a stage learns is the sum of what all exits behind it say."""
    logits: list[Tensor] = model(inputs)
    return logits


def rescaled_gradients(model: MultiExitModel, inputs: State) -> list[Tensor]:
    """Return the logits of every exit; what a stage learns is the mean of what all exits behind it say.

    With K exits, the features behind stage k (from 0) pass back ``1 / (K - k)`` of the gradient that head k sends and
    ``(K - k - 1) / (K - k)`` of the one that stage k + 1 sends. So the first stages, which every exit pulls at, move no
    more than the last one, and exits conflict less. The heads' own gradients stay whole, but for those of
    `eenet.models.cascade.cascaded` models, whose heads sit inside the stages: they get ``1 / (K - k)`` of theirs.

    The paper's code scales the one tensor of a state that the head reads; here it is every tensor of the state.

    Args:
        model: the multi-exit model, run stage by stage.
        inputs: a batch.

    Raises:
        InputError: the model runs in one go (attached exits): there is nothing between its stages to scale.
    """
    if model.whole is not None:
        raise InputError(
            "gradients rescaled_gradients cannot be used on attached exits: such a model trains in one go, as its "
            "authors wrote it, and nothing lies between its stages. Use plain_gradients."
        )
    logits: list[Tensor] = []
    state = model.start(inputs)
    for k, (stage, head) in enumerate(zip(model.stages, model.heads, strict=True)):
        behind = model.num_exits - k
        state = scale_gradient(stage(state), 1 / behind)
        logits.append(head(state))
        state = scale_gradient(state, behind - 1)
    return logits


def scale_gradient(state: State, factor: float) -> State:
    """Return a state as it is, whose tensors pass back ``factor`` times the gradient they get."""
    return tree_map(lambda leaf: _scaled(leaf, factor), state)


def _scaled(leaf: Any, factor: float) -> Any:  # noqa: ANN401
    if not isinstance(leaf, Tensor) or not leaf.requires_grad:
        return leaf
    return _Scaled.apply(leaf, factor)


class _Scaled(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:  # noqa: ANN401
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradients[0] * ctx.factor, None
