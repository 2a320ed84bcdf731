"""On tables where later exits are better, every policy must earn more than a blind mix of exits."""

import dataclasses

import pytest

from eenet.evaluation import compare
from eenet.schedulers import (
    AutoScheduler,
    EENetScheduler,
    EeroScheduler,
    GeometricScheduler,
    JointScheduler,
    PatienceScheduler,
    PceeScheduler,
    StoppingScheduler,
    TransformedScheduler,
    VoteScheduler,
    fit_geometric_ensemble,
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
    "pcee": PceeScheduler(),
    "eero": EeroScheduler(),
    "ztw": TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_geometric_ensemble),
    "stopping": StoppingScheduler(),
    "auto": AutoScheduler(folds=2),
}
COMBINED = ("ztw", "stopping", "auto")  # several exits together may beat the oracle, who answers with one


@pytest.mark.parametrize(
    "names", [tuple(name for name in SCHEDULERS if name != "auto"), pytest.param(("auto",), marks=pytest.mark.slow)]
)
def test_every_policy_is_above_random_by_more_than_its_interval(names):
    schedulers = {name: SCHEDULERS[name] for name in names}
    val, test = synthetic_table(2000, num_exits=6, seed=0), synthetic_table(3000, num_exits=6, seed=1)
    result = compare(val, test, schedulers, ["40%", "60%", "80%"], resamples=300)
    above = {pair.a: pair for pair in result.pairs if pair.b == "random"}
    assert above.keys() == schedulers.keys()
    for name, pair in above.items():
        assert pair.low > 0, (name, pair)
    for row in result.rows:
        assert row.val_cost <= row.budget
        if row.policy in COMBINED:
            continue
        bound = next(r for r in result.rows if r.policy == "oracle" and r.budget == row.budget)
        assert row.utility_at_budget <= bound.utility_at_budget + 1e-9
