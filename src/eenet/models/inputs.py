"""What goes into a model, and running somebody else's model without leaving traces."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_LOCK = threading.Lock()
_EVALUATED: WeakKeyDictionary[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]] = WeakKeyDictionary()
Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
"""A batch: a tensor, or keyword tensors by name (a dictionary, a BatchEncoding); the samples are their first axis."""
_WRAPPERS = ("torch._dynamo.", "torch.nn.parallel.", "torch.distributed.", "torch.optim.")
IGNORED = -100
"""Target of a pixel that is neither learnt from nor evaluated."""
State: TypeAlias = Any
"""What travels between stages: a tensor or a pytree of tensors, batch first."""


def plain(inputs: State) -> State:
    """Return a batch whose keyword tensors, in whichever mapping they came, are in a dictionary."""
    return dict(inputs) if isinstance(inputs, Mapping) and type(inputs) is not dict else inputs


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without what PyTorch wraps around it: ``torch.compile``, ``DataParallel`` and their like."""
    while type(model).__module__.startswith(_WRAPPERS):
        inner: Any = getattr(model, "_orig_mod", None) or model.module
        model = inner
    return model


def renew(model: nn.Module) -> None:
    """Make modules discard what they have computed from their weights and cached for evaluation.

    Call it inside `evaluating`, which restores the flags.
    """
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
