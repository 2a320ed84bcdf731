"""What is counted, and when an alarm begins and ends."""

import logging

import numpy as np
import pytest

from eenet.serving.watch import Counts, Watch


def test_a_histogram_by_hand() -> None:
    counts = Counts((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        counts.add(value)
    read = counts.read()
    assert read.counts == (2, 1, 1) and read.count == 4 and read.mean == 2.5
    assert read.quantile(0.5) == 1.0 and read.quantile(0.75) == 2.0 and read.quantile(1) == float("inf")
    assert Counts((1.0,)).read().mean is None and Counts((1.0,)).read().quantile(0.5) is None


def test_agreement_below_what_calibration_promised(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    watch = Watch(3, 32)
    watch.turned(0.7)
    for _ in range(400):
        watch.shadow(bool(rng.random() < 0.95))
    assert watch.promised_agreement == pytest.approx(0.95, abs=0.04) and not watch.alarms
    with caplog.at_level(logging.INFO, logger="eenet"):
        for _ in range(300):
            watch.shadow(bool(rng.random() < 0.6))
        assert "of the last 200 compared answers" in watch.alarms["agreement"].evidence
        began = watch.alarms["agreement"].since
        watch.shadow(False)
        assert watch.alarms["agreement"].since == began
        for _ in range(300):
            watch.shadow(bool(rng.random() < 0.96))
    assert not watch.alarms
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "alarm agreement",
        "alarm agreement is over",
    ]


def test_the_bound_of_calibration_counts_from_the_start() -> None:
    watch = Watch(3, 32)
    watch.turned(0.8)
    for i in range(200):
        watch.shadow(i % 2 == 0)
    assert watch.promised_agreement == 0.8 and "80.0% was promised" in watch.alarms["agreement"].evidence


def test_another_budget_begins_anew() -> None:
    watch = Watch(3, 32)
    for _ in range(250):
        watch.shadow(True)
    watch.turned(None)
    assert watch.promised_agreement is None and watch.agreement is None
    for _ in range(250):
        watch.shadow(False)
    assert not watch.alarms  # such is this budget


def test_costs_that_are_not_those_of_calibration() -> None:
    rng = np.random.default_rng(0)
    watch = Watch(2, 32)

    def run(count: int, share: float, promised: float) -> None:
        for late in (rng.random(count) < share).tolist():
            watch.left(int(late), np.array([0.5]), 3.0 if late else 1.0, [promised])

    run(1000, 0.5, 2.0)
    assert not watch.alarms and watch.recent_cost == pytest.approx(2.0, abs=0.2) and watch.promised_cost == 2.0
    run(600, 0.9, 2.0)
    assert "2.000 on" not in watch.alarms["cost"].evidence and "and the policies" in watch.alarms["cost"].evidence
    run(1000, 0.5, 2.0)
    assert not watch.alarms
    assert watch.exits[0] + watch.exits[1] == watch.samples == 2600


def test_budgets_of_single_requests_promise_nothing() -> None:
    watch = Watch(2, 32)
    for _ in range(600):
        watch.left(1, np.array([0.5]), 3.0, [float("nan")])
    assert watch.recent_cost is None and not watch.alarms and watch.spent == 1800


def test_memory_is_constant() -> None:
    watch = Watch(2, 32)
    for i in range(3000):
        watch.latency(0.01)
        watch.shadow(True)
        watch.left(i % 2, np.array([0.5]), 1.0, [1.0])
    held = [len(one) for one in (watch.recent_latencies, watch._costs.values, watch._agreed.values, watch._first)]
    assert held == [512, 500, 200, 200]
