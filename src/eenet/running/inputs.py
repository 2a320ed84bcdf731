"""Batches as they come: arrays, tensors, mappings of these, lists and frames, with or without labels."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int

from eenet.errors import InputError
from eenet.tables.arrays import is_samples

Inputs: TypeAlias = Any
"""A batch, samples first: an array or tensor, a mapping of them by name, or a list of samples."""

_LABELS = ("labels", "label")


def rows_of(inputs: Inputs, rows: slice | Int[np.ndarray, " kept"]) -> Inputs:
    """Return some samples of a batch, of the same form; of mappings as a dict."""
    if isinstance(inputs, Mapping):
        return {name: rows_of(value, rows) for name, value in inputs.items()}
    if hasattr(inputs, "iloc"):  # a frame
        return inputs.iloc[rows]
    if hasattr(inputs, "shape"):
        return inputs[rows]
    if isinstance(inputs, tuple):
        return tuple(rows_of(value, rows) for value in inputs)
    if not isinstance(inputs, list):
        return inputs
    return inputs[rows] if isinstance(rows, slice) else [inputs[row] for row in rows]


def joined(parts: Sequence[Any]) -> Any:  # noqa: ANN401 - what the parts are
    """Return arrays, tensors or lists as one, in their order; as a list of samples where these differ in shape."""
    if len(parts) == 1:
        return parts[0]
    if len({tuple(part.shape[1:]) if hasattr(part, "shape") else () for part in parts}) > 1:
        return [row for part in parts for row in part]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    if hasattr(parts[0], "detach"):  # a tensor, so PyTorch is there
        return sys.modules["torch"].cat(list(parts))
    return [row for part in parts for row in part]


def each_batch(batches: Iterable[Any]) -> Iterator[Inputs]:
    """Yield the inputs of every batch of a loader; labels that stand beside them are left out.

    Args:
        batches: Yields inputs, tuples or lists that begin with them (as a `DataLoader` does), or mappings, in which
            ``labels`` and ``label`` are no inputs.

    Raises:
        InputError: It is a single batch.
    """
    if hasattr(batches, "shape") or isinstance(batches, Mapping):
        raise InputError(
            f"batches of type {type(batches).__name__} are a single batch: a loader yields one after the other. Call "
            "the model itself, or pass a list of batches."
        )
    return map(inputs_of, batches)


def inputs_of(batch: Any) -> Inputs:  # noqa: ANN401 - see `each_batch`
    """Return the inputs of one batch of `each_batch`."""
    if isinstance(batch, tuple) or (isinstance(batch, list) and not is_samples(batch)):
        return batch[0]
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name not in _LABELS}
    return batch


def labelled(batch: Any) -> tuple[Inputs, Any]:  # noqa: ANN401 - see `each_batch`
    """Return inputs and labels of one batch.

    Raises:
        InputError: It holds no labels.
    """
    if isinstance(batch, Mapping):
        for name in _LABELS:
            if name in batch:
                return inputs_of(batch), batch[name]
    elif isinstance(batch, tuple | list) and len(batch) > 1 and not is_samples(batch):
        return batch[0], batch[1]
    raise InputError(
        f"dataset yields {type(batch).__name__} without labels: what exits say is recorded beside the right answer. "
        "Yield (inputs, labels), or mappings with the key 'labels'; a torch DataLoader does."
    )
