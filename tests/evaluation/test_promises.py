"""On tables where later exits are better, every policy must earn more than a blind mix of exits."""

import dataclasses

from eenet.evaluation import compare
from eenet.schedulers import (
    EENetScheduler,
    GeometricScheduler,
    JointScheduler,
    PatienceScheduler,
    VoteScheduler,
)
from eenet.testing import synthetic_table

SCHEDULERS = {
    "max_prob": GeometricScheduler(),
    "certainty": GeometricScheduler(confidence="certainty"),
    "margin": GeometricScheduler(confidence="margin"),
    "joint": JointScheduler(),
    "patience": PatienceScheduler(),
    "vote": VoteScheduler(),
    "eenet": EENetScheduler(epochs=10),
    "eenet_published": dataclasses.replace(EENetScheduler.published(), epochs=4, alternate_every=1, restarts=1),
}


def test_every_policy_is_above_random_by_more_than_its_interval():
    val, test = synthetic_table(3000, num_exits=6, seed=0), synthetic_table(3000, num_exits=6, seed=1)
    result = compare(val, test, SCHEDULERS, ["40%", "60%", "80%"], resamples=300)
    above = {pair.a: pair for pair in result.pairs if pair.b == "random"}
    assert above.keys() == SCHEDULERS.keys()
    for name, pair in above.items():
        assert pair.significant, (name, pair)
        assert pair.low > 0, (name, pair)
    for row in result.rows:
        assert row.val_cost <= row.budget
        bound = next(r for r in result.rows if r.policy == "oracle" and r.budget == row.budget)
        assert row.utility_at_budget <= bound.utility_at_budget + 1e-9
