"""How an exit table lies on disk: an ``.npz`` file, or a folder of ``.npy`` files that is memory-mapped."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eenet.core.costs import CostTable
from eenet.core.files import atomic_path, check_replaceable
from eenet.errors import TableError

__all__ = ["KEYS", "cost_arrays", "costs_of", "read", "write"]

KEYS = (
    "logits",
    "probs",
    "labels",
    "utility",
    "costs",
    "cost_unit",
    "cost_reference",
    "features",
    "confidence",
    "split",
)
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,  # from the head of an array, which numpy reads as Python text
    SyntaxError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    NotImplementedError,
)


def read(path: str | os.PathLike[str], keys: Sequence[str] = KEYS) -> dict[str, np.ndarray]:
    """Return the arrays of a stored table by key.

    Args:
        path: A file or folder.
        keys: Which arrays to read, where they are there.

    Raises:
        TableError: Nothing is there, it is damaged, or it holds pickled objects.
    """
    source = Path(path)
    if source.is_dir():
        files = {key: source / f"{key}.npy" for key in keys}
        return {key: _read_array(file, key) for key, file in files.items() if file.is_file()}
    if not source.is_file():
        raise TableError(f"table {path} is missing: there is no such file or folder. Check the path.")
    with source.open("rb") as handle:
        try:
            archive = np.load(handle, allow_pickle=False)
        except _DAMAGED as error:
            raise _damaged(source, "", error) from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise TableError(
                f"table {path} is a single array: an .npz file with keys is needed. Save it with numpy.savez."
            )
        with archive:
            return {key: _read_member(archive, key, source) for key in keys if key in archive.files}


def write(path: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by key, atomically: an ``.npz`` file if the name ends so, else a folder.

    Raises:
        InputError: The folder is there and holds anything but an earlier table.
    """
    if Path(path).suffix != ".npz":
        check_replaceable(Path(path), "table", [f"{key}.npy" for key in KEYS])
    with atomic_path(path) as draft:
        if Path(path).suffix == ".npz":
            with draft.open("wb") as handle:
                np.savez(handle, allow_pickle=False, **arrays)
            return
        draft.mkdir()
        for key, array in arrays.items():
            np.save(draft / f"{key}.npy", array, allow_pickle=False)


def cost_arrays(costs: CostTable) -> dict[str, np.ndarray]:
    """Return costs as the arrays a table stores."""
    arrays = {"costs": np.array(costs.cumulative), "cost_unit": np.array(costs.unit)}
    if costs.reference is not None:
        arrays["cost_reference"] = np.array(costs.reference)
    return arrays


def _read_array(file: Path, key: str) -> np.ndarray:
    try:
        # copy-on-write: pages stay shared with the file as long as nobody writes
        array: np.ndarray = np.load(file, mmap_mode="c" if file.stat().st_size > 1 << 16 else None, allow_pickle=False)
    except _DAMAGED as error:
        raise _damaged(file, f"key {key!r} ", error) from error
    return array


def _read_member(archive: np.lib.npyio.NpzFile, key: str, source: Path) -> np.ndarray:
    try:
        array: np.ndarray = archive[key]
    except _DAMAGED as error:
        raise _damaged(source, f"key {key!r} ", error) from error
    return array


def _damaged(source: Path, where: str, error: Exception) -> TableError:
    if "pickle" in str(error).lower():
        return TableError(
            f"table {source} {where}cannot be read: it holds pickled Python objects, which are never loaded, or is "
            f"no numpy file. "
            "Save plain arrays with numpy.savez."
        )
    return TableError(
        f"table {source} {where}cannot be read: the file is truncated or damaged ({error}). Write it again."
    )


def costs_of(arrays: dict[str, np.ndarray]) -> CostTable | None:
    """Return the costs among the arrays of a table, None where there are none.

    Raises:
        TableError: They are no costs, or their unit is missing.
    """
    if "costs" not in arrays:
        return None
    if "cost_unit" not in arrays:
        raise TableError(
            "cost_unit is missing: 'costs' without a unit mean nothing. Save 'cost_unit', for example 'ms'."
        )
    unit, reference = arrays["cost_unit"], arrays.get("cost_reference")
    if unit.size != 1 or unit.dtype.kind != "U":
        raise TableError(
            f"cost_unit of shape {unit.shape} and type {unit.dtype} is no unit: one word is needed. Save for example "
            "'ms'."
        )
    if reference is not None and (reference.size != 1 or reference.dtype.kind not in "fiu"):
        raise TableError(
            f"cost_reference of shape {reference.shape} and type {reference.dtype} is no cost: one number, that of the "
            "original model, is needed. Save it, or leave the key out."
        )
    values = np.atleast_1d(arrays["costs"])
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise TableError(
            f"costs of shape {values.shape} and type {values.dtype} do not fit: one number per exit is needed. Save "
            "what leaving at each exit costs."
        )
    return CostTable(tuple(values.tolist()), str(unit.item()), None if reference is None else float(reference.item()))
