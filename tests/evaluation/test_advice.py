"""Advice on planted tables: useless exits are dropped, and early exit pays where it should and nowhere else."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.tables import dense_table

from eenet.errors import BudgetError, InputError, ShapeError, TableError
from eenet.evaluation import CostParts, StaticModel, advise
from eenet.evaluation.exits import Samples, apply, choose_exits, fit_frontier, mixed
from eenet.tables import read_outcomes
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable
from eenet.testing import gaussian_optimum, gaussian_table, planted_outcomes, typed_table

COSTS = (1.0, 2.0, 3.0, 4.0)
NEVER = float("inf")


def advised(table, costs=None, budgets=(), **more):
    return advise(table, costs, budgets, resamples=200, **more)


def with_a_copy(samples=800, seed=0):
    """Exits that learn evenly, exit 1 saying what exit 0 said, by a head that costs half a stage."""
    table = gaussian_table(samples, information=(1.5, 1.5, 1.5), costs=(1.0, 2.0, 3.0), seed=seed)
    logits = table.logits[:, [0, 0, 1, 2]]
    parts = CostParts(stages=(1.0, 0.5, 0.5, 1.0), heads=(0.02, 0.5, 0.02, 0.0))
    costs = CostTable(parts.cumulative(range(4)), "ms", reference=3.0)
    return ExitTable(logits=logits, labels=table.labels, costs=costs), parts


def scaled(parts, factor):
    values = {name: tuple(factor * value for value in getattr(parts, name)) for name in ("stages", "heads")}
    return replace(parts, **values)


def of_chance(samples=600, early=3, seed=0, right=0.9):
    """Early exits that answer at random, a last one that is mostly right."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=samples)
    logits = generator.standard_normal((samples, early + 1, 4))
    knows = generator.random(samples) < right
    logits[knows, -1] += 8.0 * np.eye(4)[labels[knows]]
    return ExitTable(logits=logits, labels=labels, costs=CostTable(COSTS[: early + 1], "ms", 3.9))


