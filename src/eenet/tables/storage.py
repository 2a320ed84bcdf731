"""How an exit table lies on disk: an ``.npz`` file, or a folder of ``.npy`` files that is memory-mapped."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from eenet.errors import BundleError, TableError
from eenet.tables.costs import CostTable
from eenet.tables.files import MANIFEST, atomic_path, check_replaceable, checksums, read_manifest, write_json

_OUTPUTS = ("logits", "probs", "features", "feature_names")
KEYS = (*_OUTPUTS, "labels", "utility", "costs", "cost_unit", "cost_reference", "split", "source")
"""What a stored table may consist of."""
FILES = (MANIFEST, *(f"{key}.npy" for key in KEYS))
"""The same as files of a folder."""
_VERSION = 1
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
    """Return the arrays of a stored table by key, those of ``keys`` that are there.

    Raises:
        TableError: Nothing is there, it is damaged, or it holds pickled objects.
    """
    source = Path(path)
    if (source / MANIFEST).is_file():
        try:
            read_manifest(source, "table", _VERSION, [key for key in FILES[1:] if (source / key).is_file()])
        except BundleError as error:
            raise TableError(str(error)) from error
    if source.is_dir():
        files = {key: source / f"{key}.npy" for key in keys}
        return {key: _read_array(file, key) for key, file in files.items() if file.is_file()}
    if not source.is_file():
        raise TableError(f"table {path} is missing: there is no such file or folder. Check the path.")
    with source.open("rb") as handle:
        with _reading(source):
            archive = np.load(handle, allow_pickle=False)
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
        check_replaceable(Path(path), "table", FILES)
    with atomic_path(path) as draft:
        if Path(path).suffix == ".npz":
            with draft.open("wb") as handle:
                np.savez(handle, allow_pickle=False, **arrays)
            return
        draft.mkdir()
        for key, array in arrays.items():
            np.save(draft / f"{key}.npy", array, allow_pickle=False)
        seal(draft)


def seal(folder: Path) -> None:
    """Write down the checksums of a table's files beside them."""
    manifest = {"format": "eenet table", "version": _VERSION, "sha256": checksums(folder)}
    write_json(folder / MANIFEST, manifest)


def cost_arrays(costs: CostTable, by_sample: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return costs as the arrays a table stores; ``by_sample`` where they differ from sample to sample."""
    values = np.array(costs.cumulative) if by_sample is None else by_sample
    arrays = {"costs": values, "cost_unit": np.array(costs.unit)}
    if costs.reference is not None:
        arrays["cost_reference"] = np.array(costs.reference)
    return arrays


def _read_array(file: Path, key: str) -> np.ndarray:
    with _reading(file, f"key {key!r} "):
        # copy-on-write: pages stay shared with the file as long as nobody writes
        return np.load(file, mmap_mode="c" if file.stat().st_size > 1 << 16 else None, allow_pickle=False)


def _read_member(archive: np.lib.npyio.NpzFile, key: str, source: Path) -> np.ndarray:
    with _reading(source, f"key {key!r} "):
        return archive[key]


@contextmanager
def _reading(source: Path, where: str = "") -> Iterator[None]:
    """Say in one sentence why a file, or a part of it, cannot be read."""
    try:
        yield
    except _DAMAGED as error:
        fault = f"the file is truncated or damaged ({error}). Write it again."
        if "pickle" in str(error).lower():
            fault = (
                "it holds pickled Python objects, which are never loaded, or is no numpy file. Save plain arrays with "
                "numpy.savez."
            )
        raise TableError(f"table {source} {where}cannot be read: {fault}") from error


def costs_of(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the costs among the arrays of a table, as its attributes: ``costs``, and ``cost`` if they vary.

    Raises:
        TableError: They are no costs, or their unit is missing.
    """
    if "costs" not in arrays:
        return {}
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
    if values.ndim > 2 or values.dtype.kind not in "fiu" or not values.size:
        raise TableError(
            f"costs of shape {values.shape} and type {values.dtype} do not fit: one number per exit, or [sample, exit],"
            " is needed. Save what leaving at each exit costs."
        )
    known = None if reference is None else float(reference.item())
    by_sample = {"cost": values.astype(np.float64)} if values.ndim == 2 else {}
    means = values.mean(axis=0) if values.ndim == 2 else values
    return by_sample | {"costs": CostTable(tuple(means.tolist()), str(unit.item()), known)}
