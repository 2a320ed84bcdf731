"""What goes into a model, and running somebody else's model without leaving traces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.core.inputs import Inputs
from eenet.errors import InputError

__all__ = ["Inputs", "State", "batch_size", "evaluating", "renew"]

_LOCK = threading.Lock()
_EVALUATED: WeakKeyDictionary[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]] = WeakKeyDictionary()
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


def renew(model: nn.Module) -> None:
    """Make modules forget what they have worked out from their weights for evaluation, inside `evaluating`."""
    try:
        model.train()
        model.eval()
    except NotImplementedError:  # exported programs know one mode only
        for module in model.modules():
            module.training = False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the block; every module's own flag is restored afterwards.

    Blocks of one model may overlap, in several threads too: the last one to end restores.
    """
    with _LOCK:
        depth, flags = _EVALUATED.get(model, (0, [(module, module.training) for module in model.modules()]))
        _EVALUATED[model] = depth + 1, flags
        for module, _ in flags:
            module.training = False
    try:
        yield
    finally:
        with _LOCK:
            depth, flags = _EVALUATED.pop(model)
            if depth > 1:
                _EVALUATED[model] = depth - 1, flags
            else:
                for module, training in flags:
                    module.training = training