def unsure_of_what(samples, seed=0):
    """Exits that are right on 60, 70 and 80 of 100 samples, and as sure where they are wrong."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=samples)
    right = generator.random((samples, 3)) < (0.6, 0.7, 0.8)
    answers = np.where(right, labels[:, None], 1 - labels[:, None])
    sureness = 1.0 + generator.random((samples, 3))
    logits = np.eye(2)[answers] * sureness[:, :, None]
    return ExitTable(logits=logits, labels=labels, costs=CostTable((1.0, 2.0, 3.0), "ms", 3.0))


def test_costs_of_fewer_exits_by_hand():
    parts = CostParts(stages=(10.0, 20.0, 30.0), heads=(1.0, 2.0, 3.0), decisions=(0.1, 0.2))
    assert parts.cumulative((0, 1, 2)) == pytest.approx((11.1, 33.3, 66.3))
    assert parts.cumulative((1, 2)) == pytest.approx((32.2, 65.2))
    assert parts.cumulative((2,)) == pytest.approx((63.0,))
    assert [parts.alone(k) for k in range(3)] == [11.0, 32.0, 63.0]
    whole = CostParts.of_costs(CostTable((1.0, 2.5, 4.0), "ms"))
    assert not whole.known and whole.cumulative((1, 2)) == pytest.approx((2.5, 4.0))


def walked(parts, kept, exit_):
    """The same, by walking through the model."""
    spent = 0.0
    for k in range(len(parts.stages)):
        spent += parts.stages[k]
        if k in kept:
            spent += parts.heads[k]
            if k < len(parts.stages) - 1 and parts.decisions:
                spent += parts.decisions[k]
        if k == exit_:
            return spent
    raise AssertionError


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_costs_of_fewer_exits_agree_with_a_walk(data):
    exits = data.draw(st.integers(2, 6))
    number = st.floats(0.01, 10)
    draw = lambda count: tuple(data.draw(st.lists(number, min_size=count, max_size=count)))  # noqa: E731
    parts = CostParts(
        stages=draw(exits), heads=draw(exits), decisions=draw(exits - 1) if data.draw(st.booleans()) else ()
    )
    kept = (*sorted(data.draw(st.sets(st.integers(0, exits - 2)))), exits - 1)
    assert parts.cumulative(kept) == pytest.approx([walked(parts, kept, k) for k in kept])


def test_parts_are_read_from_the_record_that_the_costs_came_from():
    flops = {"cumulative": [3.0, 7.0], "unit": "FLOPs", "start": 0.5, "stages": [1.5, 3.0], "heads": [1.0, 1.0]}
    spread = lambda value: {"median": value, "low": value, "high": value}  # noqa: E731
    latency = {
        "cumulative": [1.2, 3.4],
        "unit": "ms",
        "start": spread(0.1),
        "stages": [spread(0.7), spread(2.0)],
        "heads": [spread(0.3), spread(0.2)],
        "decisions": [spread(0.1)],
    }
    profile = {"flops": flops, "latency": [latency]}
    counted = CostParts.of_profile(profile, CostTable((3.0, 7.0), "FLOPs"))
    assert counted == CostParts(stages=(2.0, 3.0), heads=(1.0, 1.0))
    timed = CostParts.of_profile(profile, CostTable((1.2, 3.4), "ms"))
    assert timed is not None and timed.cumulative((0, 1)) == pytest.approx((1.2, 3.4))
    assert CostParts.of_profile(profile, CostTable((1.0, 2.0), "ms")) is None
    del flops["heads"]
    with pytest.raises(TableError, match="damaged"):
        CostParts.of_profile(profile, CostTable((3.0, 7.0), "FLOPs"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": (1.0,), "heads": (1.0,)},
        {"stages": (1.0, 2.0), "heads": (1.0,)},
        {"stages": (1.0, 2.0), "heads": (1.0, 1.0), "decisions": (1.0, 1.0)},
        {"stages": (1.0, float("nan")), "heads": (1.0, 1.0)},
        {"stages": (1.0, 2.0), "heads": (-1.0, 1.0)},
    ],
)
def test_parts_that_cannot_be_added_up_are_refused(wrong):
    with pytest.raises((ShapeError, TableError)):
        CostParts(**wrong)


def samples_of(table, majority=0.0):
    scores = table.seen().max(axis=2)
    majorities = np.full(table.num_samples, majority)
    return Samples(scores=scores, utility=table.utility, majority=majorities, groups=table.group_index)


def test_other_samples_leave_and_mix_as_one_by_one():
    samples = samples_of(gaussian_table(40, information=(1.0, 1.0, 1.0), costs=(1.0, 2.0, 3.0)), majority=0.25)
    costs = (1.0, 2.0, 3.0)
    fitted = fit_frontier(samples, costs)
    thresholds, level, gain = fitted
    budgets = (0.5, 1.0, 1.7, 2.2, 9.0)
    found = apply(fitted, samples, costs, budgets)
    for row, budget in enumerate(budgets):
        for i in range(len(samples)):
            outcomes = [(0.0, float(samples.majority[i]))]
            for candidate in thresholds.tolist():
                k = next(k for k in range(3) if k == 2 or float(samples.scores[i, k]) >= candidate[k])
                outcomes.append((costs[k], float(samples.utility[i, k])))
            levels = [0.0, *level.tolist()]
            above = next((j for j, cost in enumerate(levels) if cost > budget), None)
            share = 0.0 if above is None else (budget - levels[above - 1]) / (levels[above] - levels[above - 1])
            low = outcomes[-1] if above is None else outcomes[above - 1]
            high = outcomes[-1] if above is None else outcomes[above]
            wanted = [(1 - share) * a + share * b for a, b in zip(low, high, strict=True)]
            assert [found.costs[row, i], found.utilities[row, i]] == pytest.approx(wanted, abs=1e-6)
    met = [min(budget, float(level[-1])) for budget in budgets]  # where it was fitted
    assert found.costs.mean(axis=1).tolist() == pytest.approx(met, abs=1e-6)
    assert gain.tolist() == sorted(gain.tolist())


def test_net_utility_is_less_by_overspending_times_the_slope():
    cost, gain = np.array([1.0, 3.0]), np.array([0.4, 0.8])
    spent = np.array([[1.0, 1.0], [5.0, 3.0]])  # on these samples the second candidate costs 4, not 3
    earned = np.array([[0.0, 1.0], [1.0, 1.0]])
    found = mixed(spent, earned, cost, gain, majority=np.zeros(2), budgets=(2.0,))
    assert found.costs.tolist() == [pytest.approx([3.0, 2.0])]
    assert found.net.tolist() == [pytest.approx([0.5 - 0.2 * 1.0, 1.0])]


def test_the_approximate_fit_is_hardly_worse_than_the_search():
    table = gaussian_table(2000, information=(0.8, 0.6, 1.4, 1.5), costs=COSTS, expected=True)
    fit, judge = (samples_of(table.select(slice(start, None, 2))) for start in (0, 1))
    wanted = (1.3, 2.0, 2.7, 3.4)
    reached = {
        fast: float(apply(fit_frontier(fit, COSTS, approximate=fast), judge, COSTS, wanted).net.mean())
        for fast in (True, False)
    }
    best = np.mean([gaussian_optimum(b, information=(0.8, 0.6, 1.4, 1.5), costs=COSTS) for b in wanted])
    assert reached[True] > reached[False] - 0.004
    assert best - 0.015 < reached[False] < best + 0.015


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_approximate_frontier_rises_and_holds_every_static_exit(seed):
    samples = samples_of(gaussian_table(100, information=(1.0, 1.0, 1.0), costs=(1.0, 2.0, 3.0), seed=seed))
    _, cost, gain = fit_frontier(samples, (1.0, 2.0, 3.0), approximate=True)
    assert all(a < b for a, b in pairwise(cost.tolist())) and all(a < b for a, b in pairwise(gain.tolist()))
    at = np.interp((1.0, 2.0, 3.0), cost, gain)
    assert (at >= samples.utility.mean(axis=0) - 1e-9).all()


def test_an_exit_that_says_nothing_new_is_dropped():
    table, parts = with_a_copy()
    advice = advised(table, parts=parts)
    assert 1 in advice.dropped and 0 in advice.kept and advice.kept[-1] == 3
    assert advice.costs.cumulative == pytest.approx(parts.cumulative(advice.kept))
    assert advice.costs.high < table.require_costs().high - 0.4  # its head is saved


def test_exits_that_all_help_are_kept_while_their_heads_are_cheap():
    table = gaussian_table(3000, information=(2.0, 2.0, 2.0), costs=(1.0, 2.0, 3.0), expected=True)
    samples, wanted = samples_of(table), (1.2, 1.5, 2.0, 2.5)
    cheap = CostParts(stages=(0.99, 0.99, 1.0), heads=(0.01, 0.01, 0.0))
    assert choose_exits(samples, cheap, wanted) == (0, 1, 2)
    costly = CostParts(stages=(1.0, 0.1, 1.0), heads=(0.01, 0.9, 0.0))  # same costs of leaving; exit 1 is all head
    assert choose_exits(samples, costly, wanted) == (0, 2)


def test_the_cheapest_kept_exit_is_within_reach():
    table = of_chance()
    parts = CostParts.of_costs(table.require_costs())
    samples = samples_of(table)
    assert choose_exits(samples, parts, (3.5,))[0] >= 0
    assert choose_exits(samples, parts, (1.5,), reachable=1.5)[0] == 0


def test_it_pays_where_early_exits_know_what_they_know():
    advice = advised(typed_table(600))
    assert advice.pays and advice.verdict.startswith("Early exit pays here: ")
    assert advice.difference[0] > advice.difference[1] > 0.05
    assert advice.saving == pytest.approx(0.5, abs=0.06)  # 0.5 * 1 + 0.3 * 2 + 0.2 * 4 = 1.9 of 4
    assert advice.static_saving is not None and advice.static_saving < 0.1
    assert advice.kept == (0, 1, 2)
    costs, utilities = zip(*advice.frontier, strict=True)
    assert list(costs) == sorted(costs) and utilities[0] == pytest.approx(0.5, abs=0.06) and utilities[-1] == 1.0
    assert advised(replace(typed_table(300), labels=None)).pays  # utility will do


def test_it_does_not_pay_where_early_exits_guess():
    advice = advised(of_chance())
    assert not advice.pays and advice.verdict.startswith("Early exit does not pay here, because ")
    assert "as good within the interval" in advice.verdict or "is better" in advice.verdict
    assert "know hardly anything" in advice.verdict
    assert advice.saving is None or advice.saving < 0.05


def test_it_does_not_pay_where_nobody_knows_who_may_leave():
    advice = advised(unsure_of_what(600), budgets=["60%", "80%"])
    assert not advice.pays and advice.difference[1] <= 0
    assert [row.budget_input for row in advice.rows] == ["60%", "80%"]


def test_it_does_not_pay_where_the_first_exit_comes_late():
    table = typed_table(600).with_costs(CostTable((3.7, 3.9, 4.3), "ms", 4.0))
    advice = advised(table)
    assert not advice.pays
    assert all(
        words in advice.verdict for words in ("already costs 92.5 %", "together cost 7.5 % more", "less than 5 %")
    )


def test_a_smaller_model_may_be_the_better_answer():
    table = typed_table(600)
    smaller = StaticModel(name="small", cost=1.2, utility=0.99)
    advice = advised(table, budgets=["1.5"], statics=[smaller])
    assert advised(table, budgets=["1.5"]).pays and not advice.pays
    assert "is better" in advice.verdict and "(small)" in advice.verdict
    assert advice.rows[0].best_static == "small" and advice.rows[0].static == pytest.approx(0.99, abs=3e-3)
    weak = StaticModel(name="weak", cost=3.0, utility=0.4)
    assert advised(table, budgets=["1.5"], statics=[weak]).rows[0].static < 0.7


def test_an_exit_as_good_as_the_last_needs_no_policy():
    table, costs = of_chance(early=1), CostTable((1.0, 2.0, 4.0), "ms", 4.0)
    advice = advised(ExitTable(logits=table.logits[:, [0, 1, 1]], labels=table.labels, costs=costs), budgets=["60%"])
    assert not advice.pays and "exit 1 alone is within one point" in advice.verdict and "50.0 %" in advice.verdict


def test_what_was_assumed_is_said():
    table, parts = with_a_copy(60)
    assert not advised(table, parts=parts).notes
    (note,) = advised(table).notes
    assert "Pass a profile" in note
    assert any("exact" in note for note in advised(table, statics=[StaticModel(name="x", cost=1, utility=0.5)]).notes)


def test_advice_is_the_same_for_the_same_seed_and_in_another_unit():
    table, parts = with_a_copy(60)
    first = advised(table, parts=parts)
    again = advised(table, parts=parts)
    assert json.dumps(first.to_dict(), allow_nan=False) == json.dumps(again.to_dict(), allow_nan=False)
    other = advised(table, table.require_costs().convert("us"), parts=scaled(parts, 1000.0))
    assert (other.kept, other.pays) == (first.kept, first.pays)
    assert other.difference == pytest.approx(first.difference, rel=1e-9)


def test_tables_of_maps_are_advised_on_by_their_columns():
    table = dense_table(300)
    assert advised(table).kept == advised(table, confidence="margin").kept == (0, 1, 2, 3)
    with pytest.raises(InputError, match="'sure'"):
        advised(table, confidence="sure")


def test_what_cannot_be_advised_on_is_refused():
    table, parts = with_a_copy(200)
    for few in (3, 9):
        with pytest.raises(TableError, match=f"{few} samples is too small"):
            advise(table.select(slice(0, few)), folds=10 if few == 9 else 2)
    with pytest.raises(TableError, match="lacks labels"):
        advise(replace(table, labels=None, utility=None))
    with pytest.raises(TableError, match="disagree with their parts"):
        advise(table, parts=scaled(parts, 2.0))
    with pytest.raises(BudgetError):
        advise(table, budgets=["1%"])
    with pytest.raises(InputError, match="folds 1"):
        advise(table, folds=1)
    with pytest.raises(InputError, match="'odd'"):
        StaticModel(name="odd", cost=1.0, utility=93.0)


@pytest.mark.slow
def test_it_seldom_pays_by_luck():
    paid = [advise(unsure_of_what(400, seed=seed), resamples=400, seed=seed).pays for seed in range(40)]
    assert sum(paid) <= 3  # 1 is expected at the most, were the interval exact


@pytest.mark.slow
def test_it_always_pays_where_the_gain_is_plain():
    assert all(advise(typed_table(300, seed=seed), resamples=200, seed=seed).pays for seed in range(15))


def test_models_asked_one_after_the_other_stand_alone_at_their_own_cost():
    columns = planted_outcomes(400, stages=3)
    columns |= {f"stage{k}.cost": np.full(400, cost) for k, cost in enumerate((1.0, 4.0, 20.0))}
    table = read_outcomes(columns)
    advice = advise(table, confidence="score", resamples=50)
    assert [(one.name, one.cost) for one in advice.statics] == [
        ("stage0 alone", 1.0),
        ("stage1 alone", 4.0),
        ("stage2 alone", 20.0),
    ]
    assert "the original model" not in advice.verdict
    assert table.keeping([0, 2]).costs.cumulative == (1.0, 21.0)  # a stage left out costs nothing
    varied = read_outcomes(planted_outcomes(50, stages=3))
    assert np.allclose(varied.keeping([1, 2]).cost[:, 0], varied.cost[:, 1] - varied.cost[:, 0])
    unnamed = ExitTable(logits=np.zeros((50, 2, 2)), labels=np.zeros(50, int), costs=CostTable((1.0, 5.0), "ms"))
    passed_on = unnamed.with_fallback(cost=30)  # its exits have numbers for names
    assert not passed_on.separate
    assert passed_on.keeping([0, 2]).costs.cumulative == (1.0, 35.0)
