"""A controller steers a running model: the policy is exchanged between batches."""

import numpy as np
import pytest
from replaying import ReplayEngine, batches

from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines import EagerEngine
from eenet.running.recording import outputs
from eenet.schedulers import JointScheduler
from eenet.schedulers.control import BudgetController
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable
from eenet.testing import synthetic_table


@pytest.mark.parametrize("batch_size", [1, 16, 50])
def test_a_running_model_is_steered_as_a_recorded_one(batch_size):
    dial = JointScheduler().sweep(synthetic_table(500))
    table = synthetic_table(200, seed=1)
    slower = CostTable(tuple(1.3 * cost for cost in table.costs.cumulative), "ms")
    recorded = BudgetController(dial, 2.5, horizon=50).replay(table, slower, batch_size=batch_size)
    controller = BudgetController(dial, 2.5, horizon=50)
    adaptive = AdaptiveModel(ReplayEngine(table.logits), controller.policy, slower)
    exits, targets = [], []
    for rows in batches(table.num_samples, batch_size):
        adaptive.policy = controller.policy
        targets += [controller.target] * len(rows)
        prediction = adaptive(rows)
        controller.update(prediction.cost)
        exits.append(prediction.exit_index)
    assert np.array_equal(np.concatenate(exits), recorded.exit_index)
    assert targets == recorded.target.tolist()
    assert len(set(targets)) == -(-table.num_samples // batch_size)  # another target for every batch


def test_a_small_network_on_a_slower_machine_returns_to_the_budget(tiny, images):
    labels = np.arange(len(images)) % 10
    costs = CostTable((1.0, 2.0, 3.0), "ms")
    table = ExitTable(logits=outputs(EagerEngine(tiny), images), labels=labels, costs=costs)
    dial = JointScheduler().sweep(table)
    slower = CostTable((1.2, 2.4, 3.6), "ms")
    budget = 1.2 + 0.5 * (dial.fit_costs[-1] - 1.2)
    controller = BudgetController(dial, budget, horizon=100)
    adaptive = AdaptiveModel(tiny, controller.policy, slower)
    for _ in range(20):
        for part in images.split(16):
            adaptive.policy = controller.policy
            controller.update(adaptive(part).cost)
    assert controller.samples == 20 * len(images)
    assert controller.mean_cost == pytest.approx(budget, rel=0.02)
