"""What a model with exits is trained on, what its policy is fitted on, and what it is judged on: never the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch.utils import _pytree as pytree

from eenet.errors import DataError, InputError
from eenet.running.inputs import batches_of, joined, rows_of
from eenet.running.row_ids import row_ids
from eenet.schedulers.base import LEAST_SAMPLES
from eenet.tables.arrays import as_array, batch_size
from eenet.training.dataset import LabelledDataset
from eenet.training.samples import as_dataset

Part: TypeAlias = Any
"""Samples with labels: a `LabelledDataset`, or inputs and labels of any kind as a pair in memory."""

_SHARES = (0.6, 0.2, 0.2)  # of the samples: to train on, for calibration, for testing
_AT_ONCE = 128
_COMPARED = 50_000  # samples in two parts that are compared one by one


def parts_of(data: Any, seed: int, *, in_memory: bool, trains: bool) -> tuple[Part, Part, Part]:  # noqa: ANN401
    """Return what is trained on, what the policy is fitted on, and what it is judged on; see `speed_up`."""
    read = _read_pair if in_memory else as_dataset
    if isinstance(data, tuple) and len(data) == 3:
        training, *others = data
        if trains and training is None:
            raise InputError("data without samples to train on do not fit: heads have to learn. Pass some.")
        parts = [read(training) if trains else None, *map(read, others)]
        named = zip(("train", "calibration", "test"), data, parts, strict=True)
        for (one, raw, part), (other, raw_too, part_too) in combinations(named, 2):
            if part is not None and part_too is not None and (raw is raw_too or _mostly_shared(part, part_too)):
                raise InputError(
                    f"data for {one} and {other} are the same samples: what was learnt on them cannot be judged on "
                    "them. Pass samples that no other part has."
                )
    else:
        whole = read(data)
        rows = split_rows(_count(whole), _SHARES if trains else _SHARES[1:], seed)
        parts = [None] * (not trains) + [_select(whole, some) for some in rows]
    require_enough({"calibration": _count(parts[1]), "test": _count(parts[2])})
    for name, part in zip(("calibration", "test"), parts[1:], strict=True):
        _require_labels(name, part)
    return parts[0], parts[1], parts[2]


def require_enough(counts: Mapping[str, int]) -> None:
    """Refuse parts, by their names, in which too few samples are left to fit a policy or to judge it.

    Raises:
        DataError: They have fewer than 50.
    """
    for name in ("calibration", "test"):
        if counts[name] < LEAST_SAMPLES:
            raise DataError(
                f"data of {counts[name]} samples for {name} are too few: with fewer than {LEAST_SAMPLES} nothing can "
                "be said. Pass more: of data in one piece, a fifth is for calibration, and a fifth for testing."
            )


def _require_labels(name: str, part: Part) -> None:
    """Refuse samples without a class among those that a policy is fitted to or judged on."""
    labels = as_array(part.labels if isinstance(part, LabelledDataset) else part[1])
    if labels.dtype.kind in "iu" and (labels < 0).any():
        row = int(np.flatnonzero(labels < 0)[0])
        raise DataError(
            f"label {labels[row]} of sample {row} for {name} is no class: a policy is fitted to and judged by right "
            "answers. Pass samples that have a class; only those to train on may have none (-100)."
        )


def split_rows(count: int, shares: Sequence[float], seed: int) -> list[Int[np.ndarray, " row"]]:
    """Return row numbers in parts of about these shares: each row is in one part, chosen by the seed."""
    ends = (count * np.cumsum(shares)[:-1] / sum(shares)).round().astype(int)
    return np.split(np.random.default_rng(seed).permutation(count), ends)


def _read_pair(data: Any) -> tuple[Any, np.ndarray]:  # noqa: ANN401
    """Return inputs of any kind and their labels, in memory: members of cascades may take what is no tensor."""
    found = [
        (rows_of(inputs, np.arange(batch_size(inputs))), as_array(labels))  # a copy: the next batch may overwrite it
        for inputs, labels in batches_of(data, _AT_ONCE, with_labels=True)
    ]
    if not found:
        raise DataError("data yield no batch: there is nothing to fit on. Pass some samples.")
    inputs, labels = zip(*found, strict=True)
    return joined(inputs), np.concatenate(labels)


def _count(part: Part) -> int:
    return len(part) if isinstance(part, LabelledDataset) else len(part[1])


def _select(part: Part, rows: np.ndarray) -> Part:
    if isinstance(part, LabelledDataset):
        return part.select(torch.from_numpy(rows))
    return rows_of(part[0], rows), part[1][rows]


def first_of(part: Part, count: int) -> Any:  # noqa: ANN401 - inputs of any kind
    """Return the inputs of the first samples."""
    rows = slice(0, count)
    return part.inputs(rows) if isinstance(part, LabelledDataset) else rows_of(part[0], rows)


def _mostly_shared(part: Part, other: Part) -> bool:
    """Return whether half of the smaller part or more is in the other, too, wherever; a few doubles are usual."""
    if _count(part) + _count(other) > _COMPARED:  # reading all of it takes too long: the same data set is told apart
        both = isinstance(part, LabelledDataset) and isinstance(other, LabelledDataset)
        return both and part.fingerprint() == other.fingerprint()
    first, second = (np.sort(np.concatenate([*_contents(one)])) for one in (part, other))
    few, many = sorted((np.unique(first), np.unique(second)), key=len)
    if 2 * len(few) < min(len(first), len(second)):  # samples repeat: another part may have the same by right
        return np.array_equal(first, second)
    return 2 * len(np.intersect1d(few, many)) >= len(few)


def _contents(part: Part) -> Iterator[Int[np.ndarray, " sample"]]:
    """Yield a hash of every sample's inputs, batch by batch."""
    for start in range(0, _count(part), _AT_ONCE):
        rows = slice(start, min(start + _AT_ONCE, _count(part)))
        inputs = part.inputs(rows) if isinstance(part, LabelledDataset) else rows_of(part[0], rows)
        leaves = pytree.tree_leaves(inputs) if not isinstance(inputs, list) else [inputs]
        ids = [row_ids(as_array(one) if isinstance(one, torch.Tensor) else one) for one in leaves]
        yield np.bitwise_xor.reduce(ids)
