"""Up to which budget spending more pays, found by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from eenet.policies.replay import Replayer
from eenet.schedulers.auto import AutoScheduler
from eenet.schedulers.base import LEAST_SAMPLES, Scheduler, folds_of
from eenet.tables.costs import standard_budgets
from eenet.tables.table import ExitTable

_FOLDS = 5


def most_that_pays(scheduler: Scheduler, table: ExitTable) -> float:
    """Return the smallest standard budget with the largest utility on held-out samples: more brings nothing.

    The scheduler is fitted on four fifths of the table and judged on the rest, in turn, in expectation over the coin of
    mixed policies. A dial that was fitted on the whole table is held to it by `Dial.capped`.

    Args:
        scheduler: As it would be fitted on the whole table; its seed is that of the folds, too.
        table: With costs, and labels or utility.

    Returns:
        A mean cost per sample; infinity where utility still rises at the largest standard budget, and where there are
        fewer than 50 samples, of which nothing is left out.

    Raises:
        TableError: The table lacks costs or utility.
    """
    table.require_utility("cross-validation")
    costs = table.require_costs()
    if table.num_samples < LEAST_SAMPLES:
        return math.inf
    budgets = standard_budgets(costs)
    fold, earned = folds_of(table.group_index, _FOLDS, scheduler.seed), np.zeros(len(budgets))
    for f in range(int(fold.max()) + 1):
        dial = scheduler.dial(table.select(fold != f), budgets)
        # costs that differ from sample to sample are those of the fold in a dial: its least may be above a budget
        policies = [dial.at(max(budget, dial.costs.low)) for budget in budgets]
        replayer = Replayer(table.select(fold == f))
        replayer.prepare(policies)
        earned += [replayer.expected(policy)[1] * replayer.table.num_samples for policy in policies]
    best = int(earned.argmax())
    return math.inf if best == len(budgets) - 1 else budgets[best]


def saving_note(schedulers: Mapping[str, Scheduler], *, cap: bool) -> Iterator[str]:
    """Yield which policies spend less than they may, where more does not pay; nothing where none does."""
    saving = [name for name, one in schedulers.items() if isinstance(one, AutoScheduler)]
    if cap:
        yield "No policy spends more than pays on held-out parts of VAL (cap)."
    elif saving and len(saving) < len(schedulers):
        yield (
            f"{' and '.join(saving)}, from 1,000 samples of VAL on, spends no more than pays on held-out parts of VAL; "
            "the other policies spend what they may: with --cap (cap=True) they would not either."
        )
