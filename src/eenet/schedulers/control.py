"""Keeping the mean cost at the budget while inputs become harder or the machine slower.

A fitted policy keeps its budget on data like the calibration data, at the costs it was fitted with. When either
changes, its mean cost drifts. A `BudgetController` watches what samples really cost and moves along a `Dial`: dearer
policies while there is credit, cheaper ones while there is debt.

Promised, for any sequence of costs: let ``D`` be what was spent above ``samples * budget``. As long as the dial's
cheapest policy stays within the budget, ``D`` never exceeds a constant, so the overall mean exceeds the budget by at
most ``constant / samples``; see `BudgetController.worst_debt`. When inputs stop changing, ``D`` settles at 0 up to
chance, so that the mean comes back to the budget from either side.

Not promised: a hard limit on any single sample or any short stretch; the best utility on data unlike the calibration
data (thresholds keep their fitted trade-off, only the place on the dial moves); anything while even the cheapest policy
costs more than the budget. Then the controller stays at the cheapest policy and pays the debt back once it can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.core.combined import MixedPolicy, TransformedPolicy, answers_with_newest
from eenet.core.costs import Budget, BudgetLike, CostTable
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer, first_exit
from eenet.core.transform import Transform
from eenet.errors import InputError, ShapeError
from eenet.schedulers.base import Dial

__all__ = ["BudgetController", "ControlTrace"]

_STATE = ("samples", "spent", "debt", "base", "span")


@dataclass(frozen=True, eq=False)
class ControlTrace:
    """What became of a stream of recorded samples under a controller, in their order.

    Attributes:
        exit_index: 0-based exit of each sample.
        cost: Per sample, in the unit of the cost table.
        target: What was asked of the dial when each sample came.
        utility: What each answer was worth; None where the table cannot tell.
    """

    exit_index: Int[Tensor, " sample"]
    cost: Float[Tensor, " sample"]
    target: Float[Tensor, " sample"]
    utility: Float[Tensor, " sample"] | None = None

    @property
    def mean_cost(self) -> float:
        """Mean cost per sample."""
        return float(self.cost.mean())


@final
class BudgetController:
    """Steers along a dial so that the long-run mean of the realised cost stays at the budget.

    Ask for `policy`, run a batch with it, report what its samples cost with `update`, and so on. The target asked of
    the dial is ``base - debt / span``: dual ascent on the mean-cost constraint (the debt is the multiplier, up to
    a factor), with a ``base`` that drifts against the debt until it is paid. Both steps count samples, not batches. The
    target never leaves the dial; at its dear end, credit that could not be spent soon lapses, so that the controller
    answers soon when costs rise; at its cheap end debt is kept, unless ``forgive`` says otherwise.

    Not thread-safe: one stream of batches, or a lock around `policy` and `update`.

    Args:
        dial: As returned by `Scheduler.sweep`.
        budget: Mean cost per sample: a number in the dial's unit, with a unit, or a percentage.
        horizon: Over about how many samples a deviation is corrected. A short horizon answers fast; a long one wanders
            less and costs less utility. Never shorter than two batches, whatever is set.
        forgive: Whether debt beyond what steers to the cheap end lapses too. Then a time in which the budget could not
            be met is not paid back: the mean of the time after it meets the budget, the overall mean need not.

    Raises:
        BudgetError: No number, a foreign unit, or below the cost of exit 0.
        InputError: ``horizon`` is not positive.

    Source:
        The debt is a virtual queue (Neely, Stochastic Network Optimization with Application to Communication and
        Queueing Systems, 2010); the drifting base is integral action with anti-windup, as of a PI controller.

    Example:
        >>> from eenet.schedulers import JointScheduler
        >>> from eenet.testing import synthetic_table
        >>> dial = JointScheduler().sweep(synthetic_table(1000))
        >>> controller = BudgetController(dial, "50%")
        >>> hard = synthetic_table(8000, seed=1)
        >>> trace = controller.replay(hard, CostTable((1.2, 2.4, 3.6, 4.8), "ms"))  # a slower machine
        >>> round(trace.mean_cost, 2)
        2.0
    """

    def __init__(self, dial: Dial, budget: BudgetLike, *, horizon: int = 500, forgive: bool = False) -> None:
        if not (math.isfinite(horizon) and horizon > 0):
            raise InputError(
                f"horizon {horizon:g} samples cannot be used: deviations are corrected over a positive number of "
                f"samples. Pass for example 500."
            )
        self.dial, self.forgive = dial, forgive
        self.budget = dial.costs.budget(budget).value
        self.samples = 0
        self._low, self._high = max(dial.fit_costs[0], dial.costs.low), max(dial.fit_costs[-1], dial.costs.low)
        self._spent, self._debt = 0.0, 0.0
        self._base = self._inside(self.budget)
        self._span = float(horizon)
        self._policy: Policy | None = None

    @property
    def policy(self) -> Policy:
        """The policy for the next batch."""
        if self._policy is None:
            self._policy = self.dial.at(
                Budget(self.target, "", "", self.dial.costs.unit)
            )  # no text to be parsed for every batch
        return self._policy

    @property
    def target(self) -> float:
        """What is asked of the dial now: a mean cost as it was on the fitting data, not a prediction."""
        return self._inside(self._base - self._debt / self._span)

    @property
    def mean_cost(self) -> float:
        """Mean realised cost of all samples so far; NaN before the first."""
        return self._spent / self.samples if self.samples else math.nan

    @property
    def debt(self) -> float:
        """What is still to be paid back, in cost units; negative: credit. Without lapses ``spent - samples * B``."""
        return self._debt

    def worst_debt(self, dearest: float, batch_size: int = 1) -> float:
        """Return the most the spending can ever be above ``samples * budget``, if the cheapest policy stays within.

        Divided by the number of samples, it bounds what the overall mean exceeds the budget by.

        Args:
            dearest: The most a sample can cost, the slowest machine included.
            batch_size: The largest.
        """
        steers = (self._high - self._low) * max(self._span, 2.0 * batch_size)
        return steers + batch_size * max(dearest - self.budget, 0.0)

    def update(self, costs: Tensor | Sequence[float] | float | None, samples: int | None = None) -> None:
        """Take in what a batch cost, in the dial's unit.

        Args:
            costs: Of each sample, such as `Prediction.cost`; or one number, the mean over the batch, such as its
                measured milliseconds divided by its samples.
            samples: How many samples that one number stands for (default 1).

        Raises:
            InputError: No sample, no costs, or costs that are negative or not finite.
            ShapeError: Another number of samples than of costs.
        """
        total, count = _total(costs, samples)
        self._lengthen(2.0 * count)
        self._spent += total
        self.samples += count
        self._debt = self._kept(self._debt + total - count * self.budget)
        drift = count * self._debt / (4 * self._span**2)  # critically damped where cost follows the target
        free = self._base - self._debt / self._span
        # no drift further out while the target already stands at that end of the dial
        if (drift > 0 and free > self._low) or (drift < 0 and free < self._high):
            self._base = self._inside(self._base - drift)
        self._policy = None

    def replay(self, table: ExitTable, costs: CostTable | None = None, *, batch_size: int = 32) -> ControlTrace:
        """Send a recorded table through the controller, batch by batch in the order of its rows.

        The controller goes on from where it is and learns from what the samples cost; call again with another table or
        other costs to go on under other conditions. Sample ids count on from `samples`, as `AdaptiveModel` counts.

        Args:
            table: What every exit said. Labels are needed only for the utility.
            costs: What the samples really cost now; default: the table's own, else the dial's.
            batch_size: Samples between two updates; the last batch may be smaller.

        Raises:
            InputError: ``batch_size`` is not positive.
            ShapeError: Dial, table and costs differ in their number of exits.
        """
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} cannot be used: a batch holds at least 1 sample. Raise it.")
        real = costs or table.costs or self.dial.costs
        for name, found in (("costs", real.num_exits), ("dial", self.dial.costs.num_exits)):
            if found != table.num_exits:
                raise ShapeError(
                    f"{name} of {found} exits does not fit: the table has {table.num_exits}. Use those of one model."
                )
        stream = _Stream(table)
        cumulative = torch.tensor(real.cumulative, dtype=torch.float64)
        exits: list[Tensor] = []
        worth: list[Tensor | None] = []
        targets: list[Tensor] = []
        for start in range(0, table.num_samples, batch_size):
            rows = slice(start, min(start + batch_size, table.num_samples))
            ids = torch.arange(self.samples, self.samples + rows.stop - rows.start)
            policy = self.policy
            exits.append(stream.exit_index(policy, rows, ids))
            targets.append(torch.full((len(ids),), self.target, dtype=torch.float64))
            worth.append(stream.utility(policy, exits[-1], rows, ids))
            self.update(cumulative[exits[-1]])
        exit_index = torch.cat(exits)
        known = [part for part in worth if part is not None]
        utility = torch.cat(known) if len(known) == len(worth) else None
        return ControlTrace(exit_index, cumulative[exit_index], torch.cat(targets), utility)

    def state_dict(self) -> dict[str, float]:
        """Return what was learnt so far, as numbers; dial, budget and settings are not part of it."""
        return {name: float(getattr(self, name if name == "samples" else f"_{name}")) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a state that `state_dict` returned.

        Raises:
            InputError: A number is missing or not finite.
        """
        for name in _STATE:
            if not math.isfinite(state.get(name, math.nan)):
                raise InputError(
                    f"state lacks a finite {name!r}: it holds {', '.join(sorted(state)) or 'nothing'}. Pass what "
                    f"state_dict() returned."
                )
        self.samples = int(state["samples"])
        self._spent, self._debt = float(state["spent"]), float(state["debt"])
        self._base, self._span = self._inside(float(state["base"])), float(state["span"])
        self._policy = None

    def _inside(self, target: float) -> float:
        return min(max(target, self._low), self._high)

    def _kept(self, debt: float) -> float:
        """Let credit lapse that more than steers to the dear end, and such debt if it is to be forgiven."""
        most = (self._high - self._low) * self._span
        return min(max(debt, -most), most) if self.forgive else max(debt, -most)

    def _lengthen(self, span: float) -> None:
        """Correct over at least so many samples, without a jump of the target."""
        if span > self._span:
            self._base = self._inside(self._base - self._debt / self._span + self._debt / span)
            self._span = span


