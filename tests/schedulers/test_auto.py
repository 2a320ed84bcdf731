"""The choice by cross-validation: what is tried, what is taken, and why."""

import numpy as np
import pytest

from eenet.errors import BudgetError, TableError
from eenet.policies import Replayer, Transform, TransformedPolicy
from eenet.schedulers import (
    AutoScheduler,
    GeometricScheduler,
    JointScheduler,
    StoppingScheduler,
    TransformedScheduler,
    ensemble,
    fit_ensemble,
)
from eenet.schedulers.auto import _Fits
from eenet.schedulers.choosing import HeldOut, _contribution
from eenet.tables import CostTable, ExitTable, log_softmax, standard_budgets
from eenet.testing import check_policy, classwise_table, synthetic_table

SIMPLE = ("max_prob", "margin", "joint", "stopping")
SHORT = AutoScheduler(folds=2)


def tied_table(num_samples=150):
    """The first exit is always right and so are the others: every contender earns the same."""
    labels = np.arange(num_samples) % 3
    logits = 4.0 * np.eye(3)[labels][:, None].repeat(3, axis=1)
    logits = logits + 0.1 * np.random.default_rng(0).normal(size=(num_samples, 3, 3))
    return ExitTable(logits=logits, labels=labels, costs=CostTable((1.0, 2.0, 3.0), "ms"))


def held_out_of(auto, table):
    return auto._held_out(_Fits(table, auto.folds, auto.seed))


class Softened(Transform):
    def __call__(self, seen):
        return log_softmax(0.7 * seen[:, -1])


def softened(table, seed):
    return Softened()


def without_labels(table):
    return ExitTable(logits=table.logits, utility=table.utility, costs=table.costs)


def test_where_all_tie_the_simplest_is_taken():
    choice = SHORT.choose(tied_table())
    assert choice.name == "max_prob"
    assert [one.name for one in choice.contenders] == list(SIMPLE)
    assert {one.area for one in choice.contenders} == {1.0}
    assert {one.deficit for one in choice.contenders} == {0.0}


@pytest.mark.slow
def test_stopping_is_taken_where_the_class_counts():
    table = classwise_table(3000, seed=0)
    choice = SHORT.choose(table)
    assert choice.name.startswith("stopping")
    margin = next(one for one in choice.contenders if one.name.startswith("margin"))
    assert margin.deficit > max(0.01, 2 * margin.noise)


@pytest.mark.slow
def test_an_ensemble_is_taken_where_exits_know_different_things():
    table = synthetic_table(1000, num_exits=3)
    dial = SHORT.sweep(table)
    policy = dial.at("60%")
    assert dial.reason.split(":")[0].endswith("+ensemble")
    assert all(isinstance(part, TransformedPolicy) for _, part in policy.components())
    check_policy(policy, synthetic_table(300, num_exits=3, seed=1))


def test_without_labels_there_are_no_ensembles():
    news = []
    table = without_labels(synthetic_table(200, num_exits=3))
    auto = AutoScheduler(folds=2, progress=lambda *one: news.append(one))
    choice = auto.choose(table)
    assert [one.name for one in choice.contenders] == list(SIMPLE)
    assert news == [(name, i + 1, 8) for i, name in enumerate(SIMPLE * 2)]
    dial = auto.sweep(table)
    assert not any(isinstance(policy, TransformedPolicy) for policy in dial.policies)


@pytest.mark.parametrize("scheduler", [SHORT, StoppingScheduler(folds=2)], ids=["auto", "stopping"])
def test_after_a_transform_of_the_users_there_are_no_ensembles(scheduler):
    table = synthetic_table(150)
    transformed = TransformedScheduler(scheduler=scheduler, fit_transform=softened)
    policy = transformed.fit(table, budget="60%")
    assert Replayer(table).expected(policy)[0] <= table.require_costs().budget("60%").value
    assert "ensemble" not in transformed.sweep(table).reason


