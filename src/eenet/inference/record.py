"""Writing down what every exit says about every sample, in constant memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.core.costs import CostTable
from eenet.core.files import atomic_path, check_replaceable
from eenet.core.table import ExitTable
from eenet.core.table_files import KEYS, cost_arrays
from eenet.errors import DataError, InputError, RunError, ShapeError
from eenet.evaluation.segmentation import CONFUSION
from eenet.inference.engines import EagerEngine, Engine
from eenet.inference.progress import track
from eenet.inference.stepping import vectors
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel

__all__ = ["Batches", "Rows", "outputs", "record", "write_table"]

Rows: TypeAlias = Callable[[Engine, Inputs, Tensor], dict[str, Tensor]]
"""From an engine, a batch and its targets to that batch's rows of every array in a table."""


@runtime_checkable
class Batches(Protocol):
    """A data set that hands out batches in a fixed order, as `eenet.data.ArrayDataset` does."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batches(self, batch_size: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield (inputs, targets) in row order."""


def record(
    model: MultiExitModel | Engine,
    dataset: Batches,
    path: str | os.PathLike[str],
    *,
    batch_size: int = 128,
    split: str = "",
    costs: CostTable | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> ExitTable:
    """Record the logits of every exit and write them as an exit table.

    Rows keep the order of the data set. Memory stays that of one batch: results go to disk as they come, beside
    ``path``, and move there when they are complete and were read back as a table, so a kill, a full disk or labels that
    are none of the model's classes leave no such table, and the older one as it was.

    Args:
        model: Run in evaluation mode; its flags, and its device, are restored.
        dataset: Gives ``len()`` and batches of (inputs, labels).
        path: An ``.npz`` file if the name ends so, else a folder of ``.npy`` files (read memory-mapped).
        batch_size: Samples per forward pass.
        split: Name of the split, stored in the table.
        costs: What leaving at each exit costs, stored in the table.
        device: Where to compute; default: where the model is. Engines stay where they are.
        progress: Show a bar on stderr if it takes more than two seconds.

    Returns:
        The table, as `ExitTable.load` reads it back.

    Raises:
        InputError: A batch size below 1, a data set without samples, a device for an engine, or ``path`` is a folder
            that holds something else.
        ShapeError: Costs of another number of exits.
        DataError: Labels are no whole numbers.
        TableError: A label is no class of the model, or the model says what is no number.
        RunError: The disk is full or refuses, or the data set yields another number of rows than its length.
    """
    return write_table(
        model,
        dataset,
        path,
        _classified,
        batch_size=batch_size,
        split=split,
        costs=costs,
        device=device,
        progress=progress,
    )


def write_table(
    model: MultiExitModel | Engine,
    dataset: Batches,
    path: str | os.PathLike[str],
    rows: Rows,
    *,
    batch_size: int,
    split: str,
    costs: CostTable | None,
    device: str | torch.device | None,
    progress: bool,
) -> ExitTable:
    """Write what a function makes of every batch as an exit table; arguments, promises and errors as of `record`.

    Args:
        model: See `record`.
        dataset: See `record`.
        path: See `record`.
        rows: Makes every batch's rows of every long array, by the keys of the table.
        batch_size: See `record`.
        split: See `record`.
        costs: See `record`.
        device: See `record`.
        progress: See `record`.
    """
    if batch_size < 1 or not len(dataset):
        raise InputError(
            f"batch_size {batch_size} over {len(dataset)} samples records nothing: both must be at least 1. Pass more."
        )
    if costs is not None and costs.num_exits != model.num_exits:
        raise ShapeError(
            f"costs with {costs.num_exits} exits do not fit: the model has {model.num_exits}. Measure this model."
        )
    if device is not None and isinstance(model, Engine):
        raise InputError(
            f"device {device} cannot be had: the engine computes on {model.device}, where it was made. Leave device "
            "out, or make the engine from a model on that device."
        )
    target = Path(path)
    check_replaceable(target, "table", [f"{key}.npy" for key in (*KEYS, CONFUSION)])
    with ExitStack() as stack:
        with _writing(path):
            draft = stack.enter_context(atomic_path(path))
            folder = draft.with_name("arrays")
            folder.mkdir()
        engine = stack.enter_context(_placed(model, device))
        _stream(engine, dataset, rows, folder, path, batch_size=batch_size, progress=progress)
        with _writing(path):
            _write_small(folder, split or target.stem, costs)
            if target.suffix == ".npz":
                _pack(folder, draft)
            else:
                folder.rename(draft)
        ExitTable.load(draft)  # what is no table replaces none
    return ExitTable.load(path)


def _classified(engine: Engine, inputs: Inputs, labels: Tensor) -> dict[str, Tensor]:
    """Return the rows of a table of classes."""
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"labels of {labels.dtype} do not fit: classes are whole numbers, and others would be cut to them. Pass "
            "integers."
        )
    return {"logits": outputs(engine, inputs), "labels": labels.long()}


