"""What goes into a model: the one type that data sets hand out and models take."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

__all__ = ["Inputs"]

Inputs: TypeAlias = Tensor | dict[str, Tensor]
"""A batch: a tensor, or keyword tensors; the batch is their first dimension."""
