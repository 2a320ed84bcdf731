"""What a reader should know before believing the numbers of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from eenet.evaluation.results import Budgets, Family, SplitRun, same_outputs
from eenet.tables.table import ExitTable

_FAR = 0.25  # relative distance of mean costs from which on it is mentioned


def notes_on(val: ExitTable, test: ExitTable, runs: Sequence[SplitRun], budgets: Budgets) -> Iterator[str]:
    """Yield what a reader should know before believing the numbers, the worst first."""
    if same_outputs(val, test):
        yield "VAL and TEST are the same data: these are fitting numbers, and say nothing about other samples."
    elif val.num_samples == test.num_samples and np.array_equal(val.outputs[:16], test.outputs[:16]):
        yield "VAL and TEST start with the same samples: if they are the same data, these are fitting numbers."
    if len(runs) == 1:
        yield "Intervals cover the chance in the test samples, not that in fitting: the policies were fitted once."
    else:
        yield f"VAL and TEST were pooled and split anew {len(runs)} times: fair only if training saw neither of them."
    family = Family.of(list(runs[0].runs))
    if family.against:
        yield (
            f"Tested is {family.policy} against each other policy, corrected for their number (Holm): with 95 % "
            "confidence none of these differences is wrongly called significant. The intervals, and all other "
            "differences, are not corrected."
        )
    if val.group is not None:
        yield f"Samples of VAL are of {val.num_groups} groups: budgets are kept on groups that were not fitted on."
        if test.group is not None and (shared := len(np.intersect1d(val.group, test.group))):
            yield f"{shared} groups are in both VAL and TEST: of these, TEST says less than of new ones."
    if test.group is not None:
        yield (
            f"Samples of TEST are of {test.num_groups} groups: intervals resample whole groups; those of the losses of "
            "single classes or groups take samples as independent."
        )
    if not (val.source and test.source):
        yield "VAL, TEST or both do not name their source: that they come from the same model was not checked."
    if val.cost is not None:
        yield "Costs differ from sample to sample: budgets and percentages refer to the means over VAL."
        first, second = (np.array(table.require_costs().cumulative) for table in (val, test))
        far = np.abs(second / first - 1)
        if far.max() > _FAR:
            k = int(far.argmax())
            yield (
                f"Costs of exit {k} are {first[k]:.4g} on VAL and {second[k]:.4g} on TEST: were both measured alike?"
            )
    yield from _spending_notes(runs, budgets)


def _spending_notes(runs: Sequence[SplitRun], budgets: Budgets) -> Iterator[str]:
    """Yield who spends less than was asked on purpose, who more, and which budgets limit nothing."""
    unit, asked = budgets.costs.unit, np.array(budgets.values)
    for name in runs[0].runs:
        caps = [split.runs[name].cap for split in runs if math.isfinite(split.runs[name].cap)]
        if caps:
            where = "" if len(runs) == 1 else f" on average, in {len(caps)} of {len(runs)} splits"
            yield f"{name} spends at most {np.mean(caps):.4g} {unit}{where}: more brought nothing on held-out samples."
    for name, run in runs[0].runs.items():
        cost = run.points["val_cost"]
        over = cost / asked
        if over.max() > 1 + 1e-6:
            worst = int(over.argmax())
            yield (
                f"{name} costs {cost[worst]:.4g} {unit} on VAL where {asked[worst]:.4g} was asked "
                f"(over budget at {int((over > 1 + 1e-6).sum())} of {len(asked)} budgets)."
            )
    for budget in budgets.asked:
        if budget.value > budgets.costs.high:
            yield f"Budget {budget.text} is above the last exit ({budgets.costs.high:.4g} {unit}): it limits nothing."
