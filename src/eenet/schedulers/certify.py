"""Promises: a policy together with what holds for it, at which level, and on what data.

Half of the calibration data fits the scheduler and puts policies in an order; the other half, which took no part in
that, tests them one after the other, from the safest on, and stops at the first failure. So however many are tested, a
policy that breaks the promise is chosen with probability ``delta`` at most.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eenet.core.combined import TransformedPolicy, unmixed
from eenet.core.costs import Budget, BudgetLike, CostTable
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.scorers import ConfidenceScorer, Scorer
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.errors import InputError, RunError, TableError
from eenet.schedulers.base import Dial, Scheduler
from eenet.schedulers.betting import betting_bound, mean_is_below
from eenet.schedulers.certificate import Certificate, Certified
from eenet.schedulers.deadline import DeadlineScheduler

__all__ = ["certify", "check_promise"]

_CANDIDATES = 60
_LEAST = 100  # samples, of which half certify


def certify(
    scheduler: Scheduler,
    table: ExitTable,
    costs: CostTable | None = None,
    *,
    budget: BudgetLike | None = None,
    guarantee: Literal["budget", "accuracy"] = "budget",
    delta: float = 0.1,
    epsilon: float = 0.01,
    seed: int = 0,
) -> Certified:
    """Fit a scheduler and return a policy with a promise that holds beyond the table.

    The table is split at random into halves, *fit* and *certify*. The scheduler's dial is swept on the fit part.

    * ``"budget"``: the expected cost is at most the budget. Policies are tested from cheap to dear; the last that
      passes is returned, and exit 0 for all where none does.
    * ``"accuracy"``: the expected utility is at most ``epsilon`` below that of the full model. Policies are tested
      from the full path to cheaper ones, down to ``budget`` if one is given; the last that passes is returned, and the
      full path where none does.

    Guarantee: with probability ``1 - delta`` over the draw of the table, the returned policy keeps the promise on data
    drawn from the same distribution, independently of each other. Nothing is promised for other data.

    Args:
        scheduler: Orders and proposes the policies.
        table: Calibration data that took no part in training, with labels or utility.
        costs: Default: the table's own.
        budget: A mean cost per sample; needed for the budget, optional for accuracy.
        guarantee: ``"budget"`` or ``"accuracy"``.
        delta: Chance that the promise is wrong, in (0, 1).
        epsilon: Utility that may be lost against the full model, in (0, 1); for accuracy only.
        seed: Of the split and of the order in which samples are tested.

    Returns:
        The policy and its certificate.

    Raises:
        InputError: ``guarantee`` is unknown, ``delta`` or ``epsilon`` is outside (0, 1), or the budget is missing.
        TableError: There are fewer than 100 samples, neither labels nor utility, or no costs.
        BudgetError: The budget is no number, has a foreign unit or is below the cost of exit 0.
        RunError: A deadline closes the full path, and nothing within it could be shown to lose so little.

    Example:
        >>> from eenet.schedulers import GeometricScheduler
        >>> from eenet.testing import synthetic_table
        >>> certified = certify(GeometricScheduler(), synthetic_table(2000), budget="60%")
        >>> certified.certificate.bound <= 2.4
        True

    Source:
        Fixed-sequence testing as in Learn then Test (Angelopoulos et al., arXiv 2110.01052), with the bounds of
        `eenet.schedulers.betting`.
    """
    check_promise(guarantee, delta, epsilon, budget)
    if table.num_samples < _LEAST:
        raise TableError(
            f"table of {table.num_samples} samples is too small for a promise: half of it fits, half certifies, and "
            f"at least {_LEAST} are needed. Record more, or fit without a guarantee."
        )
    table.require_utility("certifying")
    costs = costs or table.require_costs()
    asked = None if budget is None else costs.budget(budget)
    last = (scheduler.open_exits(costs) if isinstance(scheduler, DeadlineScheduler) else costs.num_exits) - 1
    order = torch.randperm(table.num_samples, generator=torch.Generator().manual_seed(seed))
    fit_rows, certify_rows = order[len(order) // 2 :], order[: len(order) // 2]
    fit_part = table.select(fit_rows.sort().values)
    dial = scheduler.sweep(fit_part, costs, None if asked is None else [asked])
    parts = _Parts(_Judge(fit_part, costs), _Judge(table.select(certify_rows), costs), dial, last)
    goal = _Goal(guarantee, delta, epsilon, asked, seed)
    if asked is not None and guarantee == "budget":
        return _certified(parts, goal, _for_budget(parts, goal, asked.value))
    return _certified(parts, goal, _for_accuracy(parts, goal))


def check_promise(guarantee: str, delta: float, epsilon: float, budget: BudgetLike | None) -> None:
    """Refuse a promise that cannot be asked for; see `certify`.

    Raises:
        InputError: ``guarantee`` is unknown, ``delta`` or ``epsilon`` is outside (0, 1), or the budget is missing.
    """
    if guarantee not in ("budget", "accuracy"):
        raise InputError(
            f"guarantee {guarantee!r} is unknown: 'budget' or 'accuracy' can be promised. Pass one of them."
        )
    if not 0 < delta < 1:
        raise InputError(f"delta {delta:g} is no chance of being wrong: it must lie in (0, 1). Pass for example 0.1.")
    if not 0 < epsilon < 1:
        raise InputError(f"epsilon {epsilon:g} is no loss of utility: it must lie in (0, 1). Pass for example 0.01.")
    if guarantee == "budget" and budget is None:
        raise InputError("budget is missing: the guarantee 'budget' is about one. Pass a mean cost per sample.")


class _Judge:
    """What policies cost and gain on each sample of a table, in expectation over their coins."""

    def __init__(self, table: ExitTable, costs: CostTable) -> None:
        self.replayer = Replayer(table)
        self.full = table.require_utility("certifying")[:, -1]
        self.costs, self.cumulative = costs, torch.tensor(costs.cumulative, dtype=torch.float64)

    def cost(self, policy: Policy) -> Float[Tensor, " sample"]:
        """Return the expected cost of each sample."""
        parts = [share * self.cumulative[self.replayer.exit_index(part)] for share, part in unmixed(policy)]
        return torch.stack(parts).sum(dim=0)

    def utility(self, policy: Policy) -> Float[Tensor, " sample"]:
        """Return the expected utility of each sample."""
        return self.replayer.per_sample(policy, self.costs)[1]

    def loss(self, policy: Policy) -> Float[Tensor, " sample"]:
        """Return by how much each sample's utility lies below the full model's, in [-1, 1]."""
        return self.full - self.utility(policy)


@dataclass(frozen=True)
class _Goal:
    """What was asked for."""

    guarantee: str
    delta: float
    epsilon: float
    budget: Budget | None
    seed: int

    def passes(self, scaled: Float[Tensor, " sample"], limit: float) -> bool:
        """Tell whether the mean of values in [0, 1] is surely within a limit."""
        return mean_is_below(scaled, limit, self.delta, seed=self.seed)

    def bound(self, scaled: Float[Tensor, " sample"]) -> float:
        """Return the upper bound of that mean."""
        return betting_bound(scaled, self.delta, seed=self.seed)


@dataclass(frozen=True, eq=False)
class _Parts:
    """What choosing needs: both halves, the candidates, the last exit that may be used."""

    fit: _Judge
    certify: _Judge
    dial: Dial
    last: int

    def static(self, exit_index: int) -> Policy:
        """Return the policy that lets everybody leave at one exit, on the dial's own scorer where it has one."""
        thresholds = torch.full((self.dial.costs.num_exits,), -math.inf)
        thresholds[:exit_index] = math.inf
        return ScorePolicy(_scorer_of(self.dial.policies[0]), thresholds)

    def reaching(self, top: Policy) -> Dial:
        """Return the dial with the last usable exit for all at its dear end, if it ends before.

        Where spending more bought nothing on the fit part, the dial has no use for it; here it buys certainty.
        """
        dial, cost = self.dial, self.dial.costs.cumulative[self.last]
        if dial.fit_costs[-1] >= cost * (1 - 1e-9):
            return dial
        utility = float(self.fit.utility(top).mean())
        return replace(
            dial,
            policies=(*dial.policies, top),
            fit_costs=(*dial.fit_costs, cost),
            fit_utilities=(*dial.fit_utilities, utility),
        )


