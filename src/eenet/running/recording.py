"""Writing down what every exit says about every sample, in constant memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float32

from eenet.errors import DataError, InputError, RunError, ShapeError
from eenet.evaluation.segmentation import CONFUSION, mean_iou, pixel_accuracy
from eenet.running.engines import DenseEngine, Engine, as_engine
from eenet.running.engines.base import each_exit
from eenet.running.inputs import Inputs, labelled
from eenet.running.progress import track
from eenet.tables.arrays import as_array
from eenet.tables.costs import CostTable
from eenet.tables.files import atomic_path, check_replaceable
from eenet.tables.storage import FILES, cost_arrays, seal
from eenet.tables.table import ExitTable

_NAMES = "feature_names"  # the only array that is not by sample


@runtime_checkable
class Batches(Protocol):
    """A data set that yields batches of any size in a fixed order, as `eenet.experiments.data.ArrayDataset` does."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batches(self, batch_size: int) -> Iterable[tuple[Inputs, Any]]:
        """Yield (inputs, targets) in row order."""


Dataset: TypeAlias = Any
"""`Batches`, or a `DataLoader` or anything else that yields (inputs, labels), or mappings with the key ``labels``."""

_Arrays: TypeAlias = dict[str, np.ndarray]
_Rows: TypeAlias = Callable[[Engine, Inputs, np.ndarray], _Arrays]  # from a batch and its targets to its rows of arrays

DenseUtility = Literal["accuracy", "miou"]
"""What an image's answer is worth: the share of its pixels that are right, or its mean IoU over the classes in it."""

_WORTH: dict[DenseUtility, Callable[[np.ndarray], np.ndarray]] = {"accuracy": pixel_accuracy, "miou": mean_iou}


def record(
    model: object,
    dataset: Dataset,
    path: str | os.PathLike[str] | None = None,
    *,
    batch_size: int | None = None,
    split: str = "",
    costs: CostTable | None = None,
    device: object = None,
    progress: bool = True,
) -> ExitTable:
    """Record what every exit says, as an exit table: logits and labels, or of maps what `record_dense` records.

    Rows keep the order of the data set. With a path, memory stays that of one batch: results go to disk as they come,
    beside ``path``, and move there when they are complete and were read back as a table, so a kill, a full disk or
    labels that are none of the model's classes leave no such table, and the older one as it was.

    Args:
        model: A multi-exit model, run as it is in evaluation mode, its flags and its device restored; or an engine.
        dataset: Yields batches of inputs and labels: an object with ``len()`` and ``batches(batch_size)``, a
            `DataLoader`, or any iterable of (inputs, labels) or of mappings with the key ``labels`` or ``label``. Where
            the labels are masks ``[sample, height, width]``, maps are recorded.
        path: An ``.npz`` file if the name ends so, else a folder of ``.npy`` files (read memory-mapped); None: the
            table is kept in memory only.
        batch_size: Samples per forward pass, where the data set leaves that open; default: 128, of maps 8.
        split: Name of the split, stored in the table.
        costs: What leaving at each exit costs, stored in the table.
        device: Where to compute; default: where the model is. Engines stay where they are.
        progress: Show a bar on stderr if it takes more than two seconds.

    Returns:
        The table, as `ExitTable.load` reads it back. It carries the fingerprint of the model as `source`.

    Raises:
        InputError: A batch size below 1, a data set without samples or labels, a device for an engine, or ``path`` is a
            folder that holds something else.
        ShapeError: Costs of another number of exits.
        DataError: Labels are no whole numbers.
        TableError: A label is no class of the model, or the model says what is no number.
        RunError: The disk is full or refuses, or the data set yields another number of rows than its length.
    """
    if batch_size is None:
        batch_size = 8 if isinstance(dataset, Batches) and len(dataset) and holds_masks(dataset) else 128
    settings: dict[str, Any] = {"split": split, "costs": costs, "device": device, "progress": progress}
    return _recorded(model, dataset, path, _of_classes_or_maps, batch_size=batch_size, **settings)


def record_dense(
    model: object,
    dataset: Dataset,
    path: str | os.PathLike[str] | None = None,
    *,
    utility: DenseUtility = "accuracy",
    batch_size: int = 8,
    split: str = "",
    costs: CostTable | None = None,
    device: object = None,
    progress: bool = True,
) -> ExitTable:
    """Record a summary of every exit's maps, image by image, as an exit table.

    The table's ``features`` are the `eenet.running.maps.summary` of each map, ``utility`` what the image's map is
    worth; there are no labels. Where there is a path, confusion counts ``[sample, exit, true class, answered class]``
    stand beside under the key ``confusion`` (`eenet.evaluation.load_confusion`): they give the data set's mean IoU of
    any choice of exits. Maps are upsampled bilinearly to the size of the masks before the largest logit is taken;
    pixels whose target is -100 do not count. An image in which no pixel counts is worth 1 at every exit.

    Args:
        model: Its heads return ``[sample, class, height, width]``; or an engine.
        dataset: With masks ``[sample, height, width]`` for labels.
        path: Of the table; None: it is kept in memory only, without confusion counts.
        utility: ``"accuracy"``: share of the pixels that are right; ``"miou"``: mean IoU over the classes that occur in
            the image.
        batch_size: Images per forward pass, where the data set leaves that open.
        split: As of `record`, like costs, device, progress and further errors.
        costs: Of leaving at each exit.
        device: Where to compute.
        progress: Show a bar.

    Raises:
        InputError: An unknown utility.
        ShapeError: Heads or targets are no maps, or costs of another number of exits.
        DataError: A mask holds what is no class of the model.
    """
    rows = partial(_of_maps, utility=dense_utility(utility))
    settings: dict[str, Any] = {"split": split, "costs": costs, "device": device, "progress": progress}
    return _recorded(model, dataset, path, rows, batch_size=batch_size, **settings)


