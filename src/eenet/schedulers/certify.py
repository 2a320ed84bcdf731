"""Promises: a policy together with what holds for it, at which level, and on what data.

Half of the calibration set fits the scheduler and puts policies in an order; the other half, which took no part in
that, tests them one after the other, from the safest on, and stops at the first failure. So however many are tested, a
policy that breaks the promise is chosen with probability ``delta`` at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import chain, takewhile
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from eenet.errors import InputError, RunError, TableError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy, static_policy
from eenet.policies.replay import Replayer
from eenet.schedulers.base import Scheduler
from eenet.schedulers.betting import betting_bound, check_level, mean_is_below
from eenet.schedulers.heuristics import any_scorer
from eenet.tables.costs import BudgetLike, CostTable
from eenet.tables.table import ExitTable

_CANDIDATES = 60
_LEAST = 100  # samples, of which half certify


@dataclass(frozen=True)
class Certificate:
    """What is promised about a policy, and what the promise cost.

    Attributes:
        guarantee: ``"budget"`` or ``"accuracy"``.
        delta: Chance, over the calibration set, that the promise is wrong.
        epsilon: By how much the mean utility may lie below the full model's; None for a budget.
        budget: Mean cost per sample; None where only accuracy was asked for.
        unit: Of costs.
        n_fit: Samples that fitted the candidates.
        n_certify: Samples that tested them.
        bound: Upper confidence bound, at level ``delta``, of the mean cost (``"budget"``) or of the loss of utility
            against the full model (``"accuracy"``); at least that mean on the certify part.
        mean_cost: On the certify part, in expectation over the coin.
        mean_utility: On the certify part, in expectation over the coin.
        full_utility: Mean utility of the full model on the certify part.
        price: Utility lost to the promise on the certify part, against the plain policy: what the fit part alone would
            have chosen for the same goal, without a margin for chance.
        price_cost: Mean cost that the certified policy spends more than the plain one, on the certify part.
        fell_back: Whether no policy but the one that needs no test (exit 0, or the full path, for all) could be
            certified.
    """

    guarantee: str
    delta: float
    epsilon: float | None
    budget: float | None
    unit: str
    n_fit: int
    n_certify: int
    bound: float
    mean_cost: float
    mean_utility: float
    full_utility: float
    price: float
    price_cost: float
    fell_back: bool

    @property
    def statement(self) -> str:
        """The promise, its level, and the data it holds on."""
        if self.guarantee == "budget":
            promise = f"the mean cost per sample is at most {self.budget:g} {self.unit}"
            fallback = "Only leaving at exit 0 could be certified, so every sample does."
        else:
            promise = f"the mean utility is at most {self.epsilon:g} below that of the full model"
            fallback = "No early exit could be certified, so every sample takes the full path."
        level = f"With confidence {100 * (1 - self.delta):.6g} % (delta {self.delta:g})"
        data = (
            "This holds for data from the same distribution as the calibration set, and for no other; it was certified "
            f"on {self.n_certify} samples of that set which took no part in fitting."
        )
        return " ".join([f"{level}, {promise}.", data] + [fallback] * self.fell_back)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values, the statement included."""
        return asdict(self) | {"statement": self.statement}


@dataclass(frozen=True, eq=False)
class Certified:
    """A policy and what is promised about it.

    Attributes:
        policy: The rule.
        certificate: The promise.
        dial: What the fit half gave for every budget; nothing is promised about its other policies. Its ``reason``
            says why the scheduler was chosen, where there was a choice.
    """

    policy: Policy
    certificate: Certificate
    dial: Dial


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

    * ``"budget"``: the expected cost is at most the budget. Policies are tested from cheap to expensive; the last that
      passes is returned, and exit 0 for all where none does. Where cost differs from sample to sample, exit 0 has to be
      tested too, and no sample may ever cost more than the most expensive one of the table.
    * ``"accuracy"``: the expected utility is at most ``epsilon`` below that of the full model. Policies are tested
      from the full path to cheaper ones, down to ``budget`` if one is given; the last that passes is returned, and the
      full path where none does.

    Guarantee: with probability ``1 - delta`` over the samples of the table, the returned policy keeps the promise on
    independent data from the same distribution. Nothing is promised for other data. On the certify part itself the mean
    never exceeds the limit.

    Args:
        scheduler: Orders and proposes the policies.
        table: With ``costs``: as of `Scheduler.sweep`.
        costs: Default: the table's own.
        budget: A mean cost per sample; needed for the budget, optional for accuracy.
        guarantee: ``"budget"`` or ``"accuracy"``.
        delta: Chance that the promise is wrong, in (0, 1).
        epsilon: Utility that may be lost against the full model, in (0, 1); for accuracy only.
        seed: Of the split and of the order in which samples are tested.


    Raises:
        InputError: ``guarantee`` is unknown, ``delta`` or ``epsilon`` is outside (0, 1), or the budget is missing.
        TableError: There are fewer than 100 samples, neither labels nor utility, or no costs.
        BudgetError: The budget is no number, has a foreign unit or is below the cost of exit 0.
        RunError: A deadline closes the full path, and nothing within it could be certified to lose so little; or costs
            differ from sample to sample, and not even exit 0 could be certified to keep the budget.

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
    table = table.priced(costs)
    table.require_utility("certifying")
    known = table.require_costs()
    asked = None if budget is None else known.budget(budget).value
    last = scheduler.open_exits(known) - 1
    order, half = np.random.default_rng(seed).permutation(table.num_samples), table.num_samples // 2
    fit, rest = table.select(np.sort(order[half:])), table.select(order[:half])
    least = fit.require_costs().low  # above the budget at worst by rounding, or where cost differs between samples
    dial = scheduler.sweep(fit, budgets=None if asked is None else [max(asked, least)])
    task = _Task(guarantee, delta, epsilon, asked, seed, Replayer(fit), Replayer(rest), dial, last)
    if asked is not None and guarantee == "budget":
        return _for_budget(task, asked, table.leaving_costs)
    return _for_accuracy(task)


