"""Two policies on the same samples: at equal realised cost, and in which groups of samples they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from eenet.errors import BudgetError, TableError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer, exit_distribution
from eenet.tables.checks import instance
from eenet.tables.costs import BudgetLike
from eenet.tables.display import samples
from eenet.tables.table import ExitTable

EQUAL = 1e-3
"""Relative difference up to which two mean costs count as equal."""

GROUPS = {
    "A": "both right, at the same exit",
    "B": "both right, the second leaves earlier",
    "C": "only the second right, which leaves later",
    "D": "both wrong, the second leaves earlier",
    "E": "both wrong, at the same exit",
    "other": "none of these",
}
"""The groups of samples in the paper's Figure 3, and what is left."""

_HALVINGS = 40  # of a range of budgets
_AROUND = np.geomspace(1e-5, 2e-2, 16)  # relative distances from the budget found, where costs come in steps

Found: TypeAlias = tuple[float, Policy]


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """Where every sample leaves by two policies, and whether it is then answered right.

    Attributes:
        exit_index: Where each sample leaves, by the first policy and by the second.
        right: Whether it is answered right there.
        group: A name of `GROUPS` for each sample.
        costs: Realised mean cost of each policy.
    """

    exit_index: Int[np.ndarray, "policy sample"]
    right: Bool[np.ndarray, "policy sample"]
    group: Shaped[np.ndarray, " sample"]
    costs: tuple[float, float]

    @property
    def equal_cost(self) -> bool:
        """Whether the realised mean costs agree within 0.1 %."""
        return abs(self.costs[0] - self.costs[1]) <= EQUAL * min(self.costs)

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples in each group."""
        return {name: int((self.group == name).sum()) for name in GROUPS}

    def right_and_left(self, num_exits: int) -> Int[np.ndarray, "policy exit 2"]:
        """Return, for each policy and exit, how many samples that left there are right, and how many left."""
        pairs = zip(self.exit_index, self.right, strict=True)
        counted = [[np.bincount(of, minlength=num_exits) for of in (left[ok], left)] for left, ok in pairs]
        return np.stack(counted).transpose(0, 2, 1)


def paired(table: ExitTable, first: Policy, second: Policy) -> Paired:
    """Return where the samples leave by two policies. Row numbers are the sample ids, as in `replay`.

    Args:
        table: With labels, or a utility of 0 and 1, and costs.
        first: The policy compared with.
        second: Such as a learnt one.

    Raises:
        TableError: No labels, a utility that is neither right nor wrong, or no costs.
        ShapeError: Policies and table do not belong together.
    """
    replayer, found = Replayer(table), []
    table.require_costs()
    require_right(table, "pairing policies")
    for policy in (first, second):
        exit_index = replayer.exit_index(policy)
        right = replayer.utility(policy, exit_index) == 1
        found.append((exit_index, right, replayer.mean_cost(exit_index)))
    (one, right, cost), (other, right_too, cost_too) = found
    neither = ~right & ~right_too
    conditions = {
        "A": right & right_too & (one == other),
        "B": right & right_too & (other < one),
        "C": ~right & right_too & (other > one),
        "D": neither & (other < one),
        "E": neither & (one == other),
    }
    return Paired(
        exit_index=np.stack([one, other]),
        right=np.stack([right, right_too]),
        group=np.select(list(conditions.values()), list(conditions), default="other"),
        costs=(cost, cost_too),
    )


def group_counts(table: ExitTable, first: Policy, second: Policy) -> dict[str, int]:
    """Return how many samples are in each of the groups of the paper's Figure 3, `GROUPS`; errors: see `paired`."""
    return paired(table, first, second).counts


def require_right(table: ExitTable, what: str) -> Bool[np.ndarray, "sample exit"]:
    """Return whether each exit is right on each sample.

    Raises:
        TableError: That is not known, or utility has values between 0 and 1.
    """
    utility = table.require_utility(what)
    if ((utility != 0) & (utility != 1)).any():
        raise TableError(
            f"utility of {table.name} has values between 0 and 1: {what} needs answers that are right (1) or wrong (0)."
            " Round it, or give labels."
        )
    return np.asarray(utility == 1)


