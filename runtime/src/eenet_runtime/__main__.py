"""``python -m eenet_runtime EXPORT INPUTS``: run an exported model on arrays."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from eenet_runtime.confidence import Array
from eenet_runtime.errors import EenetRuntimeError, InputError
from eenet_runtime.model import Model, Prediction, load

__all__ = ["main"]

_DONE, _FAILURE, _BAD_INPUT, _INTERRUPTED = 0, 1, 2, 130
_LABELS = "labels"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: The words after ``python -m eenet_runtime``; those of the process if not given.

    Returns:
        0 done, 1 failure, 2 bad input, 130 interrupted.
    """
    try:
        options = _parser().parse_args(arguments)
        _run(options)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except EenetRuntimeError as error:
        return _fail(str(error), _BAD_INPUT)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", _FAILURE)
    except KeyboardInterrupt:
        return _fail("Interrupted.", _INTERRUPTED)
    return _DONE


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"Error: {' '.join(message.split())}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eenet_runtime",
        description="Run an exported model on arrays: every sample stops where the policy lets it go.",
        epilog="Arrays: .npy, or .npz by the names of the model's inputs (a model of one input also takes the only "
        "array), the true classes, if known, under 'labels'. Images of type uint8 are prepared as the export says.",
    )
    parser.add_argument("export", type=Path, metavar="EXPORT", help="folder written by 'eenet export'")
    parser.add_argument("inputs", type=Path, metavar="INPUTS", help=".npz or .npy file")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="samples per forward pass (32)")
    parser.add_argument("--regroup", action="store_true", help="fill every stage's batch with samples that wait for it")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="threads of the engine")
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write a row per sample, as CSV")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size} is too small: a batch holds samples. Pass 1 or more.")
    if options.out is not None and (options.out.is_dir() or not options.out.absolute().parent.is_dir()):
        raise InputError(f"--out {options.out} cannot be written: it is a folder or in none. Pass a file name.")
    model = load(options.export, threads=options.threads)
    inputs, labels = _read(options.inputs, model)
    count = len(next(iter(inputs.values())))
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu"):
        raise InputError(
            f"labels of shape {labels.shape} and type {labels.dtype} do not fit: there are {count} samples. Pass one "
            "class number per sample."
        )
    regroup = options.batch_size if options.regroup else None
    prediction = model.predict_all(_batches(model, inputs, count, options.batch_size), regroup=regroup)
    if options.out is not None:
        _write(options.out, _rows(model, prediction, labels))
    _show(_summary(model, prediction, labels), as_json=options.json)


def _read(path: Path, model: Model) -> tuple[dict[str, Array], Array | None]:
    """Return arrays by the names of the model's inputs, and labels where there are some."""
    found = _arrays(path)
    labels = found.pop(_LABELS, None)
    names = [spec.name for spec in model.manifest.inputs]
    if len(names) == len(found) == 1:
        found = {names[0]: next(iter(found.values()))}
    if set(found) != set(names):
        raise InputError(
            f"inputs {path} hold {sorted(found)} and do not fit: the model takes {names}. Store arrays by these names."
        )
    if any(array.ndim == 0 or not len(array) for array in found.values()):
        raise InputError(f"inputs {path} are empty: there is nothing to predict. Pass at least 1 sample.")
    if len({len(array) for array in found.values()}) != 1:
        counts = ", ".join(f"{len(found[name])} in {name!r}" for name in names)
        raise InputError(
            f"inputs {path} do not fit together: samples are {counts}, and every sample needs all inputs. Store arrays "
            "of one length."
        )
    return found, labels


def _arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of a file by name; the one of an ``.npy`` file has the name ``""``."""
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"inputs {path} are missing: there is no such file. Check the path.") from error
    with file:
        try:
            found = _loaded(file)
        except Exception as error:  # what NumPy and zipfile raise on damaged files has no common base
            raise InputError(
                f"inputs {path} cannot be read: {str(error) or type(error).__name__}. Write them with numpy.savez or "
                "numpy.save."
            ) from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"inputs {path} cannot be read: {name!r} is no array. Write them with numpy.savez.")
    return found


def _loaded(file: BinaryIO) -> dict[str, Array]:
    opened = np.load(file, allow_pickle=False)
    if isinstance(opened, np.ndarray):
        return {"": opened}
    with opened:
        return {name: opened[name] for name in opened.files}


def _batches(model: Model, inputs: dict[str, Array], count: int, size: int) -> Iterator[dict[str, Array]]:
    """Yield batches; raw images are prepared where the model takes none."""
    for first in range(0, count, size):
        batch = {name: array[first : first + size] for name, array in inputs.items()}
        for spec in model.manifest.inputs:
            raw = batch[spec.name].dtype == np.uint8 != spec.dtype
            if raw and model.manifest.preparation is not None:
                batch[spec.name] = model.prepare(batch[spec.name])
        yield batch


def _summary(model: Model, prediction: Prediction, labels: Array | None) -> dict[str, Any]:
    """Return where the samples left, what that cost, and how many were right if that is known."""
    count, costs = len(prediction.exit_index), model.manifest.costs
    return {
        "num_samples": count,
        "engine": model.manifest.engine,
        "unit": None if costs is None else costs.unit,
        "mean_cost": None if prediction.cost is None else float(prediction.cost.mean()),
        "exit_distribution": (np.bincount(prediction.exit_index, minlength=model.num_exits) / count).tolist(),
        "accuracy": None if labels is None else float((prediction.labels == labels).mean()),
    }


def _rows(model: Model, prediction: Prediction, labels: Array | None) -> Iterator[dict[str, Any]]:
    """Yield one row per sample."""
    classes, found = model.manifest.classes, prediction.labels
    for i, (k, label) in enumerate(zip(prediction.exit_index.tolist(), found.tolist(), strict=True)):
        row = {"sample": i, "prediction": label, "class": label if classes is None else classes[label]}
        row["probability"] = float(np.exp(np.float64(prediction.log_probs[i, label])))
        row |= {"exit": k, "cost": None if prediction.cost is None else float(prediction.cost[i])}
        if labels is not None:
            row |= {"label": int(labels[i]), "right": bool(labels[i] == label)}
        yield row


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    try:
        with open(handle, "w", newline="", encoding="utf-8") as file:
            first = next(rows)
            writer = csv.DictWriter(file, list(first))
            writer.writeheader()
            writer.writerow(first)
            writer.writerows(rows)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _show(summary: dict[str, Any], *, as_json: bool) -> None:
    """Print the summary."""
    if as_json:
        sys.stdout.write(json.dumps(summary, allow_nan=False) + "\n")
        return
    shares = " ".join(f"{100 * share:.1f}" for share in summary["exit_distribution"])
    lines = [("samples", summary["num_samples"]), ("left at exits, %", shares)]
    if summary["mean_cost"] is not None:
        lines.append((f"mean cost ({summary['unit']})", f"{summary['mean_cost']:.4g}"))
    if summary["accuracy"] is not None:
        lines.append(("accuracy", f"{100 * summary['accuracy']:.2f} %"))
    width = max(len(name) for name, _ in lines)
    sys.stdout.write("".join(f"{name:<{width}}  {value}\n" for name, value in lines))


if __name__ == "__main__":
    sys.exit(main())