def _total(costs: Tensor | Sequence[float] | float | None, samples: int | None) -> tuple[float, int]:
    """Return the sum of the costs and how many samples they stand for."""
    if costs is None:
        raise InputError(
            "costs are missing: a controller learns from what samples cost. Give AdaptiveModel the cost table, or "
            "measure the batch."
        )
    if isinstance(costs, float):  # no tensor for a number: at batch size 1 this is called for every sample
        least, mean, shape, size = costs, costs, tuple[int, ...](), 1
    else:
        values = torch.as_tensor(costs, dtype=torch.float64)
        shape, size = tuple(values.shape), values.numel()
        least, mean = (float(values.min()), float(values.mean())) if size else (0.0, 0.0)
    count = size if shape or samples is None else samples
    if len(shape) > 1 or samples not in (None, count):
        raise ShapeError(
            f"costs of shape {shape} do not fit: one number per sample is needed, or one for all. Pass "
            f"Prediction.cost, or the mean and its number of samples."
        )
    if count < 1:
        raise InputError(f"costs of {count} samples teach nothing: at least 1 is needed. Leave empty batches out.")
    if not math.isfinite(mean) or least < 0:
        raise InputError(
            f"costs with a mean of {mean:g} and a least of {least:g} cannot be used: each must be finite and not "
            f"negative. Check the measurement."
        )
    return mean * count, count


