"""Batches as they come: arrays, tensors, mappings of these, lists and frames; and data of any form as batches."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Int

from eenet.errors import DataError, InputError, ShapeError
from eenet.tables.arrays import (
    LABELS,
    arrays_of,
    axes_of,
    batch_size,
    is_array,
    is_one_batch,
    is_sample,
    is_samples,
    labelled,
    numbers,
    split_labels,
    stacked,
)

Inputs: TypeAlias = Any
"""A batch, samples first: an array or tensor, a mapping of them by name, or a list of samples."""

Data: TypeAlias = Any
"""Samples, with or without labels: what `batches_of` takes."""

Shapes: TypeAlias = tuple[tuple[int, ...], ...]
"""What samples must have in common to travel together."""

_AT_ONCE = 128
_TURNED = (
    "{name} in lists of arrays do not fit: a DataLoader makes such lists, one array per position, of samples that are "
    "lists. Let the data set return arrays or tensors; those of Hugging Face do with with_format('torch')."
)


@runtime_checkable
class Batches(Protocol):
    """A data set that yields batches of any size in a fixed order, as `eenet.experiments.data.ArrayDataset` does."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batches(self, batch_size: int) -> Iterable[tuple[Inputs, Any]]:
        """Yield (inputs, targets) in row order."""


def batch_of(inputs: Inputs) -> Inputs:
    """Return one batch as engines take it: lists of numbers or samples as arrays, a mapping as a dict without labels.

    Raises:
        DataError: Lists of samples that differ in shape, or are no numbers where the others are.
        InputError: It is no batch, but a loader, a data set or a single text, for example.
    """
    if is_array(inputs) or isinstance(inputs, tuple):  # the usual case first: this runs once per batch
        return inputs
    if isinstance(inputs, Mapping):
        named = ((name, value) for name, value in inputs.items() if name not in LABELS)
        return {name: _whole(name, value) if isinstance(value, list) else value for name, value in named}
    if not isinstance(inputs, list):
        raise InputError(
            f"inputs of type {type(inputs).__name__} are no batch: arrays, tensors, mappings of these and lists are "
            "taken. Loaders and data sets go to predict_all."
        )
    if not is_samples(inputs):
        return stacked(inputs)
    return inputs if axes_of(inputs) is None else numbers(inputs, "inputs")


def rows_of(inputs: Inputs, rows: slice | Int[np.ndarray, " kept"]) -> Inputs:
    """Return some samples of a batch, of the same form; of mappings as a dict."""
    if isinstance(inputs, Mapping):
        return {name: rows_of(value, rows) for name, value in inputs.items()}
    if hasattr(inputs, "iloc"):  # a frame
        return inputs.iloc[rows]
    if is_array(inputs):
        return inputs[rows]
    if isinstance(inputs, tuple):
        return tuple(rows_of(value, rows) for value in inputs)
    if not isinstance(inputs, list):
        return inputs
    return inputs[rows] if isinstance(rows, slice) else [inputs[row] for row in rows]


