"""What every scheduler and every policy must pass, and how much of the possible gain a policy reaches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int

from eenet.errors import BudgetError, InputError, TableError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer, exit_distribution, replay
from eenet.policies.store import load_policy, own_parts, save_policy
from eenet.schedulers.base import Scheduler
from eenet.schedulers.bounds import static_mix
from eenet.tables.costs import CostTable, standard_budgets
from eenet.tables.table import ExitTable
from eenet.testing.planted import synthetic_table


def check_scheduler(scheduler: Scheduler, *, seed: int = 0, never_falls: bool = False) -> None:
    """Check what every scheduler promises, on small synthetic tables.

    The budget is kept on the fitting data; one dial serves all budgets and agrees with fitting anew; fitting twice
    gives the same; the policy passes `check_policy`; saved and loaded, where it can be saved, policy and dial decide
    the same to the bit; missing labels and impossible budgets are refused; on fresh data the policy is no worse than
    the best static mix of exits at equal cost, beyond noise.

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
        cost, utility = on_val.expected(policy)
        _require(cost <= budget, f"budget {budget:g} is exceeded on the fitting data: {cost:.9g}")
        spent, gained = on_test.expected(policy)
        floor = static_mix(val, test, costs, max(spent, costs.low)).utility
        better = f"at cost {spent:g} a static mix of exits is better: {floor:.4f} against {gained:.4f}"
        _require(gained >= floor - 0.03, better)
        utilities.append(utility)
    falls = any(later < earlier - 1e-9 for earlier, later in pairwise(utilities))
    _require(not (never_falls and falls), f"a larger budget lowers utility on the fitting data: {utilities}")
    middle = standard_budgets(costs)[5]
    policy, again = scheduler.fit(val, costs, budget=middle), scheduler.fit(val, costs, budget=middle)
    _require(np.array_equal(on_test.exit_index(policy), on_test.exit_index(again)), "fitting twice gives two policies")
    check_policy(policy, test)
    _check_saved(policy, dial, on_test)
    _check_refused(scheduler, val, costs)