@dataclass(frozen=True, eq=False)
class _Found:
    """What was chosen, its bound, and what would have been chosen without testing."""

    policy: Policy
    bound: float
    plain: Policy
    fell_back: bool


def _scorer_of(policy: Policy) -> Scorer:
    policy = unmixed(policy)[0][1]
    if isinstance(policy, TransformedPolicy):
        policy = policy.policy
    return policy.scorer if isinstance(policy, ScorePolicy) else ConfidenceScorer("max_prob")


def _for_budget(parts: _Parts, goal: _Goal, budget: float) -> _Found:
    """Walk from cheap to dear while the mean cost is surely within the budget."""
    dial, low, high = parts.dial, parts.dial.costs.low, parts.dial.costs.cumulative[parts.last]
    plain, cheapest = dial.at(budget), parts.static(0)
    if parts.last == 0:  # nothing to choose, nothing to test
        return _Found(cheapest, low, plain, fell_back=False)
    end = min(budget, high, dial.fit_costs[-1])
    near = 1 - torch.linspace(1, 0, _CANDIDATES, dtype=torch.float64).square()  # finer towards the budget
    candidates = chain((dial.at(low + f * (end - low)) for f in near[1:-1].tolist()), [plain])

    def scaled(policy: Policy) -> Tensor:
        return ((parts.certify.cost(policy) - low) / (high - low)).clamp(0, 1)

    limit = (budget - low) / (high - low)
    passed = _walk(candidates, lambda policy: goal.passes(scaled(policy), limit))
    if passed is None:
        return _Found(cheapest, low, plain, fell_back=True)
    bound = min(goal.bound(scaled(passed)), limit)
    return _Found(passed, low + bound * (high - low), plain, fell_back=False)