def copy_of(inputs: Inputs) -> Inputs:
    """Return a batch whose arrays are copies, for code of others, which may write into what it is given."""
    if isinstance(inputs, Mapping):
        return {name: copy_of(value) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        found = [copy_of(one) for one in inputs]
        return found if isinstance(inputs, list) else tuple(found)
    if hasattr(inputs, "detach"):  # a tensor
        return inputs.clone()
    return inputs.copy() if is_array(inputs) else inputs


def shapes_of(inputs: Inputs) -> Shapes:
    """Return the shapes of a batch's arrays without their first axis."""
    return tuple(tuple(array.shape[1:]) for array in arrays_of(inputs))


def joined(parts: Sequence[Any]) -> Any:  # noqa: ANN401 - what the parts are
    """Return arrays, tensors or lists as one, in their order; as a list of samples where these differ in shape."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Mapping):
        return {name: joined([part[name] for part in parts]) for name in parts[0]}
    if len({tuple(part.shape[1:]) if hasattr(part, "shape") else () for part in parts}) > 1:
        return [row for part in parts for row in part]
    return _concatenated(parts)


def _concatenated(parts: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return arrays, tensors, frames, sparse matrices or lists as one; what they are made by is loaded, then."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    if hasattr(parts[0], "detach"):
        return sys.modules["torch"].cat(list(parts))
    if hasattr(parts[0], "iloc"):
        return sys.modules["pandas"].concat(parts)
    if hasattr(parts[0], "tocsr"):
        return sys.modules["scipy.sparse"].vstack(parts, format="csr")
    return [row for part in parts for row in part]


def batches_of(data: Data, size: int, *, with_labels: bool = False) -> Iterator[tuple[Inputs, Any]]:
    """Yield inputs and labels of every batch of some data; labels are None where there are none.

    Args:
        data: `Batches`; a `DataLoader`; a data set with samples by number, such as a torch `Dataset`; inputs and labels
            as a pair of arrays or as one mapping; inputs as an array; or an iterable of batches or of samples. A batch
            or a sample is (inputs, labels), a mapping in which the labels stand under ``labels`` or ``label``, or
            inputs alone. Samples without labels are taken for such where they are in a data set with numbers.
        size: Samples per batch, where the data leave that open.
        with_labels: Labels are needed: two arrays of one axis are inputs and labels, and no two batches.

    Raises:
        DataError: Samples of a batch differ in shape, or are no numbers.
        ShapeError: Another number of labels than of samples.
        InputError: It is something else, labels are missing, or which they are is not clear.
    """
    split = labelled if with_labels else split_labels
    collates = _is(data, "DataLoader") and data.collate_fn is sys.modules["torch.utils.data"].default_collate
    for item in _items(data, size, with_labels=with_labels):
        inputs, labels = split(item)
        if collates and isinstance(inputs, list) and axes_of(inputs):
            raise DataError(_TURNED.format(name="inputs"))
        inputs = batch_of(inputs)
        if axes_of(labels) and len(labels) != batch_size(inputs):
            raise ShapeError(
                f"labels of {len(labels)} samples do not fit: the batch has {batch_size(inputs)}. Pass one label, or "
                "one mask, per sample."
            )
        yield inputs, labels


def _items(data: Data, size: int, *, with_labels: bool) -> Iterator[Any]:
    if isinstance(data, Batches):
        yield from data.batches(size)
    elif is_one_batch(data, with_labels=with_labels):
        inputs, labels = split_labels(data)
        count = batch_size(batch_of(inputs))
        for rows in (slice(first, first + size) for first in range(0, count, size)):
            yield rows_of(inputs, rows) if labels is None else (rows_of(inputs, rows), rows_of(labels, rows))
    else:
        _notice_order(data)
        items = _each(data)
        first = list(islice(items, 1))
        items = chain(first, items)
        if not first or not _yields_samples(data, first[0]):
            yield from items
            return
        while samples := list(islice(items, size)):
            inputs, labels = zip(*map(split_labels, samples), strict=True)
            yield stacked(inputs), None if labels[0] is None else stacked(labels, "labels")


def samples_in(data: Data, *, with_labels: bool = False) -> int | None:
    """Return the number of samples, where that is known and how many are in a batch is open; None: it is not."""
    if is_one_batch(data, with_labels=with_labels):
        return batch_size(batch_of(split_labels(data)[0]))
    if isinstance(data, Batches):
        return len(data)
    if not isinstance(data, list | tuple) and not by_number(data):
        return None
    return len(data) if not len(data) or _yields_samples(data, data[0]) else None


def by_number(data: Data) -> bool:
    """Return whether data has items by number, and their number: a data set, and no list or iterable."""
    if isinstance(data, Sequence | Mapping) or is_array(data) or _is(data, "IterableDataset"):
        return False
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def gathered(data: Data, least: int | None = None) -> Inputs:
    """Return the inputs of data as one batch; a batch, and a list of samples, as `batch_of` does.

    Args:
        data: What `batches_of` takes; batches are read into memory.
        least: Stop reading as soon as there are so many.

    Raises:
        ShapeError: Batches differ in the shape of their samples.
    """
    if is_array(data) or isinstance(data, Mapping) or _is_list_of_samples(data):
        return batch_of(data)
    parts: list[Inputs] = []
    for inputs, _ in batches_of(data, _AT_ONCE):
        parts.append(rows_of(inputs, np.arange(batch_size(inputs))))  # a copy: the next batch may overwrite it
        if least is not None and sum(map(batch_size, parts)) >= least:
            break
    if not parts:
        raise InputError("inputs are empty: there is nothing to run. Pass at least 1 sample.")
    shapes = [[tuple(one.shape[1:]) for one in arrays_of(part)] for part in parts]
    if any(shape != shapes[0] for shape in shapes):
        raise ShapeError(
            "inputs differ in shape from batch to batch: samples that are run together have one. Resize or pad them."
        )
    return joined(parts)


def _whole(name: str, values: list[Any]) -> np.ndarray:
    """Return a list of numbers in a mapping as an array."""
    if values and is_array(values[0]):
        raise DataError(_TURNED.format(name=repr(name)))
    return numbers(values, repr(name))


def _is_list_of_samples(data: Data) -> bool:
    """Return whether data is a list of inputs alone, such as texts or arrays, and not of batches."""
    if not isinstance(data, list) or not data or is_one_batch(data) or isinstance(data[0], tuple | Mapping):
        return False
    return not isinstance(data[0], list) or is_samples(data[0])


def _each(data: Data) -> Iterator[Any]:
    """Yield what data holds, by number where that is how it is read."""
    if by_number(data):
        return (data[row] for row in range(len(data)))
    try:
        return iter(data)
    except TypeError as error:
        raise InputError(
            f"dataset of type {type(data).__name__} yields no batches: a DataLoader, a data set with len() and "
            "samples by number, arrays, or an iterable of (inputs, labels) is needed. Pass one of these."
        ) from error


def _yields_samples(data: Data, first: Any) -> bool:  # noqa: ANN401
    """Return whether what data yields are single samples, and not batches."""
    if _is(data, "DataLoader") and data.batch_sampler is not None:
        return False
    is_iterable = _is(data, "IterableDataset")
    if split_labels(first)[1] is None or (_is(data, "Dataset") and not is_iterable):
        return by_number(data) or _is(data, "Dataset")
    return is_sample(first)


def _notice_order(data: Data) -> None:
    """Warn where a loader leaves samples out, or yields them in another order than the data set's."""
    if not _is(data, "DataLoader") or _is(data.dataset, "IterableDataset"):
        return
    samplers = (data.sampler, "SequentialSampler"), (data.batch_sampler, "BatchSampler")
    strange = [type(one).__name__ for one, plain in samplers if one is not None and type(one).__name__ != plain]
    if strange:
        warnings.warn(
            f"dataset is a DataLoader with a {strange[0]}: rows are in its order, not in that of the data set. Pass a "
            "loader with shuffle=False to know which row is which sample.",
            stacklevel=2,
        )
    if data.drop_last and (left := len(data.sampler) % data.batch_size):
        warnings.warn(
            f"dataset is a DataLoader with drop_last: {left} of {len(data.sampler)} samples are left out. Pass one "
            "with drop_last=False.",
            stacklevel=2,
        )


def _is(value: object, kind: str) -> bool:
    """Return whether something is of a type of ``torch.utils.data``: nothing is, where that was not loaded."""
    torch = sys.modules.get("torch.utils.data")
    return torch is not None and isinstance(value, getattr(torch, kind))
