"""Promises: a policy together with what holds for it, at which level, and on what data.

Half of the calibration set fits the scheduler and puts policies in an order; the other half, which took no part in
that, tests them one after the other, from the safest on, and stops at the first failure. So however many are tested, a
policy that breaks the promise is chosen with probability ``delta`` at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain, takewhile
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from eenet.errors import InputError, RunError, TableError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy, static_policy
from eenet.policies.replay import Replayer
from eenet.schedulers.base import Scheduler, require_groups, sides_of
from eenet.schedulers.betting import betting_bound, check_level, mean_is_below
from eenet.schedulers.thresholds import any_scorer
from eenet.tables.checks import instance, number
from eenet.tables.costs import BudgetLike, CostTable
from eenet.tables.display import samples
from eenet.tables.table import ExitTable

_CANDIDATES = 60
_LEAST = 100  # samples, of which half certify
_LEAST_GROUPS = 20  # the same of groups


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
        n_groups: Groups that these samples are of, where samples belong together: then the bound, the means and the
            utility lost are means over groups, each the mean over its samples.
        bound: Upper confidence bound, at level ``delta``, of the mean cost (``"budget"``) or of the loss of utility
            against the full model (``"accuracy"``); at least that mean on the certify part.
        mean_cost: On the certify part, in expectation over the coin.
        mean_utility: On the certify part, in expectation over the coin.
        full_utility: Mean utility of the full model on the certify part.
        utility_lost: Utility lost to the promise on the certify part, against the plain policy: what the fit part alone
            would have chosen for the same goal, without a margin for chance.
        cost_added: Mean cost that the certified policy spends more than the plain one, on the certify part.
        fell_back: Whether no policy but the one that needs no test (exit 0, or the full path, for all) could be
            certified.
        exit_distribution: Share of the certify part that leaves at each exit, in expectation over the coin.
        exit_names: Of the table, where its exits have names.
        at_most_wrong: Whether answers are right or wrong and the full model always right, so that ``epsilon`` is the
            largest share of wrong answers.
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
    utility_lost: float
    cost_added: float
    fell_back: bool
    exit_distribution: tuple[float, ...] = ()
    exit_names: tuple[str, ...] = ()
    at_most_wrong: bool = False
    n_groups: int | None = None

    @property
    def statement(self) -> str:
        """The promise, its level, and the data it holds on."""
        if self.guarantee == "budget":
            promise = f"the mean cost per sample is at most {self.budget:g} {self.unit}"
            fallback = "Only leaving at exit 0 could be certified, so every sample does."
        else:
            assert self.epsilon is not None  # or there were no promise of accuracy
            promise = f"the mean utility is at most {100 * self.epsilon:.6g} percentage points below the full model's"
            if self.at_most_wrong:
                promise += f": at most {100 * self.epsilon:.6g} % of the answers are wrong"
            fallback = (
                "No early exit could be certified, so every sample takes the full path, as far as a deadline allows."
            )
        if self.n_groups is not None:
            promise = promise.replace("the mean", "in a new group of samples, the expected mean", 1)
        level = f"With confidence {100 * (1 - self.delta):.6g} % (delta {self.delta:g})"
        on = f"{self.n_certify} samples" + ("" if self.n_groups is None else f" in {self.n_groups} groups")
        data = (
            "This holds for data from the same distribution as the calibration set, and for no other; it was certified "
            f"on {on} of that set which took no part in fitting."
        )
        named = [f"Of these, {self.exit_distribution[-1]:.1%} go to {name}." for name in self.exit_names[-1:]]
        return " ".join([f"{level}, {promise}.", data, *named] + [fallback] * self.fell_back)

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

    * ``"budget"``: the expected cost is at most the budget. Policies are tested from cheap to expensive; the last that
      passes is returned, and exit 0 for all where none does. Where cost differs from sample to sample, exit 0 has to be
      tested too, and no sample may ever cost more than the most expensive one of the table.
    * ``"accuracy"``: the expected utility is at most ``epsilon`` below that of the full model. Policies are tested
      from the full path to cheaper ones, down to ``budget`` if one is given; the last that passes is returned, and the
      full path where none does.

    Guarantee: with probability ``1 - delta`` over the samples of the table, the returned policy keeps the promise on
    independent data from the same distribution. Nothing is promised for other data. On the certify part itself the mean
    never exceeds the limit.

    Where samples belong together (`ExitTable.group`), groups are what is drawn independently: a group is in one half,
    the mean over its samples is one value of the test, and the promise is about the expected mean over the samples of a
    new group, all groups counting the same, whatever their size.

    Args:
        scheduler: Orders and proposes the policies: its dial is swept on the fit part, a random half of the table.
        table: With ``costs``: as of `Scheduler.sweep`.
        costs: Default: the table's own.
        budget: A mean cost per sample; needed for the budget, optional for accuracy.
        guarantee: ``"budget"`` or ``"accuracy"``.
        delta: Chance that the promise is wrong, in (0, 1).
        epsilon: Utility that may be lost against the full model, in (0, 1); for accuracy only.
        seed: Of the split and of the order in which samples are tested.

    Raises:
        InputError: ``guarantee`` is unknown, ``delta`` or ``epsilon`` is outside (0, 1), or the budget is missing.
        TableError: There are fewer than 100 samples, or than 20 groups where there are groups, neither labels nor
            utility, or no costs.
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
    number(seed, "seed", 0, whole=True)
    instance(scheduler, Scheduler, "scheduler")
    if instance(table, ExitTable, "table").num_samples < _LEAST:
        raise TableError(
            f"table of {samples(table.num_samples)} is too small for a promise: half of it fits, half certifies, and "
            f"at least {_LEAST} are needed. Record more, or fit without a guarantee."
        )
    if table.group is not None:
        require_groups(table, _LEAST_GROUPS, "a promise: half of them fit, and half certify; it")
    table = table.with_costs(costs)
    table.require_utility("certifying")
    known = table.require_costs()
    asked = None if budget is None else known.budget(budget).value
    certifying, fitting = sides_of(table.group_index, table.num_samples // 2, seed)
    fit, rest = Replayer(table.select(np.sort(fitting))), Replayer(table.select(certifying))
    least = fit.table.require_costs().low  # above the budget at worst by rounding, or where cost differs by sample
    dial = scheduler.sweep(fit.table, budgets=None if asked is None else [max(asked, least)])
    last = scheduler.open_exits(known) - 1
    if guarantee == "budget" and asked is not None:
        low, high = float(table.leaving_costs[:, 0].min()), float(table.leaving_costs[:, last].max())
        test, walk = _Test(rest, asked, low, high, delta, seed), _cheap_first(fit, dial, last, asked)
    else:
        full = rest.table.require_utility("certifying")[:, -1]
        test, walk = _Test(rest, epsilon, -1.0, 1.0, delta, seed, full), _full_first(fit, dial, last, asked, epsilon)
    policy, certificate = walk.certified(test, asked, fit.table.num_samples, known.unit)
    return Certified(policy.from_source(table.source), certificate, dial)


def check_promise(guarantee: str, delta: float, epsilon: float, budget: BudgetLike | None) -> None:
    """Refuse a promise that cannot be given, with an `InputError`; see `certify`."""
    if guarantee not in ("budget", "accuracy"):
        raise InputError(
            f"guarantee {guarantee!r} is unknown: 'budget' or 'accuracy' can be promised. Pass one of them."
        )
    check_level(delta)
    number(epsilon, "epsilon", above=0, below=1)
    if guarantee == "budget" and budget is None:
        raise InputError("budget is missing: the guarantee 'budget' is about one. Pass a mean cost per sample.")


@dataclass(frozen=True, eq=False)
class _Test:
    """Tests whether a policy's mean cost, or its mean loss against the full model, is within a limit.

    Attributes:
        part: The certify part.
        limit: Of the mean.
        low: The least a value can be; smaller ones count as this, which is on the safe side.
        high: The largest a value can be.
        delta: Level.
        seed: Of the order in which samples are bet on.
        full: Utility of the full model, where the loss against it is tested; None: the cost is.
    """

    part: Replayer
    limit: float
    low: float
    high: float
    delta: float
    seed: int
    full: Float64[np.ndarray, " sample"] | None = None

    def means(self, policy: Policy) -> tuple[float, float]:
        """Return a policy's mean cost and utility on the certify part, as the certificate states them."""
        if self.part.table.group is None:
            return self.part.expected(policy)
        cost, utility = (float(self.by_group(values).mean()) for values in self.part.per_sample(policy))
        return cost, utility

    def mean(self, policy: Policy) -> float:
        """Return the mean that is tested, on the certify part."""
        cost, utility = self.means(policy)
        return cost if self.full is None else float(self.by_group(self.full).mean()) - utility

    def by_group(self, values: Float64[np.ndarray, " sample"]) -> Float64[np.ndarray, " group"]:
        """Return what is independent of each other: the mean of each group, or every sample's value without groups."""
        index = self.part.table.group_index
        return values if self.part.table.group is None else np.bincount(index, weights=values) / np.bincount(index)

    def passes(self, policy: Policy) -> bool:
        """Return whether a policy's mean is within the limit, on the certify part and beyond it."""
        limit = (self.limit - self.low) / (self.high - self.low)
        return self.mean(policy) <= self.limit and mean_is_below(
            self._scaled(policy), limit, self.delta, seed=self.seed
        )

    def bound(self, policy: Policy) -> float:
        """Return the upper bound of a policy's mean, never less than the mean on the certify part."""
        bound = betting_bound(self._scaled(policy), self.delta, seed=self.seed)
        return max(self.low + bound * (self.high - self.low), self.mean(policy))

    def _scaled(self, policy: Policy) -> Float64[np.ndarray, " group"]:
        cost, utility = self.part.per_sample(policy)
        values = self.by_group(cost if self.full is None else self.full - utility)
        return np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)


