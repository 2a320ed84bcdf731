"""How tables are joined, get a last exit, and become rows: what the methods of `ExitTable` of these names do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from eenet.errors import ShapeError, TableError
from eenet.tables import checks
from eenet.tables.arrays import as_array
from eenet.tables.costs import CostTable

if TYPE_CHECKING:
    from eenet.tables.table import ExitTable

BY_SAMPLE = ("logits", "features", "labels", "utility", "cost", "group")
NUMBERED = "exit {}"  # what exits are called that have no names, beside one that has


def joined(tables: Sequence[ExitTable]) -> dict[str, Any]:
    """Return the attributes of several tables, one after the other; see `ExitTable.concat`."""
    if not tables:
        raise TableError("tables are empty: there is nothing to join. Pass at least 1.")
    first = tables[0]
    for i, table in enumerate(tables):
        if table.outputs.shape[1:] != first.outputs.shape[1:] or table.has_classes != first.has_classes:
            raise ShapeError(
                f"table {i} of shape {table.outputs.shape} does not fit: table 0 has {first.num_exits} exits and "
                f"{first.num_columns} columns. Record both with the same model."
            )
    if len({table.source for table in tables if table.source}) > 1:
        raise TableError("tables of several models cannot be joined: their sources differ. Record them with one.")
    for key in ("feature_names", "exit_names"):
        if len(found := {getattr(table, key) for table in tables} - {()}) > 1:
            named = " and ".join(", ".join(names) for names in sorted(found))
            raise TableError(f"{key} of tables to join differ: {named}. Join tables of one model.")
    units = sorted({table.require_costs().unit for table in tables if table.cost is not None})
    if len(units) > 1:
        raise TableError(f"cost of tables to join is in {' and '.join(units)}: it has one unit. Convert it first.")
    pooled: dict[str, Any] = {}
    for key in BY_SAMPLE:
        parts = [getattr(table, key) for table in tables]
        missing = [part is None for part in parts]
        if any(missing) and not all(missing):
            raise TableError(
                f"{key} is missing in table {missing.index(True)}: another table has it. Give it in all or none."
            )
        pooled[key] = None if missing[0] else np.concatenate(parts)
    return pooled


def with_last(table: ExitTable, cost: object, utility: object, name: str) -> dict[str, Any]:
    """Return what one more exit, the last, changes in a table; see `ExitTable.with_fallback`."""
    more, worth = (
        checks.per_sample(value, key, table.num_samples) for key, value in (("cost", cost), ("utility", utility))
    )
    before, known = table.leaving_costs, table.require_costs()
    recorded = "logits" if table.has_classes else "features"
    outputs = np.concatenate([table.outputs, table.outputs[:, -1:]], axis=1)
    named = table.exit_names or tuple(NUMBERED.format(k) for k in range(table.num_exits))
    cumulative = np.column_stack([before, before[:, -1] + more])
    checks.check_cost(cumulative)
    same = table.cost is None and np.ptp(more) == 0
    costs = CostTable((*known.cumulative, known.high + float(more.mean())), known.unit, known.reference)
    utilities = np.column_stack([table.require_utility("a fallback"), worth])
    changed: dict[str, Any] = {recorded: outputs, "utility": utilities, "exit_names": (*named, name)}
    changed |= {"costs": costs, "cost": None if same else cumulative}
    return changed


def long_columns(table: ExitTable) -> dict[str, Any]:
    """Return the columns of a row per sample and exit; see `ExitTable.to_frame`."""
    samples, exits = np.indices((table.num_samples, table.num_exits)).reshape(2, -1)
    columns: dict[str, Any] = {"sample": samples, "exit": exits}
    if table.exit_names:
        columns["exit_name"] = np.array(table.exit_names)[exits]
    if table.utility is not None:
        columns["utility"] = as_array(table.utility).ravel()
    if table.costs is not None:
        columns["cost"] = table.leaving_costs.ravel()
    if table.labels is not None:
        columns["label"] = as_array(table.labels)[samples]
    if table.group is not None:
        columns["group"] = as_array(table.group)[samples]
    return columns


def kept_exits(table: ExitTable, kept: list[int], costs: CostTable | None) -> dict[str, Any]:
    """Return names and costs of some exits; those of exits that are `separate` are left out with them."""
    changed: dict[str, Any] = {"costs": costs}
    changed["exit_names"] = tuple(table.exit_names[k] for k in kept) if table.exit_names else ()
    drops = table.separate and kept != list(range(len(kept)))
    if costs is None and table.costs is not None:
        parts = [table.costs.stage_costs[k] for k in kept] if drops else None
        cumulative = [table.costs.cumulative[k] for k in kept] if parts is None else accumulate(parts)
        changed["costs"] = CostTable(tuple(cumulative), table.costs.unit, table.costs.reference)
    if table.cost is not None and drops:
        changed["cost"] = np.cumsum(np.diff(table.cost, axis=1, prepend=0.0)[:, kept], axis=1)
    return changed