def _for_accuracy(parts: _Parts, goal: _Goal) -> _Found:
    """Walk from dear to cheap while the loss of utility is surely small enough."""
    top, exact = parts.static(parts.last), parts.last == parts.dial.costs.num_exits - 1
    dial = parts.reaching(top)
    low, high = dial.costs.low, dial.costs.cumulative[parts.last]
    end = low if goal.budget is None else min(goal.budget.value, high)
    enough = float(parts.fit.full.mean()) - goal.epsilon
    fitting = [cost for cost in _between(high, end, _CANDIDATES) if _fit_utility(dial, cost) >= enough]
    # finer towards where the loss is just small enough on the fit part
    near = fitting[-1] if fitting else high
    above = [near + (cost - near) ** 2 / (high - near) for cost in _between(high, near, _CANDIDATES * 2 // 3)]
    targets = [*above, *_between(near, end, _CANDIDATES // 3)]
    plain = dial.at(fitting[-1]) if fitting else top

    def scaled(policy: Policy) -> Tensor:
        return ((parts.certify.loss(policy) + 1) / 2).clamp(0, 1)

    limit = (goal.epsilon + 1) / 2
    # the full path loses nothing, whatever the data; the last exit within a deadline has to be tested
    candidates = chain([] if exact else [top], (dial.at(cost) for cost in targets))
    passed = _walk(candidates, lambda policy: goal.passes(scaled(policy), limit))
    if passed is not None:
        return _Found(passed, 2 * min(goal.bound(scaled(passed)), limit) - 1, plain, fell_back=False)
    if exact:
        return _Found(top, 0.0, plain, fell_back=True)
    raise RunError(
        f"epsilon {goal.epsilon:g} cannot be promised within the deadline: leaving at exit {parts.last} may lose up to "
        f"{2 * goal.bound(scaled(top)) - 1:.4g} of the full model's utility, at delta {goal.delta:g}. Allow a larger "
        f"epsilon or a later deadline."
    )


def _between(high: float, low: float, count: int) -> list[float]:
    """Return evenly spaced numbers from below ``high`` down to ``low``, none if the two are equal."""
    return torch.linspace(high, low, count, dtype=torch.float64)[1:].tolist() if high > low else []


def _fit_utility(dial: Dial, cost: float) -> float:
    """Return the expected utility on the fit part of the dial's policy for a cost."""
    above = bisect_left(dial.fit_costs, cost)
    if above in (0, len(dial.fit_costs)):
        return dial.fit_utilities[min(above, len(dial.fit_costs) - 1)]
    (c0, c1), (u0, u1) = (values[above - 1 : above + 1] for values in (dial.fit_costs, dial.fit_utilities))
    return u0 + (cost - c0) / (c1 - c0) * (u1 - u0)


def _walk(candidates: Iterable[Policy], passes: Callable[[Policy], bool]) -> Policy | None:
    """Return the last candidate before the first that does not pass, None if that is the first of all."""
    passed = None
    for policy in candidates:
        if not passes(policy):
            break
        passed = policy
    return passed


def _certified(parts: _Parts, goal: _Goal, found: _Found) -> Certified:
    judge = parts.certify
    cost, utility = float(judge.cost(found.policy).mean()), float(judge.utility(found.policy).mean())
    certificate = Certificate(
        guarantee=goal.guarantee,
        delta=goal.delta,
        epsilon=goal.epsilon if goal.guarantee == "accuracy" else None,
        budget=None if goal.budget is None else goal.budget.value,
        unit=parts.dial.costs.unit,
        n_fit=parts.fit.replayer.table.num_samples,
        n_certify=judge.replayer.table.num_samples,
        bound=found.bound,
        mean_cost=cost,
        mean_utility=utility,
        full_utility=float(judge.full.mean()),
        price=float(judge.utility(found.plain).mean()) - utility,
        price_cost=cost - float(judge.cost(found.plain).mean()),
        fell_back=found.fell_back,
    )
    return Certified(found.policy, certificate, parts.dial.reason)
