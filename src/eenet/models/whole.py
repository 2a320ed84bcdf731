"""A model without exits of its own, in the form of one that has some."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from eenet.errors import InputError
from eenet.models.inputs import Inputs, unwrapped
from eenet.models.model import MultiExitModel


def as_stages(model: nn.Module) -> MultiExitModel:
    """Return a model whose first exit is the whole of another one, and whose second exit repeats it.

    Args:
        model: Returns logits, or an object with ``logits``.
    """
    return MultiExitModel([Whole(unwrapped(model)), nn.Identity()], [nn.Identity(), nn.Identity()])


class Around(nn.Module):
    """A module that only calls others: each may be replaced, by itself, by one that computes the same."""


@final
class Whole(Around):
    """Calls a model with a batch, a mapping as keyword tensors, and returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        output: Any = self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise InputError(
                f"model returns {type(output).__name__}: logits, or an object that has some, are needed. Wrap it in a "
                "module that returns them."
            )
        return logits
