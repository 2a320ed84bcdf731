"""The choice by cross-validation: what is tried, what is taken, and why."""

import numpy as np
import pytest
import torch

from eenet.core.combined import TransformedPolicy, unmixed
from eenet.core.costs import CostTable, standard_budgets
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.core.transform import Transform
from eenet.errors import BudgetError, InputError, TableError
from eenet.schedulers import (
    AutoScheduler,
    GeometricScheduler,
    JointScheduler,
    StoppingScheduler,
    TransformedScheduler,
)
from eenet.schedulers.auto import _contribution
from eenet.testing import check_policy, classwise_table, synthetic_table

SIMPLE = ("max_prob", "margin", "joint", "stopping")
QUICK = AutoScheduler(folds=2)


def tied_table(num_samples=150):
    """The first exit is always right and so are the others: every contender earns the same."""
    labels = torch.arange(num_samples) % 3
    logits = 4.0 * torch.nn.functional.one_hot(labels, 3)[:, None].repeat(1, 3, 1)
    logits = logits + 0.1 * torch.randn(num_samples, 3, 3, generator=torch.Generator().manual_seed(0))
    return ExitTable(logits=logits, labels=labels, costs=CostTable((1.0, 2.0, 3.0), "ms"))


class Softened(Transform):
    def forward(self, seen):
        return torch.log_softmax(0.7 * seen[:, -1], dim=1)


def softened(table, seed):
    return Softened()


def without_labels(table):
    return ExitTable(logits=table.logits, utility=table.utility, costs=table.costs)


def test_where_all_tie_the_simplest_is_taken():
    choice = QUICK.choose(tied_table())
    assert choice.name == "max_prob"
    assert [one.name for one in choice.contenders] == [*SIMPLE, *(f"{name}+ensemble" for name in SIMPLE)]
    assert {one.area for one in choice.contenders} == {1.0}
    assert {one.behind for one in choice.contenders} == {0.0}


@pytest.mark.slow
def test_stopping_is_taken_where_the_class_counts():
    table = classwise_table(3000, seed=0)
    choice = QUICK.choose(table)
    areas = {one.name: one.area for one in choice.contenders}
    assert choice.name.startswith("stopping")
    assert areas["stopping"] > areas["joint"] + 0.01
    joint = next(one for one in choice.contenders if one.name == "joint")
    assert joint.behind > 2 * joint.noise


@pytest.mark.slow
def test_an_ensemble_is_taken_where_exits_know_different_things():
    table = synthetic_table(1000, num_exits=3)
    dial = QUICK.sweep(table)
    policy = dial.at("60%")
    assert dial.reason.split(":")[0].endswith("+ensemble")
    assert all(isinstance(part, TransformedPolicy) for _, part in unmixed(policy))
    check_policy(policy, synthetic_table(300, num_exits=3, seed=1))


def test_without_labels_there_are_no_ensembles():
    told = []
    table = without_labels(synthetic_table(200, num_exits=3))
    auto = AutoScheduler(folds=2, progress=lambda *news: told.append(news))
    choice = auto.choose(table)
    assert [one.name for one in choice.contenders] == list(SIMPLE)
    assert told == [(name, i + 1, 8) for i, name in enumerate(SIMPLE * 2)]
    dial = auto.sweep(table)
    assert not any(isinstance(policy, TransformedPolicy) for policy in dial.policies)


@pytest.mark.parametrize("scheduler", [QUICK, StoppingScheduler(folds=2)], ids=["auto", "stopping"])
def test_behind_a_transform_of_the_users_there_are_no_ensembles(scheduler):
    table = synthetic_table(150)
    behind = TransformedScheduler(scheduler=scheduler, fit_transform=softened)
    policy = behind.fit(table, budget="60%")
    assert Replayer(table).expected(policy, table.require_costs())[0] <= table.require_costs().budget("60%").value
    assert "ensemble" not in behind.sweep(table).reason


def test_progress_counts_every_trial():
    told = []
    AutoScheduler(folds=2, progress=lambda *news: told.append(news)).choose(tied_table(60))
    assert [done for _, done, _ in told] == list(range(1, 17))
    assert {total for *_, total in told} == {16}


def test_the_reason_names_everyone_in_order_of_merit(monkeypatch):
    table = synthetic_table(300, num_exits=2)
    scores = QUICK._held_out(table, table.costs)
    monkeypatch.setattr(AutoScheduler, "_held_out", lambda *_: scores)  # once is enough
    choice = QUICK.choose(table)
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
    assert QUICK.sweep(table).reason == choice.reason


def test_the_simplest_within_the_tolerance_is_taken(monkeypatch):
    table = synthetic_table(300, num_exits=2)
    scores = QUICK._held_out(table, table.costs)
    monkeypatch.setattr(AutoScheduler, "_held_out", lambda *_: scores)  # once is enough
    contenders = QUICK.choose(table).contenders
    best = max(contenders, key=lambda one: one.area)
    assert best.behind == 0.0
    for tolerance in (0.0, 1.0, 3.0, 1e9):
        choice = AutoScheduler(folds=2, tolerance=tolerance).choose(table)
        wanted = next(one for one in contenders if one is best or one.behind <= tolerance * one.noise)
        assert choice.contenders == contenders
        assert choice.name == wanted.name
    assert AutoScheduler(folds=2, tolerance=1e9).choose(table).name == "max_prob"


