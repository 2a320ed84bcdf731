"""Which policy a request follows: by the budget of the service, by its own, and by the load."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np

from eenet.errors import InputError
from eenet.policies.dial import Dial
from eenet.policies.mixture import UpTo
from eenet.policies.policy import Ids, Policy
from eenet.running.adaptive import AdaptiveModel
from eenet.schedulers.control import BudgetController
from eenet.serving.slo import LoadFollower, cheapest, expected_utility
from eenet.tables.costs import Budget, BudgetLike, CostTable

_KEPT = 256  # policies of single requests


class Steering:
    """Gives every request its policies; thread-safe.

    Until a budget is asked for, the model's own policy decides, and nothing is steered. Then a `BudgetController` keeps
    the mean cost at the budget, and with a target for the latency a `LoadFollower` turns that budget.

    Args:
        model: Its policy, costs and dial.
        slo_s: The target, in seconds; None: the load turns nothing. With it the dial's most expensive policy is asked
            for, until something else is.
        floor: The least utility on the calibration set that the load may turn down to.
        now: In seconds of the service's clock.

    Raises:
        InputError: A target or a floor without a dial, a floor without a target, or one that is out of reach.
    """

    def __init__(self, model: AdaptiveModel, slo_s: float | None, floor: float | None, now: float) -> None:
        self.model = model
        self.costs: CostTable | None = model.costs or (None if model.dial is None else model.dial.costs)
        self.asked: Budget | None = None
        self.controller: BudgetController | None = None
        self.follower: LoadFollower | None = None
        self._dial = _in_the_costs_of(model)
        self._lock = threading.RLock()
        self._limited: dict[tuple[int, int], UpTo] = {}
        self._asked: dict[object, Policy] = {}
        if floor is not None and slo_s is None:
            raise InputError(f"floor {floor} limits nothing: it is how far the load may turn down. Pass slo_ms, too.")
        if slo_s is not None:
            dial = self._require_dial(f"slo_ms {1e3 * slo_s:g}")
            self.follower = LoadFollower(slo_s, cheapest(dial, floor), dial.fit_costs[-1], now)
            self.set_budget(max(dial.fit_costs[-1], dial.costs.low))

    def set_budget(self, budget: BudgetLike) -> None:
        """Ask for another budget; requests that were accepted keep their policies.

        Raises:
            BudgetError: As of `AdaptiveModel.at`.
            InputError: As of `AdaptiveModel.at`.
        """
        self.model.at(budget)  # refuses what cannot be asked for
        asked = self._require_dial(f"budget {budget}").costs.budget(budget)
        with self._lock:
            self.asked = asked
            if self.follower is not None:
                self.follower.ask(asked.value)
            self._steer()

    def _steer(self) -> None:
        assert self._dial is not None and self.asked is not None
        value = self.asked.value if self.follower is None else self.follower.budget
        budget = Budget(value, self.asked.text, self.asked.meaning, self._dial.costs.unit)
        if self.controller is None:
            self.controller = BudgetController(self._dial, budget)
        else:
            self.controller.turn(budget)

    def look(self, now: float, wait_s: float) -> bool:
        """Turn the budget if the load asks for it; return whether it was turned."""
        if self.follower is None:
            return False
        with self._lock:
            turned = self.follower.look(now, wait_s) is not None
            if turned:
                self._steer()
        return turned

    def bound(self) -> float | None:
        """Return the least agreement with the last exit that calibration promises at the budget in force.

        Where early answers are right in a share ``u`` and the last exit's in a share ``v``, at least ``u + v - 1`` of
        them are the same.
        """
        if self._dial is None or self.controller is None:
            return None
        return expected_utility(self._dial, self.controller.budget) + self._dial.fit_utilities[-1] - 1

    def policies(
        self, ids: Ids, budget: BudgetLike | None = None, max_exit: int | None = None
    ) -> tuple[np.ndarray, float]:
        """Return the policy of each sample of a request, and what it is expected to cost; NaN: not known.

        Args:
            ids: Of the samples.
            budget: Of this request alone.
            max_exit: Where its samples leave at the latest.

        Raises:
            BudgetError: As of `set_budget`.
            InputError: As of `set_budget`, or there is no such exit.
        """
        policy, promised = self.model.policy, math.nan
        if budget is not None:
            policy = self._of(budget)
        elif (controller := self.controller) is not None:
            policy, promised = controller.steering()
        own = np.empty(len(ids), dtype=object)
        chosen = policy.chosen(ids) if len(ids) > 1 else np.zeros(1, dtype=np.int64)
        for one in np.unique(chosen):  # by the parts of mixtures: these are the same for many budgets
            rows = np.flatnonzero(chosen == one)
            own[rows] = policy.following(ids[rows])
        if max_exit is not None:
            own[:] = [self.up_to(one, max_exit) for one in own.tolist()]
            promised = math.nan
        return own, promised

    def up_to(self, policy: Policy, max_exit: int) -> UpTo:
        """Return a policy whose samples leave at some exit at the latest; the same object for the same policy."""
        with self._lock:
            found = self._limited.get((id(policy), max_exit))
            if found is None:
                if len(self._limited) >= _KEPT:
                    self._limited.clear()
                found = UpTo(policy, max_exit)  # keeps the policy, so that its id stays its own
                self._limited[id(policy), found.max_exit] = found
            return found

    def _of(self, budget: BudgetLike) -> Policy:
        """Return the policy for a budget of a single request."""
        dial = self._require_dial(f"budget {budget}")
        if not isinstance(budget, str | int | float):
            return dial.at(budget)
        with self._lock:
            found = self._asked.get(budget)
            if found is None:
                if len(self._asked) >= _KEPT:
                    self._asked.clear()
                found = self._asked[budget] = dial.at(budget)
            return found

    def _require_dial(self, what: str) -> Dial:
        if self._dial is None:
            raise InputError(
                f"{what} cannot be followed: the policy was fitted for one budget, and there is no dial beside it, or "
                "one of other costs. Fit and export again, with a dial."
            )
        return self._dial


def _in_the_costs_of(model: AdaptiveModel) -> Dial | None:
    """Return a model's dial in the costs of the model; None where it has none, or its costs are of another form."""
    dial, costs = model.dial, model.costs
    if dial is None or costs is None or costs == dial.costs:
        return dial
    factor = costs.factor(dial.costs)
    return None if factor is None else replace(dial, fit_costs=tuple(c / factor for c in dial.fit_costs), costs=costs)
