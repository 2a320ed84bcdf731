"""Judging dials on samples that they were not fitted on, at equal cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from eenet.policies.dial import Dial
from eenet.policies.replay import Replayer
from eenet.tables.table import ExitTable


class HeldOut(NamedTuple):
    """What a contender earned on samples that it was not fitted on.

    Attributes:
        parts: What every sample contributes to the area under the curve; their mean is the area.
        earned: Mean utility of the policy for each budget.
    """

    parts: Float64[np.ndarray, " sample"]
    earned: Float64[np.ndarray, " budget"]


def held_out(
    table: ExitTable,
    trials: Iterable[tuple[str, Int[np.ndarray, " row"], Replayer, Dial]],
    budgets: Sequence[float],
) -> dict[str, HeldOut]:
    """Return what contenders earn on held-out samples, by their names.

    Args:
        table: All samples.
        trials: A contender's name, held-out rows of the table, their replayer, and a dial fitted on other rows. All
            trials of a name together hold out every row once.
        budgets: At which dials are judged, at equal realised cost.
    """
    costs = table.require_costs()
    found: dict[str, np.ndarray] = {}
    for name, rows, replayer, dial in trials:
        # costs that differ from sample to sample are those of the fold in a dial: its least may be above a budget
        policies = [dial.at(max(budget, dial.costs.low)) for budget in budgets]
        replayer.prepare(policies)
        outcome = found.setdefault(name, np.empty((2, len(budgets), table.num_samples)))
        for row, policy in enumerate(policies):
            outcome[:, row, rows] = replayer.per_sample(policy)
    anchor = (costs.low, float(table.require_utility("choosing a scheduler")[:, 0].mean()))
    return {
        name: HeldOut(_contribution(spent, earned, budgets, anchor), earned.mean(axis=1))
        for name, (spent, earned) in found.items()
    }


def _contribution(
    spent: Float64[np.ndarray, "budget sample"],
    earned: Float64[np.ndarray, "budget sample"],
    budgets: Sequence[float],
    anchor: tuple[float, float],
) -> Float64[np.ndarray, " sample"]:
    """Return each sample's part in the area under the curve, to first order.

    The mean of the parts is the area: the utility at a budget is what the policy for it earned, less the curve's slope
    times what it spent too much.
    """
    cost, gain, asked = spent.mean(axis=1), earned.mean(axis=1), np.array(budgets)
    x, y = np.append(anchor[0], cost), np.append(anchor[1], gain)
    order = np.argsort(x, kind="stable")
    room = asked - cost
    missing = np.interp(asked, x[order], y[order]) - gain
    slope = np.divide(missing, room, out=np.zeros_like(room), where=np.abs(room) > 1e-9 * cost)
    parts: np.ndarray = earned + slope[:, None] * (asked[:, None] - spent)
    return np.asarray(parts.mean(axis=0))