def test_few_samples_are_no_ground_for_a_choice():
    table = synthetic_table(49)
    choice = AutoScheduler().choose(table)
    assert (choice.name, choice.contenders) == ("max_prob", ())
    assert choice.reason == "max_prob: 49 samples are too few to choose by."
    dial, plain = AutoScheduler().sweep(table), GeometricScheduler().sweep(table)
    assert dial.reason == choice.reason
    assert (dial.fit_costs, dial.fit_utilities) == (plain.fit_costs, plain.fit_utilities)
    assert len(QUICK.choose(synthetic_table(50, num_exits=2)).contenders) == 8


def test_the_same_table_gives_the_same_choice_and_policy():
    table, fresh = synthetic_table(100, num_exits=2), synthetic_table(300, num_exits=2, seed=1)
    first, second = QUICK.sweep(table), QUICK.sweep(table)
    assert first.reason == second.reason
    one, two = first.at("75%"), second.at("75%")
    assert torch.equal(Replayer(fresh).exit_index(one), Replayer(fresh).exit_index(two))


@pytest.mark.parametrize("make", [tied_table, lambda: without_labels(classwise_table(1000))], ids=["tied", "classwise"])
def test_the_dial_is_the_chosen_schedulers_own(make):
    table = make()
    dial = QUICK.sweep(table)
    schedulers = {"max_prob": GeometricScheduler(), "joint": JointScheduler(), "stopping": StoppingScheduler()}
    own = schedulers[dial.reason.split(":")[0]].sweep(table)
    assert (dial.fit_costs, dial.fit_utilities) == (own.fit_costs, own.fit_utilities)
    for budget in (table.costs.low, *standard_budgets(table.costs), table.costs.high):
        assert Replayer(table).expected(dial.at(budget), table.costs)[0] <= budget


def test_utility_that_is_not_accuracy_is_what_counts():
    # labels say one thing, the given utility another: going on is worth nothing by it
    table = synthetic_table(300, num_exits=3)
    utility = torch.rand(300, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 3)
    graded = ExitTable(logits=table.logits, labels=table.labels, utility=utility, costs=table.costs)
    choice = QUICK.choose(graded)
    assert choice.name == "max_prob"
    assert [one.name for one in choice.contenders] == list(SIMPLE)
    assert {round(one.area, 6) for one in choice.contenders} == {round(float(utility.mean()), 6)}


def test_parts_of_the_area_by_hand():
    # two policies, costs 1 and 3, utilities 0 and 1, for budgets 1 and 2: at 2 the curve lies at 1/2
    spent = torch.tensor([[1.0, 1.0], [3.0, 3.0]]).double()
    earned = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
    assert _contribution(spent, earned, [1.0, 2.0], (1.0, 0.0)).tolist() == pytest.approx([0.25, 0.25])
    # a sample that costs more than the others pays for it by the curve's slope, 1/2
    spent = torch.tensor([[1.0, 1.0], [2.0, 4.0]]).double()
    assert _contribution(spent, earned, [1.0, 2.0], (1.0, 0.0)).tolist() == pytest.approx([0.5, 0.0])


def test_the_mean_of_the_parts_is_the_area_under_the_curve():
    generator = np.random.default_rng(0)
    spent = torch.from_numpy(np.sort(generator.uniform(1, 4, (6, 50)), axis=0))
    earned = torch.from_numpy(generator.uniform(0, 1, (6, 50)))
    cost, gain = spent.mean(dim=1).numpy(), earned.mean(dim=1).numpy()
    budgets = [1.5, 2.0, 2.5, 3.0, 3.3, 3.6]
    at = np.interp(budgets, [1.0, *cost], [0.2, *gain])
    assert float(_contribution(spent, earned, budgets, (1.0, 0.2)).mean()) == pytest.approx(at.mean())


def test_what_cannot_work_is_refused():
    table = synthetic_table(60)
    with pytest.raises(InputError, match="folds 1 are too few"):
        AutoScheduler(folds=1)
    for tolerance in (-1.0, float("nan")):
        with pytest.raises(InputError, match=f"tolerance {tolerance:g} cannot be used"):
            AutoScheduler(tolerance=tolerance)
    with pytest.raises(TableError, match="lacks labels: fitting auto needs 'labels' or 'utility'"):
        QUICK.choose(ExitTable(logits=table.logits, costs=table.costs))
    with pytest.raises(TableError, match="costs are missing"):
        QUICK.choose(ExitTable(logits=table.logits, labels=table.labels))
    with pytest.raises(BudgetError):
        QUICK.fit(table, budget=0.5)


@pytest.mark.parametrize("case", ["all right", "constant", "two exits and classes", "utility of nothing"])
def test_odd_tables_are_chosen_for(case):
    table = synthetic_table(60, num_exits=2, num_classes=2)
    logits, labels, utility = table.logits, table.labels, None
    if case == "all right":
        logits = 30.0 * torch.nn.functional.one_hot(labels, 2)[:, None].repeat(1, 2, 1)
    elif case == "constant":
        logits = torch.zeros_like(logits)
    elif case == "utility of nothing":
        labels, utility = None, torch.zeros(60, 2)
    odd = ExitTable(logits=logits, labels=labels, utility=utility, costs=table.costs)
    policy = QUICK.fit(odd, budget=1.5)
    assert Replayer(odd).expected(policy, table.costs)[0] <= 1.5
