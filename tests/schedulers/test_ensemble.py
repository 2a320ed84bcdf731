"""Ensembles of exits: derivatives, optima, held-out folds, and the schedulers that work on them."""

import math

import numpy as np
import pytest

from eenet.errors import InputError, TableError
from eenet.policies import Ensemble, Replayer, TransformedPolicy, load_policy, save_policy
from eenet.schedulers import (
    GeometricScheduler,
    JointScheduler,
    PatienceScheduler,
    TransformedScheduler,
    fit_calibration,
    fit_ensemble,
    fit_geometric_ensemble,
)
from eenet.schedulers.base import folds_of
from eenet.schedulers.ensemble import _Likelihood, fit_temperatures, held_out_ensemble
from eenet.tables import CostTable, ExitTable, log_softmax
from eenet.testing import check_policy, check_scheduler, synthetic_table

FITS = {"ensemble": fit_ensemble, "geometric": fit_geometric_ensemble, "calibration": fit_calibration}


def likelihood_of(table, labels):
    """Negative log-likelihood of each exit."""
    return -np.take_along_axis(table.seen().astype(float), labels[:, None, None], axis=2)[:, :, 0].mean(axis=0)


def likelihood(table, exits=None):
    """The loss of the last of the first exits."""
    return _Likelihood(np.moveaxis(table.seen()[:, :exits], 1, 0).astype(float), table.labels)


def test_an_ensemble_by_hand():
    weight = np.array([[2.0, 9.0], [0.5, -1.0]])  # the upper triangle does not count
    together = Ensemble(weight=weight, bias=np.array([[0.0, 0.0], [0.25, -0.25]]))
    odds = np.array([[1.0, 3.0], [-2.0, 0.5]])
    history = together.history(log_softmax(np.stack([odds, np.zeros((2, 2))], axis=2)))
    found = history[:, :, 0] - history[:, :, 1]
    assert np.allclose(found, [[2.0, 0.5 - 3.0 + 0.5], [-4.0, -1.0 - 0.5 + 0.5]], atol=1e-6)
    assert np.allclose(np.exp(history).sum(axis=2), 1)
    assert history.dtype == np.float32


@pytest.mark.parametrize("name", FITS)
def test_exits_that_an_ensemble_was_not_fitted_on_stay_as_they_are(name):
    together = FITS[name](synthetic_table(300, num_exits=3))
    more = synthetic_table(20, num_exits=5, seed=1).seen()
    assert np.array_equal(together.history(more)[:, :3], together.history(more[:, :3]))
    assert np.array_equal(together.history(more)[:, 3:], more[:, 3:])


@pytest.mark.parametrize("exits", [1, 3])
def test_gradient_and_curvature_equal_finite_differences(exits):
    table = synthetic_table(120, num_exits=4, num_classes=3, seed=2)
    loss = likelihood(table, exits)
    at = np.random.default_rng(0).normal(size=len(loss.prior))
    step = 1e-5
    _, slope = loss.value(at)
    curvature = loss.curvature(at)
    for i, direction in enumerate(np.eye(len(at))):
        (above, slope_above), (below, slope_below) = (loss.value(at + sign * step * direction) for sign in (1, -1))
        assert slope[i] == pytest.approx((above - below) / (2 * step), abs=1e-7)
        assert curvature[i] == pytest.approx((slope_above - slope_below) / (2 * step), abs=1e-7)
    assert np.allclose(curvature, curvature.T)
    assert np.linalg.eigvalsh(curvature).min() > 0  # strictly convex, thanks to the penalty


def test_the_loss_equals_its_slow_twin():
    table = synthetic_table(90, num_exits=2, num_classes=3, seed=5)
    loss = likelihood(table)
    values = np.random.default_rng(1).normal(size=5)
    total = 2 * (values[0] ** 2 + (values[1] - 1) ** 2) + 5 * (values[2:] ** 2).sum()
    for row, label in zip(table.seen().tolist(), table.labels.tolist(), strict=True):
        logits = [sum(values[j] * row[j][c] for j in range(2)) + values[2 + c] for c in range(3)]
        total += math.log(sum(math.exp(v) for v in logits)) - logits[label]
    assert loss.value(values)[0] == pytest.approx(total / 90)


