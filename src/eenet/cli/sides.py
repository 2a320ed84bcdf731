"""The two tables of a comparison: as given, or halves of one, with what belongs to the samples of TEST."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eenet.cli.loading import Costs, read_groups
from eenet.errors import TableError
from eenet.schedulers.base import sides_of
from eenet.tables.outcomes import SUFFIXES, outcome_groups
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    from eenet.evaluation import StaticModel
    from eenet.evaluation.segmentation import Confusion


@dataclass(frozen=True, eq=False)
class Sides:
    """What a comparison is made of.

    Attributes:
        val: Calibration set.
        test: Test set.
        path: The file that TEST is in.
        rows: Which of its rows.
        note: How one table was split; empty where there were two.
    """

    val: ExitTable
    test: ExitTable
    path: Path
    rows: slice | np.ndarray = field(default_factory=lambda: slice(None))
    note: str = ""

    @classmethod
    def read(cls, costs: Costs, val: Path, test: Path | None, seed: int) -> Sides:
        """Read two tables, or one and split it in halves at random.

        Raises:
            TableError: There is one table, of 1 sample.
        """
        first = costs.read_table(val)
        if test is not None:
            return cls(first, costs.read_table(test, first.require_costs().unit), test)
        samples = first.num_samples
        if samples < 2:
            raise TableError("VAL of 1 sample is too small: one half fits, the other judges. Give more, or a TEST.")
        fitting, judging = map(np.sort, sides_of(first.group_index, samples // 2, seed))
        note = (
            f"There is no TEST: {len(fitting)} of the {samples} rows of VAL, chosen at random (seed {seed}), fit, the "
            f"other {len(judging)} judge. Means over redrawn halves: --splits."
        )
        return cls(first.select(fitting), first.select(judging), val, judging, note)

    def confusion(self) -> Confusion | None:
        """Return the confusion counts of TEST, where it was recorded from maps."""
        from eenet.evaluation.segmentation import find_confusion

        found = None if self.path.suffix.lower() in SUFFIXES else find_confusion(self.path)
        return None if found is None else found[self.rows]

    def groups(self, path: Path | None, *, splits: int) -> np.ndarray | None:
        """Return the groups of TEST, one per row of it or of its file; by default those of an outcome table."""
        if path is not None:
            found = read_groups(path)
            return found[self.rows] if len(found) == self._whole else found
        own = outcome_groups(self.path) if splits == 1 and self.path.suffix.lower() in SUFFIXES else None
        return None if own is None else own[self.rows]

    def statics(self, models: Sequence[StaticModel], *, splits: int) -> list[StaticModel]:
        """Return models on the samples of TEST, where they are known for these; of several splits only their means."""
        if splits > 1:
            return [replace(one, utilities=None) for one in models]
        return [self._static(model) for model in models]

    def _static(self, model: StaticModel) -> StaticModel:
        if model.utilities is None or len(model.utilities) != self._whole:
            return model
        known = model.utilities[self.rows]
        return replace(model, utility=float(known.mean()), utilities=known)

    @property
    def _whole(self) -> int:
        """How many rows the file has that TEST is in."""
        split = isinstance(self.rows, np.ndarray)
        return self.test.num_samples + (self.val.num_samples if split else 0)
