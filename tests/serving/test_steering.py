"""Policies of requests: by the budget of the service, by their own, and up to an exit."""

import threading

import numpy as np
import pytest
from replaying import POLICIES, ReplayEngine, policies, rows

from eenet import AdaptiveModel, BudgetController, CostTable, ExitTable, replay
from eenet.errors import InputError
from eenet.policies.mixture import UpTo
from eenet.schedulers import GeometricScheduler
from eenet.serving.steering import Steering

LOGITS = (1.5 * np.random.default_rng(0).standard_normal((120, 4, 6)).cumsum(axis=1)).astype(np.float32)
COSTS = CostTable((1.0, 2.0, 3.0, 4.0), "ms")
TABLE = ExitTable(logits=LOGITS, labels=LOGITS[:, -1].argmax(axis=1), costs=COSTS)
DIAL = GeometricScheduler().sweep(TABLE)


def steering(costs: CostTable = COSTS) -> Steering:
    return Steering(AdaptiveModel(ReplayEngine(LOGITS), DIAL.at(2.0), costs, dial=DIAL), None, None, 0.0)


@pytest.mark.parametrize("name", POLICIES)
def test_up_to_an_exit_replay_is_run(name: str) -> None:
    policy = policies(LOGITS)[name]
    for last in (0, 2, 3):
        limited = UpTo(policy, last)
        trace = replay(limited, TABLE)
        assert np.array_equal(trace.exit_index, np.minimum(replay(policy, TABLE).exit_index, last))
        found = AdaptiveModel(ReplayEngine(LOGITS), limited, COSTS)(rows(120))
        assert np.array_equal(found.exit_index, trace.exit_index)
        assert np.array_equal(found.log_probs, trace.log_probs)
    with pytest.raises(InputError, match="max_exit 4"):
        UpTo(policy, 4)


def test_each_sample_gets_the_part_of_the_mixture_that_it_follows() -> None:
    asked, ids = steering(), np.arange(120)
    asked.set_budget(2.2)
    own, promised = asked.policies(ids)
    assert promised == 2.2 and 1 < len({id(one) for one in own.tolist()}) <= 2
    alone = [asked.policies(ids[row : row + 1])[0][0] for row in range(120)]
    assert all(one is other for one, other in zip(own.tolist(), alone, strict=True))
    assert np.isnan(asked.policies(ids, budget="50%")[1]) and np.isnan(asked.policies(ids, max_exit=1)[1])
    limited = asked.policies(ids, max_exit=1)[0]
    assert len({id(one) for one in limited.tolist()}) == len({id(one) for one in own.tolist()})


def test_budgets_are_in_the_costs_of_the_model() -> None:
    slow = steering(CostTable((2.0, 4.0, 6.0, 8.0), "ms"))  # everything takes twice as long
    slow.set_budget(4.4)
    own, promised = slow.policies(np.arange(120))
    fast = steering()
    fast.set_budget(2.2)
    assert promised == 4.4
    assert all(a is b for a, b in zip(own.tolist(), fast.policies(np.arange(120))[0].tolist(), strict=True))


def test_a_controller_takes_several_threads() -> None:
    controller = BudgetController(DIAL, 2.0)

    def work() -> None:
        for _ in range(200):
            policy, target = controller.steering()
            assert policy.num_exits == 4 and 1.0 <= target <= 4.0
            controller.update([1.0, 3.0])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert controller.samples == 3200 and controller.mean_cost == 2.0
    assert controller.debt == pytest.approx(0.0, abs=1e-9)


def test_a_controller_that_is_turned_keeps_what_it_learnt() -> None:
    controller = BudgetController(DIAL, 2.0)
    for _ in range(4000):  # everything costs half as much again as it did
        controller.update(1.5 * controller.target, samples=4)
    before = controller.target
    assert before == pytest.approx(2.0 / 1.5, abs=0.02)
    controller.turn(2.5)
    assert controller.budget == 2.5 and controller.samples == 0 and controller.debt == 0
    assert controller.target == pytest.approx(before + 0.5, abs=0.02)
    for _ in range(1000):
        controller.update(1.5 * controller.target, samples=4)
    assert controller.target == pytest.approx(2.5 / 1.5, abs=0.02)
