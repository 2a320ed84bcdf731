"""Numbers from outside, and what an exit table refuses, naming key and row."""

from __future__ import annotations

import math
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, NoReturn, TypeVar

import numpy as np
from jaxtyping import Float32

from eenet.errors import EenetError, InputError, ShapeError, TableError
from eenet.tables.arrays import CHUNK, as_array

_Value = TypeVar("_Value")
_PROBS_TOLERANCE = 1e-3
_PLAIN: dict[type, str] = {str: "text", dict: "mapping", Mapping: "mapping"}
COSTS = (1e-30, 1e30)
"""Between what costs lie: outside, single precision and squares overflow."""


def number(
    value: Any,  # noqa: ANN401
    name: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
    error: type[EenetError] = InputError,
) -> float:
    """Return a number that comes from outside: of Python, numpy or torch; never a truth value, a text or NaN.

    Args:
        value: What was given.
        name: What it is called, for the message.
        low: The least it may be.
        high: The most it may be.
        above: What it must be larger than.
        below: What it must be smaller than.
        whole: Whether it must be an integer; it is returned as one.
        error: Class of the error.

    Raises:
        EenetError: It is no finite number, or out of range.
    """
    given = value
    try:
        if not isinstance(value, Real | Decimal):
            array = as_array(value)
            value = array.item() if array.ndim == 0 and array.dtype.kind in "fiu" else None
        if value is not None and not isinstance(value, bool):
            found = int(value) if whole else float(value)
            if (
                math.isfinite(found)
                and (not whole or found == value)
                and low <= found <= high
                and above < found < below
            ):
                return found
    except (TypeError, ValueError, OverflowError, ArithmeticError, RuntimeError):
        pass
    ends = [f"at least {low:.10g}"] * (low > -math.inf) + [f"above {above:g}"] * (above > -math.inf)
    ends += [f"at most {high:.10g}"] * (high < math.inf) + [f"below {below:g}"] * (below < math.inf)
    limits = f"from {low:.10g} to {high:.10g}" if -math.inf < low <= high < math.inf else " and ".join(ends)
    needed = " ".join(["a whole number" if whole else "a finite number", limits]).strip()
    shown = f"{given:g}" if isinstance(given, float) else reprlib.repr(given)
    raise error(f"{name} {shown} cannot be used: {needed} is needed. Pass one.")


def instance(value: _Value, kind: type, name: str, advice: str = "Pass one.") -> _Value:
    """Return what must be of a class; an `InputError` that names the argument and the class where it is not."""
    if isinstance(value, kind):
        return value
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    raise InputError(
        f"{name} of type {type(value).__name__} does not fit: {article} {_PLAIN.get(kind, kind.__name__)} is needed. "
        f"{advice}"
    )


def listed(value: Any, name: str) -> list[Any]:  # noqa: ANN401
    """Return the values of a list, an array or any other iterable; a text, a mapping or one value is refused."""
    try:
        if not isinstance(value, str | bytes | Mapping):
            return list(value)
    except TypeError:
        pass
    raise InputError(f"{name} {reprlib.repr(value)} cannot be used: a list is needed. Pass one, also of one value.")


def rows_of(value: Any, count: int) -> slice | np.ndarray:  # noqa: ANN401
    """Return which rows of a table are meant: a slice, numbers (negative ones count from the end), or a mask.

    Raises:
        InputError: They are none of these, or name a row that is not there, or none at all.
    """
    if isinstance(value, slice):
        try:
            found: slice | np.ndarray = value
            chosen = len(range(count)[value])
        except (TypeError, ValueError) as error:
            raise InputError(f"rows {value} cannot be used: a slice has whole numbers. Pass these.") from error
    else:
        found = array_of("rows", value)
        kind, chosen = found.dtype.kind, found.size
        if found.ndim != 1 or (chosen and kind not in "biu") or (kind == "b" and len(found) != count):
            raise InputError(
                f"rows of shape {found.shape} and type {found.dtype} cannot be used: numbers of rows are needed, or a "
                f"truth value for each of {count}. Pass either."
            )
        if kind == "b":
            chosen = int(found.sum())
        elif chosen and (out := (found < -count) | (found >= count)).any():
            row = int(found[out][0])
            raise InputError(f"rows {row} is out of range: the table has rows 0 to {count - 1}. Leave it out.")
    if not chosen:
        raise InputError("rows are empty: a table has at least 1 sample. Choose some.")
    return found


