"""`ExitTable`: what every exit said about every sample. All schedulers and evaluations speak it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.core import table_files
from eenet.core.costs import CostTable
from eenet.core.transform import Transform
from eenet.errors import InputError, ShapeError, TableError

__all__ = ["ExitTable"]

_CHUNK_BYTES = 1 << 22  # of float32 log-probabilities worked on at a time
_PROBS_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class ExitTable:
    """Outputs of all exits on a set of samples, with what they were worth.

    Attributes:
        logits: ``[sample, exit, class]``: raw outputs; any floating type, possibly memory-mapped. Log-probabilities
            serve as well.
        labels: ``[sample]``: class of each sample, where known.
        utility: ``[sample, exit]`` in [0, 1]: what it is worth to answer at each exit. Derived from labels (1 where the
            largest logit is right) unless given; None where neither is known.
        features: ``[sample, exit, feature]``: what schedulers may use besides logits, for example the pooled embedding
            at each exit.
        confidence: ``[sample, exit]``: a ready-made confidence of each exit (dense tasks: the mean over pixels).
        costs: What leaving at each exit costs, where known.
        split: Name of the split the samples come from.
        transform: What is made of the log-probabilities whenever they are read; see `transformed`.

    Raises:
        TableError: Values that cannot be used; the message names key and row.
        ShapeError: Arrays whose shapes disagree.

    Example:
        >>> table = ExitTable(
        ...     logits=torch.tensor([[[2.0, 0.0], [3.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]), labels=torch.tensor([0, 1])
        ... )
        >>> table.utility
        tensor([[1., 1.],
                [0., 1.]])
    """

    # plain types: __post_init__ checks shapes itself, with messages that name key and row
    logits: Tensor
    labels: Tensor | None = None
    utility: Tensor | None = None
    features: Tensor | None = None
    confidence: Tensor | None = None
    costs: CostTable | None = None
    split: str = ""
    transform: Transform | None = None

    def __post_init__(self) -> None:
        """Check everything once, where it enters, and derive the utility."""
        for key in ("logits", "labels", "utility", "features", "confidence"):
            if getattr(self, key) is not None:
                object.__setattr__(self, key, torch.as_tensor(getattr(self, key)))
        _check_shapes(self)
        labels = self.labels
        if labels is not None:
            _check_labels(labels, self.num_classes)
            object.__setattr__(self, "labels", labels.long())
        for key in ("logits", "utility", "features", "confidence"):
            _check_finite(key, getattr(self, key))
        if self.utility is not None:
            _check_utility(self.utility)
        elif labels is not None:
            object.__setattr__(self, "utility", self._right(labels))
        if self.costs is not None and self.costs.num_exits != self.num_exits:
            raise ShapeError(
                f"costs of {self.costs.num_exits} exits do not fit: logits have {self.num_exits} exits. Give one each."
            )

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return self.logits.shape[0]

    @property
    def num_exits(self) -> int:
        """Number of exits, the original output included."""
        return self.logits.shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.logits.shape[2]

    def log_probs(self, rows: slice | Tensor) -> Float[Tensor, "row exit class"]:
        """Return float32 log-probabilities of some rows, the only form in which policies see outputs."""
        log_probs = torch.log_softmax(self.logits[rows].float(), dim=-1)
        return log_probs if self.transform is None else self.transform.history(log_probs)

    def log_probs_at(self, rows: slice | Tensor, k: int) -> Float[Tensor, "row class"]:
        """Return the same of one exit only, reading no later one."""
        if self.transform is None:
            return torch.log_softmax(self.logits[rows, k].float(), dim=-1)
        newest: Tensor = self.transform(torch.log_softmax(self.logits[rows, : k + 1].float(), dim=-1))
        return newest

    def chunks(self) -> Iterator[slice]:
        """Yield slices of rows that cover the table and keep the memory of one chunk bounded."""
        step = max(1, _CHUNK_BYTES // (4 * self.num_exits * self.num_classes))
        for start in range(0, self.num_samples, step):
            yield slice(start, min(start + step, self.num_samples))

    def require_utility(self, what: str) -> Float[Tensor, "sample exit"]:
        """Return the utility as float64.

        Args:
            what: What needs it ("fitting max_prob"), for the message.

        Raises:
            TableError: The table has neither labels nor utility.
        """
        if self.utility is None:
            raise TableError(
                f"table {self.split or '(unnamed)'!r} lacks labels: {what} needs 'labels' or 'utility'. Add either."
            )
        return self.utility.double()

    def require_costs(self) -> CostTable:
        """Return the costs.

        Raises:
            TableError: The table carries none.
        """
        if self.costs is None:
            raise TableError(
                "costs are missing: the table has no key 'costs' and none were given. Add it, or pass costs."
            )
        return self.costs

    def with_costs(self, costs: CostTable) -> ExitTable:
        """Return the same table with other costs."""
        return replace(self, costs=costs)

    def transformed(self, transform: Transform) -> ExitTable:
        """Return the same samples with what a transform makes of their outputs, worked out when it is read.

        The utility is that of the transformed answers. It is unknown (and labels are dropped with it) where the
        table's own utility is not simply whether the answer is right.

        Raises:
            InputError: The table is transformed already.
        """
        if self.transform is not None:
            raise InputError(
                "table is transformed already: a second transform would see what the first one made. Use one "
                "transform that does both."
            )
        labels = self.labels if self.utility_is_accuracy else None
        return replace(self, transform=transform, labels=labels, utility=None, confidence=None)

    @cached_property
    def utility_is_accuracy(self) -> bool:
        """Whether utility is 1 where an exit's largest logit is the label, and 0 elsewhere."""
        return self.labels is not None and self.utility is not None and self.utility.equal(self._right(self.labels))

    @property
    def combinable(self) -> bool:
        """Whether exits may be combined: utility is whether answers are right, and nothing transforms them yet."""
        return self.transform is None and self.utility_is_accuracy

    @cached_property
    def holds_summaries(self) -> bool:
        """Whether what exits say names no class: no labels, and all outputs in order, as summaries of maps are."""
        if self.labels is not None:
            return False
        return all(bool((self.logits[rows].diff(dim=2) <= 0).all()) for rows in self.chunks())

    def select(self, rows: slice | Int[Tensor, " row"]) -> ExitTable:
        """Return the table of some rows, in that order."""
        picked: dict[str, Any] = {
            key: None if getattr(self, key) is None else getattr(self, key)[rows]
            for key in ("logits", "labels", "utility", "features", "confidence")
        }
        return replace(self, **picked)

    def keeping(self, exits: Sequence[int], costs: CostTable | None = None) -> ExitTable:
        """Return the table of a model that has some of the exits only, as `MultiExitModel.without` makes it.

        Args:
            exits: Those that stay, in increasing order, the last one among them.
            costs: Of leaving there; default: those of this table, as if the heads left out still ran.

        Raises:
            InputError: The exits are no such choice, or the table is transformed.
        """
        kept, last = list(exits), self.num_exits - 1
        if kept != sorted(set(kept)) or len(kept) < 2 or kept[0] < 0 or kept[-1] != last:
            raise InputError(
                f"exits {kept} cannot be kept: at least 2 of 0 to {last} are needed, in increasing order, with the "
                f"last one. Name them so."
            )
        if self.transform is not None:
            raise InputError("table is transformed: exits are chosen among what the model said. Choose them first.")
        if costs is None and self.costs is not None:
            own = self.costs
            costs = CostTable(tuple(own.cumulative[k] for k in kept), own.unit, own.reference)
        picked: dict[str, Any] = {
            key: None if getattr(self, key) is None else getattr(self, key)[:, kept]
            for key in ("logits", "utility", "features", "confidence")
        }
        return replace(self, **picked, costs=costs)

    @classmethod
    def concat(cls, tables: Sequence[ExitTable]) -> ExitTable:
        """Return one table with the rows of all, in order; costs, split and transform are those of the first.

        Raises:
            ShapeError: The tables differ in exits or classes.
            TableError: A key is present in some tables only.
        """
        first = tables[0]
        for i, table in enumerate(tables):
            if table.logits.shape[1:] != first.logits.shape[1:]:
                raise ShapeError(
                    f"table {i} of shape {tuple(table.logits.shape)} does not fit: table 0 has {first.num_exits} "
                    f"exits and {first.num_classes} classes. Record both with the same model."
                )
        pooled: dict[str, Any] = {}
        for key in ("logits", "labels", "utility", "features", "confidence"):
            parts = [getattr(table, key) for table in tables]
            missing = [part is None for part in parts]
            if any(missing) and not all(missing):
                raise TableError(
                    f"{key} is missing in table {missing.index(True)}: another table has it. Give it in all or none."
                )
            pooled[key] = None if missing[0] else torch.cat(parts)
        return replace(first, **pooled)

    @classmethod
    def from_probs(cls, probs: Tensor, **others: Tensor | CostTable | str | None) -> ExitTable:
        """Build a table from probabilities instead of logits.

        Args:
            probs: ``[sample, exit, class]``; each row of each exit sums to 1 within 1e-3; zeros are clamped to the
                smallest float32.
            **others: The other attributes of the table.

        Raises:
            TableError: Probabilities that are negative or do not sum to 1.
        """
        probs = torch.as_tensor(probs)
        if probs.dim() != 3:
            raise ShapeError(
                f"probs of shape {tuple(probs.shape)} do not fit: [sample, exit, class] is needed. Reshape them."
            )
        _check_finite("probs", probs)
        logits = torch.empty(probs.shape, dtype=torch.float32)
        for start in range(0, probs.shape[0], 4096):
            part = probs[start : start + 4096].double()
            bad = (part < 0).any(dim=2) | ((part.sum(dim=2) - 1).abs() > _PROBS_TOLERANCE)
            if bad.any():
                row, k = (int(i) for i in bad.nonzero()[0])
                raise TableError(
                    f"probs of row {start + row}, exit {k}, sum to {float(part[row, k].sum()):g}: probabilities "
                    "are not negative and sum to 1 within 0.001. Normalise them, or pass the raw outputs as 'logits'."
                )
            logits[start : start + 4096] = part.clamp_min(torch.finfo(torch.float32).tiny).log().float()
        return cls(logits=logits, **others)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExitTable:
        """Read a table from an ``.npz`` file or from a folder of ``.npy`` files, which is memory-mapped.

        Keys: ``logits`` or ``probs``, ``labels``, ``utility``, ``costs``, ``cost_unit``, ``cost_reference``,
        ``features``, ``confidence``, ``split``. Other keys are ignored. Nothing is ever unpickled. Probabilities are
        converted while loading and then take memory; store logits to work on tables larger than memory.

        Raises:
            TableError: The file is missing, damaged or holds objects, or its content is no usable table.
        """
        arrays = table_files.read(path)
        costs = table_files.costs_of(arrays)
        split = str(arrays["split"]) if "split" in arrays else os.path.basename(os.fspath(path)).removesuffix(".npz")
        keys = ("labels", "utility", "features", "confidence")
        others = {key: _tensor(key, arrays[key]) for key in keys if key in arrays}
        if "logits" in arrays:
            return cls(logits=_tensor("logits", arrays["logits"]), costs=costs, split=split, **others)  # type: ignore[arg-type]
        if "probs" in arrays:
            return cls.from_probs(_tensor("probs", arrays["probs"]), costs=costs, split=split, **others)
        found = ", ".join(sorted(arrays)) or "none"
        raise TableError(
            f"table {path} lacks outputs: key 'logits' or 'probs' is needed, found {found}. Save one of them."
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table, atomically: an ``.npz`` file if the name ends so, else a folder of ``.npy`` files.

        Raises:
            InputError: The table is transformed: files hold what the model said.
        """
        if self.transform is not None:
            raise InputError("table is transformed: files hold what the model said. Save the table it was made from.")
        tensors = {key: getattr(self, key) for key in ("logits", "labels", "utility", "features", "confidence")}
        arrays = {key: value.detach().cpu().numpy() for key, value in tensors.items() if value is not None}
        arrays["split"] = np.array(self.split)
        if self.costs is not None:
            arrays |= table_files.cost_arrays(self.costs)
        table_files.write(path, arrays)

    def _right(self, labels: Tensor) -> Tensor:
        """Return 1 where an exit's largest logit is the label, else 0."""
        right = torch.empty(self.num_samples, self.num_exits)
        for rows in self.chunks():
            outputs = self.logits[rows] if self.transform is None else self.log_probs(rows)
            right[rows] = (outputs.argmax(dim=2) == labels[rows, None]).float()
        return right


def _tensor(key: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise TableError(
            f"{key} of type {array.dtype} cannot be used: numbers are needed. Save them as float32 or int64."
        )
    if array.dtype.kind == "f":
        wanted = np.dtype("float64") if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    else:  # torch reckons with these two only; what uint64 cannot keep becomes negative, and is refused as a label
        wanted = np.dtype("uint8" if array.dtype == np.uint8 else "int64")
    return torch.from_numpy(array.astype(wanted, copy=False))


def _check_shapes(table: ExitTable) -> None:
    if table.logits.dim() != 3:
        raise ShapeError(
            f"logits of shape {tuple(table.logits.shape)} do not fit: [sample, exit, class] is needed. Reshape them."
        )
    n, exits, classes = table.logits.shape
    if n == 0:
        raise TableError(f"logits of shape {(n, exits, classes)} hold no samples: at least 1 is needed. Record some.")
    if exits < 2:
        raise TableError(
            f"logits of shape {(n, exits, classes)} have {exits} exit: a choice needs at least 2. Attach an early exit."
        )
    if classes < 2:
        raise TableError(f"logits of shape {(n, exits, classes)} have {classes} class: at least 2 are needed.")
    wanted = {"labels": (n,), "utility": (n, exits), "confidence": (n, exits), "features": (n, exits, "any number")}
    for key, shape in wanted.items():
        value = getattr(table, key)
        if value is not None and (value.dim() != len(shape) or value.shape[: min(2, len(shape))] != shape[:2]):
            raise ShapeError(
                f"{key} of shape {tuple(value.shape)} does not fit: logits have {n} samples and {exits} exits, so "
                f"{shape} is needed."
            )


def _check_labels(labels: Tensor, classes: int) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TableError(
            f"labels of type {labels.dtype} cannot be used: class numbers are integers. Convert them to int64."
        )
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise TableError(
            f"labels of row {row}, {int(labels[row])}, is out of range: there are {classes} classes, 0 to "
            f"{classes - 1}. Correct it or drop the row."
        )


def _check_finite(key: str, values: Tensor | None) -> None:
    if values is None:
        return
    if not values.is_floating_point():
        raise TableError(
            f"{key} of type {values.dtype} cannot be used: floating point numbers are needed. Convert them to float32."
        )
    step = max(1, _CHUNK_BYTES // (4 * max(1, values[0].numel())))
    for start in range(0, values.shape[0], step):
        part = values[start : start + step].float()
        if not torch.isfinite(part).all():
            row = start + int((~torch.isfinite(part)).flatten(1).any(dim=1).nonzero()[0])
            raise TableError(
                f"{key} of row {row} holds NaN or infinity: every value must be a finite float32. Drop or repair "
                f"the row."
            )


def _check_utility(utility: Tensor) -> None:
    bad = ((utility < 0) | (utility > 1)).any(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise TableError(f"utility of row {row} is out of range: it must lie in [0, 1]. Rescale it.")
