"""Whether early exit pays on some data, and with which exits: advice from one table, no model needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from eenet.errors import TableError
from eenet.evaluation.advice import LOSS, Advice, AdviceRow, knowing_hardly
from eenet.evaluation.compare import Progress, counter
from eenet.evaluation.exits import (
    CostParts,
    Samples,
    StaticModel,
    choose_exits,
    cross_validated,
    static_mix,
)
from eenet.evaluation.saving import majority_right
from eenet.evaluation.statics import check_statics
from eenet.evaluation.statistics import Curve, SampledCurve, bootstrap, bootstrap_interval
from eenet.policies.replay import Replayer
from eenet.policies.scorers import Confidence, confidence_scorer
from eenet.schedulers.base import LEAST_GROUPS, require_groups, warn_if_small
from eenet.tables.checks import instance, number
from eenet.tables.costs import Budget, BudgetLike, CostTable, standard_budgets
from eenet.tables.display import samples
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    pass

_LEAST = 4  # samples: exits are chosen on halves of what one of 2 folds leaves
_SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the costs, where curves have points


def advise(
    table: ExitTable,
    costs: CostTable | None = None,
    budgets: Sequence[BudgetLike] = (),
    *,
    parts: CostParts | None = None,
    statics: Sequence[StaticModel] = (),
    confidence: Confidence = "max_prob",
    folds: int = 5,
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress | None = None,
) -> Advice:
    """Say which exits are worth their cost, and whether early exit with them pays at all.

    In each fold exits are chosen and thresholds on a confidence fitted on the other folds; the samples of the fold
    are judged by them. The alternative is the best static mix: of each exit alone without the other heads (of
    models asked one after the other, each at its own cost), the original model, and the models named (the
    ``random`` bound, for models that end there). It is chosen on the samples it is judged on, which if anything
    favours it. Early exit **pays** if it is better at equal cost: if the lower end of the paired bootstrap interval
    of the difference, averaged over the wanted budgets, is above zero. Without budgets of the user's it must also
    save at least 5 % of the cost at one point below the original model. The interval covers the chance in the
    samples, not that in the folds.

    The kept exits are then chosen on all samples. Where labels are known, samples that a budget below the cheapest exit
    does not cover are answered with the most frequent class, so that sets with different first exits can be compared.
    Where costs differ from sample to sample, their means count.

    Args:
        table: Calibration data that took no part in training, with labels or utility, and with every exit that could be
            kept.
        costs: Default: the table's own.
        budgets: Wanted mean costs per sample; default: the ten standard ones.
        parts: Of the costs; default: heads count as part of the stages before them; where exits are models by
            themselves (`ExitTable.separate`), each has its own cost.
        statics: Other models without early exits; with ``utilities``, on the samples of the table.
        confidence: The score that samples leave by: of classes the name of a confidence, of features that of a column.
        folds: Of the cross-validation.
        seed: Of folds, searches and bootstrap.
        resamples: Of the bootstrap.
        progress: Called with what was finished, steps done and steps in all.

    Raises:
        TableError: The table has neither labels nor utility, no costs, or fewer samples than folds; or costs and parts
            disagree.
        BudgetError: A budget is below the cost of exit 0.
        InputError: Fewer than 2 folds, or there is no such confidence or column.

    Warns:
        UserWarning: The table has fewer than 50 samples.
    """
    costs = instance(table, ExitTable, "table").with_costs(costs).require_costs()
    folds, resamples, seed = (
        int(number(value, name, low, whole=True))
        for name, value, low in (("folds", folds, 2), ("resamples", resamples, 1), ("seed", seed, 0))
    )
    parts = CostParts.of_models(costs) if parts is None and table.separate else _agreeing(costs, parts)
    samples, budgets = _samples(table, confidence, folds), list(budgets)
    check_statics(statics, len(samples), table.name)
    wanted = tuple(dict.fromkeys(costs.budget(budget) for budget in budgets or standard_budgets(costs)))
    warn_if_small(table)
    values = [budget.value for budget in wanted]
    models = _statics(samples, costs, parts, statics, table)
    step = counter(progress, folds + 1)
    reachable = min(values) if budgets else math.inf
    choose = partial(choose_exits, parts=parts, budgets=values, reachable=reachable, seed=seed)
    judged = partial(cross_validated, samples, parts, folds=folds, seed=seed)
    top = max(costs.high, models[costs.num_exits - 1].cost)
    grid = sorted({*values, *(costs.low + share * (top - costs.low) for share in _SHARES)})
    early, static = judged(grid, choose, step=step), static_mix(samples, models, grid)
    kept = choose(samples)
    step("exits chosen on all samples")
    kept_costs = CostTable(parts.cumulative(kept), costs.unit, costs.reference)
    points = judged((kept_costs.low, *standard_budgets(kept_costs), kept_costs.high), lambda _: kept).mean()
    rows, difference = _compared(early, static, samples, wanted, models, resamples=resamples, seed=seed)
    target, full = float(samples.utility[:, -1].mean()) - LOSS, models[costs.num_exits - 1].cost
    return Advice(
        kept=kept,
        dropped=tuple(k for k in range(costs.num_exits) if k not in kept),
        costs=kept_costs,
        frontier=tuple(zip(points.costs.tolist(), points.utilities.tolist(), strict=True)),
        statics=models,
        asked=tuple(budget.meaning for budget in wanted) if budgets else (),
        rows=rows,
        difference=difference,
        saving=_saving(early.mean(), target, full),
        static_saving=_saving(static.mean(), target, full),
        majority=float(samples.majority.mean()),
        num_samples=len(samples),
        notes=tuple(_notes(parts, statics)),
    )


def hardly_knowing(table: ExitTable) -> str:
    """Say that no early exit of a table is surely better than its most frequent class; empty where one is."""
    early = table.require_utility("advice")[:, :-1].mean(axis=0)
    return knowing_hardly(float(early.max()), float(majority_right(table).mean()), table.num_samples)


def _samples(table: ExitTable, confidence: Confidence, folds: int) -> Samples:
    """Return the samples that the advice is made on."""
    utility = table.require_utility("advice")
    if table.group is not None:
        require_groups(table, LEAST_GROUPS, "advice")
    if table.num_samples < max(folds, _LEAST):
        raise TableError(
            f"{table.name} of {samples(table.num_samples)} is too small: exits are chosen on some and judged on the "
            f"others. Record at least {max(folds, _LEAST)}, better thousands."
        )
    scorer = confidence_scorer(confidence, None if table.has_classes else table.feature_names)
    return Samples(
        scores=Replayer(table).scores(scorer),
        utility=utility,
        majority=majority_right(table),
        groups=table.group_index,
    )


def _agreeing(costs: CostTable, parts: CostParts | None) -> CostParts:
    """Return the parts of the costs, having checked that they add up to them."""
    if parts is None:
        return CostParts.of_costs(costs)
    added = parts.cumulative(range(len(parts.stages)))
    if len(added) != costs.num_exits or not np.allclose(added, costs.cumulative, rtol=1e-4):
        raise TableError(
            f"costs {', '.join(f'{c:g}' for c in costs.cumulative)} {costs.unit} disagree with their parts, which add "
            f"up to {', '.join(f'{c:g}' for c in added)}. Take both from one profile."
        )
    return parts


def _statics(
    samples: Samples, costs: CostTable, parts: CostParts, named: Sequence[StaticModel], table: ExitTable
) -> tuple[StaticModel, ...]:
    """Return every exit alone, the original model last, and the models the user named."""
    last = costs.num_exits - 1
    utility = samples.utility.mean(axis=0).tolist()
    called = [f"{name} alone" for name in table.exit_names or [f"exit {k}" for k in range(costs.num_exits)]]
    alone = [StaticModel(name=called[k], cost=parts.alone(k), utility=utility[k]) for k in range(last)]
    whole = parts.alone(last) if costs.reference is None else costs.reference
    name = called[last] if table.separate else "the original model"
    return (*alone, StaticModel(name=name, cost=whole, utility=utility[last]), *named)


def _compared(
    early: SampledCurve,
    static: SampledCurve,
    samples: Samples,
    wanted: Sequence[Budget],
    models: Sequence[StaticModel],
    *,
    resamples: int,
    seed: int,
) -> tuple[tuple[AdviceRow, ...], tuple[float, float, float]]:
    """Return early exit and its alternatives at every budget, and the mean difference with its interval."""
    read = bootstrap(
        {"early": early, "static": static},
        anchor=SampledCurve(costs=np.zeros((1, len(samples))), utilities=samples.majority[None]),
        groups=samples.groups,
        budgets=[budget.value for budget in wanted],
        resamples=resamples,
        seed=seed,
    )
    gaps, nothing = read["early"] - read["static"], (0.0, float(samples.majority.mean()))
    curves = early.mean(nothing), static.mean(nothing)

    def row(budget: Budget, gap: np.ndarray) -> AdviceRow:
        (utility, other), (low, high) = (one.at(budget.value) for one in curves), bootstrap_interval(gap)
        affordable = [model for model in models if model.cost <= budget.value * (1 + 1e-9)]
        return AdviceRow(
            budget=budget.value,
            budget_input=budget.text,
            utility=utility,
            static=other,
            difference=utility - other,
            low=low,
            high=high,
            best_static=max(affordable, key=lambda model: model.utility).name if affordable else None,
        )

    rows = tuple(row(budget, gap) for budget, gap in zip(wanted, gaps.T, strict=True))
    return rows, (float(np.mean([row.difference for row in rows])), *bootstrap_interval(gaps.mean(axis=1)))


def _saving(early: Curve, target: float, full: float) -> float | None:
    """Return the share of a cost that is saved where the utility first reaches a target; None if it never does."""
    reached = np.flatnonzero(early.utilities >= target)
    if not len(reached):
        return None
    around = slice(max(0, int(reached[0]) - 1), int(reached[0]) + 1)  # on the straight line from the point before
    return 1.0 - float(np.interp(target, early.utilities[around], early.costs[around])) / full


def _notes(parts: CostParts, named: Sequence[StaticModel]) -> Iterator[str]:
    """Yield the assumptions made."""
    if not parts.known:
        yield (
            "The costs of single heads are not known: dropping an exit is assumed to make later ones no cheaper, and a "
            "model that ends at an exit to cost as much as leaving there. Pass a profile for exact costs."
        )
    if any(model.utilities is None for model in named):
        yield "Utilities of static models given as numbers are taken as exact, and as if on data like VAL."