class _Walk(NamedTuple):
    """Policies to be tested one after the other, from the safest on.

    Attributes:
        start: Returned where no candidate passes.
        bound: Of the mean with ``start``, where that needs no test; else None, and ``start`` is tested first.
        plain: Would be chosen without testing.
        candidates: The others.
        refusal: Says which promise cannot be given, from the bound with ``start``.
    """

    start: Policy
    bound: float | None
    plain: Policy
    candidates: list[Policy]
    refusal: Callable[[float], str]

    def certified(self, test: _Test, budget: float | None, n_fit: int, unit: str) -> tuple[Policy, Certificate]:
        """Return the last policy before the first that fails, with what is promised about it."""
        passed = None
        for policy in takewhile(test.passes, chain([self.start] if self.bound is None else [], self.candidates)):
            passed = policy
        if passed is not None:
            bound = min(test.bound(passed), test.limit)
        elif self.bound is not None:
            bound = self.bound
        else:
            reason = self.refusal(test.bound(self.start))
            raise RunError(f"{reason}, at delta {test.delta:g}. Allow more, or record more samples.")
        policy = passed or self.start
        (cost, utility), (plain_cost, plain_utility) = map(test.means, (policy, self.plain))
        table = test.part.table
        worth = table.require_utility("certifying")
        return policy, Certificate(
            guarantee="budget" if test.full is None else "accuracy",
            delta=test.delta,
            epsilon=None if test.full is None else test.limit,
            budget=budget,
            unit=unit,
            n_fit=n_fit,
            n_certify=table.num_samples,
            bound=bound,
            mean_cost=cost,
            mean_utility=utility,
            full_utility=float(test.by_group(worth[:, -1]).mean()),
            utility_lost=plain_utility - utility,
            cost_added=cost - plain_cost,
            fell_back=policy is self.start and bool(self.candidates),
            exit_distribution=tuple(test.part.expected_shares(policy).tolist()),
            exit_names=table.exit_names,
            n_groups=None if table.group is None else table.num_groups,
            at_most_wrong=bool((worth[:, -1] == 1).all() and np.isin(worth, (0, 1)).all()),
        )