def check_policy(policy: Policy, table: ExitTable) -> None:
    """Check what every policy promises: decisions and answers do not depend on the other samples, to the bit.

    Samples are run exit by exit, as a model would: in batches of 1, 7 and 64, and in another order. Where each leaves
    and what it is answered with must be what `replay` says. Shares of exits sum to 1, answers are log-probabilities.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    trace = replay(policy, table)
    shares = exit_distribution(trace.exit_index, table.num_exits)
    _require(abs(float(shares.sum()) - 1) < 1e-12, f"exit shares sum to {float(shares.sum())}")
    if trace.log_probs is not None:
        sums = np.exp(trace.log_probs.astype(np.float64)).sum(axis=1)
        _require(float(np.abs(sums - 1).max()) < 1e-3, "answers are no log-probabilities")
    ids = np.arange(table.num_samples)
    batches = [(ids[start : start + size], f"in batches of {size}") for size in (1, 7, 64) for start in (0, size)]
    batches.append((np.random.default_rng(0).permutation(ids)[:200], "with the order of samples"))
    for rows, how in batches:
        stops, answers = _run(policy, table, rows)
        _require(np.array_equal(stops, trace.exit_index[rows]), f"decisions change {how}")
        if trace.log_probs is not None:
            _require(np.array_equal(answers, trace.log_probs[rows]), f"answers change {how}")


@dataclass(frozen=True)
class Gain:
    """What a policy gains over the best static mix of exits, and what could be gained.

    Attributes:
        cost: Mean cost at which all are compared.
        reached: Mean utility of the policy beyond that of the best static mix.
        possible: Mean utility of the best policy there is beyond that of the best static mix.
    """

    cost: float
    reached: float
    possible: float

    @property
    def share(self) -> float:
        """The share of the possible gain that is reached: 0 is the best static mix, 1 the best policy."""
        return self.reached / self.possible


def measure_gain(
    policy: Policy,
    test: ExitTable,
    optimum: Callable[[float], float],
    *,
    chances: Float[np.ndarray, "sample exit class"] | None = None,
    accuracies: Sequence[float] | None = None,
) -> Gain:
    """Return what a policy gains on a planted table, and what could be gained.

    Policy, best static mix and best policy are compared at the mean cost the policy realises on the table, in
    expectation over its coin; the static mix is chosen on the table itself.

    Args:
        policy: To be judged.
        test: A large fresh planted table, with costs.
        optimum: The largest expected utility at a mean cost, such as `gaussian_optimum`.
        chances: The exact chance of each class given all evidence up to each exit. With it answers are judged by their
            chance of being right, which has less noise than the table's utility.
        accuracies: The exact mean utility of every exit, such as `gaussian_accuracies`. With it the best policy is
            compared with the static mix where neither has noise; without, lucky samples make the possible gain look
            small.

    Raises:
        InputError: Nothing is to be gained at that cost.
    """
    costs, rows = test.require_costs(), np.arange(test.num_samples)
    if chances is None:
        cost, utility = Replayer(test).expected(policy)
    else:
        cost = utility = 0.0
        for weight, part in policy.components():
            trace = replay(part, test)
            assert trace.log_probs is not None
            right = chances[rows, trace.exit_index, trace.log_probs.argmax(axis=1)]
            cost, utility = cost + weight * trace.mean_cost, utility + weight * float(right.mean())
        own = np.take_along_axis(chances, test.seen().argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
        test = ExitTable(logits=test.logits, utility=own, costs=costs)
    static = exact = static_mix(test, test, costs, max(cost, costs.low)).utility
    if accuracies is not None:
        mean = ExitTable(logits=test.logits[:1], utility=[list(accuracies)], costs=costs)
        exact = static_mix(mean, mean, costs, max(cost, costs.low)).utility
    possible = optimum(cost) - exact
    if possible <= 0:
        raise InputError(
            f"cost {cost:g} {costs.unit} leaves nothing to gain: the best policy is no better there than a static mix "
            f"of exits. Judge the policy at another budget."
        )
    return Gain(cost=cost, reached=utility - static, possible=possible)


def _run(
    policy: Policy, table: ExitTable, rows: Int[np.ndarray, " row"]
) -> tuple[Int[np.ndarray, " row"], Float32[np.ndarray, "row column"]]:
    """Return where rows leave and with what, exit by exit, those that left missing from the batch; twin of `replay`."""
    seen, last = table.seen(rows), table.num_exits - 1
    stops, answers, here = np.full(len(rows), last), np.empty_like(seen[:, -1]), np.arange(len(rows))
    for k in range(table.num_exits):
        leaves = policy.leaves(seen[here, : k + 1], rows[here]) | (k == last)
        left, here = here[leaves], here[~leaves]
        stops[left] = k
        if table.has_classes and len(left):
            answers[left] = policy.answers(seen[left, : k + 1], rows[left])
        if not len(here):
            break
    return stops, answers


def _check_saved(policy: Policy, dial: Dial, on_test: Replayer) -> None:
    """Check that policy and dial, saved and loaded, decide the same; policies that cannot be saved are left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy"
        try:
            save_policy(policy, path, costs=dial.costs, dial=dial)
        except InputError:
            return
        saved = load_policy(path, own_parts(policy, dial))
    _require(saved.dial is not None and saved.costs == dial.costs, "the dial or its costs are lost by saving")
    assert saved.dial is not None
    budget = standard_budgets(dial.costs)[3]
    for before, after in ((policy, saved.policy), (dial.at(budget), saved.dial.at(budget))):
        same = np.array_equal(on_test.exit_index(before), on_test.exit_index(after))
        _require(same, "saving and loading changes decisions")


def _check_refused(scheduler: Scheduler, val: ExitTable, costs: CostTable) -> None:
    unlabelled = ExitTable(logits=val.logits, costs=costs)
    for table, budget, wanted in (
        (unlabelled, costs.high, TableError),
        (val, costs.low / 2, BudgetError),
        (val, "nonsense", BudgetError),
    ):
        try:
            policy = scheduler.fit(table, costs, budget=budget)
        except wanted:
            continue
        labels = "with" if table is val else "without"
        _require(False, f"budget {budget} on a table {labels} labels is accepted: {type(policy).__name__}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
