"""Choosing a scheduler by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eenet.core.costs import BudgetLike, CostTable, standard_budgets
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.errors import InputError
from eenet.schedulers.base import Dial, Scheduler
from eenet.schedulers.ensemble import fit_ensemble, folds_of
from eenet.schedulers.heuristics import GeometricScheduler
from eenet.schedulers.joint import JointScheduler
from eenet.schedulers.stopping import StoppingScheduler
from eenet.schedulers.transformed import behind

__all__ = ["AutoScheduler", "Choice", "Contender"]

_Sweep = Callable[[CostTable, Sequence[BudgetLike]], Dial]

_ROWS = 10_000  # samples the choice is made on at most
_ENTRIES = 10_000_000  # numbers in their outputs at most
_LEAST = 50  # samples below which there is nothing to choose by


@dataclass(frozen=True)
class Contender:
    """A scheduler that was tried.

    Attributes:
        name: Of the scheduler, with ``+ensemble`` where it works on the exits' combination.
        area: Mean utility at the standard budgets on held-out samples.
        behind: How much lower that is than the best contender's.
        noise: Standard error of ``behind``.
    """

    name: str
    area: float
    behind: float
    noise: float


@dataclass(frozen=True)
class Choice:
    """What was chosen and why.

    Attributes:
        name: Of the contender chosen.
        contenders: All, the simplest first.
        reason: In a sentence.
    """

    name: str
    contenders: tuple[Contender, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class AutoScheduler(Scheduler):
    """Chooses between confidence, margin, joint thresholds and optimal stopping, each with and without an ensemble.

    All are fitted on part of the table and judged on the rest, in turn (cross-validation), at the ten standard budgets
    and at equal realised cost. Of those that are within ``tolerance`` standard errors of the best, the simplest is
    taken and fitted on the whole table. Where labels are unknown, or a transform is there already, there are no
    ensembles.

    Attributes:
        folds: Of the cross-validation.
        tolerance: Standard errors within which a simpler scheduler is preferred.
        progress: Told what was just tried, how many trials are done and how many there are.
    """

    folds: int = 5
    tolerance: float = 1.0
    progress: Callable[[str, int, int], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if self.folds < 2:
            raise InputError(f"folds {self.folds} are too few: samples are held out in turn. Pass at least 2.")
        if not self.tolerance >= 0:
            raise InputError(f"tolerance {self.tolerance:g} cannot be used: it is a number of standard errors, >= 0.")

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Choose, then fit for all budgets; see `Scheduler.sweep`. The dial's ``reason`` says why."""
        costs = costs or table.require_costs()
        choice = self.choose(table, costs)
        name = choice.name.removesuffix("+ensemble")
        if name == choice.name:
            return replace(self._schedulers()[name].sweep(table, costs, budgets), reason=choice.reason)
        together = fit_ensemble(table, self.seed)
        dial = self._schedulers()[name].sweep(table.transformed(together), costs, budgets)
        return replace(behind(together, dial), reason=choice.reason)

    def choose(self, table: ExitTable, costs: CostTable | None = None) -> Choice:
        """Return which scheduler suits the table, and why.

        Args:
            table: Calibration data that took no part in training, with labels or utility.
            costs: Default: the table's own.

        Raises:
            TableError: The table has neither labels nor utility, or no costs are known.
        """
        costs = costs or table.require_costs()
        table.require_utility("fitting auto")
        if table.num_samples < max(_LEAST, self.folds):
            reason = f"max_prob: {table.num_samples} samples are too few to choose by."
            return Choice("max_prob", (), reason)
        scores = self._held_out(table, costs)
        areas = {name: float(score.mean()) for name, score in scores.items()}
        best = max(areas, key=lambda name: areas[name])
        contenders = []
        for name, score in scores.items():
            lost = scores[best] - score
            noise = float(lost.std()) / math.sqrt(len(lost))
            contenders.append(Contender(name, areas[name], float(lost.mean()), noise))
        chosen = next(one for one in contenders if one.behind <= self.tolerance * one.noise or one.name == best)
        return Choice(chosen.name, tuple(contenders), _reason(chosen, contenders, best))

    def _schedulers(self) -> dict[str, Scheduler]:
        """Return what is tried, the simplest first."""
        return {
            "max_prob": GeometricScheduler(seed=self.seed),
            "margin": GeometricScheduler(confidence="margin", seed=self.seed),
            "joint": JointScheduler(seed=self.seed),
            "stopping": StoppingScheduler(ensemble=False, seed=self.seed),
        }

    def _held_out(self, table: ExitTable, costs: CostTable) -> dict[str, Float[Tensor, " sample"]]:
        """Return what every held-out sample contributes to each contender's area, the simplest contender first."""
        most = min(_ROWS, max(1000, _ENTRIES // (table.num_exits * table.num_classes)))
        generator = torch.Generator().manual_seed(self.seed)
        table = table.select(torch.randperm(table.num_samples, generator=generator)[:most].sort().values)
        fold = folds_of(table.num_samples, self.folds, self.seed)
        spent: dict[str, Tensor] = {}
        earned: dict[str, Tensor] = {}
        budgets = standard_budgets(costs)
        tries = len(self._schedulers()) * self.folds * (2 if table.combinable else 1)
        for i, (name, held, replayer, sweep) in enumerate(self._trials(table, fold)):
            dial = sweep(costs, budgets)
            policies = [dial.at(budget) for budget in budgets]
            replayer.prepare(policies)
            for row, policy in enumerate(policies):
                for store, values in zip((spent, earned), replayer.per_sample(policy, costs), strict=True):
                    if name not in store:
                        store[name] = torch.empty(len(budgets), len(fold), dtype=torch.float64)
                    store[name][row, held] = values
            if self.progress is not None:
                self.progress(name, i + 1, tries)
        anchor = (costs.low, float(table.require_utility("fitting auto")[:, 0].mean()))
        return {name: _contribution(spent[name], earned[name], budgets, anchor) for name in spent}

    def _trials(self, table: ExitTable, fold: Tensor) -> Iterator[tuple[str, Tensor, Replayer, _Sweep]]:
        """Yield every fold's contenders: name, rows held out, their replayer, and what fits on the other rows."""
        for f in range(self.folds):
            held = (fold == f).nonzero().squeeze(1)
            rest = table.select((fold != f).nonzero().squeeze(1))
            replayer = Replayer(table.select(held))
            for name, scheduler in self._schedulers().items():
                yield name, held, replayer, partial(scheduler.sweep, rest)
            if table.combinable:
                together = fit_ensemble(rest, self.seed)
                for name, scheduler in self._schedulers().items():
                    combined = rest.transformed(together)
                    yield f"{name}+ensemble", held, replayer.behind(together), partial(scheduler.sweep, combined)


def _contribution(
    spent: Float[Tensor, "budget sample"],
    earned: Float[Tensor, "budget sample"],
    budgets: Sequence[float],
    anchor: tuple[float, float],
) -> Float[Tensor, " sample"]:
    """Return each sample's part in the area under the curve, to first order.

    The mean of the parts is the area: the utility at a budget is what the policy for it earned, less the curve's slope
    times what it spent too much.
    """
    cost, gain = spent.mean(dim=1), earned.mean(dim=1)
    x, y = np.array([anchor[0], *cost.tolist()]), np.array([anchor[1], *gain.tolist()])
    order = np.argsort(x, kind="stable")
    at = np.interp(budgets, x[order], y[order])
    room = torch.tensor(budgets, dtype=torch.float64) - cost
    slope = torch.where(room.abs() > 1e-9 * cost, (torch.from_numpy(at) - gain) / room, 0.0)
    return (earned + slope[:, None] * (torch.tensor(budgets, dtype=torch.float64)[:, None] - spent)).mean(dim=0)


def _reason(chosen: Contender, contenders: Sequence[Contender], best: str) -> str:
    """Say in a sentence why."""
    listed = ", ".join(f"{one.name} {100 * one.area:.2f}" for one in sorted(contenders, key=lambda one: -one.area))
    why = (
        "the best on held-out samples"
        if chosen.name == best
        else f"simpler than {best} and within noise of it ({100 * chosen.behind:.2f} ± {100 * chosen.noise:.2f} points)"
    )
    return f"{chosen.name}: {why}. Held-out utility over the standard budgets, in percent: {listed}."
