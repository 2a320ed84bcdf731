"""Recording the outputs of every exit for every sample, in constant memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from jaxtyping import Float32

from eenet.errors import DataError, InputError, RunError, ShapeError
from eenet.evaluation.segmentation import CONFUSION, mean_iou, pixel_accuracy
from eenet.running.engines import DenseEngine, Engine, as_engine, plain_model
from eenet.running.engines.base import each_exit
from eenet.running.inputs import Data, Inputs, batches_of, samples_in
from eenet.running.progress import track
from eenet.tables.arrays import as_array, axes_of
from eenet.tables.atomic import atomic_path
from eenet.tables.checks import array_of, check_group, checked, number
from eenet.tables.costs import CostTable
from eenet.tables.files import check_free, seal
from eenet.tables.storage import FORMAT, cost_arrays
from eenet.tables.table import ExitTable

_NAMES = "feature_names"  # the only array that is not by sample


_Arrays: TypeAlias = dict[str, np.ndarray]
_Utility: TypeAlias = str | Callable[[np.ndarray, np.ndarray], np.ndarray]

_UTILITIES = {"accuracy": pixel_accuracy, "miou": mean_iou}  # of a map, from its confusion counts


def record(
    model: object,
    dataset: Data,
    path: str | os.PathLike[str] | None = None,
    *,
    utility: _Utility | None = None,
    batch_size: int | None = None,
    split: str = "",
    costs: CostTable | None = None,
    group: object = None,
    device: object = None,
    progress: bool = True,
) -> ExitTable:
    """Record the outputs of every exit as an exit table: logits and labels, or summaries of maps.

    Where the labels are masks ``[sample, height, width]``, the heads return maps: then ``features`` are the
    `eenet.running.maps.summary` of each map, ``utility`` is that of the image's map, and there are no labels. In
    the file, confusion counts ``[sample, exit, true class, answered class]`` are stored too, under the key
    ``confusion`` (`eenet.evaluation.load_confusion`): they give the data set's mean IoU of any choice of exits. Maps
    are upsampled bilinearly to the size of the masks before the largest logit is taken; pixels whose target is -100 do
    not count. An image in which no pixel counts has utility 1 at every exit.

    Rows keep the order of the data set. With a path, memory stays that of one batch: results go to disk as they come,
    beside ``path``, and move there when they are complete and were read back as a table, so a kill, a full disk or
    labels that are none of the model's classes leave no such table, and the older one as it was.

    Args:
        model: A multi-exit model, run as it is in evaluation mode, its flags and its device restored; or an engine.
        dataset: Samples and their labels: a `DataLoader`; a data set, such as torch's `Dataset`; inputs and labels as a
            pair of arrays or as one mapping; an object with ``len()`` and ``batches(batch_size)``; or an iterable of
            batches or samples, each (inputs, labels) or a mapping with the key ``labels`` or ``label``.
        path: An ``.npz`` file if the name ends so, else a folder of ``.npy`` files (read memory-mapped); None: the
            table is kept in memory only, without confusion counts.
        utility: Of maps: ``"accuracy"`` (default), the share of the pixels that are right, or ``"miou"``, the mean IoU
            over the classes that occur in the image. Where one of these is given, anything but maps is refused. For
            answers that are no classes: a function of outputs ``[sample, exit, column]`` and targets ``[sample, ...]``
            that returns ``[sample, exit]``, such as a partial `regression_utility`; outputs then become ``features``.
        batch_size: Samples per forward pass, where the data set leaves that open; default: 128, of maps 8.
        split: Name of the split, stored in the table.
        costs: What leaving at each exit costs, stored in the table.
        group: Of every sample, a whole number or a text, stored in the table: samples that belong together
            (`ExitTable.group`), such as images of one street.
        device: Where to compute; default: where the model is. Engines stay where they are.
        progress: Show a bar on stderr if it takes more than two seconds.

    Returns:
        The table, as `ExitTable.load` reads it back. It carries the fingerprint of the model as `source`.

    Raises:
        InputError: A batch size that is no whole number from 1, an unknown utility, a data set without samples or
            labels, or where it is not clear which these are; a device for an engine, or ``path`` is a folder that holds
            something else.
        ShapeError: Costs of another number of exits; groups or labels that are not one per sample; heads or targets
            that are no maps where maps are wanted.
        DataError: Samples that differ in shape or are no numbers, labels that are no whole numbers, or a mask that
            holds what is no class of the model.
        TableError: A label is no class of the model, groups are neither whole numbers nor texts, or the model returns
            NaN or infinity.
        RunError: The disk is full or refuses, or the data set yields another number of rows than its length.
    """
    if utility is not None and not callable(utility) and utility not in _UTILITIES:
        known = " and ".join(_UTILITIES)
        raise InputError(f"utility {utility!r} is unknown: there are {known}. Pass one of them, or a function.")
    count = samples_in(dataset, with_labels=True)
    if batch_size is None:
        maps = not callable(utility) and count and (utility or _holds_masks(dataset))
        batch_size = 8 if maps else 128
    batch_size = int(number(batch_size, "batch_size", 1, whole=True))
    if count == 0:
        raise InputError("dataset of 0 samples cannot be recorded: a table has at least 1. Pass some.")
    model = model if isinstance(model, Engine) else plain_model(model)
    exits = model.num_exits
    if costs is not None and costs.num_exits != exits:
        raise ShapeError(
            f"costs with {costs.num_exits} exits do not fit: the model has {exits}. Use costs measured on this model."
        )
    groups = {} if group is None else {"group": _groups(group, count)}
    if device is not None and isinstance(model, Engine):
        raise InputError(
            f"device {device} cannot be had: the engine computes on {model.device}, where it was made. Leave device "
            "out, or make the engine from a model on that device."
        )
    total = (length_hint(dataset) or None) if count is None else -(-count // batch_size)
    batches = track(batches_of(dataset, batch_size, with_labels=True), total, "recording", enabled=progress)
    with _placed(model, device) as engine:
        parts = _parts(engine, batches, utility, count)
        if path is None:
            return _in_memory(list(parts), costs=costs, split=split, source=engine.source, **groups)
        small = groups | {"split": np.array(split or Path(path).stem), "source": np.array(engine.source)}
        _write(Path(path), parts, small | ({} if costs is None else cost_arrays(costs)))
    return ExitTable.load(path)


def record_dense(
    model: object,
    dataset: Data,
    path: str | os.PathLike[str] | None = None,
    *,
    utility: str = "accuracy",
    **settings: Any,  # noqa: ANN401
) -> ExitTable:
    """Record maps: `record`, with its settings, of a model and a data set that must be of maps."""
    return record(model, dataset, path, utility=utility, **settings)


def outputs(engine: Engine, inputs: Inputs) -> Float32[np.ndarray, "sample exit column"]:
    """Return the outputs of every exit for one batch, no sample leaving: logits, or the features that policies read.

    Raises:
        ShapeError: An exit returns something else than one row per sample.
    """
    with engine.session():
        found: np.ndarray | None = None
        for k, (seen, _) in enumerate(each_exit(engine, inputs)):
            if seen.ndim != 2:
                raise ShapeError(
                    f"logits of exit {k} of shape {tuple(seen.shape)} do not fit: a policy reads one row per sample, "
                    "and maps are recorded with masks for labels. Use heads that return [sample, class], or pass masks."
                )
            if found is None:
                found = np.empty((len(seen), engine.num_exits, seen.shape[1]), dtype=seen.dtype)
            if seen.shape != found[:, k].shape:
                raise ShapeError(
                    f"logits of exit {k} of shape {seen.shape} do not fit: those of exit 0 are {found[:, 0].shape}. "
                    "Use heads that return rows of one length, one row per sample."
                )
            found[:, k] = seen  # at once: it may be a view of a state that the next stage writes into
    assert found is not None
    return found


def _groups(group: object, count: int | None) -> np.ndarray:
    """Return the group of every sample; refuse another number of them than there are samples, where that is known."""
    found = array_of("group", group)
    check_group(found)
    if found.ndim != 1 or count not in (None, len(found)):
        raise ShapeError(
            f"group of shape {found.shape} does not fit: each of {count or 'the'} samples has one. Pass these."
        )
    return found


def _holds_masks(dataset: Data) -> bool:
    """Return whether the answers to a data set are maps, judged by its first sample."""
    _, targets = next(batches_of(dataset, 1, with_labels=True))
    return axes_of(targets) == 3


def _rows(engine: Engine, inputs: Inputs, targets: object, utility: _Utility | None) -> _Arrays:
    """Return what is recorded of a batch; of maps where the targets are masks or a utility of maps is named."""
    inner = engine.inner if isinstance(engine, DenseEngine) else engine
    if callable(utility):
        features = outputs(inner, inputs)
        worth = array_of("utility", utility(features, as_array(targets)))
        worth = worth.astype(np.float32) if worth.dtype.kind in "fiub" else worth  # other types are refused later
        return {"features": features, "utility": worth}
    labels = _whole_numbers(targets)
    if labels.ndim == 3 or utility:
        return _rows_of_maps(engine, inputs, labels, utility or "accuracy")
    return {"logits": outputs(inner, inputs), "labels": labels}


def _rows_of_maps(engine: Engine, inputs: Inputs, targets: np.ndarray, utility: str) -> _Arrays:
    from eenet.running.maps import confusions, label_map, map_columns

    if targets.ndim != 3:
        raise ShapeError(
            f"targets of shape {targets.shape} do not fit: masks are [sample, height, width]. Leave utility out for "
            "data sets with one label per sample."
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
        "utility": _UTILITIES[utility](confusion).astype(np.float32),
        CONFUSION: confusion,
    }


def _whole_numbers(labels: object) -> np.ndarray:
    """Return labels of any kind as an array, refusing what is no class."""
    found = as_array(labels)
    if found.dtype.kind not in "iu":
        raise DataError(
            f"labels of {found.dtype} do not fit: classes are whole numbers, and others would be cut to them. Pass "
            "integers; the `encoded` of a cascade makes them of names."
        )
    if found.ndim not in (1, 3):
        raise ShapeError(
            f"labels of shape {found.shape} do not fit: each sample has one class, or a mask of them. Pass labels "
            "[sample], or masks [sample, height, width]."
        )
    return found.astype(np.int64)


def _parts(engine: Engine, batches: Iterable[Any], utility: _Utility | None, count: int | None) -> Iterator[_Arrays]:
    """Yield every batch's rows of every array; refuse batches that do not fit together or add up to the length."""
    rows = 0
    shapes: dict[str, tuple[int, ...]] = {}
    for inputs, targets in batches:
        part = _rows(engine, inputs, targets, utility)
        for key, array in part.items():
            if array.shape[1:] != shapes.setdefault(key, array.shape[1:]):
                raise ShapeError(
                    f"{key} of shape {array.shape} do not fit: rows of the first batch have shape {shapes[key]}. "
                    "Record samples for which every exit returns rows of the same length."
                )
        checked(_table_arrays(part), part[_NAMES].tolist() if _NAMES in part else (), rows)
        yield part
        rows += len(next(iter(part.values())))
    if not rows:
        raise InputError(
            "dataset yields no batch: there is nothing to record, or it is an iterator that was read before. Pass at "
            "least 1 sample."
        )
    if count not in (None, rows):
        raise RunError(f"dataset yielded {rows} samples: its length is {count}. Make len() and batches() agree.")


