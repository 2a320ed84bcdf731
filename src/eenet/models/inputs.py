"""What goes into a model, and running somebody else's model without leaving traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.core.inputs import Inputs
from eenet.errors import InputError

__all__ = ["Inputs", "State", "batch_size", "evaluating"]

State: TypeAlias = Any
"""What travels between stages: a tensor or a pytree of tensors, batch first."""


def batch_size(inputs: Inputs) -> int:
    """Return how many samples a batch holds.

    Raises:
        InputError: No tensor, no sample, or tensors that disagree on the number of samples.
    """
    if isinstance(inputs, Tensor) and inputs.dim() and len(inputs):  # the usual case, and the loop is a hot one
        return len(inputs)
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    sizes = {leaf.shape[0] if leaf.dim() else 0 for leaf in leaves}
    if len(sizes) != 1 or 0 in sizes:
        found = "no tensor" if not leaves else f"{sorted(sizes)} samples"
        raise InputError(
            f"inputs hold {found}: a batch needs one number of samples, at least 1. Pass tensors, batch first."
        )
    return sizes.pop()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the block; every module's own flag is restored afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training
