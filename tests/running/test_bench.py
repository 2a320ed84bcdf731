"""The benchmark: the contract's JSON, the same samples for both, ideals by hand."""

import json
import time

import numpy as np
import pytest
import torch
from foreign import said
from replaying import quantile_policy
from torch import nn

from eenet.errors import InputError, ShapeError
from eenet.models.model import MultiExitModel
from eenet.policies import ConfidenceScorer, EENetScorer, MixedPolicy, ScorePolicy
from eenet.running.benchmark import _other_size, bench
from eenet.running.engines import EagerEngine

KEYS = {
    "engine",
    "dtype",
    "batch_size",
    "full_ms",
    "adaptive_ms",
    "speedup",
    "ideal_speedup",
    "ideal_speedup_flops",
    "efficiency",
    "flips",
    "exit_distribution",
}


def test_the_json_of_the_contract(tiny, images):
    logits = said(EagerEngine(tiny, optimise=False), images)
    a, b = quantile_policy(logits, "max_prob", 0.4), quantile_policy(logits, "max_prob", 0.6)
    report = bench(tiny, MixedPolicy(a, b, 0.5), images[:40], batch_sizes=(1, 16), passes=1, progress=False)
    value = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert {"device", "threads", "rows"} <= set(value)
    assert [row["batch_size"] for row in value["rows"]] == [1, 16]
    for row in value["rows"]:
        assert set(row) >= KEYS
        assert row["speedup"] == pytest.approx(row["full_ms"] / row["adaptive_ms"])
        assert sum(row["exit_distribution"]) == pytest.approx(1)
        assert min(row["exit_distribution"]) > 0
        assert row["flips"] <= 2
        low, high = row["full_spread"]
        assert low <= row["full_ms"] <= high


class Clock:
    """A clock that only the stages move on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class Slow(nn.Module):
    """A stage that takes two milliseconds per sample and no operations worth counting."""

    def __init__(self, clock):
        super().__init__()
        self.clock = [clock]

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.clock[0].now += 0.002 * len(x)
        return x


def constant_model(clock: Clock) -> MultiExitModel:
    """Logits are the inputs themselves at every exit, each stage slow, heads free but for one product."""
    heads = [nn.Linear(2, 2, bias=False) for _ in range(4)]
    for head in heads:
        nn.init.eye_(head.weight)
    return MultiExitModel([Slow(clock) for _ in range(4)], heads)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_stopping_half_way_is_worth_half(size, clock):
    # half of the samples leave at exit 0, the other half at the last of 4: 2.5 stages of 4 on average
    inputs = torch.tensor([[9.0, 0.0], [1.0, 0.0]]).repeat(4, 1)
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([5.0, 5.0, 5.0, -np.inf]))
    report = bench(constant_model(clock), policy, inputs, batch_sizes=(size,), passes=3, progress=False)
    (row,) = report.rows
    assert (report.samples, report.passes) == (8, 3)
    assert row.exit_distribution == (0.5, 0.0, 0.0, 0.5)
    assert row.full_ms == pytest.approx(4 * 2)
    assert row.adaptive_ms == pytest.approx(2.5 * 2)
    assert row.full_spread == pytest.approx((8, 8))
    assert row.speedup == pytest.approx(4 / 2.5)
    assert row.ideal_speedup == pytest.approx(4 / 2.5)
    assert row.efficiency == pytest.approx(1)
    assert row.flips == 0
    # full: the last head only; adaptive: the heads on the way
    assert row.ideal_speedup_flops == pytest.approx(1 / 2.5)


def test_nothing_to_save_has_no_efficiency(clock):
    inputs = torch.zeros(4, 2)
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([5.0, 5.0, 5.0, -np.inf]))
    (row,) = bench(constant_model(clock), policy, inputs, batch_sizes=(4,), passes=1, progress=False).rows
    assert row.efficiency is None
    assert row.exit_distribution == (0.0, 0.0, 0.0, 1.0)


def test_flips_are_counted(tiny, images):
    class Other(EagerEngine.__mro__[1]):  # an engine whose early logits are far from the model's
        def __init__(self, inner):
            self.inner = inner
            self.name, self.dtype, self.device, self.num_exits = "other", "float32", inner.device, 3
            self.session, self.start, self.stage, self.select = inner.session, inner.start, inner.stage, inner.select
            self.full, self.join = inner.full, inner.join

        session = start = stage = select = full = join = None

        def head(self, index, state):
            said, answer = self.inner.head(index, state)
            return said * np.float32(100 if index == 0 else 1), answer

    policy = quantile_policy(said(EagerEngine(tiny, optimise=False), images), "max_prob", 0.3)
    engines = [EagerEngine(tiny), Other(EagerEngine(tiny))]
    report = bench(tiny, policy, images, batch_sizes=(32,), engines=engines, passes=1, progress=False)
    assert [row.engine for row in report.rows] == ["eager", "other"]
    assert report.rows[0].flips <= 2
    assert report.rows[1].flips > 20


@pytest.mark.parametrize(
    ("count", "sizes", "wanted"),
    [
        (96, (1, 32), 64),
        (96, (64,), 48),
        (200, (24, 48, 64, 96), 97),
        (32, (1, 32), 24),  # 64, 48 and 96 would be cut to 32, which is timed
        (24, (1, 24), 23),
        (2, (1, 2), 2),  # there is no other
    ],
)
def test_flips_are_judged_by_logits_of_another_batch_size(count, sizes, wanted):
    assert _other_size(count, sizes) == wanted


def test_what_cannot_be_timed_is_refused(tiny, images):
    policy = quantile_policy(np.random.randn(9, 3, 10), "max_prob")
    with pytest.raises(InputError, match="must lie in 1 to 96"):
        bench(tiny, policy, images, batch_sizes=(97,))
    with pytest.raises(InputError, match="batch_sizes"):
        bench(tiny, policy, images, batch_sizes=())
    with pytest.raises(InputError, match="0 passes"):
        bench(tiny, policy, images, passes=0)
    with pytest.raises(ShapeError, match="policy with 4 exits"):
        bench(tiny, quantile_policy(np.random.randn(9, 4, 10), "max_prob"), images, batch_sizes=(8,))
    strange = ScorePolicy(EENetScorer(weight=np.zeros((3, 4 + 3 + 2)), num_columns=4), np.array([0.5, 0.5, -np.inf]))
    with pytest.raises(ShapeError, match="policy fitted for 4 classes"):
        bench(tiny, strange, images, batch_sizes=(8,))
