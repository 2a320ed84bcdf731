"""The budget follows the load: on a clock of the test's own, and in a service."""

import logging
import time

import numpy as np
import pytest
from replaying import ReplayEngine, policies, rows

from eenet import AdaptiveModel, CostTable, Dial, ExitTable
from eenet.errors import InputError
from eenet.policies import ConfidenceScorer, static_policy
from eenet.schedulers import GeometricScheduler
from eenet.serving import Service
from eenet.serving.slo import LoadFollower, StageTimes, cheapest, expected_utility

COSTS = CostTable((1.0, 2.0, 4.0), "ms")


def dial(utilities: tuple[float, ...] = (0.5, 0.8, 0.9)) -> Dial:
    statics = tuple(static_policy(ConfidenceScorer("max_prob"), k, 3) for k in range(3))
    return Dial(policies=statics, fit_costs=(1.0, 2.0, 4.0), fit_utilities=utilities, costs=COSTS)


def test_the_floor_by_hand() -> None:
    assert cheapest(dial(), None) == 1.0
    assert cheapest(dial(), 0.4) == 1.0
    assert cheapest(dial(), 0.65) == pytest.approx(1.5)
    assert cheapest(dial(), 0.85) == pytest.approx(3.0)
    for floor in (0.5, 0.6, 0.9):
        assert expected_utility(dial(), cheapest(dial(), floor)) == pytest.approx(floor)
    with pytest.raises(InputError, match=r"floor 0.95 is out of reach: .* 0.9 at most"):
        cheapest(dial(), 0.95)


def test_stage_times_by_hand() -> None:
    times = StageTimes(2)
    assert times.of(0, 4) == 0 and times.most(0, 1.0, 32) == 32 and times.work((5, 5)) == 0
    times.update(0, size=4, stayed=2, seconds=0.4)
    times.update(1, size=2, stayed=0, seconds=0.2)
    assert times.of(0, 4) == 0.4 and times.of(0, 3) == 0.4  # the same power of two
    assert times.of(0, 8) == pytest.approx(0.8) and times.of(0, 1) == 0.4
    assert times.work((10, 4)) == pytest.approx(10 * (0.1 + 0.5 * 0.1) + 4 * 0.1)
    assert times.most(0, 0.55, 32) == 5 and times.most(0, 0.01, 32) == 1
    assert times.recent_ms() == (400, 200)


class Line:
    """A queue of a model whose samples take as long as the budget says; arrivals are steady."""

    def __init__(self, follower: LoadFollower, per_budget_s: float) -> None:
        self.follower, self.each, self.now, self.backlog = follower, per_budget_s, 0.0, 0.0
        self.budgets: list[float] = []
        self.latencies: list[float] = []

    def run(self, seconds: float, rate: float) -> None:
        step = 0.005
        for _ in range(int(seconds / step)):
            self.now += step
            arrived = rate * step
            self.backlog = max(self.backlog + arrived * self.each * self.follower.budget - step, 0)
            latency = self.backlog + self.each * self.follower.budget
            for _ in range(max(int(arrived), 1)):
                self.follower.answered(latency)
            self.latencies.append(latency)
            self.follower.look(self.now, self.backlog)
            self.budgets.append(self.follower.budget)


def test_down_quickly_up_slowly_and_never_below_the_floor(caplog: pytest.LogCaptureFixture) -> None:
    follower = LoadFollower(slo_s=0.1, low=1.5, high=4.0, now=0.0)
    line = Line(follower, per_budget_s=0.001)  # 250 a second at the largest budget
    with caplog.at_level(logging.INFO, logger="eenet"):
        line.run(5, rate=200)
        assert follower.budget == 4.0 and follower.turned_down == 0
        line.run(20, rate=400)
        assert min(line.budgets) >= 1.5 and follower.turned_down >= 2
        assert np.quantile(line.latencies[1000:], 0.99) < 0.1
        assert np.mean(line.budgets[2000:]) > 2.0  # what the load allows is 2.5
        calm = len(line.budgets)
        line.run(60, rate=200)
    assert follower.budget == 4.0 and follower.turned_up >= 5
    assert line.budgets[calm + 200] < 4.0  # not at once
    turned = [record.getMessage() for record in caplog.records]
    assert len(turned) == follower.turned_down + follower.turned_up
    assert any("turned down" in one for one in turned) and any("turned up" in one for one in turned)


def test_overload_beyond_the_floor_stays_at_the_floor() -> None:
    follower = LoadFollower(slo_s=0.1, low=3.0, high=4.0, now=0.0)
    Line(follower, per_budget_s=0.001).run(5, rate=1000)
    assert follower.budget == 3.0


def test_what_is_asked_for_is_the_limit() -> None:
    follower = LoadFollower(slo_s=0.1, low=1.0, high=4.0, now=0.0)
    follower.ask(2.0)
    assert follower.budget == 2.0
    follower.ask(3.0)
    assert follower.budget == 3.0
    assert follower.look(1.0, wait_s=1.0).down and follower.budget < 3.0
    under_load = follower.budget
    follower.ask(3.5)
    assert follower.budget == under_load


def test_one_asked_below_the_floor_is_not_raised() -> None:
    follower = LoadFollower(slo_s=0.1, low=2.0, high=4.0, now=0.0)
    follower.ask(1.2)
    assert follower.budget == 1.2
    follower.look(1.0, wait_s=1.0)
    assert follower.budget == 1.2


def test_a_service_turns_down_under_load_and_answers_by_the_policy_of_the_moment() -> None:
    logits = (np.random.default_rng(0).standard_normal((300, 4, 6)).cumsum(axis=1)).astype(np.float32)
    table = ExitTable(logits=logits, labels=logits[:, -1].argmax(axis=1), costs=CostTable((1.0, 2.0, 3.0, 4.0), "ms"))

    class Slow(ReplayEngine):
        def stage(self, index: int, state: np.ndarray) -> np.ndarray:
            time.sleep(0.0005 * len(state))
            return state

    fitted = GeometricScheduler().sweep(table)
    model = AdaptiveModel(Slow(logits), policies(logits)["max_prob"], table.costs, dial=fitted)
    with Service(model, slo_ms=50, floor=0.5, max_batch=8) as service:
        futures = [service.submit(rows(300)[[row]]) for row in range(300)]
        for future in futures:
            future.result(20)
        seen = service.snapshot()
    assert seen.turns[0] >= 1
    assert cheapest(fitted, 0.5) <= seen.in_force < fitted.fit_costs[-1]
    assert seen.budget.value == fitted.fit_costs[-1] and seen.slo_ms == 50