def holds_masks(dataset: Batches) -> bool:
    """Return whether the answers to a data set are maps, judged by its first sample."""
    _, targets = labelled(next(iter(dataset.batches(1))))
    return as_array(targets).ndim == 3


def dense_utility(name: str) -> DenseUtility:
    """Return the utility of a name.

    Raises:
        InputError: There is none of that name.
    """
    if name not in _WORTH:
        raise InputError(f"utility {name!r} is unknown: there are {' and '.join(_WORTH)}. Pass one of them.")
    return name


def outputs(engine: Engine, inputs: Inputs) -> Float32[np.ndarray, "sample exit column"]:
    """Return what every exit says of one batch, nobody leaving: logits, or the features that policies read.

    Raises:
        ShapeError: An exit says something else than one row per sample.
    """
    with engine.session():
        found = [seen for seen, _ in each_exit(engine, inputs)]
    for k, seen in enumerate(found):
        if seen.ndim != 2:
            raise ShapeError(
                f"logits of exit {k} of shape {tuple(seen.shape)} do not fit: a policy reads one row per sample. For "
                "maps use record_dense."
            )
    return np.stack(found, axis=1)


def _of_classes_or_maps(engine: Engine, inputs: Inputs, labels: np.ndarray) -> _Arrays:
    """Return the rows of a table of classes, or of maps where the labels are masks."""
    if labels.ndim == 3:
        return _of_maps(engine, inputs, labels)
    inner = engine.inner if isinstance(engine, DenseEngine) else engine
    return {"logits": outputs(inner, inputs), "labels": labels}


def _of_maps(engine: Engine, inputs: Inputs, targets: np.ndarray, utility: DenseUtility = "accuracy") -> _Arrays:
    """Return the rows of a table of maps."""
    from eenet.running.maps import confusions, label_map, map_columns

    if targets.ndim != 3:
        raise ShapeError(
            f"targets of shape {targets.shape} do not fit: masks are [sample, height, width]. Use record for data "
            "sets with one label per sample."
        )
    dense = engine if isinstance(engine, DenseEngine) else DenseEngine(engine)
    size = (targets.shape[1], targets.shape[2])
    summaries, counts = [], []
    with dense.session():
        for seen, answer in each_exit(dense, inputs):
            summaries.append(seen)
            counts.append(confusions(label_map(answer.logits, size), targets, answer.logits.shape[1]))
    confusion = np.stack(counts, axis=1)
    return {
        "features": np.stack(summaries, axis=1),
        _NAMES: np.array(map_columns(confusion.shape[2])),
        "utility": _WORTH[utility](confusion).astype(np.float32),
        CONFUSION: confusion,
    }


def _whole_numbers(labels: object) -> np.ndarray:
    """Return labels of any kind as an array, refusing those of a single sample and what is no class."""
    found = as_array(labels)
    if found.ndim == 0:
        raise InputError(
            "dataset yields single samples: recording runs batches. Pass DataLoader(dataset, batch_size=128)."
        )
    if found.dtype.kind not in "iu":
        raise DataError(
            f"labels of {found.dtype} do not fit: classes are whole numbers, and others would be cut to them. Pass "
            "integers."
        )
    return found.astype(np.int64)