def array_of(key: str, value: object) -> np.ndarray:
    """Return one of a table's arrays, refusing what is none."""
    try:
        return as_array(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TableError(f"{key} of type {type(value).__name__} is no array of numbers: {error}. Give one.") from error


def names_of(value: object, key: str = "feature_names") -> tuple[str, ...]:
    """Return the names of features, refusing what is no list of texts."""
    names = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise TableError(f"{key} {value!r} cannot be used: names are texts, one for each. Pass texts.")
    return names


def exit_names_of(value: object, num_exits: int) -> tuple[str, ...]:
    """Return the names of exits: none, or another one for each."""
    names = names_of(value, "exit_names")
    if names and (len(names) != num_exits or len(set(names)) < len(names)):
        raise TableError(
            f"exit_names {names} do not fit: each of {num_exits} exits has its own name. Give one for each."
        )
    return names


def per_sample(value: object, key: str, num_samples: int) -> np.ndarray:
    """Return one number for each sample, from one for all or one for each."""
    array = array_of(key, value)
    if array.dtype.kind not in "fiub" or array.shape not in ((), (num_samples,)):
        raise TableError(
            f"{key} of shape {array.shape} and type {array.dtype} does not fit: one number is needed, or one for each "
            f"of {num_samples} samples. Give it so."
        )
    found = np.broadcast_to(array.astype(np.float64), num_samples)
    _check_finite(key, found[:, None])
    return found


def checked(
    arrays: Mapping[str, np.ndarray], feature_names: Sequence[str], first_row: int | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of a table by attribute, in the types it keeps; refuse what is no table.

    Args:
        arrays: By attribute.
        feature_names: Of the columns of features.
        first_row: Of arrays that are a part of a table: the row of the table that is their first.

    Raises:
        ShapeError: Arrays whose shapes disagree.
        TableError: Values that cannot be used, or a table too small to choose by.
    """
    arrays = {
        key: array.astype(np.float64) if key in ("utility", "cost") and array.dtype.kind in "iub" else array
        for key, array in arrays.items()
    }
    _check_shapes(arrays, feature_names)
    for key in ("logits", "features", "utility", "cost"):
        if key in arrays:
            _check_finite(key, arrays[key], first_row or 0)
    if "logits" in arrays and first_row is None:
        _notice_probabilities(arrays["logits"])
    if "labels" in arrays:
        check_labels(arrays["labels"], arrays["logits"].shape[2] if "logits" in arrays else None, first_row or 0)
        arrays["labels"] = arrays["labels"].astype(np.int64, copy=False)
    if "group" in arrays:
        check_group(arrays["group"])
    for key, check in (("utility", _check_utility), ("cost", check_cost)):
        if key in arrays:
            arrays[key] = arrays[key].astype(np.float64, copy=False)
            check(arrays[key])
    return arrays


def _check_shapes(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    if ("logits" in arrays) == ("features" in arrays):
        raise TableError("logits and features are both given, or neither: exits have one of them. Pass one.")
    key, column, least = ("logits", "class", 2) if "logits" in arrays else ("features", "column", 1)
    shape = arrays[key].shape
    if len(shape) != 3:
        raise ShapeError(f"{key} of shape {shape} do not fit: [sample, exit, {column}] is needed. Reshape it.")
    n, exits, columns = shape
    if n == 0:
        raise TableError(f"{key} of shape {shape} have no samples: at least 1 is needed. Record some.")
    if exits < 2:
        raise TableError(f"{key} of shape {shape} have {exits} exit: a choice needs at least 2. Attach an early exit.")
    if columns < least:
        raise TableError(f"{key} of shape {shape} have {columns} columns: more are needed.")
    for other, needed in (("labels", (n,)), ("utility", (n, exits)), ("cost", (n, exits)), ("group", (n,))):
        if other in arrays and arrays[other].shape != needed:
            raise ShapeError(
                f"{other} of shape {arrays[other].shape} does not fit: {key} have {n} samples and {exits} exits, so "
                f"{needed} is needed."
            )
    if names and (key == "logits" or len(names) != columns or len(set(names)) != len(names)):
        raise ShapeError(f"feature_names of {len(names)} names do not fit: every column of features has its own.")


def _check_finite(key: str, values: np.ndarray, first_row: int = 0) -> None:
    """Refuse what is no finite float32; a logit may be minus infinity, beside finite ones."""
    if values.dtype.kind != "f":
        raise TableError(
            f"{key} of type {values.dtype} cannot be used: floating point numbers are needed. Convert them to float32."
        )
    step = max(1, 4 * CHUNK // max(1, math.prod(values.shape[1:])))
    for start in range(0, len(values), step):
        part = values[start : start + step]
        finite = np.isfinite(part)
        if part.dtype.itemsize > 4:
            finite &= np.abs(part) <= np.finfo(np.float32).max
        if key == "logits" and not finite.all():  # an impossible class, beside possible ones
            finite |= np.isneginf(part) & np.isfinite(part).any(axis=2, keepdims=True)
        if not finite.all():
            row = first_row + start + int((~finite).reshape(len(part), -1).any(axis=1).argmax())
            raise TableError(
                f"{key} of row {row} contains NaN or infinity: every value must be a finite float32. Drop or repair it."
            )


def _notice_probabilities(logits: np.ndarray) -> None:
    """Warn where logits are plainly probabilities: a softmax of them makes every exit unsure of everything."""
    part = np.asarray(logits[:1000], dtype=np.float64)
    if len(part) > 1 and (part >= 0).all() and np.abs(part.sum(axis=2) - 1).max() < 1e-4:
        warnings.warn(
            "logits look like probabilities: every row is positive and sums to 1. Pass them as 'probs', or to "
            "ExitTable.from_probs.",
            stacklevel=5,
        )


def check_labels(labels: np.ndarray, num_classes: int | None, first_row: int = 0) -> None:
    """Refuse what is no class; None: of samples without classes."""
    if labels.dtype.kind not in "iu":
        raise TableError(f"labels of type {labels.dtype} cannot be used: class numbers are integers. Convert them.")
    if num_classes is not None and (bad := (labels < 0) | (labels >= num_classes)).any():
        row = int(bad.argmax())
        raise TableError(
            f"labels of row {first_row + row}, {int(labels[row])}, is out of range: there are {num_classes} classes, 0 "
            f"to {num_classes - 1}. Correct it or drop the row."
        )


def check_group(group: np.ndarray) -> None:
    """Refuse groups of samples that are neither whole numbers nor texts."""
    if group.dtype.kind not in "iu" and not are_texts(group):
        raise TableError(
            f"group of type {group.dtype} cannot be used: a group is a whole number or a text. Convert the groups."
        )


def are_texts(array: np.ndarray) -> bool:
    """Return whether an array consists of texts, none of which contains a number that is no character."""
    if array.dtype.kind != "U":
        return False
    codes = np.frombuffer(array.astype(array.dtype.newbyteorder("=")).tobytes(), np.uint32)
    return not ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any()


def _check_utility(utility: np.ndarray) -> None:
    bad = ((utility < 0) | (utility > 1)).any(axis=1)
    if bad.any():
        raise TableError(f"utility of row {int(bad.argmax())} is out of range: it must lie in [0, 1]. Rescale it.")


def check_cost(cost: np.ndarray) -> None:
    """Refuse costs ``[sample, exit]`` that do not rise, or lie outside `COSTS`."""
    least, largest = COSTS
    bad = ~((cost[:, 1:] > cost[:, :-1]).all(axis=1) & ((cost >= least) & (cost <= largest)).all(axis=1))
    if bad.any():
        row = int(bad.argmax())
        raise TableError(
            f"cost of row {row} is not positive and rising, from {least:g} to {largest:g}: {cost[row].tolist()}. Give "
            "the cumulative cost of leaving at each exit."
        )


def logits_of(probs: np.ndarray) -> Float32[np.ndarray, "sample exit class"]:
    """Return the logarithms of probabilities, refusing what does not sum to 1; zeros are clamped."""
    if probs.ndim != 3:
        raise ShapeError(f"probs of shape {probs.shape} do not fit: [sample, exit, class] is needed. Reshape them.")
    if probs.dtype.kind != "f":
        _check_finite("probs", probs)
    logits = np.empty(probs.shape, dtype=np.float32)
    for start in range(0, len(probs), 4096):
        part = probs[start : start + 4096].astype(np.float64)
        with np.errstate(invalid="ignore"):  # of infinity
            off = np.abs(part @ np.ones(part.shape[2]) - 1)
        if not (part.min(initial=0.0) >= 0 and off.max(initial=0.0) <= _PROBS_TOLERANCE):  # so neither where one is NaN
            _refuse_probs(probs, part, off, start)
        logits[start : start + 4096] = np.log(np.maximum(part, np.finfo(np.float32).tiny, out=part), out=part)
    return logits


def _refuse_probs(probs: np.ndarray, part: np.ndarray, off: np.ndarray, start: int) -> NoReturn:
    """Say which probability cannot be used, or which do not sum to 1."""
    _check_finite("probs", probs)
    row, k = (int(i) for i in np.argwhere((part < 0).any(axis=2) | (off > _PROBS_TOLERANCE))[0])
    raise TableError(
        f"probs of row {start + row}, exit {k}, sum to {float(part[row, k].sum()):g}: probabilities are not "
        "negative and sum to 1 within 0.001. Normalise them, or pass the raw outputs as 'logits'."
    )