def test_the_reason_names_everyone_in_order_of_merit(monkeypatch):
    table = synthetic_table(300, num_exits=2)
    scores = held_out_of(SHORT, table)
    monkeypatch.setattr(AutoScheduler, "_held_out", lambda *_: scores)  # once is enough
    choice = SHORT.choose(table)
    assert choice.reason.startswith(f"{choice.name}: ")
    listed = choice.reason.split("in percent: ")[1].rstrip(".").split(", ")
    areas = {one.name: one.area for one in choice.contenders}
    assert [item.rsplit(" ", 1)[0] for item in listed] == sorted(areas, key=lambda name: -areas[name])
    assert all(
        float(item.rsplit(" ", 1)[1]) == pytest.approx(100 * areas[item.split()[0]], abs=0.006) for item in listed
    )
    best = max(choice.contenders, key=lambda one: one.area)
    words = "the best on held-out samples" if best.name == choice.name else f"simpler than {best.name} and within noise"
    assert words in choice.reason
    assert SHORT.sweep(table).reason == choice.reason


def test_the_simplest_within_the_tolerance_is_taken(monkeypatch):
    table = synthetic_table(300, num_exits=2)
    scores = held_out_of(SHORT, table)
    monkeypatch.setattr(AutoScheduler, "_held_out", lambda *_: scores)  # once is enough
    contenders = SHORT.choose(table).contenders
    assert max(contenders, key=lambda one: one.area).deficit == 0.0
    parts = {name: one.parts for name, one in scores.items()}
    best = max(parts, key=lambda name: parts[name].mean())
    for tolerance in (0.0, 0.5, 1.0, 3.0, 1e9):
        choice = AutoScheduler(folds=2, tolerance=tolerance).choose(table)
        behind = {name: parts[best] - one for name, one in parts.items()}
        within = [name for name, one in behind.items() if one.mean() <= tolerance * one.std(ddof=1) / np.sqrt(300)]
        assert choice.contenders == contenders
        assert choice.name == within[0]
    assert choice.name == next(iter(parts))


def repeated_exit_table(num_samples=400, num_exits=3):
    """Every exit says the same: there is nothing to combine."""
    table = synthetic_table(num_samples, num_exits=num_exits)
    return ExitTable(logits=table.logits[:, :1].repeat(num_exits, axis=1), labels=table.labels, costs=table.costs)


@pytest.mark.parametrize(
    ("make", "combined"),
    [(lambda: synthetic_table(400, num_exits=3), True), (repeated_exit_table, None), (tied_table, False)],
    ids=["independent", "repeated", "tied"],
)
def test_exits_are_combined_where_held_out_labels_become_likelier(make, combined):
    table = make()
    fits = _Fits(table, 4, 0)
    gain, changed = 0.0, False
    for f in range(4):  # in words: every fold by an ensemble that has not seen it
        rows = np.flatnonzero(fits.fold == f)
        together = table.select(rows).transformed(fit_ensemble(table.select(fits.fold != f)))
        for one, sign in ((together, 1), (table.select(rows), -1)):
            right = np.take_along_axis(one.seen(), table.labels[rows, None, None], axis=2)
            gain += sign * float(np.maximum(right, -100).sum(dtype=np.float64))
        changed |= bool((together.utility != table.utility[rows]).any())
    assert fits.combined == (gain > 0 and changed)
    assert combined is None or fits.combined == combined
    names = [one.name for one in AutoScheduler(folds=4).choose(table).contenders]
    assert all(name.endswith("+ensemble") == fits.combined for name in names)


def test_fewer_than_50_samples_are_no_ground_for_a_choice():
    table = synthetic_table(49)
    choice = AutoScheduler().choose(table)
    assert (choice.name, choice.contenders) == ("max_prob", ())
    assert choice.reason == "max_prob: 49 samples are not enough to choose by."
    dial, plain = AutoScheduler().sweep(table), GeometricScheduler().sweep(table)
    assert dial.reason == choice.reason
    assert (dial.fit_costs, dial.fit_utilities) == (plain.fit_costs, plain.fit_utilities)
    assert len(SHORT.choose(synthetic_table(50, num_exits=2)).contenders) == 4


@pytest.mark.parametrize("make", [tied_table, lambda: without_labels(classwise_table(1000))], ids=["tied", "classwise"])
def test_the_dial_is_the_chosen_schedulers_own(make):
    table = make()
    dial = SHORT.sweep(table)
    schedulers = {"max_prob": GeometricScheduler(), "joint": JointScheduler(), "stopping": StoppingScheduler()}
    own = schedulers[dial.reason.split(":")[0]].sweep(table)
    assert (dial.fit_costs, dial.fit_utilities) == (own.fit_costs, own.fit_utilities)
    for budget in (table.costs.low, *standard_budgets(table.costs), table.costs.high):
        assert Replayer(table).expected(dial.at(budget))[0] <= budget