def _recorded(
    model: Any,  # noqa: ANN401
    dataset: Dataset,
    path: str | os.PathLike[str] | None,
    rows: _Rows,
    *,
    batch_size: int,
    split: str,
    costs: CostTable | None,
    device: object,
    progress: bool,
) -> ExitTable:
    """Return the table of what a function makes of every batch; all else is as of `record`."""
    count = len(dataset) if isinstance(dataset, Batches) else None
    if batch_size < 1 or count == 0:
        raise InputError(
            f"batch_size {batch_size} over {count} samples records nothing: both must be at least 1. Pass more."
        )
    exits: int = getattr(model, "num_exits", 0)
    if costs is not None and costs.num_exits != exits:
        raise ShapeError(
            f"costs with {costs.num_exits} exits do not fit: the model has {exits}. Use costs measured on this model."
        )
    if device is not None and isinstance(model, Engine):
        raise InputError(
            f"device {device} cannot be had: the engine computes on {model.device}, where it was made. Leave device "
            "out, or make the engine from a model on that device."
        )
    if path is not None:
        check_replaceable(Path(path), "table", [*FILES, f"{CONFUSION}.npy"])
    total = (length_hint(dataset) or None) if count is None else -(-count // batch_size)
    batches = track(_batches(dataset, batch_size), total, "recording", enabled=progress)
    with _placed(model, device) as engine:
        parts = _parts(engine, batches, rows)
        if path is None:
            return _in_memory(list(parts), costs=costs, split=split, source=engine.source)
        small = {"split": np.array(split or Path(path).stem), "source": np.array(engine.source)}
        _write(Path(path), parts, count, small | ({} if costs is None else cost_arrays(costs)))
    return ExitTable.load(path)


def _parts(engine: Engine, batches: Iterable[Any], rows: _Rows) -> Iterator[_Arrays]:
    """Yield every batch's rows of every array; refuse a data set without any."""
    part = None
    for inputs, targets in map(labelled, batches):
        part = rows(engine, inputs, _whole_numbers(targets))
        yield part
    if part is None:
        raise InputError("dataset yields no batch: there is nothing to record. Pass at least 1 sample.")


def _in_memory(parts: Sequence[_Arrays], **about: Any) -> ExitTable:  # noqa: ANN401 - of an `ExitTable`
    """Return the table of all parts."""
    names = tuple(parts[0].get(_NAMES, np.array([])).tolist())
    keys = [key for key in parts[0] if key not in (_NAMES, CONFUSION)]
    arrays: dict[str, Any] = {key: np.concatenate([part[key] for part in parts]) for key in keys}
    return ExitTable(**arrays, feature_names=names, **about)


def _write(path: Path, parts: Iterable[_Arrays], count: int | None, small: _Arrays) -> None:
    """Write parts and small arrays beside a path, check that they are a table of so many rows, and move it there."""
    with ExitStack() as stack:
        with _writing(path):
            draft = stack.enter_context(atomic_path(path))
            folder = draft.with_name("arrays")
            folder.mkdir()
        files: dict[str, _NpyFile] = {}
        for part in parts:
            small |= {_NAMES: part.pop(_NAMES)} if _NAMES in part else {}
            for key, array in part.items():
                if key not in files:
                    files[key] = _NpyFile(folder / f"{key}.npy", array, path)
                    stack.callback(files[key].drop)
                files[key].append(array)
        for file in files.values():
            file.complete(count)
        with _writing(path):
            for key, array in small.items():
                np.save(folder / f"{key}.npy", array, allow_pickle=False)
            if path.suffix == ".npz":
                _pack(folder, draft)
            else:
                seal(folder)
                folder.rename(draft)
        ExitTable.load(draft)  # what is no table replaces none


def _batches(dataset: Dataset, batch_size: int) -> Iterator[Any]:
    """Return what yields the batches of a data set."""
    try:
        return iter(dataset.batches(batch_size) if isinstance(dataset, Batches) else dataset)
    except TypeError as error:
        raise InputError(
            f"dataset of type {type(dataset).__name__} yields no batches: len() and batches(batch_size) are needed, or "
            "an iterable of (inputs, labels). Pass a torch DataLoader, for example."
        ) from error


@contextmanager
def _placed(model: Any, device: Any) -> Iterator[Engine]:  # noqa: ANN401
    """Give an engine for the model on the wanted device, and bring the model home afterwards."""
    engine = as_engine(model, optimise=False)
    try:
        yield engine if device is None else as_engine(model.to(device), optimise=False)
    finally:
        if device is not None:
            model.to(engine.device)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one line what the file system refused."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"output {path} could not be written: {error.strerror or error}. Free some space or choose another place."
        ) from error


def _pack(folder: Path, draft: Path) -> None:
    """Put the arrays into one ``.npz``, a file at a time."""
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
            file.unlink()  # half the peak need of disk space


class _NpyFile:
    """A ``.npy`` file that grows by plain writes: unlike with a memory map, a full disk is an error and no crash."""

    def __init__(self, path: Path, like: np.ndarray, target: Path) -> None:
        self._path, self._rows, self._like, self._target = path, 0, like, target
        with _writing(target):
            self._handle = path.open("wb")
            self._write_header()

    def append(self, part: np.ndarray) -> None:
        """Write further rows."""
        if part.shape[1:] != self._like.shape[1:]:
            raise ShapeError(
                f"{self._path.stem} of shape {part.shape} do not fit: those of the first batch are {self._like.shape}. "
                "Record samples of which every exit says equally much."
            )
        with _writing(self._target):
            self._handle.write(np.ascontiguousarray(part).tobytes())
        self._rows += len(part)

    def complete(self, count: int | None) -> None:
        """Note how many rows there are and close; refuse a data set whose batches do not add up to its length."""
        if count not in (None, self._rows):
            raise RunError(
                f"dataset yielded {self._rows} rows of {self._path.stem}: its length is {count}. Make len() and "
                "batches() agree."
            )
        with _writing(self._target):
            self._handle.seek(0)
            self._write_header()
            self._handle.close()

    def drop(self) -> None:
        """Close without a word: where it is still open, the error on its way says more."""
        with suppress(OSError):
            self._handle.close()

    def _write_header(self) -> None:
        """Write the header; numpy leaves room in it for more rows."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self._like.dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._like.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(self._handle, header)