def _cheap_first(fit: Replayer, dial: Dial, last: int, budget: float) -> _Walk:
    """Return policies from cheap to expensive ones, up to a budget."""
    low, start = dial.costs.low, static_policy(any_scorer(fit.table), 0, dial.costs.num_exits)
    end = min(budget, dial.costs.cumulative[last], dial.fit_costs[-1])
    near = 1 - np.linspace(1, 0, _CANDIDATES) ** 2  # finer towards the budget
    candidates = [dial.at(low + f * (end - low)) for f in near[1:-1].tolist()] if last and end > low else []
    plain = dial.at(max(budget, low)) if last else start
    return _Walk(
        start,
        low if fit.table.cost is None else None,  # what exit 0 costs is known, unless it differs by sample
        plain,
        [*candidates, plain] if last else [],
        lambda bound: (
            f"budget {budget:g} {dial.costs.unit} cannot be promised: leaving at exit 0 may cost up to {bound:.4g} "
            f"{dial.costs.unit} per sample"
        ),
    )


def _full_first(fit: Replayer, dial: Dial, last: int, budget: float | None, epsilon: float) -> _Walk:
    """Return policies from the last open exit to cheaper ones, down to a budget."""
    costs, start = dial.costs, static_policy(any_scorer(fit.table), last, dial.costs.num_exits)
    known = zip(dial.fit_costs, dial.fit_utilities, dial.policies, strict=True)
    if dial.fit_costs[-1] < fit.expected(start)[0] * (1 - 1e-9):  # where spending more bought nothing on the fit part
        dial = Dial.of_candidates([*known, (*fit.expected(start), start)], costs, dial.seed)  # here it buys certainty
    high = costs.cumulative[last]
    end = costs.low if budget is None else max(costs.low, min(budget, high))
    enough = float(fit.table.require_utility("certifying")[:, -1].mean()) - epsilon
    falling = _falling(high, end, _CANDIDATES)
    fitting = [cost for cost in falling if np.interp(cost, dial.fit_costs, dial.fit_utilities) >= enough]
    near = fitting[-1] if fitting else high  # finer towards where the loss is just small enough on the fit part
    above = [near + (cost - near) ** 2 / (high - near) for cost in _falling(high, near, _CANDIDATES * 2 // 3)]
    return _Walk(
        start,
        0.0 if last == costs.num_exits - 1 else None,  # the full path loses nothing; an earlier exit may
        dial.at(near),
        [dial.at(cost) for cost in (*above, *_falling(near, end, _CANDIDATES // 3))],
        lambda bound: (
            f"epsilon {epsilon:g} cannot be promised within the deadline: leaving at exit {last} may lose up to "
            f"{bound:.4g} of the full model's utility"
        ),
    )


def _falling(high: float, low: float, count: int) -> list[float]:
    """Return evenly spaced numbers from below ``high`` down to ``low``, none if the two are equal."""
    falling: list[float] = np.linspace(high, low, count)[1:].tolist()
    return falling if high > low else []
