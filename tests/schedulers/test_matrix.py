"""Matrix combinations of exits: derivatives, optima, the choice by held-out samples, and what is gained and kept."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from eenet.errors import InputError, TableError
from eenet.policies import Ensemble, Replayer, TransformedPolicy, load_policy, replay, save_policy
from eenet.schedulers import (
    AutoScheduler,
    StoppingScheduler,
    fit_calibration,
    fit_ensemble,
    fit_geometric_ensemble,
    fit_matrix,
)
from eenet.schedulers.base import folds_of, sampled_rows
from eenet.schedulers.ensemble import fold_ensembles, transformed_dial
from eenet.schedulers.matrix import MOST_PRODUCTS, _descend, _Folds, suits_matrix
from eenet.tables import CostTable, ExitTable, standard_budgets
from eenet.testing import check_policy, synthetic_table

PENALTIES = (3000.0, 300.0, 30.0, 10.0)


def confused_table(samples, exits=3, classes=5, seed=0):
    """Weak exits: each mixes up every class with another one, and none with the same as the exit before."""
    plain = synthetic_table(samples, num_exits=exits, num_classes=classes, seed=seed)
    mixed = [np.eye(classes) + 0.8 * np.roll(np.eye(classes), k + 1, axis=1) for k in range(exits)]
    logits = np.einsum("nkc,kcd->nkd", plain.logits, np.stack(mixed)).astype(np.float32)
    return ExitTable(logits=logits, labels=plain.labels, costs=plain.costs)


def lost(table):
    """Negative log-likelihood of each exit."""
    return -np.take_along_axis(table.seen().astype(float), table.labels[:, None, None], axis=2)[:, :, 0].mean(axis=0)


def folds_at(table, k, folds=3, seed=0):
    """What is fitted at an exit, with the parts it is made of."""
    fold, seen = folds_of(table.group_index, folds, seed), table.seen()[:, : k + 1]
    alone = [one(seen) for one in fold_ensembles(table, fold)]
    return _Folds(seen, alone, table.labels, fold), np.maximum(seen, -12.0).reshape(len(seen), -1), alone, fold


def twin(x, alone, labels, matrix, bias, penalty):
    """The penalised loss of one fold, in double, sample by sample; inputs are centred."""
    total = penalty * (matrix**2).sum() + 5 * (bias**2).sum()
    for row, plain, label in zip(x, alone.astype(float), labels, strict=True):
        logits = plain + row @ matrix + bias
        total += math.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]
    return total


def test_loss_and_gradient_equal_their_slow_twin():
    table = synthetic_table(40, num_exits=2, num_classes=3, seed=4)
    fit, x, alone, fold = folds_at(table, 1)
    x = x.astype(float) - x.mean(axis=0, dtype=float)
    penalty = np.append(np.full(6, 7.0), 5.0)[:, None]

    def slow(values):
        by_fold = values.reshape(7, 3, 3)
        parts = (
            twin(x[fold != f], alone[f][fold != f], table.labels[fold != f], fit.axes @ one[:-1], one[-1], 7.0)
            for f, one in enumerate(np.moveaxis(by_fold, 1, 0))
        )
        return sum(parts) / 40

    at = 0.3 * np.random.default_rng(0).normal(size=fit.shape)
    loss, slope = fit.value(at, penalty)
    assert loss == pytest.approx(slow(at), rel=1e-6)
    for i, j in np.ndindex(fit.shape):
        step = np.zeros(fit.shape)
        step[i, j] = 1e-5
        assert slope[i, j] == pytest.approx((slow(at + step) - slow(at - step)) / 2e-5, abs=1e-5)


@pytest.mark.parametrize("guess", [0.02, 1.0, 50.0])
def test_the_descent_ends_at_the_minimum_whatever_the_guess(guess):
    generator = np.random.default_rng(0)
    mixed, aim = np.eye(6) + 0.3 * generator.normal(size=(6, 6)), generator.normal(size=(6, 1))

    def value(x):
        away = mixed @ (x - aim)
        return float(np.cosh(away).sum()) - 6, mixed.T @ np.sinh(away)

    found = _descend(value, np.zeros((6, 1)), np.full((6, 1), guess))
    assert value(found)[0] < 1e-5
    assert np.allclose(found, aim, atol=0.02)


def test_samples_under_many_blocks_add_up():
    fit, *_ = folds_at(synthetic_table(90, num_exits=2, num_classes=3), 1)
    penalty, at = np.full((7, 1), 5.0), np.random.default_rng(0).normal(size=fit.shape)
    loss, slope = fit.value(at, penalty)
    held_out = fit.held_out(at)
    fit.block = 32
    assert fit.value(at, penalty)[0] == pytest.approx(loss, rel=1e-6)
    assert np.allclose(fit.value(at, penalty)[1], slope, atol=1e-6)
    assert np.allclose(fit.held_out(at), held_out, atol=1e-5)


def plain_choice(table, k, folds):
    """Penalty and mean matrix and bias of an exit by loops over penalties and folds, each solved by itself."""
    _, x, alone, fold = folds_at(table, k, folds)
    x = x.astype(float)
    centre, classes, width = x.mean(axis=0), table.num_columns, x.shape[1]
    losses, found = [], []
    for penalty in (math.inf, *PENALTIES):
        loss, parts = np.empty(table.num_samples), []
        for f in range(folds):
            rest, own = fold != f, fold == f
            labels, plain = table.labels[rest], alone[f][rest].astype(float)

            def value(values, rest=rest, labels=labels, plain=plain, penalty=penalty):
                matrix, bias = values[:-classes].reshape(width, classes), values[-classes:]
                logits = plain + (x[rest] - centre) @ matrix + bias
                probs = np.exp(logits - logits.max(axis=1, keepdims=True))
                probs /= probs.sum(axis=1, keepdims=True)
                right = probs[np.arange(len(labels)), labels]
                slope = probs - np.eye(classes)[labels]
                return (
                    penalty * (matrix**2).sum() + 5 * (bias**2).sum() - np.log(right).sum(),
                    np.concatenate(
                        [
                            ((x[rest] - centre).T @ slope + 2 * penalty * matrix).ravel(),
                            slope.sum(axis=0) + 10 * bias,
                        ]
                    ),
                )

            best = np.zeros((width + 1) * classes)
            if penalty < math.inf:
                best = minimize(value, best, jac=True, method="BFGS", options={"gtol": 1e-4}).x
            matrix, bias = best[:-classes].reshape(width, classes), best[-classes:]
            logits = alone[f][own].astype(float) + (x[own] - centre) @ matrix + bias
            logits -= logits.max(axis=1, keepdims=True)
            loss[own] = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(own.sum()), table.labels[own]]
            parts.append((matrix, bias - centre @ matrix))
        losses.append(loss)
        found.append([np.mean(part, axis=0) for part in zip(*parts, strict=True)])
    best = int(np.argmin([one.mean() for one in losses]))
    gain = losses[0] - losses[best]
    best = best if gain.mean() > gain.std() / math.sqrt(len(gain)) else 0
    return (math.inf, *PENALTIES)[best], *found[best]


@pytest.mark.parametrize("made", [confused_table, synthetic_table], ids=["weak", "strong"])
def test_the_choice_by_held_out_samples_equals_a_plain_loop(made):
    table = made(240, num_exits=2, num_classes=3, seed=1) if made is synthetic_table else made(240, 2, 3, seed=1)
    fit, alone = fit_matrix(table, folds=3), fit_ensemble(table)
    for k in range(2):
        penalty, matrix, bias = plain_choice(table, k, 3)
        assert fit.penalties[k] == penalty
        assert np.allclose(fit.transform.matrix[k, : k + 1].reshape(-1, 3), matrix, atol=3e-3)
        assert np.allclose(fit.transform.bias[k] - alone.bias[k], bias, atol=2e-2)
    assert (min(fit.penalties) < math.inf) == (made is confused_table)


def test_matrices_undo_what_weak_exits_mix_up():
    val, test = confused_table(1500), confused_table(4000, seed=1)
    fit, alone = fit_matrix(val), fit_ensemble(val)
    combined, scalar = test.transformed(fit.transform), test.transformed(alone)
    assert (combined.utility.mean(axis=0) > scalar.utility.mean(axis=0) + 0.04).all()  # measured: 0.06 to 0.12
    assert (lost(combined) < lost(scalar) - 0.08).all()
    assert max(fit.penalties) <= 300.0


@pytest.mark.parametrize("seed", range(3))
def test_matrices_stay_away_from_strong_exits(seed):
    val, test = synthetic_table(1000, seed=seed), synthetic_table(6000, seed=seed + 10)
    fit, alone = fit_matrix(val), fit_ensemble(val)
    combined, scalar = test.transformed(fit.transform), test.transformed(alone)
    assert (lost(combined) < lost(scalar) + 0.002).all()
    assert (combined.utility.mean(axis=0) > scalar.utility.mean(axis=0) - 0.004).all()
    assert sum(penalty == math.inf for penalty in fit.penalties) >= 3


def test_where_a_weight_per_exit_is_the_truth_the_ensemble_answers_to_the_bit():
    generator = np.random.default_rng(1)
    label = generator.integers(2, size=2000)
    odds = (2 * label[:, None] - 1) * 1.0 + math.sqrt(2.0) * generator.normal(size=(2000, 2))
    table = ExitTable(logits=np.stack([-odds / 2, odds / 2], axis=2), labels=label)
    fit = fit_matrix(table)
    assert fit.penalties == (math.inf, math.inf)
    assert fit.transform.history(table.seen()).tobytes() == fit_ensemble(table).history(table.seen()).tobytes()


def test_held_out_answers_are_as_good_as_those_of_fresh_samples():
    val, test = confused_table(400, classes=8), confused_table(6000, classes=8, seed=1)
    fit = fit_matrix(val)
    fresh, seen = (table.transformed(fit.transform).utility.mean() for table in (test, val))
    held_out = fit.held_out.utility.mean()
    assert seen > fresh + 0.03  # on its own samples the combination looks better than it is
    assert abs(held_out - fresh) < 0.025
    assert np.array_equal(fit.held_out.utility, fit.held_out.seen().argmax(axis=2) == val.labels[:, None])
    assert fit.held_out.transform is None and fit.held_out.combinable
    assert np.array_equal(fit.held_out.labels, val.labels) and fit.held_out.costs is val.costs


def test_held_out_answers_do_not_know_their_label():
    table = confused_table(300)
    fit = fit_matrix(table)
    labels = table.labels.copy()
    labels[:5] = (labels[:5] + 1) % 5
    own = folds_of(np.arange(300), 5, 0)[0] == folds_of(np.arange(300), 5, 0)[:5]
    labels[:5][~own] = table.labels[:5][~own]  # of one fold only: others may learn from these samples
    other = fit_matrix(ExitTable(logits=table.logits, labels=labels, costs=table.costs))
    assert other.penalties == fit.penalties
    changed = np.flatnonzero(labels != table.labels)
    assert len(changed) >= 1
    assert np.allclose(other.held_out.seen(changed), fit.held_out.seen(changed), atol=0.02)
    rest = np.abs(other.held_out.seen() - fit.held_out.seen()).max()
    assert rest > 0.05  # while the answers of other folds did learn from them


def test_samples_that_were_not_fitted_on_are_answered_by_the_combination(monkeypatch):
    monkeypatch.setattr("eenet.schedulers.matrix._LEAST", 200)
    monkeypatch.setattr("eenet.schedulers.matrix._WORK", 0)
    table = confused_table(500)
    fit, part = fit_matrix(table, seed=3), sampled_rows(np.arange(500), 200, 3)
    others = np.setdiff1d(np.arange(500), part)
    assert len(part) == 200 and fit.held_out.num_samples == 500
    combined = table.transformed(fit.transform).seen()
    assert np.allclose(fit.held_out.seen(others), combined[others], atol=1e-5)
    assert not np.allclose(fit.held_out.seen(part), combined[part], atol=1e-2)


def test_the_same_seed_fits_the_same():
    table = confused_table(200)
    one, same, other = fit_matrix(table), fit_matrix(table), fit_matrix(table, seed=1)
    assert np.array_equal(one.transform.matrix, same.transform.matrix)
    assert np.array_equal(one.held_out.logits, same.held_out.logits)
    assert not np.array_equal(one.transform.matrix, other.transform.matrix)


def test_few_steps_are_enough(monkeypatch):
    asked, value = [], _Folds.value
    monkeypatch.setattr(_Folds, "value", lambda self, *of: (asked.append(1), value(self, *of))[1])
    fit_matrix(confused_table(400, exits=6, classes=10))
    assert len(asked) < 500  # 24 fits of up to 3000 numbers each; measured: 229


def test_schedulers_behind_it_replay_alike_and_are_saved(tmp_path):
    val, test = confused_table(400), confused_table(300, seed=1)
    fit = fit_matrix(val)
    dial = transformed_dial(fit.transform, StoppingScheduler(ensemble=False).sweep(fit.held_out))
    policy = dial.at(2.0)
    parts = [part for _, part in policy.components()]
    assert all(isinstance(part, TransformedPolicy) for part in parts)
    check_policy(policy, test)
    save_policy(policy, tmp_path / "policy", dial=dial)
    again = load_policy(tmp_path / "policy")
    for ours, theirs in ((policy, again.policy), (dial.at(1.5), again.dial.at(1.5))):
        a, b = replay(ours, test), replay(theirs, test)
        assert np.array_equal(a.exit_index, b.exit_index) and a.log_probs.tobytes() == b.log_probs.tobytes()
    assert Replayer(test).expected(policy)[0] == pytest.approx(2.0, abs=0.15)


def odd_table(case):
    """A small table that breaks what fits usually rely on."""
    plain = synthetic_table(60, num_exits=2, num_classes=2 if case == "two classes" else 4, seed=2)
    logits, labels = plain.logits.copy(), plain.labels
    match case:
        case "impossible classes":
            logits[:, :, 1] = -np.inf  # also where it is right
        case "constant":
            logits[:] = 0.0
        case "a constant column":
            logits[:, 0] = [0.0, 0.0, 0.0, 0.0]
        case "ties":
            logits, labels = np.repeat(logits[:3], 20, axis=0), np.repeat(labels[:3], 20)
        case "absent classes":
            labels = labels % 2
        case "one class":
            labels = np.zeros_like(labels)
        case "all right":
            logits = 30.0 * np.eye(4)[labels][:, None].repeat(2, axis=1)
        case "huge":
            logits *= 1e30
        case "few":
            logits, labels = logits[:20], labels[:20]
        case "two":
            logits, labels = logits[:2], labels[:2]
    return ExitTable(logits=logits, labels=labels, costs=CostTable((1.0, 2.0), "ms"))


CASES = ("impossible classes", "constant", "a constant column", "ties", "absent classes", "one class", "all right")


@pytest.mark.parametrize("case", [*CASES, "huge", "few", "two", "two classes"])
def test_odd_tables_are_fitted(case):
    table = odd_table(case)
    fit = fit_matrix(table)
    for answers in (fit.transform.history(table.seen()), fit.held_out.seen()):
        assert np.isfinite(answers).all()
        np.testing.assert_allclose(np.exp(answers.astype(float)).sum(axis=2), 1, rtol=1e-5)
    plain = lost(table.transformed(fit_ensemble(table)))
    assert (lost(table.transformed(fit.transform)) <= plain + 0.02).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("fit", [fit_matrix, fit_ensemble, fit_geometric_ensemble, fit_calibration])
def test_only_tables_are_fitted_on(fit):
    with pytest.raises(InputError, match="table of type NoneType"):
        fit(None)


def test_what_cannot_be_combined_is_refused():
    table = synthetic_table(60)
    wide = ExitTable(logits=np.zeros((4, 3, 82)), labels=[0, 1, 2, 3], split="val")
    blind = ExitTable(logits=table.logits, utility=table.utility)
    seen = table.transformed(Ensemble(weight=np.eye(4), bias=np.zeros((4, 5))))
    one = table.select([0])
    with pytest.raises(TableError, match=rf"'val' of 3 exits and 82 classes .* 20,172 .* {MOST_PRODUCTS:,} "):
        fit_matrix(wide)
    with pytest.raises(TableError, match="lacks labels"):
        fit_matrix(blind)
    with pytest.raises(InputError, match="transformed already"):
        fit_matrix(seen)
    with pytest.raises(TableError, match="of 1 sample is too small"):
        fit_matrix(one)
    with pytest.raises(InputError, match="folds"):
        fit_matrix(table, folds=1)
    with pytest.raises(InputError, match="seed -1"):
        fit_matrix(table, seed=-1)
    assert suits_matrix(table)
    assert not any(map(suits_matrix, (wide, blind, seen, one)))


def test_utility_that_is_not_accuracy_is_unknown_in_held_out_answers():
    table = synthetic_table(60)
    worth = np.random.default_rng(0).random((60, 4))
    held_out = fit_matrix(ExitTable(logits=table.logits, labels=table.labels, utility=worth)).held_out
    assert held_out.utility is None and held_out.labels is None


def test_auto_takes_matrices_where_exits_are_weak_and_not_where_they_are_strong():
    weak, strong = confused_table(1000), synthetic_table(1000, num_exits=3, num_classes=5)
    assert AutoScheduler(folds=2).choose(weak).name == "stopping+matrix"
    assert not any(one.name.endswith("+matrix") for one in AutoScheduler(folds=2).choose(strong).contenders)
    few = AutoScheduler(folds=2).choose(weak.select(np.arange(999)))
    assert not any(one.name.endswith("+matrix") for one in few.contenders)
    dial, fresh = AutoScheduler(folds=2).sweep(weak), confused_table(4000, seed=1)
    for budget in standard_budgets(weak.require_costs()):
        assert Replayer(weak).expected(dial.at(budget))[0] <= budget * (1 + 1e-9)
    scalar = StoppingScheduler().sweep(weak)
    matrix, alone = (
        np.mean([Replayer(fresh).expected(one.at(f"{share}%"))[1] for share in (50, 70, 90)]) for one in (dial, scalar)
    )
    assert matrix > alone + 0.03
    check_policy(dial.at("60%"), fresh.select(np.arange(200)))
