"""What a policy saves and loses, in a sentence; and where it is not worth the trouble."""

import json
import math

import numpy as np
import pytest

from eenet import AutoScheduler, ConfidenceScorer, CostTable, ScorePolicy
from eenet.errors import InputError, TableError
from eenet.evaluation import saving
from eenet.evaluation.saving import points, saving_at
from eenet.policies import MixedPolicy, replay
from eenet.policies.policy import static_policy
from eenet.policies.replay import Replayer
from eenet.tables import ExitTable
from eenet.testing import planted

COSTS = CostTable((1.0, 2.0, 4.0), "ms")


def table_of(right, sure):
    """Return a table of two classes: which answers are right, and how sure each exit is."""
    right, sure = np.array(right, dtype=bool), np.array(sure, dtype=np.float64)
    labels = np.zeros(len(right), dtype=np.int64)
    logit = np.where(right, sure, -sure)
    return ExitTable(logits=np.stack([logit, -logit], axis=2), labels=labels, costs=COSTS)


def test_by_hand():
    right = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 1, 0]] * 50
    sure = [[3, 3, 3], [0.1, 3, 3], [0.1, 0.1, 3], [3, 3, 3]] * 50
    table = table_of(right, sure)
    policy = ScorePolicy("max_prob", [2.0, 2.0, -math.inf])
    found = saving(policy, table, speedups={1: 2.04, 32: 1.66})
    # they leave at 0, 1, 2, 0: right, right, right, wrong
    assert found.exits == (0.5, 0.25, 0.25) and found.cost_share == (1 + 2 + 4 + 1) / 4 / 4
    assert found.lost == pytest.approx(0.0) and found.lost_error == 0.0
    assert found.static_exit == 1 and found.static_lost == pytest.approx(0.0)  # 3 of 4 right, as at the last exit
    # exit 1 for all is as good at the same cost: the gain is none
    assert found.gain[0] == pytest.approx(0.0) and found.num_samples == 200
    assert not found.pays and "as good at equal cost" in found.sentence
    assert "2.0x faster at batch 1 (1.7x at 32), no loss, 50% of the samples left at exit 0" in str(found)


def test_the_loss_and_the_gain_are_means_over_samples():
    table, other = planted.gaussian_table(3000, seed=0), planted.gaussian_table(2000, seed=1)
    policy = AutoScheduler(seed=0).fit(table, budget="40%")
    found = saving(policy, other)
    utility = other.require_utility("test")
    parts = [(weight, replay(part, other)) for weight, part in policy.components()]
    cost = sum(weight * trace.mean_cost for weight, trace in parts)
    earned = sum(
        weight * (trace.log_probs.argmax(axis=1) == other.labels).astype(np.float64) for weight, trace in parts
    )
    assert found.cost_share == pytest.approx(cost / other.costs.full)
    lost = utility[:, -1] - earned
    assert found.lost == pytest.approx(100 * lost.mean())
    assert found.lost_error == pytest.approx(100 * lost.std(ddof=1) / math.sqrt(len(lost)))
    assert found.gain[1] > 0 and found.pays
    assert "% of the ms saved" in found.sentence and "Do not bother" not in found.sentence


def test_a_mixture_counts_in_expectation_whatever_the_coin():
    table = table_of([[0, 0, 1]] * 40, [[1, 1, 1]] * 40)
    first, last = (static_policy(ConfidenceScorer("max_prob"), k, 3) for k in (0, 2))
    found = {seed: saving(MixedPolicy(first, last, 0.25, seed), table) for seed in (0, 1)}
    assert found[0] == found[1]
    assert found[0].exits == (0.25, 0.0, 0.75) and found[0].lost == pytest.approx(25.0)
    assert found[0].gain[0] == pytest.approx(0.0)  # a fixed mix is what it is


def test_it_says_where_it_is_not_on_the_clock():
    table, other = planted.gaussian_table(3000, seed=0), planted.gaussian_table(2000, seed=1)
    policy = AutoScheduler(seed=0).fit(table, budget="40%")
    found = saving(policy, other, speedups={1: 0.97, 32: 1.02})
    assert found.sentence.startswith("Do not bother: the saving is not on the clock (1.02x at batch 32).")
    assert saving(policy, other, speedups={1: 0.97, 32: 1.3}).pays
    mixed = saving(policy, other, speedups={1: 0.5, 32: 1.3}).sentence
    assert mixed.startswith("2.0x slower at batch 1 (1.3x faster at 32), ")
    few = saving(policy, other.select(np.arange(40)))
    assert not few.pays and "40 samples cannot tell small gains" in few.sentence
    same = saving(policy, other, speedups={1: 0.97, 32: 1.3}).sentence  # 0.97 is no "1.0x slower"
    assert same.startswith("as fast at batch 1 (1.3x faster at 32), ")