def _table_arrays(part: _Arrays) -> _Arrays:
    """Return the arrays of a part that are rows of the table."""
    return {key: array for key, array in part.items() if key not in (_NAMES, CONFUSION)}


def _in_memory(parts: Sequence[_Arrays], **about: Any) -> ExitTable:  # noqa: ANN401 - of an `ExitTable`
    """Return the table of all parts."""
    names = tuple(parts[0].get(_NAMES, np.array([])).tolist())
    keys = _table_arrays(parts[0])
    arrays: dict[str, Any] = {key: np.concatenate([part[key] for part in parts]) for key in keys}
    return ExitTable(**arrays, feature_names=names, **about)


def _write(path: Path, parts: Iterable[_Arrays], small: _Arrays) -> None:
    """Write parts and small arrays beside a path, check that they are a table, and move it there."""
    with ExitStack() as stack:
        with _writing(path):
            draft = stack.enter_context(atomic_path(path, partial(check_free, what="table")))
            folder = draft.with_name("arrays")
            folder.mkdir()
        rows, part = 0, {}
        for part in parts:
            small |= {_NAMES: part.pop(_NAMES)} if _NAMES in part else {}
            with _writing(path):
                for key, array in part.items():
                    _append(folder / f"{key}.npy", array, rows)
            rows += len(next(iter(part.values())))
        with _writing(path):
            for key, array in part.items():
                with (folder / f"{key}.npy").open("r+b") as file:
                    _write_header(file, array, rows)
            for key, array in small.items():
                np.save(folder / f"{key}.npy", array, allow_pickle=False)
            if path.suffix == ".npz":
                _pack(folder, draft)
            else:
                seal(folder, *FORMAT)
                folder.rename(draft)
        ExitTable.load(draft)  # what is no table replaces none


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


def _append(path: Path, array: np.ndarray, rows: int) -> None:
    """Add to the rows of a ``.npy`` file by plain writes: unlike with a memory map, a full disk is no crash."""
    with path.open("ab") as file:
        if not rows:
            _write_header(file, array, 0)
        file.write(np.ascontiguousarray(array).tobytes())


def _write_header(file: IO[bytes], like: np.ndarray, rows: int) -> None:
    """Write the header of a ``.npy`` file; numpy leaves room in it for more rows."""
    descr = np.lib.format.dtype_to_descr(like.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": (rows, *like.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)