@pytest.mark.parametrize("fit", [fit_ensemble, fit_geometric_ensemble])
def test_the_fit_is_the_least_penalised_loss(fit):
    table = synthetic_table(600, seed=3)
    together = fit(table)
    for k in range(4):
        loss = likelihood(table, k + 1)
        best = np.concatenate([together.weight[k, : k + 1], together.bias[k]])
        value, slope = loss.value(best)
        free = np.ones_like(best, dtype=bool)
        if fit is fit_geometric_ensemble:
            assert (best[: k + 1] >= 0).all()
            free[: k + 1] = best[: k + 1] > 1e-9
            assert (slope[~free] > -1e-4).all()  # at the bound the loss would only rise
        assert np.abs(slope[free]).max() < 1e-4
        generator = np.random.default_rng(k)
        for _ in range(20):
            other = best + 0.05 * generator.normal(size=len(best)) * free
            assert loss.value(np.concatenate([np.maximum(other[: k + 1], 0), other[k + 1 :]]))[0] >= value - 1e-6
    assert np.array_equal(together.weight, np.tril(together.weight))


def test_independent_evidence_is_added_up():
    # two exits that see independent noise: the exact chances add the log-odds, so both weights are 1
    generator = np.random.default_rng(0)
    label = generator.integers(2, size=20000)
    odds = (2 * label[:, None] - 1) * 1.0 + math.sqrt(2.0) * generator.normal(size=(20000, 2))
    table = ExitTable(logits=np.stack([-odds / 2, odds / 2], axis=2), labels=label)
    together = fit_ensemble(table)
    assert np.allclose(together.weight, [[1.0, 0.0], [1.0, 1.0]], atol=0.06)
    assert np.abs(together.bias).max() < 0.05
    assert table.transformed(together).utility[:, 1].mean() > table.utility[:, 1].mean() + 0.03


def test_labels_become_more_likely_also_on_fresh_samples():
    val, test = synthetic_table(2000, seed=0), synthetic_table(4000, seed=1)
    plain = likelihood_of(test, test.labels)
    found = {name: likelihood_of(test.transformed(fit(val)), test.labels) for name, fit in FITS.items()}
    assert (found["calibration"] < plain + 0.001).all()  # one exit needs none
    assert (found["ensemble"][2:] < found["calibration"][2:] - 0.005).all()
    assert (found["geometric"][2:] < found["calibration"][2:] - 0.005).all()


def test_calibration_is_the_temperature_and_keeps_every_answer():
    table = synthetic_table(500, seed=2)
    calibrated = table.transformed(fit_calibration(table))
    assert np.allclose(calibrated.seen(), log_softmax(table.logits / fit_temperatures(table)[:, None]), atol=1e-5)
    assert np.array_equal(calibrated.utility, table.utility)


def test_many_samples_are_thinned_by_the_seed(monkeypatch):
    table = synthetic_table(3000)
    monkeypatch.setattr("eenet.schedulers.ensemble._ENTRIES", 6000)
    one, same, other = fit_ensemble(table, 0), fit_ensemble(table, 0), fit_ensemble(table, 1)
    assert np.array_equal(one.weight, same.weight) and np.array_equal(one.bias, same.bias)
    assert not np.array_equal(one.weight, other.weight)
    rows = np.sort(np.random.default_rng(0).permutation(3000)[:1200])
    assert np.array_equal(one.weight, fit_ensemble(table.select(rows)).weight)


def test_held_out_ensembles_have_not_seen_their_samples():
    table = synthetic_table(200, num_classes=3)
    plain, together = held_out_ensemble(table, 4, seed=3)
    assert np.array_equal(plain.labels, table.labels)
    fold = folds_of(np.arange(200), 4, 3)
    for f in range(4):
        rest = fit_ensemble(table.select(fold != f))
        assert np.allclose(together.logits[fold == f], rest.history(table.seen(fold == f)), atol=1e-5)
    answers = together.logits.argmax(axis=2)
    assert np.array_equal(together.utility, answers == table.labels[:, None])


