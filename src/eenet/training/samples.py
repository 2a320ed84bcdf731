"""Data in the forms that people have it in, as training data: torch data sets and loaders, arrays, iterables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from eenet.errors import DataError, InputError
from eenet.models.inputs import Inputs
from eenet.tables.arrays import batch_size, is_one_batch, is_sample, labelled, stacked
from eenet.training.augmenting import augmented
from eenet.training.dataset import Augment, LabelledDataset

Read: TypeAlias = Callable[[list[int]], tuple[Inputs, Tensor]]
"""From row numbers to inputs and targets of these samples."""
_AT_ONCE = 256


@final
class Samples(LabelledDataset):
    """Samples that are read when they are needed.

    Args:
        read: returns inputs and targets of some rows.
        targets: of all samples, or their number where every sample has a map of classes.
    """

    def __init__(self, read: Read, targets: Int[Tensor, "sample ..."] | int) -> None:
        self.read, self.known = read, targets

    def __len__(self) -> int:
        return self.known if isinstance(self.known, int) else len(self.known)

    @property
    def labels(self) -> Int[Tensor, " sample"]:
        if isinstance(self.known, int) or self.known.dim() != 1:
            raise InputError("labels are asked for, but every sample has a map of classes. Use `targets`.")
        return self.known

    def inputs(self, rows: Int[Tensor, " row"] | slice) -> Inputs:
        return self.read(self._numbers(rows))[0]

    def targets(self, rows: Int[Tensor, " row"] | slice) -> Int[Tensor, "row ..."]:
        return self.read(self._numbers(rows))[1] if isinstance(self.known, int) else self.known[rows]

    def training_batch(
        self, rows: Int[Tensor, " row"], augment: Augment | None, generator: torch.Generator
    ) -> tuple[Inputs, Int[Tensor, "row ..."]]:
        inputs, targets = self.read(self._numbers(rows))
        if augment is None:
            return inputs, targets
        if not isinstance(inputs, Tensor) or inputs.dim() != 4:
            raise InputError("augment does not fit: it changes images, and the samples are none. Leave it out.")
        return augmented(augment, inputs, generator)[0], targets

    def select(self, rows: Int[Tensor, " row"] | Bool[Tensor, " sample"] | slice) -> Samples:
        numbers, known = self._numbers(rows), self.known
        return Samples(
            lambda chosen: self.read([numbers[row] for row in chosen]),
            len(numbers) if isinstance(known, int) else known[rows],
        )

    def fingerprint(self) -> str:
        """Return a digest of the number of samples, their labels and the first sample; the others are not read."""
        inputs, targets = self.read([0])
        known = [targets] if isinstance(self.known, int) else [self.known]
        content = [tensor.cpu().numpy().tobytes() for tensor in (*tree_leaves(inputs), *known)]
        return hashlib.sha256(b" ".join([str(len(self)).encode(), *content])).hexdigest()[:16]

    def _numbers(self, rows: Tensor | slice) -> list[int]:
        return torch.arange(len(self))[rows].tolist()


def as_dataset(data: Any) -> LabelledDataset:  # noqa: ANN401 - anything that holds samples and labels
    """Return data in one of the usual forms as training data.

    A `DataLoader` and a data set with ``len()`` are read sample by sample, by the loader's ``collate_fn``, and once
    before the training for the labels; order and size of the batches are those of the training's settings. All other
    forms are read into memory.

    Args:
        data: a `LabelledDataset`; a `DataLoader`; a data set of samples ``(input, label)`` or of mappings; inputs and
            labels as two arrays, or as one mapping; an iterable of such batches. In mappings the labels stand under
            ``labels`` or ``label``, everything else is an input. Arrays of numpy are taken as tensors are.

    Raises:
        DataError: no samples, or samples without labels, of different shapes, or of something else than numbers.
        InputError: data in another form, or a loader with a sampler of its own.
    """
    if isinstance(data, LabelledDataset):
        return data
    collate: Callable[[list[Any]], Any] = default_collate
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset) and data.batch_sampler:
        _require_plain_order(data)
        data, collate = data.dataset, data.collate_fn
    if isinstance(data, TensorDataset):
        data = data.tensors
    if is_one_batch(data, with_labels=True):
        return _in_memory([data])
    if _holds_samples(data):
        return _read_by_row(data, _stacked if collate is default_collate else collate)
    batches = data.batches(_AT_ONCE) if hasattr(data, "batches") else data
    if not isinstance(batches, Iterable):
        raise InputError(
            f"dataset of type {type(data).__name__} cannot be trained on: samples are read from a DataLoader, "
            "a Dataset, arrays, or an iterable of batches (inputs, labels). Pass one of these."
        )
    return _in_memory(batches)


def _require_plain_order(loader: DataLoader[Any]) -> None:
    """Refuse a loader that leaves samples out or repeats some: its order is replaced by that of the training."""
    sampler = loader.sampler
    plain = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    if not plain or len(sampler) != len(loader.dataset):  # type: ignore[arg-type]
        raise InputError(
            f"dataset is a DataLoader with a sampler of its own ({type(sampler).__name__}): a training shuffles all "
            "samples by itself. Pass a torch.utils.data.Subset of the samples."
        )


def _holds_samples(data: Any) -> bool:  # noqa: ANN401
    """Return whether data has samples by number, and not batches."""
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return False
    if not len(data):
        raise DataError("dataset is empty: a training needs samples. Pass at least 1.")
    return isinstance(data, Dataset) or is_sample(data[0])


def _read_by_row(data: Any, collate: Callable[[list[Any]], Any]) -> Samples:  # noqa: ANN401
    """Return a data set with samples by number, its labels read."""

    def read(rows: list[int]) -> tuple[Inputs, Tensor]:
        try:
            return _tensors(collate([data[row] for row in rows]))
        except RuntimeError as error:  # of torch.stack
            raise DataError(
                f"dataset has samples of different shapes ({error}): those of a batch must be equal. Resize or pad "
                "them, or pass a DataLoader whose collate_fn does."
            ) from error

    if read([0])[1].dim() == 3:
        return Samples(read, len(data))
    parts = [range(first, min(first + _AT_ONCE, len(data))) for first in range(0, len(data), _AT_ONCE)]
    return Samples(read, torch.cat([read(list(rows))[1] for rows in parts]))


def _in_memory(batches: Iterable[Any]) -> Samples:
    """Return the samples of some batches."""
    parts = [_tensors(batch) for batch in batches]
    if not parts:
        raise DataError("dataset yields no batch: a training needs samples. Pass at least 1.")
    try:
        inputs, targets = tree_map(lambda *leaves: torch.cat(leaves), *parts)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"dataset yields batches that do not go together ({str(error).splitlines()[0]}): names and shapes of all "
            "samples must be equal. Resize or pad them, or pass a DataLoader whose collate_fn does."
        ) from error
    return Samples(lambda rows: tree_map(lambda leaf: leaf[rows], (inputs, targets)), targets)


def _stacked(samples: Sequence[Any]) -> tuple[Any, Any]:
    """Return samples as one batch."""
    inputs, labels = zip(*map(labelled, samples), strict=True)
    return stacked(inputs), stacked(labels, "labels")


def _tensors(batch: Any) -> tuple[Inputs, Tensor]:  # noqa: ANN401
    """Return inputs and labels of a batch as tensors."""
    inputs, labels = labelled(batch)
    targets = _tensor("labels", labels)
    if isinstance(inputs, Mapping):
        inputs = {name: _tensor(name, value) for name, value in inputs.items()}
    else:
        inputs = _tensor("inputs", inputs)
    count = batch_size(inputs)
    if targets.is_floating_point() or targets.dim() not in (1, 3) or len(targets) != count:
        raise DataError(
            f"labels of type {str(targets.dtype).removeprefix('torch.')} and shape {tuple(targets.shape)} do not fit "
            f"{count} samples: each has a whole number, or a map of these of shape (height, width). Pass such labels."
        )
    return inputs, targets.long()


def _tensor(name: str, value: Any) -> Tensor:  # noqa: ANN401
    """Return numbers as a tensor; floating point numbers that come from numpy in the usual precision."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"dataset yields {name} of type {type(value).__name__}, which are no numbers of one shape. Make a "
            "tensor of them, or leave them out."
        ) from error
    is_double = tensor.dtype is torch.float64 and not isinstance(value, Tensor)
    return tensor.to(torch.get_default_dtype()) if is_double else tensor
