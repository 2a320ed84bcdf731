"""The two sides of a comparison: what they must agree in, and how they are redrawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from eenet.core.costs import CostTable
from eenet.core.table import ExitTable
from eenet.errors import InputError, TableError
from eenet.evaluation.runs import BOUNDS
from eenet.schedulers.base import Scheduler

__all__ = ["agreed_costs", "check_sides", "draw_sides"]

_COST_TOLERANCE = 1e-6  # files may hold float32


def agreed_costs(val: ExitTable, test: ExitTable, costs: CostTable | None) -> CostTable:
    """Return the costs both sides are judged by."""
    if costs is not None:
        if costs.num_exits != val.num_exits:
            raise TableError(
                f"costs of {costs.num_exits} exits do not fit: the tables have {val.num_exits}. Give one per exit."
            )
        return costs
    first, second = val.costs, test.costs
    if first is None or second is None:
        if first is None and second is None:
            raise TableError("costs None are missing: neither VAL nor TEST has costs. Pass costs=CostTable(...).")
        return first or second  # type: ignore[return-value]  # one of them is there
    if first.unit != second.unit:
        raise TableError(
            f"VAL and TEST disagree in cost_unit: {first.unit} and {second.unit}. Record both with one profile."
        )
    exits = [
        (f"costs of exit {k}", *pair) for k, pair in enumerate(zip(first.cumulative, second.cumulative, strict=True))
    ]
    for key, a, b in (*exits, ("cost_reference", first.reference, second.reference)):
        if not (a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=_COST_TOLERANCE))):
            shown = " and ".join("none" if value is None else f"{value:g}" for value in (a, b))
            raise TableError(f"VAL and TEST disagree in {key}: {shown} {first.unit}. Record both with one profile.")
    return first


def check_sides(
    val: ExitTable, test: ExitTable, schedulers: Mapping[str, Scheduler], splits: int, *, grouped: bool
) -> None:
    """Refuse what cannot be compared, before anything is fitted."""
    widths = [None if table.features is None else table.features.shape[2] for table in (val, test)]
    for key, a, b in (
        ("exits", val.num_exits, test.num_exits),
        ("classes", val.num_classes, test.num_classes),
        ("features", widths[0], widths[1]),
    ):
        if a != b:
            shown = " and ".join("none" if value is None else str(value) for value in (a, b))
            raise TableError(f"VAL and TEST disagree in {key}: {shown}. Record both from the same model.")
    val.require_utility("compare")
    test.require_utility("compare")
    if splits < 1:
        raise InputError(f"splits {splits} is too few: the sides are drawn at least once. Pass splits >= 1.")
    if grouped and splits > 1:
        raise InputError(
            f"groups with splits {splits} cannot be told apart: they belong to the samples of TEST, and the sides are "
            "redrawn. Pass splits=1."
        )
    for name in BOUNDS:
        if name in schedulers:
            raise InputError(f"scheduler {name!r} has a bound's name: {name} is always compared. Give it another name.")


def draw_sides(val: ExitTable, test: ExitTable, splits: int, seed: int) -> Iterator[tuple[ExitTable, ExitTable]]:
    """Yield the two sides of every split: as given for one, else redrawn from their pool at their sizes."""
    if splits == 1:
        yield val, test
        return
    pool = ExitTable.concat([val, test])
    for split in range(splits):
        generator = np.random.default_rng([seed, split])
        order = torch.from_numpy(generator.permutation(pool.num_samples))
        first, second = order[: val.num_samples], order[val.num_samples :]
        yield pool.select(first.sort().values), pool.select(second.sort().values)