def test_held_out_ensembles_keep_the_costs_of_their_samples(monkeypatch):
    monkeypatch.setattr("eenet.schedulers.ensemble._ENTRIES", 5000)
    table = synthetic_table(1100)
    cost = np.cumsum(np.random.default_rng(0).uniform(0.5, 1.5, (1100, 4)), axis=1)
    cost += table.labels[:, None]  # whose costs they are can be seen
    by_sample = ExitTable(logits=table.logits, labels=table.labels, cost=cost)
    for part in held_out_ensemble(by_sample, 3):
        assert part.num_samples == 1000
        assert np.array_equal(np.floor(part.cost[:, 0] - 0.5), part.labels)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("inner", [GeometricScheduler(), JointScheduler(), PatienceScheduler()], ids=["g", "j", "p"])
def test_schedulers_on_transformed_tables_keep_their_promises(name, inner, tmp_path):
    scheduler = TransformedScheduler(scheduler=inner, fit_transform=FITS[name])
    if name == "geometric":
        check_scheduler(scheduler)
    table, fresh = synthetic_table(400), synthetic_table(300, seed=1)
    dial = scheduler.sweep(table)
    for budget in (1.0, 1.7, 2.5, 4.0):
        policy = dial.at(budget)
        parts = [part for _, part in policy.components()]
        assert all(isinstance(part, TransformedPolicy) and part.transform is parts[0].transform for part in parts)
        assert Replayer(table).expected(policy)[0] <= budget
    alone = inner.fit(table.transformed(FITS[name](table)), budget=1.7)
    policy = dial.at(1.7)
    transformed = Replayer(fresh.transformed(parts[0].transform))
    assert np.array_equal(Replayer(fresh).exit_index(policy), transformed.exit_index(alone))
    check_policy(policy, fresh)
    save_policy(policy, tmp_path / "policy")
    again = load_policy(tmp_path / "policy").policy
    assert np.array_equal(Replayer(fresh).exit_index(again), Replayer(fresh).exit_index(policy))
    assert np.array_equal(Replayer(fresh).utility(again), Replayer(fresh).utility(policy))


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("case", ["constant", "all right", "two of each", "one class only", "far", "huge"])
@pytest.mark.filterwarnings("ignore:temperatures end at a limit")
def test_odd_tables_are_fitted(name, case):
    table = synthetic_table(40, num_exits=2, num_classes=2)
    logits, labels = table.logits, table.labels
    if case == "constant":
        logits = np.zeros_like(logits)
    elif case == "all right":
        logits = 30 * np.eye(2)[labels][:, None].repeat(2, axis=1)
    elif case == "two of each":
        logits, labels = logits[:4], np.array([0, 1, 0, 1])
    elif case == "one class only":
        labels = np.zeros_like(labels)
    else:
        logits = logits * (1e4 if case == "far" else 1e30)
    table = ExitTable(logits=logits, labels=labels, costs=CostTable((1.0, 2.0), "ms"))
    together = FITS[name](table)
    assert np.isfinite(together.weight).all() and np.isfinite(together.bias).all()
    scheduler = TransformedScheduler(scheduler=JointScheduler(), fit_transform=FITS[name])
    assert Replayer(table).expected(scheduler.fit(table, budget=1.5))[0] <= 1.5


@pytest.mark.parametrize("name", FITS)
def test_labels_are_needed(name):
    table = synthetic_table(50)
    graded = ExitTable(
        logits=table.logits, labels=table.labels, utility=np.random.default_rng(0).random((50, 4)), costs=table.costs
    )
    blind = ExitTable(logits=table.logits, utility=table.utility, costs=table.costs)
    scheduler = TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=FITS[name])
    with pytest.raises(TableError, match="lacks labels"):
        FITS[name](blind)
    for unfit in (graded, blind):
        with pytest.raises(TableError, match="lacks labels"):
            scheduler.fit(unfit, budget=2.0)


def test_a_transformed_table_is_refused():
    table = synthetic_table(50).transformed(Ensemble(weight=np.eye(4), bias=np.zeros((4, 5))))
    scheduler = TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_geometric_ensemble)
    with pytest.raises(InputError, match="table is transformed already"):
        scheduler.fit(table, budget=2.0)
