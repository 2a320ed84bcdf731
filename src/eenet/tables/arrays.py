"""Arrays and batches as they come from anywhere, and the one softmax that recorded and running models share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from eenet.errors import DataError, InputError

FLOOR = np.float32(-1000.0)
"""Least log-probability there is: its exponential is 0 even in double, and products with it stay finite."""

CHUNK = 1 << 18
"""Numbers of a table's outputs worked on at a time."""

LABELS = ("labels", "label")
"""Keys of the labels in a mapping, the first that is there."""

_SHORT = 32  # columns up to which turning an array pays
_BLOCK = 1 << 16  # numbers worked on at a time: they stay in the processor's cache


def as_array(value: object) -> np.ndarray:
    """Return anything array-like as a numpy array, without a copy where that is possible.

    Tensors of PyTorch are detached and fetched from their device; bfloat16, which numpy lacks, becomes float32. What is
    in another byte order, or wider than double, is converted. What a mask hides becomes NaN.
    """
    if isinstance(value, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(value)
        value = np.where(hidden, np.nan, value.data) if hidden.any() else value.data
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        tensor: Any = value.detach().cpu()
        if str(tensor.dtype) in ("torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e5m2"):
            tensor = tensor.float()
        value = tensor.resolve_conj().resolve_neg().numpy()
    array = np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array.astype(np.float64) if array.dtype.kind == "f" and array.dtype.itemsize > 8 else array


def is_array(value: object) -> bool:
    """Return whether something is an array, a tensor or a frame; a data set that has a shape is none."""
    return hasattr(value, "shape") and (hasattr(value, "dtype") or hasattr(value, "iloc"))


def is_samples(inputs: object) -> bool:
    """Return whether a batch is a list of samples by themselves, such as texts, and not of arrays of many."""
    if not isinstance(inputs, list) or (len(inputs) == 2 and is_array(inputs[1])):
        return False
    return not (inputs and (is_array(inputs[0]) or isinstance(inputs[0], Mapping)))


def is_texts(inputs: object) -> bool:
    """Return whether a batch is a list of texts."""
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], str)


def arrays_of(inputs: object) -> Iterator[Any]:
    """Yield every array or tensor of a batch."""
    if is_array(inputs):
        yield inputs
    elif isinstance(inputs, Mapping | tuple | list):
        for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from arrays_of(value)


