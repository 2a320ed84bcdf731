"""The controller keeps the mean cost at the budget when inputs become harder or the machine slower."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eenet.errors import BudgetError, InputError, ShapeError
from eenet.policies import ConfidenceScorer, Dial, Policy, Replayer, replay, static_policy
from eenet.schedulers import GeometricScheduler, JointScheduler
from eenet.schedulers.control import BudgetController
from eenet.tables.arrays import log_softmax
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable
from eenet.testing import gaussian_table, synthetic_table

COSTS = CostTable((1.0, 1.4, 2.3, 2.8, 4.2, 6.0), "ms")
SLOW = CostTable(tuple(1.3 * cost for cost in COSTS.cumulative), "ms")
HARD = (0.4, 0.1, 0.6, 0.05, 0.7, 0.5)  # about half the information of the table the dials are fitted on


def static_dial(cumulative=(1.0, 2.0)):
    """A dial of static exits: the policy at exit k sends everybody there."""
    exits = len(cumulative)
    policies = tuple(static_policy(ConfidenceScorer("max_prob"), k, exits) for k in range(exits))
    return Dial(policies, cumulative, tuple(0.5 + 0.1 * k for k in range(exits)), CostTable(cumulative, "ms"))


@pytest.fixture(scope="module", params=["max_prob", "joint"])
def dial(request):
    scheduler = {"max_prob": GeometricScheduler(), "joint": JointScheduler()}[request.param]
    return scheduler.sweep(gaussian_table(5000, seed=1))


@pytest.fixture(scope="module")
def easy():
    return gaussian_table(10000, seed=2, expected=True)


@pytest.fixture(scope="module")
def hard():
    return gaussian_table(10000, information=HARD, seed=3, expected=True)


def test_two_batches_by_hand():
    controller = BudgetController(static_dial(), 1.5, horizon=10)
    assert controller.target == 1.5
    assert math.isnan(controller.mean_cost)
    controller.update([2.0, 2.0])  # 1 overspent; the base drifts by 2 * 1 / (4 * 10 * 10)
    assert controller.debt == 1.0
    assert controller.target == pytest.approx(1.5 - 0.005 - 0.1)
    assert controller.policy.weight == pytest.approx(0.395)  # the share that goes to exit 1
    controller.update(1.0, samples=4)  # 2 saved: credit of 1; back by 4 * 1 / 400
    assert controller.debt == -1.0
    assert controller.target == pytest.approx(1.495 + 0.01 + 0.1)
    assert (controller.samples, controller.mean_cost) == (6, pytest.approx(8 / 6))


STREAMS = [  # budget and batch size
    (3.0, 256),
    *(pytest.param(*both, marks=pytest.mark.slow) for both in ((1.5, 256), (2.2, 4), (4.5, 32))),
]


@pytest.mark.parametrize("slower", [False, True])
@pytest.mark.parametrize(("budget", "batch_size"), STREAMS)
def test_harder_inputs_or_a_slower_machine_stay_within_one_percent_of_the_budget(
    dial, easy, hard, budget, batch_size, slower
):
    later, costs = (easy, SLOW) if slower else (hard, COSTS)
    fixed = dial.at(budget)
    assert replay(fixed, easy, COSTS).mean_cost + replay(fixed, later, costs).mean_cost > 2.1 * budget
    controller = BudgetController(dial, budget)
    first = controller.replay(easy, batch_size=batch_size)
    second = controller.replay(later, costs, batch_size=batch_size)
    assert controller.samples == 20000
    assert controller.mean_cost == pytest.approx((first.mean_cost + second.mean_cost) / 2)
    assert controller.mean_cost == pytest.approx(budget, rel=0.01)
    most = replay(dial.policies[-1], easy).mean_cost  # joint ends where spending more bought nothing
    assert first.mean_cost == pytest.approx(min(budget, most), rel=0.01)


@pytest.mark.parametrize(
    ("budget", "batch_size"), [(3.0, 128), *(pytest.param(b, 16, marks=pytest.mark.slow) for b in (1.5, 2.2, 4.5))]
)
def test_control_costs_little_utility_when_nothing_changes(dial, budget, batch_size):
    same = gaussian_table(20000, seed=4, expected=True)
    trace = BudgetController(dial, budget).replay(same, batch_size=batch_size)
    _, fixed = Replayer(same).expected(dial.at(budget))
    assert trace.utility.mean() > fixed - 0.003
    assert trace.target[5000:].std() < 0.05 * budget  # it does not swing


@given(
    costs=st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), min_size=1, max_size=300),
    budget=st.floats(2.2, 5.0),
    horizon=st.sampled_from([1, 10, 40]),
    forgive=st.booleans(),
)
def test_overspending_is_bounded_whatever_samples_cost(costs, budget, horizon, forgive):
    # the worst that can happen: anything up to 9 ms wherever the dial stands, except that its cheapest policy keeps
    # the budget
    controller = BudgetController(static_dial((1.0, 2.0, 4.0)), budget, horizon=horizon, forgive=forgive)
    for count, part in costs:
        most = budget if controller.target == 1.0 else 9.0
        controller.update(part * most, samples=count)
        if not forgive:
            bound = controller.worst_debt(9.0, 9)
            assert controller.mean_cost - budget <= bound / controller.samples + 1e-9
        assert 1.0 <= controller.target <= 4.0


@pytest.mark.parametrize("size", [5, 20, 200])
@pytest.mark.parametrize(("budget", "factor"), [(1.2, 1.1), (1.8, 1.1), (1.5, 0.8), (1.8, 2.5)])
def test_constant_costs_converge_without_lasting_swings(budget, factor, size):
    controller = BudgetController(static_dial((0.5, 2.5)), budget, horizon=100)
    steps = 50 * max(100, 2 * size) // size
    targets = []
    for _ in range(steps):
        controller.update(factor * controller.target, samples=size)
        targets.append(controller.target)
    assert controller.debt == pytest.approx(0, abs=0.01)
    assert controller.target == pytest.approx(budget / factor, rel=1e-3)
    assert max(targets[steps // 2 :]) - min(targets[steps // 2 :]) < 0.001


@given(size=st.integers(1, 50), excess=st.floats(-0.5, 0.5))
def test_steps_count_samples_not_batches(size, excess):
    one, many = (BudgetController(static_dial(), 1.5, horizon=400) for _ in range(2))
    one.update(1.5 + excess, samples=size)
    for _ in range(size):
        many.update(1.5 + excess)
    assert one.debt == pytest.approx(many.debt)
    assert one.target == pytest.approx(many.target, abs=0.01 * abs(excess))


def test_an_unreachable_budget_is_served_cheapest_and_paid_back_later(dial, easy):
    three_times = CostTable(tuple(3 * cost for cost in COSTS.cumulative), "ms")
    controller = BudgetController(dial, 2.5)
    overload = controller.replay(easy.select(slice(0, 2000)), three_times)
    assert overload.target[-1] == dial.fit_costs[0]
    assert (overload.exit_index[-200:] == 0).all()
    controller.replay(easy, batch_size=128)
    assert controller.mean_cost == pytest.approx(2.5, rel=0.01)
    assert controller.replay(easy, batch_size=128).mean_cost == pytest.approx(2.5, rel=0.01)


def test_forgiven_debt_does_not_outlast_the_overload(dial, easy):
    three_times = CostTable(tuple(3 * cost for cost in COSTS.cumulative), "ms")
    controller = BudgetController(dial, 2.5, forgive=True)
    controller.replay(easy, three_times, batch_size=128)
    paid_back = controller.replay(easy.select(slice(0, 5000)), batch_size=128)
    after = controller.replay(easy.select(slice(5000, 10000)), batch_size=128)
    assert paid_back.mean_cost < 2.5
    assert after.mean_cost == pytest.approx(2.5, rel=0.01)


def test_credit_that_cannot_be_spent_lapses(dial, easy):
    generous = BudgetController(dial, 6.0)  # the most expensive policy costs no more
    generous.replay(easy, CostTable(tuple(cost / 2 for cost in COSTS.cumulative), "ms"), batch_size=128)
    slow = CostTable(tuple(1.5 * cost for cost in COSTS.cumulative), "ms")
    slowed = generous.replay(easy, slow, batch_size=128)
    assert slowed.cost[5000:].mean() == pytest.approx(6.0, rel=0.02)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_replay_decides_as_exit_by_exit_decisions_with_the_same_ids(batch_size):
    table = synthetic_table(150, seed=5)
    dial = JointScheduler().sweep(synthetic_table(400))
    controller, twin = (BudgetController(dial, 2.2, horizon=20) for _ in range(2))
    trace = controller.replay(table, batch_size=batch_size)
    exits, targets = [], []
    for start in range(0, table.num_samples, batch_size):
        rows = np.arange(start, min(start + batch_size, table.num_samples))
        policy, seen = twin.policy, table.seen(rows)
        stops = [
            next(k for k in range(4) if policy.leaves(seen[i : i + 1, : k + 1], rows[i : i + 1]).item())
            for i in range(len(rows))
        ]
        targets += [twin.target] * len(rows)
        twin.update([table.costs.cumulative[k] for k in stops])
        exits += stops
    assert trace.exit_index.tolist() == exits
    assert trace.target.tolist() == targets
    assert trace.cost.tolist() == [table.costs.cumulative[k] for k in exits]
    assert trace.utility.tolist() == [float(table.utility[i, k]) for i, k in enumerate(exits)]


class Mean(Policy):
    """Leaves by the top probability of the mean of all exits seen, and answers with that mean."""

    num_exits = 4

    def __init__(self, threshold):
        self.threshold = threshold

    def leaves(self, seen, sample_ids):
        return np.exp(self.answers(seen, sample_ids)).max(axis=1) >= self.threshold

    def answers(self, seen, sample_ids):
        return log_softmax(seen.mean(axis=1))


def test_policies_that_combine_exits_are_judged_by_their_answers():
    table = synthetic_table(300)
    rules = [Mean(t) for t in (0.3, 0.95)]
    outcome = [Replayer(table).expected(rule) for rule in rules]
    dial = Dial(tuple(rules), tuple(c for c, _ in outcome), tuple(u for _, u in outcome), table.costs)
    budget = sum(dial.fit_costs) / 2
    trace = BudgetController(dial, budget).replay(table, batch_size=300)
    assert np.array_equal(trace.utility, Replayer(table).utility(dial.at(budget)))
    unlabelled = BudgetController(dial, budget).replay(ExitTable(logits=table.logits), table.costs)
    assert unlabelled.utility is None


def test_what_each_sample_really_costs_is_what_counts():
    plain = synthetic_table(2000)
    cost = np.random.default_rng(0).uniform(0.7, 1.8, (2000, 1)) * np.array(plain.costs.cumulative)
    table = ExitTable(logits=plain.logits, labels=plain.labels, cost=cost)
    controller = BudgetController(GeometricScheduler().sweep(synthetic_table(1000, seed=1)), 2.4, horizon=100)
    trace = controller.replay(table)
    assert np.array_equal(trace.cost, cost[np.arange(2000), trace.exit_index])
    assert trace.mean_cost == pytest.approx(2.4, rel=0.01)
    again = BudgetController(controller.dial, 2.4).replay(table, plain.costs)  # costs given count more
    assert np.array_equal(again.cost, np.array(plain.costs.cumulative)[again.exit_index])
    costless = BudgetController(controller.dial, 2.4).replay(ExitTable(logits=plain.logits))
    assert set(costless.cost) <= set(plain.costs.cumulative)


def test_it_goes_on_from_a_saved_state(dial, easy):
    controller, copy = BudgetController(dial, 2.5), BudgetController(dial, 2.5)
    controller.replay(easy.select(slice(0, 3000)), SLOW, batch_size=64)
    copy.load_state_dict(controller.state_dict())
    rest = easy.select(slice(3000, 5000))
    assert np.array_equal(copy.replay(rest).exit_index, controller.replay(rest).exit_index)
    assert copy.state_dict() == controller.state_dict()
    with pytest.raises(InputError, match="debt"):
        copy.load_state_dict({"samples": 1.0, "spent": 2.0})


@pytest.mark.parametrize(
    ("costs", "samples", "error", "message"),
    [
        (None, None, InputError, "missing"),
        ([], None, InputError, "0 samples"),
        (1.0, 0, InputError, "samples 0 .* at least 1"),
        ([1.0, -1.0], None, InputError, "-1"),
        ([1.0, math.nan], None, InputError, "finite"),
        (math.inf, None, InputError, "finite"),
        ([1.0, 2.0], 3, ShapeError, "costs of shape"),
        (np.ones((2, 2)), None, ShapeError, "costs of shape"),
    ],
)
def test_costs_that_teach_nothing_are_refused_and_change_nothing(costs, samples, error, message):
    controller = BudgetController(static_dial(), 1.5)
    before = controller.state_dict()
    with pytest.raises(error, match=message):
        controller.update(costs, samples)
    assert controller.state_dict() == before


def test_wrong_settings_are_refused():
    with pytest.raises(BudgetError, match="out of reach"):
        BudgetController(static_dial(), 0.5)
    with pytest.raises(InputError, match=r"horizon 0 .* above 0"):
        BudgetController(static_dial(), 1.5, horizon=0)
    controller = BudgetController(static_dial(), 1.5)
    with pytest.raises(InputError, match="batch_size 0"):
        controller.replay(synthetic_table(10), batch_size=0)
    with pytest.raises(ShapeError, match=r"2 exits .* 4"):
        controller.replay(synthetic_table(10))