def test_utility_that_is_not_accuracy_is_what_counts():
    # labels say one thing, the given utility another: going on is worth nothing by it
    table = synthetic_table(300, num_exits=3)
    utility = np.random.default_rng(0).random((300, 1)).repeat(3, axis=1)
    graded = ExitTable(logits=table.logits, labels=table.labels, utility=utility, costs=table.costs)
    choice = SHORT.choose(graded)
    assert choice.name == "max_prob"
    assert [one.name for one in choice.contenders] == list(SIMPLE)
    assert {round(one.area, 6) for one in choice.contenders} == {round(utility.mean(), 6)}


def test_parts_of_the_area_by_hand():
    # two policies, costs 1 and 3, utilities 0 and 1, for budgets 1 and 2: at 2 the curve lies at 1/2
    earned = np.array([[0.0, 0.0], [1.0, 1.0]])
    spent = np.array([[1.0, 1.0], [3.0, 3.0]])
    assert _contribution(spent, earned, [1.0, 2.0], (1.0, 0.0)).tolist() == pytest.approx([0.25, 0.25])
    # a sample that costs more than the others pays for it by the curve's slope, 1/2
    spent = np.array([[1.0, 1.0], [2.0, 4.0]])
    assert _contribution(spent, earned, [1.0, 2.0], (1.0, 0.0)).tolist() == pytest.approx([0.5, 0.0])


def test_the_mean_of_the_parts_is_the_area_under_the_curve():
    generator = np.random.default_rng(0)
    spent, earned = np.sort(generator.uniform(1, 4, (6, 50)), axis=0), generator.uniform(0, 1, (6, 50))
    budgets = [1.5, 2.0, 2.5, 3.0, 3.3, 3.6]
    at = np.interp(budgets, [1.0, *spent.mean(axis=1)], [0.2, *earned.mean(axis=1)])
    assert _contribution(spent, earned, budgets, (1.0, 0.2)).mean() == pytest.approx(at.mean())


# --- features and costs of the user's own -----------------------------------------------------------------------------


def features_table(names, num_samples=300, seed=0):
    """The first column says how likely exit 0 is right, the second nothing."""
    generator = np.random.default_rng(seed)
    chance = generator.random(num_samples)
    features = generator.normal(size=(num_samples, 2, 2))
    features[:, 0, 0] = chance
    right = np.stack([generator.random(num_samples) < chance, np.ones(num_samples)], axis=1)
    costs = CostTable((1.0, 2.0), "ms")
    return ExitTable(features=features, feature_names=names, utility=right, costs=costs)


@pytest.mark.parametrize(
    ("names", "tried"),
    [
        ((), ["stopping"]),
        (("router", "other"), ["stopping"]),
        (("max_prob", "margin"), list(SIMPLE)),
        (("margin", "other"), ["margin", "stopping"]),
        (("other", "max_prob"), ["max_prob", "joint", "stopping"]),
    ],
)
def test_features_are_decided_by_their_names_and_by_stopping(names, tried):
    table, news = features_table(names), []
    auto = AutoScheduler(folds=2, progress=lambda *one: news.append(one))
    choice = auto.choose(table)
    assert [one.name for one in choice.contenders] == tried
    assert {total for *_, total in news} == {2 * len(tried)}
    policy = auto.fit(table, budget=1.5)
    cost, utility = Replayer(features_table(names, 2000, 1)).expected(policy)
    assert cost == pytest.approx(1.5, abs=0.1)
    assert utility >= 0.83  # blind: 0.75, the best: 0.875
    assert auto.choose(table.select(slice(49))).name == tried[0]


@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_costs_of_each_sample_may_make_a_fold_more_expensive_than_a_budget(scale):
    table = synthetic_table(120, num_exits=3)
    first = np.random.default_rng(0).lognormal(0.0, 2.0, size=120)
    cost = first[:, None] + scale * np.arange(3)
    by_sample = ExitTable(logits=table.logits, utility=table.utility, cost=cost)
    dial = SHORT.sweep(by_sample)
    for budget in standard_budgets(by_sample.costs):
        assert Replayer(by_sample).expected(dial.at(budget))[0] <= budget * (1 + 1e-9)


