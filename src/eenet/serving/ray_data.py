"""A model over a data set of Ray: one step per stage, each with workers of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eenet.errors import InputError, require
from eenet.running.adaptive import AdaptiveModel
from eenet.running.exports import OpenedExport, open_export
from eenet.running.loop import Prediction
from eenet.serving.answers import Answer, as_answer
from eenet.serving.service import content_ids
from eenet.serving.stages import Outcome, Parcel, Stage, asked_of_dial
from eenet.tables.checks import number
from eenet.tables.costs import BudgetLike

if TYPE_CHECKING:
    from ray.data import Dataset

_STATE, _ID = "eenet_state", "sample_id"
_ANSWERS = tuple(one.name for one in fields(Answer))


def predict_dataset(
    dataset: Dataset,
    export: str | os.PathLike[str],
    budget: BudgetLike | None = None,
    *,
    batch_size: int = 256,
    workers: int = 1,
    num_cpus: float = 0.1,
    threads: int = 1,
) -> Dataset:
    """Return a data set of Ray with the answers of a model, in the same order; nothing runs before it is read.

    There is one ``map_batches`` per stage, and each has workers of its own, with the weights of that stage only.
    Samples that left travel on with their answer. Exits and answers are those of `AdaptiveModel` given the same sample
    ids, up to the rounding of other batches.

    Args:
        dataset: Its columns are the model's inputs, by name (of a model of one input, ``images`` too, see
            `OpenedExport.samples`); others stay. ``sample_id``, whole numbers, names samples for policies that toss a
            coin; default: a hash of their content.
        export: The folder of an export; every machine of the cluster finds it at this path.
        budget: A mean cost per sample; default: the export's own policy decides.
        batch_size: Samples per batch.
        workers: Of each stage.
        num_cpus: What Ray sets aside for each worker.
        threads: Of the engine of each worker.

    Returns:
        The columns that were no inputs, and ``label``, ``probabilities``, ``exit``, ``cost``, ``score``.

    Raises:
        BundleError, BudgetError, InputError: It is no export of a whole model, or the budget cannot be set.
        MissingExtraError: The engine is not installed.
    """
    require("ray", reason="predict_dataset needs it")
    from ray.data import ActorPoolStrategy

    folder = Path(export).resolve()
    opened = open_export(folder, threads)
    model = AdaptiveModel(opened.engine, opened.policy, opened.costs, dial=opened.dial, check_source=False)
    size = int(number(batch_size, "batch_size", 1, whole=True))
    settings: dict[str, Any] = {
        "batch_size": size,
        "batch_format": "numpy",
        "compute": ActorPoolStrategy(size=int(number(workers, "workers", 1, whole=True))),
        "num_cpus": number(num_cpus, "num_cpus", 0),
    }
    asked = None if budget is None else asked_of_dial(model, budget)
    for k in range(opened.engine.num_exits):
        given = {"export": str(folder), "index": k, "budget": asked, "threads": threads}
        dataset = dataset.map_batches(Step, fn_constructor_kwargs=given, **settings)
    dataset.context.execution_options.preserve_order = True
    return dataset


class Step:
    """Runs one stage on batches of rows: those that left before pass, with their answers.

    Args:
        export: The folder of the whole export.
        index: Of the stage.
        budget: In the unit of the dial, see `Parcel`.
        threads: Of its engine.
    """

    def __init__(self, export: str, index: int, budget: float | None, threads: int) -> None:
        self._stage, self._budget = Stage(export, index, threads), budget

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the rows after this stage."""
        stage = self._stage
        columns, parcels = self._first(dict(batch)) if stage.index == 0 else self._later(dict(batch))
        rows = [row for row, one in enumerate(parcels) if one is not None]
        outcomes = stage.run([one for one in parcels if one is not None]) if rows else []
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        states = np.full(len(parcels), b"", dtype=object)
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome.rest is not None:
                states[row] = outcome.rest.state
        left = [(row, one) for row, one in zip(rows, outcomes, strict=True) if one.rest is None]
        columns = self._answered(columns, left, len(parcels))
        return columns if stage.index == stage.num_exits - 1 else columns | {_STATE: states}

    def _first(self, batch: dict[str, Any]) -> tuple[dict[str, Any], list[Parcel | None]]:
        """Return the other columns, and what each row is to the first stage."""
        opened = self._stage.opened
        given = batch.pop(_ID, None)
        inputs = taken(opened, batch)
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        ids = content_ids(arrays if len(arrays) > 1 else next(iter(arrays.values()))) if given is None else given
        columns = {name: array for name, array in batch.items() if name not in _ANSWERS}
        return columns, [
            Parcel(
                ids=np.asarray(ids[row : row + 1], dtype=np.int64),
                inputs={name: array[row : row + 1] for name, array in arrays.items()},
                budget=self._budget,
            )
            for row in range(len(ids))
        ]

    def _later(self, batch: dict[str, Any]) -> tuple[dict[str, Any], list[Parcel | None]]:
        """Return the other columns, and what each row is to a later stage; None: it has left."""
        states = batch.pop(_STATE)
        return batch, [
            Parcel(ids=np.zeros(1, dtype=np.int64), state=bytes(one), budget=self._budget) if one else None
            for one in states
        ]

    def _answered(self, columns: dict[str, Any], left: Sequence[tuple[int, Outcome]], count: int) -> dict[str, Any]:
        """Return the columns with the answers of the rows that leave here."""
        num_classes, costs = self._stage.opened.manifest.num_classes, self._stage.opened.costs
        if "exit" not in columns:
            columns["label"], columns["exit"] = np.full(count, -1), np.full(count, -1)
            columns["probabilities"] = np.zeros((count, num_classes), dtype=np.float32)
            columns["cost"], columns["score"] = np.full(count, np.nan), np.zeros(count)
        if not left:
            return columns
        rows = [row for row, _ in left]
        log_probs = np.concatenate([one.log_probs for _, one in left if one.log_probs is not None])
        exits = np.full(len(rows), self._stage.index)
        cost = None if costs is None else np.full(len(rows), costs.cumulative[self._stage.index])
        found = as_answer(Prediction(exit_index=exits, log_probs=log_probs, outputs=log_probs, cost=cost))
        for name in _ANSWERS:
            column = np.array(columns[name])  # those of Ray cannot be written to
            column[rows] = getattr(found, name)
            columns[name] = column
        return columns


def taken(opened: OpenedExport, batch: dict[str, Any]) -> Mapping[str, np.ndarray]:
    """Take the inputs of a model out of the columns of a batch, prepared where they are raw pictures.

    Raises:
        InputError: They are not there; else as of `OpenedExport.samples`.
    """
    names = [one.name for one in opened.manifest.inputs]
    if len(names) == 1 and names[0] not in batch:
        names = [next((name for name in ("inputs", "images") if name in batch), names[0])]
    if missing := [name for name in names if name not in batch]:
        raise InputError(
            f"columns {sorted(batch)} do not fit: the model takes {missing[0]!r}. Rename the column that has it."
        )
    inputs, _ = opened.samples({name: batch.pop(name) for name in names}, "of the data set")
    return next(opened.batches(inputs, len(next(iter(inputs.values())))))