def check_promise(guarantee: str, delta: float, epsilon: float, budget: BudgetLike | None) -> None:
    """Refuse a promise that cannot be given, with an `InputError`; see `certify`."""
    if guarantee not in ("budget", "accuracy"):
        raise InputError(
            f"guarantee {guarantee!r} is unknown: 'budget' or 'accuracy' can be promised. Pass one of them."
        )
    check_level(delta)
    if not 0 < epsilon < 1:
        raise InputError(f"epsilon {epsilon:g} is no loss of utility: it must lie in (0, 1). Pass for example 0.01.")
    if guarantee == "budget" and budget is None:
        raise InputError("budget is missing: the guarantee 'budget' is about one. Pass a mean cost per sample.")


@dataclass(frozen=True, eq=False)
class _Task:
    """What was asked for, and what choosing needs: both halves, the candidates, the last exit that may be used."""

    guarantee: str
    delta: float
    epsilon: float
    budget: float | None
    seed: int
    fit: Replayer
    certify: Replayer
    dial: Dial
    last: int

    def static(self, exit_index: int) -> Policy:
        """Return the policy that lets everybody leave at one exit."""
        table = self.fit.table
        return static_policy(any_scorer(table), exit_index, table.num_exits)

    def at(self, cost: float) -> Policy:
        """Return the dial's policy for a mean cost, the cheapest where that is too little."""
        return self.dial.at(max(cost, self.dial.costs.low))

    def reaching(self, top: Policy) -> _Task:
        """Return the same with the last usable exit for all as the dial's most expensive policy, if it ends before.

        Where spending more bought nothing on the fit part, the dial has no use for it; here it buys certainty.
        """
        dial, (cost, utility) = self.dial, self.fit.expected(top)
        if dial.fit_costs[-1] >= cost * (1 - 1e-9):
            return self
        known = zip(dial.fit_costs, dial.fit_utilities, dial.policies, strict=True)
        longer = Dial.of_candidates([*known, (cost, utility, top)], dial.costs, dial.seed)
        return replace(self, dial=replace(longer, reason=dial.reason))

    def promised(self, policy: Policy, bound: float, plain: Policy, *, fell_back: bool) -> Certified:
        """Return a policy with its certificate; ``plain`` would have been chosen without testing."""
        (cost, utility), (plain_cost, plain_utility) = map(self.certify.expected, (policy, plain))
        certificate = Certificate(
            guarantee=self.guarantee,
            delta=self.delta,
            epsilon=self.epsilon if self.guarantee == "accuracy" else None,
            budget=self.budget,
            unit=self.dial.costs.unit,
            n_fit=self.fit.table.num_samples,
            n_certify=self.certify.table.num_samples,
            bound=bound,
            mean_cost=cost,
            mean_utility=utility,
            full_utility=float(self.certify.table.require_utility("certifying")[:, -1].mean()),
            price=plain_utility - utility,
            price_cost=cost - plain_cost,
            fell_back=fell_back,
        )
        return Certified(policy, certificate, self.dial)


