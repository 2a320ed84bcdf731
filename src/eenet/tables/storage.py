"""How an exit table lies on disk: an ``.npz`` file, or a folder of ``.npy`` files that is memory-mapped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eenet.errors import BundleError, TableError
from eenet.tables.arrays import as_array
from eenet.tables.atomic import atomic_path, steady
from eenet.tables.checks import are_texts, check_cost
from eenet.tables.costs import CostTable
from eenet.tables.files import MANIFEST, check_free, read_arrays, read_manifest, seal

_OUTPUTS = ("logits", "probs", "features", "feature_names")
KEYS = (
    *(*_OUTPUTS, "labels", "utility", "group"),
    *("costs", "cost_unit", "cost_reference", "exit_names", "split", "source"),
)
"""What a stored table may consist of."""
FILES = (MANIFEST, *(f"{key}.npy" for key in KEYS))
"""The same as files of a folder."""
FORMAT = ("table", 1)
"""What its manifest says that it is, and the version."""


@steady
def read(path: str | os.PathLike[str], keys: Sequence[str] = KEYS) -> dict[str, np.ndarray]:
    """Return the arrays of a stored table by key, those of ``keys`` that are there.

    Raises:
        TableError: Nothing is there, it is damaged, or it contains pickled objects.
    """
    source = Path(path)
    if (source / MANIFEST).is_file():
        try:
            read_manifest(source, *FORMAT, [key for key in FILES[1:] if (source / key).is_file()])
        except BundleError as error:
            raise TableError(str(error)) from error
    if source.is_dir():
        files = {key: source / f"{key}.npy" for key in keys}
        return {key: _one(file) for key, file in files.items() if file.is_file()}
    arrays = read_arrays(path, "table", keys, TableError)
    if "" in arrays:
        raise TableError(f"table {path} is a single array: an .npz file with keys is needed. Save it with numpy.savez.")
    return arrays


def _one(file: Path) -> np.ndarray:
    arrays = read_arrays(file, "table", error=TableError)
    if "" not in arrays:
        raise TableError(f"table {file} cannot be read: it is no .npy file. Write it again with numpy.save.")
    return arrays[""]


def write(path: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by key, atomically: an ``.npz`` file if the name ends so, else a folder.

    Raises:
        InputError: The folder is there and contains anything but an earlier table.
    """
    archive = str(path).endswith(".npz")
    with atomic_path(path, None if archive else partial(check_free, what="table")) as draft:
        if archive:
            with draft.open("wb") as handle:
                np.savez(handle, allow_pickle=False, **arrays)
            return
        draft.mkdir()
        for key, array in arrays.items():
            np.save(draft / f"{key}.npy", array, allow_pickle=False)
        seal(draft, *FORMAT)


def cost_arrays(costs: CostTable, by_sample: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return costs as the arrays a table stores; ``by_sample`` where they differ from sample to sample."""
    values = np.array(costs.cumulative) if by_sample is None else by_sample
    arrays = {"costs": values, "cost_unit": np.array(costs.unit)}
    if costs.reference is not None:
        arrays["cost_reference"] = np.array(costs.reference)
    return arrays


def outputs_of(arrays: dict[str, np.ndarray], path: str | os.PathLike[str]) -> tuple[str, np.ndarray]:
    """Return the key of the outputs among the arrays of a table, and these; refuse arrays that are no numbers.

    Raises:
        TableError: There are none, or several, or arrays of another type.
    """
    for key in ("probs", "features", "logits", "utility", "labels"):
        if key in arrays and arrays[key].dtype.kind not in "fiu":
            kind, needed = ("int64", "class numbers") if key == "labels" else ("float32", "numbers")
            raise TableError(f"{key} of type {arrays[key].dtype} cannot be used: {needed} are needed. Save {kind}.")
    there = [key for key in ("logits", "probs", "features") if key in arrays]
    if len(there) != 1:
        fault = "has outputs of several kinds" if there else "lacks outputs"
        raise TableError(
            f"table {path} {fault}: one of the keys 'logits', 'probs' and 'features' is needed, found "
            f"{', '.join(sorted(arrays)) or 'none'}. Save one of them."
        )
    return there[0], arrays[there[0]]


def texts_of(arrays: dict[str, np.ndarray], key: str, *, one: bool = True) -> list[str]:
    """Return the texts that stand under a key of a table, one alone or a list; an empty list where there are none.

    Raises:
        TableError: They are something else.
    """
    if key not in arrays:
        return []
    array = arrays[key]
    if (array.size == 1 if one else array.ndim == 1) and are_texts(array):
        return [str(text) for text in array.reshape(-1).tolist()]
    needed = "one text" if one else "a list of texts"
    raise TableError(
        f"{key} of shape {array.shape} and type {array.dtype} does not fit: {needed} is needed. Save it so."
    )


def costs_of(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the costs among the arrays of a table, as its attributes: ``costs``, and ``cost`` if they vary.

    Raises:
        TableError: They are no costs, or their unit is missing.
    """
    if "costs" not in arrays:
        return {}
    if "cost_unit" not in arrays:
        raise TableError("cost_unit is missing: 'costs' need a unit. Save 'cost_unit', for example 'ms'.")
    [unit], reference = texts_of(arrays, "cost_unit"), arrays.get("cost_reference", np.array(1.0))
    values = np.atleast_1d(arrays["costs"])
    for key, array, fits, needed in (
        ("cost_reference", reference, reference.size == 1 and reference.dtype.kind in "fiu", "one number"),
        ("costs", values, values.ndim <= 2 and values.size and values.dtype.kind in "fiu", "[exit] or [sample, exit]"),
    ):
        if not fits:
            raise TableError(
                f"{key} of shape {array.shape} and type {array.dtype} does not fit: {needed} is needed. Save it so."
            )
    known = float(reference.item()) if "cost_reference" in arrays else None
    if values.ndim == 1:
        return {"costs": CostTable(tuple(values.tolist()), unit, known)}
    cost = as_array(values).astype(np.float64)
    check_cost(cost)
    return {"cost": cost, "costs": CostTable(tuple(cost.mean(axis=0).tolist()), unit, known)}


def parts_of(path: str | os.PathLike[str]) -> tuple[str, np.ndarray, dict[str, Any]]:
    """Return what a stored table holds: the name of its outputs, these, and its other attributes.

    Raises:
        TableError: As of `ExitTable.load`.
    """
    arrays = read(path)
    others: dict[str, Any] = costs_of(arrays)
    name = os.path.basename(os.fspath(path)).removesuffix(".npz")
    others["split"] = (texts_of(arrays, "split") or [name])[0]
    others["source"] = "".join(texts_of(arrays, "source"))
    for key in ("feature_names", "exit_names"):
        others[key] = tuple(texts_of(arrays, key, one=False))
    kind, outputs = outputs_of(arrays, path)
    return kind, outputs, others | {key: arrays[key] for key in ("labels", "utility", "group") if key in arrays}
