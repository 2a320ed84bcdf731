"""What every scheduler and every policy must pass, and how much of the possible gain a policy reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from eenet.core.combined import unmixed
from eenet.core.costs import CostTable, standard_budgets
from eenet.core.policy import Policy
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer, exit_distribution, replay
from eenet.errors import BudgetError, InputError, TableError
from eenet.schedulers.base import Scheduler
from eenet.schedulers.bounds import static_mix
from eenet.testing.tables import synthetic_table

__all__ = ["Gain", "check_policy", "check_scheduler", "measure_gain"]


def check_scheduler(scheduler: Scheduler, *, seed: int = 0, never_falls: bool = False) -> None:
    """Check what every scheduler promises, on small synthetic tables.

    The budget is kept on the fitting data; one dial serves all budgets and agrees with fitting anew; fitting twice
    gives the same; the policy passes `check_policy`; missing labels and impossible budgets are refused; on fresh data
    the policy is no worse than the best blind mix of exits at equal cost, beyond noise.

    Args:
        scheduler: To be checked.
        seed: Of the tables.
        never_falls: Whether a larger budget must never lower utility on the fitting data.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    val, test = synthetic_table(800, seed=seed), synthetic_table(2000, seed=seed + 1)
    costs = val.require_costs()
    dial = scheduler.sweep(val, costs, standard_budgets(costs))
    on_val, on_test = Replayer(val), Replayer(test)
    utilities = []
    for budget in (costs.low, *standard_budgets(costs), costs.high, 2 * costs.high):
        policy = dial.at(budget)
        cost, utility = on_val.expected(policy, costs)
        _require(cost <= budget, f"budget {budget:g} is exceeded on the fitting data: {cost:.9g}")
        spent, gained = on_test.expected(policy, costs)
        floor = static_mix(val, test, costs, max(spent, costs.low)).utility
        _require(
            gained >= floor - 0.03,
            f"at cost {spent:g} a blind mix of exits is better: {floor:.4f} against {gained:.4f}",
        )
        utilities.append(utility)
    if never_falls:
        falls = any(later < earlier - 1e-9 for earlier, later in pairwise(utilities))
        _require(not falls, f"a larger budget lowers utility on the fitting data: {utilities}")
    middle = standard_budgets(costs)[5]
    once, twice = scheduler.fit(val, costs, budget=middle), scheduler.fit(val, costs, budget=middle)
    _require(
        bool((on_test.exit_index(once) == on_test.exit_index(twice)).all()), "fitting twice gives different policies"
    )
    check_policy(once, test)
    _refuses(scheduler, val, costs)


def check_policy(policy: Policy, table: ExitTable) -> None:
    """Check what every policy promises: shares sum to 1, and neither the order of samples nor their batches matter.

    Args:
        policy: To be checked.
        table: With costs, of the same number of exits.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    trace = replay(policy, table)
    shares = exit_distribution(trace.exit_index, table.num_exits)
    _require(abs(float(shares.sum()) - 1) < 1e-12, f"exit shares sum to {float(shares.sum())}")
    _require(trace.log_probs.exp().sum(dim=1).sub(1).abs().max().item() < 1e-3, "answers are no log-probabilities")
    ids = torch.arange(table.num_samples)
    for size in (1, 7, 64):
        for rows in torch.split(ids[: 3 * size], size):
            _require(
                bool((_stops(policy, table, rows) == trace.exit_index[rows]).all()),
                f"decisions change in batches of {size}",
            )
    shuffled = torch.randperm(table.num_samples, generator=torch.Generator().manual_seed(0))[:200]
    _require(
        bool((_stops(policy, table, shuffled) == trace.exit_index[shuffled]).all()),
        "decisions depend on the order of samples",
    )


@dataclass(frozen=True)
class Gain:
    """What a policy gains over the best blind mix of exits, and what could be gained.

    Attributes:
        cost: Mean cost at which all are compared.
        reached: Mean utility of the policy beyond that of the best blind mix.
        possible: Mean utility of the best policy there is beyond that of the best blind mix.
    """

    cost: float
    reached: float
    possible: float

    @property
    def share(self) -> float:
        """The share of the possible gain that is reached: 0 is the best blind mix, 1 the best policy."""
        return self.reached / self.possible


def measure_gain(
    policy: Policy,
    test: ExitTable,
    optimum: Callable[[float], float],
    *,
    chances: Float[Tensor, "sample exit class"] | None = None,
    accuracies: Sequence[float] | None = None,
) -> Gain:
    """Return what a policy gains on a planted table, and what could be gained.

    Policy, best blind mix and best policy are compared at the mean cost the policy realises on the table, in
    expectation over its coin; the blind mix is chosen on the table itself.

    Args:
        policy: To be judged.
        test: A large fresh draw of a planted table, with costs.
        optimum: The largest expected utility at a mean cost, such as `gaussian_optimum`.
        chances: The exact chance of each class given all evidence up to each exit. With it answers are judged by their
            chance of being right, which has less noise than the table's utility.
        accuracies: The exact mean utility of every exit, such as `gaussian_accuracies`. With it the best policy is
            compared with the blind mix where neither has noise; without, a draw of lucky samples makes the possible
            gain look small.

    Raises:
        InputError: Nothing is to be gained at that cost.
    """
    costs, rows = test.require_costs(), torch.arange(test.num_samples)
    if chances is None:
        cost, utility = Replayer(test).expected(policy, costs)
    else:
        cost = utility = 0.0
        for weight, part in unmixed(policy):
            trace = replay(part, test)
            worth = chances[rows, trace.exit_index, trace.log_probs.argmax(dim=1)]
            cost, utility = cost + weight * trace.mean_cost, utility + weight * float(worth.mean())
        own = chances.gather(2, test.logits.argmax(dim=2, keepdim=True)).squeeze(2)
        test = ExitTable(logits=test.logits, utility=own, costs=costs)
    blind = exact = static_mix(test, test, costs, max(cost, costs.low)).utility
    if accuracies is not None:
        mean = ExitTable(logits=test.logits[:1], utility=torch.tensor([accuracies]).double(), costs=costs)
        exact = static_mix(mean, mean, costs, max(cost, costs.low)).utility
    possible = optimum(cost) - exact
    if possible <= 0:
        raise InputError(
            f"cost {cost:g} {costs.unit} leaves nothing to gain: the best policy is no better there than a blind mix "
            f"of exits. Judge the policy at another budget."
        )
    return Gain(cost=cost, reached=utility - blind, possible=possible)


def _stops(policy: Policy, table: ExitTable, rows: Tensor) -> Tensor:
    """Return where rows leave, deciding exit by exit as real inference does; the slow twin of `replay`."""
    log_probs = table.log_probs(rows)
    features = None if table.features is None else table.features[rows]
    stops = torch.full((len(rows),), table.num_exits - 1)
    for k in reversed(range(table.num_exits - 1)):
        leaves = policy.leaves(log_probs[:, : k + 1], rows, None if features is None else features[:, : k + 1])
        stops = torch.where(leaves, k, stops)
    return stops


def _refuses(scheduler: Scheduler, val: ExitTable, costs: CostTable) -> None:
    blind = ExitTable(logits=val.logits, costs=costs)
    for table, budget, wanted in (
        (blind, costs.high, TableError),
        (val, costs.low / 2, BudgetError),
        (val, "nonsense", BudgetError),
    ):
        try:
            policy = scheduler.fit(table, costs, budget=budget)
        except wanted:
            continue
        _require(
            False,
            f"budget {budget} on a table {'with' if table is val else 'without'} labels is accepted: "
            f"{type(policy).__name__}",
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