def at_equal_cost(first: Dial, second: Dial, table: ExitTable, cost: BudgetLike) -> tuple[Policy, Policy]:
    """Return a policy of each dial, such that their realised mean costs on a table agree within 0.1 %.

    Two policies fitted for one budget rarely spend the same on new data, and whoever spends more looks better. So the
    budgets of both dials are found by bisection on the table itself. A mean cost over samples moves in steps, one
    sample at a time: among the nearby budgets of both, those that agree and are closest to ``cost`` are taken.

    Args:
        first: The dial of the first policy.
        second: The dial of the second.
        table: Where the costs shall agree, with costs; neither labels nor utility are read.
        cost: The mean cost per sample that both shall realise: a number, with a unit, or a percentage.

    Raises:
        BudgetError: A dial does not reach this mean cost on the table.
        TableError: The table is so small that no two mean costs agree within 0.1 %, or has no costs.

    Example:
        >>> from eenet.schedulers import GeometricScheduler, JointScheduler
        >>> from eenet.testing import synthetic_table
        >>> val, test = synthetic_table(800, seed=0), synthetic_table(800, seed=1)
        >>> dials = (scheduler.sweep(val) for scheduler in (GeometricScheduler(), JointScheduler()))
        >>> paired(test, *at_equal_cost(*dials, test, 2.5)).equal_cost
        True
    """
    for dial, name in ((first, "first"), (second, "second")):
        instance(dial, Dial, name, "Pass what sweep returns.")
    replayer = Replayer(table)
    known = table.require_costs()
    asked = known.budget(cost).value
    near = [list(_near(dial, name, replayer, asked)) for dial, name in ((first, "first"), (second, "second"))]
    pairs = [(abs(a - b) / min(a, b), abs(a - asked) + abs(b - asked), p, q) for a, p in near[0] for b, q in near[1]]
    equal = [pair for pair in pairs if pair[0] <= EQUAL]
    if not equal:
        closest = min(pair[0] for pair in pairs)
        raise TableError(
            f"{table.name} of {samples(table.num_samples)} is too small for equal costs near {asked:g} {known.unit}: "
            f"the closest two differ by {closest:.2%}, and 0.1 % is needed. Take more samples."
        )
    _, _, one, other = min(equal, key=lambda pair: pair[1])
    return one, other


def _near(dial: Dial, name: str, replayer: Replayer, asked: float) -> Iterator[Found]:
    """Yield policies of a dial whose realised mean cost is near to what is asked for, with that cost."""

    def realised(budget: float) -> Found:
        policy = dial.at(budget)
        return replayer.mean_cost(replayer.exit_index(policy)), policy

    least = max(dial.fit_costs[0], dial.costs.low)
    low, high = least, max(dial.fit_costs[-1], least)
    ends = realised(low), realised(high)
    yield from ends
    if not ends[0][0] * (1 - EQUAL) <= asked <= ends[1][0] * (1 + EQUAL):
        unit = replayer.table.require_costs().unit
        raise BudgetError(
            f"cost {asked:g} {unit} per sample is out of reach: on {replayer.table.name} the {name} dial realises "
            f"{ends[0][0]:g} to {ends[1][0]:g} {unit}. Pass a cost that both dials reach."
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = realised(middle)
        yield found
        low, high = (middle, high) if found[0] <= asked else (low, middle)
    for budget in high * np.concatenate([1 - _AROUND, 1 + _AROUND]):
        yield realised(float(np.clip(budget, least, dial.fit_costs[-1])))


def shares_by_budget(
    dial: Dial, table: ExitTable
) -> tuple[Float64[np.ndarray, " point"], Float64[np.ndarray, "point exit"]]:
    """Return budgets, and the share of a table's samples that leave at each exit, in expectation over coins.

    Between two budgets the shares are on a straight line, because the dial mixes; the budgets are all of those where a
    line begins or ends, with the cost of the first and the last exit.
    """
    instance(dial, Dial, "dial", "Pass what sweep returns.")
    replayer = Replayer(table)
    replayer.prepare(dial.policies)
    shares = np.zeros((len(dial.policies), dial.costs.num_exits))
    for i, policy in enumerate(dial.policies):
        for weight, part in policy.components():
            shares[i] += weight * exit_distribution(replayer.exit_index(part), shares.shape[1])
    # below and above its own policies a dial stays at the nearest
    below, above = int(dial.costs.low < dial.fit_costs[0]), int(dial.costs.high > dial.fit_costs[-1])
    budgets = [dial.costs.low] * below + list(dial.fit_costs) + [dial.costs.high] * above
    return np.array(budgets), np.concatenate([shares[:below], shares, shares[len(shares) - above :]])