def test_what_cannot_work_is_refused():
    table = synthetic_table(60)
    with pytest.raises(TableError, match="lacks labels: fitting AutoScheduler needs 'labels' or 'utility'"):
        SHORT.choose(ExitTable(logits=table.logits, costs=table.costs))
    with pytest.raises(TableError, match="costs are missing"):
        SHORT.choose(ExitTable(logits=table.logits, labels=table.labels))
    with pytest.raises(BudgetError):
        SHORT.fit(table, budget=0.5)


@pytest.mark.parametrize("case", ["all right", "constant", "two exits and classes", "utility of nothing"])
def test_odd_tables_are_chosen_for(case):
    table = synthetic_table(60, num_exits=2, num_classes=2)
    logits, labels, utility = table.logits, table.labels, None
    if case == "all right":
        logits = 30.0 * np.eye(2)[labels][:, None].repeat(2, axis=1)
    elif case == "constant":
        logits = np.zeros_like(logits)
    elif case == "utility of nothing":
        labels, utility = None, np.zeros((60, 2))
    odd = ExitTable(logits=logits, labels=labels, utility=utility, costs=table.costs)
    policy = SHORT.fit(odd, budget=1.5)
    assert Replayer(odd).expected(policy)[0] <= 1.5


@pytest.mark.parametrize(("count", "joint"), [(999, True), (1000, False)])
def test_from_1000_samples_on_stopping_replaces_joint_thresholds(count, joint):
    names = list(AutoScheduler()._coarse(synthetic_table(count, num_exits=2)))
    assert names == [name for name in SIMPLE if joint or name != "joint"]


@pytest.mark.parametrize(
    ("lead", "chosen"), [(0.4, "max_prob"), (0.6, "stopping"), (-1.0, "max_prob")], ids=["noise", "better", "worse"]
)
def test_half_a_standard_error_is_noise(lead, chosen, monkeypatch):
    noise = np.random.default_rng(0).normal(size=400)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    scores = {"max_prob": np.full(400, 0.5), "stopping": 0.5 + 0.1 * (noise + lead / 20)}
    known = {name: HeldOut(parts, np.arange(10.0)) for name, parts in scores.items()}
    monkeypatch.setattr(AutoScheduler, "_held_out", lambda *_: known)
    choice = AutoScheduler().choose(synthetic_table(400, num_exits=2))
    assert choice.name == chosen
    words = "simpler than stopping and within noise" if lead == 0.4 else "the best on held-out samples"
    assert words in choice.reason


def test_nothing_is_fitted_twice(monkeypatch):
    fitted = []

    def counted(table, *, positive):
        fitted.append(table.num_samples)
        return real(table, positive=positive)

    real = ensemble._fit
    monkeypatch.setattr(ensemble, "_fit", counted)
    dial = AutoScheduler(folds=4).sweep(synthetic_table(400, num_exits=3))
    assert dial.reason.split(":")[0].endswith("+ensemble")
    assert fitted == [300] * 4 + [400]


@pytest.mark.parametrize(("count", "peak", "capped"), [(1000, 4, True), (1000, 9, False), (999, 4, False)])
def test_no_more_is_spent_than_pays_on_held_out_samples(count, peak, capped, monkeypatch):
    table = synthetic_table(count, num_exits=3)
    earned = -np.abs(np.arange(10.0) - peak)
    monkeypatch.setattr(AutoScheduler, "_held_out", lambda *_: {"max_prob": HeldOut(np.zeros(count), earned)})
    dial, own = AutoScheduler().sweep(table), GeometricScheduler().sweep(table)
    budget = standard_budgets(table.costs)[4]
    spent = [Replayer(table).expected(one.at("100%"))[0] for one in (dial, own)]
    assert spent[1] == table.costs.high and spent[0] == pytest.approx(budget if capped else table.costs.high)
    assert (f"More than {budget:.4g} ms brought nothing" in dial.reason) == capped
    for lower in standard_budgets(table.costs)[:5]:
        assert Replayer(table).expected(dial.at(lower)) == pytest.approx(Replayer(table).expected(own.at(lower)))