def test_nothing_saved_does_not_pay():
    table = table_of([[0, 0, 1]] * 30 + [[1, 1, 1]] * 30, [[1, 1, 1]] * 60)
    found = saving(static_policy(ConfidenceScorer("max_prob"), 2, 3), table)
    assert found.cost_share == 1.0 and "it costs 100% of the original model" in found.sentence


def test_values_are_json():
    table = planted.gaussian_table(200, seed=0)
    found = saving(AutoScheduler(seed=0).fit(table, budget="60%"), table, speedups={1: 1.5}).to_dict()
    assert json.loads(json.dumps(found))["speedups"] == found["speedups"] == {"1": 1.5}
    assert {"sentence", "pays", "reasons"} <= found.keys()


def test_what_cannot_be_judged_is_refused():
    table = planted.gaussian_table(60, seed=0)
    policy = AutoScheduler(seed=0).fit(table, budget="60%")
    with pytest.raises(TableError):
        saving(policy, ExitTable(logits=table.logits, costs=table.costs))


def test_a_fixed_mix_is_as_good_as_itself_whatever_sums_round_to():
    generator = np.random.default_rng(0)
    costs, first = CostTable((0.37, 0.93, 1.21), "ms"), ConfidenceScorer("max_prob")
    for _ in range(40):
        right = np.ones((int(generator.integers(60, 300)), 3))
        right[:, :2] = generator.random((len(right), 1)) < 0.5
        table = table_of(right, np.ones_like(right)).with_costs(costs)
        fixed = MixedPolicy(static_policy(first, 0, 3), static_policy(first, 2, 3), float(generator.random()), 1)
        found = saving(fixed, table)
        assert found.gain == (0.0, 0.0, 0.0) and "as good at equal cost" in found.sentence


@pytest.mark.parametrize("right", [7, 14, 29, 57])
def test_exactly_one_point_lost_is_at_most_one(right):
    logits = np.zeros((100, 2, 2))
    logits[:, 0, 0], logits[:, 1, 0] = np.arange(100) < right - 1, np.arange(100) < right
    logits[:, :, 1] = 0.5
    table = ExitTable(logits=logits, labels=np.zeros(100, dtype=np.int64), costs=CostTable((1.0, 2.0), "ms"))
    policies = {
        table.costs.budget(one): static_policy(ConfidenceScorer("max_prob"), k, 2) for k, one in enumerate("12")
    }
    words, found = saving_at(policies, Replayer(table), Replayer(table))
    assert words == "1 ms" and found.lost == pytest.approx(1.0)


def test_nothing_is_never_less_than_nothing():
    assert points(-0.04, verb=True) == points(0.04, verb=True) == "loses 0.0 points"
    table = table_of([[0, 0, 1]] * 60, [[1, 1, 1]] * 60).with_costs(CostTable((1.0, 2.0, 4.0), "ms", 3.999))
    assert "0% of the ms saved" in (said := saving(static_policy(ConfidenceScorer("max_prob"), 2, 3), table).sentence)
    assert "-0" not in said


@pytest.mark.parametrize("speedups", [{1: 0.0}, {1: -1.0}, {1: math.nan}, {1: math.inf}])
def test_speed_ups_that_are_none_are_refused(speedups):
    table = table_of([[0, 0, 1]] * 60, [[1, 1, 1]] * 60)
    with pytest.raises(InputError, match="speedups"):
        saving(static_policy(ConfidenceScorer("max_prob"), 0, 3), table, speedups=speedups)


def test_a_model_that_knows_nothing_is_no_model():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(600, 3, 4)), generator.integers(0, 4, size=600)
    table = ExitTable(logits=logits, labels=labels, costs=COSTS)
    found = saving(static_policy(ConfidenceScorer("max_prob"), 0, 3), table, speedups={1: 3.0})
    counts = np.bincount(labels)
    assert found.majority == counts.max() / 600 and not found.pays
    right = (logits[:, -1].argmax(axis=1) == labels).mean()
    assert found.full_utility == right
    said = f"({right:.0%} right, always answering the most frequent class {counts.max() / 600:.0%})"
    assert found.sentence.startswith(f"Do not bother: the model knows hardly anything {said}")