class _Stream:
    """Decides on rows of a table under ids of their own; policies that share a scorer share the scores."""

    def __init__(self, table: ExitTable) -> None:
        self.table, self.replayer = table, Replayer(table)
        self.known = None if table.utility is None else table.require_utility("replaying")
        self._behind: dict[Transform, _Stream] = {}

    def behind(self, transform: Transform) -> _Stream:
        """Return the same stream as policies behind a transform see it."""
        if transform not in self._behind:
            self._behind[transform] = _Stream(self.table.transformed(transform))
        return self._behind[transform]

    def exit_index(self, policy: Policy, rows: slice, ids: Tensor) -> Tensor:
        """Return where some rows leave."""
        if isinstance(policy, MixedPolicy):
            a, b = (self.exit_index(part, rows, ids) for part in (policy.a, policy.b))
            return torch.where(policy.follows_a(ids), a, b)
        if isinstance(policy, TransformedPolicy):
            return self.behind(policy.transform).exit_index(policy.policy, rows, ids)
        if isinstance(policy, ScorePolicy):
            return first_exit(self.replayer.scores(policy.scorer)[rows], policy.thresholds.cpu())
        return self._decide(policy, rows, ids)

    @torch.inference_mode()
    def _decide(self, policy: Policy, rows: slice, ids: Tensor) -> Tensor:
        """Return where some rows leave, asked exit by exit as in real inference: right for every kind of policy."""
        log_probs, all_features = self.table.log_probs(rows), self.table.features
        last = self.table.num_exits - 1
        stops = torch.full((len(ids),), last)
        for k in reversed(range(last)):
            features = None if all_features is None else all_features[rows][:, : k + 1].float()
            stops = torch.where(policy.leaves(log_probs[:, : k + 1], ids, features), k, stops)
        return stops

    def utility(self, policy: Policy, exit_index: Tensor, rows: slice, ids: Tensor) -> Tensor | None:
        """Return what the answers to some rows are worth, None where the table cannot tell."""
        if isinstance(policy, TransformedPolicy):
            return self.behind(policy.transform).utility(policy.policy, exit_index, rows, ids)
        if answers_with_newest(policy):
            return None if self.known is None else self.known[rows].gather(1, exit_index[:, None]).squeeze(1)
        labels = self.table.labels
        return None if labels is None else (self._answers(policy, exit_index, rows, ids) == labels[rows]).double()

    @torch.inference_mode()
    def _answers(self, policy: Policy, exit_index: Tensor, rows: slice, ids: Tensor) -> Tensor:
        """Return the classes that a policy which combines exits answers with."""
        log_probs, all_features = self.table.log_probs(rows), self.table.features
        chosen = torch.zeros(len(ids), dtype=torch.long)
        for k in range(self.table.num_exits):
            here = exit_index == k
            features = None if all_features is None else all_features[rows][here, : k + 1].float()
            if here.any():
                chosen[here] = policy.answers(log_probs[here, : k + 1], ids[here], features).argmax(dim=1)
        return chosen