def batch_size(inputs: object) -> int:
    """Return the number of samples in a batch: an array or tensor, a mapping of these, or a list of samples.

    Raises:
        InputError: No array, no sample, or arrays that disagree on the number of samples.
    """
    if (shape := getattr(inputs, "shape", None)) and shape[0]:  # the usual case, in a loop that must be fast
        return int(shape[0])
    shapes = (
        [(len(inputs),)] if isinstance(inputs, list) and is_samples(inputs) else [a.shape for a in arrays_of(inputs)]
    )
    sizes = {int(shape[0]) if len(shape) else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        found = f"{sorted(sizes)} samples" if sizes else "no array"
        raise InputError(
            f"inputs contain {found}: a batch needs one number of samples, at least 1. Pass arrays or tensors, batch "
            "first; texts as a list."
        )
    return sizes.pop()


def axes_of(value: object) -> int | None:
    """Return the number of axes of an array, a number (0) or nested lists of numbers; None: it is something else."""
    if is_array(value):
        return len(value.shape)  # type: ignore[attr-defined]
    if isinstance(value, Number):
        return 0
    inner = axes_of(value[0]) if isinstance(value, list | tuple) and value else None
    return None if inner is None else inner + 1


def split_labels(batch: Any) -> tuple[Any, Any]:  # noqa: ANN401 - whatever a data set yields
    """Return inputs and labels of a batch or of one sample, None where it has no labels.

    A pair is (inputs, labels), a tuple or list of one value are the inputs; in mappings the labels stand under
    ``labels`` or ``label``, and everything else is an input; anything else are the inputs themselves.

    Raises:
        InputError: Which are the labels is not clear.
    """
    if isinstance(batch, Mapping):
        found = [batch[name] for name in LABELS if batch.get(name) is not None]
        if len(found) > 1 and not np.array_equal(as_array(found[0]), as_array(found[1])):
            raise InputError(
                "dataset yields mappings with 'labels' and with 'label', and these differ: which of them is right is "
                "not clear. Leave one of them out."
            )
        return {name: value for name, value in batch.items() if name not in LABELS}, found[0] if found else None
    if not isinstance(batch, tuple | list) or is_samples(batch):
        return batch, None
    if len(batch) not in (1, 2):
        raise InputError(
            f"dataset yields {len(batch)} values together: which of them are inputs, and which labels, is not clear. "
            "Yield (inputs, labels), or mappings by name with the labels under 'labels'."
        )
    inputs, labels = (*batch, None)[:2]
    first, second = axes_of(inputs), axes_of(labels)
    if first is not None and second is not None and first < second:
        raise InputError(
            f"dataset yields pairs whose first has {first} axes and whose second has {second}: labels come second, and "
            "have no more axes than inputs. Yield (inputs, labels), in this order."
        )
    return inputs, labels


def inputs_of(batch: Any) -> Any:  # noqa: ANN401 - whatever a data set yields
    """Return the inputs of a batch or of one sample, see `split_labels`."""
    return split_labels(batch)[0]


def labelled(batch: Any) -> tuple[Any, Any]:  # noqa: ANN401 - whatever a data set yields
    """Return inputs and labels of a batch or of one sample, see `split_labels`.

    Raises:
        InputError: It holds no labels, or which they are is not clear.
    """
    inputs, labels = split_labels(batch)
    if labels is None:
        named = f" of {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else ""
        raise InputError(
            f"dataset yields {type(batch).__name__}{named} without labels: the right answer belongs to every sample. "
            "Yield (inputs, labels), or mappings with the key 'labels' or 'label'; a torch DataLoader does."
        )
    return inputs, labels


def is_sample(item: Any) -> bool:  # noqa: ANN401 - whatever a data set yields
    """Return whether this is one sample with its label, and not a batch: a number, or the mask of an image."""
    inputs, label = split_labels(item)
    axes = axes_of(label)
    return axes == 0 or (axes == 2 and any(len(one.shape) == 3 for one in arrays_of(inputs)))


def is_one_batch(data: Any, *, with_labels: bool = False) -> bool:  # noqa: ANN401 - data of any form
    """Return whether data is one batch: an array, a mapping, or a pair of inputs and labels.

    Args:
        data: What may be a batch, or a list of them.
        with_labels: Two arrays of one axis are a pair too, and no two batches of inputs alone.
    """
    if is_array(data) or isinstance(data, Mapping) or is_texts(data):
        return True
    if not isinstance(data, list | tuple) or len(data) != 2:
        return False
    axes = axes_of(data[1])
    if isinstance(data[0], Mapping):
        return axes is not None
    if is_texts(data[0]):
        return axes == 1
    return is_array(data[0]) and axes is not None and (axes != axes_of(data[0]) or (with_labels and axes == 1))


def stacked(samples: Sequence[Any], name: str = "inputs") -> Any:  # noqa: ANN401 - as the samples are
    """Return samples as one batch: tensors, arrays or numbers of one shape, or mappings of these.

    Args:
        samples: At least one.
        name: What they are, for errors.

    Raises:
        DataError: They are no numbers, or differ in shape or in names.
    """
    first = samples[0]
    if isinstance(first, Mapping):
        if any(not isinstance(one, Mapping) or set(one) != set(first) for one in samples):
            raise DataError(
                f"{name} differ in their names: all samples need {sorted(map(str, first))}. Add or drop some."
            )
        return {key: stacked([one[key] for one in samples], repr(key)) for key in first}
    are_tensors = all(hasattr(one, "detach") for one in samples)
    values = list(samples) if are_tensors else [numbers(one, name) for one in samples]
    shapes = sorted({tuple(one.shape) for one in values})
    if len(shapes) > 1:
        raise DataError(
            f"{name} of shapes {', '.join(map(str, shapes[:3]))} do not fit together: the samples of a batch have one "
            "shape. Resize or pad them; the collate_fn of a DataLoader can do that."
        )
    return sys.modules["torch"].stack(values) if are_tensors else np.stack(values)


def numbers(value: object, name: str) -> np.ndarray:
    """Return an array or nested lists of numbers as an array; fractions in lists in single precision.

    Raises:
        DataError: It is something else, such as a text or an image that is no array, or lists of different lengths.
    """
    if axes_of(value) is not None:
        try:
            array = as_array(value)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{name} in lists of different lengths do not fit: samples have one shape. Pad them; a tokenizer does "
                "with padding=True."
            ) from error
        if array.dtype.kind in "fiub":
            is_list = array.dtype == np.float64 and not hasattr(value, "dtype")
            return array.astype(np.float32) if is_list else array
    raise DataError(
        f"{name} of type {type(value).__name__} do not fit: numbers are needed. Make arrays or tensors of them, as in "
        "training, or leave them out."
    )


def log_softmax(logits: Float[np.ndarray, "*batch class"]) -> Float32[np.ndarray, "*batch class"]:
    """Return float32 log-probabilities, never below `FLOOR`: the only form in which policies see logits.

    A row's result depends on that row alone, to the bit. A row that contains NaN or positive infinity becomes NaN;
    negative infinity is an impossible class.
    """
    if not is_array(logits):
        logits = numbers(logits, "logits")
    shape = logits.shape
    if not shape:
        raise InputError("logits of shape () do not fit: a row has one number per class. Pass rows.")
    rows = logits.reshape(-1, shape[-1])
    step = max(1, _BLOCK // shape[-1])
    if len(rows) <= step:
        return _log_softmax(rows).reshape(shape)
    result = np.empty(rows.shape, dtype=np.float32)
    for start in range(0, len(rows), step):
        result[start : start + step] = _log_softmax(rows[start : start + step])
    return result.reshape(shape)


def history(
    transform: Callable[[np.ndarray], np.ndarray], seen: Float32[np.ndarray, "sample seen class"]
) -> Float32[np.ndarray, "sample seen class"]:
    """Return what a transform, which reads all exits so far and returns one, makes of every exit seen."""
    return np.stack([transform(seen[:, : k + 1]) for k in range(seen.shape[1])], axis=1)


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite
        shifted = rows.astype(np.float32, order="C")  # a copy, each row in one piece: sums depend on how numbers lie
        largest = row_max(shifted)
        if not np.isfinite(largest).all():
            largest[~np.isfinite(largest)] = np.nan
        shifted -= largest
    total = np.add.reduce(np.exp(shifted), axis=1, keepdims=True)
    shifted -= np.log(total, out=total)
    return np.maximum(shifted, FLOOR, out=shifted)


def row_max(rows: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row 1"]:
    """Return the largest number of every row, NaN where one is: numpy takes ten times as long along short rows."""
    if rows.shape[1] > _SHORT or len(rows) == 1:
        return np.asarray(np.maximum.reduce(rows, axis=1, keepdims=True))
    return np.asarray(np.maximum.reduce(np.ascontiguousarray(rows.T), axis=0)[:, None])
