"""`ExitTable`: the outputs of every exit for every sample. All schedulers and evaluations work on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from eenet.errors import InputError, TableError
from eenet.tables import changes, checks, storage
from eenet.tables.arrays import CHUNK, as_array, history, log_softmax
from eenet.tables.changes import BY_SAMPLE, NUMBERED
from eenet.tables.costs import CostTable
from eenet.tables.display import few, frame, samples

if TYPE_CHECKING:
    import pandas

_BY_EXIT = ("logits", "features", "utility", "cost")


@dataclass(frozen=True, eq=False, kw_only=True)
class ExitTable:
    """Outputs of all exits on a set of samples, with their utility and their cost.

    Arrays may be anything `numpy.asarray` takes, or tensors of any type on any device.

    Attributes:
        logits: ``[sample, exit, class]``: raw outputs; any floating type, possibly memory-mapped. Log-probabilities
            serve as well; minus infinity is an impossible class.
        features: ``[sample, exit, column]``, in place of logits where there are no classes: numbers that policies
            decide by, such as a router's score or a regressor's hidden features. Then ``utility`` is needed, and
            policies say where to leave but answer nothing.
        feature_names: One per column; confidences are looked up among them.
        labels: ``[sample]``: class of each sample, where known.
        utility: ``[sample, exit]`` in [0, 1]: how good the answer of each exit is. Derived from labels (1 where the
            most probable class is right, else 0) unless given; None where neither is known.
        group: ``[sample]``: whole numbers or texts, of samples that belong together: images of one street, sentences of
            one document, answers of one patient. Samples of one group are never on both sides of a split; see
            `eenet.schedulers.base.folds_of`. None: each sample is independent of the others.
        cost: ``[sample, exit]``: cumulative, where cost differs from sample to sample. No policy reads it.
        costs: What leaving at each exit costs; of per-sample costs the means, with the unit of what is given here.
        exit_names: One per exit, where exits have names, such as those of models asked one after the other; see
            `separate`.
        split: Name of the split the samples come from.
        source: Fingerprint of the model that was recorded; empty where it is not known.
        transform: Applied to the log-probabilities whenever they are read; see `transformed`.

    Raises:
        TableError: Values that cannot be used; the message names key and row.
        ShapeError: Arrays whose shapes disagree.

    Example:
        >>> table = ExitTable(logits=[[[2.0, 0.0], [3.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]], labels=[0, 1])
        >>> table.utility
        array([[1., 1.],
               [0., 1.]])
    """

    # plain types: __post_init__ checks shapes itself, with messages that name key and row
    logits: Any = None
    features: Any = None
    feature_names: tuple[str, ...] = ()
    labels: Any = None
    utility: Any = None
    cost: Any = None
    group: Any = None
    costs: CostTable | None = None
    exit_names: tuple[str, ...] = ()
    split: str = ""
    source: str = ""
    transform: Callable[[np.ndarray], np.ndarray] | None = None

    def __post_init__(self) -> None:
        given = {key: checks.array_of(key, getattr(self, key)) for key in BY_SAMPLE if getattr(self, key) is not None}
        names = checks.names_of(self.feature_names)
        for key in ("split", "source"):
            checks.names_of([getattr(self, key)], key)
        self._set(feature_names=names, **checks.checked(given, names))
        self._set(exit_names=checks.exit_names_of(self.exit_names, self.num_exits))
        if self.utility is None and not self.has_classes:
            raise TableError("utility is missing: features name no class, so how good answers are must be given.")
        if self.utility is None and self.labels is not None:
            self._set(utility=self._right().astype(np.float64), utility_is_accuracy=True)
        if self.costs is not None and not isinstance(self.costs, CostTable):
            raise TableError(
                f"costs of type {type(self.costs).__name__} have no unit: pass costs=CostTable(cumulative, unit), with "
                "cost=[sample, exit] where it differs from sample to sample."
            )
        if self.costs is not None:
            self.costs.require(self.num_exits, "the table")
        if self.cost is not None:
            means = np.ascontiguousarray(self.cost.T).mean(axis=1)  # each as of an exit at which all leave, to the bit
            unit, reference = ("units", None) if self.costs is None else (self.costs.unit, self.costs.reference)
            self._set(costs=CostTable(tuple(means.tolist()), unit, reference))

    def _set(self, **values: Any) -> None:  # noqa: ANN401 - attributes, by name
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def outputs(self) -> np.ndarray:
        """The logits or the features, as recorded."""
        return as_array(self.features if self.logits is None else self.logits)

    @property
    def has_classes(self) -> bool:
        """Whether outputs are logits, which answer the sample; features do not."""
        return self.logits is not None

    @property
    def separate(self) -> bool:
        """Whether exits are models by themselves, asked one after the other: those that have names of their own are.

        What leaving at one costs more than leaving at the one before is then what it costs alone.
        """
        return bool(self.exit_names) and self.exit_names[0] != NUMBERED.format(0)

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return int(self.outputs.shape[0])

    @property
    def num_exits(self) -> int:
        """Number of exits, the original output included."""
        return int(self.outputs.shape[1])

    @cached_property
    def group_index(self) -> Int[np.ndarray, " sample"]:
        """Number of every sample's group, from 0; where none are given, every sample is its own."""
        if self.group is None:
            return np.arange(self.num_samples)
        return np.unique(self.group, return_inverse=True)[1].astype(np.int64)

    @property
    def num_groups(self) -> int:
        """Number of groups; where none are given, of samples."""
        return self.num_samples if self.group is None else int(self.group_index.max()) + 1

    @property
    def num_columns(self) -> int:
        """Number of classes, or of features."""
        return int(self.outputs.shape[2])

    def seen(self, rows: slice | np.ndarray = slice(None)) -> Float32[np.ndarray, "row exit column"]:
        """Return what policies see of some rows: float32 log-probabilities, or features."""
        if not self.has_classes:
            return np.ascontiguousarray(self.features[rows], dtype=np.float32)
        log_probs = log_softmax(self.logits[rows])
        return log_probs if self.transform is None else history(self.transform, log_probs)

    def seen_at(self, rows: slice | np.ndarray, k: int) -> Float32[np.ndarray, "row column"]:
        """Return the same of exit ``k`` only, reading no later one."""
        if not self.has_classes:
            return np.ascontiguousarray(self.features[rows, k], dtype=np.float32)
        if self.transform is None:
            return log_softmax(self.logits[rows, k])
        return self.transform(log_softmax(self.logits[rows, : k + 1]))

    def chunks(self) -> Iterator[slice]:
        """Yield slices of rows that cover the table and keep the memory of one chunk bounded."""
        step = max(1, CHUNK // (self.num_exits * self.num_columns))
        for start in range(0, self.num_samples, step):
            yield slice(start, min(start + step, self.num_samples))

    def require_utility(self, what: str) -> Float64[np.ndarray, "sample exit"]:
        """Return the utility.

        Raises:
            TableError: The table has neither labels nor utility; the message names ``what`` needs it.
        """
        if self.utility is None:
            raise TableError(f"{self.name} lacks labels: {what} needs 'labels' or 'utility'. Add either.")
        return as_array(self.utility)

    def require_labels(self, what: str, why: str) -> np.ndarray:
        """Return the labels, with outputs that name classes.

        Raises:
            TableError: The table has no labels, or features in place of logits; it says ``what`` needs labels, and why.
        """
        if self.labels is None or not self.has_classes:
            raise TableError(f"{self.name} lacks labels: {what} needs 'logits' and 'labels', for {why}. Add them.")
        return as_array(self.labels)

    def require_costs(self) -> CostTable:
        """Return the costs; a `TableError` where the table carries none."""
        if self.costs is None:
            raise TableError(
                "costs are missing: the table has no key 'costs' and none were given. Add the keys 'costs' and "
                "'cost_unit', or pass costs (on the command line --costs)."
            )
        return self.costs

    @property
    def name(self) -> str:
        """How messages call the table."""
        return f"table {self.split or '(unnamed)'!r}"

    def with_costs(self, costs: CostTable | None) -> ExitTable:
        """Return the table with the costs given, the same for every sample; None: with its own.

        Raises:
            TableError: Neither is there.
            ShapeError: Costs of another number of exits.
        """
        if costs is not None:
            checks.instance(costs, CostTable, "costs")
        return self if (costs or self.require_costs()) is self.costs else replace(self, costs=costs, cost=None)

    @cached_property
    def leaving_costs(self) -> Float64[np.ndarray, "sample exit"]:
        """What leaving at each exit costs each sample; a `TableError` where no costs are known."""
        if self.cost is not None:
            return as_array(self.cost)
        cumulative = np.array(self.require_costs().cumulative)
        return np.broadcast_to(cumulative, (self.num_samples, self.num_exits))

    def transformed(self, transform: Callable[[np.ndarray], np.ndarray]) -> ExitTable:
        """Return the same samples with outputs that a `Transform` changes whenever they are read.

        The utility is that of the transformed answers. It is unknown (and labels are dropped with it) where the
        table's own utility is not simply whether the answer is right.

        Raises:
            InputError: The table is transformed already, or has features in place of logits.
        """
        checks.instance(transform, Callable, "transform", "Pass a Transform.")  # type: ignore[arg-type]
        if self.transform is not None or not self.has_classes:
            raise InputError(
                "table is transformed already, or has no logits: a transform reads the log-probabilities of the model. "
                "Use one transform that does both."
            )
        labels = self.labels if self.utility_is_accuracy else None
        return replace(self, transform=transform, labels=labels, utility=None)

    @cached_property
    def utility_is_accuracy(self) -> bool:
        """Whether utility is 1 where an exit's most probable class is the label, and 0 elsewhere."""
        known = self.labels is not None and self.utility is not None and self.has_classes
        return known and bool(np.array_equal(self.utility, self._right()))

    @property
    def combinable(self) -> bool:
        """Whether exits may be combined: utility is whether answers are right, and nothing transforms them yet."""
        return self.transform is None and self.utility_is_accuracy

    def __repr__(self) -> str:
        """Say what the table contains."""
        parts = [f"{samples(self.num_samples)}", f"{self.num_exits} exits"]
        parts.append(f"{self.num_columns} {'classes' if self.has_classes else 'features'}")
        said = "".join(f" and {key}" for key in ("labels", "utility", "cost") if getattr(self, key) is not None)
        costs = "" if self.costs is None else f"; leaving costs {few(self.costs.cumulative)} {self.costs.unit}"
        if self.group is not None:
            parts[0] += f" in {self.num_groups} groups"
        return f"ExitTable {self.split or '(unnamed)'!r} of {', '.join(parts)}{said}{costs}"

    def to_frame(self) -> pandas.DataFrame:
        """Return utility and cost of every sample at every exit, one row each, as far as they are known.

        Returns:
            Columns ``sample``, ``exit``, ``exit_name``, ``utility``, ``cost``, ``label``, ``group``; those not known
            are left out.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return frame(changes.long_columns(self))

    def select(self, rows: slice | np.ndarray | Sequence[int]) -> ExitTable:
        """Return the table of some rows: a slice, their numbers, in that order, or a mask.

        Raises:
            InputError: No rows, one that is not there, or a mask of another length.
        """
        return replace(self, **self._picked(BY_SAMPLE, checks.rows_of(rows, self.num_samples)))

    def until(self, exits: int, costs: CostTable | None = None) -> ExitTable:
        """Return the table of the first exits, at least 2, at their own costs or at others."""
        kept = int(checks.number(exits, "exits", 2, self.num_exits, whole=True))
        return self._with_exits(list(range(kept)), costs)

    def keeping(self, exits: Sequence[int], costs: CostTable | None = None) -> ExitTable:
        """Return the table of a model that has some of the exits only, as `MultiExitModel.without` makes it.

        ``exits`` are those that stay, in increasing order, the last one among them. Without ``costs`` those of this
        table count, as if the heads left out still ran; exits that are `separate` are left out with their costs.

        Raises:
            InputError: The exits are no such choice, or the table is transformed.
        """
        kept = [int(checks.number(k, "exits", whole=True)) for k in checks.listed(exits, "exits")]
        last = self.num_exits - 1
        if kept != sorted(set(kept)) or len(kept) < 2 or kept[0] < 0 or kept[-1] != last:
            raise InputError(
                f"exits {kept} cannot be kept: at least 2 of 0 to {last} are needed, in increasing order, with the "
                "last one. Name them so."
            )
        if self.transform is not None:
            raise InputError("table is transformed: exits are chosen among those of the model. Choose them first.")
        return self._with_exits(kept, costs)

    def _with_exits(self, kept: list[int], costs: CostTable | None) -> ExitTable:
        return replace(self, **self._picked(_BY_EXIT, (slice(None), kept)) | changes.kept_exits(self, kept, costs))

    def with_fallback(self, *, cost: object, utility: object = 1.0, name: str = "fallback") -> ExitTable:
        """Return the table with one more exit, the last: whoever gets there is passed on, such as to a person.

        A policy fitted on it answers by itself up to the exit before. A sample that gets to the last one was not
        answered: pass it on. What is recorded there repeats the exit before, and no policy decides by it; what it is
        worth is given here, so labels no longer value the last exit, and exits are not combined (`combinable`).

        Args:
            cost: What passing on costs on top of the last exit: a number in the unit of the costs, or one per sample.
            utility: Of what comes back, in [0, 1]: a number, or one per sample. 1: always right.
            name: Of the new exit; the others have their number where they have no names.

        Raises:
            TableError: The table has no costs or no utility, or cost or utility cannot be used.
            InputError: The table is transformed.
        """
        if self.transform is not None:
            raise InputError("table is transformed: a fallback is an exit of the model. Add it first.")
        return replace(self, **changes.with_last(self, cost, utility, name))

    def _picked(self, keys: Sequence[str], index: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever numpy takes
        return {key: None if getattr(self, key) is None else getattr(self, key)[index] for key in keys}

    @classmethod
    def concat(cls, tables: Sequence[ExitTable]) -> ExitTable:
        """Return one table with the rows of all, in order; costs, split and transform are those of the first.

        Raises:
            ShapeError: The tables differ in exits or columns.
            TableError: A key is present in some tables only; or names, sources or the units of costs per sample differ.
        """
        tables = [checks.instance(table, cls, "table") for table in checks.listed(tables, "tables")]
        pooled = changes.joined(tables)
        return replace(tables[0], **pooled)

    @classmethod
    def from_probs(cls, probs: object, **others: Any) -> ExitTable:  # noqa: ANN401 - the other attributes
        """Build a table from probabilities ``[sample, exit, class]`` instead of logits, and the other attributes.

        Each row of each exit sums to 1 within 1e-3; zeros are clamped to the smallest float32.

        Raises:
            TableError: Probabilities that are negative or do not sum to 1.
        """
        return cls(logits=checks.logits_of(checks.array_of("probs", probs)), **others)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExitTable:
        """Read a table from an ``.npz`` file or from a folder of ``.npy`` files, which is memory-mapped.

        Keys: ``logits``, ``probs`` or ``features`` (with ``feature_names``), ``labels``, ``utility``, ``group``,
        ``costs`` (``[exit]`` or ``[sample, exit]``), ``cost_unit``, ``cost_reference``, ``exit_names``, ``split``,
        ``source``. Other keys are ignored. Nothing is ever unpickled. Probabilities are converted while loading and
        then take memory; store logits to work on tables larger than memory.

        Raises:
            TableError: The file is missing, damaged or holds objects, or its content is no usable table.
        """
        kind, outputs, others = storage.parts_of(path)
        return cls.from_probs(outputs, **others) if kind == "probs" else cls(**others | {kind: outputs})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table, atomically: an ``.npz`` file if the name ends so, else a folder of ``.npy`` files.

        Raises:
            InputError: The table is transformed: files contain what the model returned.
        """
        if self.transform is not None:
            raise InputError(
                "table is transformed: files contain what the model returned. Save the table it was made from."
            )
        keys = ("logits", "features", "labels", "utility", "group")
        arrays = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        arrays |= {"split": np.array(self.split), "source": np.array(self.source)}
        for key in ("feature_names", "exit_names"):
            if getattr(self, key):
                arrays[key] = np.array(getattr(self, key))
        if self.costs is not None:
            arrays |= storage.cost_arrays(self.costs, self.cost)
        storage.write(path, arrays)

    def _right(self) -> Bool[np.ndarray, "sample exit"]:
        """Return where the class that a policy would answer with, the first of the most probable, is the label."""
        right = np.empty((self.num_samples, self.num_exits), dtype=np.bool_)
        for rows in self.chunks():
            right[rows] = self.seen(rows).argmax(axis=2) == self.labels[rows, None]
        return right
