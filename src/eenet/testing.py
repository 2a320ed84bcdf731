"""For authors of schedulers and policies, and for our own tests: planted tables, and what every scheduler must pass."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from eenet.core.costs import CostTable, standard_budgets
from eenet.core.policy import Policy
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer, exit_distribution, replay
from eenet.errors import BudgetError, TableError
from eenet.schedulers.base import Scheduler
from eenet.schedulers.bounds import static_mix

__all__ = [
    "check_policy",
    "check_scheduler",
    "posterior_optimum",
    "posterior_table",
    "synthetic_table",
    "typed_optimum",
    "typed_table",
]

_LATER = 0.95  # how often the last exit of `posterior_table` is right
_TYPE_SHARES = (0.5, 0.3, 0.2)  # of easy, middling and hard samples in `typed_table`


def synthetic_table(
    num_samples: int = 1000, *, num_exits: int = 4, num_classes: int = 5, seed: int = 0, labels: bool = True
) -> ExitTable:
    """Return a table of a plausible network: later exits are better, some samples are harder, costs are even.

    Args:
        num_samples: Rows.
        num_exits: Exits.
        num_classes: Classes.
        seed: Of the draw.
        labels: Whether the table carries labels.
    """
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(num_classes, (num_samples,), generator=generator)
    ease = torch.randn(num_samples, 1, generator=generator).mul(0.7).exp()
    strength = torch.linspace(0.8, 4.0, num_exits) * ease
    shared = torch.randn(num_samples, 1, num_classes, generator=generator)
    own = torch.randn(num_samples, num_exits, num_classes, generator=generator)
    logits = shared + own + strength[:, :, None] * torch.nn.functional.one_hot(label, num_classes)[:, None]
    costs = CostTable(tuple(float(k + 1) for k in range(num_exits)), "ms")
    return ExitTable(logits=logits, labels=label if labels else None, costs=costs, split="synthetic")


def typed_table(num_samples: int = 2000, *, seed: int = 0) -> ExitTable:
    """Return a table whose best policy is known exactly: three kinds of samples, told apart by their confidences.

    Easy samples (half) are right at exit 0, middling ones (0.3) from exit 1 on, hard ones (0.2) at exit 2 only. An
    exit is sure of a sample just where it is right. Costs are 1, 2 and 4.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = torch.multinomial(torch.tensor(_TYPE_SHARES), num_samples, replacement=True, generator=generator)
    label = torch.randint(4, (num_samples,), generator=generator)
    right = torch.arange(3) >= kind[:, None]
    wrong = (label[:, None] + 1 + torch.randint(3, (num_samples, 3), generator=generator)) % 4
    chosen = torch.where(right, label[:, None], wrong)
    sureness = torch.where(right, 4.0, 1.0) + 0.2 * torch.rand(num_samples, 3, generator=generator)
    logits = torch.nn.functional.one_hot(chosen, 4) * sureness[:, :, None]
    return ExitTable(logits=logits.float(), labels=label, costs=CostTable((1.0, 2.0, 4.0), "ms"), split="typed")


def typed_optimum(budget: float) -> float:
    """Return the largest expected utility any policy reaches on draws of `typed_table`.

    Going on to exit 1 with all who are not easy costs 1 each and gains for the share 0.3 / 0.5 of them; going on to
    exit 2 with the hard ones costs 2 each and always gains. So the slopes are 0.6 and 0.5 per unit of cost.
    """
    easy, middling, hard = _TYPE_SHARES
    first, second = middling + hard, 2 * hard
    spare = max(0.0, budget - 1.0)
    return easy + middling * min(1.0, spare / first) + hard * min(1.0, max(0.0, spare - first) / second)


def posterior_table(num_samples: int = 4000, *, seed: int = 0) -> ExitTable:
    """Return a table of two exits whose first probability is calibrated, so that the best rule is a threshold on it.

    The probability of exit 0's choice is uniform on [1/2, 1] and is the chance that it is right; exit 1 is right with
    chance 0.95, whatever was seen. Costs are 1 and 2.
    """
    generator = torch.Generator().manual_seed(seed)
    sure = 0.5 + 0.5 * torch.rand(num_samples, generator=generator).clamp(1e-6, 1 - 1e-6)
    label = torch.randint(2, (num_samples,), generator=generator)
    right = torch.stack(
        [torch.rand(num_samples, generator=generator) < sure, torch.rand(num_samples, generator=generator) < _LATER], 1
    )
    odds = torch.stack([(sure / (1 - sure)).log(), torch.full_like(sure, math.log(_LATER / (1 - _LATER)))], 1)
    chosen = torch.where(right, label[:, None], 1 - label[:, None])
    logits = torch.nn.functional.one_hot(chosen, 2) * odds[:, :, None]
    return ExitTable(logits=logits, labels=label, costs=CostTable((1.0, 2.0), "ms"), split="posterior")


def posterior_optimum(budget: float) -> float:
    """Return the largest expected utility any policy reaches on draws of `posterior_table`.

    The least sure samples go on, as long as the last exit is surer: with share ``f`` going on, those left are uniform
    on ``[1/2 + f/2, 1]``, so the utility is ``(1 - f) (3 + f) / 4 + 0.95 f``.
    """
    f = min(max(budget - 1.0, 0.0), 2 * (_LATER - 0.5))
    return (1 - f) * (3 + f) / 4 + _LATER * f


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