def outputs(engine: Engine, inputs: Inputs) -> Float[Tensor, "sample exit class"]:
    """Return the float32 logits of every exit for one batch, nobody leaving.

    Raises:
        ShapeError: An exit says something else than one vector per sample.
    """
    with engine.session():
        state = engine.start(inputs)
        logits = []
        for k in range(engine.num_exits):
            state = engine.stage(k, state)
            logits.append(vectors(engine.head(k, state), k).float())
        return torch.stack(logits, dim=1)


@contextmanager
def _placed(model: MultiExitModel | Engine, device: str | torch.device | None) -> Iterator[Engine]:
    """Give an engine for the model on the wanted device, and bring the model home afterwards."""
    if isinstance(model, Engine):
        yield model
        return
    home = EagerEngine(model, optimise=False).device
    try:
        yield EagerEngine(model if device is None else model.to(device), optimise=False)
    finally:
        if device is not None:
            model.to(home)


@contextmanager
def _writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say in one line what the file system refused."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"output {path} could not be written: {error.strerror or error}. Free some space or choose another place."
        ) from error


def _stream(
    engine: Engine,
    dataset: Batches,
    rows: Rows,
    folder: Path,
    target: str | os.PathLike[str],
    *,
    batch_size: int,
    progress: bool,
) -> None:
    """Write the long arrays batch by batch."""
    count = len(dataset)
    with ExitStack() as stack:
        files: dict[str, _NpyFile] = {}
        total = -(-count // batch_size)
        for inputs, targets in track(dataset.batches(batch_size), total, "recording", enabled=progress):
            moved = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(engine.device), inputs)
            for key, tensor in rows(engine, moved, targets).items():
                part = tensor.cpu().numpy()
                if key not in files:
                    files[key] = stack.enter_context(_NpyFile(folder / f"{key}.npy", count, part, target))
                files[key].append(part)
        for file in files.values():
            file.check_complete()


def _write_small(folder: Path, split: str, costs: CostTable | None) -> None:
    """Write what a table holds besides the long arrays."""
    arrays = {"split": np.array(split)} | ({} if costs is None else cost_arrays(costs))
    for key, array in arrays.items():
        np.save(folder / f"{key}.npy", array, allow_pickle=False)


def _pack(folder: Path, draft: Path) -> None:
    """Put the arrays into one ``.npz``, a file at a time."""
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
            file.unlink()  # half the peak need of disk space


class _NpyFile:
    """A ``.npy`` file that grows by plain writes: unlike a memory map, a full disk is an error and not a crash."""

    def __init__(self, path: Path, rows: int, like: np.ndarray, target: str | os.PathLike[str]) -> None:
        self._path, self._rows, self._done, self._target = path, rows, 0, target
        with _writing(target):
            self._handle = path.open("wb")
            header = {
                "descr": np.lib.format.dtype_to_descr(like.dtype),
                "fortran_order": False,
                "shape": (rows, *like.shape[1:]),
            }
            np.lib.format.write_array_header_1_0(self._handle, header)

    def __enter__(self) -> _NpyFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with _writing(self._target):
                self._handle.close()
        else:
            with suppress(OSError):  # the error on its way says more
                self._handle.close()

    def append(self, part: np.ndarray) -> None:
        """Write further rows."""
        with _writing(self._target):
            self._handle.write(np.ascontiguousarray(part).tobytes())
        self._done += len(part)

    def check_complete(self) -> None:
        """Refuse a data set whose batches do not add up to its length."""
        if self._done != self._rows:
            raise RunError(
                f"dataset yielded {self._done} rows of {self._path.stem}: its length is {self._rows}. "
                "Make len() and batches() agree."
            )