@dataclass(frozen=True, eq=False)
class _Limit:
    """An upper limit of a mean, tested on the certify part.

    Attributes:
        task: Has level and seed.
        limit: Of the mean.
        low: The least a value can be; smaller ones count as this, which is on the safe side.
        high: The largest a value can be.
        values: Of a policy, one per sample of the certify part.
        mean: Of a policy, as the certificate states it.
    """

    task: _Task
    limit: float
    low: float
    high: float
    values: Callable[[Policy], Float64[np.ndarray, " sample"]]
    mean: Callable[[Policy], float]

    def allows(self, policy: Policy) -> bool:
        """Return whether a policy's mean is within the limit, on the certify part and beyond it."""
        limit = (self.limit - self.low) / (self.high - self.low)
        return self.mean(policy) <= self.limit and mean_is_below(
            self._scaled(policy), limit, self.task.delta, seed=self.task.seed
        )

    def bound(self, policy: Policy) -> float:
        """Return the upper bound of a policy's mean, never less than the mean on the certify part."""
        bound = betting_bound(self._scaled(policy), self.task.delta, seed=self.task.seed)
        return max(self.low + bound * (self.high - self.low), self.mean(policy))

    def _scaled(self, policy: Policy) -> Float64[np.ndarray, " sample"]:
        return np.clip((self.values(policy) - self.low) / (self.high - self.low), 0.0, 1.0)

    def walk(self, candidates: Iterable[Policy]) -> Policy | None:
        """Return the last candidate before the first that is not allowed, None if that is the first of all."""
        passed = None
        for policy in takewhile(self.allows, candidates):
            passed = policy
        return passed


def _for_budget(task: _Task, budget: float, leaving_costs: Float64[np.ndarray, "sample exit"]) -> Certified:
    """Walk from cheap to expensive policies while the mean cost is surely within the budget."""
    dial, cheapest, plain, low = task.dial, task.static(0), task.at(budget), task.dial.costs.low
    if task.last == 0:  # nothing to choose, nothing to test
        return task.promised(cheapest, low, plain, fell_back=False)
    test = _Limit(
        task,
        limit=budget,
        low=float(leaving_costs[:, 0].min()),
        high=float(leaving_costs[:, task.last].max()),
        values=lambda policy: task.certify.per_sample(policy)[0],
        mean=lambda policy: task.certify.expected(policy)[0],
    )
    end = min(budget, dial.costs.cumulative[task.last], dial.fit_costs[-1])
    near = 1 - np.linspace(1, 0, _CANDIDATES) ** 2  # finer towards the budget
    known = task.fit.table.cost is None  # what exit 0 costs
    candidates = (task.at(low + f * (end - low)) for f in near[1:-1].tolist())
    passed = test.walk(chain([] if known else [cheapest], candidates, [plain]))
    if passed is not None:
        return task.promised(passed, min(test.bound(passed), budget), plain, fell_back=passed is cheapest)
    if known:
        return task.promised(cheapest, low, plain, fell_back=True)
    raise RunError(
        f"budget {budget:g} {dial.costs.unit} cannot be promised: leaving at exit 0 may cost up to "
        f"{test.bound(cheapest):.4g} {dial.costs.unit} per sample, at delta {task.delta:g}. Allow a larger budget, or "
        "record more samples."
    )


def _for_accuracy(task: _Task) -> Certified:
    """Walk from expensive to cheap policies while the loss of utility is surely small enough."""
    top, exact = task.static(task.last), task.last == task.dial.costs.num_exits - 1
    task = task.reaching(top)
    dial, full = task.dial, task.certify.table.require_utility("certifying")[:, -1]
    low, high = dial.costs.low, dial.costs.cumulative[task.last]
    end = low if task.budget is None else min(task.budget, high)
    enough = task.fit.expected(task.static(dial.costs.num_exits - 1))[1] - task.epsilon
    costs = _falling(high, end, _CANDIDATES)
    fitting = [cost for cost in costs if np.interp(cost, dial.fit_costs, dial.fit_utilities) >= enough]
    # finer towards where the loss is just small enough on the fit part
    near = fitting[-1] if fitting else high
    above = [near + (cost - near) ** 2 / (high - near) for cost in _falling(high, near, _CANDIDATES * 2 // 3)]
    targets = [*above, *_falling(near, end, _CANDIDATES // 3)]
    plain = task.at(fitting[-1]) if fitting else top
    test = _Limit(
        task,
        limit=task.epsilon,
        low=-1.0,
        high=1.0,
        values=lambda policy: full - task.certify.per_sample(policy)[1],
        mean=lambda policy: float(full.mean()) - task.certify.expected(policy)[1],
    )
    # the full path loses nothing, whatever the data; the last exit within a deadline has to be tested
    passed = test.walk(chain([] if exact else [top], (task.at(cost) for cost in targets)))
    if passed is not None:
        return task.promised(passed, min(test.bound(passed), task.epsilon), plain, fell_back=False)
    if exact:
        return task.promised(top, 0.0, plain, fell_back=True)
    raise RunError(
        f"epsilon {task.epsilon:g} cannot be promised within the deadline: leaving at exit {task.last} may lose up to "
        f"{test.bound(top):.4g} of the full model's utility, at delta {task.delta:g}. Allow a larger epsilon, or a "
        "later deadline."
    )


def _falling(high: float, low: float, count: int) -> list[float]:
    """Return evenly spaced numbers from below ``high`` down to ``low``, none if the two are equal."""
    return np.linspace(high, low, count)[1:].tolist() if high > low else []
